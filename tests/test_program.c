/* The operator table and Programs: signatures, coercions, editing, scopes, pruning, the clone for a test. */
#include "toy.h"
#include <setjmp.h>
#include <string.h>
#include <cmocka.h>

/* ---- the operator table ---- */

static void signatures(void **state) {
  (void)state;
  const OpDef *d = opdef_find("tb_binary");
  assert_int_equal(d->n_ins, 3);
  assert_int_equal(d->n_outs, 2);
  assert_int_equal(d->n_attrs, 10);
  assert_true(!opdef_in(d, "X")->optional && opdef_in(d, "Y")->optional && opdef_in(d, "Z")->list);
  assert_null(opdef_in(d, "Out"));
  assert_true(opdef_out(opdef_find("tb_unary"), "Mask")->intermediate);
  static const struct {
    const char *name;
    AttrType type;
  } attrs[] = {{"axis", AT_INT},     {"big", AT_LONG},    {"alpha", AT_FLOAT},
               {"wide", AT_FLOAT64}, {"flag", AT_BOOL},   {"mode", AT_STRING},
               {"dims", AT_INTS},    {"longs", AT_LONGS}, {"must", AT_FLOAT},
               {"old", AT_INT},      {"op_role", AT_INT}, {"op_callstack", AT_STRINGS}};
  for (size_t i = 0; i < sizeof attrs / sizeof *attrs; i++) {
    const AttrDef *t = opdef_attr(d, attrs[i].name);
    assert_non_null(t);
    assert_int_equal(t->dflt.type, attrs[i].type);
    assert_int_equal(t->required, !strcmp(attrs[i].name, "must"));
    assert_int_equal(t->extra, !strcmp(attrs[i].name, "old"));
  }
  assert_null(opdef_attr(d, "none"));
  const OpDef *g = opdef_find("tb_unary_grad");
  assert_true(g && (g->flags & OF_GRAD) && g->forward == opdef_find("tb_unary"));
  static const char *const ins[] = {"X", "Out", "Mask", "Out@GRAD", "Mask@GRAD"};
  assert_int_equal(g->n_ins, 5);
  for (int i = 0; i < 5; i++) assert_true(!strcmp(g->ins[i].name, ins[i]) && g->ins[i].optional);
  assert_true(g->n_outs == 1 && opdef_out(g, "X@GRAD") && opdef_attr(g, "axis"));
  assert_true(opdef_in(opdef_find("tb_loop_grad"), "Out@GRAD")->list);
  assert_string_equal(opdef_nearest("tb_unray"), "tb_unary");
  assert_null(opdef_nearest("zzzzzzzzzzzzzzz"));
  for (int i = 1; i < opdef_n(); i++)
    assert_true(strcmp(opdef_at(i - 1)->name, opdef_at(i)->name) < 0);
}

/* Every row: gradients name operators and slots that are there. */
static void rows(void **state) {
  (void)state;
  for (int i = 0; i < opdef_n(); i++) {
    const OpDef *d = opdef_at(i);
    const OpDef *g = d->grad ? opdef_find(d->grad->type) : NULL;
    if (d->grad && !g) fail_msg("%s: no gradient operator %s", d->name, d->grad->type);
    for (int k = 0; g && k < d->grad->n_ins; k++)
      if (!opdef_in(g, d->grad->ins[k].slot))
        fail_msg("%s: %s has no input %s", d->name, g->name, d->grad->ins[k].slot);
    for (int k = 0; g && k < d->grad->n_outs; k++)
      if (!opdef_out(g, d->grad->outs[k].slot))
        fail_msg("%s: %s has no output %s", d->name, g->name, d->grad->outs[k].slot);
    for (int k = 0; g && k < d->grad->n_sets; k++)
      if (!opdef_attr(g, d->grad->sets[k].attr))
        fail_msg("%s: %s has no attribute %s", d->name, g->name, d->grad->sets[k].attr);
    if (!d->formula && !d->expand && !d->forward && !(d->flags & OF_IO))
      fail_msg("%s: no expansion", d->name);
  }
}

