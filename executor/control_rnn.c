/* Recurrent operators: a block for each row of their inputs, and its gradient.
 *
 * Variables of the block, by role (GradLink.role):
 *   i  row t of inputs[x]                      s  ex_states[x]: state x of the row before, at first initial_states[x]
 *   o  becomes row t of outputs[x]             n  states[x]
 * The gradient goes through the frames of the rows from the last to the first. Its links are the gradients of the same
 * variables, and p, those of parameters[x], which are summed. What flows into ex_states of one row flows out of states of the
 * row before. */
#include "control.h"
#include <string.h>

/* Row t of a tensor. */
static Value *row_of(Control *c, const Value *v, int64_t t) {
  Value *row = value_tensor(c, v->t.dtype, v->t.rank - 1, v->t.dims + 1);
  size_t n = tensor_bytes(&row->t);
  memcpy(row->t.data, (const char *)v->t.data + (size_t)t * n, n);
  return row;
}

/* Stores a row; *whole is made, of zeros, when the first one comes. */
static bool put_row(Control *c, Value **whole, int64_t rows, int64_t t, const Value *row) {
  int64_t dims[KL_VAR_RANK + 1] = {rows};
  if (row->kind != V_TENSOR || row->t.rank >= KL_VAR_RANK)
    return err_set(E_SHP_002, "a row of %d dimensions", row->t.rank);
  if (row->t.rank) memcpy(dims + 1, row->t.dims, sizeof *dims * (size_t)row->t.rank);
  if (!*whole) {
    *whole = value_tensor(c, row->t.dtype, row->t.rank + 1, dims);
    if (!*whole) return false;
    memset((*whole)->t.data, 0, tensor_bytes(&(*whole)->t));
  }
  const Tensor *w = &(*whole)->t;
  size_t n = tensor_bytes(&row->t);
  if (w->rank != row->t.rank + 1 || memcmp(w->dims, dims, sizeof *dims * (size_t)w->rank))
    return err_set(E_SHP_006, "rows are %s and %s", dims_text(w->rank - 1, w->dims + 1),
                   dims_text(row->t.rank, row->t.dims));
  memcpy((char *)w->data + (size_t)t * n, row->t.data, n);
  return true;
}

/* How many rows the inputs have: E-SHP-006 unless all have the same. */
static bool count_rows(Control *c, Frame *f, Step *s, int64_t *rows) {
  const Slot *in = op_ins(s->op, "inputs");
  *rows = -1;
  for (int i = 0; in && i < in->n; i++) {
    Value *v = op_value(c, f, s, "inputs", i);
    if (!v) return false;
    int64_t n = v->kind == V_TENSOR && v->t.rank > 0 ? v->t.dims[0] : -1;
    value_drop(c, v);
    if (n < 0) return op_refuses(s, "inputs", "has no rows");
    if (*rows >= 0 && n != *rows)
      return err_set(E_SHP_006, "inputs have %lld and %lld rows", (long long)*rows, (long long)n);
    *rows = n;
  }
  return *rows >= 0 || err_set(E_OPR_002, "a recurrent operator needs an input");
}

static int64_t position(const Step *s, int64_t rows, int64_t k) {
  return op_bool(s->op, "reverse") ? rows - 1 - k : k;
}

/* ---- forward ---- */

static HostResult next_row(Control *c, Frame *f, Step *s, Frame *before) {
  int64_t rows, t;
  if (!count_rows(c, f, s, &rows)) return HOST_FAIL;
  if (f->count == rows) return HOST_NEXT;
  t = position(s, rows, f->count);
  Frame *child = control_push(c, f, s->sub, NULL);
  if (!child) return HOST_FAIL;
  for (int k = 0; k < s->n_links; k++) {
    const GradLink *l = &s->links[k];
    Value *v = NULL;
    if (l->role == 'i') {
      Value *whole = op_value(c, f, s, "inputs", l->x);
      v = whole ? row_of(c, whole, t) : NULL;
      value_drop(c, whole);
    } else if (l->role == 's' && before) {
      for (int j = 0; j < s->n_links; j++)
        if (s->links[j].role == 'n' && s->links[j].x == l->x)
          v = value_share(before->vals[s->links[j].slot]);
    } else if (l->role == 's')
      v = op_value(c, f, s, "initial_states", l->x);
    else
      continue;
    if (!v && !err_any()) err_set(E_RUN_005, "state %s has no value", quoted(l->of));
    if (!v) return HOST_FAIL;
    child->vals[l->slot] = v;
  }
  return HOST_WAIT;
}

HostResult run_recurrent(Control *c, Frame *f, Step *s) {
  f->count = 0;
  f->sums = mem_alloc(sizeof *f->sums * (size_t)(s->n_links + 1));
  f->frames = value_new(c, V_FRAMES);
  HostResult r = next_row(c, f, s, NULL);
  return r == HOST_NEXT ? (op_refuses(s, "inputs", "has no rows"), HOST_FAIL) : r;
}

static bool take_outputs(Control *c, Frame *f, Step *s, Frame *child) {
  int64_t rows;
  if (!count_rows(c, f, s, &rows)) return false;
  for (int k = 0; k < s->n_links; k++) {
    const GradLink *l = &s->links[k];
    Value *row = l->role == 'o' ? child->vals[l->slot] : NULL;
    if (row && !put_row(c, &f->sums[k], rows, position(s, rows, f->count), row)) return false;
  }
  return true;
}

