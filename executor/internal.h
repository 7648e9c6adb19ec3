/* What the files of the executor share. */
#ifndef KILN_EXECUTOR_INTERNAL_H
#define KILN_EXECUTOR_INTERNAL_H
#include "executor.h"
#include "../passes/passes.h"
#include "../backends/backend.h"

/* A state variable in a run. */
typedef struct StateUse {
  const Buffer *buf;
  const int64_t *layout; /* in which its elements are wanted */
  int write;             /* position in Graph.writes, or -1 */
} StateUse;

/* Of a section's result: the input, or the earlier result, that it is, and its sequences. */
typedef struct Same {
  int result; /* -1: none */
  const char *feed;
  const Lod *lod;
} Same;

/* A compiled program for one set of feed shapes, state shapes and fetches. It belongs to one executor: what is kept from run to
 * run is all that changes. */
struct Executable {
  Arena *arena;
  Graph *graph;
  const Backend *backend;
  Module *module;
  KernelCode *code; /* one per kernel */
  Buffer ***bufs;   /* per kernel: buffers in the order of the KernelFn's argument */
  int *n_bufs;
  StateUse *states; /* of the buffers that are state */
  int n_states;
  const StateUse **use;  /* of each buffer; NULL: it is no state */
  int64_t locals_at;     /* within a thread's scratch: where what is B_LOCAL begins */
  int64_t scratch_bytes; /* per thread: the most that any kernel wants, and what is B_LOCAL */
  PlanInfo plan;
  size_t bytes; /* of the plan: arena and graph */
  /* see B_KEPT and keep.c; NULL until the first run, and after one that was long ago */
  uint8_t *kept;
  CacheValue mapped;         /* what is kept, if it is the disk's */
  bool unverified;           /* no run has succeeded with it yet */
  bool to_store;             /* it is to go to the disk */
  struct KeptWriter *writer; /* it is on its way there; or NULL */
  uint8_t *data;             /* the constants, on a device; NULL until the first run */
  /* per buffer: version of the state that what is kept comes from; the last: is it there? */
  uint64_t *seen;
  const char *key; /* see executables.c */
  int n_feeds;     /* of a section */
  Map *lod_feeds;  /* names of those that are offsets of sequences */
  Tensor *feeds;   /* of a section: shapes, and the data that it was compiled for */
  uint64_t lods;   /* of its scope, see scope_lods */
  Same *same;
  CompileOptions options;
  Executable *next;
};

/* late.c: a run that a device works on. */
typedef struct Late {
  Arena *arena;
  Executable *x;
  int n_out, n_fetch;
  DeviceCopy *out; /* what comes back */
  Tensor *to;      /* the caller's */
  bool *own;       /* per fetch: the data was taken for this run */
  uint64_t step;
} Late;

typedef struct Profile Profile;
struct Executor {
  ExecOptions opt;
  Arena *arena;
  Device *device;     /* NULL: the host */
  const char *target; /* of the device */
  Pool *pool;
  Executable *cache; /* most recently used first */
  Executable *last;
  int compiled;        /* see exec_compiled */
  struct Plan *plans;  /* of programs that run in parts, the same */
  Arena *tmp;          /* of the run in progress; emptied by the next one */
  struct Again *again; /* the last run, in tmp, if the next may be the same; else NULL */
  uint8_t *memory;     /* the arena of the executables, as large as the largest */
  size_t memory_bytes;
  uint8_t *scratch; /* one piece per thread */
  size_t scratch_bytes;
  uint64_t step;
  uint64_t runs;  /* that were begun */
  uint64_t draws; /* runs of programs without updates since the last one with them */
  Profile *profile;
  Late late[DEVICE_LATE]; /* under way, the oldest first */
  int n_late;
};

/* run.c: splitmix64 of Steele, Lea and Flood. */
uint64_t mix_seed(uint64_t x);

/* run.c: a section of a program. `list`: the executables made for it, most recently used first. out[i].data stays NULL
 * where (*same)[i] says what the result is. *same is valid until the next run. */
bool run_section(Executor *e, const CompileRequest *r, Executable **list, uint64_t seed,
                 Tensor *out, const Same **same);

/* executables.c: NULL: error set. Sections run often: for them no text is made of the shapes. */
Executable *find_executable(Executor *e, const CompileRequest *r);
Executable *find_section(const CompileRequest *r, Executable **list);
/* Drops what has not been used for long; the first of the list stays. */
void executables_limit(Executable **list, bool sections);

/* kernels.c: the error of a check that failed. */
bool report_check(const Executable *x, const CheckRecord *check, uint64_t step);

/* late.c */
/* Notes a run that has been started. Its results go to `to`, whose data it owns where `own` says so. */
void late_add(Executor *e, Executable *x, int n_out, const DeviceCopy *out, int n_fetch, Tensor *to,
              const bool *own, uint64_t step);
/* Memory for a note, before the run is started. */
void late_reserve(Executor *e, int n_out, int n_fetch);
void late_forget(Executor *e); /* all of them; waits for the device; sets no error */

