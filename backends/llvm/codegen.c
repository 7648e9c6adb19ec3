/* The module's entry. In: jobs; out: objects. Workers, one for each core, take jobs in turn; each has an LLVM context and a
 * target machine of its own. Generating is done by one worker at a time, since generators leave marks in nodes that kernels
 * share; optimising and emitting, which take nearly all the time, run side by side. */
#include "codegen.h"
#include "cuda_gen.h"
#include "gen.h"
#include "micro.h"
#include "build_id.h"
#include <pthread.h>
#include <string.h>
#include <unistd.h>

enum { MOST_WORKERS = 64 };

typedef struct Jobs {
  const CompileOptions *o;
  int n, next;
  CodegenJob *jobs;
  pthread_mutex_t generate;
  CodegenStatus status;
  Diag *why; /* of the first failure */
  pthread_mutex_t fail;
} Jobs;

/* What the thread says of its failure. */
static CodegenStatus failed(Diag *why) {
  *why = *err_get();
  err_clear();
  return why->code == E_MEM_001 ? CODEGEN_NO_MEMORY : CODEGEN_FAILED;
}

static void enter(const CodegenHost *h) {
  mem_table = h->mem;
  vfs_table = h->vfs;
  mem_chunk = h->mem_chunk;
}

/* ---- compile ---- */

static bool generate(Batch *b, Arena *a, CodegenJob *j) {
  if (j->kind == CODE_MICRO) {
    Str s;
    str_init(&s, a);
    micro_text(j->what, CODEGEN_SYMBOL, &s);
    return batch_parse(b, s.s);
  }
  const LoopJob *l = j->what;
  return batch_kernels(b, a, 1, &l->kernel, &l->part, (const char *[]){CODEGEN_SYMBOL});
}

static bool dump(Batch *b, Arena *a, const char *dir, const char *name) {
  Str s;
  str_init(&s, a);
  batch_text(b, &s);
  return vfs_mkdirs(dir) && vfs_write(arena_fmt(a, "%s/%s.ll", dir, name), s.s, s.n);
}

static bool run_job(Jobs *w, Target *t, CodegenJob *j) {
  Arena *a = arena_scratch();
  Batch *b = batch_new(t, a);
  MemGuard guard, inner;
  if (MEM_GUARD(guard)) {
    batch_free(b);
    mem_rethrow();
  }
  pthread_mutex_lock(&w->generate);
  if (MEM_GUARD(inner)) {
    pthread_mutex_unlock(&w->generate);
    mem_rethrow();
  }
  bool ok = generate(b, a, j);
  mem_unguard(&inner);
  pthread_mutex_unlock(&w->generate);
  Str object;
  str_init(&object, a);
  ok = ok && (j->kind == CODE_MICRO || batch_optimise(b)) &&
       (!w->o || !w->o->dump_dir || dump(b, a, w->o->dump_dir, j->name)) &&
       batch_emit(b, true, &object);
  if (ok) {
    j->object = memcpy(mem_alloc(object.n + 1), object.s, object.n);
    j->n = object.n;
  }
  mem_unguard(&guard);
  batch_free(b);
  arena_free(a);
  return ok;
}

static bool run_jobs(Jobs *w) {
  Target *const t = target_open(NULL);
  if (!t) return false;
  MemGuard guard;
  if (MEM_GUARD(guard)) {
    target_close(t);
    mem_rethrow();
  }
  bool ok = true;
  while (ok && !__atomic_load_n(&w->status, __ATOMIC_RELAXED)) {
    int i = __atomic_fetch_add(&w->next, 1, __ATOMIC_RELAXED);
    if (i >= w->n) break;
    ok = run_job(w, t, &w->jobs[i]);
  }
  mem_unguard(&guard);
  target_close(t);
  return ok;
}

static bool guarded(Jobs *w) {
  MemGuard guard;
  if (MEM_GUARD(guard)) return false;
  bool ok = run_jobs(w);
  mem_unguard(&guard);
  return ok;
}

static void *worker(void *user) {
  Jobs *w = user;
  if (!guarded(w)) {
    Diag d;
    CodegenStatus status = failed(&d);
    pthread_mutex_lock(&w->fail);
    if (!w->status) {
      *w->why = d;
      __atomic_store_n(&w->status, status, __ATOMIC_RELAXED);
    }
    pthread_mutex_unlock(&w->fail);
  }
  return NULL;
}

static CodegenStatus compile(const CodegenHost *h, int n, CodegenJob *jobs, const CompileOptions *o,
                             Diag *why) {
  enter(h);
  Jobs w = {.o = o, .n = n, .jobs = jobs, .why = why};
  pthread_t thread[MOST_WORKERS];
  long cores = sysconf(_SC_NPROCESSORS_ONLN);
  int m = 0, most = n < MOST_WORKERS ? n : MOST_WORKERS;
  pthread_mutex_init(&w.generate, NULL);
  pthread_mutex_init(&w.fail, NULL);
  while (m + 1 < most && m + 1 < cores && !pthread_create(&thread[m], NULL, worker, &w)) m++;
  worker(&w);
  for (int i = 0; i < m; i++) pthread_join(thread[i], NULL);
  pthread_mutex_destroy(&w.generate);
  pthread_mutex_destroy(&w.fail);
  for (int i = 0; w.status && i < n; i++) {
    mem_free(jobs[i].object);
    jobs[i].object = NULL;
  }
  return w.status;
}

/* ---- texts ---- */

/* What to make a text of: jobs, kernels for CUDA, or the description. */
typedef struct Emit {
  int n;
  const CodegenJob *jobs;
  const CompileOptions *o;
  Kernel *const *k;
  const CudaTarget *cuda; /* or NULL */
  const char *what;
} Emit;

static bool make_text(const Emit *e, Str *s) {
  if (e->cuda) return cuda_module_text(e->n, e->k, e->cuda, e->what, s);
  if (e->jobs) return target_emit(e->n, e->jobs, e->o, e->what, s);
  return target_describe(s), true;
}

static CodegenStatus text(const CodegenHost *h, const Emit *e, CodegenText *out, Diag *why) {
  enter(h);
  MemGuard guard;
  if (MEM_GUARD(guard)) return failed(why);
  Arena *a = arena_scratch();
  Str s;
  str_init(&s, a);
  bool ok = make_text(e, &s);
  if (ok) {
    out->bytes = memcpy(mem_alloc(s.n + 1), s.s, s.n);
    out->n = s.n;
  }
  arena_free(a);
  mem_unguard(&guard);
  return ok ? CODEGEN_OK : failed(why);
}

static CodegenStatus emit_text(const CodegenHost *h, int n, const CodegenJob *jobs,
                               const CompileOptions *o, const char *what, CodegenText *out,
                               Diag *why) {
  return text(h, &(Emit){.n = n, .jobs = jobs, .o = o, .what = what}, out, why);
}

static CodegenStatus cuda(const CodegenHost *h, int n, Kernel *const *k, const CudaTarget *t,
                          const char *what, CodegenText *out, Diag *why) {
  return text(h, &(Emit){.n = n, .k = k, .cuda = t, .what = what}, out, why);
}

static CodegenStatus describe(const CodegenHost *h, CodegenText *out, Diag *why) {
  return text(h, &(Emit){0}, out, why);
}

static const Codegen codegen = {compile, emit_text, cuda, describe};

__attribute__((visibility("default"))) CodegenEntry kiln_codegen;
const Codegen *kiln_codegen(const char *build) {
  return strcmp(build, KILN_BUILD_ID) ? NULL : &codegen;
}
