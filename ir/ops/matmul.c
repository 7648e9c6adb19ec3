/* Matrix products: matmul_v2, matmul, mul, bmm, dot, mv, addmm and the fused fc. All become contractions by g_matmul; what
 * remains here are the rules about ranks: vectors as operands, and operands flattened to matrices. */
#include "ops.h"

#include <string.h>

/* The dimensions without the ones whose bit is set. */
static Node *drop_dims(Graph *g, Node *n, uint32_t drop) {
  if (!n) return NULL;
  int64_t dims[KL_RANK];
  int rank = 0;
  for (int i = 0; i < n->rank; i++)
    if (!(drop >> i & 1)) dims[rank++] = n->dims[i];
  return ops_reshape(g, n, rank, dims);
}

/* A vector x counts as a row and a vector y as a column; the added dimension is removed again. */
static Node *matmul_any_rank(Graph *g, Node *x, Node *y, bool tx, bool ty) {
  if (!ops_rank(x, "X", 1, KL_RANK) || !ops_rank(y, "Y", 1, KL_RANK)) return NULL;
  bool row = x->rank == 1, column = y->rank == 1;
  if (row) x = ops_reshape(g, x, 2, (int64_t[]){1, x->dims[0]});
  if (column) y = ops_reshape(g, y, 2, (int64_t[]){y->dims[0], 1});
  Node *out = g_matmul(g, x, y, tx && !row, ty && !column);
  if (!out || (!row && !column)) return out;
  return drop_dims(g, out,
                   (row ? 1u << (out->rank - 2) : 0) | (column ? 1u << (out->rank - 1) : 0));
}

bool x_matmul_v2(Expand *x) {
  return x_out(x, "Out",
               matmul_any_rank(x->g, x_in(x, "X"), x_in(x, "Y"), op_bool(x->op, "trans_x"),
                               op_bool(x->op, "trans_y")));
}

bool x_matmul(Expand *x) {
  if (op_int(x->op, "head_number") > 1)
    return err_set(E_OPR_004, "head_number %lld is not supported",
                   (long long)op_int(x->op, "head_number"));
  Node *out = matmul_any_rank(x->g, x_in(x, "X"), x_in(x, "Y"), op_bool(x->op, "transpose_X"),
                              op_bool(x->op, "transpose_Y"));
  double alpha = op_float(x->op, "alpha");
  if (out && out->rank == 0) out = g_reshape(x->g, out, 1, (int64_t[]){1});
  return x_out(x, "Out", alpha == 1 ? out : g_map2c(x->g, P_MUL, out, alpha));
}

/* [d0.., dn..] as a matrix with the first `split` dimensions in its rows. */
static Node *as_matrix(Expand *x, Node *n, const char *slot, const char *attr, int64_t split) {
  if (!n) return NULL;
  if (split < 1 || split >= n->rank) {
    err_set(E_OPR_003, "%s is %lld, but %s is %s", attr, (long long)split, slot,
            shape_text(n->dtype, n->rank, n->dims));
    err_help("%s must be in 1..%d.", attr, n->rank - 1);
    return NULL;
  }
  return ops_reshape(x->g, n, 2,
                     (int64_t[]){ops_prod(n->dims, 0, (int)split),
                                 ops_prod(n->dims, (int)split, n->rank)});
}

static Node *matrix_product(Expand *x, Node *a, Node *b, const char *sa, const char *sb,
                            const char *attr_a, int64_t na, const char *attr_b, int64_t nb) {
  Node *ma = as_matrix(x, a, sa, attr_a, na), *mb = as_matrix(x, b, sb, attr_b, nb);
  Node *out = g_matmul(x->g, ma, mb, false, false);
  if (!out) return NULL;
  int rank = 0;
  int64_t dims[2 * KL_RANK];
  for (int i = 0; i < na; i++) dims[rank++] = a->dims[i];
  for (int i = (int)nb; i < b->rank; i++) dims[rank++] = b->dims[i];
  if (rank > KL_RANK) {
    err_set(E_SHP_002, "the result would have %d dimensions, at most %d", rank, KL_RANK);
    return NULL;
  }
  return ops_reshape(x->g, out, rank, dims);
}

bool x_mul(Expand *x) {
  return x_out(x, "Out",
               matrix_product(x, x_in(x, "X"), x_in(x, "Y"), "X", "Y", "x_num_col_dims",
                              op_int(x->op, "x_num_col_dims"), "y_num_col_dims",
                              op_int(x->op, "y_num_col_dims")));
}

bool x_fc(Expand *x) {
  static const char *const words[] = {"", "relu"};
  int act = op_word(x->op, "activation_type", 2, words);
  if (act < 0) return false;
  if (op_bool(x->op, "padding_weights"))
    return err_set(E_OPR_004, "padding_weights is not supported");
  Node *out = matrix_product(x, x_in(x, "Input"), x_in(x, "W"), "Input", "W", "in_num_col_dims",
                             op_int(x->op, "in_num_col_dims"), "columns of W", 1);
  if (out && x_n_in(x, "Bias") > 0) {
    Node *bias = x_in(x, "Bias");
    out = g_map2(x->g, P_ADD, out, ops_along(x->g, bias, 1, 0));
  }
  return x_out(x, "Out", act == 1 ? g_map2c(x->g, P_MAX, out, 0) : out);
}

bool x_bmm(Expand *x) {
  Node *a = x_in(x, "X"), *b = x_in(x, "Y");
  if (!ops_rank(a, "X", 3, 3) || !ops_rank(b, "Y", 3, 3)) return false;
  if (!ops_same("batch sizes of X and Y", a->dims[0], b->dims[0])) return false;
  return x_out(x, "Out", g_matmul(x->g, a, b, false, false));
}

bool x_dot(Expand *x) {
  Node *a = x_in(x, "X"), *b = x_in(x, "Y");
  if (!ops_rank(a, "X", 1, 2) || !ops_rank(b, "Y", a->rank, a->rank)) return false;
  for (int i = 0; i < a->rank; i++)
    if (!ops_same("dimensions of X and Y", a->dims[i], b->dims[i])) return false;
  Node *p = g_map2(x->g, P_MUL, a, b);
  return x_out(x, "Out", g_reduce(x->g, P_RSUM, p, 1u << (a->rank - 1), false));
}

bool x_mv(Expand *x) {
  Node *a = x_in(x, "X"), *v = x_in(x, "Vec");
  if (!ops_rank(a, "X", 2, 2) || !ops_rank(v, "Vec", 1, 1)) return false;
  return x_out(x, "Out", matmul_any_rank(x->g, a, v, false, false));
}

bool x_addmm(Expand *x) {
  Node *in = x_in(x, "Input"), *a = x_in(x, "X"), *b = x_in(x, "Y");
  if (!ops_rank(in, "Input", 1, 2) || !ops_rank(a, "X", 2, 2) || !ops_rank(b, "Y", 2, 2))
    return false;
  Node *p = g_map2c(x->g, P_MUL, g_matmul(x->g, a, b, false, false), op_float(x->op, "Alpha"));
  Node *out = g_map2(x->g, P_ADD, g_map2c(x->g, P_MUL, in, op_float(x->op, "Beta")), p);
  if (out && (out->rank != 2 || !ops_same("rows of Input and X*Y", out->dims[0], p->dims[0]) ||
              !ops_same("columns of Input and X*Y", out->dims[1], p->dims[1])))
    return false;
  return x_out(x, "Out", out);
}
