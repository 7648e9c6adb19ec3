/* Runs that are the same as the one before (executor/again.c), beside an executor that never takes a run for the same. */
#include "util.h"
#include "../executor/internal.h"
#include "../frontend/internal.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

enum { ROWS = 4, WIDTH = 300, UNITS = 200, OUT = 7, WORDS = 9 };

/* exe[0] may take runs for the same, exe[1], which times kernels, does not. */
typedef struct Pair {
  kl_net *net;
  kl_program *test;
  kl_exec *exe[2];
  float x[ROWS][WIDTH], y[2][ROWS][OUT];
  int64_t word[ROWS];
  int step;
} Pair;

/* The sum of a product's rows and a word's, with and without noise. */
static void pair_new(Pair *p, int threads) {
  memset(p, 0, sizeof *p);
  p->net = kl_net_new();
  kl_seed(p->net, 3);
  kl_var *x = kl_data(p->net, "x", KL_FLOAT32, -1, WIDTH);
  kl_var *w = kl_data(p->net, "w", KL_INT64, -1);
  kl_var *h = kl_fc(kl_fc(x, UNITS, .act = "relu"), OUT);
  kl_var *y = kl_named(kl_add(h, kl_embedding(w, WORDS, OUT)), "y");
  kl_named(kl_dropout(y, 0.5), "noisy");
  p->test = kl_clone_for_test(kl_main(p->net));
  for (int i = 0; i < 2; i++) {
    p->exe[i] = kl_exec_new((kl_exec_options){.threads = threads, .profile = i});
    kl_run(p->exe[i], kl_startup(p->net), NULL, NULL);
  }
  no_error();
}

static void pair_free(Pair *p) {
  for (int i = 0; i < 2; i++) kl_exec_free(p->exe[i]);
  kl_program_free(p->test);
  kl_net_free(p->net);
}

static bool is_noted(const Pair *p) { return p->exe[0]->run->again != NULL; }

static bool run_one(Pair *p, int i, const kl_program *of, const char *fetch, int rows) {
  kl_tensor x = kl_array(KL_FLOAT32, p->x, rows, WIDTH), w = kl_array(KL_INT64, p->word, rows);
  kl_tensor y = kl_array(KL_FLOAT32, p->y[i], rows, OUT);
  memset(p->y[i], 0, sizeof p->y[i]);
  bool ok = kl_run(p->exe[i], of, kl_feeds({"x", &x}, {"w", &w}), kl_fetches({fetch, &y}));
  assert_ptr_equal(y.data, p->y[i]);
  return ok;
}

/* Other data in both, the same results. */
static void compare(Pair *p, const kl_program *of, const char *fetch, int rows) {
  p->step++;
  for (int i = 0; i < ROWS * WIDTH; i++)
    p->x[i / WIDTH][i % WIDTH] = (float)((i * 31 + p->step * 17) % 101 - 50) / 64;
  for (int i = 0; i < ROWS; i++) p->word[i] = (i * 5 + p->step) % WORDS;
  for (int i = 0; i < 2; i++) run_one(p, i, of, fetch, rows);
  no_error();
  static const float nothing[OUT];
  assert_memory_not_equal(p->y[0][rows - 1], nothing, sizeof nothing);
  assert_memory_equal(p->y[0], p->y[1], sizeof p->y[0]);
}

static void same_results(void **state) {
  (void)state;
  for (int threads = 1; threads <= 4; threads++) {
    Pair p;
    pair_new(&p, threads);
    for (int i = 0; i < 5; i++) compare(&p, p.test, "y", ROWS);
    assert_true(is_noted(&p));
    for (int rows = ROWS; rows > 1; rows--) /* other shapes, other fetches, another program */
      for (int i = 0; i < 4; i++) compare(&p, p.test, i & 2 ? "noisy" : "y", rows);
    for (int i = 0; i < 8; i++) compare(&p, i & 4 ? p.test : kl_main(p.net), "y", ROWS);
    for (int i = 0; i < 5; i++) compare(&p, kl_main(p.net), "noisy", ROWS); /* drawn anew */
    float first[ROWS][OUT];
    memcpy(first, p.y[0], sizeof first);
    p.step--;
    compare(&p, kl_main(p.net), "noisy", ROWS);
    assert_memory_not_equal(first, p.y[0], sizeof first);
    pair_free(&p);
  }
}

