/* Reading images between their points: grid_sampler, deformable convolution, pooling of regions, affine_grid. A position
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
  int mode = ops_word(x, "mode", 2, modes), padding = ops_word(x, "padding_mode", 3, paddings);
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
  d->mask = opdef_in(x->op->def, "Mask") && x_n_in(x, "Mask") > 0 ? x_in(x, "Mask") : NULL;
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

/* ---- regions ---- */

typedef struct Regions {
  Node *in, *box[4]; /* x1 y1 x2 y2, [R], in the image's points */
  Node *image;       /* of every region, int64 [R] */
  int64_t r, ph, pw;
  double scale;
} Regions;

/* Without RoisNum all regions are of the only image. */
static bool regions_read(Expand *x, Regions *r) {
  Graph *g = x->g;
  Node *rois = x_in(x, "ROIs");
  r->in = x_in(x, "X");
  r->ph = op_int(x->op, "pooled_height"), r->pw = op_int(x->op, "pooled_width");
  r->scale = op_float(x->op, "spatial_scale");
  if (!ops_rank(r->in, "X", 4, 4) || !ops_float(r->in, "X") || !ops_rank(rois, "ROIs", 2, 2) ||
      !ops_same("4 and the columns of ROIs", 4, rois->dims[1]))
    return false;
  if (r->ph < 1 || r->pw < 1 || r->ph > 4096 || r->pw > 4096)
    return err_set(E_OPR_003, "a pooled size of %lld x %lld", (long long)r->ph, (long long)r->pw);
  r->r = rois->dims[0];
  if (!ops_known(r->in) || r->r < 0) return true;
  if (r->in->dims[2] < 1 || r->in->dims[3] < 1 || r->in->dims[0] < 1)
    return err_set(E_SHP_005, "the images are empty");
  for (int i = 0; i < 4; i++) r->box[i] = g_reshape(g, ops_cut(g, rois, 1, i, 1, 1), 1, &r->r);
  if (x_n_in(x, "RoisNum") == 0) {
    if (r->in->dims[0] != 1) {
      err_set(E_OPR_004, "regions of %lld images without RoisNum", (long long)r->in->dims[0]);
      err_help("Connect RoisNum, the number of regions of each image.");
      return false;
    }
    r->image = g_full_int(g, DT_INT64, 0, 1, &r->r);
    return true;
  }
  Node *num = x_in(x, "RoisNum"), *i = g_iota(g, DT_INT64, 1, &r->r, 0), *end = NULL;
  if (!ops_index(num, "RoisNum") || !ops_rank(num, "RoisNum", 1, 1) ||
      !ops_same("images and elements of RoisNum", r->in->dims[0], num->dims[0]))
    return false;
  num = g_cast(g, num, DT_INT64);
  for (int64_t k = 0; k + 1 < r->in->dims[0]; k++) {
    Node *one = g_reshape(g, ops_cut(g, num, 0, k, 1, 1), 0, NULL);
    end = end ? ops_add(g, end, one) : one;
    Node *past = g_cast(g, g_map2(g, P_LE, end, i), DT_INT64);
    r->image = r->image ? ops_add(g, r->image, past) : past;
  }
  if (!r->image) r->image = g_full_int(g, DT_INT64, 0, 1, &r->r);
  return true;
}

/* Points of the regions' images: [R, C, P] at (x, y) [R, P], whole numbers inside the image. */
static Node *region_points(Graph *g, const Regions *r, Node *x, Node *y) {
  int64_t n = r->in->dims[0], c = r->in->dims[1], h = r->in->dims[2], w = r->in->dims[3],
          p = x->dims[1];
  Node *flat = g_reshape(g, g_permute(g, r->in, (int[]){1, 0, 2, 3}), 2, (int64_t[]){c, n * h * w});
  Node *at = ops_add(g, ops_times(g, g_cast(g, y, DT_INT64), (double)w), g_cast(g, x, DT_INT64));
  at = ops_add(g, at, ops_times(g, ops_along(g, r->image, 2, 0), (double)(h * w)));
  at = at ? g_reshape(g, at, 1, (int64_t[]){r->r * p}) : NULL;
  Node *v = g_reshape(g, ops_take(g, flat, at, 1), 3, (int64_t[]){c, r->r, p});
  return v ? g_permute(g, v, (int[]){1, 0, 2}) : NULL;
}

/* v [R, P] spread over points: 0 outside -1..n, else pulled into 0..n-1; *live says which count. */
static void region_axis(Graph *g, Node *v, int64_t n, Node **low, Node **high, Node **part,
                        Node **live) {
  *live = ops_mul(g, g_map2(g, P_LE, g_const(g, v->dtype, -1), v),
                  g_map2(g, P_LE, v, g_const(g, v->dtype, (double)n)));
  v = g_map2c(g, P_MAX, v, 0);
  Node *floor = g_map1(g, P_FLOOR, v), *last = g_const(g, v->dtype, (double)(n - 1));
  Node *end = g_map2(g, P_LE, last, floor);
  *low = g_map2(g, P_MIN, floor, last);
  *high = g_map2(g, P_MIN, ops_plus(g, floor, 1), last);
  *part = g_select(g, end, g_const(g, v->dtype, 0), ops_sub(g, v, floor));
}

