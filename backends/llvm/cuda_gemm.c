/* A tile of a matrix product. In: a K_CONTRACT kernel and the plan of backends/cuda/gemm.c; out: the body of its function.
 *
 *   for each step of 16 products, `stages` - 1 of them ahead: elements of both sides go to shared memory, in chunks
 *     (cuda_chunk.c), from a panel (cuda_panel.c) or as lines (cuda_lines.c)
 *   one barrier; each warp multiplies its share from shared memory (cuda_products.c)
 *   the sums go through shared memory to where they belong (cuda_results.c)
 *
 * What an operand holds at (row, k) is found through its AffDims: parts that depend on the row alone land before the loop. */
#include "cuda_gemm.h"

/* ---- places ---- */

void gemm_place(Gen *g, const CudaAxes *axes, Aff at, Index *ix) {
  for (int a = axes->n - 1; a >= 0; a--) {
    const Axis *x = &axes->axis[a];
    Aff here = at;
    if (a) aff_divmod(g, &at, x->ext, &at, &here);
    ix->d[x->first] = here;
    for (int l = x->first + 1; l <= x->last; l++) ix->d[l].n = -1;
  }
}

Aff gemm_keep(Gen *g, const Aff *at, int64_t n, int vec, Val *ok) {
  int64_t lo, hi;
  aff_range(g, at, &lo, &hi);
  if (hi < n) return *at;
  Aff first, rest;
  aff_divmod(g, at, vec, &first, &rest);
  Val v = aff_value(g, &first);
  gen_at(g, gen_depth(g, v));
  Val inside = LLVMBuildICmp(g->b, LLVMIntSLT, v, gen_i64(g, n / vec), "");
  v = gen_min(g, v, gen_i64(g, n / vec - 1));
  *ok = gen_and(g, *ok, inside);
  return aff_var(gen_var(g, v, lo / vec, n / vec - 1), vec);
}

void gemm_place_side(Gemm *m, int s, const Aff *own, int vec, Index *ix, Val *ok) {
  Gen *g = m->g;
  const CudaGemm *p = m->p;
  const CudaSide *side = &p->side[s];
  Aff at = *own, group, base = aff_mul(m->block[s], cuda_side_held(p, s));
  gemm_place(g, &p->batch, m->batch, ix);
  if (p->groups > 1) {
    aff_divmod(g, own, side->tile / p->groups, &group, &at);
    Aff first = aff_mul(m->block[1], p->groups);
    group = aff_add(g, &first, &group);
    ix->d[p->group] = group;
  }
  if (p->groups == 1 || s == 0) at = aff_add(g, &base, &at);
  at = gemm_keep(g, &at, side->axes.total, vec, ok);
  gemm_place(g, &side->axes, at, ix);
}

void gemm_place_sums(Gemm *m, const Aff *t, const Aff *kk, int vec, Index *ix, Val *ok) {
  Gen *g = m->g;
  const CudaGemm *p = m->p;
  const CudaAxes *k = &p->k;
  const Axis *last = &k->axis[k->n - 1];
  if (p->even) {
    CudaAxes inner = {.n = 1, .axis = {*last}, .total = last->ext}, outer = *k;
    Aff q, r;
    outer.n--;
    aff_divmod(g, t, last->ext / CUDA_STEP, &q, &r);
    r = aff_mul(r, CUDA_STEP);
    r = aff_add(g, &r, kk);
    r = gemm_keep(g, &r, last->ext, vec, ok);
    gemm_place(g, &inner, r, ix);
    gemm_place(g, &outer, q, ix);
    return;
  }
  Aff at = aff_mul(*t, CUDA_STEP);
  at = aff_add(g, &at, kk);
  gemm_place(g, k, gemm_keep(g, &at, k->total, vec, ok), ix);
}

/* ---- what a step reads ---- */

enum { MOST_CHUNKS = 32 };
typedef Val Chunks[2][MOST_CHUNKS][GEMM_VEC];

static void copy_lines(Gemm *m, int s, const Step *t) {
  Gen *g = m->g;
  gen_at(g, gen_depth(g, t->n));
  Val next = LLVMBuildNSWAdd(g->b, t->n, gen_i64(g, 1), "");
  gemm_lines_copy(m, s, t, gemm_stage(m, t->n), gemm_stage(m, next));
}

bool gemm_in_part(const Gemm *m, int s, const Step *t, int i, int n) {
  return m->p->side[s].async ? t->part == 0 : i * m->parts / n == t->part;
}

static void read_step(Gemm *m, const Step *t, Chunks v) {
  for (int s = 0; s < 2; s++)
    if (m->p->side[s].lines.on) copy_lines(m, s, t);
  for (int s = 0; s < 2; s++)
    for (int j = 0; j < gemm_chunks(m, s) && !m->p->side[s].lines.on; j++) {
      if (!gemm_in_part(m, s, t, j, gemm_chunks(m, s))) continue;
      if (m->p->side[s].async)
        gemm_copy_chunk(m, s, j, t);
      else
        gemm_read_chunk(m, s, j, t, v[s][j]);
    }
}

