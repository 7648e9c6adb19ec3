/* Kernels of generated code against the interpreter: see code_case.h. */
#include "code_case.h"
#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

Tensor *case_lookup(void *user, const char *name, bool state) {
  Case *c = user;
  (void)state;
  for (int i = 0; i < c->n; i++)
    if (!strcmp(c->name[i], name)) return &c->feed[i];
  return NULL;
}

Case *case_new(void) {
  Arena *a = arena_new();
  Case *c = arena_new_of(a, Case);
  c->a = a;
  c->g = graph_new(NULL, false);
  c->random = 12345;
  return c;
}

static double uniform(Case *c, double lo, double hi) {
  c->random = c->random * 6364136223846793005u + 1442695040888963407u;
  return lo + (hi - lo) * (double)(c->random >> 11) * 0x1p-53;
}

Node *case_feed(Case *c, DType t, int rank, const int64_t *dims, double lo, double hi) {
  Tensor *x = &c->feed[c->n];
  c->name[c->n] = arena_fmt(c->a, "x%d", c->n);
  assert_true(tensor_make(x, c->a, t, rank, dims));
  for (int64_t i = 0; i < tensor_numel(x); i++) tensor_set(x, i, uniform(c, lo, hi));
  return g_feed(c->g, c->name[c->n++], t, rank, dims);
}

/* ---- kernels by hand ---- */

static bool is_source(const Node *n) {
  return n->prim == P_FEED || n->prim == P_STATE || n->prim == P_DATA;
}

Kernel *case_kernel(Case *c, KernelKind kind, Node *core, int n_out, Node *const *out,
                    uint32_t reduce) {
  Kernel *k = arena_new_of(c->a, Kernel);
  k->kind = kind;
  k->name = "kernel";
  k->core = core;
  k->reduce = reduce;
  const Node *shape = core ? core : out[0];
  graph_number(c->g);
  for (int i = 0; i < c->g->nodes.n; i++) {
    Node *n = c->g->nodes.v[i];
    if (is_source(n))
      vec_add(c->a, &k->inputs, ((KernelInput){n, false, false}));
    else
      vec_add(c->a, &k->nodes, n);
    if (reduce && prim_is_reduce(n->prim) && (uint32_t)n->i == reduce) shape = n->in[0];
  }
  for (int i = 0; i < n_out; i++) vec_add(c->a, &k->outputs, out[i]);
  k->rank = shape->rank;
  memcpy(k->ext, shape->dims, sizeof k->ext);
  return k;
}

void case_fail(const char *what) {
  const Diag *d = err_get();
  fail_msg("%s: %s: %s", what, d ? err_name(d->code) : "no error", d ? d->summary : "");
}

static void check_failed(RunCtx *ctx, int64_t node, int64_t index, int64_t value) {
  Failed *f = (Failed *)(void *)ctx->record;
  if (!f->n++) f->node = node, f->index = index, f->value = value;
}

void case_run(Case *c, Kernel *k, const Steps *s, int64_t pieces, Tensor *out, Failed *f) {
  void *bufs[64];
  int n = 0;
  RunCtx ctx = {.seed = 77,
                .step = 5,
                .check_failed = check_failed,
                .record = (CheckRecord *)(void *)f};
  for (int i = 0; i < k->inputs.n; i++) {
    Node *x = k->inputs.v[i].node;
    bufs[n++] = x->prim == P_DATA ? (void *)(uintptr_t)x->data : case_lookup(c, x->s, false)->data;
  }
  for (int i = 0; i < k->outputs.n; i++) bufs[n++] = out[i].data;
  bufs[n] = s->workspace;
  for (int i = 0; i < 2; i++)
    for (int64_t p = 0; p < pieces; p++) {
      int64_t from = s->tasks[i] * p / pieces, to = s->tasks[i] * (p + 1) / pieces;
      if (from < to) s->fn[i](NULL, bufs, from, to, &ctx);
    }
}

