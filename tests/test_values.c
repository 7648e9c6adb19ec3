/* Parameters in every form that PaddlePaddle saves (tests/data/static, made by tests/peers/files.py): dictionaries in pickles
 * of each protocol, with cut and column-major arrays; folders with a file for each variable; selected rows. And what the
 * closed reader of pickles refuses: each with one error that names it. */
#include "../executor/executor.h"
#include "util.h"
#include <glob.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#define DATA "tests/data/static/"

static void same_values(const Program *p, Scope *a, Scope *b) {
  Arena *tmp = arena_new();
  Var **vars;
  int n = params_list(p, tmp, &vars);
  assert_true(n > 0);
  for (int i = 0; i < n; i++) {
    const Tensor *x = scope_get(a, vars[i]->name), *y = scope_get(b, vars[i]->name);
    if (!x || !y) fail_msg("%s is missing", vars[i]->name);
    assert_int_equal(x->dtype, y->dtype);
    assert_int_equal(tensor_bytes(x), tensor_bytes(y));
    if (memcmp(x->data, y->data, tensor_bytes(x))) fail_msg("%s differs", vars[i]->name);
  }
  arena_free(tmp);
}

static Program *network(void) {
  Program *p = prog_load(DATA "net.pdmodel");
  if (!p) err_print(stderr, false);
  assert_non_null(p);
  return p;
}

static Scope *loaded(const Program *p, const Program *wanted, const char *path) {
  Scope *s = scope_new();
  if (!scope_load_values(s, p, wanted, path)) {
    err_print(stderr, false);
    fail_msg("%s is not loaded", path);
  }
  return s;
}

static void test_dictionaries(void **state) {
  (void)state;
  Program *p = network(), *test = prog_clone_for_test(p);
  Scope *want = loaded(p, p, DATA "all.pdiparams");
  static const struct {
    const char *file;
    bool whole; /* there is a .pdopt beside it */
  } rows[] = {{DATA "p2.pdparams", true},
              {DATA "p4.pdparams", true},
              {DATA "sliced.pdparams", false}};
  for (int i = 0; i < 3; i++) {
    Scope *s = loaded(p, rows[i].whole ? p : test, rows[i].file);
    same_values(rows[i].whole ? p : test, s, want);
    scope_free(s);
  }
  Scope *s = scope_new();
  assert_false(scope_load_params(s, p, DATA "sliced.pdparams"));
  expect_error(E_PAR_006, "persistable variables");
  assert_false(scope_load_params(s, test, DATA "p4.pdopt"));
  expect_error(E_PAR_006, "there is no value for \"batch_norm_0.b_0\"");
  const char **names;
  Arena *a = arena_new();
  assert_int_equal(scope_names(s, a, &names), 0);
  arena_free(a);
  scope_free(s);
  scope_free(want);
  prog_free(test);
  prog_free(p);
}

static void test_folders(void **state) {
  (void)state;
  Program *p = network();
  Scope *want = loaded(p, p, DATA "all.pdiparams");
  const char *folder = scratch_folder();
  char path[200], file[300];
  snprintf(path, sizeof path, "%s/model/", folder);
  assert_true(scope_save_params(want, p, path));
  snprintf(file, sizeof file, "%senc/one.w_0", path); /* a name with a folder in it */
  assert_true(vfs_is_file(file));
  Scope *s = loaded(p, p, path);
  same_values(p, s, want);
  unlink(file);
  assert_false(scope_load_params(s, p, path));
  expect_error(E_PAR_006, "there is no value for \"enc/one.w_0\"");
  assert_true(vfs_write(file, "", 0));
  assert_false(scope_load_params(s, p, path));
  expect_error(E_PAR_004, "enc/one.w_0");
  snprintf(file, sizeof file, "%s__params__", path);
  assert_true(scope_save_params(want, p, file));
  snprintf(file, sizeof file, "%sbatch_norm_0.b_0", path); /* the first of the variables */
  unlink(file);
  scope_free(s);
  s = loaded(p, p, path);
  same_values(p, s, want);
  scope_free(s);
  scope_free(want);
  prog_free(p);
  scratch_remove(folder);
}

static void bytes_equal(const char *path, const char *other) {
  Arena *a = arena_new();
  uint8_t *x, *y;
  size_t n = 0, m = 0;
  assert_true(vfs_read(a, path, &x, &n) && vfs_read(a, other, &y, &m));
  assert_int_equal(n, m);
  assert_memory_equal(x, y, n);
  arena_free(a);
}

