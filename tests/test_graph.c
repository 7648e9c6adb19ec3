/* The Graph: shapes and errors of the builders, the value of every primitive on small cases computed by hand, random
 * numbers against published vectors, and the text form. */
#include "../ir/ir.h"
#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#define I64(...) ((int64_t[]){__VA_ARGS__})
#define F32(...) ((float[]){__VA_ARGS__})

static void expect_dims(const Node *n, int rank, const int64_t *dims) {
  assert_non_null(n);
  assert_string_equal(dims_text(n->rank, n->dims), dims_text(rank, dims));
}

static void expect_error(const Node *n, ErrCode code, const char *text) {
  assert_null(n);
  assert_non_null(err_get());
  if (err_get()->code != code || !strstr(err_get()->summary, text))
    fail_msg("%s: %s, not %s with `%s`", err_name(err_get()->code), err_get()->summary,
             err_name(code), text);
  err_clear();
}

/* ---- shapes ---- */

static Node *feed(Graph *g, int rank, const int64_t *dims) {
  return g_feed(g, "x", DT_FLOAT32, rank, dims);
}

static void test_shapes(void **state) {
  (void)state;
  Graph *g = graph_new(NULL, false);
  Node *x = feed(g, 2, I64(2, 3)), *y = feed(g, 3, I64(4, 1, 3));
  expect_dims(g_map2(g, P_ADD, x, y), 3, I64(4, 2, 3));
  expect_dims(g_reshape(g, x, 3, I64(3, -1, 1)), 3, I64(3, 2, 1));
  assert_ptr_equal(g_reshape(g, x, 2, I64(2, -1)), x);
  assert_ptr_equal(g_cast(g, x, DT_FLOAT32), x);
  assert_ptr_equal(g_permute(g, x, (int[]){0, 1}), x);
  assert_ptr_equal(g_expand(g, x, 2, I64(-1, 3)), x);
  assert_ptr_not_equal(g_alias(g, x), x);
  expect_dims(g_permute(g, y, (int[]){2, 0, 1}), 3, I64(3, 4, 1));
  expect_dims(g_reduce(g, P_RSUM, y, 5, false), 1, I64(1));
  expect_dims(g_reduce(g, P_RSUM, y, 5, true), 3, I64(1, 1, 1));
  expect_dims(g_pad(g, x, I64(1, -1), I64(0, 2), 0), 2, I64(3, 4));
  expect_dims(g_matmul(g, feed(g, 3, I64(5, 2, 3)), feed(g, 2, I64(4, 3)), false, true), 3,
              I64(5, 2, 4));
  Node *im = feed(g, 4, I64(8, 3, 32, 31)), *w = feed(g, 4, I64(6, 3, 5, 3));
  int64_t s[2] = {2, 1}, p[2] = {2, 0}, d[2] = {1, 2};
  Node *c = g_conv(g, im, w, 2, s, p, p, d, 1);
  expect_dims(c, 4, I64(8, 6, 16, 27));
  assert_int_equal(c->prim, P_CONTRACT);
  assert_int_equal(c->n_loops, 7);
  expect_dims(g_window(g, im, 2, 2, I64(2, 2), I64(2, 2), I64(1, 1), I64(0, 0), I64(0, 1), 0), 6,
              I64(8, 3, 16, 16, 2, 2));
  expect_dims(g_concat(g, 2, (Node *[]){x, feed(g, 2, I64(5, 3))}, 0), 2, I64(7, 3));
  expect_dims(g_matmul(g, feed(g, 2, I64(0, 3)), feed(g, 2, I64(3, 4)), false, false), 2,
              I64(0, 4));
  assert_null(g_map2(g, P_ADD, NULL, x));
  assert_false(err_any());
  assert_true(graph_verify(g));
  graph_free(g);
}

