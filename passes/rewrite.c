/* Sweeps over a Graph that the passes share. In: a Graph, and a function that may replace a node. Out: the same Graph with
 * its node list made anew in order, operands before users. */
#include "rewrite.h"
#include <string.h>

int graph_rewrite(Graph *g, RewriteFn *fn) {
  int fired = 0, n_old = g->nodes.n;
  Node **old = g->nodes.v;
  const Op *op = g->op;
  g->nodes.v = NULL;
  g->nodes.n = g->nodes.cap = 0;
  for (int i = 0; i < n_old; i++) {
    Node *n = old[i];
    for (int k = 0; k < n->n_in; k++) n->in[k] = n->in[k]->repl;
    graph_set_op(g, n->op);
    n->repl = fn(g, n);
    if (n->repl) {
      fired++;
      continue;
    }
    n->repl = n;
    vec_add(g->arena, &g->nodes, n);
  }
  for (int i = 0; i < g->writes.n; i++) g->writes.v[i].node = g->writes.v[i].node->repl;
  for (int i = 0; i < g->fetches.n; i++) g->fetches.v[i].node = g->fetches.v[i].node->repl;
  graph_set_op(g, op);
  return fired;
}

void graph_sweep(Graph *g) {
  int kept = 0;
  for (int i = 0; i < g->nodes.n; i++) g->nodes.v[i]->mark = g->nodes.v[i]->prim == P_CHECK;
  for (int i = 0; i < g->writes.n; i++) g->writes.v[i].node->mark = 1;
  for (int i = 0; i < g->fetches.n; i++) g->fetches.v[i].node->mark = 1;
  for (int i = g->nodes.n - 1; i >= 0; i--) {
    Node *n = g->nodes.v[i];
    if (n->mark)
      for (int k = 0; k < n->n_in; k++) n->in[k]->mark = 1;
  }
  for (int i = 0; i < g->nodes.n; i++)
    if (g->nodes.v[i]->mark) g->nodes.v[kept++] = g->nodes.v[i];
  g->nodes.n = kept;
  graph_number(g);
}

Node *node_base(Node *n) {
  while (n->prim == P_RESHAPE) n = n->in[0];
  return n;
}

bool node_is_source(const Node *n) {
  return n->prim == P_FEED || n->prim == P_STATE || n->prim == P_DATA;
}

bool node_is_target(const Graph *g, const Node *n) {
  for (int i = 0; i < g->writes.n; i++)
    if (g->writes.v[i].node == n) return true;
  for (int i = 0; i < g->fetches.n; i++)
    if (g->fetches.v[i].node == n) return true;
  return false;
}

bool unit_reshape(const Node *n) {
  if (n->prim != P_RESHAPE) return false;
  const Node *x = n->in[0];
  int i = 0, j = 0;
  for (;;) {
    while (i < x->rank && x->dims[i] == 1) i++;
    while (j < n->rank && n->dims[j] == 1) j++;
    if (i == x->rank || j == n->rank) return i == x->rank && j == n->rank;
    if (x->dims[i++] != n->dims[j++]) return false;
  }
}

bool dims_group(const Node *a, int rank, const int64_t *dims, int8_t *ga, int8_t *gb) {
  int i = 0, j = 0;
  for (int8_t group = 0;; group++) {
    for (; i < a->rank && a->dims[i] == 1; i++) ga[i] = -1;
    for (; j < rank && dims[j] == 1; j++) gb[j] = -1;
    if (i == a->rank || j == rank) return i == a->rank && j == rank;
    int64_t pa = a->dims[i], pb = dims[j];
    ga[i++] = group;
    gb[j++] = group;
    while (pa != pb) {
      if (pa == 0 || pb == 0 || (pa < pb ? i == a->rank : j == rank)) return false;
      if (pa < pb) {
        pa *= a->dims[i];
        ga[i] = a->dims[i] == 1 ? -1 : group;
        i++;
      } else {
        pb *= dims[j];
        gb[j] = dims[j] == 1 ? -1 : group;
        j++;
      }
    }
  }
}
