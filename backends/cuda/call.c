/* Operators made of C functions, which run on the host in the middle of a run: their inputs are copied to pinned memory, the
 * compute stream is waited for, the function called, and its outputs copied to the device, all in the stream's order. Once a
 * check has failed the function is not called any more: what is after it gets zeros, and writes no state. */
#include "device.h"

static size_t bytes_of(const Node *n) {
  return (size_t)node_numel(n) * (size_t)dtype_info[n->dtype].size;
}

/* Pinned memory: a CudaRun, then inputs of the kernel, then all outputs of the call. */
typedef struct Layout {
  const Kernel *k;
  size_t *in, *out; /* where: per input of the kernel, per output of the call */
  size_t bytes;
} Layout;

static Layout lay_out(Arena *a, const Kernel *k) {
  int n_out = call_n_out(k->core);
  Layout l = {k, arena_array(a, size_t, k->inputs.n + 1), arena_array(a, size_t, n_out + 1),
              CUDA_ALIGN};
  for (int i = 0; i < k->inputs.n; i++) {
    l.in[i] = l.bytes;
    l.bytes += cuda_aligned(bytes_of(k->inputs.v[i].node));
  }
  for (int i = 0; i < n_out; i++) {
    Tensor t;
    call_out(k->core, i, &t);
    l.out[i] = l.bytes;
    l.bytes += cuda_aligned(tensor_bytes(&t));
  }
  return l;
}

typedef struct Task {
  const Layout *l;
  uint8_t *host;
  Arena *a;
  bool ok;
} Task;

static void call_task(void *user, int thread, int64_t begin, int64_t end) {
  Task *task = user;
  const Kernel *k = task->l->k;
  const Node *c = k->core;
  (void)thread, (void)begin, (void)end;
  void **in = arena_array(task->a, void *, c->n_in + 1);
  void **out = arena_array(task->a, void *, call_n_out(c) + 1);
  for (int i = 0; i < c->n_in; i++) in[i] = task->host + task->l->in[kernel_input(k, c->in[i])];
  for (int i = 0; i < call_n_out(c); i++) out[i] = task->host + task->l->out[i];
  task->ok = call_function(c, in, out, arena_array(task->a, Tensor, c->n_in + call_n_out(c)));
}

static bool copy_inputs(Module *m, const Layout *l, const CUdeviceptr *at, CUdeviceptr run,
                        uint8_t *host) {
  bool ok = CU(cuMemcpyDtoHAsync, host, run, sizeof(CudaRun), m->d->compute);
  for (int i = 0; ok && i < l->k->inputs.n; i++) {
    size_t n = bytes_of(l->k->inputs.v[i].node);
    if (n) ok = CU(cuMemcpyDtoHAsync, host + l->in[i], at[i], n, m->d->compute);
  }
  return ok && CU(cuStreamSynchronize, m->d->compute);
}

static bool copy_outputs(Module *m, const Layout *l, const CUdeviceptr *at, const uint8_t *host,
                         bool called) {
  const Kernel *k = l->k;
  bool ok = true;
  for (int i = 0; ok && i < call_n_out(k->core); i++) {
    int o = call_output(k, i);
    size_t n = o < 0 ? 0 : bytes_of(k->outputs.v[o]);
    if (!n) continue;
    CUdeviceptr to = at[k->inputs.n + o];
    ok = called ? CU(cuMemcpyHtoDAsync, to, host + l->out[i], n, m->d->compute)
                : CU(cuMemsetD8Async, to, 0, n, m->d->compute);
  }
  return ok;
}

bool host_call(Module *m, int i, const CUdeviceptr *at, CUdeviceptr run) {
  const Kernel *k = m->kernel[i];
  Arena *a = arena_scratch();
  Layout l = lay_out(a, k);
  bool ok = m->called[i] || device_pinned(m->d, l.bytes, (void **)&m->called[i]);
  Task task = {&l, m->called[i], a, true};
  ok = ok && copy_inputs(m, &l, at, run, m->called[i]);
  bool failed = ok && ((const CudaRun *)(const void *)m->called[i])->failed;
  if (ok && !failed) pool_run_here(1, call_task, &task);
  ok = ok && task.ok && copy_outputs(m, &l, at, m->called[i], !failed);
  arena_free(a);
  return ok;
}
