/* Generated code against the interpreter: every map over awkward values, reductions in every mode, views with padding,
 * gathers, random numbers, concatenations, contractions as loops; any split into tasks gives the same bits; ptxas accepts
 * what is generated for CUDA. */
#include "../backends/llvm/llvm.h"
#include "util.h"
#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#define I64(...) ((int64_t[]){__VA_ARGS__})
enum { MAX_FEEDS = 8 };

typedef struct Case {
  Graph *g;
  Arena *a;
  int n;
  Tensor feed[MAX_FEEDS];
  const char *name[MAX_FEEDS];
  uint64_t random;
  double ulp; /* the worst seen */
} Case;

static Tensor *lookup(void *user, const char *name, bool state) {
  Case *c = user;
  (void)state;
  for (int i = 0; i < c->n; i++)
    if (!strcmp(c->name[i], name)) return &c->feed[i];
  return NULL;
}

static Case *case_new(void) {
  Arena *a = arena_new();
  Case *c = arena_new_of(a, Case);
  c->a = a;
  c->g = graph_new(NULL, false);
  c->random = 12345;
  return c;
}

static double uniform(Case *c, double lo, double hi) {
  c->random = c->random * 6364136223846793005u + 1442695040888963407u;
  return lo + (hi - lo) * (double)(c->random >> 11) * 0x1p-53;
}

/* A fed tensor with values in lo..hi; of integers as many as fit. */
static Node *feed(Case *c, DType t, int rank, const int64_t *dims, double lo, double hi) {
  Tensor *x = &c->feed[c->n];
  c->name[c->n] = arena_fmt(c->a, "x%d", c->n);
  assert_true(tensor_make(x, c->a, t, rank, dims));
  for (int64_t i = 0; i < tensor_numel(x); i++) tensor_set(x, i, uniform(c, lo, hi));
  return g_feed(c->g, c->name[c->n++], t, rank, dims);
}

/* ---- kernels by hand ---- */

static bool is_source(const Node *n) {
  return n->prim == P_FEED || n->prim == P_STATE || n->prim == P_DATA;
}

static Kernel *kernel_of(Case *c, KernelKind kind, Node *core, int n_out, Node *const *out,
                         uint32_t reduce) {
  Kernel *k = arena_new_of(c->a, Kernel);
  k->kind = kind;
  k->name = "kernel";
  k->core = core;
  k->reduce = reduce;
  const Node *shape = core ? core : out[0];
  graph_number(c->g);
  for (int i = 0; i < c->g->nodes.n; i++) {
    Node *n = c->g->nodes.v[i];
    if (is_source(n))
      vec_add(c->a, &k->inputs, ((KernelInput){n, false, false}));
    else
      vec_add(c->a, &k->nodes, n);
    if (reduce && prim_is_reduce(n->prim) && (uint32_t)n->i == reduce) shape = n->in[0];
  }
  for (int i = 0; i < n_out; i++) vec_add(c->a, &k->outputs, out[i]);
  k->rank = shape->rank;
  memcpy(k->ext, shape->dims, sizeof k->ext);
  return k;
}

static void fail_error(const char *what) {
  const Diag *d = err_get();
  fail_msg("%s: %s: %s", what, d ? err_name(d->code) : "no error", d ? d->summary : "");
}

typedef struct Failed {
  int n;
  int64_t node, index, value;
} Failed;

static void check_failed(RunCtx *ctx, int64_t node, int64_t index, int64_t value) {
  Failed *f = (Failed *)(void *)ctx->record;
  if (!f->n++) f->node = node, f->index = index, f->value = value;
}

/* The functions of a kernel: one, or two steps with a workspace between them. */
typedef struct Steps {
  KernelFn *fn[2];
  int64_t tasks[2];
  void *workspace;
} Steps;

