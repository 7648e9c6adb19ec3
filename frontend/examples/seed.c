/* A small network with an operator of its own, trained from C:
 * data 784 -> fc 100 -> ReLU as a custom operator (custom_relu.c) -> fc 10 softmax -> cross entropy -> mean, SGD 0.01.
 *
 *   seed IMAGES LABELS TEST_IMAGES TEST_LABELS [EPOCHS] [FOLDER]
 * In: IDX or .npy files of 28x28 images (0..255) and labels (0..9). Out: a line per epoch with the mean loss and the
 * accuracy on the test images. With FOLDER: the programs seed_startup, seed_main and seed_test (.pdmodel), and the
 * parameters before the first step, initial.pdiparams. Batches of 256 in file order; the last one is smaller. */
#include <kiln.h>
#include <stdio.h>
#include <stdlib.h>

bool kiln_plugin(void); /* of custom_relu.c: registers the operator */

enum { BATCH = 256, PIXELS = 784 };

typedef struct Data {
  int64_t n;
  float *images;
  int64_t *labels;
} Data;

/* Pixels to 0..1, labels to int64. */
static bool read_data(const char *images, const char *labels, Data *d) {
  kl_tensor x = {0}, y = {0};
  bool ok = kl_read_array(images, &x) && kl_read_array(labels, &y);
  ok = ok && x.dtype == KL_UINT8 && y.dtype == KL_UINT8 && kl_numel(&x) == PIXELS * kl_numel(&y);
  d->n = ok ? kl_numel(&y) : 0;
  d->images = calloc((size_t)(d->n * PIXELS + 1), sizeof *d->images);
  d->labels = calloc((size_t)(d->n + 1), sizeof *d->labels);
  ok = ok && d->images && d->labels;
  for (int64_t i = 0; ok && i < d->n * PIXELS; i++) d->images[i] = ((uint8_t *)x.data)[i] / 255.0f;
  for (int64_t i = 0; ok && i < d->n; i++) d->labels[i] = ((uint8_t *)y.data)[i];
  kl_tensor_free(&x), kl_tensor_free(&y);
  if (!ok && !kl_failed())
    fprintf(stderr, "seed: uint8 images of 784 pixels and labels are needed\n");
  return ok;
}

/* One pass over the data: the mean of one metric. */
static double pass(kl_exec *exe, const kl_program *p, const Data *d, const char *metric) {
  float v = 0;
  double sum = 0;
  kl_tensor to = kl_array(KL_FLOAT32, &v, 1);
  for (int64_t at = 0; at < d->n && !kl_failed(); at += BATCH) {
    int64_t n = d->n - at < BATCH ? d->n - at : BATCH;
    kl_tensor x = kl_array(KL_FLOAT32, d->images + at * PIXELS, n, PIXELS);
    kl_tensor y = kl_array(KL_INT64, d->labels + at, n, 1);
    kl_run(exe, p, kl_feeds({"image", &x}, {"label", &y}), kl_fetches({metric, &to}));
    sum += v * (double)n;
  }
  return sum / (double)(d->n ? d->n : 1);
}

static void save(kl_exec *exe, kl_net *net, const kl_program *test, const char *folder) {
  const kl_program *parts[] = {kl_startup(net), kl_main(net), test};
  const char *names[] = {"seed_startup.pdmodel", "seed_main.pdmodel", "seed_test.pdmodel"};
  char path[1024];
  for (int i = 0; i < 3; i++) {
    snprintf(path, sizeof path, "%s/%s", folder, names[i]);
    kl_save(parts[i], path);
  }
  snprintf(path, sizeof path, "%s/initial.pdiparams", folder);
  kl_save_params(exe, test, path);
}

int main(int argc, char **argv) {
  Data train, test;
  if (argc < 5) {
    fprintf(stderr, "usage: seed IMAGES LABELS TEST_IMAGES TEST_LABELS [EPOCHS] [FOLDER]\n");
    return 2;
  }
  kiln_plugin();
  if (!read_data(argv[1], argv[2], &train) || !read_data(argv[3], argv[4], &test))
    return fprintf(stderr, "%s", kl_error()), 1;

  kl_net *net = kl_net_new();
  kl_seed(net, 90);
  kl_var *image = kl_data(net, "image", KL_FLOAT32, -1, PIXELS);
  kl_var *label = kl_data(net, "label", KL_INT64, -1, 1);
  kl_var *hidden = kl_op(net, "custom_relu", "", "X", kl_fc(image, 100));
  kl_var *scores = kl_fc(hidden, 10, .act = "softmax");
  kl_named(kl_accuracy(scores, label, 1), "acc");
  kl_var *loss = kl_named(kl_mean(kl_cross_entropy(scores, label)), "loss");
  kl_minimize(loss, kl_sgd(0.01));
  kl_program *test_program = kl_clone_for_test(kl_main(net));

  kl_exec *exe = kl_exec_new(kl_exec_defaults);
  kl_run(exe, kl_startup(net), NULL, NULL);
  if (argc > 6) save(exe, net, test_program, argv[6]);
  int epochs = argc > 5 ? atoi(argv[5]) : 5;
  for (int e = 0; e < epochs && !kl_failed(); e++) {
    double l = pass(exe, kl_main(net), &train, "loss");
    double a = pass(exe, test_program, &test, "acc");
    if (!kl_failed()) printf("epoch %d loss %.6f acc %.4f\n", e + 1, l, a);
  }
  if (kl_failed()) fprintf(stderr, "%s", kl_error());
  int rc = kl_failed();
  kl_exec_free(exe), kl_program_free(test_program), kl_net_free(net);
  free(train.images), free(train.labels), free(test.images), free(test.labels);
  return rc;
}
