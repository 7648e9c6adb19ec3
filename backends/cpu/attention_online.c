/* Softmax over many keys. In: a plan of attention whose k and v would leave the caches. Out: the same in blocks of keys.
 *
 * For each block of keys its k and v are packed once and serve all rows of the task; a tile of scores has the block's keys. The
 * largest score m of a row so far and its sum l of e^(x - m) run along: with a block, generated code makes
 *   m' = max(m, the block's largest), e = e^(x - m'), alpha = e^(m - m'), l' = alpha l + sum of e
 * and the row of results so far is multiplied by alpha before e times v is added (Milakov and Gimelshein, Online normalizer
 * calculation for softmax, 2018). While all scores are -inf, 0 stands for m' in the exponents; l = 0 in the end is a row
 * without keys, and gives NaN as softmax does. For the generated code the last axis is seen as two, blocks and keys of a
 * block: [outer, block, row, key]. */
#include "attention.h"
#include <math.h>

enum { FEW_KEYS = 1024, MOST_BLOCK = 512, LEAST_BLOCK = 256, LEAST_ROWS = 512 };

typedef struct Part { /* the blocks, or what is left behind them */
  Attention a;        /* key.ext: of the block */
  int64_t first, n;   /* keys before it, blocks */
  Kernel *rows;
  KernelFn *fn;
  Plan *product[2];
} Part;

struct AttentionBlocks {
  int n_parts;
  Part part[2];
  int slot_max, slot_factor; /* of the kernel's outputs; -1: not wanted */
  bool inverse;              /* the factor is 1 / l, not l */
  int64_t at_bufs, at_k, at_v, at_scores, at_out, at_alpha, at_max[2], at_sum[2], at_q, scratch;
};

/* ---- the graph of a block ---- */

typedef struct Build {
  Arena *a;
  const Kernel *k;
  const Attention *at;
  Kernel *to;
  int64_t full[KL_RANK], row[KL_RANK];
  int rank;
  DType t;
  Node **made; /* by node of k: its value in the block, of those that depend on scores */
} Build;

static Node *node(Build *b, Prim prim, DType t, const int64_t *dims, int n, Node *x, Node *y,
                  Node *z) {
  Node *r = arena_new_of(b->a, Node), *in[3] = {x, y, z};
  r->prim = prim;
  r->dtype = t;
  r->rank = b->rank;
  memcpy(r->dims, dims, sizeof r->dims);
  r->n_in = n;
  r->in = arena_dup(b->a, in, sizeof in);
  vec_add(b->a, &b->to->nodes, r);
  return r;
}

static Node *constant(Build *b, double v) {
  Node *n = node(b, P_CONST, b->t, b->row, 0, NULL, NULL, NULL);
  n->f = v;
  return n;
}

static Node *reduced(Build *b, Prim prim, Node *x) {
  Node *n = node(b, prim, b->t, b->row, 1, x, NULL, NULL);
  n->i = 1 << (b->rank - 1);
  return n;
}

static Node *viewed(Build *b, Node *x, const AffDim *map) {
  Node *n = node(b, P_VIEW, x->dtype, b->full, 1, x, NULL, NULL);
  n->map[0] = arena_dup(b->a, map, sizeof *map * (size_t)x->rank);
  return n;
}

static Node *spread(Build *b, Node *row) {
  AffDim map[KL_RANK];
  for (int d = 0; d < b->rank - 1; d++) map[d] = aff_loop(d);
  map[b->rank - 1] = aff_const(0);
  return viewed(b, row, map);
}

/* A value of the scores' shape that does not depend on them. */
static Node *in_block(Build *b, Node *x, const Part *p) {
  AffDim map[KL_RANK];
  int r = b->rank - 1;
  for (int d = 0; d < r - 2; d++) map[d] = aff_loop(d);
  map[r - 2] = aff_loop(r - 1);
  map[r - 1] = aff_loop(r);
  if (p->n > 1)
    map[r - 1] = (AffDim){(int8_t)(r - 2), (int8_t)r, (int32_t)p->a.key.ext, 1, p->first, 1};
  map[r - 1].off = p->first;
  return viewed(b, x, map);
}

