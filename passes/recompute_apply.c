/* Recomputation, the kernels. find_recipe: how a stored value could be computed again. apply_splits: new kernels for the
 * values that are, and copies of what reads them in the kernels behind, which see the new node instead of the old one. */
#include "recompute.h"
#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_INPUTS = 48 };
static const double BYTES_PER_NS = 10, FLOPS_PER_NS = 100;

/* ---- recipes ---- */

static bool is_output(const Kernel *k, const Node *n) {
  for (int i = 0; i < k->outputs.n; i++)
    if (k->outputs.v[i] == n) return true;
  return false;
}

static bool full_shape(const Kernel *k, const Node *n) {
  return n->rank == k->rank &&
         (!k->rank || !memcmp(n->dims, k->ext, (size_t)k->rank * sizeof *k->ext));
}

static int64_t bytes_of(const Node *n) { return node_numel(n) * dtype_info[n->dtype].size; }

/* The nodes between the value and what is stored; false if a reduction or contraction is among them. */
static bool slice(Recompute *r, const Kernel *k, Stored *v) {
  Recipe *p = &v->recipe;
  bool *inside = arena_array(r->a, bool, r->g->nodes.n),
       *needed = arena_array(r->a, bool, r->g->nodes.n);
  for (int i = 0; i < k->nodes.n; i++) inside[k->nodes.v[i]->id] = true;
  for (int i = 0; i < k->outputs.n; i++) inside[k->outputs.v[i]->id] = false;
  inside[v->node->id] = needed[v->node->id] = true;
  for (int i = k->nodes.n - 1; i >= 0; i--) {
    Node *n = k->nodes.v[i];
    if (!needed[n->id] || !inside[n->id]) continue;
    if (n == k->core || kernel_sweeps(k, n)) return false;
    for (int j = 0; j < n->n_in; j++) needed[n->in[j]->id] = true;
  }
  for (int i = 0; i < k->nodes.n; i++) {
    Node *n = k->nodes.v[i];
    if (needed[n->id] && inside[n->id]) vec_add(r->a, &p->nodes, n);
    if (needed[n->id] && !inside[n->id]) vec_add(r->a, &p->inputs, n);
  }
  for (int i = 0; i < k->inputs.n; i++)
    if (needed[k->inputs.v[i].node->id]) vec_add(r->a, &p->inputs, k->inputs.v[i].node);
  return true;
}

static void whole(Recompute *r, const Kernel *k, Stored *v) {
  Recipe *p = &v->recipe;
  p->whole = true;
  p->nodes.n = p->inputs.n = 0;
  for (int i = 0; i < k->nodes.n; i++) vec_add(r->a, &p->nodes, k->nodes.v[i]);
  for (int i = 0; i < k->inputs.n; i++) vec_add(r->a, &p->inputs, k->inputs.v[i].node);
  p->extra = k->workspace;
  for (int i = 0; i < k->outputs.n; i++)
    if (k->outputs.v[i] != v->node) p->extra += bytes_of(k->outputs.v[i]);
}

void find_recipe(Recompute *r, Stored *v) {
  const Kernel *k = r->g->kernels.v[v->kernel];
  Recipe *p = &v->recipe;
  if (v->at_exit || (k->kind != K_LOOP && k->kind != K_CONTRACT) || !full_shape(k, v->node)) return;
  if (!slice(r, k, v)) whole(r, k, v);
  p->latest = NEVER - 1;
  p->possible = p->inputs.n <= MOST_INPUTS && p->extra - k->workspace * p->whole <= v->bytes / 4;
  int64_t bytes = v->bytes;
  for (int i = 0; i < p->nodes.n; i++) p->possible &= p->nodes.v[i]->prim != P_CHECK;
  for (int i = 0; i < p->inputs.n; i++) {
    const Node *b = node_base(p->inputs.v[i]);
    int u = r->value_of[b->id];
    if (u >= 0) vec_add(r->a, &p->reads, ((Reading){u, false}));
    if (r->changed[b->id] < p->latest) p->latest = r->changed[b->id];
    bytes += bytes_of(b);
  }
  p->cost = p->whole ? (double)k->flops / FLOPS_PER_NS + (double)k->bytes / BYTES_PER_NS
                     : (double)bytes / BYTES_PER_NS;
}

