/* See toy.h. In: names of variables. Out: operators that compute nothing, and small Programs of them. */
#include "toy.h"
#include <setjmp.h>
#include <string.h>
#include <cmocka.h>

static bool no_shapes(const CustomOp *op, int n_in, const Tensor *in, int n_out, Tensor *out) {
  (void)op, (void)n_in, (void)in, (void)n_out, (void)out;
  return true;
}

bool toy_add_op(const char *name, const char *signature) {
  return opdef_register(&(CustomOp){name, signature, no_shapes, no_shapes, no_shapes, NULL});
}

int toy_register(void **state) {
  (void)state;
  static const char *const ops[][2] = {
      {"tb_unary", "X axis=-1 -> Out Mask~"},
      {"tb_binary", "X Y? Z*? axis=-1 big=5L alpha=0.5 wide=0.25D flag=false mode='abc' dims=[1,2] "
                    "longs=[]L must=!f {old=1} -> Out More*?"},
      {"tb_feed", "X col=!i -> Out"},
      {"tb_loop", "X* sub_block=!k -> Out*"},
      {"tb_mode", "X is_test=false -> Out ReserveSpace?"},
      {"tb_sgd", "Param Grad -> ParamOut"},
      {"tb_none", "shape=[]L -> Out"}};
  for (size_t i = 0; i < sizeof ops / sizeof *ops; i++)
    assert_true(toy_add_op(ops[i][0], ops[i][1]));
  return 0;
}

void toy_var(Block *b, const char *name) {
  assert_non_null(block_add_var(b, name, VK_TENSOR, DT_FLOAT32, 2, (int64_t[]){-1, 4}));
}

Op *toy_unary(Block *b, const char *in, const char *out) {
  Op *op = block_add_op(b, "tb_unary");
  op_add_in(op, "X", in);
  op_add_out(op, "Out", out);
  if (!block_find_var(b, out)) toy_var(b, out);
  return op;
}

/* x -> a -> b -> c, all by tb_unary */
Program *toy_chain(void) {
  Program *p = prog_new();
  Block *b = p->blocks.v[0];
  toy_var(b, "x");
  toy_unary(b, "x", "a");
  toy_unary(b, "a", "b");
  toy_unary(b, "b", "c");
  return p;
}

void toy_loop(Block *b, int block, const char *in, const char *out) {
  Op *op = block_add_op(b, "tb_loop");
  op_add_in(op, "X", in);
  op_add_out(op, "Out", out);
  op_set_attr(op, &(Attr){.name = "sub_block", .type = AT_BLOCK, .i = block});
}
