/* Gradients of filters over channels-last operands, and products whose first operand lies by columns: the plan.
 *
 * In: a contraction that sums over positions: A has neighbouring channels (rows of the result) at windows of the positions, B
 * neighbouring columns at the positions themselves, the result neighbouring columns. Out: a FilterPlan, or false. For each tap
 *   result[tap][channel][column] = sum over positions of A[position at the tap][channel] * B[position][column]
 * is a product with A by columns. Channels, columns and positions are cut into blocks that fit in the L2 cache (Georganas et
 * al., Anatomy of high-performance deep learning convolutions on SIMD architectures, SC 2018, section II.J). Where rows are
 * long, blocks of positions are rows of one image, and what they read of A is a strip that serves all taps. Where one row of
 * taps has few channels they count as channels of one tap. If there are fewer blocks than tasks are wanted, the positions are
 * divided as well, into a number of shares that follows from the shape, whose sums are added up in order. filter_run.c runs it;
 * where an error is allowed, winograd_filter.c divides the work otherwise. */
#include "filter.h"

enum { BLOCK_BYTES = 896 << 10, MOST_COLUMNS = 256, MOST_CHANNELS = 256, FEW_CHANNELS = 16 };
enum { CHUNK = 512 /* the most positions */, LONG_ROW = 28 };
enum { PAGE = 4096 /* bytes; what lies so far apart falls into one set of the L1 cache */ };

/* ---- which loops are what ---- */

/* The dimension of A that a loop over positions moves through. */
static bool axis_of(const Facts *f, int x, int pos, FilterAxis *r, bool *used) {
  for (int d = 0; d < f->n_dims[x]; d++) {
    const CDim *c = &f->dim[x][d];
    if (c->l[0] != pos && c->l[1] != pos) continue;
    int tap = c->l[0] == pos ? c->l[1] : c->l[0];
    if (tap >= 0 && f->loop[tap].class == LC_BATCH) tap = -1; /* where a group begins */
    if (used[d] || c->div != 1 || (tap >= 0 && f->loop[tap].class == LC_K)) return false;
    used[d] = true;
    *r = (FilterAxis){.pos = pos, .n = f->loop[pos].ext, .taps = 1, .at = c->off};
    r->step = dim_factor(c, pos);
    r->size = c->size;
    r->stride = c->stride;
    if (tap < 0) return true;
    r->taps = f->loop[tap].ext;
    r->tap_step = dim_factor(c, tap);
    r->c = f->loop[tap].s[2];
    return true;
  }
  return false;
}

/* Taps along w, as channels, are neighbours in A and in the result. */
static void fold_taps(FilterPlan *p) {
  p->fold = p->channels <= FEW_CHANNELS && p->w.taps > 1 && p->w.tap_step == 1 &&
            p->w.stride == p->channels && p->w.c == p->channels * p->c_row;
  if (p->fold) p->channels *= p->w.taps;
}

/* Positions are the summed loops: w, h and images from the innermost out, as B has them; the other loops of A are taps and
 * channels. */
