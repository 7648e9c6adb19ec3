/* The verifier of Programs: each case breaks a valid program in one way, and gets the one error that names it. */
#include "toy.h"
#include <setjmp.h>
#include <string.h>
#include <cmocka.h>

/* ---- the verifier: each case breaks a valid program in one way ---- */

static Op *first(Program *p) { return p->blocks.v[0]->ops.v[0]; }
static void no_root(Program *p) { p->blocks.n = 0; }
static void root_has_parent(Program *p) { p->blocks.v[0]->parent = 0; }
static void second_root(Program *p) { prog_add_block(p, -1, -1); }
static void own_parent(Program *p) { prog_add_block(p, 1, -1); }
static void far_parent(Program *p) { prog_add_block(p, INT32_MAX, -1); }
static void far_forward(Program *p) { prog_add_block(p, 0, 7); }
static void wrong_index(Program *p) { p->blocks.v[0]->idx = 3; }
static void empty_var(Program *p) { toy_var(p->blocks.v[0], ""); }
static void twice_var(Program *p) {
  Block *b = p->blocks.v[0];
  Var *copy = arena_dup(p->arena, b->vars.v[0], sizeof(Var));
  vec_add(p->arena, &b->vars, copy);
}
static void negative_dim(Program *p) { p->blocks.v[0]->vars.v[0]->dims[1] = -2; }
static void huge_dims(Program *p) {
  for (int i = 0; i < 2; i++) p->blocks.v[0]->vars.v[0]->dims[i] = INT64_MAX / 2;
}
static void huge_rank(Program *p) { p->blocks.v[0]->vars.v[0]->rank = 10; }
static void empty_type(Program *p) { first(p)->type = ""; }
static void unknown_type(Program *p) {
  for (int i = 0; i < 2; i++) {
    p->blocks.v[0]->ops.v[i]->type = "tb_unray";
    p->blocks.v[0]->ops.v[i]->def = NULL;
  }
}
static void missing_slot(Program *p) { first(p)->ins.n = 0; }
static void empty_slot(Program *p) {
  op_set_ins(first(p), "X", 1, (const char *const[]){"@EMPTY@"});
}
static void full_slot(Program *p) { op_add_in(first(p), "X", "x"); }
static void unknown_slot(Program *p) { op_add_in(first(p), "Xx", "x"); }
static void unknown_output(Program *p) { op_add_out(first(p), "Mas", "x"); }
static void missing_output(Program *p) { first(p)->outs.n = 0; }
static void slot_twice(Program *p) { vec_add(p->arena, &first(p)->ins, first(p)->ins.v[0]); }
static void string_axis(Program *p) { op_set_str(first(p), "axis", "one"); }
static void variable_axis(Program *p) {
  op_set_attr(first(p), &(Attr){.name = "axis", .type = AT_VAR, .s = "nobody"});
}
static void attr_twice(Program *p) {
  op_set_int(first(p), "axis", 1);
  vec_add(p->arena, &first(p)->attrs, first(p)->attrs.v[0]);
}
static void missing_attr(Program *p) {
  Op *op = block_add_op(p->blocks.v[0], "tb_binary");
  op_add_in(op, "X", "x");
  op_add_out(op, "Out", "c");
}
static void wide_block(Program *p) { toy_loop(p->blocks.v[0], 9, "x", "c"); }
static void own_block(Program *p) { toy_loop(p->blocks.v[0], 0, "x", "c"); }
static void block_cycle(Program *p) {
  prog_add_block(p, 0, -1);
  prog_add_block(p, 0, -1);
  toy_loop(p->blocks.v[0], 1, "x", "c");
  toy_loop(p->blocks.v[1], 2, "x", "c");
  toy_loop(p->blocks.v[2], 1, "x", "c");
}
static void undeclared(Program *p) { op_set_ins(first(p), "X", 1, (const char *const[]){"xx"}); }
static void undeclared_out(Program *p) { op_add_out(first(p), "Mask", "mask"); }
static void empty_arg(Program *p) { op_set_ins(first(p), "X", 1, (const char *const[]){""}); }
static void too_early(Program *p) { op_set_ins(first(p), "X", 1, (const char *const[]){"c"}); }
static void inner_too_early(Program *p) {
  Block *sub = prog_add_block(p, 0, -1);
  toy_loop(p->blocks.v[0], 1, "x", "c");
  toy_unary(sub, "late", "l2");
  toy_var(p->blocks.v[0], "late");
  toy_unary(p->blocks.v[0], "x", "late");
}
static void feed(Program *p, int64_t col, const char *out) {
  Block *b = p->blocks.v[0];
  if (!block_var(b, "feed"))
    block_add_var(b, "feed", VK_FEED, DT_NONE, -1, NULL)->persistable = true;
  if (!block_var(b, out)) toy_var(b, out);
  Op *op = block_insert_op(b, 0, "tb_feed");
  op_add_in(op, "X", "feed");
  op_add_out(op, "Out", out);
  op_set_int(op, "col", col);
}
static void feed_negative(Program *p) { feed(p, -1, "x"); }
static void feed_twice(Program *p) {
  feed(p, 2, "x");
  feed(p, 2, "x2");
}
static void feed_parameter(Program *p) {
  block_var(p->blocks.v[0], "x")->is_parameter = true;
  feed(p, 0, "x");
}
static void deep(Program *p) {
  for (int i = 0; i < 2000; i++) prog_add_block(p, i, -1);
}

