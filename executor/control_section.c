/* The sections of a plan: runs of operators that are compiled as one.
 *
 * In: a step that is a section. Out: the variables that enter it (read there before they are written) and leave it (somebody
 * outside reads them), with their places. A section is cut where an input's value must be known, and compiled for each
 * value then. */
#include "control.h"
#include <string.h>

/* ---- what is read by whom ---- */

typedef bool Visit(Plan *p, PlanBlock *b, const char *name, void *user);

static bool each_input(Plan *p, PlanBlock *b, const Op *op, Visit *f, void *user) {
  for (int s = 0; s < op->ins.n; s++)
    for (int i = 0; i < op->ins.v[s].n; i++)
      if (strcmp(op->ins.v[s].args[i], "@EMPTY@") && !f(p, b, op->ins.v[s].args[i], user))
        return plan_op_error(op);
  return true;
}

static bool count_reader(Plan *p, PlanBlock *b, const char *name, void *user) {
  Ref r;
  (void)p, (void)user;
  PlanBlock *at = plan_holder(b, name, &r);
  if (!at) return false;
  if (r.slot >= 0) at->readers[r.slot]++;
  return true;
}

bool plan_count_readers(Plan *p) {
  for (int i = 0; i < p->n_blocks; i++) {
    PlanBlock *b = p->blocks[i];
    if (!b) continue;
    b->readers = arena_array(p->arena, int, b->n_slots + 1);
    b->exported = arena_array(p->arena, bool, b->n_slots + 1);
  }
  for (int i = 0; i < p->n_blocks; i++)
    for (int k = 0; p->blocks[i] && k < p->blocks[i]->b->ops.n; k++)
      if (!plan_skips(p->blocks[i], k) &&
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
  PlanBlock *at = plan_holder(b, name, r);
  if (!at || r->slot < 0) return false;
  if (at != b || r->forward) return true;
  return at->exported[r->slot] || at->readers[r->slot] > (intptr_t)map_get(n->inside, name);
}

bool plan_bind_section(Plan *p, PlanBlock *b, Step *s) {
  Names n = {map_new(p->arena), map_new(p->arena), map_new(p->arena)};
  void *unused;
  for (int i = s->section.from; i < s->section.to; i++) {
    const Op *op = b->b->ops.v[i];
    if (plan_skips(b, i)) continue;
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
    if (!plan_holder(b, s->in[i], &s->in_ref[i])) return false;
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

/* ---- known values ---- */

void step_free_made(Step *s) {
  for (Executable *x = s->made, *next; x; x = next) {
    next = x->next;
    executable_free(x);
  }
  s->made = NULL;
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
  step_free_made(s);
  vec_add(p->arena, &b->steps, NULL);
  memmove(&b->steps.v[at + 2], &b->steps.v[at + 1],
          (size_t)(b->steps.n - at - 2) * sizeof *b->steps.v);
  b->steps.v[at + 1] = rest;
  const char **in = s->in;
  const bool *was = s->known;
  int n = s->n_in;
  if (!plan_bind_section(p, b, s) || !plan_bind_section(p, b, rest)) return false;
  for (int i = 0; i < n; i++)
    if (was[i]) mark_known(s, in[i]);
  return mark_known(rest, w->name);
}
