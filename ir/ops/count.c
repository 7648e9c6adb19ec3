/* Counting and running extrema: mode, histogram, bincount, cummax and cummin.
 *
 * A running extremum is a window that ends at each element, read backwards, so that the first
 * maximum ARGMAX finds is the latest one. The mode is the end of the longest run in sorted order:
 * the run that ends at position p has as many elements as positions q <= p hold an equal one. Both
 * are quadratic in the length of the axis, in one sweep. Histograms are one SCATTER of ones. */
#include "ops.h"

#include <math.h>
#include <string.h>

/* An order-reversing map of the element type onto itself (integers: -1 - v cannot overflow). */
static Node *mirrored(Graph *g, Node *v) {
  if (!v) return NULL;
  Node *m = g_map2c(g, P_MUL, v, -1);
  return dtype_is_float(v->dtype) ? m : g_map2c(g, P_SUB, m, 1);
}

/* ---- running extrema ---- */

static bool running(Expand *x, bool smallest) {
  Graph *g = x->g;
  Node *n = x_in(x, "x");
  int axis;
  if (!ops_rank(n, "x", 1, KL_RANK - 1) || !ops_axis("axis", op_int(x->op, "axis"), n->rank, &axis))
    return false;
  DType t = op_int(x->op, "dtype") == dtype_info[DT_INT32].paddle ? DT_INT32 : DT_INT64;
  int64_t k = n->dims[axis], one = 1, lo = k - 1, hi = 0;
  if (!ops_known(n) || k == 0)
    return x_out(x, "out", ops_blank_like(g, n)) &&
           x_out(x, "indices", ops_blank(g, t, n->rank, n->dims));
  double least = dtype_is_float(n->dtype)            ? -HUGE_VAL
                 : dtype_info[n->dtype].class == 'i' ? -ldexp(1, 8 * dtype_info[n->dtype].size - 1)
                                                     : 0;
  Node *w = g_window(g, smallest ? mirrored(g, n) : n, axis, 1, &k, &one, &one, &lo, &hi, least);
  Node *back = w ? ops_cut(g, w, w->rank - 1, k - 1, -1, k) : NULL;
  Node *at = back ? g_argmax(g, back, 1u << (back->rank - 1), false, DT_INT64) : NULL;
  Node *i = at ? ops_sub(g, g_iota(g, DT_INT64, n->rank, n->dims, axis), at) : NULL;
  return i && x_out(x, "out", g_gather(g, n, i, axis)) && x_out(x, "indices", g_cast(g, i, t));
}

bool x_cummax(Expand *x) { return running(x, false); }
bool x_cummin(Expand *x) { return running(x, true); }

/* What came from position i goes back there. */
bool x_running_grad(Expand *x) {
  Node *n = x_in(x, "x"), *i = x_in(x, "indices"), *gy = x_in(x, "out@GRAD");
  int axis;
  if (!n || !i || !gy || !ops_axis("axis", op_int(x->op, "axis"), n->rank, &axis)) return false;
  if (!ops_known(n)) return x_out(x, "x@GRAD", ops_blank_like(x->g, n));
  return x_out(x, "x@GRAD", g_scatter(x->g, ops_zeros(x->g, n), i, gy, axis, false));
}

/* ---- the most frequent element ---- */

/* Where it is in n along the last axis, which stays with size 1: the last of the smallest such value. */
static Node *mode_index(Graph *g, Node *n) {
  int r = n->rank - 1;
  int64_t dims[KL_RANK];
  Node *order = g_argsort(g, n, false), *s = g_gather(g, n, order, r);
  if (!s) return NULL;
  memcpy(dims, n->dims, sizeof dims);
  dims[r + 1] = 1; /* [.., p, 1] */
  Node *p = g_reshape(g, s, r + 2, dims);
  dims[r] = 1, dims[r + 1] = n->dims[r]; /* [.., 1, q] */
  Node *equal = g_map2(g, P_EQ, p, g_reshape(g, s, r + 2, dims));
  if (!equal) return NULL;
  Node *before = g_map2(g, P_LE, g_iota(g, DT_INT64, r + 2, equal->dims, r + 1),
                        g_iota(g, DT_INT64, r + 2, equal->dims, r));
  Node *both = g_cast(g, ops_mul(g, equal, before), DT_INT64);
  Node *run = both ? g_reduce(g, P_RSUM, both, 1u << (r + 1), false) : NULL;
  return g_gather(g, order, run ? g_argmax(g, run, 1u << r, true, DT_INT64) : NULL, r);
}