static int index_of(const Kernel *k, const Node *n) {
  for (int i = 0; i < k->nodes.n; i++)
    if (k->nodes.v[i] == n) return i;
  return -1;
}

static Node *leaf(Build *b, const int64_t *dims, bool aligned) {
  Node *n = node(b, P_FEED, b->t, dims, 0, NULL, NULL, NULL);
  b->to->nodes.n--;
  n->s = "";
  vec_add(b->a, &b->to->inputs, ((KernelInput){n, aligned, false}));
  return n;
}

/* x, the operand of softmax, in the block; NULL: what depends on scores is more than maps. */
static Node *operand(Build *b, const Part *p, const Node *x, Node *scores) {
  const Kernel *k = b->k;
  int last = index_of(k, x);
  for (int i = 0; i <= last; i++) {
    Node *n = k->nodes.v[i], *in[3] = {0};
    bool depends = false;
    for (int j = 0; j < n->n_in; j++) {
      int o = index_of(k, n->in[j]);
      depends |= o >= 0 && b->made[o];
    }
    if (n == b->at->scores) b->made[i] = scores;
    if (n == b->at->scores) continue;
    if (!depends) {
      vec_add(b->a, &b->to->nodes, n);
      continue;
    }
    if (!prim_is_map(n->prim) || n->n_in > 3 || !node_same_shape(n, b->at->scores)) return NULL;
    for (int j = 0; j < n->n_in; j++) {
      int o = index_of(k, n->in[j]);
      in[j] = o >= 0 && b->made[o] ? b->made[o] : in_block(b, n->in[j], p);
    }
    b->made[i] = node(b, n->prim, n->dtype, b->full, n->n_in, in[0], in[1], in[2]);
    b->made[i]->i = n->i;
    b->made[i]->f = n->f;
  }
  return last < 0 ? NULL : b->made[last];
}

static Kernel *block_rows(Arena *arena, const Kernel *k, const Attention *a, const Part *p,
                          const AttentionSoftmax *soft) {
  int rank = a->scores->rank + 1;
  if (rank > KL_RANK) return NULL;
  Build b = {.a = arena, .k = k, .at = a, .rank = rank, .t = a->scores->dtype};
  b.to = arena_new_of(arena, Kernel);
  b.made = arena_array(arena, Node *, k->nodes.n);
  memcpy(b.full, a->scores->dims, sizeof b.full);
  b.full[rank - 3] = p->n;
  b.full[rank - 2] = a->row.ext;
  b.full[rank - 1] = p->a.key.ext;
  memcpy(b.row, b.full, sizeof b.row);
  b.row[rank - 1] = 1;
  Kernel *r = b.to;
  r->kind = K_LOOP;
  r->name = k->name;
  r->rank = rank;
  memcpy(r->ext, b.full, sizeof r->ext);
  r->reduce = 1u << (rank - 1);
  Node *scores = leaf(&b, b.full, true), *m = leaf(&b, b.row, false), *l = leaf(&b, b.row, false);
  for (int i = 0; i < k->inputs.n; i++) vec_add(arena, &r->inputs, k->inputs.v[i]);
  Node *x = operand(&b, p, soft->exp->in[0]->in[0], scores);
  if (!x) return NULL;
  Node *top = node(&b, P_MAX, b.t, b.row, 2, m, reduced(&b, P_RMAX, x), NULL);
  Node *none = node(&b, P_EQ, DT_BOOL, b.row, 2, top, constant(&b, -INFINITY), NULL);
  Node *safe = node(&b, P_SELECT, b.t, b.row, 3, none, constant(&b, 0), top);
  Node *less = node(&b, P_SUB, b.t, b.full, 2, x, spread(&b, safe), NULL);
  Node *e = node(&b, P_EXP, b.t, b.full, 1, less, NULL, NULL);
  Node *shift = node(&b, P_SUB, b.t, b.row, 2, m, safe, NULL);
  Node *alpha = node(&b, P_EXP, b.t, b.row, 1, shift, NULL, NULL);
  Node *old = node(&b, P_MUL, b.t, b.row, 2, alpha, l, NULL);
  Node *sum = node(&b, P_ADD, b.t, b.row, 2, old, reduced(&b, P_RSUM, e), NULL);
  Node *out[] = {e, top, sum, alpha};
  for (int i = 0; i < 4; i++) vec_add(arena, &r->outputs, out[i]);
  return r;
}

