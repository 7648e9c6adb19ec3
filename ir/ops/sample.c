/* Reading images between their points: grid_sampler, deformable convolution, affine_grid. A position
 * (x, y) reads the four points around it, weighted by 1 - distance; each is a GATHER from the image with its
 * rows joined, and 0 where the point lies outside. Gradients are derived: scatters, and the slopes of the weights. */
#include "ops.h"

#include <string.h>

/* Images [M, C, H, W] and positions [M, P]; the same M images are read at all P positions in all C channels. */
typedef struct Image {
  Node *flat; /* [M, C, H*W] */
  int64_t m, c, h, w;
} Image;

static Image image_of(Graph *g, Node *v, int64_t m) {
  int64_t n = v->dims[0], c = v->dims[1], h = v->dims[2], w = v->dims[3];
  Image im = {NULL, m, n * c / m, h, w};
  im.flat = g_reshape(g, v, 3, (int64_t[]){m, im.c, h * w});
  return im;
}

static Node *between(Graph *g, Node *v, int64_t n) { /* 0 <= v < n */
  Node *low = g_map2(g, P_LE, g_const(g, v->dtype, 0), v);
  return ops_mul(g, low, g_map2(g, P_LT, v, g_const(g, v->dtype, (double)n)));
}

static Node *clamped(Graph *g, Node *v, int64_t n) {
  return g_map2c(g, P_MIN, g_map2c(g, P_MAX, v, 0), (double)(n - 1));
}

/* The points (x, y), whole numbers as floats [M, P], of all channels: [M, C, P]; 0 outside. */
static Node *points(Graph *g, const Image *im, Node *x, Node *y) {
  if (!x || !y) return NULL;
  int64_t p = x->dims[1];
  Node *inside = ops_mul(g, between(g, x, im->w), between(g, y, im->h));
  Node *col = g_cast(g, clamped(g, x, im->w), DT_INT64),
       *row = g_cast(g, clamped(g, y, im->h), DT_INT64);
  Node *at = ops_add(g, ops_times(g, row, (double)im->w), col);
  at = g_expand(g, g_reshape(g, at, 3, (int64_t[]){im->m, 1, p}), 3, (int64_t[]){im->m, im->c, p});
  inside = g_reshape(g, inside, 3, (int64_t[]){im->m, 1, p});
  return g_select(g, inside, g_gather(g, im->flat, at, 2), g_const(g, im->flat->dtype, 0));
}

static Node *channelwise(Graph *g, Node *v) { /* [M, P] -> [M, 1, P] */
  return v ? g_reshape(g, v, 3, (int64_t[]){v->dims[0], 1, v->dims[1]}) : NULL;
}

static Node *bilinear(Graph *g, const Image *im, Node *x, Node *y) {
  if (!x || !y) return NULL;
  Node *x0 = g_map1(g, P_FLOOR, x), *y0 = g_map1(g, P_FLOOR, y), *sum = NULL;
  Node *dx = ops_sub(g, x, x0), *dy = ops_sub(g, y, y0);
  for (int i = 0; i < 4; i++) {
    Node *wx = i & 1 ? dx : ops_plus(g, ops_times(g, dx, -1), 1);
    Node *wy = i & 2 ? dy : ops_plus(g, ops_times(g, dy, -1), 1);
    Node *v = points(g, im, ops_plus(g, x0, i & 1), ops_plus(g, y0, i >> 1));
    Node *part = ops_mul(g, v, channelwise(g, ops_mul(g, wx, wy)));
    sum = sum ? ops_add(g, sum, part) : part;
  }
  return sum;
}

/* ---- grid_sampler ---- */

/* Back and forth between lo and hi. */
static Node *reflected(Graph *g, Node *v, double lo, double hi) {
  double span = hi - lo;
  if (span <= 0) return ops_times(g, v, 0);
  Node *d = ops_plus(g, v, -lo);
  Node *m =
      g_map2(g, P_MOD, g_map2(g, P_MAX, d, ops_times(g, d, -1)), g_const(g, v->dtype, 2 * span));
  Node *back = ops_plus(g, ops_times(g, m, -1), 2 * span);
  return ops_plus(g, g_map2(g, P_MIN, m, back), lo);
}

/* A coordinate from -1..1 to 0..n-1, and what lies outside treated as padding_mode says. */
static Node *unnormalised(Graph *g, Node *v, int64_t n, bool corners, int mode) {
  double size = (double)n;
  v = corners ? ops_times(g, ops_plus(g, v, 1), (size - 1) / 2)
              : ops_times(g, ops_plus(g, ops_times(g, ops_plus(g, v, 1), size), -1), 0.5);
  if (mode == 2) v = corners ? reflected(g, v, 0, size - 1) : reflected(g, v, -0.5, size - 0.5);
  return mode ? clamped(g, v, n) : v;
}

