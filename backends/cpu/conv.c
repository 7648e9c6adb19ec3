/* Convolutions over channels-last operands, and matrix products, without im2col: the plan.
 *
 * In: a contraction. Out: a ConvPlan, and the phases that run it (conv_run.c, or winograd_run.c), or false.
 *
 * conv_find.c says what convolution it is, conv_cut.c how it is cut into tiles of MR positions by NV vectors of columns. A tile
 * is summed over taps and channels by one microkernel; along w, taps and channels are neighbours in memory and so one sum
 * (Georganas et al., High-performance deep learning via a single building block, arXiv 1906.06440). B is packed into panels as
 * wide as a tile; of few columns, which fill no vector, the tiles are dot products (FORM_DOT). Where windows leave A, the rows
 * that a task reads are copied with zeros around them. */
#include "conv.h"

/* Panels of B: of one tap smaller, so that A and what is fetched for the next pass stay in the L2 cache beside it. The taps of a
 * window read A again. */
enum { PANEL_BYTES = 384 << 10, SINGLE_PANEL_BYTES = 128 << 10, PACK_ROWS = 128 };

/* ---- microkernels ---- */

/* A panel that is read for every tile stays in the L2 cache. */
static void cut_sums(ConvPlan *p, Part *q, int64_t size) {
  int64_t width = (p->panels.size + (p->panels.more > 0)) * tile_unit(&p->tile) * size;
  int64_t k = q->fold ? q->w.taps * p->channels : p->channels;
  int64_t inner = q->fold ? q->h.taps : q->w.taps;
  int64_t panel = q->h.taps * q->w.taps == 1 ? SINGLE_PANEL_BYTES : PANEL_BYTES;
  if (p->row) panel = INT64_MAX; /* read once */
  int64_t most_runs = panel / (k * width);
  q->run_pieces = most_runs ? 1 : div_up(k * width, panel);
  q->run_group = most_runs ? div_up(inner, div_up(inner, least(most_runs, inner))) : 1;
  while (!q->fold && inner % q->run_group) q->run_group--;
}

/* Rows that follow one another without gaps, where B is one panel: there is no next one to fetch. */
static bool fetches_rows(const ConvPlan *p) {
  const Part *q = &p->part[0];
  bool dense = p->tile.form == FORM_ROWS && p->n_parts == 1 && !p->copy && q->k == p->channels &&
               q->pixel == p->channels;
  return dense && q->w.in_step == 1 && q->run_pieces == 1 && p->panels.n == 1;
}

/* Where they come from memory, all that the next tile reads is fetched while one is summed. */
static void fetch_ahead(const Plan *plan, ConvPlan *p) {
  const Part *q = &p->part[0];
  int64_t rows = (q->rows.size + (q->rows.more > 0)) * (q->run ? q->w.n : 1);
  p->fetch_rows = fetches_rows(p);
  if (p->fetch_rows && plan->frame.from_far[p->a])
    p->more_lines = micro_more_lines(rows * FETCH_STEPS * plan->facts.size, 1);
}

static int want(Arena *a, ConvPlan *p, const Part *q, int64_t tile, int panel) {
  int64_t positions = q->run ? tile * q->w.n : tile;
  MicroSpec s = {.dtype = p->tile.dtype, .lanes = p->tile.lanes, .mr = (int)positions};
  s.nv = (int)(p->panels.size + (panel == 0));
  s.tail = panel == 2;
  s.dot = p->tile.form == FORM_DOT;
  s.more_lines = p->more_lines;
  if (q->run && tile > 1) {
    s.run = (int)q->w.n;
    s.jump = q->h.in_step * q->line;
  }
  s.pitch = micro_pitch(&s, q->w.in_step * q->pixel);
  return micro_want(a, &p->set, &s);
}

static void want_all(Arena *a, ConvPlan *p, Part *q) {
  bool tail = p->columns % tile_unit(&p->tile) != 0;
  for (int i = 0; i < 2; i++) {
    if (i ? q->rows.more == q->rows.n : !q->rows.more) continue;
    int64_t tile = q->rows.size + (i == 0);
    if (p->panels.more) q->fn[i][0] = want(a, p, q, tile, 0);
    if (p->panels.n - p->panels.more > tail) q->fn[i][1] = want(a, p, q, tile, 1);
    if (tail) q->fn[i][2] = want(a, p, q, tile, 2);
  }
}

/* ---- the epilogue ---- */

/* Elements of a row of the epilogue, if tasks hold whole ones; else 0. */
static int64_t whole_rows(const Plan *plan, const ConvPlan *p) {
  const Facts *f = &plan->facts;
  int64_t e = f->numel / (plan->frame.rows * plan->frame.parts), h = 0, w = 0;
  if (f->numel == p->columns && tile_unit(&p->tile) % e == 0) return e;
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
  if (!rows || p->tile.form == FORM_DOT) return true;
  int64_t tiles = q->rows.n * (q->run ? 1 : q->h.n) * p->images.total;
  if (p->panels.n == 1 && p->b_i == p->columns) return false;
  if (plan->frame.constant[p->b]) return true;
  return tiles > FEW && (q->k * p->b_i * f->size > L2_BYTES || tiles > MANY);
}

/* Columns that are fewer do not fill a vector: then it is dot products, or a product for each group, or not this form. */
enum { LEAST_N = 8, LEAST_GROUP_N = 2 };

