/* ld, st: an instruction is decoded to one of several functions, by its space. Those for global and shared memory move 32 lanes at once;
 * the slow ones, for what is private to lanes, go lane by lane (access.c). */
#include "sim.h"
#include <string.h>

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
  i->sub = 0;
  decode_address(p, store ? 0 : 1, space);
  const Operand *value = &p->operand[store ? 1 : 0];
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
