/* What convolution a contraction is: its loops, and its parts.
 *
 * In: a contraction whose result has neighbouring columns (loops that move the filter B only), and whose other operand A has
 * neighbouring channels (summed) at positions; A's positions are windows (position and tap), maybe divided by a stride. A
 * matrix product is the case of one tap. Out: the part of a ConvPlan that depends on no tile, or false.
 *
 * A division by s is undone: the results of one residue of the position modulo s use every tap of one residue only, and are a
 * convolution of stride 1 (a part). Taps that run backwards are turned round with their filter index. Rows of positions that
 * follow one another without gaps are joined. */
#include "conv.h"

/* ---- which loops are what ---- */

typedef struct Spatial {
  int dim;      /* of A */
  int pos, tap; /* loops; -1: none, and of positions one */
} Spatial;

typedef struct Found {
  int x; /* operand A */
  int n;
  Spatial sp[2]; /* w, then h */
  LoopList images, groups, channels, columns;
  bool reordered;
} Found;

static LoopClass position_class(int x) { return x ? LC_N : LC_M; }
static LoopClass column_class(int x) { return x ? LC_M : LC_N; }

/* The dimension of A that a loop moves through, if it is one only; -1. */
static int dim_of_loop(const Facts *f, int x, int loop) {
  int found = -1;
  for (int d = 0; d < f->n_dims[x]; d++)
    for (int i = 0; i < 2; i++)
      if (f->dim[x][d].l[i] == loop) {
        if (found >= 0) return -1;
        found = d;
      }
  return found;
}

static int other_loop(const CDim *c, int loop) { return c->l[0] == loop ? c->l[1] : c->l[0]; }
static bool add_spatial(const Facts *f, Found *r, int loop) {
  int d = dim_of_loop(f, r->x, loop);
  if (d < 0 || r->n == 2) return false;
  int tap = other_loop(&f->dim[r->x][d], loop);
  if (tap >= 0 && f->loop[tap].class != LC_K) return false;
  r->sp[r->n++] = (Spatial){d, loop, tap};
  return true;
}

/* Positions: the two innermost of the loops that move A and the result, or those with windows; the rest are images. */
static bool find_positions(const Facts *f, Found *r) {
  LoopList l = loops_of(f, 1u << position_class(r->x));
  list_sort(f, &l, 2);
  for (int i = l.n - 1; i >= 0; i--) {
    int d = dim_of_loop(f, r->x, l.id[i]);
    if (d < 0) return false;
    const CDim *c = &f->dim[r->x][d];
    bool window = c->guard || c->l[1] >= 0;
    if (r->n < 2 ? !add_spatial(f, r, l.id[i]) : window) return false;
  }
  for (int i = 0; i < l.n - r->n; i++) list_add(f, &r->images, l.id[i]);
  return true;
}

/* A sum that A and the filter have in another order than that of channels: the taps of one position. */
static bool add_taps(const Facts *f, Found *r, int loop) {
  int d = dim_of_loop(f, r->x, loop);
  if (d < 0 || r->n == 2) return false;
  const CDim *c = &f->dim[r->x][d];
  if (c->guard || c->div > 1 || other_loop(c, loop) >= 0) return false;
  r->sp[r->n++] = (Spatial){d, -1, loop};
  return true;
}

