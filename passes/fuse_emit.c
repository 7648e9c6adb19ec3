/* Groups to Kernels. In: groups that cannot merge further. Out: g->kernels with nodes, inputs, outputs and names, in running
 * order.
 *
 * Order: topological, and among the kernels that are ready the one whose last value comes first in the program. Kernels that
 * write state wait, as far as possible, for the kernels that read that state's old value and for those that check
 * data, so that updates can happen in place and a failed check leaves state as it was. */
#include "fuse.h"
#include <assert.h>
#include <ctype.h>
#include <stdlib.h>
#include <string.h>

static int by_id(const void *a, const void *b) {
  const Node *x = *(Node *const *)a, *y = *(Node *const *)b;
  return (x->id > y->id) - (x->id < y->id);
}

static void sort_nodes(Node **v, int n) {
  if (n > 1) qsort(v, (size_t)n, sizeof *v, by_id);
}

/* ---- names ---- */

static void add_word(Str *s, const char *word) {
  str_add(s, "_");
  for (; *word; word++) {
    char c = *word;
    str_addn(s, isalnum((unsigned char)c) ? &c : "_", 1);
  }
}

/* The operator types of the nodes that do something, each once, at most four, the last always among them. */
static const char *name_of(Arena *a, const Group *k, int id) {
  const char *words[4];
  int n = 0;
  Str s;
  str_init(&s, a);
  str_fmt(&s, "k%02d", id);
  for (int i = 0; i < k->nodes.n; i++) {
    const Node *x = k->nodes.v[i];
    char class = prim_info[x->prim].class;
    if (class == 'S' && (n > 0 || i + 1 < k->nodes.n)) continue;
    const char *word = x->op ? x->op->type : prim_info[x->prim].name;
    bool had = false;
    for (int j = 0; j < n; j++) had |= !strcmp(words[j], word);
    if (had) continue;
    words[n < 4 ? n : 3] = word;
    n += n < 4;
  }
  for (int i = 0; i < n; i++) add_word(&s, words[i]);
  return s.s;
}

/* ---- interfaces ---- */

static bool *mark_outputs(const Fuse *f) {
  bool *out = arena_array(f->a, bool, f->n);
  for (int i = 0; i < f->n; i++) out[i] = f->target[i];
  for (int i = 0; i < f->groups.n; i++) {
    const Group *k = f->groups.v[i];
    for (int j = 0; !k->dead && j < k->inputs.n; j++)
      out[node_base(k->inputs.v[j].node)->id] = true;
    if (k->kind == K_CONTRACT && k->writes_state) out[k->core->id] = true;
  }
  return out;
}

/* The sweep in which each node of a row kernel can be computed first. */
static void find_levels(const Kernel *k, int *level) {
  for (int i = 0; i < k->nodes.n; i++) {
    const Node *n = k->nodes.v[i];
    level[n->id] = 0;
    for (int j = 0; j < n->n_in; j++)
      if (level[n->in[j]->id] > level[n->id]) level[n->id] = level[n->in[j]->id];
    level[n->id] += kernel_sweeps(k, n);
  }
}

static bool full_shape(const Kernel *k, const Node *n) {
  return n->rank == k->rank &&
         (!k->rank || !memcmp(n->dims, k->ext, (size_t)k->rank * sizeof *k->ext));
}

typedef struct Timing {
  int last_sweep;                 /* of the kernel */
  int full_min, row_min, row_max; /* levels of the outputs of full and of row shape */
} Timing;

static Timing timing_of(const Fuse *f, const Kernel *k) {
  Timing t = {0, 1 << 30, 1 << 30, 0};
  int *level = arena_array(f->a, int, f->n);
  find_levels(k, level);
  for (int i = 0; i < k->nodes.n; i++) {
    const Node *n = k->nodes.v[i];
    int at = kernel_sweeps(k, n) ? level[n->in[0]->id] : full_shape(k, n) ? level[n->id] : 0;
    if (at > t.last_sweep) t.last_sweep = at;
  }
  for (int i = 0; i < k->outputs.n; i++) {
    const Node *n = k->outputs.v[i];
    int at = level[n->id];
    if (full_shape(k, n)) {
      if (at < t.full_min) t.full_min = at;
    } else {
      if (at < t.row_min) t.row_min = at;
      if (at > t.row_max) t.row_max = at;
    }
  }
  return t;
}

/* May an output take the input's buffer? Only if nothing is read from it after the first store: of a contraction only if it is state
 * that the epilogue updates, and core is stored elsewhere. */
static bool aligned(const Fuse *f, const Group *s, const Kernel *k, const Use *u, const Timing *t) {
  if (k->kind == K_SCATTER) {
    Node **in = k->core->in, *base = node_base(in[0]), *rows = scatter_rows(k->core);
    return u->node == in[0] && node_base(in[1]) != base && node_base(in[2]) != base &&
           (!rows || node_base(rows) != base);
  }
  if (k->kind == K_CONTRACT)
    return s->writes_state && !f->state_write[k->core->id] && u->node->prim == P_STATE &&
           u->at == AT_POINT && full_shape(k, u->node);
  if (k->kind != K_LOOP) return false;
  if (u->at == AT_POINT)
    return full_shape(k, u->node) && (!k->reduce || t->full_min >= t->last_sweep);
  return u->at == AT_ROW && t->row_min == t->row_max;
}

