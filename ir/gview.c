/* Views: builders of RESHAPE, and of VIEW for permutation, broadcast, slice, padding and windows. In: the operand and what
 * is wanted of it; out: a node whose map addresses every dimension of the operand from the loops over the result
 * (AffDim in ir.h). A view that would change nothing is the operand itself. */
#include "ir.h"
#include <math.h>
#include <string.h>

static const int64_t max_coef = INT32_MAX;

static const char *node_text(const Node *x) { return shape_text(x->dtype, x->rank, x->dims); }

Node *g_view(Graph *g, Node *x, int rank, const int64_t *dims, const AffDim *map, double value) {
  if (!x) return NULL;
  Node *n = g_node(g, P_VIEW, x->dtype, rank, dims, 1, &x);
  if (!n) return NULL;
  n->map[0] = x->rank ? arena_dup(g->arena, map, (size_t)x->rank * sizeof *map) : NULL;
  /* the padding as an element of its type: no backend converts it in a way of its own */
  n->f = x->dtype == DT_BOOL ? value != 0 : dtype_is_float(x->dtype) ? value : trunc(value);
  return n;
}

Node *g_alias(Graph *g, Node *x) {
  AffDim map[KL_RANK];
  for (int d = 0; d < KL_RANK; d++) map[d] = aff_loop(d);
  return x ? g_view(g, x, x->rank, x->dims, map, 0) : NULL;
}

/* Nothing to do if the dimensions stay and each is read at its own loop. */
static Node *view_unless_same(Graph *g, Node *x, int rank, const int64_t *dims, const AffDim *map,
                              double value) {
  bool same = rank == x->rank;
  for (int d = 0; same && d < rank; d++) same = x->dims[d] == dims[d] && aff_is_loop(&map[d], d);
  return same ? x : g_view(g, x, rank, dims, map, value);
}

static bool all_known(int rank, const int64_t *dims) {
  for (int d = 0; d < rank; d++)
    if (dims[d] < 0) return false;
  return true;
}

/* In: dims with at most one -1, of `n` elements together. Out: the -1 filled in. */
static bool infer_dim(int rank, int64_t *dims, int64_t n) {
  int at = -1;
  int64_t others = 1;
  for (int d = 0; d < rank; d++) {
    if (dims[d] == -1 && at < 0)
      at = d;
    else if (dims[d] < 0 || !mul_ok(others, dims[d], &others))
      return false;
  }
  if (at < 0) return others == n;
  if (others == 0 ? n != 0 : n % others != 0) return false;
  dims[at] = others ? n / others : 0;
  return true;
}

Node *g_reshape(Graph *g, Node *x, int rank, const int64_t *dims) {
  int64_t to[KL_RANK];
  if (!x) return NULL;
  if (rank < 0 || rank > KL_RANK) {
    err_set(E_SHP_002, "%s: reshape to rank %d; at most %d is allowed", g_who(g, P_RESHAPE), rank,
            KL_RANK);
    return NULL;
  }
  if (rank) memcpy(to, dims, (size_t)rank * sizeof *dims);
  if (all_known(x->rank, x->dims) && !infer_dim(rank, to, node_numel(x))) {
    err_set(E_SHP_004, "%s: %s cannot be reshaped to %s", g_who(g, P_RESHAPE), node_text(x),
            dims_text(rank, dims));
    err_help("The operand has %lld elements; at most one dimension may be -1.",
             (long long)node_numel(x));
    return NULL;
  }
  /* the same dimensions, also where they are unknown */
  if (rank == x->rank && (!rank || !memcmp(to, x->dims, (size_t)rank * sizeof *to))) return x;
  return g_node(g, P_RESHAPE, x->dtype, rank, to, 1, &x);
}

Node *g_permute(Graph *g, Node *x, const int *perm) {
  int64_t dims[KL_RANK];
  AffDim map[KL_RANK];
  unsigned seen = 0;
  if (!x) return NULL;
  for (int d = 0; d < x->rank; d++) {
    if (perm[d] < 0 || perm[d] >= x->rank || (seen >> perm[d] & 1)) {
      err_set(E_SHP_003, "%s: entry %d of the permutation of %s is %d", g_who(g, P_VIEW), d,
              node_text(x), perm[d]);
      err_help("A permutation names each axis of 0..%d once.", x->rank - 1);
      return NULL;
    }
    seen |= 1u << perm[d];
    dims[d] = x->dims[perm[d]];
    map[perm[d]] = aff_loop(d);
  }
  bool same = true;
  for (int d = 0; d < x->rank; d++) same &= perm[d] == d;
  return same ? x : g_view(g, x, x->rank, dims, map, 0);
}

Node *g_expand_to(Graph *g, Node *x, int rank, const int64_t *dims) {
  AffDim map[KL_RANK];
  if (!x) return NULL;
  int more = rank - x->rank;
  if (more < 0 || rank > KL_RANK) {
    err_set(E_SHP_002, "%s: %s cannot be expanded to rank %d", g_who(g, P_VIEW), node_text(x),
            rank);
    return NULL;
  }
  for (int d = 0; d < x->rank; d++) {
    int64_t from = x->dims[d], to = dims[more + d];
    if (from != to && from != 1 && from >= 0 && to >= 0) {
      err_set(E_SHP_001, "%s: %s cannot be expanded to %s (dimension %d: %lld vs %lld)",
              g_who(g, P_VIEW), node_text(x), dims_text(rank, dims), d, (long long)from,
              (long long)to);
      return NULL;
    }
    map[d] = from == 1 && to != 1 ? aff_const(0) : aff_loop(more + d);
  }
  return view_unless_same(g, x, rank, dims, map, 0);
}

