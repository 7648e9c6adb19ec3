/* Cases of operators on a device and interpreted: what the tests on the simulated GPU share. */
#ifndef KILN_TESTS_DEVICE_CASE_H
#define KILN_TESTS_DEVICE_CASE_H
#include "opcase.h"

/* Since the test began: programs, of them those that failed or differ (each told on stderr), calls of libraries. */
extern int device_cases, device_bad, device_calls, device_contractions;
/* Leaves out programs without a contraction, and counts those of the others. */
extern bool device_only_contractions;
/* Executors: on the GPU with these options, and interpreted. */
void device_pair(Executor *exec[2], ExecOptions o);
void device_pair_free(Executor *exec[2]);
/* All examples of a row, in float32 and in float64, there with the channel last. */
void device_examples(const OpDef *def, Executor *exec[2]);
/* The program on both. tolerance 0: of each result's type. */
void device_program(const char *what, Program *p, int n_feeds, const Feed *feeds, int n,
                    const char *const *names, Executor *exec[2], double tolerance);
/* The operator of a case and its gradients on both; frees the case. ok: it was made. tolerance 0: of its type. */
void device_case(OpCase *made, bool ok, double tolerance, Executor *exec[2]);
#endif
