/* Speed of the CPU backend's contractions, without epilogues, beside the same plans with OpenBLAS:
 * contract_bench [THREADS [WORD]], those whose name holds WORD; with a third argument a line of JSON each. Rounds of ours,
 * OpenBLAS, oneDNN (sgemm alone, if it is there) and the peak loop (multiply-adds on registers alone) follow one another, so
 * that all see the same machine, each after a run that does not count: the one before leaves other caches and its own threads; printed are the medians of the rounds as parts of that peak, and ours over OpenBLAS.
 * The shapes: sgemm, convolutions of ResNet, LeNet (20-50-500) and the MLP 784-256-128-10 with their gradients, and of MobileNet
 * those whose operands come from memory. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "../../backends/cpu/cpu.h"
#include "../../backends/llvm/micro.h"
#include "../../ir/blas.h"
#include "../../tools/peak.h"
#include "peers/onednn.h"
#include "timing.h"

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

enum { ROUNDS = 15 };
static const char *word = "";
static bool json, onednn;
static int64_t product_size[3]; /* m, n, k of the sgemm that is measured; 0: something else is */

static double onednn_time(void *const *bufs, int repeat) {
  const int64_t *s = product_size;
  double t = now();
  for (int i = 0; i < repeat; i++) onednn_sgemm(s[0], s[1], s[2], bufs[0], bufs[1], bufs[2]);
  return (now() - t) / repeat;
}

static void print_json(const char *name, double flops, const double *const v[4]) {
  static const char *const names[] = {"kiln_us", "openblas_us", "peak_gflops", "onednn_us"};
  static const double scale[] = {1e-3, 1e-3, 1, 1e-3};
  printf("{\"name\": \"%s\", \"flops\": %.0f", name, flops);
  for (int i = 0; i < 4 && v[i]; i++)
    printf(", \"%s\": {\"median\": %.3f, \"min\": %.3f, \"max\": %.3f}", names[i],
           v[i][ROUNDS / 2] * scale[i], v[i][0] * scale[i], v[i][ROUNDS - 1] * scale[i]);
  printf("}\n");
}

typedef struct Side {
  Plan *plan;
  KernelCode code;
  char *scratch;
  bool made; /* what the first phase prepares */
  double t[ROUNDS];
} Side;

static void side_open(Side *s, Arena *a, const Kernel *k, bool ours, CodeBatch *code, int threads) {
  micro_isa = ours ? NULL : "none";
  s->plan = contract_plan(a, k, false);
  micro_isa = NULL;
  if (ours) plan_micro(s->plan, code);
  if (!code_make(code, NULL)) exit((err_print(stderr, false), 1));
  contract_code(s->plan, NULL, &s->code);
  s->scratch = mem_alloc((size_t)(s->code.scratch_bytes * threads) + 64);
}

static double side_run(const Side *s, void *const *bufs, Pool *pool, int repeat) {
  double t = now();
  for (int i = 0; i < repeat; i++)
    for (int f = s->made; f < s->code.n_phases; f++) {
      Phase ph = {&s->code, bufs, s->scratch, f};
      pool_run(pool, s->code.phase[f].n_tasks, share, &ph);
    }
  return (now() - t) / repeat;
}

