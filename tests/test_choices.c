/* Which algorithm, tile and tasks a contraction gets on the CPU: every choice computes the same, shares of few rows, halves
 * of small images, and what is measured and remembered. */
#include "contract_case.h"
#include <stdlib.h>
#include <unistd.h>

/* x [6, 9, 9, 24] and w [3, 3, 24, 40], and its gradients: channels last. */
static Graph *layer(Feeds *f) {
  Graph *g = graph_new(NULL, false);
  int64_t xd[4] = {6, 9, 9, 24}, wd[4] = {3, 3, 24, 40}, ext[7] = {6, 9, 9, 40, 3, 3, 24};
  AffDim mx[4] = {aff_loop(0), {1, 4, 1, 1, -1, 1}, {2, 5, 1, 1, -1, 1}, aff_loop(6)},
         mw[4] = {aff_loop(4), aff_loop(5), aff_loop(6), aff_loop(3)};
  Node *x = feeds_add(g, f, "x", DT_FLOAT32, 4, xd), *w = feeds_add(g, f, "w", DT_FLOAT32, 4, wd);
  Node *y = g_contract(g, x, w, 4, 7, ext, mx, mw), *xs[2] = {x, w}, *gxs[2];
  Node *gy = feeds_add(g, f, "gy", DT_FLOAT32, 4, y->dims);
  assert_true(derive(g, 1, &y, &gy, 2, xs, gxs));
  g_matmul(g, feeds_add(g, f, "a", DT_FLOAT32, 2, (int64_t[]){50, 70}),
           feeds_add(g, f, "b", DT_FLOAT32, 2, (int64_t[]){70, 100}), false, false);
  return g;
}

/* Every tile of every algorithm gives the same, about. */
static void test_choices(void **state) {
  (void)state;
  Feeds f = feeds_new();
  Graph *g = layer(&f);
  int served = 0, tiles = 0;
  while (tile_table[tiles].isa != ISA_NONE) tiles++;
  graph_number(g);
  for (int i = 0; i < g->nodes.n; i++)
    if (g->nodes.v[i]->prim == P_CONTRACT) {
      NamedNode out = {"out", g->nodes.v[i], NULL};
      vec_add(g->arena, &g->fetches, out);
    }
  EvalEnv env = {.lookup = feeds_lookup, .user = &f};
  Tensor **values = arena_array(f.a, Tensor *, g->nodes.n);
  assert_true(graph_eval(g, &env, f.a, values));
  for (int i = 0; i < g->fetches.n; i++)
    for (contract_choice = WAY_N; contract_choice < WAY_N * (tiles + 1); contract_choice++)
      served += contract_check(f.a, g->fetches.v[i].node, values, false, false) != PLAN_LOOPS;
  contract_choice = WAY_RULE;
  assert_true(served >= 4);
  graph_free(g);
  arena_free(f.a);
}

static Kernel kernel_of(Arena *a, Node *n, Tuning tuning) {
  Kernel k = {.kind = K_CONTRACT, .name = "k", .rank = n->rank, .core = n, .tuning = tuning};
  memcpy(k.ext, n->dims, sizeof k.ext);
  vec_add(a, &k.nodes, n);
  for (int i = 0; i < 2; i++) vec_add(a, &k.inputs, ((KernelInput){n->in[i], false, false}));
  vec_add(a, &k.outputs, n);
  return k;
}

/* Few rows times a matrix that the program changes: tasks have rows of it, as those that update it do, and not columns. */
static void test_shares(void **state) {
  static const int64_t m[] = {1, 2, 4, 8, 16, 32, 64};
  (void)state;
  Feeds f = feeds_new();
  Graph *g = graph_new(NULL, false);
  Node *w = feeds_add(g, &f, "w", DT_FLOAT32, 2, (int64_t[]){784, 256});
  for (size_t i = 0; i < sizeof m / sizeof *m; i++) {
    const char *name = arena_fmt(f.a, "x%zu", i);
    Node *x = feeds_add(g, &f, name, DT_FLOAT32, 2, (int64_t[]){m[i], 784});
    Kernel k = kernel_of(f.a, g_matmul(g, x, w, false, false), TUNE_RULE);
    const Plan *p = contract_plan(f.a, &k, false);
    assert_in_range(p->work.shares, 4, MOST_SHARES);
    assert_int_equal(p->work.n_tasks[0], p->work.shares);
    k.inputs.v[1].constant = true;
    assert_int_equal(contract_plan(f.a, &k, false)->work.shares, 0);
  }
  Node *x = feeds_add(g, &f, "x", DT_FLOAT32, 2, (int64_t[]){64, 256});
  Node *u = feeds_add(g, &f, "u", DT_FLOAT32, 2, (int64_t[]){256, 128});
  Kernel k = kernel_of(f.a, g_matmul(g, x, u, false, false), TUNE_RULE);
  assert_int_equal(contract_plan(f.a, &k, false)->work.shares, 2);
  graph_free(g);
  arena_free(f.a);
}

/* A matrix that nobody has packed is packed by the tiles that read it, unless longer panels are worth more; where vectors go by
 * halves, panels are twice as long. */
