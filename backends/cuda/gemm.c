/* Contractions as tiled matrix products (implicit GEMM). In: a K_CONTRACT kernel; out: a plan.
 *
 * Every loop is classed by the tensors that it moves through: M (first operand and result), N (second and result), batch (both
 * and the result, or the result alone), K (summed). Matrix products with any transposes, all three passes of convolution and
 * attention differ in the AffDims of their operands alone, which the generator evaluates at (batch, m, k) and (batch, n, k). The
 * operand whose class holds the result's innermost loop is N, so that rows of results are contiguous. The sum is split in a
 * fixed order where the result has too few tiles for a machine; the parts lie in the workspace.
 * Bank conflicts: rows in shared memory are as long as the reads of a warp demand, see cuda_side_pitch. */
#include "gemm.h"
#include <stdlib.h>

static const CudaTiling tilings[] = {
#define TILE(math, type, ...) {CUDA_##math, DT_##type, __VA_ARGS__},
#include "tiles.def"
#undef TILE
};
enum { N_TILINGS = sizeof tilings / sizeof *tilings, PROCESSORS = 132, NEAR = 8 };

/* ---- classes ---- */

typedef enum LoopKind { BATCH, SIDE_0, SIDE_1, SUM } LoopKind;

static bool reads(const Node *c, int x, int l) {
  for (int d = 0; d < c->in[x]->rank; d++) {
    const AffDim *m = &c->map[x][d];
    if ((m->l0 == l && m->c0) || (m->l1 == l && m->c1)) return true;
  }
  return false;
}

static LoopKind kind_of(const Node *c, int l) {
  if (l >= c->rank) return SUM;
  bool a = reads(c, 0, l), b = reads(c, 1, l);
  return a == b ? BATCH : a ? SIDE_0 : SIDE_1;
}

/* May loops d and d+1 be one axis? Of the result: where everything after the product reads them as one. */
static bool joins(Gen *g, const CudaGemm *p, int d) {
  const Node *c = p->core;
  if (p->step[d] != 1 || p->step[d + 1] != 1) return false;
  if (d + 1 >= c->rank) {
    for (int x = 0; x < 2; x++)
      if (!can_merge_map(g, c->in[x], c->map[x], c->n_loops, c->ext, d)) return false;
    return true;
  }
  for (int o = 0; o < g->k->outputs.n; o++)
    if (!can_merge(g, g->k->outputs.v[o], d)) return false;
  return true;
}

static CudaAxes axes_of(Gen *g, const CudaGemm *p, LoopKind kind) {
  const Node *c = p->core;
  CudaAxes r = {.total = 1};
  int l = 0;
  while (l < c->n_loops) {
    Axis a = {l, l, c->ext[l]};
    if (kind_of(c, l++) != kind || a.ext == 1) continue;
    for (; l < c->n_loops && l != c->rank && kind_of(c, l) == kind && c->ext[l] > 1 &&
           joins(g, p, l - 1);
         l++) {
      a.ext *= c->ext[l];
      a.last = l;
    }
    r.axis[r.n++] = a;
    r.total *= a.ext;
  }
  return r;
}

/* ---- operands ---- */

/* Is the dimension read at just this loop? */
static bool is_loop(const Node *c, const AffDim *m, int l) {
  int other = m->l0 == l ? m->l1 : m->l0;
  bool moves = other >= 0 && other != l && c->ext[other] > 1 && cuda_map_factor(m, other);
  return m->div == 1 && m->off == 0 && cuda_map_factor(m, l) == 1 && !moves;
}

/* Is the operand's last dimension just this loop, all of it? */
static bool contiguous(const Node *c, int x, int l) {
  int d = c->in[x]->rank - 1;
  while (d > 0 && c->in[x]->dims[d] == 1) d--;
  if (d < 0 || !is_loop(c, &c->map[x][d], l) || c->in[x]->dims[d] != c->ext[l]) return false;
  while (d-- > 0)
    if (cuda_map_factor(&c->map[x][d], l)) return false;
  return true;
}

