/* Programs to write and read back, and damage to what is written: see file_case.h. */
#include "file_case.h"
#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static void set(Op *op, Attr a) { op_set_attr(op, &a); }

static void add_every_attribute(Op *op) {
  static int64_t is[] = {0, -1, INT32_MAX, INT32_MIN}, ls[] = {INT64_MAX, INT64_MIN}, bs[] = {1, 0};
  static double fs[] = {0.1f, -0.0, INFINITY, -INFINITY, NAN, 1e-45f, 16777216.0},
                ds[] = {0.1, 5e-324, 1.7976931348623157e308, -0.0, 3};
  static const char *ss[] = {"", "a 'b' \"c\" \\ \n\t\r \x01\x7f \xff\xfe \xc3\xa9 %n%s",
                             "#no comment"};
  static const char *vs[] = {"x", "odd name!"};
  static Scalar sc[] = {{1, 1, 0, 0}, {2, INT64_MIN, 0, 0}, {3, 0, 0.1, 0}, {4, 0, -1.5, INFINITY}};
  set(op, (Attr){.name = "int", .type = AT_INT, .i = -7});
  set(op, (Attr){.name = "float", .type = AT_FLOAT, .f = 0.1f});
  set(op, (Attr){.name = "string", .type = AT_STRING, .s = ss[1]});
  set(op, (Attr){.name = "ints", .type = AT_INTS, .n = 4, .is = is});
  set(op, (Attr){.name = "floats", .type = AT_FLOATS, .n = 7, .fs = fs});
  set(op, (Attr){.name = "strings", .type = AT_STRINGS, .n = 3, .ss = ss});
  set(op, (Attr){.name = "bool", .type = AT_BOOL, .i = 1});
  set(op, (Attr){.name = "bools", .type = AT_BOOLS, .n = 2, .is = bs});
  set(op, (Attr){.name = "block", .type = AT_BLOCK, .i = 1});
  set(op, (Attr){.name = "long", .type = AT_LONG, .i = INT64_MIN});
  set(op, (Attr){.name = "blocks", .type = AT_BLOCKS, .n = 1, .is = (int64_t[]){2}});
  set(op, (Attr){.name = "longs", .type = AT_LONGS, .n = 2, .is = ls});
  set(op, (Attr){.name = "float64s", .type = AT_FLOAT64S, .n = 5, .fs = ds});
  set(op, (Attr){.name = "var", .type = AT_VAR, .s = "x"});
  set(op, (Attr){.name = "vars", .type = AT_VARS, .n = 2, .ss = vs});
  set(op, (Attr){.name = "float64", .type = AT_FLOAT64, .f = -1e300});
  set(op, (Attr){.name = "scalar", .type = AT_SCALAR, .n = 1, .scalars = sc + 3});
  set(op, (Attr){.name = "scalars", .type = AT_SCALARS, .n = 4, .scalars = sc});
  for (int t = 0; t < AT_N; t++) {
    char name[32];
    snprintf(name, sizeof name, "empty %d", t);
    if (attr_info[t].list) set(op, (Attr){.name = name, .type = (AttrType)t, .is = is});
  }
}

