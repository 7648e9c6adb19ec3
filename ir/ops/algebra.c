/* Small algebra: diagonals, products of Kronecker and of vectors, running products and log-sums, bits, picking among
 * inputs, and sums along a few rows. Diagonals are VIEWs; running results are windows that end at each element. */
#include "ops.h"

#include <math.h>
#include <string.h>

/* ---- bits ---- */

/* x & y of integers, bit by bit: a bit is floor(x / 2^i) mod 2, the last one the sign. */
static Node *bits_and(Graph *g, Node *x, Node *y) {
  if (!x || !y) return NULL;
  bool sign = x->dtype != DT_UINT8;
  int bits = 8 * dtype_info[x->dtype].size - sign;
  Node *sum = NULL, *v[2] = {x, y};
  for (int i = 0; i < bits + sign; i++) {
    Node *bit[2];
    for (int k = 0; k < 2; k++) {
      Node *two = g_full_int(g, x->dtype, 2, 0, NULL);
      Node *at = g_full_int(g, x->dtype, i < bits ? (int64_t)1 << i : 0, 0, NULL);
      bit[k] = i < bits ? g_map2(g, P_MOD, i ? ops_div(g, v[k], at) : v[k], two)
                        : g_cast(g, g_map2c(g, P_LT, v[k], 0), x->dtype);
    }
    int64_t weight = i < bits ? (int64_t)1 << i : bits == 63 ? INT64_MIN : -((int64_t)1 << bits);
    Node *part = ops_mul(g, ops_mul(g, bit[0], bit[1]), g_full_int(g, x->dtype, weight, 0, NULL));
    sum = sum ? ops_add(g, sum, part) : part;
  }
  return sum;
}

/* or = x + y - and; xor = x + y - 2 and */
static bool bitwise(Expand *x, Prim on_bool, int minus) {
  Graph *g = x->g;
  Node *a = x_in(x, "X"), *b = x_in(x, "Y");
  if (!a || !b) return false;
  if (a->dtype == DT_BOOL) return x_out(x, "Out", g_map2(g, on_bool, a, b));
  if (dtype_is_float(a->dtype)) return ops_index(a, "X");
  Node *both = bits_and(g, a, b);
  if (minus == 0) return x_out(x, "Out", both);
  Node *twice = minus == 2 ? ops_add(g, both, both) : both;
  return x_out(x, "Out", ops_sub(g, ops_add(g, a, b), twice));
}

bool x_bitwise_and(Expand *x) { return bitwise(x, P_MUL, 0); }
bool x_bitwise_or(Expand *x) { return bitwise(x, P_MAX, 1); }
bool x_bitwise_xor(Expand *x) { return bitwise(x, P_SUB, 2); }

/* ---- diagonals ---- */

/* The diagonal of two dimensions as the last one. */
static Node *diagonal(Expand *x) {
  Node *in = x_in(x, "Input");
  int a, b;
  int64_t off = op_int(x->op, "offset"), dims[KL_RANK];
  AffDim map[KL_RANK];
  if (!ops_rank(in, "Input", 2, KL_RANK) ||
      !ops_axis("axis1", op_int(x->op, "axis1"), in->rank, &a) ||
      !ops_axis("axis2", op_int(x->op, "axis2"), in->rank, &b))
    return NULL;
  if (a == b) {
    err_set(E_SHP_003, "axis1 and axis2 are both %d", a);
    return NULL;
  }
  int n = 0;
  for (int d = 0; d < in->rank; d++)
    if (d != a && d != b) {
      map[d] = aff_loop(n);
      dims[n++] = in->dims[d];
    }
  int64_t rows = in->dims[a] - (off < 0 ? -off : 0), cols = in->dims[b] - (off > 0 ? off : 0);
  bool known = in->dims[a] >= 0 && in->dims[b] >= 0;
  dims[n] = !known ? -1 : rows < 0 || cols < 0 ? 0 : rows < cols ? rows : cols;
  map[a] = map[b] = aff_loop(n);
  map[a].off = off < 0 ? -off : 0;
  map[b].off = off > 0 ? off : 0;
  if (!ops_known(in)) return ops_blank(x->g, in->dtype, n + 1, dims);
  return g_view(x->g, in, n + 1, dims, map, 0);
}

