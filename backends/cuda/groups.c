/* Products in groups of few channels. In: a contraction one of whose batch loops steps through both operands from one run of
 * neighbouring elements to the next one, as groups of a convolution do; out: a plan whose blocks have several groups, or none.
 *
 * Runs of a group that are not multiples of a sector share sectors with those of its neighbours, which blocks of one group would
 * read, and write in part, again and again. Here a block has as many groups as make whole sectors, or all of them. Both operands
 * are read as panels (panel.c), in which the groups lie side by side as in memory. The tiles made of them hold one group after the
 * other; each warp multiplies those of one group. Results go back as rows of all groups of the block.
 *   pixel   what of memory is between neighbours of all other loops: the runs of all groups. A panel holds those of the block,
 *           so far apart that neighbours along the runs and pixels are in different banks, and of the pixels those that
 *           positions and taps step to. */
#include "gemm.h"

enum {
  MOST_GROUPS = 16,
  LEAST_COLUMNS = 8,
  MOST_COLUMNS = 64,
  ROWS = 64 /* of a warp */,
  FEW_ROWS = 32,
  BANKS = 32
};

/* Contiguous elements along the loops. */
static int64_t run_of(const CudaMoves *m) {
  int64_t n = 1;
  for (int i = m->n; i > 0 && m->by[i - 1] == n; i--) n *= m->ext[i - 1];
  return n;
}

/* Do all loops but those of n contiguous elements go by pixels? */
static bool by_pixels(const CudaMoves *m, int64_t n, int64_t all) {
  for (int i = 0; i < m->n; i++)
    if (m->by[i] % all) n /= m->ext[i];
  return n == 1;
}

/* Runs have the taps side by side if positions fill what is between them. Areas hold the pixels that positions and taps step to. */
static void find_steps(const CudaMoves *along, const CudaMoves *across, CudaPanel *to) {
  enum { MOST = 8 /* positions between taps */ };
  int i = along->n;
  for (to->span = 1; to->span < to->unit;) to->span *= along->ext[--i];
  int64_t row = across->n ? across->by[across->n - 1] / to->all : 1;
  int64_t tap = i ? along->by[i - 1] / to->all : 0;
  to->every = row;
  to->hop = 1;
  if (tap > 0 && tap <= MOST * row) {
    to->every = common_factor(tap, row);
    to->hop = tap / to->every;
    for (; i > 0 && along->by[i - 1] == tap * to->all * (to->span / to->unit); i--)
      to->span *= along->ext[i - 1];
  }
  to->inner = i;
}

/* Does the side's operand consist of pixels? *side: what lies in them. */
static bool find_pixels(Gen *g, CudaGemm *p, int s, const CudaTarget *t) {
  const Node *c = p->core;
  CudaSide *side = &p->side[s];
  const Node *in = c->in[side->x];
  if (kernel_input(g->k, in) < 0 || in->dtype != c->dtype || cuda_side_divides(c, side->x))
    return false;
  CudaMoves own = cuda_side_moves(c, side->x, &side->axes),
            sum = cuda_side_moves(c, side->x, &p->k),
            batch = cuda_side_moves(c, side->x, &p->batch);
  side->k_major = run_of(&sum) > 1;
  int64_t unit = run_of(side->k_major ? &sum : &own), all = unit * c->ext[p->group];
  side->panel = (CudaPanel){.unit = unit, .all = all};
  side->stored = true;
  side->direct = t->sm >= 80 && in->dtype == DT_FLOAT32;
  side->vec = (side->k_major ? unit | p->k.axis[p->k.n - 1].ext : unit) % 4 ? 1 : 4;
  side->run = CUDA_STEP;
  side->per = CUDA_SECTOR / dtype_info[in->dtype].size;
  if (unit < 2 || cuda_side_move(c, side->x, p->group) != unit ||
      cuda_side_fixed(c, side->x) % all || !by_pixels(&own, side->k_major ? 1 : unit, all) ||
      !by_pixels(&sum, side->k_major ? unit : 1, all) || !by_pixels(&batch, 1, all))
    return false;
  find_steps(side->k_major ? &sum : &own, side->k_major ? &own : &sum, &side->panel);
  return side->panel.every > 0;
}

