/* Control flow whose shapes depend on values, or grow from step to step, and recurrent blocks with their gradients, as programs in
 * the text form, against what plain C computes, compiled and interpreted alike. */
#include "control_case.h"
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

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
  ControlCase c;
  open_case(&c, from_values, NULL);
  for (int again = 0; again < 2; again++) {
    expect_case(&c, 4, (double[]){2, -1, 5, 7}, "y", 3, (double[]){0, 2, 4});
    expect_case(&c, 4, (double[]){2, -1, 5, 7}, "pos2", 3, (double[]){2, 5, 7});
    expect_case(&c, 3, (double[]){-2, -1, -5}, "y", 0, NULL);
    expect_case(&c, 1, (double[]){8}, "pos2", 1, (double[]){8});
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
  ControlCase c;
  open_case(&c, segments, NULL);
  double x[] = {0.25, 0.5, 1.5, 3.25, 3.75}, more[] = {0, 0.5};
  expect_case(&c, 5, x, "y", 4, (double[]){0.5, 1.5, 0, 3.75});
  expect_case(&c, 5, x, "dx", 5, (double[]){0, 2, 2, 0, 2});
  expect_case(&c, 5, x, "n", 4, (double[]){2, 1, 0, 2});
  expect_case(&c, 5, x, "m", 4, (double[]){0.375, 1.5, 0, 3.5});
  expect_case(&c, 5, x, "dm", 5, (double[]){0.25, 0.25, 1.5, 1.875, 1.875});
  expect_case(&c, 2, more, "y", 1, (double[]){0.5});
  double boxes[] = {0, 0, 2, 2, 0, 0, 2, 1.5, 1, 1, 3, 3, 0, 0, 2, 0.5};
  expect_case(&c, 16, boxes, "at", 3, (double[]){0, 2, 3});
  Tensor out;
  assert_false(run_case(&c, 0, 2, (double[]){3, 1}, "y", &out));
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
  ControlCase c;
  open_case(&c, growing, NULL);
  for (int again = 0; again < 2; again++)
    expect_case(&c, 1, (double[]){9}, "s", 7, (double[]){9, 0, 0, 1, 0, 1, 2});
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
    ControlCase c;
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
    expect_case(&c, 4, x, "h", 4, h);
    expect_case(&c, 4, x, "x@GRAD", 4, g);
    expect_case(&c, 4, x, "w@GRAD", 1, &gw);
    expect_case(&c, 4, x, "h0@GRAD", 1, (double[]){0.5 * flow});
    close_case(&c);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(shapes_from_values),
      cmocka_unit_test(segments_and_boxes),
      cmocka_unit_test(shapes_that_grow),
      cmocka_unit_test(recurrent),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
