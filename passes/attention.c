/* Attention without the matrix of scores. In: kernels as fusion made them. Out: where one contraction makes scores, a loop over
 * their rows makes weights of them (scale, mask, softmax: anything of that form), another contraction sums values with the weights,
 * and nobody else reads what is between, the three are one kernel, K_ATTENTION: scores exist only in tiles, in the scratch of
 * a thread. How the tiles are done is the backend's (backends/cpu/attention.c); for one that has no code for it nothing changes.
 * Rabe and Staats, Self-attention does not need O(n^2) memory, 2021; Dao et al., FlashAttention, 2022. */
#include "attention.h"
#include <stdlib.h>
#include <string.h>

static void find_uses(Joining *p) {
  const Graph *g = p->g;
  p->after = arena_array(p->a, Kernel *, g->kernels.n + 1);
  p->maker = arena_array(p->a, int, g->nodes.n);
  p->readers = arena_array(p->a, int, g->nodes.n);
  for (int i = 0; i < g->nodes.n; i++) p->maker[i] = -1;
  for (int i = 0; i < g->kernels.n; i++) {
    const Kernel *k = g->kernels.v[i];
    for (int j = 0; j < k->outputs.n; j++) p->maker[k->outputs.v[j]->id] = i;
    for (int j = 0; j < k->inputs.n; j++) p->readers[node_base(k->inputs.v[j].node)->id]++;
  }
  for (int i = 0; i < g->writes.n; i++) p->readers[node_base(g->writes.v[i].node)->id]++;
  for (int i = 0; i < g->fetches.n; i++) p->readers[node_base(g->fetches.v[i].node)->id]++;
}

/* The kernel that makes n for one other alone, or NULL. */
static Kernel *maker_of(const Joining *p, const Node *n) {
  int i = p->maker[n->id];
  return i >= 0 && p->readers[n->id] == 1 && p->g->kernels.v[i]->nodes.n ? p->g->kernels.v[i]
                                                                         : NULL;
}

bool is_row_of(const Kernel *k, const Node *n) {
  if (n->rank != k->rank) return false;
  for (int d = 0; d < k->rank; d++)
    if (n->dims[d] != (k->reduce >> d & 1 ? 1 : k->ext[d])) return false;
  return true;
}

/* Weights, and nothing else but row values, which nobody reads before the sums are done. */
static bool outputs_fit(const Joining *p, const Kernel *rows, const Node *weights, int sums_at) {
  for (int i = 0; i < rows->outputs.n; i++) {
    const Node *n = rows->outputs.v[i];
    if (n == weights) continue;
    if (!is_row_of(rows, n)) return false;
    for (int j = p->maker[n->id] + 1; j < sums_at; j++)
      for (int o = 0; o < p->g->kernels.v[j]->inputs.n; o++)
        if (node_base(p->g->kernels.v[j]->inputs.v[o].node) == n) return false;
  }
  return true;
}

bool kernel_checks(const Kernel *k) {
  for (int i = 0; i < k->nodes.n; i++)
    if (k->nodes.v[i]->prim == P_CHECK) return true;
  return false;
}

Kernel *scores_of(const Joining *p, const Kernel *rows, const Node *but) {
  Kernel *found = NULL;
  for (int i = 0; i < rows->inputs.n; i++) {
    Node *n = rows->inputs.v[i].node;
    Kernel *k = rows->inputs.v[i].aligned && n != but ? maker_of(p, n) : NULL;
    bool full =
        n->rank == rows->rank && !memcmp(n->dims, rows->ext, sizeof *n->dims * (size_t)n->rank);
    if (!k || k->kind != K_CONTRACT || k->outputs.n != 1 || !full) continue;
    if (found) return NULL;
    found = k;
  }
  return found;
}

/* One matrix, packed once for all runs: one kernel of three would pack it anew for every task. */
static bool values_are_kept(const Kernel *sums, const Node *values, const Attention *a) {
  int i = sums->prepares - 1;
  if (i < 0 || !sums->inputs.v[i].constant || sums->inputs.v[i].node != values) return false;
  for (int o = 0; o < a->n_outer; o++)
    if (a->outer[o].ext > 1 && a->outer[o].v) return false;
  return true;
}

static bool match(const Joining *p, int at, int weights, Parts *m) {
  Kernel *sums = p->g->kernels.v[at];
  Node *w = sums->core->in[weights];
  Kernel *rows = p->maker[w->id] < 0 ? NULL : p->g->kernels.v[p->maker[w->id]];
  if (!rows || !rows->nodes.n || rows->kind != K_LOOP || rows->rank < 2 ||
      rows->reduce != 1u << (rows->rank - 1))
    return false;
  if (is_row_of(rows, w) || !outputs_fit(p, rows, w, at) || kernel_checks(rows)) return false;
  Kernel *scores = scores_of(p, rows, NULL);
  if (!scores || kernel_checks(scores)) return false;
  DType t = w->dtype;
  Attention a;
  if ((t != DT_FLOAT32 && t != DT_FLOAT64) || scores->core->dtype != t || sums->core->dtype != t)
    return false;
  if (!attention_of(scores->core, sums->core, weights, &a) || a.over_rows) return false;
  if (a.row.ext < LEAST_ATTENTION || a.key.ext < LEAST_ATTENTION) return false;
  if (values_are_kept(sums, sums->core->in[!weights], &a)) return false;
  *m = (Parts){scores, rows, sums, w};
  return true;
}

/* ---- epilogues ---- */

