/* Tensor arrays: lists of tensors of any shapes, with elements that nobody has written.
 *
 * A variable's array is changed where it is, unless somebody shares it. Gradients: reading an element adds to the gradient
 * of that element, writing one takes it away, since what was there before did not depend on what is written. So elements
 * that are read several times, also in different steps of a loop, get the sum. */
#include "control.h"
#include <string.h>

enum { ARRAY_MOST = 1 << 22 }; /* elements */

static bool index_of(Control *c, Frame *f, Step *s, const char *slot, int64_t *i) {
  double v;
  if (!op_number(c, f, s, slot, &v)) return false;
  *i = (int64_t)v;
  if (v >= 0 && v < ARRAY_MOST && v == (double)*i) return true;
  err_set(E_RUN_004, "index %s is %.17g; it must be in 0..%d", quoted(op_in(s->op, slot, 0)), v,
          ARRAY_MOST - 1);
  return false;
}

static bool is_array(const Step *s, const char *slot, const Value *v) {
  return v->kind == V_ARRAY || op_refuses(s, slot, "is no tensor array");
}

/* The array in a slot; an empty one if nobody has written it yet. The caller drops it. */
static Value *array_in(Control *c, Frame *f, Step *s, const char *slot) {
  const Ref *r = step_in(s, slot, 0);
  Value *v = r && r->slot >= 0 ? ref_get(c, f, r) : NULL;
  if (!v) return value_new(c, V_ARRAY);
  if (is_array(s, slot, v)) return v;
  value_drop(c, v);
  return NULL;
}

static Value *copy_array(Control *c, const Value *from) {
  Value *v = value_new(c, V_ARRAY);
  for (int i = 0; i < from->n; i++) array_put(c, v, i, value_share(from->items[i]));
  return v;
}

/* The array in an output slot, there to be changed: a new one, or a copy if it is shared. It stays the frame's. */
static Value *array_out(Control *c, Frame *f, Step *s, const char *slot) {
  const Ref *r = step_out(s, slot, 0);
  if (!r || r->slot < 0) {
    op_refuses(s, slot, "cannot hold a tensor array");
    return NULL;
  }
  Value **at = ref_at(f, r);
  if (*at && !is_array(s, slot, *at)) return NULL;
  if (!*at)
    *at = value_new(c, V_ARRAY);
  else if ((*at)->refs > 1) {
    Value *mine = copy_array(c, *at);
    value_drop(c, *at);
    *at = mine;
  }
  return *at;
}

/* The sum, element by element; takes both references. */
static Value *add_arrays(Control *c, Value *a, Value *b) {
  Value *sum = copy_array(c, a);
  for (int i = 0; i < b->n; i++) {
    Value *old = i < sum->n ? sum->items[i] : NULL, *v = b->items[i];
    if (!v) continue;
    v = old ? value_sum(c, old, v) : value_share(v);
    if (!v) return NULL;
    array_put(c, sum, i, v);
  }
  value_drop(c, a);
  value_drop(c, b);
  return sum;
}

/* The gradient of a whole array, to which operators before may have contributed. */
static HostResult give_gradient(Control *c, Frame *f, Step *s, const char *slot, Value *v) {
  const Ref *r = step_out(s, slot, 0);
  Value *old = r && r->slot >= 0 ? ref_get(c, f, r) : NULL;
  if (old && old->kind == V_ARRAY) v = add_arrays(c, old, v);
  return op_result(c, f, s, slot, 0, v) ? HOST_NEXT : HOST_FAIL;
}

static bool is_gradient(const Step *s, const char *name) {
  return (op_role(s->op) & ROLE_BACKWARD) && name && strstr(name, "@GRAD");
}

HostResult run_write_to_array(Control *c, Frame *f, Step *s) {
  int64_t i;
  if (!index_of(c, f, s, "I", &i)) return HOST_FAIL;
  Value *v = op_value(c, f, s, "X", 0), *a = v ? array_out(c, f, s, "Out") : NULL;
  if (!a) return HOST_FAIL;
  if (v->kind != V_TENSOR) {
    op_refuses(s, "X", "is no tensor");
    return HOST_FAIL;
  }
  if (is_gradient(s, op_out(s->op, "Out", 0)) && i < a->n && a->items[i]) {
    Value *sum = value_sum(c, a->items[i], v);
    value_drop(c, v);
    v = sum;
  }
  if (v) array_put(c, a, i, v);
  return v ? HOST_NEXT : HOST_FAIL;
}

