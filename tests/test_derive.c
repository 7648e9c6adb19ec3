/* Derivatives of every primitive against central differences in float64. A case builds y from its inputs; the loss
 * is the sum of y times fixed weights. With second derivatives on, the same is asked of the sum of the first
 * gradients times other weights. */
#include "../ir/ir.h"
#include <math.h>
#include <setjmp.h>
#include <string.h>
#include <cmocka.h>

enum { MAX_IN = 3 };

typedef struct Case {
  const char *name;
  int order; /* 1 or 2 */
  int n_in;
  struct {
    int rank;
    int64_t dims[5];
  } in[MAX_IN];
  Node *(*build)(Graph *g, Node **x);
  double lo, hi; /* range of the inputs; both 0: -1..1 */
} Case;

typedef struct Values {
  Tensor t[MAX_IN];
} Values;

static Tensor *lookup(void *user, const char *name, bool state) {
  (void)state;
  return &((Values *)user)->t[name[0] - '0'];
}

/* Deterministic numbers that are not close to one another, so that max and comparisons are smooth nearby. */
static double number(int64_t k, double lo, double hi) {
  double u = fmod(0.6180339887498949 * (double)(k + 1) + 0.1234, 1);
  return lo + (hi - lo) * u;
}

static Node *weighted_sum(Graph *g, Node *y, int salt) {
  int64_t n = node_numel(y);
  double *w = arena_array(g->arena, double, n);
  for (int64_t k = 0; k < n; k++) w[k] = number(7 * k + 1000 * salt, -1, 1);
  Node *p = g_map2(g, P_MUL, y, g_data(g, DT_FLOAT64, y->rank, y->dims, w, "w"));
  return g_reduce(g, P_RSUM, p, (1u << y->rank) - 1, false);
}

static Node *fetch(Graph *g, Node *n) {
  NamedNode f = {"", n, NULL};
  vec_add(g->arena, &g->fetches, f);
  return n;
}

static double value_of(Graph *g, const EvalEnv *env, const Node *loss) {
  Arena *a = arena_new();
  Tensor **v = arena_array(a, Tensor *, g->nodes.n);
  assert_true(graph_eval(g, env, a, v));
  double r = tensor_get(v[loss->id], 0);
  arena_free(a);
  return r;
}

/* gx[k] is the gradient node of input k of `loss`. */
static void compare(const Case *c, Graph *g, Values *in, const Node *loss, Node *const *gx) {
  EvalEnv env = {lookup, in, 1, 0};
  Arena *a = arena_new();
  Tensor **v = arena_array(a, Tensor *, g->nodes.n);
  assert_true(graph_eval(g, &env, a, v));
  for (int k = 0; k < c->n_in; k++) {
    double *x = in->t[k].data;
    for (int64_t i = 0; i < tensor_numel(&in->t[k]); i++) {
      double keep = x[i], h = 1e-5;
      x[i] = keep + h;
      double up = value_of(g, &env, loss);
      x[i] = keep - h;
      double down = value_of(g, &env, loss);
      x[i] = keep;
      double want = (up - down) / (2 * h), got = gx[k] ? tensor_get(v[gx[k]->id], i) : 0;
      if (!(fabs(want - got) <= 1e-5 * fmax(1, fabs(want))))
        fail_msg("%s: input %d, element %d: gradient %.9g, differences %.9g", c->name, k, (int)i,
                 got, want);
    }
  }
  arena_free(a);
}

static void run_case(const Case *c) {
  Graph *g = graph_new(NULL, false);
  Values in;
  Node *x[MAX_IN], *gx[MAX_IN], *one = g_const(g, DT_FLOAT64, 1);
  double lo = c->lo == c->hi ? -1 : c->lo, hi = c->lo == c->hi ? 1 : c->hi;
  for (int k = 0; k < c->n_in; k++) {
    const char *name = arena_fmt(g->arena, "%d", k);
    x[k] = g_feed(g, name, DT_FLOAT64, c->in[k].rank, c->in[k].dims);
    assert_true(tensor_make(&in.t[k], g->arena, DT_FLOAT64, c->in[k].rank, c->in[k].dims));
    for (int64_t i = 0; i < node_numel(x[k]); i++)
      ((double *)in.t[k].data)[i] = number(i + 31 * k, lo, hi);
  }
  Node *y = c->build(g, x);
  if (!y) err_print(stderr, false);
  assert_non_null(y);
  Node *loss = fetch(g, weighted_sum(g, y, 1));
  assert_true(derive(g, 1, &loss, &one, c->n_in, x, gx));
  Node *sum = NULL;
  for (int k = 0; k < c->n_in; k++)
    if (gx[k]) {
      assert_true(node_same_shape(gx[k], x[k]));
      fetch(g, gx[k]);
      Node *s = weighted_sum(g, gx[k], 2 + k);
      sum = sum ? g_map2(g, P_ADD, sum, s) : s;
    }
  assert_false(err_any());
  assert_true(graph_verify(g));
  compare(c, g, &in, loss, gx);
  if (c->order == 2 && sum) {
    Node *g2[MAX_IN];
    fetch(g, sum);
    assert_true(derive(g, 1, &sum, &one, c->n_in, x, g2));
    for (int k = 0; k < c->n_in; k++)
      if (g2[k]) fetch(g, g2[k]);
    assert_true(graph_verify(g));
    compare(c, g, &in, sum, g2);
  }
  graph_free(g);
}

