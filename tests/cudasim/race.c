/* Races in shared memory, and reads of what was never written there. Every granule (as large as the kernel's smallest access)
 * remembers its last writer and readers with their epochs; a barrier joins the clocks of the warps that meet (Flanagan and
 * Freund, "FastTrack: efficient and precise dynamic race detection", 2009). Records of earlier blocks have epochs before
 * epoch_base. Two warps race if neither access comes before the other through barriers and one of them writes.
 * What all other warps have seen needs no look at who did it: that is decided for several granules at once. */
#include "sim.h"
#include <stdlib.h>
#include <string.h>

enum {
  ATOMIC = 0x100,
  PENDING = 0x200
}; /* in `writer`: by an atomic operation; a copy that has not arrived */

void race_prepare(Group *g, uint64_t bytes) {
  Records *r = &g->records;
  if (r->n >= bytes + 64) return;
  r->n = bytes + 64;
  free(r->write);
  r->write = host_alloc(r->n * 4 * sizeof(uint32_t));
  r->read = r->write + r->n;
  r->readers = r->read + r->n;
  r->writer = r->readers + r->n;
}

void race_start(Group *g) {
  if (g->epoch > UINT32_MAX - 1000000) {
    memset(g->records.write, 0, g->records.n * 4 * sizeof(uint32_t));
    g->epoch = 0;
  }
  g->epoch_base = ++g->epoch;
  for (int k = 0; k < g->n_warps; k++) {
    Warp *w = &g->warp[k];
    for (int j = 0; j < MAX_WARPS; j++) w->clock[j] = g->epoch_base - 1;
    w->clock[k] = g->epoch_base;
    w->clock_min = g->n_warps == 1 ? UINT32_MAX : g->epoch_base - 1;
  }
}

void race_barrier(Group *g, uint32_t warps, uint32_t syncing) {
  uint32_t clock[MAX_WARPS] = {0};
  FOR_LANES(k, warps) {
    for (int j = 0; j < MAX_WARPS; j++)
      if (g->warp[k].clock[j] > clock[j]) clock[j] = g->warp[k].clock[j];
  }
  FOR_LANES(k, warps) {
    Warp *w = &g->warp[k];
    uint32_t own = w->clock[k] + 1;
    if (syncing >> k & 1) memcpy(w->clock, clock, sizeof clock);
    w->clock[k] = own;
    if (own > g->epoch) g->epoch = own;
    w->clock_min = UINT32_MAX;
    for (int j = 0; j < g->n_warps; j++)
      if (j != (int)k && w->clock[j] < w->clock_min) w->clock_min = w->clock[j];
  }
}

/* ---- one granule ---- */

static uint32_t address(const Warp *w, uint32_t k) { return k << w->g->granule_shift; }

static _Noreturn void race(Warp *w, int lane, uint32_t k, const char *what, uint32_t other) {
  fault(w, 1u << lane, 719,
        "race in shared memory at byte %u: %s warp %u with no barrier between (this is warp %d)",
        address(w, k), what, other, w->index);
}

static _Noreturn void uninitialised(Warp *w, int lane, uint32_t k) {
  fault(w, 1u << lane, 719, "uninitialised read of shared memory at byte %u", address(w, k));
}

static void check_writer(Warp *w, int lane, uint32_t k, const char *what, bool atomic) {
  const Records *r = &w->g->records;
  if (r->write[k] < w->g->epoch_base) return;
  uint32_t writer = r->writer[k] & 0xff;
  if (r->writer[k] & PENDING)
    fault(w, 1u << lane, 719,
          "race in shared memory at byte %u: an asynchronous copy of warp %u to it has not been "
          "waited for",
          address(w, k), writer);
  if (r->write[k] > w->clock[writer] && !(atomic && r->writer[k] & ATOMIC))
    race(w, lane, k, what, writer);
}

static void check_readers(Warp *w, int lane, uint32_t k) {
  const Records *r = &w->g->records;
  if (r->read[k] < w->g->epoch_base || r->read[k] <= w->clock_min) return;
  FOR_LANES(j, r->readers[k] & ~(1u << w->index)) {
    if (r->read[k] > w->clock[j]) race(w, lane, k, "written after a read of", j);
  }
}

static void note_read(Warp *w, uint32_t k) {
  Records *r = &w->g->records;
  uint32_t now = w->clock[w->index], me = 1u << w->index;
  bool alone = r->read[k] <= w->clock_min || r->readers[k] == me;
  r->readers[k] = alone ? me : r->readers[k] | me;
  r->read[k] = alone || now > r->read[k] ? now : r->read[k];
}