bool x_diagonal(Expand *x) { return x_out(x, "Out", diagonal(x)); }

bool x_trace(Expand *x) {
  Node *d = diagonal(x);
  return d && x_out(x, "Out", g_reduce(x->g, P_RSUM, d, 1u << (d->rank - 1), false));
}

bool x_diag_embed(Expand *x) {
  Graph *g = x->g;
  Node *in = x_in(x, "Input");
  int a, b, n = 0;
  int64_t off = op_int(x->op, "offset"), dims[KL_RANK];
  AffDim map[KL_RANK];
  if (!ops_rank(in, "Input", 1, KL_RANK - 1)) return false;
  int rank = in->rank + 1;
  if (!ops_axis("dim1", op_int(x->op, "dim1"), rank, &a) ||
      !ops_axis("dim2", op_int(x->op, "dim2"), rank, &b))
    return false;
  if (a == b) return err_set(E_SHP_003, "dim1 and dim2 are both %d", a);
  int64_t len = in->dims[in->rank - 1];
  for (int d = 0; d < rank; d++) {
    if (d == a || d == b) continue;
    map[n] = aff_loop(d);
    dims[d] = in->dims[n++];
  }
  dims[a] = dims[b] = len < 0 ? -1 : len + (off < 0 ? -off : off);
  if (!ops_known(in)) return x_out(x, "Out", ops_blank(g, in->dtype, rank, dims));
  map[n] = aff_loop(a);
  map[n].off = off < 0 ? off : 0;
  Node *v = g_view(g, in, rank, dims, map, 0);
  Node *d = ops_sub(g, g_iota(g, DT_INT64, rank, dims, b), g_iota(g, DT_INT64, rank, dims, a));
  Node *hit = g_map2(g, P_EQ, d, g_full_int(g, DT_INT64, off, 0, NULL));
  return x_out(x, "Out", g_select(g, hit, v, g_const(g, in->dtype, 0)));
}

/* Where the elements stand that fill_diagonal sets. */
static Node *diagonal_mask(Expand *x, const Node *in) {
  Graph *g = x->g;
  int64_t off = op_int(x->op, "offset");
  if (!ops_rank(in, "X", 2, KL_VAR_RANK) || !ops_known(in)) return NULL;
  Node *i = g_iota(g, DT_INT64, in->rank, in->dims, 0), *all = NULL;
  if (in->rank > 2) {
    for (int d = 1; d < in->rank; d++) {
      Node *same = g_map2(g, P_EQ, g_iota(g, DT_INT64, in->rank, in->dims, d), i);
      all = all ? ops_mul(g, all, same) : same;
    }
    return all;
  }
  int64_t cols = in->dims[1];
  Node *j = g_iota(g, DT_INT64, 2, in->dims, 1), *at = g_full_int(g, DT_INT64, off, 0, NULL);
  if (op_bool(x->op, "wrap")) i = g_map2(g, P_MOD, i, g_full_int(g, DT_INT64, cols + 1, 0, NULL));
  Node *hit = g_map2(g, P_EQ, ops_sub(g, j, i), at);
  Node *square = g_map2(g, P_LT, i, g_full_int(g, DT_INT64, cols, 0, NULL)); /* not below it */
  return op_bool(x->op, "wrap") ? hit : ops_mul(g, hit, square);
}

bool x_fill_diagonal(Expand *x) {
  Node *in = x_in(x, "X");
  if (!in) return false;
  if (!ops_known(in)) return x_out(x, "Out", ops_blank_like(x->g, in));
  Node *value = g_const(x->g, in->dtype, op_float(x->op, "value"));
  return x_out(x, "Out", g_select(x->g, diagonal_mask(x, in), value, in));
}

