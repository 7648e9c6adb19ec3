/* libcudnn: convolutions and their gradients by plain loops, sums in doubles. What the real library refuses is refused: formats
 * that differ, results of another size, too small a workspace. The heuristics offer algorithms that are not deterministic, less
 * exact, or want a terabyte first; who takes one gets wrong numbers. Default math rounds float inputs to tf32, as a GPU may. */
#include "api.h"
#include <stdlib.h>
#include <string.h>

#define API __attribute__((visibility("default"))) cudnnStatus_t
#define ENTER                                                                                      \
  if (cudasim_call(__func__, 0)) return CUDNN_STATUS_EXECUTION_FAILED
#define NEED(x)                                                                                    \
  if (!(x)) return CUDNN_STATUS_BAD_PARAM

enum { SPACE = 3, DIMS = SPACE + 2, NCHW = 0, NHWC = 1, FMA = 3, WORKSPACE = 1000, GOOD = 1 };
typedef struct Tensor {
  Number type;
  int n, dims[DIMS];
  int64_t step[DIMS];
} Tensor;
typedef struct Filter {
  Tensor t;
  int format;
} Filter;
typedef struct Conv {
  int n, pad[SPACE], stride[SPACE], dilation[SPACE], compute, groups, math;
} Conv;
typedef struct Handle {
  CUstream stream;
} Handle;

__attribute__((visibility("default"))) size_t cudnnGetVersion(void) {
  const char *v = getenv("CUDASIM_CUDNN");
  return v ? (size_t)atol(v) : 91900;
}

static cudnnStatus_t create(void *to, size_t bytes, const char *what) {
  void *p = cudasim_object(bytes, what);
  memcpy(to, &p, sizeof p);
  return CUDNN_STATUS_SUCCESS;
}

static cudnnStatus_t destroy(const char *call, void *p, const char *what) {
  CUresult r = cudasim_call(call, 1);
  NEED(cudasim_is(p, what));
  cudasim_drop(p);
  return r ? CUDNN_STATUS_EXECUTION_FAILED : CUDNN_STATUS_SUCCESS;
}

API cudnnCreate(cudnnHandle_t *handle) {
  ENTER;
  return create(handle, sizeof(Handle), "cudnnHandle_t");
}
API cudnnDestroy(cudnnHandle_t handle) { return destroy(__func__, handle, "cudnnHandle_t"); }

API cudnnSetStream(cudnnHandle_t handle, cudaStream_t streamId) {
  ENTER;
  NEED(cudasim_is(handle, "cudnnHandle_t"));
  ((Handle *)(void *)handle)->stream = (CUstream)streamId;
  return CUDNN_STATUS_SUCCESS;
}

/* ---- descriptors ---- */

/* -1: not served. */
static int number_of(int type) {
  static const int known[] = {0, 1, 2, 9};
  for (int i = 0; i < 4; i++)
    if (known[i] == type) return i;
  return -1;
}

API cudnnCreateTensorDescriptor(cudnnTensorDescriptor_t *tensorDesc) {
  ENTER;
  return create(tensorDesc, sizeof(Tensor), "cudnnTensorDescriptor_t");
}
API cudnnDestroyTensorDescriptor(cudnnTensorDescriptor_t tensorDesc) {
  return destroy(__func__, tensorDesc, "cudnnTensorDescriptor_t");
}

API cudnnSetTensorNdDescriptor(cudnnTensorDescriptor_t tensorDesc, cudnnDataType_t dataType,
                               int nbDims, const int dimA[], const int strideA[]) {
  ENTER;
  Tensor *t = (Tensor *)(void *)tensorDesc;
  NEED(cudasim_is(t, "cudnnTensorDescriptor_t") && nbDims >= 4 && nbDims <= DIMS);
  NEED(number_of((int)dataType) >= 0);
  t->type = (Number)number_of((int)dataType);
  t->n = nbDims;
  for (int d = 0; d < nbDims; d++) {
    NEED(dimA[d] > 0 && strideA[d] > 0);
    t->dims[d] = dimA[d];
    t->step[d] = strideA[d];
  }
  return CUDNN_STATUS_SUCCESS;
}

