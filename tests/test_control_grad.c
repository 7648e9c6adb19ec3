/* Gradients through control flow that the builder makes: against central differences in float64, compiled and interpreted. */
#include "../frontend/kiln.h"
#include "../ir/ir.h"
#include "../passes/passes.h"
#include "util.h"
#include <math.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { ROWS = 2, COLUMNS = 3 };

static kl_var *parameter(kl_net *net, const char *name, int rows, int columns) {
  return kl_parameter(net, name, KL_FLOAT64, 2, (int64_t[]){rows, columns},
                      (kl_param){.name = name, .init = kl_uniform(-0.9, 0.9)}, false);
}

static kl_var *number(kl_net *net, int64_t v) { return kl_fill(net, KL_INT64, (double)v, 1); }
static kl_var *next(kl_net *net, kl_var *i) { return kl_add(i, number(net, 1)); }

static void check(bool ok) {
  if (!ok) fail_msg("%s", kl_error());
}

static double loss_of(kl_exec *exe, kl_net *net, const char *loss) {
  double l;
  kl_tensor t = kl_scalar(KL_FLOAT64, &l);
  check(kl_run(exe, kl_main(net), NULL, kl_fetches({loss, &t})));
  return l;
}

/* Of every element of the parameter. */
static void check_parameter(kl_exec *exe, kl_net *net, const char *loss, const char *name) {
  char grad[64];
  double g[32], x[32], scale = 1e-3;
  snprintf(grad, sizeof grad, "%s@GRAD", name);
  const kl_tensor *value = kl_get(exe, name);
  int n = (int)kl_numel(value);
  kl_tensor tx = *value, tg = *value;
  memcpy(x, value->data, sizeof *x * (size_t)n);
  tx.data = x, tg.data = g;
  check(kl_run(exe, kl_main(net), NULL, kl_fetches({grad, &tg})));
  for (int i = 0; i < n; i++) scale = fmax(scale, fabs(g[i]));
  for (int i = 0; i < n; i++) {
    double was = x[i], h = 1e-5, up, down;
    x[i] = was + h;
    check(kl_set(exe, name, &tx));
    up = loss_of(exe, net, loss);
    x[i] = was - h;
    check(kl_set(exe, name, &tx));
    down = loss_of(exe, net, loss);
    x[i] = was;
    check(kl_set(exe, name, &tx));
    double want = (up - down) / (2 * h);
    if (!(fabs(g[i] - want) <= 1e-5 * scale))
      fail_msg("gradient %d of %s is %.10g, by differences %.10g", i, name, g[i], want);
  }
}

/* The programs survive both file forms. */
static void round_trip(const Program *p) {
  Arena *a = arena_new();
  Str text, why;
  str_init(&text, a);
  str_init(&why, a);
  uint8_t *bytes;
  size_t n;
  prog_print(p, &text);
  if (!prog_verify(p)) fail_msg("%s", kl_error());
  Program *q = prog_parse(text.s, text.n, "net.kl");
  if (!q || !prog_equal(p, q, &why)) fail_msg("%s %s", kl_error(), why.s ? why.s : "");
  prog_free(q);
  check(prog_encode(p, a, &bytes, &n));
  q = prog_decode(bytes, n, "net.pdmodel");
  if (!q || !prog_equal(p, q, &why)) fail_msg("%s %s", kl_error(), why.s ? why.s : "");
  prog_free(q);
  arena_free(a);
}

static void check_gradients(kl_net *net, kl_var *loss, const char *const *names) {
  loss = kl_reshape(loss, 1);
  loss = kl_named(kl_mean(loss), "loss");
  check(kl_backward(loss));
  round_trip((const Program *)kl_main(net));
  for (int k = 0; k < 2; k++) {
    kl_exec *exe = kl_exec_new((kl_exec_options){.threads = 2, .interpret = k, .seed = 11});
    check(kl_run(exe, kl_startup(net), NULL, NULL));
    for (int i = 0; names[i]; i++) check_parameter(exe, net, "loss", names[i]);
    kl_exec_free(exe);
  }
  kl_net_free(net);
}

#define NAMES(...)                                                                                 \
  (const char *const[]) { __VA_ARGS__, NULL }

