/* The CPU backend: which code runs which kernel.
 *
 *   K_LOOP, K_CONCAT          generated (backends/llvm)
 *   K_CONTRACT                matrix products as contract.c plans it, by microkernels or OpenBLAS, then the generated
 *                             epilogue; or all of it generated
 *   K_ATTENTION, its _GRAD    as attention.c plans it: microkernels or OpenBLAS, and generated code for the weights
 *   K_SCATTER, K_SORT, K_CALL C functions
 * In: kernels of a Graph. Out: phases of tasks for the executor's pool. */
#include "attention.h"
#include "tiles.h"
#include "../llvm/llvm.h"
#include "../llvm/micro.h"
#include "../code/code.h"
#include "kept_id.h"

struct Module {
  Arena *arena;
  CodeBatch *code;
};

/* ---- estimates ---- */

/* Elementary operations per element. */
static int64_t weight(Prim p) {
  static const int8_t heavy[P_N] = {
      [P_EXP] = 10,    [P_LOG] = 12, [P_SIN] = 16, [P_TANH] = 16, [P_ERF] = 16,  [P_POW] = 30,
      [P_RANDOM] = 24, [P_SQRT] = 4, [P_DIV] = 4,  [P_MOD] = 8,   [P_GATHER] = 4};
  if (heavy[p]) return heavy[p];
  return prim_is_map(p) || prim_is_reduce(p) || p == P_ARGMAX;
}

/* Without the terms that division leaves out. */
static int64_t contract_flops(const Node *n) {
  int64_t flops = 2 * node_numel(n);
  for (int l = n->rank; l < n->n_loops; l++) flops *= n->ext[l];
  for (int x = 0; x < 2; x++)
    for (int d = 0; d < n->in[x]->rank; d++) flops /= n->map[x][d].div;
  return flops;
}

static int64_t operations(const Kernel *k) {
  int64_t sum = 0;
  for (int i = 0; i < k->nodes.n; i++) {
    const Node *n = k->nodes.v[i];
    bool reduces = prim_is_reduce(n->prim);
    if (n->prim != P_CONTRACT)
      sum += weight(n->prim) * node_numel(reduces ? n->in[0] : n);
    else { sum += contract_flops(n); }
  }
  return sum;
}

static int64_t traffic(const Kernel *k) {
  int64_t sum = 0;
  for (int i = 0; i < k->inputs.n; i++)
    sum += node_numel(k->inputs.v[i].node) * dtype_info[k->inputs.v[i].node->dtype].size;
  for (int i = 0; i < k->outputs.n; i++)
    sum += node_numel(k->outputs.v[i]) * dtype_info[k->outputs.v[i]->dtype].size;
  return sum;
}

/* Nanoseconds on one thread, from operations and bytes per nanosecond. */
static int64_t cost_of(const Kernel *k, PlanKind plan) {
  static const int ops_per_ns[] = {
      [K_LOOP] = 16, [K_CONTRACT] = 128, [K_SCATTER] = 1,     [K_CONCAT] = 8,
      [K_SORT] = 1,  [K_CALL] = 1,       [K_ATTENTION] = 128, [K_ATTENTION_GRAD] = 128};
  enum { LOOP_CONTRACT_OPS = 4 };
  /* what fits in a core's own caches; what more than one core had and wrote; memory */
  static const struct {
    int64_t bytes;
    int per_ns;
  } levels[] = {{128 << 10, 120}, {2 << 20, 40}, {INT64_MAX, 12}};
  int level = 0;
  while (k->bytes > levels[level].bytes) level++;
  int64_t rate =
      k->kind == K_CONTRACT && plan == PLAN_LOOPS ? LOOP_CONTRACT_OPS : ops_per_ns[k->kind];
  return 200 + k->flops / rate + k->bytes / levels[level].per_ns;
}

/* ---- schedule ---- */

static int64_t log2_of(int64_t n) { return n < 2 ? 1 : 64 - __builtin_clzll((uint64_t)n - 1); }

/* Does the epilogue read the input too? */
static bool read_again(const Kernel *k, int input) {
  for (int i = 0; i < k->nodes.n; i++)
    for (int j = 0; k->nodes.v[i] != k->core && j < k->nodes.v[i]->n_in; j++)
      if (k->nodes.v[i]->in[j] == k->inputs.v[input].node) return true;
  return false;
}

/* p: of a contraction. */
static int64_t items_of(const Kernel *k, const Plan *p) {
  if (k->rank < 2) return 0;
  for (int i = 0; i < k->nodes.n; i++)
    if (!node_numel(k->nodes.v[i])) return 0;
  for (int i = 0; i < k->inputs.n; i++)
    if (!node_numel(k->inputs.v[i].node)) return 0;
  if (k->kind == K_LOOP) return loop_items(k, LOOP_MAIN);
  if (!p || p->kind == PLAN_CONV) return p ? conv_items(p) : 0;
  if (p->kind == PLAN_FILTER) return filter_items(p);
  return p->kind == PLAN_LOOPS && !loop_workspace(k) ? loop_items(k, LOOP_CONTRACT) : 0;
}

