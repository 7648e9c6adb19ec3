/* Which kernels NVIDIA's libraries serve. In: a contraction, a device; out: Kernel.choice, 0 for Kiln's own kernel or 1 + a
 * CudaLibrary. Every candidate runs a few times on the device, on zeros; the fastest is kept, for the process and on disk, under
 * the device, the versions of driver and libraries, and all that the kernel's code follows from. A candidate that fails is none:
 * own kernels always are one. */
#include "foreign.h"
#include "../llvm/llvm.h"
#include <string.h>

static const ForeignCalls *const foreign_calls[LIBRARY_N] = {
    [LIBRARY_CUBLAS] = &cublas_calls, [LIBRARY_CUDNN] = &cudnn_calls};

/* ---- libraries of a device ---- */

/* NULL: the library is not there, or refuses. */
static void *device_library(CudaDevice *d, CudaLibrary l) {
  if (!d->library[l].tried && library_open(l)) {
    if (!foreign_calls[l]->open(&d->library[l].handle)) d->library[l].handle = NULL;
    err_clear();
  }
  d->library[l].tried = true;
  return d->library[l].handle;
}

void device_libraries_close(CudaDevice *d) {
  for (int l = 0; l < LIBRARY_N; l++)
    if (d->library[l].handle) foreign_calls[l]->close(d->library[l].handle);
}

/* ---- calls ---- */

void foreign_start(Foreign *f, CudaLibrary l, CudaDevice *d, const Kernel *k) {
  bool apart = foreign_sums_apart(k);
  size_t bytes = (size_t)node_numel(k->core) * (size_t)dtype_info[k->core->dtype].size;
  f->calls = foreign_calls[l];
  f->handle = d->library[l].handle;
  f->kernel = k;
  f->result = k->inputs.n + (apart ? k->outputs.n : 0);
  f->workspace_at = apart ? (int64_t)cuda_aligned(bytes) : 0;
  f->whole = !apart;
}

void foreign_whole(Foreign *f) {
  f->result = f->kernel->inputs.n;
  f->workspace_at = 0;
  f->whole = true;
}

/* Bytes of the kernel's workspace that the call needs. */
static int64_t foreign_workspace(const Foreign *f) { return f->workspace_at + f->workspace; }

static Foreign *make_call(Arena *a, CudaDevice *d, const Kernel *k, CudaMath math, CudaLibrary l) {
  static const int64_t most = 64 << 20;
  if (!device_library(d, l)) return NULL;
  Foreign *f = foreign_calls[l]->make(a, d, k, d->sm < 80 ? CUDA_F32 : math, most);
  err_clear();
  return f;
}

/* Kernel.choice */
static int code_of(const Foreign *f, int i) { return i | (f && f->whole ? CUDA_WHOLE : 0); }

Foreign *chosen_call(Arena *a, CudaDevice *d, const Kernel *k, CudaMath math) {
  int i = k->choice & ~CUDA_WHOLE;
  Foreign *f = make_call(a, d, k, math, (CudaLibrary)(i - 1));
  if (f && foreign_workspace(f) <= k->workspace && code_of(f, i) == k->choice) return f;
  foreign_free(f);
  return NULL;
}

/* ---- measuring ---- */

/* The kernel's buffers, on the device, all zeros. */
typedef struct Bench {
  Arena *a;
  CudaDevice *d;
  Kernel *k;
  CudaTarget t;
  CUdeviceptr memory, run, *at;
  int64_t *bytes; /* per buffer */
  CUevent from, to;
} Bench;

static bool bench_open(Bench *b, int64_t workspace) {
  const Kernel *k = b->k;
  int n = k->inputs.n + k->outputs.n;
  size_t all = CUDA_ALIGN;
  b->at = arena_array(b->a, CUdeviceptr, n + 1);
  b->bytes = arena_array(b->a, int64_t, n + 1);
  for (int i = 0; i <= n; i++) {
    const Node *x = i < k->inputs.n ? k->inputs.v[i].node
                    : i < n         ? k->outputs.v[i - k->inputs.n]
                                    : NULL;
    b->bytes[i] = x ? node_numel(x) * dtype_info[x->dtype].size : workspace;
    b->at[i] = all;
    all += cuda_aligned((size_t)b->bytes[i]);
  }
  if (!device_alloc(b->d, all, &b->memory)) return false;
  b->run = b->memory;
  for (int i = 0; i <= n; i++) b->at[i] += b->memory;
  return CU(cuMemsetD8Async, b->memory, 0, all, b->d->compute) && CU(cuEventCreate, &b->from, 0) &&
         CU(cuEventCreate, &b->to, 0);
}

