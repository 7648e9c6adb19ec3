/* The base of ir/: memory, diagnostics, files, element types, the operator table, Programs, pruning, the verifier.
 * The operators used here are custom ones, registered by this test, so that it stands on no row of the table. */
#include "util.h"
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

/* ---- memory ---- */

static void arenas(void **state) {
  (void)state;
  Arena *a = arena_new();
  for (size_t n = 0; n < 3000; n += 7) {
    char *p = arena_alloc(a, n);
    assert_true((uintptr_t)p % (n >= 512 ? 64 : 16) == 0);
    for (size_t i = 0; i < n; i++) assert_int_equal(p[i], 0);
    memset(p, 0xff, n);
  }
  assert_string_equal(arena_fmt(a, "%s-%d", "x", 7), "x-7");
  assert_string_equal(arena_strn(a, "hello", 2), "he");
  assert_null(arena_str(a, NULL));
  VEC(int) v = {0};
  for (int i = 0; i < 10000; i++) vec_add(a, &v, i);
  for (int i = 0; i < 10000; i++) assert_int_equal(v.v[i], i);
  Str s;
  str_init(&s, a);
  for (int i = 0; i < 5000; i++) str_fmt(&s, "%d,", i % 10);
  assert_int_equal(s.n, 10000);
  assert_int_equal(strlen(s.s), 10000);
  arena_free(a);
  arena_free(NULL);
}

static void maps(void **state) {
  (void)state;
  Arena *a = arena_new();
  Map *m = map_new(a);
  static int x[5000];
  char key[32];
  void *v;
  for (int i = 0; i < 5000; i++) {
    snprintf(key, sizeof key, "k%d", i);
    map_put(m, key, &x[i]);
  }
  for (int i = 0; i < 5000; i += 2) {
    snprintf(key, sizeof key, "k%d", i);
    map_put(m, key, NULL);
    assert_null(map_get(m, key));
  }
  assert_int_equal(map_n(m), 2500);
  for (int i = 0; i < 2500; i++) {
    snprintf(key, sizeof key, "k%d", 2 * i + 1);
    assert_string_equal(map_at(m, i, &v), key);
    assert_ptr_equal(v, &x[2 * i + 1]);
  }
  map_put(m, "k1", NULL);
  map_put(m, "k1", x);
  assert_string_equal(map_at(m, 2499, &v), "k1");
  map_put(m, "k3", x);
  assert_string_equal(map_at(m, 0, &v), "k3");
  assert_ptr_equal(v, x);
  arena_free(a);
}

/* Every allocation in turn is refused: the guard catches, the error is coded, nothing leaks. */
static void out_of_memory(void **state) {
  (void)state;
  opdef_n();
  int n = 1;
  for (bool failed = true; failed; n++) {
    Program *volatile p = NULL;
    MemGuard g;
    if (MEM_GUARD(g)) {
      fail_alloc(0);
      prog_free(p);
      expect_error(E_MEM_001, "out of memory");
      continue;
    }
    fail_alloc(n);
    p = prog_new();
    for (int i = 0; i < 300; i++) {
      const char *name = prog_unique(p, "v");
      block_add_var(p->blocks.v[0], name, VK_TENSOR, DT_FLOAT32, 0, NULL);
    }
    assert_true(prog_verify(p));
    mem_unguard(&g);
    failed = fail_alloc_done();
    fail_alloc(0);
    prog_free(p);
  }
  assert_true(n > 5);
}

/* ---- diagnostics ---- */

static char *printed(bool json) {
  char *text = NULL;
  size_t n;
  FILE *to = open_memstream(&text, &n);
  err_print(to, json);
  fclose(to);
  return text;
}

