/* Contractions with a gathered operand as im2col.c plans them, run. In: an Im2colPlan and buffers; out: the result, or the
 * partial results of chunks, and after the result the epilogue where it is fused.
 *
 * col[tap][position] of a tile is gathered tap by tap: rows of positions are runs in x, of which the part that lies inside is
 * copied in whole pieces, too far by less than a piece, what is written too far being overwritten by the next run or row; the
 * rest is zero. Then a product with w adds it to the result. */
#include "im2col.h"

/* ---- gathering ---- */

/* One row of col: the position loops of one tap, and the range of each that lies inside x. */
typedef struct Row {
  const char *at; /* element of position 0, perhaps outside */
  int64_t lo[KL_LOOPS], hi[KL_LOOPS];
} Row;

static void index_add(const LoopList *l, const Walk *w, int64_t i, int64_t *index) {
  for (int j = l->n - 1; j >= 0; j--) {
    int64_t v = i % w[j].ext;
    i /= w[j].ext;
    if (w[j].dim >= 0) index[w[j].dim] += v * w[j].coef;
  }
}

/* i in 0..ext-1 with 0 <= at + coef*i < size. */
static void inside(int64_t at, int64_t coef, int64_t size, int64_t ext, int64_t *lo, int64_t *hi) {
  if (coef < 0) { /* mirrored: 0 <= size-1-at + (-coef)*i < size */
    at = size - 1 - at;
    coef = -coef;
  }
  *lo = at >= 0 ? 0 : least(coef == 1 ? -at : div_up(-at, coef), ext);
  *hi = at >= size ? 0 : least(coef == 1 ? size - at : div_up(size - at, coef), ext);
  if (*hi < *lo) *hi = *lo;
}

/* The ranges of the guarded dimensions; false if all of the row is outside. */
static bool clip(const Facts *f, const Im2colPlan *g, const int64_t *index, Row *r) {
  const CDim *dim = f->dim[g->x];
  bool used[KL_RANK] = {false};
  for (int j = 0; j < g->pos.n; j++) {
    const Walk *w = &g->walk_pos[j];
    if (w->dim < 0 || !dim[w->dim].guard) continue;
    used[w->dim] = true;
    inside(index[w->dim], w->coef, dim[w->dim].size, w->ext, &r->lo[j], &r->hi[j]);
    if (r->lo[j] == r->hi[j]) return false;
  }
  for (int d = 0; d < f->n_dims[g->x]; d++)
    if (dim[d].guard && !used[d] && (index[d] < 0 || index[d] >= dim[d].size)) return false;
  return true;
}

static void copy_strided(char *to, const char *from, int64_t n, int64_t step, int size) {
  if (size == 4)
    for (int64_t i = 0; i < n; i++) ((float *)to)[i] = ((const float *)from)[i * step];
  else
    for (int64_t i = 0; i < n; i++) ((double *)to)[i] = ((const double *)from)[i * step];
}

#define INLINE static inline __attribute__((always_inline))
typedef char Piece __attribute__((vector_size(IM2COL_PIECE), aligned(1), may_alias));

/* Whole pieces: what they make up may be up to IM2COL_PIECE-1 bytes more than is wanted. */
INLINE void copy_pieces(char *to, const char *from, int n) {
  for (int i = 0; i < n; i++) ((Piece *)to)[i] = ((const Piece *)from)[i];
}

static int pieces_of(int64_t bytes) { return (int)((bytes + IM2COL_PIECE - 1) / IM2COL_PIECE); }

static void copy_run(char *to, const char *from, int64_t n, int64_t step, int size,
                     const char *end) {
  if (step != 1)
    copy_strided(to, from, n, step, size);
  else if (from + n * size + IM2COL_PIECE <= end)
    copy_pieces(to, from, pieces_of(n * size));
  else
    memcpy(to, from, (size_t)(n * size));
}

