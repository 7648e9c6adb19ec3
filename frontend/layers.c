/* Layers: parameters plus the operators that use them.
 *
 * In: an input variable and the layer's arguments (zero = default). Out: the layer's output variable. Parameter names
 * follow PaddlePaddle: fc_0.w_0, fc_0.b_0, conv2d_0.w_0, batch_norm_0.w_1 (mean), batch_norm_0.w_2 (variance). */
#include "internal.h"
#include <string.h>

/* A parameter named LAYER.SUFFIX unless the user named it. */
static kl_var *layer_param(kl_net *net, const char *layer, const char *suffix, kl_dtype t, int rank,
                           const int64_t *dims, kl_param p, bool is_bias) {
  if (!p.name) p.name = arena_fmt(net->main->arena, "%s.%s", layer, suffix);
  return kl_parameter(net, p.name, t, rank, dims, p, is_bias);
}

static bool need_rank(const kl_var *x, int rank, const char *layer, const char *at) {
  if (x->rank >= rank) return true;
  err_set(E_SHP_002, "%s needs an input of at least %d dimensions, %s is %s", layer, rank,
          quoted(x->name), shape_text(x->dtype, x->rank, x->dims));
  return at_where(at), false;
}

static bool need_known(int64_t d, const kl_var *x, const char *layer, const char *at) {
  if (d > 0) return true;
  err_set(E_SHP_005, "%s needs a known, positive number of features; %s is %s", layer,
          quoted(x->name), shape_text(x->dtype, x->rank, x->dims));
  err_help(
      "only the batch dimension, or dimensions the layer does not size its weights by, may be -1");
  return at_where(at), false;
}

static bool need_positive(int64_t v, const char *what, const char *at) {
  if (v > 0) return true;
  err_set(E_ARG_002, "%s is %lld; it must be positive", what, (long long)v);
  return at_where(at), false;
}

static kl_var *add_bias(const char *at, kl_net *net, kl_var *y, kl_var *b, int axis) {
  if (!y || !b) return NULL;
  return kl_op_at(at, net, "elementwise_add", arena_fmt(net->main->arena, "axis=%d", axis), "X", y,
                  "Y", b, (const char *)0);
}

kl_var *kl_fc_at(kl_fc_args a) {
  BUILD_GUARD(var_net(a.x), false, NULL);
  kl_net *net = net_of(a.at_, a.x);
  int flat = a.flatten ? a.flatten : 1;
  if (!net || !need_positive(a.size, "fc: size", a.at_) || !need_rank(a.x, flat + 1, "fc", a.at_))
    return NULL;
  int64_t in = 1;
  for (int i = flat; i < a.x->rank; i++)
    if (!need_known(a.x->dims[i], a.x, "fc", a.at_) || !mul_ok(in, a.x->dims[i], &in)) return NULL;
  const char *layer = begin_layer(net, "fc", a.at_);
  kl_dtype t = (kl_dtype)a.x->dtype;
  kl_var *w = layer_param(net, layer, "w_0", t, 2, (int64_t[]){in, a.size}, a.weight, false);
  if (!w) return end_layer(net, a.at_, NULL, NULL);
  const char *attrs = arena_fmt(net->main->arena, "x_num_col_dims=%d y_num_col_dims=1", flat);
  kl_var *y = kl_op_at(a.at_, net, "mul", attrs, "X", a.x, "Y", w, (const char *)0);
  if (!a.no_bias && y)
    y = add_bias(a.at_, net, y,
                 layer_param(net, layer, "b_0", t, 1, (int64_t[]){a.size}, a.bias, true), flat);
  return end_layer(net, a.at_, y, a.act);
}

static int64_t or_else(int64_t v, int64_t dflt) { return v ? v : dflt; }