/* ---- loops ---- */

/* s = tanh(s w + x), some times */
static void recurrence(int64_t steps) {
  kl_net *net = kl_net_new();
  kl_var *x = parameter(net, "x", ROWS, COLUMNS), *w = parameter(net, "w", COLUMNS, COLUMNS);
  kl_var *i = number(net, 0), *n = number(net, steps), *s = kl_copy(x);
  kl_block *loop = kl_while(kl_less_than(i, n));
  kl_assign(s, kl_tanh(kl_add(kl_matmul(s, w), x)));
  kl_assign(i, next(net, i));
  kl_end_while(loop, kl_less_than(i, n));
  check_gradients(net, kl_mean(kl_mul(s, s)), steps ? NAMES("x", "w") : NAMES("x"));
}

static void loop(void **state) {
  (void)state;
  recurrence(4);
}

static void loop_of_one_step(void **state) {
  (void)state;
  recurrence(1);
}

static void loop_of_no_steps(void **state) {
  (void)state;
  recurrence(0);
}

/* a and b change places, so that each step's gradients cross; c is overwritten without being read. */
static void carried_variables(void **state) {
  (void)state;
  kl_net *net = kl_net_new();
  kl_var *x = parameter(net, "x", ROWS, COLUMNS), *w = parameter(net, "w", ROWS, COLUMNS);
  kl_var *i = number(net, 0), *n = number(net, 3);
  kl_var *a = kl_copy(x), *b = kl_copy(w), *c = kl_copy(x);
  kl_block *loop = kl_while(kl_less_than(i, n));
  kl_var *was = kl_copy(a);
  kl_assign(a, kl_tanh(kl_mul(b, x)));
  kl_assign(b, kl_add(was, kl_mul(a, a))); /* the new a */
  kl_assign(c, kl_mul(b, w));              /* the new b */
  kl_assign(i, next(net, i));
  kl_end_while(loop, kl_less_than(i, n));
  check_gradients(net, kl_mean(kl_add(c, a)), NAMES("x", "w"));
}

/* The gradient of b reaches a only over a second step. */
static void through_another_step(void **state) {
  (void)state;
  kl_net *net = kl_net_new();
  kl_var *x = parameter(net, "x", ROWS, COLUMNS), *w = parameter(net, "w", ROWS, COLUMNS);
  kl_var *i = number(net, 0), *n = number(net, 3);
  kl_var *a = kl_copy(x), *b = kl_copy(x), *c = kl_copy(x);
  kl_block *loop = kl_while(kl_less_than(i, n));
  kl_assign(c, kl_mul(b, b));
  kl_assign(b, kl_tanh(a));
  kl_assign(a, kl_mul(a, w));
  kl_assign(i, next(net, i));
  kl_end_while(loop, kl_less_than(i, n));
  check_gradients(net, kl_mean(c), NAMES("x", "w"));
}

/* for i in 0..3: for j in 0..i: s = (mean(s) < 0.1) ? tanh(s w) + x : s * x */
static void nested(void **state) {
  (void)state;
  kl_net *net = kl_net_new();
  kl_var *x = parameter(net, "x", ROWS, COLUMNS), *w = parameter(net, "w", COLUMNS, COLUMNS);
  kl_var *i = number(net, 0), *n = number(net, 4), *s = kl_copy(x);
  kl_block *outer = kl_while(kl_less_than(i, n));
  kl_var *j = number(net, 0);
  kl_block *inner = kl_while(kl_less_than(j, i));
  kl_block *b = kl_if(kl_less_than(kl_mean(s), kl_fill(net, KL_FLOAT64, 0.1, 1)));
  kl_var *yes = kl_add(kl_tanh(kl_matmul(s, w)), x);
  kl_else(b);
  kl_var *no = kl_mul(s, x);
  kl_assign(s, kl_choose(b, yes, no));
  kl_assign(j, next(net, j));
  kl_end_while(inner, kl_less_than(j, i));
  kl_assign(i, next(net, i));
  kl_end_while(outer, kl_less_than(i, n));
  check_gradients(net, kl_mean(kl_mul(s, s)), NAMES("x", "w"));
}

/* ---- branches ---- */

