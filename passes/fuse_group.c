/* Growing groups. In: roots, each a group of its own. Out: groups merged as far as one kernel can compute them:
 *   contractions  take the maps of their shape that follow them (bias, activation, residual, ...)
 *   rows          reductions over one (shape, axes) and the maps before, between and after them
 *   neighbours    producers and consumers of one domain, then roots of one domain that read the same large tensors,
 *                 then tiny ones
 * A merge is tried on a scratch group: every read must be possible from where it stands (scan), and no path may lead out of
 * the merged group and back in. */
#include "fuse.h"
#include <string.h>

enum {
  MAX_NODES = 256,  /* of one kernel */
  MAX_BUFFERS = 64, /* inputs and roots of one kernel */
  TINY = 64,        /* elements: joined to save launches */
  DEAR = 40         /* operations that are not repeated in every sweep over a row */
};

static bool dims_are(const Node *n, int rank, const int64_t *dims) {
  return n->rank == rank && (!rank || !memcmp(n->dims, dims, (size_t)rank * sizeof *dims));
}

static bool is_row(const Group *k, const Node *n) {
  if (n->rank != k->rank) return false;
  for (int d = 0; d < k->rank; d++)
    if (n->dims[d] != (k->reduce >> d & 1 ? 1 : k->ext[d])) return false;
  return true;
}

static bool is_full(const Group *k, const Node *n) { return dims_are(n, k->rank, k->ext); }

static bool is_sweep(const Group *k, const Node *n) {
  return prim_is_reduce(n->prim) && k->reduce && (uint32_t)n->i == k->reduce &&
         is_full(k, n->in[0]);
}

Group *group_of(Fuse *f, Node *root) {
  Group *k = arena_new_of(f->a, Group);
  const Node *like = root;
  k->kind = root->prim == P_CONTRACT  ? K_CONTRACT
            : root->prim == P_SCATTER ? K_SCATTER
            : root->prim == P_CONCAT  ? K_CONCAT
            : root->prim == P_ARGSORT ? K_SORT
            : root->prim == P_CALL    ? K_CALL
                                      : K_LOOP;
  if (k->kind != K_LOOP) k->core = root;
  if (k->kind == K_LOOP && sweeps_by_itself(f, root)) {
    like = root->in[0];
    k->reduce = (uint32_t)root->i;
  }
  k->rank = like->rank;
  memcpy(k->ext, like->dims, sizeof k->ext);
  vec_add(f->a, &k->roots, root);
  f->owner[root->id] = k;
  return k;
}

/* ---- what a group reads ---- */

typedef struct Scan {
  Fuse *f;
  Group *k;
  const Group *a, *b; /* whose roots are inside */
} Scan;

static void push(Scan *s, Node *n, unsigned at) { vec_add(s->f->a, &s->f->stack, ((Use){n, at})); }

static bool spreads_row(const Group *k, const Node *v) {
  if (!k->reduce || !is_row(k, v->in[0])) return false;
  for (int d = 0; d < k->rank; d++) {
    const AffDim *m = &v->map[0][d];
    bool zero = m->l0 < 0 && m->l1 < 0 && m->off == 0;
    bool one = (k->reduce >> d & 1) || k->ext[d] == 1;
    if (!aff_is_loop(m, d) && !(one && zero)) return false;
    if (aff_is_loop(m, d) && (k->reduce >> d & 1) && k->ext[d] != 1) return false;
  }
  return true;
}

static void read_input(Scan *s, Node *n, unsigned at) {
  unsigned char *seen = &s->f->seen[n->id];
  if (!*seen) vec_add(s->f->a, &s->k->inputs, ((Use){n, 0}));
  *seen |= (unsigned char)at;
}

/* The operands of n, which is computed in the group and read as `at`. */
static void push_operands(Scan *s, Node *n, unsigned at) {
  unsigned to = at;
  if (n == s->k->core || prim_is_reduce(n->prim) || n->prim == P_RESHAPE) to = AT_OTHER;
  if (is_sweep(s->k, n)) to = AT_POINT;
  if (n->prim == P_VIEW) to = at == AT_POINT && spreads_row(s->k, n) ? AT_SPREAD : AT_OTHER;
  for (int i = 0; i < n->n_in; i++)
    push(s, n->in[i], n->prim == P_GATHER && i == 0 ? AT_OTHER : to);
}

/* May a value of the group itself be read as `at`? */
static bool may_read(const Group *k, const Node *n, unsigned at, bool own_root) {
  if (is_sweep(k, n)) return at == AT_ROW || at == AT_SPREAD;
  if (n == k->core) return at == AT_POINT;
  if (!own_root) return true;
  if (is_full(k, n)) return at == AT_POINT || (!k->reduce && at == AT_ROW);
  return is_row(k, n) && (at == AT_ROW || at == AT_SPREAD);
}

