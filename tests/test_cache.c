/* The disk cache and compiled code behind it: what is damaged, foreign or half there is made again, whatever file operation
 * or allocation fails; the bound holds and the oldest entries go; object files and images of any content are refused or
 * linked, never more. */
#include "../backends/llvm/codegen.h"
#include "../backends/llvm/micro.h"
#include "util.h"
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>

static char *dir;

static int set_up(void **state) {
  (void)state;
  dir = strdup(scratch_folder());
  setenv("KILN_CACHE_DIR", dir, 1);
  unsetenv("KILN_CACHE");
  unsetenv("KILN_CACHE_SIZE");
  return 0;
}

static int tear_down(void **state) {
  (void)state;
  scratch_remove(dir);
  free(dir);
  unsetenv("KILN_CACHE_SIZE");
  return 0;
}

static bool has(const char *key, const char *value) {
  Arena *a = arena_new();
  const uint8_t *p;
  size_t n;
  bool there = cache_get(a, key, strlen(key), &p, &n);
  bool same = there && n == strlen(value) && !memcmp(p, value, n);
  assert_true(same == there);
  arena_free(a);
  return there;
}

static bool put(const char *key, const char *value) {
  return cache_put(key, strlen(key), value, strlen(value));
}

/* The file of the only entry. */
static char *only_file(Arena *a) {
  char command[256], name[64] = "";
  snprintf(command, sizeof command, "ls %s", dir);
  FILE *f = popen(command, "r");
  assert_true(fgets(name, sizeof name, f) != NULL);
  pclose(f);
  name[strcspn(name, "\n")] = 0;
  return arena_fmt(a, "%s/%s", dir, name);
}

static void write_raw(const char *path, const void *p, size_t n) {
  int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0666);
  assert_true(fd >= 0 && write(fd, p, n) == (ssize_t)n);
  close(fd);
}

/* ---- entries ---- */

static void entries(void **state) {
  (void)state;
  assert_false(has("a", ""));
  assert_true(put("a", "one") && put("b", "two") && put("", "none") && put("c", ""));
  assert_true(has("a", "one") && has("b", "two") && has("", "none") && has("c", ""));
  assert_true(put("a", "three") && has("a", "three"));
  Arena *a = arena_new();
  CacheInfo c = cache_info(a);
  assert_string_equal(c.dir, dir);
  assert_true(c.usable && c.entries == 4 && c.limit == 256 << 20);
  setenv("KILN_CACHE", "0", 1);
  assert_false(has("a", "three") || put("d", "four"));
  assert_null(cache_info(a).dir);
  unsetenv("KILN_CACHE");
  assert_int_equal(chmod(dir, 0777), 0); /* anybody could put code there */
  assert_false(has("a", "three") || put("d", "four") || cache_info(a).usable);
  assert_int_equal(chmod(dir, 0700), 0);
  assert_true(has("a", "three"));
  cache_clear(a);
  assert_int_equal(cache_info(a).entries, 0);
  assert_int_equal(files_in(dir), 0);
  arena_free(a);
  assert_false(err_any());
}

static void places(void **state) {
  (void)state;
  Arena *a = arena_new();
  const char *before = getenv("HOME"), *home = before ? arena_str(a, before) : NULL;
  unsetenv("KILN_CACHE_DIR");
  setenv("XDG_CACHE_HOME", dir, 1);
  assert_string_equal(cache_info(a).dir, arena_fmt(a, "%s/kiln", dir));
  assert_true(put("a", "one") && has("a", "one"));
  cache_clear(a);
  rmdir(arena_fmt(a, "%s/kiln", dir));
  setenv("XDG_CACHE_HOME", "relative", 1);
  setenv("HOME", dir, 1);
  assert_string_equal(cache_info(a).dir, arena_fmt(a, "%s/.cache/kiln", dir));
  setenv("HOME", "", 1);
  assert_null(cache_info(a).dir);
  assert_false(put("a", "one") || has("a", "one"));
  unsetenv("XDG_CACHE_HOME");
  if (home) setenv("HOME", home, 1);
  setenv("KILN_CACHE_DIR", dir, 1);
  arena_free(a);
}