static bool find(const Facts *f, int x, FilterPlan *p) {
  static const FilterAxis one = {.pos = -1, .n = 1, .taps = 1, .size = 1};
  bool used[KL_RANK] = {0};
  LoopList rest = {.total = 1}, k = loops_of(f, 1u << LC_K), channels = {.total = 1};
  *p = (FilterPlan){.a = x, .b = !x, .h = one, .w = one, .groups = loops_of(f, 1u << LC_BATCH)};
  p->images.total = 1;
  if (!f->plain[!x] || !k.n) return false;
  LoopList merged = merge_tail(f, k, !x, 1u << !x, &rest);
  if (rest.n) return false;
  p->positions = merged.total;
  p->b_pos = list_step(f, &merged, !x);
  if (!axis_of(f, x, merged.id[merged.n - 1], &p->w, used)) return false;
  if (merged.n > 1 && !axis_of(f, x, merged.id[merged.n - 2], &p->h, used)) return false;
  for (int i = 0; i + 2 < merged.n; i++) list_add(f, &p->images, merged.id[i]);
  for (int d = 0; d < f->n_dims[x]; d++)
    if (!used[d] && (f->dim[x][d].guard || f->dim[x][d].div > 1)) return false;
  LoopList rows = loops_of(f, 1u << (x ? LC_N : LC_M));
  for (int i = 0; i < rows.n; i++) {
    bool tap = false;
    for (int d = 0; d < f->n_dims[x]; d++)
      tap |= used[d] && (f->dim[x][d].l[0] == rows.id[i] || f->dim[x][d].l[1] == rows.id[i]);
    if (!tap) list_add(f, &channels, rows.id[i]);
  }
  channels = merge_tail(f, channels, x, 1u << x | 1u << 2, &rest);
  if (rest.n || (channels.total > 1 && list_step(f, &channels, x) != 1)) return false;
  LoopList columns =
      merge_tail(f, loops_of(f, 1u << (x ? LC_M : LC_N)), 2, 1u << 2 | 1u << !x, &rest);
  if (rest.n || list_step(f, &columns, 2) != 1 || list_step(f, &columns, !x) != 1) return false;
  p->channels = channels.total;
  p->columns = columns.total;
  p->c_row = channels.total > 1 ? list_step(f, &channels, 2) : columns.total;
  fold_taps(p);
  return true;
}

static bool worth(const Plan *plan, const FilterPlan *p) {
  enum { FLOPS = 4000000, LEAST_COLUMNS = 16, LEAST_ROWS = 8 };
  enum {
    LEAST_POSITIONS = 192,
    LEAST_AT_TAPS = 32
  }; /* what a product, or a gather, is better for */
  if (plan->facts.dtype != DT_FLOAT32 || p->columns < LEAST_COLUMNS || p->channels < LEAST_ROWS)
    return false;
  if (plan->no_blas || plan->way == WAY_FILTER) return true;
  bool taps = p->h.taps * p->w.taps > 1;
  return plan->facts.flops >= FLOPS && p->positions >= (taps ? LEAST_AT_TAPS : LEAST_POSITIONS);
}

/* ---- blocks, shares and tiles ---- */

static void cut_strips(FilterPlan *p) {
  p->lines = equal_blocks(p->h.n, CHUNK / p->w.n);
  p->chunk = (p->lines.size + (p->lines.more > 0)) * p->w.n;
  p->pixel = p->fold ? p->w.stride : p->rows.size + (p->rows.more > 0);
  p->strip_w = filter_reach(&p->w, p->w.n);
}

/* Into how many sums the positions are divided: few enough that writing and adding them does not count, of which there is
 * more where results of LARGE bytes leave the L2 cache. */
static int64_t shares_of(const Facts *f, const FilterPlan *p, int64_t want) {
  enum { LARGE = 256 << 10, LEAST_SHARE = 512 };
  int64_t n = div_up(want, p->rows.n * p->cols.n * p->groups.total);
  n = least(n, least(p->positions / LEAST_SHARE, MOST_SHARES));
  if (f->numel * f->size > LARGE) n = least(n, p->positions / (2 * LEAST_SHARE));
  return most(n / 2 * 2, 1);
}

/* Of one tap: so that a panel of B is as long as is best for products. With more taps packing B, and the strips, cost less in longer
 * blocks. */
static int64_t longest_chunk(int64_t taps, int64_t size) {
  enum { PANEL_COLUMNS = 64 };
  return taps > 1 ? CHUNK / 2 : tile_panel() / (PANEL_COLUMNS * size);
}

static void cut(const Facts *f, FilterPlan *p, int64_t most_rows, int64_t want) {
  int64_t taps = p->h.taps * (p->fold ? 1 : p->w.taps), widest;
  p->cols = equal_blocks(p->columns, MOST_COLUMNS);
  p->rows = equal_blocks(p->channels, taps > 1 ? most_rows / 2 : most_rows);
  widest = p->cols.size + p->rows.size + 2;
  p->chunk = least(longest_chunk(taps, f->size), p->positions);
  p->chunk = least(most(BLOCK_BYTES / (widest * f->size), 64), p->chunk);
  bool forwards = p->w.step > 0 && p->w.tap_step >= 0 && p->h.step >= 0 && p->h.tap_step >= 0;
  if (forwards && p->h.taps * p->w.taps > 1 && p->w.n >= LONG_ROW && p->w.n <= CHUNK) cut_strips(p);
  int64_t parts = p->lines.n ? p->lines.n * p->images.total : p->positions;
  p->share = equal_blocks(parts, div_up(parts, shares_of(f, p, want)));
  p->shares = p->share.n;
  if (p->lines.n) return;
  int64_t longest = p->share.size + (p->share.more > 0);
  p->chunk = div_up(longest, div_up(longest, p->chunk));
}

