/* lstm and gru of PaddlePaddle 1.x: a recurrent layer over the sequences of an input whose rows hold the input's share of
 * the gates, [T, gates * D]; the offsets (LoD) are known where the program is compiled. And one step: gru_unit, lstm_unit.
 *
 * Rows are gathered in batches: the first rows of all sequences, then the second rows, ..., the longest sequence
 * foremost, so that the sequences that still go on at a step are the first rows of the previous state; nothing is padded
 * and nothing masked. A step with state h, c:
 *   lstm  a, i, f, o = x + h W + b;  a = cand(a);  i = gate(i + p_i c);  f = gate(f + p_f c)
 *         c' = a i + c f;  o = gate(o + p_o c');  h' = o cell(c')          (p: peepholes, behind the biases)
 *   gru   u, r = gate(x_ur + h W_ur);  a = act(x_a + (r h) W_a);  h' = (1 - u) h + u a, origin_mode u h + (1 - u) a
 * gru's Weight holds W_ur [D, 2D] and behind it W_a [D, D]. */
#include "ops.h"

enum { MAX_STEPS = 20000 }; /* each becomes kernels */

typedef struct Batches {
  int64_t steps, n;     /* n: sequences that are not empty */
  int64_t *first;       /* [steps + 1]: where a step's rows begin */
  int64_t *rows, *back; /* [T]: the row at each place and the place of each row */
  int64_t *order;       /* [n]: sequences, the longest foremost */
} Batches;

typedef struct Layer {
  Node *x;           /* [T, gates*D] in batches, with the bias */
  Node *w, *w_cand;  /* w_cand: gru */
  Node *bias, *peep; /* [1, gates*D], [1, 3D] or NULL */
  int64_t d;
  int gate, cell, cand; /* activations */
  bool origin;
} Layer;

/* What a step leaves, each [rows, D]. */
typedef struct Step {
  Node *h, *c, *gates, *aside; /* c: NULL for gru; aside: cell(c'), of gru r h */
} Step;

static const char *const act_words[] = {"identity", "sigmoid", "tanh", "relu"};

/* The sigmoid's argument is cut off where PaddlePaddle cuts it: a gate is at most 1 - 2.3e-6. */
static Node *activate(Graph *g, int kind, Node *v) {
  switch (kind) {
  case 1: return ops_sigmoid(g, g_map2c(g, P_MIN, g_map2c(g, P_MAX, v, -40), 13));
  case 2: return g_map1(g, P_TANH, v);
  case 3: return g_map2c(g, P_MAX, v, 0);
  default: return v;
  }
}

static Node *part(Graph *g, Node *v, int64_t i, int64_t n, int64_t d) {
  return ops_cut(g, v, 1, i * d, 1, n * d);
}

static Node *first_rows(Graph *g, Node *v, int64_t n) {
  return !v || v->dims[0] == n ? v : ops_cut(g, v, 0, 0, 1, n);
}

/* ---- batches ---- */

static int64_t length(const Lod *l, int64_t i) { return l->offset[i + 1] - l->offset[i]; }

static bool sort_sequences(Graph *g, const Lod *l, Batches *b) {
  for (int64_t i = 0; i < l->n; i++)
    if (length(l, i) > b->steps) b->steps = length(l, i);
  if (b->steps > MAX_STEPS) {
    err_set(E_OPR_004, "a sequence of %lld steps", (long long)b->steps);
    err_help("At most %d are possible.", MAX_STEPS);
    return false;
  }
  /* of[k]: sequences of length k; then the place of the next one of them */
  int64_t *of = arena_array(g->arena, int64_t, b->steps + 2);
  for (int64_t i = 0; i < l->n; i++) of[length(l, i)]++;
  for (int64_t k = b->steps, sum = 0; k >= 0; k--) {
    int64_t here = of[k];
    of[k] = sum;
    sum += here;
  }
  b->n = of[0];
  b->order = arena_array(g->arena, int64_t, l->n + 1);
  for (int64_t i = 0; i < l->n; i++) b->order[of[length(l, i)]++] = i;
  return true;
}

static bool batches_of(Graph *g, const Lod *l, bool reverse, Batches *b) {
  int64_t t = l->offset[l->n], at = 0;
  *b = (Batches){0};
  if (!sort_sequences(g, l, b)) return false;
  b->first = arena_array(g->arena, int64_t, b->steps + 1);
  b->rows = arena_array(g->arena, int64_t, t + 1);
  b->back = arena_array(g->arena, int64_t, t + 1);
  for (int64_t k = 0; k < b->steps; k++) {
    b->first[k] = at;
    for (int64_t i = 0; i < b->n && length(l, b->order[i]) > k; i++, at++) {
      int64_t s = b->order[i], row = reverse ? l->offset[s + 1] - 1 - k : l->offset[s] + k;
      b->rows[at] = row;
      b->back[row] = at;
    }
  }
  b->first[b->steps] = at;
  return true;
}

