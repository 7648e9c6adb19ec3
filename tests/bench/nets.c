/* The networks of the benchmark, as program files: nets DIR writes DIR/NAME.startup.pdmodel and DIR/NAME.main.pdmodel.
 * Both train with SGD and momentum 0.9 on softmax cross entropy. */
#include "../../frontend/kiln.h"
#include <stdio.h>
#include <string.h>

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

static const struct {
  const char *name;
  kl_var *(*build)(kl_net *net);
} nets[] = {{"mlp", mlp}, {"lenet", lenet}};

static bool save(kl_net *net, const char *dir, const char *name) {
  char path[1024];
  snprintf(path, sizeof path, "%s/%s.startup.pdmodel", dir, name);
  if (!kl_save(kl_startup(net), path)) return false;
  snprintf(path, sizeof path, "%s/%s.main.pdmodel", dir, name);
  return kl_save(kl_main(net), path);
}

int main(int argc, char **argv) {
  if (argc != 2) return fprintf(stderr, "usage: nets DIR\n"), 2;
  for (size_t i = 0; i < sizeof nets / sizeof *nets; i++) {
    kl_net *net = kl_net_new();
    kl_var *logits = nets[i].build(net);
    kl_var *label = kl_data(net, "label", KL_INT64, -1, 1);
    kl_minimize(kl_mean(kl_softmax_with_cross_entropy(logits, label)), kl_momentum(0.01, 0.9));
    bool ok = !kl_failed() && save(net, argv[1], nets[i].name);
    kl_net_free(net);
    if (!ok) return fprintf(stderr, "%s", kl_error()), 1;
  }
  return 0;
}