API cudnnCreateFilterDescriptor(cudnnFilterDescriptor_t *filterDesc) {
  ENTER;
  return create(filterDesc, sizeof(Filter), "cudnnFilterDescriptor_t");
}
API cudnnDestroyFilterDescriptor(cudnnFilterDescriptor_t filterDesc) {
  return destroy(__func__, filterDesc, "cudnnFilterDescriptor_t");
}

static void pack(Tensor *t, int format) {
  int64_t s = format == NHWC ? t->dims[1] : 1;
  for (int d = t->n - 1; d >= 2; s *= t->dims[d--]) t->step[d] = s;
  t->step[1] = format == NHWC ? 1 : s;
  t->step[0] = format == NHWC ? s : s * t->dims[1];
}

API cudnnSetFilterNdDescriptor(cudnnFilterDescriptor_t filterDesc, cudnnDataType_t dataType,
                               cudnnTensorFormat_t format, int nbDims, const int filterDimA[]) {
  ENTER;
  Filter *f = (Filter *)(void *)filterDesc;
  NEED(cudasim_is(f, "cudnnFilterDescriptor_t") && nbDims >= 4 && nbDims <= DIMS);
  NEED(number_of((int)dataType) >= 0 && ((int)format == NCHW || (int)format == NHWC));
  f->t.type = (Number)number_of((int)dataType);
  f->t.n = nbDims;
  f->format = (int)format;
  for (int d = 0; d < nbDims; d++) NEED((f->t.dims[d] = filterDimA[d]) > 0);
  pack(&f->t, f->format);
  return CUDNN_STATUS_SUCCESS;
}

API cudnnCreateConvolutionDescriptor(cudnnConvolutionDescriptor_t *convDesc) {
  ENTER;
  create(convDesc, sizeof(Conv), "cudnnConvolutionDescriptor_t");
  ((Conv *)(void *)*convDesc)->groups = 1;
  return CUDNN_STATUS_SUCCESS;
}
API cudnnDestroyConvolutionDescriptor(cudnnConvolutionDescriptor_t convDesc) {
  return destroy(__func__, convDesc, "cudnnConvolutionDescriptor_t");
}

API cudnnSetConvolutionNdDescriptor(cudnnConvolutionDescriptor_t convDesc, int arrayLength,
                                    const int padA[], const int filterStrideA[],
                                    const int dilationA[], cudnnConvolutionMode_t mode,
                                    cudnnDataType_t computeType) {
  ENTER;
  Conv *c = (Conv *)(void *)convDesc;
  NEED(cudasim_is(c, "cudnnConvolutionDescriptor_t") && arrayLength >= 2 && arrayLength <= SPACE);
  if ((int)mode != 1) return CUDNN_STATUS_NOT_SUPPORTED;
  c->n = arrayLength;
  c->compute = (int)computeType;
  for (int i = 0; i < arrayLength; i++) {
    NEED(padA[i] >= 0 && filterStrideA[i] > 0 && dilationA[i] > 0);
    c->pad[i] = padA[i], c->stride[i] = filterStrideA[i], c->dilation[i] = dilationA[i];
  }
  return CUDNN_STATUS_SUCCESS;
}

API cudnnSetConvolutionGroupCount(cudnnConvolutionDescriptor_t convDesc, int groupCount) {
  ENTER;
  NEED(cudasim_is(convDesc, "cudnnConvolutionDescriptor_t") && groupCount > 0);
  ((Conv *)(void *)convDesc)->groups = groupCount;
  return CUDNN_STATUS_SUCCESS;
}

API cudnnSetConvolutionMathType(cudnnConvolutionDescriptor_t convDesc, cudnnMathType_t mathType) {
  ENTER;
  NEED(cudasim_is(convDesc, "cudnnConvolutionDescriptor_t"));
  ((Conv *)(void *)convDesc)->math = (int)mathType;
  return CUDNN_STATUS_SUCCESS;
}

/* ---- work ---- */

