/* Failure everywhere: whole scenarios in which the n-th allocation is refused, or the n-th open, read, write, sync, close
 * or rename fails, for n = 1, 2, 3, ... until the scenario gets through (beyond 300, samples). Each time there is exactly
 * one coded error, nothing leaks, and the files that stood there before are as they were. */
#include "snapshot.h"
#include "util.h"
#include "../frontend/internal.h"
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zlib.h>
#include <cmocka.h>

/* ---- memory in use ---- */

static MemTable under;
static int64_t in_use;

static void *counting_alloc(size_t n) {
  void *p = under.alloc(n);
  if (p) in_use++;
  return p;
}

static void counting_free(void *p) {
  in_use--;
  under.free(p);
}

static int open_files(void) { return files_in("/proc/self/fd"); }

/* ---- what the scenarios work on ---- */

typedef struct World {
  char folder[256];
  kl_net *net;
  kl_exec *exe, *other; /* `other` keeps compiled code alive and has other parameters */
  kl_program *test;
  float loss;
  int64_t batch;
} World;
static World w;

static const char *in_folder(const char *name) {
  static char path[8][512];
  static int next;
  char *p = path[next++ % 8];
  snprintf(p, sizeof path[0], "%s/%s", w.folder, name);
  return p;
}

static kl_net *small_net(void) {
  kl_net *net = kl_net_new();
  kl_seed(net, 3);
  kl_var *x = kl_data(net, "x", KL_FLOAT32, -1, 1, 6, 6), *y = kl_data(net, "y", KL_INT64, -1, 1);
  kl_var *c = kl_pool2d(kl_conv2d(x, 2, 3, .act = "relu"), "max", 2);
  kl_var *loss = kl_named(kl_mean(kl_softmax_with_cross_entropy(kl_fc(c, 3), y)), "loss");
  kl_minimize(loss, kl_momentum(0.1));
  return net;
}

static bool step(kl_exec *exe, const kl_program *p, int64_t batch) {
  enum { MOST = 64 };
  static float x[MOST * 36];
  static int64_t y[MOST];
  for (int i = 0; i < MOST * 36; i++) x[i] = (float)(i * 7 % 23) / 23;
  for (int i = 0; i < MOST; i++) y[i] = i % 3;
  kl_tensor tx = kl_array(KL_FLOAT32, x, batch, 1, 6, 6), ty = kl_array(KL_INT64, y, batch, 1);
  kl_tensor loss = {0};
  bool ok = kl_run(exe, p, kl_feeds({"x", &tx}, {"y", &ty}), kl_fetches({"loss", &loss}));
  if (ok) w.loss = *(float *)loss.data;
  kl_tensor_free(&loss);
  return ok;
}

/* ---- scenarios ---- */

static bool lenet(void) {
  kl_net *net = kl_net_new();
  kl_var *image = kl_data(net, "image", KL_FLOAT32, -1, 1, 28, 28);
  kl_var *label = kl_data(net, "label", KL_INT64, -1, 1);
  kl_var *c1 = kl_pool2d(kl_conv2d(image, 6, 5, .act = "relu"), "max", 2);
  kl_var *bn = kl_batch_norm(kl_conv2d(c1, 16, 5, .no_bias = true), .act = "relu");
  kl_var *fc = kl_dropout(kl_fc(kl_pool2d(bn, "avg", 2), 32, .act = "relu"), 0.5);
  kl_var *scores = kl_named(kl_fc(fc, 10, .weight.decay = kl_l2(1e-4)), "scores");
  kl_named(kl_accuracy(scores, label, 1), "acc");
  kl_var *loss = kl_named(kl_mean(kl_softmax_with_cross_entropy(scores, label)), "loss");
  kl_minimize(loss, kl_adam(0.001, .clip = kl_clip_global_norm(1)));
  kl_program *test = kl_clone_for_test(kl_main(net));
  kl_program *copy = kl_clone(test);
  if (copy) kl_prune(copy, (const char *[]){"image", NULL}, (const char *[]){"scores", NULL});
  char *text = kl_text(copy);
  kl_free(text);
  kl_program_free(copy);
  kl_program_free(test);
  kl_net_free(net);
  return !kl_failed();
}

static bool save_text(void) { return kl_save(kl_main(w.net), in_folder("main.kl")); }
static bool save_proto(void) { return kl_save(kl_main(w.net), in_folder("main.pdmodel")); }
static bool save_params(void) {
  return kl_save_params(w.exe, kl_main(w.net), in_folder("all.pdiparams"));
}
static bool save_model(void) {
  return kl_save_inference(w.exe, kl_main(w.net), in_folder("model"), (const char *[]){"x", NULL},
                           (const char *[]){"fc_0.tmp_1", NULL});
}
static bool save_checkpoint(void) { return kl_checkpoint(w.exe, kl_main(w.net), w.folder, "note"); }

