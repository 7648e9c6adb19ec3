/* Sums that several tasks made parts of. In: the parts, one after the other in the workspace, each as large as the result. Out: their
 * sum by pairs, in an order that follows from their number, and then the epilogue of those rows. */
#include "cpu.h"

#define SUM_TREE(NAME, T)                                                                          \
  static void NAME(T *restrict to, const T *restrict part, int64_t pitch, int n, int64_t i0,       \
                   int64_t i1) {                                                                   \
    enum { BLOCK = 64 };                                                                           \
    for (; i0 < i1; i0 += BLOCK) {                                                                 \
      T sum[MOST_SHARES][BLOCK];                                                                   \
      int64_t m = least(BLOCK, i1 - i0);                                                           \
      for (int c = 0; c < n; c++) memcpy(sum[c], part + c * pitch + i0, sizeof(T) * (size_t)m);    \
      for (int d = 1; d < n; d *= 2)                                                               \
        for (int c = 0; c + d < n; c += 2 * d)                                                     \
          for (int64_t i = 0; i < m; i++) sum[c][i] += sum[c + d][i];                              \
      memcpy(to + i0, sum[0], sizeof(T) * (size_t)m);                                              \
    }                                                                                              \
  }
SUM_TREE(sum_float, float)
SUM_TREE(sum_double, double)

/* A task is a row of the epilogue. */
static void sum_tasks(const void *self, void *const *bufs, int64_t begin, int64_t end,
                      RunCtx *ctx) {
  const Plan *p = self;
  int64_t numel = p->facts.numel, row = numel / p->frame.rows;
  int n = p->work.shares;
  if (p->facts.dtype == DT_FLOAT32)
    sum_float(bufs[p->frame.out], bufs[p->frame.ws], numel, n, begin * row, end * row);
  else
    sum_double(bufs[p->frame.out], bufs[p->frame.ws], numel, n, begin * row, end * row);
  run_epilogue(&p->frame, bufs, begin, end, ctx);
}

void add_shares(Plan *p, int n) {
  Work *w = &p->work;
  w->shares = n;
  w->fn[w->n_phases] = sum_tasks;
  w->n_tasks[w->n_phases++] = p->frame.rows;
  w->fused = true;
  w->workspace = n * p->facts.numel * p->facts.size;
}
