/* Tiles that are read line by line, cut where sectors are, see backends/cuda/lines.c. In: a side of a product that is; out: the
 * table of its rows (columns), and the copies of a step.
 *
 *   along K      eight lanes of 16 bytes, or a warp, have the step's part of a line and what may be copied of the next step's
 *   along rows   a warp has a part of the line of one summed index, and what may be copied of the next part
 * An element is copied if the first of its sector is in the part; which that is follows from its address. */
#include "cuda_gemm.h"

enum { LANES = 32 };

/* Lanes of a row along K: a power of two that have a step and what follows it in its last sector. */
static int lanes_of(const CudaSide *side) {
  int n = 1;
  while (n * side->vec < CUDA_STEP + side->per - side->vec) n *= 2;
  return n;
}

/* Elements of a part along rows. */
static int own_of(const CudaSide *side) { return LANES - side->per + 1; }

static Val i32(Gen *g, int64_t v) { return LLVMConstInt(g->i32, (uint64_t)v, 1); }

static Val narrow(Gen *g, Val v) {
  gen_at(g, gen_depth(g, v));
  return LLVMBuildTrunc(g->b, v, g->i32, "");
}

static Val add(Gen *g, Val x, Val y) {
  gen_at_vals(g, 2, (Val[]){x, y});
  return LLVMBuildAdd(g->b, x, y, "");
}

static Val least(Gen *g, Val x, Val y) {
  return gen_select(g, gen_compare(g, LLVMIntSLT, x, y), x, y);
}

/* What some loops add to the place of an element and to the indices that are checked; i32. */
typedef struct Part {
  Val at, check[CUDA_LINE_CHECKS];
} Part;

static int64_t factor(const AffDim *d, int l) {
  return (d->l0 == l ? d->c0 : 0) + (d->l1 == l ? d->c1 : 0);
}

/* Loops of axes at their merged index. */
static Part part_of(Gemm *m, int s, const CudaAxes *axes, Aff at) {
  Gen *g = m->g;
  const Node *c = m->p->core;
  const CudaSide *side = &m->p->side[s];
  Part r = {.at = gen_i64(g, 0)};
  for (int i = 0; i < side->lines.checks; i++) r.check[i] = gen_i64(g, 0);
  int64_t left = axes->total;
  for (int a = axes->n - 1; a >= 0; a--)
    for (int l = axes->axis[a].last; l >= axes->axis[a].first; l--) {
      Aff here = at;
      if (c->ext[l] == 1) continue;
      left /= c->ext[l];
      if (left > 1) aff_divmod(g, &at, c->ext[l], &at, &here);
      Aff by = aff_mul(here, cuda_side_move(c, side->x, l));
      r.at = add(g, r.at, aff_value(g, &by));
      for (int i = 0; i < side->lines.checks; i++) {
        by = aff_mul(here, factor(&c->map[side->x][side->lines.check[i]], l));
        r.check[i] = add(g, r.check[i], aff_value(g, &by));
      }
    }
  r.at = narrow(g, r.at);
  for (int i = 0; i < side->lines.checks; i++) r.check[i] = narrow(g, r.check[i]);
  return r;
}

static Part sum_of(Gemm *m, int s, Part x, const Part *y) {
  x.at = add(m->g, x.at, y->at);
  for (int i = 0; i < m->p->side[s].lines.checks; i++)
    x.check[i] = add(m->g, x.check[i], y->check[i]);
  return x;
}

/* ---- the table: column 0 places, then what is checked, then the place in the run ---- */

static Val table_at(Gemm *m, int s, int column, Val row) {
  Gen *g = m->g;
  int64_t first = cuda_lines_at(m->p, s) * dtype_info[m->p->tile->type].size / 4 +
                  (int64_t)column * m->p->side[s].tile;
  gen_at(g, g->depth);
  row = LLVMBuildAdd(g->b, row, gen_i64(g, first), "");
  return LLVMBuildInBoundsGEP2(g->b, g->i32, m->memory, &row, 1, "");
}

