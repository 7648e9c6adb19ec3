/* Networks that Kiln's builder writes for PaddlePaddle to read: nets DIR makes DIR/NAME_startup.pdmodel, _main.pdmodel,
 * _test.pdmodel (clone for test) and the inference model NAME.pdmodel with NAME.pdiparams. Together they use every layer,
 * loss, initialiser, optimiser and kind of clipping and decay of kiln.h. The loss is "loss", the result "out". */
#include "../../frontend/kiln.h"
#include <stdio.h>

static kl_var *classes(kl_net *net, kl_var *scores) {
  kl_var *label = kl_data(net, "y", KL_INT64, -1, 1);
  kl_named(scores, "out");
  kl_named(kl_accuracy(scores, label, 2), "acc");
  return kl_mean(kl_softmax_with_cross_entropy(scores, label));
}

static kl_var *numbers(kl_net *net, kl_var *out) {
  return kl_mse(kl_named(out, "out"), kl_data(net, "y", KL_FLOAT32, -1, 1));
}

static kl_var *mlp(kl_net *net) {
  kl_var *h = kl_data(net, "x", KL_FLOAT32, -1, 784);
  h = kl_fc(kl_fc(h, 256, .act = "relu"), 128, .act = "relu");
  return classes(net, kl_fc(h, 10));
}

static kl_var *lenet(kl_net *net) {
  kl_var *h = kl_data(net, "x", KL_FLOAT32, -1, 1, 28, 28);
  h = kl_pool2d(kl_conv2d(h, 20, 5, .act = "relu"), "max", 2);
  h = kl_pool2d(kl_conv2d(h, 50, 5, .act = "relu"), "max", 2);
  return classes(net, kl_fc(kl_fc(h, 500, .act = "relu"), 10));
}

static kl_var *conv(kl_net *net) {
  kl_var *h = kl_data(net, "x", KL_FLOAT32, -1, 3, 16, 16);
  h = kl_conv2d(h, 8, 3, .pad = 1, .no_bias = true, .weight = {.init = kl_kaiming_normal()});
  h = kl_pool2d(kl_batch_norm(h, .act = "relu"), "avg", 3, 2, 1, .ceil_mode = true);
  h = kl_conv2d(h, 8, 3, .groups = 8, .padding = "SAME", .act = "hard_swish");
  h = kl_conv2d(h, 16, 3, .stride = 2, .dilation = 2, .pad = 2, .groups = 2, .no_bias = true);
  h = kl_dropout(kl_batch_norm(h, 0.8, .act = "leaky_relu"), 0.0, .upscale = true);
  kl_var *a = kl_pool2d(h, "avg", 1, .global = true), *b = kl_pool2d(h, "max", 1, .global = true);
  h = kl_concat(1, a, b);
  return classes(net, kl_fc(h, 10, .weight = {.init = kl_xavier_normal()}));
}

static kl_var *words(kl_net *net) {
  kl_var *ids = kl_data(net, "x", KL_INT64, -1, 12);
  kl_var *h = kl_embedding(ids, 50, 16, .has_padding = true, .padding = 3,
                           .weight = {.init = kl_normal(0, 0.3)});
  kl_var *q = kl_fc(h, 16, .flatten = 2), *v = kl_fc(h, 16, .flatten = 2, .act = "tanh");
  kl_var *s = kl_binary("matmul_v2", "trans_y=true", q, h);
  h = kl_add(h, kl_matmul(kl_softmax(kl_unary("scale", "scale=0.25", s)), v));
  h = kl_gelu(kl_layer_norm(h, 2));
  h = kl_unary("reduce_mean", "dim=[1]", h);
  return classes(net, kl_fc(h, 10));
}

