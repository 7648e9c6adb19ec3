/* Normalisations: batch_norm, layer_norm, group_norm, instance_norm, lrn, affine_channel. The first four are one computation
 * over different axes:
 *   mean = sum(x)/n    var = sum((x - mean)^2)/n    inv = 1/sqrt(var + eps)    y = (x - mean)*inv*scale + bias
 * and, with gs = gy*scale, one gradient:
 *   dx = inv * (gs - sum(gs)/n - (x - mean)*inv^2 * sum(gs*(x - mean))/n)
 * Statistics are kept with the reduced axes at size 1. float16 and bfloat16 are computed in float32. */
#include "ops.h"

#include <math.h>
#include <string.h>

typedef struct Norm {
  Node *x;       /* floating, at least float32 */
  uint32_t axes; /* over which the statistics are taken */
  double n;      /* elements in each */
  Node *mean, *var, *inv;
} Norm;

static DType compute_type(DType t) { return t == DT_FLOAT16 || t == DT_BFLOAT16 ? DT_FLOAT32 : t; }

static Node *computed(Expand *x, const char *slot) {
  if (x_n_in(x, slot) == 0) return NULL;
  Node *n = x_in(x, slot);
  return n ? g_cast(x->g, n, compute_type(n->dtype)) : NULL;
}

static Node *inverse_root(Graph *g, Node *var, double eps) {
  Node *root = g_map1(g, P_SQRT, g_map2c(g, P_ADD, var, eps));
  return root ? g_map2(g, P_DIV, g_const(g, root->dtype, 1), root) : NULL;
}

static bool norm_init(Expand *x, Norm *n, const char *slot, uint32_t axes) {
  memset(n, 0, sizeof *n);
  n->x = computed(x, slot);
  n->axes = axes;
  n->n = 1;
  if (!n->x) return false;
  for (int i = 0; i < n->x->rank; i++)
    if (axes >> i & 1) n->n *= (double)n->x->dims[i];
  if (n->n < 1) n->n = 1;
  return true;
}

static bool norm_statistics(Graph *g, Norm *n, double eps) {
  n->mean = g_map2c(g, P_MUL, g_reduce(g, P_RSUM, n->x, n->axes, true), 1 / n->n);
  Node *d = g_map2(g, P_SUB, n->x, n->mean);
  n->var = g_map2c(g, P_MUL, g_reduce(g, P_RSUM, g_map2(g, P_MUL, d, d), n->axes, true), 1 / n->n);
  n->inv = inverse_root(g, n->var, eps);
  return n->inv != NULL;
}

/* (x - mean) * (inv * scale) + bias; scale and bias may be NULL. */
static Node *norm_apply(Graph *g, const Norm *n, Node *scale, Node *bias) {
  Node *factor = scale ? g_map2(g, P_MUL, n->inv, scale) : n->inv;
  Node *y = g_map2(g, P_MUL, g_map2(g, P_SUB, n->x, n->mean), factor);
  return bias ? g_map2(g, P_ADD, y, bias) : y;
}

static Node *norm_dx(Graph *g, const Norm *n, Node *gs) {
  Node *d = g_map2(g, P_SUB, n->x, n->mean);
  Node *sum = g_reduce(g, P_RSUM, gs, n->axes, true);
  Node *dot = g_reduce(g, P_RSUM, g_map2(g, P_MUL, gs, d), n->axes, true);
  Node *slope =
      g_map2(g, P_MUL, g_map2(g, P_MUL, n->inv, n->inv), g_map2c(g, P_MUL, dot, 1 / n->n));
  Node *rest = g_map2(g, P_SUB, gs, g_map2c(g, P_MUL, sum, 1 / n->n));
  return g_map2(g, P_MUL, n->inv, g_map2(g, P_SUB, rest, g_map2(g, P_MUL, d, slope)));
}

