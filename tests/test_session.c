/* kiln.h: an executor over many runs: feeds of every size and wrong ones, state, threads, random numbers, checkpoints. */
#include "util.h"
#include "../frontend/internal.h"
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

typedef struct Classifier {
  kl_net *net;
  kl_exec *exe;
  float x[8][6], loss;
  int64_t label[8];
  kl_tensor tx, ty, tl;
} Classifier;

static void classifier(Classifier *c, kl_exec_options o) {
  memset(c, 0, sizeof *c);
  c->net = kl_net_new();
  c->exe = kl_exec_new(o);
  kl_seed(c->net, 5);
  kl_var *x = kl_data(c->net, "x", KL_FLOAT32, -1, 6), *y = kl_data(c->net, "y", KL_INT64, -1, 1);
  kl_var *p = kl_named(kl_fc(kl_fc(x, 16, .act = "relu"), 4), "scores");
  kl_named(kl_mean(kl_softmax_with_cross_entropy(p, y)), "loss");
  kl_minimize(kl_find(c->net, "loss"), kl_momentum(0.1));
  kl_run(c->exe, kl_startup(c->net), NULL, NULL);
  for (int i = 0; i < 48; i++) c->x[i / 6][i % 6] = (float)sin(i * 1.3);
  for (int i = 0; i < 8; i++) c->label[i] = i % 4;
  c->tx = kl_array(KL_FLOAT32, c->x, 8, 6);
  c->ty = kl_array(KL_INT64, c->label, 8, 1);
  c->tl = kl_scalar(KL_FLOAT32, &c->loss);
  no_error();
}

static void classifier_free(Classifier *c) {
  kl_exec_free(c->exe);
  kl_net_free(c->net);
}

static bool classify(Classifier *c) {
  return kl_run(c->exe, kl_main(c->net), kl_feeds({"x", &c->tx}, {"y", &c->ty}),
                kl_fetches({"loss", &c->tl}));
}

static void batch_sizes(void **state) {
  (void)state;
  Classifier c;
  classifier(&c, kl_exec_defaults);
  kl_program *test = kl_clone_for_test(kl_main(c.net));
  float all[8][4], some[8][4];
  kl_tensor ta = kl_array(KL_FLOAT32, all, 8, 4);
  kl_run(c.exe, test, kl_feeds({"x", &c.tx}), kl_fetches({"scores", &ta}));
  for (int n = 8; n >= 1; n--) {
    kl_tensor tx = kl_array(KL_FLOAT32, c.x, n, 6), ts = kl_array(KL_FLOAT32, some, n, 4);
    kl_run(c.exe, test, kl_feeds({"x", &tx}), kl_fetches({"scores", &ts}));
    no_error();
    assert_ptr_equal(ts.data, some);
    for (int i = 0; i < 4 * n; i++) close_to(some[i / 4][i % 4], all[i / 4][i % 4], "scores", i);
  }
  kl_tensor fresh = {0}; /* without memory of the caller's: allocated */
  kl_run(c.exe, test, kl_feeds({"x", &c.tx}), kl_fetches({"scores", &fresh}));
  no_error();
  assert_int_equal(fresh.rank, 2);
  assert_memory_equal(fresh.data, all, sizeof all);
  kl_tensor_free(&fresh);
  float first = 0;
  for (int i = 0; i < 30; i++) {
    assert_true(classify(&c));
    if (!i) first = c.loss;
  }
  assert_true(c.loss < 0.7f * first);
  kl_program_free(test);
  classifier_free(&c);
}

static void state_is_untouched(Classifier *c, const float *weights, const char *file, int line) {
  const kl_tensor *w = kl_get(c->exe, "fc_0.w_0");
  if (memcmp(w->data, weights, 96 * sizeof(float))) fail_msg("%s:%d: state changed", file, line);
}

