/* Convolutions as conv.c plans them, run. In: a ConvPlan and buffers; out: the result, after the epilogue where it is fused.
 *
 * Phase 1, if B is packed: for each group, part and panel, the rows (tap h, tap w, channel) of B by the columns of a panel.
 * Phase 2: a task has a chunk of the positions of an image and some of the panels; for each part its rows of A are copied if
 * need be, then for each panel the tiles go over the positions, so that a panel stays in the cache. */
#include "conv.h"
#include "../llvm/llvm.h"

/* ---- packing B ---- */

/* Where row k of a part is in B, in elements. */
static int64_t row_at(const ConvPlan *p, const Part *q, int64_t k) {
  int64_t i = k % p->channels, tap = k / p->channels;
  return (q->h.k + q->h.k_step * (tap / q->w.taps)) * p->b_kh +
         (q->w.k + q->w.k_step * (tap % q->w.taps)) * p->b_kw + i * p->b_i;
}

/* Rows k0..k1-1 of a panel of `columns` columns. */
static void pack_rows(const ConvPlan *p, const Part *q, int size, const char *b, int64_t k0,
                      int64_t k1, int64_t columns, int64_t width, char *to) {
  for (int64_t k = k0, n; k < k1; k += n, to += n * width * size) {
    n = least(p->channels - k % p->channels, k1 - k);
    const char *from = b + row_at(p, q, k) * size;
    if (p->b_i == 1 && p->b_o != 1) {
      pack_columns(size, to, width, from, p->b_o, n, columns);
      continue;
    }
    for (int64_t r = 0; r < n; r++) {
      const char *row = from + r * p->b_i * size;
      char *out = to + r * width * size;
      if (p->b_o == 1)
        memcpy(out, row, (size_t)(columns * size));
      else
        for (int64_t c = 0; c < columns; c++)
          memcpy(out + c * size, row + c * p->b_o * size, (size_t)size);
    }
  }
}

/* The same for dot products: column after column, of q->k elements each. */
static void pack_dots(const ConvPlan *p, const Part *q, int size, const char *b, int64_t k0,
                      int64_t k1, int64_t columns, char *to) {
  for (int64_t k = k0; k < k1; k++) {
    const char *from = b + row_at(p, q, k) * size;
    for (int64_t c = 0; c < columns; c++)
      memcpy(to + (c * q->k + k) * size, from + c * p->b_o * size, (size_t)size);
  }
}

/* Does a column of B hold its channels one after the other, each with all taps, and are they read in this order? */
static bool by_columns(const ConvPlan *p, const Part *q) {
  int64_t taps = (int64_t)q->h.taps * q->w.taps;
  return p->b_o != 1 && taps > 1 && q->h.k == 0 && q->w.k == 0 && q->h.k_step == 1 &&
         q->w.k_step == 1 && p->b_kw == 1 && p->b_kh == q->w.taps && p->b_i == taps;
}

/* The same from such columns: elements k0..k1-1 of each, which are tap after tap of a channel. */
static void pack_filters(const ConvPlan *p, const Part *q, int size, const char *b, int64_t k0,
                         int64_t k1, int64_t columns, int64_t width, char *to) {
  enum { MOST = 32768 };
  _Alignas(64) char block[MOST];
  int64_t taps = (int64_t)q->h.taps * q->w.taps, most_rows = MOST / (columns * size);
  for (int64_t k = k0, n; k < k1; k += n) {
    n = least(k1 - k, most_rows);
    pack_columns(size, block, columns, b + k * size, p->b_o, n, columns);
    for (int64_t r = 0; r < n; r++) {
      int64_t row = (k + r) % taps * p->channels + (k + r) / taps;
      memcpy(to + row * width * size, block + r * columns * size, (size_t)(columns * size));
    }
  }
}

