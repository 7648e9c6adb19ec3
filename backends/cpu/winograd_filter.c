/* Gradients of filters of 3 x 3 with stride 1 by Winograd's minimal filtering.
 *
 * In: a FilterPlan whose operands are found. Out: the plan, divided to run so, where that seems faster.
 * A tile of 2 x 2 positions of B (the gradient of the convolution's result) meets a window of 4 x 4 of A. Windows are
 * transformed as the forward pass does it (winograd_run.c), d to R' d R; tiles e become W e W', 16 numbers from four. Then
 *   result = G' (sum over tiles of (R' d R) * (W e W')) G,
 * the transpose of the forward form: for each of the 16 numbers one product of (channels x tiles) by (tiles x columns), where
 * plain sums have 36 for as many positions (Lavin and Gray, Fast algorithms for convolutional neural networks,
 * arXiv 1509.09308). With the points 0, 1, -1, infinity all three transforms are additions, and halves.
 *
 * A task has some channels, some columns and some rows of tiles. The windows of a few rows are transformed from a strip with
 * zeros around, then the tiles, panel by panel, and the 16 sums of products stay in the L2 cache until the last row. */
#include "conv.h"
#include "filter.h"
#include "winograd_line.h"

enum { N = 4, M = 2, TAPS = 3 };

/* ---- transforms ---- */

/* Four pixels of B, `columns` of each, to 16 places `step` apart. */
INLINE void spread_tile(const float *const e[4], int64_t columns, float *to, int64_t step) {
  for (int64_t c = 0; c < columns; c += LANES) {
    Vec a = FROM(e[0] + c), b = FROM(e[1] + c), d = FROM(e[2] + c), f = FROM(e[3] + c);
    Vec row[N][M] = {{a, b}, {a + d, b + f}, {a - d, b - f}, {d, f}};
    for (int y = 0; y < N; y++) {
      float *out = to + y * N * step + c;
      AT(out) = row[y][0];
      AT(out + step) = row[y][0] + row[y][1];
      AT(out + 2 * step) = row[y][0] - row[y][1];
      AT(out + 3 * step) = row[y][1];
    }
  }
}

INLINE void sum_taps(const Vec *m, int s, Vec *to, int t) {
  Vec even = 0.5f * (m[s] + m[2 * s]);
  to[0] = even - m[0];
  to[t] = 0.5f * (m[s] - m[2 * s]);
  to[2 * t] = even + m[3 * s];
}

/* 16 sums `step` apart, of `columns`, to nine taps. */
INLINE void write_taps(const float *sum, int64_t step, int64_t columns, float *to, int64_t tap_h,
                       int64_t tap_w) {
  for (int64_t c = 0; c < columns; c += LANES) {
    Vec m[N * N], half[TAPS * N], all[TAPS * TAPS];
    for (int i = 0; i < N * N; i++) m[i] = FROM(sum + i * step + c);
    for (int x = 0; x < N; x++) sum_taps(m + x, N, half + x, N);
    for (int y = 0; y < TAPS; y++) sum_taps(half + y * N, 1, all + y * TAPS, 1);
    for (int t = 0; t < TAPS * TAPS; t++) AT(to + t / TAPS * tap_h + t % TAPS * tap_w + c) = all[t];
  }
}

typedef void Spread(const float *const e[4], int64_t columns, float *to, int64_t step);
typedef void Taps(const float *sum, int64_t step, int64_t columns, float *to, int64_t tap_h,
                  int64_t tap_w);
#define TRANSFORMS(ISA, ...)                                                                       \
  __VA_ARGS__ static void spread_##ISA(const float *const e[4], int64_t columns, float *to,        \
                                       int64_t step) {                                             \
    spread_tile(e, columns, to, step);                                                             \
  }                                                                                                \
  __VA_ARGS__ static void taps_##ISA(const float *sum, int64_t step, int64_t columns, float *to,   \
                                     int64_t tap_h, int64_t tap_w) {                               \
    write_taps(sum, step, columns, to, tap_h, tap_w);                                              \
  }
FOR_EACH_ISA(TRANSFORMS)

static const struct {
  Spread *spread;
  Taps *taps;
} transforms[] = {
#define ISA(id, here) [ISA_##id] = {spread_##id, taps_##id},
#include "tiles.def"
};

/* ---- a task ---- */

typedef struct Sums {
  const FilterPlan *f;
  FilterSource from;
  FilterTask task;
  int64_t tiles; /* transformed, of the block of rows at hand */
  Blocks panels;
  float *a, *b, *c, *strip, *zeros; /* scratch */
} Sums;