static void test_unknown(void **state) {
  (void)state;
  Graph *g = graph_new(NULL, true);
  Node *x = feed(g, 4, I64(-1, 20, 4, 4));
  expect_dims(g_reshape(g, x, 2, I64(-1, 320)), 2, I64(-1, 320));
  expect_dims(g_map2(g, P_ADD, feed(g, 2, I64(-1, 3)), feed(g, 2, I64(1, 3))), 2, I64(-1, 3));
  expect_dims(g_map2(g, P_ADD, feed(g, 2, I64(-1, 3)), feed(g, 2, I64(7, 3))), 2, I64(7, 3));
  expect_dims(g_map2(g, P_ADD, feed(g, 1, I64(1)), feed(g, 2, I64(-1, -1))), 2, I64(-1, -1));
  expect_dims(g_matmul(g, feed(g, 2, I64(-1, 3)), feed(g, 2, I64(-1, 4)), false, false), 2,
              I64(-1, 4));
  int64_t one[2] = {1, 1}, nil[2] = {0, 0};
  expect_dims(g_conv(g, x, feed(g, 4, I64(50, 20, 3, 3)), 2, one, nil, nil, one, 1), 4,
              I64(-1, 50, 2, 2));
  expect_dims(g_conv(g, feed(g, 4, I64(2, 20, -1, 4)), feed(g, 4, I64(48, 5, 3, 3)), 2, one, nil,
                     nil, one, 4),
              4, I64(2, 48, -1, 2));
  expect_dims(g_concat(g, 2, (Node *[]){x, x}, 0), 4, I64(-1, 20, 4, 4));
  expect_dims(g_concat(g, 2, (Node *[]){x, x}, 1), 4, I64(-1, 40, 4, 4));
  expect_dims(g_reduce(g, P_RMAX, x, 1, false), 3, I64(20, 4, 4));
  expect_dims(g_pad(g, x, I64(1, 0, 0, 0), I64(0, 0, 0, 0), 0), 4, I64(-1, 20, 4, 4));
  graph_free(g);
}

static void test_errors(void **state) {
  (void)state;
  Graph *g = graph_new(NULL, false);
  Node *x = feed(g, 2, I64(2, 3)), *y = feed(g, 2, I64(2, 4));
  Node *k = g_feed(g, "k", DT_INT64, 2, I64(2, 3));
  int64_t one[2] = {1, 1}, nil[2] = {0, 0};
  expect_error(g_map2(g, P_ADD, x, y), E_SHP_001, "3 vs 4");
  expect_error(g_map2(g, P_ADD, x, k), E_TYP_001, "int64 [2, 3]");
  expect_error(g_map1(g, P_EXP, k), E_TYP_002, "int64");
  expect_error(g_select(g, x, x, x), E_TYP_002, "not bool");
  expect_error(g_matmul(g, x, y, false, false), E_SHP_012, "inner sizes differ (3 vs 2)");
  expect_error(g_matmul(g, feed(g, 1, I64(3)), x, false, false), E_SHP_002, "[3]");
  expect_error(g_reshape(g, x, 1, I64(5)), E_SHP_004, "[2, 3] cannot be reshaped to [5]");
  expect_error(g_reshape(g, x, 2, I64(-1, -1)), E_SHP_004, "[-1, -1]");
  expect_error(g_permute(g, x, (int[]){0, 0}), E_SHP_003, "permutation");
  expect_error(g_expand(g, x, 1, I64(3)), E_SHP_002, "rank 1");
  expect_error(g_slice(g, x, I64(0, 2), I64(1, 1), I64(2, 2)), E_SHP_007, "dimension 1");
  expect_error(g_pad(g, x, I64(-3, 0), nil, 0), E_SHP_005, "padding of -3");
  expect_error(g_reduce(g, P_RSUM, x, 4, false), E_SHP_003, "[2, 3]");
  expect_error(g_window(g, x, 0, 2, I64(3, 1), one, one, nil, nil, 0), E_SHP_005, "window of 3");
  expect_error(g_conv(g, feed(g, 4, I64(1, 3, 5, 5)), feed(g, 4, I64(8, 4, 3, 3)), 2, one, nil, nil,
                      one, 1),
               E_SHP_006, "3 channels");
  expect_error(g_conv(g, feed(g, 4, I64(1, 3, 5, 5)), feed(g, 4, I64(8, 3, 3, 3)), 2, nil, nil, nil,
                      one, 1),
               E_SHP_005, "stride 0");
  expect_error(g_gather(g, x, x, 0), E_TYP_002, "not an integer");
  expect_error(g_gather(g, y, k, 0), E_SHP_006, "[2, 3]");
  expect_error(g_concat(g, 2, (Node *[]){x, y}, 0), E_SHP_006, "operand 1");
  expect_error(g_full(g, DT_FLOAT32, 0, 2, I64(1 << 30, 1 << 30)), E_MEM_002, "too large");
  expect_error(feed(g, 2, I64(-1, 2)), E_MEM_002, "negative");
  expect_error(g_expand(g, x, 13, I64(1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 3)), E_SHP_002, "13");
  expect_error(g_random(g, DT_INT32, 1, one, 0, 0, false), E_TYP_002, "int32");
  graph_free(g);
}

/* ---- values ---- */

typedef struct Bound {
  Tensor *t;
} Bound;

static Tensor *lookup(void *user, const char *name, bool state) {
  (void)name;
  (void)state;
  return ((Bound *)user)->t;
}

static void fetch(Graph *g, Node *n) {
  assert_non_null(n);
  NamedNode f = {"out", n, NULL};
  g->fetches.n = 0;
  vec_add(g->arena, &g->fetches, f);
}