/* Channels in small blocks only where there would be too few tasks. */
static void divide(const Facts *f, FilterPlan *p) {
  enum { ENOUGH = 4, LEAST_CHANNELS = 64 };
  int64_t want = least(tasks_for(f->flops), MOST_SHARES), rows = MOST_CHANNELS;
  cut(f, p, rows, want);
  while (p->shares * p->rows.n * p->cols.n * p->groups.total < least(want, ENOUGH) &&
         p->rows.size >= LEAST_CHANNELS)
    cut(f, p, rows /= 2, want);
}

static bool choose_tile(const Facts *f, FilterPlan *p, const TileRow *only) {
  double least_cost = 0;
  TileRow best = {0};
  for (const TileRow *t = tile_table; t->isa != ISA_NONE; t++) {
    if (t->isa != tile_isa() || t->dtype != f->dtype || t->form != FORM_ROWS) continue;
    if (only && t != only) continue;
    Blocks r = row_blocks(p->rows.size + (p->rows.more > 0), t),
           v = vector_blocks(p->cols.size + (p->cols.more > 0), t);
    double c = 0;
    for (int i = 0; i < 4; i++) {
      double mr = (double)(r.size + (i & 1)), nv = (double)(v.size + i / 2);
      c += (double)(i & 1 ? r.more : r.n - r.more) * (double)(i / 2 ? v.more : v.n - v.more) *
           ((double)p->chunk * tile_cycles(mr, nv) + 2 * mr * nv + 30);
    }
    if (least_cost && c >= least_cost) continue;
    least_cost = c;
    best = *t;
  }
  p->tile = best;
  return least_cost > 0;
}

/* Is position p at p times the distance of neighbours along w, for all images? */
static bool is_plain(const Facts *f, const FilterPlan *p) {
  int64_t next = p->w.n * p->w.stride;
  if (p->h.taps * p->w.taps > 1 || p->fold || p->w.step != 1 || p->w.at) return false;
  if (p->h.n > 1 && (p->h.step != 1 || p->h.at || p->h.stride != next)) return false;
  next *= p->h.n;
  for (int i = p->images.n - 1; i >= 0; i--) {
    const CLoop *l = &f->loop[p->images.id[i]];
    if (l->s[p->a] != next) return false;
    next *= l->ext;
  }
  return true;
}

static void want_tiles(Arena *a, FilterPlan *p, int64_t rows, int64_t columns) {
  if (!rows || !columns) return;
  Blocks r = row_blocks(rows, &p->tile), v = vector_blocks(columns, &p->tile);
  for (int64_t i = 0; i < r.n; i += most(r.n - 1, 1))
    for (int64_t j = 0; j < v.n; j++) {
      MicroSpec s = {.dtype = p->tile.dtype, .lanes = p->tile.lanes};
      s.mr = (int)block_size(&r, i);
      s.nv = (int)block_size(&v, j);
      s.tail = (block_start(&v, j) + s.nv) * s.lanes > columns;
      s.more_lines = p->more_lines;
      p->fn[s.mr][s.nv][s.tail] = micro_want(a, &p->set, &s);
      if (i) continue;
      s.keep = p->keep;
      p->first[s.mr][s.nv][s.tail] = micro_want(a, &p->set, &s);
    }
}

/* Where the operands come from memory, the tiles of a block of positions fetch all of the next one. */
static void fetch_blocks(const Plan *plan, FilterPlan *p) {
  int64_t taps = p->h.taps * (p->fold ? 1 : p->w.taps), wide = p->rows.size + p->cols.size,
          tiles = row_blocks(p->rows.size, &p->tile).n * vector_blocks(p->cols.size, &p->tile).n;
  if (plan->frame.from_far[0] || plan->frame.from_far[1])
    p->more_lines = micro_more_lines(wide * FETCH_STEPS * plan->facts.size, taps * tiles);
}