static bool worth(const Plan *plan, const ConvPlan *p) {
  enum { WINDOW_FLOPS = 100000, LEAST_K = 8, LEAST_M = 4 };
  const Facts *f = &plan->facts;
  int64_t positions = p->part[0].w.n * p->part[0].h.n, k = 0,
          bytes = p->b_size * p->columns * p->groups.total * f->size;
  for (int i = 0; i < p->n_parts; i++) k = most(k, p->part[i].k);
  bool windows = p->n_parts > 1 || p->copy || p->part[0].k > p->channels; /* else gathered */
  if (p->reordered && !plan->frame.constant[p->b]) return false;
  if (p->row && plan->frame.constant[p->b] && f->dtype == DT_FLOAT32)
    return p->columns >= LEAST_N && k >= LEAST_K && bytes <= ROW_BYTES_KEPT;
  if (p->columns < (p->groups.total > 1 ? LEAST_GROUP_N : 1) || positions < LEAST_M || k < LEAST_K)
    return false;
  return f->dtype == DT_FLOAT32 && (f->flops >= (windows ? WINDOW_FLOPS : CONV_FLOPS) ||
                                    plan->no_blas || plan->way != WAY_RULE);
}

static bool try_operand(Arena *arena, Plan *plan, int x) {
  const Facts *f = &plan->facts;
  ConvPlan *p = arena_new_of(arena, ConvPlan);
  if (!conv_find(f, x, p) || !worth(plan, p)) return false;
  double cycles = conv_cut(plan, p);
  if (!cycles) return false;
  if (p->columns < LEAST_N && p->groups.total == 1 && p->tile.form != FORM_DOT) return false;
  for (int i = 0; i < p->n_parts; i++)
    if (p->part[i].k) cut_sums(p, &p->part[i], f->size);
  fetch_ahead(plan, p);
  for (int i = 0; i < p->n_parts; i++)
    if (p->part[i].k) want_all(arena, p, &p->part[i]);
  if (plan->conv_error > 0) winograd_plan(arena, f, p, plan->conv_error, cycles);
  plan->conv = p;
  return true;
}

/* Does packing B by rows in a phase of its own, about half a cycle for each element, cost more than the longer panels save? Those of
 * gemm.c move the results more often. */
static bool packs_in_vain(const Plan *plan, const ConvPlan *p, int64_t rows) {
  enum { MANY_ROWS = 4096 /* then it hardly counts */, C_BYTES = 1 << 20, NEAR = 1, FAR = 5 };
  int64_t size = plan->facts.size, panel = p->part[0].k * p->tile.nv * p->tile.lanes * size;
  int64_t moves = div_up(panel, tile_panel()) - div_up(panel, SINGLE_PANEL_BYTES);
  int64_t vectors = rows * div_up(p->columns, p->tile.lanes);
  return p->pack && p->tile.form == FORM_ROWS && p->b_o == 1 && rows < MANY_ROWS &&
         !plan->chained &&
         p->part[0].k * p->columns / 2 >
             vectors * moves * (rows * p->columns * size > C_BYTES ? FAR : NEAR);
}

/* A matrix that nobody has packed before: gemm.c packs a panel while the first tile reads it, or reads it where it is, which is
 * better where it is large and used for few rows. */
static bool wastes(const Plan *plan, const ConvPlan *p) {
  enum { FEW_ROWS = 256, LARGE = 1 << 16, LARGE_IN_PLACE = 1 << 20, SMALL_FLOPS = 8000000 };
  const Part *q = &p->part[0];
  int64_t rows = q->w.n * q->h.n * p->images.total;
  if (p->n_parts > 1 || q->k != p->channels || p->copy || plan->frame.constant[p->b]) return false;
  if (p->b_o != 1 && plan->facts.flops < SMALL_FLOPS) return true; /* a phase less */
  bool large = q->k * p->columns >= (p->pack ? LARGE : LARGE_IN_PLACE);
  return (rows < FEW_ROWS && large) || packs_in_vain(plan, p, rows);
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

/* All that packed B follows from, but B. */
static uint64_t packing_of(const Plan *plan) {
  const ConvPlan *p = plan->conv;
  const int64_t of[] = {p->b_base,       p->b_kh,      p->b_kw,        p->b_i,
                        p->b_o,          p->channels,  p->columns,     p->b_size,
                        p->groups.total, p->panels.n,  p->panels.size, p->panels.more,
                        p->tile.lanes,   p->tile.form, p->winograd.m,  plan->facts.dtype};
  uint64_t h = hash_bytes(0, of, sizeof of);
  for (int i = 0; i < p->groups.n; i++) {
    const CLoop *l = &plan->facts.loop[p->groups.id[i]];
    h = hash_bytes(h, (const int64_t[]){l->ext, l->s[p->b]}, 2 * sizeof(int64_t));
  }
  for (int i = 0; i < p->n_parts; i++) {
    const Part *q = &p->part[i];
    const int64_t taps[] = {q->b_at, q->h.k,      q->h.k_step, q->h.taps,
                            q->w.k,  q->w.k_step, q->w.taps};
    h = hash_bytes(h, taps, sizeof taps);
  }
  return h | 1;
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
  w->packing = packing_of(plan);
}

static void direct_phases(Plan *plan) {
  ConvPlan *p = plan->conv;
  Work *w = &plan->work;
  int64_t width = (p->panels.n * p->panels.size + p->panels.more) * tile_unit(&p->tile),
          longest = 0;
  for (int i = 0; i < p->n_parts; i++) {
    p->part[i].b_at *= width;
    longest = most(longest, p->part[i].k);
  }
  p->b_size *= width;
  if (p->pack) pack_phase(plan, conv_pack, p->n_parts, longest, PACK_ROWS);
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
