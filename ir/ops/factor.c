/* Factors of dense matrices: eigenvalues, singular values, QR, LU, least squares. In: matrices in the last two dimensions. Out: calls
 * of LAPACK in double precision, matrix by matrix (E. Anderson et al., "LAPACK Users' Guide", 1999). */
#include "../blas.h"
#include "ops.h"

#include <math.h>
#include <string.h>

enum { MAX_OUT = 3, MAX_SIDE = 1 << 15 };

/* One m x n matrix, column-major and to be overwritten, and room for the results, matrices column-major too. */
typedef struct Problem {
  int m, n, k; /* k: the smaller */
  double *a, *out[MAX_OUT];
  int columns; /* of the first result; 0: it is one number */
} Problem;

typedef struct Factor {
  bool (*run)(Problem *p);
} Factor;

static int at_least_1(int n) { return n > 1 ? n : 1; }

static bool converged(int info) {
  return info == 0 ||
         err_set(E_RUN_004,
                 "a factorisation did not converge; the matrix may hold NaN or infinity");
}

static bool finite_all(const Problem *p) {
  for (int64_t i = 0; i < (int64_t)p->m * p->n; i++)
    if (!isfinite(p->a[i])) return converged(1);
  return true;
}

/* out: eigenvalues in ascending order, eigenvectors as columns. */
static bool eigen(Problem *p, const char *triangle) {
  int info, lwork = -1, liwork = -1, need;
  double best;
  if (!finite_all(p)) return false;
  blas.dsyevd("V", triangle, &p->n, p->a, &p->n, p->out[0], &best, &lwork, &need, &liwork, &info, 1,
              1);
  lwork = (int)best, liwork = need;
  double *work = mem_alloc(sizeof *work * (size_t)lwork);
  int *iwork = mem_alloc(sizeof *iwork * (size_t)liwork);
  blas.dsyevd("V", triangle, &p->n, p->a, &p->n, p->out[0], work, &lwork, iwork, &liwork, &info, 1,
              1);
  memcpy(p->out[1], p->a, sizeof *p->a * (size_t)p->n * (size_t)p->n);
  mem_free(work), mem_free(iwork);
  return converged(info);
}
static bool eigen_lower(Problem *p) { return eigen(p, "L"); }
static bool eigen_upper(Problem *p) { return eigen(p, "U"); }

/* out: U, singular values in descending order, transposed V. job: "S" as many columns as singular values, "A" all. */
static bool singular(Problem *p, const char *job, double *u, double *s, double *vt) {
  int info, lwork = -1, rows = *job == 'A' ? p->n : p->k;
  double best;
  if (!finite_all(p)) return false;
  int *iwork = mem_alloc(sizeof *iwork * 8 * (size_t)p->k);
  blas.dgesdd(job, &p->m, &p->n, p->a, &p->m, s, u, &p->m, vt, &rows, &best, &lwork, iwork, &info,
              1);
  lwork = (int)best;
  double *work = mem_alloc(sizeof *work * (size_t)lwork);
  blas.dgesdd(job, &p->m, &p->n, p->a, &p->m, s, u, &p->m, vt, &rows, work, &lwork, iwork, &info,
              1);
  mem_free(work), mem_free(iwork);
  return converged(info);
}
static bool singular_some(Problem *p) { return singular(p, "S", p->out[0], p->out[1], p->out[2]); }
static bool singular_all(Problem *p) { return singular(p, "A", p->out[0], p->out[1], p->out[2]); }

/* out: Q with `columns` columns, R with as many rows. */
static bool orthogonal(Problem *p, int columns) {
  int info, lwork = 64 * at_least_1(p->m > p->n ? p->m : p->n);
  double *work = mem_alloc(sizeof *work * (size_t)(lwork + p->k)), *tau = work + lwork,
         *q = p->out[0];
  blas.dgeqrf(&p->m, &p->n, p->a, &p->m, tau, work, &lwork, &info);
  for (int64_t j = 0; j < p->n; j++)
    for (int64_t i = 0; i < columns; i++)
      p->out[1][j * columns + i] = i <= j ? p->a[j * p->m + i] : 0;
  memset(q, 0, sizeof *q * (size_t)p->m * (size_t)columns);
  memcpy(q, p->a, sizeof *q * (size_t)p->m * (size_t)p->k);
  blas.dorgqr(&p->m, &columns, &p->k, q, &p->m, tau, work, &lwork, &info);
  mem_free(work);
  return converged(info);
}
static bool orthogonal_some(Problem *p) { return orthogonal(p, p->k); }
static bool orthogonal_all(Problem *p) { return orthogonal(p, p->m); }

