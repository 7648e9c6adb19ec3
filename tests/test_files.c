/* Program and parameter files: round trips through both forms, exact bytes, every cut and bit flip of a small file, wrong
 * formats, places in messages, loading and saving, refused allocations. */
#include "util.h"
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

/* ---- programs to work on ---- */

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

/* Every feature of the format; not a valid network. */
static Program *everything(void) {
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

/* A network that the verifier accepts. */
static Program *network(void) {
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

static void assert_same(const Program *a, const Program *b) {
  Str why;
  str_init(&why, a->arena);
  if (!prog_equal(a, b, &why)) fail_msg("%s", why.s);
  assert_int_equal(why.n, 0);
}

/* ---- round trips ---- */

static void test_text_round_trip(void **state) {
  (void)state;
  Program *p = everything();
  Str text, again;
  str_init(&text, p->arena);
  str_init(&again, p->arena);
  prog_print(p, &text);
  Program *q = prog_parse(text.s, text.n, "text");
  if (!q) err_print(stderr, false);
  assert_non_null(q);
  assert_same(p, q);
  prog_print(q, &again);
  assert_string_equal(text.s, again.s);
  prog_free(p);
  prog_free(q);
}

static void test_bytes_round_trip(void **state) {
  (void)state;
  Program *p = everything();
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

static void test_seed_and_layout(void **state) {
  (void)state;
  static const char odd[] = "# a comment\n\n  program version 1 seed 42 # here too\r\n"
                            "op_versions a 1, b 2\n"
                            "block 0 parent -1\t{\n"
                            "  param w float32 []\n"
                            "  a = f(X=[w,\n   w], # inside brackets lines go on\n Y=w,)\n"
                            "  a, XShape=b = g() { k = [1,\n 2,], }\n"
                            "  h()\n"
                            "}\n# the end";
  static const char canonical[] = "program version 1 seed 42\n"
                                  "op_versions a 1, b 2\n"
                                  "block 0 parent -1 {\n"
                                  "  param w float32 []\n\n"
                                  "  a = f(X=[w, w], Y=w)\n"
                                  "  Out=a, XShape=b = g() {k=[1, 2]}\n"
                                  "  h()\n"
                                  "}\n";
  Program *p = prog_parse(odd, sizeof odd - 1, NULL);
  if (!p) err_print(stderr, false);
  assert_non_null(p);
  assert_int_equal(p->seed, 42);
  Str text;
  str_init(&text, p->arena);
  prog_print(p, &text);
  assert_string_equal(text.s, canonical);
  prog_free(p);
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

typedef bool Reads(const uint8_t *bytes, size_t n);

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

static bool reads_params(const uint8_t *bytes, size_t n) {
  Arena *a = arena_new();
  Tensor t[2];
  bool ok = params_decode(bytes, n, "damaged.pdiparams", 2, NULL, a, t, NULL);
  arena_free(a);
  return ok;
}

/* Every prefix and every single-bit change ends in a value or in one coded error. Copies are exact in size, so that a
 * read outside of them is seen by AddressSanitizer. */
static int damage(const uint8_t *good, size_t n, Reads *reads) {
  int accepted = 0;
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
    accepted += ok;
    err_clear();
  }
  free(copy);
  return accepted;
}

static void test_damage(void **state) {
  (void)state;
  Program *p = everything(), *q = network();
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

/* ---- parameters ---- */

static void make_params(Arena *a, Tensor *t, Str *out) {
  assert_true(tensor_make(&t[0], a, DT_FLOAT32, 1, (int64_t[]){64}));
  assert_true(tensor_make(&t[1], a, DT_INT64, 0, NULL));
  for (int i = 0; i < 64; i++) ((float *)t[0].data)[i] = (float)i;
  *(int64_t *)t[1].data = -5;
  str_init(out, a);
  assert_true(params_encode(out, 2, (const Tensor *[]){&t[0], &t[1]}));
}

static void test_param_bytes(void **state) {
  (void)state;
  static const uint8_t head[24] = {[16] = 4, [20] = 0x08, 0x05, 0x10, 0x40};
  Arena *a = arena_new();
  Tensor t[2], back[2];
  Str out;
  make_params(a, t, &out);
  assert_int_equal(out.n, 24 + 256 + 22 + 8);
  assert_memory_equal(out.s, head, 24);
  assert_memory_equal(out.s + 24, t[0].data, 256);
  assert_true(params_decode((uint8_t *)out.s, out.n, "f", 2, NULL, a, back, NULL));
  assert_memory_equal(back[0].data, t[0].data, 256);
  assert_int_equal(back[1].rank, 0);
  assert_int_equal(tensor_get(&back[1], 0), -5);
  damage((uint8_t *)out.s, out.n, reads_params);
  arena_free(a);
}

/* Large data is aligned in the file by descriptions that are padded. */
static void test_param_alignment(void **state) {
  (void)state;
  Arena *a = arena_new();
  Str out;
  str_init(&out, a);
  str_add(&out, "before"); /* what counts is the distance from the first entry */
  Tensor t[80], back[80];
  const Tensor *p[80];
  for (int i = 0; i < 80; i++) { /* sizes that leave every remainder */
    int64_t dims[] = {1, i % 2 ? PARAMS_LARGE + i : 1 + i};
    assert_true(tensor_make(&t[i], a, DT_UINT8, 2, dims));
    memset(t[i].data, i, tensor_bytes(&t[i]));
    p[i] = &t[i];
  }
  assert_true(params_encode(&out, 80, p));
  uint8_t *bytes = (uint8_t *)out.s + 6;
  assert_true(params_view(bytes, out.n - 6, "f", 80, NULL, back, NULL));
  for (int i = 0; i < 80; i++) {
    assert_memory_equal(back[i].data, t[i].data, tensor_bytes(&t[i]));
    if (i % 2) assert_int_equal(((uint8_t *)back[i].data - bytes) % PARAMS_ALIGN, 0);
  }
  arena_free(a);
}

/* Quantised weights in the place of others, scales with a dimension more: PaddlePaddle's tools leave the variables as they were. */
static void test_quantised_params(void **state) {
  (void)state;
  Program *p = network();
  Arena *a = arena_new();
  Var **vars;
  Tensor t, back;
  const struct {
    DType type;
    int rank;
    int64_t dims[3];
    bool fits;
  } CASES[] = {{DT_INT8, 2, {4, 2}, true},        {DT_INT16, 2, {4, 2}, true},
               {DT_FLOAT32, 3, {1, 4, 2}, true},  {DT_INT32, 2, {4, 2}, false},
               {DT_FLOAT32, 3, {2, 4, 1}, false}, {DT_INT8, 2, {2, 4}, false}};
  assert_int_equal(params_list(p, a, &vars), 1);
  for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
    Str out;
    str_init(&out, a);
    assert_true(tensor_make(&t, a, CASES[i].type, CASES[i].rank, CASES[i].dims));
    memset(t.data, 3, tensor_bytes(&t));
    assert_true(params_encode(&out, 1, &(const Tensor *){&t}));
    bool fits = params_decode((uint8_t *)out.s, out.n, "f", 1, vars, a, &back, NULL);
    assert_int_equal(fits, CASES[i].fits);
    if (!fits) expect_error(E_PAR_002, "float32 [4, 2] in the program");
    if (fits) assert_int_equal(back.dtype, CASES[i].type);
  }
  arena_free(a);
  prog_free(p);
}

static void test_param_errors(void **state) {
  (void)state;
  Program *p = network();
  Arena *a = arena_new();
  Var **vars, *w;
  Tensor t[2], back[2];
  Str out;
  assert_int_equal(params_list(p, a, &vars), 1);
  w = vars[0];
  assert_string_equal(w->name, "w");
  make_params(a, t, &out);
  const uint8_t *bytes = (uint8_t *)out.s;
  assert_false(params_decode(bytes, out.n, "f.pdiparams", 1, vars, a, back, NULL));
  expect_error(E_PAR_002,
               "\"w\" is float32 [64] in the parameter file, float32 [4, 2] in the program");
  assert_false(params_decode(bytes, 30, "f.pdiparams", 1, &(Var *){NULL}, a, back, NULL));
  expect_error(E_PAR_004, "f.pdiparams at byte 24: 256 bytes needed (float32 [64]), 6 left");
  assert_false(params_decode(bytes, out.n, "f.pdiparams", 1, NULL, a, back, NULL));
  expect_error(E_PAR_003, "30 bytes are left over after 1 tensors");
  assert_false(params_decode(bytes, out.n, "f.pdiparams", 3, NULL, a, (Tensor[3]){0}, NULL));
  expect_error(E_PAR_004, "2 of 3 tensors read");
  assert_false(params_decode((const uint8_t *)"\x80\4\x95more and more", 16, "f.pdparams", 1, NULL,
                             a, back, NULL));
  expect_error(E_PAR_001, "Python pickle");
  w->dtype = DT_INT64;
  w->rank = 1;
  w->dims[0] = 1;
  assert_true(params_decode(bytes + 280, out.n - 280, "f", 1, vars, a, back, NULL));
  arena_free(a);
  prog_free(p);
}

static void test_param_levels(void **state) {
  (void)state;
  static const struct {
    uint64_t level[4]; /* bytes, offsets */
    ErrCode code;
    const char *part;
  } rows[] = {{{24, 0, 2, 2}, E_NONE, ""},
              {{24, 1, 2, 3}, E_PAR_001, "do not grow from 0"},
              {{24, 0, 3, 2}, E_PAR_001, "(2 after 3)"},
              {{24, 0, 3, 65}, E_PAR_001, "end at 65, behind its 64 rows"},
              {{24, 0, 3, UINT64_MAX}, E_PAR_001, "do not grow from 0"},
              {{23, 0, 3, 2}, E_PAR_001, "23 bytes"},
              {{UINT64_MAX - 7, 0, 3, 2}, E_PAR_004, "18,446,744,073,709,551,608 bytes needed"}};
  Arena *a = arena_new();
  Tensor t[2], back;
  Str out, file;
  make_params(a, t, &out);
  for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
    uint64_t levels = 1;
    str_init(&file, a);
    str_addn(&file, out.s, 4);
    str_addn(&file, (const char *)&levels, 8);
    str_addn(&file, (const char *)rows[i].level, 32);
    str_addn(&file, out.s + 12, 280 - 12);
    bool ok = params_decode((uint8_t *)file.s, file.n, "f", 1, NULL, a, &back, NULL);
    assert_int_equal(ok, rows[i].code == E_NONE);
    if (!ok) expect_error(rows[i].code, rows[i].part);
  }
  arena_free(a);
}

/* Levels are kept, and written as they were. */
static void test_param_nested_levels(void **state) {
  (void)state;
  static const int64_t outer[] = {0, 2, 3}, inner[] = {0, 1, 5, 64};
  Arena *a = arena_new();
  Tensor t[2], back, level[2];
  Str out, file;
  make_params(a, t, &out);
  assert_true(tensor_make(&level[0], a, DT_INT64, 1, (int64_t[]){3}));
  assert_true(tensor_make(&level[1], a, DT_INT64, 1, (int64_t[]){4}));
  memcpy(level[0].data, outer, sizeof outer);
  memcpy(level[1].data, inner, sizeof inner);
  str_init(&file, a);
  assert_true(params_head(&file, 0, &t[0], 2, (const Tensor *[]){&level[0], &level[1]}));
  str_addn(&file, t[0].data, 256);
  ParamLevels kept = {.arena = a};
  assert_true(params_decode((uint8_t *)file.s, file.n, "f", 1, NULL, a, &back, &kept));
  assert_int_equal(kept.all.n, 2);
  for (int i = 0; i < 2; i++) {
    const ParamLevel *l = &kept.all.v[i];
    assert_int_equal(l->entry, 0);
    assert_int_equal(l->depth, 1 - i);
    assert_int_equal(tensor_numel(&l->offsets), tensor_numel(&level[i]));
    assert_memory_equal(l->offsets.data, level[i].data, tensor_bytes(&level[i]));
  }
  ((int64_t *)level[0].data)[2] = 4; /* of three sequences */
  str_init(&file, a);
  assert_true(params_head(&file, 0, &t[0], 2, (const Tensor *[]){&level[0], &level[1]}));
  str_addn(&file, t[0].data, 256);
  assert_false(params_decode((uint8_t *)file.s, file.n, "f", 1, NULL, a, &back, NULL));
  expect_error(E_PAR_001, "end at 4, behind its 3 sequences");
  const Tensor *many[PARAMS_LEVELS + 1];
  for (int i = 0; i <= PARAMS_LEVELS; i++) many[i] = &level[1];
  str_init(&file, a);
  assert_true(params_head(&file, 0, &t[0], PARAMS_LEVELS + 1, many));
  str_addn(&file, t[0].data, 256);
  assert_false(params_decode((uint8_t *)file.s, file.n, "f", 1, NULL, a, &back, NULL));
  expect_error(E_PAR_001, "17 LoD levels; at most 16");
  arena_free(a);
}

/* ---- messages ---- */

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

static void test_text_errors(void **state) {
  (void)state;
#define HEAD "program version 1\nblock 0 {\n"
  static const struct {
    const char *text, *part;
    ErrCode code;
  } rows[] = {
      {"", "expected \"program version N\" at the start, found the end", E_TXT_001},
      {"program version 1\n", "expected \"block 0 {\"", E_TXT_001},
      {"program version 1.5\n", "line 1, column 17", E_TXT_001},
      {HEAD "  var\n}", "line 3, column 6", E_TXT_001},
      {HEAD "  var x float33 [1]\n}", "found \"float33\"", E_TXT_001},
      {HEAD "  var x float32 [1\n}", "expected \",\", found \"}\"", E_TXT_001},
      {HEAD "  var x float32 [-2]\n}", "a dimension (-1 if unknown)", E_TXT_001},
      {HEAD "  var x float32 [99999999999, 99999999999]\n}", "too large", E_MEM_002},
      {HEAD "  var x\n  var x\n}", "declared twice", E_PRO_002},
      {HEAD "  y = f(X=x, X=x)\n}", "slot \"X\" is there twice", E_PRO_002},
      {HEAD "  y = f(X=x) {a=1, a=2}\n}", "attribute \"a\" is there twice", E_PRO_002},
      {HEAD "  y = f(X=x) {a=}\n}", "expected a value", E_TXT_001},
      {HEAD "  y = f(X=x) {a=[1, 'x']}\n}", "line 3, column 21", E_TXT_001},
      {HEAD "  y = f(X=x) {a=1e400}\n}", "expected a value", E_TXT_001},
      {HEAD "  y = f(X=x) {a=99999999999999999999}\n}", "expected a value", E_TXT_001},
      {HEAD "  y = f(X=x) {a='\\x00'}\n}", "expected a value", E_TXT_001},
      {HEAD "  y = f(X=x) {a=block 0}\n}", "names block 0", E_PRO_002},
      {HEAD "  y = f(X=x) garbage\n}", "expected the end of the line, found \"garbage\"",
       E_TXT_001},
      {HEAD "  y = f(X=x", "found the end of the text", E_TXT_001},
      {HEAD "  y, z\n}", "expected \",\", \"=\" or \"(\"", E_TXT_001},
      {HEAD "}\nblock 2 {\n}\n", "position 1 says it has index 2", E_PRO_002},
      {HEAD "}\nblock 1 parent 1 {\n}\n", "the parent of block 1 is 1", E_PRO_002},
      {HEAD "}\nblock 1 forward 7 {\n}\n", "the forward block of block 1 is 7", E_PRO_002},
      {HEAD "}\nop_versions a 1\n", "expected \"block\" or the end", E_TXT_001},
  };
  for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
    Program *p = prog_parse(rows[i].text, strlen(rows[i].text), "net.kl");
    if (p) fail_msg("accepted: %s", rows[i].text);
    expect_error(rows[i].code, rows[i].part);
  }
  assert_null(prog_parse("program\0", 8, "net.kl"));
  expect_error(E_TXT_001, "NUL");
}

static void test_literals(void **state) {
  (void)state;
  static const struct {
    const char *text, *printed; /* NULL: refused */
    AttrType type;
  } rows[] = {{"1", "1", AT_INT},
              {"-1L", "-1L", AT_LONG},
              {"1.0", "1.0", AT_FLOAT},
              {"1.", "1.0", AT_FLOAT},
              {"0.1", "0.1", AT_FLOAT},
              {"16777217.0", "16777216.0", AT_FLOAT},
              {"1e-5", "1e-05", AT_FLOAT},
              {"0.1D", "0.1D", AT_FLOAT64},
              {"3D", "3.0D", AT_FLOAT64},
              {"-inf", "-inf", AT_FLOAT},
              {"nan", "nan", AT_FLOAT},
              {"true", "true", AT_BOOL},
              {"\"a'b\"", "'a\\'b'", AT_STRING},
              {"'\\x41\\n'", "'A\\n'", AT_STRING},
              {"[]", "[]", AT_INTS},
              {"[]L", "[]L", AT_LONGS},
              {"[ ]S", "[]S", AT_STRINGS},
              {"[1,2]", "[1, 2]", AT_INTS},
              {"[1,2]L", "[1, 2]L", AT_LONGS},
              {"[1,2]F", "[1.0, 2.0]", AT_FLOATS},
              {"[1,2]D", "[1.0, 2.0]D", AT_FLOAT64S},
              {"[1,2.5]", "[1.0, 2.5]", AT_FLOATS},
              {"[inf, -inf]", "[inf, -inf]", AT_FLOATS},
              {"[true,false]", "[true, false]", AT_BOOLS},
              {"['a,]', 'b']", "['a,]', 'b']", AT_STRINGS},
              {"block 3", "block 3", AT_BLOCK},
              {"blocks [1, 2]", "blocks [1, 2]", AT_BLOCKS},
              {"var 'x'", "var 'x'", AT_VAR},
              {"vars []", "vars []", AT_VARS},
              {"scalar (1, 2)", "scalar (1.0, 2.0)", AT_SCALAR},
              {"scalars [true, 5, 1.5]", "scalars [true, 5, 1.5]", AT_SCALARS},
              {"1e39", NULL, AT_N},
              {"0x10", NULL, AT_N},
              {"[1", NULL, AT_N},
              {"[1 2]", NULL, AT_N},
              {"[1, true]", NULL, AT_N},
              {"['a']L", NULL, AT_N},
              {"'a", NULL, AT_N},
              {"'\\q'", NULL, AT_N},
              {"truth", NULL, AT_N},
              {"", NULL, AT_N}};
  Arena *a = arena_new();
  for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
    Attr attr = {0};
    const char *end;
    Str out;
    bool ok = attr_parse(a, rows[i].text, &end, &attr) && !*end;
    if (ok != (rows[i].printed != NULL))
      fail_msg("%s: %s", rows[i].text, ok ? "accepted" : "refused");
    if (!ok) continue;
    str_init(&out, a);
    attr_print(&attr, &out);
    assert_string_equal(out.s, rows[i].printed);
    assert_int_equal(attr.type, rows[i].type);
  }
  arena_free(a);
}

