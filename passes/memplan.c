/* Memory planning. In: a Graph with kernels, their workspaces known. Out: Node.buf of every value at a kernel's interface,
 * g->buffers with offsets in one arena, g->copies, and the size of the arena beside its lower bound.
 *
 * 1 Storage: sources are bound at run time; a reshape shares its operand's buffer.
 * 2 Places: a value written to a state goes straight into the state's buffer if the old value is read for the last time in
 *   that kernel (at the index that is written) or before, and no check can still fail; otherwise into the arena, and is copied
 *   at the exit. Other outputs take the buffer of an input that dies in the kernel and is read only at the index written.
 * 3 Offsets: buffers live at the same time must not overlap: largest first, each into the smallest gap that fits
 *   (greedy by size: Pisarchyk and Lee, Efficient memory management for deep neural net inference, 2020), also tried in
 *   order of time and of lifetime. While the plan exceeds the lower bound, what reaches above it is placed first in another
 *   round (squeaky wheel optimization: Joslin and Clements, 1999), until it is near; the smallest plan is kept. */
#include "rewrite.h"
#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum { ALIGN = 64 };

typedef struct Plan {
  Graph *g;
  Arena *a;
  int n_kernels, last_check; /* the last kernel that can fail a check, -1: none */
  Map *states;               /* name -> Buffer */
} Plan;

static int64_t node_bytes(const Node *n) { return node_numel(n) * dtype_info[n->dtype].size; }

static int64_t round_up(int64_t n) { return (n + ALIGN - 1) / ALIGN * ALIGN; }

static Buffer *new_buffer(Plan *p, BufferKind kind, const char *name, int64_t bytes) {
  Buffer *b = arena_new_of(p->g->arena, Buffer);
  b->kind = kind;
  b->id = p->g->buffers.n;
  b->name = name;
  b->bytes = bytes;
  b->first = p->n_kernels;
  b->last = -1;
  vec_add(p->g->arena, &p->g->buffers, b);
  return b;
}

/* State that a program reads in one size and leaves in another has two buffers. */
static Buffer *state_buffer(Plan *p, const char *name, int64_t bytes) {
  const char *key = arena_fmt(p->a, "%lld %s", (long long)bytes, name);
  Buffer *b = map_get(p->states, key);
  if (b) return b;
  b = new_buffer(p, B_STATE, name, bytes);
  b->first = 0;
  b->written = state_is_written(p->g, name);
  map_put(p->states, key, b);
  return b;
}

static Buffer *source_buffer(Plan *p, const Node *n) {
  if (n->prim == P_STATE) return state_buffer(p, n->s, node_bytes(n));
  Buffer *b = new_buffer(p, n->prim == P_FEED ? B_FEED : B_DATA, n->s, node_bytes(n));
  b->first = 0;
  b->data = n->data;
  return b;
}

/* The buffer of n through reshapes; sources get theirs on first use. */
static Buffer *buffer_of(Plan *p, Node *n) {
  Node *b = node_base(n);
  if (!b->buf && node_is_source(b)) b->buf = source_buffer(p, b);
  for (Node *x = n; x != b; x = x->in[0]) x->buf = b->buf;
  return b->buf;
}

/* The last kernel that runs together with kernel i. */
static int chain_end(const Graph *g, int i) {
  while (i + 1 < g->kernels.n && g->kernels.v[i]->chained && g->kernels.v[i + 1]->chained &&
         !g->kernels.v[i + 1]->chain)
    i++;
  return i;
}

static int chain_begin(const Graph *g, int i) {
  while (g->kernels.v[i]->chained && !g->kernels.v[i]->chain) i--;
  return i;
}

bool chain_has_locals(const Graph *g, const Kernel *k) {
  return g->threads > 0 && k->items == k->ext[0] && k->items >= 2 * g->threads;
}

/* The last kernel that reads each node's storage, or runs together with it, and n_kernels for what outlives them; by id of the
 * base. */