static void bad_signatures(void **state) {
  (void)state;
  static const char *const bad[][2] = {{"X", "-> is missing"},
                                       {"X -> Out -> Y", "a name is expected"},
                                       {"X a=1x -> Out", "malformed default"},
                                       {"X a=!q -> Out", "unknown type letter"},
                                       {"X {a=1 -> Out", "name is expected"},
                                       {"X a=1} -> Out", "stray brace"},
                                       {"X {Y} -> Out", "a slot in braces"},
                                       {"X ->", "no output"}};
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    assert_false(toy_add_op("tb_bad", bad[i][0]));
    expect_error(E_PLG_001, bad[i][1]);
  }
  assert_false(toy_add_op("tb_unary", "X -> Out"));
  expect_error(E_PLG_001, "already there");
  assert_false(toy_add_op("a b", "X -> Out"));
  expect_error(E_PLG_001, "letters, digits and _");
  assert_false(opdef_register(&(CustomOp){.name = "tb_bad", .signature = "X -> Out"}));
  expect_error(E_PLG_001, "infer");
}

static void coercions(void **state) {
  (void)state;
  static const struct {
    const char *text;
    AttrType to;
    bool ok;
    double value;
  } cases[] = {{"1", AT_BOOL, true, 1},          {"0.5", AT_BOOL, true, 1},
               {"7", AT_LONG, true, 7},          {"7.9", AT_LONG, true, 7},
               {"3", AT_FLOAT, true, 3},         {"3L", AT_FLOAT, true, 3},
               {"3L", AT_INT, true, 3},          {"5000000000L", AT_INT, false, 0},
               {"true", AT_INT, true, 1},        {"'a'", AT_INT, false, 0},
               {"[1]", AT_INT, false, 0},        {"1", AT_INTS, true, 1},
               {"nan", AT_LONG, false, 0},       {"[1,2]", AT_LONGS, true, 2},
               {"[1.5,2.5]", AT_LONGS, true, 2}, {"[1,2]L", AT_FLOATS, true, 2},
               {"['a']", AT_INTS, false, 0},     {"[]", AT_STRINGS, true, 0},
               {"[]S", AT_FLOATS, true, 0},      {"2", AT_STRING, false, 0},
               {"1", AT_SCALAR, true, 1}};
  Arena *a = arena_new();
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    Attr t = {.name = "x"};
    assert_true(attr_parse(a, cases[i].text, NULL, &t));
    if (attr_coerce(&t, cases[i].to, a) != cases[i].ok)
      fail_msg("%s to %s", cases[i].text, attr_info[cases[i].to].name);
    if (!cases[i].ok) continue;
    assert_int_equal(t.type, cases[i].to);
    const AttrInfo *k = &attr_info[t.type];
    if (k->list)
      assert_int_equal(t.n, cases[i].value);
    else if (k->elem == 'f')
      assert_true(t.f == cases[i].value);
    else if (k->elem != 'c')
      assert_int_equal(t.i, cases[i].value);
  }
  assert_false(err_any());
  arena_free(a);
}

/* ---- Programs ---- */

static void editing(void **state) {
  (void)state;
  Program *p = toy_chain();
  Block *b = p->blocks.v[0];
  uint64_t edits = p->edits;
  assert_null(block_add_var(b, "x", VK_TENSOR, DT_FLOAT32, 0, NULL));
  expect_error(E_PRO_002, "\"x\" is declared twice");
  assert_null(block_add_var(b, "deep", VK_TENSOR, DT_FLOAT32, 10, NULL));
  expect_error(E_SHP_002, "rank 10");
  Op *op = block_insert_op(b, 1, "tb_binary");
  assert_int_equal(op_index(op), 1);
  assert_int_equal(b->ops.n, 4);
  op_set_ins(op, "Z", 2, (const char *const[]){"a", "@EMPTY@"});
  op_add_in(op, "Z", "x");
  assert_int_equal(op_ins(op, "Z")->n, 3);
  assert_string_equal(op_in(op, "Z", 0), "a");
  assert_null(op_in(op, "Z", 1));
  assert_null(op_in(op, "Z", 9));
  assert_null(op_in(op, "Y", 0));
  op_rename(op, "a", "b");
  assert_string_equal(op_in(op, "Z", 0), "b");
  assert_int_equal(op_role(op), ROLE_FORWARD);
  assert_string_equal(op_text(op), "op 1 `tb_binary`");
  op_set_attr(op, &(Attr){.name = "op_callstack",
                          .type = AT_STRINGS,
                          .n = 1,
                          .ss = (const char *[]){" net.c:12\n"}});
  assert_string_equal(op_text(op), "op 1 `tb_binary` (net.c:12)");
  assert_true(p->edits > edits);
  prog_free(p);
}