/* A gradient of Scale or Bias as a vector of len, in that input's element type. */
static bool norm_param(Expand *x, const char *slot, Node *sum, int64_t len) {
  const char *out = arena_fmt(x->g->arena, "%s@GRAD", slot);
  Node *of = x_in(x, slot);
  if (!sum || err_any()) return false;
  return x_out(x, out, g_cast(x->g, ops_reshape(x->g, sum, 1, &len), of ? of->dtype : sum->dtype));
}

/* dscale = sum(gy * xhat), dbias = sum(gy) over the axes that scale and bias, vectors of len, lack. */
static bool norm_params(Expand *x, const Norm *n, Node *gy, uint32_t axes, int64_t len) {
  Graph *g = x->g;
  if (x_wants(x, "Scale@GRAD")) {
    Node *xhat = g_map2(g, P_MUL, g_map2(g, P_SUB, n->x, n->mean), n->inv);
    Node *sum = g_reduce(g, P_RSUM, g_map2(g, P_MUL, gy, xhat), axes, false);
    if (!norm_param(x, "Scale", sum, len)) return false;
  }
  return !x_wants(x, "Bias@GRAD") ||
         norm_param(x, "Bias", g_reduce(g, P_RSUM, gy, axes, false), len);
}

/* An optional vector of one value per channel (or per normalised element), along the axis of a shape of that rank. */
static bool norm_vector(Expand *x, const char *slot, int rank, int axis, int64_t len, Node **out) {
  *out = NULL;
  if (x_n_in(x, slot) == 0) return true;
  Node *v = computed(x, slot);
  if (!v) return false;
  int64_t n = ops_prod(v->dims, 0, v->rank);
  if (n >= 0 && len >= 0 && n != len) {
    err_set(E_SHP_006, "%s has %lld elements, %lld needed", slot, (long long)n, (long long)len);
    err_help("%s needs one element for each that is scaled separately.", slot);
    return false;
  }
  *out = ops_along(x->g, v, rank, axis);
  return *out != NULL;
}

static bool positive_eps(Expand *x, double *eps) {
  *eps = op_float(x->op, "epsilon");
  if (*eps >= 0 && *eps <= 1) return true;
  err_set(E_OPR_003, "epsilon is %g", *eps);
  err_help("epsilon is a small number from 0 to 1.");
  return false;
}

/* ---- batch_norm ---- */

typedef struct Batch {
  int channel; /* its axis */
  int64_t channels;
  bool global; /* normalise by the running statistics */
  double eps;
  Norm norm;
  Node *scale, *bias;
} Batch;

static bool batch_read(Expand *x, Batch *b) {
  Node *in = x_in(x, "X");
  bool last;
  if (!ops_rank(in, "X", 2, 5) || !ops_float(in, "X") || !ops_layout(x, "data_layout", &last) ||
      !positive_eps(x, &b->eps))
    return false;
  b->channel = last || in->rank == 2 ? in->rank - 1 : 1;
  b->channels = in->dims[b->channel];
  b->global = op_bool(x->op, "use_global_stats") ||
              (op_bool(x->op, "is_test") && !op_bool(x->op, "trainable_statistics"));
  uint32_t axes = ((1u << in->rank) - 1) & ~(1u << b->channel);
  return norm_init(x, &b->norm, "X", axes) &&
         norm_vector(x, "Scale", in->rank, b->channel, b->channels, &b->scale) &&
         norm_vector(x, "Bias", in->rank, b->channel, b->channels, &b->bias);
}

static Node *as_vector(Graph *g, Node *n, int64_t len) { return ops_reshape(g, n, 1, &len); }

/* running * momentum + batch * (1 - momentum) */
static Node *running(Graph *g, Node *old, Node *batch, Node *momentum) {
  Node *rest =
      g_map2(g, P_SUB, g_full(g, momentum->dtype, 1, momentum->rank, momentum->dims), momentum);
  return g_map2(g, P_ADD, g_map2(g, P_MUL, old, momentum), g_map2(g, P_MUL, batch, rest));
}