static void bench_close(Bench *b) {
  CU_DROP(cuStreamSynchronize, b->d->compute);
  if (b->from) CU_DROP(cuEventDestroy, b->from);
  if (b->to) CU_DROP(cuEventDestroy, b->to);
  if (b->memory) CU_DROP(cuMemFree, b->memory);
}

static bool run_once(const Bench *b, const Foreign *f, const CudaPlan *p, const CUfunction *fn) {
  bool ok = !f || f->calls->run(f, b->at, b->d->compute);
  for (int i = 0; ok && i < p->n; i++) {
    const CudaLaunch *l = &p->launch[i];
    ok = launch_entry(l, fn[i], b->at, b->bytes[l->clear_buf], b->run, b->d->compute);
  }
  return ok;
}

/* The shortest of a few runs, in milliseconds. */
static bool run_few(const Bench *b, const Foreign *f, const CudaPlan *p, const CUfunction *fn,
                    float *best) {
  enum { RUNS = 4 }; /* the first one warms up */
  for (int i = 0; i < RUNS; i++) {
    float ms;
    if (!CU(cuEventRecord, b->from, b->d->compute) || !run_once(b, f, p, fn) ||
        !CU(cuEventRecord, b->to, b->d->compute) || !CU(cuEventSynchronize, b->to) ||
        !CU(cuEventElapsedTime, &ms, b->from, b->to))
      return false;
    if (i == 1 || (i > 1 && ms < *best)) *best = ms;
  }
  return true;
}

/* Of the kernel with Kernel.choice as it is. */
static bool measure(Bench *b, const Foreign *f, float *ms) {
  CUmodule m = NULL;
  CUfunction *fn = NULL;
  Str ptx;
  str_init(&ptx, b->a);
  const CudaPlan *p = cuda_plan(b->a, b->k, &b->t);
  bool ok = p != NULL;
  if (ok && p->n)
    ok = cuda_ptx(1, &b->k, &b->t, &ptx) && module_load(ptx.s, &m) &&
         module_functions(b->a, m, p, &fn);
  ok = ok && run_few(b, f, p, fn, ms);
  CU_DROP(cuStreamSynchronize, b->d->compute);
  if (m) CU_DROP(cuModuleUnload, m);
  return ok;
}

/* ---- the choice ---- */

typedef struct CudaChoice {
  const char *key;
  size_t n;
  int choice;        /* as Kernel.choice */
  int64_t workspace; /* of a library */
  bool failed;       /* something could not be measured */
  struct CudaChoice *next;
} CudaChoice;

static const char *const names[] = {"own kernel", "cuBLASLt", "cuDNN"};
enum { N_CHOICES = 1 + LIBRARY_N };

typedef struct Candidates {
  Foreign *f[N_CHOICES]; /* by 1 + CudaLibrary */
  int first;             /* 0: there is none */
  int64_t workspace;     /* the largest, or the own kernel's */
} Candidates;

static void find_candidates(Candidates *c, Arena *a, CudaDevice *d, const Kernel *k,
                            CudaMath math) {
  *c = (Candidates){.workspace = k->workspace};
  for (int i = N_CHOICES - 1; i > 0; i--) {
    Foreign *f = c->f[i] = make_call(a, d, k, math, (CudaLibrary)(i - 1));
    if (!f) continue;
    c->first = i;
    if (foreign_workspace(f) > c->workspace) c->workspace = foreign_workspace(f);
  }
}

/* The fastest of those that run. */
static int compare(Bench *b, const Candidates *c, CudaChoice *r) {
  int choice = 0;
  float best = 0;
  for (int i = 0; i < N_CHOICES; i++) {
    float ms = 0;
    if (i && !c->f[i]) continue;
    b->k->choice = code_of(c->f[i], i);
    bool ok = measure(b, c->f[i], &ms);
    r->failed |= !ok;
    err_clear();
    if (!ok || (best > 0 && ms >= best)) continue;
    choice = i;
    best = ms;
  }
  b->k->choice = 0;
  return choice;
}

