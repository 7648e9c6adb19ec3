/* Convolutions as winograd.c plans them, run. In: a ConvPlan and buffers; out: the result, after the epilogue where it is fused.
 *
 * Phase 1: each filter g becomes G g G', n*n numbers: for each panel, n*n matrices of channels by the panel's columns.
 * Phase 2: a task has some rows of tiles and some panels. Each tile d becomes B' d B: n*n matrices of tiles by channels. Then
 * for each panel, n*n products make as many matrices of tiles by columns, of which A' p A are the results. Tiles that reach
 * over the edge are read from a copy with zeros around. With the points 0, +-P, +-Q, infinity, row i of B' holds the coefficients
 * of the product of (x - r) over the other points, of G the powers of the point over that product at the point, of A the
 * powers of the point. */
#include "conv.h"
#include "winograd_line.h"

enum { MOST_N = 6 };

/* ---- one dimension, of LANES channels ---- */

/* Points 0, 1, -1: 4 positions. */
INLINE void read4(const float *d, int64_t s, float *to, int64_t t) {
  Vec d0 = FROM(d), d1 = FROM(d + s), d2 = FROM(d + 2 * s), d3 = FROM(d + 3 * s);
  AT(to) = d2 - d0;
  AT(to + t) = d2 + d1;
  AT(to + 2 * t) = d2 - d1;
  AT(to + 3 * t) = d3 - d1;
}

INLINE void write4(const float *p, int64_t s, float *to, int64_t t) {
  Vec p0 = FROM(p), p1 = FROM(p + s), p2 = FROM(p + 2 * s), p3 = FROM(p + 3 * s);
  AT(to) = p0 + p1 + p2;
  AT(to + t) = p1 - p2 + p3;
}

/* 6 points to 4 results. */
INLINE void write6(const float *p, int64_t s, float *to, int64_t t) {
  Vec p0 = FROM(p), p1 = FROM(p + s), p2 = FROM(p + 2 * s), p3 = FROM(p + 3 * s);
  Vec p4 = FROM(p + 4 * s), p5 = FROM(p + 5 * s);
  Vec even_p = p1 + p2, odd_p = P * (p1 - p2), even_q = p3 + p4, odd_q = Q * (p3 - p4);
  AT(to) = p0 + even_p + even_q;
  AT(to + t) = odd_p + odd_q;
  AT(to + 2 * t) = 0.5f * even_p + 2 * even_q;
  AT(to + 3 * t) = 0.5f * odd_p + 2 * odd_q + p5;
}

/* ---- tiles ---- */

/* Windows of n x n positions at a, of all channels, to n*n places `step` apart. */
INLINE void read_tile(int n, const float *a, int64_t line, int64_t pixel, int64_t channels,
                      float *to, int64_t step) {
  _Alignas(64) float half[MOST_N * MOST_N * LANES];
  for (int64_t c = 0; c < channels; c += LANES) {
    for (int x = 0; x < n; x++)
      (n == 4 ? read4 : read6)(a + x * pixel + c, line, half + x * LANES, n * LANES);
    for (int y = 0; y < n; y++)
      (n == 4 ? read4 : read6)(half + y * n * LANES, LANES, to + y * n * step + c, step);
  }
}

/* n*n places `step` apart, of all columns, to the first rows x wide of m x m results at c. */
INLINE void write_tile(int n, const float *p, int64_t step, int64_t columns, float *to,
                       int64_t line, int64_t pixel, int64_t rows, int64_t wide) {
  _Alignas(64) float half[MOST_N * MOST_N * LANES], row[MOST_N * LANES];
  int m = n - 2;
  for (int64_t c = 0; c < columns; c += LANES) {
    for (int x = 0; x < n; x++)
      (n == 4 ? write4 : write6)(p + x * step + c, n * step, half + x * LANES, n * LANES);
    for (int64_t y = 0; y < rows; y++) {
      const float *from = half + y * n * LANES;
      float *out = to + y * line + c;
      if (wide == m) {
        (n == 4 ? write4 : write6)(from, LANES, out, pixel);
        continue;
      }
      (n == 4 ? write4 : write6)(from, LANES, row, LANES);
      for (int64_t x = 0; x < wide; x++) AT(out + x * pixel) = FROM(row + x * LANES);
    }
  }
}