static void diagnostics(void **state) {
  (void)state;
  assert_false(err_set(E_SHP_012, "inner sizes differ (%d vs %d)", 2, 3));
  err_set(E_MEM_001, "a later error is not recorded");
  err_where("op 47 `matmul_v2`");
  err_where("block %d", 0);
  err_where("m.pdmodel");
  err_where("m.pdmodel");
  err_note("X  %s  %s", quoted("x\x1b[0m"), shape_text(DT_FLOAT32, 2, (int64_t[]){-1, 3}));
  err_note("Y  %s", dims_text(0, NULL));
  err_help("Do this.");
  char *text = printed(false), *json = printed(true);
  assert_string_equal(text, "error[E-SHP-012]: inner sizes differ (2 vs 3)\n"
                            "  --> m.pdmodel, block 0, op 47 `matmul_v2`\n"
                            "      X  \"x\\x1b[0m\"  float32 [-1, 3]\n"
                            "      Y  []\n"
                            "  help: Do this.\n");
  assert_string_equal(json,
                      "{\"code\": \"E-SHP-012\", \"summary\": \"inner sizes differ (2 vs 3)\", "
                      "\"where\": \"m.pdmodel, block 0, op 47 `matmul_v2`\", "
                      "\"notes\": [\"X  \\\"x\\\\x1b[0m\\\"  float32 [-1, 3]\", \"Y  []\"], "
                      "\"help\": \"Do this.\"}\n");
  free(text);
  free(json);
  Diag d = *err_get();
  err_clear();
  assert_false(err_any());
  assert_null(err_get());
  err_put(&d);
  expect_error(E_SHP_012, "inner sizes");
  for (int c = 1; c < E_N; c++) {
    assert_int_equal(err_find(err_name((ErrCode)c)), c);
    assert_true(*err_summary((ErrCode)c) && *err_text((ErrCode)c));
  }
  assert_int_equal(err_find("E-XXX-001"), E_NONE);
  char bytes[400];
  memset(bytes, 0xff, sizeof bytes - 1);
  bytes[sizeof bytes - 1] = 0;
  assert_int_equal(strlen(quoted(bytes)), 80 * 4 + 5);
  assert_string_equal(quoted("\xc3\xa9\n\"\xed\xa0\x80"), "\"\xc3\xa9\\x0a\\\"\\xed\\xa0\\x80\"");
}

/* ---- files ---- */

static bool holds(const char *path, const char *text) {
  Arena *a = arena_new();
  uint8_t *data;
  size_t n;
  bool ok = vfs_read(a, path, &data, &n) && n == strlen(text) && !memcmp(data, text, n + 1);
  arena_free(a);
  return ok;
}

static void files(void **state) {
  (void)state;
  const char *dir = scratch_folder();
  Arena *a = arena_new();
  uint8_t *data;
  size_t n;
  const char *path = arena_fmt(a, "%s/f", dir), *fifo = arena_fmt(a, "%s/fifo", dir);
  assert_true(vfs_write(path, "old", 3));
  assert_true(holds(path, "old"));
  assert_int_equal(files_in(dir), 1);
  assert_false(vfs_read(a, dir, &data, &n));
  expect_error(E_IO_001, "a folder, not a regular file");
  assert_false(vfs_read(a, arena_fmt(a, "%s/none", dir), &data, &n));
  expect_error(E_IO_001, "No such file");
  assert_int_equal(mkfifo(fifo, 0600), 0);
  assert_false(vfs_read(a, fifo, &data, &n));
  expect_error(E_IO_001, "a FIFO");
  assert_false(vfs_write(fifo, "x", 1));
  expect_error(E_IO_002, "a FIFO");
  assert_true(vfs_write("/dev/null", "x", 1));
  assert_false(vfs_write("/dev/full", "x", 1));
  expect_error(E_IO_002, "No space left");
  assert_false(vfs_write(arena_fmt(a, "%s/no/f", dir), "x", 1));
  expect_error(E_IO_002, "cannot create");
  assert_true(vfs_mkdirs(arena_fmt(a, "%s/a//b/c", dir)));
  assert_true(vfs_is_dir(arena_fmt(a, "%s/a/b/c", dir)));
  assert_false(vfs_mkdirs(arena_fmt(a, "%s/x", path)));
  expect_error(E_IO_002, "cannot make the folder");
  assert_false(vfs_mkdirs(""));
  expect_error(E_IO_002, "empty");
  assert_true(vfs_is_file(path) && !vfs_is_file(dir) && !vfs_is_dir(path));
  arena_free(a);
  scratch_remove(dir);
}

