/* The sweep over the operator table: every row x every example x {float32, float64}. The operator
 * is built, inferred (also with an unknown first dimension), verified, expanded and evaluated by
 * the plain interpreter; results must have the inferred shapes, and float32 must agree with
 * float64. Gradient operators are built as the row says and compared with central differences of
 * the interpreter in float64. A second sweep runs operators and gradients through the executor,
 * compiled and interpreted, and compares the two. */
#include "opcase.h"
#include "../executor/executor.h"
#include "../passes/passes.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static int n_cases, n_grads, n_values, n_bad;

static void complain(const OpCase *c, const char *fmt, ...) {
  va_list v;
  fprintf(stderr, "%s %s %s: ", c->def->name, dtype_info[c->real].name, c->text ? c->text : "?");
  va_start(v, fmt);
  vfprintf(stderr, fmt, v);
  va_end(v);
  fputc('\n', stderr);
  if (err_any()) err_print(stderr, false);
  err_clear();
  n_bad++;
}

/* ---- evaluation ---- */

typedef struct Run {
  Graph *g;
  Arena *a;
  Tensor **value;
} Run;

typedef struct Fed {
  const OpCase *c;
  int n;
  const char **name;
  Tensor *value;
} Fed;

static Tensor *look_up(void *user, const char *name, bool state) {
  Fed *f = user;
  (void)state;
  for (int i = 0; i < f->n; i++)
    if (strcmp(f->name[i], name) == 0) return &f->value[i];
  Tensor *t = opcase_value(f->c, name);
  if (!t) err_set(E_DAT_001, "%s is not fed", quoted(name));
  return t;
}

static bool evaluate(Run *r, Fed *fed) {
  EvalEnv env = {.lookup = look_up, .user = fed, .seed = 5, .step = 1};
  r->a = arena_new();
  r->value = arena_array(r->a, Tensor *, r->g->nodes.n);
  return graph_eval(r->g, &env, r->a, r->value);
}

static Tensor *fetched(const Run *r, int i) { return r->value[r->g->fetches.v[i].node->id]; }

static void run_free(Run *r) {
  arena_free(r->a);
  r->a = NULL;
}

/* The operator's outputs that have a value. */
static int computed(const OpCase *c, const char **names, int max) {
  int n = 0;
  const Block *b = c->prog->blocks.v[0];
  for (int s = 0; s < c->op->outs.n; s++)
    for (int i = 0; i < c->op->outs.v[s].n && n < max; i++)
      if (block_var(b, c->op->outs.v[s].args[i])->dtype != DT_NONE)
        names[n++] = c->op->outs.v[s].args[i];
  return n;
}

/* ---- shapes ---- */

static bool shape_fits(const Var *v, int rank, const int64_t *dims) {
  if (v->rank != rank) return false;
  for (int d = 0; d < rank; d++)
    if (v->dims[d] >= 0 && v->dims[d] != dims[d]) return false;
  return true;
}

/* The same program with the first dimension of every fed tensor unknown infers compatible shapes.
 * */
static void check_unknown(const OpCase *c) {
  Program *p = prog_clone(c->prog);
  Block *b = p->blocks.v[0];
  const char *names[64];
  int n = computed(c, names, 64);
  for (int i = 0; i < n; i++) block_var(b, names[i])->dtype = DT_NONE;
  for (int i = 0; i < c->n_fed; i++) {
    Var *v = block_var(b, c->fed[i]);
    if (v->rank > 0) v->dims[0] = -1;
  }
  if (!infer_program(p, true))
    complain(c, "with an unknown first dimension:");
  else
    for (int i = 0; i < n; i++) {
      const Var *v = block_var(b, names[i]), *known = block_var(c->prog->blocks.v[0], names[i]);
      if (v->dtype != known->dtype || !shape_fits(v, known->rank, known->dims))
        complain(c, "%s is inferred %s with an unknown first dimension, else %s", names[i],
                 shape_text(v->dtype, v->rank, v->dims),
                 shape_text(known->dtype, known->rank, known->dims));
    }
  prog_free(p);
}

/* ---- forward ---- */

