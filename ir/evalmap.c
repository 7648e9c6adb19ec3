/* The interpreter's maps, in blocks: operands are loaded as double (floating types) or int64 (the others), computed, and
 * stored with one rounding or modulo the width. */
#include "eval.h"
#include <math.h>
#include <string.h>

enum { BLOCK = 256 };

static bool is_half(DType t) { return t == DT_FLOAT16 || t == DT_BFLOAT16; }

static void load_f(DType t, const void *p, int64_t at, int64_t n, double *to) {
  if (is_half(t)) {
    for (int64_t i = 0; i < n; i++) to[i] = half_to_double(t, ((const uint16_t *)p)[at + i]);
    return;
  }
  switch (t) {
#define DTYPE(id, text, paddle, size, ctype, class)                                                \
  case DT_##id:                                                                                    \
    for (int64_t i = 0; i < n; i++) to[i] = (double)((const ctype *)p)[at + i];                    \
    break;
#include "dtypes.def"
#undef DTYPE
  default: break;
  }
}

static void load_i(DType t, const void *p, int64_t at, int64_t n, int64_t *to) {
  switch (t) {
#define DTYPE(id, text, paddle, size, ctype, class)                                                \
  case DT_##id:                                                                                    \
    if (class != 'f')                                                                              \
      for (int64_t i = 0; i < n; i++) to[i] = (int64_t)((const ctype *)p)[at + i];                 \
    break;
#include "dtypes.def"
#undef DTYPE
  default: break;
  }
}

void store_f(DType t, void *p, int64_t at, int64_t n, const double *from) {
  Tensor to = {.dtype = t, .data = p};
  if (t == DT_FLOAT32)
    for (int64_t i = 0; i < n; i++) ((float *)p)[at + i] = (float)from[i];
  else if (t == DT_FLOAT64)
    memcpy((double *)p + at, from, (size_t)n * sizeof *from);
  else
    for (int64_t i = 0; i < n; i++) tensor_set(&to, at + i, from[i]);
}

void store_i(DType t, void *p, int64_t at, int64_t n, const int64_t *from) {
  switch (t) {
#define DTYPE(id, text, paddle, size, ctype, class)                                                \
  case DT_##id:                                                                                    \
    for (int64_t i = 0; i < n; i++)                                                                \
      ((ctype *)p)[at + i] = class == 'b' ? (ctype)(from[i] != 0) : (ctype)from[i];                \
    break;
#include "dtypes.def"
#undef DTYPE
  default: break;
  }
}

double *all_f(Eval *e, const Node *n, int k) {
  int64_t count = node_numel(n->in[k]);
  double *to = arena_array(e->tmp, double, count);
  load_f(n->in[k]->dtype, eval_in(e, n, k), 0, count, to);
  return to;
}

int64_t *all_i(Eval *e, const Node *n, int k) {
  int64_t count = node_numel(n->in[k]);
  int64_t *to = arena_array(e->tmp, int64_t, count);
  load_i(n->in[k]->dtype, eval_in(e, n, k), 0, count, to);
  return to;
}

/* x - y*floor(x/y) without its roundings */
static double mod_f(double x, double y) {
  double r = fmod(x, y);
  return r != 0 && (r < 0) != (y < 0) ? r + y : r;
}

static double max_f(double x, double y) { return isnan(x) || x > y ? x : y; }
static double min_f(double x, double y) { return isnan(x) || x < y ? x : y; }

static int64_t add_i(int64_t x, int64_t y) { return (int64_t)((uint64_t)x + (uint64_t)y); }
static int64_t sub_i(int64_t x, int64_t y) { return (int64_t)((uint64_t)x - (uint64_t)y); }
static int64_t mul_i(int64_t x, int64_t y) { return (int64_t)((uint64_t)x * (uint64_t)y); }

static int64_t div_i(int64_t x, int64_t y) {
  if (y == 0) return 0;
  if (y == -1) return sub_i(0, x);
  return x / y - (x % y != 0 && (x < 0) != (y < 0));
}

static int64_t mod_i(int64_t x, int64_t y) {
  if (y == 0 || y == -1) return 0;
  int64_t r = x % y;
  return r != 0 && (r < 0) != (y < 0) ? r + y : r;
}

static int64_t pow_i(int64_t x, int64_t y) {
  if (y < 0) return x == 1 ? 1 : x == -1 ? (y % 2 ? -1 : 1) : 0;
  int64_t r = 1;
  for (; y; y >>= 1, x = mul_i(x, x))
    if (y & 1) r = mul_i(r, x);
  return r;
}

#define EACH(expr)                                                                                 \
  for (int i = 0; i < n; i++) r[i] = (expr);                                                       \
  break

