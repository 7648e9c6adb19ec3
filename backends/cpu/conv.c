/* Convolutions over channels-last operands, and matrix products, without im2col: the plan. See conv_run.c for how it runs.
 *
 * In: a contraction whose result has neighbouring columns (loops that move the filter B only), and whose other operand A has
 * neighbouring channels (summed) at positions; A's positions are windows (position and tap), maybe divided by a stride.
 * A matrix product is the case of one tap. Out: a ConvPlan, or false.
 *
 * A division by s is undone: the results of one residue of the position modulo s use every tap of one residue only, and are
 * a convolution of stride 1 (a part). Taps that run backwards are turned round with their filter index. Then a tile is MR positions by NV
 * vectors of columns, summed over taps and channels by one microkernel; along w, taps and channels are neighbours in
 * memory and so one sum (Georganas et al., High-performance deep learning via a single building block, arXiv 1906.06440). Tiles lie in
 * one row of positions, or, if rows are short, hold several. B is packed into panels as wide as a tile. Where
 * windows leave A, the rows that a task reads are copied with zeros around them. */
#include "conv.h"

/* Panels of B: of one tap smaller, so that A and what is fetched for the next pass stay in the L2 cache beside it. The taps of a
 * window read A again. */
enum {
  STRIP_BYTES = 512 << 10,
  PANEL_BYTES = 384 << 10,
  SINGLE_PANEL_BYTES = 128 << 10,
  PACK_ROWS = 128
};

/* ---- which loops are what ---- */

typedef struct Spatial {
  int dim;      /* of A */
  int pos, tap; /* loops; -1: none */
} Spatial;

typedef struct Found {
  int x; /* operand A */
  int n;
  Spatial sp[2]; /* w, then h */
  LoopList images, groups, channels, columns;
} Found;

static LoopClass position_class(int x) { return x ? LC_N : LC_M; }
static LoopClass column_class(int x) { return x ? LC_M : LC_N; }

/* The dimension of A that a loop moves through, if it is one only; -1. */
static int dim_of_loop(const Facts *f, int x, int loop) {
  int found = -1;
  for (int d = 0; d < f->n_dims[x]; d++)
    for (int i = 0; i < 2; i++)
      if (f->dim[x][d].l[i] == loop) {
        if (found >= 0) return -1;
        found = d;
      }
  return found;
}

static int other_loop(const CDim *c, int loop) { return c->l[0] == loop ? c->l[1] : c->l[0]; }
static bool add_spatial(const Facts *f, Found *r, int loop) {
  int d = dim_of_loop(f, r->x, loop);
  if (d < 0 || r->n == 2) return false;
  int tap = other_loop(&f->dim[r->x][d], loop);
  if (tap >= 0 && f->loop[tap].class != LC_K) return false;
  r->sp[r->n++] = (Spatial){d, loop, tap};
  return true;
}

/* Positions: the two innermost of the loops that move A and the result, or those with windows; the rest are images. */
static bool find_positions(const Facts *f, Found *r) {
  LoopList l = loops_of(f, 1u << position_class(r->x));
  list_sort(f, &l, 2);
  for (int i = l.n - 1; i >= 0; i--) {
    int d = dim_of_loop(f, r->x, l.id[i]);
    if (d < 0) return false;
    const CDim *c = &f->dim[r->x][d];
    bool window = c->guard || c->l[1] >= 0;
    if (r->n < 2 ? !add_spatial(f, r, l.id[i]) : window) return false;
  }
  for (int i = 0; i < l.n - r->n; i++) list_add(f, &r->images, l.id[i]);
  return true;
}