static void branch(void **state) {
  (void)state;
  for (int taken = 0; taken < 2; taken++) {
    kl_net *net = kl_net_new();
    kl_var *x = parameter(net, "x", ROWS, COLUMNS), *w = parameter(net, "w", ROWS, COLUMNS);
    kl_block *b = kl_if(kl_less_than(kl_mean(x), kl_fill(net, KL_FLOAT64, taken ? 9 : -9, 1)));
    kl_var *yes[2] = {kl_mul(x, w), kl_tanh(x)};
    kl_else(b);
    kl_var *no[2] = {kl_sub(x, kl_mul(w, w)), x}, *out[2];
    kl_end_if(b, 2, yes, no, out);
    check_gradients(net, kl_mean(kl_mul(out[0], out[1])), NAMES("x", "w"));
  }
}

/* A variable from around is overwritten in one branch only. */
static void branch_that_assigns(void **state) {
  (void)state;
  for (int taken = 0; taken < 2; taken++) {
    kl_net *net = kl_net_new();
    kl_var *x = parameter(net, "x", ROWS, COLUMNS), *w = parameter(net, "w", ROWS, COLUMNS);
    kl_var *s = kl_mul(x, w), *t = kl_tanh(s);
    kl_block *b = kl_if(kl_less_than(kl_mean(x), kl_fill(net, KL_FLOAT64, taken ? 9 : -9, 1)));
    kl_assign(s, kl_mul(s, kl_mul(s, w)));
    kl_end_if(b, 0, NULL, NULL, NULL);
    check_gradients(net, kl_mean(kl_add(kl_mul(s, s), t)), NAMES("x", "w"));
  }
}

/* ---- lists ---- */

/* Elements are read again in later steps, the first one in each; all are in the loss. */
static void lists(void **state) {
  (void)state;
  kl_net *net = kl_net_new();
  kl_var *x = parameter(net, "x", ROWS, COLUMNS), *w = parameter(net, "w", ROWS, COLUMNS);
  kl_var *i = number(net, 0), *n = number(net, 4), *zero = number(net, 0);
  kl_var *list = kl_list(net, KL_FLOAT64);
  kl_list_set(list, i, kl_mul(x, w));
  kl_block *loop = kl_while(kl_less_than(i, n));
  kl_var *v = kl_tanh(kl_mul(kl_list_get(list, i), kl_list_get(list, zero)));
  kl_assign(i, next(net, i));
  kl_list_set(list, i, kl_add(v, w));
  kl_end_while(loop, kl_less_than(i, n));
  kl_var *all = kl_list_concat(list, 0), *last = kl_list_get(list, n);
  check_gradients(net, kl_mean(kl_mul(kl_add(kl_mean(kl_mul(all, all)), last), last)),
                  NAMES("x", "w"));
}

/* Element 0 is overwritten in every step. */
static void list_as_variable(void **state) {
  (void)state;
  kl_net *net = kl_net_new();
  kl_var *x = parameter(net, "x", ROWS, COLUMNS), *w = parameter(net, "w", ROWS, COLUMNS);
  kl_var *i = number(net, 0), *n = number(net, 3), *zero = number(net, 0);
  kl_var *list = kl_list(net, KL_FLOAT64);
  kl_list_set(list, zero, x);
  kl_block *loop = kl_while(kl_less_than(i, n));
  kl_list_set(list, zero, kl_tanh(kl_mul(kl_list_get(list, zero), w)));
  kl_assign(i, next(net, i));
  kl_end_while(loop, kl_less_than(i, n));
  check_gradients(net, kl_mean(kl_list_get(list, zero)), NAMES("x", "w"));
}

/* The state grows by a row in each step. */
static void growing(void **state) {
  (void)state;
  kl_net *net = kl_net_new();
  kl_var *x = parameter(net, "x", ROWS, COLUMNS), *w = parameter(net, "w", ROWS, COLUMNS);
  kl_var *i = number(net, 0), *n = number(net, 3), *s = kl_vary(kl_copy(x), 0);
  kl_block *loop = kl_while(kl_less_than(i, n));
  kl_assign(s, kl_concat(0, kl_tanh(s), w));
  kl_assign(i, next(net, i));
  kl_end_while(loop, kl_less_than(i, n));
  check_gradients(net, kl_mean(kl_mul(s, s)), NAMES("x", "w"));
}

