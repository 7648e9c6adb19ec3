/* Forms beside plain arithmetic: comparisons, selections, predicates, moves that pack and unpack, three-input logic, carries,
 * address conversions. */
#include "sim.h"
#include <math.h>
#include <string.h>

uint64_t register_get(const Warp *w, int32_t at, int width, int lane) {
  const char *p = w->r + at;
  switch (width) {
  case 0: return PRED(w, at) >> lane & 1;
  case 2: return ((const uint16_t *)p)[lane];
  case 4: return ((const uint32_t *)p)[lane];
  default: return ((const uint64_t *)p)[lane];
  }
}

void register_set(Warp *w, int32_t at, int width, int lane, uint64_t value) {
  char *p = w->r + at;
  switch (width) {
  case 0: PRED(w, at) = (PRED(w, at) & ~(1u << lane)) | (uint32_t)(value & 1) << lane; break;
  case 2: ((uint16_t *)p)[lane] = (uint16_t)value; break;
  case 4: ((uint32_t *)p)[lane] = (uint32_t)value; break;
  default: ((uint64_t *)p)[lane] = value;
  }
}

void registers_put(Warp *w, int32_t at, int width, uint32_t mask, const void *values) {
  const char *from = values;
  char *to = w->r + at;
  if (mask == FULL) {
    memcpy(to, from, (size_t)width * LANES);
    return;
  }
  FOR_LANES(l, mask) memcpy(to + l * (uint32_t)width, from + l * (uint32_t)width, (size_t)width);
}

static void set_pred(Warp *w, int32_t at, uint32_t mask, uint32_t value) {
  if (at >= 0) PRED(w, at) = (PRED(w, at) & ~mask) | (value & mask);
}

static int size_of(const Type *t) { return t->kind == KIND_PRED ? 0 : t->size < 2 ? 2 : t->size; }

static const Type *need_type(Parser *p) {
  const Type *t = take_type(p);
  if (!t) parse_fail(p, "a type is missing");
  return t;
}

static void need(Parser *p, int n) {
  if (p->n_operand != n) parse_fail(p, "%d operands, not %d", n, p->n_operand);
  if (p->at_part != p->n_part)
    parse_fail(p, "modifier .%.*s is not known", p->part[p->at_part].n, p->part[p->at_part].s);
}

static const int32_t *keep(Parser *p, int n, const int32_t *v) {
  int32_t *to = arena_alloc(p->m->arena, (size_t)n * sizeof *to + 1);
  memcpy(to, v, (size_t)n * sizeof *to);
  p->insn->n_v = n;
  return p->insn->v = to;
}

/* ---- setp, set ---- */

static void test_words_of(Parser *p, int *cmp, int *combine) {
  *cmp = take(p, "eq|ne|lt|le|gt|ge|equ|neu|ltu|leu|gtu|geu|num|nan");
  if (*cmp < 0 && (*cmp = take(p, "lo|ls|hi|hs")) >= 0) *cmp += 2;
  if (*cmp < 0)
    parse_fail(p, "comparison .%.*s is not known", p->part[p->at_part].n, p->part[p->at_part].s);
  *combine = take(p, "and|or|xor") + 1;
  take(p, "ftz");
}

static void find_test(Parser *p, const Type *t, int cmp) {
  p->insn->test = t ? test_find(t, cmp) : NULL;
  if (!p->insn->test) parse_fail(p, "this comparison does not fit the type");
}

