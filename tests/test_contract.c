/* Contractions of the CPU backend against the interpreter, for every algorithm and many shapes; the epilogue's rows; equal
 * bits for any split of the tasks; scatter and sort. */
#include <stdarg.h>
#include <setjmp.h>
#include <stddef.h>
#include <cmocka.h>
#include <math.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <unistd.h>
#include <stdlib.h>
#include "../backends/cpu/tiles.h"
#include "../backends/llvm/llvm.h"
#include "../backends/llvm/micro.h"

/* ---- running one contraction ---- */

enum { ANY = -1 };

static uint32_t noise_state;
static double noise(void) {
  noise_state = noise_state * 1664525u + 1013904223u;
  return (double)(noise_state >> 8) / (1 << 23) - 1;
}

typedef struct Feeds {
  Arena *a;
  Map *map;
} Feeds;

static Tensor *feed(void *user, const char *name, bool state) {
  Feeds *f = user;
  (void)state;
  return map_get(f->map, name);
}

static Node *random_feed(Graph *g, Feeds *f, const char *name, DType t, int rank,
                         const int64_t *dims) {
  Tensor *v = arena_new_of(f->a, Tensor);
  assert_true(tensor_make(v, f->a, t, rank <= KL_VAR_RANK ? rank : 1,
                          rank <= KL_VAR_RANK ? dims : (int64_t[]){numel_of(rank, dims)}));
  for (int64_t i = 0; i < tensor_numel(v); i++) tensor_set(v, i, noise());
  map_put(f->map, name, v);
  return g_feed(g, name, t, rank, dims);
}

/* Stands for a generated epilogue: 2x + 1 over whole rows or, where `self` names them, some columns. */
static int64_t row_numel;
static DType row_type;
static atomic_int rows_seen[4096]; /* elements of each */
static void twice_and_one(const void *self, void *const *bufs, int64_t begin, int64_t end,
                          RunCtx *ctx) {
  EpilogueColumns all = {0, row_numel};
  const EpilogueColumns *c = self ? self : &all;
  (void)ctx;
  for (int64_t r = begin; r < end; r++) {
    if (r < 4096) atomic_fetch_add(&rows_seen[r], (int)(c->end - c->first));
    for (int64_t i = r * row_numel + c->first; i < r * row_numel + c->end; i++)
      if (row_type == DT_FLOAT32)
        ((float *)bufs[2])[i] = ((float *)bufs[2])[i] * 2 + 1;
      else
        ((double *)bufs[2])[i] = ((double *)bufs[2])[i] * 2 + 1;
  }
}

/* In threes: and in a run of odd number (RunCtx.run). */
typedef enum Split { ALL_AT_ONCE, ONE_BY_ONE_BACKWARDS, IN_THREES } Split;

static void run_code(const KernelCode *c, void *const *bufs, Split split) {
  RunCtx ctx = {.scratch = mem_alloc((size_t)c->scratch_bytes + 64),
                .scratch_bytes = (size_t)c->scratch_bytes,
                .run = split == IN_THREES};
  for (int p = 0; p < c->n_phases; p++) {
    int64_t n = c->phase[p].n_tasks, step = split == ALL_AT_ONCE ? n : split == IN_THREES ? 3 : 1;
    for (int64_t t = 0; t < n; t += step) {
      int64_t b = split == ONE_BY_ONE_BACKWARDS ? n - 1 - t : t;
      c->phase[p].fn(c->phase[p].self, bufs, b, b + step < n ? b + step : n, &ctx);
    }
  }
  mem_free(ctx.scratch);
}

static bool constant_inputs; /* what kernels are told of them */
static int choice;           /* the algorithm that they ask for */

/* node: a CONTRACT; its value and those of its operands are in values. Returns the algorithm. */
static PlanKind check_contract(Arena *a, Node *node, Tensor *const *values, bool epilogue,
                               bool no_blas) {
  Node maps = {.prim = P_ADD, .dtype = node->dtype, .rank = node->rank};
  memcpy(maps.dims, node->dims, sizeof maps.dims);
  Kernel k = {.kind = K_CONTRACT, .name = "k", .rank = node->rank, .core = node};
  memcpy(k.ext, node->dims, sizeof k.ext);
  vec_add(a, &k.nodes, node);
  for (int i = 0; i < 2; i++)
    vec_add(a, &k.inputs, ((KernelInput){node->in[i], false, constant_inputs}));
  vec_add(a, &k.outputs, epilogue ? &maps : node);
  k.choice = choice;
  if (choice && !plan_by(a, &k, choice)) return PLAN_LOOPS;
  Plan *p = contract_plan(a, &k, no_blas);
  if (p->kind == PLAN_LOOPS) return p->kind;
  CodeBatch *batch = code_batch(a);
  assert_true(!no_blas || p->set);
  plan_micro(p, batch);
  assert_true(code_make(batch, NULL));
  assert_true(p->frame.epilogue == epilogue);
  KernelCode code = {0};
  contract_code(p, epilogue ? twice_and_one : NULL, &code);
  int64_t n = node_numel(node), size = dtype_info[node->dtype].size;
  const Tensor *want = values[node->id];
  int64_t rows = p->frame.rows * p->frame.parts;
  row_numel = n / rows;
  row_type = node->dtype;
  double terms = (double)p->facts.flops / 2 / (double)n;
  double eps = node->dtype == DT_FLOAT32 ? 6e-8 : 1.2e-16;
  Tensor got = {.dtype = node->dtype, .rank = 1, .dims = {n}}, first = got;
  for (int s = ALL_AT_ONCE; s <= IN_THREES; s++) {
    got.data = arena_alloc(a, (size_t)(n * size));
    memset(got.data, 0xff, (size_t)(n * size)); /* NaN */
    for (int i = 0; i < 4096; i++) rows_seen[i] = 0;
    void *ws = mem_alloc((size_t)p->work.workspace + 64);
    memset(ws, 0xff, (size_t)p->work.workspace);
    void *bufs[4] = {values[node->in[0]->id]->data, values[node->in[1]->id]->data, got.data, ws};
    run_code(&code, bufs, s);
    mem_free(ws);
    for (int64_t i = 0; epilogue && i < rows && i < 4096; i++)
      assert_int_equal(rows_seen[i], row_numel);
    if (s == ALL_AT_ONCE)
      first = got;
    else
      assert_memory_equal(first.data, got.data, n * size);
  }
  for (int64_t i = 0; i < n; i++) {
    double w = tensor_get(want, i), g = tensor_get(&got, i);
    if (epilogue) w = w * 2 + 1;
    if (!(fabs(w - g) <= eps * 8 * (terms + 8)))
      fail_msg("element %lld is %.9g, not %.9g: loops %d, algorithm %d, epilogue %d", (long long)i,
               g, w, node->n_loops, p->kind, epilogue);
  }
  code_free(batch);
  return p->kind;
}