bool x_fill_diagonal_grad(Expand *x) {
  Node *gy = x_in(x, "Out@GRAD");
  if (!gy || !ops_known(gy)) return gy && x_out(x, "X@GRAD", gy);
  return x_out(x, "X@GRAD", g_select(x->g, diagonal_mask(x, gy), g_const(x->g, gy->dtype, 0), gy));
}

/* Y along the diagonal of dim1 and dim2, and where that is. */
static bool diagonal_of(Expand *x, const Node *in, Node *y, Node **values, Node **at) {
  Graph *g = x->g;
  int a, b, n = 0;
  int64_t off = op_int(x->op, "offset");
  AffDim map[KL_RANK];
  if (!ops_rank(in, "X", 2, KL_VAR_RANK) ||
      !ops_axis("dim1", op_int(x->op, "dim1"), in->rank, &a) ||
      !ops_axis("dim2", op_int(x->op, "dim2"), in->rank, &b))
    return false;
  if (a == b) return err_set(E_SHP_003, "dim1 and dim2 are both %d", a);
  Node *d = ops_sub(g, g_iota(g, DT_INT64, in->rank, in->dims, b),
                    g_iota(g, DT_INT64, in->rank, in->dims, a));
  *at = g_map2(g, P_EQ, d, g_full_int(g, DT_INT64, off, 0, NULL));
  if (!y) return *at != NULL;
  if (in->rank == 2 && y->rank == 2 && y->dims[0] == 1) y = ops_reshape(g, y, 1, y->dims + 1);
  if (!ops_rank(y, "Y", in->rank - 1, in->rank - 1)) return false;
  for (int k = 0; k < in->rank; k++)
    if (k != a && k != b) {
      if (!ops_same("dimensions of X and Y", in->dims[k], y->dims[n])) return false;
      map[n++] = aff_loop(k);
    }
  map[n] = aff_loop(off < 0 ? b : a); /* the one that begins at 0 */
  int64_t rows = in->dims[a] + (off < 0 ? off : 0), cols = in->dims[b] - (off > 0 ? off : 0);
  if (!ops_same("elements of the diagonal and the last dimension of Y", rows < cols ? rows : cols,
                y->dims[n]))
    return false;
  *values = g_view(g, y, in->rank, in->dims, map, 0);
  return *values && *at;
}

bool x_fill_diagonal_tensor(Expand *x) {
  Node *in = x_in(x, "X"), *y = x_in(x, "Y"), *v = NULL, *at = NULL;
  if (!in || !y) return false;
  if (!ops_known(in) || !ops_known(y)) return x_out(x, "Out", ops_blank_like(x->g, in));
  return diagonal_of(x, in, y, &v, &at) && x_out(x, "Out", g_select(x->g, at, v, in));
}

bool x_fill_diagonal_tensor_grad(Expand *x) {
  Node *gy = x_in(x, "Out@GRAD"), *at = NULL;
  if (!gy || !ops_known(gy)) return gy && x_out(x, "X@GRAD", gy);
  return diagonal_of(x, gy, NULL, NULL, &at) &&
         x_out(x, "X@GRAD", g_select(x->g, at, g_const(x->g, gy->dtype, 0), gy));
}

/* ---- products ---- */