/* Every cut and every changed bit of the file is noticed; equal names of other keys do no harm. */
static void damage(void **state) {
  (void)state;
  static const char key[] = "the key of an entry", value[] = "and the value that was put under it";
  Arena *a = arena_new();
  uint8_t *p, *q;
  size_t n;
  assert_true(put(key, value));
  const char *path = only_file(a);
  assert_true(vfs_read(a, path, &p, &n));
  q = arena_dup(a, p, n + 1);
  for (size_t i = 0; i <= n + 1; i++) {
    write_raw(path, p, i);
    assert_int_equal(has(key, value), i == n);
  }
  for (size_t bit = 0; bit < 8 * n; bit++) {
    q[bit / 8] ^= (uint8_t)(1 << bit % 8);
    write_raw(path, q, n);
    assert_false(has(key, value));
    q[bit / 8] ^= (uint8_t)(1 << bit % 8);
  }
  assert_true(put(key, value) && has(key, value));
  assert_true(put("another", value));
  unlink(path);
  rename(only_file(a), path);
  assert_false(has(key, value));
  unlink(path);
  assert_int_equal(mkdir(path, 0700), 0);
  assert_false(has(key, value) || put(key, value));
  rmdir(path);
  assert_int_equal(mkfifo(path, 0600), 0); /* opening it does not block */
  assert_false(has(key, value));
  arena_free(a);
  assert_false(err_any());
}

static void set_age(const char *path, time_t seconds) {
  struct timespec t[2] = {{.tv_sec = time(NULL) - seconds}, {.tv_sec = time(NULL) - seconds}};
  assert_int_equal(utimensat(AT_FDCWD, path, t, 0), 0);
}

/* The least recently used go; a hit counts as a use; other files stay. */
static void bound(void **state) {
  (void)state;
  char text[1001], key[16];
  Arena *a = arena_new();
  memset(text, 'x', 1000);
  text[1000] = 0;
  assert_true(put("first", text));
  const char *first = only_file(a), *rest = arena_fmt(a, "%s/0123456789abcdef.kc.tmp-1-1", dir);
  write_raw(rest, "half", 4);
  write_raw(arena_fmt(a, "%s/notes", dir), "mine", 4);
  set_age(rest, 7200);
  set_age(first, 9000);
  assert_true(has("first", text)); /* used now */
  setenv("KILN_CACHE_SIZE", "20K", 1);
  for (int i = 0; i < 100; i++) {
    snprintf(key, sizeof key, "%d", i);
    assert_true(put(key, text));
    assert_true(has(key, text));
    assert_true(cache_info(a).bytes <= 20 << 10);
  }
  assert_true(cache_info(a).entries >= 15);
  assert_true(!has("0", text) && has("99", text) && has("98", text));
  assert_true(vfs_is_file(arena_fmt(a, "%s/notes", dir)) && !vfs_is_file(rest));
  setenv("KILN_CACHE_SIZE", "500", 1);
  assert_false(put("large", text));
  setenv("KILN_CACHE_SIZE", "nonsense", 1);
  assert_true(cache_info(a).limit == 256 << 20);
  arena_free(a);
}

/* ---- code ---- */

enum { ROWS = 2, LANES = 4, K = 7 };

static void product(MicroFn *fn) {
  float x[ROWS][K], y[K][LANES], z[ROWS][LANES];
  for (int k = 0; k < K; k++) {
    for (int r = 0; r < ROWS; r++) x[r][k] = (float)(r + k);
    for (int c = 0; c < LANES; c++) y[k][c] = (float)(c - k);
  }
  MicroArgs args = {
      .a = x, .b = y, .c = z, .ldb = sizeof *y, .ldc = sizeof *z, .k = K, .columns = LANES};
  args.batch = 1;
  fn(&args);
  for (int r = 0; r < ROWS; r++)
    for (int c = 0; c < LANES; c++) {
      float sum = 0;
      for (int k = 0; k < K; k++) sum += x[r][k] * y[k][c];
      assert_true(z[r][c] == sum);
    }
}

