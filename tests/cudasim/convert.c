/* cvt: between integers, float32, float64, f16, bf16 and tf32, with rounding modes, saturation and packing of pairs. Integer
 * results saturate and NaN gives 0, as on a GPU. The frequent forms are vector loops. */
#include "sim.h"
#include <math.h>
#include <string.h>

typedef struct Value {
  bool is_float;
  double f;
  int64_t i; /* or its bits as unsigned */
} Value;

double float_of_bits(TypeKind kind, int size, uint64_t bits) {
  union {
    uint64_t u;
    double d;
  } x = {bits};
  union {
    uint32_t u;
    float f;
  } y = {(uint32_t)bits};
  if (size == 8) return x.d;
  if (size == 4) return (double)y.f;
  return kind == KIND_BFLOAT ? (double)bf16_to_float((uint16_t)bits)
                             : (double)half_to_float((uint16_t)bits);
}

static float to_float(double x, Round r) {
  float y = (float)x;
  if ((double)y == x || isnan(x)) return y;
  bool up = (double)y > x;
  if (r == ROUND_Z && fabs((double)y) > fabs(x)) return nextafterf(y, 0);
  if (r == ROUND_M && up) return nextafterf(y, -INFINITY);
  if (r == ROUND_P && !up) return nextafterf(y, INFINITY);
  return y;
}

static float tf32(float x) { /* 10 bits of fraction, ties away from zero */
  union {
    float f;
    uint32_t u;
  } y = {x};
  if (isfinite(x)) y.u = (y.u + 0x1000u) & ~0x1fffu;
  return y.f;
}

static double integral(double x, Round r) {
  switch (r) {
  case ROUND_NI: return nearbyint(x);
  case ROUND_ZI: return trunc(x);
  case ROUND_MI: return floor(x);
  case ROUND_PI: return ceil(x);
  default: return x;
  }
}

static uint64_t float_result(const Insn *i, double x) {
  Round r = i->round ? (Round)i->round : ROUND_N;
  union {
    double d;
    uint64_t u;
  } y;
  union {
    float f;
    uint32_t u;
  } z;
  if (i->mods & MOD_SAT) x = x > 0 ? (x < 1 ? x : 1) : 0;
  if (i->mods & MOD_RELU) x = x > 0 || isnan(x) ? x : 0;
  if (i->round >= ROUND_NI && i->round <= ROUND_PI) x = integral(x, r), r = ROUND_N;
  if (i->kind == KIND_TF32) {
    z.f = tf32((float)x);
    return z.u;
  }
  switch (i->size) {
  case 8: y.d = x; return y.u;
  case 4:
    z.f = to_float(x, r);
    if (i->mods & MOD_FTZ && fpclassify(z.f) == FP_SUBNORMAL) z.f = copysignf(0, z.f);
    return z.u;
  default: return i->kind == KIND_BFLOAT ? float_to_bf16(x, r) : float_to_half(x, r);
  }
}

static uint64_t limit(const Insn *i, bool is_float, double f, int64_t v, bool is_signed) {
  int bits = i->size * 8;
  int64_t low = i->kind == KIND_SIGNED ? (int64_t)(~UINT64_C(0) << (bits - 1)) : 0;
  uint64_t high = (i->kind == KIND_SIGNED ? UINT64_MAX >> (65 - bits) : UINT64_MAX >> (64 - bits));
  if (is_float) {
    f = integral(f, i->round ? (Round)i->round : ROUND_ZI);
    if (isnan(f)) return i->size == 8 ? UINT64_C(1) << 63 : 0;
    if (f <= (double)low) return (uint64_t)low;
    if (f >= (double)high) return high;
    return f < 0 ? (uint64_t)(int64_t)f : (uint64_t)f;
  }
  if (!(i->mods & MOD_SAT)) return (uint64_t)v;
  if (is_signed && v < low) return (uint64_t)low;
  if ((!is_signed || v > 0) && (uint64_t)v > high) return high;
  return (uint64_t)v;
}

static uint64_t int_to_float(const Insn *i, int64_t v, bool is_signed) {
  if (i->size == 4 && (i->round <= ROUND_N)) {
    union {
      float f;
      uint32_t u;
    } z = {is_signed ? (float)v : (float)(uint64_t)v};
    return z.u;
  }
  return float_result(i, is_signed ? (double)v : (double)(uint64_t)v);
}

