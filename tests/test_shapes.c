/* Programs that run with many shapes: one that was seen is not compiled again, and memory stays within the bounds that
 * executor/run.c states, for plans and for what executables keep from run to run. */
#include "../executor/executor.h"
#include "account.h"
#include <math.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static Program *parsed(const char *text) {
  Program *p = prog_parse(text, strlen(text), "text");
  if (!p || !prog_verify(p)) err_print(stderr, false);
  assert_non_null(p);
  return p;
}

/* Runs with x [n, ...]; the result's sum. */
static double run(Executor *e, Scope *s, const Program *p, int rank, const int64_t *dims) {
  static const char *const fetch[] = {"y"};
  Tensor x = {.dtype = DT_FLOAT32, .rank = rank}, y = {0};
  memcpy(x.dims, dims, sizeof *dims * (size_t)rank);
  x.data = malloc(tensor_bytes(&x) + 1);
  for (int64_t i = 0; i < tensor_numel(&x); i++) tensor_set(&x, i, i % 3 == 0 ? -1 : 1);
  bool ok = exec_run(e, s, p, 1, &(Feed){"x", &x}, 1, fetch, &y);
  if (!ok) err_print(stderr, false);
  assert_true(ok);
  double sum = 0;
  for (int64_t i = 0; i < tensor_numel(&y); i++) sum += tensor_get(&y, i);
  mem_free(y.data);
  free(x.data);
  return sum;
}

static double positive(int64_t n) { return (double)(n - (n + 2) / 3); }

/* Batch sizes and image sizes. */
static void test_seen_shapes(void **state) {
  (void)state;
  Program *p = parsed("program\nblock 0 {\n  var x float32 [-1, 2, -1, -1] feed\n"
                      "  var y float32 [-1, 2, -1, -1]\n  y = relu(X=x)\n}\n");
  Scope *s = scope_new();
  Executor *e = exec_new(&(ExecOptions){.threads = 1});
  size_t after[3];
  enum { SHAPES = 200 };
  for (int pass = 0; pass < 3; pass++) {
    for (int i = 0; i < SHAPES; i++) {
      int64_t dims[] = {1 + i % 4, 2, 5 + i / 4, 7 + i % 5};
      double n = (double)(dims[0] * dims[1] * dims[2] * dims[3]);
      assert_true(run(e, s, p, 4, dims) == positive((int64_t)n));
    }
    assert_int_equal(exec_compiled(e), SHAPES);
    after[pass] = account_live();
  }
  assert_int_equal(after[1], after[2]);
  exec_free(e);
  scope_free(s);
  prog_free(p);
}

/* Gradient operators that receive the gradient alone, on shapes that the program does not say: what was moved comes back. */
static void test_moved_back(void **state) {
  (void)state;
  static const char *const moves[] = {"channel_shuffle", "groups=3",       "shuffle_channel",
                                      "group=3",         "temporal_shift", "seg_num=2"};
  for (int i = 0; i < 6; i += 2) {
    char text[1024];
    snprintf(text, sizeof text,
             "program\nblock 0 {\n  var x float32 [-1, 6, -1, -1] feed\n"
             "  var m float32 [-1, 6, -1, -1]\n  var y float32 [-1, 6, -1, -1]\n"
             "  m = %s(X=x) {%s}\n  X@GRAD=y = %s_grad(Out@GRAD=m) {%s}\n}\n",
             moves[i], moves[i + 1], moves[i], moves[i + 1]);
    Program *p = parsed(text);
    Scope *s = scope_new();
    Executor *e = exec_new(&(ExecOptions){.threads = 1});
    for (int64_t n = 2; n <= 6; n += 2) {
      int64_t dims[] = {n, 6, 1, n}, all = 6 * n * n;
      double sum = (double)(all - 2 * ((all + 2) / 3)); /* of 1 and -1, every third */
      double got = run(e, s, p, 4, dims);
      assert_true(i == 4 || got == sum); /* temporal_shift loses the frames at the ends */
      assert_true(isfinite(got));
    }
    exec_free(e);
    scope_free(s);
    prog_free(p);
  }
}

/* More shapes than executables that may stay: those not used for longest go, and nothing else grows. */
static void test_bound(void **state) {
  (void)state;
  enum { MOST = 512, SHAPES = 530 };
  Program *p = parsed("program\nblock 0 {\n  var x float32 [-1, 3] feed\n  var y float32 [-1, 3]\n"
                      "  y = concat(X=[x, x])\n}\n");
  Scope *s = scope_new();
  Executor *e = exec_new(&(ExecOptions){.threads = 1});
  size_t full = 0;
  for (int64_t n = 1; n <= SHAPES; n++) {
    run(e, s, p, 2, (int64_t[]){n, 3});
    if (n == MOST + 4) full = account_live();
  }
  assert_int_equal(exec_compiled(e), SHAPES);
  if (account_live() > full + full / 10)
    fail_msg("%zu bytes after %d shapes, %zu after %d", full, MOST + 4, account_live(), SHAPES);
  run(e, s, p, 2, (int64_t[]){SHAPES - MOST + 1, 3}); /* the oldest that is still there */
  assert_int_equal(exec_compiled(e), SHAPES);
  run(e, s, p, 2, (int64_t[]){1, 3});
  assert_int_equal(exec_compiled(e), SHAPES + 1);
  exec_free(e);
  scope_free(s);
  prog_free(p);
}

/* Each shape has the filters packed for itself: 21 MB a shape, of which 256 MiB may stay. What was dropped is made again, to
 * the same results. */
static void test_kept(void **state) {
  (void)state;
  enum { SHAPES = 18 };
  Program *p = parsed("program\nblock 0 {\n  var x float32 [-1, 768, -1, 6] feed\n"
                      "  param w float32 [768, 768, 3, 3]\n  var y float32 [-1, 768, -1, 4]\n"
                      "  Output=y = conv2d(Input=x, Filter=w)\n}\n");
  Scope *s = scope_new();
  Tensor *w = scope_set(s, "w", DT_FLOAT32, 4, (int64_t[]){768, 768, 3, 3}, NULL);
  assert_non_null(w);
  for (int64_t i = 0; i < tensor_numel(w); i++) ((float *)w->data)[i] = (float)(i % 7) - 2;
  Executor *e = exec_new(&(ExecOptions){.threads = 2});
  double first[SHAPES];
  size_t most = 0, one = 0;
  for (int pass = 0; pass < 2; pass++)
    for (int i = 0; i < SHAPES; i++) {
      double sum = run(e, s, p, 4, (int64_t[]){1, 768, 6 + i, 6});
      if (pass) assert_true(sum == first[i]);
      first[i] = sum;
      if (account_live() > most) most = account_live();
      if (!pass && !i) one = account_live();
    }
  assert_true(first[0] != first[1]);
  assert_int_equal(exec_compiled(e), SHAPES);
  assert_true(one > (size_t)40 << 20); /* the filters, and packed */
  if (most > (size_t)340 << 20) fail_msg("%zu MiB", most >> 20);
  exec_free(e);
  scope_free(s);
  prog_free(p);
}

static int set_up(void **state) {
  (void)state;
  account_start();
  return 0;
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_seen_shapes),
      cmocka_unit_test(test_moved_back),
      cmocka_unit_test(test_bound),
      cmocka_unit_test(test_kept),
  };
  return cmocka_run_group_tests(tests, set_up, NULL);
}