static void decode_setp(Parser *p, const Form *f) {
  (void)f;
  Insn *i = p->insn;
  int cmp, combine;
  p->at_part = 1;
  test_words_of(p, &cmp, &combine);
  const Type *t = need_type(p);
  need(p, combine ? 4 : 3);
  i->class = t->kind == KIND_FLOAT ? t->size == 4   ? C_FLOAT
                                     : t->size == 8 ? C_DOUBLE
                                                    : C_HALF
                                   : C_INT;
  i->flow = FLOW_TEST;
  find_test(p, t, cmp);
  if (p->operand[0].kind != O_SINK) i->d = operand_at(p, 0, 0, false);
  int32_t q = -1;
  if (p->operand[0].pair) {
    Operand o = {.kind = O_REGISTER, .symbol = p->operand[0].pair, .special = -1};
    q = one_at(p, &o, NULL, 0, false);
  }
  keep(p, 1, &q);
  i->a = one_at(p, &p->operand[1], t, size_of(t), false);
  i->b = one_at(p, &p->operand[2], t, size_of(t), false);
  i->sub = (uint8_t)combine;
  if (!combine) return;
  i->c = operand_at(p, 3, 0, false);
  i->imm = p->operand[3].flip ? FULL : 0;
}

/* The lanes where it holds; of pairs, where it holds for both halves: `high`. */
static uint32_t set_mask(const Warp *w, const Insn *i, bool high) {
  const void *a = w->r + i->a, *b = w->r + i->b;
  uint16_t half[2][LANES];
  if (i->n == 2) {
    for (int l = 0; l < LANES; l++) {
      half[0][l] = (uint16_t)(((const uint32_t *)a)[l] >> 16 * high);
      half[1][l] = (uint16_t)(((const uint32_t *)b)[l] >> 16 * high);
    }
    a = half[0], b = half[1];
  }
  uint32_t m = i->test(a, b), c = i->c >= 0 ? PRED(w, i->c) ^ (uint32_t)i->imm : 0;
  return i->sub == 0 ? m : i->sub == 1 ? m & c : i->sub == 2 ? m | c : m ^ c;
}

static void exec_set(Warp *w, const Insn *i, uint32_t mask) {
  static const uint32_t ones[2][3] = {{0xffff, 0x3c00, 0x3f80}, {FULL, 0x3f800000u, 0}};
  int bits = i->n == 2 ? 2 : i->size, type = i->kind == KIND_FLOAT    ? 1
                                             : i->kind == KIND_BFLOAT ? 2
                                                                      : 0;
  uint32_t one = ones[bits == 4][type], low = set_mask(w, i, false),
           high = i->n == 2 ? set_mask(w, i, true) : 0;
  FOR_LANES(l, mask)
  register_set(w, i->d, i->size, (int)l,
               (low >> l & 1 ? one : 0) | (high >> l & 1 ? one << 16 : 0));
}

static void decode_set(Parser *p, const Form *f) {
  Insn *i = p->insn;
  int cmp, combine;
  p->at_part = 1;
  test_words_of(p, &cmp, &combine);
  const Type *d = need_type(p), *t = need_type(p);
  need(p, combine ? 4 : 3);
  if (d->size != 4 && d->size != 2) parse_fail(p, "set with a result of %d bits", d->size * 8);
  if (t->lanes == 2 && d->size != 4) parse_fail(p, "set of pairs needs a result of 32 bits");
  i->n = (uint8_t)t->lanes;
  find_test(p,
            t->lanes == 1           ? t
            : t->kind == KIND_FLOAT ? type_find("f16", 3)
                                    : type_find("bf16", 4),
            cmp);
  i->exec = f->exec;
  i->kind = (uint8_t)d->kind;
  i->size = (uint8_t)d->size;
  i->d = operand_at(p, 0, d->size, false);
  i->a = one_at(p, &p->operand[1], t, size_of(t), false);
  i->b = one_at(p, &p->operand[2], t, size_of(t), false);
  i->sub = (uint8_t)combine;
  if (!combine) return;
  i->c = operand_at(p, 3, 0, false);
  i->imm = p->operand[3].flip ? FULL : 0;
}

/* ---- selp, slct ---- */

