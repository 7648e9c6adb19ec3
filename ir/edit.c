/* Edits of whole Programs: renaming a variable, new feed and fetch operators, dropping an operator. In: a Program and names
 * of its variables. Out: the same Program changed, or one diagnostic and a Program that is not to be used. */
#include "ir.h"
#include <string.h>

Var *prog_need_var(const Program *p, const char *name) {
  const Block *b = p->blocks.v[0];
  Var *v = block_var(b, name);
  if (v) return v;
  err_set(E_VER_001, "there is no variable %s in the program", quoted(name));
  block_suggest(b, name);
  return NULL;
}

/* ---- names ---- */

static void rename_texts(Attr *a, const char *from, const char *to) {
  bool one = a->type == AT_VAR, list = a->type == AT_VARS || a->type == AT_STRINGS;
  if (one && !strcmp(a->s, from)) a->s = to;
  for (int i = 0; list && i < a->n; i++)
    if (!strcmp(a->ss[i], from)) a->ss[i] = to;
}

bool prog_rename_var(Program *p, const char *from, const char *to) {
  Var *v = prog_need_var(p, from);
  if (!v) return false;
  for (int i = 0; i < p->blocks.n; i++)
    if (block_var(p->blocks.v[i], to))
      return err_set(E_PRO_002, "%s cannot become %s: block %d has a variable of that name",
                     quoted(from), quoted(to), i);
  if (!*to || !strcmp(to, "@EMPTY@"))
    return err_set(E_PRO_002, "%s is not a variable's name", quoted(to));
  const char *name = arena_str(p->arena, to), *old = v->name;
  for (int i = 0; i < p->blocks.n; i++) {
    Block *b = p->blocks.v[i];
    Var *own = block_var(b, old);
    if (i && own) continue; /* another variable, which hides ours */
    if (own) {
      map_put(b->by_name, old, NULL);
      map_put(b->by_name, name, own);
      own->name = name;
    }
    for (int o = 0; o < b->ops.n; o++) {
      Op *op = b->ops.v[o];
      op_rename(op, old, name);
      for (int k = 0; k < op->attrs.n; k++) rename_texts(&op->attrs.v[k], old, name);
    }
  }
  p->edits++;
  return true;
}

/* ---- ends ---- */

static bool is_end(const Op *op) { return op->def && op->def->flags & OF_IO; }

bool prog_has_ends(const Program *p) {
  const Block *b = p->blocks.v[0];
  for (int i = 0; i < b->ops.n; i++)
    if (is_end(b->ops.v[i])) return true;
  return false;
}

void prog_remove_ends(Program *p) {
  Block *b = p->blocks.v[0];
  for (int i = b->ops.n - 1; i >= 0; i--)
    if (is_end(b->ops.v[i])) block_remove_op(b, i);
}

/* One end of the program: operators that bring in the feeds, or take out the fetches. */
static bool add_ends(Program *p, bool feed, int n, const char *const *names) {
  Block *b = p->blocks.v[0];
  const char *type = feed ? "feed" : "fetch";
  Var *v = block_var(b, type);
  if (!v) v = block_add_var(b, type, feed ? VK_FEED : VK_FETCH, DT_NONE, 0, NULL);
  if (!v) return false;
  v->persistable = true;
  for (int i = 0; i < n; i++) {
    if (!block_var(b, names[i]))
      return err_set(E_RUN_002, "%s is not a variable of the pruned program", quoted(names[i]));
    Op *op = feed ? block_insert_op(b, 0, type) : block_add_op(b, type);
    op_add_in(op, "X", feed ? type : names[i]);
    op_add_out(op, "Out", feed ? names[i] : type);
    op_set_int(op, "col", i);
  }
  return true;
}

bool prog_add_ends(Program *p, int n_feeds, const char *const *feeds, int n_fetch,
                   const char *const *fetches) {
  return add_ends(p, true, n_feeds, feeds) && add_ends(p, false, n_fetch, fetches);
}

/* ---- dropping operators ---- */

static bool reads(const Op *op, const char *name) {
  for (int i = 0; i < op->ins.n; i++)
    for (int k = 0; k < op->ins.v[i].n; k++)
      if (!strcmp(op->ins.v[i].args[k], name)) return true;
  for (int i = 0; i < op->attrs.n; i++) {
    const Attr *a = &op->attrs.v[i];
    if (a->type == AT_VAR && !strcmp(a->s, name)) return true;
    for (int k = 0; a->type == AT_VARS && k < a->n; k++)
      if (!strcmp(a->ss[k], name)) return true;
  }
  return false;
}

