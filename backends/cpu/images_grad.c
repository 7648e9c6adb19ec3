/* Gradients of filters over tensors with the images of the batch last: [row, column, channel, image].
 *
 * In: a contraction that sums over images, which are neighbours in both operands, and over positions, at which X is read
 * through windows. Out: a plan, or false. An element of the result,
 *   result[filter][tap, channel] = sum over positions and images of D[position][filter][image] * X[position at the tap][channel][image]
 * is a sum of products of vectors along the images; tiles of filters by channels of such sums are computed by the microkernels of
 * the form DOT, from both operands as they lie. Where the taps along w are neighbours in X and none leaves it, they count as channels.
 * Positions at which a tap leaves X are left out of its sum.
 *
 * A task has some rows of positions, whose sums are a share of the result; the shares are added up in order. For each row, and
 * each tap along h, some tiles' channels stay in the L1 cache while the filters go by. */
#include "images.h"

enum { MOST_TAPS = 64, L1_BYTES = 40 << 10 };

/* ---- running ---- */

/* Positions *i0..*i1-1 at which a tap is inside. */
static void inside(const GradAxis *a, int64_t tap, int64_t *i0, int64_t *i1) {
  int64_t at = a->at + a->tap_step * tap;
  *i0 = 0;
  *i1 = a->n;
  while (*i0 < *i1 && (at + a->step * *i0 < 0 || at + a->step * *i0 >= a->size)) ++*i0;
  while (*i1 > *i0 && (at + a->step * (*i1 - 1) < 0 || at + a->step * (*i1 - 1) >= a->size)) --*i1;
}

/* Filters by blocks of channels c0..c1-1, over a run of positions. */
static void run_blocks(const ImagesGrad *p, MicroArgs *m, int64_t c0, int64_t c1, int64_t size) {
  const char *d = m->a, *x = m->b;
  char *c = m->c;
  for (int64_t r = 0; r < p->rows.n; r++) {
    int64_t o = block_start(&p->rows, r);
    m->a = d + o * p->d_o * size;
    for (int64_t i = c0; i < c1; i++) {
      int64_t at = block_start(&p->cols, i);
      m->b = x + at * p->x_c * size;
      m->c = c + (o * p->c_o + at) * size;
      p->set.fn[p->fn[r >= p->rows.more][i >= p->cols.more]](m);
    }
  }
}

/* Row y of positions at one tap; add: to the sums of the rows before. */
static void run_tap(const ImagesGrad *p, const char *x, const char *d, char *c, int64_t i0,
                    int64_t i1, bool add, int64_t size) {
  MicroArgs m = {.ldb = p->x_c * size, .ldc = p->c_o * size, .k = p->images, .add = add};
  m.a_step = p->w.d * size;
  m.b_step = p->w.step * p->w.x * size;
  for (int64_t i = i0; i < i1; i += m.batch, m.add = 1) {
    m.batch = least(p->run, i1 - i);
    for (int64_t b = 0; b < p->cols.n; b += p->together) {
      m.a = d + i * m.a_step;
      m.b = x + i * m.b_step;
      m.c = c;
      run_blocks(p, &m, b, least(b + p->together, p->cols.n), size);
    }
  }
}

static void zero_tap(const ImagesGrad *p, char *c, int64_t size) {
  for (int64_t o = 0; o < p->filters; o++)
    memset(c + o * p->c_o * size, 0, (size_t)(p->channels * size));
}

static void tasks(const void *self, void *const *bufs, int64_t begin, int64_t end, RunCtx *ctx) {
  const Plan *plan = self;
  const ImagesGrad *p = plan->images_grad;
  int64_t size = plan->facts.size, wide = p->fold ? 1 : p->w.taps;
  const char *x = (const char *)bufs[plan->frame.x[p->x]] + p->x_base * size;
  const char *d = (const char *)bufs[plan->frame.x[p->d]] + p->d_base * size;
  (void)ctx;
  for (int64_t t = begin; t < end; t++) {
    char *c = p->share.n > 1 ? (char *)bufs[plan->frame.ws] + t * plan->facts.numel * size
                             : (char *)bufs[plan->frame.out];
    int64_t y0 = block_start(&p->share, t), y1 = y0 + block_size(&p->share, t);
    bool begun[MOST_TAPS] = {0};
    for (int64_t y = y0; y < y1; y++)
      for (int64_t tap = 0; tap < p->h.taps * wide; tap++) {
        int64_t th = tap / wide, tw = tap % wide, i0, i1, j0, j1;
        char *to = c + (th * p->h.c + tw * p->w.c) * size;
        inside(&p->h, th, &j0, &j1);
        inside(&p->w, tw, &i0, &i1);
        if (y >= j0 && y < j1 && i0 < i1) {
          int64_t row = p->h.at + p->h.step * y + p->h.tap_step * th;
          run_tap(p, x + (row * p->h.x + (p->w.at + p->w.tap_step * tw) * p->w.x) * size,
                  d + y * p->h.d * size, to, i0, i1, begun[tap], size);
          begun[tap] = true;
        } else if (y == y1 - 1 && !begun[tap])
          zero_tap(p, to, size);
      }
  }
}

