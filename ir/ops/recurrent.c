/* rnn: stacked, possibly bidirectional layers of LSTM, GRU or simple recurrent cells over a sequence
 * [T, N, I], unrolled in time.
 *
 * The share of the input in the gates is one product for all steps; a step adds that of the previous
 * state:
 *   simple  h = act(xg + hg)
 *   LSTM    i, f, c~, o = xg + hg;  c = sigm(f) c + sigm(i) tanh(c~);  h = sigm(o) tanh(c)
 *   GRU     r = sigm(xg + hg), z likewise;  c~ = tanh(xg + r hg);  h = z h + (1 - z) c~
 * with xg = x W_ih' + b_ih and hg = h W_hh' + b_hh. Behind the end of a sequence (SequenceLength) the
 * state stays as it is and the output is 0.
 *
 * The gradient goes back step by step (derived for one step at a time), collects the gradients of xg
 * and hg, and makes those of weights and input from all steps at once. */
#include "ops.h"

#include <string.h>

enum { MAX_STEPS = 20000 }; /* of all layers and directions together: each becomes kernels */

typedef enum CellKind { CELL_LSTM, CELL_GRU, CELL_TANH, CELL_RELU } CellKind;

static const char *const cell_words[] = {"LSTM", "GRU", "RNN_TANH", "RNN_RELU"};
static const int cell_gates[] = {4, 3, 1, 1};

typedef struct Rnn {
  CellKind kind;
  int layers, dirs;
  int64_t t, n, hidden; /* -1: unknown */
  Node *x, *length;     /* length [N] or NULL */
  Node *drop;  /* what stays between layers, [layers - 1, T, N, dirs*hidden], bool; NULL: all */
  double keep; /* its probability */
} Rnn;

/* One layer in one direction. */
typedef struct Lane {
  Node *x, *w_ih, *w_hh, *b_ih, *b_hh; /* biases may be NULL */
  Node *h0, *c0;                       /* c0: LSTM */
  bool reverse;
  Node *out, *h, *c;                  /* results: [T, N, H], [N, H] */
  Node *xg, **hg, **h_prev, **c_prev; /* of every step, by time */
} Lane;

typedef struct Step {
  Node *xg, *hg, *h, *c;
} Step;

/* ---- one step ---- */

static Node *gate(Graph *g, Node *v, int i, int64_t hidden) {
  return ops_cut(g, v, 1, i * hidden, 1, hidden);
}

static Node *both(Graph *g, const Step *s, int i, int64_t hidden) {
  return g_map2(g, P_ADD, gate(g, s->xg, i, hidden), gate(g, s->hg, i, hidden));
}

static void step_lstm(Graph *g, const Step *s, int64_t hidden, Node **h, Node **c) {
  Node *in = ops_sigmoid(g, both(g, s, 0, hidden)), *keep = ops_sigmoid(g, both(g, s, 1, hidden));
  Node *fresh = g_map1(g, P_TANH, both(g, s, 2, hidden)),
       *out = ops_sigmoid(g, both(g, s, 3, hidden));
  *c = g_map2(g, P_ADD, g_map2(g, P_MUL, keep, s->c), g_map2(g, P_MUL, in, fresh));
  *h = g_map2(g, P_MUL, out, g_map1(g, P_TANH, *c));
}

static void step_gru(Graph *g, const Step *s, int64_t hidden, Node **h) {
  Node *r = ops_sigmoid(g, both(g, s, 0, hidden)), *z = ops_sigmoid(g, both(g, s, 1, hidden));
  Node *from_h = g_map2(g, P_MUL, r, gate(g, s->hg, 2, hidden));
  Node *fresh = g_map1(g, P_TANH, g_map2(g, P_ADD, gate(g, s->xg, 2, hidden), from_h));
  *h = g_map2(g, P_ADD, fresh, g_map2(g, P_MUL, z, g_map2(g, P_SUB, s->h, fresh)));
}

/* The next state; *out is the output. */
static void step(Graph *g, const Rnn *r, const Step *s, int64_t t, Node **out, Node **h, Node **c) {
  *c = NULL;
  if (r->kind == CELL_LSTM)
    step_lstm(g, s, r->hidden, h, c);
  else if (r->kind == CELL_GRU)
    step_gru(g, s, r->hidden, h);
  else if (r->kind == CELL_TANH)
    *h = g_map1(g, P_TANH, both(g, s, 0, r->hidden));
  else
    *h = g_map2c(g, P_MAX, both(g, s, 0, r->hidden), 0);
  *out = *h;
  if (!r->length || !*h) return;
  Node *now = g_full_int(g, r->length->dtype, t, 1, &r->n);
  Node *live = ops_along(g, g_map2(g, P_LT, now, r->length), 2, 0);
  *out = g_select(g, live, *h, g_const(g, (*h)->dtype, 0));
  *h = g_select(g, live, *h, s->h);
  if (*c) *c = g_select(g, live, *c, s->c);
}

