/* Recomputation, private to recompute*.c and again.c: which values are computed twice, and what that means for the kernels. */
#ifndef KILN_RECOMPUTE_H
#define KILN_RECOMPUTE_H
#include "rewrite.h"

enum { NEVER = 1 << 30 };

typedef struct Reading {
  int value; /* a stored one */
  bool aligned;
} Reading;

/* How a value is computed again. `whole`: by its kernel once more, with all its outputs, so that reductions and contractions
 * give the same bits; else by a loop of the maps that lie between the value and what is stored. */
typedef struct Recipe {
  bool possible, whole;
  int latest; /* the last kernel that it may stand before: later ones change a state that it reads */
  double cost;        /* nanoseconds, roughly */
  int64_t extra;      /* bytes needed besides, while it runs */
  VEC(Node *) nodes;  /* computed again, operands before users */
  VEC(Node *) inputs; /* stored values and sources */
  VEC(Reading) reads; /* the stored values among them */
} Recipe;

typedef struct Stored { /* a value that a kernel stores */
  Node *node;
  int kernel;
  int64_t bytes;
  bool at_exit; /* fetched, written or kept: stays */
  int split; /* kernels from this one on read it as computed again, just before it; NEVER: all read the first */
  Recipe recipe;
} Stored;

typedef struct Step { /* a kernel as it is given */
  VEC(Reading) reads;
  VEC(int) stores;
} Step;

typedef struct Recompute {
  Graph *g;
  Arena *a;
  int n, n_values;
  Step *steps;
  Stored *values; /* in the order of their nodes: operands come before users */
  int *value_of;  /* node id -> value, -1 */
  int *changed;   /* node id of a state -> the first kernel that replaces it, NEVER */
} Recompute;

/* recompute.c: the kernels as they are, without recipes; lives as long as a. */
Recompute recompute_of(Graph *g, Arena *a);
/* recompute_apply.c */
void find_recipe(Recompute *r, Stored *v);
/* The kernels as the splits say. */
void apply_splits(Recompute *r);

#endif