static kl_var *shared(kl_net *net) {
  kl_var *x = kl_data(net, "x", KL_FLOAT32, -1, 20);
  kl_param half = {.name = "half", .lr = 0.5, .decay = kl_l1(1e-3)};
  kl_var *h = kl_fc(x, 20, .act = "sigmoid", .weight = half);
  h = kl_fc(h, 20, .act = "relu6", .weight = half, .no_bias = true);
  h = kl_fc(h, 8, .act = "swish", .weight = {.frozen = true}, .bias = {.no_clip = true});
  kl_var *p = kl_softmax(kl_fc(h, 10, .weight = {.init = kl_truncated_normal(0, 0.1)}));
  kl_var *label = kl_data(net, "y", KL_INT64, -1, 1);
  kl_named(p, "out");
  return kl_mean(kl_cross_entropy(p, label));
}

static kl_var *fit(kl_net *net) {
  kl_var *h = kl_data(net, "x", KL_FLOAT32, -1, 20);
  h = kl_fc(h, 32, .act = "tanh", .weight = {.init = kl_uniform(-0.3, 0.3)});
  return numbers(net, kl_fc(h, 1, .weight = {.init = kl_kaiming_uniform()}));
}

static kl_var *robust(kl_net *net) {
  kl_var *h = kl_fc(kl_data(net, "x", KL_FLOAT32, -1, 20), 16, .act = "elu");
  kl_var *out = kl_named(kl_fc(h, 1), "out"), *y = kl_data(net, "y", KL_FLOAT32, -1, 1);
  kl_var *bce = kl_mean(kl_bce_with_logits(out, kl_sigmoid(y)));
  return kl_add(kl_mean(kl_huber(out, y, 0.7)), bce);
}

static bool path(char *to, const char *dir, const char *name, const char *part) {
  int n = snprintf(to, 1024, "%s/%s%s", dir, name, part);
  return n > 0 && n < 1024;
}

static bool save(kl_net *net, const char *dir, const char *name) {
  char s[1024], m[1024], t[1024], prefix[1024];
  const char *feeds[] = {"x", NULL}, *fetches[] = {"out", NULL};
  kl_program *test = kl_clone_for_test(kl_main(net));
  kl_exec *exe = kl_exec_new(kl_exec_defaults);
  bool ok = path(s, dir, name, "_startup.pdmodel") && path(m, dir, name, "_main.pdmodel") &&
            path(t, dir, name, "_test.pdmodel") && path(prefix, dir, name, "") && test && exe &&
            kl_save(kl_startup(net), s) && kl_save(kl_main(net), m) && kl_save(test, t) &&
            kl_run(exe, kl_startup(net), NULL, NULL) &&
            kl_save_inference(exe, kl_main(net), prefix, feeds, fetches);
  kl_exec_free(exe);
  kl_program_free(test);
  return ok;
}

static bool net(const char *dir, const char *name, kl_var *(*build)(kl_net *), kl_optimizer o) {
  kl_net *n = kl_net_new();
  kl_seed(n, 5);
  kl_minimize(kl_named(build(n), "loss"), o);
  bool ok = !kl_failed() && save(n, dir, name);
  if (!ok) fprintf(stderr, "%s: %s", name, kl_error());
  kl_net_free(n);
  return ok;
}

int main(int argc, char **argv) {
  if (argc != 2) return fprintf(stderr, "usage: nets DIR\n"), 2;
  const char *d = argv[1];
  return !(net(d, "mlp-sgd", mlp, kl_sgd(0.1)) &&
           net(d, "lenet-momentum", lenet, kl_momentum(0.02, 0.9, .decay = kl_l2(5e-4))) &&
           net(d, "conv-adam", conv, kl_adam(2e-3)) &&
           net(d, "words-adamw", words, kl_adamw(2e-3, .clip = kl_clip_global_norm(0.5))) &&
           net(d, "shared-nesterov", shared,
               kl_momentum(0.1, .nesterov = true, .clip = kl_clip_value(-0.05, 0.05))) &&
           net(d, "fit-rmsprop", fit, kl_rmsprop(0.01, 0.5, .clip = kl_clip_norm(1))) &&
           net(d, "fit-rmsprop-centered", fit, kl_rmsprop(0.01, .centered = true)) &&
           net(d, "fit-adagrad", fit, kl_adagrad(0.05)) &&
           net(d, "robust-sgd", robust, kl_sgd(0.05, .decay = kl_l2(1e-3))));
}
