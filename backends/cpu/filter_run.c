/* Gradients of filters as filter.c plans them, run. In: a FilterPlan and buffers; out: the result, or the partial sums of
 * shares.
 *
 * A task has a block of channels, one of columns and a share of the positions, which it takes block by block. Of a block, A is
 * packed once per tap, with zeros where a window leaves it; or what its rows read is copied once for all taps: a strip, with
 * zeros around, in which a tap is an offset; or A is read in place. The first tile of a panel of B packs it. For each tap the
 * tiles add their products to the result at the tap, and fetch the next block of positions into the L2 cache. */
#include "filter.h"
#include "../llvm/llvm.h"

/* ---- packing ---- */

/* memcpy of a few lines at most: the call costs more than the copy. */
static inline void copy_short(char *to, const char *from, int64_t n) {
  for (; n >= 64; n -= 64, to += 64, from += 64) memcpy(to, from, 64);
  for (; n >= 16; n -= 16, to += 16, from += 16) memcpy(to, from, 16);
  for (; n > 0; n -= 4, to += 4, from += 4) memcpy(to, from, 4);
}

/* Walks over positions p0..p1-1: runs along one row of one image. */
typedef struct Run {
  int64_t image, y, x, n;
} Run;

static Run run_at(const FilterPlan *f, int64_t p, int64_t p1) {
  int64_t row = p / f->w.n;
  Run r = {.image = row / f->h.n, .y = row % f->h.n, .x = p % f->w.n};
  r.n = least(f->w.n - r.x, p1 - p);
  return r;
}

/* `n` of the channels from i0 on, at tap (th, tw) of each position. */
static void pack_a(const Plan *plan, const FilterPlan *f, const char *a, int64_t th, int64_t tw,
                   int64_t p0, int64_t p1, int64_t i0, int64_t n, char *to) {
  int64_t size = plan->facts.size, pixel = f->w.stride, row = f->w.size * pixel;
  for (int64_t p = p0; p < p1;) {
    Run r = run_at(f, p, p1);
    int64_t y = f->h.at + f->h.step * r.y + f->h.tap_step * th;
    bool inside = y >= 0 && y < f->h.size;
    const char *line =
        a + (list_at(&plan->facts, &f->images, r.image, f->a) + y * f->h.stride) * size;
    for (int64_t i = 0; i < r.n; i++, to += (n + FILTER_APART) * size) {
      int64_t x = f->w.at + f->w.step * (r.x + i) + f->w.tap_step * tw, from = x * pixel + i0;
      int64_t lo = 0, hi = n; /* the part that is there */
      if (f->fold) {
        lo = least(most(-from, 0), n);
        hi = most(least(n, row - from), lo);
      } else if (x < 0 || x >= f->w.size)
        hi = 0;
      if (!inside) hi = lo = 0;
      if (lo > 0 || hi < n) memset(to, 0, (size_t)(n * size));
      copy_short(to + lo * size, line + (from + lo) * size, (hi - lo) * size);
    }
    p += r.n;
  }
}

/* `n` channels of `positions` neighbours along a row of A, the first at `from`, to every `pitch` bytes. */
static void compute_a(const FilterSource *s, const char *from, int64_t positions, int64_t n,
                      char *to, int64_t pitch) {
  const FilterPlan *f = s->plan->filter;
  const Frame *frame = &s->plan->frame;
  int64_t size = s->plan->facts.size, at = (from - (const char *)s->bufs[frame->x[f->a]]) / size,
          channel = at % f->w.stride;
  OperandPart part = {channel, channel + n, pitch / size, to};
  if (positions > 0)
    frame->operand(&part, s->bufs, at / f->w.stride, at / f->w.stride + positions, s->ctx);
}

