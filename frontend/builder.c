/* The builder: nets, data, parameters, and the generic call of any operator.
 *
 * In: the user's calls. Out: variables and operators appended to a net's main program, parameters and their initialisers
 * to both programs. Output shapes come from the operator's own expansion (infer_op). Each operator keeps the place of
 * the call in op_callstack. After the first error of the thread, building calls return NULL at once. */
#include "internal.h"
#include <ctype.h>
#include <stdarg.h>
#include <string.h>

kl_net *kl_net_new(void) {
  API_GUARD(NULL);
  Program *main = prog_new();
  arena_unkeep(main->arena);
  kl_net *net = arena_new_of(main->arena, kl_net);
  net->main = main;
  net->startup = prog_new();
  arena_keep(main->arena);
  net->main->net = net->startup->net = net;
  return net;
}

void kl_net_free(kl_net *net) {
  if (!net) return;
  prog_free(net->startup);
  prog_free(net->main); /* holds the net itself */
}

/* A net is NULL if kl_net_new failed: the error is pending, and one check at the end suffices. */
kl_program *kl_main(kl_net *net) { return net ? net->main : NULL; }
kl_program *kl_startup(kl_net *net) { return net ? net->startup : NULL; }
void kl_seed(kl_net *net, int64_t seed) {
  if (net) net->main->seed = net->startup->seed = seed;
}
const char *kl_name(const kl_var *v) { return v ? v->name : ""; }
void kl_stop_gradient(kl_var *v, bool stop) {
  if (v) v->stop_gradient = stop;
}
kl_var *kl_find(kl_net *net, const char *name) {
  return net && name ? block_find_var(net_block(net), name) : NULL;
}

kl_net *net_of(const char *at, const kl_var *v) {
  if (err_any()) return NULL;
  if (v && v->block->prog->net) return v->block->prog->net;
  err_set(E_ARG_002, v ? "%s is not a variable of a net" : "a layer's input is NULL%s",
          v ? quoted(v->name) : "");
  return at_where(at), NULL;
}

kl_net *net_of_both(const char *at, const kl_var *x, const kl_var *y) {
  kl_net *net = net_of(at, y) ? net_of(at, x) : NULL;
  if (!net || net == y->block->prog->net) return net;
  err_set(E_ARG_002, "%s and %s are variables of two nets", quoted(x->name), quoted(y->name));
  return at_where(at), NULL;
}

kl_var *kl_named_at(const char *at, kl_var *v, const char *name) {
  API_GUARD(NULL);
  if (err_any()) return NULL;
  if (!net_of(at, v)) return NULL;
  if (!name || !*name) {
    err_set(E_ARG_002, "%s cannot be renamed to nothing", quoted(v->name));
    return at_where(at), NULL;
  }
  Block *b = v->block;
  if (!strcmp(v->name, name)) return v;
  if (v->persistable)
    err_set(E_ARG_002, "%s is a parameter: name it with kl_param.name", quoted(v->name));
  else if (block_find_var(b, name))
    err_set(E_PRO_002, "%s cannot be renamed to %s: that name is taken", quoted(v->name),
            quoted(name));
  if (err_any()) return at_where(at), NULL;
  for (int k = b->idx; k < b->prog->blocks.n; k++)
    for (int i = 0; i < b->prog->blocks.v[k]->ops.n; i++)
      op_rename(b->prog->blocks.v[k]->ops.v[i], v->name, name);
  map_put(b->by_name, v->name, NULL);
  v->name = arena_str(b->prog->arena, name);
  map_put(b->by_name, name, v);
  b->prog->edits++;
  return v;
}

void at_where(const char *at) {
  const Diag *d = err_get();
  if (d && at && !strstr(d->where, at)) err_where("%s", at);
}

/* ---- operators ---- */

void keep_place(Op *op, const char *at) {
  if (!at) return;
  const char *lines[1] = {at};
  op_set_attr(op, &(Attr){.name = "op_callstack", .type = AT_STRINGS, .n = 1, .ss = lines});
}

