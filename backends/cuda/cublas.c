/* Matrix products by cuBLASLt. In: a product with its strides; out: descriptors, the first algorithm of the heuristic that fits
 * the workspace and sums in a fixed order, and the calls, which a stream may be recording.
 * The library's matrices have their columns in one piece. The result's contiguous axis becomes its rows, so the operand that
 * moves along it comes first; whichever axis an operand is contiguous along says if it is transposed. */
#include "foreign.h"
#include <string.h>

typedef struct Matmul {
  Foreign f;
  void *desc, *layout[3]; /* first, second, result */
  CublasAlgo algo;
  int first;            /* operand */
  int64_t outer, at[3]; /* calls; bytes to the first element of operands and result, by tensor */
  int64_t outer_step[3];
  int bias;  /* input, or -1 */
  bool wide; /* alpha and beta are double */
} Matmul;

static const struct {
  DType type;
  int data, scale, compute[3]; /* by CudaMath */
} types[] = {
    {DT_FLOAT32,
     CUDA_R_32F,
     CUDA_R_32F,
     {CUBLAS_COMPUTE_32F_PEDANTIC, CUBLAS_COMPUTE_32F_FAST_TF32, CUBLAS_COMPUTE_32F_FAST_16BF}},
    {DT_FLOAT64,
     CUDA_R_64F,
     CUDA_R_64F,
     {CUBLAS_COMPUTE_64F_PEDANTIC, CUBLAS_COMPUTE_64F_PEDANTIC, CUBLAS_COMPUTE_64F_PEDANTIC}},
    {DT_FLOAT16,
     CUDA_R_16F,
     CUDA_R_32F,
     {CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_32F}},
    {DT_BFLOAT16,
     CUDA_R_16BF,
     CUDA_R_32F,
     {CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_32F}},
};

static int type_row(DType t) {
  int i = 0;
  while (types[i].type != t) i++;
  return i;
}

/* ---- layouts ---- */

/* As it lies in memory: rows one after another in a column. */
typedef struct Mat {
  int64_t rows, cols, ld, batch;
  bool trans; /* of the matrix that is meant */
} Mat;

static bool mat_of(const ForeignAxis *rows, const ForeignAxis *cols, const ForeignAxis *batch,
                   int t, Mat *m) {
  int64_t r = rows->ext, c = cols->ext, sr = rows->step[t], sc = cols->step[t];
  bool down = (r == 1 || sr == 1) && (c == 1 || sc >= r),
       across = (c == 1 || sc == 1) && (r == 1 || sr >= c);
  *m = down ? (Mat){r, c, c == 1 ? r : sc, batch->step[t], false}
            : (Mat){c, r, r == 1 ? c : sr, batch->step[t], true};
  return down || across;
}

static bool set_layout(void **l, int type, const Mat *m, int64_t batch) {
  int32_t count = (int32_t)batch;
  if (!LIB(cublasLtMatrixLayoutCreate, l, type, (uint64_t)m->rows, (uint64_t)m->cols, m->ld))
    return false;
  return batch == 1 ||
         (LIB(cublasLtMatrixLayoutSetAttribute, *l, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count,
              sizeof count) &&
          LIB(cublasLtMatrixLayoutSetAttribute, *l, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
              &m->batch, sizeof m->batch));
}

/* ---- the algorithm ---- */

/* What the addresses are multiples of: buffers of 64. */
static uint32_t alignment(const Matmul *m, int t, const ForeignProduct *p, int64_t batch) {
  enum { BUFFER = 64 };
  uint64_t bits = BUFFER | (uint64_t)m->at[t] | (uint64_t)m->outer_step[t];
  if (p->batch.ext > 1) bits |= (uint64_t)(batch * dtype_info[p->type].size);
  return (uint32_t)(bits & -bits);
}