typedef enum Pass { FORWARD, DATA, FILTER, TRANSFORM } Pass;
typedef struct Job {
  Pass pass;
  Tensor image, filter, result;
  Conv c;
  uint64_t at[3], workspace, bytes; /* image, filter, result */
  double alpha, beta;
  int algo;
} Job;

static int64_t span(const Tensor *t) {
  int64_t last = 0;
  for (int d = 0; d < t->n; d++) last += (t->dims[d] - 1) * t->step[d];
  return last + 1;
}

static int64_t count(const Tensor *t) {
  int64_t n = 1;
  for (int d = 0; d < t->n; d++) n *= t->dims[d];
  return n;
}

/* The element of a row-major position. */
static int64_t place(const Tensor *t, int64_t i) {
  int64_t at = 0;
  for (int d = t->n - 1; d >= 0; i /= t->dims[d--]) at += i % t->dims[d] * t->step[d];
  return at;
}

static void *memory(const Tensor *t, uint64_t at, LibraryUse use) {
  return cudasim_memory("cudnn", at, (uint64_t)span(t) * number_size(t->type), use);
}

/* Row-major, as doubles. NULL: a fault. */
static double *read_tensor(const Tensor *t, uint64_t at, int how) {
  const void *p = memory(t, at, LIBRARY_READS);
  double *to = p ? malloc((size_t)count(t) * sizeof *to) : NULL;
  for (int64_t i = 0; to && i < count(t); i++)
    to[i] = number_round(number_get(t->type, p, place(t, i)), how);
  return to;
}

static void write_tensor(const Tensor *t, uint64_t at, const double *from, double alpha) {
  void *p = memory(t, at, LIBRARY_WRITES);
  for (int64_t i = 0; p && i < count(t); i++) number_set(t->type, p, place(t, i), alpha * from[i]);
}

/* Positions of a result along dimension i whose tap lies in the image: first..end-1; *at: the image's place of position 0. */
static void inside(const Job *j, int i, int tap, int *first, int *end, int *at) {
  int size = j->image.dims[2 + i], n = j->result.dims[2 + i], s = j->c.stride[i];
  *at = tap * j->c.dilation[i] - j->c.pad[i];
  *first = *at >= 0 ? 0 : (-*at + s - 1) / s;
  *end = *at >= size ? 0 : (size - *at + s - 1) / s;
  if (*end > n) *end = n;
}

/* All products of one tap and pair of channels. x, y: the first elements of image and result. */
static void multiply(const Job *j, double *x, double *w, double *y, const int tap[SPACE]) {
  int from[SPACE], end[SPACE], at[SPACE], dims[SPACE], rows[SPACE];
  for (int i = 0; i < SPACE; i++) {
    bool there = i < j->c.n;
    from[i] = at[i] = 0;
    end[i] = dims[i] = rows[i] = 1;
    if (!there) continue;
    inside(j, i, tap[i], &from[i], &end[i], &at[i]);
    dims[i] = j->image.dims[2 + i];
    rows[i] = j->result.dims[2 + i];
  }
  int s[SPACE];
  for (int i = 0; i < SPACE; i++) s[i] = i < j->c.n ? j->c.stride[i] : 1;
  double sum = 0, weight = *w;
  for (int a = from[0]; a < end[0]; a++)
    for (int b = from[1]; b < end[1]; b++) {
      int64_t xa = a * s[0] + at[0], xb = b * s[1] + at[1];
      double *xr = x + (xa * dims[1] + xb) * dims[2] + at[2];
      double *yr = y + ((int64_t)a * rows[1] + b) * rows[2];
      for (int c = from[2]; c < end[2]; c++) {
        if (j->pass == FORWARD) yr[c] += xr[c * s[2]] * weight;
        if (j->pass == DATA) xr[c * s[2]] += yr[c] * weight;
        if (j->pass == FILTER) sum += xr[c * s[2]] * yr[c];
      }
    }
  if (j->pass == FILTER) *w += sum;
}

