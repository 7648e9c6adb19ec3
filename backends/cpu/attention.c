/* K_ATTENTION: out = weights(q k^T) v, with the scores of a tile of rows in the thread's scratch.
 *
 * A task is some tiles of rows of one outer index (of a head). It packs its k, transposed, in panels of PANEL keys, and its v. Then
 * for each tile: scores of all keys by microkernels; the rows of the scores become weights in place, by generated code (scale,
 * mask, softmax, whatever is there); weights times v by microkernels; the result goes where it belongs. A tile has all keys of its
 * rows, so that softmax is that of whole rows. Where weights are e^(x - max) times or over a number for the row (its
 * sum), that is applied to the row of the result instead (Milakov and Gimelshein, Online normalizer calculation for softmax, 2018).
 * Tiles and tasks follow from the shapes alone. */
#include "attention.h"

enum { PANEL = 64, MOST_TILE = 128, LEAST_TILE = 16, TILE_BYTES = 512 << 10 };

/* ---- the generated part ---- */

static bool is_last_axis_spread(const Node *v, const Node *full) {
  if (v->prim != P_VIEW || v->in[0]->rank != full->rank) return false;
  for (int d = 0; d < full->rank; d++) {
    const AffDim *m = &v->map[0][d];
    bool zero = m->l0 < 0 && m->off == 0, one = v->in[0]->dims[d] == 1;
    if (d == full->rank - 1 ? !one || !zero : !aff_is_loop(m, d) && !(zero && full->dims[d] == 1))
      return false;
  }
  return true;
}

/* The weights as e^(x - row maximum) and a row value that it is multiplied by, or divided by. */
static void split_weights(AttentionPlan *p, Node *w) {
  p->weights = w;
  for (int i = 0; i < w->n_in && (w->prim == P_MUL || (w->prim == P_DIV && i == 0)); i++) {
    Node *e = w->in[i], *spread = w->in[1 - i], *sub = e->prim == P_EXP ? e->in[0] : NULL;
    if (!sub || sub->prim != P_SUB || !is_last_axis_spread(spread, w)) continue;
    if (!is_last_axis_spread(sub->in[1], w) || sub->in[1]->in[0]->prim != P_RMAX) continue;
    p->weights = e;
    p->factor = spread->in[0];
    p->divide = w->prim == P_DIV;
    return;
  }
}

static void need(bool *needed, const Node *const *nodes, int n, const Node *x) {
  for (int i = 0; i < n; i++) needed[i] |= nodes[i] == x;
}

/* The K_LOOP between the contractions. */
static void make_rows(Arena *a, AttentionPlan *p, const Kernel *k) {
  Kernel *r = p->rows = arena_new_of(a, Kernel);
  Node *scores = (Node *)(uintptr_t)p->a.scores;
  const Node *const *nodes = (const Node *const *)k->nodes.v;
  bool *needed = arena_array(a, bool, k->nodes.n);
  r->kind = K_LOOP;
  r->name = k->name;
  r->rank = scores->rank;
  memcpy(r->ext, scores->dims, sizeof r->ext);
  r->reduce = 1u << (r->rank - 1);
  vec_add(a, &r->outputs, p->weights);
  for (int i = 1; i < k->outputs.n; i++) vec_add(a, &r->outputs, k->outputs.v[i]);
  if (p->factor) vec_add(a, &r->outputs, p->factor);
  for (int i = 0; i < r->outputs.n; i++) need(needed, nodes, k->nodes.n, r->outputs.v[i]);
  for (int i = k->nodes.n - 1; i >= 0; i--)
    for (int j = 0; needed[i] && nodes[i] != scores && j < nodes[i]->n_in; j++)
      need(needed, nodes, k->nodes.n, nodes[i]->in[j]);
  vec_add(a, &r->inputs, ((KernelInput){scores, true, false}));
  for (int i = 0; i < k->inputs.n; i++) vec_add(a, &r->inputs, k->inputs.v[i]);
  for (int i = 0; i < k->nodes.n; i++)
    if (needed[i] && nodes[i] != scores) vec_add(a, &r->nodes, k->nodes.v[i]);
}

/* ---- the plan ---- */

static int64_t outer_total(const Attention *a) {
  int64_t n = 1;
  for (int i = 0; i < a->n_outer; i++) n *= a->outer[i].ext;
  return n;
}

static int64_t room(int64_t *at, int64_t bytes) {
  int64_t was = *at;
  *at += div_up(bytes, 64) * 64;
  return was;
}