/* ---- new nodes ---- */

typedef struct Apply {
  Recompute *r;
  Node **again; /* by node id: a stored value, or a reshape of one, as computed again */
  Node **here;  /* by node id: in the kernel at hand */
  VEC(Kernel *) kernels;
} Apply;

/* A reshape chain of a value, read before kernel `at`: of what it is by then. */
static Node *now(Apply *p, Node *n, int at) {
  Recompute *r = p->r;
  const Node *b = node_base(n);
  int v = r->value_of[b->id];
  if (v < 0 || r->values[v].split > at) return n;
  for (;;) {
    if (p->again[n->id]) return p->again[n->id];
    Node *x = n; /* the innermost reshape without a copy */
    while (x->prim == P_RESHAPE && !p->again[x->in[0]->id]) x = x->in[0];
    assert(x->prim == P_RESHAPE);
    p->again[x->id] = g_clone_with(r->g, x, &p->again[x->in[0]->id]);
  }
}

static Node *copy_node(Apply *p, const Node *n) {
  Node *in[64], **v = n->n_in <= 64 ? in : arena_array(p->r->a, Node *, n->n_in);
  for (int i = 0; i < n->n_in; i++) v[i] = p->here[n->in[i]->id] ? p->here[n->in[i]->id] : n->in[i];
  graph_set_op(p->r->g, n->op);
  return g_clone_with(p->r->g, n, v);
}

/* ---- kernels ---- */

/* The kernel that computes value v again, before kernel `at`. */
static Kernel *again_kernel(Apply *p, const Stored *v, int at) {
  Graph *g = p->r->g;
  const Recipe *c = &v->recipe;
  const Kernel *from = g->kernels.v[v->kernel];
  Kernel *k = arena_new_of(g->arena, Kernel);
  *k = *from;
  memset(&k->nodes, 0, sizeof k->nodes);
  memset(&k->inputs, 0, sizeof k->inputs);
  memset(&k->outputs, 0, sizeof k->outputs);
  k->name = strchr(from->name, '_') ? strchr(from->name, '_') : "";
  for (int i = 0; i < c->inputs.n; i++) {
    Node *x = now(p, c->inputs.v[i], at);
    p->here[c->inputs.v[i]->id] = x;
    vec_add(g->arena, &k->inputs,
            ((KernelInput){.node = x, .aligned = c->whole && from->inputs.v[i].aligned}));
  }
  for (int i = 0; i < c->nodes.n; i++) {
    Node *n = c->nodes.v[i], *x = copy_node(p, n);
    p->here[n->id] = x;
    vec_add(g->arena, &k->nodes, x);
  }
  p->again[v->node->id] = p->here[v->node->id];
  if (c->whole) {
    if (k->core) k->core = p->here[k->core->id];
    for (int i = 0; i < from->outputs.n; i++)
      vec_add(g->arena, &k->outputs, p->here[from->outputs.v[i]->id]);
  } else {
    k->kind = K_LOOP;
    k->core = NULL;
    k->reduce = 0;
    k->workspace = 0;
    vec_add(g->arena, &k->outputs, p->again[v->node->id]);
  }
  for (int i = 0; i < c->inputs.n; i++) p->here[c->inputs.v[i]->id] = NULL;
  for (int i = 0; i < c->nodes.n; i++) p->here[c->nodes.v[i]->id] = NULL;
  return k;
}

/* A given kernel reads what has been computed again by then. Outputs and the core, which are its alone, stay the same
 * nodes; what else it computes may be computed in other kernels too, and is copied. */
