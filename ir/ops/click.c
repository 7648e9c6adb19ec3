/* What models of clicks on advertisements are made of: cvm, which takes the counts of shows and clicks in front of an embedding
 * for its logarithm and rate, and data_norm, which normalises by sums that the training itself accumulates: their "gradients"
 * are the counts and sums of the batch. */
#include "sequence.h"

#include <string.h>

/* ---- cvm ---- */

static bool has_counts(const Node *v) {
  int64_t d = v->dims[1];
  return d < 0 || d >= 2 ||
         err_set(E_SHP_006, "X has %lld columns, shows and clicks are 2", (long long)d);
}

bool x_cvm(Expand *x) {
  Graph *g = x->g;
  Node *v = x_in(x, "X");
  bool use = op_bool(x->op, "use_cvm");
  if (!ops_rank(v, "X", 2, 2) || !ops_float(v, "X")) return false;
  int64_t d = v->dims[1];
  if (!has_counts(v)) return false;
  if (!ops_known(v))
    return x_out(x, "Y",
                 ops_blank(g, v->dtype, 2, (int64_t[]){v->dims[0], use || d < 0 ? d : d - 2}));
  Node *rest = ops_cut(g, v, 1, 2, 1, d - 2);
  if (!use) return x_out(x, "Y", rest);
  Node *logs = g_map1(g, P_LOG, ops_plus(g, ops_cut(g, v, 1, 0, 1, 2), 1));
  Node *show = ops_cut(g, logs, 1, 0, 1, 1);
  Node *parts[] = {show, ops_sub(g, ops_cut(g, logs, 1, 1, 1, 1), show), rest};
  return rest && parts[1] && x_out(x, "Y", g_concat(g, 3, parts, 1));
}

/* The first two columns get CVM itself: a row for each row of X, or for each of its sequences. */
bool x_cvm_grad(Expand *x) {
  Graph *g = x->g;
  Node *v = x_in(x, "X"), *cvm = x_in(x, "CVM"), *gy = x_in(x, "Y@GRAD");
  if (!ops_rank(v, "X", 2, 2) || !ops_rank(cvm, "CVM", 2, 2) || !ops_rank(gy, "Y@GRAD", 2, 2) ||
      !has_counts(v))
    return false;
  if (!ops_known(v) || !ops_known(cvm) || !ops_known(gy))
    return x_out(x, "X@GRAD", ops_blank_like(g, v));
  int64_t n = v->dims[0], d = v->dims[1], from = op_bool(x->op, "use_cvm") ? 2 : 0;
  const Lod *l = v->lod ? lod_read(g, v->lod) : NULL;
  if (l) {
    if (!ops_same("rows of CVM and sequences of X", cvm->dims[0], l->n)) return false;
    cvm = seq_spread(g, cvm, l);
  }
  if (!cvm || !ops_same("rows of X and of CVM", n, cvm->dims[0])) return false;
  Node *parts[] = {ops_cut(g, cvm, 1, 0, 1, 2), ops_cut(g, gy, 1, from, 1, d - 2)};
  return parts[0] && parts[1] && x_out(x, "X@GRAD", g_concat(g, 2, parts, 1));
}

/* ---- data_norm ---- */

/* Of each slot of `width` columns, in all of them: is its first number, the shows, not 0? [N, C]; NULL without slots. */
static Node *shown(Expand *x, Node *v, bool *ok) {
  Graph *g = x->g;
  int64_t width = op_int(x->op, "slot_dim"), n = v->dims[0], c = v->dims[1];
  *ok = true;
  if (width <= 0 || op_bool(x->op, "enable_scale_and_shift")) return NULL;
  *ok = c % width == 0;
  if (!*ok) {
    err_set(E_OPR_003, "slot_dim is %lld, X has %lld columns", (long long)width, (long long)c);
    return NULL;
  }
  int64_t dims[] = {n, c / width, width};
  Node *first = ops_cut(g, g_reshape(g, v, 3, dims), 2, 0, 1, 1);
  Node *size = g_map2(g, P_MAX, first, ops_times(g, first, -1));
  Node *some = size ? g_map2(g, P_LE, g_const(g, v->dtype, 1e-7), size) : NULL;
  some = g_reshape(g, g_expand(g, some, 3, dims), 2, v->dims);
  *ok = some != NULL;
  return some;
}

static bool norm_read(Expand *x, Node **v) {
  *v = x_in(x, "X");
  if (!ops_rank(*v, "X", 2, 2) || !ops_float(*v, "X")) return false;
  if (op_bool(x->op, "sync_stats")) return err_set(E_OPR_004, "sync_stats");
  return true;
}

