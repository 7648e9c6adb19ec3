/* Frames of a signal that begin hop_length apart, and the signal that frames add up to. */
#include "ops.h"

#include <string.h>

/* The signal's axis is the last or the first; the frames' two are [length, number] or [number, length] there. */
static bool frame_axis(Expand *x, bool *first) {
  int64_t axis = op_int(x->op, "axis");
  *first = axis == 0;
  return axis == 0 || axis == -1 ||
         err_set(E_OPR_003, "axis is %lld; it is 0 or -1", (long long)axis);
}

static Node *framed(Graph *g, Node *v, int64_t length, int64_t hop, bool first) {
  int64_t one = 1, zero = 0;
  int axis = first ? 0 : v->rank - 1, perm[KL_RANK];
  Node *y = g_window(g, v, axis, 1, &length, &hop, &one, &zero, &zero, 0);
  if (!y) return NULL;
  for (int d = 0; d < y->rank; d++) perm[d] = d;
  if (first) {
    perm[1] = y->rank - 1;
    for (int d = 2; d < y->rank; d++) perm[d] = d - 1;
  } else
    perm[axis] = axis + 1, perm[axis + 1] = axis;
  return g_permute(g, y, perm);
}

static bool hop_of(Expand *x, int64_t *hop) {
  *hop = op_int(x->op, "hop_length");
  return (*hop >= 1 && *hop <= INT32_MAX) ||
         err_set(E_OPR_003, "hop_length is %lld", (long long)*hop);
}

bool x_frame(Expand *x) {
  Node *v = x_in(x, "X");
  int64_t length = op_int(x->op, "frame_length"), hop;
  bool first;
  if (!ops_rank(v, "X", 1, KL_RANK - 1) || !frame_axis(x, &first) || !hop_of(x, &hop)) return false;
  if (length < 1 || length > INT32_MAX)
    return err_set(E_OPR_003, "frame_length is %lld", (long long)length);
  return x_out(x, "Out", framed(x->g, v, length, hop, first));
}

/* The gradient of framing, of the frames as what comes in. */
bool x_overlap_add(Expand *x) {
  Graph *g = x->g;
  Node *v = x_in(x, "X"), *gx;
  int64_t hop, dims[KL_RANK];
  bool first;
  if (!ops_rank(v, "X", 2, KL_RANK) || !frame_axis(x, &first) || !hop_of(x, &hop)) return false;
  int at = first ? 0 : v->rank - 2;
  int64_t length = v->dims[first ? 1 : at], n = v->dims[first ? 0 : at + 1];
  for (int d = 0; d < v->rank - 1; d++) dims[d] = v->dims[d < at ? d : d + 1];
  dims[at] = length < 0 || n < 0 ? -1 : (n - 1) * hop + length;
  if (dims[at] == 0 || n == 0) return err_set(E_SHP_005, "no frames");
  if (!ops_known(v)) return x_out(x, "Out", ops_blank(g, v->dtype, v->rank - 1, dims));
  Node *sum = g_full(g, v->dtype, 0, v->rank - 1, dims);
  Node *y = sum ? framed(g, sum, length, hop, first) : NULL;
  return y && derive(g, 1, &y, &v, 1, &sum, &gx) && x_out(x, "Out", gx);
}