/* constant: packed filters are made once, as in inference. */
static void measure(const char *name, Node *n, bool constant, Pool *pool) {
  if (!strstr(name, word)) return;
  static const char *const how[] = {"loops", "gemm", "im2col", "col2im", "conv", "filter"};
  Arena *a = arena_new();
  Kernel k = {.kind = K_CONTRACT, .core = n};
  void *bufs[4];
  for (int i = 0; i < 2; i++) {
    vec_add(a, &k.inputs,
            ((KernelInput){n->in[i], false, constant && n->in[i]->s && *n->in[i]->s == 'w'}));
    int64_t m = node_numel(n->in[i]);
    float *v = bufs[i] = mem_alloc((size_t)m * 4);
    for (int64_t j = 0; j < m; j++) v[j] = (float)(j % 17) / 17;
  }
  vec_add(a, &k.outputs, n);
  bufs[2] = mem_alloc((size_t)node_numel(n) * 4);
  Side side[2] = {{0}, {0}};
  CodeBatch *code[2] = {code_batch(a), code_batch(a)};
  double top[ROUNDS], theirs[ROUNDS];
  for (int i = 0; i < 2; i++) side_open(&side[i], a, &k, !i, code[i], pool_threads(pool));
  const Plan *p = side[0].plan;
  bufs[3] = mem_alloc((size_t)p->work.workspace + 64);
  for (int i = 0; i < 2 && p->kind != PLAN_LOOPS; i++) {
    side_run(&side[i], bufs, pool, 1);
    side[i].made = constant && side[i].plan->work.prepares;
  }
  int repeat = 1 + (int)(1e6 / (double)p->facts.flops * 50);
  for (int r = 0; r < ROUNDS && p->kind != PLAN_LOOPS; r++) {
    for (int i = 0; i < 2; i++) {
      side_run(&side[i], bufs, pool, 1);
      side[i].t[r] = side_run(&side[i], bufs, pool, repeat);
    }
    if (onednn && product_size[0]) {
      onednn_time(bufs, 1);
      theirs[r] = onednn_time(bufs, repeat);
    }
    top[r] = peak_flops(pool, 1e-3) * 1e-9;
  }
  sort_rounds(top, ROUNDS);
  sort_rounds(theirs, onednn && product_size[0] ? ROUNDS : 0);
  double part[2];
  for (int i = 0; i < 2; i++) {
    sort_rounds(side[i].t, ROUNDS);
    double flops = (double)p->facts.flops; /* with the terms that division leaves out */
    for (int d = 0; p->kind == PLAN_COL2IM && d < p->facts.n_dims[0]; d++)
      flops /= (double)p->facts.dim[0][d].div;
    part[i] = flops / side[i].t[ROUNDS / 2] / top[ROUNDS / 2];
  }
  if (json)
    print_json(name, (double)p->facts.flops,
               (const double *[4]){side[0].t, side[1].t, top,
                                   onednn && product_size[0] ? theirs : NULL});
  else
    printf("%-32s %-7s %3lld tasks %9.1f us  %4.2f of peak  OpenBLAS %4.2f  %5.2fx%s\n", name,
           how[p->kind], (long long)side[0].code.phase[0].n_tasks, side[0].t[ROUNDS / 2] / 1e3,
           part[0], part[1], part[0] / part[1], p->set ? "" : " (OpenBLAS)");
  fflush(stdout);
  for (int i = 0; i < 4; i++) mem_free(bufs[i]);
  for (int i = 0; i < 2; i++) mem_free(side[i].scratch);
  for (int i = 0; i < 2; i++) code_free(code[i]);
  arena_free(a);
}

/* A layer's product or convolution and its gradients: weights, then input. */
static void layer(Graph *g, const char *name, Node *y, Node *x, Node *w, Pool *pool) {
  char text[64];
  Node *gy = g_feed(g, "gy", DT_FLOAT32, y->rank, y->dims), *xs[2] = {x, w}, *gxs[2];
  int from = g->nodes.n;
  measure(name, y, true, pool);
  if (!derive(g, 1, &y, &gy, 2, xs, gxs)) exit((err_print(stderr, false), 1));
  for (int i = from; i < g->nodes.n; i++) {
    Node *n = g->nodes.v[i];
    if (n->prim != P_CONTRACT) continue;
    bool filter = node_numel(n) == node_numel(w);
    snprintf(text, sizeof text, "%s, d%s", name, filter ? "w" : "x");
    measure(text, n, false, pool);
  }
}

/* x [n, size, size, c] and w [k, k, c, o] to [n, out, out, o]. */
static void conv(const char *name, int64_t n, int64_t c, int64_t o, int64_t size, int64_t k,
                 int64_t stride, int64_t pad, Pool *pool) {
  int64_t out = (size + 2 * pad - k) / stride + 1, xd[4] = {n, size, size, c}, wd[4] = {k, k, c, o};
  int64_t ext[7] = {n, out, out, o, k, k, c};
  AffDim mx[4] = {aff_loop(0),
                  {1, 4, (int32_t)stride, 1, -pad, 1},
                  {2, 5, (int32_t)stride, 1, -pad, 1},
                  aff_loop(6)},
         mw[4] = {aff_loop(4), aff_loop(5), aff_loop(6), aff_loop(3)};
  Graph *g = graph_new(NULL, false);
  Node *x = g_feed(g, "x", DT_FLOAT32, 4, xd), *w = g_feed(g, "w", DT_FLOAT32, 4, wd);
  layer(g, name, g_contract(g, x, w, 4, 7, ext, mx, mw), x, w, pool);
  graph_free(g);
}

