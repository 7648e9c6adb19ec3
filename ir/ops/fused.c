/* Operators that programs hold after somebody else's fusion, mixed-precision bookkeeping, and copies that stand for
 * memory sharing or collectives of a single process. */
#include "ops.h"

#include <string.h>

bool x_copies(Expand *x) {
  for (int i = 0; i < x_n_out(x, "Out") && i < x_n_in(x, "X"); i++)
    if (!x_out_at(x, "Out", i, x_in_at(x, "X", i))) return false;
  return true;
}

bool x_share_buffer(Expand *x) {
  for (int i = 0; i < x_n_out(x, "XOut") && i < x_n_in(x, "X"); i++)
    if (!x_out_at(x, "XOut", i, x_in_at(x, "X", i))) return false;
  return x_copies(x);
}

/* ---- mixed precision ---- */

static Node *one(Expand *x, const char *slot) {
  Node *v = x_in(x, slot);
  return v ? g_reshape(x->g, v, 1, (int64_t[]){1}) : NULL;
}

bool x_check_finite_and_unscale(Expand *x) {
  Graph *g = x->g;
  Node *scale = one(x, "Scale"), *found = g_full_int(g, DT_BOOL, 0, 1, (int64_t[]){1});
  for (int i = 0; i < x_n_in(x, "X"); i++) {
    Node *v = x_in_at(x, "X", i);
    if (!ops_float(v, "X") || !scale) return false;
    Node *rest = ops_sub(g, v, v); /* 0, but NaN where v is infinite or NaN */
    Node *odd = g_map2c(g, P_EQ, rest, 0);
    odd = odd ? g_map2c(g, P_EQ, odd, 0) : NULL;
    Node *any = odd ? g_reduce(g, P_RMAX, odd, (1u << v->rank) - 1, false) : NULL;
    found = g_map2(g, P_MAX, found, g_reshape(g, any, 1, (int64_t[]){1}));
    Node *by = g_reshape(g, g_cast(g, scale, v->dtype), 0, NULL);
    Node *out = g_select(g, g_reshape(g, found, 0, NULL), g_const(g, v->dtype, 0),
                         ops_mul(g, v, ops_div(g, g_const(g, v->dtype, 1), by)));
    if (i < x_n_out(x, "Out") && !x_out_at(x, "Out", i, out)) return false;
  }
  return x_out(x, "FoundInfinite", found);
}

typedef struct Scaling {
  Node *scale, *good, *bad;
} Scaling;

/* After `good` steps in a row the scale grows, unless that would be infinite; after `bad` ones it shrinks, to 1 at least. */
static Scaling next_scaling(Expand *x, const Scaling *s, Node *found) {
  Graph *g = x->g;
  Scaling n = {0};
  if (!s->scale || !s->good || !s->bad || !found) return n;
  Node *zero = g_full_int(g, s->good->dtype, 0, 1, (int64_t[]){1});
  Node *good = ops_plus(g, s->good, 1), *bad = ops_plus(g, s->bad, 1);
  Node *grow = g_map2c(g, P_EQ, good, (double)op_int(x->op, "incr_every_n_steps"));
  Node *shrink = g_map2c(g, P_EQ, bad, (double)op_int(x->op, "decr_every_n_nan_or_inf"));
  Node *up = ops_times(g, s->scale, op_float(x->op, "incr_ratio"));
  Node *down = g_map2c(g, P_MAX, ops_times(g, s->scale, op_float(x->op, "decr_ratio")), 1);
  Node *finite = g_map2c(g, P_EQ, ops_sub(g, up, up), 0);
  Node *if_good = g_select(g, ops_mul(g, grow, finite), up, s->scale);
  n.scale = g_select(g, found, g_select(g, shrink, down, s->scale), if_good);
  n.good = g_select(g, found, zero, g_select(g, grow, zero, good));
  n.bad = g_select(g, found, g_select(g, shrink, zero, bad), zero);
  return n;
}

