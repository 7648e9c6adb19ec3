/* Microkernels as functions of the process. In: specs; out: functions, compiled by ORC from the text of micro_ir.c. Only code
 * generation runs, no optimiser. Functions are shared and counted by reference like those of jit.c. */
#include "micro.h"
#include <llvm-c/Core.h>
#include <llvm-c/IRReader.h>
#include <llvm-c/LLJIT.h>
#include <llvm-c/Orc.h>
#include <llvm-c/Target.h>
#include <pthread.h>
#include <string.h>

/* ---- the table of the process ---- */

typedef struct Micro {
  struct Micro *next;
  MicroSpec spec;
  MicroFn *fn;
  LLVMOrcResourceTrackerRef tracker;
  int refs;
} Micro;

struct MicroModule {
  int n;
  Micro **v;
};

static struct {
  pthread_mutex_t lock;
  LLVMOrcLLJITRef jit;
  Micro *all;
  unsigned long long serial;
} micro = {.lock = PTHREAD_MUTEX_INITIALIZER};

static bool orc(LLVMErrorRef e, const char *doing) {
  if (!e) return true;
  char *why = LLVMGetErrorMessage(e);
  err_set(E_GEN_001, "%s: %s", doing, why);
  LLVMDisposeErrorMessage(why);
  return false;
}

static bool start(void) {
  if (micro.jit) return true;
  LLVMInitializeNativeTarget();
  LLVMInitializeNativeAsmPrinter();
  return orc(LLVMOrcCreateLLJIT(&micro.jit, NULL), "LLVM's JIT cannot start");
}

bool micro_same(const MicroSpec *a, const MicroSpec *b) {
  return a->dtype == b->dtype && a->lanes == b->lanes && a->mr == b->mr && a->nv == b->nv &&
         a->tail == b->tail && a->dot == b->dot && a->pitch == b->pitch && a->run == b->run &&
         a->jump == b->jump;
}

static Micro *find(const MicroSpec *s) {
  Micro *m = micro.all;
  while (m && !micro_same(&m->spec, s)) m = m->next;
  return m;
}

static void drop(Micro *m) {
  if (--m->refs) return;
  for (Micro **p = &micro.all; *p; p = &(*p)->next)
    if (*p == m) {
      *p = m->next;
      break;
    }
  if (m->tracker) {
    LLVMErrorRef e = LLVMOrcResourceTrackerRemove(m->tracker);
    if (e) LLVMConsumeError(e);
    LLVMOrcReleaseResourceTracker(m->tracker);
  }
  mem_free(m);
}

static void module_drop(MicroModule *m) {
  for (int i = 0; m && i < m->n; i++)
    if (m->v[i]) drop(m->v[i]);
  if (m) mem_free(m->v);
  mem_free(m);
}

void micro_free(MicroModule *m) {
  if (!m) return;
  pthread_mutex_lock(&micro.lock);
  module_drop(m);
  pthread_mutex_unlock(&micro.lock);
}

static bool keep_text(const char *dir, const char *symbol, const Str *s) {
  char path[4096];
  snprintf(path, sizeof path, "%s/%s.ll", dir, symbol);
  return vfs_mkdirs(dir) && vfs_write(path, s->s, s->n);
}

static bool link_text(Micro *m, const Str *s, const char *symbol) {
  LLVMOrcThreadSafeContextRef tsc = LLVMOrcCreateNewThreadSafeContext();
  LLVMContextRef c = LLVMOrcThreadSafeContextGetContext(tsc);
  LLVMMemoryBufferRef buf = LLVMCreateMemoryBufferWithMemoryRangeCopy(s->s, s->n, symbol);
  LLVMModuleRef module = NULL;
  char *why = NULL;
  bool bad = LLVMParseIRInContext(c, buf, &module, &why);
  if (bad) {
    err_set(E_GEN_001, "microkernel: %.400s", why ? why : "malformed");
    LLVMDisposeMessage(why);
  }
  LLVMOrcThreadSafeModuleRef tsm = bad ? NULL : LLVMOrcCreateNewThreadSafeModule(module, tsc);
  LLVMOrcDisposeThreadSafeContext(tsc);
  if (bad) return false;
  m->tracker = LLVMOrcJITDylibCreateResourceTracker(LLVMOrcLLJITGetMainJITDylib(micro.jit));
  LLVMOrcExecutorAddress at = 0;
  if (!orc(LLVMOrcLLJITAddLLVMIRModuleWithRT(micro.jit, m->tracker, tsm), "adding a microkernel") ||
      !orc(LLVMOrcLLJITLookup(micro.jit, &at, symbol), "compiling a microkernel"))
    return false;
  m->fn = (MicroFn *)(uintptr_t)at;
  return true;
}

static bool make(Micro *m, const CompileOptions *o, Arena *a) {
  Str s;
  char symbol[32];
  str_init(&s, a);
  snprintf(symbol, sizeof symbol, "micro_%03llu", micro.serial++);
  micro_text(&m->spec, symbol, &s);
  if (o && o->dump_dir && !keep_text(o->dump_dir, symbol, &s)) return false;
  return start() && link_text(m, &s, symbol);
}

static bool fill(MicroModule *m, const MicroSpec *spec, const CompileOptions *o, Arena *a) {
  for (int i = 0; i < m->n; i++) {
    Micro *u = find(&spec[i]);
    if (u) {
      u->refs++;
      m->v[i] = u;
      continue;
    }
    u = m->v[i] = mem_alloc(sizeof *u);
    *u = (Micro){.next = micro.all, .spec = spec[i], .refs = 1};
    micro.all = u;
    if (!make(u, o, a)) return false;
  }
  return true;
}

MicroModule *micro_compile(int n, const MicroSpec *spec, const CompileOptions *o, MicroFn **fn) {
  MicroModule *volatile m = NULL;
  pthread_mutex_lock(&micro.lock);
  MemGuard guard;
  if (MEM_GUARD(guard)) {
    module_drop(m);
    pthread_mutex_unlock(&micro.lock);
    mem_rethrow();
  }
  Arena *a = arena_scratch();
  MicroModule *r = m = mem_alloc(sizeof *m);
  r->v = mem_alloc((size_t)(n ? n : 1) * sizeof *r->v);
  r->n = n;
  bool ok = fill(r, spec, o, a);
  for (int i = 0; ok && i < n; i++) fn[i] = r->v[i]->fn;
  arena_free(a);
  mem_unguard(&guard);
  if (!ok) module_drop(r);
  pthread_mutex_unlock(&micro.lock);
  return ok ? r : NULL;
}