static void convolve(const Job *j, double *x, double *w, double *y) {
  int taps = 1, pixels = 1, positions = 1, tap[SPACE] = {0};
  for (int i = 0; i < j->c.n; i++) {
    taps *= j->filter.dims[2 + i];
    pixels *= j->image.dims[2 + i];
    positions *= j->result.dims[2 + i];
  }
  int inputs = j->filter.dims[1], outputs = j->filter.dims[0], own = outputs / j->c.groups;
  for (int n = 0; n < j->image.dims[0]; n++)
    for (int o = 0; o < outputs; o++)
      for (int c = 0; c < inputs; c++)
        for (int t = 0; t < taps; t++) {
          int rest = t;
          for (int i = j->c.n - 1; i >= 0; rest /= j->filter.dims[2 + i--])
            tap[i] = rest % j->filter.dims[2 + i];
          int64_t image = (int64_t)n * j->image.dims[1] + o / own * inputs + c;
          multiply(j, x + image * pixels, w + ((int64_t)o * inputs + c) * taps + t,
                   y + ((int64_t)n * outputs + o) * positions, tap);
        }
}

static void run(const void *data) {
  const Job *j = data;
  static const int written[] = {[FORWARD] = 2, [DATA] = 0, [FILTER] = 1};
  const Tensor *t[3] = {&j->image, &j->filter, &j->result};
  int how = j->image.type == NUMBER_FLOAT && j->c.math != FMA ? ROUND_TF32 : ROUND_NOTHING;
  double *x[3];
  bool ok = !j->bytes || cudasim_memory("cudnn", j->workspace, j->bytes, LIBRARY_SCRATCH);
  for (int i = 0; i < 3; i++) {
    if (i == written[j->pass])
      x[i] = calloc((size_t)count(t[i]), sizeof *x[i]);
    else
      x[i] = ok ? read_tensor(t[i], j->at[i], how) : NULL;
    ok &= x[i] != NULL;
  }
  if (ok) convolve(j, x[0], x[1], x[2]);
  double wrong = j->algo == GOOD ? 1 : 1.5;
  int w = written[j->pass];
  if (ok) write_tensor(t[w], j->at[w], x[w], j->alpha * wrong);
  for (int i = 0; i < 3; i++) free(x[i]);
}

static void run_transform(const void *data) {
  const Job *j = data;
  double *x = read_tensor(&j->image, j->at[0], ROUND_NOTHING);
  if (x) write_tensor(&j->result, j->at[2], x, j->alpha);
  free(x);
}

static double scale(const Tensor *t, const void *p) {
  return t->type == NUMBER_DOUBLE ? *(const double *)p : *(const float *)p;
}

static cudnnStatus_t submit(cudnnHandle_t h, LibraryWork *work, const Job *j) {
  const Handle *own = (const Handle *)(const void *)h;
  if (j->beta != 0) return CUDNN_STATUS_NOT_SUPPORTED;
  return cudasim_submit(own->stream, work, j, sizeof *j) ? CUDNN_STATUS_EXECUTION_FAILED
                                                         : CUDNN_STATUS_SUCCESS;
}

API cudnnTransformTensor(cudnnHandle_t handle, const void *alpha,
                         const cudnnTensorDescriptor_t xDesc, const void *x, const void *beta,
                         const cudnnTensorDescriptor_t yDesc, void *y) {
  ENTER;
  NEED(cudasim_is(handle, "cudnnHandle_t") && cudasim_is(xDesc, "cudnnTensorDescriptor_t") &&
       cudasim_is(yDesc, "cudnnTensorDescriptor_t"));
  Job j = {.pass = TRANSFORM,
           .image = *(const Tensor *)(const void *)xDesc,
           .result = *(const Tensor *)(const void *)yDesc};
  NEED(j.image.n == j.result.n && j.image.type == j.result.type);
  for (int d = 0; d < j.image.n; d++) NEED(j.image.dims[d] == j.result.dims[d]);
  j.at[0] = (uint64_t)(uintptr_t)x;
  j.at[2] = (uint64_t)(uintptr_t)y;
  j.alpha = scale(&j.image, alpha);
  j.beta = scale(&j.image, beta);
  return submit(handle, run_transform, &j);
}

