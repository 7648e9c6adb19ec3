/* Peak loops: independent multiply-adds on registers, sums and triads over arrays of a given size.
 *
 * In: a pool. Out: rates over all of its threads, each of which works on data of its own. The loops are compiled for each
 * instruction set with intrinsics, and the widest that the CPU has is taken when the program runs. */
#include "peak.h"
#include <string.h>
#include <time.h>

enum { CHAINS = 12, BURST = 256 }; /* chains > latency * units; fits the registers of each set */

typedef struct Loops {
  float (*fma)(int64_t bursts, float x);
  float (*sum)(const float *a, int64_t n); /* n: a multiple of 64, here and below */
  void (*triad)(float *a, const float *b, const float *c, int64_t n);
} Loops;

#define LOOPS(name, attribute, V, W, SET, LOAD, STORE, FMA, ADD)                                   \
  attribute static float fma_##name(int64_t bursts, float x) {                                     \
    V acc[CHAINS], s = SET(x), t = SET(0.5f);                                                      \
    for (int i = 0; i < CHAINS; i++) acc[i] = SET((float)i);                                       \
    for (int64_t k = 0; k < bursts; k++)                                                           \
      for (int j = 0; j < BURST; j++)                                                              \
        _Pragma("GCC unroll 12") for (int i = 0; i < CHAINS; i++) acc[i] = FMA(acc[i], s, t);      \
    for (int i = 1; i < CHAINS; i++) acc[0] = ADD(acc[0], acc[i]);                                 \
    float v[W];                                                                                    \
    STORE(v, acc[0]);                                                                              \
    return v[0];                                                                                   \
  }                                                                                                \
  attribute static float sum_##name(const float *a, int64_t n) {                                   \
    V acc[4] = {SET(0), SET(0), SET(0), SET(0)};                                                   \
    for (int64_t i = 0; i < n; i += 4 * W)                                                         \
      _Pragma("GCC unroll 4") for (int u = 0; u < 4; u++) acc[u] =                                 \
          ADD(acc[u], LOAD(a + i + u * W));                                                        \
    float v[W];                                                                                    \
    STORE(v, ADD(ADD(acc[0], acc[1]), ADD(acc[2], acc[3])));                                       \
    return v[0];                                                                                   \
  }                                                                                                \
  attribute static void triad_##name(float *a, const float *b, const float *c, int64_t n) {        \
    V s = SET(0.5f);                                                                               \
    for (int64_t i = 0; i < n; i += 4 * W)                                                         \
      _Pragma("GCC unroll 4") for (int u = 0; u < 4; u++)                                          \
          STORE(a + i + u * W, FMA(LOAD(b + i + u * W), s, LOAD(c + i + u * W)));                  \
  }                                                                                                \
  static const Loops loops_##name = {fma_##name, sum_##name, triad_##name};

#if defined(__x86_64__)
#include <immintrin.h>
LOOPS(avx512, __attribute__((target("avx512f"))), __m512, 16, _mm512_set1_ps, _mm512_loadu_ps,
      _mm512_storeu_ps, _mm512_fmadd_ps, _mm512_add_ps)
LOOPS(avx2, __attribute__((target("avx2,fma"))), __m256, 8, _mm256_set1_ps, _mm256_loadu_ps,
      _mm256_storeu_ps, _mm256_fmadd_ps, _mm256_add_ps)
#define MUL_ADD(a, b, c) _mm_add_ps(_mm_mul_ps(a, b), c)
LOOPS(plain, , __m128, 4, _mm_set1_ps, _mm_loadu_ps, _mm_storeu_ps, MUL_ADD, _mm_add_ps)

