/* Fusion: cuts a Graph into Kernels as the Kernel section of ir.h says. In: a simplified Graph without dead code. Out:
 * g->kernels in running order; the nodes stay as they are.
 *
 *   fuse_roots.c  which values are stored; the others are computed again where they are used
 *   fuse_group.c  each stored value starts as a group; groups merge while one loop nest can compute them
 *   fuse_emit.c   groups become kernels with their interfaces, in an order that keeps the program's
 *
 * Greedy merging from consumers' needs follows Kennedy and McKinley, Maximizing loop parallelism and improving data
 * locality via loop fusion and distribution, 1993. */
#include "fuse.h"
#include <assert.h>
#include <string.h>

/* A source that is written to another state, or fetched while its state changes, needs storage of its own: an identity
 * view, computed by a kernel. */
static void copy_sources(Graph *g) {
  for (int i = 0; i < g->writes.n; i++) {
    NamedNode *w = &g->writes.v[i];
    const Node *b = node_base(w->node);
    if (!node_is_source(b) || (b->prim == P_STATE && !strcmp(b->s, w->name))) continue;
    w->node = g_alias(g, w->node);
  }
  for (int i = 0; i < g->fetches.n; i++) {
    NamedNode *w = &g->fetches.v[i];
    const Node *b = node_base(w->node);
    if (b->prim == P_STATE && state_is_written(g, b->s)) w->node = g_alias(g, w->node);
  }
}

static void start(Fuse *f, Graph *g) {
  f->g = g;
  f->n = g->nodes.n;
  f->users = arena_array(f->a, NodeVec, f->n);
  f->root = arena_array(f->a, bool, f->n);
  f->target = arena_array(f->a, bool, f->n);
  f->state_write = arena_array(f->a, bool, f->n);
  f->cost = arena_array(f->a, double, f->n);
  f->loads = arena_array(f->a, int, f->n);
  f->owner = arena_array(f->a, Group *, f->n);
  f->seen = arena_array(f->a, unsigned char, f->n);
  for (int i = 0; i < f->n; i++)
    for (int k = 0; k < g->nodes.v[i]->n_in; k++)
      vec_add(f->a, &f->users[g->nodes.v[i]->in[k]->id], g->nodes.v[i]);
}

/* One group for each root. What a root cannot read where it stands becomes a root too. */
static void make_groups(Fuse *f) {
  for (bool again = true; again;) {
    again = false;
    f->groups.n = 0;
    for (int i = 0; i < f->n; i++) {
      Node *n = f->g->nodes.v[i];
      f->owner[i] = NULL;
      if (!f->root[i]) continue;
      if (n->prim == P_OUT) {
        Group *call = f->owner[n->in[0]->id];
        f->owner[i] = call;
        vec_add(f->a, &call->roots, n);
      } else
        vec_add(f->a, &f->groups, group_of(f, n));
    }
    for (int i = 0; i < f->groups.n && !again; i++) {
      Group *k = f->groups.v[i];
      if (scan(f, k, k, k)) continue;
      assert(f->blame && !f->root[f->blame->id]);
      f->root[f->blame->id] = again = true;
    }
  }
}

void pass_fuse(Graph *g) {
  Fuse f = {.a = arena_scratch()};
  copy_sources(g);
  graph_sweep(g);
  start(&f, g);
  choose_roots(&f);
  make_groups(&f);
  merge_all(&f);
  emit_kernels(&f);
  find_constant_kernels(g);
  arena_free(f.a);
}
