/* Recurrence over sequences of different lengths, as PaddlePaddle 1.x writes it (DynamicRNN), and selection of sequences.
 *
 * A rank table lists the sequences of a tensor, the longest first: an int64 tensor [n, 2] of (number, length), with the
 * sequences of these sequences, if there are any. lod_tensor_to_array makes step t of all sequences that are longer than t an
 * element of a tensor array, in the order of the table; so the states of those that still go on are the first rows of
 * the states before. The table alone says where a row belongs, so that gradients need no offsets of their own. */
#include "control.h"
#include <stdlib.h>
#include <string.h>

/* ---- tables ---- */

typedef struct Table {
  Value *v;
  int64_t n, steps, rows;
  const int64_t *item; /* number and length of each */
  int64_t *offset;     /* n + 1: where each sequence begins in the tensor */
} Table;

static const int64_t *offsets_of(const Value *v) { return v->lod->t.data; }
static int64_t sequences_of(const Value *v) { return v->lod->t.dims[0] - 1; }

/* The value in a slot, which must be a tensor with rows. The caller drops it. */
static Value *rows_in(Control *c, Frame *f, const Step *s, const char *slot) {
  Value *v = op_value(c, f, s, slot, 0);
  if (!v || (v->kind == V_TENSOR && v->t.rank > 0)) return v;
  op_refuses(s, slot, "has no rows");
  return NULL;
}

static bool check_table(const Step *s, Table *t, Arena *a) {
  bool *seen = arena_array(a, bool, t->n + 1), ok = true;
  int64_t before = INT64_MAX;
  for (int64_t i = 0; ok && i < t->n; i++) {
    int64_t at = t->item[2 * i], len = t->item[2 * i + 1];
    ok = at >= 0 && at < t->n && !seen[at] && len >= 0 && len <= before;
    if (!ok) break;
    seen[at] = true;
    before = len;
    t->offset[at + 1] = len;
  }
  for (int64_t i = 0; ok && i < t->n; i++)
    ok = add_ok(t->offset[i], t->offset[i + 1], &t->offset[i + 1]);
  return ok || op_refuses(s, "RankTable", "is no rank table");
}

static bool table_in(Control *c, Frame *f, const Step *s, Table *t, Arena *a) {
  t->v = op_value(c, f, s, "RankTable", 0);
  if (!t->v) return false;
  const Tensor *x = &t->v->t;
  if (t->v->kind != V_TENSOR || x->dtype != DT_INT64 || x->rank != 2 || x->dims[1] != 2)
    return op_refuses(s, "RankTable", "is no rank table");
  t->n = x->dims[0];
  t->item = x->data;
  t->offset = arena_array(a, int64_t, t->n + 1);
  if (!check_table(s, t, a)) return false;
  t->steps = t->n ? t->item[1] : 0;
  t->rows = t->offset[t->n];
  return true;
}

/* How many sequences are longer than that: the first ones. */
static int64_t live(const Table *t, int64_t steps) {
  int64_t lo = 0, hi = t->n;
  while (lo < hi) {
    int64_t mid = lo + (hi - lo) / 2;
    if (t->item[2 * mid + 1] > steps)
      lo = mid + 1;
    else
      hi = mid;
  }
  return lo;
}

static Value *offsets_value(Control *c, int64_t n, const int64_t *offset, Value *up) {
  Value *v = value_tensor(c, DT_INT64, 1, (int64_t[]){n + 1});
  memcpy(v->t.data, offset, sizeof *offset * (size_t)(n + 1));
  v->lod = value_share(up);
  return v;
}

/* A tensor like x but for its rows. */
static Value *with_rows(Control *c, const Tensor *x, int64_t rows) {
  int64_t dims[KL_VAR_RANK] = {rows};
  memcpy(dims + 1, x->dims + 1, sizeof *dims * (size_t)(x->rank - 1));
  return value_tensor(c, x->dtype, x->rank, dims);
}

static size_t row_bytes(const Tensor *x) {
  return (size_t)dtype_info[x->dtype].size * (size_t)numel_of(x->rank - 1, x->dims + 1);
}

