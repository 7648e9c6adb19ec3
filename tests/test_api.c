/* kiln.h: what building calls add to the two programs, layers, initialisers, parameters, schedules, errors.
 * test_train.c has what happens when the programs run. */
#include "util.h"
#include "../frontend/internal.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

/* ---- line by line ---- */

/* The lines of a program's text without the frame, and without the places of calls, which must be in this file. */
static char *lines_of(const kl_program *p, Arena *a) {
  char *text = kl_text(p);
  Str s;
  str_init(&s, a);
  str_add(&s, "\n");
  for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
    if (line[0] != ' ') continue;
    char *at = strstr(line, " at \"");
    if (at) assert_non_null(strstr(at, "test_api.c:"));
    if (strstr(line, ") {") || strstr(line, "() {")) assert_non_null(at); /* operators keep it */
    str_fmt(&s, "%.*s\n", (int)(at ? at - line : (ptrdiff_t)strlen(line)) - 2, line + 2);
  }
  kl_free(text);
  return s.s;
}

typedef struct Diff {
  Arena *a;
  const char *startup, *main;
} Diff;

static void add_missing(Str *s, char sign, const char *from, const char *in, Arena *a) {
  char *copy = arena_str(a, from), *save;
  for (char *line = strtok_r(copy, "\n", &save); line; line = strtok_r(NULL, "\n", &save))
    if (!strstr(in, arena_fmt(a, "\n%s\n", line))) str_fmt(s, "%c %s\n", sign, line);
}

static const char *difference(Diff *d, const char **before, const kl_program *p) {
  const char *now = lines_of(p, d->a);
  Str s;
  str_init(&s, d->a);
  str_add(&s, "");
  add_missing(&s, '-', *before ? *before : "\n", now, d->a);
  add_missing(&s, '+', now, *before ? *before : "\n", d->a);
  *before = now;
  return s.s ? s.s : "";
}

static void expect_lines(Diff *d, kl_net *net, const char *startup, const char *main) {
  no_error();
  assert_string_equal(difference(d, &d->startup, kl_startup(net)), startup);
  assert_string_equal(difference(d, &d->main, kl_main(net)), main);
}

