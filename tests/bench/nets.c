/* The networks of the benchmark as program files: nets [--training] DIR [NAME...] (all of them).
 *
 * Out: DIR/NAME.startup.pdmodel and DIR/NAME.main.pdmodel train with SGD (0.01) and momentum 0.9 on softmax cross entropy,
 * batch norm with the statistics of the batch, no dropout; DIR/NAME.pdmodel and DIR/NAME.pdiparams are the inference
 * program with the parameters that the startup program makes, but other running statistics; --training leaves these two
 * out. Input x (float; of bert int64 ids), label int64 [N, 1], loss "loss", result "out". The initial values are the same
 * in each run.
 *
 * lenet: 20-50-500. mobilenet: MobileNetV1 1.0 (Howard et al. 2017). resnet18, resnet50 (He et al. 2016; the stride of a
 * bottleneck is in its 3x3). vgg16: configuration D (Simonyan & Zisserman 2015). bert: BERT-base (Devlin et al. 2019), 128
 * tokens, no mask; `out` is the last layer's states, the loss that of a classifier on their mean. */
#include "../../frontend/kiln.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define HE .weight = {.init = kl_kaiming_normal()}

static kl_var *mlp(kl_net *net) {
  kl_var *h = kl_data(net, "x", KL_FLOAT32, -1, 784);
  h = kl_fc(h, 256, .act = "relu");
  h = kl_fc(h, 128, .act = "relu");
  return kl_fc(h, 10);
}

static kl_var *lenet(kl_net *net) {
  kl_var *h = kl_data(net, "x", KL_FLOAT32, -1, 1, 28, 28);
  h = kl_pool2d(kl_conv2d(h, 20, 5, .act = "relu"), "max", 2);
  h = kl_pool2d(kl_conv2d(h, 50, 5, .act = "relu"), "max", 2);
  h = kl_fc(h, 500, .act = "relu");
  return kl_fc(h, 10);
}

static kl_var *image(kl_net *net) { return kl_data(net, "x", KL_FLOAT32, -1, 3, 224, 224); }

/* A convolution without bias, "same" padding, and batch norm. */
static kl_var *conv_bn(kl_var *x, int64_t filters, int64_t kernel, int64_t stride, int64_t groups,
                       const char *act) {
  kl_var *y = kl_conv2d(x, filters, kernel, .stride = stride, .pad = kernel / 2, .groups = groups,
                        .no_bias = true, HE);
  return kl_batch_norm(y, .act = act);
}

/* The mean over the image, and 1000 classes. */
static kl_var *classifier(kl_var *x) {
  return kl_fc(kl_pool2d(x, "avg", 1, .global = true), 1000,
               .weight = {.init = kl_normal(0, 0.01)});
}

static kl_var *mobilenet(kl_net *net) {
  static const struct {
    int64_t filters, stride;
  } part[] = {{64, 1},  {128, 2}, {128, 1}, {256, 2}, {256, 1},  {512, 2}, {512, 1},
              {512, 1}, {512, 1}, {512, 1}, {512, 1}, {1024, 2}, {1024, 1}};
  kl_var *h = conv_bn(image(net), 32, 3, 2, 1, "relu");
  for (size_t i = 0, channels = 32; i < sizeof part / sizeof *part; i++) {
    h = conv_bn(h, (int64_t)channels, 3, part[i].stride, (int64_t)channels, "relu");
    h = conv_bn(h, part[i].filters, 1, 1, 1, "relu");
    channels = (size_t)part[i].filters;
  }
  return classifier(h);
}

/* Two 3x3, or with `wide` 1x1, 3x3, 1x1 with four times the filters; beside them the input, projected at the start of a
 * stage where its shape changes. */
static kl_var *residual(kl_var *x, int64_t filters, int64_t stride, bool wide, bool project) {
  kl_var *h = wide ? conv_bn(x, filters, 1, 1, 1, "relu") : x;
  h = conv_bn(h, filters, 3, stride, 1, "relu");
  int64_t out = wide ? 4 * filters : filters;
  h = conv_bn(h, out, wide ? 1 : 3, 1, 1, NULL);
  return kl_relu(kl_add(h, project ? conv_bn(x, out, 1, stride, 1, NULL) : x));
}

static kl_var *resnet(kl_net *net, bool wide, const int *blocks) {
  kl_var *h = kl_pool2d(conv_bn(image(net), 64, 7, 2, 1, "relu"), "max", 3, 2, 1);
  for (int stage = 0; stage < 4; stage++)
    for (int i = 0; i < blocks[stage]; i++)
      h = residual(h, 64LL << stage, stage && !i ? 2 : 1, wide, !i && (stage || wide));
  return classifier(h);
}

static kl_var *resnet18(kl_net *net) { return resnet(net, false, (const int[]){2, 2, 2, 2}); }
static kl_var *resnet50(kl_net *net) { return resnet(net, true, (const int[]){3, 4, 6, 3}); }

static kl_var *vgg16(kl_net *net) {
  static const struct {
    int64_t filters;
    int layers;
  } stage[] = {{64, 2}, {128, 2}, {256, 3}, {512, 3}, {512, 3}};
  kl_var *h = image(net);
  for (size_t s = 0; s < sizeof stage / sizeof *stage; s++) {
    for (int i = 0; i < stage[s].layers; i++)
      h = kl_conv2d(h, stage[s].filters, 3, .pad = 1, .act = "relu", HE);
    h = kl_pool2d(h, "max", 2);
  }
  for (int i = 0; i < 2; i++) h = kl_fc(h, 4096, .act = "relu", HE);
  return kl_fc(h, 1000, .weight = {.init = kl_normal(0, 0.01)});
}

