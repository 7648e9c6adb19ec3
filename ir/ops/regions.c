/* Pooling of regions of images: roi_align, roi_pool, psroi_pool. ROIs [R, 4] are x1 y1 x2 y2 in units that spatial_scale makes points of
 * the images X [N, C, H, W]; RoisNum [N] says how many of them, in turn, belong to each image. A region becomes pooled_height x
 * pooled_width cells: roi_align averages samples between the points of a cell, roi_pool takes the largest of its points
 * (K. He et al., "Mask R-CNN", 2017; R. Girshick, "Fast R-CNN", 2015); psroi_pool averages the points of a cell, in channels
 * that are the cell's own (J. Dai et al., "R-FCN", 2016). */
#include "ops.h"
#include <math.h>

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

static Node *cells(Graph *g, Node *v) { /* [R, P] -> [R, 1, P] */
  return v ? g_reshape(g, v, 3, (int64_t[]){v->dims[0], 1, v->dims[1]}) : NULL;
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
    Node *term = ops_mul(g, v, cells(g, w));
    sum = sum ? ops_add(g, sum, term) : term;
  }
  sum = g_reshape(g, sum, 6, (int64_t[]){r.r, c, r.ph, n[0], r.pw, n[1]});
  sum = sum ? g_reduce(g, P_RSUM, sum, 1u << 3 | 1u << 5, false) : NULL;
  Node *area = ops_along(g, ops_mul(g, each[0], each[1]), 4, 0);
  return x_out(x, "Out", ops_div(g, sum, area));
}

/* ---- roi_pool ---- */

/* v as a whole number, halves away from 0. */
static Node *whole(Graph *g, Node *v) {
  Node *size = g_map2(g, P_MAX, v, ops_times(g, v, -1));
  Node *near = g_map1(g, P_FLOOR, ops_plus(g, size, 0.5));
  return g_cast(g, g_select(g, g_map2c(g, P_LT, v, 0), ops_times(g, near, -1), near), DT_INT64);
}

/* Which of the n points along a direction (k = 0 columns, 1 rows) each cell has: bool [R, cells, n]. */
static Node *cell_points(Graph *g, const Regions *r, int k, int64_t cells, int64_t n) {
  int64_t dims[] = {r->r, cells, n}, column[] = {r->r, cells, 1};
  Node *lo = whole(g, ops_times(g, r->box[k], r->scale));
  Node *hi = whole(g, ops_times(g, r->box[2 + k], r->scale));
  Node *size = g_map2c(g, P_MAX, ops_plus(g, ops_sub(g, hi, lo), 1), 1);
  if (!size) return NULL;
  lo = ops_along(g, lo, 3, 0), size = ops_along(g, size, 3, 0);
  Node *p = g_iota(g, DT_INT64, 3, column, 1), *all = g_full_int(g, DT_INT64, cells, 0, NULL);
  Node *from = ops_div(g, ops_mul(g, p, size), all); /* rounded down, the end upwards */
  Node *to = ops_div(g, ops_mul(g, ops_times(g, ops_plus(g, p, 1), -1), size), all);
  from = ops_add(g, from, lo);
  to = ops_sub(g, lo, to);
  Node *i = g_iota(g, DT_INT64, 3, dims, 2);
  return ops_mul(g, g_map2(g, P_LE, from, i), g_map2(g, P_LT, i, to));
}

/* [R, cells] -> [R, 1, cells, 1] or [R, 1, 1, cells]: has the cell a point? */
static Node *has_points(Graph *g, Node *points, bool rows) {
  if (!points) return NULL;
  int64_t n = points->dims[1], dims[] = {points->dims[0], 1, rows ? n : 1, rows ? 1 : n};
  return g_reshape(g, g_reduce(g, P_RMAX, points, 1u << 2, false), 4, dims);
}

