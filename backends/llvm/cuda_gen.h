/* What the files of the CUDA generator share: functions for the launches of backends/cuda/plan.h. */
#ifndef KILN_CUDA_GEN_H
#define KILN_CUDA_GEN_H
#include "../cuda/plan.h"
#include "loop.h"

/* cuda_text.c */
bool cuda_module_text(int n, Kernel *const *k, const CudaTarget *t, const char *what, Str *out);

/* cuda_fn.c: the function of a launch; false: g->failed says why not. */
bool gen_cuda(Gen *g, const Kernel *k, const CudaLaunch *l);
/* A special register, "tid.x", as an i64 and as a loop variable with values 0..n-1. */
Val cuda_register(Gen *g, const char *name);
Aff cuda_index(Gen *g, const char *name, int64_t n);
/* An array of shared memory of this function, 16-byte aligned; one for each name. */
Val cuda_shared(Gen *g, const char *name, LLVMTypeRef t, int64_t n);
void cuda_barrier(Gen *g);           /* of the block, at the current depth */
Loop cuda_if(Gen *g, Val condition); /* a loop that runs once or not at all; loop_close ends it */
/* The end of kl_check's failing branch, in CudaRun; what: ctx, node, index, value. */
void cuda_check_record(Gen *g, LLVMBuilderRef b, Val fn, const Val what[4], LLVMBasicBlockRef done);

/* cuda_nest.c */
/* A loop over 0..n-1 that the blocks of the grid share. */
Loop cuda_blocks(Gen *g, const CudaLaunch *l, int64_t n, int *var);
/* Row-major position -> the first n_out loops over results. */
void cuda_place(Gen *g, const Nest *t, int n_out, Aff at, Aff *out);
void cuda_points(Gen *g, const CudaLaunch *l);
void cuda_tiles(Gen *g, const CudaLaunch *l);
/* emit.c asks while g->tile is set: is this read staged? If so, *v is its value, or NULL: then it is read, and handed over. */
bool cuda_tile_load(Gen *g, DType t, const Aff *at, Val *v);
void cuda_tile_loaded(Gen *g, Val v);
/* emit.c asks while g->pack > 1 points are computed together that read neighbours or the same: an element out of the vector
 * that holds it, read once, in a loop of depth `least` or deeper; NULL: it is in none. */
Val cuda_pack_load(Gen *g, const Node *n, int buf, const Aff *at, int least);
/* Values of n elements of a buffer: as one vector if they are neighbours. */
void cuda_pack_store(Gen *g, int buf, DType t, int n, const Aff *at, const Val *v);

/* cuda_copy.c: spans of buffers in shared memory, plan.h. */
CudaCopies *cuda_copies_new(Gen *g, const Nest *t, const CudaSpans *spans);
/* The block's points are *first.. *first + n - 1, n at least 1: reads what they read, in the chunk of sums from skip[] on. */
void cuda_copies_fill(Gen *g, CudaCopies *c, const Aff *first, Val n, const Aff *skip);
/* Writes what they wrote: which, by bits, of the spans; those that are results. */
void cuda_copies_flush(Gen *g, CudaCopies *c, uint32_t which);
uint32_t cuda_copies_results(const CudaCopies *c);
/* The value of an element, or NULL: it is in no span. */
Val cuda_copy_load(Gen *g, DType t, int buf, const Aff *at);
/* Keeps a result until the block's are written; false: its buffer has no span. */
bool cuda_copy_store(Gen *g, DType t, int buf, const Aff *at, Val v);
/* A launch of CUDA_JOINS: concatenations. */
void cuda_joins(Gen *g, const CudaLaunch *l);
/* Element i of a span in shared memory; the buffer's element base + i; loads and stores of so many bytes' alignment. */
LLVMTypeRef cuda_word_type(Gen *g, const CudaSpan *s); /* in which vectors are copied */
LLVMTypeRef cuda_element_type(Gen *g, const CudaSpan *s);
Val cuda_span_place(Gen *g, const CudaSpan *s, Val shared, Val i);
Val cuda_span_far(Gen *g, const CudaSpan *s, Val base, Val i);
Val cuda_load_of(Gen *g, LLVMTypeRef t, Val p, int align);
void cuda_store_to(Gen *g, Val v, Val p, int align);

/* cuda_box.c: spans of blocks that are boxes, box.c. */
/* The block's first point, and how many it has. */
Aff cuda_box_first(Gen *g, const Nest *t, const CudaSpans *s, const Aff *block, Val *n);
/* Copies the pieces that begin at `start` of the buffer, for so many indices of the axes that may have fewer. */
void cuda_box_fill(Gen *g, const CudaSpan *s, const CudaSpans *all, Val shared, Val start, Val cut,
                   Val chunk);
/* The element of the span in shared memory that lies v behind `start`. */
Val cuda_box_find(Gen *g, const CudaSpan *s, Val start, Val v);
/* Writes the results from `start` on, for so many indices of the axis that may have fewer. */
void cuda_box_flush(Gen *g, const CudaSpan *s, const CudaSpans *all, Val shared, Val start,
                    Val cut);
/* Reads or, of results, writes exact spans. */
void cuda_box_exact(Gen *g, const CudaSpan *s, const CudaSpans *all, Val shared, Val start, Val cut,
                    Val chunk);

/* cuda_team.c: reductions, of which the lanes' sums are combined by cuda_combine.c */
void cuda_teams(Gen *g, const CudaLaunch *l);
/* cuda_gemm.c: tiles of matrix products; cuda_gemm.h has what its files share */
void cuda_gemm(Gen *g, const CudaLaunch *l);
/* The result of the contraction whose parts g->sums left in the workspace. */
Val cuda_sum_parts(Gen *g, Node *n, const Index *ix);

/* cuda_order.c */
void cuda_scatter(Gen *g, const CudaLaunch *l);
void cuda_runs(Gen *g, const CudaLaunch *l);
void cuda_merge(Gen *g, const CudaLaunch *l);

#endif
