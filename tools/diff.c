/* diff: two programs, or one program and its optimised form, in structure and tensor by tensor.
 *
 * In: two programs with parameters and feeds from files, or random ones. Out: how their operators, attributes, shapes and
 * parameters differ; then, in the order of execution, each result that both compute with its largest absolute and relative
 * error, and the first operator where they part. One program alone is compared with itself: the plain interpreter on one
 * side, generated code on the other, first with every result kept, then fused as it is run; where only the fused program
 * parts, it is run once more for each result, which is fetched beside its own. */
#include "diff.h"
#include <math.h>
#include <string.h>

typedef struct Side {
  Model m;
  Scope *scope;
  bool interpret;
} Side;

typedef struct Diff {
  Side side[2];
  bool alone, json, all, structure;
  const char *params;
  double tolerance;
  int64_t seed;
  List shapes, feed_files;
  Arena *arena;
  Dataset data;
  int n_feeds;
  Feed *feeds;
  Alignment *al;
  Str values;        /* rows of JSON */
  const char *first; /* result that parts; NULL: none */
  int compared, parted;
} Diff;

/* ---- values ---- */

static uint64_t name_seed(const char *name, int64_t seed) {
  return hash_bytes((uint64_t)seed, name, strlen(name));
}

/* Parameters of a file, or small random ones that go by their names, so that both sides get equal ones. */
static bool fill_state(Diff *d, Side *s) {
  s->scope = scope_new();
  if (s->m.params) return model_load_params(&s->m, s->scope);
  Var **vars;
  int n = params_list(s->m.prog, d->arena, &vars);
  for (int i = 0; i < n; i++) {
    const Var *v = vars[i];
    Tensor *t = scope_set(s->scope, v->name, v->dtype, v->rank, v->dims, NULL);
    if (!t) return false;
    fill_random(t, name_seed(v->name, d->seed));
    for (int64_t k = 0; k < tensor_numel(t); k++) /* small, and positive for variances */
      tensor_set(t, k, 0.05 * tensor_get(t, k) + (v->rank == 1 ? 0.1 : 0));
  }
  if (n)
    fprintf(stderr, "note: %s has no parameters with it; random ones are taken (--seed %lld)\n",
            s->m.path, (long long)d->seed);
  return true;
}

/* Dimensions that only the second program fixes. */
static void take_known_dims(const Diff *d, const char *name, Tensor *t) {
  const char *other = map_get(d->al->to_b, name);
  const Var *a = block_var(d->side[0].m.prog->blocks.v[0], name);
  const Var *b = other ? block_var(d->side[1].m.prog->blocks.v[0], other) : NULL;
  for (int i = 0; b && b->rank == t->rank && i < t->rank; i++)
    if (a->dims[i] < 0 && b->dims[i] >= 0) t->dims[i] = b->dims[i];
}

static bool fill_feeds(Diff *d) {
  if (d->feed_files.n) {
    if (!dataset_read(&d->data, d->side[0].m.prog, &d->feed_files)) return false;
    d->feeds = arena_array(d->arena, Feed, d->data.n + 1);
    for (; d->n_feeds < d->data.n; d->n_feeds++)
      d->feeds[d->n_feeds] = (Feed){d->data.col[d->n_feeds].name, &d->data.col[d->n_feeds].all};
    return true;
  }
  if (!model_feed_shapes(&d->side[0].m, &d->shapes, &d->n_feeds, &d->feeds)) return false;
  for (int i = 0; i < d->n_feeds; i++) {
    Tensor *t = (Tensor *)d->feeds[i].value;
    if (!d->shapes.n) take_known_dims(d, d->feeds[i].name, t);
    t->data = arena_alloc(d->arena, tensor_bytes(t) + 1);
    fill_random(t, name_seed(d->feeds[i].name, d->seed));
  }
  if (d->n_feeds)
    fprintf(stderr, "note: feeds are random (--seed %lld); --feed NAME=FILE gives others\n",
            (long long)d->seed);
  return true;
}