static void decide(CudaChoice *r, CudaDevice *d, Kernel *k, CudaMath math) {
  Arena *a = arena_scratch();
  Bench b = {.a = a, .d = d, .k = k};
  Candidates c;
  int i = 0;
  find_candidates(&c, a, d, k, math);
  if (c.first && k->tuning == TUNE_LIBRARY)
    i = c.first;
  else if (c.first) {
    if (cuda_target(d->target, &b.t) && bench_open(&b, c.workspace)) {
      b.t.math = math;
      i = compare(&b, &c, r);
    } else
      r->failed = true;
    bench_close(&b);
  }
  err_clear();
  r->choice = code_of(c.f[i], i);
  r->workspace = i ? foreign_workspace(c.f[i]) : 0;
  for (int j = 1; j < N_CHOICES; j++) foreign_free(c.f[j]);
  arena_free(a);
}

/* ---- what is remembered ---- */

static void choice_key(const CudaDevice *d, Kernel *k, CudaMath math, Str *key) {
  Str code;
  str_init(&code, key->a);
  cuda_key(k, &code);
  str_fmt(key, "provider %s %d %d %lld %lld %d %d %a\n", d->model, d->sm, cuda_version(),
          (long long)library_open(LIBRARY_CUBLAS), (long long)library_open(LIBRARY_CUDNN),
          (int)math, (int)k->tuning, k->conv_error);
  str_addn(key, code.s, code.n);
}

static bool read_choice(const Str *key, CudaChoice *r) {
  const uint8_t *text;
  size_t n;
  char own[64] = "";
  long long workspace;
  int used = 0;
  if (!cache_get(key->a, key->s, key->n, &text, &n) || n >= sizeof own) return false;
  memcpy(own, text, n);
  bool ok = sscanf(own, "%d %lld%n", &r->choice, &workspace, &used) == 2 && (size_t)used == n &&
            r->choice >= 0 && (r->choice & ~CUDA_WHOLE) < N_CHOICES && workspace >= 0;
  r->workspace = workspace;
  return ok;
}

static void write_choice(const Str *key, const CudaChoice *r) {
  char text[64];
  int n = snprintf(text, sizeof text, "%d %lld", r->choice, (long long)r->workspace);
  cache_put(key->s, key->n, text, (size_t)n);
}

/* A measurement that failed is remembered by the process alone, and a forced choice by nobody else. */
static const CudaChoice *find_choice(CudaDevice *d, Kernel *k, CudaMath math) {
  Arena *a = arena_scratch();
  Str key;
  str_init(&key, a);
  choice_key(d, k, math, &key);
  CudaChoice *r = d->choice;
  while (r && (r->n != key.n || memcmp(r->key, key.s, key.n))) r = r->next;
  if (!r) {
    CudaChoice made = {.n = key.n, .next = d->choice};
    bool forced = k->tuning == TUNE_LIBRARY;
    if (forced || !read_choice(&key, &made)) {
      made.choice = 0, made.workspace = 0;
      decide(&made, d, k, math);
      if (!made.failed && !forced) write_choice(&key, &made);
    }
    if (!d->choices) d->choices = arena_new();
    made.key = arena_dup(d->choices, key.s, key.n);
    r = d->choice = arena_dup(d->choices, &made, sizeof made);
  }
  arena_free(a);
  return r;
}

void choose_provider(Kernel *k, CudaDevice *d, CudaMath math) {
  if (!library_open(LIBRARY_CUBLAS) && !library_open(LIBRARY_CUDNN)) return;
  if (!device_enter(d)) {
    err_clear(); /* the run will say so */
    return;
  }
  MemGuard guard;
  if (MEM_GUARD(guard)) {
    device_leave(d);
    mem_rethrow();
  }
  const CudaChoice *c = find_choice(d, k, math);
  k->choice = c->choice;
  if (c->workspace > k->workspace) k->workspace = c->workspace;
  snprintf(k->by, sizeof k->by, "%s%s", names[c->choice & ~CUDA_WHOLE],
           c->failed ? ", tried others" : "");
  mem_unguard(&guard);
  device_leave(d);
}
