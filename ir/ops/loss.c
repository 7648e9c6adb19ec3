/* Losses that pick by a label, and accuracy.
 *
 * A hard label is an integer tensor of the logits' shape with size 1 at the class axis (or without
 * that axis). It is checked against the number of classes (E-DAT-002); where it equals
 * ignore_index, loss and gradient are 0. */
#include "ops.h"

#include <string.h>

/* The label with size 1 at the axis of x, checked. */
static Node *class_label(Expand *x, const char *slot, const Node *v, int axis, int64_t ignore) {
  Node *label = x_in(x, slot);
  int64_t dims[KL_RANK];
  if (!ops_index(label, slot)) return NULL;
  memcpy(dims, v->dims, sizeof dims);
  dims[axis] = 1;
  if (label->rank == v->rank - 1) label = ops_reshape(x->g, label, v->rank, dims);
  if (!label) return NULL;
  bool fits = label->rank == v->rank;
  for (int d = 0; fits && d < v->rank; d++)
    fits = dims[d] == label->dims[d] || dims[d] < 0 || label->dims[d] < 0;
  if (!fits) {
    err_set(E_SHP_006, "%s is %s, for %s it must be %s", slot, dims_text(label->rank, label->dims),
            dims_text(v->rank, v->dims), dims_text(v->rank, dims));
    err_help("Give one class number for each distribution along axis %d.", axis);
    return NULL;
  }
  return g_check(x->g, label, 0, v->dims[axis], true, ignore, E_DAT_002);
}

static Node *zero(Graph *g, const Node *like) { return like ? g_const(g, like->dtype, 0) : NULL; }

static Node *negative(Graph *g, Node *n) { return n ? g_map2c(g, P_MUL, n, -1) : NULL; }

/* v, but 0 where the label is the ignored one. */
static Node *unless_ignored(Graph *g, Node *label, int64_t ignore, Node *v) {
  if (!label || !v) return NULL;
  Node *ignored = g_map2(g, P_EQ, label, g_full_int(g, label->dtype, ignore, 0, NULL));
  return g_select(g, ignored, zero(g, v), v);
}

/* Is this element of a tensor of that shape the one the label names? */
static Node *is_label(Graph *g, Node *label, int rank, const int64_t *dims, int axis) {
  return label ? g_map2(g, P_EQ, g_iota(g, label->dtype, rank, dims, axis), label) : NULL;
}

static Node *log_of(Graph *g, Node *p) { /* finite also for p = 0 */
  return p ? g_map2c(g, P_MAX, g_map1(g, P_LOG, p), -1e20) : NULL;
}

static Node *soft_label(Expand *x, const char *slot, const Node *v) {
  Node *label = x_in(x, slot);
  if (!ops_float(label, slot)) return NULL;
  if (label->rank != v->rank) {
    err_set(E_SHP_006, "soft %s is %s, the logits are %s", slot,
            dims_text(label->rank, label->dims), dims_text(v->rank, v->dims));
    return NULL;
  }
  return label;
}

/* -sum(label * l) or -l[label]: l are log probabilities. */
static Node *cross_entropy_of(Expand *x, Node *l, int axis) {
  Graph *g = x->g;
  if (!l) return NULL;
  if (op_bool(x->op, "soft_label"))
    return negative(g, g_reduce(g, P_RSUM, g_map2(g, P_MUL, soft_label(x, "Label", l), l),
                                1u << axis, true));
  int64_t ignore = op_int(x->op, "ignore_index");
  Node *label = class_label(x, "Label", l, axis, ignore);
  return label ? unless_ignored(g, label, ignore, negative(g, g_gather(g, l, label, axis))) : NULL;
}

bool x_softmax_with_cross_entropy(Expand *x) {
  Graph *g = x->g;
  Node *v = x_in(x, "Logits");
  int axis;
  if (!ops_float(v, "Logits") || !ops_rank(v, "Logits", 1, KL_VAR_RANK) ||
      !ops_axis("axis", op_int(x->op, "axis"), v->rank, &axis))
    return false;
  if (!op_bool(x->op, "use_softmax"))
    return x_out(x, "Softmax", v) && x_out(x, "Loss", cross_entropy_of(x, log_of(g, v), axis));
  Node *s = g_map2(g, P_SUB, v, g_reduce(g, P_RMAX, v, 1u << axis, true));
  Node *e = g_map1(g, P_EXP, s), *sum = g_reduce(g, P_RSUM, e, 1u << axis, true);
  Node *l = g_map2(g, P_SUB, s, g_map1(g, P_LOG, sum));
  return x_out(x, "Softmax", g_map2(g, P_DIV, e, sum)) &&
         x_out(x, "Loss", cross_entropy_of(x, l, axis));
}

