/* Shape operators: reshape, transpose, squeeze, unsqueeze, flatten, concat, split, stack, unstack, expand, tile. All
 * are views. The second forms (reshape2 ...) also give XShape, an empty tensor of dims [0] + X.dims
 * from which their gradients learn the shape of X. */
#include "ops.h"

#include <string.h>

static bool out_with_xshape(Expand *x, Node *in, Node *out) {
  if (!out) return false;
  if (x_wants(x, "XShape")) {
    int64_t dims[KL_RANK + 1] = {0};
    memcpy(dims + 1, in->dims, sizeof *dims * (size_t)in->rank);
    if (!x_out(x, "XShape", ops_blank(x->g, in->dtype, in->rank + 1, dims))) return false;
  }
  return x_out(x, "Out", out);
}

/* ---- reshape ---- */

/* Resolves 0 (that dimension of the input) and -1 (the rest) in place. */
static bool reshape_dims(const Node *in, int n, int64_t *dims) {
  int rest = -1;
  int64_t known = 1, all = node_numel(in);
  for (int i = 0; i < n; i++) {
    if (dims[i] == OPS_UNKNOWN) {
      dims[i] = -1, known = -1;
      continue;
    }
    if (dims[i] < -1 || (dims[i] == -1 && rest >= 0) || (dims[i] == 0 && i >= in->rank)) {
      err_set(E_SHP_004, "%s cannot be reshaped to %s", shape_text(in->dtype, in->rank, in->dims),
              dims_text(n, dims));
      err_help("Entries are positive, 0 (that dimension of X) or, once, -1 (what is left).");
      return false;
    }
    if (dims[i] == -1) {
      rest = i;
      continue;
    }
    if (dims[i] == 0) dims[i] = in->dims[i];
    if (dims[i] < 0 || known < 0)
      known = -1;
    else if (!mul_ok(known, dims[i], &known))
      return err_set(E_MEM_002, "a reshape to %s", dims_text(n, dims));
  }
  if (known < 0 || all < 0) return true;
  if (rest >= 0 && known > 0 && all % known == 0) dims[rest] = all / known, known = all;
  if (rest >= 0 && known == 0) dims[rest] = 0;
  if (known == all) return true;
  err_set(E_SHP_004, "%s cannot be reshaped to %s", shape_text(in->dtype, in->rank, in->dims),
          dims_text(n, dims));
  err_help("X has %lld elements, the shape %lld%s.", (long long)all, (long long)known,
           rest >= 0 ? " without the -1" : "");
  return false;
}

/* Where unknown dims stand in the same places on both sides, what is left for a -1 is known. */
static void infer_rest(const Node *in, int n, const int64_t *asked, int64_t *dims) {
  int rest = -1, unknown = 0, unknown_in = 0;
  int64_t a = 1, b = 1;
  bool ok = true;
  for (int i = 0; i < n; i++) {
    if (asked[i] == -1)
      rest = i;
    else if (dims[i] < 0)
      unknown++;
    else
      ok &= mul_ok(a, dims[i], &a);
  }
  for (int i = 0; i < in->rank; i++) {
    if (in->dims[i] < 0)
      unknown_in++;
    else
      ok &= mul_ok(b, in->dims[i], &b);
  }
  for (int i = 0; i < n; i++)
    if (asked[i] == OPS_UNKNOWN) return;
  if (ok && rest >= 0 && unknown == unknown_in && unknown > 0 && a > 0 && b % a == 0)
    dims[rest] = b / a;
}

bool x_reshape(Expand *x) {
  int64_t dims[KL_RANK], asked[KL_RANK];
  Node *in = x_in(x, "X");
  int n = in ? ops_list(x, "ShapeTensor", "Shape", "shape", dims, KL_RANK) : -1;
  if (n < 0) return false;
  memcpy(asked, dims, sizeof asked);
  if (!reshape_dims(in, n, dims)) return false;
  infer_rest(in, n, asked, dims);
  return out_with_xshape(x, in, ops_reshape(x->g, in, n, dims));
}

/* Out@GRAD in the shape of X, which is given itself or by XShape. */
bool x_reshape_grad(Expand *x) {
  Node *gy = x_in(x, "Out@GRAD");
  bool by_xshape = x_n_in(x, "XShape") > 0;
  Node *of = x_in(x, by_xshape ? "XShape" : "X");
  if (!gy || !of) return false;
  if (by_xshape && !ops_rank(of, "XShape", 1, KL_RANK)) return false;
  return x_out(x, "X@GRAD", ops_reshape(x->g, gy, of->rank - by_xshape, of->dims + by_xshape));
}

