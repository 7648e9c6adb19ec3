/* Special functions: modified Bessel functions of the first kind, and polygamma.
 *
 * Bessel: e^-|x| I_n(x) by the power series up to |x| = 18, which has no cancellation, and behind it
 * by the asymptotic series (Abramowitz and Stegun, 9.6.10 and 9.7.1). Polygamma: the Hurwitz zeta
 * function, by recurrence to x + 8 and the Euler-Maclaurin formula there (same, 6.4.11). */
#include "ops.h"

#include <math.h>

enum { POWER_TERMS = 36, FAR_TERMS = 24, SHIFT = 8 };
#define FAR 18.0

/* c[0] + v (c[1] + v (c[2] + ...)) */
static Node *horner(Graph *g, Node *v, int n, const double *c) {
  Node *s = v ? g_full(g, v->dtype, c[n - 1], v->rank, v->dims) : NULL;
  for (int i = n - 2; i >= 0; i--) s = ops_plus(g, ops_mul(g, s, v), c[i]);
  return s;
}

/* e^-|x| I_n(x), n = 0 or 1 */
static bool bessel(Expand *x, int n) {
  Graph *g = x->g;
  Node *v = x_in(x, "x");
  double near[POWER_TERMS], far[FAR_TERMS];
  if (!ops_float(v, "x")) return false;
  near[0] = far[0] = 1;
  for (int k = 1; k < POWER_TERMS; k++) near[k] = near[k - 1] * FAR * FAR / 4 / k / (k + n);
  for (int k = 1; k < FAR_TERMS; k++)
    far[k] = far[k - 1] * ((2 * k - 1) * (2 * k - 1) - 4 * n * n) / (8 * k) / FAR;
  Node *zero = g_const(g, v->dtype, 0), *minus = g_map2(g, P_LT, v, zero);
  Node *a = g_select(g, minus, ops_sub(g, zero, v), v); /* |x| */
  Node *is_near = g_map2(g, P_LE, a, g_const(g, v->dtype, FAR));
  Node *u = ops_times(g, g_map2c(g, P_MIN, a, FAR), 1 / FAR);
  Node *w = ops_div(g, g_const(g, v->dtype, FAR), g_map2c(g, P_MAX, a, FAR));
  Node *inner = ops_mul(g, horner(g, ops_mul(g, u, u), POWER_TERMS, near),
                        g_map1(g, P_EXP, ops_times(g, u, -FAR)));
  if (n == 1) inner = ops_mul(g, inner, ops_times(g, u, FAR / 2));
  Node *root = g_map1(g, P_SQRT, ops_times(g, w, 1 / (FAR * 2 * 3.14159265358979324)));
  Node *y = g_select(g, is_near, inner, ops_mul(g, horner(g, w, FAR_TERMS, far), root));
  return x_out(x, "out", n == 1 ? g_select(g, minus, ops_times(g, y, -1), y) : y);
}

bool x_i0e(Expand *x) { return bessel(x, 0); }
bool x_i1e(Expand *x) { return bessel(x, 1); }

/* The sum of (v + k)^-s over k = 0, 1, 2, ..., for v > 0 and s > 1. */
static Node *hurwitz(Graph *g, Node *v, double s) {
  static const double bernoulli[] = {1.0 / 6, -1.0 / 30, 1.0 / 42, -1.0 / 30, 5.0 / 66};
  double c[5], factor = s / 2; /* s (s+1) ... (s+2j) / (2j+2)! */
  for (int j = 0; j < 5; j++) {
    c[j] = bernoulli[j] * factor;
    factor *= (s + 2 * j + 1) * (s + 2 * j + 2) / (2 * j + 3) / (2 * j + 4);
  }
  Node *sum = ops_zeros(g, v);
  for (int k = 0; k < SHIFT; k++) sum = ops_add(g, sum, g_map2c(g, P_POW, ops_plus(g, v, k), -s));
  Node *z = ops_plus(g, v, SHIFT), *p = g_map2c(g, P_POW, z, -s);
  Node *w = z ? ops_div(g, g_const(g, z->dtype, 1), z) : NULL;
  Node *tail =
      ops_add(g, ops_times(g, z, 1 / (s - 1)), ops_mul(g, w, horner(g, ops_mul(g, w, w), 5, c)));
  return ops_add(g, sum, ops_mul(g, p, ops_plus(g, tail, 0.5)));
}

bool x_polygamma(Expand *x) {
  Graph *g = x->g;
  Node *v = x_in(x, "x");
  int64_t n = op_int(x->op, "n");
  if (!ops_float(v, "x")) return false;
  if (n < 1 || n > 100) {
    err_set(E_OPR_003, "n is %lld", (long long)n);
    err_help("n must be in 1..100; of 0 it is digamma.");
    return false;
  }
  Node *y = ops_times(g, hurwitz(g, v, (double)n + 1),
                      n % 2 ? tgamma((double)n + 1) : -tgamma((double)n + 1));
  return x_out(x, "out", y);
}
