/* What decoders of text are made of, as programs for GPUs hold it: rms_norm (B. Zhang, R. Sennrich, "Root Mean Square Layer
 * Normalization", 2019), rotary positions (J. Su et al., "RoFormer", 2021), and attention as one operator, flash_attn (T. Dao
 * et al., 2022), whose kernels the passes make from its parts. */
#include "ops.h"

#include <math.h>
#include <string.h>

/* ---- rms_norm ---- */

/* v of the shape of its dimensions axis.. from n elements; NULL passes through. */
static bool tail_shaped(Expand *x, const char *slot, const Node *in, int axis, Node **v) {
  *v = x_in(x, slot);
  if (!*v || !ops_known(*v) || !ops_known(in)) return !err_any();
  if (!ops_same("elements of a weight and normalised elements", node_numel(*v),
                ops_prod(in->dims, axis, in->rank)))
    return false;
  *v = g_reshape(x->g, *v, in->rank - axis, in->dims + axis);
  return *v != NULL;
}

/* (x + bias + residual) over the root of its mean square, times norm_weight, plus norm_bias. */
bool x_rms_norm(Expand *x) {
  Graph *g = x->g;
  Node *v = x_in(x, "x"), *bias = x_in(x, "bias"), *residual = x_in(x, "residual"), *w, *b;
  int axis;
  if (!v || !ops_float(v, "x") ||
      !ops_axis("begin_norm_axis", op_int(x->op, "begin_norm_axis"), v->rank, &axis))
    return false;
  if (op_float(x->op, "quant_scale") > 0)
    return err_set(E_OPR_004, "a quantised result (quant_scale is %g)",
                   op_float(x->op, "quant_scale"));
  if (!tail_shaped(x, "norm_weight", v, axis, &w) || !tail_shaped(x, "norm_bias", v, axis, &b))
    return false;
  if (bias) v = ops_add(g, v, bias);
  if (residual) v = ops_add(g, v, residual);
  if (!v || !x_out(x, "residual_out", v)) return false;
  if (!ops_known(v)) return x_out(x, "out", ops_blank_like(g, v));
  uint32_t axes = 0;
  for (int d = axis; d < v->rank; d++) axes |= 1u << d;
  double n = (double)ops_prod(v->dims, axis, v->rank);
  Node *square = ops_times(g, g_reduce(g, P_RSUM, ops_mul(g, v, v), axes, true), n > 0 ? 1 / n : 0);
  Node *y = ops_div(g, v, g_map1(g, P_SQRT, ops_plus(g, square, op_float(x->op, "epsilon"))));
  if (w) y = ops_mul(g, y, w);
  if (b) y = ops_add(g, y, b);
  return x_out(x, "out", y);
}

/* ---- rotary positions ---- */

enum { MOST_ANGLES = 1 << 28 };

typedef struct Rotary {
  Node *sin, *cos; /* [B or 1, S, 1, D] */
  bool halves;     /* pairs (i, i + D/2), else (2i, 2i + 1) */
} Rotary;

/* The angles of pair i at position s: s / 10000^(2i / D). */
static void own_angles(Graph *g, int64_t s, int64_t d, Rotary *r) {
  int64_t dims[] = {1, s, 1, d};
  float *sine = arena_array(g->arena, float, s *d + 1),
        *cosine = arena_array(g->arena, float, s *d + 1);
  for (int64_t i = 0; i < s * d; i++) {
    double a = (double)(i / d) / pow(10000, (double)(i % d / 2 * 2) / (double)d);
    sine[i] = (float)sin(a), cosine[i] = (float)cos(a);
  }
  r->sin = g_data(g, DT_FLOAT32, 4, dims, sine, "sin");
  r->cos = g_data(g, DT_FLOAT32, 4, dims, cosine, "cos");
}

/* A table of S rows of D, of any rank, at the positions `at` [B, S] or all in turn. */
static Node *angles_of(Expand *x, const char *slot, Node *at, int64_t s, int64_t d) {
  Graph *g = x->g;
  Node *v = x_in(x, slot);
  if (!v) return NULL;
  int64_t rows = d > 0 ? node_numel(v) / d : 0, table[] = {rows, d};
  if (!ops_same("elements of sin and cos, and positions times head size", node_numel(v), rows * d))
    return NULL;
  if (!at) {
    if (!ops_same("positions of q and of sin and cos", s, rows)) return NULL;
    return g_reshape(g, v, 4, (int64_t[]){1, s, 1, d});
  }
  int64_t n = node_numel(at);
  Node *i = g_check(g, g_reshape(g, at, 1, &n), 0, rows, false, 0, E_DAT_002);
  v = ops_take(g, g_reshape(g, v, 2, table), i, 0);
  return g_reshape(g, v, 4, (int64_t[]){at->dims[0], s, 1, d});
}

