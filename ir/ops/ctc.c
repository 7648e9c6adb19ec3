/* Losses and decoding over label sequences, unrolled over time in logarithms.
 *
 * warpctc: connectionist temporal classification (A. Graves et al., 2006). The labels with blanks around each, 2L + 1
 * symbols, are passed from left to right; a step stays, goes on, or skips a blank between different labels:
 *   alpha_t(s) = log p_t(s) + logsumexp(alpha_{t-1}(s), alpha_{t-1}(s-1), alpha_{t-1}(s-2))
 * The loss is -logsumexp of the last two at the sequence's end; its gradient is derived in the forward pass, as
 * PaddlePaddle's gradient operator has the logits' gradient only. What cannot be reached is NEVER.
 *
 * linear_chain_crf: log Z by the same recursion over tags, minus the score of the given tags. Row 0 of Transition is the
 * score of starting with a tag, row 1 of ending, the rest of going from one to another. crf_decoding
 * takes the best path instead, and goes back along it. */
#include "ops.h"

#include <string.h>

enum { MAX_TIMES = 8192 };
#define NEVER (-1e30)

/* log(e^a + e^b + ...) of n nodes of one shape. */
static Node *log_sum(Graph *g, int n, Node *const *v) {
  Node *most = v[0], *sum = NULL;
  for (int i = 1; i < n; i++) most = g_map2(g, P_MAX, most, v[i]);
  for (int i = 0; i < n; i++) {
    Node *e = most ? g_map1(g, P_EXP, ops_sub(g, v[i], most)) : NULL;
    sum = sum ? ops_add(g, sum, e) : e;
  }
  return sum ? ops_add(g, most, g_map1(g, P_LOG, sum)) : NULL;
}

/* log(sum e^v) over one axis, kept. */
static Node *log_sum_over(Graph *g, Node *v, int axis) {
  Node *most = v ? g_reduce(g, P_RMAX, v, 1u << axis, true) : NULL;
  Node *e = most ? g_map1(g, P_EXP, ops_sub(g, v, most)) : NULL;
  return e ? ops_add(g, most, g_map1(g, P_LOG, g_reduce(g, P_RSUM, e, 1u << axis, true))) : NULL;
}

static Node *int_full(Graph *g, const Node *like, int64_t v) {
  return like ? g_full_int(g, like->dtype, v, 0, NULL) : NULL;
}

/* A vector of n lengths, or NULL where the slot is empty. */
static bool lengths_of(Expand *x, const char *slot, int64_t n, Node **len) {
  *len = NULL;
  if (x_n_in(x, slot) == 0) return true;
  Node *v = x_in(x, slot);
  if (!ops_index(v, slot) || !ops_same("sequences and lengths", n, ops_prod(v->dims, 0, v->rank)))
    return false;
  *len = n < 0 ? NULL : g_reshape(x->g, v, 1, &n);
  return n < 0 || *len;
}

/* ---- warpctc ---- */

typedef struct Ctc {
  int64_t t, n, c, l, s; /* steps, sequences, classes, labels, symbols */
  Node *time, *length;   /* [N] */
  Node *symbol, *skips;  /* [N, S]: classes; may be reached from two before */
} Ctc;

static bool ctc_symbols(Expand *x, Ctc *k, Node *label) {
  Graph *g = x->g;
  int64_t blank = op_int(x->op, "blank"), dims[] = {k->n, k->s};
  Node *at = g_iota(g, label->dtype, 2, (int64_t[]){k->n, k->l}, 1);
  Node *live = g_map2(g, P_LT, at, g_cast(g, ops_along(g, k->length, 2, 0), label->dtype));
  label = g_select(g, live, label, int_full(g, label, blank));
  label = g_check(g, label, 0, k->c, false, 0, E_DAT_002);
  /* symbol 2i + 1 is label i */
  AffDim map[2] = {aff_loop(0), aff_loop(1)};
  map[1].off = -1, map[1].div = 2;
  Node *spread = g_view(g, label, 2, dims, map, -1);
  k->symbol = g_select(g, g_map2c(g, P_LT, spread, 0), int_full(g, label, blank), spread);
  Node *before = g_pad(g, k->symbol, (int64_t[]){0, 2}, (int64_t[]){0, -2}, (double)blank);
  Node *same = g_map2(g, P_EQ, k->symbol, before);
  Node *is_blank = g_map2(g, P_EQ, k->symbol, int_full(g, label, blank));
  Node *either = g_map2(g, P_MAX, same, is_blank);
  k->skips = either ? g_map2c(g, P_EQ, either, 0) : NULL;
  return k->skips != NULL;
}