/* As pack_a, without folded taps. */
static void pack_computed(const FilterSource *s, const char *a, int64_t th, int64_t tw, int64_t p0,
                          int64_t p1, int64_t i0, int64_t n, char *to) {
  const FilterPlan *f = s->plan->filter;
  int64_t size = s->plan->facts.size, bytes = (n + FILTER_APART) * size;
  for (int64_t p = p0; p < p1;) {
    Run r = run_at(f, p, p1);
    int64_t y = f->h.at + f->h.step * r.y + f->h.tap_step * th;
    const char *line =
        a + (list_at(&s->plan->facts, &f->images, r.image, f->a) + y * f->h.stride + i0) * size;
    int64_t x = f->w.at + f->w.step * r.x + f->w.tap_step * tw, once = f->w.step == 1 ? r.n : 1;
    for (int64_t i = 0; i < r.n; i += once, x += f->w.step * once, to += once * bytes) {
      int64_t lo = least(most(-x, 0), once), hi = most(least(once, f->w.size - x), lo);
      if (y < 0 || y >= f->h.size) hi = lo;
      memset(to, 0, (size_t)(lo * bytes));
      compute_a(s, line + (x + lo) * f->w.stride * size, hi - lo, n, to + lo * bytes, bytes);
      memset(to + hi * bytes, 0, (size_t)((once - hi) * bytes));
    }
    p += r.n;
  }
}

/* The first position of a block of rows, of all images. */
static int64_t block_at(const FilterPlan *f, int64_t block) {
  return (block / f->lines.n * f->h.n + block_start(&f->lines, block % f->lines.n)) * f->w.n;
}

/* Where the block of positions that begins at p ends. */
static int64_t block_end(const FilterPlan *f, int64_t p, int64_t p1) {
  if (!f->lines.n) return least(p + f->chunk, p1);
  int64_t y = p / f->w.n % f->h.n, tall = f->lines.more * (f->lines.size + 1);
  int64_t at = y < tall ? y / (f->lines.size + 1) : (y - tall) / f->lines.size + f->lines.more;
  return p + block_size(&f->lines, at) * f->w.n;
}

/* ---- tasks ---- */

FilterTask filter_task(const Plan *plan, void *const *bufs, int64_t t) {
  const FilterPlan *f = plan->filter;
  const Facts *facts = &plan->facts;
  int64_t tiles = f->rows.n * f->cols.n, col = t % f->cols.n, row = t % tiles / f->cols.n;
  int64_t group = t / tiles % f->groups.total;
  FilterTask k = {.share = t / tiles / f->groups.total, .i0 = block_start(&f->rows, row)};
  k.rows = block_size(&f->rows, row);
  k.o0 = block_start(&f->cols, col);
  k.columns = block_size(&f->cols, col);
  k.p0 = block_start(&f->share, k.share);
  k.p1 = k.p0 + block_size(&f->share, k.share);
  if (f->lines.n) {
    k.p0 = block_at(f, k.p0);
    k.p1 = block_at(f, k.p1);
  }
  k.c = list_at(facts, &f->groups, group, 2) + k.i0 * f->c_row + k.o0;
  k.a = (const char *)bufs[plan->frame.x[f->a]] +
        (f->a_base + list_at(facts, &f->groups, group, f->a)) * facts->size;
  k.b = (const char *)bufs[plan->frame.x[f->b]] +
        (f->b_base + list_at(facts, &f->groups, group, f->b)) * facts->size;
  return k;
}

void filter_strip(const FilterSource *s, const FilterTask *t, int64_t p, int64_t n, char *to) {
  const Plan *plan = s->plan;
  const FilterPlan *f = plan->filter;
  int64_t size = plan->facts.size, bytes = f->pixel * size, w = f->strip_w;
  int64_t left = least(most(-f->w.at, 0), w),
          right = least(most(f->w.at + w - f->w.size, 0), w - left), some = w - left - right;
  Run r = run_at(f, p, p + 1);
  int64_t y0 = f->h.at + f->h.step * r.y;
  const char *image = t->a + (list_at(&plan->facts, &f->images, r.image, f->a) +
                              most(f->w.at, 0) * f->w.stride + (f->fold ? 0 : t->i0)) *
                                 size;
  for (int64_t y = y0; y < y0 + filter_reach(&f->h, n); y++, to += w * bytes) {
    if (y < 0 || y >= f->h.size) {
      memset(to, 0, (size_t)(w * bytes));
      continue;
    }
    const char *line = image + y * f->h.stride * size;
    memset(to, 0, (size_t)(left * bytes));
    if (plan->frame.operand)
      compute_a(s, line, some, t->rows, to + left * bytes, bytes);
    else if (f->pixel == f->w.stride)
      memcpy(to + left * bytes, line, (size_t)(some * bytes));
    else
      for (int64_t x = 0; x < some; x++)
        copy_short(to + (left + x) * bytes, line + x * f->w.stride * size, t->rows * size);
    memset(to + (left + some) * bytes, 0, (size_t)(right * bytes));
  }
}

