/* The CUDA simulator on kernels of the kinds that people write, compiled by nvcc (tests/cudasim/ptx: types.cu, fragments.cu): types,
 * calls, tensor cores. Each result against plain C, with all checks on, so that a false alarm fails the test too. */
#include "cudasim/kernels.h"

MODULE(types)
MODULE(fragments)

/* ---- types ---- */

static uint16_t to_half(float x) { /* of a number that a half holds */
  for (uint32_t h = 0; h < 0x7c00; h++)
    if (half_of((uint16_t)h) == fabsf(x)) return (uint16_t)(h | (x < 0 ? 0x8000 : 0));
  fail_msg("%g is no half", (double)x);
  return 0;
}

static void halves(void **state) {
  (void)state;
  int n = 50;
  uint16_t a[50][2], b[50][2], y[50][2];
  float xa[50][2], xb[50][2], f[50], z[50];
  for (int i = 0; i < n; i++)
    for (int k = 0; k < 2; k++) {
      xa[i][k] = (float)((int)(rnd() % 65) - 32) / 16,
      xb[i][k] = (float)((int)(rnd() % 65) - 32) / 16;
      a[i][k] = to_half(xa[i][k]), b[i][k] = to_half(xb[i][k]);
    }
  CUdeviceptr da = upload(a, sizeof a), db = upload(b, sizeof b), dy = upload(NULL, sizeof y),
              dz = upload(NULL, sizeof z), df = upload(NULL, sizeof f);
  LAUNCH("half_ops", 1, 64, &da, &db, &dy, &dz, &df, &n);
  download(y, dy, sizeof y), download(z, dz, sizeof z), download(f, df, sizeof f);
  for (int i = 0; i < n; i++) {
    for (int k = 0; k < 2; k++) {
      float p = xa[i][k], q = xb[i][k], r = expf(-fabsf(fmaxf(p * q + (p - q), -1)));
      if (xa[i][0] > xb[i][1]) r += p / (fabsf(q) + 1);
      if (fabsf(half_of(y[i][k]) - r) > 0.004f * (1 + fabsf(r)))
        fail_msg("half_ops[%d]: %g, not %g", i, (double)half_of(y[i][k]), (double)r);
      p = k ? xb[i][1] : xa[i][0], p = p * p + 0.5f, p = p / (p + 3);
      uint32_t bits;
      float got;
      memcpy(&bits, &z[i], 4);
      bits = k ? bits & 0xffff0000u : bits << 16;
      memcpy(&got, &bits, 4);
      if (fabsf(got - p) > 0.02f)
        fail_msg("half_ops, bf16[%d]: %g, not %g", i, (double)got, (double)p);
    }
    float want = sqrtf(fabsf(xa[i][0])) + logf(2 + fabsf(xb[i][0])) + rintf(xa[i][1]) + (float)i +
                 rintf(xb[i][0]);
    if (fabsf(f[i] - want) > 0.02f)
      fail_msg("half_ops, float[%d]: %g, not %g", i, (double)f[i], (double)want);
  }
  RELEASE(da, db, dy, dz, df);
}

#define BYTE(x, k) ((int)((x) >> 8 * (k)&255))
#define SBYTE(x, k) ((int)(int8_t)((x) >> 8 * (k)&255))
#define SHORT(x, k) ((int)(int16_t)((x) >> 16 * (k)&0xffff))
static uint32_t bytes_of(uint32_t a, uint32_t b, int (*f)(int, int)) {
  uint32_t r = 0;
  for (int k = 0; k < 4; k++) r |= (uint32_t)(f(BYTE(a, k), BYTE(b, k)) & 255) << 8 * k;
  return r;
}
static int sum8(int a, int b) { return a + b; }
static int apart8(int a, int b) { return abs(a - b); }
static int above8(int a, int b) { return a > b ? 255 : 0; }
static int mean8(int a, int b) { return (a + b + 1) / 2; }
static int clipped8(int a, int b) {
  int s = (int8_t)a + (int8_t)b;
  return s > 127 ? 127 : s < -128 ? -128 : s;
}