/* out: both triangles in one matrix, the row that each was swapped with (from 1), which pivot is 0 (0: none). */
static bool triangles(Problem *p) {
  int info, *pivots = mem_alloc(sizeof *pivots * (size_t)p->k);
  blas.dgetrf(&p->m, &p->n, p->a, &p->m, pivots, &info);
  memcpy(p->out[0], p->a, sizeof *p->a * (size_t)p->m * (size_t)p->n);
  for (int i = 0; i < p->k; i++) p->out[1][i] = pivots[i];
  p->out[2][0] = info;
  mem_free(pivots);
  return true;
}

/* In: swaps of rows, as above, as a 1 x k matrix. out: the matrix that makes them. */
static bool permutation(Problem *p) {
  int m = p->columns;
  double *to = p->out[0];
  int *row = mem_alloc(sizeof *row * (size_t)m);
  bool ok = true;
  for (int i = 0; i < m; i++) row[i] = i;
  for (int i = 0; i < p->n && ok; i++) {
    int j = (int)p->a[i] - 1;
    ok = j >= 0 && j < m ? true : err_set(E_DAT_002, "pivot %d is %d, of %d rows", i, j + 1, m);
    if (!ok) break;
    int t = row[i];
    row[i] = row[j], row[j] = t;
  }
  memset(to, 0, sizeof *to * (size_t)m * (size_t)m);
  for (int i = 0; ok && i < m; i++) to[(int64_t)i * m + row[i]] = 1; /* column i, row row[i] */
  mem_free(row);
  return ok;
}

/* out: the sign and the logarithm of the absolute value of the determinant. */
static bool log_determinant(Problem *p) {
  int info, sign = 1, *pivots = mem_alloc(sizeof *pivots * (size_t)p->n);
  double sum = 0;
  blas.dgetrf(&p->n, &p->n, p->a, &p->n, pivots, &info);
  for (int i = 0; i < p->n; i++) {
    double d = p->a[(int64_t)i * p->n + i];
    if ((pivots[i] != i + 1) != (d < 0)) sign = -sign;
    if (d == 0) sign = 0;
    sum += log(fabs(d));
  }
  p->out[0][0] = sign, p->out[1][0] = sum;
  mem_free(pivots);
  return true;
}

/* ---- the calls ---- */

static int64_t each_of(const Tensor *out, int batch) {
  int64_t n = 1;
  for (int d = batch; d < out->rank; d++) n *= out->dims[d];
  return n;
}

/* Results of matrix number i into a tensor. */
static void put(Tensor *out, int batch, int64_t i, const double *v) {
  int64_t all = each_of(out, batch), rows = out->rank - batch == 2 ? out->dims[batch] : 1;
  for (int64_t e = 0; e < all; e++)
    tensor_set(out, i * all + e, rows == 1 ? v[e] : v[e % (all / rows) * rows + e / (all / rows)]);
}

static bool on_factors(const CustomOp *op, int n_in, const Tensor *in, int n_out, Tensor *out) {
  const Factor *f = op->user;
  int batch = in->rank - 2;
  int64_t rows = in->dims[batch], cols = in->dims[batch + 1], all = rows * cols, room = all, n = 1;
  (void)n_in;
  for (int d = 0; d < batch; d++) n *= in->dims[d];
  for (int k = 0; k < n_out; k++) room += each_of(&out[k], batch);
  if (!blas_setup()) return false;
  double *v = mem_alloc(sizeof *v * (size_t)(room + 1));
  bool ok = rows <= MAX_SIDE && cols <= MAX_SIDE;
  if (!ok) err_set(E_SHP_002, "a matrix of %lld x %lld", (long long)rows, (long long)cols);
  for (int64_t i = 0; ok && i < n; i++) {
    Problem p = {(int)rows, (int)cols, (int)(rows < cols ? rows : cols), v, {NULL}, 0};
    double *next = v + all;
    p.columns = out->rank ? (int)out->dims[out->rank - 1] : 0;
    for (int64_t e = 0; e < all; e++) v[e % cols * rows + e / cols] = tensor_get(in, i * all + e);
    for (int k = 0; k < n_out; k++) p.out[k] = next, next += each_of(&out[k], batch);
    memset(v + all, 0, sizeof *v * (size_t)(room - all));
    ok = p.k == 0 || f->run(&p);
    for (int k = 0; ok && k < n_out; k++) put(&out[k], batch, i, p.out[k]);
  }
  mem_free(v);
  return ok;
}

static const Factor factors[] = {{eigen_lower},  {eigen_upper},     {singular_some},
                                 {singular_all}, {orthogonal_some}, {orthogonal_all},
                                 {triangles},    {permutation},     {log_determinant}};
