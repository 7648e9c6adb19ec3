// Types and calls: halves, packed bytes, 64 and 128 bits, tables of jumps, arrays in local memory, constants, functions that are not
// inlined, called by address or by themselves, assertions.
#include <assert.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

extern "C" __global__ void half_ops(const __half2 *a, const __half2 *b, __half2 *y, __nv_bfloat162 *z, float *f, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  __half2 x = a[i], w = b[i];
  __half2 r = __hfma2(x, w, __hsub2(x, w));
  r = __hmax2(r, __float2half2_rn(-1.f));
  r = h2exp(__hneg2(__habs2(r)));
  if (__hgt(__low2half(x), __high2half(w))) r = __hadd2(r, __h2div(x, __hadd2(__habs2(w), __float2half2_rn(1.f))));
  y[i] = r;
#if __CUDA_ARCH__ >= 800
  __nv_bfloat162 p = __floats2bfloat162_rn(__low2float(x), __high2float(w));
  p = __hfma2(p, p, __float2bfloat162_rn(0.5f));
  p = __hmul2(p, h2rcp(__hadd2(p, __float2bfloat162_rn(3.f))));
  if (__hbeq2(p, p)) z[i] = p;
#endif
  f[i] = __half2float(hsqrt(__habs(__low2half(x)))) + __bfloat162float(hlog(__float2bfloat16(2.f + __low2float(__habs2(w))))) + __half2int_rn(__high2half(x)) + __half2float(__int2half_rn(i)) + __half2float(hrint(__low2half(w)));
}
extern "C" __global__ void dp4a(const int *a, const int *b, int *y, unsigned *u, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  y[i] = __dp4a(a[i], b[i], i) + __dp2a_lo(a[i], b[i], 3) + __dp2a_hi(a[i], b[i], 5);
  u[i] = __dp4a((unsigned)a[i], (unsigned)b[i], 7u) + __vadd4(a[i], b[i]) + __vabsdiffu4(a[i], b[i]) + __vmaxs2(a[i], b[i]) + __vcmpgtu4(a[i], b[i]) + __sad(a[i], b[i], 9u) + __vminu2(a[i], b[i]) + __vaddss4(a[i],b[i]) + __vavgu4(a[i],b[i]);
}
extern "C" __global__ void wide(const long long *a, const unsigned long long *b, long long *y, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  long long x = a[i]; unsigned long long u = b[i];
  long long *o = y + 16 * i;
  o[0] = x / 1000003, o[1] = x % 77, o[2] = u / (u >> 40 | 3), o[3] = u % 1000000007ull, o[4] = __mul64hi(x, (long long)u), o[5] = __umul64hi(u, x), o[6] = x * (long long)u;
  o[7] = __clzll(x) + __popcll(u) + __ffsll(x), o[8] = __brevll(u), o[9] = x >> (u & 63), o[10] = u << (x & 63), o[11] = (long long)(double)x, o[12] = (long long)(float)u, o[13] = (unsigned long long)((double)u * 0.5), o[14] = max(x, (long long)i), o[15] = (__int128)x * u >> 37;
}
extern "C" __global__ void asserts(const int *x, int *y, int n) {
  assert(x[threadIdx.x] >= 0);
  y[threadIdx.x] = x[threadIdx.x] + n;
}
extern "C" __global__ void table(const int *op, const float *x, float *y, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  float v = x[i];
  switch (op[i]) {
  case 0: v = v * v + 1; break; case 1: v = sqrtf(fabsf(v)); break; case 2: v = expf(v) - 1; break; case 3: v = -v * 3; break; case 4: v = v > 0 ? v : 0.1f * v; break;
  case 5: v = sinpif(v) ; break; case 6: v = 1 / (2 + v * v); break; case 7: v = floorf(v) + 0.5f; break; case 8: v = atanf(v); break; case 9: v = cbrtf(v); break; case 10: v = fmodf(v, 0.7f); break; default: v = 42;
  }
  y[i] = v;
}
extern "C" __global__ void local_array(const int *x, int *y, int n) {
  int a[16], i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  for (int k = 0; k < 16; k++) a[k] = x[(i + k) % n];
  for (int k = 1; k < 16; k++) { int v = a[k], j = k - 1; while (j >= 0 && a[j] > v) a[j + 1] = a[j], j--; a[j + 1] = v; }
  y[i] = a[x[i] & 15] + 2 * a[8];
}
__constant__ float coef[5] = {0.0625f, 0.25f, 0.375f, 0.25f, 0.0625f};
__constant__ struct { int n; float scale; } config = {5, 2.0f};
extern "C" __global__ void conv_const(const float *x, float *y, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  float s = 0;
  for (int k = 0; k < config.n; k++) { int j = i + k - 2; s += coef[k] * (j >= 0 && j < n ? x[j] : 0.f); }
  y[i] = s * config.scale;
}
struct Big { float v[6]; int k; };
__device__ __noinline__ float eval(const Big b, float *out, double d) { float s = 0; for (int i = 0; i < 6; i++) s = s * (float)d + b.v[i]; *out = s + b.k; return s * 2; }
extern "C" __global__ void calls(Big b, float *y, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  float o;
  b.k += i;
  float r = eval(b, &o, 0.5 * i);
  y[i] = r + o;
}
__device__ __noinline__ int fib(int n) { return n < 2 ? n : fib(n - 1) + fib(n - 2); }
extern "C" __global__ void recursive(int *y, int n) { y[threadIdx.x] = fib((n + threadIdx.x) % 12); }
typedef float (*Fn)(float);
__device__ float fa(float x) { return x + 1; }
__device__ float fb(float x) { return x * x; }
__device__ float fc(float x) { return -x; }
__device__ Fn fns[3] = {fa, fb, fc};
extern "C" __global__ void indirect(const float *x, float *y, int n) { int i = threadIdx.x; if (i < n) y[i] = fns[i % 3](x[i]); }