/* What is read next, as the tiles of this block fetch it: a piece of each row at a time. The rows are the positions, or
 * where those follow one another without gaps the pieces themselves, since memory is fastest in order. */
typedef struct Ahead {
  const char *at[2]; /* of A and B; NULL: not fetched */
  int64_t pitch[2], bytes[2], rows[2];
  int64_t piece;              /* bytes that are fetched at once */
  int64_t operand, line, row; /* where the next tile begins */
} Ahead;

static void fetch_rows(Ahead *n, int operand, const char *at, int64_t pitch, int64_t bytes,
                       int64_t rows) {
  bool dense = pitch == bytes;
  n->at[operand] = at;
  n->pitch[operand] = dense ? n->piece : pitch;
  n->bytes[operand] = dense ? n->piece : bytes;
  n->rows[operand] = dense ? div_up(rows * pitch, n->piece) : rows;
}

static Ahead ahead_of(const Plan *plan, const FilterPlan *f, const FilterTask *k, int64_t p) {
  int64_t size = plan->facts.size, positions = block_end(f, p, k->p1) - p;
  Ahead n = {.piece = micro_fetched(f->more_lines)};
  Run r = run_at(f, p, k->p1);
  const char *a = k->a + (list_at(&plan->facts, &f->images, r.image, f->a) + r.y * f->h.stride +
                          r.x * f->w.stride + k->i0) *
                             size;
  if (f->w.step == 1 && f->h.step == 1)
    fetch_rows(&n, 0, a, f->w.stride * size, k->rows * size, positions);
  fetch_rows(&n, 1, k->b + (p * f->b_pos + k->o0) * size, f->b_pos * size, k->columns * size,
             positions);
  return n;
}

static void fetch_ahead(Ahead *n, MicroArgs *x) {
  x->next = x->b;
  x->next_step = 0;
  if (n->operand < 2 && !n->at[n->operand]) n->operand++;
  if (n->operand == 2) return;
  x->next_step = n->pitch[n->operand];
  x->next = n->at[n->operand] + n->line + n->row * x->next_step;
  n->row += most(x->k / FETCH_STEPS * x->batch, 1);
  if (n->row < n->rows[n->operand]) return;
  n->row = 0;
  n->line += n->piece;
  if (n->line < n->bytes[n->operand]) return;
  n->line = 0;
  n->operand++;
}

typedef struct Product {
  const Plan *plan;
  const FilterPlan *f;
  char *c; /* of the block's first row and column, at tap 0 */
  int64_t rows, columns, positions;
  const char *a;            /* packed, a strip, or A itself */
  const char *b;            /* of the first position and column */
  char *packed;             /* B: panel after panel, of each all positions */
  bool made;                /* is it packed? */
  int64_t lda, a_step, run; /* bytes between positions and between rows of A; positions of a row */
  Ahead ahead;
} Product;

