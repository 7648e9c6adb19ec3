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

/* ---- arrays ---- */

/* a[0..n] = x, 2 x, 4 x ..; the element `get` of it, and all. `set` is where the first one goes. */
#define ARRAY(set, get)                                                                            \
  "program version 0\n"                                                                            \
  "block 0 {\n"                                                                                    \
  "  var x float64 [2] feed\n  var a tensor_array float64 [2]\n  var i int64 [1]\n"                \
  "  var n int64 [1]\n  var k int64 [1]\n  var c bool [1]\n  var y float64 [2]\n"                  \
  "  var all float64 [-1, 2]\n  var sizes int32 [-1]\n  var length int64 [1]\n"                    \
  "  var sc step_scopes\n"                                                                         \
  "  i = fill_constant() {shape=[1]L, value=" set ", dtype=3}\n"                                   \
  "  n = fill_constant() {shape=[1]L, value=3.0, dtype=3}\n"                                       \
  "  k = fill_constant() {shape=[1]L, str_value='" get "', dtype=3}\n"                             \
  "  a = write_to_array(X=x, I=i)\n"                                                               \
  "  c = less_than(X=i, Y=n)\n"                                                                    \
  "  Out=[i, a, c], StepScopes=sc = while(X=[i, n, a], Condition=c) {sub_block=block 1}\n"         \
  "  y = read_from_array(X=a, I=k)\n"                                                              \
  "  Out=all, OutIndex=sizes = tensor_array_to_tensor(X=a) {axis=0, use_stack=true}\n"             \
  "  length = lod_array_length(X=a)\n"                                                             \
  "}\n"                                                                                            \
  "block 1 parent 0 {\n"                                                                           \
  "  var r float64 [2]\n  var t float64 [2]\n"                                                     \
  "  r = read_from_array(X=a, I=i)\n  t = scale(X=r) {scale=2.0}\n"                                \
  "  i = increment(X=i)\n  a = write_to_array(X=t, I=i)\n  c = less_than(X=i, Y=n)\n"              \
  "}\n"

static void array(void **state) {
  (void)state;
  Case c;
  double x[2] = {1, -3};
  open_case(&c, ARRAY("0.0", "2"), NULL);
  expect(&c, 2, x, "y", 2, (double[]){4, -12});
  expect(&c, 2, x, "all", 8, (double[]){1, -3, 2, -6, 4, -12, 8, -24});
  expect(&c, 2, x, "length", 1, (double[]){4});
  close_case(&c);
}

/* As lists of Python: nobody writes the array before the loop, which appends to it. */
static const char *LIST =
    "program version 0\n"
    "block 0 {\n"
    "  var x float64 [2] feed\n  var a tensor_array float64 [2]\n  var i int64 [1]\n"
    "  var n int64 [1]\n  var c bool [1]\n  var all float64 [-1]\n  var sizes int32 [-1]\n"
    "  var length int64 [1]\n  var sc step_scopes\n"
    "  i = fill_constant() {shape=[1]L, value=0.0, dtype=3}\n"
    "  n = fill_constant() {shape=[1]L, value=3.0, dtype=3}\n"
    "  c = less_than(X=i, Y=n)\n"
    "  Out=[i, a, c], StepScopes=sc = while(X=[i, n, a, x], Condition=c) {sub_block=block 1}\n"
    "  Out=all, OutIndex=sizes = tensor_array_to_tensor(X=a) {axis=0, use_stack=false}\n"
    "  length = lod_array_length(X=a)\n"
    "}\n"
    "block 1 parent 0 {\n"
    "  var t float64 [2]\n  var end int64 [1]\n"
    "  t = scale(X=x) {scale=2.0}\n  end = lod_array_length(X=a)\n"
    "  a = write_to_array(X=t, I=end)\n  i = increment(X=i)\n  c = less_than(X=i, Y=n)\n"
    "}\n";