/* The gradient of writing: the element's gradient, which then is none. */
static Value *take_gradient(Control *c, Frame *f, Step *s, int64_t i) {
  const Ref *r = step_in(s, "X", 0);
  Value **at = ref_at(f, r), *g = NULL;
  if (*at && i < (*at)->n && (*at)->items[i]) {
    if ((*at)->refs > 1) {
      Value *mine = copy_array(c, *at);
      value_drop(c, *at);
      *at = mine;
    }
    g = (*at)->items[i];
    (*at)->items[i] = NULL;
    return g;
  }
  Value *like = op_value(c, f, s, "X_W", 0);
  if (like && like->kind == V_TENSOR) g = value_zeros(c, &like->t);
  value_drop(c, like);
  return g;
}

HostResult run_read_from_array(Control *c, Frame *f, Step *s) {
  int64_t i;
  const Ref *r = step_in(s, "X", 0);
  if (!index_of(c, f, s, "I", &i)) return HOST_FAIL;
  Value *a = array_in(c, f, s, "X");
  if (!a) return HOST_FAIL;
  Value *v = NULL;
  bool gradient = is_gradient(s, op_in(s->op, "X", 0)) && step_in(s, "X_W", 0) && r->slot >= 0;
  if (!gradient && i < a->n) v = value_share(a->items[i]);
  int n = a->n;
  value_drop(c, a);
  if (gradient) v = take_gradient(c, f, s, i);
  if (!v && !err_any()) {
    err_set(E_RUN_004, "element %lld of %s is read, but nobody has written it", (long long)i,
            quoted(r->var->name));
    err_note("the array has %d elements", n);
  }
  return op_result(c, f, s, "Out", 0, v) ? HOST_NEXT : HOST_FAIL;
}

static Value *integer(Control *c, const Ref *r, int64_t v) {
  int rank = r && r->var->rank == 0 ? 0 : 1;
  DType t = r && r->var->dtype != DT_NONE ? r->var->dtype : DT_INT64;
  Value *n = value_tensor(c, t, rank, (int64_t[]){1});
  tensor_set(&n->t, 0, (double)v);
  return n;
}

HostResult run_array_length(Control *c, Frame *f, Step *s) {
  Value *a = array_in(c, f, s, "X");
  if (!a) return HOST_FAIL;
  int n = a->n;
  value_drop(c, a);
  return op_result(c, f, s, "Out", 0, integer(c, step_out(s, "Out", 0), n)) ? HOST_NEXT : HOST_FAIL;
}

HostResult run_array_is_empty(Control *c, Frame *f, Step *s) {
  Value *a = array_in(c, f, s, "X");
  if (!a) return HOST_FAIL;
  int n = a->n;
  value_drop(c, a);
  return op_result(c, f, s, "Out", 0, integer(c, step_out(s, "Out", 0), n == 0)) ? HOST_NEXT
                                                                                 : HOST_FAIL;
}

/* ---- arrays as one tensor ---- */

typedef struct Joint {
  Tensor whole; /* shape; no data */
  int axis;
  bool stack;
  int64_t outer, inner; /* rows before the axis, bytes of one step along it */
} Joint;

