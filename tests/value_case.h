/* One operator run by the interpreter on small float64 inputs made by a rule. An input is "NAME dims rule": the rule m gives
 * element k the value ((5k + 3) mod m - m/2) / 4, "=v,v,.." lists values. */
#ifndef KILN_VALUE_CASE_H
#define KILN_VALUE_CASE_H
#include "util.h"

typedef struct ValueExpect {
  const char *name;
  int n;
  const double *v;
} ValueExpect;

typedef struct ValueCase {
  const char *op; /* in the text form; inputs and outputs are single variables */
  const char *in; /* "A 2x3 11; I 2:int64 =0,1" */
  ValueExpect out[5];
} ValueCase;

#define V(...)                                                                                     \
  (int)(sizeof((const double[]){__VA_ARGS__}) / sizeof(double)), (const double[]) { __VA_ARGS__ }
typedef struct ValueRun {
  Arena *a;
  Program *p;
  Map *fed; /* name -> Tensor */
  uint64_t seed, step;
} ValueRun;

/* The program of one operator; its outputs are declared without shape. */
void value_start(ValueRun *r, const char *op, const char *in);
/* The output's value, NULL with an error. */
Tensor *value_fetch(ValueRun *r, const char *name);
void value_end(ValueRun *r);
void value_check(const ValueCase *c);

#endif
