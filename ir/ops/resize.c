/* Resizing of images and volumes: nearest_interp_v2, linear_, bilinear_, trilinear_ and bicubic_interp_v2, and their first
 * versions, whose scale is one number and only makes the size. One spatial dimension after the other is gathered by a
 * table of source indices; linear interpolation gathers the lower and the upper neighbour and weights them, cubic
 * interpolation four (R. Keys, "Cubic convolution interpolation", 1981, with a = -0.75). Enlarging by a whole factor to the nearest is a broadcast. Indices are computed in float32, as in
 * PaddlePaddle. */
#include "ops.h"

#include <math.h>
#include <string.h>

enum { MAX_RESIZED = 1 << 20 }; /* largest output size of a dimension, for which a table is kept */

typedef struct Resize {
  int n_sp, at; /* spatial dimensions at, at + 1, ... */
  bool linear, corners, half;
  int64_t in[OPS_MAX_SP], out[OPS_MAX_SP]; /* -1 unknown */
  float scale[OPS_MAX_SP];                 /* 0: none given */
} Resize;

static int64_t scaled_size(int64_t in, float scale) {
  double out = (double)((float)in * scale);
  return in < 0 ? -1 : out > MAX_RESIZED ? MAX_RESIZED + 1 : (int64_t)out;
}

static bool resize_by_one(Resize *r, double scale) {
  if (!(scale <= MAX_RESIZED)) return err_set(E_OPR_003, "scale is %g", scale);
  for (int i = 0; i < r->n_sp && scale > 0; i++) r->out[i] = scaled_size(r->in[i], (float)scale);
  return true;
}

static bool resize_scale(Expand *x, Resize *r) {
  const Attr *a = op_attr(x->op, "scale");
  if (a && !attr_info[a->type].list) return resize_by_one(r, op_float(x->op, "scale"));
  a = op_list(x->op, "scale", x->g->arena);
  int n = a && a->type == AT_FLOATS ? a->n : 0;
  if (n != 0 && n != 1 && n != r->n_sp) {
    err_set(E_OPR_003, "scale has %d values for %d spatial dimensions", n, r->n_sp);
    err_help("Give one value for each, or one for all.");
    return false;
  }
  for (int i = 0; i < r->n_sp && n > 0; i++) {
    double s = a->fs[n == 1 ? 0 : i];
    if (!(s > 0 && s <= MAX_RESIZED)) return err_set(E_OPR_003, "scale holds %g", s);
    r->scale[i] = (float)s;
    r->out[i] = scaled_size(r->in[i], r->scale[i]);
  }
  return true;
}

/* Sizes in rising priority: out_d, out_h, out_w; scale; OutSize; SizeTensor. */
static bool resize_sizes(Expand *x, Resize *r) {
  static const char *const attrs[] = {"out_d", "out_h", "out_w"};
  int64_t v[KL_RANK];
  for (int i = 0; i < r->n_sp; i++) {
    int64_t size = op_int(x->op, attrs[3 - r->n_sp + i]);
    r->out[i] = size > 0 ? size : -2;
  }
  bool listed = x_n_in(x, "SizeTensor") > 0;
  if (!listed && !resize_scale(x, r)) return false;
  if (listed || x_n_in(x, "OutSize") > 0) {
    int n = ops_list(x, "SizeTensor", "OutSize", NULL, v, KL_RANK);
    if (n < 0 || !ops_same("spatial dimensions and given sizes", r->n_sp, n)) return false;
    for (int i = 0; i < n; i++) r->out[i] = v[i] == OPS_UNKNOWN ? -1 : v[i] < 1 ? -2 : v[i];
  } else if (x_n_in(x, "Scale") > 0) {
    if (!x->g->shapes_only) {
      err_set(E_OPR_004, "the tensor Scale is not supported");
      err_help("Give the scale as the attribute, or the size as out_h and out_w.");
      return false;
    }
    for (int i = 0; i < r->n_sp; i++) r->out[i] = -1;
  }
  for (int i = 0; i < r->n_sp; i++) {
    if (r->in[i] == 0) return err_set(E_SHP_005, "spatial dimension %d is empty", i);
    if (r->out[i] == -1 || (r->out[i] > 0 && r->out[i] <= MAX_RESIZED)) continue;
    err_set(E_OPR_003, "no size in 1..%d is given for spatial dimension %d", MAX_RESIZED, i);
    err_help("Set out_h and out_w (out_d), or scale.");
    return false;
  }
  return true;
}

