/* Convolutions among the contractions. In: a CONTRACT. Out: the order of dimensions and loops in which it runs best with
 * the channel last, or "it is none".
 *
 * One operand (x) is read through windows: in its spatial dimensions a loop of the result and a summed one meet. The other
 * (w) is plain. Apart from those a loop of the result moves through x only (m), w only (n) or both (group); a summed
 * one (k) moves through both. A convolution and the gradient of its input sum over channels; in the latter the two loops
 * of a window have opposite signs. The gradient of the filter sums over images, which are x's first dimension.
 *
 *                     x                        w                      result                   sums
 *   convolution       m.. space.. group.. k..  taps.. k.. group n..   m.. space.. group n..    taps.. k..
 *   input gradient    m.. space.. group.. k..  taps.. n.. group k..   m.. space.. group n..    taps.. k..
 *   filter gradient   k.. space.. group.. m..  k.. space.. group n..  taps.. m.. group n..     k.. space..
 *
 * that is, a filter is [KH, KW, I, O] in all three. With the images last, [H, W, C, N], it is [O, KH, KW, I]:
 *
 *   convolution       space.. group.. k.. m..  n.. taps.. k..          space.. group.. n.. m..    taps.. k..
 *   input gradient    space.. group.. k.. m..  k.. taps.. n..          space.. group.. n.. m..    taps.. k..
 *   filter gradient   space.. group.. m.. k..  space.. group.. n.. k..  n.. taps.. m..             space.. k..
 *
 * With groups, a channel loop of size 1 is left out behind the group, so that depthwise is [N, H, W, C] with
 * [KH, KW, 1, C] to [N, OH, OW, C]. x becomes the first operand, and in a window
 * the result's loop is the first term. */
#include "layout.h"
#include <string.h>

/* Vectors run along the output channels, or the images: what they must be filled to, on average over the arithmetic. */
enum { LANES = 16 };
static const double FILLED = 0.85;
int layout_always;

typedef enum LoopRole { END, M, N, GROUP, K, SPACE_M, SPACE_K } LoopRole;

typedef struct Loops {
  LoopRole role[KL_LOOPS];
  bool mirrored; /* the gradient of an input: a window's loops have opposite signs */
  bool groups;
  int dim[2][KL_LOOPS]; /* of x and w where the loop is; -1: not there */
} Loops;

static bool is_window(const AffDim *m, int rank) {
  return m->l0 >= 0 && m->l1 >= 0 && (m->l0 < rank) != (m->l1 < rank);
}

static int count_windows(const Node *n, int side) {
  int count = 0;
  for (int d = 0; d < n->in[side]->rank; d++) count += is_window(&n->map[side][d], n->rank);
  return count;
}

static bool take(Loops *l, int t, int loop, int d) {
  if (l->dim[t][loop] >= 0) return false;
  l->dim[t][loop] = d;
  return true;
}

/* Where every loop is; false if a dimension is read in another way. */
static bool find_dims(const Node *n, int x, Loops *l) {
  memset(l->dim, -1, sizeof l->dim);
  for (int t = 0; t < 2; t++) {
    int side = t ? !x : x;
    for (int d = 0; d < n->in[side]->rank; d++) {
      const AffDim *m = &n->map[side][d];
      if (!t && is_window(m, n->rank)) {
        if (!take(l, t, m->l0, d) || !take(l, t, m->l1, d)) return false;
      } else if (m->l0 < 0 || !aff_is_loop(m, m->l0) ||
                 n->in[side]->dims[d] != n->ext[(int)m->l0] || !take(l, t, m->l0, d))
        return false;
    }
  }
  return true;
}

/* A loop of extent 1 may be missing in the operands: views of other ranks have gone into their maps. */
static bool find_roles(const Node *n, int x, bool images, Loops *l) {
  for (int i = 0; i < n->n_loops; i++) {
    int d = l->dim[0][i];
    bool in_x = d >= 0, in_w = l->dim[1][i] >= 0, result = i < n->rank;
    bool space = in_x && is_window(&n->map[x][d], n->rank);
    if (space && (result ? in_w : !in_w)) return false;
    if (space)
      l->role[i] = result ? SPACE_M : SPACE_K;
    else if (!result && !(in_x && in_w) && n->ext[i] > 1)
      return false;
    else
      l->role[i] = !result                     ? K
                   : in_x && in_w              ? GROUP
                   : in_x                      ? M
                   : in_w                      ? N
                   : n->ext[i] == 1 && !images ? M
                                               : END;
    if (l->role[i] == END) return false;
    l->groups |= l->role[i] == GROUP && n->ext[i] > 1;
    if (space) l->mirrored |= (n->map[x][d].c0 < 0) != (n->map[x][d].c1 < 0);
  }
  return true;
}