/* Sequences of sequences, which PaddlePaddle wrote: saved as they were, together and each alone; gone with the next values. */
static void test_sequences(void **state) {
  (void)state;
  const char *folder = scratch_folder(), *from = "tests/fixtures/lod_levels/first.pdiparams";
  char file[300], each[300];
  snprintf(file, sizeof file, "%s/all.pdiparams", folder);
  snprintf(each, sizeof each, "%s/each/", folder);
  Program *p = prog_load("tests/fixtures/lod_levels/main.pdmodel");
  Scope *s = scope_new(), *t = scope_new();
  assert_true(p && scope_load_params(s, p, from));
  const Tensor *outer = scope_get(s, "w@LOD@LOD"), *inner = scope_get(s, "w@LOD");
  assert_true(outer && inner);
  assert_memory_equal(outer->data, ((int64_t[]){0, 2, 3}), 24);
  assert_memory_equal(inner->data, ((int64_t[]){0, 1, 3, 5}), 32);
  assert_true(scope_save_params(s, p, file));
  bytes_equal(file, from);
  assert_true(scope_save_params(s, p, each) && scope_load_params(t, p, each));
  assert_true(scope_save_params(t, p, file));
  bytes_equal(file, from);
  scope_remove(s, "w@LOD@LOD");
  scope_remove(s, "w@LOD");
  assert_true(scope_save_params(s, p, file) && scope_load_params(t, p, file));
  assert_null(scope_get(t, "w@LOD"));
  assert_null(scope_get(t, "w@LOD@LOD"));
  scope_free(s);
  scope_free(t);
  prog_free(p);
  scratch_remove(folder);
}

static Program *with_variable(const char *name, const char *kind) {
  char text[300];
  int n =
      snprintf(text, sizeof text,
               "program\nblock 0 {\n  var \"%s\" float32 [4, 2] %s persistable\n}\n", name, kind);
  Program *p = prog_parse(text, (size_t)n, "text");
  if (!p) err_print(stderr, false);
  assert_non_null(p);
  return p;
}

static void test_names(void **state) {
  (void)state;
  static const char *const names[] = {"../x", "a/../../x", "/etc/passwd", "a//b", ".", "a/.", "b/"};
  const char *folder = scratch_folder();
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
    Program *p = with_variable(names[i], "");
    Scope *s = scope_new();
    assert_non_null(scope_set(s, names[i], DT_FLOAT32, 2, (int64_t[]){4, 2}, NULL));
    assert_false(scope_save_params(s, p, folder));
    expect_error(E_PAR_001, "lead out of the folder");
    assert_false(scope_load_params(s, p, folder));
    expect_error(E_PAR_001, "lead out of the folder");
    scope_free(s);
    prog_free(p);
  }
  assert_int_equal(files_in(folder), 0);
  scratch_remove(folder);
}

/* Rows 3, 0 and 3 of [4, 2]: a row that is there twice counts twice. */
static void test_selected_rows(void **state) {
  (void)state;
  Program *p = with_variable("rows", "selected_rows");
  Arena *a = arena_new();
  Var **vars;
  assert_int_equal(params_list(p, a, &vars), 1);
  struct __attribute__((packed)) {
    uint32_t version;
    uint64_t n;
    int64_t row[3], height;
    uint32_t tensor_version;
    int32_t n_desc;
    uint8_t desc[6];
    float data[6];
  } f = {0, 3, {3, 0, 3}, 4, 0, 6, {8, 5, 16, 3, 16, 2}, {1, 2, 3, 4, 5, 6}};
  static const float want[8] = {3, 4, 0, 0, 0, 0, 6, 8};
  Tensor t;
  uint8_t *bytes = (uint8_t *)&f;
  if (!params_view_one(bytes, sizeof f, "rows", vars[0], a, &t, NULL)) err_print(stderr, false);
  assert_false(err_any());
  assert_memory_equal(t.data, want, sizeof want);
  for (size_t n = 0; n < sizeof f; n++) {
    assert_false(params_view_one(bytes, n, "rows", vars[0], a, &t, NULL));
    expect_error(E_PAR_004, "rows");
  }
  f.row[1] = 4;
  assert_false(params_view_one(bytes, sizeof f, "rows", vars[0], a, &t, NULL));
  expect_error(E_PAR_001, "has a row 4 of 4");
  f.row[1] = -1;
  assert_false(params_view_one(bytes, sizeof f, "rows", vars[0], a, &t, NULL));
  expect_error(E_PAR_001, "has a row -1 of 4");
  f.row[1] = 0;
  f.height = 5;
  assert_false(params_view_one(bytes, sizeof f, "rows", vars[0], a, &t, NULL));
  expect_error(E_PAR_002, "float32 [5, 2]");
  f.height = INT64_MAX;
  assert_false(params_view_one(bytes, sizeof f, "rows", vars[0], a, &t, NULL));
  expect_error(E_MEM_002, "");
  f.height = (int64_t)1 << 30;
  assert_false(params_view_one(bytes, sizeof f, "rows", vars[0], a, &t, NULL));
  expect_error(E_MEM_002, "not made dense");
  f.height = 4;
  f.n = (uint64_t)1 << 61;
  assert_false(params_view_one(bytes, sizeof f, "rows", vars[0], a, &t, NULL));
  expect_error(E_PAR_004, "");
  arena_free(a);
  prog_free(p);
}

