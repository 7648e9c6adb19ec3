/* The Graph: nodes, sources and maps. In: operands and payloads from the expansions; out: a node appended to the graph,
 * with its shape computed, or NULL with one diagnostic. A NULL operand gives NULL without a word, so that an
 * expansion needs one check at its end.
 *
 * In a shapes_only graph a dimension may be -1, unknown: it broadcasts with anything, arithmetic on it gives -1, and
 * equality checks against it pass. Views are built in gview.c, contractions in gcontract.c, the rest in gindex.c. */
#include "ir.h"
#include <string.h>

const PrimInfo prim_info[P_N] = {
#define PRIM(id, text, class, n_in, meaning) {text, class, n_in, meaning},
#include "prims.def"
#undef PRIM
};

bool prim_is_map(Prim p) { return prim_info[p].class == 'M'; }
bool prim_is_reduce(Prim p) { return prim_info[p].class == 'R'; }

Graph *graph_new(const Program *p, bool shapes_only) {
  Arena *a = arena_scratch();
  Graph *g = arena_new_of(a, Graph);
  g->arena = a;
  g->prog = p;
  g->shapes_only = shapes_only;
  return g;
}

void graph_free(Graph *g) {
  if (g) arena_free(g->arena);
}

void graph_set_op(Graph *g, const Op *op) { g->op = op; }

void graph_number(Graph *g) {
  for (int i = 0; i < g->nodes.n; i++) {
    g->nodes.v[i]->id = i;
    g->nodes.v[i]->n_uses = 0;
  }
  for (int i = 0; i < g->nodes.n; i++)
    for (int k = 0; k < g->nodes.v[i]->n_in; k++) g->nodes.v[i]->in[k]->n_uses++;
  for (int i = 0; i < g->writes.n; i++) g->writes.v[i].node->n_uses++;
  for (int i = 0; i < g->fetches.n; i++) g->fetches.v[i].node->n_uses++;
}

const char *g_who(const Graph *g, Prim p) { return g->op ? g->op->type : prim_info[p].name; }

int64_t node_numel(const Node *n) {
  int64_t r = 1;
  bool unknown = false;
  for (int d = 0; d < n->rank; d++) {
    if (n->dims[d] == 0) return 0;
    if (n->dims[d] < 0)
      unknown = true;
    else
      r *= n->dims[d];
  }
  return unknown ? -1 : r;
}

bool node_same_shape(const Node *a, const Node *b) {
  return a->rank == b->rank &&
         (!a->rank || !memcmp(a->dims, b->dims, (size_t)a->rank * sizeof *a->dims));
}

/* Unknown dimensions count as 1; where they are not allowed dims_numel finds them negative. */
static bool dims_ok(const Graph *g, Prim p, DType t, int rank, const int64_t *dims) {
  int64_t known[KL_RANK] = {0}, n;
  if (rank < 0 || rank > KL_RANK)
    return err_set(E_SHP_002, "%s: a tensor would have rank %d; at most %d is allowed", g_who(g, p),
                   rank, KL_RANK);
  for (int d = 0; d < rank; d++) known[d] = g->shapes_only && dims[d] == -1 ? 1 : dims[d];
  return dims_numel(t, rank, known, &n);
}

Node *g_node(Graph *g, Prim p, DType t, int rank, const int64_t *dims, int n_in, Node *const *in) {
  for (int k = 0; k < n_in; k++)
    if (!in[k]) return NULL;
  if (!dims_ok(g, p, t, rank, dims)) return NULL;
  Node *n = arena_new_of(g->arena, Node);
  n->prim = p;
  n->dtype = t;
  n->rank = rank;
  if (rank) memcpy(n->dims, dims, (size_t)rank * sizeof *dims);
  n->n_in = n_in;
  if (n_in) n->in = arena_dup(g->arena, in, (size_t)n_in * sizeof *in);
  n->op = g->op;
  n->id = g->nodes.n;
  vec_add(g->arena, &g->nodes, n);
  return n;
}

Node *g_clone_with(Graph *g, const Node *n, Node *const *in) {
  Node *c = g_node(g, n->prim, n->dtype, n->rank, n->dims, n->n_in, in);
  if (!c) return NULL;
  c->i = n->i;
  c->f = n->f;
  c->s = n->s;
  c->n_ia = n->n_ia;
  c->ia = n->ia;
  c->map[0] = n->map[0];
  c->map[1] = n->map[1];
  c->n_loops = n->n_loops;
  c->ext = n->ext;
  c->data = n->data;
  c->custom = n->custom;
  c->op = n->op;
  return c;
}

/* ---- sources ---- */

Node *g_const(Graph *g, DType t, double v) { return g_full(g, t, v, 0, NULL); }

