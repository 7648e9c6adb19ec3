/* The command line: one file per verb; what they share. Results go to stdout, logs and progress to stderr. */
#ifndef KILN_TOOLS_H
#define KILN_TOOLS_H
#include "../frontend/internal.h"
#include "../passes/passes.h"
#include "../backends/backend.h"

typedef int
/* Argv[0] is the verb; returns the exit code: 0, 1 failure, 2 usage */
VerbFn(int argc, char **argv);
typedef struct Verb {
  const char *name;
  VerbFn *run;
  const char *summary;
} Verb;
#define VERB(name, summary) VerbFn verb_##name;
#include "verbs.def"
#undef VERB

extern int arguments_before_verb; /* the global flags: argv[-n] to argv[-1] of a VerbFn */

/* args.c: flags from a table. `--flag value` or `--flag=value`; positional arguments are collected in order. */
/* FLAG_COUNT: 0..2^31-1; FLAG_FLOAT, FLAG_ERROR: from 0 to below 1, where 0 of an error
 * is stored as -1, not the default; FLAG_BYTES: a positive number, perhaps with K, M or G (1024, ...) */
typedef enum FlagKind {
  FLAG_BOOL,
  FLAG_INT,
  FLAG_COUNT,
  FLAG_BYTES,
  FLAG_FLOAT,
  FLAG_ERROR,
  FLAG_TEXT,
  FLAG_LIST
} FlagKind;
/* The rows of flags that choose where programs run, for the verbs that run some; exec: an ExecOptions. */
#define DEVICE_FLAGS(exec)                                                                         \
  {"--device", FLAG_TEXT, &(exec).device, "cpu|cuda[:N]", "where to run (cpu)"}, {                 \
    "--math", FLAG_TEXT, &(exec).math, "exact|tf32|bf16",                                          \
        "how matrix products round their inputs on a GPU (exact)"                                  \
  }
#define ALGORITHM_FLAGS(exec)                                                                      \
  {"--conv-error", FLAG_ERROR, &(exec).conv_error, "EPS",                                          \
   "how far convolutions may be off (2e-6, as sums are); 0: sums alone"},                          \
      {"--deterministic", FLAG_BOOL, &(exec).deterministic, NULL,                                  \
       "algorithms by a rule on the shapes alone, none as measured"},                              \
  {                                                                                                \
    "--tune", FLAG_BOOL, &(exec).tune, NULL,                                                       \
        "measure which algorithm is the fastest for each shape, and remember it"                   \
  }
#define FEED_SHAPE_HELP                                                                            \
  "x=8x3x224x224; other inputs follow in the batch, their other -1 dims become 1"
enum { LIST_MAX = 1024 };
typedef struct List {
  int n;
  const char *v[LIST_MAX];
} List;
typedef struct Flag {
  const char *name; /* "--threads" */
  FlagKind kind;
  void *to;          /* bool, int64_t (also COUNT), double, const char *, List */
  const char *value; /* what the value is called in the help; NULL for FLAG_BOOL */
  const char *help;
} Flag;
typedef struct Usage {
  const char *args;  /* "MODEL -o FILE" */
  const char *about; /* one paragraph */
  int min_args, max_args;
  const Flag *flags; /* ended by a NULL name */
} Usage;
/* Returns -1 to go on, else the exit code (0 after --help, 2 after an error). *args: the positional arguments. */
int parse_args(int argc, char **argv, const Usage *u, List *args);
extern bool help_as_manual; /* --help prints a section of a manual page */
int report(void);           /* prints this thread's diagnostic (in the format of --error-format);
                     returns 2 after wrong usage, else 1 */
int usage_error(const char *fmt, ...) __attribute__((format(printf, 1, 2))); /* returns 2 */
/* Is argv[i] the flag `name`, whose value follows it or stands after =? How many arguments that were, 0: it is another one,
 * -1: a usage error was printed. kind: what the value is called. */
int global_flag(int argc, char **argv, int i, const char *name, const char *kind,
                const char **value);
int error_format(int argc, char **argv, int i); /* the same for --error-format, which it obeys */
/* Looks for it among all arguments, so that errors in those before it take its form. */
void find_error_format(int argc, char **argv);

