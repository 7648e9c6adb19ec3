/* cuGetProcAddress: functions by their names without a version. */
#include "driver.h"
#include <string.h>

#ifndef CUDASIM_TOOLKIT
#define PROC(name, symbol) void symbol(void);
#include "procs.def"
#undef PROC
#endif

typedef void Anything(void);
API cuGetProcAddress_v2(const char *symbol, void **pfn, int cudaVersion, cuuint64_t flags,
                        CUdriverProcAddressQueryResult *symbolStatus);
static const struct {
  const char *name;
  Anything *f;
} procs[] = {
#define PROC(name, symbol) {#name, (Anything *)symbol},
#include "procs.def"
#undef PROC
    {"cuGetProcAddress", (Anything *)cuGetProcAddress_v2}};

API cuGetProcAddress_v2(const char *symbol, void **pfn, int cudaVersion, cuuint64_t flags,
                        CUdriverProcAddressQueryResult *symbolStatus) {
  ENTER(NO_COUNT);
  (void)flags;
  union { /* ISO C has no conversion between the two kinds of pointers */
    Anything *f;
    void *p;
  } x = {NULL};
  if (!symbol || !pfn) return CUDA_ERROR_INVALID_VALUE;
  for (int k = 0; k < COUNT(procs); k++)
    if (!strcmp(procs[k].name, symbol)) x.f = procs[k].f;
  *pfn = cudaVersion <= driver_version ? x.p : NULL;
  if (symbolStatus)
    *symbolStatus = *pfn ? CU_GET_PROC_ADDRESS_SUCCESS : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
  return *pfn || symbolStatus ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}

API cuGetProcAddress(const char *symbol, void **pfn, int cudaVersion, cuuint64_t flags) {
  ENTER(NO_COUNT);
  return cuGetProcAddress_v2(symbol, pfn, cudaVersion, flags, NULL);
}