Node *g_full(Graph *g, DType t, double v, int rank, const int64_t *dims) {
  if (!dtype_is_float(t)) {
    int64_t i = 0;
    Tensor one = {.dtype = DT_INT64, .data = &i};
    tensor_set(&one, 0, v);
    return g_full_int(g, t, i, rank, dims);
  }
  Node *n = g_node(g, P_CONST, t, rank, dims, 0, NULL);
  if (n) n->f = v;
  return n;
}

Node *g_full_int(Graph *g, DType t, int64_t v, int rank, const int64_t *dims) {
  if (dtype_is_float(t)) return g_full(g, t, (double)v, rank, dims);
  Node *n = g_node(g, P_CONST, t, rank, dims, 0, NULL);
  if (n) n->i = t == DT_BOOL ? v != 0 : v;
  return n;
}

Node *g_data(Graph *g, DType t, int rank, const int64_t *dims, const void *data, const char *name) {
  Node *n = g_node(g, P_DATA, t, rank, dims, 0, NULL);
  if (!n) return NULL;
  n->s = arena_str(g->arena, name ? name : "");
  n->data = arena_dup(g->arena, data, (size_t)node_numel(n) * (size_t)dtype_info[t].size);
  return n;
}

static Node *named(Graph *g, Prim p, const char *name, DType t, int rank, const int64_t *dims) {
  Node *n = g_node(g, p, t, rank, dims, 0, NULL);
  if (n) n->s = arena_str(g->arena, name);
  return n;
}

Node *g_feed(Graph *g, const char *name, DType t, int rank, const int64_t *dims) {
  return named(g, P_FEED, name, t, rank, dims);
}

Node *g_state(Graph *g, const char *name, DType t, int rank, const int64_t *dims) {
  return named(g, P_STATE, name, t, rank, dims);
}

Node *g_iota(Graph *g, DType t, int rank, const int64_t *dims, int axis) {
  if (axis < 0 || axis >= rank) {
    err_set(E_SHP_003, "%s: axis %d of a tensor of rank %d", g_who(g, P_IOTA), axis, rank);
    return NULL;
  }
  Node *n = g_node(g, P_IOTA, t, rank, dims, 0, NULL);
  if (n) n->i = axis;
  return n;
}

Node *g_random(Graph *g, DType t, int rank, const int64_t *dims, int64_t seed, int64_t stream,
               bool fixed) {
  if (!dtype_is_float(t)) {
    err_set(E_TYP_002, "%s: random numbers are made as floating-point types, not %s",
            g_who(g, P_RANDOM), dtype_info[t].name);
    return NULL;
  }
  Node *n = g_node(g, P_RANDOM, t, rank, dims, 0, NULL);
  if (!n) return NULL;
  n->n_ia = 3;
  n->ia = arena_dup(g->arena, (int64_t[]){seed, stream, fixed}, 3 * sizeof(int64_t));
  return n;
}

/* ---- maps ---- */

Node *g_map1(Graph *g, Prim p, Node *x) {
  if (!x) return NULL;
  if (p == P_CAST || prim_info[p].n_in != 1 || !prim_is_map(p)) {
    err_set(E_ARG_002, "g_map1 of `%s`", prim_info[p].name);
    return NULL;
  }
  if (!dtype_is_float(x->dtype)) {
    if (p == P_FLOOR) return x;
    err_set(E_TYP_002, "%s: %s is not a floating-point tensor", g_who(g, p),
            shape_text(x->dtype, x->rank, x->dims));
    return NULL;
  }
  return g_node(g, p, x->dtype, x->rank, x->dims, 1, &x);
}

/* The common size of two dimensions, or -2. */
static int64_t common_dim(int64_t a, int64_t b) {
  if (a == b || b == 1) return a;
  if (a == 1) return b;
  if (a == -1) return b;
  return b == -1 ? a : -2;
}

/* dims of all n operands together, aligned at the last dimension; false with E-SHP-001. */
static bool broadcast_dims(Graph *g, Prim p, int n, Node *const *x, int *rank, int64_t *dims) {
  *rank = 0;
  for (int k = 0; k < n; k++)
    if (x[k]->rank > *rank) *rank = x[k]->rank;
  for (int d = 0; d < *rank; d++) {
    dims[d] = 1;
    for (int k = 0; k < n; k++) {
      int at = d - (*rank - x[k]->rank);
      if (at < 0) continue;
      int64_t both = common_dim(dims[d], x[k]->dims[at]);
      if (both == -2) {
        err_set(E_SHP_001, "%s: %s and %s do not broadcast (dimension %d: %lld vs %lld)",
                g_who(g, p), shape_text(x[0]->dtype, x[0]->rank, x[0]->dims),
                shape_text(x[k]->dtype, x[k]->rank, x[k]->dims), d - *rank, (long long)dims[d],
                (long long)x[k]->dims[at]);
        err_help("From the right, dimensions must be equal or one of them 1.");
        return false;
      }
      dims[d] = both;
    }
  }
  return true;
}

