/* What the operators on sequences (sequence*.c) share. */
#ifndef KILN_SEQUENCE_H
#define KILN_SEQUENCE_H
#include "ops.h"

enum { MAX_ROWS = 1 << 24, MAX_STEPS = 20000 };

static inline int64_t seq_n_rows(const Lod *l) { return l->offset[l->n]; }
static inline int64_t seq_length(const Lod *l, int64_t i) {
  return l->offset[i + 1] - l->offset[i];
}

/* sequence.c */
int64_t seq_longest(const Lod *l);
/* From lengths. NULL: too many rows. */
const Lod *seq_lod(Graph *g, int64_t n, const int64_t *len);
/* The rows at[0..n-1] of x; a negative one reads as zeros. */
Node *seq_rows(Graph *g, Node *x, int64_t n, const int64_t *at);
/* Of each row of sequences, row i of x if it is of sequence i. */
Node *seq_spread(Graph *g, Node *x, const Lod *l);
/* [T, ...] -> [N, width, ...], zeros behind the ends. */
Node *seq_wide(Graph *g, Node *x, const Lod *l, int64_t width);
/* An input with its sequences. In shape inference *l is NULL, and the result's rows are not known. */
bool seq_read(Expand *x, const char *slot, Node **v, const Lod **l);
bool seq_unknown(Expand *x, const char *slot, const Node *like);

#endif