/* Symbols moved by one or two to the right. */
static Node *earlier(Graph *g, Node *a, int64_t by) {
  return g_pad(g, a, (int64_t[]){0, by}, (int64_t[]){0, -by}, NEVER);
}

/* The loss of each sequence, [N, 1]. */
static Node *ctc_loss(Graph *g, const Ctc *k, Node *logits) {
  int64_t dims[] = {k->n, k->s};
  Node *logp = ops_sub(g, logits, log_sum_over(g, logits, 2)), *alpha = NULL;
  Node *at = g_iota(g, DT_INT64, 2, dims, 1), *never = g_const(g, logits->dtype, NEVER);
  for (int64_t t = 0; t < k->t && !err_any(); t++) {
    Node *row = g_reshape(g, ops_cut(g, logp, 0, t, 1, 1), 2, (int64_t[]){k->n, k->c});
    Node *p = g_gather(g, row, k->symbol, 1);
    if (t == 0) {
      alpha = g_select(g, g_map2c(g, P_LT, at, 2), p, never);
      continue;
    }
    Node *from[] = {alpha, earlier(g, alpha, 1),
                    g_select(g, k->skips, earlier(g, alpha, 2), never)};
    Node *next = g_map2c(g, P_MAX, ops_add(g, p, log_sum(g, 3, from)), NEVER);
    Node *live = g_map2(g, P_LT, int_full(g, k->time, t), ops_along(g, k->time, 2, 0));
    alpha = g_select(g, live, next, alpha);
  }
  Node *end = ops_times(g, g_cast(g, ops_along(g, k->length, 2, 0), DT_INT64), 2);
  Node *hit = g_map2(g, P_MAX, g_map2(g, P_EQ, at, end), g_map2(g, P_EQ, at, ops_plus(g, end, -1)));
  Node *loss = ops_times(g, log_sum_over(g, g_select(g, hit, alpha, never), 1), -1);
  Node *reached = loss ? g_map2c(g, P_LT, loss, -NEVER / 2) : NULL;
  return g_select(g, reached, loss, g_const(g, logits->dtype, 0));
}

bool x_warpctc(Expand *x) {
  Graph *g = x->g;
  Node *logits = x_in(x, "Logits"), *label = x_in(x, "Label"), *gx = NULL;
  Ctc k = {0};
  if (!ops_float(logits, "Logits") || !ops_index(label, "Label")) return false;
  if (x_n_in(x, "LogitsLength") == 0 || x_n_in(x, "LabelLength") == 0) {
    err_set(E_OPR_004, "sequences without LogitsLength and LabelLength");
    err_help("Pad the sequences to [T, N, C] and [N, L], and give their lengths.");
    return false;
  }
  if (!ops_rank(logits, "Logits", 3, 3) || !ops_rank(label, "Label", 2, 2) ||
      !ops_same("sequences of Logits and Label", logits->dims[1], label->dims[0]))
    return false;
  k.t = logits->dims[0], k.n = logits->dims[1], k.c = logits->dims[2];
  k.l = label->dims[1], k.s = 2 * k.l + 1;
  int64_t blank = op_int(x->op, "blank");
  if (k.c >= 0 && (blank < 0 || blank >= k.c))
    return err_set(E_OPR_003, "blank is %lld of %lld classes", (long long)blank, (long long)k.c);
  if (k.t > MAX_TIMES)
    return err_set(E_OPR_004, "a sequence of %lld steps, at most %d", (long long)k.t, MAX_TIMES);
  if (!lengths_of(x, "LogitsLength", k.n, &k.time) || !lengths_of(x, "LabelLength", k.n, &k.length))
    return false;
  if (!ops_known(logits) || !ops_known(label) || k.t == 0 || k.n == 0)
    return x_out(x, "Loss", ops_blank(g, logits->dtype, 2, (int64_t[]){k.n, 1})) &&
           x_out(x, "WarpCTCGrad", ops_blank_like(g, logits));
  k.time = g_check(g, k.time, 0, k.t + 1, false, 0, E_DAT_002);
  k.length = g_check(g, k.length, 0, k.l + 1, false, 0, E_DAT_002);
  Node *own = g_alias(g, logits);
  if (!ctc_symbols(x, &k, label)) return false;
  Node *loss = ctc_loss(g, &k, own);
  if (!x_out(x, "Loss", loss)) return false;
  if (!x_wants(x, "WarpCTCGrad")) return true;
  Node *one = g_full(g, logits->dtype, 1, 2, (int64_t[]){k.n, 1});
  return derive(g, 1, &loss, &one, 1, &own, &gx) && x_out(x, "WarpCTCGrad", gx);
}