/* ---- the plan ---- */

static bool is_inverse(const Node *n, const Node *of) {
  return n->prim == P_DIV && n->in[1] == of && n->in[0]->prim == P_CONST && n->in[0]->f == 1;
}

/* The factor is the sum, or over it; the kernel's outputs are the maximum and the factor. */
static bool statistics_fit(AttentionBlocks *b, const Kernel *k, const AttentionSoftmax *s) {
  const Node *sum = s->factor->prim == P_DIV ? s->factor->in[1] : s->factor;
  if (sum->prim != P_RSUM || sum->in[0] != s->exp || s->max->in[0] != s->exp->in[0]->in[0])
    return false;
  b->inverse = is_inverse(s->factor, sum);
  b->slot_max = b->slot_factor = -1;
  for (int i = 1; i < k->outputs.n; i++) {
    if (k->outputs.v[i] == s->max)
      b->slot_max = k->inputs.n + i;
    else if (k->outputs.v[i] == s->factor)
      b->slot_factor = k->inputs.n + i;
    else
      return false;
  }
  return (b->inverse || s->factor == sum) && b->inverse != s->divide;
}

static int64_t choose_block(int64_t keys) {
  for (int64_t n = MOST_BLOCK; n >= LEAST_BLOCK; n -= PANEL)
    if (keys % n == 0) return n;
  return MOST_BLOCK;
}

static void plan_scratch(AttentionPlan *p, AttentionBlocks *b, const Kernel *k) {
  const Attention *a = &b->part[0].a;
  int64_t at = 0, size = p->size, tile = p->t.tile, rows = p->t.tiles_per_task * tile;
  b->at_bufs = attention_room(&at, (k->inputs.n + 8) * (int64_t)sizeof(void *));
  b->at_q = attention_room(&at, p->copy_q ? tile * a->depth.ext * size : 0);
  b->at_k = attention_room(&at, attention_panel_bytes(p->size, a));
  b->at_v = attention_room(&at, a->key.ext * a->width.ext * size);
  b->at_scores = attention_room(&at, tile * a->key.ext * size);
  b->at_out = attention_room(&at, rows * a->width.ext * size);
  b->at_alpha = attention_room(&at, tile * size);
  for (int i = 0; i < 2; i++) {
    b->at_max[i] = attention_room(&at, rows * size);
    b->at_sum[i] = attention_room(&at, rows * size);
  }
  b->scratch = at;
}

/* Fewer, larger tasks than otherwise: each packs all keys. */
static void plan_tasks(AttentionTiles *t) {
  int64_t most_parts = most(1, t->rows / LEAST_ROWS);
  t->parts = least(t->parts, most_parts);
  t->tiles_per_task = div_up(t->tiles, t->parts);
  t->parts = div_up(t->tiles, t->tiles_per_task);
}

