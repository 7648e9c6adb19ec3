/* exp, log, tanh, erf, sin and pow as straight-line code on scalars, which the loop vectoriser widens like any other
 * arithmetic; the same code serves float32, float64, the CPU and the GPU. Range reduction after Cody and Waite; the
 * polynomials are minimax fits (Remez) of the functions named at the tables. NaN passes through everything. Errors that
 * tests/test_codegen.c measures: float32 at most 2 ulp (erf: 1), float64 about 1e-15 (pow: 1e-13, sin: absolute). */
#include "gen.h"
#include <math.h>

typedef struct Poly {
  int n;
  const double *c;
} Poly; /* c[0] + c[1] x + ... */
#define POLY(...)                                                                                  \
  {                                                                                                \
    (int)(sizeof((double[]){__VA_ARGS__}) / sizeof(double)), (const double[]) { __VA_ARGS__ }      \
  }

/* By width: [0] float32, [1] float64. */
static const Poly exp_poly[2] = {
    /* (e^x - 1 - x) / x^2, |x| <= ln2/2 */
    POLY(5.00000009579e-1, 1.6666518837e-1, 4.16662041052e-2, 8.36888973049e-3, 1.39505905367e-3),
    POLY(5.0000000000000010224e-1, 1.666666666666667453e-1, 4.1666666666624118887e-2,
         8.3333333333222072959e-3, 1.3888888917217456865e-3, 1.984126988659099934e-4,
         2.4801521290973346037e-5, 2.7557242336680357124e-6, 2.7620090518499429412e-7,
         2.5110049895858716253e-8)};
static const Poly log_poly[2] = {
    /* float32: (log(1+f) - f + f^2/2) / f^3, sqrt(1/2) <= 1+f < sqrt(2) */
    POLY(3.3333316723e-1, -2.50008102943e-1, 2.00022863001e-1, -1.66245559905e-1, 1.41811923875e-1,
         -1.31287472262e-1, 1.28816463448e-1, -7.85961512654e-2),
    /* float64: (atanh(s)/s - 1) / s^2 of s^2, s = f / (2+f) */
    POLY(3.3333333333333348634e-1, 1.9999999999949254463e-1, 1.4285714313185314974e-1,
         1.1111105538729550539e-1, 9.0914464424189097634e-2, 7.6658039990282414718e-2,
         7.3088683950365004671e-2)};
static const Poly tanh_poly[2] = {
    /* (tanh(x)/x - 1) / x^2 of x^2, |x| <= 0.625 and 0.55 */
    POLY(-3.33333331836e-1, 1.33333049988e-1, -5.39595522395e-2, 2.17710031836e-2,
         -8.35001547337e-3, 2.29893770934e-3),
    POLY(-3.3333333333333332604e-1, 1.3333333333332743368e-1, -5.3968253967465008912e-2,
         2.18694884949734548e-2, -8.8632344257982201783e-3, 3.5921107231089427484e-3,
         -1.4556644116535735306e-3, 5.8894803115168322475e-4, -2.3466834023180076344e-4,
         8.5165321396566488938e-5, -2.0637217762370822924e-5)};
static const double tanh_split[2] = {0.625, 0.55}, tanh_one[2] = {9.5, 20};
static const Poly erf_poly[2] = {
    /* erf(x)/x - 1 of x^2, |x| <= 1.15 and 1 */
    POLY(1.283791583e-1, -3.76125757884e-1, 1.12830403268e-1, -2.6832160086e-2, 5.14947365891e-3,
         -7.68884541178e-4, 6.85635737177e-5),
    POLY(1.2837916709551257390e-1, -3.7612638903183752381e-1, 1.128379167095512036e-1,
         -2.6866170645129868152e-2, 5.2239776254236103963e-3, -8.5483270219560250351e-4,
         1.205533290381260112e-4, -1.492564759449785383e-5, 1.6462045980557631378e-6,
         -1.63646495514651601e-7, 1.4792469644520129023e-8, -1.2164968617165561075e-9,
         8.7104653366504727423e-11, -4.2331295286795806355e-12)};
static const Poly erfc_poly[2] = {
    /* float32: erfc(x)^(1/4), 1.15 <= x <= 4, the error of erfc(x) even; float64: erfc(x) e^(x^2) of 4/(x+4), 1 <= x <= 6 */
    POLY(1.00580966761, -3.10007087791e-1, -6.14087105375e-2, -5.22956044869e-2, 6.70840136115e-2,
         -2.25131387293e-2, 3.28501885138e-3, -1.83113048158e-4),
    POLY(-6.5002287250543409871e-5, 1.4251456506165753042e-1, 1.2572095017414697633e-1,
         2.348285494604871923e-1, -3.0294337197816912327e-1, 1.4827716804921488916,
         -3.1372871465007324755, 5.863162832419891035, -7.7413650095979354784,
         7.9011128391913720619, -5.6934600861459995818, 2.8527511168731242431,
         -8.3046075277729099951e-1, 1.0271883661159142486e-1)};
