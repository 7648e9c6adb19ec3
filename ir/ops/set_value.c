/* set_value and its gradient: the elements of Input in a box of starts, ends and steps become those of a value. A VIEW reads padding
 * outside of its operand: one spreads the value over Input, one of ones says where the box is, and a selection joins both. */
#include "ops.h"

#include <string.h>

typedef struct Target {
  int n; /* axes */
  int axes[KL_RANK];
  int64_t from[KL_RANK], step[KL_RANK], size[KL_RANK]; /* per dimension of Input */
  bool known;
} Target;

static int64_t into(int64_t v, int64_t lo, int64_t hi) { return v < lo ? lo : v > hi ? hi : v; }

static bool target_axis(Target *t, const Node *in, int axis, int64_t start, int64_t end,
                        int64_t step) {
  int64_t d = in->dims[axis];
  if (step == 0 || step > INT32_MAX || step < -INT32_MAX)
    return err_set(E_OPR_003, "steps holds %lld", (long long)step);
  if (start < 0) start += d;
  if (end < 0 && !(end == -1 && step < 0)) end += d;
  start = step > 0 ? into(start, 0, d) : into(start, -1, d - 1);
  end = step > 0 ? into(end, 0, d) : into(end, -1, d - 1);
  int64_t room = step > 0 ? end - start : start - end, by = step > 0 ? step : -step;
  t->from[axis] = start, t->step[axis] = step, t->size[axis] = room > 0 ? (room - 1) / by + 1 : 0;
  return true;
}

static bool target_read(Expand *x, const Node *in, Target *t) {
  int64_t start[KL_RANK], end[KL_RANK], step[KL_RANK];
  memset(t, 0, sizeof *t);
  int n;
  const int64_t *axes = op_intlist(x->op, "axes", x->g->arena, &n);
  if (n > in->rank) return err_set(E_SHP_003, "%d axes for %d dimensions", n, in->rank);
  int a = ops_list(x, "StartsTensorList", NULL, "starts", start, KL_RANK);
  int b = ops_list(x, "EndsTensorList", NULL, "ends", end, KL_RANK);
  int c = ops_list(x, "StepsTensorList", NULL, "steps", step, KL_RANK);
  if (a < 0 || b < 0 || c < 0) return false;
  if (a != n || b != n || (c != n && c != 0))
    return err_set(E_OPR_003, "%d axes, %d starts, %d ends, %d steps", n, a, b, c);
  t->known = ops_known(in);
  for (int d = 0; d < in->rank; d++) t->from[d] = 0, t->step[d] = 1, t->size[d] = in->dims[d];
  for (int i = 0; i < n; i++) {
    if (!ops_axis("axes", axes[i], in->rank, &t->axes[i])) return false;
    if (start[i] == OPS_UNKNOWN || end[i] == OPS_UNKNOWN || (c && step[i] == OPS_UNKNOWN))
      t->known = false;
    if (t->known && !target_axis(t, in, t->axes[i], start[i], end[i], c ? step[i] : 1))
      return false;
  }
  return true;
}

/* Where each dimension of Input stands in the box: a VIEW reads padding outside. */
static void target_map(const Node *in, const Target *t, AffDim *map) {
  for (int d = 0; d < in->rank; d++) {
    int64_t s = t->step[d];
    map[d] = aff_loop(d);
    map[d].c0 = s > 0 ? 1 : -1;
    map[d].off = s > 0 ? -t->from[d] : t->from[d];
    map[d].div = (int32_t)(s > 0 ? s : -s);
  }
}

static Node *target_mask(Graph *g, const Node *in, const Target *t) {
  AffDim map[KL_RANK];
  target_map(in, t, map);
  return g_view(g, g_full_int(g, DT_BOOL, 1, in->rank, t->size), in->rank, in->dims, map, 0);
}

/* The shape of a value in the box: without the dimensions of decrease_axes, but with none_axes. */
static int value_dims(Expand *x, const Node *in, const Target *t, int64_t *dims) {
  int n_drop, n_none, rank = 0;
  const int64_t *drop = op_intlist(x->op, "decrease_axes", x->g->arena, &n_drop),
                *none = op_intlist(x->op, "none_axes", x->g->arena, &n_none);
  for (int d = 0; d < in->rank; d++) {
    bool gone = false;
    for (int i = 0; i < n_drop; i++) gone |= drop[i] == d;
    if (!gone) dims[rank++] = t->size[d];
  }
  for (int i = 0; i < n_none; i++) {
    if (none[i] < 0 || none[i] > rank || rank == KL_RANK) {
      err_set(E_SHP_003, "none_axes holds %lld", (long long)none[i]);
      return -1;
    }
    memmove(dims + none[i] + 1, dims + none[i], sizeof *dims * (size_t)(rank - none[i]));
    dims[none[i]] = 1;
    rank++;
  }
  return rank;
}

