/* bench: how long a model's main program takes.
 *
 * In: a program, optionally its startup program, feed shapes. Out: latency (min, median, p90, p99), GFLOP/s, the memory
 * plan and the peak resident set. Parameters come from the startup program, a parameter file, or small random numbers;
 * feeds are random. The first run, which compiles, is reported apart. */
#include "tools.h"
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

typedef struct Options {
  const char *startup, *params, *fetch;
  List shapes;
  int64_t threads, reps;
  bool json, profile;
} Options;

static int by_value(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return x < y ? -1 : x > y;
}

static bool fill_state(const Model *m, const Options *o, Executor *e, Scope *s) {
  if (o->startup) {
    Program *p = prog_load(o->startup);
    bool ok = p && exec_run(e, s, p, 0, NULL, 0, NULL, NULL);
    prog_free(p);
    return ok;
  }
  if (m->params) return model_load_params(m, s);
  Var **vars;
  int n = params_list(m->prog, m->arena, &vars);
  for (int i = 0; i < n; i++) {
    Tensor *t = scope_set(s, vars[i]->name, vars[i]->dtype, vars[i]->rank, vars[i]->dims, NULL);
    if (!t) return false;
    fill_random(t, (uint64_t)i + 1);
    for (int64_t k = 0; k < tensor_numel(t); k++) /* small, and positive for variances */
      tensor_set(t, k, 0.05 * tensor_get(t, k) + (vars[i]->rank == 1 ? 0.1 : 0));
  }
  return true;
}

typedef struct Result {
  double first_ms, *ms;
  int n;
  PlanInfo plan;
} Result;

static double quantile(const Result *r, double q) { return r->ms[(int)(q * (r->n - 1) + 0.5)]; }

static void print_result(const Result *r, bool json) {
  struct rusage u;
  getrusage(RUSAGE_SELF, &u);
  double median = quantile(r, 0.5), gflops = (double)r->plan.flops / (median * 1e6);
  double ratio = r->plan.lower_bound ? (double)r->plan.arena / (double)r->plan.lower_bound : 1;
  if (json) {
    printf("{\"first_ms\": %.3f, \"compile_ms\": %.3f, \"min_ms\": %.4f, \"median_ms\": %.4f, "
           "\"p90_ms\": %.4f, \"p99_ms\": %.4f, \"gflops\": %.3f, \"kernels\": %d, "
           "\"arena\": %lld, \"lower_bound\": %lld, \"ratio\": %.4f, \"rss_kb\": %ld}\n",
           r->first_ms, r->plan.compile_ms, r->ms[0], median, quantile(r, 0.9), quantile(r, 0.99),
           gflops, r->plan.kernels, (long long)r->plan.arena, (long long)r->plan.lower_bound, ratio,
           u.ru_maxrss);
    return;
  }
  printf("first run   %10.3f ms (compilation %.3f)\n", r->first_ms, r->plan.compile_ms);
  printf("min         %10.4f ms\nmedian      %10.4f ms\np90         %10.4f ms\np99         %10.4f "
         "ms\n",
         r->ms[0], median, quantile(r, 0.9), quantile(r, 0.99));
  printf("arithmetic  %10.3f GFLOP/s (%s FLOPs)\nkernels     %10d\n", gflops,
         grouped(r->plan.flops), r->plan.kernels);
  printf("arena       %10s bytes, lower bound %s, ratio %.4f\n", grouped(r->plan.arena),
         grouped(r->plan.lower_bound), ratio);
  printf("peak RSS    %10s KiB\n", grouped(u.ru_maxrss));
}

static bool measure(const Options *o, const Model *m, Executor *e, Scope *s, Result *r) {
  int n, n_fetch = 0;
  Feed *feeds;
  const char **fetch;
  if (!model_feed_shapes(m, &o->shapes, &n, &feeds)) return false;
  for (int i = 0; i < n; i++) {
    Tensor *t = (Tensor *)feeds[i].value;
    t->data = arena_alloc(m->arena, tensor_bytes(t) + 1);
    fill_random(t, (uint64_t)i + 77);
  }
  if (o->fetch && !split_names(m->arena, o->fetch, &n_fetch, &fetch)) return false;
  if (!o->fetch && kl_fetch_names(m->prog, (const char *[1]){0}, 0))
    n_fetch = model_fetches(m, &fetch);
  Tensor out[LIST_MAX] = {0};
  double begin = wall_seconds();
  bool ok = true;
  for (int i = -1; ok && i < r->n; i++) {
    double t0 = wall_seconds();
    ok = exec_run(e, s, m->prog, n, feeds, n_fetch, fetch, out);
    double ms = (wall_seconds() - t0) * 1e3;
    if (i < 0)
      r->first_ms = ms;
    else
      r->ms[i] = ms;
    if (i >= 9 && wall_seconds() - begin > 60) r->n = i + 1;
  }
  for (int i = 0; i < n_fetch; i++) mem_free(out[i].data);
  if (!ok) return false;
  qsort(r->ms, (size_t)r->n, sizeof *r->ms, by_value);
  r->plan = exec_last_plan(e);
  return true;
}

static bool bench(const Options *o, const char *path) {
  Model m;
  Scope *s = scope_new();
  ExecOptions eo = {.threads = (int)o->threads, .profile = o->profile};
  Executor *e = exec_new(&eo);
  Result r = {.n = (int)o->reps};
  bool ok = e && model_open(&m, path, o->params);
  if (!ok) return exec_free(e), scope_free(s), false;
  r.ms = arena_array(m.arena, double, r.n + 1);
  ok = fill_state(&m, o, e, s) && measure(o, &m, e, s, &r);
  bool list = o->json && o->profile; /* two values: [result, profile] */
  if (ok && list) printf("[");
  if (ok) print_result(&r, o->json);
  if (ok && list) printf(",");
  if (ok && o->profile) exec_profile_print(e, stdout, o->json);
  if (ok && list) printf("]\n");
  exec_free(e);
  scope_free(s);
  model_close(&m);
  return ok;
}

int verb_bench(int argc, char **argv) {
  Options o = {.reps = 100};
  Flag flags[] = {
      {"--startup", FLAG_TEXT, &o.startup, "S", "the program that initialises the parameters"},
      {"--params", FLAG_TEXT, &o.params, "FILE", "parameters (beside the program)"},
      {"--feed-shape", FLAG_LIST, &o.shapes, "NAME=DIMS", "x=8x3x224x224; other -1 dims become 1"},
      {"--fetch", FLAG_TEXT, &o.fetch, "A,B", "what to compute (the program's fetches)"},
      {"--threads", FLAG_COUNT, &o.threads, "N", "threads (all cores)"},
      {"--reps", FLAG_COUNT, &o.reps, "N", "runs to time (100; at most a minute after the tenth)"},
      {"--profile", FLAG_BOOL, &o.profile, NULL, "times per operator and kernel"},
      {"--json", FLAG_BOOL, &o.json, NULL, "as JSON"},
      {0}};
  Usage u = {"MODEL [--startup S] [--feed-shape NAME=DIMS] [--reps N]",
             "Times a model: latency, GFLOP/s, memory.", 1, 1, flags};
  List args;
  int rc = parse_args(argc, argv, &u, &args);
  if (rc >= 0) return rc;
  if (o.reps < 1 || o.reps > 1000000) return usage_error("bench: --reps must be in 1..1000000");
  return bench(&o, args.v[0]) ? 0 : report();
}
