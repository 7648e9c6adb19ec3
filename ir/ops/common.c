/* What the expansion functions share: see ops.h.
 *
 * Integer lists may be given by tensors. They are usable where these depend on constants only (a folded shape
 * computation); then the plain interpreter computes them during the expansion. */
#include "ops.h"

#include <string.h>

enum { MAX_CONST_VISITS = 4096 }; /* nodes looked at before a tensor counts as not constant */

bool ops_axis(const char *attr, int64_t axis, int rank, int *out) {
  if (axis < -rank || axis >= rank) {
    err_set(E_SHP_003, "%s %lld is outside %d..%d", attr, (long long)axis, -rank, rank - 1);
    err_help("The operand has %d dimensions; negative axes count from the last.", rank);
    return false;
  }
  *out = (int)(axis < 0 ? axis + rank : axis);
  return true;
}

bool ops_axes(Expand *x, const char *attr, int rank, uint32_t *set) {
  int n, axis;
  const int64_t *v = op_intlist(x->op, attr, x->g->arena, &n);
  *set = 0;
  for (int i = 0; i < n; i++) {
    if (!ops_axis(attr, v[i], rank, &axis)) return false;
    if (*set >> axis & 1) return err_set(E_SHP_003, "%s names axis %d twice", attr, axis);
    *set |= 1u << axis;
  }
  return true;
}

bool ops_rank(const Node *n, const char *slot, int lo, int hi) {
  if (!n) return false;
  if (n->rank >= lo && n->rank <= hi) return true;
  if (lo == hi)
    err_set(E_SHP_002, "%s has %d dimensions, %d needed", slot, n->rank, lo);
  else
    err_set(E_SHP_002, "%s has %d dimensions, %d to %d needed", slot, n->rank, lo, hi);
  err_note("%s is %s", slot, shape_text(n->dtype, n->rank, n->dims));
  err_help("Reshape what feeds %s.", slot);
  return false;
}

bool ops_float(const Node *n, const char *slot) {
  if (!n) return false;
  if (dtype_is_float(n->dtype)) return true;
  err_set(E_TYP_002, "%s is %s, a floating type is needed", slot, dtype_info[n->dtype].name);
  err_help("Insert a cast before this operator.");
  return false;
}

bool ops_index(const Node *n, const char *slot) {
  if (!n) return false;
  if (n->dtype == DT_INT32 || n->dtype == DT_INT64) return true;
  err_set(E_TYP_002, "%s is %s, int32 or int64 is needed", slot, dtype_info[n->dtype].name);
  err_help("Feed indices as int64, or insert a cast before this operator.");
  return false;
}

bool ops_table(const char *what, int64_t rows, int64_t columns) {
  enum { MOST = 1 << 24 };
  int64_t n;
  if (mul_ok(rows, columns, &n) && n <= MOST) return true;
  err_set(E_MEM_002, "%s: a table of %lld x %lld numbers; at most %d are made while compiling",
          what, (long long)rows, (long long)columns, MOST);
  return false;
}

bool ops_same(const char *what, int64_t a, int64_t b) {
  if (a == b || a == -1 || b == -1) return true;
  err_set(E_SHP_006, "%s differ: %lld and %lld", what, (long long)a, (long long)b);
  err_help("Make the two dimensions equal.");
  return false;
}

bool ops_ints(Expand *x, const char *attr, int n, int64_t lo, int64_t hi, int64_t *out) {
  int have;
  const int64_t *v = op_intlist(x->op, attr, x->g->arena, &have);
  if (have != n && have != 1) {
    err_set(E_OPR_003, "%s has %d values, %d needed", attr, have, n);
    err_help("Give %s one value for each spatial dimension.", attr);
    return false;
  }
  for (int i = 0; i < n; i++) {
    out[i] = v[have == 1 ? 0 : i];
    if (out[i] >= lo && out[i] <= hi) continue;
    err_set(E_OPR_003, "%s holds %lld, allowed is %lld..%lld", attr, (long long)out[i],
            (long long)lo, (long long)hi);
    err_help("Correct the attribute %s.", attr);
    return false;
  }
  return true;
}