static const double erf_split[2] = {1.15, 1}, erf_one[2] = {4, 6};
static const Poly sin_poly[2] = {
    /* (sin(x)/x - 1) / x^2 of x^2, |x| <= pi/2 */
    POLY(-1.66666595454e-1, 8.33306609427e-3, -1.98095904944e-4, 2.60575088649e-6),
    POLY(-1.6666666666666666633e-1, 8.3333333333333158838e-3, -1.9841269841254981485e-4,
         2.755731921916462842e-6, -2.5052107617102027184e-8, 1.6058977315447118372e-10,
         -7.6439702872495306395e-13, 2.7314435281556516786e-15)};

static bool wide(Gen *g, LLVMTypeRef t) { return t == g->f64; }
static Val num(LLVMTypeRef t, double v) { return LLVMConstReal(t, v); }
static Val add(Gen *g, Val x, Val y) { return LLVMBuildFAdd(g->b, x, y, ""); }
static Val sub(Gen *g, Val x, Val y) { return LLVMBuildFSub(g->b, x, y, ""); }
static Val mul(Gen *g, Val x, Val y) { return LLVMBuildFMul(g->b, x, y, ""); }
static Val neg(Gen *g, Val x) { return LLVMBuildFNeg(g->b, x, ""); }
static Val sel(Gen *g, Val c, Val x, Val y) { return LLVMBuildSelect(g->b, c, x, y, ""); }
static Val cmp(Gen *g, LLVMRealPredicate p, Val x, Val y) {
  return LLVMBuildFCmp(g->b, p, x, y, "");
}

Val math_fma(Gen *g, LLVMTypeRef t, Val x, Val y, Val z) {
  if (!g->fma) return add(g, mul(g, x, y), z);
  return gen_call(g, "llvm.fma", t, 3, (Val[]){x, y, z});
}

static Val poly(Gen *g, LLVMTypeRef t, const Poly *p, Val x) {
  Val r = num(t, p->c[p->n - 1]);
  for (int i = p->n - 2; i >= 0; i--) r = math_fma(g, t, r, x, num(t, p->c[i]));
  return r;
}

static LLVMTypeRef bits_type(Gen *g, LLVMTypeRef t) { return wide(g, t) ? g->i64 : g->i32; }
static Val bits(Gen *g, LLVMTypeRef t, Val x) {
  return LLVMBuildBitCast(g->b, x, bits_type(g, t), "");
}
static Val word(Gen *g, LLVMTypeRef t, uint64_t v) { return LLVMConstInt(bits_type(g, t), v, 0); }

/* 2^n for an integer n in the exponent range of normal numbers. */
static Val power2(Gen *g, LLVMTypeRef t, Val n) {
  Val e = LLVMBuildAdd(g->b, n, word(g, t, wide(g, t) ? 1023 : 127), "");
  return LLVMBuildBitCast(g->b, LLVMBuildShl(g->b, e, word(g, t, wide(g, t) ? 52 : 23), ""), t, "");
}

/* e^x as *p * 2^*n: x = n ln2 + r, |r| <= ln2/2. Adding 1.5*2^23 (2^52) rounds to an integer and leaves it in the low bits. */
static void exp_parts(Gen *g, LLVMTypeRef t, Val x, Val *p, Val *n) {
  bool w = wide(g, t);
  Val magic = num(t, w ? 0x1.8p52 : 0x1.8p23);
  Val m = math_fma(g, t, x, num(t, 1.44269504088896340736), magic), whole = sub(g, m, magic);
  *n = LLVMBuildSub(g->b, bits(g, t, m), bits(g, t, magic), "");
  Val r = math_fma(g, t, whole, num(t, w ? -0x1.62e42fefa38p-1 : -0x1.62e4p-1), x);
  r = math_fma(g, t, whole, num(t, w ? -0x1.ef35793c7673p-45 : -0x1.7f7d1cf79abcap-20), r);
  *p = math_fma(g, t, mul(g, poly(g, t, &exp_poly[w], r), r), r, r);
  *p = add(g, *p, num(t, 1));
}

/* The scaling is done in two steps, so that overflow and denormal results come out right. */
Val math_exp(Gen *g, LLVMTypeRef t, Val x) {
  bool w = wide(g, t);
  Val hi = num(t, w ? 710 : 89), lo = num(t, w ? -746 : -104.5), p, n;
  x = sel(g, cmp(g, LLVMRealOGT, x, hi), hi, x);
  x = sel(g, cmp(g, LLVMRealOLT, x, lo), lo, x);
  exp_parts(g, t, x, &p, &n);
  Val half = LLVMBuildAShr(g->b, n, word(g, t, 1), ""), rest = LLVMBuildSub(g->b, n, half, "");
  return mul(g, mul(g, p, power2(g, t, half)), power2(g, t, rest));
}

