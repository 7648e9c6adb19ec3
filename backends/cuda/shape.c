/* Contractions as the libraries know them. In: a K_CONTRACT kernel whose operands are stored; out: a strided batched matrix
 * product, or a convolution or one of its gradients, or that it is neither.
 *
 * Loops of extent 1 are dropped. Each other one is of M (first operand and result), N (second and result), K (summed), or of
 * the batch. An operand is read linearly, but for the dimensions in which a window moves: there it is read at
 *   position * stride + tap * dilation - pad               forward (the position is a result's), filter (the tap is)
 *   (position + pad - tap * dilation) / stride             data
 * Of forward and filter, which are one formula, the one with the smaller window is meant, or else the other. A product over
 * two axes that do not join is the filter's gradient of a 1 x 1 convolution.
 * Behind the sums only the bias is taken: a relu must keep NaN and a gelu be exact, which the libraries' need not. */
#include "foreign.h"
#include <stdlib.h>
#include <string.h>

/* ---- loops ---- */

typedef enum Role { ROLE_M, ROLE_N, ROLE_K, ROLE_BATCH, ROLE_NONE } Role;

/* A dimension with a window: read at (pos_c * position + tap_c * tap + off) / div. */
typedef struct Window {
  ForeignAxis pos, tap; /* of the result, summed; ext 1: none */
  int64_t pos_c, tap_c, off, div, ext, step;
} Window;

typedef struct Loops {
  const Node *c;
  Role role[KL_LOOPS];
  int64_t step[3][KL_LOOPS]; /* where it is read linearly */
  int64_t at[2];
  bool space[KL_LOOPS]; /* moves in a window */
  bool pixels;          /* the "window" is an axis of the sum */
  int x;                /* the operand with windows; -1: none */
  int n_window;
  Window window[FOREIGN_SPACE];
} Loops;

static bool is_term(const Node *c, int l, int64_t factor) {
  return l >= 0 && factor && c->ext[l] > 1;
}

/* Within bounds and without a division: adds its steps. */
static bool add_linear(Loops *o, int x, const AffDim *m, int64_t size, int64_t step) {
  int64_t lo = m->off, hi = m->off, factor[2] = {m->c0, m->c1};
  int loop[2] = {m->l0, m->l1};
  if (m->div != 1) return false;
  for (int i = 0; i < 2; i++) {
    if (!is_term(o->c, loop[i], factor[i])) continue;
    *(factor[i] < 0 ? &lo : &hi) += factor[i] * (o->c->ext[loop[i]] - 1);
  }
  if (lo < 0 || hi >= size) return false;
  o->at[x] += m->off * step;
  for (int i = 0; i < 2; i++)
    if (is_term(o->c, loop[i], factor[i])) o->step[x][loop[i]] += factor[i] * step;
  return true;
}

/* All of the dimension, once, by at most one loop. */
static bool is_whole(const Node *c, const AffDim *m, int64_t size) {
  bool a = is_term(c, m->l0, m->c0), b = is_term(c, m->l1, m->c1);
  int l = a ? m->l0 : m->l1;
  if (m->div != 1 || m->off != 0 || (a && b)) return false;
  if (!a && !b) return size == 1;
  return (a ? m->c0 : m->c1) == 1 && c->ext[l] == size;
}

static const ForeignAxis one_axis = {-1, 1, {0, 0, 0}};

static bool add_window(Loops *o, int x, const AffDim *m, int64_t size, int64_t step) {
  const Node *c = o->c;
  Window w = {one_axis, one_axis, 0, 0, m->off, m->div, size, step};
  int loop[2] = {m->l0, m->l1};
  int64_t factor[2] = {m->c0, m->c1};
  if (o->n_window == FOREIGN_SPACE || (o->x >= 0 && o->x != x)) return false;
  for (int i = 0; i < 2; i++) {
    if (!is_term(c, loop[i], factor[i])) continue;
    bool result = loop[i] < c->rank;
    ForeignAxis *a = result ? &w.pos : &w.tap;
    if (a->loop >= 0 || o->space[loop[i]]) return false;
    *a = (ForeignAxis){loop[i], c->ext[loop[i]], {0, 0, 0}};
    *(result ? &w.pos_c : &w.tap_c) = factor[i];
    o->space[loop[i]] = true;
  }
  o->x = x;
  o->window[o->n_window++] = w;
  return true;
}

