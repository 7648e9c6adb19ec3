/* Memory calls: allocations, pinned host memory, copies and fills. An asynchronous copy from or to pinned memory touches it when
 * the work is executed; from pageable memory it is staged at once, to pageable memory it is finished before the call returns. */
#include "driver.h"
#include <stdlib.h>
#include <string.h>

typedef struct Allocated { /* of the device or of pinned host memory */
  Object o;
  uint64_t at;
  char *host;
} Allocated;

API cuMemGetInfo_v2(size_t *free, size_t *total) {
  ENTER(NEED_INIT | NEED_CONTEXT);
  *free = memory.total - memory.used;
  *total = memory.total;
  return CUDA_SUCCESS;
}

static CUresult allocate(CUdeviceptr *dptr, size_t bytes) {
  if (!dptr || !bytes) return CUDA_ERROR_INVALID_VALUE;
  uint64_t at = memory_alloc(bytes);
  if (!at) return CUDA_ERROR_OUT_OF_MEMORY;
  Allocated *a = host_alloc(sizeof *a);
  a->at = at;
  a->o.bytes = bytes;
  object_add(&a->o, IS_MEMORY);
  *dptr = at;
  return CUDA_SUCCESS;
}

static Allocated *allocated(CUdeviceptr at) {
  for (Object *o = object_first(IS_MEMORY); o; o = o->next)
    if (((Allocated *)o)->at == at) return (Allocated *)o;
  return NULL;
}

static CUresult not_allocated(CUdeviceptr at) {
  const Range *freed = memory_freed(at);
  fprintf(stderr, "cudasim: free of 0x%llx: %s\n", (unsigned long long)at,
          freed && freed->at == at ? "double free" : "no allocation starts there");
  return CUDA_ERROR_INVALID_VALUE;
}

static void drop(Allocated *a) {
  memory_free(a->at);
  object_remove(&a->o);
  free(a);
}

API cuMemAlloc_v2(CUdeviceptr *dptr, size_t bytesize) {
  ENTER(NEED_INIT | NEED_CONTEXT);
  if (capturing()) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  return allocate(dptr, bytesize);
}

API cuMemFree_v2(CUdeviceptr dptr) {
  ENTER(NEED_INIT | NEED_CONTEXT | RELEASES);
  if (!dptr) return CUDA_SUCCESS;
  Allocated *a = allocated(dptr);
  if (!a) return not_allocated(dptr);
  CUresult r = stream_finish(NULL); /* freeing waits for the device */
  drop(a);
  if (call_.result) RELEASED;
  return r;
}

API cuMemAllocAsync(CUdeviceptr *dptr, size_t bytesize, CUstream hStream) {
  ENTER(NEED_INIT | NEED_CONTEXT);
  if (!stream_of(hStream)) return CUDA_ERROR_INVALID_HANDLE;
  return allocate(dptr, bytesize);
}

API cuMemFreeAsync(CUdeviceptr dptr, CUstream hStream) {
  ENTER(NEED_INIT | NEED_CONTEXT | RELEASES);
  Allocated *a = allocated(dptr);
  if (!a) return not_allocated(dptr);
  Work w = {.kind = WORK_FREE, .data = a};
  CUresult r = call_.result ? call_.result : stream_add(hStream, &w);
  if (r) drop(a);
  return r;
}

CUresult free_work(Work *w) {
  drop(w->data);
  return CUDA_SUCCESS;
}

/* ---- pinned memory ---- */

static CUresult pin(void **pp, size_t bytes) {
  if (!pp || !bytes) return CUDA_ERROR_INVALID_VALUE;
  Allocated *a = host_alloc(sizeof *a);
  a->host = malloc(bytes);
  if (!a->host) {
    free(a);
    return CUDA_ERROR_OUT_OF_MEMORY;
  }
  a->o.bytes = bytes;
  object_add(&a->o, IS_PINNED);
  *pp = a->host;
  return CUDA_SUCCESS;
}

static bool is_pinned(const void *p) {
  for (Object *o = object_first(IS_PINNED); o; o = o->next) {
    const Allocated *a = (Allocated *)o;
    if ((const char *)p >= a->host && (const char *)p < a->host + o->bytes) return true;
  }
  return false;
}

API cuMemAllocHost_v2(void **pp, size_t bytesize) {
  ENTER(NEED_INIT | NEED_CONTEXT);
  return pin(pp, bytesize);
}

API cuMemHostAlloc(void **pp, size_t bytesize, unsigned int flags) {
  ENTER(NEED_INIT | NEED_CONTEXT);
  if (flags & ~7u) return CUDA_ERROR_INVALID_VALUE;
  return pin(pp, bytesize);
}

API cuMemFreeHost(void *p) {
  ENTER(NEED_INIT | NEED_CONTEXT | RELEASES);
  for (Object *o = object_first(IS_PINNED); o; o = o->next) {
    Allocated *a = (Allocated *)o;
    if (a->host != p) continue;
    CUresult r = stream_finish(NULL);
    object_remove(o);
    free(a->host);
    free(a);
    if (call_.result) RELEASED;
    return r;
  }
  return CUDA_ERROR_INVALID_VALUE;
}

/* ---- copies ---- */

static bool device_range(CUdeviceptr at, size_t bytes) {
  const Range *r = memory_find(at);
  return r && at + bytes <= r->at + r->bytes;
}