static Tensor *value(Graph *g, Node *n) {
  Bound b = {NULL};
  EvalEnv env = {lookup, &b, 7, 3};
  fetch(g, n);
  assert_true(graph_verify(g));
  Tensor **v = arena_array(g->arena, Tensor *, g->nodes.n);
  assert_true(graph_eval(g, &env, g->arena, v));
  return v[n->id];
}

static void expect_values(Graph *g, Node *n, int count, const double *want) {
  if (!n) err_print(stderr, false);
  Tensor *t = value(g, n);
  assert_int_equal(node_numel(n), count);
  for (int k = 0; k < count; k++) {
    double got = tensor_get(t, k);
    if (!(got == want[k] || (isnan(got) && isnan(want[k]))))
      fail_msg("`%s`, element %d: %.17g, not %.17g", prim_info[n->prim].name, k, got, want[k]);
  }
}
#define EXPECT(g, n, ...)                                                                          \
  expect_values(g, n, sizeof((double[]){__VA_ARGS__}) / sizeof(double), (double[]){__VA_ARGS__})

static Node *floats(Graph *g, int rank, const int64_t *dims, const float *v) {
  return g_data(g, DT_FLOAT32, rank, dims, v, "v");
}

static Node *ints(Graph *g, DType t, int64_t n, const int64_t *v) {
  return g_cast(g, g_data(g, DT_INT64, 1, &n, v, "v"), t);
}

static void test_sources(void **state) {
  (void)state;
  Graph *g = graph_new(NULL, false);
  EXPECT(g, g_full(g, DT_FLOAT32, 0.1, 1, I64(2)), (double)0.1f, (double)0.1f);
  EXPECT(g, g_full_int(g, DT_INT64, 5, 0, NULL), 5);
  EXPECT(g, g_full(g, DT_BOOL, 2, 1, I64(1)), 1);
  EXPECT(g, g_iota(g, DT_INT32, 2, I64(2, 3), 1), 0, 1, 2, 0, 1, 2);
  EXPECT(g, g_iota(g, DT_FLOAT32, 2, I64(2, 3), 0), 0, 0, 0, 1, 1, 1);
  float v[2] = {1.5f, -2};
  Tensor t = {DT_FLOAT32, 1, {2}, v};
  Bound b = {&t};
  EvalEnv env = {lookup, &b, 0, 0};
  Node *x = g_map2(g, P_ADD, g_feed(g, "a", DT_FLOAT32, 1, I64(2)),
                   g_state(g, "b", DT_FLOAT32, 1, I64(2)));
  fetch(g, x);
  graph_number(g);
  Tensor **val = arena_array(g->arena, Tensor *, g->nodes.n);
  assert_true(graph_eval(g, &env, g->arena, val));
  assert_true(tensor_get(val[x->id], 1) == -4);
  t.dims[0] = 1;
  assert_false(graph_eval(g, &env, g->arena, val));
  assert_int_equal(err_get()->code, E_DAT_001);
  err_clear();
  b.t = NULL;
  assert_false(graph_eval(g, &env, g->arena, val));
  assert_int_equal(err_get()->code, E_RUN_001);
  err_clear();
  graph_free(g);
}