static void copy_rows(const Tensor *to, int64_t at, const Tensor *from, int64_t first, int64_t n) {
  size_t b = row_bytes(from);
  memcpy((char *)to->data + (size_t)at * b, (const char *)from->data + (size_t)first * b,
         (size_t)n * b);
}

typedef struct Item {
  int64_t at, length;
} Item;

static int by_length(const void *a, const void *b) {
  const Item *x = a, *y = b;
  if (x->length != y->length) return x->length > y->length ? -1 : 1;
  return (x->at > y->at) - (x->at < y->at);
}

HostResult run_lod_rank_table(Control *c, Frame *f, Step *s) {
  Value *x = rows_in(c, f, s, "X");
  int64_t levels = 0, level = op_int(s->op, "level");
  if (!x) return HOST_FAIL;
  for (const Value *l = x->lod; l; l = l->lod) levels++;
  if (levels == 0) return op_refuses(s, "X", "has no sequences"), HOST_FAIL;
  if (level != levels - 1) {
    err_set(E_OPR_004, "level %lld of %lld levels of sequences", (long long)level,
            (long long)levels);
    err_help("only the last level can be ranked");
    return HOST_FAIL;
  }
  int64_t n = sequences_of(x);
  Value *table = value_tensor(c, DT_INT64, 2, (int64_t[]){n, 2});
  Item *item = table->t.data;
  for (int64_t i = 0; i < n; i++) item[i] = (Item){i, offsets_of(x)[i + 1] - offsets_of(x)[i]};
  qsort(item, (size_t)n, sizeof *item, by_length);
  table->lod = value_share(x->lod->lod);
  value_drop(c, x);
  return op_result(c, f, s, "Out", 0, table) ? HOST_NEXT : HOST_FAIL;
}

/* ---- what a table is used for ---- */

typedef Value *TableFn(Control *c, Frame *f, Step *s, const Table *t);

static HostResult with_table(Control *c, Frame *f, Step *s, const char *out, TableFn *fn) {
  Arena *a = arena_scratch();
  Table t;
  Value *v = table_in(c, f, s, &t, a) ? fn(c, f, s, &t) : NULL;
  if (v) value_drop(c, t.v);
  bool ok = v && op_result(c, f, s, out, 0, v);
  arena_free(a);
  return ok ? HOST_NEXT : HOST_FAIL;
}

static Value *longest(Control *c, Frame *f, Step *s, const Table *t) {
  (void)f, (void)s;
  Value *v = value_tensor(c, DT_INT64, 1, (int64_t[]){1});
  tensor_set(&v->t, 0, (double)t->steps);
  return v;
}

HostResult run_max_sequence_len(Control *c, Frame *f, Step *s) {
  return with_table(c, f, s, "Out", longest);
}

static Value *rows_error(const char *what, int64_t have, int64_t want) {
  err_set(E_SHP_006, "%s has %lld rows, the sequences of the rank table %lld", what,
          (long long)have, (long long)want);
  return NULL;
}

static Value *to_steps(Control *c, Frame *f, Step *s, const Table *t) {
  Value *x = rows_in(c, f, s, "X");
  if (!x) return NULL;
  if (x->t.dims[0] != t->rows) return rows_error("X", x->t.dims[0], t->rows);
  Value *array = value_new(c, V_ARRAY);
  for (int64_t k = 0; k < t->steps; k++) {
    int64_t n = live(t, k);
    Value *row = with_rows(c, &x->t, n);
    for (int64_t i = 0; i < n; i++) copy_rows(&row->t, i, &x->t, t->offset[t->item[2 * i]] + k, 1);
    array_put(c, array, k, row);
  }
  value_drop(c, x);
  return array;
}

HostResult run_to_array(Control *c, Frame *f, Step *s) {
  return with_table(c, f, s, "Out", to_steps);
}

