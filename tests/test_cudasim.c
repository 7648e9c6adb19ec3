/* The CUDA simulator on PTX that nvcc made from CUDA C (tests/cudasim/ptx): results against plain loops, planted faults that it
 * must catch, no false alarm on the others; streams, graphs, the driver's rules. */
#include "cudasim/testing.h"

static float *numbers(int n, float from, float step) {
  float *x = malloc((size_t)n * sizeof *x);
  for (int i = 0; i < n; i++) x[i] = from + step * (float)((i * 7919) % 1009);
  return x;
}

static void expect_near(const float *got, const float *want, int n, double tolerance,
                        const char *what) {
  for (int i = 0; i < n; i++)
    if (!(fabs((double)got[i] - (double)want[i]) <= tolerance * (1 + fabs((double)want[i]))))
      fail_msg("%s[%d]: %.9g, not %.9g", what, i, (double)got[i], (double)want[i]);
}

/* ---- correct kernels ---- */

static void maps(void **state) {
  (void)state;
  open_sim(NULL, NULL);
  CUmodule m = load_ptx("basic.ptx");
  int n = 1000;
  float *a = numbers(n, -3, 0.01f), *b = numbers(n, 1, 0.5f), got[1000], want[1000];
  CUdeviceptr da = upload(a, 4000), db = upload(b, 4000), dc = upload(NULL, 4000);
  for (int i = 0; i < n; i++) want[i] = a[i] + b[i];
  RUN(m, "vector_add", 8, 1, 128, 1, &da, &db, &dc, &n);
  download(got, dc, 4000);
  assert_memory_equal(got, want, 4000);
  assert_int_equal(cuMemsetD32(dc, 0, 1000), 0);
  int quads = 250;
  RUN(m, "vector_add4", 3, 1, 64, 1, &da, &db, &dc, &quads);
  download(got, dc, 4000);
  assert_memory_equal(got, want, 4000);
  CUdeviceptr sum = upload(&(float){0}, 4);
  RUN(m, "reduce_sum", 3, 1, 128, 1, &da, &sum, &n);
  double s = 0;
  for (int i = 0; i < n; i++) s += (double)a[i];
  download(got, sum, 4);
  expect_near(got, &(float){(float)s}, 1, 1e-5, "sum");
  free(a), free(b);
  cuMemFree(da), cuMemFree(db), cuMemFree(dc), cuMemFree(sum);
  assert_int_equal(cuModuleUnload(m), 0);
  close_sim();
}

static void matrices(void **state) {
  (void)state;
  open_sim(NULL, NULL);
  CUmodule module = load_ptx("basic.ptx");
  int m = 37, n = 50, k = 41;
  float *a = numbers(m * k, -1, 0.003f), *b = numbers(k * n, 2, -0.004f), *got = malloc(8000),
        *want = calloc(2000, 4);
  for (int i = 0; i < m; i++)
    for (int j = 0; j < n; j++) {
      float s = 0;
      for (int x = 0; x < k; x++) s = fmaf(a[i * k + x], b[x * n + j], s);
      want[i * n + j] = s;
    }
  CUdeviceptr da = upload(a, (size_t)(m * k) * 4), db = upload(b, (size_t)(k * n) * 4),
              dc = upload(NULL, (size_t)(m * n) * 4);
  RUN(module, "matmul_tiled", 4, 3, 16, 16, &da, &db, &dc, &m, &n, &k);
  download(got, dc, (size_t)(m * n) * 4);
  assert_memory_equal(got, want, (size_t)(m * n) * 4);
  CUdeviceptr dt = upload(NULL, (size_t)(m * k) * 4);
  RUN(module, "transpose", 2, 2, 32, 8, &da, &dt, &m, &k);
  download(got, dt, (size_t)(m * k) * 4);
  for (int i = 0; i < m; i++)
    for (int j = 0; j < k; j++) assert_true(got[j * m + i] == a[i * k + j]);
  unsigned char *bytes = malloc(5000);
  unsigned bins[256] = {0}, all[256];
  for (int i = 0; i < 5000; i++) bins[bytes[i] = (unsigned char)(i * i >> 3)]++;
  int count = 5000;
  memset(all, 0, sizeof all);
  CUdeviceptr dx = upload(bytes, 5000), dh = upload(all, sizeof all);
  RUN(module, "histogram", 5, 1, 96, 1, &dx, &dh, &count);
  download(all, dh, sizeof all);
  assert_memory_equal(all, bins, sizeof bins);
  free(a), free(b), free(got), free(want), free(bytes);
  cuMemFree(da), cuMemFree(db), cuMemFree(dc), cuMemFree(dt), cuMemFree(dx), cuMemFree(dh);
  cuModuleUnload(module);
  close_sim();
}

