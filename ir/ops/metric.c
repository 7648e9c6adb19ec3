/* Counting what a classifier got right (precision_recall, mean_iou, auc), and the labels that a decoder found (ctc_align). */
#include "ops.h"

/* ---- precision_recall: columns true positive, false positive, true negative, false negative ---- */

/* a / (a + b), `none` where both are 0. */
static Node *share(Graph *g, Node *a, Node *b, double none) {
  Node *all = ops_add(g, a, b);
  if (!all) return NULL;
  Node *empty = g_map2c(g, P_EQ, all, 0);
  return g_select(g, empty, g_const(g, a->dtype, none),
                  ops_div(g, a, g_select(g, empty, g_const(g, a->dtype, 1), all)));
}

/* The harmonic mean of [1]s. */
static Node *f1(Graph *g, Node *p, Node *r) {
  return ops_times(g, ops_mul(g, p, share(g, r, p, 0)), 2);
}

/* [6]: precision, recall and F1, the mean of the classes, then of all together. */
static Node *metrics(Graph *g, Node *states) {
  Node *part[4], *sum[4], *out[6];
  for (int i = 0; i < 4; i++) {
    part[i] = ops_cut(g, states, 1, i, 1, 1);
    sum[i] = part[i] ? g_reduce(g, P_RSUM, part[i], 3, true) : NULL;
    if (!sum[i]) return NULL;
  }
  double classes = (double)states->dims[0];
  out[0] = ops_times(g, g_reduce(g, P_RSUM, share(g, part[0], part[1], 1), 3, true), 1 / classes);
  out[1] = ops_times(g, g_reduce(g, P_RSUM, share(g, part[0], part[3], 1), 3, true), 1 / classes);
  out[3] = share(g, sum[0], sum[1], 1), out[4] = share(g, sum[0], sum[3], 1);
  out[2] = f1(g, out[0], out[1]), out[5] = f1(g, out[3], out[4]);
  for (int i = 0; i < 6; i++)
    if (!out[i]) return NULL;
  return g_reshape(g, g_concat(g, 6, out, 1), 1, (int64_t[]){6});
}

/* [N, C]: where the class stands that each row names. */
static Node *is_class(Expand *x, const char *slot, int64_t n, int64_t classes) {
  Graph *g = x->g;
  Node *v = x_in(x, slot);
  if (!ops_index(v, slot) || !ops_same("samples", n, ops_prod(v->dims, 0, v->rank))) return NULL;
  v = g_check(g, g_reshape(g, v, 2, (int64_t[]){n, 1}), 0, classes, false, 0, E_DAT_002);
  return v ? g_map2(g, P_EQ, v, g_iota(g, v->dtype, 2, (int64_t[]){n, classes}, 1)) : NULL;
}

