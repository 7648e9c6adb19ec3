/* A trained classifier used from C: how often each class is taken for which.
 *
 *   predict PROGRAM PARAMETERS IMAGES LABELS
 * In: a program with the feeds image and label and the variable "scores" [N, classes], such as lenet_test.pdmodel, its
 * .pdiparams file, and uint8 arrays. Out: the confusion table and the accuracy of each class. */
#include <kiln.h>
#include <stdio.h>
#include <stdlib.h>

enum { BATCH = 100, CLASSES = 10 };

static int best_of(const float *scores) {
  int best = 0;
  for (int i = 1; i < CLASSES; i++)
    if (scores[i] > scores[best]) best = i;
  return best;
}

static bool count(kl_exec *exe, const kl_program *p, const kl_tensor *images,
                  const kl_tensor *labels, int64_t table[CLASSES][CLASSES]) {
  int64_t n = kl_numel(labels), row = kl_numel(images) / (n ? n : 1);
  float *x = calloc((size_t)(BATCH * row + 1), sizeof *x), scores[BATCH][CLASSES];
  int64_t y[BATCH] = {0};
  const uint8_t *pixels = images->data, *classes = labels->data;
  for (int64_t at = 0; x && at < n && !kl_failed(); at += BATCH) {
    int64_t m = n - at < BATCH ? n - at : BATCH;
    for (int64_t i = 0; i < m * row; i++) x[i] = pixels[at * row + i] / 255.0f;
    for (int64_t i = 0; i < m; i++) y[i] = classes[at + i];
    kl_tensor tx = kl_array(KL_FLOAT32, x, m, 1, 28, 28), ty = kl_array(KL_INT64, y, m, 1);
    kl_tensor ts = kl_array(KL_FLOAT32, scores, m, CLASSES);
    kl_run(exe, p, kl_feeds({"image", &tx}, {"label", &ty}), kl_fetches({"scores", &ts}));
    for (int64_t i = 0; i < m && !kl_failed(); i++)
      if (y[i] < CLASSES) table[y[i]][best_of(scores[i])]++;
  }
  free(x);
  return !kl_failed();
}

static void print(int64_t table[CLASSES][CLASSES]) {
  printf("     ");
  for (int c = 0; c < CLASSES; c++) printf("%6d", c);
  printf("   accuracy\n");
  for (int r = 0; r < CLASSES; r++) {
    int64_t sum = 0;
    printf("%4d ", r);
    for (int c = 0; c < CLASSES; c++) sum += table[r][c], printf("%6lld", (long long)table[r][c]);
    printf("     %.4f\n", (double)table[r][r] / (double)(sum ? sum : 1));
  }
}

int main(int argc, char **argv) {
  if (argc != 5) return fprintf(stderr, "usage: predict PROGRAM PARAMETERS IMAGES LABELS\n"), 2;
  kl_exec *exe = kl_exec_new(kl_exec_defaults);
  kl_program *p = kl_load(argv[1]);
  kl_tensor images = {0}, labels = {0};
  int64_t table[CLASSES][CLASSES] = {0};
  bool ok = p && kl_load_params(exe, p, argv[2]) && kl_read_array(argv[3], &images) &&
            kl_read_array(argv[4], &labels);
  if (ok && (images.dtype != KL_UINT8 || labels.dtype != KL_UINT8 ||
             kl_numel(&images) != 784 * kl_numel(&labels)))
    ok = (fprintf(stderr, "predict: uint8 images of 28x28 and as many labels are needed\n"), false);
  if (ok && count(exe, p, &images, &labels, table)) print(table);
  if (kl_failed()) fprintf(stderr, "%s", kl_error());
  int rc = !ok || kl_failed();
  kl_tensor_free(&images), kl_tensor_free(&labels);
  kl_program_free(p), kl_exec_free(exe);
  return rc;
}
