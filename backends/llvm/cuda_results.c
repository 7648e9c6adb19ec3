/* Results of a tile of a matrix product. In: sums in shared memory; out: stored results.
 *
 * Neighbouring threads store neighbouring results: everything that fusion put behind the product is emitted on them, or they are
 * stored as a part of a split sum. Rows of odd length, side by side in memory, are stored as one run, cut where sectors
 * are, also if a tile lacks a few columns, but with the next row's first ones in the sector of a row's last; where it
 * lacks more, each row is turned so that its requests start with a sector. */
#include "cuda_gemm.h"

static void store_results(Gemm *m, Index *ix, const Val *sum) {
  Gen *g = m->g;
  const CudaGemm *p = m->p;
  Kernel *k = g->k;
  int n_out = k->outputs.n, n_vec = p->vec;
  const Axis *last = &p->columns.axis[p->columns.n - 1];
  Val *v = arena_array(g->a, Val, n_out * n_vec);
  Index *at = arena_array(g->a, Index, n_vec);
  g->pack = p->pack ? n_vec : 0;
  for (int i = 0; i < n_vec; i++) {
    Aff off = aff_k(i * p->step[last->first]);
    at[i] = *ix;
    at[i].d[last->first] = aff_add(g, &ix->d[last->first], &off);
    emit_known(g, k->core, &at[i], sum[i]);
    for (int o = 0; o < n_out && p->splits == 1; o++)
      v[o * n_vec + i] = emit(g, k->outputs.v[o], &at[i]);
  }
  g->pack = 0;
  Aff *lin = arena_array(g->a, Aff, n_vec);
  for (int i = 0; i < n_vec; i++) {
    Aff skip = aff_mul(m->split, cuda_gemm_part(p));
    if (p->splits == 1) skip = aff_k(0);
    lin[i] = index_linear(g, &at[i], k->core->dims, 0, k->core->rank);
    lin[i] = aff_add(g, &lin[i], &skip);
  }
  if (p->splits > 1) cuda_pack_store(g, k->inputs.n + n_out, p->tile->type, n_vec, lin, sum);
  for (int o = 0; o < n_out && p->splits == 1; o++)
    cuda_pack_store(g, k->inputs.n + o, k->outputs.v[o]->dtype, n_vec, lin, &v[o * n_vec]);
}

/* The result's loops at row mm and column n of it. */
static Index result_at(Gemm *m, Aff mm, Aff n) {
  Gen *g = m->g;
  const CudaGemm *p = m->p;
  Index ix = {.rank = g->k->core->rank};
  gemm_place(g, &p->batch, m->batch, &ix);
  gemm_place(g, &p->side[0].axes, mm, &ix);
  gemm_place(g, &p->columns, n, &ix);
  for (int l = 0; l < ix.rank; l++) {
    Aff first = aff_k(p->at[l]);
    if (p->step[l] == 1) continue;
    ix.d[l] = aff_mul(ix.d[l], p->step[l]);
    ix.d[l] = aff_add(g, &ix.d[l], &first);
  }
  return ix;
}

/* Results in a sector: of the smallest type. */
static int in_a_sector(const Gemm *m) {
  const Kernel *k = m->g->k;
  int size = dtype_info[m->p->tile->type].size;
  for (int o = 0; o < k->outputs.n && m->p->splits == 1; o++) {
    int of = dtype_info[k->outputs.v[o]->dtype].size;
    if (of < size) size = of;
  }
  return CUDA_SECTOR / size;
}

/* The place of a result in its sector. */
static Aff in_sector(Gemm *m, Aff mm, Aff n) {
  Gen *g = m->g;
  Node *c = g->k->core;
  Index ix = result_at(m, mm, n);
  Aff lin = index_linear(g, &ix, c->dims, 0, c->rank), rest;
  aff_divmod(g, &lin, in_a_sector(m), &rest, &lin);
  return lin;
}

/* Results in shared memory and where they belong. */
typedef struct Place {
  Aff row, col; /* of the part; */
  Aff order;    /* rows are stored in */
  Aff in_tile;  /* row of the tile */
  Val ok;       /* NULL: always */
  int phases;   /* rows that neighbouring lanes may be in, */
  Aff phase;    /* one after the other */
} Place;