static void product(Product *k, bool add) {
  const FilterPlan *f = k->f;
  int64_t size = k->plan->facts.size, lanes = f->tile.lanes;
  Blocks v = vector_blocks(k->columns, &f->tile), r = row_blocks(k->rows, &f->tile);
  MicroArgs x = {.lda = k->lda, .ldc = f->c_row * size, .k = k->run, .add = add, .fetch_c = true};
  x.batch = k->positions / k->run;
  x.a_step = k->a_step;
  for (int64_t i = 0; i < v.n; i++) {
    int64_t at = block_start(&v, i) * lanes, width = block_size(&v, i) * lanes;
    x.columns = least(width, k->columns - at);
    bool packed = f->keep && k->made;
    x.b = k->b + at * size;
    x.ldb = f->b_pos * size;
    x.keep = k->packed + at * k->positions * size;
    for (int64_t j = 0; j < r.n; j++, packed = f->keep) {
      int64_t row = block_start(&r, j);
      if (packed) {
        x.b = x.keep;
        x.ldb = width * size;
      }
      x.b_step = k->run * x.ldb;
      x.a = k->a + row * size;
      x.c = k->c + (row * f->c_row + at) * size;
      fetch_ahead(&k->ahead, &x);
      const int *fn = (j || packed ? f->fn : f->first)[block_size(&r, j)][block_size(&v, i)];
      f->set.fn[fn[x.columns < width]](&x);
    }
  }
  k->made = true;
}

/* A at a tap: packed now, or a part of the strip. */
static void read_tap(Product *k, const FilterSource *s, const FilterTask *t, int64_t p, int64_t th,
                     int64_t tw, char *packed) {
  const FilterPlan *f = k->f;
  int64_t size = k->plan->facts.size, line = f->strip_w * f->pixel;
  k->a = packed;
  k->lda = (k->rows + FILTER_APART) * size;
  k->run = k->positions;
  if (f->a_plain) {
    k->a = t->a + (p * f->w.stride + t->i0) * size;
    k->lda = f->w.stride * size;
    return;
  }
  if (!f->lines.n) {
    if (k->plan->frame.operand)
      pack_computed(s, t->a, th, tw, p, p + k->positions, t->i0, t->rows, packed);
    else
      pack_a(k->plan, f, t->a, th, tw, p, p + k->positions, t->i0, t->rows, packed);
    return;
  }
  k->a +=
      (th * f->h.tap_step * line + tw * f->w.tap_step * f->pixel + (f->fold ? t->i0 : 0)) * size;
  k->lda = f->w.step * f->pixel * size;
  k->a_step = f->h.step * line * size;
  k->run = f->w.n;
}

void filter_tasks(const void *self, void *const *bufs, int64_t begin, int64_t end, RunCtx *ctx) {
  const Plan *plan = self;
  const FilterPlan *f = plan->filter;
  int64_t size = plan->facts.size, tw = f->fold ? 1 : f->w.taps;
  int64_t widest = div_up(f->cols.size + (f->cols.more > 0), f->tile.lanes) * f->tile.lanes;
  FilterSource s = {plan, bufs, ctx};
  char *packed_b = ctx->scratch, *packed_a = packed_b + (f->keep ? widest * f->chunk * size : 0);
  for (int64_t t = begin; t < end; t++) {
    FilterTask x = filter_task(plan, bufs, t),
               after = t + 1 < end ? filter_task(plan, bufs, t + 1) : x;
    char *to = f->shares > 1 ? (char *)bufs[plan->frame.ws] + x.share * plan->facts.numel * size
                             : (char *)bufs[plan->frame.out];
    Product k = {.plan = plan, .f = f, .rows = x.rows, .columns = x.columns, .packed = packed_b};
    for (int64_t p = x.p0, q; p < x.p1; p = q) {
      q = block_end(f, p, x.p1);
      k.positions = q - p;
      k.ahead = q < x.p1 ? ahead_of(plan, f, &x, q) : ahead_of(plan, f, &after, after.p0);
      k.b = x.b + (p * f->b_pos + x.o0) * size;
      k.made = false;
      if (f->lines.n) filter_strip(&s, &x, p, k.positions / f->w.n, packed_a);
      for (int64_t tap = 0; tap < f->h.taps * tw; tap++) {
        read_tap(&k, &s, &x, p, tap / tw, tap % tw, packed_a);
        k.c = to + (x.c + tap / tw * f->h.c + tap % tw * f->w.c) * size;
        product(&k, p > x.p0);
      }
    }
  }
  if (plan->work.fused && f->shares == 1)
    run_epilogue(&plan->frame, bufs, 0, plan->frame.rows, ctx);
}