/* The same where the result is a normal number. */
static Val exp_normal(Gen *g, LLVMTypeRef t, Val x) {
  Val p, n;
  exp_parts(g, t, x, &p, &n);
  return mul(g, p, power2(g, t, n));
}

/* log of the mantissa in sqrt(1/2)..sqrt(2) plus exponent times ln2. */
Val math_log(Gen *g, LLVMTypeRef t, Val x) {
  bool w = wide(g, t);
  LLVMBuilderRef b = g->b;
  Val tiny = cmp(g, LLVMRealOLT, x, num(t, w ? 0x1p-1022 : 0x1p-126));
  Val y = sel(g, tiny, mul(g, x, num(t, w ? 0x1p54 : 0x1p25)), x);
  Val root = word(g, t, w ? 0x3fe6a09e667f3bcdu : 0x3f3504f3), shift = word(g, t, w ? 52 : 23);
  Val u = LLVMBuildSub(b, bits(g, t, y), root, "");
  Val e = LLVMBuildAShr(b, u, shift, "");
  e = LLVMBuildSub(b, e, LLVMBuildSelect(b, tiny, word(g, t, w ? 54 : 25), word(g, t, 0), ""), "");
  Val mant = LLVMBuildAnd(b, u, word(g, t, w ? 0xfffffffffffffu : 0x7fffff), "");
  Val f = LLVMBuildBitCast(b, LLVMBuildAdd(b, mant, root, ""), t, "");
  f = sub(g, f, num(t, 1));
  Val n = LLVMBuildSIToFP(b, e, t, ""), f2 = mul(g, f, f), r;
  if (w) { /* s = f/(2+f): log(1+f) = 2 atanh(s) = f - s (f - 2 s^2 P) */
    Val s = LLVMBuildFDiv(b, f, add(g, f, num(t, 2)), ""), z = mul(g, s, s);
    Val p2 = mul(g, mul(g, z, num(t, 2)), poly(g, t, &log_poly[1], z));
    r = neg(g, mul(g, s, sub(g, f, p2)));
  } else {
    r = math_fma(g, t, mul(g, f2, f), poly(g, t, &log_poly[0], f), mul(g, f2, num(t, -0.5)));
  }
  r = math_fma(g, t, n, num(t, w ? 0x1.ef35793c7673p-45 : 0x1.7f7d1cf79abcap-20), r);
  r = math_fma(g, t, n, num(t, w ? 0x1.62e42fefa38p-1 : 0x1.62e4p-1), add(g, f, r));
  r = sel(g, cmp(g, LLVMRealOEQ, x, num(t, INFINITY)), x, r);
  r = sel(g, cmp(g, LLVMRealOEQ, x, num(t, 0)), num(t, -INFINITY), r);
  Val ok = cmp(g, LLVMRealOGE, x, num(t, 0)); /* false: negative or NaN */
  return sel(g, ok, r, num(t, NAN));
}

static Val with_sign(Gen *g, LLVMTypeRef t, Val magnitude, Val sign) {
  return gen_call(g, "llvm.copysign", t, 2, (Val[]){magnitude, sign});
}

static Val magnitude(Gen *g, LLVMTypeRef t, Val x) { return gen_call(g, "llvm.fabs", t, 1, &x); }

/* x + x^3 P(x^2) near 0, else 1 - 2 / (e^2|x| + 1). */
Val math_tanh(Gen *g, LLVMTypeRef t, Val x) {
  bool w = wide(g, t);
  Val a = magnitude(g, t, x), z = mul(g, x, x), one = num(t, 1), top = num(t, tanh_one[w]);
  Val small = math_fma(g, t, mul(g, poly(g, t, &tanh_poly[w], z), z), x, x);
  Val c = sel(g, cmp(g, LLVMRealOGT, a, top), top, a);
  Val e = exp_normal(g, t, add(g, c, c));
  Val big = sub(g, one, LLVMBuildFDiv(g->b, num(t, 2), add(g, e, one), ""));
  big = with_sign(g, t, big, x);
  return sel(g, cmp(g, LLVMRealOLT, a, num(t, tanh_split[w])), small, big);
}

