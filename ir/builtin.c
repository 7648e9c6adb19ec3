/* Functions of formulas: arithmetic on values, the builtins, and operators of the table used as
 * functions. In: a name and evaluated arguments; out: a value, whose Nodes stand in the graph. The
 * language is described in formula.c. */
#include "formula.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static __thread int op_depth; /* operators inside formulas of operators */

/* ---- values and arithmetic ---- */

Value fm_fail(Formula *f, const char *what) {
  err_set(E_OPR_004, "%s: %s", f->x->op->type, what);
  err_note("at \"%.40s\" of its formula", f->p);
  return (Value){0};
}

Value fm_num(double v) { return (Value){.kind = V_NUM, .num = v}; }

Value fm_node(Node *n) {
  return n ? (Value){.kind = V_NODE, .node = n} : (Value){.kind = V_ABSENT};
}

Node *fm_tensor(Formula *f, const Value *v, const Node *like) {
  if (v->kind == V_NODE) return v->node;
  if (v->kind == V_NUM && like) return g_const(f->x->g, like->dtype, v->num);
  if (!err_any()) {
    if (v->kind == V_ABSENT)
      fm_fail(f, "an optional input is needed here");
    else
      fm_fail(f, "a tensor is needed here");
  }
  return NULL;
}

static double number_binary(Prim p, double a, double b) {
  switch (p) {
  case P_ADD: return a + b;
  case P_SUB: return a - b;
  case P_MUL: return a * b;
  case P_DIV: return a / b;
  case P_MOD: return a - b * floor(a / b);
  case P_POW: return pow(a, b);
  case P_MAX: return a > b ? a : b;
  case P_MIN: return a < b ? a : b;
  case P_LT: return a < b;
  case P_LE: return a <= b;
  default: return a == b;
  }
}

Node *fm_not(Graph *g, Node *n) { return g_map2c(g, P_EQ, n, 0); }

Value fm_apply2(Formula *f, Prim p, const Value *a, const Value *b) {
  if (f->skip || err_any()) return (Value){0};
  if (a->kind == V_NUM && b->kind == V_NUM) return fm_num(number_binary(p, a->num, b->num));
  if (a->kind == V_TEXT && b->kind == V_TEXT) {
    if (p != P_EQ) return fm_fail(f, "texts can only be compared");
    return fm_num(strcmp(a->text, b->text) == 0);
  }
  if (a->kind == V_NODE && b->kind == V_NUM) return fm_node(g_map2c(f->x->g, p, a->node, b->num));
  const Node *like = a->kind == V_NODE ? a->node : b->node;
  return fm_node(g_map2(f->x->g, p, fm_tensor(f, a, like), fm_tensor(f, b, like)));
}

Node *fm_negated(Graph *g, Node *x) {
  if (!x) return NULL;
  if (x->dtype == DT_BOOL) return fm_not(g, x);
  return g_map2(g, P_SUB, g_full(g, x->dtype, 0, x->rank, x->dims), x);
}

/* ---- builtin functions ---- */

typedef Value BuiltinFn(Formula *f, int n, const Value *v);

static bool truth(int n, const Value *v, int i) {
  return i < n && v[i].kind == V_NUM && v[i].num != 0;
}

/* Argument i as a set of axes of x; absent or [] means all. Axes 0 and -1 of a scalar are allowed.
 * */
static bool axes_of(Formula *f, const Node *x, int n, const Value *v, int i, uint32_t *axes) {
  int64_t one;
  const int64_t *list = NULL;
  int count = 0;
  if (i < n && v[i].kind == V_NUM) {
    one = (int64_t)v[i].num;
    list = &one;
    count = 1;
  } else if (i < n && v[i].kind == V_LIST) {
    list = v[i].list;
    count = v[i].n;
  }
  *axes = count ? 0 : (1u << x->rank) - 1;
  for (int k = 0; k < count; k++) {
    int64_t a = list[k] < 0 ? list[k] + x->rank : list[k];
    if (x->rank == 0 && (list[k] == 0 || list[k] == -1)) continue;
    if (a < 0 || a >= x->rank) {
      err_set(E_SHP_003, "%s: axis %lld of %s", f->x->op->type, (long long)list[k],
              shape_text(x->dtype, x->rank, x->dims));
      err_help("The operand has %d dimensions; negative axes count from the last.", x->rank);
      return false;
    }
    if (*axes >> a & 1) {
      err_set(E_SHP_003, "%s: axis %lld is given twice", f->x->op->type, (long long)a);
      return false;
    }
    *axes |= 1u << a;
  }
  return true;
}