/* Element k, of the right number of rows, or NULL: nothing has flowed into it. False: an error. */
static bool step_of(const Step *s, const Table *t, const Value *array, int64_t k,
                    const Value **to) {
  const Value *v = *to = k < array->n ? array->items[k] : NULL;
  if (!v)
    return (op_role(s->op) & ROLE_BACKWARD) ||
           err_set(E_RUN_004, "element %lld of %s is read, but nobody has written it", (long long)k,
                   quoted(op_in(s->op, "X", 0)));
  if (v->t.rank > 0 && v->t.dims[0] == live(t, k)) return true;
  err_set(E_SHP_006, "element %lld is %s, but %lld sequences are that long", (long long)k,
          shape_text(v->t.dtype, v->t.rank, v->t.dims), (long long)live(t, k));
  return false;
}

/* What an element looks like: one that is there, or as the result is declared. */
static bool step_like(const Step *s, const Value *array, Tensor *like) {
  const Ref *r = step_out(s, "Out", 0);
  for (int64_t k = 0; k < array->n; k++)
    if (array->items[k] && array->items[k]->t.rank > 0) return *like = array->items[k]->t, true;
  bool known = r && r->var->dtype != DT_NONE && r->var->rank > 0;
  for (int d = 1; known && d < r->var->rank; d++) known = r->var->dims[d] >= 0;
  if (!known) return op_refuses(s, "X", "has no elements");
  *like = (Tensor){.dtype = r->var->dtype, .rank = r->var->rank};
  memcpy(like->dims, r->var->dims, sizeof like->dims);
  return true;
}

static Value *from_steps(Control *c, Frame *f, Step *s, const Table *t) {
  Tensor like;
  Value *array = op_value(c, f, s, "X", 0);
  if (!array) return NULL;
  if (array->kind != V_ARRAY) return op_refuses(s, "X", "is no tensor array"), NULL;
  if (!step_like(s, array, &like)) return NULL;
  Value *v = with_rows(c, &like, t->rows);
  if (!v) return NULL;
  memset(v->t.data, 0, tensor_bytes(&v->t));
  for (int64_t k = 0; k < t->steps; k++) {
    const Value *row;
    if (!step_of(s, t, array, k, &row)) return NULL;
    if (!row) continue;
    if (row->t.dtype != like.dtype || row_bytes(&row->t) != row_bytes(&like)) {
      err_set(E_SHP_006, "elements are %s and %s", shape_text(like.dtype, like.rank, like.dims),
              shape_text(row->t.dtype, row->t.rank, row->t.dims));
      return NULL;
    }
    for (int64_t i = 0; i < row->t.dims[0]; i++)
      copy_rows(&v->t, t->offset[t->item[2 * i]] + k, &row->t, i, 1);
  }
  v->lod = offsets_value(c, t->n, t->offset, t->v->lod);
  value_drop(c, array);
  return v;
}

HostResult run_from_array(Control *c, Frame *f, Step *s) {
  return with_table(c, f, s, "Out", from_steps);
}

static Value *shrink(Control *c, Frame *f, Step *s, const Table *t) {
  double i;
  Value *x = rows_in(c, f, s, "X");
  if (!x || !op_number(c, f, s, "I", &i)) return NULL;
  if (!(i >= 0 && i < 1e15)) return op_refuses(s, "I", "is no step"), NULL;
  int64_t n = live(t, (int64_t)i);
  if (x->t.dims[0] < n) return rows_error("X", x->t.dims[0], n);
  Value *v = with_rows(c, &x->t, n);
  copy_rows(&v->t, 0, &x->t, 0, n);
  value_drop(c, x);
  return v;
}

HostResult run_shrink_memory(Control *c, Frame *f, Step *s) {
  return with_table(c, f, s, "Out", shrink);
}

HostResult run_shrink_memory_grad(Control *c, Frame *f, Step *s) {
  Value *x = rows_in(c, f, s, "X"), *g = x ? rows_in(c, f, s, "Out@GRAD") : NULL;
  if (!g) return HOST_FAIL;
  if (g->t.dtype != x->t.dtype || g->t.rank != x->t.rank || row_bytes(&g->t) != row_bytes(&x->t) ||
      g->t.dims[0] > x->t.dims[0]) {
    op_refuses(s, "Out@GRAD", "is not like the first rows of X");
    return HOST_FAIL;
  }
  Value *v = value_zeros_like(c, x);
  copy_rows(&v->t, 0, &g->t, 0, g->t.dims[0]);
  value_drop(c, x);
  value_drop(c, g);
  return op_result(c, f, s, "X@GRAD", 0, v) ? HOST_NEXT : HOST_FAIL;
}

