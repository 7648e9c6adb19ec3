/* The structural difference of two programs.
 *
 * In: two programs. Out: their operators in pairs, and a line for each difference. The operators of block 0 are aligned by a
 * longest common subsequence of their types (dynamic programming over what is left between the common head and tail; above
 * 16 million cells, greedily). Variables are equal if they stand in the same places of aligned operators, whatever their
 * names: names that differ are told once. */
#include "diff.h"
#include <inttypes.h>
#include <string.h>

void diff_add(Alignment *al, const char *what, const char *fmt, ...) {
  char b[1024];
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(b, sizeof b, fmt, ap);
  va_end(ap);
  str_fmt(&al->text, "%-10s %s\n", what, b);
  str_add(&al->json, al->differences ? ",\n  {\"kind\": " : "\n  {\"kind\": ");
  str_json(what, &al->json);
  str_add(&al->json, ", \"text\": ");
  str_json(b, &al->json);
  str_add(&al->json, "}");
  al->differences++;
}

/* ---- alignment ---- */

static bool same_type(const Block *x, int i, const Block *y, int j) {
  return !strcmp(x->ops.v[i]->type, y->ops.v[j]->type);
}

static void add_pair(Alignment *al, const Op *a, const Op *b) { al->pairs[al->n++] = (Pair){a, b}; }

typedef struct Range {
  int x0, x1, y0, y1;
} Range;

static void align_greedily(Alignment *al, const Block *x, const Block *y, Range r) {
  int i = r.x0, j = r.y0;
  while (i < r.x1 || j < r.y1) {
    bool both = i < r.x1 && j < r.y1 && same_type(x, i, y, j);
    const Op *a = i < r.x1 ? x->ops.v[i++] : NULL;
    const Op *b = j < r.y1 ? y->ops.v[j++] : NULL;
    if (both || !a || !b) {
      add_pair(al, a, b);
      continue;
    }
    add_pair(al, a, NULL);
    add_pair(al, NULL, b);
  }
}

static void align_middle(Alignment *al, const Block *x, const Block *y, Range r) {
  int n = r.x1 - r.x0, m = r.y1 - r.y0;
  if ((int64_t)n * m > 16 << 20) {
    align_greedily(al, x, y, r);
    return;
  }
  Arena *tmp = arena_new();
  size_t w = (size_t)m + 1;
  int32_t *len = arena_array(tmp, int32_t, (size_t)(n + 1) * w);
  for (int i = n - 1; i >= 0; i--)
    for (int j = m - 1; j >= 0; j--) {
      const int32_t *at = &len[(size_t)i * w + (size_t)j];
      int32_t best = at[w] > at[1] ? at[w] : at[1];
      if (same_type(x, r.x0 + i, y, r.y0 + j)) best = at[w + 1] + 1;
      len[(size_t)i * w + (size_t)j] = best;
    }
  int i = 0, j = 0;
  while (i < n || j < m) {
    const int32_t *at = &len[(size_t)i * w + (size_t)j];
    if (i < n && j < m && same_type(x, r.x0 + i, y, r.y0 + j) && at[0] == at[w + 1] + 1)
      add_pair(al, x->ops.v[r.x0 + i++], y->ops.v[r.y0 + j++]);
    else if (i < n && (j == m || at[w] >= at[1]))
      add_pair(al, x->ops.v[r.x0 + i++], NULL);
    else
      add_pair(al, NULL, y->ops.v[r.y0 + j++]);
  }
  arena_free(tmp);
}

static void align(Alignment *al, const Block *x, const Block *y) {
  int n = x->ops.n, m = y->ops.n, head = 0, tail = 0;
  al->pairs = arena_array(al->arena, Pair, n + m + 1);
  while (head < n && head < m && same_type(x, head, y, head)) head++;
  while (tail < n - head && tail < m - head && same_type(x, n - 1 - tail, y, m - 1 - tail)) tail++;
  for (int i = 0; i < head; i++) add_pair(al, x->ops.v[i], y->ops.v[i]);
  align_middle(al, x, y, (Range){head, n - tail, head, m - tail});
  for (int i = tail; i > 0; i--) add_pair(al, x->ops.v[n - i], y->ops.v[m - i]);
}

/* ---- what aligned operators differ in ---- */

static const char *value_text(Arena *a, const Attr *v) {
  Str s;
  str_init(&s, a);
  attr_print(v, &s);
  if (s.n > 60) strcpy(s.s + 56, "...");
  return s.s;
}

/* Where the operator was written down does not change what it does. */
static bool is_comment(const char *attr) {
  static const char *const names[] = {"op_callstack", "op_namescope", "op_role_var", "op_device",
                                      "with_quant_attr"};
  for (size_t i = 0; i < sizeof names / sizeof *names; i++)
    if (!strcmp(names[i], attr)) return true;
  return false;
}

