/* append_backward: gradient operators for everything between the parameters and the loss.
 *
 * In: a Program, its loss, and optionally the names to differentiate by. Out: the same Program with, appended to block 0,
 * the seed of the loss's gradient and the gradient operators in reverse order, as each operator's row describes them; and
 * the pairs (parameter, gradient). Naming, roles and the treatment of fan-out are PaddlePaddle's: if k > 1 operators
 * contribute to v@GRAD they write v@GRAD@RENAME@block0@0.. and one `sum` is put before the first reader.
 *
 * A variable may be written several times: each write makes a new version, and what is known of gradients is known of a
 * version. Operators with a block (loops, branches) get a block of gradients: backward_block.c. */
#include "backward.h"
#include <stdlib.h>
#include <string.h>

/* ---- versions ---- */

static int count_of(const Map *m, const char *name) { return (int)(intptr_t)map_get(m, name); }

static void count_add(Map *m, const char *name, int by) {
  map_put(m, name, (void *)(intptr_t)(count_of(m, name) + by));
}

bool is_array(const Backward *w, const char *name) {
  const Var *v = block_find_var(w->b, name);
  return v && v->kind == VK_ARRAY;
}

/* Arrays are changed in place, and so are their gradients: they have one version. What is not the first part of one goes to an
 * array of its own, which is added behind its operator. */
static void count_outputs(Backward *w, const Op *op, int by) {
  for (int s = 0; s < op->outs.n; s++)
    for (int k = 0; k < op->outs.v[s].n; k++)
      if (!is_empty(op->outs.v[s].args[k]) && !is_array(w, op->outs.v[s].args[k]))
        count_add(w->version, op->outs.v[s].args[k], by);
}

void backward_begin(Backward *w) {
  w->version = map_new(w->a);
  for (int i = 0; i < w->n_forward; i++) count_outputs(w, w->b->ops.v[i], 1);
}

void backward_step(Backward *w, const Op *op) { count_outputs(w, op, -1); }

static const char *version_key(Backward *w, const char *name) {
  return arena_fmt(w->a, "%s#%d", name, count_of(w->version, name));
}

GradVar *grad_var(Backward *w, const char *name) {
  const char *key = version_key(w, name);
  GradVar *g = map_get(w->vars, key);
  if (!g) map_put(w->vars, key, g = arena_new_of(w->a, GradVar));
  return g;
}

const char *grad_name(Backward *w, const char *name) { return arena_fmt(w->a, "%s@GRAD", name); }

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

bool is_empty(const char *name) { return !strcmp(name, "@EMPTY@"); }

/* ---- values that are overwritten ---- */

/* Will the gradient operators see another value than this operator does? In a block that a loop runs they see outer
 * variables as they were when the block began. */
static bool is_lost(const Backward *w, const Map *last, const char *name, int version) {
  const Var *v = block_find_var(w->b, name);
  if (!v || v->persistable || v->kind != VK_TENSOR) return false;
  bool outer = v->block != w->b;
  return outer ? version > 0 : version < count_of(last, name);
}

static void note_lost(Backward *w, const Map *last, const Map *now, const Op *op) {
  const GradDef *d = op->def ? op->def->grad : NULL;
  for (int i = 0; d && i < d->n_ins; i++) {
    const Slot *s = is_grad_slot(d->ins[i].from) ? NULL : op_ins(op, d->ins[i].from);
    for (int k = 0; s && k < s->n; k++) {
      int version = count_of(now, s->args[k]);
      if (!is_lost(w, last, s->args[k], version)) continue;
      const char *key = arena_fmt(w->a, "%s#%d", s->args[k], version);
      if (!map_get(w->copies, key)) map_put(w->copies, key, (void *)prog_unique(w->p, "saved"));
    }
  }
}