static bool rotary_read(Expand *x, const Node *q, Rotary *r) {
  int64_t s = q->dims[1], d = q->dims[3];
  Node *at = x_in(x, "position_ids");
  r->halves = !op_bool(x->op, "use_neox_rotary_style");
  if (d % 2) return err_set(E_SHP_006, "heads of %lld numbers are not made of pairs", (long long)d);
  bool given = x_n_in(x, "sin") > 0 && x_n_in(x, "cos") > 0;
  if (!given && (at || r->halves || x_n_in(x, "sin") > 0 || x_n_in(x, "cos") > 0)) {
    err_set(E_OPR_004, "positions of halves, or position_ids, without sin and cos");
    err_help("Connect sin and cos, [1, S, 1, D].");
    return false;
  }
  if (s * d > MOST_ANGLES) return err_set(E_MEM_002, "more than %d angles", MOST_ANGLES);
  if (!given) return own_angles(x->g, s, d, r), r->sin && r->cos;
  if (at && (!ops_index(at, "position_ids") || !ops_rank(at, "position_ids", 2, 2) ||
             !ops_same("positions of q and of position_ids", s, at->dims[1])))
    return false;
  r->sin = angles_of(x, "sin", at, s, d);
  r->cos = angles_of(x, "cos", at, s, d);
  return r->sin && r->cos;
}

/* One of each pair, [B, S, H, D/2, 1] or [B, S, H, 1, D/2]. */
static Node *pair_half(Graph *g, const Rotary *r, Node *v, int half) {
  if (!v) return NULL;
  int64_t d = v->dims[3] / 2,
          dims[] = {v->dims[0], v->dims[1], v->dims[2], r->halves ? 2 : d, r->halves ? d : 2};
  return ops_cut(g, g_reshape(g, v, 5, dims), r->halves ? 3 : 4, half, 1, 1);
}

/* back: the gradient of it. */
static Node *rotated(Graph *g, const Rotary *r, Node *v, bool back) {
  Node *in[2], *sine[2], *cosine[2], *out[2];
  Node *sin_v = g_cast(g, r->sin, v->dtype), *cos_v = g_cast(g, r->cos, v->dtype);
  for (int i = 0; i < 2; i++) {
    in[i] = pair_half(g, r, v, i);
    sine[i] = pair_half(g, r, sin_v, i), cosine[i] = pair_half(g, r, cos_v, i);
  }
  Node *plus = ops_mul(g, in[back], sine[1]), *minus = ops_mul(g, in[!back], sine[0]);
  out[back] = ops_sub(g, ops_mul(g, in[back], cosine[back]), minus);
  out[!back] = ops_add(g, ops_mul(g, in[!back], cosine[!back]), plus);
  Node *y = out[0] && out[1] ? g_concat(g, 2, out, r->halves ? 3 : 4) : NULL;
  return g_reshape(g, y, 4, v->dims);
}

static bool rotary(Expand *x, const char *const (*slots)[2], bool back) {
  Graph *g = x->g;
  static const char *const tables[] = {"sin", "cos", "position_ids"};
  Rotary r = {0};
  const Node *first = NULL;
  bool known = true;
  for (int i = 0; i < 3; i++) {
    Node *v = x_in(x, slots[i][0]), *table = x_in(x, tables[i]);
    if (err_any() || (v && (!ops_rank(v, slots[i][0], 4, 4) || !ops_float(v, slots[i][0]))))
      return false;
    known = known && (!v || ops_known(v)) && (!table || ops_known(table));
    if (!first) first = v;
    if (v && (!ops_same("positions of q, k and v", first->dims[1], v->dims[1]) ||
              !ops_same("numbers in a head of q, k and v", first->dims[3], v->dims[3])))
      return false;
  }
  if (first && known && !rotary_read(x, first, &r)) return false;
  for (int i = 0; i < 3; i++) {
    Node *v = x_in(x, slots[i][0]);
    if (v && !x_out(x, slots[i][1], known ? rotated(g, &r, v, back) : ops_blank_like(g, v)))
      return false;
  }
  return true;
}

bool x_fused_rotary_position_embedding(Expand *x) {
  static const char *const slots[][2] = {{"q", "out_q"}, {"k", "out_k"}, {"v", "out_v"}};
  return rotary(x, slots, false);
}

bool x_fused_rotary_position_embedding_grad(Expand *x) {
  static const char *const slots[][2] = {{"out_q@GRAD", "q@GRAD"},
                                         {"out_k@GRAD", "k@GRAD"},
                                         {"out_v@GRAD", "v@GRAD"}};
  return rotary(x, slots, true);
}

/* ---- attention ---- */