/* model.c: programs with their parameters. */
typedef struct Model {
  Arena *arena;
  Program *prog, *stored;    /* stored: as in the file, if prog has been cut down */
  const char *path, *params; /* params: NULL if there is no parameter file */
} Model;
/* Params: --params, or NULL to look beside the program */
bool model_open(Model *m, const char *path, const char *params);
bool model_open_any(Model *m, const char *path, const char *params); /* see prog_load_any */
bool model_trains(const Model *m); /* has it operators of gradients or updates? */
/* A program that trains, but is to run as it is used, loses its backward and update operators, with a note; unless one of the
 * fetches needs them. */
bool model_for_inference(Model *m, int n, const char *const *fetches);
bool model_load_params(const Model *m, Scope *s);
void model_close(Model *m);
/* The variables a run must feed, and what it fetches when nothing is asked for: feed and fetch operators' variables, or
 * data inputs and the last operator's outputs. Arrays in the model's arena. */
int model_feeds(const Model *m, Var ***vars);
int model_fetches(const Model *m, const char ***names);
/* The same, but without fetch operators: the outputs of the last operator that can be computed from these feeds. */
int model_reached(const Model *m, int n_feeds, const Feed *feeds, const char ***names);
/* Every tensor that an operator writes, persistable ones left out; once each, in program order. */
int model_outputs(const Model *m, const char ***names);
/* "x=8x3x224x224" items. Inputs that are not named take over the batch, a first dimension that those named agree on; their
 * other open dimensions become 1. Tensors without data, in the arena. */
bool model_feed_shapes(const Model *m, const List *shapes, int *n, Feed **feeds);
/* The program in the format that the file's extension says, its parameters (values NULL: none) beside it: NAME.pdiparams, or
 * __params__ beside __model__; separate: a file for each variable in the same folder. */
bool model_save(Arena *a, const Program *p, Scope *values, const char *path, bool separate);
/* Exit code 2 and a message, or -1: may a program be saved under this name? */
int check_target(const char *verb, const char *path);
void split_names(Arena *a, const char *text, int *n, const char ***names); /* "a,b" */
void fill_random(Tensor *t, uint64_t seed); /* floats in -1..1, integers 0 and 1 */

/* missing.c */
int print_missing(const char *path, bool json); /* the exit code */

/* dataset.c: feeds read from files. */
typedef struct Column {
  const char *name; /* variable */
  const char *file;
  Tensor all;   /* [rows, ...] in the variable's element type */
  Tensor batch; /* the rows of the current batch */
  int64_t room; /* for so many rows */
  int lod;      /* number of the column NAME@LOD that cuts the rows into sequences; -1: none */
  bool offsets; /* is such a column */
} Column;
typedef struct Dataset {
  Arena *arena;
  int n;
  Column col[LIST_MAX];
  int64_t rows; /* of batches: rows, or sequences where a column has those */
} Dataset;
/* NAME=FILE[:scale=A][:shift=B] each; types are converted value by value, then scaled; rows reshaped to the variable's. */
bool dataset_read(Dataset *d, const Program *p, const List *specs);
bool dataset_open(Dataset *d, const Program *p, const List *specs); /* all have as many rows */
void dataset_close(Dataset *d);
/* Gathers rows order[begin..end-1] (order NULL: in file order) into the batch tensors. */
void dataset_batch(Dataset *d, const int64_t *order, int64_t begin, int64_t end, Feed *feeds);
bool write_npy(const char *path, const Tensor *t);

/* progress.c: a progress line on a terminal, nothing elsewhere. */
typedef struct Progress {
  bool on;
  double last;
} Progress;
void progress_start(Progress *p);
void progress_show(Progress *p, int64_t done, int64_t total, const char *text);
void progress_clear(Progress *p);
const char *grouped(int64_t v); /* "12,345"; one of 4 rotating buffers */

/* events.c: TensorBoard event files (scalars). */
typedef struct EventLog EventLog;
EventLog *events_open(const char *dir);
void events_scalar(EventLog *l, const char *tag, int64_t step, double value);
void events_close(EventLog *l);

double wall_seconds(void);

#endif
