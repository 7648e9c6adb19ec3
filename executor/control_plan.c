/* Planning a run with control flow: blocks become steps, names become places in frames.
 *
 * In: a Program, the names fed and fetched. Out: a Plan. From block 0 on, every block that a host operator runs is
 * planned. Runs of operators between host operators are sections; a variable enters a section as a feed if it is read there
 * before it is written, and leaves it as a fetch if somebody outside reads it. In block 0, operators that no fetch, no
 * persistable variable and no effect needs are left out.
 *
 * Gradients: the block G of a gradient operator reads variables of the forward block F in the frame that its forward run
 * has left. Outer variables that F overwrites are kept in that frame too, as they were when F began (snaps). The gradients
 * that G makes of outer variables are local to it (GradLink): the operator that runs G replaces or sums them up.
 * Variables that G itself writes back (a counter that it decrements) are the outer ones. */
#include "control.h"
#include <string.h>

static bool is_grad_name(const char *name) { return strstr(name, "@GRAD") != NULL; }

/* ---- host operators ---- */

static bool is_array(const Block *b, const char *name) {
  const Var *v = block_find_var(b, name);
  return v && v->kind == VK_ARRAY;
}

static bool touches_array(const Op *op) {
  for (int side = 0; side < 2; side++) {
    const SlotVec *s = side ? &op->outs : &op->ins;
    for (int i = 0; i < s->n; i++)
      for (int k = 0; k < s->v[i].n; k++)
        if (is_array(op->block, s->v[i].args[k])) return true;
  }
  return false;
}

static const HostOp *host_op(const Op *op) {
  bool own = op->def && (op->def->flags & OF_HOST), array = !own && touches_array(op);
  if (!own && !array) return NULL;
  for (const HostOp *h = host_ops; h->run; h++)
    if (h->array == array && !strcmp(h->name, op->type)) return h;
  return NULL;
}

bool program_has_host_ops(const Program *p) {
  const Block *b = p->blocks.v[0];
  for (int i = 0; i < b->ops.n; i++) {
    const Op *op = b->ops.v[i];
    if ((op->def && (op->def->flags & OF_HOST)) || touches_array(op)) return true;
  }
  return false;
}

static Block *sub_block_of(const Op *op) {
  const Attr *a = op_attr(op, "sub_block");
  const Program *p = op->block->prog;
  if (!a || a->type != AT_BLOCK || a->i < 1 || a->i >= p->blocks.n) return NULL;
  return p->blocks.v[a->i];
}

/* ---- finding variables ---- */

static int slot_in(const Map *m, const char *name) {
  return m ? (int)(intptr_t)map_get(m, name) - 1 : -1;
}

static int new_slot(Map *m, const char *name, PlanBlock *b) {
  map_put(m, name, (void *)(intptr_t)(b->n_slots + 1));
  return b->n_slots++;
}

/* Also the block that has the variable. */
static PlanBlock *find(PlanBlock *b, const char *name, Ref *r) {
  *r = (Ref){.slot = -1};
  r->var = block_find_var(b->b, name);
  if (!r->var) {
    err_set(E_VER_001, "variable %s is not declared", quoted(name));
    return NULL;
  }
  if (r->var->persistable) return b;
  for (; b; b = b->parent, r->up++) {
    if ((r->slot = slot_in(b->index, name)) >= 0) return b;
    PlanBlock *f = b->forward;
    if (!f) continue;
    r->forward = true;
    if ((r->slot = slot_in(f->snaps, name)) >= 0) return f;
    if ((r->slot = slot_in(f->index, name)) >= 0) return f;
    r->forward = false;
  }
  err_set(E_VER_001, "variable %s is out of reach", quoted(name));
  err_help("It belongs to a block that is not around the operator which reads it.");
  return NULL;
}

const char *plan_lod_name(Plan *p, const char *name) {
  const char *lod = map_get(p->lod_names, name);
  if (!lod) map_put(p->lod_names, name, (void *)(uintptr_t)(lod = lod_name(p->arena, name, 0)));
  return lod;
}

