/* Microkernels of contractions. In: specs; out: functions. The code of one function, per element (r, v) of the tile's
 * accumulators, with vectors of the target's width:
 *   for each of the batch: for k in steps of UNROLL: B's vectors are loaded once, each element of A is broadcast and
 *   multiplied into them (llvm.fma); a loop of step 1 does the rest; then C is stored or added to.
 * A's row pitch is a constant of the code, so that an element of A is one load at a constant distance (the register blocks
 * are LIBXSMM's: Heinecke et al., SC 2016; the batch-reduced form: Georganas et al., arXiv 1906.06440).
 * Only code generation runs, no optimiser. Functions are shared and counted by reference like those of jit.c. */
#include "micro.h"
#include <llvm-c/Core.h>
#include <llvm-c/IRReader.h>
#include <llvm-c/LLJIT.h>
#include <llvm-c/Orc.h>
#include <llvm-c/Target.h>
#include <pthread.h>
#include <string.h>

enum { UNROLL = 4 };

/* ---- the text ---- */

typedef struct Text {
  Str s;
  MicroSpec m;
  const char *elem; /* "float" */
  int bytes;        /* of an element */
  char vec[24];     /* "<16 x float>" */
} Text;

/* One line for each accumulator; $ is its name's tail "r_v". */
static void each(Text *t, const char *line) {
  char at[24];
  for (int r = 0; r < t->m.mr; r++)
    for (int v = 0; v < t->m.nv; v++) {
      snprintf(at, sizeof at, "%d_%d", r, v);
      for (const char *p = line; *p; p++)
        if (*p == '$')
          str_add(&t->s, at);
        else if (*p == '@')
          str_add(&t->s, t->vec);
        else
          str_addn(&t->s, p, 1);
    }
}

static void field(Text *t, const char *name, size_t at, const char *type) {
  str_fmt(&t->s, "  %%%s.p = getelementptr i8, ptr %%args, i64 %zu\n", name, at);
  str_fmt(&t->s, "  %%%s = load %s, ptr %%%s.p, align 8\n", name, type, name);
}

static void fields(Text *t) {
  static const struct {
    const char *name, *type;
    size_t at;
  } all[] = {
      {"a0", "ptr", offsetof(MicroArgs, a)},
      {"b0", "ptr", offsetof(MicroArgs, b)},
      {"c0", "ptr", offsetof(MicroArgs, c)},
      {"lda", "i64", offsetof(MicroArgs, lda)},
      {"ldb", "i64", offsetof(MicroArgs, ldb)},
      {"ldc", "i64", offsetof(MicroArgs, ldc)},
      {"k", "i64", offsetof(MicroArgs, k)},
      {"columns", "i64", offsetof(MicroArgs, columns)},
      {"add", "i64", offsetof(MicroArgs, add)},
      {"batch", "i64", offsetof(MicroArgs, batch)},
      {"a_step", "i64", offsetof(MicroArgs, a_step)},
      {"b_step", "i64", offsetof(MicroArgs, b_step)},
  };
  for (size_t i = 0; i < sizeof all / sizeof *all; i++)
    field(t, all[i].name, all[i].at, all[i].type);
}

/* %mask: the lanes of the last vector that are there. */
static void mask(Text *t) {
  int l = t->m.lanes;
  str_fmt(&t->s, "  %%left = sub i64 %%columns, %d\n  %%left32 = trunc i64 %%left to i32\n",
          (t->m.nv - 1) * l);
  str_fmt(&t->s, "  %%left1 = insertelement <%d x i32> poison, i32 %%left32, i32 0\n", l);
  str_fmt(&t->s,
          "  %%lefts = shufflevector <%d x i32> %%left1, <%d x i32> poison, <%d x i32> "
          "zeroinitializer\n",
          l, l, l);
  str_fmt(&t->s, "  %%mask = icmp sgt <%d x i32> %%lefts, <", l);
  for (int i = 0; i < l; i++) str_fmt(&t->s, "%si32 %d", i ? ", " : "", i);
  str_add(&t->s, ">\n");
}