static void line_by_line(void **state) {
  (void)state;
  Diff d = {.a = arena_new()};
  kl_net *net = kl_net_new();
  expect_lines(&d, net, "", "");

  kl_var *data = kl_data(net, "X", KL_FLOAT32, -1, 1);
  expect_lines(&d, net, "", "+ var X float32 [-1, 1] feed stop_gradient\n");

  kl_var *hidden = kl_fc(data, 10);
  expect_lines(&d, net,
               "+ param fc_0.w_0 float32 [1, 10]\n"
               "+ param fc_0.b_0 float32 [10]\n"
               "+ fc_0.w_0 = uniform_random() {dtype=5, max=0.73854893, min=-0.73854893, seed=0, "
               "shape=[1, 10]L}\n"
               "+ fc_0.b_0 = fill_constant() {dtype=5, shape=[10]L, str_value='0', value=0.0}\n",
               "+ param fc_0.w_0 float32 [1, 10]\n"
               "+ var fc_0.tmp_0 float32 [-1, 10]\n"
               "+ param fc_0.b_0 float32 [10]\n"
               "+ var fc_0.tmp_1 float32 [-1, 10]\n"
               "+ fc_0.tmp_0 = mul(X=X, Y=fc_0.w_0) {op_role=0, x_num_col_dims=1, "
               "y_num_col_dims=1}\n"
               "+ fc_0.tmp_1 = elementwise_add(X=fc_0.tmp_0, Y=fc_0.b_0) {axis=1, op_role=0}\n");

  kl_var *loss = kl_mean(hidden);
  expect_lines(&d, net, "",
               "+ var mean_0.tmp_0 float32 []\n"
               "+ mean_0.tmp_0 = mean(X=fc_0.tmp_1) {op_role=0}\n");

  kl_minimize(loss, kl_sgd(0.01));
  expect_lines(
      &d, net,
      "+ var learning_rate_0 float32 [] persistable stop_gradient\n"
      "+ learning_rate_0 = fill_constant() {dtype=5, shape=[]L, str_value='0.01', value=0.01}\n",
      "- mean_0.tmp_0 = mean(X=fc_0.tmp_1) {op_role=0}\n"
      "+ var mean_0.tmp_0@GRAD float32 []\n"
      "+ var fc_0.tmp_1@GRAD float32 [-1, 10]\n"
      "+ var fc_0.tmp_0@GRAD float32 [-1, 10]\n"
      "+ var fc_0.b_0@GRAD float32 [10]\n"
      "+ var fc_0.w_0@GRAD float32 [1, 10]\n"
      "+ var learning_rate_0 float32 [] persistable stop_gradient\n"
      "+ mean_0.tmp_0 = mean(X=fc_0.tmp_1) {op_role=256}\n"
      "+ mean_0.tmp_0@GRAD = fill_constant() {dtype=5, op_role=257, shape=[]L, value=1.0}\n"
      "+ X@GRAD=fc_0.tmp_1@GRAD = mean_grad(Out@GRAD=mean_0.tmp_0@GRAD, X=fc_0.tmp_1) "
      "{op_role=1}\n"
      "+ X@GRAD=fc_0.tmp_0@GRAD, Y@GRAD=fc_0.b_0@GRAD = "
      "elementwise_add_grad(Out@GRAD=fc_0.tmp_1@GRAD, X=fc_0.tmp_0, Y=fc_0.b_0) {axis=1, "
      "op_role=1, op_role_var=['fc_0.b_0', 'fc_0.b_0@GRAD']}\n"
      "+ Y@GRAD=fc_0.w_0@GRAD = mul_grad(Out@GRAD=fc_0.tmp_0@GRAD, X=X, Y=fc_0.w_0) "
      "{op_role=1, op_role_var=['fc_0.w_0', 'fc_0.w_0@GRAD'], x_num_col_dims=1, "
      "y_num_col_dims=1}\n"
      "+ ParamOut=fc_0.b_0 = sgd(Grad=fc_0.b_0@GRAD, LearningRate=learning_rate_0, "
      "Param=fc_0.b_0) {op_role=2, op_role_var=['fc_0.b_0', 'fc_0.b_0@GRAD']}\n"
      "+ ParamOut=fc_0.w_0 = sgd(Grad=fc_0.w_0@GRAD, LearningRate=learning_rate_0, "
      "Param=fc_0.w_0) {op_role=2, op_role_var=['fc_0.w_0', 'fc_0.w_0@GRAD']}\n");
  kl_net_free(net);
  arena_free(d.a);
}

/* ---- layers: the shape of the result, and the parameters ---- */

static void expect_shape(const kl_var *v, const char *shape, const char *file, int line) {
  if (!v) fail_msg("%s:%d: %s", file, line, kl_error());
  _assert_string_equal(shape_text(v->dtype, v->rank, v->dims), shape, file, line);
}
#define SHAPE(v, text) expect_shape((v), (text), __FILE__, __LINE__)