/* Row-major place `at` of the part, counted from the start of a sector. */
static Place flat_place(Gemm *m, int part, Aff at) {
  Gen *g = m->g;
  const CudaGemm *p = m->p;
  int64_t n = p->columns.total, rows = p->rows / p->tile->parts, lo, hi;
  Place r = {.phases = (int)(30 / n) + 2};
  Aff skip = in_sector(m, aff_mul(m->block[0], p->rows), aff_k(0)), rest, order;
  skip = aff_mul(skip, -1);
  at = aff_add(g, &at, &skip);
  aff_range(g, &at, &lo, &hi);
  Val v = aff_value(g, &at);
  gen_at(g, gen_depth(g, v));
  if (lo < 0) r.ok = LLVMBuildICmp(g->b, LLVMIntSGE, v, gen_i64(g, 0), "");
  if (hi >= rows * n)
    r.ok = gen_and(g, r.ok, LLVMBuildICmp(g->b, LLVMIntSLT, v, gen_i64(g, rows * n), ""));
  v = gen_max(g, gen_min(g, v, gen_i64(g, rows * n - 1)), gen_i64(g, 0));
  at = aff_var(gen_var(g, v, 0, rows * n - 1), 1);
  aff_divmod(g, &at, n, &order, &r.col);
  if (n > p->tile->bn)
    r.ok =
        gen_and(g, r.ok, gen_compare(g, LLVMIntSLT, aff_value(g, &r.col), gen_i64(g, p->tile->bn)));
  gemm_ordered(m, part, &order, &r.row, &r.in_tile);
  aff_divmod(g, &order, r.phases, &rest, &r.phase);
  r.order = order;
  return r;
}

/* The column of the sums of the results' one, in which groups are apart. Lanes of groups that share banks are served one
 * after the other. */
static Aff group_column(Gemm *m, Place *r) {
  enum { BANKS = 32 };
  Gen *g = m->g;
  const CudaGemm *p = m->p;
  int each = p->tile->bn / p->groups, of = each < BANKS ? BANKS / each : 1,
      parts = (p->groups + of - 1) / of, rows = 30 / p->width + 2;
  Aff group, in, rest, part, row;
  aff_divmod(g, &r->col, p->side[1].axes.total, &group, &in);
  aff_divmod(g, &group, of, &part, &rest);
  aff_divmod(g, &r->order, rows, &rest, &row);
  row = aff_mul(row, parts);
  r->phase = aff_add(g, &row, &part);
  r->phases = rows * parts;
  group = aff_mul(group, each);
  return aff_add(g, &group, &in);
}

/* Threads for a row of results; of groups whole sectors, since rows of them follow each other in a request. */
static int row_threads(const Gemm *m) {
  const CudaGemm *p = m->p;
  int per = in_a_sector(m);
  return (p->groups > 1 ? (p->width + per - 1) / per * per : p->width) / p->vec;
}

static Place row_place(Gemm *m, int part, Aff at) {
  Gen *g = m->g;
  const CudaGemm *p = m->p;
  int width = row_threads(m);
  Place r = {.phases = 1};
  Val any = NULL;
  at = gemm_keep(g, &at, p->rows / p->tile->parts * width, 1, &r.ok);
  if (p->vec > 1 && width < 8) { /* eight threads are of eight rows: different banks */
    Aff eight;
    aff_divmod(g, &at, 8, &at, &eight);
    aff_divmod(g, &at, width, &r.row, &r.col);
    r.row = aff_mul(r.row, 8);
    r.row = aff_add(g, &r.row, &eight);
  } else
    aff_divmod(g, &at, width, &r.row, &r.col);
  r.col = aff_mul(r.col, p->vec);
  r.col = gemm_keep(g, &r.col, p->width, p->vec, &r.ok);
  r.in_tile = gemm_spilled(m, part, &r.row);
  if (p->vec == 1 && width < 32 && p->groups == 1) { /* half a warp after the other */
    Aff rest;
    aff_divmod(g, &r.row, 16 / width, &r.phase, &rest);
    aff_divmod(g, &r.phase, 2, &rest, &r.phase);
    r.phases = 2;
  }
  r.order = r.row;
  if (!p->turn) return r;
  Aff mm = aff_mul(m->block[0], p->rows), rest;
  mm = aff_add(g, &mm, &r.in_tile);
  mm = gemm_keep(g, &mm, p->side[0].axes.total, 1, &any);
  Aff skip = in_sector(m, mm, aff_mul(m->block[1], p->width));
  skip = aff_mul(skip, -1);
  skip.k += in_a_sector(m);
  r.col = aff_add(g, &r.col, &skip);
  aff_divmod(g, &r.col, p->width, &rest, &r.col);
  return r;
}