enum { TOKENS = 128, HIDDEN = 768, HEADS = 12, LAYERS = 12, VOCABULARY = 30522 };

static kl_var *dense(kl_var *x, int64_t size, const char *act) {
  return kl_fc(x, size, .flatten = 2, .act = act, .weight = {.init = kl_truncated_normal(0, 0.02)});
}

/* [N, T, H] -> [N, heads, T, H/heads] */
static kl_var *heads(kl_var *x) {
  return kl_unary("transpose2", "axis=[0,2,1,3]", kl_reshape(x, 0, 0, HEADS, HIDDEN / HEADS));
}

static kl_var *attention(kl_var *x) {
  kl_var *q = heads(dense(x, HIDDEN, NULL)), *k = heads(dense(x, HIDDEN, NULL)),
         *v = heads(dense(x, HIDDEN, NULL));
  kl_var *scores = kl_unary("scale", "scale=0.125", kl_binary("matmul_v2", "trans_y=true", q, k));
  kl_var *y = kl_unary("transpose2", "axis=[0,2,1,3]", kl_matmul(kl_softmax(scores), v));
  return dense(kl_reshape(y, 0, 0, HIDDEN), HIDDEN, NULL);
}

static kl_var *bert(kl_net *net) {
  kl_var *ids = kl_data(net, "x", KL_INT64, -1, TOKENS);
  kl_param small = {.init = kl_truncated_normal(0, 0.02)};
  kl_var *place =
      kl_parameter(net, "position.w_0", KL_FLOAT32, 2, (int64_t[]){TOKENS, HIDDEN}, small, false);
  kl_var *h = kl_add(kl_embedding(ids, VOCABULARY, HIDDEN, .weight = small), place);
  h = kl_layer_norm(h, 2);
  for (int i = 0; i < LAYERS; i++) {
    h = kl_layer_norm(kl_add(h, attention(h)), 2);
    h = kl_layer_norm(kl_add(h, dense(dense(h, 4 * HIDDEN, "gelu"), HIDDEN, NULL)), 2);
  }
  kl_named(h, "out");
  return kl_fc(kl_unary("reduce_mean", "dim=[1]", h), 2);
}

static const struct {
  const char *name;
  kl_var *(*build)(kl_net *net); /* -> logits */
} nets[] = {{"mlp", mlp},           {"lenet", lenet},       {"mobilenet", mobilenet},
            {"resnet18", resnet18}, {"resnet50", resnet50}, {"vgg16", vgg16},
            {"bert", bert}};

/* Running statistics as a trained network has them: means around 0, variances around 1. */
static bool statistics(kl_exec *exe) {
  char name[64];
  for (int i = 0;; i++) {
    for (int part = 1; part <= 2; part++) {
      snprintf(name, sizeof name, "batch_norm_%d.w_%d", i, part);
      const kl_tensor *t = kl_get(exe, name);
      if (!t) return true;
      kl_tensor to = *t;
      float *v = to.data = malloc((size_t)kl_numel(t) * sizeof *v);
      for (int64_t k = 0; v && k < kl_numel(t); k++)
        v[k] = (float)(part - 1 + 0.25 * sin((double)(7 * i + 3 * k + part)));
      bool ok = v && kl_set(exe, name, &to);
      free(v);
      if (!ok) return false;
    }
  }
}

static bool training_only;

static bool save(kl_net *net, const char *dir, const char *name) {
  char path[1024];
  const char *feeds[] = {"x", NULL}, *fetches[] = {"out", NULL};
  kl_exec *exe = kl_exec_new(kl_exec_defaults);
  bool ok = exe != NULL;
  snprintf(path, sizeof path, "%s/%s.startup.pdmodel", dir, name);
  ok = ok && kl_save(kl_startup(net), path);
  snprintf(path, sizeof path, "%s/%s.main.pdmodel", dir, name);
  ok = ok && kl_save(kl_main(net), path);
  snprintf(path, sizeof path, "%s/%s", dir, name);
  if (ok && !training_only)
    ok = kl_run(exe, kl_startup(net), NULL, NULL) && statistics(exe) &&
         kl_save_inference(exe, kl_main(net), path, feeds, fetches);
  kl_exec_free(exe);
  return ok;
}

static bool write_net(size_t i, const char *dir) {
  kl_net *net = kl_net_new();
  kl_seed(net, 1);
  kl_var *logits = nets[i].build(net), *label = kl_data(net, "label", KL_INT64, -1, 1);
  if (logits && !kl_find(net, "out")) kl_named(logits, "out");
  kl_var *loss = kl_mean(kl_softmax_with_cross_entropy(logits, label));
  kl_minimize(kl_named(loss, "loss"), kl_momentum(0.01, 0.9));
  bool ok = !kl_failed() && save(net, dir, nets[i].name);
  kl_net_free(net);
  if (!ok) fprintf(stderr, "%s: %s", nets[i].name, kl_error());
  return ok;
}

int main(int argc, char **argv) {
  training_only = argc > 1 && !strcmp(argv[1], "--training");
  if (training_only) argc--, argv++;
  if (argc < 2) return fprintf(stderr, "usage: nets [--training] DIR [NAME...]\n"), 2;
  int written = 0;
  for (size_t i = 0; i < sizeof nets / sizeof *nets; i++) {
    bool wanted = argc == 2;
    for (int k = 2; k < argc; k++) wanted |= !strcmp(argv[k], nets[i].name);
    if (wanted && !write_net(i, argv[1])) return 1;
    written += wanted;
  }
  return written == (argc == 2 ? (int)(sizeof nets / sizeof *nets) : argc - 2) ? 0 : 2;
}
