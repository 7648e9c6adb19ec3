/* Rearrangements of channels and frames, unpooling and spectral normalisation. */
#include "ops.h"

#include <math.h>
#include <string.h>

/* ---- channels ---- */

/* [N, C, H, W] with the channels as [outer, inner] swapped to [inner, outer]. */
static Node *dealt(Graph *g, Node *in, int64_t outer, int64_t inner) {
  Node *v = g_reshape(g, in, 5, (int64_t[]){in->dims[0], outer, inner, in->dims[2], in->dims[3]});
  return g_reshape(g, v ? g_permute(g, v, (int[]){0, 2, 1, 3, 4}) : NULL, 4, in->dims);
}

/* X to Out, or Out@GRAD back to X@GRAD. */
static bool shuffled(Expand *x, int64_t groups, bool last, bool back) {
  Graph *g = x->g;
  const char *slot = back ? "Out@GRAD" : "X";
  Node *in = x_in(x, slot);
  if (!ops_rank(in, slot, 4, 4)) return false;
  if (last) in = ops_channels_first(g, in);
  if (groups < 1 || (in->dims[1] >= 0 && in->dims[1] % groups))
    return err_set(E_OPR_003, "%lld groups of %lld channels", (long long)groups,
                   (long long)in->dims[1]);
  int64_t each = in->dims[1] / groups;
  Node *y = ops_known(in) ? dealt(g, in, back ? each : groups, back ? groups : each)
                          : ops_blank_like(g, in);
  return x_out(x, back ? "X@GRAD" : "Out", last ? ops_channels_last(g, y) : y);
}

bool x_shuffle_channel(Expand *x) { return shuffled(x, op_int(x->op, "group"), false, false); }
bool x_shuffle_channel_grad(Expand *x) { return shuffled(x, op_int(x->op, "group"), false, true); }

static bool channel_shuffle(Expand *x, bool back) {
  bool last;
  return ops_layout(x, "data_format", &last) && shuffled(x, op_int(x->op, "groups"), last, back);
}

bool x_channel_shuffle(Expand *x) { return channel_shuffle(x, false); }
bool x_channel_shuffle_grad(Expand *x) { return channel_shuffle(x, true); }

bool x_space_to_depth(Expand *x) {
  Graph *g = x->g;
  Node *in = x_in(x, "X");
  int64_t b = op_int(x->op, "blocksize");
  if (!ops_rank(in, "X", 4, 4)) return false;
  const int64_t *d = in->dims;
  bool ok = b >= 1 && b <= 1 << 15 && (d[2] < 0 || d[2] % b == 0) && (d[3] < 0 || d[3] % b == 0);
  if (!ok)
    return err_set(E_OPR_003, "blocksize %lld does not divide %s", (long long)b, dims_text(4, d));
  int64_t dims[] = {d[0], d[1] < 0 ? -1 : d[1] * b * b, d[2] < 0 ? -1 : d[2] / b,
                    d[3] < 0 ? -1 : d[3] / b};
  if (!ops_known(in)) return x_out(x, "Out", ops_blank(g, in->dtype, 4, dims));
  Node *v = g_reshape(g, in, 6, (int64_t[]){d[0], d[1], dims[2], b, dims[3], b});
  v = v ? g_permute(g, v, (int[]){0, 3, 5, 1, 2, 4}) : NULL;
  return v && x_out(x, "Out", g_reshape(g, v, 4, dims));
}

