/* How the results of a convolution are cut into tiles, and the work into tasks.
 *
 * In: a ConvPlan with its parts (conv_find.c). Out: the tile, its panels of columns, the blocks of each part's positions, and
 * the chunks and groups of panels that are tasks; what that costs.
 *
 * A tile is at most MR positions by NV vectors of columns. Tiles lie in one row of positions, or, if rows are short, hold
 * several. Each row of the table of tiles is tried, and the one with the fewest cycles is taken: arithmetic, what caches cost,
 * and what two threads would wait for each other. */
#include "conv.h"

enum { STRIP_BYTES = 512 << 10 };

/* ---- tiles ---- */

/* Cycles of a step of k, of one tile: its arithmetic; where a panel is too large for the L1 cache, a line of B for each vector;
 * and A's rows, if their distance puts many of them into one set of the cache. */
static double step_cycles(const Part *q, double mr, double nv, int64_t line) {
  enum { L1_PART = 24 << 10, PAGE = 4096, LEAST = 64 };
  int64_t pitch = q->w.in_step * q->pixel * line / LEAST, shared = PAGE;
  while (shared > LEAST && pitch % shared) shared /= 2;
  double ways = mr * (double)shared / PAGE;
  double c = tile_cycles(mr, nv) * (1 + (ways > 1 ? 0.01 * (ways - 1) : 0));
  return c + ((double)(q->k * line) * nv > L1_PART ? 0.25 * nv : 0);
}

static double one_tile(const Part *q, const TileRow *t, double mr, double nv) {
  if (t->form == FORM_ROWS)
    return (double)q->k * step_cycles(q, mr, nv, t->lanes * dtype_info[t->dtype].size) + mr * nv +
           30;
  int64_t runs = q->h.taps * (q->fold ? 1 : q->w.taps);
  return dot_cycles(t, (double)runs, runs ? q->k / runs : 0, mr, tile_cycles(mr, nv));
}

/* How a part's positions become tiles of at most mr, and what they cost; each panel reads A again. */
static double part_tiles(Part *q, const TileRow *t, const Blocks *panels, int64_t a_bytes) {
  double best = 0;
  for (int way = 0; way < 2; way++) {
    int64_t run = way ? t->mr / (q->w.n ? q->w.n : 1) : 0;
    if (way && (run < 2 || t->form == FORM_DOT)) break;
    Blocks b = way ? equal_blocks(q->h.n, run) : row_blocks(q->w.n, t);
    double c = 0.12 * (double)(a_bytes * panels->n);
    for (int i = 0; i < 2; i++)
      for (int j = 0; j < 2; j++) {
        double tiles = (double)(i ? b.more : b.n - b.more) * (double)(way ? 1 : q->h.n),
               vectors = (double)(j ? panels->more : panels->n - panels->more);
        double mr = (double)((b.size + i) * (way ? q->w.n : 1)), nv = (double)(panels->size + j);
        c += tiles * vectors * one_tile(q, t, mr, nv);
      }
    if (way && c >= best) break;
    best = c;
    q->run = way ? b.size + (b.more > 0) : 0;
    q->rows = b;
  }
  return best;
}

/* Of A, that the results of a part depend on. */
static int64_t part_bytes(const ConvPlan *p, const Part *q, int size) {
  return q->h.n * least(q->h.in_step, q->h.taps) * q->w.n * least(q->w.in_step, q->w.taps) *
         p->channels * size;
}

static int64_t strip_bytes(const ConvPlan *p, int64_t rows, int size) {
  int64_t m = 0;
  for (int i = 0; i < p->n_parts; i++) {
    const Part *q = &p->part[i];
    m = most(m, conv_reach(&q->h, least(rows, q->h.n)) * q->strip_w * p->channels * size);
  }
  return m;
}

/* ---- tasks ---- */

/* Cuts the rows of a product so that they are in the L2 cache while its panels go by, where reading B for each cut is much less than
 * reading all of A for each panel. */
static int64_t cached_chunks(const ConvPlan *p, int64_t size) {
  enum { A_BYTES = 768 << 10, LESS = 2 };
  const Part *q = &p->part[0];
  int64_t a_bytes = q->w.n * q->k * size, b_bytes = p->columns * q->k * size;
  int64_t chunks = most(1, least(div_up(a_bytes, A_BYTES), p->units));
  bool product = p->by_block && !p->copy && q->k == p->channels;
  bool less = LESS * (chunks * b_bytes + a_bytes) <= b_bytes + p->panels.n * a_bytes;
  return product && less ? chunks : 1;
}