bool x_softmax_with_cross_entropy_grad(Expand *x) {
  Graph *g = x->g;
  Node *p = x_in(x, "Softmax"), *gl = x_in(x, "Loss@GRAD");
  int axis;
  if (!p || !gl || !ops_axis("axis", op_int(x->op, "axis"), p->rank, &axis)) return false;
  bool inner = op_bool(x->op, "use_softmax");
  if (op_bool(x->op, "soft_label")) {
    Node *label = soft_label(x, "Label", p);
    Node *sum = g_reduce(g, P_RSUM, label, 1u << axis, true);
    Node *d = inner ? g_map2(g, P_SUB, g_map2(g, P_MUL, p, sum), label)
                    : negative(g, g_map2(g, P_DIV, label, p));
    return x_out(x, "Logits@GRAD", g_map2(g, P_MUL, d, gl));
  }
  int64_t ignore = op_int(x->op, "ignore_index");
  Node *label = class_label(x, "Label", p, axis, ignore);
  Node *hit = is_label(g, label, p->rank, p->dims, axis);
  Node *d =
      hit && inner
          ? g_map2(g, P_SUB, p, g_cast(g, hit, p->dtype))
          : g_select(g, hit, negative(g, g_map2(g, P_DIV, g_const(g, p->dtype, 1), p)), zero(g, p));
  return x_out(x, "Logits@GRAD", g_map2(g, P_MUL, d, unless_ignored(g, label, ignore, gl)));
}

/* ---- cross entropy of probabilities ---- */

bool x_cross_entropy(Expand *x) {
  Node *p = x_in(x, "X");
  if (!ops_float(p, "X") || !ops_rank(p, "X", 1, KL_VAR_RANK)) return false;
  return x_out(x, "Y", cross_entropy_of(x, log_of(x->g, p), p->rank - 1));
}

bool x_cross_entropy2(Expand *x) {
  Graph *g = x->g;
  Node *p = x_in(x, "X");
  if (!ops_float(p, "X") || !ops_rank(p, "X", 1, KL_VAR_RANK)) return false;
  int64_t ignore = op_int(x->op, "ignore_index"), shape[KL_RANK] = {0};
  memcpy(shape + 1, p->dims, sizeof *shape * (size_t)p->rank);
  Node *label = class_label(x, "Label", p, p->rank - 1, ignore);
  Node *match = label ? g_gather(g, p, label, p->rank - 1) : NULL;
  return x_out(x, "XShape", g_full(g, p->dtype, 0, p->rank + 1, shape)) &&
         x_out(x, "MatchX", match) &&
         x_out(x, "Y", unless_ignored(g, label, ignore, negative(g, log_of(g, match))));
}

bool x_cross_entropy_grad2(Expand *x) {
  Graph *g = x->g;
  Node *shape = x_in(x, "XShape"), *match = x_in(x, "MatchX"), *gy = x_in(x, "Y@GRAD");
  if (!ops_rank(shape, "XShape", 2, KL_RANK) || !match || !gy) return false;
  int rank = shape->rank - 1;
  Node *like = ops_blank(g, match->dtype, rank, shape->dims + 1);
  int64_t ignore = op_int(x->op, "ignore_index");
  Node *label = like ? class_label(x, "Label", like, rank - 1, ignore) : NULL;
  Node *d = unless_ignored(g, label, ignore, negative(g, g_map2(g, P_DIV, gy, match)));
  Node *hit = is_label(g, label, rank, shape->dims + 1, rank - 1);
  return x_out(x, "X@GRAD", g_select(g, hit, d, zero(g, d)));
}

/* ---- negative log likelihood ---- */

static Node *class_weights(Expand *x, Node *v, Node *label) {
  Graph *g = x->g;
  if (!op_in(x->op, "Weight", 0)) return g_full(g, v->dtype, 1, label->rank, label->dims);
  Node *w = x_in(x, "Weight");
  if (!ops_rank(w, "Weight", 1, 1) ||
      !ops_same("the classes of X and Weight", w->dims[0], v->dims[1]))
    return NULL;
  return g_gather(g, g_expand_to(g, ops_along(g, w, v->rank, 1), v->rank, v->dims), label, 1);
}

