/* See account.h. The counting functions stand in mem_table. KILN_SHOW_HOSTILE=1 prints every diagnostic. */
#include "account.h"
#include <setjmp.h>
#include <stdlib.h>
#include <cmocka.h>

static MemTable plain;
static size_t live, peak;
static int n_files, n_accepted;

static void *counting_alloc(size_t n) {
  size_t *p = plain.alloc(n + 64);
  if (!p) return NULL;
  *p = n;
  size_t now = __atomic_add_fetch(&live, n, __ATOMIC_RELAXED);
  if (now > peak) peak = now;
  return (char *)p + 64;
}

static void counting_free(void *p) {
  size_t *head = (size_t *)((char *)p - 64);
  __atomic_sub_fetch(&live, *head, __ATOMIC_RELAXED);
  plain.free(head);
}

void account_start(void) {
  plain = mem_table;
  opdef_n(); /* the table is parsed once and stays */
  mem_table = (MemTable){counting_alloc, counting_free};
}

size_t account_live(void) { return live; }
size_t account_peak(void) { return peak; }
void account_set_peak(size_t p) { peak = p; }

Account account_open(const char *id, int variant, size_t file) {
  err_clear();
  peak = live;
  return (Account){id, variant, file, live, clock()};
}

ErrCode account_close(const Account *a, bool ok) {
  double seconds = (double)(clock() - a->start) / CLOCKS_PER_SEC;
  const Diag *d = err_get();
  if (ok == (d != NULL))
    fail_msg("%s.%d: %s", a->id, a->variant,
             ok ? "accepted, with an error" : "refused without an error");
  bool placed = d && (*d->where || d->code == E_IO_001); /* whose summary names the file */
  if (d && (!*d->summary || !placed))
    fail_msg("%s.%d: %s %s, without text or place", a->id, a->variant, err_name(d->code),
             d->summary);
  if (seconds > 1) fail_msg("%s.%d: %.2f seconds", a->id, a->variant, seconds);
  size_t most = ((size_t)64 << 20) + 2 * a->file; /* the file itself is the third */
  if (peak - a->before > most)
    fail_msg("%s.%d: %zu KiB for %zu bytes", a->id, a->variant, (peak - a->before) >> 10, a->file);
  if (live != a->before)
    fail_msg("%s.%d: %zd bytes are not freed", a->id, a->variant, (ssize_t)(live - a->before));
  ErrCode code = d ? d->code : E_NONE;
  n_files++;
  n_accepted += ok;
  if (getenv("KILN_SHOW_HOSTILE")) {
    print_message("%s.%d: ", a->id, a->variant);
    if (d)
      err_print(stdout, false);
    else
      print_message("accepted\n");
  }
  err_clear();
  return code;
}

int account_files(void) { return n_files; }
int account_accepted(void) { return n_accepted; }
