/* Programs with control flow, compiled and interpreted: what their tests share. */
#ifndef KILN_TESTS_CONTROL_CASE_H
#define KILN_TESTS_CONTROL_CASE_H
#include "../executor/executor.h"
#include "util.h"

/* A program with one fed variable x and one persistable w, both float64. */
typedef struct ControlCase {
  Program *p;
  Executor *e[2]; /* compiled, interpreted */
  Scope *s[2];
} ControlCase;

/* A program in the text form; o NULL: two threads. */
void open_case(ControlCase *c, const char *text, const ExecOptions *o);
void close_case(ControlCase *c);
/* Executor k with x[n], or nothing, fed; the caller frees out's data. */
bool run_case(ControlCase *c, int k, int n, double *x, const char *fetch, Tensor *out);
/* Both ways of running give these values. */
void expect_case(ControlCase *c, int n, double *x, const char *fetch, int n_want,
                 const double *want);
/* Both fail with this error for x[2]. */
void expect_failure(const char *text, const ExecOptions *o, double *x, const char *fetch,
                    ErrCode code, const char *part);
#endif
