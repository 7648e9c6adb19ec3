/* Attention: programs of the forms in which it comes are run compiled, on one thread and on three, and by the interpreter.
 * Compiled results agree bit for bit, and with the interpreter within rounding; rows without any key are NaN in both. Whether the
 * scores' kernels become one is looked up in the compiled graph. */
#include "opcase.h"
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
  const char *what, *vars, *ops;
} Form;

#define QKV "  var q @ [2, #T, 24] feed\n  var k @ [2, #S, 24] feed\n  var v @ [2, #S, 36] feed\n"
#define HEADS                                                                                      \
  "  qh = reshape2(X=q) {shape=[0, 0, 3, 8]}\n  qt = transpose2(X=qh) {axis=[0, 2, 1, 3]}\n"       \
  "  kh = reshape2(X=k) {shape=[0, 0, 3, 8]}\n  kt = transpose2(X=kh) {axis=[0, 2, 1, 3]}\n"       \
  "  vh = reshape2(X=v) {shape=[0, 0, 3, 12]}\n  vt = transpose2(X=vh) {axis=[0, 2, 1, 3]}\n"      \
  "  s = matmul_v2(X=qt, Y=kt) {trans_y=true}\n  s2 = scale(X=s) {scale=0.35}\n"
#define JOIN                                                                                       \
  "  o = matmul_v2(X=p, Y=vt)\n  ot = transpose2(X=o) {axis=[0, 2, 1, 3]}\n"                       \
  "  y = reshape2(X=ot) {shape=[0, 0, 36]}\n"
static const Form forms[] = {
    {"heads", QKV, HEADS "  p = softmax(X=s2) {axis=-1}\n" JOIN},
    {"keys masked", QKV "  var mask @ [2, 1, 1, #S] feed\n",
     HEADS "  s3 = elementwise_add(X=s2, Y=mask) {axis=-1}\n  p = softmax(X=s3) {axis=-1}\n" JOIN},
    {"pairs masked, with whole rows", QKV "  var mask @ [#T, #S] feed\n",
     HEADS "  s3 = elementwise_add(X=s2, Y=mask) {axis=-1}\n  p = softmax(X=s3) {axis=-1}\n" JOIN},
    {"chosen by a condition", QKV "  var keep bool [2, 1, #T, #S] feed\n  var low @ [1] feed\n",
     HEADS "  s3 = where(Condition=keep, X=s2, Y=low)\n"
           "  p = softmax(X=s3) {axis=-1}\n" JOIN},
    {"causal", QKV,
     HEADS "  ones = fill_any_like(X=s2) {value=-inf}\n  up = tril_triu(X=ones) {diagonal=1, "
           "lower=false}\n  p0 = elementwise_add(X=s2, Y=up) {axis=-1}\n"
           "  p = softmax(X=p0) {axis=-1}\n" JOIN},
    {"flat", "  var q @ [#T, 16] feed\n  var k @ [#S, 16] feed\n  var v @ [#S, 20] feed\n",
     "  s = matmul_v2(X=q, Y=k) {trans_y=true}\n  p = softmax(X=s) {axis=-1}\n"
     "  y = matmul_v2(X=p, Y=v)\n"},
    {"keys by columns",
     "  var q @ [3, #T, 16] feed\n  var k @ [3, 16, #S] feed\n  var v @ [3, 20, #S] feed\n",
     "  s = matmul_v2(X=q, Y=k)\n  p = softmax(X=s) {axis=-1}\n"
     "  y = matmul_v2(X=p, Y=v) {trans_y=true}\n"},
    {"transposed result",
     "  var q @ [3, 16, #T] feed\n  var k @ [3, 16, #S] feed\n  var v @ [3, #S, 20] feed\n",
     "  s = matmul_v2(X=q, Y=k) {trans_x=true}\n  p = softmax(X=s) {axis=-1}\n"
     "  o = matmul_v2(X=p, Y=v)\n  y = transpose2(X=o) {axis=[2, 0, 1]}\n"},
    {"one k and v for all heads",
     "  var q @ [2, 3, #T, 16] feed\n  var k @ [2, 1, #S, 16] feed\n  var v @ [2, 1, #S, 20] "
     "feed\n",
     "  s = matmul_v2(X=q, Y=k) {trans_y=true}\n  p = softmax(X=s) {axis=-1}\n"
     "  y = matmul_v2(X=p, Y=v)\n"},
    {"no softmax", "  var q @ [#T, 16] feed\n  var k @ [#S, 16] feed\n  var v @ [#S, 20] feed\n",
     "  s = matmul_v2(X=q, Y=k) {trans_y=true}\n  r = relu(X=s)\n"
     "  n = reduce_sum(X=r) {dim=[-1], keep_dim=true}\n  n1 = scale(X=n) {bias=1.0}\n"
     "  p = elementwise_div(X=r, Y=n1) {axis=-1}\n  y = matmul_v2(X=p, Y=v)\n"},
};

