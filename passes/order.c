/* The order of kernels. In: g->kernels in an order that computes the graph, their workspaces known. Out: the same kernels
 * in an order that needs less memory, or as they were.
 *
 * List scheduling, forwards and backwards. Forwards, a kernel that frees more than it stores runs as soon as it can (an
 * update right after its gradient), any other in its turn. Backwards the same says: a kernel that stores more than it
 * frees runs as late as it can, just before its first reader. Tried are the given order, both, and one after the other;
 * of those within a hundredth of the lowest peak that with the smallest sum of live bytes is kept: its values are read
 * soon after they are stored, while they are in cache. Where none is, results that nothing else reads count as well,
 * backwards: as a gradient that is stored for the update in the same kernel.
 * Near-linear: only kernels that are ready are looked at. (Sethi, Complete register allocation problems, 1975, has why
 * the best order is out of reach; OLLA, Steiner et al. 2022, what solvers gain over lists.)
 *
 * What the order must keep, besides operands before users: a kernel that replaces a state comes after those that read its
 * old value, and after those that may still fail (checks, custom operators), where it did so before. */
#include "rewrite.h"
#include <string.h>

typedef struct Value { /* stored by a kernel of the list */
  int64_t bytes;       /* 0 if its place is a state's, or it is kept from run to run */
  int producer, readers;
  bool kept; /* fetched, or copied to a state at the exit */
} Value;

typedef struct Read {
  int value;
  bool aligned;
} Read;

typedef struct Job {
  VEC(Read) reads;
  VEC(int) stores;
  VEC(int) edges[2]; /* jobs that must come after, before */
} Job;

typedef struct Order {
  Graph *g;
  Arena *a;
  int n, n_values;
  Job *jobs;
  Value *values;
  int *value_of;     /* node id -> value, -1 */
  int *left, *open;  /* scratch: readers, edges that are left */
  int64_t peak, sum; /* of the order measured last */
} Order;

static bool may_fail(const Kernel *k) {
  if (k->kind == K_CALL) return true;
  for (int i = 0; i < k->nodes.n; i++)
    if (k->nodes.v[i]->prim == P_CHECK) return true;
  return false;
}

/* ---- values and edges ---- */

static void add_edge(Order *o, int before, int after) {
  if (before == after) return;
  vec_add(o->a, &o->jobs[before].edges[0], after);
  vec_add(o->a, &o->jobs[after].edges[1], before);
}

static void find_values(Order *o) {
  Graph *g = o->g;
  for (int i = 0; i < g->nodes.n; i++) o->value_of[i] = -1;
  for (int i = 0; i < o->n; i++)
    for (int j = 0; j < g->kernels.v[i]->outputs.n; j++) {
      const Node *n = g->kernels.v[i]->outputs.v[j];
      o->value_of[n->id] = o->n_values;
      vec_add(o->a, &o->jobs[i].stores, o->n_values);
      o->values[o->n_values++] =
          (Value){.bytes =
                      o->g->kernels.v[i]->constant ? 0 : node_numel(n) * dtype_info[n->dtype].size,
                  .producer = i};
    }
}

static bool reads_already(const Job *j, int value, bool aligned) {
  for (int i = 0; i < j->reads.n; i++)
    if (j->reads.v[i].value == value) {
      j->reads.v[i].aligned &= aligned;
      return true;
    }
  return false;
}

static void find_reads(Order *o) {
  for (int i = 0; i < o->n; i++) {
    const Kernel *k = o->g->kernels.v[i];
    for (int j = 0; j < k->inputs.n; j++) {
      int v = o->value_of[node_base(k->inputs.v[j].node)->id];
      if (v < 0 || reads_already(&o->jobs[i], v, k->inputs.v[j].aligned)) continue;
      vec_add(o->a, &o->jobs[i].reads, ((Read){v, k->inputs.v[j].aligned}));
      o->values[v].readers++;
      add_edge(o, o->values[v].producer, i);
    }
  }
}

typedef VEC(int) Ints;

/* Kernels that read each state, by name; those that read it elsewhere than where they write count twice. */
static Map *state_readers(Order *o) {
  Map *m = map_new(o->a);
  for (int i = 0; i < o->n; i++) {
    const Kernel *k = o->g->kernels.v[i];
    for (int j = 0; j < k->inputs.n; j++) {
      const Node *b = node_base(k->inputs.v[j].node);
      if (b->prim != P_STATE) continue;
      Ints *v = map_get(m, b->s);
      if (!v) map_put(m, b->s, v = arena_new_of(o->a, Ints));
      vec_add(o->a, v, i);
      if (!k->inputs.v[j].aligned) vec_add(o->a, v, i);
    }
  }
  return m;
}