/* The same with a real epilogue through the whole backend, by BLAS and by generated loops alone: y = relu(core + row bias)
 * where the bias runs along the last axis. */
static void check_backend(Graph *g, Feeds *f, Node *node) {
  if (!node->rank || node_numel(node) == 0) return;
  int64_t last = node->dims[node->rank - 1];
  const char *name = arena_fmt(f->a, "bias_%d", map_n(f->map));
  Node *bias = random_feed(g, f, name, node->dtype, 1, &last);
  Node *wide = g_expand(g, bias, node->rank, node->dims), *sum = g_map2(g, P_ADD, node, wide);
  Node *y = g_map2c(g, P_MAX, sum, 0), *zero = y->in[1], *all[5] = {node, wide, sum, zero, y};
  graph_number(g);
  NamedNode out = {"y", y, NULL};
  vec_add(g->arena, &g->fetches, out);
  EvalEnv env = {.lookup = feed, .user = f};
  Tensor **values = arena_array(f->a, Tensor *, g->nodes.n);
  assert_true(graph_eval(g, &env, f->a, values));
  Kernel k = {.kind = K_CONTRACT, .name = "k_contract", .rank = node->rank, .core = node}, *ks = &k;
  memcpy(k.ext, node->dims, sizeof k.ext);
  for (int i = 0; i < 5; i++) {
    if (i == 3 && zero->prim == P_VIEW) vec_add(f->a, &k.nodes, zero->in[0]);
    vec_add(f->a, &k.nodes, all[i]);
  }
  Node *ins[3] = {node->in[0], node->in[1], bias};
  for (int i = 0; i < 3; i++) vec_add(f->a, &k.inputs, ((KernelInput){ins[i], false, false}));
  vec_add(f->a, &k.outputs, y);
  double terms = 1, eps = node->dtype == DT_FLOAT32 ? 6e-8 : 1.2e-16;
  for (int l = node->rank; l < node->n_loops; l++) terms *= (double)node->ext[l];
  int64_t n = node_numel(node), size = dtype_info[node->dtype].size;
  for (int no_blas = 0; no_blas < 2; no_blas++) {
    CompileOptions o = {.no_blas = no_blas};
    KernelCode code;
    assert_true(backend_cpu.schedule(&k));
    Module *m = backend_cpu.compile(g, 1, &ks, &o, &code);
    if (!m) err_print(stderr, false);
    assert_non_null(m);
    Tensor got = {.dtype = node->dtype, .rank = 1, .dims = {n}};
    for (int split = ALL_AT_ONCE; split <= IN_THREES; split++) {
      got.data = arena_alloc(f->a, (size_t)(n * size));
      memset(got.data, 0xff, (size_t)(n * size));
      void *ws = mem_alloc((size_t)k.workspace + 64);
      void *bufs[5] = {NULL, NULL, NULL, got.data, ws};
      for (int i = 0; i < 3; i++) bufs[i] = values[ins[i]->id]->data;
      run_code(&code, bufs, split);
      mem_free(ws);
      for (int64_t i = 0; i < n; i++) {
        double w = tensor_get(values[y->id], i), v = tensor_get(&got, i);
        if (!(fabs(w - v) <= eps * 8 * (terms + 8)))
          fail_msg("element %lld is %.9g, not %.9g: %d loops, no_blas %d, split %d", (long long)i,
                   v, w, node->n_loops, no_blas, split);
      }
    }
    backend_cpu.module_free(m);
  }
}

/* Every contraction of the graph. kinds: those expected, in graph order (ANY: not looked at; NULL: none). backend: also by
 * check_backend. */
static void check_graph(Graph *g, Feeds *f, const int *kinds, bool backend) {
  assert_false(err_any());
  graph_number(g);
  EvalEnv env = {.lookup = feed, .user = f};
  Tensor **values = arena_array(f->a, Tensor *, g->nodes.n);
  if (!g->fetches.n)
    for (int i = 0; i < g->nodes.n; i++)
      if (g->nodes.v[i]->prim == P_CONTRACT) {
        NamedNode out = {"out", g->nodes.v[i], NULL};
        vec_add(g->arena, &g->fetches, out);
      }
  if (!graph_eval(g, &env, f->a, values)) err_print(stderr, false);
  assert_false(err_any());
  int c = 0;
  for (int i = 0; i < g->nodes.n; i++) {
    Node *n = g->nodes.v[i];
    if (n->prim != P_CONTRACT) continue;
    for (int e = 0; e < 2; e++) check_contract(f->a, n, values, e, true);
    check_contract(f->a, n, values, true, false);
    micro_isa = "none";
    for (int e = 0; e < 2; e++) {
      int kind = (int)check_contract(f->a, n, values, e, false);
      if (kinds && kinds[c] != ANY && kinds[c] != kind)
        fail_msg("contraction %d: algorithm %d, not %d", c, kind, kinds[c]);
    }
    micro_isa = NULL;
    static int turn;
    choice = WAY_RULE + 1 + turn++ % (WAY_N - 1);
    check_contract(f->a, n, values, turn / WAY_N % 2, false);
    choice = WAY_RULE;
    c++;
  }
  for (int i = 0, n = g->nodes.n; i < n && backend; i++)
    if (g->nodes.v[i]->prim == P_CONTRACT) check_backend(g, f, g->nodes.v[i]);
}

