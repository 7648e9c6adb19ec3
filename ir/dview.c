/* Gradients of VIEW and CONTRACT. Both read an operand x at an affine function of loops:
 *   div_d * index_d = c0*loop[l0] + c1*loop[l1] + off        for every dimension d of x
 * The gradient has a loop for every dimension of x instead. Each equation is solved for one loop, which is then an AffDim
 * of the new loops; loops that no equation was solved for remain and are summed. So the gradient of a strided window is
 * again a strided window, and the gradients of matmul and convolution are contractions over affine maps. Out-of-range
 * values of a solved loop read as 0 because the incoming gradient, or the other operand, is read at it.
 *
 * What cannot be solved so (a diagonal, say): a CONTRACT is cut into a VIEW of the operand and a plain contraction; a VIEW's
 * gradient is scattered by computed indices. */
#include "derive.h"
#include <string.h>

/* How the old loops read in terms of the new: 0..n_x-1 the dimensions of x, then the remaining loops. */
typedef struct Solution {
  int n_x, n_rest, rest[KL_LOOPS];
  AffDim sub[KL_LOOPS];
} Solution;

/* What is to be solved. */
typedef struct System {
  const Node *x;
  const AffDim *map; /* of x */
  int n_loops;
  const int64_t *ext;
  bool fixed[KL_LOOPS]; /* by_elimination is impossible: no other operand would bound the loop */
  bool avoid[KL_LOOPS]; /* second choice */
  bool drop[KL_LOOPS];  /* loops of size 1 now: neither solved for nor summed */
} System;

static int terms(const AffDim *a) { return (a->l0 >= 0) + (a->l1 >= 0); }

static bool reads(const AffDim *a, int l) { return a->l0 == l || a->l1 == l; }

static int n_reads(int rank, const AffDim *map, int l) {
  int n = 0;
  for (int d = 0; d < rank; d++) n += reads(&map[d], l);
  return n;
}

/* Which loop to solve dimension d for: -1 if none is free. */
static int pick(const System *s, int d, const int *solved_by) {
  int l[2] = {s->map[d].l0, s->map[d].l1}, best = -1, best_score = -1;
  for (int k = 0; k < 2; k++) {
    if (l[k] < 0 || solved_by[l[k]] >= 0 || s->fixed[l[k]]) continue;
    int other = k ? 0 : 1;
    bool longer = l[other] < 0 || s->ext[l[k]] > s->ext[l[other]];
    int score = 4 * !s->avoid[l[k]] + 2 * (n_reads(s->x->rank, s->map, l[k]) == 1) + longer;
    if (score > best_score) {
      best = l[k];
      best_score = score;
    }
  }
  return best;
}

static bool fits(int64_t v) { return v >= -INT32_MAX && v <= INT32_MAX; }

/* loop = (div*x_d - c*other - off) / c_loop */
static bool solve_dim(const System *s, int d, int loop, Solution *r) {
  const AffDim *a = &s->map[d];
  bool first = a->l0 == loop;
  int other = first ? a->l1 : a->l0;
  int64_t c = first ? a->c0 : a->c1, co = other < 0 ? 0 : first ? a->c1 : a->c0, off = a->off;
  AffDim to = {(int8_t)d, -1, 0, 0, 0, 1};
  if (c == 0 || other == loop) return false;
  if (other >= 0) {
    const AffDim *o = &r->sub[other];
    if (terms(o) > 1 || o->div != 1 || (o->l0 == d && terms(o))) return false;
    if (!mul_ok(co, o->off, &(int64_t){0}) || !add_ok(off, co * o->off, &off)) return false;
    if (terms(o)) {
      to.l1 = o->l0;
      co *= o->c0;
    } else
      co = 0;
  }
  int sign = c < 0 ? -1 : 1;
  if (!fits(co) || !fits(c) || off == INT64_MIN) return false;
  to.c0 = sign * a->div;
  to.c1 = to.l1 < 0 ? 0 : (int32_t)(-sign * co);
  to.off = -sign * off;
  to.div = (int32_t)(sign * c);
  if (to.l1 < 0 && to.c0 % to.div == 0 && to.off % to.div == 0) {
    to.c0 /= to.div;
    to.off /= to.div;
    to.div = 1;
  }
  r->sub[loop] = to;
  return true;
}