static bool load_one(const char *name) {
  kl_program *p = kl_load(in_folder(name));
  bool ok = p != NULL;
  kl_program_free(p);
  return ok;
}
static bool load_text(void) { return load_one("main.kl"); }
static bool load_proto(void) { return load_one("main.pdmodel"); }
static bool load_params(void) {
  return kl_load_params(w.other, kl_main(w.net), in_folder("all.pdiparams"));
}
static bool resume(void) { return kl_resume(w.other, kl_main(w.net), w.folder) >= 0; }

static bool load_model(void) {
  kl_exec *exe = kl_exec_new((kl_exec_options){.threads = 1, .interpret = true});
  kl_program *p = exe ? kl_load_inference(exe, in_folder("model")) : NULL;
  float x[36] = {0};
  kl_tensor tx = kl_array(KL_FLOAT32, x, 1, 1, 6, 6), out = {0};
  bool ok = p && kl_run(exe, p, kl_feeds({"x", &tx}), kl_fetches({"fc_0.tmp_1", &out}));
  kl_tensor_free(&out);
  kl_program_free(p);
  kl_exec_free(exe);
  return ok;
}

static bool train(kl_exec_options o) {
  kl_exec *exe = kl_exec_new(o);
  bool ok = exe && kl_run(exe, kl_startup(w.net), NULL, NULL) && step(exe, kl_main(w.net), 4) &&
            step(exe, kl_main(w.net), 4);
  kl_exec_free(exe);
  return ok && !kl_failed();
}
static bool train_compiled(void) { return train((kl_exec_options){.threads = 2}); }
static bool train_interpreted(void) {
  return train((kl_exec_options){.threads = 1, .interpret = true});
}
static bool train_watched(void) {
  return train((kl_exec_options){
      .threads = 1, .check_nan = true, .profile = true, .trace = in_folder("trace.json")});
}

/* Nothing keeps this code, so it is generated anew each time. */
static bool generate_code(void) {
  kl_net *net = kl_net_new();
  kl_var *x = kl_data(net, "x", KL_FLOAT32, 3, 5);
  kl_named(kl_softmax(kl_unary("scale", "scale=2.0", x)), "y");
  kl_exec *exe = net ? kl_exec_new((kl_exec_options){.threads = 1}) : NULL;
  float in[15] = {1, 2, 3}, out[15];
  kl_tensor tx = kl_array(KL_FLOAT32, in, 3, 5), ty = kl_array(KL_FLOAT32, out, 3, 5);
  bool ok = exe && kl_run(exe, kl_main(net), kl_feeds({"x", &tx}), kl_fetches({"y", &ty}));
  kl_exec_free(exe);
  kl_net_free(net);
  return ok;
}

/* A filter that is kept permuted is trained, read by who wants another order, and used by a program that only reads. */
static bool permuted_state(void) {
  kl_net *net = kl_net_new();
  kl_var *h = kl_conv2d(kl_data(net, "x", KL_FLOAT32, 1, 2, 4, 4), 16, 3, .no_bias = true);
  kl_named(kl_mean(h), "loss");
  kl_program *test = net ? kl_clone_for_test(kl_main(net)) : NULL;
  kl_minimize(kl_find(net, "loss"), kl_sgd(0.1));
  kl_exec *exe = test ? kl_exec_new((kl_exec_options){.threads = 2}) : NULL;
  float in[32] = {1, 2, 3}, loss;
  kl_tensor tx = kl_array(KL_FLOAT32, in, 1, 2, 4, 4), tl = kl_scalar(KL_FLOAT32, &loss);
  bool ok = exe && kl_run(exe, kl_startup(net), NULL, NULL);
  for (int i = 0; i < 4 && ok; i++)
    ok =
        kl_run(exe, i % 2 ? test : kl_main(net), kl_feeds({"x", &tx}), kl_fetches({"loss", &tl})) &&
        kl_get(exe, "conv2d_0.w_0");
  kl_exec_free(exe);
  kl_program_free(test);
  kl_net_free(net);
  return ok;
}

/* An executor that lives on: it meets a batch size that it does not know. */
static bool new_batch(void) {
  if (!step(w.exe, kl_main(w.net), w.batch)) return false;
  w.batch++;
  return true;
}

