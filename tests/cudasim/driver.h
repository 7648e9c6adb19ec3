/* The simulated driver: objects behind the handles, work that is queued in streams and executed later. One lock over all calls. */
#ifndef CUDASIM_DRIVER_H
#define CUDASIM_DRIVER_H
#include "library.h"
#include "sim.h"

#define API __attribute__((visibility("default"))) CUresult

/* What is alive, for the check of handles and the report of leaks. First member of every object. */
typedef enum Kind {
  IS_CONTEXT,
  IS_MEMORY,
  IS_PINNED,
  IS_MODULE,
  IS_STREAM,
  IS_EVENT,
  IS_GRAPH,
  IS_EXEC,
  IS_LINK,
  IS_LIBRARY,
  IS_N
} Kind;
typedef struct Object {
  Kind kind;
  struct Object *next, *prev;
  CUcontext context;
  uint64_t bytes; /* of memory */
} Object;
void object_add(Object *o, Kind kind);
void object_remove(Object *o);
bool object_is(const void *p, Kind kind);
Object *object_first(Kind kind);

struct CUstream_st {
  Object o;
  bool blocking; /* ordered with the default stream */
  struct Op *first, *last;
  struct CUgraph_st *capture; /* that it records into */
  int *tail;                  /* nodes that the next one comes after */
  int n_tail;
  bool invalid, origin;
};
struct CUctx_st {
  Object o;
  int references;
  bool primary;
  CUresult sticky; /* result of the first fault: every later call returns it */
  struct CUstream_st null_stream;
};
struct CUevent_st {
  Object o;
  uint64_t recorded, completed; /* records so far */
  bool timing;
  double time; /* ms */
  struct CUgraph_st *capture;
  int *tail;
  int n_tail;
};
struct CUfunc_st {
  Function *f;
  CUmodule module;
  uint64_t max_dynamic;
};
struct CUmod_st {
  Object o;
  Module *m;
  CUfunction *function;
  int n;
};
struct CUlinkState_st {
  Object o;
  char *cubin;
  size_t size;
};

/* One piece of work of the device. */
typedef enum WorkKind {
  WORK_KERNEL,
  WORK_COPY,
  WORK_SET,
  WORK_HOST,
  WORK_EMPTY,
  WORK_RECORD,
  WORK_WAIT,
  WORK_FREE,
  WORK_GRAPH,
  WORK_LIBRARY
} WorkKind;
typedef struct Work {
  WorkKind kind;
  /* kernel */
  CUfunction function;
  uint32_t grid[3], block[3], shared;
  char *param;
  LibraryWork *library; /* of param, of `bytes` */
  /* copies: device addresses, or host memory */
  uint64_t to, from;
  char *to_host;
  const char *from_host;
  uint64_t bytes, hash;
  bool owned,
      hashed; /* from_host is a copy of ours; hash is of what it held when the work was queued */
  /* memset */
  uint32_t value;
  int width;
  CUhostFn host;
  void *data;
  CUevent event;
  uint64_t version;
  CUgraphExec exec;
} Work;
typedef struct Op {
  Work w;
  uint64_t seq;
  struct Op *next;
} Op;

typedef struct CUgraphNode_st {
  Work w;
  int *after;
  int n_after;
  int index;
  CUgraph graph;
} Node;
struct CUgraph_st {
  Object o;
  Node **node;
  int n;
};
struct CUgraphExec_st {
  Object o;
  struct CUgraph_st g;
  uint64_t launches, pending;
};

/* ---- driver.c ---- */
enum { NEED_INIT = 1, NEED_CONTEXT = 2, RELEASES = 4, NO_COUNT = 8, ANY_STATE = 16 };
typedef struct Call {
  CUresult result;
} Call;
Call call_enter(const char *name, int need);
void call_leave(Call *c);
/* Opens a driver call: counted, listed, made to fail on demand. A call that releases something does it and then fails. */
#define ENTER(need)                                                                                \
  Call call_ __attribute__((cleanup(call_leave))) = call_enter(__func__, (need));                  \
  if (call_.result && (!((need)&RELEASES) || call_.result == CUDA_ERROR_DEINITIALIZED))            \
  return call_.result
#define RELEASED return call_.result

typedef struct Chip {
  int sm, processors, threads, shared_sm,
      shared_block;             /* per multiprocessor, per block with permission */
  int clock, memory_clock, bus; /* kHz, kHz, bits */
  int l2;
  const char *name;
} Chip;
extern const Chip *chip;
extern int driver_version;
CUcontext context_now(void);
uint64_t random_next(void);

/* ---- stream.c ---- */
CUstream stream_of(CUstream s); /* the default streams are of the context; NULL: not a stream */
CUresult stream_add(CUstream s, const Work *w); /* queued, or recorded into a graph */
CUresult stream_finish(CUstream s);             /* NULL: all of the context */
bool capturing(void);
void streams_drop(CUcontext c);
CUresult work_run(Work *w);
void work_hash(Work *w);
void work_free(Work *w);
/* graph.c */
CUresult graph_record(CUstream s, const Work *w);
CUresult graph_run(CUgraphExec x);
void graph_free(CUgraph g);
/* driver_mem.c, driver_module.c */
CUresult free_work(Work *w);
CUresult kernel_work(Work *w, CUfunction f, const uint32_t grid[3], const uint32_t block[3],
                     uint32_t shared, void **params, void **extra);
/* library.c */
CUresult library_run(const Work *w);
/* report.c */
void report_add(const Launch *l);
void report_copy(uint64_t bytes, int direction);
void report_write(void);
#endif
