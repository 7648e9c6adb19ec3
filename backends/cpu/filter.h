/* What filter.c (planning), filter_run.c and winograd_filter.c share: gradients of filters as products over positions. */
#ifndef KILN_FILTER_H
#define KILN_FILTER_H
#include "tiles.h"
#include "../llvm/micro.h"

typedef struct FilterAxis {
  int64_t pos, n, taps; /* loops over positions and taps */
  int64_t at, step, tap_step, size,
      stride; /* A is read at `at + step*pos + tap_step*tap` of `size` */
  int64_t c;  /* stride of a tap in the result */
} FilterAxis;

/* The same by Winograd's algorithm: see winograd_filter.c. */
typedef struct FilterWinograd {
  bool used;
  int64_t down, across,
      rows; /* tiles of an image; rows of them whose products are summed at once */
  int64_t a_step, b_step,
      c_step; /* elements between the matrices of transformed tiles, of their sums */
} FilterWinograd;

typedef struct FilterPlan {
  int a, b;
  LoopList groups, images;
  FilterAxis h, w;
  int64_t a_base, b_base, b_pos; /* b_pos: elements between positions */
  int64_t channels, columns, c_row;
  bool fold;         /* taps along w are channels */
  int64_t positions; /* of all images */
  TileRow tile;
  Blocks rows, cols;     /* channels and columns of a task */
  int64_t chunk, shares; /* positions packed together; into how many sums they are divided */
  Blocks share; /* of the positions, with strips of the blocks of rows, else of the rows of tiles */
  Blocks lines; /* n > 0: strips; how the rows of an image are cut */
  int64_t strip_w, pixel; /* columns of a strip, elements of one */
  bool a_plain;           /* A is read in place: one tap, position p at p*w.stride */
  bool keep;              /* the first tile of a panel of B packs it; else B is read in place */
  int more_lines;         /* fetched of the next block: see MicroSpec */
  FilterWinograd winograd;
  MicroSet set;
  /* into the set; then of the first tiles, if they keep */
  int fn[MOST_ROWS + 1][MOST_VECTORS + 1][2], first[MOST_ROWS + 1][MOST_VECTORS + 1][2];
} FilterPlan;

/* Elements between packed positions of A beside its channels: so that they do not fall into a few sets of the L1 cache. */
enum { FILTER_APART = 16 };
/* Positions of A that n of an axis read at all taps. */
static inline int64_t filter_reach(const FilterAxis *axis, int64_t n) {
  return window_reach(n, axis->step, axis->taps, axis->tap_step);
}

/* filter_run.c */
KernelFn filter_tasks;
/* What a task sums: a block of channels and one of columns over a share of the positions. */
typedef struct FilterTask {
  int64_t i0, rows, o0, columns, p0, p1, share; /* p0, p1: positions, or rows of tiles */
  int64_t c;                                    /* of the block's first result, in elements */
  const char *a, *b;                            /* of position 0, channel and column 0 */
} FilterTask;
FilterTask filter_task(const Plan *plan, void *const *bufs, int64_t t);

/* A as it is read: copied, or where the kernel computes it (kernel_operand) made from the input that lies the same way. */
typedef struct FilterSource {
  const Plan *plan;
  void *const *bufs;
  RunCtx *ctx;
} FilterSource;
/* What n rows of an image, the first of them at position p, read at all taps: with zeros around, strip_w columns of `pixel` elements. */
void filter_strip(const FilterSource *s, const FilterTask *t, int64_t p, int64_t n, char *to);

/* winograd_filter.c: divides p's tasks so that it runs that way, if it can and that seems faster; want: tasks worth making. */
bool winograd_filter_plan(const Facts *f, FilterPlan *p, int64_t want);
int64_t winograd_filter_scratch(const FilterPlan *p); /* elements */
KernelFn winograd_filter_tasks;

#endif
