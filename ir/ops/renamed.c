/* Operators that are others under other names, some with a product before or an activation behind: expanded as the other,
 * whose slots take their variables. */
#include "ops.h"

#include <string.h>

typedef struct Rename {
  const char *from, *to; /* several with one `to`: its variables in that order */
} Rename;

static const Slot *slot_of(const SlotVec *v, const char *name) {
  for (int i = 0; i < v->n; i++)
    if (strcmp(v->v[i].name, name) == 0) return &v->v[i];
  return NULL;
}

/* The slots under their new names, what has none as it is. */
static SlotVec renamed(Arena *a, const SlotVec *slots, int n, const Rename *names) {
  SlotVec to = {0};
  for (int i = 0; i < slots->n; i++) {
    bool given = false;
    for (int k = 0; k < n; k++) given = given || strcmp(names[k].from, slots->v[i].name) == 0;
    if (!given) vec_add(a, &to, slots->v[i]);
  }
  for (int k = 0; k < n; k++) {
    const Slot *from = slot_of(slots, names[k].from);
    if (!from || from->n == 0) continue;
    Slot *into = (Slot *)slot_of(&to, names[k].to);
    if (into) {
      const char **args = arena_array(a, const char *, into->n + from->n);
      memcpy(args, into->args, sizeof *args * (size_t)into->n);
      memcpy(args + into->n, from->args, sizeof *args * (size_t)from->n);
      into->args = args, into->n += from->n;
      continue;
    }
    Slot add = *from;
    add.name = names[k].to;
    vec_add(a, &to, add);
  }
  return to;
}

/* The operator `type` with these slots; its attributes are those of x->op. The caller may add to them. */
static Op *as_other(Expand *x, const char *type, int n, const Rename *names) {
  Arena *a = x->g->arena;
  Op *op = arena_dup(a, x->op, sizeof *op);
  op->type = type, op->def = opdef_find(type);
  op->ins = renamed(a, &x->op->ins, n, names), op->outs = renamed(a, &x->op->outs, n, names);
  op->attrs.v = arena_array(a, Attr, x->op->attrs.n + 1);
  for (int i = 0; i < x->op->attrs.n; i++) op->attrs.v[i] = x->op->attrs.v[i];
  op->attrs.cap = x->op->attrs.n + 1;
  return op;
}

static bool expanded_as(Expand *x, const Op *op, ExpandFn *f) {
  Expand inner = *x;
  inner.op = op;
  return f(&inner);
}

bool x_rnn(Expand *x);
bool x_rnn_grad(Expand *x);

static const Rename lstm_names[] = {{"InitH", "PreState"},
                                    {"InitC", "PreState"},
                                    {"LastH", "State"},
                                    {"LastC", "State"},
                                    {"StateOut", "DropoutState"},
                                    {"InitH@GRAD", "PreState@GRAD"},
                                    {"InitC@GRAD", "PreState@GRAD"},
                                    {"LastH@GRAD", "State@GRAD"},
                                    {"LastC@GRAD", "State@GRAD"}};

static bool lstm(Expand *x, const char *type, ExpandFn *f) {
  Op *op = as_other(x, type, (int)(sizeof lstm_names / sizeof *lstm_names), lstm_names);
  if (x_n_in(x, "WeightList") == 0) {
    err_set(E_OPR_004, "weights in one block, in the order of a library");
    err_help("Give the matrices and biases of each layer as WeightList.");
    return false;
  }
  op->attrs.v[op->attrs.n++] = (Attr){.name = "mode", .type = AT_STRING, .s = "LSTM"};
  return expanded_as(x, op, f);
}

bool x_cudnn_lstm(Expand *x) { return lstm(x, "rnn", x_rnn); }
bool x_cudnn_lstm_grad(Expand *x) { return lstm(x, "rnn_grad", x_rnn_grad); }

/* ---- batch_norm with an activation ---- */

bool x_batch_norm(Expand *x);
bool x_batch_norm_grad(Expand *x);

/* The variable takes a value that no operator of the program computes; its name. */
static const char *hidden_var(Expand *x, const char *slot, Node *v) {
  const char *name = arena_fmt(x->g->arena, "%s %s", slot, op_text(x->op));
  map_put(x->env, name, v);
  return name;
}

