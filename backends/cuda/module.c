/* Modules: kernels made ready for a device. In: kernels; out: their plans, one PTX text with all entries, the machine code that
 * the driver makes of it, and the functions in it. The disk cache keeps the text (under the kernels and the generator's build)
 * and the machine code (under the text, the architecture and the driver's version); what is taken from there and cannot be
 * loaded is made again. */
#include "foreign.h"
#include "../llvm/llvm.h"
#include <stdlib.h>
#include <string.h>

enum { LOG_BYTES = 4096 };

/* ---- machine code ---- */

/* With the driver's log for calls that compile. The result is that of `call`. */
typedef struct Log {
  char text[LOG_BYTES];
  int option[2];
  void *value[2];
} Log;

static void log_open(Log *l) {
  *l = (Log){.option = {CU_JIT_ERROR_LOG_BUFFER, CU_JIT_ERROR_LOG_BYTES},
             .value = {l->text, (void *)(uintptr_t)(LOG_BYTES - 1)}};
}

/* The lines of the log as notes. */
static bool log_tell(Log *l) {
  char *rest = NULL;
  for (char *line = strtok_r(l->text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest))
    err_note("%.300s", line);
  return false;
}

/* PTX to machine code, in the arena. */
static bool compile_ptx(Arena *a, const Str *ptx, uint8_t **code, size_t *n) {
  Log log;
  CUlinkState link;
  void *made = NULL;
  log_open(&log);
  if (!CU(cuLinkCreate, 2, log.option, log.value, &link)) return log_tell(&log);
  bool ok = CU(cuLinkAddData, link, CU_JIT_INPUT_PTX, ptx->s, ptx->n + 1, "kiln", 0, NULL, NULL) &&
            CU(cuLinkComplete, link, &made, n);
  if (!ok) log_tell(&log);
  if (ok) {
    MemGuard guard;
    if (MEM_GUARD(guard)) {
      CU_DROP(cuLinkDestroy, link);
      mem_rethrow();
    }
    *code = arena_dup(a, made, *n);
    mem_unguard(&guard);
  }
  CU_DROP(cuLinkDestroy, link);
  return ok;
}

bool module_load(const void *code, CUmodule *m) {
  Log log;
  log_open(&log);
  return CU(cuModuleLoadDataEx, m, code, 2, log.option, log.value) || log_tell(&log);
}

static bool load_cached(Module *m, Arena *a, const Str *key) {
  const uint8_t *code;
  size_t n;
  if (!cache_get(a, key->s, key->n, &code, &n)) return false;
  if (module_load(arena_dup(a, code, n), &m->module)) return true; /* the driver wants it aligned */
  m->module = NULL;
  err_clear();
  return false;
}

static bool load_ptx(Module *m, const Str *ptx) {
  Arena *a = arena_scratch();
  Str key;
  uint8_t *code;
  size_t n;
  str_init(&key, a);
  str_fmt(&key, "cubin %d %d\n", m->d->sm, cuda_version());
  str_addn(&key, ptx->s, ptx->n);
  bool ok = load_cached(m, a, &key);
  if (!ok && compile_ptx(a, ptx, &code, &n) && module_load(code, &m->module)) {
    ok = true;
    cache_put(key.s, key.n, code, n);
  }
  arena_free(a);
  return ok;
}

/* ---- PTX ---- */

/* All that the text follows from. */
static void ptx_key(const Module *m, const CudaTarget *t, Str *key) {
  str_fmt(key, "ptx %s %d %d %d\n", codegen_build(), t->sm, (int)t->math, m->n);
  for (int i = 0; i < m->n; i++) {
    Str own;
    str_init(&own, key->a);
    cuda_key(m->kernel[i], &own);
    str_fmt(key, "%zu ", own.n);
    str_addn(key, own.s, own.n);
    for (int j = 0; j < m->plan[i]->n; j++)
      str_fmt(key, "%s %d\n", m->plan[i]->launch[j].entry, m->plan[i]->launch[j].guarded);
  }
}

static bool make_ptx(const Module *m, const CudaTarget *t, Str *ptx) {
  Str key;
  const uint8_t *text;
  size_t n;
  str_init(&key, ptx->a);
  ptx_key(m, t, &key);
  if (cache_get(ptx->a, key.s, key.n, &text, &n)) {
    str_addn(ptx, (const char *)text, n);
    return true;
  }
  if (!cuda_ptx(m->n, m->kernel, t, ptx)) return false;
  cache_put(key.s, key.n, ptx->s, ptx->n);
  return true;
}

/* ---- functions ---- */

static const char guarded_name[] = "kiln_guarded_copy";

