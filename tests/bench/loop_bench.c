/* Speed of generated loop kernels: loop_bench [THREADS [WORD]]. Programs and graphs of the layers of convolution networks and
 * BERT are compiled as an executor would compile them; each kernel is run on its own, and beside it a triad and a loop of
 * multiply-adds, so that all see the same machine. Printed per kernel: time, arithmetic and traffic (the least possible: each
 * operand and result once) per nanosecond and thread, and the larger of their parts of the two peaks. Only cases whose name
 * holds WORD run. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "../../backends/backend.h"
#include "../../executor/executor.h"
#include "../../frontend/kiln.h"
#include "../../passes/passes.h"
#include "timing.h"

static Pool *pool;
static const char *word;

/* ---- peaks ---- */

enum { TRIAD = 1 << 23, FMAS = 200000, LANES = 16, CHAINS = 16 };
static float *triad[3];

static void triad_share(void *user, int thread, int64_t begin, int64_t end) {
  (void)user, (void)thread;
  float *a = triad[0], *b = triad[1], *c = triad[2];
  for (int64_t i = begin; i < end; i++) a[i] = b[i] + 3 * c[i];
}

typedef float Lane __attribute__((vector_size(LANES * 4)));
static volatile float sink;

#ifdef __clang__
#define FAST
#pragma STDC FP_CONTRACT ON
#else
#define FAST __attribute__((optimize("fp-contract=fast,unroll-loops")))
#endif
__attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default"))) FAST static float
fma_loop(void) {
  Lane s[CHAINS] = {{0}}, x = {1.5f}, y = {0.5f};
  for (int i = 0; i < FMAS; i++)
    for (int j = 0; j < CHAINS; j++) s[j] = s[j] * x + y;
  float sum = 0;
  for (int j = 0; j < CHAINS; j++) sum += s[j][0];
  return sum;
}

static void fma_share(void *user, int thread, int64_t begin, int64_t end) {
  (void)user, (void)thread;
  for (int64_t i = begin; i < end; i++) sink = fma_loop();
}

/* Per nanosecond, of all threads. */
static void peaks(double *bytes, double *flops) {
  int n = pool_threads(pool);
  double t = now();
  pool_run(pool, TRIAD, triad_share, NULL);
  *bytes = 12.0 * TRIAD / (now() - t);
  t = now();
  pool_run(pool, n, fma_share, NULL);
  *flops = 2.0 * FMAS * CHAINS * LANES * n / (now() - t);
}

/* ---- kernels ---- */

typedef struct Phase {
  const KernelCode *code;
  void *const *bufs;
  char *scratch;
  int phase;
} Phase;

static void failed(RunCtx *ctx, int64_t node, int64_t index, int64_t value) {
  (void)ctx, (void)node, (void)index, (void)value;
}

static void share(void *user, int thread, int64_t begin, int64_t end) {
  const Phase *p = user;
  const KernelCode *c = p->code;
  RunCtx ctx = {.seed = 1,
                .step = 1,
                .check_failed = failed,
                .scratch = p->scratch + thread * c->scratch_bytes,
                .scratch_bytes = (size_t)c->scratch_bytes};
  c->phase[p->phase].fn(c->phase[p->phase].self, p->bufs, begin, end, &ctx);
}

static void run_kernel(const KernelCode *c, void *const *bufs, char *scratch) {
  for (int f = 0; f < c->n_phases; f++) {
    Phase p = {c, bufs, scratch, f};
    if (c->cost < 20000)
      pool_run_here(c->phase[f].n_tasks, share, &p);
    else
      pool_run(pool, c->phase[f].n_tasks, share, &p);
  }
}

static void fill(Node *n, float *v) {
  int64_t m = node_numel(n);
  if (n->dtype == DT_INT64)
    for (int64_t i = 0; i < m; i++) ((int64_t *)(void *)v)[i] = i * 7 % 10;
  else
    for (int64_t i = 0; i < m; i++) v[i] = (float)((i * 7 + i / 13) % 17) / 17 + 0.1f;
}

typedef struct Bufs {
  char *arena;
  void **of; /* by Buffer.id */
} Bufs;

static Bufs bufs_open(Arena *a, Graph *g) {
  Bufs b = {mem_alloc((size_t)g->arena_bytes + 64), arena_array(a, void *, g->buffers.n + 1)};
  memset(b.arena, 0, (size_t)g->arena_bytes);
  for (int i = 0; i < g->buffers.n; i++) {
    Buffer *x = g->buffers.v[i];
    b.of[i] = x->kind == B_ARENA ? b.arena + x->offset : mem_alloc((size_t)x->bytes + 64);
    if (x->kind == B_DATA) memcpy(b.of[i], x->data, (size_t)x->bytes);
  }
  for (int i = 0; i < g->nodes.n; i++) {
    Node *n = g->nodes.v[i];
    if (n->buf && (n->prim == P_FEED || n->prim == P_STATE)) fill(n, b.of[n->buf->id]);
  }
  return b;
}

