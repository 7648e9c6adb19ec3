/* GFLOP/s of the CPU backend's contractions on the shapes of LeNet (20-50-500) and the MLP 784-256-128-10 at batch 64:
 * contract_bench [THREADS]. Without epilogues; median of repeated runs. */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include "../../backends/cpu/cpu.h"

typedef struct Phase {
  const KernelCode *code;
  void *const *bufs;
  char *scratch;
  int phase;
} Phase;

static void share(void *user, int thread, int64_t begin, int64_t end) {
  const Phase *p = user;
  const KernelCode *c = p->code;
  RunCtx ctx = {.scratch = p->scratch + thread * c->scratch_bytes,
                .scratch_bytes = (size_t)c->scratch_bytes};
  c->phase[p->phase].fn(c->phase[p->phase].self, p->bufs, begin, end, &ctx);
}

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static int by_value(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static void measure(const char *name, Node *n, Pool *pool) {
  enum { ROUNDS = 41 };
  static const char *const how[] = {"loops", "gemm", "im2col", "col2im"};
  Arena *a = arena_new();
  Kernel k = {.kind = K_CONTRACT, .core = n};
  void *bufs[4];
  for (int i = 0; i < 2; i++) {
    vec_add(a, &k.inputs, ((KernelInput){n->in[i], false}));
    int64_t m = node_numel(n->in[i]);
    float *v = bufs[i] = mem_alloc((size_t)m * 4);
    for (int64_t j = 0; j < m; j++) v[j] = (float)(j % 17) / 17;
  }
  vec_add(a, &k.outputs, n);
  bufs[2] = mem_alloc((size_t)node_numel(n) * 4);
  Plan *p = contract_plan(a, &k);
  bufs[3] = mem_alloc((size_t)p->work.workspace + 64);
  KernelCode code = {0};
  contract_code(p, NULL, &code);
  char *scratch = mem_alloc((size_t)(code.scratch_bytes * pool_threads(pool)) + 64);
  double t[ROUNDS];
  int repeat = 1 + (int)(1e6 / (double)p->facts.flops * 100);
  for (int r = 0; r < ROUNDS && p->kind != PLAN_LOOPS; r++) {
    double t0 = now();
    for (int i = 0; i < repeat; i++)
      for (int f = 0; f < code.n_phases; f++) {
        Phase ph = {&code, bufs, scratch, f};
        pool_run(pool, code.phase[f].n_tasks, share, &ph);
      }
    t[r] = (now() - t0) / repeat;
  }
  qsort(t, ROUNDS, sizeof *t, by_value);
  printf("%-28s %-7s %4lld tasks %9.1f us %7.1f GFLOP/s\n", name, how[p->kind],
         (long long)code.phase[0].n_tasks, t[ROUNDS / 2] / 1e3,
         (double)p->facts.flops / t[ROUNDS / 2]);
  for (int i = 0; i < 4; i++) mem_free(bufs[i]);
  mem_free(scratch);
  arena_free(a);
}

/* A layer's product or convolution and its gradients: weights, then input. */
static void layer(Graph *g, const char *name, Node *y, Node *x, Node *w, Pool *pool) {
  char text[64];
  Node *gy = g_feed(g, "gy", DT_FLOAT32, y->rank, y->dims), *xs[2] = {x, w}, *gxs[2];
  int from = g->nodes.n;
  measure(name, y, pool);
  if (!derive(g, 1, &y, &gy, 2, xs, gxs)) exit((err_print(stderr, false), 1));
  for (int i = from; i < g->nodes.n; i++) {
    Node *n = g->nodes.v[i];
    if (n->prim != P_CONTRACT) continue;
    bool filter = node_numel(n) == node_numel(w);
    snprintf(text, sizeof text, "%s, gradient of %s", name, filter ? "w" : "x");
    measure(text, n, pool);
  }
}

static void conv(const char *name, int64_t n, int64_t c, int64_t o, int64_t size, int64_t k,
                 int64_t stride, int64_t pad, Pool *pool) {
  static const int64_t ones[2] = {1, 1};
  int64_t xd[4] = {n, c, size, size}, wd[4] = {o, c, k, k}, s[2] = {stride, stride},
          p[2] = {pad, pad};
  Graph *g = graph_new(NULL, false);
  Node *x = g_feed(g, "x", DT_FLOAT32, 4, xd), *w = g_feed(g, "w", DT_FLOAT32, 4, wd);
  layer(g, name, g_conv(g, x, w, 2, s, p, p, ones, 1), x, w, pool);
  graph_free(g);
}

static void product(const char *name, int64_t m, int64_t n, int64_t k, Pool *pool) {
  Graph *g = graph_new(NULL, false);
  Node *x = g_feed(g, "x", DT_FLOAT32, 2, (int64_t[]){m, k}),
       *w = g_feed(g, "w", DT_FLOAT32, 2, (int64_t[]){k, n});
  layer(g, name, g_matmul(g, x, w, false, false), x, w, pool);
  graph_free(g);
}

int main(int argc, char **argv) {
  unsetenv("OPENBLAS_CORETYPE");
  blas_setup();
  Pool *pool = pool_new(argc > 1 ? atoi(argv[1]) : 1);
  conv("LeNet conv1", 64, 1, 20, 28, 5, 1, 0, pool);
  conv("LeNet conv2", 64, 20, 50, 12, 5, 1, 0, pool);
  product("LeNet fc1", 64, 500, 800, pool);
  product("LeNet fc2", 64, 10, 500, pool);
  product("MLP fc1", 64, 256, 784, pool);
  product("MLP fc2", 64, 128, 256, pool);
  product("MLP fc3", 64, 10, 128, pool);
  product("MLP fc1, batch 1", 1, 256, 784, pool);
  conv("3x3 64-64 56x56", 1, 64, 64, 56, 3, 1, 1, pool);
  conv("3x3 128-128 28x28, batch 8", 8, 128, 128, 28, 3, 1, 1, pool);
  conv("3x3 256-256 14x14/2", 8, 256, 256, 14, 3, 2, 1, pool);
  product("1024", 1024, 1024, 1024, pool);
  pool_free(pool);
  return 0;
}
