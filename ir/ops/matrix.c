/* Dense matrices: inverses, determinants and Cholesky factors as calls of plain C, in double precision; powers and chains as
 * products. In: matrices in the last two dimensions. LU with partial pivoting and Cholesky-Banachiewicz as in Golub and Van
 * Loan, "Matrix Computations". */
#include "ops.h"

#include <math.h>
#include <string.h>

/* Of n x n matrices, row-major; `a` is overwritten. */
typedef bool MatrixFn(int64_t n, double *a, double *out);

static void swap_rows(int64_t n, double *a, int64_t i, int64_t j) {
  for (int64_t k = 0; k < n; k++) {
    double t = a[i * n + k];
    a[i * n + k] = a[j * n + k], a[j * n + k] = t;
  }
}

/* The row of the largest element in the column, from the diagonal on. */
static int64_t pivot(int64_t n, const double *a, int64_t column) {
  int64_t best = column;
  for (int64_t i = column + 1; i < n; i++)
    if (fabs(a[i * n + column]) > fabs(a[best * n + column])) best = i;
  return best;
}

static bool invert(int64_t n, double *a, double *out) {
  memset(out, 0, sizeof *out * (size_t)(n * n));
  for (int64_t i = 0; i < n; i++) out[i * n + i] = 1;
  for (int64_t c = 0; c < n; c++) {
    int64_t p = pivot(n, a, c);
    if (a[p * n + c] == 0) return err_set(E_RUN_004, "a matrix to be inverted is singular");
    swap_rows(n, a, c, p), swap_rows(n, out, c, p);
    double by = 1 / a[c * n + c];
    for (int64_t k = 0; k < n; k++) a[c * n + k] *= by, out[c * n + k] *= by;
    for (int64_t i = 0; i < n; i++) {
      double f = a[i * n + c];
      for (int64_t k = 0; i != c && f != 0 && k < n; k++)
        a[i * n + k] -= f * a[c * n + k], out[i * n + k] -= f * out[c * n + k];
    }
  }
  return true;
}

static bool determinant(int64_t n, double *a, double *out) {
  *out = 1;
  for (int64_t c = 0; c < n && *out != 0; c++) {
    int64_t p = pivot(n, a, c);
    if (p != c) swap_rows(n, a, c, p), *out = -*out;
    *out *= a[c * n + c];
    for (int64_t i = c + 1; i < n && *out != 0; i++) {
      double f = a[i * n + c] / a[c * n + c];
      for (int64_t k = c; k < n; k++) a[i * n + k] -= f * a[c * n + k];
    }
  }
  return true;
}

/* The lower factor, from the lower triangle. */
static bool cholesky(int64_t n, double *a, double *out) {
  memset(out, 0, sizeof *out * (size_t)(n * n));
  for (int64_t i = 0; i < n; i++)
    for (int64_t j = 0; j <= i; j++) {
      double s = a[i * n + j];
      for (int64_t k = 0; k < j; k++) s -= out[i * n + k] * out[j * n + k];
      if (i == j && !(s > 0)) return err_set(E_RUN_004, "a matrix is not positive definite");
      out[i * n + j] = i == j ? sqrt(s) : s / out[j * n + j];
    }
  return true;
}

/* The function on each matrix of the input. */
static bool on_matrices(const CustomOp *op, int n_in, const Tensor *in, int n_out, Tensor *out) {
  (void)n_in, (void)n_out;
  MatrixFn *const *f = op->user;
  int64_t n = in->dims[in->rank - 1], all = tensor_numel(in), each = n * n;
  int64_t results = all ? tensor_numel(out) / (all / each) : 0;
  double *a = mem_alloc(sizeof *a * (size_t)(each + each + 1)), *r = a + each;
  bool ok = true;
  for (int64_t m = 0; ok && m * each < all; m++) {
    for (int64_t i = 0; i < each; i++) a[i] = tensor_get(in, m * each + i);
    ok = (*f)(n, a, r);
    for (int64_t i = 0; ok && i < results; i++) tensor_set(out, m * results + i, r[i]);
  }
  mem_free(a);
  return ok;
}

static MatrixFn *const functions[] = {invert, determinant, cholesky};
#define CALL(name, i)                                                                              \
  { (name), "X -> Out", NULL, on_matrices, NULL, (void *)&functions[i] }
static const CustomOp inverse_call = CALL("inverse", 0), determinant_call = CALL("determinant", 1),
                      cholesky_call = CALL("cholesky", 2);

static bool matrix_call(Expand *x, const CustomOp *call, const char *in, const char *out,
                        int drop) {
  Node *a = x_in(x, in);
  if (!ops_rank(a, in, 2, KL_VAR_RANK) || !ops_float(a, in) ||
      !ops_same("rows and columns", a->dims[a->rank - 1], a->dims[a->rank - 2]))
    return false;
  Node *y = ops_known(a) ? g_call(x->g, call, false, 1, &a, a->dtype, a->rank - drop, a->dims)
                         : ops_blank(x->g, a->dtype, a->rank - drop, a->dims);
  return x_out(x, out, y);
}

Node *ops_inverse(Graph *g, Node *a) {
  return a ? g_call(g, &inverse_call, false, 1, &a, a->dtype, a->rank, a->dims) : NULL;
}

bool x_inverse(Expand *x) { return matrix_call(x, &inverse_call, "Input", "Output", 0); }
bool x_determinant(Expand *x) { return matrix_call(x, &determinant_call, "Input", "Out", 2); }

