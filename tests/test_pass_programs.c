/* The Graph passes on whole training programs: results, kernels and memory of each network and optimizer, the groups of
 * LeNet, and where layouts leave permutations. */
#include "passcheck.h"
#include "../passes/rewrite.h"
#include "util.h"
#include "../frontend/kiln.h"
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

/* ---- whole programs ---- */

static bool batch_dims(void *user, const Var *v, bool fed, DType *t, int *rank, int64_t *dims) {
  (void)fed;
  *t = v->dtype;
  *rank = v->rank;
  for (int d = 0; d < v->rank; d++) dims[d] = v->dims[d] < 0 ? *(int64_t *)user : v->dims[d];
  return true;
}

static Graph *graph_of(kl_net *net, kl_var *loss, int64_t batch) {
  if (kl_failed()) fail_msg("%s", kl_error());
  const char *feeds[] = {"x", "label"}, *fetch[] = {kl_name(loss)};
  Graph *g = expand_program(kl_main(net), 2, feeds, 1, fetch, batch_dims, &batch);
  if (!g) {
    err_print(stderr, false);
    fail_msg("the program does not expand");
  }
  return g;
}

static kl_var *loss_of(kl_var *logits, kl_var *label) {
  return kl_mean(kl_softmax_with_cross_entropy(logits, label));
}

static kl_var *mlp(kl_net *net) {
  kl_var *x = kl_data(net, "x", KL_FLOAT32, -1, 784), *y = kl_data(net, "label", KL_INT64, -1, 1);
  kl_var *h = kl_fc(kl_fc(x, 256, "relu"), 128, "relu");
  return loss_of(kl_fc(h, 10), y);
}

static kl_var *lenet(kl_net *net) {
  kl_var *x = kl_data(net, "x", KL_FLOAT32, -1, 1, 28, 28);
  kl_var *y = kl_data(net, "label", KL_INT64, -1, 1);
  kl_var *h = kl_pool2d(kl_conv2d(x, 20, 5, .act = "relu"), "max", 2, 2);
  h = kl_pool2d(kl_conv2d(h, 50, 5, .act = "relu"), "max", 2, 2);
  return loss_of(kl_fc(kl_fc(h, 500, "relu"), 10), y);
}

static kl_var *residual(kl_net *net) {
  kl_var *x = kl_data(net, "x", KL_FLOAT32, -1, 3, 12, 12);
  kl_var *y = kl_data(net, "label", KL_INT64, -1, 1);
  kl_var *h = kl_conv2d(x, 8, 3, .pad = 1, .no_bias = true);
  h = kl_batch_norm(h, .act = "relu");
  kl_var *r = kl_batch_norm(kl_conv2d(h, 8, 3, .pad = 1, .groups = 2));
  h = kl_relu(kl_add(r, h));
  h = kl_dropout(kl_pool2d(h, "avg", .global = true), 0.5, true);
  return loss_of(kl_fc(h, 10), y);
}

static kl_var *attention(kl_net *net) {
  kl_var *x = kl_data(net, "x", KL_FLOAT32, -1, 6, 16);
  kl_var *y = kl_data(net, "label", KL_INT64, -1, 1);
  kl_var *h = kl_layer_norm(x, 2);
  kl_var *q = kl_fc(h, 16, .flatten = 2), *k = kl_fc(h, 16, .flatten = 2);
  kl_var *s = kl_softmax(kl_binary("matmul_v2", "trans_y=true", q, k));
  h = kl_add(x, kl_matmul(s, kl_fc(h, 16, .flatten = 2)));
  kl_var *f = kl_fc(kl_layer_norm(h, 2), 64, "gelu", 2);
  h = kl_add(h, kl_fc(f, 16, .flatten = 2));
  return loss_of(kl_fc(h, 10), y);
}

typedef struct NetCase {
  const char *name;
  kl_var *(*build)(kl_net *net);
  int kernels[3]; /* with sgd, momentum, adam; 0: any number */
} NetCase;

static const NetCase nets[] = {
    {"mlp", mlp, {16, 16, 18}},
    {"lenet", lenet, {25, 25, 27}},
    {"residual", residual, {0}},
    {"attention", attention, {0}},
};

static void test_programs(void **state) {
  (void)state;
  const kl_optimizer optim[3] = {kl_sgd(0.01), kl_momentum(0.01, 0.9), kl_adam(0.01)};
  for (size_t i = 0; i < sizeof nets / sizeof *nets; i++)
    for (int o = 0; o < 3; o++) {
      kl_net *net = kl_net_new();
      kl_var *loss = nets[i].build(net);
      kl_minimize(loss, optim[o]);
      Graph *g = graph_of(net, loss, 3);
      check_passes(g, 2e-4);
      int want = nets[i].kernels[o];
      print_message("%-10s %-8s %3d nodes %3d kernels, arena %lld, lower bound %lld, ratio %.3f\n",
                    nets[i].name, optim[o].type, g->nodes.n, g->kernels.n,
                    (long long)g->arena_bytes, (long long)g->lower_bound,
                    (double)g->arena_bytes / (double)g->lower_bound);
      if (want) assert_int_equal(g->kernels.n, want);
      assert_true((double)g->arena_bytes <= 1.05 * (double)g->lower_bound);
      Graph *less = graph_of(net, loss, 3); /* some values are computed twice */
      less->memory_budget = g->arena_bytes * 3 / 4;
      check_passes(less, 2e-4);
      assert_true(less->arena_bytes <= g->arena_bytes);
      graph_free(less);
      graph_free(g);
      kl_net_free(net);
    }
}

