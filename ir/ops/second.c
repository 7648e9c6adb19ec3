/* Gradients of gradient operators: of T_grad for each T that PaddlePaddle differentiates twice (penalties on gradients).
 *
 * A slot is named after the slot of T that it belongs to, and after how often it has been differentiated: X, Out and Out@GRAD
 * of T_grad are X, Out and grad_out or DOut here; what comes in for its result X@GRAD is grad_x@GRAD or DDX; and the results
 * are X@GRAD or DX, and grad_out@GRAD or DDOut, for its inputs X and Out@GRAD. So the expansion of T_grad (or, where its
 * inputs include what depends on X, that of T derived) is made on the inputs and derived. */
#include "ops.h"

#include <ctype.h>
#include <string.h>

/* A slot's name without what says how often it was differentiated. */
typedef struct Stem {
  const char *name;
  size_t n;
  int degree;
} Stem;

static Stem stem_of(const char *name) {
  static const char suffix[] = "@GRAD";
  Stem s = {name, strlen(name), 0};
  size_t k = sizeof suffix - 1;
  if (s.n > k && !strcmp(name + s.n - k, suffix)) s.n -= k, s.degree++;
  if (s.n > 4 && !strncmp(s.name, "fwd_", 4)) s.name += 4, s.n -= 4;
  for (;; s.degree++) {
    size_t skip = s.n > 5 && !strncmp(s.name, "grad_", 5)                          ? 5
                  : s.n > 1 && *s.name == 'D' && isupper((unsigned char)s.name[1]) ? 1
                                                                                   : 0;
    if (!skip) return s;
    s.name += skip, s.n -= skip;
  }
}

/* Is it the slot `name` of T, or its gradient? Some are in small letters; a convolution's Output is out. */
static bool stem_is(const Stem *s, const char *name, int degree) {
  size_t n = strcspn(name, "@"), i = 0;
  if (!strncmp(name, "Output", 6)) n = 3;
  if (s->degree != degree || s->n != n) return false;
  while (i < n && tolower((unsigned char)s->name[i]) == tolower((unsigned char)name[i])) i++;
  return i == n;
}

/* The input of x, or the output, that belongs to a slot of T; NULL: there is none. */
static const char *slot_of(Expand *x, bool in, const char *name, int degree) {
  const OpDef *d = x->op->def;
  for (int i = 0; i < (in ? d->n_ins : d->n_outs); i++) {
    const char *slot = in ? d->ins[i].name : d->outs[i].name;
    Stem s = stem_of(slot);
    bool there = in ? x_n_in(x, slot) > 0 && op_in(x->op, slot, 0) : x_wants(x, slot);
    if (there && stem_is(&s, name, degree)) return slot;
  }
  return NULL;
}

static Node *given(Expand *x, const char *name, int degree) {
  const char *slot = slot_of(x, true, name, degree);
  return slot ? x_in(x, slot) : NULL;
}

typedef struct Second {
  Expand *x, inner;
  Op *op; /* T_grad, or T */
  VEC(Node *) ys, gys, xs;
  VEC(const char *) to; /* the output for each xs */
} Second;

static void connect(Second *s, bool in, const char *slot, Node *v) {
  Arena *a = s->x->g->arena;
  Slot made = {slot, 1, arena_array(a, const char *, 1)};
  made.args[0] = arena_fmt(a, "%s#", slot);
  if (in) {
    vec_add(a, &s->op->ins, made);
    map_put(s->inner.env, made.args[0], v);
  } else
    vec_add(a, &s->op->outs, made);
}

/* v as a variable of its own, derived by if an output is for it. */
static Node *variable(Second *s, Node *v, const char *name, int degree) {
  Graph *g = s->x->g;
  const char *to = slot_of(s->x, false, name, degree);
  if (!v || !dtype_is_float(v->dtype)) return v;
  v = g_alias(g, v);
  if (v && to) {
    vec_add(g->arena, &s->xs, v);
    vec_add(g->arena, &s->to, to);
  }
  return v;
}

static bool second_start(Second *s, Expand *x, bool grad) {
  Graph *g = x->g;
  const char *type = x->op->type, *end = strstr(type, "_grad_grad");
  if (!end) end = strstr(type, "_double_grad");
  *s = (Second){.x = x, .inner = {g, NULL, map_new(g->arena), x->missing, x->user}};
  s->op = arena_new_of(g->arena, Op);
  s->op->type =
      arena_fmt(g->arena, "%.*s%s", end ? (int)(end - type) : 0, type, grad ? "_grad" : "");
  s->op->def = opdef_find(s->op->type);
  for (int i = 0; i < x->op->attrs.n; i++) vec_add(g->arena, &s->op->attrs, x->op->attrs.v[i]);
  return s->op->def || err_set(E_OPR_005, "%s has no gradient", quoted(type));
}

/* Derives ys, with what comes in, by xs. */
static bool second_end(Second *s) {
  Graph *g = s->x->g;
  int n = s->xs.n;
  Node **gxs = arena_array(g->arena, Node *, n + 1);
  if (s->ys.n && !derive(g, s->ys.n, s->ys.v, s->gys.v, n, s->xs.v, gxs)) return false;
  for (int i = 0; i < n; i++)
    if (!x_out(s->x, s->to.v[i], gxs[i] ? gxs[i] : ops_zeros(g, s->xs.v[i]))) return false;
  return !err_any();
}

/* The outputs have the shapes of what they are the gradients of. */
static bool second_shapes(Second *s) {
  for (int i = 0; i < s->xs.n; i++)
    if (!x_out(s->x, s->to.v[i], ops_blank_like(s->x->g, s->xs.v[i]))) return false;
  return true;
}

