/* Random programs. In: a seed. Out: a program of up to 25 operators with its feeds and parameters, and the values in it; then,
 * if it is asked for, gradients and updates.
 *
 * Feeds of many shapes come first, also with sizes 0 and 1 and an unknown batch. Operators are rows of a table, applied mostly
 * to late values so that chains arise; a row is taken if its operands can be made, inference accepts it, and the result stays of
 * a size at which rounding errors do not show. Batch normalisation, updates in place, repeated operators and swaps of two
 * variables are made by functions of their own. */
#include "randprog.h"
#include "../passes/passes.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

/* ---- the operators ---- */

/* One way to use an operator: randprog.def has the columns. */
enum { JUMPS = 1, KEEPS = 2 };
typedef struct Row {
  const char *type, *ins, *attrs;
  int least, most;
  char size;
  int flags;
} Row;
static const Row rows[] = {
#define ROW(...) {__VA_ARGS__},
#include "randprog.def"
#undef ROW
};
enum { N_ROWS = sizeof rows / sizeof *rows };

/* ---- making a program ---- */

int gen_pick(Gen *g, int n) { return (int)test_random(&g->seed, 0, n - 1e-9); }

static Var *declare(Gen *g, const char *prefix, DType t, int rank, const int64_t *dims) {
  char name[32];
  snprintf(name, sizeof name, "%s%d", prefix, g->n_var++);
  return block_add_var(g->b, name, VK_TENSOR, t, rank, dims);
}

/* A parameter; its name tells what it holds: w numbers, p positive numbers, i indices, q conditions. */
static Var *parameter(Gen *g, const char *prefix, DType t, int rank, const int64_t *dims) {
  for (int d = 0; d < rank; d++)
    if (dims[d] < 0 || dims[d] > 512) return NULL;
  Var *v = declare(g, prefix, t, rank, dims);
  v->persistable = true;
  v->is_parameter = *prefix == 'w' || *prefix == 'p';
  v->stop_gradient = !v->is_parameter;
  return v;
}

static bool same_dims(const Var *a, const Var *b) {
  return a->rank == b->rank && a->dtype == b->dtype &&
         !memcmp(a->dims, b->dims, sizeof *a->dims * (size_t)a->rank);
}

static const Value *like(Gen *g, const Var *x) {
  int from = gen_pick(g, g->n);
  for (int i = 0; i < g->n; i++)
    if (same_dims(g->v[(from + i) % g->n].var, x)) return &g->v[(from + i) % g->n];
  return NULL;
}

/* The last dimensions of x, some of them 1. */
static Var *broadcast(Gen *g, const Var *x, const char *prefix) {
  int64_t dims[KL_VAR_RANK];
  int rank = gen_pick(g, x->rank + 1);
  for (int d = 0; d < rank; d++) {
    int64_t n = x->dims[x->rank - rank + d];
    dims[d] = n < 0 || gen_pick(g, 3) == 0 ? 1 : n;
  }
  return parameter(g, prefix, DT_FLOAT32, rank, dims);
}

static Var *filter(Gen *g, const Var *x, char kind) {
  if (x->rank != 4) return NULL;
  int64_t c = x->dims[1], k = 1 + gen_pick(g, 3), o = 1 + gen_pick(g, 4);
  int64_t w[4] = {kind == 'w' ? o : c,
                  kind == 'd'   ? 1
                  : kind == 'w' ? c
                                : o,
                  k, 1 + gen_pick(g, 3)};
  return kind == 'd' && c != 3 ? NULL : parameter(g, "w", DT_FLOAT32, 4, w);
}

