/* Messages along the edges of a graph: edge e sends a row of X, perhaps with one of Y for the edge, from node Src_index[e]
 * to node Dst_index[e], where all that arrive are summed, averaged, or compared.
 *
 * The largest of what arrives: each column of the messages is sorted, and stored in that order, so that the largest comes
 * last. Its gradient goes to every message that equals it. */
#include "ops.h"

#include <string.h>

static const char *const actions[] = {"ADD", "MUL"};

/* One end of every edge, a vector, checked against n nodes (-1: unknown). */
static Node *ends(Expand *x, const char *slot, int64_t n) {
  Node *v = x_in(x, slot);
  if (!ops_index(v, slot) || !ops_rank(v, slot, 1, 2)) return NULL;
  if (v->rank == 2) v = ops_reshape(x->g, v, 1, v->dims);
  return !v || n < 0 ? v : g_check(x->g, v, 0, n, false, 0, E_DAT_002);
}

/* [E, rest of b] and a dimension of 1 behind the first for each that a has more. */
static Node *ranked(Graph *g, Node *b, int rank) {
  int64_t dims[KL_RANK];
  if (!b || b->rank >= rank) return b;
  int more = rank - b->rank;
  dims[0] = b->dims[0];
  for (int d = 1; d < rank; d++) dims[d] = d <= more ? 1 : b->dims[d - more];
  return ops_reshape(g, b, rank, dims);
}

static Node *acted(Expand *x, Node *a, Node *b) {
  int word = op_word(x->op, "message_op", 2, actions);
  if (word < 0 || !a || !b) return NULL;
  int rank = a->rank > b->rank ? a->rank : b->rank;
  return g_map2(x->g, word ? P_MUL : P_ADD, ranked(x->g, a, rank), ranked(x->g, b, rank));
}

/* The message of every edge: rows of v, and of e if it is given. */
static Node *sent(Expand *x, Node *v, Node *e) {
  Node *from = v ? ends(x, "Src_index", v->dims[0]) : NULL;
  if (!from || !ops_rank(v, "X", 1, KL_RANK - 1)) return NULL;
  Node *rows = ops_take(x->g, v, from, 0);
  return e ? acted(x, rows, e) : rows;
}

/* The vector to, of the shape of m. */
static Node *spread(Graph *g, Node *to, const Node *m) {
  return to ? g_expand(g, ops_along(g, to, m->rank, 0), m->rank, m->dims) : NULL;
}

static Node *scattered(Graph *g, Node *to, Node *m, int64_t n) {
  int64_t dims[KL_RANK];
  memcpy(dims, m->dims, sizeof dims);
  dims[0] = n;
  return g_scatter(g, g_full(g, m->dtype, 0, m->rank, dims), spread(g, to, m), m, 0, false);
}

static Node *extreme(Graph *g, Node *to, Node *m, int64_t n, bool largest) {
  int64_t e = m->dims[0], c = ops_prod(m->dims, 1, m->rank), dims[KL_RANK];
  Node *rows = g_permute(g, g_reshape(g, m, 2, (int64_t[]){e, c}), (int[]){1, 0});
  Node *order = rows ? g_argsort(g, rows, !largest) : NULL;
  Node *at = order ? g_gather(g, g_expand(g, to, 2, (int64_t[]){c, e}), order, 1) : NULL;
  Node *v = order ? g_gather(g, rows, order, 1) : NULL;
  if (!at || !v) return NULL;
  v = g_scatter(g, g_full(g, m->dtype, 0, 2, (int64_t[]){c, n}), at, v, 1, true);
  memcpy(dims, m->dims, sizeof dims);
  dims[0] = n;
  return v ? g_reshape(g, g_permute(g, v, (int[]){1, 0}), m->rank, dims) : NULL;
}

/* How many edges end in each node. */
static Node *arrived(Graph *g, Node *to, int64_t n) {
  return scattered(g, to, g_full_int(g, DT_INT32, 1, 1, to->dims), n);
}

/* The nodes of the result: out_size, or those of X. */
static bool nodes_of(Expand *x, const Node *v, int64_t *n) {
  int k = ops_list(x, NULL, "Out_size", "out_size", n, 1);
  if (k < 0) return false;
  if (k == 0 || (*n != OPS_UNKNOWN && *n <= 0)) *n = v->dims[0];
  if (*n == OPS_UNKNOWN) *n = -1;
  return true;
}