bool x_warpctc_grad(Expand *x) {
  Graph *g = x->g;
  Node *d = x_in(x, "WarpCTCGrad"), *gy = x_in(x, "Loss@GRAD");
  if (!ops_rank(d, "WarpCTCGrad", 3, 3) || !gy) return false;
  if (!ops_known(d)) return x_out(x, "Logits@GRAD", ops_blank_like(g, d));
  gy = g_reshape(g, gy, 3, (int64_t[]){1, d->dims[1], 1});
  if (op_bool(x->op, "norm_by_times")) {
    Node *t = g_reshape(g, x_in(x, "LogitsLength"), 3, (int64_t[]){1, d->dims[1], 1});
    gy = ops_div(g, gy, g_cast(g, t, d->dtype));
  }
  return x_out(x, "Logits@GRAD", ops_mul(g, d, gy));
}

/* ---- conditional random fields ---- */

typedef struct Crf {
  int64_t n, t, k;             /* sequences, steps, tags */
  Node *emission, *transition; /* [N, T, K], [K + 2, K] */
  Node *start, *end, *step;    /* [1, K], [1, K], [1, K, K] */
  Node *length;                /* [N] */
} Crf;

static bool crf_read(Expand *x, Crf *c) {
  Graph *g = x->g;
  c->emission = x_in(x, "Emission"), c->transition = x_in(x, "Transition");
  if (x_n_in(x, "Length") == 0) {
    err_set(E_OPR_004, "sequences without Length");
    err_help("Pad the sequences to [N, T, K], and give their lengths.");
    return false;
  }
  if (!ops_float(c->emission, "Emission") || !ops_rank(c->emission, "Emission", 3, 3) ||
      !ops_rank(c->transition, "Transition", 2, 2) ||
      !ops_same("tags of Emission and Transition", c->emission->dims[2], c->transition->dims[1]))
    return false;
  c->n = c->emission->dims[0], c->t = c->emission->dims[1], c->k = c->emission->dims[2];
  if (c->t > MAX_TIMES)
    return err_set(E_OPR_004, "a sequence of %lld steps, at most %d", (long long)c->t, MAX_TIMES);
  if (!lengths_of(x, "Length", c->n, &c->length)) return false;
  if (!ops_known(c->emission) || !ops_known(c->transition)) return true;
  if (!ops_same("rows of Transition and tags plus 2", c->transition->dims[0], c->k + 2))
    return false;
  c->start = ops_cut(g, c->transition, 0, 0, 1, 1), c->end = ops_cut(g, c->transition, 0, 1, 1, 1);
  c->step = g_reshape(g, ops_cut(g, c->transition, 0, 2, 1, c->k), 3, (int64_t[]){1, c->k, c->k});
  return c->step != NULL;
}