/* Copies words, unless a check has failed: for state that is written at the exit (Graph.copies). */
static const char guarded_copy[] =
    "\n.visible .entry kiln_guarded_copy(\n"
    "  .param .u64 to, .param .u64 from, .param .u64 n, .param .u64 run)\n"
    "{\n"
    "  .reg .pred %p<3>;\n"
    "  .reg .b32 %r<5>;\n"
    "  .reg .b64 %rd<12>;\n"
    "  .reg .b16 %h<2>;\n"
    "  ld.param.u64 %rd0, [run];\n"
    "  cvta.to.global.u64 %rd0, %rd0;\n"
    "  ld.global.u64 %rd1, [%rd0+16];\n"
    "  setp.ne.u64 %p0, %rd1, 0;\n"
    "  @%p0 bra END;\n"
    "  ld.param.u64 %rd2, [to];\n"
    "  ld.param.u64 %rd3, [from];\n"
    "  ld.param.u64 %rd4, [n];\n"
    "  cvta.to.global.u64 %rd2, %rd2;\n"
    "  cvta.to.global.u64 %rd3, %rd3;\n"
    "  mov.u32 %r0, %ctaid.x;\n"
    "  mov.u32 %r1, %ntid.x;\n"
    "  mov.u32 %r2, %tid.x;\n"
    "  mov.u32 %r3, %nctaid.x;\n"
    "  mad.wide.u32 %rd5, %r0, %r1, 0;\n"
    "  cvt.u64.u32 %rd6, %r2;\n"
    "  add.u64 %rd5, %rd5, %rd6;\n"
    "  mul.wide.u32 %rd7, %r3, %r1;\n"
    "LOOP:\n"
    "  setp.ge.u64 %p1, %rd5, %rd4;\n"
    "  @%p1 bra END;\n"
    "  add.u64 %rd8, %rd3, %rd5;\n"
    "  add.u64 %rd9, %rd2, %rd5;\n"
    "  ld.global.u8 %h0, [%rd8];\n"
    "  st.global.u8 [%rd9], %h0;\n"
    "  add.u64 %rd5, %rd5, %rd7;\n"
    "  bra LOOP;\n"
    "END:\n"
    "  ret;\n"
    "}\n";

enum { SHARED_BYTES = 48 << 10 }; /* that a kernel may have without asking */

bool module_functions(Arena *a, CUmodule m, const CudaPlan *p, CUfunction **f) {
  *f = arena_array(a, CUfunction, p->n + 1);
  for (int i = 0; i < p->n; i++) {
    const CudaLaunch *l = &p->launch[i];
    if (!CU(cuModuleGetFunction, &(*f)[i], m, l->entry) ||
        (l->shared > SHARED_BYTES &&
         !CU(cuFuncSetAttribute, (*f)[i], CU_FUNC_DYNAMIC_SHARED, (int)l->shared)))
      return false;
  }
  return true;
}

static bool find_functions(Module *m) {
  for (int i = 0; i < m->n; i++)
    if (!module_functions(m->arena, m->module, m->plan[i], &m->fn[i])) {
      err_where("kernel %s", m->kernel[i]->name);
      return false;
    }
  return !m->g->copies.n || !m->checks ||
         CU(cuModuleGetFunction, &m->copy, m->module, guarded_name);
}

/* ---- the module ---- */

static bool has_checks(const Graph *g) {
  for (int i = 0; i < g->kernels.n; i++)
    for (int j = 0; j < g->kernels.v[i]->nodes.n; j++)
      if (g->kernels.v[i]->nodes.v[j]->prim == P_CHECK) return true;
  return false;
}

/* A library writes state even after a failed check, which kernels that follow it do not. */
static bool call_allowed(const Module *m, int i, const Foreign *f) {
  const Buffer *to = m->bufs[i][f->result];
  return !m->checks || to->kind != B_STATE;
}

/* The calls of the libraries that were chosen; where one cannot be made, the own kernel runs. */
static bool prepare_calls(Module *m, void *target) {
  const CudaTarget *t = target;
  for (int i = 0; i < m->n; i++) {
    Kernel *k = m->kernel[i];
    if (!k->choice) continue;
    Foreign *f = m->foreign[i] = chosen_call(m->arena, m->d, k, t->math);
    if (f && call_allowed(m, i, f)) continue;
    foreign_free(f);
    m->foreign[i] = NULL;
    k->choice = 0;
    snprintf(k->by, sizeof k->by, "own kernel");
  }
  return true;
}

