/* The CUDA driver, opened at run time: the types and functions of driver.def, and what their results mean. The program
 * builds and runs without a driver and without the CUDA toolkit. */
#ifndef KILN_CUDA_DRIVER_H
#define KILN_CUDA_DRIVER_H
#include "../../ir/ir.h"

typedef int CUresult; /* 0: fine */
typedef int CUdevice;
typedef unsigned long long CUdeviceptr;
typedef struct CUctx_st *CUcontext;
typedef struct CUmod_st *CUmodule;
typedef struct CUfunc_st *CUfunction;
typedef struct CUstream_st *CUstream;
typedef struct CUevent_st *CUevent;
typedef struct CUgraph_st *CUgraph;
typedef struct CUgraphExec_st *CUgraphExec;
typedef struct CUlinkState_st *CUlinkState;

enum { /* of the driver's enumerations */
       CU_OUT_OF_MEMORY = 2,
       CU_COMPUTE_CAPABILITY_MAJOR = 75,
       CU_COMPUTE_CAPABILITY_MINOR = 76,
       CU_MULTIPROCESSOR_COUNT = 16,
       CU_STREAM_NON_BLOCKING = 1,
       CU_EVENT_DISABLE_TIMING = 2,
       CU_JIT_ERROR_LOG_BUFFER = 5,
       CU_JIT_ERROR_LOG_BYTES = 6,
       CU_JIT_INPUT_PTX = 1,
       CU_FUNC_DYNAMIC_SHARED = 8,
       CU_CAPTURE_RELAXED = 2
};

typedef enum CudaCall {
#define CALL(name, symbol, code, what, params) CALL_##name,
#include "driver.def"
#undef CALL
  CALL_N
} CudaCall;

typedef struct CudaDriver {
#define CALL(name, symbol, code, what, params) CUresult(*name) params;
#include "driver.def"
#undef CALL
} CudaDriver;
extern CudaDriver cuda;

/* Opens the driver by the first call; any thread. E-DEV-001, 002, 003. */
bool cuda_open(void);
int cuda_version(void); /* 12040 for CUDA 12.4; after cuda_open */
/* True for 0; else one coded error that names the call and the result. */
bool cuda_check(CudaCall call, CUresult r);
#define CU(name, ...) cuda_check(CALL_##name, cuda.name(__VA_ARGS__))
/* For what is being given up: a failure changes nothing. */
#define CU_DROP(name, ...) ((void)cuda.name(__VA_ARGS__))

#endif