static HostResult finish_recurrent(Control *c, Frame *f, Step *s) {
  bool ok = true;
  for (int k = 0; k < s->n_links; k++) {
    Value *v = f->sums[k];
    f->sums[k] = NULL;
    if (v) ok = op_result(c, f, s, "outputs", s->links[k].x, v) && ok;
  }
  mem_free(f->sums);
  f->sums = NULL;
  Value *frames = f->frames;
  f->frames = NULL;
  if (s->keep)
    ok = op_result(c, f, s, "step_scopes", 0, frames) && ok;
  else
    value_drop(c, frames);
  return ok ? HOST_NEXT : HOST_FAIL;
}

HostResult after_recurrent(Control *c, Frame *f, Step *s, Frame *child) {
  bool ok = take_outputs(c, f, s, child);
  if (!s->keep && f->frames->n) {
    frame_drop(c, f->frames->frames[0]); /* only the row before is needed */
    f->frames->n = 0;
  }
  value_add_frame(f->frames, child);
  f->count++;
  HostResult r = ok ? next_row(c, f, s, child) : HOST_FAIL;
  return r == HOST_NEXT ? finish_recurrent(c, f, s) : r;
}

/* ---- backward ---- */

static bool add_to(Control *c, Value **at, Value *v) {
  if (*at && v) {
    Value *sum = value_sum(c, *at, v);
    value_drop(c, v);
    if (!sum) return false;
    v = sum;
  }
  if (v) {
    value_drop(c, *at);
    *at = v;
  }
  return true;
}

/* sums: of s what flows to the row before, of i and p what is given out. */
static HostResult row_back(Control *c, Frame *f, Step *s) {
  Frame *forward = f->frames->frames[--f->count];
  if (forward->b != s->sub->forward)
    return op_refuses(s, "step_scopes", "belongs to another block"), HOST_FAIL;
  Frame *child = control_push(c, f, s->sub, forward);
  if (!child) return HOST_FAIL;
  int64_t t = position(s, f->frames->n, f->count);
  for (int k = 0; k < s->n_links; k++) {
    const GradLink *l = &s->links[k];
    if (l->role == 'o') {
      const Ref *r = step_in(s, "outputs@GRAD", l->x);
      Value *whole = r ? ref_get(c, f, r) : NULL;
      if (whole && !add_to(c, &child->vals[l->slot], row_of(c, whole, t))) return HOST_FAIL;
      value_drop(c, whole);
    }
    if (l->role != 's') continue;
    Value *v = f->sums[k];
    f->sums[k] = NULL;
    for (int j = 0; j < s->n_links && v; j++)
      if (s->links[j].role == 'n' && s->links[j].x == l->x) {
        if (!add_to(c, &child->vals[s->links[j].slot], v)) return HOST_FAIL;
        v = NULL;
      }
    value_drop(c, v);
  }
  return HOST_WAIT;
}

HostResult run_recurrent_grad(Control *c, Frame *f, Step *s) {
  const Ref *r = step_in(s, "step_scopes", 0);
  Value *v = r && r->slot >= 0 ? ref_get(c, f, r) : NULL;
  if (!v || v->kind != V_FRAMES || !v->n) {
    op_refuses(s, "step_scopes", "holds no steps");
    return HOST_FAIL;
  }
  f->frames = v;
  f->count = v->n;
  f->sums = mem_alloc(sizeof *f->sums * (size_t)(s->n_links + 1));
  return row_back(c, f, s);
}

static HostResult finish_back(Control *c, Frame *f, Step *s) {
  static const struct {
    char role;
    const char *slot, *of;
  } outs[] = {{'i', "inputs@GRAD", "inputs"},
              {'s', "initial_states@GRAD", "initial_states"},
              {'p', "parameters@GRAD", "parameters"}};
  bool ok = true;
  for (int k = 0; k < s->n_links; k++) {
    Value *v = f->sums[k];
    f->sums[k] = NULL;
    for (size_t i = 0; i < sizeof outs / sizeof *outs; i++) {
      if (outs[i].role != s->links[k].role || !step_out(s, outs[i].slot, s->links[k].x)) continue;
      Value *of = v ? NULL : op_value(c, f, s, outs[i].of, s->links[k].x);
      if (of && of->kind == V_TENSOR) v = value_zeros(c, &of->t);
      value_drop(c, of);
      ok = op_result(c, f, s, outs[i].slot, s->links[k].x, v) && ok;
      v = NULL;
    }
    value_drop(c, v);
  }
  mem_free(f->sums);
  f->sums = NULL;
  Value *frames = f->frames;
  f->frames = NULL;
  value_drop(c, frames);
  return ok ? HOST_NEXT : HOST_FAIL;
}

HostResult after_recurrent_grad(Control *c, Frame *f, Step *s, Frame *child) {
  int64_t t = position(s, f->frames->n, f->count);
  bool ok = true;
  for (int k = 0; k < s->n_links && ok; k++) {
    Value *v = child->vals[s->links[k].slot];
    if (!v) continue;
    if (s->links[k].role == 'i') ok = put_row(c, &f->sums[k], f->frames->n, t, v);
    if (s->links[k].role == 's') f->sums[k] = value_share(v);
    if (s->links[k].role == 'p') ok = add_to(c, &f->sums[k], value_share(v));
  }
  frame_drop(c, child);
  if (!ok) return HOST_FAIL;
  return f->count > 0 ? row_back(c, f, s) : finish_back(c, f, s);
}
