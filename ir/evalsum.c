/* The interpreter's accumulating and ordering primitives: CONTRACT, reductions, ARGMAX, SCATTER, ARGSORT. Sums are kept
 * in double, integers in int64 modulo 2^64, and rounded or cut once at the end. */
#include "eval.h"
#include <math.h>

/* ---- contract ---- */

static double dot_f(const double *a, const double *b, Run ra, Run rb, int64_t lo, int64_t hi) {
  double s = 0;
  if (ra.step == 1 && rb.step == 1) {
    for (int64_t i = lo; i < hi; i++) s += a[ra.base + i] * b[rb.base + i];
    return s;
  }
  for (int64_t i = lo; i < hi; i++) s += a[ra.base + i * ra.step] * b[rb.base + i * rb.step];
  return s;
}

static uint64_t dot_i(const int64_t *a, const int64_t *b, Run ra, Run rb, int64_t lo, int64_t hi) {
  uint64_t s = 0;
  for (int64_t i = lo; i < hi; i++)
    s += (uint64_t)a[ra.base + i * ra.step] * (uint64_t)b[rb.base + i * rb.step];
  return s;
}

typedef struct Contract {
  const Node *n;
  Walk wa, wb;
  const double *fa, *fb; /* operands as doubles, or */
  const int64_t *ia, *ib;
  int inner, n_outer, outer[KL_LOOPS]; /* the summed loops; inner -1: none */
  bool linear;
} Contract;

/* The innermost summed loop: the longest that both operands read linearly, else the last. */
static void pick_inner(Contract *c) {
  const Node *n = c->n;
  int sums = n->n_loops - n->rank;
  c->inner = sums ? n->n_loops - 1 : -1;
  c->linear = false;
  for (int l = n->rank; l < n->n_loops; l++)
    if (walk_is_linear(&c->wa, l) && walk_is_linear(&c->wb, l) &&
        (!c->linear || n->ext[l] > n->ext[c->inner])) {
      c->inner = l;
      c->linear = true;
    }
  for (int l = n->rank; l < n->n_loops; l++)
    if (l != c->inner) c->outer[c->n_outer++] = l;
}

static void add_run(const Contract *c, int64_t *idx, double *f, uint64_t *i) {
  int64_t n = c->inner < 0 ? 1 : c->n->ext[c->inner];
  if (c->linear) {
    Run ra = walk_run(&c->wa, idx, c->inner, n), rb = walk_run(&c->wb, idx, c->inner, n);
    int64_t lo = ra.lo > rb.lo ? ra.lo : rb.lo, hi = ra.hi < rb.hi ? ra.hi : rb.hi;
    if (c->fa)
      *f += dot_f(c->fa, c->fb, ra, rb, lo, hi);
    else
      *i += dot_i(c->ia, c->ib, ra, rb, lo, hi);
    return;
  }
  for (int64_t k = 0; k < n; k++) {
    if (c->inner >= 0) idx[c->inner] = k;
    int64_t pa = walk_at(&c->wa, idx), pb = pa < 0 ? -1 : walk_at(&c->wb, idx);
    if (pb < 0) continue;
    if (c->fa)
      *f += c->fa[pa] * c->fb[pb];
    else
      *i += (uint64_t)c->ia[pa] * (uint64_t)c->ib[pb];
  }
}

bool eval_contract(Eval *e, const Node *n, Tensor *out) {
  bool flt = dtype_is_float(n->dtype);
  Contract c = {.n = n, .wa = walk_of(n->in[0], n->map[0]), .wb = walk_of(n->in[1], n->map[1])};
  if (flt) {
    c.fa = all_f(e, n, 0);
    c.fb = all_f(e, n, 1);
  } else {
    c.ia = all_i(e, n, 0);
    c.ib = all_i(e, n, 1);
  }
  pick_inner(&c);
  int64_t idx[KL_LOOPS] = {0}, count = node_numel(n);
  int result[KL_RANK];
  bool empty = false; /* a summed loop without iterations */
  for (int l = 0; l < n->rank; l++) result[l] = l;
  for (int l = n->rank; l < n->n_loops; l++) empty |= n->ext[l] == 0;
  for (int64_t at = 0; at < count; at++) {
    double f = 0;
    uint64_t i = 0;
    if (!empty) do
        add_run(&c, idx, &f, &i);
      while (next_index(c.n_outer, c.outer, n->ext, idx));
    if (flt)
      store_f(n->dtype, out->data, at, 1, &f);
    else
      store_i(n->dtype, out->data, at, 1, &(int64_t){(int64_t)i});
    next_index(n->rank, result, n->ext, idx);
  }
  return true;
}

