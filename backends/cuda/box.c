/* What blocks that are boxes of axes copy. In: a nest, an axis of results, `cut`, and how many of its indices a block has, with
 * all of those within (cut.c); out: for each buffer that warps would read in pieces, unaligned or with gaps what a
 * block copies through shared memory, as pieces that each begin and end with sectors.
 *
 * What a block reads of a buffer follows from the steps of its axes and of the sums. In order of their steps, those that leave
 * little out make one run of neighbouring elements; each of the others, whose step is longer than all that lies within,
 * multiplies the runs. So blocks have what a few rows of a transposed matrix need, the same columns of several rows, or images
 * of one channel. Runs are rounded to sectors, whose number for all blocks is estimated. */
#include "plan.h"
#include <string.h>

enum { BOX_BYTES = 24 << 10, MOST_PIECES = 4096 };

/* One axis more, from the innermost on. False: too many. */
static bool add_axis(CudaSpan *s, CudaPiece p) {
  if (p.ext == 1) return true;
  if (p.step < 0) {
    if (p.cut || p.chunk) return false;
    s->lo += p.step * (p.ext - 1);
    s->hi += p.step * (p.ext - 1);
    p.step = -p.step;
  }
  if (p.step == 0) return true;
  int at = s->n_piece;
  if (at == KL_LOOPS) return false;
  for (; at > 0 && s->piece[at - 1].step < p.step; at--) s->piece[at] = s->piece[at - 1];
  s->piece[at] = p;
  s->n_piece++;
  return true;
}

static bool add_sums(const CudaBox *b, const CudaAccess *x, CudaSpan *s) {
  const Nest *t = b->t;
  for (int a = 0; a < t->n_sum; a++) {
    bool outer = b->to->chunk && a < b->to->chunked, chunk = b->to->chunk && a == b->to->chunked;
    int64_t step;
    if (cuda_axis_step(t, &t->sum[a], x->of, &step)) {
      int64_t ext = outer ? 1 : chunk ? b->to->chunk : t->sum[a].ext;
      if (!add_axis(s, (CudaPiece){.ext = ext, .step = step, .chunk = chunk})) return false;
      if (outer || chunk) s->chunk_step[a] = step;
      continue;
    }
    for (int l = t->sum[a].first; l <= t->sum[a].last; l++)
      if (outer || chunk || !add_axis(s, (CudaPiece){.ext = t->ext[l], .step = x->of[l]}))
        return false;
  }
  return true;
}

/* Axes that leave little out become the run, of results and exact spans those that leave nothing. */
static bool set_run(CudaSpan *s) {
  int64_t per = s->result || s->exact ? 1 : CUDA_SECTOR / s->bytes;
  s->run = s->hi - s->lo + 1;
  while (s->n_piece > 0) {
    const CudaPiece *p = &s->piece[s->n_piece - 1];
    if (p->step >= s->run + per) break;
    s->run += p->step * (p->ext - 1);
    if (p->cut) s->per_cut = p->step;
    if (p->chunk) s->per_chunk = p->step;
    s->n_piece--;
  }
  for (int64_t reach = s->run, i = s->n_piece - 1; i >= 0; i--) {
    if (s->piece[i].step < reach) return false;
    reach += s->piece[i].step * (s->piece[i].ext - 1);
  }
  return true;
}

/* Do all runs begin with sectors? */
static bool is_aligned(const CudaBox *b, const CudaSpan *s) {
  int64_t per = CUDA_SECTOR / s->bytes;
  int cut = b->to->cut;
  int chunked = b->to->chunked;
  bool even = s->lo % per == 0 && s->chunk_step[chunked] * b->to->chunk % per == 0;
  for (int a = 0; a < chunked; a++) even &= s->chunk_step[a] % per == 0;
  for (int a = 0; a <= cut; a++) {
    const Axis *x = &b->t->out[a];
    bool loops = s->uneven >> a & 1;
    if (a < cut && !loops) even &= s->step[a] % per == 0;
    for (int l = x->first; l <= x->last && loops; l++)
      even &= s->of[l] % per == 0 || b->t->ext[l] == 1;
  }
  even &= b->to->across == b->t->out[cut].ext || s->step[cut] * b->to->across % per == 0;
  for (int i = 0; i < s->n_piece; i++) even &= s->piece[i].step % per == 0;
  return even;
}

