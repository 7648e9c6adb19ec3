/* The operator table: ops.def in, OpDefs out, found by name.
 *
 * On first use every row's signature and gradient column is parsed once (a malformed row is a programming error: it is
 * printed and the process aborts), and the definition of its gradient operator is made unless a row has it. The table
 * is then read without locks; registering a custom operator makes a new table and swaps it in, and the old one stays
 * for those who are reading it. */
#include "ir.h"
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define F(formula)
#define X(fn) extern ExpandFn x_##fn;
#define D
#define OP(name, signature, flags, expansion, gradient, gradient_expansion, examples, meaning)     \
  expansion gradient_expansion
#include "ops.def"
#undef OP
#undef F
#undef X
#undef D
extern ExpandFn x_custom;

typedef struct Expansion {
  const char *formula;
  ExpandFn *fn;
} Expansion;

typedef struct Row {
  const char *name, *signature;
  unsigned flags;
  Expansion expansion;
  const char *gradient;
  Expansion gradient_expansion;
  const char *examples, *meaning;
} Row;

static const Row rows[] = {
#define F(formula)                                                                                 \
  { formula, NULL }
#define X(fn)                                                                                      \
  { NULL, x_##fn }
#define D                                                                                          \
  { NULL, NULL }
#define OP(name, signature, flags, expansion, gradient, gradient_expansion, examples, meaning)     \
  {#name, signature, flags, expansion, gradient, gradient_expansion, examples, meaning},
#include "ops.def"
#undef OP
#undef F
#undef X
#undef D
    {0}};

/* Attributes that every operator may carry. */
static const char common_signature[] =
    "op_role=0 op_role_var=[]S op_namescope='/' op_callstack=[]S op_device='' "
    "with_quant_attr=false ->";

typedef struct Table {
  Arena *a; /* shared by all tables; lives until the process ends */
  Map *by_name;
  int n;
  OpDef **sorted;
  OpDef *common;
} Table;

static _Atomic(Table *) table;
static pthread_mutex_t table_lock = PTHREAD_MUTEX_INITIALIZER;

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

static const char *skip(const char *p) { return p + strspn(p, " \t\n,"); }

static const char *parse_name(Parser *r) {
  size_t n = strspn(r->p, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_");
  if (!n) {
    fail(r, "a name is expected");
    return "";
  }
  const char *s = arena_strn(r->a, r->p, n);
  r->p += n;
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
    s.name = arena_fmt(r->a, "%s@GRAD", name);
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

/* "X Y? axis=-1 {use_mkldnn=false} -> Out Mask~" */
static const char *parse_signature(Arena *a, const char *text, OpDef *d) {
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

typedef struct {
  const char *slot, *from;
} GradSlot;
typedef struct {
  const char *attr, *value;
} GradSet;
_Static_assert(sizeof(GradSlot) == sizeof *((GradDef *)0)->ins, "GradDef.ins");
_Static_assert(sizeof(GradSet) == sizeof *((GradDef *)0)->sets, "GradDef.sets");

/* S or S@, with an optional ?: the forward slot or the slot of its gradient */
static const char *parse_grad_name(Parser *r) {
  const char *s = parse_name(r);
  if (*r->p == '@') {
    r->p++;
    s = arena_fmt(r->a, "%s@GRAD", s);
  }
  if (*r->p == '?') r->p++;
  return s;
}

static void *parse_grad_slots(Parser *r, const char *stop, int *n, bool *mapped) {
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
  g->sets = (void *)v.v;
}

/* "[each] [type:] slots -> slots [; sets]" */
static const char *parse_grad(Arena *a, const char *text, const char *op, GradDef *g,
                              bool *mapped) {
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
    g->type = arena_fmt(a, "%s_grad", op);
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

/* The definition of the gradient operator of fwd. */
static OpDef *grad_def(Arena *a, const OpDef *fwd, Expansion x, const char **error) {
  const GradDef *g = fwd->grad;
  OpDef *d = arena_new_of(a, OpDef);
  *d = (OpDef){.name = g->type,
               .flags = OF_GRAD | (fwd->flags & (OF_CUSTOM | OF_HOST)),
               .n_ins = g->n_ins,
               .n_outs = g->n_outs,
               .n_attrs = fwd->n_attrs,
               .attrs = fwd->attrs,
               .formula = x.formula,
               .expand = x.fn,
               .forward = fwd,
               .examples = "",
               .meaning = arena_fmt(a, "gradient of %s", fwd->name),
               .custom = fwd->custom};
  d->ins = grad_slots(a, fwd, g->n_ins, (const GradSlot *)g->ins, error);
  d->outs = grad_slots(a, fwd, g->n_outs, (const GradSlot *)g->outs, error);
  return d;
}

/* ---- the table ---- */

static int compare_names(const void *x, const void *y) {
  return strcmp((*(OpDef *const *)x)->name, (*(OpDef *const *)y)->name);
}

static void table_sort(Table *t) {
  t->n = map_n(t->by_name);
  t->sorted = arena_array(t->a, OpDef *, t->n);
  for (int i = 0; i < t->n; i++) {
    void *d;
    map_at(t->by_name, i, &d);
    t->sorted[i] = d;
  }
  qsort(t->sorted, (size_t)t->n, sizeof *t->sorted, compare_names);
}

static _Noreturn void bad_row(const Row *r, const char *why) {
  fprintf(stderr, "ir/ops.def: OP(%s, \"%s\", ..., \"%s\", ...): %s\n", r->name, r->signature,
          r->gradient, why);
  abort();
}

static void add_row(Table *t, const Row *r) {
  OpDef *d = arena_new_of(t->a, OpDef);
  *d = (OpDef){.name = r->name,
               .flags = r->flags,
               .formula = r->expansion.formula,
               .expand = r->expansion.fn,
               .examples = r->examples,
               .meaning = r->meaning};
  const char *error = parse_signature(t->a, r->signature, d);
  if (!error && *r->name == '"') error = "the name must stand without quotes";
  if (!error && map_get(t->by_name, d->name)) error = "a second row of this name";
  if (error) bad_row(r, error);
  map_put(t->by_name, d->name, d);
}

static void add_grad(Table *t, const Row *r) {
  OpDef *d = map_get(t->by_name, r->name);
  if (!*skip(r->gradient)) return;
  GradDef *g = arena_new_of(t->a, GradDef);
  bool mapped;
  const char *error = parse_grad(t->a, r->gradient, d->name, g, &mapped);
  if (error) bad_row(r, error);
  d->grad = g;
  OpDef *gd = grad_def(t->a, d, r->gradient_expansion, &error);
  if (error) bad_row(r, error);
  if (!mapped && !map_get(t->by_name, g->type)) map_put(t->by_name, g->type, gd);
}

static Table *table_build(Arena *a) {
  Table *t = arena_new_of(a, Table);
  t->a = a;
  t->by_name = map_new(a);
  int n = (int)(sizeof rows / sizeof *rows) - 1;
  for (int i = 0; i < n; i++) add_row(t, &rows[i]);
  for (int i = 0; i < n; i++) add_grad(t, &rows[i]);
  t->common = arena_new_of(a, OpDef);
  parse_signature(a, common_signature, t->common);
  table_sort(t);
  return t;
}

static Table *table_get(void) {
  if (atomic_load(&table)) return atomic_load(&table);
  pthread_mutex_lock(&table_lock);
  if (!atomic_load(&table)) {
    Arena *volatile a = NULL;
    MemGuard guard;
    if (MEM_GUARD(guard)) {
      arena_free(a);
      pthread_mutex_unlock(&table_lock);
      mem_rethrow();
    }
    a = arena_new();
    atomic_store(&table, table_build(a));
    mem_unguard(&guard);
  }
  pthread_mutex_unlock(&table_lock);
  return atomic_load(&table);
}

const OpDef *opdef_find(const char *type) { return map_get(table_get()->by_name, type); }
int opdef_n(void) { return table_get()->n; }
const OpDef *opdef_at(int i) { return table_get()->sorted[i]; }

static const SlotDef *find_slot(int n, const SlotDef *v, const char *name) {
  for (int i = 0; i < n; i++)
    if (!strcmp(v[i].name, name)) return &v[i];
  return NULL;
}

const SlotDef *opdef_in(const OpDef *d, const char *slot) {
  return find_slot(d->n_ins, d->ins, slot);
}
const SlotDef *opdef_out(const OpDef *d, const char *slot) {
  return find_slot(d->n_outs, d->outs, slot);
}

const AttrDef *opdef_attr(const OpDef *d, const char *attr) {
  const OpDef *from[2] = {d, table_get()->common};
  for (int k = 0; k < 2; k++)
    for (int i = 0; from[k] && i < from[k]->n_attrs; i++)
      if (!strcmp(from[k]->attrs[i].dflt.name, attr)) return &from[k]->attrs[i];
  return NULL;
}

const char *opdef_nearest(const char *type) {
  Table *t = table_get();
  Arena *a = arena_scratch();
  const char **names = arena_array(a, const char *, t->n);
  for (int i = 0; i < t->n; i++) names[i] = t->sorted[i]->name;
  const char *best = name_nearest(type, t->n, names);
  arena_free(a);
  return best;
}

/* ---- custom operators ---- */

/* All inputs, all outputs, gradients of all outputs -> gradients of all inputs. */
static GradDef *custom_grad(Arena *a, const OpDef *d) {
  GradDef *g = arena_new_of(a, GradDef);
  g->type = arena_fmt(a, "%s_grad", d->name);
  g->copy_attrs = true;
  VEC(GradSlot) ins = {0}, outs = {0};
  for (int k = 0; k < d->n_ins; k++) {
    vec_add(a, &ins, ((GradSlot){d->ins[k].name, d->ins[k].name}));
    const char *s = arena_fmt(a, "%s@GRAD", d->ins[k].name);
    vec_add(a, &outs, ((GradSlot){s, s}));
  }
  for (int k = 0; k < d->n_outs; k++)
    vec_add(a, &ins, ((GradSlot){d->outs[k].name, d->outs[k].name}));
  for (int k = 0; k < d->n_outs; k++) {
    const char *s = arena_fmt(a, "%s@GRAD", d->outs[k].name);
    vec_add(a, &ins, ((GradSlot){s, s}));
  }
  g->n_ins = ins.n, g->ins = (void *)ins.v;
  g->n_outs = outs.n, g->outs = (void *)outs.v;
  return g;
}

static bool check_custom(const CustomOp *op) {
  if (!op || !op->name || !op->signature)
    return err_set(E_PLG_001, "a custom operator has no name or no signature");
  if (!*op->name ||
      op->name[strspn(op->name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")])
    return err_set(E_PLG_001, "custom operator %s: a name consists of letters, digits and _",
                   quoted(op->name));
  if (!op->infer || !op->forward)
    return err_set(E_PLG_001, "custom operator %s: it must have an infer and a forward function",
                   quoted(op->name));
  return true;
}

/* With the lock held. */
static bool register_locked(const Table *old, const CustomOp *op) {
  Arena *a = old->a;
  CustomOp *copy = arena_dup(a, op, sizeof *op);
  copy->name = arena_str(a, op->name);
  copy->signature = arena_str(a, op->signature);
  OpDef *d = arena_new_of(a, OpDef), *gd = NULL;
  *d = (OpDef){.name = copy->name,
               .flags = OF_CUSTOM,
               .expand = x_custom,
               .examples = "",
               .custom = copy,
               .meaning = "custom operator"};
  const char *error = parse_signature(a, copy->signature, d);
  if (!error && !d->n_outs) error = "it has no output";
  if (error)
    return err_set(E_PLG_001, "custom operator %s: signature %s: %s", op->name,
                   quoted(op->signature), error);
  if (op->backward) {
    d->grad = custom_grad(a, d);
    gd = grad_def(a, d, (Expansion){NULL, x_custom}, &error);
  }
  if (map_get(old->by_name, d->name) || (gd && map_get(old->by_name, gd->name))) {
    err_set(E_PLG_001, "custom operator %s: an operator of this name is already there", op->name);
    err_help("Give the custom operator another name.");
    return false;
  }
  Table *t = arena_dup(a, old, sizeof *old);
  t->by_name = map_new(a);
  for (int i = 0; i < old->n; i++) map_put(t->by_name, old->sorted[i]->name, old->sorted[i]);
  map_put(t->by_name, d->name, d);
  if (gd) map_put(t->by_name, gd->name, gd);
  table_sort(t);
  atomic_store(&table, t);
  return true;
}

bool opdef_register(const CustomOp *op) {
  if (!check_custom(op)) return false;
  table_get();
  pthread_mutex_lock(&table_lock);
  MemGuard guard;
  if (MEM_GUARD(guard)) {
    pthread_mutex_unlock(&table_lock);
    return false;
  }
  bool ok = register_locked(atomic_load(&table), op);
  mem_unguard(&guard);
  pthread_mutex_unlock(&table_lock);
  return ok;
}
