/* Which memory a block of points reads, where that is one span. In: a nest that runs as points; out: how many points a block does,
 * and for each buffer that its warps would read (or write) in pieces, unaligned or with gaps the span that the block copies
 * through shared memory instead, from one sector's start to another's.
 *
 * Points are counted row-major. If the place of a read never falls from one point to the next, what a block of neighbouring
 * points reads lies between the places of its first and its last point. How far apart these can be is found digit by digit:
 * a step of n points changes each axis by its digit of n, by one more with a carry from the axis within, and by its extent less
 * if it carries itself. If the place falls along the inner axes only, as in a transposed matrix or a row that is read again, these
 * count as one point that reads all that they do. Where an index is divided the place is counted in fractions. */
#include "plan.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
  SPAN_BYTES = 24 << 10 /* of a block */,
  WASTE = 5 /* halves: most read for each that is needed */,
  MOST_BOXES = 8,
  FEW = 1024 /* elements beside lines that are read in place */,
  THREAD_BYTES = 80 /* of shared memory, with which processors are full of threads from sm_80 on */
};

/* The elements between neighbours of an axis; false: they differ. */
bool cuda_axis_step(const Nest *t, const Axis *x, const int64_t *step, int64_t *to) {
  int64_t inside = 1;
  *to = 0;
  for (int l = x->last; l >= x->first; inside *= t->ext[l--]) {
    if (t->ext[l] == 1) continue;
    if (inside == 1) *to = step[l];
    if (step[l] != *to * inside) return false;
  }
  return true;
}

int64_t cuda_inside(const Nest *t, int a) {
  int64_t n = 1;
  for (a++; a < t->n_out; a++) n *= t->out[a].ext;
  return n;
}

/* The most that the place grows over n points. */
static int64_t growth(const Nest *t, const CudaSpan *s, int64_t n) {
  const int64_t NEVER = INT64_MIN;
  int64_t best[2] = {0, NEVER};
  for (int a = t->n_out - 1; a >= 0; a--) {
    int64_t e = t->out[a].ext, digit = a ? n % e : n, to[2] = {NEVER, NEVER};
    n /= e;
    for (int in = 0; in < 2; in++)
      for (int carry = 0; carry < 2 && best[in] != NEVER; carry++) {
        int64_t by = digit + in - carry * e;
        if (a == 0 ? carry : carry ? digit + in < 1 : digit + in >= e) continue;
        if (best[in] + by * s->step[a] > to[carry] || to[carry] == NEVER)
          to[carry] = best[in] + by * s->step[a];
      }
    best[0] = to[0], best[1] = to[1];
  }
  return best[0] > 0 ? best[0] : 0;
}

/* From which axis on the place may fall (n_out: it never does), and by how much at most. */
static int falls_from(const Nest *t, const CudaSpan *s, int64_t *most) {
  int from = t->n_out;
  int64_t within = 0;
  *most = 0;
  for (int a = t->n_out - 1; a >= 0; a--) {
    if (s->step[a] < within) from = a;
    if (within - s->step[a] > *most) *most = within - s->step[a];
    within += s->step[a] * (t->out[a].ext - 1);
  }
  return from;
}

/* Does an axis move the place by what an index is divided by, or a table says? */
static bool in_parts(const Nest *t, const Axis *axis, const CudaAccess *x) {
  bool whole = true;
  for (int l = axis->first; l <= axis->last; l++)
    whole &= t->ext[l] == 1 || x->of[l] == x->parts * x->step[l];
  return !whole;
}

/* Do warps read whole sectors, or few places? Steps and `even` count parts of elements. */
static bool is_even(const Nest *t, const CudaSpan *s, const CudaAccess *x, int64_t even) {
  int last = t->n_out - 1;
  int64_t inner = s->step[last], ext = t->out[last].ext, per = CUDA_SECTOR / s->bytes * s->parts;
  bool flat = inner == s->parts, rows = even % per == 0, moves = inner != 0;
  for (int a = 0; a < last; a++) {
    int64_t step = s->step[a];
    moves |= step != 0;
    flat &= step == s->parts * cuda_inside(t, a);
    rows &= step % per == 0 || in_parts(t, &t->out[a], x);
  }
  if (inner == 0) return ext >= 32 || !moves;
  return inner == s->parts && even % per == 0 && (flat || (rows && ext * s->parts % per == 0));
}

