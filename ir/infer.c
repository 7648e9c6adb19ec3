/* Shape inference: the expansion of an operator on a shapes_only Graph.
 *
 * In: operators and the declarations of their inputs, whose dims may be -1. Out: element types and
 * dims of the outputs, written into declarations that have none, else compared with them. Within a
 * block one Graph serves all operators, so that constants (a computed shape) are known to those
 * that follow. */
#include "ir.h"

#include <string.h>

typedef struct Infer {
  const Block *block;
  bool check; /* compare with declarations; otherwise they are overwritten */
} Infer;

static Node *declared_node(Expand *x, const char *name) {
  Infer *in = x->user;
  const Var *v = block_find_var(in->block, name);
  if (!v) {
    err_set(E_VER_001, "variable %s is not declared", quoted(name));
    return NULL;
  }
  if (v->dtype == DT_NONE || v->rank < 0) {
    err_set(E_VER_003, "variable %s is declared without element type or dimensions", quoted(name));
    return NULL;
  }
  return v->persistable ? g_state(x->g, name, v->dtype, v->rank, v->dims)
                        : g_feed(x->g, name, v->dtype, v->rank, v->dims);
}

static bool fits(const Var *v, const Node *n) {
  if (v->dtype != n->dtype || v->rank != n->rank) return false;
  for (int d = 0; d < n->rank; d++)
    if (v->dims[d] >= 0 && n->dims[d] >= 0 && v->dims[d] != n->dims[d]) return false;
  return true;
}

/* Compares or sets the declaration of one output; the environment gets the more precise of the two
 * shapes. */
static bool settle(Expand *x, Var *v, Node *n, bool intermediate) {
  Infer *in = x->user;
  bool typed = v->dtype != DT_NONE, shaped = typed && v->rank >= 0;
  if (v->kind == VK_ARRAY && shaped) return true; /* elements may differ */
  if (n->rank > KL_VAR_RANK)
    return err_set(E_SHP_002, "%s would have rank %d; variables have at most %d", quoted(v->name),
                   n->rank, KL_VAR_RANK);
  if (in->check && shaped && !fits(v, n)) {
    if (intermediate) return true;
    return err_set(E_VER_003, "%s is declared %s, but the operator computes %s", quoted(v->name),
                   shape_text(v->dtype, v->rank, v->dims), shape_text(n->dtype, n->rank, n->dims));
  }
  if (in->check && typed && v->dtype != n->dtype && !intermediate)
    return err_set(E_VER_003, "%s is declared %s, but the operator computes %s", quoted(v->name),
                   dtype_info[v->dtype].name, dtype_info[n->dtype].name);
  if (!in->check || !shaped) {
    v->dtype = n->dtype;
    v->rank = n->rank;
    memcpy(v->dims, n->dims, sizeof v->dims[0] * (size_t)n->rank);
    return true;
  }
  bool finer = false;
  for (int d = 0; d < n->rank; d++) finer |= n->dims[d] < 0 && v->dims[d] >= 0;
  if (!finer) return true;
  Node *f = g_feed(x->g, v->name, v->dtype, v->rank, v->dims);
  if (f) map_put(x->env, v->name, f);
  return f != NULL;
}

/* What was known of a variable that control flow may change is no longer true. */
static void forget_results(Expand *x, const Op *op) {
  for (int s = 0; s < op->outs.n; s++)
    for (int i = 0; i < op->outs.v[s].n; i++) map_put(x->env, op->outs.v[s].args[i], NULL);
}

static bool infer_one(Expand *x, Op *op) {
  if (op->def && (op->def->flags & OF_IO)) return true;
  if (op->def && (op->def->flags & OF_HOST)) forget_results(x, op);
  if (!expand_op(x, op)) return false;
  for (int s = 0; s < op->outs.n; s++) {
    const SlotDef *def = opdef_out(op->def, op->outs.v[s].name);
    for (int i = 0; i < op->outs.v[s].n; i++) {
      const char *name = op_out(op, op->outs.v[s].name, i);
      Var *v = name ? block_find_var(op->block, name) : NULL;
      Node *n = v ? map_get(x->env, name) : NULL;
      if (!n || settle(x, v, n, def && def->intermediate)) continue;
      err_where("block %d, %s", op->block->idx, op_text(op));
      return false;
    }
  }
  return true;
}

static bool infer_ops(Block *b, int n, Op **ops, bool check) {
  Graph *g = graph_new(b->prog, true);
  Infer in = {b, check};
  Expand x = {g, NULL, map_new(g->arena), declared_node, &in};
  bool ok = true;
  for (int i = 0; i < n && ok; i++) ok = infer_one(&x, ops[i]);
  graph_free(g);
  return ok;
}

bool infer_op(Op *op) { return infer_ops(op->block, 1, &op, true); }

bool infer_program(Program *p, bool check) {
  for (int i = 0; i < p->blocks.n; i++) {
    Block *b = p->blocks.v[i];
    if (infer_ops(b, b->ops.n, b->ops.v, check)) continue;
    if (p->file) err_where("%s", p->file);
    return false;
  }
  return true;
}