static Node *crf_live(Graph *g, const Crf *c, int64_t t) {
  return g_map2(g, P_LT, int_full(g, c->length, t), ops_along(g, c->length, 2, 0));
}

static Node *crf_row(Graph *g, const Crf *c, int64_t t) {
  return g_reshape(g, ops_cut(g, c->emission, 1, t, 1, 1), 2, (int64_t[]){c->n, c->k});
}

/* v [N, K] as [N, K, 1] plus the scores of going on. */
static Node *crf_all(Graph *g, const Crf *c, Node *v) {
  return v ? ops_add(g, g_reshape(g, v, 3, (int64_t[]){c->n, c->k, 1}), c->step) : NULL;
}

/* The score of the given tags, [N, 1]. */
static Node *crf_score(Graph *g, const Crf *c, Node *label) {
  int64_t dims[] = {c->n, c->t, c->k};
  label = g_check(g, g_reshape(g, label, 2, dims), 0, c->k, false, 0, E_DAT_002);
  Node *at = g_iota(g, c->length->dtype, 2, dims, 1), *len = ops_along(g, c->length, 2, 0);
  Node *zero = g_const(g, c->emission->dtype, 0);
  Node *own = g_gather(g, c->emission,
                       label ? g_reshape(g, label, 3, (int64_t[]){c->n, c->t, 1}) : NULL, 2);
  own = g_select(g, g_map2(g, P_LT, at, len), own ? g_reshape(g, own, 2, dims) : NULL, zero);
  Node *sum = g_reduce(g, P_RSUM, own, 2, true);
  Node *first = ops_cut(g, label, 1, 0, 1, 1);
  sum = ops_add(g, sum, g_gather(g, g_expand(g, c->start, 2, (int64_t[]){c->n, c->k}), first, 1));
  Node *is_last = g_map2(g, P_EQ, ops_plus(g, at, 1), len);
  Node *last = g_gather(g, g_expand(g, c->end, 2, (int64_t[]){c->n, c->k}), label, 1);
  sum = ops_add(g, sum, g_reduce(g, P_RSUM, g_select(g, is_last, last, zero), 2, true));
  if (c->t < 2) return sum;
  Node *from = ops_cut(g, label, 1, 0, 1, c->t - 1), *to = ops_cut(g, label, 1, 1, 1, c->t - 1);
  Node *pair = ops_add(g, ops_times(g, from, (double)c->k), to);
  int64_t all = c->n * (c->t - 1), flat = c->k * c->k;
  Node *step =
      ops_take(g, g_reshape(g, c->step, 1, &flat), pair ? g_reshape(g, pair, 1, &all) : NULL, 0);
  step = g_reshape(g, step, 2, (int64_t[]){c->n, c->t - 1});
  Node *live = g_map2(g, P_LT, ops_plus(g, ops_cut(g, at, 1, 0, 1, c->t - 1), 1), len);
  return ops_add(g, sum, g_reduce(g, P_RSUM, g_select(g, live, step, zero), 2, true));
}

bool x_linear_chain_crf(Expand *x) {
  Graph *g = x->g;
  Crf c = {0};
  Node *label = x_in(x, "Label");
  if (!crf_read(x, &c) || !ops_index(label, "Label")) return false;
  DType t = c.emission->dtype;
  if (!x_out(x, "EmissionExps",
             g_map1(g, P_EXP, ops_sub(g, c.emission, g_reduce(g, P_RMAX, c.emission, 4, true)))) ||
      !x_out(x, "TransitionExps", g_map1(g, P_EXP, c.transition)))
    return false;
  if (!c.step || c.t == 0)
    return x_out(x, "LogLikelihood", ops_blank(g, t, 2, (int64_t[]){c.n, 1})) &&
           x_out(x, "Alpha", ops_blank_like(g, c.emission));
  Node *a = ops_add(g, crf_row(g, &c, 0), c.start), **rows = arena_array(g->arena, Node *, c.t);
  for (int64_t i = 0; i < c.t && a; i++) {
    if (i > 0) {
      Node *in = log_sum_over(g, crf_all(g, &c, a), 1);
      in = in ? g_reshape(g, in, 2, (int64_t[]){c.n, c.k}) : NULL;
      a = g_select(g, crf_live(g, &c, i), ops_add(g, in, crf_row(g, &c, i)), a);
    }
    Node *share = ops_sub(g, a, log_sum_over(g, a, 1)); /* as a distribution over the tags */
    share =
        share ? g_select(g, crf_live(g, &c, i), g_map1(g, P_EXP, share), g_const(g, t, 0)) : NULL;
    rows[i] = g_reshape(g, share, 3, (int64_t[]){c.n, 1, c.k});
  }
  Node *z = log_sum_over(g, ops_add(g, a, c.end), 1);
  if (!z || err_any()) return false;
  return x_out(x, "LogLikelihood", ops_sub(g, z, crf_score(g, &c, label))) &&
         (!x_wants(x, "Alpha") || x_out(x, "Alpha", g_concat(g, (int)c.t, rows, 1)));
}

