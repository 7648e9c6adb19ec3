/* A multilayer perceptron 784-256-128-10 on images from files, trained from C, step by step.
 *
 *   mlp IMAGES LABELS [EPOCHS] [FOLDER]
 * In: IDX or .npy files of n 28x28 images (0..255) and n labels (0..9). Out: a line per epoch; with FOLDER, the inference
 * model FOLDER/mlp.pdmodel and .pdiparams, and the programs mlp_startup.pdmodel and mlp_main.pdmodel. */
#include <kiln.h>
#include <stdio.h>
#include <stdlib.h>

enum { BATCH = 64 };

typedef struct Data {
  int64_t n;
  float *images;
  int64_t *labels;
} Data;

/* Pixels to 0..1, labels to int64. */
static bool read_data(const char *images, const char *labels, Data *d) {
  kl_tensor x = {0}, y = {0};
  bool ok = kl_read_array(images, &x) && kl_read_array(labels, &y);
  ok = ok && x.dtype == KL_UINT8 && y.dtype == KL_UINT8 && kl_numel(&x) == 784 * kl_numel(&y);
  d->n = ok ? kl_numel(&y) : 0;
  d->images = calloc((size_t)d->n * 784 + 1, sizeof *d->images);
  d->labels = calloc((size_t)d->n + 1, sizeof *d->labels);
  ok = ok && d->images && d->labels;
  for (int64_t i = 0; ok && i < d->n * 784; i++) d->images[i] = ((uint8_t *)x.data)[i] / 255.0f;
  for (int64_t i = 0; ok && i < d->n; i++) d->labels[i] = ((uint8_t *)y.data)[i];
  kl_tensor_free(&x), kl_tensor_free(&y);
  if (!ok && !kl_failed())
    fprintf(stderr, "mlp: uint8 images of 784 pixels and labels are needed\n");
  return ok;
}

/* One pass over the data; the last batch may be smaller. Means of loss and accuracy. */
static bool epoch(kl_exec *exe, kl_net *net, const Data *d, double *loss, double *acc) {
  float l, a;
  kl_tensor tl = kl_scalar(KL_FLOAT32, &l), ta = kl_array(KL_FLOAT32, &a, 1);
  *loss = *acc = 0;
  for (int64_t at = 0; at < d->n; at += BATCH) {
    int64_t n = d->n - at < BATCH ? d->n - at : BATCH;
    kl_tensor x = kl_array(KL_FLOAT32, d->images + at * 784, n, 784);
    kl_tensor y = kl_array(KL_INT64, d->labels + at, n, 1);
    if (!kl_run(exe, kl_main(net), kl_feeds({"image", &x}, {"label", &y}),
                kl_fetches({"loss", &tl}, {"acc", &ta})))
      return false;
    *loss += l * (double)n / (double)d->n;
    *acc += a * (double)n / (double)d->n;
  }
  return true;
}

static bool save(kl_exec *exe, kl_net *net, const char *folder) {
  char prefix[1000], path[1024];
  const char *feeds[] = {"image", NULL}, *fetches[] = {"scores", NULL};
  snprintf(prefix, sizeof prefix, "%s/mlp", folder);
  snprintf(path, sizeof path, "%s_startup.pdmodel", prefix);
  bool ok = kl_save(kl_startup(net), path);
  snprintf(path, sizeof path, "%s_main.pdmodel", prefix);
  return ok && kl_save(kl_main(net), path) &&
         kl_save_inference(exe, kl_main(net), prefix, feeds, fetches);
}

int main(int argc, char **argv) {
  Data d;
  if (argc < 3) return fprintf(stderr, "usage: mlp IMAGES LABELS [EPOCHS] [FOLDER]\n"), 2;
  if (!read_data(argv[1], argv[2], &d)) return fprintf(stderr, "%s", kl_error()), 1;

  kl_net *net = kl_net_new();
  kl_seed(net, 1);
  kl_var *image = kl_data(net, "image", KL_FLOAT32, -1, 784);
  kl_var *label = kl_data(net, "label", KL_INT64, -1, 1);
  kl_var *h = kl_fc(kl_fc(image, 256, .act = "relu"), 128, .act = "relu");
  kl_var *scores = kl_named(kl_fc(h, 10), "scores");
  kl_named(kl_accuracy(scores, label, 1), "acc");
  kl_var *loss = kl_named(kl_mean(kl_softmax_with_cross_entropy(scores, label)), "loss");
  kl_var *rate = kl_minimize(loss, kl_momentum(0.05, 0.9));

  kl_exec *exe = kl_exec_new(kl_exec_defaults);
  kl_run(exe, kl_startup(net), NULL, NULL);
  int epochs = argc > 3 ? atoi(argv[3]) : 3;
  kl_schedule schedule = kl_rate_cosine(0.05, 0.001, epochs);
  for (int e = 0; e < epochs && !kl_failed(); e++) {
    double l, a;
    kl_set_rate(exe, rate, kl_rate(&schedule, e));
    if (epoch(exe, net, &d, &l, &a)) printf("epoch %d loss %.4f acc %.4f\n", e + 1, l, a);
  }
  if (argc > 4) save(exe, net, argv[4]);
  if (kl_failed()) fprintf(stderr, "%s", kl_error());
  int rc = kl_failed();
  kl_exec_free(exe), kl_net_free(net);
  free(d.images), free(d.labels);
  return rc;
}
