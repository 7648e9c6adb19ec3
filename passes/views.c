/* Algebra of affine index maps. A dimension of an operand is read at (c0*loop[l0] + c1*loop[l1] + off) / div; an index that
 * falls outside the operand, or a division that leaves a remainder, reads the fill.
 *
 * Composition: outer reads y at e_k(loops), y is a view that reads x at c0*y[l0] + c1*y[l1] + off. Substituting e for
 * the y[l] gives one map if at most two loops remain per dimension, and if it pads in exactly the same places: where the
 * outer map leaves y, the composed one must leave x (checked at the two ends of each such dimension; maps are monotonic),
 * and only one fill may be in play. */
#include "rewrite.h"
#include <string.h>

/* Smallest and largest numerator over the loops; false on overflow. */
static bool aff_range(const AffDim *d, const int64_t *ext, int64_t *lo, int64_t *hi) {
  *lo = *hi = d->off;
  for (int t = 0; t < 2; t++) {
    int l = t ? d->l1 : d->l0;
    int64_t c = t ? d->c1 : d->c0, span, *end = c < 0 ? lo : hi;
    if (l < 0) continue;
    if (!mul_ok(c, ext[l] - 1, &span) || !add_ok(*end, span, end)) return false;
  }
  return true;
}

bool aff_total(const AffDim *d, const int64_t *ext, int64_t size) {
  int64_t lo, hi;
  if (!aff_range(d, ext, &lo, &hi) || lo < 0 || hi / d->div >= size) return false;
  if (d->div == 1) return true;
  return d->off % d->div == 0 && d->c0 % d->div == 0 && d->c1 % d->div == 0;
}

bool view_total(const Node *v) {
  if (node_numel(v) == 0) return true;
  for (int d = 0; d < v->in[0]->rank; d++)
    if (!aff_total(&v->map[0][d], v->dims, v->in[0]->dims[d])) return false;
  return true;
}

/* Does some dimension of the operand tell where loop l stands? */
static bool tells(const Node *v, int l) {
  for (int d = 0; d < v->in[0]->rank; d++) {
    const AffDim *m = &v->map[0][d];
    int other = m->l0 == l ? m->l1 : m->l0;
    if ((m->l0 == l || m->l1 == l) && (other < 0 || v->dims[other] <= 1)) return true;
  }
  return false;
}

bool view_repeats(const Node *v) {
  unsigned used = 0, ones = 0;
  for (int d = 0; d < v->in[0]->rank; d++) {
    const AffDim *m = &v->map[0][d];
    bool two = m->l0 >= 0 && m->l1 >= 0 && v->dims[m->l0] > 1 && v->dims[m->l1] > 1;
    if (two) { /* windows: without overlap if one step is as long as the other loop, or one loop is known */
      int64_t a = m->c0 < 0 ? -m->c0 : m->c0, b = m->c1 < 0 ? -m->c1 : m->c1;
      bool apart = a >= b ? a >= b * v->dims[m->l1] : b >= a * v->dims[m->l0];
      if (!apart && !tells(v, m->l0) && !tells(v, m->l1)) return true;
    }
    if (m->l0 >= 0) used |= 1u << m->l0;
    if (m->l1 >= 0) used |= 1u << m->l1;
  }
  for (int d = 0; d < v->rank; d++) ones |= (unsigned)(v->dims[d] <= 1) << d;
  return (used | ones) != (1u << v->rank) - 1;
}

bool aff_same(const AffDim *a, const AffDim *b, int n) {
  for (int d = 0; d < n; d++)
    if (a[d].l0 != b[d].l0 || a[d].l1 != b[d].l1 || a[d].c0 != b[d].c0 || a[d].c1 != b[d].c1 ||
        a[d].off != b[d].off || a[d].div != b[d].div)
      return false;
  return true;
}

