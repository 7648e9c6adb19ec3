/* The examples of ops.def as Programs: what the tests that sweep the operators share. */
#ifndef KILN_TESTS_OPCASE_H
#define KILN_TESTS_OPCASE_H
#include "../executor/executor.h"

/* One example of one row, built for one floating type. */
typedef struct OpCase {
  const OpDef *def;
  const char *text;
  DType real;
  bool nograd, known; /* the words that the example starts with */
  Program *prog;      /* block 0: constants of the example, then the operator */
  Op *op;
  int n_fed; /* fed variables and their values */
  const char **fed;
  Tensor *value;
} OpCase;

int example_count(const OpDef *def);
/* The k-th example; fed values are the same for both floating types (exact in float32). False:
 * error set. */
bool opcase_make(OpCase *c, const OpDef *def, int k, DType real);
/* The same for a text like those of ops.def. */
bool opcase_text(OpCase *c, const OpDef *def, const char *text, uint64_t seed, DType real);
void opcase_free(OpCase *c);
Tensor *opcase_value(const OpCase *c, const char *name); /* NULL if it is not fed */
/* Appends the gradient operators of c->op; "NAME@GRAD" of the outputs they read are declared and
 * returned, as are the gradients that they write. Arrays in the program's arena. */
typedef struct OpGrads {
  int n_in, n_out;
  const char **in, **out; /* in: gradients to feed; out: gradients computed */
} OpGrads;
bool opcase_grads(OpCase *c, OpGrads *g);
/* Fed values: those of the example, and numbers for the gradients it reads. In the program's arena. */
Feed *opcase_feeds(OpCase *c, const OpGrads *g, int *n);
/* Does the sweep take it? KILN_TEST_OP: only that operator. */
bool opcase_chosen(const OpDef *def);
/* How far compiled and interpreted results of a type may part, relative to the largest of at least 1. */
double tolerance_of_type(DType t);
/* Equal types and dims, and elements within tolerance of the largest of b; NaN equals NaN. False: why. */
bool tensor_close(const Tensor *a, const Tensor *b, double tolerance, char *why, size_t size);
/* Numbers in lo..hi that depend on seed only. */
double test_random(uint64_t *seed, double lo, double hi);
#endif
