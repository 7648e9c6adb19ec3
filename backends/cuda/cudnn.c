/* Convolutions and their gradients by cuDNN, through the interface in which the algorithm is named. In: a convolution with its
 * strides; out: descriptors, the first algorithm of the heuristic that is deterministic, exact enough and fits the workspace, and
 * the calls, which a stream may be recording.
 * Images and results lie with the channel second or last. A filter that lies otherwise (Kiln's own kernels want [H, W, I, O]) is
 * rearranged in the workspace, before the call or, as a result, after it. */
#include "foreign.h"
#include <limits.h>
#include <string.h>

typedef struct Conv {
  Foreign f;
  ForeignPass pass;
  void *image, *result, *filter, *conv; /* descriptors */
  void *stored, *wanted;                /* the filter as tensors; NULL: it lies as wanted */
  int tensor[3];                        /* image, filter, result: 0, 1 the operands, 2 the result */
  int algo;
  int64_t filter_bytes; /* of the rearranged one, in front of the library's workspace */
  bool wide;            /* alpha and beta are double */
} Conv;

static const struct {
  DType type;
  int data, compute, math[3]; /* by CudaMath */
} types[] = {
    {DT_FLOAT32,
     CUDNN_DATA_FLOAT,
     CUDNN_DATA_FLOAT,
     {CUDNN_FMA_MATH, CUDNN_DEFAULT_MATH, CUDNN_DEFAULT_MATH}},
    {DT_FLOAT64,
     CUDNN_DATA_DOUBLE,
     CUDNN_DATA_DOUBLE,
     {CUDNN_FMA_MATH, CUDNN_FMA_MATH, CUDNN_FMA_MATH}},
    {DT_FLOAT16,
     CUDNN_DATA_HALF,
     CUDNN_DATA_FLOAT,
     {CUDNN_TENSOR_OP_MATH, CUDNN_TENSOR_OP_MATH, CUDNN_TENSOR_OP_MATH}},
    {DT_BFLOAT16,
     CUDNN_DATA_BFLOAT16,
     CUDNN_DATA_FLOAT,
     {CUDNN_TENSOR_OP_MATH, CUDNN_TENSOR_OP_MATH, CUDNN_TENSOR_OP_MATH}},
};

static int type_row(DType t) {
  int i = 0;
  while (types[i].type != t) i++;
  return i;
}

/* Algorithms that only sum products (implicit and explicit matrix products), by ForeignPass. The others, Winograd's and
 * Fourier's, round more. */
static const unsigned plain_algos[] = {
    [PASS_FORWARD] = 1u << 0 | 1u << 1 | 1u << 2, [PASS_DATA] = 1u << 1, [PASS_FILTER] = 1u << 1};
static const double LEAST_ERROR = 1e-5; /* Kernel.conv_error from which the others may be used */

/* ---- tensors ---- */

/* The steps of a packed tensor, the channel second or last. */
static void packed(const ForeignTensor *t, int n, bool last, int64_t *step) {
  int64_t s = last ? t->ext[1] : 1;
  for (int d = n - 1; d >= 2; s *= t->ext[d--]) step[d] = s;
  step[1] = last ? 1 : s;
  step[0] = last ? s : s * t->ext[1];
}

static bool lies(const ForeignTensor *t, int n, bool last) {
  int64_t step[FOREIGN_DIMS];
  bool same = true;
  packed(t, n, last, step);
  for (int d = 0; d < n; d++) same &= t->ext[d] == 1 || t->step[d] == step[d];
  return same;
}

static bool to_ints(const int64_t *v, int n, int *to) {
  for (int i = 0; i < n; i++) {
    if (v[i] < 0 || v[i] > INT_MAX) return false;
    to[i] = (int)v[i];
  }
  return true;
}

/* step NULL: packed */
static bool set_tensor(void **to, int type, const ForeignTensor *t, const int64_t *step, int n,
                       bool last) {
  int dims[FOREIGN_DIMS], steps[FOREIGN_DIMS];
  int64_t own[FOREIGN_DIMS];
  packed(t, n, last, own);
  for (int d = 0; step && d < n; d++)
    if (t->ext[d] > 1) own[d] = step[d];
  return to_ints(t->ext, n, dims) && to_ints(own, n, steps) &&
         LIB(cudnnCreateTensorDescriptor, to) &&
         LIB(cudnnSetTensorNdDescriptor, *to, type, n, dims, steps);
}