/* The summed axis that an operand is contiguous along comes last; that of the second operand if they differ. */
static void order_sums(const Node *c, CudaAxes *k) {
  for (int x = 0; x < 2; x++)
    for (int i = 0; i + 1 < k->n; i++)
      if (contiguous(c, x, k->axis[i].last)) {
        Axis a = k->axis[i];
        for (; i + 1 < k->n; i++) k->axis[i] = k->axis[i + 1];
        k->axis[i] = a;
      }
}

/* The innermost loop; -1: there is none. */
static int last_loop(const CudaAxes *a) { return a->n ? a->axis[a->n - 1].last : -1; }

/* Elements of the operand between neighbours along a loop; 0: unknown. */
static int64_t distance(const Node *c, int x, int l) {
  int64_t sum = 0, stride = 1;
  for (int d = c->in[x]->rank - 1; d >= 0; stride *= c->in[x]->dims[d--]) {
    if (cuda_map_factor(&c->map[x][d], l) && c->map[x][d].div != 1) return 0;
    sum += cuda_map_factor(&c->map[x][d], l) * stride;
  }
  return llabs(sum);
}

/* Windows of neighbouring positions overlap in memory: threads copy a block of a few elements along K of a few rows that has no
 * gaps, rather than long runs of few rows. */
static int near_run(const CudaGemm *p, int s, int64_t k, int64_t row) {
  bool banks = cuda_side_pitch(p, s) % 16 == 4; /* eight rows of 4 are in different ones */
  if (banks && ((k == 1 && row > 0 && row <= 4) || (row == 1 && k > 0 && k <= NEAR))) return 4;
  return s == 0 && k == 1 && row > 0 && row <= NEAR ? 8 : CUDA_STEP;
}

/* Do rows of the operand, along `along`, start anywhere in a sector of `per` elements? */
static bool starts_anywhere(const Node *c, int x, int along, int per) {
  for (int l = 0; l < c->n_loops; l++)
    if (l != along && c->ext[l] > 1 && distance(c, x, l) % per) return true;
  return false;
}

/* Rows along K are copied from the first sector that starts in a step to that of the next one, so one step's copies end in the
 * next one's memory: rows of one axis only, whose place in a sector is the same in all steps. */
static int shift_of(const CudaGemm *p, const CudaSide *s, int along) {
  int per = 32 / dtype_info[p->tile->type].size;
  bool fits = s->k_major ? p->k.n == 1 && s->run == CUDA_STEP : p->k.n == 1;
  return s->async && fits && starts_anywhere(p->core, s->x, along, per) ? per : 0;
}

static void plan_side(Gen *g, CudaGemm *p, int s, const CudaTarget *t) {
  const Node *c = p->core;
  CudaSide *side = &p->side[s];
  const Node *in = c->in[side->x];
  int each = 16 / dtype_info[p->tile->type].size;
  int own = last_loop(&side->axes), sum = last_loop(&p->k);
  bool along_own = own >= 0 && contiguous(c, side->x, own), along_sum = contiguous(c, side->x, sum);
  side->stored = kernel_input(g->k, in) >= 0 && dtype_is_float(in->dtype);
  side->per = CUDA_SECTOR / dtype_info[in->dtype].size;
  bool same = side->stored && in->dtype == p->tile->type;
  side->tile = s ? p->tile->bn : p->tile->bm;
  side->blocks = div_up(side->axes.total, side->tile);
  side->k_major = !along_own;
  side->vec = 1;
  if (same && (along_own || along_sum) && c->ext[along_own ? own : sum] % each == 0 &&
      CUDA_STEP * side->tile / each >= 32 * p->tile->warps_m * p->tile->warps_n)
    side->vec = each;
  side->async = side->direct = same && t->sm >= 80;
  side->run = CUDA_STEP;
  if (side->k_major && side->vec == 1 && each == 4 && own >= 0 && side->tile >= CUDA_NARROW)
    side->run = near_run(p, s, distance(c, side->x, sum), distance(c, side->x, own));
  if (along_own || along_sum) side->shift = shift_of(p, side, along_own ? own : sum);
}

