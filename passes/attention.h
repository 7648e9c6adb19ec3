/* What the two halves of the attention pass share. Private to them. */
#ifndef KILN_PASSES_ATTENTION_H
#define KILN_PASSES_ATTENTION_H
#include "rewrite.h"
#include "../ir/attention.h"

enum { LEAST_ATTENTION = 8 }; /* rows or keys: below, separate kernels are as good */

typedef struct Joining {
  Graph *g;
  Arena *a;
  int *maker;     /* by node id: the kernel that stores it, -1 */
  int *readers;   /* by node id: kernels, writes and fetches that read it */
  Kernel **after; /* by kernel: what is to run after it, or NULL */
} Joining;

/* The forward kernels. */
typedef struct Parts {
  Kernel *scores, *rows, *sums;
  Node *weights;
} Parts;

/* The contraction behind the only input of a loop over rows that is read at the point alone and made for it; but: not that
 * one, or NULL. */
Kernel *scores_of(const Joining *p, const Kernel *rows, const Node *but);
bool kernel_checks(const Kernel *k);
bool is_row_of(const Kernel *k, const Node *n); /* has it the row shape of the loop? */
/* What follows the core becomes a kernel of its own. */
void detach_epilogue(Joining *p, int at);
void sort_nodes_of(Kernel *k); /* by id */
/* attention_grad.c: if all others who read the weights are their gradient's kernels, these become one, and the forward's row
 * values become outputs of it. False: they do not. */
bool join_gradient(Joining *p, const Parts *m);

#endif
