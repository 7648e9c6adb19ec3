/* Reverse-mode differentiation over primitives. In: outputs with their gradients, and the nodes wanted; out: a gradient
 * for each of those. Nodes that depend on a wanted one are visited from the last back to the first; each has a rule
 * that adds to the gradients of its operands. Only floating types carry gradients. The derivatives are graph nodes
 * themselves, so they can be derived again. */
#include "derive.h"
#include <math.h>
#include <string.h>

typedef struct CallGrads {
  Node *call;
  Node **out; /* gradients of its outputs, NULL = none */
  struct CallGrads *next;
} CallGrads;

typedef struct Derive {
  Graph *g;
  int lo, hi;  /* ids of the nodes looked at */
  bool *leads; /* id - lo: does it depend on a wanted node (or is one)? */
  Node **grad; /* id - lo */
  CallGrads *calls;
} Derive;

/* Adds to the gradients of n's operands; gn is n's gradient. */
typedef void Rule(Derive *d, Node *n, Node *gn);

static bool wants(const Derive *d, const Node *x) {
  return x->id >= d->lo && x->id <= d->hi && d->leads[x->id - d->lo];
}

static bool wants_in(const Derive *d, const Node *n, int k) { return wants(d, n->in[k]); }

static void add_to(Derive *d, Node *x, Node *gx) {
  if (!gx || !wants(d, x)) return;
  Node **sum = &d->grad[x->id - d->lo];
  *sum = *sum ? g_map2(d->g, P_ADD, *sum, gx) : gx;
}

static Node *mul(Derive *d, Node *x, Node *y) { return g_map2(d->g, P_MUL, x, y); }
static Node *scale(Derive *d, Node *x, double c) { return g_map2c(d->g, P_MUL, x, c); }
static Node *zeros(Derive *d, const Node *x) { return g_full(d->g, x->dtype, 0, x->rank, x->dims); }
static Node *is_zero(Derive *d, Node *x) { return g_map2c(d->g, P_EQ, x, 0); }

/* ---- maps ---- */

static void rule_exp(Derive *d, Node *n, Node *gn) { add_to(d, n->in[0], mul(d, gn, n)); }

static void rule_log(Derive *d, Node *n, Node *gn) {
  add_to(d, n->in[0], g_map2(d->g, P_DIV, gn, n->in[0]));
}

static void rule_sqrt(Derive *d, Node *n, Node *gn) {
  add_to(d, n->in[0], g_map2(d->g, P_DIV, scale(d, gn, 0.5), n));
}

/* cos x = sin(x + pi/2) */
static void rule_sin(Derive *d, Node *n, Node *gn) {
  Node *turned = g_map2c(d->g, P_ADD, n->in[0], 1.57079632679489661923);
  add_to(d, n->in[0], mul(d, gn, g_map1(d->g, P_SIN, turned)));
}

static void rule_tanh(Derive *d, Node *n, Node *gn) {
  Node *one = g_full(d->g, n->dtype, 1, n->rank, n->dims);
  add_to(d, n->in[0], mul(d, gn, g_map2(d->g, P_SUB, one, mul(d, n, n))));
}

static void rule_erf(Derive *d, Node *n, Node *gn) {
  Node *x = n->in[0], *e = g_map1(d->g, P_EXP, scale(d, mul(d, x, x), -1));
  add_to(d, x, mul(d, gn, scale(d, e, 1.12837916709551257390))); /* 2/sqrt(pi) */
}

static void rule_cast(Derive *d, Node *n, Node *gn) {
  add_to(d, n->in[0], g_cast(d->g, gn, n->in[0]->dtype));
}

static void rule_add(Derive *d, Node *n, Node *gn) {
  add_to(d, n->in[0], gn);
  add_to(d, n->in[1], gn);
}

static void rule_sub(Derive *d, Node *n, Node *gn) {
  add_to(d, n->in[0], gn);
  if (wants_in(d, n, 1)) add_to(d, n->in[1], scale(d, gn, -1));
}

static void rule_mul(Derive *d, Node *n, Node *gn) {
  if (wants_in(d, n, 0)) add_to(d, n->in[0], mul(d, gn, n->in[1]));
  if (wants_in(d, n, 1)) add_to(d, n->in[1], mul(d, gn, n->in[0]));
}

