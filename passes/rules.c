/* The rules of simplification that compute with types, maps and dimensions. In: a node with its operands already
 * simplified. Out: its replacement, or NULL. The table in simplify.c says what each one means. */
#include "simplify.h"
#include <string.h>

static Node *reshape_const(Graph *g, const Node *c, int rank, const int64_t *dims) {
  return dtype_is_float(c->dtype) ? g_full(g, c->dtype, c->f, rank, dims)
                                  : g_full_int(g, c->dtype, c->i, rank, dims);
}

/* ---- maps ---- */

static bool never_negative_zero(const Node *x) {
  if (x->prim == P_EXP || x->prim == P_IOTA || x->prim == P_RANDOM) return true;
  if (x->prim == P_CAST) return !dtype_is_float(x->in[0]->dtype);
  if (x->prim == P_CONST) return !const_is(x, -0.0);
  return x->prim == P_ADD && (const_is(x->in[0], 0) || const_is(x->in[1], 0));
}

Node *rule_add_zero(Graph *g, Node *n) {
  (void)g;
  if (n->prim != P_ADD) return NULL;
  for (int k = 0; k < 2; k++)
    if (const_is(n->in[k], 0) && never_negative_zero(n->in[1 - k])) return n->in[1 - k];
  return NULL;
}

Node *rule_cast_same(Graph *g, Node *n) {
  (void)g;
  return n->prim == P_CAST && n->in[0]->dtype == n->dtype ? n->in[0] : NULL;
}

/* Bits of magnitude that a type holds exactly. */
static int exact_bits(DType t) {
  static const int bits[DT_N] = {
      [DT_BOOL] = 1,   [DT_UINT8] = 8,    [DT_INT8] = 7,     [DT_INT16] = 15,   [DT_INT32] = 31,
      [DT_INT64] = 63, [DT_FLOAT16] = 11, [DT_BFLOAT16] = 8, [DT_FLOAT32] = 24, [DT_FLOAT64] = 53};
  return bits[t];
}

/* Does type `to` hold every value of type `from`? */
static bool holds(DType from, DType to) {
  if (from == to) return true;
  bool ff = dtype_is_float(from), tf = dtype_is_float(to);
  if (ff) return tf && from != DT_FLOAT64 && to != DT_FLOAT16 && to != DT_BFLOAT16;
  if (from != DT_BOOL && from != DT_UINT8 && to == DT_UINT8) return false;
  return to != DT_BOOL && exact_bits(from) <= exact_bits(to);
}

Node *rule_cast_cast(Graph *g, Node *n) {
  if (n->prim != P_CAST || n->in[0]->prim != P_CAST) return NULL;
  Node *x = n->in[0]->in[0];
  DType mid = n->in[0]->dtype;
  if (!holds(x->dtype, mid)) return NULL;
  /* integers wrap, floating types saturate on the way to a narrower integer */
  bool same_way = dtype_is_float(mid) == dtype_is_float(x->dtype) || dtype_is_float(n->dtype) ||
                  n->dtype == DT_BOOL || x->dtype == DT_BOOL;
  return same_way ? g_cast(g, x, n->dtype) : NULL;
}

/* Does the value end in a contraction or reduction, with maps behind it? */
static bool ends_in_core(const Node *n) {
  const Node *stack[32];
  int top = 0;
  stack[top++] = n;
  for (int steps = 0; top > 0 && steps < 64; steps++) {
    const Node *x = stack[--top];
    if (x->prim == P_CONTRACT || prim_is_reduce(x->prim)) return true;
    for (int k = 0; k < x->n_in && prim_is_map(x->prim) && top < 32; k++) stack[top++] = x->in[k];
  }
  return false;
}

/* A reshape of a core's result that has several uses, all of them in the expression that ends at n (x times a function of x, such
 * as gelu): what it reshapes; else NULL. */
static Node *reshape_inside(const Node *n) {
  const Node *stack[32], *r = NULL;
  int top = 0, uses = 0;
  stack[top++] = n;
  for (int steps = 0; top > 0; steps++) {
    const Node *x = stack[--top];
    for (int k = 0; k < x->n_in; k++) {
      const Node *y = x->in[k];
      if (y->prim == P_RESHAPE && y->n_uses > 1 && !r && y->in[0]->n_uses == 1 &&
          ends_in_core(y->in[0]))
        r = y;
      if (y == r) uses++;
      bool inside = prim_is_map(y->prim) && y->n_uses == 1;
      if (inside && (top == 32 || steps == 32)) return NULL;
      if (inside) stack[top++] = y;
    }
  }
  return r && uses == r->n_uses ? r->in[0] : NULL;
}

