/* How a nest is cut into blocks that are boxes of axes. In: a nest; out: the boxes, with what each copies (box.c).
 *
 * Blocks have some indices of one axis of results and all of those within. The axis, and how many of its indices, are those for
 * which fewest sectors are read and written. Sums that do not fit go by chunks. Maps may have the axes of their results in
 * another order: within a block is then what is innermost of a read as well, and results are pieces, too. */
#include "plan.h"
#include <string.h>

int64_t cuda_box_blocks(const Nest *t, const CudaSpans *boxes) {
  int64_t n = div_up(t->out[boxes->cut].ext, boxes->across);
  for (int a = 0; a < boxes->cut; a++) n *= t->out[a].ext;
  return n;
}

/* Chunks of the outermost sum, if it is long, or of one within: as much as fits. */
static bool fill_chunks(const CudaBox *b, bool may_chunk) {
  enum { SHORT = 3 };
  CudaSpans *to = b->to;
  to->chunk = to->chunked = 0;
  if (cuda_box_spans(b)) return true;
  for (int a = 0; may_chunk && a < b->t->n_sum; a++) {
    int64_t ext = b->t->sum[a].ext;
    to->chunked = a;
    for (to->chunk = a ? ext : div_up(ext, 2); to->chunk > SHORT; to->chunk = div_up(to->chunk, 2))
      if (cuda_box_spans(b)) return true;
  }
  to->chunk = to->chunked = 0;
  return false;
}

static bool stores_points(const Nest *t) {
  bool any = false;
  for (int r = 0; r < t->roots.n; r++) any |= t->roots.v[r].full;
  return any;
}

/* 1, 2, 3, 4, 6, 8, 12, ... */
static int64_t next_size(int64_t m) { return m == 1 ? 2 : m % 3 ? m / 2 * 3 : m / 3 * 4; }

/* What a search goes by: fewest blocks; so far the best. */
typedef struct Search {
  CudaBox box;
  int64_t least;
  bool rows, may_chunk;
  CudaSpans *best;
} Search;

/* Any number of indices of the axis `cut`. */
static void try_sizes(Search *f) {
  enum { WHOLE = 8 };
  const Nest *t = f->box.t;
  CudaSpans *try = f->box.to;
  int64_t ext = t->out[try->cut].ext, inside = cuda_inside(t, try->cut);
  /* all blocks alike, or all but the last one */
  for (int64_t m = 1, even = 1; m < 2 * ext; m = even ? m : next_size(m), even = !even) {
    try->across = m >= ext ? ext : even && ext % WHOLE ? div_up(ext, div_up(ext, m)) : m;
    if (try->across * inside > f->box.most || cuda_box_blocks(t, try) < f->least) break;
    int64_t threads = try->across * inside * (f->rows ? t->n_sums : 1);
    if (threads < 32 && try->across < ext) continue;
    if (!fill_chunks(&f->box, f->may_chunk) || (f->best && try->sectors > 0.96 * f->best->sectors))
      continue;
    f->best = arena_dup(f->box.g->a, try, sizeof *try);
  }
}

void cuda_reorder(Nest *t, const CudaSpans *s) {
  Axis out[KL_LOOPS];
  memcpy(out, t->out, sizeof out);
  for (int a = 0; a < t->n_out && s->boxes; a++) t->out[a] = out[s->order[a]];
}

/* Blocks with the axes `in` as a whole and a part of the axis `cut`. */
static void try_order(Search *f, const Nest *t, uint32_t in, int cut) {
  CudaSpans *try = f->box.to;
  Nest turned = *t;
  int n = 0;
  for (int a = 0; a < t->n_out; a++)
    if (!(in >> a & 1) && a != cut) try->order[n++] = a;
  try->cut = n;
  try->order[n++] = cut;
  for (int a = 0; a < t->n_out; a++)
    if (in >> a & 1) try->order[n++] = a;
  try->reordered = false;
  for (int a = 0; a < t->n_out; a++) try->reordered |= try->order[a] != a;
  if (!try->reordered) return;
  cuda_reorder(&turned, try);
  f->box.t = &turned;
  try_sizes(f);
  f->box.t = t;
}