/* Are so many neighbours along runs, taps one after the other, in different banks? */
static bool apart(const CudaPanel *panel, int vec, int lanes) {
  int64_t unit = panel->unit, tap = panel->hop * panel->pixel;
  for (int64_t first = 0; first < unit; first += vec) {
    uint32_t used = 0;
    for (int64_t i = first; i < first + lanes; i++) {
      uint32_t bank = UINT32_C(1) << (i / unit * tap + i % unit) % BANKS;
      if (used & bank) return false;
      used |= bank;
    }
  }
  return true;
}

/* Whole pixels that begin anywhere in a sector are copied as they are, side by side; others may be a few elements apart. */
static void place_pixels(CudaGemm *p, int s) {
  CudaSide *side = &p->side[s];
  CudaPanel *panel = &side->panel;
  panel->wide = panel->pixel = p->groups * panel->unit;
  bool dense = panel->wide == panel->all && panel->all % side->per;
  int64_t most = panel->wide + (dense ? 0 : panel->wide / 4);
  panel->lanes = cuda_panel_lanes(p, s);
  if (s == 1 && !side->k_major) return; /* a pixel */
  for (;; panel->lanes /= 2)
    for (panel->pixel = panel->wide; panel->pixel <= most; panel->pixel += side->vec)
      if (apart(panel, side->vec, panel->lanes)) return;
}

/* Would blocks of n groups have sectors of their own? */
static bool are_whole(const CudaGemm *p, int64_t n) {
  const CudaPanel *a = &p->side[0].panel, *b = &p->side[1].panel;
  int64_t all = p->core->ext[p->group], columns = p->side[1].axes.total;
  if (n == all) return true;
  int64_t ends = a->unit * n | b->unit * n | columns * n | a->all | b->all | columns * all;
  return ends % p->side[0].per == 0;
}

static void plan_tile(Gen *g, CudaGemm *p, const CudaTarget *t, int columns) {
  CudaTiling *tile = arena_new_of(g->a, CudaTiling);
  int n = p->groups;
  bool narrow = columns < CUDA_NARROW;
  *tile = (CudaTiling){.math = narrow ? CUDA_F32 : cuda_gemm_math(p->core->dtype, t),
                       .type = DT_FLOAT32,
                       .bm = p->rows * n,
                       .bn = columns * n,
                       .warps_m = n,
                       .warps_n = n,
                       .stages = 2,
                       .parts = 1,
                       .rate = 40};
  p->tile = tile;
  p->threads = 32 * n;
  p->width = (int)p->side[1].axes.total * n;
  p->side[0].tile = tile->bm;
  p->side[1].tile = tile->bn;
  p->side[0].blocks = div_up(p->side[0].axes.total, p->rows);
  p->side[1].blocks = p->core->ext[p->group] / n;
}

/* Panels for so many groups, if they fit. */
static bool try_groups(Gen *g, CudaGemm *p, const CudaTarget *t, int columns, bool chunks) {
  int64_t room = cuda_shared_most(t) / 4 - 4;
  plan_tile(g, p, t, columns);
  if (p->rows * cuda_result_pitch(p) > room) return false;
  for (int s = 0; s < 2; s++)
    room -= p->tile->stages * cuda_side_rows(p, s) * cuda_side_pitch(p, s);
  for (int s = 0; s < 2; s++) {
    place_pixels(p, s);
    if (!cuda_panel_groups(p, s, chunks, room)) return false;
    room -= p->side[s].panel.size;
  }
  return true;
}