/* An element type by its number in VarType; -1: `same`, DT_NONE if that stands for nothing here. */
static DType type_of(Formula *f, double number, DType same) {
  DType t = number == -1                   ? same
            : number >= 0 && number < 1000 ? dtype_from_paddle((int)number)
                                           : DT_NONE;
  if (t == DT_NONE)
    err_set(E_TYP_002, "%s: element type %g is not supported", f->x->op->type, number);
  return t;
}

static Value reduce(Formula *f, Prim p, int n, const Value *v) {
  Node *x = fm_tensor(f, &v[0], NULL);
  uint32_t axes;
  if (!x || !axes_of(f, x, n, v, 1, &axes)) return (Value){0};
  return fm_node(g_reduce(f->x->g, p, x, axes, truth(n, v, 2)));
}

static Value b_rsum(Formula *f, int n, const Value *v) { return reduce(f, P_RSUM, n, v); }
static Value b_rmax(Formula *f, int n, const Value *v) { return reduce(f, P_RMAX, n, v); }
static Value b_rprod(Formula *f, int n, const Value *v) { return reduce(f, P_RPROD, n, v); }

/* What orders the other way: -x; of integers -1 - x, which has no overflow; of bool !x. */
static Node *turned(Graph *g, Node *x) {
  Node *y = fm_negated(g, x);
  bool whole = y && !dtype_is_float(y->dtype) && y->dtype != DT_BOOL;
  return whole ? g_map2(g, P_SUB, y, g_full_int(g, y->dtype, 1, 0, NULL)) : y;
}

static Value b_rmin(Formula *f, int n, const Value *v) {
  Node *x = fm_tensor(f, &v[0], NULL);
  uint32_t axes;
  if (!x || !axes_of(f, x, n, v, 1, &axes)) return (Value){0};
  Graph *g = f->x->g;
  return fm_node(turned(g, g_reduce(g, P_RMAX, turned(g, x), axes, truth(n, v, 2))));
}

static Value b_rmean(Formula *f, int n, const Value *v) {
  Value s = b_rsum(f, n, v);
  uint32_t axes;
  if (s.kind != V_NODE || !axes_of(f, v[0].node, n, v, 1, &axes)) return (Value){0};
  double count = 1;
  for (int d = 0; d < v[0].node->rank; d++)
    if (axes >> d & 1) count *= (double)v[0].node->dims[d];
  return count == 1 ? s : fm_node(g_map2c(f->x->g, P_DIV, s.node, count));
}

/* argmax(x, axis, keep, dtype, flatten) */
static Value b_argmax(Formula *f, int n, const Value *v) {
  Node *x = fm_tensor(f, &v[0], NULL);
  uint32_t axes;
  DType t = n > 3 && v[3].kind == V_NUM ? type_of(f, v[3].num, DT_INT64) : DT_INT64;
  if (!x || t == DT_NONE || !axes_of(f, x, truth(n, v, 4) ? 1 : n, v, 1, &axes)) return (Value){0};
  for (int d = 0; d < x->rank; d++)
    if (axes >> d & 1 && x->dims[d] == 0) {
      err_set(E_OPR_003, "axis %d has no elements", d);
      return (Value){0};
    }
  Node *r = g_argmax(f->x->g, x, axes, truth(n, v, 2), t);
  return fm_node(r);
}

static Value b_has(Formula *f, int n, const Value *v) {
  (void)f, (void)n;
  return fm_num(v[0].kind != V_ABSENT);
}

/* Is it an input that holds rows of a gradient (SelectedRows)? */
static Value b_isrows(Formula *f, int n, const Value *v) {
  (void)n;
  const Op *op = f->x->op;
  Node *x = fm_tensor(f, &v[0], NULL);
  bool rows = false;
  for (int s = 0; x && op->block && s < op->ins.n; s++)
    for (int k = 0; k < op->ins.v[s].n; k++) {
      const char *name = op->ins.v[s].args[k];
      const Var *in = block_find_var(op->block, name);
      rows = rows || (in && in->kind == VK_SELECTED_ROWS && map_get(f->x->env, name) == x);
    }
  return fm_num(rows);
}