/* Writes wait for readers of the old value and for what may fail. What need not wait for later ones is stored in the state. */
static void order_writes(Order *o) {
  Graph *g = o->g;
  Map *readers = state_readers(o);
  int last_failure = -1;
  Ints fails = {0};
  for (int i = 0; i < o->n; i++)
    if (may_fail(g->kernels.v[i])) vec_add(o->a, &fails, last_failure = i);
  for (int i = 0; i < g->writes.n; i++) {
    int v = o->value_of[node_base(g->writes.v[i].node)->id];
    if (v < 0) continue;
    int writer = o->values[v].producer, own = 0;
    const Ints *r = map_get(readers, g->writes.v[i].name);
    bool direct = last_failure < writer;
    for (int j = 0; r && j < r->n; j++) {
      own += r->v[j] == writer;
      if (r->v[j] <= writer) add_edge(o, r->v[j], writer);
      direct = direct && r->v[j] <= writer && own < 2;
    }
    for (int j = 0; j < fails.n && fails.v[j] < writer; j++) add_edge(o, fails.v[j], writer);
    if (direct)
      o->values[v].bytes = 0;
    else
      o->values[v].kept = true;
  }
  for (int i = 0; i < g->fetches.n; i++) {
    int v = o->value_of[node_base(g->fetches.v[i].node)->id];
    if (v >= 0) o->values[v].kept = true;
  }
}

/* ---- measuring an order ---- */

static void reset(Order *o) {
  for (int i = 0; i < o->n_values; i++) o->left[i] = o->values[i].readers + o->values[i].kept;
}

/* Bytes of the job's values that take the place of an operand: each of its outputs may have one of equal size. */
static int64_t shared_bytes(const Order *o, const Job *j) {
  int64_t bytes = 0;
  unsigned taken = 0;
  for (int i = 0; i < j->stores.n; i++)
    for (int k = 0; k < j->reads.n && k < 32; k++) {
      const Read *r = &j->reads.v[k];
      if ((taken >> k & 1) || !r->aligned || o->left[r->value] != 1 ||
          o->values[r->value].bytes != o->values[j->stores.v[i]].bytes)
        continue;
      taken |= 1u << k;
      bytes += o->values[r->value].bytes;
      break;
    }
  return bytes;
}

static void measure(Order *o, const int *order) {
  int64_t live = 0;
  o->peak = o->sum = 0;
  reset(o);
  for (int i = 0; i < o->n; i++) {
    const Job *j = &o->jobs[order[i]];
    int64_t unused = 0,
            during = live + arena_workspace(o->g->kernels.v[order[i]]) - shared_bytes(o, j);
    for (int s = 0; s < j->stores.n; s++) {
      const Value *v = &o->values[j->stores.v[s]];
      during += v->bytes;
      live += v->bytes;
      if (!o->left[j->stores.v[s]]) unused += v->bytes;
    }
    for (int r = 0; r < j->reads.n; r++)
      if (--o->left[j->reads.v[r].value] == 0) live -= o->values[j->reads.v[r].value].bytes;
    live -= unused;
    if (during > o->peak) o->peak = during;
    o->sum += during;
  }
}

/* ---- list scheduling ---- */

/* What running the job next adds to the live bytes; `back`: in reversed time. `all`: with what nothing reads of its results. */
static int64_t growth(const Order *o, const Job *j, bool back, bool all) {
  int64_t in = 0, out = 0;
  for (int i = 0; i < j->stores.n; i++) {
    const Value *v = &o->values[j->stores.v[i]];
    if (v->readers + v->kept || all) out += v->bytes;
  }
  for (int i = 0; i < j->reads.n; i++) {
    int v = j->reads.v[i].value, uses = o->values[v].readers + o->values[v].kept;
    if (back ? o->left[v] == uses && !o->values[v].kept : o->left[v] == 1) in += o->values[v].bytes;
  }
  return back ? in - out : out - in;
}