static bool batch_momentum(Expand *x, DType t, Node **m) {
  if (!opdef_in(x->op->def, "MomentumTensor") || x_n_in(x, "MomentumTensor") == 0) {
    *m = g_const(x->g, t, op_float(x->op, "momentum"));
    return *m != NULL;
  }
  *m = g_cast(x->g, x_in(x, "MomentumTensor"), t);
  if (*m && !ops_same("1 and elements of MomentumTensor", 1, ops_prod((*m)->dims, 0, (*m)->rank)))
    return false;
  *m = ops_reshape(x->g, *m, 0, NULL);
  return *m != NULL;
}

static bool batch_outputs(Expand *x, Batch *b, Node *y, Node *mean, Node *var, Node *saved_mean,
                          Node *saved_inv) {
  Graph *g = x->g;
  DType t = x_in(x, "X")->dtype;
  int64_t none = 0;
  if (x_wants(x, "ReserveSpace") && !x_out(x, "ReserveSpace", g_full(g, t, 0, 1, &none)))
    return false;
  return x_out(x, "Y", g_cast(g, y, t)) && x_out(x, "MeanOut", mean) &&
         x_out(x, "VarianceOut", var) &&
         x_out(x, "SavedMean", as_vector(g, saved_mean, b->channels)) &&
         x_out(x, "SavedVariance", as_vector(g, saved_inv, b->channels));
}

bool x_batch_norm(Expand *x) {
  Graph *g = x->g;
  Batch b;
  Node *mean, *var, *momentum;
  if (!batch_read(x, &b)) return false;
  Node *in = b.norm.x, *old_mean = x_in(x, "Mean"), *old_var = x_in(x, "Variance");
  if (!norm_vector(x, "Mean", in->rank, b.channel, b.channels, &mean) ||
      !norm_vector(x, "Variance", in->rank, b.channel, b.channels, &var) || !mean || !var)
    return false;
  if (b.global) {
    b.norm.mean = mean;
    b.norm.inv = inverse_root(g, var, b.eps);
    return b.norm.inv && batch_outputs(x, &b, norm_apply(g, &b.norm, b.scale, b.bias), old_mean,
                                       old_var, mean, b.norm.inv);
  }
  if (ops_known(in) && b.norm.n == 1 && node_numel(in) > 0)
    return batch_outputs(x, &b, in, old_mean, old_var, mean, inverse_root(g, var, b.eps));
  if (!batch_momentum(x, mean->dtype, &momentum) || !norm_statistics(g, &b.norm, b.eps))
    return false;
  Node *new_mean = running(g, mean, b.norm.mean, momentum);
  Node *new_var = running(g, var, b.norm.var, momentum);
  return batch_outputs(x, &b, norm_apply(g, &b.norm, b.scale, b.bias),
                       as_vector(g, new_mean, b.channels), as_vector(g, new_var, b.channels),
                       b.norm.mean, b.norm.inv);
}

/* Where one element makes each statistic, training copied X to Y. */
static bool batch_grad_single(Expand *x, const Batch *b, Node *gy) {
  Graph *g = x->g;
  Node *zero = g_full(g, b->norm.x->dtype, 0, 1, &b->channels);
  return x_out(x, "X@GRAD", gy) && (!x_wants(x, "Scale@GRAD") || x_out(x, "Scale@GRAD", zero)) &&
         (!x_wants(x, "Bias@GRAD") || x_out(x, "Bias@GRAD", zero));
}

