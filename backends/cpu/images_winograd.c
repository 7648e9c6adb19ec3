/* Convolutions of 5 x 5 with the images of the batch last, by Winograd's minimal filtering.
 *
 * In: an ImagesPlan of sums, and the error that is allowed. Out: the plan, changed where this is faster. A tile of 2 x 2 results
 * reads 6 x 6 positions; 36 products of (filters x channels) by (channels x images) take the place of 100. The points are those
 * of winograd.c for tiles of 4 x 4 results of 3 x 3, 0, +-sqrt(1/2), +-sqrt(2) and infinity, and so is the transform of X. Sums of
 * up to 64 channels err by up to 1.5e-6 of the largest result, no more than plain sums.
 *
 * Phase 1: each filter becomes 36 numbers for each channel: 36 matrices of filters by channels. Phase 2: a task has a row of tiles.
 * For each tile and panel of images, X becomes 36 matrices of channels by images; then for each block of filters, 36 products
 * become the results. */
#include "images.h"
#include "winograd_line.h"

/* APART: so that the matrices do not lie in the same sets of the cache. */
enum { N = 6, TAPS = 5, M = 2, POINTS = N * N, MOST_CHANNELS = 64, APART = 16 };

/* ---- one dimension ---- */

/* TAPS numbers `s` apart to N numbers `t` apart, of LANES channels: the powers of a point. */
INLINE void filter_line(const Wide *g, int s, Wide *to, int t) {
  static const double r2 = 1.4142135623730951;
  Wide even_p = -2. / 3 * g[0] - 1. / 3 * g[2 * s] - 1. / 6 * g[4 * s],
       odd_p = -r2 / 3 * g[s] - r2 / 6 * g[3 * s],
       even_q = 1. / 6 * g[0] + 1. / 3 * g[2 * s] + 2. / 3 * g[4 * s],
       odd_q = r2 / 6 * g[s] + r2 / 3 * g[3 * s];
  to[0] = g[0];
  to[t] = even_p + odd_p;
  to[2 * t] = even_p - odd_p;
  to[3 * t] = even_q + odd_q;
  to[4 * t] = even_q - odd_q;
  to[5 * t] = g[4 * s];
}

/* Two results to 6 points `t` apart: the transpose of what makes them of points. */
INLINE void spread2(Vec a, Vec b, float *to, int64_t t) {
  AT(to) = a;
  AT(to + t) = a + P * b;
  AT(to + 2 * t) = a - P * b;
  AT(to + 3 * t) = a + Q * b;
  AT(to + 4 * t) = a - Q * b;
  AT(to + 5 * t) = b;
}

/* ---- tiles: of LANES images, and LANES channels of a filter ---- */

/* A window to POINTS places `step` apart. */
INLINE void read_tile(const float *x, int64_t line, int64_t pixel, float *to, int64_t step) {
  _Alignas(64) float half[POINTS * LANES];
  for (int i = 0; i < N; i++) read6(x + i * pixel, line, half + i * LANES, N * LANES);
  for (int i = 0; i < N; i++) read6(half + i * N * LANES, LANES, to + i * N * step, step);
}

/* POINTS places `step` apart to the first rows x wide results at c. */
INLINE void write_tile(const float *p, int64_t step, float *c, int64_t line, int64_t pixel,
                       int64_t rows, int64_t wide) {
  _Alignas(64) float half[M * N * LANES];
  _Alignas(64) Vec two[M];
  for (int i = 0; i < N; i++) {
    write2(p + i * step, N * step, two);
    for (int y = 0; y < M; y++) AT(half + (y * N + i) * LANES) = two[y];
  }
  for (int64_t y = 0; y < rows; y++) {
    write2(half + y * N * LANES, LANES, two);
    for (int64_t x = 0; x < wide; x++) AT(c + y * line + x * pixel) = two[x];
  }
}

/* Four results, of 2 x 2, to 36 points `step` apart. */
INLINE void spread4(const float *const e[4], float *to, int64_t step) {
  _Alignas(64) float half[2 * N * LANES];
  spread2(FROM(e[0]), FROM(e[2]), half, 2 * LANES);
  spread2(FROM(e[1]), FROM(e[3]), half + LANES, 2 * LANES);
  for (int y = 0; y < N; y++)
    spread2(FROM(half + 2 * y * LANES), FROM(half + (2 * y + 1) * LANES), to + N * y * step, step);
}

