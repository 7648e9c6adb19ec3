/* Sums of lists, running sums, groups of channels, sorting, the largest elements and medians.
 *
 * Sorting is ARGSORT along the last axis and a GATHER; its gradient is a SCATTER with the same
 * indices. A running sum is a window that ends at each element: the work is quadratic in the length
 * of the axis, in one sweep. */
#include "ops.h"

#include <math.h>
#include <string.h>

bool x_sum(Expand *x) {
  Node *s = x_in_at(x, "X", 0);
  for (int i = 1; i < x_n_in(x, "X"); i++) s = g_map2(x->g, P_ADD, s, x_in_at(x, "X", i));
  return x_out(x, "Out", s);
}

/* X with the members of a group along an axis of their own, *at; NULL: an error. */
static Node *grouped(Expand *x, int *at) {
  Node *n = x_in(x, "X");
  int64_t groups = op_int(x->op, "groups"), dims[KL_RANK];
  int axis;
  if (!ops_rank(n, "X", 2, KL_VAR_RANK - 1) ||
      !ops_axis("axis", op_int(x->op, "axis"), n->rank, &axis))
    return NULL;
  if (groups < 1 || n->dims[axis] % groups != 0) {
    err_set(E_OPR_003, "%lld channels do not form groups of %lld", (long long)n->dims[axis],
            (long long)groups);
    err_help("groups must divide the channels.");
    return NULL;
  }
  for (int d = 0; d < n->rank; d++) dims[d > axis ? d + 1 : d] = n->dims[d];
  dims[axis] = n->dims[axis] < 0 ? -1 : n->dims[axis] / groups;
  dims[axis + 1] = groups;
  *at = axis + 1;
  return ops_reshape(x->g, n, n->rank + 1, dims);
}

bool x_maxout(Expand *x) {
  int at;
  Node *r = grouped(x, &at);
  return r && x_out(x, "Out", g_reduce(x->g, P_RMAX, r, 1u << at, false));
}

/* Of several that are largest, the first one. */
bool x_maxout_grad(Expand *x) {
  Graph *g = x->g;
  int at;
  Node *r = grouped(x, &at), *in = x_in(x, "X"), *dy = x_in(x, "Out@GRAD");
  if (!r || !dy) return false;
  if (!ops_known(r)) return x_out(x, "X@GRAD", ops_blank_like(g, in));
  int64_t dims[KL_RANK];
  memcpy(dims, r->dims, sizeof *dims * (size_t)r->rank);
  dims[at] = 1;
  Node *best = g_argmax(g, r, 1u << at, true, DT_INT64);
  Node *is = g_map2(g, P_EQ, g_iota(g, DT_INT64, r->rank, r->dims, at), best);
  Node *dx = g_select(g, is, g_reshape(g, dy, r->rank, dims), g_const(g, r->dtype, 0));
  return dx && x_out(x, "X@GRAD", g_reshape(g, dx, in->rank, in->dims));
}

/* ---- running sums ---- */

static Node *reversed(Graph *g, Node *n, int axis) {
  return n && n->dims[axis] > 0 ? ops_cut(g, n, axis, n->dims[axis] - 1, -1, n->dims[axis]) : n;
}

/* The elements one place later, the first is 0. */
static Node *delayed(Graph *g, Node *n, int axis) {
  int64_t lo[KL_RANK] = {0}, hi[KL_RANK] = {0};
  lo[axis] = 1;
  hi[axis] = -1;
  return g_pad(g, n, lo, hi, 0);
}

bool x_cumsum(Expand *x) {
  Graph *g = x->g;
  Node *n = x_in(x, "X");
  int axis = 0;
  if (!n) return false;
  if (op_bool(x->op, "flatten")) {
    int64_t all = ops_prod(n->dims, 0, n->rank);
    n = ops_reshape(g, n, 1, &all);
  } else if (n->rank > 0 && !ops_axis("axis", op_int(x->op, "axis"), n->rank, &axis))
    return false;
  if (!n) return false;
  if (n->rank == 0) return x_out(x, "Out", op_bool(x->op, "exclusive") ? ops_zeros(g, n) : n);
  int64_t k = n->dims[axis], one = 1, lo = k - 1, hi = 0;
  if (k < 1) return x_out(x, "Out", ops_blank_like(g, n));
  bool backwards = op_bool(x->op, "reverse");
  if (backwards) n = reversed(g, n, axis);
  if (op_bool(x->op, "exclusive")) n = delayed(g, n, axis);
  Node *w = g_window(g, n, axis, 1, &k, &one, &one, &lo, &hi, 0);
  Node *s = w ? g_reduce(g, P_RSUM, w, 1u << (w->rank - 1), false) : NULL;
  return x_out(x, "Out", backwards ? reversed(g, s, axis) : s);
}

/* ---- sorting ---- */

/* ARGSORT along any axis. */
static Node *sorting_indices(Graph *g, Node *n, int axis, bool descending) {
  int perm[KL_RANK]; /* swaps the axis and the last; its own inverse */
  for (int d = 0; d < n->rank; d++) perm[d] = d;
  perm[axis] = n->rank - 1;
  perm[n->rank - 1] = axis;
  Node *i = g_argsort(g, g_permute(g, n, perm), descending);
  return i ? g_permute(g, i, perm) : NULL;
}

