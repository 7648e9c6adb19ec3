/* Convolutions of 3 x 3, and of 5 x 5 with the images last or over a few planes, with an error allowed: they run by Winograd's algorithm, err no more than that, in tiles of 2 x 2 no
 * more than plain sums, forward and for the gradients of input and filter, with the same bits for any split of the tasks and for
 * every instruction set; and what the algorithm is not made for, or what allows too little, runs as before. The reference is
 * the interpreter in float64 on the same values. */
#include <stdarg.h>
#include <setjmp.h>
#include <stddef.h>
#include <cmocka.h>
#include <math.h>
#include "../backends/cpu/conv.h"
#include "../backends/cpu/filter.h"
#include "../backends/cpu/images.h"
#include "../frontend/kiln.h"

typedef struct Shape {
  int64_t n, c, o, groups, h, w, pad;
} Shape;
typedef enum What {
  FORWARD,
  INPUT,
  FILTER,
  IMAGES,
  IMAGES_INPUT,
  IMAGES_FILTER,
  PLANES,
  PLANES_INPUT
} What; /* the result, or a gradient; images last; channels before positions */

static uint32_t noise_state;
static double noise(void) {
  noise_state = noise_state * 1664525u + 1013904223u;
  return (float)((double)(noise_state >> 8) / (1 << 23) - 1);
}

static Tensor *feed(void *user, const char *name, bool state) {
  (void)state;
  return map_get(user, name);
}

/* Both precisions have the same values. */
static void fill(Arena *a, Map *const to[2], const char *name, const int64_t dims[4]) {
  Tensor *t[2];
  for (int i = 0; i < 2; i++) {
    t[i] = arena_new_of(a, Tensor);
    assert_true(tensor_make(t[i], a, i ? DT_FLOAT64 : DT_FLOAT32, 4, dims));
    map_put(to[i], name, t[i]);
  }
  for (int64_t j = 0; j < tensor_numel(t[0]); j++) {
    double v = noise();
    for (int i = 0; i < 2; i++) tensor_set(t[i], j, v);
  }
}

static void first_dims(const Shape *s, What part, int64_t to[4]) {
  int64_t d[3][4] = {{s->n, s->h, s->w, s->c}, {s->h, s->w, s->c, s->n}, {s->n, s->c, s->h, s->w}};
  memcpy(to, d[part >= PLANES ? 2 : part >= IMAGES], sizeof d[0]);
}

/* Dimensions of the second operand: the filter, whose input and output change places in the gradient of the input, or what
 * comes back to the result. */
static void second_dims(const Shape *s, What part, int64_t to[4]) {
  int64_t cg = s->c / s->groups,
          d[8][4] = {{3, 3, cg, s->o},
                     {3, 3, s->o, cg},
                     {s->n, s->h + 2 * s->pad - 2, s->w + 2 * s->pad - 2, s->o},
                     {5, 5, s->c, s->o},
                     {5, 5, s->o, s->c},
                     {s->h + 2 * s->pad - 4, s->w + 2 * s->pad - 4, s->o, s->n},
                     {s->o, s->c, 5, 5},
                     {s->c, s->o, 5, 5}};
  memcpy(to, d[part], sizeof d[0]);
}

/* [3, 3, c/groups, o], in groups of channels [3, 3, groups, c/groups, o/groups]. */
static Node *filter_node(Graph *g, const Shape *s, Node *x, Node *y) {
  int64_t cg = s->c / s->groups, og = s->o / s->groups, n = s->n, h = y->dims[1], w = y->dims[2];
  int32_t pad = -(int32_t)s->pad;
  if (s->groups == 1) {
    int64_t ext[7] = {3, 3, s->c, s->o, n, h, w};
    AffDim mx[4] = {aff_loop(4), {0, 5, 1, 1, pad, 1}, {1, 6, 1, 1, pad, 1}, aff_loop(2)};
    AffDim my[4] = {aff_loop(4), aff_loop(5), aff_loop(6), aff_loop(3)};
    return g_contract(g, x, y, 4, 7, ext, mx, my);
  }
  int64_t ext[8] = {3, 3, s->groups, cg, og, n, h, w};
  AffDim mx[4] = {aff_loop(5),
                  {0, 6, 1, 1, pad, 1},
                  {1, 7, 1, 1, pad, 1},
                  {2, 3, (int32_t)cg, 1, 0, 1}};
  AffDim my[4] = {aff_loop(5), aff_loop(6), aff_loop(7), {2, 4, (int32_t)og, 1, 0, 1}};
  return g_contract(g, x, y, 5, 8, ext, mx, my);
}