Node *rule_map_reshape(Graph *g, Node *n) {
  Node *c = NULL, *in[3];
  if (!prim_is_map(n->prim)) return NULL;
  for (int k = 0; k < n->n_in && !c; k++) {
    const Node *r = n->in[k];
    if (r->prim != P_RESHAPE) continue;
    /* what has other uses is stored in its own shape, and reshaping it costs nothing */
    bool only = r->n_uses == 1 && r->in[0]->n_uses == 1;
    if (only ? prim_is_map(r->in[0]->prim) || ends_in_core(r->in[0])
             : unit_reshape(r) && ends_in_core(r->in[0]))
      c = r->in[0];
  }
  if (!c) c = reshape_inside(n);
  if (!c) return NULL;
  for (int k = 0; k < n->n_in; k++) {
    in[k] = reshape_into(g, n->in[k], c->rank, c->dims, true);
    if (!in[k]) return NULL;
  }
  Node *r = g_node(g, n->prim, n->dtype, c->rank, c->dims, n->n_in, in);
  return g_reshape(g, r, n->rank, n->dims);
}

Node *rule_map_expand(Graph *g, Node *n) {
  Node *v = NULL, *in[3];
  if (!prim_is_map(n->prim)) return NULL;
  for (int k = 0; k < n->n_in; k++) {
    Node *x = n->in[k];
    if (x->prim == P_CONST) continue;
    if (x->prim != P_VIEW) return NULL;
    if (!v) v = x;
    const Node *a = v->in[0], *b = x->in[0];
    if (!node_same_shape(a, b) || !aff_same(v->map[0], x->map[0], a->rank)) return NULL;
  }
  if (!v || !view_total(v) || node_numel(v->in[0]) >= node_numel(n)) return NULL;
  const Node *like = v->in[0];
  for (int k = 0; k < n->n_in; k++)
    in[k] = n->in[k]->prim == P_VIEW ? n->in[k]->in[0]
                                     : reshape_const(g, n->in[k], like->rank, like->dims);
  Node *r = g_node(g, n->prim, n->dtype, like->rank, like->dims, n->n_in, in);
  return g_view(g, r, n->rank, n->dims, v->map[0], 0);
}

/* ---- concatenations ---- */

/* Elements at..at+size-1 along an axis of what spreads a smaller tensor, or of a constant; NULL: neither. */
static Node *spread_part(Graph *g, Node *x, int axis, int64_t at, const int64_t *dims) {
  AffDim map[KL_RANK];
  if (x->prim == P_CONST) return reshape_const(g, x, x->rank, dims);
  for (int d = 0; d < x->rank; d++) map[d] = aff_loop(d);
  map[axis].off = at;
  return g_view(g, x, x->rank, dims, map, 0);
}

static bool spreads_small(const Node *x) {
  return x->prim == P_CONST || (x->prim == P_VIEW && node_numel(x->in[0]) < node_numel(x));
}

Node *rule_map_concat(Graph *g, Node *n) {
  enum { MOST = 48 };
  Node *parts[MOST], *in[3];
  int side = -1;
  for (int k = 0; prim_is_map(n->prim) && k < n->n_in; k++) {
    bool joins = n->in[k]->prim == P_CONCAT && n->in[k]->n_uses == 1;
    if (joins ? side >= 0 : !spreads_small(n->in[k])) return NULL;
    if (joins) side = k;
  }
  if (side < 0 || n->in[side]->n_in > MOST) return NULL;
  const Node *c = n->in[side];
  int64_t at = 0;
  for (int j = 0; j < c->n_in; at += c->in[j++]->dims[c->i]) {
    Node *x = c->in[j];
    for (int k = 0; k < n->n_in; k++)
      in[k] = k == side ? x : spread_part(g, n->in[k], (int)c->i, at, x->dims);
    parts[j] = g_node(g, n->prim, n->dtype, x->rank, x->dims, n->n_in, in);
    parts[j]->op = n->op;
  }
  return g_concat(g, c->n_in, parts, (int)c->i);
}

/* ---- views ---- */

