/* Arithmetic of 32 lanes: a function per row of ptx_ops.def, written so that the compiler makes vector code of it; comparisons,
 * whose result is a mask; and what modifiers add around a row. */
#include "sim.h"
#include <fenv.h>
#include <math.h>
#include <string.h>

typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int16_t s16;
typedef int32_t s32;
typedef int64_t s64;
typedef float f32;
typedef double f64;

static inline s32 saturate(s64 x) {
  return (s32)(x > INT32_MAX ? INT32_MAX : x < INT32_MIN ? INT32_MIN : x);
}

static inline u64 high_u(u64 a, u64 b) {
  u64 a0 = (u32)a, a1 = a >> 32, b0 = (u32)b, b1 = b >> 32;
  u64 mid = a1 * b0 + (a0 * b0 >> 32), low = (u32)mid + a0 * b1;
  return a1 * b1 + (mid >> 32) + (low >> 32);
}

static inline u64 reverse(u64 x) {
  x = (x >> 1 & 0x5555555555555555u) | (x & 0x5555555555555555u) << 1;
  x = (x >> 2 & 0x3333333333333333u) | (x & 0x3333333333333333u) << 2;
  x = (x >> 4 & 0x0f0f0f0f0f0f0f0fu) | (x & 0x0f0f0f0f0f0f0f0fu) << 4;
  return __builtin_bswap64(x);
}

static inline u64 extract(u64 x, u32 pos, u32 len, u32 bits, bool sign) {
  pos &= 255, len &= 255;
  u32 last = pos + len - 1 < bits - 1 ? pos + len - 1 : bits - 1;
  bool top = sign && len && (x >> last & 1);
  u64 fill = top ? ~UINT64_C(0) : 0;
  if (!len || pos >= bits) return fill;
  u32 n = last - pos + 1;
  u64 m = n == 64 ? ~UINT64_C(0) : (UINT64_C(1) << n) - 1;
  return (x >> pos & m) | (fill & ~m);
}

static inline u32 find(u64 x, bool shift) {
  u32 at = x ? 63 - (u32)__builtin_clzll(x) : ~0u;
  return shift && x ? 31 - at : at;
}

static inline u32 permute(u32 a, u32 b, u32 c) {
  u64 x = (u64)b << 32 | a;
  u32 r = 0;
  for (u32 i = 0; i < 4; i++) {
    u32 sel = c >> 4 * i, byte = (u32)(x >> 8 * (sel & 7)) & 255;
    if (sel & 8) byte = byte & 128 ? 255 : 0;
    r |= byte << 8 * i;
  }
  return r;
}

static inline s32 dot4(u32 a, u32 b, s32 c, bool sa, bool sb) {
  u32 sum = (u32)c;
  for (u32 i = 0; i < 32; i += 8) {
    s32 x = (s32)(a >> i & 255), y = (s32)(b >> i & 255);
    if (sa) x = (int8_t)x;
    if (sb) y = (int8_t)y;
    sum += (u32)(x * y);
  }
  return (s32)sum;
}

static inline s32 dot2(u32 a, u32 b, s32 c, bool sa, bool sb) {
  u32 sum = (u32)c;
  for (u32 i = 0; i < 2; i++) {
    s32 x = (s32)(a >> 16 * i & 0xffff), y = (s32)(b >> 8 * i & 255);
    if (sa) x = (s16)x;
    if (sb) y = (int8_t)y;
    sum += (u32)(x * y);
  }
  return (s32)sum;
}

static inline u32 min_pair(u32 a, u32 b, bool sign) {
  u32 flip = sign ? 0x80008000u : 0, x = a ^ flip, y = b ^ flip;
  u32 low = (x & 0xffff) < (y & 0xffff) ? x & 0xffff : y & 0xffff;
  return ((x >> 16 < y >> 16 ? x : y) & 0xffff0000u) ^ low ^ flip;
}

/* |a - b| of each part of so many bits. */
static inline u32 parts_apart(u32 a, u32 b, u32 bits, bool sign) {
  u32 r = 0, m = bits == 8 ? 0xff : 0xffff;
  for (u32 i = 0; i < 32; i += bits) {
    s32 x = (s32)(a >> i & m), y = (s32)(b >> i & m);
    if (sign) x = bits == 8 ? (int8_t)x : (s16)x, y = bits == 8 ? (int8_t)y : (s16)y;
    r |= (u32)(x < y ? y - x : x - y) << i;
  }
  return r;
}

