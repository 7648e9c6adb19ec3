/* The operator table: ops.def in, OpDefs out, found by name.
 *
 * On first use every row's signature and gradient column is parsed once (a malformed row is a programming error: it is
 * printed and the process aborts), and the definition of its gradient operator is made unless a row has it. The table
 * is then read without locks; registering a custom operator makes a new table and swaps it in, and the old one stays
 * for those who are reading it. */
#include "op_row.h"
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
/* What PaddlePaddle and its tools leave on operators of any type: names without a meaning here. */
static const char passing_signature[] =
    "activation_bits bit_length inplace Input0_threshold is_test mkldnn_data_type name "
    "Out0_threshold out_threshold Output0_threshold quant_axis quantization_type skip_quant "
    "quantize_weight_bits use_cudnn use_mkldnn use_quantizer weight_bits X0_threshold "
    "Y0_threshold ->";

typedef struct Table {
  Arena *a; /* shared by all tables; lives until the process ends */
  Map *by_name;
  int n;
  OpDef **sorted;
  OpDef *common, *passing;
} Table;

static _Atomic(Table *) table;
static pthread_mutex_t table_lock = PTHREAD_MUTEX_INITIALIZER;

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
  if (!*r->gradient) return;
  GradDef *g = arena_new_of(t->a, GradDef);
  bool mapped;
  const char *error = parse_grad(t->a, r->gradient, d->name, g, &mapped);
  if (error) bad_row(r, error);
  d->grad = g;
  OpDef *gd = grad_def(t->a, d, r->gradient_expansion.formula, r->gradient_expansion.fn, &error);
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
  t->passing = arena_new_of(a, OpDef);
  parse_signature(a, passing_signature, t->passing);
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

bool opdef_knows(const OpDef *d, const char *attr) {
  return opdef_attr(d, attr) || opdef_in(table_get()->passing, attr);
}

bool opdef_takes(const OpDef *d, const char *attr) {
  if (opdef_knows(d, attr)) return true;
  err_set(E_OPR_003, "operator `%s` has no attribute %s", d->name, quoted(attr));
  Arena *a = arena_scratch();
  const char **names = arena_array(a, const char *, d->n_attrs);
  for (int i = 0; i < d->n_attrs; i++) names[i] = d->attrs[i].dflt.name;
  const char *near = name_nearest(attr, d->n_attrs, names);
  err_help("%s%s%s`kiln ops %s` lists them.", near ? "Did you mean " : "", near ? near : "",
           near ? "? " : "", d->name);
  arena_free(a);
  return false;
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
    gd = grad_def(a, d, NULL, x_custom, &error);
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
