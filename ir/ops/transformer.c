/* The parts of a transformer that programs for GPUs hold as one operator: self-attention, feed-forward, whole layers of
 * inference (A. Vaswani et al., "Attention Is All You Need", 2017). In: [B, S, E] and weights. A gradient builds
 * the part again, with the masks of the forward pass, and is derived from that. */
#include "ops.h"

#include <string.h>

enum { MAX_SLOTS = 12 };

/* The part, from its inputs in the order of its slots; NULL where one is absent. */
typedef struct Part {
  int n;
  const char *slot[MAX_SLOTS], *out;
  Node *(*build)(Expand *x, Node **in);
  const char *mask[2]; /* outputs, or NULL */
  int mask_rank[2];
} Part;

static bool part_read(Expand *x, const Part *p, Node **in, bool *known) {
  *known = true;
  for (int i = 0; i < p->n; i++) {
    in[i] = x_n_in(x, p->slot[i]) > 0 ? x_in(x, p->slot[i]) : NULL;
    if (err_any()) return false;
    *known = *known && (!in[i] || ops_known(in[i]));
  }
  return ops_rank(in[0], p->slot[0], 3, 3) && ops_float(in[0], p->slot[0]);
}

static bool part_forward(Expand *x, const Part *p) {
  Node *in[MAX_SLOTS];
  bool known;
  if (!part_read(x, p, in, &known)) return false;
  for (int i = 0; i < 2 && !known && p->mask[i]; i++)
    if (!ops_out_unknown(x, p->mask[i], DT_UINT8, p->mask_rank[i])) return false;
  return x_out(x, p->out, known ? p->build(x, in) : ops_blank_like(x->g, in[0]));
}

static bool part_grad(Expand *x, const Part *p) {
  Graph *g = x->g;
  Node *in[MAX_SLOTS], *own[MAX_SLOTS] = {NULL}, *of[MAX_SLOTS], *grad[MAX_SLOTS] = {NULL};
  int slot[MAX_SLOTS], n = 0;
  bool known;
  Node *gy = x_in(x, arena_fmt(g->arena, "%s@GRAD", p->out));
  if (!part_read(x, p, in, &known) || !gy) return false;
  for (int i = 0; i < p->n; i++) {
    if (!in[i]) continue;
    own[i] = g_alias(g, in[i]);
    if (x_wants(x, arena_fmt(g->arena, "%s@GRAD", p->slot[i]))) slot[n] = i, of[n++] = own[i];
  }
  Node *y = known ? p->build(x, own) : NULL;
  if (known && (!y || !derive(g, 1, &y, &gy, n, of, grad))) return false;
  for (int k = 0; k < n; k++) {
    Node *v = !known ? ops_blank_like(g, of[k]) : grad[k] ? grad[k] : ops_zeros(g, of[k]);
    if (!x_out(x, arena_fmt(g->arena, "%s@GRAD", p->slot[slot[k]]), v)) return false;
  }
  return true;
}

/* ---- what parts are made of ---- */

static Node *plus(Graph *g, Node *v, Node *bias) { return bias ? ops_add(g, v, bias) : v; }

/* v [.., K] times w [K, M]. */
static Node *projected(Graph *g, Node *v, Node *w, bool turned) {
  int64_t dims[KL_RANK];
  if (!v || !ops_rank(w, "a weight", 2, 2) ||
      !ops_same("columns of the input and rows of the weight", v->dims[v->rank - 1],
                w->dims[turned]))
    return NULL;
  int64_t rows = ops_prod(v->dims, 0, v->rank - 1);
  memcpy(dims, v->dims, sizeof *dims * (size_t)v->rank);
  dims[v->rank - 1] = w->dims[!turned];
  Node *flat = g_reshape(g, v, 2, (int64_t[]){rows, w->dims[turned]});
  return g_reshape(g, g_matmul(g, flat, w, false, turned), v->rank, dims);
}

static Node *activated(Expand *x, Node *v) {
  static const char *const words[] = {"gelu", "relu"};
  int act = op_word(x->op, "act_method", 2, words);
  if (act < 0 || !v) return NULL;
  if (act == 1) return g_map2c(x->g, P_MAX, v, 0);
  Node *e = g_map1(x->g, P_ERF, ops_times(x->g, v, 0.70710678118654752));
  return ops_times(x->g, ops_mul(x->g, v, ops_plus(x->g, e, 1)), 0.5);
}

