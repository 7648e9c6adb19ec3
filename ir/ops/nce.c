/* Noise-contrastive estimation (M. Gutmann and A. Hyvarinen, 2010): of each row the scores of its labels and of classes drawn at
 * random; the cost is that of telling the ones from the others. Labels and drawn classes are kept for the gradient, which is
 * derived from the cost. */
#include "ops.h"

#include <math.h>

typedef struct Nce {
  Node *in, *weight, *bias; /* [N, D], [C, D], [C] or NULL */
  int64_t n, d, true_n, noise, classes;
  Node *sample_weight, *probability, *alias, *alias_probability; /* NULL: none */
} Nce;

static Node *vector_in(Expand *x, const char *slot, int64_t n) {
  Node *v = x_in(x, slot);
  if (!v || !ops_same("the elements of a vector", n, ops_prod(v->dims, 0, v->rank))) return NULL;
  return ops_reshape(x->g, v, 1, &n);
}

static bool nce_read(Expand *x, Nce *k) {
  Node *label = x_in(x, "Label");
  k->in = x_in(x, "Input"), k->weight = x_in(x, "Weight");
  if (!ops_rank(k->in, "Input", 2, 2) || !ops_float(k->in, "Input") ||
      !ops_rank(k->weight, "Weight", 2, 2) || !ops_index(label, "Label") ||
      !ops_rank(label, "Label", 1, 2) ||
      !ops_same("columns of Input and Weight", k->in->dims[1], k->weight->dims[1]) ||
      !ops_same("rows of Input and Label", k->in->dims[0], label->dims[0]))
    return false;
  k->n = k->in->dims[0], k->d = k->in->dims[1];
  k->true_n = label->rank == 2 ? label->dims[1] : 1;
  k->noise = op_int(x->op, "num_neg_samples"), k->classes = op_int(x->op, "num_total_classes");
  if (k->noise < 0 || k->classes < 1 || k->noise > 1 << 20)
    return err_set(E_OPR_003, "num_neg_samples is %lld, num_total_classes %lld",
                   (long long)k->noise, (long long)k->classes);
  if (!ops_same("rows of Weight and num_total_classes", k->weight->dims[0], k->classes))
    return false;
  k->bias = vector_in(x, "Bias", k->classes);
  k->sample_weight = vector_in(x, "SampleWeight", k->n);
  k->probability = vector_in(x, "CustomDistProbs", k->classes);
  k->alias = vector_in(x, "CustomDistAlias", k->classes);
  k->alias_probability = vector_in(x, "CustomDistAliasProbs", k->classes);
  if (op_int(x->op, "sampler") == 2 && (!k->probability || !k->alias || !k->alias_probability) &&
      !err_any())
    return err_set(E_OPR_002,
                   "sampler 2 needs CustomDistProbs, CustomDistAlias and CustomDistAliasProbs");
  return !err_any();
}

/* Classes drawn for each row, [N, K]: uniform, log-uniform, or by the alias method (A. Walker, 1977). */
static Node *drawn(Expand *x, const Nce *k) {
  Graph *g = x->g;
  int64_t seed = op_int(x->op, "seed"), dims[] = {k->n, k->noise}, all = k->n * k->noise;
  double classes = (double)k->classes;
  Node *u = g_random(g, DT_FLOAT32, 2, dims, seed, x_stream(x, 0), seed != 0);
  if (op_int(x->op, "sampler") == 1)
    u = ops_plus(g, g_map1(g, P_EXP, ops_times(g, u, log(classes))), -1);
  else
    u = ops_times(g, u, classes);
  Node *c = g_cast(g, g_map2c(g, P_MIN, u, classes - 1), DT_INT64);
  if (op_int(x->op, "sampler") != 2 || !c) return c;
  Node *flat = g_reshape(g, c, 1, &all), *own = ops_take(g, k->alias_probability, flat, 0);
  Node *v = g_random(g, DT_FLOAT32, 1, &all, seed, x_stream(x, 1), seed != 0);
  Node *other = g_cast(g, ops_take(g, k->alias, flat, 0), DT_INT64);
  c = g_select(g, g_map2(g, P_LT, v, g_cast(g, own, DT_FLOAT32)), flat, other);
  return c ? g_reshape(g, c, 2, dims) : NULL;
}

/* How often each class is expected among those drawn. */
static Node *expected(Expand *x, const Nce *k, Node *samples, DType t) {
  Graph *g = x->g;
  double noise = (double)k->noise, classes = (double)k->classes;
  int64_t all = ops_prod(samples->dims, 0, 2);
  switch (op_int(x->op, "sampler")) {
  case 0: return g_full(g, t, noise / classes, 2, samples->dims);
  case 1: {
    Node *v = g_cast(g, samples, t);
    Node *r = g_map1(g, P_LOG, ops_div(g, ops_plus(g, v, 2), ops_plus(g, v, 1)));
    return ops_times(g, r, classes > 1 ? noise / log(classes) : noise);
  }
  default: {
    Node *p = g_cast(g, ops_take(g, k->probability, g_reshape(g, samples, 1, &all), 0), t);
    return p ? g_reshape(g, ops_times(g, p, noise), 2, samples->dims) : NULL;
  }
  }
}

