/* Attention as loops: what passes and backends see of the two contractions of a K_ATTENTION. See attention.c. */
#ifndef KILN_IR_ATTENTION_H
#define KILN_IR_ATTENTION_H
#include "ir.h"

/* A loop, and the elements between its neighbours in each tensor. */
typedef struct AttentionLoop {
  int64_t ext, q, k, v, out;
} AttentionLoop;
typedef struct Attention {
  const Node *scores, *out; /* the contractions */
  int q, weights;           /* operands of scores (the other is k) and of out (the other is v) */
  int n_outer;              /* loops around rows and keys, outermost first as in the scores */
  AttentionLoop outer[KL_RANK], row, key, depth, width;
  AttentionLoop at; /* where the first element is */
} Attention;
/* False: they are not of this form. */
bool attention_of(const Node *scores, const Node *out, int weights, Attention *a);
void attention_of_kernel(const Kernel *k, Attention *a); /* of K_ATTENTION */

#endif
