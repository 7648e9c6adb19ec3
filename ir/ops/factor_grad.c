/* Gradients of the factorisations of factor.c. In: the factors and their gradients, each of which may be absent. Out: the gradient of
 * the matrix; with phi as the lower or upper part of a matrix, from S. Walter and L. Lehmann, "Algorithmic differentiation
 * of linear algebra functions with application in optimum experimental design", 2010, and J. Townsend, "Differentiating the
 * singular value decomposition", 2016. */
#include "ops.h"

#include <string.h>

static Node *product(Graph *g, Node *a, Node *b, bool ta, bool tb) {
  return a && b ? g_matmul(g, a, b, ta, tb) : NULL;
}

static Node *minus(Graph *g, Node *a) { return a ? ops_times(g, a, -1) : NULL; }

/* May be absent. */
static bool ranked(const Node *v, const char *slot, int rank) {
  return !v || ops_rank(v, slot, rank, rank);
}

/* Absent is 0. */
static Node *sum(Graph *g, Node *a, Node *b) { return a && b ? ops_add(g, a, b) : a ? a : b; }

static Node *turned(Graph *g, Node *a) {
  int perm[KL_RANK];
  for (int d = 0; a && d < a->rank; d++) perm[d] = d;
  if (a) perm[a->rank - 1] = a->rank - 2, perm[a->rank - 2] = a->rank - 1;
  return a ? g_permute(g, a, perm) : NULL;
}

/* rows from..to-1 or columns from..to-1 */
static Node *rows(Graph *g, Node *a, int64_t from, int64_t to) {
  return a ? ops_cut(g, a, a->rank - 2, from, 1, to - from) : NULL;
}
static Node *columns(Graph *g, Node *a, int64_t from, int64_t to) {
  return a ? ops_cut(g, a, a->rank - 1, from, 1, to - from) : NULL;
}

/* What stands below the diagonal, and, times `on`, what stands on it. */
static Node *lower(Graph *g, Node *a, double on) {
  if (!a) return NULL;
  Node *i = g_iota(g, DT_INT64, a->rank, a->dims, a->rank - 2),
       *j = g_iota(g, DT_INT64, a->rank, a->dims, a->rank - 1), *zero = g_const(g, a->dtype, 0);
  Node *diagonal = on != 0 ? g_select(g, g_map2(g, P_EQ, i, j), ops_times(g, a, on), zero) : zero;
  return g_select(g, g_map2(g, P_LT, j, i), a, diagonal);
}
static Node *upper(Graph *g, Node *a, double on) {
  return a ? turned(g, lower(g, turned(g, a), on)) : NULL;
}

static Node *joined(Graph *g, Node *a, Node *b, int from_last) {
  return a && b ? g_concat(g, 2, (Node *[]){a, b}, a->rank - from_last) : NULL;
}

/* S [.., k] as rows [.., 1, k] or columns [.., k, 1]. */
static Node *spread(Graph *g, Node *s, bool column) {
  int64_t dims[KL_RANK];
  memcpy(dims, s->dims, sizeof *dims * (size_t)s->rank);
  dims[s->rank - !column] = 1, dims[s->rank - column] = s->dims[s->rank - 1];
  return g_reshape(g, s, s->rank + 1, dims);
}

/* 1 / (s_j^2 - s_i^2), 0 on the diagonal. */
static Node *gaps(Graph *g, Node *s) {
  Node *row = spread(g, s, false), *col = spread(g, s, true);
  Node *d = ops_mul(g, ops_sub(g, row, col), ops_add(g, row, col));
  if (!d) return NULL;
  Node *r = ops_div(g, g_const(g, s->dtype, 1), d);
  return sum(g, lower(g, r, 0), upper(g, r, 0));
}

/* gaps times what is skew in a. */
static Node *skewed(Graph *g, Node *gap, Node *a) {
  return a ? ops_mul(g, gap, ops_sub(g, a, turned(g, a))) : NULL;
}

