/* One run of a module on its device. In: addresses of the buffers, feeds; out: what is fetched, the first failed check.
 *
 * Feeds and the CudaRun are packed in pinned memory and copied at once, on a stream of their own; there are two slots of
 * them, so that a run's copy does not wait for the run before. Launches follow in the graph's order on the compute stream.
 * When a slot meets the same addresses again, its launches and copies are captured as a CUDA graph, and from then on a step
 * is one cuGraphLaunch; not with C functions between the launches. Kernels that write state, and the copies to state, do
 * nothing once a check has failed.
 * A run may be left at work: the next one is handed over before its results are looked at, and starts with its failed check,
 * so that nothing changes after a failure. */
#include "foreign.h"
#include <string.h>

static CUdeviceptr buffer_at(const Module *m, const CudaSlot *s, const DeviceRun *r,
                             const Buffer *b) {
  return b->kind == B_FEED ? s->device + (CUdeviceptr)m->feed_at[b->id]
                           : (CUdeviceptr)(uintptr_t)r->at[b->id];
}

/* ---- slots ---- */

static void drop_graph(CudaSlot *s) {
  if (s->graph) CU_DROP(cuGraphExecDestroy, s->graph);
  s->graph = NULL;
}

void run_free(Module *m) {
  for (int i = 0; i < CUDA_SLOTS; i++) {
    CudaSlot *s = &m->slot[i];
    drop_graph(s);
    if (s->host) CU_DROP(cuMemFreeHost, s->host);
    if (s->device) CU_DROP(cuMemFree, s->device);
    if (s->copied) CU_DROP(cuEventDestroy, s->copied);
    if (s->done) CU_DROP(cuEventDestroy, s->done);
    if (s->back) CU_DROP(cuMemFreeHost, s->back);
  }
  for (int i = 0; i < m->n; i++)
    if (m->called[i]) CU_DROP(cuMemFreeHost, m->called[i]);
  for (int i = 0; m->mark && i <= m->n; i++)
    if (m->mark[i]) CU_DROP(cuEventDestroy, m->mark[i]);
}

/* The slot's memory, and nobody at work on it. */
static bool open_slot(Module *m, CudaSlot *s) {
  CudaDevice *d = m->d;
  if (!s->key) s->key = arena_array(m->arena, void *, m->g->buffers.n + 2);
  if (!s->host && !device_pinned(d, m->slot_bytes, (void **)&s->host)) return false;
  if (!s->back && !device_pinned(d, m->back_bytes, (void **)&s->back)) return false;
  if (!s->device && !device_alloc(d, m->slot_bytes, &s->device)) return false;
  if (!s->copied && !CU(cuEventCreate, &s->copied, CU_EVENT_DISABLE_TIMING)) return false;
  if (!s->done && !CU(cuEventCreate, &s->done, CU_EVENT_DISABLE_TIMING)) return false;
  return !s->used || CU(cuEventSynchronize, s->done);
}

/* Feeds and the CudaRun to the device; the compute stream waits for them. */
static bool stage(Module *m, CudaSlot *s, DeviceRun *r) {
  *(CudaRun *)(void *)s->host = (CudaRun){.seed = r->seed, .step = r->step};
  size_t n = sizeof(CudaRun);
  for (int i = 0; i < r->n_in; i++) {
    size_t at = (size_t)m->feed_at[r->in[i].buf->id];
    memcpy(s->host + at, r->in[i].host, r->in[i].bytes);
    if (at + r->in[i].bytes > n) n = at + r->in[i].bytes;
  }
  r->copies++;
  return CU(cuMemcpyHtoDAsync, s->device, s->host, n, m->d->copies) &&
         CU(cuEventRecord, s->copied, m->d->copies) &&
         CU(cuStreamWaitEvent, m->d->compute, s->copied, 0);
}

/* ---- launches ---- */

typedef struct Work {
  Module *m;
  CudaSlot *s;
  DeviceRun *r;
  CUstream to;
} Work;

bool launch_entry(const CudaLaunch *l, CUfunction f, const CUdeviceptr *at, int64_t bytes,
                  CUdeviceptr run, CUstream s) {
  enum { MOST = 128 }; /* a kernel of most buffers (fuse_group.c), with room for numbers */
  uint64_t value[MOST];
  void *param[MOST];
  if (l->n_args > MOST)
    return err_set(E_GEN_002, "%s has %d arguments, at most %d are possible", l->entry, l->n_args,
                   MOST);
  if (l->clear && bytes && !CU(cuMemsetD8Async, at[l->clear_buf], 0, (size_t)bytes, s))
    return false;
  for (int i = 0; i < l->n_args; i++) {
    const CudaArg *a = &l->args[i];
    param[i] = &value[i];
    value[i] = a->kind == CUDA_INT   ? (uint64_t)a->i
               : a->kind == CUDA_RUN ? run
                                     : at[a->i] + (uint64_t)a->offset;
  }
  return CU(cuLaunchKernel, f, l->grid[0], l->grid[1], l->grid[2], l->block[0], l->block[1],
            l->block[2], l->shared, s, param, NULL);
}

