/* Pooling over two and three spatial dimensions, as a reduction over a view of the input that has the kernel as dimensions of
 * its own. Three such views:
 *   TILES   the windows partition the input (global, adaptive to a divisor, stride = kernel): [N, C, O0, K0, O1, K1], a reshape
 *   WINDOW  anything else with constant stride: [N, C, O0, O1, K0, K1], an affine window over the padded input
 *   TABLE   adaptive sizes that do not divide: [N, C, O0, K0, O1, K1], gathered by a table of indices in which a window shorter
 *           than the longest repeats its last element
 * The gradient of the maximum goes to the first maximum of each window: the incoming gradient where the position in the window
 * equals the ARGMAX, sent back through the view. */
#include "ops.h"

#include <float.h>
#include <math.h>
#include <string.h>

enum {
  MAX_ADAPTIVE = 65536
}; /* largest output size of adaptive pooling, which keeps a table of it */

typedef enum { TILES, WINDOW, TABLE } PoolView;

typedef struct Pool {
  Node *in; /* channels first */
  Window win;
  int64_t out[OPS_MAX_SP],
      pad_hi[OPS_MAX_SP]; /* pad_hi: as the program says; win.hi grows with ceil_mode */
  PoolView view;
  bool max, exclusive, adaptive, last, known;
  int kernel_axis[OPS_MAX_SP], out_axis[OPS_MAX_SP]; /* in the view */
} Pool;

static bool pool_adaptive(Pool *p) {
  bool divides = true;
  for (int i = 0; i < p->win.n_sp; i++) {
    int64_t in = p->in->dims[2 + i];
    p->out[i] = p->win.k[i];
    p->win.lo[i] = p->win.hi[i] = p->pad_hi[i] = 0;
    if (in == 0) return err_set(E_SHP_005, "adaptive pooling of an empty spatial dimension %d", i);
    if (in > 0 && in % p->out[i] != 0) divides = false;
    if (in > 0) p->win.k[i] = p->win.stride[i] = (in + p->out[i] - 1) / p->out[i];
  }
  p->view = divides ? TILES : TABLE;
  /* the longest window: its length is at most ceil(in/out) + 1 */
  for (int i = 0; i < p->win.n_sp && !divides; i++) {
    int64_t in = p->in->dims[2 + i], n = p->out[i], longest = 1;
    if (in < 0) continue;
    for (int64_t o = 0; o < n; o++) {
      int64_t len = ((o + 1) * in + n - 1) / n - o * in / n;
      if (len > longest) longest = len;
    }
    p->win.k[i] = longest;
    if (!ops_table("adaptive pooling", n, longest)) return false;
  }
  return true;
}

static bool pool_windows(Expand *x, Pool *p) {
  bool tiles = true, ceil_mode = op_bool(x->op, "ceil_mode");
  if (!ops_paddings(x, &p->win, p->in->dims + 2)) return false;
  for (int i = 0; i < p->win.n_sp; i++) {
    int64_t in = p->in->dims[2 + i], k = p->win.k[i], s = p->win.stride[i];
    if (!ops_window_out(&p->win, i, in, ceil_mode, &p->out[i])) return false;
    p->pad_hi[i] = p->win.hi[i];
    if (in < 0) continue;
    int64_t need = (p->out[i] - 1) * s + k - in - p->win.lo[i];
    if (need > p->win.hi[i]) p->win.hi[i] = need;
    tiles &= p->win.lo[i] == 0 && p->out[i] * k == in && (s == k || p->out[i] == 1);
  }
  p->view = tiles ? TILES : WINDOW;
  return true;
}