static void wrong_feeds(void **state) {
  (void)state;
  for (int interpret = 0; interpret < 2; interpret++) {
    Classifier c;
    classifier(&c, (kl_exec_options){.interpret = interpret});
    float w[96];
    memcpy(w, kl_get(c.exe, "fc_0.w_0")->data, sizeof w);
    kl_program *p = kl_main(c.net);
    const kl_fetch *loss = kl_fetches({"loss", &c.tl});
    kl_tensor wide = kl_array(KL_FLOAT32, c.x, 6, 8), flat = kl_array(KL_FLOAT32, c.x, 48);
    kl_tensor doubles = kl_array(KL_FLOAT64, c.x, 4, 6), none = kl_array(KL_FLOAT32, NULL, 8, 6);
    kl_tensor few = kl_array(KL_INT64, c.label, 5, 1);
    const struct {
      const kl_feed *feeds;
      ErrCode code;
      const char *part;
    } rows[] = {
        {kl_feeds({"x", &c.tx}), E_DAT_001, "\"y\" is not fed"},
        {kl_feeds({"x", &c.tx}, {"yy", &c.ty}), E_DAT_001, "Did you mean \"y\""},
        {kl_feeds({"x", &c.tx}, {"y", &c.ty}, {"z", &c.ty}), E_DAT_001, "\"z\""},
        {kl_feeds({"x", &c.tx}, {"x", &c.tx}, {"y", &c.ty}), E_DAT_001, "fed twice"},
        {kl_feeds({"x", &doubles}, {"y", &c.ty}), E_DAT_001, "float64 [4, 6]"},
        {kl_feeds({"x", &wide}, {"y", &c.ty}), E_DAT_001, "float32 [6, 8]"},
        {kl_feeds({"x", &flat}, {"y", &c.ty}), E_DAT_001, "float32 [-1, 6]"},
        {kl_feeds({"x", &none}, {"y", &c.ty}), E_DAT_001, "has no data"},
        {kl_feeds({"x", &c.tx}, {"y", &few}), E_SHP_006, "softmax_with_cross_entropy"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
      assert_false(kl_run(c.exe, p, rows[i].feeds, loss));
      expect_error(rows[i].code, rows[i].part);
    }
    assert_false(
        kl_run(c.exe, p, kl_feeds({"x", &c.tx}, {"y", &c.ty}), kl_fetches({"lost", &c.tl})));
    expect_error(E_RUN_002, "\"lost\"");
    static const int64_t bad[] = {4, -1, INT64_MAX, INT64_MIN};
    for (int i = 0; i < 4; i++) {
      c.label[3] = bad[i];
      assert_false(classify(&c));
      assert_non_null(strstr(kl_error(), "test_session.c:")); /* the place of the operator's call */
      expect_error(E_DAT_002, "is outside 0..3");
      state_is_untouched(&c, w, __FILE__, __LINE__);
    }
    c.label[3] = 3;
    assert_true(classify(&c));
    classifier_free(&c);
  }
}

static void no_startup(void **state) {
  (void)state;
  for (int interpret = 0; interpret < 2; interpret++) {
    Classifier c;
    classifier(&c, (kl_exec_options){.interpret = interpret});
    kl_exec_free(c.exe);
    c.exe = kl_exec_new((kl_exec_options){.interpret = interpret});
    assert_false(classify(&c));
    expect_error(E_RUN_001, "has no value");
    assert_null(kl_get(c.exe, "fc_0.w_0"));
    classifier_free(&c);
  }
}

static void nan_is_named(void **state) {
  (void)state;
  for (int interpret = 0; interpret < 2; interpret++) {
    kl_net *net = kl_net_new();
    kl_exec *exe = kl_exec_new((kl_exec_options){.check_nan = true, .interpret = interpret});
    kl_var *x = kl_data(net, "x", KL_FLOAT32, -1, 2);
    kl_var *h = kl_fc(x, 1, .weight = {.init = kl_constant(1)}, .no_bias = true);
    int line = __LINE__ + 1;
    kl_var *l = kl_unary("log", "", h);
    kl_named(kl_mean(kl_add(l, l)), "loss");
    kl_minimize(kl_find(net, "loss"), kl_sgd(0.1));
    float xs[2] = {1, 2}, loss;
    kl_tensor tl = kl_scalar(KL_FLOAT32, &loss);
    kl_tensor tx = kl_array(KL_FLOAT32, xs, 1, 2);
    kl_run(exe, kl_startup(net), NULL, NULL);
    kl_run(exe, kl_main(net), kl_feeds({"x", &tx}), kl_fetches({"loss", &tl}));
    no_error();
    float before[2];
    memcpy(before, kl_get(exe, "fc_0.w_0")->data, sizeof before);
    xs[0] = -40;
    assert_false(kl_run(exe, kl_main(net), kl_feeds({"x", &tx}), kl_fetches({"loss", &tl})));
    char place[64];
    snprintf(place, sizeof place, "test_session.c:%d", line);
    assert_non_null(strstr(kl_error(), place));
    expect_error(E_NUM_001, "operator `log` became NaN");
    assert_memory_equal(before, kl_get(exe, "fc_0.w_0")->data, sizeof before);
    kl_exec_free(exe), kl_net_free(net);
  }
}

/* ---- threads, determinism, checkpoints ---- */

typedef struct Worker {
  const kl_program *p;
  kl_scope *scope;
  Classifier *c;
  float scores[8][4];
  bool ok;
} Worker;

static void *infer_often(void *user) {
  Worker *w = user;
  kl_exec *exe = kl_exec_new((kl_exec_options){.scope = w->scope, .threads = 2});
  kl_tensor ts = kl_array(KL_FLOAT32, w->scores, 8, 4);
  w->ok = true;
  for (int i = 0; i < 200 && w->ok; i++)
    w->ok = kl_run(exe, w->p, kl_feeds({"x", &w->c->tx}), kl_fetches({"scores", &ts}));
  kl_exec_free(exe);
  return NULL;
}

static void several_threads_one_scope(void **state) {
  (void)state;
  enum { THREADS = 4 };
  Classifier c;
  classifier(&c, kl_exec_defaults);
  kl_program *test = kl_clone_for_test(kl_main(c.net));
  float want[8][4];
  kl_tensor tw = kl_array(KL_FLOAT32, want, 8, 4);
  kl_run(c.exe, test, kl_feeds({"x", &c.tx}), kl_fetches({"scores", &tw}));
  static Worker w[THREADS];
  pthread_t id[THREADS];
  for (int i = 0; i < THREADS; i++) {
    w[i] = (Worker){.p = test, .scope = kl_exec_scope(c.exe), .c = &c};
    assert_int_equal(pthread_create(&id[i], NULL, infer_often, &w[i]), 0);
  }
  for (int i = 0; i < THREADS; i++) {
    pthread_join(id[i], NULL);
    assert_true(w[i].ok);
    assert_memory_equal(w[i].scores, want, sizeof want);
  }
  kl_program_free(test);
  classifier_free(&c);
}

static void same_bits_for_any_thread_count(void **state) {
  (void)state;
  float w[3][96];
  for (int k = 0; k < 3; k++) {
    Classifier c;
    classifier(&c, (kl_exec_options){.threads = k + 1});
    for (int i = 0; i < 20; i++) assert_true(classify(&c));
    memcpy(w[k], kl_get(c.exe, "fc_0.w_0")->data, sizeof *w);
    classifier_free(&c);
  }
  assert_memory_equal(w[0], w[1], sizeof *w);
  assert_memory_equal(w[0], w[2], sizeof *w);
}

enum { STEPS = 3, FC0 = 784 * 256, FC1 = 256 * 128, FC_ALL = FC0 + FC1 };

/* The weights of a network whose products are cut into tasks, after some steps. */
static void train_large(kl_exec_options o, bool gradient, float *weights) {
  kl_net *net = kl_net_new();
  kl_exec *exe = kl_exec_new(o);
  kl_seed(net, 5);
  kl_var *x = kl_data(net, "x", KL_FLOAT32, -1, 784), *y = kl_data(net, "y", KL_INT64, -1, 1);
  kl_var *p = kl_fc(kl_fc(kl_fc(x, 256, .act = "relu"), 128, .act = "relu"), 10);
  kl_minimize(kl_mean(kl_softmax_with_cross_entropy(p, y)), kl_momentum(0.1));
  kl_run(exe, kl_startup(net), NULL, NULL);
  float *in = malloc(sizeof *in * 64 * 784), *grad = malloc(sizeof *grad * FC0);
  int64_t label[64];
  for (int i = 0; i < 64 * 784; i++) in[i] = (float)sin(i * 1.3);
  for (int i = 0; i < 64; i++) label[i] = i % 10;
  kl_tensor tx = kl_array(KL_FLOAT32, in, 64, 784), ty = kl_array(KL_INT64, label, 64, 1),
            tg = kl_array(KL_FLOAT32, grad, 784, 256);
  const kl_fetch with[] = {{"fc_0.w_0@GRAD", &tg}, {0}};
  for (int i = 0; i < STEPS; i++) {
    kl_run(exe, kl_main(net), kl_feeds({"x", &tx}, {"y", &ty}), gradient ? with : NULL);
    no_error();
    if (gradient && !i) /* the first velocity is the gradient */
      assert_memory_equal(grad, kl_get(exe, "fc_0.w_0_velocity_0")->data, sizeof *grad * FC0);
  }
  memcpy(weights, kl_get(exe, "fc_0.w_0")->data, sizeof *weights * FC0);
  memcpy(weights + FC0, kl_get(exe, "fc_1.w_0")->data, sizeof *weights * FC1);
  free(in), free(grad);
  kl_exec_free(exe);
  kl_net_free(net);
}

/* Threads that have both parts of a pair of sums add them up, others leave that to the next phase; a gradient that nobody fetches
 * is nowhere as a whole. */
static void same_bits_of_large_products(void **state) {
  (void)state;
  float *w = malloc(sizeof *w * FC_ALL), *v = malloc(sizeof *v * FC_ALL);
  train_large((kl_exec_options){.threads = 1}, false, w);
  for (int threads = 1; threads <= 5; threads++) {
    train_large((kl_exec_options){.threads = threads}, threads == 1, v);
    assert_memory_equal(w, v, sizeof *w * FC_ALL);
  }
  train_large((kl_exec_options){.threads = 1, .interpret = true}, false, v);
  for (int i = 0; i < FC_ALL; i++) close_to(w[i], v[i], "weight", i);
  free(w), free(v);
}

static void checkpoints(void **state) {
  (void)state;
  const char *dir = scratch_folder();
  Classifier a, b;
  classifier(&a, kl_exec_defaults);
  classifier(&b, kl_exec_defaults);
  assert_int_equal(kl_resume(b.exe, kl_main(b.net), dir), -1);
  expect_error(E_CKP_001, "no complete checkpoint");
  for (int i = 0; i < 6; i++) {
    assert_true(classify(&a));
    if (i == 2) assert_true(kl_checkpoint(a.exe, kl_main(a.net), dir, "note"));
  }
  assert_int_equal(kl_resume(b.exe, kl_main(b.net), dir), 3);
  for (int i = 3; i < 6; i++) assert_true(classify(&b));
  assert_memory_equal(kl_get(a.exe, "fc_0.w_0")->data, kl_get(b.exe, "fc_0.w_0")->data, 96 * 4);
  assert_true(a.loss == b.loss);
  kl_var *x = kl_data(a.net, "more", KL_FLOAT32, -1, 6);
  kl_fc(x, 3); /* another program now */
  kl_run(a.exe, kl_startup(a.net), NULL, NULL);
  assert_int_equal(kl_resume(a.exe, kl_main(a.net), dir), -1);
  expect_error(E_CKP_001, "belongs to another program");
  classifier_free(&a), classifier_free(&b);
  scratch_remove(dir);
}

/* What a killed process leaves goes with the next save; what a living one writes stays. */
static void leftovers_go(void **state) {
  (void)state;
  const char *dir = scratch_folder();
  char name[3][300];
  pid_t dead = fork();
  if (!dead) _exit(0);
  waitpid(dead, NULL, 0);
  snprintf(name[0], sizeof *name, "%s/.writing-%ld", dir, (long)dead);
  snprintf(name[1], sizeof *name, "%s/.old-%ld", dir, (long)dead);
  snprintf(name[2], sizeof *name, "%s/.writing-%ld", dir, (long)getppid());
  for (int i = 0; i < 3; i++) assert_int_equal(mkdir(name[i], 0777), 0);
  Classifier c;
  classifier(&c, kl_exec_defaults);
  assert_true(kl_checkpoint(c.exe, kl_main(c.net), dir, ""));
  for (int i = 0; i < 3; i++) assert_int_equal(access(name[i], F_OK), i < 2 ? -1 : 0);
  classifier_free(&c);
  scratch_remove(dir);
}

/* ---- random numbers ---- */

/* Dropout without a seed of its own, and with one. */
typedef struct Noise {
  kl_net *net;
  kl_exec *exe;
  float x[64], free[64], fixed[64];
} Noise;

static void noise(Noise *s, bool interpret) {
  s->net = kl_net_new();
  s->exe = kl_exec_new((kl_exec_options){.interpret = interpret, .seed = 3});
  kl_var *x = kl_data(s->net, "x", KL_FLOAT32, -1, 16);
  kl_named(kl_dropout(x, 0.5), "free");
  kl_named(kl_dropout(x, 0.5, .seed = 9), "fixed");
  for (int i = 0; i < 64; i++) s->x[i] = 1;
  no_error();
}

static void draw(Noise *s, const kl_program *p) {
  kl_tensor x = kl_array(KL_FLOAT32, s->x, 4, 16), a = kl_array(KL_FLOAT32, s->free, 4, 16);
  kl_tensor b = kl_array(KL_FLOAT32, s->fixed, 4, 16);
  kl_run(s->exe, p, kl_feeds({"x", &x}), kl_fetches({"free", &a}, {"fixed", &b}));
  no_error();
}

/* Categories of probability 0 are never drawn; a row that has too few others is an error. */
static void draws_what_is_possible(void **state) {
  (void)state;
  kl_net *net = kl_net_new();
  kl_var *x = kl_data(net, "x", KL_FLOAT32, -1, 4);
  kl_var *once = kl_op(net, "multinomial", "num_samples=2", "X", x);
  kl_var *again = kl_op(net, "multinomial", "num_samples=9 replacement=true", "X", x);
  kl_exec *exe = kl_exec_new(kl_exec_defaults);
  float p[4] = {0, 3, 0, 1};
  int64_t a[2], b[9];
  kl_tensor tx = kl_array(KL_FLOAT32, p, 1, 4), ta = kl_array(KL_INT64, a, 1, 2);
  kl_tensor tb = kl_array(KL_INT64, b, 1, 9);
  const char *first = kl_name(once), *second = kl_name(again);
  for (int i = 0; i < 20; i++) {
    kl_run(exe, kl_main(net), kl_feeds({"x", &tx}), kl_fetches({first, &ta}, {second, &tb}));
    no_error();
    assert_true((a[0] == 1 && a[1] == 3) || (a[0] == 3 && a[1] == 1));
    for (int k = 0; k < 9; k++) assert_true(b[k] == 1 || b[k] == 3);
  }
  p[3] = 0;
  assert_false(kl_run(exe, kl_main(net), kl_feeds({"x", &tx}), kl_fetches({first, &ta})));
  expect_error(E_DAT_002, "value 1 at element 0 is outside 2..4");
  p[1] = -1, p[3] = 1;
  assert_false(kl_run(exe, kl_main(net), kl_feeds({"x", &tx}), kl_fetches({second, &tb})));
  expect_error(E_DAT_002, "value 0 at element 0 is outside");
  kl_exec_free(exe), kl_net_free(net);
}

static void each_run_draws_anew(void **state) {
  (void)state;
  static Noise s[2];
  for (int k = 0; k < 2; k++) noise(&s[k], k);
  float before[2][64];
  for (int run = 0; run < 3; run++) {
    for (int k = 0; k < 2; k++) draw(&s[k], kl_main(s[k].net));
    assert_memory_equal(s[0].free, s[1].free, sizeof s->free);
    assert_memory_equal(s[0].fixed, s[1].fixed, sizeof s->fixed);
    if (run) {
      assert_memory_not_equal(s[0].free, before[0], sizeof s->free);
      assert_memory_equal(s[0].fixed, before[1], sizeof s->fixed);
    }
    memcpy(before[0], s[0].free, sizeof s->free);
    memcpy(before[1], s[0].fixed, sizeof s->fixed);
  }
  for (int k = 0; k < 2; k++) kl_exec_free(s[k].exe), kl_net_free(s[k].net);
}

/* Runs of other programs in between leave the numbers of training as they are. */
static void training_draws_by_step(void **state) {
  (void)state;
  static Noise s[2];
  for (int k = 0; k < 2; k++) {
    noise(&s[k], false);
    kl_program *forward = kl_clone(kl_main(s[k].net));
    kl_minimize(kl_mean(kl_fc(kl_find(s[k].net, "free"), 1)), kl_sgd(0.1));
    kl_run(s[k].exe, kl_startup(s[k].net), NULL, NULL);
    for (int step = 0; step < 3; step++) {
      for (int i = 0; i < 2 * k; i++) draw(&s[k], forward);
      draw(&s[k], kl_main(s[k].net));
    }
    kl_program_free(forward);
  }
  assert_memory_equal(s[0].free, s[1].free, sizeof s->free);
  for (int k = 0; k < 2; k++) kl_exec_free(s[k].exe), kl_net_free(s[k].net);
}

/* Noise whose shape follows what was computed, as in a variational autoencoder: the gradient passes by. */
static void noise_has_no_gradient(void **state) {
  (void)state;
  const char *const ops[] = {"gaussian_random_batch_size_like", "uniform_random_batch_size_like"};
  for (int k = 0; k < 2; k++) {
    kl_net *net = kl_net_new();
    kl_exec *exe = kl_exec_new(kl_exec_defaults);
    kl_var *x = kl_data(net, "x", KL_FLOAT32, -1, 4);
    kl_var *mean = kl_fc(x, 3, .weight = {.name = "w"}, .no_bias = true);
    kl_var *e = kl_op(net, ops[k], "shape=[-1,3]", "Input", mean);
    kl_backward(kl_mean(kl_add(mean, e)));
    float xs[8] = {1, 2, 3, 4, 5, 6, 7, 8}, g[12];
    kl_tensor tx = kl_array(KL_FLOAT32, xs, 2, 4), tg = kl_array(KL_FLOAT32, g, 4, 3);
    kl_run(exe, kl_startup(net), NULL, NULL);
    kl_run(exe, kl_main(net), kl_feeds({"x", &tx}), kl_fetches({"w@GRAD", &tg}));
    no_error();
    for (int i = 0; i < 12; i++) close_to(g[i], (xs[i / 3] + xs[4 + i / 3]) / 6, "w@GRAD", i);
    kl_exec_free(exe), kl_net_free(net);
  }
}

#define TEST(f) cmocka_unit_test_setup(f, clear_error)

int main(void) {
  const struct CMUnitTest tests[] = {
      TEST(batch_sizes),
      TEST(wrong_feeds),
      TEST(no_startup),
      TEST(nan_is_named),
      TEST(several_threads_one_scope),
      TEST(same_bits_for_any_thread_count),
      TEST(same_bits_of_large_products),
      TEST(checkpoints),
      TEST(leftovers_go),
      TEST(draws_what_is_possible),
      TEST(each_run_draws_anew),
      TEST(training_draws_by_step),
      TEST(noise_has_no_gradient),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
