/* Elements of matrices and images as doubles. */
#include "api.h"
#include <math.h>
#include <string.h>

size_t number_size(Number t) { return t == NUMBER_DOUBLE ? 8 : t == NUMBER_FLOAT ? 4 : 2; }

static double of_half(uint16_t h) {
  int e = h >> 10 & 31, m = h & 1023;
  double v = e == 31 ? (m ? NAN : INFINITY) : e ? ldexp(1024 + m, e - 25) : ldexp(m, -24);
  return h >> 15 ? -v : v;
}

/* To nearest, ties to even: steps of 2^(e - 10), at least 2^-24. */
static uint16_t to_half(double v) {
  uint16_t sign = signbit(v) ? 0x8000 : 0;
  int e;
  if (isnan(v)) return sign | 0x7e00;
  v = fabs(v);
  frexp(v, &e);
  int step = e - 11 < -24 ? -24 : e - 11;
  double n = nearbyint(ldexp(v, -step));
  if (isinf(v) || ldexp(n, step) > 65504) return sign | 0x7c00;
  return (uint16_t)(sign | (n < 1024 ? (int)n : (int)n + (step + 24) * 1024));
}

static float of_bits(uint32_t b) {
  float f;
  memcpy(&f, &b, 4);
  return f;
}

/* The float with the lower `drop` bits rounded to nearest, ties to even. */
static uint32_t rounded(double v, int drop) {
  float f = (float)v;
  uint32_t b;
  memcpy(&b, &f, 4);
  if (isnan(v) || isinf(v)) return b;
  b += (1u << (drop - 1)) - 1 + (b >> drop & 1);
  return b >> drop << drop;
}

double number_get(Number t, const void *p, int64_t i) {
  switch (t) {
  case NUMBER_DOUBLE: return ((const double *)p)[i];
  case NUMBER_HALF: return of_half(((const uint16_t *)p)[i]);
  case NUMBER_BFLOAT: return of_bits((uint32_t)((const uint16_t *)p)[i] << 16);
  default: return ((const float *)p)[i];
  }
}

void number_set(Number t, void *p, int64_t i, double v) {
  switch (t) {
  case NUMBER_DOUBLE: ((double *)p)[i] = v; break;
  case NUMBER_HALF: ((uint16_t *)p)[i] = to_half(v); break;
  case NUMBER_BFLOAT: ((uint16_t *)p)[i] = (uint16_t)(rounded(v, 16) >> 16); break;
  default: ((float *)p)[i] = (float)v;
  }
}

double number_round(double v, int how) {
  return how == ROUND_TF32   ? of_bits(rounded(v, 13))
         : how == ROUND_BF16 ? of_bits(rounded(v, 16))
                             : v;
}