static void layers_with_weights(void **state) {
  (void)state;
  kl_net *net = kl_net_new();
  kl_var *x = kl_data(net, "x", KL_FLOAT32, -1, 6, 8, 8),
         *y = kl_data(net, "y", KL_FLOAT32, -1, 5, 4);
  kl_var *ids = kl_data(net, "ids", KL_INT64, -1, 7);
  SHAPE(kl_fc(x, 10), "float32 [-1, 10]");
  SHAPE(kl_find(net, "fc_0.w_0"), "float32 [384, 10]");
  SHAPE(kl_fc(y, 3, .flatten = 2, .no_bias = true, .act = "gelu"), "float32 [-1, 5, 3]");
  assert_null(kl_find(net, "fc_1.b_0"));
  SHAPE(kl_conv2d(x, 12, 3), "float32 [-1, 12, 6, 6]");
  SHAPE(kl_conv2d(x, 12, 3, .stride = 2, .pad = 1, .groups = 3, .act = "relu"),
        "float32 [-1, 12, 4, 4]");
  SHAPE(kl_find(net, "conv2d_1.w_0"), "float32 [12, 2, 3, 3]");
  SHAPE(kl_conv2d(x, 4, 3, .kernel_w = 5, .padding = "SAME"), "float32 [-1, 4, 8, 8]");
  SHAPE(kl_conv2d(x, 4, 3, .dilation = 2, .no_bias = true), "float32 [-1, 4, 4, 4]");
  SHAPE(kl_conv2d(x, 4, 1, .nhwc = true), "float32 [-1, 6, 8, 4]");
  SHAPE(kl_batch_norm(x, .act = "relu"), "float32 [-1, 6, 8, 8]");
  assert_true(kl_find(net, "batch_norm_0.w_1")->persistable);
  assert_false(kl_find(net, "batch_norm_0.w_1")->is_parameter);
  SHAPE(kl_batch_norm(x, .nhwc = true, .is_test = true), "float32 [-1, 6, 8, 8]");
  SHAPE(kl_find(net, "batch_norm_1.w_0"), "float32 [8]");
  SHAPE(kl_layer_norm(y, .begin_axis = 2), "float32 [-1, 5, 4]");
  SHAPE(kl_find(net, "layer_norm_0.w_0"), "float32 [4]");
  SHAPE(kl_layer_norm(y, .no_weight = true, .no_bias = true), "float32 [-1, 5, 4]");
  SHAPE(kl_embedding(ids, 50, 16, .has_padding = true, .padding = 0), "float32 [-1, 7, 16]");
  SHAPE(kl_find(net, "embedding_0.w_0"), "float32 [50, 16]");
  no_error();
  kl_net_free(net);
}

static void layers_without_weights(void **state) {
  (void)state;
  kl_net *net = kl_net_new();
  kl_var *x = kl_data(net, "x", KL_FLOAT32, -1, 6, 8, 8), *y = kl_data(net, "y", KL_FLOAT32, -1, 5);
  kl_var *label = kl_data(net, "label", KL_INT64, -1, 1);
  SHAPE(kl_pool2d(x, "max", 2), "float32 [-1, 6, 4, 4]");
  SHAPE(kl_pool2d(x, "avg", 3, 2, 1, .inclusive = true), "float32 [-1, 6, 4, 4]");
  SHAPE(kl_pool2d(x, "avg", .global = true), "float32 [-1, 6, 1, 1]");
  SHAPE(kl_pool2d(x, "max", 3, .adaptive = true), "float32 [-1, 6, 3, 3]");
  SHAPE(kl_pool2d(x, "max", 3, 2, .ceil_mode = true), "float32 [-1, 6, 4, 4]");
  SHAPE(kl_dropout(x, 0.3), "float32 [-1, 6, 8, 8]");
  SHAPE(kl_reshape(x, 0, -1), "float32 [-1, 384]");
  SHAPE(kl_concat(1, x, x, x), "float32 [-1, 18, 8, 8]");
  SHAPE(kl_softmax(kl_gelu(kl_tanh(kl_sigmoid(kl_relu(y))))), "float32 [-1, 5]");
  SHAPE(kl_add(kl_sub(y, y), kl_div(y, kl_mul(y, y))), "float32 [-1, 5]");
  SHAPE(kl_matmul(x, x), "float32 [-1, 6, 8, 8]");
  SHAPE(kl_softmax_with_cross_entropy(y, label), "float32 [-1, 1]");
  SHAPE(kl_soft_label_cross_entropy(y, kl_softmax(y)), "float32 [-1, 1]");
  SHAPE(kl_cross_entropy(kl_softmax(y), label), "float32 [-1, 1]");
  SHAPE(kl_bce_with_logits(y, y), "float32 [-1, 5]");
  SHAPE(kl_huber(y, kl_relu(y), 0.5), "float32 [-1, 5]");
  SHAPE(kl_mse(y, kl_relu(y)), "float32 []");
  SHAPE(kl_accuracy(y, label, 2), "float32 []");
  no_error();
  kl_net_free(net);
}

/* ---- the generic call ---- */