static Var *operand(Gen *g, char kind, const Value *first, Value *out) {
  const Var *x = first->var;
  const Value *same;
  int64_t dims[KL_VAR_RANK];
  *out = (Value){NULL, 1, true};
  switch (kind) {
  case '=':
    same = like(g, x);
    if (same) *out = *same;
    break;
  case 'b': out->var = broadcast(g, x, "w"); break;
  case 'p': out->var = broadcast(g, x, "p"), out->size = 2; break;
  case 'm':
    dims[0] = x->rank ? x->dims[x->rank - 1] : 1, dims[1] = 1 + gen_pick(g, 5);
    out->var = parameter(g, "w", DT_FLOAT32, 2, dims);
    break;
  case 'w':
  case 'd':
  case 't': out->var = filter(g, x, kind); break;
  case 'c': out->var = x->rank > 1 ? parameter(g, "w", DT_FLOAT32, 1, &x->dims[1]) : NULL; break;
  case 'l': out->var = parameter(g, "w", DT_FLOAT32, 1, &x->dims[x->rank - 1]); break;
  case 'q':
    memcpy(dims, x->dims, sizeof dims);
    for (int d = 0; d < x->rank; d++)
      if (dims[d] < 0) dims[d] = 1;
    out->var = parameter(g, "q", DT_BOOL, x->rank, dims);
    break;
  case 'g': /* all zeros fit any dimension but an empty one */
    dims[0] = 3;
    out->var = parameter(g, "i", DT_INT64, 1, dims);
    break;
  case 'u':
    memcpy(dims, x->dims, sizeof dims);
    dims[0] = 3;
    out->var = parameter(g, "w", DT_FLOAT32, x->rank, dims);
    break;
  default: break;
  }
  return out->var;
}

static void shape_list(Gen *g, const Var *x, Str *s) {
  int64_t n = 1;
  for (int d = 0; d < x->rank; d++) n *= x->dims[d];
  int64_t f = 1 + gen_pick(g, 4);
  if (n > 0 && n % f == 0)
    str_fmt(s, "[%lld,%lld]", (long long)(gen_pick(g, 2) ? f : n / f), (long long)-1);
  else
    str_add(s, "[-1,1]");
}

static void permutation(Gen *g, int rank, Str *s) {
  int p[KL_VAR_RANK];
  for (int i = 0; i < rank; i++) {
    int j = gen_pick(g, i + 1);
    p[i] = p[j], p[j] = i;
  }
  for (int i = 0; i < rank; i++) str_fmt(s, "%s%d", i ? "," : "[", p[i]);
  str_add(s, "]");
}

static void axes(Gen *g, int rank, Str *s) {
  int n = 0;
  for (int d = 0; d < rank; d++)
    if (gen_pick(g, 2)) str_fmt(s, "%s%d", n++ ? "," : "[", gen_pick(g, 2) ? d : d - rank);
  str_add(s, n ? "]" : "[0]");
}

static void pairs(Gen *g, int rank, Str *s) {
  for (int d = 0; d < rank; d++)
    str_fmt(s, "%s%d,%d", d ? "," : "[", gen_pick(g, 2), gen_pick(g, 3));
  str_add(s, "]");
}

static const char *fill_in(Gen *g, const char *attrs, const Var *x) {
  static const char types[] = {0, 2, 3, 4, 5, 5, 6, 20, 21, 22};
  Str s;
  str_init(&s, g->p->arena);
  str_add(&s, "");
  for (const char *c = attrs; *c; c++) {
    if (*c != '%') {
      str_addn(&s, c, 1);
      continue;
    }
    switch (*++c) {
    case 'a': str_fmt(&s, "%d", x->rank ? gen_pick(g, 2 * x->rank) - x->rank : 0); break;
    case 'A': axes(g, x->rank, &s); break;
    case 'P': permutation(g, x->rank, &s); break;
    case 'S': shape_list(g, x, &s); break;
    case 'D': pairs(g, x->rank, &s); break;
    case 'f': str_fmt(&s, "%d", dtype_info[x->dtype].paddle); break;
    case 't': str_fmt(&s, "%d", types[gen_pick(g, (int)sizeof types)]); break;
    case 'b': str_add(&s, gen_pick(g, 2) ? "true" : "false"); break;
    case 'z': str_fmt(&s, "%d", gen_pick(g, 3)); break;
    case 'n': str_fmt(&s, "%d", 1 + gen_pick(g, 3)); break;
    case 'i': str_fmt(&s, "%d", gen_pick(g, 7) - 3); break;
    }
  }
  return s.s;
}