static inline u32 parts_sum(u32 a, u32 bits) {
  u32 r = 0;
  for (u32 i = 0; i < 32; i += bits) r += a >> i & (bits == 8 ? 0xff : 0xffff);
  return r;
}

/* The n-th set bit from `base` on, upwards or, for n < 0, downwards; n = 0: base itself. */
static inline u32 nth_set(u32 x, u32 base, s32 n) {
  s32 step = n < 0 ? -1 : 1, left = n < 0 ? -n : n;
  if (!n) return base < 32 && x >> base & 1 ? base : ~0u;
  for (s64 at = base; at >= 0 && at < 32; at += step)
    if (x >> at & 1 && !--left) return (u32)at;
  return ~0u;
}

static inline f32 min_f32(f32 a, f32 b) {
  union {
    f32 f;
    u32 u;
  } x = {a}, y = {b};
  if (a == b) x.u |= y.u;
  return b != b || a < b || a == b ? x.f : b;
}

static inline f32 max_f32(f32 a, f32 b) {
  union {
    f32 f;
    u32 u;
  } x = {a}, y = {b};
  if (a == b) x.u &= y.u;
  return b != b || a > b || a == b ? x.f : b;
}

static inline f64 high_word(f64 x) { /* the approximations of float64 give 20 bits of fraction */
  union {
    f64 f;
    u64 u;
  } y = {x};
  if (x == x) y.u &= ~UINT64_C(0xffffffff);
  return y.f;
}

#define SIXTEEN(p, to, from)                                                                       \
  static inline u16 p##_add(u16 a, u16 b) {                                                        \
    return from(fma_odd((f64)to(a), 1, (f64)to(b)), ROUND_N);                                      \
  }                                                                                                \
  static inline u16 p##_sub(u16 a, u16 b) {                                                        \
    return from(fma_odd((f64)to(a), 1, -(f64)to(b)), ROUND_N);                                     \
  }                                                                                                \
  static inline u16 p##_mul(u16 a, u16 b) { return from((f64)to(a) * (f64)to(b), ROUND_N); }       \
  static inline u16 p##_fma(u16 a, u16 b, u16 c) {                                                 \
    return from(fma_odd((f64)to(a), (f64)to(b), (f64)to(c)), ROUND_N);                             \
  }                                                                                                \
  static inline u16 p##_min(u16 a, u16 b) { return from((f64)min_f32(to(a), to(b)), ROUND_N); }    \
  static inline u16 p##_max(u16 a, u16 b) { return from((f64)max_f32(to(a), to(b)), ROUND_N); }
SIXTEEN(h, half_to_float, float_to_half)
SIXTEEN(b, bf16_to_float, float_to_bf16)

static inline u32 pair(u16 low, u16 high) { return (u32)high << 16 | low; }

#ifdef __clang__
#define LOOP for (int l = 0; l < LANES; l++)
#else /* a result may be in place of an operand, lane by lane */
#define LOOP _Pragma("GCC ivdep") for (int l = 0; l < LANES; l++)
#endif
#define OP1(id, words, class, D, A, value)                                                         \
  static void op_##id(void *pd, const void *pa, const void *pb, const void *pc) {                  \
    D *d = pd;                                                                                     \
    const A *va = pa;                                                                              \
    (void)pb, (void)pc;                                                                            \
    LOOP {                                                                                         \
      A a = va[l];                                                                                 \
      d[l] = (D)(value);                                                                           \
    }                                                                                              \
  }
#define OP2(id, words, class, D, A, B, value)                                                      \
  static void op_##id(void *pd, const void *pa, const void *pb, const void *pc) {                  \
    D *d = pd;                                                                                     \
    const A *va = pa;                                                                              \
    const B *vb = pb;                                                                              \
    (void)pc;                                                                                      \
    LOOP {                                                                                         \
      A a = va[l];                                                                                 \
      B b = vb[l];                                                                                 \
      d[l] = (D)(value);                                                                           \
    }                                                                                              \
  }