/* scale is constant over the normalised axes, so two sums serve all three gradients. */
static bool batch_grads(Expand *x, const Batch *b, Node *gy) {
  Graph *g = x->g;
  const Norm *n = &b->norm;
  Node *d = g_map2(g, P_SUB, n->x, n->mean);
  Node *sum = g_reduce(g, P_RSUM, gy, n->axes, true);
  Node *dot = g_reduce(g, P_RSUM, g_map2(g, P_MUL, gy, d), n->axes, true);
  if (x_wants(x, "X@GRAD")) {
    Node *dx = gy, *slope = g_map2(g, P_MUL, g_map2(g, P_MUL, n->inv, n->inv), dot);
    if (!b->global) {
      dx = g_map2(g, P_SUB, gy, g_map2c(g, P_MUL, sum, 1 / n->n));
      dx = g_map2(g, P_SUB, dx, g_map2(g, P_MUL, d, g_map2c(g, P_MUL, slope, 1 / n->n)));
    }
    dx = g_map2(g, P_MUL, dx, b->scale ? g_map2(g, P_MUL, n->inv, b->scale) : n->inv);
    if (!dx || !x_out(x, "X@GRAD", g_cast(g, dx, x_in(x, "X")->dtype))) return false;
  }
  if (x_wants(x, "Scale@GRAD") &&
      !norm_param(x, "Scale", g_map2(g, P_MUL, dot, n->inv), b->channels))
    return false;
  return !x_wants(x, "Bias@GRAD") || norm_param(x, "Bias", sum, b->channels);
}

bool x_batch_norm_grad(Expand *x) {
  Graph *g = x->g;
  Batch b;
  Node *given = x_in(x, "Y@GRAD"), *gy = computed(x, "Y@GRAD");
  if (!gy || !batch_read(x, &b)) return false;
  int rank = b.norm.x->rank;
  if (!b.global && ops_known(b.norm.x) && b.norm.n == 1 && node_numel(b.norm.x) > 0)
    return batch_grad_single(x, &b, given);
  if (b.global && x_n_in(x, "MeanOut") > 0) {
    Node *var;
    if (!norm_vector(x, "MeanOut", rank, b.channel, b.channels, &b.norm.mean) ||
        !norm_vector(x, "VarianceOut", rank, b.channel, b.channels, &var))
      return false;
    b.norm.inv = inverse_root(g, var, b.eps);
  } else if (!norm_vector(x, "SavedMean", rank, b.channel, b.channels, &b.norm.mean) ||
             !norm_vector(x, "SavedVariance", rank, b.channel, b.channels, &b.norm.inv)) {
    return false;
  }
  if (!b.norm.mean || !b.norm.inv) return false;
  return batch_grads(x, &b, gy);
}

/* ---- layer_norm ---- */

/* Scale or Bias over the dims from `begin` on, as a tensor that broadcasts against x. */
static bool layer_param(Expand *x, const char *slot, const Node *in, int begin, Node **out) {
  int64_t dims[KL_RANK];
  if (!norm_vector(x, slot, in->rank, begin, ops_prod(in->dims, begin, in->rank), out))
    return false;
  for (int i = 0; i < in->rank; i++) dims[i] = i < begin ? 1 : in->dims[i];
  if (*out) *out = ops_reshape(x->g, *out, in->rank, dims);
  return true;
}

static bool layer_read(Expand *x, Norm *n, int *begin, double *eps, Node **scale, Node **bias) {
  Node *in = x_in(x, "X");
  if (!ops_rank(in, "X", 1, KL_RANK) || !ops_float(in, "X") || !positive_eps(x, eps)) return false;
  int64_t axis = op_int(x->op, "begin_norm_axis");
  if (axis < 1 || axis >= in->rank) {
    err_set(E_SHP_003, "begin_norm_axis %lld is outside 1..%d", (long long)axis, in->rank - 1);
    err_note("X is %s", shape_text(in->dtype, in->rank, in->dims));
    return false;
  }
  *begin = (int)axis;
  uint32_t all = (1u << in->rank) - 1;
  return norm_init(x, n, "X", all & ~((1u << axis) - 1)) &&
         layer_param(x, "Scale", n->x, *begin, scale) && layer_param(x, "Bias", n->x, *begin, bias);
}

