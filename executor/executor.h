/* The executor: compiles programs per shape, keeps executables, runs them against a scope. The one header that the
 * frontend and the tools include of it.
 * Threads: an Executor belongs to one thread at a time; several Executors may share a Scope if none of them writes it. */
#ifndef KILN_EXECUTOR_H
#define KILN_EXECUTOR_H
#include "../ir/ir.h"

/* scope.c: named tensors that outlive a run. */
typedef struct kl_scope Scope;
Scope *scope_new(void);
void scope_free(Scope *s);
/* The tensor or NULL. The pointer stays valid until the scope is freed or the variable is set with another size; what it
 * points to is the value at the time of the call: after a run, call again. */
const Tensor *scope_get(Scope *s, const char *name);
/* The same to change elements, until the next run. */
Tensor *scope_edit(Scope *s, const char *name);
/* Type and dimensions alone; false if there is no such tensor. */
bool scope_shape(Scope *s, const char *name, Tensor *t);
/* Copies (data NULL: zeros). Returns the scope's tensor, whose elements may be changed until the next run. */
Tensor *scope_set(Scope *s, const char *name, DType t, int rank, const int64_t *dims,
                  const void *data);
void scope_remove(Scope *s, const char *name);
int scope_names(Scope *s, Arena *a, const char ***names); /* sorted */

typedef struct ExecOptions {
  int threads;        /* 0: all cores */
  const char *device; /* NULL or "cpu"; "cuda", "cuda:N". Used by exec_new only, as is math */
  const char
      *math; /* NULL or "exact"; on a GPU also "tf32", "bf16": how products round their inputs */
  bool interpret;    /* the plain interpreter instead of generated code */
  bool check_nan;    /* E-NUM-001 at the first operator whose output has a NaN or infinity */
  bool profile;      /* keep times per kernel */
  const char *trace; /* NULL, or a file for a Chrome trace, written by exec_free */
  bool no_blas;
  int64_t memory_budget; /* bytes of a run's intermediate values, 0: any; E-MEM-003 */
  /* Of convolutions, relative to the largest result: 0: SUM_ERROR, or none if deterministic; < 0: none, plain sums */
  double conv_error;
  /* Contractions by the rule on their shapes alone; measured where that has not been done. They exclude each other. */
  bool deterministic, tune;
  uint64_t seed;     /* of random operators whose own seed is 0 */
  int64_t max_steps; /* runs of one loop's body before it counts as endless; 0: DEFAULT_MAX_STEPS */
  const char *debug; /* words of KILN_DEBUG, or NULL: only the environment's */
} ExecOptions;

enum { DEFAULT_MAX_STEPS = 100000000 };
typedef struct Executor Executor;
/* o NULL: defaults; interpret and a device exclude each other. NULL, with an error: E-ARG-001, E-DEV. */
Executor *exec_new(const ExecOptions *o);
void exec_free(Executor *e);
ExecOptions *
exec_options(Executor *e); /* may be changed between runs, except threads, device, math and trace */
/* Random numbers depend on (seed, step): step counts this executor's runs of programs that hold backward or optimise
 * operators, and is saved in checkpoints. Runs of other programs draw anew each time, and leave the numbers of training as
 * they are. */
uint64_t exec_step(const Executor *e);
/* How many shapes of programs this executor has compiled; one that it has seen is not compiled again while it is among the
 * 512 last used, of at most 512 MiB together. */
int exec_compiled(const Executor *e);
void exec_set_step(Executor *e, uint64_t step);

typedef struct Feed {
  const char *name;
  const Tensor *value;
} Feed;
/* Run block 0. Fetched tensors are filled in: data is allocated with mem_alloc (mem_free it) unless fetch[i].data
 * was given by the caller with the right dtype and dims. E-DAT, E-RUN, E-NUM, E-SHP... Nothing in the scope has changed
 * if an error is found before execution starts; after E-DAT-002 or E-NUM-001 state is unchanged too. */
bool exec_run(Executor *e, Scope *s, const Program *p, int n_feeds, const Feed *feeds, int n_fetch,
              const char *const *fetch, Tensor *out);

/* The same in two steps, so that the host prepares a run while a device computes the one before: exec_start returns when the
 * device has its orders, and out[], which stays the executor's until then, has its data once exec_finish has returned. It
 * finishes the oldest runs until at most `left` are under way (of two at most; exec_start and exec_run make room). If one
 * fails, it and those after it have changed nothing and are forgotten: their out[i].data is what the caller gave, or NULL.
 * On the host, and with check_nan or profile, exec_start does it all. */
bool exec_start(Executor *e, Scope *s, const Program *p, int n_feeds, const Feed *feeds,
                int n_fetch, const char *const *fetch, Tensor *out);
