/* The interface between the executor and a backend.
 * Flow: schedule() each Kernel (task counts, workspace) -> memory is planned -> compile() all -> run steps. */
#ifndef KILN_BACKEND_H
#define KILN_BACKEND_H
#include "../ir/ir.h"

/* What generated code and library kernels see of a run; one per thread. The layout of the first three fields is known
 * to the code generator. */
typedef struct RunCtx {
  uint64_t seed, step; /* of the random numbers */
  /* A CHECK failed: node id, linear index in the checked tensor, value. Keeps the smallest (kernel, node, index). */
  void (*check_failed)(struct RunCtx *ctx, int64_t node, int64_t index, int64_t value);
  void *scratch; /* this thread's private scratch */
  size_t scratch_bytes;
  struct CheckRecord *record; /* where check_failed writes: owned by the executor */
  uint64_t run;               /* counts runs: results do not depend on it */
} RunCtx;
typedef struct CheckRecord {
  int failed, lock;
  int64_t node, index, value;
} CheckRecord;

/* Runs tasks begin..end-1 of one phase. bufs: the kernel's inputs, then outputs, then its workspace if any, in the
 * order of Kernel.inputs / Kernel.outputs. Tasks of a phase are independent and their number is fixed by the shapes, so
 * results do not depend on the number of threads. */
typedef void KernelFn(const void *self, void *const *bufs, int64_t begin, int64_t end, RunCtx *ctx);

/* What a task of an item computes: rows lo..hi-1, indices of the second dimension of results. */
typedef struct TaskRows {
  int32_t lo, hi;
} TaskRows;
/* Tasks begin..end-1 of an item, of one of the kernels that run together, counted from the first. */
typedef struct ChainStep {
  int kernel;
  int64_t begin, end;
} ChainStep;

enum { KERNEL_PHASES = 3 };
typedef struct KernelCode {
  int n_phases; /* run one after the other with a barrier between */
  struct {
    KernelFn *fn;
    const void *self;
    int64_t n_tasks;
  } phase[KERNEL_PHASES];
  /* > 0: the tasks of the last phase are divided evenly, in order, among so many indices of the first dimension of all
   * results, and read what depends on it at their own index only */
  int64_t items;
  /* of the first kernel of a chain: how many run together, item by item, and the order of an item's tasks */
  int chain, n_steps;
  const ChainStep *steps;
  int64_t cost; /* rough nanoseconds on one thread: small kernels run on the calling thread */
  int64_t scratch_bytes; /* private scratch that each thread needs: RunCtx.scratch */
} KernelCode;

typedef struct Module Module; /* compiled code of some kernels; opaque to the executor */

/* A device whose memory the host cannot touch. Work on it is done in the order of the calls. Any thread. */
typedef struct Device {
  const struct DeviceCalls *calls;
  const char *name;   /* "cuda:0" */
  const char *target; /* of CompileOptions: "cuda:sm_90" */
} Device;

/* Between a buffer and memory of the host. */
typedef struct DeviceCopy {
  const Buffer *buf;
  void *host;
  size_t bytes;
} DeviceCopy;

/* One run of a module's kernels. */
typedef struct DeviceRun {
  void **at; /* per buffer id: address on the device; of feeds: not used */
  bool kept; /* constant kernels need not run */
  uint64_t seed, step;
  int n_in, n_out;
  const DeviceCopy *in, *out; /* feeds, read before run() returns; fetches, there when it returns */
  bool
      later; /* return when the device has its orders: finish() waits for the fetches and the check */
  /* Called for each kernel that ran if not NULL; kernels are then timed one by one. */
  void (*timed)(void *user, int kernel, double seconds);
  void *user;
  /* out: what this run asked of the driver and its libraries */
  int launches, graphs, copies, calls;
} DeviceRun;

