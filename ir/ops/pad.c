/* Padding: pad (all dimensions, constant), pad2d and pad3d (spatial dimensions; constant, reflect, replicate/edge, circular). The
 * modes other than constant are concatenations of slices of the tensor itself. And what takes borders away: crop and crop_tensor. */
#include "ops.h"

#include <string.h>

typedef enum { PAD_CONSTANT, PAD_REFLECT, PAD_REPLICATE, PAD_CIRCULAR } PadMode;

static Node *padded_blank(Graph *g, const Node *in, const int64_t *lo, const int64_t *hi) {
  int64_t dims[KL_RANK];
  for (int i = 0; i < in->rank; i++) dims[i] = in->dims[i] < 0 ? -1 : in->dims[i] + lo[i] + hi[i];
  return ops_blank(g, in->dtype, in->rank, dims);
}

static bool pad_amount(int64_t v, const char *attr) {
  if (v >= -INT32_MAX && v <= INT32_MAX) return true;
  return err_set(E_OPR_003, "%s holds %lld", attr, (long long)v);
}

/* ---- pad ---- */

static bool pad_read(Expand *x, const Node *in, int64_t *lo, int64_t *hi) {
  int n;
  const int64_t *p = op_intlist(x->op, "paddings", x->g->arena, &n);
  if (!in) return false;
  if (n != 2 * in->rank) {
    err_set(E_OPR_003, "paddings has %d values for %d dimensions", n, in->rank);
    err_help("Give two numbers, before and after, for every dimension.");
    return false;
  }
  for (int i = 0; i < in->rank; i++) {
    lo[i] = p[2 * i], hi[i] = p[2 * i + 1];
    if (!pad_amount(lo[i], "paddings") || !pad_amount(hi[i], "paddings")) return false;
    if (lo[i] < 0 || hi[i] < 0)
      return err_set(E_OPR_003, "paddings holds a negative number: %lld",
                     (long long)(lo[i] < 0 ? lo[i] : hi[i]));
  }
  return true;
}

bool x_pad(Expand *x) {
  int64_t lo[KL_RANK], hi[KL_RANK];
  Node *in = x_in(x, "X");
  return pad_read(x, in, lo, hi) &&
         x_out(x, "Out", g_pad(x->g, in, lo, hi, op_float(x->op, "pad_value")));
}

bool x_pad_grad(Expand *x) {
  int64_t lo[KL_RANK], hi[KL_RANK];
  Node *gy = x_in(x, "Out@GRAD");
  if (!pad_read(x, gy, lo, hi)) return false;
  for (int i = 0; i < gy->rank; i++) lo[i] = -lo[i], hi[i] = -hi[i];
  return x_out(x, "X@GRAD", g_pad(x->g, gy, lo, hi, 0));
}

/* ---- pad2d, pad3d ---- */

/* The part before (side 0) or after (side 1) the tensor along one axis. */
static Node *pad_side(Graph *g, Node *v, int axis, PadMode mode, int side, int64_t n) {
  int64_t d = v->dims[axis];
  if (mode == PAD_REFLECT) return ops_cut(g, v, axis, side ? d - 2 : n, -1, n);
  if (mode == PAD_CIRCULAR) return ops_cut(g, v, axis, side ? 0 : d - n, 1, n);
  int64_t dims[KL_RANK];
  memcpy(dims, v->dims, sizeof dims);
  dims[axis] = n;
  return g_expand(g, ops_cut(g, v, axis, side ? d - 1 : 0, 1, 1), v->rank, dims);
}

static Node *pad_axis(Graph *g, Node *v, int axis, PadMode mode, int64_t lo, int64_t hi) {
  if (!v || (lo == 0 && hi == 0)) return v;
  int64_t d = v->dims[axis], most = mode == PAD_REFLECT    ? d - 1
                                    : mode == PAD_CIRCULAR ? d
                                    : d > 0                ? INT32_MAX
                                                           : 0;
  if (lo < 0 || hi < 0 || lo > most || hi > most) {
    err_set(E_SHP_005, "paddings of %lld and %lld for a dimension of %lld", (long long)lo,
            (long long)hi, (long long)d);
    err_help("reflect needs less than the dimension, circular at most the dimension.");
    return NULL;
  }
  Node *part[3];
  int n = 0;
  if (lo > 0) part[n++] = pad_side(g, v, axis, mode, 0, lo);
  part[n++] = v;
  if (hi > 0) part[n++] = pad_side(g, v, axis, mode, 1, hi);
  return g_concat(g, n, part, axis);
}

/* first[i], last[i]: amounts for spatial dimension i of n_sp. */
static bool pad_spatial(Expand *x, int n_sp, PadMode mode, double value, const int64_t *first,
                        const int64_t *last_) {
  Graph *g = x->g;
  Node *v = x_in(x, "X");
  bool last;
  int64_t lo[KL_RANK] = {0}, hi[KL_RANK] = {0};
  if (!ops_rank(v, "X", n_sp + 2, n_sp + 2) || !ops_layout(x, "data_format", &last)) return false;
  int at = last ? 1 : 2;
  for (int i = 0; i < n_sp; i++) {
    lo[at + i] = first[i], hi[at + i] = last_[i];
    if (!pad_amount(first[i], "paddings") || !pad_amount(last_[i], "paddings")) return false;
  }
  if (!ops_known(v)) return x_out(x, "Out", padded_blank(g, v, lo, hi));
  if (mode == PAD_CONSTANT) return x_out(x, "Out", g_pad(g, v, lo, hi, value));
  for (int i = at; i < at + n_sp; i++) v = pad_axis(g, v, i, mode, lo[i], hi[i]);
  return x_out(x, "Out", v);
}

