/* What the tests of the simulator on whole kernels share: a module for each test, launches, numbers, comparisons. */
#ifndef CUDASIM_KERNELS_H
#define CUDASIM_KERNELS_H
#include "testing.h"

static CUmodule module;
static uint64_t seed;

__attribute__((unused)) static uint32_t rnd(void) {
  seed = seed * UINT64_C(6364136223846793005) + 1442695040888963407;
  return (uint32_t)(seed >> 32);
}
__attribute__((unused)) static float number(void) {
  return (float)(int)(rnd() % 2001 - 1000) / 256;
}

__attribute__((unused)) static int open_module(const char *name) {
  seed = 1;
  open_sim(NULL, NULL);
  module = load_ptx(name);
  return 0;
}
__attribute__((unused)) static int close_module(void **state) {
  (void)state;
  assert_int_equal(cuModuleUnload(module), 0);
  close_sim();
  return 0;
}

__attribute__((unused)) static void launch(const char *name, unsigned blocks, unsigned threads,
                                           unsigned shared, void **args) {
  CUfunction f;
  assert_int_equal(cuModuleGetFunction(&f, module, name), 0);
  int r = cuLaunchKernel(f, blocks, 1, 1, threads, 1, 1, shared, NULL, args, NULL);
  if (!r) r = cuCtxSynchronize();
  if (r) fail_msg("%s: %d", name, r);
}
#define LAUNCH(name, blocks, threads, ...) launch(name, blocks, threads, 0, (void *[]){__VA_ARGS__})

__attribute__((unused)) static void near(const float *got, const float *want, int n,
                                         double tolerance, const char *what) {
  for (int i = 0; i < n; i++)
    if (!(fabs((double)got[i] - (double)want[i]) <= tolerance * (1 + fabs((double)want[i]))))
      fail_msg("%s[%d]: %.9g, not %.9g", what, i, (double)got[i], (double)want[i]);
}

__attribute__((unused)) static CUdeviceptr floats(float *x, int n) {
  for (int i = 0; i < n; i++) x[i] = number();
  return upload(x, (size_t)n * 4);
}
__attribute__((unused)) static CUdeviceptr zeros(size_t bytes) {
  void *z = calloc(1, bytes);
  CUdeviceptr p = upload(z, bytes);
  free(z);
  return p;
}
__attribute__((unused)) static void release(int n, const CUdeviceptr *p) {
  for (int i = 0; i < n; i++) assert_int_equal(cuMemFree(p[i]), 0);
}
#define RELEASE(...)                                                                               \
  release((int)(sizeof((CUdeviceptr[]){__VA_ARGS__}) / sizeof(CUdeviceptr)),                       \
          (CUdeviceptr[]){__VA_ARGS__})

__attribute__((unused)) static float half_of(uint16_t h) {
  float m = (float)(h & 0x3ff) / 1024;
  int e = h >> 10 & 31;
  return (h & 0x8000 ? -1.f : 1.f) * (e ? ldexpf(1 + m, e - 15) : ldexpf(m, -14));
}

/* A test of a module's kernels. */
#define IN(module, test) cmocka_unit_test_setup_teardown(test, module, close_module)
#define MODULE(name)                                                                               \
  static int name(void **state) {                                                                  \
    (void)state;                                                                                   \
    return open_module(#name ".ptx");                                                              \
  }
#endif
