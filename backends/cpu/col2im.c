/* The gradient of a convolution's input, without gathering: the transposed convolution.
 *
 * In: result[.., h, ..] = sum over o, kh, .. of x[.., o, q, ..] * w[o, c, kh, ..] where q = (h + c1*kh + off) / div in each
 * window dimension of x. Each product belongs to one position q of x, so for each outer item (image, group)
 *   columns[c, kh.., q..] = sum over o of w[o, c, kh..] * x[o, q..]      one matrix product
 *   result[c, q*div - c1*kh - off] += columns[c, kh.., q..]              in the order of (c, kh.., q..)
 * A task takes outer items, or a block of channels c of one: the columns of a block fit the L2 cache. */
#include "cpu.h"

enum { COLUMN_BYTES = 512 << 10, LANES = 8 };

/* A window dimension of x. */
typedef struct Window {
  int64_t size, ext; /* of the dimension of x; of the result loop */
  int64_t taps;      /* extent of the summed loop */
  int64_t c1, off, div;
  int64_t step; /* of the result loop in the result */
} Window;

typedef struct Col2imPlan {
  int x, w;
  LoopList outer, sum, left; /* left: rows of columns: channels and taps in w's order */
  int n;
  Window win[KL_RANK];       /* in x's order */
  int tap_win[KL_LOOPS];     /* of the loops of left: the window, or -1: a channel */
  int64_t positions, q_step; /* of x in one item; their stride in x */
  int64_t channels, taps;    /* extents of left's channel loops and tap loops */
  bool lead;                 /* in w and the result, channels come before taps and positions */
  int64_t block, blocks;     /* channels per task; blocks > 1 only if channels lead */
  int64_t k;                 /* extent of the summed side of the product */
  int64_t per_task, unit;    /* see im2col.h */
  int64_t c_step;            /* of a channel in the result, if channels lead */
  Mat w_mat, x_mat;
  int64_t x_base; /* of the dimensions that are no windows */
  int64_t w_left; /* step of left in w */
} Col2imPlan;

/* n rows of m positions: to += from. A row of the result and its elements are `pitch` and `step` apart. */
#define ADD_PLANE(NAME, T)                                                                         \
  static void NAME(T *to, int64_t pitch, int64_t step, const T *from, int64_t from_pitch,          \
                   int64_t n, int64_t m) {                                                         \
    typedef T Vec __attribute__((vector_size(LANES * sizeof(T))));                                 \
    for (; n > 0; n--, to += pitch, from += from_pitch) {                                          \
      int64_t i = 0;                                                                               \
      if (step == 1)                                                                               \
        for (; i + LANES <= m; i += LANES) {                                                       \
          Vec a, b;                                                                                \
          memcpy(&a, to + i, sizeof a);                                                            \
          memcpy(&b, from + i, sizeof b);                                                          \
          a += b;                                                                                  \
          memcpy(to + i, &a, sizeof a);                                                            \
        }                                                                                          \
      for (; i < m; i++) to[i * step] += from[i];                                                  \
    }                                                                                              \
  }
ADD_PLANE(add_float, float)
ADD_PLANE(add_double, double)

/* The q in lo..hi-1 with 0 <= q*div - shift < ext. */
static void range(const Window *w, int64_t shift, int64_t *lo, int64_t *hi) {
  int64_t end = shift + w->ext;
  *lo = shift <= 0 ? 0 : least(w->div == 1 ? shift : div_up(shift, w->div), w->size);
  *hi = end <= 0 ? 0 : least(w->div == 1 ? end : div_up(end, w->div), w->size);
  if (*hi < *lo) *hi = *lo;
}

/* Where the positions of one tap meet the result. shift[i] = c1*kh + off of window i. */
typedef struct Meet {
  int64_t shift[KL_RANK], lo[KL_RANK], hi[KL_RANK];
} Meet;

static bool meets(const Col2imPlan *g, Meet *m) {
  bool some = true;
  for (int i = 0; i < g->n; i++) {
    range(&g->win[i], m->shift[i], &m->lo[i], &m->hi[i]);
    some &= m->lo[i] < m->hi[i];
  }
  return some;
}