/* The names of its attributes; `mask` is an output, in a gradient an input. */
typedef struct Dropout {
  const char *rate, *word, *fixed, *seed, *mask;
} Dropout;

static Node *dropped(Expand *x, const Dropout *d, int stream, Node *v) {
  Graph *g = x->g;
  double p = op_float(x->op, d->rate);
  bool upscale = !strcmp(op_str(x->op, d->word), "upscale_in_train");
  if (!(p >= 0 && p <= 1)) {
    err_set(E_OPR_003, "%s is %g", d->rate, p);
    err_help("A probability is a number from 0 to 1.");
    return NULL;
  }
  if (!v || op_bool(x->op, "is_test")) return upscale || !v ? v : ops_times(g, v, 1 - p);
  Node *keep = x_n_in(x, d->mask) > 0 ? g_cast(g, x_in(x, d->mask), DT_BOOL) : NULL;
  if (!keep) {
    int64_t seed = op_bool(x->op, d->fixed) ? op_int(x->op, d->seed) : 0;
    Node *u = g_random(g, DT_FLOAT32, v->rank, v->dims, seed, x_stream(x, stream), seed != 0);
    keep = u ? g_map2(g, P_LE, g_const(g, DT_FLOAT32, p < 1 ? p : 2), u) : NULL;
    if (opdef_out(x->op->def, d->mask) && !x_out(x, d->mask, g_cast(g, keep, DT_UINT8)))
      return NULL;
  }
  double scale = upscale && p < 1 ? 1 / (1 - p) : 1;
  return g_select(g, keep, ops_times(g, v, scale), g_const(g, v->dtype, 0));
}

/* ---- self-attention ---- */

enum { A_X, A_W, A_BIAS, A_MASK, A_OUT_W, A_OUT_BIAS, A_SCALE, A_SHIFT, A_SCALE2, A_SHIFT2, A_N };

/* Queries, keys and values [3, B, H, S, D]; `flat`: the weight is [E, 3 E], else [3, H, D, E] or, `wide`, [E, 3, H, D]. */
static Node *three(Graph *g, Node *v, Node *w, Node *bias, int64_t heads, bool flat, bool wide) {
  if (!v || !ops_rank(w, "QKVW", flat ? 2 : 4, flat ? 2 : 4)) return NULL;
  int64_t all = flat ? w->dims[1] : ops_prod(w->dims, wide, 3 + wide),
          width = flat || wide ? w->dims[0] : w->dims[3];
  if (!flat) heads = w->dims[1 + wide];
  if (heads < 1 || all % (3 * heads)) {
    err_set(E_OPR_003, "num_heads is %lld for %lld columns of QKVW", (long long)heads,
            (long long)all);
    return NULL;
  }
  bool turned = !flat && !wide;
  Node *plain = g_reshape(g, w, 2, turned ? (int64_t[]){all, width} : (int64_t[]){width, all});
  Node *y = projected(g, v, plain, turned);
  if (bias && !ops_same("elements of QKVBias", all, ops_prod(bias->dims, 0, bias->rank)))
    return NULL;
  y = plus(g, y, bias ? g_reshape(g, bias, 1, &all) : NULL);
  int64_t dims[] = {v->dims[0], v->dims[1], 3, heads, all / 3 / heads};
  y = g_reshape(g, y, 5, dims);
  return y ? g_permute(g, y, (int[]){2, 0, 3, 1, 4}) : NULL;
}

