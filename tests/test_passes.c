/* The Graph passes: each on a small graph whose results stay the same, what fusion makes of typical groups of
 * operators, random graphs, the memory plan, and the runner's options. */
#include "passcheck.h"
#include "util.h"
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static int count(const Graph *g, Prim p) {
  int n = 0;
  for (int i = 0; i < g->nodes.n; i++) n += g->nodes.v[i]->prim == p;
  return n;
}

/* ---- constants, common subexpressions, sums ---- */

static void test_constfold(void **state) {
  (void)state;
  Graph *g =
      graph_parsed("graph\n%0 int64 [4, 4] = iota {axis=0}\n%1 int64 [4, 4] = iota {axis=1}\n"
                   "%2 bool [4, 4] = lt %0 %1\n%3 float32 [4, 4] = cast %2\n"
                   "%4 float32 [4, 4] = feed \"x\"\n%5 float32 [4, 4] = mul %3 %4\n"
                   "%6 float32 [4] = data \"d\" [1, 2, 3, 4]\n%7 float32 [1] = rsum %6 {axes=[0]}\n"
                   "%8 float32 [4, 4] = view %7 [0] pad 0\n%9 float32 [4, 4] = add %5 %8\n"
                   "fetch \"y\" %9\n");
  pass_constfold(g);
  assert_int_equal(count(g, P_DATA), 1);
  assert_int_equal(count(g, P_RSUM), 0);
  assert_int_equal(count(g, P_CAST), 0);
  check_passes(g, 0);
  graph_free(g);
  g = graph_parsed("graph\n%0 int64 [100000] = iota {axis=0}\n%1 int64 [100000] = mul %0 %0\n"
                   "%2 float32 [2] = random {seed=1, stream=2, fixed=1}\n%3 float32 [2] = exp %2\n"
                   "fetch \"a\" %1\nfetch \"b\" %3\n");
  pass_constfold(g);
  assert_int_equal(count(g, P_DATA), 0);
  graph_free(g);
}

static void test_cse_and_dce(void **state) {
  (void)state;
  Graph *g =
      graph_parsed("graph\n" X23 "%1 float32 [2, 3] = exp %0\n%2 float32 [2, 3] = feed \"x\"\n"
                   "%3 float32 [2, 3] = exp %2\n%4 float32 [2, 3] = tanh %0\n"
                   "%5 float32 [2, 3] = mul %1 %3\n%6 float32 [2, 3] = view %0 [i0, i1-1] pad 0\n"
                   "%7 float32 [2, 3] = view %2 [i0, i1-1] pad 1\n"
                   "%8 float32 [2, 3] = add %6 %7\n%9 float32 [2, 3] = add %8 %5\n"
                   "fetch \"y\" %9\n");
  pass_cse(g);
  assert_int_equal(count(g, P_EXP), 1);
  assert_int_equal(count(g, P_FEED), 1);
  assert_int_equal(count(g, P_VIEW), 2);
  assert_int_equal(count(g, P_TANH), 1);
  pass_dce(g);
  assert_int_equal(count(g, P_TANH), 0);
  check_passes(g, 0);
  graph_free(g);
}