/* All elements must be there, and alike but for the size along the axis. */
static bool join(const Step *s, const Value *a, Joint *j) {
  const Tensor *first = NULL;
  int64_t axis = op_int(s->op, "axis"), sum = 0;
  j->stack = op_bool(s->op, "use_stack");
  for (int i = 0; i < a->n; i++) {
    if (!a->items[i])
      return err_set(E_RUN_004, "element %d of %s is read, but nobody has written it", i,
                     quoted(op_in(s->op, "X", 0)));
    const Tensor *t = &a->items[i]->t;
    if (!first) {
      int rank = t->rank + j->stack;
      if (axis < -rank || axis >= rank || rank > KL_VAR_RANK)
        return err_set(E_SHP_003, "axis %lld is outside %d..%d", (long long)axis, -rank, rank - 1);
      first = t;
      j->axis = (int)(axis < 0 ? axis + rank : axis);
    }
    bool same = t->dtype == first->dtype && t->rank == first->rank;
    for (int d = 0; same && d < t->rank; d++)
      same = t->dims[d] == first->dims[d] || (d == j->axis && !j->stack);
    if (!same)
      return err_set(E_SHP_006, "element %d is %s, element 0 %s", i,
                     shape_text(t->dtype, t->rank, t->dims),
                     shape_text(first->dtype, first->rank, first->dims));
    sum += j->stack ? 1 : t->dims[j->axis];
  }
  if (!first) return err_set(E_RUN_004, "%s has no elements", quoted(op_in(s->op, "X", 0)));
  j->whole = *first;
  j->whole.data = NULL;
  if (j->stack) {
    memmove(&j->whole.dims[j->axis + 1], &first->dims[j->axis],
            sizeof *first->dims * (size_t)(first->rank - j->axis));
    j->whole.rank++;
  }
  j->whole.dims[j->axis] = sum;
  j->outer = numel_of(j->axis, j->whole.dims);
  j->inner = dtype_info[first->dtype].size *
             numel_of(j->whole.rank - j->axis - 1, j->whole.dims + j->axis + 1);
  return true;
}

/* Copies between the elements and the whole, to the whole if `to` is set. */
static void move_elements(const Joint *j, const Value *a, char *whole, bool to) {
  int64_t at = 0, row = j->inner * j->whole.dims[j->axis];
  for (int i = 0; i < a->n; i++) {
    const Tensor *t = &a->items[i]->t;
    int64_t n = j->inner * (j->stack ? 1 : t->dims[j->axis]);
    for (int64_t o = 0; o < j->outer; o++) {
      char *part = (char *)t->data + o * n, *place = whole + o * row + at;
      memcpy(to ? place : part, to ? part : place, (size_t)n);
    }
    at += n;
  }
}

HostResult run_array_to_tensor(Control *c, Frame *f, Step *s) {
  Joint j;
  Value *a = array_in(c, f, s, "X");
  if (!a || !join(s, a, &j)) return HOST_FAIL;
  Value *v = value_tensor(c, j.whole.dtype, j.whole.rank, j.whole.dims);
  if (!v) return HOST_FAIL;
  move_elements(&j, a, v->t.data, true);
  Value *sizes = value_tensor(c, DT_INT32, 1, (int64_t[]){a->n});
  for (int i = 0; i < a->n; i++)
    tensor_set(&sizes->t, i, j.stack ? 1 : (double)a->items[i]->t.dims[j.axis]);
  value_drop(c, a);
  bool ok = op_result(c, f, s, "OutIndex", 0, sizes);
  return op_result(c, f, s, "Out", 0, v) && ok ? HOST_NEXT : HOST_FAIL;
}

HostResult run_array_to_tensor_grad(Control *c, Frame *f, Step *s) {
  Joint j;
  Value *a = array_in(c, f, s, "X"), *g = a ? op_value(c, f, s, "Out@GRAD", 0) : NULL;
  if (!g || !join(s, a, &j)) return HOST_FAIL;
  if (g->kind != V_TENSOR || tensor_numel(&g->t) != tensor_numel(&j.whole)) {
    op_refuses(s, "Out@GRAD", "has another size than the array");
    return HOST_FAIL;
  }
  Value *parts = value_new(c, V_ARRAY);
  for (int i = 0; i < a->n; i++) array_put(c, parts, i, value_zeros(c, &a->items[i]->t));
  move_elements(&j, parts, g->t.data, false);
  value_drop(c, a);
  value_drop(c, g);
  return give_gradient(c, f, s, "X@GRAD", parts);
}

/* ---- other operators on arrays ---- */

HostResult run_array_assign(Control *c, Frame *f, Step *s) {
  Value *a = array_in(c, f, s, "X");
  return a && op_result(c, f, s, "Out", 0, a) ? HOST_NEXT : HOST_FAIL;
}

