/* The expansion of a row written as a formula: text in, primitives out, in one pass (a Pratt parser
 * that builds Nodes as it reads; V. Pratt, "Top down operator precedence", 1973).
 *
 *   formula  = statement { ";" statement }        statement = name "=" expr
 *   expr     = or [ "?" expr ":" expr ]
 *   or       binary operators, loosest first: || && == != < <= > >= + - * / %; unary: - !
 *   primary  = number | 'text' | [ expr, ... ] | name | name ( arguments ) | ( expr )
 *
 * A name is a local, else an input slot (Out@ means Out@GRAD), else an attribute; inf, true and
 * false are numbers. Assigning to an output slot sets it; every other name becomes a local.
 * A value is a tensor (Node), or known now: a number, a text, a list of integers, or nothing (an
 * absent optional slot). Arithmetic on numbers happens now; a number beside a tensor becomes a
 * constant of its element type. `c ? a : b`, && and || with a number c evaluate only the side that
 * is taken; with a tensor c they are element by element.
 *
 * Functions: the maps of prims.def by name; builtins[] of builtin.c; and every operator of the
 * table by its name, with tensors in the order of its slots and attributes as name=value:
 * softplus(X, beta=2). Its first output is the result. Depth is bounded, so no text can overflow
 * the stack. */
#include "formula.h"

#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static Value expr(Formula *f, int min);

/* ---- scanning ---- */

static void blanks(Formula *f) {
  while (isspace((unsigned char)*f->p)) f->p++;
}

static bool accept(Formula *f, const char *token) {
  blanks(f);
  size_t n = strlen(token);
  if (strncmp(f->p, token, n) != 0) return false;
  f->p += n;
  return true;
}

static bool expect(Formula *f, const char *token) {
  if (accept(f, token)) return true;
  if (!err_any()) fm_fail(f, arena_fmt(f->x->g->arena, "'%s' is missing", token));
  return false;
}

static const char *scan_name(Formula *f) {
  blanks(f);
  size_t n = 0;
  if (!isalpha((unsigned char)*f->p) && *f->p != '_') return NULL;
  while (isalnum((unsigned char)f->p[n]) || f->p[n] == '_') n++;
  const char *name = arena_strn(f->x->g->arena, f->p, n);
  f->p += n;
  if (*f->p == '@') {
    f->p++;
    name = arena_fmt(f->x->g->arena, "%s@GRAD", name);
  }
  return name;
}

/* ---- names ---- */

static Value attr_value(Formula *f, const Attr *a) {
  int n;
  switch (a->type) {
  case AT_INT:
  case AT_BOOL:
  case AT_LONG: return fm_num((double)a->i);
  case AT_FLOAT:
  case AT_FLOAT64: return fm_num(a->f);
  case AT_STRING: return (Value){.kind = V_TEXT, .text = a->s ? a->s : ""};
  case AT_INTS:
  case AT_LONGS:
  case AT_BOOLS: {
    const int64_t *v = op_intlist(f->x->op, a->name, f->x->g->arena, &n);
    return (Value){.kind = V_LIST, .n = n, .list = v};
  }
  case AT_FLOATS:
  case AT_FLOAT64S:
  case AT_STRINGS:
    if (a->n == 0) return (Value){.kind = V_LIST};
    break;
  default: break;
  }
  err_set(E_OPR_004, "attribute %s of %s: this type of value is not supported", quoted(a->name),
          quoted(f->x->op->type));
  return (Value){0};
}

static Value name_value(Formula *f, const char *name) {
  static const struct {
    const char *name;
    double value;
  } constants[] = {{"inf", INFINITY}, {"true", 1}, {"false", 0}};
  const Op *op = f->x->op;
  if (f->skip) return (Value){0};
  Value *local = map_get(f->locals, name);
  if (local) return *local;
  if (op->def && opdef_in(op->def, name))
    return op_in(op, name, 0) ? fm_node(x_in(f->x, name)) : (Value){0};
  const Attr *a = op_attr(op, name);
  if (a) return attr_value(f, a);
  for (size_t i = 0; i < sizeof constants / sizeof *constants; i++)
    if (strcmp(constants[i].name, name) == 0) return fm_num(constants[i].value);
  return fm_fail(f, arena_fmt(f->x->g->arena,
                              "the name %s is neither a local, an input nor an attribute",
                              quoted(name)));
}