/* d(x/y)/dy = -(x/y)/y */
static void rule_div(Derive *d, Node *n, Node *gn) {
  Node *q = g_map2(d->g, P_DIV, gn, n->in[1]);
  add_to(d, n->in[0], q);
  if (wants_in(d, n, 1)) add_to(d, n->in[1], scale(d, mul(d, q, n), -1));
}

static void rule_mod(Derive *d, Node *n, Node *gn) {
  add_to(d, n->in[0], gn);
  if (!wants_in(d, n, 1)) return;
  Node *q = g_map1(d->g, P_FLOOR, g_map2(d->g, P_DIV, n->in[0], n->in[1]));
  add_to(d, n->in[1], scale(d, mul(d, gn, q), -1));
}

/* The number that every element of x is, if that is plain to see. */
static bool constant(const Node *x, double *v) {
  while ((x->prim == P_VIEW && x->in[0]->rank == 0) || x->prim == P_RESHAPE) x = x->in[0];
  *v = x->f;
  return x->prim == P_CONST;
}

/* y*x^(y-1), which is 0 for y = 0 whatever x is; x^y*log x, taken as 0 at x = 0. */
static void rule_pow(Derive *d, Node *n, Node *gn) {
  Node *x = n->in[0], *y = n->in[1], *less = g_map2c(d->g, P_SUB, y, 1);
  double c;
  bool known = constant(y, &c);
  if (known && c == 2)
    add_to(d, x, mul(d, gn, scale(d, x, 2)));
  else if (known && c != 0)
    add_to(d, x, mul(d, gn, scale(d, g_map2c(d->g, P_POW, x, c - 1), c)));
  else if (!known && wants(d, x)) {
    Node *slope = mul(d, y, g_map2(d->g, P_POW, x, less));
    add_to(d, x, mul(d, gn, g_select(d->g, is_zero(d, y), zeros(d, n), slope)));
  }
  if (!wants(d, y)) return;
  Node *slope = mul(d, n, g_map1(d->g, P_LOG, x));
  add_to(d, y, mul(d, gn, g_select(d->g, is_zero(d, x), zeros(d, n), slope)));
}

/* All of it to the first operand where it alone is chosen, else all to the second. */
static void rule_choice(Derive *d, Node *n, Node *gn) {
  Node *x = n->in[0], *y = n->in[1];
  Node *first = n->prim == P_MAX ? g_map2(d->g, P_LT, y, x) : g_map2(d->g, P_LT, x, y);
  if (wants(d, x)) add_to(d, x, g_select(d->g, first, gn, zeros(d, n)));
  if (wants(d, y)) add_to(d, y, g_select(d->g, first, zeros(d, n), gn));
}

static void rule_select(Derive *d, Node *n, Node *gn) {
  Node *c = n->in[0];
  if (wants_in(d, n, 1)) add_to(d, n->in[1], g_select(d->g, c, gn, zeros(d, n)));
  if (wants_in(d, n, 2)) add_to(d, n->in[2], g_select(d->g, c, zeros(d, n), gn));
}

/* ---- views, reductions, contractions ---- */

static void rule_view(Derive *d, Node *n, Node *gn) { add_to(d, n->in[0], view_grad(d->g, n, gn)); }

static void rule_reshape(Derive *d, Node *n, Node *gn) {
  add_to(d, n->in[0], g_reshape(d->g, gn, n->in[0]->rank, n->in[0]->dims));
}

static Node *spread(Derive *d, Node *row, const Node *x) {
  return g_expand_to(d->g, row, x->rank, x->dims);
}

static void rule_rsum(Derive *d, Node *n, Node *gn) {
  add_to(d, n->in[0], spread(d, gn, n->in[0]));
}

/* Every element that equals the maximum gets the whole gradient. */
static void rule_rmax(Derive *d, Node *n, Node *gn) {
  Node *x = n->in[0], *is_max = g_map2(d->g, P_EQ, x, spread(d, n, x));
  add_to(d, x, g_select(d->g, is_max, spread(d, gn, x), zeros(d, x)));
}

/* The product of the others: with p the product of the elements that are not 0 and z the count of zeros among the
 * others, it is p / (x or 1) if z = 0, else 0. */