static Plan *product_plan(Arena *arena, const AttentionPlan *p, const Node *n, MicroShape *s) {
  Plan *q = arena_new_of(arena, Plan);
  q->kind = PLAN_GEMM;
  q->no_blas = p->no_blas;
  q->facts.dtype = n->dtype;
  q->facts.size = p->size;
  q->facts.flops = 2 * node_numel(n);
  for (int l = n->rank; l < n->n_loops; l++) q->facts.flops *= n->ext[l];
  q->work.scratch = p->scratch;
  s->m[0] = p->tile;
  s->m[1] = p->a.row.ext - (p->tiles - 1) * p->tile;
  s->batch = 1;
  plan_products(arena, q, s);
  return q;
}

static void plan_tiles(AttentionPlan *p) {
  const Attention *a = &p->a;
  int64_t most_rows = TILE_BYTES / (a->key.ext * p->size);
  most_rows = most(LEAST_TILE, least(MOST_TILE, most_rows));
  p->outer = outer_total(a);
  p->tiles = div_up(a->row.ext, most_rows);
  p->tile = div_up(a->row.ext, p->tiles);
  p->tiles = div_up(a->row.ext, p->tile);
  int64_t flops = p->outer * a->row.ext * a->key.ext * (a->depth.ext + a->width.ext) * 2;
  int64_t parts = least(p->tiles, div_up(tasks_for(flops), p->outer));
  p->tiles_per_task = div_up(p->tiles, parts);
  p->parts = div_up(p->tiles, p->tiles_per_task);
}

static void plan_scratch(AttentionPlan *p) {
  const Attention *a = &p->a;
  int64_t at = 0, size = p->size;
  p->at_bufs = room(&at, (p->rows->inputs.n + p->rows->outputs.n) * (int64_t)sizeof(void *));
  p->at_q = room(&at, p->copy_q ? p->tile * a->depth.ext * size : 0);
  p->at_k = room(&at, div_up(a->key.ext, PANEL) * PANEL * a->depth.ext * size);
  p->at_v = room(&at, a->key.ext * a->width.ext * size);
  p->at_scores = room(&at, p->tile * a->key.ext * size);
  p->at_out = room(&at, p->tile * a->width.ext * size);
  p->at_factor = room(&at, p->tile * size);
  p->scratch = at;
}

AttentionPlan *attention_plan(Arena *arena, const Kernel *k, bool no_blas) {
  AttentionPlan *p = arena_new_of(arena, AttentionPlan);
  const Attention *a = &p->a;
  attention_of_kernel(k, &p->a);
  p->no_blas = no_blas;
  p->size = dtype_info[k->core->dtype].size;
  p->slot_q = kernel_input(k, a->scores->in[a->q]);
  p->slot_k = kernel_input(k, a->scores->in[!a->q]);
  p->slot_v = kernel_input(k, a->out->in[!a->weights]);
  p->slot_out = k->inputs.n;
  split_weights(p, a->out->in[a->weights]);
  make_rows(arena, p, k);
  plan_tiles(p);
  p->copy_q = !mat_of(a->row.ext, a->row.q, a->depth.ext, a->depth.q, &p->q);
  if (p->copy_q) p->q = (Mat){false, a->depth.ext};
  plan_scratch(p);
  int64_t keys = a->key.ext;
  MicroShape s = {.n = {least(keys, PANEL), keys > PANEL ? keys % PANEL : 0}, .k = a->depth.ext};
  s.a = p->q;
  s.b = (Mat){false, PANEL};
  s.c = (Mat){false, keys};
  p->product[0] = product_plan(arena, p, a->scores, &s);
  s = (MicroShape){.n = {a->width.ext, 0}, .k = keys};
  s.a = (Mat){false, keys};
  s.b = s.c = (Mat){false, a->width.ext};
  p->product[1] = product_plan(arena, p, a->out, &s);
  return p;
}

/* ---- running ---- */

/* Element (i, j) at from[i*si + j*sj] to to[i*width + j]. */
#define COPY(NAME, T)                                                                              \
  static void NAME(T *restrict to, int64_t width, const T *restrict from, int64_t si, int64_t sj,  \
                   int64_t rows, int64_t columns) {                                                \
    for (int64_t i = 0; i < rows; i++)                                                             \
      for (int64_t j = 0; j < columns; j++) to[i * width + j] = from[i * si + j * sj];             \
  }
COPY(copy_float, float)
COPY(copy_double, double)