/* ---- a lane ---- */

/* [T, N, K] as [T*N, K], times w' or w, plus b. */
static Node *product(Graph *g, Node *v, Node *w, bool transposed, Node *b) {
  if (!v || !w) return NULL;
  Node *flat = g_reshape(g, v, 2, (int64_t[]){v->dims[0] * v->dims[1], v->dims[2]});
  Node *y = g_matmul(g, flat, w, false, transposed);
  if (b) y = g_map2(g, P_ADD, y, b);
  return y ? g_reshape(g, y, 3, (int64_t[]){v->dims[0], v->dims[1], y->dims[1]}) : NULL;
}

static Node *at_time(Graph *g, Node *v, int64_t t) {
  return v ? g_reshape(g, ops_cut(g, v, 0, t, 1, 1), 2, v->dims + 1) : NULL;
}

static Node *over_time(Graph *g, int64_t n, Node **v) {
  Node **row = arena_array(g->arena, Node *, n);
  for (int64_t i = 0; i < n; i++) {
    if (!v[i]) return NULL;
    row[i] = g_reshape(g, v[i], 3, (int64_t[]){1, v[i]->dims[0], v[i]->dims[1]});
  }
  return g_concat(g, (int)n, row, 0);
}

static bool lane_run(Graph *g, const Rnn *r, Lane *l) {
  Node **out = arena_array(g->arena, Node *, r->t);
  l->hg = arena_array(g->arena, Node *, r->t);
  l->h_prev = arena_array(g->arena, Node *, r->t);
  l->c_prev = arena_array(g->arena, Node *, r->t);
  l->xg = product(g, l->x, l->w_ih, true, l->b_ih);
  l->h = l->h0, l->c = l->c0;
  for (int64_t i = 0; i < r->t; i++) {
    int64_t t = l->reverse ? r->t - 1 - i : i;
    l->h_prev[t] = l->h, l->c_prev[t] = l->c;
    l->hg[t] = g_matmul(g, l->h, l->w_hh, false, true);
    if (l->b_hh) l->hg[t] = g_map2(g, P_ADD, l->hg[t], l->b_hh);
    Step s = {at_time(g, l->xg, t), l->hg[t], l->h, l->c};
    step(g, r, &s, t, &out[t], &l->h, &l->c);
  }
  l->out = over_time(g, r->t, out);
  return l->out && l->h;
}

/* The gradients that leave a lane: of its input, weights, biases and first state. */
typedef struct LaneGrad {
  Node *x, *w_ih, *w_hh, *b_ih, *b_hh, *h0, *c0;
} LaneGrad;

static Node *plus(Graph *g, Node *a, Node *b) {
  return a && b ? g_map2(g, P_ADD, a, b) : a ? a : b;
}

/* v' w, both [T, N, *], over all steps. */
static Node *summed_product(Graph *g, Node *v, Node *w) {
  if (!v || !w) return NULL;
  int64_t rows = v->dims[0] * v->dims[1];
  return g_matmul(g, g_reshape(g, v, 2, (int64_t[]){rows, v->dims[2]}),
                  g_reshape(g, w, 2, (int64_t[]){rows, w->dims[2]}), true, false);
}