bool x_update_loss_scaling(Expand *x) {
  Graph *g = x->g;
  Node *found = one(x, "FoundInfinite");
  Scaling s = {one(x, "PrevLossScaling"), one(x, "InGoodSteps"), one(x, "InBadSteps")};
  for (int i = 0; i < x_n_out(x, "Out") && i < x_n_in(x, "X"); i++) {
    Node *v = x_in_at(x, "X", i);
    if (!v || !found) return false;
    Node *hit = g_reshape(g, found, 0, NULL);
    if (!x_out_at(x, "Out", i, g_select(g, hit, g_const(g, v->dtype, 0), v))) return false;
  }
  Scaling n = next_scaling(x, &s, found);
  if (!n.scale) return false;
  if (op_bool(x->op, "stop_update")) n = s;
  if (x_n_in(x, "StopUpdate") > 0) {
    Node *stop = one(x, "StopUpdate");
    n.scale = g_select(g, stop, s.scale, n.scale);
    n.good = g_select(g, stop, s.good, n.good);
    n.bad = g_select(g, stop, s.bad, n.bad);
  }
  return x_out(x, "LossScaling", n.scale) && x_out(x, "OutGoodSteps", n.good) &&
         x_out(x, "OutBadSteps", n.bad);
}

/* ---- memory ---- */

bool x_coalesce_tensor(Expand *x) {
  Graph *g = x->g;
  int n = x_n_in(x, "Input");
  Node **flat = arena_array(g->arena, Node *, n);
  bool set = op_bool(x->op, "set_constant");
  if (op_bool(x->op, "use_align")) {
    err_set(E_OPR_004, "use_align leaves gaps between the tensors");
    err_help("Clear use_align.");
    return false;
  }
  for (int i = 0; i < n; i++) {
    Node *v = x_in_at(x, "Input", i);
    if (!v) return false;
    if (set) v = g_full(g, v->dtype, op_float(x->op, "constant"), v->rank, v->dims);
    int64_t all = ops_prod(v->dims, 0, v->rank);
    flat[i] = ops_reshape(g, v, 1, &all);
    if (i < x_n_out(x, "Output") && !x_out_at(x, "Output", i, v)) return false;
    if (!flat[i]) return false;
  }
  return x_out(x, "FusedOutput", g_concat(g, n, flat, 0));
}

bool x_c_embedding(Expand *x) {
  Graph *g = x->g;
  Node *w = x_in(x, "W"), *ids = x_in(x, "Ids");
  int64_t dims[KL_RANK];
  if (!ops_rank(w, "W", 2, 2) || !ops_index(ids, "Ids") || !ops_rank(ids, "Ids", 0, KL_RANK - 1))
    return false;
  memcpy(dims, ids->dims, sizeof *dims * (size_t)ids->rank);
  dims[ids->rank] = w->dims[1];
  int64_t n = ops_prod(ids->dims, 0, ids->rank);
  if (n < 0 || !ops_known(w)) return x_out(x, "Out", ops_blank(g, w->dtype, ids->rank + 1, dims));
  Node *at = ops_plus(g, g_reshape(g, ids, 1, &n), -(double)op_int(x->op, "start_index"));
  Node *last = g_full_int(g, ids->dtype, w->dims[0], 0, NULL);
  Node *mine = ops_mul(g, g_map2c(g, P_LE, ops_times(g, at, -1), 0), g_map2(g, P_LT, at, last));
  Node *rows = ops_take(g, w, at, 0);
  rows = rows ? g_select(g, ops_along(g, mine, 2, 0), rows, g_const(g, w->dtype, 0)) : NULL;
  return rows && x_out(x, "Out", g_reshape(g, rows, ids->rank + 1, dims));
}

/* ---- fused operators ---- */

