/* Races in shared memory, and reads of what was never written there. Every granule (as large as the kernel's smallest access)
 * remembers its last writer and readers with their epochs; a barrier joins the clocks of the warps that meet (Flanagan and
 * Freund, "FastTrack: efficient and precise dynamic race detection", 2009). Records of earlier blocks have epochs before
 * epoch_base. Two warps race if neither access comes before the other through barriers and one of them writes. */
#include "sim.h"
#include <string.h>

void race_start(Group *g) {
  if (g->epoch > UINT32_MAX - 1000000) {
    memset(g->granule, 0, g->shared_cap * sizeof *g->granule);
    g->epoch = 0;
  }
  g->epoch_base = ++g->epoch;
  for (int k = 0; k < g->n_warps; k++) {
    Warp *w = &g->warp[k];
    for (int j = 0; j < MAX_WARPS; j++) w->clock[j] = g->epoch_base - 1;
    w->clock[k] = g->epoch_base;
    w->clock_min = g->epoch_base - 1;
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

static _Noreturn void race(Warp *w, int lane, uint32_t at, const char *what, int other) {
  fault(w, 1u << lane, 719,
        "race in shared memory at byte %u: %s warp %d with no barrier between (this is warp %d)",
        at, what, other, w->index);
}

static uint32_t address(const Warp *w, const Granule *r) {
  return (uint32_t)(r - w->g->granule) << w->g->granule_shift;
}

static void check_pending(Warp *w, int lane, const Granule *r) {
  if (r->flags & GRANULE_PENDING && r->write >= w->g->epoch_base)
    fault(w, 1u << lane, 719,
          "race in shared memory at byte %u: an asynchronous copy of warp %d to it has not been "
          "waited for",
          address(w, r), r->writer);
}

static void read_one(Warp *w, int lane, Granule *r, bool atomic) {
  uint32_t base = w->g->epoch_base, now = w->clock[w->index], me = 1u << w->index;
  if (checks.race && r->flags) check_pending(w, lane, r);
  if (r->write < base) {
    if (!checks.init) return;
    fault(w, 1u << lane, 719, "uninitialised read of shared memory at byte %u", address(w, r));
  }
  if (!checks.race) return;
  if (r->write > w->clock[r->writer] && !(atomic && r->flags & GRANULE_ATOMIC))
    race(w, lane, address(w, r), "read after a write of", r->writer);
  if (r->read == now && r->readers & me) return;
  if (r->read <= w->clock_min || r->readers == me) {
    r->readers = me;
    r->read = now;
  } else {
    r->readers |= me;
    if (now > r->read) r->read = now;
  }
}

static void write_one(Warp *w, int lane, Granule *r, uint16_t flags) {
  uint32_t base = w->g->epoch_base, now = w->clock[w->index];
  if (checks.race) {
    if (r->flags) check_pending(w, lane, r);
    if (r->write >= base && r->write > w->clock[r->writer] && !(flags & r->flags & GRANULE_ATOMIC))
      race(w, lane, address(w, r), "written after a write of", r->writer);
    if (r->read >= base && r->read > w->clock_min && !(flags & GRANULE_ATOMIC))
      FOR_LANES(k, r->readers & ~(1u << w->index)) {
        if (r->read > w->clock[k]) race(w, lane, address(w, r), "written after a read of", (int)k);
      }
  }
  r->write = now;
  r->writer = (uint16_t)w->index;
  r->flags = flags;
  r->read = 0;
}

#define GRANULES(r)                                                                                \
  for (Granule *r = &w->g->granule[at >> w->g->granule_shift],                                     \
               *end_ = &w->g->granule[(at + bytes - 1) >> w->g->granule_shift];                    \
       r <= end_; r++)

void race_read(Warp *w, int lane, uint32_t at, uint32_t bytes) {
  GRANULES(r) read_one(w, lane, r, false);
}

void race_write(Warp *w, int lane, uint32_t at, uint32_t bytes) {
  GRANULES(r) write_one(w, lane, r, 0);
}

/* Atomic operations do not race with one another. */
void race_atomic(Warp *w, int lane, uint32_t at, uint32_t bytes) {
  GRANULES(r) {
    if (checks.init && r->write < w->g->epoch_base)
      fault(w, 1u << lane, 719, "uninitialised read of shared memory at byte %u", address(w, r));
    if (r->flags == GRANULE_ATOMIC && r->write >= w->g->epoch_base && r->read < w->g->epoch_base) {
      r->write = w->clock[w->index], r->writer = (uint16_t)w->index;
      continue;
    }
    uint32_t readers = r->read >= w->g->epoch_base ? r->readers & ~(1u << w->index) : 0;
    FOR_LANES(k, readers) {
      if (checks.race && r->read > w->clock[k])
        race(w, lane, address(w, r), "written after a read of", (int)k);
    }
    write_one(w, lane, r, GRANULE_ATOMIC);
  }
}

void race_pending(Warp *w, int lane, uint32_t at, uint32_t bytes) {
  GRANULES(r) write_one(w, lane, r, GRANULE_PENDING);
}
