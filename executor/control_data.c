/* Operators whose result's shape depends on values: indices of what is true, selection by a mask, distinct elements. */
#include "control.h"
#include <stdlib.h>
#include <string.h>

Value *op_tensor(Control *c, Frame *f, Step *s, const char *slot) {
  Value *v = op_value(c, f, s, slot, 0);
  if (!v || v->kind == V_TENSOR) return v;
  op_refuses(s, slot, "is no tensor");
  return NULL;
}

static int64_t count_true(const Tensor *t) {
  int64_t n = 0, all = tensor_numel(t);
  for (int64_t i = 0; i < all; i++) n += tensor_get(t, i) != 0;
  return n;
}

HostResult run_where_index(Control *c, Frame *f, Step *s) {
  Value *v = op_tensor(c, f, s, "Condition");
  if (!v) return HOST_FAIL;
  const Tensor *t = &v->t;
  Value *out = value_tensor(c, DT_INT64, 2, (int64_t[]){count_true(t), t->rank});
  int64_t *to = out->t.data, n = tensor_numel(t);
  for (int64_t i = 0; i < n; i++) {
    if (tensor_get(t, i) == 0) continue;
    int64_t rest = i;
    for (int d = t->rank - 1; d >= 0; d--) {
      to[d] = rest % t->dims[d];
      rest /= t->dims[d];
    }
    to += t->rank;
  }
  value_drop(c, v);
  return op_result(c, f, s, "Out", 0, out) ? HOST_NEXT : HOST_FAIL;
}

/* ---- masks ---- */

typedef struct Masked {
  Value *x, *mask;
} Masked;

static bool take_masked(Control *c, Frame *f, Step *s, Masked *m) {
  m->x = op_tensor(c, f, s, "X");
  m->mask = m->x ? op_tensor(c, f, s, "Mask") : NULL;
  if (!m->mask) return false;
  const Tensor *x = &m->x->t, *k = &m->mask->t;
  if (x->rank == k->rank && !memcmp(x->dims, k->dims, sizeof *x->dims * (size_t)x->rank))
    return true;
  err_set(E_SHP_006, "Mask is %s, X %s", shape_text(k->dtype, k->rank, k->dims),
          shape_text(x->dtype, x->rank, x->dims));
  return false;
}

/* Moves elements between `all`, where the mask is true, and the vector `some`. */
static void move_masked(const Tensor *mask, char *all, char *some, size_t size, bool pack) {
  int64_t n = tensor_numel(mask);
  for (int64_t i = 0; i < n; i++) {
    if (tensor_get(mask, i) == 0) continue;
    memcpy(pack ? some : all + (size_t)i * size, pack ? all + (size_t)i * size : some, size);
    some += size;
  }
}

HostResult run_masked_select(Control *c, Frame *f, Step *s) {
  Masked m;
  if (!take_masked(c, f, s, &m)) return HOST_FAIL;
  const Tensor *x = &m.x->t;
  Value *out = value_tensor(c, x->dtype, 1, (int64_t[]){count_true(&m.mask->t)});
  move_masked(&m.mask->t, x->data, out->t.data, (size_t)dtype_info[x->dtype].size, true);
  value_drop(c, m.x);
  value_drop(c, m.mask);
  return op_result(c, f, s, "Y", 0, out) ? HOST_NEXT : HOST_FAIL;
}

HostResult run_masked_select_grad(Control *c, Frame *f, Step *s) {
  Masked m;
  if (!take_masked(c, f, s, &m)) return HOST_FAIL;
  Value *g = op_tensor(c, f, s, "Y@GRAD"), *out = g ? value_zeros(c, &m.x->t) : NULL;
  if (!out) return HOST_FAIL;
  if (tensor_numel(&g->t) != count_true(&m.mask->t) || g->t.dtype != m.x->t.dtype) {
    op_refuses(s, "Y@GRAD", "is not like the selected elements");
    return HOST_FAIL;
  }
  move_masked(&m.mask->t, out->t.data, g->t.data, (size_t)dtype_info[g->t.dtype].size, false);
  value_drop(c, g);
  value_drop(c, m.x);
  value_drop(c, m.mask);
  return op_result(c, f, s, "X@GRAD", 0, out) ? HOST_NEXT : HOST_FAIL;
}

/* ---- distinct elements ---- */

/* Rows along an axis, or single elements: row r's part p begins at element p * stride + r * inner, and has `inner`. */
typedef struct Rows {
  const Tensor *t;
  int axis; /* -1: elements */
  int64_t n, outer, inner;
  const int64_t *order; /* by value; equal ones by position */
} Rows;

static double row_get(const Rows *r, int64_t row, int64_t k) {
  int64_t o = k / r->inner, i = k % r->inner;
  return tensor_get(r->t, (o * r->n + row) * r->inner + i);
}