typedef struct FormInfo {
  LoopRole order[4][4]; /* of x, w, result; sums */
  LoopRole behind[3];   /* behind a group, left out if its size is 1 */
} FormInfo;
static const FormInfo forms[2][3] = {{
                                         [FORM_FORWARD] = {{{M, SPACE_M, GROUP, K},
                                                            {SPACE_K, K, GROUP, N},
                                                            {M, SPACE_M, GROUP, N},
                                                            {SPACE_K, K, END}},
                                                           {K, N, N}},
                                         [FORM_INPUT] = {{{M, SPACE_M, GROUP, K},
                                                          {SPACE_K, N, GROUP, K},
                                                          {M, SPACE_M, GROUP, N},
                                                          {SPACE_K, K, END}},
                                                         {K, K, N}},
                                         [FORM_FILTER] = {{{K, SPACE_M, GROUP, M},
                                                           {K, SPACE_K, GROUP, N},
                                                           {SPACE_M, M, GROUP, N},
                                                           {K, SPACE_K, END}},
                                                          {M, N, N}},
                                     },
                                     /* with the images last */
                                     {
                                         [FORM_FORWARD] = {{{SPACE_M, GROUP, K, M},
                                                            {N, GROUP, SPACE_K, K},
                                                            {SPACE_M, GROUP, N, M},
                                                            {SPACE_K, K, END}},
                                                           {K, N, N}},
                                         [FORM_INPUT] = {{{SPACE_M, GROUP, K, M},
                                                          {K, GROUP, SPACE_K, N},
                                                          {SPACE_M, GROUP, N, M},
                                                          {SPACE_K, K, END}},
                                                         {K, K, N}},
                                         [FORM_FILTER] = {{{SPACE_M, GROUP, M, K},
                                                           {SPACE_K, GROUP, N, K},
                                                           {N, GROUP, SPACE_M, M},
                                                           {SPACE_K, K, END}},
                                                          {M, N, N}},
                                     }};
/* The tensor that is a filter. */
static int filter_of(Form form) { return form == FORM_FILTER ? 2 : 1; }

/* Adds the loops of a role to the order of tensor t, 3 being the sums; spatial ones in the order of x. */
static void add_role(const Node *n, const Loops *l, ConvForm *f, int t, LoopRole r) {
  int8_t *to = t == 3 ? f->sums : f->dims[t];
  int *count = t == 3 ? &f->n_sums : &f->n[t];
  bool space = r == SPACE_M || r == SPACE_K;
  int by = space   ? 0
           : t < 2 ? t
                   : -1; /* in the order of this operand's dimensions, or of the loops */
  int n_at = by >= 0 ? n->in[by ? !f->x : f->x]->rank : n->n_loops;
  for (int at = 0; at < n_at; at++)
    for (int i = 0; i < n->n_loops; i++) {
      if (l->role[i] != r || (by >= 0 ? l->dim[by][i] : i) != at) continue;
      if (l->groups && n->ext[i] == 1 && t < 3 && r == forms[f->images][f->form].behind[t])
        continue;
      to[(*count)++] = (int8_t)(t < 2 ? l->dim[t][i] : i);
    }
}

/* The layout of tensor t; its channels are the dimensions behind the first `lead`. */
static Layout layout_of(const ConvForm *f, int t, int rank, int lead) {
  Layout own = {.set = true};
  uint32_t listed = 0, channels = 0;
  int at = 0;
  for (int i = 0; i < f->n[t]; i++) {
    listed |= 1u << f->dims[t][i];
    if (i >= lead) channels |= 1u << f->dims[t][i];
    own.perm[at++] = f->dims[t][i];
  }
  for (int d = 0; d < rank; d++)
    if (!(listed >> d & 1)) own.perm[at++] = (int8_t)d;
  Layout last = layout_channels(rank, channels, f->images);
  bool ordered = true; /* but for what is left out */
  for (int i = 0, j = 0; i < rank; i++)
    if (listed >> last.perm[i] & 1) ordered &= last.perm[i] == f->dims[t][j++];
  return lead && ordered ? last : own;
}

bool conv_form(const Graph *g, const Node *n, bool images, ConvForm *f) {
  enum {
    MOST_WINDOWS = 2
  }; /* that CPUs run directly; more are gathered, best along rows of images */
  Loops l = {0};
  if (n->prim != P_CONTRACT || !dtype_is_float(n->dtype)) return false;
  *f = (ConvForm){.x = !count_windows(n, 0), .images = images};
  int windows = count_windows(n, f->x);
  if (count_windows(n, !f->x) || !windows) return false;
  if (!find_dims(n, f->x, &l) || !find_roles(n, f->x, images, &l)) return false;
  if (windows > MOST_WINDOWS && !l.groups && !g->channels_last) return false;
  f->depthwise = f->groups = l.groups;
  for (int i = 0; i < n->n_loops; i++)
    f->depthwise &= (l.role[i] != N && l.role[i] != K) || n->ext[i] == 1;
  bool sums_images = l.role[n->map[f->x][0].l0] == K;
  f->form = sums_images ? FORM_FILTER : l.mirrored ? FORM_INPUT : FORM_FORWARD;
  for (int t = 0; t < 4; t++) {
    const LoopRole *order = forms[images][f->form].order[t];
    int lead = 0;
    for (int i = 0; i < 4; i++) {
      if (i == (images ? 1 : 2) && t < 3) lead = f->n[t];
      if (order[i] != END) add_role(n, &l, f, t, order[i]);
    }
    if (t == 3) break;
    int rank = t == 2 ? n->rank : n->in[t ? !f->x : f->x]->rank;
    f->layout[t] = layout_of(f, t, rank, t == filter_of(f->form) ? 0 : lead);
  }
  return true;
}

