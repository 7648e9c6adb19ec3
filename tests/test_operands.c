/* Operands that kernels compute where they read them (passes/operands.c, backends/cpu/filter_run.c): which ones, and that results
 * are the same bits as where they are stored. */
#include "util.h"
#include "../executor/internal.h"
#include "../frontend/internal.h"
#include "../passes/passes.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

enum { LABELS = 5, STEPS = 2 };

/* What is added before the activation: nothing, the operand of batch norm, or another value. */
typedef enum Residual { NONE, OWN, OTHER } Residual;

/* A convolution, batch norm, an activation, and the convolution whose filter's gradient computes the activation. */
typedef struct Case {
  const char *name;
  int64_t images, size, channels, filters, kernel, stride, pad, dilation, groups;
  const char *act;
  Residual residual;
  int computed; /* kernels that compute an operand */
} Case;

static const Case cases[] = {
    {"strips", 4, 56, 24, 16, 3, 1, 1, 1, 1, "relu", NONE, 1},
    {"strips, every other position", 4, 56, 24, 16, 3, 2, 1, 1, 1, "relu", NONE, 1},
    {"strips, dilated, odd channels", 4, 60, 19, 24, 3, 1, 2, 2, 1, "relu", NONE, 1},
    {"strips, wide padding", 4, 56, 24, 16, 5, 1, 4, 1, 1, "relu", NONE, 1},
    {"groups, of a reshape", 4, 56, 48, 64, 3, 1, 1, 1, 2, "relu", NONE, 0},
    {"blocks of short rows", 16, 16, 64, 24, 3, 1, 1, 1, 1, "relu", NONE, 1},
    {"short rows, every other position", 16, 16, 64, 24, 3, 2, 1, 1, 1, "relu", NONE, 1},
    {"rows across images", 64, 9, 51, 40, 3, 1, 1, 1, 1, "relu", NONE, 1},
    {"1 x 1", 4, 56, 24, 16, 1, 1, 0, 1, 1, "relu", NONE, 1},
    {"1 x 1, many channels", 16, 8, 520, 300, 1, 1, 0, 1, 1, "relu", NONE, 1},
    {"1 x 1, every other position", 4, 56, 24, 40, 1, 2, 0, 1, 1, "relu", NONE, 1},
    {"relu6", 4, 56, 24, 16, 3, 1, 1, 1, 1, "relu6", NONE, 1},
    {"leaky_relu", 4, 56, 24, 16, 3, 1, 1, 1, 1, "leaky_relu", NONE, 1},
    {"a dear activation", 4, 56, 24, 16, 3, 1, 1, 1, 1, "swish", NONE, 0},
    {"residual of its own", 4, 56, 24, 16, 3, 1, 1, 1, 1, "relu", OWN, 1},
    {"two large values", 4, 56, 24, 16, 3, 1, 1, 1, 1, "relu", OTHER, 0},
    {"a small value", 4, 16, 24, 16, 3, 1, 1, 1, 1, "relu", NONE, 0},
};
enum { N_CASES = sizeof cases / sizeof *cases, MOST_WEIGHTS = 520 * 300 };

typedef struct Outcome {
  float loss[STEPS];
  float filter[MOST_WEIGHTS];
  int computed;
  int64_t arena;
} Outcome;

static kl_net *net_new(const Case *c, kl_var **loss) {
  kl_net *net = kl_net_new();
  kl_var *x = kl_data(net, "x", KL_FLOAT32, -1, 3, c->size, c->size);
  kl_var *y = kl_data(net, "y", KL_INT64, -1, 1);
  kl_var *h = kl_conv2d(x, c->channels, 3, .pad = 1, .no_bias = true), *n = kl_batch_norm(h);
  if (c->residual == OTHER) h = kl_conv2d(x, c->channels, 1, .no_bias = true);
  n = kl_unary(c->act, "", c->residual ? kl_add(n, h) : n);
  h = kl_conv2d(n, c->filters, c->kernel, .stride = c->stride, .pad = c->pad,
                .dilation = c->dilation, .groups = c->groups, .no_bias = true);
  h = kl_pool2d(kl_relu(kl_batch_norm(h)), .type = "avg", .global = true);
  *loss = kl_mean(kl_softmax_with_cross_entropy(kl_fc(h, LABELS), y));
  kl_minimize(*loss, kl_momentum(0.1, 0.9));
  if (kl_failed()) fail_msg("%s: %s", c->name, kl_error());
  return net;
}

