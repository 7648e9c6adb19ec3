/* Index vectors as affine expressions over loop variables with known ranges. In: the index of a node's element; out: the
 * index of its operand's element behind a view, reshape or contraction map. What ranges can decide is decided here:
 * guards that always or never hold, divisions that come out even. Only what is left becomes code. Dimensions that are
 * traversed as one loop stay one expression (a run) until something needs them apart. */
#include "gen.h"
#include <string.h>

Aff aff_k(int64_t k) { return (Aff){.k = k}; }
Aff aff_var(int var, int64_t c) { return (Aff){.n = 1, .var = {var}, .c = {c}}; }

Aff aff_mul(Aff x, int64_t c) {
  if (c == 0) return aff_k(0);
  for (int i = 0; i < x.n; i++) x.c[i] *= c;
  x.k *= c;
  return x;
}

bool aff_equal(const Aff *x, const Aff *y) {
  if (x->n != y->n || x->k != y->k) return false;
  for (int i = 0; i < x->n; i++)
    if (x->var[i] != y->var[i] || x->c[i] != y->c[i]) return false;
  return true;
}

bool index_equal(const Index *x, const Index *y) {
  if (x->rank != y->rank) return false;
  for (int d = 0; d < x->rank; d++)
    if (!aff_equal(&x->d[d], &y->d[d])) return false;
  return true;
}

void aff_range(const Gen *g, const Aff *x, int64_t *lo, int64_t *hi) {
  *lo = *hi = x->k;
  for (int i = 0; i < x->n; i++) {
    const LoopVar *v = &g->vars.v[x->var[i]];
    *lo += x->c[i] * (x->c[i] > 0 ? v->lo : v->hi);
    *hi += x->c[i] * (x->c[i] > 0 ? v->hi : v->lo);
  }
}

/* All terms as one, with their common factor: neighbours have the same, and what is a multiple stays one. */
static Aff aff_opaque(Gen *g, const Aff *x) {
  int64_t lo, hi, key[3 + 2 * AFF_TERMS] = {'o'}, c = 0;
  Aff terms = *x;
  for (int i = 0; i < x->n; i++) c = common_factor(c, x->c[i]);
  for (int i = 0; i < x->n; i++) terms.c[i] /= c;
  terms.k = 0;
  aff_range(g, &terms, &lo, &hi);
  int n = 1 + aff_key(&terms, key + 1);
  Memo *m = memo_find(g, key, n);
  if (!m) {
    Val v = g->probe ? NULL : aff_value(g, &terms);
    m = memo_add(g, g->probe ? g->depth : gen_depth(g, v), key, n);
    m->var[0] = gen_var(g, v, lo, hi);
  }
  terms = aff_var(m->var[0], c);
  terms.k = x->k;
  return terms;
}

Aff aff_add(Gen *g, const Aff *x, const Aff *y) {
  Aff r = {.k = x->k + y->k};
  int i = 0, j = 0;
  while (i < x->n || j < y->n) {
    if (r.n == AFF_TERMS) {
      Aff ox = x->n > 1 ? aff_opaque(g, x) : *x, oy = y->n > 1 ? aff_opaque(g, y) : *y;
      return aff_add(g, &ox, &oy);
    }
    bool from_x = j == y->n || (i < x->n && x->var[i] <= y->var[j]);
    bool from_y = i == x->n || (j < y->n && y->var[j] <= x->var[i]);
    r.var[r.n] = from_x ? x->var[i] : y->var[j];
    r.c[r.n] = (from_x ? x->c[i++] : 0) + (from_y ? y->c[j++] : 0);
    if (r.c[r.n]) r.n++;
  }
  return r;
}

static int64_t floor_div(int64_t a, int64_t b) { return a / b - (a % b < 0); }

/* Quotient and remainder of a value known to be in lo..hi, as new variables. */
static void divmod_code(Gen *g, const Aff *x, int64_t d, int64_t lo, int64_t hi, Aff *q, Aff *r) {
  int64_t key[4 + 2 * AFF_TERMS] = {'d', d};
  int n = 2 + aff_key(x, key + 2);
  int64_t up =
      lo < 0 ? -floor_div(lo, d) : 0; /* multiples of d to add so that it is not negative */
  Memo *m = memo_find(g, key, n);
  if (!m) {
    Val vq = NULL, vr = NULL;
    if (!g->probe) {
      Aff shift = aff_k(up * d), pos = aff_add(g, x, &shift);
      Val v = aff_value(g, &pos);
      gen_at(g, gen_depth(g, v));
      bool narrow = hi + up * d <= INT32_MAX;
      LLVMTypeRef t = narrow ? g->i32 : g->i64;
      Val w = narrow ? LLVMBuildTrunc(g->b, v, t, "") : v, by = LLVMConstInt(t, (uint64_t)d, 0);
      vq = LLVMBuildUDiv(g->b, w, by, "");
      vr = LLVMBuildURem(g->b, w, by, "");
      if (narrow) {
        vq = LLVMBuildZExt(g->b, vq, g->i64, "");
        vr = LLVMBuildZExt(g->b, vr, g->i64, "");
      }
    }
    m = memo_add(g, g->probe ? g->depth : gen_depth(g, vq), key, n);
    m->var[0] = gen_var(g, vq, (lo + up * d) / d, (hi + up * d) / d);
    m->var[1] = gen_var(g, vr, 0, d - 1);
  }
  *q = aff_var(m->var[0], 1);
  q->k = -up;
  *r = aff_var(m->var[1], 1);
}

