/* Planning a run with control flow: blocks become steps, names become places in frames.
 *
 * In: a Program, the names fed and fetched. Out: a Plan. From block 0 on, every block that a host operator runs is
 * planned. Runs of operators between host operators are sections; a variable enters a section as a feed if it is read there
 * before it is written, and leaves it as a fetch if somebody outside reads it. In block 0, operators that no fetch, no
 * persistable variable and no effect needs are left out. */
#include "control.h"
#include <string.h>

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

int plan_slot(const Map *m, const char *name) {
  return m ? (int)(intptr_t)map_get(m, name) - 1 : -1;
}

int plan_new_slot(Map *m, const char *name, PlanBlock *b) {
  map_put(m, name, (void *)(intptr_t)(b->n_slots + 1));
  return b->n_slots++;
}

/* Also the block that has the variable. */
PlanBlock *plan_holder(PlanBlock *b, const char *name, Ref *r) {
  *r = (Ref){.slot = -1};
  r->var = block_find_var(b->b, name);
  if (!r->var) {
    err_set(E_VER_001, "variable %s is not declared", quoted(name));
    return NULL;
  }
  if (r->var->persistable) return b;
  for (; b; b = b->parent, r->up++) {
    if ((r->slot = plan_slot(b->index, name)) >= 0) return b;
    PlanBlock *f = b->forward;
    if (!f) continue;
    r->forward = true;
    if ((r->slot = plan_slot(f->snaps, name)) >= 0) return f;
    if ((r->slot = plan_slot(f->index, name)) >= 0) return f;
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

bool plan_find(PlanBlock *b, const char *name, Ref *r) { return plan_holder(b, name, r) != NULL; }

/* ---- blocks ---- */

static PlanBlock *add_block(Plan *p, const Block *b, PlanBlock *parent, const Op *owner) {
  PlanBlock *n = arena_new_of(p->arena, PlanBlock);
  n->b = b;
  n->parent = parent;
  n->owner = owner;
  n->index = map_new(p->arena);
  for (int i = 0; i < b->vars.n; i++) plan_new_slot(n->index, b->vars.v[i]->name, n);
  return p->blocks[b->idx] = n;
}

/* Is it a gradient's block? Then its frames look into those of the forward block. */
static bool link_forward(Plan *p, PlanBlock *n) {
  if (n->b->forward < 0) return true;
  n->forward = p->blocks[n->b->forward];
  return n->forward ||
         err_set(E_PRO_002, "the forward block of block %d is not run before it", n->b->idx);
}

bool plan_op_error(const Op *op) {
  err_where("block %d, %s", op->block->idx, op_text(op));
  return false;
}

bool plan_skips(const PlanBlock *b, int i) {
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
      Block *sub = host_op(op) && !plan_skips(b, k) ? sub_block_of(op) : NULL;
      if (!sub) continue;
      if (sub->parent != b->b->idx || p->blocks[sub->idx]) {
        err_set(E_PRO_002,
                p->blocks[sub->idx] ? "block %d is run by two operators"
                                    : "block %d is run by an operator outside its parent",
                sub->idx);
        return plan_op_error(op);
      }
      PlanBlock *n = add_block(p, sub, b, op);
      if (!link_forward(p, n)) return plan_op_error(op);
      vec_add(p->arena, &todo, n);
    }
  }
  return true;
}

/* ---- steps ---- */

static Ref **slot_refs(Plan *p, PlanBlock *b, const SlotVec *slots) {
  Ref **refs = arena_array(p->arena, Ref *, slots->n + 1);
  for (int s = 0; s < slots->n; s++) {
    refs[s] = arena_array(p->arena, Ref, slots->v[s].n + 1);
    for (int i = 0; i < slots->v[s].n; i++)
      if (strcmp(slots->v[s].args[i], "@EMPTY@") &&
          !plan_holder(b, slots->v[s].args[i], &refs[s][i]))
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
    bool host = op && !plan_skips(b, i) && (host_op(op) || touches_array(op));
    if (op && !host) continue;
    if (i > from) {
      Step *s = arena_new_of(p->arena, Step);
      s->section = (Section){b->b, from, i, b->skip};
      vec_add(p->arena, &b->steps, s);
    }
    from = i + 1;
    if (!op) break;
    Step *s = host_step(p, op, host_op(op));
    if (!s) return plan_op_error(op);
    vec_add(p->arena, &b->steps, s);
    bool recurrent = s->sub && opdef_attr(op->def, "ex_states");
    if (recurrent && !plan_link_recurrent(p, s)) return plan_op_error(op);
    if (s->sub && s->sub->forward && !recurrent && !plan_link_gradient(p, s))
      return plan_op_error(op);
    if (s->sub && !recurrent && s->sub->forward) plan_add_snaps(p, s->sub);
  }
  return true;
}

static bool bind_step(Plan *p, PlanBlock *b, Step *s) {
  if (s->section.block) return plan_bind_section(p, b, s);
  s->ins = slot_refs(p, b, &s->op->ins);
  s->outs = s->ins ? slot_refs(p, b, &s->op->outs) : NULL;
  if (!s->outs) return plan_op_error(s->op);
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
    if (!block_var(b->b, name)) {
      err_set(E_RUN_002, "fetch %s is not in the program", quoted(r->fetch[i]));
      block_suggest(b->b, r->fetch[i]);
      return false;
    }
    if (!plan_holder(b, name, &p->fetch[i])) return false;
    if (p->fetch[i].slot >= 0) b->exported[p->fetch[i].slot] = true;
  }
  return true;
}

/* ---- the whole ---- */

static bool plan_steps(Plan *p) {
  for (int i = 0; i < p->n_blocks; i++)
    if (p->blocks[i] && !make_steps(p, p->blocks[i])) return false;
  return plan_count_readers(p);
}

static bool bind_snaps(Plan *p, PlanBlock *b) {
  void *slot;
  int n = b->snaps ? map_n(b->snaps) : 0;
  b->snap_refs = arena_array(p->arena, Ref, n + 1);
  for (int i = 0; i < n; i++)
    if (!plan_holder(b, map_at(b->snaps, i, &slot), &b->snap_refs[i])) return false;
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

void plan_free(Plan *p) {
  for (int i = 0; p && i < p->n_blocks; i++)
    for (int k = 0; p->blocks[i] && k < p->blocks[i]->steps.n; k++)
      step_free_made(p->blocks[i]->steps.v[k]);
  if (p) arena_free(p->arena);
}