void gemm_lines_start(Gemm *m, int s) {
  Gen *g = m->g;
  const CudaSide *side = &m->p->side[s];
  const CudaLines *lines = &side->lines;
  const Node *c = m->p->core;
  int64_t rounds = (side->tile + m->p->threads - 1) / m->p->threads;
  int var;
  Val ok = NULL;
  Part fixed = part_of(m, s, &m->p->batch, m->batch);
  fixed.at = add(g, fixed.at, i32(g, cuda_side_fixed(c, side->x)));
  for (int i = 0; i < lines->checks; i++)
    fixed.check[i] = add(g, fixed.check[i], i32(g, c->map[side->x][lines->check[i]].off));
  Loop loop = loop_open(g, gen_i64(g, 0), gen_i64(g, rounds), gen_i64(g, 1), 0, rounds - 1, &var);
  Aff row = aff_var(var, m->p->threads), own = aff_mul(m->block[s], side->tile), run, in;
  row = aff_add(g, &row, &m->tid);
  Val at = aff_value(g, &row);
  Loop inside = cuda_if(g, gen_compare(g, LLVMIntSLT, at, gen_i64(g, side->tile)));
  own = aff_add(g, &own, &row);
  own = gemm_keep(g, &own, side->axes.total, 1, &ok);
  Part part = part_of(m, s, &side->axes, own);
  part = sum_of(m, s, part, &fixed);
  aff_divmod(g, &own, lines->span, &run, &in);
  Val place = narrow(g, aff_value(g, &in));
  gen_at(g, g->depth);
  LLVMBuildStore(g->b, part.at, table_at(m, s, 0, at));
  for (int i = 0; i < lines->checks; i++)
    LLVMBuildStore(g->b, part.check[i], table_at(m, s, 1 + i, at));
  LLVMBuildStore(g->b, place, table_at(m, s, 1 + lines->checks, at));
  loop_close(g, &inside, LOOP_PLAIN);
  loop_close(g, &loop, LOOP_PLAIN);
}

static Val from_table(Gemm *m, int s, int column, Val row) {
  Val at = table_at(m, s, column, row);
  return LLVMBuildLoad2(m->g->b, m->g->i32, at, "");
}

static Part row_of(Gemm *m, int s, Val row) {
  Part r = {.at = from_table(m, s, 0, row)};
  for (int i = 0; i < m->p->side[s].lines.checks; i++) r.check[i] = from_table(m, s, 1 + i, row);
  return r;
}

/* ---- copies ---- */

/* Elements of the run before this one in its sector, at most `most`. */
static Val before(Gemm *m, int s, Val at, Val most) {
  Gen *g = m->g;
  int64_t by = m->p->side[s].lines.by;
  gen_at(g, g->depth);
  if (by < 0) at = LLVMBuildNot(g->b, at, "");
  Val in = LLVMBuildAnd(g->b, at, i32(g, m->p->side[s].per - 1), "");
  if (by != 1) in = LLVMBuildUDiv(g->b, in, i32(g, by < 0 ? -by : by), "");
  return least(g, in, most);
}

/* The element at `part` goes to `to` if `use` holds; 0 where it is outside or `ok` does not hold. */
static void copy(Gemm *m, int s, const Part *part, Val to, Val ok, Val use) {
  Gen *g = m->g;
  const CudaSide *side = &m->p->side[s];
  Node *in = m->p->core->in[side->x];
  for (int i = 0; i < side->lines.checks; i++)
    ok =
        gen_and(g, ok,
                gen_compare(g, LLVMIntULT, part->check[i], i32(g, in->dims[side->lines.check[i]])));
  gen_at(g, g->depth);
  Val at = LLVMBuildSExt(g->b, part->at, g->i64, "");
  Val from = LLVMBuildInBoundsGEP2(g->b, mem_type(g, in->dtype), g->bufs[gen_info(g, in)->input],
                                   &at, 1, "");
  gemm_move(m, s, side->vec, gemm_shared(m, to), from, ok, use);
}

/* Rows or columns of the tile from `row` on that there are; NULL: all. */
static Val rows_inside(Gemm *m, int s, Val row) {
  Gen *g = m->g;
  const CudaSide *side = &m->p->side[s];
  Val ok = NULL;
  Aff first = aff_mul(m->block[s], side->tile);
  if (side->axes.total % side->tile)
    ok =
        gen_compare(g, LLVMIntSLT, add(g, aff_value(g, &first), row), gen_i64(g, side->axes.total));
  return ok;
}

