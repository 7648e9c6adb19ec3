/* Kernels that run together. In: kernels in the order that needs least memory. Out: Kernel.chain, Kernel.chained; some kernels
 * run a little earlier.
 *
 * Consecutive kernels whose results have one first dimension, the images of a batch, can run image by image if each reads what
 * those before it stored only at its own image: then that is still in a cache. Batch norm's normalisation, the convolution
 * that follows and the sums over its result are such a chain. Values live as long as their chain (memplan), so a kernel that
 * would keep large values alive does not join, and under a memory budget there are no chains. Nor does a contraction whose
 * filter is large beside an image: each image would read it anew. (Alwani et al., Fused-layer CNN accelerators, MICRO 2016.) */
#include "rewrite.h"
#include <string.h>

enum {
  LEAST_ITEMS = 4,
  LEAST_BYTES = 1 << 20, /* that are read again; what is smaller stays in caches anyway */
  SMALL_PART = 16,       /* values of so small a part of what is read again may live longer */
  AHEAD = 3              /* so many kernels are passed over in search of the next one */
};
enum { AT_ITEM = 1, AT_OTHER = 2 }; /* how a value is read */

typedef struct Chains {
  Graph *g;
  Arena *a;
  int *last;         /* by node id: the last kernel that reads it, or the number of kernels */
  int *stored;       /* by node id: the kernel that stores it, -1 */
  unsigned char *at; /* by node id: how the kernel at hand reads it */
  int64_t *live;     /* by kernel: bytes of what has been stored and is still to be read */
  int64_t peak;      /* the most of them before there were chains */
} Chains;

static int64_t bytes_of(const Node *n) { return node_numel(n) * dtype_info[n->dtype].size; }

static void find_uses(Chains *c) {
  Graph *g = c->g;
  for (int i = 0; i < g->nodes.n; i++) c->last[i] = c->stored[i] = -1;
  for (int i = 0; i < g->kernels.n; i++) {
    const Kernel *k = g->kernels.v[i];
    for (int j = 0; j < k->inputs.n; j++) c->last[node_base(k->inputs.v[j].node)->id] = i;
    for (int j = 0; j < k->outputs.n; j++) c->stored[k->outputs.v[j]->id] = i;
  }
  for (int i = 0; i < g->fetches.n; i++)
    c->last[node_base(g->fetches.v[i].node)->id] = g->kernels.n;
  for (int i = 0; i < g->writes.n; i++) c->last[node_base(g->writes.v[i].node)->id] = g->kernels.n;
  int64_t sum = 0, *ends = arena_array(c->a, int64_t, g->kernels.n + 1);
  for (int i = 0; i < g->kernels.n; i++) {
    const Kernel *k = g->kernels.v[i];
    for (int j = 0; j < k->outputs.n; j++) {
      const Node *o = k->outputs.v[j];
      sum += bytes_of(o);
      ends[c->last[o->id] < i ? i : c->last[o->id]] += bytes_of(o);
    }
    c->live[i] = sum;
    sum -= ends[i];
  }
}

/* Is dimension 0 read at the loop of dimension 0, and nothing else at it? */
static bool follows_item(const Node *x, const AffDim *map, int64_t items) {
  if (x->rank == 0 || x->dims[0] != items || !aff_is_loop(&map[0], 0)) return false;
  for (int d = 1; d < x->rank; d++)
    if ((map[d].l0 == 0 && map[d].c0) || (map[d].l1 == 0 && map[d].c1)) return false;
  return true;
}

/* How n's operand k is read at an item of n. */
static unsigned operand_at(const Node *n, int k, int64_t items) {
  const Node *x = n->in[k];
  bool own = false;
  if (prim_is_map(n->prim) || n->prim == P_RESHAPE)
    own = n->rank > 0 && x->rank > 0 && n->dims[0] == items && x->dims[0] == items;
  else if (prim_is_reduce(n->prim) || n->prim == P_ARGMAX)
    own = x->dims[0] == items && !(n->i & 1);
  else if (n->prim == P_VIEW || n->prim == P_CONTRACT)
    own = n->dims[0] == items && follows_item(x, n->map[k], items);
  return own ? AT_ITEM : AT_OTHER;
}