/* ---- transpose ---- */

bool x_transpose(Expand *x) {
  Node *in = x_in(x, "X");
  int n, perm[KL_RANK];
  uint32_t seen = 0;
  const int64_t *axis = op_intlist(x->op, "axis", x->g->arena, &n);
  if (!in) return false;
  bool ok = n == in->rank;
  for (int i = 0; i < n && ok; i++) {
    int64_t a = axis[i] < 0 ? axis[i] + n : axis[i];
    ok = a >= 0 && a < n && !(seen >> a & 1);
    if (!ok) break;
    perm[i] = (int)a;
    seen |= 1u << a;
  }
  if (!ok) {
    err_set(E_SHP_003, "axis %s is no permutation of the %d dimensions of X", dims_text(n, axis),
            in->rank);
    err_help("axis names every dimension once.");
    return false;
  }
  return out_with_xshape(x, in, g_permute(x->g, in, perm));
}

/* ---- squeeze, unsqueeze, flatten ---- */

bool x_squeeze(Expand *x) {
  Node *in = x_in(x, "X");
  int64_t dims[KL_RANK];
  int n, rank = 0, a;
  uint32_t drop = 0;
  const int64_t *axes = op_intlist(x->op, "axes", x->g->arena, &n);
  if (!in) return false;
  for (int i = 0; i < n; i++) {
    if (!ops_axis("axes", axes[i], in->rank, &a)) return false;
    drop |= 1u << a;
  }
  for (int i = 0; i < in->rank; i++) {
    bool named = n == 0 || (drop >> i & 1);
    bool one = in->dims[i] == 1 || (in->dims[i] == -1 && n > 0);
    if (!named || !one) dims[rank++] = in->dims[i];
  }
  return out_with_xshape(x, in, ops_reshape(x->g, in, rank, dims));
}

bool x_unsqueeze(Expand *x) {
  Node *in = x_in(x, "X");
  int64_t dims[2 * KL_RANK], axes[KL_RANK];
  if (!in) return false;
  int a, rank = in->rank, n = ops_list(x, "AxesTensorList", "AxesTensor", "axes", axes, KL_RANK);
  if (n < 0) return false;
  memcpy(dims, in->dims, sizeof in->dims);
  for (int i = 0; i < n; i++) {
    if (axes[i] == OPS_UNKNOWN) return ops_out_unknown(x, "Out", in->dtype, in->rank + n);
    if (!ops_axis("axes", axes[i], rank + 1, &a)) return false;
    memmove(dims + a + 1, dims + a, sizeof *dims * (size_t)(rank - a));
    dims[a] = 1;
    rank++;
  }
  if (rank > KL_RANK)
    return err_set(E_SHP_002, "the result would have %d dimensions, at most %d", rank, KL_RANK);
  return out_with_xshape(x, in, ops_reshape(x->g, in, rank, dims));
}

bool x_flatten_contiguous_range(Expand *x) {
  Node *in = x_in(x, "X");
  int from, to, rank = 0;
  int64_t dims[KL_RANK];
  if (!in) return false;
  int64_t one = 1;
  if (in->rank == 0) return out_with_xshape(x, in, ops_reshape(x->g, in, 1, &one));
  if (!ops_axis("start_axis", op_int(x->op, "start_axis"), in->rank, &from) ||
      !ops_axis("stop_axis", op_int(x->op, "stop_axis"), in->rank, &to))
    return false;
  if (from > to) {
    err_set(E_SHP_003, "start_axis %d is behind stop_axis %d", from, to);
    err_help("start_axis must not be larger than stop_axis.");
    return false;
  }
  for (int i = 0; i < from; i++) dims[rank++] = in->dims[i];
  dims[rank++] = ops_prod(in->dims, from, to + 1);
  for (int i = to + 1; i < in->rank; i++) dims[rank++] = in->dims[i];
  return out_with_xshape(x, in, ops_reshape(x->g, in, rank, dims));
}

bool x_flatten(Expand *x) {
  Node *in = x_in(x, "X");
  int64_t axis = op_int(x->op, "axis");
  if (!in) return false;
  if (axis < 0 || axis > in->rank)
    return err_set(E_SHP_003, "axis %lld is outside 0..%d", (long long)axis, in->rank);
  int64_t dims[2] = {ops_prod(in->dims, 0, (int)axis), ops_prod(in->dims, (int)axis, in->rank)};
  return out_with_xshape(x, in, ops_reshape(x->g, in, 2, dims));
}