/* The feeds that a side has, under the names that they have there. */
static int feeds_of(const Diff *d, int side, Feed **f) {
  const Block *b = d->side[side].m.prog->blocks.v[0];
  int n = 0;
  *f = arena_array(d->arena, Feed, d->n_feeds + 1);
  for (int i = 0; i < d->n_feeds; i++) {
    const char *name = side ? map_get(d->al->to_b, d->feeds[i].name) : NULL;
    if (!name) name = d->feeds[i].name;
    if (block_var(b, name)) (*f)[n++] = (Feed){name, d->feeds[i].value};
  }
  return n;
}

static bool run_side(Diff *d, int side, bool interpret, int n, const char *const *names,
                     Tensor *out) {
  Side *s = &d->side[side];
  Scope *work = scope_new(); /* a run may change the state */
  const char **state;
  Feed *feeds;
  int n_state = scope_names(s->scope, d->arena, &state), n_feeds = feeds_of(d, side, &feeds);
  ExecOptions o = {.seed = (uint64_t)d->seed, .interpret = interpret};
  Executor *e = exec_new(&o);
  for (int i = 0; i < n_state; i++) {
    const Tensor *t = scope_get(s->scope, state[i]);
    scope_set(work, state[i], t->dtype, t->rank, t->dims, t->data);
  }
  bool ok = exec_run(e, work, s->m.prog, n_feeds, feeds, n, names, out);
  exec_free(e);
  scope_free(work);
  return ok;
}

static void free_all(int n, Tensor *t) {
  for (int i = 0; i < n; i++) mem_free(t[i].data);
}

/* ---- comparing ---- */

typedef struct Error {
  bool shapes;         /* they differ */
  double abs, rel, at; /* rel: of the largest magnitude */
} Error;

static Error compare(const Tensor *x, const Tensor *y) {
  Error e = {0};
  double scale = 0;
  e.shapes = x->dtype != y->dtype || tensor_numel(x) != tensor_numel(y);
  for (int64_t i = 0; !e.shapes && i < tensor_numel(x); i++) {
    double u = tensor_get(x, i), v = tensor_get(y, i);
    if (isfinite(v)) scale = fmax(scale, fabs(v));
    if (u == v || (isnan(u) && isnan(v))) continue;
    double diff = isfinite(u) && isfinite(v) ? fabs(u - v) : INFINITY;
    if (diff > e.abs) e.abs = diff, e.at = (double)i;
  }
  e.rel = e.abs > 0 ? e.abs / fmax(scale, 1e-6) : 0;
  return e;
}

/* One result of both sides: a row, and the first that parts. Returns whether it does. */
static bool note_result(Diff *d, const char *stage, const char *name, const Tensor *x,
                        const Tensor *y) {
  Error e = compare(x, y);
  bool parts = e.shapes || !(e.rel <= d->tolerance);
  const Op *op = block_writer(d->side[0].m.prog->blocks.v[0], name);
  char place[80] = "fed or kept", error[80];
  if (op) snprintf(place, sizeof place, "op %d `%.50s`", op_index(op), op->type);
  snprintf(error, sizeof error, "max abs %.3g, rel %.3g", e.abs, e.rel);
  if (e.shapes) snprintf(error, sizeof error, "other types or sizes");
  if (!d->json && (d->all || (parts && !d->parted)))
    printf("%-9s %s of %s: %s%s\n", stage, quoted(name), place, error,
           parts && !d->parted ? " <- the first difference" : "");
  if (parts && !d->parted && !d->json && !e.shapes)
    printf("          element %.0f is %.9g and %.9g\n", e.at, tensor_get(x, (int64_t)e.at),
           tensor_get(y, (int64_t)e.at));
  str_fmt(&d->values, "%s\n  {\"stage\": \"%s\", \"name\": ", d->compared ? "," : "", stage);
  str_json(name, &d->values);
  str_fmt(&d->values, ", \"op\": %d, \"type\": ", op ? op_index(op) : -1);
  str_json(op ? op->type : "", &d->values);
  if (e.shapes || !isfinite(e.abs))
    str_add(&d->values, ", \"max_abs\": null, \"max_rel\": null");
  else
    str_fmt(&d->values, ", \"max_abs\": %.9g, \"max_rel\": %.9g", e.abs, e.rel);
  str_fmt(&d->values, ", \"parts\": %s}", parts ? "true" : "false");
  if (parts && !d->parted) d->first = arena_str(d->arena, name);
  d->compared++;
  d->parted += parts;
  return parts;
}