/* A task has some rows of all panels of a part. */
void conv_pack(const void *self, void *const *bufs, int64_t begin, int64_t end, RunCtx *ctx) {
  const Plan *plan = self;
  const ConvPlan *p = plan->conv;
  const Facts *f = &plan->facts;
  (void)ctx;
  for (int64_t t = begin; t < end; t++) {
    int64_t cut = t % p->k_cuts, i = t / p->k_cuts % p->n_parts, group = t / p->k_cuts / p->n_parts;
    const Part *q = &p->part[i];
    const char *b = (const char *)bufs[plan->frame.x[p->b]] +
                    (p->b_base + list_at(f, &p->groups, group, p->b)) * f->size;
    char *to = (char *)bufs[plan->frame.ws] + (group * p->b_size + q->b_at) * f->size;
    int64_t k0 = cut * p->k_cut, k1 = least(k0 + p->k_cut, q->k), unit = tile_unit(&p->tile);
    bool filters = by_columns(p, q), dots = p->tile.form == FORM_DOT;
    for (int64_t panel = 0; panel < p->panels.n; panel++) {
      int64_t v0 = block_start(&p->panels, panel), width = block_size(&p->panels, panel) * unit;
      int64_t columns = least(width, p->columns - v0 * unit);
      const char *from = b + v0 * unit * p->b_o * f->size;
      char *panel_at = to + q->k * v0 * unit * f->size;
      if (dots)
        pack_dots(p, q, f->size, from, k0, k1, columns, panel_at);
      else if (filters)
        pack_filters(p, q, f->size, from, k0, k1, columns, width, panel_at);
      else
        pack_rows(p, q, f->size, from, k0, k1, columns, width, panel_at + k0 * width * f->size);
    }
  }
}

/* ---- A's rows with zeros around ---- */

/* What result rows from j0 on read: rows x strip_w x channels. */
static void copy_strip(const ConvPlan *p, const Part *q, int size, const char *a, int64_t j0,
                       int64_t rows, char *to) {
  int64_t y0 = q->h.in + q->h.in_step * j0, pixel = p->channels * size, line = q->strip_w * pixel;
  int64_t left = least(most(-q->w.in, 0), q->strip_w),
          right = least(most(q->w.in + q->strip_w - p->size_w, 0), q->strip_w - left),
          n = q->strip_w - left - right;
  for (int64_t r = 0; r < rows; r++, to += line) {
    int64_t y = y0 + r;
    if (y < 0 || y >= p->size_h || n == 0) {
      memset(to, 0, (size_t)line);
      continue;
    }
    memset(to, 0, (size_t)(left * pixel));
    const char *from = a + (y * p->a_h + (q->w.in + left) * p->a_w) * size;
    if (p->a_w == p->channels)
      memcpy(to + left * pixel, from, (size_t)(n * pixel));
    else
      for (int64_t i = 0; i < n; i++)
        memcpy(to + (left + i) * pixel, from + i * p->a_w * size, (size_t)pixel);
    memset(to + (left + n) * pixel, 0, (size_t)(right * pixel));
  }
}

/* ---- tiles ---- */

/* What a task works on, of one part. */
typedef struct Work1 {
  const Plan *plan;
  const ConvPlan *p;
  const Part *q;
  const char *a;  /* of the part's first position and tap at j = 0 */
  const char *b;  /* panels, or B itself */
  char *c;        /* of the part's first result */
  int64_t j0, j1; /* rows, or blocks of the only one */
  int64_t tiles;  /* of a panel */
  void *const *bufs;
  RunCtx *ctx;
  int64_t r0, r1; /* its rows of the epilogue */
} Work1;

/* What is summed in one pass over the tiles: a part of a panel that stays in the cache. */
typedef struct Sum {
  int64_t a, b, k, batch, a_step, b_step; /* a, b: bytes from the first tap */
} Sum;

/* All taps of a row and their channels are one run of k (fold), or each tap is; a pass has some runs, or a piece of one. */
static int64_t sums_of(const Part *q) {
  int64_t runs = q->fold ? q->h.taps : q->h.taps * q->w.taps;
  return q->run_pieces > 1 ? runs * q->run_pieces : div_up(runs, q->run_group);
}

/* row: bytes from a row of B to the next. */
static Sum sum_at(const ConvPlan *p, const Part *q, int64_t i, int64_t row, int64_t size) {
  int64_t k = q->fold ? q->w.taps * p->channels : p->channels, wide = q->fold ? 1 : q->w.taps;
  int64_t runs = wide * q->h.taps, piece = div_up(k, q->run_pieces);
  int64_t run = i / q->run_pieces * q->run_group, k0 = i % q->run_pieces * piece;
  Sum s = {.k = least(piece, k - k0), .batch = least(q->run_group, runs - run)};
  s.a =
      ((run / wide * q->h.tap_step * q->line + run % wide * q->w.tap_step * q->pixel) + k0) * size;
  s.b = (run * k + k0) * row;
  s.a_step = (q->fold ? q->h.tap_step * q->line : q->w.tap_step * q->pixel) * size;
  s.b_step = k * row;
  return s;
}

