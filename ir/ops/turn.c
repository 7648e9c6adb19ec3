/* Views that turn or spread a tensor: flip and roll along its axes, meshgrid over the grid of vectors, diag_v2 between a vector
 * and the diagonal of a matrix. */
#include "ops.h"

/* ---- flip, roll ---- */

bool x_flip(Expand *x) {
  Node *v = x_in(x, "X");
  uint32_t axes;
  if (!v || !ops_axes(x, "axis", v->rank, &axes)) return false;
  if (!ops_known(v)) return x_out(x, "Out", ops_blank_like(x->g, v));
  for (int i = 0; i < v->rank; i++)
    if ((axes >> i & 1) && v && v->dims[i] > 1)
      v = ops_cut(x->g, v, i, v->dims[i] - 1, -1, v->dims[i]);
  return x_out(x, "Out", v);
}

static Node *rolled(Graph *g, Node *v, int axis, int64_t shift, bool back) {
  if (!v || v->dims[axis] <= 0) return v;
  int64_t n = v->dims[axis], s = ((shift % n) + n) % n;
  if (s == 0) return v;
  if (back) s = n - s;
  Node *part[2] = {ops_cut(g, v, axis, n - s, 1, s), ops_cut(g, v, axis, 0, 1, n - s)};
  return g_concat(g, 2, part, axis);
}

/* back: the other way. */
static bool roll(Expand *x, Node *in, const char *out, bool back) {
  Node *v = in;
  int n_axis, a;
  const int64_t *axis = op_intlist(x->op, "axis", x->g->arena, &n_axis);
  int64_t shift[KL_RANK];
  int n = in ? ops_list(x, NULL, "ShiftsTensor", "shifts", shift, KL_RANK) : -1;
  if (n < 0) return false;
  if (n == 0 || (n_axis != n && !(n_axis == 0 && n == 1))) {
    err_set(E_OPR_003, "shifts has %d values for %d axes", n, n_axis);
    err_help("Give one shift for each axis, or a single shift and no axis.");
    return false;
  }
  for (int i = 0; i < n_axis; i++)
    if (!ops_axis("axis", axis[i], in->rank, &a)) return false;
  bool known = ops_known(in);
  for (int i = 0; i < n; i++) {
    known = known && shift[i] != OPS_UNKNOWN;
    if (shift[i] == OPS_UNKNOWN + 1)
      return err_set(E_OPR_003, "shifts holds %lld or less", (long long)shift[i]);
  }
  if (!known) return x_out(x, out, ops_blank_like(x->g, in));
  if (n_axis == 0) {
    int64_t all = node_numel(in);
    v = rolled(x->g, g_reshape(x->g, in, 1, &all), 0, shift[0], back);
    return x_out(x, out, v ? g_reshape(x->g, v, in->rank, in->dims) : NULL);
  }
  for (int i = 0; i < n && v; i++) {
    if (!ops_axis("axis", axis[i], in->rank, &a)) return false;
    v = rolled(x->g, v, a, shift[i], back);
  }
  return x_out(x, out, v);
}

bool x_roll(Expand *x) { return roll(x, x_in(x, "X"), "Out", false); }

bool x_roll_grad(Expand *x) { return roll(x, x_in(x, "Out@GRAD"), "X@GRAD", true); }

/* ---- meshgrid ---- */

bool x_meshgrid(Expand *x) {
  int n;
  Node **v = ops_all_in(x, "X", &n);
  int64_t dims[KL_RANK];
  if (!v) return false;
  if (n > KL_RANK) return err_set(E_SHP_002, "%d inputs, at most %d", n, KL_RANK);
  for (int i = 0; i < n; i++) {
    if (!ops_rank(v[i], "X", 0, 1)) return false;
    dims[i] = ops_prod(v[i]->dims, 0, v[i]->rank);
  }
  for (int i = 0; i < n; i++)
    if (!x_out_at(x, "Out", i, g_expand_to(x->g, ops_along(x->g, v[i], n, i), n, dims)))
      return false;
  return true;
}