typedef void Read(const float *a, int64_t line, int64_t pixel, int64_t channels, float *to,
                  int64_t step);
typedef void Write(const float *p, int64_t step, int64_t columns, float *to, int64_t line,
                   int64_t pixel, int64_t rows, int64_t wide);
#define TILES(N, ISA, ...)                                                                         \
  __VA_ARGS__ static void read_##ISA##N(const float *a, int64_t line, int64_t pixel,               \
                                        int64_t channels, float *to, int64_t step) {               \
    read_tile(N, a, line, pixel, channels, to, step);                                              \
  }                                                                                                \
  __VA_ARGS__ static void write_##ISA##N(const float *p, int64_t step, int64_t columns, float *to, \
                                         int64_t line, int64_t pixel, int64_t rows,                \
                                         int64_t wide) {                                           \
    write_tile(N, p, step, columns, to, line, pixel, rows, wide);                                  \
  }
#if defined(__x86_64__)
TILES(4, AVX512, __attribute__((target("avx512f"))))
TILES(6, AVX512, __attribute__((target("avx512f"))))
TILES(4, AVX2, __attribute__((target("avx2"))))
TILES(6, AVX2, __attribute__((target("avx2"))))
#else
TILES(4, NEON, )
TILES(6, NEON, )
#endif

static const struct {
  Read *read[2];
  Write *write[2];
} tiles_of[] = {
#define ISA(id, here) [ISA_##id] = {{read_##id##4, read_##id##6}, {write_##id##4, write_##id##6}},
#include "tiles.def"
};

void winograd_window(Isa isa, const float *a, int64_t line, int64_t pixel, int64_t channels,
                     float *to, int64_t step) {
  tiles_of[isa].read[0](a, line, pixel, channels, to, step);
}

/* ---- filters ---- */

/* One dimension: three numbers `s` apart to n numbers `t` apart. */
static void filter_row(int n, const Wide *g, int s, Wide *to, int t) {
  static const double by[2][MOST_N][3] = {
      {{-1, 0, 0}, {0.5, 0.5, 0.5}, {0.5, -0.5, 0.5}, {0, 0, 1}},
      {{1, 0, 0},
       {-2. / 3, -1.4142135623730951 / 3, -1. / 3},
       {-2. / 3, 1.4142135623730951 / 3, -1. / 3},
       {1. / 6, 1.4142135623730951 / 6, 1. / 3},
       {1. / 6, -1.4142135623730951 / 6, 1. / 3},
       {0, 0, 1}}};
  for (int i = 0; i < n; i++) {
    const double *k = by[n == 6][i];
    to[i * t] = k[0] * g[0] + k[1] * g[s] + k[2] * g[2 * s];
  }
}

/* A channel of LANES columns, `column` apart; the taps begin at b. To n*n places `step` apart. */
static void pack_filter(int n, const float *b, int64_t tap_h, int64_t tap_w, int64_t column,
                        float *to, int64_t step) {
  Wide g[9], half[3 * MOST_N], all[MOST_N * MOST_N];
  for (int t = 0; t < 9; t++)
    for (int i = 0; i < LANES; i++)
      ((double *)&g[t])[i] = b[t / 3 * tap_h + t % 3 * tap_w + i * column];
  for (int x = 0; x < 3; x++) filter_row(n, g + x, 3, half + x, 3);
  for (int y = 0; y < n; y++) filter_row(n, half + 3 * y, 1, all + y * n, 1);
  for (int t = 0; t < n * n; t++)
    for (int i = 0; i < LANES; i++) to[t * step + i] = (float)((const double *)&all[t])[i];
}

