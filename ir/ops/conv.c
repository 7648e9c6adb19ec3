/* Convolutions of two and three dimensions, and their transposes. A convolution is one contraction (g_conv) in channels-first
 * order; channels-last operands are permuted around it. The transpose is the gradient of a convolution with respect to its
 * input, so derive() makes it. */
#include "ops.h"

#include <string.h>

typedef struct Conv {
  Node *in,
      *w; /* channels first; the filter is [out, in/groups, k..], transposed: [in, out/groups, k..] */
  Window win;
  int64_t groups;
  bool last; /* the program's layout has the channels last */
} Conv;

static bool bad_channels(const Conv *c, int64_t have, int64_t need) {
  err_set(E_SHP_006, "Input has %lld channels, Filter %s with groups %lld needs %lld",
          (long long)have, dims_text(c->w->rank, c->w->dims), (long long)c->groups,
          (long long)need);
  err_note("Input is %s", shape_text(c->in->dtype, c->in->rank, c->in->dims));
  err_help("Filter is [out, in/groups, kernel..]; a transposed one is [in, out/groups, kernel..].");
  return false;
}

static bool conv_read(Expand *x, int n_sp, bool transposed, Conv *c) {
  c->in = x_in(x, "Input");
  c->w = x_in(x, "Filter");
  if (!ops_rank(c->in, "Input", n_sp + 2, n_sp + 2) ||
      !ops_rank(c->w, "Filter", n_sp + 2, n_sp + 2) || !ops_layout(x, "data_format", &c->last))
    return false;
  if (c->last) c->in = ops_channels_first(x->g, c->in);
  if (!c->in) return false;
  c->win.n_sp = n_sp;
  c->groups = op_int(x->op, "groups");
  if (c->groups < 1 || c->groups > INT32_MAX) {
    err_set(E_OPR_003, "groups is %lld", (long long)c->groups);
    err_help("groups must be at least 1.");
    return false;
  }
  if (!ops_ints(x, "strides", n_sp, 1, INT32_MAX, c->win.stride) ||
      !ops_ints(x, "dilations", n_sp, 1, INT32_MAX, c->win.dil))
    return false;
  for (int i = 0; i < n_sp; i++) {
    c->win.k[i] = c->w->dims[2 + i];
    if (c->win.k[i] == 0 || c->win.k[i] > INT32_MAX)
      return err_set(E_SHP_005, "Filter %s has a kernel of size %lld",
                     dims_text(c->w->rank, c->w->dims), (long long)c->win.k[i]);
  }
  int64_t chan = c->in->dims[1], per = c->w->dims[1], rows = c->w->dims[0], need = rows;
  if (!transposed && per >= 0 && !mul_ok(per, c->groups, &need)) need = -1;
  if (chan >= 0 && per >= 0 && rows >= 0 && chan != need) return bad_channels(c, chan, need);
  if (rows >= 0 && rows % c->groups != 0) {
    err_set(E_SHP_006, "%lld channels do not divide into %lld groups", (long long)rows,
            (long long)c->groups);
    err_help("The first dimension of Filter must be a multiple of groups.");
    return false;
  }
  return ops_paddings(x, &c->win, c->in->dims + 2);
}

/* Bias, residual and activation of fused files; then the program's layout. */
static bool conv_finish(Expand *x, const Conv *c, Node *out) {
  if (!out) return false;
  if (x_n_in(x, "Bias") > 0) {
    Node *b = x_in(x, "Bias");
    if (b && !ops_same("output channels and elements of Bias", out->dims[1],
                       ops_prod(b->dims, 0, b->rank)))
      return false;
    out = g_map2(x->g, P_ADD, out, ops_along(x->g, b, out->rank, 1));
  }
  if (c->last) out = ops_channels_last(x->g, out);
  if (opdef_in(x->op->def, "ResidualData") && x_n_in(x, "ResidualData") > 0)
    out = g_map2(x->g, P_ADD, out, x_in(x, "ResidualData"));
  const char *act = op_str(x->op, "fuse_activation");
  if (*act && strcmp(act, "relu") != 0) {
    err_set(E_OPR_004, "fuse_activation is %s", quoted(act));
    err_help("Only \"relu\" may be fused into a convolution; make the activation an operator.");
    return false;
  }
  if (*act || op_bool(x->op, "fuse_relu")) out = g_map2c(x->g, P_MAX, out, 0);
  return x_out(x, "Output", out);
}

