/* Program files: round trips through bytes, exact bytes, every cut and bit flip of small files, wrong formats, loading and
 * saving, refused allocations, listings. */
#include "file_case.h"
#include <errno.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

/* ---- bytes ---- */

static void test_bytes_round_trip(void **state) {
  (void)state;
  Program *p = program_of_all();
  uint8_t *one, *two;
  size_t n1, n2;
  assert_true(prog_encode(p, p->arena, &one, &n1));
  Program *q = prog_decode(one, n1, "bytes");
  if (!q) err_print(stderr, false);
  assert_non_null(q);
  assert_same(p, q);
  assert_true(prog_encode(q, p->arena, &two, &n2));
  assert_int_equal(n1, n2);
  assert_memory_equal(one, two, n1);
  prog_free(p);
  prog_free(q);
}

/* PaddlePaddle multiplies unknown dimensions. A value that is only named, such as the statistics of an instance_norm whose
 * outputs an exported model leaves out, may have such a one too; what a run needs may not. */
static void test_multiplied_dims(void **state) {
  (void)state;
  static const struct {
    const char *name;
    bool ok;
  } rows[] = {{"unused", true}, {"written", true}, {"only_read", false}, {"parameter", false}};
  for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
    static const char text[] = "program version 2006002\n"
                               "block 0 parent -1 {\n"
                               "  var unused float32 [-1]\n"
                               "  var written float32 [-1]\n"
                               "  var only_read float32 [-1]\n"
                               "  var parameter float32 [-1] persistable\n\n"
                               "  Out=written = relu(X=only_read)\n"
                               "}\n";
    Program *p = prog_parse(text, sizeof text - 1, NULL);
    assert_non_null(p);
    block_find_var(p->blocks.v[0], rows[i].name)->dims[0] = -4;
    uint8_t *bytes;
    size_t n;
    assert_true(prog_encode(p, p->arena, &bytes, &n));
    Program *q = prog_decode(bytes, n, "bytes");
    assert_int_equal(q != NULL, rows[i].ok);
    if (q)
      assert_int_equal(block_find_var(q->blocks.v[0], rows[i].name)->dims[0], -1);
    else
      expect_error(E_PRO_002, "dimension 0 is -4");
    prog_free(p);
    prog_free(q);
  }
}

/* Programs with control flow name gradients that they do not declare. */
static void test_undeclared_gradients(void **state) {
  (void)state;
  static const char text[] = "program version 1008005\n"
                             "block 0 parent -1 {\n"
                             "  var x float32 [-1, 3]\n"
                             "  var y float32 [-1, 3]\n\n"
                             "  Out=y = relu(X=x)\n"
                             "  X@GRAD=x@GRAD = relu_grad(Out=y, Out@GRAD=y@GRAD)\n"
                             "}\n"
                             "block 1 parent 0 {\n"
                             "  Out=x@GRAD@RENAME@0 = assign(X=y@GRAD)\n"
                             "  Out=nothing@GRAD = assign(X=x)\n"
                             "}\n";
  Program *p = prog_parse(text, sizeof text - 1, NULL);
  assert_non_null(p);
  uint8_t *bytes;
  size_t n;
  assert_true(prog_encode(p, p->arena, &bytes, &n));
  Program *q = prog_decode(bytes, n, "bytes");
  assert_non_null(q);
  const Block *outer = q->blocks.v[0], *inner = q->blocks.v[1];
  const Var *written = block_var(outer, "x@GRAD"), *handed = block_var(inner, "y@GRAD");
  assert_non_null(written);
  assert_int_equal(written->dtype, DT_FLOAT32);
  assert_int_equal(written->dims[1], 3);
  assert_string_equal(op_in(outer->ops.v[1], "Out@GRAD", 0) ? "a gradient" : "none", "none");
  assert_non_null(handed);
  assert_int_equal(handed->rank, 2);
  assert_non_null(block_var(inner, "x@GRAD@RENAME@0"));
  assert_null(block_find_var(inner, "nothing@GRAD"));
  prog_free(p);
  prog_free(q);
}