static bool computes_again(const Group *k, const Node *n) {
  for (int i = 0; i < k->again.n; i++)
    if (k->again.v[i] == n) return true;
  return false;
}

static bool scan_step(Scan *s, Use u) {
  Fuse *f = s->f;
  Node *b = node_base(u.node);
  if (f->seen[u.node->id] & u.at) return true;
  const Group *o = f->owner[b->id];
  bool stored = node_is_source(b) || o, own = o && (o == s->a || o == s->b);
  if (stored && !own && !computes_again(s->k, u.node)) {
    read_input(s, u.node, u.at);
    return true;
  }
  f->blame = u.node;
  if (own && b != u.node) return false; /* a reshape of what is not in memory yet */
  if (!may_read(s->k, u.node, u.at, own)) return false;
  if (!f->seen[u.node->id]) {
    vec_add(f->a, &s->k->nodes, u.node);
    if (s->k->nodes.n > MAX_NODES && s->a != s->b) return false;
    s->k->has_check |= u.node->prim == P_CHECK;
  }
  f->seen[u.node->id] |= (unsigned char)u.at;
  push_operands(s, u.node, u.at);
  return true;
}

static bool scan_root(Scan *s, Node *r) {
  const Group *k = s->k;
  Fuse *f = s->f;
  bool domain = k->kind == K_LOOP || k->kind == K_CONTRACT, ok = true;
  if (r->prim == P_OUT) {
    vec_add(f->a, &s->k->nodes, r);
    return true;
  }
  if (domain && !is_full(k, r) && !is_row(k, r)) return false;
  push(s, r, !domain || (is_full(k, r) && !is_sweep(k, r)) ? AT_POINT : AT_ROW);
  while (ok && f->stack.n > 0) ok = scan_step(s, f->stack.v[--f->stack.n]);
  f->stack.n = 0;
  return ok;
}

bool scan(Fuse *f, Group *k, const Group *a, const Group *b) {
  Scan s = {f, k, a, b};
  bool ok = true;
  k->nodes.n = k->inputs.n = 0;
  k->has_check = k->writes_state = false;
  for (int i = 0; ok && i < k->roots.n; i++) {
    k->writes_state |= f->state_write[k->roots.v[i]->id];
    ok = scan_root(&s, k->roots.v[i]);
  }
  for (int i = 0; i < k->inputs.n; i++) {
    k->inputs.v[i].at = f->seen[k->inputs.v[i].node->id];
    f->seen[k->inputs.v[i].node->id] = 0;
  }
  for (int i = 0; i < k->nodes.n; i++) f->seen[k->nodes.v[i]->id] = 0;
  return ok;
}

/* ---- merging two groups ---- */

/* The domain that holds both. */
static bool join_domains(const Group *a, const Group *b, Group *to) {
  const Group *big = a, *small = b;
  if (b->reduce && !a->reduce) big = b, small = a;
  to->rank = big->rank;
  to->reduce = big->reduce;
  memcpy(to->ext, big->ext, sizeof to->ext);
  if (big->rank != small->rank) return false;
  bool full = true, row = true;
  for (int d = 0; d < big->rank; d++) {
    full &= small->ext[d] == big->ext[d];
    row &= small->ext[d] == (big->reduce >> d & 1 ? 1 : big->ext[d]);
  }
  if (small->reduce) return full && small->reduce == big->reduce;
  return full || row;
}

/* Does a path lead from what `k` reads to a or b? */
static bool makes_cycle(Fuse *f, const Group *k, const Group *a, const Group *b) {
  const Group *from = k;
  f->search.n = 0;
  f->visit++;
  for (;;) {
    for (int i = 0; i < from->inputs.n; i++) {
      Group *d = f->owner[node_base(from->inputs.v[i].node)->id];
      if (!d || d->visit == f->visit) continue;
      if (d == a || d == b) return true;
      d->visit = f->visit;
      vec_add(f->a, &f->search, d);
    }
    if (f->search.n == 0) return false;
    from = f->search.v[--f->search.n];
  }
}

/* An operand of an epilogue is read at the same index or broadcast. */
static bool broadcasts(const Node *v) {
  int last = -1;
  for (int d = 0; d < v->in[0]->rank; d++) {
    const AffDim *m = &v->map[0][d];
    if (m->l0 < 0 && m->l1 < 0 && m->off == 0 && m->div == 1) continue;
    if (m->l0 <= last || !aff_is_loop(m, m->l0)) return false;
    last = m->l0;
  }
  return view_total(v);
}

