/* Operators on sequences: the rows of a tensor are sequences one after another, whose offsets (LoD, one level) are known
 * where the program is compiled, so that each operator is a GATHER by a table of rows. Most work on the sequences side
 * by side, [N, longest, ...], with a mask of what is there; padding repeats row 0 and is masked. */
#include "sequence.h"

#include <math.h>
#include <string.h>

int64_t seq_longest(const Lod *l) {
  int64_t most = 0;
  for (int64_t i = 0; i < l->n; i++)
    if (seq_length(l, i) > most) most = seq_length(l, i);
  return most;
}

const Lod *seq_lod(Graph *g, int64_t n, const int64_t *len) {
  int64_t *at = arena_array(g->arena, int64_t, n + 1);
  Lod *l = arena_new_of(g->arena, Lod);
  for (int64_t i = 0; i < n; i++) {
    if (len[i] < 0 || !add_ok(at[i], len[i], &at[i + 1]) || at[i + 1] > MAX_ROWS) {
      err_set(E_MEM_002, "sequences of more than %d rows", MAX_ROWS);
      return NULL;
    }
  }
  *l = (Lod){n, at, NULL, NULL};
  return l;
}

Node *seq_rows(Graph *g, Node *x, int64_t n, const int64_t *at) {
  if (!x) return NULL;
  int64_t *idx = arena_array(g->arena, int64_t, n + 1), dims[KL_RANK];
  uint8_t *live = arena_array(g->arena, uint8_t, n + 1);
  bool all = true;
  for (int64_t i = 0; i < n; i++) {
    idx[i] = at[i] < 0 ? 0 : at[i];
    live[i] = at[i] >= 0;
    all &= live[i];
  }
  memcpy(dims, x->dims, sizeof dims);
  dims[0] = n;
  if (x->dims[0] == 0) return g_full(g, x->dtype, 0, x->rank, dims);
  Node *v = ops_take(g, x, g_data(g, DT_INT64, 1, &n, idx, "rows"), 0);
  if (all || !v) return v;
  Node *mask = g_data(g, DT_BOOL, 1, &n, live, "live");
  return g_select(g, ops_along(g, mask, x->rank, 0), v, g_const(g, x->dtype, 0));
}

Node *seq_spread(Graph *g, Node *x, const Lod *l) {
  int64_t n = seq_n_rows(l), *row = arena_array(g->arena, int64_t, n + 1);
  for (int64_t i = 0; i < l->n; i++)
    for (int64_t k = l->offset[i]; k < l->offset[i + 1]; k++) row[k] = i;
  return ops_take(g, x, g_data(g, DT_INT64, 1, &n, row, "row"), 0);
}

/* Position k of each sequence, [N * width]: its row, -1 behind the end. */
static int64_t *padded_rows(Graph *g, const Lod *l, int64_t width) {
  int64_t *at = arena_array(g->arena, int64_t, l->n * width + 1);
  for (int64_t i = 0; i < l->n; i++)
    for (int64_t k = 0; k < width; k++)
      at[i * width + k] = k < seq_length(l, i) ? l->offset[i] + k : -1;
  return at;
}

/* Of each row its place among the padded ones. */
static int64_t *unpadded_rows(Graph *g, const Lod *l, int64_t width) {
  int64_t *at = arena_array(g->arena, int64_t, seq_n_rows(l) + 1);
  for (int64_t i = 0; i < l->n; i++)
    for (int64_t k = 0; k < seq_length(l, i); k++) at[l->offset[i] + k] = i * width + k;
  return at;
}

Node *seq_wide(Graph *g, Node *x, const Lod *l, int64_t width) {
  Node *v = seq_rows(g, x, l->n * width, padded_rows(g, l, width));
  int64_t dims[KL_RANK] = {l->n, width};
  if (!v || v->rank + 1 > KL_RANK) return NULL;
  memcpy(dims + 2, v->dims + 1, sizeof *dims * (size_t)(v->rank - 1));
  return g_reshape(g, v, v->rank + 1, dims);
}