Op *begin_op(const char *at, kl_net *net, const char *type) {
  if (err_any() || !net) return NULL;
  if (!type) return err_set(E_ARG_002, "the type of an operator is NULL"), at_where(at), NULL;
  if (!opdef_find(type)) {
    err_set(E_OPR_001, "unknown operator %s", quoted(type));
    const char *near = opdef_nearest(type);
    if (near) err_help("did you mean %s? `kiln ops` lists all", near);
    at_where(at);
    return NULL;
  }
  Op *op = block_add_op(net_block(net), type);
  keep_place(op, at);
  op_set_int(op, "op_role", ROLE_FORWARD);
  return op;
}

static bool skip_to_name(const char **t, const char **name, size_t *n) {
  while (isspace((unsigned char)**t)) ++*t;
  *name = *t;
  while (isalnum((unsigned char)**t) || **t == '_') ++*t;
  *n = (size_t)(*t - *name);
  return *n > 0;
}

/* "alpha=0.1 axis=1" */
static bool op_set_attrs(Op *op, const char *text) {
  Arena *a = op->block->prog->arena;
  const char *t = text ? text : "", *name;
  size_t n;
  while (skip_to_name(&t, &name, &n)) {
    Attr v;
    const char *attr = arena_strn(a, name, n), *end;
    const AttrDef *d = opdef_attr(op->def, attr);
    if (!opdef_takes(op->def, attr)) return false;
    if (*t != '=' || !attr_parse(a, t + 1, &end, &v) || (d && !attr_coerce(&v, d->dflt.type, a))) {
      err_clear();
      err_set(E_OPR_003, "attribute %s of `%s`: %s is not a value of its type", quoted(attr),
              op->type, quoted(*t == '=' ? t + 1 : t));
      return false;
    }
    v.name = attr;
    op_set_attr(op, &v);
    t = end;
  }
  if (!*t) return true;
  return err_set(E_OPR_003, "attributes of `%s`: %s is not name=value", op->type, quoted(t));
}

/* How many variables an unconnected list output has: what num or sections say; else one for each variable of the first list
 * input, or, without one, for each slice along the axis. */
static int list_outputs(const Op *op) {
  int n = 0;
  if (opdef_attr(op->def, "num")) n = (int)op_int(op, "num");
  if (n <= 0 && opdef_attr(op->def, "sections"))
    op_intlist(op, "sections", op->block->prog->arena, &n);
  for (int i = 0; n <= 0 && i < op->def->n_ins; i++) {
    const Slot *s = op->def->ins[i].list ? op_ins(op, op->def->ins[i].name) : NULL;
    n = s ? s->n : 0;
  }
  const char *x = op_in(op, "X", 0);
  const Var *v = n <= 0 && x && opdef_attr(op->def, "axis") ? block_find_var(op->block, x) : NULL;
  int64_t axis = v ? op_int(op, "axis") : 0;
  axis += v && axis < 0 ? v->rank : 0;
  if (v && axis >= 0 && axis < v->rank && v->dims[axis] < 4096) n = (int)v->dims[axis];
  return n > 0 && n < 4096 ? n : 1;
}

/* LAYER.tmp_K within a layer, TYPE_N.tmp_K elsewhere. */
static const char *temporary(kl_net *net, const Op *op, bool first) {
  Program *p = net->main;
  if (first && !net->layer) net->n_tmp = 0;
  if (first && !net->layer) net->prefix = prog_unique(p, op->type);
  for (;;) {
    const char *name =
        arena_fmt(p->arena, "%s.tmp_%d", net->layer ? net->layer : net->prefix, net->n_tmp++);
    if (!block_find_var(op->block, name)) return name;
  }
}

static void declare_outputs(Op *op) {
  Block *b = op->block;
  kl_net *net = b->prog->net;
  bool first = true;
  for (int i = 0; i < op->def->n_outs; i++) {
    const SlotDef *d = &op->def->outs[i];
    const Slot *have = op_outs(op, d->name);
    if ((d->optional && !d->intermediate) || (have && have->n)) continue;
    int n = d->list ? list_outputs(op) : 1;
    for (int j = 0; j < n; j++) {
      const char *name = temporary(net, op, first);
      first = false;
      op_add_out(op, d->name, name);
      Var *v = block_add_var(b, name, VK_TENSOR, DT_NONE, 0, NULL);
      if (v) v->stop_gradient = d->intermediate;
    }
  }
}