static bool find_loops(const Facts *f, int x, Found *r) {
  *r = (Found){.x = x};
  r->images.total = r->groups.total = r->channels.total = r->columns.total = 1;
  LoopList rest = {.total = 1};
  if (!f->plain[!x] || !find_positions(f, r)) return false;
  r->groups = loops_of(f, 1u << LC_BATCH);
  r->columns = merge_tail(f, loops_of(f, 1u << column_class(x)), 2, 1u << 2 | 1u << !x, &rest);
  if (r->columns.total > 1 && list_step(f, &r->columns, 2) != 1) return false;
  for (int i = 0; i < rest.n; i++) list_add(f, &r->groups, rest.id[i]);
  r->reordered = rest.n > 0;
  rest.n = 0;
  LoopList k = loops_of(f, 1u << LC_K), plain = {.total = 1};
  for (int i = 0; i < k.n; i++)
    if (k.id[i] != (r->n > 0 ? r->sp[0].tap : -1) && k.id[i] != (r->n > 1 ? r->sp[1].tap : -1))
      list_add(f, &plain, k.id[i]);
  r->channels = merge_tail(f, plain, x, 1u << x | 1u << !x, &rest);
  if (r->channels.total > 1 && list_step(f, &r->channels, x) != 1) return false;
  for (int i = 0; i < rest.n; i++)
    if (!add_taps(f, r, rest.id[i])) return false;
  r->reordered |= rest.n > 0;
  for (int d = 0; d < f->n_dims[x]; d++) { /* no windows but those that were found */
    bool spatial = (r->n > 0 && r->sp[0].dim == d) || (r->n > 1 && r->sp[1].dim == d);
    if (!spatial && (f->dim[x][d].guard || f->dim[x][d].div > 1)) return false;
  }
  return true;
}

/* ---- parts ---- */

static int64_t floor_mod(int64_t a, int64_t n) { return ((a % n) + n) % n; }

static PartAxis turned(PartAxis p) {
  if (p.tap_step >= 0) return p;
  p.in += p.tap_step * (p.taps - 1);
  p.k += p.k_step * (p.taps - 1);
  p.tap_step = -p.tap_step;
  p.k_step = -p.k_step;
  return p;
}

int conv_axis(const Facts *f, int x, int dim, int pos, int tap, PartAxis *to) {
  if (dim < 0) {
    *to = (PartAxis){.out_step = 1, .n = 1, .in_step = 1, .taps = 1, .k_step = 1};
    return 1;
  }
  const CDim *c = &f->dim[x][dim];
  int64_t n = pos < 0 ? 1 : f->loop[pos].ext, taps = tap < 0 ? 1 : f->loop[tap].ext;
  int64_t cp = pos < 0 ? 1 : dim_factor(c, pos), ct = dim_factor(c, tap), s = c->div;
  PartAxis p = {.out_step = 1, .n = n, .in = c->off, .in_step = cp, .tap_step = ct, .taps = taps};
  p.k_step = 1;
  if (s == 1) {
    *to = turned(p);
    return cp > 0;
  }
  if (cp != 1 || s > 4) return 0;
  for (int64_t res = 0; res < s; res++) {
    PartAxis *q = &to[res];
    *q = (PartAxis){.out = res, .out_step = s, .n = div_up(n - res, s), .in_step = 1, .k_step = 1};
    for (int64_t t = 0; t < taps; t++) {
      if (floor_mod(res + ct * t + c->off, s)) continue;
      int64_t at = (res + ct * t + c->off) / s;
      if (!q->taps)
        q->k = t, q->in = at;
      else if (q->taps == 1)
        q->k_step = t - q->k, q->tap_step = at - q->in;
      q->taps++;
    }
    *q = turned(*q);
  }
  return (int)s;
}

static int axis_parts(const Facts *f, const Found *r, int i, PartAxis *to) {
  const Spatial *s = &r->sp[i];
  return i < r->n ? conv_axis(f, r->x, s->dim, s->pos, s->tap, to)
                  : conv_axis(f, r->x, -1, -1, -1, to);
}

static bool inside(const PartAxis *p, int64_t size) {
  return !p->taps || !p->n ||
         (p->in >= 0 && p->in + p->in_step * (p->n - 1) + p->tap_step * (p->taps - 1) < size);
}

static bool make_parts(const Facts *f, const Found *r, ConvPlan *p) {
  PartAxis w[4], h[4];
  int nw = axis_parts(f, r, 0, w), nh = axis_parts(f, r, 1, h);
  if (!nw || !nh) return false;
  for (int i = 0; i < nh; i++)
    for (int j = 0; j < nw; j++) {
      Part *q = &p->part[p->n_parts++];
      *q = (Part){.h = h[i], .w = w[j]};
      q->k = h[i].taps * w[j].taps * p->channels;
      q->b_at = p->b_size;
      p->b_size += q->k;
      p->copy |= q->k && (!inside(&q->h, p->size_h) || !inside(&q->w, p->size_w));
    }
  return true;
}

