/* Matrix products by microkernels (backends/llvm/micro_ir.c): which tile, cache loops, packing.
 *
 * In: C (+)= sum over the batch of A_b B_b, with C by rows. A is read in place: by rows whose distance may be a constant of the
 * code, or by columns. B is read in place where that is fast (see packs); else a panel of it, as wide as a tile,
 * is packed into the thread's scratch, a B by rows by the panel's first tile. Or, if A is by rows and B by columns, both are
 * read in place by tiles of dot products. K is cut so that a panel stays in the L1 or the L2 cache (of the dot form: a tile's
 * operands in L1). For each panel the tiles go down the rows of A. Rows and vectors of columns are divided into equal blocks
 * (no block is more than one longer than another).
 *
 * Which of the two providers: see is_worth. The choice and the order of all sums follow from the shape alone. */
#include "tiles.h"
#include "../llvm/micro.h"

enum { L2_PANEL = 128 << 10, DOT_BYTES = 4 << 10 };

struct MicroPlan {
  TileRow tile;
  bool swap;    /* C by columns: the transposed product */
  bool a_trans; /* by columns */
  bool b_pack;
  int64_t pitch;      /* of A's rows; 0: by columns */
  int size;           /* bytes of an element */
  int64_t m[2], n[2]; /* of the products */
  Blocks rows[2], cols[2];
  int64_t panel_bytes, longest; /* of a panel at most: bytes, rows */
  bool fetch_c;                 /* the results do not stay in the L2 cache */
  MicroSet set;
  bool keep; /* B by rows: the first tile of a panel packs it while it reads it in place */
  /* into the set; then of the first tiles, if they keep */
  int8_t fn[MOST_ROWS + 1][MOST_VECTORS + 1][2], first[MOST_ROWS + 1][MOST_VECTORS + 1][2];
};

/* B by rows is read in place if it is no wider than a panel, if few tiles use it, and if all of it stays in the L2 cache while
 * not so many do. */
static bool packs(const MicroShape *s, const TileRow *t) {
  enum { FEW = 2, MANY = 64, L2_BYTES = 1 << 20 };
  int64_t bytes = s->k * s->batch * s->b.ld * dtype_info[t->dtype].size, tiles = s->m[0] / t->mr;
  if (s->b.trans) return true;
  return s->b.ld > t->nv * t->lanes && tiles > FEW && (bytes > L2_BYTES || tiles > MANY);
}

/* A panel of a B by rows that is packed stays in the L1 cache while the tiles go down A, if A can be read again and again from
 * the L2 cache, in short pieces of its rows; else, like one that is read in place, in the L2 cache. */
static int64_t panel_of(const MicroShape *s, const TileRow *t) {
  enum { L2_BYTES = 2 << 20 };
  int64_t a_bytes = s->m[0] * s->k * s->batch * dtype_info[t->dtype].size;
  return packs(s, t) && !s->b.trans && !s->a.trans && a_bytes <= L2_BYTES ? tile_panel() : L2_PANEL;
}

/* The rows of a panel, at most. */
static int64_t panel_rows(const TileRow *t, int64_t bytes) {
  enum { ROUND = 16 };
  return bytes / (t->nv * t->lanes * dtype_info[t->dtype].size) / ROUND * ROUND;
}

/* Cycles of a step of k, about. Of a panel that is longer than tile_panel's part in the L1 cache, B's vectors come from the L2
 * cache, which shows where panels are made so; and more rows of A in one set of the L1 cache than it holds beside B always do. */
static double step_cycles(const MicroShape *s, const TileRow *t, double mr, double nv) {
  enum { PAGE = 4096, LINE = 64, WAYS = 6 };
  int64_t size = dtype_info[t->dtype].size, pitch = s->a.ld * size, apart = PAGE;
  while (apart > LINE && pitch % apart) apart /= 2;
  double ways = s->a.trans ? 0 : mr * (double)apart / PAGE, halves = tile_halves();
  bool l2 = s->k * t->nv * t->lanes * size > tile_panel() / (int64_t)halves;
  double c = tile_cycles(mr, nv) * halves * (1 + (ways > WAYS ? 0.04 * (ways - WAYS) : 0));
  return c + (l2 ? (halves - 1) * 0.375 * nv : 0);
}

/* Cycles of a whole product, about: measured are the cost of packing an element of a column, the sums at the end of a
 * dot tile, and what it costs to bring a vector of A to L1 for each panel, and one of C for each panel's length. */
