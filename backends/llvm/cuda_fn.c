/* The function of one launch: .entry NAME(buffers, run) around the code of the launch's form. In: a kernel, and the launch that
 * backends/cuda/plan.c made of it. */
#include "cuda_gen.h"
#include <llvm-c/Target.h>
#include <string.h>

Val cuda_register(Gen *g, const char *name) {
  char full[64] = "llvm.nvvm.read.ptx.sreg.";
  strncat(full, name, sizeof full - strlen(full) - 1);
  gen_at(g, 0);
  return LLVMBuildZExt(g->b, gen_call(g, full, NULL, 0, NULL), g->i64, "");
}

Aff cuda_index(Gen *g, const char *name, int64_t n) {
  return n == 1 ? aff_k(0) : aff_var(gen_var(g, cuda_register(g, name), 0, n - 1), 1);
}

Val cuda_shared(Gen *g, const char *name, LLVMTypeRef t, int64_t n) {
  size_t length;
  const char *entry = LLVMGetValueName2(g->fn, &length);
  const char *full = arena_fmt(g->a, "%s_%s", entry, name);
  Val v = LLVMGetNamedGlobal(g->m, full);
  if (v) return v;
  LLVMTypeRef type = LLVMArrayType2(t, (uint64_t)n);
  g->shared += div_up((int64_t)LLVMABISizeOfType(LLVMGetModuleDataLayout(g->m), type), 16) * 16;
  if (g->shared > CUDA_SHARED) g->failed = "so much shared memory";
  v = LLVMAddGlobalInAddressSpace(g->m, type, full, 3);
  LLVMSetLinkage(v, LLVMInternalLinkage);
  LLVMSetInitializer(v, LLVMGetUndef(type));
  LLVMSetAlignment(v, 16);
  return v;
}

void cuda_barrier(Gen *g) {
  gen_at(g, g->depth);
  gen_call(g, "llvm.nvvm.barrier0", NULL, 0, NULL);
}

Loop cuda_if(Gen *g, Val condition) {
  int var;
  gen_at_vals(g, 1, &condition);
  Val first = LLVMBuildSelect(g->b, condition, gen_i64(g, 0), gen_i64(g, 1), "");
  return loop_open(g, first, gen_i64(g, 1), gen_i64(g, 1), 0, 0, &var);
}

/* ---- the record of a failed check ---- */

static Val field(Gen *g, LLVMBuilderRef b, Val run, size_t offset) {
  Val at = LLVMConstInt(g->i64, offset, 0);
  return LLVMBuildInBoundsGEP2(b, g->i8, run, &at, 1, "");
}

static Val read_field(Gen *g, LLVMBuilderRef b, Val run, size_t offset) {
  Val v = LLVMBuildLoad2(b, g->i64, field(g, b, run, offset), "");
  LLVMSetVolatile(v, 1);
  return v;
}

/* The same bit, but nobody can tell before it runs, nor copy the branch that follows from it to other places. */
static Val opaque_bit(Gen *g, LLVMBuilderRef b, Val bit) {
  LLVMTypeRef type = LLVMFunctionType(g->i32, &g->i32, 1, 0);
  Val move =
      LLVMGetInlineAsm(type, "mov.b32 $0, $1;", 15, "=r,r", 4, 1, 0, LLVMInlineAsmDialectATT, 0);
  Val wide = LLVMBuildZExt(b, bit, g->i32, ""), moved = LLVMBuildCall2(b, type, move, &wide, 1, "");
  unsigned id = LLVMGetEnumAttributeKindForName("convergent", 10);
  LLVMAddCallSiteAttribute(moved, (LLVMAttributeIndex)LLVMAttributeFunctionIndex,
                           LLVMCreateEnumAttribute(g->c, id, 0));
  return LLVMBuildICmp(b, LLVMIntNE, moved, LLVMConstInt(g->i32, 0, 0), "");
}