/* [h, w, o, n] of x [h, w, c, n] and w [5, 5, c, o] or, for the gradient of an input, [5, 5, o, c] read backwards. */
static Node *images_node(Graph *g, const Shape *s, Node *x, Node *w, bool gradient) {
  int32_t sign = gradient ? -1 : 1, from = gradient ? 4 - (int32_t)s->pad : -(int32_t)s->pad;
  int64_t ext[7] = {s->h + 2 * s->pad - 4, s->w + 2 * s->pad - 4, s->o, s->n, 5, 5, s->c};
  AffDim mx[4] = {{0, 4, 1, sign, from, 1}, {1, 5, 1, sign, from, 1}, aff_loop(6), aff_loop(3)};
  AffDim mw[4] = {aff_loop(4), aff_loop(5), aff_loop(gradient ? 2 : 6), aff_loop(gradient ? 6 : 2)};
  return g_contract(g, x, w, 4, 7, ext, mx, mw);
}

/* [n, o, h, w] of x [n, c, h, w] and w [o, c, 5, 5] or, for the gradient of an input, [c, o, 5, 5] read backwards. */
static Node *planes_node(Graph *g, const Shape *s, Node *x, Node *w, bool gradient) {
  int32_t sign = gradient ? -1 : 1, from = gradient ? 4 - (int32_t)s->pad : -(int32_t)s->pad;
  int64_t ext[7] = {s->n, s->o, s->h + 2 * s->pad - 4, s->w + 2 * s->pad - 4, s->c, 5, 5};
  AffDim mx[4] = {aff_loop(0), aff_loop(4), {2, 5, 1, sign, from, 1}, {3, 6, 1, sign, from, 1}};
  AffDim mw[4] = {aff_loop(gradient ? 4 : 1), aff_loop(gradient ? 1 : 4), aff_loop(5), aff_loop(6)};
  return g_contract(g, x, w, 4, 7, ext, mx, mw);
}

/* [5, 5, o, c] of x [h, w, c, n] and y [h, w, o, n]. */
static Node *taps_node(Graph *g, const Shape *s, Node *x, Node *y) {
  int32_t pad = -(int32_t)s->pad;
  int64_t ext[7] = {5, 5, s->o, s->c, y->dims[0], y->dims[1], s->n};
  AffDim mx[4] = {{0, 4, 1, 1, pad, 1}, {1, 5, 1, 1, pad, 1}, aff_loop(3), aff_loop(6)};
  AffDim my[4] = {aff_loop(4), aff_loop(5), aff_loop(2), aff_loop(6)};
  return g_contract(g, x, y, 4, 7, ext, mx, my);
}

