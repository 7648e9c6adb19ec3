/* Convolutions, and gradients of their inputs, over tensors with the images of the batch last: [row, column, channel, image].
 *
 * In: a contraction with an operand X in which a loop of the result, the images, has neighbouring elements, as it has in the
 * result, and whose other operand is a filter. Out: a plan, or false. Vectors run along the images, so that any
 * number of channels fills them. The sums of one position
 *   result[filter][image] = sum over taps and channels of W[filter][taps, channels] * X[taps, channels][image]
 * are a matrix product whose second operand lies as it should: channels are rows of X, one behind the other, and so are those of
 * the taps along w. Taps that leave X are left out of the sum, so nothing is copied or padded. The filter is packed to rows
 * of all taps and channels in the order of X, unless it lies so.
 *
 * Phase 1, if it is packed: a task has one filter. Phase 2: a task has a row of positions, or a part of one; for each panel of
 * images and block of filters it goes along the row. Divisions by a stride are undone as in conv_find.c. */
#include "images.h"

/* ---- the filter ---- */

/* The taps and channels of one part, of filters o0..o1-1. */
static void pack_part(const Plan *plan, const PartAxis *h, const PartAxis *v, const char *from,
                      int64_t o0, int64_t o1, char *to) {
  const ImagesPlan *p = plan->images;
  const Facts *f = &plan->facts;
  int64_t size = f->size, c = list_step(f, &p->channel_loops, p->w),
          o = list_step(f, &p->filter_loops, p->w);
  for (int64_t t = 0; t < h->taps * v->taps; t++, to += p->channels * size) {
    int64_t at =
        (h->k + h->k_step * (t / v->taps)) * p->w_kh + (v->k + v->k_step * (t % v->taps)) * p->w_kw;
    const char *tap = from + (at + o0 * o) * size;
    if (o == 1 && c >= o1 - o0) {
      /* channels of neighbouring filters: the transpose */
      pack_columns(f->size, to, p->pitch, tap, c, o1 - o0, p->channels);
      continue;
    }
    for (int64_t i = 0; i < o1 - o0; i++) {
      const char *row = tap + i * o * size;
      char *out = to + i * p->pitch * size;
      if (c == 1)
        memcpy(out, row, (size_t)(p->channels * size));
      else
        for (int64_t j = 0; j < p->channels; j++)
          memcpy(out + j * size, row + j * c * size, (size_t)size);
    }
  }
}

enum { PACKED_TOGETHER = 8 };

/* A task has some filters. */
static void pack_tasks(const void *self, void *const *bufs, int64_t begin, int64_t end,
                       RunCtx *ctx) {
  const Plan *plan = self;
  const ImagesPlan *p = plan->images;
  int64_t size = plan->facts.size;
  const char *from = (const char *)bufs[plan->frame.x[p->w]] + p->w_base * size;
  char *to = bufs[plan->frame.ws];
  (void)ctx;
  for (int64_t t = begin; t < end; t++) {
    int64_t o0 = t * PACKED_TOGETHER, o1 = least(o0 + PACKED_TOGETHER, p->filters);
    for (int i = 0; i < p->n_h; i++)
      for (int j = 0; j < p->n_w; j++)
        pack_part(plan, &p->h[i], &p->v[j], from, o0, o1,
                  to + (o0 * p->pitch + p->at[i][j]) * size);
  }
}

/* ---- running ---- */

/* Of one position: its place in X, and its taps that are inside. */
typedef struct Taps {
  int64_t at, begin, end;
} Taps;

static Taps taps_inside(const PartAxis *a, int64_t j, int64_t size) {
  Taps t = {a->in + a->in_step * j, 0, a->taps};
  while (t.begin < t.end && t.at + t.begin * a->tap_step < 0) t.begin++;
  while (t.end > t.begin && t.at + (t.end - 1) * a->tap_step >= size) t.end--;
  return t;
}

/* What the tiles of a row of positions of one part have in common. */
typedef struct Row {
  const Plan *plan;
  const ImagesPlan *p;
  const PartAxis *v;
  const char *w, *x; /* the part's taps; X at the row's first tap */
  char *c;
  int64_t taps, first; /* along h that are inside; of the part's taps, the first of those */
  int64_t x_step;      /* bytes between them */
} Row;

