/* How kernels are launched. In: a kernel; out: its launches, with the geometry of their grids. Everything follows from shapes
 * and the target.
 *
 *   points  maps, concatenations: a grid-stride loop over the results, a thread for each vector of them */
#include "plan.h"
#include <stdlib.h>
#include <string.h>

/* ---- targets ---- */

bool cuda_target(const char *name, CudaTarget *t) {
  static const struct {
    const char *name;
    CudaMath math;
  } math[] = {{"", CUDA_F32}, {":f32", CUDA_F32}, {":tf32", CUDA_TF32}, {":bf16", CUDA_BF16}};
  char *end = NULL;
  long sm = name && !strncmp(name, "cuda:sm_", 8) ? strtol(name + 8, &end, 10) : 0;
  for (size_t i = 0; sm >= 75 && sm < 1000 && i < sizeof math / sizeof *math; i++)
    if (!strcmp(end, math[i].name)) {
      *t = (CudaTarget){(int)sm, math[i].math};
      return true;
    }
  err_set(E_GEN_002, "target %s: not a CUDA architecture from sm_75 on",
          quoted(name ? name : "cuda"));
  err_help(
      "Write it like \"cuda:sm_80\"; \":tf32\" or \":bf16\" behind it lets matrix products round "
      "their inputs.");
  return false;
}

/* ---- launches ---- */

typedef struct Planning {
  Arena *a;
  Kernel *k;
  const CudaTarget *t;
  CudaPlan *plan;
  uint64_t key; /* of the kernel's code */
} Planning;

static int64_t div_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* "conv2d_relu_0123456789abcdef": without the kernel's number, so that equal code has one name. */
static const char *entry_name(Planning *p, int launch) {
  const char *s = p->k->name;
  size_t number = *s == 'k' ? strspn(s + 1, "0123456789") : 0;
  if (number && s[1 + number] == '_') s += 2 + number;
  uint64_t h = hash_bytes(p->key, &launch, sizeof launch);
  char *name = arena_fmt(p->a, "%s_%016llx", *s ? s : "kernel", (unsigned long long)h);
  for (char *c = name; *c; c++)
    if (!strchr("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_", *c)) *c = '_';
  if (*name >= '0' && *name <= '9') *name = '_';
  return name;
}

/* A launch whose arguments are all buffers and the run. */
static CudaLaunch *launch(Planning *p, CudaForm form, LoopPart part, int64_t blocks, int threads) {
  CudaPlan *plan = p->plan;
  Kernel *k = p->k;
  CudaLaunch *l = &plan->launch[plan->n];
  CudaStage *s = arena_new_of(p->a, CudaStage);
  *s = (CudaStage){.form = form, .part = part};
  int n = k->inputs.n + k->outputs.n + (plan->workspace > 0);
  *l = (CudaLaunch){.entry = entry_name(p, plan->n),
                    .grid = {(uint32_t)blocks, 1, 1},
                    .block = {(uint32_t)threads, 1, 1},
                    .n_args = n + 1,
                    .args = arena_array(p->a, CudaArg, n + 1),
                    .stage = s};
  for (int i = 0; i < n; i++) l->args[i] = (CudaArg){CUDA_BUF, i, 0};
  l->args[n].kind = CUDA_RUN;
  plan->n++;
  return l;
}

static Gen *nests_of(Planning *p, LoopPart part) {
  Gen *g = arena_new_of(p->a, Gen);
  *g = (Gen){.a = p->a, .k = p->k, .part = part, .gpu = true};
  return g;
}

static bool plan_points(Planning *p, LoopPart part) {
  Gen *g = nests_of(p, part);
  int64_t points = 0;
  for (int i = 0; i < nest_n(p->k, part); i++) {
    Nest t;
    nest_plan(g, i, &t);
    if (t.rows > points) points = t.rows;
  }
  int64_t blocks = div_up(points, CUDA_THREADS);
  if (blocks > CUDA_MOST_BLOCKS) blocks = CUDA_MOST_BLOCKS;
  if (points) launch(p, CUDA_POINTS, part, blocks, CUDA_THREADS);
  return true;
}

/* ---- kinds of kernels ---- */

typedef bool PlanFn(Planning *p);

static bool plan_loop(Planning *p) { return plan_points(p, LOOP_MAIN); }
static bool plan_contract(Planning *p) { return plan_points(p, LOOP_CONTRACT); }

static bool plan_call(Planning *p) {
  const Node *c = p->k->core;
  err_set(E_GEN_002, "operator %s cannot run on a GPU: it is made of C functions",
          quoted(c->custom ? c->custom->name : p->k->name));
  err_help("Run the program on the CPU.");
  return false;
}

static bool plan_none(Planning *p) {
  return err_set(E_GEN_002, "kernel %s has no PTX", quoted(p->k->name));
}

static PlanFn *const plans[] = {
    [K_LOOP] = plan_loop,    [K_CONCAT] = plan_loop, [K_CONTRACT] = plan_contract,
    [K_SCATTER] = plan_none, [K_SORT] = plan_none,   [K_CALL] = plan_call};

CudaPlan *cuda_plan(Arena *a, const Kernel *k, const CudaTarget *t) {
  enum { MOST_LAUNCHES = 4 };
  Planning p = {.a = a, .k = (Kernel *)k, .t = t, .plan = arena_new_of(a, CudaPlan)};
  Str key;
  str_init(&key, a);
  loop_key(p.k, LOOP_MAIN, &key);
  p.key = hash_bytes(0, key.s, key.n);
  p.plan->launch = arena_array(a, CudaLaunch, MOST_LAUNCHES);
  return plans[k->kind](&p) ? p.plan : NULL;
}
