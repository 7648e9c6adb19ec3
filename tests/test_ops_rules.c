/* Operators: the inferred shapes with unknown dimensions; the refusal of nonsense; dropout's statistics. */
#include "value_case.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* ---- inference with unknown dimensions ---- */

static void test_unknown_dims(void **state) {
  static const struct {
    const char *op, *in, *dims; /* dims of the variable Y */
  } rows[] = {
      {"Output=Y = conv2d(Input=A, Filter=B) {paddings=[1,1]}", "A -1x3x8x-1; B 4x3x3x3",
       "[-1, 4, 8, -1]"},
      {"Output=Y = conv2d(Input=A, Filter=B) {padding_algorithm='SAME', strides=[2,2]}",
       "A -1x3x7x-1; B 4x3x3x3", "[-1, 4, 4, -1]"},
      {"Out=Y = pool2d(X=A) {ksize=[2,2], adaptive=true}", "A -1x3x-1x-1", "[-1, 3, 2, 2]"},
      {"Out=Y = pool2d(X=A) {ksize=[2,2], strides=[2,2]}", "A -1x3x-1x9", "[-1, 3, -1, 4]"},
      {"Out=Y = matmul_v2(X=A, Y=B)", "A -1x-1x5; B 5x7", "[-1, -1, 7]"},
      {"Out=Y = mul(X=A, Y=B)", "A -1x4x4; B 16x10", "[-1, 10]"},
      {"Out=Y, XShape=S = reshape2(X=A) {shape=[0,-1]}", "A -1x4x4", "[-1, 16]"},
      {"Out=Y, XShape=S = reshape2(X=A) {shape=[-1,8]}", "A -1x4x4", "[-1, 8]"},
      {"Out=Y, XShape=S = flatten_contiguous_range(X=A) {stop_axis=-1}", "A -1x4x4", "[-1, 16]"},
      {"Out=Y, XShape=S = squeeze2(X=A) {axes=[1]}", "A -1x1x4", "[-1, 4]"},
      {"Out=Y = slice(Input=A) {axes=[0,1], starts=[0,1], ends=[2,3], decrease_axis=[]}", "A -1x4",
       "[-1, 2]"},
      {"Out=Y = gather(X=A, Index=I)", "A -1x4; I -1:int64", "[-1, 4]"},
      {"Out=Y = lookup_table_v2(W=A, Ids=I)", "A 10x4; I -1x3:int64", "[-1, 3, 4]"},
      {"Out=Y = expand_v2(X=A) {shape=[-1,5]}", "A -1x1", "[-1, 5]"},
      {"loss=Y, warprnntgrad=G = warprnnt(input=A, label=I, input_lengths=J, label_lengths=J)",
       "A 2x3x4x5; I -1x-1:int32; J 2:int32", "[2]"},
      {"out_q=Y = fused_rotary_position_embedding(q=A, sin=B, cos=B)", "A 2x3x2x4; B 1x-1x1x4",
       "[2, 3, 2, 4]"},
      {"out_q=Y = fused_rotary_position_embedding(q=A, sin=B, cos=B, position_ids=I)",
       "A 2x3x2x4; B 1x5x1x4; I -1x-1:int64", "[2, 3, 2, 4]"},
      {"out=Y, softmax=P, softmax_lse=L, seed_offset=O = flash_attn(q=A, k=A, v=A, attn_mask=B)",
       "A 1x3x2x2; B -1x1x-1x-1", "[1, 3, 2, 2]"},
  };
  (void)state;
  for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
    ValueRun r;
    value_start(&r, rows[i].op, rows[i].in);
    if (!infer_program(r.p, true)) {
      err_print(stderr, false);
      fail_msg("%s", rows[i].op);
    }
    const Var *y = block_var(r.p->blocks.v[0], "Y");
    if (strcmp(dims_text(y->rank, y->dims), rows[i].dims))
      fail_msg("%s: %s, not %s", rows[i].op, dims_text(y->rank, y->dims), rows[i].dims);
    value_end(&r);
  }
}

/* ---- refusals ---- */