void view_canon(AffDim *map, int n, const int64_t *ext) {
  for (int d = 0; d < n; d++) {
    AffDim *m = &map[d];
    if (m->l0 >= 0 && (ext[m->l0] == 1 || m->c0 == 0)) m->l0 = -1, m->c0 = 0;
    if (m->l1 >= 0 && (ext[m->l1] == 1 || m->c1 == 0)) m->l1 = -1, m->c1 = 0;
    if (m->l1 >= 0 && (m->l0 < 0 || m->l0 > m->l1)) {
      AffDim was = *m;
      m->l0 = was.l1, m->c0 = was.c1;
      m->l1 = was.l0, m->c1 = was.c0;
    }
    if (m->l0 < 0) m->c0 = 0;
    if (m->l1 < 0) m->c1 = 0;
  }
}

/* A sum over loops, at most two of them, while it is put together. */
typedef struct Sum {
  int n;
  int loop[2];
  int64_t c[2], off, div;
} Sum;

static bool sum_add(Sum *s, int loop, int64_t c) {
  if (loop < 0 || c == 0) return true;
  for (int i = 0; i < s->n; i++)
    if (s->loop[i] == loop) return add_ok(s->c[i], c, &s->c[i]);
  if (s->n == 2) return false;
  s->loop[s->n] = loop;
  s->c[s->n++] = c;
  return true;
}

static bool sum_done(const Sum *s, AffDim *out) {
  for (int i = 0; i < s->n; i++)
    if (s->c[i] > INT32_MAX || s->c[i] < -INT32_MAX) return false;
  if (s->div > INT32_MAX) return false;
  *out = aff_const(s->off);
  out->div = (int32_t)s->div;
  if (s->n > 0) out->l0 = (int8_t)s->loop[0], out->c0 = (int32_t)s->c[0];
  if (s->n > 1) out->l1 = (int8_t)s->loop[1], out->c1 = (int32_t)s->c[1];
  return true;
}

/* c * e added to s. A division in e moves to the whole, which must then hold nothing else: only for c = +-1. */
static bool sum_substitute(Sum *s, int64_t c, const AffDim *e, bool alone) {
  int64_t a, b, off;
  if (e->div != 1) {
    if (!alone || (c != 1 && c != -1)) return false;
    if (!mul_ok(s->off, e->div, &s->off) || !mul_ok(s->div, e->div, &s->div)) return false;
  }
  return mul_ok(c, e->c0, &a) && mul_ok(c, e->c1, &b) && mul_ok(c, e->off, &off) &&
         add_ok(s->off, off, &s->off) && sum_add(s, e->l0, a) && sum_add(s, e->l1, b);
}

/* Where y's index k is below 0 or not below its size, does some dimension of x miss too? */
static bool detects(const ViewMap *in, int k) {
  for (int d = 0; d < in->x_rank; d++) {
    const AffDim *m = &in->map[d];
    int64_t c, below, above;
    if (m->l0 == k && m->l1 < 0)
      c = m->c0;
    else if (m->l1 == k && m->l0 < 0)
      c = m->c1;
    else
      continue;
    if (c == 0 || !mul_ok(c, in->dims[k], &above) || !add_ok(above, m->off, &above)) continue;
    below = m->off - c;
    int64_t end = in->x_dims[d] * m->div;
    if (c > 0 ? below < 0 && above >= end : below >= end && above < 0) return true;
  }
  return false;
}