static bool pool_read(Expand *x, int n_sp, bool max, const char *layout, Pool *p) {
  memset(p, 0, sizeof *p);
  p->in = x_in(x, "X");
  p->max = max;
  if (!ops_rank(p->in, "X", n_sp + 2, n_sp + 2) || !ops_float(p->in, "X") ||
      (layout && !ops_layout(x, layout, &p->last)))
    return false;
  if (p->last) p->in = ops_channels_first(x->g, p->in);
  if (!p->in) return false;
  p->known = ops_known(p->in);
  p->win.n_sp = n_sp;
  p->adaptive = op_bool(x->op, "adaptive");
  p->exclusive = op_bool(x->op, "exclusive");
  bool global = op_bool(x->op, "global_pooling");
  for (int i = 0; i < n_sp; i++) p->win.k[i] = p->win.stride[i] = p->win.dil[i] = 1;
  int64_t most = p->adaptive ? MAX_ADAPTIVE : INT32_MAX;
  bool ok = global || ops_ints(x, "ksize", n_sp, 1, most, p->win.k);
  if (global) p->adaptive = true;
  if (ok && p->adaptive)
    ok = pool_adaptive(p);
  else if (ok)
    ok = ops_ints(x, "strides", n_sp, 1, INT32_MAX, p->win.stride) && pool_windows(x, p);
  for (int i = 0; i < n_sp; i++) {
    p->out_axis[i] = p->view == WINDOW ? 2 + i : 2 + 2 * i;
    p->kernel_axis[i] = p->view == WINDOW ? 2 + n_sp + i : 3 + 2 * i;
  }
  return ok;
}

/* First input index of output o, and one past the last, of an adaptive dimension. */
static int64_t table_start(const Pool *p, int i, int64_t o) {
  return o * p->in->dims[2 + i] / p->out[i];
}
static int64_t table_end(const Pool *p, int i, int64_t o) {
  return ((o + 1) * p->in->dims[2 + i] + p->out[i] - 1) / p->out[i];
}

static Node *table_view(Graph *g, const Pool *p) {
  Node *v = p->in;
  int64_t dims[KL_RANK] = {p->in->dims[0], p->in->dims[1]};
  for (int i = 0; i < p->win.n_sp; i++) {
    int64_t k = p->win.k[i], n = p->out[i] * k;
    int64_t *idx = arena_array(g->arena, int64_t, n);
    for (int64_t j = 0; j < n; j++) {
      int64_t at = table_start(p, i, j / k) + j % k, end = table_end(p, i, j / k);
      idx[j] = at < end ? at : end - 1;
    }
    v = ops_take(g, v, g_data(g, DT_INT64, 1, &n, idx, "pool_index"), 2 + i);
    dims[2 + 2 * i] = p->out[i], dims[3 + 2 * i] = k;
  }
  return g_reshape(g, v, 2 + 2 * p->win.n_sp, dims);
}

/* The maximum of a window that lies in the padding, as PaddlePaddle gives it. */
static double least(DType t) {
  return t == DT_FLOAT64 ? -DBL_MAX : t == DT_FLOAT16 ? -65504 : -FLT_MAX;
}

static Node *pool_view(Graph *g, const Pool *p) {
  const Window *w = &p->win;
  if (p->view == TABLE) return table_view(g, p);
  if (p->view == WINDOW)
    return g_window(g, p->in, 2, w->n_sp, w->k, w->stride, w->dil, w->lo, w->hi,
                    p->max ? least(p->in->dtype) : 0);
  int64_t dims[KL_RANK] = {p->in->dims[0], p->in->dims[1]};
  for (int i = 0; i < w->n_sp; i++) dims[2 + 2 * i] = p->out[i], dims[3 + 2 * i] = w->k[i];
  return g_reshape(g, p->in, 2 + 2 * w->n_sp, dims);
}

static uint32_t kernel_axes(const Pool *p) {
  uint32_t set = 0;
  for (int i = 0; i < p->win.n_sp; i++) set |= 1u << p->kernel_axis[i];
  return set;
}

/* How many cells of dimension i the window of each output counts, as floating numbers of shape [1.., out, ..1]; NULL and
 * *uniform if it is the same everywhere. The window is clipped to the input (exclusive) or to the padded input. */
static Node *window_count(Graph *g, const Pool *p, int i, double *uniform) {
  int64_t in = p->in->dims[2 + i], lo = p->win.lo[i], s = p->win.stride[i], k = p->win.k[i];
  int64_t from = p->exclusive ? 0 : -lo, to = p->exclusive ? in : in + p->pad_hi[i];
  int64_t last = (p->out[i] - 1) * s - lo + k;
  *uniform = (double)k;
  if (-lo >= from && last <= to) return NULL;
  int64_t dims[KL_RANK];
  for (int d = 0; d < 2 + p->win.n_sp; d++) dims[d] = 1;
  dims[2 + i] = p->out[i];
  Node *o = g_iota(g, p->in->dtype, 2 + p->win.n_sp, dims, 2 + i);
  Node *start = g_map2c(g, P_ADD, g_map2c(g, P_MUL, o, (double)s), (double)-lo);
  Node *end = g_map2c(g, P_MIN, g_map2c(g, P_ADD, start, (double)k), (double)to);
  start = g_map2c(g, P_MAX, start, (double)from);
  return g_map2c(g, P_MAX, g_map2(g, P_SUB, end, start), 1);
}