int64_t cuda_shared_most(const CudaTarget *t) { return (t->sm >= 80 ? 99 : 64) * 1024; }

/* Rows that start anywhere in a sector come from panels, where shared memory has room for them. */
static void plan_panels(CudaGemm *p, const CudaTarget *t) {
  int64_t room = cuda_shared_most(t) / dtype_info[p->tile->type].size;
  for (int s = 0; s < 2; s++)
    room -= p->tile->stages * cuda_side_rows(p, s) * cuda_side_pitch(p, s);
  for (int s = 0; s < 2; s++) {
    CudaSide *side = &p->side[s];
    const CudaAxes *along = side->k_major ? &p->k : &side->axes;
    if (!side->stored) continue;
    if (!along->n || !starts_anywhere(p->core, side->x, last_loop(along), side->per)) continue;
    if (!cuda_panel_plan(p, s, room)) continue;
    room -= side->panel.size;
    side->async = false;
    side->vec = 1;
    side->shift = 0;
    side->run = CUDA_STEP;
  }
}

/* Copies along K that end in the next step's memory need a stage more than those that do not. */
static void plan_stages(Gen *g, CudaGemm *p, const CudaTarget *t) {
  bool over = false;
  for (int s = 0; s < 2; s++)
    over |= p->side[s].k_major && (p->side[s].shift || p->side[s].lines.on);
  if (over && p->tile->stages == 2) {
    CudaTiling *more = arena_dup(g->a, p->tile, sizeof *p->tile);
    more->stages = t->sm >= 80 ? 4 : 3;
    p->tile = more;
  }
  p->ahead = p->tile->stages - 1 - over;
}

/* ---- tiles ---- */

CudaMath cuda_gemm_math(DType t, const CudaTarget *target) {
  if (target->sm < 80 || t == DT_FLOAT64) return CUDA_F32;
  if (t == DT_BFLOAT16) return CUDA_BF16; /* these products are exact */
  return t == DT_FLOAT16 ? CUDA_TF32 : target->math;
}

int64_t cuda_most_splits(int64_t blocks, int64_t steps, int64_t bytes) {
  enum { LEAST_STEPS = 8, MOST_SPLITS = 64, MOST_BYTES = 256 << 20 };
  int64_t n = blocks < PROCESSORS ? 2 * PROCESSORS / blocks : 1;
  if (n > steps / LEAST_STEPS) n = steps / LEAST_STEPS;
  if (n > MOST_SPLITS) n = MOST_SPLITS;
  if (bytes > MOST_BYTES / (n > 0 ? n : 1)) n = MOST_BYTES / bytes;
  return n < 1 ? 1 : n;
}

/* Cycles of a tiling: the products of the busiest processor, which alone with a block waits for memory, and the parts of split
 * sums, written and read again behind another launch. Rates lie between those of exact and tf32. */
static double cycles(const CudaGemm *p, const CudaTiling *r, int64_t blocks, int64_t splits,
                     int64_t bytes) {
  const double products = 256, memory = 1900 /* bytes */, launch = 2000, alone = 0.75;
  int64_t waves = div_up(blocks * splits, PROCESSORS);
  double each = (double)div_up(p->steps, splits) * CUDA_STEP * r->bm * r->bn * 100 / r->rate;
  double sum = (double)waves * each / products / (waves > 1 ? 1 : alone);
  return splits == 1 ? sum : sum + launch + 2 * (double)splits * (double)bytes / memory;
}

/* Narrow tiles are for sides that they hold as a whole. */
static bool fits(const CudaGemm *p, const CudaTiling *r) {
  return (r->bm >= CUDA_NARROW || p->side[0].axes.total <= r->bm) &&
         (r->bn >= CUDA_NARROW || p->side[1].axes.total <= r->bn);
}