static void bufs_close(Graph *g, Bufs *b) {
  for (int i = 0; i < g->buffers.n; i++)
    if (g->buffers.v[i]->kind != B_ARENA) mem_free(b->of[i]);
  mem_free(b->arena);
}

enum { ROUNDS = 7 };

static void measure(const Kernel *k, const KernelCode *c, const Bufs *b) {
  void *bufs[300];
  int n = 0;
  double t[ROUNDS], bytes[ROUNDS], flops[ROUNDS];
  for (int i = 0; i < k->inputs.n; i++) bufs[n++] = b->of[k->inputs.v[i].node->buf->id];
  for (int i = 0; i < k->outputs.n; i++) bufs[n++] = b->of[k->outputs.v[i]->buf->id];
  if (k->ws) bufs[n++] = b->of[k->ws->id];
  char *scratch = mem_alloc((size_t)(c->scratch_bytes * pool_threads(pool)) + 64);
  run_kernel(c, bufs, scratch);
  double start = now();
  run_kernel(c, bufs, scratch);
  int repeat = 1 + (int)(2e6 / (now() - start));
  for (int r = 0; r < ROUNDS; r++) {
    peaks(&bytes[r], &flops[r]);
    run_kernel(c, bufs, scratch);
    t[r] = now();
    for (int i = 0; i < repeat; i++) run_kernel(c, bufs, scratch);
    t[r] = (now() - t[r]) / repeat;
  }
  sort_rounds(t, ROUNDS);
  sort_rounds(bytes, ROUNDS);
  sort_rounds(flops, ROUNDS);
  double mid = t[ROUNDS / 2], pb = (double)k->bytes / mid / bytes[ROUNDS / 2],
         pf = (double)k->flops / mid / flops[ROUNDS / 2];
  printf("  %-44.44s %9.1f us %6.1f GF/s %.2f  %6.1f GB/s %.2f  %4lld tasks\n", k->name, mid / 1e3,
         (double)k->flops / mid, pf, (double)k->bytes / mid, pb, (long long)c->phase[0].n_tasks);
  fflush(stdout);
  mem_free(scratch);
}

static void die(void) { exit((err_print(stderr, false), 1)); }

/* Kernels cheaper than one part in a hundred of the whole are not worth a line. */
static void run_graph(const char *name, Graph *g) {
  Arena *a = arena_new();
  KernelCode *code = arena_array(a, KernelCode, g->kernels.n + 1);
  double t = now();
  Module *m = backend_cpu.compile(g, g->kernels.n, g->kernels.v, NULL, code);
  if (!m) die();
  printf("%s: %d kernels, compiled in %.1f ms\n", name, g->kernels.n, (now() - t) / 1e6);
  Bufs b = bufs_open(a, g);
  int64_t all = 0;
  for (int i = 0; i < g->kernels.n; i++) all += code[i].cost;
  for (int i = 0; i < g->kernels.n; i++)
    if (code[i].cost * 100 > all) measure(g->kernels.v[i], &code[i], &b);
  bufs_close(g, &b);
  backend_cpu.module_free(m);
  arena_free(a);
}

static bool wanted(const char *name) { return !word || strstr(name, word); }

static void passes(Graph *g) {
  PassOptions o = {0};
  pass_options_from_env(&o);
  o.schedule = backend_cpu.schedule;
  if (!passes_run(g, &o, NULL)) die();
}

/* ---- contractions, as the layout pass leaves them ---- */

/* Channels last, weights [k, k, 1, c]: forward with scale, shift and relu, or a gradient. */
static void depthwise(const char *what, int64_t n, int64_t c, int64_t size, int64_t k, int64_t s) {
  char name[64];
  snprintf(name, sizeof name, "depthwise %s %lldx%lld/%lld c%lld %lld n%lld", what, (long long)k,
           (long long)k, (long long)s, (long long)c, (long long)size, (long long)n);
  if (!wanted(name)) return;
  int64_t out = (size + 2 * (k / 2) - k) / s + 1, off = -(k / 2);
  Graph *g = graph_new(NULL, false);
  Node *x = g_feed(g, "x", DT_FLOAT32, 4, (int64_t[]){n, size, size, c});
  Node *w = g_feed(g, "w", DT_FLOAT32, 4, (int64_t[]){k, k, 1, c});
  int64_t ext[6] = {n, out, out, c, k, k};
  AffDim row = {1, 4, (int32_t)s, 1, off, 1}, col = {2, 5, (int32_t)s, 1, off, 1};
  AffDim mx[4] = {aff_loop(0), row, col, aff_loop(3)},
         mw[4] = {aff_loop(4), aff_loop(5), aff_const(0), aff_loop(3)};
  Node *y = g_contract(g, x, w, 4, 6, ext, mx, mw), *gy = g_feed(g, "gy", DT_FLOAT32, 4, ext), *r;
  Node *vec[2] = {g_feed(g, "scale", DT_FLOAT32, 1, &c), g_feed(g, "shift", DT_FLOAT32, 1, &c)};
  if (*what == 'f')
    r = g_map2c(g, P_MAX, g_map2(g, P_ADD, g_map2(g, P_MUL, y, vec[0]), vec[1]), 0);
  else if (!derive(g, 1, &y, &gy, 1, !strcmp(what, "dx") ? &x : &w, &r))
    die();
  vec_add(g->arena, &g->fetches, ((NamedNode){"r", r, NULL}));
  passes(g);
  run_graph(name, g);
  graph_free(g);
}