static Value b_isfloat(Formula *f, int n, const Value *v) {
  (void)n;
  Node *x = fm_tensor(f, &v[0], NULL);
  return fm_num(x && dtype_is_float(x->dtype));
}

static Value b_isbool(Formula *f, int n, const Value *v) {
  (void)n;
  Node *x = fm_tensor(f, &v[0], NULL);
  return fm_num(x && x->dtype == DT_BOOL);
}

/* real(x): whole numbers of 32 or 64 bits as float32 */
static Value b_real(Formula *f, int n, const Value *v) {
  (void)n;
  Node *x = fm_tensor(f, &v[0], NULL);
  bool whole = x && (x->dtype == DT_INT32 || x->dtype == DT_INT64);
  return fm_node(whole ? g_cast(f->x->g, x, DT_FLOAT32) : x);
}

static Value b_rank(Formula *f, int n, const Value *v) {
  (void)n;
  Node *x = fm_tensor(f, &v[0], NULL);
  return fm_num(x ? x->rank : 0);
}

static Value b_numel(Formula *f, int n, const Value *v) {
  (void)n;
  Node *x = fm_tensor(f, &v[0], NULL);
  return fm_num(x ? (double)node_numel(x) : 0);
}

/* dim(x, axis) */
static Value b_dim(Formula *f, int n, const Value *v) {
  Node *x = fm_tensor(f, &v[0], NULL);
  uint32_t axes;
  if (!x || !axes_of(f, x, n, v, 1, &axes)) return (Value){0};
  for (int d = 0; d < x->rank; d++)
    if (axes >> d & 1) return fm_num((double)x->dims[d]);
  return fm_num(1);
}

static Value b_num(Formula *f, int n, const Value *v) {
  (void)n;
  if (v[0].kind == V_NUM) return v[0];
  if (v[0].kind != V_TEXT) return fm_fail(f, "num() takes a text");
  return fm_num(text_double(v[0].text, NULL));
}

/* cast(x, to): to is a number of VarType (-1: x's own type), a tensor of that type, or its name. */
static Value b_cast(Formula *f, int n, const Value *v) {
  Node *x = fm_tensor(f, &v[0], NULL);
  DType t = DT_NONE;
  if (!x || n < 2) return (Value){0};
  if (v[1].kind == V_NODE)
    t = v[1].node->dtype;
  else if (v[1].kind == V_TEXT)
    t = dtype_find(v[1].text);
  else if (v[1].kind == V_NUM)
    t = type_of(f, v[1].num, x->dtype);
  return t == DT_NONE ? (Value){0} : fm_node(g_cast(f->x->g, x, t));
}

/* convert(x, to): as cast, but -1 is no type. */
static Value b_convert(Formula *f, int n, const Value *v) {
  Node *x = fm_tensor(f, &v[0], NULL);
  if (!x || v[1].kind != V_NUM) return fm_fail(f, "convert takes a tensor and a number");
  DType t = type_of(f, v[1].num, DT_NONE);
  (void)n;
  return t == DT_NONE ? (Value){0} : fm_node(g_cast(f->x->g, x, t));
}

/* reshape(x, list) or reshape(x, like) */
static Value b_reshape(Formula *f, int n, const Value *v) {
  Node *x = fm_tensor(f, &v[0], NULL);
  if (!x || n < 2) return (Value){0};
  if (v[1].kind == V_NODE) return fm_node(g_reshape(f->x->g, x, v[1].node->rank, v[1].node->dims));
  if (v[1].kind != V_LIST) return fm_fail(f, "reshape takes a list");
  return fm_node(g_reshape(f->x->g, x, v[1].n, v[1].list));
}

/* scalar(x [, like]): the one element as rank 0, in the type of like */
static Value b_scalar(Formula *f, int n, const Value *v) {
  if (v[0].kind == V_NUM) return v[0];
  Node *x = fm_tensor(f, &v[0], NULL);
  if (x) x = g_reshape(f->x->g, x, 0, NULL);
  if (x && n > 1 && v[1].kind == V_NODE) x = g_cast(f->x->g, x, v[1].node->dtype);
  return fm_node(x);
}