/* Whatever fails while writing: an error, the old contents, no temporary file. Interruptions are retried. */
static void file_faults(void **state) {
  (void)state;
  static const struct {
    FailFile what;
    int nth, error;
    const char *text;
  } cases[] = {{FAIL_OPEN, 1, EACCES, "cannot create"}, {FAIL_WRITE, 1, ENOSPC, "Free some space"},
               {FAIL_WRITE, 4, ENOSPC, "cannot write"}, {FAIL_SYNC, 1, EIO, "cannot sync"},
               {FAIL_CLOSE, 1, EIO, "cannot close"},    {FAIL_RENAME, 1, EACCES, "cannot replace"}};
  const char *dir = scratch_folder();
  Arena *a = arena_new();
  const char *path = arena_fmt(a, "%s/f", dir);
  size_t n = 300000;
  char *big = arena_alloc(a, n + 1);
  memset(big, 'x', n);
  assert_true(vfs_write(path, "old", 3));
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    fail_file(cases[i].what, cases[i].nth, cases[i].error);
    assert_false(vfs_write(path, big, n));
    expect_error(E_IO_002, cases[i].text);
    fail_file(cases[i].what, 0, 0);
    assert_true(holds(path, "old"));
    assert_int_equal(files_in(dir), 1);
  }
  fail_file(FAIL_READ, 1, EIO);
  assert_false(holds(path, "old"));
  expect_error(E_IO_001, "Input/output error");
  static const FailFile retried[] = {FAIL_OPEN, FAIL_WRITE, FAIL_SYNC, FAIL_READ};
  for (int i = 0; i < 4; i++) {
    fail_file(retried[i], 1, EINTR);
    assert_true(vfs_write(path, big, n));
    assert_true(holds(path, big));
  }
  VfsOut *o = vfs_out_open(path);
  assert_non_null(o);
  assert_true(vfs_out_add(o, "abandoned", 9));
  assert_true(vfs_out_close(o, false));
  assert_true(holds(path, big));
  assert_int_equal(files_in(dir), 1);
  arena_free(a);
  scratch_remove(dir);
}

/* ---- element types ---- */

static void types(void **state) {
  (void)state;
  for (int t = 0; t < DT_N; t++) {
    assert_int_equal(dtype_find(dtype_info[t].name), t);
    assert_int_equal(dtype_from_paddle(dtype_info[t].paddle), t);
  }
  assert_int_equal(dtype_from_paddle(7), DT_NONE);
  int64_t n;
  assert_true(dims_numel(DT_FLOAT32, 3, (int64_t[]){2, 0, 5}, &n) && n == 0);
  assert_true(dims_numel(DT_FLOAT32, 0, NULL, &n) && n == 1);
  assert_false(dims_numel(DT_FLOAT32, 2, (int64_t[]){INT64_MAX, 4}, &n));
  expect_error(E_MEM_002, "too large");
  assert_false(dims_numel(DT_FLOAT32, 3, (int64_t[]){INT64_MAX, 0, 4}, &n));
  expect_error(E_MEM_002, "too large");
  assert_false(dims_numel(DT_FLOAT32, 1, (int64_t[]){INT64_MIN}, &n));
  expect_error(E_MEM_002, "negative");
  for (int t = DT_FLOAT16; t <= DT_BFLOAT16; t++)
    for (unsigned b = 0; b < 0x10000; b++) {
      double v = half_to_double((DType)t, (uint16_t)b),
             up = half_to_double((DType)t, (uint16_t)(b + 1));
      if (isnan(v)) continue;
      assert_int_equal(double_to_half((DType)t, v), b);
      if (!isfinite(v) || !isfinite(up) || (b & 0x7fff) == 0x7fff) continue;
      assert_int_equal(double_to_half((DType)t, (v + up) / 2), b & 1 ? b + 1 : b);
      assert_int_equal(double_to_half((DType)t, v + (up - v) * 0.51), b + 1);
    }
  assert_int_equal(double_to_half(DT_FLOAT16, 65520), 0x7c00);
  Arena *a = arena_new();
  static const double in[] = {-1.5, 3e20, -3e20, 200.7, NAN};
  static const double want[][5] = {[DT_BOOL] = {1, 1, 1, 1, 1},
                                   [DT_UINT8] = {0, 255, 0, 200, 0},
                                   [DT_INT8] = {-1, 127, -128, 127, 0},
                                   [DT_INT32] = {-1, INT32_MAX, INT32_MIN, 200, 0},
                                   [DT_INT64] = {-1, 0x1p63, -0x1p63, 200, 0}};
  static const DType checked[] = {DT_BOOL, DT_UINT8, DT_INT8, DT_INT32, DT_INT64};
  for (int k = 0; k < 5; k++) {
    Tensor t;
    assert_true(tensor_make(&t, a, checked[k], 1, (int64_t[]){5}));
    for (int i = 0; i < 5; i++) {
      tensor_set(&t, i, in[i]);
      assert_true(tensor_get(&t, i) == want[checked[k]][i]);
    }
  }
  arena_free(a);
}

/* ---- the operator table ---- */

static bool no_shapes(const CustomOp *op, int n_in, const Tensor *in, int n_out, Tensor *out) {
  (void)op, (void)n_in, (void)in, (void)n_out, (void)out;
  return true;
}

