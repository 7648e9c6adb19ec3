/* The kernels of whole networks on the simulated GPU with all its checks on: MLP, LeNet, and VGG-16, ResNet-50, MobileNetV1 and
 * BERT-base with fewer channels, pixels and layers, in training and inference, in each arithmetic. The simulator must report
 * nothing (no race, no uninitialised read, no address out of bounds), and the losses are those of the CPU. */
#include "../frontend/internal.h"
#include "simulator.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

static kl_var *image(kl_net *net) { return kl_data(net, "x", KL_FLOAT32, -1, 3, 32, 32); }

static kl_var *mlp(kl_net *net) {
  kl_var *h = kl_fc(kl_data(net, "x", KL_FLOAT32, -1, 48), 32, .act = "relu");
  return kl_fc(h, 10);
}

static kl_var *lenet(kl_net *net) {
  kl_var *h = kl_data(net, "x", KL_FLOAT32, -1, 1, 28, 28);
  h = kl_pool2d(kl_conv2d(h, 6, 5, .act = "relu"), "max", 2);
  h = kl_pool2d(kl_conv2d(h, 16, 5, .act = "relu"), "max", 2);
  return kl_fc(kl_fc(h, 84, .act = "relu"), 10);
}

static kl_var *vgg(kl_net *net) {
  static const int stage[][2] = {{4, 2}, {8, 2}, {16, 3}, {32, 3}, {32, 3}}; /* filters, layers */
  kl_var *h = image(net);
  for (size_t s = 0; s < sizeof stage / sizeof *stage; s++) {
    for (int i = 0; i < stage[s][1]; i++)
      h = kl_conv2d(h, stage[s][0], 3, .pad = 1, .act = "relu",
                    .weight = {.init = kl_kaiming_normal()});
    h = kl_pool2d(h, "max", 2);
  }
  return kl_fc(kl_fc(h, 64, .act = "relu"), 10);
}

static kl_var *conv_bn(kl_var *x, int64_t filters, int64_t kernel, int64_t stride, int64_t groups,
                       const char *act) {
  kl_var *y = kl_conv2d(x, filters, kernel, .stride = stride, .pad = kernel / 2, .groups = groups,
                        .no_bias = true);
  return kl_batch_norm(y, .act = act);
}

static kl_var *resnet(kl_net *net) {
  kl_var *h = kl_pool2d(conv_bn(image(net), 8, 7, 2, 1, "relu"), "max", 3, 2, 1);
  for (int i = 0; i < 5; i++) {
    int64_t filters = 8 << (i + 1) / 2, stride = i % 2 ? 2 : 1;
    kl_var *y = conv_bn(conv_bn(h, filters, 1, 1, 1, "relu"), filters, 3, stride, 1, "relu");
    y = conv_bn(y, 4 * filters, 1, 1, 1, NULL);
    h = kl_relu(kl_add(y, i % 2 || !i ? conv_bn(h, 4 * filters, 1, stride, 1, NULL) : h));
  }
  return kl_fc(kl_pool2d(h, "avg", 1, .global = true), 10);
}

static kl_var *mobilenet(kl_net *net) {
  static const int part[][2] = {{8, 1}, {16, 2}, {16, 1}, {32, 2}, {32, 1}, {64, 2}, {64, 1}};
  kl_var *h = conv_bn(image(net), 4, 3, 2, 1, "relu");
  for (size_t i = 0, channels = 4; i < sizeof part / sizeof *part; channels = (size_t)part[i++][0])
    h = conv_bn(conv_bn(h, (int64_t)channels, 3, part[i][1], (int64_t)channels, "relu"), part[i][0],
                1, 1, 1, "relu");
  return kl_fc(kl_pool2d(h, "avg", 1, .global = true), 10);
}

enum { TOKENS = 16, HIDDEN = 32, HEADS = 4, WORDS = 50 };

static kl_var *dense(kl_var *x, int64_t size, const char *act) {
  return kl_fc(x, size, .flatten = 2, .act = act);
}
static kl_var *heads(kl_var *x) {
  return kl_unary("transpose2", "axis=[0,2,1,3]",
                  kl_reshape(dense(x, HIDDEN, NULL), 0, 0, HEADS, HIDDEN / HEADS));
}

static kl_var *bert(kl_net *net) {
  kl_var *ids = kl_data(net, "x", KL_INT64, -1, TOKENS);
  kl_param small = {.init = kl_truncated_normal(0, 0.02)};
  kl_var *place =
      kl_parameter(net, "position.w_0", KL_FLOAT32, 2, (int64_t[]){TOKENS, HIDDEN}, small, false);
  kl_var *h = kl_layer_norm(kl_add(kl_embedding(ids, WORDS, HIDDEN, .weight = small), place), 2);
  for (int i = 0; i < 2; i++) {
    kl_var *q = heads(h), *k = heads(h), *v = heads(h);
    kl_var *scores = kl_unary("scale", "scale=0.35", kl_binary("matmul_v2", "trans_y=true", q, k));
    kl_var *y = kl_unary("transpose2", "axis=[0,2,1,3]", kl_matmul(kl_softmax(scores), v));
    h = kl_layer_norm(kl_add(h, dense(kl_reshape(y, 0, 0, HIDDEN), HIDDEN, NULL)), 2);
    h = kl_layer_norm(kl_add(h, dense(dense(h, 4 * HIDDEN, "gelu"), HIDDEN, NULL)), 2);
  }
  return kl_fc(kl_unary("reduce_mean", "dim=[1]", h), 2);
}