static bool prepare(OpCase *c, const OpDef *def, int k, DType real, Run *r, int *n,
                    const char **names) {
  *r = (Run){0};
  if (!opcase_make(c, def, k, real)) return complain(c, "cannot be built"), false;
  if (!infer_program(c->prog, true)) return complain(c, "shape inference"), false;
  if (!prog_verify(c->prog)) return complain(c, "verification"), false;
  *n = computed(c, names, 64);
  r->g = expand_program(c->prog, 0, NULL, *n, names, NULL, NULL);
  if (!r->g) return complain(c, "expansion"), false;
  if (!graph_verify(r->g)) return complain(c, "graph verification"), false;
  Fed fed = {.c = c};
  if (!evaluate(r, &fed)) return complain(c, "evaluation"), false;
  for (int i = 0; i < *n; i++) {
    const Var *v = block_var(c->prog->blocks.v[0], names[i]);
    const Tensor *t = fetched(r, i);
    if (v->dtype != t->dtype || !shape_fits(v, t->rank, t->dims))
      complain(c, "%s is inferred %s but computed %s", names[i],
               shape_text(v->dtype, v->rank, v->dims), shape_text(t->dtype, t->rank, t->dims));
  }
  return true;
}

static void compare(const OpCase *c, const char *name, const Tensor *a, const Tensor *b) {
  double scale = 1;
  for (int64_t i = 0; i < tensor_numel(a); i++)
    if (fabs(tensor_get(b, i)) > scale && isfinite(tensor_get(b, i)))
      scale = fabs(tensor_get(b, i));
  for (int64_t i = 0; i < tensor_numel(a); i++) {
    double x = tensor_get(a, i), y = tensor_get(b, i);
    double tolerance = a->dtype == DT_FLOAT16 ? 2e-3 : 2e-5;
    if (x == y || (isnan(x) && isnan(y)) || fabs(x - y) <= tolerance * scale) continue;
    complain(c, "%s[%lld] is %.9g, in float64 %.9g", name, (long long)i, x, y);
    return;
  }
}

static void sweep_forward(const OpDef *def, int k) {
  OpCase c[2];
  Run r[2];
  int n[2];
  const char *names[2][64];
  bool ok[2];
  for (int t = 0; t < 2; t++)
    ok[t] = prepare(&c[t], def, k, t ? DT_FLOAT64 : DT_FLOAT32, &r[t], &n[t], names[t]);
  n_cases++;
  if (ok[0] && !c[0].known) check_unknown(&c[0]);
  if (ok[0] && ok[1] && !(def->flags & OF_RANDOM))
    for (int i = 0; i < n[0]; i++)
      compare(&c[0], names[0][i], fetched(&r[0], i), fetched(&r[1], i));
  for (int t = 0; t < 2; t++) {
    run_free(&r[t]);
    graph_free(r[t].g);
    opcase_free(&c[t]);
  }
}

/* ---- gradients ---- */

/* Sum over the outputs with a gradient of that gradient times the output. */
static double weighted(const OpCase *c, Run *forward, int n, const char **names, const Fed *w) {
  double sum = 0;
  Fed fed = {.c = c};
  if (!evaluate(forward, &fed)) return NAN;
  for (int i = 0; i < n; i++)
    for (int k = 0; k < w->n; k++) {
      size_t len = strlen(names[i]);
      if (strncmp(w->name[k], names[i], len) != 0 || strcmp(w->name[k] + len, "@GRAD") != 0)
        continue;
      const Tensor *y = fetched(forward, i);
      for (int64_t e = 0; e < tensor_numel(y); e++)
        sum += tensor_get(y, e) * tensor_get(&w->value[k], e);
    }
  run_free(forward);
  return sum;
}

static void check_gradient(const OpCase *c, Run *forward, int n, const char **names, const Fed *w,
                           const char *target, const Tensor *g) {
  const double h = 1e-5;
  char of[256];
  snprintf(of, sizeof of, "%.*s", (int)(strlen(target) - 5), target);
  Tensor *x = opcase_value(c, of);
  if (!x) return;
  n_grads++;
  if (g->rank != x->rank || memcmp(g->dims, x->dims, sizeof *g->dims * (size_t)g->rank) != 0) {
    complain(c, "%s has the shape %s, %s has %s", target, dims_text(g->rank, g->dims), of,
             dims_text(x->rank, x->dims));
    return;
  }
  for (int64_t i = 0; i < tensor_numel(x); i++) {
    double v = tensor_get(x, i);
    tensor_set(x, i, v + h);
    double up = weighted(c, forward, n, names, w);
    tensor_set(x, i, v - h);
    double down = weighted(c, forward, n, names, w);
    tensor_set(x, i, v);
    double want = (up - down) / (2 * h), got = tensor_get(g, i);
    n_values++;
    double tolerance = 1e-5 * fmax(fabs(want), fabs(got)) + 1e-7;
    if (fabs(want - got) <= tolerance) continue;
    complain(c, "%s[%lld] is %.12g, central differences give %.12g", target, (long long)i, got,
             want);
    return;
  }
}

