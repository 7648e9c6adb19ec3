/* Devices, and what the run time keeps of a compiled module. Private to device.c, module.c and run.c. */
#ifndef KILN_CUDA_DEVICE_H
#define KILN_CUDA_DEVICE_H
#include "cuda.h"
#include "library.h"
#include <pthread.h>

/* One per ordinal and process. All work of all executors goes through its streams, in order. */
typedef struct CudaDevice {
  Device base;
  char name[32], target[32], model[96];
  int ordinal, sm;
  CUdevice id;
  bool retained;
  CUcontext context;
  CUstream compute, copies, capture; /* capture: never runs anything */
  pthread_mutex_t lock;              /* of the streams' order */
  struct {
    void *handle;
    bool tried;
  } library[LIBRARY_N];      /* from their first use */
  struct CudaChoice *choice; /* made so far, in choices */
  Arena *choices;
  int users; /* opens and allocations */
  struct CudaDevice *next;
} CudaDevice;

/* Makes the device current for this thread and keeps others away from its streams. */
bool device_enter(CudaDevice *d);
void device_leave(CudaDevice *d);
/* Inside: */
/* E-DEV-005 with what is needed and free. */
bool device_alloc(CudaDevice *d, size_t n, CUdeviceptr *p);
bool device_pinned(CudaDevice *d, size_t n, void **p);
void device_describe(Str *out);
Device *device_open(const char *name);
void device_hold(CudaDevice *d); /* one more user */
void device_drop(CudaDevice *d); /* one less; the last one closes it. Not inside. */

/* Memory of one run in flight: while the device works on one, the next run's feeds go into the other. */
typedef struct CudaSlot {
  uint8_t *host;      /* pinned: the CudaRun, then the feeds */
  uint8_t *back;      /* pinned: the CudaRun and what is fetched */
  CUdeviceptr device; /* the same on the device */
  CUevent copied, done;
  CUevent read;      /* the next run has read this one's CudaRun; if `lent` */
  CUgraphExec graph; /* NULL: none for `key` */
  void **key;        /* addresses that the graph, or the last run, was made of; kept is the last */
  bool used, late;   /* late: nobody has asked for the results yet */
} CudaSlot;
enum { CUDA_SLOTS = DEVICE_LATE, CUDA_ALIGN = 256 };
/* Of what is packed in a slot or in what comes back. */
static inline size_t cuda_aligned(size_t n) {
  return (n + CUDA_ALIGN - 1) / CUDA_ALIGN * CUDA_ALIGN;
}

/* choice.c; inside. */
void device_libraries_close(CudaDevice *d);

struct Module {
  Arena *arena;
  CudaDevice *d;
  const Graph *g;
  int n;
  Kernel *const *kernel;
  CudaPlan **plan;          /* per kernel */
  struct Foreign **foreign; /* per kernel: what a library does before the launches, or NULL */
  CUfunction **fn;          /* per kernel and launch */
  Buffer ***bufs;           /* per kernel: as CudaArg counts them */
  CUdeviceptr *at;          /* the same of the kernel that is being launched */
  CUmodule module;          /* NULL: nothing to launch */
  CUfunction copy;          /* see guarded_copy in module.c; NULL: none needed */
  bool checks;              /* is there a CHECK? */
  /* per kernel that calls a C function: pinned memory for its operands, or NULL */
  uint8_t **called;
  bool calls;       /* is there one? Then runs are not captured */
  int64_t *feed_at; /* per buffer id: offset in a slot */
  size_t slot_bytes;
  CudaSlot slot[CUDA_SLOTS];
  int turn;
  size_t back_bytes;
  CUevent *mark; /* n + 1, for times; NULL until they are wanted */
};

/* call.c: kernel i on the host. at: its inputs and outputs on the device; run: the CudaRun there. */
bool host_call(Module *m, int i, const CUdeviceptr *at, CUdeviceptr run);
/* module.c; inside. f: the functions of a plan, in the arena. E-DEV-006. */
bool module_load(const void *code, CUmodule *m); /* PTX or machine code */
bool module_functions(Arena *a, CUmodule m, const CudaPlan *p, CUfunction **f);
/* run.c. The launch of f; at: addresses as CudaArg counts them; bytes: of the buffer to clear. */
bool launch_entry(const CudaLaunch *l, CUfunction f, const CUdeviceptr *at, int64_t bytes,
                  CUdeviceptr run, CUstream s);
void run_free(Module *m); /* slots, graphs, events; inside */
bool device_run(Module *m, DeviceRun *r, CheckRecord *check);
bool device_finish(Module *m, DeviceRun *r, CheckRecord *check);
Module *module_new(const Graph *g, int n, Kernel *const *k, const CompileOptions *o);
void module_close(Module *m);

#endif