enum { DEVICE_LATE = 2 };
/* False or NULL: an error is set. Allocations keep the device open. */
typedef struct DeviceCalls {
  void (*close)(Device *d);
  void *(*take)(Device *d, size_t n);                           /* 256-byte aligned, not zeroed */
  void (*give)(Device *d, void *p);                             /* NULL is allowed */
  bool (*put)(Device *d, void *to, const void *from, size_t n); /* from the host */
  bool (*get)(Device *d, void *to, const void *from, size_t n); /* to the host */
  /* All kernels and copies of the graph. check: the first failed CHECK; no state has changed then. Returns before the
   * device is done if nothing is fetched or checked. */
  bool (*run)(Module *m, DeviceRun *r, CheckRecord *check);
  /* Of the oldest run that was started with `later`; r->out as it was then. Up to DEVICE_LATE runs of a module may be under
   * way. Once a check has failed, the runs after it change no state either. */
  bool (*finish)(Module *m, DeviceRun *r, CheckRecord *check);
} DeviceCalls;

typedef struct CompileOptions {
  const char *target;   /* NULL or "cpu": this machine; "cpu:NAME"; "cuda:sm_NN" */
  Device *device;       /* where the code is to run; NULL: the host, or nowhere (emit) */
  const char *dump_dir; /* NULL, or where to keep the generated LLVM IR */
  bool no_blas;         /* every contraction by generated code */
} CompileOptions;

typedef struct Backend {
  const char *name;
  unsigned no_kinds;         /* bits 1 << KernelKind: what it has no code for */
  bool updates;              /* the epilogue of a contraction may update state in place */
  bool channels_last;        /* convolutions always have the channels last */
  bool (*images_last)(void); /* are there kernels for convolutions with the images last? NULL: no */
  /* Fills in Kernel.workspace, flops, bytes. E-GEN-002 for a kernel it cannot run. */
  bool (*schedule)(Kernel *k);
  /* Would k's code, as scheduled, compute operand x of its core where it reads it (kernel_operand)? NULL: never. */
  bool (*takes_operand)(const Kernel *k, int x);
  /* code[i] for kernels[i]; lives until module_free. Equal kernels share code. */
  Module *(*compile)(const Graph *g, int n, Kernel *const *kernels, const CompileOptions *o,
                     KernelCode *code);
  void (*module_free)(Module *m);
  /* The generated code as text (or object bytes): what = "llvm" | "asm" | "ptx" | "object". */
  bool (*emit)(const Graph *g, int n, Kernel *const *kernels, const CompileOptions *o,
               const char *what, Str *out);
  void (*describe)(Str *out); /* for `kiln info`: CPU, features, libraries; lines "key: value" */
  Device *(*open)(const char *name); /* "cuda", "cuda:1"; NULL: kernels run on the host */
  /* What values in memory depend on besides the kernels that make them: version and machine. NULL: not to be kept. */
  void (*key)(Str *out);
} Backend;

/* What compilations of the process have asked for so far. */
typedef struct CodeCount {
  int wanted;    /* functions */
  int generated; /* of them: compiled */
  int loaded;    /* taken from the disk; the others the process had */
} CodeCount;
CodeCount backend_code_count(void);

extern const Backend backend_cpu;
extern const Backend backend_cuda;

/* cpu/call.c: custom operators, for all backends. */
/* Which output of a K_CALL kernel is output i of its call; -1: nobody reads it. */
int call_output(const Kernel *k, int i);
/* Calls the operator's C function on host memory for its inputs and outputs, which are zeroed first; t has room for the
 * tensors of all of them. E_PLG_001. */
bool call_function(const Node *call, void *const *in, void *const *out, Tensor *t);

/* pool.c: one pool of threads with static splits. A pool of 1 runs everything on the caller. */
typedef struct Pool Pool;
Pool *pool_new(int n_threads); /* 0: as many as cores */
void pool_free(Pool *p);
int pool_threads(const Pool *p);
/* fn(user, thread, begin, end) on each thread's static share of n tasks; returns when all are done. */
typedef void PoolFn(void *user, int thread, int64_t begin, int64_t end);
/* On the calling thread alone. All of these run fn with denormal numbers flushed to zero. */
void pool_run_here(int64_t n, PoolFn *fn, void *user);
void pool_run(Pool *p, int64_t n, PoolFn *fn, void *user);
/* One step after the other: each sees what those before it did. */
typedef struct PoolStep {
  PoolFn *fn;
  void *user;
  int64_t n; /* tasks */
  bool here; /* on the calling thread, while the others wait */
} PoolStep;
void pool_run_steps(Pool *p, int n, const PoolStep *steps);

#endif