/* x + x P(x^2) near 0, else 1 - erfc. */
Val math_erf(Gen *g, LLVMTypeRef t, Val x) {
  bool w = wide(g, t);
  Val a = magnitude(g, t, x), top = num(t, erf_one[w]), one = num(t, 1), big;
  Val small = math_fma(g, t, x, poly(g, t, &erf_poly[w], mul(g, x, x)), x);
  Val c = sel(g, cmp(g, LLVMRealOGT, a, top), top, a);
  if (w) {
    Val s = LLVMBuildFDiv(g->b, num(t, 4), add(g, c, num(t, 4)), "");
    Val e = exp_normal(g, t, neg(g, mul(g, c, c)));
    big = sub(g, one, mul(g, poly(g, t, &erfc_poly[1], s), e));
  } else {
    Val q = poly(g, t, &erfc_poly[0], c), q2 = mul(g, q, q);
    big = math_fma(g, t, neg(g, q2), q2, one);
  }
  big = with_sign(g, t, big, x);
  return sel(g, cmp(g, LLVMRealOLT, a, num(t, erf_split[w])), small, big);
}

/* x = n pi + r, |r| <= pi/2, reduced in double with pi in three parts; sin(x) = (-1)^n sin(r). */
Val math_sin(Gen *g, LLVMTypeRef t, Val x) {
  bool w = wide(g, t);
  LLVMTypeRef d = g->f64;
  if (!w) x = LLVMBuildFPExt(g->b, x, d, "");
  Val q = mul(g, x, num(d, 0.31830988618379067154));
  Val n = gen_call(g, "llvm.rint", d, 1, &q);
  Val r = math_fma(g, d, n, num(d, -0x1.921fb54442d18p+1), x);
  r = math_fma(g, d, n, num(d, -0x1.1a62633145c07p-53), r);
  Val h = mul(g, n, num(d, 0.5)), fl = gen_call(g, "llvm.floor", d, 1, &h);
  Val odd = cmp(g, LLVMRealONE, h, fl);
  r = sel(g, odd, neg(g, r), r);
  Val lim = num(d, 1.5707963267948966), low = num(d, -1.5707963267948966);
  r = sel(g, cmp(g, LLVMRealOGT, r, lim), lim, r); /* only beyond 2^50 */
  r = sel(g, cmp(g, LLVMRealOLT, r, low), low, r);
  if (!w) r = LLVMBuildFPTrunc(g->b, r, t, "");
  Val z = mul(g, r, r);
  return math_fma(g, t, mul(g, poly(g, t, &sin_poly[w], z), z), r, r);
}

/* The exponents that programs write: a few multiplications. NULL: not one of them. */
static Val constant_power(Gen *g, LLVMTypeRef t, Val x, Val y) {
  LLVMBool lost;
  if (!LLVMIsAConstantFP(y)) return NULL;
  double e = LLVMConstRealGetDouble(y, &lost);
  if (e == 0) return num(t, 1);
  if (e == 1) return x;
  if (e == 2) return mul(g, x, x);
  if (e == 3) return mul(g, mul(g, x, x), x);
  if (e == -1) return LLVMBuildFDiv(g->b, num(t, 1), x, "");
  return NULL;
}

/* e^(y log|x|), in double also for float32, and the sign of odd integer powers. */
Val math_pow(Gen *g, LLVMTypeRef t, Val x, Val y) {
  LLVMTypeRef d = g->f64;
  Val easy = constant_power(g, t, x, y);
  if (easy) return easy;
  if (!wide(g, t)) x = LLVMBuildFPExt(g->b, x, d, ""), y = LLVMBuildFPExt(g->b, y, d, "");
  Val one = num(d, 1), zero = num(d, 0), a = magnitude(g, d, x), h = mul(g, y, num(d, 0.5));
  Val r = math_exp(g, d, mul(g, y, math_log(g, d, a)));
  Val fy = gen_call(g, "llvm.floor", d, 1, &y), fh = gen_call(g, "llvm.floor", d, 1, &h);
  Val whole = cmp(g, LLVMRealOEQ, fy, y),
      odd = LLVMBuildAnd(g->b, whole, cmp(g, LLVMRealONE, fh, h), "");
  Val infinite = cmp(g, LLVMRealOEQ, a, num(d, INFINITY)), below = cmp(g, LLVMRealOLT, x, zero);
  Val finite_below = LLVMBuildAnd(g->b, below, LLVMBuildNot(g->b, infinite, ""), "");
  r = sel(g, odd, with_sign(g, d, r, x), r);
  r = sel(g, LLVMBuildAnd(g->b, finite_below, LLVMBuildNot(g->b, whole, ""), ""), num(d, NAN), r);
  Val unit = LLVMBuildAnd(g->b, cmp(g, LLVMRealOEQ, a, one),
                          cmp(g, LLVMRealOEQ, magnitude(g, d, y), num(d, INFINITY)), "");
  Val sure = LLVMBuildOr(g->b, cmp(g, LLVMRealOEQ, x, one), cmp(g, LLVMRealOEQ, y, zero), "");
  r = sel(g, LLVMBuildOr(g->b, sure, unit, ""), one, r);
  return wide(g, t) ? r : LLVMBuildFPTrunc(g->b, r, t, "");
}
