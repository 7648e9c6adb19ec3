/* What the benchmarks written in C share: the clock, and the median of a few rounds. */
#ifndef KILN_TIMING_H
#define KILN_TIMING_H

#include <stdlib.h>
#include <time.h>

/* nanoseconds since some moment */
static inline double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static inline int by_value(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

/* Sorts n figures, so that t[0] is the least, t[n / 2] the median and t[n - 1] the greatest. */
static inline void sort_rounds(double *t, int n) { qsort(t, (size_t)n, sizeof *t, by_value); }

#endif