static bool reads(const Node *c, int x, int l) {
  for (int d = 0; d < c->in[x]->rank; d++) {
    const AffDim *m = &c->map[x][d];
    if ((m->l0 == l && m->c0) || (m->l1 == l && m->c1)) return true;
  }
  return false;
}

static bool find_roles(Loops *o) {
  const Node *c = o->c;
  int64_t step = 1;
  for (int l = c->rank - 1; l >= 0; step *= c->ext[l--]) o->step[2][l] = step;
  for (int l = 0; l < c->n_loops; l++) {
    bool a = reads(c, 0, l), b = reads(c, 1, l);
    o->role[l] = c->ext[l] == 1 ? ROLE_NONE
                 : l >= c->rank ? ROLE_K
                 : a == b       ? ROLE_BATCH
                 : a            ? ROLE_M
                                : ROLE_N;
    if (o->role[l] == ROLE_K && !(a && b)) return false;
  }
  return true;
}

static bool is_served(DType t) {
  return t == DT_FLOAT32 || t == DT_FLOAT64 || t == DT_FLOAT16 || t == DT_BFLOAT16;
}

/* windows: dimensions that are not read whole may be windows. */
static bool find_loops(const Kernel *k, bool windows, Loops *o) {
  const Node *c = k->core;
  memset(o, 0, sizeof *o);
  o->c = c;
  o->x = -1;
  if (k->kind != K_CONTRACT || node_numel(c) == 0) return false;
  bool served = is_served(c->dtype);
  for (int l = 0; l < c->n_loops; l++) served &= c->ext[l] > 0;
  if (!served || !find_roles(o)) return false;
  for (int x = 0; x < 2; x++) {
    const Node *in = c->in[x];
    int64_t step = 1;
    if (in->dtype != c->dtype || kernel_input(k, in) < 0) return false;
    for (int d = in->rank - 1; d >= 0; step *= in->dims[d--]) {
      const AffDim *m = &c->map[x][d];
      bool window = windows && !is_whole(c, m, in->dims[d]);
      if (window ? !add_window(o, x, m, in->dims[d], step)
                 : !add_linear(o, x, m, in->dims[d], step))
        return false;
    }
  }
  for (int i = 0; i < o->n_window; i++) {
    ForeignAxis *a[] = {&o->window[i].pos, &o->window[i].tap};
    for (int j = 0; j < 2; j++)
      for (int t = 0; t < 3 && a[j]->loop >= 0; t++) a[j]->step[t] = o->step[t][a[j]->loop];
  }
  return true;
}

/* ---- axes ---- */

typedef struct Axes {
  int n;
  ForeignAxis v[KL_LOOPS];
} Axes;

static bool joins(const ForeignAxis *out, const ForeignAxis *in) {
  for (int t = 0; t < 3; t++)
    if (out->step[t] != in->step[t] * in->ext) return false;
  return true;
}

static void add_axis(Axes *to, const ForeignAxis *a) {
  ForeignAxis *last = to->n ? &to->v[to->n - 1] : NULL;
  if (last && joins(last, a)) {
    last->loop = -1;
    last->ext *= a->ext;
    memcpy(last->step, a->step, sizeof a->step);
  } else
    to->v[to->n++] = *a;
}

/* Of one role outside of windows, outermost first: by tensor t. */
static Axes axes_of(const Loops *o, Role role, int t) {
  ForeignAxis v[KL_LOOPS];
  Axes r = {0};
  int n = 0;
  for (int l = 0; l < o->c->n_loops; l++) {
    if (o->role[l] != role || o->space[l]) continue;
    ForeignAxis a = {l, o->c->ext[l], {o->step[0][l], o->step[1][l], o->step[2][l]}};
    int i = n++;
    for (; i > 0 && v[i - 1].step[t] < a.step[t]; i--) v[i] = v[i - 1];
    v[i] = a;
  }
  for (int i = 0; i < n; i++) add_axis(&r, &v[i]);
  return r;
}

static ForeignAxis only(const Axes *a) { return a->n ? a->v[a->n - 1] : one_axis; }

/* ---- products ---- */

/* All but the innermost axis become batches, in which the other operand stays where it is. */
static void move_to_batch(Axes *from, Axes *batch) {
  for (int i = 0; i + 1 < from->n; i++) add_axis(batch, &from->v[i]);
  if (from->n > 1) from->v[0] = from->v[from->n - 1];
  if (from->n > 1) from->n = 1;
}