static double cost(const MicroShape *s, const TileRow *t, bool pack) {
  enum { C_BYTES = 1 << 20 };
  Blocks r = row_blocks(s->m[0], t), v = vector_blocks(s->n[0], t);
  double c = 0, k = (double)s->k, batch = (double)s->batch;
  for (int i = 0; i < 4; i++) {
    bool more_r = i & 1, more_v = i & 2;
    double rows = (double)(r.size + more_r), vectors = (double)(v.size + more_v);
    double times =
        (double)(more_r ? r.more : r.n - r.more) * (double)(more_v ? v.more : v.n - v.more);
    double step = step_cycles(s, t, rows, vectors);
    if (t->form == FORM_DOT)
      c += times * dot_cycles(t, batch, s->k, rows, step);
    else
      c += times * batch * k * step;
  }
  if (pack) c += 0.65 * batch * k * (double)s->n[0];
  if (t->form == FORM_ROWS && panel_of(s, t) < L2_PANEL) {
    double m = (double)s->m[0], per = (double)t->lanes, cs = batch * m * (double)s->n[0] / per;
    double far = s->m[0] * s->c.ld * dtype_info[t->dtype].size > C_BYTES ? 5 : 1;
    c += batch * m * k / per * (double)v.n;
    c += far * cs * (double)div_up(s->k, panel_rows(t, panel_of(s, t)));
  }
  return c;
}

/* The shape's tile of least cost; false: there is none for this machine. */
static bool choose(DType t, const MicroShape *s, const TileRow *only, TileRow *best) {
  Isa isa = tile_isa();
  double least_cost = 0;
  for (const TileRow *r = tile_table; r->isa != ISA_NONE; r++) {
    bool dot = r->form == FORM_DOT;
    if (only && r != only) continue;
    if (r->isa != isa || r->dtype != t || (dot && (s->a.trans || !s->b.trans))) continue;
    double c = cost(s, r, s->b.trans && !dot);
    if (least_cost && c >= least_cost) continue;
    least_cost = c;
    *best = *r;
  }
  return least_cost > 0;
}

int micro_want(Arena *a, MicroSet *set, const MicroSpec *s) {
  for (int i = 0; i < set->n; i++)
    if (micro_same(&set->spec[i], s)) return i;
  MicroSpec *all = arena_array(a, MicroSpec, set->n + 1);
  if (set->n) memcpy(all, set->spec, sizeof *all * (size_t)set->n);
  all[set->n] = *s;
  set->spec = all;
  set->fn = arena_array(a, MicroFn *, set->n + 1);
  return set->n++;
}

/* first: such a tile is the first of a panel. */
static void want(Arena *a, MicroPlan *g, int64_t rows, int64_t vectors, bool tail, bool first) {
  MicroSpec s = {.dtype = g->tile.dtype, .lanes = g->tile.lanes, .mr = (int)rows};
  s.nv = (int)vectors;
  s.tail = tail;
  s.dot = g->tile.form == FORM_DOT;
  s.pitch = micro_pitch(&s, g->pitch);
  g->fn[rows][vectors][tail] = (int8_t)micro_want(a, &g->set, &s);
  if (!first) return;
  s.keep = g->keep;
  g->first[rows][vectors][tail] = (int8_t)micro_want(a, &g->set, &s);
}

/* The functions that products of m[i] x n[j] need. */
static void want_all(Arena *a, MicroPlan *g, int i_m, int i_n) {
  Blocks r = g->rows[i_m], v = g->cols[i_n];
  int64_t n = g->n[i_n];
  bool tail = n % tile_unit(&g->tile) != 0;
  for (int i = 0; i < 2; i++) {
    if (i ? !r.more : r.more == r.n) continue;
    bool first = i == (r.more > 0);
    if (v.more) want(a, g, r.size + i, v.size + 1, false, first);
    if (v.n - v.more > tail) want(a, g, r.size + i, v.size, false, first);
    if (tail) want(a, g, r.size + i, v.size, true, first);
  }
}

bool micro_adds_once(const MicroPlan *g, int64_t k) { return !g->a_trans && k <= g->longest; }

int64_t micro_scratch(const MicroPlan *g) { return g && g->b_pack ? g->panel_bytes : 0; }