static void test_split(void **state) {
  (void)state;
  static const char *const texts[] = {
      "graph\n%0 float32 [20000] = feed \"x\"\n%1 float32 [1] = rsum %0 {axes=[0]}\nfetch \"y\" "
      "%1\n",
      "graph\n%0 float32 [20011] = feed \"x\"\n%1 float32 [1] = rsum %0 {axes=[0]}\nfetch \"y\" "
      "%1\n",
      "graph\n%0 float32 [20011] = feed \"x\"\n%1 float32 [1] = rmax %0 {axes=[0]}\nfetch \"y\" "
      "%1\n",
      "graph\n%0 float32 [64, 3, 20, 20] = feed \"x\"\n%1 float32 [64, 3, 20, 20] = mul %0 %0\n"
      "%2 float32 [1, 3, 1, 1] = rsum %1 {axes=[0, 2, 3]}\nfetch \"y\" %2\n",
      "graph\n%0 float32 [2, 30000] = feed \"x\"\n%1 float32 [2, 30000] = exp %0\n"
      "%2 float32 [2, 1] = rsum %1 {axes=[1]}\nfetch \"y\" %2\n"};
  for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
    Graph *g = graph_parsed(texts[i]);
    int before = count(g, P_RSUM) + count(g, P_RMAX);
    check_passes(g, 1e-4);
    assert_int_equal(count(g, P_RSUM) + count(g, P_RMAX), before + 1);
    assert_int_equal(g->kernels.n, 2);
    graph_free(g);
  }
  Graph *g = graph_parsed("graph\n%0 float32 [64, 1000] = feed \"x\"\n"
                          "%1 float32 [64, 1] = rsum %0 {axes=[1]}\nfetch \"y\" %1\n");
  pass_split(g);
  assert_int_equal(count(g, P_RSUM), 1);
  graph_free(g);
  /* mean and variance over all but the last axis: sums of chunks, read once, and their sums */
  g = graph_parsed(
      "graph\n%0 float32 [16, 16, 17, 3] = feed \"x\"\n"
      "%1 float32 [16, 16, 17, 3] = const 1000\n%2 float32 [16, 16, 17, 3] = add %0 %1\n"
      "%3 float32 [1, 1, 1, 3] = rsum %2 {axes=[0, 1, 2]}\n"
      "%4 float32 [1, 1, 1, 3] = const 0.00022977941176470588\n"
      "%5 float32 [1, 1, 1, 3] = mul %3 %4\n"
      "%6 float32 [16, 16, 17, 3] = view %5 [0, 0, 0, i3] pad 0\n"
      "%7 float32 [16, 16, 17, 3] = sub %2 %6\n%8 float32 [16, 16, 17, 3] = mul %7 %7\n"
      "%9 float32 [1, 1, 1, 3] = rsum %8 {axes=[0, 1, 2]}\n"
      "%10 float32 [1, 1, 1, 3] = mul %9 %4\nfetch \"var\" %10\nfetch \"mean\" %5\n");
  check_passes(g, 1e-4);
  assert_int_equal(count(g, P_RSUM), 4);
  assert_int_equal(g->kernels.n, 2);
  graph_free(g);
  /* the gradient of a matrix for one sample is a product of two numbers each, part of the update */
  g = graph_parsed("graph\n%0 float32 [1, 12] = feed \"x\"\n%1 float32 [1, 20] = feed \"g\"\n"
                   "%2 float32 [12, 20] = state \"w\"\n"
                   "%3 float32 [12, 20] = contract %0 %1 [i2, i0] [i2, i1] sum [1]\n"
                   "%4 float32 [12, 20] = sub %2 %3\nwrite \"w\" %4\n");
  check_passes(g, 1e-6);
  assert_int_equal(count(g, P_CONTRACT), 0);
  assert_int_equal(g->kernels.n, 1);
  graph_free(g);
  /* a window that leaves its operand stays */
  g = graph_parsed("graph\n%0 float32 [6] = feed \"x\"\n%1 float32 [1] = feed \"g\"\n"
                   "%2 float32 [8] = contract %0 %1 [i0-1] [0] sum [1]\nfetch \"y\" %2\n");
  check_passes(g, 1e-6);
  assert_int_equal(count(g, P_CONTRACT), 1);
  graph_free(g);
}

/* ---- fusion ---- */

typedef struct FuseCase {
  const char *what, *graph;
  int kernels;
} FuseCase;

