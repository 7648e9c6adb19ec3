/* Examples of ops.def as Programs. In: the text of an example ("X=2x3 Y=3 axis=1"); out: a Program
 * with that one operator, values for what it reads, and on request the gradient operators as
 * PaddlePaddle's append_backward makes them. */
#include "opcase.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

double test_random(uint64_t *seed, double lo, double hi) {
  *seed = *seed * 6364136223846793005u + 1442695040888963407u;
  return lo + (hi - lo) * (double)(*seed >> 40) / (double)(1 << 24);
}

int example_count(const OpDef *def) {
  int n = *def->examples != 0;
  for (const char *p = def->examples; *p; p++) n += *p == ';';
  return n;
}

static char *example_at(Arena *a, const OpDef *def, int k) {
  const char *p = def->examples;
  for (; k > 0; k--) p = strchr(p, ';') + 1;
  return arena_strn(a, p + strspn(p, " "), strcspn(p + strspn(p, " "), ";"));
}

/* "2x3:int64:0..4" */
typedef struct Spec {
  DType type;
  int rank;
  int64_t dims[KL_VAR_RANK];
  double lo, hi;
  bool constant;
} Spec;

static bool parse_spec(Arena *a, const char *text, DType real, Spec *s) {
  const char *c1 = strchr(text, ':'), *c2 = c1 ? strchr(c1 + 1, ':') : NULL;
  *s = (Spec){.type = real};
  if (strncmp(text, "scalar", 6) != 0)
    for (char *p = (char *)text;; p++) {
      if (s->rank == KL_VAR_RANK) return false;
      s->dims[s->rank++] = strtoll(p, &p, 10);
      if (*p != 'x') break;
    }
  if (c1) {
    size_t n = c2 ? (size_t)(c2 - c1 - 1) : strlen(c1 + 1);
    s->type = dtype_find(arena_strn(a, c1 + 1, n));
    if (s->type == DT_NONE) return false;
    if (s->type == DT_FLOAT32) s->type = real;
  }
  bool whole = !dtype_is_float(s->type);
  s->lo = whole ? 0 : -1;
  s->hi = whole ? (s->type == DT_BOOL ? 1 : 3) : 1;
  if (!c2) return true;
  const char *dots = strstr(c2, "..");
  if (!dots) return false;
  s->lo = strtod(arena_strn(a, c2 + 1, (size_t)(dots - c2 - 1)), NULL);
  s->hi = strtod(dots + 2, NULL);
  s->constant = s->lo == s->hi;
  return true;
}

typedef struct Maker {
  OpCase *c;
  Arena *a;
  Block *b;
  uint64_t seed;
  VEC(const char *) fed;
  VEC(Tensor) value;
} Maker;

static void add_value(Maker *m, const char *name, const Spec *s) {
  Tensor t;
  tensor_make(&t, m->a, s->type, s->rank, s->dims);
  for (int64_t i = 0; i < tensor_numel(&t); i++) {
    double v = test_random(&m->seed, s->lo, s->hi + (dtype_is_float(s->type) ? 0 : 1));
    if (!dtype_is_float(s->type))
      v = floor(v);
    else
      v = (double)(float)v;
    tensor_set(&t, i, v);
  }
  vec_add(m->a, &m->fed, name);
  vec_add(m->a, &m->value, t);
}

static void add_constant(Maker *m, const char *name, const Spec *s) {
  Op *op = block_add_op(m->b, "fill_constant");
  Attr shape = {.name = "shape", .type = AT_LONGS, .n = s->rank, .is = (int64_t *)s->dims};
  op_set_attr(op, &shape);
  op_set_int(op, "dtype", dtype_info[s->type].paddle);
  op_set_str(op, "str_value", arena_fmt(m->a, "%.17g", s->lo));
  op_add_out(op, "Out", name);
}

static bool add_input(Maker *m, const char *slot, char *specs) {
  int i = 0;
  for (char *save, *p = strtok_r(specs, ",", &save); p; p = strtok_r(NULL, ",", &save), i++) {
    Spec s;
    if (!parse_spec(m->a, p, m->c->real, &s))
      return err_set(E_ARG_002, "malformed input %s=%s", slot, p);
    const char *name = arena_fmt(m->a, "%s_%d", slot, i);
    if (!block_add_var(m->b, name, VK_TENSOR, s.type, s.rank, s.dims)) return false;
    if (s.constant)
      add_constant(m, name, &s);
    else
      add_value(m, name, &s);
    op_add_in(m->c->op, slot, name);
  }
  return true;
}

static bool add_attr(Maker *m, const char *name, const char *text, const char **end) {
  const AttrDef *d = opdef_attr(m->c->def, name);
  Attr a = {0};
  if (!d || !attr_parse(m->a, text, end, &a) || !attr_coerce(&a, d->dflt.type, m->a))
    return err_set(E_ARG_002, "%s=%s is neither a slot nor an attribute", name, text);
  a.name = name;
  op_set_attr(m->c->op, &a);
  return true;
}