/* ---- reductions ---- */

static double red_f(Prim p, double acc, double v) {
  if (p == P_RSUM) return acc + v;
  if (p == P_RPROD) return acc * v;
  return isnan(acc) || acc > v ? acc : v;
}

static int64_t red_i(Prim p, int64_t acc, int64_t v) {
  if (p == P_RSUM) return (int64_t)((uint64_t)acc + (uint64_t)v);
  if (p == P_RPROD) return (int64_t)((uint64_t)acc * (uint64_t)v);
  return acc > v ? acc : v;
}

static int64_t least_i(DType t) {
  return dtype_info[t].class == 'i'
             ? -(int64_t)(((uint64_t)1 << (8 * dtype_info[t].size - 1)) - 1) - 1
             : 0;
}

/* For each element of the operand in row-major order: the result's element (offset), and its place in the reduced axes. */
typedef struct Fold {
  int rank;
  const int64_t *dims;
  int64_t out[KL_RANK], red[KL_RANK], idx[KL_RANK], at, place;
} Fold;

static Fold fold_of(const Node *n) {
  const Node *x = n->in[0];
  Fold f = {.rank = x->rank, .dims = x->dims};
  int64_t so = 1, sr = 1;
  for (int d = x->rank - 1; d >= 0; d--) {
    bool reduced = n->i >> d & 1;
    f.out[d] = reduced ? 0 : so;
    f.red[d] = reduced ? sr : 0;
    *(reduced ? &sr : &so) *= x->dims[d];
  }
  return f;
}

static void fold_next(Fold *f) {
  for (int d = f->rank - 1; d >= 0; d--) {
    f->at += f->out[d];
    f->place += f->red[d];
    if (++f->idx[d] < f->dims[d]) return;
    f->at -= f->out[d] * f->idx[d];
    f->place -= f->red[d] * f->idx[d];
    f->idx[d] = 0;
  }
}

bool eval_reduce(Eval *e, const Node *n, Tensor *out) {
  int64_t count = node_numel(n), m = node_numel(n->in[0]);
  Fold f = fold_of(n);
  if (dtype_is_float(n->dtype)) {
    double *x = all_f(e, n, 0), *acc = arena_array(e->tmp, double, count);
    double none = n->prim == P_RSUM ? 0 : n->prim == P_RPROD ? 1 : -INFINITY;
    for (int64_t k = 0; k < count; k++) acc[k] = none;
    for (int64_t k = 0; k < m; k++, fold_next(&f)) acc[f.at] = red_f(n->prim, acc[f.at], x[k]);
    store_f(n->dtype, out->data, 0, count, acc);
  } else {
    int64_t *x = all_i(e, n, 0), *acc = arena_array(e->tmp, int64_t, count);
    int64_t none = n->prim == P_RSUM ? 0 : n->prim == P_RPROD ? 1 : least_i(n->dtype);
    for (int64_t k = 0; k < count; k++) acc[k] = none;
    for (int64_t k = 0; k < m; k++, fold_next(&f)) acc[f.at] = red_i(n->prim, acc[f.at], x[k]);
    store_i(n->dtype, out->data, 0, count, acc);
  }
  return true;
}

/* NaN is above everything; equal keys keep their order. */
static int order_f(double x, double y) {
  if (isnan(x) || isnan(y)) return isnan(x) - isnan(y);
  return (x > y) - (x < y);
}

/* One of the two arrays is set. */
typedef struct Keys {
  const double *f;
  const int64_t *i;
} Keys;

