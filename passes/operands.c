/* Operands that are computed where they are read. In: Kernels in an order that they can run in. Out: the same; some contractions
 * read what an operand of theirs is computed from, and compute it.
 *
 * The gradient of a filter reads the activation that its convolution read. Where that is cheap maps of one value of its shape which
 * batch norm's gradient reads later anyway (and of smaller ones: scales, shifts), it need not wait for the gradient: the
 * backend computes it again while it packs it. So an activation inside a block lives from its kernel to the convolution
 * after it, and not through the whole step. This is done if all the kernels that the activation would wait for take it so.
 * (Chen et al., Training deep nets with sublinear memory cost, arXiv 1604.06174, drops what is cheap to compute in the
 * same way.) */
#include "rewrite.h"
#include <stdlib.h>
#include <string.h>

enum {
  MOST_NODES = 24,       /* between the two values */
  SMALL_PART = 16,       /* what else is read is at most so small a part */
  LEAST_BYTES = 1 << 20, /* smaller values are not worth it */
  MOST_READERS = 16
};

typedef struct Readers {
  int n, at[MOST_READERS]; /* kernels, in order */
  bool more;               /* than these, or the value is fetched or written */
} Readers;

typedef struct Operands {
  Graph *g;
  Arena *a;
  bool *stored;     /* by node id: a kernel's output */
  Readers *readers; /* by node id */
} Operands;

/* From what an operand is computed. */
typedef struct Chain {
  int n;
  Node *node[MOST_NODES];
  int n_in;
  Node *in[MOST_NODES];
  Node *large; /* of these, the one of the operand's shape */
} Chain;

static void find_readers(Operands *o) {
  Graph *g = o->g;
  for (int i = 0; i < g->kernels.n; i++) {
    const Kernel *k = g->kernels.v[i];
    for (int j = 0; j < k->outputs.n; j++) o->stored[k->outputs.v[j]->id] = true;
    for (int j = 0; j < k->inputs.n; j++) {
      Readers *r = &o->readers[node_base(k->inputs.v[j].node)->id];
      if (r->n && r->at[r->n - 1] == i) continue;
      if (r->n < MOST_READERS)
        r->at[r->n++] = i;
      else
        r->more = true;
    }
  }
  for (int i = 0; i < g->writes.n; i++) o->readers[node_base(g->writes.v[i].node)->id].more = true;
  for (int i = 0; i < g->fetches.n; i++)
    o->readers[node_base(g->fetches.v[i].node)->id].more = true;
}

/* ---- what an operand is made of ---- */

static bool add_once(int *n, Node **list, Node *x) {
  for (int i = 0; i < *n; i++)
    if (list[i] == x) return true;
  if (*n == MOST_NODES) return false;
  list[(*n)++] = x;
  return true;
}

static bool is_cheap(const Node *n) {
  static const bool dear[P_N] = {
      [P_RANDOM] = true, [P_CHECK] = true, [P_POW] = true,  [P_SIN] = true,
      [P_EXP] = true,    [P_LOG] = true,   [P_TANH] = true, [P_ERF] = true};
  if (n->prim == P_VIEW) return view_total(n);
  return n->prim == P_CONST || (prim_is_map(n->prim) && !dear[n->prim]);
}

static bool find_chain(const Operands *o, Node *x, Chain *c) {
  *c = (Chain){.n = 1, .node = {x}};
  for (int i = 0; i < c->n; i++) {
    const Node *n = c->node[i];
    if (!is_cheap(n)) return false;
    for (int j = 0; j < n->n_in; j++) {
      Node *in = n->in[j];
      bool stored = node_is_source(in) || o->stored[node_base(in)->id];
      if (stored && node_numel(in) > node_numel(x) / SMALL_PART) {
        bool own = node_same_shape(in, x) && in->dtype == x->dtype && n->prim != P_VIEW;
        if (!own || (c->large && c->large != in)) return false;
        c->large = in;
      }
      if (!(stored ? add_once(&c->n_in, c->in, in) : add_once(&c->n, c->node, in))) return false;
    }
  }
  return c->large != NULL;
}

/* ---- which operands ---- */

/* The operand of k's core that x is, if nothing else inside reads it; -1. */
static int operand_of(const Kernel *k, const Node *x) {
  if (k->kind != K_CONTRACT || kernel_operand(k) >= 0 || k->core->in[0] == k->core->in[1])
    return -1;
  for (int i = 0; i < k->nodes.n; i++)
    for (int j = 0; j < k->nodes.v[i]->n_in; j++)
      if (k->nodes.v[i]->in[j] == x && k->nodes.v[i] != k->core) return -1;
  return k->core->in[0] == x ? 0 : k->core->in[1] == x ? 1 : -1;
}

static int by_id(const void *a, const void *b) {
  const Node *x = *(Node *const *)a, *y = *(Node *const *)b;
  return (x->id > y->id) - (x->id < y->id);
}

static void compute_inside(Operands *o, Kernel *k, const Node *x, const Chain *c) {
  int n = 0;
  for (int i = 0; i < k->inputs.n; i++)
    if (k->inputs.v[i].node != x) k->inputs.v[n++] = k->inputs.v[i];
  k->inputs.n = n;
  for (int i = 0; i < c->n_in; i++) {
    bool had = false;
    for (int j = 0; j < n; j++) had |= k->inputs.v[j].node == c->in[i];
    if (!had) vec_add(o->g->arena, &k->inputs, ((KernelInput){.node = c->in[i]}));
  }
  n = k->nodes.n;
  for (int i = 0; i < c->n; i++) {
    bool had = false;
    for (int j = 0; j < n; j++) had |= k->nodes.v[j] == c->node[i];
    if (!had) vec_add(o->g->arena, &k->nodes, c->node[i]);
  }
  qsort(k->nodes.v, (size_t)k->nodes.n, sizeof *k->nodes.v, by_id);
}

/* Its last readers compute x, as many as can, if their number ends the wait for them. */
static void visit(Operands *o, Node *x) {
  Graph *g = o->g;
  const Readers *r = &o->readers[x->id];
  Chain c;
  if (r->more || r->n < 2 || node_numel(x) * dtype_info[x->dtype].size < LEAST_BYTES) return;
  int first = r->n;
  while (first > 0) {
    const Kernel *k = g->kernels.v[r->at[first - 1]];
    int operand = operand_of(k, x);
    if (operand < 0 || !g->takes_operand(k, operand)) break;
    first--;
  }
  if (first == r->n || first == 0 || !find_chain(o, x, &c)) return;
  const Readers *large = &o->readers[node_base(c.large)->id];
  bool lives = large->more || node_is_source(c.large) || large->at[large->n - 1] > r->at[r->n - 1];
  for (int i = first; lives && i < r->n; i++) compute_inside(o, g->kernels.v[r->at[i]], x, &c);
}

void pass_operands(Graph *g) {
  if (!g->takes_operand) return;
  Operands o = {.g = g, .a = arena_scratch()};
  o.stored = arena_array(o.a, bool, g->nodes.n + 1);
  o.readers = arena_array(o.a, Readers, g->nodes.n + 1);
  find_readers(&o);
  for (int i = 0; i < g->kernels.n; i++)
    for (int j = 0; j < g->kernels.v[i]->outputs.n; j++) visit(&o, g->kernels.v[i]->outputs.v[j]);
  arena_free(o.a);
}