static void add_vars(Block *b) {
  block_add_var(b, "x", VK_TENSOR, DT_FLOAT32, 2, (int64_t[]){-1, 784})->need_check_feed = true;
  Var *w = block_add_var(b, "fc_0.w_0@GRAD@RENAME@block0@0", VK_TENSOR, DT_BFLOAT16, 0, NULL);
  w->persistable = w->is_parameter = true;
  block_add_var(b, "state", VK_TENSOR, DT_INT64, 1, (int64_t[]){0})->persistable = true;
  block_add_var(b, "odd name!", VK_TENSOR, DT_BOOL, 9, (int64_t[]){1, 2, 1, 1, 1, 1, 1, 1, -1})
      ->lod_level = 2;
  block_add_var(b, "var", VK_SELECTED_ROWS, DT_FLOAT64, 1, (int64_t[]){3})->stop_gradient = true;
  block_add_var(b, "9", VK_ARRAY, DT_FLOAT16, 1, (int64_t[]){-1})->is_parameter = true;
  block_add_var(b, "\xff\x1b[31m", VK_RAW, DT_NONE, 0, NULL);
  block_add_var(b, "feed", VK_FEED, DT_NONE, 0, NULL)->persistable = true;
  Var *v = block_add_var(b, "complex", VK_TENSOR, DT_NONE, 1, (int64_t[]){4});
  v->paddle_dtype = 23;
  Attr a[] = {{.name = "s", .type = AT_STRING, .s = "t"},
              {.name = "i", .type = AT_INT, .i = -1},
              {.name = "is", .type = AT_INTS, .n = 1, .is = (int64_t[]){5}}};
  for (int i = 0; i < 3; i++) vec_add(b->prog->arena, &v->attrs, a[i]);
  v->attrs.v[2].is = arena_dup(b->prog->arena, a[2].is, 8);
}

Program *program_of_all(void) {
  Program *p = prog_new();
  p->version = 2006002;
  vec_add(p->arena, &p->op_versions, ((OpVersion){"conv2d", 1}));
  vec_add(p->arena, &p->op_versions, ((OpVersion){"affine_grid", -3}));
  Block *b = p->blocks.v[0];
  prog_add_block(p, 0, -1);
  prog_add_block(p, 1, 1);
  add_vars(b);
  Op *op = block_add_op(b, "not a known operator");
  add_every_attribute(op);
  op_set_ins(op, "X", 2, (const char *[]){"x", "odd name!"});
  op_set_ins(op, "Empty", 0, NULL);
  op_set_outs(op, "Out", 1, (const char *[]){"x"});
  op_set_outs(op, "odd slot=", 3, (const char *[]){"@EMPTY@", "var", "9"});
  op->is_target = true;
  block_add_op(b, "param");
  op = block_add_op(b, "scale");
  op_set_outs(op, "Out", 1, (const char *[]){"param"});
  set(op, (Attr){.name = "op_callstack",
                 .type = AT_STRINGS,
                 .n = 1,
                 .ss = (const char *[]){"net.c:12"}});
  op = block_add_op(p->blocks.v[2], "split");
  op_set_outs(op, "Out", 2, (const char *[]){"a", "b"});
  op = block_add_op(p->blocks.v[2], "none");
  op_set_outs(op, "Out", 0, NULL);
  set(op,
      (Attr){.name = "op_callstack", .type = AT_STRINGS, .n = 2, .ss = (const char *[]){"a", "b"}});
  return p;
}

Program *program_of_net(void) {
  static const char text[] = "program version 2006002\n"
                             "block 0 {\n"
                             "  var x float32 [-1, 4] feed stop_gradient\n"
                             "  param w float32 [4, 2]\n"
                             "  var h float32 [-1, 2]\n"
                             "  var y float32 [-1, 2]\n"
                             "  h = mul(X=x, Y=w)\n"
                             "  y = relu(X=h)\n"
                             "}\n";
  Program *p = prog_parse(text, sizeof text - 1, "network");
  assert_non_null(p);
  return p;
}

void assert_same(const Program *a, const Program *b) {
  Str why;
  str_init(&why, a->arena);
  if (!prog_equal(a, b, &why)) fail_msg("%s", why.s);
  assert_int_equal(why.n, 0);
}

void damage(const uint8_t *good, size_t n, Reads *reads) {
  for (size_t k = 0; k < n; k++) {
    uint8_t *cut = malloc(k + !k);
    memcpy(cut, good, k);
    bool ok = reads(cut, k);
    assert_true(ok || err_any());
    err_clear();
    free(cut);
  }
  uint8_t *copy = malloc(n);
  for (size_t bit = 0; bit < 8 * n; bit++) {
    memcpy(copy, good, n);
    copy[bit / 8] ^= (uint8_t)(1u << bit % 8);
    bool ok = reads(copy, n);
    assert_true(ok || err_any());
    err_clear();
  }
  free(copy);
}
