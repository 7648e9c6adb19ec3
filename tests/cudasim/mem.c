/* ld, st, atom, red, cp.async: addresses of 32 lanes are checked together, against the allocation of the last access first. What
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

static _Noreturn void misaligned(Warp *w, int lane, uint64_t at, uint32_t bytes) {
  fault(w, 1u << lane, 716, "misaligned address 0x%llx for an access of %u bytes",
        (unsigned long long)at, bytes);
}

static _Noreturn void out_of_space(Warp *w, int lane, const char *space, uint64_t at,
                                   uint32_t bytes, uint64_t size) {
  fault(w, 1u << lane, 700, "out of bounds: %u bytes at %llu of %llu bytes of %s memory", bytes,
        (unsigned long long)at, (unsigned long long)size, space);
}

/* ---- one lane ---- */

static char *global_lane(Warp *w, int lane, uint64_t at, uint32_t bytes, bool write) {
  Range *hit = &w->g->hit;
  if (at < hit->at || at + bytes > hit->at + hit->bytes) {
    const Range *r = memory_find(at);
    if (!r || at + bytes > r->at + r->bytes) bad_global(w, lane, at, bytes, write);
    *hit = *r;
  }
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
  const Module *m = w->f->module;
  bool inside = false;
  for (int k = 0; k < w->n_call && !inside; k++) {
    const Function *f = w->call[k].f;
    inside = at >= f->local_at && at + bytes <= f->local_at + f->local_bytes;
  }
  if (!inside) out_of_space(w, lane, "local", at - w->f->local_at, bytes, w->f->local_bytes);
  uint8_t *set = w->local_set + (uint64_t)lane * m->local_bytes + at;
  for (uint32_t k = 0; k < bytes; k++) {
    if (write)
      set[k] = 1;
    else if (checks.init && !set[k])
      fault(w, 1u << lane, 719, "uninitialised read of local memory at byte %llu",
            (unsigned long long)(at + k));
  }
  return w->local + (uint64_t)lane * m->local_bytes + at;
}

static char *param_lane(Warp *w, const Insn *i, int lane, uint64_t at, uint32_t bytes, bool write) {
  const Function *f = w->f;
  bool call = i->sub || !f->entry;
  uint64_t size = call ? f->module->frame_bytes : f->param_bytes;
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
  default: return global_lane(w, lane, at, bytes, write);
  }
}

/* ---- 32 lanes of global or shared memory ---- */

typedef struct Shape {
  bool uniform, dense; /* all lanes the same address; each lane behind the one before */
  bool rising;         /* no two lanes overlap */
  uint64_t low, high;
} Shape;