static void load_vector(Text *t, const char *to, const char *ptr, bool masked) {
  if (masked)
    str_fmt(&t->s,
            "  %s = call %s @llvm.masked.load.v%df%d.p0(ptr %s, i32 %d, <%d x i1> %%mask, %s "
            "zeroinitializer)\n",
            to, t->vec, t->m.lanes, 8 * t->bytes, ptr, t->bytes, t->m.lanes, t->vec);
  else
    str_fmt(&t->s, "  %s = load %s, ptr %s, align %d\n", to, t->vec, ptr, t->bytes);
}

/* One step of k at distance u: pre + names of the accumulators before and after; ap and bp are the loop's pointers. */
static void step(Text *t, const char *loop, int u, const char *from, const char *to) {
  Str *s = &t->s;
  char name[48], ptr[48];
  int nv = t->m.nv;
  for (int v = 0; v < nv; v++) {
    snprintf(name, sizeof name, "%%%s.b%d.%d", loop, u, v);
    snprintf(ptr, sizeof ptr, "%%%s.bq%d.%d", loop, u, v);
    str_fmt(s, "  %s = getelementptr i8, ptr %%%s.bp%d, i64 %d\n", ptr, loop, u,
            v * t->m.lanes * t->bytes);
    load_vector(t, name, ptr, t->m.tail && v == nv - 1);
  }
  for (int r = 0; r < t->m.mr; r++) {
    long long at = t->m.pitch ? (r * t->m.pitch + u) * t->bytes : r * t->bytes;
    str_fmt(s, "  %%%s.aq%d.%d = getelementptr i8, ptr %%%s.ap%d, i64 %lld\n", loop, u, r, loop,
            t->m.pitch ? 0 : u, at);
    str_fmt(s, "  %%%s.x%d.%d = load %s, ptr %%%s.aq%d.%d, align %d\n", loop, u, r, t->elem, loop,
            u, r, t->bytes);
    str_fmt(s, "  %%%s.y%d.%d = insertelement %s poison, %s %%%s.x%d.%d, i32 0\n", loop, u, r,
            t->vec, t->elem, loop, u, r);
    str_fmt(s,
            "  %%%s.a%d.%d = shufflevector %s %%%s.y%d.%d, %s poison, <%d x i32> zeroinitializer\n",
            loop, u, r, t->vec, loop, u, r, t->vec, t->m.lanes);
    for (int v = 0; v < nv; v++)
      str_fmt(s,
              "  %%%s%d_%d = call %s @llvm.fma.v%df%d(%s %%%s.a%d.%d, %s %%%s.b%d.%d, %s "
              "%%%s%d_%d)\n",
              to, r, v, t->vec, t->m.lanes, 8 * t->bytes, t->vec, loop, u, r, t->vec, loop, u, v,
              t->vec, from, r, v);
  }
}

