/* Custom operators: one CALL of the registered C function, and an OUT for each further output.
 *
 * In: the operator's inputs; for the gradient the forward inputs, forward outputs and gradients of
 * the outputs, in the order of the signature. Shapes come from the registered shape function; a
 * gradient has its input's shape. */
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

static bool call_ins(Expand *x, Call *c, int n_slots, const SlotDef *slots, const char *suffix) {
  for (int s = 0; s < n_slots; s++) {
    const char *slot = arena_fmt(x->g->arena, "%s%s", slots[s].name, suffix);
    for (int i = 0; i < x_n_in(x, slot); i++)
      if (!call_add(x, c, x_in_at(x, slot, i))) return false;
  }
  return true;
}

/* One CALL node and the OUT nodes; `slots`+suffix are the outputs in order, with the shapes of
 * c->out_t. */
static bool call_outs(Expand *x, Call *c, const CustomOp *op, bool backward, int n_slots,
                      const SlotDef *slots, const char *suffix) {
  const Tensor *t = c->out_t.v;
  Node *call = g_call(x->g, op, backward, c->in.n, c->in.v, t->dtype, t->rank, t->dims);
  int k = 0;
  for (int s = 0; s < n_slots; s++) {
    const char *slot = arena_fmt(x->g->arena, "%s%s", slots[s].name, suffix);
    int n = x_n_out(x, slot) ? x_n_out(x, slot) : 1;
    for (int i = 0; i < n; i++, k++) {
      if (k >= c->out_t.n) return true;
      t = &c->out_t.v[k];
      Node *o = k == 0 ? call : g_out(x->g, call, k, t->dtype, t->rank, t->dims);
      if (!x_out_at(x, slot, i, o)) return false;
    }
  }
  return true;
}

static bool expand_custom(Expand *x, const CustomOp *op) {
  const OpDef *def = x->op->def;
  Call c = {0};
  if (!call_ins(x, &c, def->n_ins, def->ins, "")) return false;
  int n_out = 0;
  for (int s = 0; s < def->n_outs; s++)
    n_out += x_n_out(x, def->outs[s].name) ? x_n_out(x, def->outs[s].name) : 1;
  Tensor none = {.dtype = DT_FLOAT32};
  for (int i = 0; i < n_out; i++) vec_add(x->g->arena, &c.out_t, none);
  if (n_out == 0 || !op->infer(op, c.in_t.n, c.in_t.v, n_out, c.out_t.v))
    return err_any() ? false
                     : err_set(E_PLG_001, "custom operator %s: its shape function failed",
                               quoted(op->name));
  for (int i = 0; i < n_out; i++)
    if (c.out_t.v[i].rank < 0 || c.out_t.v[i].rank > KL_VAR_RANK || c.out_t.v[i].dtype >= DT_N)
      return err_set(E_PLG_001, "custom operator %s: output %d has a bad rank or element type",
                     quoted(op->name), i);
  return call_outs(x, &c, op, false, def->n_outs, def->outs, "");
}

static bool expand_custom_grad(Expand *x, const OpDef *fwd) {
  Call c = {0};
  if (!call_ins(x, &c, fwd->n_ins, fwd->ins, "")) return false;
  for (int i = 0; i < c.in_t.n; i++) vec_add(x->g->arena, &c.out_t, c.in_t.v[i]);
  if (!call_ins(x, &c, fwd->n_outs, fwd->outs, "") ||
      !call_ins(x, &c, fwd->n_outs, fwd->outs, "@GRAD"))
    return false;
  return c.out_t.n == 0 || call_outs(x, &c, fwd->custom, true, fwd->n_ins, fwd->ins, "@GRAD");
}

bool x_custom(Expand *x);
bool x_custom(Expand *x) {
  const OpDef *def = x->op->def;
  return def->forward ? expand_custom_grad(x, def->forward) : expand_custom(x, def->custom);
}