static uint64_t one(const Insn *i, uint64_t bits) {
  bool from_float = i->source_kind == KIND_FLOAT || i->source_kind == KIND_BFLOAT,
       is_signed = i->source_kind == KIND_SIGNED;
  bool to_floating = i->kind == KIND_FLOAT || i->kind == KIND_BFLOAT || i->kind == KIND_TF32;
  double f = 0;
  int64_t v = 0;
  if (from_float) {
    f = float_of_bits((TypeKind)i->source_kind, i->source_size, bits);
    if (i->mods & MOD_FTZ && i->source_size == 4 && fabs(f) < 0x1p-126) f = copysign(0, f);
  } else {
    int shift = 64 - i->source_size * 8;
    v = is_signed ? (int64_t)(bits << shift) >> shift : (int64_t)(bits << shift >> shift);
  }
  if (to_floating) return from_float ? float_result(i, f) : int_to_float(i, v, is_signed);
  uint64_t r = limit(i, from_float, f, v, is_signed);
  int shift = 64 - i->size * 8; /* a wider register holds the value extended */
  return i->kind == KIND_SIGNED ? (uint64_t)((int64_t)(r << shift) >> shift) : r << shift >> shift;
}

static void exec_cvt(Warp *w, const Insn *i, uint32_t mask) {
  FOR_LANES(l, mask)
  register_set(w, i->d, i->wide, (int)l, one(i, register_get(w, i->a, i->n, (int)l)));
}

/* cvt.rn.f16x2.f32 d, a, b: a goes to the upper half. */
static void exec_pair(Warp *w, const Insn *i, uint32_t mask) {
  FOR_LANES(l, mask) {
    uint64_t a = one(i, REG32(w, i->a)[l]), b = one(i, REG32(w, i->b)[l]);
    REG32(w, i->d)[l] = (uint32_t)(a << 16 | (b & 0xffff));
  }
}

#define FAST(id, D, A)                                                                             \
  static void fast_##id(void *pd, const void *pa, const void *pb, const void *pc) {                \
    D *d = pd;                                                                                     \
    const A *a = pa;                                                                               \
    (void)pb, (void)pc;                                                                            \
    for (int l = 0; l < LANES; l++) d[l] = (D)a[l];                                                \
  }
FAST(u64_u32, uint64_t, uint32_t)
FAST(s64_s32, int64_t, int32_t)
FAST(u32_u64, uint32_t, uint64_t)
FAST(u32_u16, uint32_t, uint16_t)
FAST(s32_s16, int32_t, int16_t)
FAST(u16_u32, uint16_t, uint32_t)
FAST(u64_u16, uint64_t, uint16_t)
FAST(s64_s16, int64_t, int16_t)
FAST(u16_u64, uint16_t, uint64_t)
FAST(f32_s32, float, int32_t)
FAST(f32_u32, float, uint32_t)
FAST(f32_u64, float, uint64_t)
FAST(f32_s64, float, int64_t)
FAST(f64_f32, double, float)
FAST(f64_s32, double, int32_t)
FAST(f32_f64, float, double)

static void fast_f32_f16(void *pd, const void *pa, const void *pb, const void *pc) {
  float *d = pd;
  const uint16_t *a = pa;
  (void)pb, (void)pc;
  for (int l = 0; l < LANES; l++) d[l] = half_to_float(a[l]);
}

static void fast_f32_bf16(void *pd, const void *pa, const void *pb, const void *pc) {
  float *d = pd;
  const uint16_t *a = pa;
  (void)pb, (void)pc;
  for (int l = 0; l < LANES; l++) d[l] = bf16_to_float(a[l]);
}

static void fast_bf16_f32(void *pd, const void *pa, const void *pb, const void *pc) {
  uint16_t *d = pd;
  const uint32_t *a = pa;
  (void)pb, (void)pc;
  for (int l = 0; l < LANES; l++) {
    uint32_t x = a[l], even = x + 0x7fffu + (x >> 16 & 1);
    d[l] = (uint16_t)((x & 0x7fffffffu) > 0x7f800000u ? 0x7fff : even >> 16);
  }
}