/* Gradients gy of out, gh and gc of the last state (NULL: none). */
static bool lane_back(Graph *g, const Rnn *r, const Lane *l, Node *gy, Node *gh, Node *gc,
                      LaneGrad *to) {
  Node **gx = arena_array(g->arena, Node *, r->t), **gg = arena_array(g->arena, Node *, r->t);
  for (int64_t i = 0; i < r->t; i++) {
    int64_t t = l->reverse ? i : r->t - 1 - i;
    Node *last[4] = {g_alias(g, at_time(g, l->xg, t)), g_alias(g, l->hg[t]),
                     g_alias(g, l->h_prev[t]), l->c_prev[t] ? g_alias(g, l->c_prev[t]) : NULL};
    Step s = {last[0], last[1], last[2], last[3]};
    Node *y[3], *back[] = {at_time(g, gy, t), gh, gc}, *got[4];
    step(g, r, &s, t, &y[0], &y[1], &y[2]);
    int n = y[2] ? 3 : 2;
    if (err_any() || !derive(g, n, y, back, n + 1, last, got)) return false;
    Node *zero = ops_zeros(g, l->hg[t]);
    gx[t] = got[0] ? got[0] : zero;
    gg[t] = got[1] ? got[1] : zero;
    gh = plus(g, got[2], g_matmul(g, gg[t], l->w_hh, false, false));
    gc = n == 3 ? got[3] : NULL;
  }
  Node *all_x = over_time(g, r->t, gx), *all_h = over_time(g, r->t, gg);
  to->h0 = gh, to->c0 = gc;
  to->x = product(g, all_x, l->w_ih, false, NULL);
  to->w_ih = summed_product(g, all_x, l->x);
  to->w_hh = summed_product(g, all_h, over_time(g, r->t, l->h_prev));
  to->b_ih = g_reduce(g, P_RSUM, all_x, 3, false);
  to->b_hh = g_reduce(g, P_RSUM, all_h, 3, false);
  return to->x && to->w_ih && to->w_hh && to->b_ih && to->b_hh;
}

/* ---- the operator ---- */

static bool rnn_state(Expand *x, const Rnn *r) {
  int want = r->kind == CELL_LSTM ? 2 : 1;
  if (x_n_in(x, "PreState") != want) {
    err_set(E_OPR_003, "PreState has %d tensors, mode %s needs %d", x_n_in(x, "PreState"),
            cell_words[r->kind], want);
    return false;
  }
  for (int i = 0; i < want; i++) {
    Node *s = x_in_at(x, "PreState", i);
    if (!ops_rank(s, "PreState", 3, 3) ||
        !ops_same("layers and directions, and dimension 0 of PreState", r->layers * r->dirs,
                  s->dims[0]) ||
        !ops_same("batch sizes of Input and PreState", r->n, s->dims[1]) ||
        !ops_same("hidden_size and the last dimension of PreState", r->hidden, s->dims[2]))
      return false;
  }
  return true;
}

static bool rnn_weights(Expand *x, const Rnn *r) {
  int lanes = r->layers * r->dirs, n = x_n_in(x, "WeightList");
  if (n != 4 * lanes && n != 2 * lanes) {
    err_set(E_OPR_003, "WeightList has %d tensors, %d layers in %d directions need %d", n,
            r->layers, r->dirs, 4 * lanes);
    return false;
  }
  int64_t rows = cell_gates[r->kind] * r->hidden, from = r->x->dims[2];
  for (int i = 0; i < n; i++) {
    Node *w = x_in_at(x, "WeightList", i);
    int64_t cols = i % 2 ? r->hidden : i < 2 * r->dirs ? from : r->hidden * r->dirs;
    bool bias = i >= 2 * lanes;
    if (!ops_rank(w, "WeightList", bias ? 1 : 2, bias ? 1 : 2) ||
        !ops_same("rows of a weight and gates times hidden_size", w->dims[0], rows) ||
        (!bias && !ops_same("columns of a weight and what it multiplies", w->dims[1], cols)))
      return false;
  }
  return true;
}

static bool rnn_read(Expand *x, Rnn *r) {
  memset(r, 0, sizeof *r);
  int kind = op_word(x->op, "mode", 4, cell_words);
  r->x = x_in(x, "Input");
  int64_t layers = op_int(x->op, "num_layers");
  r->hidden = op_int(x->op, "hidden_size");
  if (kind < 0 || !ops_rank(r->x, "Input", 3, 3) || !ops_float(r->x, "Input")) return false;
  if (layers < 1 || layers > 1024 || r->hidden < 1 || r->hidden > INT32_MAX / 8) {
    err_set(E_OPR_003, "num_layers is %lld, hidden_size %lld", (long long)layers,
            (long long)r->hidden);
    err_help("Both must be positive.");
    return false;
  }
  r->kind = (CellKind)kind;
  r->layers = (int)layers;
  r->dirs = op_bool(x->op, "is_bidirec") ? 2 : 1;
  r->t = r->x->dims[0], r->n = r->x->dims[1];
  if (r->t > MAX_STEPS / (r->layers * r->dirs) || r->t == 0) {
    err_set(E_OPR_004, "a sequence of %lld steps", (long long)r->t);
    err_help("1 to %d steps of all layers and directions together are possible.", MAX_STEPS);
    return false;
  }
  if (x_n_in(x, "SequenceLength") > 0) {
    r->length = x_in(x, "SequenceLength");
    if (!ops_index(r->length, "SequenceLength") || !ops_rank(r->length, "SequenceLength", 1, 1) ||
        !ops_same("lengths and sequences", r->length->dims[0], r->n))
      return false;
  }
  return rnn_state(x, r) && rnn_weights(x, r);
}

