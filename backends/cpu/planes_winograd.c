/* Convolutions of 5 x 5 over a few small planes, [image, channel, row, column], by Winograd's minimal filtering.
 *
 * In: a contraction, and the error that is allowed. Out: a plan, if this is faster than sums, or false. It is what
 * images_winograd.c does, with the same tiles, points, filters and error, but vectors run along the tiles of one image: the plan
 * has them for images. The columns of a plane are copied even ones before odd ones, with zeros around, so that what the tiles
 * of a row read at one of their 6 columns are neighbours.
 *
 * Phase 1: as in images_winograd.c. Phase 2: a task has some blocks of filters of an image. All planes become 36 matrices of
 * channels by tiles; then for each block, 36 products become the results. */
#include "images.h"
#include "winograd_line.h"

enum { N = 6, TAPS = 5, M = 2, POINTS = N * N, QUAD = 4, PLANES = 4, APART = 16 };
typedef float Quad __attribute__((vector_size(16), aligned(4), may_alias));

static int64_t vectors_of(int64_t n) { return div_up(n, LANES) * LANES; }

/* How a task sees planes; all in elements. */
typedef struct Planes {
  Isa isa;
  int64_t down, across; /* tiles */
  int64_t width;        /* of all tiles, in whole vectors */
  int64_t half, line;   /* of a copied row of positions: even ones, all */
  int64_t column;       /* what tiles read at one of their columns */
  int64_t at_y, at_x, rows,
      n;          /* where the copy has X's rows and columns, of which it has so many */
  const float *x; /* the first of these, of the first channel */
  int64_t x_h;
} Planes;

/* ---- transforms ---- */

/* n columns, even ones to `even`, odd ones to `odd`. */
INLINE void part_line(const float *x, int64_t n, float *even, float *odd) {
  int64_t i = 0;
  for (; i + 2 * QUAD <= n; i += 2 * QUAD) {
    Quad a = *(const Quad *)(x + i), b = *(const Quad *)(x + i + QUAD);
    *(Quad *)(even + i / 2) = __builtin_shufflevector(a, b, 0, 2, 4, 6);
    *(Quad *)(odd + i / 2) = __builtin_shufflevector(a, b, 1, 3, 5, 7);
  }
  for (; i < n; i++) (i % 2 ? odd : even)[i / 2] = x[i];
}

/* Its inverse. */
INLINE void join_line(const float *even, const float *odd, int64_t n, float *to) {
  int64_t i = 0;
  for (; i + 2 * QUAD <= n; i += 2 * QUAD) {
    Quad a = *(const Quad *)(even + i / 2), b = *(const Quad *)(odd + i / 2);
    *(Quad *)(to + i) = __builtin_shufflevector(a, b, 0, 4, 1, 5);
    *(Quad *)(to + i + QUAD) = __builtin_shufflevector(a, b, 2, 6, 3, 7);
  }
  for (; i < n; i++) to[i] = (i % 2 ? odd : even)[i / 2];
}

/* A plane's rows at x to lines, whose rest is zero. */
INLINE void copy_plane(const Planes *s, const float *x, float *lines) {
  bool odd = s->at_x % 2;
  float *first = lines + s->at_y * s->line + s->at_x / 2;
  for (int64_t y = 0; y < s->rows; y++, x += s->x_h, first += s->line)
    part_line(x, s->n, odd ? first + s->half : first, odd ? first + 1 : first + s->half);
}

/* Lines to what the tiles of each row of positions read at each of their N columns: even rows, then odd ones. What is copied too
 * far is overwritten by the next row. */
INLINE void spread_lines(const Planes *s, const float *lines, float *columns) {
  for (int odd = 0; odd < 2; odd++)
    for (int64_t y = 0; y < s->down + TAPS / M; y++)
      for (int64_t j = 0; j < s->across; j += QUAD) {
        const float *from = lines + (2 * y + odd) * s->line + j;
        float *to = columns + (odd * (s->down + TAPS / M) + y) * s->across + j;
        for (int i = 0; i < N; i++, to += s->column)
          *(Quad *)to = *(const Quad *)(from + (i % 2 ? s->half : 0) + i / 2);
      }
}

