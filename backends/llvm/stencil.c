/* Depthwise contractions, channels last. In: a K_CONTRACT kernel, one of
 *
 *   result[o.., h, w, c] = sum over i, j of              x[o.., (a h + b i + p)/d, (a' w + b' j + p')/d', c] * f[i, j, c]
 *   result[o.., i, j, c] = sum over s.., h, w of         x[o.., s.., a h + b i + p, a' w + b' j + p', c] * y[o.., s.., h, w, c]
 *
 * where the taps i, j are few: a convolution or the gradient of its input, and the gradient of its filter. Out: which loops play
 * which part, how the channels are cut into blocks, the rows (h) into blocks of a few and those into tasks, and a block of rows into
 * tiles of columns. */
#include "stencil.h"
#include <stdlib.h>

enum {
  MAX_TAPS = 64,
  TILE_PRODUCTS = 80,    /* of one tile: bounds the code */
  LONG_ROW = 8,          /* columns of a tile of a row that takes several */
  WIDEST = 16,           /* columns of a tile */
  MOST_HEIGHT = 8,       /* rows of a tile */
  FEW_TAPS = 9,          /* then blocks are higher */
  ROW_BYTES = 512 << 10, /* of the rows of x that a block of rows reads */
  SUM_BYTES = 16 << 10,  /* of the sums over positions */
  ROW_CHUNK = 1 << 15,   /* products of one task, about */
  SUM_CHANNELS = 128,    /* of a block, if those of several tasks are not neighbours */
  SUM_TASKS = 8,         /* of sums over positions, if there is as much to do */
  ZEROS = 1 << 17        /* most bytes of zeros */
};

/* ---- which contractions ---- */

static bool reads(const AffDim *m, const int64_t *ext, int l) {
  return ext[l] > 1 && ((m->l0 == l && m->c0) || (m->l1 == l && m->c1));
}

/* Only that loop, from 0 in steps of 1, and all of it. */
static bool plain(const AffDim *m, const int64_t *ext, int64_t dim, int l) {
  int other = m->l0 == l ? m->l1 : m->l0;
  int64_t c = m->l0 == l ? m->c0 : m->c1;
  return reads(m, ext, l) && c == 1 && m->off == 0 && m->div == 1 && dim == ext[l] &&
         (other < 0 || !reads(m, ext, other));
}

/* The one dimension of operand i that reads loop l; -1: none, -2: several. */
static int dim_of(const Node *c, int i, int l) {
  int at = -1;
  for (int d = 0; d < c->in[i]->rank; d++)
    if (reads(&c->map[i][d], c->ext, l)) at = at == -1 ? d : -2;
  return at;
}

static bool channels_last(const Node *c, int i, int chan) {
  int d = dim_of(c, i, chan);
  if (d < 0 || !plain(&c->map[i][d], c->ext, c->in[i]->dims[d], chan)) return false;
  for (int e = d + 1; e < c->in[i]->rank; e++)
    if (c->in[i]->dims[e] != 1) return false;
  return true;
}

/* Dimensions that are read at an index of their own must be inside. */
static bool inside(const AffDim *m, const int64_t *ext, int64_t dim) {
  int64_t lo = m->off, hi = m->off;
  if (m->div != 1) return false;
  if (m->l0 >= 0) *(m->c0 < 0 ? &lo : &hi) += m->c0 * (ext[m->l0] - 1);
  if (m->l1 >= 0) *(m->c1 < 0 ? &lo : &hi) += m->c1 * (ext[m->l1] - 1);
  return lo >= 0 && hi < dim;
}

static bool is_result(const Stencil *s, int l) { return l < s->core->rank; }

