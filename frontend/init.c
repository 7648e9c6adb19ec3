/* Initialisers: the startup operator that gives a parameter its first value.
 *
 * In: a parameter and what its creator asked for. Out: one operator in the startup program. Fans are those of
 * PaddlePaddle: [in, out] for matrices, in*receptive and out*receptive for filters [out, in, kernel...].
 * Glorot & Bengio 2010 (Xavier), He et al. 2015 (Kaiming). */
#include "internal.h"
#include <math.h>
#include <string.h>

enum InitKind {
  INIT_DEFAULT,
  INIT_CONSTANT,
  INIT_UNIFORM,
  INIT_NORMAL,
  INIT_TRUNCATED,
  INIT_XAVIER_UNIFORM,
  INIT_XAVIER_NORMAL,
  INIT_KAIMING_UNIFORM,
  INIT_KAIMING_NORMAL,
  INIT_VALUES
};

kl_init kl_constant(double value) { return (kl_init){INIT_CONSTANT, value, 0, NULL}; }
kl_init kl_uniform(double low, double high) { return (kl_init){INIT_UNIFORM, low, high, NULL}; }
kl_init kl_normal(double mean, double std) { return (kl_init){INIT_NORMAL, mean, std, NULL}; }
kl_init kl_truncated_normal(double mean, double std) {
  return (kl_init){INIT_TRUNCATED, mean, std, NULL};
}
kl_init kl_xavier_uniform(void) { return (kl_init){INIT_XAVIER_UNIFORM, 0, 0, NULL}; }
kl_init kl_xavier_normal(void) { return (kl_init){INIT_XAVIER_NORMAL, 0, 0, NULL}; }
kl_init kl_kaiming_uniform(void) { return (kl_init){INIT_KAIMING_UNIFORM, 0, 0, NULL}; }
kl_init kl_kaiming_normal(void) { return (kl_init){INIT_KAIMING_NORMAL, 0, 0, NULL}; }
kl_init kl_values(const kl_tensor *value) { return (kl_init){INIT_VALUES, 0, 0, value}; }

static void fans(const Var *v, double *in, double *out) {
  double receptive = 1;
  for (int i = 2; i < v->rank; i++) receptive *= (double)v->dims[i];
  double d0 = v->rank > 0 ? (double)v->dims[0] : 1, d1 = v->rank > 1 ? (double)v->dims[1] : d0;
  bool filter = v->rank > 2;
  *in = (filter ? d1 : d0) * receptive;
  *out = (filter ? d0 : d1) * receptive;
}

/* What the scaled kinds come to: a uniform or normal distribution. */
static kl_init resolve(const Var *v, kl_init k, bool is_bias) {
  double in, out;
  fans(v, &in, &out);
  double xavier = 2 / fmax(in + out, 1), kaiming = 2 / fmax(in, 1); /* variances */
  switch (k.kind) {
  case INIT_DEFAULT: return is_bias ? kl_constant(0) : resolve(v, kl_xavier_uniform(), false);
  case INIT_XAVIER_UNIFORM: return kl_uniform(-sqrt(3 * xavier), sqrt(3 * xavier));
  case INIT_XAVIER_NORMAL: return kl_normal(0, sqrt(xavier));
  case INIT_KAIMING_UNIFORM: return kl_uniform(-sqrt(3 * kaiming), sqrt(3 * kaiming));
  case INIT_KAIMING_NORMAL: return kl_normal(0, sqrt(kaiming));
  default: return k;
  }
}

/* The attribute of assign_value that holds values of each type. */
static const struct {
  DType dtype;
  const char *attr;
  AttrType type;
} value_attrs[] = {
    {DT_FLOAT32, "fp32_values", AT_FLOATS}, {DT_FLOAT64, "fp64_values", AT_FLOAT64S},
    {DT_INT32, "int32_values", AT_INTS},    {DT_INT64, "int64_values", AT_LONGS},
    {DT_BOOL, "bool_values", AT_INTS},
};

static bool set_values(Op *op, const Var *v, const Tensor *t) {
  if (!t || !t->data || t->dtype != v->dtype || t->rank != v->rank ||
      memcmp(t->dims, v->dims, sizeof *t->dims * (size_t)t->rank)) {
    return err_set(E_SHP_006, "initial values for %s are %s, the parameter is %s", quoted(v->name),
                   t && t->data ? shape_text(t->dtype, t->rank, t->dims) : "missing",
                   shape_text(v->dtype, v->rank, v->dims));
  }
  Arena *a = op->block->prog->arena;
  int64_t n = tensor_numel(t);
  for (size_t i = 0; i < sizeof value_attrs / sizeof *value_attrs; i++) {
    if (value_attrs[i].dtype != v->dtype) continue;
    Attr x = {.name = value_attrs[i].attr, .type = value_attrs[i].type, .n = (int)n};
    bool real = dtype_is_float(v->dtype);
    if (real)
      x.fs = arena_array(a, double, n + 1);
    else
      x.is = arena_array(a, int64_t, n + 1);
    for (int64_t j = 0; j < n; j++) {
      if (real)
        x.fs[j] = tensor_get(t, j);
      else
        x.is[j] = v->dtype == DT_INT64 ? ((int64_t *)t->data)[j] : (int64_t)tensor_get(t, j);
    }
    op_set_attr(op, &x);
    return true;
  }
  return err_set(E_OPR_004, "parameters of type %s cannot be given values",
                 dtype_info[v->dtype].name);
}

static const struct {
  enum InitKind kind;
  const char *op, *a, *b; /* operator and the attributes that hold a and b */
} init_ops[] = {
    {INIT_CONSTANT, "fill_constant", "value", NULL},
    {INIT_UNIFORM, "uniform_random", "min", "max"},
    {INIT_NORMAL, "gaussian_random", "mean", "std"},
    {INIT_TRUNCATED, "truncated_gaussian_random", "mean", "std"},
    {INIT_VALUES, "assign_value", NULL, NULL},
};

bool init_param(kl_net *net, const Var *v, kl_init init, bool is_bias) {
  init = resolve(v, init, is_bias);
  if (!isfinite(init.a) || !isfinite(init.b) || (init.kind == INIT_UNIFORM && init.a > init.b))
    return err_set(E_ARG_002, "initial values of %s: %g and %g", quoted(v->name), init.a, init.b),
           at_where(net->at), false;
  for (size_t i = 0; i < sizeof init_ops / sizeof *init_ops; i++) {
    if ((int)init_ops[i].kind != init.kind) continue;
    Op *op = block_add_op(net->startup->blocks.v[0], init_ops[i].op);
    keep_place(op, net->at);
    op_add_out(op, "Out", v->name);
    op_set_ints(op, "shape", v->rank, v->dims);
    op_set_int(op, "dtype", dtype_info[v->dtype].paddle);
    if (init_ops[i].a) op_set_float(op, init_ops[i].a, init.a);
    if (init_ops[i].b) op_set_float(op, init_ops[i].b, init.b);
    if (opdef_attr(op->def, "seed")) op_set_int(op, "seed", net->startup->seed);
    if (init.kind == INIT_CONSTANT)
      op_set_str(op, "str_value", arena_fmt(net->startup->arena, "%.17g", init.a));
    return (init.kind != INIT_VALUES || set_values(op, v, as_tensor(init.value))) &&
           (infer_op(op) || (at_where(net->at), false));
  }
  return err_set(E_ARG_002, "unknown initialiser kind %d", init.kind);
}