/* ---- concat, split, stack ---- */

Node **ops_all_in(Expand *x, const char *slot, int *n) {
  *n = x_n_in(x, slot);
  Node **v = arena_array(x->g->arena, Node *, *n + 1);
  for (int i = 0; i < *n; i++)
    if (!(v[i] = x_in_at(x, slot, i))) {
      if (!err_any()) err_set(E_OPR_002, "variable %d of %s is missing", i, slot);
      return NULL;
    }
  if (*n > 0) return v;
  err_set(E_OPR_002, "%s has no variables", slot);
  return NULL;
}

bool x_concat(Expand *x) {
  int n, axis;
  Node **v = ops_all_in(x, "X", &n);
  int found = v ? ops_axis_of(x, "AxisTensor", v[0]->rank, &axis) : 0;
  if (found < 0) return ops_out_unknown(x, "Out", v[0]->dtype, v[0]->rank);
  return found && x_out(x, "Out", g_concat(x->g, n, v, axis));
}

static bool split_sizes(Expand *x, int64_t all, int n_out, int64_t *size) {
  int64_t num = op_int(x->op, "num"), sum = 0;
  int rest = -1, n = ops_list(x, "SectionsTensorList", NULL, "sections", size, n_out);
  if (n < 0) return false;
  if (n == 0) {
    if (num != n_out || (all >= 0 && all % num != 0)) {
      err_set(E_OPR_003, "num is %lld for %d outputs and a dimension of %lld", (long long)num,
              n_out, (long long)all);
      err_help("num must be the number of outputs and divide the dimension; or give sections.");
      return false;
    }
    for (int i = 0; i < n_out; i++) size[i] = all < 0 ? -1 : all / num;
    return true;
  }
  bool ok = n == n_out, unknown = false;
  for (int i = 0; i < n && ok; i++) {
    unknown |= size[i] == OPS_UNKNOWN;
    if (size[i] == OPS_UNKNOWN)
      size[i] = -1;
    else if (size[i] == -1)
      ok = rest < 0, rest = i;
    else
      ok = size[i] >= 0 && add_ok(sum, size[i], &sum);
  }
  if (ok && rest >= 0 && all >= 0 && !unknown) ok = sum <= all, size[rest] = all - sum, sum = all;
  if (ok && (unknown || all < 0 || sum == all)) return true;
  err_set(E_OPR_003, "sections %s for %d outputs and a dimension of %lld", dims_text(n, size),
          n_out, (long long)all);
  err_help("The sections must add up to the dimension; one may be -1, the rest.");
  return false;
}

bool x_split(Expand *x) {
  Node *in = x_in(x, "X");
  int axis, n = x_n_out(x, "Out");
  int found = in ? ops_axis_of(x, "AxisTensor", in->rank, &axis) : 0;
  if (found < 0) return ops_out_unknown(x, "Out", in->dtype, in->rank);
  if (!found) return false;
  int64_t *size = arena_array(x->g->arena, int64_t, n + 1), at = 0;
  if (!split_sizes(x, in->dims[axis], n, size)) return false;
  for (int i = 0; i < n; i++) {
    Node *part;
    if (size[i] < 0 || in->dims[axis] < 0) {
      int64_t dims[KL_RANK];
      memcpy(dims, in->dims, sizeof dims);
      dims[axis] = size[i];
      part = ops_blank(x->g, in->dtype, in->rank, dims);
    } else {
      part = ops_cut(x->g, in, axis, at, 1, size[i]);
      at += size[i];
    }
    if (!x_out_at(x, "Out", i, part)) return false;
  }
  return true;
}

/* n with a dimension of 1 inserted before `axis`. */
static Node *insert_dim(Graph *g, Node *n, int axis) {
  int64_t dims[KL_RANK + 1];
  memcpy(dims, n->dims, sizeof *dims * (size_t)axis);
  dims[axis] = 1;
  memcpy(dims + axis + 1, n->dims + axis, sizeof *dims * (size_t)(n->rank - axis));
  return ops_reshape(g, n, n->rank + 1, dims);
}

static Node *remove_dim(Graph *g, Node *n, int axis) {
  if (!n) return NULL;
  int64_t dims[KL_RANK];
  memcpy(dims, n->dims, sizeof *dims * (size_t)axis);
  memcpy(dims + axis, n->dims + axis + 1, sizeof *dims * (size_t)(n->rank - axis - 1));
  return ops_reshape(g, n, n->rank - 1, dims);
}