/* The steps of y are x's where both move. */
static bool add_read(const Nest *t, CudaAccess *x, const CudaAccess *y) {
  for (int l = 0; l < t->rank; l++) {
    bool red = t->red >> l & 1;
    if (red && x->of[l] == 0) x->of[l] = y->of[l];
    if (x->of[l] != y->of[l] && !(red && y->of[l] == 0)) return false;
  }
  for (int w = 0; w < CUDA_WINDOWS; w++)
    if (x->window[w] != y->window[w] || x->window_ext[w] != y->window_ext[w]) return false;
  if (y->bare_lo < x->bare_lo) x->bare_lo = y->bare_lo;
  if (y->bare_hi > x->bare_hi) x->bare_hi = y->bare_hi;
  x->even = common_factor(x->even, y->even);
  return true;
}

/* Axes of results. The first point's place is counted by axes; within a block those that are not even go by their loops. */
static bool add_points(const CudaBox *b, const CudaAccess *x, CudaSpan *s, bool *even) {
  const Nest *t = b->t;
  for (int a = 0; a < t->n_out; a++) {
    const Axis *axis = &t->out[a];
    bool cut = a == b->to->cut, regular = cuda_axis_step(t, axis, x->of, &s->step[a]);
    if (a > b->to->cut && !regular) {
      s->step[a] = 0;
      s->inner = x->of[axis->last];
      *even = false;
      for (int l = axis->first; l <= axis->last; l++)
        if (!add_axis(s, (CudaPiece){.ext = t->ext[l], .step = x->of[l]})) return false;
      continue;
    }
    int64_t ext = cut ? b->to->across : axis->ext;
    s->inner = s->step[a];
    if (!regular ||
        (a >= b->to->cut && !add_axis(s, (CudaPiece){.ext = ext, .step = s->step[a], .cut = cut})))
      return false;
  }
  return true;
}

/* Loops of a block's results by which reads of an input step differently: it reads all between the first and the last place. */
static uint32_t apart(const CudaBox *b, int input) {
  const Nest *t = b->t;
  const CudaAccess *x = NULL;
  uint32_t loops = 0;
  for (int i = 0; i < b->all->n; i++) {
    const CudaAccess *y = &b->all->v[i];
    if (y->input != input) continue;
    if (!x) x = y;
    for (int a = b->to->cut + 1; a < t->n_out; a++)
      for (int l = t->out[a].first; l <= t->out[a].last; l++)
        loops |= (uint32_t)(x->of[l] != y->of[l]) << l;
  }
  return loops;
}

/* Whatever the loops, the place is among as many more. */
static CudaAccess spread(const Nest *t, const CudaAccess *x, uint32_t loops) {
  CudaAccess to = *x;
  for (int l = 0; l < t->rank; l++) {
    int64_t reach = x->of[l] * (t->ext[l] - 1);
    if (!(loops >> l & 1)) continue;
    *(reach < 0 ? &to.bare_lo : &to.bare_hi) += reach;
    to.of[l] = 0;
  }
  return to;
}

/* Windows over what the sums of a point go through are these sums. */
static void windows_as_sums(const Nest *t, CudaAccess *x) {
  for (int w = 0; w < CUDA_WINDOWS; w++)
    for (int l = 0; l < t->rank && x->window_ext[w] > 1; l++) {
      if (!(t->red >> l & 1) || x->of[l] || t->ext[l] != x->window_ext[w]) continue;
      x->of[l] = x->window[w];
      x->window[w] = x->window_ext[w] = 0;
    }
}

/* Of the axes from i on. */
static int64_t pieces_of(const CudaSpan *s, int i) {
  int64_t n = 1;
  for (; i < s->n_piece; i++) n *= s->piece[i].ext;
  return n;
}

