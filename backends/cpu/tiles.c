/* Tiles of the microkernels: see tiles.h. In: shapes; out: blocks, costs, and operands by columns turned into rows. */
#include "tiles.h"

const TileRow tile_table[] = {
#define TILE(isa, dtype, lanes, form, mr, nv) {ISA_##isa, DT_##dtype, lanes, FORM_##form, mr, nv},
#include "tiles.def"
    {ISA_NONE, DT_NONE, 0, FORM_ROWS, 0, 0}};

const char *micro_isa;

static _Thread_local const char *other; /* a name in cpus.def; NULL: this machine */

void tiles_for(const char *target) {
  other = target && !strncmp(target, "cpu:", 4) ? target + 4 : NULL;
}

static Isa isa_of(const char *cpu) {
#define CPU(name, triple, isa, ...)                                                                \
  if (!strcmp(cpu, name)) return ISA_##isa;
#include "../llvm/cpus.def"
  return ISA_NONE;
}

Isa tile_isa(void) {
  if (other) return isa_of(other);
#define ISA(id, here)                                                                              \
  if ((here) && (!micro_isa || !strcmp(micro_isa, #id))) return ISA_##id;
#include "tiles.def"
  return ISA_NONE;
}

const TileRow *tile_of_form(DType t, Form form) {
  for (const TileRow *r = tile_table; r->isa != ISA_NONE; r++)
    if (r->isa == tile_isa() && r->dtype == t && r->form == form) return r;
  return NULL;
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

double dot_cycles(const TileRow *t, double runs, int64_t k, double rows, double step) {
  return runs * (double)div_up(k, t->lanes) * step * 1.15 + 12 * rows + 15;
}

double tile_halves(void) {
  bool by_halves = false;
#define CPU(name, triple, isa, halves, here)                                                       \
  if (halves && (other ? !strcmp(other, name) : (here))) by_halves = true;
#include "../llvm/cpus.def"
  return by_halves && tile_isa() == ISA_AVX512 ? 2 : 1;
}

int64_t tile_panel(void) {
  enum { PANEL = 32 << 10 };
  return PANEL * (int64_t)tile_halves();
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

#if defined(__x86_64__)
#define LOAD(i) memcpy(&x[i], b + (n0 + (i)) * ld + k0, sizeof *x)
#define STORE(i) memcpy(to + (k0 + (i)) * width + n0, &y[i], sizeof *y)
#define PAIRS(i)                                                                                   \
  y[i] = __builtin_shufflevector(x[i], x[i + 1], 0, 8, 1, 9, 4, 12, 5, 13),                        \
  y[i + 1] = __builtin_shufflevector(x[i], x[i + 1], 2, 10, 3, 11, 6, 14, 7, 15)
#define QUADS(i, j)                                                                                \
  x[j] = __builtin_shufflevector(y[i], y[i + 2], 0, 1, 8, 9, 4, 5, 12, 13),                        \
  x[j + 1] = __builtin_shufflevector(y[i], y[i + 2], 2, 3, 10, 11, 6, 7, 14, 15)
#define HALVES(i)                                                                                  \
  y[i] = __builtin_shufflevector(x[i], x[i + 4], 0, 1, 2, 3, 8, 9, 10, 11),                        \
  y[i + 4] = __builtin_shufflevector(x[i], x[i + 4], 4, 5, 6, 7, 12, 13, 14, 15)

/* The same for float in blocks of 8 x 8, for processors with AVX2. */
__attribute__((target("avx2"))) static void pack_float8(float *restrict to, int64_t width,
                                                        const float *restrict b, int64_t ld,
                                                        int64_t k, int64_t n) {
  typedef float Vec __attribute__((vector_size(32)));
  int64_t k8 = k / 8 * 8, n8 = n / 8 * 8;
  for (int64_t n0 = 0; n0 < n8; n0 += 8)
    for (int64_t k0 = 0; k0 < k8; k0 += 8) {
      Vec x[8], y[8];
      LOAD(0);
      LOAD(1);
      LOAD(2);
      LOAD(3);
      LOAD(4);
      LOAD(5);
      LOAD(6);
      LOAD(7);
      PAIRS(0);
      PAIRS(2);
      PAIRS(4);
      PAIRS(6);
      QUADS(0, 0);
      QUADS(1, 2);
      QUADS(4, 4);
      QUADS(5, 6);
      HALVES(0);
      HALVES(1);
      HALVES(2);
      HALVES(3);
      STORE(0);
      STORE(1);
      STORE(2);
      STORE(3);
      STORE(4);
      STORE(5);
      STORE(6);
      STORE(7);
    }
  pack_float(to + n8, width, b + n8 * ld, ld, k8, n - n8);
  pack_float(to + k8 * width, width, b + k8, ld, k - k8, n);
}
#endif

void pack_columns(int size, void *to, int64_t width, const void *b, int64_t ld, int64_t k,
                  int64_t n) {
#if defined(__x86_64__)
  if (size == 4 && __builtin_cpu_supports("avx2")) {
    pack_float8(to, width, b, ld, k, n);
    return;
  }
#endif
  if (size == 4)
    pack_float(to, width, b, ld, k, n);
  else
    pack_double(to, width, b, ld, k, n);
}
