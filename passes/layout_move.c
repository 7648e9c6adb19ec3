/* How a layout carries over from one side of a node to the other. In: a node, and the layout of one of its operands or of
 * its result. Out: the layout of the other side with which the node needs no permutation.
 *
 *   maps, reductions, CONCAT   the same on both sides
 *   VIEW      channels follow the loops that read them alone; windows come before them: [N, H, W, C] gives
 *             [N, OH, OW, KH, KW, C]
 *   RESHAPE   dimensions that it keeps apart may be ordered in any way, those it joins or cuts stay together */
#include "layout.h"
#include <string.h>

Layout layout_channels(int rank, uint32_t channels, bool images) {
  Layout l = {.set = true, .channels = channels, .images = images};
  int at = 0;
  for (int d = 0; d < rank; d++)
    if (!(channels >> d & 1)) l.perm[at++] = (int8_t)d;
  for (int i = 0; i < rank; i++) {
    int d = images ? rank - 1 - i : i;
    if (channels >> d & 1) l.perm[at++] = (int8_t)d;
  }
  return l;
}

bool layout_same(const Layout *a, const Layout *b, int rank) {
  return !memcmp(a->perm, b->perm, (size_t)rank * sizeof *a->perm);
}

/* ---- VIEW ---- */

static bool moves_view(const Node *n, bool down, const Layout *from, Layout *to) {
  const Node *x = n->in[0];
  uint32_t channels = 0, others = 0;
  for (int d = 0; d < x->rank; d++) {
    const AffDim *m = &n->map[0][d];
    uint32_t loops = (m->l0 >= 0 ? 1u << m->l0 : 0) | (m->l1 >= 0 ? 1u << m->l1 : 0);
    if (down && !(from->channels >> d & 1))
      others |= loops;
    else if (down && m->l1 >= 0)
      return false;
    else if (down)
      channels |= loops;
    else if (loops & from->channels) {
      if (loops & ~from->channels) return false;
      channels |= 1u << d;
    } else if (!loops && x->rank == n->rank)
      channels |= from->channels & 1u << d; /* broadcast */
  }
  if (!channels || (channels & others)) return false;
  *to = layout_channels(down ? n->rank : x->rank, channels, from->images);
  return true;
}

/* ---- RESHAPE ---- */

/* The groups of dimensions in the order of a layout; their number, or -1 where one is not whole and in order. */
static int group_order(const Layout *l, const int8_t *group, int rank, int8_t *order) {
  int n = 0, last = -1;
  for (int i = 0; i < rank; i++) {
    int d = l->perm[i];
    if (group[d] < 0) continue;
    if (n == 0 || order[n - 1] != group[d]) {
      for (int j = 0; j < n; j++)
        if (order[j] == group[d]) return -1;
      order[n++] = group[d];
    } else if (d < last)
      return -1;
    last = d;
  }
  return n;
}

static bool groups_of(const Node *n, int8_t *gx, int8_t *gy) {
  return dims_group(n->in[0], n->rank, n->dims, gx, gy);
}

bool layout_reshapes(const Node *n, const Layout *a, const Layout *b) {
  int8_t gx[KL_RANK], gy[KL_RANK], ox[KL_RANK], oy[KL_RANK];
  if (!groups_of(n, gx, gy)) return false;
  int n_groups = group_order(a, gx, n->in[0]->rank, ox);
  return n_groups >= 0 && group_order(b, gy, n->rank, oy) == n_groups &&
         !memcmp(ox, oy, (size_t)n_groups);
}

/* Groups in the given order; a dimension of size 1 goes before the group that precedes it. */
static void place_groups(int n, const int8_t *order, int rank, const int8_t *group, Layout *to) {
  int at = 0;
  for (int i = -1; i < n; i++)
    for (int ones = 1; ones >= 0; ones--)
      for (int d = 0, before = -1; d < rank; d++) {
        if (group[d] >= 0) before = group[d];
        bool here = i < 0 ? before < 0 : before == order[i];
        if (here && (group[d] < 0) == ones) to->perm[at++] = (int8_t)d;
      }
}

static bool moves_reshape(const Node *n, bool down, const Layout *from, Layout *to) {
  int8_t gx[KL_RANK], gy[KL_RANK], order[KL_RANK];
  if (!groups_of(n, gx, gy)) return false;
  const int8_t *gf = down ? gx : gy, *gt = down ? gy : gx;
  int rank_from = down ? n->in[0]->rank : n->rank, rank_to = down ? n->rank : n->in[0]->rank;
  int n_groups = group_order(from, gf, rank_from, order);
  if (n_groups < 0) return false;
  if (!from->channels) {
    *to = (Layout){.set = true};
    place_groups(n_groups, order, rank_to, gt, to);
    return true;
  }
  uint32_t channels = 0;
  for (int d = 0; d < rank_from; d++)
    for (int e = 0; e < rank_to; e++)
      if ((from->channels >> d & 1) && gf[d] >= 0 && gf[d] == gt[e]) channels |= 1u << e;
  if (!channels) return false;
  *to = layout_channels(rank_to, channels, from->images);
  return down ? layout_reshapes(n, from, to) : layout_reshapes(n, to, from);
}

bool layout_move(const Node *n, bool down, const Layout *from, Layout *to) {
  switch (n->prim) {
  case P_VIEW: return from->channels && moves_view(n, down, from, to);
  case P_RESHAPE: return moves_reshape(n, down, from, to);
  default:
    if (!prim_is_map(n->prim) && !prim_is_reduce(n->prim) && n->prim != P_CONCAT) return false;
    *to = *from;
    return true;
  }
}