/* What all reads of an input have in common; *even: they need no copy. own: other blocks may write elsewhere in it. */
static bool find_span(const CudaBox *b, int input, bool own, CudaSpan *s, bool *even, bool *line) {
  enum { WASTE = 2 };
  const Nest *t = b->t;
  CudaAccess x = {.input = -1};
  uint32_t loops = apart(b, input);
  int64_t needed = 0, inside = cuda_inside(t, b->to->cut);
  bool regular = loops == 0, anywhere = false;
  for (int i = 0; i < b->all->n; i++) {
    const CudaAccess *y = &b->all->v[i];
    if (y->input != input) continue;
    if (!y->kept || y->parts != 1) return false;
    anywhere |= y->anywhere;
    CudaAccess one = spread(t, y, loops);
    if (t->unroll) windows_as_sums(t, &one);
    needed += inside;
    if (x.input < 0)
      x = one;
    else if (!add_read(t, &x, &one))
      return false;
  }
  if (x.input < 0 || (loops && x.bare_hi - x.bare_lo > WASTE * needed)) return false;
  *s = (CudaSpan){.buffer = input, .bytes = x.bytes, .parts = 1, .box = 1, .exact = own};
  memcpy(s->of, x.of, sizeof s->of);
  s->lo = x.bare_lo;
  s->hi = x.bare_hi;
  if (!add_points(b, &x, s, &regular)) return false;
  int64_t places = x.even;
  for (int l = 0; l < t->rank; l++)
    if (t->red >> l & 1 && t->ext[l] > 1 && x.of[l] % (CUDA_SECTOR / x.bytes)) places = 1;
  if (!add_sums(b, &x, s)) return false;
  for (int w = 0; w < CUDA_WINDOWS; w++)
    if (x.window_ext[w] && !add_axis(s, (CudaPiece){.ext = x.window_ext[w], .step = x.window[w]}))
      return false;
  *even = regular && !anywhere && cuda_is_even(t, s, &x, places, line);
  s->size = node_numel(b->g->k->inputs.v[input].node);
  if (!set_run(s) || s->size == 0) return false;
  return !anywhere ||
         (!b->to->reordered && 2 * s->run * pieces_of(s, 0) <= 3 * inside * b->to->across);
}

/* Of a block. */
static double sectors_of(const CudaBox *b, const CudaSpan *s) {
  double per = CUDA_SECTOR / s->bytes;
  return (double)pieces_of(s, 0) * ((double)s->run / per + (is_aligned(b, s) ? 0 : 1 - 1 / per));
}

/* Its place in shared memory. */
static bool place_span(const CudaBox *b, CudaSpan *s) {
  const Nest *t = b->t;
  int64_t per = CUDA_SECTOR / s->bytes, n = pieces_of(s, 0), most = BOX_BYTES / s->bytes;
  bool even = is_aligned(b, s), lanes = t->red && !t->unroll && !t->columns;
  if (s->run > most || n > MOST_PIECES) return false;
  int64_t pitch = div_up(s->run + (even ? 0 : per - 1), per) * per;
  for (int i = 0; i < s->n_piece; i++) s->piece[i].pitch = pieces_of(s, i + 1) * pitch;
  s->length = n * pitch;
  s->pad = !lanes && s->n_piece && s->inner != 1 && s->bytes >= 4 ? 128 / s->bytes : 0;
  b->to->sectors += sectors_of(b, s);
  return s->length <= most;
}

/* Neighbours along axis a of what is stored at every point, sums included. */
static int64_t full_step(const Nest *t, int a) {
  int64_t n = 1;
  for (int l = t->out[a].last + 1; l < t->rank; l++) n *= t->ext[l];
  return n;
}

/* What a block stores: all of it side by side, or in pieces. */
static bool result_span(const CudaBox *b, const Root *root, CudaSpan *s) {
  const Nest *t = b->t;
  int cut = b->to->cut;
  int64_t each = root->full && t->red ? t->n_sums : 1, inside = cuda_inside(t, cut) * each;
  *s = (CudaSpan){.buffer = root->buf,
                  .bytes = dtype_info[root->n->dtype].size,
                  .parts = 1,
                  .result = true,
                  .box = 1,
                  .inner = each,
                  .hi = t->red ? inside - 1 : 0,
                  .size = t->rows * each};
  for (int a = 0; a < t->n_out; a++)
    s->step[a] = each > 1 || !t->red ? full_step(t, a) : cuda_inside(t, a);
  for (int a = t->red ? t->n_out : cut + 1; a < t->n_out; a++)
    if (!add_axis(s, (CudaPiece){.ext = t->out[a].ext, .step = s->step[a]})) return false;
  int64_t step = t->red ? inside : s->step[cut];
  if (!t->red) s->inner = s->step[t->n_out - 1];
  return add_axis(s, (CudaPiece){.ext = b->to->across, .step = step, .cut = true}) && set_run(s);
}

