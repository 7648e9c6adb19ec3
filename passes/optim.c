/* append_optimizer: clipping, weight decay and the update of each parameter, after append_backward.
 *
 * In: (parameter, gradient) pairs and an OptimSpec. Out: in the main program, in PaddlePaddle's order, operators that clip
 * the gradients, add decay to them, and update each parameter in place; accumulators and the learning rate as persistable
 * variables of both programs, initialised in the startup program. Clipping by global norm: Pascanu et al., "On the
 * difficulty of training recurrent neural networks" (2013). */
#include "passes.h"
#include <string.h>

typedef struct Optim {
  Program *main, *startup;
  Block *b;
  const OptimSpec *o;
  DType dtype; /* of the parameters; the learning rate and accumulators have it too */
} Optim;

static Op *opt_op(Optim *w, const char *type, const ParamGrad *pg) {
  Op *op = block_add_op(w->b, type);
  op_set_int(op, "op_role", ROLE_OPTIMIZE);
  if (pg) {
    const char *names[2] = {pg->param->name, pg->grad};
    op_set_attr(op, &(Attr){.name = "op_role_var", .type = AT_STRINGS, .n = 2, .ss = names});
  }
  return op;
}

static const char *temporary(Optim *w, const char *key, int rank, const int64_t *dims) {
  const char *name = arena_fmt(w->main->arena, "%s.tmp_0", prog_unique(w->main, key));
  block_add_var(w->b, name, VK_TENSOR, w->dtype, rank, dims);
  return name;
}

/* A persistable variable of both programs, filled with a constant at start-up. */
static bool persistent(Optim *w, const char *name, int rank, const int64_t *dims, double value) {
  Block *s = w->startup->blocks.v[0];
  Var *v = block_add_var(w->b, name, VK_TENSOR, w->dtype, rank, dims);
  Var *u = v ? block_add_var(s, name, VK_TENSOR, w->dtype, rank, dims) : NULL;
  if (!u) return false;
  v->persistable = u->persistable = true;
  v->stop_gradient = u->stop_gradient = true;
  Op *fill = block_add_op(s, "fill_constant");
  op_add_out(fill, "Out", name);
  op_set_ints(fill, "shape", rank, dims);
  op_set_float(fill, "value", value);
  op_set_int(fill, "dtype", dtype_info[w->dtype].paddle);
  op_set_str(fill, "str_value", arena_fmt(w->startup->arena, "%.17g", value));
  return true;
}

/* ---- clipping ---- */

static bool clips(const ParamGrad *pg) { return !pg->param->param || !pg->param->param->no_clip; }

static void clip_each(Optim *w, const char *type, int n, ParamGrad *pg) {
  for (int i = 0; i < n; i++) {
    if (!clips(&pg[i])) continue;
    const Var *p = pg[i].param;
    const char *out = temporary(w, type, p->rank, p->dims);
    Op *op = opt_op(w, type, &pg[i]);
    op_add_in(op, "X", pg[i].grad);
    op_add_out(op, "Out", out);
    if (w->o->clip == CLIP_NORM)
      op_set_float(op, "max_norm", w->o->clip_hi);
    else {
      op_set_float(op, "min", w->o->clip_lo);
      op_set_float(op, "max", w->o->clip_hi);
    }
    pg[i].grad = out;
  }
}

static const char *unary(Optim *w, const char *type, const char *x, const int64_t *dims) {
  const char *out = temporary(w, type, 1, dims);
  Op *op = opt_op(w, type, NULL);
  op_add_in(op, "X", x);
  op_add_out(op, "Out", out);
  return out;
}

static const char *binary(Optim *w, const char *type, const char *x, const char *y,
                          const int64_t *dims) {
  const char *out = temporary(w, type, 1, dims);
  Op *op = opt_op(w, type, NULL);
  op_add_in(op, "X", x);
  op_add_in(op, "Y", y);
  op_add_out(op, "Out", out);
  return out;
}

/* g *= limit / max(norm, limit), norm over all gradients together */
static void clip_global_norm(Optim *w, int n, ParamGrad *pg) {
  const int64_t one[1] = {1};
  Arena *a = w->main->arena;
  const char **squares = arena_array(a, const char *, n + 1);
  int m = 0;
  for (int i = 0; i < n; i++)
    if (clips(&pg[i])) squares[m++] = unary(w, "squared_l2_norm", pg[i].grad, one);
  if (!m) return;
  const char *total = temporary(w, "sum", 1, one);
  Op *sum = opt_op(w, "sum", NULL);
  op_set_ins(sum, "X", m, squares);
  op_add_out(sum, "Out", total);
  const char *norm = unary(w, "sqrt", total, one);
  const char *limit = temporary(w, "fill_constant", 1, one);
  Op *fill = opt_op(w, "fill_constant", NULL);
  op_add_out(fill, "Out", limit);
  op_set_ints(fill, "shape", 1, one);
  op_set_float(fill, "value", w->o->clip_hi);
  op_set_int(fill, "dtype", dtype_info[w->dtype].paddle);
  const char *larger = binary(w, "elementwise_max", limit, norm, one);
  const char *factor = binary(w, "elementwise_div", limit, larger, one);
  for (int i = 0; i < n; i++) {
    if (!clips(&pg[i])) continue;
    Op *op = opt_op(w, "elementwise_mul", &pg[i]);
    op_add_in(op, "X", pg[i].grad);
    op_add_in(op, "Y", factor);
    op_add_out(op, "Out", pg[i].grad);
  }
}