static void test_float_maps(void **state) {
  (void)state;
  Graph *g = graph_new(NULL, false);
  Node *x = floats(g, 1, I64(4), F32(-2.5f, 0, 3, NAN)),
       *y = floats(g, 1, I64(4), F32(2, 2, -2, 1));
  EXPECT(g, g_map1(g, P_EXP, floats(g, 1, I64(2), F32(0, 1))), 1, (double)(float)exp(1));
  EXPECT(g, g_map1(g, P_LOG, x), NAN, -INFINITY, (double)(float)log(3), NAN);
  EXPECT(g, g_map1(g, P_SQRT, x), NAN, 0, (double)(float)sqrt(3), NAN);
  EXPECT(g, g_map1(g, P_SIN, floats(g, 1, I64(1), F32(1))), (double)(float)sin(1));
  EXPECT(g, g_map1(g, P_TANH, floats(g, 1, I64(1), F32(1))), (double)(float)tanh(1));
  EXPECT(g, g_map1(g, P_ERF, floats(g, 1, I64(1), F32(1))), (double)(float)erf(1));
  EXPECT(g, g_map1(g, P_FLOOR, x), -3, 0, 3, NAN);
  EXPECT(g, g_map2(g, P_ADD, x, y), -0.5, 2, 1, NAN);
  EXPECT(g, g_map2(g, P_SUB, x, y), -4.5, -2, 5, NAN);
  EXPECT(g, g_map2(g, P_MUL, x, y), -5, 0, -6, NAN);
  EXPECT(g, g_map2(g, P_DIV, x, y), -1.25, 0, -1.5, NAN);
  EXPECT(g, g_map2(g, P_MOD, x, y), 1.5, 0, -1, NAN);
  EXPECT(g, g_map2(g, P_POW, x, y), 6.25, 0, (double)(float)(1.0 / 9), NAN);
  EXPECT(g, g_map2(g, P_MAX, x, y), 2, 2, 3, NAN);
  EXPECT(g, g_map2(g, P_MIN, y, x), -2.5, 0, -2, NAN);
  EXPECT(g, g_map2(g, P_LT, x, y), 1, 1, 0, 0);
  EXPECT(g, g_map2(g, P_LE, x, x), 1, 1, 1, 0);
  EXPECT(g, g_map2(g, P_EQ, x, x), 1, 1, 1, 0);
  EXPECT(g, g_select(g, g_map2(g, P_LT, x, y), x, y), -2.5, 0, -2, 1);
  EXPECT(g, g_map2c(g, P_ADD, x, 0.5), -2, 0.5, 3.5, NAN);
  Node *big = floats(g, 1, I64(4), F32(300.7f, -1e30f, -1.9f, NAN));
  EXPECT(g, g_cast(g, big, DT_UINT8), 255, 0, 0, 0);
  EXPECT(g, g_cast(g, big, DT_INT8), 127, -128, -1, 0);
  EXPECT(g, g_cast(g, big, DT_INT64), 300, (double)INT64_MIN, -1, 0);
  EXPECT(g, g_cast(g, big, DT_BOOL), 1, 1, 1, 1);
  EXPECT(g, g_cast(g, floats(g, 1, I64(2), F32(1.00390625f, 70000)), DT_BFLOAT16), 1, 70144);
  Node *half = g_cast(g, floats(g, 1, I64(2), F32(2048, 1)), DT_FLOAT16);
  EXPECT(g, g_map2(g, P_ADD, half, g_map2c(g, P_MUL, half, 0.5)), 3072, 1.5);
  EXPECT(g, g_map2(g, P_ADD, half, g_full(g, DT_FLOAT16, 1, 0, NULL)), 2048, 2); /* ties to even */
  graph_free(g);
}

static void test_integer_maps(void **state) {
  (void)state;
  Graph *g = graph_new(NULL, false);
  Node *x = ints(g, DT_INT32, 4, I64(7, -7, INT32_MIN, 5)),
       *y = ints(g, DT_INT32, 4, I64(2, 2, -1, 0));
  EXPECT(g, g_map2(g, P_DIV, x, y), 3, -4, INT32_MIN, 0);
  EXPECT(g, g_map2(g, P_MOD, x, y), 1, 1, 0, 0);
  EXPECT(g, g_map2(g, P_ADD, x, x), 14, -14, 0, 10);
  EXPECT(g, g_map2(g, P_MAX, x, y), 7, 2, -1, 5);
  EXPECT(g, g_map2(g, P_MIN, x, y), 2, -7, INT32_MIN, 0);
  EXPECT(g, g_map2(g, P_LT, y, x), 1, 0, 0, 1);
  Node *b = ints(g, DT_INT64, 4, I64(3, -1, 2, 1)), *e = ints(g, DT_INT64, 4, I64(3, -3, -2, -9));
  EXPECT(g, g_map2(g, P_POW, b, e), 27, -1, 0, 1);
  Node *u = ints(g, DT_UINT8, 2, I64(200, 3));
  EXPECT(g, g_map2(g, P_SUB, ints(g, DT_UINT8, 2, I64(1, 4)), u), 57, 1);
  EXPECT(g, g_map2(g, P_MUL, u, u), 64, 9);
  Node *p = ints(g, DT_BOOL, 4, I64(0, 0, 1, 1)), *q = ints(g, DT_BOOL, 4, I64(0, 1, 0, 1));
  EXPECT(g, g_map2(g, P_ADD, p, q), 0, 1, 1, 1);
  EXPECT(g, g_map2(g, P_MUL, p, q), 0, 0, 0, 1);
  EXPECT(g, g_map2(g, P_SUB, p, q), 0, 1, 1, 0);
  EXPECT(g, g_map2(g, P_MAX, p, q), 0, 1, 1, 1);
  EXPECT(g, g_map2(g, P_MIN, p, q), 0, 0, 0, 1);
  EXPECT(g, g_reduce(g, P_RSUM, p, 1, false), 1);
  Node *wide = ints(g, DT_INT64, 2, I64(16777217, INT64_MIN));
  EXPECT(g, g_cast(g, wide, DT_FLOAT32), 16777216, (double)INT64_MIN);
  EXPECT(g, g_cast(g, wide, DT_INT16), 1, 0);
  assert_ptr_equal(g_map1(g, P_FLOOR, x), x);
  graph_free(g);
}

