/* Random draws from given values: samples of categories, numbers in the shape of an input.
 *
 * In: an operator with X. Out: its expansion. A category is drawn by where a uniform number falls among the cumulated
 * probabilities; several different ones are those of the largest log(u) / p (P. Efraimidis and P. Spirakis, "Weighted
 * random sampling with a reservoir", 2006); Gumbel noise is -log(-log(u)). */
#include "ops.h"
#include <math.h>

static Node *uniform_like(Expand *x, const Node *v, int k) {
  bool has = opdef_attr(x->op->def, "seed") != NULL;
  int64_t seed = has ? op_int(x->op, "seed") : 0;
  return g_random(x->g, v->dtype, v->rank, v->dims, seed, x_stream(x, k), seed != 0);
}

/* [N, C] -> [N, C]: the sums up to each category. */
static Node *cumulated(Graph *g, Node *p) {
  int64_t c = p->dims[1], step = 1, lo = c - 1, hi = 0;
  return g_reduce(g, P_RSUM, g_window(g, p, 1, 1, &c, &step, &step, &lo, &hi, 0), 4, false);
}

/* How many of the sums [N, 1, C] are at most u [N, S, 1]: [N, S] in 0..C-1 */
static Node *category(Graph *g, Node *sums, Node *u) {
  Node *past = sums && u ? g_cast(g, g_map2(g, P_LE, sums, u), DT_INT64) : NULL;
  if (!past) return NULL;
  return g_map2c(g, P_MIN, g_reduce(g, P_RSUM, past, 4, false), (double)(past->dims[2] - 1));
}

static Node *with_replacement(Expand *x, Node *p, int64_t n, int64_t s) {
  Graph *g = x->g;
  Node *sums = cumulated(g, p),
       *u = g_random(g, p->dtype, 3, (int64_t[]){n, s, 1}, 0, x_stream(x, 0), false);
  Node *all = g_reduce(g, P_RSUM, p, 2, false);
  u = ops_mul(g, u, g_reshape(g, all, 3, (int64_t[]){n, 1, 1}));
  return category(g, g_reshape(g, sums, 3, (int64_t[]){n, 1, p->dims[1]}), u);
}

static Node *without_replacement(Expand *x, Node *p, int64_t s) {
  Graph *g = x->g;
  Node *positive = g_map2(g, P_LT, g_const(g, p->dtype, 0), p);
  Node *key = ops_div(g, g_map1(g, P_LOG, uniform_like(x, p, 0)), p);
  key = g_select(g, positive, key, g_const(g, p->dtype, -INFINITY));
  Node *at = g_argsort(g, key, true);
  return at ? ops_cut(g, at, 1, 0, 1, s) : NULL;
}

/* [N, 1]: 0, if every row has at least `least` categories of positive probability and none that is negative or NaN. */
static Node *checked(Graph *g, Node *p, int64_t least) {
  Node *zero = g_const(g, p->dtype, 0);
  Node *fits = g_cast(g, g_map2(g, P_LE, zero, p), DT_INT64);
  Node *n = g_cast(g, g_map2(g, P_LT, zero, p), DT_INT64);
  if (!fits || !n) return NULL;
  n = ops_mul(g, g_reduce(g, P_RSUM, n, 2, true), g_reduce(g, P_RPROD, fits, 2, true));
  return ops_times(g, g_check(g, n, least, p->dims[1] + 1, false, 0, E_DAT_002), 0);
}

bool x_multinomial(Expand *x) {
  Graph *g = x->g;
  Node *p = x_in(x, "X");
  int64_t s = op_int(x->op, "num_samples");
  bool again = op_bool(x->op, "replacement");
  if (!ops_rank(p, "X", 1, 2) || !ops_float(p, "X")) return false;
  int64_t n = p->rank == 2 ? p->dims[0] : 1, c = p->dims[p->rank - 1];
  if (s < 1 || s > INT32_MAX) return err_set(E_OPR_003, "num_samples is %lld", (long long)s);
  if (!again && c >= 0 && s > c) {
    err_set(E_OPR_003, "num_samples is %lld, X has %lld categories", (long long)s, (long long)c);
    err_help("Set replacement, or draw fewer.");
    return false;
  }
  int64_t dims[] = {n, s}, *shape = dims + 2 - p->rank;
  int rank = p->rank;
  if (n < 0 || c < 0 || n == 0) return x_out(x, "Out", ops_blank(g, DT_INT64, rank, shape));
  if (c == 0) return err_set(E_SHP_005, "X has no categories");
  p = g_reshape(g, p, 2, (int64_t[]){n, c});
  if (!p) return false;
  Node *at = again ? with_replacement(x, p, n, s) : without_replacement(x, p, s);
  at = ops_add(g, at, checked(g, p, again ? 1 : s));
  return at && x_out(x, "Out", g_reshape(g, at, rank, shape));
}