static bool set_preference(void *pref, const Matmul *m, const ForeignProduct *p, const Mat mat[3],
                           uint64_t most) {
  uint32_t reductions = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
  int tensor[4] = {m->first, !m->first, 2, 2};
  bool ok = LIB(cublasLtMatmulPreferenceSetAttribute, pref,
                CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &most, sizeof most) &&
            LIB(cublasLtMatmulPreferenceSetAttribute, pref,
                CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reductions, sizeof reductions);
  for (int i = 0; ok && i < 4; i++) {
    uint32_t n = alignment(m, tensor[i], p, mat[i < 3 ? i : 2].batch);
    ok = LIB(cublasLtMatmulPreferenceSetAttribute, pref,
             CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES + i, &n, sizeof n);
  }
  return ok;
}

static bool in_order(const CublasAlgo *a) {
  uint32_t scheme = CUBLASLT_REDUCTION_SCHEME_INPLACE;
  size_t n;
  return LIB(cublasLtMatmulAlgoConfigGetAttribute, a, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME,
             &scheme, sizeof scheme, &n) &&
         !(scheme & CUBLASLT_REDUCTION_SCHEME_INPLACE);
}

static bool find_algo(Matmul *m, const ForeignProduct *p, const Mat mat[3], int64_t most) {
  enum { TRIED = 8 };
  CublasResult r[TRIED];
  void *pref = NULL;
  int n = 0;
  bool found = false;
  bool ok = LIB(cublasLtMatmulPreferenceCreate, &pref) &&
            set_preference(pref, m, p, mat, (uint64_t)most) &&
            LIB(cublasLtMatmulAlgoGetHeuristic, m->f.handle, m->desc, m->layout[0], m->layout[1],
                m->layout[2], m->layout[2], pref, TRIED, r, &n);
  for (int i = 0; ok && i < n && !found; i++) {
    found = !r[i].status && r[i].workspace <= (uint64_t)most && in_order(&r[i].algo);
    if (!found) continue;
    m->algo = r[i].algo;
    m->f.workspace = (int64_t)r[i].workspace;
  }
  if (pref) LIB_DROP(cublasLtMatmulPreferenceDestroy, pref);
  return found;
}

/* ---- calls ---- */

static void drop(Matmul *m) {
  if (m->desc) LIB_DROP(cublasLtMatmulDescDestroy, m->desc);
  for (int i = 0; i < 3; i++)
    if (m->layout[i]) LIB_DROP(cublasLtMatrixLayoutDestroy, m->layout[i]);
  m->desc = m->layout[0] = m->layout[1] = m->layout[2] = NULL;
}

static bool set_desc(Matmul *m, const Mat mat[2], int row, CudaMath math) {
  int32_t trans = CUBLAS_OP_T, tail = CUBLASLT_EPILOGUE_BIAS;
  bool ok = LIB(cublasLtMatmulDescCreate, &m->desc, types[row].compute[math], types[row].scale);
  for (int i = 0; ok && i < 2; i++)
    ok = !mat[i].trans ||
         LIB(cublasLtMatmulDescSetAttribute, m->desc,
             i ? CUBLASLT_MATMUL_DESC_TRANSB : CUBLASLT_MATMUL_DESC_TRANSA, &trans, sizeof trans);
  return ok && (m->bias < 0 || LIB(cublasLtMatmulDescSetAttribute, m->desc,
                                   CUBLASLT_MATMUL_DESC_EPILOGUE, &tail, sizeof tail));
}

static bool prepare(Matmul *m, const ForeignProduct *p, const ForeignAxis *rows,
                    const ForeignAxis *cols, CudaMath math, int64_t most) {
  Mat mat[3];
  int row = type_row(p->type);
  bool ok = mat_of(rows, &p->k, &p->batch, m->first, &mat[0]) &&
            mat_of(&p->k, cols, &p->batch, !m->first, &mat[1]) &&
            mat_of(rows, cols, &p->batch, 2, &mat[2]) && !mat[2].trans &&
            set_desc(m, mat, row, math);
  for (int i = 0; ok && i < 3; i++)
    ok = set_layout(&m->layout[i], types[row].data, &mat[i], p->batch.ext);
  if (ok && find_algo(m, p, mat, most)) return true;
  drop(m);
  return false;
}

