/* The CUDA backend. In: kernels, and "cuda:sm_NN" or a device; out: one PTX module with the entries that cuda.h describes, or
 * a module that is ready to run. */
#include "foreign.h"

static int64_t bytes_of(const Node *n) { return node_numel(n) * dtype_info[n->dtype].size; }

/* Of the target; of a target that is not known the most: before sm_80 tiles are others, and so are the parts of a sum. */
static bool plan_workspace(Kernel *k) {
  CudaTarget t[] = {{75, CUDA_F32}, {80, CUDA_F32}};
  const CompileOptions *o = k->options;
  bool known = o && o->target, ok = !known || cuda_target(o->target, t);
  k->choice = 0;
  k->workspace = 0;
  for (int i = 0; ok && i < (known ? 1 : 2); i++) {
    Arena *a = arena_scratch();
    const CudaPlan *p = cuda_plan(a, k, &t[i]);
    ok = p != NULL;
    if (ok && p->workspace > k->workspace) k->workspace = p->workspace;
    arena_free(a);
  }
  return ok;
}

/* Where the libraries may serve: on a device, if nobody asked for kernels by a rule. */
static void choose(Kernel *k) {
  const CompileOptions *o = k->options;
  CudaTarget t;
  if (k->kind == K_CONTRACT && o && o->device && !o->no_blas && k->tuning != TUNE_RULE &&
      cuda_target(o->target, &t))
    choose_provider(k, (CudaDevice *)o->device, t.math);
}

static bool cuda_schedule(Kernel *k) {
  k->flops = k->bytes = 0;
  if (!plan_workspace(k)) return false;
  choose(k);
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
  (void)code;
  if (o && o->device) return module_new(g, n, k, o);
  err_set(E_GEN_002, "target %s: there is no device to run on, only PTX can be made",
          quoted(o && o->target ? o->target : "cuda"));
  err_help("Use `kiln compile --target cuda:sm_NN --emit ptx`, or run with --device cuda.");
  return NULL;
}

static bool cuda_emit(const Graph *g, int n, Kernel *const *k, const CompileOptions *o,
                      const char *what, Str *out) {
  CudaTarget t;
  (void)g;
  return cuda_target(o ? o->target : NULL, &t) && cuda_text(n, k, &t, what, out);
}

static void describe(Str *out) {
  str_add(out, "cuda: PTX for sm_75 and later (kiln compile --target cuda:sm_NN --emit ptx)\n");
  device_describe(out);
}

const Backend backend_cuda = {
    .name = "cuda",
    .no_kinds = 1u << K_ATTENTION | 1u << K_ATTENTION_GRAD,
    .channels_last = true,
    .schedule = cuda_schedule,
    .compile = cuda_compile,
    .module_free = module_close,
    .emit = cuda_emit,
    .describe = describe,
    .open = device_open,
};