/* On the host; or what a library does first, then the launches. */
static bool launch_kernel(const Work *w, int i) {
  const Module *m = w->m;
  const Kernel *k = m->kernel[i];
  const CudaPlan *p = m->plan[i];
  const Foreign *f = m->foreign[i];
  int n = k->inputs.n + k->outputs.n + (k->ws != NULL);
  CUdeviceptr *at = m->at;
  for (int j = 0; j < n; j++) at[j] = buffer_at(m, w->s, w->r, m->bufs[i][j]);
  if (p->on_host) return host_call(w->m, i, at, w->s->device);
  bool ok = !f || f->calls->run(f, at, w->to);
  w->r->calls += f != NULL;
  for (int j = 0; ok && j < p->n; j++) {
    const CudaLaunch *l = &p->launch[j];
    w->r->launches++;
    ok = launch_entry(l, m->fn[i][j], at, l->clear ? m->bufs[i][l->clear_buf]->bytes : 0,
                      w->s->device, w->to);
  }
  if (!ok) err_where("kernel %s", k->name);
  return ok;
}

static bool copy_state(const Work *w, const ExitCopy *c) {
  enum { THREADS = 256, MOST_BLOCKS = 1024 };
  CUdeviceptr to = buffer_at(w->m, w->s, w->r, c->to), from = buffer_at(w->m, w->s, w->r, c->from);
  uint64_t n = (uint64_t)c->to->bytes, blocks = (n + THREADS - 1) / THREADS;
  if (!n) return true;
  w->r->copies++;
  if (!w->m->copy) return CU(cuMemcpyDtoDAsync, to, from, n, w->to);
  void *param[] = {&to, &from, &n, &w->s->device};
  if (blocks > MOST_BLOCKS) blocks = MOST_BLOCKS;
  return CU(cuLaunchKernel, w->m->copy, (unsigned)blocks, 1, 1, THREADS, 1, 1, 0, w->to, param,
            NULL);
}

static bool copy_back(const Work *w) {
  const DeviceRun *r = w->r;
  uint8_t *to = w->s->back;
  if (w->m->checks) {
    w->r->copies++;
    if (!CU(cuMemcpyDtoHAsync, to, w->s->device, sizeof(CudaRun), w->to)) return false;
  }
  to += CUDA_ALIGN;
  for (int i = 0; i < r->n_out; to += cuda_aligned(r->out[i].bytes), i++) {
    if (!r->out[i].bytes) continue;
    w->r->copies++;
    if (!CU(cuMemcpyDtoHAsync, to, buffer_at(w->m, w->s, r, r->out[i].buf), r->out[i].bytes, w->to))
      return false;
  }
  return true;
}

/* All work of the run but the feeds. */
static bool enqueue(const Work *w) {
  const Module *m = w->m;
  bool ok = !w->r->timed || CU(cuEventRecord, m->mark[0], w->to);
  for (int i = 0; ok && i < m->n; i++) {
    if (!w->r->kept || !m->kernel[i]->constant) ok = launch_kernel(w, i);
    if (ok && w->r->timed) ok = CU(cuEventRecord, m->mark[i + 1], w->to);
  }
  for (int i = 0; ok && i < m->g->copies.n; i++) ok = copy_state(w, &m->g->copies.v[i]);
  return ok && copy_back(w);
}

/* ---- graphs ---- */

/* Is this run like the last one in the slot? Remembers it. */
static bool same_again(const Module *m, CudaSlot *s, const DeviceRun *r) {
  bool same = s->used;
  for (int i = 0; i < m->g->buffers.n; i++) {
    void *at = m->g->buffers.v[i]->kind == B_FEED ? NULL : r->at[i];
    same &= s->key[i] == at;
    s->key[i] = at;
  }
  void *kept = r->kept ? s : NULL;
  same &= s->key[m->g->buffers.n] == kept;
  s->key[m->g->buffers.n] = kept;
  return same;
}

static bool capture(Work *w) {
  CUgraph graph = NULL;
  CUstream stream = w->m->d->capture;
  if (!CU(cuStreamBeginCapture, stream, CU_CAPTURE_RELAXED)) return false;
  w->to = stream;
  bool ok = enqueue(w);
  w->to = w->m->d->compute;
  if (ok)
    ok = CU(cuStreamEndCapture, stream, &graph);
  else
    CU_DROP(cuStreamEndCapture, stream, &graph);
  ok = ok && CU(cuGraphInstantiate, &w->s->graph, graph, 0);
  if (graph) CU_DROP(cuGraphDestroy, graph);
  return ok;
}

