/* Creation: constants, sequences, random numbers, and the shape of a tensor as a tensor.
 *
 * Random numbers are maps of uniform ones (RANDOM): the normal distribution by the transform of Box
 * and Muller (1958), the truncated one by the inverse of the error function (M. Giles,
 * "Approximating the erfinv function", 2010, central part). */
#include "ops.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static bool dtype_of(Expand *x, const char *attr, DType *t) {
  int64_t number = op_int(x->op, attr);
  *t = number >= 0 && number < 64 ? dtype_from_paddle((int)number) : DT_NONE;
  if (*t != DT_NONE) return true;
  err_set(E_TYP_002, "%s %lld is not an element type", attr, (long long)number);
  err_help("Kiln knows bool 0, int16 1, int32 2, int64 3, float16 4, float32 5, float64 6, uint8 "
           "20, int8 21, bfloat16 22.");
  return false;
}

/* The result's dims from ShapeTensor, ShapeTensorList or shape; -1: unknown during shape inference.
 * */
static bool shape_of(Expand *x, int *rank, int64_t *dims) {
  bool tensor = x_n_in(x, "ShapeTensor") > 0;
  *rank = ops_list(x, tensor ? NULL : "ShapeTensorList", "ShapeTensor", "shape", dims, KL_VAR_RANK);
  for (int d = 0; d < *rank; d++) {
    if (dims[d] == OPS_UNKNOWN) dims[d] = -1;
    if (dims[d] >= 0 || (dims[d] == -1 && x->g->shapes_only)) continue;
    return err_set(E_OPR_003, "dimension %d of the shape is %lld", d, (long long)dims[d]);
  }
  return *rank >= 0;
}

/* The attribute `shape` with one dimension taken from Input. */
static bool shape_like(Expand *x, int *rank, int64_t *dims) {
  Node *like = x_in(x, "Input");
  int from, to;
  const int64_t *shape = op_intlist(x->op, "shape", x->g->arena, rank);
  if (!like) return false;
  if (*rank > KL_VAR_RANK) return err_set(E_SHP_002, "shape has %d dimensions", *rank);
  if (!ops_axis("input_dim_idx", op_int(x->op, "input_dim_idx"), like->rank, &from) ||
      !ops_axis("output_dim_idx", op_int(x->op, "output_dim_idx"), *rank, &to))
    return false;
  memcpy(dims, shape, sizeof *dims * (size_t)*rank);
  dims[to] = like->dims[from];
  for (int d = 0; d < *rank; d++)
    if (d != to && dims[d] < 0)
      return err_set(E_OPR_003, "dimension %d of the shape is %lld", d, (long long)dims[d]);
  return true;
}

/* ---- constants ---- */

static Node *filled(Expand *x, DType t, int rank, const int64_t *dims) {
  const char *text = op_str(x->op, "str_value");
  char *end;
  if (!*text) return g_full(x->g, t, op_float(x->op, "value"), rank, dims);
  long long whole = strtoll(text, &end, 10);
  if (!*end) return g_full_int(x->g, t, whole, rank, dims);
  double v = text_double(text, &end);
  if (!*end) return g_full(x->g, t, v, rank, dims);
  err_set(E_OPR_003, "str_value %s is not a number", quoted(text));
  return NULL;
}

bool x_fill_constant(Expand *x) {
  DType t;
  int rank;
  int64_t dims[KL_RANK];
  if (!dtype_of(x, "dtype", &t) || !shape_of(x, &rank, dims)) return false;
  if (!op_in(x->op, "ValueTensor", 0)) return x_out(x, "Out", filled(x, t, rank, dims));
  Node *v = g_reshape(x->g, x_in(x, "ValueTensor"), 0, NULL);
  return x_out(x, "Out", v ? g_expand_to(x->g, g_cast(x->g, v, t), rank, dims) : NULL);
}

bool x_fill_constant_batch_size_like(Expand *x) {
  DType t;
  int rank;
  int64_t dims[KL_RANK];
  return dtype_of(x, "dtype", &t) && shape_like(x, &rank, dims) &&
         x_out(x, "Out", filled(x, t, rank, dims));
}