static const FuseCase fuse_cases[] = {
    {"maps join",
     "graph\n" X23 "%1 float32 [2, 3] = exp %0\n%2 float32 [2, 3] = tanh %1\n"
     "%3 float32 [2, 3] = mul %1 %2\nfetch \"y\" %3\n",
     1},
    {"softmax over many",
     "graph\n%0 float32 [4, 50] = feed \"x\"\n%1 float32 [4, 1] = rmax %0 {axes=[1]}\n"
     "%2 float32 [4, 50] = view %1 [i0, 0] pad 0\n%3 float32 [4, 50] = sub %0 %2\n"
     "%4 float32 [4, 50] = exp %3\n%5 float32 [4, 1] = rsum %4 {axes=[1]}\n"
     "%6 float32 [4, 50] = view %5 [i0, 0] pad 0\n%7 float32 [4, 50] = div %4 %6\nfetch \"y\" %7\n",
     1},
    {"softmax over few",
     "graph\n%0 float32 [4, 5] = feed \"x\"\n%1 float32 [4, 1] = rmax %0 {axes=[1]}\n"
     "%2 float32 [4, 5] = view %1 [i0, 0] pad 0\n%3 float32 [4, 5] = sub %0 %2\n"
     "%4 float32 [4, 5] = exp %3\n%5 float32 [4, 1] = rsum %4 {axes=[1]}\n"
     "%6 float32 [4, 5] = view %5 [i0, 0] pad 0\n%7 float32 [4, 5] = div %4 %6\nfetch \"y\" %7\n",
     1},
    {"small reductions are maps",
     "graph\n%0 float32 [4, 6] = feed \"x\"\n%1 float32 [4, 3, 2] = reshape %0\n"
     "%2 float32 [4, 3, 1] = rmax %1 {axes=[2]}\n%3 float32 [4, 3, 1] = exp %2\nfetch \"y\" %3\n",
     1},
    {"reductions over different axes",
     "graph\n%0 float32 [50, 40] = feed \"x\"\n"
     "%1 float32 [50, 1] = rsum %0 {axes=[1]}\n%2 float32 [1, 40] = rsum %0 {axes=[0]}\n"
     "fetch \"a\" %1\nfetch \"b\" %2\n",
     2},
    {"two reductions of one tensor",
     "graph\n%0 float32 [50, 40] = feed \"x\"\n"
     "%1 float32 [50, 1] = rsum %0 {axes=[1]}\n%2 float32 [50, 1] = rmax %0 {axes=[1]}\n"
     "fetch \"a\" %1\nfetch \"b\" %2\n",
     1},
    {"a dear value under a window is stored",
     "graph\n%0 float32 [40] = feed \"x\"\n"
     "%1 float32 [40] = tanh %0\n%2 float32 [38, 3] = view %1 [i0+i1] pad 0\n"
     "%3 float32 [38, 1] = rsum %2 {axes=[1]}\nfetch \"y\" %3\n",
     2},
    {"a cheap value under a window is not",
     "graph\n%0 float32 [40] = feed \"x\"\n"
     "%1 float32 [40] = add %0 %0\n%2 float32 [38, 3] = view %1 [i0+i1] pad 0\n"
     "%3 float32 [38, 1] = rsum %2 {axes=[1]}\nfetch \"y\" %3\n",
     1},
    {"matmul, bias, activation",
     "graph\n%0 float32 [4, 8] = feed \"x\"\n%1 float32 [8, 6] = state \"w\"\n"
     "%2 float32 [6] = state \"b\"\n%3 float32 [4, 6] = contract %0 %1 [i0, i2] [i2, i1] sum [8]\n"
     "%4 float32 [4, 6] = view %2 [i1] pad 0\n%5 float32 [4, 6] = add %3 %4\n"
     "%6 float32 [4, 6] = tanh %5\nfetch \"y\" %6\n",
     1},
    {"bias behind a reshape",
     "graph\n%0 float32 [4, 8] = feed \"x\"\n%1 float32 [8, 6] = state \"w\"\n"
     "%2 float32 [6] = state \"b\"\n%3 float32 [4, 6] = contract %0 %1 [i0, i2] [i2, i1] sum [8]\n"
     "%7 float32 [2, 2, 6] = reshape %3\n%4 float32 [2, 2, 6] = view %2 [i2] pad 0\n"
     "%5 float32 [2, 2, 6] = add %7 %4\n%6 float32 [2, 2, 6] = tanh %5\nfetch \"y\" %6\n",
     1},
    {"a sum of products",
     "graph\n%0 float32 [4, 4] = feed \"x\"\n%1 float32 [4, 4] = state \"w\"\n"
     "%2 float32 [4, 4] = contract %0 %1 [i0, i2] [i2, i1] sum [4]\n"
     "%3 float32 [4, 4] = contract %0 %1 [i0, i2] [i1, i2] sum [4]\n"
     "%4 float32 [4, 4] = add %2 %3\nfetch \"y\" %4\n",
     2},
    {"a product used twice",
     "graph\n%0 float32 [4, 4] = feed \"x\"\n%1 float32 [4, 4] = state \"w\"\n"
     "%2 float32 [4, 4] = contract %0 %1 [i0, i2] [i2, i1] sum [4]\n%3 float32 [4, 4] = exp %2\n"
     "%4 float32 [4, 4] = contract %2 %3 [i0, i2] [i2, i1] sum [4]\nfetch \"y\" %4\n",
     2},
    {"sgd is not part of the product",
     "graph\n%0 float32 [4, 4] = feed \"x\"\n%1 float32 [4, 4] = state \"w\"\n"
     "%2 float32 [4, 4] = contract %0 %0 [i2, i0] [i2, i1] sum [4]\n%3 float32 [4, 4] = sub %1 %2\n"
     "write \"w\" %3\n",
     2},
    {"no cycle through a product",
     "graph\n%0 float32 [4, 4] = feed \"x\"\n%1 float32 [4, 4] = exp %0\n"
     "%2 float32 [4, 4] = contract %1 %0 [i0, i2] [i2, i1] sum [4]\n%3 float32 [4, 4] = mul %1 %2\n"
     "fetch \"y\" %3\n",
     2},
    {"a gather is inlined",
     "graph\n%0 float32 [9, 4] = state \"w\"\n%1 int64 [5, 1] = feed \"x\"\n"
     "%2 int64 [5, 1] = check %1 {lo=0, hi=9, has_ignore=0, ignore=0, code=E-DAT-002}\n"
     "%3 int64 [5, 4] = view %2 [i0, 0] pad 0\n%4 float32 [5, 4] = gather %0 %3 {axis=0}\n"
     "%5 float32 [5, 4] = exp %4\nfetch \"y\" %5\n",
     1},
    {"scatter, concat, sort",
     "graph\n%0 float32 [9, 4] = state \"w\"\n%1 int64 [5, 4] = feed \"i\"\n"
     "%2 float32 [5, 4] = feed \"u\"\n%3 float32 [9, 4] = scatter %0 %1 %2 {axis=0, assign=0}\n"
     "%4 float32 [14, 4] = concat %3 %2 {axis=0}\n%5 int64 [14, 4] = argsort %4 {descending=1}\n"
     "fetch \"y\" %5\n",
     3},
    {"a concatenation makes what it joins",
     "graph\n" X23 "%1 float32 [3, 2] = feed \"w\"\n%2 float32 [2, 3] = view %1 [i1, i0] pad 0\n"
     "%3 float32 [2, 3] = exp %0\n%4 float32 [4, 3] = concat %2 %3 {axis=0}\nfetch \"y\" %4\n",
     1},
    {"but for what others read, too",
     "graph\n" X23 "%3 float32 [2, 3] = exp %0\n%4 float32 [4, 3] = concat %3 %0 {axis=0}\n"
     "fetch \"y\" %4\nfetch \"z\" %3\n",
     2},
    {"swapped states",
     "graph\n%0 float32 [4] = state \"a\"\n%1 float32 [4] = state \"b\"\n"
     "write \"a\" %1\nwrite \"b\" %0\nfetch \"y\" %0\n",
     1},
    {"tiny updates join",
     "graph\n%0 float32 [1] = state \"a\"\n%1 float32 [1] = state \"b\"\n"
     "%2 float32 [1] = const 0.9\n%3 float32 [1] = mul %0 %2\n%4 float32 [1] = mul %1 %2\n"
     "write \"a\" %3\nwrite \"b\" %4\n",
     1},
    {"a window's largest is found in the order in which it lies",
     "graph\n%0 float32 [4, 6, 8] = feed \"x\"\n%1 float32 [1, 6, 8] = rmax %0 {axes=[0]}\n"
     "%2 float32 [8, 6] = view %1 [0, i1, i0] pad 0\nfetch \"y\" %2\n",
     2},
    {"and only if that differs",
     "graph\n%0 float32 [4, 6, 8] = feed \"x\"\n%1 float32 [1, 6, 8] = rmax %0 {axes=[0]}\n"
     "%2 float32 [6, 8] = view %1 [0, -i0+5, i1] pad 0\nfetch \"y\" %2\n",
     1},
    {"constants and sources as results",
     "graph\n" X23 "%1 float32 [2, 3] = const 4\n"
     "%2 int32 [3] = iota {axis=0}\n"
     "fetch \"x\" %0\nfetch \"c\" %1\nfetch \"i\" %2\n",
     2},
};