static bool is_read(const Program *p, const Op *but, const char *name) {
  for (int b = 0; b < p->blocks.n; b++)
    for (int i = 0; i < p->blocks.v[b]->ops.n; i++)
      if (p->blocks.v[b]->ops.v[i] != but && reads(p->blocks.v[b]->ops.v[i], name)) return true;
  return false;
}

static bool same_declared(const Var *a, const Var *b) {
  if (a->kind != b->kind || a->dtype != b->dtype || a->rank != b->rank) return false;
  for (int d = 0; d < a->rank; d++)
    if (a->dims[d] >= 0 && b->dims[d] >= 0 && a->dims[d] != b->dims[d]) return false;
  return true;
}

/* The input that can stand for the output: of its type and shape, and not a parameter. A gradient operator passes on a
 * gradient; of several others slot X (or Input) counts. */
static const char *stand_in(const Op *op, const Var *out) {
  const char *found = NULL;
  bool gradient = op->def && op->def->forward;
  for (int i = 0; i < op->ins.n; i++)
    for (int k = 0; k < op->ins.v[i].n; k++) {
      const Slot *s = &op->ins.v[i];
      const Var *v = block_find_var(op->block, s->args[k]);
      if (!v || v->persistable || !same_declared(v, out)) continue;
      bool best = gradient ? strstr(s->name, "@GRAD") != NULL
                           : !strcmp(s->name, "X") || !strcmp(s->name, "Input");
      if (best || (!found && !gradient)) found = v->name;
      if (best) return found;
    }
  return found;
}

/* Where a variable is read, another one is read instead. */
static void read_instead(Program *p, const char *from, const char *to) {
  for (int b = 0; b < p->blocks.n; b++)
    for (int o = 0; o < p->blocks.v[b]->ops.n; o++) {
      Op *op = p->blocks.v[b]->ops.v[o];
      for (int i = 0; i < op->ins.n; i++)
        for (int k = 0; k < op->ins.v[i].n; k++)
          if (!strcmp(op->ins.v[i].args[k], from)) op->ins.v[i].args[k] = to;
      for (int k = 0; k < op->attrs.n; k++)
        if (op->attrs.v[k].type != AT_STRINGS) rename_texts(&op->attrs.v[k], from, to);
    }
  p->edits++;
}

static bool cannot_drop(const Op *op, const Var *out, const char *why) {
  err_set(E_OPR_004, "operator `%s` cannot be dropped: its output %s %s", op->type,
          quoted(out->name), why);
  err_where("block %d, %s", op->block->idx, op_text(op));
  return false;
}

/* Reads of one output go to an input instead. */
static bool pass_through(Program *p, const Op *op, const char *name) {
  const Var *out = block_find_var(op->block, name);
  if (!out || !strcmp(name, "@EMPTY@") || reads(op, name) || !is_read(p, op, name)) return true;
  if (out->persistable) return cannot_drop(op, out, "is kept from run to run");
  const char *in = stand_in(op, out);
  if (!in) {
    cannot_drop(op, out, "is read, and no input can stand for it");
    err_note("%s is %s; an input of that type and shape is needed", quoted(name),
             shape_text(out->dtype, out->rank, out->dims));
    return false;
  }
  read_instead(p, name, in);
  return true;
}

static const char *main_output(const Op *op) {
  const char *first = op->outs.n && op->outs.v[0].n ? op->outs.v[0].args[0] : NULL;
  for (int s = 0; s < op->outs.n && op->def; s++) {
    const SlotDef *d = opdef_out(op->def, op->outs.v[s].name);
    if (d && !d->intermediate && op->outs.v[s].n) first = op->outs.v[s].args[0];
  }
  return first;
}

/* The gradient operator that follows `at` and belongs to op. */
static Op *gradient_of(const Op *op, const Block *b, int at) {
  const char *type = op->def && op->def->grad ? op->def->grad->type : NULL;
  const char *out = main_output(op);
  Arena *a = arena_scratch();
  const char *grad = out ? arena_fmt(a, "%s@GRAD", out) : NULL;
  Op *found = NULL;
  for (int i = at; grad && type && i < b->ops.n && !found; i++)
    if (!strcmp(b->ops.v[i]->type, type) && reads(b->ops.v[i], grad)) found = b->ops.v[i];
  arena_free(a);
  return found;
}

bool prog_drop_op(Program *p, Op *op) {
  while (op) {
    for (int i = 0; i < op->outs.n; i++)
      for (int k = 0; k < op->outs.v[i].n; k++)
        if (!pass_through(p, op, op->outs.v[i].args[k])) return false;
    Block *b = op->block;
    int at = op_index(op);
    block_remove_op(b, at);
    op = gradient_of(op, b, at);
  }
  return true;
}
