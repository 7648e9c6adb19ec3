/* Which algorithm and tile serve a contraction: by the rule of contract.c, or by measurement.
 *
 * In: a kernel, and how its choice is to be made. Out: Kernel.choice. Candidates are first the algorithms that serve the
 * kernel, each with the tile that it prefers, then the fastest of them with every other tile. They are compiled, run in turn
 * on one thread over operands of their own, and the least time counts; phases of few tasks count as two threads would run
 * them. The rule's own choice stays unless another is faster by MARGIN. The winner is put into the disk cache under all
 * that the comparison depends on (shape, operands that are constant, machine, version), and is found there again: the choice
 * does not depend on the number of threads, nor, once made, on the run. */
#include "tiles.h"
#include "../../ir/blas.h"
#include "../code/code.h"
#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

enum { FLOPS = 1000000, ROUNDS = 7, MOST = 24 };
static const double MARGIN = 0.97, ROUND_NS = 3e5, LIMIT_NS = 150e6;
static const int64_t most_bytes = (int64_t)1 << 30;

/* ---- what is remembered ---- */

/* Choices as the disk keeps them: by the tile itself, since rows of the table come and go. */
typedef struct Kept {
  int32_t way, form, mr, nv; /* mr 0: the tile that the algorithm prefers */
} Kept;

static void add_int(Str *s, int64_t v) { str_addn(s, (char *)&v, sizeof v); }

static void key_of(const Kernel *k, Str *s) {
  const Node *n = k->core;
  str_add(s, "algorithm " KILN_VERSION " ");
  str_add(s, codegen_build());
  machine_key(s);
  add_int(s, tile_isa());
  str_addn(s, (const char *)&k->conv_error, sizeof k->conv_error);
  int64_t head[] = {n->dtype, n->rank, n->n_loops, k->outputs.v[0] != n || k->outputs.n > 1};
  str_addn(s, (char *)head, sizeof head);
  for (int i = 0; i < n->n_loops; i++) add_int(s, n->ext[i]);
  for (int x = 0; x < 2; x++) {
    int at = kernel_input(k, n->in[x]);
    add_int(s, at >= 0 && k->inputs.v[at].constant);
    add_int(s, n->in[x] == n->in[0]);
    for (int d = 0; d < n->in[x]->rank; d++) {
      const AffDim *m = &n->map[x][d];
      int64_t v[] = {n->in[x]->dims[d], m->l0, m->l1, m->c0, m->c1, m->off, m->div};
      str_addn(s, (char *)v, sizeof v);
    }
  }
}

/* Is anything remembered at all? One look for each process. */
static atomic_int any_kept; /* 0: not known yet; 1: yes; -1: no */
static void any_key(Str *s) {
  str_add(s, "algorithms " KILN_VERSION " ");
  machine_key(s);
}
static bool is_any_kept(Arena *a) {
  Str key;
  const uint8_t *value;
  size_t n;
  if (any_kept) return any_kept > 0;
  str_init(&key, a);
  any_key(&key);
  bool found = cache_get(a, key.s, key.n, &value, &n);
  any_kept = found ? 1 : -1;
  return found;
}

static bool is_of(const TileRow *t, const Kernel *k) {
  return t->isa == tile_isa() && t->dtype == k->core->dtype;
}

static int choice_of(const Kernel *kernel, const Kept *k) {
  if (k->way < 0 || k->way >= WAY_N) return 0;
  if (!k->mr) return k->way;
  for (int i = 0; tile_table[i].isa != ISA_NONE; i++) {
    const TileRow *t = &tile_table[i];
    if (is_of(t, kernel) && t->form == (Form)k->form && t->mr == k->mr && t->nv == k->nv)
      return k->way + WAY_N * (i + 1);
  }
  return 0;
}

static bool find(Arena *a, const Str *key, Kernel *to) {
  const uint8_t *value;
  size_t n;
  Kept k;
  if (!cache_get(a, key->s, key->n, &value, &n) || n != sizeof k) return false;
  memcpy(&k, value, sizeof k);
  to->choice = choice_of(to, &k);
  return true;
}

