/* One kernel of generated code against the interpreter: a small Graph with fed values, the kernel of it by hand, its
 * functions compiled and run whole and in pieces. */
#ifndef KILN_TESTS_CODE_CASE_H
#define KILN_TESTS_CODE_CASE_H
#include "../backends/llvm/llvm.h"
#include "util.h"

#define I64(...) ((int64_t[]){__VA_ARGS__})
enum { MAX_FEEDS = 8 };

typedef struct Case {
  Graph *g;
  Arena *a;
  int n;
  Tensor feed[MAX_FEEDS];
  const char *name[MAX_FEEDS];
  uint64_t random;
  double ulp; /* the worst seen */
} Case;
Case *case_new(void);
void case_free(Case *c);
/* A fed tensor with values in lo..hi; of integers as many as fit. */
Node *case_feed(Case *c, DType t, int rank, const int64_t *dims, double lo, double hi);
/* For an EvalEnv with the Case as user. */
Tensor *case_lookup(void *user, const char *name, bool state);
/* A kernel of everything in the graph. core: as Kernel.core says, or NULL. */
Kernel *case_kernel(Case *c, KernelKind kind, Node *core, int n_out, Node *const *out,
                    uint32_t reduce);

/* The functions of a kernel: one, or two steps with a workspace between them. */
typedef struct Steps {
  KernelFn *fn[2];
  int64_t tasks[2];
  void *workspace;
} Steps;
/* NULL: error set. */
CodeBatch *case_compile(Case *c, Kernel *k, LoopPart part, Steps *s);
/* Failed checks of a run: how many, and the first. */
typedef struct Failed {
  int n;
  int64_t node, index, value;
} Failed;
/* Runs the functions with tasks cut into `pieces`. */
void case_run(Case *c, Kernel *k, const Steps *s, int64_t pieces, Tensor *out, Failed *f);

/* These fail the test. Differences are measured in ulp of the expected value, or of `scale` if that is larger. */
void case_fail(const char *what); /* with the thread's error */
void case_compare(Case *c, const Tensor *want, const Tensor *got, double max_ulp, double scale,
                  const char *what);
/* Compiles the kernel, runs it whole and in pieces, compares with the interpreter. */
void case_check(Case *c, Kernel *k, LoopPart part, double max_ulp, double scale, const char *what);
/* The same of a map-like kernel of everything in the graph. NULL: fails with the thread's error. */
void case_check_map(Case *c, Node *y, double max_ulp, double scale, const char *what);
#endif