static void sweep_gradient(const OpDef *def, int k) {
  OpCase c;
  Run forward, backward = {0};
  int n;
  const char *names[64];
  OpGrads grads;
  bool ok = prepare(&c, def, k, DT_FLOAT64, &forward, &n, names);
  if (forward.a) run_free(&forward);
  if (!ok || c.nograd) goto done;
  if (!opcase_grads(&c, &grads) || !infer_program(c.prog, true) || !prog_verify(c.prog)) {
    complain(&c, "the gradient operator");
    goto done;
  }
  Fed w = {&c, grads.n_in, grads.in, arena_array(c.prog->arena, Tensor, grads.n_in)};
  uint64_t seed = 99;
  for (int i = 0; i < w.n; i++) {
    const Var *v = block_var(c.prog->blocks.v[0], w.name[i]);
    tensor_make(&w.value[i], c.prog->arena, v->dtype, v->rank, v->dims);
    for (int64_t e = 0; e < tensor_numel(&w.value[i]); e++)
      tensor_set(&w.value[i], e, test_random(&seed, -1, 1));
  }
  backward.g = expand_program(c.prog, 0, NULL, grads.n_out, grads.out, NULL, NULL);
  if (!backward.g || !graph_verify(backward.g)) {
    complain(&c, "expansion of the gradient");
    goto done;
  }
  if (!evaluate(&backward, &w)) {
    complain(&c, "evaluation of the gradient");
    goto done;
  }
  for (int i = 0; i < grads.n_out; i++)
    check_gradient(&c, &forward, n, names, &w, grads.out[i], fetched(&backward, i));
done:
  run_free(&backward);
  graph_free(backward.g);
  graph_free(forward.g);
  opcase_free(&c);
}

/* ---- compiled against interpreted ---- */

static void close_enough(const OpCase *c, const char *name, const Tensor *a, const Tensor *b) {
  char why[256];
  if (!tensor_close(a, b, tolerance_of_type(a->dtype), why, sizeof why))
    complain(c, "compiled against interpreted: %s: %s", name, why);
}

static void sweep_executor(const OpDef *def, int k, DType real, Executor *exec[2]) {
  OpCase c;
  OpGrads g = {0};
  const char *names[64];
  Tensor out[2][64];
  bool ok[2] = {false, false};
  memset(out, 0, sizeof out);
  if (!opcase_make(&c, def, k, real) || !infer_program(c.prog, true)) {
    complain(&c, "cannot be built");
    opcase_free(&c);
    return;
  }
  int n = computed(&c, names, 32), n_feeds;
  if (def->grad && !c.nograd && (!opcase_grads(&c, &g) || !infer_program(c.prog, true)))
    complain(&c, "the gradient operator");
  for (int i = 0; i < g.n_out && n < 64; i++) names[n++] = g.out[i];
  Feed *feeds = opcase_feeds(&c, &g, &n_feeds);
  for (int t = 0; t < 2; t++) {
    Scope *scope = scope_new();
    ok[t] = exec_run(exec[t], scope, c.prog, n_feeds, feeds, n, names, out[t]);
    if (!ok[t]) complain(&c, t ? "interpreted run" : "compiled run");
    scope_free(scope);
  }
  for (int i = 0; i < n && ok[0] && ok[1]; i++) close_enough(&c, names[i], &out[0][i], &out[1][i]);
  n_cases++;
  for (int t = 0; t < 2; t++)
    for (int i = 0; i < n; i++) mem_free(out[t][i].data);
  opcase_free(&c);
}

/* ---- the sweep ---- */

static void test_rows(void **state) {
  (void)state;
  int rows = 0, differentiable = 0;
  for (int i = 0; i < opdef_n(); i++) {
    const OpDef *def = opdef_at(i);
    if (!opcase_chosen(def) || (def->flags & (OF_IO | OF_GRAD | OF_CUSTOM | OF_HOST | OF_LOD)))
      continue;
    rows++;
    differentiable += def->grad != NULL;
    int n = example_count(def);
    if (n == 0) {
      fprintf(stderr, "%s has no example\n", def->name);
      n_bad++;
    }
    for (int k = 0; k < n; k++) {
      sweep_forward(def, k);
      if (def->grad) sweep_gradient(def, k);
    }
  }
  printf(
      "%d operators (%d with a gradient), %d examples in float32 and float64, %d gradient tensors "
      "with %d elements against central differences\n",
      rows, differentiable, n_cases, n_grads, n_values);
  assert_int_equal(n_bad, 0);
}

