/* A progress line on stderr, only where stderr is a terminal. */
#include "tools.h"
#include <string.h>
#include <unistd.h>

enum { BAR = 24 };

void progress_start(Progress *p) {
  p->on = isatty(2);
  p->last = 0;
}

void progress_show(Progress *p, int64_t done, int64_t total, const char *text) {
  double now = p->on ? wall_seconds() : 0;
  if (!p->on || (now - p->last < 0.1 && done < total)) return;
  p->last = now;
  char bar[BAR + 1];
  int full = total > 0 ? (int)(done * BAR / total) : 0;
  memset(bar, '.', BAR);
  memset(bar, '=', (size_t)(full < BAR ? full : BAR));
  bar[BAR] = 0;
  fprintf(stderr, "\r[%s] %3d%% %s\033[K", bar, total > 0 ? (int)(done * 100 / total) : 0, text);
  fflush(stderr);
}

void progress_clear(Progress *p) {
  if (p->on) fprintf(stderr, "\r\033[K");
}

const char *grouped(int64_t v) {
  static char bufs[4][32];
  static int next;
  char *out = bufs[next++ & 3], digits[32];
  int n = snprintf(digits, sizeof digits, "%lld", (long long)(v < 0 ? -v : v)), k = 0;
  if (v < 0) out[k++] = '-';
  for (int i = 0; i < n; i++) {
    if (i && (n - i) % 3 == 0) out[k++] = ',';
    out[k++] = digits[i];
  }
  out[k] = 0;
  return out;
}
