/* Programs that PaddlePaddle 2.6 wrote (tests/peers/fixtures.py), replayed: tests/fixtures/NAME holds
 *   main.pdmodel            the program; startup.pdmodel and first.pdiparams, if there, give its first values
 *   feed-V.npy fetch-V.npy  for each run (the first dimension) what variable V is fed, and what it was in PaddlePaddle
 *   last.pdiparams          all persistable variables after the last run
 * Each is run compiled, interpreted and on the simulator of a GPU (tests/cudasim), and its program survives both file forms. In names of files % stands for /. */
#include "../executor/executor.h"
#include "../frontend/kiln.h"
#include "simulator.h"
#include "util.h"
#include <dirent.h>
#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { MAX = 8 };
static const double tolerance = 1e-3;

typedef struct Column {
  char name[128];
  kl_tensor all; /* [runs, ...] */
} Column;

typedef struct Fixture {
  char folder[256];
  kl_program *main;
  int n_feed, n_fetch;
  Column feed[MAX], fetch[MAX];
} Fixture;

static const char *file(const Fixture *f, const char *name) {
  static char path[512];
  snprintf(path, sizeof path, "%s/%s", f->folder, name);
  return path;
}

static void take_column(const Fixture *f, const char *entry, const char *prefix, int *n,
                        Column *columns) {
  size_t skip = strlen(prefix), end = strlen(entry) - strlen(".npy");
  if (strncmp(entry, prefix, skip)) return;
  assert_in_range(*n, 0, MAX - 1);
  Column *c = &columns[(*n)++];
  snprintf(c->name, sizeof c->name, "%.*s", (int)(end - skip), entry + skip);
  for (char *p = c->name; *p; p++)
    if (*p == '%') *p = '/';
  assert_true(kl_read_array(file(f, entry), &c->all));
}

static void open_fixture(Fixture *f, const char *name) {
  *f = (Fixture){0};
  snprintf(f->folder, sizeof f->folder, "tests/fixtures/%s", name);
  f->main = kl_load(file(f, "main.pdmodel"));
  if (!f->main) fail_msg("%s", kl_error());
  DIR *d = opendir(f->folder);
  assert_non_null(d);
  for (struct dirent *e; (e = readdir(d));) {
    take_column(f, e->d_name, "feed-", &f->n_feed, f->feed);
    take_column(f, e->d_name, "fetch-", &f->n_fetch, f->fetch);
  }
  closedir(d);
  assert_int_not_equal(f->n_feed, 0);
  assert_int_not_equal(f->n_fetch, 0);
}

static void close_fixture(Fixture *f) {
  for (int i = 0; i < f->n_feed; i++) kl_tensor_free(&f->feed[i].all);
  for (int i = 0; i < f->n_fetch; i++) kl_tensor_free(&f->fetch[i].all);
  kl_program_free(f->main);
}

/* Run i of a column. */
static kl_tensor part(const Column *c, int64_t i) {
  kl_tensor t = c->all;
  size_t bytes = tensor_bytes((const Tensor *)&c->all) / (size_t)c->all.dims[0];
  t.data = (char *)c->all.data + (size_t)i * bytes;
  t.rank--;
  memmove(t.dims, t.dims + 1, sizeof *t.dims * (size_t)t.rank);
  return t;
}

/* ||a - b|| / ||b|| */
static void compare(const Fixture *f, const char *what, const kl_tensor *a, const kl_tensor *b) {
  const Tensor *x = (const Tensor *)a, *y = (const Tensor *)b;
  if (a->dtype != b->dtype || a->rank != b->rank || kl_numel(a) != kl_numel(b))
    fail_msg("%s, %s: %s, in PaddlePaddle %s", f->folder, what,
             shape_text(x->dtype, x->rank, x->dims), shape_text(y->dtype, y->rank, y->dims));
  double d = 0, n = 1e-12;
  for (int64_t i = 0; i < kl_numel(b); i++) {
    double u = tensor_get(x, i), v = tensor_get(y, i);
    d += (u - v) * (u - v);
    n += v * v;
  }
  if (!(sqrt(d / n) <= tolerance)) fail_msg("%s, %s differs by %g", f->folder, what, sqrt(d / n));
}

static void start(const Fixture *f, kl_exec *exe) {
  bool ok = true;
  if (vfs_is_file(file(f, "startup.pdmodel"))) {
    kl_program *p = kl_load(file(f, "startup.pdmodel"));
    ok = p && kl_run(exe, p, NULL, NULL);
    kl_program_free(p);
  }
  if (ok && vfs_is_file(file(f, "first.pdiparams")))
    ok = kl_load_params(exe, f->main, file(f, "first.pdiparams"));
  if (!ok) fail_msg("%s: %s", f->folder, kl_error());
}

