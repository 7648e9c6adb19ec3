/* The Graph: shapes and errors of the builders, and the text form. */
#include "../ir/ir.h"
#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#define I64(...) ((int64_t[]){__VA_ARGS__})

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
      cmocka_unit_test(test_shapes),    cmocka_unit_test(test_unknown),
      cmocka_unit_test(test_errors),    cmocka_unit_test(test_text),
      cmocka_unit_test(test_text_form),
  };
  return cmocka_run_group_tests_name("graph", tests, NULL, NULL);
}
