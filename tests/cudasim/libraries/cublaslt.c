/* libcublasLt: matrix products over OpenBLAS, in doubles. What the real library refuses is refused: addresses that are not as
 * aligned as the heuristic was told, too small a workspace, columns that overlap. The heuristic offers an algorithm that adds
 * parts of sums in any order first, if it may. */
#include "api.h"
#include <cblas.h>
#include <stdlib.h>
#include <string.h>

#define API __attribute__((visibility("default"))) cublasStatus_t
#define ENTER                                                                                      \
  if (cudasim_call(__func__, 0)) return CUBLAS_STATUS_EXECUTION_FAILED
#define NEED(x)                                                                                    \
  if (!(x)) return CUBLAS_STATUS_INVALID_VALUE

typedef struct Desc {
  int compute, scale, trans[2], epilogue;
  uint64_t bias;
} Desc;
typedef struct Layout {
  int type;
  uint64_t rows, cols;
  int64_t ld, stride;
  int batch;
} Layout;
typedef struct Preference {
  uint64_t most;
  uint32_t reductions, align[4];
} Preference;
enum { IN_PLACE = 1, BY_TYPE = 2, WORKSPACE = 4096 };
typedef struct Algo {
  uint64_t magic, reduction, workspace, align[4];
} Algo;
_Static_assert(sizeof(Algo) <= sizeof(cublasLtMatmulAlgo_t), "an algorithm's own data");
static const uint64_t magic = 0x6d696c74616d6c74;

__attribute__((visibility("default"))) size_t cublasLtGetVersion(void) {
  const char *v = getenv("CUDASIM_CUBLAS");
  return v ? (size_t)atol(v) : 130100;
}

static cublasStatus_t create(void *to, size_t bytes, const char *what) {
  void *p = cudasim_object(bytes, what);
  memcpy(to, &p, sizeof p);
  return CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t destroy(const char *call, void *p, const char *what) {
  CUresult r = cudasim_call(call, 1);
  NEED(cudasim_is(p, what));
  cudasim_drop(p);
  return r ? CUBLAS_STATUS_EXECUTION_FAILED : CUBLAS_STATUS_SUCCESS;
}

API cublasLtCreate(cublasLtHandle_t *lightHandle) {
  ENTER;
  return create(lightHandle, 1, "cublasLtHandle_t");
}

API cublasLtDestroy(cublasLtHandle_t lightHandle) {
  return destroy(__func__, lightHandle, "cublasLtHandle_t");
}

API cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *matmulDesc, cublasComputeType_t computeType,
                             cudaDataType_t scaleType) {
  ENTER;
  create(matmulDesc, sizeof(Desc), "cublasLtMatmulDesc_t");
  *(Desc *)(void *)*matmulDesc =
      (Desc){.compute = (int)computeType, .scale = (int)scaleType, .epilogue = 1};
  return CUBLAS_STATUS_SUCCESS;
}

API cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t matmulDesc) {
  return destroy(__func__, matmulDesc, "cublasLtMatmulDesc_t");
}

static cublasStatus_t set(void *to, size_t size, const void *from, size_t n) {
  NEED(from && size == n);
  memcpy(to, from, n);
  return CUBLAS_STATUS_SUCCESS;
}

API cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t matmulDesc,
                                   cublasLtMatmulDescAttributes_t attr, const void *buf,
                                   size_t sizeInBytes) {
  ENTER;
  Desc *d = (Desc *)(void *)matmulDesc;
  NEED(cudasim_is(d, "cublasLtMatmulDesc_t"));
  switch ((int)attr) {
  case 3: return set(&d->trans[0], 4, buf, sizeInBytes);
  case 4: return set(&d->trans[1], 4, buf, sizeInBytes);
  case 7: return set(&d->epilogue, 4, buf, sizeInBytes);
  case 8: return set(&d->bias, 8, buf, sizeInBytes);
  default: return CUBLAS_STATUS_NOT_SUPPORTED;
  }
}

API cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *matLayout, cudaDataType type, uint64_t rows,
                               uint64_t cols, int64_t ld) {
  ENTER;
  NEED(rows && cols && ld >= (int64_t)rows);
  create(matLayout, sizeof(Layout), "cublasLtMatrixLayout_t");
  *(Layout *)(void *)*matLayout =
      (Layout){.type = (int)type, .rows = rows, .cols = cols, .ld = ld, .batch = 1};
  return CUBLAS_STATUS_SUCCESS;
}

API cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t matLayout) {
  return destroy(__func__, matLayout, "cublasLtMatrixLayout_t");
}

API cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t matLayout,
                                     cublasLtMatrixLayoutAttribute_t attr, const void *buf,
                                     size_t sizeInBytes) {
  ENTER;
  Layout *l = (Layout *)(void *)matLayout;
  NEED(cudasim_is(l, "cublasLtMatrixLayout_t"));
  switch ((int)attr) {
  case 5: return set(&l->batch, 4, buf, sizeInBytes);
  case 6: return set(&l->stride, 8, buf, sizeInBytes);
  default: return CUBLAS_STATUS_NOT_SUPPORTED;
  }
}

API cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *pref) {
  ENTER;
  create(pref, sizeof(Preference), "cublasLtMatmulPreference_t");
  *(Preference *)(void *)*pref = (Preference){.reductions = 7, .align = {256, 256, 256, 256}};
  return CUBLAS_STATUS_SUCCESS;
}

API cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t pref) {
  return destroy(__func__, pref, "cublasLtMatmulPreference_t");
}

API cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t pref,
                                         cublasLtMatmulPreferenceAttributes_t attr, const void *buf,
                                         size_t sizeInBytes) {
  ENTER;
  Preference *p = (Preference *)(void *)pref;
  NEED(cudasim_is(p, "cublasLtMatmulPreference_t"));
  int a = (int)attr;
  return a == 1             ? set(&p->most, 8, buf, sizeInBytes)
         : a == 3           ? set(&p->reductions, 4, buf, sizeInBytes)
         : a >= 5 && a <= 8 ? set(&p->align[a - 5], 4, buf, sizeInBytes)
                            : CUBLAS_STATUS_NOT_SUPPORTED;
}

/* ---- products ---- */

typedef struct Job {
  Desc d;
  Layout l[4]; /* A, B, C, D */
  uint64_t at[4], workspace, bytes;
  double alpha, beta;
} Job;

/* -1: not served. */
static int number_of(int type) {
  static const int known[] = {0, 1, 2, 14};
  for (int i = 0; i < 4; i++)
    if (known[i] == type) return i;
  return -1;
}

/* Do the shapes fit, and the types one another? */
static bool fits(const Job *j) {
  const Layout *a = &j->l[0], *b = &j->l[1], *c = &j->l[2], *d = &j->l[3];
  uint64_t m = j->d.trans[0] ? a->cols : a->rows, k = j->d.trans[0] ? a->rows : a->cols;
  uint64_t n = j->d.trans[1] ? b->rows : b->cols, kb = j->d.trans[1] ? b->cols : b->rows;
  bool wide = d->type == 1;
  return number_of(d->type) >= 0 && a->type == d->type && b->type == d->type &&
         c->type == d->type && k == kb && m == d->rows && n == d->cols && c->rows == m &&
         c->cols == n && a->batch == d->batch && b->batch == d->batch && c->batch == d->batch &&
         j->d.scale == wide && (j->d.compute == 70 || j->d.compute == 71) == wide &&
         (j->d.epilogue == 1 || j->d.epilogue == 4);
}

/* Column by column, as one piece; false: a fault. */
static bool read_matrix(const Job *j, int x, int batch, double *to) {
  const Layout *l = &j->l[x];
  Number t = (Number)number_of(l->type);
  size_t size = number_size(t);
  int how = j->d.compute == 77 ? ROUND_TF32 : j->d.compute == 75 ? ROUND_BF16 : ROUND_NOTHING;
  for (uint64_t c = 0; c < l->cols; c++) {
    uint64_t at = j->at[x] + (uint64_t)(batch * l->stride + (int64_t)c * l->ld) * size;
    const void *p = cudasim_memory("cublasLtMatmul", at, l->rows * size, LIBRARY_READS);
    if (!p) return false;
    for (uint64_t r = 0; r < l->rows; r++)
      *to++ = number_round(number_get(t, p, (int64_t)r), x < 2 ? how : ROUND_NOTHING);
  }
  return true;
}

static bool write_matrix(const Job *j, int batch, const double *from) {
  const Layout *l = &j->l[3];
  Number t = (Number)number_of(l->type);
  size_t size = number_size(t);
  const void *bias = NULL;
  if (j->d.epilogue == 4) {
    bias = cudasim_memory("cublasLtMatmul", j->d.bias, l->rows * size, LIBRARY_READS);
    if (!bias) return false;
  }
  for (uint64_t c = 0; c < l->cols; c++) {
    uint64_t at = j->at[3] + (uint64_t)(batch * l->stride + (int64_t)c * l->ld) * size;
    void *p = cudasim_memory("cublasLtMatmul", at, l->rows * size, LIBRARY_WRITES);
    if (!p) return false;
    for (uint64_t r = 0; r < l->rows; r++)
      number_set(t, p, (int64_t)r, *from++ + (bias ? number_get(t, bias, (int64_t)r) : 0));
  }
  return true;
}

static void run(const void *data) {
  const Job *j = data;
  int m = (int)j->l[3].rows, n = (int)j->l[3].cols;
  int k = (int)(j->d.trans[0] ? j->l[0].rows : j->l[0].cols);
  double *x[3];
  if (j->bytes && !cudasim_memory("cublasLtMatmul", j->workspace, j->bytes, LIBRARY_SCRATCH))
    return;
  for (int i = 0; i < 3; i++) x[i] = calloc(j->l[i].rows * j->l[i].cols, sizeof(double));
  bool ok = x[0] && x[1] && x[2];
  for (int b = 0; ok && b < j->l[3].batch; b++) {
    ok = read_matrix(j, 0, b, x[0]) && read_matrix(j, 1, b, x[1]) &&
         (j->beta == 0 || read_matrix(j, 2, b, x[2]));
    if (!ok) break;
    cblas_dgemm(CblasColMajor, j->d.trans[0] ? CblasTrans : CblasNoTrans,
                j->d.trans[1] ? CblasTrans : CblasNoTrans, m, n, k, j->alpha, x[0],
                (int)j->l[0].rows, x[1], (int)j->l[1].rows, j->beta, x[2], m);
    ok = write_matrix(j, b, x[2]);
  }
  for (int i = 0; i < 3; i++) free(x[i]);
}