Node *g_expand(Graph *g, Node *x, int rank, const int64_t *dims) {
  int64_t to[KL_RANK];
  if (!x) return NULL;
  int more = rank - x->rank;
  for (int d = 0; d < rank && d < KL_RANK; d++)
    to[d] = dims[d] == -1 && d >= more && more >= 0 ? x->dims[d - more] : dims[d];
  return g_expand_to(g, x, rank, to);
}

Node *g_slice(Graph *g, Node *x, const int64_t *start, const int64_t *step, const int64_t *size) {
  AffDim map[KL_RANK];
  if (!x) return NULL;
  for (int d = 0; d < x->rank; d++) {
    int64_t span = 0, last = 0, n = x->dims[d];
    bool ok = step[d] && step[d] >= -max_coef && step[d] <= max_coef && size[d] >= -1;
    if (ok && size[d] > 0 && n >= 0)
      ok = mul_ok(size[d] - 1, step[d], &span) && add_ok(start[d], span, &last) && start[d] >= 0 &&
           start[d] < n && last >= 0 && last < n;
    if (!ok) {
      err_set(E_SHP_007, "%s: slice of %lld from %lld by %lld of dimension %d of %s",
              g_who(g, P_VIEW), (long long)size[d], (long long)start[d], (long long)step[d], d,
              node_text(x));
      return NULL;
    }
    map[d] = aff_loop(d);
    map[d].c0 = (int32_t)step[d];
    map[d].off = start[d];
  }
  return view_unless_same(g, x, x->rank, size, map, 0);
}

Node *g_pad(Graph *g, Node *x, const int64_t *lo, const int64_t *hi, double value) {
  AffDim map[KL_RANK];
  int64_t dims[KL_RANK];
  if (!x) return NULL;
  for (int d = 0; d < x->rank; d++) {
    int64_t n = x->dims[d] < 0 ? 0 : x->dims[d];
    if (!add_ok(n, lo[d], &n) || !add_ok(n, hi[d], &n) || (n < 0 && x->dims[d] >= 0)) {
      err_set(E_SHP_005, "%s: padding of %lld and %lld on dimension %d of %s", g_who(g, P_VIEW),
              (long long)lo[d], (long long)hi[d], d, node_text(x));
      return NULL;
    }
    dims[d] = x->dims[d] < 0 ? -1 : n;
    map[d] = aff_loop(d);
    map[d].off = -lo[d];
  }
  for (int d = 0; d < x->rank; d++)
    if (lo[d] || hi[d]) return g_view(g, x, x->rank, dims, map, value);
  return x;
}

bool window_out(const char *who, int64_t in, int64_t k, int64_t stride, int64_t dil, int64_t lo,
                int64_t hi, int64_t *out) {
  int64_t span, room;
  *out = -1;
  bool ok = k > 0 && k <= max_coef && stride > 0 && stride <= max_coef && dil > 0 &&
            dil <= max_coef && mul_ok(dil, k - 1, &span) && add_ok(in < 0 ? 0 : in, lo, &room) &&
            add_ok(room, hi, &room) && add_ok(room, -1 - span, &room);
  if (ok && in >= 0) {
    ok = room >= 0;
    if (ok) *out = room / stride + 1;
  }
  if (ok) return true;
  err_set(E_SHP_005,
          "%s: a window of %lld (stride %lld, dilation %lld) does not fit on %lld elements with "
          "padding %lld and %lld",
          who, (long long)k, (long long)stride, (long long)dil, (long long)in, (long long)lo,
          (long long)hi);
  err_help("Use a smaller kernel or more padding, or feed a larger input.");
  return false;
}

Node *g_window(Graph *g, Node *x, int axis, int n_sp, const int64_t *k, const int64_t *stride,
               const int64_t *dil, const int64_t *lo, const int64_t *hi, double value) {
  AffDim map[KL_RANK];
  int64_t dims[2 * KL_RANK];
  if (!x) return NULL;
  if (axis < 0 || n_sp < 0 || axis + n_sp > x->rank || x->rank + n_sp > KL_RANK) {
    err_set(E_SHP_002, "%s: windows over %d dimensions of %s from axis %d", g_who(g, P_VIEW), n_sp,
            node_text(x), axis);
    return NULL;
  }
  for (int d = 0; d < x->rank; d++) {
    dims[d] = x->dims[d];
    map[d] = aff_loop(d);
  }
  for (int s = 0; s < n_sp; s++) {
    int d = axis + s, kd = x->rank + s;
    if (k[s] == -1 && g->shapes_only)
      dims[d] = dims[kd] = -1;
    else if (!window_out(g_who(g, P_VIEW), x->dims[d], k[s], stride[s], dil[s], lo[s], hi[s],
                         &dims[d]))
      return NULL;
    else
      dims[kd] = k[s];
    map[d] = (AffDim){(int8_t)d, (int8_t)kd, (int32_t)stride[s], (int32_t)dil[s], -lo[s], 1};
  }
  return g_view(g, x, x->rank + n_sp, dims, map, value);
}