/* Weights 1/length for the elements of each adaptive window, 0 for the repeated ones, along [out, kernel] of the view. */
static Node *table_weights(Graph *g, const Pool *p, int i) {
  int64_t dims[KL_RANK], k = p->win.k[i], n = p->out[i] * k;
  double *w = arena_array(g->arena, double, n);
  for (int64_t j = 0; j < n; j++) {
    int64_t len = table_end(p, i, j / k) - table_start(p, i, j / k);
    w[j] = j % k < len ? 1.0 / (double)len : 0;
  }
  for (int d = 0; d < 2 + 2 * p->win.n_sp; d++) dims[d] = 1;
  dims[2 + 2 * i] = p->out[i], dims[3 + 2 * i] = k;
  Node *data = g_data(g, DT_FLOAT64, 2 + 2 * p->win.n_sp, dims, w, "pool_weight");
  return g_cast(g, data, p->in->dtype);
}

static Node *pool_average(Graph *g, const Pool *p) {
  Node *v = pool_view(g, p);
  if (p->view == TABLE) {
    for (int i = 0; i < p->win.n_sp; i++) v = g_map2(g, P_MUL, v, table_weights(g, p, i));
    return g_reduce(g, P_RSUM, v, kernel_axes(p), false);
  }
  double all = 1, n;
  Node *count = NULL;
  for (int i = 0; i < p->win.n_sp; i++) {
    Node *c = window_count(g, p, i, &n);
    if (c)
      count = count ? g_map2(g, P_MUL, count, c) : c;
    else
      all *= n;
  }
  Node *sum = g_reduce(g, P_RSUM, v, kernel_axes(p), false);
  if (count) sum = g_map2(g, P_DIV, sum, count);
  return g_map2c(g, P_MUL, sum, 1 / all);
}

static Node *pool_blank(Expand *x, const Pool *p) {
  int64_t dims[KL_RANK] = {p->in->dims[0], p->in->dims[1]};
  for (int i = 0; i < p->win.n_sp; i++) dims[2 + i] = p->out[i];
  return ops_blank(x->g, p->in->dtype, 2 + p->win.n_sp, dims);
}

static Node *pool_forward(Expand *x, const Pool *p) {
  if (!p->known) return pool_blank(x, p);
  if (!p->max) return pool_average(x->g, p);
  return g_reduce(x->g, P_RMAX, pool_view(x->g, p), kernel_axes(p), false);
}

/* The position in the window, row-major: int32, of size 1 but along the kernel axes, which come `before` places sooner. */
static Node *window_position(Graph *g, const Pool *p, const Node *view, int before) {
  int64_t dims[KL_RANK], scale = 1;
  Node *pos = NULL;
  for (int d = 0; d < view->rank; d++)
    dims[d] = kernel_axes(p) >> before >> d & 1 ? view->dims[d] : 1;
  for (int i = p->win.n_sp - 1; i >= 0; i--) {
    Node *at = g_iota(g, DT_INT32, view->rank, dims, p->kernel_axis[i] - before);
    at = g_map2c(g, P_MUL, at, (double)scale);
    pos = pos ? g_map2(g, P_ADD, pos, at) : at;
    scale *= p->win.k[i];
  }
  return pos;
}

/* The incoming gradient in the view, which has the channels where gy has them: at the first maximum of each window, else 0. */
static Node *max_in_view(Graph *g, const Pool *p, Node *view, Node *gy) {
  if (!view || !gy) return NULL;
  int64_t keep[KL_RANK];
  uint32_t axes = kernel_axes(p) >> p->last;
  for (int d = 0; d < view->rank; d++) keep[d] = axes >> d & 1 ? 1 : view->dims[d];
  Node *first = g_argmax(g, view, axes, true, DT_INT32);
  Node *hit = g_map2(g, P_EQ, first, window_position(g, p, view, p->last));
  return g_select(g, hit, g_reshape(g, gy, view->rank, keep), g_const(g, gy->dtype, 0));
}

