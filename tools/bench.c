/* bench: how long a model's main program takes, and how long it would have to take at least.
 *
 * In: a program, optionally its startup program, feed shapes. Out: latency (min, median, p90, p99), GFLOP/s, the bound and
 * the part of it that is reached, the memory plan and the peak resident set. Parameters come from the startup program, a
 * parameter file, or small random numbers; feeds are random. The first run, which compiles, is reported apart. The runs are
 * timed in parts with a peak loop between them on as many threads; bandwidths are measured at the end. */
#include "tools.h"
#include "peak.h"
#include <fcntl.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PARTS = 8 };

typedef struct Options {
  const char *startup, *params, *fetch;
  List shapes;
  int64_t threads, reps;
  bool json, profile, start, once;
  ExecOptions exec; /* but for threads and profile */
  int argc;
  char **argv; /* of the verb */
} Options;

static bool on_device(const Options *o) {
  return o->exec.device && strcmp(o->exec.device, "cpu") != 0;
}

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
  Roof roof;       /* flops: the median over the parts */
  double bound_ms; /* the sum over the kernels */
  /* with --start: from exec() to the first result, without and with cached code */
  double start_ms[2];
  bool mapped[2]; /* is the code generator's library in memory then? */
} Result;

static double quantile(const Result *r, double q) { return r->ms[(int)(q * (r->n - 1) + 0.5)]; }

static double arena_ratio(const Result *r) {
  return r->plan.lower_bound ? (double)r->plan.arena / (double)r->plan.lower_bound : 1;
}

static void print_json(const Result *r, const Options *o, long rss) {
  double median = quantile(r, 0.5);
  printf("{\"first_ms\": %.3f, \"compile_ms\": %.3f, \"min_ms\": %.4f, \"median_ms\": %.4f, "
         "\"p90_ms\": %.4f, \"p99_ms\": %.4f, \"runs\": %d, \"gflops\": %.3f, "
         "\"peak_gflops\": %.3f, \"memory_gbs\": %.3f, \"bound_ms\": %.4f, "
         "\"arithmetic_ms\": %.4f, \"kernels\": %d, \"arena\": %lld, \"lower_bound\": %lld, "
         "\"ratio\": %.4f, \"rss_kb\": %ld",
         r->first_ms, r->plan.compile_ms, r->ms[0], median, quantile(r, 0.9), quantile(r, 0.99),
         r->n, (double)r->plan.flops / (median * 1e6), r->roof.flops * 1e-9,
         r->roof.rate[ROOF_SIZES - 1] * 1e-9, r->bound_ms,
         (double)r->plan.flops / r->roof.flops * 1e3, r->plan.kernels, (long long)r->plan.arena,
         (long long)r->plan.lower_bound, arena_ratio(r), rss);
  if (o->start)
    printf(", \"start_ms\": %.3f, \"start_cached_ms\": %.3f, \"llvm_mapped\": %s, "
           "\"llvm_mapped_cached\": %s",
           r->start_ms[0], r->start_ms[1], r->mapped[0] ? "true" : "false",
           r->mapped[1] ? "true" : "false");
}

/* A GPU has no bound here: its peaks are not measured. What a run asks of the driver shows whether it is replayed. */
static void print_device(const Result *r, const Options *o, long rss) {
  double median = quantile(r, 0.5);
  const PlanInfo *p = &r->plan;
  if (o->json) {
    printf("{\"first_ms\": %.3f, \"compile_ms\": %.3f, \"min_ms\": %.4f, \"median_ms\": %.4f, "
           "\"p90_ms\": %.4f, \"p99_ms\": %.4f, \"runs\": %d, \"gflops\": %.3f, \"kernels\": %d, "
           "\"graph_launches\": %d, \"kernel_launches\": %d, \"copies\": %d, \"arena\": %lld, "
           "\"rss_kb\": %ld",
           r->first_ms, p->compile_ms, r->ms[0], median, quantile(r, 0.9), quantile(r, 0.99), r->n,
           (double)p->flops / (median * 1e6), p->kernels, p->graphs, p->launches, p->copies,
           (long long)p->arena, rss);
    return;
  }
  printf("first run   %10.3f ms (compilation %.3f)\n", r->first_ms, p->compile_ms);
  printf("min         %10.4f ms\nmedian      %10.4f ms\np90         %10.4f ms\np99         %10.4f "
         "ms\n",
         r->ms[0], median, quantile(r, 0.9), quantile(r, 0.99));
  printf("arithmetic  %10.3f GFLOP/s (%s FLOPs)\n", (double)p->flops / (median * 1e6),
         grouped(p->flops));
  printf("launches    %10d of graphs, %d of kernels, %d copies in a run of %d kernels\n", p->graphs,
         p->launches, p->copies, p->kernels);
  printf("arena       %10s bytes, lower bound %s, ratio %.4f\n", grouped(p->arena),
         grouped(p->lower_bound), arena_ratio(r));
  printf("peak RSS    %10s KiB\n", grouped(rss));
}