static void mathematics(void **state) {
  (void)state;
  open_sim(NULL, NULL);
  CUmodule m = load_ptx("math.ptx");
  int n = 200;
  float x[200], *y = malloc(200 * 16 * 4), *want = malloc(200 * 16 * 4);
  for (int i = 0; i < n; i++) x[i] = (float)(i - 100) * 0.0731f;
  for (int i = 0; i < n; i++) {
    float v = x[i], *o = want + 16 * i;
    o[0] = expf(v), o[1] = logf(fabsf(v) + 1e-3f), o[2] = tanhf(v), o[3] = sinf(v), o[4] = cosf(v);
    o[5] = sqrtf(fabsf(v)), o[6] = 1 / sqrtf(fabsf(v) + 0.5f), o[7] = erff(v),
    o[8] = powf(fabsf(v) + 0.1f, 1.7f);
    o[9] = 1 / (1 + expf(-v)), o[10] = v / (v * v + 0.25f), o[11] = floorf(v), o[12] = rintf(v),
    o[13] = truncf(v);
    o[14] = fmaxf(v, 0.25f), o[15] = v / 3.0f;
  }
  CUdeviceptr dx = upload(x, sizeof x), dy = upload(NULL, 200 * 16 * 4);
  RUN(m, "math_f32", 2, 1, 128, 1, &dx, &dy, &n);
  download(y, dy, 200 * 16 * 4);
  expect_near(y, want, n * 16, 1e-6, "math_f32");
  double xd[100], yd[600];
  for (int i = 0; i < 100; i++) xd[i] = (i - 50) * 0.131;
  int nd = 100;
  CUdeviceptr dd = upload(xd, sizeof xd), de = upload(NULL, sizeof yd);
  RUN(m, "math_f64", 1, 1, 128, 1, &dd, &de, &nd);
  download(yd, de, sizeof yd);
  for (int i = 0; i < 100; i++) {
    double v = xd[i], *o = yd + 6 * i;
    assert_true(fabs(o[0] / exp(v) - 1) < 1e-14);
    assert_true(o[1] == sqrt(fabs(v)) && o[2] == v / 3 && o[3] == ceil(v) &&
                o[4] == fma(v, v, 1.0) && o[5] == (double)(float)v);
  }
  float yh[1600];
  CUdeviceptr dh = upload(NULL, sizeof yh);
  RUN(m, "math_half", 2, 1, 128, 1, &dx, &dh, &n);
  download(yh, dh, sizeof yh);
  for (int i = 0; i < n; i++) {
    float v = x[i], *o = yh + 8 * i;
    assert_true(fabsf(o[0] - 2 * v) <= fabsf(v) * 0x1p-10f &&
                fabsf(o[1] - 0.3f * v) <= fabsf(v) * 0x1p-11f + 1e-4f);
    assert_true(fabsf(o[2] - (v * v + 1)) <= (v * v + 1) * 0x1p-9f && o[4] == 3.75f &&
                fabsf(o[3] - (v * v + v)) < 0.05f);
    assert_true(fabsf(o[5] - v) <= fabsf(v) * 0x1p-8f && o[7] == (float)(v < 0));
  }
  free(y), free(want);
  cuMemFree(dx), cuMemFree(dy), cuMemFree(dd), cuMemFree(de), cuMemFree(dh);
  cuModuleUnload(m);
  close_sim();
}