bool x_kron(Expand *x) {
  Graph *g = x->g;
  Node *in[2] = {x_in(x, "X"), x_in(x, "Y")};
  if (!in[0] || !in[1]) return false;
  int rank = in[0]->rank > in[1]->rank ? in[0]->rank : in[1]->rank;
  if (2 * rank > KL_RANK) return ops_rank(in[0], "X", 0, KL_RANK / 2);
  int64_t wide[2][KL_RANK], dims[KL_RANK];
  for (int d = 0; d < rank; d++) dims[d] = 1;
  for (int k = 0; k < 2; k++) { /* X: [a, 1, b, 1 ...], Y: [1, c, 1, d ...] */
    int skip = rank - in[k]->rank;
    for (int d = 0; d < rank; d++) {
      int64_t n = d < skip ? 1 : in[k]->dims[d - skip];
      wide[k][2 * d + k] = n;
      wide[k][2 * d + 1 - k] = 1;
      dims[d] = dims[d] < 0 || n < 0 ? -1 : dims[d] * n;
    }
  }
  if (!ops_known(in[0]) || !ops_known(in[1]))
    return x_out(x, "Out", ops_blank(g, in[0]->dtype, rank, dims));
  Node *p =
      ops_mul(g, g_reshape(g, in[0], 2 * rank, wide[0]), g_reshape(g, in[1], 2 * rank, wide[1]));
  return x_out(x, "Out", g_reshape(g, p, rank, dims));
}

bool x_cross(Expand *x) {
  Graph *g = x->g;
  Node *a = x_in(x, "X"), *b = x_in(x, "Y"), *part[3];
  int64_t dim = op_int(x->op, "dim");
  int axis = 0;
  if (!ops_rank(a, "X", 1, KL_RANK) || !ops_rank(b, "Y", a->rank, a->rank)) return false;
  if (dim == 9) { /* KL_VAR_RANK: not given */
    while (axis < a->rank && a->dims[axis] != 3) axis++;
    dim = axis;
  }
  if (!ops_axis("dim", dim, a->rank, &axis)) return false;
  if (a->dims[axis] < 0 || b->dims[axis] < 0) return x_out(x, "Out", ops_blank_like(g, a));
  if (!ops_same("3 and the dimension of the vectors", 3, a->dims[axis]) ||
      !ops_same("3 and the dimension of the vectors", 3, b->dims[axis]))
    return false;
  for (int i = 0; i < 3; i++) {
    int j = (i + 1) % 3, k = (i + 2) % 3;
    part[i] = ops_sub(g, ops_mul(g, ops_cut(g, a, axis, j, 1, 1), ops_cut(g, b, axis, k, 1, 1)),
                      ops_mul(g, ops_cut(g, a, axis, k, 1, 1), ops_cut(g, b, axis, j, 1, 1)));
    if (!part[i]) return false;
  }
  return x_out(x, "Out", g_concat(g, 3, part, axis));
}

bool x_bilinear_tensor_product(Expand *x) {
  Graph *g = x->g;
  Node *a = x_in(x, "X"), *b = x_in(x, "Y"), *w = x_in(x, "Weight");
  if (!ops_rank(a, "X", 2, 2) || !ops_rank(b, "Y", 2, 2) || !ops_rank(w, "Weight", 3, 3) ||
      !ops_same("rows of X and Y", a->dims[0], b->dims[0]) ||
      !ops_same("columns of X and rows of Weight", a->dims[1], w->dims[1]) ||
      !ops_same("columns of Y and of Weight", b->dims[1], w->dims[2]))
    return false;
  int64_t n = a->dims[0], k = w->dims[0];
  if (n < 0 || !ops_known(w)) return x_out(x, "Out", ops_blank(g, a->dtype, 2, (int64_t[]){n, k}));
  Node *flat = g_reshape(g, w, 2, (int64_t[]){k * w->dims[1], w->dims[2]});
  Node *wy = g_reshape(g, g_matmul(g, b, flat, false, true), 3, (int64_t[]){n, k, w->dims[1]});
  Node *x1 = g_reshape(g, a, 3, (int64_t[]){n, 1, a->dims[1]});
  Node *out = g_reduce(g, P_RSUM, ops_mul(g, wy, x1), 4, false);
  if (x_n_in(x, "Bias") > 0)
    out = ops_add(g, out, g_reshape(g, x_in(x, "Bias"), 2, (int64_t[]){1, k}));
  return x_out(x, "Out", out);
}