static void packed(void **state) {
  (void)state;
  int n = 100, y[100];
  uint32_t a[100], b[100], u[100];
  for (int i = 0; i < n; i++) a[i] = rnd(), b[i] = rnd();
  CUdeviceptr da = upload(a, sizeof a), db = upload(b, sizeof b), dy = upload(NULL, sizeof y),
              du = upload(NULL, sizeof u);
  LAUNCH("dp4a", 2, 64, &da, &db, &dy, &du, &n);
  download(y, dy, sizeof y), download(u, du, sizeof u);
  for (int i = 0; i < n; i++) {
    uint32_t p = a[i], q = b[i], want = (uint32_t)i + 3 + 5, uwant = 7;
    for (int k = 0; k < 4; k++)
      want += (uint32_t)(SBYTE(p, k) * SBYTE(q, k)), uwant += (uint32_t)(BYTE(p, k) * BYTE(q, k));
    for (int k = 0; k < 2; k++)
      want += (uint32_t)(SHORT(p, k) * SBYTE(q, k)) + (uint32_t)(SHORT(p, k) * SBYTE(q, k + 2));
    if (y[i] != (int)want) fail_msg("dp4a[%d]: %d, not %d", i, y[i], (int)want);
    uwant += bytes_of(p, q, sum8) + bytes_of(p, q, apart8) + bytes_of(p, q, above8) +
             bytes_of(p, q, clipped8) + bytes_of(p, q, mean8);
    uint32_t most = 0, least = 0;
    for (int k = 0; k < 2; k++) {
      int s = SHORT(p, k) > SHORT(q, k) ? SHORT(p, k) : SHORT(q, k);
      uint32_t v = p >> 16 * k & 0xffff, w = q >> 16 * k & 0xffff;
      most |= (uint32_t)(s & 0xffff) << 16 * k, least |= (v < w ? v : w) << 16 * k;
    }
    uwant += most + least + 9 + ((int)p > (int)q ? p - q : q - p);
    if (u[i] != uwant) fail_msg("dp4a, unsigned[%d]: %u, not %u", i, u[i], uwant);
  }
  RELEASE(da, db, dy, du);
}

static void wide(void **state) {
  (void)state;
  int n = 60;
  long long a[60], y[60][16];
  unsigned long long b[60];
  for (int i = 0; i < n; i++)
    a[i] = (long long)((uint64_t)rnd() << 32 | rnd()) >> i,
    b[i] = ((uint64_t)rnd() << 32 | rnd()) >> (i * 7 % 50);
  CUdeviceptr da = upload(a, sizeof a), db = upload(b, sizeof b), dy = upload(NULL, sizeof y);
  LAUNCH("wide", 1, 64, &da, &db, &dy, &n);
  download(y, dy, sizeof y);
  for (int i = 0; i < n; i++) {
    long long x = a[i];
    unsigned long long u = b[i], r = 0;
    for (int k = 0; k < 64; k++) r |= (u >> k & 1) << (63 - k);
    __extension__ typedef __int128 Huge;
    __extension__ typedef unsigned __int128 Vast;
    float single = (float)u;
    const long long want[16] = {x / 1000003,
                                x % 77,
                                (long long)(u / (u >> 40 | 3)),
                                (long long)(u % 1000000007ull),
                                (long long)((Huge)x * (long long)u >> 64),
                                (long long)((Vast)u * (unsigned long long)x >> 64),
                                (long long)((unsigned long long)x * u),
                                (x ? __builtin_clzll((unsigned long long)x) : 64) +
                                    __builtin_popcountll(u) + __builtin_ffsll(x),
                                (long long)r,
                                x >> (u & 63),
                                (long long)(u << (x & 63)),
                                0,
                                single < 9.2e18f ? (long long)single : INT64_MAX,
                                (long long)(unsigned long long)((double)u * 0.5),
                                x > i ? x : i,
                                (long long)((Vast)((Huge)x * (Huge)u) >> 37)};
    for (int k = 0; k < 16; k++)
      if (k != 11 && y[i][k] != want[k])
        fail_msg("wide[%d][%d]: %lld, not %lld", i, k, y[i][k], want[k]);
    assert_true(fabs((double)y[i][11] - (double)x) <= fabs((double)x) * 0x1p-52);
  }
  RELEASE(da, db, dy);
}

