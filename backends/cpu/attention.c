/* K_ATTENTION: out = weights(q k^T) v, with the scores of a tile of rows in the thread's scratch.
 *
 * A task is some tiles of rows of one outer index (of a head). It packs its k, transposed, in panels of PANEL keys, and its v. Then
 * for each tile: scores of all keys by microkernels; the rows of the scores become weights in place, by generated code (scale,
 * mask, softmax, whatever is there); weights times v by microkernels; the result goes where it belongs. A tile has all keys of its
 * rows, so that softmax is that of whole rows. Where weights are e^(x - max) times or over a number for the row (its
 * sum), that is applied to the row of the result instead (Milakov and Gimelshein, Online normalizer calculation for softmax, 2018).
 * Tiles and tasks follow from the shapes alone. Many keys: attention_online.c. */
#include "attention.h"

/* The generated part; weights are split where they are softmax's. */
static void plan_rows(Arena *arena, AttentionPlan *p, const Kernel *k) {
  const Attention *a = &p->a;
  Node **out = arena_array(arena, Node *, k->outputs.n + 2), *scores = (Node *)(uintptr_t)a->scores;
  int n = 0;
  AttentionSoftmax soft;
  out[n++] = a->out->in[a->weights];
  p->slot_factor = -1;
  if (attention_softmax(out[0], &soft)) {
    out[0] = soft.exp;
    p->factor = soft.factor;
    p->divide = soft.divide;
  }
  for (int i = 1; i < k->outputs.n; i++) {
    if (k->outputs.v[i] == p->factor) p->slot_factor = k->inputs.n + i;
    out[n++] = k->outputs.v[i];
  }
  if (p->factor && p->slot_factor < 0) out[n++] = p->factor;
  p->rows = attention_rows(arena, k, 1, &scores, n, out);
}

static void plan_scratch(AttentionPlan *p) {
  const Attention *a = &p->a;
  int64_t at = 0, size = p->size, tile = p->t.tile;
  int64_t bufs = p->rows->inputs.n + p->rows->outputs.n;
  p->at_bufs = attention_room(&at, bufs * (int64_t)sizeof(void *));
  p->at_q = attention_room(&at, p->copy_q ? tile * a->depth.ext * size : 0);
  p->at_k = attention_room(&at, attention_panel_bytes(p->size, a));
  p->at_v = attention_room(&at, a->key.ext * a->width.ext * size);
  p->at_scores = attention_room(&at, tile * a->key.ext * size);
  p->at_out = attention_room(&at, tile * a->width.ext * size);
  p->at_factor = attention_room(&at, tile * size);
  p->scratch = at;
}

AttentionPlan *attention_plan(Arena *arena, const Kernel *k, bool no_blas) {
  AttentionPlan *p = arena_new_of(arena, AttentionPlan);
  const Attention *a = &p->a;
  attention_of_kernel(k, &p->a);
  p->size = dtype_info[k->core->dtype].size;
  p->slot_q = kernel_input(k, a->scores->in[a->q]);
  p->slot_k = kernel_input(k, a->scores->in[!a->q]);
  p->slot_v = kernel_input(k, a->out->in[!a->weights]);
  p->slot_out = k->inputs.n;
  plan_rows(arena, p, k);
  attention_tiles(&p->t, a, a->key.ext * p->size, k->flops);
  p->copy_q = !mat_of(a->row.ext, a->row.q, a->depth.ext, a->depth.q, &p->q);
  if (p->copy_q) p->q = (Mat){false, a->depth.ext};
  attention_blocks_plan(arena, p, k, no_blas);
  if (p->blocks) return p;
  plan_scratch(p);
  MicroShape s = attention_scores_shape(a, &p->t, p->q);
  p->product[0] = attention_product(arena, a->scores, no_blas, p->scratch, &s);
  s = attention_sums_shape(a, &p->t);
  p->product[1] = attention_product(arena, a->out, no_blas, p->scratch, &s);
  return p;
}

/* ---- running ---- */

/* One task: where its tensors begin. */
typedef struct Head {
  const char *q, *k, *v;
  char *out;
  int64_t row; /* number of its first row among all rows of scores */
} Head;

static Head head_of(const AttentionPlan *p, void *const *bufs, int64_t outer) {
  AttentionLoop at = attention_at(&p->a, outer);
  Head h = {.row = outer * p->t.rows};
  h.q = (const char *)bufs[p->slot_q] + at.q * p->size;
  h.k = (const char *)bufs[p->slot_k] + at.k * p->size;
  h.v = (const char *)bufs[p->slot_v] + at.v * p->size;
  h.out = (char *)bufs[p->slot_out] + at.out * p->size;
  return h;
}

