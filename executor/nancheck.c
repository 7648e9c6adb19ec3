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
  err_note("%s %s: min = %g, max = %g, not finite: %lld", what,
           shape_text(t->dtype, t->rank, t->dims), lo, hi, (long long)bad);
}

/* The last node of the operator that n came from: the operator's result. */
static const Node *result_of(const Graph *g, const Node *n) {
  const Node *last = n;
  for (int i = n->id; i < g->nodes.n; i++)
    if (g->nodes.v[i]->op == n->op) last = g->nodes.v[i];
  return last;
}

static const char *output_name(const Op *op) {
  for (int i = 0; i < op->outs.n; i++)
    if (op->outs.v[i].n) return op->outs.v[i].args[0];
  return "";
}

/* Operators use infinities inside (the identity of a maximum, for one): only results count. */
static const Node *first_bad(const Graph *g, Tensor **values) {
  for (int i = 0; i < g->nodes.n; i++) {
    const Node *n = g->nodes.v[i];
    if (!n->op || !values[i] || result_of(g, n) != n || tensor_finite(values[i], NULL)) continue;
    return n;
  }
  return NULL;
}

static void report(const Graph *g, const Node *bad, Tensor **values, uint64_t step) {
  int64_t at = 0;
  tensor_finite(values[bad->id], &at);
  double v = tensor_get(values[bad->id], at);
  err_set(E_NUM_001, "%s of operator `%s` became %s at step %llu", quoted(output_name(bad->op)),
          bad->op->type, isnan(v) ? "NaN" : "infinite", (unsigned long long)step);
  err_note("the first is element %lld", (long long)at);
  for (int i = 0; i < g->nodes.n; i++) {
    const Node *n = g->nodes.v[i];
    if (n->op != bad->op) continue;
    for (int j = 0; j < n->n_in; j++)
      if (n->in[j]->op != bad->op && values[n->in[j]->id])
        note_range(n->in[j]->s ? n->in[j]->s : "input", values[n->in[j]->id]);
  }
  err_help("lower the learning rate, clip gradients, or look at this operator's inputs");
  err_where("%s", op_text(bad->op));
}

bool find_not_finite(const CompileRequest *r, const EvalEnv *env, const char *seen_in) {
  Graph *g;
  if (!expand_request(r, &g)) return false;
  graph_number(g);
  Arena *a = arena_scratch();
  Tensor **values = arena_array(a, Tensor *, g->nodes.n);
  bool ok = graph_eval(g, env, a, values);
  const Node *bad = ok ? first_bad(g, values) : NULL;
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
