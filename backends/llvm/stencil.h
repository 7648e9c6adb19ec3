/* Depthwise contractions: what stencil.c plans and stencil_gen.c generates. */
#ifndef KILN_STENCIL_H
#define KILN_STENCIL_H
#include "gen.h"

/* A dimension of x that a window moves over: index = (a * at + b * tap + off) / div. */
typedef struct Window {
  int dim, at, tap;                      /* of x; loops of the contraction; tap -1: there is one */
  int64_t a, b, off, div, size, taps, n; /* size: of x; n: positions */
} Window;

struct Stencil {
  Node *core;
  int x;           /* operand that windows move over */
  Window row, col; /* row.at -1: one row */
  int chan;
  int64_t channels, block, n_block; /* of channels */
  int n_outer;
  int outer[KL_RANK]; /* loops */
  int64_t n_outers, rows, rows_per_task;
};

/* Equal tiles, of a multiple of div, whose sums leave registers for a row of the filter and a column of x. */
int64_t tile_columns(const Stencil *s, int registers);
/* How many tiles; the last one takes over what the one before it would read outside. */
int64_t n_tiles(const Stencil *s, int64_t size);
/* Columns of x that the results from..from+n-1 read, rounded outward. */
void columns_read(const Stencil *s, int64_t from, int64_t n, int64_t *lo, int64_t *hi);
#endif