bool x_precision_recall(Expand *x) {
  Graph *g = x->g;
  int64_t classes = op_int(x->op, "class_number"), n, six = 6, dims[] = {classes, 4};
  Node *ids = x_in(x, "Indices"), *part[4], *w = NULL;
  if (!ids) return false;
  if (classes < 1) return err_set(E_OPR_003, "class_number is %lld", (long long)classes);
  n = ops_prod(ids->dims, 0, ids->rank);
  if (n < 0)
    return x_out(x, "BatchMetrics", ops_blank(g, DT_FLOAT64, 1, &six)) &&
           x_out(x, "AccumMetrics", ops_blank(g, DT_FLOAT64, 1, &six)) &&
           x_out(x, "AccumStatesInfo", ops_blank(g, DT_FLOAT32, 2, dims));
  Node *found = is_class(x, "Indices", n, classes), *label = is_class(x, "Labels", n, classes);
  if (!found || !label) return false;
  if (x_n_in(x, "Weights") > 0) w = g_cast(g, x_in(x, "Weights"), DT_FLOAT64);
  if (w && !ops_same("samples and Weights", n, ops_prod(w->dims, 0, w->rank))) return false;
  w = w ? g_reshape(g, w, 2, (int64_t[]){n, 1}) : g_full(g, DT_FLOAT64, 1, 2, (int64_t[]){n, 1});
  for (int i = 0; i < 4; i++) {
    Node *is = g_map2c(g, P_EQ, found, i < 2), *of = g_map2c(g, P_EQ, label, i == 0 || i == 3);
    part[i] =
        g_reduce(g, P_RSUM, ops_mul(g, g_cast(g, ops_mul(g, is, of), DT_FLOAT64), w), 1, false);
    if (!(part[i] = part[i] ? g_reshape(g, part[i], 2, (int64_t[]){classes, 1}) : NULL))
      return false;
  }
  Node *now = g_concat(g, 4, part, 1), *all = now;
  if (x_n_in(x, "StatesInfo") > 0)
    all = ops_add(g, now, g_cast(g, x_in(x, "StatesInfo"), DT_FLOAT64));
  return now && all && x_out(x, "BatchMetrics", metrics(g, now)) &&
         x_out(x, "AccumMetrics", metrics(g, all)) &&
         x_out(x, "AccumStatesInfo", g_cast(g, all, DT_FLOAT32));
}

/* ---- mean_iou ---- */

/* `now` plus what the slot has from before. */
static Node *with_earlier(Expand *x, const char *slot, Node *now) {
  Graph *g = x->g;
  for (int i = 0; now && i < x_n_in(x, slot); i++) {
    Node *v = x_in_at(x, slot, i);
    if (!v || !ops_same(slot, ops_prod(v->dims, 0, v->rank), now->dims[0])) return NULL;
    now = ops_add(g, now, g_cast(g, g_reshape(g, v, 1, now->dims), now->dtype));
  }
  return now;
}

/* Correct are points of a class that were found; wrong are those missed, and others that were taken for it. */
bool x_mean_iou(Expand *x) {
  Graph *g = x->g;
  Node *found = x_in(x, "Predictions"), *label = x_in(x, "Labels");
  int64_t classes = op_int(x->op, "num_classes"), one = 1;
  if (!found || !label) return false;
  if (classes < 1) return err_set(E_OPR_003, "num_classes is %lld", (long long)classes);
  int64_t n = ops_prod(found->dims, 0, found->rank);
  if (n < 0)
    return x_out(x, "OutMeanIou", ops_blank(g, DT_FLOAT32, 1, &one)) &&
           x_out(x, "OutWrong", ops_blank(g, DT_INT32, 1, &classes)) &&
           x_out(x, "OutCorrect", ops_blank(g, DT_INT32, 1, &classes));
  found = is_class(x, "Predictions", n, classes), label = is_class(x, "Labels", n, classes);
  Node *both = g_cast(g, ops_mul(g, found, label), DT_INT32);
  Node *either = found && label ? g_cast(g, g_map2(g, P_MAX, found, label), DT_INT32) : NULL;
  if (!both || !either) return false;
  Node *wrong = g_reduce(g, P_RSUM, ops_sub(g, either, both), 1, false);
  Node *correct = with_earlier(x, "InCorrects", g_reduce(g, P_RSUM, both, 1, false));
  wrong = with_earlier(x, "InWrongs", wrong);
  if (!wrong || !correct) return false;
  Node *all = ops_add(g, wrong, correct),
       *some = g_map2(g, P_LT, g_full_int(g, DT_INT32, 0, 0, NULL), all);
  Node *part = share(g, g_cast(g, correct, DT_FLOAT32), g_cast(g, wrong, DT_FLOAT32), 0);
  Node *count = some ? g_reduce(g, P_RSUM, g_cast(g, some, DT_FLOAT32), 1, true) : NULL;
  Node *mean = part ? ops_div(g, g_reduce(g, P_RSUM, part, 1, true), count) : NULL;
  return x_out(x, "OutWrong", wrong) && x_out(x, "OutCorrect", correct) &&
         x_out(x, "OutMeanIou", with_earlier(x, "InMeanIou", mean));
}