static bool add_token(Maker *m, const char **p, Map *counts) {
  size_t n = strcspn(*p, "=");
  const char *name = arena_strn(m->a, *p, n), *rest = *p + n + ((*p)[n] == '=');
  size_t len = strcspn(rest, " ");
  if (opdef_in(m->c->def, name) && *rest != '*') {
    *p = rest + len;
    return add_input(m, name, arena_strn(m->a, rest, len));
  }
  if (opdef_out(m->c->def, name)) {
    map_put(counts, name, arena_strn(m->a, rest, len));
    *p = rest + len;
    return true;
  }
  return add_attr(m, name, rest, p);
}

static bool add_outputs(Maker *m, const Map *counts) {
  const OpDef *def = m->c->def;
  for (int s = 0; s < def->n_outs; s++) {
    const SlotDef *o = &def->outs[s];
    const char *count = map_get(counts, o->name);
    const Slot *first = m->c->op->ins.n ? &m->c->op->ins.v[0] : NULL;
    int n = count && *count == '*' ? atoi(count + 1) : o->list && first ? first->n : 1;
    for (int i = 0; i < n; i++) {
      const char *name = arena_fmt(m->a, "%s.%d", o->name, i);
      if (!block_add_var(m->b, name, VK_TENSOR, DT_NONE, 0, NULL)) return false;
      op_add_out(m->c->op, o->name, name);
    }
  }
  return true;
}

static bool take_word(const char **p, const char *word) {
  bool is = strncmp(*p, word, strlen(word)) == 0;
  if (is) *p += strlen(word);
  return is;
}

bool opcase_make(OpCase *c, const OpDef *def, int k, DType real) {
  Arena *a = arena_new();
  bool ok = opcase_text(c, def, example_at(a, def, k), 17 + (uint64_t)k, real);
  arena_free(a);
  return ok;
}

bool opcase_text(OpCase *c, const OpDef *def, const char *text, uint64_t seed, DType real) {
  *c = (OpCase){.def = def, .real = real, .prog = prog_new()};
  Arena *a = c->prog->arena;
  Maker m = {.c = c, .a = a, .b = c->prog->blocks.v[0], .seed = seed};
  Map *counts = map_new(a);
  c->text = arena_str(a, text);
  const char *p = c->text;
  c->nograd = take_word(&p, "nograd ");
  c->known = take_word(&p, "known ");
  c->op = block_add_op(m.b, def->name);
  while (*(p += strspn(p, " ")))
    if (!add_token(&m, &p, counts)) return false;
  if (!add_outputs(&m, counts)) return false;
  op_copy(m.b, -1, c->op); /* behind the constants */
  block_remove_op(m.b, 0);
  for (int i = 0; i < m.b->ops.n; i++)
    if (m.b->ops.v[i]->def == def) c->op = m.b->ops.v[i];
  c->n_fed = m.fed.n;
  c->fed = m.fed.v;
  c->value = m.value.v;
  return true;
}

void opcase_free(OpCase *c) {
  prog_free(c->prog);
  c->prog = NULL;
}

Tensor *opcase_value(const OpCase *c, const char *name) {
  for (int i = 0; i < c->n_fed; i++)
    if (strcmp(c->fed[i], name) == 0) return &c->value[i];
  return NULL;
}

/* ---- gradients ---- */

typedef struct Grads {
  OpCase *c;
  VEC(const char *) in, out;
} Grads;

/* The forward slot of "S" or "S@GRAD"; *grad says which. */
static const Slot *forward_slot(const Op *op, const char *from, Arena *a, bool *grad) {
  const char *at = strstr(from, "@GRAD");
  const char *slot = at ? arena_strn(a, from, (size_t)(at - from)) : from;
  *grad = at != NULL;
  const Slot *s = op_ins(op, slot);
  return s ? s : op_outs(op, slot);
}

/* The name of variable i of the slot, or of its gradient, which is declared as the variable is. */
static const char *grad_arg(Grads *g, const Slot *s, int i, bool grad, bool out) {
  Arena *a = g->c->prog->arena;
  Block *b = g->c->prog->blocks.v[0];
  const Var *v = block_var(b, s->args[i]);
  if (!grad) return s->args[i];
  if (!v || !dtype_is_float(v->dtype)) return "@EMPTY@";
  const char *name = arena_fmt(a, "%s@GRAD", s->args[i]);
  if (!block_var(b, name)) {
    block_add_var(b, name, VK_TENSOR, out ? DT_NONE : v->dtype, out ? 0 : v->rank, v->dims);
    if (out)
      vec_add(a, &g->out, name);
    else
      vec_add(a, &g->in, name);
  }
  return name;
}