/* ---- convolutions ---- */

static bool lies(const Tensor *t, int format) {
  Tensor p = *t;
  bool same = true;
  pack(&p, format);
  for (int d = 0; d < t->n; d++) same &= t->dims[d] == 1 || t->step[d] == p.step[d];
  return same;
}

static cudnnStatus_t set_job(Job *j, Pass pass, const void *x, const void *w, const void *c,
                             const void *y) {
  NEED(cudasim_is(x, "cudnnTensorDescriptor_t") && cudasim_is(w, "cudnnFilterDescriptor_t") &&
       cudasim_is(c, "cudnnConvolutionDescriptor_t") && cudasim_is(y, "cudnnTensorDescriptor_t"));
  const Filter *f = w;
  *j = (Job){.pass = pass,
             .image = *(const Tensor *)x,
             .filter = f->t,
             .result = *(const Tensor *)y,
             .c = *(const Conv *)c};
  const Tensor *i = &j->image, *r = &j->result;
  NEED(i->n == f->t.n && r->n == i->n && j->c.n == i->n - 2);
  NEED(i->type == f->t.type && r->type == i->type);
  NEED(i->dims[0] == r->dims[0] && i->dims[1] == f->t.dims[1] * j->c.groups &&
       r->dims[1] == f->t.dims[0] && r->dims[1] % j->c.groups == 0);
  NEED((j->c.compute == 1) == (i->type == NUMBER_DOUBLE));
  for (int d = 0; d < j->c.n; d++) {
    int reach = i->dims[2 + d] + 2 * j->c.pad[d] - j->c.dilation[d] * (f->t.dims[2 + d] - 1) - 1;
    NEED(reach >= 0 && reach / j->c.stride[d] + 1 == r->dims[2 + d]);
  }
  if (!lies(i, f->format) || !lies(r, f->format)) return CUDNN_STATUS_NOT_SUPPORTED;
  return CUDNN_STATUS_SUCCESS;
}

/* The results for people who look at determinism, status, memory and kind of algorithm. */
static void suggest(Pass pass, int math, int most, int *n, void *results, size_t size) {
  const cudnnConvolutionFwdAlgoPerf_t all[] = {
      {.algo = pass == FORWARD ? 6 : 0, .determinism = pass == FORWARD},
      {.algo = 5, .determinism = 1},
      {.algo = GOOD, .determinism = 1, .memory = (size_t)1 << 40},
      {.algo = 2, .status = CUDNN_STATUS_NOT_SUPPORTED, .determinism = 1},
      {.algo = GOOD, .determinism = 1, .memory = WORKSPACE}};
  int have = (int)(sizeof all / sizeof *all);
  for (*n = 0; *n < most && *n < have; ++*n) {
    cudnnConvolutionFwdAlgoPerf_t r = all[*n];
    *(int *)(void *)&r.mathType = math;
    memcpy((char *)results + (size_t)*n * size, &r, size);
  }
}

#define HEURISTIC(name, pass, type, p1, d1, p2, d2, p3, d3, x, w, y)                               \
  API name(cudnnHandle_t handle, const p1 d1, const p2 d2,                                         \
           const cudnnConvolutionDescriptor_t convDesc, const p3 d3, const int requestedAlgoCount, \
           int *returnedAlgoCount, type *perfResults) {                                            \
    ENTER;                                                                                         \
    Job j;                                                                                         \
    NEED(cudasim_is(handle, "cudnnHandle_t"));                                                     \
    cudnnStatus_t s = set_job(&j, pass, x, w, convDesc, y);                                        \
    if (s == CUDNN_STATUS_SUCCESS)                                                                 \
      suggest(pass, j.c.math, requestedAlgoCount, returnedAlgoCount, perfResults,                  \
              sizeof *perfResults);                                                                \
    return s;                                                                                      \
  }
HEURISTIC(cudnnGetConvolutionForwardAlgorithm_v7, FORWARD, cudnnConvolutionFwdAlgoPerf_t,
          cudnnTensorDescriptor_t, srcDesc, cudnnFilterDescriptor_t, filterDesc,
          cudnnTensorDescriptor_t, destDesc, srcDesc, filterDesc, destDesc)
