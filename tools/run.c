/* run: one pass of a model over values from files. eval: means of metrics over a data set, batch by batch. */
#include "tools.h"
#include <inttypes.h>
#include <math.h>
#include <string.h>

typedef struct Options {
  const char *params, *fetch_text;
  List feeds, fetches;
  int64_t threads, batch, seed;
  bool profile, json;
  ExecOptions exec;
} Options;

static void print_tensor(const char *name, const Tensor *t) {
  printf("%s %s\n", name, shape_text(t->dtype, t->rank, t->dims));
  int64_t n = tensor_numel(t), row = t->rank ? t->dims[t->rank - 1] : 1;
  for (int64_t i = 0; i < n && i < 64; i++) {
    fputs(i % row ? " " : "  ", stdout);
    if (t->dtype == DT_INT64)
      printf("%" PRId64, ((const int64_t *)t->data)[i]);
    else
      printf(dtype_is_float(t->dtype) ? "%.6g" : "%.0f", tensor_get(t, i));
    if ((i + 1) % row == 0 || i + 1 == n || i == 63) putchar('\n');
  }
  if (n > 64) printf("  ... %s more\n", grouped(n - 64));
}

/* JSON has no infinity and no NaN: they are null. Digits as many as tell the numbers of a type apart. */
static void add_values(Str *s, const Tensor *t) {
  int digits = t->dtype == DT_FLOAT64 ? 17 : 9;
  str_add(s, ", \"values\": [");
  for (int64_t i = 0, n = tensor_numel(t); i < n; i++) {
    double v = tensor_get(t, i);
    str_add(s, i ? ", " : "");
    if (t->dtype == DT_INT64)
      str_fmt(s, "%" PRId64, ((const int64_t *)t->data)[i]);
    else if (isfinite(v))
      str_fmt(s, "%.*g", digits, v);
    else
      str_add(s, "null");
  }
  str_add(s, "]");
}

static void add_result(Str *s, const char *name, const char *file, const Tensor *t) {
  str_add(s, s->n ? ",\n  {\"name\": " : "{\"results\": [\n  {\"name\": ");
  str_json(name, s);
  str_fmt(s, ", \"dtype\": \"%s\", \"shape\": [", dtype_info[t->dtype].name);
  for (int d = 0; d < t->rank; d++) str_fmt(s, "%s%" PRId64, d ? ", " : "", t->dims[d]);
  str_add(s, "]");
  if (file) {
    str_add(s, ", \"file\": ");
    str_json(file, s);
  } else
    add_values(s, t);
  str_add(s, "}");
}

/* Of each "NAME", printed, or "NAME=FILE.npy", written there; json: one object that says so. */
static bool deliver(Arena *a, int n, const char *const *specs, const Tensor *out, bool json) {
  Str s;
  str_init(&s, a);
  for (int i = 0; i < n; i++) {
    const char *eq = strchr(specs[i], '='), *name = arena_strn(a, specs[i], strcspn(specs[i], "="));
    if (eq && !write_npy(eq + 1, &out[i])) return false;
    if (json)
      add_result(&s, name, eq ? eq + 1 : NULL, &out[i]);
    else if (!eq)
      print_tensor(name, &out[i]);
  }
  if (json) printf("%s]", s.n ? s.s : "{\"results\": [");
  return true;
}

/* "NAME", "NAME=FILE.npy" each, or "A,B" where no variable has that name. */
static bool choose_fetches(const Model *m, const List *specs, List *out) {
  for (int i = 0; i < specs->n; i++) {
    const char *spec = specs->v[i], **names = &spec, *eq = strchr(spec, '=');
    int n = 1;
    if (eq && !eq[1]) return err_set(E_ARG_001, "--fetch %s names no file", quoted(spec));
    if (!eq && !block_var(m->prog->blocks.v[0], spec)) split_names(m->arena, spec, &n, &names);
    if (!n) return err_set(E_ARG_001, "--fetch %s names nothing", quoted(spec));
    if (out->n + n > LIST_MAX) return err_set(E_ARG_001, "more than %d fetches", LIST_MAX);
    for (int k = 0; k < n; k++) out->v[out->n++] = names[k];
  }
  return true;
}

