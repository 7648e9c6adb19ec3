/* From kernels to optimised modules and their texts. In: a target's name ("cpu", "cpu:NAME", "cuda:sm_NN"; the names are
 * those of cpus.def) and kernels;
 * out: LLVM IR, assembly, PTX or object bytes. Trouble inside LLVM becomes E-GEN-001. */
#include "../cuda/cuda.h"
#include "codegen.h"
#include "gen.h"
#include "micro.h"
#include <llvm-c/Analysis.h>
#include <llvm-c/IRReader.h>
#include <llvm-c/Linker.h>
#include <llvm-c/Target.h>
#include <llvm-c/TargetMachine.h>
#include <llvm-c/Transforms/PassBuilder.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

struct Target {
  LLVMTargetMachineRef tm;
  bool gpu, fma;
  int vector_bytes, registers; /* of a CPU */
};

struct Batch {
  Target *t;
  LLVMContextRef c;
  LLVMModuleRef m;
  LLVMBuilderRef b;
  char trouble[300]; /* LLVM's first complaint */
};

static pthread_once_t once = PTHREAD_ONCE_INIT, arm_once = PTHREAD_ONCE_INIT;

static void init(void) {
  LLVMInitializeNativeTarget();
  LLVMInitializeNativeAsmPrinter();
  LLVMInitializeNativeAsmParser();
  LLVMInitializeNVPTXTargetInfo();
  LLVMInitializeNVPTXTarget();
  LLVMInitializeNVPTXTargetMC();
  LLVMInitializeNVPTXAsmPrinter();
}

static LLVMModuleRef parse(LLVMContextRef c, const char *text) {
  LLVMModuleRef m = NULL;
  char *why = NULL;
  LLVMMemoryBufferRef buf = LLVMCreateMemoryBufferWithMemoryRangeCopy(text, strlen(text), "kiln");
  if (LLVMParseIRInContext(c, buf, &m, &why)) {
    err_set(E_GEN_001, "LLVM: %s", why ? why : "cannot parse");
    LLVMDisposeMessage(why);
    return NULL;
  }
  return m;
}

/* What the machine has, from code made for it. Without the instruction, llvm.fma becomes a call of fmaf. */
static void probe(Target *t) {
  LLVMContextRef c = LLVMContextCreate();
  LLVMModuleRef m = parse(c, "declare float @llvm.fma.f32(float, float, float)\n"
                             "define float @f(float %x) {\n"
                             " %r = call float @llvm.fma.f32(float %x, float %x, float %x)\n"
                             " ret float %r\n}\n"
                             "define <16 x float> @g(<16 x float> %x) #0 {\n"
                             " %r = fadd <16 x float> %x, %x\n"
                             " ret <16 x float> %r\n}\n"
                             "attributes #0 = { \"prefer-vector-width\"=\"512\" }\n");
  LLVMMemoryBufferRef buf = NULL;
  char *why = NULL;
  t->vector_bytes = 16;
  t->registers = 32;
  if (m && !LLVMTargetMachineEmitToMemoryBuffer(t->tm, m, LLVMAssemblyFile, &why, &buf)) {
    const char *text = LLVMGetBufferStart(buf);
    bool zmm = strstr(text, "zmm"), ymm = strstr(text, "ymm"), xmm = strstr(text, "xmm");
    t->fma = !strstr(text, "fmaf");
    if (zmm || ymm) t->vector_bytes = zmm ? 64 : 32;
    if (!zmm && (ymm || xmm)) t->registers = 16;
  }
  if (why) LLVMDisposeMessage(why);
  if (buf) LLVMDisposeMemoryBuffer(buf);
  if (m) LLVMDisposeModule(m);
  LLVMContextDispose(c);
}

static LLVMTargetMachineRef machine(const char *triple, const char *cpu, const char *features) {
  LLVMTargetRef target;
  char *why = NULL;
  if (LLVMGetTargetFromTriple(triple, &target, &why)) {
    err_set(E_GEN_001, "LLVM: %s", why ? why : triple);
    LLVMDisposeMessage(why);
    return NULL;
  }
  return LLVMCreateTargetMachine(target, triple, cpu, features, LLVMCodeGenLevelDefault,
                                 LLVMRelocPIC, LLVMCodeModelDefault);
}

