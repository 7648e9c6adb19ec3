/* The Graph's verifier. In: a graph from the builders, a pass or a text; out: true, or E-VER-004 naming the node. Checked:
 * order, operand counts, element types, shapes, and that index maps stay inside the loops and inside 64-bit arithmetic.
 * One function per class of primitive. */
#include "ir.h"
#include <string.h>

static bool bad(const Node *n, const char *what) {
  return err_set(E_VER_004, "node %d, `%s` %s: %s", n->id, prim_info[n->prim].name,
                 shape_text(n->dtype, n->rank, n->dims), what);
}

/* Sizes may be unknown in a shapes_only graph. */
static bool same_dim(int64_t a, int64_t b) { return a == b || a < 0 || b < 0; }

static bool same_dims(const Node *a, const Node *b, int but_axis) {
  if (a->rank != b->rank) return false;
  for (int d = 0; d < a->rank; d++)
    if (d != but_axis && !same_dim(a->dims[d], b->dims[d])) return false;
  return true;
}

static bool is_layout(int rank, const int64_t *layout) {
  unsigned seen = 0;
  for (int d = 0; d < rank; d++)
    if (layout[d] >= 0 && layout[d] < rank) seen |= 1u << layout[d];
  return seen == (1u << rank) - 1;
}

static bool check_source(const Graph *g, const Node *n) {
  (void)g;
  if (n->prim == P_STATE && n->n_ia && (n->n_ia != n->rank || !is_layout(n->rank, n->ia)))
    return bad(n, "its layout is no permutation of its dimensions");
  if ((n->prim == P_FEED || n->prim == P_STATE) && !n->s) return bad(n, "it has no name");
  if (n->prim == P_DATA && !n->data) return bad(n, "it has no elements");
  if (n->prim == P_IOTA && (n->i < 0 || n->i >= n->rank)) return bad(n, "its axis is out of range");
  if (n->prim == P_RANDOM && (n->n_ia != 3 || !dtype_is_float(n->dtype)))
    return bad(n, "it needs a floating type, seed, stream and step");
  return true;
}

static bool check_map(const Graph *g, const Node *n) {
  (void)g;
  bool compares = n->prim == P_LT || n->prim == P_LE || n->prim == P_EQ;
  for (int k = 0; k < n->n_in; k++) {
    DType want = n->prim == P_SELECT && k == 0 ? DT_BOOL : compares ? n->in[0]->dtype : n->dtype;
    if (n->prim != P_CAST && n->in[k]->dtype != want) return bad(n, "element types differ");
    if (!same_dims(n, n->in[k], -1)) return bad(n, "an operand has another shape");
  }
  if (compares && n->dtype != DT_BOOL) return bad(n, "the result must be bool");
  if (n->n_in == 1 && n->prim != P_CAST && !dtype_is_float(n->dtype))
    return bad(n, "it needs a floating type");
  if (n->dtype == DT_BOOL && (n->prim == P_DIV || n->prim == P_MOD || n->prim == P_POW))
    return bad(n, "not defined for bool");
  return true;
}

/* One term: c times the loop's largest index, added to the bound of |numerator|. */
static bool add_term(int l, int32_t c, int n_loops, const int64_t *ext, int64_t *bound) {
  int64_t most;
  if (l < 0) return c == 0;
  if (l >= n_loops || c == 0) return false;
  return mul_ok(c < 0 ? -(int64_t)c : c, ext[l] < 1 ? 1 : ext[l], &most) &&
         add_ok(*bound, most, bound) && *bound < INT64_MAX / 4;
}

static bool check_affine(const Node *n, const Node *x, const AffDim *map, int n_loops,
                         const int64_t *ext) {
  if (x->rank && !map) return bad(n, "it has no map");
  for (int d = 0; d < x->rank; d++) {
    const AffDim *a = &map[d];
    if (a->off <= INT64_MIN / 4) return bad(n, "an offset is too large");
    int64_t bound = a->off < 0 ? -a->off : a->off;
    if (a->l0 < -1 || a->l1 < -1 || (a->l0 < 0 && a->l1 >= 0) || (a->l0 >= 0 && a->l0 == a->l1) ||
        a->div < 1 || !add_term(a->l0, a->c0, n_loops, ext, &bound) ||
        !add_term(a->l1, a->c1, n_loops, ext, &bound))
      return bad(n, "a dimension's map has a wrong loop, coefficient or divisor");
  }
  return true;
}