static Feeds feeds_new(void) {
  Arena *a = arena_new();
  return (Feeds){a, map_new(a)};
}

/* ---- matrix products ---- */

typedef struct Product {
  int batch;
  int64_t ba[3], bb[3], m, n, k;
  int kind;
} Product;

static void check_product(const Product *p, DType t, bool ta, bool tb) {
  Feeds f = feeds_new();
  Graph *g = graph_new(NULL, false);
  int64_t da[5], db[5];
  int r = p->batch;
  memcpy(da, p->ba, sizeof p->ba);
  memcpy(db, p->bb, sizeof p->bb);
  da[r + ta] = p->m;
  da[r + !ta] = p->k;
  db[r + tb] = p->k;
  db[r + !tb] = p->n;
  Node *a = random_feed(g, &f, "a", t, r + 2, da), *b = random_feed(g, &f, "b", t, r + 2, db);
  assert_non_null(g_matmul(g, a, b, ta, tb));
  check_graph(g, &f, (int[]){p->kind}, t == DT_FLOAT32 && ta == tb && p->k < 100);
  constant_inputs = true; /* a row times a matrix that is packed once */
  if (p->m == 1 || p->n == 1) check_graph(g, &f, NULL, false);
  constant_inputs = false;
  graph_free(g);
  arena_free(f.a);
}

static void test_products(void **state) {
  static const Product cases[] = {
      {0, {0}, {0}, 64, 256, 784, PLAN_GEMM},     {0, {0}, {0}, 64, 500, 800, PLAN_GEMM},
      {0, {0}, {0}, 500, 64, 300, PLAN_GEMM},     {0, {0}, {0}, 64, 10, 500, PLAN_GEMM},
      {0, {0}, {0}, 1, 500, 800, PLAN_GEMM},      {0, {0}, {0}, 500, 1, 80, PLAN_GEMM},
      {0, {0}, {0}, 1, 700, 513, PLAN_GEMM},      {0, {0}, {0}, 1, 1000, 1001, PLAN_GEMM},
      {0, {0}, {0}, 1, 1, 1000, PLAN_GEMM},       {0, {0}, {0}, 7, 5, 3, PLAN_GEMM},
      {0, {0}, {0}, 33, 65, 1, PLAN_GEMM},        {0, {0}, {0}, 1, 1, 1, ANY},
      {0, {0}, {0}, 129, 257, 31, PLAN_GEMM},     {1, {6}, {6}, 17, 19, 23, PLAN_GEMM},
      {1, {6}, {1}, 17, 19, 23, PLAN_GEMM},       {1, {1}, {6}, 17, 19, 23, PLAN_GEMM},
      {2, {3, 1}, {3, 4}, 40, 40, 40, PLAN_GEMM}, {2, {8, 4}, {8, 4}, 64, 64, 32, PLAN_GEMM},
      {2, {1, 4}, {3, 1}, 9, 11, 13, PLAN_GEMM},  {3, {2, 3, 2}, {1, 3, 1}, 12, 5, 8, PLAN_GEMM},
      {1, {70}, {70}, 1, 30, 30, PLAN_GEMM},      {1, {300}, {300}, 1, 3, 2, ANY},
      {0, {0}, {0}, 0, 5, 3, PLAN_LOOPS},         {0, {0}, {0}, 4, 5, 0, PLAN_LOOPS},
  };
  (void)state;
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
    for (int t = 0; t < 8; t++)
      check_product(&cases[i], t & 4 ? DT_FLOAT64 : DT_FLOAT32, t & 1, t & 2);
}

/* ---- convolutions and their gradients ---- */

typedef struct Conv {
  int n_sp;
  int64_t n, c, o, groups, in[3], k[3], stride[3], dil[3], lo[3], hi[3];
} Conv;

static void check_conv(const Conv *p, DType t, const int *kinds) {
  Feeds f = feeds_new();
  Graph *g = graph_new(NULL, false);
  int64_t dx[5] = {p->n, p->c}, dw[5] = {p->o, p->c / p->groups};
  memcpy(dx + 2, p->in, sizeof p->in);
  memcpy(dw + 2, p->k, sizeof p->k);
  Node *x = random_feed(g, &f, "x", t, p->n_sp + 2, dx),
       *w = random_feed(g, &f, "w", t, p->n_sp + 2, dw);
  Node *y = g_conv(g, x, w, p->n_sp, p->stride, p->lo, p->hi, p->dil, p->groups);
  if (!y) err_print(stderr, false);
  assert_non_null(y);
  Node *gy = random_feed(g, &f, "gy", t, y->rank, y->dims), *xs[2] = {x, w}, *gxs[2];
  assert_true(derive(g, 1, &y, &gy, 2, xs, gxs));
  check_graph(g, &f, kinds, t == DT_FLOAT32 && p->n < 10 && p->in[0] < 50);
  graph_free(g);
  arena_free(f.a);
}

#define ONES                                                                                       \
  { 1, 1, 1 }