static bool find_loops(const Facts *f, int x, Found *r) {
  *r = (Found){.x = x};
  r->images.total = r->groups.total = r->channels.total = r->columns.total = 1;
  LoopList rest = {.total = 1};
  if (!f->plain[!x] || !find_positions(f, r)) return false;
  r->groups = loops_of(f, 1u << LC_BATCH);
  r->columns = merge_tail(f, loops_of(f, 1u << column_class(x)), 2, 1u << 2 | 1u << !x, &rest);
  if (rest.n || (r->columns.total > 1 && list_step(f, &r->columns, 2) != 1)) return false;
  LoopList k = loops_of(f, 1u << LC_K), plain = {.total = 1};
  for (int i = 0; i < k.n; i++)
    if (k.id[i] != (r->n > 0 ? r->sp[0].tap : -1) && k.id[i] != (r->n > 1 ? r->sp[1].tap : -1))
      list_add(f, &plain, k.id[i]);
  r->channels = merge_tail(f, plain, x, 1u << x | 1u << !x, &rest);
  if (rest.n || (r->channels.total > 1 && list_step(f, &r->channels, x) != 1)) return false;
  for (int d = 0; d < f->n_dims[x]; d++) { /* no windows but those that were found */
    bool spatial = (r->n > 0 && r->sp[0].dim == d) || (r->n > 1 && r->sp[1].dim == d);
    if (!spatial && (f->dim[x][d].guard || f->dim[x][d].div > 1)) return false;
  }
  return true;
}

/* ---- parts ---- */

static int64_t floor_mod(int64_t a, int64_t n) { return ((a % n) + n) % n; }

static PartAxis turned(PartAxis p) {
  if (p.tap_step >= 0) return p;
  p.in += p.tap_step * (p.taps - 1);
  p.k += p.k_step * (p.taps - 1);
  p.tap_step = -p.tap_step;
  p.k_step = -p.k_step;
  return p;
}

int conv_axis(const Facts *f, int x, int dim, int pos, int tap, PartAxis *to) {
  if (dim < 0) {
    *to = (PartAxis){.out_step = 1, .n = 1, .in_step = 1, .taps = 1, .k_step = 1};
    return 1;
  }
  const CDim *c = &f->dim[x][dim];
  int64_t n = f->loop[pos].ext, taps = tap < 0 ? 1 : f->loop[tap].ext;
  int64_t cp = dim_factor(c, pos), ct = dim_factor(c, tap), s = c->div;
  PartAxis p = {.out_step = 1, .n = n, .in = c->off, .in_step = cp, .tap_step = ct, .taps = taps};
  p.k_step = 1;
  if (s == 1) {
    *to = turned(p);
    return cp > 0;
  }
  if (cp != 1 || s > 4) return 0;
  for (int64_t res = 0; res < s; res++) {
    PartAxis *q = &to[res];
    *q = (PartAxis){.out = res, .out_step = s, .n = div_up(n - res, s), .in_step = 1, .k_step = 1};
    for (int64_t t = 0; t < taps; t++) {
      if (floor_mod(res + ct * t + c->off, s)) continue;
      int64_t at = (res + ct * t + c->off) / s;
      if (!q->taps)
        q->k = t, q->in = at;
      else if (q->taps == 1)
        q->k_step = t - q->k, q->tap_step = at - q->in;
      q->taps++;
    }
    *q = turned(*q);
  }
  return (int)s;
}

static int axis_parts(const Facts *f, const Found *r, int i, PartAxis *to) {
  const Spatial *s = &r->sp[i];
  return i < r->n ? conv_axis(f, r->x, s->dim, s->pos, s->tap, to)
                  : conv_axis(f, r->x, -1, -1, -1, to);
}

static bool inside(const PartAxis *p, int64_t size) {
  return !p->taps || !p->n ||
         (p->in >= 0 && p->in + p->in_step * (p->n - 1) + p->tap_step * (p->taps - 1) < size);
}

static bool make_parts(const Facts *f, const Found *r, ConvPlan *p) {
  PartAxis w[4], h[4];
  int nw = axis_parts(f, r, 0, w), nh = axis_parts(f, r, 1, h);
  if (!nw || !nh) return false;
  for (int i = 0; i < nh; i++)
    for (int j = 0; j < nw; j++) {
      Part *q = &p->part[p->n_parts++];
      *q = (Part){.h = h[i], .w = w[j]};
      q->k = h[i].taps * w[j].taps * p->channels;
      q->b_at = p->b_size;
      p->b_size += q->k;
      p->copy |= q->k && (!inside(&q->h, p->size_h) || !inside(&q->w, p->size_w));
    }
  return true;
}

/* Without windows, rows that follow one another in A and the result are one row, and so are small images: large ones of a batch
 * stay apart, so that their tasks can run together with those of other kernels (Kernel.chain). */
