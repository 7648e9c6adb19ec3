/* Where bytes are and whether a lane may touch them. In: addresses of one lane or of 32 in a space; out: a host address, or a fault.
 *
 * Addresses of 32 lanes are checked together, against the allocation of the last access first. What differs by space is where the bytes
 * are and what says that they were written. */
#include "sim.h"
#include <string.h>

void lane_addresses(const Warp *w, const Insn *i, uint64_t at[LANES]) {
  if (i->a < 0) {
    for (int l = 0; l < LANES; l++) at[l] = (uint64_t)i->imm;
  } else if (i->address64) {
    const uint64_t *a = REG64(w, i->a);
    for (int l = 0; l < LANES; l++) at[l] = a[l] + (uint64_t)i->imm;
  } else {
    const uint32_t *a = REG32(w, i->a);
    for (int l = 0; l < LANES; l++) at[l] = a[l] + (uint32_t)i->imm;
  }
}

Space space_of(uint64_t *at) {
  if (*at < SHARED_BASE) return SPACE_GLOBAL;
  static const struct {
    uint64_t base;
    Space space;
  } windows[] = {{SHARED_BASE, SPACE_SHARED}, {LOCAL_BASE, SPACE_LOCAL}, {PARAM_BASE, SPACE_PARAM}};
  for (int k = 0; k < COUNT(windows); k++)
    if (*at >= windows[k].base && *at < windows[k].base + WINDOW) {
      *at -= windows[k].base;
      return windows[k].space;
    }
  return SPACE_GLOBAL;
}

/* ---- faults ---- */

static _Noreturn void bad_global(Warp *w, int lane, uint64_t at, uint32_t bytes, bool write) {
  const Range *r = memory_find(at), *f = memory_freed(at);
  const char *what = write ? "write" : "read";
  if (r)
    fault(w, 1u << lane, 700,
          "out of bounds: %s of %u bytes at 0x%llx, %llu bytes after the start of an allocation of "
          "%llu bytes",
          what, bytes, (unsigned long long)at, (unsigned long long)(at - r->at),
          (unsigned long long)r->bytes);
  if (f)
    fault(w, 1u << lane, 700,
          "use after free: %s of %u bytes at 0x%llx, in a freed allocation of %llu bytes at 0x%llx",
          what, bytes, (unsigned long long)at, (unsigned long long)f->bytes,
          (unsigned long long)f->at);
  for (uint64_t back = 1; back <= 512; back++)
    if ((r = memory_find(at - back)))
      fault(w, 1u << lane, 700,
            "out of bounds: %s of %u bytes at 0x%llx, %llu bytes behind the end of an allocation "
            "of %llu bytes",
            what, bytes, (unsigned long long)at, (unsigned long long)(at - r->at - r->bytes),
            (unsigned long long)r->bytes);
  fault(w, 1u << lane, 700, "out of bounds: %s of %u bytes at 0x%llx, where nothing is allocated",
        what, bytes, (unsigned long long)at);
}

_Noreturn void misaligned(Warp *w, int lane, uint64_t at, uint32_t bytes) {
  fault(w, 1u << lane, 716, "misaligned address 0x%llx for an access of %u bytes",
        (unsigned long long)at, bytes);
}

_Noreturn void out_of_space(Warp *w, int lane, const char *space, uint64_t at, uint32_t bytes,
                            uint64_t size) {
  fault(w, 1u << lane, 700, "out of bounds: %u bytes at %llu of %llu bytes of %s memory", bytes,
        (unsigned long long)at, (unsigned long long)size, space);
}

static _Noreturn void constant_write(Warp *w, int lane, uint64_t at, uint32_t bytes) {
  fault(w, 1u << lane, 700, "write of %u bytes to constant memory at 0x%llx", bytes,
        (unsigned long long)at);
}

/* ---- one lane ---- */

char *global_lane(Warp *w, int lane, uint64_t at, uint32_t bytes, bool write) {
  Range *hit = &w->g->hit;
  if (at < hit->at || at + bytes > hit->at + hit->bytes) {
    const Range *r = memory_find(at);
    if (!r || at + bytes > r->at + r->bytes) bad_global(w, lane, at, bytes, write);
    *hit = *r;
  }
  if (write && hit->constant) constant_write(w, lane, at, bytes);
  if (write)
    memory_mark(at, bytes);
  else if (checks.init && !memory_is_set(at, bytes))
    fault(w, 1u << lane, 719,
          "uninitialised read of %u bytes of global memory at 0x%llx (byte %llu of an allocation "
          "of %llu)",
          bytes, (unsigned long long)at, (unsigned long long)(at - hit->at),
          (unsigned long long)hit->bytes);
  return memory_at(at);
}