bool x_svd_grad(Expand *x) {
  Graph *g = x->g;
  Node *a = x_in(x, "X"), *u = x_in(x, "U"), *s = x_in(x, "S"), *vt = x_in(x, "VH"), *outer = NULL;
  Node *gu = x_in(x, "U@GRAD"), *gs = x_in(x, "S@GRAD"), *gv = x_in(x, "VH@GRAD");
  if (!ops_rank(a, "X", 2, KL_VAR_RANK) || !ops_rank(u, "U", a->rank, a->rank) ||
      !ops_rank(s, "S", a->rank - 1, a->rank - 1) || !ops_rank(vt, "VH", a->rank, a->rank) ||
      !ranked(gu, "U@GRAD", a->rank) || !ranked(gs, "S@GRAD", s->rank) ||
      !ranked(gv, "VH@GRAD", a->rank) || err_any())
    return false;
  if (!ops_known(a) || (!gu && !gs && !gv))
    return x_out(x, "X@GRAD", ops_known(a) ? ops_zeros(g, a) : ops_blank_like(g, a));
  int64_t m = a->dims[a->rank - 2], n = a->dims[a->rank - 1], k = s->dims[s->rank - 1];
  u = columns(g, u, 0, k), gu = columns(g, gu, 0, k);
  vt = rows(g, vt, 0, k), gv = rows(g, gv, 0, k);
  Node *gap = gaps(g, s), *row = spread(g, s, false), *col = spread(g, s, true);
  Node *uu = product(g, u, gu, true, false), *vv = product(g, vt, gv, false, true);
  Node *inner = uu ? ops_mul(g, skewed(g, gap, uu), row) : NULL;
  inner = sum(g, inner, vv ? ops_mul(g, col, skewed(g, gap, vv)) : NULL);
  if (gs) { /* on the diagonal */
    Node *d = spread(g, gs, false),
         *square = inner ? inner : ops_zeros(g, product(g, u, u, true, false));
    Node *full = d ? g_expand_to(g, d, square->rank, square->dims) : NULL;
    inner = sum(g, inner, full ? ops_sub(g, lower(g, full, 1), lower(g, full, 0)) : NULL);
  }
  if (gu && m > k)
    outer = product(g, ops_div(g, ops_sub(g, gu, product(g, u, uu, false, false)), row), vt, false,
                    false);
  if (gv && n > k) {
    Node *across = ops_sub(g, gv, product(g, product(g, gv, vt, false, true), vt, false, false));
    outer = sum(g, outer, product(g, u, ops_div(g, across, col), false, false));
  }
  return x_out(x, "X@GRAD",
               sum(g, product(g, product(g, u, inner, false, false), vt, false, false), outer));
}

/* Of the square or tall matrix q r. */
static Node *qr_gradient(Graph *g, Node *q, Node *r, Node *gq, Node *gr) {
  Node *m = sum(g, product(g, r, gr, false, true), minus(g, product(g, gq, q, true, false)));
  Node *both = sum(g, lower(g, m, 1), turned(g, lower(g, m, 0)));
  return product(g, sum(g, gq, product(g, q, both, false, false)), ops_inverse(g, r), false, true);
}

bool x_qr_grad(Expand *x) {
  Graph *g = x->g;
  Node *a = x_in(x, "X"), *q = x_in(x, "Q"), *r = x_in(x, "R");
  Node *gq = x_in(x, "Q@GRAD"), *gr = x_in(x, "R@GRAD");
  if (!ops_rank(a, "X", 2, KL_VAR_RANK) || !ops_rank(q, "Q", a->rank, a->rank) ||
      !ops_rank(r, "R", a->rank, a->rank) || !ranked(gq, "Q@GRAD", a->rank) ||
      !ranked(gr, "R@GRAD", a->rank) || err_any())
    return false;
  if (!ops_known(a) || (!gq && !gr))
    return x_out(x, "X@GRAD", ops_known(a) ? ops_zeros(g, a) : ops_blank_like(g, a));
  int64_t m = a->dims[a->rank - 2], n = a->dims[a->rank - 1];
  if (q->dims[q->rank - 1] > n || !strcmp(op_str(x->op, "mode"), "r"))
    return err_set(E_OPR_004, "the gradient of qr in mode %s", quoted(op_str(x->op, "mode")));
  if (m >= n) return x_out(x, "X@GRAD", qr_gradient(g, q, r, gq, gr));
  Node *right = columns(g, gr, m, n);
  gq = sum(g, gq, product(g, columns(g, a, m, n), right, false, true));
  Node *left = qr_gradient(g, q, columns(g, r, 0, m), gq, columns(g, gr, 0, m));
  right = right ? product(g, q, right, false, false) : ops_zeros(g, columns(g, a, m, n));
  return x_out(x, "X@GRAD", joined(g, left, right, 1));
}