static int64_t chunks_of(const CudaBox *b) {
  const CudaSpans *to = b->to;
  int64_t n = to->chunk ? div_up(b->t->sum[to->chunked].ext, to->chunk) : 1;
  for (int a = 0; a < to->chunked; a++) n *= b->t->sum[a].ext;
  return n;
}

/* What is stored at every point, sums included, where a block has pieces of it. */
static bool add_full_result(const CudaBox *b, const Root *root) {
  const Nest *t = b->t;
  CudaSpans *to = b->to;
  CudaAccess x = {.bytes = dtype_info[root->n->dtype].size};
  CudaSpan s = {.buffer = root->buf,
                .bytes = x.bytes,
                .parts = 1,
                .result = true,
                .exact = true,
                .box = 1,
                .size = t->rows * t->n_sums};
  bool regular = true;
  double before = to->sectors;
  for (int64_t l = t->rank - 1, n = 1; l >= 0; n *= t->ext[l--]) x.of[l] = n;
  if (root->concat_axis >= 0 || to->n == CUDA_SPANS || !add_points(b, &x, &s, &regular) ||
      !add_sums(b, &x, &s) || !set_run(&s) || !place_span(b, &s))
    return false;
  to->sectors = before + (to->sectors - before) * (double)chunks_of(b);
  to->v[to->n++] = s;
  return true;
}

/* Results of a block that begin anywhere. */
static bool add_results(const CudaBox *b) {
  const Nest *t = b->t;
  CudaSpans *to = b->to;
  bool sums = t->red && !t->unroll, within = true;
  for (int l = 0; l < t->out[to->cut].first; l++) within &= !(t->red >> l & 1) || t->ext[l] == 1;
  for (int r = 0; r < t->roots.n; r++) {
    const Root *root = &t->roots.v[r];
    bool many = root->full && t->red && t->n_sums > 1;
    CudaSpan s;
    if (many && (sums || !within)) {
      if (!add_full_result(b, root)) return false;
      continue;
    }
    if (!result_span(b, root, &s)) return false;
    if (!many && (sums || (s.n_piece == 0 && is_aligned(b, &s)))) {
      to->sectors += sectors_of(b, &s);
      continue;
    }
    if (to->n == CUDA_SPANS || !place_span(b, &s)) return false;
    to->v[to->n++] = s;
  }
  return true;
}

/* The block of `across` indices of the axis `cut`. */
bool cuda_box_spans(const CudaBox *b) {
  CudaSpans *to = b->to;
  const Nest *t = b->t;
  Kernel *k = b->g->k;
  int64_t at = 0, blocks = cuda_box_blocks(t, to);
  bool uneven = false, lanes = t->red && !t->unroll && !t->columns;
  to->n = 0;
  to->sectors = 0;
  to->points = to->across * cuda_inside(t, to->cut);
  for (int i = 0; i < k->inputs.n; i++) {
    CudaSpan s;
    bool even, line = false, own = cuda_is_overwritten(k, &k->inputs.v[i]),
               known = find_span(b, i, own, &s, &even, &line);
    if (!known) {
      bool read = false;
      for (int j = 0; j < b->all->n; j++) {
        const CudaAccess *x = &b->all->v[j];
        read |= x->input == i && x->kept && !x->anywhere;
      }
      if (read || to->reordered) return false; /* in place neighbours read neighbours */
      continue;
    }
    if (own && t->unroll && cuda_is_even_apart(t, s.bytes)) continue;
    uneven |= !even;
    *b->uneven |= !even && !to->reordered;
    if (even && (s.inner == 0 || is_aligned(b, &s))) {
      /* lanes in place are whole sectors */
      if (lanes && line && to->points * (CUDA_SECTOR / s.bytes) > b->most) return false;
      if (to->reordered) to->sectors += sectors_of(b, &s);
      continue;
    }
    if (to->n == CUDA_SPANS || !place_span(b, &s)) return false;
    if (own && to->reordered) return false;
    s.exact &= s.n_piece || !is_aligned(b, &s);
    to->v[to->n++] = s;
  }
  to->sectors *= (double)chunks_of(b);
  if (!to->reordered && (!uneven || to->n == 0)) return false;
  if (!add_results(b) || to->n == 0) return false;
  for (int i = 0; i < to->n; i++)
    at += (to->v[i].length + (to->v[i].pad ? to->v[i].length / to->v[i].pad + 1 : 0)) *
          to->v[i].bytes;
  to->sectors *= (double)blocks;
  return at <= BOX_BYTES;
}