static void test_views(void **state) {
  (void)state;
  Graph *g = graph_new(NULL, false);
  Node *x = floats(g, 2, I64(2, 3), F32(1, 2, 3, 4, 5, 6));
  EXPECT(g, g_permute(g, x, (int[]){1, 0}), 1, 4, 2, 5, 3, 6);
  EXPECT(g, g_reshape(g, x, 1, I64(6)), 1, 2, 3, 4, 5, 6);
  EXPECT(g, g_expand(g, floats(g, 2, I64(2, 1), F32(1, 2)), 3, I64(2, -1, 2)), 1, 1, 2, 2, 1, 1, 2,
         2);
  EXPECT(g, g_slice(g, x, I64(1, 2), I64(-1, -2), I64(2, 2)), 6, 4, 3, 1);
  EXPECT(g, g_pad(g, x, I64(1, -1), I64(-1, 1), 9), 9, 9, 9, 2, 3, 9);
  EXPECT(g, g_window(g, x, 1, 1, I64(2), I64(2), I64(1), I64(1), I64(0), -1), -1, 1, 2, 3, -1, 4, 5,
         6);
  AffDim map[2] = {aff_const(1), {0, -1, 1, 0, 0, 2}}; /* x[1, i/2] */
  EXPECT(g, g_view(g, x, 1, I64(6), map, 0.5), 4, 0.5, 5, 0.5, 6, 0.5);
  EXPECT(g, g_alias(g, x), 1, 2, 3, 4, 5, 6);
  Node *none = g_slice(g, x, I64(0, 0), I64(1, 1), I64(0, 3));
  assert_int_equal(tensor_numel(value(g, none)), 0);
  EXPECT(g, g_reduce(g, P_RSUM, none, 1, false), 0, 0, 0);
  EXPECT(g, g_reduce(g, P_RMAX, none, 1, false), -INFINITY, -INFINITY, -INFINITY);
  EXPECT(g, g_reduce(g, P_RPROD, none, 1, false), 1, 1, 1);
  EXPECT(g, g_matmul(g, none, none, true, false), 0, 0, 0, 0, 0, 0, 0, 0, 0);
  EXPECT(g, g_concat(g, 2, (Node *[]){none, x}, 0), 1, 2, 3, 4, 5, 6);
  graph_free(g);
}

static void test_reductions(void **state) {
  (void)state;
  Graph *g = graph_new(NULL, false);
  Node *x = floats(g, 3, I64(2, 2, 2), F32(1, 8, 3, 4, 5, 6, 7, 2));
  EXPECT(g, g_reduce(g, P_RSUM, x, 2, false), 4, 12, 12, 8);
  EXPECT(g, g_reduce(g, P_RSUM, x, 5, true), 20, 16);
  EXPECT(g, g_reduce(g, P_RMAX, x, 6, false), 8, 7);
  EXPECT(g, g_reduce(g, P_RPROD, x, 1, false), 5, 48, 21, 8);
  EXPECT(g, g_argmax(g, x, 6, false, DT_INT64), 1, 2);
  EXPECT(g, g_argmax(g, x, 1, true, DT_INT32), 1, 0, 1, 0);
  Node *nan = floats(g, 1, I64(4), F32(1, NAN, 9, NAN));
  EXPECT(g, g_reduce(g, P_RMAX, nan, 1, false), NAN);
  EXPECT(g, g_argmax(g, nan, 1, false, DT_INT64), 1);
  EXPECT(g, g_argmax(g, ints(g, DT_INT8, 3, I64(-3, -1, -1)), 1, false, DT_INT64), 1);
  EXPECT(g, g_reduce(g, P_RMAX, ints(g, DT_INT8, 2, I64(-3, -1)), 1, false), -1);
  float cancel[3] = {1e8f, 1, -1e8f};
  EXPECT(g, g_reduce(g, P_RSUM, floats(g, 1, I64(3), cancel), 1, false), 1); /* kept in double */
  graph_free(g);
}

