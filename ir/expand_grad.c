/* The expansion of a gradient operator without one of its own, derived from its forward operator's.
 *
 * In: the gradient operator and its inputs. Out: its outputs. The forward operator is expanded again on aliases of the
 * inputs and derive() is called; passes merge the repetition. A forward input which the gradient operator does not
 * receive is stood in by a node of the right shape; that the result reads only its shape is checked. */
#include "ir.h"
#include <string.h>

typedef struct Target {
  const char *slot;
  int i;
} Target;

typedef struct Derive {
  Expand *x; /* of the gradient operator */
  Expand inner;
  Op *op; /* the forward operator, made for this */
  VEC(Node *) ys, gys, xs;
  VEC(Node *) standins;
  VEC(Target) targets; /* the gradient output of each xs */
} Derive;

/* A node with the shape of a forward input that the gradient operator does not receive. */
static Node *stand_in(Expand *x, const char *slot, const char *grad_slot, int i) {
  Graph *g = x->g;
  const OpDef *fwd = x->op->def->forward;
  if (i == 0 && strcmp(fwd->ins[0].name, slot) == 0 && op_in(x->op, "XShape", 0)) {
    Node *s = x_in(x, "XShape");
    Node *gy = NULL;
    for (int o = 0; o < fwd->n_outs && !gy; o++)
      gy = x_in(x, arena_fmt(g->arena, "%s@GRAD", fwd->outs[o].name));
    if (!s) return NULL;
    if (s->rank > 0) return g_full(g, gy ? gy->dtype : s->dtype, 0, s->rank - 1, s->dims + 1);
  }
  const char *name = op_out(x->op, grad_slot, i);
  const Var *v = name && x->op->block ? block_find_var(x->op->block, name) : NULL;
  if (v && v->dtype != DT_NONE && v->rank >= 0) {
    bool known = x->g->shapes_only;
    for (int d = 0; d < v->rank && !known; d++)
      if (v->dims[d] < 0) goto unknown;
    return g_full(g, v->dtype, 0, v->rank, v->dims);
  }
unknown:
  err_set(E_OPR_005, "the shape of input %s of %s is not known to its gradient", quoted(slot),
          quoted(fwd->name));
  return NULL;
}

static void make_slot(Graph *g, Op *op, bool in, const char *name, int n) {
  Slot s = {name, n, arena_array(g->arena, const char *, n)};
  for (int i = 0; i < n; i++) s.args[i] = arena_fmt(g->arena, "%s#%d", name, i);
  if (in)
    vec_add(g->arena, &op->ins, s);
  else
    vec_add(g->arena, &op->outs, s);
}

static bool derive_input(Derive *d, const SlotDef *def) {
  Expand *x = d->x;
  Graph *g = x->g;
  const char *grad = arena_fmt(g->arena, "%s@GRAD", def->name);
  int n = x_n_in(x, def->name);
  bool given = n > 0, wanted = x_wants(x, grad);
  if (!given) n = wanted ? x_n_out(x, grad) : 0;
  if (n == 0) return true;
  make_slot(g, d->op, true, def->name, n);
  for (int i = 0; i < n; i++) {
    if (given && !op_in(x->op, def->name, i)) continue;
    Node *v = given ? x_in_at(x, def->name, i) : stand_in(x, def->name, grad, i);
    if (!v) return false;
    if (!given) vec_add(g->arena, &d->standins, v);
    if (dtype_is_float(v->dtype)) {
      const Lod *lod = v->lod;
      v = g_alias(g, v);
      if (v) v->lod = lod;
    }
    map_put(d->inner.env, d->op->ins.v[d->op->ins.n - 1].args[i], v);
    if (!op_out(x->op, grad, i)) continue;
    vec_add(g->arena, &d->xs, v);
    vec_add(g->arena, &d->targets, ((Target){grad, i}));
  }
  return true;
}