/* x [n, h, w, c] and w [3, 3, c/groups, o] or, for the gradient of an input, [3, 3, o, c] read backwards. */
static Node *conv_node(Graph *g, DType t, const Shape *s, What part) {
  bool gradient = part == INPUT;
  int64_t out_h = s->h + 2 * s->pad - 2, out_w = s->w + 2 * s->pad - 2, cg = s->c / s->groups,
          og = s->o / s->groups;
  int64_t xd[4], wd[4];
  first_dims(s, part, xd);
  second_dims(s, part, wd);
  Node *x = g_feed(g, "x", t, 4, xd), *w = g_feed(g, "w", t, 4, wd);
  if (part == FILTER) return filter_node(g, s, x, w);
  if (part == IMAGES_FILTER) return taps_node(g, s, x, w);
  if (part >= PLANES) return planes_node(g, s, x, w, part == PLANES_INPUT);
  if (part >= IMAGES) return images_node(g, s, x, w, part == IMAGES_INPUT);
  int32_t sign = gradient ? -1 : 1;
  int64_t from = gradient ? 2 - s->pad : -s->pad;
  if (s->groups == 1) {
    int64_t ext[7] = {s->n, out_h, out_w, s->o, 3, 3, cg};
    AffDim mx[4] = {aff_loop(0), {1, 4, 1, sign, from, 1}, {2, 5, 1, sign, from, 1}, aff_loop(6)};
    AffDim mw[4] = {aff_loop(4), aff_loop(5), aff_loop(gradient ? 3 : 6),
                    aff_loop(gradient ? 6 : 3)};
    return g_contract(g, x, w, 4, 7, ext, mx, mw);
  }
  int64_t ext[8] = {s->n, out_h, out_w, s->groups, og, 3, 3, cg};
  AffDim mx[4] = {aff_loop(0),
                  {1, 5, 1, 1, from, 1},
                  {2, 6, 1, 1, from, 1},
                  {3, 7, (int32_t)cg, 1, 0, 1}};
  AffDim mw[4] = {aff_loop(5), aff_loop(6), aff_loop(7), {3, 4, (int32_t)og, 1, 0, 1}};
  return g_contract(g, x, w, 5, 8, ext, mx, mw);
}

static const Tensor *exact(Arena *a, const Shape *s, What part, Map *values) {
  Graph *g = graph_new(NULL, false);
  Node *y = conv_node(g, DT_FLOAT64, s, part);
  NamedNode out = {"y", y, NULL};
  vec_add(g->arena, &g->fetches, out);
  graph_number(g);
  EvalEnv env = {.lookup = feed, .user = values};
  Tensor **all = arena_array(a, Tensor *, g->nodes.n);
  assert_true(graph_eval(g, &env, a, all));
  const Tensor *t = all[y->id];
  graph_free(g);
  return t;
}

static void run_code(const KernelCode *c, void *const *bufs, int64_t step) {
  RunCtx ctx = {.scratch = mem_alloc((size_t)c->scratch_bytes + 64),
                .scratch_bytes = (size_t)c->scratch_bytes};
  memset(ctx.scratch, 0xff, ctx.scratch_bytes);
  for (int p = 0; p < c->n_phases; p++)
    for (int64_t t = 0, n = c->phase[p].n_tasks; t < n; t += step)
      c->phase[p].fn(c->phase[p].self, bufs, t, t + step < n ? t + step : n, &ctx);
  mem_free(ctx.scratch);
}

/* Stands for a generated epilogue: sign changes, over whole rows. */
static int64_t row_numel;
static void negate(const void *self, void *const *bufs, int64_t begin, int64_t end, RunCtx *ctx) {
  (void)self, (void)ctx;
  float *y = bufs[2];
  for (int64_t i = begin * row_numel; i < end * row_numel; i++) y[i] = -y[i];
}

static Kernel kernel_of(Arena *a, Node *node, Node *result, double allowed) {
  Kernel k = {
      .kind = K_CONTRACT, .name = "k", .rank = node->rank, .core = node, .conv_error = allowed};
  memcpy(k.ext, node->dims, sizeof k.ext);
  vec_add(a, &k.nodes, node);
  for (int i = 0; i < 2; i++) vec_add(a, &k.inputs, ((KernelInput){node->in[i], false, false}));
  vec_add(a, &k.outputs, result);
  return k;
}

static int side_of(const Plan *p, What part) {
  static const PlanKind kinds[] = {PLAN_CONV,   PLAN_CONV,        PLAN_FILTER, PLAN_IMAGES,
                                   PLAN_IMAGES, PLAN_IMAGES_GRAD, PLAN_IMAGES, PLAN_IMAGES};
  if (part >= PLANES && p->kind != PLAN_IMAGES) return 0;
  assert_int_equal(p->kind, kinds[part]);
  if (part == FILTER) return 2 * p->filter->winograd.used;
  if (part == IMAGES_FILTER) return 2 * p->images_grad->winograd;
  if (part == IMAGES_INPUT) return 2 * p->images->back;
  return part >= IMAGES ? 2 * p->images->winograd : p->conv->winograd.m;
}