/* Does k read what the kernels from..k-1 store at its own item only? */
static bool reads_own_item(Chains *c, const Kernel *k, int from) {
  bool ok = true;
  for (int i = 0; i < k->outputs.n; i++) c->at[k->outputs.v[i]->id] |= AT_ITEM;
  for (int i = k->nodes.n - 1; i >= 0; i--) {
    const Node *n = k->nodes.v[i];
    for (int j = 0; j < n->n_in; j++)
      c->at[n->in[j]->id] |= c->at[n->id] & AT_OTHER ? AT_OTHER : operand_at(n, j, k->ext[0]);
  }
  for (int i = 0; i < k->inputs.n; i++) {
    Node *x = k->inputs.v[i].node, *b = node_base(x);
    bool item = c->at[x->id] == AT_ITEM && b->rank > 0 && b->dims[0] == k->ext[0];
    ok &= item || c->stored[b->id] < from;
    c->at[x->id] = 0;
  }
  for (int i = 0; i < k->nodes.n; i++) c->at[k->nodes.v[i]->id] = 0;
  return ok;
}

/* Bytes of what is not divided among the items, such as a filter. */
static int64_t common_bytes(const Kernel *k) {
  int64_t sum = 0;
  for (int i = 0; i < k->inputs.n; i++) {
    const Node *x = k->inputs.v[i].node;
    if (x->rank == 0 || x->dims[0] != k->ext[0]) sum += bytes_of(x);
  }
  return sum;
}

static bool can_be_member(const Graph *g, const Kernel *k) {
  if ((k->kind != K_LOOP && k->kind != K_CONTRACT) || k->rank < 2 || k->constant) return false;
  if (k->ext[0] < LEAST_ITEMS || k->reduce & 1 || k->items < 0) return false;
  for (int i = 0; i < k->outputs.n; i++) {
    const Node *o = k->outputs.v[i];
    if (o->rank == 0 || o->dims[0] != k->ext[0]) return false;
    for (int j = 0; j < g->writes.n; j++)
      if (node_base(g->writes.v[j].node) == o) return false;
  }
  for (int i = 0; i < k->nodes.n; i++)
    if (k->nodes.v[i]->prim == P_CHECK) return false;
  return k->kind == K_LOOP || common_bytes(k) <= 2 * bytes_of(k->outputs.v[0]) / k->ext[0];
}

/* Bytes of values whose life ends inside the chain from..at-1, but for those that begin there too, where they are local. */
static int64_t dying_bytes(const Chains *c, int from, int at) {
  bool locals = chain_has_locals(c->g, c->g->kernels.v[from]);
  int64_t sum = 0;
  for (int i = from; i < at; i++) {
    const Kernel *k = c->g->kernels.v[i];
    for (int j = 0; j < k->inputs.n; j++) {
      const Node *b = node_base(k->inputs.v[j].node);
      int by = c->stored[b->id];
      if (by >= 0 && !(locals && by >= from) && c->last[b->id] == i) sum += bytes_of(b);
    }
  }
  return sum;
}

/* Bytes of values that the chain from..at-1 stores and kernel at, which joins, reads last: nowhere then. */
static int64_t local_bytes(const Chains *c, int from, int at) {
  int64_t sum = 0;
  for (int i = from; i < at && chain_has_locals(c->g, c->g->kernels.v[from]); i++)
    for (int j = 0; j < c->g->kernels.v[i]->outputs.n; j++) {
      const Node *o = c->g->kernels.v[i]->outputs.v[j];
      if (c->last[o->id] == at) sum += bytes_of(o);
    }
  return sum;
}