/* softmax(q k' / sqrt(D) + mask) v as [B, S, H D]; drop may be NULL. */
static Node *attended(Expand *x, Node *qkv, Node *mask, const Dropout *drop) {
  Graph *g = x->g;
  if (!qkv) return NULL;
  int64_t b = qkv->dims[1], h = qkv->dims[2], s = qkv->dims[3], d = qkv->dims[4];
  Node *part[3];
  for (int i = 0; i < 3; i++)
    part[i] = g_reshape(g, ops_cut(g, qkv, 0, i, 1, 1), 4, (int64_t[]){b, h, s, d});
  Node *scale = g_map1(g, P_SQRT, g_const(g, qkv->dtype, 1 / (double)d));
  Node *p = plus(g, g_matmul(g, ops_mul(g, part[0], scale), part[1], false, true), mask);
  if (!p) return NULL;
  Node *e = g_map1(g, P_EXP, ops_sub(g, p, g_reduce(g, P_RMAX, p, 8, true)));
  p = e ? ops_div(g, e, g_reduce(g, P_RSUM, e, 8, true)) : NULL;
  if (drop) p = dropped(x, drop, 0, p);
  Node *y = g_matmul(g, p, part[2], false, false);
  y = y ? g_permute(g, y, (int[]){0, 2, 1, 3}) : NULL;
  return y ? g_reshape(g, y, 3, (int64_t[]){b, s, h * d}) : NULL;
}

static const Dropout attention_drop = {"attn_dropout_rate", "attn_dropout_implementation",
                                       "attn_dropout_fix_seed", "attn_dropout_seed",
                                       "AttnDropoutMaskOut"};
static const Dropout out_drop = {"dropout_rate", "dropout_implementation", "dropout_fix_seed",
                                 "dropout_seed", "DropoutMaskOut"};

static Node *attention(Expand *x, Node **in) {
  Graph *g = x->g;
  bool before = op_bool(x->op, "pre_layer_norm");
  if (x_n_in(x, "CacheKV") > 0) {
    err_set(E_OPR_004, "attention to a cache of earlier steps");
    return NULL;
  }
  Node *v = before ? ops_normed(g, in[A_X], in[A_SCALE], in[A_SHIFT], op_float(x->op, "epsilon"))
                   : in[A_X];
  Node *qkv = three(g, v, in[A_W], in[A_BIAS], op_int(x->op, "num_heads"),
                    op_bool(x->op, "transpose_qkv_wb"), false);
  Node *y = projected(g, attended(x, qkv, in[A_MASK], &attention_drop), in[A_OUT_W], false);
  y = dropped(x, &out_drop, 1, plus(g, y, in[A_OUT_BIAS]));
  if (op_bool(x->op, "add_residual")) y = ops_add(g, y, in[A_X]);
  return before ? y : ops_normed(g, y, in[A_SCALE2], in[A_SHIFT2], op_float(x->op, "ln_epsilon"));
}

static const Part attention_part = {A_N,
                                    {"X", "QKVW", "QKVBias", "SrcMask", "OutLinearW",
                                     "OutLinearBias", "LnScale", "LnBias", "Ln2Scale", "Ln2Bias"},
                                    "Y",
                                    attention,
                                    {"AttnDropoutMaskOut", "DropoutMaskOut"},
                                    {4, 3}};

bool x_fused_attention(Expand *x) { return part_forward(x, &attention_part); }
bool x_fused_attention_grad(Expand *x) { return part_grad(x, &attention_part); }

/* ---- feed-forward ---- */

enum { F_X, F_W1, F_B1, F_W2, F_B2, F_SCALE1, F_SHIFT1, F_SCALE2, F_SHIFT2, F_N };

static const Dropout first_drop = {"dropout1_rate", "dropout1_implementation", "dropout1_fix_seed",
                                   "dropout1_seed", "Dropout1Mask"};
static const Dropout second_drop = {"dropout2_rate", "dropout2_implementation", "dropout2_fix_seed",
                                    "dropout2_seed", "Dropout2Mask"};

static Node *feedforward(Expand *x, Node **in) {
  Graph *g = x->g;
  bool before = op_bool(x->op, "pre_layer_norm");
  Node *v = before
                ? ops_normed(g, in[F_X], in[F_SCALE1], in[F_SHIFT1], op_float(x->op, "ln1_epsilon"))
                : in[F_X];
  v = activated(x, plus(g, projected(g, v, in[F_W1], false), in[F_B1]));
  v = projected(g, dropped(x, &first_drop, 0, v), in[F_W2], false);
  v = dropped(x, &second_drop, 1, plus(g, v, in[F_B2]));
  if (op_bool(x->op, "add_residual")) v = ops_add(g, v, in[F_X]);
  return before ? v : ops_normed(g, v, in[F_SCALE2], in[F_SHIFT2], op_float(x->op, "ln2_epsilon"));
}