/* ---- the plan ---- */

bool filter_plan(Arena *arena, Plan *plan) {
  const Facts *f = &plan->facts;
  FilterPlan p;
  if ((!find(f, 0, &p) || !worth(plan, &p)) && (!find(f, 1, &p) || !worth(plan, &p))) return false;
  bool computed = plan->frame.computed >= 0;
  if (computed && plan->frame.computed != p.a) return false;
  p.a_base = f->base[p.a] - p.w.at * p.w.stride - p.h.at * p.h.stride;
  p.b_base = f->base[p.b];
  bool fast = plan->conv_error >= SUM_ERROR && winograd_filter_plan(f, &p, tasks_for(f->flops));
  if (!fast) divide(f, &p);
  if (!choose_tile(f, &p, plan->only)) return false;
  if (!fast) fetch_blocks(plan, &p);
  p.a_plain = !fast && !computed && is_plain(f, &p) && p.w.stride * f->size < PAGE;
  bool in_place = p.a_plain && p.b_pos == p.cols.size; /* B has no gaps and serves one tap */
  p.keep = !fast && !in_place && (p.cols.n > 1 || vector_blocks(p.columns, &p.tile).n > 1);
  for (int i = 0; i < 2; i++)
    for (int j = 0; j < 2; j++)
      want_tiles(arena, &p,
                 i             ? p.rows.size
                 : p.rows.more ? p.rows.size + 1
                               : 0,
                 j             ? p.cols.size
                 : p.cols.more ? p.cols.size + 1
                               : 0);
  Work *w = &plan->work;
  int64_t columns =
      p.keep ? div_up(p.cols.size + (p.cols.more > 0), p.tile.lanes) * p.tile.lanes : 0;
  int64_t a = p.lines.n   ? filter_reach(&p.h, p.chunk / p.w.n) * p.strip_w * p.pixel
              : p.a_plain ? 0
                          : (p.rows.size + 1 + FILTER_APART) * p.chunk;
  w->scratch = (fast ? winograd_filter_scratch(&p) : columns * p.chunk + a) * f->size;
  w->fn[0] = fast ? winograd_filter_tasks : filter_tasks;
  w->n_tasks[0] = p.shares * p.cols.n * p.rows.n * p.groups.total;
  w->n_phases = 1;
  w->fused = w->n_tasks[0] == 1;
  if (p.shares > 1) add_shares(plan, p.shares);
  plan->filter = arena_dup(arena, &p, sizeof p);
  plan->set = &plan->filter->set;
  plan->tile = &plan->filter->tile;
  return true;
}

/* A, whose rows are those of the operand. */
bool filter_takes(const Plan *p, const Kernel *k, int x) {
  const FilterPlan *f = p->filter;
  const Node *n = k->core->in[x];
  return f->a == x && !f->fold && n->rank > 1 && f->w.stride == n->dims[n->rank - 1];
}

/* Groups are images, or parts of their rows. */
int64_t filter_items(const Plan *plan) {
  const FilterPlan *p = plan->filter;
  const Facts *f = &plan->facts;
  if (!p->groups.n || p->shares > 1 || plan->frame.epilogue) return 0;
  const CLoop *l = &f->loop[p->groups.id[0]];
  return l->s[2] * l->ext == f->numel ? l->ext : 0;
}

bool filter_rows(const Plan *plan, const Kernel *k, TaskRows *to) {
  const FilterPlan *p = plan->filter;
  const CLoop *l = p->groups.n == 2 ? &plan->facts.loop[p->groups.id[1]] : NULL;
  if (!l || l->ext != k->ext[1] || l->s[2] * l->ext * k->ext[0] != plan->facts.numel) return false;
  for (int64_t t = 0; t < p->rows.n * p->cols.n * l->ext; t++) {
    int32_t row = (int32_t)(t / (p->rows.n * p->cols.n));
    to[t] = (TaskRows){row, row + 1};
  }
  return true;
}
