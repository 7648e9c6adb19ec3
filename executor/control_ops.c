/* Loops, branches, and what goes with them.
 *
 * A loop runs its block in one frame, or, if a gradient will look at them, in a frame for each step, which the variable
 * StepScopes keeps. A branch runs its block in a frame that Scope keeps. Selecting moves references. */
#include "control.h"
#include <string.h>

/* ---- while ---- */

static bool condition(Control *c, Frame *f, Step *s, const char *slot, bool *is) {
  double v;
  const Ref *r = step_in(s, slot, 0);
  if (!op_number(c, f, s, slot, &v)) return false;
  if (r->var->dtype != DT_BOOL && r->var->dtype != DT_NONE) {
    op_refuses(s, slot, "must be bool");
    err_note("it is %s", shape_text(r->var->dtype, r->var->rank, r->var->dims));
    return false;
  }
  *is = v != 0;
  return true;
}

/* One more run of the block, if the condition says so. `last`: the frame of the run before, to be used again. */
static HostResult loop(Control *c, Frame *f, Step *s, Frame *last) {
  bool more;
  if (!condition(c, f, s, "Condition", &more)) return HOST_FAIL;
  if (more && f->count >= c->max_steps) {
    err_set(E_RUN_003, "the loop has run %lld steps, and its condition %s is still true",
            (long long)f->count, quoted(op_in(s->op, "Condition", 0)));
    err_help("see that the block changes the condition, or raise --max-steps (max_steps)");
    return HOST_FAIL;
  }
  if (!more) {
    frame_drop(c, last);
    Value *frames = f->frames;
    f->frames = NULL;
    if (frames && !op_result(c, f, s, "StepScopes", 0, frames)) return HOST_FAIL;
    return HOST_NEXT;
  }
  f->count++;
  if (last && control_again(c, last)) return HOST_WAIT;
  frame_drop(c, last);
  return control_push(c, f, s->sub, NULL) ? HOST_WAIT : HOST_FAIL;
}

HostResult run_while(Control *c, Frame *f, Step *s) {
  f->count = 0;
  f->frames = s->keep ? value_new(c, V_FRAMES) : NULL;
  return loop(c, f, s, NULL);
}

HostResult after_while(Control *c, Frame *f, Step *s, Frame *child) {
  if (f->frames) value_add_frame(f->frames, child);
  return loop(c, f, s, f->frames ? NULL : child);
}

/* ---- conditional_block ---- */

/* Without a scalar condition the block runs if no input is empty. */
bool branch_taken(Control *c, Frame *f, Step *s, bool *taken) {
  if (op_bool(s->op, "is_scalar_condition")) return condition(c, f, s, "Cond", taken);
  const Slot *in = op_ins(s->op, "Cond");
  *taken = true;
  for (int i = 0; in && i < in->n; i++) {
    Value *v = op_value(c, f, s, "Cond", i);
    if (!v) return false;
    if (v->kind == V_TENSOR && tensor_numel(&v->t) == 0) *taken = false;
    value_drop(c, v);
  }
  return true;
}

HostResult run_conditional(Control *c, Frame *f, Step *s) {
  bool taken;
  if (!branch_taken(c, f, s, &taken)) return HOST_FAIL;
  if (!taken) return HOST_NEXT;
  return control_push(c, f, s->sub, NULL) ? HOST_WAIT : HOST_FAIL;
}

HostResult after_conditional(Control *c, Frame *f, Step *s, Frame *child) {
  if (!s->keep) return frame_drop(c, child), HOST_NEXT;
  Value *v = value_new(c, V_FRAMES);
  value_add_frame(v, child);
  return op_result(c, f, s, "Scope", 0, v) ? HOST_NEXT : HOST_FAIL;
}

/* ---- selection ---- */

static bool mask(Control *c, Frame *f, Step *s, int n, int *at) {
  double m;
  if (!op_number(c, f, s, "Mask", &m)) return false;
  if (m < 0 || m >= n) {
    op_refuses(s, "Mask", "is out of range");
    err_note("it is %g; there are %d to select from", m, n);
    return false;
  }
  *at = (int)m;
  return true;
}

HostResult run_select_input(Control *c, Frame *f, Step *s) {
  int at, n = op_ins(s->op, "X")->n;
  if (!mask(c, f, s, n, &at)) return HOST_FAIL;
  Value *v = op_value(c, f, s, "X", at);
  return op_result(c, f, s, "Out", 0, v) ? HOST_NEXT : HOST_FAIL;
}

/* Of gradients, what is not selected gets zeros like its variable, if that has a value. */
HostResult run_select_output(Control *c, Frame *f, Step *s) {
  int at, n = op_outs(s->op, "Out")->n;
  if (!mask(c, f, s, n, &at)) return HOST_FAIL;
  for (int i = 0; i < n; i++) {
    const Ref *r = step_out(s, "Out", i);
    Value *v = i == at ? op_value(c, f, s, "X", 0) : r ? missing_grad(c, f, r->var->name) : NULL;
    if (i == at && !v) return HOST_FAIL;
    if (v && !op_result(c, f, s, "Out", i, v)) return HOST_FAIL;
  }
  return err_any() ? HOST_FAIL : HOST_NEXT;
}

/* ---- print, assert ---- */

static void print_value(const char *name, const Tensor *t, int64_t most) {
  int64_t n = tensor_numel(t);
  fprintf(stderr, "%s %s:", name, shape_text(t->dtype, t->rank, t->dims));
  for (int64_t i = 0; i < n && (most < 0 || i < most); i++)
    fprintf(stderr, " %g", tensor_get(t, i));
  fprintf(stderr, "%s\n", most >= 0 && n > most ? " ..." : "");
}

HostResult run_print(Control *c, Frame *f, Step *s) {
  Value *v = op_value(c, f, s, "In", 0);
  if (!v) return HOST_FAIL;
  const char *message = op_str(s->op, "message"), *name = quoted(op_in(s->op, "In", 0));
  if (*message) fprintf(stderr, "%s ", message);
  if (v->kind == V_TENSOR)
    print_value(name, &v->t, op_int(s->op, "summarize"));
  else
    fprintf(stderr, "%s: tensor array of %d\n", name, v->n);
  return op_result(c, f, s, "Out", 0, v) ? HOST_NEXT : HOST_FAIL;
}

HostResult run_assert(Control *c, Frame *f, Step *s) {
  bool holds;
  if (!condition(c, f, s, "Cond", &holds)) return HOST_FAIL;
  if (holds) return HOST_NEXT;
  err_set(E_RUN_006, "the condition %s is false", quoted(op_in(s->op, "Cond", 0)));
  const Slot *data = op_ins(s->op, "Data");
  for (int i = 0; data && i < data->n && i < 8; i++) {
    const Ref *r = step_in(s, "Data", i);
    Value *v = r ? ref_get(c, f, r) : NULL;
    if (v && v->kind == V_TENSOR && tensor_numel(&v->t) > 0)
      err_note("%s %s, first element %g", quoted(r->var->name),
               shape_text(v->t.dtype, v->t.rank, v->t.dims), tensor_get(&v->t, 0));
    value_drop(c, v);
  }
  return HOST_FAIL;
}
