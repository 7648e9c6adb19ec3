/* Reductions. In: a nest with sums and a launch of teams; out: the body of its function.
 *
 * A team of `lanes` threads does one row of results. In each sweep lane j takes the vectors j, j + lanes, ... of the summed
 * points; then the lanes' sums are combined (cuda_combine.c). Every thread of the team gets the same bits, which the next sweep uses;
 * the tree follows from the shapes. Teams without a row take part in barriers and shuffles, with no points. */
#include "cuda_team.h"

/* ---- sweeps ---- */

/* The first of the axes that the lanes share; those before it are loops of every lane. */
static int shared_axes(const Team *m, const Nest *t) {
  int a = t->n_sum - 1;
  int64_t points = a >= 0 ? t->sum[a].ext / m->s->vec : 1;
  while (a > 0 && points < 4 * m->s->lanes) points *= t->sum[--a].ext;
  return a < 0 ? 0 : a;
}

/* Rows start anywhere in a sector of memory. If they do, the vectors of the last axis are counted from the start of the first
 * one's sector, so that the requests of warps end with sectors: how many vectors have one (0: all rows start with a sector),
 * and in *behind the elements from there to the row, up to multiples of a sector. */
static int sector_vectors(const Team *m, Aff *behind) {
  enum { SHORT = 32 };
  Work *w = m->w;
  Gen *g = w->g;
  const Nest *t = w->t;
  const Axis *last = t->n_sum ? &t->sum[t->n_sum - 1] : NULL;
  CudaAccesses all = {0};
  *behind = aff_k(0);
  bool copied = m->s->spans && (m->s->spans->lines || m->s->spans->boxes);
  if (copied || m->s->columns || m->s->lanes == 1 || !last || last->ext < SHORT) return 0;
  cuda_accesses(g, t, &all);
  for (int i = 0; i < all.n; i++) {
    const CudaAccess *x = &all.v[i];
    int per = CUDA_SECTOR / x->bytes;
    bool moves = false;
    int64_t step;
    if (!x->known || per <= m->s->vec || !cuda_axis_step(t, last, x->step, &step) || step != 1)
      continue;
    for (int a = 0; a < t->n_out + t->n_sum - 1; a++) {
      cuda_axis_step(t, a < t->n_out ? &t->out[a] : &t->sum[a - t->n_out], x->step, &step);
      Aff part = aff_mul(a < t->n_out ? w->out[a] : w->sum[a - t->n_out], step % per);
      *behind = aff_add(g, behind, &part);
      moves |= step % per != 0;
    }
    return moves ? per / m->s->vec : 0;
  }
  return 0;
}

/* The last axis at vector `at` of its padded extent, and whether that is one of it. */
static Val place_vector(Team *m, int sector, const Aff *behind, const Aff *at) {
  Work *w = m->w;
  Gen *g = w->g;
  const Axis *last = &w->t->sum[w->t->n_sum - 1];
  int64_t n = last->ext / m->s->vec;
  Aff q, skip, rest;
  aff_divmod(g, behind, (int64_t)sector * m->s->vec, &q, &skip);
  aff_divmod(g, &skip, m->s->vec, &skip, &rest);
  skip = aff_mul(skip, -1);
  Aff here = aff_add(g, at, &skip);
  Val v = aff_value(g, &here);
  gen_at(g, gen_depth(g, v));
  Val inside = LLVMBuildICmp(g->b, LLVMIntULT, v, gen_i64(g, n), "");
  v = gen_min(g, gen_max(g, v, gen_i64(g, 0)), gen_i64(g, n - 1));
  w->sum[w->t->n_sum - 1] = aff_var(gen_var(g, v, 0, n - 1), m->s->vec);
  return inside;
}

/* Place `at` of a chunk of sum a. */
static Aff skipped(Gen *g, const Nest *t, int a, const Aff *at, const Aff *skip) {
  Aff sum = aff_add(g, at, &skip[a]);
  return aff_var(gen_var(g, aff_value(g, &sum), 0, t->sum[a].ext - 1), 1);
}