bool ops_layout(Expand *x, const char *attr, bool *last) {
  static const char *const words[] = {"NCHW", "NHWC", "NCDHW", "NDHWC",
                                      "NCL",  "NLC",  "NC",    "AnyLayout"};
  int i = op_word(x->op, attr, 8, words);
  *last = i == 1 || i == 3 || i == 5;
  return i >= 0;
}

/* Breadth-first over the operands; shared operands are counted once per use, which the limit bounds. */
static bool is_constant(Graph *g, Node *root) {
  VEC(Node *) todo = {0};
  vec_add(g->arena, &todo, root);
  for (int i = 0; i < todo.n; i++) {
    Node *n = todo.v[i];
    if (!n || todo.n > MAX_CONST_VISITS || !ops_known(n)) return false;
    if (n->prim == P_FEED || n->prim == P_STATE || n->prim == P_RANDOM || n->prim == P_CALL)
      return false;
    for (int k = 0; k < n->n_in; k++) vec_add(g->arena, &todo, n->in[k]);
  }
  return true;
}

static Tensor *no_value(void *user, const char *name, bool state) {
  (void)user, (void)name, (void)state;
  return NULL;
}

bool ops_value(Graph *g, Node *n, Tensor *value) {
  if (!n || n->rank > KL_VAR_RANK || !is_constant(g, n)) return false;
  NamedNode fetch = {"value", n, NULL};
  Graph part = {.arena = g->arena}; /* the nodes that n needs */
  for (int i = 0; i < g->nodes.n; i++) g->nodes.v[i]->mark = g->nodes.v[i] == n;
  for (int i = g->nodes.n - 1; i >= 0; i--)
    for (int k = 0; g->nodes.v[i]->mark && k < g->nodes.v[i]->n_in; k++)
      g->nodes.v[i]->in[k]->mark = 1;
  for (int i = 0; i < g->nodes.n; i++)
    if (g->nodes.v[i]->mark) vec_add(g->arena, &part.nodes, g->nodes.v[i]);
  part.fetches.v = &fetch;
  part.fetches.n = part.fetches.cap = 1;
  EvalEnv env = {.lookup = no_value};
  Tensor **values = arena_array(g->arena, Tensor *, part.nodes.n);
  bool ok = graph_eval(&part, &env, g->arena, values);
  if (ok) *value = *values[n->id];
  graph_number(g);
  return ok;
}

bool ops_constant(Graph *g, Node *n, int64_t *v, int max, int *count) {
  Tensor t;
  if (!n || dtype_is_float(n->dtype) || node_numel(n) > max || !ops_value(g, n, &t)) return false;
  *count = (int)tensor_numel(&t);
  for (int i = 0; i < *count; i++)
    v[i] = t.dtype == DT_INT64 ? ((const int64_t *)t.data)[i] : (int64_t)tensor_get(&t, i);
  return true;
}

bool ops_not_constant(Graph *g, Node *n, const char *slot) {
  g->unknown = n;
  err_set(E_OPR_006, "the value of %s is not known before the run", slot);
  err_help("Give the numbers as the attribute, or compute them from shapes.");
  return false;
}

/* A known number is never OPS_UNKNOWN: the least of all counts as the next one. */
static int known_list(int64_t *v, int n) {
  for (int i = 0; i < n; i++) v[i] += v[i] == OPS_UNKNOWN;
  return n;
}

/* The elements of one tensor, or one unknown for each if that is allowed. */
static int list_of_tensor(Expand *x, const char *slot, Node *n, int64_t *v, int max) {
  int count = 0;
  if (!n) return -1;
  if (ops_constant(x->g, n, v, max, &count)) return known_list(v, count);
  if (err_any()) return -1;
  if (!x->g->shapes_only) return ops_not_constant(x->g, n, slot), -1;
  int64_t numel = ops_prod(n->dims, 0, n->rank);
  if (numel < 0 || numel > max) {
    err_set(E_SHP_002, "%s is %s, a vector of at most %d elements is needed", slot,
            dims_text(n->rank, n->dims), max);
    return -1;
  }
  for (int i = 0; i < numel; i++) v[i] = OPS_UNKNOWN;
  return (int)numel;
}