static void list(void **state) {
  (void)state;
  Case c;
  double x[2] = {1, -3};
  open_case(&c, LIST, NULL);
  expect(&c, 2, x, "all", 6, (double[]){2, -6, 2, -6, 2, -6});
  expect(&c, 2, x, "length", 1, (double[]){3});
  close_case(&c);
}

static void array_errors(void **state) {
  (void)state;
  double x[2] = {1, 2};
  expect_failure(ARRAY("0.0", "9"), NULL, x, "y", E_RUN_004, "element 9 of \"a\" is read");
  expect_failure(ARRAY("0.0", "-1"), NULL, x, "y", E_RUN_004, "is -1; it must be in 0..");
  expect_failure(ARRAY("0.0", "1099511627776"), NULL, x, "y", E_RUN_004, "1099511627776");
  expect_failure(ARRAY("2.0", "0"), NULL, x, "y", E_RUN_004, "nobody has written it");
  expect_failure(ARRAY("2.0", "2"), NULL, x, "all", E_RUN_004, "element 0 of \"a\"");
}

/* ---- what is wrong ---- */

#define SMALL(before, op, block)                                                                   \
  "program version 0\n"                                                                            \
  "block 0 {\n  var x float64 [2] feed\n  var c bool [1]\n  var two bool [2]\n"                    \
  "  var i int64 [1]\n  var m int32 [1]\n  var y float64 [2]\n  var sc step_scopes\n"              \
  "  var g float64 [2]\n"                                                                          \
  "  m = fill_constant() {shape=[1]L, value=7.0, dtype=2}\n"                                       \
  "  i = fill_constant() {shape=[1]L, value=1.0, dtype=3}\n"                                       \
  "  c = fill_constant() {shape=[1]L, value=1.0, dtype=0}\n"                                       \
  "  two = fill_constant() {shape=[2]L, value=1.0, dtype=0}\n" before "  " op "\n}\n"              \
  "block 1 parent 0" block " {\n  y = scale(X=x) {scale=2.0}\n}\n"

static void wrong_operands(void **state) {
  (void)state;
  double x[2] = {1, 2};
  expect_failure(SMALL("", "Out=y = while(X=x, Condition=two) {sub_block=block 1}", ""), NULL, x,
                 "y", E_RUN_005, "is not one number");
  expect_failure(SMALL("", "Out=y = while(X=x, Condition=i) {sub_block=block 1}", ""), NULL, x, "y",
                 E_RUN_005, "must be bool");
  expect_failure(SMALL("  y = assign(X=x)\n", "y = select_input(X=[x, x], Mask=m)", ""), NULL, x,
                 "y", E_RUN_005, "out of range");
  expect_failure(SMALL("",
                       "Out=y = conditional_block(Cond=i, Input=x) {sub_block=block 1, "
                       "is_scalar_condition=true}",
                       ""),
                 NULL, x, "y", E_RUN_005, "must be bool");
  expect_failure(SMALL("  Out=y = conditional_block(Cond=c) {sub_block=block 1}\n",
                       "Out=y = conditional_block(Cond=c) {sub_block=block 1}", ""),
                 NULL, x, "y", E_PRO_002, "run by two operators");
  expect_failure(SMALL("", "X@GRAD=y = while_grad(X=x, StepScopes=sc) {sub_block=block 1}", ""),
                 NULL, x, "y", E_RUN_005, "the loop has not run");
  expect_failure(SMALL("", "assert(Cond=two)", ""), NULL, x, "y", E_RUN_005, "is not one number");
}