#define CALL(name, i)                                                                              \
  { (name), "X -> Out*", NULL, on_factors, NULL, (void *)(uintptr_t)&factors[i] }
static const CustomOp eigen_calls[] = {CALL("eigh_lower", 0), CALL("eigh_upper", 1)},
                      singular_calls[] = {CALL("svd_thin", 2), CALL("svd_full", 3)},
                      orthogonal_calls[] = {CALL("qr_thin", 4), CALL("qr_full", 5)},
                      triangles_call = CALL("lu", 6), permutation_call = CALL("pivots", 7),
                      determinant_call = CALL("slogdet", 8);

/* The shape of a result: the leading dimensions, then rows (-1: none) and columns (-1: none) of it. */
typedef struct Result {
  DType t;
  int64_t rows, cols;
} Result;
enum { NO_SIDE = -2 };

/* The nodes of a call; blank where the shape is not known. */
static void call_factors(Graph *g, const CustomOp *call, Node *a, int n, const Result *r,
                         Node **y) {
  int lead = a->rank - 2;
  for (int i = 0; i < n; i++) {
    int64_t dims[KL_RANK];
    int rank = lead;
    memcpy(dims, a->dims, sizeof *dims * (size_t)lead);
    if (r[i].rows != NO_SIDE) dims[rank++] = r[i].rows;
    if (r[i].cols != NO_SIDE) dims[rank++] = r[i].cols;
    y[i] = !ops_known(a) ? ops_blank(g, r[i].t, rank, dims)
           : i == 0      ? g_call(g, call, false, 1, &a, r[i].t, rank, dims)
                         : g_out(g, y[0], i, r[i].t, rank, dims);
  }
}

static bool matrix_in(Node *a, const char *slot, bool square) {
  return ops_rank(a, slot, 2, KL_VAR_RANK) && ops_float(a, slot) &&
         (!square || ops_same("rows and columns", a->dims[a->rank - 1], a->dims[a->rank - 2]));
}

static bool eigenvalues(Expand *x, Node *a, Node **y) {
  static const char *const words[] = {"L", "U"};
  int upper = op_word(x->op, "UPLO", 2, words);
  if (upper < 0 || !matrix_in(a, "X", true)) return false;
  int64_t n = a->dims[a->rank - 1];
  call_factors(x->g, &eigen_calls[upper], a, 2,
               (Result[]){{a->dtype, NO_SIDE, n}, {a->dtype, n, n}}, y);
  return true;
}

bool x_eigh(Expand *x) {
  Node *y[2];
  return eigenvalues(x, x_in(x, "X"), y) && x_out(x, "Eigenvalues", y[0]) &&
         x_out(x, "Eigenvectors", y[1]);
}

static int64_t smaller(int64_t m, int64_t n) { return m < 0 || n < 0 ? -1 : m < n ? m : n; }

/* y: U, S, transposed V. */
static bool singular_values(Expand *x, Node *a, bool full, Node **y) {
  if (!matrix_in(a, "X", false)) return false;
  int64_t m = a->dims[a->rank - 2], n = a->dims[a->rank - 1], k = smaller(m, n);
  Result r[] = {{a->dtype, m, full ? m : k}, {a->dtype, NO_SIDE, k}, {a->dtype, full ? n : k, n}};
  call_factors(x->g, &singular_calls[full], a, 3, r, y);
  return true;
}

bool x_svd(Expand *x) {
  Node *y[3];
  return singular_values(x, x_in(x, "X"), op_bool(x->op, "full_matrices"), y) &&
         x_out(x, "U", y[0]) && x_out(x, "S", y[1]) && x_out(x, "VH", y[2]);
}

bool x_qr(Expand *x) {
  static const char *const words[] = {"reduced", "complete", "r"};
  Node *a = x_in(x, "X"), *y[2];
  int mode = op_word(x->op, "mode", 3, words);
  if (mode < 0 || !matrix_in(a, "X", false)) return false;
  int64_t m = a->dims[a->rank - 2], n = a->dims[a->rank - 1], k = mode == 1 ? m : smaller(m, n);
  call_factors(x->g, &orthogonal_calls[mode == 1], a, 2,
               (Result[]){{a->dtype, m, k}, {a->dtype, k, n}}, y);
  return x_out(x, "Q", y[0]) && x_out(x, "R", y[1]);
}