static bool solve(const System *s, Solution *r) {
  int solved_by[KL_LOOPS], loop_of[KL_RANK];
  for (int l = 0; l < s->n_loops; l++) solved_by[l] = -1;
  r->n_x = s->x->rank;
  r->n_rest = 0;
  for (int want = 0; want <= 2; want++) /* the simple equations choose first */
    for (int d = 0; d < s->x->rank; d++) {
      if (terms(&s->map[d]) != want) continue;
      if (want == 0 && s->x->dims[d] > 1) return false;
      if (want == 0 && s->map[d].off != 0 && s->x->dims[d] >= 0) return false;
      loop_of[d] = want ? pick(s, d, solved_by) : -1;
      if (want && loop_of[d] < 0) return false;
      if (want) solved_by[loop_of[d]] = d;
    }
  for (int l = 0; l < s->n_loops; l++) {
    if (s->drop[l])
      r->sub[l] = aff_const(0);
    else if (solved_by[l] < 0) {
      if (r->n_x + r->n_rest >= KL_LOOPS) return false;
      r->sub[l] = aff_loop(r->n_x + r->n_rest);
      r->rest[r->n_rest++] = l;
    }
  }
  for (int want = 1; want <= 2; want++)
    for (int d = 0; d < s->x->rank; d++) {
      if (terms(&s->map[d]) != want) continue;
      int l = loop_of[d], other = s->map[d].l0 == l ? s->map[d].l1 : s->map[d].l0;
      /* an equation with another solved loop must come after it */
      if (other >= 0 && solved_by[other] > d && terms(&s->map[solved_by[other]]) == want)
        return false;
      if (!solve_dim(s, d, l, r)) return false;
    }
  return true;
}

/* a, which reads old loops, in terms of the new ones; false if two terms do not suffice. */
static bool substitute(const AffDim *a, const AffDim *sub, AffDim *to) {
  if (terms(a) == 0) {
    *to = *a;
    return true;
  }
  const AffDim *s = &sub[a->l0];
  if (terms(a) == 1 && (s->div == 1 || a->c0 == 1 || a->c0 == -1)) {
    int64_t c0 = (int64_t)a->c0 * s->c0, c1 = (int64_t)a->c0 * s->c1,
            div = (int64_t)s->div * a->div, off;
    if (!mul_ok(a->off, s->div, &off) || !add_ok(off, a->c0 * s->off, &off) || !fits(c0) ||
        !fits(c1) || !fits(div))
      return false;
    *to = (AffDim){s->l0, s->l1, (int32_t)c0, (int32_t)c1, off, (int32_t)div};
    return true;
  }
  if (terms(a) == 1) return false;
  const AffDim *t = &sub[a->l1];
  if (s->div != 1 || t->div != 1 || terms(s) > 1 || terms(t) > 1 ||
      (terms(s) && terms(t) && s->l0 == t->l0))
    return false;
  int64_t c0 = (int64_t)a->c0 * s->c0, c1 = (int64_t)a->c1 * t->c0,
          off = a->off + a->c0 * s->off + a->c1 * t->off;
  if (!fits(c0) || !fits(c1)) return false;
  *to = (AffDim){s->l0, t->l0, (int32_t)c0, (int32_t)c1, off, a->div};
  if (to->l0 < 0) /* a single term is the first */
    *to = (AffDim){to->l1, -1, to->c1, 0, off, a->div};
  return true;
}

/* ---- VIEW ---- */

/* A view that only drops or adds dimensions of size 1 is a reshape. */
static Node *view_or_reshape(Graph *g, Node *x, int rank, const int64_t *dims, const AffDim *map) {
  int next = 0;
  bool plain = true;
  for (int d = 0; plain && d < x->rank; d++) {
    if (terms(&map[d]) == 0 && map[d].off == 0 && x->dims[d] == 1) continue;
    while (next < rank && dims[next] == 1 && !aff_is_loop(&map[d], next)) next++;
    plain = next < rank && aff_is_loop(&map[d], next) && x->dims[d] == dims[next];
    next++;
  }
  while (plain && next < rank) plain = dims[next++] == 1;
  return plain ? g_reshape(g, x, rank, dims) : g_view(g, x, rank, dims, map, 0);
}