static bool add_op(const char *name, const char *signature) {
  return opdef_register(&(CustomOp){name, signature, no_shapes, no_shapes, no_shapes, NULL});
}

static int register_all(void **state) {
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
  for (size_t i = 0; i < sizeof ops / sizeof *ops; i++) assert_true(add_op(ops[i][0], ops[i][1]));
  return 0;
}

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
    assert_false(add_op("tb_bad", bad[i][0]));
    expect_error(E_PLG_001, bad[i][1]);
  }
  assert_false(add_op("tb_unary", "X -> Out"));
  expect_error(E_PLG_001, "already there");
  assert_false(add_op("a b", "X -> Out"));
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

static void var(Block *b, const char *name) {
  assert_non_null(block_add_var(b, name, VK_TENSOR, DT_FLOAT32, 2, (int64_t[]){-1, 4}));
}

static Op *unary(Block *b, const char *in, const char *out) {
  Op *op = block_add_op(b, "tb_unary");
  op_add_in(op, "X", in);
  op_add_out(op, "Out", out);
  if (!block_find_var(b, out)) var(b, out);
  return op;
}

/* x -> a -> b -> c, all by tb_unary */
static Program *chain(void) {
  Program *p = prog_new();
  Block *b = p->blocks.v[0];
  var(b, "x");
  unary(b, "x", "a");
  unary(b, "a", "b");
  unary(b, "b", "c");
  return p;
}

