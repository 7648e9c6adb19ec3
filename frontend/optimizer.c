/* Optimisers: which accumulators and attributes each has, and minimize().
 *
 * In: a loss and an optimiser's arguments. Out: gradients, clipping, decay and updates appended to the main program,
 * accumulators and learning rate initialised in the startup program. */
#include "internal.h"
#include "../passes/passes.h"
#include <math.h>
#include <string.h>

kl_decay kl_l1(double coeff) { return (kl_decay){1, coeff}; }
kl_decay kl_l2(double coeff) { return (kl_decay){2, coeff}; }
kl_clip kl_clip_value(double low, double high) { return (kl_clip){CLIP_VALUE, low, high}; }
kl_clip kl_clip_norm(double norm) { return (kl_clip){CLIP_NORM, 0, norm}; }
kl_clip kl_clip_global_norm(double norm) { return (kl_clip){CLIP_GLOBAL_NORM, 0, norm}; }

enum { N_STATES = 4, N_ATTRS = 5 };

/* An attribute of the update operator: the argument it is taken from, and its value where that is zero. NAN: leave it
 * to the operator's row. */
typedef struct AttrRow {
  const char *name;
  size_t arg;
  double dflt;
  bool flag; /* the argument is a bool */
} AttrRow;
#define ARG(field) offsetof(kl_optim_args, field)
#define ROW (-1.0)

typedef struct OptimRow {
  const char *type;
  OptimState states[N_STATES];
  AttrRow attrs[N_ATTRS];
} OptimRow;

#define ADAM_STATES                                                                                \
  {"Moment1", "Moment1Out", "moment1", 0, false}, {"Moment2", "Moment2Out", "moment2", 0, false},  \
      {"Beta1Pow", "Beta1PowOut", "beta1_pow_acc", 0.9, true}, {                                   \
    "Beta2Pow", "Beta2PowOut", "beta2_pow_acc", 0.999, true                                        \
  }

/* The initial value of a beta power is its beta: filled in by state_init. */
static const OptimRow rows[] = {
    {"sgd", {{0}}, {{0}}},
    {"momentum",
     {{"Velocity", "VelocityOut", "velocity", 0, false}},
     {{"mu", ARG(momentum), 0.9, false}, {"use_nesterov", ARG(nesterov), 0, true}}},
    {"adam",
     {ADAM_STATES},
     {{"beta1", ARG(beta1), 0.9, false},
      {"beta2", ARG(beta2), 0.999, false},
      {"epsilon", ARG(epsilon), ROW, false}}},
    {"adamw",
     {ADAM_STATES},
     {{"beta1", ARG(beta1), 0.9, false},
      {"beta2", ARG(beta2), 0.999, false},
      {"epsilon", ARG(epsilon), ROW, false},
      {"coeff", ARG(weight_decay), 0.01, false}}},
    {"rmsprop",
     {{"Moment", "MomentOut", "momentum", 0, false},
      {"MeanSquare", "MeanSquareOut", "mean_square", 0, false},
      {"MeanGrad", "MeanGradOut", "mean_grad", 0, false}},
     {{"decay", ARG(rho), 0.95, false},
      {"epsilon", ARG(epsilon), 1e-6, false},
      {"momentum", ARG(momentum), ROW, false},
      {"centered", ARG(centered), 0, true}}},
    {"adagrad",
     {{"Moment", "MomentOut", "moment", 0, false}},
     {{"epsilon", ARG(epsilon), 1e-6, false}}},
};

static double arg_value(const kl_optim_args *a, const AttrRow *r) {
  const char *p = (const char *)a + r->arg;
  if (r->flag) return *(const bool *)p;
  double v;
  memcpy(&v, p, sizeof v);
  return v != 0 ? v : r->dflt;
}

static int make_attrs(const OptimRow *r, const kl_optim_args *a, const OpDef *d, Attr *out) {
  int n = 0;
  for (int i = 0; i < N_ATTRS && r->attrs[i].name; i++) {
    double v = arg_value(a, &r->attrs[i]);
    if (v == ROW) continue;
    const AttrDef *def = opdef_attr(d, r->attrs[i].name);
    Attr x = {.name = r->attrs[i].name, .type = def->dflt.type};
    if (x.type == AT_FLOAT || x.type == AT_FLOAT64)
      x.f = v;
    else
      x.i = (int64_t)v;
    out[n++] = x;
  }
  /* adamw without this flag is adam */
  if (opdef_attr(d, "with_decay") && n < N_ATTRS)
    out[n++] = (Attr){.name = "with_decay", .type = AT_BOOL, .i = 1};
  return n;
}