bool x_lu_grad(Expand *x) {
  Graph *g = x->g;
  Node *a = x_in(x, "X"), *out = x_in(x, "Out"), *gy = x_in(x, "Out@GRAD"),
       *pivots = x_in(x, "Pivots");
  if (!ops_rank(a, "X", 2, KL_VAR_RANK) || !ops_rank(out, "Out", a->rank, a->rank) ||
      !ops_rank(pivots, "Pivots", a->rank - 1, a->rank - 1) || !ranked(gy, "Out@GRAD", a->rank) ||
      err_any())
    return false;
  if (!ops_known(a) || !gy)
    return x_out(x, "X@GRAD", ops_known(a) ? ops_zeros(g, a) : ops_blank_like(g, a));
  int64_t m = a->dims[a->rank - 2], n = a->dims[a->rank - 1], k = m < n ? m : n;
  Node *square = rows(g, columns(g, out, 0, k), 0, k),
       *ones = g_full(g, a->dtype, 1, square->rank, square->dims);
  Node *l = sum(g, lower(g, square, 0), ops_sub(g, lower(g, ones, 1), lower(g, ones, 0)));
  Node *u = upper(g, square, 1), *head = rows(g, columns(g, gy, 0, k), 0, k);
  Node *li = ops_inverse(g, l), *ui = ops_inverse(g, u);
  Node *lower_part = product(g, l, lower(g, head, 0), true, false);
  Node *upper_part = product(g, upper(g, head, 1), u, false, true);
  if (n > m) { /* what the columns to the right take away */
    Node *gu = columns(g, gy, k, n);
    lower_part = ops_sub(g, lower_part, product(g, gu, columns(g, out, k, n), false, true));
  }
  if (m > n)
    upper_part =
        ops_sub(g, upper_part, product(g, rows(g, out, k, m), rows(g, gy, k, m), true, false));
  Node *middle = sum(g, lower(g, lower_part, 0), upper(g, upper_part, 1));
  Node *r = product(g, product(g, li, middle, true, false), ui, false, true);
  if (n > m) r = joined(g, r, product(g, li, columns(g, gy, k, n), true, false), 1);
  if (m > n) r = joined(g, r, product(g, rows(g, gy, k, m), ui, false, true), 2);
  return x_out(x, "X@GRAD", product(g, ops_pivots(g, pivots, a->dtype, m), r, false, false));
}

/* A gradient of the triangle, in a matrix of the rows and columns of `like`. */
static Node *widened(Graph *g, Node *v, const Node *like) {
  int64_t lo[KL_RANK] = {0}, hi[KL_RANK] = {0};
  for (int d = 0; v && d < v->rank; d++) hi[d] = like->dims[d] - v->dims[d];
  return v ? g_pad(g, v, lo, hi, 0) : NULL;
}

bool x_lu_unpack_grad(Expand *x) {
  Graph *g = x->g;
  Node *a = x_in(x, "X"), *gl = x_in(x, "L@GRAD"), *gu = x_in(x, "U@GRAD");
  if (!ops_rank(a, "X", 2, KL_VAR_RANK) || !ranked(gl, "L@GRAD", a->rank) ||
      !ranked(gu, "U@GRAD", a->rank) || err_any())
    return false;
  if (!ops_known(a)) return x_out(x, "X@GRAD", ops_blank_like(g, a));
  Node *r = sum(g, widened(g, lower(g, gl, 0), a), widened(g, upper(g, gu, 1), a));
  return x_out(x, "X@GRAD", r ? r : ops_zeros(g, a));
}
