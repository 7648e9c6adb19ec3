/* Panels: operands of products as they lie in memory, see backends/cuda/panel.c. In: a side of a product that has one; out: the
 * copies from global memory, aligned to sectors, and reads of elements by the loops of the product. */
#include "cuda_gemm.h"

static Val add(Gen *g, Val x, Val y) {
  gen_at_vals(g, 2, (Val[]){x, y});
  return LLVMBuildNSWAdd(g->b, x, y, "");
}

static Val sub(Gen *g, Val x, Val y) {
  gen_at_vals(g, 2, (Val[]){x, y});
  return LLVMBuildNSWSub(g->b, x, y, "");
}

static Val less(Gen *g, Val x, Val y) { return gen_compare(g, LLVMIntSLT, x, y); }
static Val equal(Gen *g, Val x, Val y) { return gen_compare(g, LLVMIntEQ, x, y); }

/* v in lo..hi-1. */
static Aff variable(Gen *g, Val v, int64_t lo, int64_t hi) {
  gen_at(g, gen_depth(g, v));
  v = gen_min(g, v, gen_i64(g, hi - 1));
  return aff_var(gen_var(g, v, lo, hi - 1), 1);
}

/* Loops of axes one by one, outermost first; those of one iteration are left out. */
typedef struct Loops {
  int n, at[KL_LOOPS];
  int64_t total;
} Loops;

static Loops loops_of(const Gemm *m, const CudaAxes *axes) {
  Loops r = {.total = 1};
  for (int a = 0; a < axes->n; a++)
    for (int l = axes->axis[a].first; l <= axes->axis[a].last; l++)
      if (m->p->core->ext[l] > 1) r.at[r.n++] = l, r.total *= m->p->core->ext[l];
  return r;
}

static const CudaAxes *along(const Gemm *m, int s) {
  return m->p->side[s].k_major ? &m->p->k : &m->p->side[s].axes;
}

static const CudaAxes *across(const Gemm *m, int s) {
  return m->p->side[s].k_major ? &m->p->side[s].axes : &m->p->k;
}

/* The row-major index of the loops of axes. */
static Aff merged(Gemm *m, const CudaAxes *axes, const Index *ix) {
  Aff at = aff_k(0);
  for (int a = 0; a < axes->n; a++) {
    at = aff_mul(at, axes->axis[a].ext);
    at = aff_add(m->g, &at, &ix->d[axes->axis[a].first]);
  }
  return at;
}

typedef enum Space { MEMORY, AREA /* of a panel: pixels lie side by side */ } Space;

/* Elements that the loops from..n-1 at their row-major index `at` move the operand by. */
static Val moved(Gemm *m, int s, const Loops *l, int from, Aff at, Space in) {
  Gen *g = m->g;
  const CudaPanel *panel = &m->p->side[s].panel;
  Val sum = gen_i64(g, 0);
  for (int i = l->n - 1; i >= from; i--) {
    Aff here = at;
    int64_t by = cuda_side_move(m->p->core, m->p->side[s].x, l->at[i]);
    if (in == AREA && panel->unit && by % panel->all == 0)
      by = by / (panel->all * panel->every) * panel->pixel;
    if (i > from) aff_divmod(g, &at, m->p->core->ext[l->at[i]], &at, &here);
    here = aff_mul(here, by);
    sum = add(g, sum, aff_value(g, &here));
  }
  return sum;
}

/* Where element `in` of a run lies in it. */
static Val in_run(Gemm *m, int s, Aff in) {
  const CudaPanel *panel = &m->p->side[s].panel;
  if (panel->gap || panel->turned || panel->unit) {
    Loops runs = loops_of(m, along(m, s));
    Val at = moved(m, s, &runs, panel->inner, in, AREA);
    return panel->back ? add(m->g, at, gen_i64(m->g, panel->back)) : at;
  }
  in = aff_mul(in, panel->sign);
  if (panel->sign < 0) in.k += panel->span - 1;
  return aff_value(m->g, &in);
}

/* The first row or column of the block, in groups. */
static Aff first_own(Gemm *m, int s) {
  bool whole = m->p->groups > 1 && s == 1;
  return whole ? aff_k(0) : aff_mul(m->block[s], cuda_side_held(m->p, s));
}