/* [N, 1]; *scores: [N, T + K], from 0 to 1. */
static Node *nce_cost(Expand *x, const Nce *k, Node *samples, Node **scores) {
  Graph *g = x->g;
  if (!samples) return NULL;
  int64_t m = k->true_n + k->noise, all = k->n * m, dims[] = {k->n, m};
  Node *flat = g_reshape(g, samples, 1, &all);
  Node *rows = g_reshape(g, ops_take(g, k->weight, flat, 0), 3, (int64_t[]){k->n, m, k->d});
  Node *each = ops_mul(g, rows, g_reshape(g, k->in, 3, (int64_t[]){k->n, 1, k->d}));
  Node *z = each ? g_reduce(g, P_RSUM, each, 4, false) : NULL;
  if (k->bias) z = ops_add(g, z, g_reshape(g, ops_take(g, k->bias, flat, 0), 2, dims));
  Node *o = z ? ops_sigmoid(g, z) : NULL, *b = expected(x, k, samples, k->in->dtype);
  if (!o || !b) return NULL;
  Node *is_true = g_map2c(g, P_LT, g_iota(g, DT_INT64, 2, dims, 1), (double)k->true_n);
  Node *cost =
      ops_times(g, g_map1(g, P_LOG, ops_div(g, g_select(g, is_true, o, b), ops_add(g, o, b))), -1);
  cost = cost ? g_reduce(g, P_RSUM, cost, 2, true) : NULL;
  if (k->sample_weight)
    cost = ops_mul(g, cost, g_reshape(g, k->sample_weight, 2, (int64_t[]){k->n, 1}));
  *scores = o;
  return cost;
}

bool x_nce(Expand *x) {
  Graph *g = x->g;
  Nce k = {0};
  Node *label = x_in(x, "Label"), *scores = NULL, *samples[2];
  if (!nce_read(x, &k)) return false;
  int64_t dims[] = {k.n, k.true_n < 0 ? -1 : k.true_n + k.noise};
  if (k.n < 0 || k.d < 0 || k.true_n < 0)
    return x_out(x, "Cost", ops_blank(g, k.in->dtype, 2, (int64_t[]){k.n, 1})) &&
           x_out(x, "SampleLogits", ops_blank(g, k.in->dtype, 2, dims)) &&
           x_out(x, "SampleLabels", ops_blank(g, DT_INT64, 2, dims));
  samples[0] = g_cast(g,
                      g_check(g, g_reshape(g, label, 2, (int64_t[]){k.n, k.true_n}), 0, k.classes,
                              false, 0, E_DAT_002),
                      DT_INT64);
  samples[1] = drawn(x, &k);
  if (!samples[0] || !samples[1]) return false;
  Node *both = g_concat(g, 2, samples, 1), *cost = nce_cost(x, &k, both, &scores);
  return x_out(x, "Cost", cost) && x_out(x, "SampleLogits", scores) &&
         x_out(x, "SampleLabels", both);
}

bool x_nce_grad(Expand *x) {
  static const char *const slots[] = {"Input@GRAD", "Weight@GRAD", "Bias@GRAD"};
  Graph *g = x->g;
  Nce k = {0};
  Node *samples = x_in(x, "SampleLabels"), *gy = x_in(x, "Cost@GRAD"), *own[3], *grad[3] = {NULL},
       *scores;
  if (!nce_read(x, &k) || !samples || !gy) return false;
  Node *like[] = {k.in, k.weight, x_in(x, "Bias")};
  bool known = ops_known(k.in) && k.true_n >= 0;
  int n = like[2] ? 3 : 2;
  own[0] = k.in = g_alias(g, k.in), own[1] = k.weight = g_alias(g, k.weight),
  own[2] = k.bias = k.bias ? g_alias(g, k.bias) : NULL;
  if (known) samples = g_check(g, samples, 0, k.classes, false, 0, E_DAT_002);
  Node *cost = known ? nce_cost(x, &k, samples, &scores) : NULL;
  if (known && (!cost || !derive(g, 1, &cost, &gy, n, own, grad))) return false;
  for (int i = 0; i < n; i++) {
    Node *v = known && grad[i] ? g_reshape(g, grad[i], like[i]->rank, like[i]->dims)
                               : ops_blank_like(g, like[i]);
    if (x_wants(x, slots[i]) && !x_out(x, slots[i], v)) return false;
  }
  return true;
}