bool foreign_product(const Kernel *k, ForeignProduct *p) {
  enum { MOST_OUTER = 32 };
  Loops o;
  if (!find_loops(k, false, &o)) return false;
  Axes m = axes_of(&o, ROLE_M, 2), n = axes_of(&o, ROLE_N, 2), sum = axes_of(&o, ROLE_K, 0),
       batch = axes_of(&o, ROLE_BATCH, 2);
  if (sum.n > 1) return false;
  move_to_batch(&m, &batch);
  move_to_batch(&n, &batch);
  if (batch.n > 2 || (batch.n == 2 && batch.v[0].ext > MOST_OUTER)) return false;
  *p = (ForeignProduct){.type = k->core->dtype,
                        .m = only(&m),
                        .n = only(&n),
                        .k = only(&sum),
                        .batch = only(&batch),
                        .outer = batch.n == 2 ? batch.v[0] : one_axis,
                        .at = {o.at[0], o.at[1]}};
  return true;
}

/* ---- convolutions ---- */

/* The axes that each tensor has: of the image, the filter and the result of the convolution, whatever is being computed. */
typedef struct ConvAxes {
  ForeignAxis images, inputs, outputs, group;
  int x, w, y; /* tensors */
} ConvAxes;

/* Channels of all groups. */
static bool channels(const ForeignAxis *group, const ForeignAxis *own, int t, int64_t *ext,
                     int64_t *step) {
  *ext = group->ext * own->ext;
  *step = own->ext > 1 ? own->step[t] : group->step[t];
  return group->ext == 1 || own->ext == 1 || group->step[t] == own->step[t] * own->ext;
}

static bool set_window(ForeignConv *v, int i, const Loops *o, const Window *w) {
  bool data = v->pass == PASS_DATA, filter = v->pass == PASS_FILTER;
  const ForeignAxis *pos = filter ? &w->tap : &w->pos, *tap = filter ? &w->pos : &w->tap;
  int64_t pos_c = filter ? w->tap_c : w->pos_c, tap_c = filter ? w->pos_c : w->tap_c;
  int d = 2 + i, plain = 1 - o->x;
  v->pad[i] = data ? w->off : -w->off;
  v->stride[i] = data ? w->div : pos->ext == 1 ? 1 : pos_c;
  v->dilation[i] = tap->ext == 1 ? 1 : data ? -tap_c : tap_c;
  v->filter.ext[d] = tap->ext;
  v->filter.step[d] = tap->step[filter ? 2 : plain];
  /* the window moves over the image; there is a result for each position */
  ForeignTensor *read = data ? &v->result : &v->image, *other = data ? &v->image : &v->result;
  read->ext[d] = w->ext;
  read->step[d] = w->step;
  other->ext[d] = pos->ext;
  other->step[d] = pos->step[filter ? plain : 2];
  int64_t reach = v->image.ext[d] + 2 * v->pad[i] - v->dilation[i] * (tap->ext - 1) - 1;
  return (data ? pos->ext == 1 || pos_c == 1 : w->div == 1) && v->pad[i] >= 0 && v->stride[i] > 0 &&
         v->dilation[i] > 0 && reach >= 0 && reach / v->stride[i] + 1 == v->result.ext[d];
}

/* By signs and divisions; else the window is what is smaller. */
static ForeignPass pass_of(const Loops *o) {
  double result = 1, sum = 1;
  for (int i = 0; i < o->n_window; i++) {
    const Window *w = &o->window[i];
    if (w->div > 1 || (w->pos_c > 0 && w->tap_c < 0)) return PASS_DATA;
    result *= (double)w->pos.ext;
    sum *= (double)w->tap.ext;
  }
  return sum > result ? PASS_FILTER : PASS_FORWARD;
}

/* A sum over two axes: images, and pixels in a row, over which a window of one tap moves. */
static bool add_pixels(Loops *o) {
  Axes sum = axes_of(o, ROLE_K, 0);
  if (sum.n != 2) return false;
  const ForeignAxis *a = &sum.v[1];
  o->x = 0;
  o->pixels = true;
  o->window[o->n_window++] = (Window){one_axis, *a, 0, 1, 0, 1, a->ext, a->step[0]};
  return true;
}