static Node *coordinate(Graph *g, const AffDim *a, const Node *gn) {
  Node *v = g_full_int(g, DT_INT64, a->off, gn->rank, gn->dims);
  int l[2] = {a->l0, a->l1};
  int32_t c[2] = {a->c0, a->c1};
  for (int k = 0; k < 2; k++)
    if (l[k] >= 0)
      v = g_map2(g, P_ADD, v,
                 g_map2(g, P_MUL, g_iota(g, DT_INT64, gn->rank, gn->dims, l[k]),
                        g_full_int(g, DT_INT64, c[k], gn->rank, gn->dims)));
  return v;
}

/* Every element of gn is added to the element of x that the view read there. */
static Node *scatter_view(Graph *g, const Node *x, const AffDim *map, Node *gn) {
  Node *zero = g_full(g, gn->dtype, 0, x->rank, x->dims);
  int64_t n = node_numel(x), stride = 1;
  if (n < 0 || node_numel(gn) < 0) return zero;
  Node *at = g_full_int(g, DT_INT64, 0, gn->rank, gn->dims), *ok = NULL;
  for (int d = x->rank - 1; d >= 0; d--) {
    Node *v = coordinate(g, &map[d], gn);
    Node *div = g_full_int(g, DT_INT64, map[d].div, gn->rank, gn->dims);
    Node *nil = g_full_int(g, DT_INT64, 0, gn->rank, gn->dims), *q = g_map2(g, P_DIV, v, div);
    Node *in =
        g_map2(g, P_MUL, g_map2(g, P_LE, nil, v), g_map2(g, P_EQ, g_map2(g, P_MOD, v, div), nil));
    Node *size = g_full_int(g, DT_INT64, x->dims[d], gn->rank, gn->dims);
    in = g_map2(g, P_MUL, in, g_map2(g, P_LT, q, size));
    ok = ok ? g_map2(g, P_MUL, ok, in) : in;
    at = g_map2(g, P_ADD, at,
                g_map2(g, P_MUL, q, g_full_int(g, DT_INT64, stride, gn->rank, gn->dims)));
    stride *= x->dims[d];
  }
  if (ok) gn = g_select(g, ok, gn, g_full(g, gn->dtype, 0, gn->rank, gn->dims));
  int64_t flat = gn ? node_numel(gn) : 0;
  Node *sum = g_scatter(g, g_reshape(g, zero, 1, &n), g_reshape(g, at, 1, &flat),
                        g_reshape(g, gn, 1, &flat), 0, false);
  return g_reshape(g, sum, x->rank, x->dims);
}

/* Gradient of x from the gradient gn of a view of x through map. */
static Node *map_grad(Graph *g, const Node *x, const AffDim *map, Node *gn) {
  System s = {.x = x, .map = map, .n_loops = gn->rank, .ext = gn->dims};
  Solution r;
  uint32_t unread = 0;
  for (int l = 0; l < gn->rank; l++) {
    s.drop[l] = n_reads(x->rank, map, l) == 0;
    if (s.drop[l] && gn->dims[l] != 1) unread |= 1u << l;
  }
  if (!solve(&s, &r) || r.n_x + r.n_rest > KL_RANK) return scatter_view(g, x, map, gn);
  Node *sum = g_reduce(g, P_RSUM, gn, unread, true);
  int64_t dims[KL_RANK];
  uint32_t rest = 0;
  if (x->rank) memcpy(dims, x->dims, (size_t)x->rank * sizeof *dims);
  for (int k = 0; k < r.n_rest; k++) {
    dims[r.n_x + k] = gn->dims[r.rest[k]];
    rest |= 1u << (r.n_x + k);
  }
  if (!sum) return NULL;
  Node *v = view_or_reshape(g, sum, r.n_x + r.n_rest, dims, r.sub);
  return g_reduce(g, P_RSUM, v, rest, false);
}

Node *view_grad(Graph *g, const Node *n, Node *gn) { return map_grad(g, n->in[0], n->map[0], gn); }

/* ---- CONTRACT ---- */

/* The operand that owns the first result loop that only one reads comes first: g times B for a left matrix, A
 * times g for a right one. */