kl_var *kl_conv2d_at(kl_conv2d_args a) {
  BUILD_GUARD(var_net(a.x), false, NULL);
  kl_net *net = net_of(a.at_, a.x);
  if (!net || !need_rank(a.x, 4, "conv2d", a.at_) ||
      !need_positive(a.filters, "conv2d: filters", a.at_) ||
      !need_positive(a.kernel, "conv2d: kernel", a.at_))
    return NULL;
  int64_t channels = a.x->dims[a.nhwc ? 3 : 1], groups = or_else(a.groups, 1);
  if (!need_known(channels, a.x, "conv2d", a.at_)) return NULL;
  if (groups < 1 || channels % groups || a.filters % groups) {
    err_set(E_SHP_006, "conv2d: %lld groups do not divide %lld channels and %lld filters",
            (long long)groups, (long long)channels, (long long)a.filters);
    at_where(a.at_);
    return NULL;
  }
  const char *layer = begin_layer(net, "conv2d", a.at_);
  int64_t kw = or_else(a.kernel_w, a.kernel);
  int64_t dims[4] = {a.filters, channels / groups, a.kernel, kw};
  kl_dtype t = (kl_dtype)a.x->dtype;
  kl_var *w = layer_param(net, layer, "w_0", t, 4, dims, a.weight, false);
  Op *op = w ? begin_op(a.at_, net, "conv2d") : NULL;
  if (!op) return end_layer(net, a.at_, NULL, NULL);
  op_add_in(op, "Input", a.x->name);
  op_add_in(op, "Filter", w->name);
  int64_t stride = or_else(a.stride, 1), dil = or_else(a.dilation, 1);
  op_set_ints(op, "strides", 2, (int64_t[]){stride, or_else(a.stride_w, stride)});
  op_set_ints(op, "paddings", 2, (int64_t[]){a.pad, or_else(a.pad_w, a.pad)});
  op_set_ints(op, "dilations", 2, (int64_t[]){dil, or_else(a.dilation_w, dil)});
  op_set_int(op, "groups", groups);
  op_set_str(op, "padding_algorithm", a.padding ? a.padding : "EXPLICIT");
  op_set_str(op, "data_format", a.nhwc ? "NHWC" : "NCHW");
  kl_var *y = end_op(op);
  if (!a.no_bias && y)
    y = add_bias(a.at_, net, y,
                 layer_param(net, layer, "b_0", t, 1, (int64_t[]){a.filters}, a.bias, true),
                 a.nhwc ? 3 : 1);
  return end_layer(net, a.at_, y, a.act);
}

kl_var *kl_pool2d_at(kl_pool2d_args a) {
  BUILD_GUARD(var_net(a.x), false, NULL);
  kl_net *net = net_of(a.at_, a.x);
  Op *op = net ? begin_op(a.at_, net, "pool2d") : NULL;
  if (!op) return NULL;
  int64_t stride = or_else(a.stride, a.adaptive ? 1 : or_else(a.kernel, 1));
  int64_t stride_w = or_else(a.stride_w, a.stride ? stride : or_else(a.kernel_w, stride));
  op_add_in(op, "X", a.x->name);
  op_set_str(op, "pooling_type", a.type ? a.type : "max");
  op_set_ints(op, "ksize", 2,
              (int64_t[]){or_else(a.kernel, 1), or_else(a.kernel_w, or_else(a.kernel, 1))});
  op_set_ints(op, "strides", 2, (int64_t[]){stride, stride_w});
  op_set_ints(op, "paddings", 2, (int64_t[]){a.pad, or_else(a.pad_w, a.pad)});
  op_set_bool(op, "global_pooling", a.global);
  op_set_bool(op, "adaptive", a.adaptive);
  op_set_bool(op, "ceil_mode", a.ceil_mode);
  op_set_bool(op, "exclusive", !a.inclusive);
  kl_var *y = end_op(op);
  if (!y) at_where(a.at_);
  return y;
}

/* A running statistic: persistable, updated by the operator itself. */
static kl_var *statistic(kl_net *net, const char *layer, const char *suffix, const char *name,
                         kl_dtype t, int64_t n, double value) {
  kl_param p = {.name = name, .init = kl_constant(value), .frozen = true};
  kl_var *v = layer_param(net, layer, suffix, t, 1, &n, p, true);
  if (v) v->is_parameter = false;
  return v;
}

kl_var *kl_batch_norm_at(kl_batch_norm_args a) {
  BUILD_GUARD(var_net(a.x), false, NULL);
  kl_net *net = net_of(a.at_, a.x);
  if (!net || !need_rank(a.x, 2, "batch_norm", a.at_)) return NULL;
  int64_t c = a.x->dims[a.nhwc ? a.x->rank - 1 : 1];
  if (!need_known(c, a.x, "batch_norm", a.at_)) return NULL;
  const char *layer = begin_layer(net, "batch_norm", a.at_);
  kl_dtype t = (kl_dtype)a.x->dtype;
  if (!a.weight.init.kind) a.weight.init = kl_constant(1);
  kl_var *w = layer_param(net, layer, "w_0", t, 1, &c, a.weight, false);
  kl_var *b = layer_param(net, layer, "b_0", t, 1, &c, a.bias, true);
  kl_var *mean = statistic(net, layer, "w_1", a.mean_name, t, c, 0);
  kl_var *var = statistic(net, layer, "w_2", a.variance_name, t, c, 1);
  Op *op = w && b && mean && var ? begin_op(a.at_, net, "batch_norm") : NULL;
  if (!op) return end_layer(net, a.at_, NULL, NULL);
  op_add_in(op, "X", a.x->name);
  op_add_in(op, "Scale", w->name);
  op_add_in(op, "Bias", b->name);
  op_add_in(op, "Mean", mean->name);
  op_add_in(op, "Variance", var->name);
  op_add_out(op, "MeanOut", mean->name);
  op_add_out(op, "VarianceOut", var->name);
  op_set_float(op, "momentum", a.momentum != 0 ? a.momentum : 0.9);
  op_set_float(op, "epsilon", a.epsilon != 0 ? a.epsilon : 1e-5);
  op_set_bool(op, "is_test", a.is_test);
  op_set_bool(op, "use_global_stats", a.use_global_stats);
  op_set_str(op, "data_layout", a.nhwc ? "NHWC" : "NCHW");
  return end_layer(net, a.at_, end_op(op), a.act);
}

