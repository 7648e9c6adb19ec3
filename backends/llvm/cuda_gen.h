/* What the files of the CUDA generator share: functions for the launches of backends/cuda/plan.h. */
#ifndef KILN_CUDA_GEN_H
#define KILN_CUDA_GEN_H
#include "../cuda/plan.h"
#include "gen.h"

/* cuda_text.c */
bool cuda_module_text(int n, Kernel *const *k, const CudaTarget *t, const char *what, Str *out);

/* cuda_fn.c: the function of a launch; false: g->failed says why not. */
bool gen_cuda(Gen *g, const Kernel *k, const CudaLaunch *l);
/* A special register, "tid.x", as an i64 and as a loop variable with values 0..n-1. */
Val cuda_register(Gen *g, const char *name);
Aff cuda_index(Gen *g, const char *name, int64_t n);
/* The end of kl_check's failing branch, in CudaRun; what: ctx, node, index, value. */
void cuda_check_record(Gen *g, LLVMBuilderRef b, Val fn, const Val what[4], LLVMBasicBlockRef done);

#endif