static void test_differences(void **state) {
  (void)state;
  Program *p = network(), *q = network();
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
  Program *p = network();
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
  Program *p = network();
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
  Program *p = network();
  uint8_t *bytes;
  size_t n;
  set(p->blocks.v[0]->ops.v[1], (Attr){.name = "k", .type = AT_INT, .i = (int64_t)1 << 40});
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
  Program *p = everything();
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
  Program *p = everything();
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
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_text_round_trip),
      cmocka_unit_test(test_bytes_round_trip),
      cmocka_unit_test(test_seed_and_layout),
      cmocka_unit_test(test_exact_bytes),
      cmocka_unit_test(test_damage),
      cmocka_unit_test(test_param_bytes),
      cmocka_unit_test(test_param_alignment),
      cmocka_unit_test(test_quantised_params),
      cmocka_unit_test(test_param_errors),
      cmocka_unit_test(test_param_levels),
      cmocka_unit_test(test_param_nested_levels),
      cmocka_unit_test(test_wrong_formats),
      cmocka_unit_test(test_text_errors),
      cmocka_unit_test(test_literals),
      cmocka_unit_test(test_differences),
      cmocka_unit_test(test_save_and_load),
      cmocka_unit_test(test_unknown_operators),
      cmocka_unit_test(test_int_overflow),
      cmocka_unit_test(test_refused_memory),
      cmocka_unit_test(test_listings),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
