/* Contractions of the CPU backend against the interpreter, for every algorithm and many shapes: products, convolutions
 * with their gradients, and loops in other orders; the epilogue's rows; equal bits for any split of the tasks. */
#include "contract_case.h"

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
  Node *a = feeds_add(g, &f, "a", t, r + 2, da), *b = feeds_add(g, &f, "b", t, r + 2, db);
  assert_non_null(g_matmul(g, a, b, ta, tb));
  contract_check_all(g, &f, (int[]){p->kind}, t == DT_FLOAT32 && ta == tb && p->k < 100);
  contract_constant = true; /* a row times a matrix that is packed once */
  if (p->m == 1 || p->n == 1) contract_check_all(g, &f, NULL, false);
  contract_constant = false;
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
  Node *x = feeds_add(g, &f, "x", t, p->n_sp + 2, dx),
       *w = feeds_add(g, &f, "w", t, p->n_sp + 2, dw);
  Node *y = g_conv(g, x, w, p->n_sp, p->stride, p->lo, p->hi, p->dil, p->groups);
  if (!y) err_print(stderr, false);
  assert_non_null(y);
  Node *gy = feeds_add(g, &f, "gy", t, y->rank, y->dims), *xs[2] = {x, w}, *gxs[2];
  assert_true(derive(g, 1, &y, &gy, 2, xs, gxs));
  contract_check_all(g, &f, kinds, t == DT_FLOAT32 && p->n < 10 && p->in[0] < 50);
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
  Node *x = feeds_add(g, &f, "x", DT_FLOAT32, 4, dx), *w = feeds_add(g, &f, "w", DT_FLOAT32, 4, dw),
       *xs[2] = {x, w}, *gxs[2];
  Node *y = g_conv(g, x, w, 2, lenet.stride, lenet.lo, lenet.hi, lenet.dil, 1);
  Node *gy = feeds_add(g, &f, "gy", DT_FLOAT32, 4, dy);
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

/* How many of the graph's contractions an algorithm serves that nobody asked for. */
static int served_by(Graph *g, Feeds *f, PlanKind kind) {
  int n = 0;
  for (int i = 0; i < g->nodes.n; i++) {
    Node *c = g->nodes.v[i];
    if (c->prim != P_CONTRACT) continue;
    Kernel k = {.kind = K_CONTRACT, .core = c};
    for (int x = 0; x < 2; x++)
      vec_add(f->a, &k.inputs, ((KernelInput){c->in[x], false, contract_constant}));
    vec_add(f->a, &k.outputs, c);
    n += contract_plan(f->a, &k, false)->kind == kind;
  }
  return n;
}

/* Forward, and the gradients of input and filter as derivation makes them, all operands channels-last. */
static void check_channels_last(const Nhwc *v, int by_conv) {
  Feeds f = feeds_new();
  Graph *g = graph_new(NULL, false);
  int64_t oh = out_size(v, v->h, v->kh), ow = out_size(v, v->w, v->kw), gr = v->groups;
  int64_t dx[4] = {v->n, v->h, v->w, v->c * gr}, dw[4] = {v->kh, v->kw, v->c, v->o * gr};
  int s = (int)v->stride, d = (int)v->dilation, p = -(int)v->pad;
  int64_t ext[8] = {v->n, oh, ow, gr, v->o, v->kh, v->kw, v->c};
  AffDim mx[4] = {aff_loop(0), loop2(1, s, 5, d, p), loop2(2, s, 6, d, p),
                  loop2(3, (int)v->c, 7, 1, 0)};
  AffDim mw[4] = {aff_loop(5), aff_loop(6), aff_loop(7), loop2(3, (int)v->o, 4, 1, 0)};
  Node *x = feeds_add(g, &f, "x", DT_FLOAT32, 4, dx), *w = feeds_add(g, &f, "w", DT_FLOAT32, 4, dw);
  Node *y = g_contract(g, x, w, 5, 8, ext, mx, mw);
  assert_non_null(y);
  assert_non_null(g_contract(g, w, x, 5, 8, ext, mw, mx)); /* operands swapped */
  Node *gy = feeds_add(g, &f, "gy", DT_FLOAT32, 5, y->dims), *xs[2] = {x, w}, *gxs[2];
  assert_true(derive(g, 1, &y, &gy, 2, xs, gxs));
  contract_check_all(g, &f, NULL, true);
  if (by_conv >= 0) assert_int_equal(served_by(g, &f, PLAN_CONV), by_conv);
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
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) check_channels_last(&all[i], ANY);
  /* groups of few channels: forward, with either operand first */
  static const Nhwc narrow[] = {{1, 28, 28, 4, 8, 4, 3, 3, 1, 1, 1},
                                {2, 30, 29, 3, 32, 2, 3, 3, 2, 1, 1},
                                {1, 40, 40, 5, 9, 7, 3, 3, 1, 2, 2}};
  for (size_t i = 0; i < sizeof narrow / sizeof *narrow; i++) check_channels_last(&narrow[i], 2);
  /* a few filters of many channels, or the gradient of an input of a few: dot products; all but the filter's gradient */
  static const Nhwc few[] = {{1, 40, 41, 64, 1, 3, 3, 3, 1, 1, 1},
                             {2, 30, 29, 21, 1, 5, 3, 5, 2, 2, 3},
                             {1, 50, 50, 70, 1, 7, 3, 3, 1, 1, 1},
                             {1, 46, 47, 3, 1, 64, 7, 7, 2, 1, 3}};
  for (size_t i = 0; i < sizeof few / sizeof *few; i++) check_channels_last(&few[i], 3);
  micro_isa = "AVX2"; /* where the machine has AVX-512 too */
  for (size_t i = 0; i < 2 && tile_isa() != ISA_NONE; i++) check_channels_last(&few[i], 3);
  micro_isa = NULL;
  check_channels_last(&(Nhwc){1, 60, 60, 400, 1, 3, 1, 1, 1, 1, 0}, 2);
  /* a small image */
  check_channels_last(&(Nhwc){1, 14, 14, 16, 1, 32, 3, 3, 2, 1, 1}, 3);
}