/* The largest of the points of a region's row that are in each cell, then the largest of those rows. */
bool x_roi_pool(Expand *x) {
  Graph *g = x->g;
  Regions r = {0};
  if (!regions_read(x, &r)) return false;
  int64_t c = r.in->dims[1], h = r.in->dims[2], w = r.in->dims[3], dims[] = {r.r, c, r.ph, r.pw};
  if (!ops_known(r.in) || r.r <= 0)
    return x_out(x, "Out", ops_blank(g, r.in->dtype, 4, dims)) &&
           x_out(x, "Argmax", ops_blank(g, DT_INT64, 4, dims));
  Node *in_w = cell_points(g, &r, 0, r.pw, w), *in_h = cell_points(g, &r, 1, r.ph, h);
  Node *some = ops_mul(g, has_points(g, in_w, false), has_points(g, in_h, true));
  Node *least = g_const(g, r.in->dtype, -INFINITY);
  Node *v = g_reshape(g, ops_take(g, r.in, r.image, 0), 5, (int64_t[]){r.r, c, h, 1, w});
  v = g_select(g, g_reshape(g, in_w, 5, (int64_t[]){r.r, 1, 1, r.pw, w}), v, least);
  if (!v || !some) return false;
  Node *col = g_argmax(g, v, 1u << 4, false, DT_INT64); /* [R, C, H, PW] */
  v = g_reshape(g, g_reduce(g, P_RMAX, v, 1u << 4, false), 5, (int64_t[]){r.r, c, 1, h, r.pw});
  v = g_select(g, g_reshape(g, in_h, 5, (int64_t[]){r.r, 1, r.ph, h, 1}), v, least);
  if (!v || !col) return false;
  Node *row = g_argmax(g, v, 1u << 3, false, DT_INT64); /* [R, C, PH, PW] */
  Node *at = ops_add(g, ops_times(g, row, (double)w), g_gather(g, col, row, 2));
  return x_out(x, "Out",
               g_select(g, some, g_reduce(g, P_RMAX, v, 1u << 3, false),
                        g_const(g, r.in->dtype, 0))) &&
         x_out(x, "Argmax", g_select(g, some, at, g_full_int(g, DT_INT64, -1, 0, NULL)));
}

bool x_roi_pool_grad(Expand *x) {
  Graph *g = x->g;
  Regions r = {0};
  Node *at = x_in(x, "Argmax"), *dy = x_in(x, "Out@GRAD");
  if (!regions_read(x, &r) || !at || !dy) return false;
  if (!ops_known(r.in) || r.r <= 0) return x_out(x, "X@GRAD", ops_zeros(g, r.in));
  int64_t c = r.in->dims[1], points = r.in->dims[2] * r.in->dims[3], all;
  int64_t dims[] = {r.r, c, r.ph * r.pw}, n = r.r * c * r.ph * r.pw;
  all = r.in->dims[0] * c * points;
  if (!ops_same("cells and elements of Argmax", n, ops_prod(at->dims, 0, at->rank)) ||
      !ops_same("cells and elements of Out@GRAD", n, ops_prod(dy->dims, 0, dy->rank)))
    return false;
  Node *channel = ops_add(g, ops_times(g, ops_along(g, r.image, 3, 0), (double)c),
                          g_iota(g, DT_INT64, 3, dims, 1));
  at = g_reshape(g, g_cast(g, at, DT_INT64), 3, dims);
  Node *none = at ? g_map2c(g, P_LT, at, 0) : NULL;
  Node *to = ops_add(g, ops_times(g, channel, (double)points), at);
  to = g_select(g, none, g_full_int(g, DT_INT64, all, 0, NULL), to);
  Node *room = g_full(g, dy->dtype, 0, 1, (int64_t[]){all + 1}); /* one more, for empty cells */
  Node *sum = g_scatter(g, room, g_reshape(g, to, 1, &n), g_reshape(g, dy, 1, &n), 0, false);
  return x_out(x, "X@GRAD", g_reshape(g, ops_cut(g, sum, 0, 0, 1, all), 4, r.in->dims));
}