static void make_scores(const AttentionPlan *p, const Head *h, int64_t r0, int64_t rows,
                        char *scratch) {
  const Attention *a = &p->a;
  const char *q = h->q + r0 * a->row.q * p->size;
  if (p->copy_q) {
    attention_copy(p->size, scratch + p->at_q, a->depth.ext, q, a->row.q, a->depth.q, rows,
                   a->depth.ext);
    q = scratch + p->at_q;
  }
  attention_scores(p->product[0], a, rows, q, p->q, scratch + p->at_k, scratch + p->at_scores,
                   scratch);
}

/* Scores to weights: generated code, which takes the tile for rows `row` and on of the whole. */
static void make_weights(const AttentionPlan *p, void *const *bufs, int64_t row, int64_t rows,
                         RunCtx *ctx) {
  char *scratch = ctx->scratch;
  void **b = (void **)(void *)(scratch + p->at_bufs);
  void *tile = attention_before(scratch + p->at_scores, row * p->t.keys, p->size);
  int n_in = p->rows->inputs.n, n_out = p->rows->outputs.n;
  b[0] = b[n_in] = tile;
  for (int i = 1; i < n_in; i++) b[i] = bufs[i - 1];
  for (int i = 1; i < n_out; i++) b[n_in + i] = bufs[p->slot_out + i];
  if (p->factor && p->slot_factor < 0)
    b[n_in + n_out - 1] = attention_before(scratch + p->at_factor, row, p->size);
  p->fn(NULL, b, row, row + rows, ctx);
}

/* What the row is multiplied by that is number `row` of all, number r of the tile. */
static double factor_of(const AttentionPlan *p, void *const *bufs, const char *scratch, int64_t row,
                        int64_t r) {
  const void *at = scratch + p->at_factor;
  if (!p->factor) return 1;
  if (p->slot_factor >= 0) {
    at = bufs[p->slot_factor];
    r = row;
  }
  double f = p->size == 4 ? (double)((const float *)at)[r] : ((const double *)at)[r];
  return p->divide ? 1 / f : f;
}

static void make_sums(const AttentionPlan *p, void *const *bufs, const Head *h, int64_t r0,
                      int64_t rows, char *scratch) {
  const Attention *a = &p->a;
  int64_t width = a->width.ext;
  MicroProduct m = {.m = rows, .n = width, .k = a->key.ext, .batch = 1};
  m.a = scratch + p->at_scores;
  m.b = scratch + p->at_v;
  m.c = scratch + p->at_out;
  m.a_mat = (Mat){false, a->key.ext};
  m.b_mat = m.c_mat = (Mat){false, width};
  attention_multiply(p->product[1], &m, scratch);
  for (int64_t r = 0; r < rows; r++)
    attention_store(p->size, h->out + (r0 + r) * a->row.out * p->size, a->width.out,
                    scratch + p->at_out + r * width * p->size, width,
                    factor_of(p, bufs, scratch, h->row + r0 + r, r));
}

static void attention_tasks(const void *self, void *const *bufs, int64_t begin, int64_t end,
                            RunCtx *ctx) {
  const AttentionPlan *p = self;
  const Attention *a = &p->a;
  char *scratch = ctx->scratch;
  for (int64_t t = begin; t < end; t++) {
    Head h = head_of(p, bufs, t / p->t.parts);
    int64_t i = t % p->t.parts * p->t.tiles_per_task,
            n = least(i + p->t.tiles_per_task, p->t.tiles);
    attention_panels(p->size, scratch + p->at_k, h.k, a);
    attention_copy(p->size, scratch + p->at_v, a->width.ext, h.v, a->key.v, a->width.v, a->key.ext,
                   a->width.ext);
    for (; i < n; i++) {
      int64_t r0 = i * p->t.tile, rows = least(p->t.tile, p->t.rows - r0);
      make_scores(p, &h, r0, rows, scratch);
      make_weights(p, bufs, h.row + r0, rows, ctx);
      make_sums(p, bufs, &h, r0, rows, scratch);
    }
  }
}

/* ---- for cpu.c ---- */

void attention_want(AttentionPlan *p, CodeBatch *b) {
  if (p->blocks) {
    attention_blocks_want(p, b);
    return;
  }
  for (int i = 0; i < 2; i++) plan_micro(p->product[i], b);
  loop_code(b, p->rows, LOOP_ROWS, &p->fn);
}

void attention_code(const AttentionPlan *p, KernelCode *code) {
  code->n_phases = 1;
  code->phase[0].fn = attention_tasks;
  code->phase[0].self = p;
  code->phase[0].n_tasks = p->t.outer * p->t.parts;
  if (p->blocks) {
    attention_blocks_code(p, code);
    return;
  }
  code->scratch_bytes = most(p->product[0]->work.scratch, p->product[1]->work.scratch);
}
