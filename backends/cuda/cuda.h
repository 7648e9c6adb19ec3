/* The inside of the CUDA backend: what a kernel becomes on a GPU. plan.c decides how each kernel is launched, the generator
 * (backends/llvm/cuda_*.c) makes PTX for just these launches, the run time binds buffers and launches them in order.
 *
 * Contract of an entry: its parameters are those of CudaLaunch.args, all of 8 bytes. Device addresses of buffers, with the
 * offset of the argument added, are multiples of 16. A grid of exactly that size and blocks of exactly that size. Dynamic
 * shared memory of `shared` bytes: more than 48 KiB must be allowed by cuFuncSetAttribute. Launches that follow one another
 * in a stream see what the ones before have written. Results do not depend on the order in which blocks run. */
#ifndef KILN_CUDA_H
#define KILN_CUDA_H
#include "../backend.h"

/* An argument of a launch. */
typedef enum CudaArgKind {
  CUDA_BUF, /* device address of buffer i of the kernel (inputs, outputs, workspace) plus `offset` bytes */
  CUDA_INT, /* the number i */
  CUDA_RUN  /* device address of the executable's CudaRun */
} CudaArgKind;
typedef struct CudaArg {
  CudaArgKind kind;
  int64_t i, offset;
} CudaArg;

/* In device memory, one per executable, so that seed and step change without changing a captured graph. Before a run,
 * failed and lock are 0. Of the CHECKs that fail, the one of the smallest (node, index) is kept, whatever the order. */
typedef struct CudaRun {
  uint64_t seed, step;
  int64_t failed, node, index, value;
  int64_t lock; /* of the threads among themselves */
} CudaRun;

typedef struct CudaStage CudaStage; /* what the generator knows of a launch: plan.h */
typedef struct CudaLaunch {
  const char *entry; /* equal code has equal entries, also in different kernels */
  uint32_t grid[3], block[3];
  uint32_t shared; /* dynamic bytes */
  int n_args;
  CudaArg *args;
  bool guarded; /* does nothing if CudaRun.failed is set: it writes state */
  bool clear;   /* first set buffer clear_buf (counted as in CudaArg) to zero bytes */
  int clear_buf;
  const CudaStage *stage;
} CudaLaunch;
typedef struct CudaPlan {
  int n;        /* launches, in order; 0: nothing to do */
  bool on_host; /* no launches: the run time calls a C function, see call.c */
  CudaLaunch *launch;
  int64_t workspace; /* bytes */
} CudaPlan;

typedef enum CudaMath {
  CUDA_F32, /* exact products, float32 sums */
  CUDA_TF32,
  CUDA_BF16
} CudaMath; /* the inputs of float32 products */
typedef struct CudaTarget {
  int sm; /* 75, 80, 90, 100: compute capability times 10 */
  CudaMath math;
} CudaTarget;

/* Kernel.choice: 0, or 1 + a CudaLibrary, which computes the sums, and with CUDA_WHOLE the rest too. */
enum { CUDA_WHOLE = 16 };

/* plan.c: no LLVM. Any thread; a Graph belongs to one thread at a time. */
/* "cuda:sm_80", "cuda:sm_80:tf32", "cuda:sm_80:bf16". E-GEN-002. */
bool cuda_target(const char *name, CudaTarget *t);
/* In the arena. NULL: E-GEN-002, the kernel cannot run on a GPU. */
CudaPlan *cuda_plan(Arena *a, const Kernel *k, const CudaTarget *t);
/* access.c: all that a plan and its code depend on, the target left out; key's arena is used. */
void cuda_key(Kernel *k, Str *key);

/* ptx.c: one module with all entries of the kernels' plans; what: "ptx" or "llvm". E-GEN-001, E-GEN-002, E-GEN-003. */
bool cuda_text(int n, Kernel *const *k, const CudaTarget *t, const char *what, Str *out);
/* codegen.c of ../code: by the module of code generation. */
bool cuda_emit_text(int n, Kernel *const *k, const CudaTarget *t, const char *what, Str *out);
static inline bool cuda_ptx(int n, Kernel *const *k, const CudaTarget *t, Str *out) {
  return cuda_text(n, k, t, "ptx", out);
}

#endif
