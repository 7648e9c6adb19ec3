/* What the simulated libraries ask of the simulated driver: to count calls and make them fail on demand, to queue work in streams
 * (or record it), to look at device memory, and to know what is alive. */
#ifndef CUDASIM_LIBRARY_H
#define CUDASIM_LIBRARY_H
#include "api.h"

#define FOR_LIBRARIES __attribute__((visibility("default")))

/* At the head of a library's call; 0: go on. A call that releases something does so and then fails. */
FOR_LIBRARIES CUresult cudasim_call(const char *name, int releases);

/* Queues run(data) on a copy of n bytes at data. */
typedef void LibraryWork(const void *data);
FOR_LIBRARIES CUresult cudasim_submit(CUstream s, LibraryWork *run, const void *data, size_t n);

/* For such work: where device memory is, which must be allocated, for reading be written before, and for scratch loses what was
 * there. NULL: a fault, which the context keeps. */
typedef enum LibraryUse { LIBRARY_READS, LIBRARY_WRITES, LIBRARY_SCRATCH } LibraryUse;
FOR_LIBRARIES void *cudasim_memory(const char *who, uint64_t at, uint64_t bytes, LibraryUse use);

/* Handles and descriptors: zeroed; counted as leaks until they are dropped. */
FOR_LIBRARIES void *cudasim_object(size_t bytes, const char *what);
FOR_LIBRARIES int cudasim_is(const void *p, const char *what);
FOR_LIBRARIES void cudasim_drop(void *p);
#endif