/* The same for teams, which go along the sums or the columns: is a line of neighbours whole sectors from the next? */
static bool is_even_team(const Nest *t, const CudaSpan *s, const CudaAccess *x, bool *line) {
  int per = CUDA_SECTOR / s->bytes,
      inner = t->columns ? t->out[t->n_out - 1].last : t->sum[t->n_sum - 1].last;
  bool even = x->even % per == 0 && s->parts == 1, moves = false;
  for (; inner > 0 && t->ext[inner] == 1; inner--) {}
  for (int l = 0; l < t->rank; l++) {
    if (l == inner || t->ext[l] == 1) continue;
    moves |= x->of[l] != 0;
    even &= x->of[l] % per == 0;
  }
  *line |= x->of[inner] != 0;
  return x->of[inner] ? even && x->of[inner] == 1 : !moves;
}

bool cuda_is_even(const Nest *t, const CudaSpan *s, const CudaAccess *x, int64_t even, bool *line) {
  return t->red && !t->unroll ? is_even_team(t, s, x, line) : is_even(t, s, x, even);
}

/* What all reads of an input have in common. */
static bool find_span(const Nest *t, const CudaAccesses *all, int input, int64_t chunk, CudaSpan *s,
                      bool *even, bool *line) {
  bool found = false;
  *even = true;
  *line = false;
  for (int i = 0; i < all->n; i++) {
    const CudaAccess *x = &all->v[i];
    CudaSpan one = {
        .buffer = input, .bytes = x->bytes, .parts = x->parts, .lo = x->lo, .hi = x->hi};
    int64_t bits = x->even, reach = 0, times = x->times;
    if (x->input != input) continue;
    if (!x->kept || (x->anywhere && t->red && !t->unroll)) return false;
    for (int a = 0; a < t->n_out; a++)
      if (!cuda_axis_step(t, &t->out[a], x->of, &one.step[a]) || one.step[a] < 0) return false;
    if (chunk &&
        (!cuda_axis_step(t, &t->sum[0], x->of, &one.chunk_step[0]) || one.chunk_step[0] < 0))
      return false;
    one.hi += one.chunk_step[0] * (chunk - 1);
    times *= one.chunk_step[0] ? chunk : 1;
    for (int l = 0; l < t->rank; l++) {
      if (!(t->red >> l & 1)) continue;
      if (chunk && l >= t->sum[0].first && l <= t->sum[0].last) continue;
      if (x->of[l]) times *= t->ext[l];
      reach = x->of[l] * (t->ext[l] - 1);
      *(reach < 0 ? &one.lo : &one.hi) += reach;
      if (t->ext[l] > 1 && x->of[l] % (CUDA_SECTOR / x->bytes)) bits = 1;
    }
    *even &= cuda_is_even(t, &one, x, bits, line) && !x->anywhere;
    if (found && (one.parts != s->parts || one.chunk_step[0] != s->chunk_step[0] ||
                  memcmp(one.step, s->step, sizeof one.step) != 0))
      return false;
    if (found && s->lo < one.lo) one.lo = s->lo;
    if (found && s->hi > one.hi) one.hi = s->hi;
    one.reads = s->reads + times;
    *s = one;
    found = true;
  }
  return found;
}

/* A short buffer that is read in different ways, or anywhere. */
static bool find_whole(const Nest *t, const CudaAccesses *all, int input, int64_t size,
                       CudaSpan *s) {
  for (int i = 0; i < all->n; i++) {
    const CudaAccess *x = &all->v[i];
    int64_t times = x->times;
    if (x->input != input) continue;
    for (int l = 0; l < t->rank; l++)
      if (t->red >> l & 1) times *= t->ext[l];
    *s = (CudaSpan){
        .buffer = input, .bytes = x->bytes, .parts = 1, .hi = size - 1, .reads = s->reads + times};
  }
  return s->reads > 0 && size <= FEW;
}