static void test_packing(void **state) {
  static const struct {
    int64_t m, n, k, kind[2], panel[2];
  } cases[] = {{784, 128, 1152, {PLAN_GEMM, PLAN_GEMM}, {0, 0}},
               {1024, 1024, 256, {PLAN_CONV, PLAN_GEMM}, {0, 0}},
               {128, 3072, 768, {PLAN_GEMM, PLAN_GEMM}, {32 << 10, 64 << 10}}};
  static const char *const cpus[] = {"cpu:sapphirerapids", "cpu:znver4"};
  (void)state;
  for (size_t i = 0; i < 2 * (sizeof cases / sizeof *cases); i++) {
    const int64_t m = cases[i / 2].m, n = cases[i / 2].n, k = cases[i / 2].k;
    Feeds f = feeds_new();
    Graph *g = graph_new(NULL, false);
    Node *x = g_feed(g, "x", DT_FLOAT32, 2, (int64_t[]){m, k}),
         *w = g_feed(g, "w", DT_FLOAT32, 2, (int64_t[]){k, n});
    Kernel kernel = kernel_of(f.a, g_matmul(g, x, w, false, false), TUNE_RULE);
    tiles_for(cpus[i % 2]);
    const Plan *p = contract_plan(f.a, &kernel, false);
    assert_int_equal(p->kind, cases[i / 2].kind[i % 2]);
    if (cases[i / 2].panel[i % 2])
      assert_int_equal(micro_scratch(p->micro), cases[i / 2].panel[i % 2]);
    kernel.inputs.v[1].constant = true;
    assert_int_equal(contract_plan(f.a, &kernel, false)->kind, PLAN_CONV);
    tiles_for(NULL);
    graph_free(g);
    arena_free(f.a);
  }
}

/* A convolution of one image that is too small for more tasks by its operations has two all the same, as LeNet's first. */
static void test_halves(void **state) {
  static const int64_t sizes[] = {28, 20}, tasks[] = {2, 1}, one[] = {1, 1}, zero[] = {0, 0};
  (void)state;
  for (int i = 0; i < 2; i++) {
    Feeds f = feeds_new();
    Graph *g = graph_new(NULL, false);
    Node *x = feeds_add(g, &f, "x", DT_FLOAT32, 4, (int64_t[]){1, 1, sizes[i], sizes[i]}),
         *w = feeds_add(g, &f, "w", DT_FLOAT32, 4, (int64_t[]){20, 1, 5, 5});
    Node *y = g_conv(g, x, w, 2, one, zero, zero, one, 1);
    while (y->prim != P_CONTRACT) y = y->in[0];
    Kernel k = kernel_of(f.a, y, TUNE_RULE);
    const Plan *p = contract_plan(f.a, &k, false);
    assert_int_equal(p->kind, PLAN_IM2COL);
    assert_int_equal(p->work.n_tasks[0], tasks[i]);
    graph_free(g);
    arena_free(f.a);
  }
}

/* What is measured is remembered, and found again; by the rule nothing is. */
static void test_tuning(void **state) {
  (void)state;
  char dir[] = "/tmp/kiln-tuning-XXXXXX";
  const char *old = getenv("KILN_CACHE_DIR"), *had = old ? strdup(old) : NULL;
  assert_non_null(mkdtemp(dir));
  setenv("KILN_CACHE_DIR", dir, 1);
  Feeds f = feeds_new();
  Graph *g = layer(&f);
  int n = 0;
  for (int i = 0; i < g->nodes.n; i++) {
    Node *node = g->nodes.v[i];
    if (node->prim != P_CONTRACT || node->n_loops < 4) continue;
    Kernel rule = kernel_of(f.a, node, TUNE_RULE), fresh = kernel_of(f.a, node, TUNE_KNOWN);
    assert_true(backend_cpu.schedule(&fresh) && fresh.choice == WAY_RULE);
    Kernel tuned = kernel_of(f.a, node, TUNE_MEASURE), known = kernel_of(f.a, node, TUNE_KNOWN);
    assert_true(backend_cpu.schedule(&rule) && rule.choice == WAY_RULE);
    assert_true(backend_cpu.schedule(&tuned) && backend_cpu.schedule(&known));
    assert_int_equal(tuned.choice, known.choice);
    assert_string_equal(tuned.by, known.by);
    assert_int_equal(tuned.workspace, known.workspace);
    Kernel again = kernel_of(f.a, node, TUNE_MEASURE);
    assert_true(backend_cpu.schedule(&again) && again.choice == tuned.choice);
    assert_true(backend_cpu.schedule(&rule) && rule.choice == WAY_RULE);
    n++;
  }
  assert_int_equal(n, 3);
  CacheInfo info = cache_info(f.a);
  assert_true(info.entries > n);
  cache_clear(f.a);
  rmdir(dir);
  if (had)
    setenv("KILN_CACHE_DIR", had, 1);
  else
    unsetenv("KILN_CACHE_DIR");
  free((char *)had);
  graph_free(g);
  arena_free(f.a);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_choices), cmocka_unit_test(test_shares),
                                     cmocka_unit_test(test_packing), cmocka_unit_test(test_halves),
                                     cmocka_unit_test(test_tuning)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