void gemm_results(Gemm *m, int part) {
  Gen *g = m->g;
  const CudaGemm *p = m->p;
  int64_t all = (int64_t)p->rows / p->tile->parts * row_threads(m);
  if (p->flat) all = p->rows / p->tile->parts * p->columns.total + in_a_sector(m) - 1;
  int64_t rounds = (all + p->threads - 1) / p->threads;
  int var;
  Loop loop = loop_open(g, gen_i64(g, 0), gen_i64(g, rounds), gen_i64(g, 1), 0, rounds - 1, &var);
  Aff at = aff_var(var, p->threads);
  at = aff_add(g, &at, &m->tid);
  Place r = p->flat ? flat_place(m, part, at) : row_place(m, part, at);
  Aff column = p->groups > 1 ? group_column(m, &r) : r.col;
  Aff n = aff_mul(m->block[1], p->width), mm = aff_mul(m->block[0], p->rows);
  n = aff_add(g, &n, &r.col);
  n = gemm_keep(g, &n, p->columns.total, p->vec, &r.ok);
  mm = aff_add(g, &mm, &r.in_tile);
  mm = gemm_keep(g, &mm, p->side[0].axes.total, 1, &r.ok);
  Loop inside;
  if (r.ok) inside = cuda_if(g, r.ok);
  Index ix = result_at(m, mm, n);
  Aff from = aff_mul(r.row, cuda_result_pitch(p));
  from = aff_add(g, &from, &column);
  Val first = aff_value(g, &from), sum[GEMM_VEC];
  gen_at(g, g->depth);
  if (r.phases > 1)
    gemm_load(m, gemm_shared(m, first), &r.phase, r.phases, NULL, p->vec, sum);
  else if (p->vec > 1) {
    LLVMTypeRef t = LLVMVectorType(gemm_type(m), (unsigned)p->vec);
    Val all = LLVMBuildLoad2(g->b, t, gemm_shared(m, first), "");
    LLVMSetAlignment(all, 16);
    for (int i = 0; i < p->vec; i++)
      sum[i] = LLVMBuildExtractElement(g->b, all, LLVMConstInt(g->i32, (uint64_t)i, 0), "");
  } else
    sum[0] = LLVMBuildLoad2(g->b, gemm_type(m), gemm_shared(m, first), "");
  store_results(m, &ix, sum);
  if (r.ok) loop_close(g, &inside, LOOP_PLAIN);
  loop_close(g, &loop, LOOP_PLAIN);
}

/* ---- split sums ---- */

/* Neighbours are constant steps from one address: LLVM makes vectors of them. */
Val cuda_sum_parts(Gen *g, Node *n, const Index *ix) {
  const CudaGemm *p = g->sums;
  Aff lin = index_linear(g, ix, n->dims, 0, n->rank);
  DType t = p->tile->type;
  Val sum = NULL;
  int64_t at = lin.k;
  lin.k = 0;
  Val first = emit_address(g, g->k->inputs.n + g->k->outputs.n, t, &lin);
  gen_at(g, g->depth);
  for (int64_t s = 0; s < p->splits; s++) {
    Val step = gen_i64(g, at + s * cuda_gemm_part(p));
    Val v = val_load(g, t, LLVMBuildGEP2(g->b, mem_type(g, t), first, &step, 1, ""));
    sum = sum ? LLVMBuildFAdd(g->b, sum, v, "") : v;
  }
  return sum;
}