/* Without windows, rows that follow one another in A and the result are one row, and so are small images: large ones of a batch
 * stay apart, so that their tasks can run together with those of other kernels (Kernel.chain). */
static void join_rows(const Facts *f, ConvPlan *p) {
  enum { ALONE = 128 };
  Part *q = &p->part[0];
  if (p->n_parts > 1 || p->copy || q->h.taps > 1 || q->w.taps > 1) return;
  int64_t a_step = p->a_w * q->w.in_step;
  if (q->h.n > 1) {
    if (p->a_h * q->h.in_step != a_step * q->w.n || p->c_h != p->c_w * q->w.n) return;
    q->w.n *= q->h.n;
    q->h = (PartAxis){.out_step = 1, .n = 1, .in_step = 1, .taps = 1, .k_step = 1};
  }
  while (p->images.n && (p->images.n > 1 || q->w.n < ALONE)) {
    const CLoop *l = &f->loop[p->images.id[p->images.n - 1]];
    if (l->s[p->a] != a_step * q->w.n || l->s[2] != p->c_w * q->w.n) return;
    q->w.n *= l->ext;
    p->images.total /= l->ext;
    p->images.n--;
  }
}

/* ---- operand A and the result in memory ---- */

static void strides_of(const Facts *f, const Found *r, ConvPlan *p) {
  static const CDim none = {.size = 1};
  const CDim *w = r->n > 0 ? &f->dim[r->x][r->sp[0].dim] : &none,
             *h = r->n > 1 ? &f->dim[r->x][r->sp[1].dim] : &none;
  const CLoop one = {.ext = 1};
  const CLoop *lw = r->n > 0 && r->sp[0].pos >= 0 ? &f->loop[r->sp[0].pos] : &one,
              *lh = r->n > 1 && r->sp[1].pos >= 0 ? &f->loop[r->sp[1].pos] : &one,
              *tw = r->n > 0 && r->sp[0].tap >= 0 ? &f->loop[r->sp[0].tap] : &one,
              *th = r->n > 1 && r->sp[1].tap >= 0 ? &f->loop[r->sp[1].tap] : &one;
  p->a_base = f->base[p->a] - (w->div == 1 ? w->off * w->stride : 0) -
              (h->div == 1 ? h->off * h->stride : 0);
  p->a_w = w->stride;
  p->a_h = h->stride;
  p->size_w = w->size;
  p->size_h = h->size;
  p->b_base = f->base[p->b];
  p->b_kh = th->s[p->b];
  p->b_kw = tw->s[p->b];
  p->b_i = list_step(f, &r->channels, p->b);
  p->b_o = list_step(f, &r->columns, p->b);
  p->c_w = lw->s[2];
  p->c_h = lh->s[2];
}

static void lay_out(ConvPlan *p, Part *q) {
  q->strip_w = conv_reach(&q->w, q->w.n);
  q->pixel = p->copy || !p->a_w ? p->channels : p->a_w; /* a_w 0: there is one position */
  q->line = p->copy ? p->channels * q->strip_w : p->a_h;
  q->fold = q->w.taps == 1 || (q->w.tap_step == 1 && q->pixel == p->channels);
}

/* One position: a row times the filter, whose bytes count rather than the arithmetic. */
static bool is_row(const ConvPlan *p) {
  return p->part[0].w.n * p->part[0].h.n * p->images.total == 1 && p->n_parts == 1;
}

bool conv_find(const Facts *f, int x, ConvPlan *p) {
  Found r;
  if (!find_loops(f, x, &r)) return false;
  *p =
      (ConvPlan){.a = x, .b = !x, .images = r.images, .groups = r.groups, .reordered = r.reordered};
  p->channels = r.channels.total;
  p->columns = r.columns.total;
  strides_of(f, &r, p);
  if (!make_parts(f, &r, p)) return false;
  join_rows(f, p);
  p->row = is_row(p);
  for (int i = 0; i < p->n_parts; i++) lay_out(p, &p->part[i]);
  return p->part[0].pixel * p->part[0].w.in_step < INT32_MAX / 64 &&
         p->part[0].line * p->part[0].h.in_step < INT32_MAX / 64;
}
