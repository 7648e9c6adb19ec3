/* Kernels of the CPU backend against the interpreter: fed values, one contraction by one algorithm, a kernel's tasks in
 * several splits. */
#ifndef KILN_TESTS_CONTRACT_CASE_H
#define KILN_TESTS_CONTRACT_CASE_H
#include <stdarg.h>
#include <setjmp.h>
#include <stddef.h>
#include <cmocka.h>
#include "../backends/cpu/tiles.h"
#include "../backends/llvm/llvm.h"

double test_noise(void); /* the next number in -1..1, in every run the same */

typedef struct Feeds {
  Arena *a;
  Map *map;
} Feeds;
Feeds feeds_new(void);
Tensor *feeds_lookup(void *user, const char *name, bool state); /* for an EvalEnv */
/* A feed of the graph with numbers in -1..1. */
Node *feeds_add(Graph *g, Feeds *f, const char *name, DType t, int rank, const int64_t *dims);

/* In threes: and in a run of odd number (RunCtx.run). */
typedef enum Split { ALL_AT_ONCE, ONE_BY_ONE_BACKWARDS, IN_THREES } Split;
void run_split(const KernelCode *c, void *const *bufs, Split split);

extern bool contract_constant; /* what kernels are told of their inputs */
extern int contract_choice;    /* the algorithm that they ask for */
/* node: a CONTRACT; its value and those of its operands are in values. Returns the algorithm. */
PlanKind contract_check(Arena *a, Node *node, Tensor *const *values, bool epilogue, bool no_blas);
/* Every contraction of the graph. kinds: those expected, in graph order (ANY: not looked at; NULL: none). backend: also
 * through the whole backend. */
enum { ANY = -1 };
void contract_check_all(Graph *g, Feeds *f, const int *kinds, bool backend);
#endif