/* Queues the copy; synchronous copies, and those to pageable memory, are waited for. */
static CUresult copy(Work *w, CUstream s, bool async) {
  CUstream to = stream_of(s);
  if (!to) return CUDA_ERROR_INVALID_HANDLE;
  if (!w->bytes) return CUDA_SUCCESS;
  if ((w->to && !device_range(w->to, w->bytes)) || (w->from && !device_range(w->from, w->bytes))) {
    fprintf(stderr, "cudasim: copy of %llu bytes outside of an allocation\n",
            (unsigned long long)w->bytes);
    return CUDA_ERROR_INVALID_VALUE;
  }
  if ((!w->to && !w->to_host) || (!w->from && !w->from_host)) return CUDA_ERROR_INVALID_VALUE;
  if (!async && capturing()) return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
  if (to->capture) return stream_add(s, w);
  if (w->from_host && async && !is_pinned(w->from_host)) {
    char *staged = malloc(w->bytes);
    if (!staged) return CUDA_ERROR_OUT_OF_MEMORY;
    w->from_host = memcpy(staged, w->from_host, w->bytes);
    w->owned = true;
  }
  bool pageable = w->to_host && !is_pinned(w->to_host);
  if (w->to_host && async && !pageable) memset(w->to_host, 0xff, w->bytes); /* not yet there */
  CUresult r = stream_add(s, w);
  if (!r && (!async || pageable)) r = stream_finish(to);
  return r;
}

API cuMemcpyHtoD_v2(CUdeviceptr dstDevice, const void *srcHost, size_t ByteCount) {
  ENTER(NEED_INIT | NEED_CONTEXT);
  return copy(&(Work){.kind = WORK_COPY, .to = dstDevice, .from_host = srcHost, .bytes = ByteCount},
              NULL, false);
}

API cuMemcpyDtoH_v2(void *dstHost, CUdeviceptr srcDevice, size_t ByteCount) {
  ENTER(NEED_INIT | NEED_CONTEXT);
  return copy(&(Work){.kind = WORK_COPY, .to_host = dstHost, .from = srcDevice, .bytes = ByteCount},
              NULL, false);
}

API cuMemcpyDtoD_v2(CUdeviceptr dstDevice, CUdeviceptr srcDevice, size_t ByteCount) {
  ENTER(NEED_INIT | NEED_CONTEXT);
  return copy(&(Work){.kind = WORK_COPY, .to = dstDevice, .from = srcDevice, .bytes = ByteCount},
              NULL, false);
}

API cuMemcpyHtoDAsync_v2(CUdeviceptr dstDevice, const void *srcHost, size_t ByteCount,
                         CUstream hStream) {
  ENTER(NEED_INIT | NEED_CONTEXT);
  return copy(&(Work){.kind = WORK_COPY, .to = dstDevice, .from_host = srcHost, .bytes = ByteCount},
              hStream, true);
}

API cuMemcpyDtoHAsync_v2(void *dstHost, CUdeviceptr srcDevice, size_t ByteCount, CUstream hStream) {
  ENTER(NEED_INIT | NEED_CONTEXT);
  return copy(&(Work){.kind = WORK_COPY, .to_host = dstHost, .from = srcDevice, .bytes = ByteCount},
              hStream, true);
}

API cuMemcpyDtoDAsync_v2(CUdeviceptr dstDevice, CUdeviceptr srcDevice, size_t ByteCount,
                         CUstream hStream) {
  ENTER(NEED_INIT | NEED_CONTEXT);
  return copy(&(Work){.kind = WORK_COPY, .to = dstDevice, .from = srcDevice, .bytes = ByteCount},
              hStream, true);
}

static CUresult fill(CUdeviceptr at, uint32_t value, int width, size_t n, CUstream s, bool async) {
  if (!stream_of(s)) return CUDA_ERROR_INVALID_HANDLE;
  if (!n) return CUDA_SUCCESS;
  if (at % (unsigned)width || !device_range(at, n * (size_t)width)) return CUDA_ERROR_INVALID_VALUE;
  CUresult r = stream_add(s, &(Work){.kind = WORK_SET,
                                     .to = at,
                                     .value = value,
                                     .width = width,
                                     .bytes = n * (size_t)width});
  return r || async ? r : stream_finish(stream_of(s));
}

#define FILL(bits, type)                                                                           \
  API cuMemsetD##bits##_v2(CUdeviceptr dstDevice, unsigned type v, size_t N) {                     \
    ENTER(NEED_INIT | NEED_CONTEXT);                                                               \
    return fill(dstDevice, v, bits / 8, N, NULL, false);                                           \
  }                                                                                                \
  API cuMemsetD##bits##Async(CUdeviceptr dstDevice, unsigned type v, size_t N, CUstream hStream) { \
    ENTER(NEED_INIT | NEED_CONTEXT);                                                               \
    return fill(dstDevice, v, bits / 8, N, hStream, true);                                         \
  }
FILL(8, char)
FILL(16, short)
FILL(32, int)

API cuMemGetAddressRange_v2(CUdeviceptr *pbase, size_t *psize, CUdeviceptr dptr) {
  ENTER(NEED_INIT | NEED_CONTEXT);
  const Range *r = memory_find(dptr);
  if (!r) return CUDA_ERROR_NOT_FOUND;
  if (pbase) *pbase = r->at;
  if (psize) *psize = r->bytes;
  return CUDA_SUCCESS;
}