/* What the panel of a step holds: positions low..high across, the first piece, the first run. */
typedef struct Extent {
  Aff low, high, piece, run;
  Aff start; /* place of the first position in its piece */
} Extent;

static Extent extent_of(Gemm *m, int s, const Step *t, const Aff *chunk) {
  Gen *g = m->g;
  const CudaSide *side = &m->p->side[s];
  Extent e = {.run = aff_mul(*chunk, side->panel.runs)};
  Aff own = first_own(m, s), rest;
  if (side->k_major) {
    Aff last = aff_k(cuda_side_held(m->p, s) - 1);
    last = aff_add(g, &own, &last);
    e.low = own;
    int64_t lo, hi;
    aff_range(g, &last, &lo, &hi);
    e.high = hi < side->axes.total ? last : variable(g, aff_value(g, &last), lo, side->axes.total);
  } else {
    for (int i = 0; i < 2; i++) {
      Index ix = {.rank = m->p->core->n_loops};
      Val ok = NULL;
      Aff kk = aff_k(i ? CUDA_STEP - 1 : 0);
      gemm_place_sums(m, &t->t, &kk, 1, &ix, &ok);
      *(i ? &e.high : &e.low) = merged(m, &m->p->k, &ix);
    }
    aff_divmod(g, &own, side->panel.span, &e.run, &rest); /* groups have the same runs */
  }
  aff_divmod(g, &e.low, side->panel.per, &e.piece, &e.start);
  return e;
}

/* Where the n-th step's panel, or chunk n, lies in shared memory. */
static Val panel_base(Gemm *m, int s, Val n) {
  Gen *g = m->g;
  const CudaPanel *panel = &m->p->side[s].panel;
  Val at = gen_i64(g, cuda_panel_at(m->p, s));
  if (panel->slots == 1) return at;
  gen_at(g, gen_depth(g, n));
  Val slot = LLVMBuildAnd(g->b, n, gen_i64(g, panel->slots - 1), "");
  slot = LLVMBuildNSWMul(g->b, slot, gen_i64(g, panel->size / panel->slots), "");
  return LLVMBuildNSWAdd(g->b, slot, at, "");
}

/* The operand's element where a run of a piece starts, of the first group. */
static Val area_start(Gemm *m, int s, Aff run, Aff piece) {
  Gen *g = m->g;
  const Node *c = m->p->core;
  const CudaSide *side = &m->p->side[s];
  int64_t fixed = 0, stride = 1;
  for (int d = c->in [side->x]->rank - 1; d >= 0; stride *= c->in[side->x]->dims[d--])
    fixed += c->map[side->x][d].off * stride;
  Loops runs = loops_of(m, along(m, s)), pieces = loops_of(m, across(m, s)),
        batch = loops_of(m, &m->p->batch);
  Index ix = {.rank = c->n_loops};
  gemm_place(g, &m->p->batch, m->batch, &ix);
  Val at = add(g, gen_i64(g, fixed), moved(m, s, &runs, 0, aff_mul(run, side->panel.span), MEMORY));
  at = add(g, at, moved(m, s, &pieces, 0, aff_mul(piece, side->panel.per), MEMORY));
  Aff group = aff_mul(m->block[1], side->panel.wide);
  at = add(g, at, aff_value(g, &group));
  return add(g, at, moved(m, s, &batch, 0, merged(m, &m->p->batch, &ix), MEMORY));
}

/* Of a run's element `i` of its area: is it of the block's part of the sum? */
static Val in_part(Gemm *m, const CudaPanel *panel, Val run, Val i, Val use) {
  Gen *g = m->g;
  gen_at_vals(g, 3, (Val[]){run, m->first, m->count});
  Val lo = LLVMBuildNSWMul(g->b, m->first, gen_i64(g, CUDA_STEP), "");
  lo = LLVMBuildNSWSub(g->b, lo, LLVMBuildNSWMul(g->b, run, gen_i64(g, panel->span), ""), "");
  Val hi = LLVMBuildNSWMul(g->b, m->count, gen_i64(g, CUDA_STEP), "");
  hi = LLVMBuildNSWAdd(g->b, lo, hi, "");
  use = gen_and(g, use, less(g, lo, gen_i64(g, panel->span)));
  use = gen_and(g, use, less(g, gen_i64(g, 0), hi));
  if (!panel->row) return use;
  gen_at(g, gen_depth(g, i));
  i = LLVMBuildTrunc(g->b, i, g->i32, "");
  i = LLVMBuildURem(g->b, i, LLVMConstInt(g->i32, (uint64_t)panel->row, 0), "");
  i = LLVMBuildZExt(g->b, i, g->i64, "");
  use = gen_and(g, use, less(g, sub(g, lo, gen_i64(g, 1)), i));
  return gen_and(g, use, less(g, i, hi));
}

