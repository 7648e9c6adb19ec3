/* Operators that the executor runs itself (executor/control.def): loops, branches, tensor arrays, and those whose
 * result's shape depends on values. They have no primitives; what is here is their shape inference. */
#include "ops.h"

/* Their variables are declared by who makes the operator. */
bool x_control(Expand *x) {
  (void)x;
  return true;
}

/* Out has type and shape of the first X; for an array those of its elements. */
bool x_like_x(Expand *x) {
  Node *n = x_in_at(x, "X", 0);
  for (int i = 0; n && i < x_n_out(x, "Out"); i++)
    if (!x_out_at(x, "Out", i, ops_blank_like(x->g, n))) return false;
  return n != NULL;
}

bool x_print(Expand *x) { return x_out(x, "Out", ops_blank_like(x->g, x_in(x, "In"))); }

bool x_is_empty(Expand *x) {
  Node *n = x_in(x, "X");
  if (!n) return false;
  if (!ops_known(n)) return x_out(x, "Out", ops_blank(x->g, DT_BOOL, 0, NULL));
  return x_out(x, "Out", g_full_int(x->g, DT_BOOL, node_numel(n) == 0, 0, NULL));
}

bool x_array_length(Expand *x) {
  return x_out(x, "Out", ops_blank(x->g, DT_INT64, 1, (int64_t[]){1}));
}

bool x_array_to_tensor(Expand *x) {
  Node *n = x_in(x, "X");
  int64_t dims[KL_RANK], unknown = -1;
  int axis, stack = op_bool(x->op, "use_stack");
  if (!n || !ops_axis("axis", op_int(x->op, "axis"), n->rank + stack, &axis)) return false;
  for (int d = 0; d < n->rank + stack; d++)
    dims[d] = d == axis ? -1 : n->dims[d - (stack && d > axis)];
  return x_out(x, "Out", ops_blank(x->g, n->dtype, n->rank + stack, dims)) &&
         x_out(x, "OutIndex", ops_blank(x->g, DT_INT32, 1, &unknown));
}

/* ---- shapes that depend on values ---- */

bool x_where_index(Expand *x) {
  Node *n = x_in(x, "Condition");
  return n && x_out(x, "Out", ops_blank(x->g, DT_INT64, 2, (int64_t[]){-1, n->rank}));
}

bool x_masked_select(Expand *x) {
  Node *n = x_in(x, "X");
  return n && x_out(x, "Y", ops_blank(x->g, n->dtype, 1, (int64_t[]){-1}));
}

bool x_segment_pool(Expand *x) {
  Node *n = x_in(x, "X");
  int64_t dims[KL_RANK] = {-1};
  if (!ops_rank(n, "X", 1, KL_RANK) || !ops_index(x_in(x, "SegmentIds"), "SegmentIds") ||
      op_word(x->op, "pooltype", REDUCE_N, reduction_words) < 0)
    return false;
  for (int d = 1; d < n->rank; d++) dims[d] = n->dims[d];
  return x_out(x, "Out", ops_blank(x->g, n->dtype, n->rank, dims)) &&
         x_out(x, "SummedIds", ops_blank(x->g, n->dtype, 2, (int64_t[]){-1, 1}));
}

bool x_segment_pool_grad(Expand *x) {
  Node *n = x_in(x, "X");
  return n && x_out(x, "X@GRAD", ops_blank_like(x->g, n));
}

bool x_unique(Expand *x) {
  Node *n = x_in(x, "X");
  int count, axis = 0;
  const int64_t *axes = op_intlist(x->op, "axis", x->g->arena, &count);
  int64_t dims[KL_RANK] = {-1};
  if (!n || (count > 0 && !ops_axis("axis", axes[0], n->rank, &axis))) return false;
  for (int d = 0; count > 0 && d < n->rank; d++) dims[d] = d == axis ? -1 : n->dims[d];
  DType t = op_int(x->op, "dtype") == dtype_info[DT_INT32].paddle ? DT_INT32 : DT_INT64;
  int64_t rows = count > 0 ? n->dims[axis] : ops_prod(n->dims, 0, n->rank), unknown = -1;
  return x_out(x, "Out", ops_blank(x->g, n->dtype, count > 0 ? n->rank : 1, dims)) &&
         x_out(x, "Indices", ops_blank(x->g, t, 1, &unknown)) &&
         x_out(x, "Index", ops_blank(x->g, t, 1, &rows)) &&
         x_out(x, "Counts", ops_blank(x->g, t, 1, &unknown));
}