/* A block that repeats `count` times, advancing k by n; before: the block it comes from and its names. */
static void k_loop(Text *t, const char *loop, int n, const char *count, const char *before,
                   const char *ap, const char *bp, const char *next) {
  Str *s = &t->s;
  char line[192], from[32], to[32];
  str_fmt(s, "%s:\n  %%%s.i = phi i64 [ %s, %%%s ], [ %%%s.j, %%%s ]\n", loop, loop, count, before,
          loop, loop);
  str_fmt(s, "  %%%s.ap0 = phi ptr [ %s, %%%s ], [ %%%s.ap%d, %%%s ]\n", loop, ap, before, loop, n,
          loop);
  str_fmt(s, "  %%%s.bp0 = phi ptr [ %s, %%%s ], [ %%%s.bp%d, %%%s ]\n", loop, bp, before, loop, n,
          loop);
  snprintf(line, sizeof line, "  %%%s.0.$ = phi @ [ %%%s.c$, %%%s ], [ %%%s.%d.$, %%%s ]\n", loop,
           before, before, loop, n, loop);
  each(t, line);
  for (int u = 0; u < n; u++) {
    snprintf(from, sizeof from, "%s.%d.", loop, u);
    snprintf(to, sizeof to, "%s.%d.", loop, u + 1);
    step(t, loop, u, from, to);
    str_fmt(s, "  %%%s.bp%d = getelementptr i8, ptr %%%s.bp%d, i64 %%ldb\n", loop, u + 1, loop, u);
    if (!t->m.pitch)
      str_fmt(s, "  %%%s.ap%d = getelementptr i8, ptr %%%s.ap%d, i64 %%lda\n", loop, u + 1, loop,
              u);
  }
  if (t->m.pitch)
    str_fmt(s, "  %%%s.ap%d = getelementptr i8, ptr %%%s.ap0, i64 %d\n", loop, n, loop,
            n * t->bytes);
  str_fmt(s, "  %%%s.j = sub i64 %%%s.i, 1\n  %%%s.more = icmp ne i64 %%%s.j, 0\n", loop, loop,
          loop, loop);
  str_fmt(s, "  br i1 %%%s.more, label %%%s, label %%%s\n", loop, loop, next);
}

/* The end of a k loop, which may have been left out. */
static void join(Text *t, const char *block, const char *before, const char *loop, int n) {
  char line[192];
  str_fmt(&t->s, "%s:\n", block);
  snprintf(line, sizeof line, "  %%%s.c$ = phi @ [ %%%s.c$, %%%s ], [ %%%s.%d.$, %%%s ]\n", block,
           before, before, loop, n, loop);
  each(t, line);
}

static void store(Text *t) {
  Str *s = &t->s;
  char name[48], ptr[48];
  for (int add = 0; add < 2; add++) {
    str_fmt(s, "%s:\n", add ? "adding" : "storing");
    for (int r = 0; r < t->m.mr; r++) {
      str_fmt(s, "  %%w%d.o%d = mul i64 %%ldc, %d\n", add, r, r);
      for (int v = 0; v < t->m.nv; v++) {
        bool masked = t->m.tail && v == t->m.nv - 1;
        str_fmt(s, "  %%w%d.p%d_%d0 = getelementptr i8, ptr %%c0, i64 %%w%d.o%d\n", add, r, v, add,
                r);
        snprintf(ptr, sizeof ptr, "%%w%d.p%d_%d", add, r, v);
        str_fmt(s, "  %s = getelementptr i8, ptr %s0, i64 %d\n", ptr, ptr,
                v * t->m.lanes * t->bytes);
        snprintf(name, sizeof name, "%%end.c%d_%d", r, v);
        if (add) {
          char old[48];
          snprintf(old, sizeof old, "%%w.l%d_%d", r, v);
          load_vector(t, old, ptr, masked);
          str_fmt(s, "  %%w.s%d_%d = fadd %s %s, %s\n", r, v, t->vec, old, name);
          snprintf(name, sizeof name, "%%w.s%d_%d", r, v);
        }
        if (masked)
          str_fmt(
              s,
              "  call void @llvm.masked.store.v%df%d.p0(%s %s, ptr %s, i32 %d, <%d x i1> %%mask)\n",
              t->m.lanes, 8 * t->bytes, t->vec, name, ptr, t->bytes, t->m.lanes);
        else
          str_fmt(s, "  store %s %s, ptr %s, align %d\n", t->vec, name, ptr, t->bytes);
      }
    }
    str_add(s, "  ret void\n");
  }
}

