/* Operands of products that are staged as they lie in memory. In: a side of a product; out: whether its tile comes from a panel.
 *
 * Rows of windows overlap, or lie side by side without being multiples of a sector. Copied row by row they would ask for the
 * same sectors again and again. A panel is what a tile needs as runs of memory, from sector to sector, each element once; the
 * tile is made of it, from shared memory to shared memory. The loops along which the operand is contiguous divide into an inner
 * part, one run of `span` elements, and an outer one, of several runs: filter rows in a convolution. Where positions are a stride
 * apart dilated taps are a run, too: holes between them are of other positions, or small; so are short runs one behind the
 * other, backwards, as taps of a gradient are. Along the loops across a run
 * moves by a row of elements and, where inner loops carry, by a jump. As long as jumps are short, all positions of a run need
 * one area of memory; where they are not, as between images, positions divide into pieces with areas of their own.
 *   contiguous along K    the panel holds the whole sum, or there are several of a chunk of it each, of at least a step;
 *                         runs are along K, pieces along the tile
 *   contiguous along rows the panel holds a step, there are several; runs are along the tile, pieces along K
 * Areas lie so far apart that neighbours along the contiguous loops are in neighbouring banks. */
#include "gemm.h"

enum {
  GAP = 48 /* bytes that are copied though nothing reads them */,
  SHORT = 32 /* sectors of areas whose first and last ones count */,
  STREAM = 4
};

int64_t cuda_side_move(const Node *c, int x, int loop) {
  int64_t sum = 0, stride = 1;
  for (int d = c->in[x]->rank - 1; d >= 0; stride *= c->in[x]->dims[d--]) {
    const AffDim *m = &c->map[x][d];
    sum += ((m->l0 == loop ? m->c0 : 0) + (m->l1 == loop ? m->c1 : 0)) * stride;
  }
  return sum;
}

bool cuda_side_divides(const Node *c, int x) {
  for (int d = 0; d < c->in[x]->rank; d++)
    if (c->map[x][d].div != 1) return true;
  return false;
}

int64_t cuda_side_fixed(const Node *c, int x) {
  int64_t sum = 0, stride = 1;
  for (int d = c->in[x]->rank - 1; d >= 0; stride *= c->in[x]->dims[d--])
    sum += c->map[x][d].off * stride;
  return sum;
}

CudaMoves cuda_side_moves(const Node *c, int x, const CudaAxes *axes) {
  CudaMoves r = {0};
  for (int a = 0; a < axes->n; a++)
    for (int l = axes->axis[a].first; l <= axes->axis[a].last; l++) {
      if (c->ext[l] == 1) continue;
      r.ext[r.n] = c->ext[l];
      r.by[r.n++] = cuda_side_move(c, x, l);
    }
  return r;
}

/* The loops across that an area holds, of n positions: as many as leave most of what it holds needed, beside what areas of their
 * own would hold twice. False: not even one. */
static bool divide(const CudaMoves *m, int64_t n, CudaPanel *to) {
  if (m->n == 0) {
    to->per = to->pieces = 1;
    to->length = to->reach;
    return true;
  }
  int64_t row = m->by[m->n - 1], usual = 0;
  int i = m->n - 1;
  to->per = m->ext[i];
  to->length = (n < to->per ? n : to->per) * row - row + to->reach;
  if (row <= 0) return false;
  for (; i > 0; i--) {
    int64_t jump = m->by[i - 1] - m->ext[i] * m->by[i], twice = to->reach - row;
    if (jump > twice) usual += n * (jump - (twice > 0 ? twice : 0)) / to->per;
    if (jump < 0 || usual > n * row / 2 + to->reach) break;
    int64_t per = to->per * m->ext[i - 1], most = n < per ? n : per;
    to->length = (most - 1) * row + to->reach;
    to->per = per;
  }
  to->outer = i;
  for (int64_t per = 1, j = m->n - 1; j > i; j--) {
    per *= m->ext[j];
    to->length += (n - 1 + per - 1) / per * (m->by[j - 1] - m->ext[j] * m->by[j]);
  }
  to->pieces = 1;
  while (i-- > 0) to->pieces *= m->ext[i];
  int64_t touched = n < 2 ? 1 : (n - 2) / to->per + 2;
  if (touched < to->pieces) to->pieces = touched;
  return true;
}