static bool check_view(const Graph *g, const Node *n) {
  const Node *x = n->in[0];
  if (x->dtype != n->dtype) return bad(n, "element types differ");
  if (n->prim == P_VIEW) return check_affine(n, x, n->map[0], n->rank, n->dims);
  bool same =
      node_numel(n) == node_numel(x) || (g->shapes_only && node_numel(n) * node_numel(x) <= 0);
  return same || bad(n, "the operand has another number of elements");
}

static bool check_reduce(const Graph *g, const Node *n) {
  (void)g;
  const Node *x = n->in[0];
  if (n->i < 0 || n->i >> x->rank || n->rank != x->rank) return bad(n, "an axis is out of range");
  for (int d = 0; d < n->rank; d++)
    if (n->i >> d & 1 ? n->dims[d] != 1 : !same_dim(n->dims[d], x->dims[d]))
      return bad(n, "the shape is not the operand's with 1 at the reduced axes");
  if (n->prim == P_ARGMAX)
    return n->dtype == DT_INT32 || n->dtype == DT_INT64 || bad(n, "the result must be an integer");
  return n->dtype == x->dtype || bad(n, "element types differ");
}

static bool check_contract(const Graph *g, const Node *n) {
  const Node *a = n->in[0], *b = n->in[1];
  if (a->dtype != n->dtype || b->dtype != n->dtype) return bad(n, "element types differ");
  if (n->n_loops < n->rank || n->n_loops > KL_LOOPS || (n->n_loops && !n->ext))
    return bad(n, "wrong number of loops");
  for (int l = 0; l < n->n_loops; l++)
    if (n->ext[l] < (g->shapes_only ? -1 : 0) || n->ext[l] > (int64_t)1 << 40 ||
        (l < n->rank && n->ext[l] != n->dims[l]))
      return bad(n, "a loop's extent is wrong");
  return check_affine(n, a, n->map[0], n->n_loops, n->ext) &&
         check_affine(n, b, n->map[1], n->n_loops, n->ext);
}

static bool is_index(const Node *x) {
  char c = dtype_info[x->dtype].class;
  return c == 'i' || c == 'u';
}

static bool check_index(const Node *n) {
  const Node *x = n->in[0], *idx = n->in[1];
  if (n->i < 0 || n->i >= n->rank) return bad(n, "its axis is out of range");
  if (!is_index(idx) || x->dtype != n->dtype) return bad(n, "wrong element types");
  if (!same_dims(x, idx, (int)n->i)) return bad(n, "the index does not fit");
  if (n->prim == P_GATHER) return same_dims(n, idx, -1) || bad(n, "the shape is not the index's");
  if (n->n_ia != 1 || n->in[2]->dtype != n->dtype || !same_dims(n->in[2], idx, -1))
    return bad(n, "the updates do not fit");
  return same_dims(n, x, -1) || bad(n, "the shape is not the base's");
}

static bool check_concat(const Node *n) {
  int64_t sum = 0;
  bool unknown = n->i >= 0 && n->i < n->rank && n->dims[n->i] < 0;
  if (n->n_in < 1 || n->i < 0 || n->i >= n->rank) return bad(n, "its axis is out of range");
  for (int k = 0; k < n->n_in; k++) {
    if (n->in[k]->dtype != n->dtype || !same_dims(n, n->in[k], (int)n->i))
      return bad(n, "an operand does not fit");
    unknown |= n->in[k]->dims[n->i] < 0;
    sum += n->in[k]->dims[n->i];
  }
  return unknown || sum == n->dims[n->i] || bad(n, "the sizes along the axis do not add up");
}