static void product(const char *name, int64_t m, int64_t n, int64_t k, Pool *pool) {
  Graph *g = graph_new(NULL, false);
  Node *x = g_feed(g, "x", DT_FLOAT32, 2, (int64_t[]){m, k}),
       *w = g_feed(g, "w", DT_FLOAT32, 2, (int64_t[]){k, n});
  layer(g, name, g_matmul(g, x, w, false, false), x, w, pool);
  graph_free(g);
}

static void sgemm(int64_t m, int64_t n, int64_t k, Pool *pool) {
  char name[64];
  Graph *g = graph_new(NULL, false);
  Node *x = g_feed(g, "x", DT_FLOAT32, 2, (int64_t[]){m, k}),
       *w = g_feed(g, "w", DT_FLOAT32, 2, (int64_t[]){k, n});
  snprintf(name, sizeof name, "sgemm %lld %lld %lld", (long long)m, (long long)n, (long long)k);
  memcpy(product_size, (int64_t[]){m, n, k}, sizeof product_size);
  measure(name, g_matmul(g, x, w, false, false), false, pool);
  product_size[0] = 0;
  graph_free(g);
}

int main(int argc, char **argv) {
  static const int64_t sizes[][3] = {{3136, 64, 576}, {784, 128, 1152}, {196, 256, 2304},
                                     {49, 512, 4608}, {3136, 256, 64},  {1024, 1024, 1024},
                                     {64, 64, 64},    {32, 480, 800},   {128, 3072, 768},
                                     {256, 256, 256}, {512, 512, 512}};
  unsetenv("OPENBLAS_CORETYPE");
  if (!blas_setup()) return 1;
  Pool *pool = pool_new(argc > 1 ? atoi(argv[1]) : 1);
  if (argc > 2) word = argv[2];
  json = argc > 3;
  onednn = onednn_open();
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
    sgemm(sizes[i][0], sizes[i][1], sizes[i][2], pool);
  conv("7x7/2 3-64 224", 1, 3, 64, 224, 7, 2, 3, pool);
  conv("3x3 64-64 56", 1, 64, 64, 56, 3, 1, 1, pool);
  conv("3x3 128-128 28", 1, 128, 128, 28, 3, 1, 1, pool);
  conv("3x3 256-256 14", 1, 256, 256, 14, 3, 1, 1, pool);
  conv("3x3 512-512 7", 1, 512, 512, 7, 3, 1, 1, pool);
  conv("1x1 256-64 56", 1, 256, 64, 56, 1, 1, 0, pool);
  conv("1x1 64-256 56", 1, 64, 256, 56, 1, 1, 0, pool);
  conv("1x1 1024-256 14", 1, 1024, 256, 14, 1, 1, 0, pool);
  conv("1x1 512-2048 7", 1, 512, 2048, 7, 1, 1, 0, pool);
  conv("LeNet conv1", 64, 1, 20, 28, 5, 1, 0, pool);
  conv("LeNet conv2", 64, 20, 50, 12, 5, 1, 0, pool);
  product("LeNet fc1", 64, 500, 800, pool);
  product("LeNet fc2", 64, 10, 500, pool);
  product("MLP fc1", 64, 256, 784, pool);
  product("MLP fc2", 64, 128, 256, pool);
  product("MLP fc3", 64, 10, 128, pool);
  product("MLP fc1, batch 1", 1, 256, 784, pool);
  conv("3x3 128-128 28, batch 8", 8, 128, 128, 28, 3, 1, 1, pool);
  conv("3x3 256-256 14/2, batch 8", 8, 256, 256, 14, 3, 2, 1, pool);
  conv("1x1 256-1024 14, batch 8", 8, 256, 1024, 14, 1, 1, 0, pool);
  conv("1x1 1024-256 14, batch 8", 8, 1024, 256, 14, 1, 1, 0, pool);
  conv("1x1 512-2048 7, batch 8", 8, 512, 2048, 7, 1, 1, 0, pool);
  conv("1x1 32-64 112, batch 4", 4, 32, 64, 112, 1, 1, 0, pool);
  conv("1x1 192-32 28, batch 16", 16, 192, 32, 28, 1, 1, 0, pool);
  pool_free(pool);
  return 0;
}
