/* append_backward: gradient operators for everything between the parameters and the loss.
 *
 * In: a Program, its loss, and optionally the names to differentiate by. Out: the same Program with, appended to block 0,
 * the seed of the loss's gradient and the gradient operators in reverse order, as each operator's row describes them; and
 * the pairs (parameter, gradient). Naming, roles and the treatment of fan-out are PaddlePaddle's: if k > 1 operators
 * contribute to v@GRAD they write v@GRAD@RENAME@block0@0.. and one `sum` is put before the first reader.
 *
 * A variable may be written several times: each write makes a new version, and what is known of gradients is known of a
 * version. The gradient operators of a block are made in backward_emit.c; operators with a block (loops, branches) get a
 * block of gradients: backward_block.c. */
#include "backward.h"
#include <stdlib.h>
#include <string.h>

/* ---- versions ---- */

int count_of(const Map *m, const char *name) { return (int)(intptr_t)map_get(m, name); }

void count_add(Map *m, const char *name, int by) {
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

bool is_grad_slot(const char *from) {
  size_t n = strlen(from);
  return n > 5 && !strcmp(from + n - 5, "@GRAD");
}

const Slot *forward_slot(Backward *w, const Op *op, const char *from) {
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

const char *saved_name(Backward *w, const char *name) {
  const char *copy = map_get(w->copies, version_key(w, name));
  return copy ? copy : name;
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