/* ---- operators ---- */

typedef struct Binary {
  const char *text;
  int level;
  Prim prim;
  bool swap, negate, logical;
} Binary;

/* Longer texts before their prefixes. */
static const Binary binaries[] = {
    {"||", 1, P_MAX, false, false, true}, {"&&", 2, P_MIN, false, false, true},
    {"==", 3, P_EQ, false, false, false}, {"!=", 3, P_EQ, false, true, false},
    {"<=", 4, P_LE, false, false, false}, {">=", 4, P_LE, true, false, false},
    {"<", 4, P_LT, false, false, false},  {">", 4, P_LT, true, false, false},
    {"+", 5, P_ADD, false, false, false}, {"-", 5, P_SUB, false, false, false},
    {"*", 6, P_MUL, false, false, false}, {"/", 6, P_DIV, false, false, false},
    {"%", 6, P_MOD, false, false, false},
};

static Value binary(Formula *f, const Binary *op, const Value *a, const Value *b) {
  Value r = op->swap ? fm_apply2(f, op->prim, b, a) : fm_apply2(f, op->prim, a, b);
  if (!op->negate) return r;
  if (r.kind == V_NUM) return fm_num(r.num == 0);
  return r.kind == V_NODE ? fm_node(fm_not(f->x->g, r.node)) : r;
}

/* && and || evaluate their right side only if a number on the left leaves it open. */
static Value logical(Formula *f, const Binary *op, Value a) {
  bool known = !f->skip && a.kind == V_NUM;
  bool settled = known && (a.num != 0) == (op->prim == P_MAX);
  if (settled) f->skip++;
  Value b = expr(f, op->level + 1);
  if (settled) f->skip--;
  if (f->skip || err_any()) return (Value){0};
  if (settled) return fm_num(op->prim == P_MAX);
  return known ? b : fm_apply2(f, op->prim, &a, &b);
}

static Value ternary(Formula *f, Value c) {
  bool known = !f->skip && c.kind != V_NODE;
  if (known && c.kind != V_NUM && !err_any())
    fm_fail(f, "a condition must be a number or a tensor");
  bool yes = known && c.num != 0;
  f->skip += known && !yes;
  Value a = expr(f, 0);
  f->skip -= known && !yes;
  if (!expect(f, ":")) return (Value){0};
  f->skip += known && yes;
  Value b = expr(f, 0);
  f->skip -= known && yes;
  if (f->skip || err_any()) return (Value){0};
  if (known) return yes ? a : b;
  const Node *like = a.kind == V_NODE ? a.node : b.node;
  if (!like) return fm_fail(f, "one side of ? : must be a tensor");
  return fm_node(g_select(f->x->g, c.node, fm_tensor(f, &a, like), fm_tensor(f, &b, like)));
}

/* ---- expressions ---- */

static Value call(Formula *f, const char *name) {
  Value v[FM_ARGS];
  int n = 0;
  if (!accept(f, ")")) {
    do {
      if (n == FM_ARGS) return fm_fail(f, "too many arguments");
      const char *start = f->p, *attr = scan_name(f);
      bool named = attr && accept(f, "=") && *f->p != '=';
      if (!named) f->p = start;
      v[n] = expr(f, 0);
      v[n++].name = named ? attr : NULL;
      if (err_any()) return (Value){0};
    } while (accept(f, ","));
    if (!expect(f, ")")) return (Value){0};
  }
  return f->skip ? (Value){0} : fm_call(f, name, n, v);
}

