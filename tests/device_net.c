/* Small networks in training. */
#include "device_net.h"
#include <limits.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

kl_var *net_mlp(kl_var *x) { return kl_fc(kl_fc(x, 32, .act = "relu"), 10); }

kl_var *net_lenet(kl_var *x) {
  kl_var *c = kl_pool2d(kl_conv2d(x, 6, 5, .act = "relu"), "max", 2);
  c = kl_pool2d(kl_conv2d(c, 16, 5, .act = "relu"), "max", 2);
  return kl_fc(kl_fc(kl_fc(c, 120, .act = "relu"), 84, .act = "relu"), 10);
}

kl_var *net_mixed(kl_var *x) {
  kl_var *c = kl_batch_norm(kl_conv2d(x, 4, 3, .stride = 2, .no_bias = true), .act = "relu");
  return kl_fc(kl_dropout(kl_pool2d(c, "avg", .global = true), 0.3), 10);
}

kl_var *net_deep(kl_var *x) {
  for (int i = 0; i < 14; i++) x = kl_fc(x, 9, .act = "tanh");
  return kl_fc(x, 10);
}

/* ---- a leaky ReLU of C functions ---- */

int net_made_calls, net_bad_call = INT_MAX;

static bool leaky_infer(const kl_custom_op *op, int n_in, const kl_tensor *in, int n_out,
                        kl_tensor *out) {
  (void)op, (void)n_in, (void)n_out;
  for (int i = 0; i < 2; i++) {
    out[i] = in[0];
    out[i].data = NULL;
  }
  return true;
}

/* The second output, which is 1 where x < 0, is there for the backward function alone. */
static bool leaky(const kl_custom_op *op, int n_in, const kl_tensor *in, int n_out,
                  kl_tensor *out) {
  (void)op, (void)n_in, (void)n_out;
  const float *x = in[0].data;
  float *y = out[0].data, *below = out[1].data;
  for (int64_t i = 0; i < kl_numel(&in[0]); i++) {
    y[i] = x[i] < 0 ? x[i] / 8 : x[i];
    if (x[i] < 0) below[i] = 1;
  }
  return ++net_made_calls < net_bad_call;
}

/* in: x, y, below, gradients of y and below */
static bool leaky_grad(const kl_custom_op *op, int n_in, const kl_tensor *in, int n_out,
                       kl_tensor *out) {
  (void)op, (void)n_in, (void)n_out;
  const float *below = in[2].data, *gy = in[3].data;
  float *gx = out[0].data;
  for (int64_t i = 0; i < kl_numel(&in[0]); i++) gx[i] = below[i] > 0 ? gy[i] / 8 : gy[i];
  return true;
}

kl_var *net_calls(kl_var *x) {
  static bool known;
  if (!known)
    net_check(kl_register(
        &(kl_custom_op){"test_leaky", "X -> Out, Below", leaky_infer, leaky, leaky_grad, NULL}));
  known = true;
  return kl_fc(kl_op(net_of(KL_HERE, x), "test_leaky", "", "X", kl_fc(x, 32)), 10);
}

/* ---- training ---- */

Net net_new(Build *build, bool adam, int batch, int image) {
  Net n = {.net = kl_net_new(), .batch = batch, .image = image};
  kl_var *x = image ? kl_data(n.net, "x", KL_FLOAT32, -1, 1, image, image)
                    : kl_data(n.net, "x", KL_FLOAT32, -1, 48);
  kl_var *y = kl_data(n.net, "y", KL_INT64, -1, 1);
  kl_seed(n.net, 3);
  kl_var *scores = kl_named(build(x), "scores");
  kl_var *loss = kl_named(kl_mean(kl_softmax_with_cross_entropy(scores, y)), "loss");
  n.rate = kl_minimize(loss, adam ? kl_adam(0.002) : kl_momentum(0.02, 0.9));
  int64_t numbers = (int64_t)batch * (image ? image * image : 48);
  n.x = malloc(sizeof *n.x * (size_t)numbers);
  n.y = malloc(sizeof *n.y * (size_t)batch);
  for (int64_t i = 0; i < numbers; i++) n.x[i] = (float)((i * 37 % 101) - 50) / 50;
  for (int i = 0; i < batch; i++) n.y[i] = i * 3 % 10;
  if (kl_failed()) fail_msg("%s", kl_error());
  return n;
}

void net_free(Net *n) {
  kl_net_free(n->net);
  free(n->x);
  free(n->y);
}

bool net_step(kl_exec *exe, const Net *n, float *loss) {
  kl_tensor x = n->image ? kl_array(KL_FLOAT32, n->x, n->batch, 1, n->image, n->image)
                         : kl_array(KL_FLOAT32, n->x, n->batch, 48);
  kl_tensor y = kl_array(KL_INT64, n->y, n->batch, 1), to = kl_array(KL_FLOAT32, loss, 1);
  kl_feed feeds[] = {{"x", &x}, {"y", &y}, {NULL, NULL}};
  kl_fetch fetches[] = {{"loss", &to}, {NULL, NULL}};
  return kl_run(exe, kl_main(n->net), feeds, loss ? fetches : NULL);
}

bool net_start_step(kl_exec *exe, const Net *n, Tensor *out) {
  Tensor x = {.dtype = DT_FLOAT32, .rank = 2, .dims = {n->batch, 48}, .data = n->x};
  Tensor y = {.dtype = DT_INT64, .rank = 2, .dims = {n->batch, 1}, .data = n->y};
  Feed feeds[] = {{"x", &x}, {"y", &y}};
  return exec_start(exe->run, exe->scope, kl_main(n->net), 2, feeds, 1, (const char *[]){"loss"},
                    out);
}

kl_exec *net_start(const Net *n, const char *device, kl_exec_options o) {
  o.threads = 2;
  o.seed = 5;
  o.device = device;
  kl_exec *exe = kl_exec_new(o);
  if (exe && kl_run(exe, kl_startup(n->net), NULL, NULL)) return exe;
  kl_exec_free(exe);
  return NULL;
}

void net_check(bool ok) {
  if (!ok) fail_msg("%s", kl_error());
}

void expect_same_state(kl_exec *a, kl_exec *b, double most) {
  Arena *arena = arena_new();
  const char **names;
  int n = scope_names(a->scope, arena, &names);
  for (int i = 0; i < n; i++) {
    const Tensor *x = scope_get(a->scope, names[i]), *y = scope_get(b->scope, names[i]);
    double scale = 1e-3, off = 0;
    assert_non_null(x);
    assert_non_null(y);
    for (int64_t k = 0; k < tensor_numel(x); k++) {
      scale = fmax(scale, fabs(tensor_get(x, k)));
      off = fmax(off, fabs(tensor_get(x, k) - tensor_get(y, k)));
    }
    if (!(off <= most * scale)) fail_msg("%s is off by %g of %g", names[i], off, scale);
  }
  arena_free(arena);
}