/* ---- recurrent operators, whose program is given ---- */

/* c = decay c + tanh(pre w + x), h = tanh(c) u: the output, and the state that the next row sees; c only goes on. */
#define RECURRENT(reverse)                                                                         \
  "program\n"                                                                                      \
  "block 0 {\n"                                                                                    \
  "  var x float64 [3, 2, 2] parameter persistable\n"                                              \
  "  var w float64 [2, 2] parameter persistable\n"                                                 \
  "  var u float64 [2, 2] parameter persistable\n"                                                 \
  "  var h0 float64 [2, 2] parameter persistable\n"                                                \
  "  var c0 float64 [2, 2] parameter persistable\n"                                                \
  "  var h float64 [3, 2, 2]\n  var y float64 [3, 2, 2]\n  var q float64 [3, 2, 2]\n  var loss "   \
  "float64 [1]\n"                                                                                  \
  "  y = scale(X=x) {scale=1.5}\n  outputs=h = recurrent(inputs=y, initial_states=[h0, c0], "      \
  "parameters=[w, u]) "                                                                            \
  "{sub_block=block 1, has_states=true, ex_states=['pre', 'c_pre'], states=['h', 'c'], "           \
  "reverse=" reverse "}\n"                                                                         \
  "  q = square(X=h)\n  loss = mean(X=q)\n"                                                        \
  "}\n"                                                                                            \
  "block 1 parent 0 {\n"                                                                           \
  "  var y float64 [2, 2]\n  var pre float64 [2, 2]\n  var c_pre float64 [2, 2]\n"                 \
  "  var m float64 [2, 2]\n  var a float64 [2, 2]\n  var t float64 [2, 2]\n"                       \
  "  var d float64 [2, 2]\n  var c float64 [2, 2]\n  var e float64 [2, 2]\n"                       \
  "  var h float64 [2, 2]\n"                                                                       \
  "  m = matmul_v2(X=pre, Y=w)\n  a = elementwise_add(X=m, Y=y)\n  t = tanh(X=a)\n"                \
  "  d = scale(X=c_pre) {scale=0.5}\n  c = elementwise_add(X=d, Y=t)\n  e = tanh(X=c)\n"           \
  "  h = matmul_v2(X=e, Y=u)\n"                                                                    \
  "}\n"

static double given_loss(kl_exec *exe, const kl_program *p) {
  double l;
  kl_tensor t = {.dtype = KL_FLOAT64, .rank = 1, .dims = {1}, .data = &l};
  check(kl_run(exe, p, NULL, kl_fetches({"loss", &t})));
  return l;
}

static void check_given(kl_exec *exe, const kl_program *p, const char *name) {
  char grad[64];
  double x[12];
  kl_tensor tg = {0}, tx = *kl_get(exe, name);
  int n = (int)kl_numel(&tx);
  memcpy(x, tx.data, sizeof *x * (size_t)n);
  tx.data = x;
  snprintf(grad, sizeof grad, "%s@GRAD", name);
  check(kl_run(exe, p, NULL, kl_fetches({grad, &tg})));
  assert_int_equal(kl_numel(&tg), n);
  for (int i = 0; i < n; i++) {
    double was = x[i], h = 1e-5, side[2];
    for (int k = 0; k < 2; k++) {
      x[i] = was + (k ? h : -h);
      check(kl_set(exe, name, &tx));
      side[k] = given_loss(exe, p);
    }
    x[i] = was;
    check(kl_set(exe, name, &tx));
    double want = (side[1] - side[0]) / (2 * h), got = ((double *)tg.data)[i];
    if (!(fabs(got - want) <= 1e-5 * fmax(1e-3, fabs(want))))
      fail_msg("gradient %d of %s is %.10g, by differences %.10g", i, name, got, want);
  }
  kl_tensor_free(&tg);
}

