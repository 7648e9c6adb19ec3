/* Simulated quantisation: numbers as multiples of scale / (2^(bits - 1) - 1), kept in floating point. A scale is the largest
 * magnitude of the tensor or channel, now (abs_max), as a running mean (moving_average: state = rate state + 1, accum =
 * rate accum + largest, scale = accum / state) or so far (range). Rounding: to even, then clamped to the
 * integers of that many bits; or (round_type 1) clamped to the scale, then halves away from zero. */
#include "ops.h"

#include <math.h>
#include <string.h>

typedef struct Quant {
  double most; /* the largest integer */
  bool away;
} Quant;

static bool bits_ok(int64_t bits) {
  if (bits >= 2 && bits <= 16) return true;
  err_set(E_OPR_003, "%lld bits", (long long)bits);
  err_help("A number of bits is from 2 to 16.");
  return false;
}

static bool quant_read(Expand *x, Quant *q) {
  int64_t bits = op_int(x->op, "bit_length");
  q->away = op_int(x->op, "round_type") == 1;
  q->most = (double)(((int64_t)1 << (bits_ok(bits) ? bits - 1 : 1)) - 1);
  return !err_any();
}

static Node *magnitude(Graph *g, Node *v) { return g_map2(g, P_MAX, v, ops_times(g, v, -1)); }

/* The largest magnitude over the axes, kept with size 1. */
static Node *largest(Graph *g, Node *v, uint32_t axes) {
  return v ? g_reduce(g, P_RMAX, magnitude(g, v), axes, true) : NULL;
}

/* To the nearest integer: by what is left above the floor, as v + 0.5 would be rounded. */
static Node *nearest(Graph *g, Node *v, bool to_even) {
  Node *whole = g_map1(g, P_FLOOR, v), *half = v ? g_const(g, v->dtype, 0.5) : NULL;
  Node *rest = ops_sub(g, v, whole), *up = ops_plus(g, whole, 1);
  Node *tie = up;
  if (to_even && v)
    tie = g_select(g, g_map2c(g, P_EQ, g_map2(g, P_MOD, whole, g_const(g, v->dtype, 2)), 0), whole,
                   up);
  return g_select(g, g_map2(g, P_LT, rest, half), whole,
                  g_select(g, g_map2(g, P_EQ, rest, half), tie, up));
}

static Node *rounded(Graph *g, Node *v, bool away) {
  if (!v) return NULL;
  if (!away) return nearest(g, v, true);
  Node *m = nearest(g, magnitude(g, v), false);
  return g_select(g, g_map2c(g, P_LT, v, 0), ops_times(g, m, -1), m);
}

bool x_dequantize_log(Expand *x) {
  Graph *g = x->g;
  Node *v = x_in(x, "X"), *dict = x_in(x, "Dict");
  if (!v || !dict) return false;
  if (v->dtype != DT_INT8)
    return err_set(E_TYP_002, "X is %s, int8 is needed", dtype_info[v->dtype].name);
  int64_t n = ops_prod(dict->dims, 0, dict->rank), all = ops_prod(v->dims, 0, v->rank);
  if (n >= 0 && n < 128)
    return err_set(E_SHP_006, "Dict has %lld elements, 128 are needed", (long long)n);
  if (n < 0 || all < 0) return x_out(x, "Out", ops_blank(g, dict->dtype, v->rank, v->dims));
  Node *i = g_cast(g, g_reshape(g, v, 1, &all), DT_INT32), *minus = g_map2c(g, P_LT, i, 0);
  Node *found =
      ops_take(g, g_reshape(g, dict, 1, &n), g_select(g, minus, ops_plus(g, i, 128), i), 0);
  found = g_select(g, minus, ops_times(g, found, -1), found);
  return found && x_out(x, "Out", g_reshape(g, found, v->rank, v->dims));
}

static Node *levels(Graph *g, const Quant *q, Node *v, Node *scale) {
  if (!v || !scale) return NULL;
  Node *tiny = g_map2(g, P_LE, scale, g_const(g, scale->dtype, 1e-6));
  Node *by = g_select(g, tiny, ops_plus(g, scale, 1e-6), scale);
  if (q->away) v = g_map2(g, P_MAX, g_map2(g, P_MIN, v, scale), ops_times(g, scale, -1));
  if (!v) return NULL;
  Node *per = ops_times(g, ops_div(g, g_const(g, v->dtype, 1), by), q->most);
  Node *n = rounded(g, ops_mul(g, v, per), q->away);
  return q->away ? n : g_map2c(g, P_MAX, g_map2c(g, P_MIN, n, q->most), -q->most - 1);
}

