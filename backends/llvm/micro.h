/* Register-blocked microkernels: C[mr x nr] (+)= sum over b of A_b * B_b, one function per MicroSpec.
 * The accumulators stay in registers over all of K and the batch; see micro_ir.c for the form of the code. */
#ifndef KILN_MICRO_H
#define KILN_MICRO_H
#include "../code/code.h"

enum { ANY_PITCH = -1 };
/* The code fetches FETCH_LINES lines of `next` in every FETCH_STEPS steps of k, and the more_lines of its spec. */
enum { FETCH_STEPS = 4, FETCH_LINES = 2, MOST_MORE_LINES = 6, LINE_BYTES = 64 };

/* One function. The tile has mr rows and nv vectors of `lanes` elements. */
typedef struct MicroSpec {
  DType dtype; /* float32 or float64 */
  int lanes, mr, nv;
  bool tail; /* the last vector is partly outside: masked; false: all columns are there */
  /* B by columns: column j at b + j*ldb, its rows are neighbours; nv <= lanes counts columns */
  bool dot;
  bool keep; /* B's rows are also written one after the other, whole vectors: not with dot */
  /* Elements from a row of A to the next; ANY_PITCH: `lda` bytes (not with dot, run); 0: A by columns, `lda` apart, its rows are
   * neighbours (not with dot). */
  int64_t pitch;
  /* > 0: after so many rows A goes on `jump` elements, C `cjump` bytes, from where those began; pitch > 0, not with dot */
  int run;
  int more_lines; /* of `next`, fetched with the first ones: not with dot */
  int64_t jump;
} MicroSpec;

/* Strides in bytes. The code generator knows the layout: fields of 8 bytes each. */
typedef struct MicroArgs {
  const void *a, *b; /* of the first of the batch; unless dot, row k of B is at b + k*ldb */
  void *c;
  int64_t lda, ldb, ldc; /* lda: if pitch is 0 or ANY_PITCH */
  int64_t k, columns; /* columns of the tile that are there: (nv-1)*lanes < columns <= nv*lanes */
  int64_t add;        /* 0: C = sum; else C += sum */
  int64_t batch, a_step, b_step;
  int64_t cjump; /* only if run > 0 */
  void *keep;    /* only if the spec says so: k * batch rows of nv vectors */
  /* not with dot: what is fetched into the cache meanwhile, next_step bytes further each time */
  const void *next;
  int64_t next_step;
  int64_t fetch_c; /* not with dot: whether the tile of C is fetched before it is written */
} MicroArgs;
/* That `bytes` are fetched in so many times FETCH_STEPS. */
static inline int micro_more_lines(int64_t bytes, int64_t times) {
  int64_t n = (bytes + LINE_BYTES * times - 1) / (LINE_BYTES * times) - FETCH_LINES;
  return (int)(n < 0 ? 0 : n < MOST_MORE_LINES ? n : MOST_MORE_LINES);
}
/* Bytes that are fetched each time. */
static inline int64_t micro_fetched(int more_lines) {
  return (int64_t)(FETCH_LINES + more_lines) * LINE_BYTES;
}
/* The pitch of a spec of which the rest is there, for rows that are so far apart: products that differ only in it share a
 * function, where there are registers for the distances of the rows and a broadcast serves several vectors. */
static inline int64_t micro_pitch(const MicroSpec *s, int64_t pitch) {
  enum { ROWS = 8 };
  bool shares = s->mr == 1 || (s->mr <= ROWS && s->nv > 1);
  return pitch && shares && !s->dot && !s->run ? ANY_PITCH : pitch;
}
bool micro_same(const MicroSpec *a, const MicroSpec *b);
typedef void MicroFn(const MicroArgs *args);

/* A function for the spec, compiled for this machine: see code_want. */
void micro_code(CodeBatch *b, const MicroSpec *spec, MicroFn **fn);

/* micro_ir.c: a module's text with that function. */
void micro_text(const MicroSpec *spec, const char *symbol, Str *out);

#endif
