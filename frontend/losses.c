/* Losses and metrics.
 *
 * In: predictions and labels. Out: the loss per row ([N, 1]), or one number where kiln.h says so. */
#include "internal.h"

kl_var *kl_softmax_ce_at(const char *at, kl_var *logits, kl_var *label, bool soft) {
  BUILD_GUARD(var_net(logits), false, NULL);
  kl_net *net = net_of_both(at, logits, label);
  kl_var *softmax =
      kl_op_at(at, net, "softmax_with_cross_entropy", soft ? "soft_label=true" : "soft_label=false",
               "Logits", logits, "Label", label, (const char *)0);
  return kl_output(softmax, "Loss");
}

kl_var *kl_cross_entropy_at(const char *at, kl_var *p, kl_var *label) {
  kl_net *net = net_of_both(at, p, label);
  return kl_op_at(at, net, "cross_entropy2", "", "X", p, "Label", label, (const char *)0);
}

kl_var *kl_bce_at(const char *at, kl_var *x, kl_var *label) {
  kl_net *net = net_of_both(at, x, label);
  return kl_op_at(at, net, "sigmoid_cross_entropy_with_logits", "", "X", x, "Label", label,
                  (const char *)0);
}

kl_var *kl_huber_at(const char *at, kl_var *x, kl_var *y, double delta) {
  BUILD_GUARD(var_net(x), false, NULL);
  kl_net *net = net_of_both(at, x, y);
  Op *op = begin_op(at, net, "huber_loss");
  if (!op) return NULL;
  op_add_in(op, "X", x->name);
  op_add_in(op, "Y", y->name);
  op_set_float(op, "delta", delta);
  if (!end_op(op)) return at_where(at), NULL;
  return block_find_var(op->block, op_out(op, "Out", 0));
}

kl_var *kl_mse_at(const char *at, kl_var *x, kl_var *y) {
  BUILD_GUARD(var_net(x), false, NULL);
  kl_var *d = kl_binary_at(at, "elementwise_sub", "axis=-1", x, y);
  kl_var *square = d ? kl_unary_at(at, "square", "", d) : NULL;
  return square ? kl_unary_at(at, "reduce_mean", "reduce_all=true", square) : NULL;
}

kl_var *kl_accuracy_at(const char *at, kl_var *scores, kl_var *label, int k) {
  BUILD_GUARD(var_net(scores), false, NULL);
  kl_net *net = net_of_both(at, scores, label);
  Op *top = begin_op(at, net, "top_k_v2");
  if (!top) return NULL;
  op_add_in(top, "X", scores->name);
  op_set_int(top, "k", k);
  kl_var *best = end_op(top);
  if (!best) return at_where(at), NULL;
  kl_var *indices = kl_output(best, "Indices");
  return kl_op_at(at, net, "accuracy", "", "Out", best, "Indices", indices, "Label", label,
                  (const char *)0);
}
