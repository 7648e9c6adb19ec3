/* Generated code against the interpreter: every map over awkward values and how exact it is, reductions in every mode,
 * views with padding, gathers, random numbers, concatenations. */
#include "code_case.h"
#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

/* ---- maps over edge values ---- */

static int edges(DType t, double *v) {
  static const double floats[] = {
      0.0,    -0.0,  1,   -1,   0.5,  -0.5,         1.5,      -1.5,      2,     -2,     3,
      -3,     7,     0.1, -0.1, 1e-3, 10,           -10,      30,        -30,   80,     -80,
      88.5,   -88,   100, -100, 1e4,  -1e4,         3e38,     -3e38,     1e-38, -1e-38, 1e-45,
      -1e-45, 1e-40, 5.5, 1e9,  -1e9, 2147483648.0, INFINITY, -INFINITY, NAN};
  static const double ints[] = {0,
                                1,
                                -1,
                                2,
                                -2,
                                3,
                                -3,
                                5,
                                7,
                                -7,
                                100,
                                -100,
                                127,
                                -128,
                                255,
                                32767,
                                -32768,
                                2147483647,
                                -2147483648.0,
                                9e15,
                                -9e15};
  int n = 0, size = dtype_info[t].size;
  if (dtype_is_float(t)) {
    memcpy(v, floats, sizeof floats);
    return sizeof floats / sizeof *floats;
  }
  for (size_t i = 0; i < sizeof ints / sizeof *ints; i++) {
    double lim = ldexp(1, 8 * size - 1), x = ints[i];
    if (t == DT_BOOL ? x == 0 || x == 1 : t == DT_UINT8 ? x >= 0 && x < 256 : x >= -lim && x < lim)
      v[n++] = x;
  }
  return n;
}

/* All pairs of edge values (all values for one operand). */
static Node *edges_feed(Case *c, DType t, int which) {
  double v[64];
  int n = edges(t, v);
  Node *x = case_feed(c, t, 1, I64(n * n), 0, 1);
  Tensor *to = &c->feed[c->n - 1];
  for (int i = 0; i < n * n; i++) tensor_set(to, i, v[which ? i / n : i % n]);
  return x;
}

static void test_maps(void **state) {
  (void)state;
  static const DType types[] = {DT_FLOAT32, DT_FLOAT64, DT_FLOAT16, DT_BFLOAT16, DT_INT64,
                                DT_INT32,   DT_INT16,   DT_INT8,    DT_UINT8,    DT_BOOL};
  for (size_t t = 0; t < sizeof types / sizeof *types; t++)
    for (Prim p = 0; p < P_N; p++) {
      if (!prim_is_map(p) || p == P_CAST || p == P_SELECT) continue;
      bool flt = dtype_is_float(types[t]);
      if (!flt && prim_info[p].n_in == 1) continue;
      Case *c = case_new();
      Node *x = edges_feed(c, types[t], 0), *y = edges_feed(c, types[t], 1);
      for (int64_t i = 0; p == P_SIN && i < tensor_numel(&c->feed[0]); i++) {
        double v = tensor_get(&c->feed[0], i); /* beyond that it is only kept in -1..1 */
        if (isfinite(v) && fabs(v) > 1e10) tensor_set(&c->feed[0], i, 1);
      }
      Node *r = prim_info[p].n_in == 1 ? g_map1(c->g, p, x) : g_map2(c->g, p, x, y);
      if (!r) {
        err_clear();
        case_free(c);
        continue;
      }
      double tol = p == P_POW && types[t] == DT_FLOAT64 ? 2000
                   : p == P_MOD                         ? 1
                   : types[t] == DT_FLOAT64             ? 4
                                                        : 2;
      case_check_map(c, r, tol, p == P_SIN ? 1 : 0, prim_info[p].name);
      case_free(c);
    }
}

static void test_casts(void **state) {
  (void)state;
  for (DType from = 0; from < DT_N; from++)
    for (DType to = 0; to < DT_N; to++) {
      if (from == to) continue;
      Case *c = case_new();
      case_check_map(c, g_cast(c->g, edges_feed(c, from, 0), to), 0, 0, "cast");
      case_free(c);
    }
}

/* ---- reductions ---- */

