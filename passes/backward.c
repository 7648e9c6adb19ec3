/* append_backward: gradient operators for everything between the parameters and the loss.
 *
 * In: a Program, its loss, and optionally the names to differentiate by. Out: the same Program with, appended to block 0,
 * the seed of the loss's gradient and the gradient operators in reverse order, as each operator's row describes them; and
 * the pairs (parameter, gradient). Naming, roles and the treatment of fan-out are PaddlePaddle's: if k > 1 operators
 * contribute to v@GRAD they write v@GRAD@RENAME@block0@0.. and one `sum` is put before the first reader. */
#include "passes.h"
#include <stdlib.h>
#include <string.h>

/* What is known of a variable's gradient. */
typedef struct GradVar {
  bool wanted;   /* the variable depends on something we differentiate by */
  bool reached;  /* the loss depends on it through differentiable operators */
  int n_parts;   /* gradient operators that contribute */
  int n_written; /* parts written so far */
  bool summed;   /* v@GRAD is complete */
} GradVar;

typedef struct Backward {
  Program *p;
  Block *b;
  Arena *a;
  Map *vars; /* name -> GradVar* */
  int n_forward;
} Backward;

static GradVar *grad_var(Backward *w, const char *name) {
  GradVar *g = map_get(w->vars, name);
  if (!g) map_put(w->vars, name, g = arena_new_of(w->a, GradVar));
  return g;
}

static const char *grad_name(Backward *w, const char *name) {
  return arena_fmt(w->a, "%s@GRAD", name);
}

static bool is_grad_slot(const char *from) {
  size_t n = strlen(from);
  return n > 5 && !strcmp(from + n - 5, "@GRAD");
}

/* The variables of a forward slot, input or output; NULL if the operator has none. `from` may end in @GRAD. */
static const Slot *forward_slot(Backward *w, const Op *op, const char *from) {
  const char *name = is_grad_slot(from) ? arena_strn(w->a, from, strlen(from) - 5) : from;
  const Slot *s = op_ins(op, name);
  return s && s->n ? s : op_outs(op, name);
}

static bool is_empty(const char *name) { return !strcmp(name, "@EMPTY@"); }

/* ---- which variables and operators take part ---- */

static void mark_wanted(Backward *w, int n_params, const char *const *params) {
  for (int i = 0; i < w->b->vars.n; i++) {
    const Var *v = w->b->vars.v[i];
    bool wanted = !n_params && v->is_parameter && !v->stop_gradient;
    for (int j = 0; j < n_params; j++) wanted = wanted || !strcmp(params[j], v->name);
    if (wanted) grad_var(w, v->name)->wanted = true;
  }
  for (int i = 0; i < w->n_forward; i++) {
    const Op *op = w->b->ops.v[i];
    bool any = false;
    for (int s = 0; s < op->ins.n; s++)
      for (int k = 0; k < op->ins.v[s].n; k++)
        any = any || grad_var(w, op->ins.v[s].args[k])->wanted;
    if (!any) continue;
    for (int s = 0; s < op->outs.n; s++)
      for (int k = 0; k < op->outs.v[s].n; k++) {
        const Var *v = block_find_var(w->b, op->outs.v[s].args[k]);
        if (v && !v->stop_gradient && dtype_is_float(v->dtype)) grad_var(w, v->name)->wanted = true;
      }
  }
}

/* Does a gradient operator of op have something to read and something to write? */
static bool takes_part(Backward *w, const Op *op) {
  bool reached = false, wanted = false;
  for (int s = 0; s < op->outs.n; s++)
    for (int k = 0; k < op->outs.v[s].n; k++)
      reached = reached || grad_var(w, op->outs.v[s].args[k])->reached;
  for (int s = 0; s < op->ins.n; s++)
    for (int k = 0; k < op->ins.v[s].n; k++)
      wanted = wanted || grad_var(w, op->ins.v[s].args[k])->wanted;
  return reached && wanted;
}

