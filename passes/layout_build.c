/* A Graph anew in given layouts. In: a layout for every node. Out: the same values; each node is computed as its twin where
 * its primitive can be, else as it is with a permuting view behind it. Views and contractions take operands in any layout,
 * because their maps say where an element is. State variables that are written are kept in their layout, those that are only
 * read stay as they are: backends that pack filters for their products keep what they make of them, so they are packed as they
 * lie, once; where nothing is packed, what is rearranged once is kept. Feeds and fetches stay as the user has them. */
#include "layout.h"
#include <string.h>

typedef struct Build {
  Graph *g;
  bool images;          /* see conv_form */
  const Layout *layout; /* by id of the old nodes */
  Node **own, **twin;   /* by id: as the node was, and in its layout; NULL: not made yet */
  bool *constant;       /* by id: state that the program does not write */
} Build;

static Layout own_layout(int rank) { return layout_channels(rank, 0, false); }

static Layout layout_of(const Build *b, const Node *n) {
  return b->layout[n->id].set ? b->layout[n->id] : own_layout(n->rank);
}

static void twin_dims(const Node *n, const Layout *l, int64_t *dims) {
  for (int i = 0; i < n->rank; i++) dims[i] = n->dims[l->perm[i]];
}

/* Does the layout move more than dimensions of size 1? */
static bool moves_elements(const Node *x, const int8_t *perm) {
  int last = -1;
  for (int i = 0; i < x->rank; i++) {
    if (x->dims[perm[i]] == 1) continue;
    if (perm[i] < last) return true;
    last = perm[i];
  }
  return false;
}

/* Dimension i of the result is dimension perm[i] of x; where only ones move it is a reshape. */
static Node *permute(Graph *g, Node *x, const int8_t *perm) {
  int p[KL_RANK];
  int64_t dims[KL_RANK];
  for (int i = 0; i < x->rank; i++) {
    p[i] = perm[i];
    dims[i] = x->dims[p[i]];
  }
  return moves_elements(x, perm) ? g_permute(g, x, p) : g_reshape(g, x, x->rank, dims);
}

static Node *get_own(Build *b, const Node *n) {
  int8_t back[KL_RANK];
  Layout l = layout_of(b, n);
  if (b->own[n->id]) return b->own[n->id];
  for (int i = 0; i < n->rank; i++) back[l.perm[i]] = (int8_t)i;
  return b->own[n->id] = permute(b->g, b->twin[n->id], back);
}

static Node *get_twin(Build *b, const Node *n) {
  if (b->twin[n->id]) return b->twin[n->id];
  Layout l = layout_of(b, n);
  return b->twin[n->id] = permute(b->g, b->own[n->id], l.perm);
}

static Node *get(Build *b, const Node *n, const Layout *l) {
  Layout has = layout_of(b, n);
  return layout_same(&has, l, n->rank) ? get_twin(b, n) : permute(b->g, get_own(b, n), l->perm);
}

/* ---- one function for each kind: the twin in layout l, or NULL if the node is to stay ---- */

static Node *build_map(Build *b, const Node *n, const Layout *l) {
  Node *in[3];
  int64_t dims[KL_RANK];
  twin_dims(n, l, dims);
  for (int k = 0; k < n->n_in; k++) in[k] = get(b, n->in[k], l);
  Node *r = g_node(b->g, n->prim, n->dtype, n->rank, dims, n->n_in, in);
  if (r) r->i = n->i, r->f = n->f;
  return r;
}

static Node *build_reduce(Build *b, const Node *n, const Layout *l) {
  uint32_t axes = 0;
  int last = -1;
  bool ordered = true;
  for (int i = 0; i < n->rank; i++) {
    int d = l->perm[i];
    if (!(n->i >> d & 1)) continue;
    axes |= 1u << i;
    if (n->in[0]->dims[d] == 1) continue;
    ordered &= d > last;
    last = d;
  }
  if (n->prim != P_ARGMAX) return g_reduce(b->g, n->prim, get(b, n->in[0], l), axes, true);
  return ordered ? g_argmax(b->g, get(b, n->in[0], l), axes, true, n->dtype) : NULL;
}

static Node *build_concat(Build *b, const Node *n, const Layout *l) {
  Node **in = arena_array(b->g->arena, Node *, n->n_in);
  int axis = 0;
  while (l->perm[axis] != n->i) axis++;
  for (int k = 0; k < n->n_in; k++) in[k] = get(b, n->in[k], l);
  return g_concat(b->g, n->n_in, in, axis);
}

static Node *build_reshape(Build *b, const Node *n, const Layout *l) {
  int64_t dims[KL_RANK];
  Layout x = layout_of(b, n->in[0]);
  if (!layout_reshapes(n, &x, l)) return NULL;
  twin_dims(n, l, dims);
  return g_reshape(b->g, get_twin(b, n->in[0]), n->rank, dims);
}

/* Operand k's map for its twin, with the result's loops in the order of l. */
static void twin_map(const Build *b, const Node *n, int k, const Layout *l, AffDim *to) {
  int8_t loop[KL_LOOPS];
  Layout x = layout_of(b, n->in[k]);
  for (int i = 0; i < KL_LOOPS; i++) loop[i] = (int8_t)i;
  for (int i = 0; i < n->rank; i++) loop[l->perm[i]] = (int8_t)i;
  for (int d = 0; d < n->in[k]->rank; d++) {
    to[d] = n->map[k][x.perm[d]];
    if (to[d].l0 >= 0) to[d].l0 = loop[to[d].l0];
    if (to[d].l1 >= 0) to[d].l1 = loop[to[d].l1];
  }
}