static const struct {
  int rank;
  int64_t dims[4];
  uint32_t axes;
} sums[] = {{1, {1000}, 1},        {2, {7, 300}, 2},     {2, {300, 7}, 1},
            {2, {300, 200}, 1},    {2, {40, 1000}, 1},   {3, {5, 70, 9}, 2},
            {3, {70, 5, 9}, 5},    {3, {5, 9, 70}, 5},   {4, {6, 5, 8, 9}, 13},
            {4, {6, 5, 8, 9}, 10}, {4, {6, 8, 9, 5}, 7}, {4, {3, 5, 8, 9}, 15},
            {2, {1, 100}, 1},      {2, {100, 1}, 2},     {3, {2, 1, 400}, 4},
            {2, {5, 3}, 2},        {2, {5, 3}, 1},       {4, {2, 3, 4, 2}, 9},
            {2, {0, 5}, 1},        {2, {5, 0}, 2},       {3, {4, 33, 1}, 6},
            {1, {70000}, 1},       {2, {33, 129}, 1}};

static void test_reductions(void **state) {
  (void)state;
  static const DType types[] = {DT_FLOAT32, DT_FLOAT64, DT_BFLOAT16, DT_INT32, DT_INT8, DT_BOOL};
  static const Prim prims[] = {P_RSUM, P_RMAX, P_RPROD, P_ARGMAX};
  for (size_t s = 0; s < sizeof sums / sizeof *sums; s++)
    for (size_t t = 0; t < sizeof types / sizeof *types; t++)
      for (size_t p = 0; p < 4; p++) {
        Case *c = case_new();
        Node *x = case_feed(c, types[t], sums[s].rank, sums[s].dims, p == 2 ? 0.97 : -2,
                            p == 2 ? 1.03 : 3);
        Node *y = prims[p] == P_ARGMAX ? g_argmax(c->g, x, sums[s].axes, true, DT_INT64)
                                       : g_reduce(c->g, prims[p], x, sums[s].axes, true);
        case_check(c, case_kernel(c, K_LOOP, NULL, 1, &y, sums[s].axes), LOOP_MAIN,
                   types[t] == DT_BFLOAT16 ? 1 : 3000, p == 1 ? 0 : 1, prim_info[prims[p]].name);
        /* the same inlined into a map */
        if (numel_of(x->rank, x->dims) / (node_numel(y) ? node_numel(y) : 1) <= 50) {
          Node *z = prims[p] == P_ARGMAX ? y : g_map2(c->g, P_MAX, x, y);
          case_check(c, case_kernel(c, K_LOOP, NULL, 1, &z, 0), LOOP_MAIN,
                     types[t] == DT_BFLOAT16 ? 1 : 100, p == 1 ? 0 : 1, "inlined");
        }
        case_free(c);
      }
}

static void test_nan_max(void **state) {
  (void)state;
  for (int axis = 0; axis < 2; axis++) {
    Case *c = case_new();
    Node *x = case_feed(c, DT_FLOAT32, 2, I64(90, 80), -1, 1);
    for (int i = 0; i < 40; i++) tensor_set(&c->feed[0], i * 170, i % 3 ? NAN : INFINITY);
    Node *y[2] = {g_reduce(c->g, P_RMAX, x, 1u << axis, true),
                  g_argmax(c->g, x, 1u << axis, true, DT_INT32)};
    case_check(c, case_kernel(c, K_LOOP, NULL, 2, y, 1u << axis), LOOP_MAIN, 0, 0, "NaN");
    case_free(c);
  }
}

/* Softmax, its logarithm and row statistics over each axis: three sweeps, full and row outputs. */
static void test_softmax(void **state) {
  (void)state;
  for (int rank = 2; rank <= 4; rank++)
    for (int axis = 0; axis < rank; axis++) {
      Case *c = case_new();
      Graph *g = c->g;
      int64_t dims[4] = {rank == 2 ? 70 : 5, rank == 2 ? 150 : 40, 37, 4};
      uint32_t bit = 1u << axis;
      Node *x = case_feed(c, DT_FLOAT32, rank, dims, -5, 5);
      Node *m = g_reduce(g, P_RMAX, x, bit, true), *e = g_map1(g, P_EXP, g_map2(g, P_SUB, x, m));
      Node *s = g_reduce(g, P_RSUM, e, bit, true), *l = g_map1(g, P_LOG, s);
      Node *out[4] = {g_map2(g, P_DIV, e, s), e, g_map2(g, P_ADD, l, m), s};
      Kernel *k = case_kernel(c, K_LOOP, NULL, 4, out, bit);
      case_check(c, k, LOOP_MAIN, 60, 1, "softmax");
      k->inputs.v[0].aligned = true;
      case_check(c, k, LOOP_MAIN, 60, 1, "softmax in place");
      case_free(c);
    }
}