static void test_convolutions(void **state) {
  static const Conv cases[] = {
      /* LeNet */
      {2, 64, 1, 20, 1, {28, 28}, {5, 5}, ONES, ONES, {0}, {0}},
      {2, 64, 20, 50, 1, {12, 12}, {5, 5}, ONES, ONES, {0}, {0}},
      {2, 3, 1, 6, 1, {28, 28}, {5, 5}, ONES, ONES, {2, 2}, {2, 2}},
      {2, 1, 20, 50, 1, {12, 12}, {5, 5}, ONES, ONES, {0}, {0}},
      /* same, strides, dilation, padding beyond the kernel, uneven padding */
      {2, 4, 8, 16, 1, {14, 14}, {3, 3}, ONES, ONES, {1, 1}, {1, 1}},
      {2, 4, 8, 16, 1, {15, 13}, {3, 3}, {2, 2}, ONES, {1, 1}, {1, 1}},
      {2, 2, 5, 7, 1, {17, 19}, {3, 5}, {3, 2}, {2, 1}, {4, 0}, {1, 7}},
      {2, 2, 3, 4, 1, {9, 9}, {3, 3}, ONES, ONES, {5, 6}, {4, 3}},
      {2, 2, 3, 4, 1, {9, 11}, {3, 2}, {1, 3}, {3, 4}, {2, 2}, {2, 2}},
      {2, 9, 4, 4, 1, {8, 8}, {4, 4}, {4, 4}, ONES, {0}, {0}},
      /* 1x1, also with stride and padding */
      {2, 5, 16, 24, 1, {7, 7}, {1, 1}, ONES, ONES, {0}, {0}},
      {2, 5, 16, 24, 1, {8, 8}, {1, 1}, {2, 2}, ONES, {0}, {0}},
      {2, 2, 6, 4, 1, {5, 5}, {1, 1}, ONES, ONES, {1, 1}, {1, 1}},
      /* kernels as large as the image, one row, one column, one channel, one filter */
      {2, 4, 3, 10, 1, {6, 6}, {6, 6}, ONES, ONES, {0}, {0}},
      {2, 4, 3, 10, 1, {1, 20}, {1, 5}, ONES, ONES, {0, 2}, {0, 2}},
      {2, 4, 3, 10, 1, {20, 1}, {5, 1}, {2, 1}, ONES, {2, 0}, {2, 0}},
      {2, 3, 1, 1, 1, {10, 10}, {3, 3}, ONES, ONES, {1, 1}, {1, 1}},
      {2, 3, 4, 1, 1, {10, 10}, {3, 3}, ONES, ONES, {0}, {0}},
      /* groups and depthwise */
      {2, 3, 8, 12, 4, {10, 9}, {3, 3}, ONES, ONES, {1, 1}, {1, 1}},
      {2, 3, 8, 12, 2, {10, 9}, {3, 3}, {2, 2}, ONES, {1, 1}, {1, 1}},
      {2, 2, 6, 6, 6, {12, 12}, {3, 3}, ONES, ONES, {1, 1}, {1, 1}},
      {2, 1, 6, 12, 6, {12, 12}, {3, 3}, {2, 2}, ONES, {1, 1}, {1, 1}},
      /* one and three dimensions, a large batch of small images */
      {1, 3, 4, 6, 1, {50}, {7}, {2}, {1}, {3}, {2}},
      {3, 2, 3, 5, 1, {6, 7, 8}, {3, 2, 3}, {1, 2, 1}, ONES, {1, 0, 1}, {1, 1, 0}},
      {2, 130, 2, 3, 1, {5, 5}, {3, 3}, ONES, ONES, {1, 1}, {1, 1}},
      /* tiles: large images */
      {2, 1, 16, 8, 1, {90, 100}, {5, 5}, ONES, ONES, {2, 2}, {2, 2}},
      {2, 2, 32, 32, 1, {60, 61}, {3, 3}, ONES, ONES, {1, 1}, {1, 1}},
      {1, 1, 8, 8, 1, {9000}, {9}, {1}, {1}, {4}, {4}},
  };
  (void)state;
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    static const int any[8] = {ANY, ANY, ANY, ANY, ANY, ANY, ANY, ANY};
    check_conv(&cases[i], DT_FLOAT32, any);
    if (cases[i].n < 10) check_conv(&cases[i], DT_FLOAT64, any);
  }
}

static void test_algorithms(void **state) {
  (void)state;
  /* forward, then the gradients: their order is that of derive() */
  static const Conv lenet = {2, 8, 20, 50, 1, {12, 12}, {5, 5}, ONES, ONES, {0}, {0}};
  Feeds f = feeds_new();
  Graph *g = graph_new(NULL, false);
  int64_t dx[4] = {8, 20, 12, 12}, dw[4] = {50, 20, 5, 5}, dy[4] = {8, 50, 8, 8};
  int found[4] = {0};
  Node *x = random_feed(g, &f, "x", DT_FLOAT32, 4, dx),
       *w = random_feed(g, &f, "w", DT_FLOAT32, 4, dw), *xs[2] = {x, w}, *gxs[2];
  Node *y = g_conv(g, x, w, 2, lenet.stride, lenet.lo, lenet.hi, lenet.dil, 1);
  Node *gy = random_feed(g, &f, "gy", DT_FLOAT32, 4, dy);
  assert_true(derive(g, 1, &y, &gy, 2, xs, gxs));
  graph_number(g);
  for (int i = 0; i < g->nodes.n; i++) {
    Node *n = g->nodes.v[i];
    if (n->prim != P_CONTRACT) continue;
    Kernel k = {.kind = K_CONTRACT, .core = n};
    vec_add(f.a, &k.inputs, ((KernelInput){n->in[0], false, false}));
    vec_add(f.a, &k.inputs, ((KernelInput){n->in[1], false, false}));
    vec_add(f.a, &k.outputs, n);
    found[contract_plan(f.a, &k, false)->kind]++;
  }
  assert_int_equal(found[PLAN_LOOPS], 0);
  assert_int_equal(found[PLAN_IM2COL], 2); /* forward and filter */
  assert_int_equal(found[PLAN_COL2IM], 1); /* input */
  graph_free(g);
  arena_free(f.a);
}

/* ---- other shapes of loops ---- */

static AffDim loop2(int l0, int c0, int l1, int c1, int off) {
  return (AffDim){(int8_t)l0, (int8_t)l1, c0, c1, off, 1};
}

/* result [n, h, w, o]: channels last, and a filter stored taps first. */
typedef struct Nhwc {
  int64_t n, h, w, c, groups, o, kh, kw, stride, dilation, pad;
} Nhwc;

static int64_t out_size(const Nhwc *v, int64_t in, int64_t k) {
  return (in + 2 * v->pad - v->dilation * (k - 1) - 1) / v->stride + 1;
}