void attention_blocks_plan(Arena *arena, AttentionPlan *p, const Kernel *k, bool no_blas) {
  const Attention *a = &p->a;
  AttentionBlocks *b = arena_new_of(arena, AttentionBlocks);
  AttentionSoftmax soft;
  if (a->key.ext <= FEW_KEYS || !attention_softmax(a->out->in[a->weights], &soft)) return;
  if (!statistics_fit(b, k, &soft)) return;
  int64_t block = choose_block(a->key.ext), left = a->key.ext % block;
  b->n_parts = left ? 2 : 1;
  for (int i = 0; i < b->n_parts; i++) {
    Part *part = &b->part[i];
    part->a = *a;
    part->a.key.ext = i ? left : block;
    part->first = i ? a->key.ext - left : 0;
    part->n = i ? 1 : a->key.ext / block;
    part->rows = block_rows(arena, k, a, part, &soft);
    if (!part->rows) return;
  }
  attention_tiles(&p->t, a, block * p->size, k->flops);
  plan_tasks(&p->t);
  plan_scratch(p, b, k);
  for (int i = 0; i < b->n_parts; i++) {
    Part *part = &b->part[i];
    AttentionTiles t = p->t;
    t.keys = part->a.key.ext;
    MicroShape s = attention_scores_shape(&part->a, &t, p->q);
    part->product[0] = attention_product(arena, a->scores, no_blas, b->scratch, &s);
    s = attention_sums_shape(&part->a, &t);
    part->product[1] = attention_product(arena, a->out, no_blas, b->scratch, &s);
  }
  p->blocks = b;
}

/* ---- running ---- */

typedef struct Task {
  const AttentionPlan *p;
  AttentionLoop at;
  int64_t outer, r0, r1; /* rows */
  void *const *bufs;
  RunCtx *ctx;
  char *scratch;
  int old; /* which of at_max and at_sum hold the values so far */
} Task;

static double number(int size, const void *at, int64_t i) {
  return size == 4 ? (double)((const float *)at)[i] : ((const double *)at)[i];
}

static void set_number(int size, void *at, int64_t i, double v) {
  if (size == 4)
    ((float *)at)[i] = (float)v;
  else
    ((double *)at)[i] = v;
}

/* Generated code, for rows r.. of block j. */
static void make_rows(const Task *t, const Part *part, int64_t j, int64_t r, int64_t rows) {
  const AttentionPlan *p = t->p;
  const AttentionBlocks *b = p->blocks;
  int64_t size = p->size, first = (t->outer * part->n + j) * p->t.rows + r, done = r - t->r0;
  void **at = (void **)(void *)(t->scratch + b->at_bufs);
  int n = 0, n_in = part->rows->inputs.n - 3;
  char *s = t->scratch;
  at[n++] = attention_before(s + b->at_scores, first * part->a.key.ext, size);
  at[n++] = attention_before(s + b->at_max[t->old], first - done, size);
  at[n++] = attention_before(s + b->at_sum[t->old], first - done, size);
  for (int i = 0; i < n_in; i++) at[n++] = t->bufs[i];
  at[n++] = at[0];
  at[n++] = attention_before(s + b->at_max[!t->old], first - done, size);
  at[n++] = attention_before(s + b->at_sum[!t->old], first - done, size);
  at[n] = attention_before(s + b->at_alpha, first, size);
  part->fn(NULL, at, first, first + rows, t->ctx);
}

static void do_tile(const Task *t, const Part *part, int64_t j, int64_t r, int64_t rows) {
  const AttentionPlan *p = t->p;
  const AttentionBlocks *b = p->blocks;
  const Attention *a = &part->a;
  int64_t size = p->size, width = a->width.ext;
  const char *q = (const char *)t->bufs[p->slot_q] + (t->at.q + r * a->row.q) * size;
  char *s = t->scratch, *out = s + b->at_out + (r - t->r0) * width * size;
  bool first = j == 0 && part->first == 0;
  if (p->copy_q) {
    attention_copy(p->size, s + b->at_q, a->depth.ext, q, a->row.q, a->depth.q, rows, a->depth.ext);
    q = s + b->at_q;
  }
  attention_scores(part->product[0], a, rows, q, p->q, s + b->at_k, s + b->at_scores, s);
  make_rows(t, part, j, r, rows);
  for (int64_t i = 0; i < rows && !first; i++) {
    double alpha = number(p->size, s + b->at_alpha, i);
    if (alpha != 1)
      attention_store(p->size, out + i * width * size, 1, out + i * width * size, width, alpha);
  }
  MicroProduct m = {.m = rows, .n = width, .k = a->key.ext, .add = !first, .batch = 1};
  m.a = s + b->at_scores;
  m.b = s + b->at_v;
  m.c = out;
  m.a_mat = (Mat){false, a->key.ext};
  m.b_mat = m.c_mat = (Mat){false, width};
  attention_multiply(part->product[1], &m, s);
}