static int32_t dot_bytes(uint32_t a, uint32_t b) {
  int32_t s = 5;
  for (int k = 0; k < 32; k += 8) s += (int8_t)(a >> k) * (int8_t)(b >> k);
  return s;
}

static uint32_t reversed(uint32_t x) {
  uint32_t r = 0;
  for (int k = 0; k < 32; k++) r |= (x >> k & 1) << (31 - k);
  return r;
}

static uint32_t permuted(uint32_t a, uint32_t b, uint32_t selector) {
  uint64_t x = (uint64_t)b << 32 | a;
  uint32_t r = 0;
  for (int k = 0; k < 4; k++) r |= (uint32_t)(x >> 8 * (selector >> 4 * k & 7) & 255) << 8 * k;
  return r;
}

static void integers(void **state) {
  (void)state;
  open_sim(NULL, NULL);
  CUmodule m = load_ptx("math.ptx");
  int n = 300, x[300], y[6000];
  for (int i = 0; i < n; i++) x[i] = (int)((unsigned)i * 2654435761u) >> i % 20;
  x[0] = 0, x[1] = INT32_MIN, x[2] = -1;
  CUdeviceptr dx = upload(x, sizeof x), dy = upload(NULL, sizeof y);
  RUN(m, "math_int", 3, 1, 128, 1, &dx, &dy, &n);
  download(y, dy, sizeof y);
  for (int i = 0; i < n; i++) {
    int v = x[i], *o = y + 20 * i;
    unsigned u = (unsigned)v;
    const int want[20] = {v / 7,
                          v % 7,
                          (int)(u / 10),
                          (int)(u % 1000),
                          (int)((int64_t)v * 12345 >> 32),
                          (int)((uint64_t)u * 777777777u >> 32),
                          __builtin_popcount(u),
                          u ? __builtin_clz(u) : 32,
                          (int)reversed(u),
                          (int)permuted(u, ~u, 0x2537),
                          v >> 3,
                          (int)(u >> 3),
                          (int)(u << 5),
                          v < 100 ? v : 100,
                          (int)(u > 100 ? u : 100),
                          (int)((int64_t)v * v >> 7),
                          (int)(v < 0 ? 0 - u : u),
                          (int)(~u << 9 | u >> 23),
                          (int8_t)v + (uint16_t)v,
                          dot_bytes(u, 0x01fe03fd)};
    for (int k = 0; k < 20; k++)
      if (o[k] != want[k]) fail_msg("math_int(%d)[%d] = %d, not %d", v, k, o[k], want[k]);
  }
  cuMemFree(dx), cuMemFree(dy);
  cuModuleUnload(m);
  close_sim();
}

static float poly(float x, int n) {
  float s = 1;
  for (int i = 0; i < n; i++) s = fmaf(s, x, (float)i);
  return s;
}