static Kernel *kernel_of(Fuse *f, Group *s, const bool *out) {
  Arena *a = f->g->arena;
  Kernel *k = arena_new_of(a, Kernel);
  k->kind = s->kind;
  k->core = s->core;
  k->rank = s->rank;
  memcpy(k->ext, s->ext, sizeof k->ext);
  k->reduce = s->reduce;
  sort_nodes(s->nodes.v, s->nodes.n);
  sort_nodes(s->roots.v, s->roots.n);
  for (int i = 0; i < s->nodes.n; i++) vec_add(a, &k->nodes, s->nodes.v[i]);
  /* contractions: the end of the chain first, of the core's type */
  int first = -1;
  for (int i = 0; i < s->roots.n && k->kind == K_CONTRACT; i++)
    if (s->roots.v[i]->dtype == s->core->dtype && out[s->roots.v[i]->id]) first = i;
  if (first >= 0) vec_add(a, &k->outputs, s->roots.v[first]);
  for (int i = 0; i < s->roots.n; i++) {
    const Node *r = s->roots.v[i];
    bool held = r == s->core && (k->kind != K_CONTRACT || first < 0);
    if (i != first && (out[r->id] || held)) vec_add(a, &k->outputs, s->roots.v[i]);
  }
  Timing t = {0};
  if (k->reduce) t = timing_of(f, k);
  for (int i = 0; i < s->inputs.n; i++) {
    Use *u = &s->inputs.v[i];
    vec_add(a, &k->inputs, ((KernelInput){u->node, aligned(f, s, k, u, &t), false}));
  }
  return k;
}

/* ---- order ---- */

typedef struct Edges {
  VEC(int) hard, soft; /* groups that must, or should, come first */
} Edges;

static void add_soft_edges(const Fuse *f, Edges *e) {
  const Graph *g = f->g;
  Map *writer = map_new(f->a); /* state -> 1 + group */
  for (int i = 0; i < g->writes.n; i++) {
    const Group *k = f->owner[node_base(g->writes.v[i].node)->id];
    if (k) map_put(writer, g->writes.v[i].name, (void *)(intptr_t)(k->visit + 1));
  }
  for (int i = 0; i < f->groups.n; i++) {
    const Group *k = f->groups.v[i];
    for (int j = 0; j < k->inputs.n; j++) {
      const Node *b = node_base(k->inputs.v[j].node);
      int w = b->prim == P_STATE ? (int)(intptr_t)map_get(writer, b->s) - 1 : -1;
      if (w >= 0 && w != i) vec_add(f->a, &e[w].soft, i);
    }
    for (int j = 0; k->has_check && j < f->groups.n; j++)
      if (j != i && f->groups.v[j]->writes_state) vec_add(f->a, &e[j].soft, i);
  }
}

static Edges *find_edges(const Fuse *f) {
  Edges *e = arena_array(f->a, Edges, f->groups.n);
  for (int i = 0; i < f->groups.n; i++) f->groups.v[i]->visit = i;
  for (int i = 0; i < f->groups.n; i++) {
    const Group *k = f->groups.v[i];
    for (int j = 0; j < k->inputs.n; j++) {
      const Group *p = f->owner[node_base(k->inputs.v[j].node)->id];
      if (p) vec_add(f->a, &e[i].hard, p->visit);
    }
  }
  add_soft_edges(f, e);
  return e;
}

/* The update of a state, which a program has at its end, runs where the gradient is made. */
static int key_of(const Group *k) {
  int key = 0;
  if (k->kind == K_CONTRACT && k->writes_state) return k->core->id;
  for (int i = 0; i < k->roots.n; i++)
    if (k->roots.v[i]->id > key) key = k->roots.v[i]->id;
  return key;
}

/* Edges from groups that have not run. */
static int open_edges(const int *v, int n, const bool *done) {
  int open = 0;
  for (int i = 0; i < n; i++) open += !done[v[i]];
  return open;
}

void emit_kernels(Fuse *f) {
  Graph *g = f->g;
  int kept = 0;
  for (int i = 0; i < f->groups.n; i++)
    if (!f->groups.v[i]->dead) f->groups.v[kept++] = f->groups.v[i];
  f->groups.n = kept;
  bool *out = mark_outputs(f), *done = arena_array(f->a, bool, kept);
  Edges *e = find_edges(f);
  int *key = arena_array(f->a, int, kept);
  for (int i = 0; i < kept; i++) key[i] = key_of(f->groups.v[i]);
  g->kernels.n = 0;
  for (int step = 0; step < kept; step++) {
    int best = -1;
    bool best_waits = false;
    for (int i = 0; i < kept; i++) {
      if (done[i] || open_edges(e[i].hard.v, e[i].hard.n, done)) continue;
      bool waits = open_edges(e[i].soft.v, e[i].soft.n, done) > 0;
      if (best >= 0 && (waits != best_waits ? waits : key[i] >= key[best])) continue;
      best = i;
      best_waits = waits;
    }
    assert(best >= 0);
    Kernel *k = kernel_of(f, f->groups.v[best], out);
    k->id = step;
    k->name = name_of(g->arena, f->groups.v[best], step);
    vec_add(g->arena, &g->kernels, k);
    done[best] = true;
  }
}