/* The first n channels, `channel` apart, to POINTS places `step` apart. */
INLINE void read_filter(const float *w, int64_t tap_h, int64_t tap_w, int64_t channel, int64_t n,
                        float *to, int64_t step) {
  Wide g[TAPS * TAPS] = {0}, half[TAPS * N], all[POINTS];
  for (int t = 0; t < TAPS * TAPS; t++)
    for (int64_t i = 0; i < n; i++)
      ((double *)&g[t])[i] = w[t / TAPS * tap_h + t % TAPS * tap_w + i * channel];
  for (int x = 0; x < TAPS; x++) filter_line(g + x, TAPS, half + x, TAPS);
  for (int y = 0; y < N; y++) filter_line(half + y * TAPS, 1, all + y * N, 1);
  for (int t = 0; t < POINTS; t++)
    for (int64_t i = 0; i < n; i++) to[t * step + i] = (float)((const double *)&all[t])[i];
}

typedef struct Forms {
  void (*read)(const float *x, int64_t line, int64_t pixel, float *to, int64_t step);
  void (*write)(const float *p, int64_t step, float *c, int64_t line, int64_t pixel, int64_t rows,
                int64_t wide);
  void (*filter)(const float *w, int64_t tap_h, int64_t tap_w, int64_t channel, int64_t n,
                 float *to, int64_t step);
  void (*spread)(const float *const e[4], float *to, int64_t step);
} Forms;
#define FORMS(ISA, ...)                                                                            \
  __VA_ARGS__ static void read_##ISA(const float *x, int64_t line, int64_t pixel, float *to,       \
                                     int64_t step) {                                               \
    read_tile(x, line, pixel, to, step);                                                           \
  }                                                                                                \
  __VA_ARGS__ static void write_##ISA(const float *p, int64_t step, float *c, int64_t line,        \
                                      int64_t pixel, int64_t rows, int64_t wide) {                 \
    write_tile(p, step, c, line, pixel, rows, wide);                                               \
  }                                                                                                \
  __VA_ARGS__ static void filter_##ISA(const float *w, int64_t tap_h, int64_t tap_w,               \
                                       int64_t channel, int64_t n, float *to, int64_t step) {      \
    read_filter(w, tap_h, tap_w, channel, n, to, step);                                            \
  }                                                                                                \
  __VA_ARGS__ static void spread_##ISA(const float *const e[4], float *to, int64_t step) {         \
    spread4(e, to, step);                                                                          \
  }
FOR_EACH_ISA(FORMS)

static const Forms forms[] = {
#define ISA(id, here) [ISA_##id] = {read_##id, write_##id, filter_##id, spread_##id},
#include "tiles.def"
};

/* ---- running ---- */

static int64_t matrix(const ImagesPlan *p) { return p->filters * p->channels; }
static int64_t window_step(const ImagesPlan *p, int64_t width) {
  return p->channels * width + APART;
}

/* A task has a filter, which goes back if the results do. */
static void pack(const void *self, void *const *bufs, int64_t begin, int64_t end, RunCtx *ctx) {
  const Plan *plan = self;
  const ImagesPlan *p = plan->images;
  const PartAxis *h = &p->h[0], *v = &p->v[0];
  int64_t c = list_step(&plan->facts, &p->channel_loops, p->w),
          o = list_step(&plan->facts, &p->filter_loops, p->w);
  int64_t tap_h = h->k_step * p->w_kh, tap_w = v->k_step * p->w_kw;
  const float *from =
      (const float *)bufs[plan->frame.x[p->w]] + p->w_base + h->k * p->w_kh + v->k * p->w_kw;
  float *to = bufs[plan->frame.ws];
  if (p->back) {
    from += (TAPS - 1) * (tap_h + tap_w);
    tap_h = -tap_h;
    tap_w = -tap_w;
  }
  (void)ctx;
  for (int64_t t = begin; t < end; t++)
    for (int64_t i = 0; i < p->channels; i += LANES)
      forms[p->tile.isa].filter(from + t * o + i * c, tap_h, tap_w, c,
                                least(LANES, p->channels - i), to + t * p->channels + i, matrix(p));
}

