/* Picking and counting by position: put_along_axis, kthvalue, repeat_interleave, searchsorted, masks of lengths, one_hot, gather_tree;
 * broadcast_tensors. */
#include "ops.h"

#include <string.h>

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
  if (!ops_table("repeats", n, 1)) return false;
  int64_t *each = arena_array(g->arena, int64_t, n + 1);
  int given = x_n_in(x, "RepeatsTensor") > 0 ? ops_list(x, NULL, "RepeatsTensor", NULL, each,
                                                        (int)(n < INT32_MAX ? n : INT32_MAX))
                                             : 0;
  if (given < 0) return false;
  if (given && !ops_same("elements and repeats", n, given)) return false;
  for (int64_t i = 0; i < n; i++) {
    if (!given) each[i] = times;
    if (each[i] == OPS_UNKNOWN) return ops_out_unknown(x, "Out", in->dtype, in->rank);
    if (each[i] < 0 || !add_ok(total, each[i], &total))
      return err_set(E_OPR_003, "an element repeated %lld times", (long long)each[i]);
  }
  if (!ops_table("repeats", total, 1)) return false;
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