static const char *first_output(const Op *op) {
  for (int i = 0; i < op->def->n_outs; i++) {
    const char *name = op->def->outs[i].intermediate ? NULL : op_out(op, op->def->outs[i].name, 0);
    if (name) return name;
  }
  return NULL;
}

/* Nothing after an operator without a path to a parameter needs a gradient; labels and counts never do. */
static void mark_gradients(Op *op) {
  for (int i = 0; i < op->outs.n; i++)
    for (int j = 0; j < op->outs.v[i].n; j++) {
      Var *v = block_find_var(op->block, op->outs.v[i].args[j]);
      if (v && !dtype_is_float(v->dtype)) v->stop_gradient = true;
    }
}

kl_var *end_op(Op *op) {
  if (!op || err_any()) return NULL;
  declare_outputs(op);
  if (err_any() || !op_verify(op) || !infer_op(op)) return NULL;
  mark_gradients(op);
  const char *name = first_output(op);
  return name ? block_find_var(op->block, name) : NULL;
}

kl_var *kl_op_at(const char *at, kl_net *net, const char *type, const char *attrs, ...) {
  BUILD_GUARD(net, false, NULL);
  Op *op = begin_op(at, net, type);
  if (!op) return NULL;
  va_list ap;
  va_start(ap, attrs);
  for (const char *slot; (slot = va_arg(ap, const char *));) {
    kl_var *v = va_arg(ap, kl_var *);
    if (!opdef_in(op->def, slot)) {
      err_set(E_OPR_002, "operator `%s` has no input slot %s", type, quoted(slot));
      err_help("`kiln ops %s` lists them", type);
      break;
    }
    if (!v) {
      err_set(E_ARG_002, "the variable for slot %s of `%s` is NULL", quoted(slot), type);
      break;
    }
    if (v->block->prog != net->main) {
      err_set(E_ARG_002, "slot %s of `%s`: %s is not a variable of this net", quoted(slot), type,
              quoted(v->name));
      break;
    }
    op_add_in(op, slot, v->name);
  }
  va_end(ap);
  if (!err_any()) op_set_attrs(op, attrs);
  kl_var *out = end_op(op);
  if (!out && err_any()) at_where(at);
  return out;
}

kl_var *kl_output(kl_var *of, const char *slot) { return kl_output_n(of, slot, 0); }

kl_var *kl_output_n(kl_var *of, const char *slot, int n) {
  if (!of || err_any() || !NEED(slot)) return NULL;
  Block *b = of->block;
  for (int i = b->ops.n - 1; i >= 0; i--) {
    Op *op = b->ops.v[i];
    for (int s = 0; s < op->outs.n; s++)
      for (int k = 0; k < op->outs.v[s].n; k++)
        if (!strcmp(op->outs.v[s].args[k], of->name)) {
          const Slot *have = op_outs(op, slot);
          const char *name = have && n >= 0 && n < have->n ? op_out(op, slot, n) : NULL;
          if (name) return block_find_var(b, name);
          if (have && have->n)
            err_set(E_ARG_002, "output %s %d of `%s`: it has %d", quoted(slot), n, op->type,
                    have->n);
          else
            err_set(E_OPR_002, "operator `%s` has no output %s", op->type, quoted(slot));
          return NULL;
        }
  }
  err_set(E_ARG_002, "no operator makes %s", quoted(of->name));
  return NULL;
}

kl_var *kl_unary_at(const char *at, const char *type, const char *attrs, kl_var *x) {
  return kl_op_at(at, net_of(at, x), type, attrs, "X", x, (const char *)0);
}

kl_var *kl_binary_at(const char *at, const char *type, const char *attrs, kl_var *x, kl_var *y) {
  kl_net *net = net_of_both(at, x, y);
  return kl_op_at(at, net, type, attrs, "X", x, "Y", y, (const char *)0);
}

