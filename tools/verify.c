/* verify: is the generated code right for this model?
 *
 * In: a program, feed shapes. Out: a line per check, exit code 1 if one fails.
 *   kernels    every operator's output, generated code against the interpreter (all outputs are fetched), then once
 *              more with only the program's own fetches, so that fused kernels are compared too. What differs by more than
 *              1e-4 of the largest element must be as near to the interpreter in float64 as float32 is
 *   gradients  for each parameter P with a gradient P@GRAD: a few elements against differences of the loss to both sides,
 *              interpreted in float64 */
#include "tools.h"
#include <float.h>
#include <math.h>
#include <string.h>

typedef struct Verify {
  Model m;
  Scope *scope;
  int n_feeds;
  Feed *feeds;
  uint64_t seed;
  ExecOptions exec; /* of the runs that are verified */
  int failures;
} Verify;

enum { SAMPLES = 3 };

static bool fill(Verify *v, const char *startup, bool interpret) {
  ExecOptions eo = {.seed = v->seed, .interpret = interpret};
  Executor *e = exec_new(&eo);
  Program *p = startup ? prog_load(startup) : NULL;
  bool ok = e && (!startup || (p && exec_run(e, v->scope, p, 0, NULL, 0, NULL, NULL)));
  prog_free(p);
  exec_free(e);
  if (!ok || startup) return ok;
  return model_load_params(&v->m, v->scope);
}

/* For a run that must start from the same state. */
static Scope *copy_scope(Scope *from) {
  Scope *to = scope_new();
  Arena *a = arena_new();
  const char **names;
  int n = scope_names(from, a, &names);
  for (int i = 0; i < n; i++) {
    const Tensor *t = scope_get(from, names[i]);
    scope_set(to, names[i], t->dtype, t->rank, t->dims, t->data);
  }
  arena_free(a);
  return to;
}

/* ---- the same in float64 ---- */

static void widen_attr(Attr *a) {
  bool names_type =
      !strcmp(a->name, "dtype") || !strcmp(a->name, "out_dtype") || !strcmp(a->name, "in_dtype");
  if (names_type && a->type == AT_INT && a->i == dtype_info[DT_FLOAT32].paddle)
    a->i = dtype_info[DT_FLOAT64].paddle;
}

/* The program with every float32 as float64, with or without its updates. */
static Program *widened(const Program *p, bool updates) {
  Program *q = prog_clone(p);
  for (int b = 0; b < q->blocks.n; b++) {
    Block *blk = q->blocks.v[b];
    for (int i = 0; i < blk->vars.n; i++)
      if (blk->vars.v[i]->dtype == DT_FLOAT32) blk->vars.v[i]->dtype = DT_FLOAT64;
    for (int i = blk->ops.n - 1; i >= 0; i--) {
      if (!updates && op_role(blk->ops.v[i]) & ROLE_OPTIMIZE)
        block_remove_op(blk, i);
      else
        for (int k = 0; k < blk->ops.v[i]->attrs.n; k++) widen_attr(&blk->ops.v[i]->attrs.v[k]);
    }
  }
  return q;
}

static Tensor to_double(Arena *a, const Tensor *t) {
  Tensor d = *t;
  if (t->dtype != DT_FLOAT32) return d;
  d.dtype = DT_FLOAT64;
  d.data = arena_alloc(a, tensor_bytes(&d) + 8);
  for (int64_t i = 0; i < tensor_numel(t); i++) tensor_set(&d, i, tensor_get(t, i));
  return d;
}

/* A scope with every float32 of `from` as float64. */
static Scope *widened_scope(Scope *from) {
  Scope *s = copy_scope(from);
  Arena *a = arena_new();
  const char **names;
  int n = scope_names(s, a, &names);
  for (int i = 0; i < n; i++) {
    Tensor d = to_double(a, scope_get(s, names[i]));
    scope_set(s, names[i], d.dtype, d.rank, d.dims, d.data);
  }
  arena_free(a);
  return s;
}

/* Changes s as the program does. */
static bool run_wide(Verify *v, const Program *p, Scope *s, int n, const char *const *names,
                     Tensor *out) {
  ExecOptions eo = {.seed = v->seed, .interpret = true};
  Executor *e = exec_new(&eo);
  Feed *feeds = arena_array(v->m.arena, Feed, v->n_feeds + 1);
  for (int i = 0; i < v->n_feeds; i++) {
    Tensor *t = arena_new_of(v->m.arena, Tensor);
    *t = to_double(v->m.arena, v->feeds[i].value);
    feeds[i] = (Feed){v->feeds[i].name, t};
  }
  bool ok = e && exec_run(e, s, p, v->n_feeds, feeds, n, names, out);
  exec_free(e);
  return ok;
}