static void copy_matrix(int size, void *to, int64_t width, const void *from, int64_t si, int64_t sj,
                        int64_t rows, int64_t columns) {
  if (sj == 1)
    for (int64_t i = 0; i < rows; i++)
      memcpy((char *)to + i * width * size, (const char *)from + i * si * size,
             (size_t)(columns * size));
  else if (si == 1)
    pack_columns(size, to, width, from, sj, rows, columns);
  else if (size == 4)
    copy_float(to, width, from, si, sj, rows, columns);
  else
    copy_double(to, width, from, si, sj, rows, columns);
}

/* A row of the result, times its factor. */
#define STORE(NAME, T)                                                                             \
  static void NAME(T *restrict to, int64_t step, const T *restrict from, int64_t n, T f) {         \
    typedef T Vec __attribute__((vector_size(16)));                                                \
    enum { LANES = 16 / sizeof(T) };                                                               \
    int64_t i = 0;                                                                                 \
    for (; step == 1 && i + LANES <= n; i += LANES) {                                              \
      Vec x;                                                                                       \
      memcpy(&x, from + i, sizeof x);                                                              \
      x *= f;                                                                                      \
      memcpy(to + i, &x, sizeof x);                                                                \
    }                                                                                              \
    for (; i < n; i++) to[i * step] = from[i] * f;                                                 \
  }
STORE(store_float, float)
STORE(store_double, double)

#define PLAIN(NAME, T)                                                                             \
  static void NAME(const MicroProduct *q, int64_t am, int64_t ak, const T *a, const T *b, T *c) {  \
    for (int64_t i = 0; i < q->m; i++) {                                                           \
      T *to = c + i * q->c_mat.ld;                                                                 \
      memset(to, 0, sizeof(T) * (size_t)q->n);                                                     \
      for (int64_t k = 0; k < q->k; k++)                                                           \
        for (int64_t j = 0; j < q->n; j++) to[j] += a[i * am + k * ak] * b[k * q->b_mat.ld + j];   \
    }                                                                                              \
  }
PLAIN(plain_float, float)
PLAIN(plain_double, double)

/* Plain loops do what is not for BLAS, on a machine for which there are no microkernels. */
static void product(const Plan *p, const MicroProduct *q, void *scratch) {
  int64_t am = q->a_mat.trans ? 1 : q->a_mat.ld, ak = q->a_mat.trans ? q->a_mat.ld : 1;
  if (p->micro || !p->no_blas)
    multiply(p, q, scratch);
  else if (p->facts.size == 4)
    plain_float(q, am, ak, q->a, q->b, q->c);
  else
    plain_double(q, am, ak, q->a, q->b, q->c);
}

/* One task: where its tensors begin. */
typedef struct Head {
  const char *q, *k, *v;
  char *out;
  int64_t row; /* number of its first row among all rows of scores */
} Head;

static Head head_of(const AttentionPlan *p, void *const *bufs, int64_t outer) {
  const Attention *a = &p->a;
  AttentionLoop at = a->at;
  Head h = {.row = outer * a->row.ext};
  for (int i = a->n_outer - 1; i >= 0; i--) {
    int64_t x = outer % a->outer[i].ext;
    outer /= a->outer[i].ext;
    at.q += x * a->outer[i].q;
    at.k += x * a->outer[i].k;
    at.v += x * a->outer[i].v;
    at.out += x * a->outer[i].out;
  }
  h.q = (const char *)bufs[p->slot_q] + at.q * p->size;
  h.k = (const char *)bufs[p->slot_k] + at.k * p->size;
  h.v = (const char *)bufs[p->slot_v] + at.v * p->size;
  h.out = (char *)bufs[p->slot_out] + at.out * p->size;
  return h;
}

static void pack_head(const AttentionPlan *p, const Head *h, char *scratch) {
  const Attention *a = &p->a;
  for (int64_t j = 0; j < a->key.ext; j += PANEL)
    copy_matrix(p->size, scratch + p->at_k + j * a->depth.ext * p->size, PANEL,
                h->k + j * a->key.k * p->size, a->depth.k, a->key.k, a->depth.ext,
                least(PANEL, a->key.ext - j));
  copy_matrix(p->size, scratch + p->at_v, a->width.ext, h->v, a->key.v, a->width.v, a->key.ext,
              a->width.ext);
}