/* A value of the scope changes: set, edited, trained, removed. */
static void changed_state(void **state) {
  (void)state;
  Pair p;
  pair_new(&p, 2);
  float b[OUT] = {1, 2, 3, 4, 5, 6, 7};
  kl_tensor tb = kl_array(KL_FLOAT32, b, OUT);
  for (int i = 0; i < 12; i++) {
    compare(&p, p.test, "y", ROWS);
    if (i % 3 != 2) continue;
    assert_true(is_noted(&p));
    b[i % OUT] += 1;
    for (int j = 0; j < 2; j++) assert_true(kl_set(p.exe[j], "fc_1.b_0", &tb));
    if (i == 8)
      for (int j = 0; j < 2; j++) kl_run(p.exe[j], kl_startup(p.net), NULL, NULL);
  }
  for (int j = 0; j < 2; j++) scope_remove(p.exe[j]->scope, "fc_1.b_0");
  assert_false(run_one(&p, 0, p.test, "y", ROWS));
  expect_error(E_RUN_001, "fc_1.b_0");
  for (int j = 0; j < 2; j++) assert_true(kl_set(p.exe[j], "fc_1.b_0", &tb));
  for (int i = 0; i < 3; i++) compare(&p, p.test, "y", ROWS);
  pair_free(&p);
}

static void failures(void **state) {
  (void)state;
  Pair p;
  pair_new(&p, 2);
  for (int round = 0; round < 3; round++) {
    for (int i = 0; i < 3; i++) compare(&p, p.test, "y", ROWS);
    assert_true(is_noted(&p));
    p.word[2] = WORDS + round;
    assert_false(run_one(&p, 0, p.test, "y", ROWS));
    expect_error(E_DAT_002, "is outside 0..8");
    for (int i = 0; i < 3; i++) compare(&p, p.test, "y", ROWS);
    assert_true(is_noted(&p));
    kl_tensor x = kl_array(KL_FLOAT32, NULL, ROWS, WIDTH), y = {0};
    assert_false(kl_run(p.exe[0], p.test, kl_feeds({"x", &x}), kl_fetches({"y", &y})));
    expect_error(E_DAT_001, "has no data");
  }
  /* no memory of the caller's for the result, and none to be had */
  kl_tensor x = kl_array(KL_FLOAT32, p.x, ROWS, WIDTH), w = kl_array(KL_INT64, p.word, ROWS);
  for (int i = 0; i < 3; i++) compare(&p, p.test, "y", ROWS);
  for (int refused = 1; refused >= 0; refused--) {
    kl_tensor y = {0};
    fail_alloc(refused);
    bool ok = kl_run(p.exe[0], p.test, kl_feeds({"x", &x}, {"w", &w}), kl_fetches({"y", &y}));
    fail_alloc(0);
    assert_int_equal(ok, !refused);
    if (refused) {
      expect_error(E_MEM_001, "out of memory");
      continue;
    }
    assert_memory_equal(y.data, p.y[1], sizeof p.y[1]);
    kl_tensor_free(&y);
  }
  pair_free(&p);
}

/* Both feeds from one place, then from two. */
static void shared_feeds(void **state) {
  (void)state;
  kl_net *net = kl_net_new();
  kl_var *a = kl_data(net, "a", KL_FLOAT32, 3), *b = kl_data(net, "b", KL_FLOAT32, 3);
  kl_named(kl_sub(kl_add(a, a), b), "c");
  kl_exec *exe = kl_exec_new(kl_exec_defaults);
  float v[2][3] = {{1, 2, 3}, {10, 20, 30}}, c[3];
  kl_tensor t[2] = {kl_array(KL_FLOAT32, v[0], 3), kl_array(KL_FLOAT32, v[1], 3)};
  kl_tensor tc = kl_array(KL_FLOAT32, c, 3);
  for (int i = 0; i < 8; i++) {
    int at = i > 3 ? i & 1 : 0, bt = i > 3 ? i >> 1 & 1 : 0;
    kl_run(exe, kl_main(net), kl_feeds({"a", &t[at]}, {"b", &t[bt]}), kl_fetches({"c", &tc}));
    no_error();
    for (int j = 0; j < 3; j++) assert_true(c[j] == 2 * v[at][j] - v[bt][j]);
  }
  kl_exec_free(exe);
  kl_net_free(net);
}