static void do_block(Task *t, const Part *part, int64_t j) {
  const AttentionPlan *p = t->p;
  const AttentionBlocks *b = p->blocks;
  const Attention *a = &part->a;
  int64_t size = p->size, key = part->first + j * a->key.ext;
  const char *k = (const char *)t->bufs[p->slot_k] + (t->at.k + key * a->key.k) * size,
             *v = (const char *)t->bufs[p->slot_v] + (t->at.v + key * a->key.v) * size;
  attention_panels(p->size, t->scratch + b->at_k, k, a);
  attention_copy(p->size, t->scratch + b->at_v, a->width.ext, v, a->key.v, a->width.v, a->key.ext,
                 a->width.ext);
  for (int64_t r = t->r0; r < t->r1; r += p->t.tile)
    do_tile(t, part, j, r, least(p->t.tile, t->r1 - r));
  t->old = !t->old;
}

static void store_results(const Task *t) {
  const AttentionPlan *p = t->p;
  const AttentionBlocks *b = p->blocks;
  const Attention *a = &p->a;
  int64_t size = p->size, width = a->width.ext;
  char *out = (char *)t->bufs[p->slot_out] + t->at.out * size;
  for (int64_t r = t->r0; r < t->r1; r++) {
    double sum = number(p->size, t->scratch + b->at_sum[t->old], r - t->r0);
    if (sum == 0) sum = NAN;
    attention_store(p->size, out + r * a->row.out * size, a->width.out,
                    t->scratch + b->at_out + (r - t->r0) * width * size, width, 1 / sum);
    int64_t row = t->outer * p->t.rows + r;
    if (b->slot_factor >= 0)
      set_number(p->size, t->bufs[b->slot_factor], row, b->inverse ? 1 / sum : sum);
    if (b->slot_max >= 0)
      set_number(p->size, t->bufs[b->slot_max], row,
                 number(p->size, t->scratch + b->at_max[t->old], r - t->r0));
  }
}

static void blocks_tasks(const void *self, void *const *bufs, int64_t begin, int64_t end,
                         RunCtx *ctx) {
  const AttentionPlan *p = self;
  const AttentionBlocks *b = p->blocks;
  for (int64_t i = begin; i < end; i++) {
    int64_t rows = p->t.tiles_per_task * p->t.tile;
    Task t = {.p = p, .outer = i / p->t.parts, .r0 = i % p->t.parts * rows, .bufs = bufs};
    t.r1 = least(t.r0 + rows, p->t.rows);
    t.ctx = ctx;
    t.scratch = ctx->scratch;
    t.at = attention_at(&p->a, t.outer);
    for (int64_t r = 0; r < t.r1 - t.r0; r++) {
      set_number(p->size, t.scratch + b->at_max[0], r, -INFINITY);
      set_number(p->size, t.scratch + b->at_sum[0], r, 0);
    }
    for (int h = 0; h < b->n_parts; h++)
      for (int64_t j = 0; j < b->part[h].n; j++) do_block(&t, &b->part[h], j);
    store_results(&t);
  }
}

/* ---- for attention.c ---- */

void attention_blocks_want(AttentionPlan *p, CodeBatch *b) {
  for (int i = 0; i < p->blocks->n_parts; i++) {
    Part *part = &p->blocks->part[i];
    for (int j = 0; j < 2; j++) plan_micro(part->product[j], b);
    loop_code(b, part->rows, LOOP_ROWS, &part->fn);
  }
}

void attention_blocks_code(const AttentionPlan *p, KernelCode *code) {
  code->phase[0].fn = blocks_tasks;
  for (int i = 0; i < p->blocks->n_parts; i++)
    for (int j = 0; j < 2; j++)
      code->scratch_bytes = most(code->scratch_bytes, p->blocks->part[i].product[j]->work.scratch);
}
