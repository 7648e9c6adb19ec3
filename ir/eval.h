/* Private to the interpreter: eval.c (order, sources, views), evalmap.c (elements, maps), evalsum.c (the primitives that
 * accumulate or order). One function per primitive, in the table of eval.c. */
#ifndef KILN_EVAL_H
#define KILN_EVAL_H
#include "ir.h"

typedef struct Eval {
  const Graph *g;
  const EvalEnv *env;
  Arena *a;      /* holds the values */
  Arena *tmp;    /* emptied after every node */
  Tensor **val;  /* by node id */
  Tensor **outs; /* by node id of a CALL: all its outputs */
} Eval;

/* Fills out->data, allocated for the node's elements. False: one error is set. */
typedef bool EvalFn(Eval *e, const Node *n, Tensor *out);

static inline const void *eval_in(const Eval *e, const Node *n, int k) {
  return e->val[n->in[k]->id]->data;
}

/* evalmap.c: elements at..at+n-1 of an array of type t, from double (any type) or int64 (not floating): modulo 2^bits, bool as
 * != 0. */
void store_f(DType t, void *p, int64_t at, int64_t n, const double *from);
void store_i(DType t, void *p, int64_t at, int64_t n, const int64_t *from);
double *all_f(Eval *e, const Node *n, int k); /* operand k as doubles, in tmp */
int64_t *all_i(Eval *e, const Node *n, int k);
EvalFn eval_map, eval_cast, eval_select;

/* An operand addressed by an affine map. */
typedef struct Walk {
  int rank;
  const AffDim *map;
  const int64_t *dims;
  int64_t stride[KL_RANK];
} Walk;
Walk walk_of(const Node *operand, const AffDim *map);
/* Offset at the loops' index, or -1 for outside. */
int64_t walk_at(const Walk *w, const int64_t *idx);
/* Elements of the operand over `inner` = 0..n-1, the other loops fixed: i in lo..hi-1 is at base + i*step, the rest
 * outside. Only if walk_is_linear: every dimension that reads `inner` has div 1. */
typedef struct Run {
  int64_t base, step, lo, hi;
} Run;
bool walk_is_linear(const Walk *w, int inner);
Run walk_run(const Walk *w, int64_t *idx, int inner, int64_t n);
/* The next index in row-major order over the n loops listed; false after the last. */
bool next_index(int n, const int *loops, const int64_t *ext, int64_t *idx);

/* evalsum.c */
EvalFn eval_contract, eval_reduce, eval_argmax, eval_scatter, eval_argsort;

#endif