/* expand(x, like) */
static Value b_expand(Formula *f, int n, const Value *v) {
  Node *x = fm_tensor(f, &v[0], NULL);
  if (!x || n < 2 || v[1].kind != V_NODE) return fm_fail(f, "expand takes two tensors");
  return fm_node(g_expand_to(f->x->g, x, v[1].node->rank, v[1].node->dims));
}

/* full(like, value [, dtype]) */
static Value b_full(Formula *f, int n, const Value *v) {
  Node *x = fm_tensor(f, &v[0], NULL);
  if (!x || n < 2 || v[1].kind != V_NUM) return (Value){0};
  DType t = n > 2 && v[2].kind == V_NUM ? type_of(f, v[2].num, x->dtype) : x->dtype;
  if (t == DT_NONE) return (Value){0};
  return fm_node(g_full(f->x->g, t, v[1].num, x->rank, x->dims));
}

/* iota(like, axis): int64 */
static Value b_iota(Formula *f, int n, const Value *v) {
  Node *x = fm_tensor(f, &v[0], NULL);
  uint32_t axes;
  if (!x || !axes_of(f, x, n, v, 1, &axes)) return (Value){0};
  int axis = 0;
  while (axis < x->rank - 1 && !(axes >> axis & 1)) axis++;
  return fm_node(g_iota(f->x->g, DT_INT64, x->rank, x->dims, axis));
}

/* keep(r, x, axes): r, a reduction of x over those axes, with the axes back as 1 */
static Value b_keep(Formula *f, int n, const Value *v) {
  Node *r = fm_tensor(f, &v[0], NULL);
  Node *x = r && n > 1 ? fm_tensor(f, &v[1], NULL) : NULL;
  uint32_t axes;
  if (!x || !axes_of(f, x, n, v, 2, &axes)) return (Value){0};
  int64_t dims[KL_RANK];
  for (int d = 0; d < x->rank; d++) dims[d] = axes >> d & 1 ? 1 : x->dims[d];
  return fm_node(g_reshape(f->x->g, r, x->rank, dims));
}

/* align(a, b, axis): if a has the lower rank, its dimensions stand at those of b from axis on (-1:
 * at the end) */
static Value b_align(Formula *f, int n, const Value *v) {
  Node *a = fm_tensor(f, &v[0], NULL);
  Node *b = a && n > 2 ? fm_tensor(f, &v[1], NULL) : NULL;
  if (!b || v[2].kind != V_NUM) return (Value){0};
  int64_t axis = (int64_t)v[2].num;
  int more = b->rank - a->rank;
  if (more == 0 && axis > 0 && node_numel(a) >= 0 && node_numel(b) >= 0 && !node_same_shape(a, b)) {
    err_set(E_SHP_003, "%s: axis %lld with two shapes of rank %d", f->x->op->type, (long long)axis,
            a->rank);
    err_help("With equal ranks and different shapes the axis must be -1 or 0.");
    return (Value){0};
  }
  if (more <= 0) return fm_node(a);
  if (axis < 0) axis += more + 1;
  int rank = a->rank;
  while (rank > 0 && axis + rank > b->rank && a->dims[rank - 1] == 1)
    rank--; /* [C, 1, 1] at axis 1 of [N, C] */
  if (axis < 0 || axis + rank > b->rank) {
    err_set(E_SHP_003, "%s: axis %lld leaves no room for %s in %s", f->x->op->type, (long long)axis,
            shape_text(a->dtype, a->rank, a->dims), shape_text(b->dtype, b->rank, b->dims));
    return (Value){0};
  }
  int64_t dims[KL_RANK];
  for (int d = 0; d < b->rank; d++) dims[d] = d >= axis && d < axis + rank ? a->dims[d - axis] : 1;
  return fm_node(g_reshape(f->x->g, a, b->rank, dims));
}

typedef struct Builtin {
  const char *name;
  int min_args;
  BuiltinFn *fn;
} Builtin;

static const Builtin builtins[] = {
    {"align", 3, b_align},     {"argmax", 1, b_argmax},   {"cast", 2, b_cast},
    {"convert", 2, b_convert}, {"dim", 2, b_dim},         {"expand", 2, b_expand},
    {"full", 2, b_full},       {"has", 1, b_has},         {"iota", 2, b_iota},
    {"isbool", 1, b_isbool},   {"isfloat", 1, b_isfloat}, {"isrows", 1, b_isrows},
    {"keep", 3, b_keep},       {"num", 1, b_num},         {"numel", 1, b_numel},
    {"rank", 1, b_rank},       {"real", 1, b_real},       {"reshape", 2, b_reshape},
    {"rmax", 1, b_rmax},       {"rmean", 1, b_rmean},     {"rmin", 1, b_rmin},
    {"rprod", 1, b_rprod},     {"rsum", 1, b_rsum},       {"scalar", 1, b_scalar},
};