/* The tile of a position with these taps, some of them inside; the row's operands begin at w and x. m->c is set. */
static void run_tile(const Row *r, const Taps *t, MicroFn *fn, MicroArgs *m, const char *w,
                     const char *x) {
  const ImagesPlan *p = r->p;
  const PartAxis *v = r->v;
  int64_t size = r->plan->facts.size, some = t->end - t->begin;
  int64_t tap = v->tap_step * p->x_w * size, row = v->taps * p->channels * size;
  m->add = 0;
  m->a = w + (r->first * v->taps + t->begin) * p->channels * size;
  m->b = m->next = x + t->at * p->x_w * size + t->begin * tap;
  m->k = p->channels;
  m->batch = r->taps;
  m->a_step = row;
  m->b_step = r->x_step;
  if (some == 1 || tap == p->channels * p->x_c * size) {
    m->k *= some;
    fn(m);
    return;
  }
  const char *a = m->a, *b = m->b;
  m->batch = some;
  m->a_step = p->channels * size;
  m->b_step = tap;
  for (int64_t h = 0; h < r->taps; h++, m->add = 1) {
    m->a = a + h * row;
    m->b = b + h * r->x_step;
    fn(m);
  }
}

static void zero_tile(const ImagesPlan *p, char *c, int64_t rows, int64_t bytes, int64_t size) {
  for (int64_t o = 0; o < rows; o++) memset(c + o * p->c_o * size, 0, (size_t)bytes);
}

/* Positions i0..i1-1 of the row. */
static void run_row(const Row *r, int64_t i0, int64_t i1) {
  const ImagesPlan *p = r->p;
  int64_t size = r->plan->facts.size, lanes = p->tile.lanes;
  MicroArgs m = {.ldb = p->x_c * size, .ldc = p->c_o * size};
  for (int64_t panel = 0; panel < p->panels.n; panel++) {
    int64_t n0 = block_start(&p->panels, panel) * lanes,
            width = block_size(&p->panels, panel) * lanes;
    m.columns = least(width, p->images - n0);
    int kind = panel < p->panels.more ? 0 : m.columns < width ? 2 : 1;
    for (int64_t b = 0; b < p->blocks.n; b++) {
      int64_t o0 = block_start(&p->blocks, b);
      MicroFn *fn = p->set.fn[p->fn[b >= p->blocks.more][kind]];
      char *c = r->c + (o0 * p->c_o + n0) * size;
      for (int64_t i = i0; i < i1; i++) {
        Taps t = taps_inside(r->v, i, p->size_w);
        m.c = c + (r->v->out + r->v->out_step * i) * p->c_w * size;
        if (t.begin < t.end && r->taps > 0)
          run_tile(r, &t, fn, &m, r->w + o0 * p->pitch * size, r->x + n0 * size);
        else
          zero_tile(p, m.c, block_size(&p->blocks, b), m.columns * size, size);
      }
    }
  }
}

static void tasks(const void *self, void *const *bufs, int64_t begin, int64_t end, RunCtx *ctx) {
  const Plan *plan = self;
  const ImagesPlan *p = plan->images;
  int64_t size = plan->facts.size;
  const char *x = (const char *)bufs[plan->frame.x[p->x]] + p->x_base * size;
  const char *w =
      p->pack ? bufs[plan->frame.ws] : (const char *)bufs[plan->frame.x[p->w]] + p->w_base * size;
  (void)ctx;
  for (int64_t t = begin; t < end; t++) {
    int64_t y = t / p->cuts, cut = t % p->cuts;
    const PartAxis *h = &p->h[y % p->h[0].out_step];
    Row r = {.plan = plan, .p = p, .c = (char *)bufs[plan->frame.out] + y * p->c_h * size};
    Taps down = taps_inside(h, y / h->out_step, p->size_h);
    r.taps = down.end - down.begin;
    r.first = down.begin;
    r.x_step = h->tap_step * p->x_h * size;
    r.x = x + down.at * p->x_h * size + down.begin * r.x_step;
    for (int j = 0; j < p->n_w; j++) {
      r.v = &p->v[j];
      r.w = w + p->at[h - p->h][j] * size;
      run_row(&r, cut * r.v->n / p->cuts, (cut + 1) * r.v->n / p->cuts);
    }
    if (plan->work.fused) run_epilogue(&plan->frame, bufs, y, y + 1, ctx);
  }
}

/* ---- which loops are what ---- */

static const ImagesAxis none = {-1, -1, -1};

