/* Races between the blocks of a launch in global memory. Each word of 4 bytes remembers who wrote it last and who read it: launch,
 * block, time, which of its bytes, whether by a strong access (atomic, volatile, acquire, release). Another block's access, one of
 * them a write that is not strong, is a race unless something orders the two: a fence of the first block with a strong write
 * behind it, and a strong read of the second block after that (PTX ISA, "Memory consistency model"). Which place the two
 * blocks meet at is not looked at, so an order may be taken for one that is none, never the other way. Writing what is there already
 * is no race. Blocks that touch a word at the very same moment see each other: each leaves its mark before it looks again. */
#include "sim.h"
#include <stdlib.h>
#include <string.h>

/* A record: launch 17 bits, block 22, time 20, strong 1, bytes 4. */
#define STAMPS (1u << 17)
#define SEVERAL ((1u << 22) - 1) /* in place of a block: more than one */
#define LATE ((1u << 20) - 1)
#define STRONG 16u
#define OWNER 25 /* launch and block are above this bit */

static uint32_t stamp_of(uint64_t r) { return (uint32_t)(r >> 47); }
static uint32_t block_of(uint64_t r) { return (uint32_t)(r >> OWNER) & SEVERAL; }
static uint32_t time_of(uint64_t r) { return (uint32_t)(r >> 5) & LATE; }

void blocks_start(Launch *l) {
  static uint32_t stamp;
  l->many = checks.race && l->blocks > 1 && l->blocks < SEVERAL;
  if (!l->many) return;
  if (++stamp == STAMPS) memory_forget_order(), stamp = 1;
  l->stamp = stamp;
  l->clock = 1;
  l->order = host_alloc((size_t)l->blocks * sizeof *l->order);
}

void blocks_end(Launch *l) {
  free(l->order);
  l->order = NULL;
}

/* ---- what orders blocks ---- */

void blocks_fence(Warp *w) {
  Launch *l = w->g->l;
  if (l->many) l->order[w->g->block].fenced = __atomic_add_fetch(&l->clock, 1, __ATOMIC_SEQ_CST);
}

static void released(Warp *w, bool fence) {
  if (fence) blocks_fence(w);
  Order *o = &w->g->l->order[w->g->block];
  o->released = o->fenced;
}

static void acquired(Warp *w) {
  Launch *l = w->g->l;
  l->order[w->g->block].acquired = __atomic_load_n(&l->clock, __ATOMIC_SEQ_CST);
}

static bool ordered(const Warp *w, uint64_t r) {
  const Launch *l = w->g->l;
  uint32_t t = time_of(r);
  if (l->order[w->g->block].acquired <= t) return t == LATE;
  return block_of(r) == SEVERAL || l->order[block_of(r)].released > t;
}

/* ---- one word ---- */

typedef struct Touch { /* an access */
  Warp *w;
  uint64_t mine; /* record without its bytes */
  bool write, strong;
} Touch;

static Touch touch(Warp *w, bool write, bool strong) {
  const Launch *l = w->g->l;
  uint32_t now = __atomic_load_n(&l->clock, __ATOMIC_RELAXED);
  uint64_t owner = (uint64_t)l->stamp << 22 | w->g->block;
  return (Touch){w,
                 owner << OWNER | (uint64_t)(now < LATE ? now : LATE) << 5 | (strong ? STRONG : 0),
                 write, strong};
}

/* Of this launch, by another block. */
static inline bool other(uint64_t r, uint64_t mine) {
  return (r >> 47 == mine >> 47) & (r >> OWNER != mine >> OWNER);
}

static bool races(const Touch *t, uint64_t r, uint32_t bytes) {
  return other(r, t->mine) && r & bytes && !ordered(t->w, r);
}

static _Noreturn void race(const Touch *t, int lane, uint64_t at, uint64_t r, bool written) {
  const uint32_t *n = t->w->g->l->grid, b = block_of(r);
  char who[80] = "several blocks";
  if (b != SEVERAL)
    snprintf(who, sizeof who, "block (%u,%u,%u)", b % n[0], b / n[0] % n[1], b / n[0] / n[1]);
  fault(
      t->w, 1u << lane, 719,
      "race between blocks in global memory at 0x%llx: %s what %s %s in this launch, and no fence "
      "and atomic operation order them",
      (unsigned long long)at, t->write ? "write of" : "read of", who, written ? "wrote" : "read");
}

/* data: what is being written, NULL if that is not known. */
static void look(const Touch *t, int lane, uint64_t at, uint32_t n, const char *data) {
  if (t->write && data && !memcmp(memory_at(at), data, n)) return;
  for (uint64_t a = at; a < at + n; a = (a / 4 + 1) * 4) {
    uint64_t k = (a - DEVICE_BASE) / 4;
    uint32_t first = (uint32_t)(a & 3),
             last = at + n - a < 4 - first ? first + (uint32_t)(at + n - a) : 4,
             bytes = (0xfu << first) & (0xfu >> (4 - last));
    bool plain_write = t->write && !t->strong;
    uint64_t wrote = memory.wrote[k], read = memory.read[k];
    if ((plain_write || !(wrote & STRONG)) && races(t, wrote, bytes))
      race(t, lane, at, wrote, true);
    if (plain_write && races(t, read, bytes)) race(t, lane, at, read, false);
  }
}

