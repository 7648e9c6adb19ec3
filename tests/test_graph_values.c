/* The value of every primitive on small cases computed by hand, and random numbers against published vectors. */
#include "../ir/ir.h"
#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#define I64(...) ((int64_t[]){__VA_ARGS__})
#define F32(...) ((float[]){__VA_ARGS__})

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

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_sources),      cmocka_unit_test(test_float_maps),
      cmocka_unit_test(test_integer_maps), cmocka_unit_test(test_views),
      cmocka_unit_test(test_reductions),   cmocka_unit_test(test_contract),
      cmocka_unit_test(test_indexing),     cmocka_unit_test(test_check),
      cmocka_unit_test(test_call),         cmocka_unit_test(test_philox),
  };
  return cmocka_run_group_tests_name("graph_values", tests, NULL, NULL);
}