/* ---- programs ---- */

/* Every program that PaddlePaddle wrote: what is saved of it loads again, and saves as the same bytes, from either form. */
static void test_round_trips(void **state) {
  (void)state;
  glob_t g = {0};
  assert_int_equal(glob("tests/fixtures/*/*.pdmodel", 0, NULL, &g), 0);
  assert_int_equal(glob(DATA "*.pdmodel", GLOB_APPEND, NULL, &g), 0);
  assert_true(g.gl_pathc > 5);
  const char *folder = scratch_folder();
  char once[100], twice[100], text[100];
  snprintf(once, sizeof once, "%s/once.pdmodel", folder);
  snprintf(twice, sizeof twice, "%s/twice.pdmodel", folder);
  snprintf(text, sizeof text, "%s/text.kl", folder);
  for (size_t i = 0; i < g.gl_pathc; i++) {
    const char *const from[] = {g.gl_pathv[i], once, text}, *const to[] = {once, text, twice};
    uint8_t *bytes[2];
    size_t n[2];
    for (int k = 0; k < 3; k++) {
      Program *p = prog_load_any(from[k]);
      if (!p || !prog_save(p, to[k])) err_print(stderr, false);
      assert_false(err_any());
      prog_free(p);
    }
    Arena *a = arena_new();
    assert_true(vfs_read(a, once, &bytes[0], &n[0]) && vfs_read(a, twice, &bytes[1], &n[1]));
    if (n[0] != n[1] || memcmp(bytes[0], bytes[1], n[0])) fail_msg("%s changes", g.gl_pathv[i]);
    arena_free(a);
  }
  globfree(&g);
  scratch_remove(folder);
}

/* ---- the closed reader ---- */

#define ARRAY                                                                                      \
  "cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85"                                 \
  "C\1b\x87R"
#define F4 "cnumpy\ndtype\nX\2\0\0\0f4\x89\x88\x87R"
#define KEY "X\1\0\0\0w"
/* {'w': array([1.0, ...], rank 1)} with a state of its own */
#define ONE(state) "\x80\2}" KEY ARRAY "(" state "tbs."

