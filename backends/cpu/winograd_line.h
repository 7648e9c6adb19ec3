/* One dimension of Winograd's minimal filtering, LANES channels or images at a time: what its files share. */
#ifndef KILN_CPU_WINOGRAD_LINE_H
#define KILN_CPU_WINOGRAD_LINE_H
#include <stdint.h>

enum { LANES = 16 };
typedef float Vec __attribute__((vector_size(64), aligned(4), may_alias));
typedef double Wide __attribute__((vector_size(128)));
#define INLINE static inline __attribute__((always_inline))
#define AT(p) (*(Vec *)(p))
#define FROM(p) (*(const Vec *)(p))

/* FORM(ISA, attributes of its functions) for every instruction set that tiles.def has on this machine's architecture. */
#if defined(__x86_64__)
#define FOR_EACH_ISA(FORM)                                                                         \
  FORM(AVX512, __attribute__((target("avx512f")))) FORM(AVX2, __attribute__((target("avx2"))))
#else
#define FOR_EACH_ISA(FORM) FORM(NEON, )
#endif

/* Points 0, P, -P, Q, -Q, where P^2 = 1/2 and Q^2 = 2, and infinity. */
static const float P = 0.70710678f, Q = 1.41421356f;

/* 6 positions to 6 points `t` apart: of the positions, the even ones and the odd ones are `s` apart. */
INLINE void read6_of(const float *even, const float *odd, int64_t s, float *to, int64_t t) {
  Vec d0 = FROM(even), d1 = FROM(odd), d2 = FROM(even + s), d3 = FROM(odd + s);
  Vec d4 = FROM(even + 2 * s), d5 = FROM(odd + 2 * s);
  Vec even_p = d4 - 2 * d2, odd_p = P * (d3 - 2 * d1), even_q = d4 - 0.5f * d2,
      odd_q = Q * (d3 - 0.5f * d1);
  AT(to) = d0 - 2.5f * d2 + d4;
  AT(to + t) = even_p + odd_p;
  AT(to + 2 * t) = even_p - odd_p;
  AT(to + 3 * t) = even_q + odd_q;
  AT(to + 4 * t) = even_q - odd_q;
  AT(to + 5 * t) = d1 - 2.5f * d3 + d5;
}

/* 6 positions `s` apart. */
INLINE void read6(const float *d, int64_t s, float *to, int64_t t) {
  read6_of(d, d + s, 2 * s, to, t);
}

/* 6 points to two results of 5 taps. */
INLINE void write2(const float *p, int64_t s, Vec to[2]) {
  Vec p1 = FROM(p + s), p2 = FROM(p + 2 * s), p3 = FROM(p + 3 * s), p4 = FROM(p + 4 * s);
  to[0] = FROM(p) + (p1 + p2) + (p3 + p4);
  to[1] = P * (p1 - p2) + Q * (p3 - p4) + FROM(p + 5 * s);
}

/* The transpose of read6: 6 points `s` apart to 6 positions `t` apart. */
INLINE void spread6(const float *p, int64_t s, float *to, int64_t t) {
  Vec p0 = FROM(p), p1 = FROM(p + s), p2 = FROM(p + 2 * s), p3 = FROM(p + 3 * s);
  Vec p4 = FROM(p + 4 * s), p5 = FROM(p + 5 * s);
  Vec even_p = p1 + p2, odd_p = P * (p1 - p2), even_q = p3 + p4, odd_q = Q * (p3 - p4);
  AT(to) = p0;
  AT(to + t) = p5 - 2 * odd_p - 0.5f * odd_q;
  AT(to + 2 * t) = -2.5f * p0 - 2 * even_p - 0.5f * even_q;
  AT(to + 3 * t) = odd_p + odd_q - 2.5f * p5;
  AT(to + 4 * t) = p0 + even_p + even_q;
  AT(to + 5 * t) = p5;
}

#endif
