/* How a nest's loops step through memory. In: a nest of a kernel; out: for each place where an input is read (behind views,
 * reshapes and maps) the elements between neighbours of every loop, as far as the index is linear in the loops. From that
 * follow vectors of neighbouring points, and transposes that go through shared memory. */
#include "plan.h"
#include <stdlib.h>
#include <string.h>

enum { MOST_VISITS = 2000, MOST_PARTS = 1 << 12 };

/* An index: sum of c[l] * loop l, and something else; or not of that form. `kept`: whether or not, it lies within
 * (sum of of[l] * loop l + lo..hi) / parts, where lo..hi are multiples of `even` (0: both are 0). A point goes through
 * windows, in steps of window[w]; without these it lies within bare_lo..bare_hi. */
typedef struct Lin {
  bool known, kept, anywhere;
  int64_t c[KL_LOOPS], of[KL_LOOPS], lo, hi, even, parts;
  int64_t window[CUDA_WINDOWS], bare_lo, bare_hi;
} Lin;

typedef struct Walk {
  Gen *g;
  const Nest *t;
  CudaAccesses *out;
  int visits, n_window; /* of the path to the place being visited */
  int64_t window[CUDA_WINDOWS];
  int64_t times; /* that the place being visited is read, at different elements, for a point */
  bool all;      /* every place is in `out` */
} Walk;

static void add_range(Lin *to, int64_t lo, int64_t hi, int64_t even) {
  to->lo += lo;
  to->hi += hi;
  to->even = common_factor(to->even, even);
}

/* Counted in n times as many parts. */
static void divide(Lin *x, int64_t n) {
  for (int l = 0; l < KL_LOOPS; l++) x->of[l] *= n;
  for (int w = 0; w < CUDA_WINDOWS; w++) x->window[w] *= n;
  x->lo *= n;
  x->hi *= n;
  x->bare_lo *= n;
  x->bare_hi *= n;
  x->even *= n;
  x->parts *= n;
}

static void add_term(Lin *to, const Lin *x, int64_t factor) {
  Lin same = *x;
  int64_t shared = common_factor(to->parts, x->parts);
  to->known &= x->known;
  to->anywhere |= x->anywhere;
  to->kept &= x->kept && to->parts * x->parts < MOST_PARTS;
  divide(&same, to->parts / shared);
  divide(to, x->parts / shared);
  for (int l = 0; l < KL_LOOPS; l++) {
    to->c[l] += factor * x->c[l];
    to->of[l] += factor * same.of[l];
  }
  for (int w = 0; w < CUDA_WINDOWS; w++) to->window[w] += factor * same.window[w];
  to->bare_lo += factor * (factor < 0 ? same.bare_hi : same.bare_lo);
  to->bare_hi += factor * (factor < 0 ? same.bare_lo : same.bare_hi);
  add_range(to, factor * (factor < 0 ? same.hi : same.lo),
            factor * (factor < 0 ? same.lo : same.hi), factor * same.even);
}

static Lin zero(void) { return (Lin){.known = true, .kept = true, .parts = 1}; }

static Lin loop_of(int l) {
  Lin r = zero();
  r.c[l] = r.of[l] = 1;
  return r;
}

/* Any of 0..n-1, which nothing else follows from: a window. */
static Lin any(Walk *w, int64_t n) {
  Lin r = zero();
  add_range(&r, 0, n > 0 ? n - 1 : 0, 1);
  if (w->n_window == CUDA_WINDOWS) {
    r.bare_hi = r.hi;
    return r;
  }
  w->window[w->n_window] = n;
  r.window[w->n_window++] = 1;
  return r;
}

static Lin linear(const Lin *ix, const int64_t *dims, int from, int to) {
  Lin r = zero();
  int64_t stride = 1;
  for (int d = to - 1; d >= from; stride *= dims[d--])
    if (dims[d] > 1) add_term(&r, &ix[d], stride);
  return r;
}

/* Behind one AffDim. */
static Lin behind(const AffDim *m, const Lin *ix) {
  Lin r = zero();
  if (m->l0 >= 0) add_term(&r, &ix[m->l0], m->c0);
  if (m->l1 >= 0) add_term(&r, &ix[m->l1], m->c1);
  r.bare_lo += r.parts * m->off;
  r.bare_hi += r.parts * m->off;
  add_range(&r, r.parts * m->off, r.parts * m->off, r.parts * m->off);
  for (int l = 0; m->div > 1 && l < KL_LOOPS; l++) {
    r.known &= r.c[l] % m->div == 0;
    r.c[l] /= m->div;
  }
  if (m->div <= 1) return r;
  /* rounded down */
  r.lo -= (m->div - 1) * r.parts;
  r.parts *= m->div;
  r.even = 1;
  return r;
}