static Sums sums_of(const Plan *plan, void *const *bufs, RunCtx *ctx) {
  const FilterPlan *f = plan->filter;
  const FilterWinograd *w = &f->winograd;
  Sums s = {.f = f, .from = {plan, bufs, ctx}, .a = ctx->scratch};
  s.b = s.a + N * N * w->a_step;
  s.c = s.b + N * N * w->b_step;
  s.zeros = s.c + N * N * w->c_step;
  s.strip = s.zeros + f->cols.size;
  memset(s.zeros, 0, (size_t)f->cols.size * sizeof *s.zeros);
  s.panels = vector_blocks(f->cols.size, &f->tile);
  return s;
}

/* The windows of n rows of tiles of an image, the tiles after those that there are. */
static void read_windows(Sums *s, int64_t image, int64_t row, int64_t n) {
  const FilterPlan *f = s->f;
  int64_t line = f->strip_w * f->pixel;
  float *to = s->a + s->tiles * s->task.rows;
  filter_strip(&s->from, &s->task, (image * f->h.n + row * M) * f->w.n, n * M, (char *)s->strip);
  for (int64_t y = 0; y < n; y++)
    for (int64_t x = 0; x < f->winograd.across; x++, to += s->task.rows)
      winograd_window(f->tile.isa, s->strip + y * M * line + x * M * f->pixel, line, f->pixel,
                      s->task.rows, to, f->winograd.a_step);
}

static void read_tiles(Sums *s, int64_t image, int64_t row, int64_t n, int64_t total) {
  const FilterPlan *f = s->f;
  const float *b = (const float *)s->task.b + s->task.o0;
  int64_t lanes = f->tile.lanes, at = s->tiles;
  for (int64_t y = row * M; y < (row + n) * M; y += M)
    for (int64_t x = 0; x < f->winograd.across * M; x += M, at++) {
      const float *pixel = b + ((image * f->h.n + y) * f->w.n + x) * f->b_pos;
      bool wide = x + 1 < f->w.n, high = y + 1 < f->h.n;
      for (int64_t i = 0; i < s->panels.n; i++) {
        int64_t c = block_start(&s->panels, i) * lanes, width = block_size(&s->panels, i) * lanes;
        const float *const e[] = {pixel + c, wide ? pixel + f->b_pos + c : s->zeros,
                                  high ? pixel + f->w.n * f->b_pos + c : s->zeros,
                                  wide && high ? pixel + (f->w.n + 1) * f->b_pos + c : s->zeros};
        transforms[f->tile.isa].spread(e, width, s->b + c * total + at * width, f->winograd.b_step);
      }
    }
}

static void multiply_tiles(const Sums *s, bool add) {
  const FilterPlan *f = s->f;
  const FilterWinograd *w = &f->winograd;
  int64_t size = sizeof(float), lanes = f->tile.lanes;
  Blocks rows = row_blocks(s->task.rows, &f->tile);
  MicroArgs x = {.lda = s->task.rows * size,
                 .ldc = s->task.columns * size,
                 .add = add,
                 .batch = 1,
                 .fetch_c = true};
  x.k = s->tiles;
  for (int i = 0; i < N * N; i++)
    for (int64_t v = 0; v < s->panels.n; v++) {
      int64_t c = block_start(&s->panels, v) * lanes;
      x.columns = block_size(&s->panels, v) * lanes;
      x.b = x.next = s->b + i * w->b_step + c * s->tiles;
      x.ldb = x.columns * size;
      for (int64_t r = 0; r < rows.n; r++) {
        int64_t row = block_start(&rows, r);
        x.a = s->a + i * w->a_step + row;
        x.c = s->c + i * w->c_step + row * s->task.columns + c;
        f->set.fn[f->fn[block_size(&rows, r)][block_size(&s->panels, v)][0]](&x);
      }
    }
}

