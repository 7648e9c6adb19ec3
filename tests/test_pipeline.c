/* Random programs through the whole pipeline: chains and graphs of operators over small tensors, some with gradients and
 * updates, run compiled on one thread and on three and by the interpreter. The compiled runs agree bit for bit, and with
 * the interpreter within the tolerance of float32. Batch sizes change on one executor; sizes 0 and 1, scalars, shared
 * subexpressions, several fetches and updates in place are among them.
 *
 * The same programs are run each time, however long they take. KILN_SEEDS=N runs as many others, from seed N on;
 * KILN_SEED=N runs the one program of that seed and prints it. */
#include "randprog.h"
#include "../executor/executor.h"
#include "../passes/passes.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

enum { PROGRAMS = 500, MOST_FETCH = 6 };

/* ---- running it ---- */

enum { INTERPRETED, ONE, THREE, WAYS };
typedef struct Way {
  Executor *e;
  Scope *s;
  bool ok;
  Diag error;
  Tensor out[MOST_FETCH];
} Way;

static void fill(Tensor *t, uint64_t seed, char kind) {
  int64_t n = tensor_numel(t);
  for (int64_t i = 0; i < n; i++) {
    double v = test_random(&seed, -1, 1);
    if (kind == 'p') v = 1.25 + 0.75 * v;
    if (kind == 'q') v = v > 0;
    if (kind == 'i') v = 0;
    if (kind == 'r') v *= 0.01; /* the learning rate */
    tensor_set(t, i, v);
  }
}

static void init_scope(Scope *s, const Program *p, uint64_t seed) {
  const Block *b = p->blocks.v[0];
  for (int i = 0; i < b->vars.n; i++) {
    const Var *v = b->vars.v[i];
    if (v->persistable)
      fill(scope_set(s, v->name, v->dtype, v->rank, v->dims, NULL), seed + (uint64_t)i, *v->name);
  }
}

static int n_runs, n_refused; /* of the interpreter */

static bool run_way(Way *w, const Program *p, int64_t batch, uint64_t seed, int n_fetch,
                    const char *const *fetch, Arena *a) {
  const Block *b = p->blocks.v[0];
  Feed feeds[4];
  int n = 0;
  for (int i = 0; i < b->vars.n; i++) {
    const Var *v = b->vars.v[i];
    if (!v->need_check_feed) continue;
    Tensor *t = arena_new_of(a, Tensor);
    int64_t dims[KL_VAR_RANK];
    for (int d = 0; d < v->rank; d++) dims[d] = v->dims[d] < 0 ? batch : v->dims[d];
    assert_true(tensor_make(t, a, v->dtype, v->rank, dims));
    fill(t, seed * 31 + (uint64_t)i, 'x');
    feeds[n++] = (Feed){v->name, t};
  }
  memset(w->out, 0, sizeof w->out);
  w->ok = exec_run(w->e, w->s, p, n, feeds, n_fetch, fetch, w->out);
  if (!w->ok) w->error = *err_get();
  if (!w->ok && getenv("KILN_SEED")) err_print(stderr, false);
  n_runs += exec_options(w->e)->interpret;
  n_refused += exec_options(w->e)->interpret && !w->ok;
  err_clear();
  return w->ok;
}

static double tolerance;

static bool close_enough(const Tensor *a, const Tensor *b, int64_t *at) {
  if (a->dtype != b->dtype || a->rank != b->rank ||
      memcmp(a->dims, b->dims, sizeof *a->dims * (size_t)a->rank))
    return *at = -1, false;
  int64_t n = tensor_numel(a);
  double most = 0;
  for (int64_t i = 0; i < n; i++)
    if (isfinite(tensor_get(a, i))) most = fmax(most, fabs(tensor_get(a, i)));
  for (*at = 0; *at < n; ++*at) {
    double x = tensor_get(a, *at), y = tensor_get(b, *at);
    if (x == y || (isnan(x) && isnan(y))) continue;
    if (!(fabs(x - y) <= tolerance * (1 + most))) return false;
  }
  return true;
}

static bool same_bits(const Tensor *a, const Tensor *b, int64_t *at) {
  *at = 0;
  return a->dtype == b->dtype && tensor_bytes(a) == tensor_bytes(b) &&
         !memcmp(a->data, b->data, tensor_bytes(a));
}