static void control_flow(void **state) {
  (void)state;
  open_sim(NULL, NULL);
  CUmodule m = load_ptx("math.ptx");
  int n = 100, x[100];
  float y[100], want[100];
  for (int i = 0; i < n; i++) {
    int v = x[i] = i * 13 % 17;
    float s = 0;
    for (int k = 0; k < v; k++) {
      if (k % 3 == 1) continue;
      s += (float)(v * ((k + v) & 7));
      if (s > 1000) break;
    }
    if (v & 1) s += poly(0.5f, v);
    const float cases[] = {s + 1, s * 2, s - 3, 1 / (s + 1), s * s, -s};
    want[i] = v < 6 ? cases[v] : s + 0.5f;
  }
  CUdeviceptr dx = upload(x, sizeof x), dy = upload(NULL, sizeof y);
  RUN(m, "control", 2, 1, 64, 1, &dx, &dy, &n);
  download(y, dy, sizeof y);
  expect_near(y, want, n, 1e-6, "control");
  unsigned votes[32][6];
  CUdeviceptr dv = upload(NULL, sizeof votes);
  RUN(m, "votes", 1, 1, 32, 1, &dx, &dv);
  download(votes, dv, sizeof votes);
  unsigned ballot = 0;
  for (int l = 0; l < 32; l++) ballot |= (unsigned)(x[l] > 3) << l;
  for (int l = 0; l < 32; l++) {
    unsigned same = 0;
    for (int k = 0; k < 32; k++) same |= (unsigned)((x[k] & 3) == (x[l] & 3)) << k;
    const unsigned expected[6] = {ballot, 0, 1, same, ~0u, (unsigned)x[(l & 16) | ((l + 5) & 15)]};
    assert_memory_equal(votes[l], expected, sizeof expected);
  }
  CUdeviceptr counter;
  size_t bytes;
  assert_int_equal(cuModuleGetGlobal(&counter, &bytes, m, "counter"), 0);
  assert_int_equal(bytes, 4);
  RUN(m, "globals", 1, 1, 32, 1, &dy);
  download(y, dy, 128);
  const float table[] = {1, 2.5f, -3, 0.125f};
  for (int k = 0; k < 32; k++) assert_true(y[k] == table[k & 3]);
  int counted;
  download(&counted, counter, 4);
  assert_int_equal(counted, 32);
  cuMemFree(dx), cuMemFree(dy), cuMemFree(dv);
  cuModuleUnload(m);
  close_sim();
}

static void atomic_operations(void **state) {
  (void)state;
  open_sim(NULL, NULL);
  CUmodule m = load_ptx("math.ptx");
  int i[10] = {0, 0, 0, -1, 0, 0, 0, 0, 0, 0}, n = 7;
  unsigned long long u = 0;
  float f = 0;
  double d = 0;
  CUdeviceptr di = upload(i, sizeof i), du = upload(&u, 8), df = upload(&f, 4), dd = upload(&d, 8);
  RUN(m, "atomics", 4, 1, 64, 1, &di, &du, &df, &dd, &n);
  download(i, di, sizeof i), download(&u, du, 8), download(&f, df, 4), download(&d, dd, 8);
  assert_int_equal(i[0], 255 * 128);
  assert_int_equal(i[1], 255);
  assert_int_equal(i[2], -255);
  assert_int_equal(i[3], (int)0xffff0000);
  assert_int_equal(i[4], -1);
  assert_int_equal(i[5], 0);
  assert_int_equal(i[6], 256 % 10);
  assert_int_equal(i[7], 7);
  assert_int_equal(i[8], i[9] + 1);
  assert_true(u == 256ull << 33 && f == 128 && d == 64);
  cuMemFree(di), cuMemFree(du), cuMemFree(df), cuMemFree(dd);
  cuModuleUnload(m);
  close_sim();
}

/* ---- tensor cores, asynchronous copies ---- */

static uint16_t half(float x) { /* of small integers and halves */
  uint32_t u;
  memcpy(&u, &x, 4);
  return x == 0
             ? 0
             : (uint16_t)((u >> 16 & 0x8000) | ((u >> 23 & 255) - 112) << 10 | (u >> 13 & 0x3ff));
}