bool plan_find(PlanBlock *b, const char *name, Ref *r) { return find(b, name, r) != NULL; }

/* ---- blocks ---- */

static PlanBlock *add_block(Plan *p, const Block *b, PlanBlock *parent, const Op *owner) {
  PlanBlock *n = arena_new_of(p->arena, PlanBlock);
  n->b = b;
  n->parent = parent;
  n->owner = owner;
  n->index = map_new(p->arena);
  for (int i = 0; i < b->vars.n; i++) new_slot(n->index, b->vars.v[i]->name, n);
  return p->blocks[b->idx] = n;
}

/* Is it a gradient's block? Then its frames look into those of the forward block. */
static bool link_forward(Plan *p, PlanBlock *n) {
  if (n->b->forward < 0) return true;
  n->forward = p->blocks[n->b->forward];
  return n->forward ||
         err_set(E_PRO_002, "the forward block of block %d is not run before it", n->b->idx);
}

static bool op_error(const Op *op) {
  err_where("block %d, %s", op->block->idx, op_text(op));
  return false;
}

static bool skipped(const PlanBlock *b, int i) {
  const Op *op = b->b->ops.v[i];
  return (b->skip && b->skip[i]) || (op->def && (op->def->flags & OF_IO));
}

/* From block 0 on, each block when the operator that runs it is met. */
static bool reach_blocks(Plan *p) {
  VEC(PlanBlock *) todo = {0};
  vec_add(p->arena, &todo, p->blocks[0]);
  for (int i = 0; i < todo.n; i++) {
    PlanBlock *b = todo.v[i];
    for (int k = 0; k < b->b->ops.n; k++) {
      const Op *op = b->b->ops.v[k];
      Block *sub = host_op(op) && !skipped(b, k) ? sub_block_of(op) : NULL;
      if (!sub) continue;
      if (sub->parent != b->b->idx || p->blocks[sub->idx]) {
        err_set(E_PRO_002,
                p->blocks[sub->idx] ? "block %d is run by two operators"
                                    : "block %d is run by an operator outside its parent",
                sub->idx);
        return op_error(op);
      }
      PlanBlock *n = add_block(p, sub, b, op);
      if (!link_forward(p, n)) return op_error(op);
      vec_add(p->arena, &todo, n);
    }
  }
  return true;
}

/* ---- gradients ---- */

static bool writes(const Block *b, const char *name) {
  for (int i = 0; i < b->ops.n; i++)
    for (int s = 0; s < b->ops.v[i]->outs.n; s++)
      for (int k = 0; k < b->ops.v[i]->outs.v[s].n; k++)
        if (!strcmp(b->ops.v[i]->outs.v[s].args[k], name)) return true;
  return false;
}

static bool slot_has(const Slot *s, const char *name) {
  for (int i = 0; s && i < s->n; i++)
    if (!strcmp(s->args[i], name)) return true;
  return false;
}

/* Outer variables that the forward block overwrites and its gradient reads as they were before. */
static void add_snaps(Plan *p, PlanBlock *g) {
  PlanBlock *f = g->forward;
  const Op *op = f->owner;
  for (int s = 0; s < op->outs.n; s++)
    for (int i = 0; i < op->outs.v[s].n; i++) {
      const char *name = op->outs.v[s].args[i];
      const Var *v = block_find_var(op->block, name);
      if (!v || v->persistable || v->kind != VK_TENSOR || slot_in(f->index, name) >= 0 ||
          slot_in(f->snaps, name) >= 0 || writes(g->b, name))
        continue;
      if (!f->snaps) f->snaps = map_new(p->arena);
      new_slot(f->snaps, name, f);
    }
}

/* The inner name of a gradient: without what tells the parts of a sum apart. */
static const char *inner_grad(Arena *a, const char *name) {
  const char *at = strstr(name, "@GRAD");
  return at ? arena_strn(a, name, (size_t)(at - name) + 5) : name;
}