Node *ops_normed(Graph *g, Node *v, Node *scale, Node *bias, double eps) {
  if (!v) return NULL;
  uint32_t last = 1u << (v->rank - 1);
  double n = (double)v->dims[v->rank - 1];
  Node *d = ops_sub(g, v, ops_times(g, g_reduce(g, P_RSUM, v, last, true), 1 / n));
  Node *var = ops_times(g, g_reduce(g, P_RSUM, ops_mul(g, d, d), last, true), 1 / n);
  Node *y = ops_div(g, d, g_map1(g, P_SQRT, ops_plus(g, var, eps)));
  if (scale) y = ops_mul(g, y, scale);
  return bias ? ops_add(g, y, bias) : y;
}

bool x_layer_norm(Expand *x) {
  Graph *g = x->g;
  Norm n;
  int begin;
  double eps;
  Node *scale, *bias;
  if (!layer_read(x, &n, &begin, &eps, &scale, &bias) || !norm_statistics(g, &n, eps)) return false;
  return x_out(x, "Y", g_cast(g, norm_apply(g, &n, scale, bias), x_in(x, "X")->dtype)) &&
         x_out(x, "Mean", ops_reshape(g, n.mean, begin, n.x->dims)) &&
         x_out(x, "Variance", ops_reshape(g, n.var, begin, n.x->dims));
}

/* The saved statistics, as a vector or with the leading dims of x, with the dims of x before `begin`, then ones. */
static Node *saved(Expand *x, const char *slot, const Node *in, int begin) {
  Node *v = computed(x, slot);
  int64_t dims[KL_RANK];
  for (int i = 0; i < in->rank; i++) dims[i] = i < begin ? in->dims[i] : 1;
  return v ? ops_reshape(x->g, v, in->rank, dims) : NULL;
}

bool x_layer_norm_grad(Expand *x) {
  Graph *g = x->g;
  Norm n;
  int begin;
  double eps;
  Node *scale, *bias, *gy = computed(x, "Y@GRAD");
  if (!gy || !layer_read(x, &n, &begin, &eps, &scale, &bias)) return false;
  n.mean = saved(x, "Mean", n.x, begin);
  n.inv = inverse_root(g, saved(x, "Variance", n.x, begin), eps);
  if (!n.mean || !n.inv) return false;
  if (x_wants(x, "X@GRAD")) {
    Node *dx = norm_dx(g, &n, scale ? g_map2(g, P_MUL, gy, scale) : gy);
    if (!dx || !x_out(x, "X@GRAD", g_cast(g, dx, x_in(x, "X")->dtype))) return false;
  }
  int64_t len = ops_prod(n.x->dims, begin, n.x->rank);
  return norm_params(x, &n, gy, (1u << begin) - 1, len);
}

/* ---- group_norm and instance_norm: x as [N, G, C/G, *] ---- */

typedef struct Group {
  Norm norm;
  double eps;
  int64_t groups, dims[KL_RANK]; /* dims: of x, channels first */
  int rank;                      /* of x */
  bool last;
  Node *scale, *bias; /* [1, G, C/G, 1..] */
} Group;

static Node *grouped(Graph *g, const Group *p, Node *n) {
  if (!n) return NULL;
  if (p->last) n = ops_channels_first(g, n);
  int64_t dims[KL_RANK] = {p->dims[0], p->groups, -1};
  if (p->dims[1] >= 0 && p->groups > 0) dims[2] = p->dims[1] / p->groups;
  for (int i = 2; i < p->rank; i++) dims[i + 1] = p->dims[i];
  return ops_reshape(g, n, p->rank + 1, dims);
}

static Node *ungrouped(Expand *x, const Group *p, Node *n) {
  n = ops_reshape(x->g, n, p->rank, p->dims);
  if (p->last) n = ops_channels_last(x->g, n);
  return n ? g_cast(x->g, n, x_in(x, "X")->dtype) : NULL;
}