Node *rule_view_identity(Graph *g, Node *n) {
  (void)g;
  if (n->prim != P_VIEW) return NULL;
  view_canon(n->map[0], n->in[0]->rank, n->dims);
  if (!node_same_shape(n, n->in[0])) return NULL;
  for (int d = 0; d < n->rank; d++) {
    const AffDim *m = &n->map[0][d];
    bool one = n->dims[d] == 1 && m->l0 < 0 && m->l1 < 0 && m->off == 0;
    if (!one && !aff_is_loop(m, d)) return NULL;
  }
  return n->in[0];
}

Node *rule_view_const(Graph *g, Node *n) {
  if (n->prim != P_VIEW || n->in[0]->prim != P_CONST) return NULL;
  bool total = view_total(n);
  if (total) n->f = 0; /* never read: makes equal views look equal */
  return total || const_is(n->in[0], n->f) ? reshape_const(g, n->in[0], n->rank, n->dims) : NULL;
}

static Node *compose(Graph *g, Node *n, Node *x, const AffDim *map, double f) {
  const Node *y = n->in[0];
  AffDim out[KL_RANK];
  double fill = n->f;
  ViewMap in = {x->rank, y->rank, x->dims, y->dims, map, f};
  if (view_total(n)) n->f = 0;
  if (!view_compose(&in, n->map[0], n->dims, &fill, out)) return NULL;
  view_canon(out, x->rank, n->dims);
  return g_view(g, x, n->rank, n->dims, out, fill);
}

Node *rule_view_view(Graph *g, Node *n) {
  if (n->prim != P_VIEW || n->in[0]->prim != P_VIEW) return NULL;
  const Node *y = n->in[0];
  return compose(g, n, y->in[0], y->map[0], y->f);
}

Node *rule_view_reshape(Graph *g, Node *n) {
  if (n->prim != P_VIEW || !unit_reshape(n->in[0])) return NULL;
  const Node *y = n->in[0];
  Node *x = y->in[0];
  AffDim map[KL_RANK];
  for (int d = 0, l = 0; d < x->rank; d++) {
    if (x->dims[d] == 1) {
      map[d] = aff_const(0);
      continue;
    }
    while (y->dims[l] == 1) l++;
    map[d] = aff_loop(l++);
  }
  return compose(g, n, x, map, 0);
}

Node *rule_reshape_view(Graph *g, Node *n) {
  if (n->prim != P_RESHAPE || n->in[0]->prim != P_VIEW) return NULL;
  return view_reshape(g, n->in[0], n->rank, n->dims);
}

Node *rule_reshape_reshape(Graph *g, Node *n) {
  if (n->prim != P_RESHAPE || n->in[0]->prim != P_RESHAPE) return NULL;
  return g_reshape(g, node_base(n), n->rank, n->dims);
}

Node *rule_reshape_same(Graph *g, Node *n) {
  (void)g;
  return n->prim == P_RESHAPE && node_same_shape(n, n->in[0]) ? n->in[0] : NULL;
}

Node *rule_reshape_const(Graph *g, Node *n) {
  if (n->prim != P_RESHAPE || n->in[0]->prim != P_CONST) return NULL;
  return reshape_const(g, n->in[0], n->rank, n->dims);
}

/* ---- reductions ---- */

Node *rule_reduce_ones(Graph *g, Node *n) {
  if (!prim_is_reduce(n->prim)) return NULL;
  Node *x = n->in[0];
  uint32_t axes = (uint32_t)n->i;
  for (int d = 0; d < x->rank; d++)
    if (x->dims[d] == 1) axes &= ~(1u << d);
  if (axes == (uint32_t)n->i) return NULL;
  if (axes && n->prim == P_ARGMAX) return g_argmax(g, x, axes, true, n->dtype);
  if (axes) return g_reduce(g, n->prim, x, axes, true);
  return n->prim == P_ARGMAX ? g_full_int(g, n->dtype, 0, n->rank, n->dims) : x;
}

Node *rule_reduce_reduce(Graph *g, Node *n) {
  if (!prim_is_reduce(n->prim) || n->prim == P_ARGMAX) return NULL;
  const Node *y = n->in[0];
  if (y->prim != n->prim || y->n_uses != 1) return NULL;
  return g_reduce(g, n->prim, y->in[0], (uint32_t)(n->i | y->i), true);
}