/* {binary, unary}: X op f(Y); {unary, binary}: f(X op Y). */
bool x_fused_elemwise_activation(Expand *x) {
  const Attr *a = op_attr(x->op, "functor_list");
  if (!a || a->type != AT_STRINGS || a->n != 2)
    return err_set(E_OPR_003, "functor_list needs two names");
  const char *f = a->ss[0], *h = a->ss[1];
  for (int i = 0; i < 2; i++)
    if (!opdef_find(a->ss[i]) || !text_is_bare(a->ss[i]))
      return err_set(E_OPR_003, "functor_list holds %s", quoted(a->ss[i]));
  bool binary = !strncmp(f, "elementwise", 11);
  const char *unary = binary ? h : f, *extra = strcmp(unary, "scale") ? "" : ", scale=scale";
  const char *text =
      binary ? arena_fmt(x->g->arena, "i = %s(Y%s); IntermediateOut = i; Out = %s(X, i, axis=axis)",
                         h, extra, f)
             : arena_fmt(x->g->arena, "i = %s(X, Y, axis=axis); IntermediateOut = i; Out = %s(i%s)",
                         h, f, extra);
  return formula_expand(x, text);
}

bool x_fused_embedding_eltwise_layernorm(Expand *x) {
  Graph *g = x->g;
  Node *sum = NULL, *scale = x_in(x, "Scale"), *bias = x_in(x, "Bias");
  int n = x_n_in(x, "Ids");
  if (n < 1 || n != x_n_in(x, "Embs"))
    return err_set(E_OPR_002, "%d Ids and %d Embs", n, x_n_in(x, "Embs"));
  for (int i = 0; i < n; i++) {
    Node *ids = x_in_at(x, "Ids", i), *w = x_in_at(x, "Embs", i);
    int64_t dims[3];
    if (!ops_index(ids, "Ids") || !ops_rank(ids, "Ids", 2, 3) || !ops_rank(w, "Embs", 2, 2))
      return false;
    dims[0] = ids->dims[0], dims[1] = ids->dims[1], dims[2] = w->dims[1];
    int64_t all = ops_prod(dims, 0, 2);
    if (all < 0) return x_out(x, "Out", ops_blank(g, w->dtype, 3, dims));
    ids = g_check(g, g_reshape(g, ids, 1, &all), 0, w->dims[0], false, 0, E_DAT_002);
    Node *rows = g_reshape(g, ops_take(g, w, ids, 0), 3, dims);
    sum = sum ? ops_add(g, sum, rows) : rows;
  }
  return x_out(x, "Out", ops_normed(g, sum, scale, bias, op_float(x->op, "epsilon")));
}

static Node *softmax_last(Graph *g, Node *v) {
  if (!v) return NULL;
  uint32_t last = 1u << (v->rank - 1);
  Node *e = g_map1(g, P_EXP, ops_sub(g, v, g_reduce(g, P_RMAX, v, last, true)));
  return ops_div(g, e, g_reduce(g, P_RSUM, e, last, true));
}

/* Input [B, S, H], W [H, 3, H'], Bias [3, H']: queries, keys and values in one product. */
bool x_multihead_matmul(Expand *x) {
  Graph *g = x->g;
  Node *in = x_in(x, "Input"), *w = x_in(x, "W"), *b = x_in(x, "Bias"), *part[3];
  int64_t heads = op_int(x->op, "head_number");
  bool biased = x_n_in(x, "BiasQK") > 0;
  if ((biased && !ops_rank(x_in(x, "BiasQK"), "BiasQK", 1, 4)) || !ops_rank(in, "Input", 3, 3) ||
      !ops_rank(w, "W", 3, 3) || !b ||
      !ops_same("width of Input and rows of W", in->dims[2], w->dims[0]) ||
      !ops_same("3 and the middle dimension of W", 3, w->dims[1]))
    return false;
  int64_t n = in->dims[0], s = in->dims[1], width = w->dims[2];
  if (heads < 1 || width % heads)
    return err_set(E_OPR_003, "head_number is %lld for width %lld", (long long)heads,
                   (long long)width);
  if (n < 0 || s < 0) return x_out(x, "Out", ops_blank(g, in->dtype, 3, (int64_t[]){n, s, width}));
  Node *flat = g_matmul(g, g_reshape(g, in, 2, (int64_t[]){n * s, in->dims[2]}),
                        g_reshape(g, w, 2, (int64_t[]){w->dims[0], 3 * width}), false, false);
  flat = ops_add(g, flat, g_reshape(g, b, 1, (int64_t[]){3 * width}));
  Node *all = g_reshape(g, flat, 5, (int64_t[]){n, s, 3, heads, width / heads});
  if (!all) return false;
  all = g_permute(g, all, (int[]){2, 0, 3, 1, 4});
  for (int i = 0; i < 3; i++)
    part[i] = g_reshape(g, ops_cut(g, all, 0, i, 1, 1), 4, (int64_t[]){n, heads, s, width / heads});
  Node *score = ops_times(g, g_matmul(g, part[0], part[1], false, true), op_float(x->op, "alpha"));
  if (biased) score = ops_add(g, score, x_in(x, "BiasQK"));
  Node *y = g_matmul(g, softmax_last(g, score), part[2], false, false);
  y = y ? g_permute(g, y, (int[]){0, 2, 1, 3}) : NULL;
  return y && x_out(x, "Out", g_reshape(g, y, 3, (int64_t[]){n, s, width}));
}

