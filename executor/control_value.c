/* Values and frames of a run with control flow.
 *
 * Values are counted references in a list of all that live, so that a run which fails, also for want of memory, gives back
 * everything at once. A frame holds one reference for each of its variables. Dropping the last reference to a frame list
 * drops frames, which drop values: a list of what is dead replaces the recursion. */
#include "control.h"
#include <string.h>

/* ---- values ---- */

Value *value_new(Control *c, ValueKind k) {
  Value *v = mem_alloc(sizeof *v);
  v->kind = k;
  v->refs = 1;
  v->next = c->values;
  if (c->values) c->values->prev = v;
  return c->values = v;
}

Value *value_tensor(Control *c, DType t, int rank, const int64_t *dims) {
  int64_t n;
  if (!dims_numel(t, rank, dims, &n)) return NULL;
  Value *v = value_new(c, V_TENSOR);
  v->t.dtype = t;
  v->t.rank = rank;
  if (rank) memcpy(v->t.dims, dims, sizeof *dims * (size_t)rank);
  v->t.data = mem_take(tensor_bytes(&v->t) + 1);
  return v;
}

Value *value_zeros(Control *c, const Tensor *like) {
  Value *v = value_tensor(c, like->dtype, like->rank, like->dims);
  memset(v->t.data, 0, tensor_bytes(&v->t));
  return v;
}

Value *value_zeros_like(Control *c, const Value *like) {
  Value *v = value_zeros(c, &like->t);
  v->lod = value_share(like->lod);
  return v;
}

static bool same_sequences(const Value *a, const Value *b) {
  for (; a && b && a != b; a = a->lod, b = b->lod)
    if (a->t.dims[0] != b->t.dims[0] || memcmp(a->t.data, b->t.data, tensor_bytes(&a->t)))
      return false;
  return a == b;
}

Value *value_with_lod(Control *c, Value *v, Value *lod) {
  if (!v || same_sequences(v->lod, lod)) {
    value_drop(c, lod);
    return v;
  }
  if (v->refs > 1) {
    Value *mine = value_tensor(c, v->t.dtype, v->t.rank, v->t.dims);
    memcpy(mine->t.data, v->t.data, tensor_bytes(&v->t));
    value_drop(c, v);
    v = mine;
  }
  value_drop(c, v->lod);
  v->lod = lod;
  return v;
}

Value *value_share(Value *v) {
  if (v) v->refs++;
  return v;
}

static void unlink_value(Control *c, Value *v) {
  if (v->prev)
    v->prev->next = v->next;
  else
    c->values = v->next;
  if (v->next) v->next->prev = v->prev;
}

static void unlink_frame(Control *c, Frame *f) {
  if (f->prev)
    f->prev->next = f->next;
  else
    c->frames = f->next;
  if (f->next) f->next->prev = f->prev;
}

static void free_value(Value *v) {
  if (!v->borrowed) mem_free(v->t.data);
  mem_free(v->items);
  mem_free(v->frames);
  mem_free(v);
}

static void free_frame(Frame *f) {
  mem_free(f->sums);
  mem_free(f->vals);
  mem_free(f);
}

/* One reference less; a dead value goes from the list of all to that of the dead. */
static void lose(Control *c, Value *v, Value **dead) {
  if (!v || --v->refs) return;
  unlink_value(c, v);
  v->next = *dead;
  *dead = v;
}

static void lose_frame(Control *c, Frame *f, Value **dead) {
  for (int i = 0; i < f->b->n_slots; i++) lose(c, f->vals[i], dead);
  lose(c, f->frames, dead);
  unlink_frame(c, f);
  free_frame(f);
}

static void bury(Control *c, Value *dead) {
  while (dead) {
    Value *v = dead;
    dead = v->next;
    for (int i = 0; i < v->n && v->kind == V_ARRAY; i++) lose(c, v->items[i], &dead);
    for (int i = 0; i < v->n && v->kind == V_FRAMES; i++) lose_frame(c, v->frames[i], &dead);
    lose(c, v->lod, &dead);
    free_value(v);
  }
}