static void test_contract(void **state) {
  (void)state;
  Graph *g = graph_new(NULL, false);
  Node *a = floats(g, 2, I64(2, 2), F32(1, 2, 3, 4)), *b = floats(g, 2, I64(2, 2), F32(5, 6, 7, 8));
  EXPECT(g, g_matmul(g, a, b, false, false), 19, 22, 43, 50);
  EXPECT(g, g_matmul(g, a, b, true, false), 26, 30, 38, 44);
  EXPECT(g, g_matmul(g, a, b, false, true), 17, 23, 39, 53);
  Node *i = g_cast(g, a, DT_INT32);
  EXPECT(g, g_matmul(g, i, i, false, false), 7, 10, 15, 22);
  Node *batch = g_expand(g, a, 3, I64(2, 2, 2));
  EXPECT(g, g_matmul(g, batch, b, false, false), 19, 22, 43, 50, 19, 22, 43, 50);
  Node *x = floats(g, 4, I64(1, 1, 3, 3), F32(1, 2, 3, 4, 5, 6, 7, 8, 9));
  Node *w = floats(g, 4, I64(1, 1, 2, 2), F32(1, 2, 3, 4));
  int64_t one[2] = {1, 1}, two[2] = {2, 2}, nil[2] = {0, 0};
  EXPECT(g, g_conv(g, x, w, 2, one, nil, nil, one, 1), 37, 47, 67, 77);
  EXPECT(g, g_conv(g, x, w, 2, two, one, one, one, 1), 4, 18, 36, 77);
  EXPECT(g, g_conv(g, x, w, 2, one, nil, nil, two, 1), 64);
  Node *x2 = floats(g, 3, I64(1, 2, 2), F32(1, 2, 3, 4)),
       *w2 = floats(g, 3, I64(2, 1, 2), F32(1, 1, 2, 3));
  EXPECT(g, g_conv(g, x2, w2, 1, one, nil, nil, one, 2), 3, 18);
  graph_free(g);
}

static void test_indexing(void **state) {
  (void)state;
  Graph *g = graph_new(NULL, false);
  Node *x = floats(g, 2, I64(3, 2), F32(1, 2, 3, 4, 5, 6));
  Node *idx = g_data(g, DT_INT64, 2, I64(2, 2), I64(2, 0, -5, 9), "idx");
  EXPECT(g, g_gather(g, x, idx, 0), 5, 2, 1, 6);
  Node *upd = floats(g, 2, I64(2, 2), F32(10, 20, 30, 40));
  EXPECT(g, g_scatter(g, x, idx, upd, 0, false), 31, 22, 3, 4, 15, 46);
  EXPECT(g, g_scatter(g, x, idx, upd, 0, true), 30, 20, 3, 4, 10, 40);
  Node *same = g_data(g, DT_INT64, 2, I64(2, 2), I64(1, 1, 1, 1), "idx");
  EXPECT(g, g_scatter(g, x, same, upd, 0, true), 1, 2, 30, 40, 5, 6);
  EXPECT(g, g_concat(g, 2, (Node *[]){x, x}, 1), 1, 2, 1, 2, 3, 4, 3, 4, 5, 6, 5, 6);
  Node *keys = floats(g, 2, I64(2, 4), F32(2, NAN, 1, 2, 0, -1, 0, 5));
  EXPECT(g, g_argsort(g, keys, false), 2, 0, 3, 1, 1, 0, 2, 3);
  EXPECT(g, g_argsort(g, keys, true), 1, 0, 3, 2, 3, 0, 2, 1);
  graph_free(g);
}

static void test_check(void **state) {
  (void)state;
  Graph *g = graph_new(NULL, false);
  Node *k = g_data(g, DT_INT64, 2, I64(2, 2), I64(0, 9, -100, 10), "label");
  EXPECT(g, g_check(g, k, 0, 11, true, -100, E_DAT_002), 0, 9, -100, 10);
  Node *bad = g_check(g, k, 0, 10, true, -100, E_DAT_002);
  EvalEnv env = {lookup, NULL, 0, 0};
  fetch(g, bad);
  Tensor **v = arena_array(g->arena, Tensor *, g->nodes.n);
  assert_false(graph_eval(g, &env, g->arena, v));
  assert_int_equal(err_get()->code, E_DAT_002);
  assert_string_equal(err_get()->summary, "value 10 at [1, 1] is outside 0..9");
  err_clear();
  graph_free(g);
}

/* y = x + 1 and the count of elements */
static bool two_forward(const CustomOp *op, int n_in, const Tensor *in, int n_out, Tensor *out) {
  (void)op;
  assert_int_equal(n_in, 1);
  assert_int_equal(n_out, 2);
  for (int64_t k = 0; k < tensor_numel(in); k++) tensor_set(&out[0], k, tensor_get(in, k) + 1);
  tensor_set(&out[1], 0, (double)tensor_numel(in));
  return true;
}

/* in: x, y, n, dy, dn */
static bool two_backward(const CustomOp *op, int n_in, const Tensor *in, int n_out, Tensor *out) {
  (void)op;
  assert_int_equal(n_in, 5);
  assert_int_equal(n_out, 1);
  for (int64_t k = 0; k < tensor_numel(in); k++)
    tensor_set(out, k, tensor_get(&in[3], k) * 10 + tensor_get(&in[4], 0) + tensor_get(&in[2], 0));
  return true;
}

