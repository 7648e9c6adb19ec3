/* Attention as loops: weights of queries over keys times values. In: the contraction that makes the scores, and the one that
 * sums values with weights of the scores' shape, over keys or (gradients of k and v) over rows. Out: which loop is which, and by how
 * many elements it moves through each tensor.
 *
 *   scores[outer, row, key]  = sum over depth of q[outer, row, depth] * k[outer, key, depth]
 *   out[outer, row, width]   = sum over keys of weights[outer, row, key] * v[outer, key, width], or
 *   out[outer, key, width]   = sum over rows of weights[outer, row, key] * v[outer, row, width]
 *
 * The order of dimensions in q, k, v and out is any; keys are the last dimension of the scores, rows the one before. */
#include "attention.h"
#include <assert.h>

/* Elements between neighbours of loop l in operand x; for l = -1 where the first one is. */
static int64_t step_of(const Node *n, int x, int l) {
  const Node *in = n->in[x];
  int64_t stride = 1, step = 0;
  for (int d = in->rank - 1; d >= 0; d--) {
    const AffDim *m = &n->map[x][d];
    if (l < 0) step += m->off * stride;
    if (l >= 0 && m->l0 == l) step += m->c0 * stride;
    if (l >= 0 && m->l1 == l) step += m->c1 * stride;
    stride *= in->dims[d];
  }
  return step;
}

static bool moves(const Node *n, int x, int l) {
  for (int d = 0; d < n->in[x]->rank; d++)
    if ((n->map[x][d].l0 == l || n->map[x][d].l1 == l) && n->ext[l] > 1) return true;
  return false;
}

/* Every index is inside, without a division. */
static bool is_plain(const Node *n, int x) {
  for (int d = 0; d < n->in[x]->rank; d++) {
    const AffDim *m = &n->map[x][d];
    int64_t lo = m->off, hi = m->off;
    const int l[2] = {m->l0, m->l1};
    const int64_t c[2] = {m->c0, m->c1};
    for (int i = 0; i < 2; i++)
      if (l[i] >= 0) *(c[i] < 0 ? &lo : &hi) += c[i] * (n->ext[l[i]] - 1);
    if (m->div != 1 || lo < 0 || hi >= n->in[x]->dims[d]) return false;
  }
  return true;
}

static int64_t result_step(const Node *n, int l) {
  int64_t step = 1;
  if (l < 0 || l >= n->rank) return 0;
  for (int d = n->rank - 1; d > l; d--) step *= n->dims[d];
  return step;
}

/* The only loop from..to-1 of more than one step that operand x does not move with; -1: there is none, -2: several. */
static int only_loop(const Node *n, int from, int to, int x) {
  int only = -1;
  for (int l = from; l < to; l++)
    if (n->ext[l] > 1 && (x < 0 || !moves(n, x, l))) only = only == -1 ? l : -2;
  return only;
}

static AttentionLoop loop_of(const Attention *a, int l, const int *in_out) {
  AttentionLoop r = {.ext = a->scores->ext[l]};
  r.q = step_of(a->scores, a->q, l);
  r.k = step_of(a->scores, !a->q, l);
  r.v = in_out[l] < 0 ? 0 : step_of(a->out, !a->weights, in_out[l]);
  r.out = result_step(a->out, in_out[l]);
  return r;
}

/* in_out: by dimension of the scores, the loop of `out` that the weights' dimension is read at; -1: of extent 1. */
static bool weights_loops(Attention *a, int *in_out) {
  const Node *n = a->out;
  unsigned used = 0;
  int keys = a->scores->rank - 1, summed = keys;
  for (int d = 0; d <= keys; d++) {
    const AffDim *m = &n->map[a->weights][d];
    in_out[d] = a->scores->dims[d] == 1 ? -1 : m->l0;
    if (in_out[d] < 0 && a->scores->dims[d] == 1) continue;
    bool plain = m->l0 >= 0 && m->l1 < 0 && m->c0 == 1 && m->off == 0 && m->div == 1;
    if (!plain || n->ext[m->l0] != a->scores->dims[d] || used >> m->l0 & 1) return false;
    used |= 1u << m->l0;
    if (m->l0 >= n->rank && d == keys - 1) summed = d;
  }
  a->over_rows = summed != keys;
  for (int d = 0; d <= keys; d++)
    if (in_out[d] >= 0 && (in_out[d] >= n->rank) != (d == summed)) return false;
  return true;
}