/* What cannot be understood is refused when it is read. */
static void wrong_structure(void **state) {
  (void)state;
  static const struct {
    const char *text;
    ErrCode code;
  } cases[] = {
      {SMALL("", "Out=y = while(X=x) {sub_block=block 1}", ""), E_OPR_002},
      {SMALL("", "Out=y = while(X=x, Condition=c)", ""), E_OPR_003},
      {SMALL("", "Out=y = while(X=x, Condition=c) {sub_block=block 7}", ""), E_PRO_002},
      {SMALL("", "Out=y = while(X=x, Condition=c) {sub_block=block 0}", ""), E_PRO_002},
      {SMALL("", "Out=y = while(X=x, Condition=c) {sub_block=3}", ""), E_OPR_003},
      {SMALL("", "Out=y = while(X=x, Condition=c) {sub_block=block 1}", " forward 1"), E_PRO_002},
      {"program version 0\nblock 0 {\n}\nblock 1 parent 1 {\n}\n", E_PRO_002},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    Program *p = prog_parse(cases[i].text, strlen(cases[i].text), "case.kl");
    if (p) assert_false(prog_verify(p));
    prog_free(p);
    expect_error(cases[i].code, "");
  }
}

/* ---- state ---- */

/* w += x in a branch; then, if x[0] > 9, an assertion fails. */
static const char stateful[] =
    "program version 0\n"
    "block 0 {\n"
    "  var x float64 [2] feed\n  var w float64 [2] persistable\n  var c bool [1]\n"
    "  var ok bool []\n  var top float64 []\n  var nine float64 []\n  var sc step_scopes\n"
    "  c = fill_constant() {shape=[1]L, value=1.0, dtype=0}\n"
    "  Out=w, Scope=sc = conditional_block(Cond=c, Input=[x, w]) {sub_block=block 1, "
    "is_scalar_condition=true}\n"
    "  top = reduce_max(X=x) {reduce_all=true}\n"
    "  nine = fill_constant() {shape=[]L, value=9.0, dtype=6}\n"
    "  ok = less_than(X=top, Y=nine)\n"
    "  assert(Cond=ok, Data=top)\n"
    "}\n"
    "block 1 parent 0 {\n  w = elementwise_add(X=w, Y=x)\n}\n";

static void state_in_blocks(void **state) {
  (void)state;
  Case c;
  double w[2] = {1, 1};
  open_case(&c, stateful, NULL);
  for (int k = 0; k < 2; k++) {
    Tensor out, t;
    scope_set(c.s[k], "w", DT_FLOAT64, 1, (int64_t[]){2}, w);
    assert_true(run(&c, k, 2, (double[]){2, 3}, "top", &out));
    mem_free(out.data);
    assert_false(run(&c, k, 2, (double[]){2, 30}, "top", &out)); /* and w stays as it was */
    expect_error(E_RUN_006, "30");
    t = *scope_get(c.s[k], "w");
    assert_true(tensor_get(&t, 0) == 3 && tensor_get(&t, 1) == 4);
  }
  close_case(&c);
}

/* ---- shapes that depend on values ---- */

/* y = the first n elements of 0, 1, 2 .. times x[0]; n = the number of positive elements of x */
static const char from_values[] =
    "program version 0\n"
    "block 0 {\n"
    "  var x float64 [-1] feed\n  var z float64 [1]\n  var p bool [-1]\n  var at int64 [-1, 1]\n"
    "  var s int32 [2]\n  var n int32 [1]\n  var from int32 [1]\n  var by int32 [1]\n"
    "  var r int32 [-1]\n  var rf float64 [-1]\n  var first float64 [1]\n  var y float64 [-1]\n"
    "  var pos float64 [-1]\n  var pos2 float64 [-1, 1]\n"
    "  z = fill_constant() {shape=[1]L, value=0.0, dtype=6}\n"
    "  p = greater_than(X=x, Y=z)\n"
    "  at = where_index(Condition=p)\n"
    "  s = shape(Input=at)\n"
    "  n = slice(Input=s) {axes=[0], starts=[0], ends=[1]}\n"
    "  from = fill_constant() {shape=[1]L, value=0.0, dtype=2}\n"
    "  by = fill_constant() {shape=[1]L, value=1.0, dtype=2}\n"
    "  r = range(Start=from, End=n, Step=by)\n"
    "  rf = cast(X=r) {in_dtype=2, out_dtype=6}\n"
    "  first = slice(Input=x) {axes=[0], starts=[0], ends=[1]}\n"
    "  y = elementwise_mul(X=rf, Y=first)\n"
    "  Y=pos = masked_select(X=x, Mask=p)\n"
    "  pos2 = reshape(X=pos, Shape=s)\n"
    "}\n";

