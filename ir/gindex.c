/* The other builders of the Graph: reductions, gather and scatter, checks, concatenation, sorting and calls. In: operands
 * and axes; out: one node, or NULL with one diagnostic. Reductions keep the reduced axes with size 1; dropping
 * them is a reshape behind. */
#include "ir.h"
#include <string.h>

static const char *node_text(const Node *x) { return shape_text(x->dtype, x->rank, x->dims); }

static bool differ(int64_t a, int64_t b) { return a != b && a >= 0 && b >= 0; }

static bool axis_ok(Graph *g, Prim p, const Node *x, int axis) {
  if (axis >= 0 && axis < x->rank) return true;
  return err_set(E_SHP_003, "%s: axis %d of %s", g_who(g, p), axis, node_text(x));
}

static Node *reduce(Graph *g, Prim p, Node *x, uint32_t axes, bool keep_dims, DType t) {
  int64_t kept[KL_RANK], dims[KL_RANK];
  int rank = 0;
  if (axes >> x->rank) {
    err_set(E_SHP_003, "%s: an axis beyond the rank of %s", g_who(g, p), node_text(x));
    return NULL;
  }
  for (int d = 0; d < x->rank; d++) {
    kept[d] = axes >> d & 1 ? 1 : x->dims[d];
    if (keep_dims || !(axes >> d & 1)) dims[rank++] = kept[d];
  }
  Node *n = g_node(g, p, t, x->rank, kept, 1, &x);
  if (!n) return NULL;
  n->i = axes;
  return g_reshape(g, n, rank, dims);
}

Node *g_reduce(Graph *g, Prim p, Node *x, uint32_t axes, bool keep_dims) {
  if (!x || !axes) return x;
  if (p != P_RSUM && p != P_RMAX && p != P_RPROD) {
    err_set(E_ARG_002, "g_reduce of `%s`", prim_info[p].name);
    return NULL;
  }
  return reduce(g, p, x, axes, keep_dims, x->dtype);
}

Node *g_argmax(Graph *g, Node *x, uint32_t axes, bool keep_dims, DType t) {
  if (!x) return NULL;
  if (t != DT_INT32 && t != DT_INT64) {
    err_set(E_TYP_002, "%s: the index of a maximum is int32 or int64, not %s", g_who(g, P_ARGMAX),
            dtype_info[t].name);
    return NULL;
  }
  return reduce(g, P_ARGMAX, x, axes, keep_dims, t);
}

static bool index_type(Graph *g, Prim p, const Node *idx) {
  char class = dtype_info[idx->dtype].class;
  if (class == 'i' || class == 'u') return true;
  return err_set(E_TYP_002, "%s: the index %s is not an integer tensor", g_who(g, p),
                 node_text(idx));
}

/* x and idx have one shape but for the axis. */
static bool index_shape(Graph *g, Prim p, const Node *x, const Node *idx, int axis) {
  bool same = x->rank == idx->rank;
  for (int d = 0; same && d < x->rank; d++) same = d == axis || !differ(x->dims[d], idx->dims[d]);
  if (same) return true;
  return err_set(E_SHP_006, "%s: index %s along axis %d of %s: the other dimensions must be equal",
                 g_who(g, p), node_text(idx), axis, node_text(x));
}

Node *g_gather(Graph *g, Node *x, Node *idx, int axis) {
  Node *in[2] = {x, idx};
  if (!x || !idx || !axis_ok(g, P_GATHER, x, axis) || !index_type(g, P_GATHER, idx) ||
      !index_shape(g, P_GATHER, x, idx, axis))
    return NULL;
  int64_t dims[KL_RANK];
  for (int d = 0; d < x->rank; d++)
    dims[d] = idx->dims[d] < 0 && d != axis ? x->dims[d] : idx->dims[d];
  Node *n = g_node(g, P_GATHER, x->dtype, x->rank, dims, 2, in);
  if (n) n->i = axis;
  return n;
}

Node *g_scatter(Graph *g, Node *base, Node *idx, Node *upd, int axis, bool assign) {
  Node *in[3] = {base, idx, upd};
  if (!base || !idx || !upd || !axis_ok(g, P_SCATTER, base, axis) ||
      !index_type(g, P_SCATTER, idx) || !index_shape(g, P_SCATTER, base, idx, axis))
    return NULL;
  if (base->dtype != upd->dtype) {
    err_set(E_TYP_001, "%s: updates %s into %s", g_who(g, P_SCATTER), node_text(upd),
            node_text(base));
    return NULL;
  }
  bool same = idx->rank == upd->rank;
  for (int d = 0; same && d < idx->rank; d++) same = !differ(idx->dims[d], upd->dims[d]);
  if (!same) {
    err_set(E_SHP_006, "%s: updates %s and index %s must have the same dimensions",
            g_who(g, P_SCATTER), node_text(upd), node_text(idx));
    return NULL;
  }
  Node *n = g_node(g, P_SCATTER, base->dtype, base->rank, base->dims, 3, in);
  if (!n) return NULL;
  n->i = axis;
  n->n_ia = 1;
  n->ia = arena_dup(g->arena, (int64_t[]){assign}, sizeof(int64_t));
  return n;
}

Node *g_check(Graph *g, Node *x, int64_t lo, int64_t hi, bool has_ignore, int64_t ignore,
              ErrCode code) {
  if (!x || !index_type(g, P_CHECK, x)) return NULL;
  Node *n = g_node(g, P_CHECK, x->dtype, x->rank, x->dims, 1, &x);
  if (!n) return NULL;
  n->n_ia = 5;
  n->ia = arena_dup(g->arena, (int64_t[]){lo, hi, has_ignore, ignore, code}, 5 * sizeof(int64_t));
  return n;
}

