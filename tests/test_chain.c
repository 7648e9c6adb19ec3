/* Chains of kernels (passes/chain.c): which kernels are in one, and that results are the same bits with and without. */
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

enum { IMAGES = 8, CHANNELS = 16, SIZE = 48, LARGE = 96, LABELS = 5, STEPS = 3 };

typedef struct Net {
  kl_net *net;
  kl_var *loss;
} Net;

static kl_var *normal(kl_var *x) { return kl_relu(kl_batch_norm(x)); }

/* A convolution, a depthwise one and one of 1 x 1, each with batch norm, and a sum of two branches. */
static Net net_new(int size) {
  Net n = {.net = kl_net_new()};
  kl_var *x = kl_data(n.net, "x", KL_FLOAT32, -1, 3, size, size);
  kl_var *y = kl_data(n.net, "y", KL_INT64, -1, 1);
  kl_var *h = normal(kl_conv2d(x, CHANNELS, 3, .pad = 1, .no_bias = true));
  kl_var *d = normal(kl_conv2d(h, CHANNELS, 3, .pad = 1, .groups = CHANNELS, .no_bias = true));
  h = kl_add(h, normal(kl_conv2d(d, CHANNELS, 1, .no_bias = true)));
  h = kl_fc(kl_pool2d(h, .type = "avg", .global = true), LABELS);
  n.loss = kl_mean(kl_softmax_with_cross_entropy(h, y));
  kl_minimize(n.loss, kl_momentum(0.1, 0.9));
  assert_false(kl_failed());
  return n;
}

typedef struct Outcome {
  float loss[STEPS], filter[CHANNELS * 27], mean[CHANNELS];
  int chains, sums,
      products; /* in chains: kernels that reduce, contractions behind the first kernel */
  int by_rows;  /* chains whose kernels take turns within an item */
  int locals;   /* values that stay with the threads */
  int filters;  /* gradients of filters in chains, not of depthwise ones */
  int kernels;
  int again; /* values that the epilogue of a contraction computes although another kernel stores them */
} Outcome;

/* The steps of a chain run every task of an item once, each kernel's in order, and a kernel's first after the first of those
 * that it reads. */
static bool check_steps(const Executable *x, int first) {
  const KernelCode *c = &x->code[first];
  int64_t ran[KL_CHAIN] = {0};
  bool turns = false;
  for (int i = 0; i < c->n_steps; i++) {
    const ChainStep *s = &c->steps[i];
    assert_in_range(s->kernel, 0, c->chain - 1);
    assert_int_equal(s->begin, ran[s->kernel]);
    assert_true(s->end > s->begin);
    ran[s->kernel] = s->end;
    for (int j = s->kernel + 1; j < c->chain; j++) turns |= ran[j] > 0;
  }
  for (int j = 0; j < c->chain; j++) {
    const KernelCode *k = &c[j];
    assert_int_equal(ran[j] * c->items, k->phase[k->n_phases - 1].n_tasks);
  }
  return turns;
}

static int stored_elsewhere(const Graph *g, const Kernel *k) {
  int n = 0;
  for (int i = 0; i < k->nodes.n; i++)
    for (int j = 0; j < g->kernels.n; j++)
      for (int m = 0; m < g->kernels.v[j]->outputs.n && g->kernels.v[j] != k; m++)
        n += g->kernels.v[j]->outputs.v[m] == k->nodes.v[i];
  return n;
}

static void count(const Executable *x, Outcome *out) {
  const Graph *g = x->graph;
  out->chains = out->sums = out->products = out->by_rows = out->again = out->locals = 0;
  out->kernels = g->kernels.n;
  out->filters = 0;
  for (int i = 0; i < g->buffers.n; i++) out->locals += g->buffers.v[i]->kind == B_LOCAL;
  for (int i = 0; i < g->kernels.n; i++) {
    const Kernel *k = g->kernels.v[i];
    assert_int_equal(k->id, i);
    out->chains += k->chain > 0;
    out->filters += k->chained && !strncmp(k->by, "filter", 6);
    if (k->kind == K_CONTRACT) out->again += stored_elsewhere(g, k);
    if (x->code[i].chain) out->by_rows += check_steps(x, i);
    out->sums += k->chained && !k->chain && k->reduce;
    out->products += k->chained && !k->chain && k->kind == K_CONTRACT;
    for (int j = 0; j < k->outputs.n && k->chained; j++)
      for (int m = 0; m < k->inputs.n; m++)
        assert_ptr_not_equal(k->outputs.v[j]->buf, k->inputs.v[m].node->buf);
  }
}

