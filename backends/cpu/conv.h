/* What conv.c, conv_find.c, conv_cut.c (planning) and conv_run.c (running) share: convolutions, and products, as tiles of positions by
 * channels. */
#ifndef KILN_CONV_H
#define KILN_CONV_H
#include "tiles.h"
#include "../llvm/micro.h"

/* One spatial axis of a part: result position out + out_step*j, 0 <= j < n, reads operand A at in + in_step*j + tap_step*t
 * with filter index k + k_step*t, 0 <= t < taps. tap_step >= 0. */
typedef struct PartAxis {
  int64_t out, out_step, n;
  int64_t in, in_step, tap_step;
  int64_t taps, k, k_step;
} PartAxis;

/* The results of one residue of the positions (one part unless A's map divides), as a convolution without division. */
typedef struct Part {
  PartAxis h, w;
  int64_t k;    /* summed in all: taps_h * taps_w * channels; 0: the results are zero */
  int64_t b_at; /* its panels in packed B, in elements */
  /* > 0: a tile holds up to so many whole rows of n_w positions; 0: it lies in one row */
  int64_t run;
  Blocks rows;                   /* run > 0: how h.n is cut, else w.n */
  int64_t strip_w;               /* columns of A that are read */
  int64_t pixel, line;           /* elements between columns and rows of A as the tiles read it */
  bool fold;                     /* taps along w and channels are one summed run */
  int64_t run_group, run_pieces; /* runs of k summed together, or pieces of one */
  /* into ConvPlan.set: tile of size+1, size; panel of size+1, size, size with a tail */
  int fn[2][3];
} Part;

/* The same by Winograd's algorithm: see winograd.c. */
typedef struct Winograd {
  int m, n;       /* a tile has m x m results and reads n x n positions; m is 0: not used */
  int64_t across; /* tiles in a row of tiles */
  Blocks strips;  /* what a chunk has of the rows of tiles */
  Blocks sums;    /* of the channels, in LANES: what one sum of products has */
  int64_t a_step,
      c_step; /* elements between the matrices of transformed tiles, of their products */
  int fn
      [2][2]
      [2]; /* into ConvPlan.set: strip of size+1, size; tile of size+1, size; panel of size+1, size */
} Winograd;

enum { MOST_PARTS = 16 };
typedef struct ConvPlan {
  int a, b;                /* which operand holds positions, which the filter */
  LoopList images, groups; /* outer loops: without B; of all three tensors */
  int64_t channels, columns;
  int64_t a_base, a_h, a_w, size_h,
      size_w; /* of A: elements, strides of the spatial dimensions, their sizes */
  int64_t b_base, b_kh, b_kw, b_i, b_o;
  int64_t c_h, c_w;
  TileRow tile;
  Blocks panels; /* of the columns, in vectors */
  int n_parts;
  Part part[MOST_PARTS];
  bool copy;       /* A's rows are copied, with zeros around, before they are read */
  bool fetch_rows; /* the next tile's, of A, rather than the next panel */
  int more_lines;  /* of them: see MicroSpec */
  bool pack;       /* B is packed in a phase of its own; else it is read in place */
  int64_t b_size;  /* packed elements per group */
  int64_t units,
      chunks; /* what a task takes of an image: units are result rows, or blocks of one */
  int64_t panel_groups;
  bool by_block; /* units are blocks of the only row */
  bool row;      /* one position: B is read once, which is what counts */
  bool
      reordered; /* B's sums are in another order than A's, or its columns than the result's, which are groups then */
  int64_t k_cut, k_cuts; /* rows of B per packing task */
  int64_t strip_bytes;   /* scratch for the copied rows of a task */
  int64_t row_elems;     /* elements of a row of the epilogue */
  Winograd winograd;
  MicroSet set;
} ConvPlan;

KernelFn conv_pack, conv_tasks; /* conv_run.c */

/* conv_find.c
 * The parts of an axis, at most 4: positions and taps (loops; -1: none) meet in dimension `dim` of operand x; -1: one position.
 * 0: not of the form. */
int conv_axis(const Facts *f, int x, int dim, int pos, int tap, PartAxis *to);
/* Fills in all that depends on no tile, where operand x holds the positions; false: the contraction is not of the form. */
bool conv_find(const Facts *f, int x, ConvPlan *p);
/* Positions of A, from first to last, that n results of an axis read. */
static inline int64_t conv_reach(const PartAxis *axis, int64_t n) {
  return window_reach(n, axis->in_step, axis->taps, axis->tap_step);
}

/* conv_cut.c: tile, panels and tasks; returns the cycles of an image, about; 0: there is no tile. */
double conv_cut(const Plan *plan, ConvPlan *p);
/* Elements *e0..*e1-1 of an image's result, those of all columns, are what a chunk computes. */
void conv_chunk(const ConvPlan *p, int64_t chunk, int64_t *e0, int64_t *e1);

/* winograd.c: fills in p->winograd, and what else changes, if an error of so much is allowed and it costs less than `cycles`,
 * those of the direct form. */
void winograd_plan(Arena *a, const Facts *f, ConvPlan *p, double error, double cycles);
int64_t winograd_scratch(const ConvPlan *p); /* elements */
/* winograd_run.c */
KernelFn winograd_pack, winograd_tasks;
/* A window of 4 x 4 positions at a, of all channels, transformed, to 16 places `step` apart; strides in elements. */
void winograd_window(Isa isa, const float *a, int64_t line, int64_t pixel, int64_t channels,
                     float *to, int64_t step);

#endif