/* Both sides compute these; names[1]: in the second program. */
static bool compare_runs(Diff *d, const char *stage, int n, const char **const names[2],
                         const bool interpret[2]) {
  Tensor *out[2];
  bool ok = true;
  for (int k = 0; k < 2; k++) {
    out[k] = arena_array(d->arena, Tensor, n + 1);
    ok = ok && run_side(d, k, interpret[k], n, names[k], out[k]);
  }
  for (int i = 0; ok && i < n; i++) note_result(d, stage, names[0][i], &out[0][i], &out[1][i]);
  for (int k = 0; k < 2; k++) free_all(n, out[k]);
  return ok;
}

/* Results of the first program that the second has too, in the order of execution. */
static int common_results(Diff *d, const char **names[2]) {
  const char **all;
  int n = 0, n_all = model_outputs(&d->side[0].m, &all);
  const Block *b = d->side[1].m.prog->blocks.v[0];
  for (int k = 0; k < 2; k++) names[k] = arena_array(d->arena, const char *, n_all + 1);
  for (int i = 0; i < n_all; i++) {
    const char *other = map_get(d->al->to_b, all[i]);
    const Var *v = block_var(d->side[0].m.prog->blocks.v[0], all[i]);
    const Op *op = block_writer(d->side[0].m.prog->blocks.v[0], all[i]);
    const SlotDef *slot = NULL;
    for (int s = 0; op && op->def && s < op->outs.n; s++)
      for (int k = 0; k < op->outs.v[s].n; k++)
        if (!strcmp(op->outs.v[s].args[k], all[i])) slot = opdef_out(op->def, op->outs.v[s].name);
    bool end = op && op->def && op->def->flags & OF_IO;
    if (end || !other || !block_var(b, other) || !v || (slot && slot->intermediate)) continue;
    names[0][n] = all[i];
    names[1][n++] = other;
  }
  return n;
}

/* Where does the fused program part? Each result is fetched beside the program's own. */
static bool look_inside(Diff *d, int n, const char *const *names) {
  const char **own;
  int n_own = model_fetches(&d->side[0].m, &own);
  Tensor *want = arena_array(d->arena, Tensor, n + 1);
  const char **fetch = arena_array(d->arena, const char *, n_own + 1);
  Tensor *out = arena_array(d->arena, Tensor, n_own + 1);
  bool ok = run_side(d, 0, true, n, names, want), found = false;
  int before = d->parted;
  d->parted = 0;
  for (int i = 0; ok && i < n && !found; i++) {
    memcpy(fetch, own, sizeof *own * (size_t)n_own);
    memset(out, 0, sizeof *out * (size_t)(n_own + 1));
    fetch[n_own] = names[i];
    ok = run_side(d, 1, false, n_own + 1, fetch, out);
    found = ok && note_result(d, "inside", names[i], &want[i], &out[n_own]);
    free_all(n_own + 1, out);
  }
  free_all(n, want);
  d->parted += before;
  return ok;
}

static bool compare_alone(Diff *d) {
  const char **names[2], **own;
  int n = common_results(d, names);
  if (!compare_runs(d, "operator", n, names, (bool[2]){true, false})) return false;
  int n_own = model_fetches(&d->side[0].m, &own), before = d->parted;
  if (!compare_runs(d, "fused", n_own, (const char **[2]){own, own}, (bool[2]){true, false}))
    return false;
  return d->parted == before || before || look_inside(d, n, names[0]);
}

static void compare_params(Diff *d) {
  const char **names;
  int n = scope_names(d->side[0].scope, d->arena, &names);
  for (int i = 0; i < n; i++) {
    const char *other = map_get(d->al->to_b, names[i]);
    const Tensor *x = scope_get(d->side[0].scope, names[i]);
    const Tensor *y = other ? scope_get(d->side[1].scope, other) : NULL;
    if (!y) continue;
    Error e = compare(x, y);
    if (e.shapes || e.abs > 0)
      diff_add(d->al, "parameter", "%s: values differ, max abs %.3g, rel %.3g", quoted(names[i]),
               e.abs, e.rel);
  }
}

