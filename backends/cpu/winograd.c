/* Convolutions of 3 x 3 with stride 1 by Winograd's minimal filtering: whether, and how; see winograd_run.c for how it runs.
 *
 * In: the plan of the direct form, and the error that is allowed. Out: the plan, changed where this is faster.
 * A tile of m x m results reads n x n positions, n = m + 2. Tiles and filters are transformed so that n*n products of
 * (tiles x channels) by (channels x columns) take the place of 9*m*m: 2.25 times less arithmetic for m = 2, 4 times for m = 4
 * (Lavin and Gray, Fast algorithms for convolutional neural networks, arXiv 1509.09308). The points of the transform are
 * 0, 1, -1, infinity for m = 2, and 0, +-sqrt(1/2), +-sqrt(2), infinity for m = 4, which keep the error small (Barabasz et
 * al., Error analysis and improving the accuracy of Winograd convolution, arXiv 1803.10986).
 *
 * A task has some rows of tiles of an image, and some panels of columns. */
#include "conv.h"

enum { LANES = 16, FORMS = 2, THREADS = 2 };

/* sum: so many channels at most are summed before the sums are added up, so that the error of random operands stays within
 * SUM_ERROR of the largest result (m = 4: 1.7e-6 of 64 to 2048 channels; 8e-6 were they one sum), and that of m = 2 below what
 * plain sums err by, which are nine times as long; read, write: cycles to transform a vector of 16 channels of a tile's
 * positions, and of its results. */
static const struct {
  int m;
  int64_t sum;
  double read, write;
} forms[FORMS] = {{2, 512, 40, 30}, {4, 64, 190, 130}};

static bool fits(const Facts *f, const ConvPlan *p) {
  const Part *q = &p->part[0];
  const PartAxis *axis[2] = {&q->h, &q->w};
  for (int i = 0; i < 2; i++)
    if (axis[i]->taps != 3 || axis[i]->in_step != 1 || axis[i]->tap_step != 1 ||
        axis[i]->out_step != 1 || axis[i]->out)
      return false;
  return f->dtype == DT_FLOAT32 && p->n_parts == 1 && p->channels % LANES == 0 &&
         p->columns % LANES == 0;
}

static double row_cycles(const ConvPlan *p, int64_t tiles, int64_t vectors) {
  Blocks rows = row_blocks(tiles, &p->tile);
  double c = 0, nv = (double)vectors;
  for (int i = 0; i < 2; i++) {
    double n = (double)(i ? rows.n - rows.more : rows.more), mr = (double)(rows.size + !i);
    c += n * ((double)p->channels * tile_cycles(mr, nv) + mr * nv + 30);
  }
  return c;
}

/* Of an image, about. Where arithmetic takes longer, memory counts less beside it. */
static double cost(const Facts *f, const ConvPlan *p, int form) {
  enum { L2_BYTES = 1 << 20, FROM_MEMORY = 5, FROM_L3 = 16 }; /* bytes a cycle */
  const Winograd *w = &p->winograd;
  double nn = w->n * w->n, tiles = (double)((w->strips.size + (w->strips.more > 0)) * w->across),
         pg = (double)p->panel_groups, channels = (double)p->channels,
         columns = (double)p->columns / pg, a_bytes = 4 * nn * tiles * channels,
         b_bytes = 4 * nn * channels * columns;
  double read = tiles * channels / LANES * forms[form].read,
         write = tiles * columns / LANES * forms[form].write, products = 0, panels = 0;
  for (int i = 0; i < 2; i++) {
    double n = (double)(i ? p->panels.n - p->panels.more : p->panels.more) / pg;
    products += nn * n * row_cycles(p, (int64_t)tiles, p->panels.size + !i);
    panels += n;
  }
  double memory = b_bytes * pg > L2_BYTES ? b_bytes / FROM_MEMORY : 0;
  if (a_bytes > L2_BYTES) memory += a_bytes * panels / FROM_L3;
  products += memory / 2 / tile_halves();
  int64_t n = p->images.total * p->groups.total * p->chunks * p->panel_groups;
  double idle = (double)(div_up(n, THREADS) * THREADS) / (double)n;
  (void)f;
  return (read + products + write) * (double)p->chunks * pg * (n < 32 ? idle : 1);
}

