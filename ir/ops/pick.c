/* Setting, picking and counting by position: set_value, put_along_axis, crops, kthvalue, searchsorted, and others. */
#include "ops.h"

#include <string.h>

/* ---- set_value ---- */

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

/* ---- crops ---- */

static bool cropped(Expand *x, const int64_t *shape, const int64_t *off, int n, int n_off) {
  Node *in = x_in(x, "X");
  int64_t from[KL_RANK], step[KL_RANK], size[KL_RANK];
  if (!in) return false;
  if ((n != in->rank && n != 0) || (n_off != in->rank && n_off != 0))
    return err_set(E_OPR_003, "%d sizes and %d offsets for %d dimensions", n, n_off, in->rank);
  bool known = ops_known(in);
  for (int d = 0; d < in->rank; d++) {
    from[d] = n_off ? off[d] : 0, step[d] = 1;
    size[d] = n ? shape[d] : -1;
    if (from[d] == OPS_UNKNOWN || size[d] == OPS_UNKNOWN)
      known = false, size[d] = -1;
    else if (size[d] == -1 && in->dims[d] >= 0)
      size[d] = in->dims[d] - from[d];
    if (!known || (from[d] >= 0 && size[d] >= 0 && size[d] <= in->dims[d] - from[d])) continue;
    return err_set(E_SHP_007, "%lld elements from %lld on of %lld in dimension %d",
                   (long long)size[d], (long long)from[d], (long long)in->dims[d], d);
  }
  return x_out(x, "Out",
               known ? g_slice(x->g, in, from, step, size)
                     : ops_blank(x->g, in->dtype, in->rank, size));
}

bool x_crop_tensor(Expand *x) {
  int64_t shape[KL_RANK], off[KL_RANK];
  int n = ops_list(x, "ShapeTensor", "Shape", "shape", shape, KL_RANK);
  int m = ops_list(x, "OffsetsTensor", "Offsets", "offsets", off, KL_RANK);
  return n >= 0 && m >= 0 && cropped(x, shape, off, n, m);
}

bool x_crop(Expand *x) {
  int64_t shape[KL_RANK], off[KL_RANK];
  Node *like = x_in(x, "Y");
  int n = like ? like->rank : ops_list(x, NULL, NULL, "shape", shape, KL_RANK);
  int m = ops_list(x, NULL, "Offsets", "offsets", off, KL_RANK);
  if (like) memcpy(shape, like->dims, sizeof shape);
  return n >= 0 && m >= 0 && cropped(x, shape, off, n, m);
}

/* The gradient in a box of zeros. */
static bool uncropped(Expand *x, const char *list) {
  Node *in = x_in(x, "X"), *gy = x_in(x, "Out@GRAD");
  int64_t off[KL_RANK], hi[KL_RANK];
  int n = ops_list(x, list, "Offsets", "offsets", off, KL_RANK);
  if (n < 0 || !in || !gy || !ops_rank(gy, "Out@GRAD", in->rank, in->rank)) return false;
  bool known = ops_known(in) && ops_known(gy) && (n == 0 || n == in->rank);
  for (int d = 0; d < in->rank; d++) {
    if (n == 0) off[d] = 0;
    known = known && off[d] != OPS_UNKNOWN;
    hi[d] = known ? in->dims[d] - off[d] - gy->dims[d] : 0;
  }
  return x_out(x, "X@GRAD", known ? g_pad(x->g, gy, off, hi, 0) : ops_blank_like(x->g, in));
}

bool x_crop_tensor_grad(Expand *x) { return uncropped(x, "OffsetsTensor"); }
bool x_crop_grad(Expand *x) { return uncropped(x, NULL); }

/* ---- along an axis ---- */

