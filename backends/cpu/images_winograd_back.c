/* Convolutions of 5 x 5 with more results than positions, with the images of the batch last, by the transpose of Winograd's minimal
 * filtering: gradients of inputs.
 *
 * In: an ImagesPlan of sums, and the error that is allowed. Out: the plan, changed where this is faster. A tile of 2 x 2 positions
 * of X adds to 6 x 6 results; where images_winograd.c has tiles of results, here they are of X, which are fewer where X
 * is padded by 4 (64 against 100 or 144 of 8 x 8). A tile becomes 36 numbers, as in a filter's gradient; the filter, backwards, is
 * transformed as forward; the products become 6 x 6 results by the transpose of what windows are read by.
 *
 * Phase 1: as in images_winograd.c. Phase 2: a task has LANES images, since tiles that lie side by side add to the same results. */
#include "images.h"
#include "winograd_line.h"

enum { N = 6, TAPS = 5, M = 2, POINTS = N * N };

/* ---- tiles: of LANES images ---- */

/* POINTS places `step` apart are added to the results y[0]..y[1]-1, x[0]..x[1]-1 of those that begin at c. */
INLINE void add_tile(const float *p, int64_t step, float *c, int64_t line, int64_t pixel,
                     const int64_t y[2], const int64_t x[2]) {
  _Alignas(64) float half[POINTS * LANES], six[N * LANES];
  for (int i = 0; i < N; i++) spread6(p + i * step, N * step, half + i * LANES, N * LANES);
  for (int64_t j = y[0]; j < y[1]; j++) {
    spread6(half + j * N * LANES, LANES, six, LANES);
    for (int64_t i = x[0]; i < x[1]; i++) AT(c + j * line + i * pixel) += FROM(six + i * LANES);
  }
}

typedef void Add(const float *p, int64_t step, float *c, int64_t line, int64_t pixel,
                 const int64_t y[2], const int64_t x[2]);
#define FORMS(ISA, ...)                                                                            \
  __VA_ARGS__ static void add_##ISA(const float *p, int64_t step, float *c, int64_t line,          \
                                    int64_t pixel, const int64_t y[2], const int64_t x[2]) {       \
    add_tile(p, step, c, line, pixel, y, x);                                                       \
  }
FOR_EACH_ISA(FORMS)

static Add *const adders[] = {
#define ISA(id, here) [ISA_##id] = add_##id,
#include "tiles.def"
};

/* ---- running ---- */

/* sum: POINTS matrices of filters by images. */
static void multiply_all(const ImagesPlan *p, const float *w, const float *x, float *sum) {
  int64_t size = sizeof *sum, lanes = p->tile.lanes;
  MicroArgs m = {.k = p->channels, .batch = 1, .ldb = LANES * size, .ldc = LANES * size};
  for (int64_t i = 0; i < POINTS; i++, w += p->filters * p->channels)
    for (int64_t b = 0; b < p->blocks.n; b++)
      for (int64_t v = 0; v < p->panels.n; v++) {
        int64_t o = block_start(&p->blocks, b), n = block_start(&p->panels, v) * lanes;
        m.columns = block_size(&p->panels, v) * lanes;
        m.a = w + o * p->channels;
        m.b = m.next = x + i * p->channels * LANES + n;
        m.c = sum + (i * p->filters + o) * LANES + n;
        p->set.fn[p->fn[b >= p->blocks.more][v >= p->panels.more]](&m);
      }
}

/* What of N results from `at` on is there. */
static void inside(int64_t at, int64_t n, int64_t to[2]) {
  to[0] = most(-at, 0);
  to[1] = least(N, n - at);
}

static void add_all(const ImagesPlan *p, const float *sum, float *c, int64_t y0, int64_t x0) {
  int64_t y[2], x[2];
  inside(y0, p->h[0].n, y);
  inside(x0, p->v[0].n, x);
  c += y0 * p->c_h + x0 * p->c_w;
  for (int64_t o = 0; o < p->filters; o++)
    adders[p->tile.isa](sum + o * LANES, p->filters * LANES, c + o * p->c_o, p->c_h, p->c_w, y, x);
}

static void clear(const ImagesPlan *p, float *c) {
  for (int64_t y = 0; y < p->h[0].n; y++)
    for (int64_t x = 0; x < p->v[0].n; x++)
      for (int64_t o = 0; o < p->filters; o++)
        memset(c + y * p->c_h + x * p->c_w + o * p->c_o, 0, LANES * sizeof *c);
}

static void tasks(const void *self, void *const *bufs, int64_t begin, int64_t end, RunCtx *ctx) {
  const Plan *plan = self;
  const ImagesPlan *p = plan->images;
  const float *w = bufs[plan->frame.ws];
  float *window = ctx->scratch, *sum = window + POINTS * p->channels * LANES;
  Tiles s = {p->tile.isa, p->channels, p->x_c, p->x_h, p->x_w, false, false};
  for (int64_t t = begin; t < end; t++) {
    const float *x = (const float *)bufs[plan->frame.x[p->x]] + p->x_base + t * LANES;
    float *c = (float *)bufs[plan->frame.out] + t * LANES;
    clear(p, c);
    for (int64_t y = 0; y < p->size_h; y += M)
      for (int64_t i = 0; i < p->size_w; i += M) {
        s.high = y + 1 < p->size_h, s.wide = i + 1 < p->size_w;
        images_spread(&s, x + y * p->x_h + i * p->x_w, window, p->channels * LANES);
        multiply_all(p, w, window, sum);
        add_all(p, sum, c, y - p->h[0].in - (TAPS - 1), i - p->v[0].in - (TAPS - 1));
      }
  }
}

/* ---- the plan ---- */

bool images_back_plan(Plan *plan, ImagesPlan *p) {
  enum { LEAST_TASKS = 2 };
  static const double READ = 90, ADD = 260, GAIN = 0.9;
  const Facts *f = &plan->facts;
  ImagesPlan q = *p;
  int64_t n = p->images / LANES, tiles = div_up(p->size_h, M) * div_up(p->size_w, M);
  bool fewer = p->size_h < p->h[0].n && p->size_w < p->v[0].n;
  if (!(plan->conv_error >= SUM_ERROR) || !images_winograd_fits(f, p) || !fewer || n < LEAST_TASKS)
    return false; /* NaN: nothing is allowed */
  q.images = LANES;
  q.pitch = p->channels;
  if (!images_tile(plan, &q) ||
      (double)(n * tiles) * images_tile_cycles(&q, 1, READ, ADD) > GAIN * images_sum_cycles(p))
    return false;
  *p = q;
  p->images = n * LANES;
  p->back = true;
  images_winograd_phases(plan, p, tasks, n);
  plan->work.scratch = POINTS * LANES * (p->channels + p->filters) * f->size;
  return true;
}