/* ---- what PaddlePaddle's passes for oneDNN leave ---- */

/* v, activated, as a formula; NULL: E-OPR-004. */
static const char *activation_text(Expand *x) {
  static const struct {
    const char *name, *text;
  } all[] = {{"", "v"},
             {"relu", "relu(v)"},
             {"relu6", "min(max(v, 0), 6)"},
             {"sigmoid", "sigmoid(v)"},
             {"tanh", "tanh(v)"},
             {"gelu", "gelu(v)"},
             {"gelu_erf", "gelu(v)"},
             {"gelu_tanh", "gelu(v, approximate=true)"},
             {"swish", "v * sigmoid(fuse_alpha * v)"},
             {"mish", "mish(v)"},
             {"leaky_relu", "(v < 0 ? fuse_alpha * v : v)"},
             {"hard_swish", "v * min(max(fuse_alpha * v + fuse_beta, 0), 1)"},
             {"hard_sigmoid", "min(max(fuse_alpha * v + fuse_beta, 0), 1)"},
             {"clip", "min(max(v, fuse_alpha), fuse_beta)"},
             {"abs", "abs(v)"},
             {"sqrt", "sqrt(v)"},
             {"exp", "exp(v)"},
             {"square", "v * v"},
             {"linear", "(fuse_alpha * v + fuse_beta)"},
             {"identity", "v"}};
  const char *name = op_str(x->op, "fuse_activation");
  for (size_t i = 0; i < sizeof all / sizeof *all; i++)
    if (!strcmp(name, all[i].name)) return all[i].text;
  err_set(E_OPR_004, "fuse_activation is %s", quoted(name));
  err_help("Make the activation an operator of its own.");
  return NULL;
}

static const char *unless_empty(Expand *x, const char *attr, const char *text) {
  int n;
  op_intlist(x->op, attr, x->g->arena, &n);
  return n ? text : "";
}

static bool fused_binary(Expand *x, char sign) {
  const char *act = activation_text(x);
  if (!act) return false;
  return formula_expand(x, arena_fmt(x->g->arena,
                                     "v = X * scale_x %c align(Y * scale_y, X, axis); v = v * "
                                     "scale_out; v = %s * fused_output_scale; Out = %s",
                                     sign, act,
                                     *unless_empty(x, "fused_unsqueeze2_axes", "u")
                                         ? "unsqueeze2(v, axes=fused_unsqueeze2_axes)"
                                         : "v"));
}

bool x_fused_elementwise_add(Expand *x) { return fused_binary(x, '+'); }
bool x_fused_elementwise_sub(Expand *x) { return fused_binary(x, '-'); }
bool x_fused_elementwise_mul(Expand *x) { return fused_binary(x, '*'); }
bool x_fused_elementwise_div(Expand *x) { return fused_binary(x, '/'); }

