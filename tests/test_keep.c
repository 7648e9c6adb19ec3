/* What executables keep on the disk: it is found by the next process (here: the next executor and scope), whatever the form of
 * the parameter file; damage, changed parameters, failing files and refused memory never change a result; the bound holds. */
#include "../executor/executor.h"
#include "util.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <setjmp.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

enum { ROWS = 5, IN = 900, MID = 1230, OUT = 70 };

/* Two filters that are packed, and a mean of state, which is a kernel of constants. */
static const char text[] = "program version 2006002\n"
                           "block 0 {\n"
                           "  var x float32 [-1, 900] feed\n"
                           "  param a.w float32 [900, 1230]\n"
                           "  param b.s float32 [300, 1230]\n"
                           "  param c.w float32 [1230, 70]\n"
                           "  var h\n  var m\n  var i\n  var r\n  var y\n"
                           "  h = mul(X=x, Y=a.w)\n"
                           "  m = reduce_mean(X=b.s) {dim=[0]}\n"
                           "  i = elementwise_add(X=h, Y=m)\n"
                           "  r = relu(X=i)\n"
                           "  y = mul(X=r, Y=c.w)\n"
                           "}\n";

static char *dir, *params;
static Program *net;

static double random_value(uint64_t *state) {
  *state = *state * 6364136223846793005u + 1442695040888963407u;
  return (double)(int32_t)(*state >> 32) / 2147483648.0;
}

/* Files count once they are a little old. */
static void wait_a_little(void) { usleep(250000); }

static void set_values(Scope *s, uint64_t seed) {
  Arena *a = arena_new();
  Var **vars;
  int n = params_list(net, a, &vars);
  assert_int_equal(n, 3);
  for (int i = 0; i < n; i++) {
    Tensor *t = scope_set(s, vars[i]->name, DT_FLOAT32, vars[i]->rank, vars[i]->dims, NULL);
    for (int64_t k = 0; k < tensor_numel(t); k++) tensor_set(t, k, random_value(&seed));
  }
  arena_free(a);
}

static void write_params(uint64_t seed) {
  Scope *s = scope_new();
  set_values(s, seed);
  assert_true(scope_save_params(s, net, params));
  scope_free(s);
}

static int set_up(void **state) {
  (void)state;
  char path[300];
  dir = strdup(scratch_folder());
  snprintf(path, sizeof path, "%s/cache", dir);
  setenv("KILN_CACHE_DIR", path, 1);
  unsetenv("KILN_CACHE");
  setenv("KILN_CACHE_SIZE", "4G", 1); /* room for all that is written again */
  snprintf(path, sizeof path, "%s/net.pdiparams", dir);
  params = strdup(path);
  net = prog_parse(text, sizeof text - 1, "net.kl");
  if (!net || !prog_verify(net)) err_print(stderr, false);
  assert_false(err_any());
  write_params(1);
  wait_a_little();
  return 0;
}

static int tear_down(void **state) {
  (void)state;
  prog_free(net);
  free(params);
  scratch_remove(dir);
  free(dir);
  unsetenv("KILN_CACHE_SIZE");
  return 0;
}

/* The entry of kept values; false: there is none. */
static bool entry(char *path) {
  const char *folder = getenv("KILN_CACHE_DIR");
  DIR *d = opendir(folder);
  bool found = false;
  for (struct dirent *e; d && (e = readdir(d));) {
    size_t n = strlen(e->d_name);
    if (n < 3 || strcmp(e->d_name + n - 3, ".kv")) continue;
    assert_false(found);
    found = true;
    sprintf(path, "%.250s/%.40s", folder, e->d_name);
  }
  if (d) closedir(d);
  return found;
}

typedef struct Result {
  float y[ROWS * OUT];
} Result;

static bool run_once(Executor *e, Scope *s, Result *r) {
  static float data[ROWS * IN];
  for (int i = 0; i < ROWS * IN; i++) data[i] = (float)(i % 37 - 18) / 16;
  Tensor x = {.dtype = DT_FLOAT32, .rank = 2, .dims = {ROWS, IN}, .data = data};
  Tensor y = {.dtype = DT_FLOAT32, .rank = 2, .dims = {ROWS, OUT}, .data = r->y};
  return exec_run(e, s, net, 1, &(Feed){"x", &x}, 1, &(const char *){"y"}, &y);
}