/* ---- training: steps with noise, of parameters whose layout is the program's own ---- */

enum { BATCH = 16, SIDE = 8, CLASSES = 5 };

typedef struct Trainer {
  kl_net *net;
  kl_program *test;
  kl_exec *exe[2]; /* as in Pair */
  kl_var *loss;
  float x[BATCH][2][SIDE][SIDE], value[2];
  int64_t y[BATCH];
  int step;
} Trainer;

static void trainer_new(Trainer *t, int threads) {
  memset(t, 0, sizeof *t);
  t->net = kl_net_new();
  kl_seed(t->net, 5);
  kl_var *x = kl_data(t->net, "x", KL_FLOAT32, BATCH, 2, SIDE, SIDE);
  kl_var *h = kl_conv2d(x, 6, 5, .act = "relu", .weight.name = "w");
  t->loss = kl_mean(kl_softmax_with_cross_entropy(kl_fc(kl_dropout(h, 0.25), CLASSES),
                                                  kl_data(t->net, "y", KL_INT64, BATCH, 1)));
  t->test = kl_clone_for_test(kl_main(t->net));
  kl_minimize(t->loss, kl_momentum(0.1, 0.9));
  for (int i = 0; i < 2; i++) {
    t->exe[i] = kl_exec_new((kl_exec_options){.threads = threads, .profile = i});
    kl_run(t->exe[i], kl_startup(t->net), NULL, NULL);
  }
  no_error();
}

static bool train_one(Trainer *t, int i, const kl_program *of) {
  kl_tensor x = kl_array(KL_FLOAT32, t->x, BATCH, 2, SIDE, SIDE),
            y = kl_array(KL_INT64, t->y, BATCH, 1), to = kl_array(KL_FLOAT32, &t->value[i], 1);
  return kl_run(t->exe[i], of, kl_feeds({"x", &x}, {"y", &y}), kl_fetches({t->loss->name, &to}));
}

static void same_step(Trainer *t, const kl_program *of) {
  float *x = &t->x[0][0][0][0];
  t->step++;
  for (int i = 0; i < BATCH * 2 * SIDE * SIDE; i++)
    x[i] = (float)((i * 29 + t->step * 13) % 83 - 40) / 32;
  for (int i = 0; i < BATCH; i++) t->y[i] = (i * 3 + t->step) % CLASSES;
  for (int i = 0; i < 2; i++) assert_true(train_one(t, i, of));
  assert_memory_equal(&t->value[0], &t->value[1], sizeof(float));
}

static void same_parameters(Trainer *t) {
  const kl_tensor *w[2] = {kl_get(t->exe[0], "w"), kl_get(t->exe[1], "w")};
  assert_memory_equal(w[0]->data, w[1]->data, 6 * 2 * 25 * sizeof(float));
}

/* Looked at, set, tested between steps, and after a step that failed. */
static void training(void **state) {
  (void)state;
  for (int threads = 1; threads <= 3; threads++) {
    Trainer t;
    trainer_new(&t, threads);
    float w[6 * 2 * 25] = {0};
    kl_tensor tw = kl_array(KL_FLOAT32, w, 6, 2, 5, 5);
    for (int i = 0; i < 24; i++) {
      same_step(&t, kl_main(t.net));
      if (i) assert_non_null(t.exe[0]->run->again);
      if (i % 4 == 1) same_parameters(&t);
      if (i % 7 == 6) same_step(&t, t.test);
      w[i] = 0.25f;
      for (int j = 0; j < 2 && i % 9 == 8; j++) assert_true(kl_set(t.exe[j], "w", &tw));
      if (i % 5 != 4) continue;
      t.y[3] = CLASSES;
      for (int j = 0; j < 2; j++) {
        assert_false(train_one(&t, j, kl_main(t.net)));
        expect_error(E_DAT_002, "is outside 0..4");
      }
    }
    same_parameters(&t);
    for (int i = 0; i < 2; i++) kl_exec_free(t.exe[i]);
    kl_program_free(t.test);
    kl_net_free(t.net);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(same_results), cmocka_unit_test(changed_state), cmocka_unit_test(failures),
      cmocka_unit_test(shared_feeds), cmocka_unit_test(training),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