/* The way back. */
static Node *one_after_another(Graph *g, Node *x, const Lod *l) {
  if (!x) return NULL;
  int64_t width = x->dims[1], dims[KL_RANK] = {x->dims[0] * width};
  memcpy(dims + 1, x->dims + 2, sizeof *dims * (size_t)(x->rank - 2));
  Node *flat = g_reshape(g, x, x->rank - 1, dims);
  return seq_rows(g, flat, seq_n_rows(l), unpadded_rows(g, l, width));
}

/* [N, width, 1...]: is there a row? */
static Node *mask_of(Graph *g, const Lod *l, int64_t width, int rank) {
  int64_t dims[KL_RANK] = {l->n, width}, all = l->n * width;
  uint8_t *live = arena_array(g->arena, uint8_t, all + 1);
  for (int64_t i = 0; i < all; i++) live[i] = i % width < seq_length(l, i / width);
  for (int d = 2; d < rank; d++) dims[d] = 1;
  return g_data(g, DT_BOOL, rank, dims, live, "mask");
}

bool seq_read(Expand *x, const char *slot, Node **v, const Lod **l) {
  *v = x_in(x, slot);
  if (!ops_rank(*v, slot, 1, KL_RANK - 1)) return false;
  *l = x_lod(x, slot, 0);
  return *l || x->g->shapes_only;
}

bool seq_unknown(Expand *x, const char *slot, const Node *like) {
  int64_t dims[KL_RANK];
  memcpy(dims, like->dims, sizeof dims);
  dims[0] = -1;
  return x_out(x, slot, ops_blank(x->g, like->dtype, like->rank, dims));
}

/* ---- pooling ---- */

static const char *const pool_words[] = {"SUM", "AVERAGE", "SQRT", "MAX", "FIRST", "LAST"};

static Node *pool_sum(Graph *g, Node *wide, const Lod *l, int type) {
  Node *sum = g_reduce(g, P_RSUM, wide, 2, false);
  if (type == 0 || !sum) return sum;
  double *by = arena_array(g->arena, double, l->n + 1);
  for (int64_t i = 0; i < l->n; i++) {
    double n = seq_length(l, i) ? (double)seq_length(l, i) : 1;
    by[i] = 1 / (type == 1 ? n : sqrt(n));
  }
  Node *v = g_cast(g, g_data(g, DT_FLOAT64, 1, &l->n, by, "by"), sum->dtype);
  return ops_mul(g, sum, ops_along(g, v, sum->rank, 0));
}

static Node *pool_pick(Graph *g, Node *v, const Lod *l, bool last) {
  int64_t *at = arena_array(g->arena, int64_t, l->n + 1);
  for (int64_t i = 0; i < l->n; i++)
    at[i] = !seq_length(l, i) ? -1 : last ? l->offset[i + 1] - 1 : l->offset[i];
  return seq_rows(g, v, l->n, at);
}

bool x_sequence_pool(Expand *x) {
  Graph *g = x->g;
  Node *v, *out;
  const Lod *l;
  int type = op_word(x->op, "pooltype", 6, pool_words);
  if (type < 0 || !seq_read(x, "X", &v, &l)) return false;
  if (!l) return seq_unknown(x, "Out", v);
  int64_t width = seq_longest(l);
  if (width == 0) width = 1;
  Node *wide = seq_wide(g, v, l, width), *mask = wide ? mask_of(g, l, width, wide->rank) : NULL;
  if (type >= 4)
    out = pool_pick(g, v, l, type == 5);
  else if (type == 3)
    out = g_reduce(g, P_RMAX, g_select(g, mask, wide, g_const(g, v->dtype, -1e30)), 2, false);
  else
    out = pool_sum(g, wide, l, type);
  int64_t *full = arena_array(g->arena, int64_t, l->n + 1);
  uint8_t *empty = arena_array(g->arena, uint8_t, l->n + 1);
  bool any = false;
  for (int64_t i = 0; i < l->n; i++) any |= (empty[i] = seq_length(l, i) == 0), full[i] = i;
  if (any && out)
    out = g_select(g, ops_along(g, g_data(g, DT_BOOL, 1, &l->n, empty, "empty"), out->rank, 0),
                   g_const(g, out->dtype, op_float(x->op, "pad_value")), out);
  if (type == 3 && x_wants(x, "MaxIndex")) {
    Node *i = g_argmax(g, g_select(g, mask, wide, g_const(g, v->dtype, -1e30)), 2, false, DT_INT32);
    Node *first = g_data(g, DT_INT64, 1, &l->n, l->offset, "first");
    if (!i ||
        !x_out(x, "MaxIndex", ops_add(g, i, ops_along(g, g_cast(g, first, DT_INT32), i->rank, 0))))
      return false;
  }
  return x_out_lod(x, "Out", out, l->up ? l->up : &lod_none);
}

