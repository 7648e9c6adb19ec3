/* Gradients of filters over channels-last operands, and products whose first operand lies by columns.
 *
 * In: a contraction that sums over positions: A has neighbouring channels (rows of the result) at windows of the positions, B
 * neighbouring columns at the positions themselves, the result neighbouring columns. Out: a plan, or false. For each tap
 *   result[tap][channel][column] = sum over positions of A[position at the tap][channel] * B[position][column]
 * is a product with A by columns. Channels, columns and positions are cut into blocks that fit in the L2 cache; of a block of
 * positions, B is packed into panels once for all taps, and A once per tap, with zeros where a window leaves it (Georganas et al., Anatomy
 * of high-performance deep learning convolutions on SIMD architectures, SC 2018, section II.J). Where rows are long, blocks are rows of one
 * image, and what they read of A is copied once for all taps: a strip, with zeros around, in which a tap is an offset. Where one
 * row of taps has few channels they count as channels of one tap. If there are fewer blocks than tasks are wanted, the positions are divided as well, into a number
 * of shares that follows from the shape, whose sums are added up in order. The tiles of one block of positions fetch the next
 * one into the L2 cache. Where an error is allowed, winograd_filter.c divides the work otherwise. */
#include "filter.h"
#include "../llvm/llvm.h"

