/* Depthwise contractions, channels last: forward and the gradient of the input. In: a K_CONTRACT kernel
 *
 *   result[o.., h, w, c] = sum over the taps (i, j) of x[o.., (a h + b i + p)/d, (a' w + b' j + p')/d', c] * f[i, j, c]
 *
 * Out: the plan of a loop nest over rows (one h) of blocks of channels. A row is cut into equal tiles of columns: the first, those between,
 * and the last, each with code of its own, so that which taps fall outside or are left out by the division is known where
 * the code is made. The innermost loop runs over the channels, which LLVM makes vectors of; at each channel a column of x is
 * loaded once for all products that it is part of, and the sums of a tile stay in registers, as does a row of f.
 * A row of x that lies outside is read from zeros. Rows are told apart by their remainder modulo d. The epilogue follows on the
 * sums. */
#include "stencil.h"

enum {
  MAX_TAPS = 64,
  TILE_PRODUCTS = 200,  /* of one tile: bounds the code */
  LONG_ROW = 8,         /* columns of a tile of a row that takes several */
  ROW_BYTES = 96 << 10, /* of the rows of x that a row of results reads */
  LEAST_BLOCK = 32,     /* channels */
  ROW_CHUNK = 1 << 15,  /* products of one task, about */
  ZEROS = 1 << 17       /* most bytes of zeros */
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

/* The filter: every dimension reads taps or channels. */
static bool filter_fits(const Node *c, int i, int chan) {
  for (int l = 0; l < c->rank; l++)
    if (l != chan && dim_of(c, i, l) != -1) return false;
  for (int d = 0; d < c->in[i]->rank; d++)
    if (!inside(&c->map[i][d], c->ext, c->in[i]->dims[d])) return false;
  return channels_last(c, i, chan);
}

static Window window_of(const Node *c, int i, int d) {
  const AffDim *m = &c->map[i][d];
  Window w = {.dim = d, .at = -1, .tap = -1, .off = m->off, .div = m->div};
  int l[2] = {m->l0, m->l1};
  int64_t k[2] = {m->c0, m->c1};
  w.size = c->in[i]->dims[d];
  w.taps = w.n = 1;
  for (int t = 0; t < 2; t++) {
    if (l[t] < 0 || !reads(m, c->ext, l[t])) continue;
    if (l[t] < c->rank)
      w.at = l[t], w.a = k[t], w.n = c->ext[l[t]];
    else
      w.tap = l[t], w.b = k[t], w.taps = c->ext[l[t]];
  }
  return w;
}

/* The window dimensions of x, and which loops are left as outer ones. */
static bool windows_of(Stencil *s, int i) {
  const Node *c = s->core;
  int n = 0;
  s->row = (Window){.dim = -1, .at = -1, .tap = -1, .size = 1, .taps = 1, .n = 1, .div = 1};
  for (int l = 0; l < c->n_loops; l++)
    if (c->ext[l] > 1 && dim_of(c, i, l) == -2) return false;
  for (int d = c->in[i]->rank - 1; d >= 0; d--) {
    Window w = window_of(c, i, d);
    if (w.tap < 0 && inside(&c->map[i][d], c->ext, w.size)) continue;
    if (w.at < 0 || n == 2) return false;
    *(n++ ? &s->row : &s->col) = w;
  }
  if (!n) return false;
  for (int l = c->rank; l < c->n_loops; l++)
    if (c->ext[l] > 1 && l != s->row.tap && l != s->col.tap) return false;
  return s->row.taps * s->col.taps > 1 && s->row.taps * s->col.taps <= MAX_TAPS;
}

static int64_t div_ceil(int64_t a, int64_t b) { return (a + b - 1) / b; }

static void cut_rows(Stencil *s) {
  const Node *c = s->core;
  s->n_outers = 1;
  for (int l = 0; l < c->rank; l++) {
    if (l == s->chan || l == s->row.at || l == s->col.at || c->ext[l] == 1) continue;
    s->outer[s->n_outer++] = l;
    s->n_outers *= c->ext[l];
  }
  int64_t fit = ROW_BYTES / (s->row.taps * s->col.size * dtype_info[c->dtype].size);
  s->block = s->channels;
  for (int64_t b = LEAST_BLOCK; b < s->channels; b += LEAST_BLOCK)
    if (s->channels % b == 0 && (b <= fit || b == LEAST_BLOCK) && s->channels > fit) s->block = b;
  s->n_block = s->channels / s->block;
  s->rows = s->n_outers * s->n_block * s->row.n;
  int64_t work = s->col.n * s->block * s->row.taps * s->col.taps / (s->row.div * s->col.div);
  s->rows_per_task = work >= ROW_CHUNK ? 1 : ROW_CHUNK / (work ? work : 1);
}

static bool fits_tiles(const Stencil *s) {
  static const int registers[] = {16, 32};
  for (int i = 0; i < 2; i++) {
    int64_t t = tile_columns(s, registers[i]), n = n_tiles(s, t), lo, hi;
    if (n > 2) {
      columns_read(s, t, (n - 2) * t, &lo, &hi);
      if (lo < 0 || hi >= s->col.size || t % s->col.div || s->col.a * t % s->col.div) return false;
    }
    columns_read(s, 0, 2 * t, &lo, &hi);
    if ((hi - lo + 2) * s->channels * dtype_info[s->core->dtype].size > ZEROS) return false;
  }
  return true;
}

Stencil *stencil_plan(Arena *a, const Kernel *k, LoopPart part) {
  Node *c = k->core;
  if (part != LOOP_CONTRACT || (c->dtype != DT_FLOAT32 && c->dtype != DT_FLOAT64)) return NULL;
  Stencil *s = arena_new_of(a, Stencil);
  s->core = c;
  s->chan = c->rank - 1;
  while (s->chan > 0 && c->ext[s->chan] == 1) s->chan--;
  if (node_numel(c) == 0 || c->rank == 0) return NULL;
  s->channels = c->ext[s->chan];
  for (int l = c->rank; l < c->n_loops; l++)
    if (c->ext[l] == 0) return NULL;
  for (s->x = 0; s->x < 2; s->x++)
    if (channels_last(c, s->x, s->chan) && filter_fits(c, !s->x, s->chan) && windows_of(s, s->x)) {
      cut_rows(s);
      return fits_tiles(s) ? s : NULL;
    }
  return NULL;
}

bool loop_is_stencil(const Kernel *k) {
  Arena *a = arena_scratch();
  bool yes = stencil_plan(a, k, LOOP_CONTRACT) != NULL;
  arena_free(a);
  return yes;
}

int64_t stencil_tasks(const Stencil *s) { return div_ceil(s->rows, s->rows_per_task); }

/* ---- tiles ---- */

int64_t tile_columns(const Stencil *s, int registers) {
  int64_t taps = s->row.taps * s->col.taps, most = registers - 2 - s->col.taps;
  int64_t fit = TILE_PRODUCTS * s->col.div * s->row.div / taps;
  if (most > registers / 2) most = registers / 2;
  if (most > fit) most = fit;
  if (most > LONG_ROW && s->col.n > most) most = LONG_ROW;
  if (most < 2) most = 2;
  int64_t n = div_ceil(s->col.n, most), t = div_ceil(s->col.n, n);
  return div_ceil(t, s->col.div) * s->col.div;
}

int64_t n_tiles(const Stencil *s, int64_t size) {
  int64_t n = div_ceil(s->col.n, size), lo, hi;
  if (n < 3) return n;
  columns_read(s, size, (n - 2) * size, &lo, &hi);
  return hi < s->col.size ? n : n - 1;
}

void columns_read(const Stencil *s, int64_t from, int64_t n, int64_t *lo, int64_t *hi) {
  const Window *w = &s->col;
  int64_t at[2] = {w->a * from, w->a * (from + n - 1)}, tap = w->b * (w->taps - 1);
  *lo = (at[0] < at[1] ? at[0] : at[1]) + w->off + (tap < 0 ? tap : 0);
  *hi = (at[0] < at[1] ? at[1] : at[0]) + w->off + (tap > 0 ? tap : 0);
  *lo = *lo >= 0 ? *lo / w->div : -((-*lo + w->div - 1) / w->div);
  *hi = *hi >= 0 ? *hi / w->div : -((-*hi + w->div - 1) / w->div);
}