/* The best path from the best score of every tag at every step, backwards: [N, T]. */
static Node *best_path(Graph *g, const Crf *c, Node *best, Node **from) {
  Node *tag = g_argmax(g, best, 2, true, DT_INT64), **path = arena_array(g->arena, Node *, c->t);
  Node *zero = g_full_int(g, DT_INT64, 0, 0, NULL);
  for (int64_t t = c->t - 1; t >= 0 && tag; t--) {
    path[t] = g_select(g, crf_live(g, c, t), tag, zero);
    if (t == 0) break;
    Node *before = g_gather(g, from[t], tag, 1);
    tag = g_select(g, crf_live(g, c, t), before, tag);
  }
  return tag && !err_any() ? g_concat(g, (int)c->t, path, 1) : NULL;
}

/* *best: [N, K] at the end of each sequence. */
static Node *viterbi(Graph *g, const Crf *c, Node *a, Node **best) {
  Node **from = arena_array(g->arena, Node *, c->t);
  for (int64_t i = 1; i < c->t && a; i++) {
    Node *all = crf_all(g, c, a);
    from[i] = g_reshape(g, g_argmax(g, all, 2, true, DT_INT64), 2, (int64_t[]){c->n, c->k});
    Node *in = g_reshape(g, g_reduce(g, P_RMAX, all, 2, true), 2, (int64_t[]){c->n, c->k});
    a = g_select(g, crf_live(g, c, i), ops_add(g, in, crf_row(g, c, i)), a);
  }
  *best = ops_add(g, a, c->end);
  return *best ? best_path(g, c, *best, from) : NULL;
}

bool x_crf_decoding(Expand *x) {
  Graph *g = x->g;
  Crf c = {0};
  Node *best;
  if (!crf_read(x, &c)) return false;
  if (!c.step || c.t == 0)
    return x_out(x, "ViterbiPath", ops_blank(g, DT_INT64, 2, (int64_t[]){c.n, c.t}));
  Node *path = viterbi(g, &c, ops_add(g, crf_row(g, &c, 0), c.start), &best);
  if (x_n_in(x, "Label") > 0 && path) {
    Node *label = g_reshape(g, x_in(x, "Label"), 2, path->dims);
    path = g_cast(g, g_map2(g, P_EQ, path, g_cast(g, label, DT_INT64)), DT_INT64);
    if (!path) return false;
    Node *live =
        g_map2(g, P_LT, g_iota(g, c.length->dtype, 2, path->dims, 1), ops_along(g, c.length, 2, 0));
    path = g_select(g, live, path, g_full_int(g, DT_INT64, 0, 0, NULL));
  }
  return x_out(x, "ViterbiPath", path);
}

/* ---- edit_distance ---- */