/* Copies of values that gradient operators need and a later operator overwrites, each made when its version is. */
static void save_lost(Backward *w) {
  Map *last = map_new(w->a), *now = map_new(w->a);
  w->copies = map_new(w->a);
  w->version = last;
  for (int i = 0; i < w->n_forward; i++) count_outputs(w, w->b->ops.v[i], 1);
  w->version = now;
  for (int i = 0; i < w->n_forward; i++) {
    note_lost(w, last, now, w->b->ops.v[i]);
    count_outputs(w, w->b->ops.v[i], 1);
  }
  if (!map_n(w->copies)) return;
  Map *at = w->version = map_new(w->a);
  for (int i = -1; i < w->n_forward; i++) {
    const Op *op = i < 0 ? NULL : w->b->ops.v[i];
    if (op) count_outputs(w, op, 1);
    for (int k = 0; k < map_n(w->copies); k++) {
      void *copy;
      const char *key = map_at(w->copies, k, &copy);
      const char *name = arena_strn(w->a, key, (size_t)(strrchr(key, '#') - key));
      if (!copy || block_var(w->b, copy) || atoi(strrchr(key, '#') + 1) != count_of(at, name))
        continue;
      const Var *v = block_find_var(w->b, name);
      block_add_var(w->b, copy, v->kind, v->dtype, v->rank, v->dims)->stop_gradient =
          v->stop_gradient;
      Op *save = block_insert_op(w->b, ++i, "assign");
      op_add_in(save, "X", name);
      op_add_out(save, "Out", copy);
      op_set_int(save, "op_role", ROLE_FORWARD);
      w->n_forward++;
    }
  }
}

/* The variable with the value that `name` has in this version. */
static const char *saved_name(Backward *w, const char *name) {
  const char *copy = map_get(w->copies, version_key(w, name));
  return copy ? copy : name;
}

/* ---- which variables and operators take part ---- */

bool is_wanted(const Backward *w, const char *name) {
  for (; w; w = w->up) {
    if (map_get(w->wanted, name)) return true;
    if (block_var(w->b, name)) return false;
  }
  return false;
}

void mark_wanted(Backward *w, int n_params, const char *const *params) {
  for (int i = 0; i < w->b->vars.n && !w->up; i++) {
    const Var *v = w->b->vars.v[i];
    bool wanted = !n_params && v->is_parameter && !v->stop_gradient;
    for (int j = 0; j < n_params; j++) wanted = wanted || !strcmp(params[j], v->name);
    if (wanted) map_put(w->wanted, v->name, w);
  }
  for (int i = 0; i < w->n_forward; i++) {
    const Op *op = w->b->ops.v[i];
    bool any = false;
    for (int s = 0; s < op->ins.n; s++)
      for (int k = 0; k < op->ins.v[s].n; k++) any = any || is_wanted(w, op->ins.v[s].args[k]);
    if (!any) continue;
    for (int s = 0; s < op->outs.n; s++)
      for (int k = 0; k < op->outs.v[s].n; k++) {
        const Var *v = block_find_var(w->b, op->outs.v[s].args[k]);
        if (v && !v->stop_gradient && dtype_is_float(v->dtype)) map_put(w->wanted, v->name, w);
      }
  }
}

static bool is_reached(Backward *w, const Op *op) {
  bool reached = false;
  for (int s = 0; s < op->outs.n; s++)
    for (int k = 0; k < op->outs.v[s].n; k++)
      reached = reached || grad_var(w, op->outs.v[s].args[k])->reached;
  return reached;
}

static bool reads_wanted(Backward *w, const Op *op) {
  bool wanted = false;
  for (int s = 0; s < op->ins.n; s++)
    for (int k = 0; k < op->ins.v[s].n; k++) wanted = wanted || is_wanted(w, op->ins.v[s].args[k]);
  return wanted;
}

void add_part(Backward *w, const char *name) {
  GradVar *g = grad_var(w, name);
  g->reached = true;
  g->n_parts++;
}