static void map_f(Prim p, int n, const double *x, const double *y, double *r) {
  switch (p) {
  case P_EXP: EACH(exp(x[i]));
  case P_LOG: EACH(log(x[i]));
  case P_SQRT: EACH(sqrt(x[i]));
  case P_SIN: EACH(sin(x[i]));
  case P_TANH: EACH(tanh(x[i]));
  case P_ERF: EACH(erf(x[i]));
  case P_FLOOR: EACH(floor(x[i]));
  case P_ADD: EACH(x[i] + y[i]);
  case P_SUB: EACH(x[i] - y[i]);
  case P_MUL: EACH(x[i] * y[i]);
  case P_DIV: EACH(x[i] / y[i]);
  case P_MOD: EACH(mod_f(x[i], y[i]));
  case P_POW: EACH(pow(x[i], y[i]));
  case P_MAX: EACH(max_f(x[i], y[i]));
  case P_MIN: EACH(min_f(x[i], y[i]));
  default: break;
  }
}

static void map_i(Prim p, int n, const int64_t *x, const int64_t *y, int64_t *r) {
  switch (p) {
  case P_ADD: EACH(add_i(x[i], y[i]));
  case P_SUB: EACH(sub_i(x[i], y[i]));
  case P_MUL: EACH(mul_i(x[i], y[i]));
  case P_DIV: EACH(div_i(x[i], y[i]));
  case P_MOD: EACH(mod_i(x[i], y[i]));
  case P_POW: EACH(pow_i(x[i], y[i]));
  case P_MAX: EACH(x[i] > y[i] ? x[i] : y[i]);
  case P_MIN: EACH(x[i] < y[i] ? x[i] : y[i]);
  case P_LT: EACH(x[i] < y[i]);
  case P_LE: EACH(x[i] <= y[i]);
  case P_EQ: EACH(x[i] == y[i]);
  default: break;
  }
}

static void compare_f(Prim p, int n, const double *x, const double *y, int64_t *r) {
  switch (p) {
  case P_LT: EACH(x[i] < y[i]);
  case P_LE: EACH(x[i] <= y[i]);
  case P_EQ: EACH(x[i] == y[i]);
  default: break;
  }
}

bool eval_map(Eval *e, const Node *n, Tensor *out) {
  double f[3][BLOCK];
  int64_t i[3][BLOCK], count = node_numel(n);
  DType t = n->in[0]->dtype;
  bool compares = n->prim == P_LT || n->prim == P_LE || n->prim == P_EQ;
  for (int64_t at = 0; at < count; at += BLOCK) {
    int m = count - at < BLOCK ? (int)(count - at) : BLOCK;
    for (int k = 0; k < n->n_in; k++)
      if (dtype_is_float(t))
        load_f(t, eval_in(e, n, k), at, m, f[k]);
      else
        load_i(t, eval_in(e, n, k), at, m, i[k]);
    if (!dtype_is_float(t))
      map_i(n->prim, m, i[0], i[1], i[2]);
    else if (compares)
      compare_f(n->prim, m, f[0], f[1], i[2]);
    else
      map_f(n->prim, m, f[0], f[1], f[2]);
    if (dtype_is_float(n->dtype))
      store_f(n->dtype, out->data, at, m, f[2]);
    else
      store_i(n->dtype, out->data, at, m, i[2]);
  }
  return true;
}

/* Integers to float32 are rounded once, not by way of double. */
bool eval_cast(Eval *e, const Node *n, Tensor *out) {
  DType from = n->in[0]->dtype;
  int64_t count = node_numel(n), v;
  double f;
  for (int64_t k = 0; k < count; k++) {
    if (dtype_is_float(from)) {
      load_f(from, eval_in(e, n, 0), k, 1, &f);
      tensor_set(out, k, f);
      continue;
    }
    load_i(from, eval_in(e, n, 0), k, 1, &v);
    if (n->dtype == DT_FLOAT32)
      ((float *)out->data)[k] = (float)v;
    else if (dtype_is_float(n->dtype))
      tensor_set(out, k, (double)v);
    else
      store_i(n->dtype, out->data, k, 1, &v);
  }
  return true;
}

bool eval_select(Eval *e, const Node *n, Tensor *out) {
  const uint8_t *c = eval_in(e, n, 0);
  const char *x = eval_in(e, n, 1), *y = eval_in(e, n, 2);
  size_t size = (size_t)dtype_info[n->dtype].size;
  int64_t count = node_numel(n);
  for (int64_t k = 0; k < count; k++)
    memcpy((char *)out->data + (size_t)k * size, (c[k] ? x : y) + (size_t)k * size, size);
  return true;
}