/* What dimension d of operand i reads; false if that is more than a position and a tap. */
static bool window_of(const Stencil *s, int i, int d, Window *w) {
  const Node *c = s->core;
  const AffDim *m = &c->map[i][d];
  int l[2] = {m->l0, m->l1};
  int64_t k[2] = {m->c0, m->c1};
  *w = (Window){.dim = d, .at = -1, .tap = -1, .off = m->off, .div = m->div};
  w->size = c->in[i]->dims[d];
  w->taps = w->n = 1;
  for (int t = 0; t < 2; t++) {
    if (l[t] < 0 || !reads(m, c->ext, l[t])) continue;
    bool tap = is_result(s, l[t]) == s->sums;
    if ((tap ? w->tap : w->at) >= 0) return false;
    if (tap)
      w->tap = l[t], w->b = k[t], w->taps = c->ext[l[t]];
    else
      w->at = l[t], w->a = k[t], w->n = c->ext[l[t]];
  }
  return true;
}

/* The window dimensions of x. */
static bool find_windows(Stencil *s) {
  const Node *c = s->core;
  int n = 0, i = s->x;
  s->row = (Window){.dim = -1, .at = -1, .tap = -1, .size = 1, .taps = 1, .n = 1, .div = 1};
  for (int l = 0; l < c->n_loops; l++)
    if (c->ext[l] > 1 && dim_of(c, i, l) == -2) return false;
  for (int d = c->in[i]->rank - 1; d >= 0; d--) {
    Window w;
    bool fits = window_of(s, i, d, &w);
    if ((!fits || w.tap < 0 || w.at < 0) && inside(&c->map[i][d], c->ext, w.size)) continue;
    if (!fits || w.at < 0 || n == 2 || (s->sums && w.div > 1)) return false;
    *(n++ ? &s->row : &s->col) = w;
  }
  int64_t taps = s->row.taps * s->col.taps;
  s->step = n ? stencil_stride(c->in[i], s->col.dim) : 0;
  return n && taps > 1 && taps <= MAX_TAPS;
}

/* The other loops, and what the other operand reads. */
static bool find_loops(Stencil *s) {
  const Node *c = s->core;
  s->n_outers = 1;
  s->n_outer = s->n_sum = 0;
  for (int l = 0; l < c->n_loops; l++) {
    bool own = l == s->row.at || l == s->col.at || l == s->row.tap || l == s->col.tap;
    bool tap = l == s->row.tap || l == s->col.tap;
    if (c->ext[l] == 1 || l == s->chan) continue;
    if ((s->sums ? tap : is_result(s, l)) && dim_of(c, !s->x, l) != -1) return false;
    if (own) continue;
    if (is_result(s, l)) {
      s->outer[s->n_outer++] = l;
      s->n_outers *= c->ext[l];
    } else if (s->sums) {
      s->sum[s->n_sum++] = l;
    } else {
      return false;
    }
  }
  for (int d = 0; d < c->in[!s->x]->rank; d++)
    if (!inside(&c->map[!s->x][d], c->ext, c->in[!s->x]->dims[d])) return false;
  return channels_last(c, s->x, s->chan) && channels_last(c, !s->x, s->chan);
}

int64_t stencil_stride(const Node *x, int d) {
  int64_t s = 1;
  while (++d < x->rank) s *= x->dims[d];
  return s;
}

int64_t stencil_row_bytes(const Stencil *s, int64_t first, int64_t last) {
  return ((last - first) * s->step + s->channels) * dtype_info[s->core->dtype].size;
}

static int64_t div_ceil(int64_t a, int64_t b) { return (a + b - 1) / b; }

static int64_t taps_of(const Stencil *s) { return s->row.taps * s->col.taps; }

/* Rows of a block: each row of x that is read serves all of them. If possible, no rows are left over. */
static int64_t height_of(const Stencil *s) {
  static const int few[] = {4, 5, 3, 2, 0}, many[] = {2, 3, 0};
  bool is_few = taps_of(s) <= FEW_TAPS;
  int64_t d = s->row.div, most = is_few ? few[0] : many[0];
  if (s->row.at < 0) return 1;
  if (d > 1) return div_ceil(most, d) * d;
  for (const int *t = is_few ? few : many; *t; t++)
    if (s->row.n % *t == 0) return *t;
  return s->row.n < most ? s->row.n : most;
}

int64_t stencil_part(const Stencil *s) { return div_ceil(s->n_height, s->parts); }