bool x_put_along_axis(Expand *x) {
  static const char *const words[] = {"assign", "add", "mul", "multiply"};
  Graph *g = x->g;
  Node *in = x_in(x, "Input"), *idx = x_in(x, "Index"), *v = x_in(x, "Value");
  int axis, how = op_word(x->op, "Reduce", 4, words);
  if (how < 0 || !ops_rank(in, "Input", 1, KL_RANK) || !ops_index(idx, "Index") ||
      !ops_rank(idx, "Index", in->rank, in->rank) || !v ||
      !ops_axis("Axis", op_int(x->op, "Axis"), in->rank, &axis))
    return false;
  if (how > 1) return err_set(E_OPR_004, "Reduce %s is not supported", op_str(x->op, "Reduce"));
  int64_t dims[KL_RANK];
  memcpy(dims, in->dims, sizeof dims);
  dims[axis] = idx->dims[axis];
  if (!ops_known(in) || !ops_known(idx)) return x_out(x, "Result", ops_blank_like(g, in));
  idx = g_expand(g, g_check(g, idx, 0, in->dims[axis], false, 0, E_DAT_002), in->rank, dims);
  v = g_expand(g, v, in->rank, dims);
  return x_out(x, "Result", g_scatter(g, in, idx, v, axis, how == 0));
}

/* The k-th smallest: sorted, then cut. */
static Node *kth_index(Expand *x, Node *in, int *axis) {
  Graph *g = x->g;
  int64_t k = op_int(x->op, "k");
  int perm[KL_RANK];
  if (!ops_rank(in, "X", 1, KL_VAR_RANK) ||
      !ops_axis("axis", op_int(x->op, "axis"), in->rank, axis))
    return NULL;
  if (k < 1 || (in->dims[*axis] >= 0 && k > in->dims[*axis])) {
    err_set(E_OPR_003, "k is %lld of %lld elements", (long long)k, (long long)in->dims[*axis]);
    return NULL;
  }
  for (int d = 0; d < in->rank; d++) perm[d] = d;
  perm[*axis] = in->rank - 1, perm[in->rank - 1] = *axis;
  if (!ops_known(in)) {
    int64_t dims[KL_RANK];
    memcpy(dims, in->dims, sizeof dims);
    dims[*axis] = 1;
    return ops_blank(g, DT_INT64, in->rank, dims);
  }
  Node *i = g_argsort(g, g_permute(g, in, perm), false);
  return ops_cut(g, i ? g_permute(g, i, perm) : NULL, *axis, k - 1, 1, 1);
}

static Node *without_axis(Graph *g, Node *v, int axis) {
  int64_t dims[KL_RANK];
  int n = 0;
  for (int d = 0; v && d < v->rank; d++)
    if (d != axis) dims[n++] = v->dims[d];
  return v ? ops_reshape(g, v, n, dims) : NULL;
}

bool x_kthvalue(Expand *x) {
  Graph *g = x->g;
  Node *in = x_in(x, "X");
  int axis;
  Node *i = kth_index(x, in, &axis);
  if (!i) return false;
  Node *v = ops_known(in) ? g_gather(g, in, i, axis) : ops_blank(g, in->dtype, i->rank, i->dims);
  if (!op_bool(x->op, "keepdim")) i = without_axis(g, i, axis), v = without_axis(g, v, axis);
  return x_out(x, "Indices", i) && x_out(x, "Out", v);
}

bool x_kthvalue_grad(Expand *x) {
  Graph *g = x->g;
  Node *in = x_in(x, "X"), *i = x_in(x, "Indices"), *gy = x_in(x, "Out@GRAD");
  int axis;
  int64_t dims[KL_RANK];
  if (!in || !i || !gy || !ops_axis("axis", op_int(x->op, "axis"), in->rank, &axis)) return false;
  if (!ops_known(in)) return x_out(x, "X@GRAD", ops_blank_like(g, in));
  memcpy(dims, in->dims, sizeof dims);
  dims[axis] = 1;
  return x_out(x, "X@GRAD",
               g_scatter(g, ops_zeros(g, in), g_reshape(g, i, in->rank, dims),
                         g_reshape(g, gy, in->rank, dims), axis, false));
}