/* Lanes that do not take part get the address of one that does. */
static Shape shape_of(uint64_t at[LANES], uint32_t mask, uint32_t bytes) {
  Shape s = {0};
  if (mask != FULL) {
    uint64_t some = at[__builtin_ctz(mask)];
    for (int l = 0; l < LANES; l++)
      if (!(mask >> l & 1)) at[l] = some;
  }
  uint64_t same = 0, run = 0, low = at[0], high = at[0], falls = 0;
  for (int l = 0; l < LANES; l++) {
    same |= at[l] ^ at[0];
    run |= at[l] ^ (at[0] + (uint64_t)l * bytes);
    low = at[l] < low ? at[l] : low;
    high = at[l] > high ? at[l] : high;
  }
  for (int l = 1; l < LANES; l++) falls |= at[l] < at[l - 1] + bytes;
  s.uniform = !same;
  s.dense = mask == FULL && !run;
  s.rising = !falls;
  s.low = low;
  s.high = high;
  return s;
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
  if (s->low < hit->at || s->high + bytes > hit->at + hit->bytes || s->low > s->high) {
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

static void check_shared(Warp *w, const uint64_t at[LANES], uint32_t mask, uint32_t bytes,
                         const Shape *s, bool write) {
  uint64_t size = w->g->shared_bytes;
  if (s->high + bytes > size || s->high + bytes < bytes) FOR_LANES(l, mask) {
      if (at[l] + bytes > size || at[l] + bytes < at[l])
        out_of_space(w, (int)l, "shared", at[l], bytes, size);
    }
  if (s->uniform || s->dense) {
    uint32_t n = s->dense ? LANES * bytes : bytes;
    if (write)
      race_write(w, __builtin_ctz(mask), (uint32_t)s->low, n);
    else
      race_read(w, __builtin_ctz(mask), (uint32_t)s->low, n);
    return;
  }
  uint64_t before = UINT64_MAX;
  FOR_LANES(l, mask) {
    if (at[l] == before) continue;
    before = at[l];
    if (write)
      race_write(w, (int)l, (uint32_t)at[l], bytes);
    else
      race_read(w, (int)l, (uint32_t)at[l], bytes);
  }
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

static void count_access(Group *g, const Insn *i, const uint64_t at[LANES], uint32_t mask,
                         uint32_t bytes) {
  if (i->space == SPACE_SHARED)
    count_shared(g, at, mask, bytes);
  else if (i->space == SPACE_GLOBAL || i->space == SPACE_GENERIC)
    count_global(g, at, mask, bytes);
}

/* Where the bytes of the space's address 0 are, after all checks. */
static char *access_lanes(Warp *w, const Insn *i, uint64_t at[LANES], uint32_t mask, uint32_t bytes,
                          Shape *s, bool write) {
  *s = shape_of(at, mask, bytes);
  check_alignment(w, at, mask, bytes);
  if (i->space == SPACE_SHARED)
    check_shared(w, at, mask, bytes, s, write);
  else
    check_global(w, at, mask, bytes, s, write);
  if (w->g->counting) count_access(w->g, i, at, mask, bytes);
  return i->space == SPACE_SHARED ? w->g->shared : memory.host - DEVICE_BASE;
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

static void load_fast(Warp *w, const Insn *i, uint32_t mask) {
  uint64_t at[LANES];
  uint32_t bytes = (uint32_t)i->size * i->n;
  Shape s;
  lane_addresses(w, i, at);
  const char *base = access_lanes(w, i, at, mask, bytes, &s, false);
  if (i->size == i->wide && mask == FULL && i->size == 4) {
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

/* Generic addresses that are all in device memory take the fast way. */
static bool all_global(const Warp *w, const Insn *i, uint32_t mask) {
  uint64_t at[LANES];
  lane_addresses(w, i, at);
  FOR_LANES(l, mask) {
    if (at[l] >= SHARED_BASE) return false;
  }
  return true;
}

static void load_generic(Warp *w, const Insn *i, uint32_t mask) {
  if (all_global(w, i, mask))
    load_fast(w, i, mask);
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

static void store_fast(Warp *w, const Insn *i, uint32_t mask) {
  uint64_t at[LANES];
  uint32_t bytes = (uint32_t)i->size * i->n;
  Shape s;
  lane_addresses(w, i, at);
  char *base = access_lanes(w, i, at, mask, bytes, &s, true);
  if (i->size == 4 && i->wide == 4 && s.dense && i->n == 1) {
    memcpy(base + at[0], w->r + i->v[0], LANES * 4);
    return;
  }
  char data[LANES][16];
  FOR_LANES(l, mask) {
    for (int k = 0; k < i->n; k++) {
      uint64_t v = register_get(w, i->v[k], i->wide, (int)l);
      memcpy(data[l] + k * i->size, &v, i->size);
    }
  }
  if (!s.rising && checks.race && (mask & (mask - 1)))
    check_overlap(w, at, mask, bytes, (const char(*)[16])data);
  FOR_LANES(l, mask) memcpy(base + at[l], data[l], bytes);
}

static void store_generic(Warp *w, const Insn *i, uint32_t mask) {
  if (all_global(w, i, mask))
    store_fast(w, i, mask);
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

static Space take_space(Parser *p) {
  for (int k = 0; k < COUNT(spaces); k++)
    if (take(p, spaces[k].words) >= 0) return spaces[k].space;
  return SPACE_GENERIC;
}

static Class class_of(Space s) {
  static const Class classes[] = {C_GLOBAL, C_GLOBAL, C_SHARED, C_LOCAL, C_PARAM, C_PARAM};
  return classes[s];
}

static void skip_hints(Parser *p, const char *words) {
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

static void note_shared(Parser *p, Space s, int bytes) {
  if ((s == SPACE_SHARED || s == SPACE_GENERIC) && bytes < p->f->granule) p->f->granule = bytes;
}

static void decode_access(Parser *p, const Form *f) {
  Insn *i = p->insn;
  bool store = f->sub;
  p->at_part = 1;
  skip_hints(p, "weak|volatile|relaxed|acquire|release|mmio");
  skip_hints(p, "cta|cluster|gpu|sys");
  Space space = take_space(p);
  skip_hints(p, "ca|cg|cs|lu|cv|nc|wb|wt");
  int vector = take(p, "v2|v4|v8");
  const Type *t = take_type(p);
  if (!t || p->at_part != p->n_part || !t->size)
    parse_fail(p, "modifiers of this access are not known");
  if (p->n_operand != 2) parse_fail(p, "2 operands, not %d", p->n_operand);
  i->n = (uint8_t)(vector < 0 ? 1 : 2 << vector);
  i->size = (uint8_t)t->size;
  i->kind = (uint8_t)t->kind;
  i->class = class_of(space);
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

/* ---- atom, red ---- */

typedef enum Atomic { A_ADD, A_MIN, A_MAX, A_AND, A_OR, A_XOR, A_EXCH, A_CAS, A_INC, A_DEC } Atomic;

static uint64_t add_floats(const Insn *i, uint64_t old, uint64_t b) {
  union {
    uint64_t u;
    double d;
  } x = {old}, y = {b};
  union {
    uint32_t u;
    float f;
  } s = {(uint32_t)old}, t = {(uint32_t)b};
  if (i->size == 8) {
    x.d += y.d;
    return x.u;
  }
  if (i->size == 4 && i->source_size == 1) {
    s.f += t.f;
    return s.u;
  }
  uint64_t r = 0;
  for (int k = 0; k < i->size * 8; k += 16) {
    uint16_t p = (uint16_t)(old >> k), q = (uint16_t)(b >> k);
    uint16_t sum =
        i->kind == KIND_BFLOAT
            ? float_to_bf16((double)bf16_to_float(p) + (double)bf16_to_float(q), ROUND_N)
            : float_to_half((double)half_to_float(p) + (double)half_to_float(q), ROUND_N);
    r |= (uint64_t)sum << k;
  }
  return r;
}

static uint64_t atomic_value(const Insn *i, uint64_t old, uint64_t b, uint64_t c) {
  bool is_float = i->kind == KIND_FLOAT || i->kind == KIND_BFLOAT;
  int shift = 64 - i->size * 8;
  bool less = i->kind == KIND_SIGNED ? (int64_t)(b << shift) < (int64_t)(old << shift) : b < old;
  switch ((Atomic)i->source_kind) {
  case A_ADD: return is_float ? add_floats(i, old, b) : old + b;
  case A_MIN: return less ? b : old;
  case A_MAX: return less ? old : b;
  case A_AND: return old & b;
  case A_OR: return old | b;
  case A_XOR: return old ^ b;
  case A_EXCH: return b;
  case A_CAS: return old == b ? c : old;
  case A_INC: return old >= b ? 0 : old + 1;
  default: return old == 0 || old > b ? b : old - 1;
  }
}

static volatile int atomic_lock;

static char *atomic_lane(Warp *w, const Insn *i, int lane, uint64_t at) {
  Space space = (Space)i->space;
  if (space == SPACE_GENERIC) space = space_of(&at);
  if (space != SPACE_SHARED) {
    char *p = lane_access(w, i, lane, space, at, i->size, false);
    memory_mark(at, i->size);
    return p;
  }
  if (at & (uint64_t)(i->size - 1)) misaligned(w, lane, at, i->size);
  if (at + i->size > w->g->shared_bytes)
    out_of_space(w, lane, "shared", at, i->size, w->g->shared_bytes);
  race_atomic(w, lane, (uint32_t)at, i->size);
  return w->g->shared + at;
}

static void exec_atomic(Warp *w, const Insn *i, uint32_t mask) {
  uint64_t at[LANES];
  lane_addresses(w, i, at);
  FOR_LANES(l, mask) {
    char *p = atomic_lane(w, i, (int)l, at[l]);
    uint64_t old = 0, b = register_get(w, i->b, i->wide, (int)l),
             c = i->c >= 0 ? register_get(w, i->c, i->wide, (int)l) : 0;
    while (__atomic_exchange_n(&atomic_lock, 1, __ATOMIC_ACQUIRE)) {}
    memcpy(&old, p, i->size);
    uint64_t value = atomic_value(i, old, b, c);
    memcpy(p, &value, i->size);
    __atomic_store_n(&atomic_lock, 0, __ATOMIC_RELEASE);
    if (i->d >= 0) register_set(w, i->d, i->wide, (int)l, old);
  }
}

static void decode_atomic(Parser *p, const Form *f) {
  Insn *i = p->insn;
  p->at_part = 1;
  skip_hints(p, "relaxed|acquire|release|acq_rel");
  skip_hints(p, "cta|cluster|gpu|sys");
  Space space = take_space(p);
  int op = take(p, "add|min|max|and|or|xor|exch|cas|inc|dec");
  take(p, "noftz");
  skip_hints(p, "");
  const Type *t = take_type(p);
  if (op < 0 || !t || p->at_part != p->n_part || t->size < 2)
    parse_fail(p, "this atomic operation is not known");
  if ((t->kind == KIND_FLOAT || t->kind == KIND_BFLOAT) && op != A_ADD && op != A_EXCH)
    parse_fail(p, "this atomic operation is not known for .%s", t->name);
  int k = f->sub ? 0 : 1;
  if (p->n_operand != k + (op == A_CAS ? 3 : 2))
    parse_fail(p, "%d operands, not %d", k + (op == A_CAS ? 3 : 2), p->n_operand);
  i->source_kind = (uint8_t)op;
  i->source_size = (uint8_t)(t->lanes == 1 && t->size == 4);
  i->size = i->wide = (uint8_t)t->size;
  i->kind = (uint8_t)t->kind;
  i->sub = 0;
  if (k && p->operand[0].kind != O_SINK) i->d = operand_at(p, 0, t->size, false);
  decode_address(p, k, space);
  i->b = one_at(p, &p->operand[k + 1], t, t->size, false);
  if (op == A_CAS) i->c = one_at(p, &p->operand[k + 2], t, t->size, false);
  note_shared(p, space, t->size);
}

/* ---- cp.async: the bytes are read at once and arrive when their group is waited for ---- */

static void exec_copy(Warp *w, const Insn *i, uint32_t mask) {
  uint64_t from[LANES], to[LANES];
  lane_addresses(w, i, from);
  for (int l = 0; l < LANES; l++)
    to[l] = i->b < 0 ? i->target : (i->n == 8 ? REG64(w, i->b)[l] : REG32(w, i->b)[l]) + i->target;
  if (w->g->counting)
    count_global(w->g, from, mask, i->size), count_shared(w->g, to, mask, i->size);
  FOR_LANES(l, mask) {
    uint32_t bytes = i->c >= 0 ? REG32(w, i->c)[l] : i->size;
    if (bytes > i->size)
      fault(w, 1u << l, 719, "a source of %u bytes for a copy of %u", bytes, i->size);
    if (to[l] & (i->size - 1u)) misaligned(w, (int)l, to[l], i->size);
    if (to[l] + i->size > w->g->shared_bytes)
      out_of_space(w, (int)l, "shared", to[l], i->size, w->g->shared_bytes);
    if (from[l] & (i->size - 1u)) misaligned(w, (int)l, from[l], i->size);
    if (w->n_pending == w->cap_pending)
      w->pending = host_grow(w->pending,
                             (size_t)(w->cap_pending += w->cap_pending + 128) * sizeof *w->pending);
    Pending *q = &w->pending[w->n_pending];
    *q = (Pending){.to = (uint32_t)to[l],
                   .bytes = i->size,
                   .lane = (uint8_t)l,
                   .group = w->group[l],
                   .line = i->line};
    uint64_t at = from[l];
    if (bytes && space_of(&at) != SPACE_GLOBAL)
      fault(w, 1u << l, 700, "the source of an asynchronous copy is not in global memory");
    if (bytes) memcpy(q->data, global_lane(w, (int)l, at, bytes, false), bytes);
    race_pending(w, (int)l, q->to, q->bytes);
    w->n_pending++;
  }
}

void pending_finish(Warp *w, uint32_t mask, uint32_t left) {
  int n = 0;
  for (int k = 0; k < w->n_pending; k++) {
    const Pending q = w->pending[k];
    if (!(mask >> q.lane & 1) || (left != UINT32_MAX && q.group + left >= w->group[q.lane])) {
      w->pending[n++] = q;
      continue;
    }
    memcpy(w->g->shared + q.to, q.data, q.bytes);
    for (uint32_t at = q.to >> w->g->granule_shift;
         at <= (q.to + q.bytes - 1u) >> w->g->granule_shift; at++)
      w->g->granule[at].flags = 0;
    race_write(w, q.lane, q.to, q.bytes);
  }
  w->n_pending = n;
}

static void exec_commit(Warp *w, const Insn *i, uint32_t mask) {
  (void)i;
  FOR_LANES(l, mask) w->group[l]++;
}

static void exec_wait(Warp *w, const Insn *i, uint32_t mask) {
  pending_finish(w, mask, (uint32_t)i->imm);
}

static void decode_copy(Parser *p, const Form *f) {
  Insn *i = p->insn;
  (void)f;
  if (p->n_operand < 3 || p->n_operand > 5)
    parse_fail(p, "operands: [to], [from], bytes{, bytes of the source}");
  i->sub = 0;
  decode_address(p, 0, SPACE_SHARED);
  i->b = i->a;
  i->n = i->address64 ? 8 : 4;
  if (p->n_dynamic && p->dynamic[p->n_dynamic - 1] == p->f->n - 1)
    parse_fail(p, "the address of dynamic shared memory must be in a register");
  i->target = (uint32_t)i->imm;
  decode_address(p, 1, SPACE_GLOBAL);
  uint64_t bytes = p->operand[2].value;
  if (p->operand[2].kind != O_CONSTANT || (bytes != 4 && bytes != 8 && bytes != 16))
    parse_fail(p, "copies are of 4, 8 or 16 bytes");
  i->size = (uint8_t)bytes;
  if (p->n_operand > 3) i->c = operand_at(p, 3, 4, false);
}

static void decode_commit(Parser *p, const Form *f) {
  (void)f;
  if (p->n_operand) parse_fail(p, "no operands are needed");
}

static void decode_wait(Parser *p, const Form *f) {
  p->insn->imm = UINT32_MAX;
  if (f->sub) return;
  if (p->n_operand != 1 || p->operand[0].kind != O_CONSTANT)
    parse_fail(p, "a number of groups is needed");
  p->insn->imm = (int64_t)p->operand[0].value;
}

#define HINTS "L2::cache_hint|L2::64B|L2::128B|L2::256B? L2::64B|L2::128B|L2::256B?"
const Form forms_memory[] = {{"ld *", decode_access, C_GLOBAL, NULL, 0},
                             {"ldu *", decode_access, C_GLOBAL, NULL, 0},
                             {"st *", decode_access, C_GLOBAL, NULL, 1},
                             {"atom *", decode_atomic, C_ATOMIC, exec_atomic, 0},
                             {"red *", decode_atomic, C_ATOMIC, exec_atomic, 1},
                             {"cp async ca|cg shared|shared::cta global " HINTS, decode_copy,
                              C_GLOBAL, exec_copy, 0},
                             {"cp async commit_group", decode_commit, C_GLOBAL, exec_commit, 0},
                             {"cp async wait_group", decode_wait, C_GLOBAL, exec_wait, 0},
                             {"cp async wait_all", decode_wait, C_GLOBAL, exec_wait, 1},
                             {NULL, NULL, 0, NULL, 0}};