/* Written by hand from the schema: what any reader and writer of the format must agree on. */
static void test_exact_bytes(void **state) {
  (void)state;
  static const uint8_t golden[] = {
      0x0a, 62,                                                      /* blocks[0] */
      0x08, 0,                                                       /* idx */
      0x10, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, /* parent_idx -1 */
      0x1a, 17,                                                      /* vars[0] */
      0x0a, 1,    'x',  0x12, 10,   0x08, 7,                         /* name, type: LOD_TENSOR */
      0x1a, 6,    0x0a, 4,    0x08, 5,    0x10, 0x40,                /* lod_tensor: FP32 [64] */
      0x18, 1,                                                       /* persistable */
      0x22, 28,                                                      /* ops[0] */
      0x0a, 6,    0x0a, 1,    'X',  0x12, 1,    'x',                 /* inputs: X = x */
      0x12, 3,    0x0a, 1,    'Y',                                   /* outputs: Y, empty */
      0x1a, 1,    'f',                                               /* type */
      0x22, 10,   0x0a, 1,    'a',  0x10, 3,    0x30, 7,    0x30, 0x80,
      2,                                   /* attrs: a = INTS 7, 256 */
      0x22, 4,    0x08, 0xf2, 0xb7, 0x7a}; /* version 2006002 */
  static const char text[] = "program version 2006002\n"
                             "block 0 parent -1 {\n"
                             "  var x float32 [64] persistable\n\n"
                             "  Y=[] = f(X=x) {a=[7, 256]}\n"
                             "}\n";
  Program *p = prog_decode(golden, sizeof golden, "golden");
  if (!p) err_print(stderr, false);
  assert_non_null(p);
  Str out;
  str_init(&out, p->arena);
  prog_print(p, &out);
  assert_string_equal(out.s, text);
  uint8_t *bytes;
  size_t n;
  assert_true(prog_encode(p, p->arena, &bytes, &n));
  assert_int_equal(n, sizeof golden);
  assert_memory_equal(bytes, golden, n);
  prog_free(p);
}

/* ---- damage ---- */

static bool reads_program(const uint8_t *bytes, size_t n) {
  Program *p = prog_decode(bytes, n, "damaged.pdmodel");
  if (p) prog_verify(p);
  prog_free(p);
  return p;
}

static bool reads_text(const uint8_t *bytes, size_t n) {
  Program *p = prog_parse((const char *)bytes, n, "damaged.kl");
  if (p) prog_verify(p);
  prog_free(p);
  return p;
}

static void test_damage(void **state) {
  (void)state;
  Program *p = program_of_all(), *q = program_of_net();
  uint8_t *bytes;
  size_t n;
  assert_true(prog_encode(p, p->arena, &bytes, &n));
  damage(bytes, n, reads_program);
  assert_true(prog_encode(q, p->arena, &bytes, &n));
  damage(bytes, n, reads_program);
  Str text;
  str_init(&text, p->arena);
  prog_print(p, &text);
  damage((const uint8_t *)text.s, text.n, reads_text);
  prog_free(p);
  prog_free(q);
}

static void test_wrong_formats(void **state) {
  (void)state;
  static const struct {
    const char *bytes;
    size_t n;
    const char *part;
  } rows[] = {{"PK\3\4....", 8, "zip archive"},
              {"\x80\2}q", 4, "Python pickle"},
              {"\x80\4\x95", 3, "Python pickle"},
              {"\x1f\x8b\x08\0", 4, "gzip"},
              {"\x93NUMPY\1\0", 8, "NumPy"},
              {"\x08\x07\x12\x07pytorch", 11, "ONNX"},
              {"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\4\0\0\0\x08\5\x10\x40", 24, "parameter file"},
              {"{\"base_code\": 1}", 16, "JSON"},
              {"hello, world", 12, "text"},
              {"", 0, "empty"}};
  for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
    assert_null(prog_decode((const uint8_t *)rows[i].bytes, rows[i].n, "net.pdmodel"));
    expect_error(E_PRO_001, rows[i].part);
  }
}

static void test_differences(void **state) {
  (void)state;
  Program *p = program_of_net(), *q = program_of_net();
  struct {
    const char *part;
  } rows[] = {{"version 2006002 and 1"},
              {"only one is stop_gradient (variable \"x\") in block 0"},
              {"attribute \"k\" is 1 and 2 (operator 1, \"relu\")"},
              {"variable \"z\" is only in the second program"}};
  for (int i = 0; i < 4; i++) {
    Block *b = q->blocks.v[0];
    Str why;
    str_init(&why, p->arena);
    assert_same(p, q);
    q->version = i == 0 ? 1 : p->version;
    block_var(b, "x")->stop_gradient = i != 1;
    if (i == 2) op_set_int(p->blocks.v[0]->ops.v[1], "k", 1), op_set_int(b->ops.v[1], "k", 2);
    if (i == 3) block_add_var(b, "z", VK_TENSOR, DT_NONE, 0, NULL);
    assert_false(prog_equal(p, q, &why));
    if (!strstr(why.s, rows[i].part)) fail_msg("%s", why.s);
    if (i == 2) op_set_int(b->ops.v[1], "k", 1);
    q->version = p->version;
    block_var(b, "x")->stop_gradient = true;
  }
  prog_free(p);
  prog_free(q);
}

/* ---- loading and saving ---- */