/* X as [N, T, C, H, W]: the first channels one frame later, as many behind them one earlier; back: Out@GRAD the other way. */
static bool shifted(Expand *x, bool back) {
  Graph *g = x->g;
  const char *slot = back ? "Out@GRAD" : "X", *to = back ? "X@GRAD" : "Out";
  Node *in = x_in(x, slot);
  int64_t t = op_int(x->op, "seg_num");
  double ratio = op_float(x->op, "shift_ratio");
  bool last;
  if (!ops_rank(in, slot, 4, 4) || !ops_layout(x, "data_format", &last)) return false;
  if (last) in = ops_channels_first(g, in);
  int64_t nt = in->dims[0], c = in->dims[1];
  if (t < 1 || (nt >= 0 && nt % t) || !(ratio > 0 && ratio <= 0.5))
    return err_set(E_OPR_003, "seg_num is %lld for %lld frames, shift_ratio %g", (long long)t,
                   (long long)nt, ratio);
  if (!ops_known(in)) return x_out(x, to, ops_blank_like(g, x_in(x, slot)));
  int64_t to1 = (int64_t)((float)c * (float)ratio), to2 = (int64_t)((float)c * 2 * (float)ratio);
  Node *v = g_reshape(g, in, 5, (int64_t[]){nt / t, t, c, in->dims[2], in->dims[3]}), *part[3];
  int64_t from[] = {0, to1, to2, c}, by[] = {back ? -1 : 1, back ? 1 : -1, 0};
  for (int i = 0; i < 3; i++)
    part[i] = g_pad(g, ops_cut(g, v, 2, from[i], 1, from[i + 1] - from[i]),
                    (int64_t[]){0, by[i], 0, 0, 0}, (int64_t[]){0, -by[i], 0, 0, 0}, 0);
  if (err_any()) return false;
  Node *y = g_reshape(g, g_concat(g, 3, part, 2), 4, in->dims);
  return x_out(x, to, last ? ops_channels_last(g, y) : y);
}

bool x_temporal_shift(Expand *x) { return shifted(x, false); }
bool x_temporal_shift_grad(Expand *x) { return shifted(x, true); }

/* ---- unpool ---- */

/* The n dimensions of the result behind the channels: output_size, or what the window would have pooled. */
static bool unpool_size(Expand *x, const Node *in, int n, int64_t *size) {
  int n_given;
  const int64_t *given = op_intlist(x->op, "output_size", x->g->arena, &n_given);
  int64_t k[3], stride[3], pad[3];
  if (!ops_ints(x, "ksize", n, 1, INT32_MAX, k) ||
      !ops_ints(x, "strides", n, 1, INT32_MAX, stride) ||
      !ops_ints(x, "paddings", n, 0, INT32_MAX, pad))
    return false;
  for (int i = 0; i < n; i++) {
    size[i] = n_given >= n          ? given[n_given - n + i]
              : in->dims[2 + i] < 0 ? -1
                                    : (in->dims[2 + i] - 1) * stride[i] - 2 * pad[i] + k[i];
    if (size[i] == 0 || size[i] < -1)
      return err_set(E_SHP_005, "output_size is %lld", (long long)size[i]);
  }
  return true;
}

/* [N, C, all else] */
static Node *unpool_flat(Graph *g, Node *v) {
  return g_reshape(g, v, 3, (int64_t[]){v->dims[0], v->dims[1], ops_prod(v->dims, 2, v->rank)});
}

static Node *unpool_at(Graph *g, Node *idx, int64_t all) {
  return g_check(g, unpool_flat(g, idx), 0, all, false, 0, E_DAT_002);
}

/* Of images and, with three dimensions behind the channels, volumes. */
static bool unpooled(Expand *x, int n) {
  Graph *g = x->g;
  Node *in = x_in(x, "X"), *idx = x_in(x, "Indices");
  int64_t dims[5];
  if (!ops_rank(in, "X", n + 2, n + 2) || !ops_index(idx, "Indices") ||
      !ops_rank(idx, "Indices", n + 2, n + 2) || !unpool_size(x, in, n, dims + 2))
    return false;
  dims[0] = in->dims[0], dims[1] = in->dims[1];
  if (!ops_known(in) || !ops_known(idx))
    return x_out(x, "Out", ops_blank(g, in->dtype, n + 2, dims));
  int64_t flat[] = {dims[0], dims[1], ops_prod(dims, 2, n + 2)};
  Node *y = g_scatter(g, g_full(g, in->dtype, 0, 3, flat), unpool_at(g, idx, flat[2]),
                      unpool_flat(g, in), 2, true);
  return y && x_out(x, "Out", g_reshape(g, y, n + 2, dims));
}