/* The axes of x that the dimensions of its reshape marked in `axes` are. */
static uint32_t axes_through(const Node *reshape, uint32_t axes) {
  const Node *x = reshape->in[0];
  uint32_t own = 0;
  for (int d = 0, e = 0; d < reshape->rank; d++) {
    if (reshape->dims[d] == 1) continue;
    while (x->dims[e] == 1) e++;
    own |= (axes >> d & 1) << e++;
  }
  return own;
}

Node *rule_reduce_reshape(Graph *g, Node *n) {
  if (!prim_is_reduce(n->prim) || !unit_reshape(n->in[0]) || !ends_in_core(n->in[0]->in[0]))
    return NULL;
  Node *x = n->in[0]->in[0];
  uint32_t axes = axes_through(n->in[0], (uint32_t)n->i);
  if (!axes) return NULL;
  Node *r = n->prim == P_ARGMAX ? g_argmax(g, x, axes, true, n->dtype)
                                : g_reduce(g, n->prim, x, axes, true);
  return g_reshape(g, r, n->rank, n->dims);
}

/* ---- contractions ---- */

/* One operand's view may go into the contraction's map: every dimension of x at most shifted, each loop of the view used,
 * and padding only where the contraction slides a window. */
static bool plain_view(const Node *n, int side, const Node *v) {
  unsigned used = 0;
  const Node *x = v->in[0];
  for (int d = 0; d < x->rank; d++) {
    const AffDim *m = &v->map[0][d];
    int l = m->l0 >= 0 ? m->l0 : m->l1;
    if (m->div != 1 || (m->l0 >= 0 && m->l1 >= 0)) return false;
    bool total = aff_total(m, v->dims, x->dims[d]);
    if (l < 0) {
      if (!total) return false;
      continue;
    }
    const AffDim *outer = &n->map[side][l];
    if (m->c0 + m->c1 != 1 || (used >> l & 1)) return false;
    if (!total && (outer->l0 < 0 || outer->l1 < 0 || memcmp(&v->f, &(double){0}, sizeof v->f)))
      return false;
    used |= 1u << l;
  }
  for (int l = 0; l < v->rank; l++)
    if (v->dims[l] != 1 && !(used >> l & 1)) return false;
  return true;
}

/* Dimensions of size 1 that a view reads at 0 are read at a loop of extent 1 instead, so that the contraction keeps the form
 * that backends know. */
static void name_ones(const Node *v, AffDim *map) {
  const Node *x = v->in[0];
  unsigned used = 0;
  for (int d = 0; d < x->rank; d++)
    if (map[d].l0 >= 0) used |= 1u << map[d].l0;
  for (int d = 0; d < x->rank; d++) {
    bool plain = x->dims[d] == 1 && map[d].l0 < 0 && map[d].l1 < 0 && map[d].off == 0;
    for (int k = 0; plain && k < v->rank; k++) {
      int l = (d + k) % v->rank;
      if (v->dims[l] != 1 || (used >> l & 1)) continue;
      map[d] = aff_loop(l);
      used |= 1u << l;
      plain = false;
    }
  }
}

Node *rule_contract_view(Graph *g, Node *n) {
  if (n->prim != P_CONTRACT) return NULL;
  for (int side = 0; side < 2; side++) {
    Node *v = n->in[side];
    if (v->prim != P_VIEW || !plain_view(n, side, v)) continue;
    Node *x = v->in[0], *in[2] = {n->in[0], n->in[1]};
    AffDim out[KL_RANK], own[KL_RANK], *maps[2] = {n->map[0], n->map[1]};
    double fill = 0;
    if (x->rank) memcpy(own, v->map[0], (size_t)x->rank * sizeof *own);
    name_ones(v, own);
    ViewMap inner = {x->rank, v->rank, x->dims, v->dims, own, v->f};
    if (!view_compose(&inner, n->map[side], n->ext, &fill, out)) continue;
    in[side] = x;
    maps[side] = out;
    return g_contract(g, in[0], in[1], n->rank, n->n_loops, n->ext, maps[0], maps[1]);
  }
  return NULL;
}

/* The only dimension of the other operand that loop l moves, which it walks through as it is; -1: it moves more than that and
 * dimension d of operand x. */