static double worst; /* of the last check, relative to the largest result */

/* Runs one; returns the results of a tile's side, 0: not by Winograd's algorithm. */
static int check(const Shape *s, What part, double allowed, bool epilogue) {
  Arena *a = arena_new();
  Map *values[2] = {map_new(a), map_new(a)};
  int64_t first[4], second[4];
  first_dims(s, part, first);
  second_dims(s, part, second);
  fill(a, values, "x", first);
  fill(a, values, "w", second);
  Graph *g = graph_new(NULL, false);
  Node *node = conv_node(g, DT_FLOAT32, s, part);
  Node maps = {.prim = P_ADD, .dtype = DT_FLOAT32, .rank = node->rank};
  memcpy(maps.dims, node->dims, sizeof maps.dims);
  graph_number(g);
  Kernel k = kernel_of(a, node, epilogue ? &maps : node, allowed);
  Plan *p = contract_plan(a, &k, false);
  int m = side_of(p, part);
  CodeBatch *batch = code_batch(a);
  plan_micro(p, batch);
  assert_true(code_make(batch, NULL));
  KernelCode code = {0};
  contract_code(p, epilogue ? negate : NULL, &code);
  int64_t numel = node_numel(node);
  row_numel = numel / (p->frame.rows * p->frame.parts);
  const Tensor *want = exact(a, s, part, values[1]);
  float *got[2];
  for (int i = 0; i < 2; i++) {
    got[i] = arena_alloc(a, (size_t)numel * 4 + 64);
    memset(got[i], 0xff, (size_t)numel * 4); /* NaN */
    void *ws = mem_alloc((size_t)p->work.workspace + 64);
    memset(ws, 0xff, (size_t)p->work.workspace);
    Tensor *x = map_get(values[0], "x"), *w = map_get(values[0], "w");
    run_code(&code, (void *[]){x->data, w->data, got[i], ws}, i ? 1 : INT32_MAX);
    mem_free(ws);
  }
  assert_memory_equal(got[0], got[1], numel * 4);
  double largest = 0, error = 0;
  for (int64_t i = 0; i < numel; i++) {
    double y = tensor_get(want, i);
    largest = fmax(largest, fabs(y));
    double off = fabs((epilogue ? -y : y) - (double)got[0][i]);
    error = off <= error ? error : off; /* NaN counts */
  }
  worst = error / largest;
  if (!(error <= allowed * largest) && m)
    fail_msg("an error of %.2g of the largest result, not %.2g: m %d, %lld x %lld, %lld to %lld",
             error / largest, allowed, m, (long long)s->h, (long long)s->w, (long long)s->c,
             (long long)s->o);
  code_free(batch);
  graph_free(g);
  arena_free(a);
  return m;
}

static const Shape shapes[] = {{1, 64, 64, 1, 28, 28, 1},   {1, 64, 96, 1, 30, 17, 1},
                               {2, 32, 48, 1, 13, 26, 0},   {1, 128, 128, 1, 7, 7, 1},
                               {3, 48, 80, 1, 9, 31, 2},    {2, 64, 128, 2, 16, 12, 1},
                               {1, 16, 64, 1, 40, 5, 1},    {1, 512, 64, 1, 6, 10, 1},
                               {1, 256, 256, 1, 14, 14, 1}, {1, 1024, 32, 1, 20, 20, 1},
                               {1, 80, 32, 1, 12, 12, 1},   {1, 64, 128, 1, 6, 6, 1},
                               {2, 128, 64, 1, 6, 6, 1}};
