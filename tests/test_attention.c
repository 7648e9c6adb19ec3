/* Attention: programs of the forms in which it comes are run compiled, on one thread and on three, and by the interpreter.
 * Compiled results agree bit for bit, and with the interpreter within rounding; rows without any key are NaN in both. Whether the
 * scores' kernels become one is looked up in the compiled graph. */
#include "opcase.h"
#include "passcheck.h"
#include "../backends/cpu/cpu.h"
#include "../passes/passes.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

/* In texts @ is the element type, #T rows, #S keys. */
typedef struct Form {
  const char *what;
  bool joins; /* its gradient is one kernel, if the sizes allow it */
  const char *vars, *ops;
} Form;

#define QKV "  var q @ [3, #T, 24] feed\n  var k @ [3, #S, 24] feed\n  var v @ [3, #S, 36] feed\n"
#define HEADS                                                                                      \
  "  qh = reshape(X=q) {shape=[0, 0, 3, 8]}\n  qt = transpose(X=qh) {axis=[0, 2, 1, 3]}\n"         \
  "  kh = reshape(X=k) {shape=[0, 0, 3, 8]}\n  kt = transpose(X=kh) {axis=[0, 2, 1, 3]}\n"         \
  "  vh = reshape(X=v) {shape=[0, 0, 3, 12]}\n  vt = transpose(X=vh) {axis=[0, 2, 1, 3]}\n"        \
  "  s = matmul_v2(X=qt, Y=kt) {trans_y=true}\n  s2 = scale(X=s) {scale=0.35}\n"
#define JOIN                                                                                       \
  "  o = matmul_v2(X=p, Y=vt)\n  ot = transpose(X=o) {axis=[0, 2, 1, 3]}\n"                        \
  "  y = reshape(X=ot) {shape=[0, 0, 36]}\n"
static const Form forms[] = {
    {"heads", true, QKV, HEADS "  p = softmax(X=s2) {axis=-1}\n" JOIN},
    {"keys masked", true, QKV "  var mask @ [3, 1, 1, #S] feed\n",
     HEADS "  s3 = elementwise_add(X=s2, Y=mask) {axis=-1}\n  p = softmax(X=s3) {axis=-1}\n" JOIN},
    {"pairs masked, with whole rows", true, QKV "  var mask @ [#T, #S] feed\n",
     HEADS "  s3 = elementwise_add(X=s2, Y=mask) {axis=-1}\n  p = softmax(X=s3) {axis=-1}\n" JOIN},
    {"first keys masked", true, QKV "  var late @ [#S] feed\n",
     HEADS "  s3 = elementwise_add(X=s2, Y=late) {axis=-1}\n  p = softmax(X=s3) {axis=-1}\n" JOIN},
    {"chosen by a condition", true,
     QKV "  var keep bool [3, 1, #T, #S] feed\n  var low @ [1] feed\n",
     HEADS "  s3 = where(Condition=keep, X=s2, Y=low)\n"
           "  p = softmax(X=s3) {axis=-1}\n" JOIN},
    {"causal", true, QKV,
     HEADS "  ones = fill_any_like(X=s2) {value=-inf}\n  up = tril_triu(X=ones) {diagonal=1, "
           "lower=false}\n  p0 = elementwise_add(X=s2, Y=up) {axis=-1}\n"
           "  p = softmax(X=p0) {axis=-1}\n" JOIN},
    {"flat", false, "  var q @ [#T, 16] feed\n  var k @ [#S, 16] feed\n  var v @ [#S, 20] feed\n",
     "  s = matmul_v2(X=q, Y=k) {trans_y=true}\n  p = softmax(X=s) {axis=-1}\n"
     "  y = matmul_v2(X=p, Y=v)\n"},
    {"of weights", false, "  var q @ [#T, 16] feed\n  param k @ [16, #S]\n  param v @ [#S, 200]\n",
     "  s = matmul_v2(X=q, Y=k)\n  p = softmax(X=s) {axis=-1}\n  y = matmul_v2(X=p, Y=v)\n"},
    {"keys by columns", true,
     "  var q @ [8, #T, 16] feed\n  var k @ [8, 16, #S] feed\n  var v @ [8, 20, #S] feed\n",
     "  s = matmul_v2(X=q, Y=k)\n  p = softmax(X=s) {axis=-1}\n"
     "  y = matmul_v2(X=p, Y=v) {trans_y=true}\n"},
    {"transposed result", true,
     "  var q @ [8, 16, #T] feed\n  var k @ [8, 16, #S] feed\n  var v @ [8, #S, 20] feed\n",
     "  s = matmul_v2(X=q, Y=k) {trans_x=true}\n  p = softmax(X=s) {axis=-1}\n"
     "  o = matmul_v2(X=p, Y=v)\n  y = transpose(X=o) {axis=[2, 0, 1]}\n"},
    {"one k and v for all heads", false,
     "  var q @ [2, 3, #T, 16] feed\n  var k @ [2, 1, #S, 16] feed\n  var v @ [2, 1, #S, 20] "
     "feed\n",
     "  s = matmul_v2(X=q, Y=k) {trans_y=true}\n  p = softmax(X=s) {axis=-1}\n"
     "  y = matmul_v2(X=p, Y=v)\n"},
    {"no softmax", false,
     "  var q @ [#T, 16] feed\n  var k @ [#S, 16] feed\n  var v @ [#S, 20] feed\n",
     "  s = matmul_v2(X=q, Y=k) {trans_y=true}\n  r = relu(X=s)\n"
     "  n = reduce_sum(X=r) {dim=[-1], keep_dim=true}\n  n1 = scale(X=n) {bias=1.0}\n"
     "  p = elementwise_div(X=r, Y=n1) {axis=-1}\n  y = matmul_v2(X=p, Y=v)\n"},
};