/* int64 is compared as it is: a double does not hold all of them. */
static int compare_rows(const Rows *r, int64_t a, int64_t b) {
  int64_t n = r->outer * r->inner;
  for (int64_t k = 0; k < n; k++) {
    if (r->t->dtype == DT_INT64) {
      const int64_t *v = r->t->data;
      int64_t at = k / r->inner * r->n * r->inner + k % r->inner;
      int64_t x = v[at + a * r->inner], y = v[at + b * r->inner];
      if (x != y) return x < y ? -1 : 1;
      continue;
    }
    double x = row_get(r, a, k), y = row_get(r, b, k);
    if (x != y) return x < y || (y != y && x == x) ? -1 : x == x || y == y ? 1 : 0;
  }
  return 0;
}

static int by_row(const void *a, const void *b, void *user) {
  int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
  int order = compare_rows(user, x, y);
  return order ? order : (x > y) - (x < y);
}

static bool make_rows(Control *c, Step *s, const Tensor *t, Rows *r) {
  int n;
  const int64_t *axis = op_intlist(s->op, "axis", c->arena, &n);
  *r = (Rows){.t = t, .axis = -1, .n = tensor_numel(t), .outer = 1, .inner = 1};
  if (n == 0) return true;
  if (axis[0] < -t->rank || axis[0] >= t->rank)
    return err_set(E_SHP_003, "axis %lld is outside %d..%d", (long long)axis[0], -t->rank,
                   t->rank - 1);
  r->axis = (int)(axis[0] < 0 ? axis[0] + t->rank : axis[0]);
  r->n = t->dims[r->axis];
  r->outer = numel_of(r->axis, t->dims);
  r->inner = numel_of(t->rank - r->axis - 1, t->dims + r->axis + 1);
  return true;
}

/* The rows first[0..n-1], in this order. */
static Value *gather_rows(Control *c, const Rows *r, int64_t n, const int64_t *first) {
  int64_t dims[KL_VAR_RANK] = {n};
  int rank = r->axis < 0 ? 1 : r->t->rank;
  if (r->axis >= 0) memcpy(dims, r->t->dims, sizeof dims);
  dims[r->axis < 0 ? 0 : r->axis] = n;
  Value *v = value_tensor(c, r->t->dtype, rank, dims);
  if (!v) return NULL;
  size_t part = (size_t)r->inner * (size_t)dtype_info[r->t->dtype].size;
  for (int64_t o = 0; o < r->outer; o++)
    for (int64_t i = 0; i < n; i++)
      memcpy((char *)v->t.data + (size_t)(o * n + i) * part,
             (const char *)r->t->data + (size_t)(o * r->n + first[i]) * part, part);
  return v;
}

static bool integers(Control *c, Frame *f, Step *s, const char *slot, int64_t n, const int64_t *v) {
  if (!step_out(s, slot, 0)) return true;
  Value *t =
      value_tensor(c,
                   dtype_from_paddle((int)op_int(s->op, "dtype")) == DT_INT32 ? DT_INT32 : DT_INT64,
                   1, &n);
  for (int64_t i = 0; i < n; i++) tensor_set(&t->t, i, (double)v[i]);
  return op_result(c, f, s, slot, 0, t);
}

/* Groups of equal rows that follow each other in `order`: first, how many, and to which group a row belongs. */
static bool give_distinct(Control *c, Frame *f, Step *s, const Rows *r, Arena *a,
                          const char *index) {
  int64_t n = 0, *first = arena_array(a, int64_t, r->n + 1),
          *count = arena_array(a, int64_t, r->n + 1), *group = arena_array(a, int64_t, r->n + 1);
  for (int64_t i = 0; i < r->n; i++) {
    if (i == 0 || compare_rows(r, r->order[i - 1], r->order[i])) first[n++] = r->order[i];
    count[n - 1]++;
    group[r->order[i]] = n - 1;
  }
  return op_result(c, f, s, "Out", 0, gather_rows(c, r, n, first)) &&
         (!index || integers(c, f, s, index, n, first)) &&
         integers(c, f, s, "Index", r->n, group) && integers(c, f, s, "Counts", n, count);
}

static HostResult distinct(Control *c, Frame *f, Step *s, bool sorted, const char *index) {
  Rows r;
  Value *v = op_tensor(c, f, s, "X");
  if (!v || !make_rows(c, s, &v->t, &r)) return HOST_FAIL;
  Arena *a = arena_scratch();
  int64_t *order = arena_array(a, int64_t, r.n + 1);
  for (int64_t i = 0; i < r.n; i++) order[i] = i;
  if (sorted) qsort_r(order, (size_t)r.n, sizeof *order, by_row, &r);
  r.order = order;
  bool ok = give_distinct(c, f, s, &r, a, index);
  arena_free(a);
  value_drop(c, v);
  return ok ? HOST_NEXT : HOST_FAIL;
}

HostResult run_unique(Control *c, Frame *f, Step *s) { return distinct(c, f, s, true, "Indices"); }

HostResult run_unique_consecutive(Control *c, Frame *f, Step *s) {
  return distinct(c, f, s, false, NULL);
}