/* Runs the functions with tasks cut into `pieces`. */
static void run_kernel(Case *c, Kernel *k, const Steps *s, int64_t pieces, Tensor *out, Failed *f) {
  void *bufs[64];
  int n = 0;
  RunCtx ctx = {.seed = 77,
                .step = 5,
                .check_failed = check_failed,
                .record = (CheckRecord *)(void *)f};
  for (int i = 0; i < k->inputs.n; i++) {
    Node *x = k->inputs.v[i].node;
    bufs[n++] = x->prim == P_DATA ? (void *)(uintptr_t)x->data : lookup(c, x->s, false)->data;
  }
  for (int i = 0; i < k->outputs.n; i++) bufs[n++] = out[i].data;
  bufs[n] = s->workspace;
  for (int i = 0; i < 2; i++)
    for (int64_t p = 0; p < pieces; p++) {
      int64_t from = s->tasks[i] * p / pieces, to = s->tasks[i] * (p + 1) / pieces;
      if (from < to) s->fn[i](NULL, bufs, from, to, &ctx);
    }
}

static double ulp_of(DType t, double v) {
  int e;
  if (t == DT_FLOAT16) return ldexp(1, (frexp(v, &e), e < -13 ? -13 : e) - 11);
  if (t == DT_BFLOAT16) return ldexp(1, (frexp(v, &e), e < -125 ? -125 : e) - 8);
  if (t == DT_FLOAT32) return ldexp(1, (frexp(v, &e), e < -125 ? -125 : e) - 24);
  return ldexp(1, (frexp(v, &e), e < -1021 ? -1021 : e) - 53);
}

/* Differences are measured in ulp of the expected value, or of `scale` if that is larger. */
static void compare(Case *c, const Tensor *want, const Tensor *got, double max_ulp, double scale,
                    const char *what) {
  for (int64_t i = 0; i < tensor_numel(want); i++) {
    double w = tensor_get(want, i), v = tensor_get(got, i);
    if ((isnan(w) && isnan(v)) || w == v) continue;
    double d = fabs(w - v) / ulp_of(want->dtype, fmax(fabs(w), scale));
    if (isinf(w) != isinf(v) || isnan(w) || isnan(v)) d = INFINITY;
    if (d > c->ulp) c->ulp = d;
    if (!dtype_is_float(want->dtype) || !(d <= max_ulp))
      fail_msg("%s, %s: element %lld is %.17g, not %.17g (%g ulp)", what,
               dtype_info[want->dtype].name, (long long)i, v, w, d);
  }
}

static CodeBatch *compile_part(Case *c, Kernel *k, LoopPart part, Steps *s) {
  CompileOptions o = {.dump_dir = getenv("KILN_TEST_DUMP")};
  CodeBatch *b = code_batch(c->a);
  int64_t bytes = part == LOOP_CONTRACT ? loop_workspace(k) : 0;
  *s = (Steps){.tasks[0] = loop_tasks(k, part), .workspace = arena_alloc(c->a, (size_t)bytes)};
  loop_code(b, k, part, &s->fn[0]);
  if (bytes) loop_code(b, k, LOOP_PARTS, &s->fn[1]);
  if (bytes) s->tasks[1] = loop_tasks(k, LOOP_PARTS);
  return code_make(b, &o) ? b : NULL;
}

/* Compile the kernel, run it whole and in pieces, compare with the interpreter. */
static void check_part(Case *c, Kernel *k, LoopPart part, double max_ulp, double scale,
                       const char *what) {
  EvalEnv env = {.lookup = lookup, .user = c, .seed = 77, .step = 5};
  Steps fn;
  Tensor **values = arena_array(c->a, Tensor *, c->g->nodes.n), whole[8], cut[8];
  for (int i = 0; i < k->outputs.n; i++)
    vec_add(c->g->arena, &c->g->fetches, ((NamedNode){"y", k->outputs.v[i], NULL}));
  graph_number(c->g);
  if (!graph_eval(c->g, &env, c->a, values)) fail_error(what);
  CodeBatch *b = compile_part(c, k, part, &fn);
  if (!b) fail_error(what);
  Failed f = {0};
  for (int i = 0; i < k->outputs.n; i++) {
    Node *n = k->outputs.v[i];
    assert_true(tensor_make(&whole[i], c->a, n->dtype, n->rank, n->dims));
    assert_true(tensor_make(&cut[i], c->a, n->dtype, n->rank, n->dims));
  }
  run_kernel(c, k, &fn, 1, whole, &f);
  for (int64_t pieces = 2; pieces <= 7 && pieces <= fn.tasks[0]; pieces++) {
    run_kernel(c, k, &fn, pieces, cut, &f);
    for (int i = 0; i < k->outputs.n; i++)
      if (memcmp(whole[i].data, cut[i].data, tensor_bytes(&whole[i])))
        fail_msg("%s: %d pieces differ", what, (int)pieces);
  }
  assert_int_equal(f.n, 0);
  for (int i = 0; i < k->outputs.n; i++)
    compare(c, values[k->outputs.v[i]->id], &whole[i], max_ulp, scale, what);
  code_free(b);
}