/* Forward, and the gradients of input and filter as derivation makes them, all operands channels-last. */
static void check_channels_last(const Nhwc *v) {
  Feeds f = feeds_new();
  Graph *g = graph_new(NULL, false);
  int64_t oh = out_size(v, v->h, v->kh), ow = out_size(v, v->w, v->kw), gr = v->groups;
  int64_t dx[4] = {v->n, v->h, v->w, v->c * gr}, dw[4] = {v->kh, v->kw, v->c, v->o * gr};
  int s = (int)v->stride, d = (int)v->dilation, p = -(int)v->pad;
  int64_t ext[8] = {v->n, oh, ow, gr, v->o, v->kh, v->kw, v->c};
  AffDim mx[4] = {aff_loop(0), loop2(1, s, 5, d, p), loop2(2, s, 6, d, p),
                  loop2(3, (int)v->c, 7, 1, 0)};
  AffDim mw[4] = {aff_loop(5), aff_loop(6), aff_loop(7), loop2(3, (int)v->o, 4, 1, 0)};
  Node *x = random_feed(g, &f, "x", DT_FLOAT32, 4, dx),
       *w = random_feed(g, &f, "w", DT_FLOAT32, 4, dw);
  Node *y = g_contract(g, x, w, 5, 8, ext, mx, mw);
  assert_non_null(y);
  assert_non_null(g_contract(g, w, x, 5, 8, ext, mw, mx)); /* operands swapped */
  Node *gy = random_feed(g, &f, "gy", DT_FLOAT32, 5, y->dims), *xs[2] = {x, w}, *gxs[2];
  assert_true(derive(g, 1, &y, &gy, 2, xs, gxs));
  check_graph(g, &f, NULL, true);
  graph_free(g);
  arena_free(f.a);
}

/* All strides, paddings, dilations, groups; rows shorter and longer than a tile; a few channels; tails of columns. */
static void test_channels_last(void **state) {
  (void)state;
  static const Nhwc all[] = {
      {3, 10, 11, 6, 1, 9, 3, 3, 1, 1, 1},   {1, 7, 7, 33, 1, 40, 3, 3, 1, 1, 1},
      {2, 14, 14, 16, 1, 24, 3, 3, 2, 1, 1}, {1, 30, 31, 3, 1, 20, 7, 7, 2, 1, 3},
      {2, 9, 9, 8, 1, 65, 1, 1, 2, 1, 0},    {2, 9, 8, 40, 1, 12, 1, 1, 1, 1, 0},
      {1, 12, 13, 5, 1, 17, 3, 3, 1, 2, 2},  {1, 15, 12, 6, 1, 10, 3, 2, 3, 2, 1},
      {2, 8, 8, 4, 3, 8, 3, 3, 1, 1, 1},     {1, 1, 50, 7, 1, 33, 1, 5, 1, 1, 0},
      {1, 17, 17, 4, 1, 48, 7, 1, 1, 1, 0},  {1, 40, 60, 16, 1, 32, 3, 3, 1, 1, 1},
      {5, 7, 7, 12, 2, 16, 3, 3, 2, 1, 1},   {1, 6, 6, 9, 1, 8, 6, 6, 1, 1, 0},
      {1, 5, 5, 8, 1, 16, 3, 3, 1, 1, 4},    {2, 1, 1, 30, 1, 30, 1, 1, 1, 1, 0},
      {2, 29, 31, 20, 2, 24, 3, 3, 1, 1, 1}, {1, 31, 30, 129, 1, 16, 3, 3, 1, 1, 1},
      {3, 9, 64, 3, 1, 16, 5, 5, 2, 1, 2},   {1, 40, 40, 20, 1, 16, 3, 3, 1, 4, 4},
      {2, 6, 70, 24, 1, 33, 3, 5, 2, 1, 6},  {1, 3, 4, 20, 1, 16, 3, 3, 1, 1, 20},
  };
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) check_channels_last(&all[i]);
}

/* The same of one group with the images last: [h, w, c, n] and [o, kh, kw, c] to [h, w, o, n]. */
static void check_images_last(const Nhwc *v, DType t) {
  Feeds f = feeds_new();
  Graph *g = graph_new(NULL, false);
  int64_t dx[4] = {v->h, v->w, v->c, v->n}, dw[4] = {v->o, v->kh, v->kw, v->c};
  int s = (int)v->stride, d = (int)v->dilation, p = -(int)v->pad;
  int64_t ext[7] = {
      out_size(v, v->h, v->kh), out_size(v, v->w, v->kw), v->o, v->n, v->kh, v->kw, v->c};
  AffDim mx[4] = {loop2(0, s, 4, d, p), loop2(1, s, 5, d, p), aff_loop(6), aff_loop(3)};
  AffDim mw[4] = {aff_loop(2), aff_loop(4), aff_loop(5), aff_loop(6)};
  Node *x = random_feed(g, &f, "x", t, 4, dx), *w = random_feed(g, &f, "w", t, 4, dw);
  Node *y = g_contract(g, x, w, 4, 7, ext, mx, mw);
  assert_non_null(y);
  assert_non_null(g_contract(g, w, x, 4, 7, ext, mw, mx)); /* operands swapped */
  Node *gy = random_feed(g, &f, "gy", t, 4, y->dims), *xs[2] = {x, w}, *gxs[2];
  assert_true(derive(g, 1, &y, &gy, 2, xs, gxs));
  check_graph(g, &f, NULL, true);
  Tensor **values = arena_array(f.a, Tensor *, g->nodes.n);
  assert_true(graph_eval(g, &(EvalEnv){.lookup = feed, .user = &f}, f.a, values));
  int found[8] = {0};
  choice = WAY_IMAGES;
  for (int i = 0; i < g->nodes.n; i++)
    for (int e = 0; e < 2 && g->nodes.v[i]->prim == P_CONTRACT; e++)
      found[check_contract(f.a, g->nodes.v[i], values, e, false)]++;
  choice = WAY_RULE;
  if (ext[0] > 1 && ext[1] > 1 && v->kh > 1 && v->kw > 1 && v->n > 1) {
    assert_int_equal(found[PLAN_IMAGES], 6); /* forward, swapped, gradient of the input */
    assert_int_equal(found[PLAN_IMAGES_GRAD], 2);
  }
  graph_free(g);
  arena_free(f.a);
}