static const struct {
  const char *bytes;
  size_t n;
  ErrCode code; /* E_NONE: accepted */
  const char *says;
} rows[] = {
#define ROW(bytes, code, says)                                                                     \
  { bytes, sizeof(bytes) - 1, code, says }
    ROW(ONE("K\1K\1\x85" F4 "\x89"
            "C\4abcd"),
        E_NONE, ""),
    ROW(ONE("K\1)" F4 "\x89"
            "C\4abcd"),
        E_NONE, ""),
    ROW(ONE("K\1K\0\x85" F4 "\x89"
            "C\0"),
        E_NONE, ""),
    ROW("\x80\4}.", E_NONE, ""),
    ROW("\x80\2ccollections\nOrderedDict\n)R.", E_NONE, ""),
    /* what could run something */
    ROW("\x80\2cos\nsystem\nX\2\0\0\0id\x85R.", E_PAR_005,
        "names the function or class \"os.system\""),
    ROW("\x80\4\x8c\5posix\x8c\6system\x93.", E_PAR_005, "\"posix.system\""),
    ROW("\x80\2cnumpy\nload\n.", E_PAR_005, "\"numpy.load\""),
    ROW("\x80\2c__builtin__\neval\n.", E_PAR_005, "\"__builtin__.eval\""),
    ROW("\x80\2c\x1b[2J\nx\n.", E_PAR_005, "\\x1b[2J.x"),
    ROW("\x80\2(ios\nsystem\n.", E_PAR_005, "the opcode INST"),
    ROW("\x80\2(cos\nsystem\no.", E_PAR_005, "os.system"),
    ROW("\x80\2cnumpy\nndarray\n)\x81.", E_PAR_005, "the opcode NEWOBJ"),
    ROW("\x80\2\x82\1.", E_PAR_005, "the opcode EXT1"),
    ROW("\x80\2Pid\n.", E_PAR_005, "the opcode PERSID"),
    ROW("\x80\2cnumpy\nndarray\n)R.", E_PAR_005, "calls a class"),
    ROW("\x80\2KK\x85R.", E_PAR_001, ""),
    ROW("\x80\2K\1K\1\x85R.", E_PAR_005, "calls a number"),
    ROW("\x80\2}}b.", E_PAR_005, "sets the state of a dictionary"),
    ROW("\x80\5}.", E_PAR_005, "protocol 5"),
    ROW("\x80\1}.", E_PAR_005, "protocol 1"),
    ROW("\x80\2\xff.", E_PAR_005, "the opcode 0xff"),
    /* other contents */
    ROW("\x80\2].", E_PAR_005, "holds a list"),
    ROW("\x80\2N.", E_PAR_005, "holds None"),
    ROW("\x80\2}" KEY "K\1s.", E_PAR_005, "the entry \"w\" is a number"),
    ROW("\x80\2}" KEY "}s.", E_PAR_005, "the entry \"w\" is a dictionary"),
    ROW("\x80\2}K\1K\1s.", E_PAR_005, "is a number, not a text"),
    ROW("\x80\2}X\2\0\0\0a\0K\1s.", E_PAR_001, "NUL"),
    ROW("\x80\2}" KEY ARRAY "s.", E_PAR_005, "the entry \"w\" is an array"),
    ROW("\x80\2}q\0" KEY "h\0s.", E_PAR_005, "the entry \"w\" is a dictionary"), /* itself */
    /* arrays */
    ROW(ONE("K\1K\1\x85" F4 "\x89"
            "C\3abc"),
        E_PAR_001, "has 3 bytes of data, not 4"),
    ROW(ONE("K\1K\2\x85" F4 "\x89"
            "C\4abcd"),
        E_PAR_001, "has 4 bytes of data, not 8"),
    ROW(ONE("K\1J\xff\xff\xff\xff\x85" F4 "\x89"
            "C\4abcd"),
        E_PAR_001, "negative"),
    ROW(ONE("K\1\x8a\7\0\0\0\0\0\0\1\x8a\7\0\0\0\0\0\0\1\x86" F4 "\x89"
            "C\0"),
        E_MEM_002, ""),
    ROW(ONE("K\1(K\1K\1K\1K\1K\1K\1K\1K\1K\1K\1t" F4 "\x89"
            "C\4abcd"),
        E_PAR_001, "10 dimensions"),
    ROW(ONE("K\1X\1\0\0\0a\x85" F4 "\x89"
            "C\4abcd"),
        E_PAR_001, "no number"),
    ROW(ONE("K\1K\1\x85" F4 "\x89]"), E_PAR_005, "whose data is a list"),
    ROW(ONE("K\1K\1\x85K\1\x89"
            "C\4abcd"),
        E_PAR_001, "state of an array"),
    ROW(ONE("K\1K\1\x85"
            "cnumpy\ndtype\nX\2\0\0\0O8\x89\x88\x87R\x89]"),
        E_PAR_005, "the element type \"O8\""),
    ROW(ONE("K\1K\1\x85"
            "cnumpy\ndtype\nX\2\0\0\0c8\x89\x88\x87R\x89]"),
        E_PAR_005, "\"c8\""),
    ROW(ONE("K\1K\1\x85" F4 "(K\3X\1\0\0\0>NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb\x89"
            "C\4abcd"),
        E_PAR_005, "the byte order \">\""),
    ROW("\x80\2c_codecs\nencode\nX\2\0\0\0\xc4\x80X\6\0\0\0latin1\x86R.", E_PAR_001, "latin1"),
    /* names and slices */
    ROW("\x80\2}X\x1b\0\0\0StructuredToParameterName@@K\1s.", E_PAR_005, "is a number"),
    ROW("\x80\2}X\x15\0\0\0UnpackBigParamInfor@@}X\1\0\0\0w}ss.", E_PAR_001, "are not described"),
    /* the machine */
    ROW("\x80\2", E_PAR_004, ""),
    ROW("\x80\2}", E_PAR_004, ""),
    ROW("\x80", E_PAR_004, ""),
    ROW("\x80\2.", E_PAR_001, "nothing on the stack"),
    ROW("\x80\2(.", E_PAR_001, "nothing on the stack"),
    ROW("\x80\2}}.", E_PAR_001, "left over on its stack"),
    ROW("\x80\2}..", E_PAR_001, "left over at its end"),
    ROW("\x80\2u.", E_PAR_001, "no mark"),
    ROW("\x80\2(u.", E_PAR_001, "their container"),
    ROW("\x80\2}(K\1u.", E_PAR_001, "their container"),
    ROW("\x80\2\x85.", E_PAR_001, "too few values"),
    ROW("\x80\2(\x85.", E_PAR_001, "too few values"),
    ROW("\x80\2h\7.", E_PAR_001, "nothing was put into"),
    ROW("\x80\2}r\xff\xff\xff\xff.", E_PAR_001, "too large"),
    ROW("\x80\2q\0.", E_PAR_001, "nothing on the stack"),
    ROW("\x80\4\x95\xff\xff\xff\xff\xff\xff\xff\xff}.", E_PAR_004, ""),
    ROW("\x80\2X\xff\xff\xff\xff.", E_PAR_004, ""),
    ROW("\x80\4\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.", E_PAR_004, ""),
    ROW("\x80\2\x8a\x09\1\1\1\1\1\1\1\1\1.", E_PAR_005, "64 bits"),
    ROW("\x80\2\x8b\xff\xff\xff\xff.", E_PAR_004, ""),
    ROW("\x80\2cnumpy", E_PAR_004, ""),
    ROW("\x80\2cnumpy\nndarray", E_PAR_004, ""),
    ROW("\x80\4}}\x93.", E_PAR_001, "named by something else"),
    ROW("}\x80\2.", E_PAR_001, "does not begin"),
};