static void test_fusion(void **state) {
  (void)state;
  for (size_t i = 0; i < sizeof fuse_cases / sizeof *fuse_cases; i++) {
    Graph *g = graph_parsed(fuse_cases[i].graph);
    check_passes(g, 1e-5);
    if (g->kernels.n != fuse_cases[i].kernels)
      fail_msg("%s: %d kernels, not %d", fuse_cases[i].what, g->kernels.n, fuse_cases[i].kernels);
    graph_free(g);
  }
}

/* Kernels of a momentum update, of which the gradient is a sum of so many terms. */
static int update_kernels(const char *terms, bool updates) {
  char text[1024];
  snprintf(text, sizeof text,
           "graph\n%%0 float32 [%s, 20] = feed \"x\"\n%%1 float32 [%s, 30] = feed \"g\"\n"
           "%%2 float32 [20, 30] = state \"w\"\n%%3 float32 [20, 30] = state \"v\"\n"
           "%%4 float32 [20, 30] = contract %%0 %%1 [i2, i0] [i2, i1] sum [%s]\n"
           "%%5 float32 [20, 30] = add %%3 %%4\n%%6 float32 [20, 30] = sub %%2 %%5\n"
           "write \"v\" %%5\nwrite \"w\" %%6\n",
           terms, terms, terms);
  Graph *g = graph_parsed(text);
  g->updates = updates;
  check_passes(g, 1e-5);
  assert_int_equal(g->copies.n, 0); /* in place */
  int kernels = g->kernels.n;
  graph_free(g);
  return kernels;
}

