/* Recomputation: less memory for more arithmetic. In: kernels in their order, and g->memory_budget, bytes of the arena (0: this
 * pass does nothing). Out: kernels of which some stand twice, so that the plan fits the budget, or needs as little as found.
 *
 * Most of what a training step holds at its peak are values of the forward pass that wait for the backward pass. A value
 * that waits across the peak may be dropped and computed again just before its next reader (Chen et al., Training deep nets
 * with sublinear memory cost, 2016). Greedy: of all that wait at the peak, those are tried first that free the most bytes
 * for the time that computing them again takes; a step that lowers the peak is kept, others are undone. What a value is
 * computed from must be there then: it waits longer, if that costs less than is gained, or is computed again as well, with
 * what it needs, as far back as that goes. Results stay the same bit for bit. */
#include "recompute.h"
#include <stdlib.h>
#include <string.h>

enum { TRIES = 48, PLANS = 12 };

typedef struct Event { /* a kernel, or before it a value computed again */
  int kernel, value;   /* value -1: the kernel itself */
} Event;

typedef struct Choice {
  int value, split;
  bool deep; /* what it needs and is gone at the peak is computed again too */
  double score;
} Choice;

typedef struct Search {
  Recompute *r;
  Event *events;
  int n_events;
  int *first,
      *last[2];  /* events, by value: made; read, as made first and as computed again; -1: not */
  int64_t *live; /* bytes, by event */
  int64_t peak;
  int at, equal; /* the first event that has the peak; how many have it */
  int *saved, *head, *next;
  bool *gone; /* by value: not live at the peak any more, as it was first made */
  Choice *choices;
  double cost; /* of the last try */
} Search;

/* ---- what is live under the present splits ---- */

static void list_events(Search *s) {
  const Recompute *r = s->r;
  for (int i = 0; i < r->n; i++) s->head[i] = -1;
  for (int v = r->n_values - 1; v >= 0; v--) {
    int i = r->values[v].split;
    if (i == NEVER) continue;
    s->next[v] = s->head[i];
    s->head[i] = v;
  }
  s->n_events = 0;
  for (int i = 0; i < r->n; i++) {
    for (int v = s->head[i]; v >= 0; v = s->next[v]) s->events[s->n_events++] = (Event){i, v};
    s->events[s->n_events++] = (Event){i, -1};
  }
}

static const Reading *reads_of(const Search *s, Event e, int *n) {
  const Step *step = &s->r->steps[e.kernel];
  const Recipe *p = e.value < 0 ? NULL : &s->r->values[e.value].recipe;
  *n = p ? p->reads.n : step->reads.n;
  return p ? p->reads.v : step->reads.v;
}

static bool reads_again(const Search *s, int value, Event e) {
  return s->r->values[value].split <= e.kernel;
}

static void find_lives(Search *s) {
  const Recompute *r = s->r;
  for (int v = 0; v < r->n_values; v++) s->last[0][v] = s->last[1][v] = -1;
  for (int e = 0; e < s->n_events; e++) {
    int n;
    const Reading *reads = reads_of(s, s->events[e], &n);
    for (int i = 0; i < n; i++)
      s->last[reads_again(s, reads[i].value, s->events[e])][reads[i].value] = e;
    if (s->events[e].value >= 0) {
      s->last[1][s->events[e].value] = e;
      continue;
    }
    const Step *step = &r->steps[s->events[e].kernel];
    for (int i = 0; i < step->stores.n; i++) {
      s->first[step->stores.v[i]] = s->last[0][step->stores.v[i]] = e;
      if (r->values[step->stores.v[i]].at_exit) s->last[0][step->stores.v[i]] = s->n_events;
    }
  }
}

/* Bytes of outputs that take the place of an operand: each of its size may have one. */
static int64_t shared_bytes(const Search *s, int e) {
  const Step *step = &s->r->steps[s->events[e].kernel];
  int64_t bytes = 0;
  uint64_t taken = 0;
  for (int i = 0; i < step->stores.n; i++)
    for (int j = 0; j < step->reads.n && j < 64; j++) {
      int u = step->reads.v[j].value;
      bool dies = s->last[reads_again(s, u, s->events[e])][u] == e;
      if ((taken >> j & 1) || !step->reads.v[j].aligned || !dies ||
          s->r->values[u].bytes != s->r->values[step->stores.v[i]].bytes)
        continue;
      taken |= (uint64_t)1 << j;
      bytes += s->r->values[u].bytes;
      break;
    }
  return bytes;
}