/* ---- all of it ---- */

static bool diff(Diff *d, const char *const path[2]) {
  d->arena = arena_new();
  str_init(&d->values, d->arena);
  for (int k = 0; k < 2; k++)
    if (!model_open_any(&d->side[k].m, path[k], d->params)) return false;
  d->al = diff_structure(d->arena, d->side[0].m.prog, d->side[1].m.prog);
  bool ok = true;
  if (!d->structure) {
    ok = fill_state(d, &d->side[0]) && fill_state(d, &d->side[1]);
    if (ok && !d->alone && d->side[0].m.params && d->side[1].m.params) compare_params(d);
  }
  if (ok && !d->json && d->al->text.n) fputs(d->al->text.s, stdout);
  if (d->structure || !ok) return ok;
  const char **names[2];
  int n = common_results(d, names);
  return fill_feeds(d) && (d->alone ? compare_alone(d)
                                    : compare_runs(d, "value", n, names, (bool[2]){false, false}));
}

static void print_json(const Diff *d, bool same) {
  Str first;
  str_init(&first, d->arena);
  if (d->first)
    str_json(d->first, &first);
  else
    str_add(&first, "null");
  printf("{\"equal\": %s, \"first\": %s, \"structure\": [%s],\n \"values\": [%s]}\n",
         same ? "true" : "false", first.s, d->al->differences ? d->al->json.s : "",
         d->compared ? d->values.s : "");
}

static int conclude(const Diff *d) {
  bool same = !d->al->differences && !d->parted;
  if (d->json)
    print_json(d, same);
  else if (d->structure)
    printf("%d differences of structure\n", d->al->differences);
  else
    printf("%d differences of structure, %d of %d results part by more than %g\n",
           d->al->differences, d->parted, d->compared, d->tolerance);
  return !same;
}

static void close_all(Diff *d) {
  for (int k = 0; k < 2; k++) {
    scope_free(d->side[k].scope);
    if (d->side[k].m.arena) model_close(&d->side[k].m);
  }
  if (d->data.arena) dataset_close(&d->data);
  arena_free(d->arena);
}

int verb_diff(int argc, char **argv) {
  Diff d = {.tolerance = 1e-4, .seed = 1};
  bool optimised = false;
  Flag flags[] = {
      {"--feed", FLAG_LIST, &d.feed_files, "NAME=FILE", "values for an input, as in kiln run"},
      {"--feed-shape", FLAG_LIST, &d.shapes, "NAME=DIMS", "of random feeds: " FEED_SHAPE_HELP},
      {"--params", FLAG_TEXT, &d.params, "FILE", "parameters of both (beside each program)"},
      {"--optimised", FLAG_BOOL, &optimised, NULL,
       "MODEL with its optimised form: the same as MODEL alone"},
      {"--structure", FLAG_BOOL, &d.structure, NULL, "do not run them"},
      {"--all", FLAG_BOOL, &d.all, NULL, "a line for every result"},
      {"--tolerance", FLAG_FLOAT, &d.tolerance, "X",
       "largest error, relative to a result's largest magnitude (1e-4)"},
      {"--seed", FLAG_INT, &d.seed, "N", "of random feeds, parameters and operators (1)"},
      {"--json", FLAG_BOOL, &d.json, NULL, "as JSON"},
      {0}};
  Usage u = {"A [B] [--feed NAME=FILE ...] [--json]",
             "Where two programs differ, in structure and tensor by tensor in the order of "
             "execution; one alone is compared with its optimised form. Exit code 1: they differ.",
             1, 2, flags};
  List args;
  int rc = parse_args(argc, argv, &u, &args);
  if (rc >= 0) return rc;
  if (optimised && args.n == 2) return usage_error("diff: --optimised takes one program");
  d.alone = args.n == 1;
  bool ok = diff(&d, (const char *[2]){args.v[0], args.v[d.alone ? 0 : 1]});
  rc = ok ? conclude(&d) : report();
  close_all(&d);
  return rc;
}