HostResult run_array_zeros(Control *c, Frame *f, Step *s) {
  return op_result(c, f, s, "Out", 0, value_new(c, V_ARRAY)) ? HOST_NEXT : HOST_FAIL;
}

/* One end of a slice along the elements: from a tensor, a list of tensors, or the attribute. */
static bool slice_end(Control *c, Frame *f, Step *s, const char *tensor, const char *list,
                      const char *attr, int64_t n, int64_t *at) {
  double v;
  int count;
  const char *slot = step_in(s, tensor, 0) ? tensor : step_in(s, list, 0) ? list : NULL;
  const int64_t *ints = op_intlist(s->op, attr, c->arena, &count);
  if (slot && !op_number(c, f, s, slot, &v)) return false;
  if (!slot && count < 1) return err_set(E_OPR_003, "%s is empty", attr);
  *at = slot ? (int64_t)v : ints[0];
  if (*at < 0) *at += n;
  if (*at > n) *at = n;
  if (*at >= 0) return true;
  return err_set(E_RUN_004, "%s is %lld before the first element", attr, (long long)-*at);
}

static bool slice_range(Control *c, Frame *f, Step *s, int64_t n, int64_t *from, int64_t *to) {
  return slice_end(c, f, s, "StartsTensor", "StartsTensorList", "starts", n, from) &&
         slice_end(c, f, s, "EndsTensor", "EndsTensorList", "ends", n, to);
}

/* With decrease_axis one element, otherwise an array of some. */
static bool is_element(const Control *c, const Step *s) {
  int n;
  op_intlist(s->op, "decrease_axis", c->arena, &n);
  return n > 0;
}

HostResult run_array_slice(Control *c, Frame *f, Step *s) {
  int64_t from, to;
  Value *a = array_in(c, f, s, "Input"), *v = NULL;
  if (!a || !slice_range(c, f, s, a->n, &from, &to)) return HOST_FAIL;
  if (!is_element(c, s)) {
    v = value_new(c, V_ARRAY);
    for (int64_t i = from; i < to; i++) array_put(c, v, i - from, value_share(a->items[i]));
  } else if (from < a->n)
    v = value_share(a->items[from]);
  if (!v)
    err_set(E_RUN_004, "element %lld of %s is read, but nobody has written it", (long long)from,
            quoted(op_in(s->op, "Input", 0)));
  value_drop(c, a);
  return op_result(c, f, s, "Out", 0, v) ? HOST_NEXT : HOST_FAIL;
}

HostResult run_array_slice_grad(Control *c, Frame *f, Step *s) {
  int64_t from, to;
  Value *a = array_in(c, f, s, "Input"), *g = a ? op_value(c, f, s, "Out@GRAD", 0) : NULL;
  if (!g || !slice_range(c, f, s, a->n, &from, &to)) return HOST_FAIL;
  Value *v = value_new(c, V_ARRAY);
  for (int i = 0; i < a->n; i++)
    if (a->items[i]) array_put(c, v, i, value_zeros(c, &a->items[i]->t));
  if (g->kind == V_TENSOR)
    array_put(c, v, from, value_share(g));
  else
    for (int64_t i = from; i < to && i - from < g->n; i++)
      if (g->items[i - from]) array_put(c, v, i, value_share(g->items[i - from]));
  value_drop(c, a);
  value_drop(c, g);
  return give_gradient(c, f, s, "Input@GRAD", v);
}

HostResult run_array_sum(Control *c, Frame *f, Step *s) {
  Value *sum = value_new(c, V_ARRAY);
  for (int k = 0; sum && k < op_ins(s->op, "X")->n; k++) {
    const Ref *r = step_in(s, "X", k);
    Value *a = r ? ref_get(c, f, r) : NULL;
    if (!a) continue;
    if (!is_array(s, "X", a)) return HOST_FAIL;
    sum = add_arrays(c, sum, a);
  }
  return op_result(c, f, s, "Out", 0, sum) ? HOST_NEXT : HOST_FAIL;
}