/* feeds: what it stores is read by the one that joins next. */
static bool joins(Chains *c, int from, int at, bool feeds) {
  const Kernel *first = c->g->kernels.v[from], *k = c->g->kernels.v[at];
  int64_t again = 0, stored = 0, dying = dying_bytes(c, from, at);
  if (at - from >= KL_CHAIN || !can_be_member(c->g, k) || k->ext[0] != first->ext[0]) return false;
  for (int i = 0; i < k->outputs.n; i++) stored += bytes_of(k->outputs.v[i]);
  if (feeds) again = stored;
  for (int i = 0; i < k->inputs.n; i++) {
    const Node *b = node_base(k->inputs.v[i].node);
    if (c->stored[b->id] >= from) again += bytes_of(b);
  }
  bool costs = (dying < stored ? dying : stored) > again / SMALL_PART;
  if (again < LEAST_BYTES || (costs && c->live[at] + dying - local_bytes(c, from, at) > c->peak))
    return false;
  return reads_own_item(c, k, from);
}

static void move(Graph *g, int from, int to) {
  Kernel *k = g->kernels.v[from];
  for (int i = from; i > to; i--) g->kernels.v[i] = g->kernels.v[i - 1];
  for (int i = from; i < to; i++) g->kernels.v[i] = g->kernels.v[i + 1];
  g->kernels.v[to] = k;
}

/* Does the kernel read what a chain from..at-1 stores, and of what kernels at.. store that of kernel `but` at most? */
static bool follows(const Chains *c, const Kernel *k, int from, int at, int but) {
  bool some = false;
  for (int i = 0; i < k->inputs.n; i++) {
    int by = c->stored[node_base(k->inputs.v[i].node)->id];
    if (by >= at && by != but) return false;
    some |= by >= from && by < at;
  }
  return some;
}

/* Does kernel i depend on nothing that runs since the chain began, and is its result first read by one that follows? */
static bool feeds(const Chains *c, int from, int at, int i) {
  const Graph *g = c->g;
  const Kernel *k = g->kernels.v[i];
  for (int j = 0; j < k->inputs.n; j++)
    if (c->stored[node_base(k->inputs.v[j].node)->id] >= from) return false;
  for (int j = i + 1; k->outputs.n == 1 && j < g->kernels.n && j <= at + AHEAD; j++)
    if (kernel_input(g->kernels.v[j], k->outputs.v[0]) >= 0)
      return follows(c, g->kernels.v[j], from, at, i) && can_be_member(g, g->kernels.v[j]);
  return false;
}

/* Brings a kernel that joins the chain from..at-1 to position `at`: one of the next few. It runs before others that it does not
 * depend on; what they replace they replace after it, as they must. */
static bool extend(Chains *c, int from, int at) {
  Graph *g = c->g;
  for (int i = at; i < g->kernels.n && i <= at + AHEAD; i++) {
    if (!can_be_member(g, g->kernels.v[i])) continue;
    bool feeder = feeds(c, from, at, i);
    if (!feeder && !follows(c, g->kernels.v[i], from, at, -1)) continue;
    move(g, i, at);
    if (i > at) find_uses(c);
    if (joins(c, from, at, feeder)) return true;
    move(g, at, i);
    if (i > at) find_uses(c);
  }
  return false;
}

void pass_chain(Graph *g) {
  Chains c = {.g = g, .a = arena_scratch()};
  c.last = arena_array(c.a, int, g->nodes.n + 1);
  c.stored = arena_array(c.a, int, g->nodes.n + 1);
  c.at = arena_array(c.a, unsigned char, g->nodes.n + 1);
  for (int i = 0; i < g->kernels.n; i++) {
    g->kernels.v[i]->chain = 0;
    g->kernels.v[i]->chained = false;
  }
  c.live = arena_array(c.a, int64_t, g->kernels.n + 1);
  for (int i = 0, to = 0; i < g->kernels.n; i++) /* what later runs leave out is in nobody's way */
    if (g->kernels.v[i]->constant) move(g, i, to++);
  find_uses(&c);
  for (int i = 0; i < g->kernels.n; i++)
    if (c.live[i] > c.peak) c.peak = c.live[i];
  for (int i = 0, n; !g->memory_budget && i < g->kernels.n; i += n) {
    n = 1;
    if (!can_be_member(g, g->kernels.v[i])) continue;
    while (extend(&c, i, i + n)) n++;
    if (n < 2) continue;
    g->kernels.v[i]->chain = n;
    for (int j = i; j < i + n; j++) g->kernels.v[j]->chained = true;
  }
  number_kernels(g);
  arena_free(c.a);
}