static Value list(Formula *f) {
  int64_t *v = arena_array(f->x->g->arena, int64_t, KL_RANK);
  int n = 0;
  if (!accept(f, "]")) {
    do {
      Value e = expr(f, 0);
      if (err_any() || n == KL_RANK) return fm_fail(f, "a malformed list");
      if (f->skip) continue;
      if (e.kind != V_NUM) return fm_fail(f, "a list holds numbers");
      v[n++] = (int64_t)e.num;
    } while (accept(f, ","));
    if (!expect(f, "]")) return (Value){0};
  }
  return (Value){.kind = V_LIST, .n = n, .list = v};
}

static Value text(Formula *f) {
  const char *end = strchr(f->p, '\'');
  if (!end) return fm_fail(f, "a text has no end");
  Value v = {.kind = V_TEXT, .text = arena_strn(f->x->g->arena, f->p, (size_t)(end - f->p))};
  f->p = end + 1;
  return v;
}

static Value unary(Formula *f, bool minus) {
  Value v = expr(f, 7);
  if (f->skip || err_any()) return (Value){0};
  if (v.kind == V_NUM) return fm_num(minus ? -v.num : v.num == 0);
  Node *n = fm_tensor(f, &v, NULL);
  if (!n) return (Value){0};
  return fm_node(minus ? fm_negated(f->x->g, n) : fm_not(f->x->g, n));
}

static Value primary(Formula *f) {
  if (accept(f, "(")) {
    Value v = expr(f, 0);
    return expect(f, ")") ? v : (Value){0};
  }
  if (accept(f, "[")) return list(f);
  if (accept(f, "'")) return text(f);
  if (accept(f, "-")) return unary(f, true);
  if (accept(f, "!")) return unary(f, false);
  if (isdigit((unsigned char)*f->p) || *f->p == '.') {
    char *end;
    double v = text_double(f->p, &end);
    if (end == f->p) return fm_fail(f, "a malformed number");
    f->p = end;
    return fm_num(v);
  }
  const char *name = scan_name(f);
  if (!name) return fm_fail(f, "a value is missing");
  return accept(f, "(") ? call(f, name) : name_value(f, name);
}

static const Binary *peek_binary(Formula *f) {
  blanks(f);
  for (size_t i = 0; i < sizeof binaries / sizeof *binaries; i++)
    if (strncmp(f->p, binaries[i].text, strlen(binaries[i].text)) == 0) return &binaries[i];
  return NULL;
}

/* An expression of operators of at least that level; level 0 includes ? :. */
static Value expr(Formula *f, int min) {
  if (err_any()) return (Value){0};
  if (f->depth >= FM_DEPTH) return fm_fail(f, "too deeply nested");
  f->depth++;
  Value a = primary(f);
  for (const Binary *op; !err_any() && (op = peek_binary(f)) && op->level >= min && min < 7;) {
    f->p += strlen(op->text);
    if (op->logical) {
      a = logical(f, op, a);
      continue;
    }
    Value b = expr(f, op->level + 1);
    a = binary(f, op, &a, &b);
  }
  if (min == 0 && !err_any() && accept(f, "?")) a = ternary(f, a);
  f->depth--;
  return a;
}

static bool assign(Formula *f, const char *name, const Value *v) {
  const OpDef *def = f->x->op->def;
  const SlotDef *slot = def ? opdef_out(def, name) : NULL;
  map_put(f->locals, name, arena_dup(f->x->g->arena, v, sizeof *v));
  if (!slot || (v->kind == V_ABSENT && slot->optional)) return true;
  Node *n = fm_tensor(f, v, NULL);
  return n && x_out(f->x, name, n);
}

bool formula_expand(Expand *x, const char *formula) {
  Formula f = {.x = x, .p = formula, .locals = map_new(x->g->arena)};
  do {
    blanks(&f);
    if (!*f.p) break;
    const char *name = scan_name(&f);
    if (!name || !expect(&f, "=")) {
      if (!err_any()) fm_fail(&f, "an assignment is needed");
      return false;
    }
    Value v = expr(&f, 0);
    if (err_any() || !assign(&f, name, &v)) return false;
  } while (accept(&f, ";"));
  if (*f.p) fm_fail(&f, "unexpected text");
  return !err_any();
}