static void redirect(Apply *p, Kernel *k, int at) {
  bool any = false;
  for (int i = 0; i < k->inputs.n; i++) {
    Node *x = k->inputs.v[i].node, *to = now(p, x, at);
    if (to == x) continue;
    p->here[x->id] = to;
    any = true;
  }
  for (int i = 0; any && i < k->nodes.n; i++) {
    Node *n = k->nodes.v[i];
    bool touched = false, own = n == k->core || is_output(k, n);
    for (int j = 0; j < n->n_in; j++) touched |= p->here[n->in[j]->id] != NULL;
    if (!touched) continue;
    if (!own) p->here[n->id] = copy_node(p, n);
    for (int j = 0; own && j < n->n_in; j++)
      if (p->here[n->in[j]->id]) n->in[j] = p->here[n->in[j]->id];
  }
  Kernel old = *k;
  if (!any) return;
  memset(&k->nodes, 0, sizeof k->nodes);
  for (int i = 0; i < old.nodes.n; i++) {
    Node *to = p->here[old.nodes.v[i]->id];
    vec_add(p->r->g->arena, &k->nodes, to ? to : old.nodes.v[i]);
    p->here[old.nodes.v[i]->id] = NULL;
  }
  for (int i = 0; i < k->inputs.n; i++) {
    Node *x = k->inputs.v[i].node, *to = p->here[x->id];
    p->here[x->id] = NULL;
    if (to) k->inputs.v[i].node = to;
  }
}

/* ---- the graph anew ---- */

static void emit(Graph *g, Node *n) {
  if (n->mark) return;
  n->mark = 1;
  vec_add(g->arena, &g->nodes, n);
}

/* A source or stored value and its reshapes, the innermost first. */
static void emit_chain(Graph *g, Node *n) {
  for (Node *b = node_base(n); !n->mark;) {
    Node *x = n;
    while (x != b && !x->in[0]->mark) x = x->in[0];
    emit(g, x);
  }
}

static int by_id(const void *a, const void *b) {
  const Node *x = *(Node *const *)a, *y = *(Node *const *)b;
  return (x->id > y->id) - (x->id < y->id);
}

/* What the kernels compute, in their order. */
static void list_nodes(Graph *g) {
  for (int i = 0; i < g->nodes.n; i++) g->nodes.v[i]->mark = 0;
  memset(&g->nodes, 0, sizeof g->nodes);
  for (int i = 0; i < g->kernels.n; i++) {
    Kernel *k = g->kernels.v[i];
    const char *words = strchr(k->name, '_');
    k->id = i;
    k->name = arena_fmt(g->arena, "k%02d%s", i, words ? words : "");
    for (int j = 0; j < k->inputs.n; j++) emit_chain(g, k->inputs.v[j].node);
    for (int j = 0; j < k->nodes.n; j++) emit(g, k->nodes.v[j]);
  }
  for (int i = 0; i < g->writes.n; i++) emit_chain(g, g->writes.v[i].node);
  for (int i = 0; i < g->fetches.n; i++) emit_chain(g, g->fetches.v[i].node);
  graph_number(g);
  for (int i = 0; i < g->kernels.n; i++) {
    Kernel *k = g->kernels.v[i];
    if (k->nodes.n > 1) qsort(k->nodes.v, (size_t)k->nodes.n, sizeof *k->nodes.v, by_id);
  }
  find_constant_kernels(g);
}

void apply_splits(Recompute *r) {
  Graph *g = r->g;
  int n_old = g->nodes.n;
  Apply p = {.r = r,
             .again = arena_array(r->a, Node *, n_old),
             .here = arena_array(r->a, Node *, n_old)};
  for (int at = 0; at < r->n; at++) {
    for (int v = 0; v < r->n_values; v++)
      if (r->values[v].split == at) vec_add(r->a, &p.kernels, again_kernel(&p, &r->values[v], at));
    vec_add(r->a, &p.kernels, g->kernels.v[at]);
  }
  for (int at = 0; at < r->n; at++) redirect(&p, g->kernels.v[at], at);
  g->kernels.n = 0;
  for (int i = 0; i < p.kernels.n; i++) vec_add(g->arena, &g->kernels, p.kernels.v[i]);
  list_nodes(g);
}