/* ---- calls ---- */

static double number_unary(Prim p, double a) {
  switch (p) {
  case P_EXP: return exp(a);
  case P_LOG: return log(a);
  case P_SQRT: return sqrt(a);
  case P_SIN: return sin(a);
  case P_TANH: return tanh(a);
  case P_ERF: return erf(a);
  default: return floor(a);
  }
}

static Value call_map(Formula *f, Prim p, int n, const Value *v) {
  if (n != prim_info[p].n_in) return fm_fail(f, "wrong number of arguments");
  if (n == 2) return fm_apply2(f, p, &v[0], &v[1]);
  if (v[0].kind == V_NUM) return fm_num(number_unary(p, v[0].num));
  return fm_node(g_map1(f->x->g, p, fm_tensor(f, &v[0], NULL)));
}

static void set_attr(Graph *g, Op *op, const Value *v) {
  const AttrDef *d = opdef_attr(op->def, v->name);
  Attr a = {.name = v->name, .type = d ? d->dflt.type : AT_FLOAT};
  if (v->kind == V_TEXT) {
    a.type = AT_STRING;
    a.s = v->text;
  } else if (v->kind == V_LIST) {
    a.n = v->n;
    a.is = (int64_t *)v->list;
  } else if (a.type == AT_FLOAT || a.type == AT_FLOAT64)
    a.f = v->num;
  else
    a.i = (int64_t)v->num;
  vec_add(g->arena, &op->attrs, a);
}

static void set_slot(Graph *g, Op *op, bool in, const char *slot, const char *arg) {
  Slot s = {slot, 1, arena_array(g->arena, const char *, 1)};
  s.args[0] = arg;
  if (in)
    vec_add(g->arena, &op->ins, s);
  else
    vec_add(g->arena, &op->outs, s);
}

/* The first output of an operator of the table, applied to nodes. */
static Value call_op(Formula *f, const OpDef *def, int n, const Value *v) {
  Graph *g = f->x->g;
  Expand inner = {g, NULL, map_new(g->arena), NULL, NULL};
  Op *op = arena_new_of(g->arena, Op);
  op->type = def->name;
  op->def = def;
  int slot = 0;
  for (int i = 0; i < n; i++) {
    if (v[i].name) {
      set_attr(g, op, &v[i]);
      continue;
    }
    if (slot >= def->n_ins) return fm_fail(f, "too many tensors for the operator");
    const char *name = def->ins[slot++].name;
    if (v[i].kind == V_ABSENT) continue;
    Node *node = fm_tensor(f, &v[i], NULL);
    if (!node) return (Value){0};
    set_slot(g, op, true, name, name);
    map_put(inner.env, name, node);
  }
  if (def->n_outs == 0 || op_depth >= FM_DEPTH)
    return fm_fail(f, "the operator cannot be used here");
  const char *out = arena_fmt(g->arena, "%s result", f->x->op->type);
  set_slot(g, op, false, def->outs[0].name, out);
  op_depth++;
  bool ok = expand_op(&inner, op);
  op_depth--;
  return ok ? fm_node(map_get(inner.env, out)) : (Value){0};
}

Value fm_call(Formula *f, const char *name, int n, const Value *v) {
  for (size_t i = 0; i < sizeof builtins / sizeof *builtins; i++)
    if (strcmp(builtins[i].name, name) == 0)
      return n < builtins[i].min_args ? fm_fail(f, "too few arguments") : builtins[i].fn(f, n, v);
  for (int p = 0; p < P_N; p++)
    if (prim_is_map((Prim)p) && prim_info[p].n_in < 3 && strcmp(prim_info[p].name, name) == 0)
      return call_map(f, (Prim)p, n, v);
  const OpDef *def = opdef_find(name);
  return def ? call_op(f, def, n, v)
             : fm_fail(f, arena_fmt(f->x->g->arena, "there is no function %s", quoted(name)));
}
