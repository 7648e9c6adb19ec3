/* Contractions that are matrix products: both operands plain.
 *
 * The loops of each class are merged where their strides allow; one merged loop of M, N and K each becomes the matrix
 * product, such that BLAS takes the strides and the product is largest. What remains of M, N and the batch are outer
 * items, what remains of K is summed by one product after the other. A large product is cut along its longer side; one of a
 * few rows along K, into sums that are added up in the end.
 * The tasks are those items or cuts; the result of each depends on the shapes only. */
#include "cpu.h"
#include "../llvm/llvm.h"

typedef struct GemmPlan {
  LoopList outer, sum; /* result loops and summed loops around the product */
  int a, b;            /* operands: rows of the result come from a */
  int64_t m, n, k;
  int64_t am, bn, cm; /* stride of a row in a, of a column in b, of a row in the result */
  Mat ma, mb, mc;
  int64_t group;        /* outer items per task; with cuts 1 */
  int64_t cut_m, cut_n; /* rows and columns per task */
  int64_t cuts;         /* tasks per item */
  int64_t unit;         /* > 0: so many items, rows or columns make one row of the epilogue */
  bool near;            /* the tasks of a thread leave their results in one place */
  int64_t bufs_at;      /* with near: where the thread's scratch for them begins */
} GemmPlan;

/* Runs of loops of one class that are one loop in every tensor: element i of the list ends at loop id[i]. */
typedef struct Merged {
  int n;
  CLoop l[KL_LOOPS];
  int64_t row_unit[KL_LOOPS]; /* > 0: the run begins with the row axis; extent below it */
} Merged;

typedef struct Pick {
  int m, n, k; /* into Merged; -1: none of that class */
  bool swap;   /* rows of the result run over N */
  Mat ma, mb, mc;
  double size;
} Pick;

static Merged merge(const Facts *f, unsigned class, int t, int64_t rows) {
  Merged r = {0};
  LoopList l = loops_of(f, 1u << class);
  list_sort(f, &l, t);
  for (int i = 0; i < l.n; i++) {
    const CLoop *c = &f->loop[l.id[i]];
    CLoop *last = r.n ? &r.l[r.n - 1] : NULL;
    bool joins = last != NULL;
    for (int u = 0; u < 3 && joins; u++) joins = last->s[u] == c->s[u] * c->ext;
    if (joins) {
      if (r.row_unit[r.n - 1]) r.row_unit[r.n - 1] *= c->ext;
      last->ext *= c->ext;
      memcpy(last->s, c->s, sizeof c->s);
    } else {
      r.row_unit[r.n] = is_row_axis(f, l.id[i], rows);
      r.l[r.n++] = *c;
    }
  }
  return r;
}

static const CLoop *at(const Merged *m, int i) {
  static const CLoop one = {.ext = 1};
  return i < 0 ? &one : &m->l[i];
}

static bool choose(const Merged *m, const Merged *n, const Merged *k, Pick *best) {
  best->size = 0;
  for (int i = m->n ? 0 : -1; i < m->n; i++)
    for (int j = n->n ? 0 : -1; j < n->n; j++)
      for (int h = k->n ? 0 : -1; h < k->n; h++) {
        const CLoop *lm = at(m, i), *ln = at(n, j), *lk = at(k, h);
        Pick p = {.m = i, .n = j, .k = h};
        p.size = (double)lm->ext * (double)ln->ext * (double)lk->ext;
        if (p.size > best->size && mat_of(lm->ext, lm->s[0], lk->ext, lk->s[0], &p.ma) &&
            mat_of(lk->ext, lk->s[1], ln->ext, ln->s[1], &p.mb) &&
            mat_of(lm->ext, lm->s[2], ln->ext, ln->s[2], &p.mc))
          *best = p;
      }
  return best->size > 0;
}

/* Merged loops other than `but` become loops of the plan: they are appended to the Facts. */
static void leave(Facts *f, LoopList *to, const Merged *m, int but, int64_t *unit) {
  for (int i = 0; i < m->n; i++) {
    if (i == but) continue;
    if (m->row_unit[i]) *unit = m->row_unit[i];
    f->loop[f->n] = m->l[i];
    list_add(f, to, f->n++);
  }
}