static ErrCode read_copy(const char *bytes, size_t n) {
  uint8_t *copy = malloc(n + !n);
  memcpy(copy, bytes, n);
  Arena *a = arena_new();
  Map *m = pickle_params(copy, n, "hostile.pdparams", a);
  if ((m != NULL) == err_any())
    fail_msg("%s", m ? "accepted with an error" : "refused without one");
  arena_free(a);
  free(copy);
  return err_any() ? err_get()->code : E_NONE;
}

static void test_refused(void **state) {
  (void)state;
  for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
    ErrCode code = read_copy(rows[i].bytes, rows[i].n);
    if (code != rows[i].code)
      fail_msg("row %zu: %s, expected %s %s", i, code ? err_name(code) : "accepted",
               rows[i].code ? err_name(rows[i].code) : "acceptance", rows[i].says);
    if (code != E_NONE) expect_error(code, rows[i].says);
  }
}

/* Every prefix and every bit that flips: a dictionary or one error. */
static void test_damage(void **state) {
  (void)state;
  static const char *const files[] = {DATA "p2.pdparams", DATA "p4.pdparams",
                                      DATA "sliced.pdparams"};
  for (int f = 0; f < 3; f++) {
    Arena *a = arena_new();
    uint8_t *bytes;
    size_t n;
    assert_true(vfs_read(a, files[f], &bytes, &n));
    for (size_t k = 0; k < n; k++) {
      assert_int_not_equal(read_copy((char *)bytes, k), E_NONE);
      err_clear();
    }
    for (size_t bit = 0; bit < 8 * n; bit++) {
      bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
      read_copy((char *)bytes, n);
      err_clear();
      bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
    arena_free(a);
  }
}

/* Small files that would grow large: the reader's memory is bounded by the file's size. */
static void test_amplification(void **state) {
  (void)state;
  static const char *const heads[] = {"\x80\2}", "\x80\2(", "\x80\2]"};
  enum { N = 1000000 };
  char *bytes = malloc(N);
  for (int h = 0; h < 3; h++)
    for (const char *c = "}](N\x88)"; *c; c++) {
      memset(bytes, *c, N);
      memcpy(bytes, heads[h], 3);
      ErrCode code = read_copy(bytes, N);
      if (code != E_MEM_002 && code != E_PAR_004)
        fail_msg("%s of 1000000 x %02x", err_name(code), (unsigned char)*c);
      err_clear();
    }
  free(bytes);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_dictionaries),  cmocka_unit_test(test_folders),
      cmocka_unit_test(test_names),         cmocka_unit_test(test_selected_rows),
      cmocka_unit_test(test_sequences),     cmocka_unit_test(test_round_trips),
      cmocka_unit_test(test_refused),       cmocka_unit_test(test_damage),
      cmocka_unit_test(test_amplification),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