static bool group_param(Expand *x, const char *slot, const Group *p, Node **out) {
  int64_t dims[KL_RANK];
  if (!norm_vector(x, slot, 1, 0, p->dims[1], out)) return false;
  for (int i = 0; i <= p->rank; i++) dims[i] = 1;
  dims[1] = p->groups;
  dims[2] = p->norm.x->dims[2];
  if (*out) *out = ops_reshape(x->g, *out, p->rank + 1, dims);
  return true;
}

static bool group_read(Expand *x, Group *p, bool instance) {
  Node *in = x_in(x, "X");
  memset(p, 0, sizeof *p);
  if (!ops_rank(in, "X", 2, KL_VAR_RANK) || !ops_float(in, "X") || !positive_eps(x, &p->eps) ||
      (!instance && !ops_layout(x, "data_layout", &p->last)))
    return false;
  p->rank = in->rank;
  p->dims[0] = in->dims[0];
  p->dims[1] = in->dims[p->last ? in->rank - 1 : 1];
  for (int i = 2; i < in->rank; i++) p->dims[i] = in->dims[p->last ? i - 1 : i];
  p->groups = instance ? p->dims[1] : op_int(x->op, "groups");
  if (!instance && (p->groups < 1 || (p->dims[1] >= 0 && p->dims[1] % p->groups != 0))) {
    err_set(E_OPR_003, "groups is %lld for %lld channels", (long long)p->groups,
            (long long)p->dims[1]);
    err_help("The channels must divide into the groups.");
    return false;
  }
  if (!norm_init(x, &p->norm, "X", 0)) return false;
  p->norm.x = grouped(x->g, p, p->norm.x);
  p->norm.axes = ((1u << (p->rank + 1)) - 1) & ~3u;
  if (!p->norm.x) return false;
  double n = (double)ops_prod(p->norm.x->dims, 2, p->rank + 1);
  p->norm.n = n < 1 ? 1 : n;
  return group_param(x, "Scale", p, &p->scale) && group_param(x, "Bias", p, &p->bias);
}

static bool group_forward(Expand *x, Group *p, const char *mean, const char *var, bool instance) {
  Graph *g = x->g;
  if (!norm_statistics(g, &p->norm, p->eps)) return false;
  int64_t flat[2] = {p->dims[0], p->groups};
  if (instance) flat[0] = ops_prod(flat, 0, 2);
  int rank = instance ? 1 : 2;
  Node *second = instance ? p->norm.inv : p->norm.var;
  return x_out(x, "Y", ungrouped(x, p, norm_apply(g, &p->norm, p->scale, p->bias))) &&
         x_out(x, mean, ops_reshape(g, p->norm.mean, rank, flat)) &&
         x_out(x, var, ops_reshape(g, second, rank, flat));
}

static bool group_backward(Expand *x, Group *p, const char *mean, const char *var, bool instance) {
  Graph *g = x->g;
  Node *gy = grouped(g, p, computed(x, "Y@GRAD"));
  p->norm.mean = saved(x, mean, p->norm.x, 2);
  Node *v = saved(x, var, p->norm.x, 2);
  p->norm.inv = instance ? v : inverse_root(g, v, p->eps);
  if (!gy || !p->norm.mean || !p->norm.inv) return false;
  if (x_wants(x, "X@GRAD")) {
    Node *dx = norm_dx(g, &p->norm, p->scale ? g_map2(g, P_MUL, gy, p->scale) : gy);
    if (!x_out(x, "X@GRAD", ungrouped(x, p, dx))) return false;
  }
  return norm_params(x, &p->norm, gy, (p->norm.axes | 1u) & ~4u, p->dims[1]);
}

bool x_group_norm(Expand *x) {
  Group p;
  return group_read(x, &p, false) && group_forward(x, &p, "Mean", "Variance", false);
}

