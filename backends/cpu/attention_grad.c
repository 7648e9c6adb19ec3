/* K_ATTENTION_GRAD: gradients of q, k and v, with the weights computed again.
 *
 * A task is one outer index (a head). For each tile of rows: scores q k^T and the gradient of the weights, the given gradient
 * times v^T, by microkernels; then, by generated code at each point of the rows, the weights of the scores (with the row's
 * stored maximum and factor) and the gradient of the scores, in place. Sums over keys (the gradient of q) are made for the
 * tile; sums over rows (those of k and v) gather in the thread's scratch from tile to tile. So no matrix of all rows and keys
 * exists, and every sum has one order. */
#include "attention.h"

enum { SCORES, PRODUCTS, N_TILES };
enum { MOST_SUMS = 3 };

typedef struct Sum {
  Attention a;
  int tile; /* the one that it is a sum of */
  int slot_v, slot_out;
  int64_t at_v,
      at_out; /* v: of all keys, or of a tile of rows; out: of a tile of rows, or of all keys */
  Plan *product;
} Sum;

struct AttentionGrad {
  AttentionTiles t;
  int size, n_sums, n_in; /* n_in: the kernel's inputs */
  struct {
    Attention a; /* of what makes the tile; out: the first sum */
    int slot_q, slot_k;
    int64_t at_q, at_k, at;
    Plan *product;
  } tile[N_TILES];
  Sum sum[MOST_SUMS];
  Kernel *rows;
  KernelFn *fn;
  int output_tile[N_TILES]; /* of the rows' outputs */
  int64_t at_bufs, scratch;
};

/* ---- the plan ---- */

static bool inside(const Kernel *k, const Node *n) {
  for (int i = 0; i < k->nodes.n; i++)
    if (k->nodes.v[i] == n) return true;
  return false;
}

/* Is it computed from the kernel's core? Operands come before users. */
static bool depends_on_core(Arena *a, const Kernel *k, const Node *n) {
  bool *yes = arena_array(a, bool, k->nodes.n);
  for (int i = 0; i < k->nodes.n; i++) {
    const Node *x = k->nodes.v[i];
    yes[i] = x == k->core;
    for (int j = 0; j < x->n_in; j++)
      for (int o = 0; o < i; o++) yes[i] |= yes[o] && k->nodes.v[o] == x->in[j];
    if (x == n) return yes[i];
  }
  return false;
}

static const Node *scores_of(const Kernel *k) {
  for (int i = 0; i < k->nodes.n; i++) {
    const Node *n = k->nodes.v[i];
    bool out = n == k->core || n->prim != P_CONTRACT;
    for (int o = 0; o < k->outputs.n; o++) out |= k->outputs.v[o] == n;
    if (!out) return n;
  }
  return NULL;
}

static void find_parts(Arena *arena, AttentionGrad *p, const Kernel *k) {
  const Node *made[N_TILES] = {[SCORES] = scores_of(k), [PRODUCTS] = k->core};
  Node *at[N_TILES], *out[N_TILES];
  int n_out = 0;
  for (int i = 0; i < k->outputs.n; i++) {
    Sum *s = &p->sum[p->n_sums++];
    const Node *n = k->outputs.v[i];
    int x = inside(k, n->in[1]);
    s->tile = depends_on_core(arena, k, n->in[x]) ? PRODUCTS : SCORES;
    attention_of(made[s->tile], n, x, &s->a);
    s->slot_v = kernel_input(k, n->in[!x]);
    s->slot_out = k->inputs.n + i;
    bool known = false;
    for (int o = 0; o < n_out; o++) known |= out[o] == n->in[x];
    if (known) continue;
    p->output_tile[n_out] = s->tile;
    out[n_out++] = n->in[x];
  }
  const Sum *first = &p->sum[0];
  for (int i = 0; i < N_TILES; i++) {
    Attention *a = &p->tile[i].a;
    attention_of(made[i], first->a.out, first->a.weights, a);
    p->tile[i].slot_q = kernel_input(k, made[i]->in[a->q]);
    p->tile[i].slot_k = kernel_input(k, made[i]->in[!a->q]);
    at[i] = (Node *)(uintptr_t)made[i];
  }
  p->rows = attention_rows(arena, k, N_TILES, at, n_out, out);
}