static bool rnn_drops(Expand *x, Rnn *r) {
  double p = op_float(x->op, "dropout_prob");
  r->keep = 1 - p;
  if (p >= 0 && p <= 1) return p > 0 && r->layers > 1 && !op_bool(x->op, "is_test");
  err_set(E_OPR_003, "dropout_prob is %g", p);
  err_help("A probability is a number from 0 to 1.");
  return false;
}

static Node *prestate(Expand *x, const Rnn *r, int which, int lane) {
  if (which >= x_n_in(x, "PreState")) return NULL;
  (void)r;
  return at_time(x->g, x_in_at(x, "PreState", which), lane);
}

static Lane rnn_lane(Expand *x, const Rnn *r, int layer, int dir, Node *in) {
  int lane = layer * r->dirs + dir, lanes = r->layers * r->dirs;
  bool biased = x_n_in(x, "WeightList") == 4 * lanes;
  return (Lane){.x = in,
                .w_ih = x_in_at(x, "WeightList", 2 * lane),
                .w_hh = x_in_at(x, "WeightList", 2 * lane + 1),
                .b_ih = biased ? x_in_at(x, "WeightList", 2 * (lanes + lane)) : NULL,
                .b_hh = biased ? x_in_at(x, "WeightList", 2 * (lanes + lane) + 1) : NULL,
                .h0 = prestate(x, r, 0, lane),
                .c0 = prestate(x, r, 1, lane),
                .reverse = dir == 1};
}

static Node *layer_mask(Graph *g, const Rnn *r, int layer) {
  Node *m = ops_cut(g, r->drop, 0, layer, 1, 1);
  return m ? g_reshape(g, m, 3, m->dims + 1) : NULL;
}

static Node *rnn_dropped(Graph *g, const Rnn *r, int layer, Node *v) {
  if (!r->drop || !v) return v;
  double scale = r->keep > 0 ? 1 / r->keep : 0;
  return g_select(g, layer_mask(g, r, layer), g_map2c(g, P_MUL, v, scale), g_const(g, v->dtype, 0));
}

/* All lanes, in the order of State; the result of the last layer. */
static Node *rnn_run(Expand *x, const Rnn *r, Lane *lanes) {
  Graph *g = x->g;
  Node *v = r->x;
  for (int layer = 0; layer < r->layers; layer++) {
    Lane *l = &lanes[layer * r->dirs];
    if (layer > 0) v = rnn_dropped(g, r, layer - 1, v);
    for (int d = 0; d < r->dirs; d++) {
      l[d] = rnn_lane(x, r, layer, d, v);
      if (!lane_run(g, r, &l[d])) return NULL;
    }
    v = r->dirs == 1 ? l[0].out : g_concat(g, 2, (Node *[]){l[0].out, l[1].out}, 2);
  }
  return v;
}

static bool rnn_unknown(Expand *x, const Rnn *r) {
  DType t = r->x->dtype;
  for (int i = 0; i < x_n_out(x, "State"); i++)
    if (!x_out_at(x, "State", i,
                  ops_blank(x->g, t, 3, (int64_t[]){r->layers * r->dirs, r->n, r->hidden})))
      return false;
  return x_out(x, "Out", ops_blank(x->g, t, 3, (int64_t[]){r->t, r->n, r->dirs * r->hidden}));
}

static bool rnn_rest(Expand *x, const Rnn *r) {
  int64_t none = 0;
  Node *mask = r->drop ? g_cast(x->g, r->drop, DT_UINT8) : ops_blank(x->g, DT_UINT8, 1, &none);
  return x_out(x, "DropoutState", mask) &&
         x_out(x, "Reserve", ops_blank(x->g, r->x->dtype, 1, &none));
}