static bool conv_axes(const Loops *o, ForeignPass pass, ConvAxes *a) {
  Role image = o->x ? ROLE_N : ROLE_M, other = o->x ? ROLE_M : ROLE_N;
  Axes own = axes_of(o, image, 2), others = axes_of(o, other, 2), sum = axes_of(o, ROLE_K, o->x),
       group = axes_of(o, ROLE_BATCH, 2);
  if (o->pixels) sum.n = 1;
  if (own.n > 1 || others.n > 1 || sum.n > 1 || group.n > 1) return false;
  a->group = only(&group);
  bool filter = pass == PASS_FILTER, data = pass == PASS_DATA;
  a->images = only(filter ? &sum : &own);
  a->inputs = only(filter ? &own : data ? &others : &sum);
  a->outputs = only(data ? &sum : &others);
  a->x = data ? 2 : o->x;
  a->w = filter ? 2 : 1 - o->x;
  a->y = data ? o->x : filter ? 1 - o->x : 2;
  return true;
}

/* One-dimensional convolutions have a second dimension of 1. */
static void add_space(ForeignConv *v) {
  while (v->n_space < 2) {
    int i = v->n_space++, d = 2 + i;
    ForeignTensor *t[] = {&v->image, &v->filter, &v->result};
    for (int j = 0; j < 3; j++) t[j]->ext[d] = t[j]->step[d] = 1;
    v->pad[i] = 0;
    v->stride[i] = v->dilation[i] = 1;
  }
}

static bool conv_as(const Loops *o, ForeignPass pass, ForeignConv *v) {
  ConvAxes a;
  memset(v, 0, sizeof *v);
  v->type = o->c->dtype;
  v->pass = pass;
  if (!conv_axes(o, pass, &a)) return false;
  v->x = a.x, v->w = a.w, v->y = a.y;
  v->groups = a.group.ext;
  ForeignTensor *x = &v->image, *y = &v->result, *w = &v->filter;
  x->ext[0] = y->ext[0] = a.images.ext;
  x->step[0] = a.images.step[a.x];
  y->step[0] = a.images.step[a.y];
  if (!channels(&a.group, &a.inputs, a.x, &x->ext[1], &x->step[1]) ||
      !channels(&a.group, &a.outputs, a.y, &y->ext[1], &y->step[1]) ||
      !channels(&a.group, &a.outputs, a.w, &w->ext[0], &w->step[0]))
    return false;
  w->ext[1] = a.inputs.ext;
  w->step[1] = a.inputs.step[a.w];
  /* windows were found from the last dimension on */
  for (int i = 0; i < o->n_window; i++)
    if (!set_window(v, i, o, &o->window[o->n_window - 1 - i])) return false;
  v->n_space = o->n_window;
  add_space(v);
  return true;
}

bool foreign_conv(const Kernel *k, ForeignConv *v) {
  Loops o;
  if (!find_loops(k, true, &o)) return false;
  if (o.at[0] || o.at[1] || (!o.n_window && !add_pixels(&o))) return false;
  ForeignPass pass = pass_of(&o), other = pass == PASS_FORWARD ? PASS_FILTER : PASS_FORWARD;
  return conv_as(&o, pass, v) || (pass != PASS_DATA && conv_as(&o, other, v));
}

/* ---- what follows ---- */

/* A vector along one loop of the result. */
static bool is_bias(const Kernel *k, const Node *n, ForeignTail *t) {
  if (n->prim != P_VIEW || n->dtype != k->core->dtype) return false;
  const Node *v = n->in[0];
  t->bias = kernel_input(k, v);
  t->loop = -1;
  for (int d = 0; d < v->rank; d++) {
    const AffDim *m = &n->map[0][d];
    if (v->dims[d] == 1) continue;
    if (t->loop >= 0 || m->l0 < 0 || !aff_is_loop(m, m->l0) || v->dims[d] != n->dims[(int)m->l0])
      return false;
    t->loop = m->l0;
  }
  return t->bias >= 0 && t->loop >= 0;
}

bool foreign_tail(const Kernel *k, ForeignTail *t) {
  const Node *n = k->outputs.v[0];
  *t = (ForeignTail){-1, -1};
  if (k->outputs.n > 1) return false;
  if (n == k->core) return true;
  if (n->prim != P_ADD || n->dtype != k->core->dtype) return false;
  int i = n->in[0] == k->core;
  return n->in[!i] == k->core && is_bias(k, n->in[i], t);
}

bool foreign_sums_apart(const Kernel *k) { return k->outputs.n > 1 || k->outputs.v[0] != k->core; }
