/* Contractions as matrix products: what gemm.c plans and backends/llvm/cuda_gemm.c generates. */
#ifndef KILN_CUDA_GEMM_H
#define KILN_CUDA_GEMM_H
#include "plan.h"

enum { CUDA_STEP = 16 /* products summed between two barriers */, CUDA_NARROW = 32 };

typedef struct CudaTiling {
  CudaMath math;
  DType type;
  int bm, bn, warps_m, warps_n, stages, parts, rate;
} CudaTiling;

/* Loops of one class, outermost first, and the merged index over them. */
typedef struct CudaAxes {
  int n;
  Axis axis[KL_LOOPS];
  int64_t total;
} CudaAxes;

/* What a side's tile needs as it lies in memory, see panel.c; elements. */
typedef struct CudaPanel {
  int64_t size; /* 0: none */
  /* along K: summed elements that it holds, all of them or more than a step's; else 0 */
  int64_t chunk;
  int slots;            /* chunks, or steps, in shared memory at once */
  int64_t span, packed; /* elements of a run, side by side; */
  int64_t reach,
      gap; /* to where the next one would go on with its steps; of that behind its last element: 0 without holes */
  int inner;            /* loops along the panel before those of a run */
  int sign;             /* -1: it goes backwards */
  bool turned;          /* what is contiguous of it forwards, the loops around that backwards */
  int64_t back;         /* from its lowest element to the first */
  int lanes;            /* neighbours of a tile's row that are in different banks */
  int64_t runs, pieces; /* areas are runs x pieces */
  int outer;   /* loops across whose positions are of different pieces, the first so many; */
  int64_t per; /* positions of a piece */
  /* of chunks: rows of an area start at multiples of so many elements and do not overlap; or 0 */
  int64_t row;
  int64_t length, pitch; /* of an area; between areas */
  /* with groups: contiguous elements of one, of those of a block, of all, which is a pixel in memory; between pixels of an area,
   * which holds every so many-th of memory; pixels of an area between neighbouring taps of a run */
  int64_t unit, wide, all, pixel, every, hop;
} CudaPanel;
enum { CUDA_PANEL_AHEAD = 2 /* steps that panels are ahead of the tiles made of them */ };

/* A side's tile that is read line by line, see lines.c; elements. */
enum { CUDA_LINE_CHECKS = 3 /* most */ };
typedef struct CudaLines {
  bool on;
  int64_t span,
      by; /* elements of a run; what lies between neighbours of them, backwards if negative */
  int checks, check[CUDA_LINE_CHECKS]; /* dimensions of the operand whose index may be outside */
} CudaLines;

/* One side of the product. */
typedef struct CudaSide {
  int x; /* operand of the contraction */
  CudaAxes axes;
  int tile;       /* rows or columns of a block; of groups, one after the other */
  int64_t blocks; /* along them */
  bool k_major;   /* rows of summed elements; otherwise the summed index is the row */
  int vec;        /* neighbouring elements moved at once, 1 or of at most 16 bytes */
  bool stored;    /* it lies in memory, nothing is computed as it is read; */
  bool direct;    /* as what shared memory holds, and there is cp.async, */
  bool async;     /* by which the tile is filled */
  int per;        /* elements of a sector */
  int shift; /* elements of a sector, where rows in memory start anywhere in one: copies are cut where sectors are; else 0 */
  CudaPanel panel;
  CudaLines lines;
  int run; /* along K, of neighbouring threads, before the next row's: CUDA_STEP; 8, 4: near_run */
} CudaSide;

typedef struct CudaGemm {
  /* the contraction, or that of the results at step * loop + at: a residue class of a strided gradient */
  const Node *core;
  int64_t step[KL_LOOPS], at[KL_LOOPS];
  const CudaTiling *tile;
  CudaSide side[2]; /* M, N */
  CudaAxes batch, k;
  int groups,
      group; /* neighbouring indices of that loop in a block, a warp each, see groups.c; 1: none */
  CudaAxes columns;    /* of the results: side 1's, within the groups */
  int rows, width;     /* results of a block */
  bool even;           /* steps never cross the end of the last summed axis */
  int64_t steps;       /* of the whole sum */
  int64_t splits, per; /* parts of the sum, steps of each */
  int vec;             /* neighbouring results stored at once */
  bool flat;           /* rows of results are side by side in memory and stored as one run, */
  bool turn;           /* or each from its first whole sector on */
  bool pack;           /* what follows the product reads neighbours for them */
  int ahead;           /* steps that copies are ahead of the products */
  int threads;
  int64_t stage_size; /* elements of shared memory */
} CudaGemm;

