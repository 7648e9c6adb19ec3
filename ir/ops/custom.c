/* Custom operators: one CALL of the registered C function, and an OUT for each further output.
 *
 * In: the operator's inputs; for the gradient the forward inputs, forward outputs and gradients of
 * the outputs, in the order of the signature, with zeros for a gradient that is not connected.
 * Shapes come from the registered shape function; a gradient has its input's shape. */
#include "../ir.h"

#include <string.h>

static void tensor_of_node(Tensor *t, const Node *n) {
  *t = (Tensor){.dtype = n->dtype, .rank = n->rank};
  memcpy(t->dims, n->dims, sizeof t->dims[0] * (size_t)n->rank);
}

typedef struct Call {
  VEC(Node *) in;
  VEC(Tensor) in_t, out_t;
} Call;

static bool call_add(Expand *x, Call *c, Node *v) {
  if (!v) return false;
  if (v->rank > KL_VAR_RANK) return err_set(E_SHP_002, "%s: rank %d", quoted(x->op->type), v->rank);
  Tensor t;
  tensor_of_node(&t, v);
  vec_add(x->g->arena, &c->in, v);
  vec_add(x->g->arena, &c->in_t, t);
  return true;
}

static bool call_ins(Expand *x, Call *c, int n_slots, const SlotDef *slots) {
  for (int s = 0; s < n_slots; s++)
    for (int i = 0; i < x_n_in(x, slots[s].name); i++)
      if (!call_add(x, c, x_in_at(x, slots[s].name, i))) return false;
  return true;
}

/* How many tensors the C functions see of an output slot: one if nothing is connected. */
static int slot_outs(int connected) { return connected ? connected : 1; }

/* Shapes and types of the forward outputs, from those of the inputs in c. */
static bool infer_outs(Expand *x, const CustomOp *op, Call *c, int n_out) {
  Tensor none = {.dtype = DT_FLOAT32};
  c->out_t.n = 0;
  for (int i = 0; i < n_out; i++) vec_add(x->g->arena, &c->out_t, none);
  if (n_out == 0 || !op->infer(op, c->in_t.n, c->in_t.v, n_out, c->out_t.v))
    return err_any() ? false
                     : err_set(E_PLG_001, "custom operator %s: its shape function failed",
                               quoted(op->name));
  for (int i = 0; i < n_out; i++)
    if (c->out_t.v[i].rank < 0 || c->out_t.v[i].rank > KL_VAR_RANK || c->out_t.v[i].dtype >= DT_N)
      return err_set(E_PLG_001, "custom operator %s: output %d has a bad rank or element type",
                     quoted(op->name), i);
  return true;
}

/* All outputs of a call of the shapes c->out_t: the C function fills in all of them. */
static Node **call_all(Expand *x, const Call *c, const CustomOp *op, bool backward) {
  const Tensor *t = c->out_t.v;
  Node **out = arena_array(x->g->arena, Node *, c->out_t.n);
  out[0] = g_call(x->g, op, backward, c->in.n, c->in.v, t->dtype, t->rank, t->dims);
  for (int k = 1; k < c->out_t.n; k++)
    out[k] = g_out(x->g, out[0], k, t[k].dtype, t[k].rank, t[k].dims);
  return out;
}

static bool expand_custom(Expand *x, const CustomOp *op) {
  const OpDef *def = x->op->def;
  Call c = {0};
  int n_out = 0, k = 0;
  for (int s = 0; s < def->n_outs; s++) n_out += slot_outs(x_n_out(x, def->outs[s].name));
  if (!call_ins(x, &c, def->n_ins, def->ins) || !infer_outs(x, op, &c, n_out)) return false;
  Node **out = call_all(x, &c, op, false);
  for (int s = 0; s < def->n_outs; s++) {
    int n = slot_outs(x_n_out(x, def->outs[s].name));
    for (int i = 0; i < n; i++, k++)
      if (!x_out_at(x, def->outs[s].name, i, out[k])) return false;
  }
  return true;
}

/* Adds the forward outputs, or their gradients. What is not connected keeps its position: an output is computed again, a
 * gradient is zero. */
static bool grad_ins(Expand *x, Call *c, const OpDef *fwd, const Call *outs, Node ***again,
                     const char *suffix) {
  for (int s = 0, k = 0; s < fwd->n_outs; s++) {
    const char *slot = arena_fmt(x->g->arena, "%s%s", fwd->outs[s].name, suffix);
    int n = slot_outs(x_n_in(x, fwd->outs[s].name));
    for (int i = 0; i < n; i++, k++) {
      const Tensor *t = &outs->out_t.v[k];
      Node *v = x_in_at(x, slot, i);
      if (err_any()) return false;
      if (!v && *suffix) v = g_full(x->g, t->dtype, 0, t->rank, t->dims);
      if (!v && !*again) *again = call_all(x, outs, fwd->custom, false);
      if (!call_add(x, c, v ? v : (*again)[k])) return false;
    }
  }
  return true;
}

static bool expand_custom_grad(Expand *x, const OpDef *fwd) {
  Call c = {0}, outs = {0};
  Node **again = NULL;
  int n_out = 0, k = 0;
  for (int s = 0; s < fwd->n_outs; s++) n_out += slot_outs(x_n_in(x, fwd->outs[s].name));
  if (!call_ins(x, &c, fwd->n_ins, fwd->ins) || !call_ins(x, &outs, fwd->n_ins, fwd->ins) ||
      !infer_outs(x, fwd->custom, &outs, n_out))
    return false;
  for (int i = 0; i < c.in_t.n; i++) vec_add(x->g->arena, &c.out_t, c.in_t.v[i]);
  if (!grad_ins(x, &c, fwd, &outs, &again, "") || !grad_ins(x, &c, fwd, &outs, &again, "@GRAD"))
    return false;
  if (c.out_t.n == 0) return true;
  Node **out = call_all(x, &c, fwd->custom, true);
  for (int s = 0; s < fwd->n_ins; s++) {
    const char *slot = arena_fmt(x->g->arena, "%s@GRAD", fwd->ins[s].name);
    for (int i = 0; i < x_n_in(x, fwd->ins[s].name); i++, k++)
      if (!x_out_at(x, slot, i, out[k])) return false;
  }
  return true;
}

bool x_custom(Expand *x) {
  const OpDef *def = x->op->def;
  return def->forward ? expand_custom_grad(x, def->forward) : expand_custom(x, def->custom);
}