static double worst(const Tensor *a, const Tensor *b) {
  double scale = 1e-30, diff = 0;
  int64_t n = tensor_numel(b);
  for (int64_t i = 0; i < n; i++) {
    double x = tensor_get(a, i), y = tensor_get(b, i);
    if (isnan(x) != isnan(y)) return INFINITY;
    if (isnan(x) || x == y) continue;
    scale = fmax(scale, fabs(y));
    diff = fmax(diff, fabs(x - y));
  }
  return diff / fmax(scale, 1e-6);
}

static void line(Verify *v, bool ok, const char *what, const char *name, double error) {
  printf("%-4s %-9s %-44.44s %.2e\n", ok ? "ok" : "BAD", what, name, error);
  if (!ok) v->failures++;
}

/* ---- one run, three ways ---- */

typedef enum Side { GENERATED, INTERPRETED, EXACT /* in float64 */, N_SIDES } Side;
static const double CLOSE = 1e-4; /* relative to the largest element */

typedef struct Runs {
  Verify *v;
  int n;
  const char *const *names;
  Tensor *out[N_SIDES];
  Scope *after[N_SIDES];
  bool ran[N_SIDES];
} Runs;

static bool run_side(Runs *r, Side k) {
  Verify *v = r->v;
  r->out[k] = arena_array(v->m.arena, Tensor, r->n + 1);
  if (k == EXACT) {
    Program *p = widened(v->m.prog, true);
    r->after[k] = widened_scope(v->scope);
    r->ran[k] = run_wide(v, p, r->after[k], r->n, r->names, r->out[k]);
    prog_free(p);
    return r->ran[k];
  }
  ExecOptions eo = {.interpret = true};
  if (k == GENERATED) eo = v->exec;
  eo.seed = v->seed;
  Executor *e = exec_new(&eo);
  r->after[k] = copy_scope(v->scope);
  r->ran[k] =
      e && exec_run(e, r->after[k], v->m.prog, v->n_feeds, v->feeds, r->n, r->names, r->out[k]);
  exec_free(e);
  return r->ran[k];
}

/* Output i, or the variable of that name, of one side; NULL: it is not there */
static const Tensor *result(const Runs *r, Side k, int i, const char *name) {
  return i < r->n ? &r->out[k][i] : scope_get(r->after[k], name);
}

/* Differences are rounding where float32 itself is as far from float64: sums that cancel, and what follows from them. */
static bool is_rounding(Runs *r, int i, const char *name) {
  enum { FACTOR = 32 };
  if (!r->out[EXACT] && !run_side(r, EXACT)) err_clear();
  if (!r->ran[EXACT]) return false;
  const Tensor *exact = result(r, EXACT, i, name);
  if (!exact) return false;
  return worst(result(r, GENERATED, i, name), exact) <=
         FACTOR * worst(result(r, INTERPRETED, i, name), exact);
}

static void compare(Runs *r, const char *what, int i, const char *name) {
  const Tensor *x = result(r, GENERATED, i, name);
  double e = x ? worst(x, result(r, INTERPRETED, i, name)) : INFINITY;
  line(r->v, e < CLOSE || (isfinite(e) && is_rounding(r, i, name)), what, name, e);
}

static bool compare_runs(Verify *v, const char *what, int n, const char *const *names) {
  Runs r = {.v = v, .n = n, .names = names};
  bool ok = run_side(&r, GENERATED) && run_side(&r, INTERPRETED);
  for (int i = 0; ok && i < n; i++) compare(&r, what, i, names[i]);
  Arena *a = arena_new();
  const char **state;
  int m = ok ? scope_names(r.after[INTERPRETED], a, &state) : 0;
  for (int i = 0; i < m; i++) compare(&r, "state", n, state[i]);
  arena_free(a);
  for (int k = 0; k < N_SIDES; k++) {
    for (int i = 0; r.out[k] && i < n; i++) mem_free(r.out[k][i].data);
    scope_free(r.after[k]);
  }
  return ok;
}

/* ---- gradients ---- */

static bool loss_at(Verify *v, const Program *p, Scope *s, const char *loss, double *value) {
  Tensor out = {0};
  Scope *work = copy_scope(s); /* running statistics must not drift between evaluations */
  bool ok = run_wide(v, p, work, 1, &loss, &out);
  scope_free(work);
  if (!ok) return false;
  *value = tensor_get(&out, 0);
  mem_free(out.data);
  return true;
}