static void test_save_and_load(void **state) {
  (void)state;
  static const char *const names[] = {"main.kl", "net.pdmodel", "__model__"};
  const char *folder = scratch_folder();
  Program *p = program_of_net();
  char path[200];
  for (size_t i = 0; i < 3; i++) {
    snprintf(path, sizeof path, "%s/%s", folder, names[i]);
    assert_true(prog_save(p, path));
    Program *q = prog_load(path), *r = prog_load(folder);
    assert_non_null(q);
    assert_non_null(r);
    assert_string_equal(q->file, path);
    assert_same(p, q);
    assert_same(p, r);
    prog_free(q);
    prog_free(r);
    if (i != 1) remove(path);
  }
  snprintf(path, sizeof path, "%s/other.pdmodel", folder);
  assert_true(prog_save(p, path));
  assert_null(prog_load(folder));
  expect_error(E_IO_001, "holds 2 files *.pdmodel");
  scratch_remove(folder);
  assert_null(prog_load(folder));
  expect_error(E_IO_001, "cannot open");
  assert_false(prog_save(p, path));
  expect_error(E_IO_002, "");
  prog_free(p);
}

static void test_unknown_operators(void **state) {
  (void)state;
  const char *folder = scratch_folder();
  Program *p = program_of_net();
  char path[200];
  snprintf(path, sizeof path, "%s/a.kl", folder);
  op_set_outs(block_add_op(p->blocks.v[0], "no_such_operator"), "Out", 1, (const char *[]){"y"});
  assert_true(prog_save(p, path));
  assert_null(prog_load(path));
  expect_error(E_OPR_001, "no_such_operator");
  Program *q = prog_load_any(path);
  assert_non_null(q);
  assert_same(p, q);
  prog_free(p);
  prog_free(q);
  scratch_remove(folder);
}

static void test_int_overflow(void **state) {
  (void)state;
  Program *p = program_of_net();
  uint8_t *bytes;
  size_t n;
  op_set_attr(p->blocks.v[0]->ops.v[1],
              &(Attr){.name = "k", .type = AT_INT, .i = (int64_t)1 << 40});
  assert_false(prog_encode(p, p->arena, &bytes, &n));
  expect_error(E_PRO_002, "1099511627776, which its type INT cannot");
  prog_free(p);
}

static Program *read_guarded(bool text, const void *bytes, size_t n) {
  MemGuard g;
  if (MEM_GUARD(g)) return NULL;
  Program *p = text ? prog_parse(bytes, n, "f") : prog_decode(bytes, n, "f");
  mem_unguard(&g);
  return p;
}

static void test_refused_memory(void **state) {
  (void)state;
  Program *p = program_of_all();
  uint8_t *bytes;
  size_t n;
  Str text;
  str_init(&text, p->arena);
  prog_print(p, &text);
  assert_true(prog_encode(p, p->arena, &bytes, &n));
  for (int form = 0; form < 2; form++) {
    bool refused = true;
    for (int i = 1; refused; i++) {
      fail_alloc(i);
      Program *q = form ? read_guarded(true, text.s, text.n) : read_guarded(false, bytes, n);
      refused = fail_alloc_done();
      fail_alloc(0);
      assert_int_equal(refused, q == NULL);
      if (refused) expect_error(E_MEM_001, "");
      prog_free(q);
    }
  }
  prog_free(p);
}

static void test_listings(void **state) {
  (void)state;
  Program *p = program_of_all();
  Str json, dot;
  str_init(&json, p->arena);
  str_init(&dot, p->arena);
  prog_json(p, &json);
  prog_dot(p, &dot);
  assert_non_null(
      strstr(json.s, "\"name\": \"\\ufffd\\u001b[31m\", \"kind\": \"raw\", \"dtype\": null"));
  assert_non_null(
      strstr(json.s, "\"floats\": {\"type\": \"FLOATS\", \"value\": [0.1, -0.0, \"inf\""));
  assert_non_null(strstr(dot.s, "b0o0 -> b2entry [style=dashed]"));
  assert_int_equal(dot.s[dot.n - 2], '}');
  prog_free(p);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_bytes_round_trip),
                                     cmocka_unit_test(test_multiplied_dims),
                                     cmocka_unit_test(test_undeclared_gradients),
                                     cmocka_unit_test(test_exact_bytes),
                                     cmocka_unit_test(test_damage),
                                     cmocka_unit_test(test_wrong_formats),
                                     cmocka_unit_test(test_differences),
                                     cmocka_unit_test(test_save_and_load),
                                     cmocka_unit_test(test_unknown_operators),
                                     cmocka_unit_test(test_int_overflow),
                                     cmocka_unit_test(test_refused_memory),
                                     cmocka_unit_test(test_listings)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