/* One row of columns into the result, plane after plane of the last two windows. */
static void add_row(const Plan *p, const char *row, char *to, const Meet *meet) {
  const Col2imPlan *g = p->col2im;
  int last = g->n - 1, rows = last - 1; /* windows of a plane; rows -1: a plane of one row */
  const Window *in = &g->win[last], *out = &g->win[rows < 0 ? 0 : rows];
  const int64_t *lo = meet->lo, *hi = meet->hi;
  int64_t n = rows < 0 ? 1 : hi[rows] - lo[rows], m = hi[last] - lo[last], q[KL_RANK];
  memcpy(q, lo, sizeof q);
  for (;;) {
    int64_t at = 0, from = 0;
    for (int i = 0; i <= last; i++) {
      at += (q[i] * g->win[i].div - meet->shift[i]) * g->win[i].step;
      from = from * g->win[i].size + q[i];
    }
    if (p->facts.dtype == DT_FLOAT32)
      add_float((float *)to + at, out->div * out->step, in->div * in->step,
                (const float *)row + from, in->size, n, m);
    else
      add_double((double *)to + at, out->div * out->step, in->div * in->step,
                 (const double *)row + from, in->size, n, m);
    int i = rows - 1;
    for (; i >= 0 && ++q[i] == hi[i]; i--) q[i] = lo[i];
    if (i < 0) return;
  }
}

/* To the next of left's loops from..: its taps in meet; returns how far the result's channel moves. */
static int64_t next_left(const Facts *f, const Col2imPlan *g, int from, int64_t *digit,
                         Meet *meet) {
  int64_t at = 0;
  for (int j = g->left.n - 1; j >= from; j--) {
    const CLoop *l = &f->loop[g->left.id[j]];
    bool wraps = ++digit[j] == l->ext;
    int64_t by = wraps ? 1 - l->ext : 1;
    if (wraps) digit[j] = 0;
    if (g->tap_win[j] < 0)
      at += by * l->s[2];
    else
      meet->shift[g->tap_win[j]] += by * g->win[g->tap_win[j]].c1;
    if (!wraps) break;
  }
  return at;
}

static Meet first_tap(const Col2imPlan *g) {
  Meet m = {{0}, {0}, {0}};
  for (int i = 0; i < g->n; i++) m.shift[i] = g->win[i].off;
  return m;
}

/* Row after row. */
static void fold(const Plan *p, const char *columns, int64_t rows, char *to) {
  const Col2imPlan *g = p->col2im;
  const Facts *f = &p->facts;
  int64_t digit[KL_LOOPS] = {0}, at = 0;
  Meet meet = first_tap(g);
  for (int64_t r = 0; r < rows; r++) {
    if (meets(g, &meet)) add_row(p, columns + r * g->positions * f->size, to + at * f->size, &meet);
    at += next_left(f, g, 0, digit, &meet);
  }
}

/* Channels lead: tap after tap over a few channels, so that a sum is not read again right after it was written. */
static void fold_channels(const Plan *p, const char *columns, int64_t channels, char *to) {
  enum { AREA_BYTES = 16 << 10 };
  const Col2imPlan *g = p->col2im;
  const Facts *f = &p->facts;
  int64_t row = g->positions * f->size, step = g->c_step * f->size;
  int taps_from = 0;
  int64_t few = most(AREA_BYTES / (step ? step : 1), 2);
  while (taps_from < g->left.n && g->tap_win[taps_from] < 0) taps_from++;
  for (int64_t c0 = 0; c0 < channels; c0 += few) {
    int64_t c1 = least(c0 + few, channels), digit[KL_LOOPS] = {0};
    Meet meet = first_tap(g);
    for (int64_t t = 0; t < g->taps; t++) {
      for (int64_t c = meets(g, &meet) ? c0 : c1; c < c1; c++)
        add_row(p, columns + (c * g->taps + t) * row, to + c * step, &meet);
      next_left(f, g, taps_from, digit, &meet);
    }
  }
}

static void item_block(const Plan *p, void *const *bufs, int64_t item, int64_t c0, RunCtx *ctx) {
  const Col2imPlan *g = p->col2im;
  const Facts *f = &p->facts;
  int64_t n = least(g->block, g->channels - c0), rows = n * g->taps;
  const char *w = bufs[p->frame.x[g->w]], *x = bufs[p->frame.x[g->x]];
  int64_t wo = f->base[g->w] + list_at(f, &g->outer, item, g->w) + c0 * g->taps * g->w_left,
          xo = g->x_base + list_at(f, &g->outer, item, g->x);
  MicroProduct q = {rows, g->positions, g->k, .c = ctx->scratch, .a_mat = g->w_mat};
  q.b_mat = g->x_mat;
  q.c_mat = (Mat){false, g->positions};
  q.batch = 1;
  for (int64_t s = 0; s < g->sum.total; s++, q.add = true) {
    q.a = w + (wo + list_at(f, &g->sum, s, g->w)) * f->size;
    q.b = x + (xo + list_at(f, &g->sum, s, g->x)) * f->size;
    multiply(p, &q, ctx->scratch);
  }
  char *to =
      (char *)bufs[p->frame.out] + (list_at(f, &g->outer, item, 2) + c0 * g->c_step) * f->size;
  int64_t area = f->numel / g->outer.total / g->channels * n;
  memset(to, 0, (size_t)(area * f->size));
  if (g->lead)
    fold_channels(p, ctx->scratch, n, to);
  else
    fold(p, ctx->scratch, rows, to);
}

