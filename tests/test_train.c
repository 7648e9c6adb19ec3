/* kiln.h: what happens when programs run: updates and gradients against hand-computed ones, custom
 * operators. test_session.c has executors over many runs. */
#include "util.h"
#include "../frontend/internal.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

/* ---- one weight vector whose gradient is what is fed ----
 * y = x w with x [1, N], w [N, 1]; the loss is the mean of y, so the gradient of w is x. */

enum { N = 3, STEPS = 4 };
static const float start[N] = {0.5f, -1.0f, 2.0f};
static const float grads[STEPS][N] = {{0.3f, -0.8f, 1.5f},
                                      {-0.2f, 0.1f, 4.0f},
                                      {0.0f, -2.0f, 0.7f},
                                      {1.0f, 1.0f, -1.0f}};

typedef struct Vector {
  kl_net *net;
  kl_exec *exe;
  kl_var *rate;
} Vector;

static Vector vector_new(kl_optimizer o, kl_param p) {
  Vector v = {.net = kl_net_new(), .exe = kl_exec_new(kl_exec_defaults)};
  kl_tensor w0 = kl_array(KL_FLOAT32, (void *)(uintptr_t)start, N, 1);
  p.name = "w";
  p.init = kl_values(&w0);
  kl_var *x = kl_data(v.net, "x", KL_FLOAT32, -1, N);
  v.rate = kl_minimize(kl_mean(kl_fc(x, 1, .weight = p, .no_bias = true)), o);
  kl_run(v.exe, kl_startup(v.net), NULL, NULL);
  no_error();
  return v;
}

static void vector_free(Vector *v) {
  kl_exec_free(v->exe);
  kl_net_free(v->net);
}

static const float *vector_step(Vector *v, int step) {
  kl_tensor x = kl_array(KL_FLOAT32, (void *)(uintptr_t)grads[step], 1, N);
  kl_run(v->exe, kl_main(v->net), kl_feeds({"x", &x}), NULL);
  no_error();
  return kl_get(v->exe, "w")->data;
}

/* A reference: the new parameter from gradient g; s: four numbers of state, zero at first; t: steps before. */
typedef double Update(double p, double g, double *s, int t);

static void expect_updates(const char *what, kl_optimizer o, Update *update) {
  Vector v = vector_new(o, (kl_param){0});
  double p[N], s[N][4] = {{0}};
  for (int i = 0; i < N; i++) p[i] = start[i];
  for (int t = 0; t < STEPS; t++) {
    const float *w = vector_step(&v, t);
    for (int i = 0; i < N; i++) {
      p[i] = update(p[i], grads[t][i], s[i], t);
      close_to(w[i], p[i], what, i);
    }
  }
  vector_free(&v);
}

static double by_sgd(double p, double g, double *s, int t) {
  (void)s, (void)t;
  return p - 0.1 * g;
}
static double by_momentum(double p, double g, double *s, int t) {
  (void)t;
  s[0] = 0.9 * s[0] + g;
  return p - 0.1 * s[0];
}
static double by_nesterov(double p, double g, double *s, int t) {
  (void)t;
  s[0] = 0.8 * s[0] + g;
  return p - 0.1 * (g + 0.8 * s[0]);
}
static double adam(double p, double g, double *s, int t, double b1, double b2, double lr) {
  s[0] = b1 * s[0] + (1 - b1) * g;
  s[1] = b2 * s[1] + (1 - b2) * g * g;
  double m = s[0] / (1 - pow(b1, t + 1)), v = s[1] / (1 - pow(b2, t + 1));
  return p - lr * m / (sqrt(v) + 1e-8);
}
static double by_adam(double p, double g, double *s, int t) {
  return adam(p, g, s, t, 0.9, 0.999, 0.1);
}
static double by_adam2(double p, double g, double *s, int t) {
  return adam(p, g, s, t, 0.8, 0.99, 0.1);
}
static double by_adamw(double p, double g, double *s, int t) {
  return adam(p - 0.1 * 0.05 * p, g, s, t, 0.9, 0.999, 0.1);
}
static double by_rmsprop(double p, double g, double *s, int t) {
  (void)t;
  s[0] = 0.95 * s[0] + 0.05 * g * g;
  return p - 0.1 * g / sqrt(s[0] + 1e-6);
}
static double by_centered(double p, double g, double *s, int t) {
  (void)t;
  s[0] = 0.9 * s[0] + 0.1 * g * g;
  s[1] = 0.9 * s[1] + 0.1 * g;
  s[2] = 0.5 * s[2] + 0.1 * g / sqrt(s[0] - s[1] * s[1] + 1e-3);
  return p - s[2];
}
static double by_adagrad(double p, double g, double *s, int t) {
  (void)t;
  s[0] += g * g;
  return p - 0.1 * g / (sqrt(s[0]) + 1e-6);
}

