/* What the parts of `kiln diff` share: structure (diff_ops.c) and values (diff.c). */
#ifndef KILN_DIFF_H
#define KILN_DIFF_H
#include "tools.h"

/* Two programs, operator by operator. */
typedef struct Pair {
  const Op *a, *b; /* one of them may be NULL: only in the other program */
} Pair;
typedef struct Alignment {
  Arena *arena;
  int n;
  Pair *pairs;     /* of block 0, in the order of both */
  Map *to_b;       /* names of a's variables -> those of b's that stand in the same places */
  int differences; /* found in the structure */
  Str text, json;  /* of the differences; json: elements of a list */
} Alignment;

/* Operators are aligned by a longest common subsequence of their types; aligned ones are compared attribute by attribute, and
 * variables that stand in the same places in shape, type and use. */
Alignment *diff_structure(Arena *a, const Program *x, const Program *y);
/* A difference, for people and for programs. */
void diff_add(Alignment *al, const char *what, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

#endif
