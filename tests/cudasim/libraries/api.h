/* The parts of cublasLt.h and cudnn.h that the simulated libraries have. With CUDASIM_TOOLKIT they are the real headers, so that
 * the compiler compares every function with its declaration, and the numbers that Kiln uses (make check-cudasim). */
#ifndef CUDASIM_LIBRARIES_API_H
#define CUDASIM_LIBRARIES_API_H
#ifdef CUDASIM_TOOLKIT
#include <cublasLt.h>
#include <cudnn.h>
#endif
#include "../library.h"
#include <stdbool.h>
#ifndef CUDASIM_TOOLKIT
typedef CUstream cudaStream_t;
typedef int cublasStatus_t, cublasComputeType_t, cudaDataType_t, cudaDataType,
    cublasLtMatmulDescAttributes_t, cublasLtMatrixLayoutAttribute_t,
    cublasLtMatmulPreferenceAttributes_t, cublasLtMatmulAlgoConfigAttributes_t;
typedef struct cublasLtContext *cublasLtHandle_t;
typedef struct LtDesc *cublasLtMatmulDesc_t;
typedef struct LtLayout *cublasLtMatrixLayout_t;
typedef struct LtPreference *cublasLtMatmulPreference_t;
typedef struct {
  uint64_t data[8];
} cublasLtMatmulAlgo_t;
typedef struct {
  cublasLtMatmulAlgo_t algo;
  size_t workspaceSize;
  cublasStatus_t state;
  float wavesCount;
  int reserved[4];
} cublasLtMatmulHeuristicResult_t;
enum {
  CUBLAS_STATUS_SUCCESS = 0,
  CUBLAS_STATUS_INVALID_VALUE = 7,
  CUBLAS_STATUS_EXECUTION_FAILED = 13,
  CUBLAS_STATUS_NOT_SUPPORTED = 15
};

typedef int cudnnStatus_t, cudnnDataType_t, cudnnTensorFormat_t, cudnnConvolutionMode_t,
    cudnnMathType_t, cudnnConvolutionFwdAlgo_t, cudnnConvolutionBwdDataAlgo_t,
    cudnnConvolutionBwdFilterAlgo_t;
typedef struct cudnnContext *cudnnHandle_t;
typedef struct cudnnTensorStruct *cudnnTensorDescriptor_t;
typedef struct cudnnFilterStruct *cudnnFilterDescriptor_t;
typedef struct cudnnConvolutionStruct *cudnnConvolutionDescriptor_t;
typedef struct {
  int algo;
  cudnnStatus_t status;
  float time;
  size_t memory;
  int determinism;
  cudnnMathType_t mathType;
  int reserved[3];
} cudnnConvolutionFwdAlgoPerf_t;
typedef cudnnConvolutionFwdAlgoPerf_t cudnnConvolutionBwdDataAlgoPerf_t,
    cudnnConvolutionBwdFilterAlgoPerf_t;
enum {
  CUDNN_STATUS_SUCCESS = 0,
  CUDNN_STATUS_BAD_PARAM = 2000,
  CUDNN_STATUS_NOT_SUPPORTED = 3000,
  CUDNN_STATUS_EXECUTION_FAILED = 5000
};
#endif

/* number.c: elements by the numbers of CUDA's types */
typedef enum Number { NUMBER_FLOAT, NUMBER_DOUBLE, NUMBER_HALF, NUMBER_BFLOAT } Number;
enum { ROUND_NOTHING, ROUND_TF32, ROUND_BF16 };
size_t number_size(Number t);
double number_get(Number t, const void *p, int64_t i);
void number_set(Number t, void *p, int64_t i, double v);
double number_round(double v, int how);
#endif