/* What the groups of LeNet's training program must be. */
static void test_lenet_groups(void **state) {
  (void)state;
  kl_net *net = kl_net_new();
  kl_var *loss = lenet(net);
  kl_minimize(loss, kl_adam(0.001));
  Graph *g = graph_of(net, loss, 64);
  assert_true(passes_run(g, NULL, NULL));
  assert_int_equal(kernels_with(g, "conv2d_elementwise_add_relu"), 2);
  assert_int_equal(kernels_with(g, "mul_elementwise_add_relu"), 1);
  assert_int_equal(kernel_with(g, "conv2d_elementwise_add_relu")->kind, K_CONTRACT);
  assert_int_equal(kernels_with(g, "pool2d_grad_relu_grad"), 2);
  /* one for each of 8 parameters, and two for the scalars of all */
  assert_int_equal(kernels_with(g, "adam"), 8 + 2);
  int updated = 0;
  for (int i = 0; i < g->kernels.n; i++)
    for (int j = 0; j < g->kernels.v[i]->outputs.n; j++)
      updated += g->kernels.v[i]->outputs.v[j]->buf->kind == B_STATE;
  assert_int_equal(updated, g->writes.n); /* all in place */
  assert_int_equal(g->copies.n, 0);
  graph_free(g);
  kl_net_free(net);
}

/* ---- layout ---- */

/* A view that only orders dimensions anew, more than ones among them. */
static bool permutes(const Node *v) {
  unsigned used = 0;
  int last = -1;
  bool moves = false;
  if (v->prim != P_VIEW || node_numel(v) != node_numel(v->in[0])) return false;
  for (int d = 0; d < v->in[0]->rank; d++) {
    const AffDim *m = &v->map[0][d];
    if (v->in[0]->dims[d] == 1) continue;
    if (m->l0 < 0 || !aff_is_loop(m, m->l0) || (used >> m->l0 & 1)) return false;
    used |= 1u << m->l0;
    moves |= m->l0 < last;
    last = m->l0;
  }
  return moves;
}

/* All that a network of convolutions is made of, with odd and even numbers of channels. */
static kl_var *channels(kl_net *net) {
  kl_var *x = kl_data(net, "x", KL_FLOAT32, -1, 3, 11, 12);
  kl_var *y = kl_data(net, "label", KL_INT64, -1, 1);
  kl_var *h = kl_conv2d(x, 16, 5, .stride = 2, .pad = 2, .act = "relu");
  h = kl_pool2d(h, "max", 3, 1, 1);
  kl_var *r = kl_batch_norm(kl_conv2d(h, 16, 3, .pad = 1, .no_bias = true), .act = "relu");
  r = kl_batch_norm(kl_conv2d(r, 16, 3, .pad = 1, .groups = 16, .no_bias = true), .act = "relu");
  h = kl_relu(kl_add(kl_batch_norm(kl_conv2d(r, 16, 1, .no_bias = true)), h));
  kl_var *g = kl_conv2d(h, 24, 3, .dilation = 2, .pad = 2, .groups = 4, .act = "sigmoid");
  kl_var *s = kl_pool2d(h, "avg", .global = true); /* squeeze and excitation */
  h = kl_mul(h, kl_sigmoid(kl_conv2d(kl_conv2d(s, 5, 1, .act = "relu"), 16, 1)));
  h = kl_concat(1, kl_pool2d(h, "avg", 2, 2), kl_pool2d(g, "max", 2, 2));
  h = kl_batch_norm(h, .act = "relu");
  kl_var *w =
      kl_parameter(net, "up", KL_FLOAT32, 4, (int64_t[]){40, 7, 3, 3}, (kl_param){0}, false);
  h = kl_op(net, "conv2d_transpose", "strides=[2,2] paddings=[1,1]", "Input", h, "Filter", w);
  return loss_of(kl_fc(h, 10, "relu"), y);
}

/* Permuting views are left where tensors come in and go out, at the flattening layer and its gradient; with the images last also
 * around what has groups. */
