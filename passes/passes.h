/* Passes: rewrites of a Program that a user may want to keep, and the compiler's rewrites of a Graph.
 * passes.def lists the Graph passes in running order; runner.c runs, verifies, times, prints and stops. */
#ifndef KILN_PASSES_H
#define KILN_PASSES_H
#include "../ir/ir.h"

/* runner.c */
typedef struct PassOptions {
  const char *print_after; /* pass name, "all" or NULL: the Graph is printed to `log` */
  const char *stop_after;  /* pass name or NULL */
  const char *disable;     /* comma-separated pass names or NULL */
  /* NULL, or a folder for 00-expand.kl, 01-simplify.kl, ... (unchanged ones are elided) */
  const char *dump_dir;
  bool time_passes;
  bool libraries; /* for the compiler: TUNE_LIBRARY */
  /* the backend's: run on every kernel after fuse, attention, operands and recompute; NULL: none */
  bool (*schedule)(Kernel *k);
  FILE *log; /* NULL: stderr */
} PassOptions;
typedef void GraphPass(Graph *g);
typedef struct PassInfo {
  const char *name;
  GraphPass *run;
  const char *why;
} PassInfo;
extern const PassInfo pass_info[];
extern const int pass_n;
/* The Graph is verified after every pass, and the plan after the last; a fault ends the process. Tests set it, and builds with
 * sanitizers have it set: what is found would be an error of a pass, not of a program. */
extern bool verify_passes;
/* All passes in order. Returns false if a pass named in the options does not exist (E-ARG-001), a dump cannot be
 * written, or schedule() failed. *stopped (may be NULL) says that stop_after was reached. Passes themselves cannot fail. */
bool passes_run(Graph *g, const PassOptions *o, bool *stopped);
/* With time_passes: a line on a phase that began at start_ms, a time of passes_clock(). */
void passes_time(const PassOptions *o, const char *phase, double start_ms, const char *note);
double passes_clock(void); /* milliseconds */
/* Words such as "print-after=fuse,time-passes" into options, which point into static storage. E-ARG-001. */
bool pass_options_parse(PassOptions *o, const char *words);
/* KILN_DEBUG: the same words, comma- or space-separated */
void pass_options_from_env(PassOptions *o);

/* Each Graph pass is one function in a file of its name: see passes.def. */
#define PASS(name, why) GraphPass pass_##name;
#include "passes.def"
#undef PASS

/* layout_conv.c: tests set it, so that channels (1) or images (2) come last also where it does not pay. */
extern int layout_always;

/* memplan.c: no two buffers that are live at once overlap, and every node of a kernel's interface has one. Asserted
 * after memplan with verify_passes; false, with the reason in `why` (may be NULL), if the plan is broken. */
bool memplan_check(const Graph *g, Str *why);
/* planfile.c: the plan as text, in the format that tests/plan_check.c reads. After memplan. */
void plan_print(const Graph *g, Str *out);

/* backward.c: append_backward on block 0 of p. Gradients of loss with respect to every parameter (is_parameter and not
 * stop_gradient), or to the n_params named ones. Follows PaddlePaddle's rules (names, roles, sum of fan-outs).
 * Returns the parameters and gradient names in arrays of the program's arena, sorted by parameter name. */
typedef struct ParamGrad {
  Var *param;
  const char *grad;
} ParamGrad;
bool append_backward(Program *p, const char *loss, int n_params, const char *const *params, int *n,
                     ParamGrad **pg);

/* optim.c: clipping, decay and update operators after a backward. */
typedef enum ClipKind { CLIP_NONE, CLIP_VALUE, CLIP_NORM, CLIP_GLOBAL_NORM } ClipKind;
typedef struct OptimState {
  const char *in, *out, *suffix;
  double init;
  bool scalar;
} OptimState; /* an accumulator slot */
typedef struct OptimSpec {
  const char *type; /* operator type: "sgd", "momentum", "adam", ... */
  int n_attrs;
  const Attr *attrs;
  int n_states;
  /* Accumulators: slots, variable suffix ("velocity"), initial value, [1] or the parameter's shape */
  const OptimState *states;
  double lr;           /* initial value of the learning-rate variable */
  const char *lr_name; /* NULL: a new learning_rate_N; else an existing persistable variable */
  ClipKind clip;
  double clip_lo, clip_hi; /* value: lo..hi; norms: hi */
  int decay_kind;
  double decay; /* 0 none, 1 L1, 2 L2 added to the gradients */
} OptimSpec;
/* State variables are created in both programs and initialised in `startup`. Returns the learning-rate variable's name. */
const char *append_optimizer(Program *main, Program *startup, const OptimSpec *o, int n,
                             const ParamGrad *pg);

#endif
