/* kiln.h: clones of programs, pruning, programs and parameters in files. */
#include "util.h"
#include "../frontend/internal.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static kl_net *small_net(kl_var **out) {
  kl_net *net = kl_net_new();
  kl_var *x = kl_data(net, "x", KL_FLOAT32, -1, 6), *y = kl_data(net, "y", KL_INT64, -1, 1);
  kl_var *h = kl_dropout(kl_batch_norm(kl_fc(x, 8), .act = "relu"), 0.5);
  *out = kl_named(kl_fc(h, 3, .act = "softmax"), "p");
  kl_named(kl_mean(kl_cross_entropy(*out, y)), "loss");
  kl_minimize(kl_find(net, "loss"), kl_momentum(0.1));
  return net;
}

static int count_ops(const kl_program *p, const char *type) {
  int n = 0;
  for (int i = 0; i < p->blocks.v[0]->ops.n; i++)
    n += !type || !strcmp(p->blocks.v[0]->ops.v[i]->type, type);
  return n;
}

static void clones(void **state) {
  (void)state;
  kl_var *p;
  kl_net *net = small_net(&p);
  kl_program *same = kl_clone(kl_main(net)), *test = kl_clone_for_test(kl_main(net));
  assert_true(prog_equal(same, kl_main(net), NULL));
  assert_int_equal(count_ops(test, "momentum"), 0);
  assert_int_equal(count_ops(test, "mul_grad"), 0);
  assert_int_equal(count_ops(test, NULL), 10);
  for (int i = 0; i < test->blocks.v[0]->ops.n; i++) {
    const Op *op = test->blocks.v[0]->ops.v[i];
    if (opdef_attr(op->def, "is_test")) assert_true(op_bool(op, "is_test"));
  }
  const char *feeds[] = {"x", NULL}, *targets[] = {"p", NULL}, *wrong[] = {"q", NULL};
  assert_true(kl_prune(test, feeds, targets));
  assert_int_equal(count_ops(test, "cross_entropy2"), 0);
  assert_int_equal(count_ops(test, "softmax"), 1);
  assert_null(block_var(test->blocks.v[0], "y"));
  assert_false(kl_prune(test, feeds, wrong));
  expect_error(E_RUN_002, "\"q\"");
  kl_program_free(same), kl_program_free(test), kl_net_free(net);
}

static void files(void **state) {
  (void)state;
  kl_var *p;
  kl_net *net = small_net(&p);
  const char *dir = scratch_folder();
  Arena *a = arena_new();
  static const char *const names[] = {"m.kl", "m.pdmodel"};
  for (int i = 0; i < 2; i++) {
    const char *path = arena_fmt(a, "%s/%s", dir, names[i]);
    assert_true(kl_save(kl_main(net), path));
    kl_program *back = kl_load(path);
    no_error();
    char *was = kl_text(kl_main(net)), *is = kl_text(back);
    assert_string_equal(is, was);
    kl_free(was), kl_free(is), kl_program_free(back);
  }
  kl_exec *exe = kl_exec_new(kl_exec_defaults), *other = kl_exec_new(kl_exec_defaults);
  const char *params = arena_fmt(a, "%s/all.pdiparams", dir);
  assert_false(kl_save_params(exe, kl_main(net), params));
  expect_error(E_RUN_001, "has no value to save");
  kl_run(exe, kl_startup(net), NULL, NULL);
  assert_true(kl_save_params(exe, kl_main(net), params));
  assert_true(kl_load_params(other, kl_main(net), params));
  assert_memory_equal(kl_get(exe, "fc_0.w_0")->data, kl_get(other, "fc_0.w_0")->data, 48 * 4);
  kl_exec_free(other);

  /* an inference model carries its feeds, fetches and parameters */
  const char *feeds[] = {"x", NULL}, *fetches[] = {"p", NULL}, *ends[4];
  const char *prefix = arena_fmt(a, "%s/model", dir);
  assert_true(kl_save_inference(exe, kl_main(net), prefix, feeds, fetches));
  other = kl_exec_new(kl_exec_defaults);
  kl_program *model = kl_load_inference(other, prefix), *test = kl_clone_for_test(kl_main(net));
  no_error();
  assert_int_equal(kl_feed_names(model, ends, 4), 1);
  assert_string_equal(ends[0], "x");
  assert_int_equal(kl_fetch_names(model, ends, 4), 1);
  assert_string_equal(ends[0], "p");
  float x[5][6], out[2][5][3] = {{{0}}};
  int64_t labels[5] = {0, 1, 2, 0, 1};
  for (int i = 0; i < 30; i++) x[i / 6][i % 6] = (float)sin(i);
  kl_tensor tx = kl_array(KL_FLOAT32, x, 5, 6), ty = kl_array(KL_INT64, labels, 5, 1);
  kl_tensor t0 = kl_array(KL_FLOAT32, out[0], 5, 3), t1 = kl_array(KL_FLOAT32, out[1], 5, 3);
  kl_run(exe, test, kl_feeds({"x", &tx}, {"y", &ty}), kl_fetches({"p", &t0}));
  kl_run(other, model, kl_feeds({"x", &tx}), kl_fetches({"p", &t1}));
  no_error();
  assert_memory_equal(out[0], out[1], sizeof out[0]);
  assert_true(fabs(out[0][0][0] + out[0][0][1] + out[0][0][2] - 1) < 1e-5);
  assert_null(kl_load(arena_fmt(a, "%s/none.pdmodel", dir)));
  expect_error(E_IO_001, "none.pdmodel");
  kl_program_free(model), kl_program_free(test);
  kl_exec_free(exe), kl_exec_free(other), kl_net_free(net);
  scratch_remove(dir);
  arena_free(a);
}

