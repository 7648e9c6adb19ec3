/* Optimisers with lists of parameters: merged_adam and merged_momentum, which are the plain operators one by one, and lars_momentum:
 * You, Gitman, Ginsburg, "Large Batch Training of Convolutional Networks", 2017. */
#include "ops.h"

static Node *norm2(Graph *g, Node *n) {
  return n ? g_map1(g, P_SQRT,
                    g_reduce(g, P_RSUM, g_map2(g, P_MUL, n, n), (1u << n->rank) - 1, false))
           : NULL;
}

static bool lars(Expand *x, int i, double decay) {
  Graph *g = x->g;
  Node *p = x_in_at(x, "Param", i), *d = x_in_at(x, "Grad", i), *v = x_in_at(x, "Velocity", i);
  Node *lr = g_reshape(g, x_in_at(x, "LearningRate", i), 0, NULL);
  if (!p || !d || !v || !lr) return false;
  lr = g_cast(g, lr, p->dtype);
  double scale = op_float(x->op, "rescale_grad");
  if (scale != 1) d = g_map2c(g, P_MUL, d, scale);
  Node *pn = norm2(g, p), *gn = norm2(g, d), *zero = g_const(g, p->dtype, 0);
  Node *sum = g_map2(g, P_ADD, gn, g_map2c(g, P_MUL, pn, decay));
  Node *ratio = g_map2(g, P_DIV, g_map2c(g, P_MUL, pn, op_float(x->op, "lars_coeff")),
                       g_map2c(g, P_ADD, sum, op_float(x->op, "epsilon")));
  Node *both = g_map2(g, P_MIN, g_map2(g, P_LT, zero, pn), g_map2(g, P_LT, zero, gn));
  Node *local =
      decay > 0 ? g_map2(g, P_MUL, lr, g_select(g, both, ratio, g_const(g, p->dtype, 1))) : lr;
  Node *step = g_map2(g, P_MUL, local, g_map2(g, P_ADD, d, g_map2c(g, P_MUL, p, decay)));
  Node *velocity = g_map2(g, P_ADD, g_map2c(g, P_MUL, v, op_float(x->op, "mu")), step);
  return x_out_at(x, "VelocityOut", i, velocity) &&
         x_out_at(x, "ParamOut", i, g_map2(g, P_SUB, p, velocity));
}

bool x_lars_momentum(Expand *x) {
  int n = x_n_in(x, "Param");
  const Attr *decay = op_list(x->op, "lars_weight_decay", x->g->arena);
  if (x_n_in(x, "Grad") != n || x_n_in(x, "Velocity") != n || x_n_in(x, "LearningRate") != n)
    return err_set(E_OPR_002, "Param, Grad, Velocity and LearningRate must be equally many");
  if (!decay || decay->n < 1) return err_set(E_OPR_003, "lars_weight_decay has no value");
  for (int i = 0; i < n; i++)
    if (!lars(x, i, decay->fs[i < decay->n ? i : decay->n - 1])) return false;
  return true;
}

/* ---- one by one ---- */

/* The operator `type` for each element of the list slots. */
static bool one_by_one(Expand *x, const char *type) {
  Arena *a = x->g->arena;
  const Op *whole = x->op;
  int n = x_n_in(x, "Param");
  for (int i = 0; i < n; i++) {
    Op *op = arena_new_of(a, Op); /* nodes keep it */
    *op = *whole;
    op->type = type, op->def = opdef_find(type);
    op->ins = op->outs = (SlotVec){0};
    for (int k = 0; k < 2; k++) {
      const SlotVec *from = k ? &whole->outs : &whole->ins;
      for (int s = 0; s < from->n; s++) {
        Slot one = {from->v[s].name, from->v[s].n > i, from->v[s].args + i};
        if (one.n) vec_add(a, k ? &op->outs : &op->ins, one);
      }
    }
    op->attrs.v = arena_array(a, Attr, whole->attrs.n + 1);
    op->attrs.n = op->attrs.cap = whole->attrs.n;
    for (int k = 0; k < whole->attrs.n; k++) {
      Attr *at = &op->attrs.v[k];
      *at = whole->attrs.v[k];
      if (at->type == AT_STRINGS && at->n > i)
        *at = (Attr){.name = at->name, .type = AT_STRING, .s = at->ss[i]};
      if (at->type == AT_FLOATS && at->n > i)
        *at = (Attr){.name = at->name, .type = AT_FLOAT, .f = at->fs[i]};
    }
    if (!expand_op(x, op)) return false;
  }
  return true;
}

bool x_merged_adam(Expand *x) { return one_by_one(x, "adam"); }
bool x_merged_momentum(Expand *x) { return one_by_one(x, "momentum"); }
