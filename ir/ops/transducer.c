/* warprnnt: the loss of a transducer (A. Graves, "Sequence Transduction with Recurrent Neural Networks", 2012).
 *
 * input [B, T, U + 1, V] holds log probabilities after t steps and u labels. A blank goes on to the next step, label u to the
 * next label:
 *   alpha(t, u) = logsumexp(alpha(t-1, u) + blank(t-1, u), alpha(t, u-1) + label(t, u-1))
 * The loss is -(alpha + blank) at the end of both. It is computed along diagonals d = t + u, each from the one before, on
 * views that have the diagonals as rows. Its gradient is derived in the forward pass, as PaddlePaddle's gradient operator has
 * only that; FastEmit (J. Yu et al., 2021) makes the gradients of labels larger. What cannot be reached is NEVER. */
#include "ops.h"

enum { MAX_DIAGONALS = 8192 };
#define NEVER (-1e30)

typedef struct Transducer {
  int64_t b, t, u, v; /* u: labels */
  int64_t blank;
  Node *steps, *labels; /* [B, 1]: lengths, int64 */
  Node *label;          /* [B, U]: checked, blank behind the end */
} Transducer;

/* v [B, T, n] with the diagonals as rows, [B, T + U, n]: element (d, u) is v(d - u, u). */
static Node *diagonals(Graph *g, const Transducer *k, Node *v) {
  if (!v) return NULL;
  AffDim map[] = {aff_loop(0), {1, 2, 1, -1, 0, 1}, aff_loop(2)};
  int64_t dims[] = {k->b, k->t + k->u, v->dims[2]};
  return g_view(g, v, 3, dims, map, NEVER);
}

static Node *diagonal(Graph *g, Node *v, int64_t d) {
  v = ops_cut(g, v, 1, d, 1, 1);
  return v ? g_reshape(g, v, 2, (int64_t[]){v->dims[0], v->dims[2]}) : NULL;
}

static Node *log_sum(Graph *g, Node *a, Node *b) {
  Node *most = g_map2(g, P_MAX, a, b);
  Node *sum =
      ops_add(g, g_map1(g, P_EXP, ops_sub(g, a, most)), g_map1(g, P_EXP, ops_sub(g, b, most)));
  return g_map2c(g, P_MAX, ops_add(g, most, g_map1(g, P_LOG, sum)), NEVER);
}

/* The loss of each sequence, [B, 1], from the log probabilities of blanks [B, T, U + 1] and labels [B, T, U]. */
static Node *transducer_loss(Graph *g, const Transducer *k, Node *blank, Node *label) {
  int64_t dims[] = {k->b, k->u + 1};
  DType t = blank->dtype;
  Node *at = g_iota(g, DT_INT64, 2, dims, 1), *never = g_full(g, t, NEVER, 2, dims);
  Node *alpha = g_select(g, g_map2c(g, P_EQ, at, 0), g_full(g, t, 0, 2, dims), never),
       *found = never;
  Node *stay = diagonals(g, k, blank), *ends = g_map2(g, P_EQ, at, k->labels);
  Node *go = k->u ? diagonals(g, k, label) : NULL;
  for (int64_t d = 0; d < k->t + k->u && !err_any(); d++) {
    Node *done = ops_add(g, alpha, diagonal(g, stay, d)); /* a blank after this diagonal */
    Node *last = g_map2(g, P_EQ, ops_plus(g, ops_add(g, k->steps, k->labels), -1),
                        g_full_int(g, DT_INT64, d, 0, NULL));
    found = g_select(g, g_map2(g, P_MIN, ends, last), done, found);
    Node *next = g_map2c(g, P_MAX, done, NEVER);
    if (k->u) {
      Node *said = ops_add(g, ops_cut(g, alpha, 1, 0, 1, k->u), diagonal(g, go, d));
      next = log_sum(g, next, g_pad(g, said, (int64_t[]){0, 1}, (int64_t[]){0, 0}, NEVER));
    }
    alpha = next;
  }
  return ops_times(g, found ? g_reduce(g, P_RMAX, found, 2, true) : NULL, -1);
}

/* The gradients of blanks and labels where they stand in the input. */
static Node *spread(Expand *x, const Transducer *k, Node *of_blank, Node *of_label) {
  Graph *g = x->g;
  int64_t dims[] = {k->b, k->t, k->u + 1, k->v}, thin[] = {k->b, k->t, k->u + 1, 1};
  Node *v = g_iota(g, DT_INT64, 4, (int64_t[]){1, 1, 1, k->v}, 3),
       *zero = g_const(g, of_blank->dtype, 0);
  Node *hit = g_map2c(g, P_EQ, v, (double)k->blank);
  Node *sum = g_select(g, hit, g_expand(g, g_reshape(g, of_blank, 4, thin), 4, dims), zero);
  if (!k->u) return sum;
  Node *label = g_pad(g, k->label, (int64_t[]){0, 0}, (int64_t[]){0, 1}, -1);
  hit = g_map2(g, P_EQ, v, g_reshape(g, label, 4, (int64_t[]){k->b, 1, k->u + 1, 1}));
  of_label = ops_times(g, of_label, 1 + op_float(x->op, "fastemit_lambda"));
  of_label = g_pad(g, of_label, (int64_t[]){0, 0, 0}, (int64_t[]){0, 0, 1}, 0);
  return ops_add(g, sum,
                 g_select(g, hit, g_expand(g, g_reshape(g, of_label, 4, thin), 4, dims), zero));
}