static void copy_along_sum(Gemm *m, int s, const Step *t, Val stage, Val next) {
  Gen *g = m->g;
  const CudaSide *side = &m->p->side[s];
  const CudaLines *lines = &side->lines;
  int lanes = lanes_of(side), rows = m->p->threads / lanes;
  Aff row0, lane, e = aff_mul(t->t, CUDA_STEP), early, run, in;
  aff_divmod(g, &m->tid, lanes, &row0, &lane);
  early = aff_mul(lane, side->vec);
  e = aff_add(g, &e, &early);
  /* what may be copied at all: of the block's part of the sum */
  Val at = aff_value(g, &early), now = gen_compare(g, LLVMIntSLT, at, gen_i64(g, CUDA_STEP)),
      ok = NULL;
  Val use = gen_and(g, t->inside, gen_select(g, now, t->inside, t->next));
  use = gen_and(g, use, gen_compare(g, LLVMIntSLT, at, gen_i64(g, CUDA_STEP + side->per)));
  e = gemm_keep(g, &e, m->p->k.total, side->vec, &ok);
  Part sum = part_of(m, s, &m->p->k, e);
  aff_divmod(g, &e, lines->span, &run, &in);
  gen_at(g, gen_depth(g, t->n));
  Val since = LLVMBuildMul(g->b, t->n, gen_i64(g, CUDA_STEP), "");
  Val most = least(g, aff_value(g, &in), add(g, since, at));
  if (ok) most = gen_select(g, ok, most, gen_i64(g, 0));
  most = narrow(g, most);
  Val base = gen_select(g, now, stage, next);
  gen_at_vals(g, 2, (Val[]){base, at});
  Val limit = LLVMBuildAnd(g->b, at, gen_i64(g, CUDA_STEP - 1), "");
  base = add(g, base, limit);
  limit = narrow(g, limit);
  for (int j = 0; j < side->tile; j += rows) {
    if (!gemm_in_part(m, s, t, j / rows, (side->tile + rows - 1) / rows)) continue;
    Aff row = row0, out;
    row.k += j;
    Val r = aff_value(g, &row);
    if (rows > side->tile) { /* more lanes than there are elements */
      use = gen_and(g, use, gen_compare(g, LLVMIntSLT, r, gen_i64(g, side->tile)));
      r = least(g, r, gen_i64(g, side->tile - 1));
    }
    Part part = row_of(m, s, r);
    part = sum_of(m, s, part, &sum);
    Val here = gen_compare(g, LLVMIntSLE, before(m, s, part.at, most), limit);
    here = gen_compare(g, LLVMIntEQ, here, now);
    out = aff_mul(row, cuda_side_pitch(m->p, s));
    copy(m, s, &part, add(g, base, aff_value(g, &out)), gen_and(g, ok, rows_inside(m, s, r)),
         gen_and(g, use, here));
    if (m->p->tile->stages == 3 && side->per == CUDA_STEP) /* too many banks */
      m->moved[m->n_moved - 1].first = now;
  }
}

/* Of summed index `line` of the step from element `first` on. */
static void copy_line(Gemm *m, int s, const Step *t, const Aff *line, const Aff *first,
                      const Aff *lane, Val stage) {
  Gen *g = m->g;
  const CudaSide *side = &m->p->side[s];
  int own = own_of(side), parts = side->tile <= LANES ? 1 : (side->tile - side->per + own) / own;
  Aff e, out;
  Val ok = NULL;
  e = aff_add(g, first, line);
  e = gemm_keep(g, &e, m->p->k.total, 1, &ok);
  Part sum = part_of(m, s, &m->p->k, e);
  out = aff_mul(*line, cuda_side_pitch(m->p, s));
  Val base = add(g, stage, aff_value(g, &out));
  Val l = aff_value(g, lane), l32 = narrow(g, l);
  for (int q = 0; q < parts; q++) {
    bool last = q == parts - 1;
    Val u = add(g, l, gen_i64(g, (int64_t)q * own)), use = t->inside;
    if (q * own + LANES > side->tile) {
      use = gen_and(g, use, gen_compare(g, LLVMIntSLT, u, gen_i64(g, side->tile)));
      u = least(g, u, gen_i64(g, side->tile - 1));
    }
    Part part = row_of(m, s, u);
    Val in = from_table(m, s, 1 + side->lines.checks, u);
    part = sum_of(m, s, part, &sum);
    Val n = before(m, s, part.at, least(g, in, narrow(g, u)));
    if (q) use = gen_and(g, use, gen_compare(g, LLVMIntSLE, n, l32));
    if (!last) use = gen_and(g, use, gen_compare(g, LLVMIntSLT, l32, add(g, n, i32(g, own))));
    copy(m, s, &part, add(g, base, u), gen_and(g, ok, rows_inside(m, s, u)), use);
  }
}

static void copy_along_rows(Gemm *m, int s, const Step *t, Val stage) {
  Gen *g = m->g;
  int warps = m->p->threads / LANES;
  Aff warp, lane, first = aff_mul(t->t, CUDA_STEP);
  aff_divmod(g, &m->tid, LANES, &warp, &lane);
  for (int i = 0; i < CUDA_STEP; i += warps) {
    if (!gemm_in_part(m, s, t, i / warps, CUDA_STEP / warps)) continue;
    Aff line = warp;
    line.k += i;
    copy_line(m, s, t, &line, &first, &lane, stage);
  }
}

void gemm_lines_copy(Gemm *m, int s, const Step *t, Val stage, Val next) {
  int64_t skip = s ? (int64_t)cuda_side_rows(m->p, 0) * cuda_side_pitch(m->p, 0) : 0;
  stage = add(m->g, stage, gen_i64(m->g, skip));
  next = add(m->g, next, gen_i64(m->g, skip));
  if (m->p->side[s].k_major)
    copy_along_sum(m, s, t, stage, next);
  else
    copy_along_rows(m, s, t, stage);
}
