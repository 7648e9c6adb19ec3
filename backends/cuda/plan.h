/* What planning tells the generator about a launch. Private to plan*.c and backends/llvm/cuda_*.c. */
#ifndef KILN_CUDA_PLAN_H
#define KILN_CUDA_PLAN_H
#include "cuda.h"
#include "../llvm/gen.h"

typedef enum CudaForm {
  CUDA_POINTS /* a thread for each vector of results */
} CudaForm;

struct CudaStage {
  CudaForm form;
  LoopPart part;
};

enum { CUDA_THREADS = 256, CUDA_MOST_BLOCKS = 4224 /* 8 for each of 132 processors */ };

#endif
