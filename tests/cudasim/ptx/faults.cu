// Kernels with one planted fault each. Every one is launched by tests/test_cudasim.c and must be caught.
#include <assert.h>
extern "C" __global__ void out_of_bounds(float *x, int n) { x[blockIdx.x * blockDim.x + threadIdx.x + n] = 1; }
extern "C" __global__ void out_of_bounds_read(const float *x, float *y, int i) { y[threadIdx.x] = x[i]; }
extern "C" __global__ void missing_barrier(const float *x, float *y) {
  __shared__ float t[128];
  t[threadIdx.x] = x[threadIdx.x];
  y[threadIdx.x] = t[127 - threadIdx.x];
}
extern "C" __global__ void same_word(int *y) {
  __shared__ int t;
  t = threadIdx.x;
  __syncthreads();
  y[threadIdx.x] = t;
}
extern "C" __global__ void write_after_read(float *y, int n) {
  __shared__ float t[128];
  t[threadIdx.x] = threadIdx.x;
  __syncthreads();
  float s = 0;
  for (int i = 0; i < n; i++) {
    s += t[(threadIdx.x + 32) & 127];
    t[threadIdx.x] = s; // the neighbour may not have read yet
    __syncthreads();
  }
  y[threadIdx.x] = s;
}
extern "C" __global__ void misaligned(const char *x, float4 *y) { *y = *(const float4 *)(x + 4); }
extern "C" __global__ void uninitialised_global(const float *x, float *y) { y[threadIdx.x] = x[threadIdx.x] * 2; }
extern "C" __global__ void uninitialised_shared(float *y, int n) {
  __shared__ float t[64];
  if (threadIdx.x < n) t[threadIdx.x] = 1;
  __syncthreads();
  y[threadIdx.x] = t[threadIdx.x];
}
extern "C" __global__ void uninitialised_local(float *y, int n) {
  volatile float t[8];
  t[n & 7] = 1;
  y[threadIdx.x] = t[(n + 1) & 7];
}
extern "C" __global__ void divergent_barrier(float *y, int n) {
  __shared__ float t[64];
  t[threadIdx.x] = 1;
  if (threadIdx.x < n) __syncthreads();
  y[threadIdx.x] = t[threadIdx.x];
}
extern "C" __global__ void endless(volatile int *x) {
  while (*x == 0) {}
}
extern "C" __global__ void shared_overrun(float *y, int i) {
  __shared__ float t[32];
  t[threadIdx.x + i] = 1;
  __syncthreads();
  y[threadIdx.x] = t[threadIdx.x];
}
extern "C" __global__ void local_overrun(float *y, int n) {
  volatile float t[4];
  for (int i = 0; i < n; i++) t[i] = i;
  y[threadIdx.x] = t[n - 1];
}
extern "C" __global__ void trapped(int n) {
  if (n == 3) __trap();
}
extern "C" __global__ void async_too_early(const float *x, float *y) {
  __shared__ __align__(16) float t[128];
  unsigned p = (unsigned)__cvta_generic_to_shared(&t[4 * threadIdx.x]);
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(p), "l"(x + 4 * threadIdx.x) : "memory");
  asm volatile("cp.async.commit_group;" ::: "memory");
  __syncthreads();
  y[threadIdx.x] = t[threadIdx.x];
}
extern "C" __global__ void neighbour_block(float *y, int n) {
  y[blockIdx.x * blockDim.x + threadIdx.x] = threadIdx.x + 1;
  __syncthreads();
  y[64 + blockIdx.x] = y[(blockIdx.x + n) % gridDim.x * blockDim.x];
}
extern "C" __global__ void two_writers(float *y, int n) { y[threadIdx.x] = (float)(blockIdx.x * n); }
extern "C" __global__ void write_after_block(float *y, int n) {
  float s = y[threadIdx.x];
  y[32 * (1 + blockIdx.x) + threadIdx.x] = s;
  if (blockIdx.x == n) y[threadIdx.x] = s + 1;
}
extern "C" __global__ void missing_fence(int *y, int n) {
  if (threadIdx.x) return;
  y[1 + blockIdx.x] = 7;
  if (n) __threadfence();
  if (atomicInc((unsigned *)y, gridDim.x - 1) == gridDim.x - 1)
    for (int b = 0; b < gridDim.x; b++) y[64 + b] = y[1 + b];
}
extern "C" __global__ void read_only_cache(float *y, int n) {
  int t = blockIdx.x * blockDim.x + threadIdx.x;
  y[t] = 1;
  y[64 + t] = __ldg(y + t + n);
}
__constant__ float table[4] = {1, 2, 3, 4};
extern "C" __global__ void constant_overrun(float *y, int n) { y[threadIdx.x] = table[n]; }
extern "C" __global__ void constant_write(float *y, int n) {
  float *p = n < 0 ? (float *)table : y;
  p[threadIdx.x & 3] = 5;
}
__device__ __noinline__ int deeper(int n) { volatile int a[8]; a[n & 7] = n; return n ? deeper(n - 1) + a[n & 7] : 0; }
extern "C" __global__ void stack_overflow(int *y, int n) { y[threadIdx.x] = deeper(n); }
extern "C" __global__ void asserted(int *y, int n) { assert(n < 3); y[threadIdx.x] = n; }
typedef int (*Callee)(int);
extern "C" __global__ void wild_call(int *y, int n) { Callee f = n ? (Callee)(size_t)n : deeper; y[threadIdx.x] = f(0); }
extern "C" __global__ void misaligned_double(float *y, int n) { *(double *)(y + 2 * threadIdx.x + n) = 1; }
extern "C" __global__ void atomic_overrun(int *y, int n) { atomicAdd(y + n + threadIdx.x, 1); }
extern "C" __global__ void half_a_warp(float *y, int n) {
  float s = threadIdx.x;
  if (threadIdx.x < n) s += __shfl_xor_sync(0xffffffffu, s, 1);
  y[threadIdx.x] = s;
}
extern "C" __global__ void shared_vector(float *y, int n) {
  __shared__ __align__(16) float t[72];
  t[threadIdx.x] = 1, t[threadIdx.x + 36] = 2;
  __syncthreads();
  float4 v = *(float4 *)(t + n);
  y[threadIdx.x] = v.x + v.w;
}
extern "C" __global__ void bounded(float *y, int n) {
  extern __shared__ float t[];
  t[threadIdx.x] = n;
  y[threadIdx.x] = t[threadIdx.x];
}
extern "C" __global__ void uninitialised_register(float *y, int n) {
  float x;
  asm volatile("{ .reg .f32 u; .reg .pred p; setp.lt.s32 p, %1, %2; @p mov.f32 u, 0f3F800000; add.f32 %0, u, u; }"
               : "=f"(x) : "r"(threadIdx.x), "r"(n));
  y[threadIdx.x] = x;
}
// The value of lane 0 for all: the other lanes have none, which is no fault.
extern "C" __global__ void broadcast_register(float *y, int n) {
  float x;
  asm volatile("{ .reg .b32 u; .reg .pred p; setp.eq.s32 p, %1, 0; @p mov.b32 u, %2; shfl.sync.idx.b32 u, u, 0, 31, -1; mov.b32 %0, u; }"
               : "=f"(x) : "r"(threadIdx.x), "r"(n));
  y[threadIdx.x] = x;
}
// A pair whose lower half has no value; lanes from n on look at it.
extern "C" __global__ void packed_register(float *y, int n) {
  int x;
  asm volatile("{ .reg .b16 u, v; .reg .b32 both; .reg .pred p; setp.ge.s32 p, %1, %2; cvt.u16.u32 v, %1; mov.b32 both, {u, v}; "
               "and.b32 %0, both, -65536; @p shl.b32 %0, both, 16; }"
               : "=r"(x) : "r"(threadIdx.x), "r"(n));
  y[threadIdx.x] = __int_as_float(x);
}