/* ---- ctc_align ---- */

/* A label stays unless it is blank or repeats the one before; the place of each is how many stay before it. */
bool x_ctc_align(Expand *x) {
  Graph *g = x->g;
  Node *v = x_in(x, "Input"), *len = NULL;
  if (!ops_index(v, "Input")) return false;
  if (x_n_in(x, "InputLength") == 0) {
    err_set(E_OPR_004, "sequences without InputLength");
    err_help("Pad the sequences to [N, T], and give their lengths.");
    return false;
  }
  len = x_in(x, "InputLength");
  if (!ops_rank(v, "Input", 2, 2) || !ops_index(len, "InputLength") ||
      !ops_same("sequences and lengths", v->dims[0], ops_prod(len->dims, 0, len->rank)))
    return false;
  int64_t n = v->dims[0], t = v->dims[1], blank = op_int(x->op, "blank"), column[] = {n, 1};
  if (!ops_known(v))
    return x_out(x, "Output", ops_blank_like(g, v)) &&
           x_out(x, "OutputLength", ops_blank(g, len->dtype, 2, column));
  Node *stays = g_map2(g, P_EQ, v, g_full_int(g, v->dtype, blank, 0, NULL));
  if (op_bool(x->op, "merge_repeated")) {
    Node *before = g_pad(g, v, (int64_t[]){0, 1}, (int64_t[]){0, -1}, (double)blank);
    stays = g_map2(g, P_MAX, stays, g_map2(g, P_EQ, v, before));
  }
  Node *live = g_map2(g, P_LT, g_iota(g, len->dtype, 2, v->dims, 1), g_reshape(g, len, 2, column));
  stays = ops_mul(g, live, stays ? g_map2c(g, P_EQ, stays, 0) : NULL);
  Node *one = g_cast(g, stays, DT_INT64);
  int64_t step = 1, lo = t - 1, hi = 0;
  Node *upto = t > 0 ? g_window(g, one, 1, 1, &t, &step, &step, &lo, &hi, 0) : NULL;
  Node *count = one ? g_reduce(g, P_RSUM, one, 2, true) : NULL;
  if (!count) return false;
  if (!x_out(x, "OutputLength", g_cast(g, count, len->dtype))) return false;
  if (t == 0) return x_out(x, "Output", v);
  Node *at = upto ? ops_plus(g, g_reduce(g, P_RSUM, upto, 4, false), -1) : NULL;
  at = g_select(g, stays, at,
                g_full_int(g, DT_INT64, t, 0, NULL)); /* one place more, for what goes */
  Node *room = g_full_int(g, v->dtype, op_int(x->op, "padding_value"), 2, (int64_t[]){n, t + 1});
  return x_out(x, "Output", ops_cut(g, g_scatter(g, room, at, v, 1, true), 1, 0, 1, t));
}

/* ---- auc ---- */

/* A histogram with this batch's counts. With slide_steps 1 it is [last batch, window, steps]: the window is this batch. */
static Node *auc_count(Graph *g, Node *stat, Node *bin, Node *hit, int64_t n, int64_t slide,
                       Node **window) {
  int64_t all = slide ? 2 * n + 1 : n;
  Node *flat = g_reshape(g, stat, 1, &all), *zero = g_full_int(g, stat->dtype, 0, 1, &n);
  *window = g_scatter(g, slide ? zero : flat, bin, g_cast(g, hit, stat->dtype), 0, false);
  if (!slide) return *window ? g_reshape(g, *window, stat->rank, stat->dims) : NULL;
  Node *before = ops_cut(g, flat, 0, 0, 1, n), *sum = ops_cut(g, flat, 0, n, 1, n);
  Node *now = *window, *part[] = {now, ops_add(g, ops_sub(g, sum, before), now),
                                  ops_plus(g, ops_cut(g, flat, 0, 2 * n, 1, 1), 1)};
  *window = part[1];
  return part[1] ? g_reshape(g, g_concat(g, 3, part, 0), stat->rank, stat->dims) : NULL;
}