static Outcome train_images(int size, kl_exec_options o, const char *debug) {
  static float x[IMAGES * 3 * LARGE * LARGE];
  int64_t labels[IMAGES];
  Net n = net_new(size);
  kl_exec *exe = kl_exec_new(o);
  Outcome out;
  exec_options(exe->run)->debug = debug;
  for (int i = 0; i < IMAGES * 3 * size * size; i++) x[i] = sinf((float)(i * 7 % 1009));
  for (int i = 0; i < IMAGES; i++) labels[i] = i % LABELS;
  kl_tensor tx = kl_array(KL_FLOAT32, x, IMAGES, 3, size, size),
            ty = kl_array(KL_INT64, labels, IMAGES, 1);
  kl_run(exe, kl_startup(n.net), NULL, NULL);
  for (int i = 0; i < STEPS; i++) {
    kl_tensor loss = {0};
    kl_run(exe, kl_main(n.net), kl_feeds({"x", &tx}, {"y", &ty}),
           kl_fetches({kl_name(n.loss), &loss}));
    if (kl_failed()) fail_msg("%s", kl_error());
    out.loss[i] = *(float *)loss.data;
    kl_tensor_free(&loss);
  }
  if (!o.interpret) count(exe->run->last, &out);
  memcpy(out.filter, kl_get(exe, "conv2d_0.w_0")->data, sizeof out.filter);
  memcpy(out.mean, kl_get(exe, "batch_norm_1.w_1")->data, sizeof out.mean);
  kl_exec_free(exe);
  kl_net_free(n.net);
  return out;
}

static Outcome train(kl_exec_options o, const char *debug) { return train_images(SIZE, o, debug); }

static bool same(const Outcome *a, const Outcome *b) {
  return !memcmp(a, b, offsetof(Outcome, chains));
}

static void any_thread_count(void **state) {
  (void)state;
  Outcome alone = train((kl_exec_options){.threads = 1}, "disable=chain");
  assert_int_equal(alone.chains, 0);
  for (int threads = 1; threads <= 8;
       threads++) { /* of 8 images: more than 4 threads run no chains */
    Outcome o = train((kl_exec_options){.threads = threads}, NULL);
    assert_true(o.chains >= 4);
    assert_true(o.sums >= 3 && o.products >= 3);
    assert_true(o.again >= 1);
    assert_true(threads <= IMAGES / 2 ? o.locals >= 1 : o.locals == 0);
    if (!same(&o, &alone)) fail_msg("%d threads: other results than without chains", threads);
  }
}

/* Images of which the caches hold some rows only. */
static void row_by_row(void **state) {
  (void)state;
  Outcome alone = train_images(LARGE, (kl_exec_options){.threads = 1}, "disable=chain");
  for (int threads = 1; threads <= 3; threads += 2) {
    Outcome o = train_images(LARGE, (kl_exec_options){.threads = threads}, NULL);
    assert_true(o.by_rows >= 4 && o.filters >= 1);
    assert_true(same(&o, &alone));
  }
}

static void like_the_interpreter(void **state) {
  (void)state;
  Outcome o = train((kl_exec_options){.threads = 2}, NULL),
          i = train((kl_exec_options){.interpret = true}, NULL);
  for (int k = 0; k < STEPS; k++) assert_true(fabsf(o.loss[k] - i.loss[k]) < 1e-4f);
  for (int k = 0; k < CHANNELS * 27; k++) assert_true(fabsf(o.filter[k] - i.filter[k]) < 1e-4f);
  for (int k = 0; k < CHANNELS; k++) assert_true(fabsf(o.mean[k] - i.mean[k]) < 1e-4f);
}

/* Kernels that take turns are timed too, and do the same then. */
static void with_a_profile(void **state) {
  (void)state;
  Outcome a = train_images(LARGE, (kl_exec_options){.threads = 2}, NULL),
          b = train_images(LARGE, (kl_exec_options){.threads = 2, .profile = true}, NULL);
  assert_true(b.by_rows > 0 && b.locals == a.locals);
  assert_true(same(&a, &b));
}

/* Without a backward pass nothing between the first kernel and the last of a chain is stored as a whole, and constants
 * that are made between them do not part them. */