static LLVMTargetMachineRef cuda_machine(const char *name) {
  /* the newest generation that this LLVM knows also runs on later ones */
  static const struct {
    int sm;
    const char *cpu, *ptx;
  } known[] = {{90, "sm_90", "+ptx78"}, {89, "sm_89", "+ptx78"}, {87, "sm_87", "+ptx74"},
               {86, "sm_86", "+ptx71"}, {80, "sm_80", "+ptx70"}, {0, "sm_75", "+ptx63"}};
  CudaTarget t;
  int i = 0;
  if (!cuda_target(name, &t)) return NULL;
  while (t.sm < known[i].sm) i++;
  return machine("nvptx64-nvidia-cuda", known[i].cpu, known[i].ptx);
}

static void init_arm(void) {
  LLVMInitializeAArch64TargetInfo();
  LLVMInitializeAArch64Target();
  LLVMInitializeAArch64TargetMC();
  LLVMInitializeAArch64AsmPrinter();
}

/* LLVM ends the process where it does not know a name: only those of the table are let through. */
static LLVMTargetMachineRef named_machine(const char *name) {
  static const struct {
    const char *name, *triple;
  } known[] = {
#define CPU(name, triple, ...) {name, triple},
#include "cpus.def"
  };
  enum { N = sizeof known / sizeof *known };
  char names[512] = "";
  for (int i = 0; i < N; i++) {
    if (!strcmp(known[i].name, name)) {
      if (!strncmp(known[i].triple, "aarch64", 7)) pthread_once(&arm_once, init_arm);
      return machine(known[i].triple, name, "");
    }
    snprintf(names + strlen(names), sizeof names - strlen(names), " %s", known[i].name);
  }
  err_set(E_GEN_002, "unknown processor %s", quoted(name));
  err_help("\"cpu\" is this machine; there are%s.", names);
  return NULL;
}

static LLVMTargetMachineRef cpu_machine(void) {
  char *triple = LLVMGetDefaultTargetTriple(), *cpu = LLVMGetHostCPUName(),
       *features = LLVMGetHostCPUFeatures();
  LLVMTargetMachineRef tm = machine(triple, cpu, features);
  LLVMDisposeMessage(triple);
  LLVMDisposeMessage(cpu);
  LLVMDisposeMessage(features);
  return tm;
}

Target *target_open(const char *name) {
  pthread_once(&once, init);
  Target *r = mem_alloc(sizeof *r); /* first: refused memory does not return */
  Target t = {.gpu = name && !strncmp(name, "cuda:", 5)};
  if (t.gpu)
    t.tm = cuda_machine(name);
  else if (!name || !strcmp(name, "cpu"))
    t.tm = cpu_machine();
  else if (!strncmp(name, "cpu:", 4))
    t.tm = named_machine(name + 4);
  else {
    err_set(E_GEN_002, "unknown target %s", quoted(name));
    err_help("Targets are \"cpu\", \"cpu:NAME\" and \"cuda:sm_NN\".");
  }
  if (!t.tm) {
    mem_free(r);
    return NULL;
  }
  if (t.gpu)
    t.fma = true;
  else
    probe(&t);
  *r = t;
  return r;
}

void target_close(Target *t) {
  if (!t) return;
  LLVMDisposeTargetMachine(t->tm);
  mem_free(t);
}

/* ---- batches ---- */

static void complain(LLVMDiagnosticInfoRef info, void *user) {
  Batch *b = user;
  if (LLVMGetDiagInfoSeverity(info) != LLVMDSError || b->trouble[0]) return;
  char *text = LLVMGetDiagInfoDescription(info);
  snprintf(b->trouble, sizeof b->trouble, "%s", text);
  LLVMDisposeMessage(text);
}

static bool fine(Batch *b, const char *doing) {
  if (!b->trouble[0]) return true;
  return err_set(E_GEN_001, "LLVM, %s: %s", doing, b->trouble);
}

/* For the functions of a new module. */
static void init_gen(Batch *b, Gen *g) {
  LLVMValueRef ag;
  LLVMGetNamedMetadataOperands(b->m, "kiln.access", &ag);
  g->m = b->m;
  g->b = b->b;
  g->gpu = b->t->gpu;
  g->fma = b->t->fma;
  g->vector_bytes = b->t->vector_bytes;
  g->registers = b->t->registers;
  gen_types(g, b->c);
  if (!g->gpu) g->access = LLVMValueAsMetadata(ag);
}

bool gen_failed(const Gen *g, const Kernel *k) {
  err_set(E_GEN_001, "kernel %s: no code for `%s`", quoted(k->name), g->failed);
  return false;
}