static void check_recurrent(const char *text) {
  static const struct {
    const char *name;
    int rank;
    int64_t dims[3];
  } params[] = {{"x", 3, {3, 2, 2}},
                {"w", 2, {2, 2}},
                {"u", 2, {2, 2}},
                {"h0", 2, {2, 2}},
                {"c0", 2, {2, 2}}};
  Program *p = prog_parse(text, strlen(text), "given.kl");
  ParamGrad *grads;
  int n = 0;
  check(p && prog_verify(p) && append_backward(p, "loss", 0, NULL, &n, &grads));
  assert_int_equal(n, 5);
  round_trip(p);
  for (int k = 0; k < 2; k++) {
    kl_exec *exe = kl_exec_new((kl_exec_options){.threads = 2, .interpret = k});
    for (int i = 0; i < 5; i++) {
      double v[12];
      for (int e = 0; e < 12; e++) v[e] = sin(1 + 3.7 * (i * 12 + e));
      kl_tensor t = {.dtype = KL_FLOAT64, .rank = params[i].rank, .data = v};
      memcpy(t.dims, params[i].dims, sizeof params[i].dims);
      check(kl_set(exe, params[i].name, &t));
    }
    for (int i = 0; i < 5; i++) check_given(exe, (const kl_program *)p, params[i].name);
    kl_exec_free(exe);
  }
  prog_free(p);
}

static void recurrent(void **state) {
  (void)state;
  check_recurrent(RECURRENT("false"));
  check_recurrent(RECURRENT("true"));
}

/* Hidden and Cell both count. */
static const char lstm_program[] =
    "program\n"
    "block 0 {\n"
    "  var x float64 [3, 4] parameter persistable\n  var w float64 [1, 4] parameter persistable\n"
    "  var b float64 [1, 7] parameter persistable\n"
    "  var h float64 [3, 1]\n  var c float64 [3, 1]\n  var g float64 [3, 4]\n  var p float64 [3, "
    "1]\n"
    "  var q float64 [3, 1]\n  var loss float64 [1]\n"
    "  var y float64 [3, 4] lod 1\n  y = lod_reset(X=x) {target_lod=[0, 2, 3]}\n"
    "  Hidden=h, Cell=c, BatchGate=g, BatchCellPreAct=p = lstm(Input=y, Weight=w, Bias=b)\n"
    "  q = elementwise_mul(X=h, Y=c)\n  loss = mean(X=q)\n"
    "}\n";

static void lstm_cell(void **state) {
  (void)state;
  static const char *const names[] = {"x", "w", "b"};
  static const int rows[] = {3, 1, 1}, columns[] = {4, 4, 7};
  Program *p = prog_parse(lstm_program, strlen(lstm_program), "given.kl");
  ParamGrad *grads;
  int n = 0;
  check(p && prog_verify(p) && append_backward(p, "loss", 0, NULL, &n, &grads));
  for (int k = 0; k < 2; k++) {
    kl_exec *exe = kl_exec_new((kl_exec_options){.threads = 2, .interpret = k});
    for (int i = 0; i < 3; i++) {
      double v[12];
      for (int e = 0; e < 12; e++) v[e] = sin(1 + 3.7 * (i * 12 + e));
      kl_tensor t = {.dtype = KL_FLOAT64, .rank = 2, .dims = {rows[i], columns[i]}, .data = v};
      check(kl_set(exe, names[i], &t));
    }
    for (int i = 0; i < 3; i++) check_given(exe, (const kl_program *)p, names[i]);
    kl_exec_free(exe);
  }
  prog_free(p);
}

/* ---- a loop, whose gradient is given ---- */