static void rule_rprod(Derive *d, Node *n, Node *gn) {
  Graph *g = d->g;
  Node *x = n->in[0], *nil = is_zero(d, x), *one = g_full(g, x->dtype, 1, x->rank, x->dims);
  Node *safe = g_select(g, nil, one, x), *is0 = g_select(g, nil, one, zeros(d, x));
  Node *p = g_reduce(g, P_RPROD, safe, (uint32_t)n->i, true);
  Node *z = g_reduce(g, P_RSUM, is0, (uint32_t)n->i, true);
  if (!p || !z) return;
  Node *others = g_map2(g, P_SUB, spread(d, z, x), is0);
  Node *rest = g_map2(g, P_DIV, spread(d, p, x), safe);
  rest = g_select(g, is_zero(d, others), rest, zeros(d, x));
  add_to(d, x, mul(d, spread(d, gn, x), rest));
}

static void rule_contract(Derive *d, Node *n, Node *gn) {
  for (int k = 0; k < 2; k++)
    if (wants_in(d, n, k)) add_to(d, n->in[k], contract_grad(d->g, n, k, gn));
}

/* ---- indexing ---- */

/* The indices of a GATHER that takes the same ones in every row, as resizing does; NULL: others. */
static const int64_t *table_of(const Node *n) {
  const Node *t = n->in[1];
  int axis = (int)n->i;
  for (int d = 0; d < n->rank; d++)
    if (n->dims[d] <= 0) return NULL;
  if (t->prim == P_VIEW) {
    for (int d = 0; d < t->in[0]->rank; d++)
      if (t->in[0]->dims[d] != 1 && !aff_is_loop(&t->map[0][d], axis)) return NULL;
    t = t->in[0];
  }
  while (t->prim == P_RESHAPE) t = t->in[0];
  bool whole = t->prim == P_DATA && t->dtype == DT_INT64 && node_numel(t) == n->dims[axis];
  const int64_t *v = whole ? t->data : NULL;
  for (int64_t o = 0; v && o < n->dims[axis]; o++)
    if (v[o] < 0 || v[o] >= n->in[0]->dims[axis]) return NULL;
  return v;
}

/* For every k up to the most places that hold one index: row k of `of` and `is` (n each) says for index i the k-th place of
 * the table that holds it, and true; or false, and a place nearby. */
static void table_places(const int64_t *v, int64_t places, int64_t n, int64_t most, int64_t *of,
                         bool *is) {
  for (int64_t o = 0; o < places; o++) {
    int64_t k = v[o];
    while (is[k]) k += n;
    of[k] = o;
    is[k] = true;
  }
  for (int64_t k = 0; k < most; k++)
    for (int64_t i = 0; i < n; i++)
      if (!is[k * n + i]) of[k * n + i] = k ? of[(k - 1) * n + i] : i ? of[i - 1] : 0;
}

/* A sum over the few places that hold an index, in their order; NULL: some are held too often. */
static Node *gather_grad(Derive *d, const Node *n, Node *gn) {
  enum { MOST = 16 };
  Graph *g = d->g;
  int axis = (int)n->i, rank = n->rank;
  int64_t size = n->in[0]->dims[axis], places = n->dims[axis], most = 1, line[KL_RANK];
  const int64_t *v = table_of(n);
  if (!v) return NULL;
  int64_t *held = arena_array(g->arena, int64_t, size);
  for (int64_t o = 0; o < places; o++)
    if (++held[v[o]] > most) most = held[v[o]];
  if (most > MOST) return NULL;
  int64_t *of = arena_array(g->arena, int64_t, size * most);
  bool *is = arena_array(g->arena, bool, size *most);
  table_places(v, places, size, most, of, is);
  for (int i = 0; i < rank; i++) line[i] = i == axis ? size : 1;
  Node *sum = NULL;
  for (int64_t k = 0; k < most; k++) {
    Node *at = g_data(g, DT_INT64, rank, line, of + k * size, "places");
    Node *x = g_gather(g, gn, g_expand(g, at, rank, n->in[0]->dims), axis);
    bool all = true;
    for (int64_t i = 0; i < size; i++) all &= is[k * size + i];
    Node *here = all ? NULL : g_data(g, DT_BOOL, rank, line, is + k * size, "held");
    if (here) x = g_select(g, here, x, zeros(d, n->in[0]));
    sum = sum ? g_map2(g, P_ADD, sum, x) : x;
  }
  return sum;
}