/* An attribute that is not written down counts as its default, whatever the type it is written in. */
static bool same_value(Arena *a, const Op *x, const Op *y, const char *name) {
  const Attr *u = op_attr(x, name), *v = op_attr(y, name);
  const AttrDef *d = x->def ? opdef_attr(x->def, name) : NULL;
  if (!u || !v) return x->def && (!d || d->extra); /* notes of other tools */
  Attr c = *u;
  return attr_equal(u, v) || (attr_coerce(&c, v->type, a) && attr_equal(&c, v));
}

static void compare_attrs(Alignment *al, const Op *x, const Op *y) {
  for (int side = 0; side < 2; side++) {
    const Op *own = side ? y : x, *other = side ? x : y;
    for (int i = 0; i < own->attrs.n; i++) {
      const char *name = own->attrs.v[i].name;
      bool told = false; /* by the other side */
      for (int k = 0; side && k < other->attrs.n; k++)
        told = told || !strcmp(other->attrs.v[k].name, name);
      bool block = own->attrs.v[i].type == AT_BLOCK || own->attrs.v[i].type == AT_BLOCKS;
      if (told || block || is_comment(name) || same_value(al->arena, x, y, name)) continue;
      const Attr *u = op_attr(x, name), *v = op_attr(y, name);
      diff_add(al, "attribute", "op %d `%s`, %s: %s and %s", op_index(x), x->type, name,
               u ? value_text(al->arena, u) : "none", v ? value_text(al->arena, v) : "none");
    }
  }
}

static void pair_vars(Alignment *al, const Op *x, const Op *y, const char *u, const char *v) {
  const char *before = map_get(al->to_b, u);
  if (!before) {
    map_put(al->to_b, u, arena_str(al->arena, v));
    if (strcmp(u, v)) diff_add(al, "name", "%s and %s", quoted(u), quoted(v));
    const Var *a = block_find_var(x->block, u), *b = block_find_var(y->block, v);
    if (!a || !b) return;
    bool same = a->dtype == b->dtype && a->rank == b->rank &&
                !memcmp(a->dims, b->dims, sizeof *a->dims * (size_t)(a->rank > 0 ? a->rank : 0));
    if (!same)
      diff_add(al, a->persistable ? "parameter" : "shape", "%s: %s and %s", quoted(u),
               shape_text(a->dtype, a->rank, a->dims), shape_text(b->dtype, b->rank, b->dims));
    if (a->persistable != b->persistable)
      diff_add(al, "variable", "%s is persistable only in the %s program", quoted(u),
               a->persistable ? "first" : "second");
  } else if (strcmp(before, v))
    diff_add(al, "wiring", "op %d `%s`: %s and %s", op_index(x), x->type, quoted(u), quoted(v));
}

static void compare_slots(Alignment *al, const Op *x, const Op *y, bool in) {
  const SlotVec *s = in ? &x->ins : &x->outs, *t = in ? &y->ins : &y->outs;
  for (int i = 0; i < s->n; i++) {
    const Slot *u = &s->v[i], *v = in ? op_ins(y, u->name) : op_outs(y, u->name);
    int n = v ? v->n : 0;
    for (int k = 0; k < u->n && k < n; k++) pair_vars(al, x, y, u->args[k], v->args[k]);
    if (u->n != n)
      diff_add(al, "slot", "op %d `%s`, %s: %d and %d variables", op_index(x), x->type, u->name,
               u->n, n);
  }
  for (int i = 0; i < t->n; i++)
    if (!(in ? op_ins(x, t->v[i].name) : op_outs(x, t->v[i].name)) && t->v[i].n)
      diff_add(al, "slot", "op %d `%s`, %s: 0 and %d variables", op_index(x), x->type, t->v[i].name,
               t->v[i].n);
}

static void compare_pairs(Alignment *al) {
  for (int i = 0; i < al->n; i++) {
    const Op *x = al->pairs[i].a, *y = al->pairs[i].b;
    if (x && y) {
      compare_slots(al, x, y, true);
      compare_slots(al, x, y, false);
      compare_attrs(al, x, y);
      continue;
    }
    diff_add(al, "operator", "op %d `%s` is only in the %s program", op_index(x ? x : y),
             (x ? x : y)->type, x ? "first" : "second");
  }
}

Alignment *diff_structure(Arena *a, const Program *x, const Program *y) {
  Alignment *al = arena_new_of(a, Alignment);
  *al = (Alignment){.arena = a, .to_b = map_new(a)};
  str_init(&al->text, a);
  str_init(&al->json, a);
  align(al, x->blocks.v[0], y->blocks.v[0]);
  compare_pairs(al);
  if (x->blocks.n != y->blocks.n)
    diff_add(al, "blocks", "%d and %d blocks", x->blocks.n, y->blocks.n);
  Str why;
  str_init(&why, a);
  for (int b = 1; b < x->blocks.n && x->blocks.n == y->blocks.n; b++)
    if (!block_equal(x->blocks.v[b], y->blocks.v[b], &why))
      diff_add(al, "block", "block %d: %s", b, why.s), why.n = 0;
  return al;
}