#define OP3(id, words, class, D, A, B, C, value)                                                   \
  static void op_##id(void *pd, const void *pa, const void *pb, const void *pc) {                  \
    D *d = pd;                                                                                     \
    const A *va = pa;                                                                              \
    const B *vb = pb;                                                                              \
    const C *vc = pc;                                                                              \
    LOOP {                                                                                         \
      A a = va[l];                                                                                 \
      B b = vb[l];                                                                                 \
      C c = vc[l];                                                                                 \
      (void)c;                                                                                     \
      d[l] = (D)(value);                                                                           \
    }                                                                                              \
  }
#include "ptx_ops.def"
#undef OP1
#undef OP2
#undef OP3

#define OP1(id, words, class, D, A, value)                                                         \
  {words, C_##class, op_##id, sizeof(D), sizeof(A), -1, -1},
#define OP2(id, words, class, D, A, B, value)                                                      \
  {words, C_##class, op_##id, sizeof(D), sizeof(A), sizeof(B), -1},
#define OP3(id, words, class, D, A, B, C, value)                                                   \
  {words, C_##class, op_##id, sizeof(D), sizeof(A), sizeof(B), sizeof(C)},
const AluForm forms_alu[] = {
#include "ptx_ops.def"
    {NULL, 0, NULL, 0, 0, 0, 0}};

/* ---- comparisons ---- */

/* The order of the words in setp's patterns (basic.c). */
#define ORDERED(X, T, R)                                                                           \
  X(eq, T, R, a == b)                                                                              \
  X(ne, T, R, (a < b) | (a > b))                                                                   \
  X(lt, T, R, a < b)                                                                               \
  X(le, T, R, a <= b)                                                                              \
  X(gt, T, R, a > b)                                                                               \
  X(ge, T, R, a >= b)
#define UNORDERED(X, T, R)                                                                         \
  X(equ, T, R, !((a < b) | (a > b)))                                                               \
  X(neu, T, R, a != b)                                                                             \
  X(ltu, T, R, !(a >= b))                                                                          \
  X(leu, T, R, !(a > b))                                                                           \
  X(gtu, T, R, !(a <= b))                                                                          \
  X(geu, T, R, !(a < b))                                                                           \
  X(num, T, R, (a == a) & (b == b))                                                                \
  X(nan, T, R, (a != a) | (b != b))
#define DEFINE(name, T, R, value)                                                                  \
  static u32 test_##name##_##T(const void *pa, const void *pb) {                                   \
    const R *va = pa, *vb = pb;                                                                    \
    u32 m = 0;                                                                                     \
    for (int l = 0; l < LANES; l++) {                                                              \
      __typeof__(LOAD_##T(va[l])) a = LOAD_##T(va[l]), b = LOAD_##T(vb[l]);                        \
      m |= (value) ? 1u << l : 0;                                                                  \
    }                                                                                              \
    return m;                                                                                      \
  }
#define LOAD_u16(x) (x)
#define LOAD_s16(x) (x)
#define LOAD_u32(x) (x)
#define LOAD_s32(x) (x)
#define LOAD_u64(x) (x)
#define LOAD_s64(x) (x)
#define LOAD_f32(x) (x)
#define LOAD_f64(x) (x)
#define LOAD_f16(x) half_to_float(x)
#define LOAD_bf16(x) bf16_to_float(x)
ORDERED(DEFINE, u16, u16)
ORDERED(DEFINE, s16, s16)
ORDERED(DEFINE, u32, u32)
ORDERED(DEFINE, s32, s32)
ORDERED(DEFINE, u64, u64)
ORDERED(DEFINE, s64, s64)
ORDERED(DEFINE, f32, f32)
ORDERED(DEFINE, f64, f64)
ORDERED(DEFINE, f16, u16)
ORDERED(DEFINE, bf16, u16)
UNORDERED(DEFINE, f32, f32)
UNORDERED(DEFINE, f64, f64)
UNORDERED(DEFINE, f16, u16)
UNORDERED(DEFINE, bf16, u16)

#define NAME(name, T, R, value) test_##name##_##T,
static const struct {
  TypeKind kind;
  int size;
  TestFn *fn[14];
} tests[] = {
    {KIND_UNSIGNED, 2, {ORDERED(NAME, u16, 0)}},
    {KIND_BITS, 2, {ORDERED(NAME, u16, 0)}},
    {KIND_SIGNED, 2, {ORDERED(NAME, s16, 0)}},
    {KIND_UNSIGNED, 4, {ORDERED(NAME, u32, 0)}},
    {KIND_BITS, 4, {ORDERED(NAME, u32, 0)}},
    {KIND_SIGNED, 4, {ORDERED(NAME, s32, 0)}},
    {KIND_UNSIGNED, 8, {ORDERED(NAME, u64, 0)}},
    {KIND_BITS, 8, {ORDERED(NAME, u64, 0)}},
    {KIND_SIGNED, 8, {ORDERED(NAME, s64, 0)}},
    {KIND_FLOAT, 4, {ORDERED(NAME, f32, 0) UNORDERED(NAME, f32, 0)}},
    {KIND_FLOAT, 8, {ORDERED(NAME, f64, 0) UNORDERED(NAME, f64, 0)}},
    {KIND_FLOAT, 2, {ORDERED(NAME, f16, 0) UNORDERED(NAME, f16, 0)}},
    {KIND_BFLOAT, 2, {ORDERED(NAME, bf16, 0) UNORDERED(NAME, bf16, 0)}},
};

TestFn *test_find(const Type *t, int cmp) {
  for (int i = 0; i < COUNT(tests); i++)
    if (tests[i].kind == t->kind && tests[i].size == t->size && t->lanes == 1)
      return tests[i].fn[cmp];
  return NULL;
}

/* ---- modifiers ---- */

static void flush(f32 *to, const void *from) {
  memcpy(to, from, LANES * sizeof *to);
  for (int l = 0; l < LANES; l++)
    if (fpclassify(to[l]) == FP_SUBNORMAL) to[l] = copysignf(0, to[l]);
}

static const int modes[] = {
    [ROUND_Z] = FE_TOWARDZERO, [ROUND_M] = FE_DOWNWARD, [ROUND_P] = FE_UPWARD};

static void clamp16(const Insn *i, u16 *h, int n) {
  for (int l = 0; l < n; l++) {
    f32 x = i->kind == KIND_BFLOAT ? bf16_to_float(h[l]) : half_to_float(h[l]);
    f32 y = i->mods & MOD_SAT ? (x > 0 ? (x < 1 ? x : 1) : 0) : x > 0 || x != x ? x : 0;
    h[l] = i->kind == KIND_BFLOAT ? float_to_bf16((f64)y, ROUND_N) : float_to_half((f64)y, ROUND_N);
  }
}

void alu_wrap(const Insn *i, void *d, const void *a, const void *b, const void *c) {
  f32 x[3][LANES], *y = d;
  bool single = i->size == 4 && i->n == 1 && i->kind == KIND_FLOAT,
       ftz = single && i->mods & MOD_FTZ;
  if (ftz) {
    const void **in[] = {&a, &b, &c};
    const int32_t at[] = {i->a, i->b, i->c};
    for (int k = 0; k < 3; k++)
      if (at[k] >= 0) flush(x[k], *in[k]), *in[k] = x[k];
  }
  u32 nan = 0;
  if (single && i->mods & MOD_NAN) {
    const f32 *va = a, *vb = b;
    for (int l = 0; l < LANES; l++)
      if (va[l] != va[l] || vb[l] != vb[l]) nan |= 1u << l;
  }
  if (i->round > ROUND_N) fesetround(modes[i->round]);
  i->alu(d, a, b, c);
  if (i->round > ROUND_N) fesetround(FE_TONEAREST);
  if (ftz) flush(y, d);
  for (int l = 0; l < LANES && nan; l++)
    if (nan >> l & 1) y[l] = NAN;
  if (single && i->mods & MOD_SAT)
    for (int l = 0; l < LANES; l++) y[l] = y[l] > 0 ? (y[l] < 1 ? y[l] : 1) : 0;
  if (!single && i->kind != KIND_SIGNED && i->size <= 4 && i->mods & (MOD_SAT | MOD_RELU))
    clamp16(i, d, LANES * i->size / 2);
}