static int *find_last_reads(const Plan *p) {
  const Graph *g = p->g;
  int *last = arena_array(p->a, int, g->nodes.n);
  for (int i = 0; i < g->nodes.n; i++) last[i] = -1;
  for (int i = 0; i < p->n_kernels; i++) {
    const Kernel *k = g->kernels.v[i];
    for (int j = 0; j < k->inputs.n; j++)
      last[node_base(k->inputs.v[j].node)->id] = chain_end(g, i);
  }
  for (int i = 0; i < g->fetches.n; i++) last[node_base(g->fetches.v[i].node)->id] = p->n_kernels;
  return last;
}

static int find_last_check(const Graph *g) {
  int last = -1;
  for (int i = 0; i < g->kernels.n; i++)
    for (int j = 0; j < g->kernels.v[i]->nodes.n; j++)
      if (g->kernels.v[i]->nodes.v[j]->prim == P_CHECK) last = i;
  return last;
}

static Kernel *producer_of(const Graph *g, const Node *n) {
  for (int i = 0; i < g->kernels.n; i++)
    for (int j = 0; j < g->kernels.v[i]->outputs.n; j++)
      if (g->kernels.v[i]->outputs.v[j] == n) return g->kernels.v[i];
  return NULL;
}

/* Does every kernel from k on leave the buffer's old value alone, or k read it only at the index written? */
static bool last_reader(const Plan *p, const Kernel *k, const Buffer *b) {
  for (int i = k->id; i < p->n_kernels; i++) {
    const Kernel *r = p->g->kernels.v[i];
    for (int j = 0; j < r->inputs.n; j++) {
      const Node *x = node_base(r->inputs.v[j].node);
      if (x->buf == b && (r != k || !r->inputs.v[j].aligned)) return false;
    }
  }
  return true;
}

/* May the output share with the input's elements one by one? */
static bool same_elements(const Node *a, const Node *b) {
  return node_numel(a) == node_numel(b) && dtype_info[a->dtype].size == dtype_info[b->dtype].size;
}

static const Node *state_node(const Graph *g, const char *name) {
  for (int i = 0; i < g->nodes.n; i++)
    if (g->nodes.v[i]->prim == P_STATE && !strcmp(g->nodes.v[i]->s, name)) return g->nodes.v[i];
  return NULL;
}

/* ---- what is kept ---- */

static void keep(Plan *p, Buffer *b) {
  b->offset = p->g->kept_bytes;
  p->g->kept_bytes += round_up(b->bytes);
}

/* Steps of a recurrence read the same weights: what one prepares serves all. */
static bool prepares_same(const Kernel *k, const Kernel *as) {
  return as && k->packing && k->packing == as->packing && k->workspace == as->workspace;
}

static void keep_workspace(Plan *p, Kernel *k, Kernel **of) {
  Kernel **before = &of[k->inputs.v[k->prepares - 1].node->id];
  if (prepares_same(k, *before)) {
    k->ws = (*before)->ws;
    return;
  }
  keep(p, k->ws = new_buffer(p, B_KEPT, NULL, k->workspace));
  *before = k;
}

/* Kernels that are constant, their values that others read, and workspaces that are prepared from constants. What only
 * constant kernels read stays in the arena: they all run again when one does. */
static void find_kept(Plan *p) {
  Graph *g = p->g;
  bool *made = arena_array(p->a, bool, g->nodes.n);
  Kernel **prepares = arena_array(p->a, Kernel *, g->nodes.n); /* by id of what they prepare from */
  g->kept_bytes = 0;
  for (int i = 0; i < p->n_kernels; i++) {
    Kernel *k = g->kernels.v[i];
    for (int j = 0; j < k->outputs.n; j++) made[k->outputs.v[j]->id] = true;
    bool prepared = false;
    for (int j = 0; j < k->inputs.n; j++) {
      Node *x = node_base(k->inputs.v[j].node);
      bool constant = k->inputs.v[j].constant, only_prepares = k->prepares == j + 1;
      prepared |= constant && only_prepares && !k->constant && k->workspace > 0;
      if (!constant || k->constant || only_prepares || !made[x->id] || x->buf) continue;
      keep(p, x->buf = new_buffer(p, B_KEPT, NULL, node_bytes(x)));
    }
    if (prepared) keep_workspace(p, k, prepares);
  }
}