bool x_unpool(Expand *x) { return unpooled(x, 2); }
bool x_unpool3d(Expand *x) { return unpooled(x, 3); }

bool x_unpool_grad(Expand *x) {
  Graph *g = x->g;
  Node *in = x_in(x, "X"), *idx = x_in(x, "Indices"), *gy = x_in(x, "Out@GRAD");
  if (!in || !ops_rank(idx, "Indices", in->rank, in->rank) ||
      !ops_rank(gy, "Out@GRAD", in->rank, in->rank))
    return false;
  if (!ops_known(in) || !ops_known(gy)) return x_out(x, "X@GRAD", ops_blank_like(g, in));
  int64_t all = ops_prod(gy->dims, 2, gy->rank);
  Node *y = g_gather(g, unpool_flat(g, gy), unpool_at(g, idx, all), 2);
  return y && x_out(x, "X@GRAD", g_reshape(g, y, in->rank, in->dims));
}

/* ---- spectral_norm ---- */

static Node *unit_vector(Graph *g, Node *v, double eps) {
  Node *n = v ? g_map1(g, P_SQRT, g_reduce(g, P_RSUM, ops_mul(g, v, v), (1u << v->rank) - 1, true))
              : NULL;
  return ops_div(g, v, ops_plus(g, n, eps));
}

/* w over its estimated norm; the vectors come from `by`, which has the same value. */
static Node *spectral(Expand *x, Node *w, Node *by) {
  Graph *g = x->g;
  Node *u = x_in(x, "U"), *v = x_in(x, "V");
  int64_t iters = op_int(x->op, "power_iters");
  double eps = op_float(x->op, "eps");
  int axis, perm[KL_RANK], n = 0;
  if (!ops_rank(w, "Weight", 2, KL_RANK) || !u || !v ||
      !ops_axis("dim", op_int(x->op, "dim"), w->rank, &axis))
    return NULL;
  if (iters < 0 || iters > 1000) {
    err_set(E_OPR_003, "power_iters is %lld", (long long)iters);
    return NULL;
  }
  if (!ops_known(w)) return ops_blank_like(g, w);
  perm[n++] = axis;
  for (int d = 0; d < w->rank; d++)
    if (d != axis) perm[n++] = d;
  int64_t rows = w->dims[axis], cols = 1;
  for (int d = 0; d < w->rank; d++) cols *= d == axis ? 1 : w->dims[d];
  Node *m = g_reshape(g, g_permute(g, w, perm), 2, (int64_t[]){rows, cols});
  Node *fixed = g_reshape(g, g_permute(g, by, perm), 2, (int64_t[]){rows, cols});
  u = g_reshape(g, u, 2, (int64_t[]){rows, 1});
  v = g_reshape(g, v, 2, (int64_t[]){cols, 1});
  for (int64_t i = 0; i < iters; i++) {
    v = unit_vector(g, g_matmul(g, fixed, u, true, false), eps);
    u = unit_vector(g, g_matmul(g, fixed, v, false, false), eps);
  }
  Node *sigma = g_reshape(g, g_matmul(g, u, g_matmul(g, m, v, false, false), true, false), 0, NULL);
  return ops_div(g, w, sigma);
}

bool x_spectral_norm(Expand *x) {
  return x_out(x, "Out", spectral(x, x_in(x, "Weight"), x_in(x, "Weight")));
}

/* The vectors count as constants. */
bool x_spectral_norm_grad(Expand *x) {
  Node *w = x_in(x, "Weight"), *own = w ? g_alias(x->g, w) : NULL, *gy = x_in(x, "Out@GRAD"), *gx;
  Node *y = own ? spectral(x, own, w) : NULL;
  return y && gy && derive(x->g, 1, &y, &gy, 1, &own, &gx) && x_out(x, "Weight@GRAD", gx);
}