/* A window that reaches over the edge: of LANES images of a channel. */
static void copy_window(const Windows *s, const float *x, int64_t y0, int64_t x0, float *to) {
  for (int64_t y = y0; y < y0 + N; y++)
    for (int64_t i = x0; i < x0 + N; i++, to += LANES)
      if (y >= 0 && y < s->size_h && i >= 0 && i < s->size_w)
        memcpy(to, x + y * s->h + i * s->w, LANES * sizeof *to);
      else
        memset(to, 0, LANES * sizeof *to);
}

void images_window(const Windows *s, const float *x, int64_t y0, int64_t x0, int64_t images,
                   float *to, int64_t step, int64_t channel) {
  bool inside = y0 >= 0 && y0 + N <= s->size_h && x0 >= 0 && x0 + N <= s->size_w;
  _Alignas(64) float copy[POINTS * LANES];
  for (int64_t c = 0; c < s->channels; c++)
    for (int64_t n = 0; n < images; n += LANES) {
      const float *from = x + c * s->c + n;
      float *at = to + c * channel + n;
      if (inside) {
        forms[s->isa].read(from + y0 * s->h + x0 * s->w, s->h, s->w, at, step);
        continue;
      }
      copy_window(s, from, y0, x0, copy);
      forms[s->isa].read(copy, N * LANES, LANES, at, step);
    }
}

void images_spread(const Tiles *s, const float *x, float *to, int64_t step) {
  static const float zeros[LANES];
  for (int64_t i = 0; i < s->n; i++, x += s->apart, to += LANES) {
    const float *const e[4] = {x, s->wide ? x + s->w : zeros, s->high ? x + s->h : zeros,
                               s->high && s->wide ? x + s->h + s->w : zeros};
    forms[s->isa].spread(e, to, step);
  }
}

typedef struct Tile {
  const ImagesPlan *p;
  const float *w;      /* transformed filters */
  float *window, *sum; /* scratch */
  float *c;            /* where its results begin */
  int64_t rows, wide;  /* results that are there */
} Tile;

/* All filters, of the images of a panel whose window has been read. */
static void run_panel(const Tile *t, int64_t width, int kind) {
  const ImagesPlan *p = t->p;
  MicroArgs m = {.k = p->channels, .columns = width, .batch = 1};
  m.ldb = m.ldc = width * (int64_t)sizeof *t->sum;
  for (int64_t b = 0; b < p->blocks.n; b++) {
    int64_t o = block_start(&p->blocks, b), mr = block_size(&p->blocks, b), step = mr * width;
    MicroFn *fn = p->set.fn[p->fn[b >= p->blocks.more][kind]];
    for (int i = 0; i < POINTS; i++) {
      m.a = t->w + i * matrix(p) + o * p->channels;
      m.b = m.next = t->window + i * window_step(p, width);
      m.c = t->sum + i * step;
      fn(&m);
    }
    for (int64_t r = 0; r < mr; r++)
      for (int64_t n = 0; n < width; n += LANES)
        forms[p->tile.isa].write(t->sum + r * width + n, step, t->c + (o + r) * p->c_o + n, p->c_h,
                                 p->c_w, t->rows, t->wide);
  }
}

static int64_t widest(const ImagesPlan *p) {
  return (p->panels.size + (p->panels.more > 0)) * p->tile.lanes;
}

static void tasks(const void *self, void *const *bufs, int64_t begin, int64_t end, RunCtx *ctx) {
  const Plan *plan = self;
  const ImagesPlan *p = plan->images;
  const PartAxis *h = &p->h[0], *v = &p->v[0];
  const float *x = (const float *)bufs[plan->frame.x[p->x]] + p->x_base;
  const Windows s = {p->tile.isa, p->x_h, p->x_w, p->x_c, p->size_h, p->size_w, p->channels};
  Tile t = {.p = p, .w = bufs[plan->frame.ws], .window = ctx->scratch};
  t.sum = t.window + POINTS * window_step(p, widest(p));
  for (int64_t task = begin; task < end; task++) {
    int64_t y = task * M;
    t.rows = least(M, h->n - y);
    for (int64_t i = 0; i < v->n; i += M) {
      t.wide = least(M, v->n - i);
      for (int64_t panel = 0, n = 0, width; panel < p->panels.n; panel++, n += width) {
        width = block_size(&p->panels, panel) * p->tile.lanes;
        images_window(&s, x + n, h->in + y, v->in + i, width, t.window, window_step(p, width),
                      width);
        t.c = (float *)bufs[plan->frame.out] + y * p->c_h + i * p->c_w + n;
        run_panel(&t, width, panel >= p->panels.more);
      }
    }
    if (plan->work.fused) run_epilogue(&plan->frame, bufs, y, y + t.rows, ctx);
  }
}