/* Are pixels copied one by one? */
static bool by_pixels(const CudaPanel *panel) {
  return panel->unit &&
         (panel->wide < panel->all || panel->pixel > panel->wide || panel->every > 1);
}

/* Do pixels begin anywhere in a sector? */
static bool begin_anywhere(const CudaSide *side) {
  return side->panel.wide % side->per || side->panel.all % side->per;
}

/* Lanes for n elements that begin anywhere in a sector, whole requests. */
static int64_t lanes_of(const CudaSide *side, int64_t n) {
  return ((n + side->per - 1) / side->vec + 31) / 32 * 32;
}

/* Lanes of n elements, whole passes over the banks. */
static int64_t whole_passes(const CudaSide *side, int64_t n) {
  return (n + 31) / 32 * 32 / side->vec;
}

static int64_t pixel_lanes(const CudaSide *side) {
  const CudaPanel *panel = &side->panel;
  if (begin_anywhere(side)) return lanes_of(side, panel->wide);
  return panel->pixel > panel->wide ? whole_passes(side, panel->wide) : panel->wide / side->vec;
}

static int64_t area_lanes(const CudaSide *side) {
  const CudaPanel *panel = &side->panel;
  if (!by_pixels(panel)) return lanes_of(side, panel->length);
  int64_t n = (panel->length + panel->pixel - 1) / panel->pixel * pixel_lanes(side);
  return whole_passes(side, n * side->vec);
}

/* What a lane copies: elements from i on of an area that starts at `start` in memory. */
static Val lane_element(Gemm *m, int s, const Aff *lane, Val start, Val *i, Val *use) {
  Gen *g = m->g;
  const CudaSide *side = &m->p->side[s];
  const CudaPanel *panel = &side->panel;
  Aff pixel, in, to, from;
  if (!by_pixels(panel)) {
    in = aff_mul(*lane, side->vec);
    *i = sub(g, aff_value(g, &in), gen_and(g, start, gen_i64(g, side->per - 1)));
    return add(g, start, *i);
  }
  aff_divmod(g, lane, pixel_lanes(side), &pixel, &in);
  to = aff_mul(pixel, panel->pixel);
  from = aff_mul(pixel, panel->all * panel->every);
  in = aff_mul(in, side->vec);
  start = add(g, start, aff_value(g, &from));
  Val place = aff_value(g, &in);
  if (begin_anywhere(side)) {
    place = sub(g, place, gen_and(g, start, gen_i64(g, side->per - 1)));
    *use = gen_and(g, *use, less(g, gen_i64(g, -1), place));
  }
  *use = gen_and(g, *use, less(g, place, gen_i64(g, panel->wide)));
  *i = add(g, aff_value(g, &to), place);
  return add(g, start, place);
}

/* What of a run is the tile's: elements first to end of it, for the first position of a piece. Returns whether there are any;
 * NULL: there are. */
static Val own_elements(Gemm *m, int s, Aff run, Val *first, Val *end) {
  Gen *g = m->g;
  const CudaSide *side = &m->p->side[s];
  const CudaPanel *panel = &side->panel;
  Val zero = gen_i64(g, 0);
  *first = zero;
  *end = gen_i64(g, panel->reach - panel->gap);
  if (side->k_major) return NULL;
  Aff own = first_own(m, s), before = aff_mul(run, panel->span);
  Val lo = sub(g, aff_value(g, &own), aff_value(g, &before));
  Val hi = add(g, lo, gen_i64(g, cuda_side_held(m->p, s)));
  Val any = less(g, zero, hi);
  if (panel->unit) return any;
  gen_at(g, gen_depth(g, lo));
  *first = in_run(m, s, variable(g, gen_max(g, lo, zero), 0, panel->span));
  Val most = sub(g, hi, gen_i64(g, 1));
  gen_at(g, gen_depth(g, most));
  *end = in_run(m, s, variable(g, gen_max(g, most, zero), 0, panel->span));
  *end = add(g, *end, gen_i64(g, 1));
  return any;
}