static bool resize_read(Expand *x, int n_sp, bool linear, Resize *r) {
  Node *in = x_in(x, "X");
  bool last;
  memset(r, 0, sizeof *r);
  int lo = n_sp ? n_sp + 2 : 3, hi = n_sp ? n_sp + 2 : 5;
  if (!ops_rank(in, "X", lo, hi) || (linear && !ops_float(in, "X")) ||
      !ops_layout(x, "data_layout", &last))
    return false;
  r->n_sp = in->rank - 2;
  r->at = last ? 1 : 2;
  r->linear = linear;
  r->corners = op_bool(x->op, "align_corners");
  r->half = op_int(x->op, "align_mode") == 0 && !r->corners;
  for (int i = 0; i < r->n_sp; i++) r->in[i] = in->dims[r->at + i];
  return resize_sizes(x, r);
}

/* PaddlePaddle's ratio to a single element is 0, whatever the alignment. */
static float resize_ratio(const Resize *r, int i) {
  if (r->out[i] == 1) return 0;
  if (r->corners) return (float)(r->in[i] - 1) / (float)(r->out[i] - 1);
  return r->scale[i] > 0 ? 1 / r->scale[i] : (float)r->in[i] / (float)r->out[i];
}

static int64_t at_most(int64_t v, int64_t n) { return v < 0 ? 0 : v < n ? v : n - 1; }

/* v with every element of the axis repeated `times` times in place. */
static Node *stretched(Graph *g, Node *v, int axis, int64_t times) {
  int64_t n = v->dims[axis], pre = ops_prod(v->dims, 0, axis), dims[KL_RANK],
          post = ops_prod(v->dims, axis + 1, v->rank);
  memcpy(dims, v->dims, sizeof dims);
  dims[axis] = n * times;
  Node *w = g_reshape(g, v, 4, (int64_t[]){pre, n, 1, post});
  return g_reshape(g, g_expand(g, w, 4, (int64_t[]){pre, n, times, post}), v->rank, dims);
}

static Node *resize_nearest(Graph *g, Node *v, const Resize *r, int i) {
  int64_t n = r->out[i], *idx = arena_array(g->arena, int64_t, n), times = n / r->in[i];
  float ratio = resize_ratio(r, i);
  bool whole = times > 0 && n % r->in[i] == 0;
  for (int64_t o = 0; o < n; o++) {
    idx[o] = at_most((int64_t)(ratio * (float)o + (r->corners ? 0.5f : 0)), r->in[i]);
    whole &= times > 0 && idx[o] == o / times;
  }
  if (whole) return stretched(g, v, r->at + i, times);
  return ops_take(g, v, g_data(g, DT_INT64, 1, &n, idx, "resize_index"), r->at + i);
}