static bool same_type(Graph *g, Prim p, const Node *x, const Node *y) {
  if (x->dtype == y->dtype) return true;
  err_set(E_TYP_001, "%s: operands are %s and %s", g_who(g, p),
          shape_text(x->dtype, x->rank, x->dims), shape_text(y->dtype, y->rank, y->dims));
  err_help("Insert a cast so that both have one element type.");
  return false;
}

Node *g_map2(Graph *g, Prim p, Node *x, Node *y) {
  int rank;
  int64_t dims[KL_RANK];
  Node *in[2] = {x, y};
  if (!x || !y || !same_type(g, p, x, y)) return NULL;
  if (prim_info[p].n_in != 2 || !prim_is_map(p)) {
    err_set(E_ARG_002, "g_map2 of `%s`", prim_info[p].name);
    return NULL;
  }
  if (x->dtype == DT_BOOL && (p == P_DIV || p == P_MOD || p == P_POW)) {
    err_set(E_TYP_002, "%s: `%s` is not defined for bool", g_who(g, p), prim_info[p].name);
    return NULL;
  }
  if (!broadcast_dims(g, p, 2, in, &rank, dims)) return NULL;
  for (int k = 0; k < 2; k++) in[k] = g_expand_to(g, in[k], rank, dims);
  bool compares = p == P_LT || p == P_LE || p == P_EQ;
  return g_node(g, p, compares ? DT_BOOL : x->dtype, rank, dims, 2, in);
}

Node *g_map2c(Graph *g, Prim p, Node *x, double c) {
  return x ? g_map2(g, p, x, g_full(g, x->dtype, c, x->rank, x->dims)) : NULL;
}

Node *g_select(Graph *g, Node *c, Node *x, Node *y) {
  int rank;
  int64_t dims[KL_RANK];
  Node *in[3] = {c, x, y};
  if (!c || !x || !y || !same_type(g, P_SELECT, x, y)) return NULL;
  if (c->dtype != DT_BOOL) {
    err_set(E_TYP_002, "%s: the condition is %s, not bool", g_who(g, P_SELECT),
            shape_text(c->dtype, c->rank, c->dims));
    return NULL;
  }
  if (!broadcast_dims(g, P_SELECT, 3, in, &rank, dims)) return NULL;
  for (int k = 0; k < 3; k++) in[k] = g_expand_to(g, in[k], rank, dims);
  return g_node(g, P_SELECT, x->dtype, rank, dims, 3, in);
}

Node *g_cast(Graph *g, Node *x, DType t) {
  if (!x || x->dtype == t) return x;
  if (t < 0 || t >= DT_N) {
    err_set(E_TYP_002, "%s: cast to an unknown element type", g_who(g, P_CAST));
    return NULL;
  }
  return g_node(g, P_CAST, t, x->rank, x->dims, 1, &x);
}

int kernel_input(const Kernel *k, const Node *n) {
  for (;; n = n->in[0]) {
    for (int i = 0; i < k->inputs.n; i++) {
      const Node *in = k->inputs.v[i].node;
      while (in != n && in->prim == P_RESHAPE) in = in->in[0];
      if (in == n) return i;
    }
    if (n->prim != P_RESHAPE) return -1;
  }
}

Node *scatter_rows(const Node *n) {
  const Node *v = n->in[1];
  if (v->prim != P_VIEW || node_numel(v) <= node_numel(v->in[0])) return NULL;
  Node *x = v->in[0];
  int64_t rows = 1;
  for (int d = 0, l = -1; d < x->rank; d++) {
    const AffDim *m = &v->map[0][d];
    if (m->l0 < 0 && m->l1 < 0 && m->off == 0 && x->dims[d] == 1) continue;
    if (m->l0 <= l || m->l0 > n->i || !aff_is_loop(m, m->l0)) return NULL;
    l = m->l0;
    if (v->dims[l] != x->dims[d]) return NULL;
    if (l < n->i) rows *= x->dims[d];
  }
  bool all = rows == numel_of((int)n->i, v->dims), none = rows == 1;
  return (all || none) && rows * v->dims[n->i] == node_numel(x) ? x : NULL;
}

int kernel_index(const Kernel *k, int64_t step[3]) {
  const Node *n = k->core;
  int i = kernel_input(k, n->in[1]);
  int64_t count = n->in[1]->dims[n->i];
  Node *x = i < 0 ? scatter_rows(n) : NULL;
  step[2] = x == NULL;
  step[1] = x ? 1 : numel_of(n->rank - (int)n->i - 1, n->dims + n->i + 1);
  step[0] = x && node_numel(x) == count ? 0 : count * step[1];
  return x ? kernel_input(k, x) : i;
}

int kernel_operand(const Kernel *k) {
  for (int x = 0; k->kind == K_CONTRACT && x < 2; x++)
    if (kernel_input(k, k->core->in[x]) < 0) return x;
  return -1;
}