/* do { if the lock is mine: { if the record is later than this check: write it; give the lock back } } until it was mine.
 * The lanes of a warp meet before they try again, so that the one with the lock is never waited for in vain. */
void cuda_check_record(Gen *g, LLVMBuilderRef b, Val fn, const Val what[4],
                       LLVMBasicBlockRef done) {
  static const size_t at[4] = {offsetof(CudaRun, failed), offsetof(CudaRun, node),
                               offsetof(CudaRun, index), offsetof(CudaRun, value)};
  LLVMBasicBlockRef block[5];
  Val run = what[0], zero = LLVMConstInt(g->i64, 0, 0), one = LLVMConstInt(g->i64, 1, 0);
  for (int i = 0; i < 5; i++) block[i] = LLVMAppendBasicBlockInContext(g->c, fn, "");
  LLVMBuildBr(b, block[0]);
  LLVMPositionBuilderAtEnd(b, block[0]);
  Val lock = field(g, b, run, offsetof(CudaRun, lock));
  Val was = LLVMBuildAtomicCmpXchg(b, lock, zero, one, LLVMAtomicOrderingMonotonic,
                                   LLVMAtomicOrderingMonotonic, 0);
  Val mine = LLVMBuildExtractValue(b, was, 1, "");
  LLVMBuildCondBr(b, mine, block[1], block[4]);
  LLVMPositionBuilderAtEnd(b, block[1]);
  Val none = LLVMBuildICmp(b, LLVMIntEQ, read_field(g, b, run, at[0]), zero, "");
  Val node = read_field(g, b, run, at[1]), index = read_field(g, b, run, at[2]);
  Val same = LLVMBuildAnd(b, LLVMBuildICmp(b, LLVMIntEQ, what[1], node, ""),
                          LLVMBuildICmp(b, LLVMIntSLT, what[2], index, ""), "");
  Val first = LLVMBuildOr(b, LLVMBuildICmp(b, LLVMIntSLT, what[1], node, ""), same, "");
  LLVMBuildCondBr(b, LLVMBuildOr(b, none, first, ""), block[2], block[3]);
  LLVMPositionBuilderAtEnd(b, block[2]);
  for (int i = 0; i < 4; i++)
    LLVMSetVolatile(LLVMBuildStore(b, i ? what[i] : one, field(g, b, run, at[i])), 1);
  LLVMBuildBr(b, block[3]);
  LLVMPositionBuilderAtEnd(b, block[3]);
  unsigned id = LLVMLookupIntrinsicID("llvm.nvvm.membar.gl", 19);
  LLVMBuildCall2(b, LLVMIntrinsicGetType(g->c, id, NULL, 0),
                 LLVMGetIntrinsicDeclaration(g->m, id, NULL, 0), NULL, 0, "");
  LLVMBuildAtomicRMW(b, LLVMAtomicRMWBinOpXchg, lock, zero, LLVMAtomicOrderingMonotonic, 0);
  LLVMBuildBr(b, block[4]);
  LLVMPositionBuilderAtEnd(b, block[4]);
  LLVMBuildCondBr(b, opaque_bit(g, b, mine), done, block[0]);
}

/* ---- forms ---- */

typedef void FormFn(Gen *g, const CudaLaunch *l);
static FormFn *const forms[] = {
    [CUDA_POINTS] = cuda_points, [CUDA_JOINS] = cuda_joins, [CUDA_GEMM] = cuda_gemm,
    [CUDA_TILES] = cuda_tiles,   [CUDA_TEAMS] = cuda_teams, [CUDA_SCATTER] = cuda_scatter,
    [CUDA_RUNS] = cuda_runs,     [CUDA_MERGE] = cuda_merge};

/* ---- the function ---- */

static void add_attribute(Gen *g, unsigned param, const char *name, uint64_t value) {
  unsigned id = LLVMGetEnumAttributeKindForName(name, strlen(name));
  LLVMAddAttributeAtIndex(g->fn, param + 1, LLVMCreateEnumAttribute(g->c, id, value));
}