/* The fastest, by shape alone; narrow ones are exact in all arithmetics. */
static void choose_tile(CudaGemm *p, DType t, int64_t bytes, const CudaTarget *target) {
  DType type = t == DT_FLOAT64 ? t : DT_FLOAT32;
  double best = 0;
  const CudaTiling *shape = NULL;
  p->steps = div_up(p->k.total, CUDA_STEP);
  for (int i = 0; i < N_TILINGS; i++) {
    const CudaTiling *r = &tilings[i];
    if (r->type != type || r->math != CUDA_F32 || !fits(p, r)) continue;
    int64_t blocks = div_up(p->side[0].axes.total, r->bm) * div_up(p->side[1].axes.total, r->bn);
    blocks *= p->batch.total;
    for (int64_t n = cuda_most_splits(blocks, p->steps, bytes); n > 0; n--) {
      double cost = cycles(p, r, blocks, n, bytes);
      if (shape && cost >= best) continue;
      best = cost;
      shape = r;
      p->splits = n;
    }
  }
  p->tile = shape;
  for (int i = N_TILINGS - 1; i >= 0; i--) {
    const CudaTiling *r = &tilings[i];
    if (r->type == type && r->math == cuda_gemm_math(t, target) && r->bm == shape->bm &&
        r->bn == shape->bn)
      p->tile = r;
  }
  p->per = div_up(p->steps, p->splits);
  p->splits = div_up(p->steps, p->per);
}

/* Lines take registers for what is read, where there is no cp.async, and in large tiles elements that are read one by one do for
 * their addresses: the row of the same size with more threads, if there is one. */
static void choose_threads(CudaGemm *p) {
  const CudaTiling *r = p->tile, *more = r + 1;
  bool single = false, held = false;
  for (int s = 0; s < 2; s++) {
    single |= p->side[s].vec == 1;
    held |= p->side[s].lines.on && !p->side[s].direct;
  }
  if ((held || (single && r->bm * r->bn > 64 * 64)) && more < tilings + N_TILINGS &&
      more->math == r->math && more->type == r->type && more->bm == r->bm && more->bn == r->bn)
    p->tile = more;
  p->threads = 32 * p->tile->warps_m * p->tile->warps_n;
}

/* Reads of a warp, in 4-byte banks, rows of 16 + pad elements along K:
 *   F32   16 bytes by 8 threads of consecutive rows: the pitch in 16 bytes is odd (20 floats, 18 doubles)
 *   TF32  4 bytes at row g, column t of 8 x 4 threads: 20 g + t covers all banks; rows of M: 8 t + g
 *   BF16  8 bytes at row g, columns 2t, of half a warp: 24 g + 2 t; rows of M: 4 bytes at row 2t: 8 t + g */
int cuda_side_pitch(const CudaGemm *p, int side) {
  static const int by_k[] = {[CUDA_F32] = 4, [CUDA_TF32] = 4, [CUDA_BF16] = 8},
                   by_mn[] = {[CUDA_F32] = 4, [CUDA_TF32] = 8, [CUDA_BF16] = 4};
  const CudaSide *s = &p->side[side];
  int pad = (s->k_major ? by_k : by_mn)[p->tile->math];
  if (!s->k_major && s->tile % CUDA_NARROW) pad = 0; /* copies are of several rows */
  return (s->k_major ? CUDA_STEP : s->tile) + (p->tile->type == DT_FLOAT64 ? pad / 2 : pad);
}

int64_t cuda_result_pitch(const CudaGemm *p) {
  return p->tile->bn + (p->tile->math == CUDA_F32 ? 16 / dtype_info[p->tile->type].size : 8);
}

int cuda_side_rows(const CudaGemm *p, int side) {
  return p->side[side].k_major ? p->side[side].tile : CUDA_STEP;
}

int cuda_near_rows(const CudaGemm *p, int side) {
  return cuda_side_pitch(p, side) % 16 == 8 ? 1 : 2; /* banks 0, 8, 16, 24 in some order */
}

int64_t cuda_panel_at(const CudaGemm *p, int side) {
  int64_t first = p->side[0].panel.size;
  if (p->groups > 1) first = div_up(first, 4) * 4; /* elements may be copied by fours */
  return p->stage_size * p->tile->stages + (side ? first : 0);
}