void winograd_filter_tasks(const void *self, void *const *bufs, int64_t begin, int64_t end,
                           RunCtx *ctx) {
  const Plan *plan = self;
  const FilterPlan *f = plan->filter;
  const FilterWinograd *w = &f->winograd;
  Sums s = sums_of(plan, bufs, ctx);
  for (int64_t t = begin; t < end; t++) {
    FilterTask *k = &s.task;
    *k = filter_task(plan, bufs, t);
    for (int64_t p = k->p0, q; p < k->p1; p = q) {
      q = least(p + w->rows, k->p1);
      s.tiles = 0;
      for (int64_t r = p, n; r < q; r += n) {
        n = least(q - r, w->down - r % w->down);
        read_windows(&s, r / w->down, r % w->down, n);
        read_tiles(&s, r / w->down, r % w->down, n, (q - p) * w->across);
        s.tiles += n * w->across;
      }
      multiply_tiles(&s, p > k->p0);
    }
    float *to = f->shares > 1 ? (float *)bufs[plan->frame.ws] + k->share * plan->facts.numel
                              : (float *)bufs[plan->frame.out];
    for (int64_t i = 0; i < k->rows; i++)
      transforms[f->tile.isa].taps(s.c + i * k->columns, w->c_step, k->columns,
                                   to + k->c + i * f->c_row, f->h.c, f->w.c);
  }
  if (plan->work.fused && f->shares == 1)
    run_epilogue(&plan->frame, bufs, 0, plan->frame.rows, ctx);
}

/* ---- the plan ---- */

static bool is_axis(const FilterAxis *x) {
  return x->pos >= 0 && x->taps == TAPS && x->step == 1 && x->tap_step == 1;
}

/* `total` in equal blocks of whole vectors, at most `largest` of them. */
static Blocks vectors(int64_t total, int64_t largest) {
  int64_t v = total / LANES, n = div_up(v, largest);
  while (v % n) n++;
  return (Blocks){n, v / n * LANES, 0};
}

/* Cycles of all the arithmetic, this way over plain sums. */
static double relative_cost(const FilterPlan *p) {
  enum { READ = 40, SPREAD = 25, WRITE = 60, UPDATE = 80 }; /* a vector; a tile of results */
  double tiles = (double)(p->images.total * p->winograd.down * p->winograd.across),
         rows = (double)p->channels, columns = (double)p->columns;
  double products = tiles * rows * columns / 2 * (1 + UPDATE / (12.0 * (double)p->chunk));
  double windows = tiles * rows / LANES * (double)p->cols.n * READ,
         spread = tiles * columns / LANES * (double)p->rows.n * SPREAD,
         written = rows * columns / LANES * (double)p->shares * WRITE;
  double sums = (double)p->positions * TAPS * TAPS * rows * columns / (2 * LANES);
  return (products + windows + spread + written) / sums;
}

bool winograd_filter_plan(const Facts *f, FilterPlan *p, int64_t want) {
  enum { MOST_ROWS_OF_A = 4, MOST_COLUMNS_OF_B = 8 }; /* vectors */
  enum { BYTES = 1200 << 10, APART = 16, LEAST_TILES = 512, MOST_TASKS = 16 };
  static const double GAIN = 0.85;
  FilterPlan q = *p;
  FilterWinograd *w = &q.winograd;
  if (!is_axis(&p->h) || !is_axis(&p->w) || p->fold || f->dtype != DT_FLOAT32) return false;
  if (p->channels % LANES || p->columns % LANES) return false;
  q.rows = vectors(p->channels, MOST_ROWS_OF_A);
  q.cols = vectors(p->columns, MOST_COLUMNS_OF_B);
  *w = (FilterWinograd){true, div_up(p->h.n, M), div_up(p->w.n, M), 0, 0, 0, 0};
  int64_t room = BYTES / (N * N * f->size) - q.rows.size * q.cols.size;
  int64_t all = p->images.total * w->down, tiles = room / (q.rows.size + q.cols.size);
  int64_t n = div_up(least(want, MOST_TASKS), q.rows.n * q.cols.n * p->groups.total);
  q.shares = most(least(n, least(all * w->across / LEAST_TILES, MOST_SHARES)) / 2 * 2, 1);
  q.share = equal_blocks(all, div_up(all, q.shares));
  q.shares = q.share.n;
  int64_t longest = q.share.size + (q.share.more > 0);
  w->rows = div_up(longest, div_up(longest, most(tiles / w->across, 1)));
  q.chunk = w->rows * w->across;
  if (relative_cost(&q) > GAIN) return false;
  w->a_step = q.chunk * q.rows.size + APART;
  w->b_step = q.chunk * q.cols.size + APART;
  w->c_step = q.rows.size * q.cols.size + APART;
  q.pixel = q.rows.size;
  q.strip_w = M * w->across + TAPS - 1;
  *p = q;
  return true;
}

int64_t winograd_filter_scratch(const FilterPlan *p) {
  const FilterWinograd *w = &p->winograd;
  return N * N * (w->a_step + w->b_step + w->c_step) + p->cols.size +
         (M * w->rows + TAPS - 1) * p->strip_w * p->pixel;
}