static void optimisers(void **state) {
  (void)state;
  expect_updates("sgd", kl_sgd(0.1), by_sgd);
  expect_updates("momentum", kl_momentum(0.1), by_momentum);
  expect_updates("nesterov", kl_momentum(0.1, 0.8, .nesterov = true), by_nesterov);
  expect_updates("adam", kl_adam(0.1), by_adam);
  expect_updates("adam betas", kl_adam(0.1, .beta1 = 0.8, .beta2 = 0.99), by_adam2);
  expect_updates("adamw", kl_adamw(0.1, .weight_decay = 0.05), by_adamw);
  expect_updates("rmsprop", kl_rmsprop(0.1), by_rmsprop);
  expect_updates("rmsprop centered",
                 kl_rmsprop(0.1, .momentum = 0.5, .rho = 0.9, .centered = true, .epsilon = 1e-3),
                 by_centered);
  expect_updates("adagrad", kl_adagrad(0.1), by_adagrad);
}

/* ---- clipping and decay ---- */

static double clip_value(double p, double g, double *s, int t) {
  return by_sgd(p, g < -0.5 ? -0.5 : g > 0.9 ? 0.9 : g, s, t);
}
static double clip_norm(double p, double g, double *s, int t) {
  double norm = sqrt(pow(grads[t][0], 2) + pow(grads[t][1], 2) + pow(grads[t][2], 2));
  return by_sgd(p, norm > 1 ? g / norm : g, s, t);
}
static double l2(double p, double g, double *s, int t) { return by_sgd(p, g + 0.3 * p, s, t); }
static double l1(double p, double g, double *s, int t) {
  return by_sgd(p, g + 0.3 * ((p > 0) - (p < 0)), s, t);
}
static double l2_momentum(double p, double g, double *s, int t) {
  return by_momentum(p, g + 0.3 * p, s, t);
}
static double clip_then_l2(double p, double g, double *s, int t) {
  return by_sgd(p, (g < -0.5 ? -0.5 : g > 0.5 ? 0.5 : g) + 0.3 * p, s, t);
}

static void clipping_and_decay(void **state) {
  (void)state;
  expect_updates("clip value", kl_sgd(0.1, .clip = kl_clip_value(-0.5, 0.9)), clip_value);
  expect_updates("clip norm", kl_sgd(0.1, .clip = kl_clip_norm(1)), clip_norm);
  expect_updates("clip global norm", kl_sgd(0.1, .clip = kl_clip_global_norm(1)), clip_norm);
  expect_updates("L2", kl_sgd(0.1, .decay = kl_l2(0.3)), l2);
  expect_updates("L1", kl_sgd(0.1, .decay = kl_l1(0.3)), l1);
  expect_updates("L2 in momentum", kl_momentum(0.1, .decay = kl_l2(0.3)), l2_momentum);
  expect_updates("clip, then L2",
                 kl_sgd(0.1, .clip = kl_clip_value(-0.5, 0.5), .decay = kl_l2(0.3)), clip_then_l2);
}

/* Two parameters: the global norm is over both, but not over one that is left out. */
static void global_norm_of_two(void **state) {
  (void)state;
  for (int left_out = 0; left_out < 2; left_out++) {
    kl_net *net = kl_net_new();
    kl_exec *exe = kl_exec_new(kl_exec_defaults);
    kl_var *x = kl_data(net, "x", KL_FLOAT32, -1, 1), *y = kl_data(net, "y", KL_FLOAT32, -1, 1);
    kl_init one = kl_constant(1);
    kl_var *a = kl_fc(x, 1, .weight = {.name = "a", .init = one}, .no_bias = true);
    kl_var *b =
        kl_fc(y, 1, .weight = {.name = "b", .init = one, .no_clip = left_out}, .no_bias = true);
    kl_minimize(kl_mean(kl_add(a, b)), kl_sgd(1, .clip = kl_clip_global_norm(1)));
    float xs = 3, ys = 4;
    kl_tensor tx = kl_array(KL_FLOAT32, &xs, 1, 1), ty = kl_array(KL_FLOAT32, &ys, 1, 1);
    kl_run(exe, kl_startup(net), NULL, NULL);
    kl_run(exe, kl_main(net), kl_feeds({"x", &tx}, {"y", &ty}), NULL);
    no_error();
    close_to(*(float *)kl_get(exe, "a")->data, 1 - (left_out ? 1 : 0.6), "a", left_out);
    close_to(*(float *)kl_get(exe, "b")->data, 1 - (left_out ? 4 : 0.8), "b", left_out);
    kl_exec_free(exe), kl_net_free(net);
  }
}

