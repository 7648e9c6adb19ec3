/* Contractions by NVIDIA's libraries. shape.c recognises matrix products and convolutions, cublas.c and cudnn.c prepare and
 * make the calls, choice.c decides which kernels are served so. A kernel's sums go into its only output, or into its
 * workspace, from where a launch of CUDA_POINTS takes them on (plan.c). */
#ifndef KILN_CUDA_FOREIGN_H
#define KILN_CUDA_FOREIGN_H
#include "device.h"
#include "library.h"

/* ---- shape.c: planning alone ---- */

/* An axis of a product: one or more loops of the contraction that step evenly through all three tensors. Steps are in
 * elements of the first operand, the second, the result. */
typedef struct ForeignAxis {
  int loop; /* -1: several, or none */
  int64_t ext, step[3];
} ForeignAxis;

/* result[b][m][n] = sum over k of first[b][m][k] * second[b][k][n], for each value of `outer` */
typedef struct ForeignProduct {
  DType type;
  ForeignAxis m, n, k, batch, outer;
  int64_t at[2]; /* the operands' first elements */
} ForeignProduct;
bool foreign_product(const Kernel *k, ForeignProduct *p);

typedef enum ForeignPass { PASS_FORWARD, PASS_DATA, PASS_FILTER } ForeignPass;
enum { FOREIGN_SPACE = 3, FOREIGN_DIMS = FOREIGN_SPACE + 2 };
/* A tensor: images, channels (of the filter: outputs, inputs of a group), then space. Steps in elements. */
typedef struct ForeignTensor {
  int64_t ext[FOREIGN_DIMS], step[FOREIGN_DIMS];
} ForeignTensor;
typedef struct ForeignConv {
  DType type;
  ForeignPass pass;
  int x, y, w; /* 0, 1: the operands, 2: the result */
  int n_space; /* 2 or 3 */
  ForeignTensor image, filter, result;
  int64_t pad[FOREIGN_SPACE], stride[FOREIGN_SPACE], dilation[FOREIGN_SPACE], groups;
} ForeignConv;
bool foreign_conv(const Kernel *k, ForeignConv *c);

/* What follows the sums, as far as the libraries do it. */
typedef struct ForeignTail {
  int bias; /* input of the kernel, or -1 */
  int loop; /* that the bias moves along */
} ForeignTail;
/* False: something else follows. */
bool foreign_tail(const Kernel *k, ForeignTail *t);
/* Do the sums go into the workspace? */
bool foreign_sums_apart(const Kernel *k);

/* ---- calls ---- */

/* A prepared call. */
typedef struct Foreign Foreign;
typedef struct ForeignCalls {
  /* In the arena. NULL: the library does not serve this kernel; an error may be set. most: bytes of workspace. Inside. */
  Foreign *(*make)(Arena *a, CudaDevice *d, const Kernel *k, CudaMath math, int64_t most);
  /* On the stream. at: addresses of the kernel's inputs, outputs, workspace. E-DEV-007. */
  bool (*run)(const Foreign *f, const CUdeviceptr *at, CUstream s);
  void (*free)(Foreign *f);
  bool (*open)(void **handle); /* once for each device */
  void (*close)(void *handle);
} ForeignCalls;
struct Foreign {
  const ForeignCalls *calls;
  void *handle;
  const Kernel *kernel;
  int result;        /* buffer of the sums, as CudaArg counts */
  int64_t result_at; /* bytes into it */
  int64_t workspace_at, workspace;
  bool whole; /* all that follows the sums is done too */
};
extern const ForeignCalls cublas_calls, cudnn_calls;
/* The fields of Foreign, for a call that leaves sums, or does all of the kernel. */
void foreign_start(Foreign *f, CudaLibrary l, CudaDevice *d, const Kernel *k);
void foreign_whole(Foreign *f);
static inline void foreign_free(Foreign *f) {
  if (f) f->calls->free(f);
}

/* ---- choice.c ---- */
/* Sets Kernel.choice and by, and adds to its workspace what the choice needs. */
void choose_provider(Kernel *k, CudaDevice *d, CudaMath math);
/* The call of a kernel that a library was chosen for. NULL: it cannot be prepared any more; no error. Inside. */
Foreign *chosen_call(Arena *a, CudaDevice *d, const Kernel *k, CudaMath math);

#endif