bool batch_verify(Batch *b) {
  char *why = NULL;
  bool bad = LLVMVerifyModule(b->m, LLVMReturnStatusAction, &why);
  if (bad) err_set(E_GEN_001, "generated code is malformed: %.400s", why);
  LLVMDisposeMessage(why);
  return !bad && fine(b, "generating");
}

static void set_target(const Target *t, LLVMModuleRef m) {
  LLVMTargetDataRef layout = LLVMCreateTargetDataLayout(t->tm);
  char *triple = LLVMGetTargetMachineTriple(t->tm);
  LLVMSetModuleDataLayout(m, layout);
  LLVMSetTarget(m, triple);
  LLVMDisposeTargetData(layout);
  LLVMDisposeMessage(triple);
}

bool batch_parse(Batch *b, const char *text) {
  b->m = parse(b->c, text);
  if (!b->m) return false;
  set_target(b->t, b->m);
  return fine(b, "parsing");
}

Gen *batch_gen(Batch *b, Arena *a) {
  Gen *g = arena_new_of(a, Gen);
  g->a = a;
  if (!batch_parse(b, "!kiln.access = !{!0}\n!0 = distinct !{}\n")) return NULL;
  b->b = LLVMCreateBuilderInContext(b->c);
  init_gen(b, g);
  return g;
}

bool batch_kernels(Batch *b, Arena *a, int n, Kernel *const *k, const LoopPart *part,
                   const char *const *symbol) {
  Gen *g = batch_gen(b, a);
  if (!g) return false;
  for (int i = 0; i < n; i++) {
    LoopPart p = part ? part[i] : LOOP_MAIN;
    if (!loop_is_empty(k[i], p) && !gen_kernel(g, k[i], p, symbol[i])) return gen_failed(g, k[i]);
  }
  return batch_verify(b);
}

Batch *batch_new(Target *t, Arena *a) {
  Batch *b = arena_new_of(a, Batch);
  b->t = t;
  b->c = LLVMContextCreate();
  LLVMContextSetDiagnosticHandler(b->c, complain, b);
  return b;
}

/* What default<O2> does for these loops, in half the time: they come rotated, with what does not change outside, each value
 * made once, and without calls worth inlining. Left are the accumulators in memory, the vectors, and what they leave behind. */
static const char cpu_passes[] =
    "function(sroa,early-cse<memssa>,simplifycfg,instcombine<no-verify-fixpoint>,loop-mssa(licm),"
    "loop-vectorize,early-cse<memssa>,instcombine<no-verify-fixpoint>,simplifycfg,loop-mssa(licm),"
    "loop-unroll<O2>)";

/* For CUDA without the vectors; default<O2> would also take loads of vectors apart again, into ones with bank conflicts. */
static const char cuda_passes[] =
    "always-inline,function(sroa,early-cse<memssa>,simplifycfg,instcombine<no-verify-fixpoint>,"
    "loop-mssa(licm),early-cse<memssa>,instcombine<no-verify-fixpoint>,simplifycfg,loop-mssa(licm),"
    "loop-unroll<O2>,sroa,early-cse<memssa>,instcombine<no-verify-fixpoint>,simplifycfg,"
    "infer-alignment),globaldce";

bool batch_optimise(Batch *b) {
  LLVMPassBuilderOptionsRef o = LLVMCreatePassBuilderOptions();
  LLVMErrorRef e = LLVMRunPasses(b->m, b->t->gpu ? cuda_passes : cpu_passes, b->t->tm, o);
  LLVMDisposePassBuilderOptions(o);
  if (e) {
    char *why = LLVMGetErrorMessage(e);
    err_set(E_GEN_001, "LLVM's optimiser: %s", why);
    LLVMDisposeErrorMessage(why);
    return false;
  }
  return fine(b, "optimising");
}

bool batch_text(Batch *b, Str *out) {
  char *text = LLVMPrintModuleToString(b->m);
  MemGuard guard;
  if (MEM_GUARD(guard)) {
    LLVMDisposeMessage(text);
    mem_rethrow();
  }
  str_add(out, text);
  mem_unguard(&guard);
  LLVMDisposeMessage(text);
  return true;
}

bool batch_emit(Batch *b, bool object, Str *out) {
  LLVMMemoryBufferRef buf = NULL;
  char *why = NULL;
  if (LLVMTargetMachineEmitToMemoryBuffer(b->t->tm, b->m,
                                          object ? LLVMObjectFile : LLVMAssemblyFile, &why, &buf)) {
    err_set(E_GEN_001, "LLVM: %s", why ? why : "cannot emit");
    LLVMDisposeMessage(why);
    return false;
  }
  MemGuard guard;
  if (MEM_GUARD(guard)) {
    LLVMDisposeMemoryBuffer(buf);
    mem_rethrow();
  }
  str_addn(out, LLVMGetBufferStart(buf), LLVMGetBufferSize(buf));
  mem_unguard(&guard);
  LLVMDisposeMemoryBuffer(buf);
  return fine(b, "emitting");
}

