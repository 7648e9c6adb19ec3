/* Splitting of big reductions to few elements, so that the first step has enough rows to run in parallel, with one fixed tree
 * for any number of threads. In: any Graph. Out: an equal one up to rounding.
 *
 * rsum(x, A) with few results = rsum(rsum(x', A'), B): if some reduced axis is neither too short nor too long it is left
 * to the second step; otherwise one axis is cut into `parts` rows by a reshape, or, where nothing divides it, by a view
 * that pads with the neutral element. If the last axis is kept, leading axes are left to the second step.
 * A contraction of few results and many products, and without the form of a matrix product (the gradient of a depthwise
 * filter), leaves a summed loop, such as the one over the images, to a sum of its own, and so does the gradient of a 1 x 1 filter
 * that is small beside an image. One of a single product for each result becomes a map. */
#include "rewrite.h"
#include <math.h>

enum { FEW = 16, LARGE = 16384, MIN_PARTS = 8, MAX_PARTS = 1024, CHUNK = 4096 };
enum {
  LEAST_IMAGES = 4,
  IMAGE = 512 /* products of a result in one image; then images can run in chains */
};
enum { COLUMNS = 64, MANY_ROWS = 512, CACHED = 1 << 20, NEAR = 512 << 10 /* bytes */ };

static bool worth_it(const Node *n) {
  if (!prim_is_reduce(n->prim) || n->prim == P_ARGMAX) return false;
  int64_t results = node_numel(n), all = node_numel(n->in[0]);
  return results > 0 && results < FEW && all / results > LARGE;
}

/* The outermost reduced axis that makes good rows by itself, or -1. */
static int row_axis(const Node *n) {
  const Node *x = n->in[0];
  int64_t reduced = node_numel(x) / node_numel(n);
  for (int d = 0; d < x->rank; d++)
    if ((n->i >> d & 1) && x->dims[d] >= MIN_PARTS && x->dims[d] <= MAX_PARTS &&
        reduced / x->dims[d] > KL_SMALL_REDUCE)
      return d;
  return -1;
}

/* The divisor of `size` in MIN_PARTS..MAX_PARTS nearest to chunks of CHUNK elements, or 0. */
static int64_t parts_of(int64_t size, int64_t reduced) {
  int64_t want = reduced / CHUNK, best = 0;
  want = want < MIN_PARTS ? MIN_PARTS : want > MAX_PARTS ? MAX_PARTS : want;
  for (int64_t p = MIN_PARTS; p <= MAX_PARTS && p <= size / 2; p++) {
    if (size % p) continue;
    int64_t far = p > want ? p - want : want - p, was = best > want ? best - want : want - best;
    if (!best || far < was) best = p;
  }
  return best;
}

static bool neutral(const Node *n, double *v) {
  *v = n->prim == P_RSUM ? 0 : n->prim == P_RPROD ? 1 : -INFINITY;
  return n->prim != P_RMAX || dtype_is_float(n->dtype);
}

/* Axis d of x as two: `parts` rows of `chunk`; what overhangs reads the neutral element. */
static Node *cut(Graph *g, Node *x, int d, int64_t parts, int64_t chunk, double fill) {
  int64_t dims[KL_RANK];
  AffDim map[KL_RANK];
  for (int k = 0; k < x->rank; k++) {
    int to = k > d ? k + 1 : k;
    dims[to] = x->dims[k];
    map[k] = aff_loop(to);
  }
  dims[d] = parts;
  dims[d + 1] = chunk;
  if (parts * chunk == x->dims[d]) return reshape_into(g, x, x->rank + 1, dims, false);
  if (chunk > INT32_MAX) return NULL;
  map[d] = (AffDim){(int8_t)d, (int8_t)(d + 1), (int32_t)chunk, 1, 0, 1};
  return g_view(g, x, x->rank + 1, dims, map, fill);
}