/* These to POINTS places `step` apart, of all tiles. */
INLINE void read_columns(const Planes *s, const float *columns, float *to, int64_t step) {
  int64_t odd = (s->down + TAPS / M) * s->across;
  for (int i = 0; i < N; i++, columns += s->column)
    for (int64_t j = 0; j < s->width; j += LANES)
      read6_of(columns + j, columns + j + odd, s->across, to + i * step + j, N * step);
}

/* PLANES planes at x or, if there are fewer, the first n, `channel` apart, to POINTS places `step` apart, of all tiles. What one
 * loop writes in small pieces the next ones read in larger ones, when it has left the processor's buffers. */
INLINE void read_planes(const Planes *s, int64_t n, const float *x, int64_t channel, float *lines,
                        float *columns, float *to, int64_t step) {
  int64_t plane = (M * s->down + TAPS - 1) * s->line;
  for (int64_t c = 0; c < n; c++) copy_plane(s, x + c * channel, lines + c * plane);
  for (int64_t c = 0; c < n; c++) spread_lines(s, lines + c * plane, columns + c * N * s->column);
  for (int64_t c = 0; c < n; c++)
    for (int64_t j = 0; j < 2 * (s->down + TAPS / M) * s->across; j += LANES) {
      float *at = columns + c * N * s->column + j;
      read6(at, s->column, at, s->column);
    }
  for (int64_t c = 0; c < n; c++)
    read_columns(s, columns + c * N * s->column, to + c * s->width, step);
}

/* POINTS places `step` apart, of all tiles, to the results of a filter. two: scratch. */
INLINE void write_plane(const Planes *s, const float *p, int64_t step, float *two, float *to,
                        int64_t line, int64_t rows, int64_t columns) {
  _Alignas(64) float half[M * N * LANES];
  Vec v[M];
  for (int64_t j = 0; j < s->width; j += LANES) {
    for (int i = 0; i < N; i++) {
      write2(p + i * step + j, N * step, v);
      for (int y = 0; y < M; y++) AT(half + (y * N + i) * LANES) = v[y];
    }
    for (int y = 0; y < M; y++) {
      write2(half + y * N * LANES, LANES, v);
      for (int x = 0; x < M; x++) AT(two + (y * M + x) * s->width + j) = v[x];
    }
  }
  for (int64_t y = 0; y < rows; y++) {
    const float *even = two + y % M * M * s->width + y / M * s->across;
    join_line(even, even + s->width, columns, to + y * line);
  }
}

typedef struct Forms {
  void (*read)(const Planes *s, int64_t n, const float *x, int64_t channel, float *lines,
               float *columns, float *to, int64_t step);
  void (*write)(const Planes *s, const float *p, int64_t step, float *two, float *to, int64_t line,
                int64_t rows, int64_t columns);
} Forms;
#define FORMS(ISA, ...)                                                                            \
  __VA_ARGS__ static void read_##ISA(const Planes *s, int64_t n, const float *x, int64_t channel,  \
                                     float *lines, float *columns, float *to, int64_t step) {      \
    read_planes(s, n, x, channel, lines, columns, to, step);                                       \
  }                                                                                                \
  __VA_ARGS__ static void write_##ISA(const Planes *s, const float *p, int64_t step, float *two,   \
                                      float *to, int64_t line, int64_t rows, int64_t columns) {    \
    write_plane(s, p, step, two, to, line, rows, columns);                                         \
  }
FOR_EACH_ISA(FORMS)

static const Forms forms[] = {
#define ISA(id, here) [ISA_##id] = {read_##id, write_##id},
#include "tiles.def"
};

/* ---- running ---- */

static Planes planes_of(const ImagesPlan *p) {
  const PartAxis *h = &p->h[0], *v = &p->v[0];
  Planes s = {.isa = p->tile.isa,
              .down = div_up(h->n, M),
              .across = div_up(v->n, M),
              .x_h = p->x_h};
  int64_t y = most(h->in, 0), x = most(v->in, 0);
  s.width = vectors_of(s.down * s.across);
  s.half = s.across + TAPS / M;
  s.line = M * s.half + QUAD;
  s.column = vectors_of(M * s.across * (s.down + TAPS / M)) + LANES;
  s.at_y = y - h->in;
  s.at_x = x - v->in;
  s.rows = least(p->size_h, h->in + M * s.down + TAPS - 1) - y;
  s.n = least(p->size_w, v->in + M * s.across + TAPS - 1) - x;
  return s;
}