static const char loss_ops[] = "  sq = square(X=y)\n  loss = mean(X=sq)\n";

/* q, k and v are parameters if there is to be a gradient. */
static void add_vars(Str *s, const char *vars, bool gradient) {
  for (const char *p = vars, *end; *p; p = end + 1) {
    end = strchr(p, '\n');
    int n = (int)(end - p);
    if (gradient && p[7] == ' ' && strchr("qkv", p[6]))
      str_fmt(s, "  param%.*s\n", n - 5 - (int)strlen(" feed"), p + 5);
    else
      str_fmt(s, "%.*s\n", n, p);
  }
}

static char *text_of(Arena *a, const Form *f, const char *type, int rows, int keys, bool gradient) {
  Str in, s;
  str_init(&in, a);
  str_init(&s, a);
  str_add(&in, "program\nblock 0 {\n  var y\n");
  add_vars(&in, f->vars, gradient);
  if (gradient) str_add(&in, "  var sq\n  var loss\n");
  /* every other result is declared where it stands first on a line */
  for (const char *p = f->ops; *p; p = strchr(p, '\n') + 1) {
    int n = (int)strcspn(p + 2, " ");
    if (strncmp(p + 2, "y ", 2)) str_fmt(&in, "  var %.*s\n", n, p + 2);
  }
  str_fmt(&in, "\n%s%s}\n", f->ops, gradient ? loss_ops : "");
  for (const char *p = in.s; *p; p++) {
    if (*p == '@')
      str_add(&s, type);
    else if (*p == '#')
      str_fmt(&s, "%d", *++p == 'T' ? rows : keys);
    else
      str_addn(&s, p, 1);
  }
  return s.s;
}

/* Masks: -inf here and there, and in every fifth row everywhere. */
static double element(const char *name, const Tensor *t, int64_t i, uint64_t *seed) {
  int64_t row = i / t->dims[t->rank - 1];
  double x = test_random(seed, -1, 1);
  if (!strcmp(name, "low")) return -1e4;
  if (!strcmp(name, "late")) return i * 3 < 2 * t->dims[0] ? -INFINITY : x;
  if (!strcmp(name, "keep")) return x > -0.4;
  if (strcmp(name, "mask")) return x;
  return row % 5 == 4 || x < -0.3 ? -INFINITY : x;
}

enum { MOST_FEEDS = 6, MOST_FETCH = 5 };
typedef struct Case {
  Program *p;
  Scope *s;
  int n, n_fetch;
  Feed feed[MOST_FEEDS];
  const char *fetch[MOST_FETCH];
} Case;

static void fill(const Var *v, Tensor *t, uint64_t *seed) {
  for (int64_t j = 0; j < tensor_numel(t); j++) tensor_set(t, j, element(v->name, t, j, seed));
}