static void measure(Search *s) {
  const Recompute *r = s->r;
  list_events(s);
  memset(s->live, 0, sizeof *s->live * (size_t)(s->n_events + 2));
  find_lives(s);
  for (int v = 0; v < r->n_values; v++) {
    s->live[s->first[v]] += r->values[v].bytes;
    s->live[s->last[0][v] + (s->last[0][v] < s->n_events)] -= r->values[v].bytes;
  }
  for (int e = 0; e < s->n_events; e++) {
    int v = s->events[e].value;
    if (v < 0) continue;
    s->live[e] += r->values[v].bytes;
    s->live[s->last[1][v] + 1] -= r->values[v].bytes;
  }
  s->peak = -1;
  for (int e = 0; e < s->n_events; e++) {
    Event x = s->events[e];
    if (e) s->live[e] += s->live[e - 1];
    int64_t now =
        s->live[e] + (x.value < 0 ? arena_workspace(r->g->kernels.v[x.kernel]) - shared_bytes(s, e)
                                  : r->values[x.value].recipe.extra);
    if (now > s->peak) s->peak = now, s->at = e, s->equal = 0;
    s->equal += now == s->peak;
  }
}

/* ---- one step ---- */

/* From kernel `split` on the value is computed again, and what it needs. Returns the bytes that wait longer for it across
 * the peak, or -1 if it cannot be. */
static int64_t set_split(Search *s, int value, int split, bool deep) {
  Stored *values = s->r->values;
  int64_t longer = 0;
  int n = 0, *stack = s->head; /* free between measurements */
  stack[n++] = value;
  while (n > 0) {
    Stored *v = &values[stack[--n]];
    const Recipe *p = &v->recipe;
    if (v->split <= split) continue;
    if (v->at_exit || !p->possible || split > p->latest || split <= v->kernel) return -1;
    if (v->split == NEVER) s->cost += p->cost;
    v->split = split;
    for (int i = 0; i < p->reads.n; i++) {
      int u = p->reads.v[i].value;
      bool again = values[u].split != NEVER || (deep && s->gone[u]);
      if (values[u].split <= split) continue;
      if (again && n == s->r->n_values) return -1;
      if (again)
        stack[n++] = u;
      else if (s->gone[u])
        longer += values[u].bytes;
    }
  }
  return longer;
}

static void save(const Search *s) {
  for (int v = 0; v < s->r->n_values; v++) s->saved[v] = s->r->values[v].split;
}
static void restore(const Search *s) {
  for (int v = 0; v < s->r->n_values; v++) s->r->values[v].split = s->saved[v];
}

static int by_score(const void *a, const void *b) {
  const Choice *x = a, *y = b;
  if (x->score != y->score) return x->score < y->score ? 1 : -1;
  return x->value != y->value ? (x->value > y->value) - (x->value < y->value)
                              : (int)x->deep - (int)y->deep;
}

/* The kernel before which each value that waits at the peak is read next, by value; 0: it does not wait. */
static int *find_waiting(Search *s) {
  const Recompute *r = s->r;
  int *next = s->next;
  for (int v = 0; v < r->n_values; v++) next[v] = 0;
  for (int e = s->n_events - 1; e >= s->at; e--) {
    int n;
    const Reading *reads = reads_of(s, s->events[e], &n);
    for (int i = 0; i < n; i++)
      if (!reads_again(s, reads[i].value, s->events[e]))
        next[reads[i].value] = e == s->at ? 0 : s->events[e].kernel;
  }
  for (int v = 0; v < r->n_values; v++) {
    s->gone[v] = s->last[0][v] < s->at;
    if (s->first[v] >= s->at || s->gone[v]) next[v] = 0;
  }
  return next;
}

static int list_choices(Search *s) {
  const Recompute *r = s->r;
  int n = 0, *next = find_waiting(s);
  save(s);
  for (int v = 0; v < r->n_values; v++)
    for (int deep = 0; next[v] && deep < 2; deep++) {
      if (!r->values[v].bytes || !r->values[v].recipe.possible) break;
      s->cost = 100;
      int64_t longer = set_split(s, v, next[v], deep);
      restore(s);
      if (longer < 0 || longer >= r->values[v].bytes) continue;
      double gain = (double)(r->values[v].bytes - longer);
      s->choices[n++] = (Choice){v, next[v], deep, gain / s->cost};
      if (!longer && !deep) break; /* nothing is gone */
    }
  if (n > 1) qsort(s->choices, (size_t)n, sizeof *s->choices, by_score);
  return n;
}

/* Lowers the peak, or the number of times that it is reached. */
static bool step(Search *s) {
  int64_t peak = s->peak;
  int equal = s->equal, n = list_choices(s);
  for (int i = 0; i < n && i < TRIES; i++) {
    const Choice *c = &s->choices[i];
    if (set_split(s, c->value, c->split, c->deep) >= 0) {
      measure(s);
      if (s->peak < peak || (s->peak == peak && s->equal < equal)) return true;
    }
    restore(s);
  }
  measure(s);
  return false;
}

