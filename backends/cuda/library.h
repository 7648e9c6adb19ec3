/* NVIDIA's libraries, opened at run time: the functions of library.def, and the numbers of their headers that Kiln uses.
 * Without them Kiln's own kernels run. */
#ifndef KILN_CUDA_LIBRARY_H
#define KILN_CUDA_LIBRARY_H
#include "driver.h"

typedef enum CudaLibrary { LIBRARY_CUBLAS, LIBRARY_CUDNN, LIBRARY_N } CudaLibrary;

typedef struct CublasAlgo {
  uint64_t data[8];
} CublasAlgo;
typedef struct CublasResult {
  CublasAlgo algo;
  size_t workspace;
  int status;
  float waves;
  int reserved[4];
} CublasResult;
typedef struct CudnnResult {
  int algo, status;
  float time;
  size_t memory;
  int deterministic, math, reserved[3];
} CudnnResult;

enum { /* of cublasLt.h and library_types.h */
       CUDA_R_32F = 0,
       CUDA_R_64F = 1,
       CUDA_R_16F = 2,
       CUDA_R_16BF = 14,
       CUBLAS_COMPUTE_32F_PEDANTIC = 69,
       CUBLAS_COMPUTE_64F_PEDANTIC = 71,
       CUBLAS_COMPUTE_32F = 68,
       CUBLAS_COMPUTE_32F_FAST_16BF = 75,
       CUBLAS_COMPUTE_32F_FAST_TF32 = 77,
       CUBLASLT_MATMUL_DESC_TRANSA = 3,
       CUBLASLT_MATMUL_DESC_TRANSB = 4,
       CUBLASLT_MATMUL_DESC_EPILOGUE = 7,
       CUBLASLT_MATMUL_DESC_BIAS_POINTER = 8,
       CUBLASLT_EPILOGUE_BIAS = 4,
       CUBLAS_OP_T = 1,
       CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT = 5,
       CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET = 6,
       CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES = 1,
       CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK = 3,
       CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES = 5, /* B, C, D follow */
       CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME = 3,
       CUBLASLT_REDUCTION_SCHEME_INPLACE = 1,
       CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE = 2
};
enum { /* of cudnn.h */
       CUDNN_DATA_FLOAT = 0,
       CUDNN_DATA_DOUBLE = 1,
       CUDNN_DATA_HALF = 2,
       CUDNN_DATA_BFLOAT16 = 9,
       CUDNN_TENSOR_NCHW = 0,
       CUDNN_TENSOR_NHWC = 1,
       CUDNN_CROSS_CORRELATION = 1,
       CUDNN_DEFAULT_MATH = 0,
       CUDNN_TENSOR_OP_MATH = 1,
       CUDNN_FMA_MATH = 3
};

typedef struct CudaLibraries {
#define CALL(library, result, name, params) result(*name) params;
#include "library.def"
#undef CALL
} CudaLibraries;
extern CudaLibraries cuda_library;

/* "cuBLASLt", "cuDNN". */
const char *library_name(CudaLibrary l);
/* Opens it by the first call; any thread; after cuda_open. 0: it cannot be used; else its own version number. */
int64_t library_open(CudaLibrary l);
/* The file that was opened; why none was. */
const char *library_file(CudaLibrary l);
/* True for 0; else E-DEV-007 that names the call and the status. */
bool library_check(const char *call, int status);
#define LIB(name, ...) library_check(#name, cuda_library.name(__VA_ARGS__))
/* For what is being given up. */
#define LIB_DROP(name, ...) ((void)cuda_library.name(__VA_ARGS__))

#endif
