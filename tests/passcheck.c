/* See passcheck.h. */
#include "passcheck.h"
#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

enum { STEP = 3, SEED = 77 };

/* ---- values of sources ---- */

typedef struct Values {
  const Graph *g;
  Arena *a;
  Map *by_name;
} Values;

static Tensor *value_of(Values *v, const Node *n) {
  const char *key = arena_fmt(v->a, "%s:%s", n->prim == P_STATE ? "state" : "feed", n->s);
  Tensor *t = map_get(v->by_name, key);
  if (t) return t;
  Tensor like = {.dtype = n->dtype, .rank = n->rank};
  int64_t back[KL_VAR_RANK];
  memcpy(like.dims, n->dims, sizeof *n->dims * (size_t)n->rank);
  layout_inverse(n->rank, n->n_ia ? n->ia : NULL, back);
  like = tensor_layout(&like, back);
  t = arena_new_of(v->a, Tensor);
  assert_true(tensor_make(t, v->a, n->dtype, n->rank, like.dims));
  uint32_t h = 2166136261u;
  for (const char *s = key; *s; s++) h = (h ^ (uint8_t)*s) * 16777619u;
  for (int64_t i = 0; i < tensor_numel(t); i++) {
    h = h * 1664525u + 1013904223u;
    tensor_set(t, i, dtype_is_float(n->dtype) ? (h >> 8) / 8388608.0 - 1 : (h >> 16) % 3);
  }
  map_put(v->by_name, key, t);
  return t;
}

static Tensor *lookup(void *user, const char *name, bool state) {
  Values *v = user;
  for (int i = 0; i < v->g->nodes.n; i++) {
    const Node *n = v->g->nodes.v[i];
    if (n->prim == (state ? P_STATE : P_FEED) && !strcmp(n->s, name)) return value_of(v, n);
  }
  return NULL;
}

static void fail_with_diag(const char *what) {
  const Diag *d = err_get();
  fail_msg("%s: %s %s", what, d ? d->summary : "?", d ? d->notes : "");
}

static Tensor copy_of(const Tensor *t, Arena *a) {
  Tensor c = *t;
  c.data = arena_dup(a, t->data, tensor_bytes(t));
  return c;
}

/* The variable's value from what is written in a layout. */
static Tensor written(const Tensor *t, const int64_t *layout, Arena *a) {
  int64_t back[KL_VAR_RANK];
  layout_inverse(t->rank, layout, back);
  Tensor r = tensor_layout(t, back);
  r.data = arena_alloc(a, tensor_bytes(t) + 1);
  tensor_permute(r.data, t, back);
  return r;
}

Outcome outcome_by_interpreter(Graph *g, Arena *a) {
  Values v = {g, a, map_new(a)};
  EvalEnv env = {lookup, &v, SEED, STEP};
  Tensor **values = arena_array(a, Tensor *, g->nodes.n);
  if (!graph_eval(g, &env, a, values)) fail_with_diag("interpreter");
  Outcome o = {g->writes.n + g->fetches.n, NULL};
  o.v = arena_array(a, Tensor, o.n);
  for (int i = 0; i < g->writes.n; i++)
    o.v[i] = written(values[g->writes.v[i].node->id], g->writes.v[i].layout, a);
  for (int i = 0; i < g->fetches.n; i++)
    o.v[g->writes.n + i] = copy_of(values[g->fetches.v[i].node->id], a);
  return o;
}

/* ---- kernels ---- */

static size_t bytes_of(const Node *n) {
  return (size_t)node_numel(n) * (size_t)dtype_info[n->dtype].size;
}

typedef struct Machine {
  Graph *g;
  Values values;
  char *arena;
  char **bound; /* by buffer id: storage of what is not in the arena */
} Machine;

static char *storage(const Machine *m, const Buffer *b) {
  return b->kind == B_ARENA ? m->arena + b->offset : m->bound[b->id];
}

static void bind_sources(Machine *m) {
  for (int i = 0; i < m->g->buffers.n; i++) {
    const Buffer *b = m->g->buffers.v[i];
    if (b->kind != B_ARENA) m->bound[b->id] = arena_alloc(m->values.a, (size_t)b->bytes + 1);
  }
  for (int i = 0; i < m->g->nodes.n; i++) {
    const Node *n = m->g->nodes.v[i];
    if (n->prim == P_FEED || n->prim == P_STATE)
      tensor_permute(m->bound[n->buf->id], value_of(&m->values, n), n->n_ia ? n->ia : NULL);
    if (n->prim == P_DATA) memcpy(m->bound[n->buf->id], n->data, bytes_of(n));
  }
}

