// Threads that work together: scans, sorting, stencils, reductions of rows, votes, cooperative groups, blocks that wait for blocks.
#include <cooperative_groups.h>
#include <cooperative_groups/reduce.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_pipeline.h>
namespace cg = cooperative_groups;

template <typename T> __device__ T warp_scan(T x) {
  int lane = threadIdx.x & 31;
  for (int d = 1; d < 32; d *= 2) { T y = __shfl_up_sync(~0u, x, d); if (lane >= d) x += y; }
  return x;
}
template <typename T> __device__ void block_scan(const T *x, T *y, int n) {
  __shared__ T part[32];
  int t = threadIdx.x;
  T v = warp_scan(t < n ? x[t] : T(0));
  if ((t & 31) == 31) part[t >> 5] = v;
  __syncthreads();
  if (t < 32) part[t] = warp_scan(t < (blockDim.x + 31) / 32 ? part[t] : T(0));
  __syncthreads();
  if (t >= 32) v += part[(t >> 5) - 1];
  if (t < n) y[t] = v;
}
extern "C" __global__ void scan_int(const int *x, int *y, int n) { block_scan(x, y, n); }
extern "C" __global__ void scan_double(const double *x, double *y, int n) { block_scan(x, y, n); }
extern "C" __global__ void scan_ll(const long long *x, long long *y, int n) { block_scan(x, y, n); }
extern "C" __global__ void bitonic(float *x, int n) {
  extern __shared__ float s[];
  for (int i = threadIdx.x; i < n; i += blockDim.x) s[i] = x[i];
  for (int k = 2; k <= n; k <<= 1)
    for (int j = k >> 1; j; j >>= 1) {
      __syncthreads();
      for (int i = threadIdx.x; i < n; i += blockDim.x) {
        int p = i ^ j;
        if (p > i) { float a = s[i], b = s[p]; if ((a > b) == ((i & k) == 0)) s[i] = b, s[p] = a; }
      }
    }
  __syncthreads();
  for (int i = threadIdx.x; i < n; i += blockDim.x) x[i] = s[i];
}
#define R 3
extern "C" __global__ void stencil(const float *__restrict__ x, float *y, int n) {
  __shared__ float s[128 + 2 * R];
  int g = blockIdx.x * 128 + threadIdx.x, l = threadIdx.x + R;
  s[l] = g < n ? x[g] : 0;
  if (threadIdx.x < R) { s[l - R] = g >= R ? x[g - R] : 0; s[l + 128] = g + 128 < n ? x[g + 128] : 0; }
  __syncthreads();
  float v = 0;
#pragma unroll
  for (int o = -R; o <= R; o++) v += s[l + o];
  if (g < n) y[g] = v;
}
extern "C" __global__ void dot(const float4 *__restrict__ a, const float4 *__restrict__ b, float *out, double *out2, int n) {
  float s = 0;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
    float4 x = __ldg(a + i), y = __ldcs(b + i);
    s += x.x * y.x + x.y * y.y + x.z * y.z + x.w * y.w;
  }
  for (int o = 16; o; o >>= 1) s += __shfl_xor_sync(~0u, s, o);
  if ((threadIdx.x & 31) == 0) atomicAdd(out, s), atomicAdd(out2, (double)s);
}
extern "C" __global__ void softmax(const float *x, float *y, int cols) {
  __shared__ float red[32];
  const float *r = x + (size_t)blockIdx.x * cols;
  float m = -INFINITY;
  for (int i = threadIdx.x; i < cols; i += blockDim.x) m = fmaxf(m, r[i]);
  for (int o = 16; o; o >>= 1) m = fmaxf(m, __shfl_xor_sync(~0u, m, o));
  if (threadIdx.x % 32 == 0) red[threadIdx.x / 32] = m;
  __syncthreads();
  m = red[0];
  for (int i = 1; i < blockDim.x / 32; i++) m = fmaxf(m, red[i]);
  __syncthreads();
  float s = 0;
  for (int i = threadIdx.x; i < cols; i += blockDim.x) s += __expf(r[i] - m);
  for (int o = 16; o; o >>= 1) s += __shfl_xor_sync(~0u, s, o);
  if (threadIdx.x % 32 == 0) red[threadIdx.x / 32] = s;
  __syncthreads();
  s = 0;
  for (int i = 0; i < blockDim.x / 32; i++) s += red[i];
  for (int i = threadIdx.x; i < cols; i += blockDim.x) __stcs(y + (size_t)blockIdx.x * cols + i, __expf(r[i] - m) / s);
}
struct Welford { float mean, m2, n; };
__device__ __noinline__ Welford combine(Welford a, Welford b) {
  float n = a.n + b.n;
  if (n == 0) return a;
  float d = b.mean - a.mean;
  return {a.mean + d * b.n / n, a.m2 + b.m2 + d * d * a.n * b.n / n, n};
}
extern "C" __global__ void layer_norm(const float *x, const float *g, const float *b, float *y, int cols) {
  __shared__ Welford w[32];
  Welford a = {0, 0, 0};
  for (int i = threadIdx.x; i < cols; i += blockDim.x) a = combine(a, {x[blockIdx.x * cols + i], 0, 1});
  for (int o = 16; o; o >>= 1) {
    Welford c = {__shfl_down_sync(~0u, a.mean, o), __shfl_down_sync(~0u, a.m2, o), __shfl_down_sync(~0u, a.n, o)};
    a = combine(a, c);
  }
  if (threadIdx.x % 32 == 0) w[threadIdx.x / 32] = a;
  __syncthreads();
  if (threadIdx.x == 0) { for (int i = 1; i < blockDim.x / 32; i++) a = combine(a, w[i]); w[0] = a; }
  __syncthreads();
  a = w[0];
  float inv = rsqrtf(a.m2 / cols + 1e-5f);
  for (int i = threadIdx.x; i < cols; i += blockDim.x) y[blockIdx.x * cols + i] = (x[blockIdx.x * cols + i] - a.mean) * inv * g[i] + b[i];
}
extern "C" __global__ void votes2(const int *x, int *y, int n) {
  int v = threadIdx.x < n ? x[threadIdx.x] : 0;
  int any = __syncthreads_or(v == 7), all = __syncthreads_and(v < 100), c = __syncthreads_count(v & 1);
  unsigned m = __match_any_sync(~0u, v), b = __ballot_sync(~0u, v > 5);
  int pred; unsigned ma = __match_all_sync(~0u, v & 0x100, &pred);
  y[threadIdx.x * 8] = any, y[threadIdx.x * 8 + 1] = all, y[threadIdx.x * 8 + 2] = c, y[threadIdx.x * 8 + 3] = m, y[threadIdx.x * 8 + 4] = b, y[threadIdx.x * 8 + 5] = ma + pred;
  y[threadIdx.x * 8 + 6] = __ffs(b) + __fns(b, 0, 2), y[threadIdx.x*8+7] = __popcll((unsigned long long)b << 3 | 1);
}
#if __CUDA_ARCH__ >= 800
extern "C" __global__ void reduxes(const int *x, int *y) {
  int v = x[threadIdx.x];
  y[threadIdx.x * 4] = __reduce_add_sync(~0u, v), y[threadIdx.x * 4 + 1] = __reduce_max_sync(~0u, v), y[threadIdx.x * 4 + 2] = __reduce_min_sync(~0u, (unsigned)v), y[threadIdx.x * 4 + 3] = __reduce_xor_sync(~0u, (unsigned)v);
}
#endif
extern "C" __global__ void pipe(const float4 *x, float *y, int tiles) {
  __shared__ float4 s[4][64];
  float sum = 0;
  for (int k = 0; k < 3; k++) { if (k < tiles) __pipeline_memcpy_async(&s[k][threadIdx.x], x + 64 * k + threadIdx.x, 16); __pipeline_commit(); }
  for (int k = 0; k < tiles; k++) {
    if (k + 3 < tiles) __pipeline_memcpy_async(&s[(k + 3) & 3][threadIdx.x], x + 64 * (k + 3) + threadIdx.x, 16, k == 0 ? 4 : 0);
    __pipeline_commit();
    __pipeline_wait_prior(3);
    __syncthreads();
    float4 v = s[k & 3][63 - threadIdx.x];
    sum += v.x + 2 * v.y + 3 * v.z + 4 * v.w;
    __syncthreads();
  }
  y[threadIdx.x] = sum;
}
__device__ float cas_add(float *p, float v) {
  int *a = (int *)p, old = *a, was;
  do { was = old; old = atomicCAS(a, was, __float_as_int(v + __int_as_float(was))); } while (was != old);
  return __int_as_float(old);
}
extern "C" __global__ void cas_loops(float *f, unsigned long long *best, const float *x, __half *h, __half2 *h2, __nv_bfloat16 *b, double *d, unsigned short *us, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  cas_add(f, x[i]);
  unsigned long long mine = (unsigned long long)__float_as_uint(x[i]) << 32 | i, old = *(volatile unsigned long long *)best, was;
  while (mine > old) { was = old; old = atomicCAS(best, was, mine); if (old == was) break; }
  atomicAdd(h, __float2half(1.f)), atomicAdd(h2, __floats2half2_rn(1.f, 2.f)), atomicAdd(b, __float2bfloat16(1.f)), atomicAdd(d, 0.5);
  atomicMax((long long *)(d + 1), (long long)i), atomicMin((unsigned *)(f + 1), (unsigned)i);
  atomicCAS(us, (unsigned short)0, (unsigned short)(i + 1));
}
extern "C" __global__ void coop(const float *x, float *y, int n) {
  cg::thread_block block = cg::this_thread_block();
  auto tile = cg::tiled_partition<8>(block);
  float v = block.thread_rank() < n ? x[block.thread_rank()] : 0;
  float s = cg::reduce(tile, v, cg::plus<float>());
  for (int o = tile.size() / 2; o; o /= 2) v = fmaxf(v, tile.shfl_xor(v, o));
  block.sync();
  if (tile.thread_rank() == 0) y[block.thread_rank() / 8] = s + v;
  auto active = cg::coalesced_threads();
  if (threadIdx.x & 1) { auto a = cg::coalesced_threads(); if (a.thread_rank() == 0) atomicAdd(y + 100, (float)a.size()); }
}
// the last block adds the parts
__device__ unsigned done;
extern "C" __global__ void last_block(const float *x, float *part, float *out, int n) {
  __shared__ float s[256]; __shared__ bool last;
  float v = 0;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) v += x[i];
  s[threadIdx.x] = v;
  __syncthreads();
  for (int o = blockDim.x / 2; o; o >>= 1) { if (threadIdx.x < o) s[threadIdx.x] += s[threadIdx.x + o]; __syncthreads(); }
  if (threadIdx.x == 0) { part[blockIdx.x] = s[0]; __threadfence(); last = atomicInc(&done, gridDim.x - 1) == gridDim.x - 1; }
  __syncthreads();
  if (last && threadIdx.x == 0) { float t = 0; for (int b = 0; b < gridDim.x; b++) t += ((volatile float*)part)[b]; *out = t; }
}