bool x_assign_value(Expand *x) {
  static const struct {
    DType type;
    const char *attr;
    bool real;
  } lists[] = {{DT_BOOL, "bool_values", false},   {DT_INT32, "int32_values", false},
               {DT_INT64, "int64_values", false}, {DT_FLOAT32, "fp32_values", true},
               {DT_FLOAT64, "fp64_values", true}, {DT_INT8, "int32_values", false},
               {DT_UINT8, "int32_values", false}, {DT_INT16, "int32_values", false},
               {DT_FLOAT16, "fp32_values", true}, {DT_BFLOAT16, "fp32_values", true}};
  DType t;
  int rank;
  Tensor v;
  if (!dtype_of(x, "dtype", &t)) return false;
  size_t k = 0;
  while (k < sizeof lists / sizeof *lists && lists[k].type != t) k++;
  const int64_t *dims = op_intlist(x->op, "shape", x->g->arena, &rank);
  const Attr *a = op_list(x->op, lists[k].attr, x->g->arena), *any = op_attr(x->op, "values");
  if (any && any->type == AT_SCALARS && any->n > 0) a = any; /* PaddlePaddle 3 */
  if (rank > KL_VAR_RANK) return err_set(E_SHP_002, "shape has %d dimensions", rank);
  int64_t numel;
  if (!dims_numel(t, rank, dims, &numel)) return false;
  if (!a || a->n != numel) {
    err_set(E_OPR_003, "shape %s needs %lld values, %s has %d", dims_text(rank, dims),
            (long long)numel, lists[k].attr, a ? a->n : 0);
    err_help("Values of %s stand in the attribute %s.", dtype_info[t].name, lists[k].attr);
    return false;
  }
  if (!tensor_make(&v, x->g->arena, t, rank, dims)) return false;
  for (int i = 0; i < a->n; i++) {
    Scalar s = a == any        ? a->scalars[i]
               : lists[k].real ? (Scalar){.type = 3, .r = a->fs[i]}
                               : (Scalar){.type = 2, .i = a->is[i]};
    if (t == DT_INT64 && s.type < 3)
      ((int64_t *)v.data)[i] = s.i;
    else
      tensor_set(&v, i, s.type < 3 ? (double)s.i : s.r);
  }
  return x_out(x, "Out", g_data(x->g, t, rank, dims, v.data, op_out(x->op, "Out", 0)));
}

/* Is the index along the last axis, minus that along the one before, equal to `offset`? */
static Node *on_diagonal(Graph *g, int rank, const int64_t *dims, int64_t offset) {
  Node *row = g_iota(g, DT_INT64, rank, dims, rank - 2);
  Node *column = g_iota(g, DT_INT64, rank, dims, rank - 1);
  return g_map2(g, P_EQ, g_map2(g, P_SUB, column, row), g_full_int(g, DT_INT64, offset, 0, NULL));
}

bool x_eye(Expand *x) {
  DType t;
  int64_t rows = op_int(x->op, "num_rows"), columns = op_int(x->op, "num_columns");
  if (columns == -1) columns = rows;
  if (!dtype_of(x, "dtype", &t)) return false;
  if (rows < 0 || columns < 0)
    return err_set(E_OPR_003, "%lld rows and %lld columns", (long long)rows, (long long)columns);
  Node *d = on_diagonal(x->g, 2, (int64_t[]){rows, columns}, 0);
  return x_out(x, "Out", d ? g_cast(x->g, d, t) : NULL);
}

/* ---- sequences ---- */

/* start + i * step for i in 0..n-1 */
static Node *sequence(Graph *g, Node *start, Node *step, int64_t n) {
  Node *i = g_iota(g, step ? step->dtype : DT_FLOAT32, 1, &n, 0);
  return g_map2(g, P_ADD, g_map2(g, P_MUL, i, step), start);
}

bool x_range(Expand *x) {
  static const char *const slots[] = {"Start", "End", "Step"};
  Node *v[3];
  Tensor t[3];
  int unknown = -1;
  for (int i = 0; i < 3; i++) {
    v[i] = g_reshape(x->g, x_in(x, slots[i]), 0, NULL);
    if (!v[i]) return false;
    if (!ops_value(x->g, v[i], &t[i])) unknown = i;
  }
  if (err_any()) return false;
  if (unknown >= 0 && x->g->shapes_only)
    return x_out(x, "Out", ops_blank(x->g, v[0]->dtype, 1, (int64_t[]){-1}));
  if (unknown >= 0) return ops_not_constant(x->g, v[unknown], slots[unknown]);
  double start = tensor_get(&t[0], 0), end = tensor_get(&t[1], 0), step = tensor_get(&t[2], 0);
  double n = ceil((end - start) / step);
  if (step == 0 || !isfinite(n) || n > 1e12)
    return err_set(E_OPR_003, "no range leads from %g to %g in steps of %g", start, end, step);
  return x_out(x, "Out", sequence(x->g, v[0], v[2], n > 0 ? (int64_t)n : 0));
}