static bool in_list(Node *const *v, int n, const Node *x) {
  for (int i = 0; i < n; i++)
    if (v[i] == x) return true;
  return false;
}

static bool row_shaped(const Kernel *k, const Node *n) {
  if (n->rank != k->rank) return false;
  for (int d = 0; d < k->rank; d++)
    if (n->dims[d] != (k->reduce >> d & 1 ? 1 : k->ext[d])) return false;
  return true;
}

static bool full_shaped(const Kernel *k, const Node *n) {
  return n->rank == k->rank &&
         (!k->rank || !memcmp(n->dims, k->ext, (size_t)k->rank * sizeof *n->dims));
}

static void check_contract(const Kernel *k) {
  assert_true(k->outputs.n > 0);
  for (int i = 0; i < k->outputs.n; i++) {
    const Node *o = k->outputs.v[i];
    assert_true(in_list(k->nodes.v, k->nodes.n, o));
    if (k->kind == K_LOOP && !full_shaped(k, o) && !row_shaped(k, o))
      fail_msg("%s: output %d has neither the full nor the row shape", k->name, i);
    if (k->kind == K_CONTRACT) assert_true(full_shaped(k, o));
  }
  if (k->kind == K_CONTRACT) {
    assert_int_equal(k->reduce, 0);
    assert_int_equal(k->outputs.v[0]->dtype, k->core->dtype);
    for (int i = 0; i < k->inputs.n; i++)
      if (k->inputs.v[i].aligned) {
        assert_int_equal(k->inputs.v[i].node->prim, P_STATE);
        assert_true(in_list(k->outputs.v, k->outputs.n, k->core));
      }
  }
  assert_true(k->kind == K_LOOP ? !k->core : in_list(k->nodes.v, k->nodes.n, k->core));
}

/* Evaluates the kernel's nodes as a graph of their own, whose only sources are the kernel's inputs in memory. */
static void run_kernel(Machine *m, const Kernel *k) {
  Graph *sub = graph_new(NULL, false);
  for (int i = 0; i < m->g->nodes.n; i++) m->g->nodes.v[i]->repl = NULL;
  for (int i = 0; i < k->inputs.n; i++) {
    Node *n = k->inputs.v[i].node;
    n->repl = g_data(sub, n->dtype, n->rank, n->dims, storage(m, n->buf), n->s ? n->s : "");
  }
  for (int i = 0; i < k->nodes.n; i++) {
    Node *n = k->nodes.v[i], *c = arena_dup(sub->arena, n, sizeof *n);
    assert_true(i == 0 || k->nodes.v[i - 1]->id < n->id);
    c->in = arena_array(sub->arena, Node *, n->n_in);
    for (int j = 0; j < n->n_in; j++) {
      if (!n->in[j]->repl)
        fail_msg("%s: node %%%d reads %%%d, which is neither inside nor an input", k->name, n->id,
                 n->in[j]->id);
      c->in[j] = n->in[j]->repl;
    }
    n->repl = c;
    vec_add(sub->arena, &sub->nodes, c);
  }
  for (int i = 0; i < k->outputs.n; i++)
    vec_add(sub->arena, &sub->fetches, ((NamedNode){"", k->outputs.v[i]->repl, NULL}));
  graph_number(sub);
  EvalEnv env = {lookup, &m->values, SEED, STEP};
  Tensor **values = arena_array(sub->arena, Tensor *, sub->nodes.n);
  if (!graph_eval(sub, &env, sub->arena, values)) fail_with_diag(k->name);
  for (int i = 0; i < k->outputs.n; i++) {
    const Node *o = k->outputs.v[i];
    memcpy(storage(m, o->buf), values[o->repl->id]->data, bytes_of(o));
  }
  if (k->ws) memset(storage(m, k->ws), 0xA5, (size_t)k->ws->bytes);
  graph_free(sub);
}

static Tensor value_in(const Machine *m, const Node *n, const Buffer *b) {
  Tensor t;
  assert_true(tensor_make(&t, m->values.a, n->dtype, n->rank, n->dims));
  memcpy(t.data, storage(m, b), bytes_of(n));
  return t;
}

/* The buffer that holds the state when the run ends. */
static const Buffer *state_buffer(const Graph *g, const char *name, size_t bytes) {
  for (int i = 0; i < g->buffers.n; i++)
    if (g->buffers.v[i]->kind == B_STATE && !strcmp(g->buffers.v[i]->name, name) &&
        (size_t)g->buffers.v[i]->bytes == bytes)
      return g->buffers.v[i];
  fail_msg("state %s has no buffer", name);
  return NULL;
}