static void tables_and_arrays(void **state) {
  (void)state;
  int n = 120, op[120], y[120];
  float x[120], got[120], want[120];
  CUdeviceptr dx = floats(x, n), dy = upload(NULL, sizeof x);
  for (int i = 0; i < n; i++) {
    op[i] = (int)(rnd() % 12);
    float v = x[i];
    const double d = (double)v;
    const float cases[12] = {
        v * v + 1,       sqrtf(fabsf(v)),      expf(v) - 1,
        -v * 3,          v > 0 ? v : 0.1f * v, (float)sin(d * 3.14159265358979323846),
        1 / (2 + v * v), floorf(v) + 0.5f,     atanf(v),
        cbrtf(v),        fmodf(v, 0.7f),       42};
    want[i] = cases[op[i]];
  }
  CUdeviceptr dop = upload(op, sizeof op), di = upload(NULL, sizeof op);
  LAUNCH("table", 2, 64, &dop, &dx, &dy, &n);
  download(got, dy, sizeof got);
  near(got, want, n, 2e-6, "table");
  LAUNCH("local_array", 2, 64, &dop, &di, &n);
  download(y, di, sizeof y);
  for (int i = 0; i < n; i++) {
    int a[16];
    for (int k = 0; k < 16; k++) a[k] = op[(i + k) % n];
    for (int k = 1; k < 16; k++)
      for (int j = k; j > 0 && a[j - 1] > a[j]; j--) {
        int t = a[j];
        a[j] = a[j - 1], a[j - 1] = t;
      }
    assert_int_equal(y[i], a[op[i] & 15] + 2 * a[8]);
  }
  LAUNCH("conv_const", 2, 64, &dx, &dy, &n);
  download(got, dy, sizeof got);
  const float coef[] = {0.0625f, 0.25f, 0.375f, 0.25f, 0.0625f};
  for (int i = 0; i < n; i++) {
    want[i] = 0;
    for (int k = 0; k < 5; k++)
      want[i] += 2 * coef[k] * (i + k >= 2 && i + k - 2 < n ? x[i + k - 2] : 0);
  }
  near(got, want, n, 1e-6, "conv_const");
  RELEASE(dx, dy, dop, di);
}

static int fibonacci(int n) { return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2); }

static void calls(void **state) {
  (void)state;
  struct {
    float v[6];
    int k;
  } big = {{1, -2, 3, 0.5f, 4, -1}, 7};
  int n = 40, y[40];
  float x[40], got[40], want[40];
  CUdeviceptr dx = floats(x, n), dy = upload(NULL, sizeof x), di = upload(NULL, sizeof y);
  LAUNCH("calls", 1, 64, &big, &dy, &n);
  download(got, dy, sizeof got);
  for (int i = 0; i < n; i++) {
    float s = 0;
    for (int k = 0; k < 6; k++) s = fmaf(s, 0.5f * (float)i, big.v[k]);
    want[i] = s * 2 + s + (float)(big.k + i);
  }
  near(got, want, n, 1e-6, "calls");
  LAUNCH("recursive", 1, 40, &di, &n);
  download(y, di, sizeof y);
  for (int i = 0; i < n; i++) assert_int_equal(y[i], fibonacci((n + i) % 12));
  LAUNCH("indirect", 1, 64, &dx, &dy, &n);
  download(got, dy, sizeof got);
  for (int i = 0; i < n; i++) want[i] = i % 3 == 0 ? x[i] + 1 : i % 3 == 1 ? x[i] * x[i] : -x[i];
  assert_memory_equal(got, want, sizeof want);
  int all[40] = {0}, one = 1;
  CUdeviceptr dz = upload(all, sizeof all);
  LAUNCH("asserts", 1, 40, &dz, &di, &one);
  download(y, di, sizeof y);
  for (int i = 0; i < n; i++) assert_int_equal(y[i], 1);
  RELEASE(dx, dy, di, dz);
}
/* ---- fragments ---- */

typedef struct Wmma {
  const char *kernel;
  int m, n, k;
  bool a_columns, b_columns, c_columns;
  char type,
      sum; /* h: half, b: bf16, t: float for tf32, c: signed, u: unsigned byte, i: int, f: float, d: double */
} Wmma;

static size_t put(char type, void *to, int at, int v) {
  float f = (float)v;
  uint32_t bits;
  memcpy(&bits, &f, 4);
  switch (type) {
  case 'h': ((uint16_t *)to)[at] = to_half(f); return 2;
  case 'b': ((uint16_t *)to)[at] = (uint16_t)(bits >> 16); return 2;
  case 'c':
  case 'u': ((uint8_t *)to)[at] = (uint8_t)v; return 1;
  case 'd': ((double *)to)[at] = v; return 8;
  default: ((float *)to)[at] = f; return 4;
  }
}

static double get(char type, const void *from, int at) {
  switch (type) {
  case 'h': return (double)half_of(((const uint16_t *)from)[at]);
  case 'i': return ((const int *)from)[at];
  case 'd': return ((const double *)from)[at];
  default: return (double)((const float *)from)[at];
  }
}