/* Does the update of a state go with the sums that make its gradient? If they are short: then it costs much of what they do. It
 * waits for those who read the old state, and so the operands of the sums wait too. */
static bool takes_updates(const Fuse *f, const Node *core) {
  enum { SHORT_SUM = 512 };
  int64_t terms = 1;
  for (int l = core->rank; l < core->n_loops; l++) terms *= core->ext[l];
  return f->g->updates && terms <= SHORT_SUM;
}

static bool good_epilogue(const Fuse *f, const Group *k) {
  bool typed = false;
  for (int i = 0; i < k->nodes.n; i++) {
    const Node *n = k->nodes.v[i];
    bool ok = n == k->core || prim_is_map(n->prim) || prim_info[n->prim].class == 'S' ||
              n->prim == P_CHECK || (n->prim == P_VIEW && broadcasts(n));
    if (!ok) return false;
  }
  for (int i = 0; i < k->roots.n; i++) {
    const Node *r = k->roots.v[i];
    if (r == k->core) continue;
    if (f->state_write[r->id] && !takes_updates(f, k->core)) return false;
    typed |= r->dtype == k->core->dtype;
  }
  return typed;
}

/* Would a dear value be computed again in every sweep? Values of the row shape are computed once. */
static bool repeats_dear_work(const Fuse *f, const Group *k) {
  int sweeps = 0;
  for (int i = 0; i < k->nodes.n; i++) sweeps += is_sweep(k, k->nodes.v[i]);
  for (int i = 0; i < k->roots.n && sweeps > 1; i++) {
    const Node *r = k->roots.v[i];
    if (is_full(k, r) && !is_sweep(k, r) && f->cost[r->id] > DEAR && f->users[r->id].n > 1)
      return true;
  }
  return false;
}

/* Joins b into a if one kernel can compute both and no cycle through others arises. */
static bool try_merge(Fuse *f, Group *a, Group *b) {
  Group *t = &f->trial;
  if (a == b || a->dead || b->dead || b->kind != K_LOOP || !join_domains(a, b, t)) return false;
  if (a->kind != K_LOOP && (a->kind != K_CONTRACT || t->reduce)) return false;
  t->kind = a->kind;
  t->core = a->core;
  t->roots.n = 0;
  for (int i = 0; i < a->roots.n; i++) vec_add(f->a, &t->roots, a->roots.v[i]);
  for (int i = 0; i < b->roots.n; i++) vec_add(f->a, &t->roots, b->roots.v[i]);
  if (!scan(f, t, a, b) || t->inputs.n + t->roots.n > MAX_BUFFERS) return false;
  if (t->kind == K_CONTRACT && !good_epilogue(f, t)) return false;
  if (t->reduce && repeats_dear_work(f, t)) return false;
  if (makes_cycle(f, t, a, b)) return false;
  for (int i = 0; i < b->roots.n; i++) f->owner[b->roots.v[i]->id] = a;
  b->dead = true;
  Group old = *a;
  *a = *t;
  *t = old;
  return true;
}

/* ---- which merges are tried ---- */

static bool reads(const Fuse *f, const Group *k, const Group *producer) {
  for (int i = 0; i < k->inputs.n; i++)
    if (f->owner[node_base(k->inputs.v[i].node)->id] == producer) return true;
  return false;
}

/* Contractions, the last first: of two that are added, the later takes the sum. */
static void take_epilogues(Fuse *f) {
  for (int i = f->groups.n - 1; i >= 0; i--) {
    Group *c = f->groups.v[i];
    if (c->kind != K_CONTRACT) continue;
    bool more = true;
    while (more) {
      more = false;
      for (int j = i + 1; j < f->groups.n; j++) {
        Group *k = f->groups.v[j];
        if (!k->dead && k->kind == K_LOOP && !k->reduce && reads(f, k, c) && try_merge(f, c, k))
          more = true;
      }
    }
    for (int j = 0; j < f->groups.n; j++) { /* what needs no input, such as a dropout mask */
      Group *k = f->groups.v[j];
      if (!k->dead && k->kind == K_LOOP && k->inputs.n == 0 && reads(f, c, k)) try_merge(f, c, k);
    }
  }
}

/* Producers and consumers. */
static bool join_neighbours(Fuse *f) {
  bool merged = false;
  for (int i = 0; i < f->groups.n; i++) {
    Group *k = f->groups.v[i];
    for (int j = 0; !k->dead && k->kind == K_LOOP && j < k->inputs.n; j++) {
      Group *p = f->owner[node_base(k->inputs.v[j].node)->id];
      if (p && p->kind == K_LOOP) merged |= try_merge(f, p, k);
    }
  }
  return merged;
}

