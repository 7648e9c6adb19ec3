/* Sums that several tasks made parts of. In: the parts, one after the other in the workspace, each as large as the result. Out: their
 * sum by pairs, in an order that follows from their number, and then the epilogue of those rows. A thread that makes both parts of
 * a pair may have left their sum in the place of the first: see Work.pairs_at. */
#include "cpu.h"
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

/* What the first `most` of n parts, `pitch` bytes apart, sum to at one place, a number or a vector: the sum of their halves. */
#define SUM_OF(V, MOST, HALF)                                                                      \
  INLINE void V##_##MOST(V *sum, const char *at, int64_t pitch, int n) {                           \
    V more;                                                                                        \
    V##_##HALF(sum, at, pitch, n);                                                                 \
    if (n <= HALF) return;                                                                         \
    V##_##HALF(&more, at + HALF * pitch, pitch, n - HALF);                                         \
    *sum += more;                                                                                  \
  }
#define SUM_TREE(V)                                                                                \
  INLINE void V##_1(V *sum, const char *at, int64_t pitch, int n) {                                \
    (void)pitch, (void)n;                                                                          \
    *sum = *(const V *)at;                                                                         \
  }                                                                                                \
  SUM_OF(V, 2, 1)                                                                                  \
  SUM_OF(V, 4, 2)                                                                                  \
  SUM_OF(V, 8, 4)                                                                                  \
  SUM_OF(V, 16, 8)
#define SUM(NAME, T)                                                                               \
  typedef T NAME##_one;                                                                            \
  typedef T NAME##_some __attribute__((vector_size(64), aligned(sizeof(T)), may_alias));           \
  SUM_TREE(NAME##_one)                                                                             \
  SUM_TREE(NAME##_some)                                                                            \
  INLINE void NAME(char *to, const char *part, int64_t pitch, int n, int64_t bytes) {              \
    int64_t i = 0, step = sizeof(NAME##_some);                                                     \
    for (; i + step <= bytes; i += step)                                                           \
      NAME##_some_16((NAME##_some *)(to + i), part + i, pitch, n);                                 \
    for (; i < bytes; i += (int64_t)sizeof(T))                                                     \
      NAME##_one_16((NAME##_one *)(to + i), part + i, pitch, n);                                   \
  }
SUM(sum_float, float)
SUM(sum_double, double)
_Static_assert(MOST_SHARES == 16, "all parts of a sum");

INLINE void sum_any(DType t, char *to, const char *part, int64_t pitch, int n, int64_t bytes) {
  if (t == DT_FLOAT32)
    sum_float(to, part, pitch, n, bytes);
  else
    sum_double(to, part, pitch, n, bytes);
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) static void sum_avx2(DType t, char *to, const char *part,
                                                     int64_t pitch, int n, int64_t bytes) {
  sum_any(t, to, part, pitch, n, bytes);
}
#endif

static void sum_parts(DType t, char *to, const char *part, int64_t pitch, int n, int64_t bytes) {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2")) {
    sum_avx2(t, to, part, pitch, n, bytes);
    return;
  }
#endif
  sum_any(t, to, part, pitch, n, bytes);
}

/* Adds up what is left of the pairs, at their first parts, if there are any that were. False: there are none. */
static bool join_pairs(const Plan *p, char *ws, int64_t at, int64_t bytes) {
  int64_t all = p->facts.numel * p->facts.size, n = p->work.shares / 2;
  const char *joined = ws + p->work.pairs_at;
  if (!p->work.pairs_at || !memchr(joined, 1, (size_t)n)) return false;
  for (int64_t i = 0; i < n; i++) {
    char *to = ws + 2 * i * all + at;
    if (!joined[i]) sum_parts(p->facts.dtype, to, to, all, 2, bytes);
  }
  return true;
}

/* A task is a row of the epilogue. */
static void sum_tasks(const void *self, void *const *bufs, int64_t begin, int64_t end,
                      RunCtx *ctx) {
  const Plan *p = self;
  char *ws = bufs[p->frame.ws];
  int64_t all = p->facts.numel * p->facts.size, row = all / p->frame.rows;
  int64_t at = begin * row, bytes = (end - begin) * row;
  int per = join_pairs(p, ws, at, bytes) ? 2 : 1;
  sum_parts(p->facts.dtype, (char *)bufs[p->frame.out] + at, ws + at, per * all,
            (p->work.shares + per - 1) / per, bytes);
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
