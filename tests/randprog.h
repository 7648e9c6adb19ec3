/* Random programs: chains and graphs of operators over small tensors, from a seed. */
#ifndef KILN_RANDPROG_H
#define KILN_RANDPROG_H
#include "opcase.h"

enum { GEN_VALUES = 64 };
typedef struct Value {
  Var *var;
  double size; /* how large its elements are, about */
  bool exact;  /* the same in every executor */
} Value;
typedef struct Gen {
  uint64_t seed;
  Program *p;
  Block *b;
  int n, n_var;
  bool halves; /* 16-bit types: code rounds to them less often than the interpreter */
  Value v[GEN_VALUES];
} Gen;

int gen_pick(Gen *g, int n); /* 0..n-1, from the seed */
void gen_program(Gen *g, uint64_t seed);
/* A copy with the mean of a late value, its gradients, and sgd for some parameters; the gradients' names, at most 3. NULL if no
 * value has gradients. */
Program *gen_gradients(Gen *g, const char **grads, int *n_grads);

#endif