/* ---- psroi_pool ---- */

/* Which of the n points along a direction (k = 0 columns, 1 rows) each cell has: bool [R, cells, n]; *count: how many. */
static Node *mean_points(Graph *g, const Regions *r, int k, int64_t cells, int64_t n,
                         Node **count) {
  DType t = r->in->dtype;
  int64_t dims[] = {r->r, cells, n}, column[] = {r->r, cells, 1};
  Node *lo = ops_times(g, g_cast(g, whole(g, r->box[k]), t), r->scale);
  Node *hi = ops_times(g, ops_plus(g, g_cast(g, whole(g, r->box[2 + k]), t), 1), r->scale);
  Node *cell = ops_times(g, g_map2c(g, P_MAX, ops_sub(g, hi, lo), 0.1), 1 / (double)cells);
  if (!cell) return NULL;
  lo = ops_along(g, lo, 3, 0), cell = ops_along(g, cell, 3, 0);
  Node *p = g_iota(g, t, 3, column, 1);
  Node *from = g_map1(g, P_FLOOR, ops_add(g, ops_mul(g, p, cell), lo));
  Node *end = ops_add(g, ops_mul(g, ops_plus(g, p, 1), cell), lo);
  Node *to = ops_times(g, g_map1(g, P_FLOOR, ops_times(g, end, -1)), -1); /* ceil */
  from = g_map2c(g, P_MIN, g_map2c(g, P_MAX, from, 0), (double)n);
  to = g_map2c(g, P_MIN, g_map2c(g, P_MAX, to, 0), (double)n);
  *count = g_map2c(g, P_MAX, ops_sub(g, to, from), 0);
  Node *i = g_iota(g, t, 3, dims, 2);
  return ops_mul(g, g_map2(g, P_LE, from, i), g_map2(g, P_LT, i, to));
}

/* Cell (i, j) of channel c reads channel (c * PH + i) * PW + j. */
bool x_psroi_pool(Expand *x) {
  Graph *g = x->g;
  Regions r = {0};
  int64_t c = op_int(x->op, "output_channels");
  if (!regions_read(x, &r)) return false;
  int64_t h = r.in->dims[2], w = r.in->dims[3], dims[] = {r.r, c, r.ph, r.pw};
  if (c < 1 || c > INT32_MAX ||
      !ops_same("channels of X and output_channels times the cells", r.in->dims[1],
                c * r.ph * r.pw))
    return err_any() ? false : err_set(E_OPR_003, "output_channels is %lld", (long long)c);
  if (!ops_known(r.in) || r.r <= 0) return x_out(x, "Out", ops_blank(g, r.in->dtype, 4, dims));
  Node *wide, *high, *zero = g_const(g, r.in->dtype, 0);
  Node *in_w = mean_points(g, &r, 0, r.pw, w, &wide), *in_h = mean_points(g, &r, 1, r.ph, h, &high);
  Node *v = g_reshape(g, ops_take(g, r.in, r.image, 0), 6, (int64_t[]){r.r, c, r.ph, r.pw, h, w});
  if (!v || !in_w || !in_h) return false;
  v = g_select(g, g_reshape(g, in_w, 6, (int64_t[]){r.r, 1, 1, r.pw, 1, w}), v, zero);
  v = g_reduce(g, P_RSUM, v, 1u << 5, false); /* [R, C, PH, PW, H] */
  v = g_select(g, g_reshape(g, in_h, 5, (int64_t[]){r.r, 1, r.ph, 1, h}), v, zero);
  v = v ? g_reduce(g, P_RSUM, v, 1u << 4, false) : NULL;
  Node *area = ops_mul(g, g_reshape(g, high, 4, (int64_t[]){r.r, 1, r.ph, 1}),
                       g_reshape(g, wide, 4, (int64_t[]){r.r, 1, 1, r.pw}));
  return x_out(x, "Out", ops_div(g, v, area ? g_map2c(g, P_MAX, area, 1) : NULL));
}