static bool conv(Expand *x, int n_sp) {
  Conv c;
  if (!conv_read(x, n_sp, false, &c)) return false;
  int64_t dims[KL_RANK] = {c.in->dims[0], c.w->dims[0]};
  bool known = ops_known(c.in) && ops_known(c.w);
  for (int i = 0; i < n_sp; i++)
    if (c.win.k[i] < 0)
      dims[2 + i] = -1;
    else if (!ops_window_out(&c.win, i, c.in->dims[2 + i], false, &dims[2 + i]))
      return false;
  if (!known) return conv_finish(x, &c, ops_blank(x->g, c.in->dtype, n_sp + 2, dims));
  return conv_finish(x, &c,
                     g_conv(x->g, c.in, c.w, n_sp, c.win.stride, c.win.lo, c.win.hi, c.win.dil,
                            c.groups));
}

bool x_conv2d(Expand *x) { return conv(x, 2); }
bool x_conv3d(Expand *x) { return conv(x, 3); }

/* out = (in-1)*stride - lo - hi + dil*(k-1) + 1, enlarged by output_padding or to output_size, both below one stride. */
static bool transposed_out(Expand *x, const Conv *c, int64_t *out) {
  int n_pad, n_size, n_sp = c->win.n_sp;
  const int64_t *pad = op_intlist(x->op, "output_padding", x->g->arena, &n_pad);
  const int64_t *size = op_intlist(x->op, "output_size", x->g->arena, &n_size);
  if ((n_pad && n_pad != n_sp) || (n_size && n_size != n_sp)) {
    err_set(E_OPR_003, "output_padding has %d and output_size %d values, %d or none needed", n_pad,
            n_size, n_sp);
    return false;
  }
  for (int i = 0; i < n_sp; i++) {
    int64_t in = c->in->dims[2 + i], base = -1;
    out[i] = n_size ? size[i] : -1;
    if (in < 0 || c->win.k[i] < 0) continue;
    if (in > INT32_MAX) return err_set(E_MEM_002, "a spatial size of %lld", (long long)in);
    base = (in - 1) * c->win.stride[i] - c->win.lo[i] - c->win.hi[i] +
           c->win.dil[i] * (c->win.k[i] - 1) + 1;
    int64_t want = n_size ? size[i] : base + (n_pad ? pad[i] : 0);
    if (want < base || want >= base + c->win.stride[i] || want < 1) {
      err_set(E_SHP_005, "the output size %lld of spatial dimension %d is outside %lld..%lld",
              (long long)want, i, (long long)base, (long long)(base + c->win.stride[i] - 1));
      err_help("Correct output_size, output_padding or paddings.");
      return false;
    }
    out[i] = want;
  }
  return true;
}

static bool conv_transpose(Expand *x, int n_sp) {
  Conv c;
  if (!conv_read(x, n_sp, true, &c)) return false;
  int64_t per = c.w->dims[1], chan = -1, dims[KL_RANK] = {c.in->dims[0]};
  if (per >= 0 && !mul_ok(per, c.groups, &chan))
    return err_set(E_MEM_002, "%lld channels in %lld groups", (long long)per, (long long)c.groups);
  dims[1] = chan;
  if (!transposed_out(x, &c, dims + 2)) return false;
  Node *blank = ops_blank(x->g, c.in->dtype, n_sp + 2, dims);
  if (!ops_known(c.in) || !ops_known(c.w)) return conv_finish(x, &c, blank);
  Node *y = g_conv(x->g, blank, c.w, n_sp, c.win.stride, c.win.lo, c.win.hi, c.win.dil, c.groups);
  Node *out = NULL;
  if (!y || !derive(x->g, 1, &y, &c.in, 1, &blank, &out)) return false;
  return conv_finish(x, &c, out);
}

bool x_conv2d_transpose(Expand *x) { return conv_transpose(x, 2); }
bool x_conv3d_transpose(Expand *x) { return conv_transpose(x, 3); }