static bool run_file(const char *path, int runs, Result *r) {
  ExecOptions o = {.threads = 2};
  Executor *e = exec_new(&o);
  Scope *s = scope_new();
  bool ok = e && scope_load_params(s, net, path);
  for (int i = 0; ok && i < runs; i++) ok = run_once(e, s, r);
  scope_free(s);
  exec_free(e);
  return ok;
}

static Result without_cache(void) {
  Result r;
  setenv("KILN_CACHE", "0", 1);
  assert_true(run_file(params, 1, &r));
  unsetenv("KILN_CACHE");
  return r;
}

static bool same(const Result *a, const Result *b) { return !memcmp(a, b, sizeof *a); }

static void set_age(const char *path) {
  struct timespec t[2] = {{.tv_sec = 1000000000}, {.tv_sec = 1000000000}};
  assert_int_equal(utimensat(AT_FDCWD, path, t, 0), 0);
}

/* A hit renews the time of use. */
static bool was_used(const char *path) {
  struct stat st;
  return !stat(path, &st) && st.st_atime > 1000000000;
}

/* ---- */

static void is_found(void **state) {
  (void)state;
  char path[300];
  Result want = without_cache(), r;
  assert_false(entry(path));
  assert_true(run_file(params, 1, &r) && same(&r, &want));
  assert_true(entry(path));
  for (int i = 0; i < 4; i++) {
    if (i < 3) set_age(path);
    assert_true(run_file(params, i + 1, &r) && same(&r, &want));
    assert_true(was_used(path));
  }
}

/* Its values are what the run computes with: one that is changed, checksums and all, is seen. */
static void is_used(void **state) {
  (void)state;
  char path[300];
  Arena *a = arena_new();
  Result want = without_cache(), r;
  uint8_t *p = NULL;
  size_t n = 0;
  uint64_t head[4];
  assert_true(run_file(params, 1, &r) && entry(path) && vfs_read(a, path, &p, &n));
  uint8_t *end = p + n - sizeof head;
  memcpy(head, end, sizeof head);
  size_t blocks = (head[2] + CACHE_BLOCK - 1) / CACHE_BLOCK, table = (head[2] + 7) / 8 * 8;
  for (size_t at = 0; at < head[2]; at += 512) p[at + 3] ^= 0x80; /* signs */
  for (size_t b = 0; b < blocks; b++) {
    size_t left = head[2] - b * CACHE_BLOCK;
    uint64_t sum = hash_block(p + b * CACHE_BLOCK, left < CACHE_BLOCK ? left : CACHE_BLOCK);
    memcpy(p + table + 8 * b, &sum, 8);
  }
  head[3] = hash_bytes(hash_bytes(hash_bytes(head[0], head + 1, 16), end - head[1], head[1]),
                       p + table, 8 * blocks);
  memcpy(end, head, sizeof head);
  assert_true(vfs_write(path, p, n));
  assert_true(run_file(params, 1, &r));
  assert_false(same(&r, &want));
  arena_free(a);
}

static void write_raw(const char *path, const void *p, size_t n) {
  int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0666);
  assert_true(fd >= 0 && write(fd, p, n) == (ssize_t)n);
  close(fd);
}