static void test_refusals(void **state) {
  static const struct {
    ErrCode code;
    const char *op, *in, *part;
  } rows[] = {
      {E_SHP_012, "Out=Y = matmul_v2(X=A, Y=B)", "A 2x3; B 4x2", "3 vs 4"},
      {E_OPR_003, "Out=Y = mul(X=A, Y=B) {x_num_col_dims=2}", "A 2x3; B 3x2", "x_num_col_dims"},
      {E_OPR_003, "Output=Y = conv2d(Input=A, Filter=B) {strides=[0,1]}", "A 1x1x4x4; B 1x1x2x2",
       "strides"},
      {E_OPR_003, "Output=Y = conv2d(Input=A, Filter=B) {groups=0}", "A 1x1x4x4; B 1x1x2x2",
       "groups is 0"},
      {E_SHP_006, "Output=Y = conv2d(Input=A, Filter=B)", "A 1x3x4x4; B 1x2x2x2", "3 channels"},
      {E_SHP_005, "Output=Y = conv2d(Input=A, Filter=B)", "A 1x1x4x4; B 1x1x5x2", "does not fit"},
      {E_OPR_003, "Output=Y = conv2d(Input=A, Filter=B) {paddings=[1,2,3]}", "A 1x1x4x4; B 1x1x2x2",
       "3 values"},
      {E_OPR_003, "Output=Y = conv2d(Input=A, Filter=B) {data_format='CHWN'}",
       "A 1x1x4x4; B 1x1x2x2", "CHWN"},
      {E_OPR_003, "Out=Y = pool2d(X=A) {ksize=[2,2,2]}", "A 1x1x4x4", "ksize"},
      {E_OPR_003, "Out=Y = pool2d(X=A) {ksize=[2,2], pooling_type='min'}", "A 1x1x4x4", "min"},
      {E_OPR_003, "Out=Y = arg_max(X=A)", "A 2x0", "axis 1 has no elements"},
      {E_SHP_003, "Out=Y, XShape=S = transpose2(X=A) {axis=[0,0]}", "A 2x3", "no permutation"},
      {E_SHP_004, "Out=Y, XShape=S = reshape2(X=A) {shape=[4,-1]}", "A 2x3", "6 elements"},
      {E_SHP_003, "Out=Y, XShape=S = squeeze2(X=A) {axes=[2]}", "A 2x3", "outside"},
      {E_OPR_003, "Out=P = split(X=A) {sections=[1]}", "A 3x2", "sections"},
      {E_OPR_003, "Out=Y = strided_slice(Input=A) {axes=[0], starts=[0], ends=[2], strides=[0]}",
       "A 3", "strides"},
      {E_SHP_006, "Out=Y = slice(Input=A) {axes=[0], starts=[0], ends=[2], decrease_axis=[0]}",
       "A 3x2", "decrease_axis"},
      {E_OPR_003, "Out=Y, Mask=M = dropout(X=A) {dropout_prob=1.5}", "A 3", "1.5"},
      {E_OPR_003, "Out=Y = roll(X=A) {shifts=[-9223372036854775808]L, axis=[0]L}", "A 3", "shifts"},
      {E_OPR_004,
       "out=Y, softmax=P, softmax_lse=L, seed_offset=O = flash_attn(q=A, k=A, v=A) {dropout=0.5}",
       "A 1x3x2x2", "a dropout of 0.5"},
      {E_OPR_004, "out_q=Y = fused_rotary_position_embedding(q=A) {use_neox_rotary_style=false}",
       "A 1x2x1x4", "without sin and cos"},
      {E_SHP_006, "Out=Y = psroi_pool(X=A, ROIs=B) {output_channels=3, pooled_height=2}",
       "A 1x4x2x2; B 1x4", "output_channels times the cells"},
      {E_SHP_006, "out_q=Y, out_k=K = fused_rotary_position_embedding(q=A, k=B)",
       "A 1x1x1x4; B 1x3x1x4", "positions of q, k and v"},
      {E_MEM_002, "out_q=Y = fused_rotary_position_embedding(q=A)", "A 0x4194304x1x128", "angles"},
      {E_MEM_002, "Out=Y = fused_embedding_seq_pool(W=A, Ids=I)",
       "A 0x68719476736; I 0x68719476736:int64", "68719476736 times 68719476736"},
      {E_SHP_006, "X@GRAD=Y = cvm_grad(X=A, CVM=B, Y@GRAD=A)", "A 3x1; B 3x2", "1 columns"},
      {E_TYP_002, "Out=Y = gather(X=A, Index=I)", "A 3; I 2", "int32 or int64"},
      {E_SHP_003, "Out=Y = elementwise_add(X=A, Y=B) {axis=1}", "A 2x3; B 2x1", "two shapes"},
      {E_SHP_006, "Out=Y = index_add(X=A, Index=I, AddValue=B)", "A 4x2; I 1:int64; B 3x2",
       "rows of AddValue and Index differ: 3 and 1"},
      {E_SHP_006,
       "ParamOut=Y, VelocityOut=Z = momentum(Param=A, Grad=B, Velocity=B, LearningRate=C) {mu=0.9}",
       "A 2; B 3x2; C 1", "ParamOut would be [3, 2], but Param is [2]"},
  };
  (void)state;
  for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
    ValueRun r;
    value_start(&r, rows[i].op, rows[i].in);
    if (infer_program(r.p, true)) fail_msg("accepted: %s", rows[i].op);
    expect_error(rows[i].code, rows[i].part);
    value_end(&r);
  }
}