static int64_t round_up(int64_t a, int64_t to) { return div_up(a, to) * to; }

/* Cuts rows into p and columns into q, such that there are enough pieces and least is read: A is q times, B p times, which is
 * more if it has to be packed, and C again by an epilogue that wants whole rows. */
static void cut_sides(GemmPlan *g, int64_t want, bool epilogue) {
  enum { LEAST_M = 16, LEAST_N = 64, ROUND_M = 4, PACKED = 2 };
  int64_t most_p = most(g->m / LEAST_M, 1), most_q = most(div_up(g->n, LEAST_N), 1), least_read = 0;
  int64_t m = g->m, n = g->n, b = g->mb.trans ? PACKED * n : n;
  want = least(want, most_p * most_q);
  for (int64_t p = 1; p <= most_p; p *= 2) {
    int64_t q = least(div_up(want, p), most_q), read = (p * b + q * m) * g->k;
    if (q > 1 && epilogue) read += 2 * m * n;
    if (p * q * 4 < want * 3 || (least_read && read >= least_read)) continue;
    least_read = read;
    g->cut_m = p == 1 ? m : round_up(div_up(m, p), ROUND_M);
    g->cut_n = q == 1 ? n : round_up(div_up(n, q), LEAST_N);
  }
}

/* Cuts rows so that the results of a task are in the nearest caches when its epilogue updates state by them. Not of sums so short
 * that OpenBLAS makes them, of which a call costs more. */
static void cut_near(GemmPlan *g, int64_t size) {
  enum { NEAR_BYTES = 32 << 10, LEAST_ROWS = 24, EVEN = 4, LEAST_K = 16 };
  int64_t rows = most(NEAR_BYTES / (g->n * size), LEAST_ROWS);
  if (rows < g->cut_m && g->k >= LEAST_K)
    g->cut_m = div_up(g->m, round_up(div_up(g->m, rows), EVEN));
}

/* Task sizes, and whether tasks hold whole rows of the epilogue. */
static void divide(GemmPlan *g, Work *w, const Frame *fr, const Facts *f, int64_t unit_outer,
                   int64_t unit_m, int64_t unit_n) {
  enum { ENOUGH = 8 }; /* of one product */
  int64_t want = tasks_for(f->flops), items = g->outer.total, size = f->size;
  bool panels = items == 1 && unit_m == 1 && fr->columns == g->n && g->mc.ld == g->n;
  g->group = g->cuts = 1;
  g->cut_m = g->m;
  g->cut_n = g->n;
  if (items >= want) {
    g->group = div_up(items, want);
    if (unit_outer && div_up(items, round_up(g->group, unit_outer)) * 2 >= want) {
      g->group = round_up(g->group, unit_outer);
      g->unit = unit_outer;
    }
  } else {
    cut_sides(g, least(div_up(want, items), ENOUGH),
              fr->epilogue && items == 1 && unit_m && !panels);
    if (fr->updates && items == 1 && g->cut_n == g->n && unit_m) cut_near(g, size);
    if (items == 1 && g->cut_n == g->n && unit_m && unit_m * 4 <= g->m) {
      g->cut_m = round_up(g->cut_m, unit_m);
      g->unit = unit_m;
    }
    if (panels && g->cut_n < g->n) {
      w->by_panel = true;
      g->unit = 1;
    }
    if (items == 1 && g->m == 1 && unit_n && unit_n * 4 <= g->n) {
      g->cut_n = round_up(g->cut_n, unit_n);
      g->unit = unit_n;
    }
    g->cuts = div_up(g->m, g->cut_m) * div_up(g->n, g->cut_n);
    if (items == 1 && g->cuts == 1) g->unit = 1; /* one task has all rows */
    if (unit_outer && g->cuts == 1) g->unit = unit_outer, g->group = unit_outer;
  }
  w->n_phases = 1;
  w->n_tasks[0] = div_up(items, g->group) * g->cuts;
  w->fused = g->unit > 0 || fr->rows == 1;
}