/* What is damaged is made again, in memory and on the disk. */
static void damage(void **state) {
  (void)state;
  char path[300];
  Arena *a = arena_new();
  Result want = without_cache(), r;
  uint8_t *p = NULL, *now = NULL;
  size_t n = 0, n_now = 0;
  assert_true(run_file(params, 1, &r) && entry(path) && vfs_read(a, path, &p, &n));
  for (size_t at = 0; at < n; at += at < 64 ? 5 : n / 29) {
    assert_true(run_file(params, 1, &r)); /* verified before */
    p[at] ^= 0x10;
    write_raw(path, p, n);
    assert_true(run_file(params, 2, &r) && same(&r, &want));
    p[at] ^= 0x10;
    Arena *b = arena_new();
    assert_true(entry(path) && vfs_read(b, path, &now, &n_now));
    assert_true(n_now == n && !memcmp(now, p, n));
    arena_free(b);
  }
  for (size_t cut = 0; cut < n; cut += cut < 64 ? 16 : n / 11) {
    write_raw(path, p, cut);
    assert_true(run_file(params, 2, &r) && same(&r, &want));
  }
  for (size_t at = n / 2; at < n; at += 1000) p[at]++;
  write_raw(path, p, n);
  assert_true(run_file(params, 3, &r) && same(&r, &want));
  arena_free(a);
}

/* Other parameters in the same file, or under the same names, are never taken for those that were packed. */
static void stale(void **state) {
  (void)state;
  Arena *a = arena_new();
  Result first, second, r;
  uint8_t *old = NULL, *fresh = NULL;
  size_t n = 0;
  assert_true(vfs_read(a, params, &old, &n) && run_file(params, 2, &first));
  write_params(2);
  assert_true(run_file(params, 2, &second)); /* too new to be known */
  assert_false(same(&first, &second));
  wait_a_little();
  for (int i = 0; i < 2; i++) assert_true(run_file(params, 1, &r) && same(&r, &second));
  assert_true(vfs_read(a, params, &fresh, &n));
  for (int i = 0; i < 4; i++) {
    write_raw(params, i % 2 ? fresh : old, n); /* in place */
    if (i > 1) wait_a_little();
    for (int k = 0; k < 2; k++)
      assert_true(run_file(params, 1, &r) && same(&r, i % 2 ? &second : &first));
  }
  ExecOptions o = {.threads = 2};
  Executor *e = exec_new(&o);
  Scope *s = scope_new();
  assert_true(scope_load_params(s, net, params) && run_once(e, s, &r) && same(&r, &second));
  set_values(s, 1);
  assert_true(run_once(e, s, &r) && same(&r, &first));
  assert_true(scope_load_params(s, net, params) && run_once(e, s, &r) && same(&r, &second));
  Tensor *t = scope_edit(s, "c.w");
  for (int64_t i = 0; i < tensor_numel(t); i++) tensor_set(t, i, -tensor_get(t, i));
  assert_true(run_once(e, s, &r));
  for (int i = 0; i < ROWS * OUT; i++) assert_true(r.y[i] == -second.y[i]);
  scope_free(s);
  s = scope_new();
  set_values(s, 1); /* from no file */
  assert_true(run_once(e, s, &r) && same(&r, &first));
  scope_free(s);
  exec_free(e);
  arena_free(a);
}