/* Its length for blocks of n points. */
static bool set_length(const Nest *t, CudaSpan *s, int64_t n) {
  int64_t per = CUDA_SECTOR / s->bytes, need = n * s->reads, fall;
  int from = falls_from(t, s, &fall);
  s->inner = s->step[t->n_out - 1];
  s->box = 1;
  CudaSpan boxed = *s;
  for (int a = from; a < t->n_out; a++) {
    s->box *= t->out[a].ext;
    boxed.hi += boxed.step[a] * (t->out[a].ext - 1);
    boxed.step[a] = 0;
  }
  int64_t longer = boxed.hi - s->hi + growth(t, &boxed, n - 1) - growth(t, s, n - 1);
  if (n % s->box && 2 * fall < longer) { /* windows that overlap */
    s->lo -= fall;
    s->hi += fall;
    from = t->n_out;
    s->box = 1;
  }
  for (int a = from; a < t->n_out; a++) {
    s->hi += s->step[a] * (t->out[a].ext - 1);
    s->step[a] = 0;
  }
  s->whole = true;
  for (int a = 0; a < t->n_out; a++) s->whole &= s->step[a] == 0;
  int64_t within = s->hi - s->lo + growth(t, s, n - 1);
  s->length = (within + s->parts - 1) / s->parts + 2 * per;
  if (s->length > s->size + per) s->length = s->size + per;
  return 2 * (s->length - 2 * per) <= WASTE * need || s->length <= 2 * per;
}

/* May results take the input's buffer? */
bool cuda_is_overwritten(const Kernel *k, const KernelInput *x) {
  bool may = false;
  for (int i = 0; i < k->outputs.n; i++)
    may |= node_numel(k->outputs.v[i]) == node_numel(x->node) &&
           dtype_info[k->outputs.v[i]->dtype].size == dtype_info[x->node->dtype].size;
  return x->aligned && may;
}

/* Is the span only what the block writes? */
static bool is_own(const Nest *t, const CudaSpan *s, int64_t n) {
  bool own = s->parts == 1 && s->lo >= 0 && s->hi < t->n_sums && s->chunk_step[0] == 0 &&
             (n * t->n_sums * s->bytes % CUDA_SECTOR == 0 || n >= t->rows);
  for (int a = 0; a < t->n_out; a++) own &= s->step[a] == t->n_sums * cuda_inside(t, a);
  return own;
}

static int words(const CudaSpan *s) { return s->pad ? (int)(s->length / s->pad) + 1 : 0; }

/* Are a point's results apart: does a sum go round an axis of results? */
static bool results_apart(const Nest *t) {
  bool sum = false, apart = false;
  for (int l = 0; l < t->rank; l++) {
    apart |= sum && !(t->red >> l & 1) && t->ext[l] > 1;
    sum |= t->red >> l & 1 && t->ext[l] > 1;
  }
  return apart;
}

bool cuda_is_even_apart(const Nest *t, int64_t bytes) {
  for (int l = t->rank - 1; l > t->out[t->n_out - 1].last; l--) bytes *= t->ext[l];
  bool vector = bytes == 4 || bytes == 8 || bytes == 16;
  return vector && results_apart(t) && t->out[t->n_out - 1].ext * bytes % CUDA_SECTOR == 0;
}

/* Copies of results: of kernels that store neighbours of a row at each point. */
static bool add_results(const Nest *t, CudaSpans *to) {
  for (int r = 0; r < t->roots.n && t->red; r++) {
    const Root *root = &t->roots.v[r];
    CudaSpan s = {.buffer = root->buf,
                  .bytes = dtype_info[root->n->dtype].size,
                  .parts = 1,
                  .result = true,
                  .box = 1,
                  .reads = 1,
                  .size = t->rows * t->n_sums,
                  .length = to->points * t->n_sums};
    if (!root->full || t->n_sums == 1) continue;
    if (results_apart(t)) return t->unroll;
    if (!t->unroll && t->n_sums * s.bytes % CUDA_SECTOR == 0) continue;
    if (s.length * s.bytes % CUDA_SECTOR && t->rows > to->points) return false;
    if (to->n == CUDA_SPANS) return false;
    for (int a = 0; a < t->n_out; a++) s.step[a] = t->n_sums * cuda_inside(t, a);
    s.inner = t->n_sums;
    to->v[to->n++] = s;
  }
  return true;
}