static Node *take(Graph *g, Node *v, int64_t n, const int64_t *at) {
  return v ? ops_take(g, v, g_data(g, DT_INT64, 1, &n, at, "rows"), 0) : NULL;
}

/* ---- a step; h and c are NULL where the state is 0 ---- */

static Node *peeped(Graph *g, const Layer *l, int i, Node *v, Node *c) {
  return l->peep && c ? ops_add(g, v, ops_mul(g, c, part(g, l->peep, i, 1, l->d))) : v;
}

static Step lstm_step(Graph *g, const Layer *l, Node *x, Node *h, Node *c) {
  int64_t d = l->d;
  Node *sum = h ? ops_add(g, x, g_matmul(g, h, l->w, false, false)) : x;
  Node *a = activate(g, l->cand, part(g, sum, 0, 1, d));
  Node *in = activate(g, l->gate, peeped(g, l, 0, part(g, sum, 1, 1, d), c));
  Node *keep = activate(g, l->gate, peeped(g, l, 1, part(g, sum, 2, 1, d), c));
  Node *next = ops_mul(g, a, in);
  if (c) next = ops_add(g, next, ops_mul(g, c, keep));
  Node *out = activate(g, l->gate, peeped(g, l, 2, part(g, sum, 3, 1, d), next));
  Node *seen = activate(g, l->cell, next);
  Node *gates[] = {a, in, keep, out};
  return (Step){ops_mul(g, out, seen), next, out ? g_concat(g, 4, gates, 1) : NULL, seen};
}

static Step gru_step(Graph *g, const Layer *l, Node *x, Node *h, Node *c) {
  int64_t d = l->d;
  (void)c;
  Node *both = part(g, x, 0, 2, d), *a = part(g, x, 2, 1, d), *kept = NULL;
  if (h) both = ops_add(g, both, g_matmul(g, h, l->w, false, false));
  both = activate(g, l->gate, both);
  Node *u = part(g, both, 0, 1, d);
  if (h) {
    kept = ops_mul(g, part(g, both, 1, 1, d), h);
    a = ops_add(g, a, g_matmul(g, kept, l->w_cand, false, false));
  }
  a = activate(g, l->cand, a);
  Node *share = l->origin ? ops_sub(g, g_const(g, l->x->dtype, 1), u) : u, *next;
  next = h ? ops_add(g, h, ops_mul(g, share, ops_sub(g, a, h))) : ops_mul(g, share, a);
  Node *gates[] = {both, a};
  return (Step){next, NULL, a ? g_concat(g, 2, gates, 1) : NULL, kept ? kept : ops_zeros(g, a)};
}

typedef Step StepFn(Graph *g, const Layer *l, Node *x, Node *h, Node *c);

/* ---- all steps ---- */

/* Of all steps, in batches, [T, *]. */
typedef struct Run {
  Node *h, *c, *gates, *aside;
} Run;

static Node *joined(Graph *g, int64_t n, Node **v) {
  for (int64_t i = 0; i < n; i++)
    if (!v[i]) return NULL;
  return g_concat(g, (int)n, v, 0);
}

static bool run_steps(Expand *x, const Layer *l, const Batches *b, StepFn *step, Run *r) {
  Graph *g = x->g;
  Node **v[4];
  Step s = {x_n_in(x, "H0") > 0 ? take(g, x_in(x, "H0"), b->n, b->order) : NULL,
            x_n_in(x, "C0") > 0 ? take(g, x_in(x, "C0"), b->n, b->order) : NULL, NULL, NULL};
  for (int i = 0; i < 4; i++) v[i] = arena_array(g->arena, Node *, b->steps);
  for (int64_t k = 0; k < b->steps && !err_any(); k++) {
    int64_t rows = b->first[k + 1] - b->first[k];
    Node *now = ops_cut(g, l->x, 0, b->first[k], 1, rows);
    s = step(g, l, now, first_rows(g, s.h, rows), first_rows(g, s.c, rows));
    v[0][k] = s.h, v[1][k] = s.c, v[2][k] = s.gates, v[3][k] = s.aside;
  }
  if (err_any()) return false;
  *r = (Run){joined(g, b->steps, v[0]), joined(g, b->steps, v[1]), joined(g, b->steps, v[2]),
             joined(g, b->steps, v[3])};
  return true;
}