static void remember(Arena *a, const Str *key, int choice) {
  Kept k = {.way = choice % WAY_N};
  Str any;
  if (choice >= WAY_N) {
    const TileRow *t = &tile_table[choice / WAY_N - 1];
    k = (Kept){k.way, (int32_t)t->form, t->mr, t->nv};
  }
  cache_put(key->s, key->n, &k, sizeof k);
  str_init(&any, a);
  any_key(&any);
  if (!is_any_kept(a)) cache_put(any.s, any.n, "", 1);
  any_kept = 1;
}

/* ---- measuring ---- */

typedef struct Candidate {
  int choice;
  Plan *plan;
  KernelCode run;
  double ns;
  bool out; /* far behind */
} Candidate;

typedef struct Trial {
  Arena *a;
  const Kernel *k;
  int n;
  Candidate c[MOST];
  CodeBatch *code[2]; /* of the algorithms, of the tiles */
  void **bufs;
  int64_t scratch, workspace;
} Trial;

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

/* Two threads take whole tasks. */
static double shared(double ns, int64_t tasks) {
  return ns * (double)div_up(tasks, 2) * 2 / (double)most(tasks, 1);
}

typedef struct Phase {
  const Trial *t;
  const Candidate *c;
  int phase;
} Phase;

static void run_phase(void *user, int thread, int64_t begin, int64_t end) {
  const Phase *p = user;
  const KernelCode *k = &p->c->run;
  (void)thread;
  RunCtx ctx = {.scratch = p->t->bufs[0], .scratch_bytes = (size_t)p->t->scratch};
  k->phase[p->phase].fn(k->phase[p->phase].self, p->t->bufs + 1, begin, end, &ctx);
}

/* Nanoseconds of a run; what is prepared from constants is done once, and so does not count. */
static double run_once(const Trial *t, const Candidate *c) {
  int prepares = c->plan->work.prepares;
  bool kept = prepares > 0 && t->k->inputs.v[prepares - 1].constant;
  double ns = 0;
  for (int i = 0; i < c->run.n_phases; i++) {
    Phase p = {t, c, i};
    double begin = now();
    pool_run_here(c->run.phase[i].n_tasks, run_phase, &p);
    if (i > 0 || !kept) ns += shared(now() - begin, c->run.phase[i].n_tasks);
  }
  return ns;
}

/* An epilogue that does not run on what a task has just written reads and writes the result again. */
static double separate_epilogue(const Candidate *c) {
  enum { BYTES_PER_NS = 20 };
  const Plan *p = c->plan;
  bool separate = p->frame.epilogue && !p->work.fused;
  return separate ? 2.0 * (double)(p->facts.numel * p->facts.size) / BYTES_PER_NS : 0;
}

static bool same(const Plan *p, const Plan *q) {
  char x[24], y[24];
  plan_text(p, x);
  plan_text(q, y);
  return !strcmp(x, y) && p->work.n_phases == q->work.n_phases &&
         p->work.n_tasks[0] == q->work.n_tasks[0] && p->work.workspace == q->work.workspace;
}

static void add(Trial *t, int choice) {
  Plan *p = plan_by(t->a, t->k, choice);
  if (!p || t->n == MOST || p->work.workspace > most_bytes || (p->uses_blas && !blas_found()))
    return;
  for (int i = 0; i < t->n; i++)
    if (same(p, t->c[i].plan)) return;
  t->c[t->n++] = (Candidate){.choice = choice, .plan = p};
}

/* Memory for candidates from `from` on; bufs: the scratch, then as the kernel has them. */
static void take_buffers(Trial *t, int from) {
  const Kernel *k = t->k;
  int n_bufs = k->inputs.n + k->outputs.n + 1;
  int64_t scratch = t->scratch, workspace = t->workspace;
  for (int i = from; i < t->n; i++) {
    scratch = most(scratch, t->c[i].plan->work.scratch);
    workspace = most(workspace, t->c[i].plan->work.workspace);
  }
  if (!t->bufs) {
    t->bufs = arena_array(t->a, void *, n_bufs + 1);
    const Frame *f = &t->c[0].plan->frame;
    for (int x = 0; x < 3; x++) {
      const Node *n = x < 2 ? k->core->in[x] : k->core;
      size_t bytes = (size_t)node_numel(n) * (size_t)dtype_info[n->dtype].size + 64;
      void *p = arena_alloc(t->a, bytes);
      memset(p, 0x3c, bytes); /* numbers of about 0.01 */
      t->bufs[1 + (x < 2 ? f->x[x] : f->out)] = p;
    }
  }
  if (scratch > t->scratch) t->bufs[0] = arena_alloc(t->a, (size_t)scratch + 64);
  if (workspace > t->workspace) t->bufs[n_bufs] = arena_alloc(t->a, (size_t)workspace + 64);
  t->scratch = scratch;
  t->workspace = workspace;
}