static Node *transposed(Graph *g, Node *a) {
  int perm[KL_RANK];
  for (int d = 0; a && d < a->rank; d++) perm[d] = d;
  if (a) perm[a->rank - 1] = a->rank - 2, perm[a->rank - 2] = a->rank - 1;
  return a ? g_permute(g, a, perm) : NULL;
}

bool x_cholesky(Expand *x) {
  bool upper = op_bool(x->op, "upper");
  Node *a = x_in(x, "X");
  if (!ops_rank(a, "X", 2, KL_VAR_RANK)) return false;
  if (!upper) return matrix_call(x, &cholesky_call, "X", "Out", 0);
  Node *t = transposed(x->g, a);
  if (!t || !ops_float(a, "X") ||
      !ops_same("rows and columns", t->dims[t->rank - 1], t->dims[t->rank - 2]))
    return false;
  Node *l = ops_known(t) ? g_call(x->g, &cholesky_call, false, 1, &t, t->dtype, t->rank, t->dims)
                         : ops_blank(x->g, t->dtype, t->rank, t->dims);
  return x_out(x, "Out", transposed(x->g, l));
}

bool x_multi_dot(Expand *x) {
  Graph *g = x->g;
  int n = x_n_in(x, "X");
  Node *y = x_in_at(x, "X", 0);
  if (n < 2 || !ops_rank(y, "X", 1, 2))
    return err_any() ? false : err_set(E_OPR_002, "X has %d matrices, at least 2 are needed", n);
  bool row = y->rank == 1, column = false;
  if (row) y = ops_reshape(g, y, 2, (int64_t[]){1, y->dims[0]});
  for (int i = 1; i < n && y; i++) {
    Node *b = x_in_at(x, "X", i);
    if (!ops_rank(b, "X", i == n - 1 ? 1 : 2, 2)) return false;
    column = b->rank == 1;
    if (column) b = ops_reshape(g, b, 2, (int64_t[]){b->dims[0], 1});
    y = g_matmul(g, y, b, false, false);
  }
  if (!y) return false;
  int64_t dims[2];
  int rank = 0;
  if (!row) dims[rank++] = y->dims[0];
  if (!column) dims[rank++] = y->dims[1];
  return x_out(x, "Out", ops_reshape(g, y, rank, dims));
}

bool x_matrix_power(Expand *x) {
  Graph *g = x->g;
  Node *a = x_in(x, "X"), *y = NULL;
  int64_t n = op_int(x->op, "n");
  if (!ops_rank(a, "X", 2, KL_VAR_RANK) || n == INT32_MIN ||
      !ops_same("rows and columns", a->dims[a->rank - 1], a->dims[a->rank - 2]))
    return err_any() ? false : err_set(E_OPR_003, "n is %lld", (long long)n);
  if (!ops_known(a)) return x_out(x, "Out", ops_blank(g, a->dtype, a->rank, a->dims));
  if (n < 0) a = ops_inverse(g, a), n = -n;
  for (; n > 0 && a; n /= 2) { /* squares */
    if (n % 2) y = y ? g_matmul(g, y, a, false, false) : a;
    if (n > 1) a = g_matmul(g, a, a, false, false);
  }
  if (y || err_any()) return x_out(x, "Out", y);
  Node *i = g_iota(g, DT_INT64, a->rank, a->dims, a->rank - 2),
       *j = g_iota(g, DT_INT64, a->rank, a->dims, a->rank - 1);
  return x_out(x, "Out", g_cast(g, g_map2(g, P_EQ, i, j), a->dtype));
}

/* The sum of b^i gy b^(n-1-i) over i = 0..n-1, by doubling: s(2k) = b^k s(k) + s(k) b^k. */
static Node *power_sum(Graph *g, Node *b, Node *gy, int64_t n) {
  Node *s = gy, *p = b; /* of k = 1 */
  int bit = 0;
  while (n >> (bit + 1)) bit++;
  while (bit-- > 0 && s) {
    s = ops_add(g, g_matmul(g, p, s, false, false), g_matmul(g, s, p, false, false));
    p = g_matmul(g, p, p, false, false);
    if (!(n >> bit & 1)) continue;
    s = ops_add(g, g_matmul(g, b, s, false, false), g_matmul(g, gy, p, false, false));
    p = g_matmul(g, p, b, false, false);
  }
  return s;
}

bool x_matrix_power_grad(Expand *x) {
  Graph *g = x->g;
  Node *a = x_in(x, "X"), *gy = x_in(x, "Out@GRAD");
  int64_t n = op_int(x->op, "n");
  int perm[KL_RANK];
  if (!gy || !ops_rank(a, "X", 2, KL_VAR_RANK)) return false;
  if (!ops_known(a) || n == 0)
    return x_out(x, "X@GRAD", ops_known(a) ? ops_zeros(g, a) : ops_blank_like(g, a));
  for (int d = 0; d < a->rank; d++) perm[d] = d;
  perm[a->rank - 1] = a->rank - 2, perm[a->rank - 2] = a->rank - 1;
  if (n < 0) a = ops_inverse(g, a);
  Node *b = a ? g_permute(g, a, perm) : NULL, *s = power_sum(g, b, gy, n < 0 ? -n : n);
  if (n < 0) s = ops_times(g, g_matmul(g, g_matmul(g, b, s, false, false), b, false, false), -1);
  return x_out(x, "X@GRAD", s);
}
