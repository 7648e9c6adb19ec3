/* Hostile programs, as text and as bytes, made from recipes by class: D structure and size, E shapes and attributes. */
#include "hostile_case.h"
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static void check_text(const char *id, int variant, const char *text) {
  Result r = check_file(id, variant, TEXT, text, strlen(text));
  Program *p = prog_parse(text, strlen(text), NULL);
  uint8_t *bytes;
  size_t n;
  if (p && prog_encode(p, p->arena, &bytes, &n)) {
    Result b = check_file(id, 1000 + variant, BYTES, bytes, n);
    if (b.code != r.code)
      fail_msg("%s.%d: %s as text, %s as bytes", id, variant, err_name(r.code), err_name(b.code));
  }
  prog_free(p);
  err_clear();
}

#define VARS                                                                                       \
  "  var x float32 [2, 3, 8, 8] feed\n  var i int64 [4, 1] feed\n  var m float32 [4, 6] feed\n  "  \
  "param w float32 [4, 3, 3, 3]\n"                                                                 \
  "  param v float32 [6, 5]\n  var y\n  var z\n  var s float32 [6] feed\n  "                       \
  "param p float32 [8, 3, 4]\n  param b float32 [3, 4]\n  var f float32 [8, 2, 2, 3, 3] feed\n  "  \
  "var q float32 [2, 3, 8] feed\n  var n float32 [1, 1, 2147483648, 2] feed\n"

static void test_structure(void **state) {
  (void)state;
  static const char *const blocks[] = {
      "block 1 {\n}\n",
      "block 0 parent 0 {\n}\n",
      "block 0 {\n}\nblock 0 {\n}\n",
      "block 0 {\n}\nblock 1 parent -1 {\n}\n",
      "block 0 {\n}\nblock 1 parent 2 {\n}\nblock 2 parent 1 {\n}\n",
      "block 0 {\n}\nblock 1 parent 2147483648 {\n}\n",
      "block 0 forward 0 {\n}\n",
      "block 0 {\n}\nblock 1 forward 1 {\n}\n",
      "block 0 {\n  while() {sub_block=block 0}\n}\n",
      "block 0 {\n  while() {sub_block=block -1}\n}\n",
      "block 0 {\n  while() {sub_block=block 7}\n}\n",
      "block 0 {\n  f() {b=blocks [1, 1]}\n}\nblock 1 {\n}\n",
      "block 0 {\n  f() {b=block 1}\n}\nblock 1 {\n  f() {b=block 1}\n}\n",
      "block 0 {\n  f() {b=block 1}\n}\nblock 1 {\n  f() {b=block 0}\n}\n",
      "block 0 {\n  f() {a=block 1, b=block 1}\n  g() {a=block 1}\n}\nblock 1 {\n}\n"};
  static const char *const ops[] = {"y = relu(X=y)",
                                    "y = relu(X=nothing)",
                                    "nothing = relu(X=x)",
                                    "y = relu()",
                                    "y = relu(X=[])",
                                    "y = relu(X=[x, x])",
                                    "relu(X=x)",
                                    "y = relu(X=x, Y=x)",
                                    "y = no_such_op(X=x)",
                                    "y = relu(X=z)\n  z = relu(X=y)",
                                    "w = relu(X=x)",
                                    "[y, y] = split(X=x) {num=2}",
                                    "y = concat(X=[])",
                                    "y = concat(X=[x, y])",
                                    "y = \"\"(X=x)",
                                    "y = relu(X=\"\")",
                                    "y = relu(X=@EMPTY@)",
                                    "@EMPTY@ = relu(X=x)",
                                    "y = relu(X=x) {op_role=99999}",
                                    "y = relu(X=x) {op_role='x'}",
                                    "x = feed(X=x) {col=-1}",
                                    "x = feed(X=x) {col=2147483647}",
                                    "x = feed(X=x)",
                                    "x = feed(X=x) {col=0}\n  x = feed(X=x) {col=0}",
                                    "y = fetch(X=x) {col=-5}",
                                    "y = mul(X=m)",
                                    "y = mul(X=i, Y=v)",
                                    "y = while(X=x)",
                                    "y = conditional_block(Cond=x) {sub_block=block 1}",
                                    "y = relu_grad(X=x)",
                                    "X@GRAD=y = relu_grad(Out=x)",
                                    "y = sgd(Param=w)",
                                    "y = cast(X=x) {in_dtype=5}",
                                    "y = cast(X=x) {in_dtype=5, out_dtype=77}"};
  for (int i = 0; i < (int)(sizeof blocks / sizeof *blocks); i++)
    check_text("D1", i, arena_fmt(hostile_arena, "program\n%s", blocks[i]));
  for (int i = 0; i < (int)(sizeof ops / sizeof *ops); i++)
    check_text("D4", i, arena_fmt(hostile_arena, "program\nblock 0 {\n" VARS "  %s\n}\n", ops[i]));
}

