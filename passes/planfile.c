/* The memory plan as text, for people and for tests/plan_check.c, which verifies it without any of this code. In: a Graph
 * after memplan. Out, a line each:
 *
 *   plan kernels N align 64 bound BYTES
 *   memory M KIND BYTES ["NAME"]        a piece of memory: 0 is the arena; state, feed and data are bound at run time; kept
 *                                       holds from run to run what constant kernels made; local: each thread has one item's
 *                                       part of it at a time
 *   value ID memory M at OFFSET bytes N kernels FIRST..LAST WHAT       %ID of the graph's text form; the kernels between
 *                                       which it is needed (-1: from the start; the number of kernels: to the exit)
 *   alias ID of ID                      another shape of the same bytes
 *   kernel I NAME [constant]            and what it does; constant: not in later runs
 *   read ID [aligned]                   aligned: only at the index that is written, so it may be overwritten in place
 *   write ID
 *   work at OFFSET bytes N              its workspace in the arena
 *   copy ID memory M                    at the exit, to a state
 *   keep ID                             fetched, or a state's new value: read at the exit
 *
 * Comments (#) say what the peak is made of. */
#include "rewrite.h"
#include <stdlib.h>
#include <string.h>

typedef struct PlanText {
  const Graph *g;
  Str *out;
  int *first, *last; /* kernels, by node id; first is -2 for what is not in memory */
} PlanText;

static long long bytes_of(const Node *n) {
  return (long long)node_numel(n) * dtype_info[n->dtype].size;
}

static const char *what_is(const Node *n) { return n->op ? n->op->type : prim_info[n->prim].name; }

static void use(PlanText *t, Node *n, int kernel) {
  Node *b = node_base(n);
  if (t->first[b->id] == -2) t->first[b->id] = -1;
  if (t->last[b->id] < kernel) t->last[b->id] = kernel;
}

static bool at_exit(const NamedNode *w) {
  const Node *b = node_base(w->node);
  return !(b->prim == P_STATE && !strcmp(b->s, w->name)); /* else it stays as it is */
}

static void find_lives(PlanText *t) {
  const Graph *g = t->g;
  for (int i = 0; i < g->nodes.n; i++) t->first[i] = t->last[i] = -2;
  for (int i = 0; i < g->kernels.n; i++) {
    const Kernel *k = g->kernels.v[i];
    for (int j = 0; j < k->inputs.n; j++) use(t, k->inputs.v[j].node, i);
    for (int j = 0; j < k->outputs.n; j++) {
      int id = k->outputs.v[j]->id;
      t->first[id] = t->last[id] = i;
    }
  }
  for (int i = 0; i < g->writes.n; i++)
    if (at_exit(&g->writes.v[i])) use(t, g->writes.v[i].node, g->kernels.n);
  for (int i = 0; i < g->fetches.n; i++) use(t, g->fetches.v[i].node, g->kernels.n);
}

static int memory_of(const Buffer *b) { return b->kind == B_ARENA ? 0 : 1 + b->id; }

static void add_memory(const Graph *g, Str *o) {
  static const char *const kind[] = {"arena", "feed", "state", "data", "kept", "local"};
  str_fmt(o, "memory 0 arena %lld\n", (long long)g->arena_bytes);
  for (int i = 0; i < g->buffers.n; i++) {
    const Buffer *b = g->buffers.v[i];
    if (b->kind == B_ARENA) continue;
    str_fmt(o, "memory %d %s %lld ", memory_of(b), kind[b->kind], (long long)b->bytes);
    str_json(b->name ? b->name : "", o);
    str_add(o, "\n");
  }
}

static void add_values(PlanText *t) {
  for (int i = 0; i < t->g->nodes.n; i++) {
    Node *n = t->g->nodes.v[i], *b = node_base(n);
    if (t->first[b->id] == -2) continue;
    if (b != n) {
      str_fmt(t->out, "alias %d of %d\n", n->id, b->id);
      continue;
    }
    bool arena = n->buf->kind == B_ARENA;
    str_fmt(t->out, "value %d memory %d at %lld bytes %lld kernels %d..%d %s\n", n->id,
            memory_of(n->buf), arena ? (long long)n->buf->offset : 0, bytes_of(n), t->first[i],
            t->last[i], what_is(n));
  }
}