static void bind_kernels(Module *m) {
  int most = 0;
  for (int i = 0; i < m->n; i++) {
    const Kernel *k = m->kernel[i];
    if (k->inputs.n + k->outputs.n > most) most = k->inputs.n + k->outputs.n;
    Buffer **b = m->bufs[i] = arena_array(m->arena, Buffer *, k->inputs.n + k->outputs.n + 1);
    for (int j = 0; j < k->inputs.n; j++) *b++ = k->inputs.v[j].node->buf;
    for (int j = 0; j < k->outputs.n; j++) *b++ = k->outputs.v[j]->buf;
    *b = k->ws;
  }
  m->at = arena_array(m->arena, CUdeviceptr, most + 1);
}

static int plan_kernels(Module *m, const CudaTarget *t) {
  int launches = 0;
  for (int i = 0; i < m->n; i++) {
    const Kernel *k = m->kernel[i];
    m->plan[i] = cuda_plan(m->arena, k, t);
    if (!m->plan[i]) return -1;
    launches += m->plan[i]->n;
    m->calls |= m->plan[i]->on_host;
  }
  return launches;
}

_Static_assert(sizeof(CudaRun) <= CUDA_ALIGN, "a slot starts with the CudaRun");

static void lay_out_slot(Module *m) {
  const Graph *g = m->g;
  m->feed_at = arena_array(m->arena, int64_t, g->buffers.n + 1);
  m->slot_bytes = CUDA_ALIGN;
  for (int i = 0; i < g->buffers.n; i++) {
    if (g->buffers.v[i]->kind != B_FEED) continue;
    m->feed_at[i] = (int64_t)m->slot_bytes;
    m->slot_bytes += cuda_aligned((size_t)g->buffers.v[i]->bytes);
  }
  m->back_bytes = CUDA_ALIGN;
  for (int i = 0; i < g->fetches.n; i++)
    m->back_bytes += cuda_aligned((size_t)g->fetches.v[i].node->buf->bytes);
}

/* On the device, which others wait for. */
static bool inside(Module *m, void *user, bool (*fn)(Module *, void *)) {
  if (!device_enter(m->d)) return false;
  MemGuard guard;
  if (MEM_GUARD(guard)) {
    device_leave(m->d);
    mem_rethrow();
  }
  bool ok = fn(m, user);
  mem_unguard(&guard);
  device_leave(m->d);
  return ok;
}

static bool load_kernels(Module *m, void *ptx) { return load_ptx(m, ptx) && find_functions(m); }

static bool has_calls(const Module *m) {
  bool any = false;
  for (int i = 0; i < m->n; i++) any |= m->kernel[i]->choice != 0;
  return any;
}

static bool make_module(Module *m, CudaTarget *t) {
  bind_kernels(m);
  if (has_calls(m) && !inside(m, t, prepare_calls)) return false;
  int launches = plan_kernels(m, t);
  if (launches <= 0) return launches == 0;
  Arena *a = arena_scratch();
  Str ptx;
  str_init(&ptx, a);
  bool ok = make_ptx(m, t, &ptx);
  if (ok && m->g->copies.n && m->checks) str_add(&ptx, guarded_copy);
  ok = ok && inside(m, &ptx, load_kernels);
  arena_free(a);
  return ok;
}

Module *module_new(const Graph *g, int n, Kernel *const *k, const CompileOptions *o) {
  CudaTarget t;
  if (!cuda_target(o->target, &t)) return NULL;
  Arena *a = arena_new();
  Module *const m = arena_new_of(a, Module);
  *m = (Module){.arena = a, .d = (CudaDevice *)o->device, .g = g, .n = n, .kernel = k};
  device_hold(m->d);
  MemGuard guard;
  if (MEM_GUARD(guard)) {
    module_close(m);
    mem_rethrow();
  }
  m->plan = arena_array(a, CudaPlan *, n + 1);
  m->foreign = arena_array(a, Foreign *, n + 1);
  m->fn = arena_array(a, CUfunction *, n + 1);
  m->bufs = arena_array(a, Buffer **, n + 1);
  m->called = arena_array(a, uint8_t *, n + 1);
  m->checks = has_checks(g);
  lay_out_slot(m);
  bool ok = make_module(m, &t);
  mem_unguard(&guard);
  if (ok) return m;
  module_close(m);
  return NULL;
}

void module_close(Module *m) {
  if (!m) return;
  CudaDevice *d = m->d;
  pthread_mutex_lock(&d->lock);
  CU_DROP(cuCtxSetCurrent, d->context);
  CU_DROP(cuStreamSynchronize, d->compute);
  run_free(m);
  for (int i = 0; m->foreign && i < m->n; i++) foreign_free(m->foreign[i]);
  if (m->module) CU_DROP(cuModuleUnload, m->module);
  pthread_mutex_unlock(&d->lock);
  device_drop(d);
  arena_free(m->arena);
}