int ops_list(Expand *x, const char *list_slot, const char *slot, const char *attr, int64_t *v,
             int max) {
  int n = list_slot ? x_n_in(x, list_slot) : 0;
  if (n > 0) {
    if (n > max) return err_set(E_SHP_002, "%s has %d tensors, at most %d", list_slot, n, max), -1;
    for (int i = 0; i < n; i++) {
      int one = list_of_tensor(x, list_slot, x_in_at(x, list_slot, i), v + i, 1);
      if (one < 0) return -1;
      if (one != 1) return err_set(E_SHP_006, "tensor %d of %s is empty", i, list_slot), -1;
    }
    return n;
  }
  Node *t = slot ? x_in(x, slot) : NULL;
  if (t) return list_of_tensor(x, slot, t, v, max);
  if (slot && x_n_in(x, slot) > 0) return -1;
  if (!attr) return 0;
  const int64_t *a = op_intlist(x->op, attr, x->g->arena, &n);
  if (n > max) return err_set(E_SHP_002, "%s has %d values, at most %d", attr, n, max), -1;
  for (int i = 0; i < n; i++) v[i] = a[i];
  return known_list(v, n);
}

Node *ops_blank(Graph *g, DType t, int rank, const int64_t *dims) {
  if (rank > KL_RANK) {
    err_set(E_SHP_002, "the result would have %d dimensions, at most %d", rank, KL_RANK);
    return NULL;
  }
  return g_full(g, t, 0, rank, dims);
}

Node *ops_blank_like(Graph *g, const Node *n) {
  return n ? g_full(g, n->dtype, 0, n->rank, n->dims) : NULL;
}

Node *ops_zeros(Graph *g, const Node *like) { return ops_blank_like(g, like); }

bool ops_known(const Node *n) {
  for (int i = 0; i < n->rank; i++)
    if (n->dims[i] < 0) return false;
  return true;
}

int64_t ops_prod(const int64_t *dims, int from, int to) {
  int64_t p = 1;
  for (int i = from; i < to; i++) {
    if (dims[i] == 0) return 0;
    if (dims[i] < 0 || p < 0 || !mul_ok(p, dims[i], &p)) p = -1;
  }
  return p;
}

Node *ops_reshape(Graph *g, Node *n, int rank, const int64_t *dims) {
  if (!n) return NULL;
  bool known = ops_known(n);
  for (int i = 0; i < rank; i++) known &= dims[i] >= 0;
  if (!known && g->shapes_only) return ops_blank(g, n->dtype, rank, dims);
  return g_reshape(g, n, rank, dims);
}

Node *ops_along(Graph *g, Node *v, int rank, int axis) {
  if (!v) return NULL;
  int64_t dims[KL_RANK];
  for (int i = 0; i < rank; i++) dims[i] = 1;
  dims[axis] = ops_prod(v->dims, 0, v->rank);
  return ops_reshape(g, v, rank, dims);
}

Node *ops_channels_first(Graph *g, Node *n) {
  if (!n) return NULL;
  int perm[KL_RANK] = {0, n->rank - 1};
  for (int i = 2; i < n->rank; i++) perm[i] = i - 1;
  return g_permute(g, n, perm);
}

Node *ops_channels_last(Graph *g, Node *n) {
  if (!n) return NULL;
  int perm[KL_RANK] = {0};
  for (int i = 1; i < n->rank - 1; i++) perm[i] = i + 1;
  perm[n->rank - 1] = 1;
  return g_permute(g, n, perm);
}

Node *ops_cut(Graph *g, Node *x, int axis, int64_t start, int64_t step, int64_t n) {
  if (!x) return NULL;
  int64_t s[KL_RANK] = {0}, st[KL_RANK], size[KL_RANK];
  for (int i = 0; i < x->rank; i++) st[i] = 1, size[i] = x->dims[i];
  s[axis] = start, st[axis] = step, size[axis] = n;
  return g_slice(g, x, s, st, size);
}