static void product(const Plan *p, void *const *bufs, int64_t item, int64_t m0, int64_t m1,
                    int64_t n0, int64_t n1, void *scratch) {
  const Facts *f = &p->facts;
  const GemmPlan *g = p->gemm;
  const char *a = bufs[p->frame.x[g->a]], *b = bufs[p->frame.x[g->b]];
  char *c = bufs[p->frame.out];
  int64_t ao = f->base[g->a] + list_at(f, &g->outer, item, g->a) + m0 * g->am,
          bo = f->base[g->b] + list_at(f, &g->outer, item, g->b) + n0 * g->bn,
          co = list_at(f, &g->outer, item, 2) + m0 * g->cm + n0;
  MicroProduct q = {m1 - m0, n1 - n0, g->k, .c = c + co * f->size, .a_mat = g->ma};
  q.cut_n = g->cut_n;
  q.b_mat = g->mb;
  q.c_mat = g->mc;
  q.batch = g->sum.n ? f->loop[g->sum.id[g->sum.n - 1]].ext : 1; /* the innermost sum */
  q.a_step = list_step(f, &g->sum, g->a);
  q.b_step = list_step(f, &g->sum, g->b);
  for (int64_t s = 0; s < g->sum.total; s += q.batch, q.add = true) {
    q.a = a + (ao + list_at(f, &g->sum, s, g->a)) * f->size;
    q.b = b + (bo + list_at(f, &g->sum, s, g->b)) * f->size;
    multiply(p, &q, scratch);
  }
}

/* The buffers for the task of rows m0 and on, if its results go to where those of the thread's first task do. */
static void *const *near_bufs(const Plan *p, void *const *bufs, int64_t first, int64_t m0,
                              void *scratch) {
  const GemmPlan *g = p->gemm;
  void **b = (void **)(void *)((char *)scratch + g->bufs_at);
  memcpy(b, bufs, sizeof *b * (size_t)p->frame.ws);
  b[p->frame.out] = (char *)b[p->frame.out] - (m0 - first) * g->cm * p->facts.size;
  return b;
}

static void gemm_tasks(const void *self, void *const *bufs, int64_t begin, int64_t end,
                       RunCtx *ctx) {
  const Plan *p = self;
  const GemmPlan *g = p->gemm;
  int64_t cuts_n = div_up(g->n, g->cut_n);
  bool one = p->micro && p->set->ready; /* tasks side by side are one product, with the same sums */
  for (int64_t t = begin, columns; t < end; t += columns) {
    int64_t cut = t % g->cuts, i0 = t / g->cuts * g->group,
            i1 = least(i0 + g->group, g->outer.total);
    columns = one ? least(cuts_n - cut % cuts_n, end - t) : 1;
    int64_t m0 = cut / cuts_n * g->cut_m, m1 = least(m0 + g->cut_m, g->m);
    int64_t n0 = cut % cuts_n * g->cut_n, n1 = least(n0 + columns * g->cut_n, g->n);
    void *const *to = g->near ? near_bufs(p, bufs, begin * g->cut_m, m0, ctx->scratch) : bufs;
    for (int64_t i = i0; i < i1; i++) product(p, to, i, m0, m1, n0, n1, ctx->scratch);
    if (!p->frame.fn) continue;
    if (p->work.by_panel) {
      p->frame.fn(&(EpilogueColumns){n0, n1}, to, m0, m1, ctx);
      continue;
    }
    int64_t r0 = 0, r1 = p->frame.rows;
    if (g->cuts > 1 && g->m > 1)
      r0 = m0 / g->unit, r1 = m1 / g->unit;
    else if (g->cuts > 1)
      r0 = n0 / g->unit, r1 = n1 / g->unit;
    else if (g->outer.total > 1)
      r0 = i0 / g->unit, r1 = i1 / g->unit;
    run_epilogue(&p->frame, to, r0, r1, ctx);
  }
}

/* ---- divided sums ---- */

/* As wide as AVX2's: wider ones become single elements there. */
typedef float Vec __attribute__((vector_size(32), aligned(4), may_alias));
#define INLINE static inline __attribute__((always_inline))