/* What the block's rows read, in the chunk from skip[] on. */
static void fill_copies(Team *m, const Aff *skip) {
  Gen *g = m->w->g;
  cuda_copies_fill(g, m->copies, &m->first, m->n, skip);
  g->copies = m->copies;
}

/* `count` places of the sum that goes by chunks, from skip[] on; NULL: all. */
static void sweep_part(Team *m, Val count, const Aff *skip) {
  Work *w = m->w;
  Gen *g = w->g;
  const Nest *t = w->t;
  int from = shared_axes(m, t), last = t->n_sum - 1, part = count ? m->s->spans->chunked : 0, var;
  Loop open[KL_LOOPS], inside;
  Val one = gen_i64(g, 1), zero = gen_i64(g, 0), ok = NULL;
  if (from < part) from = part;
  for (int a = 0; a < last; a++) w->sum[a] = a < part ? skip[a] : aff_k(0);
  Aff behind;
  int sector = sector_vectors(m, &behind);
  for (int a = part; a < from; a++) {
    Val hi = a == part && count ? count : gen_i64(g, t->sum[a].ext);
    open[a] = loop_open(g, zero, hi, one, 0, t->sum[a].ext - 1, &var);
    w->sum[a] = aff_var(var, 1);
    if (a == part && count) w->sum[a] = skipped(g, t, a, &w->sum[a], skip);
  }
  int64_t points = 1, inner = 1, v = m->s->vec, row = t->n_sum ? t->sum[last].ext / v : 1;
  if (sector) row = (row + 2 * sector - 2) / sector * sector;
  for (int a = from; a < t->n_sum; a++) {
    points *= a == last ? row : t->sum[a].ext;
    inner *= a == from ? 1 : a == last ? row : t->sum[a].ext;
  }
  Val hi = gen_i64(g, points);
  gen_at(g, g->depth);
  if (count && from == part) hi = LLVMBuildNSWMul(g->b, count, gen_i64(g, inner), "");
  if (g->active) hi = LLVMBuildSelect(g->b, g->active, hi, zero, "");
  Loop loop = loop_open(g, m->lane_v, hi, gen_i64(g, m->s->lanes), 0, points - 1, &var);
  Aff at = aff_var(var, 1), first = aff_k(0);
  for (int a = last; a > from; a--)
    aff_divmod(g, &at, a == last ? row : t->sum[a].ext, &at, &w->sum[a]);
  if (count && from == part) at = skipped(g, t, part, &at, skip);
  if (t->n_sum) w->sum[from] = at;
  if (sector) {
    at = w->sum[last];
    sector_vectors(m, &behind);
    ok = place_vector(m, sector, &behind, &at);
    inside = cuda_if(g, ok);
  } else if (t->n_sum) {
    w->sum[last] = aff_mul(w->sum[last], v);
  }
  if (t->n_sum) first = w->sum[last];
  g->pack = (int)v;
  do_points(w, v > 1 ? &w->sum[last] : NULL, &first, (int)v);
  g->pack = 0;
  if (sector) loop_close(g, &inside, LOOP_PLAIN);
  loop_close(g, &loop, LOOP_PLAIN);
  for (int a = from - 1; a >= part; a--) loop_close(g, &open[a], LOOP_PLAIN);
}

/* Do results leave by the chunks of sums? */
static bool by_chunks(const Team *m) { return m->s->spans->boxes && m->s->spans->chunk; }

/* The spans of results that a sweep stores. */
static uint32_t results_of(const Team *m, int sweep) {
  const Work *w = m->w;
  uint32_t which = 0;
  for (int i = 0; i < m->s->spans->n; i++)
    for (int r = 0; r < w->t->roots.n; r++) {
      const Root *root = &w->t->roots.v[r];
      if (m->s->spans->v[i].buffer == root->buf && root->full && w->store_sweep[r] == sweep)
        which |= 1u << i;
    }
  return which;
}

