/* Common subexpressions: nodes that compute the same from the same operands become one, by hash-consing in one sweep from the
 * operands up (Ershov 1958). In: any Graph. Out: an equal one in which no two nodes have equal primitive, type, shape,
 * payload and operands. Random numbers are functions of seed, stream, step and element, custom operators of their
 * operands, so they take part. */
#include "rewrite.h"
#include <string.h>

static uint64_t mix(uint64_t h, uint64_t v) {
  h = (h ^ v) * 0x9E3779B97F4A7C15u;
  return h ^ h >> 29;
}

static uint64_t hash_text(uint64_t h, const char *s) {
  for (; s && *s; s++) h = mix(h, (unsigned char)*s);
  return h;
}

static uint64_t double_bits(double f) {
  uint64_t u;
  memcpy(&u, &f, sizeof u);
  return u;
}

static uint64_t node_hash(const Node *n) {
  uint64_t h = mix(mix((uint64_t)n->prim, (uint64_t)n->dtype), (uint64_t)n->rank);
  for (int d = 0; d < n->rank; d++) h = mix(h, (uint64_t)n->dims[d]);
  for (int k = 0; k < n->n_in; k++) h = mix(h, (uint64_t)(uintptr_t)n->in[k]);
  for (int k = 0; k < n->n_ia; k++) h = mix(h, (uint64_t)n->ia[k]);
  h = mix(mix(h, (uint64_t)n->i), double_bits(n->f));
  return n->prim == P_DATA ? h : hash_text(h, n->s);
}

static bool same_maps(const Node *a, const Node *b) {
  if (a->n_loops != b->n_loops) return false;
  for (int l = 0; l < a->n_loops; l++)
    if (a->ext[l] != b->ext[l]) return false;
  for (int side = 0; side < 2; side++) {
    if (!a->map[side] != !b->map[side]) return false;
    if (a->map[side] && !aff_same(a->map[side], b->map[side], a->in[side]->rank)) return false;
  }
  return true;
}

static bool same(const Node *a, const Node *b) {
  if (a->prim != b->prim || a->dtype != b->dtype || !node_same_shape(a, b) || a->n_in != b->n_in ||
      a->i != b->i || double_bits(a->f) != double_bits(b->f) || a->n_ia != b->n_ia ||
      a->custom != b->custom)
    return false;
  for (int k = 0; k < a->n_in; k++)
    if (a->in[k] != b->in[k]) return false;
  for (int k = 0; k < a->n_ia; k++)
    if (a->ia[k] != b->ia[k]) return false;
  if (a->prim == P_DATA)
    return !memcmp(a->data, b->data, (size_t)node_numel(a) * (size_t)dtype_info[a->dtype].size);
  if (!a->s != !b->s || (a->s && strcmp(a->s, b->s))) return false;
  return same_maps(a, b);
}

void pass_cse(Graph *g) {
  int size = 64, kept = 0;
  while (size < 2 * g->nodes.n) size *= 2;
  Arena *scratch = arena_scratch();
  Node **table = arena_array(scratch, Node *, size);
  for (int i = 0; i < g->nodes.n; i++) {
    Node *n = g->nodes.v[i];
    for (int k = 0; k < n->n_in; k++) n->in[k] = n->in[k]->repl;
    int at = (int)(node_hash(n) & (uint64_t)(size - 1));
    while (table[at] && !same(table[at], n)) at = (at + 1) & (size - 1);
    n->repl = table[at] ? table[at] : n;
    if (table[at]) continue;
    table[at] = n;
    g->nodes.v[kept++] = n;
  }
  for (int i = 0; i < g->writes.n; i++) g->writes.v[i].node = g->writes.v[i].node->repl;
  for (int i = 0; i < g->fetches.n; i++) g->fetches.v[i].node = g->fetches.v[i].node->repl;
  g->nodes.n = kept;
  arena_free(scratch);
  graph_number(g);
}