/* The batch loop that is alone in its axis and steps through runs; it is taken out of the batch. */
static bool take_loop(Gen *g, CudaGemm *p, const CudaTarget *t) {
  CudaAxes batch = p->batch;
  for (int a = 0; a < batch.n; a++) {
    const Axis *x = &batch.axis[a];
    if (x->first != x->last) continue;
    p->batch = (CudaAxes){.total = batch.total / x->ext};
    for (int b = 0; b < batch.n; b++)
      if (b != a) p->batch.axis[p->batch.n++] = batch.axis[b];
    p->group = x->first;
    if (find_pixels(g, p, 0, t) && find_pixels(g, p, 1, t)) return true;
  }
  p->batch = batch;
  return false;
}

static bool sums_across(const CudaGemm *p) { return !p->side[0].k_major && !p->side[1].k_major; }

static bool is_single(const CudaGemm *p) { return p->side[0].vec == 1 || p->side[1].vec == 1; }

/* Do panels of several groups take fewer instructions than rows of one group take time for the sectors that groups share? Sums
 * across both operands, as of a filter's gradient, copy and read both panels in each step: by fours, for few products or those of
 * tensor cores. Elements one by one are too many in wide tiles. */
static bool pays(const CudaGemm *p, const CudaTarget *t, int columns) {
  bool exact = columns < CUDA_NARROW || cuda_gemm_math(p->core->dtype, t) == CUDA_F32;
  if (sums_across(p)) return !is_single(p) && (columns == LEAST_COLUMNS || !exact);
  return !is_single(p) || columns < CUDA_NARROW;
}

/* As many groups as fit, of whole sectors if possible; rather than fewer rows of a warp, which sums across both operands do not
 * take, or panels of a part of the sum. Elements go one by one to rows of a power of two of groups: others keep registers in
 * memory, as each row has a place of its own in its group. */
static bool choose_groups(Gen *g, CudaGemm *p, const CudaTarget *t) {
  int64_t all = p->core->ext[p->group], n = p->side[1].axes.total;
  int columns = LEAST_COLUMNS;
  while (columns < n) columns *= 2;
  if (!pays(p, t, columns)) return false;
  bool few = p->side[0].axes.total <= FEW_ROWS || columns > CUDA_NARROW;
  for (int way = 0; way < 8; way++) {
    p->rows = way & 1 || way > 3 ? FEW_ROWS : ROWS;
    if (few ? p->rows == ROWS : p->rows == FEW_ROWS && sums_across(p)) continue;
    for (int i = 2; i <= MOST_GROUPS; i++) {
      p->groups = way > 3 ? MOST_GROUPS + 2 - i : i;
      if (is_single(p) && (p->groups & (p->groups - 1))) continue;
      if (all % p->groups == 0 && (way > 3 || are_whole(p, p->groups)) &&
          try_groups(g, p, t, columns, way & 2))
        return true;
    }
  }
  return false;
}

/* Do groups share sectors? */
static bool is_odd(const CudaGemm *p) {
  const CudaSide *a = &p->side[0], *b = &p->side[1];
  return (b->axes.total | a->panel.unit | b->panel.unit) % a->per;
}

bool cuda_groups_plan(Gen *g, CudaGemm *p, const CudaTarget *t, int64_t bytes) {
  CudaGemm was = *p;
  int64_t n = p->side[1].axes.total;
  bool fits = n > 1 && n <= MOST_COLUMNS && p->core->dtype != DT_FLOAT64;
  if (!fits || !take_loop(g, p, t)) return false;
  if (!is_odd(p) || !choose_groups(g, p, t)) {
    *p = was;
    return false;
  }
  int64_t all = p->core->ext[p->group];
  p->columns = (CudaAxes){.n = 1, .axis = {{p->group, p->group, all}}, .total = all * n};
  for (int a = 0; a < p->side[1].axes.n; a++)
    p->columns.axis[p->columns.n++] = p->side[1].axes.axis[a];
  p->steps = div_up(p->k.total, CUDA_STEP);
  p->splits = sums_across(p)
                  ? cuda_most_splits(p->side[0].blocks * p->side[1].blocks * p->batch.total,
                                     p->steps, bytes)
                  : 1;
  p->per = div_up(p->steps, p->splits);
  p->splits = div_up(p->steps, p->per);
  return true;
}