/* x / d and x mod d, where no term crosses a multiple of d. */
static void split(const Walk *w, const Lin *x, int64_t d, Lin *q, Lin *r) {
  int64_t most = 0, reach = x->hi;
  *q = *r = zero();
  q->known = r->known = x->known;
  q->anywhere = r->anywhere = x->anywhere;
  for (int l = 0; l < w->t->rank; l++) {
    bool whole = x->c[l] % d == 0;
    (whole ? q : r)->c[l] = whole ? x->c[l] / d : x->c[l];
    if (!whole) most += llabs(x->c[l]) * (w->t->ext[l] - 1);
    whole = x->of[l] % d == 0;
    (whole ? q : r)->of[l] = whole ? x->of[l] / d : x->of[l];
    if (!whole) reach += llabs(x->of[l]) * (w->t->ext[l] - 1);
  }
  q->kept = r->kept = x->kept && x->parts == 1 && x->lo >= 0 && reach < d;
  memcpy(r->window, x->window, sizeof r->window);
  r->bare_lo = x->bare_lo;
  r->bare_hi = x->bare_hi;
  add_range(r, x->lo, x->hi, x->even);
  if (most >= d) q->known = r->known = false;
}

/* The same place of x, counted by dims. */
static void reshape(const Walk *w, const Lin *ix, int rank, const int64_t *dims, const Node *x,
                    Lin *to) {
  Lin all = linear(ix, dims, 0, rank), r;
  for (int d = x->rank - 1; d >= 0; d--) {
    to[d] = zero();
    if (x->dims[d] < 2) continue;
    split(w, &all, x->dims[d], &r, &to[d]);
    all = r;
  }
}

static void add_access(Walk *w, int input, const Node *n, const Lin *at) {
  CudaAccess a = {.input = input,
                  .known = at->known,
                  .kept = at->kept,
                  .anywhere = at->anywhere,
                  .parts = at->parts,
                  .bytes = dtype_info[n->dtype].size,
                  .lo = at->lo,
                  .hi = at->hi,
                  .even = at->even,
                  .times = w->times};
  for (int l = 0; l < KL_LOOPS; l++) a.step[l] = at->c[l], a.of[l] = at->of[l];
  a.bare_lo = at->bare_lo;
  a.bare_hi = at->bare_hi;
  for (int i = 0; i < w->n_window; i++) {
    a.window[i] = at->window[i];
    a.window_ext[i] = w->window[i];
  }
  vec_add(w->g->a, w->out, a);
}

/* Elements of an operand that are read for one of n. */
static int64_t summed(const Node *n) {
  int64_t p = 1;
  for (int d = 0; prim_is_reduce(n->prim) && d < n->in[0]->rank; d++)
    if (n->i >> d & 1) p *= n->in[0]->dims[d];
  for (int l = n->rank; n->prim == P_CONTRACT && l < n->n_loops; l++) p *= n->ext[l];
  return p > 0 ? p : 1;
}

static int64_t entry(const Node *table, int64_t i) {
  return table->dtype == DT_INT32 ? ((const int32_t *)table->data)[i]
                                  : ((const int64_t *)table->data)[i];
}

/* How evenly the table of a GATHER's indices grows: times `parts`, entry i lies within step * i + lo..hi. The steps are the
 * same for all tables of one length. */
typedef struct Growth {
  int64_t step, parts, lo, hi;
} Growth;

static const Node *table_of(const Node *gather) {
  const Node *v = gather->in[1];
  return v->prim == P_VIEW ? v->in[0] : v;
}

/* false: there is no table, or it is far from even. */
static bool table_growth(const Node *gather, Growth *to) {
  enum { MOST_TABLE = 1 << 16, MOST_FRACTION = 32, MOST_APART = 16 };
  const Node *table = table_of(gather);
  int64_t size = gather->in[0]->dims[gather->i], length = node_numel(table), parts = 1;
  if (table->prim != P_DATA || (table->dtype != DT_INT32 && table->dtype != DT_INT64) ||
      length == 0 || length > MOST_TABLE)
    return false;
  while (parts < MOST_FRACTION && size * parts % length) parts++;
  *to = (Growth){.step = (2 * size * parts + length) / (2 * length), .parts = parts};
  for (int64_t i = 0; i < length; i++) {
    int64_t apart = parts * entry(table, i) - to->step * i;
    if (i == 0 || apart < to->lo) to->lo = apart;
    if (i == 0 || apart > to->hi) to->hi = apart;
  }
  return to->hi - to->lo <= MOST_APART * parts;
}