/* Along one direction: the positions [R, pooled*count] of the samples, and [R, pooled*count] whether they count.
 * count: of samples in each cell, at most; given, or as many as the cell has points (*each, [R]). */
static Node *region_samples(Graph *g, const Regions *r, int k, int64_t pooled, int64_t count,
                            bool aligned, bool given, Node **each, Node **used) {
  double shift = aligned ? 0.5 : 0;
  Node *lo = ops_plus(g, ops_times(g, r->box[k], r->scale), -shift);
  Node *hi = ops_plus(g, ops_times(g, r->box[2 + k], r->scale), -shift);
  Node *size = ops_sub(g, hi, lo);
  if (!size) return NULL;
  if (!aligned) size = g_map2c(g, P_MAX, size, 1);
  Node *cell = ops_times(g, size, 1 / (double)pooled);
  Node *n = g_full(g, size->dtype, (double)count, 1, &r->r);
  if (!given) {
    n = ops_times(g, g_map1(g, P_FLOOR, ops_times(g, cell, -1)), -1); /* ceil */
    Node *whole = g_check(g, g_cast(g, n, DT_INT64), INT32_MIN, count + 1, false, 0, E_DAT_002);
    n = g_cast(g, whole, size->dtype);
  }
  *each = g_map2c(g, P_MAX, n, 1);
  int64_t dims[] = {r->r, pooled, count};
  Node *i = g_iota(g, size->dtype, 3, dims, 2), *p = g_iota(g, size->dtype, 3, dims, 1);
  Node *step = ops_div(g, ops_along(g, cell, 3, 0), ops_along(g, *each, 3, 0));
  Node *at =
      ops_add(g, ops_mul(g, p, ops_along(g, cell, 3, 0)), ops_mul(g, ops_plus(g, i, 0.5), step));
  at = ops_add(g, at, ops_along(g, lo, 3, 0));
  *used = g_expand(g, g_map2(g, P_LT, i, ops_along(g, n, 3, 0)), 3, dims);
  return at;
}

/* [R, P, S] of the rows and [R, Q, T] of the columns -> [R, P*S*Q*T] of all pairs */
static Node *region_pair(Graph *g, Node *v, const int64_t *dims, bool rows) {
  if (!v) return NULL;
  int64_t one[5] = {v->dims[0], rows ? v->dims[1] : 1, rows ? v->dims[2] : 1, rows ? 1 : v->dims[1],
                    rows ? 1 : v->dims[2]};
  return g_reshape(g, g_expand(g, g_reshape(g, v, 5, one), 5, dims), 2,
                   (int64_t[]){dims[0], ops_prod(dims, 1, 5)});
}

bool x_roi_align(Expand *x) {
  Graph *g = x->g;
  Regions r = {0};
  if (!regions_read(x, &r)) return false;
  int64_t ratio = op_int(x->op, "sampling_ratio"), c = r.in->dims[1], size[] = {r.ph, r.pw}, n[2];
  bool aligned = op_bool(x->op, "aligned"), given = ratio > 0;
  if (ratio > 1024) return err_set(E_OPR_003, "sampling_ratio is %lld", (long long)ratio);
  if (!ops_known(r.in) || r.r <= 0)
    return x_out(x, "Out", ops_blank(g, r.in->dtype, 4, (int64_t[]){r.r, c, r.ph, r.pw}));
  Node *at[2], *each[2], *used[2], *low[2], *high[2], *part[2], *live[2], *sum = NULL;
  for (int k = 0; k < 2; k++) { /* 0 rows, 1 columns; a region is at most as large as its image */
    n[k] = given ? ratio : r.in->dims[2 + k] / size[k] + 1;
    at[k] = region_samples(g, &r, 1 - k, size[k], n[k], aligned, given, &each[k], &used[k]);
    if (!at[k]) return false;
  }
  int64_t dims[] = {r.r, r.ph, n[0], r.pw, n[1]};
  Node *counts =
      ops_mul(g, region_pair(g, used[0], dims, true), region_pair(g, used[1], dims, false));
  for (int k = 0; k < 2; k++)
    region_axis(g, region_pair(g, at[k], dims, k == 0), r.in->dims[2 + k], &low[k], &high[k],
                &part[k], &live[k]);
  counts = ops_mul(g, counts, ops_mul(g, live[0], live[1]));
  for (int i = 0; i < 4; i++) {
    Node *wy = i & 2 ? part[0] : ops_plus(g, ops_times(g, part[0], -1), 1);
    Node *wx = i & 1 ? part[1] : ops_plus(g, ops_times(g, part[1], -1), 1);
    Node *w = g_select(g, counts, ops_mul(g, wy, wx), g_const(g, r.in->dtype, 0));
    Node *v = region_points(g, &r, i & 1 ? high[1] : low[1], i & 2 ? high[0] : low[0]);
    Node *term = ops_mul(g, v, channelwise(g, w));
    sum = sum ? ops_add(g, sum, term) : term;
  }
  sum = g_reshape(g, sum, 6, (int64_t[]){r.r, c, r.ph, n[0], r.pw, n[1]});
  sum = sum ? g_reduce(g, P_RSUM, sum, 1u << 3 | 1u << 5, false) : NULL;
  Node *area = ops_along(g, ops_mul(g, each[0], each[1]), 4, 0);
  return x_out(x, "Out", ops_div(g, sum, area));
}