static void test_executor(void **state) {
  (void)state;
  n_cases = n_bad = 0;
  Executor *exec[2] = {exec_new(&(ExecOptions){.seed = 5}),
                       exec_new(&(ExecOptions){.seed = 5, .interpret = true})};
  for (int i = 0; i < opdef_n(); i++) {
    const OpDef *def = opdef_at(i);
    if (!opcase_chosen(def) || (def->flags & (OF_IO | OF_GRAD | OF_CUSTOM | OF_HOST | OF_LOD)))
      continue;
    for (int k = 0; k < example_count(def); k++)
      for (int t = 0; t < 3; t++) {
        layout_always = t; /* the channel last in float64, the images in float32 */
        sweep_executor(def, k, t == 1 ? DT_FLOAT64 : DT_FLOAT32, exec);
      }
  }
  layout_always = 0;
  for (int t = 0; t < 2; t++) exec_free(exec[t]);
  printf("%d examples compiled and interpreted alike\n", n_cases - n_bad);
  assert_int_equal(n_bad, 0);
}

/* ---- formulas ---- */

static Node *formula_input(Expand *x, const char *name) {
  int64_t dims[2] = {2, 3};
  return g_feed(x->g, name, DT_FLOAT32, 2, dims);
}

/* The result of a formula on an operator with input X and output Out; NULL after an error. */
static Node *formula_result(Graph *g, const char *text) {
  Op op = {.type = "scale", .def = opdef_find("scale")};
  Expand x = {g, &op, map_new(g->arena), formula_input, NULL};
  const char *in = "x", *out = "y";
  Slot ins = {"X", 1, &in}, outs = {"Out", 1, &out};
  vec_add(g->arena, &op.ins, ins);
  vec_add(g->arena, &op.outs, outs);
  return formula_expand(&x, text) ? map_get(x.env, "y") : NULL;
}

static void test_formulas(void **state) {
  (void)state;
  static const char *const good[] = {"Out = X",
                                     "a = 2; Out = a * X + bias",
                                     "Out = bias_after_scale ? X : Missing + 1",
                                     "Out = has(ScaleTensor) && ScaleTensor > 0 ? X : -X",
                                     "Out = 1 < 2 || Missing ? X : X * 2;",
                                     "Out = softplus(X, beta=2.0)",
                                     "Out = X > 0 && X < 1 ? X : 0",
                                     "Out = X % 2 - (1 - X) / 3"};
  static const char *const bad[] = {"Out",
                                    "Out =",
                                    "Out = ",
                                    "= X",
                                    "Out = X +",
                                    "Out = (X",
                                    "Out = X)",
                                    "Out = X ? X",
                                    "Out = X ? 1 : 2",
                                    "Out = Missing",
                                    "Out = missing(X)",
                                    "Out = rsum()",
                                    "Out = rsum(X, 7)",
                                    "Out = 'text",
                                    "Out = 'text' + X",
                                    "Out = [1, X]",
                                    "Out = ScaleTensor",
                                    "Out = X X",
                                    "Out = exp(X, X)",
                                    "Out = relu(X, X, X)",
                                    "Out = 1 + 2",
                                    "Out = cast(X, 'nonsense')",
                                    "Out = reshape(X, [4])",
                                    "Out = scalar(X)",
                                    "Out = relu(X, beta)",
                                    "Out = $",
                                    "Out = .."};
  for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
    Graph *g = graph_new(NULL, false);
    if (!formula_result(g, good[i])) fail_msg("%s", good[i]);
    graph_free(g);
  }
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    Graph *g = graph_new(NULL, false);
    if (formula_result(g, bad[i]) || !err_any()) fail_msg("%s", bad[i]);
    err_clear();
    graph_free(g);
  }
  static const char *const deep[] = {"(", "-", "!", "exp(", "[", "X ? ", "X + (", "relu(x="};
  for (size_t i = 0; i < sizeof deep / sizeof *deep; i++) {
    Graph *g = graph_new(NULL, false);
    Str s;
    str_init(&s, g->arena);
    str_add(&s, "Out = ");
    for (int k = 0; k < 100000; k++) str_add(&s, deep[i]);
    assert_null(formula_result(g, s.s));
    assert_true(err_any());
    err_clear();
    graph_free(g);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_formulas), cmocka_unit_test(test_rows),
                                     cmocka_unit_test(test_executor)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