static void test_size(void **state) {
  (void)state;
  static const int counts[] = {1000, 20000, 50000};
  for (int c = 0; c < 3; c++) {
    Str *line = hostile_raw("program\nblock 0 {\n", 18), *same = hostile_raw(line->s, line->n),
        *wide = hostile_raw(line->s, line->n);
    str_add(line, "  var v0 float32 [4] feed\n");
    str_add(same, "  var v0 float32 [4] feed\n  var v1 float32 [4]\n");
    str_add(wide, "  var v0 float32 [4] feed\n  var v1 float32 [4]\n  v1 = sum(X=[v0");
    for (int i = 1; i <= counts[c]; i++) {
      str_fmt(line, "  var v%d float32 [4]\n  v%d = relu(X=v%d)\n", i, i, i - 1);
      str_add(same, "  v1 = relu(X=v0)\n");
      if (i > 1) str_add(wide, ", v0");
    }
    str_add(line, "}\n");
    str_add(same, "}\n");
    str_add(wide, "])\n}\n");
    check_text("D13", c, line->s);
    check_text("D13", 10 + c, same->s);
    check_text("D13", 20 + c, wide->s);
    Str *deep = hostile_raw("program\n", 8);
    for (int i = 0; i < counts[c] / 5; i++)
      str_fmt(deep, "block %d parent %d {\n%s}\n", i, i - 1,
              i + 1 < counts[c] / 5
                  ? arena_fmt(hostile_arena, "  f() {sub_block=block %d}\n", i + 1)
                  : "");
    check_text("D13", 30 + c, deep->s);
    arena_free(hostile_arena);
    hostile_arena = arena_new();
  }
}