enum { SHAPES = sizeof shapes / sizeof *shapes };
/* of gradients of filters: shares and one sum, odd sizes and even, blocks of rows in several images, groups, no padding */
static const Shape filters[] = {{4, 64, 64, 1, 28, 28, 1}, {1, 128, 192, 1, 26, 30, 1},
                                {9, 48, 80, 1, 7, 9, 1},   {2, 64, 64, 1, 15, 31, 2},
                                {2, 32, 64, 1, 33, 20, 0}, {2, 128, 64, 2, 16, 13, 1}};
enum { FILTERS = sizeof filters / sizeof *filters };

static void test_errors(void **state) {
  (void)state;
  int seen[5] = {0};
  for (int i = 0; i < SHAPES; i++)
    for (int how = 0; how < 2; how++)
      seen[check(&shapes[i], how && shapes[i].groups == 1 ? INPUT : FORWARD, SUM_ERROR, i & 1)]++;
  assert_true(seen[2] && seen[4] && seen[2] + seen[4] == 2 * SHAPES);
}

/* Tiles of 2 x 2 err less than plain sums: they may stand in for them. */
static void test_sums(void **state) {
  (void)state;
  int small = 0;
  for (int i = 0; i < SHAPES; i++) {
    uint32_t seed = noise_state;
    if (check(&shapes[i], FORWARD, SUM_ERROR, false) != 2) continue;
    double error = worst;
    small++;
    noise_state = seed;
    assert_int_equal(check(&shapes[i], FORWARD, 0, false), 0);
    if (!(error <= worst)) fail_msg("shape %d: %.2g, plain sums %.2g", i, error, worst);
  }
  assert_true(small >= 3);
}

/* Gradients of filters err less than the half of what is allowed. */
static void test_filters(void **state) {
  (void)state;
  for (int i = 0; i < FILTERS; i++) {
    assert_int_equal(check(&filters[i], FILTER, SUM_ERROR, i & 1), 2);
    assert_true(worst <= SUM_ERROR / 2);
  }
}

/* Channels last: no vectors, one or several; odd sizes; padding; panels of one vector and of several. They err no more than sums. */
static void test_images(void **state) {
  static const Shape last[] = {{64, 20, 50, 1, 12, 12, 0},
                               {32, 24, 45, 1, 11, 13, 2},
                               {16, 64, 40, 1, 13, 10, 1},
                               {80, 17, 50, 1, 16, 12, 0}};
  static const Shape sums[] = {{64, 65, 50, 1, 12, 12, 0},
                               {20, 20, 50, 1, 12, 12, 0},
                               {64, 20, 50, 1, 10, 12, 0},
                               {64, 20, 2, 1, 12, 12, 0}};
  (void)state;
  for (int i = 0; i < 4; i++) {
    uint32_t seed = noise_state;
    if (check(&last[i], IMAGES, SUM_ERROR, i & 1) != 2) fail_msg("shape %d: sums", i);
    double error = worst;
    noise_state = seed;
    assert_int_equal(check(&last[i], IMAGES, 0, false), 0);
    if (!(error <= worst)) fail_msg("shape %d: %.2g, plain sums %.2g", i, error, worst);
    assert_int_equal(check(&last[i], IMAGES, NAN, false), 0);
    assert_int_equal(check(&sums[i], IMAGES, 1, false), 0);
  }
}

/* Planes: rows of 4 tiles, more and fewer; odd sizes; padding by odd and even numbers; fewer
 * channels than are read together, and a rest of them; one image, and some. What allows less, or has too many channels or
 * positions, or too few filters, runs as sums. */