static void rule_gather(Derive *d, Node *n, Node *gn) {
  Node *gx = gather_grad(d, n, gn);
  if (!gx) gx = g_scatter(d->g, zeros(d, n->in[0]), n->in[1], gn, (int)n->i, false);
  add_to(d, n->in[0], gx);
}

/* Storing: the base has no gradient where it was overwritten, and an update only where it was the last one. */
static void rule_scatter(Derive *d, Node *n, Node *gn) {
  Graph *g = d->g;
  Node *base = n->in[0], *idx = n->in[1], *upd = n->in[2];
  int axis = (int)n->i;
  bool assign = n->ia[0];
  if (wants(d, base))
    add_to(d, base, assign ? g_scatter(g, gn, idx, zeros(d, upd), axis, true) : gn);
  if (!wants(d, upd)) return;
  Node *gu = g_gather(g, gn, idx, axis);
  if (assign) {
    Node *turn = g_iota(g, DT_INT64, upd->rank, upd->dims, axis);
    Node *none = g_full_int(g, DT_INT64, -1, base->rank, base->dims);
    Node *last = g_gather(g, g_scatter(g, none, idx, turn, axis, true), idx, axis);
    gu = g_select(g, g_map2(g, P_EQ, last, turn), gu, zeros(d, upd));
  }
  add_to(d, upd, gu);
}

static void rule_concat(Derive *d, Node *n, Node *gn) {
  int64_t start[KL_RANK] = {0}, step[KL_RANK];
  for (int k = 0; k < n->rank; k++) step[k] = 1;
  for (int k = 0; k < n->n_in; k++) {
    Node *x = n->in[k];
    if (wants(d, x)) add_to(d, x, g_slice(d->g, gn, start, step, x->dims));
    start[n->i] += x->dims[n->i] < 0 ? 0 : x->dims[n->i];
  }
}

/* ---- calls ---- */

static CallGrads *call_grads(Derive *d, Node *call) {
  for (CallGrads *c = d->calls; c; c = c->next)
    if (c->call == call) return c;
  CallGrads *c = arena_new_of(d->g->arena, CallGrads);
  *c = (CallGrads){call, arena_array(d->g->arena, Node *, call_n_out(call)), d->calls};
  return d->calls = c;
}

/* Output 0 is the call itself; its rule runs after those of its OUTs. */
static void rule_out(Derive *d, Node *n, Node *gn) {
  call_grads(d, n->in[0])->out[n->i] = gn;
  if (!d->grad[n->in[0]->id - d->lo]) d->grad[n->in[0]->id - d->lo] = zeros(d, n->in[0]);
}

static void rule_call(Derive *d, Node *n, Node *gn) {
  Graph *g = d->g;
  int n_out = call_n_out(n), m = 0;
  if (n->i || !n->custom->backward) {
    err_set(E_OPR_005, "custom operator %s has no %s", quoted(n->s),
            n->i ? "second derivative" : "backward function");
    return;
  }
  Node **in = arena_array(g->arena, Node *, n->n_in + 2 * n_out), **grads = call_grads(d, n)->out;
  if (dtype_is_float(n->dtype)) grads[0] = gn;
  for (int k = 0; k < n->n_in; k++) in[m++] = n->in[k];
  for (int k = 0; k < n_out; k++) {
    Tensor t;
    call_out(n, k, &t);
    in[m + k] = g_out(g, n, k, t.dtype, t.rank, t.dims);
    in[m + n_out + k] = grads[k] ? grads[k] : g_full(g, t.dtype, 0, t.rank, t.dims);
  }
  const Node *x = n->in[0];
  Node *b = g_call(g, n->custom, true, m + 2 * n_out, in, x->dtype, x->rank, x->dims);
  for (int k = 0; k < n->n_in && b; k++) {
    x = n->in[k];
    Node *gx = g_out(g, b, k, x->dtype, x->rank, x->dims);
    if (dtype_is_float(x->dtype)) add_to(d, n->in[k], gx);
  }
}