/* Do both read one tensor of the full shape at the point? */
static bool share_input(const Group *a, const Group *b) {
  for (int i = 0; i < a->inputs.n; i++) {
    const Node *x = a->inputs.v[i].node;
    if (!(a->inputs.v[i].at & AT_POINT) || !is_full(a, x)) continue;
    for (int j = 0; j < b->inputs.n; j++)
      if (b->inputs.v[j].node == x && (b->inputs.v[j].at & AT_POINT)) return true;
  }
  return false;
}

static bool tiny(const Group *k) { return !k->reduce && numel_of(k->rank, k->ext) <= TINY; }

static bool same_ext(const Group *a, const Group *b) {
  return a->rank == b->rank &&
         (!a->rank || !memcmp(a->ext, b->ext, (size_t)a->rank * sizeof *a->ext));
}

static void join_siblings(Fuse *f, bool only_tiny) {
  for (int i = 0; i < f->groups.n; i++) {
    Group *a = f->groups.v[i];
    if (a->dead || a->kind != K_LOOP || (only_tiny && !tiny(a))) continue;
    for (int j = i + 1; j < f->groups.n; j++) {
      Group *b = f->groups.v[j];
      if (b->dead || b->kind != K_LOOP || !same_ext(a, b)) continue;
      if (only_tiny ? tiny(b) : share_input(a, b)) try_merge(f, a, b);
    }
  }
}

/* ---- what is computed again ---- */

/* The one stored value of x's size that x, computed with few operations, depends on; NULL: none, or several. */
static Node *only_large(const Fuse *f, Node *x) {
  enum { MOST_OPS = 8, SMALL_PART = 16 };
  Node *stack[2 * MOST_OPS + 2], *large = NULL;
  int n = 0, ops = 0;
  stack[n++] = x;
  while (n > 0) {
    Node *v = stack[--n];
    bool stored = v != x && (node_is_source(v) || f->owner[node_base(v)->id]);
    if (v->prim == P_CONST || (stored && node_numel(v) <= node_numel(x) / SMALL_PART)) continue;
    if (stored) {
      if ((large && large != v) || !node_same_shape(v, x)) return NULL;
      large = v;
      continue;
    }
    bool cheap = prim_is_map(v->prim) && v->prim != P_RANDOM && v->prim != P_CHECK;
    if ((!cheap && !(v->prim == P_VIEW && broadcasts(v))) || v->n_in > 2 || ++ops > 2 * MOST_OPS)
      return NULL;
    for (int i = 0; i < v->n_in; i++) stack[n++] = v->in[i];
  }
  return large;
}

static bool has_input(const Group *k, const Node *x, unsigned at) {
  for (int i = 0; i < k->inputs.n; i++)
    if (k->inputs.v[i].node == x && k->inputs.v[i].at & at) return true;
  return false;
}

/* Does a group that goes on from what k stores read x where k does? And does another than k read y? */
static bool read_next(const Fuse *f, const Group *k, const Node *x, const Node *y) {
  bool next = false, other = f->target[y->id];
  for (int i = 0; i < f->groups.n; i++) {
    const Group *g = f->groups.v[i];
    if (g == k || g->dead) continue;
    next |= has_input(g, x, AT_POINT) && reads(f, g, k);
    other |= has_input(g, y, ~0u);
  }
  return next && other;
}

/* A contraction's epilogue that reads y, computed from x alone, reads x instead if the kernel after it does so too: then x is in
 * the cache, and y is not read at all. So the gradient of an activation reads what batch norm normalised. */
static void compute_again(Fuse *f) {
  for (int i = 0; i < f->groups.n; i++) {
    Group *k = f->groups.v[i];
    for (int j = 0; !k->dead && k->kind == K_CONTRACT && j < k->inputs.n; j++) {
      Node *y = k->inputs.v[j].node;
      if (k->inputs.v[j].at != AT_POINT || !is_full(k, y) || !f->owner[y->id]) continue;
      Node *x = only_large(f, y);
      if (!x || x == y || !read_next(f, k, x, y)) continue;
      vec_add(f->a, &k->again, y);
      if (!scan(f, k, k, k) || k->inputs.n + k->roots.n > MAX_BUFFERS || !good_epilogue(f, k)) {
        k->again.n--;
        scan(f, k, k, k);
      } else
        j = -1;
    }
  }
}

void merge_all(Fuse *f) {
  take_epilogues(f);
  while (join_neighbours(f)) {}
  join_siblings(f, false);
  while (join_neighbours(f)) {}
  join_siblings(f, true);
  compute_again(f);
}
