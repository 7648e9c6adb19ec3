/* The gradient operators of a block, from the last operator that takes part to the first.
 *
 * In: a Backward whose operators are marked (backward_mark). Out: for each that takes part, the operator that its row's
 * gradient column describes, in the block w->to. Before one reads the gradient of a variable that is read in several
 * places, the sum of its parts is put. */
#include "backward.h"
#include <string.h>

void declare_like(Backward *w, const char *name, const char *like) {
  if (block_var(w->to, name) || (w->carried && map_get(w->carried, name))) return;
  const Var *v = block_find_var(w->b, like);
  block_add_var(w->to, name, v->kind, v->dtype, v->rank, v->dims);
}

static void copy_callstack(Op *to, const Op *from) {
  for (int i = 0; i < from->attrs.n; i++)
    if (!strcmp(from->attrs.v[i].name, "op_callstack")) op_set_attr(to, &from->attrs.v[i]);
}

Op *add_grad_op(Backward *w, const char *type, int role, const Op *origin) {
  Op *op = block_add_op(w->to, type);
  op_set_int(op, "op_role", role);
  if (origin) copy_callstack(op, origin);
  return op;
}

static const char *part_name(Backward *w, const char *name, int i) {
  return arena_fmt(w->a, "%s@GRAD@RENAME@block%d@%d", name, w->b->idx, i);
}

const char *complete_grad(Backward *w, const char *name, const Op *origin) {
  GradVar *g = grad_var(w, name);
  const char *whole = grad_name(w, name);
  if (g->summed) return whole;
  g->summed = true;
  if (g->n_written == 0) {
    declare_like(w, whole, name);
    Op *op = add_grad_op(w, "fill_any_like", ROLE_BACKWARD, origin);
    op_add_in(op, "X", name);
    op_add_out(op, "Out", whole);
    op_set_float(op, "value", 0);
    op_set_int(op, "dtype", -1);
  } else if (g->n_parts > 1 && !is_array(w, name)) {
    Op *op = add_grad_op(w, "sum", ROLE_BACKWARD, origin);
    if (g->given) op_add_in(op, "X", whole);
    for (int i = 0; i < g->n_written - g->given; i++)
      op_add_in(op, "X", part_name(w, name, g->first + i));
    op_add_out(op, "Out", whole);
    declare_like(w, whole, name);
  }
  return whole;
}

const char *next_part(Backward *w, const char *name) {
  GradVar *g = grad_var(w, name);
  const char *part = grad_name(w, name);
  if (is_array(w, name) ? g->n_written > 0 : g->n_parts > 1) {
    int i = count_of(w->renamed, name);
    if (g->n_written == g->given) g->first = i;
    count_add(w->renamed, name, 1);
    part = part_name(w, name, i);
    if (is_array(w, name)) map_put(w->joins, part, (void *)(intptr_t)name);
  }
  g->n_written++;
  declare_like(w, part, name);
  return part;
}

void join_arrays(Backward *w, const Op *origin) {
  void *name;
  for (int i = 0; i < map_n(w->joins); i++) {
    const char *part = map_at(w->joins, i, &name), *whole = grad_name(w, name);
    Op *op = add_grad_op(w, "sum", ROLE_BACKWARD, origin);
    op_add_in(op, "X", whole);
    op_add_in(op, "X", part);
    op_add_out(op, "Out", whole);
  }
  w->joins = map_new(w->a);
}

static void connect_inputs(Backward *w, const GradDef *d, const Op *op, Op *g, int only) {
  for (int i = 0; i < d->n_ins; i++) {
    const Slot *s = forward_slot(w, op, d->ins[i].from);
    bool given = s && s == op_ins(op, d->ins[i].from);
    for (int k = 0; s && k < s->n; k++) {
      if (only >= 0 && s->n > 1 && k != only) continue;
      op_add_in(g, d->ins[i].slot,
                is_grad_slot(d->ins[i].from) ? grad_name(w, s->args[k])
                : given                      ? saved_name(w, s->args[k])
                                             : s->args[k]);
    }
  }
}