static void make_scores(const AttentionPlan *p, const Head *h, int64_t r0, int64_t rows,
                        char *scratch) {
  const Attention *a = &p->a;
  const char *q = h->q + r0 * a->row.q * p->size;
  if (p->copy_q) {
    copy_matrix(p->size, scratch + p->at_q, a->depth.ext, q, a->row.q, a->depth.q, rows,
                a->depth.ext);
    q = scratch + p->at_q;
  }
  MicroProduct m = {.m = rows, .k = a->depth.ext, .a = q, .a_mat = p->q, .batch = 1};
  m.b_mat = (Mat){false, PANEL};
  m.c_mat = (Mat){false, a->key.ext};
  for (int64_t j = 0; j < a->key.ext; j += PANEL) {
    m.n = least(PANEL, a->key.ext - j);
    m.b = scratch + p->at_k + j * a->depth.ext * p->size;
    m.c = scratch + p->at_scores + j * p->size;
    product(p->product[0], &m, scratch);
  }
}

/* The address at which element `first` of an array is p. */
static void *before(void *p, int64_t first, int64_t size) {
  return (void *)((uintptr_t)p - (uintptr_t)(first * size));
}

/* Scores to weights: generated code, which takes the tile for rows `row` and on of the whole. */
static void make_weights(const AttentionPlan *p, void *const *bufs, int64_t row, int64_t rows,
                         RunCtx *ctx) {
  char *scratch = ctx->scratch;
  void **b = (void **)(void *)(scratch + p->at_bufs);
  void *tile = before(scratch + p->at_scores, row * p->a.key.ext, p->size);
  int n_in = p->rows->inputs.n, n_out = p->rows->outputs.n;
  b[0] = b[n_in] = tile;
  for (int i = 1; i < n_in; i++) b[i] = bufs[i - 1];
  for (int i = 1; i < n_out; i++) b[n_in + i] = bufs[p->slot_out + i];
  if (p->factor) b[n_in + n_out - 1] = before(scratch + p->at_factor, row, p->size);
  p->fn(NULL, b, row, row + rows, ctx);
}

/* What row r of the tile's result is multiplied by. */
static double factor_of(const AttentionPlan *p, const char *scratch, int64_t r) {
  const void *at = scratch + p->at_factor;
  if (!p->factor) return 1;
  double f = p->size == 4 ? ((const float *)at)[r] : ((const double *)at)[r];
  return p->divide ? 1 / f : f;
}

static void make_sums(const AttentionPlan *p, const Head *h, int64_t r0, int64_t rows,
                      char *scratch) {
  const Attention *a = &p->a;
  int64_t width = a->width.ext;
  MicroProduct m = {.m = rows, .n = width, .k = a->key.ext, .batch = 1};
  m.a = scratch + p->at_scores;
  m.b = scratch + p->at_v;
  m.c = scratch + p->at_out;
  m.a_mat = (Mat){false, a->key.ext};
  m.b_mat = m.c_mat = (Mat){false, width};
  product(p->product[1], &m, scratch);
  for (int64_t r = 0; r < rows; r++) {
    void *to = h->out + (r0 + r) * a->row.out * p->size;
    const void *from = scratch + p->at_out + r * width * p->size;
    if (p->size == 4)
      store_float(to, a->width.out, from, width, (float)factor_of(p, scratch, r));
    else
      store_double(to, a->width.out, from, width, factor_of(p, scratch, r));
  }
}

static void attention_tasks(const void *self, void *const *bufs, int64_t begin, int64_t end,
                            RunCtx *ctx) {
  const AttentionPlan *p = self;
  for (int64_t t = begin; t < end; t++) {
    Head h = head_of(p, bufs, t / p->parts);
    int64_t i = t % p->parts * p->tiles_per_task, n = least(i + p->tiles_per_task, p->tiles);
    pack_head(p, &h, ctx->scratch);
    for (; i < n; i++) {
      int64_t r0 = i * p->tile, rows = least(p->tile, p->a.row.ext - r0);
      make_scores(p, &h, r0, rows, ctx->scratch);
      make_weights(p, bufs, h.row + r0, rows, ctx);
      make_sums(p, &h, r0, rows, ctx->scratch);
    }
  }
}

/* ---- for cpu.c ---- */

void attention_want(AttentionPlan *p, CodeBatch *b) {
  for (int i = 0; i < 2; i++) plan_micro(p->product[i], b);
  loop_code(b, p->rows, LOOP_ROWS, &p->fn);
}

void attention_code(const AttentionPlan *p, KernelCode *code) {
  code->n_phases = 1;
  code->phase[0].fn = attention_tasks;
  code->phase[0].self = p;
  code->phase[0].n_tasks = p->outer * p->parts;
  code->scratch_bytes = most(p->product[0]->work.scratch, p->product[1]->work.scratch);
}
