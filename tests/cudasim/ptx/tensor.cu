// Tensor cores and asynchronous copies: mma.sync by inline PTX, ldmatrix, a two-stage cp.async pipeline.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

static __device__ unsigned shared_address(const void *p) { return (unsigned)__cvta_generic_to_shared(p); }

// C[16,8] = A[16,16] B[16,8]: f16, A row-major, B column-major; one warp.
extern "C" __global__ void mma_f16(const __half *A, const __half *B, float *C) {
  int g = threadIdx.x / 4, t = threadIdx.x % 4;
  const uint32_t *a32 = (const uint32_t *)A, *b32 = (const uint32_t *)B;
  uint32_t a0 = a32[g * 8 + t], a1 = a32[(g + 8) * 8 + t], a2 = a32[g * 8 + t + 4], a3 = a32[(g + 8) * 8 + t + 4];
  uint32_t b0 = b32[g * 8 + t], b1 = b32[g * 8 + t + 4];
  float c[4] = {0, 0, 0, 0};
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  C[g * 8 + 2 * t] = c[0], C[g * 8 + 2 * t + 1] = c[1], C[(g + 8) * 8 + 2 * t] = c[2], C[(g + 8) * 8 + 2 * t + 1] = c[3];
}

// The same with tf32: A[16,8] B[8,8].
extern "C" __global__ void mma_tf32(const float *A, const float *B, float *C) {
  int g = threadIdx.x / 4, t = threadIdx.x % 4;
  uint32_t a[4], b[2];
  float v[6] = {A[g * 8 + t], A[(g + 8) * 8 + t], A[g * 8 + t + 4], A[(g + 8) * 8 + t + 4], B[g * 8 + t], B[g * 8 + t + 4]};
  for (int i = 0; i < 4; i++) asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(a[i]) : "f"(v[i]));
  for (int i = 0; i < 2; i++) asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(b[i]) : "f"(v[4 + i]));
  float c[4] = {0, 0, 0, 0};
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  C[g * 8 + 2 * t] = c[0], C[g * 8 + 2 * t + 1] = c[1], C[(g + 8) * 8 + 2 * t] = c[2], C[(g + 8) * 8 + 2 * t + 1] = c[3];
}

// C[16,8] = A[16,16] B[16,8] (B row-major here), operands through shared memory and ldmatrix.
extern "C" __global__ void ldmatrix_f16(const __half *A, const __half *B, float *C) {
  __shared__ __align__(16) __half a[16][16], b[16][8];
  for (int i = threadIdx.x; i < 256; i += 32) a[i / 16][i % 16] = A[i];
  for (int i = threadIdx.x; i < 128; i += 32) b[i / 8][i % 8] = B[i];
  __syncthreads();
  uint32_t r[4], s[2];
  unsigned pa = shared_address(&a[threadIdx.x % 16][threadIdx.x / 16 * 8]), pb = shared_address(&b[threadIdx.x % 16][0]);
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(pa));
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];" : "=r"(s[0]), "=r"(s[1]) : "r"(pb));
  float c[4] = {0, 0, 0, 0};
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3]), "r"(s[0]), "r"(s[1]));
  int g = threadIdx.x / 4, t = threadIdx.x % 4;
  C[g * 8 + 2 * t] = c[0], C[g * 8 + 2 * t + 1] = c[1], C[(g + 8) * 8 + 2 * t] = c[2], C[(g + 8) * 8 + 2 * t + 1] = c[3];
}

// y = prefix-free block sums of x: each stage of 128 floats arrives while the one before is added.
extern "C" __global__ void pipeline(const float *x, float *y, int stages) {
  __shared__ __align__(16) float buf[2][128];
  int t = threadIdx.x; // 32 threads, 16 bytes each
  float sum = 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(&buf[0][4 * t])), "l"(x + 4 * t));
  asm volatile("cp.async.commit_group;");
  for (int s = 0; s < stages; s++) {
    if (s + 1 < stages)
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(&buf[(s + 1) & 1][4 * t])), "l"(x + 128 * (s + 1) + 4 * t));
    asm volatile("cp.async.commit_group;");
    asm volatile("cp.async.wait_group 1;" ::: "memory");
    __syncthreads();
    for (int i = 0; i < 4; i++) sum += buf[s & 1][t + 32 * i];
    __syncthreads();
  }
  y[t] = sum;
}