/* Two functions; how many were generated. */
static int make_code(void) {
  Arena *a = arena_new();
  MicroFn *fn[3];
  MicroSpec s = {.dtype = DT_FLOAT32, .lanes = LANES, .mr = ROWS, .nv = 1, .pitch = K};
  CodeBatch *b = code_batch(a);
  int before = backend_code_count().generated;
  micro_code(b, &s, &fn[0]);
  micro_code(b, &s, &fn[1]);
  s.mr = 1;
  micro_code(b, &s, &fn[2]);
  assert_true(code_make(b, NULL));
  assert_true(fn[0] == fn[1] && fn[0] != fn[2]);
  product(fn[0]);
  code_free(b);
  arena_free(a);
  return backend_code_count().generated - before;
}

static void code_is_kept(void **state) {
  (void)state;
  assert_int_equal(make_code(), 2);
  assert_int_equal(make_code(), 0);
  assert_int_equal(files_in(dir), 2);
  setenv("KILN_CACHE", "0", 1);
  assert_int_equal(make_code(), 2);
  unsetenv("KILN_CACHE");
}

static void damaged_code_is_made_again(void **state) {
  (void)state;
  Arena *a = arena_new();
  uint8_t *p;
  size_t n;
  assert_int_equal(make_code(), 2);
  const char *path = only_file(a);
  assert_true(vfs_read(a, path, &p, &n));
  for (size_t i = 0; i < n; i += n / 7) {
    write_raw(path, p, i);
    assert_int_equal(make_code(), 1);
    p[i] ^= 1;
    write_raw(path, p, n);
    assert_int_equal(make_code(), 1);
    p[i] ^= 1;
    assert_int_equal(make_code(), 0);
  }
  arena_free(a);
}

/* Files fail in all ways: the code is there all the same. */
static void failing_files(void **state) {
  (void)state;
  for (int cached = 0; cached < 2; cached++)
    for (FailFile what = 0; what < FAIL_N; what++)
      for (int n = 1, hit = 1; hit; n++) {
        Arena *a = arena_new();
        cache_clear(a);
        arena_free(a);
        if (cached) make_code();
        fail_file(what, n, what == FAIL_WRITE ? ENOSPC : EIO);
        make_code();
        hit = fail_file_done(what);
        fail_file(what, 0, 0);
        assert_false(err_any());
        make_code();
        assert_int_equal(make_code(), 0);
      }
  assert_int_equal(files_in(dir), 2); /* no rests */
}

static void refused_memory(void **state) {
  (void)state;
  for (volatile int cached = 0; cached < 2; cached++)
    for (volatile int n = 1, hit = 1; hit; n += n < 40 ? 1 : n / 8) {
      Arena *a = arena_new();
      cache_clear(a);
      arena_free(a);
      if (cached) make_code();
      Arena *b = arena_new();
      MicroFn *fn;
      MicroSpec s = {.dtype = DT_FLOAT32, .lanes = LANES, .mr = ROWS, .nv = 1, .pitch = K};
      MemGuard guard;
      fail_alloc(n);
      if (MEM_GUARD(guard))
        expect_error(E_MEM_001, "out of memory");
      else {
        CodeBatch *c = code_batch(b);
        micro_code(c, &s, &fn);
        assert_true(code_make(c, NULL));
        product(fn);
        code_free(c);
        mem_unguard(&guard);
      }
      hit = fail_alloc_done();
      fail_alloc(0);
      arena_free(b);
    }
}

/* ---- objects and images ---- */

static uint8_t *object(Arena *a, size_t *n) {
  const char *path = arena_fmt(a, "%s/object.c", dir), *out = arena_fmt(a, "%s/object.o", dir);
  static const char text[] =
      "#include <string.h>\n"
      "static const int table[] = {3, 1, 4, 1, 5, 9, 2, 6};\n"
      "static int zeros[1000];\n"
      "void kernel(int *to, int n) {\n"
      "  memset(to, 0, 4 * (unsigned long)n);\n"
      "  switch (n & 7) { case 0: to[0] = 1; break; case 1: to[0] = 20; break; case 2: to[0] = "
      "300; "
      "break;\n"
      "  case 3: to[0] = 4; break; case 4: to[0] = 55; break; default: to[0] = 6; }\n"
      "  for (int i = 1; i < n; i++) to[i] = table[i & 7] + zeros[i];\n}\n";
  uint8_t *p;
  write_raw(path, text, sizeof text - 1);
  const char *command = arena_fmt(a, "%s -O1 -fPIC -fno-stack-protector -c -o %s %s",
                                  getenv("CC") ? getenv("CC") : "cc", out, path);
  assert_int_equal(system(command), 0);
  assert_true(vfs_read(a, out, &p, n));
  return p;
}