static Node *rounded(Graph *g, Node *v) { /* halves to even */
  if (!v) return NULL;
  Node *up = g_map1(g, P_FLOOR, ops_plus(g, v, 0.5));
  Node *tie = g_map2c(g, P_EQ, ops_sub(g, up, v), 0.5);
  Node *odd = g_map2c(g, P_EQ, g_map2(g, P_MOD, up, g_const(g, v->dtype, 2)), 1);
  return g_select(g, ops_mul(g, tie, odd), ops_plus(g, up, -1), up);
}

bool x_grid_sampler(Expand *x) {
  static const char *const modes[] = {"bilinear", "nearest"}, *const paddings[] = {"zeros",
                                                                                   "border",
                                                                                   "reflection"};
  Graph *g = x->g;
  Node *in = x_in(x, "X"), *grid = x_in(x, "Grid"), *at[2];
  int mode = op_word(x->op, "mode", 2, modes),
      padding = op_word(x->op, "padding_mode", 3, paddings);
  bool corners = op_bool(x->op, "align_corners");
  if (mode < 0 || padding < 0 || !ops_rank(in, "X", 4, 4) || !ops_rank(grid, "Grid", 4, 4) ||
      !ops_float(in, "X") || !ops_same("images and grids", in->dims[0], grid->dims[0]) ||
      !ops_same("2 and the last dimension of Grid", 2, grid->dims[3]))
    return false;
  int64_t n = in->dims[0], h = grid->dims[1], w = grid->dims[2], dims[] = {n, in->dims[1], h, w};
  if (!ops_known(in) || !ops_known(grid) || n == 0)
    return x_out(x, "Output", ops_blank(g, in->dtype, 4, dims));
  if (in->dims[2] < 1 || in->dims[3] < 1) return err_set(E_SHP_005, "the images are empty");
  for (int i = 0; i < 2; i++) {
    Node *v = g_reshape(g, ops_cut(g, grid, 3, i, 1, 1), 2, (int64_t[]){n, h * w});
    at[i] = unnormalised(g, v, in->dims[3 - i], corners, padding);
  }
  Image im = image_of(g, in, n);
  Node *y =
      mode ? points(g, &im, rounded(g, at[0]), rounded(g, at[1])) : bilinear(g, &im, at[0], at[1]);
  return y && x_out(x, "Output", g_reshape(g, y, 4, dims));
}

/* Theta [N, 2, 3] times (x, y, 1) of every point of the output, from -1 to 1. */
bool x_affine_grid(Expand *x) {
  Graph *g = x->g;
  Node *theta = x_in(x, "Theta");
  int64_t size[KL_RANK];
  int n = ops_list(x, NULL, "OutputShape", "output_shape", size, KL_RANK);
  if (n < 0 || !ops_rank(theta, "Theta", 3, 3) || !ops_float(theta, "Theta")) return false;
  if (n != 4) return err_set(E_OPR_003, "output_shape has %d values, 4 needed", n);
  for (int i = 0; i < 4; i++)
    if (size[i] == OPS_UNKNOWN) size[i] = -1;
  int64_t h = size[2], w = size[3], dims[] = {theta->dims[0], h, w, 2};
  if (!ops_known(theta) || h < 0 || w < 0)
    return x_out(x, "Output", ops_blank(g, theta->dtype, 4, dims));
  int64_t all;
  if (!mul_ok(h, w, &all) || all > 1 << 26) return err_set(E_MEM_002, "output_shape is too large");
  bool corners = op_bool(x->op, "align_corners");
  double *v = arena_array(g->arena, double, 3 * all);
  for (int64_t i = 0; i < all; i++)
    for (int k = 0; k < 2; k++) {
      int64_t at = k ? i / w : i % w, m = k ? h : w;
      v[3 * i + k] = corners ? (m > 1 ? -1 + 2.0 * (double)at / (double)(m - 1) : -1)
                             : (2.0 * (double)at + 1) / (double)m - 1;
      v[3 * i + 2] = 1;
    }
  Node *base = g_cast(g, g_data(g, DT_FLOAT64, 2, (int64_t[]){all, 3}, v, "grid"), theta->dtype);
  Node *y =
      base ? g_matmul(g, g_reshape(g, base, 3, (int64_t[]){1, all, 3}), theta, false, true) : NULL;
  return y && x_out(x, "Output", g_reshape(g, y, 4, dims));
}

/* ---- deformable_conv ---- */

typedef struct Deform {
  Node *in, *offset, *filter, *mask; /* mask may be NULL */
  Window w;
  int64_t groups, parts, out[2];
} Deform;