bool x_repeat_interleave(Expand *x) {
  Graph *g = x->g;
  Node *in = x_in(x, "X");
  int axis;
  int64_t times = op_int(x->op, "Repeats"), *idx, total = 0;
  if (!ops_rank(in, "X", 1, KL_RANK) || !ops_axis("dim", op_int(x->op, "dim"), in->rank, &axis))
    return false;
  int64_t n = in->dims[axis];
  if (n < 0) return ops_out_unknown(x, "Out", in->dtype, in->rank);
  int64_t *each = arena_array(g->arena, int64_t, n + 1);
  int given = x_n_in(x, "RepeatsTensor") > 0 ? ops_list(x, NULL, "RepeatsTensor", NULL, each,
                                                        (int)(n < INT32_MAX ? n : INT32_MAX))
                                             : 0;
  if (given < 0) return false;
  if (given && !ops_same("elements and repeats", n, given)) return false;
  for (int64_t i = 0; i < n; i++) {
    if (!given) each[i] = times;
    if (each[i] == OPS_UNKNOWN) return ops_out_unknown(x, "Out", in->dtype, in->rank);
    if (each[i] < 0 || !add_ok(total, each[i], &total) || total > 1 << 28)
      return err_set(E_OPR_003, "an element repeated %lld times", (long long)each[i]);
  }
  idx = arena_array(g->arena, int64_t, total + 1);
  for (int64_t i = 0, at = 0; i < n; i++)
    for (int64_t k = 0; k < each[i]; k++) idx[at++] = i;
  return x_out(x, "Out", ops_take(g, in, g_data(g, DT_INT64, 1, &total, idx, "repeats"), axis));
}

/* ---- counting ---- */

bool x_searchsorted(Expand *x) {
  Graph *g = x->g;
  Node *s = x_in(x, "SortedSequence"), *v = x_in(x, "Values");
  DType t = op_bool(x->op, "out_int32") ? DT_INT32 : DT_INT64;
  if (!ops_rank(s, "SortedSequence", 1, KL_RANK - 1) || !ops_rank(v, "Values", 0, KL_RANK - 1))
    return false;
  if (s->rank != 1 && !ops_rank(v, "Values", s->rank, s->rank)) return false;
  if (!ops_known(s) || !ops_known(v)) return x_out(x, "Out", ops_blank(g, t, v->rank, v->dims));
  int64_t a[KL_RANK], b[KL_RANK];
  int n = v->rank + 1;
  for (int d = 0; d < n; d++) {
    a[d] = d == n - 1 ? 1 : v->dims[d];
    b[d] = d == n - 1 ? s->dims[s->rank - 1] : s->rank == 1 || d == n - 2 ? 1 : s->dims[d];
  }
  Node *x1 = g_reshape(g, v, n, a), *s1 = g_reshape(g, s, n, b);
  Node *hit = op_bool(x->op, "right") ? g_map2(g, P_LE, s1, x1) : g_map2(g, P_LT, s1, x1);
  return hit && x_out(x, "Out", g_reduce(g, P_RSUM, g_cast(g, hit, t), 1u << (n - 1), false));
}