/* ---- the plan ---- */

bool images_winograd_fits(const Facts *f, const ImagesPlan *p) {
  const PartAxis *axis[2] = {&p->h[0], &p->v[0]};
  for (int i = 0; i < 2; i++)
    if (axis[i]->taps != TAPS || axis[i]->in_step != 1 || axis[i]->tap_step != 1 ||
        axis[i]->out_step != 1 || axis[i]->out)
      return false;
  return f->dtype == DT_FLOAT32 && p->n_h * p->n_w == 1 && p->channels <= MOST_CHANNELS &&
         p->images % LANES == 0;
}

/* Taps of all positions that are inside. */
static int64_t taps_of(const PartAxis *a, int64_t size) {
  int64_t n = 0;
  for (int64_t i = a->in; i < a->in + a->n; i++) n += most(least(i + TAPS, size) - most(i, 0), 0);
  return n;
}

/* Of a step of all sums, and of their ends. */
static void product_cycles(const ImagesPlan *p, double *step, double *ends) {
  enum { CALL = 40 }; /* of a product, to begin */
  *step = *ends = 0;
  for (int i = 0; i < 4; i++) {
    double mr = (double)(p->blocks.size + (i & 1)), nv = (double)(p->panels.size + i / 2);
    double times = (double)(i & 1 ? p->blocks.more : p->blocks.n - p->blocks.more) *
                   (double)(i / 2 ? p->panels.more : p->panels.n - p->panels.more);
    *step += times * tile_cycles(mr, nv);
    *ends += times * (mr * nv + CALL);
  }
}

double images_sum_cycles(const ImagesPlan *p) {
  double step, ends;
  product_cycles(p, &step, &ends);
  return (double)(taps_of(&p->h[0], p->size_h) * taps_of(&p->v[0], p->size_w)) *
         (double)p->channels * step;
}

double images_tile_cycles(const ImagesPlan *p, double vectors, double read, double write) {
  double step, ends, channels = (double)p->channels;
  product_cycles(p, &step, &ends);
  return POINTS * (channels * step + ends) +
         vectors * (read * channels + write * (double)p->filters);
}

/* read, write: of a vector of images of a window, and of its results. */
static bool is_faster(const ImagesPlan *p) {
  static const double READ = 190, WRITE = 80, GAIN = 0.9;
  double tiles = (double)(div_up(p->h[0].n, M) * div_up(p->v[0].n, M));
  return tiles * images_tile_cycles(p, (double)p->images / LANES, READ, WRITE) <
         GAIN * images_sum_cycles(p);
}

void images_winograd_phases(Plan *plan, ImagesPlan *p, KernelFn *tasks, int64_t n) {
  Work *w = &plan->work;
  p->winograd = p->pack = true;
  p->pitch = p->channels;
  p->cuts = 1;
  w->workspace = POINTS * matrix(p) * plan->facts.size;
  w->fn[0] = pack;
  w->n_tasks[0] = p->filters;
  w->fn[1] = tasks;
  w->n_tasks[1] = n;
  w->n_phases = 2;
}

bool images_winograd_plan(Plan *plan, ImagesPlan *p) {
  enum { LEAST_TASKS = 4 };
  const Facts *f = &plan->facts;
  int64_t tiles = div_up(p->rows, M);
  bool panels =
      p->panels.size * p->tile.lanes % LANES == 0 && (!p->panels.more || p->tile.lanes == LANES);
  if (!(plan->conv_error >= SUM_ERROR) || !images_winograd_fits(f, p) || !panels ||
      tiles < LEAST_TASKS || !is_faster(p))
    return false; /* NaN: nothing is allowed */
  images_winograd_phases(plan, p, tasks, tiles);
  plan->work.scratch =
      POINTS * (window_step(p, widest(p)) + widest(p) * (p->blocks.size + 1)) * f->size;
  return true;
}