static bool deform_read(Expand *x, Deform *d) {
  memset(d, 0, sizeof *d);
  d->in = x_in(x, "Input"), d->offset = x_in(x, "Offset"), d->filter = x_in(x, "Filter");
  d->mask = x_in(x, "Mask");
  d->groups = op_int(x->op, "groups"), d->parts = op_int(x->op, "deformable_groups");
  d->w.n_sp = 2;
  if (!ops_rank(d->in, "Input", 4, 4) || !ops_rank(d->offset, "Offset", 4, 4) ||
      !ops_rank(d->filter, "Filter", 4, 4) || (d->mask && !ops_rank(d->mask, "Mask", 4, 4)) ||
      !ops_ints(x, "strides", 2, 1, INT32_MAX, d->w.stride) ||
      !ops_ints(x, "dilations", 2, 1, INT32_MAX, d->w.dil) ||
      !ops_ints(x, "paddings", 2, 0, INT32_MAX, d->w.lo))
    return false;
  int64_t c = d->in->dims[1];
  for (int i = 0; i < 2; i++) {
    d->w.hi[i] = d->w.lo[i], d->w.k[i] = d->filter->dims[2 + i];
    if (d->w.k[i] < 1 || d->in->dims[2 + i] == 0)
      return err_set(E_SHP_005, "a window or image is empty");
    if (!ops_window_out(&d->w, i, d->in->dims[2 + i], false, &d->out[i])) return false;
  }
  int64_t o = d->filter->dims[0];
  bool ok = d->groups > 0 && d->parts > 0 && (c < 0 || (c % d->groups == 0 && c % d->parts == 0)) &&
            (o < 0 || o % d->groups == 0);
  if (!ok)
    return err_set(
        E_OPR_003,
        "groups %lld and deformable_groups %lld do not divide %lld channels and %lld filters",
        (long long)d->groups, (long long)d->parts, (long long)c, (long long)d->filter->dims[0]);
  int64_t cells = d->w.k[0] * d->w.k[1];
  if (!ops_same("input channels of Filter times groups, and channels",
                d->filter->dims[1] * d->groups, c) ||
      !ops_same("channels of Offset", d->offset->dims[1], 2 * cells * d->parts) ||
      (d->mask && !ops_same("channels of Mask", d->mask->dims[1], cells * d->parts)))
    return false;
  for (int i = 0; i < 2; i++)
    if (!ops_same("spatial dimensions of Offset and output", d->offset->dims[2 + i], d->out[i]) ||
        (d->mask &&
         !ops_same("spatial dimensions of Mask and output", d->mask->dims[2 + i], d->out[i])))
      return false;
  return true;
}

/* Where every cell of every window reads along direction k (0 rows, 1 columns): [N*parts, cells*OH*OW]. */
static Node *deform_at(Graph *g, const Deform *d, int k) {
  int64_t n = d->in->dims[0], cells = d->w.k[0] * d->w.k[1], m = n * d->parts;
  int64_t dims[] = {m, d->w.k[0], d->w.k[1], 1, d->out[0], d->out[1]};
  Node *off = g_reshape(g, d->offset, 4, (int64_t[]){m, cells, 2, d->out[0] * d->out[1]});
  off = g_reshape(g, ops_cut(g, off, 2, k, 1, 1), 6, dims);
  if (!off) return NULL;
  Node *cell = ops_times(g, g_iota(g, DT_INT64, 6, dims, 1 + k), (double)d->w.dil[k]);
  Node *place = ops_times(g, g_iota(g, DT_INT64, 6, dims, 4 + k), (double)d->w.stride[k]);
  Node *at = ops_plus(g, ops_add(g, cell, place), -(double)d->w.lo[k]);
  at = ops_add(g, g_cast(g, at, off->dtype), off);
  return g_reshape(g, at, 2, (int64_t[]){m, cells * d->out[0] * d->out[1]});
}

static bool deformable(Expand *x) {
  Graph *g = x->g;
  Deform d;
  if (!deform_read(x, &d)) return false;
  int64_t n = d.in->dims[0], c = d.in->dims[1], o = d.filter->dims[0],
          dims[] = {n, o, d.out[0], d.out[1]};
  if (!ops_known(d.in) || !ops_known(d.filter) || !ops_known(d.offset) || n == 0)
    return x_out(x, "Output", ops_blank(g, d.in->dtype, 4, dims));
  int64_t cells = d.w.k[0] * d.w.k[1], out = d.out[0] * d.out[1];
  Image im = image_of(g, d.in, n * d.parts);
  Node *v = bilinear(g, &im, deform_at(g, &d, 1), deform_at(g, &d, 0));
  if (d.mask) v = ops_mul(g, v, g_reshape(g, d.mask, 3, (int64_t[]){n * d.parts, 1, cells * out}));
  v = g_reshape(g, v, 4, (int64_t[]){n, d.groups, c / d.groups * cells, out});
  Node *w = g_reshape(g, d.filter, 4, (int64_t[]){1, d.groups, o / d.groups, c / d.groups * cells});
  Node *y = g_matmul(g, w, v, false, false);
  return y && x_out(x, "Output", g_reshape(g, y, 4, dims));
}

bool x_deformable_conv(Expand *x) { return deformable(x); }
