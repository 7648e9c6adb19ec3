/* A row of the operator table, parsed: its signature, its gradient column, and the definition of its gradient operator.
 *
 * In: the texts of a row of ops.def, or of a custom operator. Out: slots, attributes and GradDef of its OpDef. */
#include "op_row.h"
#include <string.h>

/* ---- signatures ---- */

typedef struct Parser {
  Arena *a;
  const char *p;
  const char *error; /* the first; NULL if none */
} Parser;

static bool fail(Parser *r, const char *why) {
  if (!r->error) r->error = why;
  return false;
}

/* Every process parses all rows when it begins: so no strspn, which makes a table of the set in each call, nor arena_fmt. */
static const char *skip(const char *p) {
  while (*p == ' ' || *p == '\t' || *p == '\n' || *p == ',') p++;
  return p;
}

static bool is_in_name(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
}

static const char *parse_name(Parser *r) {
  size_t n = 0;
  while (is_in_name(r->p[n]) || (n && r->p[n] == '-' && is_in_name(r->p[n + 1]))) n++;
  if (!n) {
    fail(r, "a name is expected");
    return "";
  }
  const char *s = arena_strn(r->a, r->p, n);
  r->p += n;
  return s;
}

static const char *joined(Arena *a, const char *first, const char *second) {
  size_t n = strlen(first), m = strlen(second);
  char *s = arena_alloc(a, n + m + 1);
  memcpy(s, first, n);
  memcpy(s + n, second, m);
  return s;
}

typedef VEC(SlotDef) SlotDefs;
typedef VEC(AttrDef) AttrDefs;

static bool parse_attr(Parser *r, const char *name, bool extra, AttrDefs *to) {
  static const struct {
    char c;
    AttrType type;
  } types[] = {{'i', AT_INT},    {'l', AT_LONG},    {'f', AT_FLOAT},   {'b', AT_BOOL},
               {'s', AT_STRING}, {'I', AT_INTS},    {'L', AT_LONGS},   {'F', AT_FLOATS},
               {'B', AT_BOOLS},  {'S', AT_STRINGS}, {'d', AT_FLOAT64}, {'D', AT_FLOAT64S},
               {'k', AT_BLOCK},  {'K', AT_BLOCKS}};
  AttrDef d = {.dflt.name = name, .extra = extra};
  if (*r->p == '!') {
    d.required = true;
    size_t k = 0, n = sizeof types / sizeof *types;
    while (k < n && types[k].c != r->p[1]) k++;
    if (k == n) return fail(r, "an unknown type letter after =!");
    d.dflt.type = types[k].type;
    if (d.dflt.type == AT_STRING) d.dflt.s = "";
    r->p += 2;
  } else if (!attr_parse(r->a, r->p, &r->p, &d.dflt))
    return fail(r, "a malformed default");
  else if (!strchr(" \t\n,}", *r->p))
    return fail(r, "a malformed default");
  vec_add(r->a, to, d);
  return true;
}

static bool parse_slot(Parser *r, const char *name, SlotDefs *to) {
  SlotDef s = {.name = name};
  if (*r->p == '@') {
    r->p++;
    s.name = joined(r->a, name, "@GRAD");
  }
  for (;; r->p++) {
    if (*r->p == '?')
      s.optional = true;
    else if (*r->p == '*')
      s.list = true;
    else if (*r->p == '~')
      s.intermediate = true;
    else
      break;
  }
  vec_add(r->a, to, s);
  return true;
}

const char *parse_signature(Arena *a, const char *text, OpDef *d) {
  Parser r = {a, text, NULL};
  SlotDefs ins = {0}, outs = {0};
  AttrDefs attrs = {0};
  bool extra = false, arrow = false;
  while (!r.error && *(r.p = skip(r.p))) {
    if (!strncmp(r.p, "->", 2) && !arrow && !extra) {
      arrow = true;
      r.p += 2;
    } else if (*r.p == '{' || *r.p == '}') {
      if (extra == (*r.p == '{')) fail(&r, "a stray brace");
      extra = *r.p++ == '{';
    } else {
      const char *name = parse_name(&r);
      if (*r.p == '=' && r.p++)
        parse_attr(&r, name, extra, &attrs);
      else if (extra)
        fail(&r, "a slot in braces");
      else
        parse_slot(&r, name, arrow ? &outs : &ins);
    }
  }
  if (!arrow) fail(&r, "-> is missing");
  d->ins = ins.v, d->n_ins = ins.n;
  d->outs = outs.v, d->n_outs = outs.n;
  d->attrs = attrs.v, d->n_attrs = attrs.n;
  return r.error ? arena_fmt(a, "%s at \"%.40s\"", r.error, r.p) : NULL;
}

/* ---- gradients ---- */

/* S or S@, with an optional ?: the forward slot or the slot of its gradient */
static const char *parse_grad_name(Parser *r) {
  const char *s = parse_name(r);
  if (*r->p == '@') {
    r->p++;
    s = joined(r->a, s, "@GRAD");
  }
  if (*r->p == '?') r->p++;
  return s;
}