/* Levenshtein's distance row by row: along a row, d(j) = min over i <= j of (best(i) + j - i). */
bool x_edit_distance(Expand *x) {
  Graph *g = x->g;
  Node *a = x_in(x, "Hyps"), *b = x_in(x, "Refs"), *la, *lb;
  if (!ops_index(a, "Hyps") || !ops_index(b, "Refs")) return false;
  if (x_n_in(x, "HypsLength") == 0 || x_n_in(x, "RefsLength") == 0) {
    err_set(E_OPR_004, "sequences without HypsLength and RefsLength");
    return false;
  }
  if (!ops_rank(a, "Hyps", 2, 2) || !ops_rank(b, "Refs", 2, 2) ||
      !ops_same("sequences of Hyps and Refs", a->dims[0], b->dims[0]))
    return false;
  int64_t n = a->dims[0], m = a->dims[1], w = b->dims[1], dims[] = {n, w + 1}, one = 1;
  if (!x_out(x, "SequenceNum", g_full_int(g, DT_INT64, n < 0 ? 0 : n, 1, &one))) return false;
  if (!lengths_of(x, "HypsLength", n, &la) || !lengths_of(x, "RefsLength", n, &lb)) return false;
  if (!ops_known(a) || !ops_known(b))
    return x_out(x, "Out", ops_blank(g, DT_FLOAT32, 2, (int64_t[]){n, 1}));
  if (m > MAX_TIMES || w > MAX_TIMES)
    return err_set(E_OPR_004, "sequences of more than %d", MAX_TIMES);
  Node *j = g_iota(g, DT_FLOAT32, 2, dims, 1), *row = j;
  for (int64_t i = 0; i < m && row; i++) {
    Node *mine = ops_cut(g, a, 1, i, 1, 1);
    Node *cost =
        g_cast(g, g_map2c(g, P_EQ, g_map2(g, P_EQ, mine, g_cast(g, b, a->dtype)), 0), DT_FLOAT32);
    Node *diagonal = g_pad(g, ops_add(g, ops_cut(g, row, 1, 0, 1, w), cost), (int64_t[]){0, 1},
                           (int64_t[]){0, 0}, 1e9);
    Node *best = ops_sub(g, g_map2(g, P_MIN, ops_plus(g, row, 1), diagonal), j);
    int64_t k = w + 1, lo = w, hi = 0;
    Node *window = g_window(g, ops_times(g, best, -1), 1, 1, &k, &one, &one, &lo, &hi, -1e9);
    Node *next = ops_sub(g, j, window ? g_reduce(g, P_RMAX, window, 4, false) : NULL);
    row = g_select(g, g_map2(g, P_LT, int_full(g, la, i), ops_along(g, la, 2, 0)), next, row);
  }
  Node *at = g_check(g, ops_along(g, lb, 2, 0), 0, w + 1, false, 0, E_DAT_002);
  Node *d = g_gather(g, row, at, 1);
  if (op_bool(x->op, "normalized"))
    d = ops_div(g, d, g_cast(g, ops_along(g, lb, 2, 0), DT_FLOAT32));
  return x_out(x, "Out", d);
}

/* ---- operators of the executor: shapes only (executor/control_tags.c) ---- */

bool x_viterbi_decode(Expand *x) {
  Node *in = x_in(x, "Input"), *step = x_in(x, "Transition"), *length = x_in(x, "Length");
  if (!ops_rank(in, "Input", 3, 3) || !ops_float(in, "Input") ||
      !ops_rank(step, "Transition", 2, 2) || !ops_index(length, "Length") ||
      !ops_same("tags of Input and Transition", in->dims[2], step->dims[1]))
    return false;
  return x_out(x, "Scores", ops_blank(x->g, in->dtype, 1, in->dims)) &&
         x_out(x, "Path", ops_blank(x->g, DT_INT64, 2, (int64_t[]){in->dims[0], -1}));
}

bool x_chunk_eval(Expand *x) {
  int64_t one = 1;
  if (!ops_index(x_in(x, "Inference"), "Inference") || !ops_index(x_in(x, "Label"), "Label"))
    return false;
  for (int i = 0; i < 6; i++)
    if (!x_out(x, x->op->def->outs[i].name,
               ops_blank(x->g, i < 3 ? DT_FLOAT32 : DT_INT64, 1, &one)))
      return false;
  return true;
}
