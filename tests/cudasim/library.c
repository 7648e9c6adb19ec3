/* The simulated driver's side of the simulated libraries: see library.h. */
#include "library.h"
#include "driver.h"
#include <stdlib.h>
#include <string.h>

typedef struct LibraryObject {
  Object o;
  const char *what;
  _Alignas(16) char data[];
} LibraryObject;

static CUresult trouble; /* of the work that is being executed */

CUresult cudasim_call(const char *name, int releases) {
  Call call_ __attribute__((cleanup(call_leave))) =
      call_enter(name, NEED_INIT | (releases ? RELEASES : 0));
  return call_.result;
}

CUresult cudasim_submit(CUstream s, LibraryWork *run, const void *data, size_t n) {
  ENTER(NEED_INIT | NEED_CONTEXT | NO_COUNT);
  if (!stream_of(s)) return CUDA_ERROR_INVALID_HANDLE;
  Work w = {.kind = WORK_LIBRARY, .library = run, .bytes = n, .param = host_alloc(n)};
  memcpy(w.param, data, n);
  return stream_add(s, &w);
}

CUresult library_run(const Work *w) {
  trouble = CUDA_SUCCESS;
  w->library(w->param);
  return trouble;
}

static void *bad(CUresult r, const char *who, const char *what, uint64_t at, uint64_t bytes) {
  fprintf(stderr, "cudasim: %s: %s of %llu bytes at 0x%llx\n", who, what, (unsigned long long)bytes,
          (unsigned long long)at);
  trouble = r;
  return NULL;
}

void *cudasim_memory(const char *who, uint64_t at, uint64_t bytes, LibraryUse use) {
  const Range *r = memory_find(at);
  if (!r || at + bytes > r->at + r->bytes)
    return bad(CUDA_ERROR_ILLEGAL_ADDRESS, who, "access out of bounds", at, bytes);
  if (use == LIBRARY_READS && checks.init && !memory_is_set(at, bytes))
    return bad(CUDA_ERROR_LAUNCH_FAILED, who, "uninitialised read", at, bytes);
  char *host = memory_at(at);
  if (use == LIBRARY_WRITES) memory_mark(at, bytes);
  if (use == LIBRARY_SCRATCH) {
    memset(host, 0xa5, bytes);
    memory_unmark(at, bytes);
  }
  return host;
}

void *cudasim_object(size_t bytes, const char *what) {
  Call call_ __attribute__((cleanup(call_leave))) = call_enter(what, NO_COUNT);
  (void)call_;
  LibraryObject *o = host_alloc(sizeof *o + bytes);
  o->what = what;
  object_add(&o->o, IS_LIBRARY);
  return o->data;
}

static LibraryObject *object_of(const void *p) {
  for (Object *o = object_first(IS_LIBRARY); o; o = o->next)
    if (((LibraryObject *)o)->data == p) return (LibraryObject *)o;
  return NULL;
}

int cudasim_is(const void *p, const char *what) {
  Call call_ __attribute__((cleanup(call_leave))) = call_enter(what, NO_COUNT);
  (void)call_;
  const LibraryObject *o = object_of(p);
  return o && !strcmp(o->what, what);
}

void cudasim_drop(void *p) {
  Call call_ __attribute__((cleanup(call_leave))) = call_enter("drop", NO_COUNT);
  (void)call_;
  LibraryObject *o = object_of(p);
  if (!o) return;
  object_remove(&o->o);
  free(o);
}
