/* Products of a warp from shared memory. In: a stage of both sides; out: the thread's sums.
 *
 * fma   a warp is 8 x 4 threads. Where a side's rows lie along K, a thread has every 8th row (4th column) and reads 16
 *       bytes along K; where they lie across, it has groups of 16 bytes of rows (columns).
 * mma   fragments of mma.sync as the PTX manual gives them, with g = lane / 4, t = lane % 4:
 *         m16n8k8 tf32   a: (g, t) (g+8, t) (g, t+4) (g+8, t+4)              b: (t, g) (t+4, g)
 *         m16n8k16 bf16  a: (g, 2t) (g+8, 2t) (g, 2t+8) (g+8, 2t+8), pairs   b: (2t, g) (2t+8, g), pairs
 *         sums           (g, 2t) (g, 2t+1) (g+8, 2t) (g+8, 2t+1) */
#include "cuda_gemm.h"

static Val i32(Gen *g, int64_t v) { return LLVMConstInt(g->i32, (uint64_t)v, 0); }
static Val add(Gen *g, Val x, Val y) { return LLVMBuildNSWAdd(g->b, x, y, ""); }
static Val times(Gen *g, Val x, int64_t c) { return LLVMBuildNSWMul(g->b, x, gen_i64(g, c), ""); }
static bool is_mma(const Gemm *m) { return m->p->tile->math != CUDA_F32; }

/* Rows (columns) of a warp, and results of a thread along them. */
static int share(const Gemm *m, int s) {
  const CudaTiling *t = m->p->tile;
  return s ? t->bn / t->warps_n : t->bm / t->warps_m;
}
static int per_thread(const Gemm *m, int s) { return share(m, s) / (s ? 4 : 8); }
static int each(const Gemm *m) { return 16 / dtype_info[m->p->tile->type].size; }

/* Neighbouring rows (columns) of a thread, where they lie across. */
static int group(const Gemm *m, int s) {
  return per_thread(m, s) < each(m) ? per_thread(m, s) : each(m);
}

static int n_sums(const Gemm *m) { return share(m, 0) * share(m, 1) / 32; }

void gemm_start(Gemm *m) {
  Gen *g = m->g;
  Work w = {.g = g};
  Aff warp, lane, q[2], r[2];
  aff_divmod(g, &m->tid, 32, &warp, &lane);
  q[0] = q[1] = warp; /* of its group in both */
  if (m->p->groups == 1) aff_divmod(g, &warp, m->p->tile->warps_n, &q[0], &q[1]);
  aff_divmod(g, &lane, is_mma(m) ? 4 : 8, &r[1], &r[0]); /* fma: 8 rows of 4; mma: t, g */
  for (int s = 0; s < 2; s++) {
    m->warp[s] = aff_value(g, &q[s]);
    m->lane[s] = aff_value(g, &r[s]);
  }
  m->n_sum = n_sums(m);
  for (int i = 0; i < m->n_sum; i++) {
    m->sum[i] = stack_slot(&w, gemm_type(m));
    gen_at(g, 0);
    LLVMBuildStore(g->b, LLVMConstNull(gemm_type(m)), m->sum[i]);
  }
}

/* The start of a side's tile in a stage. */
static Val side_base(Gemm *m, int s, Val stage) {
  int64_t skip = s ? (int64_t)cuda_side_rows(m->p, 0) * cuda_side_pitch(m->p, 0) : 0;
  return add(m->g, stage, gen_i64(m->g, skip));
}

/* Where row (column) r and summed element k of a side are. */
static Val place(Gemm *m, int s, Val base, Val r, Val k) {
  bool k_major = m->p->side[s].k_major;
  Val at = times(m->g, k_major ? r : k, cuda_side_pitch(m->p, s));
  return add(m->g, base, add(m->g, at, k_major ? k : r));
}

