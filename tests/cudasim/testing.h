/* What the tests of the simulator share: the driver's functions, opening the library with settings, buffers and launches. */
#ifndef CUDASIM_TESTING_H
#define CUDASIM_TESTING_H
#include "api.h"
#include <dlfcn.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#define CALLS(X)                                                                                   \
  X(cuInit, cuInit, (unsigned))                                                                    \
  X(cuDriverGetVersion, cuDriverGetVersion, (int *))                                               \
  X(cuDeviceGetCount, cuDeviceGetCount, (int *))                                                   \
  X(cuDeviceGet, cuDeviceGet, (CUdevice *, int))                                                   \
  X(cuDeviceGetAttribute, cuDeviceGetAttribute, (int *, CUdevice_attribute, CUdevice))             \
  X(cuDevicePrimaryCtxRetain, cuDevicePrimaryCtxRetain, (CUcontext *, CUdevice))                   \
  X(cuDevicePrimaryCtxRelease, cuDevicePrimaryCtxRelease_v2, (CUdevice))                           \
  X(cuCtxSetCurrent, cuCtxSetCurrent, (CUcontext))                                                 \
  X(cuCtxSynchronize, cuCtxSynchronize, (void))                                                    \
  X(cuMemGetInfo, cuMemGetInfo_v2, (size_t *, size_t *))                                           \
  X(cuMemAlloc, cuMemAlloc_v2, (CUdeviceptr *, size_t))                                            \
  X(cuMemFree, cuMemFree_v2, (CUdeviceptr))                                                        \
  X(cuMemHostAlloc, cuMemHostAlloc, (void **, size_t, unsigned))                                   \
  X(cuMemFreeHost, cuMemFreeHost, (void *))                                                        \
  X(cuMemcpyHtoD, cuMemcpyHtoD_v2, (CUdeviceptr, const void *, size_t))                            \
  X(cuMemcpyDtoH, cuMemcpyDtoH_v2, (void *, CUdeviceptr, size_t))                                  \
  X(cuMemcpyHtoDAsync, cuMemcpyHtoDAsync_v2, (CUdeviceptr, const void *, size_t, CUstream))        \
  X(cuMemcpyDtoHAsync, cuMemcpyDtoHAsync_v2, (void *, CUdeviceptr, size_t, CUstream))              \
  X(cuMemsetD32, cuMemsetD32_v2, (CUdeviceptr, unsigned, size_t))                                  \
  X(cuMemsetD8Async, cuMemsetD8Async, (CUdeviceptr, unsigned char, size_t, CUstream))              \
  X(cuModuleLoadData, cuModuleLoadData, (CUmodule *, const void *))                                \
  X(cuModuleLoadDataEx, cuModuleLoadDataEx,                                                        \
    (CUmodule *, const void *, unsigned, CUjit_option *, void **))                                 \
  X(cuModuleUnload, cuModuleUnload, (CUmodule))                                                    \
  X(cuModuleGetFunction, cuModuleGetFunction, (CUfunction *, CUmodule, const char *))              \
  X(cuModuleGetGlobal, cuModuleGetGlobal_v2, (CUdeviceptr *, size_t *, CUmodule, const char *))    \
  X(cuLinkCreate, cuLinkCreate_v2, (unsigned, CUjit_option *, void **, CUlinkState *))             \
  X(cuLinkAddData, cuLinkAddData_v2,                                                               \
    (CUlinkState, CUjitInputType, void *, size_t, const char *, unsigned, CUjit_option *,          \
     void **))                                                                                     \
  X(cuLinkComplete, cuLinkComplete, (CUlinkState, void **, size_t *))                              \
  X(cuLinkDestroy, cuLinkDestroy, (CUlinkState))                                                   \
  X(cuFuncSetAttribute, cuFuncSetAttribute, (CUfunction, CUfunction_attribute, int))               \
  X(cuLaunchKernel, cuLaunchKernel,                                                                \
    (CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, CUstream,   \
     void **, void **))                                                                            \
  X(cuStreamCreate, cuStreamCreate, (CUstream *, unsigned))                                        \
  X(cuStreamDestroy, cuStreamDestroy_v2, (CUstream))                                               \
  X(cuStreamSynchronize, cuStreamSynchronize, (CUstream))                                          \
  X(cuStreamQuery, cuStreamQuery, (CUstream))                                                      \
  X(cuStreamWaitEvent, cuStreamWaitEvent, (CUstream, CUevent, unsigned))                           \
  X(cuEventCreate, cuEventCreate, (CUevent *, unsigned))                                           \
  X(cuEventDestroy, cuEventDestroy_v2, (CUevent))                                                  \
  X(cuEventRecord, cuEventRecord, (CUevent, CUstream))                                             \
  X(cuEventSynchronize, cuEventSynchronize, (CUevent))                                             \
  X(cuStreamBeginCapture, cuStreamBeginCapture_v2, (CUstream, CUstreamCaptureMode))                \
  X(cuStreamEndCapture, cuStreamEndCapture, (CUstream, CUgraph *))                                 \
  X(cuGraphInstantiate, cuGraphInstantiateWithFlags, (CUgraphExec *, CUgraph, unsigned long long)) \
  X(cuGraphLaunch, cuGraphLaunch, (CUgraphExec, CUstream))                                         \
  X(cuGraphGetNodes, cuGraphGetNodes, (CUgraph, CUgraphNode *, size_t *))                          \
  X(cuGraphDestroy, cuGraphDestroy, (CUgraph))                                                     \
  X(cuGraphExecDestroy, cuGraphExecDestroy, (CUgraphExec))                                         \
  X(cuGetErrorName, cuGetErrorName, (CUresult, const char **))                                     \
  X(cuGetProcAddress, cuGetProcAddress_v2,                                                         \
    (const char *, void **, int, cuuint64_t, CUdriverProcAddressQueryResult *))