bool x_nll_loss(Expand *x) {
  static const char *const words[] = {"mean", "sum", "none"};
  Graph *g = x->g;
  Node *v = x_in(x, "X");
  int how = op_word(x->op, "reduction", 3, words);
  if (how < 0 || !ops_float(v, "X") || !ops_rank(v, "X", 2, KL_VAR_RANK)) return false;
  int64_t ignore = op_int(x->op, "ignore_index"), dims[KL_RANK];
  Node *label = class_label(x, "Label", v, 1, ignore);
  if (!label) return false;
  Node *w = unless_ignored(g, label, ignore, class_weights(x, v, label));
  Node *l = negative(g, g_map2(g, P_MUL, g_gather(g, v, label, 1), w));
  if (!l) return false;
  uint32_t all = (1u << l->rank) - 1;
  Node *total = g_reduce(g, P_RSUM, w, all, false), *out = NULL;
  if (how == 2) {
    total = zero(g, w);
    dims[0] = l->dims[0];
    memcpy(dims + 1, l->dims + 2, sizeof *dims * (size_t)(l->rank - 2));
    out = ops_reshape(g, l, l->rank - 1, dims);
  } else {
    out = g_reduce(g, P_RSUM, l, all, false);
    if (how == 0) out = g_map2(g, P_DIV, out, total);
  }
  return x_out(x, "Total_weight", total) && x_out(x, "Out", out);
}

/* ---- metrics ---- */

bool x_accuracy(Expand *x) {
  Graph *g = x->g;
  Node *top = x_in(x, "Indices"), *label = x_in(x, "Label");
  if (!ops_index(top, "Indices") || !ops_rank(top, "Indices", 2, 2) || !ops_index(label, "Label"))
    return false;
  int64_t n = top->dims[0];
  if (!ops_same("the rows of Indices and Label", n, ops_prod(label->dims, 0, label->rank)))
    return false;
  label = ops_reshape(g, g_cast(g, label, top->dtype), 2, (int64_t[]){n, 1});
  Node *hit = g_reduce(g, P_RMAX, g_map2(g, P_EQ, top, label), 2, false);
  Node *right = hit ? g_reduce(g, P_RSUM, g_cast(g, hit, DT_INT32), 1, false) : NULL;
  if (!right) return false;
  Node *share = g_map2c(g, P_DIV, g_cast(g, right, DT_FLOAT32), n > 0 ? (double)n : 1);
  return x_out(x, "Accuracy", share) && x_out(x, "Correct", right) &&
         x_out(x, "Total", g_full_int(g, DT_INT32, n, 0, NULL));
}

/* ---- hierarchical_sigmoid (F. Morin and Y. Bengio, 2005) ---- */

/* The way to each label, at most n decisions: which row of W decides (negative: none) and how, both
 * [N, n]. Without a tree of the program's it is the complete one: with c = label + classes, decision
 * j is made at node c >> (j + 1), counted from 1, by bit j of c. */
static bool tree_way(Expand *x, Node *label, int64_t classes, Node **at, Node **bit) {
  Graph *g = x->g;
  *at = x_in(x, "PathTable"), *bit = x_in(x, "PathCode");
  if (*at && *bit) return ops_rank(*at, "PathTable", 2, 2) && ops_rank(*bit, "PathCode", 2, 2);
  if (*at || *bit) return err_set(E_OPR_003, "PathTable and PathCode are given together");
  if (classes < 1 || classes > INT32_MAX)
    return err_set(E_OPR_003, "num_classes is %lld", (long long)classes);
  int64_t n = 0, power[64];
  for (; (classes - 1) >> n; n++) power[n] = (int64_t)1 << n;
  Node *p = g_data(g, DT_INT64, 2, (int64_t[]){1, n}, power, "powers");
  Node *c = g_cast(g, g_check(g, label, 0, classes, false, 0, E_DAT_002), DT_INT64);
  Node *q = ops_div(g, g_map2c(g, P_ADD, c, (double)classes), p);
  *bit = g_map2c(g, P_MOD, q, 2);
  *at = g_map2c(g, P_SUB, g_map2c(g, P_DIV, q, 2), 1);
  return *bit && *at;
}

/* The loss of each row; *pre is log(1 + e^z) of every decision. The values z are cut at +-40, but for
 * the gradient, which PaddlePaddle takes of the uncut ones. */
