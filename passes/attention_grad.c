/* The gradient of attention without the weights. In: the forward's three kernels, and others that read the weights. Out: if those
 * are
 *   products   the contraction that makes the gradient of the weights
 *   rows       the loop that makes the gradient of the scores of it and of the weights
 *   sums       contractions with either: gradients of q, k and v
 * they are one kernel, K_ATTENTION_GRAD, which computes the weights again from scores, and from the maximum and the factor
 * (softmax's sum) of each row that the forward kernel stores. Dao et al., FlashAttention, 2022, section 3.1. */
#include "attention.h"
#include <string.h>

enum { MOST_SUMS = 3, LEAST_OUTER = 8 /* tasks: a task is one outer index */ };

typedef struct Gradient {
  Kernel *products, *rows;
  Node *weights; /* that `rows` makes: the gradient of the scores */
  int n, at[MOST_SUMS];
  int first; /* of all their positions */
} Gradient;

static int place_of(const Joining *p, const Kernel *k) { return p->maker[k->outputs.v[0]->id]; }

/* Who reads w: contractions with it, and at most one loop at the point. */
static bool find_readers(const Joining *p, const Parts *m, Node *w, Gradient *d) {
  const Graph *g = p->g;
  int found = 0;
  for (int i = 0; i < g->kernels.n; i++) {
    Kernel *k = g->kernels.v[i];
    for (int j = 0; j < k->inputs.n; j++) {
      if (node_base(k->inputs.v[j].node) != w) continue;
      found++;
      if (k == m->sums) continue;
      if (k->inputs.v[j].node != w) return false;
      if (k->kind == K_LOOP && w == m->weights && !d->rows && k->inputs.v[j].aligned)
        d->rows = k;
      else if (k->kind == K_CONTRACT && d->n < MOST_SUMS)
        d->at[d->n++] = i;
      else
        return false;
    }
  }
  return found == p->readers[w->id];
}

static bool sums_fit(const Joining *p, const Parts *m, const Gradient *d, int i) {
  const Kernel *k = p->g->kernels.v[d->at[i]];
  Attention a;
  int x = k->core->in[1] == m->weights || k->core->in[1] == d->weights;
  if (k->core->in[x] != m->weights && k->core->in[x] != d->weights) return false;
  return !kernel_checks(k) && k->core->dtype == m->weights->dtype &&
         attention_of(m->scores->core, k->core, x, &a) &&
         attention_of(d->products->core, k->core, x, &a);
}

static bool find_gradient(const Joining *p, const Parts *m, Gradient *d) {
  *d = (Gradient){0};
  if (!find_readers(p, m, m->weights, d) || !d->rows) return false;
  const Kernel *r = d->rows;
  bool same = r->rank == m->rows->rank && r->reduce == m->rows->reduce && r->outputs.n == 1 &&
              !memcmp(r->ext, m->rows->ext, sizeof *r->ext * (size_t)r->rank);
  if (!same || is_row_of(r, r->outputs.v[0]) || kernel_checks(r)) return false;
  d->weights = r->outputs.v[0];
  d->products = scores_of(p, r, m->weights);
  if (!d->products || kernel_checks(d->products) || !find_readers(p, m, d->weights, d))
    return false;
  if (d->products->core->dtype != m->weights->dtype || d->weights->dtype != m->weights->dtype)
    return false;
  d->first = place_of(p, d->products);
  if (place_of(p, r) < d->first) d->first = place_of(p, r);
  for (int i = 0; i < d->n; i++) {
    if (!sums_fit(p, m, d, i)) return false;
    if (d->at[i] < d->first) d->first = d->at[i];
  }
  return d->n > 0;
}

/* ---- the kernel ---- */

typedef struct Closure {
  const Joining *p;
  Kernel *k;
  bool *seen;
  const Node *inside[4], *outside[2]; /* computed here though stored; not though they could be */
  VEC(Node *) stack;
} Closure;

static bool in_list(const Node *const *v, int n, const Node *x) {
  for (int i = 0; i < n; i++)
    if (v[i] == x) return true;
  return false;
}