static Node *split_one(Graph *g, Node *n) {
  if (!worth_it(n)) return NULL;
  Node *x = n->in[0];
  int64_t reduced = node_numel(x) / node_numel(n);
  int row = row_axis(n), longest = -1;
  if (row >= 0) {
    Node *first = g_reduce(g, n->prim, x, (uint32_t)n->i & ~(1u << row), true);
    return g_reduce(g, n->prim, first, 1u << row, true);
  }
  for (int d = 0; d < x->rank; d++)
    if ((n->i >> d & 1) && (longest < 0 || x->dims[d] > x->dims[longest])) longest = d;
  double fill;
  int64_t parts = parts_of(x->dims[longest], reduced), chunk;
  if (x->rank == KL_RANK || x->dims[longest] < 2 * MIN_PARTS) return NULL;
  if (!parts && !neutral(n, &fill)) return NULL;
  chunk = parts ? x->dims[longest] / parts : (x->dims[longest] + 15) / 16;
  Node *y = cut(g, x, longest, parts ? parts : 16, chunk, parts ? 0 : fill);
  if (!y) return NULL;
  uint32_t low = (1u << longest) - 1, mask = (uint32_t)n->i;
  uint32_t inner = (mask & low) | (mask & ~low) << 1; /* the cut axis is now longest + 1 */
  Node *r = g_reduce(g, n->prim, y, inner, true);
  r = g_reduce(g, n->prim, r, 1u << longest, true);
  return g_reshape(g, r, n->rank, n->dims);
}

/* ---- sums that leave the last axis ---- */

/* The leading reduced axes that are left to the second step, or 0: as few as leave chunks which the caches hold, and rows
 * enough. A sum that keeps the last axis runs over blocks of COLUMNS columns: few of them are no work for several threads, and
 * when they are long, later sweeps read all of it from memory again. Chunks of all columns that the nearest caches hold are better still:
 * then they are summed while what makes them goes on (pass chain). */
static uint32_t chunk_axes(const Node *n) {
  if (!prim_is_reduce(n->prim) || n->prim == P_ARGMAX || n->rank == 0 || node_numel(n) == 0 ||
      node_numel(n->in[0]) == 0)
    return 0;
  const Node *x = n->in[0];
  int64_t size = dtype_info[x->dtype].size, last = x->dims[x->rank - 1];
  int64_t columns = last < COLUMNS ? last : COLUMNS, parts = 1, outer = 0;
  int64_t rest = node_numel(x) / node_numel(n), blocks = node_numel(n) / columns;
  if (last == 1 || n->i >> (x->rank - 1) & 1 || rest < MANY_ROWS || blocks > 2 * FEW) return 0;
  uint32_t best = 0;
  for (int d = 0; d < x->rank - 1; d++) {
    if (!(n->i >> d & 1)) continue;
    outer |= 1 << d;
    parts *= x->dims[d];
    rest /= x->dims[d];
    if (rest <= KL_SMALL_REDUCE) break;
    if (parts < MIN_PARTS || rest * columns * size > CACHED) continue;
    if (!best) best = (uint32_t)outer;
    if (rest * blocks * columns * size > NEAR) continue;
    return (uint32_t)outer;
  }
  return best;
}

/* The sums of chunks that n, an RSUM of x or a map of it, was split into before; NULL: none. */
static Node *chunk_sums(Node *n, const Node *x) {
  for (int depth = 0; depth < 3; depth++) {
    if (n->prim == P_RSUM && n->in[0]->prim == P_RSUM && n->in[0]->in[0] == x) return n->in[0];
    Node *next = NULL;
    for (int i = 0; i < n->n_in; i++)
      if (n->in[i]->prim != P_CONST) next = n->in[i];
    if (!next) return NULL;
    n = next;
  }
  return NULL;
}

/* The sum over axes of (x - mu)^2, mu constant along them, in one sweep over x: with m the mean of a chunk,
 * sum (x - mu)^2 = sum (x - m)^2 + count (m - mu)^2 in each (Chan, Golub & LeVeque, Algorithms for computing the sample
 * variance, 1983). The chunk is still cached when m is known. */
static Node *split_squares(Graph *g, Node *n, uint32_t outer) {
  Node *d = n->prim == P_RSUM && n->in[0]->prim == P_MUL ? n->in[0]->in[0] : NULL;
  if (!d || d != n->in[0]->in[1] || d->prim != P_SUB || d->in[1]->prim != P_VIEW) return NULL;
  Node *x = d->in[0], *mu = d->in[1]->in[0], *s = chunk_sums(mu, x);
  if (!node_same_shape(mu, n) || !s || !dtype_is_float(x->dtype)) return NULL;
  for (int k = 0; k < x->rank; k++)
    if (!(n->i >> k & 1) && x->dims[k] > 1 && !aff_is_loop(&d->in[1]->map[0][k], k)) return NULL;
  double count = (double)node_numel(x) / (double)node_numel(s);
  Node *m = g_map2c(g, P_MUL, s, 1 / count), *near = g_map2(g, P_SUB, x, m);
  Node *far = g_map2(g, P_SUB, m, mu);
  Node *inside = g_reduce(g, P_RSUM, g_map2(g, P_MUL, near, near), (uint32_t)s->i, true);
  Node *between = g_map2c(g, P_MUL, g_map2(g, P_MUL, far, far), count);
  return g_reduce(g, P_RSUM, g_map2(g, P_ADD, inside, between), outer, true);
}

