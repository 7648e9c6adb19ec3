/* PTX (or LLVM IR) of kernels. In: kernels and a target; out: one module with an entry for each launch of their plans, those of
 * equal code once. */
#include "cuda_gen.h"
#include <string.h>

/* Everything but entries goes into the entries: PTX without calls. */
static void inline_all(Gen *g) {
  unsigned id = LLVMGetEnumAttributeKindForName("alwaysinline", 12);
  for (Val f = LLVMGetFirstFunction(g->m); f; f = LLVMGetNextFunction(f))
    if (LLVMGetLinkage(f) == LLVMInternalLinkage)
      LLVMAddAttributeAtIndex(f, (LLVMAttributeIndex)LLVMAttributeFunctionIndex,
                              LLVMCreateEnumAttribute(g->c, id, 0));
}

static bool generate(Batch *b, Arena *a, int n, Kernel *const *k, const CudaTarget *t) {
  Gen *g = batch_gen(b, a);
  for (int i = 0; g && i < n; i++) {
    const CudaPlan *plan = cuda_plan(a, k[i], t);
    if (!plan) return false;
    for (int j = 0; j < plan->n; j++)
      if (!LLVMGetNamedFunction(g->m, plan->launch[j].entry) &&
          !gen_cuda(g, k[i], &plan->launch[j]))
        return gen_failed(g, k[i]);
  }
  if (g) inline_all(g);
  return g && batch_verify(b);
}

static bool emit_text(Target *target, Arena *a, int n, Kernel *const *k, const CudaTarget *t,
                      const char *what, Str *out) {
  Batch *b = batch_new(target, a);
  MemGuard guard;
  if (MEM_GUARD(guard)) {
    batch_free(b);
    mem_rethrow();
  }
  bool ok = generate(b, a, n, k, t) && batch_optimise(b) &&
            (!strcmp(what, "llvm") ? batch_text(b, out) : batch_emit(b, false, out));
  mem_unguard(&guard);
  batch_free(b);
  return ok;
}

bool cuda_module_text(int n, Kernel *const *k, const CudaTarget *t, const char *what, Str *out) {
  char name[32];
  snprintf(name, sizeof name, "cuda:sm_%d", t->sm);
  if (strcmp(what, "llvm") && strcmp(what, "ptx"))
    return err_set(E_GEN_002, "target %s has no %s text", quoted(name), quoted(what));
  Target *const target = target_open(name);
  if (!target) return false;
  MemGuard guard;
  if (MEM_GUARD(guard)) {
    target_close(target);
    mem_rethrow();
  }
  Arena *a = arena_scratch();
  bool ok = emit_text(target, a, n, k, t, what, out);
  arena_free(a);
  mem_unguard(&guard);
  target_close(target);
  return ok;
}