/* The loops inside a chunk: those of a run, or of as many as make a step. */
static int chunk_loops(const CudaMoves *sum, int of_run, int64_t span) {
  for (; of_run > 0 && span < CUDA_STEP; of_run--) span *= sum->ext[of_run - 1];
  return of_run;
}

/* Chunks that may be needed while steps ahead are copied lie in slots so far apart that the banks of neighbours along K, the last
 * of a chunk and the first of the next one, differ: by 0..16 more than in a run, also from the last slot to the first. */
static void place_chunks(CudaPanel *to) {
  enum { BANKS = 32, REACH = (1 + CUDA_PANEL_AHEAD) * CUDA_STEP };
  int64_t area = to->runs * to->pieces * to->pitch, reach = to->runs * to->reach, more = 0;
  to->slots = to->chunk >= REACH - 1 ? 2 : 4;
  int64_t left = (BANKS - to->slots * reach % BANKS) % BANKS;
  more = to->slots == 2 ? left / 2 : left / 3;
  if (to->unit) more -= more % 4; /* elements may be copied by fours */
  int64_t to_next = to->sign * (reach + more);
  area += ((to_next - area) % BANKS + BANKS) % BANKS;
  to->size = area * to->slots;
}

/* Do rows lie side by side? Then of chunks at the ends of a part of the sum only what is the part's is copied. */
static int64_t row_of(const CudaMoves *across, const CudaPanel *panel) {
  int64_t row = across->n ? across->by[across->n - 1] : panel->span;
  bool apart = row >= panel->span && panel->sign > 0 && panel->gap == 0;
  for (int i = panel->outer; i < across->n; i++) apart &= across->by[i] % row == 0;
  return apart ? row : 0;
}

/* Do chunks ask for less than rows that are copied one by one, each sector at the ends of what is contiguous twice? */
static bool chunks_pay(const CudaGemm *p, const CudaPanel *panel, int64_t tile) {
  double part = (double)(p->per * CUDA_STEP);
  double rows = (double)(tile * (panel->span + panel->span / panel->packed * 7));
  if (p->splits == 1 || panel->row) return true;
  return (double)(panel->pieces * panel->length) * (part + (double)panel->chunk) <= rows * part;
}

/* The loops before the innermost run: what is contiguous, and neighbours of it with holes that positions a stride apart fill, or
 * that are small. */
static int find_run(const CudaMoves *along, const CudaMoves *across, int gap, CudaPanel *to) {
  int64_t row = across->n ? across->by[across->n - 1] : 0;
  int i = along->n;
  for (; i > 0 && along->by[i - 1] == to->sign * to->span; i--) to->span *= along->ext[i - 1];
  to->packed = to->reach = to->span;
  if (to->sign < 0) to->back = to->span - 1;
  if (i == 0 || to->sign < 0 || row <= to->packed) return i;
  int64_t by = along->by[i - 1], hole = by - to->packed;
  if (hole < 0 || hole > 2 * row || common_factor(by, row) - to->packed >= gap) return i;
  to->span *= along->ext[i - 1];
  to->reach = by * along->ext[i - 1];
  to->gap = hole;
  return i - 1;
}

/* Runs of a few sectors that lie side by side backwards, as taps of a gradient do, with n positions between them, are one; so
 * many loops stay outside. */
static int find_turned(const CudaMoves *along, const CudaMoves *across, int i, int outside,
                       int64_t n, int most, CudaPanel *to) {
  int64_t filled = to->packed, extent = to->packed;
  if (across->n == 1) filled = across->by[0] >= to->packed ? n * across->by[0] : 0;
  if (across->n > 1 || filled >= most || to->sign < 0 || to->gap) return i;
  for (; i > outside && along->by[i - 1] < 0 && -along->by[i - 1] <= filled; i--) {
    int64_t by = -along->by[i - 1], more = by * (along->ext[i - 1] - 1);
    if (by < extent) break;
    to->turned = true;
    to->sign = -1;
    to->back += more;
    to->span *= along->ext[i - 1];
    to->reach = by + more;
    to->gap = by - extent;
    extent += more;
    filled += more;
  }
  return i;
}