/* Num numbers from Start to Stop, in type t. */
static Node *evenly(Expand *x, DType t) {
  Graph *g = x->g;
  int64_t n;
  if (ops_list(x, NULL, "Num", NULL, &n, 1) != 1) return NULL;
  if (n == OPS_UNKNOWN) return ops_blank(g, t, 1, (int64_t[]){-1});
  if (n < 1) return err_set(E_OPR_003, "Num is %lld", (long long)n), NULL;
  Node *a = g_reshape(g, x_in(x, "Start"), 0, NULL), *b = g_reshape(g, x_in(x, "Stop"), 0, NULL);
  if (!a || !b) return NULL;
  a = g_cast(g, a, t);
  Node *step = g_map2c(g, P_DIV, g_map2(g, P_SUB, g_cast(g, b, t), a), n > 1 ? (double)(n - 1) : 1);
  return sequence(g, a, step, n);
}

bool x_linspace(Expand *x) {
  DType t;
  if (!dtype_of(x, "dtype", &t)) return false;
  Node *s = evenly(x, dtype_is_float(t) ? t : DT_FLOAT64);
  return x_out(x, "Out", s ? g_cast(x->g, s, t) : NULL);
}

bool x_logspace(Expand *x) {
  DType t;
  if (!dtype_of(x, "dtype", &t)) return false;
  Node *base = g_reshape(x->g, x_in(x, "Base"), 0, NULL);
  Node *s = base ? evenly(x, dtype_is_float(t) ? t : DT_FLOAT64) : NULL;
  s = s ? g_map2(x->g, P_POW, g_cast(x->g, base, s->dtype), s) : NULL;
  return x_out(x, "Out", s ? g_cast(x->g, s, t) : NULL);
}

/* The places (i, j) with j - i at most (low) or at least offset, row by row: [2, n]. */
static bool triangle(Expand *x, const char *rows_attr, const char *columns_attr, bool low) {
  DType t;
  int64_t rows = op_int(x->op, rows_attr), columns = op_int(x->op, columns_attr),
          offset = op_int(x->op, "offset"), n = 0;
  if (!dtype_of(x, "dtype", &t)) return false;
  if (rows < 0 || columns < 0)
    return err_set(E_OPR_003, "%lld rows and %lld columns", (long long)rows, (long long)columns);
  if (!ops_table("indices", rows, columns)) return false;
  int64_t *i = arena_array(x->g->arena, int64_t, 2 * rows * columns), *j = i + rows * columns;
  for (int64_t at = 0; at < rows * columns; at++) {
    int64_t above = at % columns - at / columns;
    if (low ? above <= offset : above >= offset) i[n] = at / columns, j[n++] = at % columns;
  }
  memmove(i + n, j, sizeof *j * (size_t)n);
  Node *v = g_data(x->g, DT_INT64, 2, (int64_t[]){2, n}, i, "indices");
  return x_out(x, "out", v ? g_cast(x->g, v, t) : NULL);
}

bool x_tril_indices(Expand *x) { return triangle(x, "rows", "cols", true); }
bool x_triu_indices(Expand *x) { return triangle(x, "row", "col", false); }

bool x_shape(Expand *x) {
  Node *n = x_in(x, "Input");
  int32_t v[KL_RANK];
  if (!n) return false;
  int64_t rank = n->rank;
  for (int d = 0; d < n->rank; d++) {
    if (n->dims[d] > INT32_MAX)
      return err_set(E_MEM_002, "dimension %d does not fit into int32", d);
    v[d] = (int32_t)n->dims[d];
  }
  if (!ops_known(n)) return x_out(x, "Out", g_feed(x->g, "shape", DT_INT32, 1, &rank));
  return x_out(x, "Out", g_data(x->g, DT_INT32, 1, &rank, v, "shape"));
}

bool x_size(Expand *x) {
  Node *n = x_in(x, "Input");
  if (!n) return false;
  if (!ops_known(n)) return x_out(x, "Out", g_feed(x->g, "size", DT_INT64, 0, NULL));
  return x_out(x, "Out", g_full_int(x->g, DT_INT64, node_numel(n), 0, NULL));
}

