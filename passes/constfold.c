/* Constant folding: what depends only on constants, stored data and indices is computed here, by the interpreter. In: any
 * Graph. Out: an equal one; a folded node becomes a CONST if all its elements are the same, otherwise DATA.
 *
 * Only the last constant node on each path is stored, and never a view: a view of constants costs nothing at its use.
 * Every node on the way has at most MAX_ELEMENTS elements. Left alone: random numbers, and checks, which may fail. */
#include "rewrite.h"
#include <string.h>

enum { MAX_ELEMENTS = 4096 };

static bool constant_source(const Node *n) {
  return n->prim == P_CONST || n->prim == P_DATA || n->prim == P_IOTA;
}

/* Sets mark: 0 not constant, 1 a source or view of constants, 2 computed from constants. */
static void classify(Node *n) {
  char class = prim_info[n->prim].class;
  n->mark = 0;
  if (node_numel(n) > MAX_ELEMENTS && !constant_source(n)) return;
  if (constant_source(n)) {
    n->mark = 1;
    return;
  }
  if (class == 'S' || n->prim == P_CHECK || n->prim == P_CALL || n->prim == P_OUT) return;
  int most = 1;
  for (int k = 0; k < n->n_in; k++) {
    if (!n->in[k]->mark || node_numel(n->in[k]) > MAX_ELEMENTS) return;
    if (n->in[k]->mark > most) most = n->in[k]->mark;
  }
  n->mark = class == 'V' ? most : 2;
}

/* A copy of n's constant ancestors in `to`; repl maps old to new. Nodes are met in order, operands first. */
static void copy_node(Graph *to, Node *n) {
  Node *c = arena_dup(to->arena, n, sizeof *n);
  c->in = arena_array(to->arena, Node *, n->n_in);
  for (int k = 0; k < n->n_in; k++) c->in[k] = n->in[k]->repl;
  n->repl = c;
  vec_add(to->arena, &to->nodes, c);
}

/* A constant as a node of g: CONST if uniform. */
static Node *stored(Graph *g, const Node *like, const Tensor *t) {
  size_t size = (size_t)dtype_info[t->dtype].size, n = (size_t)tensor_numel(t);
  const char *bytes = t->data;
  bool uniform = n > 0;
  for (size_t i = 1; i < n && uniform; i++) uniform = !memcmp(bytes, bytes + i * size, size);
  if (!uniform) return g_data(g, like->dtype, like->rank, like->dims, t->data, "folded");
  if (t->dtype != DT_INT64) return g_full(g, like->dtype, tensor_get(t, 0), like->rank, like->dims);
  int64_t v;
  memcpy(&v, bytes, sizeof v);
  return g_full_int(g, like->dtype, v, like->rank, like->dims);
}

Node *fold_const_map(Graph *g, Node *n) {
  if (!prim_is_map(n->prim)) return NULL;
  for (int k = 0; k < n->n_in; k++)
    if (n->in[k]->prim != P_CONST) return NULL;
  Graph *one = graph_new(NULL, false);
  Node *in[3];
  for (int k = 0; k < n->n_in; k++) {
    in[k] = g_clone_with(one, n->in[k], NULL);
    in[k]->rank = 0;
  }
  Node *r = g_node(one, n->prim, n->dtype, 0, n->dims, n->n_in, in);
  r->i = n->i;
  vec_add(one->arena, &one->fetches, ((NamedNode){"", r, NULL}));
  Tensor **values = arena_array(one->arena, Tensor *, one->nodes.n);
  EvalEnv env = {0};
  Node *to = NULL;
  if (graph_eval(one, &env, one->arena, values)) to = stored(g, n, values[r->id]);
  graph_free(one);
  return to;
}

static Node *fold_one(Graph *g, Node *n) {
  Tensor *t = n->mark == 3 ? (Tensor *)(uintptr_t)n->data : NULL;
  if (!t) return NULL;
  n->data = NULL;
  return stored(g, n, t);
}

void pass_constfold(Graph *g) {
  Graph *sub = graph_new(NULL, false);
  graph_sweep(g);
  for (int i = 0; i < g->nodes.n; i++) {
    classify(g->nodes.v[i]);
    if (g->nodes.v[i]->mark) copy_node(sub, g->nodes.v[i]);
  }
  /* mark 3: to be stored, namely a computed constant that something not computed from constants reads */
  for (int i = g->nodes.n - 1; i >= 0; i--) {
    Node *n = g->nodes.v[i];
    if (n->mark == 2 && prim_info[n->prim].class == 'V') continue;
    if (n->mark == 2 && node_is_target(g, n)) n->mark = 3;
  }
  for (int i = g->nodes.n - 1; i >= 0; i--) {
    Node *n = g->nodes.v[i];
    bool view = prim_info[n->prim].class == 'V';
    if (n->mark == 2 && !view) continue;
    for (int k = 0; k < n->n_in; k++)
      if (n->in[k]->mark == 2 && prim_info[n->in[k]->prim].class != 'V') n->in[k]->mark = 3;
  }
  for (int i = 0; i < g->nodes.n; i++)
    if (g->nodes.v[i]->mark == 3)
      vec_add(sub->arena, &sub->fetches, ((NamedNode){"", g->nodes.v[i]->repl, NULL}));
  Tensor **values = arena_array(sub->arena, Tensor *, sub->nodes.n);
  EvalEnv env = {0};
  if (sub->fetches.n && graph_eval(sub, &env, sub->arena, values)) {
    for (int i = 0; i < g->nodes.n; i++) {
      Node *n = g->nodes.v[i];
      if (n->mark == 3) n->data = values[n->repl->id];
    }
    graph_rewrite(g, fold_one);
  }
  graph_free(sub);
  graph_sweep(g);
}