void conv_keep_filter(const Node *n, ConvForm *f) {
  f->n[1] = n->in[!f->x]->rank;
  for (int d = 0; d < f->n[1]; d++) f->dims[1][d] = (int8_t)d;
  f->layout[1] = layout_channels(f->n[1], 0, false);
}

static AffDim renumber(const AffDim *m, const int8_t *loop) {
  AffDim r = {-1, -1, 0, 0, m->off, m->div};
  int l0 = m->l0 < 0 ? -1 : loop[m->l0], l1 = m->l1 < 0 ? -1 : loop[m->l1];
  bool swap = l0 < 0 || (l1 >= 0 && l1 < l0);
  r.l0 = (int8_t)(swap ? l1 : l0);
  r.l1 = (int8_t)(swap ? l0 : l1);
  r.c0 = r.l0 < 0 ? 0 : swap ? m->c1 : m->c0;
  r.c1 = r.l1 < 0 ? 0 : swap ? m->c0 : m->c1;
  return r;
}

Node *conv_build(Graph *g, const Node *n, const ConvForm *f, Node *x, Node *w) {
  int8_t loop[KL_LOOPS];
  int64_t ext[KL_LOOPS], dims[KL_RANK];
  AffDim map[2][KL_RANK];
  Node *in[2] = {x, w};
  int n_loops = 0;
  memset(loop, -1, sizeof loop);
  for (int i = 0; i < f->n[2] + f->n_sums; i++) {
    int l = i < f->n[2] ? f->dims[2][i] : f->sums[i - f->n[2]];
    ext[n_loops] = n->ext[l];
    loop[l] = (int8_t)n_loops++;
  }
  for (int t = 0; t < 2; t++) {
    int side = t ? !f->x : f->x;
    for (int i = 0; i < f->n[t]; i++) {
      int d = f->dims[t][i];
      dims[i] = n->in[side]->dims[d];
      map[t][i] = renumber(&n->map[side][d], loop);
    }
    in[t] = g_reshape(g, in[t], f->n[t], dims);
  }
  Node *c = g_contract(g, in[0], in[1], f->n[2], n_loops, ext, map[0], map[1]);
  const Layout *to = &f->layout[2];
  for (int d = 0; d < n->rank; d++) dims[d] = n->dims[to->perm[d]];
  return g_reshape(g, c, n->rank, dims);
}

bool conv_pays(const Graph *g) {
  double all = 0, filled = 0;
  if (layout_always) return layout_always == 1;
  for (int i = 0; i < g->nodes.n; i++) {
    const Node *n = g->nodes.v[i];
    ConvForm f;
    if (!conv_form(g, n, false, &f) || f.form == FORM_FILTER) continue;
    double flops = 1, lanes = 1;
    for (int l = 0; l < n->n_loops; l++) flops *= (double)n->ext[l];
    for (int d = 0; d < n->rank; d++)
      if (f.layout[2].channels >> d & 1) lanes *= (double)n->dims[d];
    int64_t vectors = ((int64_t)lanes + LANES - 1) / LANES;
    all += flops;
    if (vectors > 0) filled += flops * lanes / (double)(vectors * LANES);
  }
  return all > 0 && (g->channels_last || filled >= FILLED * all);
}

bool conv_images_pay(const Graph *g) {
  double all = 0, filled = 0;
  if (layout_always) return layout_always == 2;
  for (int i = 0; i < g->nodes.n && g->images_last; i++) {
    const Node *n = g->nodes.v[i];
    ConvForm f;
    if (!conv_form(g, n, true, &f)) continue;
    const Node *x = n->in[f.x];
    int64_t images = x->dims[f.layout[0].perm[x->rank - 1]], vectors = (images + LANES - 1) / LANES;
    double flops = 1;
    if (f.groups || n->dtype != DT_FLOAT32) return false;
    for (int l = 0; l < n->n_loops; l++) flops *= (double)n->ext[l];
    all += flops;
    if (images >= LANES) filled += flops * (double)images / (double)(vectors * LANES);
  }
  return all > 0 && filled >= FILLED * all && !conv_pays(g);
}