static void editing(void **state) {
  (void)state;
  Program *p = chain();
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
  const int64_t *v = op_intlist(op, "dims", &n); /* the default */
  assert_true(n == 2 && v[0] == 1 && v[1] == 2);
  v = op_intlist(op, "axis", &n);
  assert_true(n == 1 && v[0] == 4);
  assert_null(op_attr(op, "must"));
  assert_string_equal(op_str(op, "axis"), "");
  assert_int_equal(op_role(op), ROLE_FORWARD);
  assert_string_equal(op_text(op), "op 1 `tb_binary`");
  op_set_attr(op, &(Attr){.name = "op_callstack",
                          .type = AT_STRINGS,
                          .n = 1,
                          .ss = (const char *[]){" net.c:12\n"}});
  assert_string_equal(op_text(op), "op 1 `tb_binary` (net.c:12)");
  assert_true(p->edits > edits);

  Program *c = prog_clone(p);
  prog_free(p);
  assert_true(c->blocks.n == 1 && c->blocks.v[0]->ops.n == 4 && c->blocks.v[0]->vars.n == 4);
  assert_string_equal(op_str(c->blocks.v[0]->ops.v[1], "mode"), "z'");
  assert_string_equal(op_in(c->blocks.v[0]->ops.v[1], "Z", 2), "x");
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
  var(p->blocks.v[0], "outer");
  var(p->blocks.v[1], "body");
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

static void loop(Block *b, int block, const char *in, const char *out) {
  Op *op = block_add_op(b, "tb_loop");
  op_add_in(op, "X", in);
  op_add_out(op, "Out", out);
  op_set_attr(op, &(Attr){.name = "sub_block", .type = AT_BLOCK, .i = block});
}

static void pruning(void **state) {
  (void)state;
  Program *p = chain();
  Block *b = p->blocks.v[0];
  unary(b, "x", "unused");
  unary(b, "unused", "end");
  Op *opt = block_add_op(b, "tb_sgd");
  op_add_in(opt, "Param", "w");
  op_add_in(opt, "Grad", "c");
  op_add_out(opt, "ParamOut", "c");
  op_set_int(opt, "op_role", ROLE_OPTIMIZE);
  var(b, "w");
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
  Program *p = chain();
  for (int i = 0; i < 3; i++) prog_add_block(p, i == 1 ? 1 : 0, -1);
  Block *b = p->blocks.v[0];
  var(b, "y");
  var(b, "z");
  var(b, "late");
  unary(b, "x", "late");
  loop(b, 1, "a", "y");
  loop(p->blocks.v[1], 2, "a", "y");
  loop(b, 3, "a", "z");
  unary(p->blocks.v[3], "late", "z");
  unary(p->blocks.v[3], "late", "local");
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
  Program *p = chain();
  Block *b = p->blocks.v[0];
  Op *mode = block_add_op(b, "tb_mode");
  op_add_in(mode, "X", "c");
  op_add_out(mode, "Out", "d");
  op_add_out(mode, "ReserveSpace", "r");
  op_set_bool(mode, "is_test", false);
  var(b, "d");
  var(b, "r");
  Program *t = prog_clone_for_test(p); /* no backward: is_test only */
  assert_int_equal(t->blocks.v[0]->ops.n, 4);
  assert_true(op_bool(t->blocks.v[0]->ops.v[3], "is_test"));
  assert_null(op_out(t->blocks.v[0]->ops.v[3], "ReserveSpace", 0));
  prog_free(t);
  static const int roles[] = {ROLE_BACKWARD | ROLE_LOSS, ROLE_BACKWARD, ROLE_OPTIMIZE, ROLE_LRSCHED,
                              ROLE_LOSS};
  for (int i = 0; i < 5; i++) op_set_int(unary(b, "c", prog_unique(p, "g")), "op_role", roles[i]);
  t = prog_clone_for_test(p);
  assert_int_equal(t->blocks.v[0]->ops.n, 5);
  assert_null(block_var(t->blocks.v[0], "g_0"));
  assert_null(block_var(t->blocks.v[0], "r"));
  assert_non_null(block_var(t->blocks.v[0], "g_4"));
  assert_false(op_bool(mode, "is_test"));
  prog_free(t);
  prog_free(p);
}

/* ---- the verifier: each case breaks a valid program in one way ---- */

static Op *first(Program *p) { return p->blocks.v[0]->ops.v[0]; }
static void no_root(Program *p) { p->blocks.n = 0; }
static void root_has_parent(Program *p) { p->blocks.v[0]->parent = 0; }
static void second_root(Program *p) { prog_add_block(p, -1, -1); }
static void own_parent(Program *p) { prog_add_block(p, 1, -1); }
static void far_parent(Program *p) { prog_add_block(p, INT32_MAX, -1); }
static void far_forward(Program *p) { prog_add_block(p, 0, 7); }
static void wrong_index(Program *p) { p->blocks.v[0]->idx = 3; }
static void empty_var(Program *p) { var(p->blocks.v[0], ""); }
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
static void wide_block(Program *p) { loop(p->blocks.v[0], 9, "x", "c"); }
static void own_block(Program *p) { loop(p->blocks.v[0], 0, "x", "c"); }
static void block_cycle(Program *p) {
  prog_add_block(p, 0, -1);
  prog_add_block(p, 0, -1);
  loop(p->blocks.v[0], 1, "x", "c");
  loop(p->blocks.v[1], 2, "x", "c");
  loop(p->blocks.v[2], 1, "x", "c");
}
static void undeclared(Program *p) { op_set_ins(first(p), "X", 1, (const char *const[]){"xx"}); }
static void undeclared_out(Program *p) { op_add_out(first(p), "Mask", "mask"); }
static void empty_arg(Program *p) { op_set_ins(first(p), "X", 1, (const char *const[]){""}); }
static void too_early(Program *p) { op_set_ins(first(p), "X", 1, (const char *const[]){"c"}); }
static void inner_too_early(Program *p) {
  Block *sub = prog_add_block(p, 0, -1);
  loop(p->blocks.v[0], 1, "x", "c");
  unary(sub, "late", "l2");
  var(p->blocks.v[0], "late");
  unary(p->blocks.v[0], "x", "late");
}
static void feed(Program *p, int64_t col, const char *out) {
  Block *b = p->blocks.v[0];
  if (!block_var(b, "feed"))
    block_add_var(b, "feed", VK_FEED, DT_NONE, -1, NULL)->persistable = true;
  if (!block_var(b, out)) var(b, out);
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
    Program *p = chain();
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
  Program *p = chain();
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
    loop(p->blocks.v[i], i + 1, "x", "c");
    if (i == 499) unary(b, "x", "inside");
  }
  if (!prog_verify(p)) err_print(stderr, false);
  assert_false(err_any());
  prog_free(p);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(arenas),         cmocka_unit_test(maps),
      cmocka_unit_test(out_of_memory),  cmocka_unit_test(diagnostics),
      cmocka_unit_test(files),          cmocka_unit_test(file_faults),
      cmocka_unit_test(types),          cmocka_unit_test(signatures),
      cmocka_unit_test(rows),           cmocka_unit_test(bad_signatures),
      cmocka_unit_test(coercions),      cmocka_unit_test(editing),
      cmocka_unit_test(scopes),         cmocka_unit_test(pruning),
      cmocka_unit_test(pruning_blocks), cmocka_unit_test(clone_for_test),
      cmocka_unit_test(verifier),       cmocka_unit_test(verifier_accepts)};
  return cmocka_run_group_tests_name("base", tests, register_all, NULL);
}
