/* Which adjacent dimensions a kernel may traverse as one loop. In: a node and a dimension d; out: whether an index whose
 * dimensions d and d+1 are one run reaches all inputs below the node without being taken apart by divisions. Only
 * a question of speed: index.c splits runs wherever it must. */
#include "gen.h"

/* The operand dimension that reads loop l and only it, one to one over its whole extent; -1 otherwise. */
static int plain_dim(const AffDim *map, int rank, const int64_t *dims, const int64_t *ext, int l) {
  int at = -1;
  for (int p = 0; p < rank; p++) {
    bool u0 = map[p].l0 == l && map[p].c0, u1 = map[p].l1 == l && map[p].c1;
    if (!u0 && !u1) continue;
    int other = u0 ? map[p].l1 : map[p].l0;
    int64_t c = u0 ? map[p].c0 : map[p].c1;
    if (at >= 0 || (u0 && u1) || (other >= 0 && ext[other] > 1) || c != 1 || map[p].off ||
        map[p].div != 1 || dims[p] != ext[l])
      return -1;
    at = p;
  }
  return at;
}

static bool reads_loop(const AffDim *map, int rank, int l) {
  for (int p = 0; p < rank; p++)
    if ((map[p].l0 == l && map[p].c0) || (map[p].l1 == l && map[p].c1)) return true;
  return false;
}

static bool reads_first(const AffDim *m, const int64_t *ext) {
  return m->off == 0 && (m->l0 < 0 || !m->c0 || ext[m->l0] == 1) &&
         (m->l1 < 0 || !m->c1 || ext[m->l1] == 1);
}

bool map_run(const AffDim *map, int rank, const int64_t *dims, const int64_t *ext, int from, int to,
             int *at, int *end) {
  bool any = false;
  int next = *at = *end = -1;
  for (int l = from; l < to; l++) any |= ext[l] > 1 && reads_loop(map, rank, l);
  if (!any) return true;
  for (int l = from; l < to; l++) {
    if (ext[l] == 1) continue;
    int p = plain_dim(map, rank, dims, ext, l);
    if (p < 0) return false;
    for (; next >= 0 && next < p; next++)
      if (dims[next] != 1 || !reads_first(&map[next], ext)) return false;
    if (next > p) return false;
    if (*at < 0) *at = p;
    next = *end = p + 1;
  }
  return true;
}

static bool merge_all(Gen *g, Node *x, int from, int to) {
  for (int d = from; d + 1 < to; d++)
    if (!can_merge(g, x, d)) return false;
  return true;
}

bool can_merge_map(Gen *g, Node *x, const AffDim *map, int n, const int64_t *ext, int d) {
  int at, end, from = d, to = d + 2;
  while (from > 0 && ext[from] == 1) from--; /* neighbours, whatever of extent 1 is between */
  while (to < n && ext[to - 1] == 1) to++;
  if (!map_run(map, x->rank, x->dims, ext, from, to, &at, &end)) return false;
  return at < 0 || merge_all(g, x, at, end);
}

/* Inside a group of dimensions with equal products the run is there anyway; across two groups it must carry on. */
static bool merge_reshape(Gen *g, Node *n, int d) {
  Node *x = n->in[0];
  int i = 0, j = 0, first = -1;
  while (i < n->rank || j < x->rank) {
    int i0 = i, j0 = j;
    int64_t a = i < n->rank ? n->dims[i++] : 1, b = j < x->rank ? x->dims[j++] : 1;
    while (a != b && (i < n->rank || j < x->rank))
      if (j == x->rank || (i < n->rank && a < b))
        a *= n->dims[i++];
      else
        b *= x->dims[j++];
    while (i < n->rank && n->dims[i] == 1) i++;
    while (j < x->rank && x->dims[j] == 1) j++;
    bool has0 = d >= i0 && d < i, has1 = d + 1 >= i0 && d + 1 < i;
    if (has0 && has1) return true;
    if (has0) first = j0;
    if (has1) return merge_all(g, x, first, j);
  }
  return false;
}

static bool merge_in(Gen *g, Node *n, int d) {
  bool at_axis = n->i == d || n->i == d + 1;
  switch (prim_info[n->prim].class) {
  case 'M':
    for (int i = 0; i < n->n_in; i++)
      if (!can_merge(g, n->in[i], d)) return false;
    return true;
  case 'R': return !(n->i >> d & 3) && can_merge(g, n->in[0], d);
  default: break;
  }
  switch (n->prim) {
  case P_CONST:
  case P_RANDOM: return true;
  case P_IOTA: return !at_axis;
  case P_VIEW: return can_merge_map(g, n->in[0], n->map[0], n->rank, n->dims, d);
  case P_RESHAPE: return merge_reshape(g, n, d);
  case P_CHECK: return can_merge(g, n->in[0], d);
  case P_CONTRACT:
    for (int i = 0; i < 2; i++)
      if (!can_merge_map(g, n->in[i], n->map[i], n->n_loops, n->ext, d)) return false;
    return true;
  case P_GATHER: return !at_axis && can_merge(g, n->in[0], d) && can_merge(g, n->in[1], d);
  default: return false;
  }
}

bool can_merge(Gen *g, Node *n, int d) {
  NodeInfo *f = gen_info(g, n);
  if (f->input >= 0 || kernel_sweeps(g->k, n)) return true;
  if (n == g->k->core && loop_is_epilogue(g->part)) return true;
  if (!(f->merge_known >> d & 1)) {
    f->merge_yes |= (uint32_t)merge_in(g, n, d) << d;
    f->merge_known |= (uint32_t)1 << d;
  }
  return f->merge_yes >> d & 1;
}