static Node *split_columns(Graph *g, Node *n) {
  uint32_t outer = chunk_axes(n);
  if (!outer) return NULL;
  Node *squares = split_squares(g, n, outer);
  if (squares) return squares;
  Node *first = g_reduce(g, n->prim, n->in[0], (uint32_t)n->i & ~outer, true);
  return g_reduce(g, n->prim, first, outer, true);
}

/* ---- gradients of filters ---- */

static bool reads_loop(const Node *n, int x, int l, bool *plainly) {
  bool reads = false;
  for (int d = 0; d < n->in[x]->rank; d++) {
    const AffDim *m = &n->map[x][d];
    if (m->l0 != l && m->l1 != l) continue;
    reads = true;
    *plainly &= aff_is_loop(m, l);
  }
  return reads;
}

/* No matrix product: one operand has no loop of the result for itself, and both share one. */
static bool is_depthwise(const Node *n) {
  bool own[2] = {false, false}, shared = false, any = false;
  for (int l = 0; l < n->rank; l++) {
    if (n->ext[l] == 1) continue;
    bool a = reads_loop(n, 0, l, &any), b = reads_loop(n, 1, l, &any);
    shared |= a && b;
    own[0] |= a && !b;
    own[1] |= b && !a;
  }
  return shared && own[0] != own[1];
}

/* The summed loop `row`, which both operands read as it is, becomes the first of the result, and a sum of its own. So does, if
 * parts > 1, a number of parts of the summed loop `cut`, which both read as `cut` times 1. */
static Node *leave_loop(Graph *g, Node *n, int row, int cut, int64_t parts) {
  int64_t ext[KL_LOOPS];
  AffDim map[2][KL_RANK];
  int8_t to[KL_LOOPS];
  int more = parts > 1, next = 0;
  ext[next++] = n->ext[row];
  if (more) ext[next++] = parts;
  for (int l = 0; l < n->n_loops; l++) {
    to[l] = (int8_t)(l == row ? 0 : next);
    if (l != row) ext[next++] = more && l == cut ? n->ext[l] / parts : n->ext[l];
  }
  for (int x = 0; x < 2; x++)
    for (int d = 0; d < n->in[x]->rank; d++) {
      AffDim *m = &map[x][d];
      *m = n->map[x][d];
      bool divided = more && (m->l0 == cut || m->l1 == cut);
      if (m->l0 >= 0) m->l0 = to[m->l0];
      if (m->l1 >= 0) m->l1 = to[m->l1];
      if (divided) *m = (AffDim){1, to[cut], (int32_t)(n->ext[cut] / parts), 1, 0, 1};
    }
  Node *y = g_contract(g, n->in[0], n->in[1], n->rank + 1 + more, next, ext, map[0], map[1]);
  return g_reduce(g, P_RSUM, y, more ? 3 : 1, false);
}

/* Of depthwise filters: the outermost loop that there is. */
static Node *split_depthwise(Graph *g, Node *n, int64_t all) {
  int64_t results = node_numel(n), least = g->no_kinds ? CHUNK : IMAGE; /* no chains on the GPU */
  int row = -1;
  if (all / results < least || !is_depthwise(n)) return NULL;
  for (int l = n->n_loops - 1; l >= n->rank; l--) {
    bool plainly = true, both = reads_loop(n, 0, l, &plainly) && reads_loop(n, 1, l, &plainly);
    if (both && plainly && n->ext[l] >= 2 && n->ext[l] <= MAX_PARTS) row = l;
  }
  if (row < 0 || results * n->ext[row] > all / MIN_PARTS) return NULL;
  return leave_loop(g, n, row, -1, 1);
}

/* Does operand x read the loop over images, which is the first summed one, in its first dimension, and every dimension at one
 * loop from 0 in steps of 1? */