bool x_sequence_softmax(Expand *x) {
  Graph *g = x->g;
  Node *v;
  const Lod *l;
  if (!seq_read(x, "X", &v, &l)) return false;
  if (!l || seq_n_rows(l) == 0) return x_out_lod(x, "Out", ops_blank_like(g, v), l);
  int64_t width = seq_longest(l);
  Node *wide = seq_wide(g, v, l, width), *mask = wide ? mask_of(g, l, width, wide->rank) : NULL;
  wide = g_select(g, mask, wide, g_const(g, v->dtype, -1e30));
  Node *e = wide ? g_map1(g, P_EXP, ops_sub(g, wide, g_reduce(g, P_RMAX, wide, 2, true))) : NULL;
  e = g_select(g, mask, e, g_const(g, v->dtype, 0));
  Node *p = e ? ops_div(g, e, g_map2c(g, P_MAX, g_reduce(g, P_RSUM, e, 2, true), 1e-30)) : NULL;
  return x_out_lod(x, "Out", one_after_another(g, p, l), l);
}

/* ---- repeating, joining, turning ---- */

/* Level number i, the outermost is 0; -1: the last. */
static const Lod *level_of(Expand *x, const Lod *l, int64_t i) {
  int64_t n = 0;
  for (const Lod *k = l; k; k = k->up) n++;
  if (i == -1) return l;
  if (i < 0 || i >= n) {
    err_set(E_OPR_003, "ref_level is %lld, Y has %lld levels of sequences", (long long)i,
            (long long)n);
    return NULL;
  }
  for (i = n - 1 - i; i > 0; i--) l = l->up;
  return lod_read(x->g, l);
}

bool x_sequence_expand(Expand *x) {
  Graph *g = x->g;
  Node *v = x_in(x, "X");
  const Lod *by = x_lod(x, "Y", 0), *own = v ? v->lod : NULL;
  if (!ops_rank(v, "X", 1, KL_RANK)) return false;
  if (!by) return x->g->shapes_only && seq_unknown(x, "Out", v);
  bool as = opdef_attr(x->op->def, "ref_level") == NULL; /* sequence_expand_as: row by row */
  if (!as) by = level_of(x, by, op_int(x->op, "ref_level"));
  if (!by) return false;
  own = as ? NULL : lod_read(g, own);
  int64_t n = own ? own->n : v->dims[0], total = 0, made = 0;
  if (!ops_same("sequences of X and Y", n, by->n)) return false;
  for (int64_t i = 0; i < n; i++)
    total += (own ? seq_length(own, i) : 1) * seq_length(by, i), made += seq_length(by, i);
  if (total > MAX_ROWS) return err_set(E_MEM_002, "sequences of more than %d rows", MAX_ROWS);
  int64_t *at = arena_array(g->arena, int64_t, total + 1),
          *len = arena_array(g->arena, int64_t, made + 1), k = 0, m = 0;
  for (int64_t i = 0; i < n; i++)
    for (int64_t r = 0; r < seq_length(by, i); r++) {
      int64_t from = own ? own->offset[i] : i, count = own ? seq_length(own, i) : 1;
      for (int64_t j = 0; j < count; j++) at[k++] = from + j;
      len[m++] = count;
    }
  const Lod *out = own ? seq_lod(g, made, len) : by;
  return x_out_lod(x, "Out", seq_rows(g, v, total, at), out);
}