/* Of a task, one behind the other: the matrices of all tiles, copied rows, columns, products, results. */
enum { WINDOW, LINES, COLUMNS, SUM, TWO, SCRATCH };
static void scratch_of(const ImagesPlan *p, const Planes *s, int64_t at[SCRATCH + 1]) {
  const int64_t floats[] = {POINTS * (p->channels * s->width + APART),
                            PLANES * vectors_of((M * s->down + TAPS - 1) * s->line),
                            PLANES * N * s->column, POINTS * (p->blocks.size + 1) * s->width,
                            M * M * s->width};
  at[0] = 0;
  for (int i = 0; i < SCRATCH; i++) at[i + 1] = at[i] + floats[i];
}

typedef struct Task {
  const ImagesPlan *p;
  const Planes *s;
  const float *w;       /* transformed filters */
  float *part[SCRATCH]; /* of the scratch */
} Task;

static void read_image(const Task *t, const float *x) {
  const ImagesPlan *p = t->p;
  int64_t step = p->channels * t->s->width + APART;
  memset(t->part[LINES], 0, (size_t)(t->part[COLUMNS] - t->part[LINES]) * sizeof *x);
  for (int64_t c = 0; c < p->channels; c += PLANES)
    forms[p->tile.isa].read(t->s, least(PLANES, p->channels - c), x + c * p->x_c, p->x_c,
                            t->part[LINES], t->part[COLUMNS], t->part[WINDOW] + c * t->s->width,
                            step);
}

/* A block of filters, whose results begin at c. */
static void run_block(const Task *t, int64_t b, float *c) {
  const ImagesPlan *p = t->p;
  int64_t o = block_start(&p->blocks, b), mr = block_size(&p->blocks, b), width = t->s->width,
          lanes = p->tile.lanes;
  MicroArgs m = {.k = p->channels, .batch = 1, .next_step = micro_fetched(p->more_lines)};
  m.ldb = m.ldc = width * (int64_t)sizeof *c;
  for (int64_t i = 0; i < POINTS; i++)
    for (int64_t v = 0; v < p->panels.n; v++) {
      int64_t n = block_start(&p->panels, v) * lanes;
      m.columns = block_size(&p->panels, v) * lanes;
      m.a = t->w + (i * p->filters + o) * p->channels;
      m.next = (const float *)m.a + p->filters * p->channels;
      m.b = t->part[WINDOW] + i * (p->channels * width + APART) + n;
      m.c = t->part[SUM] + i * mr * width + n;
      p->set.fn[p->fn[b >= p->blocks.more][v >= p->panels.more]](&m);
    }
  for (int64_t r = 0; r < mr; r++)
    forms[p->tile.isa].write(t->s, t->part[SUM] + r * width, mr * width, t->part[TWO],
                             c + (o + r) * p->c_o, p->c_h, p->h[0].n, p->v[0].n);
}

static void tasks(const void *self, void *const *bufs, int64_t begin, int64_t end, RunCtx *ctx) {
  const Plan *plan = self;
  const ImagesPlan *p = plan->images;
  const Facts *f = &plan->facts;
  const Planes s = planes_of(p);
  Task t = {.p = p, .s = &s, .w = bufs[plan->frame.ws]};
  int64_t at[SCRATCH + 1];
  scratch_of(p, &s, at);
  for (int i = 0; i < SCRATCH; i++) t.part[i] = (float *)ctx->scratch + at[i];
  for (int64_t task = begin; task < end; task++) {
    int64_t image = task / p->cuts, cut = task % p->cuts;
    const float *x = (const float *)bufs[plan->frame.x[p->x]] + p->x_base +
                     list_at(f, &p->batch, image, p->x) + most(p->h[0].in, 0) * p->x_h +
                     most(p->v[0].in, 0);
    float *c = (float *)bufs[plan->frame.out] + list_at(f, &p->batch, image, 2);
    if (task == begin || !cut) read_image(&t, x);
    int64_t b0 = cut * p->blocks.n / p->cuts, b1 = (cut + 1) * p->blocks.n / p->cuts;
    for (int64_t b = b0; b < b1; b++) run_block(&t, b, c);
    if (!plan->work.fused) continue;
    bool one = p->batch.total == 1; /* then rows of the epilogue are filters */
    run_epilogue(&plan->frame, bufs, one ? block_start(&p->blocks, b0) : image,
                 one ? block_start(&p->blocks, b1) : image + 1, ctx);
  }
}