static void test_planes(void **state) {
  static const Shape planes[] = {{1, 20, 50, 1, 12, 12, 0}, {2, 64, 40, 1, 9, 10, 1},
                                 {3, 24, 45, 1, 11, 12, 0}, {1, 42, 96, 1, 11, 13, 2},
                                 {2, 32, 48, 1, 8, 8, 2},   {1, 47, 120, 1, 12, 11, 2}};
  static const Shape sums[] = {{1, 65, 50, 1, 12, 12, 0},
                               {1, 20, 2, 1, 12, 12, 0},
                               {1, 3, 64, 1, 180, 180, 0}};
  (void)state;
  for (int i = 0; i < 6; i++)
    for (int part = PLANES; part <= PLANES_INPUT; part++) {
      if (check(&planes[i], (What)part, SUM_ERROR, i & 1) != 2) fail_msg("shape %d: sums", i);
      if (!(worst <= 1.5e-6)) fail_msg("shape %d: %.2g", i, worst);
      assert_int_equal(check(&planes[i], (What)part, 0, false), 0);
      assert_int_equal(check(&planes[i], (What)part, NAN, false), 0);
    }
  for (int i = 0; i < 3; i++) assert_int_equal(check(&sums[i], PLANES, 1, false), 0);
}

/* Gradients with the images last: odd sizes, with and without padding; tiles of which several make a run, and shares. They err no more
 * than is allowed for sums; what allows less, or is too small, runs as sums. */
static void test_images_gradients(void **state) {
  static const Shape input[] = {{64, 50, 20, 1, 8, 8, 4},
                                {32, 24, 45, 1, 11, 13, 4},
                                {80, 33, 50, 1, 7, 10, 4},
                                {64, 40, 36, 1, 12, 13, 3}};
  static const Shape filter[] = {{64, 20, 50, 1, 12, 12, 0},
                                 {32, 24, 45, 1, 21, 23, 2},
                                 {48, 24, 40, 1, 23, 20, 1},
                                 {80, 17, 50, 1, 16, 12, 0}};
  (void)state;
  for (int i = 0; i < 8; i++) {
    What part = i < 4 ? IMAGES_INPUT : IMAGES_FILTER;
    Shape s = i < 4 ? input[i] : filter[i - 4];
    if (check(&s, part, SUM_ERROR, i & 1) != 2) fail_msg("shape %d: sums", i);
    assert_int_equal(check(&s, part, 0, false), 0);
    assert_int_equal(check(&s, part, NAN, false), 0);
    s.n = 20;
    assert_int_equal(check(&s, part, 1, false), 0);
  }
  assert_int_equal(check(&(Shape){64, 20, 2, 1, 12, 12, 2}, IMAGES_INPUT, 1, false), 0);
  assert_int_equal(check(&(Shape){64, 1, 20, 1, 28, 28, 0}, IMAGES_FILTER, 1, false), 0);
}

static void test_instruction_sets(void **state) {
  static const char *const sets[] = {"AVX512", "AVX2"};
  (void)state;
  for (int i = 0; i < 2; i++) {
    micro_isa = sets[i];
    if (tile_isa() != ISA_NONE)
      for (int e = 0; e < 2; e++)
        assert_int_equal(check(&shapes[e ? 0 : 3], FORWARD, SUM_ERROR, true), e ? 4 : 2);
    if (tile_isa() != ISA_NONE) assert_int_equal(check(&filters[2], FILTER, 2e-6, true), 2);
    if (tile_isa() != ISA_NONE)
      for (int part = IMAGES; part <= IMAGES_FILTER; part++)
        if (check(&(Shape){64, 24, 40, 1, 16, 13, 4}, (What)part, SUM_ERROR, true) != 2)
          fail_msg("%s, part %d: sums", sets[i], part);
    if (tile_isa() != ISA_NONE)
      assert_int_equal(check(&(Shape){1, 20, 50, 1, 12, 12, 0}, PLANES, SUM_ERROR, true), 2);
    micro_isa = NULL;
  }
}

/* Results of 7 x 7 fill few tiles, and their filters come from memory: it serves where arithmetic is slow beside memory. */
static void test_processors(void **state) {
  static const Shape small = {16, 512, 512, 1, 7, 7, 1};
  static const struct {
    const char *name;
    int m;
  } cpus[] = {{"cpu:sapphirerapids", 0}, {"cpu:znver4", 2}};
  (void)state;
  for (int i = 0; i < 2; i++) {
    Arena *a = arena_new();
    Graph *g = graph_new(NULL, false);
    Node *node = conv_node(g, DT_FLOAT32, &small, FORWARD);
    graph_number(g);
    Kernel k = kernel_of(a, node, node, SUM_ERROR);
    tiles_for(cpus[i].name);
    assert_int_equal(contract_plan(a, &k, false)->conv->winograd.m, cpus[i].m);
    tiles_for(NULL);
    graph_free(g);
    arena_free(a);
  }
}