static GradLink *add_link(Plan *p, Step *s, const char *inner) {
  PlanBlock *g = s->sub;
  int slot = slot_in(g->index, inner);
  if (slot < 0) slot = new_slot(g->index, inner, g);
  for (int i = 0; i < s->n_links; i++)
    if (s->links[i].slot == slot) return &s->links[i];
  GradLink *l = &s->links[s->n_links++];
  *l = (GradLink){.slot = slot, .x = -1, .og = -1};
  l->of = arena_strn(p->arena, inner, strlen(inner) - 5);
  l->unwritten = !writes(g->b, inner);
  return l;
}

/* The gradient operator's slots are those of its forward operator: X or Input, Out, and their gradients. */
static bool link_gradient(Plan *p, Step *s) {
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
  int slot = slot_in(b->index, name);
  if (slot < 0) slot = new_slot(b->index, name, b);
  (void)p;
  s->links[s->n_links++] = (GradLink){.role = role, .slot = slot, .x = i, .og = -1, .of = name};
}

/* The variables of the block that stand for the operator's; of a gradient, their gradients. */
static bool link_recurrent(Plan *p, Step *s) {
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

/* ---- steps ---- */

static Ref **slot_refs(Plan *p, PlanBlock *b, const SlotVec *slots) {
  Ref **refs = arena_array(p->arena, Ref *, slots->n + 1);
  for (int s = 0; s < slots->n; s++) {
    refs[s] = arena_array(p->arena, Ref, slots->v[s].n + 1);
    for (int i = 0; i < slots->v[s].n; i++)
      if (strcmp(slots->v[s].args[i], "@EMPTY@") && !find(b, slots->v[s].args[i], &refs[s][i]))
        return NULL;
  }
  return refs;
}

static bool has_block(const Op *op) {
  const AttrDef *d = op->def ? opdef_attr(op->def, "sub_block") : NULL;
  return d && d->required;
}

static Step *host_step(Plan *p, const Op *op, const HostOp *h) {
  Step *s = arena_new_of(p->arena, Step);
  s->op = op;
  s->host = h;
  if (!h) {
    err_set(E_OPR_004, "operator %s cannot work on tensor arrays", quoted(op->type));
    return NULL;
  }
  const Block *sub = sub_block_of(op);
  s->sub = sub ? p->blocks[sub->idx] : NULL;
  if (!s->sub && has_block(op)) {
    err_set(E_PRO_002, "the operator has no block to run");
    return NULL;
  }
  return s;
}

static bool make_steps(Plan *p, PlanBlock *b) {
  int n = b->b->ops.n;
  for (int i = 0, from = 0; i <= n; i++) {
    const Op *op = i < n ? b->b->ops.v[i] : NULL;
    bool host = op && !skipped(b, i) && (host_op(op) || touches_array(op));
    if (op && !host) continue;
    if (i > from) {
      Step *s = arena_new_of(p->arena, Step);
      s->section = (Section){b->b, from, i, b->skip};
      vec_add(p->arena, &b->steps, s);
    }
    from = i + 1;
    if (!op) break;
    Step *s = host_step(p, op, host_op(op));
    if (!s) return op_error(op);
    vec_add(p->arena, &b->steps, s);
    bool recurrent = s->sub && opdef_attr(op->def, "ex_states");
    if (recurrent && !link_recurrent(p, s)) return op_error(op);
    if (s->sub && s->sub->forward && !recurrent && !link_gradient(p, s)) return op_error(op);
    if (s->sub && !recurrent && s->sub->forward) add_snaps(p, s->sub);
  }
  return true;
}

/* ---- what is read by whom ---- */

typedef bool Visit(Plan *p, PlanBlock *b, const char *name, void *user);

static bool each_input(Plan *p, PlanBlock *b, const Op *op, Visit *f, void *user) {
  for (int s = 0; s < op->ins.n; s++)
    for (int i = 0; i < op->ins.v[s].n; i++)
      if (strcmp(op->ins.v[s].args[i], "@EMPTY@") && !f(p, b, op->ins.v[s].args[i], user))
        return op_error(op);
  return true;
}

static bool count_reader(Plan *p, PlanBlock *b, const char *name, void *user) {
  Ref r;
  (void)p, (void)user;
  PlanBlock *at = find(b, name, &r);
  if (!at) return false;
  if (r.slot >= 0) at->readers[r.slot]++;
  return true;
}

static bool count_readers(Plan *p) {
  for (int i = 0; i < p->n_blocks; i++) {
    PlanBlock *b = p->blocks[i];
    if (!b) continue;
    b->readers = arena_array(p->arena, int, b->n_slots + 1);
    b->exported = arena_array(p->arena, bool, b->n_slots + 1);
  }
  for (int i = 0; i < p->n_blocks; i++)
    for (int k = 0; p->blocks[i] && k < p->blocks[i]->b->ops.n; k++)
      if (!skipped(p->blocks[i], k) &&
          !each_input(p, p->blocks[i], p->blocks[i]->b->ops.v[k], count_reader, NULL))
        return false;
  for (int i = 0; i < p->n_blocks; i++)
    for (int k = 0; p->blocks[i] && k < p->blocks[i]->steps.n; k++) {
      Step *s = p->blocks[i]->steps.v[k];
      for (int j = 0; j < s->n_links; j++) s->sub->exported[s->links[j].slot] = true;
    }
  return true;
}

typedef struct Names {
  Map *read, *written, *inside; /* inside: name -> how often the section reads it */
} Names;

static bool note_read(Plan *p, PlanBlock *b, const char *name, void *user) {
  Names *n = user;
  (void)p;
  const Var *v = block_find_var(b->b, name);
  if (v && v->persistable) return true;
  if (!map_get(n->written, name)) map_put(n->read, name, n);
  map_put(n->inside, name, (void *)((intptr_t)map_get(n->inside, name) + 1));
  return true;
}

static bool is_read_outside(PlanBlock *b, const char *name, const Names *n, Ref *r) {
  PlanBlock *at = find(b, name, r);
  if (!at || r->slot < 0) return false;
  if (at != b || r->forward) return true;
  return at->exported[r->slot] || at->readers[r->slot] > (intptr_t)map_get(n->inside, name);
}

static bool bind_section(Plan *p, PlanBlock *b, Step *s) {
  Names n = {map_new(p->arena), map_new(p->arena), map_new(p->arena)};
  void *unused;
  for (int i = s->section.from; i < s->section.to; i++) {
    const Op *op = b->b->ops.v[i];
    if (skipped(b, i)) continue;
    if (!each_input(p, b, op, note_read, &n)) return false;
    for (int o = 0; o < op->outs.n; o++)
      for (int k = 0; k < op->outs.v[o].n; k++)
        if (op_out(op, op->outs.v[o].name, k)) map_put(n.written, op->outs.v[o].args[k], s);
  }
  s->in = arena_array(p->arena, const char *, map_n(n.read) + 1);
  s->in_ref = arena_array(p->arena, Ref, map_n(n.read) + 1);
  s->known = arena_array(p->arena, bool, map_n(n.read) + 1);
  s->out = arena_array(p->arena, const char *, map_n(n.written) + 1);
  s->out_ref = arena_array(p->arena, Ref, map_n(n.written) + 1);
  s->in_val = arena_array(p->arena, Value *, map_n(n.read) + 1);
  s->cap_feeds = map_n(n.read);
  s->feeds = arena_array(p->arena, Feed, s->cap_feeds + 1);
  s->out_val = arena_array(p->arena, Value *, map_n(n.written) + 1);
  s->results = arena_array(p->arena, Tensor, map_n(n.written) + 1);
  s->n_in = s->n_out = 0;
  for (int i = 0; i < map_n(n.read); i++, s->n_in++) {
    s->in[i] = map_at(n.read, i, &unused);
    if (!find(b, s->in[i], &s->in_ref[i])) return false;
  }
  for (int i = 0; i < map_n(n.written); i++) {
    const char *name = map_at(n.written, i, &unused);
    Ref r;
    if (is_read_outside(b, name, &n, &r)) {
      s->out[s->n_out] = name;
      s->out_ref[s->n_out++] = r;
    }
    if (err_any()) return false;
  }
  return true;
}

static bool bind_step(Plan *p, PlanBlock *b, Step *s) {
  if (s->section.block) return bind_section(p, b, s);
  s->ins = slot_refs(p, b, &s->op->ins);
  s->outs = s->ins ? slot_refs(p, b, &s->op->outs) : NULL;
  if (!s->outs) return op_error(s->op);
  /* Who keeps frames has an output that somebody reads. */
  for (int o = 0; s->sub && o < s->op->outs.n; o++)
    for (int k = 0; k < s->op->outs.v[o].n; k++) {
      const Ref *r = &s->outs[o][k];
      if (!r->var || r->var->kind != VK_STEP_SCOPES || r->slot < 0 || r->up || r->forward) continue;
      s->keep = b->readers[r->slot] > 0;
    }
  return true;
}

/* ---- block 0 ---- */

static bool effects_in(const Program *p, const Block *b) {
  for (int i = 0; i < b->ops.n; i++) {
    const Op *op = b->ops.v[i];
    if (op->def && (op->def->flags & OF_EFFECT)) return true;
    for (int s = 0; s < op->outs.n; s++)
      for (int k = 0; k < op->outs.v[s].n; k++) {
        const Var *v = block_find_var(b, op->outs.v[s].args[k]);
        if (v && v->persistable) return true;
      }
  }
  (void)p;
  return false;
}

/* Blocks from which a block with effects can be reached, itself included. */
static bool *find_effects(const Program *p, Arena *a) {
  bool *has = arena_array(a, bool, p->blocks.n + 1);
  for (int i = p->blocks.n - 1; i >= 0; i--) {
    const Block *b = p->blocks.v[i];
    has[i] |= effects_in(p, b);
    if (has[i] && b->parent >= 0) has[b->parent] = true; /* parents come before */
  }
  return has;
}

static bool part_is_needed(const Op *op, const Map *needed, const bool *effects) {
  const Block *sub = host_op(op) ? sub_block_of(op) : NULL;
  return (sub && effects[sub->idx]) || op_is_needed(op, needed);
}

/* The variable that NAME@LOD, or NAME@LOD@LOD, is fetched from. */
static const char *fetch_base(Plan *p, const char *name, int *depth) {
  const Block *b = p->blocks[0]->b;
  int d = 0;
  for (const char *base; !block_var(b, name) && (base = lod_base(name, p->arena)); d++) name = base;
  if (depth) *depth = d;
  return name;
}

static void skip_unneeded(Plan *p, const CompileRequest *r) {
  PlanBlock *b = p->blocks[0];
  const bool *effects = find_effects(r->prog, p->arena);
  Map *needed = map_new(p->arena);
  bool *skip = arena_array(p->arena, bool, b->b->ops.n + 1);
  for (int i = 0; i < r->n_fetch; i++) map_put(needed, fetch_base(p, r->fetch[i], NULL), p);
  for (int i = b->b->ops.n - 1; i >= 0; i--) {
    const Op *op = b->b->ops.v[i];
    skip[i] = (op->def && (op->def->flags & OF_IO)) || !part_is_needed(op, needed, effects);
    for (int s = 0; s < op->ins.n && !skip[i]; s++)
      for (int k = 0; k < op->ins.v[s].n; k++) map_put(needed, op->ins.v[s].args[k], p);
  }
  b->skip = skip;
}

static bool find_fetches(Plan *p, const CompileRequest *r) {
  PlanBlock *b = p->blocks[0];
  p->n_fetch = r->n_fetch;
  p->fetch = arena_array(p->arena, Ref, r->n_fetch + 1);
  p->fetch_depth = arena_array(p->arena, int, r->n_fetch + 1);
  for (int i = 0; i < r->n_fetch; i++) {
    const char *name = fetch_base(p, r->fetch[i], &p->fetch_depth[i]);
    if (!block_var(b->b, name))
      return err_set(E_RUN_002, "fetch %s is not in the program", quoted(r->fetch[i]));
    if (!find(b, name, &p->fetch[i])) return false;
    if (p->fetch[i].slot >= 0) b->exported[p->fetch[i].slot] = true;
  }
  return true;
}

/* ---- the whole ---- */

static bool plan_steps(Plan *p) {
  for (int i = 0; i < p->n_blocks; i++)
    if (p->blocks[i] && !make_steps(p, p->blocks[i])) return false;
  return count_readers(p);
}

static bool bind_snaps(Plan *p, PlanBlock *b) {
  void *slot;
  int n = b->snaps ? map_n(b->snaps) : 0;
  b->snap_refs = arena_array(p->arena, Ref, n + 1);
  for (int i = 0; i < n; i++)
    if (!find(b, map_at(b->snaps, i, &slot), &b->snap_refs[i])) return false;
  return true;
}

static bool bind_steps(Plan *p) {
  for (int i = 0; i < p->n_blocks; i++)
    if (p->blocks[i] && !bind_snaps(p, p->blocks[i])) return false;
  for (int i = 0; i < p->n_blocks; i++)
    for (int k = 0; p->blocks[i] && k < p->blocks[i]->steps.n; k++)
      if (!bind_step(p, p->blocks[i], p->blocks[i]->steps.v[k])) return false;
  return true;
}

Plan *plan_make(const CompileRequest *r) {
  Arena *a = arena_scratch();
  Plan *p = arena_new_of(a, Plan);
  p->arena = a;
  p->n_blocks = r->prog->blocks.n;
  p->blocks = arena_array(a, PlanBlock *, p->n_blocks + 1);
  p->lod_names = map_new(a);
  add_block(p, r->prog->blocks.v[0], NULL, NULL);
  skip_unneeded(p, r);
  bool ok = reach_blocks(p) && plan_steps(p) && find_fetches(p, r) && bind_steps(p);
  if (ok) {
    arena_keep(a);
    return p;
  }
  arena_free(a);
  return NULL;
}

static void free_made(Step *s) {
  for (Executable *x = s->made, *next; x; x = next) {
    next = x->next;
    executable_free(x);
  }
  s->made = NULL;
}

void plan_free(Plan *p) {
  for (int i = 0; p && i < p->n_blocks; i++)
    for (int k = 0; p->blocks[i] && k < p->blocks[i]->steps.n; k++)
      free_made(p->blocks[i]->steps.v[k]);
  if (p) arena_free(p->arena);
}

static bool mark_known(Step *s, const char *name) {
  for (int i = 0; i < s->n_in; i++) {
    if (strcmp(s->in[i], name)) continue;
    bool is_new = !s->known[i];
    s->known[i] = true;
    return is_new;
  }
  return false;
}

bool plan_cut(Plan *p, PlanBlock *b, int at, const Wanted *w) {
  Step *s = b->steps.v[at];
  int op = op_index(w->op);
  if (!w->name) return false;
  if (op == s->section.from) return mark_known(s, w->name);
  Step *rest = arena_new_of(p->arena, Step);
  rest->section = s->section;
  rest->section.from = s->section.to = op;
  free_made(s);
  vec_add(p->arena, &b->steps, NULL);
  memmove(&b->steps.v[at + 2], &b->steps.v[at + 1],
          (size_t)(b->steps.n - at - 2) * sizeof *b->steps.v);
  b->steps.v[at + 1] = rest;
  const char **in = s->in;
  const bool *was = s->known;
  int n = s->n_in;
  if (!bind_section(p, b, s) || !bind_section(p, b, rest)) return false;
  for (int i = 0; i < n; i++)
    if (was[i]) mark_known(s, in[i]);
  return mark_known(rest, w->name);
}