static void fill(Attention *a, const int *in_out, int depth, int width) {
  const Node *s = a->scores, *o = a->out;
  int rows = s->rank - 2, keys = s->rank - 1;
  for (int l = 0; l < rows; l++)
    if (s->ext[l] > 1) a->outer[a->n_outer++] = loop_of(a, l, in_out);
  a->row = loop_of(a, rows, in_out);
  a->key = loop_of(a, keys, in_out);
  a->depth.ext = depth < 0 ? 1 : s->ext[depth];
  a->width.ext = width < 0 ? 1 : o->ext[width];
  if (depth >= 0) a->depth.q = step_of(s, a->q, depth), a->depth.k = step_of(s, !a->q, depth);
  if (width >= 0) a->width.v = step_of(o, !a->weights, width), a->width.out = result_step(o, width);
  a->at.q = step_of(s, a->q, -1);
  a->at.k = step_of(s, !a->q, -1);
  a->at.v = step_of(o, !a->weights, -1);
}

bool attention_of(const Node *scores, const Node *out, int weights, Attention *a) {
  int in_out[KL_RANK] = {0}, keys = scores->rank - 1, rows = keys - 1;
  *a = (Attention){.scores = scores, .out = out, .weights = weights};
  if (scores->rank < 2 || node_numel(scores) == 0 || node_numel(out) == 0) return false;
  if (out->in[weights]->rank != scores->rank || !node_same_shape(out->in[weights], scores))
    return false;
  for (int x = 0; x < 2; x++)
    if (!is_plain(scores, x) || !is_plain(out, x)) return false;
  /* q is the operand that does not move with the keys */
  a->q = scores->ext[keys] > 1 ? moves(scores, 0, keys) : !moves(scores, 0, rows);
  int depth = only_loop(scores, scores->rank, scores->n_loops, -1);
  int sums = only_loop(out, out->rank, out->n_loops, -1);
  int width = only_loop(out, 0, out->rank, weights);
  if (moves(scores, a->q, keys) || moves(scores, !a->q, rows)) return false;
  if (depth == -2 || sums == -2 || width == -2 || !weights_loops(a, in_out)) return false;
  int summed = in_out[a->over_rows ? rows : keys], other = in_out[a->over_rows ? keys : rows];
  if ((sums >= 0 && sums != summed) || (other >= 0 && moves(out, !weights, other))) return false;
  fill(a, in_out, depth, width);
  return a->depth.ext > 0;
}

void attention_of_kernel(const Kernel *k, Attention *a) {
  const Node *scores = NULL;
  int weights = 0;
  for (int i = 0; i < k->nodes.n; i++) {
    const Node *n = k->nodes.v[i];
    if (n->prim == P_CONTRACT && n != k->core) scores = n;
    if (n == k->core->in[1]) weights = 1;
  }
  bool ok = scores && attention_of(scores, k->core, weights, a);
  assert(ok);
  (void)ok;
}

/* Is v a value for each row (of extent 1 along the last axis) at every element of the row? */
static bool spreads_row(const Node *v, const Node *full) {
  int last = full->rank - 1;
  if (v->prim != P_VIEW || v->in[0]->rank != full->rank || v->in[0]->dims[last] != 1) return false;
  for (int d = 0; d <= last; d++) {
    const AffDim *m = &v->map[0][d];
    bool zero = m->l0 < 0 && m->off == 0;
    if (d == last ? !zero : !aff_is_loop(m, d) && !(zero && full->dims[d] == 1)) return false;
  }
  return true;
}

bool attention_softmax(const Node *w, AttentionSoftmax *s) {
  for (int i = 0; i < w->n_in && (w->prim == P_MUL || (w->prim == P_DIV && i == 0)); i++) {
    Node *e = w->in[i], *spread = w->in[1 - i], *sub = e->prim == P_EXP ? e->in[0] : NULL;
    if (!sub || sub->prim != P_SUB || !spreads_row(spread, w) || !spreads_row(sub->in[1], w))
      continue;
    *s = (AttentionSoftmax){e, sub->in[1]->in[0], spread->in[0], w->prim == P_DIV};
    if (s->max->prim == P_RMAX) return true;
  }
  return false;
}