bool x_group_norm_grad(Expand *x) {
  Group p;
  return group_read(x, &p, false) && group_backward(x, &p, "Mean", "Variance", false);
}

bool x_instance_norm(Expand *x) {
  Group p;
  return group_read(x, &p, true) && group_forward(x, &p, "SavedMean", "SavedVariance", true);
}

bool x_instance_norm_grad(Expand *x) {
  Group p;
  return group_read(x, &p, true) && group_backward(x, &p, "SavedMean", "SavedVariance", true);
}

/* ---- lrn and affine_channel ---- */

/* mid = k + alpha * (sum of x^2 over n neighbouring channels); y = x * mid^-beta */
bool x_lrn(Expand *x) {
  Graph *g = x->g;
  Node *in = x_in(x, "X");
  bool last;
  int64_t n = op_int(x->op, "n"), one = 1;
  if (!ops_rank(in, "X", 4, 4) || !ops_float(in, "X") || !ops_layout(x, "data_format", &last))
    return false;
  if (n < 1 || n > INT32_MAX || n % 2 == 0)
    return err_set(E_OPR_003, "n is %lld, an odd number is needed", (long long)n);
  if (!ops_known(in))
    return x_out(x, "Out", ops_blank_like(g, in)) && x_out(x, "MidOut", ops_blank_like(g, in));
  if (last) in = ops_channels_first(g, in);
  int64_t lo = (n - 1) / 2, hi = n - 1 - lo;
  Node *w = g_window(g, g_map2(g, P_MUL, in, in), 1, 1, &n, &one, &one, &lo, &hi, 0);
  Node *sum = g_reduce(g, P_RSUM, w, 1u << 4, false);
  Node *mid =
      g_map2c(g, P_ADD, g_map2c(g, P_MUL, sum, op_float(x->op, "alpha")), op_float(x->op, "k"));
  Node *y = g_map2(g, P_MUL, in, g_map2c(g, P_POW, mid, -op_float(x->op, "beta")));
  if (last) y = ops_channels_last(g, y), mid = ops_channels_last(g, mid);
  return x_out(x, "Out", y) && x_out(x, "MidOut", mid);
}

static bool affine_read(Expand *x, Batch *b) {
  Node *in = x_in(x, "X");
  bool last;
  if (!ops_rank(in, "X", 2, 4) || !ops_float(in, "X") || !ops_layout(x, "data_layout", &last))
    return false;
  b->channel = last || in->rank == 2 ? in->rank - 1 : 1;
  b->channels = in->dims[b->channel];
  b->norm.x = in;
  b->norm.axes = ((1u << in->rank) - 1) & ~(1u << b->channel);
  return norm_vector(x, "Scale", in->rank, b->channel, b->channels, &b->scale);
}

bool x_affine_channel(Expand *x) {
  Batch b;
  if (!affine_read(x, &b) ||
      !norm_vector(x, "Bias", b.norm.x->rank, b.channel, b.channels, &b.bias))
    return false;
  return x_out(x, "Out", g_map2(x->g, P_ADD, g_map2(x->g, P_MUL, b.norm.x, b.scale), b.bias));
}

bool x_affine_channel_grad(Expand *x) {
  Graph *g = x->g;
  Batch b;
  Node *gy = x_in(x, "Out@GRAD");
  if (!gy || !affine_read(x, &b)) return false;
  Node *dot = g_map2(g, P_MUL, gy, b.norm.x);
  return (!x_wants(x, "X@GRAD") || x_out(x, "X@GRAD", g_map2(g, P_MUL, gy, b.scale))) &&
         (!x_wants(x, "Scale@GRAD") ||
          x_out(x, "Scale@GRAD", g_reduce(g, P_RSUM, dot, b.norm.axes, false))) &&
         (!x_wants(x, "Bias@GRAD") ||
          x_out(x, "Bias@GRAD", g_reduce(g, P_RSUM, gy, b.norm.axes, false)));
}