/* Positions p0..p1-1 of a row. What copies write too far is overwritten by the next run or row. */
static void gather_row(const Im2colPlan *g, const Row *r, int size, const char *end, int64_t p0,
                       int64_t p1, char *to) {
  int last = g->pos.n - 1;
  int64_t digit[KL_LOOPS], run = last < 0 ? 1 : g->walk_pos[last].ext;
  int64_t step = last < 0 ? 1 : g->walk_pos[last].step, o = p0 / run, j0 = p0 % run;
  for (int j = last - 1; j >= 0; j--) {
    digit[j] = o % g->walk_pos[j].ext;
    o /= g->walk_pos[j].ext;
  }
  int64_t lo = last < 0 ? 0 : r->lo[last], hi = last < 0 ? 1 : r->hi[last];
  while (p0 < p1) {
    int64_t j1 = least(run, j0 + p1 - p0), offset = 0;
    bool in = true;
    for (int j = 0; j < last; j++) {
      in &= digit[j] >= r->lo[j] && digit[j] < r->hi[j];
      offset += digit[j] * g->walk_pos[j].step;
    }
    int64_t a = in ? most(lo, j0) : j1, b = in ? least(hi, j1) : j1;
    if (a >= b) a = b = j1;
    if (a > j0) memset(to, 0, (size_t)((a - j0) * size));
    if (b > a)
      copy_run(to + (a - j0) * size, r->at + (offset + a * step) * size, b - a, step, size, end);
    if (j1 > b) memset(to + (b - j0) * size, 0, (size_t)((j1 - b) * size));
    to += (j1 - j0) * size;
    p0 += j1 - j0;
    j0 = 0;
    for (int j = last - 1; j >= 0 && ++digit[j] == g->walk_pos[j].ext; j--) digit[j] = 0;
  }
}

/* To the next tap: its index and address. */
static inline void next_tap(const Im2colPlan *g, int size, int64_t *digit, int64_t *index, Row *r) {
  for (int j = g->tap.n - 1; j >= 0; j--) {
    const Walk *w = &g->walk_tap[j];
    bool wraps = ++digit[j] == w->ext;
    int64_t by = wraps ? 1 - w->ext : 1;
    if (wraps) digit[j] = 0;
    if (w->dim >= 0) index[w->dim] += by * w->coef;
    r->at += by * w->step * size;
    if (!wraps) return;
  }
}

/* What gather_whole_runs copies for each tap: n runs of so many bytes, `pitch` bytes apart. */
typedef struct Runs {
  int64_t n, ext, pitch;
  const char *last; /* a tap that begins later may not be copied in whole pieces */
} Runs;

/* n runs of m pieces of each tap, which begin `tap[t]` elements from `from`. */
INLINE int64_t copy_taps(const Runs *u, const int64_t *tap, int64_t taps, int size,
                         const char *from, char *to, int64_t n, int m) {
  const char *last = u->last;
  int64_t t = 0, ext = u->ext, pitch = u->pitch;
  for (; t < taps && from + tap[t] * size <= last; t++) {
    const char *run = from + tap[t] * size;
    _Pragma("GCC unroll 8") for (int64_t o = 0; o < n; o++, run += pitch, to += ext)
        copy_pieces(to, run, m);
  }
  return t;
}

/* With the common lengths, and numbers of short runs, unrolled. */
INLINE int64_t copy_any(const Runs *u, const int64_t *tap, int64_t taps, int size, const char *from,
                        char *to) {
  int pieces = pieces_of(u->ext);
  switch (pieces) {
  case 1:
    if (u->n == 8) return copy_taps(u, tap, taps, size, from, to, 8, 1);
    if (u->n == 4) return copy_taps(u, tap, taps, size, from, to, 4, 1);
    return copy_taps(u, tap, taps, size, from, to, u->n, 1);
  case 2: return copy_taps(u, tap, taps, size, from, to, u->n, 2);
  case 3: return copy_taps(u, tap, taps, size, from, to, u->n, 3);
  case 4: return copy_taps(u, tap, taps, size, from, to, u->n, 4);
  }
  return copy_taps(u, tap, taps, size, from, to, u->n, pieces);
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) static int64_t
copy_avx2(const Runs *u, const int64_t *tap, int64_t taps, int size, const char *from, char *to) {
  return copy_any(u, tap, taps, size, from, to);
}
#endif

/* Taps without padding whose whole runs are read, the first of them at `from`: as many as lie so far inside x that whole pieces
 * may be copied. Returns their number. */
static int64_t gather_whole_runs(const Runs *u, const int64_t *tap, int64_t taps, int size,
                                 const char *from, char *to) {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2")) return copy_avx2(u, tap, taps, size, from, to);
#endif
  return copy_any(u, tap, taps, size, from, to);
}