#define DECLARE(name, symbol, params) static CUresult(*name) params;
CALLS(DECLARE)
static void *library;
static CUcontext context;
static char messages[200]; /* file with the library's stderr */

/* ---- opening and closing: the settings are read when the library is opened ---- */

__attribute__((unused)) static void load_library(void) {
  char path[600];
  ssize_t n = readlink("/proc/self/exe", path, sizeof path - 40);
  assert_true(n > 0);
  path[n] = 0;
  strcpy(strrchr(path, '/'), "/cudasim/libcuda.so.1");
  library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!library) fail_msg("%s", dlerror());
#define LOAD(name, symbol, params)                                                                 \
  *(void **)&name = dlsym(library, #symbol);                                                       \
  assert_non_null(*(void **)&name);
  CALLS(LOAD)
}

__attribute__((unused)) static void open_sim(const char *name, const char *value) {
  if (name) setenv(name, value, 1);
  load_library();
  if (name) unsetenv(name);
  assert_int_equal(cuInit(0), 0);
  assert_int_equal(cuDevicePrimaryCtxRetain(&context, 0), 0);
  assert_int_equal(cuCtxSetCurrent(context), 0);
}

__attribute__((unused)) static void close_sim(void) {
  assert_int_equal(cuDevicePrimaryCtxRelease(0), 0);
  assert_int_equal(dlclose(library), 0);
}

__attribute__((unused)) static char *read_file(const char *name) {
  char path[300];
  snprintf(path, sizeof path, "tests/cudasim/ptx/%s", name);
  FILE *f = fopen(path, "r");
  if (!f) fail_msg("%s is not there", path);
  char *text = calloc(1, 1 << 20);
  assert_true(fread(text, 1, (1 << 20) - 1, f) > 0);
  fclose(f);
  return text;
}

__attribute__((unused)) static CUmodule load_ptx(const char *name) {
  char *text = read_file(name);
  CUmodule m = NULL;
  CUresult r = cuModuleLoadData(&m, text);
  if (r) fail_msg("%s: %d", name, r);
  free(text);
  return m;
}

__attribute__((unused)) static CUdeviceptr upload(const void *from, size_t bytes) {
  CUdeviceptr p = 0;
  assert_int_equal(cuMemAlloc(&p, bytes), 0);
  if (from) assert_int_equal(cuMemcpyHtoD(p, from, bytes), 0);
  return p;
}

__attribute__((unused)) static void download(void *to, CUdeviceptr from, size_t bytes) {
  assert_int_equal(cuMemcpyDtoH(to, from, bytes), 0);
}

__attribute__((unused)) static CUresult start(CUmodule m, const char *name, unsigned gx,
                                              unsigned gy, unsigned bx, unsigned by, CUstream s,
                                              void **params) {
  CUfunction f;
  assert_int_equal(cuModuleGetFunction(&f, m, name), 0);
  return cuLaunchKernel(f, gx, gy, 1, bx, by, 1, 0, s, params, NULL);
}

#define RUN(m, name, gx, gy, bx, by, ...)                                                          \
  do {                                                                                             \
    assert_int_equal(start(m, name, gx, gy, bx, by, NULL, (void *[]){__VA_ARGS__}), 0);            \
    assert_int_equal(cuCtxSynchronize(), 0);                                                       \
  } while (0)

static int saved;

__attribute__((unused)) static void catch_messages(void) {
  strcpy(messages, "/tmp/test_cudasim.XXXXXX");
  int f = mkstemp(messages);
  fflush(stderr);
  saved = dup(2);
  dup2(f, 2);
  close(f);
}

__attribute__((unused)) static char *caught(void) {
  static char text[4096];
  fflush(stderr);
  dup2(saved, 2);
  close(saved);
  FILE *f = fopen(messages, "r");
  text[fread(text, 1, sizeof text - 1, f)] = 0;
  fclose(f);
  unlink(messages);
  return text;
}
#endif