static void one_wmma(const Wmma *x) {
  int a[32][16], b[16][32];
  double room[3][32 * 40];
  int lda = (x->a_columns ? x->m : x->k) + 8, ldb = (x->b_columns ? x->k : x->n) + 8,
      ldc = (x->c_columns ? x->m : x->n) + 8;
  size_t size = 0;
  memset(room, 0, sizeof room);
  for (int r = 0; r < x->m; r++)
    for (int k = 0; k < x->k; k++)
      size = put(x->type, room[0], x->a_columns ? k * lda + r : r * lda + k,
                 a[r][k] = (int)(rnd() % 9) - (x->type == 'u' ? 0 : 4));
  for (int k = 0; k < x->k; k++)
    for (int c = 0; c < x->n; c++)
      put(x->type, room[1], x->b_columns ? c * ldb + k : k * ldb + c,
          b[k][c] = (int)(rnd() % 9) - (x->type == 'u' ? 0 : 4));
  if (x->type == 't') lda = 8, ldb = 16;
  if (x->type == 't')
    for (int e = 0; e < 128; e++)
      put('t', room[0], e, a[e / 8][e % 8]), put('t', room[1], e, b[e / 16][e % 16]);
  CUdeviceptr da = upload(room[0], 32 * 40 * size), db = upload(room[1], 32 * 40 * size),
              dc = zeros(sizeof room[2]);
  LAUNCH(x->kernel, 1, 32, &da, &db, &dc, &lda, &ldb, &ldc);
  download(room[2], dc, sizeof room[2]);
  for (int r = 0; r < x->m; r++)
    for (int c = 0; c < x->n; c++) {
      int s = 0;
      for (int k = 0; k < x->k; k++) s += a[r][k] * b[k][c];
      double got = get(x->sum, room[2], x->c_columns ? c * ldc + r : r * ldc + c),
             want = x->type == 't' ? s : 2 * s;
      if (got != want) fail_msg("%s[%d][%d]: %g, not %g", x->kernel, r, c, got, want);
    }
  RELEASE(da, db, dc);
}

static void wmma(void **state) {
  (void)state;
  static const Wmma all[] = {{"wmma_rr", 16, 16, 16, false, false, false, 'h', 'f'},
                             {"wmma_cr", 32, 8, 16, true, false, true, 'h', 'f'},
                             {"wmma_rc", 8, 32, 16, false, true, false, 'h', 'h'},
                             {"wmma_s8", 16, 16, 16, false, true, false, 'c', 'i'},
                             {"wmma_u8", 8, 32, 16, false, true, false, 'u', 'i'},
                             {"wmma_bf", 16, 16, 16, false, true, false, 'b', 'f'},
                             {"wmma_f64", 8, 8, 4, false, true, false, 'd', 'd'},
                             {"wmma_tf", 16, 16, 8, false, false, false, 't', 'f'}};
  for (size_t k = 0; k < sizeof all / sizeof *all; k++) one_wmma(&all[k]);
}

/* A[16, k], B[k, 8] with the second one by columns, of elements of so many bits. */
static void one_mma(const char *kernel, int k, int bits, bool a_signed, bool b_signed, bool bf16) {
  uint32_t a[16 * 16] = {0}, b[8 * 16] = {0};
  int va[16][64], vb[8][64], got[128];
  for (int m = 0; m < 24; m++)
    for (int e = 0; e < k; e++) {
      bool first = m < 16, is_signed = first ? a_signed : b_signed;
      int v = (int)(rnd() % 16) - (is_signed ? 8 : 0), *to = first ? &va[m][e] : &vb[m - 16][e];
      uint32_t *word =
                   (first ? a + m * k * bits / 32 : b + (m - 16) * k * bits / 32) + e * bits / 32,
               x = (uint32_t)v;
      float f = (float)v;
      if (bf16) memcpy(&x, &f, 4), x >>= 16;
      *word |= (x & ((1u << bits) - 1)) << e * bits % 32;
      *to = v;
    }
  CUdeviceptr da = upload(a, sizeof a), db = upload(b, sizeof b), dc = upload(NULL, sizeof got);
  LAUNCH(kernel, 1, 32, &da, &db, &dc);
  download(got, dc, sizeof got);
  for (int r = 0; r < 16; r++)
    for (int c = 0; c < 8; c++) {
      int s = 0;
      float f;
      for (int e = 0; e < k; e++) s += va[r][e] * vb[c][e];
      memcpy(&f, &got[r * 8 + c], 4);
      if (bf16 ? f != (float)s : got[r * 8 + c] != s)
        fail_msg("%s[%d][%d]: not %d", kernel, r, c, s);
    }
  RELEASE(da, db, dc);
}

static void mma(void **state) {
  (void)state;
  one_mma("mma_bf16", 16, 16, true, true, true);
  one_mma("mma_s8", 32, 8, true, true, false);
  one_mma("mma_u8s8", 32, 8, false, true, false);
  one_mma("mma_s8u8", 32, 8, true, false, false);
  one_mma("mma_s4", 64, 4, true, true, false);
}

int main(void) {
  const struct CMUnitTest tests[] = {IN(types, halves), IN(types, packed),
                                     IN(types, wide),   IN(types, tables_and_arrays),
                                     IN(types, calls),  IN(fragments, wmma),
                                     IN(fragments, mma)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