/* While probing: how often the innermost loop must be unrolled for this division to come out even. */
static void want_phases(Gen *g, const Aff *x, int64_t d) {
  for (int i = 0; i < x->n; i++)
    if (x->var[i] == g->inner) {
      int64_t c = common_factor(x->c[i], d);
      if (d / c > g->want) g->want = d / c;
    }
}

/* With the common factor c of d and of all terms, (c y + k) mod d is c (y + k / c mod d / c) + k mod c: neighbours share their
 * division, and what is a multiple of c stays one. */
static void divmod_rest(Gen *g, Aff x, int64_t d, Aff *q, Aff *r) {
  int64_t c = d, lo, hi;
  for (int i = 0; i < x.n; i++) c = common_factor(c, x.c[i]);
  int64_t k = x.k - floor_div(x.k, c) * c;
  for (int i = 0; i < x.n; i++) x.c[i] /= c;
  x.k = floor_div(x.k, c);
  aff_range(g, &x, &lo, &hi);
  divmod_code(g, &x, d / c, lo, hi, q, r);
  *r = aff_mul(*r, c);
  r->k += k;
}

void aff_divmod(Gen *g, const Aff *x, int64_t d, Aff *q, Aff *r) {
  Aff even = aff_k(floor_div(x->k, d)), rest = aff_k(x->k - even.k * d);
  int64_t lo, hi;
  for (int i = 0; i < x->n; i++) {
    Aff *to = x->c[i] % d ? &rest : &even;
    to->var[to->n] = x->var[i];
    to->c[to->n++] = x->c[i] % d ? x->c[i] : x->c[i] / d;
  }
  aff_range(g, &rest, &lo, &hi);
  int64_t t = floor_div(lo, d);
  if (t == floor_div(hi, d)) {
    even.k += t;
    rest.k -= t * d;
    *q = even;
    *r = rest;
    return;
  }
  if (g->probe) want_phases(g, &rest, d);
  Aff part;
  divmod_rest(g, rest, d, &part, r);
  *q = aff_add(g, &even, &part);
}

/* Terms of outer loops are added where those loops are. */
Val aff_value(Gen *g, const Aff *x) {
  if (x->n == 0) return gen_i64(g, x->k);
  int64_t key[3 + 2 * AFF_TERMS] = {'v'};
  int n = 1 + aff_key(x, key + 1);
  Memo *m = memo_find(g, key, n);
  if (m) return m->v[0];
  int deep = 0, at = -1;
  for (int i = 0; i < x->n; i++) {
    int d = gen_depth(g, g->vars.v[x->var[i]].v);
    if (at < 0 || d >= deep) deep = d, at = i;
  }
  Aff rest = *x;
  rest.n--;
  for (int i = at; i < rest.n; i++) rest.var[i] = x->var[i + 1], rest.c[i] = x->c[i + 1];
  Val base = aff_value(g, &rest), v = g->vars.v[x->var[at]].v;
  gen_at(g, deep);
  if (x->c[at] != 1) v = LLVMBuildNSWMul(g->b, v, gen_i64(g, x->c[at]), "");
  if (rest.n || rest.k) v = LLVMBuildNSWAdd(g->b, v, base, "");
  m = memo_add(g, deep, key, n);
  return m->v[0] = v;
}

int aff_key(const Aff *x, int64_t *key) {
  int n = 0;
  key[n++] = x->n;
  key[n++] = x->k;
  for (int i = 0; i < x->n; i++) {
    key[n++] = x->var[i];
    key[n++] = x->c[i];
  }
  return n;
}

int index_key(const Index *ix, int64_t *key) {
  int n = 0;
  for (int d = 0; d < ix->rank; d++) n += aff_key(&ix->d[d], key + n);
  return n;
}

/* The row-major position within dimensions from..to-1, which no run crosses. */
Aff index_linear(Gen *g, const Index *ix, const int64_t *dims, int from, int to) {
  Aff sum = aff_k(0);
  int64_t stride = 1;
  for (int d = to - 1; d >= from; d--) {
    int64_t step = stride;
    stride *= dims[d];
    while (ix->d[d].n < 0) stride *= dims[--d];
    Aff t = aff_mul(ix->d[d], step);
    sum = aff_add(g, &sum, &t);
  }
  return sum;
}

static int run_start(const Index *ix, int d) {
  while (ix->d[d].n < 0) d--;
  return d;
}

static int run_end(const Index *ix, int d) {
  do d++;
  while (d < ix->rank && ix->d[d].n < 0);
  return d;
}