static Node *build_view(Build *b, const Node *n, const Layout *l) {
  AffDim map[KL_RANK];
  int64_t dims[KL_RANK];
  Node *x = get_twin(b, n->in[0]);
  twin_dims(n, l, dims);
  twin_map(b, n, 0, l, map);
  view_canon(map, x->rank, dims);
  return g_view(b->g, x, n->rank, dims, map, n->f);
}

/* Is the filter constant, and more than one number for each channel, for a backend that packs filters? */
static bool is_packed(const Build *b, Node *w, const ConvForm *f) {
  if (b->g->channels_last) return false;
  while (w->prim == P_RESHAPE) w = w->in[0];
  return w->prim == P_STATE && !w->n_ia && b->constant[w->id] && f->form != FORM_FILTER &&
         !f->depthwise;
}

static Node *build_contract(Build *b, const Node *n, const Layout *l) {
  AffDim map[2][KL_RANK];
  int64_t ext[KL_LOOPS];
  ConvForm f;
  if (conv_form(b->g, n, b->images, &f)) {
    Node *x = get(b, n->in[f.x], &f.layout[0]);
    if (is_packed(b, n->in[!f.x], &f)) conv_keep_filter(n, &f);
    Node *w = get(b, n->in[!f.x], &f.layout[1]);
    Node *r = conv_build(b->g, n, &f, x, w);
    if (layout_same(&f.layout[2], l, n->rank)) return r;
    int8_t perm[KL_RANK];
    for (int i = 0; i < n->rank; i++)
      for (int j = 0; j < n->rank; j++)
        if (f.layout[2].perm[j] == l->perm[i]) perm[i] = (int8_t)j;
    return permute(b->g, r, perm);
  }
  memcpy(ext, n->ext, (size_t)n->n_loops * sizeof *ext);
  twin_dims(n, l, ext);
  for (int k = 0; k < 2; k++) twin_map(b, n, k, l, map[k]);
  Node *x = get_twin(b, n->in[0]), *w = get_twin(b, n->in[1]);
  return g_contract(b->g, x, w, n->rank, n->n_loops, ext, map[0], map[1]);
}

static int64_t *layout_list(Graph *g, int rank, const Layout *l) {
  int64_t *list = arena_array(g->arena, int64_t, rank);
  for (int d = 0; d < rank; d++) list[d] = l->perm[d];
  return list;
}

static Node *build_state(Build *b, const Node *n, const Layout *l) {
  int64_t dims[KL_RANK];
  if (n->n_ia || b->constant[n->id] || !moves_elements(n, l->perm)) return NULL;
  twin_dims(n, l, dims);
  Node *r = g_state(b->g, n->s, n->dtype, n->rank, dims);
  if (r) r->ia = layout_list(b->g, n->rank, l), r->n_ia = n->rank;
  return r;
}

static Node *build_twin(Build *b, const Node *n, const Layout *l) {
  if (prim_is_map(n->prim)) return build_map(b, n, l);
  if (prim_is_reduce(n->prim)) return build_reduce(b, n, l);
  switch (n->prim) {
  case P_STATE: return build_state(b, n, l);
  case P_CONCAT: return build_concat(b, n, l);
  case P_RESHAPE: return build_reshape(b, n, l);
  case P_VIEW: return build_view(b, n, l);
  case P_CONTRACT: return build_contract(b, n, l);
  default: return NULL;
  }
}

static void build_node(Build *b, Node *n) {
  Layout l = layout_of(b, n);
  bool plain = !b->layout[n->id].set && n->prim != P_CONTRACT;
  for (int k = 0; plain && k < n->n_in; k++) plain = !b->layout[n->in[k]->id].set;
  graph_set_op(b->g, n->op);
  if (!plain && (b->twin[n->id] = build_twin(b, n, &l))) return;
  b->own[n->id] = n;
  if (!b->layout[n->id].set) b->twin[n->id] = n;
}

/* A variable that is read too is written in the layout in which it is read. */
static void write_state(Build *b, int n_old, Node **old, NamedNode *w) {
  const Node *s = NULL;
  for (int i = 0; i < n_old && !s; i++)
    if (old[i]->prim == P_STATE && !strcmp(old[i]->s, w->name)) s = old[i];
  if (s && s->rank == w->node->rank && b->twin[s->id] && b->twin[s->id]->n_ia) {
    Layout l = layout_of(b, s);
    w->layout = layout_list(b->g, s->rank, &l);
    w->node = get(b, w->node, &l);
  } else
    w->node = get_own(b, w->node);
}

void layout_build(Graph *g, bool images, const Layout *layout) {
  Arena *a = arena_scratch();
  Node **old = g->nodes.v;
  int n_old = g->nodes.n;
  const Op *op = g->op;
  Build b = {g,
             images,
             layout,
             arena_array(a, Node *, n_old + 1),
             arena_array(a, Node *, n_old + 1),
             arena_array(a, bool, n_old + 1)};
  for (int i = 0; i < n_old; i++)
    b.constant[i] = old[i]->prim == P_STATE && !state_is_written(g, old[i]->s);
  g->nodes.v = NULL;
  g->nodes.n = g->nodes.cap = 0;
  for (int i = 0; i < n_old; i++) {
    Node *n = old[i];
    build_node(&b, n);
    if (b.own[i] != n) continue;
    for (int k = 0; k < n->n_in; k++) n->in[k] = get_own(&b, n->in[k]);
    vec_add(g->arena, &g->nodes, n);
  }
  for (int i = 0; i < g->writes.n; i++) write_state(&b, n_old, old, &g->writes.v[i]);
  for (int i = 0; i < g->fetches.n; i++) g->fetches.v[i].node = get_own(&b, g->fetches.v[i].node);
  graph_set_op(g, op);
  arena_free(a);
}