static const Loops *loops(void) {
  if (__builtin_cpu_supports("avx512f")) return &loops_avx512;
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? &loops_avx2
                                                                         : &loops_plain;
}
#elif defined(__aarch64__)
#include <arm_neon.h>
#define MUL_ADD(a, b, c) vfmaq_f32(c, a, b)
LOOPS(plain, , float32x4_t, 4, vdupq_n_f32, vld1q_f32, vst1q_f32, MUL_ADD, vaddq_f32)
static const Loops *loops(void) { return &loops_plain; }
#else
typedef float Vec __attribute__((vector_size(16), aligned(4)));
#define SET1(x) ((Vec){x, x, x, x})
#define LOAD1(p) (*(const Vec *)(p))
#define STORE1(p, v) (*(Vec *)(p) = (v))
#define MUL_ADD(a, b, c) ((a) * (b) + (c))
#define PLUS(a, b) ((a) + (b))
LOOPS(plain, , Vec, 4, SET1, LOAD1, STORE1, MUL_ADD, PLUS)
static const Loops *loops(void) { return &loops_plain; }
#endif

static int lanes(void) {
#if defined(__x86_64__)
  return loops() == &loops_avx512 ? 16 : loops() == &loops_avx2 ? 8 : 4;
#else
  return 4;
#endif
}

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

typedef struct Work {
  int64_t rounds, n; /* n floats of each thread in each array */
  float *a, *b, *c;
  bool triad;
  volatile float sink;
} Work;

static void fma_share(void *user, int thread, int64_t begin, int64_t end) {
  Work *w = user;
  for (int64_t i = begin; i < end; i++) w->sink = loops()->fma(w->rounds, 0.5f + (float)thread);
}

static void memory_share(void *user, int thread, int64_t begin, int64_t end) {
  Work *w = user;
  (void)thread;
  for (int64_t i = begin; i < end; i++)
    for (int64_t r = 0; r < w->rounds; r++) {
      int64_t at = i * w->n;
      if (w->triad)
        loops()->triad(w->a + at, w->b + at, w->c + at, w->n);
      else
        w->sink = loops()->sum(w->a + at, w->n);
    }
}

/* Seconds of one round, by a number of rounds that takes about the time given. */
static double timed(Pool *pool, PoolFn *fn, Work *w, double seconds) {
  for (w->rounds = 1;; w->rounds *= 2) {
    double t = now();
    pool_run(pool, pool_threads(pool), fn, w);
    t = now() - t;
    if (2 * t > seconds) return t / (double)w->rounds;
  }
}

double peak_flops(Pool *pool, double seconds) {
  Work w = {0};
  return 2.0 * BURST * CHAINS * lanes() * pool_threads(pool) / timed(pool, fma_share, &w, seconds);
}

static double memory_rate(Pool *pool, Work *w, bool triad, int64_t bytes, double seconds) {
  int threads = pool_threads(pool), arrays = triad ? 3 : 1;
  w->triad = triad;
  w->n = bytes / (4 * arrays * threads) / 64 * 64;
  return 4.0 * arrays * threads * (double)w->n / timed(pool, memory_share, w, seconds);
}

/* Bytes per second when `bytes` in all are read, or read and written (the better of a sum and a triad), again and again. */
static double peak_bytes(Pool *pool, int64_t bytes, double seconds) {
  Work w = {0};
  int64_t third = bytes / 3 / 4096 * 4096 + 4096; /* the triad's arrays, in what the sum reads */
  w.a = mem_alloc((size_t)(3 * third));
  memset(w.a, 0, (size_t)(3 * third));
  w.b = w.a + third / 4;
  w.c = w.b + third / 4;
  double sum = memory_rate(pool, &w, false, bytes, seconds / 2),
         triad = memory_rate(pool, &w, true, bytes, seconds / 2);
  mem_free(w.a);
  return sum > triad ? sum : triad;
}

void peak_roof(Pool *pool, Roof *roof) {
  static const int64_t per_thread[ROOF_SIZES] = {24 << 10, 1 << 20, 8 << 20, 64 << 20, 128 << 20};
  for (int i = 0; i < ROOF_SIZES; i++) {
    roof->bytes[i] = (double)(per_thread[i] * pool_threads(pool));
    roof->rate[i] = peak_bytes(pool, (int64_t)roof->bytes[i], 0.02);
  }
}