static bool differ(const char *what, const char *name, const Tensor *a, const Tensor *b,
                   int64_t at) {
  print_error("%s: %s at %lld of %s: %.9g and %.9g (%s)\n", what, name, (long long)at,
              shape_text(a->dtype, a->rank, a->dims), at < 0 ? 0 : tensor_get(a, at),
              at < 0 ? 0 : tensor_get(b, at), shape_text(b->dtype, b->rank, b->dims));
  return false;
}

static bool compare(Way *w, const Program *p, int n_fetch, const char *const *fetch) {
  int64_t at;
  for (int k = 1; k < WAYS; k++)
    if (w[k].ok != w[0].ok || (!w[0].ok && w[k].error.code != w[0].error.code)) {
      print_error("interpreter: %s %s; compiled: %s %s\n", err_name(w[0].error.code),
                  w[0].error.summary, err_name(w[k].error.code), w[k].error.summary);
      return false;
    }
  for (int i = 0; w[0].ok && i < n_fetch; i++) {
    if (!same_bits(&w[ONE].out[i], &w[THREE].out[i], &at))
      return differ("1 and 3 threads", fetch[i], &w[ONE].out[i], &w[THREE].out[i], at);
    if (!close_enough(&w[0].out[i], &w[ONE].out[i], &at))
      return differ("interpreter and code", fetch[i], &w[0].out[i], &w[ONE].out[i], at);
  }
  const Block *b = p->blocks.v[0];
  for (int i = 0; i < b->vars.n; i++) {
    const char *name = b->vars.v[i]->name;
    const Tensor *s[WAYS];
    for (int k = 0; k < WAYS; k++) s[k] = scope_get(w[k].s, name);
    if (!s[0] || !s[1] || !s[2]) continue;
    if (!same_bits(s[ONE], s[THREE], &at)) return differ("state, threads", name, s[1], s[2], at);
    if (!close_enough(s[0], s[ONE], &at)) return differ("state, code", name, s[0], s[1], at);
  }
  return true;
}

static void make_ways(Way *w, const Program *p, uint64_t seed) {
  for (int k = 0; k < WAYS; k++) {
    ExecOptions o = {.threads = k == THREE ? 3 : 1,
                     .interpret = k == INTERPRETED,
                     .no_blas = seed % 4 == 3,
                     .seed = 11};
    w[k] = (Way){.e = exec_new(&o), .s = scope_new()};
    init_scope(w[k].s, p, seed);
  }
}

static void free_ways(Way *w) {
  for (int k = 0; k < WAYS; k++) exec_free(w[k].e), scope_free(w[k].s);
}

static int choose_fetches(Gen *g, int n_grads, const char **fetch) {
  int n = n_grads;
  while (n < MOST_FETCH - 1 && gen_pick(g, 3)) fetch[n++] = g->v[gen_pick(g, g->n)].var->name;
  fetch[n++] = g->v[g->n - 1].var->name;
  return n;
}

/* Infinite weights: padding times them is 0 here and NaN there. */
static bool state_is_finite(Scope *s, const Program *p) {
  const Block *b = p->blocks.v[0];
  for (int i = 0; i < b->vars.n; i++) {
    const Tensor *t = scope_get(s, b->vars.v[i]->name);
    for (int64_t k = 0; t && k < tensor_numel(t); k++)
      if (!isfinite(tensor_get(t, k))) return false;
  }
  return true;
}

static bool check_program(Gen *g, const Program *p, int n_grads, const char **fetch,
                          uint64_t seed) {
  Way w[WAYS];
  bool ok = true;
  tolerance = g->halves ? 0.03 : 2e-4;
  int n_fetch = choose_fetches(g, n_grads, fetch);
  make_ways(w, p, seed);
  static const int64_t sizes[] = {3, 1, 0, 2, 70};
  int64_t first = sizes[gen_pick(g, 5)],
          batches[3] = {first, gen_pick(g, 3) ? first : sizes[gen_pick(g, 5)], first};
  for (int i = 0; ok && i < 3 && state_is_finite(w[0].s, p); i++) {
    Arena *a = arena_new();
    for (int k = 0; k < WAYS; k++)
      run_way(&w[k], p, batches[i], seed + (uint64_t)i, n_fetch, fetch, a);
    ok = compare(w, p, n_fetch, fetch);
    if (!ok) print_error("in run %d with batch size %lld\n", i, (long long)batches[i]);
    for (int k = 0; k < WAYS; k++)
      for (int f = 0; w[k].ok && f < n_fetch; f++) mem_free(w[k].out[f].data);
    arena_free(a);
  }
  free_ways(w);
  return ok;
}