static void parameter_attributes(void **state) {
  (void)state;
  Vector v = vector_new(kl_sgd(0.1, .decay = kl_l1(9)), (kl_param){.lr = 0.5, .decay = kl_l2(0.3)});
  const float *w = vector_step(&v, 0);
  for (int i = 0; i < N; i++)
    close_to(w[i], start[i] - 0.05 * (grads[0][i] + 0.3 * start[i]), "own", i);
  vector_free(&v);

  kl_net *net = kl_net_new();
  kl_exec *exe = kl_exec_new(kl_exec_defaults);
  kl_var *x = kl_data(net, "x", KL_FLOAT32, -1, N);
  kl_var *h = kl_fc(x, 2, .weight = {.name = "fixed", .frozen = true});
  kl_minimize(kl_mean(kl_fc(h, 1)), kl_adam(0.1));
  kl_run(exe, kl_startup(net), NULL, NULL);
  float before[2 * N], bias[2];
  memcpy(before, kl_get(exe, "fixed")->data, sizeof before);
  memcpy(bias, kl_get(exe, "fc_0.b_0")->data, sizeof bias);
  kl_tensor tx = kl_array(KL_FLOAT32, (void *)(uintptr_t)grads[1], 1, N);
  kl_run(exe, kl_main(net), kl_feeds({"x", &tx}), NULL);
  no_error();
  assert_memory_equal(before, kl_get(exe, "fixed")->data, sizeof before);
  assert_memory_not_equal(bias, kl_get(exe, "fc_0.b_0")->data, sizeof bias);
  assert_null(kl_find(net, "fixed@GRAD"));
  kl_exec_free(exe), kl_net_free(net);
}

static void learning_rate_is_set(void **state) {
  (void)state;
  Vector v = vector_new(kl_sgd(0.1), (kl_param){0});
  kl_schedule s = kl_rate_exponential(0.2, 0.5);
  double p[N];
  for (int i = 0; i < N; i++) p[i] = start[i];
  for (int t = 0; t < STEPS; t++) {
    assert_true(kl_set_rate(v.exe, v.rate, kl_rate(&s, t)));
    const float *w = vector_step(&v, t);
    for (int i = 0; i < N; i++) close_to(w[i], p[i] -= 0.2 * pow(0.5, t) * grads[t][i], "w", i);
  }
  assert_false(kl_set_rate(v.exe, NULL, 1));
  expect_error(E_ARG_002, "NULL");
  vector_free(&v);
}

/* ---- gradients ---- */

/* loss = mean(x w w): dloss/dw = x^T (x's row sums through w) from both uses. */
static void gradient_of_a_shared_parameter(void **state) {
  (void)state;
  enum { K = 3, ROWS = 2 };
  kl_net *net = kl_net_new();
  kl_exec *exe = kl_exec_new(kl_exec_defaults);
  float w[K][K], x[ROWS][K], g[K][K], loss;
  for (int i = 0; i < K * K; i++) w[i / K][i % K] = (float)cos(i * 1.7);
  for (int i = 0; i < ROWS * K; i++) x[i / K][i % K] = (float)sin(i * 0.9 + 1);
  kl_tensor tw = kl_array(KL_FLOAT32, w, K, K), tx = kl_array(KL_FLOAT32, x, ROWS, K);
  kl_tensor tg = kl_array(KL_FLOAT32, g, K, K), tl = kl_scalar(KL_FLOAT32, &loss);
  kl_param p = {.name = "w", .init = kl_values(&tw)};
  kl_var *in = kl_data(net, "x", KL_FLOAT32, -1, K);
  kl_var *y = kl_fc(kl_fc(in, K, .weight = p, .no_bias = true), K, .weight = p, .no_bias = true);
  kl_named(kl_mean(y), "loss");
  assert_true(kl_backward(kl_find(net, "loss")));
  kl_run(exe, kl_startup(net), NULL, NULL);
  kl_run(exe, kl_main(net), kl_feeds({"x", &tx}), kl_fetches({"w@GRAD", &tg}, {"loss", &tl}));
  no_error();
  for (int i = 0; i < K * K; i++) {
    double up[2] = {0, 0}, h = 1e-4; /* central differences of the plain formula in double */
    for (int side = 0; side < 2; side++)
      for (int r = 0; r < ROWS; r++)
        for (int c = 0; c < K; c++)
          for (int m = 0; m < K; m++)
            for (int q = 0; q < K; q++) {
              double d = side ? -h : h;
              double a = w[q][m] + (q * K + m == i ? d : 0), b = w[m][c] + (m * K + c == i ? d : 0);
              up[side] += x[r][q] * a * b / (ROWS * K);
            }
    close_to(g[i / K][i % K], (up[0] - up[1]) / (2 * h), "w@GRAD", i);
  }
  kl_exec_free(exe), kl_net_free(net);
}

