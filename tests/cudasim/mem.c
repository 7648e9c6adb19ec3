/* ld, st: addresses of 32 lanes are checked together, against the allocation of the last access first. What
 * differs by space is where the bytes are and what says that they were written. */
#include "sim.h"
#include <math.h>
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

static char *param_lane(Warp *w, const Insn *i, int lane, uint64_t at, uint32_t bytes, bool write) {
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

/* Lanes of one instruction that write different values to one place. */
static void check_overlap(Warp *w, const uint64_t at[LANES], uint32_t mask, uint32_t bytes,
                          const char data[LANES][16]) {
  FOR_LANES(l, mask) {
    for (int k = 0; k < (int)l; k++)
      if (mask >> k & 1 && at[l] < at[k] + bytes && at[k] < at[l] + bytes &&
          (at[l] != at[k] || memcmp(data[l], data[k], bytes)))
        fault(w, 1u << l, 719,
              "lanes %d and %u of this warp write different values to 0x%llx in one instruction", k,
              l, (unsigned long long)at[l]);
  }
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

/* ---- ld ---- */

static uint64_t extend(const Insn *i, const char *from) {
  uint64_t v = 0;
  memcpy(&v, from, i->size);
  int shift = 64 - i->size * 8;
  return i->kind == KIND_SIGNED ? (uint64_t)((int64_t)(v << shift) >> shift) : v;
}

static void load_slow(Warp *w, const Insn *i, uint32_t mask) {
  uint64_t at[LANES];
  uint32_t bytes = (uint32_t)i->size * i->n;
  lane_addresses(w, i, at);
  FOR_LANES(l, mask) {
    const char *from = lane_access(w, i, (int)l, (Space)i->space, at[l], bytes, false);
    char copy[32];
    memcpy(copy, from, bytes);
    for (int k = 0; k < i->n; k++)
      if (i->v[k] >= 0) register_set(w, i->v[k], i->wide, (int)l, extend(i, copy + k * i->size));
  }
}

static void load_lanes(Warp *w, const Insn *i, uint32_t mask, uint64_t at[LANES], Space space) {
  uint32_t bytes = (uint32_t)i->size * i->n;
  Shape s;
  const char *base = lanes_access(w, space, at, mask, bytes, &s, false);
  if (w->g->l->many && (space == SPACE_GLOBAL || space == SPACE_GENERIC)) {
    if (i->access & A_CONSTANT) blocks_constant(w, at, mask, bytes);
    blocks_lanes(w, at, mask, bytes, &s, (Access)i->access, NULL, 0);
  }
  if (i->size == 4 && i->wide == 4 && mask != FULL) {
    for (int k = 0; k < i->n; k++)
      if (i->v[k] >= 0) FOR_LANES(l, mask) memcpy(&REG32(w, i->v[k])[l], base + at[l] + 4 * k, 4);
    return;
  }
  if (i->size == 4 && i->wide == 4) {
    if (i->n == 1 && s.dense) {
      memcpy(w->r + i->v[0], base + at[0], LANES * 4);
      return;
    }
    for (int k = 0; k < i->n; k++) {
      if (i->v[k] < 0) continue;
      uint32_t *d = REG32(w, i->v[k]);
      if (s.uniform) {
        uint32_t x;
        memcpy(&x, base + at[0] + 4 * k, 4);
        for (int l = 0; l < LANES; l++) d[l] = x;
      } else {
        for (int l = 0; l < LANES; l++) memcpy(&d[l], base + at[l] + 4 * k, 4);
      }
    }
    return;
  }
  FOR_LANES(l, mask) {
    for (int k = 0; k < i->n; k++)
      if (i->v[k] >= 0)
        register_set(w, i->v[k], i->wide, (int)l, extend(i, base + at[l] + k * i->size));
  }
}

static void load_param(Warp *w, const Insn *i, uint32_t mask) {
  if (i->a >= 0 || i->sub || !w->f->entry) {
    load_slow(w, i, mask);
    return;
  }
  const char *from =
      param_lane(w, i, __builtin_ctz(mask), (uint64_t)i->imm, (uint32_t)i->size * i->n, false);
  FOR_LANES(l, mask) {
    for (int k = 0; k < i->n; k++)
      if (i->v[k] >= 0) register_set(w, i->v[k], i->wide, (int)l, extend(i, from + k * i->size));
  }
}

static void load_fast(Warp *w, const Insn *i, uint32_t mask) {
  uint64_t at[LANES];
  lane_addresses(w, i, at);
  load_lanes(w, i, mask, at, (Space)i->space);
}

/* The space of generic addresses, which become addresses of it, if it is one for all lanes and not private to each. */
static Space one_space(uint64_t at[LANES], uint32_t mask) {
  uint64_t first = at[__builtin_ctz(mask)], base = 0;
  Space space = space_of(&first);
  if (space == SPACE_SHARED) base = SHARED_BASE;
  FOR_LANES(l, mask) {
    uint64_t a = at[l];
    if (space_of(&a) != space) return SPACE_GENERIC;
  }
  for (int l = 0; l < LANES; l++) at[l] -= base;
  return space;
}

static void load_generic(Warp *w, const Insn *i, uint32_t mask) {
  uint64_t at[LANES];
  lane_addresses(w, i, at);
  Space space = one_space(at, mask);
  if (space == SPACE_GLOBAL || space == SPACE_SHARED)
    load_lanes(w, i, mask, at, space);
  else
    load_slow(w, i, mask);
}

/* ---- st ---- */

static void store_slow(Warp *w, const Insn *i, uint32_t mask) {
  uint64_t at[LANES];
  uint32_t bytes = (uint32_t)i->size * i->n;
  lane_addresses(w, i, at);
  FOR_LANES(l, mask) {
    char *to = lane_access(w, i, (int)l, (Space)i->space, at[l], bytes, true);
    for (int k = 0; k < i->n; k++) {
      uint64_t v = register_get(w, i->v[k], i->wide, (int)l);
      memcpy(to + k * i->size, &v, i->size);
    }
  }
}

static void store_lanes(Warp *w, const Insn *i, uint32_t mask, uint64_t at[LANES], Space space) {
  uint32_t bytes = (uint32_t)i->size * i->n;
  Shape s;
  char *base = lanes_access(w, space, at, mask, bytes, &s, true);
  bool global = w->g->l->many && (space == SPACE_GLOBAL || space == SPACE_GENERIC);
  Access how = (Access)(i->access | A_WRITE);
  if (i->size == 4 && i->wide == 4 && s.dense && i->n == 1) {
    if (global) blocks_lanes(w, at, mask, bytes, &s, how, w->r + i->v[0], 4);
    memcpy(base + at[0], w->r + i->v[0], LANES * 4);
    return;
  }
  char data[LANES][16];
  if (i->size == 4 && i->wide == 4 && mask == FULL)
    for (int k = 0; k < i->n; k++)
      for (int l = 0; l < LANES; l++) memcpy(data[l] + 4 * k, &REG32(w, i->v[k])[l], 4);
  else
    FOR_LANES(l, mask) {
      for (int k = 0; k < i->n; k++) {
        uint64_t v = register_get(w, i->v[k], i->wide, (int)l);
        memcpy(data[l] + k * i->size, &v, i->size);
      }
    }
  if (!s.rising && checks.race && (mask & (mask - 1)))
    check_overlap(w, at, mask, bytes, (const char(*)[16])data);
  if (global) blocks_lanes(w, at, mask, bytes, &s, how, data[0], sizeof data[0]);
  if (bytes == 4)
    FOR_LANES(l, mask) memcpy(base + at[l], data[l], 4);
  else if (bytes == 16)
    FOR_LANES(l, mask) memcpy(base + at[l], data[l], 16);
  else
    FOR_LANES(l, mask) memcpy(base + at[l], data[l], bytes);
}

static void store_fast(Warp *w, const Insn *i, uint32_t mask) {
  uint64_t at[LANES];
  lane_addresses(w, i, at);
  store_lanes(w, i, mask, at, (Space)i->space);
}

static void store_generic(Warp *w, const Insn *i, uint32_t mask) {
  uint64_t at[LANES];
  lane_addresses(w, i, at);
  Space space = one_space(at, mask);
  if (space == SPACE_GLOBAL || space == SPACE_SHARED)
    store_lanes(w, i, mask, at, space);
  else
    store_slow(w, i, mask);
}

static Exec *const loads[] = {load_generic, load_fast, load_fast, load_slow, load_param, load_fast};
static Exec *const stores[] = {store_generic, store_fast, store_fast,
                               store_slow,    store_slow, store_slow};

/* ---- decoding ---- */

static const struct {
  const char *words;
  Space space;
} spaces[] = {{"global", SPACE_GLOBAL},
              {"shared|shared::cta", SPACE_SHARED},
              {"local", SPACE_LOCAL},
              {"param|param::entry|param::func", SPACE_PARAM},
              {"const", SPACE_CONST}};

Space take_space(Parser *p) {
  for (int k = 0; k < COUNT(spaces); k++)
    if (take(p, spaces[k].words) >= 0) return spaces[k].space;
  return SPACE_GENERIC;
}

static Class class_of(Space s) {
  static const Class classes[] = {C_GLOBAL, C_GLOBAL, C_SHARED, C_LOCAL, C_PARAM, C_PARAM};
  return classes[s];
}

void take_hints(Parser *p, const char *words) {
  for (;;) {
    if (take(p, words) >= 0) continue;
    const struct Part *part = &p->part[p->at_part];
    if (p->at_part < p->n_part && part->n > 4 &&
        (!memcmp(part->s, "L1::", 4) || !memcmp(part->s, "L2::", 4)))
      p->at_part++;
    else
      return;
  }
}

void note_shared(Parser *p, Space s, int bytes) {
  if ((s == SPACE_SHARED || s == SPACE_GENERIC) && bytes < p->f->granule) p->f->granule = bytes;
}

static void decode_access(Parser *p, const Form *f) {
  Insn *i = p->insn;
  bool store = f->sub;
  p->at_part = 1;
  take(p, "weak");
  int strong = take(p, "release|volatile|relaxed|acquire|mmio");
  take_hints(p, "cta|cluster|gpu|sys");
  Space space = take_space(p);
  int at_hints = p->at_part;
  take_hints(p, "ca|cg|cs|lu|cv|nc|wb|wt");
  bool constant = false;
  for (int k = at_hints; k < p->at_part; k++)
    constant |= p->part[k].n == 2 && !memcmp(p->part[k].s, "nc", 2);
  int vector = take(p, "v2|v4|v8");
  const Type *t = take_type(p);
  if (!t || p->at_part != p->n_part || !t->size)
    parse_fail(p, "modifiers of this access are not known");
  if (p->n_operand != 2) parse_fail(p, "2 operands, not %d", p->n_operand);
  i->n = (uint8_t)(vector < 0 ? 1 : 2 << vector);
  i->size = (uint8_t)t->size;
  i->kind = (uint8_t)t->kind;
  i->class = class_of(space);
  i->access =
      (strong >= 0 ? A_STRONG : 0) | (strong == 0 ? A_RELEASE : 0) | (constant ? A_CONSTANT : 0);
  if (i->n * i->size > 16) parse_fail(p, "an access of %d bytes is not supported", i->n * i->size);
  const Operand *value = &p->operand[store ? 0 : 0];
  i->sub = 0;
  decode_address(p, store ? 0 : 1, space);
  value = &p->operand[store ? 1 : 0];
  if ((value->kind == O_VECTOR) != (i->n > 1) || (i->n > 1 && value->n != i->n))
    parse_fail(p, "a vector of %d registers is needed", i->n);
  int32_t *v = arena_alloc(p->m->arena, i->n * sizeof *v);
  i->wide = (uint8_t)(t->size < 2 ? 2 : t->size);
  for (int k = 0; k < i->n; k++) {
    const Operand *o = i->n > 1 ? &value->v[k] : value;
    v[k] = -1;
    if (o->kind == O_SINK && !store) continue;
    if (o->kind == O_REGISTER && o->symbol && o->symbol->type->size > i->wide)
      i->wide = (uint8_t)o->symbol->type->size;
    v[k] = one_at(p, o, t, i->wide, true);
  }
  i->v = v;
  i->n_v = i->n;
  note_shared(p, space, t->size);
  i->exec = (store ? stores : loads)[space];
}

const Form forms_memory[] = {{"ld *", decode_access, C_GLOBAL, NULL, 0},
                             {"ldu *", decode_access, C_GLOBAL, NULL, 0},
                             {"st *", decode_access, C_GLOBAL, NULL, 1},
                             {NULL, NULL, 0, NULL, 0}};