static bool is_pointwise(const Node *n, int x) {
  for (int d = 0; d < n->in[x]->rank; d++) {
    const AffDim *m = &n->map[x][d];
    int reads = -1, loops = 0;
    if (m->l0 >= 0 && n->ext[m->l0] > 1) reads = m->l0, loops += m->c0 == 1 ? 1 : 2;
    if (m->l1 >= 0 && n->ext[m->l1] > 1) reads = m->l1, loops += m->c1 == 1 ? 1 : 2;
    if (m->off || m->div != 1 || loops > 1 || (d == 0) != (reads == n->rank)) return false;
    if (loops && n->ext[reads] != n->in[x]->dims[d]) return false;
  }
  return n->in[x]->rank > 0;
}

static bool reads_all_sums(const Node *n, int x) {
  bool any = false;
  for (int l = n->rank; l < n->n_loops; l++)
    if (!reads_loop(n, x, l, &any)) return false;
  return true;
}

/* Of 1 x 1 filters, which must be small beside what is read of an image: images, and their rows in parts that a cache holds. */
static Node *split_pointwise(Graph *g, Node *n, int64_t all) {
  int row = n->rank, cut = n->rank + 1;
  int64_t results = node_numel(n), images = n->ext[row], size = dtype_info[n->dtype].size;
  int64_t read = node_numel(n->in[0]) + node_numel(n->in[1]);
  int64_t most = read / (results * images * MIN_PARTS), near = read / images * size / NEAR;
  if (g->no_kinds || n->n_loops <= cut || images < LEAST_IMAGES || images > MAX_PARTS) return NULL;
  if (most < 1 || all / results / images < IMAGE) return NULL;
  for (int x = 0; x < 2; x++)
    if (!is_pointwise(n, x) || !reads_all_sums(n, x)) return NULL;
  int64_t parts = 1;
  for (int64_t p = 2; p <= near && p <= most && p < n->ext[cut]; p++)
    if (n->ext[cut] % p == 0) parts = p;
  return leave_loop(g, n, row, cut, parts);
}

/* Images then run beside the kernels that make the operands, while these are in cache (pass chain). */
static Node *split_contract(Graph *g, Node *n) {
  int64_t all = 1;
  for (int l = 0; l < n->n_loops; l++) all *= n->ext[l];
  if (n->rank + 1 >= KL_RANK || n->n_loops >= KL_LOOPS || n->n_loops == n->rank ||
      node_numel(n) == 0 || all == 0 || !dtype_is_float(n->dtype))
    return NULL;
  Node *y = split_depthwise(g, n, all);
  return y ? y : split_pointwise(g, n, all);
}

/* ---- products without a sum ---- */

/* A map over the loops of a CONTRACT as one over its result: every summed loop stands at 0. */
static void drop_sums(const Node *n, int x, AffDim *to) {
  for (int d = 0; d < n->in[x]->rank; d++) {
    AffDim *m = &to[d];
    *m = n->map[x][d];
    if (m->l1 >= n->rank) m->l1 = -1, m->c1 = 0;
    if (m->l0 >= n->rank) m->l0 = m->l1, m->c0 = m->c1, m->l1 = -1, m->c1 = 0;
  }
}

/* One product for each result is a map, which fuses with what follows: the gradient of a matrix for one sample. */
static Node *split_product(Graph *g, Node *n) {
  Node *v[2];
  for (int l = n->rank; l < n->n_loops; l++)
    if (n->ext[l] != 1) return NULL;
  if (!dtype_is_float(n->dtype) || node_numel(n) == 0) return NULL;
  for (int x = 0; x < 2; x++) {
    AffDim map[KL_RANK];
    drop_sums(n, x, map);
    v[x] = g_view(g, n->in[x], n->rank, n->dims, map, 0);
    if (!view_total(v[x])) return NULL;
  }
  return g_map2(g, P_MUL, v[0], v[1]);
}

static Node *split(Graph *g, Node *n) {
  Node *product = n->prim == P_CONTRACT ? split_product(g, n) : NULL;
  if (product) return product;
  if (n->prim == P_CONTRACT) return split_contract(g, n);
  Node *r = split_columns(g, n);
  return r ? r : split_one(g, n);
}

void pass_split(Graph *g) {
  graph_sweep(g);
  if (graph_rewrite(g, split)) graph_sweep(g);
}