static void sweep(Team *m) {
  Gen *g = m->w->g;
  const Nest *t = m->w->t;
  int part = m->copies ? m->s->spans->chunked : 0, var;
  int64_t chunk = m->copies ? m->s->spans->chunk : 0, all = t->sum[part].ext;
  Aff skip[KL_LOOPS];
  if (!chunk) {
    sweep_part(m, NULL, NULL);
    return;
  }
  int64_t per = (all + chunk - 1) / chunk, n = per;
  for (int a = 0; a < part; a++) n *= t->sum[a].ext;
  Loop chunks = loop_open(g, gen_i64(g, 0), gen_i64(g, n), gen_i64(g, 1), 0, n - 1, &var);
  Aff at = aff_var(var, 1);
  aff_divmod(g, &at, per, &at, &skip[part]);
  skip[part] = aff_mul(skip[part], chunk);
  for (int a = part - 1; a >= 0; a--) aff_divmod(g, &at, t->sum[a].ext, &at, &skip[a]);
  Val from = aff_value(g, &skip[part]), count = gen_i64(g, chunk);
  gen_at(g, g->depth);
  if (all % chunk) count = gen_min(g, count, LLVMBuildNSWSub(g->b, gen_i64(g, all), from, ""));
  fill_copies(m, skip);
  sweep_part(m, count, skip);
  if (by_chunks(m)) cuda_copies_flush(g, m->copies, results_of(m, g->sweep));
  g->copies = NULL;
  loop_close(g, &chunks, LOOP_PLAIN);
}

/* The team's row, kept inside; g->active says whether it is one. */
static void place_row(Team *m, const Aff *block) {
  Work *w = m->w;
  Gen *g = w->g;
  Aff at = aff_mul(*block, m->s->teams);
  at = aff_add(g, &at, &m->team);
  if (m->s->spans && m->s->spans->boxes) {
    at = aff_add(g, &m->first, &m->team);
    Val v = aff_value(g, &at), last = aff_value(g, &m->first);
    gen_at(g, g->depth);
    g->active = LLVMBuildICmp(g->b, LLVMIntSLT, m->team_v, m->n, "");
    last = LLVMBuildNSWSub(g->b, LLVMBuildNSWAdd(g->b, last, m->n, ""), gen_i64(g, 1), "");
    v = gen_min(g, v, last);
    at = aff_var(gen_var(g, v, 0, w->t->rows - 1), 1);
  } else if (w->t->rows % m->s->teams) {
    Val v = aff_value(g, &at);
    gen_at(g, gen_depth(g, v) > 1 ? gen_depth(g, v) : 1);
    g->active = LLVMBuildICmp(g->b, LLVMIntSLT, v, gen_i64(g, w->t->rows), "");
    v = gen_min(g, v, gen_i64(g, w->t->rows - 1));
    at = aff_var(gen_var(g, v, 0, w->t->rows - 1), 1);
  }
  cuda_place(g, w->t, w->t->n_out, at, w->out);
}

/* Rows of results that fill a sector, of the narrowest; 0: there are none. */
static int rows_of_sector(const Team *m) {
  const Nest *t = m->w->t;
  int per = 0;
  for (int r = 0; r < t->roots.n; r++) {
    int n = CUDA_SECTOR / dtype_info[t->roots.v[r].n->dtype].size;
    if (!t->roots.v[r].full && n > per) per = n;
  }
  return per;
}

/* Do blocks begin anywhere in a sector of results, and have the threads that it takes to begin with that sector? */
static bool blocks_odd(const Team *m, int per) {
  const CudaSpans *s = m->s->spans;
  const Nest *t = m->w->t;
  int64_t n = m->s->teams, all = t->rows;
  if (s && s->boxes) {
    int64_t inside = cuda_inside(t, s->cut);
    n = s->across * inside;
    all = t->out[s->cut].ext * inside;
  }
  return t->rows > n && (n % per || (all < t->rows && all % per)) && n + per - 1 <= m->threads;
}

/* Thread j takes the sums of the j-th row of the block, counted from a sector's start, whose result it will store. */
static void regroup(Team *m, int per) {
  Work *w = m->w;
  Gen *g = w->g;
  LLVMBuilderRef b = g->b;
  Val first = aff_value(g, &m->first), zero = gen_i64(g, 0), at = m->tid;
  gen_at(g, g->depth);
  Val mine = gen_and(g, LLVMBuildICmp(b, LLVMIntEQ, m->lane_v, zero, ""), g->active);
  if (blocks_odd(m, per))
    at = LLVMBuildNSWSub(b, at, LLVMBuildAnd(b, first, gen_i64(g, per - 1), ""), "");
  Val active = LLVMBuildICmp(b, LLVMIntULT, at, m->n, "");
  at = LLVMBuildSelect(b, active, at, zero, "");
  team_hand_over(m, mine, at);
  g->active = active;
  Aff row = aff_var(gen_var(g, LLVMBuildNSWAdd(b, first, at, ""), 0, w->t->rows - 1), 1);
  cuda_place(g, w->t, w->t->n_out, row, w->out);
}