/* NAME=VALUE words, separated by spaces. */
static void set_attrs(Op *op, const char *text) {
  Arena *a = op->block->prog->arena;
  while (*text) {
    Attr v;
    size_t n = strcspn(text, "=");
    const char *name = arena_strn(a, text, n), *end;
    const AttrDef *d = opdef_attr(op->def, name);
    if (!d) fail_msg("%s has no attribute %s", op->type, name);
    if (!attr_parse(a, text + n + 1, &end, &v) || !attr_coerce(&v, d->dflt.type, a))
      fail_msg("%s: %s", op->type, text);
    v.name = name;
    op_set_attr(op, &v);
    for (text = end; *text == ' ';) text++;
  }
}

static void outputs(Gen *g, Op *op, const char *attrs) {
  const OpDef *def = op->def;
  for (int i = 0; i < def->n_outs; i++) {
    if (def->outs[i].optional) continue;
    int n = def->outs[i].list && strstr(attrs, "num=2") ? 2 : 1;
    for (int k = 0; k < n; k++) {
      Var *v = declare(g, "v", DT_NONE, 0, NULL);
      v->stop_gradient = def->outs[i].intermediate;
      op_add_out(op, def->outs[i].name, v->name);
    }
  }
}

static double size_of(char how, double most, double sum, double product, const Var *x) {
  double longest = 1;
  for (int d = 0; d < x->rank; d++)
    longest = fmax(longest, x->dims[d] < 0 ? 70 : (double)x->dims[d]);
  switch (how) {
  case '1': return 1;
  case 'o': return most > 20 ? 1e9 : 1;
  case 'n': return most > 20 ? 1e9 : 4;
  case '+': return sum + 1;
  case '*': return fmax(product, sum);
  case '#': return fmax(product, sum) * longest;
  case '^': return most > 4 ? 1e9 : exp(most);
  default: return most;
  }
}

static void undo(Gen *g, int n_vars) {
  err_clear();
  block_remove_op(g->b, g->b->ops.n - 1);
  while (g->b->vars.n > n_vars) block_remove_var(g->b, g->b->vars.v[g->b->vars.n - 1]->name);
}

/* Appends the operator of the row to a value; false if it does not fit there. */
static bool append(Gen *g, const Row *r, const Value *x) {
  if (x->var->rank < r->least || x->var->rank > r->most || ((r->flags & JUMPS) && !x->exact))
    return false;
  int n_vars = g->b->vars.n;
  double most = x->size, sum = 0, product = 1;
  bool exact = r->flags & KEEPS, fits = true;
  Op *op = block_add_op(g->b, r->type);
  assert_non_null(op->def);
  for (const char *c = r->ins; fits && *c; c += *c == ' ') {
    size_t n = strcspn(c, "=");
    const char *slot = arena_strn(g->p->arena, c, n);
    char kind = c[n + 1];
    int times = kind == '*' ? 3 : 1;
    c += n + 2;
    for (int i = 0; fits && i < times; i++) {
      Value in = *x;
      fits = kind == 'v' || (kind == '*' && i == 0) || operand(g, kind == '*' ? '=' : kind, x, &in);
      if (!fits) break;
      op_add_in(op, slot, in.var->name);
      exact = exact && in.exact;
      fits = !(r->flags & JUMPS) || in.exact;
      most = fmax(most, in.size), sum += in.size, product *= in.size;
    }
  }
  const char *attrs = fits ? fill_in(g, r->attrs, x->var) : "";
  if (fits) set_attrs(op, attrs), outputs(g, op, attrs);
  double size = size_of(r->size, most, sum, product, x->var);
  if (!fits || size > 1e4 || !infer_op(op)) return undo(g, n_vars), false;
  for (int i = 0; i < op->outs.n; i++)
    for (int k = 0; k < op->outs.v[i].n; k++) {
      Var *v = block_var(g->b, op->outs.v[i].args[k]);
      const SlotDef *d = opdef_out(op->def, op->outs.v[i].name);
      if (!dtype_is_float(v->dtype)) v->stop_gradient = true;
      g->halves |= v->dtype == DT_FLOAT16 || v->dtype == DT_BFLOAT16;
      if (g->n < GEN_VALUES && !d->intermediate) g->v[g->n++] = (Value){v, size, exact};
    }
  return true;
}

