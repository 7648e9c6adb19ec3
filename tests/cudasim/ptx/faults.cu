// Kernels with one planted fault each. Every one is launched by tests/test_cudasim.c and must be caught.
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