static void fold_tasks(const void *self, void *const *bufs, int64_t begin, int64_t end,
                       RunCtx *ctx) {
  const Plan *p = self;
  const Col2imPlan *g = p->col2im;
  int64_t count = g->per_task ? g->per_task * g->blocks : 1, all = g->outer.total * g->blocks;
  int64_t a_row = g->unit * g->blocks;
  for (int64_t i = begin * count, i1 = least(end * count, all); i < i1; i++) {
    item_block(p, bufs, i / g->blocks, i % g->blocks * g->block, ctx);
    if (!p->frame.fn) continue;
    if (!a_row)
      run_epilogue(&p->frame, bufs, 0, p->frame.rows, ctx);
    else if ((i + 1) % a_row == 0)
      run_epilogue(&p->frame, bufs, i / a_row, i / a_row + 1, ctx);
  }
}

/* ---- planning ---- */

/* Dimension d of x as a window: one result loop with coefficient 1, at most one summed loop. */
static bool window_of(const Facts *f, const CDim *d, unsigned mx, Window *w, int *m, int *tap) {
  *w = (Window){.size = d->size, .ext = 1, .taps = 1, .off = d->off, .div = d->div};
  *m = *tap = -1;
  for (int i = 0; i < 2; i++) {
    if (d->l[i] < 0) continue;
    const CLoop *l = &f->loop[d->l[i]];
    if (l->class == mx && d->c[i] == 1 && *m < 0) {
      *m = d->l[i];
      w->ext = l->ext;
      w->step = l->s[2];
    } else if (l->class == LC_K && *tap < 0) {
      *tap = d->l[i];
      w->taps = l->ext;
      w->c1 = d->c[i];
    } else
      return false;
  }
  return true;
}

/* What each dimension of x is: a window (the taps go to left), a plain summed dimension, or an outer one. Windows are the
 * dimensions with taps or division, and those between the first of them and the last dimension. */
static bool sort_dims(const Facts *f, Col2imPlan *g, LoopList *k, LoopList *out, LoopList *area) {
  const CDim *dim = f->dim[g->x];
  unsigned mx = g->x ? LC_N : LC_M;
  int64_t pitch = 0;
  bool seen[KL_LOOPS] = {false};
  for (int d = 0; d < f->n_dims[g->x]; d++) {
    const CDim *c = &dim[d];
    for (int i = 0; i < 2; i++) {
      if (c->l[i] >= 0 && seen[c->l[i]]) return false;
      if (c->l[i] >= 0) seen[c->l[i]] = true;
    }
    bool plain = c->l[1] < 0 && !c->guard;
    if (plain && (c->l[0] < 0 || f->loop[c->l[0]].class != mx || !g->n))
      g->x_base += c->off * c->stride;
    if (plain && c->l[0] < 0) continue;
    if (plain && (f->loop[c->l[0]].class != mx || !g->n)) {
      list_add(f, f->loop[c->l[0]].class == LC_K ? k : out, c->l[0]);
      continue;
    }
    int m, tap;
    Window *w = &g->win[g->n];
    if (!window_of(f, c, mx, w, &m, &tap)) return false;
    if (g->n && pitch != c->size * c->stride) return false; /* positions are one run */
    pitch = c->stride;
    if (m >= 0) list_add(f, area, m);
    if (tap >= 0) {
      g->tap_win[g->left.n] = g->n;
      list_add(f, &g->left, tap);
      g->taps *= w->taps;
    }
    g->positions *= c->size;
    g->n++;
  }
  g->q_step = pitch;
  return g->n > 0;
}

/* Channels and taps as one run in w; do the channels come first? */
static bool order_left(const Facts *f, Col2imPlan *g, bool *lead) {
  LoopList rest = {0}, sorted = merge_tail(f, g->left, g->w, 1u << g->w, &rest);
  int win[KL_LOOPS];
  if (rest.n) return false;
  bool tap_seen = false;
  *lead = true;
  for (int j = 0; j < sorted.n; j++) {
    for (int i = 0; i < g->left.n; i++)
      if (g->left.id[i] == sorted.id[j]) win[j] = g->tap_win[i];
    *lead &= win[j] >= 0 || !tap_seen;
    tap_seen |= win[j] >= 0;
  }
  memcpy(g->tap_win, win, sizeof win);
  g->left = sorted;
  g->w_left = sorted.n ? list_step(f, &sorted, g->w) : 1;
  return true;
}