bool x_rnn(Expand *x) {
  Graph *g = x->g;
  Rnn r;
  if (!rnn_read(x, &r)) return false;
  bool drops = rnn_drops(x, &r);
  if (err_any()) return false;
  if (r.t < 0 || r.n < 0 || r.x->dims[2] < 0) return rnn_unknown(x, &r) && rnn_rest(x, &r);
  if (drops) {
    int64_t seed = op_int(x->op, "seed"), dims[] = {r.layers - 1, r.t, r.n, r.dirs * r.hidden};
    Node *u = g_random(g, DT_FLOAT32, 4, dims, seed, x_stream(x, 0), seed != 0);
    r.drop = u ? g_map2(g, P_LE, g_const(g, DT_FLOAT32, r.keep > 0 ? 1 - r.keep : 2), u) : NULL;
  }
  Lane *lanes = arena_array(g->arena, Lane, r.layers * r.dirs);
  Node *out = rnn_run(x, &r, lanes);
  if (!out) return false;
  for (int i = 0; i < x_n_out(x, "State"); i++) {
    Node **last = arena_array(g->arena, Node *, r.layers * r.dirs);
    for (int k = 0; k < r.layers * r.dirs; k++) last[k] = i == 0 ? lanes[k].h : lanes[k].c;
    if (!x_out_at(x, "State", i, over_time(g, r.layers * r.dirs, last))) return false;
  }
  return x_out(x, "Out", out) && rnn_rest(x, &r);
}

/* ---- its gradient ---- */

static Node *state_grad(Expand *x, int which, int lane) {
  if (which >= x_n_in(x, "State@GRAD")) return NULL;
  Node *s = x_in_at(x, "State@GRAD", which);
  return s ? at_time(x->g, s, lane) : NULL;
}

static bool put_weights(Expand *x, int lane, int lanes, const LaneGrad *d) {
  Node *const v[] = {d->w_ih, d->w_hh, d->b_ih, d->b_hh};
  for (int i = 0; i < 4; i++) {
    int at = i < 2 ? 2 * lane + i : 2 * (lanes + lane) + i - 2;
    if (at < x_n_out(x, "WeightList@GRAD") && !x_out_at(x, "WeightList@GRAD", at, v[i]))
      return false;
  }
  return true;
}

/* The gradient of PreState[which]; 0 for lanes that do not depend on it. */
static bool put_state(Expand *x, int which, int lanes, const LaneGrad *d, const Lane *l) {
  if (which >= x_n_out(x, "PreState@GRAD")) return true;
  Node **v = arena_array(x->g->arena, Node *, lanes);
  for (int k = 0; k < lanes; k++) {
    v[k] = which == 0 ? d[k].h0 : d[k].c0;
    if (!v[k]) v[k] = ops_zeros(x->g, l[k].h0);
  }
  return x_out_at(x, "PreState@GRAD", which, over_time(x->g, lanes, v));
}

bool x_rnn_grad(Expand *x) {
  Graph *g = x->g;
  Rnn r;
  if (!rnn_read(x, &r)) return false;
  int n = r.layers * r.dirs;
  bool drops = rnn_drops(x, &r);
  if (err_any()) return false;
  if (drops) r.drop = g_cast(g, x_in(x, "DropoutState"), DT_BOOL);
  Lane *lanes = arena_array(g->arena, Lane, n);
  LaneGrad *d = arena_array(g->arena, LaneGrad, n);
  if (r.t < 0 || r.n < 0 || r.x->dims[2] < 0) {
    err_set(E_OPR_004, "the shapes are not known");
    return false;
  }
  if (!rnn_run(x, &r, lanes)) return false;
  Node *gy = x_n_in(x, "Out@GRAD") > 0 ? x_in(x, "Out@GRAD") : NULL;
  for (int layer = r.layers - 1; layer >= 0; layer--) {
    Node *down = NULL;
    for (int dir = 0; dir < r.dirs; dir++) {
      int k = layer * r.dirs + dir;
      Node *part = gy && r.dirs == 2 ? ops_cut(g, gy, 2, dir * r.hidden, 1, r.hidden) : gy;
      if (!lane_back(g, &r, &lanes[k], part, state_grad(x, 0, k), state_grad(x, 1, k), &d[k]) ||
          !put_weights(x, k, n, &d[k]))
        return false;
      down = plus(g, down, d[k].x);
    }
    gy = layer > 0 ? rnn_dropped(g, &r, layer - 1, down) : down;
  }
  return x_out(x, "Input@GRAD", gy) && put_state(x, 0, n, d, lanes) && put_state(x, 1, n, d, lanes);
}