/* Two position loops, unit step, whole runs o0..o1-1: the common case. */
static void gather_runs(const Im2colPlan *g, const Row *r, int size, int64_t o0, int64_t o1,
                        char *to) {
  int64_t ext = g->walk_pos[1].ext * size, pitch = g->walk_pos[0].step * size;
  int64_t lo = r->lo[1] * size, hi = r->hi[1] * size;
  for (int64_t o = o0; o < o1; o++, to += ext) {
    if (o < r->lo[0] || o >= r->hi[0]) {
      memset(to, 0, (size_t)ext);
      continue;
    }
    copy_pieces(to + lo, r->at + o * pitch + lo, pieces_of(hi - lo));
    for (int64_t i = 0; i < lo; i += 4) memset(to + i, 0, 4);
    for (int64_t i = hi; i < ext; i += 4) memset(to + i, 0, 4);
  }
}

static bool are_runs(const Im2colPlan *g, int64_t p0, int64_t p1) {
  const Walk *w = g->walk_pos;
  return g->pos.n == 2 && w[1].step == 1 && w[0].step >= 0 && p0 % w[1].ext == 0 &&
         p1 % w[1].ext == 0;
}

/* May whole pieces be copied? */
static bool ends_inside(const Im2colPlan *g, const Row *r, int size, const char *end) {
  return r->at + ((r->hi[0] - 1) * g->walk_pos[0].step + r->hi[1]) * size + IM2COL_PIECE <= end;
}

/* A tap of an item: its address, index and digits. */
static Row begin_row(const Facts *f, const Im2colPlan *g, const char *x, int64_t item, int64_t sum,
                     int64_t tap, int64_t *index, int64_t *digit) {
  const CDim *dim = f->dim[g->x];
  int64_t at = 0;
  Row r;
  for (int d = 0; d < f->n_dims[g->x]; d++) index[d] = dim[d].off;
  index_add(&g->outer, g->walk_outer, item, index);
  index_add(&g->sum, g->walk_sum, sum, index);
  index_add(&g->tap, g->walk_tap, tap, index);
  for (int64_t j = g->tap.n - 1, i = tap; j >= 0; i /= g->walk_tap[j--].ext)
    digit[j] = i % g->walk_tap[j].ext;
  for (int d = 0; d < f->n_dims[g->x]; d++) at += index[d] * dim[d].stride;
  r.at = x + at * f->size;
  for (int j = 0; j < g->pos.n; j++) {
    r.lo[j] = 0;
    r.hi[j] = g->walk_pos[j].ext;
  }
  return r;
}

/* col[t0..t1-1][p0..p1-1] for an outer and a sum item. */
static void gather(const Plan *p, const char *x, int64_t item, int64_t sum, int64_t t0, int64_t t1,
                   int64_t p0, int64_t p1, char *col) {
  const Im2colPlan *g = p->im2col;
  const Facts *f = &p->facts;
  const CDim *dim = f->dim[g->x];
  int64_t index[KL_RANK], digit[KL_LOOPS] = {0}, n = (p1 - p0) * f->size, numel = 1, t = t0;
  for (int d = 0; d < f->n_dims[g->x]; d++) numel *= dim[d].size;
  const char *end = x + numel * f->size;
  int64_t run = g->pos.n ? g->walk_pos[g->pos.n - 1].ext : 1, o0 = p0 / run, o1 = p1 / run;
  bool runs = are_runs(g, p0, p1), plain = f->plain[g->x];
  Row r = begin_row(f, g, x, item, sum, t0, index, digit);
  if (runs && plain && o1 > o0 && g->tap_at) {
    int64_t pitch = g->walk_pos[0].step * f->size, bytes = run * f->size;
    int64_t reach = (o1 - o0 - 1) * pitch + pieces_of(bytes) * IM2COL_PIECE;
    Runs u = {o1 - o0, bytes, pitch, end - reach};
    const char *from = r.at + (o0 * g->walk_pos[0].step - g->tap_at[t0]) * f->size;
    t += gather_whole_runs(&u, g->tap_at + t0, t1 - t0, f->size, from, col);
    col += (t - t0) * n;
    if (t < t1) r = begin_row(f, g, x, item, sum, t, index, digit);
  }
  for (; t < t1; t++, col += n) {
    if (!plain && !clip(f, g, index, &r))
      memset(col, 0, (size_t)n);
    else if (runs && ends_inside(g, &r, f->size, end))
      gather_runs(g, &r, f->size, o0, o1, col);
    else
      gather_row(g, &r, f->size, end, p0, p1, col);
    next_tap(g, f->size, digit, index, &r);
  }
}

/* ---- products ---- */

