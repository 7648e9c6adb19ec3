/* Equality of Programs: everything that a file keeps. The order of blocks, operators and slot arguments matters; that of
 * variables in a block, and of slots, attributes and operator versions, does not. FLOAT attributes are equal if they are
 * as single-precision numbers; all NaNs of one sign are. The first difference found is put into words. */
#include "ir.h"
#include <inttypes.h>
#include <math.h>
#include <string.h>

typedef struct Compare {
  Arena *t;
  Str *why; /* may be NULL */
} Compare;

static bool differ(Compare *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static bool differ(Compare *c, const char *fmt, ...) {
  if (!c->why) return false;
  char b[1024];
  va_list ap;
  va_start(ap, fmt);
  text_vfmt(b, sizeof b, fmt, ap);
  va_end(ap);
  str_add(c->why, b);
  return false;
}

static bool same_double(double a, double b, bool single) {
  if (single) a = (double)(float)a, b = (double)(float)b;
  if (isnan(a) || isnan(b)) return isnan(a) && isnan(b) && !signbit(a) == !signbit(b);
  return a == b && !signbit(a) == !signbit(b);
}

static bool same_scalar(const Scalar *a, const Scalar *b) {
  if (a->type != b->type) return false;
  if (a->type <= 2) return a->type == 1 ? !a->i == !b->i : a->i == b->i;
  return same_double(a->r, b->r, false) && (a->type == 3 || same_double(a->im, b->im, false));
}

bool attr_equal(const Attr *a, const Attr *b) {
  const AttrInfo *t = &attr_info[a->type];
  bool single = a->type == AT_FLOAT || a->type == AT_FLOATS;
  int n = t->list ? a->n : 1;
  if (a->type != b->type || (t->list && a->n != b->n)) return false;
  for (int i = 0; i < n; i++) {
    bool same;
    switch (t->elem) {
    case 'f':
      same = same_double(t->list ? a->fs[i] : a->f, t->list ? b->fs[i] : b->f, single);
      break;
    case 's': same = !strcmp(t->list ? a->ss[i] : a->s, t->list ? b->ss[i] : b->s); break;
    case 'c': same = same_scalar(&a->scalars[i], &b->scalars[i]); break;
    case 'b': same = !(t->list ? a->is[i] : a->i) == !(t->list ? b->is[i] : b->i); break;
    default: same = (t->list ? a->is[i] : a->i) == (t->list ? b->is[i] : b->i);
    }
    if (!same) return false;
  }
  return true;
}

/* Two sets of named items: the same names? Leaves both sorted in *x and *y. */
static bool same_names(Compare *c, const char *what, const void *a, int na, const void *b, int nb,
                       size_t size, const void ***x, const void ***y) {
  *x = by_name(c->t, a, na, size);
  *y = by_name(c->t, b, nb, size);
  for (int i = 0; i < na || i < nb; i++) {
    const char *s = i < na ? *(const char *const *)(*x)[i] : NULL;
    const char *u = i < nb ? *(const char *const *)(*y)[i] : NULL;
    if (s && u && !strcmp(s, u)) continue;
    bool first = s && (!u || strcmp(s, u) < 0);
    return differ(c, "%s %s is only in the %s program", what, quoted(first ? s : u),
                  first ? "first" : "second");
  }
  return true;
}

static bool same_attrs(Compare *c, const Attr *a, int na, const Attr *b, int nb) {
  const void **x, **y;
  if (!same_names(c, "attribute", a, na, b, nb, sizeof(Attr), &x, &y)) return false;
  for (int i = 0; i < na; i++) {
    if (attr_equal(x[i], y[i])) continue;
    Str l, r;
    str_init(&l, c->t);
    str_init(&r, c->t);
    attr_print(x[i], &l);
    attr_print(y[i], &r);
    return differ(c, "attribute %s is %.200s and %.200s", quoted(((const Attr *)x[i])->name), l.s,
                  r.s);
  }
  return true;
}

static bool same_slots(Compare *c, const char *what, const Slot *a, int na, const Slot *b, int nb) {
  const void **x, **y;
  if (!same_names(c, what, a, na, b, nb, sizeof(Slot), &x, &y)) return false;
  for (int i = 0; i < na; i++) {
    const Slot *s = x[i], *u = y[i];
    if (s->n != u->n)
      return differ(c, "%s %s has %d and %d variables", what, quoted(s->name), s->n, u->n);
    for (int k = 0; k < s->n; k++)
      if (strcmp(s->args[k], u->args[k]))
        return differ(c, "%s %s is %s and %s", what, quoted(s->name), quoted(s->args[k]),
                      quoted(u->args[k]));
  }
  return true;
}

static bool same_op(Compare *c, const Op *a, const Op *b) {
  if (strcmp(a->type, b->type)) return differ(c, "%s and %s", quoted(a->type), quoted(b->type));
  if (a->is_target != b->is_target) return differ(c, "only one is a target");
  return same_slots(c, "input", a->ins.v, a->ins.n, b->ins.v, b->ins.n) &&
         same_slots(c, "output", a->outs.v, a->outs.n, b->outs.v, b->outs.n) &&
         same_attrs(c, a->attrs.v, a->attrs.n, b->attrs.v, b->attrs.n);
}

static bool same_var(Compare *c, const Var *a, const Var *b) {
  bool shape = a->dtype == b->dtype && a->paddle_dtype == b->paddle_dtype && a->rank == b->rank;
  for (int i = 0; shape && i < a->rank; i++) shape = a->dims[i] == b->dims[i];
  if (!shape)
    return differ(c, "%s and %s", shape_text(a->dtype, a->rank, a->dims),
                  shape_text(b->dtype, b->rank, b->dims));
  if (a->kind != b->kind)
    return differ(c, "%s and %s", var_kind_name((int)a->kind), var_kind_name((int)b->kind));
  if (a->lod_level != b->lod_level)
    return differ(c, "LoD level %d and %d", a->lod_level, b->lod_level);
  const struct {
    const char *what;
    bool same;
  } flags[] = {{"persistable", a->persistable == b->persistable},
               {"need_check_feed", a->need_check_feed == b->need_check_feed},
               {"is_parameter", a->is_parameter == b->is_parameter},
               {"stop_gradient", a->stop_gradient == b->stop_gradient}};
  for (size_t i = 0; i < sizeof flags / sizeof *flags; i++)
    if (!flags[i].same) return differ(c, "only one is %s", flags[i].what);
  return same_attrs(c, a->attrs.v, a->attrs.n, b->attrs.v, b->attrs.n);
}

static bool same_block(Compare *c, const Block *a, const Block *b) {
  if (a->parent != b->parent || a->forward != b->forward)
    return differ(c, "parent %d and %d, forward block %d and %d", a->parent, b->parent, a->forward,
                  b->forward);
  for (int i = 0; i < b->vars.n; i++)
    if (!block_var(a, b->vars.v[i]->name))
      return differ(c, "variable %s is only in the second program", quoted(b->vars.v[i]->name));
  for (int i = 0; i < a->vars.n; i++) {
    const Var *v = a->vars.v[i], *u = block_var(b, v->name);
    if (!u) return differ(c, "variable %s is only in the first program", quoted(v->name));
    if (!same_var(c, v, u)) return differ(c, " (variable %s)", quoted(v->name));
  }
  for (int i = 0; i < a->ops.n && i < b->ops.n; i++)
    if (!same_op(c, a->ops.v[i], b->ops.v[i]))
      return differ(c, " (operator %d, %s)", i, quoted(a->ops.v[i]->type));
  return a->ops.n == b->ops.n || differ(c, "%d and %d operators", a->ops.n, b->ops.n);
}

static bool same_program(Compare *c, const Program *a, const Program *b) {
  if (a->version != b->version)
    return differ(c, "version %" PRId64 " and %" PRId64, a->version, b->version);
  const void **x, **y;
  if (!same_names(c, "the version of operator", a->op_versions.v, a->op_versions.n,
                  b->op_versions.v, b->op_versions.n, sizeof(OpVersion), &x, &y))
    return false;
  for (int i = 0; i < a->op_versions.n; i++) {
    const OpVersion *v = x[i], *u = y[i];
    if (v->version != u->version)
      return differ(c, "operator %s has version %d and %d", quoted(v->name), v->version,
                    u->version);
  }
  if (a->blocks.n != b->blocks.n) return differ(c, "%d and %d blocks", a->blocks.n, b->blocks.n);
  for (int i = 0; i < a->blocks.n; i++)
    if (!same_block(c, a->blocks.v[i], b->blocks.v[i])) return differ(c, " in block %d", i);
  return true;
}

bool block_equal(const Block *a, const Block *b, Str *why) {
  Compare c = {arena_scratch(), why};
  bool same = same_block(&c, a, b);
  arena_free(c.t);
  return same;
}

bool prog_equal(const Program *a, const Program *b, Str *why) {
  Compare c = {arena_scratch(), why};
  bool same = same_program(&c, a, b);
  arena_free(c.t);
  return same;
}