bool x_lu(Expand *x) {
  Node *a = x_in(x, "X"), *y[3];
  if (!matrix_in(a, "X", false)) return false;
  if (!op_bool(x->op, "pivots")) return err_set(E_OPR_004, "lu without pivots");
  int64_t m = a->dims[a->rank - 2], n = a->dims[a->rank - 1];
  Result r[] = {{a->dtype, m, n}, {DT_INT32, NO_SIDE, smaller(m, n)}, {DT_INT32, NO_SIDE, NO_SIDE}};
  call_factors(x->g, &triangles_call, a, 3, r, y);
  return x_out(x, "Out", y[0]) && x_out(x, "Pivots", y[1]) &&
         x_out(x, "Infos", a->rank == 2 ? ops_reshape(x->g, y[2], 1, (int64_t[]){1}) : y[2]);
}

/* Row minus column of each element. */
static Node *below_diagonal(Graph *g, Node *a) {
  return ops_sub(g, g_iota(g, DT_INT64, a->rank, a->dims, a->rank - 2),
                 g_iota(g, DT_INT64, a->rank, a->dims, a->rank - 1));
}

/* The first rows and columns. */
static Node *corner(Graph *g, Node *a, int64_t rows, int64_t cols) {
  return ops_cut(g, ops_cut(g, a, a->rank - 2, 0, 1, rows), a->rank - 1, 0, 1, cols);
}

Node *ops_pivots(Graph *g, Node *pivots, DType t, int64_t m) {
  int64_t dims[KL_RANK];
  Node *row, *p;
  memcpy(dims, pivots->dims, sizeof *dims * (size_t)pivots->rank);
  dims[pivots->rank] = dims[pivots->rank - 1], dims[pivots->rank - 1] = 1;
  if (!(row = ops_reshape(g, pivots, pivots->rank + 1, dims))) return NULL;
  call_factors(g, &permutation_call, row, 1, (Result[]){{t, m, m}}, &p);
  return p;
}

bool x_lu_unpack(Expand *x) {
  Graph *g = x->g;
  Node *a = x_in(x, "X"), *pivots = x_in(x, "Pivots");
  if (!matrix_in(a, "X", false) || !ops_index(pivots, "Pivots") ||
      !ops_rank(pivots, "Pivots", a->rank - 1, a->rank - 1))
    return false;
  int64_t m = a->dims[a->rank - 2], n = a->dims[a->rank - 1], k = smaller(m, n), dims[KL_RANK];
  if (!x_out(x, "Pmat", ops_pivots(g, pivots, a->dtype, m))) return false;
  if (!ops_known(a)) {
    memcpy(dims, a->dims, sizeof *dims * (size_t)a->rank);
    dims[a->rank - 1] = k;
    if (!x_out(x, "L", ops_blank(g, a->dtype, a->rank, dims))) return false;
    dims[a->rank - 2] = k, dims[a->rank - 1] = n;
    return x_out(x, "U", ops_blank(g, a->dtype, a->rank, dims));
  }
  Node *zero = g_const(g, a->dtype, 0), *l = corner(g, a, m, k), *u = corner(g, a, k, n);
  Node *on = g_select(g, g_map2c(g, P_EQ, below_diagonal(g, l), 0), g_const(g, a->dtype, 1), zero);
  l = g_select(g, g_map2(g, P_LT, g_full_int(g, DT_INT64, 0, 0, NULL), below_diagonal(g, l)), l,
               on);
  return x_out(x, "L", l) &&
         x_out(x, "U", g_select(g, g_map2c(g, P_LE, below_diagonal(g, u), 0), u, zero));
}

bool x_slogdeterminant(Expand *x) {
  Graph *g = x->g;
  Node *a = x_in(x, "Input"), *y[2];
  if (!matrix_in(a, "Input", true)) return false;
  int64_t dims[KL_RANK] = {1};
  memcpy(dims + 1, a->dims, sizeof *dims * (size_t)(a->rank - 2));
  Result r = {a->dtype, NO_SIDE, NO_SIDE};
  call_factors(g, &determinant_call, a, 2, (Result[]){r, r}, y);
  for (int i = 0; i < 2; i++) y[i] = y[i] ? ops_reshape(g, y[i], a->rank - 1, dims) : NULL;
  if (!y[0] || !y[1]) return false;
  dims[0] = 2;
  if (!ops_known(a)) return x_out(x, "Out", ops_blank(g, a->dtype, a->rank - 1, dims));
  return x_out(x, "Out", g_concat(g, 2, y, 0));
}

/* ---- rank and least squares ---- */

static double rounding(DType t) { return t == DT_FLOAT64 ? 0x1p-52 : 0x1p-23; }

/* How many elements of the last dimension lie above `limit`. */
static Node *count_above(Graph *g, Node *s, Node *limit, DType t) {
  Node *hit = g_cast(g, g_map2(g, P_LT, limit, s), t);
  return hit ? g_reduce(g, P_RSUM, hit, 1u << (s->rank - 1), false) : NULL;
}