static bool find_axes(const Facts *f, int x, const LoopList *positions, ImagesAxis axis[2]) {
  if (positions->n > 2) return false;
  axis[0] = axis[1] = none;
  for (int i = 0; i < positions->n; i++) {
    ImagesAxis *a = &axis[i + 2 - positions->n];
    a->pos = positions->id[i];
    if (!loop_dim(f, x, a->pos, &a->dim, &a->tap)) return false;
    if (a->tap >= 0 && f->loop[a->tap].class != LC_K) return false;
  }
  for (int d = 0; d < f->n_dims[x]; d++)
    if (d != axis[0].dim && d != axis[1].dim && (f->dim[x][d].guard || f->dim[x][d].div > 1))
      return false;
  return true;
}

bool images_loops(const Facts *f, int x, const LoopList *positions, ImagesPlan *p,
                  ImagesAxis axis[2]) {
  LoopList rest = {.total = 1}, channels = {.total = 1}, k = loops_of(f, 1u << LC_K);
  if (!f->plain[!x] || loops_of(f, 1u << LC_BATCH).n || !find_axes(f, x, positions, axis))
    return false;
  for (int i = 0; i < k.n; i++)
    if (k.id[i] != axis[0].tap && k.id[i] != axis[1].tap) list_add(f, &channels, k.id[i]);
  if (axis[0].tap < 0 && axis[1].tap < 0) return false; /* a product */
  p->channel_loops = merge_tail(f, channels, x, 3, &rest);
  if (rest.n) return false;
  p->filter_loops =
      merge_tail(f, loops_of(f, 1u << (x ? LC_M : LC_N)), 2, 1u << 2 | 1u << !x, &rest);
  p->channels = p->channel_loops.total;
  p->filters = p->filter_loops.total;
  return !rest.n;
}

static bool find(const Facts *f, int x, ImagesPlan *p, ImagesAxis axis[2]) {
  LoopList positions = loops_of(f, 1u << (x ? LC_N : LC_M));
  *p = (ImagesPlan){.x = x, .w = !x};
  if (!positions.n) return false;
  list_sort(f, &positions, 2);
  int last = positions.id[--positions.n], dim, tap;
  const CLoop *images = &f->loop[last];
  if (images->s[2] != 1 || images->s[x] != 1 || !loop_dim(f, x, last, &dim, &tap) || tap >= 0)
    return false;
  p->images = images->ext;
  return images_loops(f, x, &positions, p, axis);
}

void images_strides(const Facts *f, const ImagesAxis axis[2], ImagesPlan *p) {
  static const CDim one = {.size = 1};
  const CDim *h = axis[0].dim < 0 ? &one : &f->dim[p->x][axis[0].dim],
             *w = axis[1].dim < 0 ? &one : &f->dim[p->x][axis[1].dim];
  p->x_base = f->base[p->x] - (h->div == 1 ? h->off * h->stride : 0) -
              (w->div == 1 ? w->off * w->stride : 0);
  p->x_h = h->stride;
  p->x_w = w->stride;
  p->size_h = h->size;
  p->size_w = w->size;
  p->x_c = p->channel_loops.n ? list_step(f, &p->channel_loops, p->x) : p->images;
  p->w_base = f->base[p->w];
  p->w_kh = axis[0].tap < 0 ? 0 : f->loop[axis[0].tap].s[p->w];
  p->w_kw = axis[1].tap < 0 ? 0 : f->loop[axis[1].tap].s[p->w];
  p->c_h = axis[0].pos < 0 ? 0 : f->loop[axis[0].pos].s[2];
  p->c_w = axis[1].pos < 0 ? 0 : f->loop[axis[1].pos].s[2];
  p->c_o = p->filter_loops.n ? list_step(f, &p->filter_loops, 2) : p->images;
  p->rows = axis[0].pos < 0 ? 1 : f->loop[axis[0].pos].ext;
}

/* ---- the plan ---- */

static double tile_cost(const ImagesPlan *p, const TileRow *t) {
  enum { CALL = 40 };
  Blocks r = row_blocks(p->filters, t), v = vector_blocks(p->images, t);
  double c = 0;
  for (int i = 0; i < 4; i++) {
    double mr = (double)(r.size + (i & 1)), nv = (double)(v.size + i / 2);
    c += (double)(i & 1 ? r.more : r.n - r.more) * (double)(i / 2 ? v.more : v.n - v.more) *
         ((double)p->pitch * tile_cycles(mr, nv) + mr * nv + CALL);
  }
  return c;
}

bool images_tile(const Plan *plan, ImagesPlan *p) {
  double best = 0;
  for (const TileRow *t = tile_table; t->isa != ISA_NONE; t++) {
    if (t->isa != tile_isa() || t->dtype != plan->facts.dtype || t->form != FORM_ROWS) continue;
    if (plan->only && t != plan->only) continue;
    double c = tile_cost(p, t);
    if (best && c >= best) continue;
    best = c;
    p->tile = *t;
  }
  if (!best) return false;
  p->blocks = row_blocks(p->filters, &p->tile);
  p->panels = vector_blocks(p->images, &p->tile);
  return true;
}