/* As PaddlePaddle writes them: nothing is aligned. */
static void write_unaligned(const char *path) {
  Arena *a = arena_new();
  Scope *s = scope_new();
  Var **vars;
  Str out;
  str_init(&out, a);
  assert_true(scope_load_params(s, net, params));
  for (int i = 0, n = params_list(net, a, &vars); i < n; i++) {
    const Tensor *t = scope_get(s, vars[i]->name);
    uint8_t desc[32] = {8, 5};
    int32_t m = 2;
    for (int d = 0; d < t->rank; d++) {
      desc[m++] = 16;
      desc[m++] = (uint8_t)(t->dims[d] | 128);
      desc[m++] = (uint8_t)(t->dims[d] >> 7);
    }
    str_addn(&out, "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 16);
    str_addn(&out, (char *)&m, 4);
    str_addn(&out, (char *)desc, (size_t)m);
    str_addn(&out, t->data, tensor_bytes(t));
  }
  assert_true(vfs_write(path, out.s, out.n));
  scope_free(s);
  arena_free(a);
}

static void unaligned_files(void **state) {
  (void)state;
  Arena *a = arena_new();
  Result want = without_cache(), r;
  const char *raw = arena_fmt(a, "%s/raw.pdiparams", dir), *again = arena_fmt(a, "%s/again", dir);
  char path[300];
  uint8_t *p = NULL, *q = NULL;
  size_t n = 0, m = 0;
  write_unaligned(raw);
  wait_a_little();
  for (int i = 0; i < 3; i++) assert_true(run_file(raw, 2, &r) && same(&r, &want));
  assert_true(entry(path));
  ExecOptions o = {.threads = 2};
  Executor *e = exec_new(&o);
  Scope *s = scope_new();
  assert_true(scope_load_params(s, net, raw) && run_once(e, s, &r) && same(&r, &want));
  assert_true(scope_save_params(s, net, again)); /* from where they were never read */
  assert_true(vfs_read(a, params, &p, &n) && vfs_read(a, again, &q, &m));
  assert_true(n == m && !memcmp(p, q, n));
  assert_true(scope_load_params(s, net, raw));
  Tensor *t = scope_edit(s, "b.s");
  assert_int_equal((uintptr_t)t->data % PARAMS_ALIGN, 0);
  scope_remove(s, "a.w");
  assert_true(scope_load_params(s, net, raw) && run_once(e, s, &r) && same(&r, &want));
  scope_free(s);
  exec_free(e);
  arena_free(a);
}

static void failing_files(void **state) {
  (void)state;
  char path[300];
  Result want = without_cache(), r;
  for (int stored = 0; stored < 2; stored++)
    for (FailFile what = 0; what < FAIL_N; what++)
      for (int n = 1, hit = 1; hit; n += 1 + n / 4) {
        if (!stored && entry(path)) unlink(path);
        if (stored) assert_true(run_file(params, 1, &r));
        ExecOptions o = {.threads = 2};
        Executor *e = exec_new(&o);
        Scope *s = scope_new();
        assert_true(scope_load_params(s, net, params));
        fail_file(what, n, what == FAIL_WRITE ? ENOSPC : EIO);
        for (int i = 0; i < 2; i++) assert_true(run_once(e, s, &r) && same(&r, &want));
        scope_free(s);
        exec_free(e); /* waits for what is written */
        hit = fail_file_done(what);
        fail_file(what, 0, 0);
        assert_false(err_any());
        assert_true(run_file(params, 1, &r) && same(&r, &want));
      }
}

static atomic_bool may_write, gave_up;

static ssize_t gated_write(int fd, const void *p, size_t n) {
  bool large = n >= 1 << 20;
  for (int i = 0; large && !may_write && i < 3000; i++) usleep(1000);
  if (large && !may_write) gave_up = true;
  return write(fd, p, n);
}

/* Results do not wait for the disk; the end of the executor does. */
static void behind_the_run(void **state) {
  (void)state;
  char path[300];
  Result want = without_cache(), r;
  if (entry(path)) unlink(path);
  ExecOptions o = {.threads = 2};
  Executor *e = exec_new(&o);
  Scope *s = scope_new();
  const VfsTable usual = vfs_table;
  assert_true(scope_load_params(s, net, params));
  vfs_table.write = gated_write;
  may_write = gave_up = false;
  for (int i = 0; i < 2; i++) assert_true(run_once(e, s, &r) && same(&r, &want));
  assert_false(entry(path));
  may_write = true;
  scope_free(s);
  exec_free(e);
  vfs_table = usual;
  assert_true(entry(path) && !gave_up);
  assert_true(run_file(params, 1, &r) && same(&r, &want));
}

static void refused_memory(void **state) {
  (void)state;
  Result want = without_cache(), r;
  for (volatile int stored = 0; stored < 2; stored++)
    for (volatile int n = 1, hit = 1; hit; n += n < 30 ? 1 : n / 6) {
      char path[300];
      if (!stored && entry(path)) unlink(path);
      if (stored) assert_true(run_file(params, 1, &r));
      ExecOptions o = {.threads = 2};
      Executor *e = exec_new(&o);
      Scope *s = scope_new();
      volatile bool ok = false;
      MemGuard guard;
      fail_alloc(n);
      if (!MEM_GUARD(guard)) {
        ok = scope_load_params(s, net, params) && run_once(e, s, &r);
        mem_unguard(&guard);
      }
      if (!ok) expect_error(E_MEM_001, "out of memory");
      assert_true(!ok || same(&r, &want));
      scope_free(s);
      exec_free(e); /* waits for what is written */
      hit = fail_alloc_done();
      fail_alloc(0);
    }
}

/* Three quarters of the limit are for such values; of a program that is too large nothing is kept. */
static void bound(void **state) {
  (void)state;
  char path[300];
  Result want = without_cache(), r;
  setenv("KILN_CACHE_SIZE", "1M", 1);
  for (int i = 0; i < 2; i++) assert_true(run_file(params, 2, &r) && same(&r, &want));
  assert_false(entry(path));
  setenv("KILN_CACHE_SIZE", "3G", 1);
  assert_true(run_file(params, 1, &r) && same(&r, &want) && entry(path));
  Arena *a = arena_new();
  assert_true(cache_info(a).bytes > 1 << 20 && cache_info(a).limit == (int64_t)3 << 30);
  setenv("KILN_CACHE_SIZE", "1M", 1);
  assert_true(cache_put("k", 1, "v", 1)); /* large values make room first */
  cache_clear(a);
  assert_true(cache_put("k", 1, "v", 1));
  assert_false(entry(path));
  arena_free(a);
}

static const char steps_text[] = "program version 2006002\n"
                                 "block 0 {\n"
                                 "  var x float32 [9, 256] feed\n"
                                 "  param w float32 [256, 256]\n"
                                 "  var a\n  var b\n  var c\n  var d\n  var y\n"
                                 "  a = mul(X=x, Y=w)\n  b = tanh(X=a)\n"
                                 "  c = mul(X=b, Y=w)\n  d = tanh(X=c)\n"
                                 "  y = mul(X=d, Y=w)\n"
                                 "}\n";

/* What one step of a recurrence packs of its weights serves all of them, also in the second run. */
static void steps(void **state) {
  (void)state;
  enum { N = 256, IN_STEPS = 9 };
  static float w[N * N], x[IN_STEPS * N], y[2][IN_STEPS * N];
  uint64_t seed = 7;
  Program *p = prog_parse(steps_text, sizeof steps_text - 1, "steps.kl");
  assert_true(p && prog_verify(p));
  Scope *s = scope_new();
  for (int i = 0; i < N * N; i++) w[i] = (float)random_value(&seed) / 8;
  memcpy(scope_set(s, "w", DT_FLOAT32, 2, (int64_t[]){N, N}, NULL)->data, w, sizeof w);
  for (int i = 0; i < IN_STEPS * N; i++) x[i] = (float)random_value(&seed);
  Tensor in = {.dtype = DT_FLOAT32, .rank = 2, .dims = {IN_STEPS, N}, .data = x};
  Feed feed = {"x", &in};
  const char *fetch = "y";
  CompileRequest r = {
      .prog = p, .scope = s, .n_feeds = 1, .feeds = &feed, .n_fetch = 1, .fetch = &fetch};
  Executable *e = compile(&r);
  assert_non_null(e);
  assert_in_range(executable_graph(e)->kept_bytes, sizeof w, 2 * sizeof w - 1);
  executable_free(e);
  for (int interpret = 0; interpret < 2; interpret++) {
    ExecOptions o = {.threads = 2, .interpret = interpret};
    Executor *run = exec_new(&o);
    Tensor out = {.dtype = DT_FLOAT32, .rank = 2, .dims = {IN_STEPS, N}, .data = y[interpret]};
    for (int i = 0; i < 2; i++) {
      memset(y[interpret], 0, sizeof y[interpret]);
      assert_true(exec_run(run, s, p, 1, &feed, 1, &fetch, &out));
    }
    exec_free(run);
  }
  for (int i = 0; i < IN_STEPS * N; i++) assert_true(fabsf(y[0][i] - y[1][i]) < 1e-5f);
  scope_free(s);
  prog_free(p);
}

int main(void) {
#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
  const struct CMUnitTest tests[] = {
      TEST(is_found),      TEST(is_used),        TEST(damage), TEST(stale), TEST(unaligned_files),
      TEST(failing_files), TEST(refused_memory), TEST(bound),  TEST(steps), TEST(behind_the_run),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