static void test_indices_out_of_range(void **state) {
  static const struct {
    const char *op, *in;
  } rows[] = {
      {"Out=Y = gather(X=A, Index=I)", "A 3x2 7; I 2:int64 =0,3"},
      {"Out=Y = gather(X=A, Index=I)", "A 3x2 7; I 2:int64 =0,-1"},
      {"Out=Y = gather_nd(X=A, Index=I)", "A 3x2 7; I 1x2:int64 =0,2"},
      {"Out=Y = index_select(X=A, Index=I)", "A 3x2 7; I 1:int32 =3"},
      {"Out=Y = lookup_table_v2(W=A, Ids=I)", "A 3x2 7; I 1:int64 =3"},
      {"Out=Y = scatter(X=A, Ids=I, Updates=U)", "A 3x2 7; I 1:int64 =3; U 1x2 7"},
  };
  (void)state;
  for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
    ValueRun r;
    value_start(&r, rows[i].op, rows[i].in);
    if (value_fetch(&r, "Y")) fail_msg("accepted: %s", rows[i].op);
    expect_error(E_DAT_002, "");
    value_end(&r);
  }
}

/* ---- dropout ---- */

/* The sum of an output of dropout over 10000 ones; *first keeps the first 64 values as bits. */
static double dropped_sum(const char *attrs, const char *out, uint64_t seed, uint64_t step,
                          uint64_t *first) {
  ValueRun r;
  char op[256];
  snprintf(op, sizeof op, "Out=Y, Mask=M = dropout(X=A) {%s}", attrs);
  value_start(&r, op, "A 10000 =1");
  r.seed = seed, r.step = step;
  Tensor *t = value_fetch(&r, out);
  assert_non_null(t);
  double sum = 0;
  *first = 0;
  for (int64_t k = 0; k < tensor_numel(t); k++) {
    double v = tensor_get(t, k);
    sum += v;
    if (k < 64) *first |= (uint64_t)(v != 0) << k;
  }
  value_end(&r);
  return sum;
}

static void test_dropout(void **state) {
  static const char down[] = "dropout_prob=0.3",
                    up[] = "dropout_prob=0.3, dropout_implementation='upscale_in_train'",
                    fixed[] = "dropout_prob=0.3, fix_seed=true, seed=9";
  uint64_t a, b;
  (void)state;
  /* 10000 draws: the standard deviation of the kept ones is 46 */
  assert_true(fabs(dropped_sum(down, "M", 1, 1, &a) - 7000) < 250);
  assert_true(fabs(dropped_sum(down, "Y", 1, 1, &b) - 7000) < 250);
  assert_int_equal(a, b);
  assert_true(fabs(dropped_sum(up, "Y", 1, 1, &b) - 10000) < 360);
  dropped_sum(down, "M", 1, 2, &b);
  assert_int_not_equal(a, b);
  dropped_sum(down, "M", 2, 1, &b);
  assert_int_not_equal(a, b);
  dropped_sum(fixed, "M", 1, 1, &a);
  dropped_sum(fixed, "M", 2, 7, &b);
  assert_int_equal(a, b);
  assert_true(fabs(dropped_sum("dropout_prob=0.3, is_test=true", "Y", 1, 1, &b) - 7000) < 1e-3);
  assert_true(dropped_sum("dropout_prob=1.0", "Y", 1, 1, &b) == 0);
  assert_true(dropped_sum("dropout_prob=0.0", "Y", 1, 1, &b) == 10000);
}

/* Two with one Seed keep the same elements, whatever it holds: a forward pass computed again. */
static void test_dropout_again(void **state) {
  static const char form[] =
      "program version 0\nblock 0 {\n  var A float32 [1000]\n  var S int32 [1]\n  var Y none\n"
      "  var Z none\n  var M none\n  var N none\n  Out=S = seed() {seed=%d}\n"
      "  Out=Y, Mask=M = dropout(X=A, Seed=S)\n  Out=Z, Mask=N = dropout(X=A, Seed=S)\n}\n";
  (void)state;
  for (int seed = 0; seed < 8; seed += 7) {
    ValueRun r;
    value_start(&r, "Out=Y = relu(X=A)", "A 1000 =1");
    const char *text = arena_fmt(r.a, form, seed);
    prog_free(r.p);
    r.p = prog_parse(text, strlen(text), "again");
    assert_non_null(r.p);
    Tensor *m = value_fetch(&r, "M"), *n = value_fetch(&r, "N");
    assert_true(m && n);
    assert_memory_equal(m->data, n->data, tensor_bytes(m));
    value_end(&r);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_unknown_dims),         cmocka_unit_test(test_refusals),
      cmocka_unit_test(test_indices_out_of_range), cmocka_unit_test(test_dropout),
      cmocka_unit_test(test_dropout_again),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