/* More operands than a kernel may have. */
enum { MOST_PARTS = 64 };

static Node *concat_in_steps(Graph *g, int n, Node *const *x, int axis) {
  int n_step = 0;
  Node **step = arena_array(g->arena, Node *, div_up(n, MOST_PARTS));
  for (int k = 0; k < n; k += MOST_PARTS)
    step[n_step++] = g_concat(g, n - k < MOST_PARTS ? n - k : MOST_PARTS, x + k, axis);
  return g_concat(g, n_step, step, axis);
}

Node *g_concat(Graph *g, int n, Node *const *x, int axis) {
  int64_t dims[KL_RANK];
  for (int k = 0; k < n; k++)
    if (!x[k]) return NULL;
  if (n < 1) {
    err_set(E_OPR_002, "%s: nothing to concatenate", g_who(g, P_CONCAT));
    return NULL;
  }
  if (!axis_ok(g, P_CONCAT, x[0], axis)) return NULL;
  memcpy(dims, x[0]->dims, sizeof dims);
  for (int k = 1; k < n; k++) {
    bool same = x[k]->rank == x[0]->rank;
    for (int d = 0; same && d < x[0]->rank; d++) {
      same = d == axis || !differ(dims[d], x[k]->dims[d]);
      if (d != axis && dims[d] < 0) dims[d] = x[k]->dims[d];
    }
    if (!same || x[k]->dtype != x[0]->dtype) {
      err_set(same ? E_TYP_001 : E_SHP_006, "%s: operand %d is %s, operand 0 is %s, along axis %d",
              g_who(g, P_CONCAT), k, node_text(x[k]), node_text(x[0]), axis);
      return NULL;
    }
    /* sizes are at most 2^40 and checked again by g_node, so a sum of two cannot overflow */
    dims[axis] = dims[axis] < 0 || x[k]->dims[axis] < 0 ? -1 : dims[axis] + x[k]->dims[axis];
    if (dims[axis] > (int64_t)1 << 40) break;
  }
  if (n == 1) return x[0];
  if (n > MOST_PARTS) return concat_in_steps(g, n, x, axis);
  Node *r = g_node(g, P_CONCAT, x[0]->dtype, x[0]->rank, dims, n, x);
  if (r) r->i = axis;
  return r;
}

Node *g_argsort(Graph *g, Node *x, bool descending) {
  if (!x) return NULL;
  if (x->rank < 1) {
    err_set(E_SHP_002, "%s: sorting needs at least rank 1", g_who(g, P_ARGSORT));
    return NULL;
  }
  Node *n = g_node(g, P_ARGSORT, DT_INT64, x->rank, x->dims, 1, &x);
  if (!n) return NULL;
  n->n_ia = 1;
  n->ia = arena_dup(g->arena, (int64_t[]){descending}, sizeof(int64_t));
  return n;
}

/* A CALL's ia: the number of outputs, then for each its type, rank and KL_VAR_RANK dimensions. */
enum { OUT_INTS = 2 + KL_VAR_RANK };

int call_n_out(const Node *call) { return (int)call->ia[0]; }

void call_out(const Node *call, int i, Tensor *t) {
  const int64_t *p = call->ia + 1 + i * OUT_INTS;
  *t = (Tensor){.dtype = (DType)p[0], .rank = (int)p[1]};
  memcpy(t->dims, p + 2, sizeof t->dims);
}

/* Records output i; outputs below it that are not known yet are empty. */
static bool set_out(Graph *g, Node *call, int i, DType t, int rank, const int64_t *dims) {
  if (rank > KL_VAR_RANK)
    return err_set(E_SHP_002, "%s: output %d has rank %d; at most %d is allowed", g_who(g, P_CALL),
                   i, rank, KL_VAR_RANK);
  int64_t n = call->n_ia ? call->ia[0] : 0;
  if (i >= n) {
    int64_t *ia = arena_array(g->arena, int64_t, 1 + (i + 1) * OUT_INTS);
    if (n) memcpy(ia, call->ia, (size_t)call->n_ia * sizeof *ia);
    ia[0] = i + 1;
    call->ia = ia;
    call->n_ia = 1 + (i + 1) * OUT_INTS;
  }
  int64_t *p = call->ia + 1 + i * OUT_INTS;
  p[0] = t;
  p[1] = rank;
  for (int d = 0; d < rank; d++) p[2 + d] = dims[d];
  return true;
}

Node *g_call(Graph *g, const CustomOp *op, bool backward, int n, Node *const *x, DType t, int rank,
             const int64_t *dims) {
  Node *r = g_node(g, P_CALL, t, rank, dims, n, x);
  if (!r || !set_out(g, r, 0, t, rank, dims)) return NULL;
  r->custom = op;
  r->i = backward;
  r->s = arena_str(g->arena, op->name);
  return r;
}

Node *g_out(Graph *g, Node *call, int i, DType t, int rank, const int64_t *dims) {
  if (!call || i == 0) return call;
  if (call->prim != P_CALL || i < 0) {
    err_set(E_ARG_002, "output %d of `%s`", i, prim_info[call->prim].name);
    return NULL;
  }
  Node *n = g_node(g, P_OUT, t, rank, dims, 1, &call);
  if (!n || !set_out(g, call, i, t, rank, dims)) return NULL;
  n->i = i;
  return n;
}
