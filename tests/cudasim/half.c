/* 16-bit floats as bits: f16 (IEEE binary16) and bf16, rounded from double. */
#include "sim.h"
#include <math.h>

union Bits {
  float f;
  uint32_t u;
};

float half_to_float(uint16_t h) {
  uint32_t sign = (uint32_t)(h & 0x8000) << 16, e = h >> 10 & 31, m = h & 0x3ff;
  union Bits x;
  if (e == 31) {
    x.u = sign | 0x7f800000u | m << 13;
  } else if (e) {
    x.u = sign | (e + 112) << 23 | m << 13;
  } else {
    x.f = (float)m * 0x1p-24f;
    x.u |= sign;
  }
  return x.f;
}

/* |x| = m * 2^e with m an integer of the format's precision, by the rounding mode. */
static double round_to(double x, int digits, int e_min, Round r) {
  int e;
  frexp(x, &e);
  if (e < e_min) e = e_min;
  double unit = ldexp(1, e - digits), q = x / unit; /* exact: powers of two */
  switch (r) {
  case ROUND_Z: q = trunc(q); break;
  case ROUND_M: q = floor(q); break;
  case ROUND_P: q = ceil(q); break;
  case ROUND_NA: q = round(q); break;
  default: q = nearbyint(q);
  }
  return q * unit;
}

uint16_t float_to_half(double x, Round r) {
  uint16_t sign = signbit(x) ? 0x8000 : 0;
  if (isnan(x)) return 0x7fff;
  if (isinf(x)) return sign | 0x7c00;
  double y = fabs(round_to(x, 11, -13, r));
  if (y > 65504) {
    bool largest = r == ROUND_Z || (r == ROUND_M && !sign) || (r == ROUND_P && sign);
    return sign | (largest ? 0x7bff : 0x7c00);
  }
  if (y < 0x1p-14) return (uint16_t)(sign | (uint16_t)(y * 0x1p24));
  int e;
  double m = frexp(y, &e);
  return (uint16_t)(sign | (uint16_t)((e + 14) << 10) | ((uint16_t)(m * 2048) & 0x3ff));
}

uint16_t float_to_bf16(double x, Round r) {
  union Bits f;
  if (isnan(x)) return 0x7fff;
  double y = isinf(x) ? x : round_to(x, 8, -125, r);
  if (fabs(y) > 0x1.fep127 && !isinf(x) &&
      (r == ROUND_Z || (r == ROUND_M && x > 0) || (r == ROUND_P && x < 0)))
    y = copysign(0x1.fep127, x);
  f.f = (float)y;
  return (uint16_t)(f.u >> 16);
}

double fma_odd(double a, double b, double c) {
  double p = a * b; /* exact for products of 16-bit floats */
  double s = p + c, v = s - p, error = (p - (s - v)) + (c - v);
  union {
    double d;
    uint64_t u;
  } x = {s};
  if (error != 0 && !(x.u & 1) && isfinite(s)) x.u += (error > 0) == (s > 0) ? 1 : (uint64_t)-1;
  return x.d;
}