bool x_matrix_rank(Expand *x) {
  Graph *g = x->g;
  Node *a = x_in(x, "X"), *y[3], *s = NULL, *limit = NULL;
  bool hermitian = op_bool(x->op, "hermitian");
  if (!matrix_in(a, "X", hermitian)) return false;
  int64_t m = a->dims[a->rank - 2], n = a->dims[a->rank - 1];
  if (!ops_known(a)) return x_out(x, "Out", ops_blank(g, DT_INT32, a->rank - 2, a->dims));
  if (hermitian)
    call_factors(g, &eigen_calls[0], a, 2, (Result[]){{a->dtype, NO_SIDE, n}, {a->dtype, n, n}}, y);
  else if (!singular_values(x, a, false, y))
    return false;
  s = hermitian ? g_map2(g, P_MAX, y[0], ops_times(g, y[0], -1)) : y[1];
  if (!s) return false;
  if (x_n_in(x, "TolTensor") > 0) {
    limit = g_cast(g, x_in(x, "TolTensor"), a->dtype);
    int64_t dims[KL_RANK];
    if (!ops_rank(limit, "TolTensor", 0, KL_RANK - 1)) return false;
    memcpy(dims, limit->dims, sizeof *dims * (size_t)limit->rank);
    dims[limit->rank] = 1;
    limit = ops_reshape(g, limit, limit->rank + 1, dims);
  } else if (op_bool(x->op, "use_default_tol")) {
    limit = g_reduce(g, P_RMAX, s, 1u << (s->rank - 1), true);
    limit = ops_times(g, limit, rounding(a->dtype) * (double)(m > n ? m : n));
  } else {
    limit = g_const(g, a->dtype, op_float(x->op, "tol"));
  }
  return x_out(x, "Out", count_above(g, s, limit, DT_INT32));
}

/* The shortest of the solutions, by singular values: those below rcond times the largest count as 0. */
bool x_lstsq(Expand *x) {
  Graph *g = x->g;
  Node *a = x_in(x, "X"), *b = x_in(x, "Y"), *y[3];
  if (!matrix_in(a, "X", false) || !ops_rank(b, "Y", a->rank, a->rank) ||
      !ops_same("rows of X and Y", a->dims[a->rank - 2], b->dims[a->rank - 2]) ||
      !singular_values(x, a, false, y))
    return false;
  int64_t m = a->dims[a->rank - 2], n = a->dims[a->rank - 1], dims[KL_RANK];
  memcpy(dims, a->dims, sizeof *dims * (size_t)a->rank);
  dims[a->rank - 2] = n, dims[a->rank - 1] = b->dims[a->rank - 1];
  Node *rank = ops_blank(g, DT_INT32, a->rank - 2, a->dims),
       *sol = ops_blank(g, a->dtype, a->rank, dims), *rest;
  dims[a->rank - 2] = dims[a->rank - 1];
  rest = ops_blank(g, a->dtype, a->rank - 1, dims);
  if (ops_known(a) && ops_known(b) && y[1]) {
    double rcond = op_float(x->op, "rcond");
    if (rcond <= 0) rcond = rounding(a->dtype) * (double)(m > n ? m : n);
    Node *s = y[1], *most = ops_times(g, g_reduce(g, P_RMAX, s, 1u << (s->rank - 1), true), rcond);
    rank = count_above(g, s, most, DT_INT32);
    Node *by = g_select(g, g_map2(g, P_LT, most, s), ops_div(g, g_const(g, a->dtype, 1), s),
                        g_const(g, a->dtype, 0));
    memcpy(dims, s->dims, sizeof *dims * (size_t)s->rank);
    dims[s->rank] = 1;
    Node *ub = ops_mul(g, g_matmul(g, y[0], b, true, false), ops_reshape(g, by, s->rank + 1, dims));
    sol = g_matmul(g, y[2], ub, true, false);
    Node *d = ops_sub(g, g_matmul(g, a, sol, false, false), b);
    d = d ? g_reduce(g, P_RSUM, ops_mul(g, d, d), 1u << (d->rank - 2), true) : NULL;
    rest = d ? g_reshape(g, d, a->rank - 1, rest->dims) : NULL;
  }
  if (m >= 0 && n >= 0 && m <= n) rest = ops_blank(g, a->dtype, 1, (int64_t[]){0});
  return x_out(x, "Solution", sol) && x_out(x, "Residuals", rest) && x_out(x, "Rank", rank) &&
         x_out(x, "SingularValues", y[1]);
}