/* Neighbouring threads store neighbouring rows, or lane 0 its own. Other lanes may have read what is overwritten. */
static void store(Team *m) {
  Work *w = m->w;
  Gen *g = w->g;
  int per = rows_of_sector(m);
  bool lanes = m->s->lanes > 1, shared = false;
  for (int i = 0; i < g->k->inputs.n; i++) shared |= g->k->inputs.v[i].aligned;
  g->sweep = w->n_sweep;
  if (!per) return;
  if (m->s->teams > 1 && w->t->rows > 1 && ((lanes && !m->s->columns) || blocks_odd(m, per))) {
    regroup(m, per);
  } else {
    if (shared && lanes) cuda_barrier(g);
    gen_at(g, g->depth);
    Val first = LLVMBuildICmp(g->b, LLVMIntEQ, m->lane_v, gen_i64(g, 0), "");
    g->active = gen_and(g, first, g->active);
  }
  Loop once = cuda_if(g, g->active);
  store_rows(w, NULL);
  loop_close(g, &once, LOOP_PLAIN);
}

/* The block's rows. */
static void place_block(Team *m, const Aff *block) {
  Gen *g = m->w->g;
  int64_t rows = m->w->t->rows, teams = m->s->teams;
  if (m->s->spans && m->s->spans->boxes) {
    m->first = cuda_box_first(g, m->w->t, m->s->spans, block, &m->n);
    return;
  }
  m->first = aff_mul(*block, teams);
  Val from = aff_value(g, &m->first);
  m->n = gen_i64(g, rows < teams ? rows : teams);
  gen_at(g, g->depth);
  if (rows > teams && rows % teams)
    m->n = gen_min(g, m->n, LLVMBuildNSWSub(g->b, gen_i64(g, rows), from, ""));
}

void cuda_teams(Gen *g, const CudaLaunch *l) {
  Nest t;
  int var;
  Work *w = arena_new_of(g->a, Work);
  Team m = {.w = w, .s = l->stage, .threads = (int)l->block[0]};
  nest_plan(g, 0, &t);
  *w = (Work){.g = g, .t = &t};
  plan_sweeps(w);
  if (t.rows == 0) return;
  Aff tid = cuda_index(g, "tid.x", m.threads);
  if (m.s->columns)
    aff_divmod(g, &tid, m.s->teams, &m.lane, &m.team);
  else
    aff_divmod(g, &tid, m.s->lanes, &m.team, &m.lane);
  m.tid = aff_value(g, &tid);
  m.lane_v = aff_value(g, &m.lane);
  m.team_v = aff_value(g, &m.team);
  int64_t n = (t.rows + m.s->teams - 1) / m.s->teams;
  if (m.s->spans && m.s->spans->boxes) n = cuda_box_blocks(&t, m.s->spans);
  if (m.s->spans) m.copies = cuda_copies_new(g, &t, m.s->spans);
  Loop loop = cuda_blocks(g, l, n, &var);
  Aff block = n == 1 ? aff_k(0) : aff_var(var, 1);
  Aff none = aff_k(0);
  place_block(&m, &block);
  place_row(&m, &block);
  if (m.copies && !m.s->spans->chunk) fill_copies(&m, &none);
  init_accs(w, NULL);
  for (int s = 0; s < w->n_sweep && t.n_sums; s++) {
    g->sweep = s;
    sweep(&m);
    team_combine(&m, s);
  }
  store(&m);
  g->copies = NULL;
  if (m.copies && !by_chunks(&m)) cuda_copies_flush(g, m.copies, cuda_copies_results(m.copies));
  loop_close(g, &loop, LOOP_PLAIN);
}