static bool set_filter(Conv *m, const ForeignConv *v, int type, bool last) {
  int dims[FOREIGN_DIMS], n = 2 + v->n_space;
  if (!to_ints(v->filter.ext, n, dims) || !LIB(cudnnCreateFilterDescriptor, &m->filter) ||
      !LIB(cudnnSetFilterNdDescriptor, m->filter, type,
           last ? CUDNN_TENSOR_NHWC : CUDNN_TENSOR_NCHW, n, dims))
    return false;
  if (lies(&v->filter, n, last)) return true;
  m->filter_bytes = dtype_info[v->type].size;
  for (int d = 0; d < n; d++) m->filter_bytes *= v->filter.ext[d];
  m->filter_bytes = (int64_t)cuda_aligned((size_t)m->filter_bytes);
  return set_tensor(&m->stored, type, &v->filter, v->filter.step, n, last) &&
         set_tensor(&m->wanted, type, &v->filter, NULL, n, last);
}

static bool set_conv(Conv *m, const ForeignConv *v, int row, CudaMath math) {
  int pad[FOREIGN_SPACE], stride[FOREIGN_SPACE], dilation[FOREIGN_SPACE], n = v->n_space;
  return to_ints(v->pad, n, pad) && to_ints(v->stride, n, stride) &&
         to_ints(v->dilation, n, dilation) && LIB(cudnnCreateConvolutionDescriptor, &m->conv) &&
         LIB(cudnnSetConvolutionNdDescriptor, m->conv, n, pad, stride, dilation,
             CUDNN_CROSS_CORRELATION, types[row].compute) &&
         LIB(cudnnSetConvolutionGroupCount, m->conv, (int)v->groups) &&
         LIB(cudnnSetConvolutionMathType, m->conv, types[row].math[math]);
}

/* ---- the algorithm ---- */

static bool ask(const Conv *m, int most, CudnnResult *r, int *n) {
  void *h = m->f.handle;
  switch (m->pass) {
  case PASS_FORWARD:
    return LIB(cudnnGetConvolutionForwardAlgorithm_v7, h, m->image, m->filter, m->conv, m->result,
               most, n, r);
  case PASS_DATA:
    return LIB(cudnnGetConvolutionBackwardDataAlgorithm_v7, h, m->filter, m->result, m->conv,
               m->image, most, n, r);
  default:
    return LIB(cudnnGetConvolutionBackwardFilterAlgorithm_v7, h, m->image, m->result, m->conv,
               m->filter, most, n, r);
  }
}

static bool find_algo(Conv *m, const Kernel *k, int math, int64_t most) {
  enum { TRIED = 8 };
  CudnnResult r[TRIED];
  int n = 0;
  if (!ask(m, TRIED, r, &n)) return false;
  for (int i = 0; i < n; i++) {
    bool plain = r[i].algo >= 0 && r[i].algo < 32 && plain_algos[m->pass] >> r[i].algo & 1;
    bool exact = math != CUDNN_FMA_MATH || r[i].math == math || r[i].math == CUDNN_DEFAULT_MATH;
    if (r[i].status || !r[i].deterministic || !exact || r[i].memory > (uint64_t)most ||
        (!plain && k->conv_error < LEAST_ERROR))
      continue;
    m->algo = r[i].algo;
    m->f.workspace = m->filter_bytes + (int64_t)r[i].memory;
    return true;
  }
  return false;
}

/* ---- calls ---- */

static void drop(Conv *m) {
  void *tensors[] = {m->image, m->result, m->stored, m->wanted};
  for (size_t i = 0; i < sizeof tensors / sizeof *tensors; i++)
    if (tensors[i]) LIB_DROP(cudnnDestroyTensorDescriptor, tensors[i]);
  if (m->filter) LIB_DROP(cudnnDestroyFilterDescriptor, m->filter);
  if (m->conv) LIB_DROP(cudnnDestroyConvolutionDescriptor, m->conv);
}