static bool run_model(const Options *o, const char *path) {
  Model m;
  Dataset d = {0};
  Scope *s = scope_new();
  Executor *e = NULL;
  bool ok = model_open(&m, path, o->params);
  Feed feeds[LIST_MAX];
  List specs = {0};
  ok = ok && choose_fetches(&m, &o->fetches, &specs);
  int n = specs.n;
  const char **names = arena_array(m.arena, const char *, n + 1);
  Tensor *out = NULL;
  for (int i = 0; i < n; i++) names[i] = arena_strn(m.arena, specs.v[i], strcspn(specs.v[i], "="));
  ok = ok && model_for_inference(&m, n, names) && model_load_params(&m, s) &&
       dataset_read(&d, m.prog, &o->feeds);
  for (int i = 0; i < d.n; i++) feeds[i] = (Feed){d.col[i].name, &d.col[i].all};
  if (ok && !n) n = model_reached(&m, d.n, feeds, &names);
  if (ok) out = arena_array(m.arena, Tensor, n + 1);
  ok = ok && (e = exec_new(&o->exec)) && exec_run(e, s, m.prog, d.n, feeds, n, names, out);
  ok = ok && deliver(m.arena, n, specs.n ? specs.v : names, out, o->json);
  if (ok && o->exec.profile) {
    fputs(o->json ? ",\n\"profile\": " : "", stdout);
    exec_profile_print(e, NULL, stdout, o->json);
  }
  if (ok && o->json) puts("}");
  for (int i = 0; out && i < n; i++) mem_free(out[i].data);
  exec_free(e);
  if (d.arena) dataset_close(&d);
  scope_free(s);
  model_close(&m);
  return ok;
}

int verb_run(int argc, char **argv) {
  Options o = {0};
  Flag flags[] = {
      {"--feed", FLAG_LIST, &o.feeds, "NAME=FILE",
       "values for an input: .npy, .npz, IDX, also gzipped; [:scale=A][:shift=B][:lod=0,3,...]"},
      {"--fetch", FLAG_LIST, &o.fetches, "NAME[=FILE.npy]",
       "what to compute; printed, or written; A,B: both"},
      {"--params", FLAG_TEXT, &o.params, "FILE", "parameters (beside the program)"},
      {"--threads", FLAG_COUNT, &o.threads, "N", "threads (all cores)"},
      DEVICE_FLAGS(o.exec),
      {"--interpret", FLAG_BOOL, &o.exec.interpret, NULL,
       "the plain interpreter instead of generated code"},
      {"--seed", FLAG_INT, &o.seed, "N", "of random operators without a seed"},
      {"--memory-budget", FLAG_BYTES, &o.exec.memory_budget, "BYTES",
       "compute values again until the plan fits; K, M, G"},
      ALGORITHM_FLAGS(o.exec),
      {"--max-steps", FLAG_COUNT, &o.exec.max_steps, "N",
       "of one loop, after which it counts as endless (100000000)"},
      {"--profile", FLAG_BOOL, &o.exec.profile, NULL, "times per operator and kernel"},
      {"--trace", FLAG_TEXT, &o.exec.trace, "FILE", "a Chrome trace"},
      {"--check-nan", FLAG_BOOL, &o.exec.check_nan, NULL,
       "name the first operator that makes a NaN or infinity"},
      {"--json", FLAG_BOOL, &o.json, NULL, "results, and the profile, as JSON"},
      {0}};
  Usage u = {"MODEL --feed NAME=FILE ... [--fetch NAME[=FILE.npy]] ...",
             "Runs a model once on values from files.", 1, 1, flags};
  List args;
  int rc = parse_args(argc, argv, &u, &args);
  if (rc >= 0) return rc;
  o.exec.threads = (int)o.threads;
  o.exec.seed = (uint64_t)o.seed;
  return run_model(&o, args.v[0]) ? 0 : report();
}

/* ---- eval ---- */

static void print_means(Arena *a, int64_t rows, int n, const char *const *names,
                        const double *means) {
  (void)a, (void)rows;
  for (int i = 0; i < n; i++) printf("%s %.6f\n", names[i], means[i]);
}