/* Copies a step's panel, or the panel of a chunk of the sum. */
static void copy_panel(Gemm *m, int s, const Step *t, Aff chunk) {
  Gen *g = m->g;
  const CudaSide *side = &m->p->side[s];
  const CudaPanel *panel = &side->panel;
  Node *in = m->p->core->in[side->x];
  int64_t width = area_lanes(side), all = panel->runs * panel->pieces * width;
  int64_t rounds = (all + m->p->threads - 1) / m->p->threads;
  Loops runs = loops_of(m, along(m, s)), places = loops_of(m, across(m, s));
  int64_t n_runs = runs.total / panel->span, n_pieces = places.total / panel->per;
  Extent e = extent_of(m, s, t, &chunk);
  Val base = panel_base(m, s, side->k_major ? aff_value(g, &chunk) : t->n);
  int var;
  Loop loop = loop_open(g, gen_i64(g, 0), gen_i64(g, rounds), gen_i64(g, 1), 0, rounds - 1, &var);
  Aff at = aff_var(var, m->p->threads), area, j, run, piece, q, last;
  at = aff_add(g, &at, &m->tid);
  Val use = less(g, aff_value(g, &at), gen_i64(g, all));
  aff_divmod(g, &at, width, &area, &j);
  aff_divmod(g, &area, panel->runs, &piece, &run);
  run = aff_add(g, &run, &e.run);
  piece = aff_add(g, &piece, &e.piece);
  /* positions of this piece: place from..to in it */
  aff_divmod(g, &e.high, panel->per, &q, &last);
  Val here = aff_value(g, &piece), zero = gen_i64(g, 0);
  use = gen_and(g, use, less(g, here, add(g, aff_value(g, &q), gen_i64(g, 1))));
  Val from = gen_select(g, equal(g, here, aff_value(g, &e.piece)), aff_value(g, &e.start), zero);
  Val to = gen_select(g, equal(g, here, aff_value(g, &q)), aff_value(g, &last),
                      gen_i64(g, panel->per - 1));
  Aff lowest = variable(g, from, 0, panel->per), highest = variable(g, to, 0, panel->per);
  Val low = moved(m, s, &places, panel->outer, lowest, AREA);
  Val high = moved(m, s, &places, panel->outer, highest, AREA);
  use = gen_and(g, use, less(g, aff_value(g, &run), gen_i64(g, n_runs)));
  run = variable(g, aff_value(g, &run), 0, n_runs);
  piece = variable(g, here, 0, n_pieces);
  Val start =
          add(g, area_start(m, s, run, piece), moved(m, s, &places, panel->outer, lowest, MEMORY)),
      i;
  if (panel->back) start = sub(g, start, gen_i64(g, panel->back));
  Val element = lane_element(m, s, &j, start, &i, &use);
  Val first, end;
  use = gen_and(g, use, own_elements(m, s, run, &first, &end));
  end = add(g, end, sub(g, high, low));
  use = gen_and(g, use, less(g, sub(g, first, gen_i64(g, 1)), i));
  use = gen_and(g, use, less(g, i, end));
  use = gen_and(g, use, less(g, gen_i64(g, -1), element));
  use = gen_and(g, use, less(g, element, gen_i64(g, node_numel(in))));
  if (t) use = gen_and(g, use, t->inside);
  if (m->p->splits > 1 && panel->chunk) use = in_part(m, panel, aff_value(g, &run), i, use);
  Aff out = aff_mul(area, panel->pitch);
  Val target = add(g, add(g, base, aff_value(g, &out)), i);
  gen_at(g, g->depth);
  Val source = LLVMBuildInBoundsGEP2(g->b, mem_type(g, in->dtype), g->bufs[gen_info(g, in)->input],
                                     &element, 1, "");
  gemm_move(m, s, side->vec, gemm_shared(m, target), source, NULL, use);
  gemm_moved(m);
  loop_close(g, &loop, LOOP_PLAIN);
}