static void tensor_cores(void **state) {
  (void)state;
  open_sim(NULL, NULL);
  CUmodule m = load_ptx("tensor.ptx");
  float a[256], b[128], want[128], wantr[128], want8[128], got[128];
  uint16_t ha[256], hb[128];
  for (int k = 0; k < 256; k++) ha[k] = half(a[k] = (float)(k * 37 % 23 - 11) * 0.5f);
  for (int k = 0; k < 128; k++) hb[k] = half(b[k] = (float)(k * 29 % 17 - 8) * 0.25f);
  for (int i = 0; i < 16; i++)
    for (int j = 0; j < 8; j++) {
      float s = 0, r = 0, e = 0;
      for (int k = 0; k < 16; k++)
        s += a[i * 16 + k] * b[j * 16 + k], r += a[i * 16 + k] * b[k * 8 + j];
      for (int k = 0; k < 8; k++) e += a[i * 8 + k] * b[j * 8 + k];
      want[i * 8 + j] = s, wantr[i * 8 + j] = r, want8[i * 8 + j] = e;
    }
  CUdeviceptr da = upload(ha, sizeof ha), db = upload(hb, sizeof hb), dc = upload(NULL, sizeof got),
              fa = upload(a, sizeof a), fb = upload(b, sizeof b);
  RUN(m, "mma_f16", 1, 1, 32, 1, &da, &db, &dc);
  download(got, dc, sizeof got);
  assert_memory_equal(got, want, sizeof got);
  RUN(m, "ldmatrix_f16", 1, 1, 32, 1, &da, &db, &dc);
  download(got, dc, sizeof got);
  assert_memory_equal(got, wantr, sizeof got);
  RUN(m, "mma_tf32", 1, 1, 32, 1, &fa, &fb, &dc);
  download(got, dc, sizeof got);
  assert_memory_equal(got, want8, sizeof got);
  float *x = numbers(128 * 5, 0, 1), sums[32] = {0};
  int stages = 5;
  for (int s = 0; s < 20; s++)
    for (int t = 0; t < 32; t++) sums[t] += x[32 * s + t];
  CUdeviceptr dx = upload(x, 128 * 5 * 4), dy = upload(NULL, 128);
  RUN(m, "pipeline", 1, 1, 32, 1, &dx, &dy, &stages);
  download(got, dy, 128);
  assert_memory_equal(got, sums, 128);
  free(x);
  cuMemFree(da), cuMemFree(db), cuMemFree(dc), cuMemFree(fa), cuMemFree(fb), cuMemFree(dx),
      cuMemFree(dy);
  cuModuleUnload(m);
  close_sim();
}

/* ---- planted faults ---- */

typedef struct Fault {
  const char *kernel;
  unsigned blocks, threads;
  int n;
  /* of arguments: x: 128 floats, y: the same, to write, u: never written, z: freed, n */
  const char *order;
  CUresult result;
  const char *says;
} Fault;