static void any_operator(void **state) {
  (void)state;
  kl_net *net = kl_net_new();
  kl_var *x = kl_data(net, "x", KL_FLOAT32, -1, 6);
  SHAPE(kl_op(net, "leaky_relu", "alpha=0.1", "X", x), "float32 [-1, 6]");
  SHAPE(kl_op(net, "concat", "axis=0", "X", x, "X", x), "float32 [-1, 6]");
  kl_var *part = kl_op(net, "split", "num=3 axis=1", "X", x);
  SHAPE(part, "float32 [-1, 2]");
  assert_string_equal(kl_name(part), "split_0.tmp_0");
  SHAPE(kl_find(net, "split_0.tmp_2"), "float32 [-1, 2]");
  assert_ptr_equal(kl_output_n(part, "Out", 2), kl_find(net, "split_0.tmp_2"));
  kl_var *columns = kl_op(net, "unbind", "axis=-1", "X", x);
  SHAPE(kl_output_n(columns, "Out", 5), "float32 [-1]");
  kl_var *grid = kl_op(net, "meshgrid", "", "X", kl_fill(net, KL_FLOAT32, 0, 2), "X",
                       kl_fill(net, KL_FLOAT32, 0, 3));
  SHAPE(kl_output_n(grid, "Out", 1), "float32 [2, 3]");
  kl_var *top = kl_op(net, "top_k_v2", "k=2", "X", x);
  SHAPE(kl_output(top, "Indices"), "int64 [-1, 2]");
  SHAPE(kl_op(net, "fill_constant", "shape=[2,3] value=1.5 dtype=5"), "float32 [2, 3]");
  SHAPE(kl_named(kl_relu(x), "after"), "float32 [-1, 6]");
  assert_ptr_equal(kl_find(net, "after")->block, kl_main(net)->blocks.v[0]);
  no_error();
  kl_net_free(net);
}

/* ---- initialisers ---- */

static const float *initial(kl_exec *exe, const char *name) {
  const kl_tensor *t = kl_get(exe, name);
  assert_non_null(t);
  return t->data;
}

static void expect_spread(const float *v, int n, double mean, double std, double low, double high) {
  double sum = 0, sq = 0;
  for (int i = 0; i < n; i++) {
    assert_true(v[i] >= low && v[i] <= high);
    sum += v[i];
    sq += (double)v[i] * v[i];
  }
  assert_true(fabs(sum / n - mean) < 5 * std / sqrt(n) + 1e-9);
  assert_true(fabs(sqrt(sq / n - sum / n * sum / n) - std) < 0.05 * std + 1e-9);
}

typedef enum Law { FLAT, NORMAL, CUT } Law; /* uniform, normal, normal cut at two deviations */

static int ascending(const void *a, const void *b) {
  float x = *(const float *)a, y = *(const float *)b;
  return (x > y) - (x < y);
}

static double below(Law law, double x, double mean, double std) {
  double z = (x - mean) / std, tail = 0.5 * erfc(2 / sqrt(2));
  if (law == FLAT) return 0.5 + z / sqrt(12);
  double p = 0.5 * erfc(-z / sqrt(2));
  return law == NORMAL ? p : (p - tail) / (1 - 2 * tail);
}

/* The statistic of Kolmogorov and Smirnov; above 2.2 / sqrt(n) once in 8000 times. std: of the law before it is cut. */
static void expect_law(Law law, const float *v, int n, double mean, double std) {
  float *sorted = malloc(sizeof *v * (size_t)n);
  double worst = 0;
  memcpy(sorted, v, sizeof *v * (size_t)n);
  qsort(sorted, (size_t)n, sizeof *v, ascending);
  for (int i = 0; i < n; i++) {
    double p = below(law, (double)sorted[i], mean, std);
    worst = fmax(worst, fmax(fabs(p - (double)i / n), fabs(p - (i + 1.0) / n)));
  }
  free(sorted);
  if (worst > 2.2 / sqrt(n)) fail_msg("the distribution is off by %g of %d values", worst, n);
}