/* Runs candidates from `from` on beside the best so far. */
static bool compare(Trial *t, int from, int best) {
  CodeBatch *code = t->code[from > 0] = code_batch(t->a);
  take_buffers(t, from);
  for (int i = from; i < t->n; i++) plan_micro(t->c[i].plan, code);
  if (!code_make(code, NULL)) return false;
  for (int i = from; i < t->n; i++) {
    contract_code(t->c[i].plan, NULL, &t->c[i].run);
    run_once(t, &t->c[i]);
  }
  double begin = now(), least_ns = 0;
  for (int r = 0; r < ROUNDS && (r < 2 || now() - begin < LIMIT_NS); r++)
    for (int i = 0; i < t->n; i++) {
      Candidate *c = &t->c[i];
      if (c->out || (i < from && i != best)) continue;
      double ns = run_once(t, c), first = ns;
      for (double sum = ns; sum < ROUND_NS; sum += first) {
        double again = run_once(t, c);
        if (again < ns) ns = again;
      }
      ns += separate_epilogue(c);
      if (!c->ns || ns < c->ns) c->ns = ns;
      if (!least_ns || c->ns < least_ns) least_ns = c->ns;
      c->out = c->ns > 1.5 * least_ns;
    }
  return true;
}

static int fastest(const Trial *t) {
  int best = 0;
  for (int i = 1; i < t->n; i++) {
    double margin = best ? 1 : MARGIN;
    if (t->c[i].ns < t->c[best].ns * margin) best = i;
  }
  return best;
}

static bool measure(Trial *t) {
  for (int way = WAY_RULE; way < WAY_N; way++) add(t, way);
  if (!compare(t, 0, 0)) return false;
  static const Way by_kind[] = {WAY_RULE, WAY_GEMM,   WAY_WINDOW, WAY_WINDOW,
                                WAY_CONV, WAY_FILTER, WAY_IMAGES, WAY_IMAGES};
  int best = fastest(t), way = t->c[best].choice, from = t->n;
  if (way == WAY_RULE) way = by_kind[t->c[best].plan->kind];
  for (int i = 0; tile_table[i].isa != ISA_NONE; i++)
    if (is_of(&tile_table[i], t->k)) add(t, way + WAY_N * (i + 1));
  return t->n == from || compare(t, from, best);
}

static void free_code(Trial *t) {
  for (int i = 0; i < 2; i++) code_free(t->code[i]);
}

static bool measured(Arena *a, Kernel *k) {
  const Plan *rule = plan_by(a, k, WAY_RULE);
  int64_t bytes = node_numel(k->core) * dtype_info[k->core->dtype].size;
  for (int x = 0; x < 2; x++)
    bytes += node_numel(k->core->in[x]) * dtype_info[k->core->in[x]->dtype].size;
  /* sums by shares are for rows that a thread has just updated: alone they would lose */
  if (!rule || bytes > most_bytes || (rule->kind == PLAN_GEMM && rule->work.shares)) return true;
  if (rule->uses_blas && !blas_found()) return true;
  Trial *t = arena_new_of(a, Trial);
  t->a = a;
  t->k = k;
  MemGuard guard;
  if (MEM_GUARD(guard)) {
    free_code(t);
    mem_rethrow();
  }
  bool ok = measure(t);
  if (ok) k->choice = t->c[fastest(t)].choice;
  mem_unguard(&guard);
  free_code(t);
  return ok;
}

bool choose_algorithm(Kernel *k) {
  k->choice = WAY_RULE;
  if (k->kind != K_CONTRACT || k->tuning == TUNE_RULE || k->flops < FLOPS) return true;
  Arena *a = arena_scratch();
  Str key;
  bool ok = true;
  if (is_any_kept(a) || k->tuning == TUNE_MEASURE) {
    str_init(&key, a);
    key_of(k, &key);
    if (!find(a, &key, k) && k->tuning == TUNE_MEASURE && (ok = measured(a, k)))
      remember(a, &key, k->choice);
  }
  arena_free(a);
  return ok;
}