/* batch_norm, whose running statistics are updated in place. */
static bool append_batch_norm(Gen *g, const Value *x) {
  if (x->var->rank < 2 || x->var->dims[1] < 0 || x->size > 20) return false;
  int n_vars = g->b->vars.n;
  static const char *const ins[] = {"Scale", "Bias", "Mean", "Variance"};
  static const char *const kinds[] = {"w", "w", "s", "p"};
  Op *op = block_add_op(g->b, "batch_norm");
  op_add_in(op, "X", x->var->name);
  for (int i = 0; i < 4; i++) {
    Var *v = parameter(g, kinds[i], DT_FLOAT32, 1, &x->var->dims[1]);
    if (!v) return undo(g, n_vars), false;
    if (i > 1) v->is_parameter = false, v->stop_gradient = true;
    op_add_in(op, ins[i], v->name);
    if (i == 2) op_add_out(op, "MeanOut", v->name);
    if (i == 3) op_add_out(op, "VarianceOut", v->name);
  }
  op_set_float(op, "epsilon", 0.1);
  static const char *const outs[] = {"Y", "SavedMean", "SavedVariance"};
  for (int i = 0; i < 3; i++) op_add_out(op, outs[i], declare(g, "v", DT_NONE, 0, NULL)->name);
  if (!infer_op(op)) return undo(g, n_vars), false;
  if (g->n < GEN_VALUES) g->v[g->n++] = (Value){block_var(g->b, op_out(op, "Y", 0)), 4, false};
  return true;
}

/* state = state op value, in place; the state is read before and after by others. */
static bool append_update(Gen *g, const Value *x) {
  static const char *const types[] = {"elementwise_add", "elementwise_max", "elementwise_mul"};
  Var *s = parameter(g, "s", DT_FLOAT32, x->var->rank, x->var->dims);
  if (!s || x->size > 100) return false;
  int n_vars = g->b->vars.n;
  Op *op = block_add_op(g->b, types[gen_pick(g, 3)]);
  bool turned = gen_pick(g, 2);
  op_add_in(op, "X", turned ? x->var->name : s->name);
  op_add_in(op, "Y", turned ? s->name : x->var->name);
  op_add_out(op, "Out", s->name);
  if (!infer_op(op)) return undo(g, n_vars), false;
  if (g->n < GEN_VALUES) g->v[g->n++] = (Value){s, x->size * x->size + 2, false};
  return true;
}

/* Two states change places. */
static bool append_swap(Gen *g) {
  int64_t dims[2] = {1 + gen_pick(g, 3), 1 + gen_pick(g, 4)};
  Var *a = parameter(g, "s", DT_FLOAT32, 2, dims), *b = parameter(g, "s", DT_FLOAT32, 2, dims),
      *t = declare(g, "v", DT_NONE, 0, NULL);
  Var *moves[3][2] = {{a, t}, {b, a}, {t, b}};
  for (int i = 0; i < 3; i++) {
    Op *op = block_add_op(g->b, "assign");
    op_add_in(op, "X", moves[i][0]->name);
    op_add_out(op, "Out", moves[i][1]->name);
    if (!infer_op(op)) return false;
  }
  return true;
}

/* The same operator on the same operands once more. */
static bool append_again(Gen *g) {
  if (!g->b->ops.n) return false;
  const Op *from = g->b->ops.v[gen_pick(g, g->b->ops.n)];
  int n_vars = g->b->vars.n;
  for (int i = 0; i < from->outs.n; i++)
    for (int k = 0; k < from->outs.v[i].n; k++)
      if (block_var(g->b, from->outs.v[i].args[k])->persistable) return false;
  Op *op = op_copy(g->b, -1, from);
  op->outs.n = 0;
  for (int i = 0; i < from->outs.n; i++)
    for (int k = 0; k < from->outs.v[i].n; k++)
      op_add_out(op, from->outs.v[i].name, declare(g, "v", DT_NONE, 0, NULL)->name);
  if (!infer_op(op)) return undo(g, n_vars), false;
  Var *v = block_var(g->b, op->outs.v[0].args[0]);
  for (int i = 0; i < g->n; i++)
    if (!strcmp(g->v[i].var->name, from->outs.v[0].args[0]) && g->n < GEN_VALUES) {
      g->v[g->n] = (Value){v, g->v[i].size, g->v[i].exact};
      return g->n++, true;
    }
  return true;
}