/* A task has some channels of all panels. */
void winograd_pack(const void *self, void *const *bufs, int64_t begin, int64_t end, RunCtx *ctx) {
  const Plan *plan = self;
  const ConvPlan *p = plan->conv;
  const Part *q = &p->part[0];
  int n = p->winograd.n;
  (void)ctx;
  for (int64_t t = begin; t < end; t++) {
    int64_t i0 = t % p->k_cuts * p->k_cut, i1 = least(i0 + p->k_cut, p->channels),
            group = t / p->k_cuts;
    const float *b = (const float *)bufs[plan->frame.x[p->b]] + p->b_base +
                     list_at(&plan->facts, &p->groups, group, p->b) + q->h.k * p->b_kh +
                     q->w.k * p->b_kw;
    float *to = (float *)bufs[plan->frame.ws] + group * p->b_size;
    for (int64_t panel = 0; panel < p->panels.n; panel++) {
      int64_t c0 = block_start(&p->panels, panel) * p->tile.lanes,
              width = block_size(&p->panels, panel) * p->tile.lanes;
      for (int64_t i = i0; i < i1; i++)
        for (int64_t c = 0; c < width; c += LANES)
          pack_filter(n, b + i * p->b_i + (c0 + c) * p->b_o, q->h.k_step * p->b_kh,
                      q->w.k_step * p->b_kw, p->b_o, to + n * n * p->channels * c0 + i * width + c,
                      p->channels * width);
    }
  }
}

/* ---- running ---- */

typedef struct Strip {
  const ConvPlan *p;
  int64_t first, rows;        /* of tiles */
  float *tiles, *sums, *copy; /* scratch */
} Strip;

/* The window of a tile that reaches over the edge. */
static void copy_window(const ConvPlan *p, const float *a, int64_t y0, int64_t x0, float *to) {
  int n = p->winograd.n;
  size_t pixel = (size_t)p->channels * sizeof *to;
  for (int64_t y = y0; y < y0 + n; y++)
    for (int64_t x = x0; x < x0 + n; x++, to += p->channels)
      if (y >= 0 && y < p->size_h && x >= 0 && x < p->size_w)
        memcpy(to, a + y * p->a_h + x * p->a_w, pixel);
      else
        memset(to, 0, pixel);
}

static void read_strip(const Strip *s, const float *a) {
  const ConvPlan *p = s->p;
  const Winograd *w = &p->winograd;
  const Part *q = &p->part[0];
  Read *read = tiles_of[p->tile.isa].read[w->n == 6];
  float *to = s->tiles;
  for (int64_t i = s->first; i < s->first + s->rows; i++)
    for (int64_t j = 0; j < w->across; j++, to += p->channels) {
      int64_t y = q->h.in + i * w->m, x = q->w.in + j * w->m;
      bool inside = y >= 0 && y + w->n <= p->size_h && x >= 0 && x + w->n <= p->size_w;
      if (inside) {
        read(a + y * p->a_h + x * p->a_w, p->a_h, p->a_w, p->channels, to, w->a_step);
        continue;
      }
      copy_window(p, a, y, x, s->copy);
      read(s->copy, w->n * p->channels, p->channels, p->channels, to, w->a_step);
    }
}