static Val load(Gemm *m, Val at, int n) {
  LLVMTypeRef t = gemm_type(m);
  Val v =
      LLVMBuildLoad2(m->g->b, n > 1 ? LLVMVectorType(t, (unsigned)n) : t, gemm_shared(m, at), "");
  LLVMSetAlignment(v, (unsigned)(n * dtype_info[m->p->tile->type].size));
  return v;
}

static Val element(Gen *g, Val v, int i) { return LLVMBuildExtractElement(g->b, v, i32(g, i), ""); }

/* n sums side by side to shared memory. */
static void store_sums(Gemm *m, Val at, int n, const Val *sum) {
  Gen *g = m->g;
  LLVMTypeRef t = gemm_type(m);
  Val all = n > 1 ? LLVMGetUndef(LLVMVectorType(t, (unsigned)n)) : NULL;
  for (int i = 0; i < n; i++) {
    Val v = LLVMBuildLoad2(g->b, t, sum[i], "");
    all = n > 1 ? LLVMBuildInsertElement(g->b, all, v, i32(g, i), "") : v;
  }
  LLVMSetAlignment(LLVMBuildStore(g->b, all, gemm_shared(m, at)),
                   (unsigned)(n * dtype_info[m->p->tile->type].size));
}

/* ---- fma ---- */

/* The thread's i-th row (column) in the tile. */
static Val fma_row(Gemm *m, int s, int i) {
  Gen *g = m->g;
  int threads = s ? 4 : 8, e = group(m, s);
  Val base = times(g, m->warp[s], share(m, s));
  if (m->p->side[s].k_major)
    return add(g, base, add(g, m->lane[s], gen_i64(g, (int64_t)i * threads)));
  Val r = add(g, times(g, m->lane[s], e), gen_i64(g, (int64_t)(i / e) * e * threads + i % e));
  return add(g, base, r);
}

enum { MOST_ROWS = 16, MOST_EACH = 4 };
typedef Val Values[MOST_ROWS][MOST_EACH];

/* The thread's rows at k..k+each-1. */
static void fma_read(Gemm *m, int s, Val base, int k, Values v) {
  Gen *g = m->g;
  int e = each(m), rows = per_thread(m, s);
  if (m->p->side[s].k_major) {
    for (int i = 0; i < rows; i++) {
      Val x = load(m, place(m, s, base, fma_row(m, s, i), gen_i64(g, k)), e);
      for (int j = 0; j < e; j++) v[i][j] = element(g, x, j);
    }
    return;
  }
  int of = group(m, s);
  for (int j = 0; j < e; j++)
    for (int i = 0; i < rows; i += of) {
      Val x = load(m, place(m, s, base, fma_row(m, s, i), gen_i64(g, k + j)), of);
      for (int r = 0; r < of; r++) v[i + r][j] = of == 1 ? x : element(g, x, r);
    }
}

static void fma_products(Gemm *m, Val stage, int part) {
  Gen *g = m->g;
  LLVMTypeRef t = gemm_type(m);
  int e = each(m), rows = per_thread(m, 0), cols = per_thread(m, 1);
  Val base[2] = {side_base(m, 0, stage), side_base(m, 1, stage)};
  Values a, b;
  int of = CUDA_STEP / m->parts;
  for (int k = part * of; k < (part + 1) * of; k += e) {
    fma_read(m, 0, base[0], k, a);
    fma_read(m, 1, base[1], k, b);
    for (int j = 0; j < e; j++)
      for (int r = 0; r < rows; r++)
        for (int c = 0; c < cols; c++) {
          Val p = m->sum[r * cols + c], sum = LLVMBuildLoad2(g->b, t, p, "");
          LLVMBuildStore(g->b, math_fma(g, t, a[r][j], b[c][j], sum), p);
        }
  }
}

/* Row 8 i + j of a warp's share of the part holds the i-th row of the threads of place j: stores have no bank conflicts. Warps of
 * groups are side by side. */