/* Without .sat and with the usual rounding; registers of just these sizes. */
static const struct {
  const char *words;
  int d, a;
  Alu *alu;
} fast[] = {
    {"cvt u64|s64 u32", 8, 4, fast_u64_u32},     {"cvt u64|s64 s32", 8, 4, fast_s64_s32},
    {"cvt u32|s32 u64|s64", 4, 8, fast_u32_u64}, {"cvt u32|s32 u16", 4, 2, fast_u32_u16},
    {"cvt u32|s32 s16", 4, 2, fast_s32_s16},     {"cvt u16|s16 u32|s32", 2, 4, fast_u16_u32},
    {"cvt u64|s64 u16", 8, 2, fast_u64_u16},     {"cvt u64|s64 s16", 8, 2, fast_s64_s16},
    {"cvt u16|s16 u64|s64", 2, 8, fast_u16_u64}, {"cvt rn f32 s32", 4, 4, fast_f32_s32},
    {"cvt rn f32 u32", 4, 4, fast_f32_u32},      {"cvt rn f32 u64", 4, 8, fast_f32_u64},
    {"cvt rn f32 s64", 4, 8, fast_f32_s64},      {"cvt f64 f32", 8, 4, fast_f64_f32},
    {"cvt rn f64 s32", 8, 4, fast_f64_s32},      {"cvt rn f32 f64", 4, 8, fast_f32_f64},
    {"cvt f32 f16", 4, 2, fast_f32_f16},         {"cvt f32 bf16", 4, 2, fast_f32_bf16},
    {"cvt rn bf16 f32", 2, 4, fast_bf16_f32}};

static int register_size(Parser *p, int k) {
  const Operand *o = &p->operand[k];
  if (o->kind == O_REGISTER && o->symbol)
    return o->symbol->type->size < 2 ? 2 : o->symbol->type->size;
  return o->kind == O_REGISTER ? o->special_width : 0;
}

static void decode_cvt(Parser *p, const Form *f) {
  Insn *i = p->insn;
  for (int k = 0; k < COUNT(fast); k++)
    if (match(p, fast[k].words) && p->n_operand == 2 && register_size(p, 0) == fast[k].d &&
        register_size(p, 1) == fast[k].a) {
      i->flow = FLOW_ALU;
      i->round = 0;
      i->alu = fast[k].alu;
      i->size = i->wide = (uint8_t)fast[k].d;
      i->d = operand_at(p, 0, fast[k].d, false);
      i->a = operand_at(p, 1, fast[k].a, false);
      return;
    }
  if (!match(p, f->pattern)) parse_fail(p, "modifiers of this conversion are not known");
  p->at_part = p->n_part - 2;
  const Type *d = take_type(p), *a = take_type(p);
  if (!d || !a) parse_fail(p, "a conversion needs two types");
  if (a->lanes != 1) parse_fail(p, "a conversion from .%s is not supported", a->name);
  if (p->n_operand != d->lanes + 1)
    parse_fail(p, "%d operands, not %d", d->lanes + 1, p->n_operand);
  i->kind = (uint8_t)d->kind;
  i->source_kind = (uint8_t)a->kind;
  i->source_size = (uint8_t)a->size;
  i->size = (uint8_t)(d->size / d->lanes);
  i->exec = d->lanes == 2 ? exec_pair : exec_cvt;
  int source = register_size(p, 1), width = a->size < 2 ? 2 : a->size;
  i->wide = (uint8_t)register_size(p, 0);
  i->n = (uint8_t)(source > width ? source : width);
  i->d = operand_at(p, 0, d->size < 2 ? 2 : d->size, true);
  i->a = one_at(p, &p->operand[1], a, width, true);
  if (d->lanes == 2) i->b = one_at(p, &p->operand[2], a, width, true);
}

#define CVT_TYPES "u8|s8|u16|s16|u32|s32|u64|s64|f16|bf16|f32|f64"
const Form forms_convert[] = {{"cvt rn|rz|rm|rp|rni|rzi|rmi|rpi|rna? relu? ftz? sat? " CVT_TYPES
                               "|f16x2|bf16x2|tf32 " CVT_TYPES,
                               decode_cvt, C_CONVERT, NULL, 0},
                              {NULL, NULL, 0, NULL, 0}};