static bool derive_outputs(Derive *d) {
  Expand *x = d->x;
  Graph *g = x->g;
  const OpDef *fwd = d->op->def;
  for (int s = 0; s < fwd->n_outs; s++) {
    const char *grad = arena_fmt(g->arena, "%s@GRAD", fwd->outs[s].name);
    for (int i = 0; i < x_n_in(x, grad); i++) {
      if (!op_in(x->op, grad, i)) continue;
      Node *gy = x_in_at(x, grad, i);
      Node *y = map_get(d->inner.env, arena_fmt(g->arena, "%s#%d", fwd->outs[s].name, i));
      if (!gy) return false;
      if (!y) continue;
      if (!node_same_shape(gy, y)) gy = g_reshape(g, gy, y->rank, y->dims);
      gy = gy ? g_cast(g, gy, y->dtype) : NULL;
      if (!gy) return false;
      vec_add(g->arena, &d->ys, y);
      vec_add(g->arena, &d->gys, gy);
    }
  }
  return true;
}

/* Do the results depend on the value of a stand-in? Looks at the nodes made from `first` on. */
static bool reads_standin(Derive *d, int first, int n, Node **results) {
  Graph *g = d->x->g;
  bool bad = false;
  for (int k = first; k < g->nodes.n; k++) g->nodes.v[k]->mark = 0;
  for (int k = 0; k < d->standins.n; k++) d->standins.v[k]->mark = 1;
  for (int k = first; k < g->nodes.n; k++)
    for (int i = 0; i < g->nodes.v[k]->n_in; i++) g->nodes.v[k]->mark |= g->nodes.v[k]->in[i]->mark;
  for (int k = 0; k < n; k++) bad |= results[k] && results[k]->mark;
  for (int k = first; k < g->nodes.n; k++) g->nodes.v[k]->mark = 0;
  return bad;
}

static bool derived_outputs(Derive *d, int first) {
  Expand *x = d->x;
  Graph *g = x->g;
  int n = d->xs.n;
  Node **gxs = arena_array(g->arena, Node *, n + 1);
  if (!derive(g, d->ys.n, d->ys.v, d->gys.v, n, d->xs.v, gxs)) return false;
  if (d->standins.n && reads_standin(d, first, n, gxs))
    return err_set(E_OPR_005, "the gradient of %s needs an input that its operator does not keep",
                   quoted(d->op->type));
  for (int i = 0; i < n; i++) {
    Node *v = d->xs.v[i], *r = gxs[i] ? gxs[i] : g_full(g, v->dtype, 0, v->rank, v->dims);
    if (!x_out_at(x, d->targets.v[i].slot, d->targets.v[i].i, r)) return false;
  }
  return true;
}

bool expand_gradient(Expand *x) {
  Graph *g = x->g;
  const OpDef *fwd = x->op->def->forward;
  int first = g->nodes.n;
  Derive d = {.x = x, .inner = {g, NULL, map_new(g->arena), x->missing, x->user}};
  d.op = arena_new_of(g->arena, Op);
  d.op->type = fwd->name;
  d.op->def = fwd;
  for (int i = 0; i < x->op->attrs.n; i++) vec_add(g->arena, &d.op->attrs, x->op->attrs.v[i]);
  for (int s = 0; s < fwd->n_ins; s++)
    if (!derive_input(&d, &fwd->ins[s])) return false;
  if (g->shapes_only) { /* a gradient has the shape of what it is the gradient of */
    for (int i = 0; i < d.xs.n; i++)
      if (!x_out_at(x, d.targets.v[i].slot, d.targets.v[i].i, d.xs.v[i])) return false;
    return true;
  }
  for (int s = 0; s < fwd->n_outs; s++) {
    const char *name = fwd->outs[s].name;
    int n = x_n_in(x, arena_fmt(g->arena, "%s@GRAD", name));
    if (n) make_slot(g, d.op, false, name, n);
  }
  return expand_op(&d.inner, d.op) && derive_outputs(&d) && derived_outputs(&d, first);
}