static void test_updates(void **state) {
  (void)state;
  assert_int_equal(update_kernels("64", true), 1);
  assert_int_equal(update_kernels("64", false), 2);
  assert_int_equal(update_kernels("2000", true), 2); /* sums cost more than what would be saved */
}

/* A balanced tree of products and sums of `leaves` feeds, the first of them named `from`. */
static Node *wide_tree(Graph *g, int from, int leaves) {
  const char *name = arena_fmt(g->arena, "x%d", from);
  if (leaves == 1) return g_feed(g, name, DT_FLOAT32, 2, (int64_t[]){2, 3});
  Node *a = wide_tree(g, from, leaves / 2), *b = wide_tree(g, from + leaves / 2, leaves / 2);
  return g_map2(g, leaves == 2 ? P_MUL : P_ADD, a, b);
}

/* However many values an expression or a concatenation reads, generated code has buffers for its kernels. */
static void test_many_inputs(void **state) {
  (void)state;
  enum { PARTS = 64, MOST_BUFFERS = 256 };
  for (int joined = 0; joined < 2; joined++) {
    Graph *g = graph_new(NULL, false);
    Node *part[PARTS];
    for (int i = 0; joined && i < PARTS; i++) part[i] = wide_tree(g, 4 * i, 4);
    Node *y = joined ? g_concat(g, PARTS, part, 1) : wide_tree(g, 0, 512);
    vec_add(g->arena, &g->fetches, ((NamedNode){"y", y, NULL}));
    check_passes(g, 1e-4);
    for (int i = 0; i < g->kernels.n; i++) {
      const Kernel *k = g->kernels.v[i];
      assert_true(k->inputs.n + k->outputs.n <= MOST_BUFFERS);
    }
    graph_free(g);
  }
}