static Keys keys_of(Eval *e, const Node *n) {
  bool flt = dtype_is_float(n->in[0]->dtype);
  return flt ? (Keys){.f = all_f(e, n, 0)} : (Keys){.i = all_i(e, n, 0)};
}

static int order(const Keys *k, int64_t a, int64_t b) {
  return k->f ? order_f(k->f[a], k->f[b]) : (k->i[a] > k->i[b]) - (k->i[a] < k->i[b]);
}

bool eval_argmax(Eval *e, const Node *n, Tensor *out) {
  Keys keys = keys_of(e, n);
  int64_t count = node_numel(n), m = node_numel(n->in[0]);
  int64_t *best = arena_array(e->tmp, int64_t, count), *place = arena_array(e->tmp, int64_t, count);
  Fold f = fold_of(n);
  for (int64_t k = 0; k < count; k++) best[k] = -1;
  for (int64_t k = 0; k < m; k++, fold_next(&f))
    if (best[f.at] < 0 || order(&keys, k, best[f.at]) > 0) {
      best[f.at] = k;
      place[f.at] = f.place;
    }
  store_i(n->dtype, out->data, 0, count, place);
  return true;
}

/* ---- scatter ---- */

bool eval_scatter(Eval *e, const Node *n, Tensor *out) {
  const Node *base = n->in[0], *upd = n->in[2];
  bool flt = dtype_is_float(n->dtype);
  double *f = flt ? all_f(e, n, 0) : NULL, *fu = flt ? all_f(e, n, 2) : NULL;
  int64_t *v = flt ? NULL : all_i(e, n, 0), *vu = flt ? NULL : all_i(e, n, 2);
  int64_t *to = all_i(e, n, 1), m = node_numel(upd), count = node_numel(base), idx[KL_RANK] = {0};
  int64_t size = base->dims[n->i];
  int loops[KL_RANK];
  for (int d = 0; d < upd->rank; d++) loops[d] = d;
  for (int64_t k = 0; k < m && size > 0; k++) {
    int64_t at = 0;
    for (int d = 0; d < upd->rank; d++) {
      int64_t i = d != n->i ? idx[d] : to[k] < 0 ? 0 : to[k] < size ? to[k] : size - 1;
      at = at * base->dims[d] + i;
    }
    if (flt)
      f[at] = n->ia[0] ? fu[k] : f[at] + fu[k];
    else
      v[at] = n->ia[0] ? vu[k] : (int64_t)((uint64_t)v[at] + (uint64_t)vu[k]);
    next_index(upd->rank, loops, upd->dims, idx);
  }
  if (flt)
    store_f(n->dtype, out->data, 0, count, f);
  else
    store_i(n->dtype, out->data, 0, count, v);
  return true;
}

/* ---- argsort: bottom-up merge sort, stable ---- */

static void merge(const Keys *keys, bool down, int64_t base, const int64_t *from, int64_t lo,
                  int64_t mid, int64_t hi, int64_t *to) {
  int64_t a = lo, b = mid;
  for (int64_t k = lo; k < hi; k++) {
    int c = a < mid && b < hi ? order(keys, base + from[b], base + from[a]) : 0;
    bool second = a >= mid || (b < hi && (down ? c > 0 : c < 0));
    to[k] = second ? from[b++] : from[a++];
  }
}

bool eval_argsort(Eval *e, const Node *n, Tensor *out) {
  Keys keys = keys_of(e, n);
  int64_t len = n->dims[n->rank - 1], count = node_numel(n);
  int64_t *x = arena_array(e->tmp, int64_t, len), *y = arena_array(e->tmp, int64_t, len);
  for (int64_t row = 0; row < count; row += len) {
    for (int64_t k = 0; k < len; k++) x[k] = k;
    for (int64_t w = 1; w < len; w *= 2) {
      for (int64_t lo = 0; lo < len; lo += 2 * w) {
        int64_t mid = lo + w < len ? lo + w : len, hi = lo + 2 * w < len ? lo + 2 * w : len;
        merge(&keys, n->ia[0], row, x, lo, mid, hi, y);
      }
      int64_t *swap = x;
      x = y;
      y = swap;
    }
    store_i(n->dtype, out->data, row, len, x);
  }
  return true;
}