static void make_case(Case *c, Arena *a, const Form *f, const char *type, int rows, int keys,
                      bool gradient) {
  char *text = text_of(a, f, type, rows, keys, gradient);
  uint64_t seed = (uint64_t)rows * 1000 + (uint64_t)keys;
  int n_grads = 0;
  ParamGrad *grads = NULL;
  *c = (Case){.p = prog_parse(text, strlen(text), f->what), .s = scope_new()};
  bool ok = c->p && prog_verify(c->p) && infer_program(c->p, false);
  ok = ok && (!gradient || append_backward(c->p, "loss", 0, NULL, &n_grads, &grads));
  if (!ok) {
    err_print(stderr, false);
    fail_msg("%s", text);
  }
  c->fetch[c->n_fetch++] = "y";
  for (int i = 0; i < n_grads; i++) c->fetch[c->n_fetch++] = grads[i].grad;
  const Block *b = c->p->blocks.v[0];
  for (int i = 0; i < b->vars.n; i++) {
    const Var *v = b->vars.v[i];
    if (v->is_parameter) fill(v, scope_set(c->s, v->name, v->dtype, v->rank, v->dims, NULL), &seed);
    if (!v->need_check_feed) continue;
    Tensor *t = arena_new_of(a, Tensor);
    assert_true(tensor_make(t, a, v->dtype, v->rank, v->dims));
    fill(v, t, &seed);
    c->feed[c->n++] = (Feed){v->name, t};
  }
}

static int kernels_of(const Case *c, KernelKind kind) {
  CompileRequest r = {.prog = c->p, .scope = c->s, .n_feeds = c->n, .feeds = c->feed};
  r.no_code = true;
  r.n_fetch = c->n_fetch;
  r.fetch = c->fetch;
  Executable *x = compile(&r);
  if (!x) err_print(stderr, false);
  assert_non_null(x);
  int n = 0;
  for (int i = 0; i < executable_graph(x)->kernels.n; i++) {
    const Kernel *k = executable_graph(x)->kernels.v[i];
    n += k->kind == kind;
    if (k->kind == K_ATTENTION && (k->workspace || k->prepares || k->by[0]))
      fail_msg("the schedule is that of a part: %s", k->by);
  }
  executable_free(x);
  return n;
}

/* The results of the second run, which finds what the first one, of zeros, kept. */
static void run_case(const Case *c, ExecOptions o, Tensor *out) {
  Executor *e = exec_new(&o);
  Arena *a = arena_new();
  Feed zeros[MOST_FEEDS];
  for (int i = 0; i < c->n; i++) {
    const Tensor *t = c->feed[i].value;
    Tensor *zero = arena_new_of(a, Tensor);
    assert_true(tensor_make(zero, a, t->dtype, t->rank, t->dims));
    zeros[i] = (Feed){c->feed[i].name, zero};
  }
  memset(out, 0, sizeof *out * MOST_FETCH);
  for (int run = 0; run < 2; run++) {
    for (int i = 0; i < c->n_fetch; i++) mem_free(out[i].data), out[i] = (Tensor){0};
    if (exec_run(e, c->s, c->p, c->n, run ? c->feed : zeros, c->n_fetch, c->fetch, out)) continue;
    err_print(stderr, false);
    fail();
  }
  arena_free(a);
  exec_free(e);
}

static void compare(const Case *c, const char *what, bool no_blas) {
  Tensor want[MOST_FETCH], one[MOST_FETCH], three[MOST_FETCH];
  char why[256];
  run_case(c, (ExecOptions){.threads = 1, .interpret = true}, want);
  run_case(c, (ExecOptions){.threads = 1, .no_blas = no_blas}, one);
  run_case(c, (ExecOptions){.threads = 3, .no_blas = no_blas}, three);
  for (int i = 0; i < c->n_fetch; i++) {
    DType t = one[i].dtype;
    double tolerance = t == DT_FLOAT64 ? 1e-14 : t == DT_FLOAT32 ? 3e-6 : 4e-3;
    if (memcmp(one[i].data, three[i].data, tensor_bytes(&one[i])))
      fail_msg("%s: %s: threads differ", what, c->fetch[i]);
    if (!tensor_close(&one[i], &want[i], tolerance, why, sizeof why))
      fail_msg("%s: %s: %s", what, c->fetch[i], why);
    mem_free(want[i].data), mem_free(one[i].data), mem_free(three[i].data);
  }
}

