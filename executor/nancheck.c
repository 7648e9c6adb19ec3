/* Finding where a NaN or infinity began.
 *
 * In: a program and the values it was run with. Out: E-NUM-001 naming the first operator, in program order, whose output
 * is not finite although its inputs are, with the range of those inputs. The program is interpreted node by node, so
 * intermediate values that generated code keeps in registers are seen too. */
#include "internal.h"
#include <math.h>
#include <string.h>

bool tensor_finite(const Tensor *t, int64_t *at) {
  if (!dtype_is_float(t->dtype)) return true;
  int64_t n = tensor_numel(t);
  for (int64_t i = 0; i < n; i++)
    if (!isfinite(tensor_get(t, i))) {
      if (at) *at = i;
      return false;
    }
  return true;
}

static void note_range(const char *what, const Tensor *t) {
  if (!dtype_is_float(t->dtype)) return;
  double lo = INFINITY, hi = -INFINITY;
  int64_t n = tensor_numel(t), bad = 0;
  for (int64_t i = 0; i < n; i++) {
    double v = tensor_get(t, i);
    if (!isfinite(v))
      bad++;
    else {
      lo = v < lo ? v : lo;
      hi = v > hi ? v : hi;
    }
  }
  err_note("%s %s: min = %g, max = %g, not finite: %lld", quoted(what),
           shape_text(t->dtype, t->rank, t->dims), lo, hi, (long long)bad);
}

/* Every floating-point variable that an operator of this run writes, so that all results are kept under their names.
 * Persistable ones are among the writes anyway. */
static const char **all_results(const CompileRequest *r, Arena *a, int *n) {
  Section s = request_section(r, a);
  const char **names;
  int n_all = block_results(s.block, s.from, s.to, s.skip, a, &names);
  *n = 0;
  for (int i = 0; i < n_all; i++)
    if (dtype_is_float(block_find_var(s.block, names[i])->dtype)) names[(*n)++] = names[i];
  return names;
}

/* Values inside an operator may be infinite (the identity of a maximum, for one): only its results count. */
static const NamedNode *first_bad(const Graph *g, Tensor **values) {
  const NamedNode *first = NULL;
  for (int i = 0; i < g->fetches.n + g->writes.n; i++) {
    const NamedNode *r = i < g->fetches.n ? &g->fetches.v[i] : &g->writes.v[i - g->fetches.n];
    const Node *n = r->node;
    if (!n->op || !values[n->id] || tensor_finite(values[n->id], NULL)) continue;
    if (!first || n->id < first->node->id) first = r;
  }
  return first;
}

/* The node that a variable's name stands for: a result, or what the run began with. */
static const Node *named_value(const Graph *g, const char *name) {
  for (int i = 0; i < g->fetches.n; i++)
    if (!strcmp(g->fetches.v[i].name, name)) return g->fetches.v[i].node;
  for (int i = 0; i < g->nodes.n; i++) {
    const Node *n = g->nodes.v[i];
    if ((n->prim == P_FEED || n->prim == P_STATE) && !strcmp(n->s, name)) return n;
  }
  return NULL;
}

static void report(const Graph *g, const NamedNode *result, Tensor **values, uint64_t step) {
  const Node *bad = result->node;
  int64_t at = 0;
  tensor_finite(values[bad->id], &at);
  double v = tensor_get(values[bad->id], at);
  err_set(E_NUM_001, "%s of operator `%s` became %s at step %llu", quoted(result->name),
          bad->op->type, isnan(v) ? "NaN" : "infinite", (unsigned long long)step);
  err_note("the first is element %lld", (long long)at);
  for (int i = 0; i < bad->op->ins.n; i++)
    for (int k = 0; k < bad->op->ins.v[i].n; k++) {
      const char *name = bad->op->ins.v[i].args[k];
      const Node *n = named_value(g, name);
      if (n && values[n->id]) note_range(name, values[n->id]);
    }
  err_help("lower the learning rate, clip gradients, or look at this operator's inputs");
  err_where("%s", op_text(bad->op));
}

bool find_not_finite(const CompileRequest *r, const EvalEnv *env, const char *seen_in) {
  Graph *g;
  Arena *a = arena_scratch();
  CompileRequest all = *r;
  all.fetch = all_results(r, a, &all.n_fetch);
  if (!expand_request(&all, &g)) return arena_free(a), false;
  graph_number(g);
  Tensor **values = arena_array(a, Tensor *, g->nodes.n);
  bool ok = graph_eval(g, env, a, values);
  const NamedNode *bad = ok ? first_bad(g, values) : NULL;
  if (bad)
    report(g, bad, values, env->step);
  else if (ok && seen_in) {
    err_set(E_NUM_001, "%s is not finite at step %llu", quoted(seen_in),
            (unsigned long long)env->step);
    err_help("the interpreter stays finite here: a value near the largest float overflows");
  }
  arena_free(a);
  graph_free(g);
  return ok && !bad && !seen_in;
}
