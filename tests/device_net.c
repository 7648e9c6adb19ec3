/* Small networks in training. */
#include "device_net.h"
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

/* Running statistics are written at the exit, dropout needs the same random numbers. */
kl_var *net_mixed(kl_var *x) {
  kl_var *c = kl_batch_norm(kl_conv2d(x, 4, 3, .stride = 2, .no_bias = true), .act = "relu");
  return kl_fc(kl_dropout(kl_pool2d(c, "avg", .global = true), 0.3), 10);
}

/* Updates of many small parameters, which become kernels of as many buffers as one may have. */
kl_var *net_deep(kl_var *x) {
  for (int i = 0; i < 14; i++) x = kl_fc(x, 9, .act = "tanh");
  return kl_fc(x, 10);
}

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

/* All variables of both, relative to the largest element of each. */
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