/* most: bytes of a block. */
static bool place_spans(const Nest *t, int64_t most, CudaSpans *to) {
  int64_t at = 0;
  for (int i = 0; i < to->n; i++) {
    CudaSpan *s = &to->v[i];
    bool pad = (t->unroll || !t->red || t->contract) && s->parts == 1 && s->inner &&
               s->inner % 2 == 0 && s->bytes >= 4;
    s->pad = pad ? 128 / s->bytes : 0;
    at += (s->length + words(s)) * s->bytes;
  }
  return at <= most;
}

/* That all blocks read. */
static double sectors_of(const Nest *t, const CudaSpans *to, const CudaSpan *s) {
  double per = CUDA_SECTOR / s->bytes, times = ceil((double)t->rows / (double)to->points);
  if (to->chunk && s->chunk_step[0]) times *= ceil((double)t->sum[0].ext / (double)to->chunk);
  return ((double)s->length - per) / per * (s->whole && !s->chunk_step[0] ? 1 : times);
}

/* Those of all results; infinite: threads would write them in pieces. */
static double result_sectors(const Nest *t) {
  double n = 0;
  for (int r = 0; r < t->roots.n; r++) {
    const Root *root = &t->roots.v[r];
    bool sums = root->full && t->red;
    int bytes = dtype_info[root->n->dtype].size;
    if (sums && t->unroll && results_apart(t) && !cuda_is_even_apart(t, bytes)) return INFINITY;
    n += (double)(t->rows * (sums ? t->n_sums : 1)) * bytes / CUDA_SECTOR;
  }
  return n;
}

/* Is it the same along all rows, which begin anywhere? Rows are read from the start of their first sector, so this is not. */
static bool is_alike(const Nest *t, const CudaSpan *s) {
  bool same = t->red && !t->unroll && !t->columns && s->hi > s->lo &&
              t->sum[t->n_sum - 1].ext * s->bytes % CUDA_SECTOR;
  for (int a = 0; a < t->n_out; a++) same &= s->step[a] == 0;
  return same;
}

/* most: elements of a span. */
static bool spans_of(Gen *g, const Nest *t, const CudaAccesses *all, int64_t most, CudaSpans *to) {
  int64_t block = SPAN_BYTES, full = THREAD_BYTES * to->threads, alike_bytes = 0;
  int64_t room = CUDA_SHARED - CUDA_SPANS * 16 - cuda_exchange_bytes(false, (int)to->points);
  if (full > room) full = room;
  if (most == FEW && full > block && !t->columns) block = full;
  to->n = 0;
  to->box = 1;
  to->lines = false;
  to->sectors = 0;
  for (int i = 0; i < g->k->inputs.n; i++) {
    CudaSpan s = {0};
    int64_t size = node_numel(g->k->inputs.v[i].node);
    bool even = false, line, found = find_span(t, all, i, to->chunk, &s, &even, &line);
    bool alike = found && most == FEW && is_alike(t, &s);
    if (found && even && !alike) continue;
    double before = to->sectors;
    to->sectors = INFINITY;
    if (!found) {
      s = (CudaSpan){0};
      line = false;
      if (!find_whole(t, all, i, size, &s)) continue;
    }
    s.size = size;
    if (s.size == 0 || to->n == CUDA_SPANS || !set_length(t, &s, to->points)) continue;
    if ((alike ? alike_bytes + s.length * s.bytes > block - 4 * FEW : s.length > most) ||
        (cuda_is_overwritten(g->k, &g->k->inputs.v[i]) && !is_own(t, &s, to->points)))
      continue;
    if (!s.whole && s.box > to->box) to->box = s.box;
    if (alike) alike_bytes += s.length * s.bytes;
    to->lines |= line && !alike;
    to->sectors = before + sectors_of(t, to, &s);
    to->v[to->n++] = s;
  }
  bool results = t->unroll || to->lines;
  to->sectors += result_sectors(t);
  return (!results || add_results(t, to)) && place_spans(t, block, to) && to->n > 0;
}