/* Has the operator a gradient? *takes_part: whether it needs one. */
static bool check_gradient(const Op *op, bool *takes_part) {
  if (!op->def) {
    err_set(E_OPR_001, "unknown operator %s", quoted(op->type));
    return err_where("%s", op_text(op)), false;
  }
  *takes_part = op->def->grad != NULL;
  if (op->def->grad || (op->def->flags & OF_NOGRAD_OK)) return true;
  err_set(E_OPR_005, "operator %s has no gradient, but the loss depends on parameters through it",
          quoted(op->type));
  err_help("set stop_gradient on its input, or replace the operator");
  return err_where("%s", op_text(op)), false;
}

static void mark_parts(Backward *w, const Op *op) {
  const GradDef *d = op->def->grad;
  for (int o = 0; o < d->n_outs; o++) {
    const Slot *s = forward_slot(w, op, d->outs[o].from);
    for (int k = 0; s && k < s->n; k++)
      if (is_wanted(w, s->args[k])) add_part(w, s->args[k]);
  }
}

static bool backward_mark(Backward *w) {
  backward_begin(w);
  w->part = arena_array(w->a, bool, w->n_forward + 1);
  for (int i = w->n_forward - 1; i >= 0; i--) {
    const Op *op = w->b->ops.v[i];
    bool part = is_reached(w, op) && reads_wanted(w, op);
    if (part && !check_gradient(op, &part)) return false;
    w->part[i] = part;
    if (part && op_has_block(op)) {
      if (!block_mark(w, op)) return false;
      continue;
    }
    backward_step(w, op);
    if (part) mark_parts(w, op);
  }
  return true;
}

bool backward_mark_given(Backward *w, const Map *given) {
  void *unused;
  w->vars = map_new(w->a);
  backward_begin(w);
  for (int i = 0; i < map_n(given); i++) {
    GradVar *g = grad_var(w, map_at(given, i, &unused));
    g->reached = g->given = true;
    g->n_parts = g->n_written = 1;
  }
  return backward_mark(w);
}

/* ---- emitting ---- */

static void declare_like(Backward *w, const char *name, const char *like) {
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

void backward_prepare(Backward *w) {
  const char *key = arena_fmt(w->a, "%d", w->b->idx);
  w->wanted = map_new(w->a);
  w->renamed = map_new(w->a);
  w->joins = map_new(w->a);
  w->copies = map_get(w->saved, key);
  if (w->copies) return;
  save_lost(w);
  map_put(w->saved, key, w->copies);
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
  Op *op = add_grad_op(w, "fill_constant", ROLE_BACKWARD | ROLE_LOSS, producer);
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
    if (!asked || !is_wanted(w, v->name) || !grad_var(w, v->name)->n_written) continue;
    const char *name = complete_grad(w, v->name, NULL);
    (*pg)[(*n)++] = (ParamGrad){v, arena_str(w->p->arena, name)};
  }
  qsort(*pg, (size_t)*n, sizeof **pg, by_param);
  for (int i = 0; i < *n; i++) note_role_var(w, &(*pg)[i]);
}

bool append_backward(Program *p, const char *loss, int n_params, const char *const *params, int *n,
                     ParamGrad **pg) {
  Arena *a = arena_scratch();
  Block *b = p->blocks.v[0];
  Backward w = {.p = p, .b = b, .to = b, .a = a, .vars = map_new(a), .saved = map_new(a)};
  int at;
  bool ok = check_loss(b, loss, &at);
  if (ok) {
    w.n_forward = at + 1;
    backward_prepare(&w);
    mark_wanted(&w, n_params, params);
    backward_begin(&w);
    grad_var(&w, loss)->reached = true;
    ok = backward_mark(&w);
  }
  if (ok) {
    backward_begin(&w);
    seed_loss(&w, loss, b->ops.v[w.n_forward - 1]);
    ok = backward_emit(&w);
  }
  if (ok) collect(&w, n_params, params, n, pg);
  if (ok && *n == 0) {
    ok = err_set(E_OPR_005, "the loss %s depends on no trainable parameter", quoted(loss));
    err_help("give the network a layer with parameters, or clear stop_gradient on them");
  }
  p->edits++;
  arena_free(a);
  return ok;
}