/* ---- the plan ---- */

static bool find(const Facts *f, int x, ImagesPlan *p) {
  LoopList l = loops_of(f, 1u << (x ? LC_N : LC_M)), positions = {.total = 1};
  ImagesAxis axis[2];
  *p = (ImagesPlan){.x = x, .w = !x, .batch = {.total = 1}};
  list_sort(f, &l, 2);
  for (int i = 0; i < l.n; i++) list_add(f, i < l.n - 2 ? &p->batch : &positions, l.id[i]);
  if (l.n < 2 || !images_loops(f, x, &positions, p, axis) || axis[0].tap < 0 || axis[1].tap < 0)
    return false;
  images_strides(f, axis, p);
  p->n_h = conv_axis(f, x, axis[0].dim, axis[0].pos, axis[0].tap, p->h);
  p->n_w = conv_axis(f, x, axis[1].dim, axis[1].pos, axis[1].tap, p->v);
  return p->n_h == 1 && p->n_w == 1 && p->x_w == 1 && p->c_w == 1;
}

/* Beside sums of vectors of positions, each of which has two multiply-adds a cycle. READ, WRITE: as in images_winograd.c. */
static bool is_faster(const Facts *f, const ImagesPlan *p) {
  static const double READ = 300, WRITE = 130, GAIN = 0.9;
  double images = (double)p->batch.total, vectors = (double)p->images / LANES,
         sums = (double)f->flops / 2 / (double)p->tile.lanes / 2;
  return images * images_tile_cycles(p, vectors, READ * (double)p->cuts, WRITE) < GAIN * sums;
}

bool planes_plan(Arena *a, Plan *plan, int x) {
  enum { FLOPS = 500000, WINDOW_BYTES = 512 << 10, MOST_CUTS = 2 };
  const Facts *f = &plan->facts;
  ImagesPlan p;
  if (!(plan->conv_error >= SUM_ERROR) || f->flops < FLOPS || !find(f, x, &p)) return false;
  Planes s = planes_of(&p);
  p.images = s.width;
  p.pitch = p.channels;
  if (!images_winograd_fits(f, &p) || s.rows <= 0 || s.n <= 0 ||
      POINTS * p.channels * s.width * f->size > WINDOW_BYTES || !images_tile(plan, &p))
    return false;
  p.cuts = least(p.blocks.n, div_up(MOST_CUTS, p.batch.total));
  if (!is_faster(f, &p)) return false;
  int64_t cuts = p.cuts, at[SCRATCH + 1];
  images_winograd_phases(plan, &p, tasks, p.batch.total * cuts);
  p.cuts = cuts;
  p.more_lines = micro_more_lines((p.blocks.size + 1) * FETCH_STEPS * f->size, 1);
  images_want(a, &p);
  s.isa = p.tile.isa;
  scratch_of(&p, &s, at);
  Work *w = &plan->work;
  w->scratch = at[SCRATCH] * f->size;
  if (plan->frame.x[0] != plan->frame.x[1]) w->prepares = plan->frame.x[p.w] + 1;
  bool one = p.batch.total == 1;
  int64_t rows = one ? p.filters : p.batch.total;
  w->fused =
      plan->frame.rows == rows && (one ? p.c_o * rows == f->numel : cuts == 1 && p.batch.n == 1);
  plan->images = arena_dup(a, &p, sizeof p);
  plan->set = &plan->images->set;
  plan->tile = &plan->images->tile;
  return true;
}