/* c += or = w * col for the tile at p0 of an outer item and of `count` sum items, taps t0 and on. */
static void tile_product(const Plan *p, void *const *bufs, char *c, int64_t item, int64_t sum,
                         int64_t count, int64_t t0, int64_t p0, bool add, RunCtx *ctx) {
  const Im2colPlan *g = p->im2col;
  const Facts *f = &p->facts;
  int64_t t1 = least(t0 + g->block, g->tap.total), n = least(g->tile, g->pos.total - p0);
  int64_t col = (t1 - t0) * n;
  for (int64_t i = 0; i < count; i++)
    gather(p, bufs[p->frame.x[g->x]], item, sum + i, t0, t1, p0, p0 + n,
           (char *)ctx->scratch + i * col * f->size);
  int64_t wo = f->base[g->w] + list_at(f, &g->outer, item, g->w) + list_at(f, &g->sum, sum, g->w);
  int64_t co = list_at(f, &g->outer, item, 2);
  if (g->summed) {
    wo += p0 * g->w_pos;
    co += t0 * (g->c_mat.trans ? g->c_mat.ld : 1);
  } else
    co += p0 * g->c_pos;
  const char *w = (const char *)bufs[p->frame.x[g->w]] + wo * f->size;
  int64_t m = g->summed ? t1 - t0 : n, k = g->summed ? n : t1 - t0;
  MicroProduct q = {g->rows.total, m, k, .a = w, .b = ctx->scratch, .c = c + co * f->size};
  q.a_mat = g->w_mat;
  q.b_mat = (Mat){g->summed, n};
  q.c_mat = g->c_mat;
  q.add = add;
  q.batch = count;
  q.a_step = g->w_step;
  q.b_step = col;
  multiply(p, &q, ctx->scratch);
}

void im2col_tile_tasks(const void *self, void *const *bufs, int64_t begin, int64_t end,
                       RunCtx *ctx) {
  const Plan *p = self;
  const Im2colPlan *g = p->im2col;
  char *c = bufs[p->frame.out];
  int64_t count = g->per_task ? g->per_task * g->tiles : 1, all = g->outer.total * g->tiles;
  int64_t a_row = g->unit * g->tiles; /* tiles in a row of the epilogue; 0: one task does all */
  for (int64_t i = begin * count, i1 = least(end * count, all); i < i1; i++) {
    for (int64_t s = 0; s < g->sum.total; s += g->group)
      tile_product(p, bufs, c, i / g->tiles, s, least(g->group, g->sum.total - s), 0,
                   i % g->tiles * g->tile, s > 0, ctx);
    if (!p->frame.fn) continue;
    if (!a_row)
      run_epilogue(&p->frame, bufs, 0, p->frame.rows, ctx);
    else if ((i + 1) % a_row == 0)
      run_epilogue(&p->frame, bufs, i / a_row, i / a_row + 1, ctx);
  }
}

/* A task is a block of taps of an outer item. */
void im2col_tap_tasks(const void *self, void *const *bufs, int64_t begin, int64_t end,
                      RunCtx *ctx) {
  const Plan *p = self;
  const Im2colPlan *g = p->im2col;
  char *c = bufs[p->frame.out];
  for (int64_t t = begin; t < end; t++) {
    for (int64_t s = 0; s < g->steps; s += g->group)
      tile_product(p, bufs, c, t / g->blocks, s / g->tiles, least(g->group, g->steps - s),
                   t % g->blocks * g->block, s % g->tiles * g->tile, s > 0, ctx);
    run_epilogue(&p->frame, bufs, 0, p->frame.rows, ctx);
  }
}

/* A task is an outer item of one chunk. */
void im2col_chunk_tasks(const void *self, void *const *bufs, int64_t begin, int64_t end,
                        RunCtx *ctx) {
  const Plan *p = self;
  const Im2colPlan *g = p->im2col;
  for (int64_t t = begin; t < end; t++) {
    int64_t chunk = t / g->outer.total, item = t % g->outer.total;
    int64_t s0 = g->steps * chunk / g->chunks, s1 = g->steps * (chunk + 1) / g->chunks;
    char *c = g->chunks == 1 ? bufs[p->frame.out]
                             : (char *)bufs[p->frame.ws] + chunk * p->facts.numel * p->facts.size;
    for (int64_t s = s0; s < s1; s += g->group)
      tile_product(p, bufs, c, item, s / g->tiles, least(g->group, s1 - s), 0,
                   s % g->tiles * g->tile, s > s0, ctx);
    if (g->chunks == 1) run_epilogue(&p->frame, bufs, 0, p->frame.rows, ctx);
  }
}