/* Where element k along it lies in shared memory, but for what all of a row have in common. */
static int64_t place_of(const CudaMoves *along, const CudaPanel *panel, int64_t k) {
  int64_t run = k / panel->span, at = 0;
  if (panel->chunk && panel->slots > 1) {
    int64_t chunk = run / panel->runs;
    at = chunk % panel->slots * (panel->size / panel->slots);
    run %= panel->runs;
  }
  at += run * panel->pitch;
  k %= panel->span;
  for (int i = along->n - 1; i >= panel->inner; k /= along->ext[i--])
    at += k % along->ext[i] * along->by[i];
  return at + panel->back;
}

static bool in_banks(const CudaGemm *p, const CudaMoves *along, const CudaPanel *panel, int lanes) {
  int64_t banks = 128 / dtype_info[p->tile->type].size, total = 1;
  uint32_t seen = 0;
  if (lanes > banks) lanes = (int)banks;
  for (int i = 0; i < along->n; i++) total *= along->ext[i];
  for (int64_t k = 0; k < total; k++) {
    int64_t bank = place_of(along, panel, k) % banks;
    if (k % lanes == 0) seen = 0;
    if (seen >> bank & 1) return false;
    seen |= UINT32_C(1) << bank;
  }
  return true;
}

/* Holes may let neighbours share banks; false: nearly all do. */
static bool find_lanes(const CudaGemm *p, const CudaMoves *along, int tile, CudaPanel *to) {
  enum { LANES = 32, FEWEST = 8 };
  to->lanes = tile < LANES ? tile : LANES;
  if (to->gap == 0 && !to->turned) return true;
  while (to->lanes > 1 && !in_banks(p, along, to, to->lanes)) to->lanes /= 2;
  return to->lanes >= FEWEST || to->lanes == tile;
}

static void place_areas(CudaPanel *to) {
  to->pitch = to->length + (to->sign * to->reach - to->length) % 32;
  if (to->pitch < to->length) to->pitch += 32;
  to->size = to->runs * to->pieces * to->pitch * to->slots;
}

static bool try_panel(CudaGemm *p, int s, bool k_major, bool chunks, bool turn, int64_t most) {
  CudaSide *side = &p->side[s];
  const Node *c = p->core;
  CudaMoves own = cuda_side_moves(c, side->x, &side->axes),
            sum = cuda_side_moves(c, side->x, &p->k);
  const CudaMoves *along = k_major ? &sum : &own, *across = k_major ? &own : &sum;
  int64_t tile = side->tile < side->axes.total ? side->tile : side->axes.total;
  int gap = GAP / dtype_info[p->tile->type].size;
  bool floats =
      p->tile->type == DT_FLOAT32; /* doubles: no bank is free for a jump between chunks */
  CudaPanel panel = {.span = 1, .runs = 1, .slots = k_major ? 1 : STREAM};
  int i = along->n, first = 0;
  if ((k_major && !chunks && p->splits > 1) || i == 0) return false;
  panel.sign = k_major && along->by[i - 1] < 0 ? -1 : 1;
  i = find_run(along, across, gap, &panel);
  if (turn) i = find_turned(along, across, i, chunks, tile, SHORT * side->per, &panel);
  if (turn && !panel.turned) return false;
  panel.inner = i;
  if (chunks) first = chunk_loops(along, i, panel.span);
  if (panel.span == 1 || (chunks && (first == 0 || !floats))) return false;
  while (i-- > first) panel.runs *= along->ext[i];
  if (k_major) panel.chunk = panel.runs * panel.span;
  int64_t needed = panel.reach;
  if (!k_major) {
    int64_t touched = tile < 2 ? 1 : (tile - 2) / panel.span + 2;
    if (touched < panel.runs) panel.runs = touched;
    if (tile < needed) needed = tile;
  }
  if (!divide(across, k_major ? tile : CUDA_STEP, &panel)) return false;
  if (across->n && across->by[across->n - 1] - needed >= gap) return false;
  place_areas(&panel);
  if (chunks) {
    panel.row = row_of(across, &panel);
    place_chunks(&panel);
  }
  if (panel.size > most || (chunks && !chunks_pay(p, &panel, tile))) return false;
  if (!find_lanes(p, along, k_major ? CUDA_STEP : side->tile, &panel)) return false;
  side->panel = panel;
  side->k_major = k_major;
  return true;
}