static const Part feedforward_part = {F_N,
                                      {"X", "Linear1Weight", "Linear1Bias", "Linear2Weight",
                                       "Linear2Bias", "Ln1Scale", "Ln1Bias", "Ln2Scale", "Ln2Bias"},
                                      "Out",
                                      feedforward,
                                      {"Dropout1Mask", "Dropout2Mask"},
                                      {3, 3}};

bool x_fused_feedforward(Expand *x) { return part_forward(x, &feedforward_part); }
bool x_fused_feedforward_grad(Expand *x) { return part_grad(x, &feedforward_part); }

/* ---- the end of either ---- */

static Node *residual_norm(Expand *x, Node **in) {
  Node *v = ops_add(x->g, dropped(x, &out_drop, 0, plus(x->g, in[0], in[2])), in[1]);
  return ops_normed(x->g, v, in[3], in[4], op_float(x->op, "ln_epsilon"));
}

static const Part residual_part = {5,
                                   {"X", "Residual", "Bias", "LnScale", "LnBias"},
                                   "Y",
                                   residual_norm,
                                   {"DropoutMaskOut", NULL},
                                   {3, 0}};

bool x_fused_residual_norm(Expand *x) { return part_forward(x, &residual_part); }
bool x_fused_residual_norm_grad(Expand *x) { return part_grad(x, &residual_part); }

/* ---- all layers of inference ---- */

static Node *of_layer(Expand *x, const char *slot, int i) {
  return i < x_n_in(x, slot) ? x_in_at(x, slot, i) : NULL;
}

static Node *layer(Expand *x, int i, Node *v) {
  Graph *g = x->g;
  bool before = op_bool(x->op, "pre_layer_norm");
  double eps = op_float(x->op, "epsilon");
  Node *scale = of_layer(x, "LnScale", i), *shift = of_layer(x, "LnBias", i);
  Node *mask = x_in(x, "SrcMask");
  Node *h = before ? ops_normed(g, v, scale, shift, eps) : v;
  Node *qkv = three(g, h, of_layer(x, "QKVW", i), of_layer(x, "QKVBias", i), 0, false,
                    !op_bool(x->op, "trans_qkvw"));
  h = projected(g, attended(x, qkv, mask, NULL), of_layer(x, "OutLinearW", i), false);
  v = ops_add(g, v, plus(g, h, of_layer(x, "OutLinearBias", i)));
  if (!before) v = ops_normed(g, v, scale, shift, eps);
  scale = of_layer(x, "FFNLnScale", i), shift = of_layer(x, "FFNLnBias", i);
  h = before ? ops_normed(g, v, scale, shift, eps) : v;
  h = activated(x, plus(g, projected(g, h, of_layer(x, "FFN1Weight", i), false),
                        of_layer(x, "FFN1Bias", i)));
  h = plus(g, projected(g, h, of_layer(x, "FFN2Weight", i), false), of_layer(x, "FFN2Bias", i));
  v = ops_add(g, v, h);
  return before ? v : ops_normed(g, v, scale, shift, eps);
}

bool x_fused_multi_transformer(Expand *x) {
  static const char *const not_here[] = {"CacheKV",      "PreCaches",       "TimeStep",
                                         "RotaryPosEmb", "BeamCacheOffset", "SeqLengths"};
  Node *v = x_in(x, "X");
  if (!ops_rank(v, "X", 3, 3) || !ops_float(v, "X")) return false;
  for (size_t i = 0; i < sizeof not_here / sizeof *not_here; i++)
    if (x_n_in(x, not_here[i]) > 0) {
      err_set(E_OPR_004, "transformer layers with %s", not_here[i]);
      err_help("Give whole sequences, without caches of earlier steps.");
      return false;
    }
  if (!ops_known(v)) return x_out(x, "Out", ops_blank_like(x->g, v));
  for (int i = 0; v && i < x_n_in(x, "QKVW"); i++) v = layer(x, i, v);
  return x_out(x, "Out", v);
}
