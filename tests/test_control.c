/* Control flow: loops, branches, selection, tensor arrays, as programs in the text form, against what plain C computes, compiled
 * and interpreted alike; their gradients against finite differences. */
#include "../executor/executor.h"
#include "util.h"
#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { MOST = 64 };

/* A program with one fed variable x and one persistable w, both float64. */
typedef struct Case {
  Program *p;
  Executor *e[2]; /* compiled, interpreted */
  Scope *s[2];
} Case;

static void open_case(Case *c, const char *text, const ExecOptions *o) {
  *c = (Case){.p = prog_parse(text, strlen(text), "case.kl")};
  if (!c->p || !prog_verify(c->p)) {
    err_print(stderr, false);
    fail();
  }
  for (int k = 0; k < 2; k++) {
    ExecOptions mine = o ? *o : (ExecOptions){.threads = 2};
    mine.interpret = k;
    c->e[k] = exec_new(&mine);
    c->s[k] = scope_new();
  }
}

static void close_case(Case *c) {
  for (int k = 0; k < 2; k++) {
    exec_free(c->e[k]);
    scope_free(c->s[k]);
  }
  prog_free(c->p);
}

static Tensor vector(double *data, int64_t n) {
  return (Tensor){.dtype = DT_FLOAT64, .rank = 1, .dims = {n}, .data = data};
}

static bool run(Case *c, int k, int n, double *x, const char *fetch, Tensor *out) {
  Tensor t = vector(x, n);
  *out = (Tensor){0};
  return exec_run(c->e[k], c->s[k], c->p, x ? 1 : 0, (Feed[]){{"x", &t}}, 1, &fetch, out);
}

/* Both ways of running give these values. */
static void expect(Case *c, int n, double *x, const char *fetch, int n_want, const double *want) {
  for (int k = 0; k < 2; k++) {
    Tensor out;
    if (!run(c, k, n, x, fetch, &out)) {
      err_print(stderr, false);
      fail();
    }
    assert_int_equal(tensor_numel(&out), n_want);
    for (int i = 0; i < n_want; i++)
      if (!(fabs(tensor_get(&out, i) - want[i]) <= 1e-12 * fmax(1, fabs(want[i]))))
        fail_msg("%s[%d] is %.17g, not %.17g", fetch, i, tensor_get(&out, i), want[i]);
    mem_free(out.data);
  }
}

static void expect_failure(const char *text, const ExecOptions *o, double *x, const char *fetch,
                           ErrCode code, const char *part) {
  Case c;
  open_case(&c, text, o);
  for (int k = 0; k < 2; k++) {
    Tensor out;
    assert_false(run(&c, k, 2, x, fetch, &out));
    expect_error(code, part);
  }
  close_case(&c);
}

/* ---- loops ---- */

/* s = x; i = 0; while i < n: s = s * 2 + x, i += 1 */
#define LOOP(n, fed)                                                                               \
  "program version 0\n"                                                                            \
  "block 0 {\n"                                                                                    \
  "  var x float64 [" fed "] feed\n"                                                               \
  "  var i int64 [1]\n  var n int64 [1]\n  var c bool [1]\n  var s float64 [" fed "]\n"            \
  "  var sc step_scopes\n"                                                                         \
  "  i = fill_constant() {shape=[1]L, value=0.0, dtype=3}\n"                                       \
  "  n = fill_constant() {shape=[1]L, value=" n ", dtype=3}\n"                                     \
  "  s = assign(X=x)\n"                                                                            \
  "  c = less_than(X=i, Y=n)\n"                                                                    \
  "  Out=[i, s, c], StepScopes=sc = while(X=[x, i, n, s], Condition=c) {sub_block=block 1}\n"      \
  "}\n"                                                                                            \
  "block 1 parent 0 {\n"                                                                           \
  "  var d float64 [" fed "]\n  var t float64 [" fed "]\n"                                         \
  "  d = scale(X=s) {scale=2.0}\n"                                                                 \
  "  t = elementwise_add(X=d, Y=x)\n"                                                              \
  "  i = increment(X=i)\n"                                                                         \
  "  c = less_than(X=i, Y=n)\n"                                                                    \
  "  s = assign(X=t)\n"                                                                            \
  "}\n"

static void loop(void **state) {
  (void)state;
  Case c;
  double x[2] = {1, -0.5}, want[2] = {1, -0.5};
  for (int i = 0; i < 10; i++)
    for (int k = 0; k < 2; k++) want[k] = 2 * want[k] + x[k];
  open_case(&c, LOOP("10.0", "-1"), NULL);
  expect(&c, 2, x, "s", 2, want);
  expect(&c, 2, x, "i", 1, (double[]){10});
  close_case(&c);
}

static void loop_of_no_steps(void **state) {
  (void)state;
  Case c;
  double x[2] = {1, -0.5};
  open_case(&c, LOOP("0.0", "2"), NULL);
  expect(&c, 2, x, "s", 2, x);
  close_case(&c);
}

static void endless_loop(void **state) {
  (void)state;
  double x[2] = {1, 2};
  expect_failure(LOOP("1e9", "2"), &(ExecOptions){.max_steps = 50}, x, "s", E_RUN_003,
                 "has run 50 steps");
}

/* ---- branches ---- */

static const char branches[] =
    "program version 0\n"
    "block 0 {\n"
    "  var x float64 [2] feed\n"
    "  var sum float64 []\n  var zero float64 []\n  var p bool []\n  var q bool []\n"
    "  var m int32 []\n  var a float64 [2]\n  var b float64 [2]\n  var y float64 [2]\n"
    "  var sa step_scopes\n  var sb step_scopes\n"
    "  sum = reduce_sum(X=x) {reduce_all=true}\n"
    "  zero = fill_constant() {shape=[]L, value=0.0, dtype=6}\n"
    "  p = greater_than(X=sum, Y=zero)\n"
    "  Out=a, Scope=sa = conditional_block(Cond=p, Input=x) {sub_block=block 1, "
    "is_scalar_condition=true}\n"
    "  q = logical_not(X=p)\n"
    "  Out=b, Scope=sb = conditional_block(Cond=q, Input=x) {sub_block=block 2, "
    "is_scalar_condition=true}\n"
    "  m = cast(X=p) {in_dtype=0, out_dtype=2}\n"
    "  y = select_input(X=[b, a], Mask=m)\n"
    "}\n"
    "block 1 parent 0 {\n  a = scale(X=x) {scale=3.0}\n}\n"
    "block 2 parent 0 {\n  b = scale(X=x) {scale=-1.0, bias=0.25}\n}\n";

static void branch(void **state) {
  (void)state;
  Case c;
  open_case(&c, branches, NULL);
  expect(&c, 2, (double[]){1, 2}, "y", 2, (double[]){3, 6});
  expect(&c, 2, (double[]){1, -2}, "y", 2, (double[]){-0.75, 2.25});
  Tensor out;
  assert_false(run(&c, 0, 2, (double[]){1, 2}, "b", &out));
  expect_error(E_RUN_002, "\"b\" has no value");
  close_case(&c);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(loop),
      cmocka_unit_test(loop_of_no_steps),
      cmocka_unit_test(endless_loop),
      cmocka_unit_test(branch),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