/* ---- running results ---- */

/* Windows of k elements that end at each element of the axis, appended as a dimension; `fill` before the first. */
static Node *ending_here(Graph *g, Node *n, int axis, double fill) {
  int64_t k = n->dims[axis], one = 1, lo = k - 1, hi = 0;
  return g_window(g, n, axis, 1, &k, &one, &one, &lo, &hi, fill);
}

bool x_cumprod(Expand *x) {
  Node *n = x_in(x, "X");
  int axis;
  if (!ops_rank(n, "X", 1, KL_RANK - 1) || !ops_axis("dim", op_int(x->op, "dim"), n->rank, &axis))
    return false;
  if (n->dims[axis] < 1) return x_out(x, "Out", ops_blank_like(x->g, n));
  Node *w = ending_here(x->g, n, axis, 1);
  return w && x_out(x, "Out", g_reduce(x->g, P_RPROD, w, 1u << (w->rank - 1), false));
}

static Node *turned(Graph *g, Node *n, int axis) {
  return n ? ops_cut(g, n, axis, n->dims[axis] - 1, -1, n->dims[axis]) : NULL;
}

bool x_logcumsumexp(Expand *x) {
  Graph *g = x->g;
  Node *n = x_in(x, "X");
  int axis = 0;
  if (!ops_float(n, "X")) return false;
  if (op_bool(x->op, "flatten")) {
    int64_t all = ops_prod(n->dims, 0, n->rank);
    n = ops_reshape(g, n, 1, &all);
  } else if (!ops_rank(n, "X", 1, KL_RANK - 1) ||
             !ops_axis("axis", op_int(x->op, "axis"), n->rank, &axis)) {
    return false;
  }
  if (!n) return false;
  if (op_bool(x->op, "exclusive")) return err_set(E_OPR_004, "exclusive is not supported");
  if (n->dims[axis] < 1) return x_out(x, "Out", ops_blank_like(g, n));
  bool back = op_bool(x->op, "reverse");
  if (back) n = turned(g, n, axis);
  Node *most = g_reduce(g, P_RMAX, n, 1u << axis, true);
  Node *w = ending_here(g, g_map1(g, P_EXP, ops_sub(g, n, most)), axis, 0);
  Node *sum = w ? g_reduce(g, P_RSUM, w, 1u << (w->rank - 1), false) : NULL;
  Node *out = sum ? ops_add(g, g_map1(g, P_LOG, sum), most) : NULL;
  return x_out(x, "Out", back ? turned(g, out, axis) : out);
}

/* ---- rows and columns of several inputs ---- */

bool x_multiplex(Expand *x) {
  Graph *g = x->g;
  int n = x_n_in(x, "X");
  Node *ids = x_in(x, "Ids"), **in = arena_array(g->arena, Node *, n), *out = NULL;
  if (!ops_index(ids, "Ids")) return false;
  for (int i = 0; i < n; i++)
    if (!ops_rank(in[i] = x_in_at(x, "X", i), "X", 1, KL_RANK)) return false;
  int64_t rows = in[0]->dims[0];
  if (rows < 0 || !ops_known(in[0])) return x_out(x, "Out", ops_blank_like(g, in[0]));
  ids = g_check(g, g_reshape(g, ids, 1, &rows), 0, n, false, 0, E_DAT_002);
  ids = ops_along(g, ids, in[0]->rank, 0);
  for (int i = 0; i < n; i++) out = out ? g_select(g, g_map2c(g, P_EQ, ids, i), in[i], out) : in[i];
  return x_out(x, "Out", out);
}