static GradSlot *parse_grad_slots(Parser *r, const char *stop, int *n, bool *mapped) {
  VEC(GradSlot) v = {0};
  while (!r->error && *(r->p = skip(r->p)) && !strchr(stop, *r->p)) {
    GradSlot g;
    g.slot = g.from = parse_grad_name(r);
    if (*r->p == '=' && r->p++) {
      g.from = parse_grad_name(r);
      *mapped = true;
    }
    vec_add(r->a, &v, g);
  }
  *n = v.n;
  return v.v;
}

/* "attr=literal attr=$other" */
static void parse_grad_sets(Parser *r, GradDef *g) {
  VEC(GradSet) v = {0};
  while (!r->error && *(r->p = skip(r->p))) {
    GradSet s = {.attr = parse_name(r)};
    if (*r->p++ != '=') {
      fail(r, "= is missing");
      break;
    }
    const char *from = r->p;
    Attr literal = {0};
    if (*from == '$') {
      r->p++;
      parse_name(r);
    } else if (!attr_parse(r->a, from, &r->p, &literal))
      fail(r, "a malformed literal");
    s.value = arena_strn(r->a, from, (size_t)(r->p - from));
    vec_add(r->a, &v, s);
  }
  g->n_sets = v.n;
  g->sets = v.v;
}

const char *parse_grad(Arena *a, const char *text, const char *op, GradDef *g, bool *mapped) {
  Parser r = {a, skip(text), NULL};
  *mapped = false;
  g->per_input = !strncmp(r.p, "each ", 5);
  if (g->per_input) r.p = skip(r.p + 5);
  const char *colon = strchr(r.p, ':');
  bool named = colon && colon < r.p + strcspn(r.p, " ");
  if (named) {
    g->type = parse_name(&r);
    r.p = colon + 1;
  } else
    g->type = joined(a, op, "_grad");
  g->ins = parse_grad_slots(&r, "-", &g->n_ins, mapped);
  if (strncmp(r.p, "->", 2)) return "-> is missing in the gradient";
  r.p += 2;
  g->outs = parse_grad_slots(&r, ";", &g->n_outs, mapped);
  if (*r.p == ';') {
    r.p++;
    parse_grad_sets(&r, g);
  }
  if (!named) *mapped = false; /* slots renamed in an operator of its own */
  g->copy_attrs = !*mapped && !g->n_sets;
  return r.error ? arena_fmt(a, "%s at \"%.40s\" of the gradient", r.error, r.p) : NULL;
}

/* The slot `from` of a gradient column, as it is declared in the forward row; NULL if that has no such slot. */
static const SlotDef *forward_slot(const OpDef *d, const char *from) {
  size_t n = strlen(from), suffix = strlen("@GRAD");
  char name[128];
  if (n >= sizeof name) return NULL;
  memcpy(name, from, n + 1);
  if (n > suffix && !strcmp(from + n - suffix, "@GRAD")) name[n - suffix] = 0;
  const SlotDef *s = opdef_in(d, name);
  return s ? s : opdef_out(d, name);
}

static SlotDef *grad_slots(Arena *a, const OpDef *fwd, int n, const GradSlot *from,
                           const char **error) {
  SlotDef *v = arena_array(a, SlotDef, n);
  for (int i = 0; i < n; i++) {
    const SlotDef *s = forward_slot(fwd, from[i].from);
    if (!s)
      *error =
          arena_fmt(a, "the gradient names a slot %s, which the signature has not", from[i].from);
    v[i] = (SlotDef){.name = from[i].slot, .optional = true, .list = s && s->list};
  }
  return v;
}

OpDef *grad_def(Arena *a, const OpDef *fwd, const char *formula, ExpandFn *expand,
                const char **error) {
  const GradDef *g = fwd->grad;
  OpDef *d = arena_new_of(a, OpDef);
  *d = (OpDef){.name = g->type,
               .flags = OF_GRAD | (fwd->flags & (OF_CUSTOM | OF_HOST)),
               .n_ins = g->n_ins,
               .n_outs = g->n_outs,
               .n_attrs = fwd->n_attrs,
               .attrs = fwd->attrs,
               .formula = formula,
               .expand = expand,
               .forward = fwd,
               .examples = "",
               .meaning = joined(a, "gradient of ", fwd->name),
               .custom = fwd->custom};
  d->ins = grad_slots(a, fwd, g->n_ins, g->ins, error);
  d->outs = grad_slots(a, fwd, g->n_outs, g->outs, error);
  return d;
}

GradDef *custom_grad(Arena *a, const OpDef *d) {
  GradDef *g = arena_new_of(a, GradDef);
  g->type = joined(a, d->name, "_grad");
  g->copy_attrs = true;
  VEC(GradSlot) ins = {0}, outs = {0};
  for (int k = 0; k < d->n_ins; k++) {
    vec_add(a, &ins, ((GradSlot){d->ins[k].name, d->ins[k].name}));
    const char *s = joined(a, d->ins[k].name, "@GRAD");
    vec_add(a, &outs, ((GradSlot){s, s}));
  }
  for (int k = 0; k < d->n_outs; k++)
    vec_add(a, &ins, ((GradSlot){d->outs[k].name, d->outs[k].name}));
  for (int k = 0; k < d->n_outs; k++) {
    const char *s = joined(a, d->outs[k].name, "@GRAD");
    vec_add(a, &ins, ((GradSlot){s, s}));
  }
  g->n_ins = ins.n, g->ins = ins.v;
  g->n_outs = outs.n, g->outs = outs.v;
  return g;
}
