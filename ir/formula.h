/* Private to formulas: formula.c (the parser), builtin.c (values, arithmetic and functions). */
#ifndef KILN_FORMULA_H
#define KILN_FORMULA_H
#include "ir.h"

enum {
  FM_DEPTH = 64, /* nesting of expressions, and of operators in formulas of operators */
  FM_ARGS = 16
};

typedef enum ValueKind { V_ABSENT, V_NUM, V_TEXT, V_LIST, V_NODE } ValueKind;

typedef struct Value {
  ValueKind kind;
  double num;
  const char *text;
  int n;
  const int64_t *list;
  Node *node;
  const char *name; /* of a named argument */
} Value;

typedef struct Formula {
  Expand *x;
  const char *p; /* where the parser is */
  Map *locals;
  int depth, skip; /* skip: inside a branch that is not taken, nothing is built */
} Formula;

/* builtin.c. On failure an error is set and the value is absent. */
Value fm_fail(Formula *f, const char *what);
Value fm_num(double v);
Value fm_node(Node *n);
/* The value as a tensor; numbers take the type of `like` (NULL: they are an error). */
Node *fm_tensor(Formula *f, const Value *v, const Node *like);
Node *fm_not(Graph *g, Node *n);
Node *fm_negated(Graph *g, Node *x); /* -x; on bool !x */
Value fm_apply2(Formula *f, Prim p, const Value *a, const Value *b);
Value fm_call(Formula *f, const char *name, int n, const Value *v);
#endif