static void check(const Form *f, const char *type, int rows, int keys, bool no_blas) {
  Arena *a = arena_new();
  Case c;
  const char *what = arena_fmt(a, "%s, %s, %d rows, %d keys", f->what, type, rows, keys);
  make_case(&c, a, f, type, rows, keys, false);
  bool kept =
      !strcmp(f->what, "of weights") && !strcmp(type, "float32"); /* its values are packed */
  bool joined = rows >= 8 && keys >= 8 && strcmp(type, "float16") != 0 && !kept;
  if (kernels_of(&c, K_ATTENTION) != joined)
    fail_msg("%s: %s one kernel", what, joined ? "not" : "");
  compare(&c, what, no_blas);
  scope_free(c.s);
  prog_free(c.p);
  arena_free(a);
}

static void check_gradient(const Form *f, const char *type, int rows, int keys) {
  Arena *a = arena_new();
  bool joined = f->joins && rows >= 8 && keys >= 8;
  Case c;
  const char *what = arena_fmt(a, "gradient, %s, %s, %d rows, %d keys", f->what, type, rows, keys);
  make_case(&c, a, f, type, rows, keys, true);
  if (kernels_of(&c, K_ATTENTION_GRAD) != joined)
    fail_msg("%s: %d kernels", what, kernels_of(&c, K_ATTENTION_GRAD));
  compare(&c, what, rows % 2);
  scope_free(c.s);
  prog_free(c.p);
  arena_free(a);
}

static void test_forms(void **state) {
  (void)state;
  for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
    check(&forms[i], "float32", 40, 129, false);
    check(&forms[i], "float64", 9, 64, true);
  }
}

static void test_sizes(void **state) {
  static const int sizes[][2] = {{1, 1},     {5, 7},     {8, 8},  {129, 7},
                                 {300, 129}, {33, 1000}, {70, 65}};
  (void)state;
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
    for (int f = 0; f < 3; f++)
      check(&forms[f], i % 2 ? "float32" : "float64", sizes[i][0], sizes[i][1], i == 4);
  check(&forms[1], "float16", 20, 30, false);
}

/* Blocks of keys: several, with a rest. */
static void test_long(void **state) {
  (void)state;
  for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
    check(&forms[i], "float32", 140, i % 2 ? 1536 : 1100, i == 1);
    check(&forms[i], "float64", 9, 1025, i == 2);
  }
  check_gradient(&forms[2], "float32", 20, 1100);
  check_gradient(&forms[3], "float64", 16, 1280);
}

/* A machine without microkernels, with and without BLAS. */
static void test_no_microkernels(void **state) {
  (void)state;
  micro_isa = "none";
  check(&forms[1], "float32", 40, 129, false);
  check(&forms[1], "float32", 40, 129, true);
  check(&forms[8], "float64", 9, 64, true);
  micro_isa = NULL;
}

static void test_gradients(void **state) {
  (void)state;
  for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
    check_gradient(&forms[i], "float32", 40, 129);
    check_gradient(&forms[i], "float64", 9, 64);
  }
  for (int f = 0; f < 3; f++) {
    check_gradient(&forms[f], "float32", 129, 7);
    check_gradient(&forms[f], "float64", 300, 33);
    check_gradient(&forms[f], "float32", 33, 1000);
  }
}

/* Kernels by the interpreter: they compute what the graph does from what they say they read. */
static void test_kernels(void **state) {
  static const char *const files[] = {"tests/golden/attention.kl",
                                      "tests/golden/attention-grad.kl"};
  (void)state;
  for (int i = 0; i < 2; i++) {
    Arena *a = arena_new();
    uint8_t *text;
    size_t n;
    assert_true(vfs_read(a, files[i], &text, &n));
    const char *end = strstr((char *)text, "# expect");
    Graph *g = graph_parse((char *)text, (size_t)(end - (char *)text), files[i]);
    assert_non_null(g);
    check_passes(g, 1e-5);
    assert_true(kernels_with(g, "attention") == 1 + i);
    graph_free(g);
    arena_free(a);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_forms),
                                     cmocka_unit_test(test_sizes),
                                     cmocka_unit_test(test_long),
                                     cmocka_unit_test(test_no_microkernels),
                                     cmocka_unit_test(test_gradients),
                                     cmocka_unit_test(test_kernels)};
  return cmocka_run_group_tests_name("attention", tests, NULL, NULL);
}