void images_want(Arena *a, ImagesPlan *p) {
  bool tail = p->images % p->tile.lanes != 0;
  for (int i = 0; i < 2; i++) {
    if (i ? p->blocks.more == p->blocks.n : !p->blocks.more) continue;
    MicroSpec s = {.dtype = p->tile.dtype, .lanes = p->tile.lanes, .pitch = p->pitch};
    s.mr = (int)(p->blocks.size + !i);
    s.more_lines = p->more_lines;
    for (int kind = 0; kind < 3; kind++) {
      int64_t n = kind == 0 ? p->panels.more : p->panels.n - p->panels.more - tail;
      if (kind == 2 ? !tail : n <= 0) continue;
      s.nv = (int)(p->panels.size + !kind);
      s.tail = kind == 2;
      p->fn[i][kind] = micro_want(a, &p->set, &s);
    }
  }
}

/* The filter's rows are read where they lie. */
static bool lies_packed(const Facts *f, const ImagesPlan *p) {
  const PartAxis *h = &p->h[0], *v = &p->v[0];
  return p->n_h * p->n_w == 1 && h->k_step == 1 && v->k_step == 1 && !h->k && !v->k &&
         (p->channels == 1 || list_step(f, &p->channel_loops, p->w) == 1) &&
         (v->taps == 1 || p->w_kw == p->channels) &&
         (h->taps == 1 || p->w_kh == p->channels * v->taps) &&
         (p->filters == 1 || list_step(f, &p->filter_loops, p->w) == p->pitch);
}

/* Filters whose rows would fall into the same sets of the cache are kept apart. */
static void lay_out(const Facts *f, ImagesPlan *p) {
  enum { APART = 16, PAGE = 1024 };
  p->pitch = 0;
  for (int i = 0; i < p->n_h; i++)
    for (int j = 0; j < p->n_w; j++) {
      p->at[i][j] = p->pitch;
      p->pitch += p->h[i].taps * p->v[j].taps * p->channels;
    }
  p->pack = !lies_packed(f, p);
  if (p->pack && p->pitch % (PAGE / 4) == 0) p->pitch += APART;
}

static void sum_phases(Plan *plan, const ImagesPlan *p) {
  Work *w = &plan->work;
  if (p->pack) {
    w->workspace = p->filters * p->pitch * plan->facts.size;
    w->fn[0] = pack_tasks;
    w->n_tasks[0] = div_up(p->filters, PACKED_TOGETHER);
    w->n_phases = 1;
  }
  w->fn[w->n_phases] = tasks;
  w->n_tasks[w->n_phases++] = p->rows * p->cuts;
}

bool images_plan(Arena *a, Plan *plan, int x) {
  enum { FLOPS = 500000, LEAST_IMAGES = 8, ROWS = 4 };
  const Facts *f = &plan->facts;
  ImagesPlan p;
  ImagesAxis axis[2];
  Work *w = &plan->work;
  if ((plan->way != WAY_IMAGES && f->flops < FLOPS) || !find(f, x, &p, axis) ||
      p.images < LEAST_IMAGES)
    return false;
  p.n_h = conv_axis(f, x, axis[0].dim, axis[0].pos, axis[0].tap, p.h);
  p.n_w = conv_axis(f, x, axis[1].dim, axis[1].pos, axis[1].tap, p.v);
  if (!p.n_h || !p.n_w) return false;
  images_strides(f, axis, &p);
  lay_out(f, &p);
  if (p.pitch >= INT32_MAX / 64 || !images_tile(plan, &p)) return false;
  p.cuts = p.rows < ROWS ? least(div_up(ROWS, p.rows), p.v[0].n) : 1;
  if (!images_back_plan(plan, &p) && !images_winograd_plan(plan, &p)) sum_phases(plan, &p);
  images_want(a, &p);
  if (p.pack && plan->frame.x[0] != plan->frame.x[1]) w->prepares = plan->frame.x[p.w] + 1;
  w->fused = !p.back && p.cuts == 1 && p.rows == plan->frame.rows && p.c_h * p.rows == f->numel;
  plan->images = arena_dup(a, &p, sizeof p);
  plan->set = &plan->images->set;
  plan->tile = &plan->images->tile;
  return true;
}
