/* slice and strided_slice: a box of a tensor. Bounds are clamped as PaddlePaddle does: negative
 * ones count from the end; those beyond the ends are moved there. */
#include "ops.h"

#include <string.h>

typedef struct Box {
  int n; /* axes */
  int axes[KL_RANK];
  int64_t start[KL_RANK], end[KL_RANK], step[KL_RANK]; /* as given; OPS_UNKNOWN in inference */
  int64_t from[KL_RANK], by[KL_RANK],
      size[KL_RANK]; /* per dimension of the operand; size -1 = unknown */
  uint32_t drop;     /* dimensions removed afterwards */
} Box;

static bool box_axes(Expand *x, const Node *in, Box *b) {
  int n;
  uint32_t seen = 0;
  const int64_t *axes = op_intlist(x->op, "axes", x->g->arena, &n);
  if (n > in->rank) return err_set(E_SHP_003, "%d axes for %d dimensions", n, in->rank);
  for (int i = 0; i < n; i++) {
    if (!ops_axis("axes", axes[i], in->rank, &b->axes[i])) return false;
    if (seen >> b->axes[i] & 1) return err_set(E_SHP_003, "axes names %d twice", b->axes[i]);
    seen |= 1u << b->axes[i];
  }
  b->n = n;
  for (int d = 0; d < in->rank; d++) b->from[d] = 0, b->by[d] = 1, b->size[d] = in->dims[d];
  return true;
}

static bool box_list(Expand *x, const Box *b, const char *list, const char *slot, const char *attr,
                     int64_t *v) {
  int n = ops_list(x, list, slot, attr, v, KL_RANK);
  if (n < 0) return false;
  if (n == b->n) return true;
  err_set(E_OPR_003, "%s has %d values for %d axes", attr, n, b->n);
  err_help("axes, starts and ends must be equally long.");
  return false;
}

static int64_t clamped(int64_t v, int64_t lo, int64_t hi) { return v < lo ? lo : v > hi ? hi : v; }

/* One axis of d elements with a positive or negative step: first index and number of elements. */
static void box_range(int64_t d, int64_t start, int64_t end, int64_t step, int64_t *from,
                      int64_t *size) {
  if (start < 0) start = start < -d ? 0 : start + d;
  if (end < 0 && !(end == -1 && step < 0)) end = end < -d ? 0 : end + d;
  if (step > 0) {
    start = clamped(start, 0, d), end = clamped(end, 0, d);
    *from = start;
    *size = end > start ? (end - start - 1) / step + 1 : 0;
  } else {
    start = clamped(start, -1, d - 1), end = clamped(end, -1, d - 1);
    *from = start;
    *size = start > end ? (start - end - 1) / -step + 1 : 0;
  }
  if (*size == 0) *from = 0;
}

static bool box_resolve(const Node *in, Box *b) {
  for (int i = 0; i < b->n; i++) {
    int a = b->axes[i];
    if (b->step[i] == 0 || b->step[i] > INT32_MAX ||
        (b->step[i] < -INT32_MAX && b->step[i] != OPS_UNKNOWN)) {
      err_set(E_OPR_003, "strides holds %lld", (long long)b->step[i]);
      err_help("A stride must not be 0.");
      return false;
    }
    b->by[a] = b->step[i];
    b->size[a] = -1;
    if (in->dims[a] < 0 || b->start[i] == OPS_UNKNOWN || b->end[i] == OPS_UNKNOWN ||
        b->step[i] == OPS_UNKNOWN)
      continue;
    box_range(in->dims[a], b->start[i], b->end[i], b->step[i], &b->from[a], &b->size[a]);
  }
  return true;
}

static bool box_drop(Expand *x, const char *attr, const Node *in, Box *b) {
  if (!ops_axes(x, attr, in->rank, &b->drop)) return false;
  for (int d = 0; d < in->rank; d++) {
    if (!(b->drop >> d & 1)) continue;
    if (b->size[d] < 0) b->size[d] = 1;
    if (b->size[d] == 1) continue;
    err_set(E_SHP_006, "%s names dimension %d, of which %lld elements are taken", attr, d,
            (long long)b->size[d]);
    err_help("Only dimensions of which one element is taken can be removed.");
    return false;
  }
  return true;
}

static bool box_known(const Node *in, const Box *b) {
  for (int d = 0; d < in->rank; d++)
    if (in->dims[d] < 0 || b->size[d] < 0) return false;
  for (int i = 0; i < b->n; i++)
    if (b->start[i] == OPS_UNKNOWN || b->end[i] == OPS_UNKNOWN) return false;
  return true;
}

static Node *box_read(Expand *x, Node *in, const Box *b) {
  int64_t kept[KL_RANK];
  int rank = 0;
  for (int d = 0; d < in->rank; d++)
    if (!(b->drop >> d & 1)) kept[rank++] = b->size[d];
  if (!box_known(in, b)) return ops_blank(x->g, in->dtype, rank, kept);
  return ops_reshape(x->g, g_slice(x->g, in, b->from, b->by, b->size), rank, kept);
}

static bool box_of(Expand *x, const Node *in, bool strided, Box *b) {
  memset(b, 0, sizeof *b);
  if (!in || !box_axes(x, in, b) ||
      !box_list(x, b, "StartsTensorList", "StartsTensor", "starts", b->start) ||
      !box_list(x, b, "EndsTensorList", "EndsTensor", "ends", b->end))
    return false;
  for (int i = 0; i < b->n; i++) b->step[i] = 1;
  if (strided && !box_list(x, b, "StridesTensorList", "StridesTensor", "strides", b->step))
    return false;
  return box_resolve(in, b) && box_drop(x, "decrease_axis", in, b);
}

bool x_slice(Expand *x) {
  Box b;
  Node *in = x_in(x, "Input");
  return box_of(x, in, false, &b) && x_out(x, "Out", box_read(x, in, &b));
}

bool x_strided_slice(Expand *x) {
  Box b;
  Node *in = x_in(x, "Input");
  return box_of(x, in, true, &b) && x_out(x, "Out", box_read(x, in, &b));
}
