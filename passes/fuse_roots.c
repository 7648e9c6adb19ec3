/* Which values of a Graph are kept in memory. In: a Graph with user lists. Out: Fuse.root, for values that must be stored and for
 * candidates: a candidate whose users all end up in its own kernel is not stored after all.
 *
 * Must: targets, cores and their operands, but for those that a concatenation makes in place. Candidates: reductions that make
 * a domain, values with real work that several users or a repeating view would compute again, operands of true reshapes (which
 * then cost nothing), and points where an expression has grown too large. */
#include "fuse.h"

enum {
  CHEAP = 4,        /* recomputed rather than stored, when read by a repeating view */
  CHEAP_SHARED = 3, /* ... when several use it */
  DEEPEST = 48,     /* levels of inlining */
  DEAREST = 2000,   /* operations per element */
  /* Reads of stored values in an expression, each as often as it stands there, and in all that a concatenation makes in place:
   * generated code has at most 256 buffers, and a map has three operands, a concatenation 64. */
  MOST_READS = 80,
  MOST_JOINED = 128
};

/* A kernel of its own kind. */
static bool node_is_core(const Node *n) {
  switch (n->prim) {
  case P_CONTRACT:
  case P_SCATTER:
  case P_CONCAT:
  case P_ARGSORT:
  case P_CALL: return true;
  default: return false;
  }
}

static bool is_row_expand_of(const Node *v, const Node *r) {
  const Node *x = r->in[0];
  if (v->prim != P_VIEW || !node_same_shape(v, x)) return false;
  for (int d = 0; d < x->rank; d++) {
    const AffDim *m = &v->map[0][d];
    bool zero = m->l0 < 0 && m->l1 < 0 && m->off == 0;
    if (!(r->dims[d] == 1 ? zero || aff_is_loop(m, d) : aff_is_loop(m, d))) return false;
  }
  return true;
}

/* Is a small reduction read back at every element that it reduced, possibly after maps? Then it is a sweep of rows. */
static bool spread_back(const Fuse *f, const Node *r) {
  const Node *stack[64];
  int n = 0;
  stack[n++] = r;
  for (int steps = 0; n > 0 && steps < 256; steps++) {
    const Node *x = stack[--n];
    const NodeVec *u = &f->users[x->id];
    for (int i = 0; i < u->n; i++) {
      if (is_row_expand_of(u->v[i], r)) return true;
      if (prim_is_map(u->v[i]->prim) && n < 64) stack[n++] = u->v[i];
    }
  }
  return false;
}

bool sweeps_by_itself(const Fuse *f, const Node *n) {
  if (!prim_is_reduce(n->prim) || node_numel(n) == 0) return false;
  int64_t extent = node_numel(n->in[0]) / node_numel(n);
  return extent > KL_SMALL_REDUCE || spread_back(f, n);
}

/* Rough operations per element; a load is 1. */
static double prim_cost(const Node *n) {
  switch (n->prim) {
  case P_CONST: return 0;
  case P_RANDOM: return 30;
  case P_EXP:
  case P_LOG:
  case P_SIN:
  case P_TANH:
  case P_ERF: return 10;
  case P_POW: return 25;
  case P_DIV:
  case P_MOD:
  case P_SQRT: return 4;
  case P_GATHER: return 2;
  case P_VIEW:
  case P_RESHAPE: return 0;
  default: return 1;
  }
}

static double use_cost(const Fuse *f, const Node *n) {
  return node_is_source(n) || f->root[node_base((Node *)(uintptr_t)n)->id] ? 1 : f->cost[n->id];
}

static int use_loads(const Fuse *f, const Node *n) {
  return node_is_source(n) || f->root[node_base((Node *)(uintptr_t)n)->id] ? 1 : f->loads[n->id];
}

/* Does it spread a much smaller operand? Then what that costs is paid seldom. */
static bool spreads(const Node *n) {
  return n->prim == P_VIEW && node_numel(n->in[0]) <= node_numel(n) / 4;
}

/* Operations per element, as far as they are computed in place. */
static double map_cost(const Fuse *f, const Node *n) {
  if (spreads(n)) return use_cost(f, n->in[0]) > 0;
  double c = prim_cost(n), each = 1;
  if (prim_is_reduce(n->prim) && node_numel(n) > 0)
    each = (double)node_numel(n->in[0]) / (double)node_numel(n);
  for (int k = 0; k < n->n_in; k++) c += each * (use_cost(f, n->in[k]) + (each > 1));
  return c;
}

