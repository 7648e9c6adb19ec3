/* Control flow: loops, branches, selection, tensor arrays, as programs in the text form, against what plain C computes, compiled
 * and interpreted alike. */
#include "control_case.h"
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

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
  ControlCase c;
  double x[2] = {1, -0.5}, want[2] = {1, -0.5};
  for (int i = 0; i < 10; i++)
    for (int k = 0; k < 2; k++) want[k] = 2 * want[k] + x[k];
  open_case(&c, LOOP("10.0", "-1"), NULL);
  expect_case(&c, 2, x, "s", 2, want);
  expect_case(&c, 2, x, "i", 1, (double[]){10});
  close_case(&c);
}

static void loop_of_no_steps(void **state) {
  (void)state;
  ControlCase c;
  double x[2] = {1, -0.5};
  open_case(&c, LOOP("0.0", "2"), NULL);
  expect_case(&c, 2, x, "s", 2, x);
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
  ControlCase c;
  open_case(&c, branches, NULL);
  expect_case(&c, 2, (double[]){1, 2}, "y", 2, (double[]){3, 6});
  expect_case(&c, 2, (double[]){1, -2}, "y", 2, (double[]){-0.75, 2.25});
  Tensor out;
  assert_false(run_case(&c, 0, 2, (double[]){1, 2}, "b", &out));
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
  ControlCase c;
  double x[2] = {1, -3};
  open_case(&c, ARRAY("0.0", "2"), NULL);
  expect_case(&c, 2, x, "y", 2, (double[]){4, -12});
  expect_case(&c, 2, x, "all", 8, (double[]){1, -3, 2, -6, 4, -12, 8, -24});
  expect_case(&c, 2, x, "length", 1, (double[]){4});
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
  ControlCase c;
  double x[2] = {1, -3};
  open_case(&c, LIST, NULL);
  expect_case(&c, 2, x, "all", 6, (double[]){2, -6, 2, -6, 2, -6});
  expect_case(&c, 2, x, "length", 1, (double[]){3});
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
  ControlCase c;
  double w[2] = {1, 1};
  open_case(&c, stateful, NULL);
  for (int k = 0; k < 2; k++) {
    Tensor out, t;
    scope_set(c.s[k], "w", DT_FLOAT64, 1, (int64_t[]){2}, w);
    assert_true(run_case(&c, k, 2, (double[]){2, 3}, "top", &out));
    mem_free(out.data);
    assert_false(run_case(&c, k, 2, (double[]){2, 30}, "top", &out)); /* and w stays as it was */
    expect_error(E_RUN_006, "30");
    t = *scope_get(c.s[k], "w");
    assert_true(tensor_get(&t, 0) == 3 && tensor_get(&t, 1) == 4);
  }
  close_case(&c);
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
  ControlCase c;
  double x[2] = {1e-9, -1e-9};
  Tensor out;
  long before = 0;
  open_case(&c, text, NULL);
  for (int i = 0; i < 2; i++) {
    before = most = allocated;
    assert_true(run_case(&c, 0, 2, x, "s", &out));
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
  ControlCase c;
  double x[2] = {1, 2};
  Tensor out;
  open_case(&c, ARRAY("0.0", "2"), NULL);
  expect_case(&c, 2, x, "y", 2, (double[]){4, 8});
  bool ok = false;
  for (int n = 1; !ok; n++) {
    fail_alloc(n);
    ok = run_case(&c, 0, 2, x, "y", &out);
    fail_alloc(0);
    if (!ok) expect_error(E_MEM_001, "");
  }
  mem_free(out.data);
  expect_case(&c, 2, x, "y", 2, (double[]){4, 8});
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
      cmocka_unit_test(no_growth),
      cmocka_unit_test(refused_memory),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