static void compare_last(const Fixture *f, kl_exec *exe) {
  if (!vfs_is_file(file(f, "last.pdiparams"))) return;
  Arena *a = arena_new();
  Var **vars;
  int n = params_list((const Program *)f->main, a, &vars);
  kl_exec *other = kl_exec_new(kl_exec_defaults);
  if (!kl_load_params(other, f->main, file(f, "last.pdiparams"))) fail_msg("%s", kl_error());
  for (int i = 0; i < n; i++) {
    const kl_tensor *mine = kl_get(exe, vars[i]->name), *want = kl_get(other, vars[i]->name);
    assert_true(mine && want);
    compare(f, vars[i]->name, mine, want);
  }
  kl_exec_free(other);
  arena_free(a);
}

static void replay(const Fixture *f, kl_exec_options o) {
  o.threads = 2;
  kl_exec *exe = kl_exec_new(o);
  start(f, exe);
  for (int64_t run = 0; run < f->feed[0].all.dims[0]; run++) {
    kl_tensor in[MAX], out[MAX] = {0};
    kl_feed feeds[MAX + 1] = {0};
    kl_fetch fetches[MAX + 1] = {0};
    for (int i = 0; i < f->n_feed; i++) {
      in[i] = part(&f->feed[i], run);
      feeds[i] = (kl_feed){f->feed[i].name, &in[i]};
    }
    for (int i = 0; i < f->n_fetch; i++) fetches[i] = (kl_fetch){f->fetch[i].name, &out[i]};
    if (!kl_run(exe, f->main, feeds, fetches)) fail_msg("%s: %s", f->folder, kl_error());
    for (int i = 0; i < f->n_fetch; i++) {
      kl_tensor want = part(&f->fetch[i], run);
      compare(f, f->fetch[i].name, &out[i], &want);
      kl_tensor_free(&out[i]);
    }
  }
  compare_last(f, exe);
  kl_exec_free(exe);
}

static void round_trips(const Fixture *f) {
  Arena *a = arena_new();
  Str text, why;
  str_init(&text, a);
  str_init(&why, a);
  const Program *p = (const Program *)f->main;
  uint8_t *bytes;
  size_t n;
  prog_print(p, &text);
  Program *parsed = prog_parse(text.s, text.n, "fixture.kl");
  assert_true(prog_encode(p, a, &bytes, &n));
  Program *decoded = prog_decode(bytes, n, "fixture.pdmodel");
  if (!parsed || !decoded) fail_msg("%s: %s", f->folder, kl_error());
  if (!prog_equal(p, parsed, &why) || !prog_equal(p, decoded, &why))
    fail_msg("%s: %s", f->folder, why.s);
  prog_free(parsed);
  prog_free(decoded);
  arena_free(a);
}

static void replay_fixture(void **state) {
  Fixture f;
  open_fixture(&f, *state);
  round_trips(&f);
  replay(&f, (kl_exec_options){0});
  replay(&f, (kl_exec_options){.interpret = true});
  replay(&f, (kl_exec_options){.device = "cuda"});
  close_fixture(&f);
  assert_false(kl_failed());
}

#define FIXTURE(name)                                                                              \
  { #name, replay_fixture, NULL, NULL, #name }

int main(int argc, char *argv[]) {
  (void)argc;
  if (!simulator(argv)) return 1;
  const struct CMUnitTest tests[] = {FIXTURE(mlp),
                                     FIXTURE(convnet),
                                     FIXTURE(attention),
                                     FIXTURE(regression_adamw),
                                     FIXTURE(inference),
                                     FIXTURE(control_while),
                                     FIXTURE(control_branch),
                                     FIXTURE(control_array),
                                     FIXTURE(control_shapes),
                                     FIXTURE(control_decoder),
                                     FIXTURE(language),
                                     FIXTURE(involution),
                                     FIXTURE(alignment),
                                     FIXTURE(pieces),
                                     FIXTURE(sequences),
                                     FIXTURE(lod_loop),
                                     FIXTURE(lod_levels),
                                     FIXTURE(lod_dynamic_rnn),
                                     FIXTURE(lod_choice),
                                     FIXTURE(lod_rows),
                                     FIXTURE(lod_beam),
                                     FIXTURE(recurrences),
                                     FIXTURE(fusions),
                                     FIXTURE(rows),
                                     FIXTURE(merged),
                                     FIXTURE(penalty),
                                     FIXTURE(given)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