bool view_compose(const ViewMap *in, const AffDim *outer, const int64_t *ext, double *f,
                  AffDim *out) {
  bool in_total = true, out_total = true, total[KL_RANK];
  for (int d = 0; d < in->x_rank; d++) in_total &= aff_total(&in->map[d], in->dims, in->x_dims[d]);
  for (int k = 0; k < in->rank; k++) {
    total[k] = aff_total(&outer[k], ext, in->dims[k]);
    out_total &= total[k];
    if (!total[k] && !detects(in, k)) return false;
  }
  if (!in_total && !out_total && memcmp(&in->f, f, sizeof *f)) return false;
  for (int d = 0; d < in->x_rank; d++) {
    const AffDim *m = &in->map[d];
    Sum s = {.off = m->off, .div = m->div};
    bool use0 = m->l0 >= 0 && m->c0, use1 = m->l1 >= 0 && m->c1;
    if (use0 && !sum_substitute(&s, m->c0, &outer[m->l0], !use1)) return false;
    if (use1 && !sum_substitute(&s, m->c1, &outer[m->l1], !use0)) return false;
    if (!sum_done(&s, &out[d])) return false;
  }
  if (!in_total) *f = in->f;
  return true;
}

/* loop l of a view of a's dimensions as a sum over the loops of `dims`: row-major within its group. */
static bool sum_regroup(Sum *s, int64_t c, const Node *v, int l, const int8_t *ga, int rank,
                        const int64_t *dims, const int8_t *gb) {
  int64_t stride = c;
  if (ga[l] < 0) return true;
  for (int k = 0; k < v->rank; k++)
    if (k != l && ga[k] == ga[l]) return false;
  for (int d = rank - 1; d >= 0; d--) {
    if (gb[d] != ga[l]) continue;
    if (!sum_add(s, d, stride) || !mul_ok(stride, dims[d], &stride)) return false;
  }
  return true;
}

Node *view_reshape(Graph *g, Node *v, int rank, const int64_t *dims) {
  int8_t ga[KL_RANK], gb[KL_RANK];
  AffDim map[KL_RANK];
  Node *x = v->in[0];
  if (!dims_group(v, rank, dims, ga, gb)) return NULL;
  for (int d = 0; d < x->rank; d++) {
    const AffDim *m = &v->map[0][d];
    Sum s = {.off = m->off, .div = m->div};
    if (m->l0 >= 0 && !sum_regroup(&s, m->c0, v, m->l0, ga, rank, dims, gb)) return NULL;
    if (m->l1 >= 0 && !sum_regroup(&s, m->c1, v, m->l1, ga, rank, dims, gb)) return NULL;
    if (!sum_done(&s, &map[d])) return NULL;
  }
  return g_view(g, x, rank, dims, map, v->f);
}

enum { RESHAPE_DEPTH = 10 }; /* how far a reshape is pushed */

static Node *push_reshape(Graph *g, Node *n, int rank, const int64_t *dims, bool free_only,
                          int depth) {
  Node *in[3];
  if (n->prim == P_RESHAPE) n = n->in[0];
  if (n->rank == rank && !memcmp(n->dims, dims, (size_t)rank * sizeof *dims)) return n;
  if (n->prim == P_CONST)
    return dtype_is_float(n->dtype) ? g_full(g, n->dtype, n->f, rank, dims)
                                    : g_full_int(g, n->dtype, n->i, rank, dims);
  if (n->prim == P_VIEW) {
    Node *v = view_reshape(g, n, rank, dims);
    if (v || free_only) return v;
  }
  if (!prim_is_map(n->prim) || n->n_uses > 1 || depth == RESHAPE_DEPTH) {
    bool computed = prim_is_map(n->prim) || n->prim == P_CHECK || n->prim == P_GATHER ||
                    n->prim == P_IOTA || n->prim == P_RANDOM;
    return free_only && computed && n->n_uses <= 1 ? NULL : g_reshape(g, n, rank, dims);
  }
  for (int k = 0; k < n->n_in; k++) {
    in[k] = push_reshape(g, n->in[k], rank, dims, free_only, depth + 1);
    if (!in[k]) return NULL;
  }
  Node *r = g_node(g, n->prim, n->dtype, rank, dims, n->n_in, in);
  if (r) r->i = n->i, r->f = n->f, r->op = n->op;
  return r;
}

Node *reshape_into(Graph *g, Node *n, int rank, const int64_t *dims, bool free_only) {
  return push_reshape(g, n, rank, dims, free_only, 0);
}
