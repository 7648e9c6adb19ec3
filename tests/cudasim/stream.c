/* Streams and events. Work is queued and executed when something waits for it, or at random moments before that, always in an
 * order that the streams' rules allow: in order within a stream, after the records that it waits for, and with the default
 * stream before and after everything in blocking streams that was queued before and after it. */
#include "driver.h"
#include <stdlib.h>
#include <string.h>
#include <time.h>

static uint64_t sequence;

CUstream stream_of(CUstream s) {
  if (!s || s == (CUstream)1 || s == (CUstream)2)
    return context_now() ? &context_now()->null_stream : NULL;
  return object_is(s, IS_STREAM) ? s : NULL;
}

static CUstream *all_streams(int *n) {
  static CUstream list[1024];
  *n = 0;
  list[(*n)++] = &context_now()->null_stream;
  for (Object *o = object_first(IS_STREAM); o && *n < COUNT(list); o = o->next)
    if (o->context == context_now()) list[(*n)++] = (CUstream)o;
  return list;
}

bool capturing(void) {
  int n;
  CUstream *s = all_streams(&n);
  for (int k = 0; k < n; k++)
    if (s[k]->capture) return true;
  return false;
}

/* ---- work ---- */

static uint64_t hash(const char *p, uint64_t n) {
  uint64_t h = n;
  for (; n >= 8; n -= 8, p += 8) {
    uint64_t x;
    memcpy(&x, p, 8);
    h = (h ^ x) * UINT64_C(0x9e3779b97f4a7c15);
    h ^= h >> 29;
  }
  for (; n; n--, p++) h = (h ^ (unsigned char)*p) * UINT64_C(0x100000001b3);
  return h;
}

void work_hash(Work *w) {
  if (w->kind != WORK_COPY || !w->from_host || w->owned) return;
  w->hash = hash(w->from_host, w->bytes);
  w->hashed = true;
}

void work_free(Work *w) {
  if (w->kind == WORK_KERNEL || w->kind == WORK_LIBRARY) free(w->param);
  if (w->owned) free((void *)w->from_host);
}

static CUresult run_copy(Work *w) {
  if (w->to && !memory_find(w->to)) {
    fprintf(stderr, "cudasim: copy to memory that was freed before the copy was executed\n");
    return CUDA_ERROR_ILLEGAL_ADDRESS;
  }
  if (w->from && !memory_find(w->from)) {
    fprintf(stderr, "cudasim: copy from memory that was freed before the copy was executed\n");
    return CUDA_ERROR_ILLEGAL_ADDRESS;
  }
  if (w->hashed && hash(w->from_host, w->bytes) != w->hash) {
    fprintf(stderr,
            "cudasim: host memory was changed before the copy of %llu bytes from it was finished\n",
            (unsigned long long)w->bytes);
    return CUDA_ERROR_LAUNCH_FAILED;
  }
  if (w->from_host) {
    memcpy(memory_at(w->to), w->from_host, w->bytes);
    memory_mark(w->to, w->bytes);
  } else if (w->to_host) {
    memcpy(w->to_host, memory_at(w->from), w->bytes);
  } else {
    memmove(memory_at(w->to), memory_at(w->from), w->bytes);
    memory_copy_marks(w->to, w->from, w->bytes);
  }
  report_copy(w->bytes, w->from_host ? 0 : w->to_host ? 1 : 2);
  return CUDA_SUCCESS;
}

static CUresult run_set(const Work *w) {
  if (!memory_find(w->to)) {
    fprintf(stderr, "cudasim: memset of memory that was freed before it was executed\n");
    return CUDA_ERROR_ILLEGAL_ADDRESS;
  }
  char *to = memory_at(w->to);
  if (w->width == 1)
    memset(to, (int)w->value, w->bytes);
  else
    for (uint64_t k = 0; k < w->bytes; k += (uint64_t)w->width)
      memcpy(to + k, &w->value, (size_t)w->width);
  memory_mark(w->to, w->bytes);
  return CUDA_SUCCESS;
}