/* Walks back from the loss, counting the parts of every gradient. */
static bool mark_reached(Backward *w, const char *loss, bool *part) {
  grad_var(w, loss)->reached = true;
  for (int i = w->n_forward - 1; i >= 0; i--) {
    const Op *op = w->b->ops.v[i];
    if (!takes_part(w, op)) continue;
    if (!op->def) {
      err_set(E_OPR_001, "unknown operator %s", quoted(op->type));
      return err_where("%s", op_text(op)), false;
    }
    if (!op->def->grad) {
      if (op->def->flags & OF_NOGRAD_OK) continue;
      err_set(E_OPR_005,
              "operator %s has no gradient, but the loss depends on parameters through it",
              quoted(op->type));
      err_help("set stop_gradient on its input, or replace the operator");
      return err_where("%s", op_text(op)), false;
    }
    part[i] = true;
    const GradDef *d = op->def->grad;
    for (int o = 0; o < d->n_outs; o++) {
      const Slot *s = forward_slot(w, op, d->outs[o].from);
      for (int k = 0; s && k < s->n; k++) {
        GradVar *g = grad_var(w, s->args[k]);
        if (!g->wanted) continue;
        g->reached = true;
        g->n_parts++;
      }
    }
  }
  return true;
}

/* ---- emitting ---- */

static void declare_like(Backward *w, const char *name, const char *like) {
  if (block_var(w->b, name)) return;
  const Var *v = block_find_var(w->b, like);
  block_add_var(w->b, name, v->kind, v->dtype, v->rank, v->dims);
}

static void copy_callstack(Op *to, const Op *from) {
  for (int i = 0; i < from->attrs.n; i++)
    if (!strcmp(from->attrs.v[i].name, "op_callstack")) op_set_attr(to, &from->attrs.v[i]);
}

static Op *add_op(Backward *w, const char *type, int role, const Op *origin) {
  Op *op = block_add_op(w->b, type);
  op_set_int(op, "op_role", role);
  if (origin) copy_callstack(op, origin);
  return op;
}

/* v@GRAD complete in one variable: the sum of its parts, or zeros if nothing flows into v. */
static const char *complete_grad(Backward *w, const char *name, const Op *origin) {
  GradVar *g = grad_var(w, name);
  const char *whole = grad_name(w, name);
  if (g->summed) return whole;
  g->summed = true;
  if (g->n_written == 0) {
    declare_like(w, whole, name);
    Op *op = add_op(w, "fill_any_like", ROLE_BACKWARD, origin);
    op_add_in(op, "X", name);
    op_add_out(op, "Out", whole);
    op_set_float(op, "value", 0);
    op_set_int(op, "dtype", -1);
  } else if (g->n_parts > 1) {
    Op *op = add_op(w, "sum", ROLE_BACKWARD, origin);
    for (int i = 0; i < g->n_written; i++)
      op_add_in(op, "X", arena_fmt(w->a, "%s@RENAME@block%d@%d", whole, w->b->idx, i));
    op_add_out(op, "Out", whole);
    declare_like(w, whole, name);
  }
  return whole;
}

static const char *next_part(Backward *w, const char *name) {
  GradVar *g = grad_var(w, name);
  const char *part = grad_name(w, name);
  if (g->n_parts > 1) part = arena_fmt(w->a, "%s@RENAME@block%d@%d", part, w->b->idx, g->n_written);
  g->n_written++;
  declare_like(w, part, name);
  return part;
}