static bool check_call(const Node *n) {
  if (!n->custom || n->n_ia < 1) return bad(n, "it names no custom operator");
  if (n->i ? !n->custom->backward : !n->custom->forward) return bad(n, "there is no such function");
  Tensor t;
  call_out(n, 0, &t);
  if (n->rank > KL_VAR_RANK || n->dtype != t.dtype || n->rank != t.rank)
    return bad(n, "it is not the call's output 0");
  return true;
}

static bool check_out(const Node *n) {
  const Node *call = n->in[0];
  if (call->prim != P_CALL || n->i < 1 || n->i >= call_n_out(call)) return bad(n, "no such output");
  Tensor t;
  call_out(call, (int)n->i, &t);
  bool same = n->dtype == t.dtype && n->rank == t.rank;
  for (int d = 0; same && d < n->rank; d++) same = same_dim(n->dims[d], t.dims[d]);
  return same || bad(n, "the call's output has another shape or type");
}

static bool check_other(const Graph *g, const Node *n) {
  (void)g;
  const Node *x = n->n_in ? n->in[0] : NULL;
  switch (n->prim) {
  case P_CONTRACT: return check_contract(g, n);
  case P_GATHER:
  case P_SCATTER: return check_index(n);
  case P_CONCAT: return check_concat(n);
  case P_CHECK:
    return (n->n_ia == 5 && is_index(x) && x->dtype == n->dtype && same_dims(n, x, -1)) ||
           bad(n, "it needs an integer operand of its own shape and five numbers");
  case P_ARGSORT:
    return (n->n_ia == 1 && n->rank > 0 && n->dtype == DT_INT64 && same_dims(n, x, -1)) ||
           bad(n, "it must be int64 of the operand's shape");
  case P_CALL: return check_call(n);
  default: return check_out(n);
  }
}

static bool check_node(const Graph *g, const Node *n, int at) {
  int64_t known[KL_RANK] = {0}, numel;
  if (n->prim >= P_N || n->dtype >= DT_N || n->rank < 0 || n->rank > KL_RANK)
    return err_set(E_VER_004, "node %d has an unknown primitive, element type or rank", at);
  int arity = prim_info[n->prim].n_in;
  if (arity >= 0 ? n->n_in != arity : n->n_in < 0) return bad(n, "wrong number of operands");
  for (int k = 0; k < n->n_in; k++)
    if (!n->in[k] || n->in[k]->id < 0 || n->in[k]->id >= at || g->nodes.v[n->in[k]->id] != n->in[k])
      return bad(n, "an operand does not come before it");
  for (int d = 0; d < n->rank; d++) known[d] = g->shapes_only && n->dims[d] == -1 ? 1 : n->dims[d];
  if (!dims_numel(n->dtype, n->rank, known, &numel)) return false;
  switch (prim_info[n->prim].class) {
  case 'S': return check_source(g, n);
  case 'M': return check_map(g, n);
  case 'V': return check_view(g, n);
  case 'R': return check_reduce(g, n);
  default: return check_other(g, n);
  }
}

static bool check_named(const Graph *g, const NamedNode *x) {
  bool there = x->name && x->node && x->node->id >= 0 && x->node->id < g->nodes.n &&
               g->nodes.v[x->node->id] == x->node;
  if (there && x->layout && !is_layout(x->node->rank, x->layout))
    return bad(x->node, "it is written in a layout that is no permutation of its dimensions");
  if (there) return true;
  return err_set(E_VER_004, "%s is written or fetched, but its node is not in the graph",
                 quoted(x->name ? x->name : ""));
}

bool graph_verify(const Graph *g) {
  for (int i = 0; i < g->nodes.n; i++) g->nodes.v[i]->id = i;
  for (int i = 0; i < g->nodes.n; i++)
    if (!check_node(g, g->nodes.v[i], i)) return false;
  for (int i = 0; i < g->writes.n; i++)
    if (!check_named(g, &g->writes.v[i])) return false;
  for (int i = 0; i < g->fetches.n; i++)
    if (!check_named(g, &g->fetches.v[i])) return false;
  return true;
}
