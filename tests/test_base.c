/* The base of ir/: memory, diagnostics, files, element types. */
#include "util.h"
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
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

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(arenas),        cmocka_unit_test(maps),
                                     cmocka_unit_test(out_of_memory), cmocka_unit_test(diagnostics),
                                     cmocka_unit_test(files),         cmocka_unit_test(file_faults),
                                     cmocka_unit_test(types)};
  return cmocka_run_group_tests_name("base", tests, NULL, NULL);
}