/* To each X the rows of Out@GRAD that it gave, 0 elsewhere. */
bool x_multiplex_grad(Expand *x);
bool x_multiplex_grad(Expand *x) {
  Graph *g = x->g;
  Node *ids = x_in(x, "Ids"), *gy = x_in(x, "Out@GRAD");
  if (!ops_index(ids, "Ids") || !ops_rank(gy, "Out@GRAD", 1, KL_RANK)) return false;
  bool known = gy->dims[0] >= 0;
  if (known) ids = ops_along(g, g_reshape(g, ids, 1, gy->dims), gy->rank, 0);
  for (int i = 0; i < x_n_out(x, "X@GRAD"); i++) {
    Node *own = known ? g_map2c(g, P_EQ, ids, i) : NULL;
    Node *v = own ? g_select(g, own, gy, g_const(g, gy->dtype, 0)) : ops_blank_like(g, gy);
    if (!x_out_at(x, "X@GRAD", i, v)) return false;
  }
  return !err_any();
}

/* Columns start_index.. of input i. */
static Node *some_columns(Expand *x, int i) {
  Node *in = x_in_at(x, "X", i);
  int64_t from = op_int(x->op, "start_index"), n = op_int(x->op, "length");
  if (!ops_rank(in, "X", 2, 2) || in->dims[1] < 0) return in;
  if (from < 0) from += in->dims[1];
  if (n < 0) n = in->dims[1] - from;
  if (from >= 0 && n >= 0 && from + n <= in->dims[1]) return ops_cut(x->g, in, 1, from, 1, n);
  err_set(E_OPR_003, "columns %lld to %lld of %lld", (long long)from, (long long)(from + n),
          (long long)in->dims[1]);
  return NULL;
}

bool x_partial_concat(Expand *x) {
  int n = x_n_in(x, "X");
  Node **in = arena_array(x->g->arena, Node *, n);
  for (int i = 0; i < n; i++)
    if (!(in[i] = some_columns(x, i))) return false;
  return x_out(x, "Out", g_concat(x->g, n, in, 1));
}

bool x_partial_sum(Expand *x) {
  Node *sum = NULL;
  for (int i = 0; i < x_n_in(x, "X"); i++) {
    Node *part = some_columns(x, i);
    if (err_any()) return false;
    sum = sum ? ops_add(x->g, sum, part) : part;
  }
  return x_out(x, "Out", sum);
}

bool x_index_add(Expand *x) {
  Graph *g = x->g;
  Node *in = x_in(x, "X"), *ids = x_in(x, "Index"), *add = x_in(x, "AddValue");
  int axis;
  if (!ops_rank(in, "X", 1, KL_RANK) || !ops_index(ids, "Index") || !ops_rank(ids, "Index", 1, 1) ||
      !ops_rank(add, "AddValue", in->rank, in->rank) ||
      !ops_axis("axis", op_int(x->op, "axis"), in->rank, &axis))
    return false;
  if (!ops_known(in) || !ops_known(add)) return x_out(x, "Out", ops_blank_like(g, in));
  for (int d = 0; d < in->rank; d++)
    if (!ops_same(d == axis ? "rows of AddValue and Index" : "sizes of AddValue and X",
                  add->dims[d], d == axis ? ids->dims[0] : in->dims[d]))
      return false;
  ids = g_check(g, ids, 0, in->dims[axis], false, 0, E_DAT_002);
  ids = g_expand(g, ops_along(g, ids, in->rank, axis), in->rank, add->dims);
  return x_out(x, "Out", g_scatter(g, in, ids, add, axis, false));
}

bool x_index_add_grad(Expand *x) {
  Graph *g = x->g;
  Node *gy = x_in(x, "Out@GRAD"), *ids = x_in(x, "Index");
  int axis;
  if (!gy || !ids || !ops_axis("axis", op_int(x->op, "axis"), gy->rank, &axis)) return false;
  if (gy->dims[axis] >= 0) ids = g_check(g, ids, 0, gy->dims[axis], false, 0, E_DAT_002);
  return x_out(x, "X@GRAD", gy) &&
         (!x_wants(x, "AddValue@GRAD") || x_out(x, "AddValue@GRAD", ops_take(g, gy, ids, axis)));
}