static void initialisers(void **state) {
  (void)state;
  enum { IN = 60, OUT = 90, N = IN * OUT };
  static float values[N];
  for (int i = 0; i < N; i++) values[i] = (float)i * 0.1f - 3;
  kl_tensor given = kl_array(KL_FLOAT32, values, IN, OUT);
  double x = sqrt(6.0 / (IN + OUT)), k = sqrt(6.0 / IN);
  const struct {
    kl_init init;
    double mean, std, low, high;
    Law law;
  } rows[] = {
      {{0}, 0, x / sqrt(3), -x, x, FLAT}, /* Xavier */
      {kl_constant(0.25), 0.25, 0, 0.25, 0.25, FLAT},
      {kl_uniform(-1, 3), 1, 4 / sqrt(12), -1, 3, FLAT},
      {kl_normal(2, 0.5), 2, 0.5, -9, 9, NORMAL},
      {kl_truncated_normal(1, 0.5), 1, 0.5 * 0.8796, 0, 2, CUT},
      {kl_xavier_uniform(), 0, x / sqrt(3), -x, x, FLAT},
      {kl_xavier_normal(), 0, x / sqrt(3), -9, 9, NORMAL},
      {kl_kaiming_uniform(), 0, k / sqrt(3), -k, k, FLAT},
      {kl_kaiming_normal(), 0, k / sqrt(3), -9, 9, NORMAL},
  };
  enum { ROWS = sizeof rows / sizeof *rows };
  kl_net *net = kl_net_new();
  kl_seed(net, 7);
  kl_var *in = kl_data(net, "x", KL_FLOAT32, -1, IN);
  for (int i = 0; i < ROWS; i++) kl_fc(in, OUT, .weight = {.init = rows[i].init});
  kl_fc(in, OUT, .weight = {.init = kl_values(&given)}, .bias = {.init = kl_constant(-2)});
  kl_conv2d(kl_reshape(in, 0, 15, 2, 2), 40, 2, .weight = {.init = kl_kaiming_uniform()});
  memset(values, 0, sizeof values); /* they were copied when the layer was built */
  kl_exec *exe = kl_exec_new(kl_exec_defaults), *other = kl_exec_new(kl_exec_defaults);
  kl_run(exe, kl_startup(net), NULL, NULL);
  kl_run(other, kl_startup(net), NULL, NULL);
  no_error();
  char name[32];
  for (int i = 0; i < ROWS; i++) {
    snprintf(name, sizeof name, "fc_%d.w_0", i);
    expect_spread(initial(exe, name), N, rows[i].mean, rows[i].std, rows[i].low, rows[i].high);
    if (rows[i].std > 0)
      expect_law(rows[i].law, initial(exe, name), N, rows[i].mean,
                 rows[i].std / (rows[i].law == CUT ? 0.8796 : 1));
    assert_memory_equal(initial(exe, name), initial(other, name), N * sizeof(float));
    snprintf(name, sizeof name, "fc_%d.b_0", i);
    for (int j = 0; j < OUT; j++) assert_true(initial(exe, name)[j] == 0);
  }
  assert_memory_not_equal(initial(exe, "fc_0.w_0"), initial(exe, "fc_5.w_0"), N * sizeof(float));
  const float *v = initial(exe, "fc_9.w_0");
  for (int i = 0; i < N; i++) assert_true(v[i] == (float)i * 0.1f - 3);
  for (int j = 0; j < OUT; j++) assert_true(initial(exe, "fc_9.b_0")[j] == -2);
  double c = sqrt(6.0 / (15 * 4)); /* the fan-in of a filter counts its area */
  expect_spread(initial(exe, "conv2d_0.w_0"), 40 * 60, 0, c / sqrt(3), -c, c);
  kl_exec_free(exe), kl_exec_free(other), kl_net_free(net);
}

/* ---- errors ---- */

