/* atom, red: one lane after the other, under one lock for device memory. Atomic accesses of shared memory do not race. */
#include "sim.h"
#include <string.h>

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
    if (space != SPACE_GLOBAL) return lane_access(w, i, lane, space, at, i->size, true);
    if (at & (uint64_t)(i->size - 1)) misaligned(w, lane, at, i->size);
    global_lane(w, lane, at, i->size, false);
    if (w->g->l->many) blocks_atomic(w, lane, at, i->size, i->access & A_RELEASE);
    return global_lane(w, lane, at, i->size, true);
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
  bool release = take(p, "release|acq_rel") >= 0;
  take_hints(p, "relaxed|acquire");
  bool block_only = take(p, "cta") == 0;
  take_hints(p, "cta|cluster|gpu|sys");
  Space space = take_space(p);
  int op = take(p, "add|min|max|and|or|xor|exch|cas|inc|dec");
  take(p, "noftz");
  take_hints(p, "");
  const Type *t = take_type(p);
  if (op < 0 || !t || p->at_part != p->n_part || t->size < 2)
    parse_fail(p, "this atomic operation is not known");
  if ((t->kind == KIND_FLOAT || t->kind == KIND_BFLOAT) && op != A_ADD && op != A_EXCH)
    parse_fail(p, "this atomic operation is not known for .%s", t->name);
  int k = f->sub ? 0 : 1;
  if (p->n_operand != k + (op == A_CAS ? 3 : 2))
    parse_fail(p, "%d operands, not %d", k + (op == A_CAS ? 3 : 2), p->n_operand);
  i->access = release && !block_only ? A_RELEASE : 0;
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

const Form forms_atomic[] = {{"atom *", decode_atomic, C_ATOMIC, exec_atomic, 0},
                             {"red *", decode_atomic, C_ATOMIC, exec_atomic, 1},
                             {NULL, NULL, 0, NULL, 0}};
