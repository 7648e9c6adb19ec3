/* Contractions: builders of CONTRACT for matrix products and convolutions. In: two operands; out: one node with an extent
 * for each loop (first the result's dimensions, then the summed loops) and, for both operands, the address of each
 * dimension from the loops. Orders that the backends may rely on:
 *   matmul  result batch.., m, n;          summed k
 *   conv    result n, [group,] o, space..; summed c, kernel..     the group loop is there only with groups > 1 */
#include "ir.h"
#include <string.h>

static bool same_type(Graph *g, const Node *a, const Node *b) {
  if (a->dtype == b->dtype) return true;
  err_set(E_TYP_001, "%s: operands are %s and %s", g_who(g, P_CONTRACT),
          shape_text(a->dtype, a->rank, a->dims), shape_text(b->dtype, b->rank, b->dims));
  err_help("Insert a cast so that both have one element type.");
  return false;
}

Node *g_contract(Graph *g, Node *a, Node *b, int rank, int n_loops, const int64_t *ext,
                 const AffDim *ma, const AffDim *mb) {
  Node *in[2] = {a, b};
  if (!a || !b || !same_type(g, a, b)) return NULL;
  if (n_loops > KL_LOOPS || n_loops < rank) {
    err_set(E_SHP_002, "%s: a contraction over %d loops; at most %d are allowed",
            g_who(g, P_CONTRACT), n_loops, KL_LOOPS);
    return NULL;
  }
  Node *n = g_node(g, P_CONTRACT, a->dtype, rank, ext, 2, in);
  if (!n) return NULL;
  n->n_loops = n_loops;
  n->ext = arena_dup(g->arena, ext, (size_t)n_loops * sizeof *ext);
  n->map[0] = arena_dup(g->arena, ma, (size_t)a->rank * sizeof *ma);
  n->map[1] = arena_dup(g->arena, mb, (size_t)b->rank * sizeof *mb);
  return n;
}

static bool differ(int64_t a, int64_t b) { return a != b && a >= 0 && b >= 0; }

/* Batch dimensions of one operand: broadcast ones are read at 0. */
static void batch_map(const Node *x, int batch, const int64_t *ext, AffDim *map) {
  int own = x->rank - 2;
  for (int d = 0; d < own; d++) {
    int l = batch - own + d;
    map[d] = x->dims[d] == 1 && ext[l] != 1 ? aff_const(0) : aff_loop(l);
  }
}

Node *g_matmul(Graph *g, Node *a, Node *b, bool ta, bool tb) {
  int64_t ext[KL_LOOPS];
  AffDim map[2][KL_RANK];
  if (!a || !b || !same_type(g, a, b)) return NULL;
  const Node *low = a->rank < b->rank ? a : b;
  if (low->rank < 2) {
    err_set(E_SHP_002, "%s: a matrix product needs at least rank 2, not %s", g_who(g, P_CONTRACT),
            shape_text(low->dtype, low->rank, low->dims));
    return NULL;
  }
  int batch = (a->rank > b->rank ? a->rank : b->rank) - 2, m = batch, n = batch + 1, k = batch + 2;
  for (int d = 0; d < batch; d++) {
    int da = d - (batch - (a->rank - 2)), db = d - (batch - (b->rank - 2));
    int64_t x = da < 0 ? 1 : a->dims[da], y = db < 0 ? 1 : b->dims[db];
    if (differ(x, y) && x != 1 && y != 1) {
      err_set(E_SHP_001, "%s: batch dimensions do not broadcast (%lld vs %lld): %s times %s",
              g_who(g, P_CONTRACT), (long long)x, (long long)y,
              shape_text(a->dtype, a->rank, a->dims), shape_text(b->dtype, b->rank, b->dims));
      return NULL;
    }
    ext[d] = x == 1 || (x < 0 && y != 1) ? y : x;
  }
  const int64_t *sa = a->dims + a->rank - 2, *sb = b->dims + b->rank - 2;
  ext[m] = sa[ta];
  ext[n] = sb[!tb];
  ext[k] = sa[!ta] < 0 ? sb[tb] : sa[!ta];
  if (differ(sa[!ta], sb[tb])) {
    err_set(E_SHP_012, "%s: inner sizes differ (%lld vs %lld): %s%s times %s%s",
            g_who(g, P_CONTRACT), (long long)sa[!ta], (long long)sb[tb],
            shape_text(a->dtype, a->rank, a->dims), ta ? " transposed" : "",
            shape_text(b->dtype, b->rank, b->dims), tb ? " transposed" : "");
    return NULL;
  }
  batch_map(a, batch, ext, map[0]);
  batch_map(b, batch, ext, map[1]);
  AffDim *la = map[0] + a->rank - 2, *lb = map[1] + b->rank - 2;
  la[ta] = aff_loop(m);
  la[!ta] = aff_loop(k);
  lb[tb] = aff_loop(k);
  lb[!tb] = aff_loop(n);
  return g_contract(g, a, b, batch + 2, batch + 3, ext, map[0], map[1]);
}