static void case_free(Case *c) {
  graph_free(c->g);
  arena_free(c->a);
}

/* A map-like kernel of everything in the graph. */
static void check_map(Case *c, Node *y, double max_ulp, double scale, const char *what) {
  if (!y) fail_error(what);
  check_part(c, kernel_of(c, K_LOOP, NULL, 1, &y, 0), LOOP_MAIN, max_ulp, scale, what);
}

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
static Node *feed_edges(Case *c, DType t, int which) {
  double v[64];
  int n = edges(t, v);
  Node *x = feed(c, t, 1, I64(n * n), 0, 1);
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
      Node *x = feed_edges(c, types[t], 0), *y = feed_edges(c, types[t], 1);
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
      check_map(c, r, tol, p == P_SIN ? 1 : 0, prim_info[p].name);
      case_free(c);
    }
}

static void test_casts(void **state) {
  (void)state;
  for (DType from = 0; from < DT_N; from++)
    for (DType to = 0; to < DT_N; to++) {
      if (from == to) continue;
      Case *c = case_new();
      check_map(c, g_cast(c->g, feed_edges(c, from, 0), to), 0, 0, "cast");
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
        Node *x =
            feed(c, types[t], sums[s].rank, sums[s].dims, p == 2 ? 0.97 : -2, p == 2 ? 1.03 : 3);
        Node *y = prims[p] == P_ARGMAX ? g_argmax(c->g, x, sums[s].axes, true, DT_INT64)
                                       : g_reduce(c->g, prims[p], x, sums[s].axes, true);
        check_part(c, kernel_of(c, K_LOOP, NULL, 1, &y, sums[s].axes), LOOP_MAIN,
                   types[t] == DT_BFLOAT16 ? 1 : 3000, p == 1 ? 0 : 1, prim_info[prims[p]].name);
        /* the same inlined into a map */
        if (numel_of(x->rank, x->dims) / (node_numel(y) ? node_numel(y) : 1) <= 50) {
          Node *z = prims[p] == P_ARGMAX ? y : g_map2(c->g, P_MAX, x, y);
          check_part(c, kernel_of(c, K_LOOP, NULL, 1, &z, 0), LOOP_MAIN,
                     types[t] == DT_BFLOAT16 ? 1 : 100, p == 1 ? 0 : 1, "inlined");
        }
        case_free(c);
      }
}

