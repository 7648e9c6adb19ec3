/* TensorBoard event files with scalars.
 *
 * In: (tag, step, value). Out: DIR/events.out.tfevents.TIME.HOST, a sequence of records
 *   length u64 | masked CRC-32C of length | bytes | masked CRC-32C of bytes
 * whose bytes are an Event message (fields 1 wall_time double, 2 step int64, 3 file_version string, 5 summary), in
 * which a Summary (1 value*) holds Values (1 tag, 2 simple_value float). Each record is written at once, so that the
 * file can be watched while training runs; CRC-32C: Castagnoli's polynomial, reflected. */
#include "tools.h"
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

struct EventLog {
  Arena *arena;
  FILE *file;
};

static uint32_t crc32c(const uint8_t *p, size_t n) {
  uint32_t c = ~0u;
  for (size_t i = 0; i < n; i++) {
    c ^= p[i];
    for (int k = 0; k < 8; k++) c = c >> 1 ^ (0x82f63b78u & -(c & 1));
  }
  return ~c;
}

static uint32_t masked(const void *p, size_t n) {
  uint32_t c = crc32c(p, n);
  return (c >> 15 | c << 17) + 0xa282ead8u;
}

static void put_varint(Str *s, uint64_t v) {
  uint8_t b[10];
  size_t n = 0;
  do b[n++] = (uint8_t)((v & 127) | (v > 127 ? 128 : 0));
  while (v >>= 7);
  str_addn(s, (char *)b, n);
}

static void put_bytes(Str *s, int field, const char *p, size_t n) {
  put_varint(s, (uint64_t)field << 3 | 2);
  put_varint(s, n);
  str_addn(s, p, n);
}

static void write_record(EventLog *l, Str *event) {
  uint64_t n = event->n;
  uint32_t c1 = masked(&n, sizeof n), c2 = masked(event->s, event->n);
  fwrite(&n, sizeof n, 1, l->file);
  fwrite(&c1, sizeof c1, 1, l->file);
  fwrite(event->s, 1, event->n, l->file);
  fwrite(&c2, sizeof c2, 1, l->file);
  fflush(l->file);
}

static void begin_event(Str *e, Arena *a, int64_t step) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  double t = (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
  str_init(e, a);
  put_varint(e, 1 << 3 | 1);
  str_addn(e, (char *)&t, sizeof t);
  put_varint(e, 2 << 3);
  put_varint(e, (uint64_t)step);
}

EventLog *events_open(const char *dir) {
  if (!vfs_mkdirs(dir)) return NULL;
  Arena *a = arena_new();
  EventLog *l = arena_new_of(a, EventLog);
  char host[64] = "host";
  gethostname(host, sizeof host - 1);
  const char *path =
      arena_fmt(a, "%s/events.out.tfevents.%lld.%s", dir, (long long)time(NULL), host);
  l->arena = a;
  l->file = fopen(path, "abe");
  if (!l->file) {
    err_set(E_IO_002, "the event file cannot be written");
    err_where("%s", path);
    arena_free(a);
    return NULL;
  }
  Str e;
  begin_event(&e, a, 0);
  put_bytes(&e, 3, "brain.Event:2", 13);
  write_record(l, &e);
  return l;
}

void events_scalar(EventLog *l, const char *tag, int64_t step, double value) {
  if (!l) return;
  Arena *a = arena_new();
  Str v, s, e;
  float f = (float)value;
  str_init(&v, a);
  str_init(&s, a);
  put_bytes(&v, 1, tag, strlen(tag));
  put_varint(&v, 2 << 3 | 5);
  str_addn(&v, (char *)&f, sizeof f);
  put_bytes(&s, 1, v.s, v.n);
  begin_event(&e, a, step);
  put_bytes(&e, 5, s.s, s.n);
  write_record(l, &e);
  arena_free(a);
}

void events_close(EventLog *l) {
  if (!l) return;
  fclose(l->file);
  arena_free(l->arena);
}