/* c += a[0..rows) times as many rows of B, which follow one another. */
INLINE void add_rows(int rows, float *c, const float *a, const float *b, int64_t n) {
  int64_t j = 0, step = sizeof(Vec) / sizeof *c;
  for (; j + step <= n; j += step) {
    Vec s = *(const Vec *)(c + j);
    for (int i = 0; i < rows; i++) s += a[i] * *(const Vec *)(b + i * n + j);
    *(Vec *)(c + j) = s;
  }
  for (; j < n; j++)
    for (int i = 0; i < rows; i++) c[j] += a[i] * b[i * n + j];
}

INLINE void times_rows(float *c, const float *a, const float *b, int64_t k, int64_t n) {
  enum { ROWS = 8 };
  memset(c, 0, (size_t)n * sizeof *c);
  for (; k >= ROWS; k -= ROWS, a += ROWS, b += ROWS * n) add_rows(ROWS, c, a, b, n);
  for (; k; k--, a++, b += n) add_rows(1, c, a, b, n);
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) static void times_rows_avx2(float *c, const float *a,
                                                            const float *b, int64_t k, int64_t n) {
  times_rows(c, a, b, k, n);
}
#endif

static void row_product(const MicroProduct *q) {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2")) {
    times_rows_avx2(q->c, q->a, q->b, q->k, q->n);
    return;
  }
#endif
  times_rows(q->c, q->a, q->b, q->k, q->n);
}

static bool by_rows(const Plan *p) { return p->gemm->m == 1 && p->facts.dtype == DT_FLOAT32; }

/* A row times a large matrix: each task streams through rows of B that follow one another. Or a few rows times one that the
 * program changes, and that the caches hold: the task's rows are those that its thread updated. */
static void share_tasks(const void *self, void *const *bufs, int64_t begin, int64_t end,
                        RunCtx *ctx) {
  const Plan *p = self;
  const Facts *f = &p->facts;
  const GemmPlan *g = p->gemm;
  char *ws = bufs[p->frame.ws];
  bool pairs = p->work.pairs_at && p->set->ready;
  for (int64_t t = begin; t < end; t++) {
    bool joins = pairs && t % 2 && t > begin;
    if (p->work.pairs_at && t % 2) ws[p->work.pairs_at + t / 2] = joins;
    int64_t k0 = g->k * t / p->work.shares, k1 = g->k * (t + 1) / p->work.shares;
    MicroProduct q = {.m = g->m, .n = g->n, .k = k1 - k0, .batch = 1};
    q.a = (const char *)bufs[p->frame.x[g->a]] + (f->base[g->a] + k0) * f->size;
    q.b = (const char *)bufs[p->frame.x[g->b]] + (f->base[g->b] + k0 * g->n) * f->size;
    q.c = ws + (t - joins) * f->numel * f->size;
    q.add = joins;
    q.a_mat = g->ma;
    q.b_mat = g->mb;
    q.c_mat = g->mc;
    if (by_rows(p))
      row_product(&q);
    else
      multiply(p, &q, ctx->scratch);
  }
}

/* Into how many sums K is divided; 0: it is not. Their parts are less to read than B. */
static int shares_of(const Plan *p, const GemmPlan *g, const CLoop *lk) {
  enum { LARGE = 256 << 10, SMALL = 128 << 10, CACHED = 1 << 20, SHARES = 4 };
  const Facts *f = &p->facts;
  bool rows = g->outer.total == 1 && g->sum.total == 1 && lk->s[g->a] == 1 && !g->ma.trans &&
              !g->mb.trans && g->mb.ld == g->n && g->mc.ld == g->n && g->n > 1;
  int64_t bytes = g->k * g->n * f->size;
  if (p->no_blas || !rows || bytes < SMALL || g->k < 16 * MOST_SHARES) return 0;
  bool packed = p->frame.constant[g->b] && bytes <= ROW_BYTES_KEPT;
  if (g->m == 1) return bytes < LARGE || packed ? 0 : MOST_SHARES;
  if (p->frame.constant[g->b] || bytes > CACHED) return 0;
  int64_t shares = most(tasks_for(f->flops), bytes < LARGE ? 1 : SHARES);
  shares = least(least(shares, g->k / (2 * g->m)), MOST_SHARES);
  return shares > 1 ? (int)shares : 0;
}