static const Fault faults[] = {
    {"out_of_bounds", 1, 128, 1, "yn", CUDA_ERROR_ILLEGAL_ADDRESS,
     "out of bounds: write of 4 bytes"},
    {"out_of_bounds", 4, 128, 0, "yn", CUDA_ERROR_ILLEGAL_ADDRESS, "out of bounds"},
    {"out_of_bounds", 1, 128, -1, "yn", CUDA_ERROR_ILLEGAL_ADDRESS, "out of bounds"},
    {"out_of_bounds", 1, 128, 100000000, "yn", CUDA_ERROR_ILLEGAL_ADDRESS,
     "where nothing is allocated"},
    {"out_of_bounds_read", 1, 32, 128, "xyn", CUDA_ERROR_ILLEGAL_ADDRESS,
     "out of bounds: read of 4 bytes"},
    {"out_of_bounds_read", 1, 32, 3, "zyn", CUDA_ERROR_ILLEGAL_ADDRESS, "use after free"},
    {"missing_barrier", 1, 128, 0, "xy", CUDA_ERROR_LAUNCH_FAILED, "shared memory"},
    {"same_word", 1, 32, 0, "y", CUDA_ERROR_LAUNCH_FAILED, "different values"},
    {"same_word", 1, 64, 0, "y", CUDA_ERROR_LAUNCH_FAILED, ""},
    {"write_after_read", 1, 128, 3, "yn", CUDA_ERROR_LAUNCH_FAILED, "race in shared memory"},
    {"misaligned", 1, 1, 0, "xy", CUDA_ERROR_MISALIGNED_ADDRESS, "misaligned address"},
    {"uninitialised_global", 1, 32, 0, "uy", CUDA_ERROR_LAUNCH_FAILED,
     "uninitialised read of 4 bytes of global"},
    {"uninitialised_shared", 1, 64, 63, "yn", CUDA_ERROR_LAUNCH_FAILED,
     "uninitialised read of shared"},
    {"uninitialised_local", 1, 32, 2, "yn", CUDA_ERROR_LAUNCH_FAILED,
     "uninitialised read of local"},
    {"uninitialised_register", 1, 32, 20, "yn", CUDA_ERROR_LAUNCH_FAILED, "thread (20,0,0)"},
    {"uninitialised_register", 1, 32, 0, "yn", CUDA_ERROR_LAUNCH_FAILED,
     "uninitialised read of register"},
    {"packed_register", 1, 32, 20, "yn", CUDA_ERROR_LAUNCH_FAILED, "thread (20,0,0)"},
    {"divergent_barrier", 1, 64, 10, "yn", CUDA_ERROR_LAUNCH_FAILED, "divergent barrier"},
    {"divergent_barrier", 1, 64, 32, "yn", CUDA_ERROR_LAUNCH_FAILED, "divergent barrier"},
    {"endless", 1, 32, 0, "x", CUDA_ERROR_LAUNCH_TIMEOUT, "endless loop"},
    {"shared_overrun", 1, 32, 1, "yn", CUDA_ERROR_ILLEGAL_ADDRESS, "bytes of shared memory"},
    {"local_overrun", 1, 32, 5, "yn", CUDA_ERROR_ILLEGAL_ADDRESS, "bytes of local memory"},
    {"trapped", 1, 32, 3, "n", CUDA_ERROR_LAUNCH_FAILED, "trap"},
    {"async_too_early", 1, 32, 0, "xy", CUDA_ERROR_LAUNCH_FAILED, "asynchronous copy"},
    {"neighbour_block", 4, 16, 1, "yn", CUDA_ERROR_LAUNCH_FAILED, "race between blocks"},
    {"two_writers", 3, 32, 1, "yn", CUDA_ERROR_LAUNCH_FAILED, "race between blocks"},
    {"write_after_block", 3, 32, 2, "yn", CUDA_ERROR_LAUNCH_FAILED, "race between blocks"},
    {"missing_fence", 5, 32, 0, "yn", CUDA_ERROR_LAUNCH_FAILED, "race between blocks"},
    {"read_only_cache", 2, 16, 0, "yn", CUDA_ERROR_LAUNCH_FAILED, "read-only cache"},
    {"constant_overrun", 1, 1, 4, "yn", CUDA_ERROR_ILLEGAL_ADDRESS, "out of bounds: read of 4"},
    {"constant_write", 1, 32, -1, "yn", CUDA_ERROR_ILLEGAL_ADDRESS, "constant memory"},
    {"stack_overflow", 1, 32, 500, "yn", CUDA_ERROR_LAUNCH_FAILED, "stack overflow"},
    {"asserted", 1, 32, 3, "yn", CUDA_ERROR_ASSERT, "assertion `n < 3` failed, "},
    {"wild_call", 1, 32, 1024, "yn", CUDA_ERROR_INVALID_PC, "no function"},
    {"misaligned_double", 1, 32, 1, "yn", CUDA_ERROR_MISALIGNED_ADDRESS, "misaligned address"},
    {"atomic_overrun", 1, 32, 97, "yn", CUDA_ERROR_ILLEGAL_ADDRESS, "out of bounds"},
    {"half_a_warp", 1, 32, 16, "yn", CUDA_ERROR_LAUNCH_FAILED, "lane 16"},
    {"shared_vector", 1, 32, 2, "yn", CUDA_ERROR_MISALIGNED_ADDRESS, "misaligned address"},
    {"shared_vector", 1, 32, 32, "yn", CUDA_ERROR_LAUNCH_FAILED, "uninitialised read of shared"},
    {"shared_vector", 1, 32, 72, "yn", CUDA_ERROR_ILLEGAL_ADDRESS, "bytes of shared memory"},
    {"bounded", 1, 32, 1, "yn", CUDA_ERROR_ILLEGAL_ADDRESS, "0 bytes of shared memory"},
    /* the same kernels, used rightly */
    {"out_of_bounds", 1, 128, 0, "yn", 0, ""},
    {"out_of_bounds_read", 1, 32, 127, "xyn", 0, ""},
    {"same_word", 1, 1, 0, "y", 0, ""},
    {"uninitialised_global", 1, 32, 0, "xy", 0, ""},
    {"uninitialised_shared", 1, 64, 64, "yn", 0, ""},
    {"uninitialised_register", 1, 32, 32, "yn", 0, ""},
    {"packed_register", 1, 32, 32, "yn", 0, ""},
    {"broadcast_register", 1, 32, 7, "yn", 0, ""},
    {"divergent_barrier", 1, 64, 64, "yn", 0, ""},
    {"divergent_barrier", 1, 64, 0, "yn", 0, ""},
    {"shared_overrun", 1, 32, 0, "yn", 0, ""},
    {"local_overrun", 1, 32, 4, "yn", 0, ""},
    {"trapped", 1, 32, 2, "n", 0, ""},
    {"neighbour_block", 4, 16, 0, "yn", 0, ""},
    {"neighbour_block", 1, 16, 1, "yn", 0, ""},
    {"two_writers", 3, 32, 0, "yn", 0, ""},
    {"write_after_block", 3, 32, 3, "yn", 0, ""},
    {"missing_fence", 5, 32, 1, "yn", 0, ""},
    {"read_only_cache", 2, 16, 96, "yn", 0, ""},
    {"constant_overrun", 1, 1, 3, "yn", 0, ""},
    {"constant_write", 1, 4, 0, "yn", 0, ""},
    {"stack_overflow", 1, 32, 20, "yn", 0, ""},
    {"asserted", 1, 32, 2, "yn", 0, ""},
    {"wild_call", 1, 32, 0, "yn", 0, ""},
    {"misaligned_double", 1, 32, 2, "yn", 0, ""},
    {"atomic_overrun", 1, 32, 96, "yn", 0, ""},
    {"half_a_warp", 1, 32, 32, "yn", 0, ""},
    {"shared_vector", 1, 32, 28, "yn", 0, ""},
};