static bool read_all_arrays(void) {
  static const char *const names[] = {"a.npy",    "a.npy.gz",     "a.idx",
                                      "a.idx.gz", "stored.npz:a", "deflated.npz"};
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
    kl_tensor t;
    if (!kl_read_array(in_folder(names[i]), &t)) return false;
    assert_int_equal(kl_numel(&t), 6);
    kl_tensor_free(&t);
  }
  return true;
}

/* ---- files for them ---- */

static void put(const char *name, const void *data, size_t n) {
  char path[600], *slash;
  snprintf(path, sizeof path, "%s/%s", w.folder, name);
  slash = strrchr(path, '/');
  *slash = 0;
  assert_true(vfs_mkdirs(path));
  *slash = '/';
  FILE *f = fopen(path, "wb");
  assert_non_null(f);
  assert_int_equal(fwrite(data, 1, n, f), n);
  fclose(f);
}

static void put_gz(const char *name, const void *data, size_t n) {
  gzFile f = gzopen(in_folder(name), "wb");
  assert_int_equal(gzwrite(f, data, (unsigned)n), (int)n);
  gzclose(f);
}

static void le(uint8_t **p, uint32_t v, int bytes) {
  while (bytes--) *(*p)++ = (uint8_t)v, v >>= 8;
}

/* An archive with the one member a.npy. */
static void put_zip(const char *name, const uint8_t *data, size_t n, bool deflated) {
  static uint8_t zip[4096], packed[2048];
  z_stream z = {.next_in = (Bytef *)(uintptr_t)data,
                .avail_in = (uInt)n,
                .next_out = packed,
                .avail_out = sizeof packed};
  deflateInit2(&z, 9, Z_DEFLATED, -15, 8, Z_DEFAULT_STRATEGY);
  deflate(&z, Z_FINISH);
  uint32_t size = deflated ? (uint32_t)z.total_out : (uint32_t)n, method = deflated ? 8 : 0;
  deflateEnd(&z);
  uint32_t crc = (uint32_t)crc32(0, data, (uInt)n);
  uint8_t *p = zip;
  le(&p, 0x04034b50, 4), le(&p, 20, 2), le(&p, 0, 2), le(&p, method, 2), le(&p, 0, 4);
  le(&p, crc, 4), le(&p, size, 4), le(&p, (uint32_t)n, 4), le(&p, 5, 2), le(&p, 0, 2);
  memcpy(p, "a.npy", 5), p += 5;
  memcpy(p, deflated ? packed : data, size), p += size;
  uint32_t at = (uint32_t)(p - zip);
  le(&p, 0x02014b50, 4), le(&p, 20, 2), le(&p, 20, 2), le(&p, 0, 2), le(&p, method, 2);
  le(&p, 0, 4), le(&p, crc, 4), le(&p, size, 4), le(&p, (uint32_t)n, 4), le(&p, 5, 2);
  le(&p, 0, 2), le(&p, 0, 2), le(&p, 0, 2), le(&p, 0, 2), le(&p, 0, 4), le(&p, 0, 4);
  memcpy(p, "a.npy", 5), p += 5;
  uint32_t length = (uint32_t)(p - zip) - at;
  le(&p, 0x06054b50, 4), le(&p, 0, 4), le(&p, 1, 2), le(&p, 1, 2), le(&p, length, 4);
  le(&p, at, 4), le(&p, 0, 2);
  put(name, zip, (size_t)(p - zip));
}

static void put_arrays(void) {
  uint8_t npy[128 + 24] = "\x93NUMPY\x01";
  npy[8] = 118;
  memset(npy + 10, ' ', 118);
  const char head[] = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }";
  memcpy(npy + 10, head, sizeof head - 1);
  npy[127] = '\n';
  uint8_t idx[4 + 8 + 6] = {0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3, 1, 2, 3, 4, 5, 6};
  put("a.npy", npy, sizeof npy), put_gz("a.npy.gz", npy, sizeof npy);
  put("a.idx", idx, sizeof idx), put_gz("a.idx.gz", idx, sizeof idx);
  put_zip("stored.npz", npy, sizeof npy, false), put_zip("deflated.npz", npy, sizeof npy, true);
}

/* ---- stepping through the failures ---- */

typedef struct Scenario {
  const char *name;
  bool (*run)(void);
  bool writes;   /* files of w.folder */
  bool keeps;    /* memory that stays taken, in an executor that lives on */
  bool no_files; /* nothing to fail there */
} Scenario;

static Snapshot before, after;