/* Gradients the operator will read must be complete before it is appended. */
static void complete_inputs(Backward *w, const GradDef *d, const Op *op) {
  for (int i = 0; i < d->n_ins; i++) {
    if (!is_grad_slot(d->ins[i].from)) continue;
    const Slot *s = forward_slot(w, op, d->ins[i].from);
    for (int k = 0; s && k < s->n; k++)
      if (!is_empty(s->args[k])) complete_grad(w, s->args[k], op);
  }
}

static bool output_wanted(Backward *w, const char *name) {
  return !is_empty(name) && is_wanted(w, name);
}

static void connect_outputs(Backward *w, const GradDef *d, const Op *op, Op *g, int only) {
  for (int o = 0; o < d->n_outs; o++) {
    const Slot *s = forward_slot(w, op, d->outs[o].from);
    if (!s) continue;
    bool any = false;
    for (int k = 0; k < s->n; k++)
      any = any || ((only < 0 || k == only) && output_wanted(w, s->args[k]));
    for (int k = 0; any && k < s->n; k++)
      if (only < 0 || k == only)
        op_add_out(g, d->outs[o].slot,
                   output_wanted(w, s->args[k]) ? next_part(w, s->args[k]) : "@EMPTY@");
  }
}

static bool set_attrs(const GradDef *d, const Op *op, Op *g, Arena *a) {
  for (int i = 0; d->copy_attrs && i < op->attrs.n; i++)
    if (strcmp(op->attrs.v[i].name, "op_role") && strcmp(op->attrs.v[i].name, "op_role_var"))
      op_set_attr(g, &op->attrs.v[i]);
  /* PaddlePaddle knows no defaults of gradient operators */
  for (int i = 0; d->copy_attrs && i < op->def->n_attrs; i++) {
    const AttrDef *x = &op->def->attrs[i];
    const Attr *v = x->extra ? NULL : op_attr(op, x->dflt.name); /* the default if it is not set */
    if (v) op_set_attr(g, v);
  }
  for (int i = 0; i < d->n_sets; i++) {
    const char *text = d->sets[i].value, *end;
    const AttrDef *want = g->def ? opdef_attr(g->def, d->sets[i].attr) : NULL;
    Attr v;
    if (text[0] == '$') {
      const Attr *from = op_attr(op, text + 1);
      if (!from) continue;
      v = *from;
    } else if (!attr_parse(a, text, &end, &v))
      return false;
    v.name = d->sets[i].attr;
    if (want && !attr_coerce(&v, want->dflt.type, a)) return false;
    op_set_attr(g, &v);
  }
  return true;
}

static bool emit_one(Backward *w, const GradDef *d, const Op *op, int only) {
  Op *g = add_grad_op(w, d->type, ROLE_BACKWARD, op);
  connect_inputs(w, d, op, g, only);
  connect_outputs(w, d, op, g, only);
  bool ok = set_attrs(d, op, g, w->a);
  join_arrays(w, op);
  return ok;
}

static bool any_output(Backward *w, const GradDef *d, const Op *op) {
  for (int o = 0; o < d->n_outs; o++) {
    const Slot *s = forward_slot(w, op, d->outs[o].from);
    for (int k = 0; s && k < s->n; k++)
      if (output_wanted(w, s->args[k])) return true;
  }
  return false;
}

static bool emit_gradient(Backward *w, const Op *op) {
  const GradDef *d = op->def->grad;
  bool any = any_output(w, d, op);
  if (any) complete_inputs(w, d, op);
  backward_step(w, op);
  if (!any) return true;
  if (!d->per_input) return emit_one(w, d, op, -1);
  const Slot *s = forward_slot(w, op, d->outs[0].from);
  for (int k = 0; s && k < s->n; k++)
    if (output_wanted(w, s->args[k]) && !emit_one(w, d, op, k)) return false;
  return true;
}

bool backward_emit(Backward *w) {
  for (int i = w->n_forward - 1; i >= 0; i--) {
    const Op *op = w->b->ops.v[i];
    if (!w->part[i])
      backward_step(w, op);
    else if (!(op_has_block(op) ? block_emit(w, op) : emit_gradient(w, op)))
      return false;
  }
  return true;
}