/* Microkernels rather than OpenBLAS: by measurement (tests/bench/contract_bench.c) they are as fast or faster except for sums
 * so short that moving C counts, and results of a few rows or columns; and their code takes some 10 ms each to compile. */
static bool is_worth(DType t, const MicroShape *s) {
  enum { FLOPS = 500000, LEAST_K = 16, LEAST_M = 4, LEAST_N = 8 };
  return t == DT_FLOAT32 && s->flops >= FLOPS && s->k * s->batch >= LEAST_K && s->m[0] >= LEAST_M &&
         s->n[0] >= LEAST_N;
}

static void cut(MicroPlan *g, const MicroShape *s) {
  enum { FETCH_BYTES = 256 << 10 };
  for (int i = 0; i < 2; i++) {
    g->m[i] = s->m[i];
    g->n[i] = s->n[i];
    g->rows[i] = row_blocks(s->m[i], &g->tile);
    g->cols[i] = vector_blocks(s->n[i], &g->tile);
  }
  g->panel_bytes = panel_of(s, &g->tile);
  g->longest =
      g->tile.form == FORM_DOT ? DOT_BYTES / g->size : panel_rows(&g->tile, g->panel_bytes);
  g->fetch_c = s->m[0] * s->c.ld * g->size > FETCH_BYTES;
}

MicroPlan *micro_plan(Arena *arena, DType t, const MicroShape *s, bool always,
                      const TileRow *only) {
  MicroShape q = *s;
  if (s->c.trans) {
    memcpy(q.m, s->n, sizeof q.m);
    memcpy(q.n, s->m, sizeof q.n);
    q.a = (Mat){!s->b.trans, s->b.ld};
    q.b = (Mat){!s->a.trans, s->a.ld};
    q.a_varies = s->b_varies;
  }
  if (!q.a.trans && (q.a_varies || q.a.ld >= INT32_MAX / 64)) return NULL;
  if (!always && !is_worth(t, &q)) return NULL;
  MicroPlan g = {.swap = s->c.trans, .a_trans = q.a.trans, .size = dtype_info[t].size};
  if (!choose(t, &q, only, &g.tile)) return NULL;
  g.pitch = q.a.trans ? 0 : q.a.ld;
  g.b_pack = g.tile.form == FORM_ROWS && packs(&q, &g.tile);
  g.keep = g.b_pack && !q.b.trans;
  cut(&g, &q);
  for (int i = 0; i < 2; i++)
    for (int j = 0; j < 2; j++)
      if (q.m[i] > 0 && q.n[j] > 0) want_all(arena, &g, i, j);
  return arena_dup(arena, &g, sizeof g);
}

MicroSet *micro_set(MicroPlan *g) { return &g->set; }
const TileRow *micro_tile(const MicroPlan *g) { return &g->tile; }

/* ---- running ---- */

/* One panel: all rows of A against columns n0..n0+n-1 in rows k0..k0+k-1, `batch` products from the b-th on. */
typedef struct Panel {
  int64_t n0, n, vectors, k0, k, first, batch;
  bool add;
} Panel;

/* What tile i of `tiles` brings into the cache, a row for four steps of k: of the rows that are packed next, a quarter of a
 * strip of STRIP bytes; so four tiles bring a strip. If there are more tiles than that takes, it is those in between that
 * bring nothing: what is on its way from memory leaves room for what comes from the cache. */
static const void *next_rows(const MicroPlan *g, const MicroProduct *q, const Panel *p, int64_t i,
                             int64_t tiles) {
  enum { STRIP = 128, PIECES = 4 };
  int64_t width = p->vectors * tile_unit(&g->tile), n0 = p->n0 + width, k0 = p->k0;
  int64_t pieces = least(div_up(width * g->size, STRIP) * PIECES, tiles), at = i * pieces / tiles;
  if (n0 >= q->n) n0 = 0, k0 += p->k;
  if ((i + 1) * pieces / tiles == at || k0 + p->k > q->k) return NULL;
  k0 += at % PIECES * (p->k / PIECES);
  return (const char *)q->b + (p->first * q->b_step + k0 * q->b_mat.ld + n0) * g->size +
         at / PIECES * STRIP;
}

static void read_packed(const MicroPlan *g, const Panel *p, const void *scratch, MicroArgs *x) {
  x->b = scratch;
  x->ldb = p->vectors * tile_unit(&g->tile) * g->size;
  x->b_step = p->k * x->ldb;
}