bool x_sequence_mask(Expand *x) {
  Graph *g = x->g;
  Node *len = x_in(x, "X");
  int64_t most, dims[KL_RANK], number = op_int(x->op, "out_dtype");
  DType t = number >= 0 && number < 64 ? dtype_from_paddle((int)number) : DT_NONE;
  if (t == DT_NONE) return err_set(E_TYP_002, "out_dtype is %lld", (long long)number);
  if (!ops_index(len, "X") || !ops_rank(len, "X", 0, KL_RANK - 1)) return false;
  if (ops_list(x, NULL, "MaxLenTensor", "maxlen", &most, 1) != 1) return false;
  if (most < 0 && most != OPS_UNKNOWN) { /* the longest: only known with the lengths */
    Node *longest = g_reshape(g, g_reduce(g, P_RMAX, len, (1u << len->rank) - 1, true), 0, NULL);
    int n;
    if (!longest) return false;
    if (!ops_constant(g, longest, &most, 1, &n)) {
      if (!g->shapes_only) return ops_not_constant(g, len, "X");
      most = OPS_UNKNOWN;
    }
  }
  memcpy(dims, len->dims, sizeof dims);
  dims[len->rank] = most == OPS_UNKNOWN ? -1 : most;
  if (most == OPS_UNKNOWN || !ops_known(len))
    return x_out(x, "Y", ops_blank(g, t, len->rank + 1, dims));
  int64_t column[KL_RANK];
  memcpy(column, dims, sizeof dims);
  column[len->rank] = 1;
  Node *at = g_iota(g, len->dtype, len->rank + 1, dims, len->rank);
  return x_out(x, "Y", g_cast(g, g_map2(g, P_LT, at, g_reshape(g, len, len->rank + 1, column)), t));
}

bool x_shard_index(Expand *x) {
  Graph *g = x->g;
  Node *in = x_in(x, "X");
  int64_t n = op_int(x->op, "index_num"), shards = op_int(x->op, "nshards"),
          mine = op_int(x->op, "shard_id");
  if (!ops_index(in, "X")) return false;
  if (n < 1 || shards < 1 || mine < 0 || mine >= shards)
    return err_set(E_OPR_003, "shard %lld of %lld for %lld indices", (long long)mine,
                   (long long)shards, (long long)n);
  int64_t size = (n + shards - 1) / shards;
  in = g_check(g, in, 0, n, false, 0, E_DAT_002);
  Node *by = g_full_int(g, in->dtype, size, 0, NULL);
  Node *hit = g_map2(g, P_EQ, ops_div(g, in, by), g_full_int(g, in->dtype, mine, 0, NULL));
  return x_out(x, "Out",
               g_select(g, hit, g_map2(g, P_MOD, in, by),
                        g_full_int(g, in->dtype, op_int(x->op, "ignore_value"), 0, NULL)));
}

bool x_one_hot(Expand *x) {
  Graph *g = x->g;
  Node *in = x_in(x, "X");
  int64_t depth, dims[KL_RANK], number = op_int(x->op, "dtype");
  DType t = number >= 0 && number < 64 ? dtype_from_paddle((int)number) : DT_NONE;
  if (t == DT_NONE) return err_set(E_TYP_002, "dtype is %lld", (long long)number);
  if (!ops_index(in, "X") || !ops_rank(in, "X", 1, KL_RANK) ||
      !ops_same("1 and the last dimension of X", 1, in->dims[in->rank - 1]) ||
      ops_list(x, NULL, "depth_tensor", "depth", &depth, 1) != 1)
    return false;
  memcpy(dims, in->dims, sizeof dims);
  dims[in->rank - 1] = depth == OPS_UNKNOWN ? -1 : depth;
  if (depth == OPS_UNKNOWN || !ops_known(in))
    return x_out(x, "Out", ops_blank(g, t, in->rank, dims));
  if (!op_bool(x->op, "allow_out_of_range")) in = g_check(g, in, 0, depth, false, 0, E_DAT_002);
  return x_out(x, "Out",
               g_cast(g, g_map2(g, P_EQ, g_iota(g, in->dtype, in->rank, dims, in->rank - 1), in),
                      t));
}

/* ---- several inputs ---- */

