/* Convolution and the gradient of its filter: one operand (x) is gathered into a matrix, the other (w) is plain. The plan.
 *
 * In: result[N, M] = sum over K of w[N, K] * x[K, M], where x is addressed through windows, padding or awkward strides.
 * One of x's two axes holds the positions: the one with x's unit stride (in a convolution the output positions, which
 * are M; in the gradient of the filter they are K). Of each axis, the loops that merge into one in the other tensor
 * become a side of the gathered matrix `col`, taps by positions; the others are loops around it: result loops
 * (outer) such as the image and the group, and summed loops (sum) such as the image in the gradient of the filter.
 * Positions are cut in tiles so that col stays in the L2 cache; the cols of several summed items are made at once, and their
 * products added up as one batch, if an item's taps (or positions) are few.
 *
 *   positions in the result:  a task takes some (outer item, tile), or the outer items of one row of the epilogue
 *   positions summed:         a task takes a block of taps, which are columns of the result, through all steps (sum item,
 *                             tile). If taps are too few for that, the steps are cut in chunks, a number fixed by
 *                             shape; each chunk has a partial result of its own in the workspace, and a second phase
 *                             adds them in a fixed tree. */
#include "cpu.h"
#include "im2col.h"

enum {
  COL_BYTES = 512 << 10, /* of a tile of col */
  CHUNKS = 8             /* at most so many partial results */
};

static bool walks(const Facts *f, int x, const LoopList *l, Walk *w) {
  for (int j = 0; j < l->n; j++) {
    w[j] = (Walk){.ext = f->loop[l->id[j]].ext, .dim = -1};
    for (int d = 0; d < f->n_dims[x]; d++)
      for (int i = 0; i < 2; i++) {
        const CDim *c = &f->dim[x][d];
        if (c->l[i] != l->id[j]) continue;
        if (w[j].dim >= 0) return false;
        w[j].dim = d;
        w[j].coef = c->c[i];
        w[j].step = c->c[i] * c->stride;
      }
  }
  return true;
}

/* Do M or K loops hold x's unit stride? Of equals, the longer loop decides. */
static bool positions_summed(const Facts *f, int x) {
  int best = -1;
  int64_t step = 0;
  for (int i = 0; i < f->n; i++) {
    const CLoop *l = &f->loop[i];
    if (l->class == LC_BATCH || l->class == (x ? LC_M : LC_N)) continue;
    int64_t s = l->s[x] < 0 ? -l->s[x] : l->s[x];
    if (best < 0 || s < step || (s == step && l->ext > f->loop[best].ext)) {
      best = i;
      step = s;
    }
  }
  return best >= 0 && f->loop[best].class == LC_K;
}

static const int64_t *tap_offsets(Arena *a, const Im2colPlan *g) {
  enum { MOST = 1 << 16 };
  if (g->tap.total > MOST) return NULL;
  int64_t *at = arena_array(a, int64_t, g->tap.total);
  for (int64_t t = 0; t < g->tap.total; t++)
    for (int64_t j = g->tap.n - 1, i = t; j >= 0; i /= g->walk_tap[j--].ext)
      at[t] += i % g->walk_tap[j].ext * g->walk_tap[j].step;
  return at;
}

static void cut_tiles(Im2colPlan *g, int size, int64_t want) {
  enum { TAPS = 512 }; /* that a batch aims at */
  int64_t run = g->pos.n ? g->walk_pos[g->pos.n - 1].ext : 1, all = g->pos.total;
  int64_t items = g->summed || g->sum.n != 1 ? 1 : least(g->sum.total, div_up(TAPS, g->block));
  int64_t tile = most(COL_BYTES / (size * g->block * items), 64);
  if (want > 1) tile = most(least(tile, div_up(all, want)), 32);
  if (tile > run) tile -= tile % run;
  g->tile = least(tile, all);
  g->tiles = div_up(all, g->tile);
}

/* Of at most `most_items` sum items, in equal parts. */
static void group_items(const Facts *f, Im2colPlan *g, int64_t most_items) {
  g->group = 1;
  if (g->sum.n != 1 || (g->summed && g->tiles > 1)) return;
  int64_t fit = most(COL_BYTES / (g->block * g->tile * f->size), 1);
  g->group = div_up(most_items, div_up(most_items, fit));
  g->w_step = list_step(f, &g->sum, g->w);
}

/* By blocks of taps, if there are enough for about so many. */
static bool divide_taps(const Facts *f, Im2colPlan *g, Work *w, int64_t want) {
  enum { LEAST = 12, FEW = 4, ROUND = 16 };
  int64_t blocks = least(want, g->tap.total / LEAST);
  if (blocks < least(want, FEW)) return false;
  g->block = div_up(g->tap.total, most(blocks, 1));
  if (g->block > 2 * ROUND) g->block = least(div_up(g->block, ROUND) * ROUND, g->tap.total);
  g->blocks = div_up(g->tap.total, g->block);
  cut_tiles(g, f->size, 1);
  g->steps = g->sum.total * g->tiles;
  g->chunks = 1;
  group_items(f, g, g->steps);
  w->fn[0] = im2col_tap_tasks;
  w->n_tasks[0] = g->outer.total * g->blocks;
  w->fused = w->n_tasks[0] == 1;
  return true;
}