/* ---- what is given ---- */

static bool is_written(const Graph *g, const Node *n) {
  for (int i = 0; i < g->writes.n; i++)
    if (node_base(g->writes.v[i].node) == n) return true;
  return false;
}

static void find_steps(Recompute *r) {
  Graph *g = r->g;
  for (int i = 0; i < g->nodes.n; i++) r->value_of[i] = -1;
  for (int i = 0; i < r->n; i++)
    for (int j = 0; j < g->kernels.v[i]->outputs.n; j++)
      r->value_of[g->kernels.v[i]->outputs.v[j]->id] = i; /* the kernel, for a moment */
  for (int i = 0; i < g->nodes.n; i++) {
    Node *x = g->nodes.v[i];
    if (r->value_of[i] < 0) continue;
    int kernel = r->value_of[i];
    vec_add(r->a, &r->steps[kernel].stores, r->n_values);
    r->value_of[i] = r->n_values;
    bool elsewhere = is_written(g, x) || g->kernels.v[kernel]->constant;
    r->values[r->n_values++] =
        (Stored){.node = x,
                 .kernel = kernel,
                 .split = NEVER,
                 .at_exit = elsewhere,
                 .bytes = elsewhere ? 0 : node_numel(x) * dtype_info[x->dtype].size};
  }
  for (int i = 0; i < g->fetches.n; i++) {
    int v = r->value_of[node_base(g->fetches.v[i].node)->id];
    if (v >= 0) r->values[v].at_exit = true;
  }
  for (int i = 0; i < r->n; i++)
    for (int j = 0; j < g->kernels.v[i]->inputs.n; j++) {
      const KernelInput *in = &g->kernels.v[i]->inputs.v[j];
      int v = r->value_of[node_base(in->node)->id];
      if (v >= 0) vec_add(r->a, &r->steps[i].reads, ((Reading){v, in->aligned}));
    }
}

/* The first kernel that replaces each state. */
static void find_changes(Recompute *r) {
  const Graph *g = r->g;
  Map *first = map_new(r->a); /* name -> kernel + 1 */
  for (int i = 0; i < g->writes.n; i++) {
    int v = r->value_of[node_base(g->writes.v[i].node)->id];
    if (v >= 0) map_put(first, g->writes.v[i].name, (void *)(intptr_t)(r->values[v].kernel + 1));
  }
  for (int i = 0; i < g->nodes.n; i++) {
    const Node *x = g->nodes.v[i];
    int at = x->prim == P_STATE ? (int)(intptr_t)map_get(first, x->s) : 0;
    r->changed[i] = at ? at - 1 : NEVER;
  }
}

Recompute recompute_of(Graph *g, Arena *a) {
  Recompute r = {.g = g, .a = a, .n = g->kernels.n};
  int most = g->nodes.n + 1;
  r.steps = arena_array(a, Step, r.n + 1);
  r.values = arena_array(a, Stored, most);
  r.value_of = arena_array(a, int, most);
  r.changed = arena_array(a, int, most);
  find_steps(&r);
  find_changes(&r);
  return r;
}

/* False: nothing more is found. */
static bool search(Graph *g, int64_t target) {
  Recompute r = recompute_of(g, arena_scratch());
  int changes = 0;
  for (int v = 0; v < r.n_values; v++) find_recipe(&r, &r.values[v]);
  Search s = {.r = &r};
  s.events = arena_array(r.a, Event, r.n + r.n_values + 1);
  s.live = arena_array(r.a, int64_t, r.n + r.n_values + 3);
  s.first = arena_array(r.a, int, r.n_values + 1);
  for (int i = 0; i < 2; i++) s.last[i] = arena_array(r.a, int, r.n_values + 1);
  s.saved = arena_array(r.a, int, r.n_values + 1);
  s.next = arena_array(r.a, int, r.n_values + 1);
  s.head = arena_array(r.a, int, r.n + r.n_values + 1);
  s.gone = arena_array(r.a, bool, r.n_values + 1);
  s.choices = arena_array(r.a, Choice, 2 * r.n_values + 1);
  measure(&s);
  while (s.peak > target && step(&s)) changes++;
  if (changes) apply_splits(&r);
  bool found = changes || s.peak <= target;
  arena_free(r.a);
  return found;
}

void pass_recompute(Graph *g) {
  int64_t target = g->memory_budget;
  for (int i = 0; target > 0 && i < PLANS; i++) {
    pass_memplan(g);
    int64_t excess =
        g->arena_bytes - g->memory_budget; /* with gaps, and what the search does not see */
    if (excess <= 0) return;
    if (i) target -= excess > g->memory_budget / 128 ? excess : g->memory_budget / 128 + 1;
    if (!search(g, target < 1 ? 1 : target)) return;
  }
}