/* Steps that copies are ahead of those who wait for them; 0: there are none. */
static int copies_ahead(const CudaGemm *p) {
  int ahead = 0;
  for (int s = 0; s < 2; s++) {
    const CudaSide *side = &p->side[s];
    bool panels = side->direct && side->panel.size && !cuda_panel_whole(p, s);
    int n = side->async ? p->ahead : panels ? CUDA_PANEL_AHEAD : 0;
    if (n && (!ahead || n < ahead)) ahead = n;
  }
  return ahead;
}

/* Is anything copied by cp.async? */
static bool has_copies(const CudaGemm *p) {
  bool any = false;
  for (int s = 0; s < 2; s++)
    any |= p->side[s].async || (p->side[s].direct && p->side[s].panel.size);
  return any;
}

static void commit_copies(Gemm *m) {
  if (!has_copies(m->p)) return;
  gen_at(m->g, m->g->depth);
  gen_call(m->g, "llvm.nvvm.cp.async.commit.group", NULL, 0, NULL);
}

/* Until all but the last `left` groups of copies are there. */
static void wait_copies(Gemm *m, int left) {
  Val n = LLVMConstInt(m->g->i32, (uint64_t)left, 0);
  if (!has_copies(m->p)) return;
  gen_at(m->g, m->g->depth);
  gen_call(m->g, "llvm.nvvm.cp.async.wait.group", NULL, 1, &n);
}

static void store_step(Gemm *m, const Step *t, Chunks v) {
  for (int s = 0; s < 2; s++)
    for (int j = 0; j < gemm_chunks(m, s) && !m->p->side[s].async && !m->p->side[s].lines.on; j++)
      if (gemm_in_part(m, s, t, j, gemm_chunks(m, s))) gemm_store_chunk(m, s, j, t->n, v[s][j]);
  gemm_moved(m);
}

/* ---- the sum ---- */

Val gemm_stage(Gemm *m, Val n) {
  Gen *g = m->g;
  gen_at(g, gen_depth(g, n));
  int stages = m->p->tile->stages; /* the -1st step has one too, of a power of two */
  n = stages == 3 ? LLVMBuildURem(g->b, n, gen_i64(g, 3), "")
                  : LLVMBuildAnd(g->b, n, gen_i64(g, stages - 1), "");
  return LLVMBuildNSWMul(g->b, n, gen_i64(g, m->p->stage_size), "");
}

/* The n-th step, kept inside. */
static Step step_at(Gemm *m, Val n) {
  Gen *g = m->g;
  Step s = {.n = n};
  gen_at_vals(g, 2, (Val[]){n, m->first});
  Val t = LLVMBuildNSWAdd(g->b, m->first, n, ""),
      next = LLVMBuildNSWAdd(g->b, n, gen_i64(g, 1), "");
  s.inside = LLVMBuildICmp(g->b, LLVMIntSLT, n, m->count, "");
  s.next = LLVMBuildICmp(g->b, LLVMIntSLT, next, m->count, "");
  t = gen_min(g, t, gen_i64(g, m->p->steps - 1));
  s.t = aff_var(gen_var(g, t, 0, m->p->steps - 1), 1);
  return s;
}

/* Panels of the n-th step that are copied step by step. */
static void copy_panels(Gemm *m, Val n, bool first) {
  Step t = step_at(m, n);
  for (int s = 0; s < 2; s++)
    if (m->p->side[s].panel.size && !cuda_panel_whole(m->p, s)) gemm_panel_copy(m, s, &t, first);
}

/* What the sum starts with: whole panels, chunks, and what the first steps need besides. */
static void start_panels(Gemm *m) {
  Gen *g = m->g;
  bool any = false;
  for (int s = 0; s < 2; s++) {
    any |= m->p->side[s].panel.size > 0;
    if (m->p->side[s].panel.chunk) gemm_panel_start(m, s);
  }
  if (!any) return;
  for (int n = 0; n < CUDA_PANEL_AHEAD; n++) copy_panels(m, gen_i64(g, n), n == 0);
  commit_copies(m);
}

static void start_lines(Gemm *m) {
  for (int s = 0; s < 2; s++)
    if (m->p->side[s].lines.on) gemm_lines_start(m, s);
  if (m->p->side[0].lines.on || m->p->side[1].lines.on) cuda_barrier(m->g);
}