#define MAP1(NAME, P)                                                                              \
  static Node *b_##NAME(Graph *g, Node **x) { return g_map1(g, P, x[0]); }
#define MAP2(NAME, P)                                                                              \
  static Node *b_##NAME(Graph *g, Node **x) { return g_map2(g, P, x[0], x[1]); }
MAP1(exp, P_EXP)
MAP1(log, P_LOG)
MAP1(sqrt, P_SQRT)
MAP1(sin, P_SIN)
MAP1(tanh, P_TANH)
MAP1(erf, P_ERF)
MAP1(floor, P_FLOOR)
MAP2(add, P_ADD)
MAP2(sub, P_SUB)
MAP2(mul, P_MUL)
MAP2(div, P_DIV)
MAP2(mod, P_MOD)
MAP2(pow, P_POW)
MAP2(max, P_MAX)
MAP2(min, P_MIN)

static Node *b_square(Graph *g, Node **x) { return g_map2c(g, P_POW, x[0], 2); }
static Node *b_cube(Graph *g, Node **x) { return g_map2c(g, P_POW, x[0], 3); }
static Node *b_self(Graph *g, Node **x) { return g_map2(g, P_MUL, x[0], x[0]); }
static Node *b_select(Graph *g, Node **x) {
  return g_select(g, g_map2(g, P_LT, x[0], x[1]), g_map2(g, P_MUL, x[0], x[2]), x[1]);
}
static Node *b_select_leq(Graph *g, Node **x) {
  return g_select(g, g_map2(g, P_LE, x[1], x[0]), x[0], g_map2(g, P_MUL, x[1], x[2]));
}
static Node *b_rsum(Graph *g, Node **x) {
  return g_map1(g, P_SIN, g_reduce(g, P_RSUM, x[0], 5, false));
}
static Node *b_rmax(Graph *g, Node **x) { return g_reduce(g, P_RMAX, x[0], 2, true); }
static Node *b_rprod(Graph *g, Node **x) { return g_reduce(g, P_RPROD, x[0], 6, false); }
/* One and two zeros in a row. */
static Node *b_rprod_zeros(Graph *g, Node **x) {
  static const double keep[8] = {1, 0, 1, 1, 0, 1, 0, 1};
  int64_t d[2] = {2, 4};
  Node *z = g_map2(g, P_MUL, x[0], g_data(g, DT_FLOAT64, 2, d, keep, "keep"));
  return g_reduce(g, P_RPROD, z, 2, false);
}
static Node *b_reshape(Graph *g, Node **x) {
  return g_map1(g, P_EXP, g_reshape(g, x[0], 2, (int64_t[]){-1, 2}));
}

