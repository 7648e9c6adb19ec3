/* oneDNN, opened at run time: what the benchmarks need of it. */
#ifndef BENCH_ONEDNN_H
#define BENCH_ONEDNN_H
#include <stdbool.h>
#include <stdint.h>

/* False if there is no libdnnl.so.3, or it cannot run here; then the others must not be called. */
bool onednn_open(void);
const char *onednn_failure(void);

/* C = A B, row-major. */
bool onednn_sgemm(int64_t m, int64_t n, int64_t k, const float *a, const float *b, float *c);

typedef enum OnednnPart { ONEDNN_FORWARD, ONEDNN_INPUT, ONEDNN_FILTER } OnednnPart;
typedef struct OnednnConv
    OnednnConv; /* a primitive with its operands in the layouts that it likes best */
/* Square images of c channels, o filters of k x k. NULL: failed. */
OnednnConv *onednn_conv(OnednnPart part, int64_t n, int64_t c, int64_t o, int64_t size, int64_t k,
                        int64_t stride, int64_t pad, int64_t groups);
bool onednn_run(OnednnConv *p, int times);
void onednn_free(OnednnConv *p);

#endif