/* Cuts images along their rows, and columns by panels, into enough tasks; what is read least often twice is cut. */
static void divide(const Facts *f, bool chained, ConvPlan *p) {
  enum { ROW_BYTES = 256 << 10, CHAIN_BYTES = 256 << 10 };
  int64_t want = tasks_for(f->flops), items = p->images.total * p->groups.total;
  int64_t tallest = 0;
  if (p->row) want = most(want, p->b_size * p->columns * f->size / ROW_BYTES);
  for (int i = 0; i < p->n_parts; i++) tallest = most(tallest, p->part[i].h.n);
  p->by_block = tallest == 1 && !p->part[0].run && p->n_parts == 1;
  p->units = p->by_block ? p->part[0].rows.n : tallest;
  bool whole = false;
  for (int i = 0; i < p->n_parts; i++) whole |= p->part[i].run > 0;
  if (whole) p->units = 1;
  p->chunks = cached_chunks(p, f->size);
  p->panel_groups = 1;
  if (p->copy && !p->by_block && !whole)
    while (p->chunks < p->units &&
           strip_bytes(p, div_up(p->units, p->chunks), f->size) > STRIP_BYTES)
      p->chunks++;
  if (chained) { /* what a task reads and stores stays in the L2 cache */
    int64_t elems = f->numel / p->images.total + p->size_h * p->size_w * p->channels;
    p->chunks = most(p->chunks, least(p->units, elems * f->size / CHAIN_BYTES));
  }
  int64_t a_bytes = p->part[0].w.n * p->part[0].h.n * p->channels, b_bytes = p->b_size * p->columns;
  while (items * p->chunks * p->panel_groups < want) {
    bool rows = p->chunks * 2 <= p->units && (p->by_block || p->units / p->chunks >= 4);
    bool panels = p->panel_groups < p->panels.n;
    if (rows && (!panels || a_bytes / p->chunks >= b_bytes / p->panel_groups))
      p->chunks *= 2;
    else if (panels)
      p->panel_groups = least(p->panel_groups * 2, p->panels.n);
    else
      break;
  }
  p->chunks = least(p->chunks, p->units);
  if (p->copy)
    p->strip_bytes =
        strip_bytes(p, p->chunks == 1 ? tallest : div_up(p->units, p->chunks), f->size);
}

void conv_chunk(const ConvPlan *p, int64_t chunk, int64_t *e0, int64_t *e1) {
  int64_t u0 = chunk * p->units / p->chunks, u1 = (chunk + 1) * p->units / p->chunks, rows = 0,
          wide = 0;
  for (int i = 0; i < p->n_parts; i++) {
    const Part *q = &p->part[i];
    rows = most(rows, q->h.out + q->h.out_step * (q->h.n - 1) + 1);
    wide = most(wide, q->w.out + q->w.out_step * (q->w.n - 1) + 1);
  }
  *e0 = 0;
  *e1 = rows * wide * p->c_w;
  if (p->winograd.m) {
    const Blocks *strips = &p->winograd.strips;
    *e0 = block_start(strips, chunk) * p->winograd.m * p->c_h;
    *e1 = least(block_start(strips, chunk + 1) * p->winograd.m, rows) * p->c_h;
  } else if (p->by_block) {
    *e0 = block_start(&p->part[0].rows, u0) * p->c_w;
    *e1 = block_start(&p->part[0].rows, u1) * p->c_w;
  } else if (p->chunks > 1) {
    *e0 = u0 * p->part[0].h.out_step * p->c_h;
    *e1 = least(u1 * p->part[0].h.out_step, rows) * p->c_h;
  }
}

/* The share of the work of the first half of the tasks over one half, or of the second: what two threads would wait for. */
static double imbalance(const ConvPlan *p) {
  int64_t items = p->images.total * p->groups.total, n = items * p->chunks * p->panel_groups;
  int64_t vectors = p->panels.n * p->panels.size + p->panels.more, half[2] = {0, 0};
  if (n > 32) return 1;
  for (int64_t t = 0; t < n; t++) {
    int64_t pg = t % p->panel_groups, c = t / p->panel_groups % p->chunks;
    int64_t u = (c + 1) * p->units / p->chunks - c * p->units / p->chunks;
    int64_t v = block_start(&p->panels, (pg + 1) * p->panels.n / p->panel_groups) -
                block_start(&p->panels, pg * p->panels.n / p->panel_groups);
    half[t >= (n + 1) / 2] += u * v;
  }
  return n < 2 ? 1 : 2 * (double)most(half[0], half[1]) / (double)(items * p->units * vectors);
}

/* One row is for one position; dot products are for columns that do not fill a vector. */
static bool may_take(const Plan *plan, const ConvPlan *p, const TileRow *t) {
  if (t->isa != tile_isa() || t->dtype != plan->facts.dtype) return false;
  if (t->form == FORM_DOT && (p->row || p->columns >= t->lanes)) return false;
  return plan->only ? t == plan->only : t->mr != 1 || p->row;
}

double conv_cut(const Plan *plan, ConvPlan *p) {
  const Facts *f = &plan->facts;
  double least_cost = 0;
  ConvPlan best = *p;
  for (const TileRow *t = tile_table; t->isa != ISA_NONE; t++) {
    if (!may_take(plan, p, t)) continue;
    double c = 0;
    p->tile = *t;
    p->panels = vector_blocks(p->columns, t);
    for (int i = 0; i < p->n_parts; i++)
      c += part_tiles(&p->part[i], t, &p->panels, part_bytes(p, &p->part[i], f->size));
    divide(f, plan->chained, p);
    c *= imbalance(p);
    if (least_cost && c >= least_cost) continue;
    least_cost = c;
    best = *p;
  }
  *p = best;
  return least_cost;
}