void index_split(Gen *g, Index *ix, const int64_t *dims, int d) {
  int from = run_start(ix, d), to = run_end(ix, d);
  Aff e = ix->d[from];
  for (int j = to - 1; j > from; j--) {
    Aff q, r;
    if (dims[j] == 1)
      q = e, r = aff_k(0);
    else
      aff_divmod(g, &e, dims[j], &q, &r);
    ix->d[j] = r;
    e = q;
  }
  ix->d[from] = e;
}

/* Groups of dimensions with equal products; inside a group the position is one run of the result. */
void index_reshape(Gen *g, const Index *ix, const int64_t *dims, int rank, const int64_t *to,
                   Index *out) {
  int i = 0, j = 0;
  out->rank = rank;
  while (i < ix->rank || j < rank) {
    int i0 = i, j0 = j;
    int64_t a = i < ix->rank ? dims[i++] : 1, b = j < rank ? to[j++] : 1;
    while (a != b || (i < ix->rank && ix->d[i].n < 0))
      if (j == rank || (i < ix->rank && (a < b || a == b)))
        a *= dims[i++];
      else
        b *= to[j++];
    while (i < ix->rank && dims[i] == 1) i++;
    while (j < rank && to[j] == 1) j++;
    Aff lin = i > i0 ? index_linear(g, ix, dims, i0, i) : aff_k(0);
    if (j == j0) continue;
    out->d[j0] = lin;
    for (int k = j0 + 1; k < j; k++) out->d[k].n = -1;
  }
}

/* While probing: the innermost loop is cut where the index enters and leaves 0..dim-1. */
static void cut_loop(Gen *g, const Aff *e, int64_t dim) {
  if (e->n != 1 || e->var[0] != g->inner || g->n_cut + 2 > GEN_CUTS) return;
  int64_t c = e->c[0], k = e->k;
  g->cut[g->n_cut++] = c > 0 ? -floor_div(k, c) : -floor_div(dim - 1 - k, -c);
  g->cut[g->n_cut++] = c > 0 ? -floor_div(k - dim, c) : floor_div(k, -c) + 1;
}

/* One dimension of an operand: its index, and whether that is inside. */
static bool map_dim(Gen *g, const Index *ix, const AffDim *m, int64_t dim, Aff *out, Val *guard) {
  Aff e = aff_k(m->off), t, r;
  if (m->l0 >= 0) t = aff_mul(ix->d[m->l0], m->c0), e = aff_add(g, &e, &t);
  if (m->l1 >= 0) t = aff_mul(ix->d[m->l1], m->c1), e = aff_add(g, &e, &t);
  Val ok = NULL;
  int64_t lo, hi;
  if (m->div > 1) {
    t = e;
    aff_divmod(g, &t, m->div, &e, &r);
    if (r.n == 0 && r.k) return false;
    if (r.n && !g->probe) {
      Val v = aff_value(g, &r);
      gen_at(g, gen_depth(g, v));
      ok = LLVMBuildICmp(g->b, LLVMIntEQ, v, gen_i64(g, 0), "");
    }
  }
  aff_range(g, &e, &lo, &hi);
  if (hi < 0 || lo >= dim) return false;
  if (lo < 0 || hi >= dim) {
    /* What is outside reads this instead, which is in the range that the index counts on from here. */
    int64_t least = lo < 0 ? 0 : lo;
    if (g->probe) cut_loop(g, &e, dim);
    Val v = NULL;
    if (!g->probe) {
      v = aff_value(g, &e);
      gen_at(g, gen_depth(g, v));
      Val in = LLVMBuildICmp(g->b, LLVMIntULT, v, gen_i64(g, dim), "");
      v = LLVMBuildSelect(g->b, in, v, gen_i64(g, least), "");
      ok = gen_and(g, ok, in);
    }
    e = aff_var(gen_var(g, v, least, hi >= dim ? dim - 1 : hi), 1);
  }
  *out = e;
  *guard = gen_and(g, *guard, ok);
  return true;
}

bool index_map(Gen *g, const Index *ix0, const int64_t *ext, const AffDim *map, int rank,
               const int64_t *dims, Index *out, Val *guard) {
  Index ix = *ix0;
  bool done[KL_LOOPS] = {false};
  out->rank = rank;
  for (int l = 0; l < ix.rank; l++) {
    int to = run_end(&ix, l), at, end;
    if (to == l + 1) continue;
    if (!map_run(map, rank, dims, ext, l, to, &at, &end)) {
      index_split(g, &ix, ext, l);
    } else if (at >= 0) {
      for (int p = at; p < end; p++) done[p] = true, out->d[p].n = -1;
      out->d[at] = ix.d[l];
    }
    l = to - 1;
  }
  for (int p = 0; p < rank; p++) {
    AffDim m = map[p];
    if (done[p]) continue;
    if (m.l0 >= 0 && (ext[m.l0] == 1 || !m.c0)) m.l0 = -1;
    if (m.l1 >= 0 && (ext[m.l1] == 1 || !m.c1)) m.l1 = -1;
    if (!map_dim(g, &ix, &m, dims[p], &out->d[p], guard)) return false;
  }
  return true;
}