static void place_writes(Plan *p) {
  Graph *g = p->g;
  for (int i = 0; i < g->writes.n; i++) {
    NamedNode *w = &g->writes.v[i];
    Node *b = node_base(w->node);
    if (b->prim == P_STATE && !strcmp(b->s, w->name)) continue;
    Buffer *to = state_buffer(p, w->name, node_bytes(b));
    const Kernel *k = producer_of(g, b);
    const Node *old = state_node(g, w->name);
    bool fits = !old || same_elements(old, b);
    bool direct = !b->buf && fits && p->last_check < k->id && last_reader(p, k, to);
    if (direct) b->buf = to;
  }
}

/* Arena buffers of the other outputs, in place where an input dies. */
static void place_outputs(Plan *p, const int *last) {
  Graph *g = p->g;
  for (int i = 0; i < p->n_kernels; i++) {
    Kernel *k = g->kernels.v[i];
    int end = chain_end(g, i);
    for (int j = 0; j < k->outputs.n; j++) {
      Node *o = k->outputs.v[j];
      for (int m = 0; m < k->inputs.n && !o->buf && !k->chained; m++) {
        Buffer *b = buffer_of(p, k->inputs.v[m].node);
        const Node *x = k->inputs.v[m].node;
        if (b->kind != B_ARENA || b->last != i || !same_elements(x, o) || !last_reader(p, k, b))
          continue;
        bool taken = false;
        for (int q = 0; q < k->outputs.n; q++) taken |= k->outputs.v[q]->buf == b;
        if (!taken) o->buf = b;
      }
      if (!o->buf) o->buf = new_buffer(p, B_ARENA, NULL, node_bytes(o));
      Buffer *b = o->buf;
      if (i < b->first) b->first = i;
      if (end > b->last) b->last = end;
      if (last[o->id] > b->last) b->last = last[o->id];
    }
    for (int m = 0; m < k->inputs.n; m++) { /* bound at run time: for reports */
      Buffer *b = buffer_of(p, k->inputs.v[m].node);
      if (i > b->last) b->last = i;
    }
    if (k->workspace > 0 && !k->ws) {
      k->ws = new_buffer(p, B_ARENA, NULL, k->workspace);
      k->ws->first = chain_begin(g, i); /* all are prepared before the first runs */
      k->ws->last = end;
    }
  }
}

/* Values that only the kernels of one chain store and read. All of a chain are there at once: its kernels take turns. */
static void place_locals(Plan *p, const int *last) {
  Graph *g = p->g;
  int64_t at = 0;
  g->local_bytes = 0;
  for (int i = 0; i < p->n_kernels; i++) {
    const Kernel *k = g->kernels.v[i];
    if (k->chain) at = 0;
    if (!k->chained || !chain_has_locals(g, k)) continue;
    for (int j = 0; j < k->outputs.n; j++) {
      Node *o = k->outputs.v[j];
      if (o->buf || last[o->id] != chain_end(g, i)) continue;
      o->buf = new_buffer(p, B_LOCAL, NULL, node_bytes(o));
      o->buf->offset = at;
      o->buf->first = i;
      at += round_up(node_bytes(o) / k->items);
    }
    if (at > g->local_bytes) g->local_bytes = at;
  }
}

static void add_copies(Plan *p) {
  Graph *g = p->g;
  for (int i = 0; i < g->writes.n; i++) {
    Node *b = node_base(g->writes.v[i].node);
    if (node_is_source(b)) continue;
    Buffer *to = state_buffer(p, g->writes.v[i].name, node_bytes(b));
    if (b->buf == to) continue;
    vec_add(g->arena, &g->copies, ((ExitCopy){b->buf, to}));
  }
}

/* ---- offsets ---- */

static bool overlap(const Buffer *a, const Buffer *b) {
  return a->first <= b->last && b->first <= a->last;
}

static int by_size(const void *a, const void *b) {
  const Buffer *x = *(Buffer *const *)a, *y = *(Buffer *const *)b;
  if (x->bytes != y->bytes) return x->bytes > y->bytes ? -1 : 1;
  return (x->id > y->id) - (x->id < y->id);
}

static int by_time(const void *a, const void *b) {
  const Buffer *x = *(Buffer *const *)a, *y = *(Buffer *const *)b;
  if (x->first != y->first) return x->first < y->first ? -1 : 1;
  return by_size(a, b);
}