static void permute(const char *name, int rank, const int64_t *dims, const int *perm) {
  if (!wanted(name)) return;
  Graph *g = graph_new(NULL, false);
  Node *y = g_permute(g, g_feed(g, "x", DT_FLOAT32, rank, dims), perm);
  vec_add(g->arena, &g->fetches, ((NamedNode){"y", y, NULL}));
  passes(g);
  run_graph(name, g);
  graph_free(g);
}

/* ---- programs ---- */

typedef kl_var *Build(kl_net *net, int64_t n, int64_t c, int64_t size);

static void program(const char *what, Build *build, bool train, int64_t n, int64_t c,
                    int64_t size) {
  char name[80];
  snprintf(name, sizeof name, "%s %lld %lld %lld", what, (long long)n, (long long)c,
           (long long)size);
  if (!wanted(name)) return;
  kl_net *net = kl_net_new();
  kl_var *y = build(net, n, c, size), *loss = train ? kl_mean(y) : y;
  if (train) kl_minimize(loss, kl_momentum(0.01, 0.9));
  if (kl_failed()) exit((fprintf(stderr, "%s", kl_error()), 1));
  const Program *p = (const Program *)kl_main(net);
  const char *fetch = kl_name(loss);
  Tensor none[4] = {{0}};
  Feed feeds[4];
  int n_feeds = 0;
  for (int i = 0; i < p->blocks.v[0]->vars.n; i++) {
    const Var *v = p->blocks.v[0]->vars.v[i];
    if (!strncmp(v->name, "x", 1) && strlen(v->name) == 2) {
      none[n_feeds] = (Tensor){.dtype = v->dtype, .rank = v->rank};
      memcpy(none[n_feeds].dims, v->dims, sizeof *v->dims * (size_t)v->rank);
      feeds[n_feeds] = (Feed){v->name, &none[n_feeds]};
      n_feeds++;
    }
  }
  CompileRequest r = {.prog = p, .n_feeds = n_feeds, .feeds = feeds, .n_fetch = 1, .fetch = &fetch};
  Executable *x = compile(&r);
  if (!x) die();
  run_graph(name, executable_graph(x));
  executable_free(x);
  kl_net_free(net);
}

static kl_var *image(kl_net *net, const char *name, int64_t n, int64_t c, int64_t size) {
  kl_var *x = kl_data(net, name, KL_FLOAT32, n, size, size, c);
  return kl_op(net, "scale", "scale=1.5", "X", x); /* so that it has a gradient's reader */
}

static kl_var *block(kl_net *net, int64_t n, int64_t c, int64_t size) {
  kl_var *x = kl_data(net, "x0", KL_FLOAT32, n, size, size, c);
  kl_var *h = kl_conv2d(x, c, 1, .no_bias = true, .nhwc = true);
  h = kl_batch_norm(h, .act = "relu", .nhwc = true);
  kl_var *r = kl_conv2d(h, c, 1, .no_bias = true, .nhwc = true);
  return kl_relu(kl_add(kl_batch_norm(r, .nhwc = true), h));
}

static kl_var *pooling(kl_net *net, int64_t n, int64_t c, int64_t size) {
  kl_var *x = kl_batch_norm(image(net, "x0", n, c, size), .nhwc = true);
  return kl_op(net, "pool2d",
               "pooling_type='max' ksize=[3,3] strides=[2,2] paddings=[1,1] data_format='NHWC'",
               "X", x);
}

static kl_var *global(kl_net *net, int64_t n, int64_t c, int64_t size) {
  kl_var *x = kl_batch_norm(image(net, "x0", n, c, size), .nhwc = true);
  return kl_op(net, "pool2d",
               "pooling_type='avg' global_pooling=true ksize=[1,1] data_format='NHWC'", "X", x);
}