static CUresult run_kernel(const Work *w) {
  Launch l = {.f = w->function->f,
              .dynamic_shared = w->shared,
              .param = w->param,
              .seed = random_next()};
  memcpy(l.grid, w->grid, sizeof l.grid);
  memcpy(l.block, w->block, sizeof l.block);
  launch_run(&l);
  report_add(&l);
  if (l.result) fprintf(stderr, "cudasim: %s\n", l.fault);
  return (CUresult)l.result;
}

static CUresult run_record(const Work *w) {
  struct timespec t;
  if (!object_is(w->event, IS_EVENT)) return CUDA_SUCCESS;
  clock_gettime(CLOCK_MONOTONIC, &t);
  w->event->time = (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
  if (w->event->completed < w->version) w->event->completed = w->version;
  return CUDA_SUCCESS;
}

CUresult work_run(Work *w) {
  switch (w->kind) {
  case WORK_KERNEL: return run_kernel(w);
  case WORK_COPY: return run_copy(w);
  case WORK_SET: return run_set(w);
  case WORK_HOST: w->host(w->data); return CUDA_SUCCESS;
  case WORK_RECORD: return run_record(w);
  case WORK_FREE: return free_work(w);
  case WORK_GRAPH: return graph_run(w->exec);
  case WORK_LIBRARY: return library_run(w);
  default: return CUDA_SUCCESS;
  }
}

/* ---- the queues ---- */

static bool ready(CUstream s) {
  const Op *op = s->first;
  if (!op) return false;
  if (s->o.context->sticky) return true; /* nothing is executed any more */
  if (op->w.kind == WORK_WAIT && object_is(op->w.event, IS_EVENT) &&
      op->w.event->completed < op->w.version)
    return false;
  CUstream null = &s->o.context->null_stream;
  if (s == null) {
    int n;
    CUstream *list = all_streams(&n);
    for (int k = 1; k < n; k++)
      if (list[k]->blocking && list[k]->first && list[k]->first->seq < op->seq) return false;
    return true;
  }
  return !(s->blocking && null->first && null->first->seq < op->seq);
}

static void execute(CUstream s) {
  Op *op = s->first;
  CUcontext c = s->o.context;
  s->first = op->next;
  if (!s->first) s->last = NULL;
  if (!c->sticky || op->w.kind == WORK_FREE || op->w.kind == WORK_RECORD) {
    CUresult r = work_run(&op->w);
    if (r && !c->sticky) c->sticky = r;
  }
  if (op->w.kind == WORK_GRAPH && object_is(op->w.exec, IS_EXEC)) op->w.exec->pending--;
  work_free(&op->w);
  free(op);
}

/* Executes one piece of work; false: none is left. */
static bool stream_step(CUstream prefer) {
  CUstream can[64];
  int n, m = 0;
  CUstream *list = all_streams(&n);
  for (int k = 0; k < n && m < COUNT(can); k++)
    if (ready(list[k])) can[m++] = list[k];
  if (!m) return false;
  CUstream s = can[random_next() % (uint64_t)m];
  for (int k = 0; k < m; k++)
    if (can[k] == prefer && random_next() % 2) s = prefer;
  execute(s);
  return true;
}

/* Until all of the stream's present work (NULL: of the context's) is done. */
CUresult stream_finish(CUstream s) {
  CUcontext c = context_now();
  for (;;) {
    bool busy = s ? s->first != NULL : false;
    int n;
    CUstream *list = all_streams(&n);
    for (int k = 0; k < n && !s; k++) busy |= list[k]->first != NULL;
    if (!busy) return c->sticky;
    if (!stream_step(s)) {
      fprintf(stderr, "cudasim: work waits for an event that nothing will record\n");
      return c->sticky = CUDA_ERROR_LAUNCH_FAILED;
    }
  }
}

/* Copies from pinned memory are left alone until something waits: whoever changes the memory too early is caught. */
static void run_some(void) {
  int n;
  CUstream *list = all_streams(&n);
  if (random_next() % 4) return;
  CUstream s = list[random_next() % (uint64_t)n];
  for (uint64_t k = random_next() % 4;
       k && ready(s) && !s->first->w.hashed && s->first->w.kind != WORK_GRAPH; k--)
    execute(s);
}

CUresult stream_add(CUstream handle, const Work *w) {
  CUstream s = stream_of(handle);
  if (s->capture) {
    CUresult r = graph_record(s, w);
    if (r) s->invalid = true;
    return r;
  }
  int n;
  CUstream *list = all_streams(&n);
  for (int k = 0; k < n && s == list[0]; k++)
    if (list[k]->capture && list[k]->blocking) {
      list[k]->invalid = true;
      return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
    }
  Op *op = host_alloc(sizeof *op);
  op->w = *w;
  op->seq = ++sequence;
  work_hash(&op->w);
  if (s->last)
    s->last->next = op;
  else
    s->first = op;
  s->last = op;
  run_some();
  return CUDA_SUCCESS;
}

static void stream_end(CUstream s) {
  while (s->first) {
    Op *next = s->first->next;
    work_free(&s->first->w);
    free(s->first);
    s->first = next;
  }
  free(s->tail);
}

void streams_drop(CUcontext c) {
  stream_end(&c->null_stream);
  for (Object *o = object_first(IS_STREAM); o; o = o->next)
    if (o->context == c) {
      CUstream s = (CUstream)o;
      stream_end(s);
      s->last = NULL;
      s->tail = NULL;
    }
}

/* ---- calls ---- */

API cuStreamCreate(CUstream *phStream, unsigned int Flags) {
  ENTER(NEED_INIT | NEED_CONTEXT);
  if (Flags & ~1u) return CUDA_ERROR_INVALID_VALUE;
  CUstream s = host_alloc(sizeof *s);
  s->blocking = !(Flags & CU_STREAM_NON_BLOCKING);
  object_add(&s->o, IS_STREAM);
  *phStream = s;
  return CUDA_SUCCESS;
}

API cuStreamCreateWithPriority(CUstream *phStream, unsigned int flags, int priority) {
  ENTER(NO_COUNT);
  (void)priority;
  return cuStreamCreate(phStream, flags);
}

API cuStreamDestroy_v2(CUstream hStream) {
  ENTER(NEED_INIT | NEED_CONTEXT | RELEASES);
  if (!object_is(hStream, IS_STREAM)) return CUDA_ERROR_INVALID_HANDLE;
  CUresult r = hStream->o.context == context_now() ? stream_finish(hStream) : CUDA_SUCCESS;
  stream_end(hStream);
  if (hStream->capture && hStream->origin) graph_free(hStream->capture);
  object_remove(&hStream->o);
  free(hStream);
  if (call_.result) RELEASED;
  return r;
}

API cuStreamSynchronize(CUstream hStream) {
  ENTER(NEED_INIT | NEED_CONTEXT);
  CUstream s = stream_of(hStream);
  if (!s) return CUDA_ERROR_INVALID_HANDLE;
  if (s->capture) {
    s->invalid = true;
    return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  }
  return stream_finish(s);
}

API cuStreamQuery(CUstream hStream) {
  ENTER(NEED_INIT | NEED_CONTEXT);
  CUstream s = stream_of(hStream);
  if (!s) return CUDA_ERROR_INVALID_HANDLE;
  if (s->capture) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  if (!s->first) return CUDA_SUCCESS;
  stream_step(s);
  if (context_now()->sticky) return context_now()->sticky;
  return CUDA_ERROR_NOT_READY;
}

/* Waiting for an event that a capturing stream has recorded makes this stream part of the capture. */
static CUresult join_capture(CUstream s, CUevent e) {
  if (s->capture && s->capture != e->capture) return CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
  s->capture = e->capture;
  s->tail = host_grow(s->tail, (size_t)(s->n_tail + e->n_tail + 1) * sizeof(int));
  for (int k = 0; k < e->n_tail; k++) s->tail[s->n_tail++] = e->tail[k];
  return CUDA_SUCCESS;
}

API cuStreamWaitEvent(CUstream hStream, CUevent hEvent, unsigned int Flags) {
  ENTER(NEED_INIT | NEED_CONTEXT);
  CUstream s = stream_of(hStream);
  (void)Flags;
  if (!s || !object_is(hEvent, IS_EVENT)) return CUDA_ERROR_INVALID_HANDLE;
  if (hEvent->capture) return join_capture(s, hEvent);
  if (s->capture) return CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
  return stream_add(hStream,
                    &(Work){.kind = WORK_WAIT, .event = hEvent, .version = hEvent->recorded});
}

API cuEventCreate(CUevent *phEvent, unsigned int Flags) {
  ENTER(NEED_INIT | NEED_CONTEXT);
  if (Flags & ~7u) return CUDA_ERROR_INVALID_VALUE;
  CUevent e = host_alloc(sizeof *e);
  e->timing = !(Flags & CU_EVENT_DISABLE_TIMING);
  object_add(&e->o, IS_EVENT);
  *phEvent = e;
  return CUDA_SUCCESS;
}

API cuEventDestroy_v2(CUevent hEvent) {
  ENTER(NEED_INIT | NEED_CONTEXT | RELEASES);
  if (!object_is(hEvent, IS_EVENT)) return CUDA_ERROR_INVALID_HANDLE;
  object_remove(&hEvent->o);
  free(hEvent->tail);
  free(hEvent);
  RELEASED;
}

API cuEventRecord(CUevent hEvent, CUstream hStream) {
  ENTER(NEED_INIT | NEED_CONTEXT);
  CUstream s = stream_of(hStream);
  if (!s || !object_is(hEvent, IS_EVENT)) return CUDA_ERROR_INVALID_HANDLE;
  hEvent->capture = s->capture;
  if (s->capture) {
    hEvent->tail = host_grow(hEvent->tail, (size_t)(s->n_tail + 1) * sizeof(int));
    if (s->n_tail) memcpy(hEvent->tail, s->tail, (size_t)s->n_tail * sizeof(int));
    hEvent->n_tail = s->n_tail;
    return CUDA_SUCCESS;
  }
  return stream_add(hStream,
                    &(Work){.kind = WORK_RECORD, .event = hEvent, .version = ++hEvent->recorded});
}

API cuEventQuery(CUevent hEvent) {
  ENTER(NEED_INIT | NEED_CONTEXT);
  if (!object_is(hEvent, IS_EVENT)) return CUDA_ERROR_INVALID_HANDLE;
  if (hEvent->capture) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  if (hEvent->completed >= hEvent->recorded) return CUDA_SUCCESS;
  stream_step(NULL);
  if (context_now()->sticky) return context_now()->sticky;
  return CUDA_ERROR_NOT_READY;
}

API cuEventSynchronize(CUevent hEvent) {
  ENTER(NEED_INIT | NEED_CONTEXT);
  if (!object_is(hEvent, IS_EVENT)) return CUDA_ERROR_INVALID_HANDLE;
  if (hEvent->capture) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  uint64_t version = hEvent->recorded;
  while (hEvent->completed < version && !context_now()->sticky)
    if (!stream_step(NULL)) return context_now()->sticky = CUDA_ERROR_LAUNCH_FAILED;
  return context_now()->sticky;
}

API cuEventElapsedTime(float *pMilliseconds, CUevent hStart, CUevent hEnd) {
  ENTER(NEED_INIT | NEED_CONTEXT);
  if (!object_is(hStart, IS_EVENT) || !object_is(hEnd, IS_EVENT) || !hStart->timing ||
      !hEnd->timing || !hStart->recorded || !hEnd->recorded)
    return CUDA_ERROR_INVALID_HANDLE;
  if (hStart->completed < hStart->recorded || hEnd->completed < hEnd->recorded)
    return CUDA_ERROR_NOT_READY;
  *pMilliseconds = (float)(hEnd->time - hStart->time);
  return CUDA_SUCCESS;
}

API cuEventElapsedTime_v2(float *pMilliseconds, CUevent hStart, CUevent hEnd) {
  ENTER(NO_COUNT);
  return cuEventElapsedTime(pMilliseconds, hStart, hEnd);
}