bool x_sequence_reverse(Expand *x) {
  Node *v;
  const Lod *l;
  if (!seq_read(x, "X", &v, &l)) return false;
  if (!l) return x_out(x, "Y", ops_blank_like(x->g, v));
  int64_t *at = arena_array(x->g->arena, int64_t, seq_n_rows(l) + 1);
  for (int64_t i = 0; i < l->n; i++)
    for (int64_t k = 0; k < seq_length(l, i); k++) at[l->offset[i] + k] = l->offset[i + 1] - 1 - k;
  return x_out_lod(x, "Y", seq_rows(x->g, v, seq_n_rows(l), at), l);
}

bool x_sequence_concat(Expand *x) {
  Graph *g = x->g;
  int n = x_n_in(x, "X");
  Node **in = arena_array(g->arena, Node *, n + 1);
  const Lod **l = arena_array(g->arena, const Lod *, n + 1);
  for (int i = 0; i < n; i++) {
    in[i] = x_in_at(x, "X", i), l[i] = x_lod(x, "X", i);
    if (!ops_rank(in[i], "X", 1, KL_RANK) || err_any()) return false;
    if (!l[i]) return seq_unknown(x, "Out", in[0]);
    if (!ops_same("sequences of the inputs", l[0]->n, l[i]->n)) return false;
  }
  int64_t *len = arena_array(g->arena, int64_t, l[0]->n + 1), first = 0;
  for (int64_t s = 0; s < l[0]->n; s++)
    for (int i = 0; i < n; i++) len[s] += seq_length(l[i], s);
  const Lod *out = seq_lod(g, l[0]->n, len);
  if (!out) return false;
  int64_t *at = arena_array(g->arena, int64_t, seq_n_rows(out) + 1),
          *used = arena_array(g->arena, int64_t, l[0]->n + 1);
  for (int i = 0; i < n; i++) {
    for (int64_t s = 0; s < l[0]->n; s++)
      for (int64_t k = 0; k < seq_length(l[i], s); k++)
        at[out->offset[s] + used[s]++] = first + l[i]->offset[s] + k;
    first += seq_n_rows(l[i]);
  }
  return x_out_lod(x, "Out", seq_rows(g, g_concat(g, n, in, 0), seq_n_rows(out), at), out);
}

/* ---- padding ---- */

bool x_sequence_pad(Expand *x) {
  Graph *g = x->g;
  Node *v, *pad = x_in(x, "PadValue");
  const Lod *l;
  int64_t width = op_int(x->op, "padded_length"), dims[KL_RANK] = {-1, width < 0 ? -1 : width},
          unknown = -1;
  if (!seq_read(x, "X", &v, &l)) return false;
  memcpy(dims + 2, v->dims + 1, sizeof *dims * (size_t)(v->rank - 1));
  if (!l)
    return x_out(x, "Out", ops_blank(g, v->dtype, v->rank + 1, dims)) &&
           x_out(x, "Length", ops_blank(g, DT_INT64, 1, &unknown));
  if (width < 0) width = seq_longest(l);
  if (width < seq_longest(l))
    return err_set(E_OPR_003, "padded_length is %lld, a sequence has %lld rows", (long long)width,
                   (long long)seq_longest(l));
  int64_t *len = arena_array(g->arena, int64_t, l->n + 1);
  for (int64_t i = 0; i < l->n; i++) len[i] = seq_length(l, i);
  Node *wide = seq_wide(g, v, l, width);
  if (wide && pad) {
    Node *p = node_numel(pad) == 1 ? g_reshape(g, pad, 0, NULL) : pad;
    wide = g_select(g, mask_of(g, l, width, wide->rank), wide, p);
  }
  return x_out_lod(x, "Out", wide, &lod_none) &&
         x_out(x, "Length", g_data(g, DT_INT64, 1, &l->n, len, "length"));
}