static int walked_by(const Node *n, int l, int x, int d) {
  int e = -1;
  for (int k = 0; k < 2; k++)
    for (int i = 0; i < n->in[k]->rank; i++) {
      if ((k == x && i == d) || (n->map[k][i].l0 != l && n->map[k][i].l1 != l)) continue;
      if (k == x || e >= 0 || !aff_is_loop(&n->map[k][i], l)) return -1;
      e = i;
    }
  return e < 0 || n->in[!x]->dims[e] != n->ext[l] ? -1 : e;
}

/* Dimension d of operand x at m, whose first term is of a summed loop: the sum over what it walks through. Of a dimension of
 * size 1 that is one term. */
static Node *sum_divided(Graph *g, Node *n, int x, int d, const AffDim *m) {
  int l = m->l0, e;
  bool one = n->in[x]->dims[d] == 1;
  if ((m->div == 1 && !one) || l < n->rank || l == m->l1 || (m->c0 != 1 && m->c0 != -1))
    return NULL;
  /* of positions, not of taps, whose residue classes backends know */
  if (!one && m->l1 >= 0 && n->ext[m->l1] >= n->ext[l]) return NULL;
  if (n->in[x]->dims[d] >= n->ext[l] || (e = walked_by(n, l, x, d)) < 0) return NULL;
  AffDim map[2][KL_RANK],
      to = {m->l1, (int8_t)l, -m->c0 * m->c1, m->c0 * m->div, -m->c0 * m->off, 1};
  int64_t ext[KL_LOOPS];
  if (one)
    to = (AffDim){m->l1, -1, to.c0, 0, to.off, 1};
  else if (m->l1 < 0 || m->l1 > l)
    to = (AffDim){to.l1, to.l0, to.c1, to.c0, to.off, 1};
  for (int k = 0; k < 2; k++) memcpy(map[k], n->map[k], (size_t)n->in[k]->rank * sizeof *map[k]);
  memcpy(ext, n->ext, (size_t)n->n_loops * sizeof *ext);
  map[x][d] = aff_loop(l);
  map[!x][e] = to;
  ext[l] = n->in[x]->dims[d];
  return g_contract(g, n->in[0], n->in[1], n->rank, n->n_loops, ext, map[0], map[1]);
}

Node *rule_contract_divided(Graph *g, Node *n) {
  Node *to = NULL;
  for (int x = 0; n->prim == P_CONTRACT && x < 2; x++)
    for (int d = 0; d < n->in[x]->rank && !to; d++) {
      AffDim m = n->map[x][d], turned = {m.l1, m.l0, m.c1, m.c0, m.off, m.div};
      to = sum_divided(g, n, x, d, &m);
      if (!to) to = sum_divided(g, n, x, d, &turned);
    }
  return to;
}

/* Are all dimensions of both operands loops as they are: a matrix product? */
static bool is_product(const Node *c) {
  for (int x = 0; x < 2; x++)
    for (int d = 0; d < c->in[x]->rank; d++)
      if (!aff_is_loop(&c->map[x][d], c->map[x][d].l0)) return false;
  return true;
}

Node *rule_view_contract(Graph *g, Node *n) {
  const Node *c = n->prim == P_VIEW ? n->in[0] : NULL;
  if (!c || c->prim != P_CONTRACT || c->n_uses != 1 || c->rank != n->rank || !is_product(c))
    return NULL;
  int to[KL_LOOPS];
  int64_t ext[KL_LOOPS];
  unsigned used = 0;
  for (int d = 0; d < c->rank; d++) {
    const AffDim *m = &n->map[0][d];
    to[d] = c->dims[d] == 1 ? d : m->l0;
    if (c->dims[d] == 1 ? n->dims[d] != 1 : m->l0 < 0 || !aff_is_loop(m, m->l0)) return NULL;
    if (n->dims[to[d]] != c->dims[d] || used >> to[d] & 1) return NULL;
    used |= 1u << to[d];
  }
  if (c->rank == 0 || to[c->rank - 1] != c->rank - 1) return NULL; /* rows stay whole */
  AffDim map[2][KL_RANK];
  for (int l = 0; l < c->n_loops; l++) ext[l < c->rank ? to[l] : l] = c->ext[l];
  for (int x = 0; x < 2; x++)
    for (int d = 0; d < c->in[x]->rank; d++) {
      int l = c->map[x][d].l0;
      map[x][d] = aff_loop(l < c->rank ? to[l] : l);
    }
  return g_contract(g, c->in[0], c->in[1], c->rank, c->n_loops, ext, map[0], map[1]);
}