/* Nothing allowed, or too little; and channels that are no vectors. */
static void test_direct(void **state) {
  static const Shape odd[] = {{1, 20, 64, 1, 28, 28, 1}, {1, 64, 50, 1, 28, 28, 1}};
  static const double little[] = {0, -1, 1e-6, NAN};
  (void)state;
  for (int i = 0; i < 4; i++) {
    assert_int_equal(check(&shapes[0], FORWARD, little[i], false), 0);
    assert_int_equal(check(&filters[0], FILTER, little[i], false), 0);
  }
  for (int i = 0; i < 2; i++)
    for (int part = 0; part <= FILTER; part += FILTER)
      assert_int_equal(check(&odd[i], (What)part, 1, false), 0);
}

/* The option of an executor: other executables, whose results are near and not the same; by default Winograd's, which
 * deterministic runs leave. */
static void test_option(void **state) {
  (void)state;
  static const kl_exec_options options[] = {
      {.conv_error = -1},   {.deterministic = true}, {.conv_error = 0},
      {.conv_error = 2e-6}, {.conv_error = 1e-5},    {.conv_error = 1e-5, .deterministic = true}};
  enum { N = sizeof options / sizeof *options };
  float x[32 * 20 * 20], y[N][64 * 20 * 20];
  for (int i = 0; i < 32 * 20 * 20; i++) x[i] = (float)noise();
  kl_net *net = kl_net_new();
  kl_var *in = kl_data(net, "x", KL_FLOAT32, 1, 32, 20, 20);
  kl_var *w = kl_parameter(net, "w", KL_FLOAT32, 4, (int64_t[]){64, 32, 3, 3},
                           (kl_param){.name = "w"}, false);
  kl_var *out = kl_op(net, "conv2d", "paddings=[1,1]", "Input", in, "Filter", w);
  assert_non_null(out);
  kl_exec *exe = kl_exec_new((kl_exec_options){.threads = 1, .seed = 3});
  assert_true(kl_run(exe, kl_startup(net), NULL, NULL));
  kl_scope *scope = kl_exec_scope(exe);
  kl_tensor tx = {KL_FLOAT32, 4, {1, 32, 20, 20}, x};
  for (int i = 0; i < N; i++) {
    kl_exec_options o = options[i];
    o.threads = i + 1, o.scope = scope;
    kl_exec *e = kl_exec_new(o);
    kl_tensor ty = {KL_FLOAT32, 4, {1, 64, 20, 20}, y[i]};
    assert_true(kl_run(e, kl_main(net), kl_feeds({"x", &tx}), kl_fetches({out->name, &ty})));
    kl_exec_free(e);
  }
  for (int k = 2; k < N; k += 2) {
    double largest = 0, off = 0;
    for (int i = 0; i < 64 * 20 * 20; i++) {
      largest = fmax(largest, fabs((double)y[0][i]));
      off = fmax(off, fabs((double)y[k][i] - (double)y[0][i]));
    }
    assert_true(off > 0 && off < (k == 2 ? 4e-6 : 1.2e-5) * largest);
  }
  for (int k = 0; k < N; k += 2) assert_memory_equal(y[k], y[k + 1], sizeof y[k]);
  kl_exec_free(exe);
  kl_net_free(net);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_errors),           cmocka_unit_test(test_sums),
      cmocka_unit_test(test_filters),          cmocka_unit_test(test_images),
      cmocka_unit_test(test_instruction_sets), cmocka_unit_test(test_processors),
      cmocka_unit_test(test_direct),           cmocka_unit_test(test_option),
      cmocka_unit_test(test_images_gradients), cmocka_unit_test(test_planes),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