int64_t cuda_lines_at(const CudaGemm *p, int side) {
  return cuda_panel_at(p, 1) + p->side[1].panel.size + (side ? cuda_lines_size(p, 0) : 0);
}

int64_t cuda_gemm_part(const CudaGemm *p) { return div_up(node_numel(p->core), 8) * 8; }

int64_t cuda_gemm_shared(const CudaGemm *p) {
  int64_t in = cuda_lines_at(p, 1) + cuda_lines_size(p, 1),
          out = cuda_result_pitch(p) * p->rows / p->tile->parts;
  return (in > out ? in : out) * dtype_info[p->tile->type].size;
}

/* Does everything behind the product move by one element, or not at all, along this loop of the result? */
static bool reads_neighbours(Gen *g, int loop) {
  CudaAccesses all = {0};
  Nest t;
  nest_plan(g, 0, &t);
  cuda_accesses(g, &t, &all);
  for (int i = 0; i < all.n; i++)
    if (!all.v[i].known || (all.v[i].step[loop] != 0 && all.v[i].step[loop] != 1)) return false;
  return true;
}

/* Rows of odd length: which threads store what. */
static void plan_results(CudaGemm *p) {
  const Node *c = p->core;
  int64_t dense = 1, stride = 1;
  int64_t other = p->columns.total - p->width; /* columns of another tile */
  bool near = other < (p->groups > 1 ? 1 : CUDA_SECTOR / dtype_info[p->tile->type].size - 1);
  bool flat = near && p->side[0].run != 8, every = true;
  int shares = p->tile->bm / p->tile->warps_m / 8 / p->tile->parts; /* rows of a thread */
  int each = 16 / dtype_info[p->tile->type].size;
  flat &= p->side[0].k_major || p->tile->math != CUDA_F32 || shares % each == 0;
  for (int l = 0; l < c->rank; l++) every &= p->step[l] == 1;
  for (int s = 1; s >= 0; s--) {
    const CudaAxes *axes = s ? &p->columns : &p->side[s].axes;
    for (int a = axes->n - 1; a >= 0; a--)
      for (int l = axes->axis[a].last; l >= axes->axis[a].first; l--) {
        stride = 1;
        for (int d = l + 1; d < c->rank; d++) stride *= c->dims[d];
        flat &= c->ext[l] == 1 || stride == dense;
        dense *= c->ext[l];
      }
  }
  bool ends = p->columns.total % 8 || (p->groups > 1 && p->width % 8);
  if (ends && (p->groups > 1 || (flat && every))) p->vec = 1;
  p->flat = p->vec == 1 && every && flat;
  p->turn = p->vec == 1 && every && !flat;
}

/* Does a batch loop step through an operand one by one, as channels of depthwise convolutions do? */
static bool batch_inside(const CudaGemm *p) {
  const Node *c = p->core;
  for (int a = 0; a < p->batch.n; a++)
    for (int l = p->batch.axis[a].first; l <= p->batch.axis[a].last; l++)
      for (int x = 0; x < 2; x++)
        if (c->ext[l] > 1 && distance(c, x, l) == 1) return true;
  return false;
}

/* Windows: a dimension that two loops move. */
static bool has_windows(const Node *c) {
  for (int x = 0; x < 2; x++)
    for (int d = 0; d < c->in[x]->rank; d++) {
      const AffDim *m = &c->map[x][d];
      if (m->div != 1) return true;
      if (m->l0 >= 0 && m->l1 >= 0 && c->ext[m->l0] > 1 && c->ext[m->l1] > 1) return true;
    }
  return false;
}

/* Are there rows, columns and terms enough for tiles? One row or column is, where no batch needs many of them. Where batches lie
 * within one another, as with several filters of each channel, a tile of few columns would read an element of each sector. */
