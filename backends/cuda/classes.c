/* Contractions without divisions. In: a contraction an operand of which is read at (result + tap) / d, as in the gradient of a
 * convolution with stride d; out: the contraction of each residue class of its results.
 *
 * Of the results of one class the same taps count, every d-th, or with a dilation every d / gcd(d, dilation)-th, or none: classes
 * are products of their own, on fewer taps, without division or products with zeros. */
#include "gemm.h"
#include <stdlib.h>

/* A dimension with a division: of operand x, read at (c * pos + d * tap + off) / div. */
typedef struct Divided {
  int x, dim, pos, tap; /* tap -1: none */
} Divided;

enum { MOST_DIVIDED = 3, MOST_CLASSES = 9 };

int64_t cuda_map_factor(const AffDim *m, int l) {
  return l < 0 ? 0 : (m->l0 == l ? m->c0 : 0) + (m->l1 == l ? m->c1 : 0);
}

/* 0: none, or not of that form. */
static int divided_dims(const Node *c, Divided v[MOST_DIVIDED]) {
  int n = 0;
  for (int x = 0; x < 2; x++)
    for (int d = 0; d < c->in[x]->rank; d++) {
      const AffDim *m = &c->map[x][d];
      int l[2] = {m->l0, m->l1};
      Divided f = {x, d, -1, -1};
      if (m->div == 1) continue;
      for (int i = 0; i < 2; i++)
        if (l[i] >= 0 && c->ext[l[i]] > 1) *(l[i] < c->rank ? &f.pos : &f.tap) = l[i];
      bool fits = n < MOST_DIVIDED && f.pos >= 0 && c->ext[f.pos] >= 2 * m->div;
      for (int i = 0; i < n; i++) fits &= v[i].pos != f.pos && (f.tap < 0 || v[i].tap != f.tap);
      if (!fits) return 0;
      v[n++] = f;
    }
  return n;
}

int cuda_gemm_classes(const Node *c) {
  Divided v[MOST_DIVIDED];
  int64_t n = 1;
  for (int i = divided_dims(c, v) - 1; i >= 0; i--) n *= c->map[v[i].x][v[i].dim].div;
  return n > MOST_CLASSES ? 1 : (int)n;
}

/* Loop l becomes step * l + at everywhere. */
static void spread_loop(Node *c, int l, int64_t step, int64_t at) {
  c->ext[l] = (c->ext[l] - at + step - 1) / step;
  for (int x = 0; x < 2; x++)
    for (int d = 0; d < c->in[x]->rank; d++) {
      AffDim *m = &c->map[x][d];
      m->off += cuda_map_factor(m, l) * at;
      if (m->l0 == l) m->c0 *= (int32_t)step;
      if (m->l1 == l) m->c1 *= (int32_t)step;
    }
}

/* Taps of a result are so many apart. */
static int64_t tap_step(const AffDim *m, int tap) {
  return m->div / common_factor(m->div, llabs(cuda_map_factor(m, tap)));
}

/* The first tap of a result of residue r; -1: none. */
static int64_t first_tap(const Node *c, const Divided *f, int64_t r) {
  const AffDim *m = &c->map[f->x][f->dim];
  int64_t taps = f->tap < 0 ? 1 : c->ext[f->tap];
  for (int64_t s = 0; s < taps && s < m->div; s++)
    if ((cuda_map_factor(m, f->pos) * r + cuda_map_factor(m, f->tap) * s + m->off) % m->div == 0)
      return s;
  return -1;
}

/* No tap: one step of products of what is outside the operands, 0. */
static void make_zero(Node *c, const Divided *f) {
  int longest = c->rank, y = !f->x;
  for (int l = c->rank; l < c->n_loops; l++)
    if (c->ext[l] > c->ext[longest]) longest = l;
  for (int l = c->rank; l < c->n_loops; l++)
    if (l != longest || c->ext[l] > CUDA_STEP) c->ext[l] = l == longest ? CUDA_STEP : 1;
  for (int d = 0; f->tap >= 0 && d < c->in[y]->rank; d++)
    if (cuda_map_factor(&c->map[y][d], f->tap)) c->map[y][d] = aff_const(-1);
  c->map[f->x][f->dim] = aff_const(-1);
}

bool cuda_reads_nothing(const Node *c) {
  for (int x = 0; x < 2; x++)
    for (int d = 0; d < c->in[x]->rank; d++) {
      const AffDim *m = &c->map[x][d];
      if (m->off < 0 && (m->l0 < 0 || !m->c0) && (m->l1 < 0 || !m->c1)) return true;
    }
  return false;
}

static Node *copy_core(Gen *g, const Node *c) {
  Node *to = arena_dup(g->a, c, sizeof *c);
  to->ext = arena_dup(g->a, c->ext, sizeof *c->ext * (size_t)c->n_loops);
  for (int x = 0; x < 2; x++)
    to->map[x] = arena_dup(g->a, c->map[x], sizeof *c->map[x] * (size_t)c->in[x]->rank);
  return to;
}

const Node *cuda_class_core(Gen *g, int class, CudaGemm *p) {
  const Node *c = g->k->core;
  Divided v[MOST_DIVIDED];
  int n = cuda_gemm_classes(c) > 1 ? divided_dims(c, v) : 0;
  for (int l = 0; l < KL_LOOPS; l++) p->step[l] = 1;
  if (!n) return c;
  Node *to = copy_core(g, c);
  const Divided *none = NULL;
  for (int i = 0; i < n; i++) {
    AffDim *m = &to->map[v[i].x][v[i].dim];
    int64_t div = m->div, r = class % div, s = first_tap(c, &v[i], r);
    class /= (int)div;
    p->step[v[i].pos] = div;
    p->at[v[i].pos] = r;
    spread_loop(to, v[i].pos, div, r);
    if (s < 0) none = &v[i];
    if (s >= 0 && v[i].tap >= 0) spread_loop(to, v[i].tap, tap_step(m, v[i].tap), s);
    m->c0 /= (int32_t)div;
    m->c1 /= (int32_t)div;
    m->off /= div;
    m->div = 1;
  }
  if (none) make_zero(to, none);
  for (int l = 0; l < c->rank; l++) to->dims[l] = to->ext[l];
  return to;
}

/* Not where an operand is read one by one backwards: that would break its runs. */
const Node *cuda_forward_core(Gen *g, const Node *c) {
  Node *to = NULL;
  for (int l = c->rank; l < c->n_loops; l++)
    for (int x = 0; x < 2; x++)
      if (cuda_side_move(c, x, l) == -1 && c->ext[l] > 1) return c;
  for (int l = c->rank; l < c->n_loops; l++) {
    int64_t ext = c->ext[l];
    bool back = false;
    for (int x = 0; x < 2; x++) back |= cuda_side_move(c, x, l) < 0;
    if (!back || ext == 1) continue;
    if (!to) c = to = copy_core(g, c);
    spread_loop(to, l, -1, ext - 1);
    to->ext[l] = ext;
  }
  return c;
}