static void join_rows(const Facts *f, ConvPlan *p) {
  enum { ALONE = 128 };
  Part *q = &p->part[0];
  if (p->n_parts > 1 || p->copy || q->h.taps > 1 || q->w.taps > 1) return;
  int64_t a_step = p->a_w * q->w.in_step;
  if (q->h.n > 1) {
    if (p->a_h * q->h.in_step != a_step * q->w.n || p->c_h != p->c_w * q->w.n) return;
    q->w.n *= q->h.n;
    q->h = (PartAxis){.out_step = 1, .n = 1, .in_step = 1, .taps = 1, .k_step = 1};
  }
  while (p->images.n && (p->images.n > 1 || q->w.n < ALONE)) {
    const CLoop *l = &f->loop[p->images.id[p->images.n - 1]];
    if (l->s[p->a] != a_step * q->w.n || l->s[2] != p->c_w * q->w.n) return;
    q->w.n *= l->ext;
    p->images.total /= l->ext;
    p->images.n--;
  }
}

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

/* How a part's positions become tiles of at most mr, and what they cost; each panel reads A again. */
static double part_tiles(Part *q, const TileRow *t, const Blocks *panels, int64_t a_bytes) {
  double best = 0;
  int64_t line = t->lanes * dtype_info[t->dtype].size;
  for (int way = 0; way < 2; way++) {
    int64_t run = way ? t->mr / (q->w.n ? q->w.n : 1) : 0;
    if (way && run < 2) break;
    Blocks b = way ? equal_blocks(q->h.n, run) : row_blocks(q->w.n, t);
    double c = 0.12 * (double)(a_bytes * panels->n);
    for (int i = 0; i < 2; i++)
      for (int j = 0; j < 2; j++) {
        double tiles = (double)(i ? b.more : b.n - b.more) * (double)(way ? 1 : q->h.n),
               vectors = (double)(j ? panels->more : panels->n - panels->more);
        double mr = (double)((b.size + i) * (way ? q->w.n : 1)), nv = (double)(panels->size + j);
        c += tiles * vectors * ((double)q->k * step_cycles(q, mr, nv, line) + mr * nv + 30);
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

static int64_t strip_rows(const PartAxis *h, int64_t n) {
  return n && h->taps ? h->in_step * (n - 1) + h->tap_step * (h->taps - 1) + 1 : 0;
}

static int64_t strip_bytes(const ConvPlan *p, int64_t rows, int size) {
  int64_t m = 0;
  for (int i = 0; i < p->n_parts; i++) {
    const Part *q = &p->part[i];
    m = most(m, strip_rows(&q->h, least(rows, q->h.n)) * q->strip_w * p->channels * size);
  }
  return m;
}

/* One position: a row times the filter, whose bytes count rather than the arithmetic. */
static bool is_row(const ConvPlan *p) {
  return p->part[0].w.n * p->part[0].h.n * p->images.total == 1 && p->n_parts == 1;
}

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

/* Cycles of an image, about; 0: there is none. */
static double choose_tile(const Plan *plan, ConvPlan *p) {
  const Facts *f = &plan->facts;
  const TileRow *only = plan->only;
  double least_cost = 0;
  Isa isa = tile_isa();
  ConvPlan best = *p;
  for (const TileRow *t = tile_table; t->isa != ISA_NONE; t++) {
    if (t->isa != isa || t->dtype != f->dtype || t->form != FORM_ROWS) continue;
    if (only && t != only) continue;
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

/* A panel that is read for every tile stays in the L2 cache. */
static void cut_sums(ConvPlan *p, Part *q, int64_t size) {
  int64_t width = (p->panels.size + (p->panels.more > 0)) * p->tile.lanes * size;
  int64_t k = q->fold ? q->w.taps * p->channels : p->channels;
  int64_t inner = q->fold ? q->h.taps : q->w.taps;
  int64_t panel = q->h.taps * q->w.taps == 1 ? SINGLE_PANEL_BYTES : PANEL_BYTES;
  if (p->row) panel = INT64_MAX; /* read once */
  int64_t most_runs = panel / (k * width);
  q->run_pieces = most_runs ? 1 : div_up(k * width, panel);
  q->run_group = most_runs ? div_up(inner, div_up(inner, least(most_runs, inner))) : 1;
  while (!q->fold && inner % q->run_group) q->run_group--;
}

static int want(Arena *a, ConvPlan *p, const Part *q, int64_t tile, int panel) {
  int64_t positions = q->run ? tile * q->w.n : tile;
  MicroSpec s = {.dtype = p->tile.dtype, .lanes = p->tile.lanes, .mr = (int)positions};
  s.nv = (int)(p->panels.size + (panel == 0));
  s.tail = panel == 2;
  s.pitch = q->w.in_step * q->pixel;
  if (q->run && tile > 1) {
    s.run = (int)q->w.n;
    s.jump = q->h.in_step * q->line;
  }
  return micro_want(a, &p->set, &s);
}

static void want_all(Arena *a, ConvPlan *p, Part *q) {
  bool tail = p->columns % p->tile.lanes != 0;
  for (int i = 0; i < 2; i++) {
    if (i ? q->rows.more == q->rows.n : !q->rows.more) continue;
    int64_t tile = q->rows.size + (i == 0);
    if (p->panels.more) q->fn[i][0] = want(a, p, q, tile, 0);
    if (p->panels.n - p->panels.more > tail) q->fn[i][1] = want(a, p, q, tile, 1);
    if (tail) q->fn[i][2] = want(a, p, q, tile, 2);
  }
}

/* Elements of a row of the epilogue, if tasks hold whole ones; else 0. */
static int64_t whole_rows(const Plan *plan, const ConvPlan *p) {
  const Facts *f = &plan->facts;
  int64_t e = f->numel / (plan->frame.rows * plan->frame.parts), h = 0, w = 0;
  if (f->numel == p->columns && p->tile.lanes % e == 0) return e;
  if (p->panel_groups > 1 || p->c_w != p->columns) return 0;
  for (int i = 0; i < p->n_parts; i++) {
    h = most(h, p->part[i].h.out + p->part[i].h.out_step * (p->part[i].h.n - 1) + 1);
    w = most(w, p->part[i].w.out + p->part[i].w.out_step * (p->part[i].w.n - 1) + 1);
  }
  if (h > 1 && p->c_h != w * p->c_w) return 0;
  int64_t part = p->chunks == 1 ? h * w * p->c_w
                 : p->by_block  ? p->c_w
                                : p->c_h * p->part[0].h.out_step;
  return part % e == 0 ? e : 0;
}

/* The epilogue follows each panel, whose results are in the nearest cache, where the task would have too many of them at its end
 * or not whole rows. */
static bool by_panel(const Plan *plan, const ConvPlan *p) {
  enum { BYTES = 256 << 10, LEAST_ROWS = 16 };
  const Part *q = &p->part[0];
  int64_t rows = div_up(q->w.n, p->chunks), e = p->columns;
  bool product = p->by_block && p->n_parts == 1 && p->groups.total == 1 && !p->winograd.m;
  if (!product || plan->chained || plan->frame.columns != e || p->c_w != e || rows < LEAST_ROWS)
    return false;
  return p->panels.n > 1 && (p->panel_groups > 1 || rows * e * plan->facts.size > BYTES);
}

/* ---- the plan ---- */

/* B is read in place if its rows lie as panels would, or, unless it is packed once for many runs, if few tiles use each of
 * them and the rest stays in cache. */
static bool packs(const Plan *plan, const ConvPlan *p) {
  enum { FEW = 4, MANY = 64, L2_BYTES = 1 << 20 };
  const Facts *f = &plan->facts;
  const Part *q = &p->part[0];
  bool rows = p->n_parts == 1 && q->fold && p->b_o == 1 && q->h.k_step == 1 && q->w.k_step == 1 &&
              p->b_i >= p->columns && (q->w.taps == 1 || p->b_kw == p->channels * p->b_i) &&
              (q->h.taps == 1 || p->b_kh == q->w.taps * p->channels * p->b_i);
  if (!rows) return true;
  int64_t tiles = q->rows.n * (q->run ? 1 : q->h.n) * p->images.total;
  if (p->panels.n == 1 && p->b_i == p->columns) return false;
  if (plan->frame.constant[p->b]) return true;
  return tiles > FEW && (q->k * p->b_i * f->size > L2_BYTES || tiles > MANY);
}

static void lay_out(ConvPlan *p, Part *q) {
  q->strip_w = strip_rows(&q->w, q->w.n);
  q->pixel = p->copy || !p->a_w ? p->channels : p->a_w; /* a_w 0: there is one position */
  q->line = p->copy ? p->channels * q->strip_w : p->a_h;
  q->fold = q->w.taps == 1 || (q->w.tap_step == 1 && q->pixel == p->channels);
}

static bool worth(const Plan *plan, const ConvPlan *p) {
  enum { FLOPS = 1000000, LEAST_K = 8, LEAST_M = 4, LEAST_N = 8 };
  const Facts *f = &plan->facts;
  int64_t positions = p->part[0].w.n * p->part[0].h.n, k = 0,
          bytes = p->b_size * p->columns * f->size;
  for (int i = 0; i < p->n_parts; i++) k = most(k, p->part[i].k);
  if (p->row && plan->frame.constant[p->b] && f->dtype == DT_FLOAT32)
    return p->columns >= LEAST_N && k >= LEAST_K && bytes <= ROW_BYTES_KEPT;
  if (p->columns < LEAST_N || positions < LEAST_M || k < LEAST_K) return false;
  return f->dtype == DT_FLOAT32 && (f->flops >= FLOPS || plan->no_blas || plan->way != WAY_RULE);
}

static void strides_of(const Facts *f, const Found *r, ConvPlan *p) {
  static const CDim none = {.size = 1};
  const CDim *w = r->n > 0 ? &f->dim[r->x][r->sp[0].dim] : &none,
             *h = r->n > 1 ? &f->dim[r->x][r->sp[1].dim] : &none;
  const CLoop one = {.ext = 1};
  const CLoop *lw = r->n > 0 ? &f->loop[r->sp[0].pos] : &one,
              *lh = r->n > 1 ? &f->loop[r->sp[1].pos] : &one,
              *tw = r->n > 0 && r->sp[0].tap >= 0 ? &f->loop[r->sp[0].tap] : &one,
              *th = r->n > 1 && r->sp[1].tap >= 0 ? &f->loop[r->sp[1].tap] : &one;
  p->a_base = f->base[p->a] - (w->div == 1 ? w->off * w->stride : 0) -
              (h->div == 1 ? h->off * h->stride : 0);
  p->a_w = w->stride;
  p->a_h = h->stride;
  p->size_w = w->size;
  p->size_h = h->size;
  p->b_base = f->base[p->b];
  p->b_kh = th->s[p->b];
  p->b_kw = tw->s[p->b];
  p->b_i = list_step(f, &r->channels, p->b);
  p->b_o = list_step(f, &r->columns, p->b);
  p->c_w = lw->s[2];
  p->c_h = lh->s[2];
}

static bool try_operand(Arena *arena, Plan *plan, int x) {
  const Facts *f = &plan->facts;
  Found r;
  if (!find_loops(f, x, &r)) return false;
  ConvPlan *p = arena_new_of(arena, ConvPlan);
  *p = (ConvPlan){.a = x, .b = !x, .images = r.images, .groups = r.groups};
  p->channels = r.channels.total;
  p->columns = r.columns.total;
  strides_of(f, &r, p);
  if (!make_parts(f, &r, p)) return false;
  join_rows(f, p);
  p->row = is_row(p);
  if (!worth(plan, p)) return false;
  for (int i = 0; i < p->n_parts; i++) lay_out(p, &p->part[i]);
  if (p->part[0].pixel * p->part[0].w.in_step >= INT32_MAX / 64 ||
      p->part[0].line * p->part[0].h.in_step >= INT32_MAX / 64)
    return false;
  double cycles = choose_tile(plan, p);
  if (!cycles) return false;
  for (int i = 0; i < p->n_parts; i++)
    if (p->part[i].k) {
      cut_sums(p, &p->part[i], f->size);
      want_all(arena, p, &p->part[i]);
    }
  if (plan->conv_error > 0) winograd_plan(arena, f, p, plan->conv_error, cycles);
  plan->conv = p;
  return true;
}

/* A large matrix that is used for few rows: gemm.c packs a panel just before its tiles read it, or reads it where it is. */
static bool wastes(const Plan *plan, const ConvPlan *p) {
  enum { FEW_ROWS = 256, LARGE = 1 << 16, LARGE_IN_PLACE = 1 << 20, SMALL_FLOPS = 8000000 };
  const Part *q = &p->part[0];
  bool product = p->n_parts == 1 && q->k == p->channels && !p->copy;
  if (product && !plan->frame.constant[p->b] && p->b_o != 1 && plan->facts.flops < SMALL_FLOPS)
    return true; /* a phase less */
  return product && !plan->frame.constant[p->b] && q->w.n * q->h.n * p->images.total < FEW_ROWS &&
         q->k * p->columns >= (p->pack ? LARGE : LARGE_IN_PLACE);
}

/* The tasks go over the images; the outermost loop of the result is the first of them. */
int64_t conv_items(const Plan *plan) {
  const ConvPlan *p = plan->conv;
  const Facts *f = &plan->facts;
  if (!p->images.n || p->groups.total > 1 || (plan->frame.epilogue && !plan->work.fused)) return 0;
  const CLoop *l = &f->loop[p->images.id[0]];
  return l->s[2] * l->ext == f->numel ? l->ext : 0;
}

bool conv_rows(const Plan *plan, const Kernel *k, TaskRows *to) {
  const ConvPlan *p = plan->conv;
  int64_t row = plan->facts.numel / (k->ext[0] * k->ext[1]);
  bool plain = p->c_w == p->columns && (p->by_block || p->c_h == row);
  if (p->images.n != 1 || p->groups.total > 1 || !plain) return false;
  for (int64_t t = 0; t < p->chunks * p->panel_groups; t++) {
    int64_t e0, e1;
    conv_chunk(p, t / p->panel_groups, &e0, &e1);
    to[t] = (TaskRows){(int32_t)(e0 / row), (int32_t)(div_up(e1, row))};
  }
  return true;
}

/* The phase that packs `rows` rows of each of n parts. */
static void pack_phase(Plan *plan, KernelFn *fn, int n, int64_t rows, int64_t most_rows) {
  ConvPlan *p = plan->conv;
  Work *w = &plan->work;
  w->workspace = p->b_size * p->groups.total * plan->facts.size;
  p->k_cuts = div_up(rows, most_rows);
  p->k_cut = div_up(rows, p->k_cuts);
  w->fn[0] = fn;
  w->n_tasks[0] = p->groups.total * n * p->k_cuts;
  w->n_phases = 1;
  if (plan->frame.x[p->a] != plan->frame.x[p->b]) w->prepares = plan->frame.x[p->b] + 1;
}

/* Rows that follow one another without gaps, where B is one panel: there is no next one to fetch. */
static bool fetches_rows(const ConvPlan *p) {
  const Part *q = &p->part[0];
  bool dense = p->n_parts == 1 && !p->copy && q->k == p->channels && q->pixel == p->channels;
  return dense && q->w.in_step == 1 && q->run_pieces == 1 && p->panels.n == 1;
}

static void direct_phases(Plan *plan) {
  ConvPlan *p = plan->conv;
  Work *w = &plan->work;
  int64_t vectors = p->panels.n * p->panels.size + p->panels.more, longest = 0;
  for (int i = 0; i < p->n_parts; i++) {
    p->part[i].b_at *= vectors * p->tile.lanes;
    longest = most(longest, p->part[i].k);
  }
  p->b_size *= vectors * p->tile.lanes;
  if (p->pack) pack_phase(plan, conv_pack, p->n_parts, longest, PACK_ROWS);
  p->fetch_rows = fetches_rows(p);
  w->fn[w->n_phases] = conv_tasks;
  w->scratch = p->strip_bytes;
}

static void winograd_phases(Plan *plan) {
  const ConvPlan *p = plan->conv;
  pack_phase(plan, winograd_pack, 1, p->channels, 16);
  plan->work.fn[1] = winograd_tasks;
  plan->work.scratch = winograd_scratch(p) * plan->facts.size;
}

bool conv_plan(Arena *a, Plan *plan) {
  if (!try_operand(a, plan, 0) && !try_operand(a, plan, 1)) return false;
  ConvPlan *p = plan->conv;
  Work *w = &plan->work;
  p->pack = packs(plan, p);
  if (plan->way == WAY_RULE && wastes(plan, p)) return false;
  plan->set = &p->set;
  plan->tile = &p->tile;
  w->by_panel = by_panel(plan, p);
  p->row_elems = w->by_panel ? p->columns : whole_rows(plan, p);
  if (p->winograd.m)
    winograd_phases(plan);
  else
    direct_phases(plan);
  w->n_tasks[w->n_phases++] = p->images.total * p->groups.total * p->chunks * p->panel_groups;
  w->fused = p->row_elems > 0;
  return true;
}