/* Parts of the rows that are summed on their own, so that there are several tasks. */
static int64_t parts_of(const Stencil *s) {
  int64_t tasks = s->n_outers * s->n_block, products = taps_of(s) * s->row.n * s->col.n * s->block;
  for (int i = 0; i < s->n_sum; i++) products *= s->core->ext[s->sum[i]];
  int64_t n = products / ROW_CHUNK, most = SUM_TASKS / tasks;
  if (!s->sums) return 1;
  if (n > most) n = most;
  if (n > s->n_height) n = s->n_height;
  return n < 2 ? 1 : div_ceil(s->n_height, div_ceil(s->n_height, n));
}

/* Blocks of channels: as many as the caches hold; of sums over positions so few that there are several tasks. */
static void cut_rows(Stencil *s) {
  int64_t size = dtype_info[s->core->dtype].size, taps = taps_of(s);
  s->height = height_of(s);
  s->n_height = div_ceil(s->row.n, s->height);
  int64_t rows = llabs(s->row.a) * (s->height - 1) / s->row.div + s->row.taps;
  int64_t fit = ROW_BYTES / (rows * s->col.size * size), least = 32;
  if (s->sums && fit > SUM_BYTES / (taps * size)) fit = SUM_BYTES / (taps * size);
  int64_t share = s->channels * s->n_outers / SUM_TASKS;
  if (s->sums && fit > share) fit = share < SUM_CHANNELS ? SUM_CHANNELS : share;
  s->block = s->channels;
  for (int64_t b = least; b < s->channels && s->channels > fit; b += least)
    if (s->channels % b == 0 && (b <= fit || b == least)) s->block = b;
  s->n_block = s->channels / s->block;
  s->parts = parts_of(s);
  s->blocks = s->n_outers * s->n_block * (s->sums ? s->parts : s->n_height);
  int64_t work = s->height * s->col.n * s->block * taps / (s->row.div * s->col.div);
  s->blocks_per_task = work >= ROW_CHUNK || s->sums ? 1 : ROW_CHUNK / (work ? work : 1);
}

/* Do only the first and the last tile read outside of x? */
static bool fits_tile(const Stencil *s, int64_t t) {
  int64_t n = stencil_tiles(s, t), lo, hi;
  if (n > 2) {
    stencil_reads(s, t, (n - 2) * t, &lo, &hi);
    if (lo < 0 || hi >= s->col.size || t % s->col.div || s->col.a * t % s->col.div) return false;
  }
  stencil_reads(s, 0, 2 * t, &lo, &hi);
  return stencil_row_bytes(s, lo, hi + 1) <= ZEROS;
}

static bool fits_tiles(const Stencil *s) {
  return s->height <= MOST_HEIGHT && fits_tile(s, stencil_tile(s, 16)) &&
         fits_tile(s, stencil_tile(s, 32));
}

/* Few taps and many positions are faster than the reverse, where both are possible. */
Stencil *stencil_plan(Arena *a, const Kernel *k, LoopPart part) {
  Node *c = k->core;
  if ((part != LOOP_CONTRACT && part != LOOP_PARTS) ||
      (c->dtype != DT_FLOAT32 && c->dtype != DT_FLOAT64))
    return NULL;
  if (node_numel(c) == 0 || c->rank == 0) return NULL;
  for (int l = c->rank; l < c->n_loops; l++)
    if (c->ext[l] == 0) return NULL;
  Stencil *s = arena_new_of(a, Stencil);
  s->core = c;
  s->chan = c->rank - 1;
  while (s->chan > 0 && c->ext[s->chan] == 1) s->chan--;
  s->channels = c->ext[s->chan];
  Stencil best = {0};
  for (int i = 0; i < 4; i++) {
    s->x = i % 2;
    s->sums = i / 2;
    if (!find_windows(s) || !find_loops(s)) continue;
    cut_rows(s);
    if (fits_tiles(s) && (!best.core || taps_of(s) < taps_of(&best))) best = *s;
  }
  *s = best;
  return s->core ? s : NULL;
}

