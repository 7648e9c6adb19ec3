/* Contractions by every algorithm, with and without an epilogue, against the interpreter: see contract_case.h. */
#include "contract_case.h"
#include "../backends/llvm/micro.h"
#include <math.h>
#include <stdatomic.h>

static uint32_t noise_state;
double test_noise(void) {
  noise_state = noise_state * 1664525u + 1013904223u;
  return (double)(noise_state >> 8) / (1 << 23) - 1;
}

Tensor *feeds_lookup(void *user, const char *name, bool state) {
  Feeds *f = user;
  (void)state;
  return map_get(f->map, name);
}

Node *feeds_add(Graph *g, Feeds *f, const char *name, DType t, int rank, const int64_t *dims) {
  Tensor *v = arena_new_of(f->a, Tensor);
  assert_true(tensor_make(v, f->a, t, rank <= KL_VAR_RANK ? rank : 1,
                          rank <= KL_VAR_RANK ? dims : (int64_t[]){numel_of(rank, dims)}));
  for (int64_t i = 0; i < tensor_numel(v); i++) tensor_set(v, i, test_noise());
  map_put(f->map, name, v);
  return g_feed(g, name, t, rank, dims);
}

/* Stands for a generated epilogue: 2x + 1 over whole rows or, where `self` names them, some columns. */
static int64_t row_numel;
static DType row_type;
static atomic_int rows_seen[4096]; /* elements of each */
static void twice_and_one(const void *self, void *const *bufs, int64_t begin, int64_t end,
                          RunCtx *ctx) {
  EpilogueColumns all = {0, row_numel};
  const EpilogueColumns *c = self ? self : &all;
  (void)ctx;
  for (int64_t r = begin; r < end; r++) {
    if (r < 4096) atomic_fetch_add(&rows_seen[r], (int)(c->end - c->first));
    for (int64_t i = r * row_numel + c->first; i < r * row_numel + c->end; i++)
      if (row_type == DT_FLOAT32)
        ((float *)bufs[2])[i] = ((float *)bufs[2])[i] * 2 + 1;
      else
        ((double *)bufs[2])[i] = ((double *)bufs[2])[i] * 2 + 1;
  }
}

void run_split(const KernelCode *c, void *const *bufs, Split split) {
  RunCtx ctx = {.scratch = mem_alloc((size_t)c->scratch_bytes + 64),
                .scratch_bytes = (size_t)c->scratch_bytes,
                .run = split == IN_THREES};
  for (int p = 0; p < c->n_phases; p++) {
    int64_t n = c->phase[p].n_tasks, step = split == ALL_AT_ONCE ? n : split == IN_THREES ? 3 : 1;
    for (int64_t t = 0; t < n; t += step) {
      int64_t b = split == ONE_BY_ONE_BACKWARDS ? n - 1 - t : t;
      c->phase[p].fn(c->phase[p].self, bufs, b, b + step < n ? b + step : n, &ctx);
    }
  }
  mem_free(ctx.scratch);
}

bool contract_constant;
int contract_choice;

PlanKind contract_check(Arena *a, Node *node, Tensor *const *values, bool epilogue, bool no_blas) {
  Node maps = {.prim = P_ADD, .dtype = node->dtype, .rank = node->rank};
  memcpy(maps.dims, node->dims, sizeof maps.dims);
  Kernel k = {.kind = K_CONTRACT, .name = "k", .rank = node->rank, .core = node};
  memcpy(k.ext, node->dims, sizeof k.ext);
  vec_add(a, &k.nodes, node);
  for (int i = 0; i < 2; i++)
    vec_add(a, &k.inputs, ((KernelInput){node->in[i], false, contract_constant}));
  vec_add(a, &k.outputs, epilogue ? &maps : node);
  k.choice = contract_choice;
  if (contract_choice && !plan_by(a, &k, contract_choice)) return PLAN_LOOPS;
  Plan *p = contract_plan(a, &k, no_blas);
  if (p->kind == PLAN_LOOPS) return p->kind;
  CodeBatch *batch = code_batch(a);
  assert_true(!no_blas || p->set);
  plan_micro(p, batch);
  assert_true(code_make(batch, NULL));
  assert_true(p->frame.epilogue == epilogue);
  KernelCode code = {0};
  contract_code(p, epilogue ? twice_and_one : NULL, &code);
  int64_t n = node_numel(node), size = dtype_info[node->dtype].size;
  const Tensor *want = values[node->id];
  int64_t rows = p->frame.rows * p->frame.parts;
  row_numel = n / rows;
  row_type = node->dtype;
  double terms = (double)p->facts.flops / 2 / (double)n;
  double eps = node->dtype == DT_FLOAT32 ? 6e-8 : 1.2e-16;
  Tensor got = {.dtype = node->dtype, .rank = 1, .dims = {n}}, first = got;
  for (int s = ALL_AT_ONCE; s <= IN_THREES; s++) {
    got.data = arena_alloc(a, (size_t)(n * size));
    memset(got.data, 0xff, (size_t)(n * size)); /* NaN */
    for (int i = 0; i < 4096; i++) rows_seen[i] = 0;
    void *ws = mem_alloc((size_t)p->work.workspace + 64);
    memset(ws, 0xff, (size_t)p->work.workspace);
    void *bufs[4] = {values[node->in[0]->id]->data, values[node->in[1]->id]->data, got.data, ws};
    run_split(&code, bufs, s);
    mem_free(ws);
    for (int64_t i = 0; epilogue && i < rows && i < 4096; i++)
      assert_int_equal(rows_seen[i], row_numel);
    if (s == ALL_AT_ONCE)
      first = got;
    else
      assert_memory_equal(first.data, got.data, n * size);
  }
  for (int64_t i = 0; i < n; i++) {
    double w = tensor_get(want, i), g = tensor_get(&got, i);
    if (epilogue) w = w * 2 + 1;
    if (!(fabs(w - g) <= eps * 8 * (terms + 8)))
      fail_msg("element %lld is %.9g, not %.9g: loops %d, algorithm %d, epilogue %d", (long long)i,
               g, w, node->n_loops, p->kind, epilogue);
  }
  code_free(batch);
  return p->kind;
}