/* The products of a panel, each in sums of some channels, which are added up: see winograd.c. Tiles of rows go by a piece of B. */
static void multiply_strip(const Strip *s, const float *b, int64_t panel) {
  const ConvPlan *p = s->p;
  const Winograd *w = &p->winograd;
  int64_t width = block_size(&p->panels, panel) * p->tile.lanes;
  Blocks rows = row_blocks(s->rows * w->across, &p->tile);
  const int(*fn)[2] = w->fn[s->rows == w->strips.size];
  MicroArgs x = {.b = b, .columns = width, .batch = 1, .fetch_c = true};
  x.ldb = x.ldc = width * (int64_t)sizeof *b;
  /* the tiles of a product fetch what the next one reads of B */
  int64_t steps = most(p->channels / FETCH_STEPS * rows.n, 1);
  x.next_step = least(div_up(p->channels * x.ldb, steps), micro_fetched(0));
  for (int i = 0; i < w->n * w->n; i++) {
    const char *next = (const char *)x.b + p->channels * x.ldb;
    for (int64_t j = 0; j < w->sums.n; j++) {
      int64_t from = block_start(&w->sums, j) * LANES;
      x.k = block_size(&w->sums, j) * LANES;
      x.add = j > 0;
      for (int64_t r = 0; r < rows.n; r++) {
        int64_t at = block_start(&rows, r);
        x.a = s->tiles + i * w->a_step + at * p->channels + from;
        x.c = s->sums + i * w->c_step + at * width;
        x.next = next;
        next += x.next_step * (x.k / FETCH_STEPS);
        p->set.fn[fn[r >= rows.more][panel >= p->panels.more]](&x);
      }
      x.b = (const char *)x.b + x.k * x.ldb;
    }
  }
}

static void write_strip(const Strip *s, int64_t panel, float *c) {
  const ConvPlan *p = s->p;
  const Winograd *w = &p->winograd;
  const Part *q = &p->part[0];
  Write *write = tiles_of[p->tile.isa].write[w->n == 6];
  int64_t width = block_size(&p->panels, panel) * p->tile.lanes;
  const float *from = s->sums;
  for (int64_t i = s->first; i < s->first + s->rows; i++)
    for (int64_t j = 0; j < w->across; j++, from += width)
      write(from, w->c_step, width, c + i * w->m * p->c_h + j * w->m * p->c_w, p->c_h, p->c_w,
            least(w->m, q->h.n - i * w->m), least(w->m, q->w.n - j * w->m));
}

void winograd_tasks(const void *self, void *const *bufs, int64_t begin, int64_t end, RunCtx *ctx) {
  const Plan *plan = self;
  const ConvPlan *p = plan->conv;
  const Facts *f = &plan->facts;
  const Winograd *w = &p->winograd;
  Strip s = {.p = p, .tiles = ctx->scratch};
  s.sums = s.tiles + w->n * w->n * w->a_step;
  s.copy = s.sums + w->n * w->n * w->c_step;
  for (int64_t t = begin; t < end; t++) {
    int64_t pg = t % p->panel_groups, chunk = t / p->panel_groups % p->chunks,
            item = t / p->panel_groups / p->chunks, image = item % p->images.total,
            group = item / p->images.total;
    int64_t at = list_at(f, &p->images, image, 2) + list_at(f, &p->groups, group, 2);
    const float *a = (const float *)bufs[plan->frame.x[p->a]] + p->a_base +
                     list_at(f, &p->images, image, p->a) + list_at(f, &p->groups, group, p->a);
    const float *b = (const float *)bufs[plan->frame.ws] + group * p->b_size;
    float *c = (float *)bufs[plan->frame.out] + at;
    s.first = block_start(&w->strips, chunk);
    s.rows = block_size(&w->strips, chunk);
    if (t == begin || pg == 0) read_strip(&s, a);
    int64_t p0 = pg * p->panels.n / p->panel_groups, p1 = (pg + 1) * p->panels.n / p->panel_groups;
    for (int64_t i = p0; i < p1; i++) {
      int64_t column = block_start(&p->panels, i) * p->tile.lanes;
      multiply_strip(&s, b + w->n * w->n * p->channels * column, i);
      write_strip(&s, i, c + column);
    }
    if (!plan->frame.fn) continue;
    int64_t e0, e1;
    conv_chunk(p, chunk, &e0, &e1);
    plan->frame.fn(NULL, bufs, (at + e0) / p->row_elems, (at + e1) / p->row_elems, ctx);
  }
}
