/* The links of a plan: which variables of a block stand for those of the operator that runs it, or of its gradient.
 *
 * In: a step with a block, of a gradient or of a recurrent operator. Out: its GradLinks.
 *
 * Gradients: the block G of a gradient operator reads variables of the forward block F in the frame that its forward run
 * has left. Outer variables that F overwrites are kept in that frame too, as they were when F began (snaps). The gradients
 * that G makes of outer variables are local to it (GradLink): the operator that runs G replaces or sums them up.
 * Variables that G itself writes back (a counter that it decrements) are the outer ones. */
#include "control.h"
#include <string.h>

static bool is_grad_name(const char *name) { return strstr(name, "@GRAD") != NULL; }

/* ---- gradients ---- */

static bool slot_has(const Slot *s, const char *name) {
  for (int i = 0; s && i < s->n; i++)
    if (!strcmp(s->args[i], name)) return true;
  return false;
}

/* Outer variables that the forward block overwrites and its gradient reads as they were before. */
void plan_add_snaps(Plan *p, PlanBlock *g) {
  PlanBlock *f = g->forward;
  const Op *op = f->owner;
  for (int s = 0; s < op->outs.n; s++)
    for (int i = 0; i < op->outs.v[s].n; i++) {
      const char *name = op->outs.v[s].args[i];
      const Var *v = block_find_var(op->block, name);
      if (!v || v->persistable || v->kind != VK_TENSOR || plan_slot(f->index, name) >= 0 ||
          plan_slot(f->snaps, name) >= 0 || block_writer(g->b, name))
        continue;
      if (!f->snaps) f->snaps = map_new(p->arena);
      plan_new_slot(f->snaps, name, f);
    }
}

/* The inner name of a gradient: without what tells the parts of a sum apart. */
static const char *inner_grad(Arena *a, const char *name) {
  const char *at = strstr(name, "@GRAD");
  return at ? arena_strn(a, name, (size_t)(at - name) + 5) : name;
}

static GradLink *add_link(Plan *p, Step *s, const char *inner) {
  PlanBlock *g = s->sub;
  int slot = plan_slot(g->index, inner);
  if (slot < 0) slot = plan_new_slot(g->index, inner, g);
  for (int i = 0; i < s->n_links; i++)
    if (s->links[i].slot == slot) return &s->links[i];
  GradLink *l = &s->links[s->n_links++];
  *l = (GradLink){.slot = slot, .x = -1, .og = -1};
  l->of = arena_strn(p->arena, inner, strlen(inner) - 5);
  l->unwritten = !block_writer(g->b, inner);
  return l;
}

/* The gradient operator's slots are those of its forward operator: X or Input, Out, and their gradients. */
bool plan_link_gradient(Plan *p, Step *s) {
  const Op *op = s->op;
  const Slot *x = op_ins(op, "X"), *og = op_ins(op, "Out@GRAD"), *out = op_ins(op, "Out");
  const Attr *inner = op_attr(op, "original_output_grad");
  if (!x) x = op_ins(op, "Input");
  int n = (x ? x->n : 0) + (og ? og->n : 0);
  s->links = arena_array(p->arena, GradLink, n + 1);
  for (int i = 0; og && i < og->n; i++) {
    bool named = inner && inner->type == AT_STRINGS && inner->n == og->n;
    const char *name = named ? inner->ss[i] : og->args[i];
    if (!strcmp(name, "@EMPTY@") || !is_grad_name(name)) continue;
    GradLink *l = add_link(p, s, inner_grad(p->arena, name));
    l->og = i;
    l->carried = true;
  }
  for (int i = 0; x && i < x->n; i++) {
    const char *name = x->args[i];
    const Var *v = block_find_var(op->block, name);
    if (!strcmp(name, "@EMPTY@") || !v) continue;
    if (v->kind == VK_TENSOR && v->dtype != DT_NONE && !dtype_is_float(v->dtype)) continue;
    GradLink *l = add_link(p, s, arena_fmt(p->arena, "%s@GRAD", name));
    l->x = i;
    l->carried |= slot_has(out, name) || v->kind == VK_ARRAY;
  }
  return true;
}

/* ---- recurrent operators ---- */

static void add_role(Plan *p, Step *s, char role, int i, const char *name) {
  PlanBlock *b = s->sub;
  int slot = plan_slot(b->index, name);
  if (slot < 0) slot = plan_new_slot(b->index, name, b);
  (void)p;
  s->links[s->n_links++] = (GradLink){.role = role, .slot = slot, .x = i, .og = -1, .of = name};
}

/* The variables of the block that stand for the operator's; of a gradient, their gradients. */
bool plan_link_recurrent(Plan *p, Step *s) {
  static const struct {
    char role;
    const char *name;
    bool attr, backward_only;
  } lists[] = {{'i', "inputs", false, false},
               {'o', "outputs", false, false},
               {'s', "ex_states", true, false},
               {'n', "states", true, false},
               {'p', "parameters", false, true}};
  bool backward = s->sub->forward != NULL;
  int n = 0;
  for (int pass = 0; pass < 2; pass++) {
    for (size_t k = 0; k < sizeof lists / sizeof *lists; k++) {
      const Attr *a = lists[k].attr ? op_attr(s->op, lists[k].name) : NULL;
      const Slot *slot = op_ins(s->op, lists[k].name);
      if (!slot) slot = op_outs(s->op, lists[k].name);
      if (a && a->type != AT_STRINGS && a->n) return err_set(E_OPR_003, "%s", lists[k].name);
      int count = lists[k].attr ? (a ? a->n : 0) : slot ? slot->n : 0;
      if (lists[k].backward_only && !backward) count = 0;
      for (int i = 0; i < count; i++) {
        const char *name = a ? a->ss[i] : slot->args[i];
        if (pass)
          add_role(p, s, lists[k].role, i, backward ? arena_fmt(p->arena, "%s@GRAD", name) : name);
        n += !pass;
      }
    }
    if (!pass) s->links = arena_array(p->arena, GradLink, n + 1);
  }
  return true;
}