/* Fetches the lines that a tile's results go to: stores wait for them otherwise. */
static inline void fetch_results(const char *c, int64_t rows, int64_t pitch, int64_t bytes) {
  enum { LINE = 64 };
  for (; rows > 0; rows--, c += pitch)
    for (int64_t i = 0; i < bytes; i += LINE) __builtin_prefetch(c + i, 1, 2);
}

/* One pass over the tiles of a panel; each may fetch what the next one reads of A. */
static void run_tiles(const Work1 *w, MicroFn *const *fn, MicroArgs *x, const char *a0, char *c0,
                      const char *next) {
  const ConvPlan *p = w->p;
  const Part *q = w->q;
  int64_t size = w->plan->facts.size;
  int64_t a_line = q->h.in_step * q->line * size, c_line = p->c_h * q->h.out_step * size,
          a_pos = q->w.in_step * q->pixel * size, c_pos = p->c_w * q->w.out_step * size;
  int64_t i0 = 0, i1 = q->rows.n, j0 = w->j0, j1 = w->j1;
  if (p->by_block) i0 = j0, i1 = j1, j0 = 0, j1 = 1;
  if (q->run) j0 = 0, j1 = 1;
  for (int64_t j = j0; j < j1; j++)
    for (int64_t i = i0; i < i1; i++) {
      int64_t at = block_start(&q->rows, i), line = q->run ? at : j, pos = q->run ? 0 : at;
      int64_t n = block_size(&q->rows, i);
      x->a = a0 + (line - (q->run || p->by_block ? 0 : w->j0)) * a_line + pos * a_pos;
      x->c = c0 + line * c_line + pos * c_pos;
      x->next = p->fetch_rows ? (const char *)x->a + n * (q->run ? a_line : a_pos) : next;
      if (w->plan->frame.far && !x->add)
        fetch_results(x->c, (q->run ? q->w.n : 1) * n, c_pos, x->columns * size);
      next += x->next_step * (x->k / FETCH_STEPS * x->batch);
      fn[i >= q->rows.more](x);
    }
}

static void run_panel(const Work1 *w, int64_t panel) {
  const ConvPlan *p = w->p;
  const Part *q = w->q;
  int64_t size = w->plan->facts.size, n0 = block_start(&p->panels, panel) * tile_unit(&p->tile),
          width = block_size(&p->panels, panel) * tile_unit(&p->tile),
          columns = least(width, p->columns - n0);
  bool dots = p->tile.form == FORM_DOT;
  int kind = panel < p->panels.more ? 0 : columns < width ? 2 : 1;
  MicroFn *fn[2] = {p->set.fn[q->fn[0][kind]], p->set.fn[q->fn[1][kind]]};
  MicroArgs x = {.columns = columns, .ldb = (dots ? q->k : p->pack ? width : p->b_i) * size};
  x.lda = q->w.in_step * q->pixel * size;
  x.ldc = p->c_w * q->w.out_step * size;
  x.cjump = p->c_h * q->h.out_step * size;
  const char *b = w->b + (p->pack ? q->k * n0 : n0) * size;
  int64_t row = dots ? size : x.ldb;
  for (int64_t i = 0, n = sums_of(q); i < n; i++) {
    Sum s = sum_at(p, q, i, row, size);
    x.b = b + s.b;
    x.k = s.k;
    x.batch = s.batch;
    x.a_step = s.a_step;
    x.b_step = s.b_step;
    x.add = i > 0;
    /* the tiles of this pass fetch what the next one reads of B */
    int64_t fetched = s.k * s.batch * row, steps = most(s.k / FETCH_STEPS * s.batch * w->tiles, 1);
    x.next_step = micro_fetched(p->more_lines);
    if (!p->fetch_rows) x.next_step = least(div_up(fetched, steps), x.next_step);
    run_tiles(w, fn, &x, w->a + s.a, w->c + n0 * size, (const char *)x.b + (p->pack ? fetched : 0));
  }
  if (!w->plan->work.by_panel || !w->plan->frame.fn) return;
  EpilogueColumns part = {n0, n0 + columns};
  w->plan->frame.fn(&part, w->bufs, w->r0, w->r1, w->ctx);
}

static void zero_part(const Work1 *w) {
  const ConvPlan *p = w->p;
  const Part *q = w->q;
  int64_t size = w->plan->facts.size;
  for (int64_t j = w->j0; j < w->j1; j++)
    for (int64_t i = 0; i < q->w.n; i++)
      memset(w->c + (j * p->c_h * q->h.out_step + i * p->c_w * q->w.out_step) * size, 0,
             (size_t)(p->columns * size));
}