static int by_span(const void *a, const void *b) {
  const Buffer *x = *(Buffer *const *)a, *y = *(Buffer *const *)b;
  int sx = x->last - x->first, sy = y->last - y->first;
  if (sx != sy) return sx > sy ? -1 : 1;
  return by_size(a, b);
}

/* Places v[0..n-1] in this order; returns the size. `by_offset` has room for them: what is placed, by offset. */
static int64_t place(Buffer **by_offset, Buffer **v, int n) {
  int64_t top = 0;
  for (int i = 0; i < n; i++) {
    Buffer *b = v[i];
    int64_t bytes = round_up(b->bytes), end = 0, best = -1, best_gap = 0;
    for (int j = 0; j < i; j++) {
      const Buffer *p = by_offset[j];
      if (!overlap(p, b)) continue;
      int64_t gap = p->offset - end, after = p->offset + round_up(p->bytes);
      if (gap >= bytes && (best < 0 || gap < best_gap)) best = end, best_gap = gap;
      if (after > end) end = after;
    }
    b->offset = best >= 0 ? best : end;
    if (b->offset + bytes > top) top = b->offset + bytes;
    int at = i;
    for (; at > 0 && by_offset[at - 1]->offset > b->offset; at--) by_offset[at] = by_offset[at - 1];
    by_offset[at] = b;
  }
  return top;
}

/* The largest sum of bytes that are live at once. */
static int64_t find_bound(const Plan *p, Buffer *const *v, int n) {
  int64_t live = 0, most = 0, *change = arena_array(p->a, int64_t, p->n_kernels + 2);
  for (int i = 0; i < n; i++) {
    int last = v[i]->last < p->n_kernels ? v[i]->last : p->n_kernels;
    change[v[i]->first] += round_up(v[i]->bytes);
    change[last + 1] -= round_up(v[i]->bytes);
  }
  for (int k = 0; k <= p->n_kernels; k++) {
    live += change[k];
    if (live > most) most = live;
  }
  return most;
}

/* Those that reach above the limit go first, in the order that they have. */
static void move_to_front(Arena *a, Buffer **v, int n, int64_t limit) {
  Buffer **old = arena_dup(a, v, sizeof *v * (size_t)n);
  int to = 0;
  for (int pass = 0; pass < 2; pass++)
    for (int i = 0; i < n; i++)
      if ((old[i]->offset + round_up(old[i]->bytes) > limit) == !pass) v[to++] = old[i];
}

static void assign_offsets(Plan *p) {
  static int (*const orders[])(const void *, const void *) = {by_size, by_time, by_span};
  enum { ORDERS = sizeof orders / sizeof *orders, ROUNDS = 24 };
  Graph *g = p->g;
  Buffer **v = arena_array(p->a, Buffer *, g->buffers.n + 1);
  Buffer **scratch = arena_array(p->a, Buffer *, g->buffers.n + 1), **best = NULL;
  int n = 0;
  for (int i = 0; i < g->buffers.n; i++)
    if (g->buffers.v[i]->kind == B_ARENA) v[n++] = g->buffers.v[i];
  g->lower_bound = find_bound(p, v, n);
  int64_t near = g->lower_bound + g->lower_bound / 256; /* good enough to end the rounds */
  g->arena_bytes = INT64_MAX;
  for (int o = 0; o < ORDERS; o++) {
    if (n > 1) qsort(v, (size_t)n, sizeof *v, orders[o]);
    for (int round = 0; round < ROUNDS && g->arena_bytes > (round ? near : g->lower_bound);
         round++) {
      int64_t size = place(scratch, v, n);
      if (size < g->arena_bytes) {
        g->arena_bytes = size;
        best = arena_dup(p->a, v, sizeof *v * (size_t)n);
      }
      if (n) move_to_front(p->a, v, n, g->lower_bound);
    }
  }
  place(scratch, best, n);
}