bool stored_in_memory(const Node *x) {
  enum { LARGE = 4 << 20 };
  return node_numel(x) * dtype_info[x->dtype].size >= LARGE && !(x->buf && x->buf->kind == B_LOCAL);
}

bool loop_is_stencil(const Kernel *k) {
  Arena *a = arena_scratch();
  bool yes = stencil_plan(a, k, LOOP_CONTRACT) != NULL;
  arena_free(a);
  return yes;
}

int64_t stencil_item_tasks(const Stencil *s) {
  bool leads = s->n_outer && s->outer[0] == 0;
  int64_t per = leads ? s->blocks / s->core->ext[0] : 0;
  return per && per % s->blocks_per_task == 0 ? per / s->blocks_per_task : 0;
}

bool stencil_task_rows(const Stencil *s, TaskRows *to) {
  int64_t per = stencil_item_tasks(s), blocks = per * s->blocks_per_task;
  if (s->sums || s->n_outer != 1 || s->row.at != 1) return false;
  for (int64_t t = 0; t < per; t++) {
    int64_t first = t * s->blocks_per_task / s->n_block,
            end = ((t + 1) * s->blocks_per_task - 1) / s->n_block + 1;
    to[t].lo = (int32_t)(first * s->height);
    to[t].hi = (int32_t)(end * s->height < s->row.n ? end * s->height : s->row.n);
  }
  return blocks == s->n_height * s->n_block;
}

int64_t stencil_tasks(const Stencil *s, LoopPart part) {
  return part == LOOP_PARTS ? s->n_outers * s->n_block : div_ceil(s->blocks, s->blocks_per_task);
}

int64_t loop_workspace(const Kernel *k) {
  if (k->kind != K_CONTRACT) return 0;
  Arena *a = arena_scratch();
  const Stencil *s = stencil_plan(a, k, LOOP_CONTRACT);
  int64_t sums =
      s && s->parts > 1 ? s->parts * s->n_outers * s->n_block * taps_of(s) * s->block : 0;
  int64_t bytes = sums * dtype_info[k->core->dtype].size;
  arena_free(a);
  return bytes;
}

/* ---- tiles ---- */

/* Equal ones, of a multiple of div, whose sums leave registers for the filter and a column of x; wider ones if more than the
 * first and the last would read outside. */
int64_t stencil_tile(const Stencil *s, int registers) {
  int64_t products = taps_of(s) * s->height, most = registers / 2 / s->height;
  int64_t fit = TILE_PRODUCTS * s->col.div * s->row.div / products;
  if (most > fit) most = fit;
  if (most > LONG_ROW && s->col.n > most) most = LONG_ROW;
  if (most < 2) most = 2;
  int64_t n = div_ceil(s->col.n, most), t = div_ceil(s->col.n, n);
  t = div_ceil(t, s->col.div) * s->col.div;
  for (int64_t wide = t; wide <= WIDEST; wide += s->col.div)
    if (fits_tile(s, wide)) return wide;
  return t;
}

/* The last one takes over what the one before it would read outside. */
int64_t stencil_tiles(const Stencil *s, int64_t size) {
  int64_t n = div_ceil(s->col.n, size), lo, hi;
  if (n < 3) return n;
  stencil_reads(s, size, (n - 2) * size, &lo, &hi);
  return hi < s->col.size ? n : n - 1;
}

void stencil_reads(const Stencil *s, int64_t from, int64_t n, int64_t *lo, int64_t *hi) {
  const Window *w = &s->col;
  int64_t at[2] = {w->a * from, w->a * (from + n - 1)}, tap = w->b * (w->taps - 1);
  *lo = (at[0] < at[1] ? at[0] : at[1]) + w->off + (tap < 0 ? tap : 0);
  *hi = (at[0] < at[1] ? at[1] : at[0]) + w->off + (tap > 0 ? tap : 0);
  *lo = *lo >= 0 ? *lo / w->div : -((-*lo + w->div - 1) / w->div);
  *hi = *hi >= 0 ? *hi / w->div : -((-*hi + w->div - 1) / w->div);
}