static bool take_result(Second *s, Node *y, const char *name) {
  Graph *g = s->x->g;
  Node *gy = given(s->x, name, 2);
  if (!y || !gy) return !err_any();
  if (!node_same_shape(gy, y)) gy = g_reshape(g, gy, y->rank, y->dims);
  vec_add(g->arena, &s->ys, y);
  vec_add(g->arena, &s->gys, gy ? g_cast(g, gy, y->dtype) : NULL);
  return gy != NULL;
}

/* Through T_grad. An input that is absent has the shape of its gradient. */
bool x_second(Expand *x) {
  Second s;
  if (!second_start(&s, x, true)) return false;
  const OpDef *first = s.op->def;
  for (int i = 0; i < first->n_ins; i++) {
    const char *slot = first->ins[i].name;
    int degree = strchr(slot, '@') != NULL;
    Node *v = given(x, slot, degree), *like = v ? NULL : given(x, degree ? "X" : slot, 2);
    if (!v && !like && !strcmp(slot, "X")) like = given(x, "Out", 1);
    if (!v) v = like ? ops_zeros(x->g, like) : NULL;
    if (!v && !err_any() && !slot_of(x, false, slot, degree + 1)) continue;
    v = variable(&s, v, slot, degree + 1);
    if (!v) return err_any() ? false : err_set(E_OPR_005, "%s is not known", quoted(slot));
    connect(&s, true, slot, v);
  }
  if (x->g->shapes_only) return second_shapes(&s);
  for (int i = 0; i < first->n_outs; i++)
    if (given(x, first->outs[i].name, 2)) connect(&s, false, first->outs[i].name, NULL);
  if (s.op->outs.n == 0) return second_end(&s);
  s.inner.op = s.op;
  if (!expand_op(&s.inner, s.op)) return false;
  for (int i = 0; i < s.op->outs.n; i++)
    if (!take_result(&s, map_get(s.inner.env, s.op->outs.v[i].args[0]), s.op->outs.v[i].name))
      return false;
  return second_end(&s);
}

/* Through T, derived, as normalisation needs: the statistics depend on X. Bias, and running statistics, need not be there. */
bool x_second_norm(Expand *x) {
  Graph *g = x->g;
  Second s;
  static const char *const slots[] = {"X", "Scale", "Bias", "Mean", "Variance"};
  Node *in[5], *gin[3] = {0};
  if (!second_start(&s, x, false)) return false;
  Node *dy = variable(&s, given(x, "Y", 1), "Y", 2);
  for (int i = 0; i < 5; i++) {
    in[i] = given(x, slots[i], 0);
    if (!in[i] && i > 1 && in[1]) in[i] = ops_zeros(g, in[1]);
    if (in[i]) in[i] = variable(&s, in[i], slots[i], 1);
    if (in[i] && opdef_in(s.op->def, slots[i])) connect(&s, true, slots[i], in[i]);
  }
  if (!dy || !in[0]) return false;
  if (g->shapes_only) return second_shapes(&s);
  connect(&s, false, "Y", NULL);
  s.inner.op = s.op;
  if (!expand_op(&s.inner, s.op)) return false;
  Node *y = map_get(s.inner.env, "Y#");
  if (!y || !derive(g, 1, &y, &dy, in[1] ? 3 : 1, in, gin)) return false;
  for (int i = 0; i < 3; i++)
    if (!take_result(&s, gin[i], slots[i])) return false;
  return second_end(&s);
}

/* Y with ones behind it, where axis says which dimensions of `like` it has. */
static Node *aligned(Expand *x, Node *y, const Node *like) {
  int64_t axis = op_int(x->op, "axis"), dims[KL_RANK];
  if (!y || axis < 0 || y->rank >= like->rank) return y;
  if (axis + y->rank > like->rank) return NULL;
  for (int d = 0; d < like->rank; d++)
    dims[d] = d < axis || d >= axis + y->rank ? 1 : y->dims[d - axis];
  return ops_reshape(x->g, y, like->rank, dims);
}

/* With q = x / y given and dx = dq / y: dy = -dq q / y. */
bool x_second_div(Expand *x) {
  Graph *g = x->g;
  Second s = {.x = x};
  Node *q = variable(&s, x_in(x, "Out"), "Out", 1), *y = variable(&s, x_in(x, "Y"), "Y", 1),
       *dx = x_n_in(x, "DX") ? x_in(x, "DX") : NULL;
  if (!q || !y) return false;
  Node *dq =
      variable(&s, g->shapes_only || !dx ? ops_zeros(g, q) : ops_mul(g, dx, aligned(x, y, q)),
               "Out", 2);
  if (g->shapes_only) return second_shapes(&s);
  Node *to_x = ops_div(g, dq, aligned(x, y, q)), *to_y = ops_times(g, ops_mul(g, to_x, q), -1);
  Node *ddx = x_n_in(x, "DDX") ? x_in(x, "DDX") : NULL,
       *ddy = x_n_in(x, "DDY") ? x_in(x, "DDY") : NULL;
  Node *ys[] = {to_x, to_y}, *gys[] = {aligned(x, ddx, q), aligned(x, ddy, q)};
  for (int i = 0; i < 2; i++) {
    if (!gys[i] || !ys[i]) continue;
    vec_add(g->arena, &s.ys, ys[i]);
    vec_add(g->arena, &s.gys, g_expand(g, gys[i], q->rank, q->dims));
  }
  return !err_any() && second_end(&s);
}

bool x_second_reshape(Expand *x) {
  Node *v = x_in(x, "DDX"), *like = x_in(x, "DOut");
  return v && like && x_out(x, "DDOut", ops_reshape(x->g, v, like->rank, like->dims));
}