void cuda_key(Kernel *k, Str *key) {
  loop_key(k, LOOP_MAIN, key);
  for (int i = 0; i < k->nodes.n; i++) {
    Growth t = {0};
    if (k->nodes.v[i]->prim != P_GATHER) continue;
    if (!table_growth(k->nodes.v[i], &t)) t = (Growth){0};
    str_addn(key, (const char *)&t, sizeof t);
  }
}

/* Where a GATHER at *of reads, whose indices are a table that grows about evenly: near so many of the operand's for one of
 * the table; by other indices anywhere. */
static Lin by_table(Walk *w, const Node *n, const Lin *of) {
  const Node *v = n->in[1], *table = table_of(n);
  Lin to[KL_LOOPS], r = zero();
  Growth t;
  if (!table_growth(n, &t)) {
    r = any(w, n->in[0]->dims[n->i]);
    r.known = false;
    r.anywhere = true;
    return r;
  }
  for (int d = 0; d < table->rank; d++) to[d] = v == table ? of[d] : behind(&v->map[0][d], of);
  Lin at = linear(to, table->dims, 0, table->rank);
  add_term(&r, &at, t.step);
  r.known = false;
  r.kept &= r.parts * t.parts < MOST_PARTS;
  r.bare_lo += r.parts * t.lo;
  r.bare_hi += r.parts * t.hi;
  add_range(&r, r.parts * t.lo, r.parts * t.hi, r.parts * t.parts);
  r.parts *= t.parts;
  return r;
}

static void visit(Walk *w, Node *n, const Lin *ix) {
  NodeInfo *f = gen_info(w->g, n);
  Lin to[KL_LOOPS], of[KL_LOOPS];
  int windows = w->n_window;
  if (++w->visits > MOST_VISITS) {
    w->all = false;
    return;
  }
  if (f->input >= 0) {
    Lin at = linear(ix, n->dims, 0, n->rank);
    add_access(w, f->input, n, &at);
    return;
  }
  if (!f->inside || (kernel_sweeps(w->g->k, n) && !w->t->unroll)) return;
  if (n == w->g->k->core && w->g->part == LOOP_EPILOGUE) return;
  for (int d = 0; d < KL_LOOPS; d++)
    of[d] = d < n->rank ? ix[d] : d < n->n_loops ? any(w, n->ext[d]) : zero();
  for (int i = 0; i < n->n_in; i++) {
    const Node *x = n->in[i];
    for (int d = 0; d < KL_LOOPS; d++) to[d] = zero();
    for (int d = 0; d < x->rank; d++) {
      if (n->prim == P_VIEW || n->prim == P_CONTRACT)
        to[d] = behind(&n->map[i][d], of);
      else if (n->prim == P_GATHER && i == 0 && d == n->i)
        to[d] = by_table(w, n, of);
      else if (prim_is_reduce(n->prim) && n->i >> d & 1)
        to[d] = any(w, x->dims[d]);
      else if (d < n->rank)
        to[d] = ix[d];
    }
    if (n->prim == P_RESHAPE) reshape(w, ix, n->rank, n->dims, x, to);
    w->times *= summed(n);
    visit(w, n->in[i], to);
    w->times /= summed(n);
    if (n->prim != P_CONTRACT) w->n_window = windows;
  }
  w->n_window = windows;
}

/* At the same place of the domain, of which it may be a reshape. */
static void visit_root(Walk *w, const Root *r, const Lin *ix) {
  const Nest *t = w->t;
  Lin to[KL_LOOPS];
  int64_t dims[KL_LOOPS];
  bool same = r->n->rank == t->rank;
  for (int d = 0; d < t->rank; d++) {
    dims[d] = !r->full && t->red >> d & 1 ? 1 : t->ext[d];
    same = same && dims[d] == r->n->dims[d];
  }
  for (int d = 0; d < KL_LOOPS; d++) to[d] = zero();
  if (!same) reshape(w, ix, t->rank, dims, r->n, to);
  visit(w, r->n, same ? ix : to);
}