static void print_text(const Result *r, const Options *o, long rss) {
  double median = quantile(r, 0.5);
  printf("first run   %10.3f ms (compilation %.3f)\n", r->first_ms, r->plan.compile_ms);
  printf("min         %10.4f ms\nmedian      %10.4f ms\np90         %10.4f ms\np99         %10.4f "
         "ms\n",
         r->ms[0], median, quantile(r, 0.9), quantile(r, 0.99));
  printf("arithmetic  %10.3f GFLOP/s (%s FLOPs), %.3f of the peak %.1f\n",
         (double)r->plan.flops / (median * 1e6), grouped(r->plan.flops),
         (double)r->plan.flops / (median * 1e-3) / r->roof.flops, r->roof.flops * 1e-9);
  printf("bound       %10.4f ms, %.3f of it reached (bandwidth", r->bound_ms, r->bound_ms / median);
  for (int i = 0; i < ROOF_SIZES; i++)
    printf("%s %.1f to %.3g MB", i ? "," : "", r->roof.rate[i] * 1e-9, r->roof.bytes[i] * 1e-6);
  printf(" GB/s)\nkernels     %10d\n", r->plan.kernels);
  printf("arena       %10s bytes, lower bound %s, ratio %.4f\n", grouped(r->plan.arena),
         grouped(r->plan.lower_bound), arena_ratio(r));
  printf("peak RSS    %10s KiB\n", grouped(rss));
  for (int i = 0; o->start && i < 2; i++)
    printf("%s %10.3f ms from exec() to the first result%s\n", i ? "cached     " : "not cached ",
           r->start_ms[i], r->mapped[i] ? "" : ", the code generator not loaded");
}

/* ---- one process ---- */

typedef struct Run {
  Executor *e;
  Scope *s;
  const Model *m;
  int n, n_fetch;
  Feed *feeds;
  const char **fetch;
  Tensor *out;
} Run;

/* A block of random values, over and over: with --start it is the program that is timed, not the generator. */
static void fill_feed(Tensor *t, uint64_t seed) {
  enum { BLOCK = 4096 };
  Tensor block = {.dtype = t->dtype, .rank = 1, .data = t->data};
  int64_t n = tensor_numel(t);
  block.dims[0] = n < BLOCK ? n : BLOCK;
  fill_random(&block, seed);
  for (size_t all = tensor_bytes(t), at = tensor_bytes(&block), m; at < all; at += m) {
    m = at < all - at ? at : all - at;
    memcpy((char *)t->data + at, t->data, m);
  }
}

static bool prepare(const Options *o, Run *r) {
  if (!model_feed_shapes(r->m, &o->shapes, &r->n, &r->feeds)) return false;
  for (int i = 0; i < r->n; i++) {
    Tensor *t = (Tensor *)r->feeds[i].value;
    t->data = arena_alloc(r->m->arena, tensor_bytes(t) + 1);
    fill_feed(t, (uint64_t)i + 77);
  }
  if (o->fetch)
    split_names(r->m->arena, o->fetch, &r->n_fetch, &r->fetch);
  else if (kl_fetch_names(r->m->prog, NULL, 0) || !model_trains(r->m))
    r->n_fetch = model_fetches(r->m, &r->fetch);
  r->out = arena_array(r->m->arena, Tensor, r->n_fetch + 1);
  return true;
}