static void test_call(void **state) {
  (void)state;
  CustomOp op = {"two", "X -> Y N", NULL, two_forward, two_backward, NULL};
  Graph *g = graph_new(NULL, false);
  Node *x = floats(g, 1, I64(2), F32(3, 4));
  Node *call = g_call(g, &op, false, 1, &x, DT_FLOAT32, 1, I64(2));
  Node *n = g_out(g, call, 1, DT_FLOAT32, 0, NULL), *gx;
  EXPECT(g, call, 4, 5);
  EXPECT(g, n, 2);
  Node *ys[2] = {call, n}, *gy[2] = {floats(g, 1, I64(2), F32(1, 2)), g_const(g, DT_FLOAT32, 5)};
  assert_true(derive(g, 2, ys, gy, 1, &x, &gx));
  EXPECT(g, gx, 17, 27);
  assert_true(derive(g, 1, ys + 1, gy + 1, 1, &x, &gx)); /* no gradient for the first output */
  EXPECT(g, gx, 7, 7);
  op.backward = NULL;
  assert_false(derive(g, 1, ys, gy, 1, &x, &gx));
  assert_int_equal(err_get()->code, E_OPR_005);
  err_clear();
  graph_free(g);
}

/* ---- random numbers: known answers of Random123's kat_vectors ---- */