static void inference(void **state) {
  (void)state;
  static float x[IMAGES * 3 * LARGE * LARGE];
  kl_tensor tx = kl_array(KL_FLOAT32, x, IMAGES, 3, LARGE, LARGE);
  float first[IMAGES * CHANNELS];
  for (int i = 0; i < IMAGES * 3 * LARGE * LARGE; i++) x[i] = sinf((float)(i * 7 % 1009));
  for (int threads = 8; threads > 0; threads /= 2) {
    kl_net *net = kl_net_new();
    kl_var *h = kl_data(net, "x", KL_FLOAT32, -1, 3, LARGE, LARGE);
    for (int i = 0; i < 3; i++)
      h = normal(kl_conv2d(h, CHANNELS, i ? 3 : 1, .pad = i > 0, .groups = i ? CHANNELS : 1));
    h = kl_pool2d(h, .type = "avg", .global = true);
    kl_program *test = kl_clone_for_test(kl_main(net));
    kl_exec *exe = kl_exec_new((kl_exec_options){.threads = threads});
    kl_run(exe, kl_startup(net), NULL, NULL);
    kl_tensor out = {0};
    for (int i = 0; i < 2; i++) {
      kl_tensor_free(&out);
      kl_run(exe, test, kl_feeds({"x", &tx}), kl_fetches({kl_name(h), &out}));
    }
    if (kl_failed()) fail_msg("%s", kl_error());
    Outcome o;
    count(exe->run->last, &o);
    int64_t arena = exe->run->last->graph->arena_bytes, image = CHANNELS * LARGE * LARGE * 4;
    assert_true(threads == 8 ? arena >= 2 * IMAGES * image : arena < 3 * IMAGES * image / 2);
    assert_true(threads == 8 ? o.locals == 0 : o.locals >= 2);
    if (threads == 8) memcpy(first, out.data, sizeof first);
    assert_memory_equal(first, out.data, sizeof first);
    kl_tensor_free(&out);
    kl_exec_free(exe);
    kl_program_free(test);
    kl_net_free(net);
  }
}

/* Under a memory budget values do not live longer than they must: no chains, the same bits. */
static void not_under_a_budget(void **state) {
  (void)state;
  Outcome a = train((kl_exec_options){.threads = 2}, NULL),
          b = train((kl_exec_options){.threads = 2, .memory_budget = (int64_t)1 << 30}, NULL);
  assert_int_equal(b.chains, 0);
  assert_true(same(&a, &b));
}

/* What a depthwise filter's gradient reads is computed again in its chain, and waits nowhere; with the same bits. */
static void made_again(void **state) {
  (void)state;
  Outcome a = train_images(LARGE, (kl_exec_options){.threads = 2}, NULL),
          b = train_images(LARGE, (kl_exec_options){.threads = 2}, "disable=again"),
          c = train_images(LARGE, (kl_exec_options){.threads = 8}, NULL);
  assert_true(a.locals > b.locals && a.kernels > b.kernels);
  assert_int_equal(c.kernels, b.kernels); /* no locals: then it waits */
  assert_true(same(&a, &b) && same(&a, &c));
}

/* exp(x) is stored, and summed along its rows turned round in one way or another. */
static int chains_of(const char *turned) {
  char text[512];
  snprintf(text, sizeof text,
           "graph\n%%0 float32 [64, 8192] = feed \"x\"\n"
           "%%1 float32 [64, 8192] = exp %%0\n"
           "%%2 float32 [64, 8192] = view %%1 %s pad 0\n"
           "%%3 float32 [64, 1] = rsum %%2 {axes=[1]}\n"
           "fetch \"a\" %%1\nfetch \"b\" %%3\n",
           turned);
  Graph *g = graph_parse(text, strlen(text), "test");
  assert_non_null(g);
  assert_true(passes_run(g, NULL, NULL));
  assert_int_equal(g->kernels.n, 2);
  int n = g->kernels.v[0]->chain;
  assert_true(memplan_check(g, NULL));
  graph_free(g);
  return n;
}

/* What is read at another index of the first dimension keeps kernels apart. */
static void other_items(void **state) {
  (void)state;
  assert_int_equal(chains_of("[i0, -1*i1+8191]"), 2);
  assert_int_equal(chains_of("[-1*i0+63, i1]"), 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(any_thread_count),
                                     cmocka_unit_test(row_by_row),
                                     cmocka_unit_test(like_the_interpreter),
                                     cmocka_unit_test(with_a_profile),
                                     cmocka_unit_test(inference),
                                     cmocka_unit_test(not_under_a_budget),
                                     cmocka_unit_test(made_again),
                                     cmocka_unit_test(other_items)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