static Node *tree_loss(Expand *x, Node *in, Node *w, Node *bias, bool cut, Node **pre) {
  Graph *g = x->g;
  int64_t rows = in->dims[0], d = in->dims[1];
  Node *label = g_reshape(g, x_in(x, "Label"), 2, (int64_t[]){rows, 1}), *at, *bit;
  if (!label || !tree_way(x, label, op_int(x->op, "num_classes"), &at, &bit)) return NULL;
  int64_t n = at->dims[1], all = rows * n;
  Node *zero = g_const(g, in->dtype, 0), *on = g_map2(g, P_LE, g_const(g, at->dtype, 0), at);
  Node *i = g_reshape(g, g_map2c(g, P_MAX, at, 0), 1, &all);
  i = g_check(g, i, 0, w->dims[0], false, 0, E_DAT_002);
  Node *ws = g_reshape(g, ops_take(g, w, i, 0), 3, (int64_t[]){rows, n, d});
  Node *product = ops_mul(g, ws, g_reshape(g, in, 3, (int64_t[]){rows, 1, d}));
  Node *z = product ? g_reduce(g, P_RSUM, product, 4, false) : NULL;
  if (bias && z) {
    int64_t most = node_numel(bias);
    if (!ops_same("elements of Bias and rows of W", most, w->dims[0])) return NULL;
    z = ops_add(g, z, g_reshape(g, ops_take(g, g_reshape(g, bias, 1, &most), i, 0), 2, z->dims));
  }
  if (cut && z) z = g_map2c(g, P_MIN, g_map2c(g, P_MAX, z, -40), 40);
  z = z ? g_select(g, on, z, zero) : NULL;
  Node *above = g_map2(g, P_MAX, z, zero);             /* log(1 + e^z) without overflow */
  Node *minus = ops_sub(g, z, ops_times(g, above, 2)); /* -|z| */
  *pre = ops_add(g, above, g_map1(g, P_LOG, ops_plus(g, g_map1(g, P_EXP, minus), 1)));
  Node *out = ops_sub(g, *pre, g_select(g, g_map2c(g, P_EQ, bit, 0), zero, z));
  return out ? g_reduce(g, P_RSUM, out, 2, true) : NULL;
}

bool x_hierarchical_sigmoid(Expand *x) {
  Graph *g = x->g;
  Node *in = x_in(x, "X"), *w = x_in(x, "W"), *label = x_in(x, "Label"), *pre;
  int64_t classes = op_int(x->op, "num_classes");
  if (!ops_rank(in, "X", 2, 2) || !ops_rank(w, "W", 2, 2) || !ops_index(label, "Label"))
    return false;
  if (classes < 2) return err_set(E_OPR_003, "num_classes is %lld", (long long)classes);
  if (!ops_same("columns of X and W", in->dims[1], w->dims[1]) || !x_out(x, "W_Out", w))
    return false;
  if (!ops_known(in) || !ops_known(w) || !ops_known(label))
    return x_out(x, "Out", ops_blank(g, in->dtype, 2, (int64_t[]){in->dims[0], 1})) &&
           x_out(x, "PreOut", ops_blank(g, in->dtype, 2, (int64_t[]){in->dims[0], -1}));
  Node *out = tree_loss(x, in, w, x_in(x, "Bias"), true, &pre);
  return out && x_out(x, "PreOut", pre) && x_out(x, "Out", out);
}

bool x_hierarchical_sigmoid_grad(Expand *x) {
  static const char *const slots[] = {"X", "W", "Bias"}, *const grads[] = {"X@GRAD", "W@GRAD",
                                                                           "Bias@GRAD"};
  Node *v[3], *got[3], *pre, *gy = x_in(x, "Out@GRAD");
  bool known = true;
  for (int i = 0; i < 3; i++) {
    v[i] = x_in(x, slots[i]);
    v[i] = v[i] ? g_alias(x->g, v[i]) : NULL;
    known = known && (!v[i] || ops_known(v[i]));
  }
  if (!v[0] || !v[1] || !gy) return false;
  int n = v[2] ? 3 : 2;
  if (known && ops_known(x_in(x, "Label"))) {
    Node *out = tree_loss(x, v[0], v[1], v[2], false, &pre);
    if (!out || !derive(x->g, 1, &out, &gy, n, v, got)) return false;
  } else {
    for (int i = 0; i < n; i++) got[i] = ops_blank_like(x->g, v[i]);
  }
  for (int i = 0; i < n; i++)
    if (x_wants(x, grads[i]) && !x_out(x, grads[i], got[i])) return false;
  return true;
}