/* The slot has this variable alone. */
static void put_arg(Arena *a, Op *op, const char *slot, const char *name) {
  Slot *s = (Slot *)slot_of(&op->ins, slot);
  const char **args = arena_array(a, const char *, 1);
  args[0] = name;
  if (s)
    s->args = args, s->n = 1;
  else
    vec_add(a, &op->ins, ((Slot){slot, 1, args}));
}

static void put_attr(Op *op, Arena *a, Attr add) {
  for (int i = 0; i < op->attrs.n; i++)
    if (!strcmp(op->attrs.v[i].name, add.name)) {
      op->attrs.v[i] = add;
      return;
    }
  vec_add(a, &op->attrs, add);
}

static const char *const bn_acts[] = {"identity", "relu", "sigmoid", "tanh"};

/* Channels are last. */
bool x_fused_batch_norm_act(Expand *x) {
  Graph *g = x->g;
  int act = op_word(x->op, "act_type", 4, bn_acts);
  if (act < 0) return false;
  Op *op = as_other(x, x->op->type, 0, NULL);
  put_attr(op, g->arena, (Attr){.name = "data_layout", .type = AT_STRING, .s = "NHWC"});
  if (!expanded_as(x, op, x_batch_norm)) return false;
  Node *y = op_out(x->op, "Y", 0) ? map_get(x->env, op_out(x->op, "Y", 0)) : NULL;
  if (!y) return !err_any();
  y = act == 1   ? g_map2c(g, P_MAX, y, 0)
      : act == 2 ? ops_sigmoid(g, y)
      : act == 3 ? g_map1(g, P_TANH, y)
                 : y;
  return x_out(x, "Y", y);
}

/* The gradient before the activation, from what came out of it. */
bool x_fused_batch_norm_act_grad(Expand *x) {
  Graph *g = x->g;
  int act = op_word(x->op, "act_type", 4, bn_acts);
  Node *y = x_in(x, "Y"), *dy = x_in(x, "Y@GRAD");
  if (act < 0 || !y || !dy) return false;
  Node *left = ops_plus(g, ops_times(g, act == 3 ? ops_mul(g, y, y) : y, -1), 1);
  if (act == 1)
    dy = g_select(g, g_map2(g, P_LT, g_const(g, y->dtype, 0), y), dy, g_const(g, y->dtype, 0));
  if (act == 2) dy = ops_mul(g, dy, ops_mul(g, y, left));
  if (act == 3) dy = ops_mul(g, dy, left);
  Op *op = as_other(x, x->op->type, 0, NULL);
  put_attr(op, g->arena, (Attr){.name = "data_layout", .type = AT_STRING, .s = "NHWC"});
  put_arg(g->arena, op, "Y@GRAD", hidden_var(x, "Y@GRAD", dy));
  return dy && expanded_as(x, op, x_batch_norm_grad);
}

/* ---- lstm and gru with the product that makes their input ---- */

bool x_lstm(Expand *x);
bool x_gru(Expand *x);

/* X WeightX stands for Input, WeightH for Weight. */
static bool fusion_rnn(Expand *x, ExpandFn *f) {
  static const Rename names[] = {{"WeightH", "Weight"}};
  Graph *g = x->g;
  Node *in = x_in(x, "X"), *w = x_in(x, "WeightX");
  if (!ops_rank(in, "X", 2, 2) || !ops_rank(w, "WeightX", 2, 2) ||
      !ops_same("columns of X and rows of WeightX", in->dims[1], w->dims[0]))
    return false;
  const Lod *lod = x_lod(x, "X", 0);
  if (!lod && !g->shapes_only) return false;
  Node *sum = ops_known(in) && ops_known(w)
                  ? g_matmul(g, in, w, false, false)
                  : ops_blank(g, in->dtype, 2, (int64_t[]){in->dims[0], w->dims[1]});
  if (!sum || !x_out(x, "XX", sum)) return false;
  sum->lod = lod;
  Op *op = as_other(x, x->op->type, 1, names);
  put_arg(g->arena, op, "Input", hidden_var(x, "Input", sum));
  return expanded_as(x, op, f);
}

bool x_fusion_lstm(Expand *x) { return fusion_rnn(x, x_lstm); }
bool x_fusion_gru(Expand *x) { return fusion_rnn(x, x_gru); }