/* Strides, paddings, dilations; whole and partial vectors of images; few channels; taps that are nowhere inside. */
static void test_images_last(void **state) {
  (void)state;
  static const Nhwc all[] = {
      {64, 7, 6, 20, 1, 50, 5, 5, 1, 1, 0}, {32, 14, 28, 1, 1, 20, 5, 5, 1, 1, 0},
      {48, 9, 10, 3, 1, 7, 3, 3, 1, 1, 1},  {50, 8, 7, 5, 1, 33, 3, 3, 2, 1, 1},
      {16, 11, 12, 6, 1, 9, 5, 5, 2, 1, 2}, {100, 6, 5, 4, 1, 10, 3, 2, 3, 1, 1},
      {17, 9, 9, 8, 1, 6, 3, 3, 1, 2, 2},   {33, 1, 20, 7, 1, 12, 1, 5, 1, 1, 0},
      {80, 5, 5, 3, 1, 16, 5, 5, 1, 1, 4},  {20, 6, 6, 9, 1, 8, 6, 6, 1, 1, 0},
      {24, 3, 4, 5, 1, 6, 3, 3, 1, 1, 5},   {8, 10, 9, 30, 1, 29, 3, 3, 4, 1, 1},
      {19, 7, 7, 16, 1, 8, 1, 1, 2, 1, 0},  {40, 3, 2, 70, 1, 60, 2, 2, 1, 1, 0},
      {1, 9, 9, 4, 1, 6, 3, 3, 1, 1, 1},    {256, 4, 40, 2, 1, 5, 3, 3, 1, 1, 1},
  };
  for (size_t i = 0; i < sizeof all / sizeof *all; i++)
    check_images_last(&all[i], i % 4 == 2 ? DT_FLOAT64 : DT_FLOAT32);
}

/* Products whose strides BLAS does not take: gathered. Mirrored, stepped and transposed batches. */
static void test_awkward(void **state) {
  (void)state;
  Feeds f = feeds_new();
  Graph *g = graph_new(NULL, false);
  int64_t da[3] = {12, 30, 40}, db[3] = {12, 50, 20};
  Node *a = random_feed(g, &f, "a", DT_FLOAT32, 3, da),
       *b = random_feed(g, &f, "b", DT_FLOAT32, 3, db);
  /* result [m, batch, n], k stepped in a and mirrored in b */
  int64_t e1[4] = {30, 12, 20, 20};
  AffDim a1[3] = {aff_loop(1), aff_loop(0), loop2(3, 2, -1, 0, 1)};
  AffDim b1[3] = {aff_loop(1), loop2(3, -1, -1, 0, 40), aff_loop(2)};
  assert_non_null(g_contract(g, a, b, 3, 4, e1, a1, b1));
  /* two summed loops that do not merge */
  int64_t e2[4] = {30, 20, 12, 40};
  AffDim a2[3] = {aff_loop(2), aff_loop(0), aff_loop(3)},
         b2[3] = {aff_loop(2), aff_loop(3), aff_loop(1)};
  assert_non_null(g_contract(g, a, b, 2, 4, e2, a2, b2));
  /* a broadcast result loop */
  int64_t e3[4] = {5, 30, 20, 40};
  AffDim a3[3] = {aff_const(2), aff_loop(1), aff_loop(3)},
         b3[3] = {aff_const(7), aff_loop(3), aff_loop(2)};
  assert_non_null(g_contract(g, a, b, 3, 4, e3, a3, b3));
  /* batch innermost in the result */
  int64_t e4[4] = {30, 20, 12, 40};
  AffDim a4[3] = {aff_loop(2), aff_loop(0), aff_loop(3)},
         b4[3] = {aff_loop(2), aff_loop(3), aff_loop(1)};
  assert_non_null(g_contract(g, a, b, 3, 4, e4, a4, b4));
  /* a slice that is partly outside */
  int64_t e5[4] = {12, 30, 20, 40};
  AffDim a5[3] = {aff_loop(0), loop2(1, 1, -1, 0, 3), aff_loop(3)},
         b5[3] = {aff_loop(0), loop2(3, 1, -1, 0, 2), aff_loop(2)};
  assert_non_null(g_contract(g, a, b, 3, 4, e5, a5, b5));
  check_graph(g, &f, NULL, true);
  graph_free(g);
  arena_free(f.a);
}

/* ---- microkernels ---- */

/* Memory whose last byte is followed by a page that may not be touched; before it, too. */
typedef struct Fenced {
  char *base, *data;
  size_t bytes;
} Fenced;