static Node *contract_of(Graph *g, Node *a, Node *b, int rank, int n_loops, const int64_t *ext,
                         const AffDim *ma, const AffDim *mb) {
  for (int l = 0; l < rank; l++) {
    bool in_a = n_reads(a->rank, ma, l), in_b = n_reads(b->rank, mb, l);
    if (in_a == in_b) continue;
    return in_a ? g_contract(g, a, b, rank, n_loops, ext, ma, mb)
                : g_contract(g, b, a, rank, n_loops, ext, mb, ma);
  }
  return g_contract(g, a, b, rank, n_loops, ext, ma, mb);
}

/* The contraction of gn and the other operand in the loops of a solution; NULL if a map does not fit two terms. */
static Node *rewrite(Graph *g, const Node *n, int operand, Node *gn, const Solution *r,
                     const int64_t *x_dims) {
  Node *other = n->in[1 - operand];
  AffDim mo[KL_RANK];
  int64_t ext[KL_LOOPS];
  for (int d = 0; d < other->rank; d++)
    if (!substitute(&n->map[1 - operand][d], r->sub, &mo[d])) return NULL;
  for (int d = 0; d < r->n_x; d++) ext[d] = x_dims[d];
  for (int k = 0; k < r->n_rest; k++) ext[r->n_x + k] = n->ext[r->rest[k]];
  return contract_of(g, gn, other, r->n_x, r->n_x + r->n_rest, ext, r->sub, mo);
}

/* Without solving: the gradient of a view of the operand that has one dimension for each loop which reads it. */
static Node *contract_by_view(Graph *g, const Node *n, int operand, Node *gn) {
  const Node *x = n->in[operand];
  AffDim map[KL_RANK];
  Solution r = {0};
  int64_t dims[KL_LOOPS];
  for (int l = 0; l < n->n_loops; l++)
    if (n_reads(x->rank, n->map[operand], l)) {
      dims[r.n_x] = n->ext[l];
      r.sub[l] = aff_loop(r.n_x++);
    }
  for (int l = 0; l < n->n_loops; l++)
    if (!n_reads(x->rank, n->map[operand], l)) {
      r.sub[l] = aff_loop(r.n_x + r.n_rest);
      r.rest[r.n_rest++] = l;
    }
  Node *v = r.n_x <= KL_RANK ? rewrite(g, n, operand, gn, &r, dims) : NULL;
  if (!v) {
    err_set(E_OPR_005, "the gradient of a contraction over %d loops of %s is too complex",
            n->n_loops, shape_text(x->dtype, x->rank, x->dims));
    return NULL;
  }
  for (int d = 0; d < x->rank; d++)
    if (!substitute(&n->map[operand][d], r.sub, &map[d])) return NULL;
  return map_grad(g, x, map, v);
}

/* Is loop l bounded without x: by gn, or by a dimension of the other operand that is just this loop? */
static bool bounded(const Node *n, int operand, int l) {
  const Node *x = n->in[operand], *other = n->in[1 - operand];
  if (l < n->rank) return true;
  for (int d = 0; d < other->rank; d++)
    if (aff_is_loop(&n->map[1 - operand][d], l) && other->dims[d] == n->ext[l]) return true;
  for (int d = 0; d < x->rank; d++)
    if (aff_is_loop(&n->map[operand][d], l) && x->dims[d] <= n->ext[l]) return true;
  return false;
}

Node *contract_grad(Graph *g, const Node *n, int operand, Node *gn) {
  const Node *x = n->in[operand], *other = n->in[1 - operand];
  System s = {.x = x, .map = n->map[operand], .n_loops = n->n_loops, .ext = n->ext};
  Solution r;
  for (int l = 0; l < n->n_loops; l++) {
    s.fixed[l] = !bounded(n, operand, l);
    s.avoid[l] = l >= n->rank;
    for (int d = 0; d < other->rank; d++)
      if (reads(&n->map[1 - operand][d], l) && !aff_is_loop(&n->map[1 - operand][d], l))
        s.avoid[l] = true;
  }
  Node *v = NULL;
  if (solve(&s, &r)) v = rewrite(g, n, operand, gn, &r, x->dims);
  return v || err_any() ? v : contract_by_view(g, n, operand, gn);
}