/* Inputs that share no output's memory are read through the read-only cache. */
static void add_buffer(Gen *g, const CudaArg *arg, unsigned param) {
  const Kernel *k = g->k;
  add_attribute(g, param, "align", 16);
  if (arg->i < k->inputs.n && !k->inputs.v[arg->i].aligned && k->kind != K_SCATTER) {
    add_attribute(g, param, "noalias", 0);
    add_attribute(g, param, "readonly", 0);
  }
}

static void annotate(Gen *g, const char *what, uint64_t value) {
  LLVMMetadataRef words[3] = {LLVMValueAsMetadata(g->fn),
                              LLVMMDStringInContext2(g->c, what, strlen(what)),
                              LLVMValueAsMetadata(LLVMConstInt(g->i32, value, 0))};
  LLVMAddNamedMetadataOperand(g->m, "nvvm.annotations",
                              LLVMMetadataAsValue(g->c, LLVMMDNodeInContext2(g->c, words, 3)));
}

/* No check has failed, or the function is over. */
static void guard(Gen *g) {
  LLVMBasicBlockRef block[2];
  for (int i = 0; i < 2; i++) block[i] = LLVMAppendBasicBlockInContext(g->c, g->fn, "");
  Val failed = read_field(g, g->b, g->ctx, offsetof(CudaRun, failed));
  Val none = LLVMBuildICmp(g->b, LLVMIntEQ, failed, LLVMConstInt(g->i64, 0, 0), "");
  LLVMBuildCondBr(g->b, none, block[0], block[1]);
  LLVMPositionBuilderAtEnd(g->b, block[1]);
  LLVMBuildRetVoid(g->b);
  gen_block(g, block[0], 0);
  gen_at(g, 0);
}

static void declare(Gen *g, const CudaLaunch *l) {
  LLVMTypeRef *args = arena_array(g->a, LLVMTypeRef, l->n_args), none = LLVMVoidTypeInContext(g->c);
  for (int i = 0; i < l->n_args; i++) args[i] = l->args[i].kind == CUDA_INT ? g->i64 : g->ptr;
  g->fn = LLVMAddFunction(g->m, l->entry, LLVMFunctionType(none, args, (unsigned)l->n_args, 0));
  LLVMSetFunctionCallConv(g->fn, LLVMPTXKernelCallConv);
  annotate(g, "maxntidx", (uint64_t)l->block[0] * l->block[1] * l->block[2]);
  annotate(g, "minctasm", 1); /* rather fewer blocks at once than registers in memory */
  gen_block(g, LLVMAppendBasicBlockInContext(g->c, g->fn, ""), 0);
  gen_at(g, 0);
  for (int i = 0; i < l->n_args; i++) {
    Val p = LLVMGetParam(g->fn, (unsigned)i);
    const CudaArg *arg = &l->args[i];
    if (arg->kind == CUDA_RUN) g->ctx = p;
    if (arg->kind != CUDA_BUF) continue;
    g->bufs[arg->i] = p;
    add_buffer(g, arg, (unsigned)i);
  }
  if (l->guarded) guard(g);
  Val run[2];
  for (int i = 0; i < 2; i++)
    run[i] = LLVMBuildLoad2(g->b, g->i64,
                            field(g, g->b, g->ctx,
                                  i ? offsetof(CudaRun, step) : offsetof(CudaRun, seed)),
                            "");
  g->seed = run[0];
  g->step = run[1];
}

bool gen_cuda(Gen *g, const Kernel *k, const CudaLaunch *l) {
  if (!gen_start(g, (Kernel *)k, l->stage->part)) return false;
  g->active = NULL;
  g->tile = NULL;
  g->copies = NULL;
  g->shared = 0;
  g->sums = l->stage->form == CUDA_POINTS ? l->stage->gemm : NULL;
  g->columns = false;
  declare(g, l);
  forms[l->stage->form](g, l);
  gen_at(g, 0);
  LLVMBuildRetVoid(g->b);
  return !g->failed;
}