bool x_data_norm(Expand *x) {
  Graph *g = x->g;
  Node *v, *size = x_in(x, "BatchSize"), *sum = x_in(x, "BatchSum"),
           *square = x_in(x, "BatchSquareSum");
  bool shift = op_bool(x->op, "enable_scale_and_shift"), ok;
  if (!norm_read(x, &v) || !ops_rank(size, "BatchSize", 1, 1) || !ops_rank(sum, "BatchSum", 1, 1) ||
      !ops_rank(square, "BatchSquareSum", 1, 1))
    return false;
  if (shift && (x_n_in(x, "scale_w") == 0 || x_n_in(x, "bias") == 0))
    return err_set(E_OPR_002, "enable_scale_and_shift needs scale_w and bias");
  Node *mean = ops_div(g, sum, size), *scale = g_map1(g, P_SQRT, ops_div(g, size, square));
  if (!x_out(x, "Means", mean) || !x_out(x, "Scales", scale)) return false;
  if (!ops_known(v)) return x_out(x, "Y", ops_blank_like(g, v));
  Node *y = ops_mul(g, ops_sub(g, v, mean), scale), *some = shown(x, v, &ok);
  if (shift) y = ops_add(g, ops_mul(g, y, x_in(x, "scale_w")), x_in(x, "bias"));
  if (some) y = g_select(g, some, y, g_const(g, v->dtype, 0));
  return ok && x_out(x, "Y", y);
}

/* The batch's count, sum and sum of squares of each column; with slots, of what was shown, as of one example. */
static bool norm_sums(Expand *x, Node *v, Node *mean, Node *some) {
  Graph *g = x->g;
  double eps = op_float(x->op, "epsilon");
  Node *off = ops_sub(g, v, mean), *zero = g_const(g, v->dtype, 0), *square = ops_mul(g, off, off);
  Node *n = g_full(g, v->dtype, (double)v->dims[0], 1, v->dims + 1);
  Node *sum = g_reduce(g, P_RSUM, some ? g_select(g, some, v, zero) : v, 1, false);
  square = square ? g_reduce(g, P_RSUM, some ? g_select(g, some, square, zero) : square, 1, false)
                  : NULL;
  if (some) {
    n = g_reduce(g, P_RSUM, g_cast(g, some, v->dtype), 1, false);
    Node *by = n ? g_map2c(g, P_MAX, n, 1) : NULL;
    sum = ops_div(g, sum, by);
    square = ops_add(g, ops_div(g, square, by), ops_times(g, n, eps));
    n = n ? g_map2c(g, P_MIN, n, 1) : NULL;
  } else
    square = ops_add(g, square, ops_times(g, n, eps));
  return x_out(x, "BatchSize@GRAD", n) && x_out(x, "BatchSum@GRAD", sum) &&
         x_out(x, "BatchSquareSum@GRAD", square);
}

/* The sums themselves, which the gradient names as results, as they are. */
static bool keep_state(Expand *x, const char *slot) {
  const char *name = op_out(x->op, slot, 0);
  if (!name) return true;
  Node *v = map_get(x->env, name);
  if (!v && x->missing) v = x->missing(x, name);
  return x_out(x, slot, v);
}

bool x_data_norm_grad(Expand *x) {
  Graph *g = x->g;
  Node *v, *mean = x_in(x, "Means"), *scale = x_in(x, "Scales"), *gy = x_in(x, "Y@GRAD");
  static const char *const kept[] = {"BatchSize", "BatchSum", "BatchSquareSum"};
  bool shift = op_bool(x->op, "enable_scale_and_shift"), ok;
  if (!norm_read(x, &v) || !mean || !scale || !gy) return false;
  for (int i = 0; i < 3; i++)
    if (!keep_state(x, kept[i])) return false;
  Node *part = shift ? ops_mul(g, gy, x_in(x, "scale_w")) : gy;
  if (!x_out(x, "X@GRAD", ops_mul(g, part, scale))) return false;
  if (shift) {
    Node *slope = ops_mul(g, gy, ops_mul(g, ops_sub(g, v, mean), scale));
    if (!slope || !x_out(x, "scale_w@GRAD", g_reduce(g, P_RSUM, slope, 1, false)) ||
        !x_out(x, "bias@GRAD", g_reduce(g, P_RSUM, gy, 1, false)))
      return false;
  }
  if (!ops_known(v)) {
    Node *blank = ops_blank(g, v->dtype, 1, v->dims + 1);
    return x_out(x, "BatchSize@GRAD", blank) && x_out(x, "BatchSum@GRAD", blank) &&
           x_out(x, "BatchSquareSum@GRAD", blank);
  }
  Node *some = shown(x, v, &ok);
  return ok && norm_sums(x, v, mean, some);
}