static void divide(Plan *p, Im2colPlan *g) {
  enum { HALVED = 500000 }; /* operations that are worth two tasks */
  const Facts *f = &p->facts;
  Work *w = &p->work;
  int64_t want = tasks_for(f->flops), rows = p->frame.rows;
  w->n_phases = 1;
  g->block = g->tap.total;
  g->blocks = 1;
  if (g->summed && divide_taps(f, g, w, most(want / g->outer.total, 1))) return;
  if (g->summed) {
    cut_tiles(g, f->size, 1);
    g->steps = g->sum.total * g->tiles;
    g->chunks = least(least(g->steps, CHUNKS), most(want / g->outer.total, 1));
    group_items(f, g, div_up(g->steps, g->chunks));
    w->fn[0] = im2col_chunk_tasks;
    w->n_tasks[0] = g->outer.total * g->chunks;
    w->fused = w->n_tasks[0] == 1;
    if (g->chunks == 1) return;
    add_shares(p, (int)g->chunks);
    return;
  }
  w->fn[0] = im2col_tile_tasks;
  if (g->outer.n && is_row_axis(f, g->outer.id[0], rows) && rows * 2 > want) {
    cut_tiles(g, f->size, 1);
    g->unit = g->outer.total / rows;
    g->per_task = g->unit * div_up(rows, most(want, 16));
    w->fused = true;
  } else {
    if (f->flops >= HALVED) want = most(want, 2);
    cut_tiles(g, f->size, div_up(want, g->outer.total));
    g->per_task = 0;
    w->fused = g->outer.total * g->tiles == 1;
  }
  group_items(f, g, g->sum.total);
  w->n_tasks[0] = g->per_task ? div_up(g->outer.total, g->per_task) : g->outer.total * g->tiles;
}

bool im2col_plan(Arena *arena, Plan *p, int x) {
  const Facts *f = &p->facts;
  Im2colPlan g = {.x = x, .w = !x, .summed = positions_summed(f, x)};
  unsigned mx = 1u << (x ? LC_N : LC_M), nx = 1u << (x ? LC_M : LC_N), tw = 1u << g.w;
  g.outer.total = g.sum.total = 1;
  LoopList batch = loops_of(f, 1u << LC_BATCH), m = loops_of(f, mx), k = loops_of(f, 1u << LC_K);
  for (int i = 0; i < batch.n; i++) list_add(f, &g.outer, batch.id[i]);
  g.rows = merge_tail(f, loops_of(f, nx), 2, tw | 4, &g.outer);
  LoopList lm = merge_tail(f, m, 2, 4, &g.outer), lk = merge_tail(f, k, g.w, tw, &g.sum);
  list_sort(f, &g.outer, 2);
  g.pos = g.summed ? lk : lm;
  g.tap = g.summed ? lm : lk;
  g.w_pos = g.summed ? list_step(f, &g.pos, g.w) : 0;
  g.c_pos = g.summed ? 0 : list_step(f, &g.pos, 2);
  if (!walks(f, x, &g.outer, g.walk_outer) || !walks(f, x, &g.sum, g.walk_sum) ||
      !walks(f, x, &g.pos, g.walk_pos) || !walks(f, x, &g.tap, g.walk_tap))
    return false;
  for (int i = 0; i < g.pos.n; i++) /* positions move through dimensions of their own */
    for (int j = 0; j < i; j++)
      if (g.walk_pos[i].dim == g.walk_pos[j].dim) return false;
  if (!mat_of(g.rows.total, list_step(f, &g.rows, g.w), lk.total, list_step(f, &lk, g.w),
              &g.w_mat) ||
      !mat_of(g.rows.total, list_step(f, &g.rows, 2), lm.total, list_step(f, &lm, 2), &g.c_mat))
    return false;
  if (g.rows.total * lm.total * lk.total < 32 || lm.total == 1) return false;
  divide(p, &g);
  p->work.scratch = (g.block * g.tile * g.group * f->size + IM2COL_SLACK + 127) / 128 * 128;
  if (p->work.scratch > (int64_t)1 << 28) return false;
  g.tap_at = tap_offsets(arena, &g);
  p->im2col = arena_dup(arena, &g, sizeof g);
  int64_t rest = g.pos.total % g.tile;
  MicroShape s = {.m = {g.rows.total},
                  .n = {g.summed ? g.block : g.tile, g.summed ? g.tap.total % g.block : rest},
                  .k = g.summed ? g.tile : g.tap.total,
                  .batch = g.group,
                  .a = g.w_mat,
                  .b = {g.summed, g.tile},
                  .c = g.c_mat,
                  .b_varies = rest != 0};
  plan_products(arena, p, &s);
  return true;
}