static void test_layout(void **state) {
  (void)state;
  for (int way = 0; way < 4; way++) {
    bool all = way % 2, images = way / 2;
    kl_net *net = kl_net_new();
    kl_var *loss = channels(net);
    kl_minimize(loss, kl_momentum(0.01, 0.9));
    Graph *g = graph_of(net, loss, 3);
    bool stopped;
    layout_always = images ? 2 : 1;
    if (all)
      check_passes(g, 2e-4);
    else
      assert_true(passes_run(g, &(PassOptions){.stop_after = "layout"}, &stopped));
    layout_always = 0;
    int inside = 0, convs = 0;
    for (int i = 0; i < g->nodes.n; i++) {
      const Node *n = g->nodes.v[i];
      if (n->prim == P_CONTRACT && n->rank == 4) {
        convs++;
        if (images)
          assert_true(n->dims[3] == 3 || n->in[1]->dims[3] == 3);
        else
          assert_true(n->dims[3] == n->in[1]->dims[3] || n->dims[3] == n->in[1]->dims[2]);
      }
      inside += permutes(n) && !node_is_source(n->in[0]);
    }
    for (int i = 0; i < g->writes.n; i++) inside -= permutes(g->writes.v[i].node);
    print_message("%d contractions over windows, %d permutations\n", convs, inside);
    assert_int_equal(inside, images ? 5 : 2);
    graph_free(g);
    kl_net_free(net);
  }
}

/* Convolutions over views that have other dimensions than what they see: of a sentence, its words in rows; of an image that is
 * made with the channel last, a filter for each channel. */
static kl_var *over_views(kl_net *net, bool sentence) {
  kl_var *y = kl_data(net, "label", KL_INT64, -1, 1), *h, *w;
  if (sentence) {
    h = kl_unary("transpose2", "axis=[0,2,1]", kl_data(net, "x", KL_FLOAT32, -1, 20, 16));
    h = kl_unary("unsqueeze2", "axes=[2]", h);
    w = kl_parameter(net, "w", KL_FLOAT32, 4, (int64_t[]){32, 16, 1, 3}, (kl_param){0}, false);
    h = kl_op(net, "conv2d", "", "Input", h, "Filter", w);
  } else {
    h = kl_unary("transpose2", "axis=[0,3,1,2]", kl_data(net, "x", KL_FLOAT32, -1, 9, 8, 32));
    w = kl_parameter(net, "w", KL_FLOAT32, 4, (int64_t[]){32, 1, 3, 3}, (kl_param){0}, false);
    h = kl_op(net, "depthwise_conv2d", "groups=32 paddings=[1,1]", "Input", h, "Filter", w);
  }
  return loss_of(kl_fc(kl_pool2d(kl_relu(h), "max", .global = true), 10), y);
}

static void test_layout_of_views(void **state) {
  (void)state;
  for (int sentence = 0; sentence < 2; sentence++) {
    kl_net *net = kl_net_new();
    Graph *g = graph_of(net, over_views(net, sentence), 2);
    int convs = 0;
    check_passes(g, 2e-4);
    for (int i = 0; i < g->nodes.n; i++) {
      const Node *n = g->nodes.v[i];
      convs += n->prim == P_CONTRACT && n->rank == 4 && n->dims[3] == 32;
      assert_false(permutes(n) && !node_is_source(n->in[0]));
    }
    assert_int_equal(convs, 1);
    graph_free(g);
    kl_net_free(net);
  }
}

/* How many contractions over windows have the images last. */
static int images_last(int64_t filters, int64_t groups, int64_t batch, bool there) {
  kl_net *net = kl_net_new();
  kl_var *x = kl_data(net, "x", KL_FLOAT32, -1, 2, 9, 8);
  kl_var *y = kl_data(net, "label", KL_INT64, -1, 1);
  kl_var *h = kl_pool2d(kl_conv2d(x, filters, 3, .act = "relu"), "max", 2);
  h = kl_conv2d(h, filters, 2, .pad = 1, .groups = groups, .act = "relu");
  kl_var *loss = loss_of(kl_fc(h, 10), y);
  kl_minimize(loss, kl_momentum(0.01, 0.9));
  Graph *g = graph_of(net, loss, batch);
  bool stopped;
  int n = 0;
  g->images_last = there;
  assert_true(passes_run(g, &(PassOptions){.stop_after = "layout"}, &stopped));
  for (int i = 0; i < g->nodes.n; i++) {
    const Node *c = g->nodes.v[i];
    n += c->prim == P_CONTRACT && c->n_loops > 4 &&
         (c->dims[c->rank - 1] == batch || c->in[1]->dims[c->in[1]->rank - 1] == batch);
  }
  graph_free(g);
  kl_net_free(net);
  return n;
}

/* Where the channels would not fill vectors and the images do; in all passes: forward, two gradients of filters, one of an input. */
static void test_images_last(void **state) {
  (void)state;
  assert_int_equal(images_last(20, 1, 64, true), 5);
  assert_int_equal(images_last(20, 1, 100, true), 5);
  assert_int_equal(images_last(20, 1, 64, false), 0); /* no such kernels */
  assert_int_equal(images_last(32, 1, 64, true), 0);  /* channels fill them */
  assert_int_equal(images_last(20, 1, 5, true), 0);
  assert_int_equal(images_last(20, 1, 18, true), 0);
  assert_int_equal(images_last(20, 4, 64, true), 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test_teardown(test_programs, clear_error),
                                     cmocka_unit_test_teardown(test_lenet_groups, clear_error),
                                     cmocka_unit_test_teardown(test_layout, clear_error),
                                     cmocka_unit_test_teardown(test_layout_of_views, clear_error),
                                     cmocka_unit_test_teardown(test_images_last, clear_error)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