/* Milliseconds; negative: failed. */
static double run_once(Run *r) {
  double t = wall_seconds();
  bool ok = exec_run(r->e, r->s, r->m->prog, r->n, r->feeds, r->n_fetch, r->fetch, r->out);
  return ok ? (wall_seconds() - t) * 1e3 : -1;
}

/* What measures the machine: threads beyond its cores reach no more, and each would take memory of its own. */
static Pool *peak_pool(const Options *o) {
  return pool_new(o->threads < sysconf(_SC_NPROCESSORS_ONLN) ? (int)o->threads : 0);
}

/* At least ten runs, and no more after a minute. The peak of this time stands between the parts. */
static bool measure(const Options *o, Run *run, Result *r) {
  double begin = wall_seconds(), top[PARTS];
  int n = 0, parts = 0;
  r->first_ms = run_once(run);
  exec_profile_clear(run->e);
  for (int i = 0; r->first_ms >= 0 && i < PARTS; i++) {
    Pool *pool = on_device(o) ? NULL : peak_pool(o);
    top[parts++] = pool ? peak_flops(pool, 0.01) : 0;
    pool_free(pool);
    for (int to = (int)((int64_t)r->n * (i + 1) / PARTS); n < to; n++) {
      if (n >= 10 && wall_seconds() - begin > 60) break;
      if ((r->ms[n] = run_once(run)) < 0) return false;
    }
  }
  for (int i = 0; i < run->n_fetch; i++) mem_free(run->out[i].data);
  if (r->first_ms < 0) return false;
  r->n = n;
  qsort(r->ms, (size_t)n, sizeof *r->ms, by_value);
  qsort(top, (size_t)parts, sizeof *top, by_value);
  r->roof.flops = top[parts / 2];
  r->plan = exec_last_plan(run->e);
  return true;
}

static bool is_mapped(const char *library) {
  char line[4096];
  bool found = false;
  FILE *f = fopen("/proc/self/maps", "r");
  while (f && !found && fgets(line, sizeof line, f)) found = strstr(line, library);
  if (f) fclose(f);
  return found;
}

/* ---- from exec() to the first result ---- */

/* This command again, as a process that runs once and says so. */
static bool start_process(const Options *o, double *ms, bool *mapped) {
  extern char **environ;
  int pipes[2], status = 1, before = arguments_before_verb + 1;
  char said = 0;
  if (pipe2(pipes, O_CLOEXEC)) return err_set(E_IO_001, "no pipe");
  Arena *a = arena_new();
  char **argv = arena_array(a, char *, before + o->argc + 2);
  memcpy(argv, o->argv - before, (size_t)(before + 1) * sizeof *argv);
  argv[before + 1] = "--once";
  memcpy(argv + before + 2, o->argv + 1, (size_t)(o->argc - 1) * sizeof *argv);
  posix_spawn_file_actions_t files;
  posix_spawn_file_actions_init(&files);
  posix_spawn_file_actions_adddup2(&files, pipes[1], 1);
  pid_t child;
  double t = wall_seconds();
  bool ok = !posix_spawn(&child, "/proc/self/exe", &files, NULL, argv, environ);
  close(pipes[1]);
  ok = ok && read(pipes[0], &said, 1) == 1;
  *ms = (wall_seconds() - t) * 1e3;
  *mapped = said == 'L';
  close(pipes[0]);
  if (ok) waitpid(child, &status, 0);
  posix_spawn_file_actions_destroy(&files);
  arena_free(a);
  return (ok && !status) || err_set(E_RUN_002, "the process that should run once failed");
}

/* The cache of compiled code is a new folder, so the first process compiles and the others find its code there. */
static bool measure_start(const Options *o, Result *r) {
  enum { TIMES = 5 };
  char dir[] = "/tmp/kiln-bench-XXXXXX", command[64];
  double ms[TIMES];
  if (!mkdtemp(dir)) return err_set(E_IO_001, "no temporary folder");
  const char *before = getenv("KILN_CACHE_DIR");
  setenv("KILN_CACHE_DIR", dir, 1);
  bool ok = start_process(o, &r->start_ms[0], &r->mapped[0]);
  for (int i = 0; ok && i < TIMES; i++) ok = start_process(o, &ms[i], &r->mapped[1]);
  if (before) setenv("KILN_CACHE_DIR", before, 1);
  if (!before) unsetenv("KILN_CACHE_DIR");
  snprintf(command, sizeof command, "rm -rf %s", dir);
  if (system(command)) return err_set(E_IO_001, "%s cannot be removed", dir);
  qsort(ms, TIMES, sizeof *ms, by_value);
  r->start_ms[1] = ms[TIMES / 2];
  return ok;
}