/* JSON has no infinity and no NaN. */
static void print_means_json(Arena *a, int64_t rows, int n, const char *const *names,
                             const double *means) {
  Str s;
  str_init(&s, a);
  str_fmt(&s, "{\"rows\": %lld", (long long)rows);
  for (int i = 0; i < n; i++) {
    str_add(&s, ", ");
    str_json(names[i], &s);
    str_fmt(&s, isfinite(means[i]) ? ": %.9g" : ": null", means[i]);
  }
  printf("%s}\n", s.s);
}

static bool eval_model(const Options *o, const char *main, const char *params) {
  Model m;
  Dataset d = {0};
  Scope *s = scope_new();
  Executor *e = NULL;
  if (!model_open(&m, main, params)) return model_close(&m), scope_free(s), false;
  int n = 0;
  const char **names;
  split_names(m.arena, o->fetch_text, &n, &names);
  double *sums = arena_array(m.arena, double, n + 1);
  Tensor *out = arena_array(m.arena, Tensor, n + 1);
  bool ok = (n || err_set(E_ARG_001, "--fetch %s names nothing", quoted(o->fetch_text))) &&
            model_for_inference(&m, n, names) && model_load_params(&m, s) &&
            dataset_open(&d, m.prog, &o->feeds) && (e = exec_new(&o->exec));
  if (ok && !d.rows) ok = err_set(E_DAT_001, "%s has no rows", quoted(d.col[0].file));
  for (int64_t at = 0; ok && at < d.rows; at += o->batch) {
    int64_t end = at + o->batch < d.rows ? at + o->batch : d.rows;
    Feed feeds[LIST_MAX];
    memset(out, 0, sizeof *out * (size_t)n);
    dataset_batch(&d, NULL, at, end, feeds);
    ok = exec_run(e, s, m.prog, d.n, feeds, n, names, out);
    for (int i = 0; i < n; i++) {
      if (ok && tensor_numel(&out[i]) != 1)
        ok = err_set(E_RUN_002, "%s is %s, not one number", quoted(names[i]),
                     shape_text(out[i].dtype, out[i].rank, out[i].dims));
      if (ok) sums[i] += tensor_get(&out[i], 0) * (double)(end - at);
      mem_free(out[i].data);
    }
  }
  for (int i = 0; ok && i < n; i++) sums[i] /= (double)d.rows;
  if (ok) (o->json ? print_means_json : print_means)(m.arena, d.rows, n, names, sums);
  exec_free(e);
  if (d.arena) dataset_close(&d);
  scope_free(s);
  model_close(&m);
  return ok;
}

int verb_eval(int argc, char **argv) {
  Options o = {.batch = 100};
  const char *main = NULL;
  Flag flags[] = {{"--main", FLAG_TEXT, &main, "T", "the test program"},
                  {"--params", FLAG_TEXT, &o.params, "DIR|FILE",
                   "what `kiln train --save` wrote, or a .pdiparams file"},
                  {"--feed", FLAG_LIST, &o.feeds, "NAME=FILE", "data; [:scale=A][:shift=B]"},
                  {"--batch", FLAG_COUNT, &o.batch, "N", "rows per run (100)"},
                  {"--fetch", FLAG_TEXT, &o.fetch_text, "A,B", "metrics: variables of one element"},
                  {"--threads", FLAG_COUNT, &o.threads, "N", "threads (all cores)"},
                  DEVICE_FLAGS(o.exec),
                  ALGORITHM_FLAGS(o.exec),
                  {"--json", FLAG_BOOL, &o.json, NULL, "as JSON"},
                  {0}};
  Usage u = {"--main T --params DIR|FILE --feed NAME=FILE ... --batch N --fetch A,B",
             "Means of metrics over a data set.", 0, 0, flags};
  List args;
  int rc = parse_args(argc, argv, &u, &args);
  if (rc >= 0) return rc;
  if (!main || !o.params || !o.feeds.n || !o.fetch_text)
    return usage_error("eval: --main, --params, --feed and --fetch are needed");
  if (o.batch < 1) return usage_error("eval: --batch must be positive");
  o.exec.threads = (int)o.threads;
  return eval_model(&o, main, o.params) ? 0 : report();
}