/* control.c, control_plan.c */
bool control_plans(const Executor *e, const Program *p); /* has it run in parts before? */
bool control_run(Executor *e, const CompileRequest *r, uint64_t seed, Tensor *out);
void control_forget(Executor *e); /* frees all plans */

/* profile.c */
Profile *profile_new(bool trace);
void profile_free(Profile *p);
void profile_add(Profile *p, const Executable *x, int kernel, double t0, double t1); /* seconds */
bool profile_write_trace(const Profile *p, const char *path);
void profile_print(const Profile *p, const Roof *roof, FILE *to, bool json);
double now_seconds(void);

/* keep.c */
/* Kept memory: from the disk, with `seen` set, or new. Throws. */
void kept_take(Executable *x, Scope *scope, Pool *pool);
void kept_drop(Executable *x);
/* May the buffer's value, which is there since earlier runs, be used? */
bool kept_holds(Executable *x, const Buffer *b, Pool *pool);
/* A run has succeeded: what it kept goes to the disk, if it belongs there. Does not fail. */
void kept_made(Executable *x, Scope *scope);
void kept_wait(Executable *x); /* until it is there: before what is kept changes */

/* device.c: memory of a device, or (NULL) of the host. What a device refuses is thrown like a refused allocation. */
void *place_take(Device *d, size_t n); /* not zeroed */
void place_free(Device *d, void *p);
void place_put(Device *d, void *to, const void *from, size_t n); /* from the host */
void place_get(Device *d, void *to, const void *from, size_t n); /* to the host */
/* The constants of a program, on its device: at[] of their buffers. */
void place_constants(Executable *x, void **at);
/* The device of a name as users write it; NULL: the host. To be closed. E-ARG-001, E-DEV. */
bool device_find(const char *name, Device **d);
/* Target of CompileOptions on it, in the arena; math: NULL, exact, tf32, bf16. E-ARG-001. */
bool device_target(Arena *a, const Device *d, const char *math, const char **target);

/* nancheck.c */
bool tensor_finite(const Tensor *t, int64_t *at); /* at: the first element that is not */
/* Interpret the program to find the first operator whose output is not finite; records E-NUM-001. */
bool find_not_finite(const CompileRequest *r, const EvalEnv *env, const char *seen_in);

/* scope.c: a new value in two steps, the second of which needs no memory and so cannot fail. */
/* Another one for every value that the variable gets, by scope_give, scope_set or scope_edit; 0: it has none.
 * origin, may be NULL: of the value, see value_origin. */
uint64_t scope_version(Scope *s, const char *name, uint64_t *origin);
/* Stands for a value in a file (see vfs_map) in all processes: its place there, its first and last bytes; 0 if the file is. */
uint64_t value_origin(uint64_t file, uint64_t place, const Tensor *t);
void scope_reserve(Scope *s, const char *name);
/* Takes its data, of place_take, which is in that layout (see Node.ia of STATE; NULL: as it is). */
void scope_give(Scope *s, const char *name, const Tensor *value, Device *d, const int64_t *layout);
/* A variable's elements in a layout, in the device's or (NULL) the host's memory; NULL if it has none; copied if they are
 * not there. Who writes is alone with the
 * variable, and gives it back by scope_give; of who only reads there may be several. */
void *scope_data(Scope *s, const char *name, Device *d, const int64_t *layout, bool write,
                 Pool *pool);
/* The value in row-major order, its data in the arena if the scope does not hold it so; NULL if there is none. */
Tensor *scope_copy(Scope *s, const char *name, Arena *a);
/* A file in the .pdiparams layout; its large tensors stay where it is mapped. */
bool scope_map_params(Scope *s, const Program *p, const char *path);
/* All of them or, if memory is refused, none, with their offsets of sequences as NAME@LOD. origin: of each, or NULL. */
void scope_set_all(Scope *s, Arena *a, int n, Var *const *vars, const Tensor *t,
                   const ParamLevels *levels, const uint64_t *origin);
/* Differs whenever any value, or the address of one, may. */
uint64_t scope_changes(const Scope *s);
/* Differs whenever the offsets of sequences of any variable do; 0: none has any. */
uint64_t scope_lods(Scope *s);
/* The variable, if it may be the offsets of sequences; else NULL. */
const Tensor *scope_sequences(Scope *s, const char *name);
/* Offsets of the sequences of a variable, the outermost level first, their data in the arena or the scope; how many. */
int scope_levels(Scope *s, const char *name, Arena *a, const Tensor **levels);

/* values.c: the file of one variable in a folder; NULL: its name leads out of it (E-PAR-001). */
const char *param_file(Arena *a, const char *folder, const Var *v);

/* save.c */
typedef struct FileSum {
  size_t bytes;
  unsigned long crc; /* CRC-32 */
} FileSum;
/* scope_save_params; sum (may be NULL): of the file */
bool save_params(Scope *s, const Program *p, const char *path, FileSum *sum);

/* compile.c */
/* Offsets of sequences (NAME@LOD), which are compiled in? */
bool feed_is_lod(const Feed *f);
bool expand_request(const CompileRequest *r, Graph **g);
/* The operators that a request is about; of a whole program, without those that lack a feed and are not needed. */
Section request_section(const CompileRequest *r, Arena *a);

#endif
