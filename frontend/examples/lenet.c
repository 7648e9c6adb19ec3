/* LeNet-5 for 28x28 images in 10 classes: builds the network and saves its programs.
 *
 *   lenet FOLDER
 * In: nothing. Out: FOLDER/lenet_startup.pdmodel, lenet_main.pdmodel and lenet_test.pdmodel for `kiln train`. Feeds: image
 * [-1, 1, 28, 28] and label [-1, 1]; fetches: loss and acc; the scores of the classes are the variable "scores".
 * LeCun et al., "Gradient-based learning applied to document recognition" (1998), with max pooling and ReLU. */
#include <kiln.h>
#include <stdio.h>

static kl_var *lenet(kl_var *image) {
  kl_var *c1 = kl_pool2d(kl_conv2d(image, 20, 5, .act = "relu"), "max", 2);
  kl_var *c2 = kl_pool2d(kl_conv2d(c1, 50, 5, .act = "relu"), "max", 2);
  return kl_fc(kl_fc(c2, 500, .act = "relu"), 10);
}

static bool save(const kl_program *p, const char *folder, const char *part) {
  char path[1024];
  int n = snprintf(path, sizeof path, "%s/lenet_%s.pdmodel", folder, part);
  return n > 0 && (size_t)n < sizeof path && kl_save(p, path);
}

int main(int argc, char **argv) {
  if (argc != 2) return fprintf(stderr, "usage: lenet FOLDER\n"), 2;
  kl_net *net = kl_net_new();
  kl_var *image = kl_data(net, "image", KL_FLOAT32, -1, 1, 28, 28);
  kl_var *label = kl_data(net, "label", KL_INT64, -1, 1);
  kl_var *scores = kl_named(lenet(image), "scores");
  kl_named(kl_accuracy(scores, label, 1), "acc");
  kl_var *loss = kl_named(kl_mean(kl_softmax_with_cross_entropy(scores, label)), "loss");
  kl_minimize(loss, kl_adam(0.001));

  kl_program *test = kl_clone_for_test(kl_main(net));
  bool ok = save(kl_startup(net), argv[1], "startup") && save(kl_main(net), argv[1], "main") &&
            save(test, argv[1], "test");
  if (!ok) fprintf(stderr, "%s", kl_error());
  kl_program_free(test);
  kl_net_free(net);
  return !ok;
}