typedef struct Model {
  const char *name;
  kl_var *(*build)(kl_net *net); /* -> logits */
  int classes;
  int64_t dims[4]; /* of x, the batch first */
} Model;
static const Model models[] = {{"mlp", mlp, 10, {6, 48, 1, 1}},
                               {"lenet", lenet, 10, {3, 1, 28, 28}},
                               {"vgg", vgg, 10, {2, 3, 32, 32}},
                               {"resnet", resnet, 10, {3, 3, 32, 32}},
                               {"mobilenet", mobilenet, 10, {3, 3, 32, 32}},
                               {"bert", bert, 2, {3, TOKENS, 1, 1}}};

typedef struct Case {
  const Model *model;
  const char *math;
  bool training;
} Case;

/* Losses of two steps on a device: training, or the same program without gradients. */
static bool losses(const Case *c, kl_net *net, const char *device, float to[2]) {
  static float x[4 * 3 * 32 * 32];
  static int64_t ids[4 * TOKENS], y[8];
  const int64_t *d = c->model->dims;
  bool words = d[1] == TOKENS;
  for (int i = 0; i < 4 * 3 * 32 * 32; i++) x[i] = (float)(i * 37 % 101 - 50) / 50;
  for (int i = 0; i < 4 * TOKENS; i++) ids[i] = i * 7 % WORDS;
  for (int i = 0; i < 8; i++) y[i] = i * 3 % c->model->classes;
  kl_tensor tx = words       ? kl_array(KL_INT64, ids, d[0], d[1])
                 : d[2] == 1 ? kl_array(KL_FLOAT32, x, d[0], d[1])
                             : kl_array(KL_FLOAT32, x, d[0], d[1], d[2], d[3]);
  kl_tensor ty = kl_array(KL_INT64, y, d[0], 1);
  kl_feed feeds[] = {{"x", &tx}, {"y", &ty}, {NULL, NULL}};
  kl_exec_options o = kl_exec_defaults;
  o.threads = 2, o.seed = 5, o.device = device, o.math = strcmp(device, "cpu") ? c->math : "exact";
  kl_exec *exe = kl_exec_new(o);
  bool ok = exe && kl_run(exe, kl_startup(net), NULL, NULL);
  for (int k = 0; ok && k < 2; k++) {
    kl_tensor loss = kl_array(KL_FLOAT32, &to[k], 1);
    kl_fetch fetches[] = {{"loss", &loss}, {NULL, NULL}};
    ok = kl_run(exe, kl_main(net), feeds, fetches);
  }
  kl_exec_free(exe);
  return ok;
}

static int try_case(const void *arg) {
  const Case *c = arg;
  float cpu[2], gpu[2];
  char text[2000] = "";
  kl_net *net = kl_net_new();
  kl_var *label = kl_data(net, "y", KL_INT64, -1, 1);
  kl_seed(net, 3);
  kl_var *loss =
      kl_named(kl_mean(kl_softmax_with_cross_entropy(c->model->build(net), label)), "loss");
  if (c->training) kl_minimize(loss, kl_momentum(0.0005, 0.9));
  FILE *reports = tmpfile(); /* what the simulator says goes to stderr */
  int saved = dup(2);
  dup2(fileno(reports), 2);
  bool ok = losses(c, net, "cpu", cpu) && losses(c, net, "cuda", gpu);
  dup2(saved, 2);
  rewind(reports);
  text[fread(text, 1, sizeof text - 1, reports)] = 0;
  fclose(reports);
  bool exact = !strcmp(c->math, "exact"), near = true;
  for (int k = 0; ok && k < (exact ? 2 : 1); k++) /* rounded products: before the first update */
    near &= fabs((double)gpu[k] - (double)cpu[k]) <= (exact ? 1e-5 : 0.02) * fabs((double)cpu[k]);
  if (!ok) printf("%s\n", kl_error());
  if (ok && !near)
    printf("losses %g and %g, on the CPU %g and %g\n", (double)gpu[0], (double)gpu[1],
           (double)cpu[0], (double)cpu[1]);
  if (*text) printf("%s\n", text);
  kl_net_free(net);
  return !ok || !near || *text;
}

static void all_models(const char *sm, const char *math, bool training) {
  char setting[40];
  snprintf(setting, sizeof setting, "CUDASIM_SM=%s", sm);
  const char *settings[] = {setting, NULL};
  for (size_t k = 0; k < sizeof models / sizeof *models; k++) {
    Case c = {&models[k], math, training};
    if (in_process(settings, try_case, &c))
      fail_msg("%s, sm_%s, %s, %s", models[k].name, sm, math, training ? "training" : "inference");
  }
}

static void exact(void **state) { (void)state, all_models("80", "exact", true); }
static void inference(void **state) { (void)state, all_models("80", "exact", false); }
static void tf32(void **state) { (void)state, all_models("90", "tf32", true); }
static void bf16(void **state) { (void)state, all_models("80", "bf16", true); }
static void older(void **state) { (void)state, all_models("75", "exact", false); }

int main(int argc, char *argv[]) {
  (void)argc;
  if (!simulator(argv)) return 1;
  const struct CMUnitTest tests[] = {cmocka_unit_test(exact), cmocka_unit_test(inference),
                                     cmocka_unit_test(tf32), cmocka_unit_test(bf16),
                                     cmocka_unit_test(older)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
