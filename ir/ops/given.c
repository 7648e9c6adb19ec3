/* Attributes that variables give, as PaddlePaddle 2.4 and later may write them (VAR, VARS).
 *
 * In: an operator and the nodes of these variables, which are inputs in slots named like the attributes. Out: the operator
 * with constants in their place. In shape inference, where a value is not known, the outputs are as they are declared; in an
 * expansion for a run that is E-OPR-006, so that the executor computes the variable first. */
#include "ops.h"

#include <string.h>

static bool is_given(const Op *op, const Attr *a) {
  const AttrDef *d = op->def ? opdef_attr(op->def, a->name) : NULL;
  return (a->type == AT_VAR || a->type == AT_VARS) && d && !d->extra && d->dflt.type != AT_VAR &&
         d->dflt.type != AT_VARS;
}

bool op_has_given(const Op *op) {
  bool any = false;
  for (int i = 0; i < op->attrs.n; i++) any = any || is_given(op, &op->attrs.v[i]);
  return any;
}

/* Appends the elements of one variable. */
static bool add_values(Expand *x, const char *name, int i, Attr *to, int *cap) {
  Tensor t;
  Node *n = x_in_at(x, name, i);
  if (!n) return false;
  if (!ops_value(x->g, n, &t)) return err_any() ? false : ops_not_constant(x->g, n, name);
  int64_t numel = tensor_numel(&t);
  if (numel > KL_VAR_RANK * 4 || to->n + numel > *cap)
    return err_set(E_SHP_002, "%s has %lld elements", name, (long long)numel);
  bool real = dtype_is_float(t.dtype);
  if (to->n == 0) to->type = real ? AT_FLOAT64S : AT_LONGS;
  if (real != (to->type == AT_FLOAT64S)) return err_set(E_TYP_001, "%s mixes types", name);
  for (int64_t k = 0; k < numel; k++, to->n++)
    if (real)
      to->fs[to->n] = tensor_get(&t, k);
    else
      to->is[to->n] =
          t.dtype == DT_INT64 ? ((const int64_t *)t.data)[k] : (int64_t)tensor_get(&t, k);
  return true;
}

static bool to_constant(Expand *x, Attr *a) {
  Graph *g = x->g;
  AttrType want = opdef_attr(x->op->def, a->name)->dflt.type;
  int cap = 256;
  Attr v = {.name = a->name, .type = AT_LONGS, .is = arena_array(g->arena, int64_t, cap)};
  for (int i = 0; i < x_n_in(x, a->name); i++)
    if (!add_values(x, a->name, i, &v, &cap)) return false;
  if (!attr_info[want].list) {
    if (v.n != 1) return err_set(E_SHP_006, "%s has %d elements, one is needed", a->name, v.n);
    bool real = v.type == AT_FLOAT64S;
    Attr one = {.name = v.name, .type = real ? AT_FLOAT64 : AT_LONG};
    if (real)
      one.f = v.fs[0];
    else
      one.i = v.is[0];
    v = one;
  }
  *a = v;
  if (attr_coerce(a, want, g->arena)) return true;
  return err_set(E_OPR_003, "attribute %s takes %s, which its variable does not give",
                 quoted(a->name), attr_info[want].name);
}

static bool outputs_as_declared(Expand *x) {
  const Op *op = x->op;
  for (int s = 0; s < op->outs.n; s++)
    for (int i = 0; i < op->outs.v[s].n; i++) {
      const char *name = op_out(op, op->outs.v[s].name, i);
      const Var *v = name ? block_find_var(op->block, name) : NULL;
      if (!name) continue;
      if (!v || v->dtype == DT_NONE || v->rank < 0)
        return err_set(E_OPR_006, "the shape of %s depends on a variable", quoted(name));
      if (!x_out_at(x, op->outs.v[s].name, i, ops_blank(x->g, v->dtype, v->rank, v->dims)))
        return false;
    }
  return true;
}

const Op *op_with_constants(Expand *x, bool *declared) {
  Op *op = arena_dup(x->g->arena, x->op, sizeof *op);
  *declared = false;
  op->attrs.v = arena_dup(x->g->arena, op->attrs.v, sizeof *op->attrs.v * (size_t)op->attrs.n);
  for (int i = 0; i < op->attrs.n; i++) {
    if (!is_given(op, &op->attrs.v[i]) || to_constant(x, &op->attrs.v[i])) continue;
    if (!x->g->shapes_only || err_get()->code != E_OPR_006) return NULL;
    err_clear();
    x->g->unknown = NULL;
    *declared = outputs_as_declared(x);
    return *declared ? op : NULL;
  }
  return op;
}
