/* Contractions as generated loops against the interpreter: products, convolutions, depthwise convolutions and their
 * gradients, and an epilogue alone. */
#include "code_case.h"
#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static void check_contract(Case *c, Node *y, bool epilogue, const char *what) {
  if (!y) case_fail(what);
  Node *core = y;
  while (core->prim != P_CONTRACT) core = core->in[0];
  Node *z = y;
  if (epilogue) {
    Node *b = case_feed(c, core->dtype, 1, I64(core->dims[core->rank - 1]), -1, 1);
    z = g_map2c(c->g, P_MAX, g_map2(c->g, P_ADD, core, b), 0);
  }
  case_check(c, case_kernel(c, K_CONTRACT, core, 1, &z, 0), LOOP_CONTRACT, 3000, 1, what);
}

static void test_contractions(void **state) {
  (void)state;
  for (int e = 0; e < 2; e++)
    for (int t = 0; t < 3; t++) {
      DType dt = t == 0 ? DT_FLOAT32 : t == 1 ? DT_FLOAT64 : DT_INT32;
#define CONTRACT_CASE(A, B, expr)                                                                  \
  do {                                                                                             \
    Case *c = case_new();                                                                          \
    Node *a = case_feed(c, dt, A, -3, 3), *b = case_feed(c, dt, B, -3, 3);                         \
    check_contract(c, expr, e, #expr);                                                             \
    case_free(c);                                                                                  \
  } while (0)
#define D(...) sizeof(I64(__VA_ARGS__)) / 8, I64(__VA_ARGS__)
      CONTRACT_CASE(D(17, 40), D(40, 150), g_matmul(c->g, a, b, false, false));
      CONTRACT_CASE(D(17, 400), D(15, 400), g_matmul(c->g, a, b, false, true));
      CONTRACT_CASE(D(40, 17), D(15, 40), g_matmul(c->g, a, b, true, true));
      CONTRACT_CASE(D(3, 17, 5), D(3, 5, 15), g_matmul(c->g, a, b, false, false));
      CONTRACT_CASE(D(2, 3, 9, 11), D(4, 3, 3, 3),
                    g_conv(c->g, a, b, 2, I64(2, 2), I64(1, 1), I64(1, 1), I64(1, 1), 1));
      CONTRACT_CASE(D(2, 6, 9, 21), D(6, 1, 3, 3),
                    g_conv(c->g, a, b, 2, I64(1, 1), I64(1, 1), I64(1, 1), I64(1, 1), 6));
      CONTRACT_CASE(D(2, 6, 9, 21), D(4, 3, 3, 3),
                    g_conv(c->g, a, b, 2, I64(1, 2), I64(2, 2), I64(2, 2), I64(2, 2), 2));
#undef CONTRACT_CASE
#undef D
    }
}

typedef struct Depthwise {
  int64_t n, h, w, c, kh, kw, stride, dilation, lo, hi;
} Depthwise;

/* Channels last: which = 0 forward, 1 gradient of the input, 2 of the filter. */
static void check_depthwise(const Depthwise *d, DType t, int which) {
  Case *c = case_new();
  Graph *g = c->g;
  int64_t oh = (d->h + d->lo + d->hi - d->dilation * (d->kh - 1) - 1) / d->stride + 1,
          ow = (d->w + d->lo + d->hi - d->dilation * (d->kw - 1) - 1) / d->stride + 1;
  int64_t ext[6] = {d->n, oh, ow, d->c, d->kh, d->kw};
  Node *in[2] = {case_feed(c, t, 4, I64(d->n, d->h, d->w, d->c), -2, 2),
                 case_feed(c, t, 4, I64(d->kh, d->kw, 1, d->c), -2, 2)};
  int32_t s = (int32_t)d->stride, l = (int32_t)d->dilation;
  AffDim row = {1, 4, s, l, -d->lo, 1}, col = {2, 5, s, l, -d->lo, 1};
  AffDim mx[4] = {aff_loop(0), row, col, aff_loop(3)},
         mw[4] = {aff_loop(4), aff_loop(5), aff_const(0), aff_loop(3)};
  Node *y = g_contract(g, in[0], in[1], 4, 6, ext, mx, mw), *r = y;
  if (which) {
    Node *gy = case_feed(c, t, 4, ext, -2, 2);
    assert_true(derive(g, 1, &y, &gy, 1, &in[which - 1], &r));
  }
  if (r->prim == P_CONTRACT) {
    Kernel k = {.kind = K_CONTRACT, .core = r};
    assert_int_equal(loop_is_stencil(&k), d->c > 1 && d->h * d->w > 1);
    if (d->h > 30) assert_int_equal(loop_workspace(&k) > 0, which == 2); /* sums in parts */
  }
  check_contract(c, r, which == 0, "depthwise");
  case_free(c);
}

static void test_depthwise(void **state) {
  (void)state;
  static const Depthwise cases[] = {
      {1, 7, 7, 32, 3, 3, 1, 1, 1, 1},   {2, 9, 40, 16, 3, 3, 1, 1, 1, 1},
      {2, 8, 23, 17, 3, 3, 2, 1, 1, 1},  {1, 8, 24, 20, 3, 3, 2, 1, 0, 1},
      {3, 11, 33, 48, 5, 5, 1, 1, 2, 2}, {1, 12, 29, 3, 5, 5, 2, 1, 2, 2},
      {2, 13, 31, 8, 3, 3, 1, 2, 2, 2},  {1, 13, 31, 8, 3, 3, 2, 3, 3, 2},
      {1, 1, 50, 33, 1, 3, 1, 1, 0, 0},  {2, 20, 1, 64, 3, 1, 1, 1, 0, 0},
      {1, 20, 6, 24, 7, 7, 1, 1, 3, 3},  {5, 3, 3, 1, 3, 3, 1, 1, 1, 1},
      {1, 5, 19, 40, 2, 2, 3, 1, 0, 0},  {1, 30, 30, 130, 3, 3, 1, 1, 5, 7},
      {2, 6, 70, 96, 3, 3, 1, 1, 1, 1},  {1, 1, 1, 40, 3, 3, 1, 1, 1, 1},
      {2, 5, 7, 4, 2, 1, 1, 2, 0, 0},    {1, 19, 9, 32, 3, 1, 2, 1, 0, 0},
      {2, 6, 14, 24, 1, 3, 2, 1, 0, 0},  {1, 38, 40, 48, 3, 3, 1, 1, 1, 1},
      {1, 39, 21, 32, 5, 5, 1, 1, 2, 2}};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
    for (int which = 0; which < 3; which++) {
      check_depthwise(&cases[i], DT_FLOAT32, which);
      if (i % 3 == 0) check_depthwise(&cases[i], DT_FLOAT64, which);
    }
}

/* The epilogue alone, on the rows where the raw result lies in the output. */
static void test_epilogue(void **state) {
  (void)state;
  static const int64_t shapes[][3] = {{1, 9, 30}, {4, 1, 200}, {1, 1, 77}, {3, 5, 70}, {1, 1, 1}};
  for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
    Case *c = case_new();
    const int64_t *d = shapes[s];
    Node *a = case_feed(c, DT_FLOAT32, 3, I64(d[0], d[1], 4), -1, 1),
         *b = case_feed(c, DT_FLOAT32, 3, I64(d[0], 4, d[2]), -1, 1);
    Node *core = g_matmul(c->g, a, b, false, false),
         *bias = case_feed(c, DT_FLOAT32, 1, I64(d[2]), -1, 1);
    Node *y = g_map2c(c->g, P_MAX, g_map2(c->g, P_ADD, core, bias), 0);
    Kernel *k = case_kernel(c, K_CONTRACT, core, 1, &y, 0);
    EvalEnv env = {.lookup = case_lookup, .user = c};
    Tensor **values = arena_array(c->a, Tensor *, c->g->nodes.n), out;
    vec_add(c->g->arena, &c->g->fetches, ((NamedNode){"y", y, NULL}));
    graph_number(c->g);
    assert_true(graph_eval(c->g, &env, c->a, values));
    Steps fn;
    CodeBatch *code = case_compile(c, k, LOOP_EPILOGUE, &fn);
    if (!code) case_fail("epilogue");
    assert_true(tensor_make(&out, c->a, DT_FLOAT32, y->rank, y->dims));
    memcpy(out.data, values[core->id]->data, tensor_bytes(&out));
    int64_t rows = loop_tasks(k, LOOP_EPILOGUE);
    assert_int_equal(rows, d[0] * d[1] > 1 ? d[0] * d[1] : d[2]);
    for (int64_t r = 0; r < rows; r += 3) {
      void *bufs[4] = {c->feed[0].data, c->feed[1].data, c->feed[2].data, out.data};
      RunCtx ctx = {0};
      fn.fn[0](NULL, bufs, r, r + 3 < rows ? r + 3 : rows, &ctx);
    }
    case_compare(c, values[y->id], &out, 0, 0, "epilogue");
    code_free(code);
    case_free(c);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_contractions),
                                     cmocka_unit_test(test_depthwise),
                                     cmocka_unit_test(test_epilogue)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
