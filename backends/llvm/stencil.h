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
  bool sums;       /* over the positions: the gradient of the filter; otherwise over the taps */
  int x;           /* operand that windows move over */
  Window row, col; /* row.at -1: one row */
  int chan;
  int64_t channels, block, n_block; /* of channels */
  int64_t step;                     /* elements of x from column to column */
  int n_outer, n_sum;
  int outer[KL_RANK], sum[KL_LOOPS]; /* further loops: of the result, summed */
  int64_t n_outers, parts;           /* parts: of the blocks of rows, summed on their own */
  int64_t height,
      n_height; /* rows (h) of a block, a multiple of row.div; how many: the last may have fewer */
  int64_t blocks, blocks_per_task;
};

/* How a block of rows is cut: columns of a tile, and how many tiles. Only the first and the last read outside of x. */
int64_t stencil_tile(const Stencil *s, int registers);
int64_t stencil_tiles(const Stencil *s, int64_t size);
/* Columns of x that the positions from..from+n-1 read, rounded outward. */
void stencil_reads(const Stencil *s, int64_t from, int64_t n, int64_t *lo, int64_t *hi);
/* Blocks of rows of a part. */
int64_t stencil_part(const Stencil *s);
/* Elements between neighbours along dimension d. */
int64_t stencil_stride(const Node *x, int d);
/* Of columns first..last of x with what lies between them. */
int64_t stencil_row_bytes(const Stencil *s, int64_t first, int64_t last);
#endif
