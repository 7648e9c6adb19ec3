/* A run in progress: run.c begins and ends it, kernels.c does its work. */
#ifndef KILN_RUN_H
#define KILN_RUN_H
#include "internal.h"
#include <string.h>

typedef struct Run Run;
/* What the kernels do on the host, one step after the other. */
typedef struct Steps {
  Run *run;
  int n;
  PoolStep *step;
  struct Phase *phase; /* of each */
  int *stop;           /* positions in step[] after which somebody looks; the last is n */
  int n_stops;
  int64_t least; /* cheaper kernels run on the calling thread */
  int n_args;
  void **args; /* addresses for the kernels */
  const Buffer **arg_of;
  void **own;      /* addresses of a chain, of each thread */
  double *seconds; /* by thread and kernel of a chain; NULL: not wanted */
} Steps;

struct Run {
  Executor *e;
  Device *device; /* NULL: the host */
  Executable *x;
  Scope *scope;
  const CompileRequest *req;
  Executable **list;  /* of a section: those made for it */
  const Same *same;   /* of its results */
  void **at;          /* address per buffer id */
  Steps *steps;       /* on the host */
  struct Again *note; /* NULL: the same run once more would not be the same */
  int n_state;        /* states written */
  Tensor *fresh;      /* of each: data of mem_alloc if the scope's own tensor does not do */
  int n_fetch;
  Tensor *out; /* fetched */
  bool *own;   /* of each: its data is new */
  bool kept;   /* constant kernels need not run */
  bool later;  /* results are looked at by exec_finish */
  Tensor *to;  /* the caller's */
  CheckRecord check;
  uint64_t seed, step;
};

static inline Tensor shape_of(const Node *n) {
  Tensor t = {.dtype = n->dtype, .rank = n->rank};
  memcpy(t.dims, n->dims, sizeof *t.dims * (size_t)n->rank);
  return t;
}

static inline const Tensor *feed_value(const CompileRequest *r, const char *name) {
  for (int i = 0; i < r->n_feeds; i++)
    if (!strcmp(r->feeds[i].name, name)) return r->feeds[i].value;
  return NULL;
}

/* Is its result i an input, or the same as an earlier result? */
static inline bool is_same(const Run *u, int i) {
  return u->same && (u->same[i].feed || u->same[i].result >= 0);
}

/* kernels.c */
/* Addresses of all buffers but those of state that is looked up when it is wanted. Throws. */
void bind_buffers(Run *u);
void *buffer_address(Run *u, const Buffer *b);
/* E-NUM and other errors of checks, of custom operators, of the device. */
bool run_kernels(Run *u);
/* On the host: what run_kernels has made of them. */
bool run_steps(Run *u);

/* run.c */
bool has_updates(const Program *p); /* operators of gradients or optimisers */
/* Memory for what the graph fetches: the caller's, where it fits. Throws. */
void take_results(Run *u, const Graph *g, const Tensor *out);
/* What was fetched, and new state, goes out. */
void finish(Run *u, Tensor *out);
/* After a failure: what was taken. */
void give_back(Run *u);

/* again.c */
/* A run is about to begin: if it succeeds, u->note will do for the same run. Throws. */
void note_run(Run *u);
/* It has succeeded. */
void noted_run(Executor *e, Run *u);
/* Does the noted run count as a step? See has_updates. */
bool again_updates(const Executor *e);
/* Is it the same? */
bool is_again(const Executor *e, const Scope *s, const Program *p, int n_feeds, const Feed *feeds,
              int n_fetch, const char *const *fetch);
/* The noted run, with other values of the feeds. */
bool run_again(Executor *e, uint64_t seed, const Feed *feeds, Tensor *out);
#endif
