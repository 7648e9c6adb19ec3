/* Tensor cores: ldmatrix and mma.sync, a row per shape and type. Fragments (PTX ISA, "Matrix fragments for mma"): with g = lane / 4,
 * t = lane % 4 and e elements in a 32-bit register, register 2c + h of A holds row g + 8h, columns 4ec + te ..; register c
 * of B holds column g, rows 4ec + te ..; C and D hold rows g and g + 8, columns 2t and 2t + 1. Products are exact and summed in
 * float64, then rounded once; a GPU sums in float32 with truncation. */
#include "sim.h"
#include <string.h>

typedef struct Tile {
  const char *pattern;
  int m, n, k;
  TypeKind a, b; /* of A and B */
  int bits;      /* of their elements */
  TypeKind sum;  /* of C and D */
  int sum_size;
} Tile;

#define MMA(shape, types) "mma sync aligned " shape " row col " types
/* The four pairs of signed and unsigned. */
#define PAIR(m, n, k, bits, s, t, a, b)                                                            \
  {                                                                                                \
    MMA("m" #m "n" #n "k" #k, "satfinite? s32 " #s " " #t " s32"), m, n, k, a, b, bits,            \
        KIND_SIGNED, 4                                                                             \
  }
#define INTEGERS(m, n, k, bits, s, u)                                                              \
  PAIR(m, n, k, bits, s, s, KIND_SIGNED, KIND_SIGNED),                                             \
      PAIR(m, n, k, bits, s, u, KIND_SIGNED, KIND_UNSIGNED),                                       \
      PAIR(m, n, k, bits, u, s, KIND_UNSIGNED, KIND_SIGNED),                                       \
      PAIR(m, n, k, bits, u, u, KIND_UNSIGNED, KIND_UNSIGNED)
static const Tile shapes[] = {
    {MMA("m16n8k4", "f32 tf32 tf32 f32"), 16, 8, 4, KIND_TF32, KIND_TF32, 32, KIND_FLOAT, 4},
    {MMA("m16n8k8", "f32 tf32 tf32 f32"), 16, 8, 8, KIND_TF32, KIND_TF32, 32, KIND_FLOAT, 4},
    {MMA("m16n8k8", "f32 f16 f16 f32"), 16, 8, 8, KIND_FLOAT, KIND_FLOAT, 16, KIND_FLOAT, 4},
    {MMA("m16n8k8", "f16 f16 f16 f16"), 16, 8, 8, KIND_FLOAT, KIND_FLOAT, 16, KIND_FLOAT, 2},
    {MMA("m16n8k8", "f32 bf16 bf16 f32"), 16, 8, 8, KIND_BFLOAT, KIND_BFLOAT, 16, KIND_FLOAT, 4},
    {MMA("m16n8k16", "f32 f16 f16 f32"), 16, 8, 16, KIND_FLOAT, KIND_FLOAT, 16, KIND_FLOAT, 4},
    {MMA("m16n8k16", "f16 f16 f16 f16"), 16, 8, 16, KIND_FLOAT, KIND_FLOAT, 16, KIND_FLOAT, 2},
    {MMA("m16n8k16", "f32 bf16 bf16 f32"), 16, 8, 16, KIND_BFLOAT, KIND_BFLOAT, 16, KIND_FLOAT, 4},
    INTEGERS(8, 8, 16, 8, s8, u8),
    INTEGERS(16, 8, 16, 8, s8, u8),
    INTEGERS(16, 8, 32, 8, s8, u8),
    INTEGERS(8, 8, 32, 4, s4, u4),
    INTEGERS(16, 8, 32, 4, s4, u4),
    INTEGERS(16, 8, 64, 4, s4, u4),
    {MMA("m8n8k4", "f64 f64 f64 f64"), 8, 8, 4, KIND_FLOAT, KIND_FLOAT, 64, KIND_FLOAT, 8},
    {MMA("m16n8k4", "f64 f64 f64 f64"), 16, 8, 4, KIND_FLOAT, KIND_FLOAT, 64, KIND_FLOAT, 8},
    {MMA("m16n8k8", "f64 f64 f64 f64"), 16, 8, 8, KIND_FLOAT, KIND_FLOAT, 64, KIND_FLOAT, 8},
    {MMA("m16n8k16", "f64 f64 f64 f64"), 16, 8, 16, KIND_FLOAT, KIND_FLOAT, 64, KIND_FLOAT, 8},
};

double mma_value(TypeKind kind, int size, uint64_t bits) {
  if (kind == KIND_SIGNED) return size == 1 ? (int8_t)bits : (int32_t)bits;
  if (kind == KIND_UNSIGNED) return size == 1 ? (uint8_t)bits : (uint32_t)bits;
  if (kind == KIND_TF32) bits &= ~(uint64_t)0x1fff; /* the lower bits are not read */
  return float_of_bits(kind, size, bits);
}

uint64_t mma_bits(TypeKind kind, int size, double v) {
  union {
    double d;
    uint64_t u;
  } x = {v};
  union {
    float f;
    uint32_t u;
  } y;
  if (kind == KIND_SIGNED)
    return (uint32_t)(int32_t)(v > INT32_MAX ? INT32_MAX : v < INT32_MIN ? INT32_MIN : v);
  if (size == 8) return x.u;
  if (size == 2) return float_to_half(v, ROUND_N);
  y.f = (float)v;
  return y.u;
}

static double tile_value(const Tile *s, TypeKind kind, uint64_t bits) {
  int part = (int)(bits & 15);
  if (s->bits == 4) return kind == KIND_SIGNED && part > 7 ? part - 16 : part;
  return mma_value(kind, s->bits / 8, bits);
}

static int per_register(const Tile *s) { return s->bits < 32 ? 32 / s->bits : 1; }
static int registers_of_a(const Tile *s) { return s->m / 8 * s->k / (4 * per_register(s)); }
static int registers_of_b(const Tile *s) { return s->k / (4 * per_register(s)); }
static int registers_of_c(const Tile *s) { return s->m / 8 * (s->sum_size == 2 ? 1 : 2); }

/* A[row][k] or B[column][k] from the registers of all lanes: rows in eights, h of them. */
static void gather(const Warp *w, const Tile *s, TypeKind kind, const int32_t *v, int h,
                   double to[16][64]) {
  int e = per_register(s), width = s->bits == 64 ? 8 : 4, chunks = s->k / (4 * e);
  for (int l = 0; l < LANES; l++)
    for (int c = 0; c < chunks; c++)
      for (int r = 0; r < h; r++) {
        uint64_t bits = register_get(w, v[c * h + r], width, l);
        for (int j = 0; j < e; j++)
          to[l / 4 + 8 * r][4 * e * c + l % 4 * e + j] =
              tile_value(s, kind, s->bits == 64 ? bits : bits >> s->bits * j);
      }
}

static uint64_t *lane_register(Warp *w, int32_t at, int width, int lane, uint64_t *value) {
  *value = register_get(w, at, width, lane);
  return value;
}

static void exec_mma(Warp *w, const Insn *i, uint32_t mask) {
  const Tile *s = &shapes[i->sub];
  if (mask != FULL) fault(w, ~mask, 719, "mma.sync without all lanes of the warp");
  double a[16][64], b[16][64];
  const int32_t *vd = i->v, *va = vd + registers_of_c(s), *vb = va + registers_of_a(s),
                *vc = vb + registers_of_b(s);
  gather(w, s, s->a, va, s->m / 8, a);
  gather(w, s, s->b, vb, 1, b);
  int width = s->sum_size == 8 ? 8 : 4, half = s->sum_size == 2;
  uint64_t result[LANES][8] = {{0}};
  for (int l = 0; l < LANES; l++)
    for (int x = 0; x < s->m / 8 * 2; x++) {
      int row = l / 4 + x / 2 * 8, column = l % 4 * 2 + x % 2, r = half ? x / 2 : x,
          shift = half ? x % 2 * 16 : 0;
      uint64_t c;
      double sum = mma_value(s->sum, s->sum_size, *lane_register(w, vc[r], width, l, &c) >> shift);
      for (int k = 0; k < s->k; k++) sum += a[row][k] * b[column][k];
      uint64_t bits = mma_bits(s->sum, s->sum_size, sum);
      result[l][r] |= half ? (bits & 0xffff) << shift : bits;
    }
  for (int l = 0; l < LANES; l++)
    for (int r = 0; r < registers_of_c(s); r++) register_set(w, vd[r], width, l, result[l][r]);
  w->g->n.mma += (uint64_t)(s->m * s->n * s->k);
}

static void decode_mma(Parser *p, const Form *f) {
  Insn *i = p->insn;
  (void)f;
  int k = 0;
  while (k < COUNT(shapes) && !match(p, shapes[k].pattern)) k++;
  if (k == COUNT(shapes)) parse_fail(p, "this shape of mma is not known");
  const Tile *s = &shapes[k];
  i->sub = (uint8_t)k;
  const int n[4] = {registers_of_c(s), registers_of_a(s), registers_of_b(s), registers_of_c(s)};
  if (p->n_operand != 4) parse_fail(p, "4 operands, not %d", p->n_operand);
  int32_t *v = arena_alloc(p->m->arena, (size_t)(n[0] + n[1] + n[2] + n[3]) * sizeof *v);
  i->v = v;
  for (int o = 0; o < 4; o++) {
    const Operand *x = &p->operand[o];
    int width = (o == 0 || o == 3 ? s->sum_size * 8 : s->bits) == 64 ? 8 : 4,
        count = x->kind == O_VECTOR ? x->n : 1;
    if (count != n[o]) parse_fail(p, "operand %d has %d registers, not %d", o + 1, count, n[o]);
    for (int j = 0; j < count; j++)
      *v++ = one_at(p, x->kind == O_VECTOR ? &x->v[j] : x, NULL, width, false);
  }
}

/* ---- ldmatrix: lanes 8i .. 8i + 7 name the rows of matrix i, 16 bytes each ---- */

static void exec_ldmatrix(Warp *w, const Insn *i, uint32_t mask) {
  uint64_t at[LANES];
  uint16_t m[4][8][8];
  if (mask != FULL) fault(w, ~mask, 719, "ldmatrix without all lanes of the warp");
  lane_addresses(w, i, at);
  uint32_t rows = i->n == 4 ? FULL : (1u << 8 * i->n) - 1;
  if (w->g->counting) count_shared(w->g, at, rows, 16);
  FOR_LANES(l, rows)
  memcpy(m[l / 8][l % 8], lane_access(w, i, (int)l, SPACE_SHARED, at[l], 16, false), 16);
  for (int k = 0; k < i->n; k++)
    for (int l = 0; l < LANES; l++) {
      int a = l / 4, b = l % 4 * 2;
      uint32_t low = i->sub ? m[k][b][a] : m[k][a][b],
               high = i->sub ? m[k][b + 1][a] : m[k][a][b + 1];
      REG32(w, i->v[k])[l] = high << 16 | low;
    }
}

static void decode_ldmatrix(Parser *p, const Form *f) {
  Insn *i = p->insn;
  (void)f;
  p->at_part = 4;
  int n = take(p, "x1|x2|x4");
  bool trans = take(p, "trans") == 0;
  i->n = (uint8_t)(1 << n);
  const Operand *d = &p->operand[0];
  if (p->n_operand != 2 || (d->kind == O_VECTOR ? d->n : 1) != i->n)
    parse_fail(p, "%d registers and an address are needed", i->n);
  int32_t *v = arena_alloc(p->m->arena, i->n * sizeof *v);
  for (int k = 0; k < i->n; k++)
    v[k] = one_at(p, d->kind == O_VECTOR ? &d->v[k] : d, NULL, 4, false);
  i->v = v;
  decode_address(p, 1, SPACE_SHARED);
  i->sub = trans;
}

const Form forms_mma[] = {{"mma *", decode_mma, C_MMA, exec_mma, 0},
                          {"ldmatrix sync aligned m8n8 x1|x2|x4 trans? shared|shared::cta? b16",
                           decode_ldmatrix, C_SHARED, exec_ldmatrix, 0},
                          {NULL, NULL, 0, NULL, 0}};