static Node *stacked(Expand *x, const char *slot) {
  int n, axis;
  Node **v = ops_all_in(x, slot, &n);
  if (!v || !ops_axis("axis", op_int(x->op, "axis"), v[0]->rank + 1, &axis)) return NULL;
  for (int i = 0; i < n; i++) {
    if (!ops_rank(v[i], slot, axis, KL_RANK - 1)) return NULL;
    v[i] = insert_dim(x->g, v[i], axis);
  }
  return g_concat(x->g, n, v, axis);
}

bool x_stack(Expand *x) { return x_out(x, "Y", stacked(x, "X")); }
bool x_unstack_grad(Expand *x) { return x_out(x, "X@GRAD", stacked(x, "Y@GRAD")); }

static bool unstacked(Expand *x, const char *to) {
  Node *in = x_in(x, "X");
  int axis, n = x_n_out(x, to);
  if (!in || !ops_axis("axis", op_int(x->op, "axis"), in->rank, &axis)) return false;
  if (!ops_same("outputs and the dimension unstacked", n, in->dims[axis])) return false;
  for (int i = 0; i < n; i++) {
    Node *part = in->dims[axis] < 0 ? g_full(x->g, in->dtype, 0, in->rank, in->dims)
                                    : ops_cut(x->g, in, axis, i, 1, 1);
    if (!x_out_at(x, to, i, remove_dim(x->g, part, axis))) return false;
  }
  return true;
}

bool x_unstack(Expand *x) { return unstacked(x, "Y"); }
bool x_unbind(Expand *x) { return unstacked(x, "Out"); }

/* ---- expand, tile ---- */

/* X with leading ones added, broadcast to dims in which -1 keeps the dimension of X. */
static Node *expanded(Expand *x, Node *in, int n, int64_t *dims, const char *attr) {
  int more = n - in->rank;
  bool ok = more >= 0, known = true;
  for (int i = 0; i < n && ok; i++) {
    int64_t own = i < more ? 1 : in->dims[i - more];
    if (dims[i] == OPS_UNKNOWN) {
      dims[i] = own == 1 ? -1 : own;
    } else if (dims[i] == -1 && i >= more) {
      dims[i] = own;
    } else {
      ok = dims[i] >= 0 && (own == 1 || own == dims[i] || own == -1);
    }
    known &= dims[i] >= 0 && own >= 0;
  }
  if (!ok) {
    err_set(E_SHP_001, "%s cannot be expanded to %s", shape_text(in->dtype, in->rank, in->dims),
            dims_text(n, dims));
    err_help("From the right, %s must equal X's dimensions, or these be 1; -1 keeps one.", attr);
    return NULL;
  }
  return known ? g_expand(x->g, in, n, dims) : ops_blank(x->g, in->dtype, n, dims);
}

bool x_expand_v2(Expand *x) {
  int64_t dims[KL_RANK];
  Node *in = x_in(x, "X");
  int n = in ? ops_list(x, "expand_shapes_tensor", "Shape", "shape", dims, KL_RANK) : -1;
  return n >= 0 && x_out(x, "Out", expanded(x, in, n, dims, "shape"));
}

bool x_expand_as_v2(Expand *x) {
  int64_t dims[KL_RANK];
  Node *in = x_in(x, "X"), *y = x_in(x, "Y");
  if (!in || (x_n_in(x, "Y") > 0 && !y)) return false;
  int n = y ? y->rank : ops_list(x, NULL, NULL, "target_shape", dims, KL_RANK);
  for (int i = 0; y && i < n; i++) dims[i] = y->dims[i] < 0 ? OPS_UNKNOWN : y->dims[i];
  return n >= 0 && x_out(x, "Out", expanded(x, in, n, dims, "the target shape"));
}

/* Out@GRAD summed over the dimensions that were broadcast. */
bool x_expand_grad(Expand *x) {
  Node *in = x_in(x, "X"), *gy = x_in(x, "Out@GRAD");
  if (!in || !ops_rank(gy, "Out@GRAD", in->rank, KL_RANK)) return false;
  int more = gy->rank - in->rank;
  uint32_t axes = (1u << more) - 1;
  for (int i = 0; i < in->rank; i++)
    if (in->dims[i] == 1 && gy->dims[more + i] != 1) axes |= 1u << (more + i);
  Node *sum = g_reduce(x->g, P_RSUM, gy, axes, true);
  return x_out(x, "X@GRAD", sum ? ops_reshape(x->g, sum, in->rank, in->dims) : NULL);
}