HEURISTIC(cudnnGetConvolutionBackwardDataAlgorithm_v7, DATA, cudnnConvolutionBwdDataAlgoPerf_t,
          cudnnFilterDescriptor_t, filterDesc, cudnnTensorDescriptor_t, diffDesc,
          cudnnTensorDescriptor_t, gradDesc, gradDesc, filterDesc, diffDesc)
HEURISTIC(cudnnGetConvolutionBackwardFilterAlgorithm_v7, FILTER,
          cudnnConvolutionBwdFilterAlgoPerf_t, cudnnTensorDescriptor_t, srcDesc,
          cudnnTensorDescriptor_t, diffDesc, cudnnFilterDescriptor_t, gradDesc, srcDesc, gradDesc,
          diffDesc)

static cudnnStatus_t start(cudnnHandle_t h, Job *j, int algo, const void *x, const void *w,
                           const void *y, void *workspace, size_t bytes, const void *alpha,
                           const void *beta) {
  const void *at[3] = {x, w, y};
  NEED(cudasim_is(h, "cudnnHandle_t") && (algo != GOOD || bytes >= WORKSPACE));
  for (int i = 0; i < 3; i++) j->at[i] = (uint64_t)(uintptr_t)at[i];
  j->workspace = (uint64_t)(uintptr_t)workspace;
  j->bytes = bytes;
  j->algo = algo;
  j->alpha = scale(&j->image, alpha);
  j->beta = scale(&j->image, beta);
  return submit(h, run, j);
}

API cudnnConvolutionForward(cudnnHandle_t handle, const void *alpha,
                            const cudnnTensorDescriptor_t xDesc, const void *x,
                            const cudnnFilterDescriptor_t wDesc, const void *w,
                            const cudnnConvolutionDescriptor_t convDesc,
                            cudnnConvolutionFwdAlgo_t algo, void *workSpace,
                            size_t workSpaceSizeInBytes, const void *beta,
                            const cudnnTensorDescriptor_t yDesc, void *y) {
  ENTER;
  Job j;
  cudnnStatus_t s = set_job(&j, FORWARD, xDesc, wDesc, convDesc, yDesc);
  return s ? s
           : start(handle, &j, (int)algo, x, w, y, workSpace, workSpaceSizeInBytes, alpha, beta);
}

API cudnnConvolutionBackwardData(cudnnHandle_t handle, const void *alpha,
                                 const cudnnFilterDescriptor_t wDesc, const void *w,
                                 const cudnnTensorDescriptor_t dyDesc, const void *dy,
                                 const cudnnConvolutionDescriptor_t convDesc,
                                 cudnnConvolutionBwdDataAlgo_t algo, void *workSpace,
                                 size_t workSpaceSizeInBytes, const void *beta,
                                 const cudnnTensorDescriptor_t dxDesc, void *dx) {
  ENTER;
  Job j;
  cudnnStatus_t s = set_job(&j, DATA, dxDesc, wDesc, convDesc, dyDesc);
  return s ? s
           : start(handle, &j, (int)algo, dx, w, dy, workSpace, workSpaceSizeInBytes, alpha, beta);
}

API cudnnConvolutionBackwardFilter(cudnnHandle_t handle, const void *alpha,
                                   const cudnnTensorDescriptor_t xDesc, const void *x,
                                   const cudnnTensorDescriptor_t dyDesc, const void *dy,
                                   const cudnnConvolutionDescriptor_t convDesc,
                                   cudnnConvolutionBwdFilterAlgo_t algo, void *workSpace,
                                   size_t workSpaceSizeInBytes, const void *beta,
                                   const cudnnFilterDescriptor_t dwDesc, void *dw) {
  ENTER;
  Job j;
  cudnnStatus_t s = set_job(&j, FILTER, xDesc, dwDesc, convDesc, dyDesc);
  return s ? s
           : start(handle, &j, (int)algo, x, dw, dy, workSpace, workSpaceSizeInBytes, alpha, beta);
}