bool x_fused_matmul(Expand *x) {
  const char *act = activation_text(x);
  if (!act) return false;
  return formula_expand(
      x,
      arena_fmt(
          x->g->arena,
          "a = X; b = Y; %s%s%s%sv = matmul_v2(a, b, trans_x=trans_x, trans_y=trans_y) * "
          "matmul_alpha; %sv = %s; v = v * fused_output_scale; %s%sOut = v",
          unless_empty(x, "fused_reshape_X", "a = reshape2(a, shape=fused_reshape_X); "),
          unless_empty(x, "fused_transpose_X", "a = transpose2(a, axis=fused_transpose_X); "),
          unless_empty(x, "fused_reshape_Y", "b = reshape2(b, shape=fused_reshape_Y); "),
          unless_empty(x, "fused_transpose_Y", "b = transpose2(b, axis=fused_transpose_Y); "),
          x_n_in(x, "ResidualData") > 0 ? "v = v + ResidualData; " : "", act,
          unless_empty(x, "fused_transpose_Out", "v = transpose2(v, axis=fused_transpose_Out); "),
          unless_empty(x, "fused_reshape_Out", "v = reshape2(v, shape=fused_reshape_Out); ")));
}

bool x_fused_conv2d(Expand *x) {
  const char *act = activation_text(x);
  if (!act) return false;
  return formula_expand(
      x, arena_fmt(x->g->arena,
                   "v = conv2d(Input, Filter, Bias, %s strides=strides, paddings=paddings, "
                   "padding_algorithm=padding_algorithm, groups=groups, "
                   "dilations=dilations, data_format=data_format); Output = %s",
                   x_n_in(x, "ResidualData") > 0 ? "ResidualData," : "", act));
}

bool x_fused_softplus(Expand *x) {
  const char *act = activation_text(x);
  return act &&
         formula_expand(x, arena_fmt(x->g->arena,
                                     "v = softplus(X, beta=beta, threshold=threshold); Out = %s",
                                     act));
}

/* ---- chains ---- */

bool x_fusion_repeated_fc_relu(Expand *x) {
  Graph *g = x->g;
  Node *v = x_in(x, "X");
  int n = x_n_in(x, "W");
  if (n != x_n_in(x, "Bias")) return err_set(E_OPR_002, "%d W and %d Bias", n, x_n_in(x, "Bias"));
  if (!ops_rank(v, "X", 2, 2)) return false;
  for (int i = 0; v && i < n; i++) {
    Node *w = x_in_at(x, "W", i), *b = x_in_at(x, "Bias", i);
    if (!ops_rank(w, "W", 2, 2) || !b) return false;
    b = ops_reshape(g, b, 1, w->dims + 1);
    v = g_map2c(g, P_MAX, ops_add(g, g_matmul(g, v, w, false, false), b), 0);
    if (i < n - 1 && i < x_n_out(x, "ReluOut") && !x_out_at(x, "ReluOut", i, v)) return false;
  }
  return x_out(x, "Out", v);
}

bool x_fusion_transpose_flatten_concat(Expand *x) {
  Graph *g = x->g;
  int n = x_n_in(x, "X"), rank, at, perm[KL_RANK];
  Node **part = arena_array(g->arena, Node *, n);
  const int64_t *axis = op_intlist(x->op, "trans_axis", x->g->arena, &rank);
  for (int i = 0; i < n; i++) {
    Node *v = x_in_at(x, "X", i);
    if (!ops_rank(v, "X", rank, rank) ||
        !ops_axis("flatten_axis", op_int(x->op, "flatten_axis"), rank, &at))
      return false;
    uint32_t seen = 0;
    for (int d = 0; d < rank; d++) {
      if (!ops_axis("trans_axis", axis[d], rank, &perm[d])) return false;
      seen |= 1u << perm[d];
    }
    if (seen != (1u << rank) - 1)
      return err_set(E_OPR_003, "trans_axis is no order of %d axes", rank);
    if (!(v = g_permute(g, v, perm))) return false;
    if (!(part[i] =
              ops_reshape(g, v, 2,
                          (int64_t[]){ops_prod(v->dims, 0, at), ops_prod(v->dims, at, rank)})))
      return false;
  }
  return x_out(x, "Out", g_concat(g, n, part, (int)op_int(x->op, "concat_axis")));
}
