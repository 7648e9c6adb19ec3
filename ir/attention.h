/* Attention as loops: what passes and backends see of the contractions of K_ATTENTION and K_ATTENTION_GRAD. See attention.c. */
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
  bool over_rows;           /* out is summed over rows, not keys */
  int n_outer;              /* loops around rows and keys, outermost first as in the scores */
  AttentionLoop outer[KL_RANK], row, key, depth, width;
  AttentionLoop at; /* where the first element is */
} Attention;
/* False: they are not of this form. */
bool attention_of(const Node *scores, const Node *out, int weights, Attention *a);
void attention_of_kernel(const Kernel *k, Attention *a); /* of K_ATTENTION */

/* Weights as e^(x - max) times `factor` or over it; max and factor are values for each row of the last axis. */
typedef struct AttentionSoftmax {
  Node *exp, *max, *factor;
  bool divide;
} AttentionSoftmax;
bool attention_softmax(const Node *weights, AttentionSoftmax *s); /* false: they are not */

#endif