static void test_nan_max(void **state) {
  (void)state;
  for (int axis = 0; axis < 2; axis++) {
    Case *c = case_new();
    Node *x = feed(c, DT_FLOAT32, 2, I64(90, 80), -1, 1);
    for (int i = 0; i < 40; i++) tensor_set(&c->feed[0], i * 170, i % 3 ? NAN : INFINITY);
    Node *y[2] = {g_reduce(c->g, P_RMAX, x, 1u << axis, true),
                  g_argmax(c->g, x, 1u << axis, true, DT_INT32)};
    check_part(c, kernel_of(c, K_LOOP, NULL, 2, y, 1u << axis), LOOP_MAIN, 0, 0, "NaN");
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
      Node *x = feed(c, DT_FLOAT32, rank, dims, -5, 5);
      Node *m = g_reduce(g, P_RMAX, x, bit, true), *e = g_map1(g, P_EXP, g_map2(g, P_SUB, x, m));
      Node *s = g_reduce(g, P_RSUM, e, bit, true), *l = g_map1(g, P_LOG, s);
      Node *out[4] = {g_map2(g, P_DIV, e, s), e, g_map2(g, P_ADD, l, m), s};
      Kernel *k = kernel_of(c, K_LOOP, NULL, 4, out, bit);
      check_part(c, k, LOOP_MAIN, 60, 1, "softmax");
      k->inputs.v[0].aligned = true;
      check_part(c, k, LOOP_MAIN, 60, 1, "softmax in place");
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
    Node *x = feed(c, dt, 4, dims, -50, 50), *y = (expr);                                          \
    check_map(c, y, 2, 100, #expr);                                                                \
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
    Node *x = feed(c, DT_FLOAT32, 4, I64(2, 3, w[i].size, w[i].size), -1, 1), *gx = NULL;
    Node *v =
        g_window(g, x, 2, 2, I64(w[i].k, w[i].k), I64(w[i].stride, w[i].stride),
                 I64(w[i].dil, w[i].dil), I64(w[i].pad, w[i].pad), I64(w[i].pad, w[i].pad), 0);
    Node *y = g_reduce(g, P_RSUM, g_map2(g, P_MUL, v, v), 48, false);
    Node *gy = feed(c, DT_FLOAT32, y->rank, y->dims, -1, 1);
    if (!derive(g, 1, &y, &gy, 1, &x, &gx)) fail_error("derive");
    check_map(c, gx, 100, 1, "window gradient");
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
      Node *x = feed(c, DT_FLOAT32, 3, dims, -1, 1);
      Node *i = feed(c, t ? DT_INT32 : DT_INT64, 3, idims, -3, 40); /* clamped */
      check_map(c, g_map2(c->g, P_ADD, g_gather(c->g, x, i, axis), g_cast(c->g, i, DT_FLOAT32)), 0,
                0, "gather");
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
      check_map(c, i == 3 ? g_permute(c->g, r, (int[]){1, 0}) : r, 0, 0, "random");
      case_free(c);
    }
}

static void test_check(void **state) {
  (void)state;
  Case *c = case_new();
  Node *x = feed(c, DT_INT64, 2, I64(40, 50), 0, 10);
  Node *k = g_check(c->g, x, 0, 10, true, -100, E_DAT_002), *y = g_cast(c->g, k, DT_FLOAT32);
  tensor_set(&c->feed[0], 3, -100);
  Kernel *kernel = kernel_of(c, K_LOOP, NULL, 1, &y, 0);
  check_part(c, kernel, LOOP_MAIN, 0, 0, "check");
  Steps fn;
  CodeBatch *b = compile_part(c, kernel, LOOP_MAIN, &fn);
  assert_non_null(b);
  Failed f = {0};
  Tensor out;
  assert_true(tensor_make(&out, c->a, DT_FLOAT32, 2, I64(40, 50)));
  tensor_set(&c->feed[0], 1234, 10);
  tensor_set(&c->feed[0], 1999, -1);
  run_kernel(c, kernel, &fn, 1, &out, &f);
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
      x[i] = feed(c, DT_FLOAT32, 3, dims, -1, 1);
      if (i % 2) x[i] = g_map2c(c->g, P_ADD, x[i], 1);
    }
    Node *y = g_concat(c->g, 4, x, axis);
    check_part(c, kernel_of(c, K_CONCAT, y, 1, &y, 0), LOOP_MAIN, 0, 0, "concat");
    case_free(c);
  }
}

/* ---- contractions ---- */