/* ---- views ---- */
static Node *twice(Graph *g, Node *n) { return g_map2(g, P_MUL, n, n); }
static Node *b_permute(Graph *g, Node **x) {
  return twice(g, g_permute(g, x[0], (int[]){2, 0, 1}));
}
static Node *b_expand(Graph *g, Node **x) {
  return twice(g, g_expand(g, x[0], 4, (int64_t[]){2, -1, 3, -1}));
}
static Node *b_slice(Graph *g, Node **x) {
  return twice(g, g_slice(g, x[0], (int64_t[]){1, 0}, (int64_t[]){2, 3}, (int64_t[]){2, 2}));
}
static Node *b_flip(Graph *g, Node **x) {
  return twice(g, g_slice(g, x[0], (int64_t[]){4, 4}, (int64_t[]){-1, -2}, (int64_t[]){5, 2}));
}
static Node *b_pad(Graph *g, Node **x) {
  Node *p = g_pad(g, x[0], (int64_t[]){1, -1}, (int64_t[]){2, 1}, 0.5);
  return twice(g, p);
}
static Node *b_window(Graph *g, Node **x) {
  return twice(g, g_window(g, x[0], 1, 2, (int64_t[]){3, 2}, (int64_t[]){2, 3}, (int64_t[]){1, 2},
                           (int64_t[]){1, 0}, (int64_t[]){1, 2}, 0.25));
}
static Node *b_maxpool(Graph *g, Node **x) {
  Node *w = g_window(g, x[0], 1, 2, (int64_t[]){3, 3}, (int64_t[]){2, 2}, (int64_t[]){1, 1},
                     (int64_t[]){1, 1}, (int64_t[]){1, 1}, -INFINITY);
  return g_reduce(g, P_RMAX, w, 0x18, false);
}
static Node *b_diagonal(Graph *g, Node **x) {
  AffDim map[2] = {aff_loop(0), aff_loop(0)};
  return twice(g, g_view(g, x[0], 1, (int64_t[]){4}, map, 0));
}
/* x[i, i+j], x[2], x[i+j, j+k]: solved by equations that depend on one another, or scattered */
static Node *b_skew(Graph *g, Node **x) {
  AffDim map[2] = {aff_loop(0), {0, 1, 1, 1, -1, 1}};
  return twice(g, g_view(g, x[0], 2, (int64_t[]){3, 4}, map, 0.5));
}
static Node *b_pick(Graph *g, Node **x) {
  AffDim map[2] = {aff_const(2), aff_loop(0)};
  return twice(g, g_view(g, x[0], 2, (int64_t[]){5, 2}, map, 0));
}
static Node *b_chain(Graph *g, Node **x) {
  AffDim map[2] = {{0, 1, 1, 1, 0, 1}, {1, 2, 1, -1, 2, 1}};
  return twice(g, g_view(g, x[0], 3, (int64_t[]){2, 3, 3}, map, 0));
}
static Node *b_divided(Graph *g, Node **x) {
  AffDim map[2] = {{0, 1, 2, -1, 1, 3}, {1, -1, 1, 0, 0, 2}};
  return twice(g, g_view(g, x[0], 2, (int64_t[]){6, 5}, map, 0));
}

/* ---- contractions ---- */
#define MATMUL(NAME, TA, TB)                                                                       \
  static Node *b_##NAME(Graph *g, Node **x) { return g_matmul(g, x[0], x[1], TA, TB); }
MATMUL(mm, false, false)
MATMUL(mm_tt, true, true)
#define CONV(NAME, NSP, GROUPS, ...)                                                               \
  static Node *b_##NAME(Graph *g, Node **x) {                                                      \
    static const int64_t p[4][3] = {__VA_ARGS__};                                                  \
    return g_conv(g, x[0], x[1], NSP, p[0], p[1], p[2], p[3], GROUPS);                             \
  }
CONV(conv, 2, 1, {1, 1}, {0, 0}, {0, 0}, {1, 1})
CONV(conv_all, 2, 1, {2, 1}, {1, 2}, {2, 0}, {2, 1})
CONV(conv_stride, 2, 1, {2, 3}, {1, 1}, {1, 1}, {1, 1})
CONV(conv_group, 2, 2, {2, 1}, {1, 0}, {0, 1}, {1, 2})
CONV(conv_crop, 1, 1, {2}, {-1}, {1}, {1})
static Node *b_square_diag(Graph *g, Node **x) { /* sum over k of a[i,i] * b[k]: only a cut helps */
  AffDim ma[2] = {aff_loop(0), aff_loop(0)}, mb[1] = {aff_loop(1)};
  return g_contract(g, x[0], x[1], 1, 2, (int64_t[]){3, 4}, ma, mb);
}
static Node *b_gram(Graph *g, Node **x) { return g_matmul(g, x[0], x[0], false, true); }