static char *local_lane(Warp *w, int lane, uint64_t at, uint32_t bytes, bool write) {
  const Frame *top = &w->call[w->n_call - 1], *t = top;
  uint64_t most = w->g->l->f->local_most;
  while (t > w->call && at < t->local_at) t--; /* a caller's variable, handed over */
  if (at + bytes > t->local_at + t->f->local_bytes || at + bytes < at)
    out_of_space(w, lane, "local", at - top->local_at, bytes, top->f->local_bytes);
  uint8_t *set = w->local_set + (uint64_t)lane * most + at;
  for (uint32_t k = 0; k < bytes; k++) {
    if (write)
      set[k] = 1;
    else if (checks.init && !set[k])
      fault(w, 1u << lane, 719, "uninitialised read of local memory at byte %llu",
            (unsigned long long)(at + k));
  }
  return w->local + (uint64_t)lane * most + at;
}

char *param_lane(Warp *w, const Insn *i, int lane, uint64_t at, uint32_t bytes, bool write) {
  const Function *f = w->f;
  bool call = i->sub || !f->entry;
  uint64_t size = call ? w->g->l->f->frame_most : f->param_bytes;
  if (at + bytes > size || at + bytes < at) out_of_space(w, lane, "parameter", at, bytes, size);
  if (call) return w->frame + (uint64_t)lane * size + at;
  if (write) fault(w, 1u << lane, 700, "write to a parameter of the kernel");
  return (char *)w->g->l->param + at;
}

char *lane_access(Warp *w, const Insn *i, int lane, Space space, uint64_t at, uint32_t bytes,
                  bool write) {
  if (space == SPACE_GENERIC) space = space_of(&at);
  if (at & (bytes - 1)) misaligned(w, lane, at, bytes);
  switch (space) {
  case SPACE_SHARED:
    if (at + bytes > w->g->shared_bytes || at + bytes < at)
      out_of_space(w, lane, "shared", at, bytes, w->g->shared_bytes);
    if (write)
      race_write(w, lane, (uint32_t)at, bytes);
    else
      race_read(w, lane, (uint32_t)at, bytes);
    return w->g->shared + at;
  case SPACE_LOCAL: return local_lane(w, lane, at, bytes, write);
  case SPACE_PARAM: return param_lane(w, i, lane, at, bytes, write);
  default: break;
  }
  char *p = global_lane(w, lane, at, bytes, write);
  uint64_t all[LANES];
  for (int l = 0; l < LANES; l++) all[l] = at;
  if (w->g->l->many)
    blocks_lanes(w, all, 1u << lane, bytes, &(Shape){0},
                 (Access)(i->access | (write ? A_WRITE : 0)), NULL, 0);
  return p;
}

/* ---- 32 lanes of global or shared memory ---- */

/* Lanes that do not take part get the address of one that does. */
static Shape shape_of(uint64_t at[LANES], uint32_t mask, uint32_t bytes) {
  if (mask != FULL) {
    uint64_t some = at[__builtin_ctz(mask)];
    for (int l = 0; l < LANES; l++) at[l] = mask >> l & 1 ? at[l] : some;
  }
  uint64_t same = 0, run = 0, low = at[0], high = at[0], falls = 0;
  for (int l = 0; l < LANES; l++) {
    same |= at[l] ^ at[0];
    run |= at[l] ^ (at[0] + (uint64_t)l * bytes);
  }
  if (!same) return (Shape){.uniform = true, .low = low, .high = low};
  if (!run && mask == FULL)
    return (Shape){.dense = true, .rising = true, .low = low, .high = at[LANES - 1]};
  for (int l = 0; l < LANES; l++) {
    low = at[l] < low ? at[l] : low;
    high = at[l] > high ? at[l] : high;
  }
  for (int l = 1; l < LANES; l++) falls |= at[l] < at[l - 1] + bytes;
  return (Shape){.rising = !falls, .low = low, .high = high};
}