static bool pool_backward(Expand *x, const Pool *p, Node *gy) {
  Graph *g = x->g;
  if (!gy) return false;
  Node *gx = NULL;
  if (!p->known) return x_out(x, "X@GRAD", ops_blank_like(g, x_in(x, "X")));
  if (!p->max) {
    Node *y = pool_average(g, p);
    if (p->last) gy = ops_channels_first(g, gy);
    if (!y || !derive(g, 1, &y, &gy, 1, (Node *[]){p->in}, &gx)) return false;
  } else {
    Node *view = pool_view(g, p);
    if (p->last) view = ops_channels_last(g, view);
    Node *gv = max_in_view(g, p, view, gy);
    if (!gv) return false;
    if (!derive(g, 1, &view, &gv, 1, (Node *[]){p->in}, &gx)) return false;
  }
  return x_out(x, "X@GRAD", p->last ? ops_channels_last(g, gx) : gx);
}

static bool pool_type(Expand *x, bool *max) {
  static const char *const words[] = {"max", "avg"};
  int i = op_word(x->op, "pooling_type", 2, words);
  *max = i == 0;
  return i >= 0;
}

static bool pool(Expand *x, int n_sp, bool backward) {
  Pool p;
  bool max;
  if (!pool_type(x, &max) || !pool_read(x, n_sp, max, "data_format", &p)) return false;
  if (backward) return pool_backward(x, &p, x_in(x, "Out@GRAD"));
  Node *y = pool_forward(x, &p);
  return x_out(x, "Out", p.last ? ops_channels_last(x->g, y) : y);
}

bool x_pool2d(Expand *x) { return pool(x, 2, false); }
bool x_pool2d_grad(Expand *x) { return pool(x, 2, true); }
bool x_pool3d(Expand *x) { return pool(x, 3, false); }
bool x_pool3d_grad(Expand *x) { return pool(x, 3, true); }

/* The input index that kernel offset `at` of each output means, along spatial dimension i; shape [N, C, out..]. */
static Node *input_index(Graph *g, const Pool *p, int i, Node *at) {
  if (!at) return NULL;
  Node *start;
  if (p->view == TABLE) {
    int32_t *from = arena_array(g->arena, int32_t, p->out[i]);
    for (int64_t o = 0; o < p->out[i]; o++) from[o] = (int32_t)table_start(p, i, o);
    start = g_data(g, DT_INT32, 1, &p->out[i], from, "pool_start");
    start = ops_along(g, start, at->rank, 2 + i);
  } else {
    start =
        g_map2c(g, P_MUL, g_iota(g, DT_INT32, at->rank, at->dims, 2 + i), (double)p->win.stride[i]);
    start = g_map2c(g, P_SUB, start, (double)p->win.lo[i]);
  }
  return g_map2(g, P_ADD, start, at);
}

static bool pool_with_index(Expand *x, int n_sp) {
  Pool p;
  Graph *g = x->g;
  if (!pool_read(x, n_sp, true, NULL, &p)) return false;
  Node *y = pool_forward(x, &p), *flat = NULL;
  if (!x_out(x, "Out", y)) return false;
  if (!p.known) return x_out(x, "Mask", g_full_int(g, DT_INT32, 0, y->rank, y->dims));
  Node *at = g_argmax(g, pool_view(g, &p), kernel_axes(&p), false, DT_INT32);
  for (int i = 0; i < n_sp; i++) {
    int64_t inner = ops_prod(p.win.k, i + 1, n_sp);
    Node *k = g_map2c(g, P_MOD, g_map2c(g, P_DIV, at, (double)inner), (double)p.win.k[i]);
    Node *here = input_index(g, &p, i, k);
    flat = flat ? ops_add(g, ops_times(g, flat, (double)p.in->dims[2 + i]), here) : here;
  }
  return x_out(x, "Mask", flat);
}

static bool pool_with_index_grad(Expand *x, int n_sp) {
  Pool p;
  return pool_read(x, n_sp, true, NULL, &p) && pool_backward(x, &p, x_in(x, "Out@GRAD"));
}

bool x_max_pool2d_with_index(Expand *x) { return pool_with_index(x, 2); }
bool x_max_pool2d_with_index_grad(Expand *x) { return pool_with_index_grad(x, 2); }
bool x_max_pool3d_with_index(Expand *x) { return pool_with_index(x, 3); }
bool x_max_pool3d_with_index_grad(Expand *x) { return pool_with_index_grad(x, 3); }
