/* What the generators of matrix products share. */
#ifndef KILN_CUDA_GEMM_GEN_H
#define KILN_CUDA_GEMM_GEN_H
#include "../cuda/gemm.h"
#include "cuda_gen.h"

enum {
  GEMM_SUMS = 128 /* most of a thread */,
  GEMM_VEC = 4 /* most elements read or stored at once */,
  GEMM_MOVED = 96
};

/* Elements that are loaded, as in memory, and where they go if `use` (NULL: always) holds; lanes for which `first` (NULL: all) does
 * before the others, whose banks may be the same. */
typedef struct GemmMoved {
  int s, n;
  Val v[GEMM_VEC], to, use, first;
} GemmMoved;

typedef struct Gemm {
  Gen *g;
  const CudaGemm *p;
  Val memory; /* shared */
  Aff tid, block[2], batch, split;
  Val first, count; /* steps of this block */
  /* gemm_products's: */
  Val warp[2], lane[2]; /* the thread's place: warps along M, N; in a warp, see cuda_products.c */
  int n_sum;
  Val sum[GEMM_SUMS]; /* stack slots */
  int parts;   /* in which a step is read and multiplied, so that loads take fewer registers */
  int n_moved; /* loads that are not stored yet */
  GemmMoved moved[GEMM_MOVED];
} Gemm;

/* A step that is read: the n-th of the block's, t of the sum's. */
typedef struct Step {
  Val n;
  Aff t;
  Val inside; /* it is one of the block's; NULL: always */
  Val next;   /* so is the one after it */
  int part;   /* of what goes through registers, and of the products behind it; of m->parts */
} Step;

LLVMTypeRef gemm_type(const Gemm *m);
Val gemm_shared(Gemm *m, Val at); /* the address of an element of shared memory */

/* cuda_gemm.c */
/* Those of a side at `own` of its tile, the first of vec; the batch's, and the group's. */
void gemm_place_side(Gemm *m, int s, const Aff *own, int vec, Index *ix, Val *ok);
/* The loops of a class at the merged index `at`. */
void gemm_place(Gen *g, const CudaAxes *axes, Aff at, Index *ix);
/* The summed loops at element kk of step t, the first of vec; *ok (NULL: always): it is not behind the end. */
void gemm_place_sums(Gemm *m, const Aff *t, const Aff *kk, int vec, Index *ix, Val *ok);
/* The first of `vec` neighbours, kept below n; both are multiples of vec; *ok (NULL: always) = it was. */
Aff gemm_keep(Gen *g, const Aff *at, int64_t n, int vec, Val *ok);

/* Where the stage of the step that is `n` after the first lies. */
Val gemm_stage(Gemm *m, Val n);
/* Is the i-th of a side's n rounds of reads in the step's part? Those by cp.async are in the first. */
bool gemm_in_part(const Gemm *m, int s, const Step *t, int i, int n);

/* cuda_chunk.c */
int gemm_chunks(const Gemm *m, int s); /* of a thread in a step */
/* Chunk j of step t, by cp.async; to v, vec elements of the side; from there. */
void gemm_copy_chunk(Gemm *m, int s, int j, const Step *t);
void gemm_read_chunk(Gemm *m, int s, int j, const Step *t, Val *v);
void gemm_store_chunk(Gemm *m, int s, int j, Val n, const Val *v);

/* cuda_panel.c */
void gemm_panel_start(Gemm *m, int s); /* the chunk that the sum starts in; the whole panel */
/* What step t is the first to need, or the very first one besides that. */
void gemm_panel_copy(Gemm *m, int s, const Step *t, bool first);
/* v = the side's vec elements of the operand at these loops, 0 where `ok` does not hold; of the panel of step t. */
void gemm_panel_read(Gemm *m, int s, const Step *t, const Index *loops, Val ok, Val *v);

/* cuda_moves.c */
/* n elements of a side by lanes for which `use` (NULL: always) holds; where `ok` (NULL: always) does not, zeros. By cp.async, or
 * loaded, to be stored by gemm_moved. */
void gemm_move(Gemm *m, int s, int n, Val to, Val from, Val ok, Val use);
void gemm_moved(Gemm *m);
/* v = n floats of shared memory, 0 where `ok` (NULL: always) does not hold. Lanes whose `phase` of 0..phases-1 differs are in rows
 * that may be anywhere in the banks: they are served one phase after the other. */
void gemm_load(Gemm *m, Val from, const Aff *phase, int phases, Val ok, int n, Val *v);

/* cuda_lines.c */
void gemm_lines_start(Gemm *m, int s); /* the table of the side's rows */
/* Elements of a part of step t, to its stage and to that of the next one. */
void gemm_lines_copy(Gemm *m, int s, const Step *t, Val stage, Val next);

/* cuda_results.c */
void gemm_results(Gemm *m, int part); /* of a part, from shared memory */

/* cuda_products.c */
void gemm_start(Gemm *m); /* sums = 0 */
/* sums += a part of the products of the step that lies at `stage` */
void gemm_products(Gemm *m, Val stage, int part);
void gemm_spill(Gemm *m, int part); /* the sums of a part to shared memory, rows of out_pitch */
Aff gemm_spilled(Gemm *m, int part, const Aff *at); /* the row of the tile that row `at` holds */

/* The row of the part that holds the order-th row of the tile among those of the part, and which of the tile that is. */
void gemm_ordered(Gemm *m, int part, const Aff *order, Aff *row, Aff *in_tile);

#endif