/* z = tanh(z), h = 1.3 z: h is overwritten without being read, and its gradient has no place in X@GRAD */
#define OVERWRITTEN(steps)                                                                         \
  "program\n"                                                                                      \
  "block 0 {\n"                                                                                    \
  "  var x float64 [2, 2] parameter persistable\n"                                                 \
  "  var h float64 [2, 2]\n  var z float64 [2, 2]\n  var q float64 [2, 2]\n  var loss float64 "    \
  "[1]\n  var i int64 [1]\n  var n int64 [1]\n  var c bool [1]\n  var sc step_scopes\n"            \
  "  var loss@GRAD float64 [1]\n  var q@GRAD float64 [2, 2]\n  var h@GRAD float64 [2, 2]\n"        \
  "  var z@GRAD float64 [2, 2]\n  var a float64 [2, 2]\n  var b float64 [2, 2]\n"                  \
  "  var x@GRAD float64 [2, 2]\n"                                                                  \
  "  h = scale(X=x) {scale=1.1}\n  z = scale(X=x) {scale=0.5}\n"                                   \
  "  i = fill_constant() {shape=[1]L, value=0.0, dtype=3}\n"                                       \
  "  n = fill_constant() {shape=[1]L, value=" steps ", dtype=3}\n  c = less_than(X=i, Y=n)\n"      \
  "  Out=[c, z, i, h], StepScopes=sc = while(X=[n, z, i, h], Condition=c) {sub_block=block 1}\n"   \
  "  q = elementwise_mul(X=h, Y=z)\n  loss = mean(X=q)\n"                                          \
  "  loss@GRAD = fill_any_like(X=loss) {value=1.0}\n"                                              \
  "  X@GRAD=q@GRAD = mean_grad(X=q, Out@GRAD=loss@GRAD)\n"                                         \
  "  X@GRAD=h@GRAD, Y@GRAD=z@GRAD = elementwise_mul_grad(X=h, Y=z, Out@GRAD=q@GRAD)\n"             \
  "  X@GRAD=[@EMPTY@, z@GRAD, @EMPTY@, @EMPTY@] = while_grad(X=[n, z, i, h], Out=[c, z, i, h], "   \
  "Out@GRAD=[h@GRAD, z@GRAD], StepScopes=sc) {sub_block=block 2}\n"                                \
  "  a = scale(X=h@GRAD) {scale=1.1}\n  b = scale(X=z@GRAD) {scale=0.5}\n"                         \
  "  x@GRAD = sum(X=[a, b])\n"                                                                     \
  "}\n"                                                                                            \
  "block 1 parent 0 {\n"                                                                           \
  "  var t float64 [2, 2]\n"                                                                       \
  "  t = tanh(X=z)\n  h = scale(X=t) {scale=1.3}\n  z = assign(X=t)\n"                             \
  "  i = increment(X=i)\n  c = less_than(X=i, Y=n)\n"                                              \
  "}\n"                                                                                            \
  "block 2 parent 0 forward 1 {\n"                                                                 \
  "  var h@GRAD float64 [2, 2]\n  var z@GRAD float64 [2, 2]\n  var d float64 [2, 2]\n"             \
  "  var e float64 [2, 2]\n"                                                                       \
  "  d = scale(X=h@GRAD) {scale=1.3}\n  e = sum(X=[z@GRAD, d])\n"                                  \
  "  X@GRAD=z@GRAD = tanh_grad(Out=t, Out@GRAD=e)\n"                                               \
  "}\n"

static void overwritten(void **state) {
  (void)state;
  static const char *const texts[] = {OVERWRITTEN("0.0"), OVERWRITTEN("1.0"), OVERWRITTEN("3.0")};
  for (int i = 0; i < 6; i++) {
    Program *p = prog_parse(texts[i / 2], strlen(texts[i / 2]), "given.kl");
    check(p && prog_verify(p));
    kl_exec *exe = kl_exec_new((kl_exec_options){.threads = 2, .interpret = i % 2});
    kl_tensor x = {.dtype = KL_FLOAT64,
                   .rank = 2,
                   .dims = {2, 2},
                   .data = (double[]){0.3, -0.8, 1.1, 0.5}};
    check(kl_set(exe, "x", &x));
    check_given(exe, (const kl_program *)p, "x");
    kl_exec_free(exe);
    prog_free(p);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(loop),
      cmocka_unit_test(recurrent),
      cmocka_unit_test(loop_of_one_step),
      cmocka_unit_test(loop_of_no_steps),
      cmocka_unit_test(carried_variables),
      cmocka_unit_test(through_another_step),
      cmocka_unit_test(nested),
      cmocka_unit_test(branch),
      cmocka_unit_test(branch_that_assigns),
      cmocka_unit_test(lists),
      cmocka_unit_test(list_as_variable),
      cmocka_unit_test(growing),
      cmocka_unit_test(overwritten),
      cmocka_unit_test(lstm_cell),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