static void print_program(const Program *p) {
  Arena *a = arena_new();
  Str s;
  str_init(&s, a);
  prog_print(p, &s);
  fputs(s.s, stderr);
  arena_free(a);
}

/* True if the program of this seed has operators and all runs agree. */
static bool check_seed(uint64_t seed, int *n_ops, int *n_grads, bool show) {
  layout_always = seed % 3; /* channels, or images, last wherever there is a convolution */
  Gen g;
  const char *fetch[MOST_FETCH];
  int grads = 0;
  gen_program(&g, seed);
  Program *q = g.b->ops.n && gen_pick(&g, 5) < 3 ? gen_gradients(&g, fetch, &grads) : NULL;
  const Program *p = q ? q : g.p;
  if (show) print_program(p);
  bool ok = true;
  if (!prog_verify(p)) {
    err_print(stderr, false);
    err_clear();
    ok = false;
  }
  ok = ok && check_program(&g, p, grads, fetch, seed);
  if (!ok && !show) print_program(p);
  if (!ok) print_error("seed %llu\n", (unsigned long long)seed);
  *n_ops += g.b->ops.n;
  *n_grads += q != NULL;
  prog_free(q), prog_free(g.p);
  return ok;
}

static void programs(void **state) {
  (void)state;
  const char *only = getenv("KILN_SEED");
  int ops = 0, grads = 0, bad = 0;
  if (only) {
    assert_true(check_seed(strtoull(only, NULL, 10), &ops, &grads, true));
    return;
  }
  const char *others = getenv("KILN_SEEDS");
  int from = others ? atoi(others) : 0;
  for (int i = 0; i < PROGRAMS && bad < 5; i++)
    bad += !check_seed((uint64_t)(from + i), &ops, &grads, false);
  print_message("%d programs, %d operators, %d with gradients; %d runs, %d of them refused\n",
                PROGRAMS, ops, grads, n_runs, n_refused);
  assert_int_equal(bad, 0);
}

static Program *parsed(const char *text) {
  Program *p = prog_parse(text, strlen(text), "text");
  if (!p || !infer_program(p, false)) fail_msg("%s", err_get()->summary);
  return p;
}

/* Small programs that random ones came down to. */
static void small_programs(void **state) {
  (void)state;
  /* a dimension of size 1 that is read outside, between two that are read as one */
  static const char outside[] = "  var x float32 [2, 1, 6] feed\n  var y\n"
                                "  y = cumsum(X=x) {axis=1, exclusive=true}\n";
  /* a padded column, peeled: its mean is read at a constant index */
  static const char column[] =
      "  var x float32 [37, 19] feed\n  var v\n  var y\n  var a\n  var b\n"
      "  param w1 float32 [20]\n  param w2 float32 [20]\n"
      "  var s1 float32 [20] persistable\n  var p1 float32 [20] persistable\n"
      "  v = pad(X=x) {pad_value=0.5, paddings=[0, 0, 1, 0]}\n"
      "  MeanOut=s1, SavedMean=a, SavedVariance=b, VarianceOut=p1, Y=y = batch_norm(Bias=w1, "
      "Mean=s1, Scale=w2, Variance=p1, X=v) {epsilon=0.1}\n";
  /* true is what 0.5 is as a bool */
  static const char half[] = "  var x float32 [3] feed\n  var v\n  var y\n"
                             "  v = less_than(X=x, Y=x)\n"
                             "  y = pad(X=v) {pad_value=0.5, paddings=[1, 2]}\n";
  static const char *const texts[] = {outside, column, half};
  const char *fetch = "y";
  tolerance = 1e-5;
  for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
    Arena *a = arena_new();
    Program *p = parsed(arena_fmt(a, "program\nblock 0 {\n%s}\n", texts[i]));
    Way w[WAYS];
    make_ways(w, p, i);
    for (int k = 0; k < WAYS; k++) assert_true(run_way(&w[k], p, 1, i, 1, &fetch, a));
    assert_true(compare(w, p, 1, &fetch));
    for (int k = 0; k < WAYS; k++) mem_free(w[k].out[0].data);
    free_ways(w);
    prog_free(p);
    arena_free(a);
  }
}