static bool sort_axis(Expand *x, const Node *n, int *axis) {
  int64_t a = opdef_attr(x->op->def, "axis") ? op_int(x->op, "axis") : -1;
  return ops_rank(n, "X", 1, KL_VAR_RANK) && ops_axis("axis", a, n->rank, axis);
}

bool x_argsort(Expand *x) {
  Node *n = x_in(x, "X");
  int axis;
  if (!sort_axis(x, n, &axis)) return false;
  Node *i = sorting_indices(x->g, n, axis, op_bool(x->op, "descending"));
  return x_out(x, "Indices", i) && x_out(x, "Out", g_gather(x->g, n, i, axis));
}

bool x_top_k(Expand *x) {
  Graph *g = x->g;
  Node *n = x_in(x, "X");
  int axis;
  int64_t k;
  if (!sort_axis(x, n, &axis) || ops_list(x, NULL, "K", "k", &k, 1) != 1) return false;
  bool largest = !opdef_attr(x->op->def, "largest") || op_bool(x->op, "largest");
  if (k == OPS_UNKNOWN || (n->dims[axis] < 0 && k > 0)) { /* only in shape inference */
    int64_t dims[KL_RANK];
    memcpy(dims, n->dims, sizeof dims);
    dims[axis] = k == OPS_UNKNOWN ? -1 : k;
    return x_out(x, "Out", ops_blank(g, n->dtype, n->rank, dims)) &&
           x_out(x, "Indices", ops_blank(g, DT_INT64, n->rank, dims));
  }
  if (k < 1 || k > n->dims[axis]) {
    err_set(E_OPR_003, "k is %lld, but axis %d has %lld elements", (long long)k, axis,
            (long long)n->dims[axis]);
    err_help("k must be in 1..%lld.", (long long)n->dims[axis]);
    return false;
  }
  Node *i = ops_cut(g, sorting_indices(g, n, axis, largest), axis, 0, 1, k);
  return x_out(x, "Indices", i) && x_out(x, "Out", g_gather(g, n, i, axis));
}

/* The gradient of argsort and top_k: what came from position i goes back there. */
bool x_sorted_grad(Expand *x) {
  Node *n = x_in(x, "X"), *i = x_in(x, "Indices"), *gy = x_in(x, "Out@GRAD");
  int axis;
  if (!sort_axis(x, n, &axis)) return false;
  return x_out(x, "X@GRAD", g_scatter(x->g, ops_zeros(x->g, n), i, gy, axis, false));
}

/* ---- medians ---- */

/* The halves of two numbers are not exact where these are subnormal: equal ones are their own mean. */
static Node *halfway(Graph *g, Node *const v[2]) {
  Node *half = g_map2(g, P_ADD, g_map2c(g, P_MUL, v[0], 0.5), g_map2c(g, P_MUL, v[1], 0.5));
  return g_select(g, g_map2(g, P_EQ, v[0], v[1]), v[0], half);
}

/* NaN sorts behind all numbers: of c numbers the median lies between those at (c-1)/2 and c/2. */
bool x_nanmedian(Expand *x) {
  Graph *g = x->g;
  Node *n = x_in(x, "X");
  uint32_t axes;
  int perm[KL_RANK], rank = 0, at = 0;
  int64_t dims[KL_RANK + 1], flat[2] = {1, 1};
  if (!ops_float(n, "X") || !ops_rank(n, "X", 0, KL_VAR_RANK - 1) ||
      !ops_axes(x, "axis", n->rank, &axes))
    return false;
  if (!axes) axes = (1u << n->rank) - 1;
  for (int d = 0; d < n->rank; d++) {
    bool along = axes >> d & 1;
    if (!along || op_bool(x->op, "keepdim")) dims[rank++] = along ? 1 : n->dims[d];
    if (!along) perm[at++] = d;
    flat[along] *= n->dims[d];
  }
  for (int d = 0; d < n->rank; d++)
    if (axes >> d & 1) perm[at++] = d;
  dims[rank] = 2; /* of MedianIndex */
  if (!ops_known(n))
    return x_out(x, "Out", ops_blank(g, n->dtype, rank, dims)) &&
           x_out(x, "MedianIndex", ops_blank(g, DT_INT64, rank + 1, dims));
  if (!flat[1]) return err_set(E_SHP_006, "a median of no elements");
  Node *rows = g_reshape(g, g_permute(g, n, perm), 2, flat), *is[2], *v[2];
  Node *order = g_argsort(g, rows, false), *sorted = order ? g_gather(g, rows, order, 1) : NULL;
  Node *number = g_cast(g, g_map2(g, P_EQ, rows, rows), DT_INT64);
  Node *count = g_reduce(g, P_RSUM, number, 2, true);
  Node *none = g_map2c(g, P_EQ, count, 0);
  for (int i = 0; i < 2; i++) {
    Node *k = g_map2c(g, P_DIV, i ? count : g_map2c(g, P_MAX, g_map2c(g, P_SUB, count, 1), 0), 2);
    is[i] = k ? g_select(g, none, g_const(g, DT_INT64, -1), g_gather(g, order, k, 1)) : NULL;
    v[i] = k ? g_gather(g, sorted, k, 1) : NULL;
  }
  Node *median = halfway(g, v), *index = is[1] ? g_concat(g, 2, is, 1) : NULL;
  median = g_select(g, none, g_const(g, n->dtype, NAN), median);
  return median && index && x_out(x, "Out", g_reshape(g, median, rank, dims)) &&
         x_out(x, "MedianIndex", g_reshape(g, index, rank + 1, dims));
}