static void add_kernel(const Kernel *k, Str *o) {
  str_fmt(o, "kernel %d %s%s\n", k->id, k->name, k->constant ? " constant" : "");
  for (int i = 0; i < k->inputs.n; i++)
    str_fmt(o, "read %d%s\n", k->inputs.v[i].node->id, k->inputs.v[i].aligned ? " aligned" : "");
  for (int i = 0; i < k->outputs.n; i++) str_fmt(o, "write %d\n", k->outputs.v[i]->id);
  if (k->ws && k->ws->kind == B_ARENA)
    str_fmt(o, "work at %lld bytes %lld\n", (long long)k->ws->offset, (long long)k->ws->bytes);
}

static void add_exit(const Graph *g, Str *o) {
  for (int i = 0; i < g->writes.n; i++) {
    const NamedNode *w = &g->writes.v[i];
    if (!at_exit(w)) continue;
    const Buffer *from = node_base(w->node)->buf, *to = NULL;
    for (int j = 0; j < g->copies.n && !to; j++)
      if (g->copies.v[j].from == from && !strcmp(g->copies.v[j].to->name, w->name))
        to = g->copies.v[j].to;
    if (to)
      str_fmt(o, "copy %d memory %d\n", w->node->id, memory_of(to));
    else
      str_fmt(o, "keep %d\n", w->node->id);
  }
  for (int i = 0; i < g->fetches.n; i++) str_fmt(o, "keep %d\n", g->fetches.v[i].node->id);
}

/* ---- what the peak is made of ---- */

static int peak_kernel(const Graph *g) {
  int peak = 0;
  int64_t most = -1;
  for (int k = 0; k < g->kernels.n; k++) {
    int64_t live = 0;
    for (int i = 0; i < g->buffers.n; i++) {
      const Buffer *b = g->buffers.v[i];
      if (b->kind == B_ARENA && b->first <= k && k <= b->last) live += b->bytes;
    }
    if (live > most) most = live, peak = k;
  }
  return peak;
}

static int by_bytes(const void *a, const void *b) {
  const Node *x = *(Node *const *)a, *y = *(Node *const *)b;
  long long bx = bytes_of(x), by = bytes_of(y);
  return bx != by ? (bx < by) - (bx > by) : (x->id > y->id) - (x->id < y->id);
}

static void add_peak(PlanText *t, Arena *a) {
  enum { MOST = 40 };
  const Graph *g = t->g;
  if (!g->kernels.n) return;
  int at = peak_kernel(g), n = 0;
  const Kernel *k = g->kernels.v[at];
  Node **live = arena_array(a, Node *, g->nodes.n + 1);
  for (int i = 0; i < g->nodes.n; i++) {
    Node *x = g->nodes.v[i];
    if (t->first[i] != -2 && x->buf->kind == B_ARENA && t->first[i] <= at && t->last[i] >= at)
      live[n++] = x;
  }
  if (n > 1) qsort(live, (size_t)n, sizeof *live, by_bytes);
  str_fmt(t->out, "# most is live in kernel %d, %s: workspace %lld, %d values\n", at, k->name,
          (long long)k->workspace, n);
  for (int i = 0; i < n && i < MOST; i++)
    str_fmt(t->out, "#   %12lld  %%%d %s %s, kernels %d..%d\n", bytes_of(live[i]), live[i]->id,
            what_is(live[i]), dims_text(live[i]->rank, live[i]->dims), t->first[live[i]->id],
            t->last[live[i]->id]);
}

void plan_print(const Graph *g, Str *out) {
  Arena *a = arena_scratch();
  PlanText t = {g, out, arena_array(a, int, g->nodes.n + 1), arena_array(a, int, g->nodes.n + 1)};
  for (int i = 0; i < g->nodes.n; i++) g->nodes.v[i]->id = i;
  find_lives(&t);
  str_fmt(out, "plan kernels %d align 64 bound %lld\n", g->kernels.n, (long long)g->lower_bound);
  add_peak(&t, a);
  add_memory(g, out);
  add_values(&t);
  for (int i = 0; i < g->kernels.n; i++) add_kernel(g->kernels.v[i], out);
  add_exit(g, out);
  arena_free(a);
}