static void read_one(Warp *w, int lane, uint32_t k) {
  if (checks.init && w->g->records.write[k] < w->g->epoch_base) uninitialised(w, lane, k);
  if (!checks.race) return;
  check_writer(w, lane, k, "read after a write of", false);
  note_read(w, k);
}

static void write_one(Warp *w, int lane, uint32_t k, uint32_t flags) {
  Records *r = &w->g->records;
  if (checks.race) {
    check_writer(w, lane, k, "written after a write of", flags & ATOMIC);
    check_readers(w, lane, k);
  }
  r->write[k] = w->clock[w->index];
  r->writer[k] = (uint32_t)w->index | flags;
  r->read[k] = 0;
}

/* ---- n granules from k on: together if every warp has seen what was done to them ---- */

static inline bool quiet_read(Warp *w, uint32_t k, uint32_t n) {
  const Records *r = &w->g->records;
  const uint32_t *write = r->write + k, *writer = r->writer + k, base = w->g->epoch_base,
                 seen = w->clock_min;
  uint32_t *read = r->read + k, *readers = r->readers + k, bad = 0, now = w->clock[w->index],
           me = 1u << w->index;
  for (uint32_t i = 0; i < n; i++)
    bad |= (uint32_t)(write[i] < base) | (uint32_t)(write[i] > seen) | (writer[i] & PENDING);
  if (bad) return false;
  for (uint32_t i = 0; i < n; i++) {
    bool alone = (read[i] <= seen) | (readers[i] == me);
    readers[i] = alone ? me : readers[i] | me;
    read[i] = alone || now > read[i] ? now : read[i];
  }
  return true;
}

static inline bool quiet_write(Warp *w, uint32_t k, uint32_t n, uint32_t flags) {
  const Records *r = &w->g->records;
  uint32_t *write = r->write + k, *writer = r->writer + k, *read = r->read + k,
           base = w->g->epoch_base, seen = w->clock_min;
  uint32_t bad = 0, now = w->clock[w->index], me = (uint32_t)w->index | flags;
  for (uint32_t i = 0; i < n; i++)
    bad |=
        (uint32_t)(write[i] >= base) & ((uint32_t)(write[i] > seen) | (writer[i] & PENDING) >> 9);
  for (uint32_t i = 0; i < n; i++) bad |= (uint32_t)(read[i] >= base) & (uint32_t)(read[i] > seen);
  if (bad) return false;
  for (uint32_t i = 0; i < n; i++) write[i] = now, writer[i] = me, read[i] = 0;
  return true;
}

#define SPAN                                                                                       \
  uint32_t shift = w->g->granule_shift, k = at >> shift, n = ((at + bytes - 1) >> shift) - k + 1

void race_read(Warp *w, int lane, uint32_t at, uint32_t bytes) {
  SPAN;
  if (n == 4 ? quiet_read(w, k, 4) : n == 1 ? quiet_read(w, k, 1) : quiet_read(w, k, n)) return;
  for (uint32_t i = k; i < k + n; i++) read_one(w, lane, i);
}

static void write_span(Warp *w, int lane, uint32_t at, uint32_t bytes, uint32_t flags) {
  SPAN;
  if (n == 4   ? quiet_write(w, k, 4, flags)
      : n == 1 ? quiet_write(w, k, 1, flags)
               : quiet_write(w, k, n, flags))
    return;
  for (uint32_t i = k; i < k + n; i++) write_one(w, lane, i, flags);
}

void race_write(Warp *w, int lane, uint32_t at, uint32_t bytes) {
  write_span(w, lane, at, bytes, 0);
}

void race_pending(Warp *w, int lane, uint32_t at, uint32_t bytes) {
  if (bytes) write_span(w, lane, at, bytes, PENDING);
}

/* The copy has arrived: it counts as a write of now. */
void race_arrived(Warp *w, uint32_t at, uint32_t bytes) {
  SPAN;
  for (uint32_t i = k; i < k + n; i++) {
    w->g->records.write[i] = w->clock[w->index];
    w->g->records.writer[i] = (uint32_t)w->index;
  }
}

/* Atomic operations do not race with one another. */
void race_atomic(Warp *w, int lane, uint32_t at, uint32_t bytes) {
  SPAN;
  for (uint32_t i = k; i < k + n; i++) {
    if (checks.init && w->g->records.write[i] < w->g->epoch_base) uninitialised(w, lane, i);
    write_one(w, lane, i, ATOMIC);
  }
}