void detach_epilogue(Joining *p, int at) {
  Graph *g = p->g;
  Kernel *k = g->kernels.v[at], *rest = arena_new_of(g->arena, Kernel);
  if (k->outputs.n == 1 && k->outputs.v[0] == k->core) return;
  Kernel old = *k;
  *rest = old;
  rest->kind = K_LOOP;
  rest->core = NULL;
  rest->workspace = 0;
  memset(&rest->nodes, 0, sizeof rest->nodes);
  memset(&rest->inputs, 0, sizeof rest->inputs);
  memset(&rest->outputs, 0, sizeof rest->outputs);
  memset(&k->nodes, 0, sizeof k->nodes);
  memset(&k->inputs, 0, sizeof k->inputs);
  memset(&k->outputs, 0, sizeof k->outputs);
  vec_add(g->arena, &rest->inputs, ((KernelInput){k->core, true, k->constant}));
  for (int i = 0; i < old.nodes.n; i++)
    vec_add(g->arena, old.nodes.v[i] == k->core ? &k->nodes : &rest->nodes, old.nodes.v[i]);
  for (int i = 0; i < old.outputs.n; i++)
    if (old.outputs.v[i] != k->core) vec_add(g->arena, &rest->outputs, old.outputs.v[i]);
  for (int i = 0; i < old.inputs.n; i++) {
    const KernelInput *x = &old.inputs.v[i];
    bool own = x->node == k->core->in[0] || x->node == k->core->in[1], others = false;
    for (int j = 0; j < rest->nodes.n; j++)
      for (int o = 0; o < rest->nodes.v[j]->n_in; o++) others |= rest->nodes.v[j]->in[o] == x->node;
    if (own) vec_add(g->arena, &k->inputs, *x);
    if (others) vec_add(g->arena, &rest->inputs, *x);
  }
  vec_add(g->arena, &k->outputs, k->core);
  p->maker[k->core->id] = at;
  p->after[at] = rest;
}

/* ---- one kernel of three ---- */

static int by_id(const void *a, const void *b) {
  const Node *x = *(Node *const *)a, *y = *(Node *const *)b;
  return (x->id > y->id) - (x->id < y->id);
}

void sort_nodes_of(Kernel *k) { qsort(k->nodes.v, (size_t)k->nodes.n, sizeof *k->nodes.v, by_id); }

static void add_nodes(Graph *g, Kernel *to, const Kernel *from) {
  for (int i = 0; i < from->nodes.n; i++) {
    bool known = false;
    for (int j = 0; j < to->nodes.n; j++) known |= to->nodes.v[j] == from->nodes.v[i];
    if (!known) vec_add(g->arena, &to->nodes, from->nodes.v[i]);
  }
}

static void add_inputs(Graph *g, Kernel *to, const Kernel *from, const Node *inside) {
  for (int i = 0; i < from->inputs.n; i++) {
    KernelInput x = from->inputs.v[i];
    bool known = x.node == inside;
    for (int j = 0; j < to->inputs.n; j++) known |= to->inputs.v[j].node == x.node;
    x.aligned = false;
    if (!known) vec_add(g->arena, &to->inputs, x);
  }
}

/* The sums' kernel takes the others in; those are empty then. */
static void join(Joining *p, int at, const Parts *m) {
  Graph *g = p->g;
  Kernel *k = arena_new_of(g->arena, Kernel);
  *k = *m->sums;
  memset(&k->nodes, 0, sizeof k->nodes);
  memset(&k->inputs, 0, sizeof k->inputs);
  k->kind = K_ATTENTION;
  k->constant &= m->scores->constant && m->rows->constant;
  k->name = arena_fmt(g->arena, "k%02d_attention", at);
  add_inputs(g, k, m->scores, NULL);
  add_inputs(g, k, m->rows, m->scores->outputs.v[0]);
  add_inputs(g, k, m->sums, m->weights);
  add_nodes(g, k, m->scores);
  add_nodes(g, k, m->rows);
  add_nodes(g, k, m->sums);
  sort_nodes_of(k);
  for (int i = 0; i < m->rows->outputs.n; i++) {
    Node *n = m->rows->outputs.v[i];
    if (n == m->weights) continue;
    vec_add(g->arena, &k->outputs, n);
    p->maker[n->id] = at;
  }
  m->scores->nodes.n = m->rows->nodes.n = 0;
  *m->sums = *k;
}

/* The kernels that are left, with what runs after them. */
static void list_kernels(const Joining *p) {
  Graph *g = p->g;
  int n = g->kernels.n;
  Kernel **all = arena_dup(p->a, g->kernels.v, sizeof *all * (size_t)n);
  g->kernels.n = 0;
  for (int i = 0; i < n; i++) {
    if (all[i]->nodes.n > 0) vec_add(g->arena, &g->kernels, all[i]);
    if (p->after[i]) vec_add(g->arena, &g->kernels, p->after[i]);
  }
  for (int i = 0; i < g->kernels.n; i++) {
    Kernel *k = g->kernels.v[i];
    const char *words = strchr(k->name, '_');
    if (k->id != i || p->after[i]) k->name = arena_fmt(g->arena, "k%02d%s", i, words ? words : "");
    k->id = i;
  }
}

void pass_attention(Graph *g) {
  if (g->no_kinds >> K_ATTENTION & 1) return;
  Joining p = {.g = g, .a = arena_scratch()};
  bool any = false;
  find_uses(&p);
  for (int i = 0; i < g->kernels.n; i++) {
    Parts m;
    if (g->kernels.v[i]->kind != K_CONTRACT || !g->kernels.v[i]->nodes.n) continue;
    if (!match(&p, i, 0, &m) && !match(&p, i, 1, &m)) continue;
    if (p.readers[m.weights->id] > 1 && !join_gradient(&p, &m)) continue;
    detach_epilogue(&p, i);
    join(&p, i, &m);
    any = true;
  }
  if (any) list_kernels(&p);
  arena_free(p.a);
}