/* The trapezoids under the curve, from the highest score down; 0 unless there are samples of both kinds. */
static Node *auc_area(Graph *g, Node *pos, Node *neg, int64_t n) {
  Node *v[2] = {pos, neg}, *sum[2], *before[2], *total[2];
  int64_t one = 1, lo = 0, hi = n - 1;
  for (int k = 0; k < 2; k++) {
    Node *c = v[k] ? g_cast(g, v[k], DT_FLOAT64) : NULL; /* running sums from the last bin */
    Node *w = c ? g_window(g, c, 0, 1, &n, &one, &one, &lo, &hi, 0) : NULL;
    sum[k] = w ? g_reduce(g, P_RSUM, w, 2, false) : NULL;
    before[k] = ops_sub(g, sum[k], c);
    total[k] = c ? g_reduce(g, P_RSUM, c, 1, false) : NULL;
  }
  Node *area =
      ops_mul(g, ops_sub(g, sum[1], before[1]), ops_times(g, ops_add(g, sum[0], before[0]), 0.5));
  Node *all = ops_mul(g, total[0], total[1]), *none = all ? g_map2c(g, P_EQ, all, 0) : NULL;
  return area ? g_select(g, none, g_const(g, DT_FLOAT64, 0),
                         ops_div(g, g_reduce(g, P_RSUM, area, 1, false), all))
              : NULL;
}

bool x_auc(Expand *x) {
  Graph *g = x->g;
  Node *p = x_in(x, "Predict"), *label = x_in(x, "Label"),
       *stat[2] = {x_in(x, "StatPos"), x_in(x, "StatNeg")}, *window[2];
  int64_t n = op_int(x->op, "num_thresholds") + 1, slide = op_int(x->op, "slide_steps");
  if (!ops_rank(p, "Predict", 2, 2) || !ops_index(label, "Label") || !stat[0] || !stat[1])
    return false;
  if (slide != 0 && slide != 1)
    return err_set(E_OPR_004, "slide_steps is %lld, supported are 0 and 1", (long long)slide);
  if (n < 2 || n > 1 << 24) return err_set(E_OPR_003, "num_thresholds is %lld", (long long)n - 1);
  if (!ops_known(p) || !ops_known(stat[0]) || !ops_known(stat[1]))
    return x_out(x, "StatPosOut", ops_blank_like(g, stat[0])) &&
           x_out(x, "StatNegOut", ops_blank_like(g, stat[1])) &&
           x_out(x, "AUC", ops_blank(g, DT_FLOAT64, 0, NULL));
  int64_t rows = p->dims[0];
  Node *score = g_reshape(g, ops_cut(g, p, 1, p->dims[1] - 1, 1, 1), 1, &rows);
  Node *bin = g_check(g, g_cast(g, ops_times(g, score, (double)(n - 1)), DT_INT64), 0, n, false, 0,
                      E_DAT_002);
  Node *positive = g_cast(g, g_reshape(g, label, 1, &rows), DT_BOOL);
  for (int k = 0; k < 2 && positive; k++) {
    if (!ops_same("the size of the statistics and what the thresholds need",
                  ops_prod(stat[k]->dims, 0, stat[k]->rank), slide ? 2 * n + 1 : n))
      return false;
    Node *now =
        auc_count(g, stat[k], bin, g_map2c(g, P_EQ, positive, k == 0), n, slide, &window[k]);
    if (!x_out(x, k ? "StatNegOut" : "StatPosOut", now)) return false;
  }
  return positive && x_out(x, "AUC", auc_area(g, window[0], window[1], n));
}