static int64_t over(int64_t n, int64_t groups) { return n < 0 ? -1 : n / groups; }

/* Ranks, groups and channels. */
static bool conv_check(Graph *g, const Node *x, const Node *w, int n_sp, int64_t groups) {
  const char *who = g_who(g, P_CONTRACT), *xt = shape_text(x->dtype, x->rank, x->dims),
             *wt = shape_text(w->dtype, w->rank, w->dims);
  if (x->rank != n_sp + 2 || w->rank != n_sp + 2 || n_sp + 3 > KL_RANK || 2 * n_sp + 4 > KL_LOOPS)
    return err_set(E_SHP_002, "%s: a convolution over %d dimensions of %s with %s", who, n_sp, xt,
                   wt);
  if (groups < 1 || (w->dims[0] >= 0 && w->dims[0] % groups))
    return err_set(E_SHP_006, "%s: the %lld filters of %s do not divide into %lld groups", who,
                   (long long)w->dims[0], wt, (long long)groups);
  int64_t want;
  if (x->dims[1] >= 0 && w->dims[1] >= 0 &&
      (!mul_ok(w->dims[1], groups, &want) || want != x->dims[1])) {
    err_set(E_SHP_006,
            "%s: the input %s has %lld channels, the filter %s in %lld groups takes %lld", who, xt,
            (long long)x->dims[1], wt, (long long)groups,
            (long long)(mul_ok(w->dims[1], groups, &want) ? want : -1));
    err_help("The filter's second dimension is the input's channels over the groups.");
    return false;
  }
  return true;
}

Node *g_conv(Graph *g, Node *x, Node *w, int n_sp, const int64_t *stride, const int64_t *lo,
             const int64_t *hi, const int64_t *dil, int64_t groups) {
  int64_t ext[KL_LOOPS], xd[KL_RANK], wd[KL_RANK], out[KL_RANK];
  AffDim mx[KL_RANK], mw[KL_RANK];
  if (!x || !w || !same_type(g, x, w) || !conv_check(g, x, w, n_sp, groups)) return NULL;
  int by = groups > 1; /* loops: n, [group], o, space.., c, kernel.. */
  int rank = n_sp + 2 + by, o = 1 + by, sp = 2 + by, c = rank, kern = rank + 1;
  int64_t o_all = w->dims[0];
  ext[0] = out[0] = xd[0] = x->dims[0];
  ext[1] = xd[1] = wd[0] = groups;
  ext[o] = wd[by] = over(o_all, groups);
  ext[c] = xd[1 + by] = wd[1 + by] = w->dims[1] < 0 ? over(x->dims[1], groups) : w->dims[1];
  out[1] = o_all;
  mx[0] = aff_loop(0);
  mx[1] = mw[0] = aff_loop(1);
  mw[by] = aff_loop(o);
  mx[1 + by] = mw[1 + by] = aff_loop(c);
  for (int s = 0; s < n_sp; s++) {
    int64_t k = w->dims[2 + s];
    xd[sp + s] = x->dims[2 + s];
    wd[sp + s] = ext[kern + s] = k;
    if (k < 0)
      out[2 + s] = -1;
    else if (!window_out(g_who(g, P_CONTRACT), x->dims[2 + s], k, stride[s], dil[s], lo[s], hi[s],
                         &out[2 + s]))
      return NULL;
    ext[sp + s] = out[2 + s];
    mx[sp + s] = (AffDim){
        (int8_t)(sp + s), (int8_t)(kern + s), (int32_t)stride[s], (int32_t)dil[s], -lo[s], 1};
    mw[sp + s] = aff_loop(kern + s);
  }
  if (!by) return g_contract(g, x, w, rank, rank + 1 + n_sp, ext, mx, mw);
  Node *xg = g_reshape(g, x, rank, xd), *wg = g_reshape(g, w, rank, wd);
  Node *r = g_contract(g, xg, wg, rank, rank + 1 + n_sp, ext, mx, mw);
  return g_reshape(g, r, n_sp + 2, out);
}
