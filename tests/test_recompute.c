/* Recomputation under a memory budget: the same bits after training, in less memory, or one coded error. */
#include "util.h"
#include "../frontend/internal.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

enum { STEPS = 3, BATCH = 16 };

static kl_var *plain(kl_net *net, kl_var *x) {
  (void)net;
  kl_var *h = kl_pool2d(kl_conv2d(x, 6, 5, .act = "relu"), "max", 2);
  h = kl_pool2d(kl_conv2d(h, 8, 3, .act = "relu"), "max", 2);
  return kl_fc(kl_fc(h, 32, .act = "tanh"), 10);
}

static kl_var *bn(kl_var *x, int64_t filters, int64_t kernel, int64_t stride, const char *act) {
  kl_var *y = kl_conv2d(x, filters, kernel, .stride = stride, .pad = kernel / 2, .no_bias = true);
  return kl_batch_norm(y, .act = act);
}

static kl_var *residual(kl_net *net, kl_var *x) {
  (void)net;
  kl_var *h = kl_pool2d(bn(x, 8, 3, 1, "relu"), "max", 3, 2, 1);
  for (int i = 0; i < 8; i++) {
    int64_t c = 8 << i / 4;
    kl_var *side = i == 4 ? bn(h, c, 1, 2, NULL) : h;
    h = kl_relu(kl_add(bn(bn(h, c, 3, i == 4 ? 2 : 1, "relu"), c, 3, 1, NULL), side));
  }
  return kl_fc(kl_dropout(kl_pool2d(h, "avg", .global = true), 0.5), 10);
}

static kl_var *attention(kl_net *net, kl_var *x) {
  (void)net;
  kl_var *h = kl_fc(kl_reshape(x, 0, 16, 36), 32, .flatten = 2);
  for (int i = 0; i < 3; i++) {
    kl_var *n = kl_layer_norm(h, 2);
    kl_var *q = kl_fc(n, 32, .flatten = 2), *k = kl_fc(n, 32, .flatten = 2);
    kl_var *s = kl_softmax(kl_binary("matmul_v2", "trans_y=true", q, k));
    h = kl_add(h, kl_matmul(kl_dropout(s, 0.1, .upscale = true), kl_fc(n, 32, .flatten = 2)));
    kl_var *f = kl_fc(kl_layer_norm(h, 2), 64, .act = "gelu", .flatten = 2);
    h = kl_add(h, kl_dropout(kl_fc(f, 32, .flatten = 2), 0.1));
  }
  return kl_fc(h, 10);
}

typedef struct Outcome {
  PlanInfo plan;
  int n;
  Tensor *v; /* the losses and every persistable variable */
  const char **names;
} Outcome;

/* Trains a fresh scope; false: E-MEM-003. */
static bool train(kl_net *net, int64_t budget, Arena *a, Outcome *to) {
  kl_exec *exe = kl_exec_new((kl_exec_options){.threads = 2, .seed = 5, .memory_budget = budget});
  float x[BATCH * 576], loss[STEPS];
  int64_t y[BATCH];
  for (int i = 0; i < BATCH * 576; i++) x[i] = (float)((i * 37 % 101) - 50) / 50;
  for (int i = 0; i < BATCH; i++) y[i] = i * 3 % 10;
  kl_tensor tx = kl_array(KL_FLOAT32, x, BATCH, 1, 24, 24), ty = kl_array(KL_INT64, y, BATCH, 1);
  exec_options(exe->run)->memory_budget = 0;
  assert_true(kl_run(exe, kl_startup(net), NULL, NULL));
  exec_options(exe->run)->memory_budget = budget;
  bool ok = true;
  for (int i = 0; ok && i < STEPS; i++) {
    kl_tensor tl = kl_array(KL_FLOAT32, &loss[i], 1);
    ok = kl_run(exe, kl_main(net), kl_feeds({"x", &tx}, {"y", &ty}), kl_fetches({"loss", &tl}));
  }
  if (ok) {
    to->plan = exec_last_plan(exe->run);
    to->n = scope_names(exe->scope, a, &to->names);
    to->v = arena_array(a, Tensor, to->n + 1);
    for (int i = 0; i < to->n; i++) {
      to->v[i] = *scope_get(exe->scope, to->names[i]);
      to->v[i].data = arena_dup(a, to->v[i].data, tensor_bytes(&to->v[i]));
    }
    to->v[to->n] = (Tensor){.dtype = DT_FLOAT32, .rank = 1, .dims = {STEPS}};
    to->v[to->n].data = arena_dup(a, loss, sizeof loss);
  } else if (err_get()->code != E_MEM_003)
    fail_msg("%s", kl_error());
  kl_exec_free(exe);
  return ok;
}

static void expect_same(const Outcome *a, const Outcome *b) {
  assert_int_equal(a->n, b->n);
  for (int i = 0; i <= a->n; i++)
    if (memcmp(a->v[i].data, b->v[i].data, tensor_bytes(&a->v[i])))
      fail_msg("%s differs", i < a->n ? a->names[i] : "loss");
}

static void test_same_bits(void **state) {
  (void)state;
  static const struct {
    const char *name;
    kl_var *(*build)(kl_net *net, kl_var *x);
    double least; /* of the arena without a budget: reached at least */
  } nets[] = {{"plain", plain, 0.98}, {"residual", residual, 0.6}, {"attention", attention, 0.6}};
  for (size_t i = 0; i < sizeof nets / sizeof *nets; i++) {
    Arena *a = arena_new();
    kl_net *net = kl_net_new();
    kl_var *x = kl_data(net, "x", KL_FLOAT32, -1, 1, 24, 24),
           *y = kl_data(net, "y", KL_INT64, -1, 1);
    kl_var *loss = kl_mean(kl_softmax_with_cross_entropy(nets[i].build(net, x), y));
    kl_minimize(kl_named(loss, "loss"), kl_momentum(0.05, 0.9));
    if (kl_failed()) fail_msg("%s", kl_error());
    Outcome all = {0}, some = {0};
    assert_true(train(net, 0, a, &all));
    int64_t arena = all.plan.arena, least = arena;
    for (int k = 39; k > 0; k--) {
      int64_t budget = arena * k / 40;
      if (!train(net, budget, a, &some)) {
        expect_error(E_MEM_003, "more than the memory budget");
        break;
      }
      assert_true(some.plan.arena <= budget);
      assert_true(some.plan.kernels >= all.plan.kernels);
      expect_same(&all, &some);
      least = some.plan.arena;
    }
    print_message("%-10s arena %lld, at least %lld with %d kernels instead of %d\n", nets[i].name,
                  (long long)arena, (long long)least, some.plan.kernels, all.plan.kernels);
    assert_true((double)least <= nets[i].least * (double)arena);
    kl_net_free(net);
    arena_free(a);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_same_bits),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