static void clip(Optim *w, int n, ParamGrad *pg) {
  switch (w->o->clip) {
  case CLIP_NONE: break;
  case CLIP_VALUE: clip_each(w, "clip", n, pg); break;
  case CLIP_NORM: clip_each(w, "clip_by_norm", n, pg); break;
  case CLIP_GLOBAL_NORM: clip_global_norm(w, n, pg); break;
  }
}

/* ---- decay ---- */

static void decay_of(const Optim *w, const ParamGrad *pg, int *kind, double *coeff) {
  const ParamInfo *own = pg->param->param;
  bool has_own = own && own->decay_kind;
  *kind = has_own ? own->decay_kind : w->o->decay_kind;
  *coeff = has_own ? own->decay : w->o->decay;
}

/* Operators that decay by themselves have these two attributes. */
static bool decays_itself(const Optim *w) {
  const OpDef *d = opdef_find(w->o->type);
  return d && opdef_attr(d, "regularization_method") && opdef_attr(d, "regularization_coeff");
}

/* L2: grad += c * p.  L1: grad += c * sign(p). */
static void add_decay(Optim *w, const ParamGrad *pg) {
  int kind;
  double coeff;
  decay_of(w, pg, &kind, &coeff);
  if (!kind || coeff == 0 || (kind == 2 && decays_itself(w))) return;
  const Var *p = pg->param;
  const char *x = p->name;
  if (kind == 1) {
    const char *sign = temporary(w, "sign", p->rank, p->dims);
    Op *op = opt_op(w, "sign", pg);
    op_add_in(op, "X", x);
    op_add_out(op, "Out", sign);
    x = sign;
  }
  const char *decay = temporary(w, "scale", p->rank, p->dims);
  Op *scale = opt_op(w, "scale", pg);
  op_add_in(scale, "X", x);
  op_add_out(scale, "Out", decay);
  op_set_float(scale, "scale", coeff);
  Op *sum = opt_op(w, "sum", pg);
  op_add_in(sum, "X", pg->grad);
  op_add_in(sum, "X", decay);
  op_add_out(sum, "Out", pg->grad);
}

/* ---- updates ---- */

static const char *learning_rate(Optim *w) {
  if (w->o->lr_name) return w->o->lr_name;
  const char *name = prog_unique(w->main, "learning_rate");
  return persistent(w, name, 0, NULL, w->o->lr) ? name : NULL;
}

/* The learning rate of one parameter: times its own factor. */
static const char *param_rate(Optim *w, const ParamGrad *pg, const char *lr) {
  const ParamInfo *own = pg->param->param;
  if (!own || own->lr_factor == 1) return lr;
  const Var *v = block_find_var(w->b, lr);
  const char *out = temporary(w, "scale", v->rank, v->dims);
  Op *op = opt_op(w, "scale", NULL);
  op_set_int(op, "op_role", ROLE_OPTIMIZE | ROLE_LRSCHED);
  op_add_in(op, "X", lr);
  op_add_out(op, "Out", out);
  op_set_float(op, "scale", own->lr_factor);
  return out;
}

static bool add_state(Optim *w, Op *op, const ParamGrad *pg, const OptimState *s) {
  const int64_t one[1] = {1};
  const Var *p = pg->param;
  const char *key = arena_fmt(w->main->arena, "%s_%s", p->name, s->suffix);
  const char *name = prog_unique(w->main, key);
  if (!persistent(w, name, s->scalar ? 1 : p->rank, s->scalar ? one : p->dims, s->init))
    return false;
  op_add_in(op, s->in, name);
  op_add_out(op, s->out, name);
  return true;
}

static bool update(Optim *w, const ParamGrad *pg, const char *lr) {
  const char *rate = param_rate(w, pg, lr);
  Op *op = opt_op(w, w->o->type, pg);
  op_add_in(op, "Param", pg->param->name);
  op_add_in(op, "Grad", pg->grad);
  op_add_in(op, "LearningRate", rate);
  op_add_out(op, "ParamOut", pg->param->name);
  for (int i = 0; i < w->o->n_states; i++)
    if (!add_state(w, op, pg, &w->o->states[i])) return false;
  for (int i = 0; i < w->o->n_attrs; i++) op_set_attr(op, &w->o->attrs[i]);
  int kind;
  double coeff;
  decay_of(w, pg, &kind, &coeff);
  if (kind == 2 && coeff != 0 && decays_itself(w)) {
    op_set_str(op, "regularization_method", "l2_decay");
    op_set_float(op, "regularization_coeff", coeff);
  }
  return true;
}

const char *append_optimizer(Program *main, Program *startup, const OptimSpec *o, int n,
                             const ParamGrad *pg) {
  Optim w = {.main = main,
             .startup = startup,
             .b = main->blocks.v[0],
             .o = o,
             .dtype = n ? pg[0].param->dtype : DT_FLOAT32};
  ParamGrad *work = arena_dup(main->arena, pg, sizeof *pg * (size_t)n);
  clip(&w, n, work);
  for (int i = 0; i < n; i++) add_decay(&w, &work[i]);
  const char *lr = learning_rate(&w);
  for (int i = 0; lr && i < n; i++)
    if (!update(&w, &work[i], lr)) lr = NULL;
  main->edits++;
  startup->edits++;
  return lr;
}