/* Attributes of real operators; every @ becomes a hostile value. */
static const struct {
  const char *op, *attrs;
} hostile_attrs[] = {
    {"Output=y = conv2d(Input=x, Filter=w)", "strides=[@, 1]"},
    {"Output=y = conv2d(Input=x, Filter=w)", "dilations=[1, @]"},
    {"Output=y = conv2d(Input=x, Filter=w)", "paddings=[@, @]"},
    {"Output=y = conv2d(Input=x, Filter=w)", "groups=@"},
    {"Output=y = conv2d(Input=x, Filter=w)", "strides=[@]"},
    {"Output=y = conv2d(Input=x, Filter=w)", "paddings=[0, 0, @, 0]"},
    {"y = pool2d(X=x)", "pooling_type='max', ksize=[@, 2]"},
    {"y = pool2d(X=x)", "pooling_type='avg', ksize=[2, 2], strides=[1, @]"},
    {"y = pool2d(X=x)", "pooling_type='avg', ksize=[@, @], adaptive=true"},
    {"y = pool2d(X=x)", "pooling_type='max', ksize=[2, 2], paddings=[@, 0]"},
    {"y = softmax(X=x)", "axis=@"},
    {"y = log_softmax(X=x)", "axis=@"},
    {"y = concat(X=[x, x])", "axis=@"},
    {"[y, z] = split(X=x)", "num=@"},
    {"[y, z] = split(X=x)", "sections=[@, 1], axis=1"},
    {"[y, z] = split(X=x)", "num=2, axis=@"},
    {"y = slice(Input=x)", "axes=[@], starts=[0], ends=[1]"},
    {"y = slice(Input=x)", "axes=[1], starts=[@], ends=[@]"},
    {"y = slice(Input=x)", "axes=[1, 1], starts=[0, 0], ends=[@, 1]"},
    {"Out=y, XShape=z = transpose2(X=x)", "axis=[0, 1, 2, @]"},
    {"Out=y, XShape=z = transpose2(X=x)", "axis=[@]"},
    {"Out=y, XShape=z = reshape2(X=x)", "shape=[@, -1]"},
    {"Out=y, XShape=z = reshape2(X=x)", "shape=[@, @, 0]"},
    {"Out=y, XShape=z = reshape2(X=x)", "shape=[0, 0, 0, 0, 0, @]"},
    {"Out=y, XShape=z = squeeze2(X=x)", "axes=[@]"},
    {"Out=y, XShape=z = unsqueeze2(X=x)", "axes=[@]"},
    {"Out=y, XShape=z = unsqueeze2(X=x)", "axes=[0, 0, 0, 0, 0, 0, 0, 0, 0, @]"},
    {"Out=y, XShape=z = flatten_contiguous_range(X=x)", "start_axis=@"},
    {"Out=y, XShape=z = flatten_contiguous_range(X=x)", "start_axis=1, stop_axis=@"},
    {"y = stack(X=[x, x])", "axis=@"},
    {"y = tile(X=x)", "repeat_times=[@]"},
    {"y = tile(X=x)", "repeat_times=[@, @, @, @]"},
    {"y = expand_v2(X=x)", "shape=[@, 3, 8, 8]"},
    {"y = expand_v2(X=x)", "shape=[@]"},
    {"y = pad(X=x)", "paddings=[@, 0, 0, 0, 0, 0, 0, 0]"},
    {"y = pad(X=x)", "paddings=[@]"},
    {"y = fill_constant()", "shape=[@, @]L, dtype=5, value=1.0"},
    {"y = fill_constant()", "shape=[1]L, dtype=@"},
    {"y = uniform_random()", "shape=[@]L, dtype=5"},
    {"y = gaussian_random()", "shape=[2]L, dtype=@"},
    {"y = one_hot_v2(X=i)", "depth=@"},
    {"y = reduce_sum(X=x)", "dim=[@]"},
    {"y = reduce_mean(X=x)", "dim=[0, @]"},
    {"y = reduce_max(X=x)", "dim=[@, @]"},
    {"y = arg_max(X=x)", "axis=@L, dtype=3"},
    {"y = arg_max(X=x)", "axis=1L, dtype=@"},
    {"Out=y, Indices=z = top_k_v2(X=x)", "k=@"},
    {"Out=y, Indices=z = top_k_v2(X=x)", "k=1, axis=@"},
    {"y = mul(X=x, Y=v)", "x_num_col_dims=@"},
    {"y = mul(X=m, Y=v)", "y_num_col_dims=@"},
    {"y = matmul_v2(X=m, Y=w)", "trans_x=true"},
    {"y = matmul_v2(X=x, Y=i)", ""},
    {"y = elementwise_add(X=x, Y=m)", "axis=@"},
    {"y = elementwise_add(X=x, Y=i)", ""},
    {"Y=y = layer_norm(X=x)", "begin_norm_axis=@"},
    {"Y=y = layer_norm(X=x)", "epsilon=@.0"},
    {"Out=y, Mask=z = dropout(X=x)", "dropout_prob=@.0"},
    {"Out=y, Mask=z = dropout(X=x)", "dropout_prob=nan"},
    {"y = cast(X=x)", "in_dtype=5, out_dtype=@"},
    {"y = gather(X=m, Index=i)", "axis=@"},
    {"y = lookup_table_v2(W=v, Ids=x)", ""},
    {"Y=y = unfold(X=x)",
     "kernel_sizes=[@, 2], strides=[1, 1], paddings=[0, 0, 0, 0], dilations=[1, 1]"},
    {"Y=y = unfold(X=x)",
     "kernel_sizes=[2, 2], strides=[@, 1], paddings=[0, 0, 0, 0], dilations=[1, @]"},
    {"y = clip(X=x)", "min=nan, max=@.0"},
    {"y = scale(X=x)", "scale='x'"},
    {"y = scale(X=x)", "scale=[1.0]"},
    {"y = assign_value()", "shape=[@], dtype=5, fp32_values=[1.0]"},
};

