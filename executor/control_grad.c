/* Gradients of loops and branches.
 *
 * A gradient operator runs its block once for each frame that the forward pass has left, the last one first. In the block,
 * gradients of outer variables are local (GradLink). Those of variables that the loop carries from step to step, and of
 * tensor arrays, go from frame to frame: what flows out of a step's beginning flows into the end of the step before. Those
 * of variables that the block only reads are summed over the steps. A branch that was not taken passes on what flows into
 * the variables that it would have changed, and adds nothing to the others. */
#include "control.h"
#include <string.h>

static const char *const x_slots[] = {"X", "Input"};

static const char *x_slot(const Step *s) { return x_slots[op_ins(s->op, "X") == NULL]; }

static const char *x_grad_slot(const Step *s) {
  return op_ins(s->op, "X") ? "X@GRAD" : "Input@GRAD";
}

/* What flows into a variable from behind the operator. NULL: nothing. */
static Value *incoming(Control *c, Frame *f, const Step *s, const GradLink *l) {
  const Ref *r = l->og >= 0 ? step_in(s, "Out@GRAD", l->og) : NULL;
  return r ? ref_get(c, f, r) : NULL;
}

static Value *zeros_of(Control *c, Frame *f, const Step *s, const GradLink *l) {
  const Ref *r = l->x >= 0 ? step_in(s, x_slot(s), l->x) : NULL;
  Value *of = r ? ref_get(c, f, r) : NULL, *zero = NULL;
  if (of && of->kind == V_ARRAY) zero = value_new(c, V_ARRAY);
  if (of && of->kind == V_TENSOR) zero = value_zeros_like(c, of);
  value_drop(c, of);
  return zero;
}

static bool begin(Control *c, Frame *f, const Step *s) {
  f->sums = mem_alloc(sizeof *f->sums * (size_t)(s->n_links + 1));
  for (int i = 0; i < s->n_links; i++)
    if (s->links[i].carried) f->sums[i] = incoming(c, f, s, &s->links[i]);
  return true;
}

/* What flows out at the beginning goes to X@GRAD. */
static HostResult finish(Control *c, Frame *f, const Step *s) {
  bool ok = true;
  for (int i = 0; i < s->n_links; i++) {
    const GradLink *l = &s->links[i];
    Value *v = f->sums[i];
    f->sums[i] = NULL;
    const Ref *to = l->x >= 0 ? step_out(s, x_grad_slot(s), l->x) : NULL;
    if (to && !v) v = zeros_of(c, f, s, l);
    if (to && v)
      ok = ref_set(c, f, to, v) && ok;
    else
      value_drop(c, v);
  }
  mem_free(f->sums);
  f->sums = NULL;
  return ok ? HOST_NEXT : HOST_FAIL;
}

static HostResult run_back(Control *c, Frame *f, const Step *s, Frame *forward) {
  if (forward->b != s->sub->forward) {
    err_set(E_RUN_005, "the gradient's block belongs to another loop or branch");
    return HOST_FAIL;
  }
  Frame *child = control_push(c, f, s->sub, forward);
  if (!child) return HOST_FAIL;
  for (int i = 0; i < s->n_links; i++) {
    if (!s->links[i].carried) continue;
    Value **at = &child->vals[s->links[i].slot];
    value_drop(c, *at);
    *at = f->sums[i];
    f->sums[i] = NULL;
  }
  return HOST_WAIT;
}

static bool take(Control *c, Frame *f, const Step *s, Frame *child) {
  for (int i = 0; i < s->n_links; i++) {
    const GradLink *l = &s->links[i];
    Value *v = child->vals[l->slot];
    child->vals[l->slot] = NULL;
    if (v && l->carried && l->unwritten && v->kind == V_TENSOR) {
      value_drop(c, v);
      v = NULL;
    }
    if (f->sums[i] && v) {
      Value *sum = value_sum(c, f->sums[i], v);
      value_drop(c, v);
      v = sum;
      if (!sum) return false;
    }
    if (v) {
      value_drop(c, f->sums[i]);
      f->sums[i] = v;
    }
  }
  return true;
}

/* Nothing of what the block has overwritten flows to where it was before: a variable without an X@GRAD of its own. */
static bool clear_overwritten(Control *c, Frame *f, const Step *s) {
  for (int i = 0; i < s->n_links; i++) {
    const GradLink *l = &s->links[i];
    const Ref *to = l->x >= 0 ? step_out(s, x_grad_slot(s), l->x) : NULL;
    const Ref *r = l->og >= 0 && !to && l->unwritten ? step_in(s, "Out@GRAD", l->og) : NULL;
    Value *v = r && r->slot >= 0 ? ref_get(c, f, r) : NULL;
    if (!v) continue;
    Value *zero = v->kind == V_TENSOR ? value_zeros(c, &v->t) : value_share(v);
    value_drop(c, v);
    if (!ref_set(c, f, r, zero)) return false;
  }
  return true;
}

static Value *kept_frames(Control *c, Frame *f, const Step *s, const char *slot) {
  const Ref *r = step_in(s, slot, 0);
  Value *v = r && r->slot >= 0 ? ref_get(c, f, r) : NULL;
  if (v && v->kind != V_FRAMES) {
    op_refuses(s, slot, "holds no steps");
    value_drop(c, v);
    v = NULL;
  }
  return v;
}

/* ---- while ---- */

static HostResult step_back(Control *c, Frame *f, Step *s) {
  if (f->count > 0) return run_back(c, f, s, f->frames->frames[--f->count]);
  bool ok = !f->frames->n || clear_overwritten(c, f, s);
  Value *frames = f->frames;
  f->frames = NULL;
  value_drop(c, frames);
  return ok ? finish(c, f, s) : HOST_FAIL;
}

HostResult run_while_grad(Control *c, Frame *f, Step *s) {
  f->frames = kept_frames(c, f, s, "StepScopes");
  if (!f->frames) {
    op_refuses(s, "StepScopes", "holds no steps: the loop has not run");
    return HOST_FAIL;
  }
  f->count = f->frames->n;
  return begin(c, f, s) ? step_back(c, f, s) : HOST_FAIL;
}

HostResult after_while_grad(Control *c, Frame *f, Step *s, Frame *child) {
  bool ok = take(c, f, s, child);
  frame_drop(c, child);
  return ok ? step_back(c, f, s) : HOST_FAIL;
}

/* ---- conditional_block ---- */

HostResult run_conditional_grad(Control *c, Frame *f, Step *s) {
  f->frames = kept_frames(c, f, s, "Scope");
  if (err_any() || !begin(c, f, s)) return HOST_FAIL;
  if (f->frames && f->frames->n) return run_back(c, f, s, f->frames->frames[0]);
  return finish(c, f, s);
}

HostResult after_conditional_grad(Control *c, Frame *f, Step *s, Frame *child) {
  bool ok = take(c, f, s, child) && clear_overwritten(c, f, s);
  frame_drop(c, child);
  Value *frames = f->frames;
  f->frames = NULL;
  value_drop(c, frames);
  return ok ? finish(c, f, s) : HOST_FAIL;
}