/* The filter of one position may be larger than what the caches keep of it: every other run begins where the last one ended. */
static bool is_turned(const ConvPlan *p, const RunCtx *ctx) { return p->row && ctx->run % 2; }

/* t: what all parts share. copied: the rows of A are in the scratch from the task before. */
static void run_part(const Work1 *t, const Part *q, int64_t pg, bool copied) {
  const ConvPlan *p = t->p;
  int64_t size = t->plan->facts.size, j0 = t->j0, j1 = p->by_block ? t->j1 : least(t->j1, q->h.n);
  const char *a = t->a;
  void *scratch = t->ctx->scratch;
  if (j0 >= j1 || !q->w.n) return;
  Work1 w = *t;
  w.q = q;
  w.j1 = j1;
  w.c += (q->h.out * p->c_h + q->w.out * p->c_w) * size;
  if (!q->k) {
    if (pg == 0) zero_part(&w);
    return;
  }
  int64_t first = p->by_block ? 0 : j0;
  w.tiles = p->by_block ? j1 - j0 : q->rows.n * (q->run ? 1 : j1 - j0);
  if (p->copy) {
    int64_t rows = conv_reach(&q->h, p->by_block ? 1 : j1 - j0);
    if (!copied) copy_strip(p, q, (int)size, a, first, rows, scratch);
    w.a = scratch;
  } else
    w.a = a + ((q->h.in + q->h.in_step * first) * p->a_h + q->w.in * p->a_w) * size;
  w.b += p->pack ? q->b_at * size : 0;
  int64_t p0 = pg * p->panels.n / p->panel_groups, p1 = (pg + 1) * p->panels.n / p->panel_groups;
  for (int64_t i = p0; i < p1; i++) run_panel(&w, is_turned(p, t->ctx) ? p0 + p1 - 1 - i : i);
}

/* The elements of an image's result that a task writes, in whole rows of the epilogue unless that goes by panels. */
static void task_results(const Plan *plan, int64_t chunk, int64_t pg, int64_t *e0, int64_t *e1) {
  const ConvPlan *p = plan->conv;
  conv_chunk(p, chunk, e0, e1);
  if (plan->facts.numel != p->columns) return;
  *e0 = block_start(&p->panels, pg * p->panels.n / p->panel_groups) *
        tile_unit(&p->tile); /* the only position */
  *e1 = block_start(&p->panels, (pg + 1) * p->panels.n / p->panel_groups) * tile_unit(&p->tile);
  *e1 = least(*e1, p->columns);
}

void conv_tasks(const void *self, void *const *bufs, int64_t begin, int64_t end, RunCtx *ctx) {
  const Plan *plan = self;
  const ConvPlan *p = plan->conv;
  const Facts *f = &plan->facts;
  for (int64_t i = begin; i < end; i++) {
    int64_t t = is_turned(p, ctx) ? begin + end - 1 - i : i;
    int64_t pg = t % p->panel_groups, chunk = t / p->panel_groups % p->chunks,
            item = t / p->panel_groups / p->chunks, image = item % p->images.total,
            group = item / p->images.total;
    bool all = !p->by_block && p->chunks == 1;
    Work1 w = {.plan = plan, .p = p, .bufs = bufs, .ctx = ctx};
    w.j0 = chunk * p->units / p->chunks;
    w.j1 = all ? INT64_MAX : (chunk + 1) * p->units / p->chunks;
    w.a = (const char *)bufs[plan->frame.x[p->a]] +
          (p->a_base + list_at(f, &p->images, image, p->a) + list_at(f, &p->groups, group, p->a)) *
              f->size;
    int64_t at = list_at(f, &p->images, image, 2) + list_at(f, &p->groups, group, 2), e0, e1;
    w.c = (char *)bufs[plan->frame.out] + at * f->size;
    w.b = p->pack ? (const char *)bufs[plan->frame.ws] + group * p->b_size * f->size
                  : (const char *)bufs[plan->frame.x[p->b]] +
                        (p->b_base + list_at(f, &p->groups, group, p->b)) * f->size;
    if (plan->frame.fn) {
      task_results(plan, chunk, pg, &e0, &e1);
      w.r0 = (at + e0) / p->row_elems;
      w.r1 = (at + e1) / p->row_elems;
    }
    for (int j = 0; j < p->n_parts; j++)
      run_part(&w, &p->part[j], pg, p->n_parts == 1 && i > begin && pg > 0 && !p->row);
    if (plan->frame.fn && !plan->work.by_panel) plan->frame.fn(NULL, bufs, w.r0, w.r1, ctx);
  }
}