static bool is_input(const Closure *c, Node *n) {
  const Node *b = node_base(n);
  if (in_list(c->outside, 2, n)) return true;
  if (node_is_source(b)) return true;
  return c->p->maker[b->id] >= 0 && !in_list(c->inside, 4, b);
}

static void reach(Closure *c, Node *from) {
  vec_add(c->p->a, &c->stack, from);
  while (c->stack.n) {
    Node *n = c->stack.v[--c->stack.n];
    if (c->seen[n->id]) continue;
    c->seen[n->id] = true;
    if (n != from && is_input(c, n)) {
      vec_add(c->p->g->arena, &c->k->inputs, ((KernelInput){n, false, false}));
      continue;
    }
    vec_add(c->p->g->arena, &c->k->nodes, n);
    for (int i = 0; i < n->n_in; i++) vec_add(c->p->a, &c->stack, n->in[i]);
  }
}

static Kernel *kernel_of(const Joining *p, const Parts *m, const AttentionSoftmax *s,
                         const Gradient *d) {
  Graph *g = p->g;
  Kernel *k = arena_new_of(g->arena, Kernel);
  Closure c = {.p = p, .k = k, .seen = arena_array(p->a, bool, g->nodes.n)};
  c.inside[0] = m->scores->outputs.v[0];
  c.inside[1] = m->weights;
  c.inside[2] = d->products->outputs.v[0];
  c.inside[3] = d->weights;
  c.outside[0] = s->max;
  c.outside[1] = s->factor;
  k->kind = K_ATTENTION_GRAD;
  k->core = d->products->core;
  k->rank = k->core->rank;
  memcpy(k->ext, k->core->dims, sizeof k->ext);
  k->name = "_attention_grad";
  k->id = -1;
  k->tuning = m->sums->tuning;
  for (int i = 0; i < d->n; i++) {
    Node *core = g->kernels.v[d->at[i]]->core;
    reach(&c, core);
    vec_add(g->arena, &k->outputs, core);
  }
  sort_nodes_of(k);
  return k;
}

/* What it reads is there before the first of those whose place it takes; row values are stored by then. */
static bool comes_first(const Joining *p, const Kernel *k, const AttentionSoftmax *s, int sums,
                        int first) {
  for (int i = 0; i < k->inputs.n; i++) {
    const Node *n = k->inputs.v[i].node;
    int made = n == s->max || n == s->factor ? sums : p->maker[node_base(k->inputs.v[i].node)->id];
    if (made >= first) return false;
  }
  return true;
}

static void add_output(const Joining *p, Kernel *rows, Node *n) {
  for (int i = 0; i < rows->outputs.n; i++)
    if (rows->outputs.v[i] == n) return;
  vec_add(p->g->arena, &rows->outputs, n);
}

static bool computes(const Kernel *k, const Node *n) {
  return in_list((const Node *const *)k->nodes.v, k->nodes.n, n);
}

bool join_gradient(Joining *p, const Parts *m) {
  Gradient d;
  AttentionSoftmax s;
  if (p->g->no_kinds >> K_ATTENTION_GRAD & 1 || !attention_softmax(m->weights, &s)) return false;
  const Node *q = m->scores->core;
  if (node_numel(q) / (q->dims[q->rank - 1] * q->dims[q->rank - 2]) < LEAST_OUTER) return false;
  if (!computes(m->rows, s.max) || !computes(m->rows, s.factor) || !find_gradient(p, m, &d))
    return false;
  Kernel *k = kernel_of(p, m, &s, &d);
  if (!comes_first(p, k, &s, place_of(p, m->sums), d.first)) return false;
  for (int i = 0; i < d.n; i++) detach_epilogue(p, d.at[i]);
  for (int i = 0; i < d.n; i++) p->g->kernels.v[d.at[i]]->nodes.n = 0;
  d.products->nodes.n = d.rows->nodes.n = 0;
  *p->g->kernels.v[d.first] = *k;
  for (int i = 0; i < k->outputs.n; i++) p->maker[k->outputs.v[i]->id] = d.first;
  add_output(p, m->rows, s.max);
  add_output(p, m->rows, s.factor);
  return true;
}
