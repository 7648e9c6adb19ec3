/* Chunks of the operands of a matrix product: what one copy of a thread moves. In: a side, the number of its chunk and a step; out: code
 * that brings it from the operand to the step's stage in shared memory, by cp.async, or through registers: read before the products of the
 * step before, stored after them.
 *
 * Where rows start anywhere in a sector of memory, chunks of the row are counted from the row's first sector on. */
#include "cuda_gemm.h"

/* ---- places ---- */

/* The address of an operand's element behind reshapes. */
static Val address(Gen *g, Node *n, Index *ix) {
  while (gen_info(g, n)->input < 0) {
    Index to;
    index_reshape(g, ix, n->dims, n->in[0]->rank, n->in[0]->dims, &to);
    *ix = to;
    n = n->in[0];
  }
  Aff lin = index_linear(g, ix, n->dims, 0, n->rank);
  return emit_address(g, gen_info(g, n)->input, n->dtype, &lin);
}

/* Threads store 128 bytes at once: eight of 16, or a warp. Where that is two rows along K, they are as many rows apart as puts
 * them into different halves of the banks. */
static Aff spread_rows(Gemm *m, int s, Aff row) {
  int words = cuda_side_pitch(m->p, s) * dtype_info[m->p->tile->type].size / 4, apart = 1;
  Aff group, in, q, r;
  while (apart < 8 && words * apart % 32 != 16) apart *= 2;
  if (apart == 8) return row;
  aff_divmod(m->g, &row, 2 * apart, &group, &in);
  aff_divmod(m->g, &in, 2, &q, &r);
  group = aff_mul(group, 2 * apart);
  r = aff_mul(r, apart);
  group = aff_add(m->g, &group, &q);
  return aff_add(m->g, &group, &r);
}

/* What one copy of a thread moves: from where in the side's tile to where in the stage. */
typedef struct Chunk {
  Aff own, k;   /* relative to the tile, and to the step */
  Aff row, col; /* in shared memory, */
  Aff over;     /* 1: of the next step's stage */
} Chunk;

/* Tiles are read row by row, those of shorter runs in parts, rows of more than a block's threads in several rounds. */
static Chunk chunk_place(Gemm *m, int s, int j) {
  const CudaSide *side = &m->p->side[s];
  int width = (side->k_major ? side->run : side->tile) / side->vec;
  int threads = m->p->threads, rounds = width > threads ? width / threads : 1;
  int rows = threads * rounds / width, height = side->k_major ? side->tile : CUDA_STEP;
  Chunk c = {.over = aff_k(0)};
  Aff r, at = m->tid, step = aff_k((int64_t)(j / rounds) * rows % height);
  at.k += (int64_t)(j % rounds) * threads;
  aff_divmod(m->g, &at, width, &c.row, &r);
  c.row = aff_add(m->g, &c.row, &step);
  if (side->k_major && side->run == CUDA_STEP && side->vec != 2) c.row = spread_rows(m, s, c.row);
  c.col = aff_mul(r, side->vec);
  c.col.k += (int64_t)(j / rounds) * rows / height * width;
  c.own = side->k_major ? c.row : c.col;
  c.k = side->k_major ? c.col : c.row;
  return c;
}

/* ---- rows that start anywhere in a sector ---- */

/* The operand's element (own, k), k counted from the first step. */
static Aff element_at(Gemm *m, int s, const Aff *own, const Aff *k) {
  Gen *g = m->g;
  const Node *c = m->p->core;
  const CudaSide *side = &m->p->side[s];
  const Node *in = c->in[side->x];
  Index ix = {.rank = c->n_loops}, to;
  Val ok = NULL;
  Aff kk = gemm_keep(g, k, m->p->k.total, 1, &ok);
  gemm_place_side(m, s, own, 1, &ix, &ok);
  gemm_place(g, &m->p->k, kk, &ix);
  if (!index_map(g, &ix, c->ext, c->map[side->x], in->rank, in->dims, &to, &ok)) return aff_k(0);
  return index_linear(g, &to, in->dims, 0, in->rank);
}

/* Its column moves on to where the row's next sector starts: along K the last ones come to lie in the next step, along rows
 * (columns) they are the first ones of the tile. */
static Chunk chunk(Gemm *m, int s, int j) {
  Gen *g = m->g;
  const CudaSide *side = &m->p->side[s];
  Chunk c = chunk_place(m, s, j);
  if (!side->shift) return c;
  Aff zero = aff_k(0), skip, rest;
  Aff at = element_at(m, s, side->k_major ? &c.row : &zero, side->k_major ? &zero : &c.row);
  at = aff_mul(at, -1);
  aff_divmod(g, &at, side->shift, &rest, &skip);
  aff_divmod(g, &skip, side->vec, &skip, &rest);
  skip = aff_mul(skip, side->vec);
  Aff to = aff_add(g, &c.col, &skip);
  if (side->k_major) {
    c.k = to;
    aff_divmod(g, &to, CUDA_STEP, &c.over, &c.col);
  } else {
    aff_divmod(g, &to, side->tile, &rest, &c.col);
    c.own = c.col;
  }
  return c;
}

int gemm_chunks(const Gemm *m, int s) {
  return CUDA_STEP * m->p->side[s].tile / m->p->side[s].vec / m->p->threads;
}