bool x_meshgrid_grad(Expand *x) {
  int n, m;
  Node **v = ops_all_in(x, "X", &n), **gy = v ? ops_all_in(x, "outputs@GRAD", &m) : NULL;
  if (!gy || !ops_same("the number of X and of their gradients", n, m)) return false;
  for (int i = 0; i < n; i++) {
    if (!ops_rank(gy[i], "outputs@GRAD", n, n)) return false;
    Node *sum = g_reduce(x->g, P_RSUM, gy[i], ((1u << n) - 1) & ~(1u << i), true);
    if (!sum || !x_out_at(x, "X@GRAD", i, ops_reshape(x->g, sum, v[i]->rank, v[i]->dims)))
      return false;
  }
  return true;
}

/* ---- diag_v2 ---- */

/* v placed on the diagonal `off` of a [rows, cols] matrix that holds `fill` elsewhere. */
static Node *on_diagonal(Graph *g, Node *v, int64_t off, int64_t rows, int64_t cols, double fill) {
  int axis = off < 0; /* the index that runs along with v */
  int64_t dims[2] = {rows, cols}, lo[2] = {0, 0}, hi[2] = {0, 0};
  Node *spread = ops_along(g, v, 2, axis);
  if (!spread) return NULL;
  hi[axis] = dims[axis] - spread->dims[axis];
  spread = g_expand(g, g_pad(g, spread, lo, hi, fill), 2, dims);
  Node *col = g_iota(g, DT_INT64, 2, dims, 1), *row = g_iota(g, DT_INT64, 2, dims, 0);
  Node *hit = g_map2(g, P_EQ, g_map2(g, P_SUB, col, row), g_full_int(g, DT_INT64, off, 2, dims));
  return g_select(g, hit, spread, g_const(g, v->dtype, fill));
}

/* Length of diagonal `off` of a [rows, cols] matrix. */
static int64_t diagonal_length(int64_t off, int64_t rows, int64_t cols) {
  int64_t r = off < 0 ? rows + off : rows, c = off > 0 ? cols - off : cols;
  int64_t n = r < c ? r : c;
  return n < 0 ? 0 : n;
}

static bool diag_offset(Expand *x, int64_t *off) {
  *off = op_int(x->op, "offset");
  if (*off > -INT32_MAX && *off < INT32_MAX) return true;
  return err_set(E_OPR_003, "offset is %lld", (long long)*off);
}

static Node *diagonal(Graph *g, Node *m, int64_t off) {
  int64_t n = diagonal_length(off, m->dims[0], m->dims[1]);
  AffDim map[2] = {{0, -1, 1, 0, off < 0 ? -off : 0, 1}, {0, -1, 1, 0, off > 0 ? off : 0, 1}};
  return g_view(g, m, 1, &n, map, 0);
}

bool x_diag_v2(Expand *x) {
  Graph *g = x->g;
  Node *in = x_in(x, "X");
  int64_t off;
  double fill = op_float(x->op, "padding_value");
  if (!ops_rank(in, "X", 1, 2) || !diag_offset(x, &off)) return false;
  int64_t side = in->dims[0] < 0 ? -1 : in->dims[0] + (off < 0 ? -off : off);
  if (!ops_known(in)) {
    int64_t dims[2] = {side, side}, any = -1;
    return x_out(x, "Out",
                 in->rank == 1 ? ops_blank(g, in->dtype, 2, dims)
                               : ops_blank(g, in->dtype, 1, &any));
  }
  return x_out(x, "Out",
               in->rank == 1 ? on_diagonal(g, in, off, side, side, fill) : diagonal(g, in, off));
}

bool x_diag_v2_grad(Expand *x) {
  Graph *g = x->g;
  Node *in = x_in(x, "X"), *gy = x_in(x, "Out@GRAD");
  int64_t off;
  if (!ops_rank(in, "X", 1, 2) || !gy || !diag_offset(x, &off)) return false;
  if (!ops_known(in)) return x_out(x, "X@GRAD", ops_blank_like(g, in));
  if (in->rank == 1)
    return ops_rank(gy, "Out@GRAD", 2, 2) && x_out(x, "X@GRAD", diagonal(g, gy, off));
  if (node_numel(gy) == 0) return x_out(x, "X@GRAD", ops_zeros(g, in));
  return x_out(x, "X@GRAD", on_diagonal(g, gy, off, in->dims[0], in->dims[1], 0));
}