static void shapes_from_values(void **state) {
  (void)state;
  Case c;
  open_case(&c, from_values, NULL);
  for (int again = 0; again < 2; again++) {
    expect(&c, 4, (double[]){2, -1, 5, 7}, "y", 3, (double[]){0, 2, 4});
    expect(&c, 4, (double[]){2, -1, 5, 7}, "pos2", 3, (double[]){2, 5, 7});
    expect(&c, 3, (double[]){-2, -1, -5}, "y", 0, NULL);
    expect(&c, 1, (double[]){8}, "pos2", 1, (double[]){8});
  }
  close_case(&c);
}

/* The rows of x in segments by their integers: maxima, how many, and their gradient; the boxes of x that do not overlap. */
static const char segments[] =
    "program version 0\n"
    "block 0 {\n"
    "  var x float64 [-1] feed\n  var ids int64 [-1]\n  var y float64 [-1]\n  var n float64 [-1, "
    "1]\n"
    "  var dy float64 [-1]\n  var dx float64 [-1]\n  var m float64 [-1]\n  var mn float64 [-1, 1]\n"
    "  var dm float64 [-1]\n  var boxes float64 [-1, 4]\n  var kept int64 [-1]\n"
    "  var at float64 [-1]\n"
    "  ids = cast(X=x) {in_dtype=6, out_dtype=3}\n"
    "  Out=y, SummedIds=n = segment_pool(X=x, SegmentIds=ids) {pooltype='MAX'}\n"
    "  dy = fill_any_like(X=y) {value=2.0}\n"
    "  X@GRAD=dx = segment_pool_grad(X=x, SegmentIds=ids, Out=y, SummedIds=n, Out@GRAD=dy) "
    "{pooltype='MAX'}\n"
    "  Out=m, SummedIds=mn = segment_pool(X=x, SegmentIds=ids) {pooltype='MEAN'}\n"
    "  X@GRAD=dm = segment_pool_grad(X=x, SegmentIds=ids, Out=m, SummedIds=mn, Out@GRAD=y) "
    "{pooltype='MEAN'}\n"
    "  boxes = reshape(X=x) {shape=[-1, 4]}\n"
    "  KeepBoxesIdxs=kept = nms(Boxes=boxes) {iou_threshold=0.5}\n"
    "  at = cast(X=kept) {in_dtype=3, out_dtype=6}\n"
    "}\n";

static void segments_and_boxes(void **state) {
  (void)state;
  Case c;
  open_case(&c, segments, NULL);
  double x[] = {0.25, 0.5, 1.5, 3.25, 3.75}, more[] = {0, 0.5};
  expect(&c, 5, x, "y", 4, (double[]){0.5, 1.5, 0, 3.75});
  expect(&c, 5, x, "dx", 5, (double[]){0, 2, 2, 0, 2});
  expect(&c, 5, x, "n", 4, (double[]){2, 1, 0, 2});
  expect(&c, 5, x, "m", 4, (double[]){0.375, 1.5, 0, 3.5});
  expect(&c, 5, x, "dm", 5, (double[]){0.25, 0.25, 1.5, 1.875, 1.875});
  expect(&c, 2, more, "y", 1, (double[]){0.5});
  double boxes[] = {0, 0, 2, 2, 0, 0, 2, 1.5, 1, 1, 3, 3, 0, 0, 2, 0.5};
  expect(&c, 16, boxes, "at", 3, (double[]){0, 2, 3});
  Tensor out;
  assert_false(run(&c, 0, 2, (double[]){3, 1}, "y", &out));
  expect_error(E_DAT_002, "SegmentIds is 1 behind 3");
  close_case(&c);
}