/* They get the types of the operator's row, whatever they are set from. */
static void attributes(void **state) {
  (void)state;
  Program *p = toy_chain();
  Op *op = block_insert_op(p->blocks.v[0], 1, "tb_binary");
  op_set_int(op, "axis", 3);
  op_set_int(op, "alpha", 2);
  op_set_int(op, "big", 1);
  op_set_int(op, "flag", 1);
  op_set_float(op, "wide", 0.1);
  op_set_float(op, "other", 0.1);
  op_set_ints(op, "longs", 2, (int64_t[]){3, 4});
  op_set_str(op, "mode", "z'");
  assert_int_equal(op_attr(op, "alpha")->type, AT_FLOAT);
  assert_int_equal(op_attr(op, "big")->type, AT_LONG);
  assert_int_equal(op_attr(op, "flag")->type, AT_BOOL);
  assert_int_equal(op_attr(op, "longs")->type, AT_LONGS);
  assert_true(op_float(op, "alpha") == 2 && op_float(op, "wide") == 0.1 &&
              op_float(op, "other") == (double)0.1f);
  assert_true(op_int(op, "axis") == 3 && op_bool(op, "flag"));
  op_set_int(op, "axis", 4);
  assert_int_equal(op->attrs.n, 8);
  int n;
  const int64_t *v = op_intlist(op, "dims", p->arena, &n); /* the default */
  assert_true(n == 2 && v[0] == 1 && v[1] == 2);
  v = op_intlist(op, "axis", p->arena, &n);
  assert_true(n == 1 && v[0] == 4);
  assert_null(op_attr(op, "must"));
  assert_string_equal(op_str(op, "axis"), "");
  prog_free(p);
}

/* A clone stands by itself. */
static void cloning(void **state) {
  (void)state;
  Program *p = toy_chain();
  Op *op = block_insert_op(p->blocks.v[0], 1, "tb_binary");
  op_set_ins(op, "Z", 2, (const char *const[]){"b", "x"});
  op_set_str(op, "mode", "z'");
  Program *c = prog_clone(p);
  prog_free(p);
  assert_true(c->blocks.n == 1 && c->blocks.v[0]->ops.n == 4 && c->blocks.v[0]->vars.n == 4);
  assert_string_equal(op_str(c->blocks.v[0]->ops.v[1], "mode"), "z'");
  assert_string_equal(op_in(c->blocks.v[0]->ops.v[1], "Z", 1), "x");
  block_remove_op(c->blocks.v[0], 1);
  block_remove_var(c->blocks.v[0], "x");
  assert_null(block_var(c->blocks.v[0], "x"));
  assert_int_equal(c->blocks.v[0]->vars.n, 3);
  block_add_var(c->blocks.v[0], "w_1", VK_TENSOR, DT_INT32, -1, NULL);
  assert_string_equal(prog_unique(c, "w"), "w_0");
  assert_string_equal(prog_unique(c, "w"), "w_2");
  prog_free(c);
}

static void scopes(void **state) {
  (void)state;
  Program *p = prog_new();
  prog_add_block(p, 0, -1);              /* 1: a loop's body */
  Block *grad = prog_add_block(p, 0, 1); /* 2: its gradient */
  Block *inner = prog_add_block(p, 2, -1);
  toy_var(p->blocks.v[0], "outer");
  toy_var(p->blocks.v[1], "body");
  assert_non_null(block_find_var(grad, "outer"));
  assert_non_null(block_find_var(grad, "body"));
  assert_non_null(block_find_var(inner, "body"));
  assert_null(block_find_var(p->blocks.v[1], "none"));
  assert_null(block_find_var(p->blocks.v[0], "body"));
  grad->parent = 3; /* unverified programs may have cycles */
  assert_null(block_find_var(inner, "none"));
  assert_non_null(block_find_var(inner, "outer"));
  prog_free(p);
}