static void plan_scratch(AttentionGrad *p) {
  int64_t at = 0, size = p->size, tile = p->t.tile, keys = p->t.keys;
  p->at_bufs =
      attention_room(&at, (p->rows->inputs.n + p->rows->outputs.n) * (int64_t)sizeof(void *));
  for (int i = 0; i < N_TILES; i++) {
    const Attention *a = &p->tile[i].a;
    p->tile[i].at_q = attention_room(&at, tile * a->depth.ext * size);
    p->tile[i].at_k = attention_room(&at, attention_panel_bytes(p->size, a));
    p->tile[i].at = attention_room(&at, tile * keys * size);
  }
  for (int i = 0; i < p->n_sums; i++) {
    Sum *s = &p->sum[i];
    int64_t width = s->a.width.ext * size;
    s->at_v = attention_room(&at, (s->a.over_rows ? tile : keys) * width);
    s->at_out = attention_room(&at, (s->a.over_rows ? keys : tile) * width);
  }
  p->scratch = at;
}

static MicroShape sum_shape(const AttentionGrad *p, const Sum *s) {
  int64_t last = p->t.rows - (p->t.tiles - 1) * p->t.tile, width = s->a.width.ext;
  MicroShape m = {.m = {p->t.tile, last}, .n = {width, 0}, .k = p->t.keys};
  m.a = (Mat){s->a.over_rows, p->t.keys};
  m.b = m.c = (Mat){false, width};
  if (!s->a.over_rows) return m;
  m.m[0] = p->t.keys;
  m.m[1] = 0;
  m.k = p->t.tile;
  return m;
}

AttentionGrad *attention_grad_plan(Arena *arena, const Kernel *k, bool no_blas) {
  AttentionGrad *p = arena_new_of(arena, AttentionGrad);
  p->size = dtype_info[k->core->dtype].size;
  p->n_in = k->inputs.n;
  find_parts(arena, p, k);
  const Attention *a = &p->tile[SCORES].a;
  attention_tiles(&p->t, a, N_TILES * a->key.ext * p->size, 0); /* an outer index is one task */
  plan_scratch(p);
  for (int i = 0; i < N_TILES; i++) {
    const Attention *b = &p->tile[i].a;
    MicroShape s = attention_scores_shape(b, &p->t, (Mat){false, b->depth.ext});
    p->tile[i].product = attention_product(arena, b->scores, no_blas, p->scratch, &s);
  }
  for (int i = 0; i < p->n_sums; i++) {
    MicroShape s = sum_shape(p, &p->sum[i]);
    p->sum[i].product = attention_product(arena, p->sum[i].a.out, no_blas, p->scratch, &s);
  }
  return p;
}

/* ---- running ---- */

/* What stays for all tiles of the outer index: k and v transposed, and what is summed with over keys. */
static void pack(const AttentionGrad *p, void *const *bufs, int64_t outer, char *scratch) {
  int64_t size = p->size;
  for (int i = 0; i < N_TILES; i++) {
    const Attention *a = &p->tile[i].a;
    const char *k = bufs[p->tile[i].slot_k];
    attention_panels(p->size, scratch + p->tile[i].at_k, k + attention_at(a, outer).k * size, a);
  }
  for (int i = 0; i < p->n_sums; i++) {
    const Attention *a = &p->sum[i].a;
    const char *v = (const char *)bufs[p->sum[i].slot_v] + attention_at(a, outer).v * size;
    if (!a->over_rows)
      attention_copy(p->size, scratch + p->sum[i].at_v, a->width.ext, v, a->key.v, a->width.v,
                     a->key.ext, a->width.ext);
  }
}

static void make_tiles(const AttentionGrad *p, void *const *bufs, int64_t outer, int64_t r0,
                       int64_t rows, char *scratch) {
  for (int i = 0; i < N_TILES; i++) {
    const Attention *a = &p->tile[i].a;
    const char *q = bufs[p->tile[i].slot_q];
    char *to = scratch + p->tile[i].at_q;
    q += (attention_at(a, outer).q + r0 * a->row.q) * p->size;
    attention_copy(p->size, to, a->depth.ext, q, a->row.q, a->depth.q, rows, a->depth.ext);
    attention_scores(p->tile[i].product, a, rows, to, (Mat){false, a->depth.ext},
                     scratch + p->tile[i].at_k, scratch + p->tile[i].at, scratch);
  }
}