/* ---- the others ---- */
static Node *index_of(Graph *g, int rank, const int64_t *dims) {
  static const int64_t at[] = {2, 0, 1, 1, 2, 2, 0, 0};
  return g_data(g, DT_INT64, rank, dims, at, "at");
}
static Node *b_gather(Graph *g, Node **x) {
  return twice(g, g_gather(g, x[0], index_of(g, 2, (int64_t[]){4, 2}), 0));
}
/* The same indices in every row: one thrice, one never; and one too often for a sum over its places. */
static Node *b_table(Graph *g, Node **x) {
  static const int64_t few[7] = {2, 0, 0, 2, 4, 1, 2}, many[20] = {1, 2};
  int64_t n = 7, all = 20;
  Node *at = g_data(g, DT_INT64, 1, &n, few, "few");
  Node *a = g_gather(g, x[0], g_expand(g, at, 2, (int64_t[]){3, 7}), 1);
  at = g_reshape(g, g_data(g, DT_INT64, 1, &all, many, "many"), 2, (int64_t[]){20, 1});
  Node *b = g_gather(g, a, g_expand(g, at, 2, (int64_t[]){20, 7}), 0);
  return twice(g, b);
}
static Node *b_scatter(Graph *g, Node **x) {
  return twice(g, g_scatter(g, x[0], index_of(g, 2, (int64_t[]){4, 2}), x[1], 0, false));
}
static Node *b_assign(Graph *g, Node **x) {
  return twice(g, g_scatter(g, x[0], index_of(g, 2, (int64_t[]){4, 2}), x[1], 0, true));
}
static Node *b_concat(Graph *g, Node **x) { return twice(g, g_concat(g, 3, x, 1)); }
static Node *b_cast(Graph *g, Node **x) {
  return g_cast(g, g_map2(g, P_MUL, g_cast(g, x[0], DT_FLOAT64), x[0]), DT_FLOAT64);
}
static Node *b_softmax(Graph *g, Node **x) {
  Node *top = g_reduce(g, P_RMAX, x[0], 2, true);
  Node *e = g_map1(g, P_EXP, g_map2(g, P_SUB, x[0], top));
  return g_map2(g, P_DIV, e, g_reduce(g, P_RSUM, e, 2, true));
}

#define D1(a)                                                                                      \
  {                                                                                                \
    1, { a }                                                                                       \
  }
#define D2(a, b)                                                                                   \
  {                                                                                                \
    2, { a, b }                                                                                    \
  }
#define D3(a, b, c)                                                                                \
  {                                                                                                \
    3, { a, b, c }                                                                                 \
  }
#define D4(a, b, c, d)                                                                             \
  {                                                                                                \
    4, { a, b, c, d }                                                                              \
  }