static void test_philox(void **state) {
  (void)state;
  static const struct {
    uint32_t ctr[4], key[2], out[4];
  } kat[] = {
      {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
      {{~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
      {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
       {0xa4093822, 0x299f31d0},
       {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
  };
  for (size_t i = 0; i < sizeof kat / sizeof *kat; i++) {
    uint32_t out[4];
    philox(kat[i].ctr, kat[i].key, out);
    assert_memory_equal(out, kat[i].out, sizeof out);
  }
  Graph *g = graph_new(NULL, false);
  uint32_t w[4];
  philox((uint32_t[]){1, 0, 5, 3}, (uint32_t[]){7, 0}, w); /* seed 7, stream 5, step 3: 4..7 */
  Node *r = g_random(g, DT_FLOAT32, 1, I64(6), 0, 5, false);
  assert_true(tensor_get(value(g, r), 5) == (w[1] >> 9) * 0x1p-23 + 0x1p-24);
  philox((uint32_t[]){0, 0, 5, 0}, (uint32_t[]){9, 0}, w);
  Node *f = g_random(g, DT_FLOAT64, 1, I64(2), 9, 5, true);
  assert_true(tensor_get(value(g, f), 1) == (w[1] + 0.5) * 0x1p-32);
  graph_free(g);
}

/* ---- text ---- */

static Graph *everything(void) {
  Graph *g = graph_new(NULL, false);
  Node *x = feed(g, 2, I64(2, 3)), *w = g_state(g, "w \"q\" \\ \n", DT_FLOAT32, 2, I64(3, 4));
  w->ia = arena_dup(g->arena, I64(1, 0), 2 * sizeof(int64_t)), w->n_ia = 2;
  Node *y = g_matmul(g, x, w, false, false);
  y = g_map2c(g, P_ADD, g_map1(g, P_TANH, y), -1.0 / 3);
  y = g_pad(g, y, I64(1, 0), I64(0, -1), -INFINITY);
  y = g_view(g, y, 1, I64(9), (AffDim[]){{0, -1, -2, 0, 7, 3}, aff_const(1)}, NAN);
  Node *im = g_random(g, DT_FLOAT32, 4, I64(1, 2, 5, 5), 1, 2, true);
  Node *c = g_conv(g, im, g_full(g, DT_FLOAT32, 0.1, 4, I64(2, 2, 3, 3)), 2, I64(2, 1), I64(1, 0),
                   I64(1, 0), I64(1, 2), 1);
  Node *many = g_cast(g, g_iota(g, DT_INT32, 1, I64(100), 0), DT_FLOAT64);
  double long_data[100] = {0.1, NAN, -0.0};
  many = g_map2(g, P_POW, many, g_data(g, DT_FLOAT64, 1, I64(100), long_data, "long"));
  Node *idx = g_data(g, DT_INT64, 1, I64(2), I64(INT64_MIN, INT64_MAX), "idx");
  idx = g_check(g, idx, -5, 100, true, -100, E_DAT_002);
  Node *s = g_scatter(g, many, idx, g_gather(g, many, idx, 0), 0, true);
  NamedNode n[] = {{"w", g_reduce(g, P_RMAX, c, 13, true), I64(3, 1, 0, 2)},
                   {"y\x01", y, NULL},
                   {"s", g_concat(g, 2, (Node *[]){s, many}, 0), NULL},
                   {"a", g_argsort(g, many, true), NULL},
                   {"m", g_argmax(g, c, 12, false, DT_INT32), NULL},
                   {"h", g_data(g, DT_BFLOAT16, 1, I64(2), (uint16_t[]){0x3f80, 0x8000}, "h"),
                    NULL},
                   {"z", g_select(g, g_map2(g, P_LT, c, c), c, c), NULL}};
  n[0].layout = arena_dup(g->arena, n[0].layout, 4 * sizeof(int64_t));
  vec_add(g->arena, &g->writes, n[0]);
  for (int i = 1; i < 7; i++) vec_add(g->arena, &g->fetches, n[i]);
  assert_false(err_any());
  return g;
}

static void test_text(void **state) {
  (void)state;
  Graph *g = everything(), *h;
  Str a, b;
  str_init(&a, g->arena);
  str_init(&b, g->arena);
  graph_print(g, &a);
  h = graph_parse(a.s, a.n, "test");
  if (!h) err_print(stderr, false);
  assert_non_null(h);
  graph_print(h, &b);
  assert_string_equal(a.s, b.s);
  for (int i = 0; i < g->nodes.n; i++) {
    const Node *x = g->nodes.v[i], *y = h->nodes.v[i];
    if (x->prim == P_DATA)
      assert_memory_equal(x->data, y->data,
                          (size_t)node_numel(x) * (size_t)dtype_info[x->dtype].size);
    if (x->prim == P_VIEW) assert_memory_equal(&x->f, &y->f, sizeof x->f);
  }
  /* every cut and every changed byte gives a graph or an error */
  for (size_t n = 0; n < a.n; n++) {
    graph_free(graph_parse(a.s, n, "test"));
    err_clear();
    for (int k = 0; k < 3; k++) {
      char keep = a.s[n];
      a.s[n] = "9-x"[k];
      graph_free(graph_parse(a.s, a.n, "test"));
      a.s[n] = keep;
      err_clear();
    }
  }
  Str dot;
  str_init(&dot, g->arena);
  graph_dot(g, &dot);
  assert_non_null(strstr(dot.s, "n0 -> "));
  graph_free(h);
  graph_free(g);
}

static void test_text_form(void **state) {
  (void)state;
  static const char text[] = "graph\n"
                             "%0 float32 [5, 9] = feed \"x\"\n"
                             "%1 float32 [2, 4, 3] = view %0 [i0+i2, 2*i1-1] pad 0\n"
                             "%2 float32 [1, 4, 1] = rsum %1 {axes=[0, 2]}\n"
                             "fetch \"y\" %2\n";
  static const char kernels[] = "kernel k00_rsum loop [2] {\n  in %0\n  out %2\n}\nplan arena 64\n";
  Arena *a = arena_new();
  Str o, with;
  str_init(&o, a);
  str_init(&with, a);
  str_fmt(&with, "# note\n\n%s\n%s", text, kernels);
  Graph *g = graph_parse(with.s, with.n, NULL);
  if (!g) err_print(stderr, false);
  assert_non_null(g);
  graph_print(g, &o);
  assert_string_equal(o.s, text);
  graph_free(g);
  static const char wrong[] = "graph\n%0 float32 [5] = feed \"x\"\n%1 float32 [5] = expp %0\n";
  assert_null(graph_parse(wrong, sizeof wrong - 1, "f.kg"));
  assert_int_equal(err_get()->code, E_TXT_001);
  assert_non_null(strstr(err_get()->where, "f.kg, line 3"));
  err_clear();
  static const char misfit[] = "graph\n%0 float32 [5] = feed \"x\"\n%1 float32 [6] = exp %0\n";
  assert_null(graph_parse(misfit, sizeof misfit - 1, NULL));
  assert_int_equal(err_get()->code, E_VER_004);
  err_clear();
  arena_free(a);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_shapes),     cmocka_unit_test(test_unknown),
      cmocka_unit_test(test_errors),     cmocka_unit_test(test_sources),
      cmocka_unit_test(test_float_maps), cmocka_unit_test(test_integer_maps),
      cmocka_unit_test(test_views),      cmocka_unit_test(test_reductions),
      cmocka_unit_test(test_contract),   cmocka_unit_test(test_indexing),
      cmocka_unit_test(test_check),      cmocka_unit_test(test_call),
      cmocka_unit_test(test_philox),     cmocka_unit_test(test_text),
      cmocka_unit_test(test_text_form),
  };
  return cmocka_run_group_tests_name("graph", tests, NULL, NULL);
}