/* Fails the test where a kernel reads what is not among its inputs, before it is computed, or where its parts break the
 * contract of ir.h. Needs kernels and a memory plan. */
static Outcome outcome_by_kernels(Graph *g, Arena *a) {
  Machine m = {g, {g, a, map_new(a)}, arena_alloc(a, (size_t)g->arena_bytes + 64), NULL};
  m.bound = arena_array(a, char *, g->buffers.n + 1);
  memset(m.arena, 0xA5, (size_t)g->arena_bytes);
  bind_sources(&m);
  for (int i = 0; i < g->kernels.n; i++) {
    check_contract(g->kernels.v[i]);
    run_kernel(&m, g->kernels.v[i]);
  }
  Outcome o = {g->writes.n + g->fetches.n, NULL};
  o.v = arena_array(a, Tensor, o.n);
  for (int i = 0; i < g->fetches.n; i++) {
    const Node *n = g->fetches.v[i].node;
    o.v[g->writes.n + i] = value_in(&m, n, n->buf);
  }
  for (int i = 0; i < g->copies.n; i++) {
    const ExitCopy *c = &g->copies.v[i];
    assert_int_equal(c->from->bytes, c->to->bytes);
    memcpy(storage(&m, c->to), storage(&m, c->from), (size_t)c->to->bytes);
  }
  for (int i = 0; i < g->writes.n; i++) {
    const NamedNode *w = &g->writes.v[i];
    Tensor t = value_in(&m, w->node, state_buffer(g, w->name, bytes_of(w->node)));
    o.v[i] = written(&t, w->layout, a);
  }
  return o;
}

void outcome_compare(const Outcome *a, const Outcome *b, double rel) {
  assert_int_equal(a->n, b->n);
  for (int i = 0; i < a->n; i++) {
    const Tensor *x = &a->v[i], *y = &b->v[i];
    assert_int_equal(x->dtype, y->dtype);
    assert_int_equal(tensor_numel(x), tensor_numel(y));
    for (int64_t e = 0; e < tensor_numel(x); e++) {
      double p = tensor_get(x, e), q = tensor_get(y, e);
      bool same = p == q || (isnan(p) && isnan(q)) || fabs(p - q) <= rel * (1 + fabs(p));
      if (!same || (p == 0 && rel == 0 && signbit(p) != signbit(q)))
        fail_msg("result %d, element %lld: %.9g, not %.9g", i, (long long)e, q, p);
    }
  }
}

void check_passes(Graph *g, double rel) {
  Arena *a = arena_new();
  Outcome before = outcome_by_interpreter(g, a);
  for (int i = 0; i < pass_n; i++) {
    pass_info[i].run(g);
    graph_number(g);
    if (!graph_verify(g)) fail_with_diag(pass_info[i].name);
    Outcome after = outcome_by_interpreter(g, a);
    outcome_compare(&before, &after, rel);
  }
  assert_true(memplan_check(g, NULL));
  Outcome run = outcome_by_kernels(g, a);
  outcome_compare(&before, &run, rel);
  arena_free(a);
}

int kernels_with(const Graph *g, const char *part) {
  int n = 0;
  for (int i = 0; i < g->kernels.n; i++) n += strstr(g->kernels.v[i]->name, part) != NULL;
  return n;
}

const Kernel *kernel_with(const Graph *g, const char *part) {
  for (int i = 0; i < g->kernels.n; i++)
    if (strstr(g->kernels.v[i]->name, part)) return g->kernels.v[i];
  fail_msg("no kernel has %s in its name", part);
  return NULL;
}

/* ---- graphs from text ---- */

/* The text form wants nodes numbered in order; here any number may name a node. */
static char *renumbered(Arena *a, const char *text) {
  int to[32] = {0}, n = 0;
  Str out;
  str_init(&out, a);
  for (const char *p = text; *p; p++) {
    if (*p != '%') {
      str_addn(&out, p, 1);
      continue;
    }
    char *end;
    long k = strtol(p + 1, &end, 10);
    if (p == text || p[-1] == '\n') to[k] = n++;
    str_fmt(&out, "%%%d", to[k]);
    p = end - 1;
  }
  return out.s;
}

Graph *graph_parsed(const char *text) {
  Arena *a = arena_new();
  char *s = renumbered(a, text);
  Graph *g = graph_parse(s, strlen(s), "test");
  arena_free(a);
  if (!g) {
    err_print(stderr, false);
    err_clear();
    fail_msg("the graph does not parse: %s", text);
  }
  return g;
}
