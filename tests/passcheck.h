/* Oracles for the Graph passes: a graph's results by the interpreter, and by running its kernels one after the other in the
 * memory that the plan gives them; and graphs from text. */
#ifndef KILN_TESTS_PASSCHECK_H
#define KILN_TESTS_PASSCHECK_H
#include "../passes/passes.h"

/* The values of the writes, then of the fetches, in the graph's order. */
typedef struct Outcome {
  int n;
  Tensor *v;
} Outcome;
/* Feeds and states get values made from their names, the same in every call: floats in -1..1, integers 0..2. */
Outcome outcome_by_interpreter(Graph *g, Arena *a);
/* Fails the test where an element differs by more than rel * (1 + its size). */
void outcome_compare(const Outcome *a, const Outcome *b, double rel);
/* All of the above: interpret, run the passes, interpret again, run the kernels. */
void check_passes(Graph *g, double rel);
int kernels_with(const Graph *g, const char *part); /* how many have `part` in their names */
const Kernel *kernel_with(const Graph *g, const char *part);
/* Fails the test where the text does not parse. Any number may name a node, which need not be in order. */
Graph *graph_parsed(const char *text);
#define X23 "%0 float32 [2, 3] = feed \"x\"\n" /* the first line of many */

#endif