static bool set_job(Job *j, cublasLtMatmulDesc_t d, const cublasLtMatrixLayout_t l[4]) {
  if (!cudasim_is(d, "cublasLtMatmulDesc_t")) return false;
  j->d = *(const Desc *)(const void *)d;
  for (int i = 0; i < 4; i++) {
    if (!cudasim_is(l[i], "cublasLtMatrixLayout_t")) return false;
    j->l[i] = *(const Layout *)(const void *)l[i];
  }
  return fits(j);
}

API cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t lightHandle, cublasLtMatmulDesc_t operationDesc,
                                   cublasLtMatrixLayout_t Adesc, cublasLtMatrixLayout_t Bdesc,
                                   cublasLtMatrixLayout_t Cdesc, cublasLtMatrixLayout_t Ddesc,
                                   cublasLtMatmulPreference_t preference, int requestedAlgoCount,
                                   cublasLtMatmulHeuristicResult_t heuristicResultsArray[],
                                   int *returnAlgoCount) {
  ENTER;
  Job j = {0};
  const Preference *p = (const Preference *)(const void *)preference;
  NEED(cudasim_is(lightHandle, "cublasLtHandle_t") && cudasim_is(p, "cublasLtMatmulPreference_t"));
  NEED(set_job(&j, operationDesc, (cublasLtMatrixLayout_t[]){Adesc, Bdesc, Cdesc, Ddesc}));
  *returnAlgoCount = 0;
  for (uint64_t r = IN_PLACE; r <= BY_TYPE && *returnAlgoCount < requestedAlgoCount; r++) {
    cublasLtMatmulHeuristicResult_t *to = &heuristicResultsArray[*returnAlgoCount];
    Algo a = {magic, r, p->most < WORKSPACE ? p->most : WORKSPACE, {0}};
    for (int i = 0; i < 4; i++) a.align[i] = p->align[i] < 16 ? p->align[i] : 16;
    if (!(p->reductions & r)) continue;
    memset(to, 0, sizeof *to);
    memcpy(&to->algo, &a, sizeof a);
    to->workspaceSize = a.workspace;
    ++*returnAlgoCount;
  }
  return *returnAlgoCount ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}

API cublasLtMatmulAlgoConfigGetAttribute(const cublasLtMatmulAlgo_t *algo,
                                         cublasLtMatmulAlgoConfigAttributes_t attr, void *buf,
                                         size_t sizeInBytes, size_t *sizeWritten) {
  ENTER;
  Algo a;
  memcpy(&a, algo, sizeof a);
  uint32_t r = (uint32_t)a.reduction;
  NEED(a.magic == magic && (int)attr == 3 && sizeInBytes == sizeof r);
  memcpy(buf, &r, sizeof r);
  *sizeWritten = sizeof r;
  return CUBLAS_STATUS_SUCCESS;
}

static double scale(const Desc *d, const void *p) {
  return d->scale == 1 ? *(const double *)p : *(const float *)p;
}

API cublasLtMatmul(cublasLtHandle_t lightHandle, cublasLtMatmulDesc_t computeDesc,
                   const void *alpha, const void *A, cublasLtMatrixLayout_t Adesc, const void *B,
                   cublasLtMatrixLayout_t Bdesc, const void *beta, const void *C,
                   cublasLtMatrixLayout_t Cdesc, void *D, cublasLtMatrixLayout_t Ddesc,
                   const cublasLtMatmulAlgo_t *algo, void *workspace, size_t workspaceSizeInBytes,
                   cudaStream_t stream) {
  ENTER;
  Job j = {0};
  Algo a;
  NEED(cudasim_is(lightHandle, "cublasLtHandle_t") && algo);
  NEED(set_job(&j, computeDesc, (cublasLtMatrixLayout_t[]){Adesc, Bdesc, Cdesc, Ddesc}));
  memcpy(&a, algo, sizeof a);
  NEED(a.magic == magic && workspaceSizeInBytes >= a.workspace);
  const void *at[4] = {A, B, C, D};
  for (int i = 0; i < 4; i++) {
    j.at[i] = (uint64_t)(uintptr_t)at[i];
    if (j.at[i] % a.align[i]) return CUBLAS_STATUS_NOT_SUPPORTED;
  }
  j.workspace = (uint64_t)(uintptr_t)workspace;
  j.bytes = workspaceSizeInBytes;
  NEED(j.workspace % 16 == 0);
  j.alpha = scale(&j.d, alpha);
  j.beta = scale(&j.d, beta);
  return cudasim_submit((CUstream)stream, run, &j, sizeof j) ? CUBLAS_STATUS_EXECUTION_FAILED
                                                             : CUBLAS_STATUS_SUCCESS;
}