static void restore(void) {
  Snapshot now = {0};
  snapshot_take(w.folder, &now);
  for (int i = 0; i < now.n; i++)
    if (!snapshot_file(&before, now.v[i].name)) unlink(in_folder(now.v[i].name));
  for (int i = 0; i < before.n; i++) {
    const File *is = snapshot_file(&now, before.v[i].name);
    if (!snapshot_same(&before.v[i], is)) put(before.v[i].name, before.v[i].data, before.v[i].n);
  }
  snapshot_drop(&now);
}

static void untouched(const Scenario *s, const char *what, int n) {
  Snapshot now = {0};
  if (!s->writes) return;
  snapshot_take(w.folder, &now);
  if (!snapshot_whole(&now, &before, &after)) {
    for (int i = 0; i < now.n; i++)
      print_error("  %s %s%s\n", now.v[i].name,
                  snapshot_same(&now.v[i], snapshot_file(&before, now.v[i].name)) ? "old" : "",
                  snapshot_same(&now.v[i], snapshot_file(&after, now.v[i].name)) ? "new" : "");
    fail_msg("%s, %s %d: the files are neither the old nor the new ones", s->name, what, n);
  }
  snapshot_drop(&now);
  restore();
}

static bool is_memory(ErrCode c) { return c == E_MEM_001; }
static bool is_file(ErrCode c) { return c == E_IO_001 || c == E_IO_002; }

/* One run that met a failure: a coded error, then everything as before. */
static void judge(const Scenario *s, const char *what, int n, bool ok, bool (*fits)(ErrCode)) {
  const Diag *d = err_get();
  if (ok || !d || !fits(d->code))
    fail_msg("%s, %s %d: %s", s->name, what, n, d ? kl_error() : "no error");
  err_clear();
  untouched(s, what, n);
}

static void step_allocations(const Scenario *s, size_t chunk) {
  bool hit = true;
  int n = 0;
  for (n = 1; hit; n += n < 400 ? 1 : n / 12) {
    mem_chunk = chunk;
    int64_t used = in_use;
    int files = open_files();
    fail_alloc(n);
    bool ok = s->run();
    hit = fail_alloc_done();
    fail_alloc(0);
    if (hit) judge(s, "allocation", n, ok, is_memory);
    if (!s->keeps && in_use != used)
      fail_msg("%s, allocation %d: %lld pieces of memory leak", s->name, n,
               (long long)(in_use - used));
    if (open_files() != files) fail_msg("%s, allocation %d: a file stays open", s->name, n);
    if (!hit && !ok) fail_msg("%s: %s", s->name, kl_error());
  }
  mem_chunk = 4096;
  print_message("%-20s %6d allocations\n", s->name, n);
  if (s->writes) restore();
}

static void step_files(const Scenario *s, FailFile what) {
  static const char *const names[FAIL_N] = {"open",  "read",   "write", "sync",
                                            "close", "rename", "map"};
  bool hit = true;
  for (int n = 1; hit; n++) {
    int64_t used = in_use;
    int files = open_files();
    fail_file(what, n, EIO);
    bool ok = s->run();
    hit = fail_file_done(what);
    fail_file(what, 0, 0);
    bool harmless = ok && what == FAIL_CLOSE; /* of a file that was read */
    if (hit && !harmless) judge(s, names[what], n, ok, is_file);
    if (s->writes) restore();
    if (!s->keeps && in_use != used) fail_msg("%s, %s %d: memory leaks", s->name, names[what], n);
    if (open_files() != files) fail_msg("%s, %s %d: a file stays open", s->name, names[what], n);
    if (!hit && !ok) fail_msg("%s: %s", s->name, kl_error());
  }
}

static void step_through(const Scenario *s) {
  snapshot_drop(&before), snapshot_drop(&after);
  snapshot_take(w.folder, &before);
  if (!s->run()) fail_msg("%s: %s", s->name, kl_error()); /* also fills tables of the process */
  snapshot_take(w.folder, &after);
  if (s->writes) restore();
  step_allocations(s, 4096);
  step_allocations(s, 1);
  for (FailFile f = 0; !s->no_files && f < FAIL_N; f++) step_files(s, f);
}

/* ---- the tests ---- */