static bool is_product(const CudaGemm *p, bool whole) {
  enum { FEW = 64, COLUMNS = 8 };
  int64_t rows = p->side[0].axes.total, columns = p->side[1].axes.total;
  bool thin = rows < 2 || columns < 2;
  if (p->k.n == 0 || (whole && p->k.total < 2) || (rows < 2 && columns < 2)) return false;
  if (cuda_reads_nothing(p->core)) return true;
  if (rows * columns < FEW && p->k.total <= KL_SMALL_REDUCE) return false;
  bool few = rows < COLUMNS || columns < COLUMNS;
  if (p->batch.total > 1 && few && batch_inside(p)) return false;
  if (p->batch.total > 1 && (thin || rows * columns < FEW)) return !has_windows(p->core);
  return true;
}

/* What lines copy for the next step, up to a sector, lies in other banks than the step, also where the last of three stages is
 * followed by the first: 20, 20 and 24 of 32 further, which leaves room for 8. */
static void pad_stages(CudaGemm *p) {
  int banks = 128 / dtype_info[p->tile->type].size;
  int apart = p->tile->stages == 3 ? banks * 5 / 8 : banks / 2;
  for (int s = 0; s < 2; s++)
    if (p->side[s].lines.on && p->side[s].k_major)
      p->stage_size += (banks + apart - p->stage_size % banks) % banks;
}

/* Lines take more stages, and tables, beside panels that were planned without. */
static bool lines_fit(Gen *g, CudaGemm p, const CudaTarget *t) {
  plan_stages(g, &p, t);
  p.rows = 0; /* the results take this place later */
  for (int s = 0; s < 2; s++) p.stage_size += cuda_side_rows(&p, s) * cuda_side_pitch(&p, s);
  pad_stages(&p);
  return cuda_gemm_shared(&p) <= cuda_shared_most(t);
}

CudaGemm *cuda_gemm_plan(Gen *g, const CudaTarget *t, int class) {
  CudaGemm *p = arena_new_of(g->a, CudaGemm);
  p->groups = 1;
  const Node *c = p->core = cuda_class_core(g, class, p);
  bool whole = c == g->k->core;
  c = p->core = cuda_forward_core(g, c);
  if (!dtype_is_float(c->dtype) || node_numel(c) == 0) return NULL;
  for (int x = 0; x < 2; x++) p->side[x] = (CudaSide){.x = x, .axes = axes_of(g, p, SIDE_0 + x)};
  p->batch = axes_of(g, p, BATCH);
  p->k = axes_of(g, p, SUM);
  if (!is_product(p, whole)) return NULL;
  int last = c->rank - 1;
  while (c->ext[last] == 1) last--;
  if (kind_of(c, last) == SIDE_0 || p->side[1].axes.n == 0) {
    CudaSide m = p->side[0];
    p->side[0] = p->side[1];
    p->side[1] = m;
  }
  order_sums(c, &p->k);
  /* classes leave their sums whole */
  int64_t bytes = whole ? node_numel(c) * dtype_info[c->dtype].size : INT64_MAX;
  if (!cuda_groups_plan(g, p, t, bytes)) {
    choose_tile(p, c->dtype, bytes, t);
    for (int s = 0; s < 2; s++) plan_side(g, p, s, t);
    plan_panels(p, t);
    CudaGemm without = *p;
    cuda_lines_plan(p);
    if (!lines_fit(g, *p, t)) *p = without;
    choose_threads(p);
    p->columns = p->side[1].axes;
    p->rows = p->tile->bm;
    p->width = p->tile->bn;
  }
  plan_stages(g, p, t);
  const Axis *col = &p->columns.axis[p->columns.n - 1];
  p->even = p->k.axis[p->k.n - 1].ext % CUDA_STEP == 0;
  p->vec = col->last != last || p->step[last] != 1 || col->ext % 4 ? 1
           : p->tile->type == DT_FLOAT64                           ? 2
                                                                   : 4;
  plan_results(p);
  p->pack = p->vec > 1 && reads_neighbours(g, last);
  for (int s = 0; s < 2; s++) p->stage_size += cuda_side_rows(p, s) * cuda_side_pitch(p, s);
  pad_stages(p);
  return p;
}