static void divide(Plan *p, Col2imPlan *g, bool lead) {
  const Facts *f = &p->facts;
  Work *w = &p->work;
  int64_t want = tasks_for(f->flops), rows = p->frame.rows;
  bool by_rows = g->outer.n && is_row_axis(f, g->outer.id[0], rows) && rows * 2 > want;
  g->block = g->channels;
  if (lead) {
    g->block = most(COLUMN_BYTES / (g->taps * g->positions * f->size), 1);
    if (!by_rows) g->block = least(g->block, div_up(g->channels * g->outer.total, want));
    g->block = least(g->block, g->channels);
  }
  g->blocks = div_up(g->channels, g->block);
  if (by_rows) {
    g->unit = g->outer.total / rows;
    g->per_task = g->unit * div_up(rows, most(want, 16));
  }
  w->fn[0] = fold_tasks;
  w->n_phases = 1;
  w->n_tasks[0] = by_rows ? div_up(g->outer.total, g->per_task) : g->outer.total * g->blocks;
  w->fused = by_rows || w->n_tasks[0] == 1;
}

/* An outer loop may have been taken from the batch already. */
static LoopList without_repeats(const Facts *f, const LoopList *all) {
  LoopList once = {.total = 1};
  for (int i = 0; i < all->n; i++) {
    bool dup = false;
    for (int j = 0; j < once.n; j++) dup |= once.id[j] == all->id[i];
    if (!dup) list_add(f, &once, all->id[i]);
  }
  return once;
}

/* Are the channels (n) of an item, of `total` elements, one run in the result too, in one order there and in w? */
static bool leads(const Facts *f, Col2imPlan *g, const LoopList *n, int64_t total) {
  LoopList rest = {0}, channels = merge_tail(f, *n, 2, 4, &rest);
  g->c_step = list_step(f, &channels, 2);
  bool lead = !rest.n && (g->channels == 1 || g->c_step * g->channels == total);
  for (int i = 0, j = 0; lead && j < g->left.n; j++)
    if (g->tap_win[j] < 0 && g->left.id[j] != channels.id[i++]) lead = false;
  return lead;
}

static void plan_columns(Arena *arena, Plan *p, const Col2imPlan *g) {
  MicroShape s = {.m = {g->block * g->taps, g->channels % g->block * g->taps},
                  .n = {g->positions},
                  .k = g->k,
                  .batch = 1,
                  .a = g->w_mat,
                  .b = g->x_mat,
                  .c = {false, g->positions}};
  plan_products(arena, p, &s);
}

bool col2im_plan(Arena *arena, Plan *p, int x) {
  Facts *f = &p->facts;
  Col2imPlan g = {.x = x, .w = !x, .positions = 1, .channels = 1, .taps = 1};
  g.outer = loops_of(f, 1u << LC_BATCH);
  g.sum.total = g.left.total = 1;
  LoopList k = {.total = 1}, area = {.total = 1}, n = loops_of(f, 1u << (x ? LC_M : LC_N));
  if (!sort_dims(f, &g, &k, &g.outer, &area)) return false;
  for (int i = 0; i < n.n; i++) {
    g.tap_win[g.left.n] = -1;
    list_add(f, &g.left, n.id[i]);
    list_add(f, &area, n.id[i]);
    g.channels *= f->loop[n.id[i]].ext;
  }
  g.outer = without_repeats(f, &g.outer);
  list_sort(f, &g.outer, 2);
  bool lead;
  if (!order_left(f, &g, &lead)) return false;
  LoopList rest = {0};
  LoopList block = merge_tail(f, area, 2, 4, &rest); /* an item's part of the result is one run */
  if (rest.n || (block.n && list_step(f, &block, 2) != 1)) return false;
  g.lead = leads(f, &g, &n, block.total) && lead;
  LoopList lk = merge_tail(f, k, g.w, 3, &g.sum);
  g.sum.total = g.sum.n ? g.sum.total : 1;
  if (!mat_of(g.left.total, g.w_left, lk.total, list_step(f, &lk, g.w), &g.w_mat) ||
      !mat_of(lk.total, list_step(f, &lk, x), g.positions, g.q_step, &g.x_mat))
    return false;
  g.k = lk.total;
  divide(p, &g, g.lead);
  p->work.scratch = (g.block * g.taps * g.positions * f->size + 127) / 128 * 128;
  if (p->work.scratch > (int64_t)1 << 28) return false;
  p->col2im = arena_dup(arena, &g, sizeof g);
  plan_columns(arena, p, &g);
  return true;
}