void batch_free(Batch *b) {
  if (!b) return;
  if (b->b) LLVMDisposeBuilder(b->b);
  if (b->m) LLVMDisposeModule(b->m);
  if (b->c) LLVMContextDispose(b->c);
}

/* ---- texts ---- */

/* A microkernel beside what the module has; they are written as they should be, so that nothing optimises them. */
static bool add_micro(Batch *b, Arena *a, const CodegenJob *j) {
  Str s;
  str_init(&s, a);
  micro_text(j->what, j->name, &s);
  LLVMModuleRef m = parse(b->c, s.s);
  if (!m) return false;
  set_target(b->t, m);
  if (LLVMLinkModules2(b->m, m) && fine(b, "linking"))
    return err_set(E_GEN_001, "LLVM cannot link %s", quoted(j->name));
  return fine(b, "linking");
}

static bool fill(Batch *b, Arena *a, int n, const CodegenJob *jobs) {
  Kernel **k = arena_array(a, Kernel *, n + 1);
  LoopPart *part = arena_array(a, LoopPart, n + 1);
  const char **symbol = arena_array(a, const char *, n + 1);
  int loops = 0;
  for (int i = 0; i < n; i++)
    if (jobs[i].kind == CODE_LOOP) {
      const LoopJob *l = jobs[i].what;
      k[loops] = l->kernel;
      part[loops] = l->part;
      symbol[loops++] = jobs[i].name;
    }
  bool ok = batch_kernels(b, a, loops, k, part, symbol) && batch_optimise(b);
  for (int i = 0; ok && i < n; i++)
    if (jobs[i].kind == CODE_MICRO) ok = add_micro(b, a, &jobs[i]);
  return ok;
}

static bool emit_batch(Target *t, Arena *a, int n, const CodegenJob *jobs, const char *what,
                       Str *out) {
  Batch *b = batch_new(t, a);
  MemGuard guard;
  if (MEM_GUARD(guard)) {
    batch_free(b);
    mem_rethrow();
  }
  bool ok =
      fill(b, a, n, jobs) &&
      (!strcmp(what, "llvm") ? batch_text(b, out) : batch_emit(b, !strcmp(what, "object"), out));
  mem_unguard(&guard);
  batch_free(b);
  return ok;
}

bool target_emit(int n, const CodegenJob *jobs, const CompileOptions *o, const char *what,
                 Str *out) {
  Target *const t = target_open(o ? o->target : NULL);
  if (!t) return false;
  bool known =
      !t->gpu && (!strcmp(what, "llvm") || !strcmp(what, "asm") || !strcmp(what, "object"));
  if (!known) {
    err_set(E_GEN_002, "target %s has no %s text", quoted(o && o->target ? o->target : "cpu"),
            quoted(what));
    target_close(t);
    return false;
  }
  MemGuard guard;
  if (MEM_GUARD(guard)) {
    target_close(t);
    mem_rethrow();
  }
  Arena *a = arena_scratch();
  bool ok = emit_batch(t, a, n, jobs, what, out);
  arena_free(a);
  mem_unguard(&guard);
  target_close(t);
  return ok;
}

void target_describe(Str *out) {
  static const char *const shown[] = {"avx2",     "fma",      "avx512f", "avx512bf16", "avx512fp16",
                                      "amx-bf16", "amx-int8", "neon",    "sve"};
  char *cpu = LLVMGetHostCPUName(), *features = LLVMGetHostCPUFeatures(), word[32];
  str_fmt(out, "cpu: %s\nfeatures:", cpu);
  for (size_t i = 0; i < sizeof shown / sizeof *shown; i++) {
    snprintf(word, sizeof word, "+%s", shown[i]);
    const char *at = strstr(features, word);
    if (at && (at[strlen(word)] == ',' || !at[strlen(word)])) str_fmt(out, " %s", shown[i]);
  }
  unsigned major, minor, patch;
  LLVMGetVersion(&major, &minor, &patch);
  str_fmt(out, "\nllvm: %u.%u.%u\n", major, minor, patch);
  LLVMDisposeMessage(cpu);
  LLVMDisposeMessage(features);
}