static kl_var *softmax(kl_net *net, int64_t n, int64_t c, int64_t size) {
  kl_var *x = kl_data(net, "x0", KL_FLOAT32, n, c, size);
  kl_var *w = kl_parameter(net, "s", KL_FLOAT32, 3, (int64_t[]){n, c, size}, (kl_param){0}, false);
  kl_var *m = kl_data(net, "x1", KL_FLOAT32, 1, 1, size);
  return kl_mul(kl_softmax(kl_add(kl_op(net, "scale", "scale=0.125", "X", w), m)), x);
}

static kl_var *norm(kl_net *net, int64_t n, int64_t c, int64_t size) {
  (void)size;
  kl_var *x = kl_data(net, "x0", KL_FLOAT32, n, c), *g = kl_data(net, "x1", KL_FLOAT32, n, c);
  kl_var *w = kl_parameter(net, "s", KL_FLOAT32, 2, (int64_t[]){n, c}, (kl_param){0}, false);
  return kl_mul(kl_layer_norm(kl_add(x, w)), g);
}

static kl_var *gelu(kl_net *net, int64_t n, int64_t c, int64_t size) {
  (void)size;
  kl_var *x = kl_data(net, "x0", KL_FLOAT32, n, c);
  kl_var *w = kl_parameter(net, "s", KL_FLOAT32, 1, &c, (kl_param){0}, false);
  return kl_gelu(kl_add(x, w));
}

static kl_var *dropout(kl_net *net, int64_t n, int64_t c, int64_t size) {
  (void)size;
  kl_var *w = kl_parameter(net, "s", KL_FLOAT32, 2, (int64_t[]){n, c}, (kl_param){0}, false);
  return kl_dropout(w, 0.5);
}

static kl_var *embedding(kl_net *net, int64_t n, int64_t c, int64_t size) {
  kl_var *ids = kl_data(net, "x0", KL_INT64, n);
  return kl_embedding(ids, size, c);
}

static kl_var *concat(kl_net *net, int64_t n, int64_t c, int64_t size) {
  kl_var *x = kl_data(net, "x0", KL_FLOAT32, n, size, size, c),
         *y = kl_data(net, "x1", KL_FLOAT32, n, size, size, c);
  return kl_concat(3, x, y);
}

static void all(void) {
  static const int64_t dw[][3] = {{32, 112, 1}, {64, 112, 2}, {128, 56, 1}, {256, 28, 1},
                                  {512, 14, 1}, {512, 14, 2}, {1024, 7, 1}};
  static const char *const what[] = {"forward", "dx", "dw"};
  for (size_t i = 0; i < sizeof dw / sizeof *dw; i++)
    for (int j = 0; j < 3; j++)
      for (int64_t n = 1; n <= 16; n += 15) depthwise(what[j], n, dw[i][0], dw[i][1], 3, dw[i][2]);
  depthwise("forward", 1, 120, 28, 5, 1);
  program("block", block, true, 16, 64, 56);
  program("block", block, true, 16, 512, 14);
  program("maxpool", pooling, true, 16, 64, 112);
  program("maxpool", pooling, false, 1, 64, 112);
  program("global", global, true, 16, 512, 7);
  program("softmax", softmax, true, 12, 128, 128);
  program("softmax", softmax, false, 12, 128, 128);
  program("norm", norm, true, 128, 768, 1);
  program("norm", norm, false, 128, 768, 1);
  program("gelu", gelu, true, 128, 3072, 1);
  program("gelu", gelu, false, 128, 3072, 1);
  program("dropout", dropout, true, 1024, 3072, 1);
  program("embedding", embedding, true, 128, 768, 30522);
  program("concat", concat, false, 16, 64, 56);
  permute("permute to channels last, 16 64 56", 3, (int64_t[]){16, 64, 56 * 56}, (int[]){0, 2, 1});
  permute("permute to channels first, 16 64 56", 3, (int64_t[]){16, 56 * 56, 64}, (int[]){0, 2, 1});
  permute("permute heads 128 12 64", 3, (int64_t[]){128, 12, 64}, (int[]){1, 0, 2});
  permute("permute matrix 768 3072", 2, (int64_t[]){768, 3072}, (int[]){1, 0});
}

int main(int argc, char **argv) {
  pool = pool_new(argc > 1 ? atoi(argv[1]) : 1);
  word = argc > 2 ? argv[2] : NULL;
  for (int i = 0; i < 3; i++) {
    triad[i] = mem_alloc(TRIAD * sizeof(float));
    memset(triad[i], 0, TRIAD * sizeof(float));
  }
  all();
  for (int i = 0; i < 3; i++) mem_free(triad[i]);
  pool_free(pool);
  return 0;
}
