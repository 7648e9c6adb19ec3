/* Gradients of recurrent operators, which run a block for each row of their inputs.
 *
 * In: the walk over the operators around (backward.c) and the operator. Out: a block with the gradient operators of its
 * block, and recurrent_grad, as PaddlePaddle makes them. In the block stand for row t: inputs[i], outputs[i] and parameters[i]
 * under their own names, and ex_states[i], which is states[i] of the row before, at first initial_states[i]. The gradient's block
 * is given o@GRAD of each output and n@GRAD of each state through which the loss is reached, and leaves x@GRAD of inputs,
 * ex_states and parameters. A state is reached over rows to come: the set of what is given grows until it stays. */
#include "backward.h"
#include <string.h>

typedef struct Lists {
  const Slot *inputs, *initial, *params, *outputs;
  int n_states;
  const char *const *before, *const *after; /* ex_states, states */
} Lists;

typedef struct Inner {
  Backward n;
  Lists of;
  Map *asked; /* outputs through which the loss is reached */
  Map *given; /* and states: whose gradient the block is given */
} Inner;

static bool differentiable(const Backward *w, const char *name) {
  const Var *v = is_empty(name) ? NULL : block_find_var(w->b, name);
  return v && !v->stop_gradient && dtype_is_float(v->dtype);
}

static int count(const Slot *s) { return s ? s->n : 0; }

static bool find_lists(const Op *op, Lists *l) {
  const Attr *before = op_attr(op, "ex_states"), *after = op_attr(op, "states");
  *l = (Lists){op_ins(op, "inputs"),
               op_ins(op, "initial_states"),
               op_ins(op, "parameters"),
               op_outs(op, "outputs"),
               before && before->type == AT_STRINGS ? before->n : 0,
               NULL,
               NULL};
  int n = after && after->type == AT_STRINGS ? after->n : 0;
  if (n != l->n_states || n != count(l->initial)) {
    err_set(E_OPR_003, "%d ex_states, %d states, %d initial_states", l->n_states, n,
            count(l->initial));
    return false;
  }
  l->before = n ? before->ss : NULL;
  l->after = n ? after->ss : NULL;
  return true;
}

/* ---- what takes part ---- */

static void want(Inner *in, const char *name) {
  if (differentiable(&in->n, name)) map_put(in->n.wanted, name, in);
}

/* What depends on something around that is wanted; over states also from row to row. */
static void find_wanted(Inner *in) {
  const Backward *w = in->n.up;
  for (int i = 0; i < count(in->of.inputs); i++)
    if (is_wanted(w, in->of.inputs->args[i])) want(in, in->of.inputs->args[i]);
  for (int i = 0; i < in->of.n_states; i++)
    if (is_wanted(w, in->of.initial->args[i])) want(in, in->of.before[i]);
  for (bool grown = true; grown;) {
    mark_wanted(&in->n, 0, NULL);
    grown = false;
    for (int i = 0; i < in->of.n_states; i++) {
      if (!is_wanted(&in->n, in->of.after[i]) || is_wanted(&in->n, in->of.before[i])) continue;
      want(in, in->of.before[i]);
      grown |= is_wanted(&in->n, in->of.before[i]);
    }
  }
}

/* Does the block leave a gradient of the variable, as it was when the row began? After the mark. */
static bool leaves(Inner *in, const char *inner) {
  return is_wanted(&in->n, inner) && differentiable(&in->n, inner) &&
         grad_var(&in->n, inner)->n_parts > 0;
}

/* And is it asked for under its name around? */
static bool gives(Inner *in, const char *inner, const char *outer) {
  return is_wanted(in->n.up, outer) && differentiable(in->n.up, outer) && leaves(in, inner);
}

static bool grow(Inner *in) {
  bool grown = false;
  for (int i = 0; i < in->of.n_states; i++) {
    const char *state = in->of.after[i];
    if (map_get(in->given, state) || !leaves(in, in->of.before[i])) continue;
    map_put(in->given, state, in);
    grown = true;
  }
  return grown;
}

/* `w` stands behind the operator. */
static bool analyse(Backward *w, const Op *op, Inner *in) {
  Block *b = w->p->blocks.v[op_attr(op, "sub_block")->i];
  int depth = 0;
  for (const Backward *u = w; u; u = u->up) depth++;
  *in = (Inner){.n = {.p = w->p, .b = b, .to = b, .a = w->a, .up = w}};
  if (depth > BACKWARD_NESTED) {
    err_set(E_MEM_002, "blocks with gradients are nested deeper than %d", BACKWARD_NESTED);
    return err_where("%s", op_text(op)), false;
  }
  if (!find_lists(op, &in->of)) return err_where("%s", op_text(op)), false;
  in->asked = map_new(w->a);
  in->given = map_new(w->a);
  in->n.n_forward = b->ops.n;
  in->n.saved = w->saved;
  backward_prepare(&in->n);
  in->n.n_forward = b->ops.n;
  for (int i = 0; i < count(in->of.outputs); i++) {
    const char *o = in->of.outputs->args[i];
    if (is_empty(o) || !grad_var(w, o)->reached || !differentiable(w, o)) continue;
    map_put(in->asked, o, in);
    map_put(in->given, o, in);
  }
  find_wanted(in);
  do
    if (!backward_mark_given(&in->n, in->given)) return false;
  while (grow(in));
  return true;
}