static Foreign *make(Arena *a, CudaDevice *d, const Kernel *k, CudaMath math, int64_t most) {
  ForeignProduct p;
  ForeignTail tail;
  if (!foreign_product(k, &p) || p.batch.ext > INT32_MAX) return NULL;
  Matmul *m = arena_new_of(a, Matmul);
  bool across = p.n.ext == 1 || p.n.step[2] != 1;
  const ForeignAxis *rows = across && p.m.step[2] == 1 ? &p.m : &p.n;
  const ForeignAxis *cols = rows == &p.m ? &p.n : &p.m;
  int64_t size = dtype_info[p.type].size;
  foreign_start(&m->f, LIBRARY_CUBLAS, d, k);
  m->first = rows == &p.n;
  m->wide = p.type == DT_FLOAT64;
  m->outer = p.outer.ext;
  for (int t = 0; t < 3; t++) {
    m->at[t] = t < 2 ? p.at[t] * size : 0;
    m->outer_step[t] = p.outer.step[t] * size;
  }
  m->bias = foreign_tail(k, &tail) && tail.bias >= 0 && tail.loop == rows->loop ? tail.bias : -1;
  if (m->bias >= 0) {
    foreign_whole(&m->f);
    if (prepare(m, &p, rows, cols, math, most)) return &m->f;
    err_clear();
    m->bias = -1;
    foreign_start(&m->f, LIBRARY_CUBLAS, d, k);
  }
  return prepare(m, &p, rows, cols, math, most) ? &m->f : NULL;
}

static bool run(const Foreign *f, const CUdeviceptr *at, CUstream s) {
  const Matmul *m = (const Matmul *)f;
  const Kernel *k = f->kernel;
  static const double one = 1, zero = 0;
  static const float one_f = 1, zero_f = 0;
  const void *alpha = m->wide ? (const void *)&one : &one_f,
             *beta = m->wide ? (const void *)&zero : &zero_f;
  CUdeviceptr x[2], to = at[f->result] + (CUdeviceptr)f->result_at;
  for (int i = 0; i < 2; i++) x[i] = at[kernel_input(k, k->core->in[i])] + (CUdeviceptr)m->at[i];
  CUdeviceptr ws = f->workspace ? at[k->inputs.n + k->outputs.n] + (CUdeviceptr)f->workspace_at : 0;
  if (m->bias >= 0 && !LIB(cublasLtMatmulDescSetAttribute, m->desc,
                           CUBLASLT_MATMUL_DESC_BIAS_POINTER, &at[m->bias], sizeof at[m->bias]))
    return false;
  for (int64_t i = 0; i < m->outer; i++) {
    CUdeviceptr a = x[m->first] + (CUdeviceptr)(i * m->outer_step[m->first]),
                b = x[!m->first] + (CUdeviceptr)(i * m->outer_step[!m->first]),
                c = to + (CUdeviceptr)(i * m->outer_step[2]);
    if (!LIB(cublasLtMatmul, f->handle, m->desc, alpha, a, m->layout[0], b, m->layout[1], beta, c,
             m->layout[2], c, m->layout[2], &m->algo, ws, (size_t)f->workspace, s))
      return false;
  }
  return true;
}

static void free_matmul(Foreign *f) { drop((Matmul *)f); }
static bool open_handle(void **handle) { return LIB(cublasLtCreate, handle); }
static void close_handle(void *handle) { LIB_DROP(cublasLtDestroy, handle); }

const ForeignCalls cublas_calls = {
    .make = make, .run = run, .free = free_matmul, .open = open_handle, .close = close_handle};
