// Arithmetic, conversions, calls, divergence, local memory: what compilers emit for ordinary code.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

extern "C" __global__ void math_f32(const float *x, float *y, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  float v = x[i];
  float *o = y + 16 * i;
  o[0] = expf(v), o[1] = logf(fabsf(v) + 1e-3f), o[2] = tanhf(v), o[3] = sinf(v), o[4] = cosf(v);
  o[5] = sqrtf(fabsf(v)), o[6] = rsqrtf(fabsf(v) + 0.5f), o[7] = erff(v), o[8] = powf(fabsf(v) + 0.1f, 1.7f);
  o[9] = 1 / (1 + expf(-v)), o[10] = v / (v * v + 0.25f), o[11] = floorf(v), o[12] = rintf(v), o[13] = truncf(v);
  o[14] = fmaxf(v, 0.25f), o[15] = __fdividef(v, 3.0f);
}

extern "C" __global__ void math_f64(const double *x, double *y, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  double v = x[i];
  double *o = y + 6 * i;
  o[0] = exp(v), o[1] = sqrt(fabs(v)), o[2] = v / 3, o[3] = ceil(v), o[4] = fma(v, v, 1.0), o[5] = (float)v;
}

extern "C" __global__ void math_int(const int *x, int *y, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  int v = x[i];
  unsigned u = v;
  int *o = y + 20 * i;
  o[0] = v / 7, o[1] = v % 7, o[2] = u / 10u, o[3] = u % 1000u, o[4] = __mulhi(v, 12345), o[5] = __umulhi(u, 777777777u);
  o[6] = __popc(v), o[7] = __clz(v), o[8] = __brev(v), o[9] = __byte_perm(v, ~v, 0x2537);
  o[10] = v >> 3, o[11] = u >> 3, o[12] = v << 5, o[13] = min(v, 100), o[14] = max(u, 100u);
  o[15] = (int)((long long)v * v >> 7), o[16] = abs(v), o[17] = __funnelshift_l(v, ~v, 9), o[18] = (int8_t)v + (uint16_t)v;
  o[19] = __dp4a(v, 0x01fe03fd, 5);
}

extern "C" __global__ void math_half(const float *x, float *y, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  __half h = __float2half(x[i]);
  __nv_bfloat16 b = __float2bfloat16(x[i]);
  __half2 h2 = __floats2half2_rn(x[i], 1.5f);
  h2 = __hfma2(h2, h2, h2);
  float *o = y + 8 * i;
  o[0] = __half2float(__hadd(h, h)), o[1] = __half2float(__hmul(h, __float2half(0.3f)));
  o[2] = __half2float(__hfma(h, h, __float2half(1.f))), o[3] = __low2float(h2), o[4] = __high2float(h2);
  o[5] = __bfloat162float(b), o[6] = __bfloat162float(__hfma(b, b, b)), o[7] = h < __float2half(0.f);
}

__device__ __noinline__ float poly(float x, int n) {
  float s = 1;
  for (int i = 0; i < n; i++) s = s * x + i;
  return s;
}

// A call in divergent code, a loop of different length per thread, a switch, an array in local memory.
extern "C" __global__ void control(const int *x, float *y, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  float s = 0, local[8];
  int v = x[i];
  for (int k = 0; k < 8; k++) local[k] = v * k;
  for (int k = 0; k < v; k++) {
    if (k % 3 == 1) continue;
    s += local[(k + v) & 7];
    if (s > 1000) break;
  }
  if (v & 1) s += poly(0.5f, v);
  switch (v) {
  case 0: s += 1; break;
  case 1: s *= 2; break;
  case 2: s -= 3; break;
  case 3: s = 1 / (s + 1); break;
  case 4: s = s * s; break;
  case 5: s = -s; break;
  default: s += 0.5f;
  }
  y[i] = s;
}

extern "C" __global__ void votes(const int *x, unsigned *y) {
  int v = x[threadIdx.x];
  unsigned *o = y + 6 * threadIdx.x;
  o[0] = __ballot_sync(~0u, v > 3), o[1] = __any_sync(~0u, v == 100), o[2] = __all_sync(~0u, v < 1000);
  o[3] = __match_any_sync(~0u, v & 3), o[4] = __activemask(), o[5] = __shfl_sync(~0u, v, (threadIdx.x + 5) & 31, 16);
}

__constant__ float table[4] = {1, 2.5f, -3, 0.125f};
__device__ int counter;
extern "C" __global__ void globals(float *y) {
  int k = atomicAdd(&counter, 1);
  y[k] = table[k & 3];
}

extern "C" __global__ void atomics(int *i, unsigned long long *u, float *f, double *d, int n) {
  int k = threadIdx.x + blockIdx.x * blockDim.x;
  atomicAdd(i, k), atomicMax(i + 1, k), atomicMin(i + 2, -k), atomicAnd(i + 3, ~(1 << (k & 15))), atomicOr(i + 4, 1 << (k & 31));
  atomicXor(i + 5, k), atomicInc((unsigned *)i + 6, 9), atomicExch(i + 7, n);
  if (atomicCAS(i + 8, 0, k + 1) == 0) i[9] = k;
  atomicAdd(u, 1ull << 33), atomicAdd(f, 0.5f), atomicAdd(d, 0.25);
}