/* to: the jobs of `base` in their turn, but what shrinks the live bytes as soon as it is ready; `back`: from the end. */
static void list_schedule(Order *o, const int *base, bool back, bool all, int *to) {
  int *turn = arena_array(o->a, int, o->n), *ready = arena_array(o->a, int, o->n), n_ready = 0;
  for (int i = 0; i < o->n; i++) {
    int j = base[i];
    turn[j] = back ? o->n - i : i;
    o->open[j] = o->jobs[j].edges[!back].n;
    if (!o->open[j]) ready[n_ready++] = j;
  }
  reset(o);
  for (int step = 0; step < o->n; step++) {
    int best = 0;
    int64_t least = 0;
    for (int i = 0; i < n_ready; i++) {
      int64_t grows = growth(o, &o->jobs[ready[i]], back, all);
      if (grows > 0) grows = 0;
      if (i && (grows != least ? grows > least : turn[ready[i]] > turn[ready[best]])) continue;
      best = i;
      least = grows;
    }
    int j = ready[best];
    ready[best] = ready[--n_ready];
    to[back ? o->n - 1 - step : step] = j;
    for (int i = 0; i < o->jobs[j].reads.n; i++) o->left[o->jobs[j].reads.v[i].value]--;
    for (int i = 0; i < o->jobs[j].edges[back].n; i++) {
      int next = o->jobs[j].edges[back].v[i];
      if (--o->open[next] == 0) ready[n_ready++] = next;
    }
  }
}

void number_kernels(Graph *g) {
  for (int i = 0; i < g->kernels.n; i++) {
    Kernel *k = g->kernels.v[i];
    const char *words = strchr(k->name, '_');
    if (k->id != i) k->name = arena_fmt(g->arena, "k%02d%s", i, words ? words : "");
    k->id = i;
  }
}

static void apply(Order *o, const int *order) {
  Graph *g = o->g;
  Kernel **old = arena_dup(o->a, g->kernels.v, sizeof *old * (size_t)o->n);
  for (int i = 0; i < o->n; i++) g->kernels.v[i] = old[order[i]];
  number_kernels(g);
}

enum { GIVEN, FORTH, BACK, FORTH_BACK, BACK_FORTH, BACK_ALL, FORTH_BACK_ALL, N_ORDERS };

/* Tries the orders; returns one of them. */
static const int *choose(Order *o) {
  static const struct {
    int base;
    bool back, all;
  } how[N_ORDERS] = {
      [FORTH] = {.base = GIVEN},
      [BACK] = {.base = GIVEN, .back = true},
      [FORTH_BACK] = {.base = FORTH, .back = true},
      [BACK_FORTH] = {.base = BACK},
      [BACK_ALL] = {.base = GIVEN, .back = true, .all = true},
      [FORTH_BACK_ALL] = {.base = FORTH, .back = true, .all = true},
  };
  int *tried[N_ORDERS], best = GIVEN;
  int64_t peak[N_ORDERS], sum[N_ORDERS], lowest = INT64_MAX;
  for (int i = 0; i < N_ORDERS; i++) {
    tried[i] = arena_array(o->a, int, o->n + 1);
    if (i == GIVEN)
      for (int j = 0; j < o->n; j++) tried[i][j] = j;
    else
      list_schedule(o, tried[how[i].base], how[i].back, how[i].all, tried[i]);
    measure(o, tried[i]);
    peak[i] = o->peak;
    sum[i] = o->sum;
    if (peak[i] < lowest) lowest = peak[i];
  }
  int64_t limit = lowest + lowest / 100;
  for (int i = GIVEN + 1; i < N_ORDERS; i++)
    if (peak[i] <= limit && (peak[best] > limit || (!how[i].all && sum[i] < sum[best]))) best = i;
  return tried[best];
}

void pass_order(Graph *g) {
  Order o = {.g = g, .a = arena_scratch(), .n = g->kernels.n};
  int outputs = 0;
  for (int i = 0; i < o.n; i++) outputs += g->kernels.v[i]->outputs.n;
  o.jobs = arena_array(o.a, Job, o.n + 1);
  o.values = arena_array(o.a, Value, outputs + 1);
  o.value_of = arena_array(o.a, int, g->nodes.n + 1);
  o.left = arena_array(o.a, int, outputs + 1);
  o.open = arena_array(o.a, int, o.n + 1);
  find_values(&o);
  find_reads(&o);
  order_writes(&o);
  apply(&o, choose(&o));
  arena_free(o.a);
}
