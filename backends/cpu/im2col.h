/* What im2col.c (planning) and im2col_run.c (running) share: contractions as products with a gathered matrix. */
#ifndef KILN_IM2COL_H
#define KILN_IM2COL_H
#include "cpu.h"

enum {
  IM2COL_PIECE = 32, /* bytes that a copy moves at a time */
  IM2COL_SLACK = 64  /* bytes after col, where the last copies of a row may go too far */
};

/* How a loop moves through x: every loop is in one dimension. */
typedef struct Walk {
  int64_t ext, coef, step; /* coef: in the dimension's index; step: in x's elements */
  int dim;                 /* -1: not in x */
} Walk;

typedef struct Im2colPlan {
  int x, w;
  bool summed;                         /* the positions are summed */
  LoopList outer, sum, pos, tap, rows; /* rows: N */
  Walk walk_outer[KL_LOOPS], walk_sum[KL_LOOPS], walk_pos[KL_LOOPS], walk_tap[KL_LOOPS];
  int64_t tile, tiles; /* positions */
  Mat w_mat, c_mat;
  int64_t w_pos, c_pos; /* steps of a position in w or the result */
  /* outer items in a task, if it takes all tiles; else 0: a task is an (item, tile) */
  int64_t per_task;
  int64_t unit; /* outer items that make one row of the epilogue */
  int64_t steps, chunks;
  /* Taps in a col; blocks > 1 only if the positions are summed: tasks take columns of the result. */
  int64_t block, blocks;
  /* Summed items whose products are one batch; how far w moves between them. */
  int64_t group, w_step;
  const int64_t *tap_at; /* of each tap: elements of x from the first one's; NULL: too many */
} Im2colPlan;

KernelFn im2col_tile_tasks, im2col_tap_tasks, im2col_chunk_tasks; /* im2col_run.c */

#endif