/* The numbers of the attributes: `values`, or one list for each element type in older files. */
static Node *listed_value(Expand *x, DType t) {
  static const char *const names[] = {"bool_values", "int32_values", "int64_values",
                                      "fp32_values", "fp64_values",  "fp16_values"};
  int rank, n = 0;
  const int64_t *shape = op_intlist(x->op, "shape", x->g->arena, &rank);
  const Attr *a = op_attr(x->op, "values");
  for (int i = 0; i < 6 && !(a && a->n > 0); i++) a = op_attr(x->op, names[i]);
  n = a ? a->n : 0;
  if (n < 1 || rank > KL_VAR_RANK || ops_prod(shape, 0, rank) != n) {
    err_set(E_OPR_003, "%d values for the shape %s", n,
            rank <= KL_RANK ? dims_text(rank, shape) : "given");
    return NULL;
  }
  double *v = arena_array(x->g->arena, double, n);
  for (int i = 0; i < n; i++)
    v[i] = a->type == AT_SCALARS
               ? (a->scalars[i].type == 3 ? a->scalars[i].r : (double)a->scalars[i].i)
           : a->type == AT_FLOATS || a->type == AT_FLOAT64S ? a->fs[i]
                                                            : (double)a->is[i];
  return g_cast(x->g, g_data(x->g, DT_FLOAT64, rank, shape, v, "values"), t);
}

bool x_set_value(Expand *x) {
  Graph *g = x->g;
  Node *in = x_in(x, "Input");
  Target t;
  int64_t dims[KL_RANK];
  AffDim map[KL_RANK];
  if (!in || !target_read(x, in, &t)) return false;
  if (!t.known) return x_out(x, "Out", ops_blank_like(g, in));
  Node *v = x_n_in(x, "ValueTensor") > 0 ? g_cast(g, x_in(x, "ValueTensor"), in->dtype)
                                         : listed_value(x, in->dtype);
  int rank = value_dims(x, in, &t, dims);
  if (!v || rank < 0) return false;
  while (v->rank > rank && v->dims[0] == 1) v = g_reshape(g, v, v->rank - 1, v->dims + 1);
  v = g_reshape(g, g_expand_to(g, v, rank, dims), in->rank, t.size);
  target_map(in, &t, map);
  Node *spread = v ? g_view(g, v, in->rank, in->dims, map, 0) : NULL;
  return x_out(x, "Out", g_select(g, target_mask(g, in, &t), spread, in));
}

/* Sums over what was broadcast, to the shape of `like`. */
static Node *summed_to(Graph *g, Node *v, const Node *like) {
  int more = v->rank - like->rank;
  uint32_t axes = 0;
  for (int d = 0; d < v->rank; d++)
    if (d < more || (like->dims[d - more] == 1 && v->dims[d] != 1)) axes |= 1u << d;
  return g_reshape(g, axes ? g_reduce(g, P_RSUM, v, axes, true) : v, like->rank, like->dims);
}

bool x_set_value_grad(Expand *x) {
  Graph *g = x->g;
  Node *gy = x_in(x, "Out@GRAD"), *value = x_in(x, "ValueTensor");
  Target t;
  int64_t dims[KL_RANK];
  if (!gy || !target_read(x, gy, &t)) return false;
  if (!t.known)
    return (!x_wants(x, "Input@GRAD") || x_out(x, "Input@GRAD", gy)) &&
           (!value || !x_wants(x, "ValueTensor@GRAD") ||
            x_out(x, "ValueTensor@GRAD", ops_blank_like(g, value)));
  if (x_wants(x, "Input@GRAD") &&
      !x_out(x, "Input@GRAD", g_select(g, target_mask(g, gy, &t), g_const(g, gy->dtype, 0), gy)))
    return false;
  if (!value || !x_wants(x, "ValueTensor@GRAD")) return true;
  int rank = value_dims(x, gy, &t, dims);
  if (rank < 0) return false;
  Node *box = g_reshape(g, g_slice(g, gy, t.from, t.step, t.size), rank, dims);
  while (box && box->rank < value->rank) { /* leading 1s of the value */
    memmove(dims + 1, dims, sizeof *dims * (size_t)box->rank);
    dims[0] = 1;
    box = g_reshape(g, box, box->rank + 1, dims);
  }
  return box && x_out(x, "ValueTensor@GRAD", summed_to(g, box, value));
}