Node *ops_take(Graph *g, Node *x, Node *idx, int axis) {
  if (!x || !idx) return NULL;
  int64_t dims[KL_RANK];
  for (int i = 0; i < x->rank; i++) dims[i] = x->dims[i];
  dims[axis] = ops_prod(idx->dims, 0, idx->rank);
  for (int i = 0; i < x->rank; i++)
    if (dims[i] < 0) return ops_blank(g, x->dtype, x->rank, dims);
  return g_gather(g, x, g_expand(g, ops_along(g, idx, x->rank, axis), x->rank, dims), axis);
}

bool ops_paddings(Expand *x, Window *w, const int64_t *in) {
  static const char *const words[] = {"EXPLICIT", "SAME", "VALID", ""};
  int alg = op_word(x->op, "padding_algorithm", 4, words);
  if (alg < 0) return false;
  if (alg == 3) alg = 0;
  int n;
  const int64_t *p = op_intlist(x->op, "paddings", x->g->arena, &n);
  for (int i = 0; i < w->n_sp; i++) {
    w->lo[i] = w->hi[i] = 0;
    if (alg == 1) {
      w->dil[i] = 1;
      if (in[i] < 0) continue;
      int64_t out = in[i] / w->stride[i] + (in[i] % w->stride[i] != 0);
      int64_t sum = (out - 1) * w->stride[i] + w->k[i] - in[i];
      w->lo[i] = sum > 0 ? sum / 2 : 0;
      w->hi[i] = sum > 0 ? sum - sum / 2 : 0;
    }
    if (alg != 0) continue;
    if (n != 1 && n != w->n_sp && n != 2 * w->n_sp) {
      err_set(E_OPR_003, "paddings has %d values, %d or %d needed", n, w->n_sp, 2 * w->n_sp);
      err_help("Give one value per spatial dimension, or two (before, after).");
      return false;
    }
    w->lo[i] = n == 1 ? p[0] : n == w->n_sp ? p[i] : p[2 * i];
    w->hi[i] = n == 2 * w->n_sp ? p[2 * i + 1] : w->lo[i];
    int64_t bad = w->lo[i] < 0 || w->lo[i] > INT32_MAX ? w->lo[i] : w->hi[i];
    if (bad >= 0 && bad <= INT32_MAX) continue;
    err_set(E_OPR_003, "paddings holds %lld", (long long)bad);
    err_help("Paddings must not be negative.");
    return false;
  }
  return true;
}

bool ops_window_out(const Window *w, int i, int64_t in, bool ceil_mode, int64_t *out) {
  *out = -1;
  if (in < 0) return true;
  int64_t room = in + w->lo[i] + w->hi[i] - w->dil[i] * (w->k[i] - 1) - 1;
  if (ceil_mode) room += w->stride[i] - 1;
  *out = room < 0 ? 0 : room / w->stride[i] + 1;
  if (*out > 0) return true;
  err_set(E_SHP_005,
          "a window of %lld does not fit into %lld + %lld + %lld of spatial dimension %d",
          (long long)(w->dil[i] * (w->k[i] - 1) + 1), (long long)in, (long long)w->lo[i],
          (long long)w->hi[i], i);
  err_help("Use a smaller kernel or dilation, more padding, or a larger input.");
  return false;
}

int ops_axis_of(Expand *x, const char *slot, int rank, int *axis) {
  int64_t a;
  int n = ops_list(x, NULL, slot, "axis", &a, 1);
  if (n < 0) return 0;
  if (n == 0) return err_set(E_OPR_003, "no axis is given"), 0;
  if (a == OPS_UNKNOWN) return -1;
  return ops_axis("axis", a, rank, axis);
}

bool ops_out_unknown(Expand *x, const char *slot, DType t, int rank) {
  int64_t dims[KL_RANK];
  for (int i = 0; i < KL_RANK; i++) dims[i] = -1;
  for (int i = 0; i < x_n_out(x, slot); i++)
    if (!x_out_at(x, slot, i, ops_blank(x->g, t, rank, dims))) return false;
  return true;
}

Node *ops_sigmoid(Graph *g, Node *v) {
  Node *e = v ? g_map1(g, P_EXP, g_map2c(g, P_MUL, g_map2c(g, P_MAX, v, -80), -1)) : NULL;
  return e ? g_map2(g, P_DIV, g_const(g, v->dtype, 1), g_map2c(g, P_ADD, e, 1)) : NULL;
}