static char *text_of(Arena *a, const Form *f, const char *type, int rows, int keys) {
  Str in, s;
  str_init(&in, a);
  str_init(&s, a);
  str_fmt(&in, "program\nblock 0 {\n%s%s", f->vars, "  var y\n");
  /* every other result is declared where it stands first on a line */
  for (const char *p = f->ops; *p; p = strchr(p, '\n') + 1) {
    int n = (int)strcspn(p + 2, " ");
    if (strncmp(p + 2, "y ", 2)) str_fmt(&in, "  var %.*s\n", n, p + 2);
  }
  str_fmt(&in, "\n%s}\n", f->ops);
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
  if (!strcmp(name, "keep")) return x > -0.4;
  if (strcmp(name, "mask")) return x;
  return row % 5 == 4 || x < -0.3 ? -INFINITY : x;
}

enum { MOST_FEEDS = 6 };
typedef struct Case {
  Program *p;
  int n;
  Feed feed[MOST_FEEDS];
} Case;

static void make_case(Case *c, Arena *a, const Form *f, const char *type, int rows, int keys) {
  char *text = text_of(a, f, type, rows, keys);
  uint64_t seed = (uint64_t)rows * 1000 + (uint64_t)keys;
  *c = (Case){.p = prog_parse(text, strlen(text), f->what)};
  if (!c->p || !prog_verify(c->p) || !infer_program(c->p, false)) {
    err_print(stderr, false);
    fail_msg("%s", text);
  }
  const Block *b = c->p->blocks.v[0];
  for (int i = 0; i < b->vars.n; i++) {
    const Var *v = b->vars.v[i];
    if (!v->need_check_feed) continue;
    Tensor *t = arena_new_of(a, Tensor);
    assert_true(tensor_make(t, a, v->dtype, v->rank, v->dims));
    for (int64_t j = 0; j < tensor_numel(t); j++) tensor_set(t, j, element(v->name, t, j, &seed));
    c->feed[c->n++] = (Feed){v->name, t};
  }
}

static const char *const fetch[] = {"y"};

static int attention_kernels(const Case *c) {
  CompileRequest r = {.prog = c->p, .n_feeds = c->n, .feeds = c->feed, .no_code = true};
  r.n_fetch = 1;
  r.fetch = fetch;
  Executable *x = compile(&r);
  assert_non_null(x);
  int n = 0;
  for (int i = 0; i < executable_graph(x)->kernels.n; i++)
    n += executable_graph(x)->kernels.v[i]->kind == K_ATTENTION;
  executable_free(x);
  return n;
}

static Tensor result(const Case *c, ExecOptions o) {
  Executor *e = exec_new(&o);
  Scope *s = scope_new();
  Tensor y = {0};
  if (!exec_run(e, s, c->p, c->n, c->feed, 1, fetch, &y)) {
    err_print(stderr, false);
    fail();
  }
  scope_free(s);
  exec_free(e);
  return y;
}

static void check(const Form *f, const char *type, int rows, int keys, bool no_blas) {
  Arena *a = arena_new();
  Case c;
  char why[256];
  make_case(&c, a, f, type, rows, keys);
  bool joined = rows >= 8 && keys >= 8 && strcmp(type, "float16") != 0;
  int kernels = attention_kernels(&c);
  if (kernels != joined)
    fail_msg("%s, %s, %d rows, %d keys: %d kernels", f->what, type, rows, keys, kernels);
  Tensor want = result(&c, (ExecOptions){.threads = 1, .interpret = true}),
         one = result(&c, (ExecOptions){.threads = 1, .no_blas = no_blas}),
         three = result(&c, (ExecOptions){.threads = 3, .no_blas = no_blas});
  if (memcmp(one.data, three.data, tensor_bytes(&one)))
    fail_msg("%s, %s, %d rows, %d keys: threads differ", f->what, type, rows, keys);
  double tolerance = one.dtype == DT_FLOAT64 ? 1e-14 : one.dtype == DT_FLOAT32 ? 3e-6 : 4e-3;
  if (!tensor_close(&one, &want, tolerance, why, sizeof why))
    fail_msg("%s, %s, %d rows, %d keys: %s", f->what, type, rows, keys, why);
  mem_free(want.data), mem_free(one.data), mem_free(three.data);
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

/* A machine without microkernels, with and without BLAS. */
static void test_no_microkernels(void **state) {
  (void)state;
  micro_isa = "none";
  check(&forms[1], "float32", 40, 129, false);
  check(&forms[1], "float32", 40, 129, true);
  check(&forms[7], "float64", 9, 64, true);
  micro_isa = NULL;
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_forms), cmocka_unit_test(test_sizes),
                                     cmocka_unit_test(test_no_microkernels)};
  return cmocka_run_group_tests_name("attention", tests, NULL, NULL);
}