static Fenced fenced(size_t n, bool at_end) {
  size_t page = (size_t)sysconf(_SC_PAGESIZE), inner = (n + page - 1) / page * page;
  if (!inner) inner = page;
  Fenced f = {.bytes = inner + 2 * page};
  f.base = mmap(NULL, f.bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  assert_true(f.base != MAP_FAILED);
  assert_int_equal(mprotect(f.base + page, inner, PROT_READ | PROT_WRITE), 0);
  f.data = f.base + page + (at_end ? inner - n : 0);
  return f;
}

static double at_of(DType t, const void *p, int64_t i) {
  return t == DT_FLOAT32 ? (double)((const float *)p)[i] : ((const double *)p)[i];
}

static void noise_fill(DType t, void *p, int64_t n) {
  for (int64_t i = 0; i < n; i++)
    if (t == DT_FLOAT32)
      ((float *)p)[i] = (float)noise();
    else
      ((double *)p)[i] = noise();
}

/* c += a b over a batch, in memory that ends where the matrices end. */
static void check_micro(DType t, const MicroShape *s, bool add, bool at_end) {
  Arena *a = arena_new();
  MicroPlan *g = micro_plan(a, t, s, true, NULL);
  if (!g) { /* no tiles for this machine */
    arena_free(a);
    return;
  }
  MicroSet *set = micro_set(g);
  CodeBatch *batch = code_batch(a);
  for (int i = 0; i < set->n; i++) micro_code(batch, &set->spec[i], &set->fn[i]);
  assert_true(code_make(batch, NULL));
  int64_t m = s->m[0], n = s->n[0], k = s->k, size = dtype_info[t].size, step_a = m * k,
          step_b = k * n;
  Fenced fa = fenced((size_t)(step_a * s->batch * size), at_end),
         fb = fenced((size_t)(step_b * s->batch * size), at_end),
         fc = fenced((size_t)(m * n * size), at_end),
         scratch = fenced((size_t)micro_scratch(g), true);
  noise_fill(t, fa.data, step_a * s->batch);
  noise_fill(t, fb.data, step_b * s->batch);
  noise_fill(t, fc.data, m * n);
  double *want = arena_array(a, double, m *n);
  for (int64_t i = 0; i < m; i++)
    for (int64_t j = 0; j < n; j++) {
      int64_t at = s->c.trans ? j * m + i : i * n + j;
      double sum = add ? at_of(t, fc.data, at) : 0;
      for (int64_t b = 0; b < s->batch; b++)
        for (int64_t h = 0; h < k; h++)
          sum += at_of(t, fa.data, b * step_a + (s->a.trans ? h * m + i : i * k + h)) *
                 at_of(t, fb.data, b * step_b + (s->b.trans ? j * k + h : h * n + j));
      want[at] = sum;
    }
  MicroProduct q = {m, n, k, .a = fa.data, .b = fb.data, .c = fc.data, .a_mat = s->a};
  q.b_mat = s->b;
  q.c_mat = s->c;
  q.add = add;
  q.batch = s->batch;
  q.a_step = step_a;
  q.b_step = step_b;
  micro_run(g, &q, scratch.data);
  double eps = t == DT_FLOAT32 ? 6e-8 : 1.2e-16;
  for (int64_t i = 0; i < m * n; i++)
    if (!(fabs(want[i] - at_of(t, fc.data, i)) <= eps * 8 * (double)(k * s->batch + 8)))
      fail_msg("%s %lld x %lld x %lld, batch %lld, %d%d%d: element %lld is %.9g, not %.9g",
               dtype_info[t].name, (long long)m, (long long)n, (long long)k, (long long)s->batch,
               s->a.trans, s->b.trans, s->c.trans, (long long)i, at_of(t, fc.data, i), want[i]);
  Fenced all[4] = {fa, fb, fc, scratch};
  for (int i = 0; i < 4; i++) munmap(all[i].base, all[i].bytes);
  code_free(batch);
  arena_free(a);
}

/* Every form and tail: nothing outside the matrices is touched. */
static void check_forms(void) {
  static const int64_t sizes[][4] = {{1, 1, 1, 1},     {6, 64, 4, 1},    {7, 65, 5, 2},
                                     {13, 31, 17, 3},  {28, 16, 1, 1},   {29, 33, 70, 1},
                                     {50, 25, 64, 20}, {3, 130, 9, 64},  {200, 7, 33, 1},
                                     {5, 5, 2100, 1},  {70, 97, 2100, 1}};
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
    for (int form = 0; form < 32; form++) {
      if (form & 8 && sizes[i][2] > 1000) continue;
      bool ta = form & 1, tb = form & 2, tc = form & 4;
      int64_t m = sizes[i][0], n = sizes[i][1], k = sizes[i][2];
      MicroShape s = {.m = {m},
                      .n = {n},
                      .k = k,
                      .batch = sizes[i][3],
                      .a = {ta, ta ? m : k},
                      .b = {tb, tb ? k : n},
                      .c = {tc, tc ? m : n}};
      check_micro(form & 8 ? DT_FLOAT64 : DT_FLOAT32, &s, form & 1 || form & 16, form & 16);
    }
}

static void test_microkernels(void **state) {
  static const char *const isas[] = {
#define ISA(id, here) #id,
#include "../backends/cpu/tiles.def"
      NULL};
  (void)state;
  for (size_t i = 0; i < sizeof isas / sizeof *isas; i++) {
    micro_isa = isas[i];
    if (isas[i]) check_forms(); /* of those that this machine has */
  }
}

/* ---- scatter and sort ---- */

typedef bool CodeFn(Arena *a, const Kernel *k, KernelCode *code);

/* A kernel of one node against the interpreter, in every split. */
static void check_node(Feeds *f, Graph *g, Node *n, KernelKind kind, CodeFn *make) {
  assert_non_null(n);
  graph_number(g);
  NamedNode out = {"out", n, NULL};
  vec_add(g->arena, &g->fetches, out);
  EvalEnv env = {.lookup = feed, .user = f};
  Tensor **values = arena_array(f->a, Tensor *, g->nodes.n);
  assert_true(graph_eval(g, &env, f->a, values));
  Kernel k = {.kind = kind, .name = "k", .core = n};
  void *bufs[KL_RANK];
  for (int i = 0; i < n->n_in; i++) {
    vec_add(f->a, &k.inputs, ((KernelInput){n->in[i], false, false}));
    bufs[i] = values[n->in[i]->id]->data;
  }
  vec_add(f->a, &k.outputs, n);
  KernelCode code = {0};
  assert_true(make(f->a, &k, &code));
  size_t bytes = (size_t)(node_numel(n) * dtype_info[n->dtype].size);
  for (int s = ALL_AT_ONCE; s <= IN_THREES; s++) {
    bufs[n->n_in] = arena_alloc(f->a, bytes);
    memset(bufs[n->n_in], 0xee, bytes);
    run_code(&code, bufs, s);
    assert_memory_equal(bufs[n->n_in], values[n->id]->data, bytes);
  }
}

static void test_scatter(void **state) {
  static const struct {
    int axis;
    int64_t base[3], n;
  } cases[] = {{0, {50, 8, 5}, 70}, {1, {3, 40, 33}, 90}, {2, {7, 9, 30}, 11}, {0, {1000, 1, 1}, 1},
               {0, {5, 1, 700}, 9}, {1, {4, 6, 2}, 0},    {2, {300, 20, 4}, 3}};
  (void)state;
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
    for (DType t = 0; t < DT_N; t++)
      for (int assign = 0; assign < 2; assign++) {
        Feeds f = feeds_new();
        Graph *g = graph_new(NULL, false);
        int64_t d[3];
        memcpy(d, cases[i].base, sizeof d);
        d[cases[i].axis] = cases[i].n;
        DType it = i & 1 ? DT_INT32 : DT_INT64;
        Node *base = random_feed(g, &f, "base", t, 3, cases[i].base),
             *upd = random_feed(g, &f, "upd", t, 3, d), *idx = random_feed(g, &f, "idx", it, 3, d);
        int64_t size = cases[i].base[cases[i].axis];
        const char *names[] = {"base", "upd"};
        for (int n = 0; n < 2; n++) { /* whole numbers: sums are exact in any order and type */
          Tensor *v = map_get(f.map, names[n]);
          for (int64_t j = 0; j < tensor_numel(v); j++) tensor_set(v, j, floor(noise() * 2 + 2));
        }
        Tensor *v = map_get(f.map, "idx"); /* some fall outside */
        for (int64_t j = 0; j < tensor_numel(v); j++)
          tensor_set(v, j, floor((noise() * 0.55 + 0.5) * (double)size));
        check_node(&f, g, g_scatter(g, base, idx, upd, cases[i].axis, assign), K_SCATTER,
                   scatter_code);
        graph_free(g);
        arena_free(f.a);
      }
}

static void test_sort(void **state) {
  static const int64_t dims[][2] = {{1, 1}, {3, 16}, {5, 17}, {2, 1000}, {40, 33}, {4, 0}, {0, 4}};
  (void)state;
  for (size_t i = 0; i < sizeof dims / sizeof *dims; i++)
    for (DType t = 0; t < DT_N; t++)
      for (int down = 0; down < 2; down++) {
        Feeds f = feeds_new();
        Graph *g = graph_new(NULL, false);
        Node *x = random_feed(g, &f, "x", t, 2, dims[i]);
        Tensor *v = map_get(f.map, "x");
        for (int64_t j = 0; j < tensor_numel(v); j++) {
          double r = noise();
          tensor_set(v, j, floor(r * 20)); /* many are equal */
          if (dtype_is_float(t) && r > 0.9) tensor_set(v, j, r > 0.95 ? NAN : -0.0);
          if (dtype_is_float(t) && r < -0.95) tensor_set(v, j, r < -0.97 ? -INFINITY : INFINITY);
        }
        check_node(&f, g, g_argsort(g, x, down), K_SORT, sort_code);
        graph_free(g);
        arena_free(f.a);
      }
}

/* ---- the choice of an algorithm ---- */

/* x [6, 9, 9, 24] and w [3, 3, 24, 40], and its gradients: channels last. */
static Graph *layer(Feeds *f) {
  Graph *g = graph_new(NULL, false);
  int64_t xd[4] = {6, 9, 9, 24}, wd[4] = {3, 3, 24, 40}, ext[7] = {6, 9, 9, 40, 3, 3, 24};
  AffDim mx[4] = {aff_loop(0), {1, 4, 1, 1, -1, 1}, {2, 5, 1, 1, -1, 1}, aff_loop(6)},
         mw[4] = {aff_loop(4), aff_loop(5), aff_loop(6), aff_loop(3)};
  Node *x = random_feed(g, f, "x", DT_FLOAT32, 4, xd),
       *w = random_feed(g, f, "w", DT_FLOAT32, 4, wd);
  Node *y = g_contract(g, x, w, 4, 7, ext, mx, mw), *xs[2] = {x, w}, *gxs[2];
  Node *gy = random_feed(g, f, "gy", DT_FLOAT32, 4, y->dims);
  assert_true(derive(g, 1, &y, &gy, 2, xs, gxs));
  g_matmul(g, random_feed(g, f, "a", DT_FLOAT32, 2, (int64_t[]){50, 70}),
           random_feed(g, f, "b", DT_FLOAT32, 2, (int64_t[]){70, 100}), false, false);
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
  EvalEnv env = {.lookup = feed, .user = &f};
  Tensor **values = arena_array(f.a, Tensor *, g->nodes.n);
  assert_true(graph_eval(g, &env, f.a, values));
  for (int i = 0; i < g->fetches.n; i++)
    for (choice = WAY_N; choice < WAY_N * (tiles + 1); choice++)
      served += check_contract(f.a, g->fetches.v[i].node, values, false, false) != PLAN_LOOPS;
  choice = WAY_RULE;
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
  Node *w = random_feed(g, &f, "w", DT_FLOAT32, 2, (int64_t[]){784, 256});
  for (size_t i = 0; i < sizeof m / sizeof *m; i++) {
    const char *name = arena_fmt(f.a, "x%zu", i);
    Node *x = random_feed(g, &f, name, DT_FLOAT32, 2, (int64_t[]){m[i], 784});
    Kernel k = kernel_of(f.a, g_matmul(g, x, w, false, false), TUNE_RULE);
    const Plan *p = contract_plan(f.a, &k, false);
    assert_in_range(p->work.shares, 4, MOST_SHARES);
    assert_int_equal(p->work.n_tasks[0], p->work.shares);
    k.inputs.v[1].constant = true;
    assert_int_equal(contract_plan(f.a, &k, false)->work.shares, 0);
  }
  graph_free(g);
  arena_free(f.a);
}

/* A convolution of one image that is too small for more tasks by its operations has two all the same, as LeNet's first. */
static void test_halves(void **state) {
  static const int64_t sizes[] = {28, 20}, tasks[] = {2, 1}, one[] = {1, 1}, zero[] = {0, 0};
  (void)state;
  for (int i = 0; i < 2; i++) {
    Feeds f = feeds_new();
    Graph *g = graph_new(NULL, false);
    Node *x = random_feed(g, &f, "x", DT_FLOAT32, 4, (int64_t[]){1, 1, sizes[i], sizes[i]}),
         *w = random_feed(g, &f, "w", DT_FLOAT32, 4, (int64_t[]){20, 1, 5, 5});
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
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_products),      cmocka_unit_test(test_convolutions),
      cmocka_unit_test(test_algorithms),    cmocka_unit_test(test_images_last),
      cmocka_unit_test(test_channels_last), cmocka_unit_test(test_awkward),
      cmocka_unit_test(test_microkernels),  cmocka_unit_test(test_scatter),
      cmocka_unit_test(test_sort),          cmocka_unit_test(test_choices),
      cmocka_unit_test(test_shares),        cmocka_unit_test(test_halves),
      cmocka_unit_test(test_tuning),
  };
  blas_setup();
  return cmocka_run_group_tests(tests, NULL, NULL);
}
