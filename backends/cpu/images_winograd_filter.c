/* Gradients of filters of 5 x 5 with the images of the batch last, by Winograd's minimal filtering.
 *
 * In: an ImagesGrad whose operands are found, and the error that is allowed. Out: the plan, divided to run so, where that seems
 * faster. A tile of 2 x 2 positions of D meets a window of 6 x 6 of X. Windows are read as the forward pass does it
 * (images_winograd.c), tiles become 36 numbers from four; then
 *   result = G' (sum over tiles and images of windows * tiles) G,
 * the transpose of the forward form: for each of the 36 numbers one product of (filters x images of tiles) by (images of
 * tiles x channels), of the form DOT, where plain sums have 100 for as many positions.
 *
 * A task has some tiles, whose sums become a share of the result. The windows of a run of them are read, then the tiles block by
 * block of filters, so that both and the 36 sums stay in the L2 cache. */
#include "images.h"
#include "winograd_line.h"

enum { N = 6, TAPS = 5, M = 2, POINTS = N * N, APART = 16 };

/* ---- transforms ---- */

INLINE void sum_taps(const Vec *m, int s, Vec *to, int t) {
  static const float third = 1.f / 3, sixth = 1.f / 6, r3 = 0.47140452f, r6 = 0.23570226f;
  Vec even_p = m[s] + m[2 * s], odd_p = m[s] - m[2 * s], even_q = m[3 * s] + m[4 * s],
      odd_q = m[3 * s] - m[4 * s];
  to[0] = m[0] - 2 * third * even_p + sixth * even_q;
  to[t] = r6 * odd_q - r3 * odd_p;
  to[2 * t] = third * (even_q - even_p);
  to[3 * t] = r3 * odd_q - r6 * odd_p;
  to[4 * t] = 2 * third * even_q - sixth * even_p + m[5 * s];
}

/* 36 sums `step` apart to 25 taps, of the first n of LANES channels. */
INLINE void write_taps(const float *sum, int64_t step, int64_t n, float *to, int64_t tap_h,
                       int64_t tap_w) {
  _Alignas(64) Vec m[POINTS], half[TAPS * N], all[TAPS * TAPS];
  for (int i = 0; i < POINTS; i++) m[i] = FROM(sum + i * step);
  for (int x = 0; x < N; x++) sum_taps(m + x, N, half + x, N);
  for (int y = 0; y < TAPS; y++) sum_taps(half + y * N, 1, all + y * TAPS, 1);
  for (int t = 0; t < TAPS * TAPS; t++) {
    float *at = to + t / TAPS * tap_h + t % TAPS * tap_w;
    if (n == LANES)
      AT(at) = all[t];
    else
      memcpy(at, &all[t], (size_t)n * sizeof *at);
  }
}

typedef void Write(const float *sum, int64_t step, int64_t n, float *to, int64_t tap_h,
                   int64_t tap_w);
#define FORMS(ISA, ...)                                                                            \
  __VA_ARGS__ static void write_##ISA(const float *sum, int64_t step, int64_t n, float *to,        \
                                      int64_t tap_h, int64_t tap_w) {                              \
    write_taps(sum, step, n, to, tap_h, tap_w);                                                    \
  }
FOR_EACH_ISA(FORMS)

static Write *const writers[] = {
#define ISA(id, here) [ISA_##id] = write_##id,
#include "tiles.def"
};

/* ---- a task ---- */

static int64_t across(const ImagesGrad *p) { return div_up(p->w.n, M); }
/* Elements between the matrices of windows, of tiles, of sums. */
static int64_t x_step(const ImagesGrad *p) { return p->channels * p->pitch + APART; }
static int64_t d_step(const ImagesGrad *p) {
  return (p->rows.size + (p->rows.more > 0)) * p->pitch + APART;
}
static int64_t sum_step(const ImagesGrad *p) { return p->filters * p->channels + APART; }

/* Filters o..o+n-1 of tile t, all its images. */
static void read_tile(const ImagesGrad *p, const float *d, int64_t t, int64_t o, int64_t n,
                      float *to) {
  int64_t y = t / across(p) * M, x = t % across(p) * M;
  const Tiles s = {p->tile.isa, p->images / LANES, LANES,         p->h.d,
                   p->w.d,      y + 1 < p->h.n,    x + 1 < p->w.n};
  for (int64_t i = o; i < o + n; i++, to += p->pitch)
    images_spread(&s, d + y * p->h.d + x * p->w.d + i * p->d_o, to, d_step(p));
}

/* A block of filters by all channels; sums over k images of tiles. */
static void multiply_block(const ImagesGrad *p, int64_t block, int64_t k, bool add, const float *x,
                           const float *d, float *sum) {
  MicroArgs m = {.k = k, .batch = 1, .add = add};
  m.ldb = p->pitch * (int64_t)sizeof *x;
  m.ldc = p->channels * (int64_t)sizeof *sum;
  sum += block_start(&p->rows, block) * p->channels;
  for (int64_t i = 0; i < POINTS; i++)
    for (int64_t v = 0; v < p->cols.n; v++) {
      int64_t c = block_start(&p->cols, v);
      m.a = d + i * d_step(p);
      m.b = x + i * x_step(p) + c * p->pitch;
      m.c = sum + i * sum_step(p) + c;
      p->set.fn[p->fn[block >= p->rows.more][v >= p->cols.more]](&m);
    }
}