bool x_broadcast_tensors(Expand *x) {
  int n = x_n_in(x, "X"), rank = 0;
  int64_t dims[KL_RANK];
  for (int i = 0; i < KL_RANK; i++) dims[i] = 1;
  for (int i = 0; i < n; i++) {
    Node *v = x_in_at(x, "X", i);
    if (!v) return false;
    if (v->rank > rank) {
      memmove(dims + v->rank - rank, dims, sizeof *dims * (size_t)rank);
      for (int d = 0; d < v->rank - rank; d++) dims[d] = 1;
      rank = v->rank;
    }
    for (int d = 0; d < v->rank; d++) {
      int64_t *to = &dims[rank - v->rank + d];
      if (v->dims[d] == 1) continue;
      if (*to == 1) *to = v->dims[d];
      if (!ops_same("dimensions of the inputs", *to, v->dims[d])) return false;
    }
  }
  for (int i = 0; i < n && i < x_n_out(x, "Out"); i++)
    if (!x_out_at(x, "Out", i, g_expand_to(x->g, x_in_at(x, "X", i), rank, dims))) return false;
  return true;
}

/* Ids and Parents [T, N, beams]: from the end, each beam goes on at its parent. */
bool x_gather_tree(Expand *x) {
  Graph *g = x->g;
  Node *ids = x_in(x, "Ids"), *parents = x_in(x, "Parents");
  if (!ops_index(ids, "Ids") || !ops_rank(ids, "Ids", 3, 3) || !ops_index(parents, "Parents") ||
      !ops_rank(parents, "Parents", 3, 3))
    return false;
  if (!ops_known(ids) || !ops_known(parents)) return x_out(x, "Out", ops_blank_like(g, ids));
  int64_t t = ids->dims[0], *one = (int64_t[]){1, ids->dims[1], ids->dims[2]};
  if (t < 1 || t > 8192) return err_set(E_OPR_004, "%lld steps", (long long)t);
  Node *beam = g_iota(g, parents->dtype, 3, one, 2), **row = arena_array(g->arena, Node *, t);
  parents = g_check(g, parents, 0, ids->dims[2], false, 0, E_DAT_002);
  for (int64_t i = t - 1; i >= 0; i--) {
    row[i] = g_gather(g, ops_cut(g, ids, 0, i, 1, 1), beam, 2);
    beam = g_gather(g, ops_cut(g, parents, 0, i, 1, 1), beam, 2);
    if (!row[i]) return false;
  }
  return x_out(x, "Out", g_concat(g, (int)t, row, 0));
}

/* ---- lists of optimisers' operands ---- */

/* The operator `type` for each element of the list slots. */
static bool one_by_one(Expand *x, const char *type) {
  Arena *a = x->g->arena;
  const Op *whole = x->op;
  int n = x_n_in(x, "Param");
  for (int i = 0; i < n; i++) {
    Op *op = arena_new_of(a, Op); /* nodes keep it */
    *op = *whole;
    op->type = type, op->def = opdef_find(type);
    op->ins = op->outs = (SlotVec){0};
    for (int k = 0; k < 2; k++) {
      const SlotVec *from = k ? &whole->outs : &whole->ins;
      for (int s = 0; s < from->n; s++) {
        Slot one = {from->v[s].name, from->v[s].n > i, from->v[s].args + i};
        if (one.n) vec_add(a, k ? &op->outs : &op->ins, one);
      }
    }
    op->attrs.v = arena_array(a, Attr, whole->attrs.n + 1);
    op->attrs.n = op->attrs.cap = whole->attrs.n;
    for (int k = 0; k < whole->attrs.n; k++) {
      Attr *at = &op->attrs.v[k];
      *at = whole->attrs.v[k];
      if (at->type == AT_STRINGS && at->n > i)
        *at = (Attr){.name = at->name, .type = AT_STRING, .s = at->ss[i]};
      if (at->type == AT_FLOATS && at->n > i)
        *at = (Attr){.name = at->name, .type = AT_FLOAT, .f = at->fs[i]};
    }
    if (!expand_op(x, op)) return false;
  }
  return true;
}

bool x_merged_adam(Expand *x) { return one_by_one(x, "adam"); }
bool x_merged_momentum(Expand *x) { return one_by_one(x, "momentum"); }

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