static bool cpu_schedule(Kernel *k) {
  Arena *a = arena_scratch();
  Plan *used = NULL, *both = NULL; /* both: with BLAS or without */
  k->flops = operations(k);
  k->bytes = traffic(k);
  k->workspace = k->prepares = 0;
  k->packing = 0;
  k->by[0] = 0;
  if (!choose_algorithm(k)) return false;
  for (int no_blas = 0; no_blas < 2 && k->kind == K_CONTRACT; no_blas++) {
    Plan *p = both ? both : contract_plan(a, k, no_blas);
    if (p->kind == PLAN_CONV && !k->choice && p->facts.flops >= CONV_FLOPS) both = p;
    if (no_blas == (k->options && k->options->no_blas)) used = p;
    if (p->work.workspace > k->workspace) k->workspace = p->work.workspace;
    if (p->kind == PLAN_LOOPS && loop_workspace(k) > k->workspace) k->workspace = loop_workspace(k);
    if (no_blas) { /* either plan may run */
      if (k->packing) k->packing = hash_bytes(k->packing, &p->work.packing, sizeof p->work.packing);
      continue;
    }
    k->prepares = p->work.prepares;
    k->packing = p->work.packing;
    if (loop_is_stencil(k))
      strcpy(k->by, "stencil");
    else
      plan_text(p, k->by);
  }
  if (k->prepares && read_again(k, k->prepares - 1)) k->prepares = 0;
  k->items = items_of(k, used);
  if (!k->items || k->items != k->ext[0]) k->items = -1;
  if (k->kind == K_CALL) k->workspace = call_workspace(k);
  if (k->kind == K_SCATTER) k->flops += 4 * node_numel(k->core->in[2]);
  if (k->kind == K_SORT)
    k->flops += 4 * node_numel(k->core) * log2_of(k->core->dims[k->core->rank - 1]);
  arena_free(a);
  return true;
}

static bool cpu_takes_operand(const Kernel *k, int x) {
  Arena *a = arena_scratch();
  const Plan *p = contract_plan(a, k, false);
  bool takes = p->kind == PLAN_FILTER && filter_takes(p, k, x);
  arena_free(a);
  return takes;
}

/* ---- compile ---- */

static Plan *plan_of(Arena *a, const Kernel *k, const CompileOptions *o) {
  if (k->kind != K_CONTRACT) return NULL;
  return contract_plan(a, k, o && o->no_blas);
}

/* What the generator makes for a kernel; false: nothing. */
static bool part_of(const Kernel *k, const Plan *p, LoopPart *part) {
  *part = LOOP_MAIN;
  if (k->kind == K_LOOP || k->kind == K_CONCAT) return true;
  if (k->kind != K_CONTRACT) return false;
  *part = p->kind == PLAN_LOOPS ? LOOP_CONTRACT : p->work.by_panel ? LOOP_PANELS : LOOP_EPILOGUE;
  return *part == LOOP_CONTRACT || p->frame.epilogue;
}

/* The kernels that are C functions. */
static bool library_code(Arena *a, const Kernel *k, KernelCode *code) {
  *code = (KernelCode){0};
  if (k->kind == K_SCATTER) return scatter_code(a, k, code);
  if (k->kind == K_SORT) return sort_code(a, k, code);
  return k->kind != K_CALL || call_code(a, k, code);
}

/* What is generated of a kernel, and the code then. */
typedef struct Part {
  Plan *plan;               /* K_CONTRACT */
  AttentionPlan *attention; /* K_ATTENTION */
  AttentionGrad *gradient;  /* K_ATTENTION_GRAD */
  LoopPart part;
  KernelFn *fn, *second; /* NULL: nothing */
  int64_t tasks;
  ChainTasks chain; /* of an item */
} Part;

static void want_code(CodeBatch *b, Kernel *k, Part *p) {
  if (p->attention) attention_want(p->attention, b);
  if (p->gradient) attention_grad_want(p->gradient, b);
  if (p->plan) plan_micro(p->plan, b);
  if (p->plan && p->plan->kind == PLAN_FILTER && p->plan->frame.computed >= 0)
    loop_code(b, k, LOOP_OPERAND, &p->plan->frame.operand);
  if (!part_of(k, p->plan, &p->part)) return;
  loop_code(b, k, p->part, &p->fn);
  p->tasks = loop_tasks(k, p->part);
  if (p->part == LOOP_CONTRACT && loop_workspace(k)) loop_code(b, k, LOOP_PARTS, &p->second);
}

/* The phases around it. */
static void set_phases(const Kernel *k, const Part *p, KernelCode *code) {
  if (p->attention) attention_code(p->attention, code);
  if (p->gradient) attention_grad_code(p->gradient, code);
  if (code->n_phases) return;
  if (p->plan && loop_is_epilogue(p->part)) {
    contract_code(p->plan, p->fn, code);
    return;
  }
  code->n_phases = 1;
  code->phase[0].fn = p->fn;
  code->phase[0].n_tasks = p->tasks;
  if (!p->second) return;
  code->n_phases = 2;
  code->phase[1].fn = p->second;
  code->phase[1].n_tasks = loop_tasks(k, LOOP_PARTS);
}