void value_drop(Control *c, Value *v) {
  Value *dead = NULL;
  lose(c, v, &dead);
  bury(c, dead);
}

static void *grown(void *old, int n, int cap, size_t item) {
  void *v = mem_alloc((size_t)cap * item);
  if (n) memcpy(v, old, (size_t)n * item);
  mem_free(old);
  return v;
}

void value_add_frame(Value *v, Frame *f) {
  if (v->n == v->cap) {
    int cap = v->cap ? 2 * v->cap : 8;
    v->frames = grown(v->frames, v->n, cap, sizeof *v->frames);
    v->cap = cap;
  }
  v->frames[v->n++] = f;
}

void array_put(Control *c, Value *array, int64_t i, Value *item) {
  if (i >= array->cap) {
    int cap = array->cap ? array->cap : 8;
    while (cap <= i) cap *= 2;
    array->items = grown(array->items, array->n, cap, sizeof *array->items);
    array->cap = cap;
  }
  if (i >= array->n) array->n = (int)i + 1;
  Value *old = array->items[i];
  array->items[i] = item;
  value_drop(c, old);
}

/* ---- frames ---- */

Frame *frame_new(Control *c, PlanBlock *b, Frame *parent, Frame *forward) {
  Frame *f = mem_alloc(sizeof *f);
  f->b = b;
  f->parent = parent;
  f->forward = forward;
  f->next = c->frames;
  if (c->frames) c->frames->prev = f;
  c->frames = f;
  f->vals = mem_alloc(sizeof *f->vals * (size_t)(b->n_slots + 1));
  return f;
}

void frame_clear(Control *c, Frame *f) {
  for (int i = 0; i < f->b->n_slots; i++) {
    Value *v = f->vals[i];
    f->vals[i] = NULL;
    if (v) value_drop(c, v);
  }
}

void frame_drop(Control *c, Frame *f) {
  Value *dead = NULL;
  if (f) lose_frame(c, f, &dead);
  bury(c, dead);
}

void control_free_all(Control *c) {
  for (Frame *f = c->frames, *next; f; f = next) {
    next = f->next;
    free_frame(f);
  }
  for (Value *v = c->values, *next; v; v = next) {
    next = v->next;
    free_value(v);
  }
  c->frames = NULL;
  c->values = NULL;
}

/* ---- variables ---- */

Value **ref_at(Frame *f, const Ref *r) {
  for (int i = 0; i < r->up; i++) f = f->parent;
  if (r->forward) f = f->forward;
  return &f->vals[r->slot];
}

Value *ref_get(Control *c, Frame *f, const Ref *r) {
  if (r->slot >= 0) return value_share(*ref_at(f, r));
  Arena *a = arena_scratch();
  Tensor *t = scope_copy(c->scope, r->var->name, a);
  Value *v = t ? value_tensor(c, t->dtype, t->rank, t->dims) : NULL;
  if (v) memcpy(v->t.data, t->data, tensor_bytes(t));
  arena_free(a);
  return v;
}

bool ref_set(Control *c, Frame *f, const Ref *r, Value *v) {
  if (r->slot >= 0) {
    Value **at = ref_at(f, r), *old = *at;
    *at = v;
    if (old) value_drop(c, old);
    return true;
  }
  bool ok = v->kind == V_TENSOR;
  if (!ok)
    err_set(E_RUN_005, "%s is persistable, and no tensor", quoted(r->var->name));
  else {
    undo_note(c, r->var->name);
    ok = scope_set(c->scope, r->var->name, v->t.dtype, v->t.rank, v->t.dims, v->t.data) != NULL;
  }
  value_drop(c, v);
  return ok;
}