static const Case cases[] = {
    {"exp", 2, 1, {D2(2, 3)}, b_exp, 0, 0},
    {"log", 2, 1, {D2(2, 3)}, b_log, 0.5, 2},
    {"sqrt", 2, 1, {D2(2, 3)}, b_sqrt, 0.5, 2},
    {"sin", 2, 1, {D2(2, 3)}, b_sin, -3, 3},
    {"tanh", 2, 1, {D2(2, 3)}, b_tanh, 0, 0},
    {"erf", 2, 1, {D2(2, 3)}, b_erf, 0, 0},
    {"floor", 1, 1, {D1(5)}, b_floor, -3, 3},
    {"add", 1, 2, {D2(2, 3), D1(3)}, b_add, 0, 0},
    {"sub", 1, 2, {D2(2, 1), D3(2, 1, 3)}, b_sub, 0, 0},
    {"mul", 2, 2, {D2(2, 3), D2(2, 1)}, b_mul, 0, 0},
    {"div", 2, 2, {D2(2, 3), D1(3)}, b_div, 0.5, 2},
    {"mod", 1, 2, {D1(6), D1(6)}, b_mod, 0.4, 3},
    {"pow", 2, 2, {D2(2, 3), D1(3)}, b_pow, 0.5, 2},
    {"square", 2, 1, {D1(5)}, b_square, 0, 0},
    {"cube", 2, 1, {D1(5)}, b_cube, 0, 0},
    {"x*x", 2, 1, {D1(5)}, b_self, 0, 0},
    {"max", 1, 2, {D2(2, 3), D1(3)}, b_max, 0, 0},
    {"min", 1, 2, {D2(2, 3), D1(3)}, b_min, 0, 0},
    {"select lt", 1, 3, {D1(5), D1(5), D1(1)}, b_select, 0, 0},
    {"select le", 1, 3, {D1(5), D1(5), D1(1)}, b_select_leq, 0, 0},
    {"rsum", 2, 1, {D3(2, 3, 2)}, b_rsum, 0, 0},
    {"rmax", 1, 1, {D3(2, 3, 2)}, b_rmax, 0, 0},
    {"rprod", 2, 1, {D3(2, 2, 2)}, b_rprod, 0, 0},
    {"rprod zeros", 1, 1, {D2(2, 4)}, b_rprod_zeros, 0, 0},
    {"reshape", 2, 1, {D3(2, 3, 2)}, b_reshape, 0, 0},
    {"cast", 1, 1, {D1(3)}, b_cast, 0, 0},
    {"permute", 2, 1, {D3(2, 3, 4)}, b_permute, 0, 0},
    {"expand", 2, 1, {D3(2, 1, 3)}, b_expand, 0, 0},
    {"slice", 2, 1, {D2(4, 5)}, b_slice, 0, 0},
    {"flip", 2, 1, {D2(5, 5)}, b_flip, 0, 0},
    {"pad", 2, 1, {D2(2, 4)}, b_pad, 0, 0},
    {"window", 2, 1, {D3(2, 5, 6)}, b_window, 0, 0},
    {"max pool", 1, 1, {D3(1, 5, 5)}, b_maxpool, 0, 0},
    {"diagonal", 2, 1, {D2(4, 5)}, b_diagonal, 0, 0},
    {"skew", 2, 1, {D2(4, 5)}, b_skew, 0, 0},
    {"pick", 2, 1, {D2(4, 5)}, b_pick, 0, 0},
    {"chain", 2, 1, {D2(4, 5)}, b_chain, 0, 0},
    {"divided", 2, 1, {D2(4, 3)}, b_divided, 0, 0},
    {"matmul", 2, 2, {D2(2, 3), D2(3, 4)}, b_mm, 0, 0},
    {"matmul tt", 2, 2, {D2(3, 2), D2(4, 3)}, b_mm_tt, 0, 0},
    {"matmul batch", 2, 2, {D4(2, 1, 2, 3), D3(2, 3, 2)}, b_mm, 0, 0},
    {"gram", 2, 1, {D2(2, 3)}, b_gram, 0, 0},
    {"conv", 2, 2, {D4(2, 2, 4, 4), D4(3, 2, 2, 3)}, b_conv, 0, 0},
    {"conv all", 2, 2, {D4(1, 2, 5, 3), D4(2, 2, 2, 2)}, b_conv_all, 0, 0},
    {"conv stride", 2, 2, {D4(1, 2, 5, 5), D4(2, 2, 2, 2)}, b_conv_stride, 0, 0},
    {"conv group", 2, 2, {D4(1, 4, 4, 4), D4(4, 2, 2, 2)}, b_conv_group, 0, 0},
    {"conv crop", 2, 2, {D3(2, 2, 6), D3(2, 2, 2)}, b_conv_crop, 0, 0},
    {"square diagonal", 2, 2, {D2(3, 5), D1(4)}, b_square_diag, 0, 0},
    {"gather", 2, 1, {D2(3, 2)}, b_gather, 0, 0},
    {"table", 2, 1, {D2(3, 5)}, b_table, 0, 0},
    {"scatter", 2, 2, {D2(3, 2), D2(4, 2)}, b_scatter, 0, 0},
    {"assign", 2, 2, {D2(3, 2), D2(4, 2)}, b_assign, 0, 0},
    {"concat", 2, 3, {D2(2, 1), D2(2, 3), D2(2, 2)}, b_concat, 0, 0},
    {"softmax", 2, 1, {D2(2, 4)}, b_softmax, 0, 0},
};

static void test_cases(void **state) {
  (void)state;
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) run_case(&cases[i]);
}

/* ---- what the gradients look like ---- */

static int count(const Graph *g, int from, Prim p) {
  int n = 0;
  for (int i = from; i < g->nodes.n; i++) n += g->nodes.v[i]->prim == p;
  return n;
}

static void test_matmul_form(void **state) {
  (void)state;
  Graph *g = graph_new(NULL, false);
  Node *x[2] = {g_feed(g, "0", DT_FLOAT32, 2, (int64_t[]){2, 3}),
                g_feed(g, "1", DT_FLOAT32, 2, (int64_t[]){3, 4})};
  Node *y = g_matmul(g, x[0], x[1], false, false), *gy = g_feed(g, "2", DT_FLOAT32, 2, y->dims);
  Node *gx[2];
  int before = g->nodes.n;
  assert_true(derive(g, 1, &y, &gy, 2, x, gx));
  assert_int_equal(g->nodes.n, before + 2); /* two contractions and nothing else */
  assert_ptr_equal(gx[0]->in[0], gy);       /* g [m, n] times B [k, n] */
  assert_ptr_equal(gx[0]->in[1], x[1]);
  assert_ptr_equal(gx[1]->in[0], x[0]); /* A [m, k] times g [m, n] */
  assert_ptr_equal(gx[1]->in[1], gy);
  assert_true(aff_is_loop(&gx[0]->map[0][0], 0) && aff_is_loop(&gx[0]->map[0][1], 2));
  assert_true(aff_is_loop(&gx[0]->map[1][0], 1) && aff_is_loop(&gx[0]->map[1][1], 2));
  graph_free(g);
}