static void first_error_is_kept(void **state) {
  (void)state;
  kl_net *net = kl_net_new();
  kl_var *x = kl_data(net, "x", KL_FLOAT32, -1, 6);
  int ops = kl_main(net)->blocks.v[0]->ops.n;
  int line = __LINE__ + 1;
  kl_var *bad = kl_op(net, "leaky_rellu", "", "X", x);
  assert_null(bad);
  char place[64];
  snprintf(place, sizeof place, "test_api.c:%d", line);
  assert_true(kl_failed());
  assert_string_equal(kl_error_code(), "E-OPR-001");
  assert_non_null(strstr(kl_error(), place));
  assert_non_null(strstr(kl_error(), "leaky_relu"));
  /* everything after it does nothing, also with the NULL that came out */
  assert_null(kl_fc(bad, 10));
  assert_null(kl_mean(kl_fc(x, 10)));
  assert_null(kl_minimize(bad, kl_sgd(0.1)));
  assert_null(kl_named(bad, "n"));
  assert_false(kl_save(kl_main(net), "/nonexistent/x"));
  assert_int_equal(kl_main(net)->blocks.v[0]->ops.n, ops);
  assert_string_equal(kl_error_code(), "E-OPR-001");
  kl_clear_error();
  assert_string_equal(kl_error(), "");
  SHAPE(kl_fc(x, 10), "float32 [-1, 10]");
  kl_net_free(net);
}

/* Each statement fails with the code; the text names this file. */
#define FAILS(code, part, call)                                                                    \
  do {                                                                                             \
    assert_false((bool)(call));                                                                    \
    if (kl_failed() && !strstr(kl_error(), "test_api.c:"))                                         \
      fail_msg("line %d: no place in\n%s", __LINE__, kl_error());                                  \
    expect_error((code), (part));                                                                  \
  } while (0)

static void wrong_building_calls(void **state) {
  (void)state;
  kl_net *net = kl_net_new();
  kl_var *x = kl_data(net, "x", KL_FLOAT32, -1, 6), *open = kl_data(net, "o", KL_FLOAT32, -1, -1);
  kl_var *im = kl_data(net, "im", KL_FLOAT32, -1, 3, 8, 8), *i = kl_data(net, "i", KL_INT64, -1, 6);
  FAILS(E_PRO_002, "\"x\"", kl_data(net, "x", KL_FLOAT32, -1, 6));
  FAILS(E_OPR_003, "\"alfa\"", kl_op(net, "leaky_relu", "alfa=0.1", "X", x));
  FAILS(E_OPR_003, "\"alpha\"", kl_op(net, "leaky_relu", "alpha=red", "X", x));
  FAILS(E_OPR_003, "name=value", kl_op(net, "leaky_relu", "=", "X", x));
  FAILS(E_OPR_002, "\"Input\"", kl_op(net, "leaky_relu", "", "Input", x));
  FAILS(E_ARG_002, "\"X\"", kl_op(net, "leaky_relu", "", "X", (kl_var *)NULL));
  FAILS(E_SHP_001, "elementwise_add", kl_add(im, x));
  FAILS(E_TYP_001, "elementwise_add", kl_add(x, i));
  FAILS(E_SHP_012, "matmul_v2", kl_matmul(x, im));
  FAILS(E_ARG_002, "size is 0", kl_fc(x, 0));
  FAILS(E_SHP_005, "fc", kl_fc(open, 10));
  FAILS(E_SHP_002, "fc", kl_fc(x, 10, .flatten = 2));
  FAILS(E_SHP_002, "conv2d", kl_conv2d(x, 4, 3));
  FAILS(E_SHP_006, "2 groups", kl_conv2d(im, 4, 3, .groups = 2));
  FAILS(E_SHP_005, "conv2d", kl_conv2d(im, 4, 9));
  FAILS(E_OPR_003, "padding_algorithm", kl_conv2d(im, 4, 3, .padding = "WIDE"));
  FAILS(E_SHP_004, "reshape2", kl_reshape(x, -1, -1));
  FAILS(E_SHP_003, "concat", kl_concat(7, x, x));
  FAILS(E_ARG_002, "a layer's input is NULL", kl_fc(NULL, 10));
  FAILS(E_SHP_006, "must be one floating-point number", kl_minimize(kl_fc(x, 4), kl_sgd(0.1)));
  FAILS(E_OPR_005, "no trainable parameter", kl_minimize(kl_mean(x), kl_sgd(0.1)));
  FAILS(E_PRO_002, "that name is taken", kl_named(kl_relu(x), "im"));
  FAILS(E_OPR_001, "\"rellu\"", kl_fc(x, 3, .act = "rellu"));
  assert_null(kl_output(kl_fc(x, 3), "Mask"));
  expect_error(E_OPR_002, "\"Mask\"");
  assert_null(kl_output_n(kl_fc(x, 3), "Out", 1));
  expect_error(E_ARG_002, "it has 1");
  kl_net_free(net);
}