/* Convolutions with one position, and transposed from one, whose constant filters [o, c, h, w] and [c, o, h, w] have another order
 * than the channels-last input and result. */
static void test_one_position(void **state) {
  (void)state;
  enum { H = 4, W = 5, C = 136, O = 250 };
  for (int64_t images = 1; images <= 5; images += 4) {
    Feeds f = feeds_new();
    Graph *g = graph_new(NULL, false);
    int64_t dx[4] = {images, H, W, C}, dw[4] = {O, C, H, W}, dv[2] = {images, O};
    int64_t down[5] = {images, O, H, W, C}, up[5] = {images, H, W, C, O};
    Node *x = feeds_add(g, &f, "x", DT_FLOAT32, 4, dx),
         *w = feeds_add(g, &f, "w", DT_FLOAT32, 4, dw);
    Node *v = feeds_add(g, &f, "v", DT_FLOAT32, 2, dv);
    AffDim mx[4] = {aff_loop(0), aff_loop(2), aff_loop(3), aff_loop(4)};
    AffDim mw[4] = {aff_loop(1), aff_loop(4), aff_loop(2), aff_loop(3)};
    AffDim mv[2] = {aff_loop(0), aff_loop(4)};
    AffDim mu[4] = {aff_loop(4), aff_loop(3), aff_loop(1), aff_loop(2)};
    assert_non_null(g_contract(g, x, w, 2, 5, down, mx, mw));
    assert_non_null(g_contract(g, v, w, 4, 5, up, mv, mu));
    contract_check_all(g, &f, NULL, true);
    contract_constant = true;
    contract_check_all(g, &f, NULL, true);
    assert_int_equal(served_by(g, &f, PLAN_CONV),
                     images == 1 ? 2 : 1); /* of images, only the transposed */
    contract_constant = false;
    graph_free(g);
    arena_free(f.a);
  }
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
  Node *x = feeds_add(g, &f, "x", t, 4, dx), *w = feeds_add(g, &f, "w", t, 4, dw);
  Node *y = g_contract(g, x, w, 4, 7, ext, mx, mw);
  assert_non_null(y);
  assert_non_null(g_contract(g, w, x, 4, 7, ext, mw, mx)); /* operands swapped */
  Node *gy = feeds_add(g, &f, "gy", t, 4, y->dims), *xs[2] = {x, w}, *gxs[2];
  assert_true(derive(g, 1, &y, &gy, 2, xs, gxs));
  contract_check_all(g, &f, NULL, true);
  Tensor **values = arena_array(f.a, Tensor *, g->nodes.n);
  assert_true(graph_eval(g, &(EvalEnv){.lookup = feeds_lookup, .user = &f}, f.a, values));
  int found[8] = {0};
  contract_choice = WAY_IMAGES;
  for (int i = 0; i < g->nodes.n; i++)
    for (int e = 0; e < 2 && g->nodes.v[i]->prim == P_CONTRACT; e++)
      found[contract_check(f.a, g->nodes.v[i], values, e, false)]++;
  contract_choice = WAY_RULE;
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
  Node *a = feeds_add(g, &f, "a", DT_FLOAT32, 3, da), *b = feeds_add(g, &f, "b", DT_FLOAT32, 3, db);
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
  contract_check_all(g, &f, NULL, true);
  graph_free(g);
  arena_free(f.a);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_products),
                                     cmocka_unit_test(test_convolutions),
                                     cmocka_unit_test(test_algorithms),
                                     cmocka_unit_test(test_images_last),
                                     cmocka_unit_test(test_channels_last),
                                     cmocka_unit_test(test_one_position),
                                     cmocka_unit_test(test_awkward)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