static void check_alignment(Warp *w, const uint64_t at[LANES], uint32_t mask, uint32_t bytes) {
  uint64_t any = 0;
  for (int l = 0; l < LANES; l++) any |= at[l];
  if (!(any & (bytes - 1))) return;
  FOR_LANES(l, mask) {
    if (at[l] & (bytes - 1)) misaligned(w, (int)l, at[l], bytes);
  }
}

static bool bits_set(uint64_t at, uint32_t bytes) {
  uint64_t k = at - DEVICE_BASE;
  const uint8_t *b = &memory.set[k / 8];
  uint16_t two;
  switch (bytes) {
  case 4: return (*b >> k % 8 & 15) == 15;
  case 8: return *b == 255;
  case 16: memcpy(&two, b, 2); return two == 0xffff;
  default: return memory_is_set(at, bytes);
  }
}

static void check_global(Warp *w, const uint64_t at[LANES], uint32_t mask, uint32_t bytes,
                         const Shape *s, bool write) {
  const Range *hit = &w->g->hit;
  if (s->low < hit->at || s->high + bytes > hit->at + hit->bytes || s->low > s->high ||
      (write && hit->constant)) {
    FOR_LANES(l, mask) global_lane(w, (int)l, at[l], bytes, write);
    return;
  }
  if (write) {
    if (s->dense)
      memory_mark(s->low, LANES * bytes);
    else
      FOR_LANES(l, mask) {
        if (!bits_set(at[l], bytes)) memory_mark(at[l], bytes);
      }
    return;
  }
  if (!checks.init) return;
  if (s->dense && memory_is_set(s->low, LANES * bytes)) return;
  if (s->uniform && bits_set(s->low, bytes)) return;
  FOR_LANES(l, mask) {
    if (!bits_set(at[l], bytes)) global_lane(w, (int)l, at[l], bytes, false);
  }
}

static bool repeats(const uint64_t at[LANES], uint32_t period) {
  uint64_t differ = 0;
  for (uint32_t l = 0; l + period < LANES; l++) differ |= at[l] ^ at[l + period];
  return !differ;
}

static void check_span(Warp *w, int lane, uint64_t start, uint64_t end, bool write) {
  if (write)
    race_write(w, lane, (uint32_t)start, (uint32_t)(end - start));
  else
    race_read(w, lane, (uint32_t)start, (uint32_t)(end - start));
}

static void check_shared(Warp *w, const uint64_t at[LANES], uint32_t mask, uint32_t bytes,
                         const Shape *s, bool write) {
  uint64_t size = w->g->shared_bytes;
  if (s->high + bytes > size || s->high + bytes < bytes) FOR_LANES(l, mask) {
      if (at[l] + bytes > size || at[l] + bytes < at[l])
        out_of_space(w, (int)l, "shared", at[l], bytes, size);
    }
  if (s->uniform || s->dense) {
    check_span(w, __builtin_ctz(mask), s->low, s->low + (s->dense ? LANES * bytes : bytes), write);
    return;
  }
  uint64_t start = at[__builtin_ctz(mask)], end = start + bytes;
  for (uint32_t p = 4; p < LANES && mask == FULL; p *= 2) /* lanes l and l + p at one place */
    if (repeats(at, p)) mask = (1u << p) - 1;
  FOR_LANES(l, mask) { /* neighbours together */
    if (at[l] == end) end += bytes;
    if (at[l] >= start && at[l] + bytes <= end) continue;
    check_span(w, (int)l, start, end, write);
    start = at[l], end = start + bytes;
  }
  check_span(w, 31 - __builtin_clz(mask), start, end, write);
}

char *lanes_access(Warp *w, Space space, uint64_t at[LANES], uint32_t mask, uint32_t bytes,
                   Shape *s, bool write) {
  *s = shape_of(at, mask, bytes);
  check_alignment(w, at, mask, bytes);
  if (space == SPACE_SHARED)
    check_shared(w, at, mask, bytes, s, write);
  else
    check_global(w, at, mask, bytes, s, write);
  if (w->g->counting && space == SPACE_SHARED) count_shared(w->g, at, mask, bytes);
  if (w->g->counting && space <= SPACE_GLOBAL) count_global(w->g, at, mask, bytes, write);
  return space == SPACE_SHARED ? w->g->shared : memory.host - DEVICE_BASE;
}