static bool plan_panel(CudaGemm *p, int s, bool k_major, bool chunks, int64_t most) {
  return (k_major && try_panel(p, s, true, chunks, true, most)) ||
         try_panel(p, s, k_major, chunks, false, most);
}

int cuda_panel_lanes(const CudaGemm *p, int s) {
  enum { LANES = 32 };
  return p->side[s].k_major ? CUDA_STEP : p->side[s].tile < LANES ? p->side[s].tile : LANES;
}

int64_t cuda_side_held(const CudaGemm *p, int s) {
  return p->groups == 1 ? p->side[s].tile : s ? p->side[s].axes.total : p->rows;
}

/* Areas hold some pixels side by side; what steps to others is far away. */
static void scale(CudaMoves *m, const CudaPanel *panel) {
  const int64_t of = panel->all * panel->every, far = INT64_C(1) << 40;
  for (int i = 0; i < m->n; i++)
    if (m->by[i] % panel->all == 0) m->by[i] = m->by[i] % of ? far : m->by[i] / of * panel->pixel;
}

/* Parts of `per` that n neighbours from a multiple of n on lie in, at most; there are `total`. */
static int64_t touched(int64_t total, int64_t n, int64_t per) {
  int64_t most = 1;
  for (int64_t at = 0; at < total && at / n < per; at += n) {
    int64_t last = at + n < total ? at + n - 1 : total - 1, parts = last / per - at / per + 1;
    if (parts > most) most = parts;
  }
  return most;
}

bool cuda_panel_groups(CudaGemm *p, int s, bool chunks, int64_t most) {
  CudaSide *side = &p->side[s];
  CudaPanel panel = side->panel;
  bool k_major = side->k_major;
  CudaMoves own = cuda_side_moves(p->core, side->x, &side->axes),
            sum = cuda_side_moves(p->core, side->x, &p->k);
  scale(&own, &panel);
  scale(&sum, &panel);
  const CudaMoves *along = k_major ? &sum : &own, *across = k_major ? &own : &sum;
  int64_t held = cuda_side_held(p, s), positions = k_major ? held : CUDA_STEP;
  panel.sign = panel.runs = 1;
  panel.slots = k_major ? 1 : STREAM;
  panel.gap = (panel.hop - 1) * panel.pixel; /* other positions fill it */
  panel.reach = panel.span / panel.unit * panel.hop * panel.pixel;
  for (int i = 0; i < panel.inner; i++) panel.runs *= along->ext[i];
  if (k_major)
    panel.chunk = panel.runs * panel.span;
  else
    panel.runs = touched(side->axes.total, held, panel.span);
  if (!divide(across, positions, &panel)) return false;
  panel.pieces = touched(k_major ? side->axes.total : p->k.total, positions, panel.per);
  if (across->n && across->by[across->n - 1] - panel.reach >= GAP / 4) return false;
  place_areas(&panel);
  int first = chunks && k_major ? chunk_loops(along, panel.inner, panel.span) : 0;
  if (panel.size > most && first > 0) {
    for (int i = 0; i < first; i++) panel.runs /= along->ext[i];
    panel.chunk = panel.runs * panel.span;
    place_chunks(&panel);
  }
  if (panel.size > most) return false;
  while (panel.chunk && panel.lanes > side->vec && !in_banks(p, along, &panel, panel.lanes))
    panel.lanes /= 2;
  side->panel = panel;
  return true;
}

bool cuda_panel_whole(const CudaGemm *p, int s) {
  const CudaPanel *panel = &p->side[s].panel;
  return panel->size && panel->chunk == p->k.total;
}

bool cuda_panel_plan(CudaGemm *p, int s, int64_t most) {
  if (cuda_side_divides(p->core, p->side[s].x)) return false;
  enum { LARGE = 48 << 10 /* bytes */ };
  bool k_major = p->side[s].k_major;
  int64_t large = LARGE / dtype_info[p->tile->type].size, small = most < large ? most : large;
  return plan_panel(p, s, k_major, false, small) || plan_panel(p, s, !k_major, false, small) ||
         plan_panel(p, s, true, true, most) || plan_panel(p, s, k_major, false, most) ||
         plan_panel(p, s, !k_major, false, most);
}