static int make_states(const OptimRow *r, const kl_optim_args *a, OptimState *out) {
  int n = 0;
  for (; n < N_STATES && r->states[n].in; n++) {
    out[n] = r->states[n];
    if (strstr(out[n].suffix, "beta1_pow") && a->beta1 != 0) out[n].init = a->beta1;
    if (strstr(out[n].suffix, "beta2_pow") && a->beta2 != 0) out[n].init = a->beta2;
  }
  return n;
}

static const OptimRow *find_row(const char *type) {
  if (!type) return err_set(E_ARG_002, "the optimiser has no type"), NULL;
  for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
    if (!strcmp(rows[i].type, type)) return &rows[i];
  err_set(E_ARG_002, "unknown optimiser %s", quoted(type));
  return NULL;
}

bool kl_backward(kl_var *loss) {
  BUILD_GUARD(var_net(loss), true, false);
  kl_net *net = net_of(NULL, loss);
  int n;
  ParamGrad *pg;
  return net && append_backward(net->main, loss->name, 0, NULL, &n, &pg);
}

/* The operators that minimize() appended know who called it. Are their numbers in range? E-OPR-003 */
static bool keep_places(Program *p, int from, const char *at) {
  Block *b = p->blocks.v[0];
  bool fit = true;
  for (int i = from; i < b->ops.n; i++) {
    if (!op_attr(b->ops.v[i], "op_callstack") || !op_attr(b->ops.v[i], "op_callstack")->n)
      keep_place(b->ops.v[i], at);
    fit = fit && op_numbers_fit(b->ops.v[i]);
  }
  return fit || (at_where(at), false);
}

static bool decay_fits(kl_decay d) {
  return (d.kind >= 0 && d.kind <= 2 && isfinite(d.coeff)) ||
         err_set(E_ARG_002, "a weight decay of %g, kind %d", d.coeff, d.kind);
}

/* What the update operators do not check themselves. */
static bool args_fit(const Program *p, const kl_optim_args *a) {
  const Block *b = p->blocks.v[0];
  bool norm = a->clip.kind == CLIP_NORM || a->clip.kind == CLIP_GLOBAL_NORM;
  bool clip = a->clip.kind == CLIP_NONE || (norm && a->clip.high > 0) ||
              (a->clip.kind == CLIP_VALUE && a->clip.low <= a->clip.high);
  if (!clip)
    return err_set(E_ARG_002, "clipping at %g to %g, kind %d", a->clip.low, a->clip.high,
                   a->clip.kind);
  for (int i = 0; i < b->vars.n; i++) {
    const ParamInfo *v = b->vars.v[i]->param;
    if (v && !isfinite(v->lr_factor))
      return err_set(E_ARG_002, "the learning rate of %s has the factor %g",
                     quoted(b->vars.v[i]->name), v->lr_factor);
    if (v && !decay_fits((kl_decay){v->decay_kind, v->decay})) return false;
  }
  return decay_fits(a->decay);
}

static bool rate_fits(double lr) {
  if (isfinite(lr) && lr >= 0) return true;
  return err_set(E_ARG_002, "the learning rate is %g; it must be a finite number, not negative",
                 lr);
}

kl_var *kl_minimize_at(const char *at, kl_var *loss, kl_optimizer o) {
  BUILD_GUARD(var_net(loss), true, NULL);
  if (err_any()) return NULL;
  kl_net *net = net_of(at, loss);
  int n_main = net ? net->main->blocks.v[0]->ops.n : 0;
  int n_startup = net ? net->startup->blocks.v[0]->ops.n : 0;
  const OptimRow *r =
      net && rate_fits(o.a.lr) && args_fit(net->main, &o.a) ? find_row(o.type) : NULL;
  int n;
  ParamGrad *pg;
  if (!r || !append_backward(net->main, loss->name, 0, NULL, &n, &pg)) return at_where(at), NULL;
  Attr attrs[N_ATTRS];
  OptimState states[N_STATES];
  OptimSpec spec = {.type = r->type,
                    .attrs = attrs,
                    .states = states,
                    .lr = o.a.lr,
                    .clip = (ClipKind)o.a.clip.kind,
                    .clip_lo = o.a.clip.low,
                    .clip_hi = o.a.clip.high,
                    .decay_kind = o.a.decay.kind,
                    .decay = o.a.decay.coeff};
  spec.n_attrs = make_attrs(r, &o.a, opdef_find(r->type), attrs);
  spec.n_states = make_states(r, &o.a, states);
  const char *lr = append_optimizer(net->main, net->startup, &spec, n, pg);
  bool ok = lr && keep_places(net->main, n_main, at) && keep_places(net->startup, n_startup, at);
  return ok ? block_var(net->main->blocks.v[0], lr) : NULL;
}