/* Blocks that touch different bytes of a word do not become one record of several: the last one stays. */
static uint64_t joined(uint64_t old, uint64_t mine, uint32_t bytes) {
  bool apart = old >> OWNER != mine >> OWNER && !(old & 15 & bytes);
  if (old >> 47 != mine >> 47 || apart) return mine | bytes;
  uint64_t weak = (old & mine & STRONG) ^ STRONG;
  uint64_t r = old >> OWNER == mine >> OWNER ? mine : mine | (uint64_t)SEVERAL << OWNER;
  return ((r | bytes | (old & 15)) & ~(uint64_t)STRONG) | (weak ? 0 : STRONG);
}

static void leave_mark(const Touch *t, uint64_t at, uint32_t n) {
  for (uint64_t a = at; a < at + n; a = (a / 4 + 1) * 4) {
    uint64_t k = (a - DEVICE_BASE) / 4;
    uint32_t first = (uint32_t)(a & 3),
             last = at + n - a < 4 - first ? first + (uint32_t)(at + n - a) : 4,
             bytes = (0xfu << first) & (0xfu >> (4 - last));
    uint64_t *r = t->write ? &memory.wrote[k] : &memory.read[k];
    if (!t->write)
      *r = joined(*r, t->mine, bytes);
    else
      *r = t->mine | bytes | (*r >> OWNER == t->mine >> OWNER ? *r & 15 : 0);
  }
}

/* ---- the lanes of an access ---- */

/* Whole words one behind the other: their records are looked at together. */
static bool quiet(const Touch *t, uint64_t k, uint32_t n) {
  const uint64_t *wrote = memory.wrote + k, *read = memory.read + k;
  uint64_t mine = t->mine;
  bool bad = false;
  for (uint32_t i = 0; i < n; i++) bad |= other(wrote[i], mine);
  if (t->write)
    for (uint32_t i = 0; i < n; i++) bad |= other(read[i], mine);
  return !bad;
}

static void mark_all(const Touch *t, uint64_t k, uint32_t n) {
  uint64_t mine = t->mine | 15, *read = memory.read + k;
  if (t->write) {
    for (uint32_t i = 0; i < n; i++) memory.wrote[k + i] = mine;
    return;
  }
  for (uint32_t i = 0; i < n; i++) {
    uint64_t several = other(read[i], mine) ? (uint64_t)SEVERAL << OWNER : 0;
    read[i] = mine | several;
  }
}

static void together(const Touch *t, uint64_t low, uint32_t n, int lane, const char *data,
                     uint32_t stride, uint32_t bytes) {
  uint64_t k = (low - DEVICE_BASE) / 4;
  for (int turn = 0; turn < 2; turn++) {
    if (!quiet(t, k, n / 4))
      for (uint32_t a = 0; a < n; a += bytes)
        look(t, lane + (int)(a / bytes), low + a, bytes,
             data ? data + (size_t)(a / bytes) * stride : NULL);
    if (turn) return;
    mark_all(t, k, n / 4);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
  }
}

void blocks_lanes(Warp *w, const uint64_t at[LANES], uint32_t mask, uint32_t bytes, const Shape *s,
                  Access how, const char *data, uint32_t stride) {
  bool write = how & A_WRITE, strong = how & A_STRONG;
  Touch t = touch(w, write, strong);
  if (strong && write) released(w, how & A_RELEASE);
  if (bytes % 4 == 0 && !strong && (s->dense || s->uniform)) {
    together(&t, s->low, s->dense ? LANES * bytes : bytes, __builtin_ctz(mask), data, stride,
             bytes);
  } else {
    for (int turn = 0; turn < 2; turn++) {
      FOR_LANES(l, mask) look(&t, (int)l, at[l], bytes, data ? data + l * stride : NULL);
      if (turn) break;
      FOR_LANES(l, mask) leave_mark(&t, at[l], bytes);
      __atomic_thread_fence(__ATOMIC_SEQ_CST);
    }
  }
  if (strong) acquired(w);
}

void blocks_atomic(Warp *w, int lane, uint64_t at, uint32_t bytes, bool release) {
  Shape one = {0};
  uint64_t all[LANES];
  for (int l = 0; l < LANES; l++) all[l] = at;
  blocks_lanes(w, all, 1u << lane, bytes, &one, A_WRITE | A_STRONG | (release ? A_RELEASE : 0),
               NULL, 0);
}

/* ld.global.nc: the read-only cache may hold what was there before. */
void blocks_constant(Warp *w, const uint64_t at[LANES], uint32_t mask, uint32_t bytes) {
  FOR_LANES(l, mask) {
    for (uint64_t a = at[l]; a < at[l] + bytes; a = (a / 4 + 1) * 4) {
      uint64_t r = memory.wrote[(a - DEVICE_BASE) / 4];
      if (stamp_of(r) == w->g->l->stamp && !(r & STRONG))
        fault(w, 1u << l, 719,
              "read through the read-only cache of what this launch wrote, at 0x%llx",
              (unsigned long long)a);
    }
  }
}