/* Generated code, which takes the tiles for rows `row` and on of the whole. */
static void make_rows(const AttentionGrad *p, void *const *bufs, int64_t row, int64_t rows,
                      RunCtx *ctx) {
  char *scratch = ctx->scratch;
  void **b = (void **)(void *)(scratch + p->at_bufs), *tile[N_TILES];
  int n = 0;
  for (int i = 0; i < N_TILES; i++)
    b[n++] = tile[i] = attention_before(scratch + p->tile[i].at, row * p->t.keys, p->size);
  for (int i = 0; i < p->n_in; i++) b[n++] = bufs[i];
  for (int i = 0; i < p->rows->outputs.n; i++) b[n++] = tile[p->output_tile[i]];
  p->fn(NULL, b, row, row + rows, ctx);
}

static void store(const AttentionGrad *p, const Sum *s, void *const *bufs, int64_t outer,
                  int64_t first, int64_t n, int64_t step, const char *from) {
  const Attention *a = &s->a;
  char *out = bufs[s->slot_out];
  out += attention_at(a, outer).out * p->size;
  for (int64_t i = 0; i < n; i++)
    attention_store(p->size, out + (first + i) * step * p->size, a->width.out,
                    from + i * a->width.ext * p->size, a->width.ext, 1);
}

static void make_sum(const AttentionGrad *p, const Sum *s, void *const *bufs, int64_t outer,
                     int64_t r0, int64_t rows, char *scratch) {
  const Attention *a = &s->a;
  int64_t width = a->width.ext;
  MicroProduct m = {.m = rows, .n = width, .k = p->t.keys, .batch = 1};
  m.a = scratch + p->tile[s->tile].at;
  m.b = scratch + s->at_v;
  m.c = scratch + s->at_out;
  m.a_mat = (Mat){a->over_rows, p->t.keys};
  m.b_mat = m.c_mat = (Mat){false, width};
  if (a->over_rows) {
    const char *v = bufs[s->slot_v];
    v += (attention_at(a, outer).v + r0 * a->row.v) * p->size;
    attention_copy(p->size, scratch + s->at_v, width, v, a->row.v, a->width.v, rows, width);
    m.m = p->t.keys;
    m.k = rows;
    m.add = r0 > 0;
  }
  attention_multiply(s->product, &m, scratch);
  if (!a->over_rows) store(p, s, bufs, outer, r0, rows, a->row.out, m.c);
}

static void grad_tasks(const void *self, void *const *bufs, int64_t begin, int64_t end,
                       RunCtx *ctx) {
  const AttentionGrad *p = self;
  char *scratch = ctx->scratch;
  for (int64_t t = begin; t < end; t++) {
    pack(p, bufs, t, scratch);
    for (int64_t r0 = 0; r0 < p->t.rows; r0 += p->t.tile) {
      int64_t rows = least(p->t.tile, p->t.rows - r0);
      make_tiles(p, bufs, t, r0, rows, scratch);
      make_rows(p, bufs, t * p->t.rows + r0, rows, ctx);
      for (int i = 0; i < p->n_sums; i++) make_sum(p, &p->sum[i], bufs, t, r0, rows, scratch);
    }
    for (int i = 0; i < p->n_sums; i++) {
      const Sum *s = &p->sum[i];
      if (s->a.over_rows) store(p, s, bufs, t, 0, p->t.keys, s->a.key.out, scratch + s->at_out);
    }
  }
}

/* ---- for cpu.c ---- */

void attention_grad_want(AttentionGrad *p, CodeBatch *b) {
  for (int i = 0; i < N_TILES; i++) plan_micro(p->tile[i].product, b);
  for (int i = 0; i < p->n_sums; i++) plan_micro(p->sum[i].product, b);
  loop_code(b, p->rows, LOOP_ROWS, &p->fn);
}

void attention_grad_code(const AttentionGrad *p, KernelCode *code) {
  code->n_phases = 1;
  code->phase[0].fn = grad_tasks;
  code->phase[0].self = p;
  code->phase[0].n_tasks = p->t.outer;
  for (int i = 0; i < N_TILES; i++)
    code->scratch_bytes = most(code->scratch_bytes, p->tile[i].product->work.scratch);
  for (int i = 0; i < p->n_sums; i++)
    code->scratch_bytes = most(code->scratch_bytes, p->sum[i].product->work.scratch);
}