/* Out and its scale; `back`: in the units of X again. */
static bool put_levels(Expand *x, const char *slot, const Quant *q, Node *v, Node *scale,
                       bool back) {
  Node *n = levels(x->g, q, v, scale);
  if (back) n = ops_div(x->g, ops_mul(x->g, n, scale), g_const(x->g, v->dtype, q->most));
  return x_out(x, slot, n);
}

static bool put_scale(Expand *x, Node *scale, int64_t n) {
  return x_out(x, "OutScale", ops_reshape(x->g, scale, 1, &n));
}

static bool by_tensor(Expand *x, bool back) {
  Quant q;
  Node *v = x_in(x, "X");
  if (!ops_float(v, "X") || !quant_read(x, &q)) return false;
  Node *scale = largest(x->g, v, (1u << v->rank) - 1);
  return put_levels(x, "Out", &q, v, scale, back) && put_scale(x, scale, 1);
}

bool x_fake_quantize_abs_max(Expand *x) { return by_tensor(x, false); }
bool x_fake_quantize_dequantize_abs_max(Expand *x) { return by_tensor(x, true); }

static bool by_channel(Expand *x, bool back) {
  Quant q;
  Node *v = x_in(x, "X");
  int axis;
  if (!ops_float(v, "X") || !quant_read(x, &q) ||
      !ops_axis("quant_axis", op_int(x->op, "quant_axis"), v->rank, &axis))
    return false;
  Node *scale = largest(x->g, v, ((1u << v->rank) - 1) & ~(1u << axis));
  return put_levels(x, "Out", &q, v, scale, back) && put_scale(x, scale, v->dims[axis]);
}

bool x_fake_channel_wise_quantize_abs_max(Expand *x) { return by_channel(x, false); }
bool x_fake_channel_wise_quantize_dequantize_abs_max(Expand *x) { return by_channel(x, true); }

/* The scale after this batch, [1]; OutState and OutAccum. NULL: an error. */
static Node *moving_scale(Expand *x, Node *v) {
  Graph *g = x->g;
  double rate = op_float(x->op, "moving_rate");
  Node *state = x_in(x, "InState");
  Node *accum = x_in(x, "InAccum");
  if (!v || !state || !accum) {
    err_set(E_OPR_002, "InState and InAccum are needed unless is_test is set");
    return NULL;
  }
  Node *now = g_reshape(g, largest(g, v, (1u << v->rank) - 1), 1, (int64_t[]){1});
  Node *s = g_reshape(g, ops_plus(g, ops_times(g, state, rate), 1), 1, (int64_t[]){1});
  Node *a = ops_add(g, g_reshape(g, ops_times(g, accum, rate), 1, (int64_t[]){1}), now);
  if (!x_out(x, "OutState", s) || !x_out(x, "OutAccum", a)) return NULL;
  return ops_div(g, a, s);
}

static Node *one_number(Expand *x, const char *slot) {
  Node *v = x_in(x, slot);
  return v ? g_reshape(x->g, v, 1, (int64_t[]){1}) : NULL;
}

static bool by_moving_average(Expand *x, bool back) {
  Quant q;
  Node *v = x_in(x, "X");
  if (!ops_float(v, "X") || !quant_read(x, &q)) return false;
  Node *scale = op_bool(x->op, "is_test") ? one_number(x, "InScale") : moving_scale(x, v);
  return scale && put_levels(x, "Out", &q, v, scale, back) && put_scale(x, scale, 1);
}

bool x_fake_quantize_moving_average_abs_max(Expand *x) { return by_moving_average(x, false); }
bool x_fake_quantize_dequantize_moving_average_abs_max(Expand *x) {
  return by_moving_average(x, true);
}

bool x_moving_average_abs_max_scale(Expand *x) {
  Node *v = x_in(x, "X");
  if (!ops_float(v, "X") || !x_out(x, "Out", v)) return false;
  if (op_bool(x->op, "is_test"))
    return x_out(x, "OutScale", ops_blank(x->g, v->dtype, 1, (int64_t[]){1}));
  Node *scale = moving_scale(x, v);
  return scale && put_scale(x, scale, 1);
}