static void fma_spill(Gemm *m, int part) {
  Gen *g = m->g;
  int rows = per_thread(m, 0) / m->p->tile->parts, cols = per_thread(m, 1);
  int n = m->p->side[1].k_major ? 1 : group(m, 1);
  for (int i = 0; i < rows; i++) {
    Val row = add(g, m->lane[0], gen_i64(g, 8 * i));
    if (m->p->groups == 1) row = add(g, times(g, m->warp[0], 8 * rows), row);
    for (int c = 0; c < cols; c += n) {
      Val at = add(g, times(g, row, cuda_result_pitch(m->p)), fma_row(m, 1, c));
      store_sums(m, at, n, &m->sum[(part * rows + i) * cols + c]);
    }
  }
}

/* The row of the tile of a row of the part. */
static Aff fma_spilled(Gemm *m, int part, const Aff *at) {
  Gen *g = m->g;
  int e = group(m, 0), rows = per_thread(m, 0) / m->p->tile->parts;
  Aff warp, i, j, q, r;
  aff_divmod(g, at, 8, &i, &j);
  aff_divmod(g, &i, rows, &warp, &i);
  i.k += part * rows;
  warp = aff_mul(warp, share(m, 0));
  if (m->p->side[0].k_major) e = 1;
  aff_divmod(g, &i, e, &q, &r);
  q = aff_mul(q, 8 * e);
  j = aff_mul(j, e);
  q = aff_add(g, &q, &r);
  q = aff_add(g, &q, &j);
  return aff_add(g, &q, &warp);
}

/* ---- mma ---- */

static Val tf32(Gen *g, Val x) { return gen_call(g, "llvm.nvvm.f2tf32.rna", NULL, 1, &x); }

/* Two neighbours along K as bfloat16, the first in the low half. */
static Val bf16x2(Gen *g, Val low, Val high) {
  Val args[2] = {high, low};
  return LLVMBuildBitCast(g->b, gen_call(g, "llvm.nvvm.ff2bf16x2.rn", NULL, 2, args), g->i32, "");
}

/* Row (column) r, summed elements from k on: a register of a fragment. */
static Val fragment(Gemm *m, int s, Val base, Val r, Val k) {
  Gen *g = m->g;
  if (m->p->tile->math == CUDA_TF32) return tf32(g, load(m, place(m, s, base, r, k), 1));
  if (m->p->side[s].k_major) {
    Val x = load(m, place(m, s, base, r, k), 2);
    return bf16x2(g, element(g, x, 0), element(g, x, 1));
  }
  Val low = load(m, place(m, s, base, r, k), 1);
  return bf16x2(g, low, load(m, place(m, s, base, r, add(g, k, gen_i64(g, 1))), 1));
}

static void mma(Gemm *m, const Val a[4], const Val b[2], Val *sum) {
  Gen *g = m->g;
  Val args[10] = {a[0], a[1], a[2], a[3], b[0], b[1]};
  for (int i = 0; i < 4; i++) args[6 + i] = LLVMBuildLoad2(g->b, g->f32, sum[i], "");
  Val r = gen_call(g,
                   m->p->tile->math == CUDA_TF32 ? "llvm.nvvm.mma.m16n8k8.row.col.tf32"
                                                 : "llvm.nvvm.mma.m16n8k16.row.col.bf16",
                   NULL, 10, args);
  for (int i = 0; i < 4; i++)
    LLVMBuildStore(g->b, LLVMBuildExtractValue(g->b, r, (unsigned)i, ""), sum[i]);
}

