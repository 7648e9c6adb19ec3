/* Attention in tiles of rows: see attention.c. */
#ifndef KILN_ATTENTION_H
#define KILN_ATTENTION_H
#include "../../ir/attention.h"
#include "tiles.h"
#include "../llvm/llvm.h"

typedef struct AttentionPlan {
  Attention a;
  bool no_blas;
  int size;                             /* bytes of an element */
  int slot_q, slot_k, slot_v, slot_out; /* in the kernel's buffers */
  Node *weights,
      *factor;  /* what the generated code stores; factor: NULL, or for the row of results */
  bool divide;  /* by the factor */
  Kernel *rows; /* scores, the kernel's inputs -> weights, the kernel's other outputs, factor */
  KernelFn *fn; /* its code: LOOP_ROWS */
  Mat q;        /* a tile of it */
  bool copy_q;  /* to the scratch first */
  int64_t outer, tile, tiles, tiles_per_task, parts; /* parts: tasks of one outer index */
  int64_t at_bufs, at_q, at_k, at_v, at_scores, at_out, at_factor, scratch; /* bytes */
  Plan *product[2];                                                         /* q k^T, weights v */
} AttentionPlan;
AttentionPlan *attention_plan(Arena *a, const Kernel *k, bool no_blas);
void attention_want(AttentionPlan *p, CodeBatch *b);
void attention_code(const AttentionPlan *p, KernelCode *code);

#endif
