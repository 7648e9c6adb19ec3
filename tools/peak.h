/* What this machine can do at most, measured: the scale that kernels are compared with. */
#ifndef KILN_PEAK_H
#define KILN_PEAK_H
#include "../backends/backend.h"
#include "../executor/executor.h"

/* Multiply-adds of float32 on registers alone, on all threads of the pool, for about `seconds`: FLOP per second. */
double peak_flops(Pool *pool, double seconds);
/* Bandwidths at sizes from the first-level cache to memory; flops stays 0. */
void peak_roof(Pool *pool, Roof *roof);

#endif
