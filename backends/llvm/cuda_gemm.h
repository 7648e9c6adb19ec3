/* What the generators of matrix products share. */
#ifndef KILN_CUDA_GEMM_GEN_H
#define KILN_CUDA_GEMM_GEN_H
#include "../cuda/gemm.h"
#include "cuda_gen.h"

enum { GEMM_SUMS = 128 /* most of a thread */ };

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
} Gemm;

LLVMTypeRef gemm_type(const Gemm *m);
Val gemm_shared(Gemm *m, Val at); /* the address of an element of shared memory */

/* cuda_products.c */
void gemm_start(Gemm *m);               /* sums = 0 */
void gemm_products(Gemm *m, Val stage); /* sums += the products of the step that lies at `stage` */
void gemm_spill(Gemm *m, int part);     /* the sums of a part to shared memory, rows of out_pitch */
Aff gemm_spilled(Gemm *m, int part, const Aff *at); /* the row of the tile that row `at` holds */

#endif