/* A gradient lies between the slopes to both sides, which are the same but for the curvature; at a kink they are not. */
static bool check_gradient(Verify *v, const Program *p, Scope *s, const char *loss,
                           const char *param) {
  const char *grad = arena_fmt(v->m.arena, "%s@GRAD", param);
  Tensor g = {0};
  Scope *work = copy_scope(s);
  bool ok = run_wide(v, p, work, 1, &grad, &g);
  scope_free(work);
  if (!ok) return false;
  int64_t n = tensor_numel(scope_get(s, param));
  double error = 0, scale = 1e-8, here = 0;
  ok = loss_at(v, p, s, loss, &here);
  for (int64_t i = 0; i < tensor_numel(&g); i++) scale = fmax(scale, fabs(tensor_get(&g, i)));
  for (int k = 0; ok && k < SAMPLES && k < n; k++) {
    int64_t at = n * k / SAMPLES;
    double old = tensor_get(scope_get(s, param), at), h = 1e-6 * fmax(1, fabs(old));
    double side[2] = {0}, slope[2];
    for (int i = 0; ok && i < 2; i++) {
      tensor_set(scope_edit(s, param), at, i ? old + h : old - h);
      ok = loss_at(v, p, s, loss, &side[i]);
      slope[i] = (i ? side[i] - here : here - side[i]) / h;
    }
    tensor_set(scope_edit(s, param), at, old);
    double noise = 128 * DBL_EPSILON * fabs(here) / h, got = tensor_get(&g, at);
    double off = ok ? fmax(fmin(slope[0], slope[1]) - got, got - fmax(slope[0], slope[1])) : 0;
    off = (off - noise) / scale;
    error = off <= error ? error : off; /* NaN counts */
  }
  if (ok) line(v, error < 1e-4, "gradient", param, error);
  mem_free(g.data);
  return ok;
}

static const char *find_loss(const Program *p) {
  const Block *b = p->blocks.v[0];
  for (int i = 0; i < b->ops.n; i++) {
    const Op *op = b->ops.v[i];
    if (op_role(op) == (ROLE_BACKWARD | ROLE_LOSS) && op->outs.n && op->outs.v[0].n) {
      const char *g = op->outs.v[0].args[0];
      return arena_strn(p->arena, g, strcspn(g, "@"));
    }
  }
  return NULL;
}

static bool check_gradients(Verify *v) {
  const char *loss = find_loss(v->m.prog);
  if (!loss) return true;
  Program *p = widened(v->m.prog, false);
  Scope *s = widened_scope(v->scope);
  Arena *a = arena_new();
  const char **names;
  int n = scope_names(s, a, &names);
  bool ok = true;
  for (int i = 0; ok && i < n; i++) {
    const Var *var = block_var(p->blocks.v[0], names[i]);
    if (var && var->is_parameter && block_var(p->blocks.v[0], arena_fmt(a, "%s@GRAD", names[i])))
      ok = check_gradient(v, p, s, loss, names[i]);
  }
  arena_free(a);
  scope_free(s);
  prog_free(p);
  return ok;
}

static bool verify(Verify *v, const char *path, const char *startup, const char *params,
                   const List *shapes) {
  const char **all, **own;
  bool ok = model_open(&v->m, path, params) && fill(v, startup, false) &&
            model_feed_shapes(&v->m, shapes, &v->n_feeds, &v->feeds);
  for (int i = 0; ok && i < v->n_feeds; i++) {
    Tensor *t = (Tensor *)v->feeds[i].value;
    t->data = arena_alloc(v->m.arena, tensor_bytes(t) + 1);
    fill_random(t, (uint64_t)i + 5);
  }
  if (ok) {
    int n = model_outputs(&v->m, &all);
    ok = compare_runs(v, "operator", n, all);
  }
  if (ok) {
    int n = model_fetches(&v->m, &own);
    ok = compare_runs(v, "fetch", n, own);
  }
  return ok && check_gradients(v);
}

int verb_verify(int argc, char **argv) {
  const char *startup = NULL, *params = NULL;
  List shapes = {0};
  int64_t seed = 1;
  Verify v = {0};
  Flag flags[] = {{"--startup", FLAG_TEXT, &startup, "S",
                   "the program that initialises the parameters"},
                  {"--params", FLAG_TEXT, &params, "FILE", "parameters (beside the program)"},
                  {"--feed-shape", FLAG_LIST, &shapes, "NAME=DIMS", FEED_SHAPE_HELP},
                  {"--seed", FLAG_INT, &seed, "N", "of random operators (1)"},
                  DEVICE_FLAGS(v.exec),
                  ALGORITHM_FLAGS(v.exec),
                  {0}};
  Usage u = {"MODEL [--startup S] [--feed-shape NAME=DIMS]",
             "Every operator's output, generated code against the interpreter; gradients against "
             "finite differences.",
             1, 1, flags};
  List args;
  int rc = parse_args(argc, argv, &u, &args);
  if (rc >= 0) return rc;
  v.scope = scope_new();
  v.seed = (uint64_t)seed;
  bool ok = verify(&v, args.v[0], startup, params, &shapes);
  scope_free(v.scope);
  model_close(&v.m);
  if (!ok) return report();
  printf("%s\n", v.failures ? "some checks FAILED" : "all checks passed");
  return v.failures != 0;
}
