/* What attention and its gradient share: tiles, the generated loop over rows of scores, packed operands and products.
 * In: shapes and pointers; out: plans, and matrices in the thread's scratch. */
#include "attention.h"
#include "../../ir/blas.h"

enum { MOST_TILE = 128, LEAST_TILE = 16, TILE_BYTES = 512 << 10 };

/* ---- plans ---- */

void attention_tiles(AttentionTiles *t, const Attention *a, int64_t row_bytes, int64_t flops) {
  *t = (AttentionTiles){.outer = 1, .rows = a->row.ext, .keys = a->key.ext};
  for (int i = 0; i < a->n_outer; i++) t->outer *= a->outer[i].ext;
  int64_t most_rows = most(LEAST_TILE, least(MOST_TILE, TILE_BYTES / row_bytes));
  t->tile = div_up(t->rows, div_up(t->rows, most_rows));
  t->tiles = div_up(t->rows, t->tile);
  int64_t parts = least(t->tiles, div_up(tasks_for(flops), t->outer));
  t->tiles_per_task = div_up(t->tiles, parts);
  t->parts = div_up(t->tiles, t->tiles_per_task);
}

int64_t attention_room(int64_t *at, int64_t bytes) {
  int64_t was = *at;
  *at += div_up(bytes, 64) * 64;
  return was;
}

static void need(bool *needed, const Kernel *k, const Node *x) {
  for (int i = 0; i < k->nodes.n; i++) needed[i] |= k->nodes.v[i] == x;
}

static bool in_list(Node *const *v, int n, const Node *x) {
  for (int i = 0; i < n; i++)
    if (v[i] == x) return true;
  return false;
}

Kernel *attention_rows(Arena *a, const Kernel *k, int n_at, Node *const *at, int n_out,
                       Node *const *out) {
  Kernel *r = arena_new_of(a, Kernel);
  bool *needed = arena_array(a, bool, k->nodes.n);
  r->kind = K_LOOP;
  r->name = k->name;
  r->rank = at[0]->rank;
  memcpy(r->ext, at[0]->dims, sizeof r->ext);
  r->reduce = 1u << (r->rank - 1);
  for (int i = 0; i < n_at; i++) vec_add(a, &r->inputs, ((KernelInput){at[i], true, false}));
  for (int i = 0; i < k->inputs.n; i++) vec_add(a, &r->inputs, k->inputs.v[i]);
  for (int i = 0; i < n_out; i++) {
    vec_add(a, &r->outputs, out[i]);
    need(needed, k, out[i]);
  }
  for (int i = k->nodes.n - 1; i >= 0; i--) {
    const Node *n = k->nodes.v[i];
    needed[i] &= !in_list(at, n_at, n);
    for (int j = 0; needed[i] && j < n->n_in; j++) need(needed, k, n->in[j]);
  }
  for (int i = 0; i < k->nodes.n; i++)
    if (needed[i]) vec_add(a, &r->nodes, k->nodes.v[i]);
  return r;
}

MicroShape attention_scores_shape(const Attention *a, const AttentionTiles *t, Mat q) {
  MicroShape s = {.k = a->depth.ext, .a = q, .b = {false, PANEL}, .c = {false, t->keys}};
  s.m[0] = t->tile;
  s.m[1] = t->rows - (t->tiles - 1) * t->tile;
  s.n[0] = least(t->keys, PANEL);
  s.n[1] = t->keys > PANEL ? t->keys % PANEL : 0;
  return s;
}

MicroShape attention_sums_shape(const Attention *a, const AttentionTiles *t) {
  MicroShape s = attention_scores_shape(a, t, (Mat){false, t->keys});
  s.n[0] = a->width.ext;
  s.n[1] = 0;
  s.k = t->keys;
  s.b = s.c = (Mat){false, a->width.ext};
  return s;
}