#define SELECT(bits)                                                                               \
  static void select##bits(Warp *w, const Insn *i, uint32_t mask) {                                \
    uint##bits##_t *d = (uint##bits##_t *)(w->r + i->d);                                           \
    const uint##bits##_t *a = (uint##bits##_t *)(w->r + i->a),                                     \
                         *b = (uint##bits##_t *)(w->r + i->b);                                     \
    uint32_t m = PRED(w, i->c) ^ (uint32_t)i->imm;                                                 \
    if (mask == FULL) {                                                                            \
      for (uint32_t l = 0; l < LANES; l++) {                                                       \
        uint##bits##_t pick = (uint##bits##_t)(0 - (m >> l & 1u));                                 \
        if (bits == 64) pick = (uint##bits##_t)(0 - (uint64_t)(m >> l & 1u));                      \
        d[l] = (a[l] & pick) | (b[l] & (uint##bits##_t) ~pick);                                    \
      }                                                                                            \
    } else {                                                                                       \
      FOR_LANES(l, mask) d[l] = m >> l & 1 ? a[l] : b[l];                                          \
    }                                                                                              \
  }
SELECT(16)
SELECT(32)
SELECT(64)

static void decode_selp(Parser *p, const Form *f) {
  (void)f;
  p->at_part = 1;
  const Type *t = need_type(p);
  need(p, 4);
  int size = size_of(t);
  p->insn->is_select = true;
  p->insn->exec = size == 2 ? select16 : size == 4 ? select32 : select64;
  p->insn->d = operand_at(p, 0, size, false);
  p->insn->a = one_at(p, &p->operand[1], t, size, false);
  p->insn->b = one_at(p, &p->operand[2], t, size, false);
  p->insn->c = operand_at(p, 3, 0, false);
  p->insn->imm = p->operand[3].flip ? FULL : 0;
}

static void exec_slct(Warp *w, const Insn *i, uint32_t mask) {
  FOR_LANES(l, mask) {
    uint32_t c = REG32(w, i->c)[l];
    bool first = i->kind == KIND_FLOAT ? !(c >> 31) || c == 0x80000000u : !(c >> 31);
    register_set(w, i->d, i->size, (int)l, register_get(w, first ? i->a : i->b, i->size, (int)l));
  }
}

static void decode_slct(Parser *p, const Form *f) {
  (void)f;
  p->at_part = 1;
  take(p, "ftz");
  const Type *t = need_type(p), *c = need_type(p);
  need(p, 4);
  p->insn->size = (uint8_t)size_of(t);
  p->insn->kind = (uint8_t)c->kind;
  p->insn->d = operand_at(p, 0, size_of(t), false);
  p->insn->a = one_at(p, &p->operand[1], t, size_of(t), false);
  p->insn->b = one_at(p, &p->operand[2], t, size_of(t), false);
  p->insn->c = operand_at(p, 3, 4, false);
}

/* ---- predicates ---- */

static void exec_pred(Warp *w, const Insn *i, uint32_t mask) {
  uint32_t a = PRED(w, i->a), b = i->b >= 0 ? PRED(w, i->b) : 0;
  a ^= (uint32_t)i->imm, b ^= (uint32_t)(i->imm >> 32);
  const uint32_t value[] = {a & b, a | b, a ^ b, ~a, a};
  set_pred(w, i->d, mask, value[i->sub]);
}

static void decode_pred(Parser *p, const Form *f) {
  int n = f->sub < 3 ? 3 : 2;
  p->at_part = p->n_part;
  need(p, n);
  p->insn->d = operand_at(p, 0, 0, false);
  p->insn->a = operand_at(p, 1, 0, false);
  if (n == 3) p->insn->b = operand_at(p, 2, 0, false);
  p->insn->imm = (p->operand[1].flip ? FULL : 0) |
                 (n == 3 && p->operand[2].flip ? (int64_t)((uint64_t)FULL << 32) : 0);
}

/* ---- mov between a register and the parts of a vector ---- */

static void exec_pack(Warp *w, const Insn *i, uint32_t mask) {
  int part = i->size / i->n;
  FOR_LANES(l, mask) {
    uint64_t value = 0;
    for (int k = 0; k < i->n; k++) value |= register_get(w, i->v[k], part, (int)l) << part * 8 * k;
    register_set(w, i->d, i->size, (int)l, value);
  }
}

static void exec_unpack(Warp *w, const Insn *i, uint32_t mask) {
  int part = i->size / i->n;
  FOR_LANES(l, mask) {
    uint64_t value = register_get(w, i->a, i->size, (int)l);
    for (int k = 0; k < i->n; k++)
      if (i->v[k] >= 0) register_set(w, i->v[k], part, (int)l, value >> part * 8 * k);
  }
}

static void decode_pack(Parser *p, const Form *f) {
  (void)f;
  p->at_part = 1;
  const Type *t = need_type(p);
  if (p->n_operand != 2) parse_fail(p, "2 operands, not %d", p->n_operand);
  bool pack = p->operand[1].kind == O_VECTOR;
  const Operand *vector = &p->operand[pack];
  if (vector->kind != O_VECTOR || vector->n < 2 || vector->n > 4 || t->size / vector->n < 2)
    parse_fail(p, "an operand of this kind does not fit here");
  Insn *i = p->insn;
  int32_t v[4] = {-1, -1, -1, -1};
  i->size = (uint8_t)t->size;
  i->n = (uint8_t)vector->n;
  for (int k = 0; k < vector->n; k++)
    if (vector->v[k].kind != O_SINK)
      v[k] = one_at(p, &vector->v[k], NULL, t->size / vector->n, false);
  keep(p, vector->n, v);
  i->exec = pack ? exec_pack : exec_unpack;
  if (pack)
    i->d = operand_at(p, 0, t->size, false);
  else
    i->a = operand_at(p, 1, t->size, false);
}

/* ---- lop3, bfi, testp ---- */

static void exec_lop3(Warp *w, const Insn *i, uint32_t mask) {
  FOR_LANES(l, mask) {
    uint32_t a = REG32(w, i->a)[l], b = REG32(w, i->b)[l], c = REG32(w, i->c)[l], r = 0;
    for (int k = 0; k < 8; k++)
      if (i->imm >> k & 1) r |= (k & 4 ? a : ~a) & (k & 2 ? b : ~b) & (k & 1 ? c : ~c);
    REG32(w, i->d)[l] = r;
  }
}

static void decode_lop3(Parser *p, const Form *f) {
  (void)f;
  p->at_part = p->n_part;
  need(p, 5);
  p->insn->d = operand_at(p, 0, 4, false);
  p->insn->a = operand_at(p, 1, 4, false);
  p->insn->b = operand_at(p, 2, 4, false);
  p->insn->c = operand_at(p, 3, 4, false);
  p->insn->imm = (int64_t)p->operand[4].value;
}

static void exec_bfi(Warp *w, const Insn *i, uint32_t mask) {
  FOR_LANES(l, mask) {
    uint64_t a = register_get(w, i->a, i->size, (int)l), b = register_get(w, i->b, i->size, (int)l);
    uint32_t pos = REG32(w, i->c)[l] & 255, len = REG32(w, i->v[0])[l] & 255;
    uint64_t m = len > 63 ? ~UINT64_C(0) : (UINT64_C(1) << len) - 1;
    m = pos > 63 ? 0 : m << pos;
    register_set(w, i->d, i->size, (int)l, (b & ~m) | (pos > 63 ? 0 : (a << pos) & m));
  }
}

static void decode_bfi(Parser *p, const Form *f) {
  p->at_part = p->n_part;
  need(p, 5);
  p->insn->size = (uint8_t)f->sub;
  p->insn->d = operand_at(p, 0, f->sub, false);
  p->insn->a = operand_at(p, 1, f->sub, false);
  p->insn->b = operand_at(p, 2, f->sub, false);
  p->insn->c = operand_at(p, 3, 4, false);
  int32_t len = operand_at(p, 4, 4, false);
  keep(p, 1, &len);
}

static void exec_testp(Warp *w, const Insn *i, uint32_t mask) {
  uint32_t m = 0;
  FOR_LANES(l, mask) {
    union {
      uint64_t u;
      double d;
    } x = {register_get(w, i->a, i->size, (int)l)};
    union {
      uint32_t u;
      float f;
    } y = {(uint32_t)x.u};
    int c = i->size == 8 ? fpclassify(x.d) : fpclassify(y.f);
    const bool is[] = {c != FP_NAN && c != FP_INFINITE,
                       c == FP_INFINITE,
                       c != FP_NAN,
                       c == FP_NAN,
                       c == FP_NORMAL,
                       c == FP_SUBNORMAL};
    if (is[i->sub]) m |= 1u << l;
  }
  set_pred(w, i->d, mask, m);
}

static void decode_testp(Parser *p, const Form *f) {
  (void)f;
  p->at_part = 1;
  int k = take(p, "finite|infinite|number|notanumber|normal|subnormal");
  const Type *t = need_type(p);
  need(p, 2);
  p->insn->sub = (uint8_t)k;
  p->insn->size = (uint8_t)t->size;
  p->insn->d = operand_at(p, 0, 0, false);
  p->insn->a = operand_at(p, 1, t->size, false);
}

/* ---- carries: what is 0 add, 1 sub, 2 mad.lo, 3 mad.hi ---- */
enum { CARRY_IN = 4, CARRY_OUT = 8 };

static void exec_carry(Warp *w, const Insn *i, uint32_t mask) {
  uint32_t out = w->carry;
  FOR_LANES(l, mask) {
    uint64_t a = register_get(w, i->a, i->size, (int)l), b = register_get(w, i->b, i->size, (int)l),
             low = 0;
    bool in = i->sub & CARRY_IN && w->carry >> l & 1, carry = false;
    if (i->size == 4) {
      uint64_t x = a, y = b;
      if ((i->sub & 3) >= 2)
        x = (i->sub & 3) == 2        ? (uint32_t)(a * b)
            : i->kind == KIND_SIGNED ? (uint32_t)((int64_t)(int32_t)a * (int32_t)b >> 32)
                                     : (uint32_t)(a * b >> 32),
        y = register_get(w, i->c, 4, (int)l);
      uint64_t r = (i->sub & 3) == 1 ? x - y - in : x + y + in;
      carry = r >> 32 & 1;
      low = (uint32_t)r;
    } else if ((i->sub & 3) == 1) {
      low = a - b - in;
      carry = a < b || (a == b && in);
    } else {
      low = a + b + in;
      carry = low < a || (low == a && in && b);
    }
    register_set(w, i->d, i->size, (int)l, low);
    out = (out & ~(1u << l)) | (uint32_t)carry << l;
  }
  if (i->sub & CARRY_OUT) w->carry = out;
}

static void decode_carry(Parser *p, const Form *f) {
  Insn *i = p->insn;
  const Type *t = type_find(p->part[p->n_part - 1].s, (size_t)p->part[p->n_part - 1].n);
  p->at_part = p->n_part;
  need(p, (f->sub & 3) >= 2 ? 4 : 3);
  if ((f->sub & 3) >= 2 && t->size != 4)
    parse_fail(p, "a product with carry of 64 bits is not supported");
  for (int k = 1; k < p->n_part; k++)
    if (p->part[k].n == 2 && !memcmp(p->part[k].s, "cc", 2)) i->sub |= CARRY_OUT;
  i->kind = (uint8_t)t->kind;
  i->size = (uint8_t)t->size;
  i->d = operand_at(p, 0, t->size, false);
  i->a = operand_at(p, 1, t->size, false);
  i->b = operand_at(p, 2, t->size, false);
  if ((f->sub & 3) >= 2) i->c = operand_at(p, 3, t->size, false);
}

/* ---- addresses of a space <-> generic ones ---- */

static void exec_cvta(Warp *w, const Insn *i, uint32_t mask) {
  uint64_t d[LANES];
  uint32_t d32[LANES];
  for (int l = 0; l < LANES; l++) {
    uint64_t a = i->size == 8 ? REG64(w, i->a)[l] : REG32(w, i->a)[l];
    d[l] = a + (uint64_t)i->imm;
    d32[l] = (uint32_t)d[l];
  }
  registers_put(w, i->d, i->size, mask, i->size == 8 ? (void *)d : d32);
}

static const int64_t bases[] = {0, (int64_t)SHARED_BASE, (int64_t)LOCAL_BASE,
                                0, (int64_t)PARAM_BASE,  (int64_t)SHARED_BASE};
#define SPACES "global|shared|local|const|param|shared::cta"

static void decode_cvta(Parser *p, const Form *f) {
  (void)f;
  p->at_part = 1;
  bool to = take(p, "to") == 0;
  int space = take(p, SPACES);
  const Type *t = need_type(p);
  need(p, 2);
  if (space < 0) parse_fail(p, "an address space is missing");
  p->insn->size = (uint8_t)t->size;
  p->insn->imm = to ? -bases[space] : bases[space];
  p->insn->d = operand_at(p, 0, t->size, false);
  p->insn->a = operand_at(p, 1, t->size, false);
}

static void exec_isspacep(Warp *w, const Insn *i, uint32_t mask) {
  uint32_t m = 0;
  FOR_LANES(l, mask) {
    uint64_t a = REG64(w, i->a)[l], base = (uint64_t)bases[i->sub];
    bool window = a >= SHARED_BASE;
    if (base ? a >= base && a < base + WINDOW : !window) m |= 1u << l;
  }
  set_pred(w, i->d, mask, m);
}

static void decode_isspacep(Parser *p, const Form *f) {
  (void)f;
  p->at_part = 1;
  int space = take(p, SPACES);
  need(p, 2);
  p->insn->sub = (uint8_t)(space < 0 ? 0 : space);
  p->insn->d = operand_at(p, 0, 0, false);
  p->insn->a = operand_at(p, 1, 8, false);
}

const Form forms_basic[] = {{"setp *", decode_setp, C_INT, NULL, 0},
                            {"set *", decode_set, C_INT, exec_set, 0},
                            {"selp *", decode_selp, C_INT, NULL, 0},
                            {"slct *", decode_slct, C_INT, exec_slct, 0},
                            {"and pred", decode_pred, C_INT, exec_pred, 0},
                            {"or pred", decode_pred, C_INT, exec_pred, 1},
                            {"xor pred", decode_pred, C_INT, exec_pred, 2},
                            {"not pred", decode_pred, C_INT, exec_pred, 3},
                            {"mov pred", decode_pred, C_INT, exec_pred, 4},
                            {"lop3 b32", decode_lop3, C_INT, exec_lop3, 0},
                            {"bfi b32", decode_bfi, C_INT, exec_bfi, 4},
                            {"bfi b64", decode_bfi, C_INT, exec_bfi, 8},
                            {"testp *", decode_testp, C_INT, exec_testp, 0},
                            {"add cc u32|s32|u64|s64", decode_carry, C_INT, exec_carry, 0},
                            {"addc cc? u32|s32|u64|s64", decode_carry, C_INT, exec_carry,
                             0 | CARRY_IN},
                            {"sub cc u32|s32|u64|s64", decode_carry, C_INT, exec_carry, 1},
                            {"subc cc? u32|s32|u64|s64", decode_carry, C_INT, exec_carry,
                             1 | CARRY_IN},
                            {"mad lo cc u32|s32", decode_carry, C_INT, exec_carry, 2},
                            {"madc lo cc? u32|s32", decode_carry, C_INT, exec_carry, 2 | CARRY_IN},
                            {"mad hi cc u32|s32", decode_carry, C_INT, exec_carry, 3},
                            {"madc hi cc? u32|s32", decode_carry, C_INT, exec_carry, 3 | CARRY_IN},
                            {"cvta *", decode_cvta, C_INT, exec_cvta, 0},
                            {"isspacep *", decode_isspacep, C_INT, exec_isspacep, 0},
                            {"mov b32|b64|f16x2", decode_pack, C_INT, NULL, 0},
                            {NULL, NULL, 0, NULL, 0}};
