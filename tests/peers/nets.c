/* Networks that Kiln's builder writes for PaddlePaddle to read: nets DIR makes DIR/NAME_startup.pdmodel, _main.pdmodel,
 * _test.pdmodel (clone for test) and the inference model NAME.pdmodel with NAME.pdiparams. Together they use every layer,
 * loss, initialiser, optimiser, kind of clipping and decay, and the control flow of kiln.h. The loss is "loss", the result
 * "out". */
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

/* ---- control flow ---- */

static kl_var *count(kl_net *net, double v) { return kl_fill(net, KL_INT64, v, 1); }

static kl_var *square_weight(kl_net *net, const char *name) {
  return kl_parameter(net, name, KL_FLOAT32, 2, (int64_t[]){12, 12},
                      (kl_param){.name = name, .init = kl_uniform(-0.3, 0.3)}, false);
}

/* h = tanh(h W + x_i) for four inputs in a list, every h kept in another. */
static kl_var *loop(kl_net *net) {
  kl_var *x = kl_fc(kl_data(net, "x", KL_FLOAT32, -1, 8), 12, .act = "tanh");
  kl_var *w = square_weight(net, "carried"), *h = kl_copy(x);
  kl_var *kept = kl_list(net, KL_FLOAT32), *inputs = kl_list(net, KL_FLOAT32);
  kl_var *i = count(net, 0), *n = count(net, 4), *one = count(net, 1);
  for (int k = 0; k < 4; k++) kl_list_set(inputs, count(net, k), kl_fc(x, 12, .act = "sin"));
  kl_list_set(kept, i, x);
  kl_block *b = kl_while(kl_less_than(i, n));
  kl_assign(h, kl_tanh(kl_add(kl_matmul(h, w), kl_list_get(inputs, i))));
  kl_assign(i, kl_add(i, one));
  kl_list_set(kept, i, h);
  kl_end_while(b, kl_less_than(i, n));
  kl_var *all = kl_reshape(kl_list_stack(kept, 1), -1, 60);
  return numbers(net, kl_fc(kl_concat(1, all, h), 1));
}

static kl_var *branch(kl_net *net) {
  kl_var *x = kl_data(net, "x", KL_FLOAT32, -1, 8), *h = kl_fc(x, 12, .act = "relu");
  kl_block *b = kl_if(kl_less_than(kl_mean(x), kl_fill(net, KL_FLOAT32, 0, 1)));
  kl_var *yes[2] = {kl_fc(h, 6, .act = "sigmoid"), kl_mul(h, h)};
  kl_else(b);
  kl_var *no[2] = {kl_fc(kl_fc(h, 5), 6, .act = "tanh"), kl_unary("scale", "scale=0.5", h)};
  kl_var *out[2];
  if (!kl_end_if(b, 2, yes, no, out)) return NULL;
  return numbers(net, kl_fc(kl_concat(1, out[0], out[1]), 1));
}

/* A loop over rows of a table with a branch inside, and a loop inside that. */
static kl_var *nested(kl_net *net) {
  kl_var *x = kl_fc(kl_data(net, "x", KL_FLOAT32, -1, 8), 12, .act = "tanh");
  kl_var *w = square_weight(net, "outer"), *u = square_weight(net, "inner"), *h = kl_copy(x);
  kl_var *i = count(net, 0), *n = count(net, 3), *one = count(net, 1);
  kl_block *rows = kl_while(kl_less_than(i, n));
  kl_block *odd = kl_if(kl_equal(i, one));
  kl_var *g = kl_copy(h), *j = count(net, 0), *m = count(net, 2);
  kl_block *again = kl_while(kl_less_than(j, m));
  kl_assign(g, kl_tanh(kl_matmul(g, u)));
  kl_assign(j, kl_add(j, count(net, 1)));
  kl_end_while(again, kl_less_than(j, m));
  kl_else(odd);
  kl_var *other = kl_mul(kl_matmul(h, w), h), *next = kl_choose(odd, g, other);
  kl_assign(h, kl_add(next, x));
  kl_assign(i, kl_add(i, count(net, 1)));
  kl_end_while(rows, kl_less_than(i, n));
  return numbers(net, kl_fc(h, 1));
}

/* ---- recurrent layers, attention ---- */