/* Axes by the elements between neighbours, -> how many. */
static int by_step(const Nest *t, const CudaAccess *x, int *axis) {
  int64_t step[KL_LOOPS];
  int n = 0;
  for (int a = 0; a < t->n_out; a++) {
    int64_t s;
    if (!cuda_axis_step(t, &t->out[a], x->of, &s) || s <= 0) continue;
    int i = n++;
    for (; i > 0 && step[i - 1] > s; i--) step[i] = step[i - 1], axis[i] = axis[i - 1];
    step[i] = s;
    axis[i] = a;
  }
  return n;
}

/* As a whole the innermost axes of the results and those of a read, a part of the next one of either. */
static void try_orders(Search *f, const Nest *t, const CudaAccess *x) {
  int axis[KL_LOOPS], n = by_step(t, x, axis);
  for (int inner = 0; inner < t->n_out; inner++)
    for (int read = 1; read <= n; read++) {
      uint32_t in = ~(~0u << inner) << (t->n_out - inner);
      int next = t->n_out - 1, beside = read;
      for (int i = 0; i < read; i++) in |= 1u << axis[i];
      while (next >= 0 && in >> next & 1) next--;
      while (beside < n && in >> axis[beside] & 1) beside++;
      if (next >= 0) try_order(f, t, in, next);
      if (beside < n && axis[beside] != next) try_order(f, t, in, axis[beside]);
    }
}

const CudaSpans *cuda_boxes(Gen *g, const Nest *t, int64_t most, int64_t least_blocks) {
  enum { LONG = 128 };
  CudaAccesses all = {0};
  CudaSpans try = {.boxes = true, .threads = CUDA_THREADS};
  bool teams = t->red && !t->unroll, uneven = false;
  if (!cuda_may_copy(g, t, &all) || t->n_out == 0) return NULL;
  bool brief = teams && t->n_sum > 0 && t->sum[t->n_sum - 1].ext < LONG;
  Search f = {.box = {g, t, &all, &try, &uneven, most},
              .least = least_blocks,
              .rows = teams && !t->columns && (brief || stores_points(t)),
              .may_chunk = brief || (teams && t->n_sum > 0 && t->columns)};
  for (int a = 0; a < t->n_out; a++) try.order[a] = a;
  for (try.cut = t->n_out - 1; try.cut >= 0 && cuda_inside(t, try.cut) <= most; try.cut--)
    try_sizes(&f);
  for (int i = 0; i < all.n && !t->red && uneven; i++)
    if (all.v[i].kept && all.v[i].parts == 1) try_orders(&f, t, &all.v[i]);
  return f.best;
}

/* Sectors of an access by neighbouring rows: the mean of where the first one may start. */
static double warp_sectors(const Nest *t, const CudaAccess *x) {
  enum { LANES = 32 };
  int64_t per = CUDA_SECTOR / x->bytes, n = 0;
  for (int64_t start = 0; start < per; start++) {
    int64_t last = -1;
    for (int64_t lane = 0; lane < LANES; lane++) {
      int64_t left = lane, at = start;
      for (int a = t->n_out - 1; a >= 0; left /= t->out[a--].ext)
        for (int64_t l = t->out[a].last, digit = left % t->out[a].ext; l >= t->out[a].first;
             digit /= t->ext[l--])
          at += digit % t->ext[l] * x->of[l];
      n += at / per != last;
      last = at / per;
    }
  }
  return (double)n / (double)per / LANES;
}

double cuda_sectors_in_place(Gen *g, const Nest *t) {
  CudaAccesses all = {0};
  double n = 0;
  cuda_accesses(g, t, &all);
  for (int i = 0; i < all.n; i++)
    n += warp_sectors(t, &all.v[i]) * (double)t->rows * (double)t->n_sums;
  return n;
}