/* Attributes that must be refused, each with one error of its own. */
static const struct {
  const char *op, *attrs;
  ErrCode code;
} refused[] = {
    {"y = cast(X=x)", "in_dtype=5, out_dtype=-1", E_TYP_002},
    {"y = cast(X=x)", "in_dtype=5, out_dtype=-7", E_TYP_002},
    {"y = arg_max(X=x)", "axis=1L, dtype=-2", E_TYP_002},
    {"y = fill_any_like(X=x)", "value=1.0, dtype=-9", E_TYP_002},
    {"y = reduce_sum(X=x)", "dim=[0, 1], out_dtype=-3", E_TYP_002},
    {"y = reduce_sum(X=x)", "dim=[0, 0]", E_SHP_003},
    {"y = reduce_max(X=x)", "dim=[1, -3]", E_SHP_003},
    {"y = reduce_mean(X=x)", "dim=[-1, 3]", E_SHP_003},
    {"y = gaussian_random()", "shape=[2]L, dtype=0", E_TYP_002},
    {"y = uniform_random()", "shape=[2]L, dtype=3", E_TYP_002},
    {"y = gaussian_random()", "shape=[2]L, std=-1.0", E_OPR_003},
    {"y = segment_pool(X=x, SegmentIds=i)", "pooltype='AVERAGE'", E_OPR_003},
    {"y = clip(X=x)", "min=nan, max=1.0", E_OPR_003},
    {"y = clip(X=x)", "min=0.0, max=nan", E_OPR_003},
    {"y = scale(X=x)", "scale=nan", E_OPR_003},
    {"Y=y = layer_norm(X=x)", "epsilon=0.0", E_OPR_003},
    {"Y=y = layer_norm(X=x)", "epsilon=-1e-5", E_OPR_003},
    {"Y=y = layer_norm(X=x)", "epsilon=inf", E_OPR_003},
    {"Y=y = layer_norm(X=x)", "epsilon=nan", E_OPR_003},
    {"Out=y, Mask=z = dropout(X=x)", "dropout_prob=nan", E_OPR_003},
    {"Out=y, Mask=z = dropout(X=x)", "dropout_prob=1.5", E_OPR_003},
    {"Out=y, Mask=z = dropout(X=x)", "dropout_prob=-0.1", E_OPR_003},
    {"y = multihead_matmul(Bias=b, BiasQK=f, Input=q, W=p)", "head_number=2", E_SHP_002},
    {"X@GRAD=y = lu_grad(Out=m, Out@GRAD=m, Pivots=i, X=s)", "", E_SHP_002},
    {"X@GRAD=y = lu_grad(Out=s, Out@GRAD=s, Pivots=s, X=m)", "", E_SHP_002},
    {"X@GRAD=y = qr_grad(Q=m, R=m, Q@GRAD=s, X=m)", "", E_SHP_002},
    {"X@GRAD=y = svd_grad(U=m, S=s, VH=s, U@GRAD=m, X=m)", "", E_SHP_002},
    {"X@GRAD=y = lu_unpack_grad(L@GRAD=s, Pivots=i, U@GRAD=s, X=m)", "", E_SHP_002},
    {"y = pool2d(X=n)", "pooling_type='avg', ksize=[3, 3], adaptive=true", E_MEM_002},
    {"X@GRAD=y = hierarchical_sigmoid_grad(X=m, W=v, Label=i, PreOut=m, Out@GRAD=m)",
     "num_classes=0", E_OPR_003},
    {"y = repeat_interleave(X=n)", "dim=2, Repeats=2", E_MEM_002},
    {"out=y = tril_indices()", "rows=100000, cols=20000, dtype=3", E_MEM_002},
    {"Out=y = einsum(Operands=[i, m])", "equation='ij,kl->ikjl'", E_TYP_001},
};

static void test_refused(void **state) {
  (void)state;
  for (int i = 0; i < (int)(sizeof refused / sizeof *refused); i++) {
    Str *s =
        hostile_raw("program\nblock 0 {\n" VARS "  ", sizeof("program\nblock 0 {\n" VARS "  ") - 1);
    str_fmt(s, "%s {%s}\n}\n", refused[i].op, refused[i].attrs);
    Program *p = prog_parse(s->s, s->n, "text");
    bool ok = p && prog_verify(p) && infer_program(p, false);
    const Diag *d = err_get();
    if (ok || !d || d->code != refused[i].code)
      fail_msg("%s {%s}: %s", refused[i].op, refused[i].attrs, d ? err_name(d->code) : "accepted");
    err_clear();
    prog_free(p);
  }
}

static void test_attributes(void **state) {
  (void)state;
  static const char *const values[] = {"0",       "-1",         "-2",          "7",
                                       "1000000", "2147483647", "-2147483648", "-5"};
  for (int i = 0; i < (int)(sizeof hostile_attrs / sizeof *hostile_attrs); i++)
    for (int v = 0; v < 8; v++) {
      Str *s = hostile_raw("program\nblock 0 {\n" VARS "  ",
                           sizeof("program\nblock 0 {\n" VARS "  ") - 1);
      str_fmt(s, "%s {", hostile_attrs[i].op);
      for (const char *c = hostile_attrs[i].attrs; *c; c++)
        str_add(s, *c == '@' ? values[v] : (char[]){*c, 0});
      str_add(s, "}\n}\n");
      check_text("E1", 10 * i + v, s->s);
      if (!strchr(hostile_attrs[i].attrs, '@')) break;
    }
}

int main(void) {
  const struct CMUnitTest tests[] = {HOSTILE_TEST(test_structure), HOSTILE_TEST(test_size),
                                     HOSTILE_TEST(test_attributes), HOSTILE_TEST(test_refused)};
  return cmocka_run_group_tests(tests, hostile_begin, hostile_end);
}