/* s = [0, .., 5] one after another: its size, and the range's end, differ in each step */
static const char growing[] =
    "program version 0\n"
    "block 0 {\n"
    "  var x float64 [-1] feed\n  var i int32 [1]\n  var n int32 [1]\n  var z int32 [1]\n"
    "  var one int32 [1]\n  var c bool [1]\n  var s float64 [-1]\n  var sc step_scopes\n"
    "  i = fill_constant() {shape=[1]L, value=0.0, dtype=2}\n"
    "  n = fill_constant() {shape=[1]L, value=4.0, dtype=2}\n"
    "  z = fill_constant() {shape=[1]L, value=0.0, dtype=2}\n"
    "  one = fill_constant() {shape=[1]L, value=1.0, dtype=2}\n"
    "  s = assign(X=x)\n  c = less_than(X=i, Y=n)\n"
    "  Out=[i, s, c], StepScopes=sc = while(X=[i, n, s, z, one], Condition=c) {sub_block=block 1}\n"
    "}\n"
    "block 1 parent 0 {\n"
    "  var r int32 [-1]\n  var rf float64 [-1]\n"
    "  r = range(Start=z, End=i, Step=one)\n"
    "  rf = cast(X=r) {in_dtype=2, out_dtype=6}\n"
    "  s = concat(X=[s, rf]) {axis=0}\n"
    "  i = increment(X=i)\n  c = less_than(X=i, Y=n)\n"
    "}\n";

static void shapes_that_grow(void **state) {
  (void)state;
  Case c;
  open_case(&c, growing, NULL);
  for (int again = 0; again < 2; again++)
    expect(&c, 1, (double[]){9}, "s", 7, (double[]){9, 0, 0, 1, 0, 1, 2});
  close_case(&c);
}

/* ---- recurrent ---- */

/* h = w h + x[t], from h = 1 on, forwards or backwards; loss = sum of all h; its gradients by w and x */
#define RECURRENT(reverse)                                                                         \
  "program version 0\n"                                                                            \
  "block 0 {\n"                                                                                    \
  "  var x float64 [-1] feed\n  var w float64 []\n  var h0 float64 []\n  var h float64 [-1]\n"     \
  "  var sc step_scopes\n  var h@GRAD float64 [-1]\n  var x@GRAD float64 [-1]\n"                   \
  "  var w@GRAD float64 []\n  var h0@GRAD float64 []\n"                                            \
  "  w = fill_constant() {shape=[]L, value=0.5, dtype=6}\n"                                        \
  "  h0 = fill_constant() {shape=[]L, value=1.0, dtype=6}\n"                                       \
  "  outputs=h, step_scopes=sc = recurrent(inputs=x, initial_states=h0, parameters=w) "            \
  "{sub_block=block 1, has_states=true, ex_states=['pre'], states=['h'], reverse=" reverse "}\n"   \
  "  h@GRAD = fill_any_like(X=h) {value=1.0}\n"                                                    \
  "  inputs@GRAD=x@GRAD, initial_states@GRAD=h0@GRAD, parameters@GRAD=w@GRAD = "                   \
  "recurrent_grad(inputs=x, initial_states=h0, parameters=w, outputs=h, outputs@GRAD=h@GRAD, "     \
  "step_scopes=sc) {sub_block=block 2, ex_states=['pre'], states=['h'], reverse=" reverse "}\n"    \
  "}\n"                                                                                            \
  "block 1 parent 0 {\n"                                                                           \
  "  var x float64 []\n  var pre float64 []\n  var m float64 []\n  var h float64 []\n"             \
  "  m = elementwise_mul(X=pre, Y=w)\n  h = elementwise_add(X=m, Y=x)\n"                           \
  "}\n"                                                                                            \
  "block 2 parent 0 forward 1 {\n"                                                                 \
  "  var m@GRAD float64 []\n  var x@GRAD float64 []\n  var pre@GRAD float64 []\n"                  \
  "  var w@GRAD float64 []\n  var h@GRAD float64 []\n"                                             \
  "  X@GRAD=m@GRAD, Y@GRAD=x@GRAD = elementwise_add_grad(X=m, Y=x, Out@GRAD=h@GRAD)\n"             \
  "  X@GRAD=pre@GRAD, Y@GRAD=w@GRAD = elementwise_mul_grad(X=pre, Y=w, Out@GRAD=m@GRAD)\n"         \
  "}\n"

