/* Operands of products that are read line by line, cut where sectors of memory are. In: a side of a product; out: whether it is
 * read so, and what of it is contiguous.
 *
 * A line is what one row of a tile needs along the loops that the operand is contiguous along: of runs, which start anywhere in a
 * sector. Cut at multiples of a step, or of a request's lanes, sectors would be asked for on both sides of a cut. So an element
 * belongs to the step (along K) or the request (along rows) in which its sector's first element of that run is: lines of a step are
 * up to a sector longer than it, and what is behind its end lies in the next step's stage.
 * What a row or column of the tile adds to the place of an element, and to the indices that may be outside the operand, is
 * computed once, in a table in shared memory. */
#include "gemm.h"
#include <stdlib.h>

static bool anywhere(const CudaMoves *m, int from, int to, int per) {
  for (int i = from; i < to; i++)
    if (m->by[i] % per) return true;
  return false;
}

/* Index d of the operand, at the least and the most. */
static bool may_be_outside(const Node *c, int x, int d) {
  const AffDim *m = &c->map[x][d];
  int64_t lo = m->off, hi = m->off;
  const int loop[] = {m->l0, m->l1};
  const int64_t by[] = {m->c0, m->c1};
  for (int i = 0; i < 2; i++)
    if (loop[i] >= 0) *(by[i] < 0 ? &lo : &hi) += by[i] * (c->ext[loop[i]] - 1);
  return lo < 0 || hi >= c->in[x]->dims[d];
}

/* What the side's lines would be; false: its elements are too far apart. *cost: sectors of an element. */
static bool lines_along(const CudaGemm *p, int s, bool k_major, CudaLines *to, double *cost) {
  const CudaSide *side = &p->side[s];
  const Node *c = p->core;
  CudaMoves own = cuda_side_moves(c, side->x, &side->axes),
            sum = cuda_side_moves(c, side->x, &p->k);
  CudaMoves batch = cuda_side_moves(c, side->x, &p->batch);
  const CudaMoves *along = k_major ? &sum : &own, *across = k_major ? &own : &sum;
  int i = along->n - 1, per = side->per;
  if (i < 0) return false;
  *to = (CudaLines){.span = along->ext[i], .by = along->by[i]};
  if (to->by == 0 || llabs(to->by) > per / 2) return false;
  while (--i >= 0 && along->by[i] == to->by * to->span) to->span *= along->ext[i];
  bool whole = i < 0 || to->span % per == 0;
  to->on = !whole || to->by != 1 || cuda_side_fixed(c, side->x) % per ||
           anywhere(along, 0, i + 1, per) || anywhere(across, 0, across->n, per) ||
           anywhere(&batch, 0, batch.n, per);
  for (int d = 0; d < c->in[side->x]->rank; d++) {
    if (!may_be_outside(c, side->x, d)) continue;
    if (to->checks == CUDA_LINE_CHECKS) return false;
    to->check[to->checks++] = d;
  }
  int64_t n = to->span;
  if (!k_major && n > side->tile) n = side->tile;
  *cost = (double)((n - 1) * llabs(to->by) + per) / (double)(per * n);
  return true;
}

static void plan_lines(CudaGemm *p, int s) {
  enum { LANES = 32 };
  CudaSide *side = &p->side[s];
  CudaLines lines, other;
  double cost, changed;
  bool as_is = lines_along(p, s, side->k_major, &lines, &cost);
  bool turned = lines_along(p, s, !side->k_major, &other, &changed) && other.on;
  if (turned && (!as_is || changed < 0.8 * cost)) {
    side->k_major = !side->k_major;
    side->vec = 1;
    lines = other;
  } else if (!as_is || !lines.on || (!side->k_major && side->tile / side->vec <= LANES))
    return; /* a row is one request */
  side->lines = lines;
  side->run = CUDA_STEP;
}

void cuda_lines_plan(CudaGemm *p) {
  for (int s = 0; s < 2; s++) {
    CudaSide *side = &p->side[s];
    const Node *in = p->core->in[side->x];
    bool fits = node_numel(in) < INT32_MAX;
    if (!fits || !side->stored || side->panel.size || side->shift || !side->axes.n) continue;
    if (!cuda_side_divides(p->core, side->x)) plan_lines(p, s);
  }
}

int64_t cuda_lines_size(const CudaGemm *p, int s) {
  const CudaSide *side = &p->side[s];
  if (!side->lines.on) return 0;
  return div_up((2 + side->lines.checks) * (int64_t)side->tile * 4, dtype_info[p->tile->type].size);
}
