/* Operators that the executor runs itself (executor/control.def): loops, branches, tensor arrays, and those whose
 * result's shape depends on values. They have no primitives; what is here is their shape inference. */
#include "ops.h"

/* Their variables are declared by who makes the operator. */
bool x_control(Expand *x);
bool x_control(Expand *x) {
  (void)x;
  return true;
}

/* Out has type and shape of the first X; for an array those of its elements. */
bool x_like_x(Expand *x);
bool x_like_x(Expand *x) {
  Node *n = x_in_at(x, "X", 0);
  for (int i = 0; n && i < x_n_out(x, "Out"); i++)
    if (!x_out_at(x, "Out", i, ops_blank_like(x->g, n))) return false;
  return n != NULL;
}

bool x_print(Expand *x);
bool x_print(Expand *x) { return x_out(x, "Out", ops_blank_like(x->g, x_in(x, "In"))); }

bool x_array_length(Expand *x);
bool x_array_length(Expand *x) {
  return x_out(x, "Out", ops_blank(x->g, DT_INT64, 1, (int64_t[]){1}));
}

bool x_array_to_tensor(Expand *x);
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
