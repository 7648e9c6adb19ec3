/* The CUDA backend: PTX for kernels, from the shared generator (backends/llvm). In: kernels and "cuda:sm_NN"; out: one PTX
 * module with a function per kernel,
 *   .entry NAME(buf0, buf1, ..., seed, step, errors)
 * with the buffers in the order of the kernel's inputs and outputs, the run's seed and step of the random numbers, and a buffer
 * of four int64 (failed, node, index, value), zero before the run, where the first failing check writes. A grid of any size
 * covers all results. Kernels that are calls of library or user code (scatter, sort, custom operators) have no PTX;
 * they are listed at the end. Nothing is launched here: compile() says so. */
#include "../llvm/llvm.h"
#include <string.h>

static const struct {
  bool generated;
  LoopPart part;
} how[] = {[K_LOOP] = {true, LOOP_MAIN},
           [K_CONCAT] = {true, LOOP_MAIN},
           [K_CONTRACT] = {true, LOOP_CONTRACT},
           [K_SCATTER] = {false, 0},
           [K_SORT] = {false, 0},
           [K_CALL] = {false, 0}};

static int64_t bytes_of(const Node *n) { return node_numel(n) * dtype_info[n->dtype].size; }

static bool cuda_schedule(Kernel *k) {
  k->workspace = k->flops = k->bytes = 0;
  for (int i = 0; i < k->inputs.n; i++) k->bytes += bytes_of(k->inputs.v[i].node);
  for (int i = 0; i < k->outputs.n; i++) k->bytes += bytes_of(k->outputs.v[i]);
  for (int i = 0; i < k->nodes.n; i++) {
    const Node *n = k->nodes.v[i];
    if (prim_is_map(n->prim)) k->flops += node_numel(n);
    if (prim_is_reduce(n->prim)) k->flops += node_numel(n->in[0]);
  }
  if (k->kind == K_CONTRACT) {
    int64_t points = 2;
    for (int l = 0; l < k->core->n_loops; l++) points *= k->core->ext[l];
    k->flops += points;
  }
  return true;
}

static Module *cuda_compile(const Graph *g, int n, Kernel *const *k, const CompileOptions *o,
                            KernelCode *code) {
  (void)g, (void)n, (void)k, (void)code;
  err_set(E_GEN_002, "target %s: kernels cannot be run on CUDA, only their PTX can be made",
          quoted(o && o->target ? o->target : "cuda"));
  err_help("Use `kiln compile --target cuda:sm_NN --emit ptx`, or run on the CPU.");
  return NULL;
}

static void cuda_module_free(Module *m) { (void)m; }

static bool cuda_emit(const Graph *g, int n, Kernel *const *k, const CompileOptions *o,
                      const char *what, Str *out) {
  Arena *a = arena_scratch();
  Kernel **sub = arena_array(a, Kernel *, n + 1);
  LoopPart *part = arena_array(a, LoopPart, n + 1);
  int m = 0;
  for (int i = 0; i < n; i++)
    if (how[k[i]->kind].generated) {
      part[m] = how[k[i]->kind].part;
      sub[m++] = k[i];
    }
  (void)g;
  bool ok = loops_emit(m, sub, part, o, what, out);
  const char *comment = strcmp(what, "llvm") ? "//" : ";";
  for (int i = 0; ok && i < n; i++)
    if (!how[k[i]->kind].generated) str_fmt(out, "%s not generated: %s\n", comment, k[i]->name);
  arena_free(a);
  return ok;
}

static void describe(Str *out) {
  str_add(out, "cuda: PTX for sm_70 and later (kiln compile --target cuda:sm_NN --emit ptx)\n");
}

const Backend backend_cuda = {
    .name = "cuda",
    .schedule = cuda_schedule,
    .compile = cuda_compile,
    .module_free = cuda_module_free,
    .emit = cuda_emit,
    .describe = describe,
};