void gemm_panel_start(Gemm *m, int s) {
  const CudaPanel *panel = &m->p->side[s].panel;
  Aff first = aff_mul(m->split, m->p->per * CUDA_STEP), chunk, rest;
  aff_divmod(m->g, &first, panel->chunk, &chunk, &rest);
  copy_panel(m, s, NULL, chunk);
}

void gemm_panel_copy(Gemm *m, int s, const Step *t, bool first) {
  Gen *g = m->g;
  const CudaSide *side = &m->p->side[s];
  if (!side->k_major) {
    copy_panel(m, s, t, aff_k(0));
    return;
  }
  Aff last = aff_mul(t->t, CUDA_STEP), chunk, rest;
  last.k += CUDA_STEP - 1;
  aff_divmod(g, &last, side->panel.chunk, &chunk, &rest);
  Val starts = less(g, aff_value(g, &rest), gen_i64(g, first ? CUDA_STEP - 1 : CUDA_STEP));
  Loop inside = cuda_if(g, gen_and(g, starts, t->inside));
  copy_panel(m, s, t, chunk);
  loop_close(g, &inside, LOOP_PLAIN);
}

/* Where the loops' group lies in its pixel. */
static Val in_pixel(Gemm *m, const CudaPanel *panel, const Index *loops) {
  Aff first = aff_mul(m->block[1], -m->p->groups);
  Aff group = aff_add(m->g, &loops->d[m->p->group], &first);
  group = aff_mul(group, panel->unit);
  return aff_value(m->g, &group);
}

void gemm_panel_read(Gemm *m, int s, const Step *t, const Index *loops, Val ok, Val *v) {
  Gen *g = m->g;
  const CudaPanel *panel = &m->p->side[s].panel;
  Loops places = loops_of(m, across(m, s));
  Aff run_at = merged(m, along(m, s), loops), place_at = merged(m, across(m, s), loops), run, in,
      rest, piece, place, chunk = aff_k(0);
  aff_divmod(g, &run_at, panel->span, &run, &in);
  if (panel->chunk && !cuda_panel_whole(m->p, s)) aff_divmod(g, &run, panel->runs, &chunk, &rest);
  Extent e = extent_of(m, s, t, &chunk);
  aff_divmod(g, &place_at, panel->per, &piece, &place);
  Val first_piece = sub(g, aff_value(g, &piece), aff_value(g, &e.piece));
  Val start = moved(m, s, &places, panel->outer, e.start, AREA);
  if (places.total > panel->per)
    start = gen_select(g, equal(g, first_piece, gen_i64(g, 0)), start, gen_i64(g, 0));
  gen_at(g, gen_depth(g, first_piece));
  Val area = LLVMBuildNSWMul(g->b, first_piece, gen_i64(g, panel->runs), "");
  area = add(g, area, sub(g, aff_value(g, &run), aff_value(g, &e.run)));
  gen_at(g, gen_depth(g, area));
  area = LLVMBuildNSWMul(g->b, area, gen_i64(g, panel->pitch), "");
  Val at = add(g, moved(m, s, &places, panel->outer, place, AREA), in_run(m, s, in));
  if (panel->unit) at = add(g, at, in_pixel(m, panel, loops));
  at = add(g, sub(g, at, start), area);
  at = add(g, at, panel_base(m, s, panel->chunk ? aff_value(g, &chunk) : t->n));
  gen_at(g, g->depth);
  Val from = gemm_shared(m, at);
  int tile = m->p->side[s].k_major ? CUDA_STEP : m->p->side[s].tile;
  bool split = 32 % tile && tile % 32; /* warps begin anywhere in a row of the tile */
  int phases = split ? 32 / tile + 2 : 32 / panel->lanes, vec = m->p->side[s].vec;
  Aff phase;
  aff_divmod(g, &m->tid, (split ? tile : panel->lanes) / vec, &phase, &rest);
  aff_divmod(g, &phase, phases, &rest, &phase);
  gemm_load(m, from, &phase, phases, ok, vec, v);
}