static void make_root(Fuse *f, Node *n) {
  n = node_base(n);
  if (!node_is_source(n)) f->root[n->id] = true;
}

/* The one map of x's shape through which all that uses x goes, at the end of a few such maps (x times a function of x, such as
 * gelu); NULL: there is none. */
static Node *meets_at(const Fuse *f, Node *x) {
  enum { MOST = 16 };
  Node *in[MOST];
  int n = 0;
  for (Node *first = x; first;) {
    if (n == MOST || f->target[first->id]) return NULL;
    in[n++] = first;
    first = NULL;
    bool more = false;
    for (int i = 0; i < n; i++)
      for (int j = 0; j < f->users[in[i]->id].n; j++) {
        Node *u = f->users[in[i]->id].v[j];
        bool inside = false;
        for (int k = 0; k < n; k++) inside |= u == in[k];
        if (inside || u == first) continue;
        if (!prim_is_map(u->prim) || !node_same_shape(u, x)) return NULL;
        more |= first != NULL;
        if (!first || u->id < first->id) first = u;
      }
    if (!more) return first;
  }
  return NULL;
}

/* The maps of its shape that follow a contraction and that alone: their end is stored, so that they become the epilogue
 * rather than part of what comes next. */
static void end_epilogue(Fuse *f, Node *c) {
  Node *x = c;
  for (Node *u; (u = meets_at(f, x));) x = u;
  f->root[x->id] = true;
}

/* Does the view read every element of its operand? */
static bool reads_all(const Node *v) {
  unsigned used = 0;
  for (int d = 0; d < v->in[0]->rank; d++) {
    const AffDim *m = &v->map[0][d];
    int64_t n = v->in[0]->dims[d];
    bool whole = m->l0 >= 0 && m->l1 < 0 && m->div == 1 && v->dims[m->l0] == n &&
                 ((m->c0 == 1 && m->off == 0) || (m->c0 == -1 && m->off == n - 1));
    if (n == 1 && view_total(v)) continue;
    if (!whole || used >> m->l0 & 1) return false;
    used |= 1u << m->l0;
  }
  return node_numel(v) > 0;
}

/* Once all of u is computed, has all of its operand k been? */
static bool needs_all(const Node *u, int k) {
  if (u->prim == P_VIEW) return reads_all(u);
  if (u->prim == P_GATHER) return k == 1 && node_numel(u) > 0 && node_numel(u->in[0]) > 0;
  return true;
}

/* A check that its users would leave out, or do in part, is stored. */
static void force_checks(Fuse *f) {
  bool *whole = arena_array(f->a, bool, f->n); /* is it computed at every element? */
  for (int i = f->n - 1; i >= 0; i--) {
    Node *n = f->g->nodes.v[i];
    whole[i] |= f->root[i];
    if (n->prim == P_CHECK && !whole[i] && node_numel(n) > 0)
      f->target[i] = f->root[i] = whole[i] = true;
    for (int k = 0; k < n->n_in; k++) whole[n->in[k]->id] |= whole[i] && needs_all(n, k);
  }
}

/* May it be computed where its one user, a concatenation, stores it? made_in_place says whether that pays. */
static bool may_join(const Node *n, const Node *x) {
  bool computed = prim_is_map(x->prim) || x->prim == P_VIEW || unit_reshape(x);
  return n->prim == P_CONCAT && x->n_uses == 1 && computed;
}

static void forced(Fuse *f) {
  Graph *g = f->g;
  for (int i = 0; i < g->writes.n; i++) {
    Node *b = node_base(g->writes.v[i].node);
    f->target[b->id] = f->state_write[b->id] = true;
    make_root(f, b);
  }
  for (int i = 0; i < g->fetches.n; i++) {
    Node *b = node_base(g->fetches.v[i].node);
    f->target[b->id] = true;
    make_root(f, b);
  }
  for (int i = 0; i < f->n; i++) {
    Node *n = g->nodes.v[i];
    if (n->prim == P_CHECK && n->n_uses == 0) f->target[i] = f->root[i] = true;
    if (n->prim == P_OUT) f->root[i] = true;
    if (!node_is_core(n)) continue;
    f->root[i] = true;
    if (n->prim == P_CONTRACT) end_epilogue(f, n);
    Node *rows = n->prim == P_SCATTER ? scatter_rows(n) : NULL;
    for (int k = 0; k < n->n_in; k++)
      if (!may_join(n, n->in[k])) make_root(f, k == 1 && rows ? rows : n->in[k]);
  }
  force_checks(f);
}