bool cuda_accesses(Gen *g, const Nest *t, CudaAccesses *out) {
  Walk w = {.g = g, .t = t, .out = out, .times = 1, .all = true};
  Lin ix[KL_LOOPS + 1], row[KL_LOOPS + 1];
  for (int l = 0; l < KL_LOOPS; l++) {
    ix[l] = l < t->rank ? loop_of(l) : zero();
    row[l] = l < t->rank && !(t->red >> l & 1) ? loop_of(l) : zero();
  }
  for (int i = 0; t->contract && i < 2; i++) {
    Lin to[KL_LOOPS];
    for (int d = 0; d < KL_LOOPS; d++) to[d] = zero();
    Node *x = t->contract->in[i];
    for (int d = 0; d < x->rank; d++) to[d] = behind(&t->contract->map[i][d], ix);
    visit(&w, x, to);
  }
  for (int r = 0; r < t->roots.n; r++) {
    const Root *root = &t->roots.v[r];
    if (root->n == t->contract) continue;
    if (root->concat_axis >= 0 && root->n->rank != t->rank) w.all = false;
    visit_root(&w, root, root->full ? ix : row);
  }
  for (int i = 0; i < g->k->nodes.n && t->red && !t->unroll; i++)
    if (kernel_sweeps(g->k, g->k->nodes.v[i])) visit(&w, g->k->nodes.v[i]->in[0], ix);
  return w.all;
}

/* The step of the innermost loop of an axis. */
static int64_t step_of(const CudaAccess *a, const Nest *t, const Axis *x) {
  int l = x->last;
  while (l > x->first && t->ext[l] == 1) l--;
  return a->known ? a->step[l] : INT64_MAX;
}

int cuda_vector(Gen *g, const Nest *t, const Axis *x) {
  CudaAccesses all = {0};
  int bytes = 4;
  if (!x) return 1;
  cuda_accesses(g, t, &all);
  for (int i = 0; i < all.n; i++) {
    int64_t s = step_of(&all.v[i], t, x);
    if (s != 0 && s != 1) return 1;
    if (all.v[i].bytes > bytes) bytes = all.v[i].bytes;
  }
  int v = 16 / bytes;
  while (v > 1 && x->ext % v) v /= 2;
  return v;
}

/* Stores to one bank beyond the first, of warps whose lanes go along the short side of a tile and then along the long one, and
 * of those that go along the long one, whose places lie side by side. */
static int conflicts(int size_short, int size_long, int pitch) {
  int n = 0, load[2][32];
  for (int e = 0; e < size_short * size_long; e++) {
    if (e % 32 == 0) memset(load, 0, sizeof load);
    int at[2] = {e % size_short * pitch + e / size_short, e / size_long * pitch + e % size_long};
    for (int i = 0; i < 2; i++) n += ++load[i][at[i] % 32] > 1;
  }
  return n;
}

/* A short axis that lies in memory within the other one is in the tile as a whole, and the other one longer, so that warps read
 * and write what has no gaps. */
static void tile_size(int64_t a, int64_t b, bool within, CudaStage *s) {
  enum { POINTS = CUDA_TILE * CUDA_TILE };
  bool a_short = a < b;
  int *size = a_short ? &s->size_a : &s->size_b, *other = a_short ? &s->size_b : &s->size_a;
  int *step = a_short ? &s->step_a : &s->step_b;
  s->size_a = s->size_b = CUDA_TILE;
  s->step_a = s->step_b = 1;
  *step = CUDA_TILE + 1;
  if (!within) return;
  int64_t most = (a_short ? b : a) + CUDA_TILE - 1;
  *size = (int)(a_short ? a : b);
  *other = POINTS / *size;
  if (*other > most) *other = (int)most;
  *other -= *other % CUDA_TILE;
  for (int pad = 0, best = INT32_MAX; pad < 32; pad++) {
    int n = conflicts(*size, *other, *other + pad);
    if (n < best) best = n, *step = *other + pad;
  }
}

bool cuda_transposes(Gen *g, const Nest *t, CudaStage *s) {
  CudaAccesses all = {0};
  int64_t between = 0; /* elements of the input between neighbours along b */
  s->b = t->n_out - 1;
  s->a = -1;
  if (t->n_out < 2 || t->red) return false;
  cuda_accesses(g, t, &all);
  for (int i = 0; i < all.n; i++) {
    int64_t step = step_of(&all.v[i], t, &t->out[s->b]);
    if (step == 0 || step == 1 || step == -1 || step == INT64_MAX) continue;
    for (int x = 0; x < s->b; x++)
      if (step_of(&all.v[i], t, &t->out[x]) == 1 && (s->a < 0 || t->out[x].ext > t->out[s->a].ext))
        s->a = x, between = step;
  }
  if (s->a < 0) return false;
  int64_t a = t->out[s->a].ext, b = t->out[s->b].ext;
  bool longer = (a < b ? b : a) >= CUDA_TILE && (a < b ? a : b) < CUDA_TILE / 2;
  bool within = longer && (a < b ? between == a : s->a == s->b - 1);
  tile_size(a, b, within, s);
  return within || (a >= CUDA_TILE / 4 && b >= CUDA_TILE / 4);
}