static bool submit(Work *w, bool again) {
  CudaSlot *s = w->s;
  if (!again) drop_graph(s);
  if (!again || w->r->timed || w->m->calls) return enqueue(w);
  if (!s->graph && !capture(w)) return false;
  w->r->launches = w->r->calls = 0;
  w->r->graphs = 1;
  return CU(cuGraphLaunch, s->graph, w->m->d->compute);
}

/* ---- the run ---- */

static bool make_marks(Module *m) {
  if (!m->mark) m->mark = arena_array(m->arena, CUevent, m->n + 1);
  for (int i = 0; i <= m->n; i++)
    if (!m->mark[i] && !CU(cuEventCreate, &m->mark[i], 0)) return false;
  return true;
}

static bool tell_times(const Module *m, const DeviceRun *r) {
  for (int i = 0; i < m->n; i++) {
    float ms;
    if (!m->plan[i]->n || (r->kept && m->kernel[i]->constant)) continue;
    if (!CU(cuEventElapsedTime, &ms, m->mark[i], m->mark[i + 1])) return false;
    r->timed(r->user, i, ms * 1e-3);
  }
  return true;
}

static void take_back(const Module *m, const CudaSlot *s, const DeviceRun *r, CheckRecord *check) {
  const CudaRun *run = (const CudaRun *)(const void *)s->back;
  const uint8_t *from = s->back + CUDA_ALIGN;
  if (m->checks && run->failed)
    *check =
        (CheckRecord){.failed = 1, .node = run->node, .index = run->index, .value = run->value};
  for (int i = 0; i < r->n_out; from += cuda_aligned(r->out[i].bytes), i++)
    memcpy(r->out[i].host, from, r->out[i].bytes);
}

/* If nobody knows yet whether the run before has failed a check: then this one has failed it too. That run's slot is not
 * written again before somebody knows. */
static bool inherit(const Module *m, const CudaSlot *s, const CudaSlot *before) {
  const size_t from = offsetof(CudaRun, failed), to = offsetof(CudaRun, lock);
  return !before->late || !m->checks ||
         CU(cuMemcpyDtoDAsync, s->device + from, before->device + from, to - from, m->d->compute);
}

static bool run_inside(Module *m, DeviceRun *r, CheckRecord *check) {
  CudaSlot *s = &m->slot[m->turn], *before = &m->slot[(m->turn + CUDA_SLOTS - 1) % CUDA_SLOTS];
  Work w = {m, s, r, m->d->compute};
  m->turn = (m->turn + 1) % CUDA_SLOTS;
  if (!open_slot(m, s) || (r->timed && !make_marks(m)) || !stage(m, s, r) || !inherit(m, s, before))
    return false;
  bool again = same_again(m, s, r);
  s->used = true;
  if (!submit(&w, again) || !CU(cuEventRecord, s->done, m->d->compute)) return false;
  s->late = r->later;
  if (r->later || (!m->checks && !r->n_out && !r->timed)) return true;
  if (!CU(cuEventSynchronize, s->done)) return false;
  take_back(m, s, r, check);
  return !r->timed || tell_times(m, r);
}

static bool finish_inside(Module *m, DeviceRun *r, CheckRecord *check) {
  CudaSlot *s = NULL;
  for (int i = 0; i < CUDA_SLOTS && !(s && s->late); i++) s = &m->slot[(m->turn + i) % CUDA_SLOTS];
  s->late = false;
  if (!CU(cuEventSynchronize, s->done)) return false;
  take_back(m, s, r, check);
  return true;
}

typedef bool Inside(Module *m, DeviceRun *r, CheckRecord *check);

static bool on_device(Module *m, DeviceRun *r, CheckRecord *check, Inside *fn) {
  CudaDevice *d = m->d;
  if (!device_enter(d)) return false;
  MemGuard guard;
  if (MEM_GUARD(guard)) {
    device_leave(d);
    mem_rethrow();
  }
  bool ok = fn(m, r, check);
  if (!ok) { /* nothing of this run may be at work when its memory goes */
    CU_DROP(cuStreamSynchronize, d->copies);
    CU_DROP(cuStreamSynchronize, d->compute);
    for (int i = 0; i < CUDA_SLOTS; i++) m->slot[i].used = false;
  }
  mem_unguard(&guard);
  device_leave(d);
  return ok;
}

bool device_run(Module *m, DeviceRun *r, CheckRecord *check) {
  return on_device(m, r, check, run_inside);
}

bool device_finish(Module *m, DeviceRun *r, CheckRecord *check) {
  return on_device(m, r, check, finish_inside);
}
