/* Cutting a Program down: to what given targets need, and to what testing needs.
 *
 * Pruning scans the operators backwards with the set of needed names, as PaddlePaddle does: an operator stays if it
 * writes a needed name and is no optimiser operator; its inputs become needed, except the feeds, which are the cut
 * points. A kept operator's sub-blocks are scanned in the same way before the scan goes on; an explicit stack replaces the recursion.
 * Sets of names are shared by all blocks, which keeps a little too much where names are shadowed. */
#include "ir.h"
#include <string.h>

typedef struct Cut {
  Program *p;
  Arena *a; /* scratch */
  Map *needed, *feeds;
  bool **keep; /* by block, operator */
  bool *seen;  /* blocks that were scanned */
  VEC(struct {
    Block *b;
    int at;
  })
  stack;
} Cut;

static void need(Cut *c, const char *name) {
  if (!map_get(c->feeds, name)) map_put(c->needed, name, c);
}

/* The names in attributes of type VAR and VARS are inputs too. */
static void need_inputs(Cut *c, const Op *op) {
  for (int i = 0; i < op->ins.n; i++)
    for (int k = 0; k < op->ins.v[i].n; k++) need(c, op->ins.v[i].args[k]);
  for (int i = 0; i < op->attrs.n; i++) {
    const Attr *a = &op->attrs.v[i];
    if (a->type == AT_VAR) need(c, a->s);
    for (int k = 0; a->type == AT_VARS && k < a->n; k++) need(c, a->ss[k]);
  }
}

/* The blocks that an operator refers to, one after another: *at counts them. */
static Block *sub_block(const Op *op, int *at) {
  Program *p = op->block->prog;
  int seen = 0;
  for (int i = 0; i < op->attrs.n; i++) {
    const Attr *a = &op->attrs.v[i];
    int n = a->type == AT_BLOCK ? 1 : a->type == AT_BLOCKS ? a->n : 0;
    for (int k = 0; k < n; k++) {
      int64_t b = a->type == AT_BLOCK ? a->i : a->is[k];
      if (seen++ < *at) continue;
      ++*at;
      if (b > 0 && b < p->blocks.n) return p->blocks.v[b];
    }
  }
  return NULL;
}

static void scan_push(Cut *c, Block *b) {
  if (c->seen[b->idx]) return;
  c->seen[b->idx] = true;
  c->keep[b->idx] = arena_array(c->a, bool, b->ops.n);
  vec_add(c->a, &c->stack, ((__typeof__(*c->stack.v)){b, b->ops.n}));
}

static bool is_needed(const Cut *c, const Op *op) {
  if (op_role(op) & ROLE_OPTIMIZE) return false;
  for (int i = 0; i < op->outs.n; i++)
    for (int k = 0; k < op->outs.v[i].n; k++) {
      const char *name = op->outs.v[i].args[k];
      const Var *v = block_find_var(op->block, name);
      bool list = v && v->kind == VK_FETCH; /* the list that all fetch operators write */
      if (map_get(c->needed, name) && !list) return true;
    }
  return false;
}

static void scan(Cut *c) {
  scan_push(c, c->p->blocks.v[0]);
  while (c->stack.n) {
    Block *b = c->stack.v[c->stack.n - 1].b;
    int at = --c->stack.v[c->stack.n - 1].at;
    if (at < 0) {
      c->stack.n--;
      continue;
    }
    Op *op = b->ops.v[at];
    if (!is_needed(c, op)) continue;
    c->keep[b->idx][at] = true;
    need_inputs(c, op);
    int sub = 0;
    Block *s = sub_block(op, &sub);
    if (!s) continue;
    for (int i = 0; i < op->outs.n; i++)
      for (int k = 0; k < op->outs.v[i].n; k++) need(c, op->outs.v[i].args[k]);
    for (; s; s = sub_block(op, &sub)) scan_push(c, s);
  }
}

/* ---- removal ---- */

static void drop_ops(Cut *c) {
  for (int i = 0; i < c->p->blocks.n; i++) {
    Block *b = c->p->blocks.v[i];
    int n = 0;
    for (int k = 0; k < b->ops.n; k++)
      if (c->keep[i] && c->keep[i][k]) b->ops.v[n++] = b->ops.v[k];
    b->ops.n = n;
  }
}

