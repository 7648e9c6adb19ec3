/* One function of the module for a kernel on a CPU, void f(self, bufs, begin, end, ctx) for the tasks begin..end-1
 * (KernelFn), around the loop nests of loop.c. */
#include "gen.h"
#include <string.h>

/* Each operand of a concatenation is a nest with its own share of the tasks. */
static void do_nests(Gen *g) {
  int64_t first = 0;
  int n = nest_n(g->k, g->part);
  for (int i = 0; i < n; i++) {
    Nest t;
    Val begin = g->begin, end = g->end;
    nest_plan(g, i, &t);
    if (n > 1) {
      gen_at(g, 0);
      Val zero = gen_i64(g, 0), all = gen_i64(g, t.tasks), skip = gen_i64(g, first);
      begin = gen_max(g, LLVMBuildNSWSub(g->b, begin, skip, ""), zero);
      end = gen_min(g, LLVMBuildNSWSub(g->b, end, skip, ""), all);
    }
    gen_nest(g, i, begin, end);
    first += t.tasks;
  }
}

static void attribute(Gen *g, const char *name, const char *value) {
  LLVMAttributeRef a =
      LLVMCreateStringAttribute(g->c, name, (unsigned)strlen(name), value, (unsigned)strlen(value));
  LLVMAddAttributeAtIndex(g->fn, LLVMAttributeFunctionIndex, a);
}

static void cpu_function(Gen *g, const char *symbol) {
  LLVMTypeRef args[5] = {g->ptr, g->ptr, g->i64, g->i64, g->ptr},
              none = LLVMVoidTypeInContext(g->c);
  g->fn = LLVMAddFunction(g->m, symbol, LLVMFunctionType(none, args, 5, 0));
  attribute(g, "prefer-vector-width", "512");
  attribute(g, "no-builtins", "");
  gen_block(g, LLVMAppendBasicBlockInContext(g->c, g->fn, ""), 0);
  gen_at(g, 0);
  for (int i = 0; i < g->n_bufs; i++) {
    Val at = gen_i64(g, i),
        p = LLVMBuildInBoundsGEP2(g->b, g->ptr, LLVMGetParam(g->fn, 1), &at, 1, "");
    g->bufs[i] = LLVMBuildLoad2(g->b, g->ptr, p, "");
  }
  g->begin = LLVMGetParam(g->fn, 2);
  g->end = LLVMGetParam(g->fn, 3);
  g->ctx = LLVMGetParam(g->fn, 4);
  Val at = gen_i64(g, offsetof(RunCtx, seed));
  g->seed =
      LLVMBuildLoad2(g->b, g->i64, LLVMBuildInBoundsGEP2(g->b, g->i8, g->ctx, &at, 1, ""), "");
  at = gen_i64(g, offsetof(RunCtx, step));
  g->step =
      LLVMBuildLoad2(g->b, g->i64, LLVMBuildInBoundsGEP2(g->b, g->i8, g->ctx, &at, 1, ""), "");
  Stencil *stencil = stencil_plan(g->a, g->k, g->part);
  if (g->part == LOOP_OPERAND)
    gen_operand(g, LLVMGetParam(g->fn, 0), g->begin, g->end);
  else if (stencil)
    gen_stencil(g, stencil, g->begin, g->end);
  else
    do_nests(g);
}

bool gen_start(Gen *g, Kernel *k, LoopPart part) {
  g->k = k;
  g->part = part;
  g->info.n = g->vars.n = g->n_blocks = g->depth = g->sweep = 0;
  g->n_bufs = k->inputs.n + k->outputs.n;
  g->failed = NULL;
  memo_drop(g, 0);
  g->n_bufs += (part == LOOP_CONTRACT || part == LOOP_PARTS) && !g->gpu && loop_workspace(k) > 0;
  if (g->n_bufs > (int)(sizeof g->bufs / sizeof *g->bufs)) g->failed = "too many buffers";
  return !g->failed;
}

bool gen_kernel(Gen *g, Kernel *k, LoopPart part, const char *symbol) {
  if (!gen_start(g, k, part)) return false;
  if (loop_is_epilogue(part)) { /* the raw result is read where it was left */
    NodeInfo *f = gen_info(g, k->core);
    f->input = k->inputs.n + (f->output < 0 ? 0 : f->output - k->inputs.n);
    f->inside = false;
  }
  cpu_function(g, symbol);
  gen_at(g, 0);
  LLVMBuildRetVoid(g->b);
  return !g->failed;
}