/* ---- views ---- */

static void test_views(void **state) {
  (void)state;
  for (int t = 0; t < 2; t++) {
    DType dt = t ? DT_INT16 : DT_FLOAT32;
    int64_t dims[4] = {3, 5, 18, 22};
#define VIEW_CASE(expr)                                                                            \
  do {                                                                                             \
    Case *c = case_new();                                                                          \
    Graph *g = c->g;                                                                               \
    Node *x = case_feed(c, dt, 4, dims, -50, 50), *y = (expr);                                     \
    case_check_map(c, y, 2, 100, #expr);                                                           \
    case_free(c);                                                                                  \
  } while (0)
    VIEW_CASE(g_permute(g, x, (int[]){0, 2, 3, 1}));
    VIEW_CASE(g_permute(g, x, (int[]){3, 1, 0, 2}));
    VIEW_CASE(
        g_map2(g, P_ADD, x, g_slice(g, x, I64(0, 2, 0, 0), I64(1, 1, 1, 1), I64(3, 1, 18, 22))));
    VIEW_CASE(g_slice(g, x, I64(2, 1, 16, 3), I64(-1, 2, -3, 4), I64(3, 2, 5, 4)));
    VIEW_CASE(g_pad(g, x, I64(0, 1, 2, 3), I64(1, 0, 4, 5), 7));
    VIEW_CASE(g_pad(g, x, I64(0, -1, 2, -3), I64(1, 0, -4, 5), 7));
    VIEW_CASE(g_window(g, x, 2, 2, I64(3, 3), I64(2, 2), I64(1, 1), I64(1, 1), I64(1, 1), -9));
    VIEW_CASE(
        g_reduce(g, P_RMAX,
                 g_window(g, x, 2, 2, I64(2, 2), I64(2, 2), I64(1, 1), I64(0, 0), I64(0, 0), -9),
                 48, false));
    VIEW_CASE(
        g_reduce(g, P_RSUM,
                 g_window(g, x, 2, 2, I64(3, 3), I64(2, 2), I64(1, 1), I64(1, 1), I64(1, 1), 0), 48,
                 false));
    VIEW_CASE(
        g_reduce(g, P_RSUM,
                 g_window(g, x, 2, 2, I64(3, 2), I64(1, 3), I64(2, 1), I64(2, 1), I64(2, 1), 0), 48,
                 false));
    VIEW_CASE(g_reshape(g, g_permute(g, x, (int[]){0, 2, 3, 1}), 2, I64(54, 110)));
    VIEW_CASE(g_permute(g, g_reshape(g, x, 3, I64(15, 9, 44)), (int[]){1, 0, 2}));
    VIEW_CASE(g_map2(g, P_MUL, g_reshape(g, x, 2, I64(3, 1980)),
                     g_reshape(g, g_permute(g, x, (int[]){0, 1, 3, 2}), 2, I64(3, 1980))));
    VIEW_CASE(g_map2(g, P_ADD, x, g_cast(g, g_iota(g, DT_INT32, 4, dims, 2), dt)));
    VIEW_CASE(g_map2(g, P_ADD, x, g_cast(g, g_iota(g, DT_INT64, 4, dims, 0), dt)));
    int64_t large[4] = {3, 40, 36, 70}; /* transposed in tiles */
    memcpy(dims, large, sizeof dims);
    VIEW_CASE(g_permute(g, x, (int[]){0, 3, 1, 2}));
    VIEW_CASE(g_permute(g, x, (int[]){1, 3, 0, 2}));
    VIEW_CASE(g_permute(g, g_reshape(g, x, 2, I64(36 * 70, 120)), (int[]){1, 0}));
    VIEW_CASE(g_permute(g, g_reshape(g, x, 2, I64(100, 3024)), (int[]){1, 0}));
    Node *back = NULL;
    VIEW_CASE((back = g_slice(g, x, I64(2, 0, 0, 69), I64(-1, 1, 1, -1), large),
               g_map2(g, P_ADD, x,
                      g_permute(g, g_permute(g, back, (int[]){3, 2, 1, 0}), (int[]){3, 2, 1, 0}))));
    VIEW_CASE((back = g_slice(g, x, I64(2, 0, 0, 69), I64(-1, 1, 1, -1), large),
               g_permute(g, back, (int[]){2, 3, 1, 0})));
    VIEW_CASE(g_permute(g, g_reshape(g, x, 4, I64(4, 3, 100, 252)),
                        (int[]){0, 2, 3, 1})); /* rows of a few elements */
    VIEW_CASE(g_permute(g, g_reshape(g, x, 3, I64(7, 4, 10800)), (int[]){0, 2, 1}));
    VIEW_CASE(g_permute(g, g_reshape(g, x, 2, I64(2, 151200)), (int[]){1, 0}));
    VIEW_CASE(
        (back = g_reshape(g, x, 4, I64(4, 3, 100, 252)),
         g_permute(g, g_pad(g, back, I64(0, 0, 1, 2), I64(0, 0, 3, 5), 0), (int[]){0, 2, 3, 1})));
    VIEW_CASE((back = g_slice(g, x, I64(2, 0, 0, 69), I64(-1, 1, 1, -1), large),
               g_permute(g, back, (int[]){1, 2, 3, 0})));
#undef VIEW_CASE
  }
}

/* Gradients of windows: indices divided by the stride, guarded. */
static void test_window_gradients(void **state) {
  (void)state;
  static const struct {
    int64_t size, k, stride, dil, pad;
  } w[] = {{24, 2, 2, 1, 0}, {23, 2, 2, 1, 0}, {20, 3, 2, 1, 1},
           {21, 3, 3, 1, 0}, {18, 3, 1, 2, 2}, {40, 5, 4, 1, 2}};
  for (size_t i = 0; i < sizeof w / sizeof *w; i++) {
    Case *c = case_new();
    Graph *g = c->g;
    Node *x = case_feed(c, DT_FLOAT32, 4, I64(2, 3, w[i].size, w[i].size), -1, 1), *gx = NULL;
    Node *v =
        g_window(g, x, 2, 2, I64(w[i].k, w[i].k), I64(w[i].stride, w[i].stride),
                 I64(w[i].dil, w[i].dil), I64(w[i].pad, w[i].pad), I64(w[i].pad, w[i].pad), 0);
    Node *y = g_reduce(g, P_RSUM, g_map2(g, P_MUL, v, v), 48, false);
    Node *gy = case_feed(c, DT_FLOAT32, y->rank, y->dims, -1, 1);
    if (!derive(g, 1, &y, &gy, 1, &x, &gx)) case_fail("derive");
    case_check_map(c, gx, 100, 1, "window gradient");
    case_free(c);
  }
}

static void test_gather(void **state) {
  (void)state;
  for (int axis = 0; axis < 3; axis++)
    for (int t = 0; t < 2; t++) {
      Case *c = case_new();
      int64_t dims[3] = {30, 20, 24}, idims[3] = {30, 20, 24};
      idims[axis] = 17;
      Node *x = case_feed(c, DT_FLOAT32, 3, dims, -1, 1);
      Node *i = case_feed(c, t ? DT_INT32 : DT_INT64, 3, idims, -3, 40); /* clamped */
      case_check_map(c,
                     g_map2(c->g, P_ADD, g_gather(c->g, x, i, axis), g_cast(c->g, i, DT_FLOAT32)),
                     0, 0, "gather");
      case_free(c);
    }
}

static void test_random(void **state) {
  (void)state;
  for (int t = 0; t < 2; t++)
    for (int i = 0; i < 4; i++) {
      Case *c = case_new();
      DType dt = t ? DT_FLOAT64 : DT_FLOAT32;
      int64_t dims[2] = {i == 1 ? 33 : 64, i == 2 ? 3 : i == 3 ? 250 : 1000};
      Node *r = g_random(c->g, dt, 2, dims, i == 1 ? 99 : 0, 0x123456789abcd, i == 2);
      case_check_map(c, i == 3 ? g_permute(c->g, r, (int[]){1, 0}) : r, 0, 0, "random");
      case_free(c);
    }
}

static void test_check(void **state) {
  (void)state;
  Case *c = case_new();
  Node *x = case_feed(c, DT_INT64, 2, I64(40, 50), 0, 10);
  Node *k = g_check(c->g, x, 0, 10, true, -100, E_DAT_002), *y = g_cast(c->g, k, DT_FLOAT32);
  tensor_set(&c->feed[0], 3, -100);
  Kernel *kernel = case_kernel(c, K_LOOP, NULL, 1, &y, 0);
  case_check(c, kernel, LOOP_MAIN, 0, 0, "check");
  Steps fn;
  CodeBatch *b = case_compile(c, kernel, LOOP_MAIN, &fn);
  assert_non_null(b);
  Failed f = {0};
  Tensor out;
  assert_true(tensor_make(&out, c->a, DT_FLOAT32, 2, I64(40, 50)));
  tensor_set(&c->feed[0], 1234, 10);
  tensor_set(&c->feed[0], 1999, -1);
  case_run(c, kernel, &fn, 1, &out, &f);
  assert_int_equal(f.n, 2);
  assert_int_equal(f.node, k->id);
  assert_int_equal(f.index, 1234);
  assert_int_equal(f.value, 10);
  code_free(b);
  case_free(c);
}

static void test_concat(void **state) {
  (void)state;
  for (int axis = 0; axis < 3; axis++) {
    Case *c = case_new();
    int64_t dims[3] = {6, 50, 70};
    Node *x[4];
    for (int i = 0; i < 4; i++) {
      dims[axis] = i == 2 ? 0 : 3 + 40 * i;
      x[i] = case_feed(c, DT_FLOAT32, 3, dims, -1, 1);
      if (i % 2) x[i] = g_map2c(c->g, P_ADD, x[i], 1);
    }
    Node *y = g_concat(c->g, 4, x, axis);
    case_check(c, case_kernel(c, K_CONCAT, y, 1, &y, 0), LOOP_MAIN, 0, 0, "concat");
    case_free(c);
  }
}

/* ---- accuracy ---- */

static void test_accuracy(void **state) {
  (void)state;
  static const struct {
    Prim p;
    double lo, hi, scale;
    int ulp; /* of float32 */
  } range[] = {{P_EXP, -104, 89, 0, 2}, {P_EXP, -1, 1, 0, 2},     {P_LOG, 1e-44, 1e-37, 0, 2},
               {P_LOG, 0.5, 2, 0, 2},   {P_LOG, 0, 1e6, 0, 2},    {P_TANH, -1, 1, 0, 2},
               {P_TANH, -12, 12, 0, 2}, {P_ERF, -1.3, 1.3, 0, 1}, {P_ERF, -6, 6, 0, 1},
               {P_SIN, -4, 4, 0.01, 2}, {P_SIN, -1e5, 1e5, 1, 2}, {P_EXP, -745, 709, 0, 2}};
  for (size_t i = 0; i < sizeof range / sizeof *range; i++)
    for (int w = 0; w < 2; w++) {
      Case *c = case_new();
      Node *x = case_feed(c, w ? DT_FLOAT64 : DT_FLOAT32, 1, I64(200000), range[i].lo, range[i].hi);
      case_check_map(c, g_map1(c->g, range[i].p, x), w ? 8 : range[i].ulp, range[i].scale,
                     prim_info[range[i].p].name);
      print_message("%-5s %s %10g..%-8g max %.2f ulp\n", prim_info[range[i].p].name,
                    w ? "float64" : "float32", range[i].lo, range[i].hi, c->ulp);
      case_free(c);
    }
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_maps),
                                     cmocka_unit_test(test_casts),
                                     cmocka_unit_test(test_reductions),
                                     cmocka_unit_test(test_nan_max),
                                     cmocka_unit_test(test_softmax),
                                     cmocka_unit_test(test_views),
                                     cmocka_unit_test(test_window_gradients),
                                     cmocka_unit_test(test_gather),
                                     cmocka_unit_test(test_random),
                                     cmocka_unit_test(test_check),
                                     cmocka_unit_test(test_concat),
                                     cmocka_unit_test(test_accuracy)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
