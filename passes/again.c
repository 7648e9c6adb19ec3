/* Activations that are computed again where a chain reads them. In: kernels in their order. Out: the same; some values are made
 * a second time, by maps, just before the last kernel that reads them.
 *
 * The gradient of a depthwise filter reads the activation that its convolution read, half a step before. It will run image by
 * image beside the kernels around it (pass chain), and what only such kernels store and read stays with the threads. So where
 * an activation is cheap maps of values that are read later anyway, it is computed once more there: neither chain, that of its
 * convolution nor that of the gradient, then moves it through memory, and nothing waits. (Chen et al., Training deep nets with
 * sublinear memory cost, arXiv 1604.06174, trades time for memory in this way; here both are won.) */
#include "recompute.h"

enum {
  LEAST_BYTES = 1 << 20, /* smaller values stay in caches anyway */
  SMALL_PART = 16,       /* what else is read is at most so small a part */
  NEAR = 4               /* a chain's kernels are no further apart */
};

typedef struct Readers {
  int last, before; /* the last two kernels that read a value; -1: none */
} Readers;

static Readers readers_of(const Recompute *r, int value) {
  Readers x = {-1, -1};
  for (int i = 0; i < r->n; i++)
    for (int j = 0; j < r->steps[i].reads.n; j++)
      if (r->steps[i].reads.v[j].value == value && x.last != i) x = (Readers){i, x.last};
  return x;
}

/* Will kernel i be of a chain that has begun before it? It reads a large value, as many items, of the kernel of such. */
static bool is_in_chain(const Recompute *r, int i, int but) {
  const Kernel *k = r->g->kernels.v[i];
  if (!chain_has_locals(r->g, k)) return false;
  for (int j = 0; j < r->steps[i].reads.n; j++) {
    const Stored *v = &r->values[r->steps[i].reads.v[j].value];
    const Kernel *by = r->g->kernels.v[v->kernel];
    if (r->steps[i].reads.v[j].value != but && v->kernel >= i - NEAR && v->bytes >= LEAST_BYTES &&
        chain_has_locals(r->g, by) && by->ext[0] == k->ext[0])
      return true;
  }
  return false;
}

/* What it is computed from: one value of its size that is read later anyway, and small ones. */
static bool is_cheap(const Recompute *r, const Stored *v, int at) {
  const Recipe *p = &v->recipe;
  if (!p->possible || p->whole || p->latest < at) return false;
  int large = 0;
  for (int i = 0; i < p->inputs.n; i++) {
    const Node *b = node_base(p->inputs.v[i]);
    if (node_numel(b) <= node_numel(v->node) / SMALL_PART) continue;
    int u = r->value_of[b->id];
    if (u < 0 || node_numel(b) != node_numel(v->node) || readers_of(r, u).last <= at) return false;
    large++;
  }
  return large == 1;
}

void pass_again(Graph *g) {
  if (g->memory_budget || !g->threads) return;
  Recompute r = recompute_of(g, arena_scratch());
  bool any = false;
  for (int i = 0; i < r.n_values; i++) {
    Stored *v = &r.values[i];
    if (v->at_exit || v->bytes < LEAST_BYTES) continue;
    Readers x = readers_of(&r, i);
    if (x.before < 0 || x.last < x.before + KL_CHAIN || !is_in_chain(&r, x.last, i)) continue;
    find_recipe(&r, v);
    if (!is_cheap(&r, v, x.last)) continue;
    v->split = x.last;
    any = true;
  }
  if (any) apply_splits(&r);
  arena_free(r.a);
}