static void shared_parameters(void **state) {
  (void)state;
  kl_net *net = kl_net_new();
  kl_var *x = kl_data(net, "x", KL_FLOAT32, -1, 4);
  kl_fc(kl_fc(x, 4, .weight = {.name = "w"}, .no_bias = true), 4, .weight = {.name = "w"},
        .no_bias = true);
  no_error();
  assert_int_equal(kl_startup(net)->blocks.v[0]->ops.n, 1); /* initialised once */
  FAILS(E_SHP_006, "\"w\"", kl_fc(x, 5, .weight = {.name = "w"}));
  kl_net_free(net);
}

/* Nothing is trained behind a stopped gradient. */
static void stopped_gradient(void **state) {
  (void)state;
  kl_net *net = kl_net_new();
  kl_var *h = kl_fc(kl_data(net, "x", KL_FLOAT32, -1, 2), 3);
  kl_stop_gradient(h, true);
  kl_minimize(kl_mean(kl_fc(h, 1)), kl_sgd(0.1));
  no_error();
  assert_null(kl_find(net, "fc_0.w_0@GRAD"));
  assert_non_null(kl_find(net, "fc_1.w_0@GRAD"));
  assert_string_equal(kl_version(), KILN_VERSION);
  kl_net_free(net);
}

/* ---- schedules ---- */

static double halve(int64_t step, void *user) { return *(double *)user / (double)(step + 1); }

static void schedules(void **state) {
  (void)state;
  int64_t at[] = {2, 5};
  double base = 8;
  kl_schedule constant = kl_rate_constant(0.3), step = kl_rate_step(1, 3, 0.5);
  kl_schedule multi = kl_rate_multi_step(1, 2, at, 0.1), power = kl_rate_exponential(2, 0.9);
  kl_schedule cosine = kl_rate_cosine(1, 0.2, 10), call = kl_rate_callback(halve, &base);
  kl_schedule warm = kl_rate_warm_up(kl_rate_step(1, 3, 0.5), 0.1, 5);
  for (int i = 0; i < 12; i++) {
    assert_true(kl_rate(&constant, i) == 0.3);
    assert_true(fabs(kl_rate(&step, i) - pow(0.5, i / 3)) < 1e-15);
    assert_true(fabs(kl_rate(&multi, i) - (i < 2 ? 1 : i < 5 ? 0.1 : 0.01)) < 1e-15);
    assert_true(fabs(kl_rate(&power, i) - 2 * pow(0.9, i)) < 1e-15);
    double want = i < 10 ? 0.2 + 0.8 * 0.5 * (1 + cos(acos(-1) * i / 10)) : 0.2;
    assert_true(fabs(kl_rate(&cosine, i) - want) < 1e-12);
    assert_true(kl_rate(&call, i) == 8.0 / (i + 1));
    want = i < 5 ? 0.1 + 0.9 * i / 5 : pow(0.5, (i - 5) / 3);
    assert_true(fabs(kl_rate(&warm, i) - want) < 1e-12);
  }
  kl_schedule plateau = kl_rate_plateau(1, 0.5, 2);
  static const double seen[] = {3, 2, 2, 2, 2, 1, 1, 1, 1},
                      rate[] = {1, 1, 1, 1, .5, .5, .5, .5, .25};
  for (int i = 0; i < 9; i++) {
    kl_rate_observe(&plateau, seen[i]);
    assert_true(kl_rate(&plateau, i) == rate[i]);
  }
}

#define TEST(f) cmocka_unit_test_setup(f, clear_error)

int main(void) {
  const struct CMUnitTest tests[] = {
      TEST(line_by_line),           TEST(layers_with_weights),
      TEST(layers_without_weights), TEST(any_operator),
      TEST(initialisers),           TEST(first_error_is_kept),
      TEST(wrong_building_calls),   TEST(shared_parameters),
      TEST(stopped_gradient),       TEST(schedules),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