/* What of the first step would have been copied by the step before it. */
static void read_before(Gemm *m) {
  Gen *g = m->g;
  Step before = step_at(m, gen_i64(g, -1));
  before.inside = LLVMConstInt(g->i1, 0, 0);
  for (int s = 0; s < 2; s++)
    for (int j = 0; j < gemm_chunks(m, s) && m->p->side[s].k_major && m->p->side[s].shift; j++)
      gemm_copy_chunk(m, s, j, &before);
}

/* Registers hold one step, so with them the stage that is filled is the next one. */
static void sum_steps(Gemm *m) {
  Gen *g = m->g;
  int ahead = m->p->ahead, copies = copies_ahead(m->p), var;
  Chunks v;
  start_panels(m);
  start_lines(m);
  read_before(m);
  for (int n = 0; n < ahead; n++) {
    Step t = step_at(m, gen_i64(g, n));
    if (m->p->side[0].panel.size || m->p->side[1].panel.size) {
      wait_copies(m, 0);
      cuda_barrier(g);
      copy_panels(m, gen_i64(g, n + CUDA_PANEL_AHEAD), false);
    }
    for (; t.part < m->parts; t.part++) {
      read_step(m, &t, v);
      if (copies && t.part == 0) commit_copies(m);
      store_step(m, &t, v);
    }
  }
  Loop loop = loop_open(g, gen_i64(g, 0), m->count, gen_i64(g, 1), 0, m->p->per - 1, &var);
  if (copies) wait_copies(m, copies - 1);
  cuda_barrier(g);
  gen_at(g, g->depth);
  Step t = step_at(m, LLVMBuildNSWAdd(g->b, loop.phi, gen_i64(g, ahead), ""));
  copy_panels(m, LLVMBuildNSWAdd(g->b, t.n, gen_i64(g, CUDA_PANEL_AHEAD), ""), false);
  for (; t.part < m->parts; t.part++) {
    read_step(m, &t, v);
    if (copies && t.part == 0) commit_copies(m);
    gemm_products(m, gemm_stage(m, loop.phi), t.part);
    store_step(m, &t, v);
  }
  loop_close(g, &loop, LOOP_PLAIN);
  gen_at(g, 0);
  if (copies) wait_copies(m, 0);
}

/* ---- the function ---- */

Val gemm_shared(Gemm *m, Val at) {
  return LLVMBuildInBoundsGEP2(m->g->b, gemm_type(m), m->memory, &at, 1, "");
}

LLVMTypeRef gemm_type(const Gemm *m) { return val_type(m->g, m->p->tile->type); }

static Val dynamic_memory(Gen *g) {
  Val v = LLVMGetNamedGlobal(g->m, "dynamic_memory");
  if (v) return v;
  v = LLVMAddGlobalInAddressSpace(g->m, LLVMArrayType2(g->i8, 0), "dynamic_memory", 3);
  LLVMSetLinkage(v, LLVMExternalLinkage);
  LLVMSetAlignment(v, 16);
  return v;
}

/* Neighbouring blocks share rows; the parts of a sum are farthest apart. */
static void place_block(Gemm *m, const CudaLaunch *l) {
  Gen *g = m->g;
  const CudaGemm *p = m->p;
  Aff at = cuda_index(g, "ctaid.x", l->grid[0]);
  aff_divmod(g, &at, p->side[1].blocks, &at, &m->block[1]);
  aff_divmod(g, &at, p->side[0].blocks, &at, &m->block[0]);
  aff_divmod(g, &at, p->batch.total, &m->split, &m->batch);
  Aff first = aff_mul(m->split, p->per);
  m->first = aff_value(g, &first);
  m->count = gen_i64(g, p->per);
  if (p->per * p->splits == p->steps) return;
  gen_at(g, gen_depth(g, m->first));
  m->count = gen_min(g, m->count, LLVMBuildNSWSub(g->b, gen_i64(g, p->steps), m->first, ""));
}

/* Do the sums, and what a step of lines reads beside them, ask for more registers than there are? */
static bool takes_registers(const Gemm *m) {
  const CudaGemm *p = m->p;
  bool held = false;
  for (int s = 0; s < 2; s++) held |= p->side[s].lines.on && !p->side[s].direct;
  int words = m->n_sum * dtype_info[p->tile->type].size / 4;
  return held && words >= 32 && p->tile->math == CUDA_F32;
}

void cuda_gemm(Gen *g, const CudaLaunch *l) {
  Gemm m = {.g = g, .p = l->stage->gemm, .parts = 1};
  m.memory = dynamic_memory(g);
  m.tid = cuda_index(g, "tid.x", m.p->threads);
  place_block(&m, l);
  gemm_start(&m);
  if (takes_registers(&m)) m.parts = 4;
  sum_steps(&m);
  for (int part = 0; part < m.p->tile->parts; part++) {
    cuda_barrier(g); /* what was there has been read */
    gemm_spill(&m, part);
    cuda_barrier(g);
    gemm_results(&m, part);
  }
}