static void pruning(void **state) {
  (void)state;
  Program *p = toy_chain();
  Block *b = p->blocks.v[0];
  toy_unary(b, "x", "unused");
  toy_unary(b, "unused", "end");
  Op *opt = block_add_op(b, "tb_sgd");
  op_add_in(opt, "Param", "w");
  op_add_in(opt, "Grad", "c");
  op_add_out(opt, "ParamOut", "c");
  op_set_int(opt, "op_role", ROLE_OPTIMIZE);
  toy_var(b, "w");
  Program *q = prog_clone(p);
  assert_true(prog_prune(q, 1, (const char *const[]){"a"}, 1, (const char *const[]){"c"}));
  assert_int_equal(q->blocks.v[0]->ops.n, 2);
  assert_string_equal(op_in(q->blocks.v[0]->ops.v[0], "X", 0), "a");
  assert_int_equal(q->blocks.v[0]->vars.n, 3);
  for (int i = 0; i < 3; i++)
    assert_string_equal(q->blocks.v[0]->vars.v[i]->name, ((const char *[]){"a", "b", "c"})[i]);
  assert_true(prog_verify(q));
  assert_false(prog_prune(q, 0, NULL, 1, (const char *const[]){"zz"}));
  expect_error(E_RUN_002, "no variable \"zz\"");
  assert_false(prog_prune(p, 0, NULL, 1, (const char *const[]){"x"}));
  expect_error(E_RUN_002, "nothing computes");
  prog_free(q);
  prog_free(p);
}

/* A pruned loop goes with its blocks; the blocks behind it move up. */
static void pruning_blocks(void **state) {
  (void)state;
  Program *p = toy_chain();
  for (int i = 0; i < 3; i++) prog_add_block(p, i == 1 ? 1 : 0, -1);
  Block *b = p->blocks.v[0];
  toy_var(b, "y");
  toy_var(b, "z");
  toy_var(b, "late");
  toy_unary(b, "x", "late");
  toy_loop(b, 1, "a", "y");
  toy_loop(p->blocks.v[1], 2, "a", "y");
  toy_loop(b, 3, "a", "z");
  toy_unary(p->blocks.v[3], "late", "z");
  toy_unary(p->blocks.v[3], "late", "local");
  assert_true(prog_verify(p));
  assert_true(prog_prune(p, 0, NULL, 1, (const char *const[]){"z"}));
  assert_int_equal(p->blocks.n, 2);
  assert_int_equal(p->blocks.v[1]->idx, 1);
  assert_int_equal(b->ops.n, 3);
  assert_int_equal(op_int(b->ops.v[2], "sub_block"), 1);
  assert_int_equal(p->blocks.v[1]->ops.n, 1);
  assert_int_equal(p->blocks.v[1]->vars.n, 0);
  assert_true(prog_verify(p));
  prog_free(p);
}

static void clone_for_test(void **state) {
  (void)state;
  Program *p = toy_chain();
  Block *b = p->blocks.v[0];
  Op *mode = block_add_op(b, "tb_mode");
  op_add_in(mode, "X", "c");
  op_add_out(mode, "Out", "d");
  op_add_out(mode, "ReserveSpace", "r");
  op_set_bool(mode, "is_test", false);
  toy_var(b, "d");
  toy_var(b, "r");
  Program *t = prog_clone_for_test(p); /* no backward: is_test only */
  assert_int_equal(t->blocks.v[0]->ops.n, 4);
  assert_true(op_bool(t->blocks.v[0]->ops.v[3], "is_test"));
  assert_null(op_out(t->blocks.v[0]->ops.v[3], "ReserveSpace", 0));
  prog_free(t);
  static const int roles[] = {ROLE_BACKWARD | ROLE_LOSS, ROLE_BACKWARD, ROLE_OPTIMIZE, ROLE_LRSCHED,
                              ROLE_LOSS};
  for (int i = 0; i < 5; i++)
    op_set_int(toy_unary(b, "c", prog_unique(p, "g")), "op_role", roles[i]);
  t = prog_clone_for_test(p);
  assert_int_equal(t->blocks.v[0]->ops.n, 5);
  assert_null(block_var(t->blocks.v[0], "g_0"));
  assert_null(block_var(t->blocks.v[0], "r"));
  assert_non_null(block_var(t->blocks.v[0], "g_4"));
  assert_false(op_bool(mode, "is_test"));
  prog_free(t);
  prog_free(p);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(signatures),     cmocka_unit_test(rows),
      cmocka_unit_test(bad_signatures), cmocka_unit_test(coercions),
      cmocka_unit_test(editing),        cmocka_unit_test(attributes),
      cmocka_unit_test(cloning),        cmocka_unit_test(scopes),
      cmocka_unit_test(pruning),        cmocka_unit_test(pruning_blocks),
      cmocka_unit_test(clone_for_test)};
  return cmocka_run_group_tests_name("program", tests, toy_register, NULL);
}