/* Input, and D from Weight [D, gates * D]. */
static bool read_gates(Expand *x, int gates, Layer *l) {
  l->x = x_in(x, "Input"), l->w = x_in(x, "Weight");
  if (!ops_rank(l->x, "Input", 2, 2) || !ops_float(l->x, "Input") ||
      !ops_rank(l->w, "Weight", 2, 2))
    return false;
  l->d = l->w->dims[0];
  return ops_same("columns of Weight and gates times its rows", l->w->dims[1],
                  l->d < 0 ? -1 : gates * l->d) &&
         ops_same("columns of Input and of Weight", l->x->dims[1], l->w->dims[1]);
}

/* The same and Input's sequences (NULL: unknown, in inference). */
static bool read_layer(Expand *x, int gates, Layer *l, const Lod **lod) {
  if (!read_gates(x, gates, l)) return false;
  *lod = x_lod(x, "Input", 0);
  return *lod || x->g->shapes_only;
}

static bool check_state(Expand *x, const char *slot, const Layer *l, const Lod *lod) {
  if (x_n_in(x, slot) == 0) return true;
  Node *s = x_in(x, slot);
  return ops_rank(s, slot, 2, 2) &&
         (!lod || ops_same("rows of a state and sequences", s->dims[0], lod->n)) &&
         ops_same("columns of a state and rows of Weight", s->dims[1], l->d);
}

static bool put(Expand *x, const char *slot, Node *v, const Batches *b, const Lod *lod) {
  return x_out_lod(x, slot, take(x->g, v, lod->offset[lod->n], b->back), lod);
}

/* No sequences are known, or all are empty: [rows, D], or gates times as many columns. */
static bool blank(Expand *x, const char *slot, const Layer *l, int gates, const Lod *lod) {
  int64_t dims[] = {l->x->dims[0], l->d < 0 ? -1 : gates * l->d};
  return x_out_lod(x, slot, ops_blank(x->g, l->x->dtype, 2, dims), lod);
}

/* ---- the operators ---- */

/* Bias [1, 4D], with peepholes [1, 7D]. */
static bool lstm_bias(Expand *x, Layer *l) {
  bool peepholes = op_bool(x->op, "use_peepholes");
  Node *b = x_in(x, "Bias");
  if (!ops_rank(b, "Bias", 2, 2)) return false;
  if (!ops_same("rows of Bias", b->dims[0], 1) ||
      !ops_same(peepholes ? "columns of Bias and 7 times the rows of Weight (use_peepholes)"
                          : "columns of Bias and 4 times the rows of Weight",
                b->dims[1], l->d < 0 ? -1 : (peepholes ? 7 : 4) * l->d))
    return false;
  if (b->dims[1] < 0 || l->d < 0) return true;
  l->bias = part(x->g, b, 0, 4, l->d);
  if (peepholes) l->peep = part(x->g, b, 4, 3, l->d);
  return l->bias != NULL;
}

bool x_lstm(Expand *x) {
  Graph *g = x->g;
  Layer l = {.gate = op_word(x->op, "gate_activation", 4, act_words),
             .cell = op_word(x->op, "cell_activation", 4, act_words),
             .cand = op_word(x->op, "candidate_activation", 4, act_words)};
  const Lod *lod;
  Batches b;
  Run r;
  if (l.gate < 0 || l.cell < 0 || l.cand < 0 || !read_layer(x, 4, &l, &lod) || !lstm_bias(x, &l) ||
      !check_state(x, "H0", &l, lod) || !check_state(x, "C0", &l, lod))
    return false;
  if (!lod || lod->offset[lod->n] == 0)
    return blank(x, "Hidden", &l, 1, lod) && blank(x, "Cell", &l, 1, lod) &&
           blank(x, "BatchGate", &l, 4, lod) && blank(x, "BatchCellPreAct", &l, 1, lod);
  if (!batches_of(g, lod, op_bool(x->op, "is_reverse"), &b)) return false;
  l.x = ops_add(g, take(g, l.x, l.x->dims[0], b.rows), l.bias);
  return l.x && run_steps(x, &l, &b, lstm_step, &r) && put(x, "Hidden", r.h, &b, lod) &&
         put(x, "Cell", r.c, &b, lod) && x_out(x, "BatchGate", r.gates) &&
         x_out(x, "BatchCellPreAct", r.aside);
}

/* Weight's two matrices, and the bias (may be absent), [1, 3D]. */
static bool gru_weights(Expand *x, Layer *l) {
  Graph *g = x->g;
  int64_t d = l->d, all = 3 * d * d;
  l->bias = x_in(x, "Bias");
  if (x_n_in(x, "Bias") > 0 &&
      (!ops_rank(l->bias, "Bias", 2, 2) || !ops_same("rows of Bias", l->bias->dims[0], 1) ||
       !ops_same("columns of Bias and of Weight", l->bias->dims[1], l->w->dims[1])))
    return false;
  if (d < 0 || l->w->dims[1] < 0) return true;
  Node *flat = g_reshape(g, l->w, 1, &all);
  l->w = g_reshape(g, ops_cut(g, flat, 0, 0, 1, 2 * d * d), 2, (int64_t[]){d, 2 * d});
  l->w_cand = g_reshape(g, ops_cut(g, flat, 0, 2 * d * d, 1, d * d), 2, (int64_t[]){d, d});
  return l->w && l->w_cand;
}