/* Where a chunk of the step that is `n` after the first goes. */
static Val tile_at(Gemm *m, int s, Val n, const Chunk *c) {
  Gen *g = m->g;
  Aff r = c->row;
  const Aff *row = &r, *col = &c->col;
  Val stage = gemm_stage(m, n);
  if (c->over.n) {
    Val over = aff_value(g, &c->over);
    gen_at_vals(g, 2, (Val[]){n, over});
    stage = gemm_stage(m, LLVMBuildNSWAdd(g->b, n, over, ""));
  }
  if (m->p->side[s].run == 8) {
    Aff eight, in, q;
    aff_divmod(g, row, 8, &eight, &in);
    aff_divmod(g, &in, 4, &q, &in);
    in = aff_mul(in, cuda_near_rows(m->p, s));
    q = aff_mul(q, cuda_near_rows(m->p, s) == 1 ? 4 : 1);
    r = aff_mul(eight, 8);
    r = aff_add(g, &r, &in);
    r = aff_add(g, &r, &q);
  }
  Aff at = aff_mul(r, cuda_side_pitch(m->p, s)),
      base = aff_k(s ? (int64_t)cuda_side_rows(m->p, 0) * cuda_side_pitch(m->p, 0) : 0);
  at = aff_add(g, &at, col);
  at = aff_add(g, &at, &base);
  Val v = aff_value(g, &at);
  gen_at_vals(g, 2, (Val[]){v, stage});
  return gemm_shared(m, LLVMBuildNSWAdd(g->b, v, stage, ""));
}

/* ---- from the operand to the stage ---- */

/* The loops at a chunk of step t. */
static Index loops_at(Gemm *m, int s, const Chunk *chunk, const Aff *t, Val *ok) {
  const CudaSide *side = &m->p->side[s];
  Index ix = {.rank = m->p->core->n_loops};
  gemm_place_side(m, s, &chunk->own, side->k_major ? 1 : side->vec, &ix, ok);
  gemm_place_sums(m, t, &chunk->k, side->k_major ? side->vec : 1, &ix, ok);
  return ix;
}

/* The operand's index there; false: nothing but zeros is. */
static bool operand_index(Gemm *m, int s, const Index *loops, Index *to, Val *ok) {
  const Node *c = m->p->core;
  int x = m->p->side[s].x;
  return index_map(m->g, loops, c->ext, c->map[x], c->in[x]->rank, c->in[x]->dims, to, ok);
}

void gemm_copy_chunk(Gemm *m, int s, int j, const Step *t) {
  Gen *g = m->g;
  const CudaSide *side = &m->p->side[s];
  Node *in = g->k->core->in[side->x];
  Chunk c = chunk(m, s, j);
  Index ix;
  bool shifted = side->shift && side->k_major;
  Val ok = shifted ? NULL : t->inside, use = NULL;
  Index loops = loops_at(m, s, &c, &t->t, &ok);
  if (!operand_index(m, s, &loops, &ix, &ok)) {
    ix = (Index){.rank = in->rank};
    ok = LLVMConstInt(g->i1, 0, 0);
  }
  if (shifted) {
    Val over = aff_value(g, &c.over);
    gen_at_vals(g, 3, (Val[]){over, t->inside, t->next});
    Val here = LLVMBuildICmp(g->b, LLVMIntEQ, over, gen_i64(g, 0), "");
    use = LLVMBuildSelect(g->b, here, t->inside, t->next, "");
  }
  Val to = tile_at(m, s, t->n, &c);
  gemm_move(m, s, side->vec, to, address(g, in, &ix), ok, use);
}

void gemm_read_chunk(Gemm *m, int s, int j, const Step *t, Val *v) {
  Gen *g = m->g;
  const CudaSide *side = &m->p->side[s];
  Node *in = g->k->core->in[side->x];
  LLVMTypeRef type = gemm_type(m);
  Chunk c = chunk(m, s, j);
  Index ix;
  Val ok = t->inside;
  Index loops = loops_at(m, s, &c, &t->t, &ok);
  bool any = operand_index(m, s, &loops, &ix, &ok);
  if (any && side->panel.size) {
    gemm_panel_read(m, s, t, &loops, ok, v);
    return;
  }
  if (any && side->vec > 1) {
    Val from = address(g, in, &ix);
    gen_at(g, g->depth);
    Val x = LLVMBuildLoad2(g->b, LLVMVectorType(type, (unsigned)side->vec), from, "");
    LLVMSetAlignment(x, 16);
    for (int i = 0; i < side->vec; i++)
      v[i] = LLVMBuildExtractElement(g->b, x, LLVMConstInt(g->i32, (uint64_t)i, 0), "");
  } else {
    for (int i = 0; i < side->vec; i++) v[i] = LLVMConstNull(type);
    if (any) v[0] = emit(g, in, &ix);
  }
  gen_at(g, g->depth);
  for (int i = 0; ok && i < side->vec; i++)
    v[i] = LLVMBuildSelect(g->b, ok, v[i], LLVMConstNull(type), "");
}

void gemm_store_chunk(Gemm *m, int s, int j, Val n, const Val *v) {
  Gen *g = m->g;
  int size = m->p->side[s].vec;
  LLVMTypeRef type = gemm_type(m);
  Chunk c = chunk(m, s, j);
  Val to = tile_at(m, s, n, &c);
  gen_at(g, g->depth);
  Val x = size > 1 ? LLVMGetUndef(LLVMVectorType(type, (unsigned)size)) : v[0];
  for (int i = 0; size > 1 && i < size; i++)
    x = LLVMBuildInsertElement(g->b, x, v[i], LLVMConstInt(g->i32, (uint64_t)i, 0), "");
  LLVMBuildStore(g->b, x, to);
}
