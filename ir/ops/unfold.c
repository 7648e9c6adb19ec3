/* Rearrangements of image patches: unfold (windows as columns), fold (its transpose, made by derive()) and pixel_shuffle. */
#include "ops.h"

#include <string.h>

static bool unfold_window(Expand *x, Window *w) {
  int n;
  const int64_t *p = op_intlist(x->op, "paddings", x->g->arena, &n);
  w->n_sp = 2;
  if (!ops_ints(x, "kernel_sizes", 2, 1, INT32_MAX, w->k) ||
      !ops_ints(x, "strides", 2, 1, INT32_MAX, w->stride) ||
      !ops_ints(x, "dilations", 2, 1, INT32_MAX, w->dil))
    return false;
  bool ok = n == 1 || n == 2 || n == 4;
  for (int i = 0; i < n && ok; i++) ok = p[i] >= 0 && p[i] <= INT32_MAX;
  if (!ok) {
    err_set(E_OPR_003, "paddings is %s", dims_text(n < KL_RANK ? n : KL_RANK, p));
    err_help("Give 1, 2 or 4 (top, left, bottom, right) numbers that are not negative.");
    return false;
  }
  for (int i = 0; i < 2; i++) {
    w->lo[i] = n == 1 ? p[0] : p[i];
    w->hi[i] = n == 4 ? p[2 + i] : w->lo[i];
  }
  return true;
}

/* [N, C, H, W] -> [N, C*KH*KW, OH*OW] */
static Node *unfolded(Graph *g, Node *in, const Window *w) {
  static const int perm[] = {0, 1, 4, 5, 2, 3};
  Node *v = g_window(g, in, 2, 2, w->k, w->stride, w->dil, w->lo, w->hi, 0);
  v = v ? g_permute(g, v, perm) : NULL;
  if (!v) return NULL;
  return g_reshape(g, v, 3,
                   (int64_t[]){v->dims[0], ops_prod(v->dims, 1, 4), ops_prod(v->dims, 4, 6)});
}

bool x_unfold(Expand *x) {
  Node *in = x_in(x, "X");
  Window w;
  int64_t out[2];
  if (!ops_rank(in, "X", 4, 4) || !unfold_window(x, &w)) return false;
  for (int i = 0; i < 2; i++)
    if (!ops_window_out(&w, i, in->dims[2 + i], false, &out[i])) return false;
  if (ops_known(in)) return x_out(x, "Y", unfolded(x->g, in, &w));
  int64_t cells[3] = {in->dims[1], w.k[0], w.k[1]};
  return x_out(x, "Y",
               ops_blank(x->g, in->dtype, 3,
                         (int64_t[]){in->dims[0], ops_prod(cells, 0, 3), ops_prod(out, 0, 2)}));
}

bool x_fold(Expand *x) {
  Graph *g = x->g;
  Node *in = x_in(x, "X"), *out = NULL;
  Window w;
  int64_t size[2], n[2];
  if (!ops_rank(in, "X", 3, 3) || !unfold_window(x, &w) ||
      !ops_ints(x, "output_sizes", 2, 1, INT32_MAX, size))
    return false;
  for (int i = 0; i < 2; i++)
    if (!ops_window_out(&w, i, size[i], false, &n[i])) return false;
  int64_t cell, windows, c = in->dims[1];
  if (!mul_ok(w.k[0], w.k[1], &cell) || !mul_ok(n[0], n[1], &windows))
    return err_set(E_MEM_002, "kernel_sizes or output_sizes are too large");
  if (c >= 0 && c % cell != 0) {
    err_set(E_SHP_006, "%lld columns of X are no multiple of the kernel's %lld cells", (long long)c,
            (long long)cell);
    err_help("X is [N, C*KH*KW, L].");
    return false;
  }
  if (!ops_same("windows of the output and the last dimension of X", windows, in->dims[2]))
    return false;
  int64_t dims[4] = {in->dims[0], c < 0 ? -1 : c / cell, size[0], size[1]};
  Node *blank = ops_blank(g, in->dtype, 4, dims);
  if (!ops_known(in)) return x_out(x, "Y", blank);
  Node *y = unfolded(g, blank, &w);
  return y && derive(g, 1, &y, &in, 1, &blank, &out) && x_out(x, "Y", out);
}

/* in [N, C*r*r, H, W] -> [N, C, H*r, W*r], or the way back. */
static Node *shuffled(Graph *g, Node *in, int64_t r, bool back) {
  static const int forth_perm[] = {0, 1, 4, 2, 5, 3}, back_perm[] = {0, 1, 3, 5, 2, 4};
  const int64_t *d = in->dims;
  if (!back) {
    Node *v = g_reshape(g, in, 6, (int64_t[]){d[0], d[1] / (r * r), r, r, d[2], d[3]});
    return g_reshape(g, v ? g_permute(g, v, forth_perm) : NULL, 4,
                     (int64_t[]){d[0], d[1] / (r * r), d[2] * r, d[3] * r});
  }
  Node *v = g_reshape(g, in, 6, (int64_t[]){d[0], d[1], d[2] / r, r, d[3] / r, r});
  return g_reshape(g, v ? g_permute(g, v, back_perm) : NULL, 4,
                   (int64_t[]){d[0], d[1] * r * r, d[2] / r, d[3] / r});
}

static bool pixel_shuffle(Expand *x, const char *factor, const char *from, const char *to,
                          bool back) {
  Graph *g = x->g;
  Node *in = x_in(x, from);
  bool last;
  int64_t r = op_int(x->op, factor);
  if (!ops_rank(in, from, 4, 4) || !ops_layout(x, "data_format", &last)) return false;
  if (last) in = ops_channels_first(g, in);
  if (!in) return false;
  int64_t *d = in->dims;
  bool ok = r >= 1 && r <= 1 << 15;
  if (ok && !back) ok = d[1] < 0 || d[1] % (r * r) == 0;
  if (ok && back) ok = (d[2] < 0 || d[2] % r == 0) && (d[3] < 0 || d[3] % r == 0);
  if (!ok) {
    err_set(E_OPR_003, "%s is %lld for %s", factor, (long long)r, dims_text(4, d));
    err_help(back ? "Height and width must be multiples of it."
                  : "The channels must be a multiple of its square.");
    return false;
  }
  Node *out;
  if (ops_known(in)) {
    out = shuffled(g, in, r, back);
  } else {
    int64_t up = back ? 1 : r, down = back ? r : 1, dims[4] = {d[0], -1, -1, -1};
    if (d[1] >= 0) dims[1] = d[1] * down * down / (up * up);
    for (int i = 2; i < 4; i++)
      if (d[i] >= 0) dims[i] = d[i] * up / down;
    out = ops_blank(g, in->dtype, 4, dims);
  }
  return x_out(x, to, last ? ops_channels_last(g, out) : out);
}

bool x_pixel_shuffle(Expand *x) { return pixel_shuffle(x, "upscale_factor", "X", "Out", false); }
bool x_pixel_shuffle_grad(Expand *x) {
  return pixel_shuffle(x, "upscale_factor", "Out@GRAD", "X@GRAD", true);
}
bool x_pixel_unshuffle(Expand *x) { return pixel_shuffle(x, "downscale_factor", "X", "Out", true); }
bool x_pixel_unshuffle_grad(Expand *x) {
  return pixel_shuffle(x, "downscale_factor", "Out@GRAD", "X@GRAD", false);
}