/* The product of one class; NULL: not a matrix product worth it. */
CudaGemm *cuda_gemm_plan(Gen *g, const CudaTarget *t, int class);
/* Elements between rows of a side's tile in shared memory, and rows. */
int cuda_side_pitch(const CudaGemm *p, int side);
int cuda_side_rows(const CudaGemm *p, int side);
int64_t cuda_result_pitch(const CudaGemm *p); /* between rows of results there */
/* Runs of 8 go to four rows so far apart in shared memory that they are in different banks: with 2, row i of eight is row
 * i % 4 * 2 + i / 4 of the tile; with 1, row i. */
int cuda_near_rows(const CudaGemm *p, int side);
/* Where a side's panel lies in shared memory, behind the stages. */
int64_t cuda_panel_at(const CudaGemm *p, int side);
int64_t cuda_lines_at(const CudaGemm *p, int side); /* its table, behind the panels */
int64_t cuda_gemm_part(const CudaGemm *p);          /* elements between parts of a split sum */
int64_t cuda_gemm_shared(const CudaGemm *p);        /* bytes */
int64_t cuda_shared_most(const CudaTarget *t);      /* bytes that a block may have */

/* How the target multiplies such elements. */
CudaMath cuda_gemm_math(DType t, const CudaTarget *target);
/* Parts of a sum over `steps` at most, whose results have `bytes`. */
int64_t cuda_most_splits(int64_t blocks, int64_t steps, int64_t bytes);

/* groups.c */
/* The plan of a product whose blocks have several groups, as of a convolution; false: it is none. */
bool cuda_groups_plan(Gen *g, CudaGemm *p, const CudaTarget *t, int64_t bytes);

/* classes.c */
/* Into how many products the results divide. */
int cuda_gemm_classes(const Node *c);
/* The contraction of a class, and which results these are: *p gets step and at. */
const Node *cuda_class_core(Gen *g, int class, CudaGemm *p);
/* Is it of a class without taps, zeros? Positions that move nothing are batches there. */
bool cuda_reads_nothing(const Node *c);
/* Summed loops that move an operand backwards, as taps of a gradient do, run the other way. */
const Node *cuda_forward_core(Gen *g, const Node *c);
int64_t cuda_map_factor(const AffDim *m, int l); /* of loop l, in an index; 0 for l < 0 */

/* panel.c */
/* Loops of axes one by one, outermost first, but those of one iteration: by how many elements each moves the operand. */
typedef struct CudaMoves {
  int n;
  int64_t ext[KL_LOOPS], by[KL_LOOPS];
} CudaMoves;
CudaMoves cuda_side_moves(const Node *c, int x, const CudaAxes *axes);
/* Elements between neighbours of the operand along a loop, where nothing divides. */
int64_t cuda_side_move(const Node *c, int x, int loop);
bool cuda_side_divides(const Node *c, int x);
int64_t cuda_side_fixed(const Node *c, int x);   /* the element at which all loops are 0 */
bool cuda_panel_whole(const CudaGemm *p, int s); /* all of the sum is in it from the start */
/* Gives the side a panel of at most so many elements; false: it stays as it is. */
bool cuda_panel_plan(CudaGemm *p, int s, int64_t most);
/* The same for groups, whose sizes and orientation are known; chunks: not of the whole sum, if that has no room. */
bool cuda_panel_groups(CudaGemm *p, int s, bool chunks, int64_t most);
int cuda_panel_lanes(const CudaGemm *p, int s); /* neighbours along it that a warp reads, at most */
int64_t cuda_side_held(const CudaGemm *p, int s); /* rows or columns of a group in a block */

/* lines.c */
/* Which sides without a panel are read line by line. */
void cuda_lines_plan(CudaGemm *p);
int64_t cuda_lines_size(const CudaGemm *p, int side); /* of the table, in elements */

#endif
