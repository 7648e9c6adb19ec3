/* Channels last, or images last: convolutions and what is around them are computed on permuted tensors. In: a simplified
 * Graph. Out: an equal one up to the order of summation; without convolutions, or where it does not pay (conv_pays,
 * conv_images_pay), the same.
 *
 *   layout_conv.c    which contractions are convolutions, and the order of dimensions that suits each
 *   layout_move.c    what a layout on one side of a node is on the other
 *   layout_build.c   the Graph anew
 *
 * The convolutions fix the layouts of their operands and results; from there layouts spread over the neighbours, breadth first,
 * each value having the first that reaches it. Where two meet that differ, and at feeds, fetches and what needs the
 * elements in their own order, a permuting view stands between. State variables are read and written in their layout: the
 * executor keeps them so from step to step. As in Liu et al., Optimizing CNN model inference on CPUs,
 * 2019, but over all values of a training step. */
#include "layout.h"
#include "simplify.h"
#include <string.h>

typedef VEC(Node *) NodeList;

typedef struct Spread {
  Arena *a; /* scratch */
  Layout *layout;
  NodeList *users; /* by id */
  NodeList queue;
} Spread;

/* Constants, and what spreads a single number, are made in whatever layout is asked for. */
static bool any_layout(const Node *n) {
  return n->rank < 2 || n->prim == P_CONST || n->prim == P_IOTA ||
         (n->prim == P_VIEW && node_numel(n->in[0]) == 1);
}

static void set(Spread *s, Node *n, const Layout *l) {
  if (s->layout[n->id].set || any_layout(n)) return;
  s->layout[n->id] = *l;
  vec_add(s->a, &s->queue, n);
}

static void spread_from(Spread *s, const Node *n) {
  Layout from = s->layout[n->id], to;
  for (int k = 0; k < n->n_in; k++)
    if (layout_move(n, false, &from, &to)) set(s, n->in[k], &to);
  for (int i = 0; i < s->users[n->id].n; i++) {
    Node *u = s->users[n->id].v[i];
    if (layout_move(u, true, &from, &to)) set(s, u, &to);
  }
}

static void choose(Spread *s, Graph *g, bool images) {
  s->layout = arena_array(s->a, Layout, g->nodes.n + 1);
  s->users = arena_array(s->a, NodeList, g->nodes.n + 1);
  for (int i = 0; i < g->nodes.n; i++) {
    Node *n = g->nodes.v[i];
    ConvForm f;
    for (int k = 0; k < n->n_in; k++) vec_add(s->a, &s->users[n->in[k]->id], n);
    if (!conv_form(g, n, images, &f)) continue;
    set(s, n->in[f.x], &f.layout[0]);
    set(s, n->in[!f.x], &f.layout[1]);
    set(s, n, &f.layout[2]);
  }
  for (int i = 0; i < s->queue.n; i++) spread_from(s, s->queue.v[i]);
  Map *state = map_new(s->a); /* all reads of a variable take the layout of the first */
  for (int i = 0; i < g->nodes.n; i++) {
    const Node *n = g->nodes.v[i];
    const Node *first = n->prim == P_STATE ? map_get(state, n->s) : n;
    if (first)
      s->layout[i] = s->layout[first->id];
    else
      map_put(state, n->s, g->nodes.v[i]);
  }
}

void pass_layout(Graph *g) {
  graph_sweep(g);
  bool images = conv_images_pay(g);
  if (!images && !conv_pays(g)) return;
  Spread s = {.a = arena_scratch()};
  choose(&s, g, images);
  layout_build(g, images, s.layout);
  arena_free(s.a);
  simplify_layouts(g);
  pass_cse(g);
}