Plan *attention_product(Arena *a, const Node *n, bool no_blas, int64_t at, MicroShape *s) {
  Plan *q = arena_new_of(a, Plan);
  q->kind = PLAN_GEMM;
  q->no_blas = no_blas;
  q->facts.dtype = n->dtype;
  q->facts.size = dtype_info[n->dtype].size;
  q->facts.flops = 2 * node_numel(n);
  for (int l = n->rank; l < n->n_loops; l++) q->facts.flops *= n->ext[l];
  q->work.scratch = at;
  s->batch = 1;
  plan_products(a, q, s);
  return q;
}

int64_t attention_panel_bytes(int size, const Attention *a) {
  return div_up(a->key.ext, PANEL) * PANEL * a->depth.ext * size;
}

AttentionLoop attention_at(const Attention *a, int64_t outer) {
  AttentionLoop at = a->at;
  for (int i = a->n_outer - 1; i >= 0; i--) {
    int64_t x = outer % a->outer[i].ext;
    outer /= a->outer[i].ext;
    at.q += x * a->outer[i].q;
    at.k += x * a->outer[i].k;
    at.v += x * a->outer[i].v;
    at.out += x * a->outer[i].out;
  }
  return at;
}

/* ---- matrices ---- */

/* Element (i, j) at from[i*si + j*sj] to to[i*width + j]. */
#define COPY(NAME, T)                                                                              \
  static void NAME(T *restrict to, int64_t width, const T *restrict from, int64_t si, int64_t sj,  \
                   int64_t rows, int64_t columns) {                                                \
    for (int64_t i = 0; i < rows; i++)                                                             \
      for (int64_t j = 0; j < columns; j++) to[i * width + j] = from[i * si + j * sj];             \
  }
COPY(copy_float, float)
COPY(copy_double, double)

void attention_copy(int size, void *to, int64_t width, const void *from, int64_t si, int64_t sj,
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
  static void NAME(T *to, int64_t step, const T *from, int64_t n, T f) {                           \
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
      if (!q->add) memset(to, 0, sizeof(T) * (size_t)q->n);                                        \
      for (int64_t k = 0; k < q->k; k++)                                                           \
        for (int64_t j = 0; j < q->n; j++) to[j] += a[i * am + k * ak] * b[k * q->b_mat.ld + j];   \
    }                                                                                              \
  }
PLAIN(plain_float, float)
PLAIN(plain_double, double)

/* Plain loops do what is not for BLAS, on a machine for which there are no microkernels. */
void attention_multiply(const Plan *p, const MicroProduct *q, void *scratch) {
  int64_t am = q->a_mat.trans ? 1 : q->a_mat.ld, ak = q->a_mat.trans ? q->a_mat.ld : 1;
  if (p->micro || !p->no_blas)
    multiply(p, q, scratch);
  else if (p->facts.size == 4)
    plain_float(q, am, ak, q->a, q->b, q->c);
  else
    plain_double(q, am, ak, q->a, q->b, q->c);
}

void attention_store(int size, void *to, int64_t step, const void *from, int64_t n, double f) {
  if (size == 4)
    store_float(to, step, from, n, (float)f);
  else
    store_double(to, step, from, n, f);
}

void attention_panels(int size, char *to, const char *k, const Attention *a) {
  for (int64_t j = 0; j < a->key.ext; j += PANEL)
    attention_copy(size, to + j * a->depth.ext * size, PANEL, k + j * a->key.k * size, a->depth.k,
                   a->key.k, a->depth.ext, least(PANEL, a->key.ext - j));
}

void attention_scores(const Plan *p, const Attention *a, int64_t rows, const void *q, Mat q_mat,
                      const char *panels, char *scores, void *scratch) {
  MicroProduct m = {.m = rows, .k = a->depth.ext, .a = q, .a_mat = q_mat, .batch = 1};
  int64_t size = p->facts.size;
  m.b_mat = (Mat){false, PANEL};
  m.c_mat = (Mat){false, a->key.ext};
  for (int64_t j = 0; j < a->key.ext; j += PANEL) {
    m.n = least(PANEL, a->key.ext - j);
    m.b = panels + j * a->depth.ext * size;
    m.c = scores + j * size;
    attention_multiply(p, &m, scratch);
  }
}
