/* The order of the tasks of kernels that run together. In: a chain (Kernel.chain) and how each kernel's tasks are divided among
 * the items; out: ChainSteps, which hold for every item.
 *
 * The tasks of an item go over its rows, dimension 1 of results, from the first to the last. A kernel's task waits for the rows
 * that it reads of what those before it store, and no longer: so that these rows are still in the nearest cache. A window that
 * reaches into later rows makes its kernel lag behind (wavefronts: Wolf & Lam, A loop transformation theory and an algorithm to
 * maximize parallelism, 1991). What is not known to go by rows waits for the whole item. */
#include "cpu.h"
#include <string.h>

enum { ALL = INT32_MAX };

typedef struct Member {
  const Kernel *k;
  int64_t tasks;        /* of an item */
  const TaskRows *rows; /* NULL: not known */
  int32_t *done;        /* by number of tasks that ran: the rows before this one are complete */
  int64_t ran, want;
  bool read; /* by another one of the chain */
} Member;

typedef struct Order {
  Arena *a;
  int n;
  Member m[KL_CHAIN];
  int64_t *need; /* by node id: how many rows of it are read */
  VEC(ChainStep) steps;
} Order;

/* ---- which rows are read ---- */

static bool has_rows(const Node *n) { return n->rank > 1; }

/* Rows of x that are read through `map` at loops below ext, loop 1 below `end`. */
static int64_t rows_through(const Node *x, const AffDim *map, const int64_t *ext, int64_t end) {
  const AffDim *m = &map[1];
  int64_t at = m->off;
  for (int i = 0; i < 2; i++) {
    int l = i ? m->l1 : m->l0;
    int64_t c = i ? m->c1 : m->c0;
    if (l >= 0 && c > 0) at += c * ((l == 1 ? end : ext[l]) - 1);
  }
  at = at < 0 ? 0 : at / m->div + 1;
  return least(at, x->dims[1]);
}

static int64_t rows_of_operand(const Node *n, int i, int64_t end) {
  const Node *x = n->in[i];
  if (!has_rows(x)) return ALL;
  bool same = has_rows(n) && n->dims[0] == x->dims[0] && n->dims[1] == x->dims[1];
  if (n->prim == P_VIEW) return has_rows(n) ? rows_through(x, n->map[i], n->dims, end) : ALL;
  if (n->prim == P_CONTRACT) return has_rows(n) ? rows_through(x, n->map[i], n->ext, end) : ALL;
  bool pointwise =
      prim_is_map(n->prim) || n->prim == P_RESHAPE || (prim_is_reduce(n->prim) && !(n->i & 2));
  return pointwise && same ? end : x->dims[1];
}

/* Fills in `need` for all that k reads to compute its rows below `end`. */
static void find_needs(Order *o, const Kernel *k, int64_t end) {
  for (int i = 0; i < k->inputs.n; i++) o->need[k->inputs.v[i].node->id] = 0;
  for (int i = 0; i < k->nodes.n; i++) o->need[k->nodes.v[i]->id] = 0;
  for (int i = 0; i < k->outputs.n; i++) o->need[k->outputs.v[i]->id] = end;
  for (int i = k->nodes.n - 1; i >= 0; i--) {
    const Node *n = k->nodes.v[i];
    for (int j = 0; j < n->n_in; j++) {
      int64_t rows = rows_of_operand(n, j, o->need[n->id]);
      if (rows > o->need[n->in[j]->id]) o->need[n->in[j]->id] = rows;
    }
  }
}

/* ---- the order ---- */

static void find_done(Order *o, Member *m) {
  m->done = arena_array(o->a, int32_t, m->tasks + 1);
  m->done[m->tasks] = ALL;
  for (int64_t t = m->tasks - 1; t >= 0 && m->rows; t--)
    m->done[t] = (int32_t)least(m->rows[t].lo, m->done[t + 1]);
}

/* The member before `at` that stores x, or what x is a reshape of, and what it stores; -1: none. */
static int producer(const Order *o, int at, const Node *x, const Node **stored) {
  for (int i = 0; i < at; i++)
    for (int j = 0; j < o->m[i].k->outputs.n; j++) {
      *stored = o->m[i].k->outputs.v[j];
      if ((*stored)->buf == x->buf) return i;
    }
  return -1;
}

/* What member i wants to run reads this much of those before it. */
static void propagate(Order *o, int i) {
  Member *m = &o->m[i];
  int64_t end = 0;
  for (int64_t t = m->ran; t < m->want; t++) end = most(end, m->rows ? m->rows[t].hi : ALL);
  if (!end) return;
  find_needs(o, m->k, end);
  for (int j = 0; j < m->k->inputs.n; j++) {
    const Node *x = m->k->inputs.v[j].node, *b;
    int p = producer(o, i, x, &b);
    if (p < 0) continue;
    bool whole = !has_rows(x) || !has_rows(b) || x->dims[1] != b->dims[1];
    int64_t rows = whole || o->need[x->id] >= x->dims[1] ? ALL : o->need[x->id];
    Member *q = &o->m[p];
    while (q->done[q->want] < rows && q->want < q->tasks) q->want++;
  }
}

/* The kernel that nothing waits for and that has come least far; those that wait for a whole item last. -1: all are done. */
static int next_member(const Order *o) {
  int best = -1;
  for (int i = 0; i < o->n; i++) {
    const Member *m = &o->m[i], *b = &o->m[best < 0 ? 0 : best];
    if (m->ran == m->tasks || m->read) continue;
    bool less = best < 0 || (m->rows && !b->rows) ||
                (!m->rows == !b->rows && m->ran * b->tasks < b->ran * m->tasks);
    if (less) best = i;
  }
  for (int i = o->n - 1; best < 0 && i >= 0; i--)
    if (o->m[i].ran < o->m[i].tasks) best = i;
  return best;
}

static void make_steps(Order *o) {
  for (int i; (i = next_member(o)) >= 0;) {
    o->m[i].want++;
    for (int j = i; j > 0; j--) propagate(o, j);
    for (int j = 0; j <= i; j++) {
      Member *m = &o->m[j];
      if (m->want > m->ran) vec_add(o->a, &o->steps, ((ChainStep){j, m->ran, m->want}));
      m->ran = m->want;
    }
  }
}

int chain_steps(Arena *a, int n, Kernel *const *k, const ChainTasks *t, int nodes,
                const ChainStep **steps) {
  Order o = {.a = a, .n = n};
  o.need = arena_array(a, int64_t, nodes);
  for (int i = 0; i < o.n; i++) {
    o.m[i] = (Member){.k = k[i], .tasks = t[i].tasks, .rows = t[i].rows};
    find_done(&o, &o.m[i]);
  }
  for (int i = 0; i < o.n; i++)
    for (int j = 0; j < k[i]->inputs.n; j++) {
      const Node *x;
      int p = producer(&o, i, k[i]->inputs.v[j].node, &x);
      if (p >= 0) o.m[p].read = true;
    }
  make_steps(&o);
  *steps = o.steps.v;
  return o.steps.n;
}