static void count(const Executable *x, Outcome *o) {
  const Graph *g = x->graph;
  o->computed = 0;
  for (int i = 0; i < g->kernels.n; i++) o->computed += kernel_operand(g->kernels.v[i]) >= 0;
  o->arena = g->arena_bytes;
  assert_true(memplan_check(g, NULL));
}

static Outcome *train(const Case *c, kl_exec_options o, const char *debug) {
  Outcome *out = calloc(1, sizeof *out);
  size_t n = (size_t)(c->images * 3 * c->size * c->size);
  float *x = malloc(n * sizeof *x);
  int64_t labels[64];
  kl_var *loss;
  kl_net *net = net_new(c, &loss);
  kl_exec *exe = kl_exec_new(o);
  exec_options(exe->run)->debug = debug;
  for (size_t i = 0; i < n; i++) x[i] = sinf((float)(i * 7 % 1009));
  for (int i = 0; i < c->images; i++) labels[i] = i % LABELS;
  kl_tensor tx = kl_array(KL_FLOAT32, x, c->images, 3, c->size, c->size),
            ty = kl_array(KL_INT64, labels, c->images, 1);
  kl_run(exe, kl_startup(net), NULL, NULL);
  for (int i = 0; i < STEPS; i++) {
    kl_tensor value = {0};
    kl_run(exe, kl_main(net), kl_feeds({"x", &tx}, {"y", &ty}),
           kl_fetches({kl_name(loss), &value}));
    if (kl_failed()) fail_msg("%s: %s", c->name, kl_error());
    out->loss[i] = *(float *)value.data;
    kl_tensor_free(&value);
  }
  if (!o.interpret) count(exe->run->last, out);
  int64_t weights = c->filters * c->channels / c->groups * c->kernel * c->kernel;
  assert_in_range(weights, 1, MOST_WEIGHTS);
  const char *filter = c->residual == OTHER ? "conv2d_2.w_0" : "conv2d_1.w_0";
  memcpy(out->filter, kl_get(exe, filter)->data, (size_t)weights * sizeof *out->filter);
  kl_exec_free(exe);
  kl_net_free(net);
  free(x);
  return out;
}

static void same_bits(const Case *c, const Outcome *a, const Outcome *b) {
  if (memcmp(a->loss, b->loss, sizeof a->loss) || memcmp(a->filter, b->filter, sizeof a->filter))
    fail_msg("%s: other results", c->name);
}

static void as_if_stored(void **state) {
  (void)state;
  for (int i = 0; i < N_CASES; i++) {
    const Case *c = &cases[i];
    Outcome *stored = train(c, (kl_exec_options){.threads = 2}, "disable=operands");
    assert_int_equal(stored->computed, 0);
    for (int threads = 1; threads <= 3; threads += 2) {
      Outcome *o = train(c, (kl_exec_options){.threads = threads}, NULL);
      if (o->computed != c->computed)
        fail_msg("%s: %d operands are computed", c->name, o->computed);
      assert_true(o->arena <= stored->arena);
      same_bits(c, o, stored);
      free(o);
    }
    free(stored);
  }
}

static void like_the_interpreter(void **state) {
  (void)state;
  static const Case small[] = {{"padding", 8, 36, 27, 24, 3, 2, 1, 1, 1, "relu6", NONE, 1},
                               {"rows across images", 32, 9, 104, 17, 1, 1, 0, 1, 1, "relu", NONE,
                                1}};
  for (int i = 0; i < 2; i++) {
    Outcome *o = train(&small[i], (kl_exec_options){.threads = 2}, NULL),
            *e = train(&small[i], (kl_exec_options){.interpret = true}, NULL);
    assert_int_equal(o->computed, 1);
    for (int k = 0; k < STEPS; k++) assert_true(fabsf(o->loss[k] - e->loss[k]) < 1e-4f);
    for (int k = 0; k < MOST_WEIGHTS; k++) assert_true(fabsf(o->filter[k] - e->filter[k]) < 1e-4f);
    free(o);
    free(e);
  }
}

/* Under a memory budget. */
static void under_a_budget(void **state) {
  (void)state;
  const Case *c = &cases[0];
  Outcome *a = train(c, (kl_exec_options){.threads = 2}, NULL),
          *b = train(c, (kl_exec_options){.threads = 2, .memory_budget = (int64_t)1 << 30}, NULL);
  assert_int_equal(b->computed, 1);
  same_bits(c, a, b);
  free(a);
  free(b);
}

int main(void) {
  layout_always = true; /* channels last wherever there is a convolution */
  const struct CMUnitTest tests[] = {cmocka_unit_test(as_if_stored),
                                     cmocka_unit_test(like_the_interpreter),
                                     cmocka_unit_test(under_a_budget)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