/* Uses, counted through views and reshapes: they are never worth storing for themselves. */
static int *effective_uses(const Fuse *f) {
  int *uses = arena_array(f->a, int, f->n);
  for (int i = f->n - 1; i >= 0; i--) {
    const Node *n = f->g->nodes.v[i];
    bool through = prim_info[n->prim].class == 'V' && !f->root[i];
    for (int k = 0; k < n->n_in; k++) uses[n->in[k]->id] += through ? uses[i] : 1;
  }
  return uses;
}

/* Do its neighbours lie apart in what it reads? Then a window is read better in the order in which it lies. */
static bool turns(const Node *v) {
  const Node *x = v->in[0];
  int d = x->rank - 1, l = v->rank - 1;
  while (d > 0 && x->dims[d] == 1) d--;
  while (l > 0 && v->dims[l] == 1) l--;
  return d >= 0 && l >= 0 && v->map[0][d].l0 != l && v->map[0][d].l1 != l;
}

/* Is x made by a few maps and views that nothing else uses, of what is stored anyway? */
static bool made_in_place(const Fuse *f, const Node *x) {
  enum { MOST_OPS = 12, MOST_READ = 4 };
  const Node *stack[3 * MOST_OPS];
  int n = 0, ops = 0, reads = 0;
  stack[n++] = x;
  while (n > 0) {
    const Node *v = stack[--n], *b = node_base((Node *)(uintptr_t)v);
    if (v->prim == P_CONST) continue;
    if (node_is_source(b) || f->root[b->id] || spreads(v)) {
      if (++reads > MOST_READ) return false;
      continue;
    }
    bool inside = prim_is_map(v->prim) || v->prim == P_VIEW || unit_reshape(v);
    if (!inside || v->n_uses > 1 || ++ops > MOST_OPS) return false;
    for (int k = 0; k < v->n_in; k++) stack[n++] = v->in[k];
  }
  return true;
}

void choose_roots(Fuse *f) {
  int *depth = arena_array(f->a, int, f->n), *reads = arena_array(f->a, int, f->n);
  forced(f);
  int *uses = effective_uses(f);
  for (int i = 0; i < f->n; i++) {
    Node *n = f->g->nodes.v[i];
    bool view = prim_info[n->prim].class == 'V';
    if (node_is_source(n)) continue;
    for (int k = 0, joined = 0; k < n->n_in; k++) {
      Node *x = n->in[k];
      bool again = (n->prim == P_VIEW && view_repeats(n)) || (n->prim == P_GATHER && k == 0);
      if (again && f->cost[x->id] > CHEAP && x->prim != P_RESHAPE) make_root(f, x);
      bool pooled = prim_is_reduce(node_base(x)->prim) && f->cost[x->id] > CHEAP;
      if (n->prim == P_VIEW && pooled && turns(n)) make_root(f, x);
      if (n->prim == P_RESHAPE && !unit_reshape(n) && f->cost[x->id] > 0) make_root(f, x);
      if (!may_join(n, x)) continue;
      if (made_in_place(f, x) && joined + reads[x->id] <= MOST_JOINED)
        joined += reads[x->id];
      else
        make_root(f, x);
    }
    f->cost[i] = map_cost(f, n);
    for (int k = 0; k < n->n_in; k++) {
      const Node *x = n->in[k];
      f->loads[i] += spreads(n) ? 0 : use_loads(f, x);
      bool stored = node_is_source(x) || f->root[node_base(n->in[k])->id];
      if (!stored && depth[x->id] >= depth[i]) depth[i] = depth[x->id] + 1;
      reads[i] += stored ? 1 : reads[x->id];
    }
    bool shared = uses[i] > 1 && !view && (f->cost[i] > CHEAP_SHARED || f->loads[i] > 1);
    bool large = depth[i] > DEEPEST || f->cost[i] > DEAREST || reads[i] > MOST_READS;
    if (sweeps_by_itself(f, n) || shared || large) make_root(f, n);
  }
}