static Foreign *make(Arena *a, CudaDevice *d, const Kernel *k, CudaMath math, int64_t most) {
  ForeignConv v;
  if (!foreign_conv(k, &v) || v.groups > INT_MAX) return NULL;
  int n = 2 + v.n_space, row = type_row(v.type);
  bool last = !lies(&v.image, n, false) || !lies(&v.result, n, false);
  if (last && (!lies(&v.image, n, true) || !lies(&v.result, n, true))) return NULL;
  Conv *m = arena_new_of(a, Conv);
  foreign_start(&m->f, LIBRARY_CUDNN, d, k);
  m->pass = v.pass;
  m->wide = v.type == DT_FLOAT64;
  m->tensor[0] = v.x, m->tensor[1] = v.w, m->tensor[2] = v.y;
  if (set_tensor(&m->image, types[row].data, &v.image, NULL, n, last) &&
      set_tensor(&m->result, types[row].data, &v.result, NULL, n, last) &&
      set_filter(m, &v, types[row].data, last) && set_conv(m, &v, row, math) &&
      find_algo(m, k, types[row].math[math], most))
    return &m->f;
  drop(m);
  return NULL;
}

static bool rearrange(const Conv *m, bool back, CUdeviceptr stored, CUdeviceptr wanted,
                      const void *one, const void *zero) {
  if (!m->stored) return true;
  return back ? LIB(cudnnTransformTensor, m->f.handle, one, m->wanted, wanted, zero, m->stored,
                    stored)
              : LIB(cudnnTransformTensor, m->f.handle, one, m->stored, stored, zero, m->wanted,
                    wanted);
}

static bool call(const Conv *m, const CUdeviceptr t[3], CUdeviceptr ws, const void *one,
                 const void *zero) {
  void *h = m->f.handle;
  size_t bytes = (size_t)(m->f.workspace - m->filter_bytes);
  switch (m->pass) {
  case PASS_FORWARD:
    return LIB(cudnnConvolutionForward, h, one, m->image, t[0], m->filter, t[1], m->conv, m->algo,
               ws, bytes, zero, m->result, t[2]);
  case PASS_DATA:
    return LIB(cudnnConvolutionBackwardData, h, one, m->filter, t[1], m->result, t[2], m->conv,
               m->algo, ws, bytes, zero, m->image, t[0]);
  default:
    return LIB(cudnnConvolutionBackwardFilter, h, one, m->image, t[0], m->result, t[2], m->conv,
               m->algo, ws, bytes, zero, m->filter, t[1]);
  }
}

static bool run(const Foreign *f, const CUdeviceptr *at, CUstream s) {
  const Conv *m = (const Conv *)f;
  const Kernel *k = f->kernel;
  static const double one_d = 1, zero_d = 0;
  static const float one_f = 1, zero_f = 0;
  const void *one = m->wide ? (const void *)&one_d : &one_f,
             *zero = m->wide ? (const void *)&zero_d : &zero_f;
  CUdeviceptr t[3], ws = 0;
  for (int i = 0; i < 3; i++)
    t[i] = m->tensor[i] == 2 ? at[f->result] + (CUdeviceptr)f->result_at
                             : at[kernel_input(k, k->core->in[m->tensor[i]])];
  if (f->workspace) ws = at[k->inputs.n + k->outputs.n] + (CUdeviceptr)f->workspace_at;
  CUdeviceptr stored = t[1];
  if (m->stored) t[1] = ws;
  if (f->workspace == m->filter_bytes)
    ws = 0;
  else
    ws += (CUdeviceptr)m->filter_bytes;
  bool back = m->pass == PASS_FILTER;
  return LIB(cudnnSetStream, f->handle, s) &&
         (back || rearrange(m, false, stored, t[1], one, zero)) && call(m, t, ws, one, zero) &&
         (!back || rearrange(m, true, stored, t[1], one, zero));
}

static void free_conv(Foreign *f) { drop((Conv *)f); }
static bool open_handle(void **handle) { return LIB(cudnnCreate, handle); }
static void close_handle(void *handle) { LIB_DROP(cudnnDestroy, handle); }

const ForeignCalls cudnn_calls = {
    .make = make, .run = run, .free = free_conv, .open = open_handle, .close = close_handle};