static bool set_attrs(Grads *g, Op *to, const GradDef *def) {
  const Op *op = g->c->op;
  if (def->copy_attrs)
    for (int i = 0; i < op->attrs.n; i++) op_set_attr(to, &op->attrs.v[i]);
  for (int i = 0; i < def->n_sets; i++) {
    Attr v = {0};
    const char *text = def->sets[i].value;
    if (*text == '$') {
      const Attr *from = op_attr(op, text + 1);
      if (!from) continue;
      v = *from;
    } else if (!attr_parse(g->c->prog->arena, text, NULL, &v))
      return err_set(E_ARG_002, "malformed attribute %s", text);
    v.name = def->sets[i].attr;
    const AttrDef *d = to->def ? opdef_attr(to->def, v.name) : NULL;
    if (d && !attr_coerce(&v, d->dflt.type, g->c->prog->arena))
      return err_set(E_ARG_002, "attribute %s=%s has the wrong type", v.name, text);
    op_set_attr(to, &v);
  }
  return true;
}

/* One gradient operator; only >= 0: for that variable of the list slot. */
static bool add_grad(Grads *g, const GradDef *def, int only) {
  Arena *a = g->c->prog->arena;
  Op *op = block_add_op(g->c->prog->blocks.v[0], def->type);
  if (!op->def) return err_set(E_OPR_001, "gradient operator %s is not in the table", def->type);
  bool grad;
  for (int k = 0; k < def->n_ins; k++) {
    const Slot *s = forward_slot(g->c->op, def->ins[k].from, a, &grad);
    for (int i = 0; s && i < s->n; i++)
      op_add_in(op, def->ins[k].slot, grad_arg(g, s, i, grad, false));
  }
  for (int k = 0; k < def->n_outs; k++) {
    const Slot *s = forward_slot(g->c->op, def->outs[k].from, a, &grad);
    for (int i = 0; s && i < s->n; i++)
      if (only < 0 || i == only) op_add_out(op, def->outs[k].slot, grad_arg(g, s, i, grad, true));
  }
  return set_attrs(g, op, def);
}

bool opcase_grads(OpCase *c, OpGrads *r) {
  const GradDef *def = c->def->grad;
  Grads g = {.c = c};
  bool grad;
  int n = 1;
  if (def->per_input) {
    const Slot *s = forward_slot(c->op, def->outs[0].from, c->prog->arena, &grad);
    n = s ? s->n : 0;
  }
  for (int i = 0; i < n; i++)
    if (!add_grad(&g, def, def->per_input ? i : -1)) return false;
  *r = (OpGrads){g.in.n, g.out.n, g.in.v, g.out.v};
  return true;
}

Feed *opcase_feeds(OpCase *c, const OpGrads *g, int *n) {
  Arena *a = c->prog->arena;
  Feed *f = arena_array(a, Feed, c->n_fed + g->n_in);
  uint64_t seed = 99;
  *n = 0;
  for (int i = 0; i < c->n_fed; i++) f[(*n)++] = (Feed){c->fed[i], &c->value[i]};
  for (int i = 0; i < g->n_in; i++) {
    const Var *v = block_var(c->prog->blocks.v[0], g->in[i]);
    Tensor *t = arena_new_of(a, Tensor);
    tensor_make(t, a, v->dtype, v->rank, v->dims);
    for (int64_t e = 0; e < tensor_numel(t); e++) tensor_set(t, e, test_random(&seed, -1, 1));
    f[(*n)++] = (Feed){g->in[i], t};
  }
  return f;
}

bool opcase_chosen(const OpDef *def) {
  const char *only = getenv("KILN_TEST_OP");
  return !only || strcmp(only, def->name) == 0;
}

double tolerance_of_type(DType t) {
  return t == DT_FLOAT64 ? 1e-10 : t == DT_FLOAT32 ? 1e-5 : 2e-3;
}

bool tensor_close(const Tensor *a, const Tensor *b, double tolerance, char *why, size_t size) {
  double scale = 1;
  if (a->dtype != b->dtype || a->rank != b->rank ||
      memcmp(a->dims, b->dims, sizeof *a->dims * (size_t)a->rank) != 0) {
    snprintf(why, size, "%s against %s", shape_text(a->dtype, a->rank, a->dims),
             shape_text(b->dtype, b->rank, b->dims));
    return false;
  }
  for (int64_t i = 0; i < tensor_numel(b); i++)
    if (isfinite(tensor_get(b, i))) scale = fmax(scale, fabs(tensor_get(b, i)));
  for (int64_t i = 0; i < tensor_numel(a); i++) {
    double x = tensor_get(a, i), y = tensor_get(b, i);
    if (x == y || (isnan(x) && isnan(y)) || fabs(x - y) <= tolerance * scale) continue;
    snprintf(why, size, "[%lld] is %.17g against %.17g", (long long)i, x, y);
    return false;
  }
  return true;
}