bool x_sampling_id(Expand *x) {
  Graph *g = x->g;
  Node *p = x_in(x, "X");
  double lo = op_float(x->op, "min"), hi = op_float(x->op, "max");
  int64_t seed = op_int(x->op, "seed");
  if (!ops_rank(p, "X", 2, 2) || !ops_float(p, "X")) return false;
  int64_t n = p->dims[0], c = p->dims[1];
  if (!ops_known(p) || n == 0) return x_out(x, "Out", ops_blank(g, DT_INT64, 1, &n));
  if (c == 0) return err_set(E_SHP_005, "X has no categories");
  Node *u = g_random(g, p->dtype, 3, (int64_t[]){n, 1, 1}, seed, x_stream(x, 0), seed != 0);
  u = ops_plus(g, ops_times(g, u, hi - lo), lo);
  Node *at = category(g, g_reshape(g, cumulated(g, p), 3, (int64_t[]){n, 1, c}), u);
  return at && x_out(x, "Out", g_reshape(g, at, 1, &n));
}

bool x_gumbel_softmax(Expand *x) {
  Graph *g = x->g;
  Node *v = x_in(x, "X");
  double heat = op_float(x->op, "temperature");
  int axis;
  if (!v || !ops_float(v, "X") || !ops_axis("axis", op_int(x->op, "axis"), v->rank, &axis))
    return false;
  if (!(heat > 0)) return err_set(E_OPR_003, "temperature is %g", heat);
  if (!ops_known(v)) return x_out(x, "Out", ops_blank_like(g, v));
  Node *u = g_map1(g, P_LOG, uniform_like(x, v, 0));
  Node *noise = g_map1(g, P_LOG, ops_times(g, u, -1));
  Node *y = ops_times(g, ops_sub(g, v, noise), 1 / heat);
  if (!y) return false;
  if (op_bool(x->op, "hard")) {
    Node *best = g_argmax(g, y, 1u << axis, true, DT_INT64);
    Node *is = g_map2(g, P_EQ, g_iota(g, DT_INT64, y->rank, y->dims, axis), best);
    return x_out(x, "Out", g_cast(g, is, v->dtype));
  }
  Node *e = g_map1(g, P_EXP, ops_sub(g, y, g_reduce(g, P_RMAX, y, 1u << axis, true)));
  return e && x_out(x, "Out", ops_div(g, e, g_reduce(g, P_RSUM, e, 1u << axis, true)));
}

/* ---- numbers in the shape of an input ---- */

bool x_exponential(Expand *x) {
  Node *v = x_in(x, "X");
  double rate = op_float(x->op, "lambda");
  if (!v || !ops_float(v, "X")) return false;
  if (!(rate > 0)) return err_set(E_OPR_003, "lambda is %g", rate);
  return x_out(x, "Out", ops_times(x->g, g_map1(x->g, P_LOG, uniform_like(x, v, 0)), -1 / rate));
}

bool x_uniform_random_inplace(Expand *x) {
  Node *v = x_in(x, "X");
  double lo = op_float(x->op, "min"), hi = op_float(x->op, "max");
  if (!v || !ops_float(v, "X")) return false;
  if (op_int(x->op, "diag_num") != 0)
    return err_set(E_OPR_004, "diag_num of uniform_random_inplace is not supported");
  return x_out(x, "Out", ops_plus(x->g, ops_times(x->g, uniform_like(x, v, 0), hi - lo), lo));
}