/* Primitives without a rule pass nothing on: FLOOR is flat, the others give integers or read none. */
static Rule *const rules[P_N] = {
    [P_EXP] = rule_exp,           [P_LOG] = rule_log,       [P_SQRT] = rule_sqrt,
    [P_SIN] = rule_sin,           [P_TANH] = rule_tanh,     [P_ERF] = rule_erf,
    [P_CAST] = rule_cast,         [P_ADD] = rule_add,       [P_SUB] = rule_sub,
    [P_MUL] = rule_mul,           [P_DIV] = rule_div,       [P_MOD] = rule_mod,
    [P_POW] = rule_pow,           [P_MAX] = rule_choice,    [P_MIN] = rule_choice,
    [P_SELECT] = rule_select,     [P_VIEW] = rule_view,     [P_RESHAPE] = rule_reshape,
    [P_RSUM] = rule_rsum,         [P_RMAX] = rule_rmax,     [P_RPROD] = rule_rprod,
    [P_CONTRACT] = rule_contract, [P_GATHER] = rule_gather, [P_SCATTER] = rule_scatter,
    [P_CONCAT] = rule_concat,     [P_CALL] = rule_call,     [P_OUT] = rule_out,
};

static bool is_wanted(int n_x, Node *const *xs, const Node *n) {
  for (int i = 0; i < n_x; i++)
    if (xs[i] == n) return true;
  return false;
}

/* Marks what depends on a wanted node through floating values; a CALL counts whatever its first output is. */
static void mark_leads(Derive *d, int n_x, Node *const *xs) {
  for (int i = 0; i < n_x; i++) d->leads[xs[i]->id - d->lo] = dtype_is_float(xs[i]->dtype);
  for (int id = d->lo; id <= d->hi; id++) {
    const Node *n = d->g->nodes.v[id];
    if (!rules[n->prim] || (n->prim != P_CALL && !dtype_is_float(n->dtype))) continue;
    for (int k = 0; k < n->n_in && !is_wanted(n_x, xs, n); k++)
      if (wants_in(d, n, k)) d->leads[id - d->lo] = true;
  }
}

bool derive(Graph *g, int n_y, Node *const *ys, Node *const *gys, int n_x, Node *const *xs,
            Node **gxs) {
  Derive d = {.g = g, .lo = INT32_MAX, .hi = -1};
  bool numbered = true;
  for (int i = 0; i < n_x; i++) {
    gxs[i] = NULL;
    if (!xs[i]) return !err_any();
    numbered &= xs[i]->id < g->nodes.n && g->nodes.v[xs[i]->id] == xs[i];
  }
  for (int i = 0; i < n_y; i++) {
    if (!ys[i]) return !err_any();
    numbered &= ys[i]->id < g->nodes.n && g->nodes.v[ys[i]->id] == ys[i];
  }
  if (!numbered) graph_number(g);
  for (int i = 0; i < n_x; i++) d.lo = xs[i]->id < d.lo ? xs[i]->id : d.lo;
  for (int i = 0; i < n_y; i++) d.hi = ys[i]->id > d.hi ? ys[i]->id : d.hi;
  for (int i = 0; i < n_x; i++) d.hi = xs[i]->id > d.hi ? xs[i]->id : d.hi;
  if (n_x == 0 || n_y == 0) return true;
  d.leads = arena_array(g->arena, bool, d.hi - d.lo + 1);
  d.grad = arena_array(g->arena, Node *, d.hi - d.lo + 1);
  mark_leads(&d, n_x, xs);
  for (int i = 0; i < n_y; i++) {
    if (!gys[i] || !wants(&d, ys[i])) continue;
    if (gys[i]->dtype != ys[i]->dtype)
      return err_set(E_TYP_001, "the gradient of %s is %s", dtype_info[ys[i]->dtype].name,
                     dtype_info[gys[i]->dtype].name);
    add_to(&d, ys[i], spread(&d, gys[i], ys[i]));
  }
  for (int id = d.hi; id >= d.lo && !err_any(); id--) {
    Node *n = g->nodes.v[id], *gn = d.grad[id - d.lo];
    if (gn && !is_wanted(n_x, xs, n)) rules[n->prim](&d, n, gn);
  }
  for (int i = 0; i < n_x; i++)
    if (dtype_is_float(xs[i]->dtype)) gxs[i] = d.grad[xs[i]->id - d.lo];
  return !err_any();
}