/* ---- custom operators ---- */

static bool cube_infer(const kl_custom_op *op, int n_in, const kl_tensor *in, int n_out,
                       kl_tensor *out) {
  (void)op, (void)n_in, (void)n_out;
  out[0] = in[0];
  return in[0].dtype == KL_FLOAT32;
}

static bool cube(const kl_custom_op *op, int n_in, const kl_tensor *in, int n_out, kl_tensor *out) {
  (void)n_in, (void)n_out;
  const float *x = in[0].data;
  for (int64_t i = 0; i < kl_numel(&in[0]); i++) {
    if (x[i] > *(float *)op->user) return false;
    ((float *)out[0].data)[i] = x[i] * x[i] * x[i];
  }
  return true;
}

static bool cube_grad(const kl_custom_op *op, int n_in, const kl_tensor *in, int n_out,
                      kl_tensor *out) {
  (void)op, (void)n_out;
  if (n_in != 3) return false;
  const float *x = in[0].data, *gy = in[2].data;
  for (int64_t i = 0; i < kl_numel(&in[0]); i++)
    ((float *)out[0].data)[i] = 3 * x[i] * x[i] * gy[i];
  return true;
}

static void custom_operator(void **state) {
  (void)state;
  static float limit = 100;
  assert_true(
      kl_register(&(kl_custom_op){"test_cube", "X -> Out", cube_infer, cube, cube_grad, &limit}));
  assert_false(
      kl_register(&(kl_custom_op){"test_cube", "X -> Out", cube_infer, cube, cube_grad, &limit}));
  expect_error(E_PLG_001, "test_cube");
  for (int interpret = 0; interpret < 2; interpret++) {
    kl_net *net = kl_net_new();
    kl_exec *exe = kl_exec_new((kl_exec_options){.interpret = interpret});
    kl_var *x = kl_data(net, "x", KL_FLOAT32, -1, 1), *i = kl_data(net, "i", KL_INT64, -1, 1);
    kl_var *h = kl_fc(x, 1, .weight = {.init = kl_constant(2)}, .no_bias = true);
    kl_named(kl_mean(kl_op(net, "test_cube", "", "X", h)), "loss");
    kl_minimize(kl_find(net, "loss"), kl_sgd(0.01));
    float v = 1.5f, loss;
    kl_tensor tv = kl_array(KL_FLOAT32, &v, 1, 1), tl = kl_scalar(KL_FLOAT32, &loss);
    kl_run(exe, kl_startup(net), NULL, NULL);
    kl_run(exe, kl_main(net), kl_feeds({"x", &tv}), kl_fetches({"loss", &tl}));
    no_error();
    close_to(loss, 27, "loss", 0); /* (2 * 1.5)^3 */
    close_to(*(float *)kl_get(exe, "fc_0.w_0")->data, 2 - 0.01 * 3 * 9 * 1.5, "w", 0);
    v = 1000; /* forward says no: an error, and nothing changes */
    float w = *(float *)kl_get(exe, "fc_0.w_0")->data;
    assert_false(kl_run(exe, kl_main(net), kl_feeds({"x", &tv}), kl_fetches({"loss", &tl})));
    expect_error(E_PLG_001, "test_cube");
    assert_true(*(float *)kl_get(exe, "fc_0.w_0")->data == w);
    assert_null(kl_op(net, "test_cube", "", "X", i)); /* infer says no */
    expect_error(E_PLG_001, "test_cube");
    kl_exec_free(exe), kl_net_free(net);
  }
}

static bool pair_infer(const kl_custom_op *op, int n_in, const kl_tensor *in, int n_out,
                       kl_tensor *out) {
  (void)op;
  for (int i = 0; i < n_out; i++) out[i] = in[0];
  return n_in == 1 && n_out == 3;
}