/* ---- which loops are what ---- */

/* The dimension of X, without a division, that a loop moves through alone or with another. */
static bool meets(const Facts *f, int x, int loop, int *dim, int *tap) {
  return loop_dim(f, x, loop, dim, tap) && f->dim[x][*dim].div == 1;
}

static bool find_axis(const Facts *f, int x, int pos, GradAxis *a, int *dim, int *tap) {
  if (!meets(f, x, pos, dim, tap)) return false;
  if (*tap >= 0 && f->loop[*tap].class == LC_K) return false;
  const CDim *c = &f->dim[x][*dim];
  *a = (GradAxis){.n = f->loop[pos].ext, .taps = 1, .at = c->off, .size = c->size, .x = c->stride};
  a->step = dim_factor(c, pos);
  a->d = f->loop[pos].s[!x];
  if (*tap < 0) return true;
  a->taps = f->loop[*tap].ext;
  a->tap_step = dim_factor(c, *tap);
  a->c = f->loop[*tap].s[2];
  return true;
}

static bool find(const Facts *f, int x, ImagesGrad *p) {
  static const GradAxis one = {.n = 1, .taps = 1, .step = 1, .size = 1};
  LoopList rest = {.total = 1}, k = loops_of(f, 1u << LC_K), channels = {.total = 1},
           own = loops_of(f, 1u << (x ? LC_N : LC_M));
  int dim[2] = {-1, -1}, tap[2] = {-1, -1};
  *p = (ImagesGrad){.x = x, .d = !x, .h = one, .w = one};
  if (!f->plain[!x] || loops_of(f, 1u << LC_BATCH).n || k.n < 2 || k.n > 3) return false;
  list_sort(f, &k, !x);
  int last = k.id[--k.n], alone, other;
  const CLoop *images = &f->loop[last];
  if (images->s[x] != 1 || images->s[!x] != 1 || !meets(f, x, last, &alone, &other) || other >= 0)
    return false;
  p->images = images->ext;
  for (int i = 0; i < k.n; i++) {
    int to = i + 2 - k.n;
    if (!find_axis(f, x, k.id[i], to ? &p->w : &p->h, &dim[to], &tap[to])) return false;
  }
  if (tap[0] < 0 && tap[1] < 0) return false; /* a product */
  for (int d = 0; d < f->n_dims[x]; d++)
    if (d != dim[0] && d != dim[1] && (f->dim[x][d].guard || f->dim[x][d].div > 1)) return false;
  for (int i = 0; i < own.n; i++)
    if (own.id[i] != tap[0] && own.id[i] != tap[1]) list_add(f, &channels, own.id[i]);
  channels = merge_tail(f, channels, x, 1u << x | 1u << 2, &rest);
  LoopList filters =
      merge_tail(f, loops_of(f, 1u << (x ? LC_M : LC_N)), 2, 1u << 2 | 1u << !x, &rest);
  if (rest.n) return false;
  p->channels = channels.total;
  p->filters = filters.total;
  p->x_c = channels.n ? list_step(f, &channels, x) : p->images;
  p->c_c = channels.n ? list_step(f, &channels, 2) : 1;
  p->d_o = filters.n ? list_step(f, &filters, !x) : p->images;
  p->c_o = filters.n ? list_step(f, &filters, 2) : 0;
  p->x_base = f->base[x] - p->h.at * p->h.x - p->w.at * p->w.x;
  p->d_base = f->base[!x];
  return p->c_c == 1;
}

/* ---- the plan ---- */