static bool divide_sum(Arena *a, Plan *p, int shares) {
  const GemmPlan *g = p->gemm;
  if (!shares) return false;
  MicroShape s = {.m = {g->m}, .n = {g->n}, .k = g->k / shares, .batch = 1};
  s.a = g->ma;
  s.b = g->mb;
  s.c = g->mc;
  p->work.fn[0] = share_tasks;
  p->work.n_tasks[0] = shares;
  p->work.n_phases = 1;
  add_shares(p, shares);
  if (g->m > 1)
    plan_products(a, p, &s);
  else
    p->uses_blas = !by_rows(p);
  if (p->micro && micro_adds_once(p->micro, div_up(g->k, shares))) {
    p->work.pairs_at = p->work.workspace;
    p->work.workspace += MOST_SHARES / 2;
  }
  return true;
}

bool gemm_plan(Arena *arena, Plan *p) {
  enum { LINE = 64 /* bytes: threads' scratch stays aligned */ };
  enum { LEAST = 64 }; /* multiply-adds in one product for which calling BLAS pays */
  Facts *f = &p->facts;
  int64_t rows = p->frame.rows;
  Merged batch = merge(f, LC_BATCH, 2, rows), m = merge(f, LC_M, 2, rows),
         n = merge(f, LC_N, 2, rows), k = merge(f, LC_K, 0, rows);
  Pick pick = {0};
  if (f->n + batch.n + m.n + n.n + k.n > KL_LOOPS || !choose(&m, &n, &k, &pick)) return false;
  if (pick.size < LEAST && pick.size * 2 < (double)f->flops) return false;
  GemmPlan *g = p->gemm = arena_new_of(arena, GemmPlan);
  const CLoop *lm = at(&m, pick.m), *ln = at(&n, pick.n), *lk = at(&k, pick.k);
  int64_t um = pick.m < 0 ? 0 : m.row_unit[pick.m], un = pick.n < 0 ? 0 : n.row_unit[pick.n];
  int64_t uo = 0;
  g->outer.total = g->sum.total = 1;
  leave(f, &g->outer, &batch, -1, &uo);
  leave(f, &g->outer, &m, pick.m, &uo);
  leave(f, &g->outer, &n, pick.n, &uo);
  leave(f, &g->sum, &k, pick.k, &uo);
  list_sort(f, &g->outer, 2);
  if (uo)
    for (int i = 1; i < g->outer.n; i++) uo *= f->loop[g->outer.id[i]].ext;
  g->a = pick.mc.trans;
  g->b = !pick.mc.trans;
  g->k = lk->ext;
  if (pick.mc.trans) { /* the transposed product: rows of the result run over N */
    const CLoop *l = lm;
    lm = ln;
    ln = l;
    int64_t u = um;
    um = un;
    un = u;
    g->ma = (Mat){!pick.mb.trans, pick.mb.ld};
    g->mb = (Mat){!pick.ma.trans, pick.ma.ld};
  } else {
    g->ma = pick.ma;
    g->mb = pick.mb;
  }
  g->mc = (Mat){false, pick.mc.ld};
  g->m = lm->ext;
  g->n = ln->ext;
  g->am = lm->s[g->a];
  g->bn = ln->s[g->b];
  g->cm = lm->s[2];
  if (divide_sum(arena, p, shares_of(p, g, lk))) return true;
  p->work.fn[0] = gemm_tasks;
  divide(g, &p->work, &p->frame, f, uo, um, un);
  MicroShape s = {.m = {g->cut_m, g->m % g->cut_m},
                  .n = {g->cut_n, g->n % g->cut_n},
                  .k = g->k,
                  .batch = g->sum.n ? f->loop[g->sum.id[g->sum.n - 1]].ext : 1,
                  .a = g->ma,
                  .b = g->mb,
                  .c = g->mc};
  plan_products(arena, p, &s);
  g->near = p->frame.passing && p->work.fused && g->cuts == div_up(g->m, g->cut_m);
  g->bufs_at = p->work.scratch;
  if (g->near) p->work.scratch += round_up((int64_t)sizeof(void *) * p->frame.ws, LINE);
  return true;
}

bool gemm_shares_plan(Arena *a, Plan *p) {
  Plan old = *p;
  if (gemm_plan(a, p) && p->work.shares) return true;
  *p = old;
  return false;
}