/* Dimension `axis` repeated `times` times. */
static Node *repeated(Graph *g, Node *n, int axis, int64_t times) {
  if (!n || times == 1) return n;
  int64_t d = n->dims[axis], pre = ops_prod(n->dims, 0, axis),
          post = ops_prod(n->dims, axis + 1, n->rank), out[KL_RANK];
  memcpy(out, n->dims, sizeof out);
  if (!mul_ok(d, times, &out[axis])) {
    err_set(E_MEM_002, "%lld repeated %lld times", (long long)d, (long long)times);
    return NULL;
  }
  Node *v = g_reshape(g, n, 4, (int64_t[]){pre, 1, d, post});
  return g_reshape(g, g_expand(g, v, 4, (int64_t[]){pre, times, d, post}), n->rank, out);
}

/* v as `rank` dims, each repeated. */
static Node *tiled(Graph *g, Node *v, int rank, const int64_t *dims, const int64_t *times) {
  v = g_reshape(g, v, rank, dims);
  for (int i = 0; i < rank; i++) v = repeated(g, v, i, times[i]);
  return v;
}

/* The last n entries of from as the last of `rank`, ones before them; from and to may be the same. */
static void align_right(int rank, int n, const int64_t *from, int64_t *to) {
  for (int i = rank - 1; i >= 0; i--) to[i] = i < rank - n ? 1 : from[i - (rank - n)];
}

bool x_tile(Expand *x) {
  int64_t times[KL_RANK], dims[KL_RANK];
  Node *v = x_in(x, "X");
  int n =
      v ? ops_list(x, "repeat_times_tensor", "RepeatTimes", "repeat_times", times, KL_RANK) : -1;
  if (n < 0) return false;
  int rank = n > v->rank ? n : v->rank;
  bool known = ops_known(v);
  align_right(rank, n, times, times);
  align_right(rank, v->rank, v->dims, dims);
  for (int i = 0; i < rank; i++) {
    known &= times[i] != OPS_UNKNOWN;
    if (times[i] >= 0 || times[i] == OPS_UNKNOWN) continue;
    err_set(E_OPR_003, "repeat_times holds %lld", (long long)times[i]);
    err_help("Every dimension is repeated 0 or more times.");
    return false;
  }
  if (known) return x_out(x, "Out", tiled(x->g, v, rank, dims, times));
  for (int i = 0; i < rank; i++)
    if (times[i] < 0 || dims[i] < 0 || !mul_ok(dims[i], times[i], &dims[i])) dims[i] = -1;
  return x_out(x, "Out", ops_blank(x->g, v->dtype, rank, dims));
}

bool x_expand_as(Expand *x) {
  int64_t times[KL_RANK];
  Node *v = x_in(x, "X"), *like = x_in(x, "target_tensor");
  if (!v || !ops_rank(like, "target_tensor", v->rank, v->rank)) return false;
  if (!ops_known(v) || !ops_known(like))
    return x_out(x, "Out", ops_blank(x->g, v->dtype, v->rank, like->dims));
  for (int i = 0; i < v->rank; i++) {
    times[i] = v->dims[i] ? like->dims[i] / v->dims[i] : 0;
    if (!ops_same("a dimension of target_tensor and a multiple of X's", like->dims[i],
                  times[i] * v->dims[i]))
      return false;
  }
  return x_out(x, "Out", tiled(x->g, v, v->rank, v->dims, times));
}

bool x_tile_grad(Expand *x) {
  int64_t times[KL_RANK], dims[KL_RANK];
  Node *in = x_in(x, "X"), *gy = x_in(x, "Out@GRAD"), *gx = NULL;
  if (!in || !ops_rank(gy, "Out@GRAD", in->rank, KL_RANK)) return false;
  if (!ops_known(in) || !ops_known(gy) || node_numel(gy) == 0)
    return x_out(x, "X@GRAD", ops_blank_like(x->g, in));
  align_right(gy->rank, in->rank, in->dims, dims);
  for (int i = 0; i < gy->rank; i++) {
    times[i] = dims[i] ? gy->dims[i] / dims[i] : 0;
    if (gy->dims[i] != times[i] * dims[i])
      return ops_same("a dimension of Out@GRAD and the tiled X", gy->dims[i], times[i] * dims[i]);
  }
  Node *y = tiled(x->g, in, gy->rank, dims, times);
  if (!y) return false;
  if (y == in) return x_out(x, "X@GRAD", gy);
  return derive(x->g, 1, &y, &gy, 1, &in, &gx) && x_out(x, "X@GRAD", gx);
}