static void fold_taps(ImagesGrad *p) {
  int64_t last = p->w.at + p->w.step * (p->w.n - 1) + p->w.tap_step * (p->w.taps - 1);
  p->fold = p->w.taps > 1 && p->w.at >= 0 && last < p->w.size && p->w.step > 0 &&
            p->w.tap_step * p->w.x == p->channels * p->x_c && p->w.c == p->channels;
  if (p->fold) p->channels *= p->w.taps;
}

bool images_grad_tile(const Plan *plan, ImagesGrad *p) {
  double best = 0;
  for (const TileRow *t = tile_table; t->isa != ISA_NONE; t++) {
    if (t->isa != tile_isa() || t->dtype != plan->facts.dtype || t->form != FORM_DOT) continue;
    if (plan->only && t != plan->only) continue;
    Blocks r = equal_blocks(p->filters, t->mr), v = equal_blocks(p->channels, t->nv);
    double c = 0, steps = (double)(div_up(p->images, t->lanes) * p->w.n);
    for (int i = 0; i < 4; i++) {
      double mr = (double)(r.size + (i & 1)), nv = (double)(v.size + i / 2);
      c += (double)(i & 1 ? r.more : r.n - r.more) * (double)(i / 2 ? v.more : v.n - v.more) *
           (steps * tile_cycles(mr, nv) + 16 * mr + 60);
    }
    if (best && c >= best) continue;
    best = c;
    p->tile = *t;
    p->rows = r;
    p->cols = v;
  }
  return best > 0;
}

/* What of a run of positions stays in the L1 cache: the channels of some tiles, and the filters of one. */
static void cut(const Facts *f, ImagesGrad *p) {
  enum { LEAST_STEPS = 32 };
  int64_t mr = p->rows.size + (p->rows.more > 0), nv = p->cols.size + (p->cols.more > 0);
  int64_t line = p->images * f->size, fit = L1_BYTES / (line * (mr + nv));
  int64_t fewest = div_up(LEAST_STEPS * p->tile.lanes, p->images);
  p->run = least(most(fit, fewest), p->w.n);
  p->run = div_up(p->w.n, div_up(p->w.n, p->run));
  p->together = most((L1_BYTES / (line * p->run) - mr) / nv, 1);
  p->pitch = p->d_o;
  p->share = equal_blocks(p->h.n, div_up(p->h.n, least(tasks_for(f->flops), MOST_SHARES)));
}

static void want_all(Arena *a, ImagesGrad *p) {
  for (int i = 0; i < 4; i++) {
    const Blocks *b[2] = {&p->rows, &p->cols};
    bool there = true;
    MicroSpec s = {.dtype = p->tile.dtype, .lanes = p->tile.lanes, .dot = true, .pitch = p->pitch};
    for (int j = 0; j < 2; j++) there &= i >> j & 1 ? b[j]->more < b[j]->n : b[j]->more > 0;
    s.mr = (int)(p->rows.size + !(i & 1));
    s.nv = (int)(p->cols.size + !(i >> 1));
    if (there) p->fn[i & 1][i >> 1] = micro_want(a, &p->set, &s);
  }
}

bool images_grad_plan(Arena *a, Plan *plan, int x) {
  enum { FLOPS = 500000, LEAST_IMAGES = 8 };
  const Facts *f = &plan->facts;
  ImagesGrad p;
  if ((plan->way != WAY_IMAGES && f->flops < FLOPS) || !find(f, x, &p) || p.images < LEAST_IMAGES ||
      p.d_o >= INT32_MAX / 64)
    return false;
  /* with more taps than positions it is rather a gradient of one image, whose taps are summed */
  if (plan->way != WAY_IMAGES && p.h.taps * p.w.taps > p.h.n * p.w.n) return false;
  if (!images_winograd_filter_plan(plan, &p)) {
    fold_taps(&p);
    if (p.h.taps * (p.fold ? 1 : p.w.taps) > MOST_TAPS || !images_grad_tile(plan, &p)) return false;
    cut(f, &p);
    plan->work.fn[0] = tasks;
  }
  want_all(a, &p);
  plan->work.n_tasks[0] = p.share.n;
  plan->work.n_phases = 1;
  if (p.share.n > 1) add_shares(plan, (int)p.share.n);
  plan->images_grad = arena_dup(a, &p, sizeof p);
  plan->set = &plan->images_grad->set;
  plan->tile = &plan->images_grad->tile;
  return true;
}