static void one_fault(const Fault *f, const char *ptx) {
  float zeros[128] = {0};
  open_sim("CUDASIM_BUDGET", "100000");
  CUmodule m = load_ptx(ptx);
  CUdeviceptr x = upload(zeros, sizeof zeros), y = upload(zeros, sizeof zeros),
              u = upload(NULL, sizeof zeros), z = upload(zeros, sizeof zeros);
  assert_int_equal(cuMemFree(z), 0);
  int n = f->n;
  void *params[4];
  for (int k = 0; f->order[k]; k++) {
    const char *o = strchr("xyuzn", f->order[k]);
    params[k] = ((void *[]){&x, &y, &u, &z, &n})[o - "xyuzn"];
  }
  catch_messages();
  CUresult r = start(m, f->kernel, f->blocks, 1, f->threads, 1, NULL, params);
  if (!r) r = cuCtxSynchronize();
  CUresult later = cuCtxSynchronize();
  const char *text = caught();
  if (r != f->result || later != r)
    fail_msg("%s(%d): result %d, then %d, not %d: %s", f->kernel, f->n, r, later, f->result, text);
  if (!strstr(text, f->says)) fail_msg("%s: \"%s\" is not in \"%s\"", f->kernel, f->says, text);
  if (r && (!strstr(text, f->kernel) || !strstr(text, "thread (") || !strstr(text, "ptx line")))
    fail_msg("%s: %s", f->kernel, text);
  if (!r && *text) fail_msg("%s: a false alarm: %s", f->kernel, text);
  cuMemFree(x), cuMemFree(y), cuMemFree(u);
  cuModuleUnload(m);
  close_sim();
}

static void planted_faults(void **state) {
  (void)state;
  for (size_t k = 0; k < sizeof faults / sizeof *faults; k++) {
    one_fault(&faults[k], "faults.ptx");
    one_fault(&faults[k],
              "faults_debug.ptx"); /* generic addresses, calls, variables in local memory */
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(maps),         cmocka_unit_test(matrices),
      cmocka_unit_test(mathematics),  cmocka_unit_test(integers),
      cmocka_unit_test(control_flow), cmocka_unit_test(atomic_operations),
      cmocka_unit_test(tensor_cores), cmocka_unit_test(planted_faults),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