static void check_contract(Case *c, Node *y, bool epilogue, const char *what) {
  if (!y) fail_error(what);
  Node *core = y;
  while (core->prim != P_CONTRACT) core = core->in[0];
  Node *z = y;
  if (epilogue) {
    Node *b = feed(c, core->dtype, 1, I64(core->dims[core->rank - 1]), -1, 1);
    z = g_map2c(c->g, P_MAX, g_map2(c->g, P_ADD, core, b), 0);
  }
  check_part(c, kernel_of(c, K_CONTRACT, core, 1, &z, 0), LOOP_CONTRACT, 3000, 1, what);
}

static void test_contractions(void **state) {
  (void)state;
  for (int e = 0; e < 2; e++)
    for (int t = 0; t < 3; t++) {
      DType dt = t == 0 ? DT_FLOAT32 : t == 1 ? DT_FLOAT64 : DT_INT32;
#define CONTRACT_CASE(A, B, expr)                                                                  \
  do {                                                                                             \
    Case *c = case_new();                                                                          \
    Node *a = feed(c, dt, A, -3, 3), *b = feed(c, dt, B, -3, 3);                                   \
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
  Node *in[2] = {feed(c, t, 4, I64(d->n, d->h, d->w, d->c), -2, 2),
                 feed(c, t, 4, I64(d->kh, d->kw, 1, d->c), -2, 2)};
  int32_t s = (int32_t)d->stride, l = (int32_t)d->dilation;
  AffDim row = {1, 4, s, l, -d->lo, 1}, col = {2, 5, s, l, -d->lo, 1};
  AffDim mx[4] = {aff_loop(0), row, col, aff_loop(3)},
         mw[4] = {aff_loop(4), aff_loop(5), aff_const(0), aff_loop(3)};
  Node *y = g_contract(g, in[0], in[1], 4, 6, ext, mx, mw), *r = y;
  if (which) {
    Node *gy = feed(c, t, 4, ext, -2, 2);
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
    Node *a = feed(c, DT_FLOAT32, 3, I64(d[0], d[1], 4), -1, 1),
         *b = feed(c, DT_FLOAT32, 3, I64(d[0], 4, d[2]), -1, 1);
    Node *core = g_matmul(c->g, a, b, false, false),
         *bias = feed(c, DT_FLOAT32, 1, I64(d[2]), -1, 1);
    Node *y = g_map2c(c->g, P_MAX, g_map2(c->g, P_ADD, core, bias), 0);
    Kernel *k = kernel_of(c, K_CONTRACT, core, 1, &y, 0);
    EvalEnv env = {.lookup = lookup, .user = c};
    Tensor **values = arena_array(c->a, Tensor *, c->g->nodes.n), out;
    vec_add(c->g->arena, &c->g->fetches, ((NamedNode){"y", y, NULL}));
    graph_number(c->g);
    assert_true(graph_eval(c->g, &env, c->a, values));
    Steps fn;
    CodeBatch *code = compile_part(c, k, LOOP_EPILOGUE, &fn);
    if (!code) fail_error("epilogue");
    assert_true(tensor_make(&out, c->a, DT_FLOAT32, y->rank, y->dims));
    memcpy(out.data, values[core->id]->data, tensor_bytes(&out));
    int64_t rows = loop_tasks(k, LOOP_EPILOGUE);
    assert_int_equal(rows, d[0] * d[1] > 1 ? d[0] * d[1] : d[2]);
    for (int64_t r = 0; r < rows; r += 3) {
      void *bufs[4] = {c->feed[0].data, c->feed[1].data, c->feed[2].data, out.data};
      RunCtx ctx = {0};
      fn.fn[0](NULL, bufs, r, r + 3 < rows ? r + 3 : rows, &ctx);
    }
    compare(c, values[y->id], &out, 0, 0, "epilogue");
    code_free(code);
    case_free(c);
  }
}

/* ---- PTX ---- */

static bool ptxas_accepts(const char *ptx, size_t n, const char *arch) {
  char path[] = "/tmp/kiln-ptx-XXXXXX", command[256];
  int fd = mkstemp(path);
  assert_true(fd >= 0 && write(fd, ptx, n) == (ssize_t)n);
  close(fd);
  snprintf(command, sizeof command, "/usr/local/cuda/bin/ptxas -arch=%s -o /dev/null %s", arch,
           path);
  bool ok = system(command) == 0;
  unlink(path);
  return ok;
}

static Kernel *ptx_kernel(Case *c, int which) {
  Graph *g = c->g;
  Node *x = feed(c, DT_FLOAT32, 4, I64(4, 6, 16, 18), -1, 1), *y[2] = {NULL}, *half, *l;
  switch (which) {
  case 0: /* maps with every function, in both widths */
    y[0] = x;
    y[1] = g_cast(g, x, DT_FLOAT64);
    for (Prim p = 0; p < P_N; p++)
      for (int i = 0; i < 2; i++)
        if (prim_is_map(p) && p != P_CAST && p != P_SELECT && p != P_LT && p != P_LE && p != P_EQ)
          y[i] = prim_info[p].n_in == 1 ? g_map1(g, p, y[i])
                                        : g_map2(g, p, y[i], i ? g_cast(g, x, DT_FLOAT64) : x);
    return kernel_of(c, K_LOOP, NULL, 2, y, 0);
  case 1: /* two sweeps and a row result */
    y[0] = g_map1(g, P_EXP, g_map2(g, P_SUB, x, g_reduce(g, P_RMAX, x, 13, true)));
    y[1] = g_reduce(g, P_RSUM, y[0], 13, true);
    return kernel_of(c, K_LOOP, NULL, 2, y, 13);
  case 2: /* windows, integers, halves */
    half = g_cast(g, x, DT_BFLOAT16);
    y[0] = g_reduce(g, P_RMAX,
                    g_window(g, g_cast(g, half, DT_FLOAT16), 2, 2, I64(3, 3), I64(2, 2), I64(1, 1),
                             I64(1, 1), I64(1, 1), -9),
                    48, false);
    y[1] = g_map2(g, P_POW, g_cast(g, y[0], DT_INT32), g_cast(g, y[0], DT_INT32));
    return kernel_of(c, K_LOOP, NULL, 2, y, 0);
  default: /* labels, gather, random numbers */
    l = g_check(g, feed(c, DT_INT64, 4, I64(4, 1, 16, 18), 0, 5), 0, 6, false, 0, E_DAT_002);
    y[0] = g_gather(g, x, l, 1);
    y[1] = g_random(g, DT_FLOAT32, 4, y[0]->dims, 0, 7, false);
    return kernel_of(c, K_LOOP, NULL, 2, y, 0);
  }
}

static void test_ptx(void **state) {
  (void)state;
  static const char *const archs[] = {"sm_75", "sm_80", "sm_90"};
  bool have = access("/usr/local/cuda/bin/ptxas", X_OK) == 0;
  if (!have) print_message("ptxas: skipped, no CUDA Toolkit\n");
  for (int i = 0; i < 4; i++)
    for (size_t s = 0; s < sizeof archs / sizeof *archs; s++) {
      Case *c = case_new();
      Kernel *k = ptx_kernel(c, i);
      CompileOptions o = {.target = arena_fmt(c->a, "cuda:%s", archs[s])};
      Str out;
      str_init(&out, c->a);
      if (!backend_cuda.emit(c->g, 1, &k, &o, "ptx", &out)) fail_error("ptx");
      assert_non_null(strstr(out.s, ".entry kernel_"));
      if (have && !ptxas_accepts(out.s, out.n, archs[s]))
        fail_msg("ptxas refuses kernel %d for %s", i, archs[s]);
      assert_null(backend_cuda.compile(c->g, 1, &k, &o, NULL));
      assert_int_equal(err_get()->code, E_GEN_002);
      err_clear();
      case_free(c);
    }
}

static bool emit(Kernel *k, const CompileOptions *o, const char *what, Str *out) {
  CodeBatch *b = code_batch(out->a);
  KernelFn *fn;
  loop_code(b, k, LOOP_MAIN, &fn);
  return code_emit(b, o, what, out);
}

/* Unknown targets and texts are errors, not crashes. */
static void test_emit_errors(void **state) {
  (void)state;
  static const struct {
    const char *target, *what;
  } bad[] = {{"cuda:sm_30", "ptx"},  {"cuda:80", "ptx"},       {"tpu", "llvm"},
             {NULL, "ptx"},          {"cuda:sm_80", "object"}, {"cuda:", "ptx"},
             {"cpu:quantum", "asm"}, {"cpu:", "asm"},          {"cpu:Haswell", "llvm"}};
  Case *c = case_new();
  Kernel *k = ptx_kernel(c, 1);
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    CompileOptions o = {.target = bad[i].target};
    Str out;
    str_init(&out, c->a);
    assert_false(emit(k, &o, bad[i].what, &out));
    assert_int_equal(err_get()->code, E_GEN_002);
    err_clear();
  }
  static const char *const texts[] = {"llvm", "asm", "object"};
  for (int i = 0; i < 6; i++) {
    CompileOptions o = {.target = i < 3 ? NULL : "cpu:x86-64"};
    Str out;
    str_init(&out, c->a);
    if (!emit(k, &o, texts[i % 3], &out)) fail_error(texts[i % 3]);
    assert_true(out.n > 100);
  }
  case_free(c);
}

/* ---- vectors ---- */

static Kernel *vector_kernel(Case *c, int which) {
  Graph *g = c->g;
  Node *x = feed(c, DT_FLOAT32, 4, I64(4, 6, 32, 48), -1, 1), *y, *gy, *gx = NULL;
  Node *pool =
      g_reduce(g, P_RSUM,
               g_window(g, x, 2, 2, I64(2, 2), I64(2, 2), I64(1, 1), I64(0, 0), I64(0, 0), 0), 48,
               false);
  switch (which) {
  case 0:
    y = g_map1(g, P_EXP, g_map2c(g, P_MUL, x, 2));
    return kernel_of(c, K_LOOP, NULL, 1, &y, 0);
  case 1: y = g_reduce(g, P_RSUM, x, 12, true); return kernel_of(c, K_LOOP, NULL, 1, &y, 12);
  case 2: y = g_reduce(g, P_RSUM, x, 7, true); return kernel_of(c, K_LOOP, NULL, 1, &y, 7);
  case 3: y = g_reduce(g, P_RMAX, x, 12, true); return kernel_of(c, K_LOOP, NULL, 1, &y, 12);
  case 4: return kernel_of(c, K_LOOP, NULL, 1, &pool, 0);
  case 5:
    gy = feed(c, DT_FLOAT32, 4, pool->dims, -1, 1);
    if (!derive(g, 1, &pool, &gy, 1, &x, &gx)) fail_error("derive");
    return kernel_of(c, K_LOOP, NULL, 1, &gx, 0);
  case 6:
    y = g_pad(g, x, I64(0, 0, 1, 2), I64(0, 0, 3, 4), 0);
    return kernel_of(c, K_LOOP, NULL, 1, &y, 0);
  case 7:
    y = g_random(g, DT_FLOAT32, 4, x->dims, 0, 7, false);
    return kernel_of(c, K_LOOP, NULL, 1, &y, 0);
  default: return NULL;
  }
}

/* The loops are vectors of 16 floats, without gathers and without checks at run time whether buffers overlap. */
static void test_vectors(void **state) {
  (void)state;
  for (int i = 0;; i++) {
    Case *c = case_new();
    Kernel *k = vector_kernel(c, i);
    if (!k) {
      case_free(c);
      break;
    }
    CompileOptions o = {.target = "cpu:skylake-avx512"};
    Str out;
    str_init(&out, c->a);
    if (!emit(k, &o, "llvm", &out)) fail_error("llvm");
    if (!strstr(out.s, "<16 x float>")) fail_msg("kernel %d has no vectors:\n%s", i, out.s);
    if (strstr(out.s, "gather")) fail_msg("kernel %d gathers:\n%s", i, out.s);
    if (strstr(out.s, "memcheck")) fail_msg("kernel %d checks its buffers:\n%s", i, out.s);
    case_free(c);
  }
}

/* ---- the cache of compiled kernels ---- */

static void test_cache(void **state) {
  (void)state;
  Case *c = case_new(), *d = case_new(), *e = case_new();
  Kernel *k = ptx_kernel(c, 1), *l = ptx_kernel(d, 1), *other = ptx_kernel(e, 2);
  Kernel *all[3] = {k, other, l};
  KernelFn *fn[3];
  Steps again, last;
  CodeBatch *b = code_batch(c->a), *b2, *b3;
  for (int i = 0; i < 3; i++) loop_code(b, all[i], LOOP_MAIN, &fn[i]);
  assert_true(code_make(b, NULL));
  assert_true(fn[0] == fn[2] && fn[0] != fn[1]);
  b2 = compile_part(d, l, LOOP_MAIN, &again);
  assert_true(again.fn[0] == fn[0]);
  code_free(b);
  l->inputs.v[0].aligned = true;
  b3 = compile_part(d, l, LOOP_MAIN, &last);
  assert_true(last.fn[0] != again.fn[0]);
  code_free(b3);
  code_free(b2);
  case_free(c);
  case_free(d);
  case_free(e);
}

/* Refused allocations: an error, nothing leaks, and the next compilation works. */
static void test_refused_memory(void **state) {
  (void)state;
  Case *c = case_new();
  Kernel *k = ptx_kernel(c, 3);
  volatile int n = 1;
  volatile bool done = false;
  for (; !done; n += n < 8 ? 1 : n / 4) {
    for (volatile int what = 0; what < 2; what++) {
      Arena *volatile a = arena_new();
      MemGuard guard;
      KernelFn *fn;
      fail_alloc(n);
      if (MEM_GUARD(guard)) {
        assert_int_equal(err_get()->code, E_MEM_001);
        err_clear();
      } else {
        Str out;
        str_init(&out, a);
        if (what) {
          assert_true(emit(k, NULL, "object", &out));
        } else {
          CodeBatch *b = code_batch(a);
          loop_code(b, k, LOOP_MAIN, &fn);
          assert_true(code_make(b, NULL));
          code_free(b);
        }
        mem_unguard(&guard);
        done = what && !fail_alloc_done();
      }
      fail_alloc(0);
      arena_free(a);
    }
  }
  case_free(c);
}

/* ---- accuracy ---- */

static void test_accuracy(void **state) {
  (void)state;
  static const struct {
    Prim p;
    double lo, hi, scale;
  } range[] = {{P_EXP, -104, 89, 0}, {P_EXP, -1, 1, 0},     {P_LOG, 1e-44, 1e-37, 0},
               {P_LOG, 0.5, 2, 0},   {P_LOG, 0, 1e6, 0},    {P_TANH, -1, 1, 0},
               {P_TANH, -12, 12, 0}, {P_ERF, -1.1, 1.1, 0}, {P_ERF, -6, 6, 0},
               {P_SIN, -4, 4, 0.01}, {P_SIN, -1e5, 1e5, 1}, {P_EXP, -745, 709, 0}};
  for (size_t i = 0; i < sizeof range / sizeof *range; i++)
    for (int w = 0; w < 2; w++) {
      Case *c = case_new();
      Node *x = feed(c, w ? DT_FLOAT64 : DT_FLOAT32, 1, I64(200000), range[i].lo, range[i].hi);
      check_map(c, g_map1(c->g, range[i].p, x), w ? 8 : 2, range[i].scale,
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
                                     cmocka_unit_test(test_contractions),
                                     cmocka_unit_test(test_depthwise),
                                     cmocka_unit_test(test_epilogue),
                                     cmocka_unit_test(test_ptx),
                                     cmocka_unit_test(test_emit_errors),
                                     cmocka_unit_test(test_vectors),
                                     cmocka_unit_test(test_cache),
                                     cmocka_unit_test(test_refused_memory),
                                     cmocka_unit_test(test_accuracy)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