/* (a a') a: of a's shape, scaled down. */
static Node *contract_square(Graph *g, Node *a) {
  Node *s = g_matmul(g, a, a, false, true);
  return g_map2c(g, P_MUL, g_matmul(g, s, a, false, false), 0.01);
}

/* Random graphs of maps, views, reductions and products: fusion's contract and the plan hold whatever it decides. */
static void test_random_graphs(void **state) {
  (void)state;
  srand(11);
  for (int round = 0; round < 300; round++) {
    Graph *g = graph_new(NULL, false);
    int64_t full[2] = {6, 40};
    Node *pool[40];
    int n = 0;
    pool[n++] = g_feed(g, "x", DT_FLOAT32, 2, full);
    pool[n++] = g_state(g, "w", DT_FLOAT32, 2, full);
    while (n < 24) {
      Node *a = pool[rand() % n], *b = pool[rand() % n];
      switch (rand() % 9) {
      case 0: a = g_map1(g, rand() % 2 ? P_TANH : P_ERF, a); break;
      case 1:
      case 2: a = g_map2(g, rand() % 2 ? P_ADD : P_MAX, a, b); break;
      case 3: {
        uint32_t axes = 1u + (uint32_t)(rand() % 3);
        a = g_map2(g, P_SUB, a, g_expand(g, g_reduce(g, P_RMAX, a, axes, true), 2, full));
        break;
      }
      case 4:
        a = g_map2(g, P_MUL, b,
                   g_expand(g, g_map1(g, P_TANH, g_reduce(g, P_RSUM, a, 2, true)), 2, full));
        break;
      case 5: a = g_map1(g, P_SIN, contract_square(g, a)); break;
      case 6:
        a = g_map2(g, P_ADD, b,
                   g_reshape(g, g_map1(g, P_SIN, g_reshape(g, a, 1, (int64_t[]){-1})), 2, full));
        break;
      case 7: a = g_pad(g, a, (int64_t[]){0, 1}, (int64_t[]){0, -1}, 0.5); break;
      default: a = g_map2(g, P_MIN, a, g_random(g, DT_FLOAT32, 2, full, 0, rand() % 3, false));
      }
      assert_non_null(a);
      pool[n++] = a;
    }
    vec_add(g->arena, &g->writes, ((NamedNode){"w", pool[n - 1 - rand() % 3], NULL}));
    vec_add(g->arena, &g->fetches, ((NamedNode){"y", pool[n - 1], NULL}));
    vec_add(g->arena, &g->fetches, ((NamedNode){"z", pool[n - 1 - rand() % 12], NULL}));
    check_passes(g, 1e-4);
    graph_free(g);
  }
}

/* ---- the plan ---- */

static void test_plan_check(void **state) {
  (void)state;
  Graph *g =
      graph_parsed("graph\n%0 float32 [64] = feed \"x\"\n%1 float32 [64, 64] = view %0 [i1] pad 0\n"
                   "%2 float32 [64, 64] = contract %1 %1 [i0, i2] [i2, i1] sum [64]\n"
                   "%3 float32 [64, 64] = contract %2 %1 [i0, i2] [i2, i1] sum [64]\n"
                   "fetch \"y\" %3\n");
  assert_true(passes_run(g, NULL, NULL));
  assert_true(memplan_check(g, NULL));
  Buffer *moved = NULL;
  for (int i = 0; i < g->buffers.n; i++)
    if (g->buffers.v[i]->kind == B_ARENA && g->buffers.v[i]->offset > 0) moved = g->buffers.v[i];
  assert_non_null(moved);
  moved->offset = 0;
  Str why;
  str_init(&why, g->arena);
  assert_false(memplan_check(g, &why));
  assert_non_null(strstr(why.s, "overlap"));
  graph_free(g);
}