static void connect_inputs(Backward *w, const GradDef *d, const Op *op, Op *g, int only) {
  for (int i = 0; i < d->n_ins; i++) {
    const Slot *s = forward_slot(w, op, d->ins[i].from);
    for (int k = 0; s && k < s->n; k++) {
      if (only >= 0 && s->n > 1 && k != only) continue;
      op_add_in(g, d->ins[i].slot,
                is_grad_slot(d->ins[i].from) ? grad_name(w, s->args[k]) : s->args[k]);
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
  return !is_empty(name) && grad_var(w, name)->wanted;
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
  Op *g = add_op(w, d->type, ROLE_BACKWARD, op);
  connect_inputs(w, d, op, g, only);
  connect_outputs(w, d, op, g, only);
  return set_attrs(d, op, g, w->a);
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
  if (!any_output(w, d, op)) return true;
  complete_inputs(w, d, op);
  if (!d->per_input) return emit_one(w, d, op, -1);
  const Slot *s = forward_slot(w, op, d->outs[0].from);
  for (int k = 0; s && k < s->n; k++)
    if (output_wanted(w, s->args[k]) && !emit_one(w, d, op, k)) return false;
  return true;
}

/* ---- the whole ---- */

static int loss_op(const Block *b, const char *loss) {
  for (int i = b->ops.n - 1; i >= 0; i--) {
    const Op *op = b->ops.v[i];
    for (int s = 0; s < op->outs.n; s++)
      for (int k = 0; k < op->outs.v[s].n; k++)
        if (!strcmp(op->outs.v[s].args[k], loss)) return i;
  }
  return -1;
}

static bool check_loss(const Block *b, const char *loss, int *at) {
  const Var *v = block_var(b, loss);
  *at = v ? loss_op(b, loss) : -1;
  if (*at < 0)
    return err_set(E_ARG_002, "nothing in the program computes the loss %s", quoted(loss));
  int64_t n = 1;
  for (int i = 0; i < v->rank; i++) n = v->dims[i] == 1 ? n : 0;
  if (n == 1 && dtype_is_float(v->dtype)) return true;
  err_set(E_SHP_006, "the loss %s is %s; it must be one floating-point number", quoted(loss),
          shape_text(v->dtype, v->rank, v->dims));
  err_help("take the mean or the sum first");
  return false;
}

static void seed_loss(Backward *w, const char *loss, Op *producer) {
  op_set_int(producer, "op_role", ROLE_FORWARD | ROLE_LOSS);
  const Var *v = block_var(w->b, loss);
  const char *name = grad_name(w, loss);
  declare_like(w, name, loss);
  Op *op = add_op(w, "fill_constant", ROLE_BACKWARD | ROLE_LOSS, producer);
  op_add_out(op, "Out", name);
  op_set_ints(op, "shape", v->rank, v->dims);
  op_set_float(op, "value", 1);
  op_set_int(op, "dtype", dtype_info[v->dtype].paddle);
  GradVar *g = grad_var(w, loss);
  g->summed = true;
}

static int by_param(const void *a, const void *b) {
  return strcmp(((const ParamGrad *)a)->param->name, ((const ParamGrad *)b)->param->name);
}

/* The operator that makes a parameter's final gradient says so: [param, grad, ...]. */
static void note_role_var(Backward *w, const ParamGrad *pg) {
  int at = loss_op(w->b, pg->grad);
  if (at < 0) return;
  Op *op = w->b->ops.v[at];
  const Attr *old = op_attr(op, "op_role_var");
  int n = old ? old->n : 0;
  const char **names = arena_array(w->a, const char *, n + 2);
  for (int i = 0; i < n; i++) names[i] = old->ss[i];
  names[n] = pg->param->name;
  names[n + 1] = pg->grad;
  op_set_attr(op, &(Attr){.name = "op_role_var", .type = AT_STRINGS, .n = n + 2, .ss = names});
}

static void collect(Backward *w, int n_params, const char *const *params, int *n, ParamGrad **pg) {
  *n = 0;
  *pg = arena_array(w->p->arena, ParamGrad, w->b->vars.n + 1);
  int n_vars = w->b->vars.n; /* completing gradients declares more */
  for (int i = 0; i < n_vars; i++) {
    Var *v = w->b->vars.v[i];
    bool asked = !n_params && v->is_parameter;
    for (int j = 0; j < n_params; j++) asked = asked || !strcmp(params[j], v->name);
    GradVar *g = map_get(w->vars, v->name);
    if (!asked || !g || !g->wanted || !g->n_written) continue;
    const char *name = complete_grad(w, v->name, NULL);
    (*pg)[(*n)++] = (ParamGrad){v, arena_str(w->p->arena, name)};
  }
  qsort(*pg, (size_t)*n, sizeof **pg, by_param);
  for (int i = 0; i < *n; i++) note_role_var(w, &(*pg)[i]);
}

bool append_backward(Program *p, const char *loss, int n_params, const char *const *params, int *n,
                     ParamGrad **pg) {
  Arena *a = arena_scratch();
  Backward w = {.p = p, .b = p->blocks.v[0], .a = a, .vars = map_new(a)};
  int at;
  bool ok = check_loss(w.b, loss, &at);
  if (ok) {
    w.n_forward = at + 1;
    bool *part = arena_array(a, bool, w.n_forward);
    mark_wanted(&w, n_params, params);
    ok = mark_reached(&w, loss, part);
    if (ok) {
      seed_loss(&w, loss, w.b->ops.v[at]);
      for (int i = w.n_forward - 1; ok && i >= 0; i--)
        if (part[i]) ok = emit_gradient(&w, w.b->ops.v[i]);
    }
    if (ok) collect(&w, n_params, params, n, pg);
    if (ok && *n == 0) {
      ok = err_set(E_OPR_005, "the loss %s depends on no trainable parameter", quoted(loss));
      err_help("give the network a layer with parameters, or clear stop_gradient on them");
    }
  }
  p->edits++;
  arena_free(a);
  return ok;
}