bool x_sequence_unpad(Expand *x) {
  Graph *g = x->g;
  Node *v = x_in(x, "X");
  if (!ops_rank(v, "X", 2, KL_RANK)) return false;
  int64_t most = v->dims[0] < 0 ? 0 : v->dims[0], *len = arena_array(g->arena, int64_t, most + 1),
          dims[KL_RANK] = {-1};
  memcpy(dims + 1, v->dims + 2, sizeof *dims * (size_t)(v->rank - 2));
  if (x->g->shapes_only) return x_out(x, "Out", ops_blank(g, v->dtype, v->rank - 1, dims));
  int n = ops_list(x, NULL, "Length", NULL, len, (int)most);
  if (n < 0 || !ops_same("sequences of X and Length", most, n)) return false;
  for (int i = 0; i < n; i++)
    if (len[i] < 0 || len[i] > v->dims[1])
      return err_set(E_DAT_002, "Length holds %lld of %lld", (long long)len[i],
                     (long long)v->dims[1]);
  const Lod *l = seq_lod(g, n, len);
  return l && x_out_lod(x, "Out", one_after_another(g, v, l), l);
}

/* Length is not among the gradient's inputs: the sequences of Out@GRAD are those of Out. */
bool x_sequence_unpad_grad(Expand *x) {
  Graph *g = x->g;
  Node *v = x_in(x, "X"), *gy;
  const Lod *l;
  if (!v || !seq_read(x, "Out@GRAD", &gy, &l)) return false;
  return x_out(x, "X@GRAD", l ? seq_wide(g, gy, l, v->dims[1]) : ops_blank_like(g, v));
}

/* ---- others ---- */

bool x_sequence_conv(Expand *x) {
  Graph *g = x->g;
  Node *v, *w = x_in(x, "Filter");
  const Lod *l;
  int64_t width = op_int(x->op, "contextLength"), from = op_int(x->op, "contextStart");
  if (!seq_read(x, "X", &v, &l) || !ops_rank(v, "X", 2, 2) || !ops_rank(w, "Filter", 2, 2))
    return false;
  if (op_bool(x->op, "paddingTrainable"))
    return err_set(E_OPR_004, "paddingTrainable is not supported");
  if (width < 1 || width > 1024 || op_int(x->op, "contextStride") != 1)
    return err_set(E_OPR_003, "contextLength is %lld, contextStride must be 1", (long long)width);
  int64_t dims[] = {v->dims[0], w->dims[1]};
  if (!ops_same("contextLength times the columns of X, and rows of Filter",
                v->dims[1] < 0 ? -1 : width * v->dims[1], w->dims[0]))
    return false;
  if (!l) return x_out(x, "Out", ops_blank(g, v->dtype, 2, dims));
  int64_t n = seq_n_rows(l) * width, *at = arena_array(g->arena, int64_t, n + 1);
  for (int64_t i = 0; i < l->n; i++)
    for (int64_t k = l->offset[i]; k < l->offset[i + 1]; k++)
      for (int64_t c = 0; c < width; c++) {
        int64_t r = k + from + c;
        at[k * width + c] = r < l->offset[i] || r >= l->offset[i + 1] ? -1 : r;
      }
  Node *cols =
      g_reshape(g, seq_rows(g, v, n, at), 2, (int64_t[]){seq_n_rows(l), width * v->dims[1]});
  return x_out_lod(x, "Out", g_matmul(g, cols, w, false, false), l);
}

bool x_lod_reset(Expand *x) {
  Graph *g = x->g;
  Node *v = x_in(x, "X"), *y = x_in(x, "Y");
  int n;
  const int64_t *given = op_intlist(x->op, "target_lod", x->g->arena, &n);
  if (!v) return false;
  if (g->shapes_only) return x_out(x, "Out", g_alias(g, v));
  if (y && y->lod && (v->rank == 0 || y->lod->offset[y->lod->n] != v->dims[0]))
    return err_set(E_SHP_006, "Y has sequences of %lld rows, X is %s",
                   (long long)y->lod->offset[y->lod->n], dims_text(v->rank, v->dims));
  if (y && y->lod) return x_out_lod(x, "Out", v, y->lod);
  if (y) {
    int64_t *at = arena_array(g->arena, int64_t, 1 << 16);
    if ((n = ops_list(x, NULL, "Y", NULL, at, 1 << 16)) < 0) return false;
    given = at;
  }
  bool ok = n > 0 && given[0] == 0 && v->rank > 0 && given[n - 1] == v->dims[0];
  for (int i = 1; ok && i < n; i++) ok = given[i - 1] <= given[i];
  if (!ok)
    return err_set(E_OPR_003, "target_lod is not the offsets of sequences of %lld rows",
                   (long long)(v->rank ? v->dims[0] : 0));
  Lod *l = arena_new_of(g->arena, Lod);
  *l = (Lod){n - 1, arena_dup(g->arena, given, sizeof *given * (size_t)n), NULL, NULL};
  if (op_bool(x->op, "append") && v->lod) {
    l->up = lod_read(g, v->lod);
    if (!ops_same("sequences of target_lod and rows of X's", l->n, seq_n_rows(l->up))) return false;
  }
  return x_out_lod(x, "Out", g_alias(g, v), l);
}

