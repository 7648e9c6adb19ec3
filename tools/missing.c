/* ops --missing: all that a program needs and Kiln lacks, at once.
 *
 * In: a program file. Out: a row for each operator type that is not in the table, with how often it occurs and in which
 * blocks; then the element types and the operators that are known, but not in this form (E-OPR-004, E-TYP-002). */
#include "tools.h"
#include <string.h>

typedef struct Lack {
  const char *what, *near, *why; /* near, why: NULL if there is nothing to say */
  const char *kind;              /* "operator", "element type", "form" */
  int count;
  Map *blocks; /* their numbers */
} Lack;

typedef struct Lacks {
  Arena *a;
  Map *by_what;
} Lacks;

static void add(Lacks *l, const char *kind, const char *what, const char *why, int block) {
  const char *key = arena_fmt(l->a, "%s %s %s", kind, what, why ? why : "");
  Lack *x = map_get(l->by_what, key);
  if (!x) {
    x = arena_new_of(l->a, Lack);
    *x = (Lack){arena_str(l->a, what), NULL, why ? arena_str(l->a, why) : NULL, kind, 0,
                map_new(l->a)};
    if (!strcmp(kind, "operator")) x->near = opdef_nearest(what);
    map_put(l->by_what, key, x);
  }
  x->count++;
  map_put(x->blocks, arena_fmt(l->a, "%d", block), x);
}

static void look_at_vars(Lacks *l, const Block *b) {
  for (int i = 0; i < b->vars.n; i++) {
    const Var *v = b->vars.v[i];
    if (v->dtype == DT_NONE && v->paddle_dtype >= 0)
      add(l, "element type", arena_fmt(l->a, "number %d", v->paddle_dtype), NULL, b->idx);
  }
}

static void look_at_op(Lacks *l, Op *op) {
  if (!op->def) {
    add(l, "operator", op->type, NULL, op->block->idx);
    return;
  }
  if (op->def->flags & OF_IO || infer_op(op)) return;
  const Diag *d = err_get();
  if (d->code == E_OPR_004 || d->code == E_TYP_002)
    add(l, "form", op->type, d->summary, op->block->idx);
  err_clear();
}

static void add_blocks(Str *s, const Lack *x) {
  for (int i = 0; i < map_n(x->blocks); i++) {
    void *unused;
    str_fmt(s, "%s%s", i ? ", " : "", map_at(x->blocks, i, &unused));
  }
}

static void add_json(Str *s, const Lack *x) {
  str_add(s, "\n  {\"kind\": ");
  str_json(x->kind, s);
  str_add(s, ", \"name\": ");
  str_json(x->what, s);
  str_fmt(s, ", \"count\": %d, \"blocks\": [", x->count);
  add_blocks(s, x);
  str_add(s, "]");
  if (x->near) str_add(s, ", \"near\": "), str_json(x->near, s);
  if (x->why) str_add(s, ", \"why\": "), str_json(x->why, s);
  str_add(s, "}");
}

static void add_line(Str *s, const Lack *x) {
  str_fmt(s, "%-12s %-34s %6d  blocks ", x->kind, x->what, x->count);
  add_blocks(s, x);
  if (x->near) str_fmt(s, "  (%s is there)", x->near);
  if (x->why) str_fmt(s, "  %s", x->why);
  str_add(s, "\n");
}

static void print(const Lacks *l, const Program *p, bool json) {
  Str s;
  int n = map_n(l->by_what), ops = 0;
  for (int b = 0; b < p->blocks.n; b++) ops += p->blocks.v[b]->ops.n;
  str_init(&s, l->a);
  if (json) str_fmt(&s, "{\"operators\": %d, \"missing\": [", ops);
  for (int i = 0; i < n; i++) {
    void *x;
    map_at(l->by_what, i, &x);
    if (json && i) str_add(&s, ",");
    (json ? add_json : add_line)(&s, x);
  }
  if (json)
    str_add(&s, "]}\n");
  else if (n)
    str_fmt(&s, "%d kinds of things are missing; the program has %d operators\n", n, ops);
  else
    str_fmt(&s, "nothing is missing for the program's %d operators\n", ops);
  fwrite(s.s, 1, s.n, stdout);
}

int print_missing(const char *path, bool json) {
  Program *p = prog_load_any(path);
  if (!p) return report();
  Lacks l = {.a = arena_new()};
  l.by_what = map_new(l.a);
  for (int b = 0; b < p->blocks.n; b++) look_at_vars(&l, p->blocks.v[b]);
  for (int b = 0; b < p->blocks.n; b++)
    for (int i = 0; i < p->blocks.v[b]->ops.n; i++) look_at_op(&l, p->blocks.v[b]->ops.v[i]);
  print(&l, p, json);
  int n = map_n(l.by_what);
  arena_free(l.a);
  prog_free(p);
  return n > 0;
}