kl_var *kl_layer_norm_at(kl_layer_norm_args a) {
  BUILD_GUARD(var_net(a.x), false, NULL);
  kl_net *net = net_of(a.at_, a.x);
  int axis = a.begin_axis ? a.begin_axis : 1;
  if (!net || !need_rank(a.x, axis + 1, "layer_norm", a.at_)) return NULL;
  int64_t n = 1;
  for (int i = axis; i < a.x->rank; i++)
    if (!need_known(a.x->dims[i], a.x, "layer_norm", a.at_) || !mul_ok(n, a.x->dims[i], &n))
      return NULL;
  const char *layer = begin_layer(net, "layer_norm", a.at_);
  kl_dtype t = (kl_dtype)a.x->dtype;
  if (!a.weight.init.kind) a.weight.init = kl_constant(1);
  kl_var *w = a.no_weight ? NULL : layer_param(net, layer, "w_0", t, 1, &n, a.weight, false);
  kl_var *b = a.no_bias ? NULL : layer_param(net, layer, "b_0", t, 1, &n, a.bias, true);
  Op *op = begin_op(a.at_, net, "layer_norm");
  if (!op) return end_layer(net, a.at_, NULL, NULL);
  op_add_in(op, "X", a.x->name);
  if (w) op_add_in(op, "Scale", w->name);
  if (b) op_add_in(op, "Bias", b->name);
  op_set_int(op, "begin_norm_axis", axis);
  op_set_float(op, "epsilon", a.epsilon != 0 ? a.epsilon : 1e-5);
  return end_layer(net, a.at_, end_op(op), NULL);
}

kl_var *kl_dropout_at(kl_dropout_args a) {
  BUILD_GUARD(var_net(a.x), false, NULL);
  kl_net *net = net_of(a.at_, a.x);
  Op *op = net ? begin_op(a.at_, net, "dropout") : NULL;
  if (!op) return NULL;
  op_add_in(op, "X", a.x->name);
  op_set_float(op, "dropout_prob", a.prob);
  op_set_str(op, "dropout_implementation", a.upscale ? "upscale_in_train" : "downgrade_in_infer");
  op_set_bool(op, "is_test", a.is_test);
  op_set_bool(op, "fix_seed", a.seed != 0);
  op_set_int(op, "seed", a.seed);
  kl_var *y = end_op(op);
  if (!y) at_where(a.at_);
  return y;
}

kl_var *kl_embedding_at(kl_embedding_args a) {
  BUILD_GUARD(var_net(a.ids), false, NULL);
  kl_net *net = net_of(a.at_, a.ids);
  if (!net || !need_positive(a.rows, "embedding: rows", a.at_) ||
      !need_positive(a.columns, "embedding: columns", a.at_))
    return NULL;
  const char *layer = begin_layer(net, "embedding", a.at_);
  kl_dtype t = a.dtype ? a.dtype : KL_FLOAT32;
  kl_var *w = layer_param(net, layer, "w_0", t, 2, (int64_t[]){a.rows, a.columns}, a.weight, false);
  Op *op = w ? begin_op(a.at_, net, "lookup_table_v2") : NULL;
  if (!op) return end_layer(net, a.at_, NULL, NULL);
  op_add_in(op, "W", w->name);
  op_add_in(op, "Ids", a.ids->name);
  op_set_int(op, "padding_idx", a.has_padding ? a.padding : -1);
  return end_layer(net, a.at_, end_op(op), NULL);
}

kl_var *kl_reshape_at(const char *at, kl_var *x, int rank, const int64_t *dims) {
  BUILD_GUARD(var_net(x), false, NULL);
  if (rank < 0 || (rank && !NEED(dims)))
    return err_set(E_SHP_002, "kl_reshape: a rank of %d", rank), at_where(at), NULL;
  Op *op = begin_op(at, net_of(at, x), "reshape2");
  if (!op) return NULL;
  op_add_in(op, "X", x->name);
  op_set_ints(op, "shape", rank, dims);
  kl_var *y = end_op(op);
  if (!y) at_where(at);
  return y;
}

kl_var *kl_concat_at(const char *at, int axis, int n, kl_var *const *x) {
  bool some = n > 0 && x;
  BUILD_GUARD(some ? var_net(x[0]) : NULL, false, NULL);
  Op *op = begin_op(at, net_of(at, some ? x[0] : NULL), "concat");
  for (int i = 0; op && i < n; i++) {
    if (!net_of_both(at, x[0], x[i])) return NULL;
    op_add_in(op, "X", x[i]->name);
  }
  if (op) op_set_int(op, "axis", axis);
  kl_var *y = end_op(op);
  if (!y && op) at_where(at);
  return y;
}
