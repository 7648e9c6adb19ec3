/* Products in groups of few channels. In: a contraction one of whose batch loops steps through both operands from one run of
 * neighbouring elements to the next one, as groups of a convolution do; out: a plan whose blocks have several groups, or none.
 *
 * Runs of a group that are not multiples of a sector share sectors with those of its neighbours, which blocks of one group would
 * read, and write in part, again and again. Here a block has as many groups as make whole sectors, or all of them. Both operands
 * are read as panels (panel.c), in which the groups lie side by side as in memory. The tiles made of them hold one group after the
 * other; each warp multiplies those of one group. Results go back as rows of all groups of the block.
 *   pixel   what of memory is between neighbours of all other loops: the runs of all groups. A panel holds those of the block,
 *           so far apart that neighbours along the runs and pixels are in different banks. */
#include "gemm.h"

enum { MOST_GROUPS = 8, MOST_COLUMNS = 32, ROWS = 32 /* of a warp */, BANKS = 32 };

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

/* Does the side's operand consist of pixels? *side: what lies in them. */
static bool find_pixels(Gen *g, CudaGemm *p, int s, const CudaTarget *t) {
  const Node *c = p->core;
  CudaSide *side = &p->side[s];
  const Node *in = c->in[side->x];
  if (kernel_input(g->k, in) < 0 || in->dtype != DT_FLOAT32 || cuda_side_divides(c, side->x))
    return false;
  CudaMoves own = cuda_side_moves(c, side->x, &side->axes),
            sum = cuda_side_moves(c, side->x, &p->k),
            batch = cuda_side_moves(c, side->x, &p->batch);
  side->k_major = run_of(&sum) > 1;
  int64_t unit = run_of(side->k_major ? &sum : &own), all = unit * c->ext[p->group];
  side->panel = (CudaPanel){.unit = unit, .all = all};
  side->stored = true;
  side->direct = t->sm >= 80;
  side->vec = 1;
  side->run = CUDA_STEP;
  side->per = CUDA_SECTOR / 4;
  return unit > 1 && cuda_side_move(c, side->x, p->group) == unit &&
         cuda_side_fixed(c, side->x) % all == 0 && by_pixels(&own, side->k_major ? 1 : unit, all) &&
         by_pixels(&sum, side->k_major ? unit : 1, all) && by_pixels(&batch, 1, all);
}

/* Are so many neighbours along runs, of which each begins a pixel, in different banks? */
static bool apart(int64_t unit, int64_t pixel, int lanes) {
  for (int64_t first = 0; first < unit; first++) {
    uint32_t used = 0;
    for (int64_t i = first; i < first + lanes; i++) {
      uint32_t bank = UINT32_C(1) << (i / unit * pixel + i % unit) % BANKS;
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
    for (panel->pixel = panel->wide; panel->pixel <= most; panel->pixel++)
      if (apart(panel->unit, panel->pixel, panel->lanes)) return;
}

/* Would blocks of n groups have sectors of their own? */
static bool are_whole(const CudaGemm *p, int64_t n) {
  const CudaPanel *a = &p->side[0].panel, *b = &p->side[1].panel;
  int64_t all = p->core->ext[p->group], columns = p->side[1].axes.total;
  if (n == all) return true;
  return (a->unit * n | b->unit * n | columns * n | a->all | b->all | columns * all) % 8 == 0;
}

static void plan_tile(Gen *g, CudaGemm *p, int columns) {
  CudaTiling *tile = arena_new_of(g->a, CudaTiling);
  int n = p->groups;
  *tile = (CudaTiling){.math = CUDA_F32,
                       .type = DT_FLOAT32,
                       .bm = ROWS * n,
                       .bn = columns * n,
                       .warps_m = n,
                       .warps_n = n,
                       .stages = 2,
                       .parts = 1,
                       .rate = 40};
  p->tile = tile;
  p->threads = ROWS * n;
  p->rows = ROWS;
  p->width = (int)p->side[1].axes.total * n;
  p->side[0].tile = tile->bm;
  p->side[1].tile = tile->bn;
  p->side[0].blocks = div_up(p->side[0].axes.total, ROWS);
  p->side[1].blocks = p->core->ext[p->group] / n;
}

/* Panels for so many groups, if they fit. */
static bool try_groups(Gen *g, CudaGemm *p, int columns, int64_t room) {
  plan_tile(g, p, columns);
  for (int s = 0; s < 2; s++)
    room -= p->tile->stages * cuda_side_rows(p, s) * cuda_side_pitch(p, s);
  for (int s = 0; s < 2; s++) {
    place_pixels(p, s);
    if (!cuda_panel_groups(p, s, room)) return false;
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

/* As many groups as fit, of whole sectors if possible. */
static bool choose_groups(Gen *g, CudaGemm *p, const CudaTarget *t) {
  int64_t all = p->core->ext[p->group], n = p->side[1].axes.total, room = cuda_shared_most(t) / 4;
  int columns = n <= 8 ? 8 : n <= 16 ? 16 : MOST_COLUMNS;
  for (int whole = 1; whole >= 0; whole--)
    for (p->groups = MOST_GROUPS; p->groups > 1; p->groups--)
      if (all % p->groups == 0 && (!whole || are_whole(p, p->groups)) &&
          try_groups(g, p, columns, room))
        return true;
  return false;
}

/* Do groups share sectors, and are elements not copied by fours, which is faster? Of tiles of 16 columns there are none else. */
static bool is_odd(const CudaGemm *p) {
  int64_t n = p->side[1].axes.total, all = n | p->side[0].panel.unit | p->side[1].panel.unit;
  return all % 8 && (all % 4 || (n > 8 && n <= 16));
}

bool cuda_groups_plan(Gen *g, CudaGemm *p, const CudaTarget *t, int64_t bytes) {
  CudaGemm was = *p;
  int64_t n = p->side[1].axes.total;
  bool fits = n > 1 && n <= MOST_COLUMNS && p->core->dtype == DT_FLOAT32;
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
  bool splits = !p->side[0].k_major && !p->side[1].k_major;
  p->splits = splits ? cuda_most_splits(p->side[0].blocks * p->side[1].blocks * p->batch.total,
                                        p->steps, bytes)
                     : 1;
  p->per = div_up(p->steps, p->splits);
  p->splits = div_up(p->steps, p->per);
  return true;
}