bool x_mode(Expand *x) {
  Graph *g = x->g;
  Node *in = x_in(x, "X"), *i;
  int axis, perm[KL_RANK], rank = 0;
  int64_t dims[KL_RANK];
  if (!ops_rank(in, "X", 1, KL_RANK - 1) ||
      !ops_axis("axis", op_int(x->op, "axis"), in->rank, &axis))
    return false;
  if (in->dims[axis] == 0) return err_set(E_OPR_003, "axis %d has no elements", axis);
  for (int d = 0; d < in->rank; d++) {
    perm[d] = d;
    if (d != axis || op_bool(x->op, "keepdim")) dims[rank++] = d == axis ? 1 : in->dims[d];
  }
  if (!ops_known(in))
    return x_out(x, "Out", ops_blank(g, in->dtype, rank, dims)) &&
           x_out(x, "Indices", ops_blank(g, DT_INT64, rank, dims));
  perm[axis] = in->rank - 1, perm[in->rank - 1] = axis;
  Node *turned = g_permute(g, in, perm);
  i = turned ? mode_index(g, turned) : NULL;
  i = i ? g_permute(g, i, perm) : NULL;
  Node *v = g_gather(g, in, i, axis);
  return v && x_out(x, "Out", g_reshape(g, v, rank, dims)) &&
         x_out(x, "Indices", g_reshape(g, i, rank, dims));
}

/* ---- histograms ---- */

/* The elements of n in a row. */
static Node *row_of(Graph *g, Node *n) {
  int64_t all = node_numel(n);
  return g_reshape(g, n, 1, &all);
}

bool x_histogram(Expand *x) {
  Graph *g = x->g;
  Node *n = x_in(x, "X");
  int64_t bins = op_int(x->op, "bins"), min = op_int(x->op, "min"), max = op_int(x->op, "max");
  if (!n) return false;
  if (bins < 1 || min > max) {
    err_set(E_OPR_003, "%lld bins from %lld to %lld", (long long)bins, (long long)min,
            (long long)max);
    err_help("bins must be positive, and min at most max.");
    return false;
  }
  if (!ops_known(n)) return x_out(x, "Out", ops_blank(g, DT_INT64, 1, &bins));
  n = row_of(g, n);
  if (!n) return false;
  Node *lo = g_const(g, n->dtype, (double)min), *hi = g_const(g, n->dtype, (double)max);
  if (min == max && n->dims[0] > 0) {
    hi = g_reduce(g, P_RMAX, n, 1, false);
    lo = mirrored(g, g_reduce(g, P_RMAX, mirrored(g, n), 1, false));
  }
  if (min == max) {
    Node *flat = g_map2(g, P_EQ, lo, hi);
    lo = g_select(g, flat, ops_plus(g, lo, -1), lo);
    hi = g_select(g, flat, ops_plus(g, hi, 1), hi);
  }
  Node *at = ops_div(g, ops_times(g, ops_sub(g, n, lo), (double)bins), ops_sub(g, hi, lo));
  Node *in = ops_mul(g, g_map2(g, P_LE, lo, n), g_map2(g, P_LE, n, hi));
  if (!at || !in) return false;
  return x_out(x, "Out",
               g_scatter(g, g_full_int(g, DT_INT64, 0, 1, &bins), g_cast(g, at, DT_INT64),
                         g_cast(g, in, DT_INT64), 0, false));
}

bool x_bincount(Expand *x) {
  Graph *g = x->g;
  Node *n = x_in(x, "X"), *w = x_in(x, "Weights");
  int64_t bins = op_int(x->op, "minlength"), unknown = -1;
  if (!ops_rank(n, "X", 1, 1) || !ops_index(n, "X")) return false;
  if (bins < 0) return err_set(E_OPR_003, "minlength is %lld", (long long)bins);
  if (w && !dtype_is_float(w->dtype)) w = g_cast(g, w, DT_FLOAT64);
  DType t = w ? w->dtype : DT_INT64;
  Tensor v;
  if (g->shapes_only) return x_out(x, "Out", ops_blank(g, t, 1, &unknown));
  if (!ops_value(g, n, &v)) return err_any() ? false : ops_not_constant(g, n, "X");
  if (w && (w->rank != 1 || !ops_same("elements of X and Weights", n->dims[0], w->dims[0])))
    return ops_rank(w, "Weights", 1, 1) && false;
  for (int64_t i = 0; i < n->dims[0]; i++) {
    int64_t e = n->dtype == DT_INT32 ? ((const int32_t *)v.data)[i] : ((const int64_t *)v.data)[i];
    if (e < 0 || e >= INT32_MAX)
      return err_set(E_DAT_002, "X[%lld] is %lld", (long long)i, (long long)e);
    if (e >= bins) bins = e + 1;
  }
  w = w ? w : g_full_int(g, DT_INT64, 1, 1, n->dims);
  return x_out(x, "Out", g_scatter(g, g_full(g, t, 0, 1, &bins), n, w, 0, false));
}