/* ---- sequences, or rows, in another order ---- */

/* x as n units: its sequences, or rows if it has none. */
typedef struct Units {
  int64_t n;
  const int64_t *offset; /* NULL: rows */
} Units;

static Units units_of(const Value *x) {
  return x->lod ? (Units){sequences_of(x), offsets_of(x)} : (Units){x->t.dims[0], NULL};
}

static int64_t unit_at(const Units *u, int64_t i) { return u->offset ? u->offset[i] : i; }

/* Appends a unit to a tensor that has room; `to` gets its end. */
static void append_unit(const Tensor *to, int64_t *offset, int64_t k, const Value *from,
                        const Units *u, int64_t i) {
  int64_t first = unit_at(u, i), n = unit_at(u, i + 1) - first;
  copy_rows(to, offset[k], &from->t, first, n);
  offset[k + 1] = offset[k] + n;
}

static Value *reorder(Control *c, const Value *x, const Table *t, bool back) {
  Units u = units_of(x);
  if (u.n != t->n) {
    err_set(E_SHP_006, "%lld sequences or rows, %lld in the rank table", (long long)u.n,
            (long long)t->n);
    return NULL;
  }
  Arena *a = arena_scratch();
  Value *v = with_rows(c, &x->t, x->t.dims[0]);
  int64_t *offset = arena_array(a, int64_t, t->n + 1), *from = arena_array(a, int64_t, t->n + 1);
  for (int64_t i = 0; i < t->n; i++) {
    int64_t at = t->item[2 * i];
    from[back ? at : i] = back ? i : at;
  }
  for (int64_t i = 0; i < t->n; i++) append_unit(&v->t, offset, i, x, &u, from[i]);
  if (u.offset) v->lod = offsets_value(c, t->n, offset, NULL);
  arena_free(a);
  return v;
}

static Value *in_order(Control *c, Frame *f, Step *s, const Table *t) {
  Value *x = rows_in(c, f, s, "X"), *v = x ? reorder(c, x, t, false) : NULL;
  value_drop(c, x);
  return v;
}

static Value *back_in_order(Control *c, Frame *f, Step *s, const Table *t) {
  Value *x = rows_in(c, f, s, "X"), *v = x ? reorder(c, x, t, true) : NULL;
  value_drop(c, x);
  return v;
}

HostResult run_reorder(Control *c, Frame *f, Step *s) {
  return with_table(c, f, s, "Out", in_order);
}

HostResult run_reorder_grad(Control *c, Frame *f, Step *s) {
  return with_table(c, f, s, "Out", back_in_order);
}

/* ---- sequences, or rows, of two kinds ---- */

/* Mask has a truth value for each unit. The caller drops it. */
static Value *mask_in(Control *c, Frame *f, const Step *s, int64_t n) {
  Value *m = op_value(c, f, s, "Mask", 0);
  if (!m || (m->kind == V_TENSOR && tensor_numel(&m->t) == n)) return m;
  op_refuses(s, "Mask", "has another size");
  if (m->kind == V_TENSOR)
    err_note("it is %s, there are %lld sequences or rows",
             shape_text(m->t.dtype, m->t.rank, m->t.dims), (long long)n);
  return NULL;
}

static bool one_level(const Step *s, const char *slot, const Value *x) {
  if (!x->lod || !x->lod->lod) return true;
  err_set(E_OPR_004, "%s %s has several levels of sequences", slot, quoted(op_in(s->op, slot, 0)));
  err_help("select before they are grouped, or reset them with lod_reset");
  return false;
}