bool x_gru(Expand *x) {
  Graph *g = x->g;
  Layer l = {.gate = op_word(x->op, "gate_activation", 4, act_words),
             .cand = op_word(x->op, "activation", 4, act_words),
             .origin = op_bool(x->op, "origin_mode")};
  const Lod *lod;
  Batches b;
  Run r;
  if (l.gate < 0 || l.cand < 0 || !read_layer(x, 3, &l, &lod) || !gru_weights(x, &l) ||
      !check_state(x, "H0", &l, lod))
    return false;
  if (!lod || lod->offset[lod->n] == 0)
    return blank(x, "Hidden", &l, 1, lod) && blank(x, "BatchGate", &l, 3, lod) &&
           blank(x, "BatchResetHiddenPrev", &l, 1, lod) && blank(x, "BatchHidden", &l, 1, lod);
  if (!batches_of(g, lod, op_bool(x->op, "is_reverse"), &b)) return false;
  l.x = take(g, l.x, l.x->dims[0], b.rows);
  if (l.bias) l.x = ops_add(g, l.x, l.bias);
  return l.x && run_steps(x, &l, &b, gru_step, &r) && put(x, "Hidden", r.h, &b, lod) &&
         x_out(x, "BatchGate", r.gates) && x_out(x, "BatchResetHiddenPrev", r.aside) &&
         x_out(x, "BatchHidden", r.h);
}

bool x_gru_unit(Expand *x) {
  Layer l = {.origin = op_bool(x->op, "origin_mode")};
  int64_t gate = op_int(x->op, "gate_activation"), cand = op_int(x->op, "activation");
  Node *h = x_in(x, "HiddenPrev");
  if (gate < 0 || gate > 3 || cand < 0 || cand > 3) {
    err_set(E_OPR_003, "gate_activation is %lld, activation %lld", (long long)gate,
            (long long)cand);
    err_help("0 is identity, 1 sigmoid, 2 tanh, 3 relu.");
    return false;
  }
  l.gate = (int)gate, l.cand = (int)cand;
  if (!read_gates(x, 3, &l) || !gru_weights(x, &l) || !ops_rank(h, "HiddenPrev", 2, 2) ||
      !ops_same("rows of Input and HiddenPrev", l.x->dims[0], h->dims[0]) ||
      !ops_same("columns of HiddenPrev and rows of Weight", h->dims[1], l.d))
    return false;
  if (!ops_known(l.x) || !ops_known(h))
    return blank(x, "Gate", &l, 3, NULL) && blank(x, "ResetHiddenPrev", &l, 1, NULL) &&
           blank(x, "Hidden", &l, 1, NULL);
  if (l.bias) l.x = ops_add(x->g, l.x, l.bias);
  if (!l.x) return false;
  Step s = gru_step(x->g, &l, l.x, h, NULL);
  return x_out(x, "Gate", s.gates) && x_out(x, "ResetHiddenPrev", s.aside) &&
         x_out(x, "Hidden", s.h);
}

bool x_lstm_unit(Expand *x) {
  Graph *g = x->g;
  Node *v = x_in(x, "X"), *c = x_in(x, "C_prev");
  if (!ops_rank(v, "X", 2, 2) || !ops_float(v, "X") || !ops_rank(c, "C_prev", 2, 2) ||
      !ops_same("rows of X and C_prev", v->dims[0], c->dims[0]) ||
      !ops_same("columns of X and 4 times those of C_prev", v->dims[1],
                c->dims[1] < 0 ? -1 : 4 * c->dims[1]))
    return false;
  if (!ops_known(v) || !ops_known(c))
    return x_out(x, "C", ops_blank_like(g, c)) && x_out(x, "H", ops_blank_like(g, c));
  int64_t d = c->dims[1];
  Node *keep = ops_plus(g, part(g, v, 1, 1, d), op_float(x->op, "forget_bias"));
  Node *fresh =
      ops_mul(g, ops_sigmoid(g, part(g, v, 0, 1, d)), g_map1(g, P_TANH, part(g, v, 3, 1, d)));
  Node *next = ops_add(g, ops_mul(g, c, ops_sigmoid(g, keep)), fresh);
  Node *out = ops_sigmoid(g, part(g, v, 2, 1, d));
  return x_out(x, "C", next) && x_out(x, "H", ops_mul(g, out, g_map1(g, P_TANH, next)));
}