/* Two layers in both directions over embedded words [N, 7]. */
static kl_var *recurrent(kl_net *net, const char *mode, int gates, bool cells) {
  enum { WIDTH = 10, IN = 8 };
  kl_var *x = kl_embedding(kl_data(net, "x", KL_INT64, -1, 7), 10, IN), *w[16];
  for (int k = 0; k < 16; k++) {
    bool bias = k >= 8;
    int64_t in = k % 2 ? WIDTH : k < 4 ? IN : 2 * WIDTH;
    w[k] = kl_parameter(net, bias ? "cell.b" : "cell.w", KL_FLOAT32, bias ? 1 : 2,
                        (int64_t[]){gates * WIDTH, in}, (kl_param){.init = kl_uniform(-0.3, 0.3)},
                        bias);
  }
  x = kl_op(net, "transpose2", "axis=[1,0,2]", "X", x);
  kl_var *zero = kl_op(net, "fill_constant_batch_size_like",
                       "shape=[4,-1,10] input_dim_idx=1 output_dim_idx=1", "Input", x);
  char attrs[160];
  snprintf(attrs, sizeof attrs,
           "mode='%s' input_size=8 hidden_size=10 num_layers=2 is_bidirec=true", mode);
#define W(i)                                                                                       \
  "WeightList", w[i], "WeightList", w[i + 1], "WeightList", w[i + 2], "WeightList", w[i + 3]
  kl_var *h = cells
                  ? kl_op(net, "rnn", attrs, "Input", x, "PreState", zero, "PreState", zero, W(0),
                          W(4), W(8), W(12))
                  : kl_op(net, "rnn", attrs, "Input", x, "PreState", zero, W(0), W(4), W(8), W(12));
  kl_var *last = kl_output_n(h, "State", cells);
  h = kl_fc(kl_unary("reduce_mean", "dim=[0]", h), 10);
  return classes(net, kl_add(h, kl_fc(kl_unary("reduce_sum", "dim=[0]", last), 10)));
}
static kl_var *lstm(kl_net *net) { return recurrent(net, "LSTM", 4, true); }
static kl_var *gru(kl_net *net) { return recurrent(net, "GRU", 3, false); }
static kl_var *rnn(kl_net *net) { return recurrent(net, "RNN_TANH", 1, false); }

/* [N, T, 16] -> [N, 4 heads, T, 4] */
static kl_var *heads(kl_net *net, kl_var *x) {
  return kl_op(net, "transpose2", "axis=[0,2,1,3]", "X",
               kl_reshape(kl_fc(x, 16, .flatten = 2, .no_bias = true), 0, 0, 4, 4));
}

static kl_var *attention(kl_net *net) {
  kl_var *ids = kl_data(net, "x", KL_INT64, -1, 6);
  kl_var *place =
      kl_op(net, "range", "", "Start", count(net, 0), "End", count(net, 6), "Step", count(net, 1));
  kl_var *h = kl_add(kl_embedding(ids, 10, 16), kl_embedding(place, 6, 16));
  kl_var *mask = kl_unary("cast", "in_dtype=0 out_dtype=5", kl_equal(ids, count(net, 3)));
  mask = kl_unary("scale", "scale=-10000.0", kl_reshape(mask, -1, 1, 1, 6));
  for (int layer = 0; layer < 2; layer++) {
    kl_var *q = kl_unary("scale", "scale=0.5", heads(net, h)), *k = heads(net, h),
           *v = heads(net, h);
    kl_var *p = kl_softmax(kl_add(kl_binary("matmul_v2", "trans_y=true", q, k), mask));
    p = kl_matmul(kl_dropout(p, 0.0, .upscale = true), v);
    p = kl_reshape(kl_op(net, "transpose2", "axis=[0,2,1,3]", "X", p), 0, 0, 16);
    h = kl_layer_norm(kl_add(h, kl_fc(p, 16, .flatten = 2)), 2);
    kl_var *f = kl_fc(kl_fc(h, 32, .flatten = 2, .act = "gelu"), 16, .flatten = 2);
    h = kl_layer_norm(kl_add(h, f), 2);
  }
  kl_var *first = kl_op(net, "slice", "axes=[1] starts=[0] ends=[1] decrease_axis=[1]", "Input", h);
  return classes(net, kl_fc(kl_tanh(kl_fc(first, 16)), 10));
}

/* ---- the rest ---- */