bool recurrent_mark(Backward *w, const Op *op) {
  Inner in;
  if (!analyse(w, op, &in)) return false;
  backward_step(w, op);
  for (int i = 0; i < count(in.of.inputs); i++) {
    const char *x = in.of.inputs->args[i];
    if (gives(&in, x, x)) add_part(w, x);
  }
  for (int i = 0; i < in.of.n_states; i++)
    if (gives(&in, in.of.before[i], in.of.initial->args[i])) add_part(w, in.of.initial->args[i]);
  for (int i = 0; i < count(in.of.params); i++) {
    const char *x = in.of.params->args[i];
    if (gives(&in, x, x)) add_part(w, x);
  }
  return true;
}

/* ---- emitting ---- */

/* The block with the gradient operators; w->to is where its operator will be. */
static bool emit_inner(Backward *w, const Op *op, Inner *in) {
  Backward *n = &in->n;
  void *unused;
  n->to = prog_add_block(w->p, w->to->idx, n->b->idx);
  backward_begin(n);
  for (int i = 0; i < map_n(in->given); i++) {
    const char *name = map_at(in->given, i, &unused);
    const Var *v = block_find_var(n->b, name);
    block_add_var(n->to, grad_name(w, name), v->kind, v->dtype, v->rank, v->dims);
  }
  if (!backward_emit(n)) return false;
  for (int i = 0; i < count(in->of.inputs); i++)
    if (leaves(in, in->of.inputs->args[i])) complete_grad(n, in->of.inputs->args[i], op);
  for (int i = 0; i < in->of.n_states; i++)
    if (leaves(in, in->of.before[i])) complete_grad(n, in->of.before[i], op);
  for (int i = 0; i < count(in->of.params); i++)
    if (leaves(in, in->of.params->args[i])) complete_grad(n, in->of.params->args[i], op);
  return true;
}

static void add_grads(Backward *w, Inner *in, Op *g, const char *slot, const Slot *outer,
                      const char *const *inner) {
  for (int i = 0; i < count(outer); i++) {
    const char *x = outer->args[i];
    op_add_out(g, slot, gives(in, inner ? inner[i] : x, x) ? next_part(w, x) : "@EMPTY@");
  }
}

/* Where the operator leaves its frames. */
static const char *scopes_of(Backward *w, Op *op) {
  const char *name = op_out(op, "step_scopes", 0);
  if (name) return name;
  name = prog_unique(w->p, "step_scopes");
  block_add_var(w->b, name, VK_STEP_SCOPES, DT_NONE, 0, NULL);
  op_add_out(op, "step_scopes", name);
  return name;
}

static void connect(Backward *w, const Op *op, Inner *in, Op *g) {
  const Lists *l = &in->of;
  const char *scopes = scopes_of(w, (Op *)(uintptr_t)op);
  if (l->inputs) op_set_ins(g, "inputs", l->inputs->n, l->inputs->args);
  if (l->initial) op_set_ins(g, "initial_states", l->initial->n, l->initial->args);
  if (l->params) op_set_ins(g, "parameters", l->params->n, l->params->args);
  if (l->outputs) op_set_ins(g, "outputs", l->outputs->n, l->outputs->args);
  for (int i = 0; i < count(l->outputs); i++) {
    const char *o = l->outputs->args[i];
    op_add_in(g, "outputs@GRAD", map_get(in->asked, o) ? grad_name(w, o) : "@EMPTY@");
  }
  op_add_in(g, "step_scopes", scopes);
  add_grads(w, in, g, "inputs@GRAD", l->inputs, NULL);
  add_grads(w, in, g, "initial_states@GRAD", l->initial, l->before);
  add_grads(w, in, g, "parameters@GRAD", l->params, NULL);
  for (int i = 0; i < op->attrs.n; i++)
    if (strcmp(op->attrs.v[i].name, "op_role") && strcmp(op->attrs.v[i].name, "op_role_var"))
      op_set_attr(g, &op->attrs.v[i]);
  op_set_attr(g, &(Attr){.name = "sub_block", .type = AT_BLOCK, .i = in->n.to->idx});
}

bool recurrent_emit(Backward *w, const Op *op) {
  Inner in;
  if (!analyse(w, op, &in)) return false;
  const Slot *o = in.of.outputs;
  for (int i = 0; i < count(o); i++)
    if (map_get(in.asked, o->args[i])) complete_grad(w, o->args[i], op);
  backward_step(w, op);
  if (!emit_inner(w, op, &in)) return false;
  connect(w, op, &in, add_grad_op(w, op->def->grad->type, ROLE_BACKWARD, op));
  return true;
}