static Node *checked_lengths(Expand *x, const char *slot, int64_t n, int64_t least, int64_t most) {
  Node *v = x_in(x, slot);
  if (!ops_index(v, slot) || !ops_same("sequences and lengths", n, ops_prod(v->dims, 0, v->rank)))
    return NULL;
  v = g_check(x->g, g_cast(x->g, v, DT_INT64), least, most + 1, false, 0, E_DAT_002);
  return v ? g_reshape(x->g, v, 2, (int64_t[]){n, 1}) : NULL;
}

static bool transducer_read(Expand *x, Node *in, Node *label, Transducer *k) {
  if (!ops_float(in, "input") || !ops_rank(in, "input", 4, 4) || !ops_index(label, "label") ||
      !ops_rank(label, "label", 2, 2) ||
      !ops_same("sequences of input and label", in->dims[0], label->dims[0]) ||
      !ops_same("labels plus 1 and the third dimension of input", in->dims[2],
                label->dims[1] < 0 ? -1 : label->dims[1] + 1))
    return false;
  *k = (Transducer){
      in->dims[0], in->dims[1], label->dims[1], in->dims[3], op_int(x->op, "blank"), NULL,
      NULL,        NULL};
  if (k->v >= 0 && (k->blank < 0 || k->blank >= k->v))
    return err_set(E_OPR_003, "blank is %lld of %lld symbols", (long long)k->blank,
                   (long long)k->v);
  if (k->t + k->u > MAX_DIAGONALS)
    return err_set(E_OPR_004, "%lld steps and %lld labels, at most %d together", (long long)k->t,
                   (long long)k->u, MAX_DIAGONALS);
  return true;
}

/* Probabilities of the labels, [B, T, U]; also k->label. */
static Node *label_scores(Graph *g, Transducer *k, Node *in, Node *label) {
  int64_t dims[] = {k->b, k->u};
  Node *live = g_map2(g, P_LT, g_iota(g, DT_INT64, 2, dims, 1), k->labels);
  label = g_select(g, live, g_cast(g, label, DT_INT64), g_full_int(g, DT_INT64, k->blank, 0, NULL));
  k->label = g_check(g, label, 0, k->v, false, 0, E_DAT_002);
  Node *at = k->label ? g_reshape(g, k->label, 4, (int64_t[]){k->b, 1, k->u, 1}) : NULL;
  at = at ? g_expand(g, at, 4, (int64_t[]){k->b, k->t, k->u, 1}) : NULL;
  Node *v = g_gather(g, ops_cut(g, in, 2, 0, 1, k->u), at, 3);
  return v ? g_reshape(g, v, 3, (int64_t[]){k->b, k->t, k->u}) : NULL;
}

bool x_warprnnt(Expand *x) {
  Graph *g = x->g;
  Node *in = x_in(x, "input"), *label = x_in(x, "label"), *own[2] = {NULL}, *grad[2] = {NULL};
  Transducer k;
  if (!transducer_read(x, in, label, &k)) return false;
  if (!ops_known(in) || !ops_known(label) || k.b == 0 || k.t == 0)
    return x_out(x, "loss", ops_blank(g, in->dtype, 1, in->dims)) &&
           x_out(x, "warprnntgrad", ops_blank_like(g, in));
  k.steps = checked_lengths(x, "input_lengths", k.b, 1, k.t);
  k.labels = k.steps ? checked_lengths(x, "label_lengths", k.b, 0, k.u) : NULL;
  if (!k.labels) return false;
  Node *blank = ops_cut(g, in, 3, k.blank, 1, 1);
  own[0] = g_alias(g, blank ? g_reshape(g, blank, 3, (int64_t[]){k.b, k.t, k.u + 1}) : NULL);
  if (k.u) own[1] = g_alias(g, label_scores(g, &k, in, label));
  if (!own[0] || (k.u && !own[1])) return false;
  Node *loss = transducer_loss(g, &k, own[0], own[1]);
  if (!x_out(x, "loss", g_reshape(g, loss, 1, &k.b)) || !x_wants(x, "warprnntgrad"))
    return !err_any();
  Node *one = g_full(g, in->dtype, 1, 2, (int64_t[]){k.b, 1});
  return derive(g, 1, &loss, &one, k.u ? 2 : 1, own, grad) && grad[0] &&
         x_out(x, "warprnntgrad", spread(x, &k, grad[0], grad[1]));
}

bool x_warprnnt_grad(Expand *x) {
  Graph *g = x->g;
  Node *d = x_in(x, "warprnntgrad"), *gy = x_in(x, "loss@GRAD");
  if (!ops_rank(d, "warprnntgrad", 4, 4) || !gy) return false;
  if (!ops_known(d)) return x_out(x, "input@GRAD", ops_blank_like(g, d));
  return x_out(x, "input@GRAD",
               ops_mul(g, d, g_reshape(g, gy, 4, (int64_t[]){d->dims[0], 1, 1, 1})));
}