static bool received(Expand *x, Node *e) {
  Graph *g = x->g;
  Node *v = x_in(x, "X"), *m = sent(x, v, e);
  int how = op_word(x->op, "reduce_op", REDUCE_N, reduction_words);
  int64_t n, dims[KL_RANK];
  if (how < 0 || !m || !nodes_of(x, v, &n)) return false;
  Node *to = ends(x, "Dst_index", n);
  if (!to || !ops_same("edges of Src_index and Dst_index", m->dims[0], to->dims[0])) return false;
  if (n < 0 || !ops_known(m)) {
    memcpy(dims, m->dims, sizeof dims);
    dims[0] = n;
    return x_out(x, "Out", ops_blank(g, m->dtype, m->rank, dims)) &&
           x_out(x, "Dst_count", ops_blank(g, DT_INT32, 1, &n));
  }
  Node *count = arrived(g, to, n);
  Node *out = how >= REDUCE_MAX ? extreme(g, to, m, n, how == REDUCE_MAX) : scattered(g, to, m, n);
  if (how == REDUCE_MEAN && out && count) {
    Node *by = g_cast(g, g_map2c(g, P_MAX, count, 1), out->dtype);
    out = ops_div(g, out, by ? ops_along(g, by, out->rank, 0) : NULL);
  }
  return x_out(x, "Out", out) && x_out(x, "Dst_count", count);
}

bool x_graph_send_recv(Expand *x) { return received(x, NULL); }
bool x_graph_send_ue_recv(Expand *x) { return received(x, x_in(x, "Y")); }

/* Of each message m. */
static Node *message_gradient(Expand *x, Node *m, int how) {
  Graph *g = x->g;
  Node *gy = x_in(x, "Out@GRAD"), *out = x_in(x, "Out");
  Node *to = gy ? ends(x, "Dst_index", gy->dims[0]) : NULL;
  if (!to) return NULL;
  Node *gm = ops_take(g, gy, to, 0);
  if (how == REDUCE_MEAN && gm) {
    Node *by = ops_take(g, g_map2c(g, P_MAX, arrived(g, to, gy->dims[0]), 1), to, 0);
    by = g_cast(g, by, gm->dtype);
    gm = ops_div(g, gm, by ? ops_along(g, by, gm->rank, 0) : NULL);
  }
  if (how < REDUCE_MAX || !out) return gm;
  return g_select(g, g_map2(g, P_EQ, m, ops_take(g, out, to, 0)), gm, g_const(g, m->dtype, 0));
}

static bool received_grad(Expand *x, Node *e) {
  Graph *g = x->g;
  Node *v = x_in(x, "X");
  int how = op_word(x->op, "reduce_op", REDUCE_N, reduction_words);
  if (!v || how < 0) return false;
  if (!ops_known(v) || (e && !ops_known(e)) || g->shapes_only)
    return x_out(x, "X@GRAD", ops_blank_like(g, v)) &&
           (!e || x_out(x, "Y@GRAD", ops_blank_like(g, e)));
  Node *xs[] = {g_alias(g, v), e ? g_alias(g, e) : NULL}, *gxs[2] = {0};
  Node *m = sent(x, xs[0], xs[1]), *gm = m ? message_gradient(x, m, how) : NULL;
  if (!gm || !derive(g, 1, &m, &gm, e ? 2 : 1, xs, gxs)) return false;
  return x_out(x, "X@GRAD", gxs[0]) && (!e || x_out(x, "Y@GRAD", gxs[1]));
}

bool x_graph_send_recv_grad(Expand *x) { return received_grad(x, NULL); }
bool x_graph_send_ue_recv_grad(Expand *x) { return received_grad(x, x_in(x, "Y")); }

bool x_graph_send_uv(Expand *x) {
  Node *u = x_in(x, "x"), *v = x_in(x, "y");
  if (!ops_rank(u, "x", 1, KL_RANK) || !ops_rank(v, "y", 1, KL_RANK)) return false;
  Node *from = ends(x, "src_index", u->dims[0]), *to = ends(x, "dst_index", v->dims[0]);
  if (!from || !to) return false;
  return x_out(x, "out", acted(x, ops_take(x->g, u, from, 0), ops_take(x->g, v, to, 0)));
}