bool x_fill(Expand *x) {
  DType t;
  int rank;
  Tensor v;
  int64_t numel;
  const Attr *a = op_list(x->op, "value", x->g->arena);
  const int64_t *dims = op_intlist(x->op, "shape", x->g->arena, &rank);
  if (!dtype_of(x, "dtype", &t)) return false;
  if (rank > KL_VAR_RANK) return err_set(E_SHP_002, "shape has %d dimensions", rank);
  if (!dims_numel(t, rank, dims, &numel)) return false;
  if (!a || a->n != numel)
    return err_set(E_OPR_003, "shape %s needs %lld values, value has %d", dims_text(rank, dims),
                   (long long)numel, a ? a->n : 0);
  if (!tensor_make(&v, x->g->arena, t, rank, dims)) return false;
  for (int i = 0; i < a->n; i++) tensor_set(&v, i, a->fs[i]);
  return x_out(x, "Out", g_data(x->g, t, rank, dims, v.data, op_out(x->op, "Out", 0)));
}

bool x_one_hot_v2(Expand *x) {
  Graph *g = x->g;
  Node *v = x_in(x, "X");
  DType t;
  int64_t depth, dims[KL_RANK];
  if (!dtype_of(x, "dtype", &t) || !ops_index(v, "X") || !ops_rank(v, "X", 0, KL_VAR_RANK - 1) ||
      ops_list(x, NULL, "depth_tensor", "depth", &depth, 1) != 1)
    return false;
  int rank = v->rank;
  memcpy(dims, v->dims, sizeof *dims * (size_t)rank);
  dims[rank] = 1;
  if (depth == OPS_UNKNOWN) {
    dims[rank] = -1;
    return x_out(x, "Out", ops_blank(g, t, rank + 1, dims));
  }
  if (depth < 1) return err_set(E_OPR_003, "depth is %lld", (long long)depth);
  if (!op_bool(x->op, "allow_out_of_range")) v = g_check(g, v, 0, depth, false, 0, E_DAT_002);
  v = ops_reshape(g, v, rank + 1, dims);
  dims[rank] = depth;
  Node *hit = v ? g_map2(g, P_EQ, v, g_iota(g, v->dtype, rank + 1, dims, rank)) : NULL;
  return x_out(x, "Out", hit ? g_cast(g, hit, t) : NULL);
}

/* ---- random numbers ---- */

/* Uniform in (0,1), the k-th stream of the operator; an own seed gives the same numbers in every
 * run. */
static Node *uniform(Expand *x, DType t, int rank, const int64_t *dims, int k) {
  int64_t seed = op_int(x->op, "seed");
  return g_random(x->g, t, rank, dims, seed, x_stream(x, k), seed != 0);
}

/* lo + u * (hi - lo) */
static Node *spread(Graph *g, Node *u, double lo, double hi) {
  return g_map2c(g, P_ADD, g_map2c(g, P_MUL, u, hi - lo), lo);
}

static bool random_out(Expand *x, Node *n, DType t) {
  return x_out(x, "Out", n ? g_cast(x->g, n, t) : NULL);
}

static DType random_type(DType t) { return t == DT_FLOAT64 ? DT_FLOAT64 : DT_FLOAT32; }

/* Of operators whose numbers are not whole. */
static bool random_float(Expand *x, DType *t) {
  if (!dtype_of(x, "dtype", t)) return false;
  if (dtype_is_float(*t)) return true;
  return err_set(E_TYP_002, "dtype is %s, a floating type is needed", dtype_info[*t].name);
}

bool x_uniform_random(Expand *x) {
  DType t;
  int rank;
  int64_t dims[KL_RANK];
  if (!random_float(x, &t) || !shape_of(x, &rank, dims)) return false;
  if (op_int(x->op, "diag_num") != 0)
    return err_set(E_OPR_004, "diag_num of uniform_random is not supported");
  Node *u = uniform(x, random_type(t), rank, dims, 0);
  return random_out(x, spread(x->g, u, op_float(x->op, "min"), op_float(x->op, "max")), t);
}

bool x_uniform_random_batch_size_like(Expand *x) {
  DType t;
  int rank;
  int64_t dims[KL_RANK];
  if (!random_float(x, &t) || !shape_like(x, &rank, dims)) return false;
  Node *u = uniform(x, random_type(t), rank, dims, 0);
  return random_out(x, spread(x->g, u, op_float(x->op, "min"), op_float(x->op, "max")), t);
}