bool exec_finish(Executor *e, int left);
int exec_under_way(const Executor *e);

/* compile.c: what exec_run does on a new shape, for the tools. */
typedef struct Executable Executable;
typedef struct CompileRequest {
  const Program *prog;
  Section section; /* what to compile; without a block: block 0 */
  Scope *scope;    /* shapes of state; may be NULL: declared shapes are used */
  int n_feeds;
  const Feed *feeds; /* data may be NULL here */
  int n_inputs; /* of a section: behind so many feeds come the offsets of their sequences, NAME@LOD */
  const bool *known; /* NULL, or of each of those: its value is compiled in */
  int n_fetch;
  const char *const *fetch;
  const char *target;               /* NULL: this CPU */
  struct Device *device;            /* to run on; NULL: the host */
  const struct PassOptions *passes; /* NULL: from KILN_DEBUG */
  bool no_blas;
  int64_t memory_budget; /* see ExecOptions */
  int threads;           /* see Graph */
  double conv_error;     /* see Kernel */
  Tuning tuning;
  bool no_code;   /* stop before code generation */
  Wanted *wanted; /* out, may be NULL: see Graph */
} CompileRequest;
Executable *compile(const CompileRequest *r);
/* How algorithms are chosen: r's tuning and conv_error. E-ARG-001 if o asks for both deterministic and tune. */
bool choose_by(const ExecOptions *o, CompileRequest *r);
void executable_free(Executable *x);
Graph *executable_graph(Executable *x);
/* "graph" "dot" "llvm" "asm" "ptx" "object" */
bool executable_emit(Executable *x, const char *what, Str *out);
typedef struct PlanInfo {
  int kernels;
  int64_t arena, lower_bound, state, flops, bytes;
  double compile_ms;
  /* on a device: what the last run asked of the driver, and of libraries */
  int launches, graphs, copies, calls;
} PlanInfo;
/* The plan of the executable that this executor last ran. */
PlanInfo exec_last_plan(const Executor *e);

/* control.c: does the program run in parts, because of operators that are not compiled? */
bool program_has_host_ops(const Program *p);
/* What the parts are, block by block, for the tools: `fn` is called with a request for each section, in which feeds have
 * their declared shapes (for -1: 1) and no data. With r.known[i] the section is compiled for each value of feed i, when it
 * is there. If fn fails with E-OPR-006, the section is cut and fn is called again. */
typedef bool SectionFn(void *user, const CompileRequest *r);
bool each_section(const CompileRequest *r, SectionFn *fn, void *user);

/* profile.c */
enum { ROOF_SIZES = 5 };
/* What the machine reaches: FLOP per second, and bytes per second over as many bytes (increasing). */
typedef struct Roof {
  double flops, bytes[ROOF_SIZES], rate[ROOF_SIZES];
} Roof;
/* The least time: the larger of arithmetic over the peak and traffic over the bandwidth of its size. */
double roof_seconds(const Roof *r, double flops, double bytes);
/* Tables per operator and per kernel; with a roof (or NULL) also each kernel's bound and the part of it reached. */
void exec_profile_print(const Executor *e, const Roof *roof, FILE *to, bool json);
void exec_profile_clear(Executor *e); /* forgets the times so far */
/* The sum of the bounds of the kernels of the executable that this executor last ran: seconds. */
double exec_bound(const Executor *e, const Roof *roof);

/* checkpoint.c: a folder DIR/step-NNNNNNNNNN with one file of tensors, one of names and state, and a manifest written
 * last; complete or not there. `extra` is kept verbatim (position in the data, schedule state, random stream). */
bool checkpoint_save(const char *dir, Scope *s, const Program *p, uint64_t step, uint64_t seed,
                     const char *extra);
bool checkpoint_load(const char *dir, Scope *s, const Program *p, uint64_t *step, uint64_t *seed,
                     char **extra, Arena *a);
bool checkpoint_exists(const char *dir); /* is there one, complete or not? */
/* Persistable variables of p between a scope and files. Path: a .pdiparams file, or (ending with / when saving) a folder
 * with a file for each variable; loaded are also dictionaries, .pdparams with the .pdopt beside it. */
bool scope_write_params(Scope *s, const Program *p, VfsOut *o); /* the bytes of a .pdiparams file */
bool scope_save_params(Scope *s, const Program *p, const char *path);
bool scope_load_params(Scope *s, const Program *p, const char *path);
/* The same for a program that was cut down: stored is what the file was written for, wanted what must be there. */
bool scope_load_values(Scope *s, const Program *stored, const Program *wanted, const char *path);
/* The file or folder of parameters beside a program's file; NULL: none, or (error set) too many. */
const char *values_beside(Arena *a, const Program *p, const char *path);

#endif