HostResult run_split_lod_tensor(Control *c, Frame *f, Step *s) {
  Value *x = rows_in(c, f, s, "X");
  if (!x || !one_level(s, "X", x)) return HOST_FAIL;
  Units u = units_of(x);
  Value *mask = mask_in(c, f, s, u.n), *part[2];
  if (!mask) return HOST_FAIL;
  Arena *a = arena_scratch();
  int64_t *offset = arena_array(a, int64_t, u.n + 1);
  for (int kind = 0; kind < 2; kind++) {
    int64_t n = 0, rows = 0;
    for (int64_t i = 0; i < u.n; i++)
      if ((tensor_get(&mask->t, i) != 0) == kind) rows += unit_at(&u, i + 1) - unit_at(&u, i);
    part[kind] = with_rows(c, &x->t, rows);
    for (int64_t i = 0; i < u.n; i++)
      if ((tensor_get(&mask->t, i) != 0) == kind)
        append_unit(&part[kind]->t, offset, n++, x, &u, i);
    if (u.offset) part[kind]->lod = offsets_value(c, n, offset, NULL);
  }
  arena_free(a);
  value_drop(c, x);
  value_drop(c, mask);
  bool ok = op_result(c, f, s, "OutTrue", 0, part[1]);
  return op_result(c, f, s, "OutFalse", 0, part[0]) && ok ? HOST_NEXT : HOST_FAIL;
}

/* A part, or zeros if it is a gradient into which nothing has flowed. */
static Value *part_in(Control *c, Frame *f, const Step *s, const char *slot) {
  const Ref *r = step_in(s, slot, 0);
  Value *v = r ? ref_get(c, f, r) : NULL;
  if (!v && r) v = missing_grad(c, f, r->var->name);
  if (!v) return err_any() ? NULL : op_value(c, f, s, slot, 0);
  if (v->kind == V_TENSOR && v->t.rank > 0) return one_level(s, slot, v) ? v : NULL;
  op_refuses(s, slot, "has no rows");
  return NULL;
}

static Value *merge(Control *c, const Step *s, Value *const *part, const Value *mask) {
  Units u[2] = {units_of(part[0]), units_of(part[1])};
  int64_t n = tensor_numel(&mask->t), at[2] = {0, 0}, count[2] = {0, 0};
  for (int64_t i = 0; i < n; i++) count[tensor_get(&mask->t, i) != 0]++;
  bool alike = part[0]->t.dtype == part[1]->t.dtype && part[0]->t.rank == part[1]->t.rank &&
               row_bytes(&part[0]->t) == row_bytes(&part[1]->t);
  if (!alike || count[0] != u[0].n || count[1] != u[1].n) {
    op_refuses(s, "InTrue", "and InFalse do not fit Mask, or each other");
    err_note("they are %s and %s", shape_text(part[1]->t.dtype, part[1]->t.rank, part[1]->t.dims),
             shape_text(part[0]->t.dtype, part[0]->t.rank, part[0]->t.dims));
    return NULL;
  }
  Arena *a = arena_scratch();
  int64_t *offset = arena_array(a, int64_t, n + 1);
  Value *v = with_rows(c, &part[1]->t, part[0]->t.dims[0] + part[1]->t.dims[0]);
  for (int64_t i = 0; i < n; i++) {
    int kind = tensor_get(&mask->t, i) != 0;
    append_unit(&v->t, offset, i, part[kind], &u[kind], at[kind]++);
  }
  if (u[0].offset || u[1].offset) v->lod = offsets_value(c, n, offset, NULL);
  arena_free(a);
  return v;
}

HostResult run_merge_lod_tensor(Control *c, Frame *f, Step *s) {
  Value *part[2] = {part_in(c, f, s, "InFalse"), NULL};
  part[1] = part[0] ? part_in(c, f, s, "InTrue") : NULL;
  Value *mask = part[1] ? op_value(c, f, s, "Mask", 0) : NULL;
  if (!mask) return HOST_FAIL;
  if (mask->kind != V_TENSOR) return op_refuses(s, "Mask", "is no tensor"), HOST_FAIL;
  Value *v = merge(c, s, part, mask);
  for (int k = 0; k < 2; k++) value_drop(c, part[k]);
  value_drop(c, mask);
  return v && op_result(c, f, s, "Out", 0, v) ? HOST_NEXT : HOST_FAIL;
}