static const struct {
  void (*damage)(Program *p);
  ErrCode code;
  const char *text;
} damages[] = {{no_root, E_PRO_002, "no block"},
               {root_has_parent, E_PRO_002, "root block"},
               {second_root, E_PRO_002, "parent of block 1 is -1"},
               {own_parent, E_PRO_002, "parent of block 1 is 1"},
               {far_parent, E_PRO_002, "parent of block 1"},
               {far_forward, E_PRO_002, "forward block of block 1 is 7"},
               {wrong_index, E_PRO_002, "block 0 says"},
               {empty_var, E_PRO_002, "empty name"},
               {twice_var, E_PRO_002, "declared twice"},
               {negative_dim, E_PRO_002, "dimension 1 of variable \"x\" is -2"},
               {huge_dims, E_MEM_002, "variable \"x\""},
               {huge_rank, E_SHP_002, "rank 10"},
               {empty_type, E_PRO_002, "empty type"},
               {unknown_type, E_OPR_001, "Did you mean tb_unary?"},
               {unknown_type, E_OPR_001, "1 more operators are unknown"},
               {unknown_type, E_OPR_001, "block 0, op 0 `tb_unray`"},
               {missing_slot, E_OPR_002, "required input X"},
               {empty_slot, E_OPR_002, "required input X"},
               {full_slot, E_OPR_002, "takes one variable, not 2"},
               {unknown_slot, E_OPR_002, "Did you mean X?"},
               {unknown_output, E_OPR_002, "Did you mean Mask?"},
               {missing_output, E_OPR_002, "required output Out"},
               {slot_twice, E_OPR_002, "twice"},
               {string_axis, E_OPR_003,
                "\"axis\" has type STRING (\"'one'\"); the operator takes INT"},
               {variable_axis, E_VER_001, "nobody"},
               {attr_twice, E_OPR_003, "twice"},
               {missing_attr, E_OPR_003, "required attribute must (FLOAT)"},
               {wide_block, E_PRO_002, "refers to block 9"},
               {own_block, E_PRO_002, "refers to block 0"},
               {block_cycle, E_PRO_002, "contains itself"},
               {undeclared, E_VER_001, "\"xx\""},
               {undeclared, E_VER_001, "Did you mean \"x\"?"},
               {undeclared_out, E_VER_001, "\"mask\""},
               {empty_arg, E_PRO_002, "empty name"},
               {too_early, E_VER_002, "\"c\""},
               {inner_too_early, E_VER_002, "block 1, op 0"},
               {feed_negative, E_PRO_002, "column of a feed is -1"},
               {feed_twice, E_PRO_002, "two feed operators"},
               {feed_parameter, E_PRO_002, "\"x\" is fed"},
               {deep, E_MEM_002, "nested deeper"}};

static void verifier(void **state) {
  (void)state;
  for (size_t i = 0; i < sizeof damages / sizeof *damages; i++) {
    Program *p = toy_chain();
    p->file = "m.kl";
    assert_true(prog_verify(p));
    damages[i].damage(p);
    if (prog_verify(p)) fail_msg("case %zu (%s) was accepted", i, damages[i].text);
    assert_non_null(strstr(err_get()->where, "m.kl"));
    expect_error(damages[i].code, damages[i].text);
    prog_free(p);
  }
}

/* What must be accepted: old attribute types, unknown attributes, empty slots, persistable and fed variables. */
static void verifier_accepts(void **state) {
  (void)state;
  Program *p = toy_chain();
  Op *op = first(p);
  op_set_attr(op, &(Attr){.name = "axis", .type = AT_LONG, .i = 1});
  op_set_attr(op, &(Attr){.name = "out_threshold", .type = AT_FLOAT, .f = 1});
  op_set_ins(op, "ResidualData", 0, NULL);
  op_set_outs(op, "Mask", 1, (const char *const[]){"@EMPTY@"});
  feed(p, 0, "x");
  block_var(p->blocks.v[0], "c")->persistable = true;
  op_set_ins(op, "X", 1, (const char *const[]){"c"});
  for (int i = 0; i < 500; i++) {
    Block *b = prog_add_block(p, i, -1);
    toy_loop(p->blocks.v[i], i + 1, "x", "c");
    if (i == 499) toy_unary(b, "x", "inside");
  }
  if (!prog_verify(p)) err_print(stderr, false);
  assert_false(err_any());
  prog_free(p);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(verifier),
                                     cmocka_unit_test(verifier_accepts)};
  return cmocka_run_group_tests_name("verify", tests, toy_register, NULL);
}