static bool report_result(const Options *o, Run *run, Result *r) {
  struct rusage u;
  getrusage(RUSAGE_SELF, &u);
  if (o->start && !measure_start(o, r)) return false;
  bool device = on_device(o);
  if (!device) {
    Pool *pool = peak_pool(o);
    peak_roof(pool, &r->roof);
    pool_free(pool);
    r->bound_ms = exec_bound(run->e, &r->roof) * 1e3;
  }
  (device ? print_device : o->json ? print_json : print_text)(r, o, u.ru_maxrss);
  if (o->profile) {
    printf(o->json ? ",\n\"profile\": " : "\n");
    exec_profile_print(run->e, device ? NULL : &r->roof, stdout, o->json);
  }
  if (o->json) printf("}\n");
  return true;
}

static bool bench(const Options *o, const char *path) {
  Model m;
  ExecOptions eo = o->exec;
  eo.threads = (int)o->threads;
  eo.profile = o->profile;
  Run run = {.e = exec_new(&eo), .s = scope_new(), .m = &m};
  Result r = {.n = (int)o->reps};
  bool ok = run.e && model_open(&m, path, o->params);
  if (ok) {
    r.ms = arena_array(m.arena, double, r.n + 1);
    ok = fill_state(&m, o, run.e, run.s) && prepare(o, &run);
    if (ok && o->once) {
      ok = run_once(&run) >= 0;
      if (ok) puts(is_mapped("libLLVM") ? "L" : "-"), fflush(stdout);
      for (int i = 0; i < run.n_fetch; i++) mem_free(run.out[i].data);
    } else
      ok = ok && measure(o, &run, &r) && report_result(o, &run, &r);
    model_close(&m);
  }
  exec_free(run.e);
  scope_free(run.s);
  return ok;
}

int verb_bench(int argc, char **argv) {
  Options o = {.reps = 100, .argc = argc, .argv = argv};
  Flag flags[] = {
      {"--startup", FLAG_TEXT, &o.startup, "S", "the program that initialises the parameters"},
      {"--params", FLAG_TEXT, &o.params, "FILE", "parameters (beside the program)"},
      {"--feed-shape", FLAG_LIST, &o.shapes, "NAME=DIMS", FEED_SHAPE_HELP},
      {"--fetch", FLAG_TEXT, &o.fetch, "A,B", "what to compute (the program's fetches)"},
      {"--threads", FLAG_COUNT, &o.threads, "N", "threads (all cores)"},
      DEVICE_FLAGS(o.exec),
      {"--reps", FLAG_COUNT, &o.reps, "N", "runs to time (100; at most a minute after the tenth)"},
      {"--memory-budget", FLAG_BYTES, &o.exec.memory_budget, "BYTES",
       "compute values again until the plan fits; K, M, G"},
      ALGORITHM_FLAGS(o.exec),
      {"--profile", FLAG_BOOL, &o.profile, NULL, "times per operator and kernel, with bounds"},
      {"--start", FLAG_BOOL, &o.start, NULL,
       "the time from exec() to the first result, in new processes"},
      {"--once", FLAG_BOOL, &o.once, NULL,
       "one run: L when its result is there and LLVM is loaded, - when it is not"},
      {"--json", FLAG_BOOL, &o.json, NULL, "as JSON"},
      {0}};
  Usage u = {"MODEL [--startup S] [--feed-shape NAME=DIMS] [--reps N]",
             "Times a model: latency, the part of the machine's peak, memory.", 1, 1, flags};
  List args;
  int rc = parse_args(argc, argv, &u, &args);
  if (rc >= 0) return rc;
  if (o.reps < 1 || o.reps > 1000000) return usage_error("bench: --reps must be in 1..1000000");
  return bench(&o, args.v[0]) ? 0 : report();
}