typedef void ObjectFn(int *to, int n);

static void run_object(const Image *m) {
  Arena *a = arena_new();
  void *entry;
  Region *r = region_new(a, 1, m, &entry);
  ObjectFn *fn;
  int to[20];
  memcpy(&fn, &entry, sizeof fn);
  for (int n = 1; n < 20; n++) {
    static const int first[] = {1, 20, 300, 4, 55, 6, 6, 6}, table[] = {3, 1, 4, 1, 5, 9, 2, 6};
    fn(to, n);
    assert_int_equal(to[0], first[n & 7]);
    for (int i = 1; i < n; i++) assert_int_equal(to[i], table[i & 7]);
  }
  region_free(r);
  arena_free(a);
}

/* A C compiler's object: calls, tables of jumps, constants, zeros. Each damaged one is refused or linked inside its bounds. */
static void objects(void **state) {
  (void)state;
  Arena *a = arena_new();
  Image m = {0}, back;
  const char *why;
  size_t n;
  Str s;
  uint8_t *p = object(a, &n);
  if (!image_of_object(a, p, n, "kernel", &m, &why)) fail_msg("%s", why);
  run_object(&m);
  str_init(&s, a);
  image_encode(&m, &s);
  assert_true(image_decode(a, (uint8_t *)s.s, s.n, &back));
  run_object(&back);
  assert_false(image_of_object(a, p, n, "other", &back, &why));
  for (size_t i = 0; i < n; i++)
    if (image_of_object(a, arena_dup(a, p, i), i, "kernel", &back, &why)) fail_msg("cut at %zu", i);
  uint64_t random = 1;
  for (size_t i = 0; i < 16 * n; i++) {
    Arena *b = arena_new();
    random = random * 6364136223846793005u + 1442695040888963407u;
    uint8_t old = p[i % n];
    p[i % n] = i < n ? old ^ 0x80 : (uint8_t)(random >> 33);
    void *entry;
    if (image_of_object(b, p, n, "kernel", &back, &why) && back.room < 1 << 20) {
      assert_true(back.entry <= back.n && back.n <= back.room);
      region_free(region_new(b, 1, &back, &entry));
    }
    p[i % n] = old;
    arena_free(b);
  }
  arena_free(a);
}

/* Encoded images whose checksum would hold: each is refused or stays inside its bounds. */
static void images(void **state) {
  (void)state;
  Arena *a = arena_new();
  uint8_t code[64] = {0};
  Image m = {.bytes = code, .n = sizeof code, .room = 100}, back;
  vec_add(a, &m.inside, ((ImageFix){8, 60}));
  vec_add(a, &m.inside, ((ImageFix){0, 100}));
  vec_add(a, &m.helpers, ((ImageFix){56, 0}));
  Str s;
  str_init(&s, a);
  image_encode(&m, &s);
  assert_true(image_decode(a, (uint8_t *)s.s, s.n, &back));
  for (size_t i = 0; i < s.n; i++) assert_false(image_decode(a, (uint8_t *)s.s, i, &back));
  for (size_t i = 0; i < 256 * (s.n - sizeof code); i++) {
    Arena *b = arena_new();
    uint8_t *p = arena_dup(b, s.s, s.n);
    void *entry;
    p[i / 256] = (uint8_t)i;
    if (image_decode(b, p, s.n, &back) && back.room < 1 << 20) {
      assert_true(back.entry < back.n && back.n <= back.room && back.n <= s.n);
      for (int f = 0; f < back.inside.n; f++) assert_true(back.inside.v[f].at + 8 <= back.n);
      for (int f = 0; f < back.helpers.n; f++) assert_true(back.helpers.v[f].at + 8 <= back.n);
      region_free(region_new(b, 1, &back, &entry));
    }
    arena_free(b);
  }
  arena_free(a);
}

int main(void) {
#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
  const struct CMUnitTest tests[] = {
      TEST(entries),       TEST(places),         TEST(damage),
      TEST(bound),         TEST(code_is_kept),   TEST(damaged_code_is_made_again),
      TEST(failing_files), TEST(refused_memory), TEST(objects),
      TEST(images),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