static int set_up(void **state) {
  (void)state;
  under = mem_table;
  mem_table = (MemTable){counting_alloc, counting_free};
  strcpy(w.folder, scratch_folder());
  w.batch = 5;
  w.net = small_net();
  w.exe = kl_exec_new((kl_exec_options){.threads = 2});
  w.other = kl_exec_new((kl_exec_options){.threads = 1});
  if (kl_failed()) return -1;
  kl_run(w.other, kl_startup(w.net), NULL, NULL);
  step(w.other, kl_main(w.net), 4);
  put_arrays();
  /* what the writing scenarios find: files of another state */
  kl_exec *exe = w.exe;
  w.exe = w.other;
  save_params(), save_model(), save_checkpoint();
  put("main.kl", "old", 3), put("main.pdmodel", "old", 3);
  w.exe = exe;
  kl_run(w.exe, kl_startup(w.net), NULL, NULL);
  step(w.exe, kl_main(w.net), 4);
  step(w.exe, kl_main(w.net), 4);
  exec_set_step(w.exe->run, 1); /* so that its checkpoint replaces the other */
  if (kl_failed()) print_error("%s", kl_error());
  return kl_failed() ? -1 : 0;
}

static int tear_down(void **state) {
  (void)state;
  kl_exec_free(w.exe), kl_exec_free(w.other);
  kl_net_free(w.net);
  snapshot_drop(&before), snapshot_drop(&after);
  scratch_remove(w.folder);
  return 0;
}

static void building(void **state) {
  (void)state;
  step_through(&(Scenario){"LeNet", lenet, .no_files = true});
}

static void writing(void **state) {
  (void)state;
  step_through(&(Scenario){"save text", save_text, .writes = true});
  step_through(&(Scenario){"save ProgramDesc", save_proto, .writes = true});
  step_through(&(Scenario){"save parameters", save_params, .writes = true});
  step_through(&(Scenario){"save model", save_model, .writes = true});
  step_through(&(Scenario){"checkpoint", save_checkpoint, .writes = true});
}

static void reading(void **state) {
  (void)state;
  assert_true(save_text() && save_proto());
  step_through(&(Scenario){"load text", load_text, .writes = false});
  step_through(&(Scenario){"load ProgramDesc", load_proto, .writes = false});
  step_through(&(Scenario){"load parameters", load_params, .keeps = true});
  step_through(&(Scenario){"load model", load_model, .writes = false});
  step_through(&(Scenario){"resume", resume, .keeps = true});
  step_through(&(Scenario){"arrays", read_all_arrays, .writes = false});
}

static void running(void **state) {
  (void)state;
  step_through(&(Scenario){"interpreted", train_interpreted, .no_files = true});
  step_through(&(Scenario){"compiled", train_compiled, .no_files = true});
  step_through(&(Scenario){"watched", train_watched, .writes = false});
  step_through(&(Scenario){"permuted", permuted_state, .no_files = true});
  step_through(&(Scenario){"new code", generate_code, .no_files = true});
}

/* A run that fails for want of memory leaves the parameters alone, and the executor goes on. */
static void going_on(void **state) {
  (void)state;
  kl_tensor was = *kl_get(w.exe, "fc_0.w_0");
  size_t bytes = tensor_bytes(as_tensor(&was));
  float *copy = malloc(bytes);
  for (int n = 1, hit = 1; hit; n++) {
    memcpy(copy, was.data, bytes);
    fail_alloc(n);
    bool ok = new_batch();
    hit = fail_alloc_done();
    fail_alloc(0);
    assert_int_equal(ok, !hit);
    if (hit) expect_error(E_MEM_001, "out of memory");
    assert_int_equal(!memcmp(copy, was.data, bytes), hit);
  }
  free(copy);
}

/* In a process of its own, where the tables that fill at the first call are empty; afterwards the call works. */
static void first_calls(void **state) {
  (void)state;
  for (int n = 1, rc = 1; rc == 1; n += n < 60 ? 1 : n / 4) {
    pid_t child = fork();
    if (!child) {
      fail_alloc(n);
      bool ok = lenet(), hit = fail_alloc_done();
      fail_alloc(0);
      bool coded = ok != hit && (ok || err_get()->code == E_MEM_001);
      err_clear();
      _exit(!coded || !lenet() ? 2 : hit);
    }
    int status;
    waitpid(child, &status, 0);
    if (!WIFEXITED(status) || WEXITSTATUS(status) > 1) fail_msg("allocation %d", n);
    rc = WEXITSTATUS(status);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(building), cmocka_unit_test(writing),  cmocka_unit_test(reading),
      cmocka_unit_test(running),  cmocka_unit_test(going_on),
  };
  const struct CMUnitTest first[] = {cmocka_unit_test(first_calls)};
  int failed = cmocka_run_group_tests(first, NULL, NULL);
  return failed + cmocka_run_group_tests(tests, set_up, tear_down);
}