static void recurrent(void **state) {
  (void)state;
  double x[4] = {1, -2, 3, 0.5};
  for (int reverse = 0; reverse < 2; reverse++) {
    Case c;
    double h[4], g[4], gw = 0, before = 1, flow = 0;
    open_case(&c, reverse ? RECURRENT("true") : RECURRENT("false"), NULL);
    for (int k = 0; k < 4; k++) {
      int t = reverse ? 3 - k : k;
      before = h[t] = 0.5 * before + x[t];
    }
    for (int k = 3; k >= 0; k--) {
      int t = reverse ? 3 - k : k;
      g[t] = flow = 1 + 0.5 * flow;
      gw += flow * (k == 0 ? 1 : h[reverse ? t + 1 : t - 1]);
    }
    expect(&c, 4, x, "h", 4, h);
    expect(&c, 4, x, "x@GRAD", 4, g);
    expect(&c, 4, x, "w@GRAD", 1, &gw);
    expect(&c, 4, x, "h0@GRAD", 1, (double[]){0.5 * flow});
    close_case(&c);
  }
}

/* ---- memory ---- */

static long allocated, most; /* blocks that are there, and were */
static MemTable real;
static void *counted_alloc(size_t n) {
  void *p = real.alloc(n);
  allocated += p != NULL;
  if (allocated > most) most = allocated;
  return p;
}
static void counted_free(void *p) {
  allocated -= p != NULL;
  real.free(p);
}

/* The most blocks that a second run has at once. */
static long peak(const char *text) {
  Case c;
  double x[2] = {1e-9, -1e-9};
  Tensor out;
  long before = 0;
  open_case(&c, text, NULL);
  for (int i = 0; i < 2; i++) {
    before = most = allocated;
    assert_true(run(&c, 0, 2, x, "s", &out));
    mem_free(out.data);
  }
  assert_int_equal(allocated, before);
  close_case(&c);
  return most - before;
}

/* Neither the number of steps nor that of runs leaves anything behind. */
static void no_growth(void **state) {
  (void)state;
  real = mem_table;
  mem_table = (MemTable){counted_alloc, counted_free};
  long few = peak(LOOP("3.0", "2")), many = peak(LOOP("1000.0", "2"));
  mem_table = real;
  assert_int_equal(few, many);
}

/* Every allocation of a run may be refused: an error, nothing lost, and the next run is right. */
static void refused_memory(void **state) {
  (void)state;
  Case c;
  double x[2] = {1, 2};
  Tensor out;
  open_case(&c, ARRAY("0.0", "2"), NULL);
  expect(&c, 2, x, "y", 2, (double[]){4, 8});
  bool ok = false;
  for (int n = 1; !ok; n++) {
    fail_alloc(n);
    ok = run(&c, 0, 2, x, "y", &out);
    fail_alloc(0);
    if (!ok) expect_error(E_MEM_001, "");
  }
  mem_free(out.data);
  expect(&c, 2, x, "y", 2, (double[]){4, 8});
  close_case(&c);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(loop),
      cmocka_unit_test(loop_of_no_steps),
      cmocka_unit_test(endless_loop),
      cmocka_unit_test(branch),
      cmocka_unit_test(array),
      cmocka_unit_test(list),
      cmocka_unit_test(array_errors),
      cmocka_unit_test(wrong_operands),
      cmocka_unit_test(wrong_structure),
      cmocka_unit_test(state_in_blocks),
      cmocka_unit_test(shapes_from_values),
      cmocka_unit_test(segments_and_boxes),
      cmocka_unit_test(shapes_that_grow),
      cmocka_unit_test(recurrent),
      cmocka_unit_test(no_growth),
      cmocka_unit_test(refused_memory),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