static void test_failing_checks_leave_state(void **state) {
  (void)state;
  /* the state's kernel needs the checked value, so it cannot be ordered behind: the update is copied at the exit */
  Graph *g =
      graph_parsed("graph\n%0 int64 [4] = feed \"i\"\n%3 float32 [4] = state \"w\"\n"
                   "%1 int64 [4] = check %0 {lo=0, hi=9, has_ignore=0, ignore=0, code=E-DAT-002}\n"
                   "%2 float32 [4] = cast %1\n%4 float32 [4] = sub %3 %2\nwrite \"w\" %4\n");
  check_passes(g, 0);
  assert_int_equal(g->copies.n, 1);
  graph_free(g);
}

static bool ask_for_workspace(Kernel *k) {
  k->workspace = 1000 * (k->id + 1);
  return true;
}

static void test_workspace(void **state) {
  (void)state;
  Graph *g = graph_parsed(fuse_cases[8].graph);
  PassOptions o = {.schedule = ask_for_workspace};
  assert_true(passes_run(g, &o, NULL));
  assert_true(memplan_check(g, NULL));
  const Kernel *k = g->kernels.v[0];
  assert_non_null(k->ws);
  assert_int_equal(k->ws->bytes, 1000);
  assert_true(g->arena_bytes >= 1000 + 96);
  graph_free(g);
}

/* ---- the runner ---- */

static void test_runner(void **state) {
  (void)state;
  PassOptions o = {0};
  assert_true(pass_options_parse(&o, "stop-after=cse,disable=constfold disable=split,time-passes"));
  assert_string_equal(o.stop_after, "cse");
  assert_string_equal(o.disable, "constfold,split");
  assert_true(o.time_passes);
  assert_false(pass_options_parse(&o, "stop-aftr=cse"));
  assert_int_equal(err_get()->code, E_ARG_001);
  err_clear();
  Graph *g = graph_parsed(fuse_cases[0].graph);
  char *text = NULL;
  size_t size = 0;
  o.log = open_memstream(&text, &size);
  o.print_after = "all";
  bool stopped = false;
  assert_true(passes_run(g, &o, &stopped));
  assert_true(stopped);
  assert_int_equal(g->kernels.n, 0);
  fclose(o.log);
  assert_non_null(strstr(text, "# after cse (unchanged)"));
  assert_null(strstr(text, "# after constfold"));
  free(text);
  o = (PassOptions){.stop_after = "cs"};
  assert_false(passes_run(g, &o, NULL));
  assert_int_equal(err_get()->code, E_ARG_001);
  err_clear();
  graph_free(g);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test_teardown(test_constfold, clear_error),
                                     cmocka_unit_test_teardown(test_cse_and_dce, clear_error),
                                     cmocka_unit_test_teardown(test_split, clear_error),
                                     cmocka_unit_test_teardown(test_fusion, clear_error),
                                     cmocka_unit_test_teardown(test_many_inputs, clear_error),
                                     cmocka_unit_test_teardown(test_updates, clear_error),
                                     cmocka_unit_test_teardown(test_random_graphs, clear_error),
                                     cmocka_unit_test_teardown(test_plan_check, clear_error),
                                     cmocka_unit_test_teardown(test_failing_checks_leave_state,
                                                               clear_error),
                                     cmocka_unit_test_teardown(test_workspace, clear_error),
                                     cmocka_unit_test_teardown(test_runner, clear_error)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