/* By the transformation of G. Box and M. Muller, 1958. */
static Node *gaussian(Expand *x, DType t, int rank, const int64_t *dims) {
  Graph *g = x->g;
  Node *u = uniform(x, random_type(t), rank, dims, 0),
       *v = uniform(x, random_type(t), rank, dims, 1);
  Node *radius = g_map1(g, P_SQRT, g_map2c(g, P_MUL, g_map1(g, P_LOG, u), -2));
  Node *z = g_map2(g, P_MUL, radius, g_map1(g, P_SIN, g_map2c(g, P_MUL, v, 6.283185307179586)));
  double mean = op_float(x->op, "mean");
  return spread(g, z, mean, mean + op_float(x->op, "std"));
}

bool x_gaussian_random(Expand *x) {
  DType t;
  int rank;
  int64_t dims[KL_RANK];
  return random_float(x, &t) && shape_of(x, &rank, dims) &&
         random_out(x, gaussian(x, t, rank, dims), t);
}

bool x_gaussian_random_batch_size_like(Expand *x) {
  DType t;
  int rank;
  int64_t dims[KL_RANK];
  return random_float(x, &t) && shape_like(x, &rank, dims) &&
         random_out(x, gaussian(x, t, rank, dims), t);
}

bool x_gaussian_inplace(Expand *x) {
  Node *v = x_in(x, "x");
  if (!ops_float(v, "x")) return false;
  return x_out(x, "out", g_cast(x->g, gaussian(x, v->dtype, v->rank, v->dims), v->dtype));
}

/* The inverse of erf for |x| <= 0.98, to 2e-7. */
static Node *erf_inverse(Graph *g, Node *x) {
  static const double c[] = {2.81022636e-08,  3.43273939e-07, -3.5233877e-06,
                             -4.39150654e-06, 0.00021858087,  -0.00125372503,
                             -0.00417768164,  0.246640727,    1.50140941};
  Node *one_minus = g_map2c(g, P_MUL, g_map2c(g, P_SUB, g_map2(g, P_MUL, x, x), 1), -1);
  Node *w = g_map2c(g, P_ADD, g_map1(g, P_LOG, one_minus), 2.5); /* 2.5 - w of the paper */
  Node *p = w ? g_full(g, w->dtype, c[0], w->rank, w->dims) : NULL;
  w = w ? g_map2c(g, P_MUL, w, -1) : NULL;
  for (size_t i = 1; i < sizeof c / sizeof *c; i++)
    p = g_map2c(g, P_ADD, g_map2(g, P_MUL, p, w), c[i]);
  return g_map2(g, P_MUL, p, x);
}

bool x_truncated_gaussian_random(Expand *x) {
  DType t;
  int rank;
  int64_t dims[KL_RANK];
  if (!random_float(x, &t) || !shape_of(x, &rank, dims)) return false;
  double edge = erf(2 / sqrt(2.0)), mean = op_float(x->op, "mean");
  Node *u = uniform(x, random_type(t), rank, dims, 0);
  Node *z = erf_inverse(x->g, spread(x->g, u, -edge, edge));
  return random_out(x, spread(x->g, z, mean, mean + sqrt(2.0) * op_float(x->op, "std")), t);
}

bool x_randint(Expand *x) {
  Graph *g = x->g;
  DType t;
  int rank;
  int64_t dims[KL_RANK], low = op_int(x->op, "low"), high = op_int(x->op, "high");
  if (!dtype_of(x, "dtype", &t) || !shape_of(x, &rank, dims)) return false;
  if (high <= low)
    return err_set(E_OPR_003, "no integers from %lld to below %lld", (long long)low,
                   (long long)high);
  Node *u = uniform(x, DT_FLOAT64, rank, dims, 0);
  Node *v = g_map1(g, P_FLOOR, spread(g, u, (double)low, (double)high));
  return random_out(x, g_map2c(g, P_MIN, v, (double)(high - 1)), t);
}

bool x_randperm(Expand *x) {
  DType t;
  int64_t n = op_int(x->op, "n");
  if (!dtype_of(x, "dtype", &t)) return false;
  if (n < 0) return err_set(E_OPR_003, "n is %lld", (long long)n);
  return random_out(x, g_argsort(x->g, uniform(x, DT_FLOAT64, 1, &n, 0), false), t);
}

bool x_bernoulli(Expand *x) {
  Node *p = x_in(x, "X");
  if (!ops_float(p, "X")) return false;
  Node *u = g_random(x->g, p->dtype, p->rank, p->dims, 0, x_stream(x, 0), false);
  return random_out(x, g_map2(x->g, P_LT, u, p), p->dtype);
}
