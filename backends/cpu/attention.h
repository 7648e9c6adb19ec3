/* Attention in tiles of rows: attention.c, its gradient: attention_grad.c, long rows: attention_online.c, what they share:
 * attention_tile.c. */
#ifndef KILN_ATTENTION_H
#define KILN_ATTENTION_H
#include "../../ir/attention.h"
#include "tiles.h"
#include "../llvm/llvm.h"

/* ---- attention_tile.c ---- */

/* Tiles of rows; tasks: some tiles of one outer index. From the shapes alone. */
typedef struct AttentionTiles {
  int64_t outer, rows, keys;
  int64_t tile, tiles, tiles_per_task, parts; /* parts: tasks of one outer index */
} AttentionTiles;
enum { PANEL = 64 }; /* keys packed side by side */
void attention_tiles(AttentionTiles *t, const Attention *a, int64_t row_bytes, int64_t flops);
int64_t attention_room(int64_t *at, int64_t bytes); /* of the scratch, 64-byte aligned */
/* The K_LOOP between contractions: n_at of k's nodes are read and overwritten in tiles (inputs 0..n_at-1), k's inputs follow. */
Kernel *attention_rows(Arena *a, const Kernel *k, int n_at, Node *const *at, int n_out,
                       Node *const *out);
/* A matrix in memory: element (i, j) at from[i*si + j*sj] to to[i*width + j]. */
void attention_copy(int size, void *to, int64_t width, const void *from, int64_t si, int64_t sj,
                    int64_t rows, int64_t columns);
/* k^T of an outer index: panels of PANEL keys, each depth x PANEL. */
void attention_panels(int size, char *to, const char *k, const Attention *a);
int64_t attention_panel_bytes(int size, const Attention *a);
/* n elements times f, `step` apart. */
void attention_store(int size, void *to, int64_t step, const void *from, int64_t n, double f);
/* Scratch from `at` on. */
Plan *attention_product(Arena *a, const Node *n, bool no_blas, int64_t at, MicroShape *s);
void attention_multiply(const Plan *p, const MicroProduct *q, void *scratch);
/* scores (rows x keys) = q k^T with k in panels. */
void attention_scores(const Plan *p, const Attention *a, int64_t rows, const void *q, Mat q_mat,
                      const char *panels, char *scores, void *scratch);
MicroShape attention_scores_shape(const Attention *a, const AttentionTiles *t, Mat q);
AttentionLoop attention_at(const Attention *a, int64_t outer); /* where an outer index begins */
/* The address at which element `first` of an array would have to begin so that it is at p. */
static inline void *attention_before(void *p, int64_t first, int64_t size) {
  return (void *)((uintptr_t)p - (uintptr_t)(first * size));
}

MicroShape attention_sums_shape(const Attention *a, const AttentionTiles *t); /* over keys */

/* ---- attention.c ---- */
typedef struct AttentionBlocks AttentionBlocks;
typedef struct AttentionPlan {
  Attention a;
  AttentionTiles t;
  int size;                             /* bytes of an element */
  int slot_q, slot_k, slot_v, slot_out; /* in the kernel's buffers */
  Node *factor;                         /* NULL, or what each row of results is multiplied by */
  bool divide;                          /* by the factor */
  int slot_factor;                      /* -1: in the scratch */
  Kernel *rows; /* scores, the kernel's inputs -> weights, the kernel's other outputs, factor */
  KernelFn *fn; /* its code: LOOP_ROWS */
  Mat q;        /* a tile of it */
  bool copy_q;  /* to the scratch first */
  int64_t at_bufs, at_q, at_k, at_v, at_scores, at_out, at_factor, scratch; /* bytes */
  Plan *product[2];                                                         /* q k^T, weights v */
  AttentionBlocks *blocks; /* NULL, or how long rows are done in blocks of keys */
} AttentionPlan;
AttentionPlan *attention_plan(Arena *a, const Kernel *k, bool no_blas);
void attention_want(AttentionPlan *p, CodeBatch *b);
void attention_code(const AttentionPlan *p, KernelCode *code);

/* ---- attention_online.c ---- */
/* Sets p->blocks, and other tiles, if the rows are long and the weights softmax's. */
void attention_blocks_plan(Arena *a, AttentionPlan *p, const Kernel *k, bool no_blas);
void attention_blocks_want(AttentionPlan *p, CodeBatch *b);
void attention_blocks_code(const AttentionPlan *p, KernelCode *code);

/* ---- attention_grad.c ---- */
typedef struct AttentionGrad AttentionGrad;
AttentionGrad *attention_grad_plan(Arena *a, const Kernel *k, bool no_blas);
void attention_grad_want(AttentionGrad *p, CodeBatch *b);
void attention_grad_code(const AttentionGrad *p, KernelCode *code);

#endif
