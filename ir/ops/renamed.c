/* Operators that are others under other names: expanded as the other, whose slots take their variables. */
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

bool x_cudnn_lstm(Expand *x);
bool x_cudnn_lstm(Expand *x) { return lstm(x, "rnn", x_rnn); }
bool x_cudnn_lstm_grad(Expand *x);
bool x_cudnn_lstm_grad(Expand *x) { return lstm(x, "rnn_grad", x_rnn_grad); }