/* ---- along a dimension ---- */

bool x_renorm(Expand *x) {
  Graph *g = x->g;
  Node *n = x_in(x, "X");
  int axis;
  double p = op_float(x->op, "p"), most = op_float(x->op, "max_norm");
  if (!ops_float(n, "X") || !ops_rank(n, "X", 1, KL_RANK) ||
      !ops_axis("axis", op_int(x->op, "axis"), n->rank, &axis))
    return false;
  if (!(p > 0)) return err_set(E_OPR_003, "p is %g", p);
  Node *a = g_map2(g, P_MAX, n, ops_times(g, n, -1));
  Node *sum =
      g_reduce(g, P_RSUM, g_map2c(g, P_POW, a, p), ((1u << n->rank) - 1) & ~(1u << axis), true);
  Node *one = g_const(g, n->dtype, 1), *none = sum ? g_map2c(g, P_EQ, sum, 0) : NULL;
  Node *norm =
      g_map2c(g, P_POW, g_select(g, none, one, sum), 1 / p); /* its slope at 0 is infinite */
  if (!norm) return false;
  Node *factor = ops_div(g, g_const(g, n->dtype, most), ops_plus(g, norm, 1e-7));
  Node *fits = g_map2(g, P_LE, norm, g_const(g, n->dtype, most));
  fits = g_map2(g, P_MAX, none, fits);
  return x_out(x, "Out", ops_mul(g, n, g_select(g, fits, one, factor)));
}

bool x_row_conv(Expand *x) {
  Graph *g = x->g;
  Node *in = x_in(x, "X"), *w = x_in(x, "Filter"), *sum = NULL;
  if (!ops_rank(in, "X", 3, 3) || !ops_rank(w, "Filter", 2, 2) ||
      !ops_same("columns of X and Filter", in->dims[2], w->dims[1]))
    return false;
  if (!ops_known(in) || !ops_known(w)) return x_out(x, "Out", ops_blank_like(g, in));
  for (int64_t i = 0; i < w->dims[0]; i++) {
    Node *row = ops_cut(g, w, 0, i, 1, 1);
    Node *moved = g_pad(g, in, (int64_t[]){0, -i, 0}, (int64_t[]){0, i, 0}, 0);
    if (i >= in->dims[1]) break;
    Node *part = ops_mul(g, moved, row);
    sum = sum ? ops_add(g, sum, part) : part;
  }
  return x_out(x, "Out", sum);
}

/* sin(p / 10000^(k / (half - 1))) in the first half of the columns, cos in the second. */
bool x_add_position_encoding(Expand *x) {
  Graph *g = x->g;
  Node *in = x_in(x, "X");
  if (!ops_float(in, "X") || !ops_rank(in, "X", 3, 3)) return false;
  if (!ops_known(in)) return x_out(x, "Out", ops_blank_like(g, in));
  int64_t t = in->dims[1], c = in->dims[2], half = c / 2, dims[] = {1, t, c};
  if (c % 2 || !c)
    return err_set(E_SHP_006, "X has %lld columns, an even number is needed", (long long)c);
  if (!ops_table("positions", t, c)) return false;
  double *v = arena_array(g->arena, double, t *c);
  for (int64_t p = 0; p < t; p++)
    for (int64_t k = 0; k < half; k++) {
      double a = (double)p / (half > 1 ? pow(10000, (double)k / (double)(half - 1)) : 10000);
      v[p * c + k] = sin(a);
      v[p * c + half + k] = cos(a);
    }
  Node *table = g_cast(g, g_data(g, DT_FLOAT64, 3, dims, v, "positions"), in->dtype);
  return x_out(x, "Out",
               ops_add(g, ops_times(g, in, op_float(x->op, "alpha")),
                       ops_times(g, table, op_float(x->op, "beta"))));
}