bool x_im2sequence(Expand *x) {
  Graph *g = x->g;
  Node *v = x_in(x, "X");
  Window w = {.n_sp = 2, .dil = {1, 1}};
  int n;
  const int64_t *p = op_intlist(x->op, "paddings", x->g->arena, &n);
  int64_t out[2];
  if (!ops_rank(v, "X", 4, 4) || !ops_ints(x, "kernels", 2, 1, INT32_MAX, w.k) ||
      !ops_ints(x, "strides", 2, 1, INT32_MAX, w.stride))
    return false;
  for (int i = 0; i < 2; i++) {
    w.lo[i] = n == 4 ? p[i] : 0, w.hi[i] = n == 4 ? p[2 + i] : 0;
    if (w.lo[i] < 0 || w.hi[i] < 0) return err_set(E_OPR_003, "paddings must not be negative");
    if (!ops_window_out(&w, i, v->dims[2 + i], false, &out[i])) return false;
  }
  int64_t cols = v->dims[1] < 0 ? -1 : v->dims[1] * w.k[0] * w.k[1];
  if (!ops_known(v)) return x_out(x, "Out", ops_blank(g, v->dtype, 2, (int64_t[]){-1, cols}));
  if (!ops_table("sequences", v->dims[0], 1)) return false;
  int64_t *len = arena_array(g->arena, int64_t, v->dims[0] + 1);
  for (int64_t i = 0; i < v->dims[0]; i++) len[i] = out[0] * out[1];
  const Lod *l = seq_lod(g, v->dims[0], len);
  Node *win = g_window(g, v, 2, 2, w.k, w.stride, w.dil, w.lo, w.hi, 0);
  win = win ? g_permute(g, win, (int[]){0, 2, 3, 1, 4, 5}) : NULL;
  return l && win && x_out_lod(x, "Out", g_reshape(g, win, 2, (int64_t[]){seq_n_rows(l), cols}), l);
}

bool x_sequence_enumerate(Expand *x) {
  Graph *g = x->g;
  Node *v;
  const Lod *l;
  int64_t width = op_int(x->op, "win_size");
  if (!seq_read(x, "X", &v, &l) || !ops_index(v, "X")) return false;
  if (width < 1 || width > 1024) return err_set(E_OPR_003, "win_size is %lld", (long long)width);
  int64_t dims[] = {v->dims[0], width};
  if (!l) return x_out(x, "Out", ops_blank(g, v->dtype, 2, dims));
  int64_t n = seq_n_rows(l), *at = arena_array(g->arena, int64_t, n * width + 1);
  uint8_t *live = arena_array(g->arena, uint8_t, n * width + 1);
  for (int64_t i = 0; i < l->n; i++)
    for (int64_t k = l->offset[i]; k < l->offset[i + 1]; k++)
      for (int64_t c = 0; c < width; c++) {
        bool in = k + c < l->offset[i + 1];
        at[k * width + c] = in ? k + c : 0, live[k * width + c] = in;
      }
  Node *r = g_reshape(g, seq_rows(g, g_reshape(g, v, 1, &n), n * width, at), 2, dims);
  Node *pad = g_full_int(g, v->dtype, op_int(x->op, "pad_value"), 0, NULL);
  return x_out_lod(x, "Out", g_select(g, g_data(g, DT_BOOL, 2, dims, live, "live"), r, pad), l);
}