static void renumber(Op *op, const int *to) {
  for (int i = 0; i < op->attrs.n; i++) {
    Attr *a = &op->attrs.v[i];
    int n = a->type == AT_BLOCK ? 1 : a->type == AT_BLOCKS ? a->n : 0;
    int64_t *v = a->type == AT_BLOCK ? &a->i : a->is;
    int max = op->block->prog->blocks.n;
    for (int k = 0; k < n; k++)
      if (v[k] >= 0 && v[k] < max && to[v[k]] >= 0) v[k] = to[v[k]];
  }
}

/* Keeps block 0, the blocks that kept operators refer to, and the blocks around and before those. */
static void drop_blocks(Program *p, Arena *a) {
  int n = p->blocks.n, kept = 0, *to = arena_array(a, int, n);
  bool *keep = arena_array(a, bool, n);
  VEC(Block *) work = {0};
  keep[0] = true;
  vec_add(a, &work, p->blocks.v[0]);
  while (work.n) {
    Block *b = work.v[--work.n];
    const int around[2] = {b->parent, b->forward};
    for (int k = 0; k < 2; k++)
      if (around[k] >= 0 && around[k] < n && !keep[around[k]]) {
        keep[around[k]] = true;
        vec_add(a, &work, p->blocks.v[around[k]]);
      }
    for (int i = 0; i < b->ops.n; i++) {
      int at = 0;
      for (Block *s; (s = sub_block(b->ops.v[i], &at));)
        if (!keep[s->idx]) {
          keep[s->idx] = true;
          vec_add(a, &work, s);
        }
    }
  }
  for (int i = 0; i < n; i++) to[i] = keep[i] ? kept++ : -1;
  if (kept == n) return;
  for (int i = 0; i < n; i++)
    for (int k = 0; keep[i] && k < p->blocks.v[i]->ops.n; k++)
      renumber(p->blocks.v[i]->ops.v[k], to);
  for (int i = 0; i < n; i++) {
    if (!keep[i]) continue;
    Block *b = p->blocks.v[i];
    b->idx = to[i];
    if (b->parent >= 0 && b->parent < n) b->parent = to[b->parent];
    if (b->forward >= 0 && b->forward < n) b->forward = to[b->forward];
    p->blocks.v[to[i]] = b;
  }
  p->blocks.n = kept;
}

/* Drops the variables that no operator mentions and `also` (may be NULL) does not hold; the rest is sorted by name. */
static void drop_vars(Program *p, Arena *a, const Map *also) {
  Map *used = map_new(a);
  for (int i = 0; i < p->blocks.n; i++)
    for (int o = 0; o < p->blocks.v[i]->ops.n; o++) {
      const Op *op = p->blocks.v[i]->ops.v[o];
      for (int side = 0; side < 2; side++) {
        const SlotVec *s = side ? &op->outs : &op->ins;
        for (int k = 0; k < s->n; k++)
          for (int j = 0; j < s->v[k].n; j++) map_put(used, s->v[k].args[j], p);
      }
      for (int k = 0; k < op->attrs.n; k++) {
        const Attr *t = &op->attrs.v[k];
        if (t->type == AT_VAR) map_put(used, t->s, p);
        for (int j = 0; t->type == AT_VARS && j < t->n; j++) map_put(used, t->ss[j], p);
      }
    }
  for (int i = 0; i < p->blocks.n; i++) {
    Block *b = p->blocks.v[i];
    Map *sorted = map_new(p->arena);
    int n = 0;
    for (int k = 0; k < b->vars.n; k++) {
      Var *v = b->vars.v[k];
      if (map_get(used, v->name) || (also && map_get(also, v->name))) b->vars.v[n++] = v;
    }
    b->vars.n = n;
    const char **names = arena_array(a, const char *, n);
    for (int k = 0; k < n; k++) names[k] = b->vars.v[k]->name;
    const void **order = by_name(a, names, n, sizeof *names);
    for (int k = 0; k < n; k++) {
      const char *name = *(const char *const *)order[k];
      map_put(sorted, name, block_var(b, name));
    }
    for (int k = 0; k < n; k++) {
      void *v;
      map_at(sorted, k, &v);
      b->vars.v[k] = v;
    }
    b->by_name = sorted;
  }
}