/* x, x squared and x cubed. */
static bool pair(const kl_custom_op *op, int n_in, const kl_tensor *in, int n_out, kl_tensor *out) {
  (void)op, (void)n_in;
  const float *x = in[0].data;
  for (int64_t i = 0; i < kl_numel(&in[0]); i++)
    for (int k = 0; k < n_out; k++) ((float *)out[k].data)[i] = powf(x[i], (float)k + 1);
  return n_out == 3;
}

static bool pair_grad(const kl_custom_op *op, int n_in, const kl_tensor *in, int n_out,
                      kl_tensor *out) {
  (void)op, (void)n_out;
  if (n_in != 7) return false; /* X, A, B, C and the gradients of A, B, C */
  const float *x = in[0].data, *c = in[3].data;
  for (int64_t i = 0; i < kl_numel(&in[0]); i++) {
    if (fabsf(c[i] - x[i] * x[i] * x[i]) > 1e-3f) return false;
    float g = 0;
    for (int k = 0; k < 3; k++)
      g += ((const float *)in[4 + k].data)[i] * (float)(k + 1) * powf(x[i], (float)k);
    ((float *)out[0].data)[i] = g;
  }
  return true;
}

/* Outputs that nothing uses keep their positions in the backward function's arguments. */
static void custom_positions(void **state) {
  (void)state;
  assert_true(
      kl_register(&(kl_custom_op){"test_powers", "X -> A B C", pair_infer, pair, pair_grad, NULL}));
  for (int used = 0; used < 3; used++)
    for (int interpret = 0; interpret < 2; interpret++) {
      kl_net *net = kl_net_new();
      kl_exec *exe = kl_exec_new((kl_exec_options){.interpret = interpret});
      kl_var *x = kl_data(net, "x", KL_FLOAT32, -1, 1);
      kl_var *h = kl_fc(x, 1, .weight = {.init = kl_constant(2)}, .no_bias = true);
      kl_var *a = kl_op(net, "test_powers", "", "X", h);
      kl_var *loss = kl_mean(used ? kl_output(a, used == 1 ? "B" : "C") : a);
      kl_backward(loss);
      float v = 1.5f, g;
      kl_tensor tv = kl_array(KL_FLOAT32, &v, 1, 1), tg = kl_array(KL_FLOAT32, &g, 1, 1);
      kl_run(exe, kl_startup(net), NULL, NULL);
      kl_run(exe, kl_main(net), kl_feeds({"x", &tv}), kl_fetches({"fc_0.w_0@GRAD", &tg}));
      no_error();
      close_to(g, 1.5 * (used + 1) * pow(3, used), "gradient", used);
      kl_exec_free(exe), kl_net_free(net);
    }
}

/* ---- profiles ---- */

/* The table on stdout has the operators that ran. */
static void printed_profile(void **state) {
  (void)state;
  kl_net *net = kl_net_new();
  kl_exec *exe = kl_exec_new((kl_exec_options){.profile = true});
  kl_var *y = kl_fc(kl_data(net, "x", KL_FLOAT32, -1, 2), 3, .act = "tanh");
  float x[2] = {1, 2}, out[3];
  kl_tensor tx = kl_array(KL_FLOAT32, x, 1, 2), ty = kl_array(KL_FLOAT32, out, 1, 3);
  kl_run(exe, kl_startup(net), NULL, NULL);
  kl_run(exe, kl_main(net), kl_feeds({"x", &tx}), kl_fetches({kl_name(y), &ty}));
  no_error();
  char text[8192];
  FILE *f = tmpfile();
  fflush(stdout);
  int was = dup(1);
  dup2(fileno(f), 1);
  kl_print_profile(exe);
  fflush(stdout);
  dup2(was, 1);
  close(was);
  rewind(f);
  text[fread(text, 1, sizeof text - 1, f)] = 0;
  fclose(f);
  assert_non_null(strstr(text, "operator"));
  assert_non_null(strstr(text, "\nmul "));
  assert_non_null(strstr(text, "\nkernel"));
  kl_exec_free(exe), kl_net_free(net);
}

#define TEST(f) cmocka_unit_test_setup(f, clear_error)

int main(void) {
  const struct CMUnitTest tests[] = {
      TEST(optimisers),           TEST(clipping_and_decay),   TEST(global_norm_of_two),
      TEST(parameter_attributes), TEST(learning_rate_is_set), TEST(gradient_of_a_shared_parameter),
      TEST(custom_operator),      TEST(custom_positions),     TEST(printed_profile),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
