/* Tiles of the microkernels: see tiles.h. In: shapes; out: blocks, costs, and operands by columns turned into rows. */
#include "tiles.h"

const TileRow tile_table[] = {
#define TILE(isa, dtype, lanes, form, mr, nv) {ISA_##isa, DT_##dtype, lanes, FORM_##form, mr, nv},
#include "tiles.def"
    {ISA_NONE, DT_NONE, 0, FORM_ROWS, 0, 0}};

const char *micro_isa;

Isa tile_isa(void) {
#define ISA(id, here)                                                                              \
  if ((here) && (!micro_isa || !strcmp(micro_isa, #id))) return ISA_##id;
#include "tiles.def"
  return ISA_NONE;
}

int64_t tile_unit(const TileRow *t) { return t->form == FORM_DOT ? 1 : t->lanes; }

Blocks equal_blocks(int64_t total, int64_t largest) {
  int64_t n = div_up(total, largest);
  return n ? (Blocks){n, total / n, total % n} : (Blocks){0};
}

Blocks vector_blocks(int64_t n, const TileRow *t) {
  return equal_blocks(div_up(n, tile_unit(t)), t->nv);
}

Blocks row_blocks(int64_t m, const TileRow *t) {
  int64_t blocks = div_up(m, t->mr);
  for (int64_t n = blocks; n <= blocks + blocks / 4 + 1 && 2 * m > n * t->mr; n++)
    if (m % n == 0) return (Blocks){n, m / n, 0};
  return equal_blocks(m, t->mr);
}

double tile_cycles(double mr, double nv) {
  double c = mr * nv / 2, loads = (mr + nv) / 2;
  if (loads > c) c = loads;
  return c < 4 ? 4 : c + loads / 16;
}

#define PACK(NAME, T)                                                                              \
  /* B by columns: element (k, n) at b[n*ld + k]; to[k*width + n]. In blocks of BLOCK x BLOCK. */  \
  static void NAME(T *restrict to, int64_t width, const T *restrict b, int64_t ld, int64_t k,      \
                   int64_t n) {                                                                    \
    typedef T Vec __attribute__((vector_size(16)));                                                \
    enum { BLOCK = 16 / sizeof(T) };                                                               \
    int64_t k0 = 0;                                                                                \
    for (; k0 + BLOCK <= k; k0 += BLOCK) {                                                         \
      int64_t n0 = 0;                                                                              \
      for (; n0 + BLOCK <= n; n0 += BLOCK) {                                                       \
        Vec x[BLOCK], y[BLOCK];                                                                    \
        for (int i = 0; i < BLOCK; i++) memcpy(&x[i], b + (n0 + i) * ld + k0, sizeof *x);          \
        TRANSPOSE_##T(x, y);                                                                       \
        for (int i = 0; i < BLOCK; i++) memcpy(to + (k0 + i) * width + n0, &y[i], sizeof *y);      \
      }                                                                                            \
      for (; n0 < n; n0++)                                                                         \
        for (int i = 0; i < BLOCK; i++) to[(k0 + i) * width + n0] = b[n0 * ld + k0 + i];           \
    }                                                                                              \
    for (; k0 < k; k0++)                                                                           \
      for (int64_t n0 = 0; n0 < n; n0++) to[k0 * width + n0] = b[n0 * ld + k0];                    \
  }
#define TRANSPOSE_float(x, y)                                                                      \
  do {                                                                                             \
    Vec p = __builtin_shufflevector(x[0], x[1], 0, 4, 1, 5),                                       \
        q = __builtin_shufflevector(x[0], x[1], 2, 6, 3, 7),                                       \
        r = __builtin_shufflevector(x[2], x[3], 0, 4, 1, 5),                                       \
        s = __builtin_shufflevector(x[2], x[3], 2, 6, 3, 7);                                       \
    y[0] = __builtin_shufflevector(p, r, 0, 1, 4, 5);                                              \
    y[1] = __builtin_shufflevector(p, r, 2, 3, 6, 7);                                              \
    y[2] = __builtin_shufflevector(q, s, 0, 1, 4, 5);                                              \
    y[3] = __builtin_shufflevector(q, s, 2, 3, 6, 7);                                              \
  } while (0)
#define TRANSPOSE_double(x, y)                                                                     \
  do {                                                                                             \
    y[0] = __builtin_shufflevector(x[0], x[1], 0, 2);                                              \
    y[1] = __builtin_shufflevector(x[0], x[1], 1, 3);                                              \
  } while (0)
PACK(pack_float, float)
PACK(pack_double, double)

void pack_columns(int size, void *to, int64_t width, const void *b, int64_t ld, int64_t k,
                  int64_t n) {
  if (size == 4)
    pack_float(to, width, b, ld, k, n);
  else
    pack_double(to, width, b, ld, k, n);
}