/* The same with a real epilogue through the whole backend, by BLAS and by generated loops alone: y = relu(core + row bias)
 * where the bias runs along the last axis. */
static void check_backend(Graph *g, Feeds *f, Node *node) {
  if (!node->rank || node_numel(node) == 0) return;
  int64_t last = node->dims[node->rank - 1];
  const char *name = arena_fmt(f->a, "bias_%d", map_n(f->map));
  Node *bias = feeds_add(g, f, name, node->dtype, 1, &last);
  Node *wide = g_expand(g, bias, node->rank, node->dims), *sum = g_map2(g, P_ADD, node, wide);
  Node *y = g_map2c(g, P_MAX, sum, 0), *zero = y->in[1], *all[5] = {node, wide, sum, zero, y};
  graph_number(g);
  NamedNode out = {"y", y, NULL};
  vec_add(g->arena, &g->fetches, out);
  EvalEnv env = {.lookup = feeds_lookup, .user = f};
  Tensor **values = arena_array(f->a, Tensor *, g->nodes.n);
  assert_true(graph_eval(g, &env, f->a, values));
  Kernel k = {.kind = K_CONTRACT, .name = "k_contract", .rank = node->rank, .core = node}, *ks = &k;
  memcpy(k.ext, node->dims, sizeof k.ext);
  for (int i = 0; i < 5; i++) {
    if (i == 3 && zero->prim == P_VIEW) vec_add(f->a, &k.nodes, zero->in[0]);
    vec_add(f->a, &k.nodes, all[i]);
  }
  Node *ins[3] = {node->in[0], node->in[1], bias};
  for (int i = 0; i < 3; i++) vec_add(f->a, &k.inputs, ((KernelInput){ins[i], false, false}));
  vec_add(f->a, &k.outputs, y);
  double terms = 1, eps = node->dtype == DT_FLOAT32 ? 6e-8 : 1.2e-16;
  for (int l = node->rank; l < node->n_loops; l++) terms *= (double)node->ext[l];
  int64_t n = node_numel(node), size = dtype_info[node->dtype].size;
  for (int no_blas = 0; no_blas < 2; no_blas++) {
    CompileOptions o = {.no_blas = no_blas};
    KernelCode code;
    assert_true(backend_cpu.schedule(&k));
    Module *m = backend_cpu.compile(g, 1, &ks, &o, &code);
    if (!m) err_print(stderr, false);
    assert_non_null(m);
    Tensor got = {.dtype = node->dtype, .rank = 1, .dims = {n}};
    for (int split = ALL_AT_ONCE; split <= IN_THREES; split++) {
      got.data = arena_alloc(f->a, (size_t)(n * size));
      memset(got.data, 0xff, (size_t)(n * size));
      void *ws = mem_alloc((size_t)k.workspace + 64);
      void *bufs[5] = {NULL, NULL, NULL, got.data, ws};
      for (int i = 0; i < 3; i++) bufs[i] = values[ins[i]->id]->data;
      run_split(&code, bufs, split);
      mem_free(ws);
      for (int64_t i = 0; i < n; i++) {
        double w = tensor_get(values[y->id], i), v = tensor_get(&got, i);
        if (!(fabs(w - v) <= eps * 8 * (terms + 8)))
          fail_msg("element %lld is %.9g, not %.9g: %d loops, no_blas %d, split %d", (long long)i,
                   v, w, node->n_loops, no_blas, split);
      }
    }
    backend_cpu.module_free(m);
  }
}

void contract_check_all(Graph *g, Feeds *f, const int *kinds, bool backend) {
  assert_false(err_any());
  graph_number(g);
  EvalEnv env = {.lookup = feeds_lookup, .user = f};
  Tensor **values = arena_array(f->a, Tensor *, g->nodes.n);
  if (!g->fetches.n)
    for (int i = 0; i < g->nodes.n; i++)
      if (g->nodes.v[i]->prim == P_CONTRACT) {
        NamedNode out = {"out", g->nodes.v[i], NULL};
        vec_add(g->arena, &g->fetches, out);
      }
  if (!graph_eval(g, &env, f->a, values)) err_print(stderr, false);
  assert_false(err_any());
  int c = 0;
  for (int i = 0; i < g->nodes.n; i++) {
    Node *n = g->nodes.v[i];
    if (n->prim != P_CONTRACT) continue;
    for (int e = 0; e < 2; e++) contract_check(f->a, n, values, e, true);
    contract_check(f->a, n, values, true, false);
    micro_isa = "none";
    for (int e = 0; e < 2; e++) {
      int kind = (int)contract_check(f->a, n, values, e, false);
      if (kinds && kinds[c] != ANY && kinds[c] != kind)
        fail_msg("contraction %d: algorithm %d, not %d", c, kind, kinds[c]);
    }
    micro_isa = NULL;
    static int turn;
    contract_choice = WAY_RULE + 1 + turn++ % (WAY_N - 1);
    contract_check(f->a, n, values, turn / WAY_N % 2, false);
    contract_choice = WAY_RULE;
    c++;
  }
  for (int i = 0, n = g->nodes.n; i < n && backend; i++)
    if (g->nodes.v[i]->prim == P_CONTRACT) check_backend(g, f, g->nodes.v[i]);
}

Feeds feeds_new(void) {
  Arena *a = arena_new();
  return (Feeds){a, map_new(a)};
}