void pass_memplan(Graph *g) {
  Plan p = {.g = g, .a = arena_scratch(), .n_kernels = g->kernels.n};
  g->buffers.n = g->copies.n = 0;
  for (int i = 0; i < g->nodes.n; i++) g->nodes.v[i]->buf = NULL;
  for (int i = 0; i < g->kernels.n; i++) g->kernels.v[i]->ws = NULL;
  p.states = map_new(p.a);
  p.last_check = find_last_check(g);
  int *last = find_last_reads(&p);
  for (int i = 0; i < g->nodes.n; i++)
    if (node_is_source(g->nodes.v[i])) buffer_of(&p, g->nodes.v[i]);
  find_kept(&p);
  place_writes(&p);
  for (int i = 0; i < g->writes.n; i++) { /* what is copied at the exit lives till then */
    const Node *b = node_base(g->writes.v[i].node);
    if (!node_is_source(b)) last[b->id] = p.n_kernels;
  }
  place_locals(&p, last);
  place_outputs(&p, last);
  add_copies(&p);
  for (int i = 0; i < g->nodes.n; i++) buffer_of(&p, g->nodes.v[i]);
  assign_offsets(&p);
  arena_free(p.a);
  assert(!verify_passes || memplan_check(g, NULL));
}

/* ---- the checker ---- */

static bool fail(Str *why, const char *what, const char *where) {
  if (why) str_fmt(why, "%s: %s", where, what);
  return false;
}

/* Of what only kernels first..last, a chain, may store and read. */
static const char *local_fault(const Graph *g, int first, int last) {
  Buffer *const *v = g->buffers.v;
  for (int i = 0; i < g->buffers.n; i++) {
    int64_t items = g->kernels.v[first]->ext[0], bytes = v[i]->bytes / items;
    if (v[i]->kind != B_LOCAL || v[i]->first < first || v[i]->first > last) continue;
    if (v[i]->last > last) return "a local value is read outside its chain";
    if (v[i]->bytes % items || v[i]->offset % ALIGN || v[i]->offset + bytes > g->local_bytes)
      return "a local value lies outside its thread's memory or is not aligned";
    for (int j = 0; j < i; j++)
      if (v[j]->kind == B_LOCAL && v[j]->first >= first && v[j]->first <= last &&
          v[i]->offset < v[j]->offset + v[j]->bytes / items && v[j]->offset < v[i]->offset + bytes)
        return "two local values of a chain overlap";
  }
  return NULL;
}

bool memplan_check(const Graph *g, Str *why) {
  for (int i = 0; i < g->kernels.n; i++) {
    const char *fault = g->kernels.v[i]->chain ? local_fault(g, i, chain_end(g, i)) : NULL;
    if (fault) return fail(why, fault, g->kernels.v[i]->name);
  }
  for (int i = 0; i < g->buffers.n; i++) {
    const Buffer *a = g->buffers.v[i];
    if (a->kind != B_ARENA) continue;
    if (a->offset % ALIGN || a->offset < 0 || a->offset + a->bytes > g->arena_bytes)
      return fail(why, "a buffer lies outside the arena or is not aligned", "plan");
    for (int j = i + 1; j < g->buffers.n; j++) {
      const Buffer *b = g->buffers.v[j];
      if (b->kind == B_ARENA && overlap(a, b) && a->bytes && b->bytes &&
          a->offset < b->offset + b->bytes && b->offset < a->offset + a->bytes)
        return fail(why, "two buffers that are live at once overlap", "plan");
    }
  }
  for (int i = 0; i < g->kernels.n; i++) {
    const Kernel *k = g->kernels.v[i];
    for (int j = 0; j < k->inputs.n; j++) {
      const Buffer *b = k->inputs.v[j].node->buf;
      if (!b) return fail(why, "an input has no buffer", k->name);
      if (b->kind == B_ARENA && (b->first > i || b->last < i))
        return fail(why, "an input is read outside its buffer's life", k->name);
    }
    for (int j = 0; j < k->outputs.n; j++) {
      const Buffer *b = k->outputs.v[j]->buf;
      if (!b) return fail(why, "an output has no buffer", k->name);
      for (int m = 0; m < k->inputs.n; m++)
        if (k->inputs.v[m].node->buf == b && !k->inputs.v[m].aligned)
          return fail(why, "an output overwrites an input that is read elsewhere too", k->name);
      for (int m = 0; m < j; m++)
        if (k->outputs.v[m]->buf == b) return fail(why, "two outputs share a buffer", k->name);
    }
  }
  return true;
}