/* State may change its size: within a run, and between programs that share a scope. */
static void state_sizes(void **state) {
  (void)state;
  Program *grow = parsed("program\nblock 0 {\n  var s float32 [-1] persistable\n"
                         "  var x float32 [2] feed\n  var y float32 [-1]\n"
                         "  y = scale(X=s) {scale=2.0}\n  s = concat(X=[y, x]) {axis=0}\n}\n");
  Program *two = parsed("program\nblock 0 {\n  var s float32 [2] persistable\n"
                        "  s = fill_constant() {shape=[2]L, value=1.0}\n}\n");
  Program *five = parsed("program\nblock 0 {\n  var s float32 [5] persistable\n"
                         "  s = fill_constant() {shape=[5]L, value=3.0}\n}\n");
  Program *steps[] = {two, grow, grow, five, grow, two, grow, two, five, five};
  for (int interpret = 0; interpret < 2; interpret++) {
    Executor *e = exec_new(&(ExecOptions){.threads = 1, .interpret = interpret});
    Scope *s = scope_new();
    float x[2] = {7, 8}, want[16];
    int n = 0;
    Tensor tx = {.dtype = DT_FLOAT32, .rank = 1, .dims = {2}, .data = x};
    Feed feed = {"x", &tx};
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
      if (!exec_run(e, s, steps[i], steps[i] == grow, &feed, 0, NULL, NULL))
        fail_msg("%s", err_get()->summary);
      if (steps[i] == grow) {
        for (int k = 0; k < n; k++) want[k] *= 2;
        want[n] = 7, want[n + 1] = 8, n += 2;
      } else {
        n = steps[i] == two ? 2 : 5;
        for (int k = 0; k < n; k++) want[k] = n == 2 ? 1 : 3;
      }
      const Tensor *t = scope_get(s, "s");
      assert_int_equal(tensor_numel(t), n);
      assert_memory_equal(t->data, want, (size_t)n * sizeof *want);
    }
    exec_free(e), scope_free(s);
  }
  prog_free(grow), prog_free(two), prog_free(five);
}

/* A check is made at every element, also where only some of the checked tensor is used, or nothing. */
static void checks(void **state) {
  (void)state;
  static const char *const uses[] = {
      "  y = gather(X=w, Index=i) {axis=0}\n",
      "  v = gather(X=w, Index=i) {axis=0}\n  y = slice(Input=v) {axes=[0], starts=[0], "
      "ends=[1]}\n",
      "  v = gather(X=w, Index=i) {axis=0}\n  y = slice(Input=v) {axes=[0], starts=[1], "
      "ends=[1]}\n",
      "  v = one_hot_v2(X=i) {depth=4}\n  y = slice(Input=v) {axes=[0], starts=[0], ends=[2]}\n",
  };
  for (size_t u = 0; u < sizeof uses / sizeof *uses; u++)
    for (int interpret = 0; interpret < 2; interpret++) {
      char text[600];
      snprintf(text, sizeof text,
               "program\nblock 0 {\n  var w float32 [4, 2] feed\n  var i int64 [3] feed\n"
               "  var v\n  var y\n%s}\n",
               uses[u]);
      Program *p = parsed(text);
      Executor *e = exec_new(&(ExecOptions){.threads = 1, .interpret = interpret});
      Scope *s = scope_new();
      float w[8] = {0};
      int64_t i[3] = {0, 1, 9};
      Tensor tw = {.dtype = DT_FLOAT32, .rank = 2, .dims = {4, 2}, .data = w},
             ti = {.dtype = DT_INT64, .rank = 1, .dims = {3}, .data = i}, out = {0};
      const char *fetch = "y";
      assert_false(exec_run(e, s, p, 2, (Feed[]){{"w", &tw}, {"i", &ti}}, 1, &fetch, &out));
      assert_int_equal(err_get()->code, E_DAT_002);
      err_clear();
      exec_free(e), scope_free(s), prog_free(p);
    }
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(programs), cmocka_unit_test(small_programs),
                                     cmocka_unit_test(state_sizes), cmocka_unit_test(checks)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
