/* Gradients of operators that run a block: loops and branches.
 *
 * In: the walk over the operators around (backward.c) and the operator. Out: a block with the gradient operators of its
 * block, and its gradient operator, as PaddlePaddle makes them. The block takes e@GRAD for each variable e that it changes and
 * the loss depends on, and leaves x@GRAD for the variables that it reads: for those that a loop carries from step to step in
 * the same place, as the next step's e@GRAD; for the others in variables of its own, which are summed over the steps.
 * A loop's gradient can reach a carried variable only over further steps: the set of e grows until it stays. */
#include "backward.h"
#include <string.h>

typedef struct Inner {
  Backward n;
  const Slot *x, *out;
  Map *ends; /* outer variables whose gradient the block takes */
  bool loop;
} Inner;

static Block *block_of(const Op *op) {
  const Attr *a = op_attr(op, "sub_block");
  const Program *p = op->block->prog;
  return a && a->type == AT_BLOCK && a->i > 0 && a->i < p->blocks.n ? p->blocks.v[a->i] : NULL;
}

bool op_has_block(const Op *op) { return block_of(op) != NULL; }

static bool slot_has(const Slot *s, const char *name) {
  for (int i = 0; s && i < s->n; i++)
    if (!strcmp(s->args[i], name)) return true;
  return false;
}

static bool differentiable(const Backward *w, const char *name) {
  const Var *v = block_find_var(w->b, name);
  return v && !v->stop_gradient && dtype_is_float(v->dtype);
}

/* Does the block leave a gradient of x, as x was when the block began? What it may change it may also not change: a loop
 * without steps, a branch that is not taken. After the mark. */
static bool leaves(Inner *in, const char *x) {
  const Backward *w = in->n.up;
  if (is_empty(x) || !is_wanted(w, x) || !differentiable(w, x)) return false;
  return map_get(in->ends, x) || grad_var(&in->n, x)->n_parts > 0;
}

static bool grow_ends(Inner *in) {
  bool grown = false;
  for (int i = 0; in->loop && in->x && i < in->x->n; i++) {
    const char *x = in->x->args[i];
    if (map_get(in->ends, x) || !slot_has(in->out, x) || !leaves(in, x)) continue;
    map_put(in->ends, x, in);
    grown = true;
  }
  return grown;
}

/* `w` stands behind the operator. */
static bool analyse(Backward *w, const Op *op, Inner *in) {
  Block *b = block_of(op);
  int depth = 0;
  for (const Backward *u = w; u; u = u->up) depth++;
  if (depth > BACKWARD_NESTED) {
    err_set(E_MEM_002, "loops and branches with gradients are nested deeper than %d",
            BACKWARD_NESTED);
    return err_where("%s", op_text(op)), false;
  }
  *in = (Inner){.n = {.p = w->p, .b = b, .to = b, .a = w->a, .up = w}};
  in->x = op_ins(op, "X") ? op_ins(op, "X") : op_ins(op, "Input");
  in->out = op_outs(op, "Out");
  in->loop = op_ins(op, "Condition") != NULL;
  in->ends = map_new(w->a);
  in->n.n_forward = b->ops.n;
  in->n.saved = w->saved;
  backward_prepare(&in->n);
  in->n.n_forward = b->ops.n;
  for (int i = 0; in->out && i < in->out->n; i++) {
    const char *e = in->out->args[i];
    if (!is_empty(e) && grad_var(w, e)->reached && differentiable(w, e)) map_put(in->ends, e, in);
  }
  mark_wanted(&in->n, 0, NULL);
  do
    if (!backward_mark_given(&in->n, in->ends)) return false;
  while (grow_ends(in));
  return true;
}

static bool is_recurrent(const Op *op) { return opdef_attr(op->def, "ex_states") != NULL; }

bool block_mark(Backward *w, const Op *op) {
  Inner in;
  if (is_recurrent(op)) return recurrent_mark(w, op);
  if (!analyse(w, op, &in)) return false;
  backward_step(w, op);
  for (int i = 0; in.x && i < in.x->n; i++)
    if (leaves(&in, in.x->args[i])) add_part(w, in.x->args[i]);
  return true;
}

/* ---- emitting ---- */

/* The block with the gradient operators; w->to is where its operator will be. */
static Block *emit_inner(Backward *w, const Op *op, Inner *in) {
  Backward *n = &in->n;
  const char *e;
  void *unused;
  n->to = prog_add_block(w->p, w->to->idx, n->b->idx);
  n->carried = map_new(w->a);
  backward_begin(n);
  for (int i = 0; i < map_n(in->ends); i++) {
    e = map_at(in->ends, i, &unused);
    map_put(n->carried, grad_name(w, e), in);
  }
  if (!backward_emit(n)) return NULL;
  for (int i = 0; in->x && i < in->x->n; i++)
    if (leaves(in, in->x->args[i]) && !is_array(w, in->x->args[i]))
      complete_grad(n, in->x->args[i], op);
  for (int i = 0; in->loop && i < map_n(in->ends); i++) {
    e = map_at(in->ends, i, &unused);
    if (!is_array(w, e))
      complete_grad(n, e, op); /* steps before see nothing of what is overwritten */
  }
  return n->to;
}

static bool is_end_slot(const char *from) {
  size_t n = strlen(from);
  return n > 5 && !strcmp(from + n - 5, "@GRAD");
}

static void connect(Backward *w, const Op *op, Inner *in, Op *g) {
  const GradDef *d = op->def->grad;
  const char **inner = arena_array(w->a, const char *, map_n(in->ends) + 1);
  void *unused;
  for (int i = 0; i < map_n(in->ends); i++) inner[i] = grad_name(w, map_at(in->ends, i, &unused));
  for (int i = 0; i < d->n_ins; i++) {
    const Slot *s =
        op_ins(op, d->ins[i].from) ? op_ins(op, d->ins[i].from) : op_outs(op, d->ins[i].from);
    if (is_end_slot(d->ins[i].from))
      op_set_ins(g, d->ins[i].slot, map_n(in->ends), inner);
    else if (s)
      op_set_ins(g, d->ins[i].slot, s->n, s->args);
  }
  for (int i = 0; in->x && i < in->x->n; i++) {
    const char *x = in->x->args[i];
    bool through =
        map_get(in->ends, x) && is_array(w, x); /* the same array, changed by the block */
    op_add_out(g, d->outs[0].slot,
               through         ? grad_name(w, x)
               : leaves(in, x) ? next_part(w, x)
                               : "@EMPTY@");
  }
  for (int i = 0; i < op->attrs.n; i++)
    if (strcmp(op->attrs.v[i].name, "op_role") && strcmp(op->attrs.v[i].name, "op_role_var"))
      op_set_attr(g, &op->attrs.v[i]);
  op_set_attr(g, &(Attr){.name = "sub_block", .type = AT_BLOCK, .i = in->n.to->idx});
  if (in->loop)
    op_set_attr(g, &(Attr){.name = "original_output_grad",
                           .type = AT_STRINGS,
                           .n = map_n(in->ends),
                           .ss = inner});
  join_arrays(w, op);
}

bool block_emit(Backward *w, const Op *op) {
  Inner in;
  void *unused;
  if (is_recurrent(op)) return recurrent_emit(w, op);
  if (!analyse(w, op, &in)) return false;
  for (int i = 0; i < map_n(in.ends); i++) complete_grad(w, map_at(in.ends, i, &unused), op);
  backward_step(w, op);
  if (!emit_inner(w, op, &in)) return false;
  connect(w, op, &in, add_grad_op(w, op->def->grad->type, ROLE_BACKWARD, op));
  return true;
}