static void plan_all(Arena *a, int n, Kernel *const *k, const CompileOptions *o, Part *part) {
  bool no_blas = o && o->no_blas;
  for (int i = 0; i < n; i++) {
    part[i].plan = plan_of(a, k[i], o);
    if (k[i]->kind == K_ATTENTION) part[i].attention = attention_plan(a, k[i], no_blas);
    if (k[i]->kind == K_ATTENTION_GRAD) part[i].gradient = attention_grad_plan(a, k[i], no_blas);
  }
}

/* Members of chains: how their tasks are divided. */
static void find_items(Arena *a, const Kernel *k, Part *p) {
  if (!k->chained) return;
  PlanKind kind = p->plan ? p->plan->kind : PLAN_LOOPS;
  const Work *w = kind == PLAN_LOOPS ? NULL : &p->plan->work;
  p->chain.tasks = (w ? w->n_tasks[w->n_phases - 1] : p->tasks) / k->items;
  TaskRows *rows = arena_array(a, TaskRows, p->chain.tasks);
  bool known = kind == PLAN_CONV     ? conv_rows(p->plan, k, rows)
               : kind == PLAN_FILTER ? filter_rows(p->plan, k, rows)
                                     : loop_rows(k, p->part, rows);
  if (known) p->chain.rows = rows;
}

static void find_chains(Arena *a, const Graph *g, int n, Kernel *const *k, const Part *part,
                        KernelCode *code) {
  ChainTasks *t = arena_array(a, ChainTasks, n + 1);
  for (int i = 0; i < n; i++) t[i] = part[i].chain;
  for (int i = 0; i < n; i++) {
    int m = k[i]->chain;
    if (!m) continue;
    code[i].chain = m;
    code[i].n_steps = chain_steps(a, m, k + i, t + i, g->nodes.n, &code[i].steps);
  }
}

static Module *cpu_compile(const Graph *g, int n, Kernel *const *k, const CompileOptions *o,
                           KernelCode *code) {
  Arena *a = arena_scratch();
  Module *m = arena_new_of(a, Module);
  Part *part = arena_array(a, Part, n + 1);
  bool ok = true;
  m->arena = a;
  m->code = code_batch(a);
  plan_all(a, n, k, o, part);
  for (int i = 0; ok && i < n; i++) {
    ok = library_code(a, k[i], &code[i]);
    want_code(m->code, k[i], &part[i]);
    ok = ok && !err_any(); /* it may lack OpenBLAS */
  }
  for (int i = 0; ok && i < n; i++) find_items(a, k[i], &part[i]);
  if (ok) find_chains(a, g, n, k, part, code);
  /* The code is not the arena's: no memory is asked for behind it. */
  if (!ok || !code_make(m->code, o)) {
    arena_free(a);
    return NULL;
  }
  arena_keep(a);
  for (int i = 0; i < n; i++) {
    Plan *plan = part[i].plan;
    set_phases(k[i], &part[i], &code[i]);
    code[i].items = k[i]->items;
    code[i].cost = cost_of(k[i], plan ? plan->kind : PLAN_LOOPS);
    if (k[i]->kind == K_CALL) code[i].cost = 0; /* on the calling thread */
  }
  return m;
}

static void cpu_module_free(Module *m) {
  if (!m) return;
  code_free(m->code);
  arena_free(m->arena);
}

static bool cpu_emit(const Graph *g, int n, Kernel *const *k, const CompileOptions *o,
                     const char *what, Str *out) {
  (void)g;
  Arena *a = arena_scratch();
  CodeBatch *b = code_batch(a);
  Part *part = arena_array(a, Part, n + 1);
  MemGuard guard;
  if (MEM_GUARD(guard)) {
    tiles_for(NULL);
    mem_rethrow();
  }
  tiles_for(o ? o->target : NULL);
  plan_all(a, n, k, o, part);
  for (int i = 0; i < n; i++) want_code(b, k[i], &part[i]);
  tiles_for(NULL);
  mem_unguard(&guard);
  bool ok = code_emit(b, o, what, out);
  arena_free(a);
  return ok;
}

static void cpu_key(Str *out) {
  str_add(out, codegen_build());
  str_add(out, KILN_KEPT_ID);
  machine_key(out);
  str_fmt(out, "%d", tile_isa());
}

static void describe(Str *out) {
  cpu_describe(out);
  loops_describe(out);
}

static bool cpu_images_last(void) { return tile_of_form(DT_FLOAT32, FORM_DOT) != NULL; }

const Backend backend_cpu = {
    .name = "cpu",
    .updates = true,
    .images_last = cpu_images_last,
    .schedule = cpu_schedule,
    .takes_operand = cpu_takes_operand,
    .compile = cpu_compile,
    .module_free = cpu_module_free,
    .emit = cpu_emit,
    .describe = describe,
    .key = cpu_key,
};