/* Does the address lie in a mapping of this file? NULL: is there any mapping of it? */
static bool mapped(const char *path, const void *p) {
  FILE *f = fopen("/proc/self/maps", "r");
  char line[1024];
  bool found = false;
  while (f && fgets(line, sizeof line, f)) {
    unsigned long from, to;
    sscanf(line, "%lx-%lx", &from, &to);
    found |= strstr(line, path) && (!p || ((uintptr_t)p >= from && (uintptr_t)p < to));
  }
  if (f) fclose(f);
  return found;
}

/* Large parameters stay in the mapped file; updates change memory and not the file. */
static void mapped_parameters(void **state) {
  (void)state;
  kl_net *net = kl_net_new();
  kl_var *x = kl_data(net, "x", KL_FLOAT32, -1, 64), *y = kl_data(net, "y", KL_FLOAT32, -1, 1);
  kl_minimize(kl_mse(kl_fc(kl_fc(x, 96, .act = "tanh"), 1), y), kl_sgd(0.1));
  const char *dir = scratch_folder();
  Arena *a = arena_new();
  const char *params = arena_fmt(a, "%s/all.pdiparams", dir);
  kl_exec *exe = kl_exec_new(kl_exec_defaults), *other = kl_exec_new(kl_exec_defaults);
  kl_run(exe, kl_startup(net), NULL, NULL);
  assert_true(kl_save_params(exe, kl_main(net), params));
  uint8_t *before, *after;
  size_t n, m;
  assert_true(vfs_read(a, params, &before, &n));
  assert_true(kl_load_params(other, kl_main(net), params));
  assert_true(kl_load_params(other, kl_main(net), params)); /* the first mapping goes */
  const kl_tensor *w = kl_get(other, "fc_0.w_0");
  float *fresh = kl_get(exe, "fc_0.w_0")->data;
  assert_true(mapped(params, w->data));
  assert_false(mapped(params, kl_get(other, "fc_0.b_0")->data));
  assert_memory_equal(w->data, fresh, 64 * 96 * 4);
  float xs[2][64] = {{1, 2, 3}}, ys[2] = {5, -5};
  kl_tensor tx = kl_array(KL_FLOAT32, xs, 2, 64), ty = kl_array(KL_FLOAT32, ys, 2, 1);
  for (int i = 0; i < 2; i++)
    kl_run(i ? exe : other, kl_main(net), kl_feeds({"x", &tx}, {"y", &ty}), NULL);
  no_error();
  assert_memory_equal(w->data, fresh, 64 * 96 * 4); /* both made the same step */
  assert_true(vfs_read(a, params, &after, &m));
  assert_true(n == m && !memcmp(before, after, n));
  kl_tensor zero = kl_array(KL_FLOAT32, memset(fresh, 0, 64 * 96 * 4), 64, 96);
  assert_true(kl_set(other, "fc_0.w_0", &zero));
  kl_exec_free(other);
  assert_false(mapped(params, NULL));
  kl_exec_free(exe), kl_net_free(net);
  scratch_remove(dir);
  arena_free(a);
}

#define TEST(f) cmocka_unit_test_setup(f, clear_error)

int main(void) {
  const struct CMUnitTest tests[] = {TEST(clones), TEST(files), TEST(mapped_parameters)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