/* The list attribute or tensor of 2*n_sp numbers; unknown ones count as 0 in inference. */
static bool pad_list(Expand *x, int n_sp, int64_t *p, bool *known) {
  int n = ops_list(x, NULL, "Paddings", "paddings", p, KL_RANK);
  if (n < 0) return false;
  if (n != 2 * n_sp) {
    err_set(E_OPR_003, "paddings has %d values, %d needed", n, 2 * n_sp);
    return false;
  }
  *known = true;
  for (int i = 0; i < n; i++) *known &= p[i] != OPS_UNKNOWN;
  return true;
}

static bool pad_unknown(Expand *x, int n_sp) {
  Node *in = x_in(x, "X");
  bool last;
  if (!ops_rank(in, "X", n_sp + 2, n_sp + 2) || !ops_layout(x, "data_format", &last)) return false;
  int64_t dims[KL_RANK];
  memcpy(dims, in->dims, sizeof dims);
  for (int i = 0; i < n_sp; i++) dims[(last ? 1 : 2) + i] = -1;
  return x_out(x, "Out", ops_blank(x->g, in->dtype, in->rank, dims));
}

bool x_pad2d(Expand *x) {
  static const char *const words[] = {"constant", "reflect", "edge"};
  int64_t p[KL_RANK];
  bool known;
  int mode = op_word(x->op, "mode", 3, words);
  if (mode < 0 || !pad_list(x, 2, p, &known)) return false;
  if (!known) return pad_unknown(x, 2);
  int64_t lo[2] = {p[0], p[2]}, hi[2] = {p[1], p[3]};
  return pad_spatial(x, 2, (PadMode)mode, op_float(x->op, "pad_value"), lo, hi);
}

bool x_pad3d(Expand *x) {
  static const char *const words[] = {"constant", "reflect", "replicate", "circular"};
  int64_t p[KL_RANK];
  bool known;
  int mode = op_word(x->op, "mode", 4, words);
  if (mode < 0 || !pad_list(x, 3, p, &known)) return false;
  if (!known) return pad_unknown(x, 3);
  int64_t lo[3] = {p[4], p[2], p[0]}, hi[3] = {p[5], p[3], p[1]}; /* front, top, left */
  return pad_spatial(x, 3, (PadMode)mode, op_float(x->op, "value"), lo, hi);
}

/* ---- crops ---- */

static bool cropped(Expand *x, const int64_t *shape, const int64_t *off, int n, int n_off) {
  Node *in = x_in(x, "X");
  int64_t from[KL_RANK], step[KL_RANK], size[KL_RANK];
  if (!in) return false;
  if ((n != in->rank && n != 0) || (n_off != in->rank && n_off != 0))
    return err_set(E_OPR_003, "%d sizes and %d offsets for %d dimensions", n, n_off, in->rank);
  bool known = ops_known(in);
  for (int d = 0; d < in->rank; d++) {
    from[d] = n_off ? off[d] : 0, step[d] = 1;
    size[d] = n ? shape[d] : -1;
    if (from[d] == OPS_UNKNOWN || size[d] == OPS_UNKNOWN)
      known = false, size[d] = -1;
    else if (size[d] == -1 && in->dims[d] >= 0)
      size[d] = in->dims[d] - from[d];
    if (!known || (from[d] >= 0 && size[d] >= 0 && size[d] <= in->dims[d] - from[d])) continue;
    return err_set(E_SHP_007, "%lld elements from %lld on of %lld in dimension %d",
                   (long long)size[d], (long long)from[d], (long long)in->dims[d], d);
  }
  return x_out(x, "Out",
               known ? g_slice(x->g, in, from, step, size)
                     : ops_blank(x->g, in->dtype, in->rank, size));
}

bool x_crop_tensor(Expand *x) {
  int64_t shape[KL_RANK], off[KL_RANK];
  int n = ops_list(x, "ShapeTensor", "Shape", "shape", shape, KL_RANK);
  int m = ops_list(x, "OffsetsTensor", "Offsets", "offsets", off, KL_RANK);
  return n >= 0 && m >= 0 && cropped(x, shape, off, n, m);
}

bool x_crop(Expand *x) {
  int64_t shape[KL_RANK], off[KL_RANK];
  Node *like = x_in(x, "Y");
  int n = like ? like->rank : ops_list(x, NULL, NULL, "shape", shape, KL_RANK);
  int m = ops_list(x, NULL, "Offsets", "offsets", off, KL_RANK);
  if (like) memcpy(shape, like->dims, sizeof shape);
  return n >= 0 && m >= 0 && cropped(x, shape, off, n, m);
}

/* The gradient in a box of zeros. */
static bool uncropped(Expand *x, const char *list) {
  Node *in = x_in(x, "X"), *gy = x_in(x, "Out@GRAD");
  int64_t off[KL_RANK], hi[KL_RANK];
  int n = ops_list(x, list, "Offsets", "offsets", off, KL_RANK);
  if (n < 0 || !in || !gy || !ops_rank(gy, "Out@GRAD", in->rank, in->rank)) return false;
  bool known = ops_known(in) && ops_known(gy) && (n == 0 || n == in->rank);
  for (int d = 0; d < in->rank; d++) {
    if (n == 0) off[d] = 0;
    known = known && off[d] != OPS_UNKNOWN;
    hi[d] = known ? in->dims[d] - off[d] - gy->dims[d] : 0;
  }
  return x_out(x, "X@GRAD", known ? g_pad(x->g, gy, off, hi, 0) : ops_blank_like(x->g, in));
}

bool x_crop_tensor_grad(Expand *x) { return uncropped(x, "OffsetsTensor"); }
bool x_crop_grad(Expand *x) { return uncropped(x, NULL); }
