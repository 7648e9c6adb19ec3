// Tensor cores through nvcuda::wmma, in every shape and type, and mma.sync of the types that tensor.cu leaves out.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <mma.h>
#include <stdint.h>

#define WM(name, TA, TC, M, N, K, LA, LB, STORE) \
extern "C" __global__ void name(const TA *a, const TA *b, TC *c, int lda, int ldb, int ldc) { \
  using namespace nvcuda::wmma; \
  fragment<matrix_a, M, N, K, TA, LA> fa; fragment<matrix_b, M, N, K, TA, LB> fb; fragment<accumulator, M, N, K, TC> fc; \
  fill_fragment(fc, (TC)0); load_matrix_sync(fa, a, lda); load_matrix_sync(fb, b, ldb); mma_sync(fc, fa, fb, fc); \
  for (int i = 0; i < fc.num_elements; i++) fc.x[i] = fc.x[i] + fc.x[i]; \
  store_matrix_sync(c, fc, ldc, STORE); }
WM(wmma_rr, half, float, 16, 16, 16, row_major, row_major, mem_row_major)
WM(wmma_cr, half, float, 32, 8, 16, col_major, row_major, mem_col_major)
WM(wmma_rc, half, half, 8, 32, 16, row_major, col_major, mem_row_major)
WM(wmma_s8, signed char, int, 16, 16, 16, row_major, col_major, mem_row_major)
WM(wmma_u8, unsigned char, int, 8, 32, 16, row_major, col_major, mem_row_major)
WM(wmma_bf, __nv_bfloat16, float, 16, 16, 16, row_major, col_major, mem_row_major)
WM(wmma_f64, double, double, 8, 8, 4, row_major, col_major, mem_row_major)
extern "C" __global__ void wmma_tf(const float *a, const float *b, float *c, int lda, int ldb, int ldc) {
  using namespace nvcuda::wmma;
  __shared__ float sa[16 * 8], sb[8 * 16];
  for (int i = threadIdx.x; i < 128; i += 32) sa[i] = a[i], sb[i] = b[i];
  __syncthreads();
  fragment<matrix_a, 16, 16, 8, precision::tf32, row_major> fa; fragment<matrix_b, 16, 16, 8, precision::tf32, row_major> fb; fragment<accumulator, 16, 16, 8, float> fc;
  load_matrix_sync(fc, c, ldc, mem_row_major); load_matrix_sync(fa, sa, lda); load_matrix_sync(fb, sb, ldb);
  for (int i = 0; i < fa.num_elements; i++) fa.x[i] = __float_to_tf32(fa.x[i]);
  mma_sync(fc, fa, fb, fc); store_matrix_sync(c, fc, ldc, mem_row_major); }

// C[16,8] = A[16,K] B[K,8], B column-major; registers as "Matrix fragments for mma" has them.
#define MMA(name, E, T, K, types, sum, constraint)                                                                      \
  extern "C" __global__ void name(const uint32_t *A, const uint32_t *B, T *C) {                                         \
    int g = threadIdx.x / 4, t = threadIdx.x % 4, row = K / E;                                                          \
    uint32_t a[4] = {A[g * row + t], A[(g + 8) * row + t], A[g * row + t + 4], A[(g + 8) * row + t + 4]};               \
    uint32_t b[2] = {B[g * row + t], B[g * row + t + 4]};                                                               \
    T c[4] = {0, 0, 0, 0};                                                                                              \
    asm volatile("mma.sync.aligned.m16n8k" #K ".row.col." types " {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};" \
                 : constraint(c[0]), constraint(c[1]), constraint(c[2]), constraint(c[3])                               \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                                   \
    C[g * 8 + 2 * t] = c[0], C[g * 8 + 2 * t + 1] = c[1], C[(g + 8) * 8 + 2 * t] = c[2], C[(g + 8) * 8 + 2 * t + 1] = c[3]; \
  }
MMA(mma_bf16, 2, float, 16, "f32.bf16.bf16.f32", f32, "+f")
MMA(mma_s8, 4, int, 32, "s32.s8.s8.s32", s32, "+r")
MMA(mma_u8s8, 4, int, 32, "s32.u8.s8.s32", s32, "+r")
MMA(mma_s8u8, 4, int, 32, "s32.s8.u8.s32", s32, "+r")
MMA(mma_s4, 8, int, 64, "s32.s4.s4.s32", s32, "+r")