static double ulp_of(DType t, double v) {
  int e;
  if (t == DT_FLOAT16) return ldexp(1, (frexp(v, &e), e < -13 ? -13 : e) - 11);
  if (t == DT_BFLOAT16) return ldexp(1, (frexp(v, &e), e < -125 ? -125 : e) - 8);
  if (t == DT_FLOAT32) return ldexp(1, (frexp(v, &e), e < -125 ? -125 : e) - 24);
  return ldexp(1, (frexp(v, &e), e < -1021 ? -1021 : e) - 53);
}

void case_compare(Case *c, const Tensor *want, const Tensor *got, double max_ulp, double scale,
                  const char *what) {
  for (int64_t i = 0; i < tensor_numel(want); i++) {
    double w = tensor_get(want, i), v = tensor_get(got, i);
    if ((isnan(w) && isnan(v)) || w == v) continue;
    double d = fabs(w - v) / ulp_of(want->dtype, fmax(fabs(w), scale));
    if (isinf(w) != isinf(v) || isnan(w) || isnan(v)) d = INFINITY;
    if (d > c->ulp) c->ulp = d;
    if (!dtype_is_float(want->dtype) || !(d <= max_ulp))
      fail_msg("%s, %s: element %lld is %.17g, not %.17g (%g ulp)", what,
               dtype_info[want->dtype].name, (long long)i, v, w, d);
  }
}

CodeBatch *case_compile(Case *c, Kernel *k, LoopPart part, Steps *s) {
  CompileOptions o = {.dump_dir = getenv("KILN_TEST_DUMP")};
  CodeBatch *b = code_batch(c->a);
  int64_t bytes = part == LOOP_CONTRACT ? loop_workspace(k) : 0;
  *s = (Steps){.tasks[0] = loop_tasks(k, part), .workspace = arena_alloc(c->a, (size_t)bytes)};
  loop_code(b, k, part, &s->fn[0]);
  if (bytes) loop_code(b, k, LOOP_PARTS, &s->fn[1]);
  if (bytes) s->tasks[1] = loop_tasks(k, LOOP_PARTS);
  return code_make(b, &o) ? b : NULL;
}

void case_check(Case *c, Kernel *k, LoopPart part, double max_ulp, double scale, const char *what) {
  EvalEnv env = {.lookup = case_lookup, .user = c, .seed = 77, .step = 5};
  Steps fn;
  Tensor **values = arena_array(c->a, Tensor *, c->g->nodes.n), whole[8], cut[8];
  for (int i = 0; i < k->outputs.n; i++)
    vec_add(c->g->arena, &c->g->fetches, ((NamedNode){"y", k->outputs.v[i], NULL}));
  graph_number(c->g);
  if (!graph_eval(c->g, &env, c->a, values)) case_fail(what);
  CodeBatch *b = case_compile(c, k, part, &fn);
  if (!b) case_fail(what);
  Failed f = {0};
  for (int i = 0; i < k->outputs.n; i++) {
    Node *n = k->outputs.v[i];
    assert_true(tensor_make(&whole[i], c->a, n->dtype, n->rank, n->dims));
    assert_true(tensor_make(&cut[i], c->a, n->dtype, n->rank, n->dims));
  }
  case_run(c, k, &fn, 1, whole, &f);
  for (int64_t pieces = 2; pieces <= 7 && pieces <= fn.tasks[0]; pieces++) {
    case_run(c, k, &fn, pieces, cut, &f);
    for (int i = 0; i < k->outputs.n; i++)
      if (memcmp(whole[i].data, cut[i].data, tensor_bytes(&whole[i])))
        fail_msg("%s: %d pieces differ", what, (int)pieces);
  }
  assert_int_equal(f.n, 0);
  for (int i = 0; i < k->outputs.n; i++)
    case_compare(c, values[k->outputs.v[i]->id], &whole[i], max_ulp, scale, what);
  code_free(b);
}

void case_free(Case *c) {
  graph_free(c->g);
  arena_free(c->a);
}

void case_check_map(Case *c, Node *y, double max_ulp, double scale, const char *what) {
  if (!y) case_fail(what);
  case_check(c, case_kernel(c, K_LOOP, NULL, 1, &y, 0), LOOP_MAIN, max_ulp, scale, what);
}
