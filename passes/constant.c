/* Which kernels compute the same in every run. In: a Graph with kernels in running order. Out: Kernel.constant and
 * KernelInput.constant: what depends only on data, and on state that the program does not write. Such values are computed
 * when the state is set, and kept (memplan.c). */
#include "rewrite.h"
#include <string.h>

static bool outlives_run(const Graph *g, const Node *n) {
  for (int i = 0; i < g->fetches.n; i++)
    if (node_base(g->fetches.v[i].node) == n) return true;
  for (int i = 0; i < g->writes.n; i++)
    if (node_base(g->writes.v[i].node) == n) return true;
  return false;
}

bool state_is_written(const Graph *g, const char *name) {
  for (int i = 0; i < g->writes.n; i++) {
    const Node *b = node_base(g->writes.v[i].node);
    bool itself = b->prim == P_STATE && !strcmp(b->s, name);
    if (!strcmp(g->writes.v[i].name, name) && !itself) return true;
  }
  return false;
}

/* made: by node id, the kernel that computes it. */
static bool is_constant(const Graph *g, Kernel *const *made, Node *n) {
  const Node *b = node_base(n);
  if (b->prim == P_STATE) return !state_is_written(g, b->s);
  return b->prim == P_DATA || (made[b->id] && made[b->id]->constant);
}

static bool computes_constant(const Graph *g, const Kernel *k) {
  if (k->kind == K_CALL) return false;
  for (int i = 0; i < k->inputs.n; i++)
    if (!k->inputs.v[i].constant) return false;
  for (int i = 0; i < k->nodes.n; i++)
    if (k->nodes.v[i]->prim == P_RANDOM || k->nodes.v[i]->prim == P_CHECK) return false;
  for (int i = 0; i < k->outputs.n; i++)
    if (outlives_run(g, k->outputs.v[i])) return false;
  return true;
}

void find_constant_kernels(Graph *g) {
  Arena *a = arena_scratch();
  Kernel **made = arena_array(a, Kernel *, g->nodes.n);
  for (int i = 0; i < g->kernels.n; i++) {
    Kernel *k = g->kernels.v[i];
    for (int j = 0; j < k->inputs.n; j++)
      k->inputs.v[j].constant = is_constant(g, made, k->inputs.v[j].node);
    k->constant = computes_constant(g, k);
    for (int j = 0; j < k->outputs.n; j++) made[k->outputs.v[j]->id] = k;
  }
  arena_free(a);
}

int64_t arena_workspace(const Kernel *k) {
  bool kept = k->prepares > 0 && !k->constant && k->inputs.v[k->prepares - 1].constant;
  return kept ? 0 : k->workspace;
}