const char *begin_layer(kl_net *net, const char *key, const char *at) {
  net->n_tmp = 0;
  net->at = at;
  return net->layer = prog_unique(net->main, key);
}

kl_var *end_layer(kl_net *net, const char *at, kl_var *y, const char *act) {
  if (!y) at_where(at);
  if (y && act) y = kl_unary_at(at, act, "", y);
  net->layer = net->at = NULL;
  return y;
}

/* ---- data and parameters ---- */

bool shape_declared(const char *what, kl_dtype dtype, int rank, const int64_t *dims, bool known) {
  if ((int)dtype < KL_BOOL || dtype > KL_FLOAT64)
    return err_set(E_ARG_002, "%s: %d is not an element type", quoted(what), (int)dtype);
  if (rank < 0 || (rank && !dims))
    return err_set(E_ARG_002, "%s: a rank of %d and %s", quoted(what), rank,
                   dims ? "dimensions" : "no dimensions");
  if (!check_var_dims(rank, dims)) return err_note("of %s", quoted(what)), false;
  for (int i = 0; i < rank; i++)
    if (dims[i] < (known ? 0 : -1))
      return err_set(E_ARG_002, "%s: dimension %d is %lld", quoted(what), i, (long long)dims[i]);
  return true;
}

static bool can_declare(const char *name, kl_dtype dtype, int rank, const int64_t *dims,
                        bool known) {
  if (!name || !*name) return err_set(E_ARG_002, "a variable needs a name");
  return shape_declared(name, dtype, rank, dims, known);
}

kl_var *kl_data_at(const char *at, kl_net *net, const char *name, kl_dtype dtype, int rank,
                   const int64_t *dims) {
  BUILD_GUARD(net, false, NULL);
  if (err_any() || !net) return NULL;
  if (!can_declare(name, dtype, rank, dims, false)) return at_where(at), NULL;
  Var *v = block_add_var(net->main->blocks.v[0], name, VK_TENSOR, (DType)dtype, rank, dims);
  if (!v) {
    at_where(at);
    return NULL;
  }
  v->need_check_feed = v->stop_gradient = true;
  return v;
}

static bool share_fits(const Var *v, kl_dtype dtype, int rank, const int64_t *dims) {
  if (v->dtype == (DType)dtype && v->rank == rank &&
      !memcmp(v->dims, dims, sizeof *dims * (size_t)rank))
    return true;
  err_set(E_SHP_006, "parameter %s is %s and cannot be shared as %s", quoted(v->name),
          shape_text(v->dtype, v->rank, v->dims), shape_text((DType)dtype, rank, dims));
  return false;
}

kl_var *kl_parameter(kl_net *net, const char *key, kl_dtype dtype, int rank, const int64_t *dims,
                     kl_param p, bool is_bias) {
  BUILD_GUARD(net, false, NULL);
  if (err_any() || !net) return NULL;
  const char *name = p.name ? p.name : prog_unique(net->main, key ? key : "parameter");
  if (!can_declare(name, dtype, rank, dims, true)) return at_where(net->at), NULL;
  Block *mb = net->main->blocks.v[0], *sb = net->startup->blocks.v[0];
  Var *old = block_var(mb, name);
  if (old && share_fits(old, dtype, rank, dims)) return old;
  if (err_any() && net->at) at_where(net->at);
  if (old) return NULL;
  Var *v = block_add_var(mb, name, VK_TENSOR, (DType)dtype, rank, dims);
  Var *s = v ? block_add_var(sb, name, VK_TENSOR, (DType)dtype, rank, dims) : NULL;
  if (!s) return NULL;
  v->persistable = s->persistable = v->is_parameter = s->is_parameter = true;
  v->stop_gradient = s->stop_gradient = p.frozen;
  v->param = arena_new_of(net->main->arena, ParamInfo);
  *v->param = (ParamInfo){.lr_factor = p.lr == 0 ? 1 : p.lr,
                          .decay_kind = p.decay.kind,
                          .decay = p.decay.coeff,
                          .no_clip = p.no_clip};
  return init_param(net, s, p.init, is_bias) ? v : NULL;
}