/* [B, S, H, D] -> [B, H, S, D]; of fewer heads each serves several. */
static Node *heads_first(Graph *g, Node *v, int64_t heads) {
  v = v ? g_permute(g, v, (int[]){0, 2, 1, 3}) : NULL;
  if (!v || v->dims[1] == heads) return v;
  int64_t b = v->dims[0], h = v->dims[1], s = v->dims[2], d = v->dims[3];
  v = g_reshape(g, v, 5, (int64_t[]){b, h, 1, s, d});
  v = g_expand(g, v, 5, (int64_t[]){b, h, heads / h, s, d});
  return g_reshape(g, v, 4, (int64_t[]){b, heads, s, d});
}

static bool attention_read(Expand *x, Node **q, Node **k, Node **v) {
  *q = x_in(x, "q"), *k = x_in(x, "k"), *v = x_in(x, "v");
  if (!ops_rank(*q, "q", 4, 4) || !ops_rank(*k, "k", 4, 4) || !ops_rank(*v, "v", 4, 4) ||
      !ops_same("positions of k and v", (*k)->dims[1], (*v)->dims[1]) ||
      !ops_same("heads of k and v", (*k)->dims[2], (*v)->dims[2]) ||
      !ops_same("numbers in a head of q and k", (*q)->dims[3], (*k)->dims[3]))
    return false;
  int64_t h = (*q)->dims[2], kept = (*k)->dims[2];
  if (h > 0 && kept >= 0 && (kept == 0 || h % kept))
    return err_set(E_SHP_006, "%lld heads of q, %lld of k", (long long)h, (long long)kept);
  if (op_float(x->op, "dropout") > 0 && !op_bool(x->op, "is_test")) {
    err_set(E_OPR_004, "attention with a dropout of %g", op_float(x->op, "dropout"));
    err_help("Set dropout to 0, or is_test.");
    return false;
  }
  bool causal = op_bool(x->op, "causal");
  if (causal && (*q)->dims[1] >= 0 && (*k)->dims[1] >= 0 && (*q)->dims[1] != (*k)->dims[1])
    return err_set(E_OPR_004, "causal attention of %lld positions to %lld",
                   (long long)(*q)->dims[1], (long long)(*k)->dims[1]);
  return true;
}

/* softmax(q k' / sqrt(D) + attn_mask) v; softmax_lse: the logarithms of what the rows are divided by. */
bool x_flash_attn(Expand *x) {
  Graph *g = x->g;
  Node *q, *k, *v, *mask = x_in(x, "attn_mask");
  int64_t none[] = {2};
  if (!attention_read(x, &q, &k, &v) ||
      !x_out(x, "seed_offset", g_full_int(g, DT_INT64, 0, 1, none)))
    return false;
  int64_t h = q->dims[2], dims[] = {q->dims[0], h, q->dims[1], k->dims[1]},
          out[] = {q->dims[0], q->dims[1], h, v->dims[3]};
  if (!ops_known(q) || !ops_known(k) || !ops_known(v) || (mask && !ops_known(mask)))
    return x_out(x, "out", ops_blank(g, q->dtype, 4, out)) &&
           x_out(x, "softmax", ops_blank(g, q->dtype, 4, dims)) &&
           x_out(x, "softmax_lse", ops_blank(g, DT_FLOAT32, 3, dims));
  Node *scale = g_const(g, q->dtype, 1 / sqrt((double)q->dims[3]));
  Node *p = g_matmul(g, ops_mul(g, heads_first(g, q, h), scale), heads_first(g, k, h), false, true);
  if (mask) p = ops_add(g, p, g_cast(g, mask, q->dtype));
  if (op_bool(x->op, "causal") && p) {
    Node *past = g_map2(g, P_LE, g_iota(g, DT_INT64, 4, dims, 3), g_iota(g, DT_INT64, 4, dims, 2));
    p = g_select(g, past, p, g_const(g, q->dtype, -INFINITY));
  }
  Node *most = p ? g_reduce(g, P_RMAX, p, 8, true) : NULL;
  Node *e = most ? g_map1(g, P_EXP, ops_sub(g, p, most)) : NULL;
  Node *sum = e ? g_reduce(g, P_RSUM, e, 8, true) : NULL;
  Node *w = ops_div(g, e, sum), *lse = ops_add(g, g_map1(g, P_LOG, sum), most);
  Node *y = g_matmul(g, w, heads_first(g, v, h), false, false);
  y = y ? g_permute(g, y, (int[]){0, 2, 1, 3}) : NULL;
  lse = g_cast(g, g_reshape(g, lse, 3, dims), DT_FLOAT32);
  return x_out(x, "out", y) && x_out(x, "softmax", w) && x_out(x, "softmax_lse", lse);
}