bool cuda_may_copy(Gen *g, const Nest *t, CudaAccesses *all) {
  return t->n_out > 0 && t->rows > 0 && !g->sums && g->part != LOOP_EPILOGUE &&
         g->k->kind != K_CONCAT && cuda_accesses(g, t, all);
}

/* Bytes of the smallest result. */
static int64_t results_size(const Nest *t) {
  int64_t size = 8;
  for (int r = 0; r < t->roots.n; r++)
    if (dtype_info[t->roots.v[r].n->dtype].size < size)
      size = dtype_info[t->roots.v[r].n->dtype].size;
  return size;
}

const CudaSpans *cuda_spans(Gen *g, const Nest *t, int vector) {
  CudaAccesses all = {0};
  CudaSpans *to = arena_new_of(g->a, CudaSpans);
  int64_t first = (int64_t)CUDA_THREADS * vector, box;
  if ((t->red && !t->unroll) || !cuda_may_copy(g, t, &all)) return NULL;
  to->points = first;
  to->threads = CUDA_THREADS;
  if (spans_of(g, t, &all, SPAN_BYTES, to) && to->box == 1) return to;
  /* blocks that are boxes and begin with sectors */
  box = to->box;
  while (box * results_size(t) % CUDA_SECTOR && box < CUDA_SECTOR * to->box) box += to->box;
  to->points = box * (first / box > 1 ? first / box : 1);
  if (to->box > 1 && to->points <= MOST_BOXES * first && spans_of(g, t, &all, SPAN_BYTES, to))
    return to;
  for (to->points = first; to->points >= 32 * vector; to->points /= 2)
    if (spans_of(g, t, &all, SPAN_BYTES, to)) return to;
  return NULL;
}

int cuda_team_unit(const Nest *t) {
  int unit = 1;
  for (int r = 0; r < t->roots.n && !t->columns; r++) {
    int64_t row = t->n_sums * dtype_info[t->roots.v[r].n->dtype].size;
    while (t->roots.v[r].full && row * unit % CUDA_SECTOR) unit *= 2;
  }
  return t->columns ? (int)t->out[t->n_out - 1].ext : unit;
}

const CudaSpans *cuda_team_spans(Gen *g, const Nest *t, int teams, int threads, bool lines,
                                 int64_t chunk) {
  CudaAccesses all = {0};
  CudaSpans *to = arena_new_of(g->a, CudaSpans);
  if (!cuda_may_copy(g, t, &all)) return NULL;
  to->points = teams;
  to->threads = threads;
  to->chunk = chunk;
  return spans_of(g, t, &all, lines ? SPAN_BYTES : FEW, to) && to->lines == lines ? to : NULL;
}

const CudaSpans *cuda_join_spans(Gen *g) {
  enum { MANY = 1024 };
  const Node *n = g->k->core;
  CudaSpans *to = arena_new_of(g->a, CudaSpans);
  int64_t inside = 1, at = 0, size = dtype_info[n->dtype].size;
  bool even = true;
  if (n->n_in > CUDA_SPANS || node_numel(n) == 0) return NULL;
  for (int d = (int)n->i + 1; d < n->rank; d++) inside *= n->dims[d];
  to->threads = CUDA_THREADS;
  to->points = node_numel(n) < 32 * MANY ? CUDA_THREADS : MANY;
  for (int i = 0; i < n->n_in; i++) {
    const Node *x = n->in[i];
    CudaSpan s = {.buffer = gen_info(g, n->in[i])->input, .bytes = (int)size, .parts = 1};
    if (s.buffer < 0) return NULL;
    for (int j = 0; j < to->n; j++)
      if (to->v[j].buffer == s.buffer) return NULL;
    s.part = x->dims[n->i] * inside;
    s.part_at = at;
    s.size = node_numel(x);
    s.length = to->points + 2 * CUDA_SECTOR / size;
    at += s.part;
    even &= s.part * size % CUDA_SECTOR == 0;
    if (s.size) to->v[to->n++] = s;
  }
  return even ? NULL : to;
}