/* Without the history of a window (Iter, OutScales) the largest so far is the scale. */
bool x_fake_quantize_range_abs_max(Expand *x) {
  Quant q;
  Node *v = x_in(x, "X"), *scale = one_number(x, "InScale");
  if (!ops_float(v, "X") || !scale || !quant_read(x, &q)) return false;
  if (!op_bool(x->op, "is_test")) {
    if (x_n_in(x, "Iter") > 0) {
      err_set(E_OPR_004, "a window of scales is not supported");
      err_help("Use moving_average_abs_max, or set is_test.");
      return false;
    }
    Node *now = largest(x->g, v, (1u << v->rank) - 1);
    scale = g_map2(x->g, P_MAX, scale, g_reshape(x->g, now, 1, (int64_t[]){1}));
  }
  return put_levels(x, "Out", &q, v, scale, false) && put_scale(x, scale, 1);
}

/* ---- with given scales ---- */

static double integers_of(int64_t bits) { return (double)(((int64_t)1 << (bits - 1)) - 1); }

bool x_fake_channel_wise_dequantize_max_abs(Expand *x) {
  Graph *g = x->g;
  Node *v = x_in(x, "X");
  int n, scales = x_n_in(x, "Scales"), axis;
  const int64_t *bits = op_intlist(x->op, "quant_bits", x->g->arena, &n);
  if (!ops_float(v, "X")) return false;
  if (scales < 1 || scales > 2 || n < scales)
    return err_set(E_OPR_003, "%d Scales and %d quant_bits", scales, n);
  const char *attr = scales == 1 ? "quant_axis" : "x_num_col_dims";
  if (!ops_axis(attr, op_int(x->op, attr), v->rank, &axis) || !bits_ok(bits[0]) ||
      !bits_ok(bits[scales - 1]))
    return false;
  Node *by = ops_along(g, x_in_at(x, "Scales", 0), v->rank, axis);
  double most = integers_of(bits[0]);
  Node *out = ops_mul(g, v, by);
  if (scales == 2) {
    Node *s = x_in_at(x, "Scales", 1);
    most *= integers_of(bits[1]);
    out = ops_mul(g, out, s ? g_reshape(g, s, 0, NULL) : NULL);
  }
  return out && x_out(x, "Out", ops_div(g, out, g_const(g, out->dtype, most)));
}

/* Scale in the shape of X: one number, or one for each channel. */
static Node *given_scale(Expand *x, const Node *v) {
  Node *scale = x_in(x, "Scale");
  int64_t axis = op_int(x->op, "quant_axis"), one = 1;
  int at;
  if (!ops_float(scale, "Scale")) return NULL;
  if (axis < 0 || ops_prod(scale->dims, 0, scale->rank) == 1)
    return ops_reshape(x->g, scale, 1, &one);
  return ops_axis("quant_axis", axis, v->rank, &at) ? ops_along(x->g, scale, v->rank, at) : NULL;
}

bool x_quantize_linear(Expand *x) {
  Quant q;
  Node *v = x_in(x, "X");
  if (!ops_float(v, "X") || !quant_read(x, &q)) return false;
  int64_t axis = op_int(x->op, "quant_axis");
  Node *scale;
  if (op_bool(x->op, "is_test"))
    scale = given_scale(x, v);
  else if (axis < 0)
    scale = moving_scale(x, v);
  else
    scale = largest(x->g, v, ((1u << v->rank) - 1) & ~(1u << axis));
  if (!scale) return false;
  if (!put_scale(x, scale, axis < 0 || axis >= v->rank ? 1 : ops_prod(scale->dims, 0, scale->rank)))
    return false;
  if (op_bool(x->op, "only_observer")) return x_out(x, "Y", v);
  return put_levels(x, "Y", &q, v, scale, false);
}

bool x_dequantize_linear(Expand *x) {
  Quant q;
  Node *v = x_in(x, "X");
  if (!v || !quant_read(x, &q)) return false;
  Node *scale = given_scale(x, v);
  if (!scale) return false;
  v = g_cast(x->g, v, scale->dtype);
  if (op_bool(x->op, "only_observer")) return x_out(x, "Y", v);
  return x_out(x, "Y", ops_div(x->g, ops_mul(x->g, v, scale), g_const(x->g, scale->dtype, q.most)));
}