static void make_feeds(Gen *g) {
  static const struct {
    int rank;
    int64_t dims[4];
  } shapes[] = {{2, {-1, 4}},  {4, {-1, 3, 5, 6}}, {3, {-1, 3, 4}}, {1, {-1}},
                {2, {3, 4}},   {0, {0}},           {1, {5}},        {2, {0, 3}},
                {2, {1, 1}},   {4, {2, 3, 4, 4}},  {2, {-1, 1}},    {3, {2, 1, 6}},
                {2, {37, 19}}, {2, {211, 130}},    {2, {-1, 300}},  {2, {-1, 40}}};
  int n = 1 + gen_pick(g, 3);
  for (int i = 0; i < n; i++) {
    int k = gen_pick(g, (int)(sizeof shapes / sizeof *shapes));
    Var *v = declare(g, "x", DT_FLOAT32, shapes[k].rank, shapes[k].dims);
    v->need_check_feed = v->stop_gradient = true;
    g->v[g->n++] = (Value){v, 1, true};
  }
}

void gen_program(Gen *g, uint64_t seed) {
  *g = (Gen){.seed = seed * 0x9E3779B97F4A7C15u + 1, .p = prog_new()};
  g->b = g->p->blocks.v[0];
  make_feeds(g);
  int want = 2 + gen_pick(g, gen_pick(g, 2) ? 8 : 24);
  for (int tries = 0; g->b->ops.n < want && tries < 400; tries++) {
    /* mostly go on from late values: chains */
    int i = gen_pick(g, 3) ? g->n - 1 - gen_pick(g, g->n < 3 ? g->n : 3) : gen_pick(g, g->n);
    Value x = g->v[i];
    switch (gen_pick(g, 24)) {
    case 0: append_batch_norm(g, &x); break;
    case 1: append_update(g, &x); break;
    case 2: append_again(g); break;
    case 3:
      if (!gen_pick(g, 4)) append_swap(g);
      break;
    default: append(g, &rows[gen_pick(g, N_ROWS)], &x);
    }
    assert_false(err_any());
  }
}

static bool add_backward(Program *q, const char *of, int *n, ParamGrad **pg) {
  Block *b = q->blocks.v[0];
  Op *mean = block_add_op(b, "mean");
  op_add_in(mean, "X", of);
  op_add_out(mean, "Out", block_add_var(b, "loss", VK_TENSOR, DT_NONE, 0, NULL)->name);
  bool ok = infer_op(mean) && append_backward(q, "loss", 0, NULL, n, pg);
  err_clear();
  return ok;
}

Program *gen_gradients(Gen *g, const char **grads, int *n_grads) {
  Program *q = NULL;
  int n = 0;
  ParamGrad *pg;
  for (int i = g->n - 1; i >= 0 && i >= g->n - 6 && !q; i--) {
    q = prog_clone(g->p);
    if (add_backward(q, g->v[i].var->name, &n, &pg)) break;
    prog_free(q);
    q = NULL;
  }
  *n_grads = 0;
  if (!q) return NULL;
  Block *b = q->blocks.v[0];
  int64_t one = 1;
  block_add_var(b, "rate", VK_TENSOR, DT_FLOAT32, 1, &one)->persistable = true;
  for (int i = 0; i < n; i++) {
    if (*n_grads < 3) grads[(*n_grads)++] = pg[i].grad;
    if (gen_pick(g, 2)) continue;
    Op *op = block_add_op(b, "sgd");
    op_add_in(op, "Param", pg[i].param->name);
    op_add_in(op, "Grad", pg[i].grad);
    op_add_in(op, "LearningRate", "rate");
    op_add_out(op, "ParamOut", pg[i].param->name);
    op_set_int(op, "op_role", ROLE_OPTIMIZE);
  }
  return q;
}