static Node *resize_linear(Graph *g, Node *v, const Resize *r, int i) {
  int64_t n = r->out[i];
  int64_t *lower = arena_array(g->arena, int64_t, n), *upper = arena_array(g->arena, int64_t, n);
  double *weight = arena_array(g->arena, double, n);
  float ratio = resize_ratio(r, i);
  for (int64_t o = 0; o < n; o++) {
    float at = r->half ? ratio * ((float)o + 0.5f) - 0.5f : ratio * (float)o;
    if (at < 0) at = 0;
    lower[o] = at_most((int64_t)at, r->in[i]);
    upper[o] = at_most(lower[o] + 1, r->in[i]);
    weight[o] = (double)(at - (float)lower[o]);
  }
  Node *w = g_cast(g, g_data(g, DT_FLOAT64, 1, &n, weight, "resize_weight"), v->dtype);
  w = ops_along(g, w, v->rank, r->at + i);
  Node *a = ops_take(g, v, g_data(g, DT_INT64, 1, &n, lower, "resize_lower"), r->at + i);
  Node *b = ops_take(g, v, g_data(g, DT_INT64, 1, &n, upper, "resize_upper"), r->at + i);
  return g_map2(g, P_ADD, a, g_map2(g, P_MUL, g_map2(g, P_SUB, b, a), w));
}

static void cubic_weights(double t, double *w) {
  const double a = -0.75;
  double d[4] = {1 + t, t, 1 - t, 2 - t};
  for (int k = 0; k < 4; k++)
    w[k] = k == 1 || k == 2 ? ((a + 2) * d[k] - (a + 3)) * d[k] * d[k] + 1
                            : ((a * d[k] - 5 * a) * d[k] + 8 * a) * d[k] - 4 * a;
}

static Node *resize_cubic(Graph *g, Node *v, const Resize *r, int i) {
  int64_t n = r->out[i], *at = arena_array(g->arena, int64_t, 4 * n);
  double *weight = arena_array(g->arena, double, 4 * n);
  float ratio = resize_ratio(r, i);
  for (int64_t o = 0; o < n; o++) {
    float x = r->corners ? ratio * (float)o : ratio * ((float)o + 0.5f) - 0.5f;
    double w[4];
    cubic_weights((double)(x - floorf(x)), w);
    for (int64_t k = 0; k < 4; k++) {
      at[k * n + o] = at_most((int64_t)floorf(x) - 1 + k, r->in[i]);
      weight[k * n + o] = w[k];
    }
  }
  Node *sum = NULL;
  for (int64_t k = 0; k < 4; k++) {
    Node *w = g_cast(g, g_data(g, DT_FLOAT64, 1, &n, weight + k * n, "resize_weight"), v->dtype);
    Node *p = ops_take(g, v, g_data(g, DT_INT64, 1, &n, at + k * n, "resize_index"), r->at + i);
    p = ops_mul(g, p, ops_along(g, w, v->rank, r->at + i));
    sum = sum ? ops_add(g, sum, p) : p;
  }
  return sum;
}

static bool resize(Expand *x, int n_sp, bool linear, bool cubic) {
  Resize r;
  if (!resize_read(x, n_sp, linear || cubic, &r)) return false;
  Node *v = x_in(x, "X");
  int64_t dims[KL_RANK];
  bool known = ops_known(v);
  memcpy(dims, v->dims, sizeof dims);
  for (int i = 0; i < r.n_sp; i++) {
    dims[r.at + i] = r.out[i];
    known &= r.out[i] > 0;
  }
  if (!known) return x_out(x, "Out", ops_blank(x->g, v->dtype, v->rank, dims));
  for (int i = 0; i < r.n_sp && v; i++)
    if (r.in[i] != r.out[i] || r.scale[i] > 0)
      v = cubic    ? resize_cubic(x->g, v, &r, i)
          : linear ? resize_linear(x->g, v, &r, i)
                   : resize_nearest(x->g, v, &r, i);
  return x_out(x, "Out", v);
}

bool x_nearest_interp_v2(Expand *x) { return resize(x, 0, false, false); }
bool x_linear_interp_v2(Expand *x) { return resize(x, 1, true, false); }
bool x_bilinear_interp_v2(Expand *x) { return resize(x, 2, true, false); }
bool x_trilinear_interp_v2(Expand *x) { return resize(x, 3, true, false); }
bool x_bicubic_interp_v2(Expand *x) { return resize(x, 2, false, true); }