static bool is_written(const Program *p, const char *name) {
  const Block *b = p->blocks.v[0];
  for (int o = 0; o < b->ops.n; o++)
    for (int i = 0; i < b->ops.v[o]->outs.n; i++)
      for (int k = 0; k < b->ops.v[o]->outs.v[i].n; k++)
        if (!strcmp(b->ops.v[o]->outs.v[i].args[k], name)) return true;
  return false;
}

static bool check_names(Program *p, int n, const char *const *names, bool target,
                        const Map *feeds) {
  for (int i = 0; i < n; i++) {
    const Var *v = block_var(p->blocks.v[0], names[i]);
    if (v && (!target || v->persistable || map_get(feeds, names[i]) || is_written(p, names[i])))
      continue;
    err_set(E_RUN_002,
            v ? "nothing computes the target %s" : "there is no variable %s in the program",
            quoted(names[i]));
    if (!v) block_suggest(p->blocks.v[0], names[i]);
    return false;
  }
  return true;
}

bool prog_prune(Program *p, int n_feeds, const char *const *feeds, int n_targets,
                const char *const *targets) {
  Arena *a = arena_scratch();
  Cut c = {.p = p, .a = a, .needed = map_new(a), .feeds = map_new(a)};
  c.keep = arena_array(a, bool *, p->blocks.n);
  c.seen = arena_array(a, bool, p->blocks.n);
  Map *also = map_new(a);
  for (int i = 0; i < n_feeds; i++) {
    map_put(c.feeds, feeds[i], p);
    map_put(also, feeds[i], p);
  }
  bool ok = check_names(p, n_feeds, feeds, false, c.feeds) &&
            check_names(p, n_targets, targets, true, c.feeds);
  if (ok) {
    for (int i = 0; i < n_targets; i++) {
      need(&c, targets[i]);
      map_put(also, targets[i], p);
    }
    scan(&c);
    drop_ops(&c);
    drop_blocks(p, a);
    drop_vars(p, a, also);
    p->edits++;
  }
  arena_free(a);
  return ok;
}

void prog_drop_unused(Program *p) {
  Arena *a = arena_scratch();
  Map *fed = map_new(a);
  for (int b = 0; b < p->blocks.n; b++)
    for (int i = 0; i < p->blocks.v[b]->vars.n; i++)
      if (p->blocks.v[b]->vars.v[i]->need_check_feed)
        map_put(fed, p->blocks.v[b]->vars.v[i]->name, p);
  drop_vars(p, a, fed);
  p->edits++;
  arena_free(a);
}

/* ---- clone for test ---- */

static bool has_loss_grad(const Program *p) {
  for (int i = 0; i < p->blocks.n; i++)
    for (int o = 0; o < p->blocks.v[i]->ops.n; o++) {
      int role = op_role(p->blocks.v[i]->ops.v[o]);
      if ((role & ROLE_BACKWARD) && (role & ROLE_LOSS)) return true;
    }
  return false;
}

/* Operators behave as in testing if they have an is_test attribute; what only their gradient reads goes. */
static void set_test(Op *op) {
  bool has = false;
  for (int i = 0; i < op->attrs.n && !has; i++) has = !strcmp(op->attrs.v[i].name, "is_test");
  const AttrDef *d = op->def ? opdef_attr(op->def, "is_test") : NULL;
  if (!has && !(d && !d->extra)) return;
  op_set_bool(op, "is_test", true);
  for (int i = 0; i < op->outs.n; i++) {
    if (strcmp(op->outs.v[i].name, "ReserveSpace")) continue;
    memmove(&op->outs.v[i], &op->outs.v[i + 1], (size_t)(--op->outs.n - i) * sizeof *op->outs.v);
    break;
  }
}

Program *prog_clone_for_test(const Program *from) {
  Program *p = prog_clone(from);
  arena_unkeep(p->arena);
  bool cut = has_loss_grad(p);
  for (int i = 0; i < p->blocks.n; i++) {
    Block *b = p->blocks.v[i];
    int n = 0;
    for (int o = 0; o < b->ops.n; o++) {
      Op *op = b->ops.v[o];
      if (cut && (op_role(op) & (ROLE_BACKWARD | ROLE_OPTIMIZE | ROLE_LRSCHED))) continue;
      set_test(op);
      b->ops.v[n++] = op;
    }
    b->ops.n = n;
  }
  Arena *a = arena_scratch();
  if (cut) drop_blocks(p, a);
  if (cut) drop_vars(p, a, NULL);
  arena_free(a);
  arena_keep(p->arena);
  return p;
}