/* Tiles t0..t1-1. */
static void sum_tiles(const Plan *plan, void *const *bufs, int64_t t0, int64_t t1, float *sum,
                      float *scratch) {
  const ImagesGrad *p = plan->images_grad;
  const Windows s = {p->tile.isa, p->h.x, p->w.x, p->x_c, p->h.size, p->w.size, p->channels};
  const float *x = (const float *)bufs[plan->frame.x[p->x]] + p->x_base,
              *d = (const float *)bufs[plan->frame.x[p->d]] + p->d_base;
  float *windows = scratch, *tiles = windows + POINTS * x_step(p);
  for (int64_t t = t0, n; t < t1; t += n) {
    n = least(p->run, t1 - t);
    for (int64_t i = 0; i < n; i++)
      images_window(&s, x, p->h.at + (t + i) / across(p) * M, p->w.at + (t + i) % across(p) * M,
                    p->images, windows + i * p->images, x_step(p), p->pitch);
    for (int64_t b = 0; b < p->rows.n; b++) {
      for (int64_t i = 0; i < n; i++)
        read_tile(p, d, t + i, block_start(&p->rows, b), block_size(&p->rows, b),
                  tiles + i * p->images);
      multiply_block(p, b, n * p->images, t > t0, windows, tiles, sum);
    }
  }
}

static void tasks(const void *self, void *const *bufs, int64_t begin, int64_t end, RunCtx *ctx) {
  const Plan *plan = self;
  const ImagesGrad *p = plan->images_grad;
  float *sum = ctx->scratch;
  for (int64_t t = begin; t < end; t++) {
    int64_t t0 = block_start(&p->share, t);
    sum_tiles(plan, bufs, t0, t0 + block_size(&p->share, t), sum, sum + POINTS * sum_step(p));
    float *to = p->share.n > 1 ? (float *)bufs[plan->frame.ws] + t * plan->facts.numel
                               : (float *)bufs[plan->frame.out];
    for (int64_t o = 0; o < p->filters; o++)
      for (int64_t c = 0; c < p->channels; c += LANES)
        writers[p->tile.isa](sum + o * p->channels + c, sum_step(p), least(LANES, p->channels - c),
                             to + o * p->c_o + c, p->h.c, p->w.c);
  }
}

/* ---- the plan ---- */

static bool is_axis(const GradAxis *x) {
  return x->taps == TAPS && x->step == 1 && x->tap_step == 1;
}

/* Cycles of all the arithmetic, this way over plain sums. */
static double relative_cost(const ImagesGrad *p, int64_t tiles) {
  enum { READ = 190, SPREAD = 90, WRITE = 250, END = 60 }; /* a vector; a tile of results */
  double vectors = (double)(p->images / LANES), steps = (double)(p->images / p->tile.lanes);
  double step = 0, ends = 0, n = (double)tiles;
  for (int i = 0; i < 4; i++) {
    double mr = (double)(p->rows.size + (i & 1)), nv = (double)(p->cols.size + i / 2);
    double times = (double)(i & 1 ? p->rows.more : p->rows.n - p->rows.more) *
                   (double)(i / 2 ? p->cols.more : p->cols.n - p->cols.more);
    step += times * tile_cycles(mr, nv);
    ends += times * (16 * mr + END);
  }
  double products = POINTS * n * (steps * step + ends / (double)p->run),
         reads = n * vectors * (READ * (double)p->channels + SPREAD * (double)p->filters),
         written = (double)(p->share.n * p->filters * div_up(p->channels, LANES)) * WRITE,
         sums = (double)(p->h.n * p->w.n * TAPS * TAPS) * steps * step;
  return (products + reads + written) / sums;
}

bool images_winograd_filter_plan(Plan *plan, ImagesGrad *p) {
  enum { BYTES = 1 << 20, MOST_CHANNELS = 256, LEAST_TILES = 4 };
  static const double GAIN = 0.85;
  const Facts *f = &plan->facts;
  ImagesGrad q = *p;
  int64_t tiles = div_up(p->h.n, M) * across(p);
  if (!(plan->conv_error >= SUM_ERROR) || f->dtype != DT_FLOAT32) return false;
  if (!is_axis(&p->h) || !is_axis(&p->w) || p->images % LANES || p->channels > MOST_CHANNELS ||
      !images_grad_tile(plan, &q))
    return false;
  int64_t line = POINTS * p->images * f->size, rows = p->channels + q.rows.size + (q.rows.more > 0);
  int64_t shares = least(least(tasks_for(f->flops), MOST_SHARES), most(tiles / LEAST_TILES, 1));
  q.share = equal_blocks(tiles, div_up(tiles, shares));
  q.run = least(most(BYTES / (line * rows), 1), q.share.size + (q.share.more > 0));
  q.pitch = q.run * p->images;
  if (relative_cost(&q, tiles) > GAIN) return false;
  *p = q;
  p->winograd = true;
  plan->work.fn[0] = tasks;
  plan->work.scratch = POINTS * (x_step(p) + d_step(p) + sum_step(p)) * f->size;
  return true;
}