/* Operators by their names, lists of outputs. */
static kl_var *mixed(kl_net *net) {
  kl_var *x = kl_data(net, "x", KL_FLOAT32, -1, 3, 12, 12);
  kl_var *h = kl_conv2d(x, 8, 3, .pad = 1, .stride = 2);
  kl_var *scale = kl_parameter(net, "scale", KL_FLOAT32, 1, (int64_t[]){8},
                               (kl_param){.init = kl_constant(1)}, false);
  kl_var *shift = kl_parameter(net, "shift", KL_FLOAT32, 1, (int64_t[]){8}, (kl_param){0}, true);
  kl_var *part = kl_op(net, "split", "num=2 axis=1", "X",
                       kl_op(net, "group_norm", "groups=2", "X", h, "Scale", scale, "Bias", shift));
  kl_var *a = kl_unary("mish", "", part), *b = kl_unary("silu", "", kl_output_n(part, "Out", 1));
  kl_var *up =
      kl_parameter(net, "up", KL_FLOAT32, 4, (int64_t[]){4, 6, 2, 2}, (kl_param){0}, false);
  a = kl_op(net, "conv2d_transpose", "strides=[2,2]", "Input", a, "Filter", up);
  b = kl_op(net, "bilinear_interp_v2",
            "out_h=12 out_w=12 align_corners=false align_mode=0 interp_method='bilinear'", "X", b);
  h = kl_op(net, "pad3d", "paddings=[1,1,1,1,0,0] mode='replicate'", "X",
            kl_reshape(kl_concat(1, a, b), 0, 10, 1, 12, 12));
  h = kl_pool2d(kl_reshape(h, 0, 10, 14, 14), "avg", 7, .inclusive = true);
  h = kl_op(net, "prelu", "mode='all'", "X", kl_op(net, "instance_norm", "", "X", h), "Alpha",
            kl_parameter(net, "slope", KL_FLOAT32, 1, (int64_t[]){1},
                         (kl_param){.init = kl_constant(0.2)}, false));
  kl_var *three = kl_op(net, "unbind", "axis=2", "X", h), *second = kl_output_n(three, "Out", 1);
  h = kl_op(net, "flatten_contiguous_range", "start_axis=1 stop_axis=-1", "X",
            kl_sub(three, second));
  return classes(net, kl_fc(h, 10));
}

static kl_var *soft(kl_net *net) {
  kl_var *x = kl_data(net, "x", KL_FLOAT32, -1, 20), *y = kl_data(net, "y", KL_FLOAT32, -1, 5);
  float w[20 * 12];
  for (int i = 0; i < 20 * 12; i++) w[i] = (float)(i % 17 - 8) / 40;
  kl_tensor given = kl_array(KL_FLOAT32, w, 20, 12);
  kl_var *h = kl_fc(x, 12, .act = "softsign", .weight = {.init = kl_values(&given)});
  kl_var *out = kl_named(kl_fc(kl_layer_norm(h, .no_bias = true), 5), "out");
  return kl_mean(kl_soft_label_cross_entropy(out, kl_softmax(y)));
}

/* Losses differ by what falls out: they are compared as a whole. */
static kl_var *random_net(kl_net *net) {
  kl_var *h = kl_fc(kl_data(net, "x", KL_FLOAT32, -1, 20), 512, .act = "relu");
  h = kl_fc(kl_dropout(h, 0.4), 512, .act = "relu");
  return classes(net, kl_fc(kl_dropout(h, 0.3, .upscale = true), 10));
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
  if (!ok) fprintf(stderr, "%s: %s", name, kl_error()), kl_clear_error();
  kl_net_free(n);
  return ok;
}

int main(int argc, char **argv) {
  if (argc != 2) return fprintf(stderr, "usage: nets DIR\n"), 2;
  const struct {
    const char *name;
    kl_var *(*build)(kl_net *);
    kl_optimizer optimizer;
  } nets[] = {
      {"mlp-sgd", mlp, kl_sgd(0.1)},
      {"lenet-momentum", lenet, kl_momentum(0.02, 0.9, .decay = kl_l2(5e-4))},
      {"conv-adam", conv, kl_adam(2e-3)},
      {"words-adamw", words, kl_adamw(2e-3, .clip = kl_clip_global_norm(0.5))},
      {"shared-nesterov", shared,
       kl_momentum(0.1, .nesterov = true, .clip = kl_clip_value(-0.05, 0.05))},
      {"fit-rmsprop", fit, kl_rmsprop(0.01, 0.5, .clip = kl_clip_norm(1))},
      {"fit-rmsprop-centered", fit, kl_rmsprop(0.01, .centered = true)},
      {"fit-adagrad", fit, kl_adagrad(0.05)},
      {"robust-sgd", robust, kl_sgd(0.05, .decay = kl_l2(1e-3))},
      {"soft-labels-momentum", soft, kl_momentum(0.05)},
      {"mixed-momentum", mixed, kl_momentum(0.02, .decay = kl_l1(1e-4))},
      {"loop-momentum", loop, kl_momentum(0.02)},
      {"branch-adam", branch, kl_adam(5e-3)},
      {"nested-rmsprop", nested, kl_rmsprop(2e-3)},
      {"lstm-adam", lstm, kl_adam(5e-3, .clip = kl_clip_global_norm(5))},
      {"gru-adagrad", gru, kl_adagrad(0.05)},
      {"rnn-sgd", rnn, kl_sgd(0.1)},
      {"attention-adamw", attention, kl_adamw(1e-3, .weight_decay = 0.05)},
      {"random-dropout-momentum", random_net, kl_momentum(0.02)},
  };
  bool ok = true;
  for (size_t i = 0; i < sizeof nets / sizeof *nets; i++)
    ok = net(argv[1], nets[i].name, nets[i].build, nets[i].optimizer) && ok;
  return !ok;
}