enum { BLOCK_BYTES = 896 << 10, MOST_COLUMNS = 256, MOST_CHANNELS = 256, FEW_CHANNELS = 16 };
enum { CHUNK = 512 /* the most positions */, LONG_ROW = 28 };
/* So that a panel of B stays in the L1 cache. With more taps packing B, and the strips, cost less in longer blocks. */
enum { CHUNK_OF_ONE_TAP = 128 };
/* elements between packed positions of A beside its channels: so that they do not fall into a few sets of the L1 cache */
enum { APART = 16 };
enum { PAGE = 4096 /* bytes; what lies so far apart falls into one set of the L1 cache */ };

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
    for (int64_t i = 0; i < r.n; i++, to += (n + APART) * size) {
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
  int64_t size = s->plan->facts.size, bytes = (n + APART) * size;
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

static int64_t strip_rows(const FilterPlan *f, int64_t rows) {
  return f->h.step * (rows - 1) + f->h.tap_step * (f->h.taps - 1) + 1;
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
  for (int64_t y = y0; y < y0 + strip_rows(f, n); y++, to += w * bytes) {
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

enum { LINES = 128, STEPS = 4 }; /* bytes, and steps of k, for each of the microkernel's fetches */

/* What is read next, as the tiles of this block fetch it: two lines of each row at a time. The rows are the positions, or
 * where those follow one another without gaps the lines themselves, since memory is fastest in order. */
typedef struct Ahead {
  const char *at[2]; /* of A and B; NULL: not fetched */
  int64_t pitch[2], bytes[2], rows[2];
  int64_t operand, line, row; /* where the next tile begins */
} Ahead;

static void fetch_rows(Ahead *n, int operand, const char *at, int64_t pitch, int64_t bytes,
                       int64_t rows) {
  bool dense = pitch == bytes;
  n->at[operand] = at;
  n->pitch[operand] = dense ? LINES : pitch;
  n->bytes[operand] = dense ? LINES : bytes;
  n->rows[operand] = dense ? div_up(rows * pitch, LINES) : rows;
}

static Ahead ahead_of(const Plan *plan, const FilterPlan *f, const FilterTask *k, int64_t p) {
  int64_t size = plan->facts.size, positions = block_end(f, p, k->p1) - p;
  Ahead n = {0};
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
  n->row += most(x->k / STEPS * x->batch, 1);
  if (n->row < n->rows[n->operand]) return;
  n->row = 0;
  n->line += LINES;
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
  MicroArgs x = {.lda = k->lda, .ldc = f->c_row * size, .k = k->run, .add = add};
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
      x.soon = x.c = k->c + (row * f->c_row + at) * size;
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
  k->lda = (k->rows + APART) * size;
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

static void filter_tasks(const void *self, void *const *bufs, int64_t begin, int64_t end,
                         RunCtx *ctx) {
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

/* ---- the plan ---- */

/* The dimension of A that a loop over positions moves through. */
static bool axis_of(const Facts *f, int x, int pos, FilterAxis *r, bool *used) {
  for (int d = 0; d < f->n_dims[x]; d++) {
    const CDim *c = &f->dim[x][d];
    if (c->l[0] != pos && c->l[1] != pos) continue;
    int tap = c->l[0] == pos ? c->l[1] : c->l[0];
    if (tap >= 0 && f->loop[tap].class == LC_BATCH) tap = -1; /* where a group begins */
    if (used[d] || c->div != 1 || (tap >= 0 && f->loop[tap].class == LC_K)) return false;
    used[d] = true;
    *r = (FilterAxis){.pos = pos, .n = f->loop[pos].ext, .taps = 1, .at = c->off};
    r->step = dim_factor(c, pos);
    r->size = c->size;
    r->stride = c->stride;
    if (tap < 0) return true;
    r->taps = f->loop[tap].ext;
    r->tap_step = dim_factor(c, tap);
    r->c = f->loop[tap].s[2];
    return true;
  }
  return false;
}

/* Taps along w, as channels, are neighbours in A and in the result. */
static void fold_taps(FilterPlan *p) {
  p->fold = p->channels <= FEW_CHANNELS && p->w.taps > 1 && p->w.tap_step == 1 &&
            p->w.stride == p->channels && p->w.c == p->channels * p->c_row;
  if (p->fold) p->channels *= p->w.taps;
}

/* Positions are the summed loops: w, h and images from the innermost out, as B has them; the other loops of A are taps and
 * channels. */
static bool find(const Facts *f, int x, FilterPlan *p) {
  static const FilterAxis one = {.pos = -1, .n = 1, .taps = 1, .size = 1};
  bool used[KL_RANK] = {0};
  LoopList rest = {.total = 1}, k = loops_of(f, 1u << LC_K), channels = {.total = 1};
  *p = (FilterPlan){.a = x, .b = !x, .h = one, .w = one, .groups = loops_of(f, 1u << LC_BATCH)};
  p->images.total = 1;
  if (!f->plain[!x] || !k.n) return false;
  LoopList merged = merge_tail(f, k, !x, 1u << !x, &rest);
  if (rest.n) return false;
  p->positions = merged.total;
  p->b_pos = list_step(f, &merged, !x);
  if (!axis_of(f, x, merged.id[merged.n - 1], &p->w, used)) return false;
  if (merged.n > 1 && !axis_of(f, x, merged.id[merged.n - 2], &p->h, used)) return false;
  for (int i = 0; i + 2 < merged.n; i++) list_add(f, &p->images, merged.id[i]);
  for (int d = 0; d < f->n_dims[x]; d++)
    if (!used[d] && (f->dim[x][d].guard || f->dim[x][d].div > 1)) return false;
  LoopList rows = loops_of(f, 1u << (x ? LC_N : LC_M));
  for (int i = 0; i < rows.n; i++) {
    bool tap = false;
    for (int d = 0; d < f->n_dims[x]; d++)
      tap |= used[d] && (f->dim[x][d].l[0] == rows.id[i] || f->dim[x][d].l[1] == rows.id[i]);
    if (!tap) list_add(f, &channels, rows.id[i]);
  }
  channels = merge_tail(f, channels, x, 1u << x | 1u << 2, &rest);
  if (rest.n || (channels.total > 1 && list_step(f, &channels, x) != 1)) return false;
  LoopList columns =
      merge_tail(f, loops_of(f, 1u << (x ? LC_M : LC_N)), 2, 1u << 2 | 1u << !x, &rest);
  if (rest.n || list_step(f, &columns, 2) != 1 || list_step(f, &columns, !x) != 1) return false;
  p->channels = channels.total;
  p->columns = columns.total;
  p->c_row = channels.total > 1 ? list_step(f, &channels, 2) : columns.total;
  fold_taps(p);
  return true;
}

static bool worth(const Plan *plan, const FilterPlan *p) {
  enum { FLOPS = 4000000, LEAST_COLUMNS = 16, LEAST_ROWS = 8 };
  enum {
    LEAST_POSITIONS = 192,
    LEAST_AT_TAPS = 32
  }; /* what a product, or a gather, is better for */
  if (plan->facts.dtype != DT_FLOAT32 || p->columns < LEAST_COLUMNS || p->channels < LEAST_ROWS)
    return false;
  if (plan->no_blas || plan->way == WAY_FILTER) return true;
  bool taps = p->h.taps * p->w.taps > 1;
  return plan->facts.flops >= FLOPS && p->positions >= (taps ? LEAST_AT_TAPS : LEAST_POSITIONS);
}

static void cut_strips(FilterPlan *p) {
  p->lines = equal_blocks(p->h.n, CHUNK / p->w.n);
  p->chunk = (p->lines.size + (p->lines.more > 0)) * p->w.n;
  p->pixel = p->fold ? p->w.stride : p->rows.size + (p->rows.more > 0);
  p->strip_w = p->w.step * (p->w.n - 1) + p->w.tap_step * (p->w.taps - 1) + 1;
}

/* Into how many sums the positions are divided: few enough that writing and adding them does not count, of which there is
 * more where results of LARGE bytes leave the L2 cache. */
static int64_t shares_of(const Facts *f, const FilterPlan *p, int64_t want) {
  enum { LARGE = 256 << 10, LEAST_SHARE = 512 };
  int64_t n = div_up(want, p->rows.n * p->cols.n * p->groups.total);
  n = least(n, least(p->positions / LEAST_SHARE, MOST_SHARES));
  if (f->numel * f->size > LARGE) n = least(n, p->positions / (2 * LEAST_SHARE));
  return most(n / 2 * 2, 1);
}

static void cut(const Facts *f, FilterPlan *p, int64_t most_rows, int64_t want) {
  int64_t taps = p->h.taps * (p->fold ? 1 : p->w.taps), widest;
  p->cols = equal_blocks(p->columns, MOST_COLUMNS);
  p->rows = equal_blocks(p->channels, taps > 1 ? most_rows / 2 : most_rows);
  widest = p->cols.size + p->rows.size + 2;
  p->chunk = least(taps > 1 ? CHUNK / 2 : CHUNK_OF_ONE_TAP, p->positions);
  p->chunk = least(most(BLOCK_BYTES / (widest * f->size), 64), p->chunk);
  bool forwards = p->w.step > 0 && p->w.tap_step >= 0 && p->h.step >= 0 && p->h.tap_step >= 0;
  if (forwards && p->h.taps * p->w.taps > 1 && p->w.n >= LONG_ROW && p->w.n <= CHUNK) cut_strips(p);
  int64_t parts = p->lines.n ? p->lines.n * p->images.total : p->positions;
  p->share = equal_blocks(parts, div_up(parts, shares_of(f, p, want)));
  p->shares = p->share.n;
  if (p->lines.n) return;
  int64_t longest = p->share.size + (p->share.more > 0);
  p->chunk = div_up(longest, div_up(longest, p->chunk));
}

/* Channels in small blocks only where there would be too few tasks. */
static void divide(const Facts *f, FilterPlan *p) {
  enum { ENOUGH = 4, LEAST_CHANNELS = 64 };
  int64_t want = least(tasks_for(f->flops), MOST_SHARES), rows = MOST_CHANNELS;
  cut(f, p, rows, want);
  while (p->shares * p->rows.n * p->cols.n * p->groups.total < least(want, ENOUGH) &&
         p->rows.size >= LEAST_CHANNELS)
    cut(f, p, rows /= 2, want);
}

static bool choose_tile(const Facts *f, FilterPlan *p, const TileRow *only) {
  double least_cost = 0;
  TileRow best = {0};
  for (const TileRow *t = tile_table; t->isa != ISA_NONE; t++) {
    if (t->isa != tile_isa() || t->dtype != f->dtype || t->form != FORM_ROWS) continue;
    if (only && t != only) continue;
    Blocks r = row_blocks(p->rows.size + (p->rows.more > 0), t),
           v = vector_blocks(p->cols.size + (p->cols.more > 0), t);
    double c = 0;
    for (int i = 0; i < 4; i++) {
      double mr = (double)(r.size + (i & 1)), nv = (double)(v.size + i / 2);
      c += (double)(i & 1 ? r.more : r.n - r.more) * (double)(i / 2 ? v.more : v.n - v.more) *
           ((double)p->chunk * tile_cycles(mr, nv) + 2 * mr * nv + 30);
    }
    if (least_cost && c >= least_cost) continue;
    least_cost = c;
    best = *t;
  }
  p->tile = best;
  return least_cost > 0;
}

/* Is position p at p times the distance of neighbours along w, for all images? */
static bool is_plain(const Facts *f, const FilterPlan *p) {
  int64_t next = p->w.n * p->w.stride;
  if (p->h.taps * p->w.taps > 1 || p->fold || p->w.step != 1 || p->w.at) return false;
  if (p->h.n > 1 && (p->h.step != 1 || p->h.at || p->h.stride != next)) return false;
  next *= p->h.n;
  for (int i = p->images.n - 1; i >= 0; i--) {
    const CLoop *l = &f->loop[p->images.id[i]];
    if (l->s[p->a] != next) return false;
    next *= l->ext;
  }
  return true;
}

static void want_tiles(Arena *a, FilterPlan *p, int64_t rows, int64_t columns) {
  if (!rows || !columns) return;
  Blocks r = row_blocks(rows, &p->tile), v = vector_blocks(columns, &p->tile);
  for (int64_t i = 0; i < r.n; i += most(r.n - 1, 1))
    for (int64_t j = 0; j < v.n; j++) {
      MicroSpec s = {.dtype = p->tile.dtype, .lanes = p->tile.lanes};
      s.mr = (int)block_size(&r, i);
      s.nv = (int)block_size(&v, j);
      s.tail = (block_start(&v, j) + s.nv) * s.lanes > columns;
      p->fn[s.mr][s.nv][s.tail] = micro_want(a, &p->set, &s);
      if (i) continue;
      s.keep = p->keep;
      p->first[s.mr][s.nv][s.tail] = micro_want(a, &p->set, &s);
    }
}

bool filter_plan(Arena *arena, Plan *plan) {
  const Facts *f = &plan->facts;
  FilterPlan p;
  if ((!find(f, 0, &p) || !worth(plan, &p)) && (!find(f, 1, &p) || !worth(plan, &p))) return false;
  bool computed = plan->frame.computed >= 0;
  if (computed && plan->frame.computed != p.a) return false;
  p.a_base = f->base[p.a] - p.w.at * p.w.stride - p.h.at * p.h.stride;
  p.b_base = f->base[p.b];
  bool fast = plan->conv_error >= SUM_ERROR && winograd_filter_plan(f, &p, tasks_for(f->flops));
  if (!fast) divide(f, &p);
  if (!choose_tile(f, &p, plan->only)) return false;
  p.a_plain = !fast && !computed && is_plain(f, &p) && p.w.stride * f->size < PAGE;
  bool in_place = p.a_plain && p.b_pos == p.cols.size; /* B has no gaps and serves one tap */
  p.keep = !fast && !in_place && (p.cols.n > 1 || vector_blocks(p.columns, &p.tile).n > 1);
  for (int i = 0; i < 2; i++)
    for (int j = 0; j < 2; j++)
      want_tiles(arena, &p,
                 i             ? p.rows.size
                 : p.rows.more ? p.rows.size + 1
                               : 0,
                 j             ? p.cols.size
                 : p.cols.more ? p.cols.size + 1
                               : 0);
  Work *w = &plan->work;
  int64_t columns =
      p.keep ? div_up(p.cols.size + (p.cols.more > 0), p.tile.lanes) * p.tile.lanes : 0;
  int64_t a = p.lines.n   ? strip_rows(&p, p.chunk / p.w.n) * p.strip_w * p.pixel
              : p.a_plain ? 0
                          : (p.rows.size + 1 + APART) * p.chunk;
  w->scratch = (fast ? winograd_filter_scratch(&p) : columns * p.chunk + a) * f->size;
  w->fn[0] = fast ? winograd_filter_tasks : filter_tasks;
  w->n_tasks[0] = p.shares * p.cols.n * p.rows.n * p.groups.total;
  w->n_phases = 1;
  w->fused = w->n_tasks[0] == 1;
  if (p.shares > 1) add_shares(plan, p.shares);
  plan->filter = arena_dup(arena, &p, sizeof p);
  plan->set = &plan->filter->set;
  plan->tile = &plan->filter->tile;
  return true;
}

/* A, whose rows are those of the operand. */
bool filter_takes(const Plan *p, const Kernel *k, int x) {
  const FilterPlan *f = p->filter;
  const Node *n = k->core->in[x];
  return f->a == x && !f->fold && n->rank > 1 && f->w.stride == n->dims[n->rank - 1];
}

/* Groups are images, or parts of their rows. */
int64_t filter_items(const Plan *plan) {
  const FilterPlan *p = plan->filter;
  const Facts *f = &plan->facts;
  if (!p->groups.n || p->shares > 1 || plan->frame.epilogue) return 0;
  const CLoop *l = &f->loop[p->groups.id[0]];
  return l->s[2] * l->ext == f->numel ? l->ext : 0;
}

bool filter_rows(const Plan *plan, const Kernel *k, TaskRows *to) {
  const FilterPlan *p = plan->filter;
  const CLoop *l = p->groups.n == 2 ? &plan->facts.loop[p->groups.id[1]] : NULL;
  if (!l || l->ext != k->ext[1] || l->s[2] * l->ext * k->ext[0] != plan->facts.numel) return false;
  for (int64_t t = 0; t < p->rows.n * p->cols.n * l->ext; t++) {
    int32_t row = (int32_t)(t / (p->rows.n * p->cols.n));
    to[t] = (TaskRows){row, row + 1};
  }
  return true;
}