/* The best division of a form with one tile into p. */
static double divide(const Facts *f, ConvPlan *p, int form) {
  enum { MOST_BYTES = 8 << 20 };
  Winograd *w = &p->winograd;
  const Part *q = &p->part[0];
  int64_t down = div_up(q->h.n, w->m), had = 0;
  double least_cost = 0;
  ConvPlan best = *p;
  for (int64_t rows = 1; rows <= down; rows++) {
    w->strips = equal_blocks(down, rows);
    p->chunks = w->strips.n;
    if (p->chunks == had) continue;
    had = p->chunks;
    int64_t tiles = (w->strips.size + (w->strips.more > 0)) * w->across;
    if (rows > 1 && tiles * p->channels * w->n * w->n * f->size > MOST_BYTES) break;
    for (p->panel_groups = 1; p->panel_groups <= p->panels.n; p->panel_groups *= 2) {
      double c = cost(f, p, form);
      if (least_cost && c >= least_cost) continue;
      least_cost = c;
      best = *p;
    }
  }
  *p = best;
  return least_cost;
}

static void want_all(Arena *a, ConvPlan *p) {
  Winograd *w = &p->winograd;
  p->set = (MicroSet){0};
  for (int s = 0; s < 2; s++) {
    if (s ? w->strips.more == w->strips.n : !w->strips.more) continue;
    Blocks rows = row_blocks((w->strips.size + !s) * w->across, &p->tile);
    for (int i = 0; i < 4; i++) {
      bool few = i & 1, thin = i & 2; /* of size, not size+1 */
      if (few ? rows.more == rows.n : !rows.more) continue;
      if (thin ? p->panels.more == p->panels.n : !p->panels.more) continue;
      MicroSpec spec = {.dtype = p->tile.dtype, .lanes = p->tile.lanes};
      spec.mr = (int)(rows.size + !few);
      spec.nv = (int)(p->panels.size + !thin);
      spec.pitch = p->channels;
      w->fn[s][few][thin] = micro_want(a, &p->set, &spec);
    }
  }
}

static int64_t widest(const ConvPlan *p) {
  return (p->panels.size + (p->panels.more > 0)) * p->tile.lanes;
}

int64_t winograd_scratch(const ConvPlan *p) {
  const Winograd *w = &p->winograd;
  return (w->a_step + w->c_step + p->channels) * w->n * w->n;
}

void winograd_plan(Arena *a, const Facts *f, ConvPlan *p, double error, double cycles) {
  enum { APART = 16 }; /* so that the matrices do not lie in the same sets of the cache */
  static const double GAIN =
      0.9; /* at least: its filters are 1.8 or 4 times as large, and come from memory */
  ConvPlan best = *p;
  double had = GAIN * cycles;
  if (!(error >= SUM_ERROR) || !fits(f, p)) return; /* NaN: nothing is allowed */
  for (int form = 0; form < FORMS; form++)
    for (const TileRow *t = tile_table; t->isa != ISA_NONE; t++) {
      if (t->isa != tile_isa() || t->dtype != f->dtype || t->form != FORM_ROWS) continue;
      ConvPlan q = *p;
      int m = forms[form].m;
      q.tile = *t;
      q.panels = vector_blocks(p->columns, t);
      q.winograd = (Winograd){.m = m,
                              .n = m + 2,
                              .across = div_up(p->part[0].w.n, m),
                              .sums = equal_blocks(p->channels / LANES, forms[form].sum / LANES)};
      double c = divide(f, &q, form);
      if (c >= had) continue;
      had = c;
      best = q;
    }
  if (!best.winograd.m) return;
  Winograd *w = &best.winograd;
  int64_t tiles = (w->strips.size + (w->strips.more > 0)) * w->across;
  w->a_step = tiles * p->channels + APART;
  w->c_step = tiles * widest(&best) + APART;
  best.by_block = best.copy = false;
  best.b_size = (int64_t)w->n * w->n * p->channels * p->columns;
  *p = best;
  want_all(a, p);
}