static void run_panel(const MicroPlan *g, const MicroProduct *q, const Panel *p, void *scratch) {
  Blocks rows = g->rows[q->m != g->m[0]];
  int64_t width = p->vectors * tile_unit(&g->tile), size = g->size;
  const char *b = (const char *)q->b + p->first * q->b_step * size;
  MicroArgs x = {.k = p->k, .columns = p->n, .add = p->add, .batch = p->batch};
  x.fetch_c = g->fetch_c;
  x.ldc = q->c_mat.ld * size;
  x.lda = q->a_mat.ld * size;
  x.a_step = q->a_step * size;
  x.b = b + (q->b_mat.trans ? p->n0 * q->b_mat.ld + p->k0 : p->k0 * q->b_mat.ld + p->n0) * size;
  x.ldb = q->b_mat.ld * size;
  x.b_step = q->b_step * size;
  x.keep = scratch;
  if (g->b_pack && !g->keep) {
    read_packed(g, p, scratch, &x);
    for (int64_t i = 0; i < p->batch; i++)
      pack_columns(g->size, (char *)scratch + i * x.b_step, width,
                   b + (i * q->b_step + p->n0 * q->b_mat.ld + p->k0) * size, q->b_mat.ld, p->k,
                   p->n);
  }
  const char *a = (const char *)q->a + p->first * q->a_step * size;
  bool tail = p->n < width;
  for (int64_t i = 0, m0 = 0; i < rows.n; i++) {
    int64_t mr = rows.size + (i < rows.more);
    x.a = a + (g->a_trans ? p->k0 * q->a_mat.ld + m0 : m0 * q->a_mat.ld + p->k0) * size;
    x.c = (char *)q->c + (m0 * q->c_mat.ld + p->n0) * size;
    x.next = g->b_pack && !q->b_mat.trans && p->batch == 1 ? next_rows(g, q, p, i, rows.n) : NULL;
    x.next_step = x.next ? q->b_mat.ld * size : 0;
    if (!x.next) x.next = x.b; /* fetching what is no address is slow */
    g->set.fn[(i ? g->fn : g->first)[mr][p->vectors][tail]](&x);
    if (g->keep) read_packed(g, p, scratch, &x);
    m0 += mr;
  }
}

/* The rows k0.. of `batch` products. */
static void run_block(const MicroPlan *g, const MicroProduct *q, Panel *p, void *scratch) {
  int64_t cut = q->cut_n ? q->cut_n : q->n;
  for (int64_t n = 0; n < q->n; n += cut) {
    int64_t end = least(n + cut, q->n);
    Blocks v = g->cols[end - n != g->n[0]];
    p->n0 = n;
    for (int64_t i = 0; i < v.n; i++, p->n0 += p->n) {
      p->vectors = block_size(&v, i);
      p->n = least(p->vectors * tile_unit(&g->tile), end - p->n0);
      run_panel(g, q, p, scratch);
    }
  }
}

void micro_run(const MicroPlan *g, const MicroProduct *product, void *scratch) {
  MicroProduct q = *product;
  if (g->swap) {
    q.m = product->n;
    q.n = product->m;
    q.a = product->b;
    q.b = product->a;
    q.a_mat = (Mat){!product->b_mat.trans, product->b_mat.ld};
    q.b_mat = (Mat){!product->a_mat.trans, product->a_mat.ld};
    q.a_step = product->b_step;
    q.b_step = product->a_step;
  }
  int64_t most_k = g->longest;
  if (g->a_trans) most_k = least(most_k, most(g->panel_bytes / (q.a_mat.ld * g->size), 64));
  if (q.k > most_k) {
    int64_t cuts = div_up(q.k, most_k), k = div_up(div_up(q.k, cuts), 16) * 16;
    Panel p = {.batch = 1, .add = q.add};
    for (; p.first < q.batch; p.first++)
      for (p.k0 = 0; p.k0 < q.k; p.k0 += k, p.add = true) {
        p.k = least(k, q.k - p.k0);
        run_block(g, &q, &p, scratch);
      }
    return;
  }
  int64_t together = most(most_k / q.k, 1);
  Panel p = {.k = q.k, .add = q.add};
  for (; p.first < q.batch; p.first += together, p.add = true) {
    p.batch = least(together, q.batch - p.first);
    run_block(g, &q, &p, scratch);
  }
}