void undo_note(Control *c, const char *name) {
  for (Undo *u = c->undo; u; u = u->next)
    if (!strcmp(u->name, name)) return;
  Undo *u = arena_new_of(c->arena, Undo);
  Tensor *t = scope_copy(c->scope, name, c->arena);
  u->name = name;
  if (t) {
    u->was = *t;
    u->was.data = arena_dup(c->arena, t->data, tensor_bytes(t));
  }
  u->next = c->undo;
  c->undo = u;
}

/* ---- operands of host operators ---- */

static const Ref *slot_ref(const SlotVec *slots, Ref **refs, const char *slot, int i) {
  for (int s = 0; s < slots->n; s++)
    if (!strcmp(slots->v[s].name, slot))
      return i < slots->v[s].n && refs[s][i].var ? &refs[s][i] : NULL;
  return NULL;
}

const Ref *step_in(const Step *s, const char *slot, int i) {
  return slot_ref(&s->op->ins, s->ins, slot, i);
}

const Ref *step_out(const Step *s, const char *slot, int i) {
  return slot_ref(&s->op->outs, s->outs, slot, i);
}

bool op_refuses(const Step *s, const char *slot, const char *what) {
  const char *name = op_in(s->op, slot, 0);
  return err_set(E_RUN_005, "%s %s %s", slot, name ? quoted(name) : "", what);
}

Value *op_value(Control *c, Frame *f, const Step *s, const char *slot, int i) {
  const Ref *r = step_in(s, slot, i);
  Value *v = r ? ref_get(c, f, r) : NULL;
  if (!v && r)
    err_set(E_RUN_005, "%s %s has no value", slot, quoted(r->var->name));
  else if (!v)
    err_set(E_RUN_005, "input %s is missing", slot);
  return v;
}

bool op_result(Control *c, Frame *f, const Step *s, const char *slot, int i, Value *v) {
  const Ref *r = step_out(s, slot, i);
  if (!v) return false;
  if (r) return ref_set(c, f, r, v);
  value_drop(c, v);
  return true;
}

bool op_number(Control *c, Frame *f, const Step *s, const char *slot, double *n) {
  Value *v = op_value(c, f, s, slot, 0);
  if (!v) return false;
  bool one = v->kind == V_TENSOR && tensor_numel(&v->t) == 1;
  if (one)
    *n = tensor_get(&v->t, 0);
  else if (v->kind != V_TENSOR)
    op_refuses(s, slot, "is no tensor, but one number is needed");
  else {
    op_refuses(s, slot, "is not one number");
    err_note("it is %s", shape_text(v->t.dtype, v->t.rank, v->t.dims));
  }
  value_drop(c, v);
  return one;
}

#define SUM(T)                                                                                     \
  for (int64_t i = 0; i < n; i++) ((T *)to)[i] = ((const T *)x)[i] + ((const T *)y)[i]

Value *value_sum(Control *c, const Value *a, const Value *b) {
  const Tensor *p = &a->t, *q = &b->t;
  if (p->dtype != q->dtype || p->rank != q->rank ||
      memcmp(p->dims, q->dims, sizeof *p->dims * (size_t)p->rank)) {
    err_set(E_SHP_006, "gradients of one variable are %s and %s",
            shape_text(p->dtype, p->rank, p->dims), shape_text(q->dtype, q->rank, q->dims));
    return NULL;
  }
  Value *v = value_tensor(c, p->dtype, p->rank, p->dims);
  v->lod = value_share(a->lod ? a->lod : b->lod);
  int64_t n = tensor_numel(p);
  void *to = v->t.data;
  const void *x = p->data, *y = q->data;
  if (p->dtype == DT_FLOAT32)
    SUM(float);
  else if (p->dtype == DT_FLOAT64)
    SUM(double);
  else
    for (int64_t i = 0; i < n; i++) tensor_set(&v->t, i, tensor_get(p, i) + tensor_get(q, i));
  return v;
}