/* Blocks: entry; of the batch: head, [main], middle, [rest], end; then adding or storing. */
static void function(Text *t, const char *symbol) {
  Str *s = &t->s;
  t->bytes = dtype_info[t->m.dtype].size;
  t->elem = t->m.dtype == DT_FLOAT32 ? "float" : "double";
  snprintf(t->vec, sizeof t->vec, "<%d x %s>", t->m.lanes, t->elem);
  int l = t->m.lanes, bits = 8 * t->bytes;
  str_fmt(s, "declare %s @llvm.fma.v%df%d(%s, %s, %s)\n", t->vec, l, bits, t->vec, t->vec, t->vec);
  str_fmt(s, "declare %s @llvm.masked.load.v%df%d.p0(ptr, i32, <%d x i1>, %s)\n", t->vec, l, bits,
          l, t->vec);
  str_fmt(s, "declare void @llvm.masked.store.v%df%d.p0(%s, ptr, i32, <%d x i1>)\n", l, bits,
          t->vec, l);
  str_fmt(s, "define void @%s(ptr noalias %%args) #0 {\nentry:\n", symbol);
  fields(t);
  if (t->m.tail) mask(t);
  str_fmt(s, "  %%main.n = lshr i64 %%k, 2\n  %%main.some = icmp ne i64 %%main.n, 0\n");
  str_fmt(s, "  %%rest.n = and i64 %%k, 3\n  %%rest.some = icmp ne i64 %%rest.n, 0\n");
  str_fmt(s, "  br label %%head\nhead:\n");
  str_fmt(s, "  %%i = phi i64 [ %%batch, %%entry ], [ %%j, %%end ]\n");
  str_fmt(s, "  %%a = phi ptr [ %%a0, %%entry ], [ %%a.next, %%end ]\n");
  str_fmt(s, "  %%b = phi ptr [ %%b0, %%entry ], [ %%b.next, %%end ]\n");
  each(t, "  %head.c$ = phi @ [ zeroinitializer, %entry ], [ %end.c$, %end ]\n");
  str_fmt(s, "  br i1 %%main.some, label %%main, label %%middle\n");
  k_loop(t, "main", UNROLL, "%main.n", "head", "%a", "%b", "middle");
  join(t, "middle", "head", "main", UNROLL);
  str_fmt(s, "  %%ap = phi ptr [ %%a, %%head ], [ %%main.ap%d, %%main ]\n", UNROLL);
  str_fmt(s, "  %%bp = phi ptr [ %%b, %%head ], [ %%main.bp%d, %%main ]\n", UNROLL);
  str_fmt(s, "  br i1 %%rest.some, label %%rest, label %%end\n");
  k_loop(t, "rest", 1, "%rest.n", "middle", "%ap", "%bp", "end");
  join(t, "end", "middle", "rest", 1);
  str_fmt(s, "  %%a.next = getelementptr i8, ptr %%a, i64 %%a_step\n");
  str_fmt(s, "  %%b.next = getelementptr i8, ptr %%b, i64 %%b_step\n");
  str_fmt(s, "  %%j = sub i64 %%i, 1\n  %%more = icmp ne i64 %%j, 0\n");
  str_fmt(s, "  br i1 %%more, label %%head, label %%write\nwrite:\n");
  str_fmt(s, "  %%adds = icmp ne i64 %%add, 0\n  br i1 %%adds, label %%adding, label %%storing\n");
  store(t);
  str_fmt(s, "}\nattributes #0 = { nounwind \"prefer-vector-width\"=\"%d\" }\n", l * bits);
}

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

static bool same(const MicroSpec *a, const MicroSpec *b) {
  return a->dtype == b->dtype && a->lanes == b->lanes && a->mr == b->mr && a->nv == b->nv &&
         a->tail == b->tail && a->pitch == b->pitch;
}

static Micro *find(const MicroSpec *s) {
  Micro *m = micro.all;
  while (m && !same(&m->spec, s)) m = m->next;
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
  Text t = {.m = m->spec};
  char symbol[32];
  str_init(&t.s, a);
  snprintf(symbol, sizeof symbol, "micro_%03llu", micro.serial++);
  function(&t, symbol);
  if (o && o->dump_dir && !keep_text(o->dump_dir, symbol, &t.s)) return false;
  return start() && link_text(m, &t.s, symbol);
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