static void test_conv_form(void **state) {
  (void)state;
  Graph *g = graph_new(NULL, false);
  Node *x[2] = {g_feed(g, "0", DT_FLOAT32, 4, (int64_t[]){2, 3, 8, 8}),
                g_feed(g, "1", DT_FLOAT32, 4, (int64_t[]){5, 3, 3, 3})};
  int64_t stride[2] = {2, 2}, pad[2] = {1, 1}, dil[2] = {1, 1};
  Node *y = g_conv(g, x[0], x[1], 2, stride, pad, pad, dil, 1);
  Node *gy = g_feed(g, "2", DT_FLOAT32, 4, y->dims), *gx[2];
  int before = g->nodes.n;
  assert_true(derive(g, 1, &y, &gy, 2, x, gx));
  assert_int_equal(g->nodes.n, before + 2);
  AffDim h = gx[0]->map[0][2]; /* of g: (h - kh + 1) / 2 */
  assert_ptr_equal(gx[0]->in[0], gy);
  assert_int_equal(gx[0]->n_loops, 7);
  assert_true(h.l0 == 2 && h.l1 == 5 && h.c0 == 1 && h.c1 == -1 && h.off == 1 && h.div == 2);
  AffDim w = gx[1]->map[1][2]; /* of x: 2*oh + kh - 1 */
  assert_ptr_equal(gx[1]->in[1], x[0]);
  assert_true(w.l0 == 5 && w.l1 == 2 && w.c0 == 2 && w.c1 == 1 && w.off == -1 && w.div == 1);
  graph_free(g);
}

static void test_view_form(void **state) {
  (void)state;
  Graph *g = graph_new(NULL, false);
  Node *x = g_feed(g, "0", DT_FLOAT32, 1, (int64_t[]){3}), *gx;
  Node *y = g_expand(g, x, 2, (int64_t[]){4, 3}), *gy = g_feed(g, "1", DT_FLOAT32, 2, y->dims);
  int before = g->nodes.n;
  assert_true(derive(g, 1, &y, &gy, 1, &x, &gx));
  assert_int_equal(count(g, before, P_RSUM), 1);
  assert_int_equal(count(g, before, P_VIEW), 0);
  y = g_permute(g, y, (int[]){1, 0});
  Node *z = y->in[0], *gz, *gy2 = g_feed(g, "2", DT_FLOAT32, 2, y->dims);
  before = g->nodes.n;
  assert_true(derive(g, 1, &y, &gy2, 1, &z, &gz));
  assert_int_equal(g->nodes.n, before + 1);
  graph_free(g);
}

/* The wanted nodes are independent: nothing passes through one to another. */
static void test_independent(void **state) {
  (void)state;
  Graph *g = graph_new(NULL, false);
  Node *x = g_feed(g, "0", DT_FLOAT64, 0, NULL), *y = g_map1(g, P_EXP, x);
  Node *in[2] = {g_alias(g, x), g_alias(g, y)}, *z = g_map2(g, P_MUL, in[0], in[1]), *gx[2];
  Node *one = g_const(g, DT_FLOAT64, 1), *unrelated = g_const(g, DT_FLOAT64, 2), *none;
  assert_true(derive(g, 1, &z, &one, 2, in, gx));
  double at = 0.5;
  Values v = {{{DT_FLOAT64, 0, {0}, &at}}};
  EvalEnv env = {lookup, &v, 1, 0};
  fetch(g, gx[0]);
  fetch(g, gx[1]);
  assert_true(fabs(value_of(g, &env, gx[0]) - exp(0.5)) < 1e-12);
  assert_true(fabs(value_of(g, &env, gx[1]) - 0.5) < 1e-12);
  assert_true(derive(g, 1, &z, &one, 1, &unrelated, &none));
  assert_null(none);
  graph_free(g);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_cases),       cmocka_unit_test(test_matmul_form),
      cmocka_unit_test(test_conv_form),   cmocka_unit_test(test_view_form),
      cmocka_unit_test(test_independent),
  };
  return cmocka_run_group_tests_name("derive", tests, NULL, NULL);
}