static void mma_products(Gemm *m, Val stage) {
  enum { MOST = 8 };
  Gen *g = m->g;
  bool wide = m->p->tile->math == CUDA_BF16;
  int rows = share(m, 0) / 16, cols = share(m, 1) / 8, depth = wide ? 16 : 8;
  Val base[2] = {side_base(m, 0, stage), side_base(m, 1, stage)}, a[MOST][4], b[MOST][2];
  Val t = wide ? times(g, m->lane[0], 2) : m->lane[0], lane = m->lane[1];
  for (int k0 = 0; k0 < CUDA_STEP; k0 += depth) {
    Val k[2] = {add(g, t, gen_i64(g, k0)), add(g, t, gen_i64(g, k0 + depth / 2))};
    for (int i = 0; i < rows; i++)
      for (int x = 0; x < 4; x++) {
        Val r = add(g, times(g, m->warp[0], share(m, 0)), gen_i64(g, 16 * i + x % 2 * 8));
        a[i][x] = fragment(m, 0, base[0], add(g, r, lane), k[x / 2]);
      }
    for (int j = 0; j < cols; j++)
      for (int x = 0; x < 2; x++) {
        Val c = add(g, times(g, m->warp[1], share(m, 1)), gen_i64(g, 8 * j));
        b[j][x] = fragment(m, 1, base[1], add(g, c, lane), k[x]);
      }
    for (int i = 0; i < rows; i++)
      for (int j = 0; j < cols; j++) mma(m, a[i], b[j], &m->sum[(i * cols + j) * 4]);
  }
}

static void mma_spill(Gemm *m) {
  Gen *g = m->g;
  int rows = share(m, 0) / 16, cols = share(m, 1) / 8;
  Val t2 = times(g, m->lane[0], 2), lane = m->lane[1];
  for (int i = 0; i < rows; i++)
    for (int j = 0; j < cols; j++)
      for (int x = 0; x < 4; x += 2) {
        Val r = gen_i64(g, 16 * i + x / 2 * 8);
        if (m->p->groups == 1) r = add(g, times(g, m->warp[0], share(m, 0)), r);
        Val c = add(g, times(g, m->warp[1], share(m, 1)), gen_i64(g, 8 * j));
        Val at = add(g, times(g, add(g, r, lane), cuda_result_pitch(m->p)), add(g, c, t2));
        store_sums(m, at, 2, &m->sum[(i * cols + j) * 4 + x]);
      }
}

void gemm_products(Gemm *m, Val stage, int part) {
  gen_at(m->g, m->g->depth);
  if (is_mma(m))
    mma_products(m, stage);
  else
    fma_products(m, stage, part);
}

void gemm_spill(Gemm *m, int part) {
  gen_at(m->g, m->g->depth);
  if (is_mma(m))
    mma_spill(m);
  else
    fma_spill(m, part);
}

Aff gemm_spilled(Gemm *m, int part, const Aff *at) {
  Gen *g = m->g;
  Aff row = is_mma(m) ? *at : fma_spilled(m, part, at), eight, in, q;
  if (m->p->side[0].run != 8 || cuda_near_rows(m->p, 0) == 1) return row;
  aff_divmod(g, &row, 8, &eight, &in);
  aff_divmod(g, &in, 2, &in, &q);
  eight = aff_mul(eight, 8);
  q = aff_mul(q, 4);
  row = aff_add(g, &eight, &in);
  return aff_add(g, &row, &q);
}

/* With sums across, row 8 i + j of a warp's 8 e holds row e j + i of the tile; e neighbours are of a thread. */
void gemm_ordered(Gemm *m, int part, const Aff *order, Aff *row, Aff *in_tile) {
  Gen *g = m->g;
  int rows = 8 * (is_mma(m) ? share(m, 0) / 8 : per_thread(m, 0)) / m->p->tile->parts;
  int e = each(m);
  Aff warp, v, i, j, k;
  aff_divmod(g, order, rows, &warp, &v);
  *in_tile = aff_mul(warp, share(m, 0));
  *in_tile = aff_add(g, in_tile, &v);
  in_tile->k += part * rows;
  *row = *order;
  if (is_mma(m) || m->p->side[0].k_major) return;
  aff_divmod(g, &v, 8 * e, &k, &v);
  aff_divmod(g, &v, e, &j, &i);
  warp = aff_mul(warp, rows);
  k = aff_mul(k, 8 * e);
  i = aff_mul(i, 8);
  *row = aff_add(g, &warp, &k);
  *row = aff_add(g, row, &i);
  *row = aff_add(g, row, &j);
}
