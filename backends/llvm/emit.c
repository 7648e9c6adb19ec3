/* A node at an index -> its value. In: a node of a kernel and the index of one element; out: the LLVM value of that element.
 * Recursion goes through everything that fusion put inside the kernel (bounded by the kernel's size) and ends at
 * inputs (loads), constants and sweep reductions (their accumulators). The same node at the same index is emitted once
 * while the loops it depends on are open. With g->probe set nothing is emitted; only the index expressions are explored. */
#include "cuda_gen.h"

typedef Val EmitFn(Gen *g, Node *n, const Index *ix);

Val emit_address(Gen *g, int buf, DType t, const Aff *linear) {
  Val at = aff_value(g, linear);
  gen_at(g, gen_depth(g, at));
  return LLVMBuildInBoundsGEP2(g->b, mem_type(g, t), g->bufs[buf], &at, 1, "");
}

/* In a loop of depth `least` or deeper. */
static Val load(Gen *g, const Node *n, int buf, const Index *ix, int least) {
  Aff lin = index_linear(g, ix, n->dims, 0, n->rank);
  Val v = NULL;
  if (g->probe) return NULL;
  if (g->copies && (v = cuda_copy_load(g, n->dtype, buf, &lin))) return v;
  bool staged = g->tile && cuda_tile_load(g, n->dtype, &lin, &v);
  if (v) return v;
  if (g->pack > 1 && (v = cuda_pack_load(g, n, buf, &lin, least))) return v;
  Val at = emit_address(g, buf, n->dtype, &lin);
  int depth = gen_depth(g, at);
  gen_at(g, depth > least ? depth : least);
  v = val_load(g, n->dtype, at);
  if (staged) cuda_tile_loaded(g, v);
  return v;
}

/* ---- sources ---- */

static Val emit_const(Gen *g, Node *n, const Index *ix) {
  (void)ix;
  return g->probe ? NULL : val_const(g, n->dtype, n->f, n->i);
}

static Val emit_iota(Gen *g, Node *n, const Index *ix) {
  Index at = *ix;
  index_split(g, &at, n->dims, (int)n->i);
  if (g->probe) return NULL;
  Val v = aff_value(g, &at.d[n->i]);
  gen_at(g, gen_depth(g, v));
  LLVMTypeRef t = val_type(g, n->dtype);
  if (dtype_is_float(n->dtype)) return LLVMBuildSIToFP(g->b, v, t, "");
  if (n->dtype == DT_BOOL) return LLVMBuildICmp(g->b, LLVMIntNE, v, gen_i64(g, 0), "");
  return LLVMBuildIntCast2(g->b, v, t, 1, "");
}

static Val low(Gen *g, Val v) { return LLVMBuildTrunc(g->b, v, g->i32, ""); }

static Val high(Gen *g, Val v) {
  return LLVMBuildTrunc(g->b, LLVMBuildLShr(g->b, v, gen_i64(g, 32), ""), g->i32, "");
}

/* The four words of block `at` (see ir.h, philox). */
static void philox_words(Gen *g, const Node *n, Val at, Val c[4]) {
  LLVMBuilderRef b = g->b;
  Val seed = n->ia[0] ? gen_i64(g, n->ia[0]) : g->seed, stream = gen_i64(g, n->ia[1]);
  Val step = n->ia[2] ? gen_i64(g, 0) : g->step;
  Val k[2] = {LLVMBuildXor(b, low(g, seed), high(g, stream), ""),
              LLVMBuildXor(b, high(g, seed), high(g, step), "")};
  Val mul[2] = {gen_i64(g, 0xD2511F53), gen_i64(g, 0xCD9E8D57)};
  Val weyl[2] = {LLVMConstInt(g->i32, 0x9E3779B9, 0), LLVMConstInt(g->i32, 0xBB67AE85, 0)};
  c[0] = low(g, at);
  c[1] = high(g, at);
  c[2] = low(g, stream);
  c[3] = low(g, step);
  for (int round = 0; round < 10; round++) {
    Val p0 = LLVMBuildMul(b, mul[0], LLVMBuildZExt(b, c[0], g->i64, ""), "");
    Val p1 = LLVMBuildMul(b, mul[1], LLVMBuildZExt(b, c[2], g->i64, ""), "");
    Val c1 = c[1], c3 = c[3];
    c[0] = LLVMBuildXor(b, LLVMBuildXor(b, high(g, p1), c1, ""), k[0], "");
    c[1] = low(g, p1);
    c[2] = LLVMBuildXor(b, LLVMBuildXor(b, high(g, p0), c3, ""), k[1], "");
    c[3] = low(g, p0);
    for (int i = 0; i < 2; i++) k[i] = LLVMBuildAdd(b, k[i], weyl[i], "");
  }
}

static Val random_word(Gen *g, Node *n, const Aff *block, const Aff *lane) {
  int64_t key[4 + 2 * AFF_TERMS] = {'p', (int64_t)(intptr_t)n};
  int len = 2 + aff_key(block, key + 2);
  Memo *m = memo_find(g, key, len);
  if (!m) {
    Val at = aff_value(g, block);
    int depth = gen_depth(g, at);
    gen_at(g, depth);
    m = memo_add(g, depth, key, len);
    philox_words(g, n, at, m->v);
  }
  if (lane->n == 0) return m->v[lane->k];
  Val l = aff_value(g, lane), v = m->v[0];
  gen_at_vals(g, 2, (Val[]){l, v});
  for (int i = 1; i < 4; i++)
    v = LLVMBuildSelect(g->b, LLVMBuildICmp(g->b, LLVMIntEQ, l, gen_i64(g, i), ""), m->v[i], v, "");
  return v;
}

static Val emit_random(Gen *g, Node *n, const Index *ix) {
  Aff lin = index_linear(g, ix, n->dims, 0, n->rank), block, lane;
  aff_divmod(g, &lin, 4, &block, &lane);
  if (g->probe) return NULL;
  Val w = random_word(g, n, &block, &lane);
  gen_at(g, gen_depth(g, w));
  if (n->dtype == DT_FLOAT64) {
    Val v =
        LLVMBuildFAdd(g->b, LLVMBuildUIToFP(g->b, w, g->f64, ""), LLVMConstReal(g->f64, 0.5), "");
    return LLVMBuildFMul(g->b, v, LLVMConstReal(g->f64, 0x1p-32), "");
  }
  w = LLVMBuildLShr(g->b, w, LLVMConstInt(g->i32, 9, 0), "");
  Val v =
      LLVMBuildFMul(g->b, LLVMBuildSIToFP(g->b, w, g->f32, ""), LLVMConstReal(g->f32, 0x1p-23), "");
  return LLVMBuildFAdd(g->b, v, LLVMConstReal(g->f32, 0x1p-24), "");
}

/* ---- maps and views ---- */

static Val emit_map(Gen *g, Node *n, const Index *ix) {
  Val x[3] = {NULL};
  for (int i = 0; i < n->n_in; i++) x[i] = emit(g, n->in[i], ix);
  if (g->probe) return NULL;
  gen_at_vals(g, n->n_in, x);
  return val_map(g, n, x);
}

static Val emit_view(Gen *g, Node *n, const Index *ix) {
  Node *x = n->in[0];
  Index to;
  Val guard = NULL;
  if (!index_map(g, ix, n->dims, n->map[0], x->rank, x->dims, &to, &guard))
    return g->probe ? NULL : val_const(g, n->dtype, n->f, (int64_t)n->f);
  Val v = emit(g, x, &to);
  if (!guard) return v;
  gen_at_vals(g, 2, (Val[]){v, guard});
  return LLVMBuildSelect(g->b, guard, v, val_const(g, n->dtype, n->f, (int64_t)n->f), "");
}

static Val emit_reshape(Gen *g, Node *n, const Index *ix) {
  Index to;
  index_reshape(g, ix, n->dims, n->in[0]->rank, n->in[0]->dims, &to);
  return emit(g, n->in[0], &to);
}

static Val emit_gather(Gen *g, Node *n, const Index *ix) {
  Node *x = n->in[0];
  Val v = emit(g, n->in[1], ix);
  int64_t last = x->dims[n->i] - 1;
  if (!g->probe) {
    gen_at(g, gen_depth(g, v));
    bool sign = dtype_info[n->in[1]->dtype].class == 'i';
    v = LLVMBuildIntCast2(g->b, v, g->i64, sign, "");
    v = gen_call(g, "llvm.smin", g->i64, 2, (Val[]){v, gen_i64(g, last)});
    v = gen_call(g, "llvm.smax", g->i64, 2, (Val[]){v, gen_i64(g, 0)});
  }
  Index at = *ix;
  index_split(g, &at, n->dims, (int)n->i);
  at.d[n->i] = last ? aff_var(gen_var(g, v, 0, last), 1) : aff_k(0);
  return emit(g, x, &at);
}

/* void kl_check(ctx or error buffer, node, index, value, ok): out of line, so that the loops stay straight. */
static Val check_fn(Gen *g, LLVMTypeRef *type) {
  LLVMTypeRef args[5] = {g->ptr, g->i64, g->i64, g->i64, g->i1};
  LLVMTypeRef none = LLVMVoidTypeInContext(g->c);
  *type = LLVMFunctionType(none, args, 5, 0);
  Val fn = LLVMGetNamedFunction(g->m, "kl_check");
  if (fn) return fn;
  fn = LLVMAddFunction(g->m, "kl_check", *type);
  LLVMSetLinkage(fn, LLVMInternalLinkage);
  LLVMBuilderRef b = LLVMCreateBuilderInContext(g->c);
  LLVMBasicBlockRef entry = LLVMAppendBasicBlockInContext(g->c, fn, "");
  LLVMBasicBlockRef bad = LLVMAppendBasicBlockInContext(g->c, fn, "");
  LLVMBasicBlockRef good = LLVMAppendBasicBlockInContext(g->c, fn, "");
  Val ctx = LLVMGetParam(fn, 0),
      what[4] = {ctx, LLVMGetParam(fn, 1), LLVMGetParam(fn, 2), LLVMGetParam(fn, 3)};
  LLVMPositionBuilderAtEnd(b, entry);
  LLVMBuildCondBr(b, LLVMGetParam(fn, 4), good, bad);
  LLVMPositionBuilderAtEnd(b, bad);
  if (g->gpu) {
    cuda_check_record(g, b, fn, what, good);
  } else {
    Val at = LLVMConstInt(g->i64, offsetof(RunCtx, check_failed), 0);
    Val f = LLVMBuildLoad2(b, g->ptr, LLVMBuildInBoundsGEP2(b, g->i8, ctx, &at, 1, ""), "");
    LLVMBuildCall2(b, LLVMFunctionType(none, args, 4, 0), f, what, 4, "");
    LLVMBuildBr(b, good);
  }
  LLVMPositionBuilderAtEnd(b, good);
  LLVMBuildRetVoid(b);
  LLVMDisposeBuilder(b);
  return fn;
}

static Val emit_check(Gen *g, Node *n, const Index *ix) {
  Val v = emit(g, n->in[0], ix);
  Aff lin = index_linear(g, ix, n->dims, 0, n->rank);
  if (g->probe) return NULL;
  Val at = aff_value(g, &lin);
  gen_at_vals(g, 2, (Val[]){v, at});
  Val w = LLVMBuildIntCast2(g->b, v, g->i64, dtype_info[n->dtype].class == 'i', "");
  Val ok = LLVMBuildAnd(g->b, LLVMBuildICmp(g->b, LLVMIntSGE, w, gen_i64(g, n->ia[0]), ""),
                        LLVMBuildICmp(g->b, LLVMIntSLT, w, gen_i64(g, n->ia[1]), ""), "");
  if (n->ia[2])
    ok = LLVMBuildOr(g->b, ok, LLVMBuildICmp(g->b, LLVMIntEQ, w, gen_i64(g, n->ia[3]), ""), "");
  if (g->active) {
    gen_at_vals(g, 2, (Val[]){ok, g->active});
    ok = LLVMBuildOr(g->b, ok, LLVMBuildNot(g->b, g->active, ""), "");
  }
  LLVMTypeRef type;
  Val fn = check_fn(g, &type);
  LLVMBuildCall2(g->b, type, fn, (Val[]){g->ctx, gen_i64(g, n->id), at, w, ok}, 5, "");
  return v;
}

/* ---- reductions ---- */

/* The accumulator of a sweep reduction (or a row value kept beside it); in column mode the element of its column. */
static Val emit_kept(Gen *g, Node *n, NodeInfo *f, const Index *ix) {
  Val p = n->prim == P_ARGMAX ? f->acc_place : f->acc;
  LLVMTypeRef t = val_type(g, n->dtype);
  if (!g->columns) {
    gen_at(g, 1);
    return LLVMBuildLoad2(g->b, t, p, "");
  }
  Aff col = index_linear(g, ix, n->dims, g->col_first, g->col_last + 1),
      base = aff_mul(g->col_base, -1);
  col = aff_add(g, &col, &base);
  Val at = aff_value(g, &col);
  int depth = gen_depth(g, at);
  gen_at(g, depth ? depth : 1); /* in the loop over rows, behind the sweep that filled it */
  return gen_access(g, LLVMBuildLoad2(g->b, t, LLVMBuildInBoundsGEP2(g->b, t, p, &at, 1, ""), ""));
}

/* Is v the new maximum beside best? A NaN counts as largest; the first one wins. */
Val argmax_better(Gen *g, DType t, Val v, Val best) {
  LLVMBuilderRef b = g->b;
  if (!dtype_is_float(t))
    return LLVMBuildICmp(b, dtype_info[t].class == 'i' ? LLVMIntSGT : LLVMIntUGT, v, best, "");
  Val over = LLVMBuildFCmp(b, LLVMRealUGT, v, best, ""); /* or one of them is NaN */
  return LLVMBuildAnd(b, over, LLVMBuildFCmp(b, LLVMRealORD, best, best, ""), "");
}

static Val fold_values(Gen *g, Node *n, int count, Val *v) {
  DType t = n->in[0]->dtype;
  if (n->prim == P_ARGMAX) {
    Val best = v[0], place = LLVMConstInt(val_type(g, n->dtype), 0, 0);
    for (int i = 1; i < count; i++) {
      gen_at_vals(g, 3, (Val[]){best, v[i], place});
      Val better = argmax_better(g, t, v[i], best);
      best = LLVMBuildSelect(g->b, better, v[i], best, "");
      place = LLVMBuildSelect(g->b, better, LLVMConstInt(val_type(g, n->dtype), (uint64_t)i, 0),
                              place, "");
    }
    return place;
  }
  for (; count > 1; count = (count + 1) / 2)
    for (int i = 0; i < count / 2; i++) { /* neighbours first: a fixed tree */
      gen_at_vals(g, 2, v + 2 * i);
      v[i] = reduce_step(g, n->prim, t, v[2 * i], v[2 * i + 1], false);
      if (i == count / 2 - 1 && count % 2) v[i + 1] = v[count - 1];
    }
  return v[0];
}

/* A small reduction, unrolled. */
static Val emit_reduce(Gen *g, Node *n, const Index *ix) {
  Node *x = n->in[0];
  Index at = *ix;
  int64_t pos[KL_RANK] = {0}, total = 1;
  for (int d = 0; d < n->rank; d++)
    if (n->i >> d & 1) {
      index_split(g, &at, n->dims, d);
      total *= x->dims[d];
    }
  if (total == 0)
    return g->probe              ? NULL
           : n->prim == P_ARGMAX ? LLVMConstNull(val_type(g, n->dtype))
                                 : reduce_init(g, n->prim, n->dtype);
  Val *v = arena_array(g->a, Val, total);
  for (int64_t i = 0; i < total; i++) {
    for (int d = 0; d < n->rank; d++)
      if (n->i >> d & 1) at.d[d] = aff_k(pos[d]);
    v[i] = emit(g, x, &at);
    for (int d = n->rank - 1; d >= 0; d--)
      if (n->i >> d & 1) {
        if (++pos[d] < x->dims[d]) break;
        pos[d] = 0;
      }
  }
  return g->probe ? NULL : fold_values(g, n, (int)total, v);
}

Val emit_product(Gen *g, Node *n, const Index *ix, Val acc, bool reassoc) {
  Index to[2];
  Val x[2], guard = NULL;
  for (int i = 0; i < 2; i++)
    if (!index_map(g, ix, n->ext, n->map[i], n->in[i]->rank, n->in[i]->dims, &to[i], &guard))
      return acc;
  for (int i = 0; i < 2; i++) x[i] = emit(g, n->in[i], &to[i]);
  if (g->probe) return NULL;
  LLVMTypeRef t = val_type(g, n->dtype);
  gen_at_vals(g, 4, (Val[]){x[0], x[1], acc, guard});
  Val r;
  if (!dtype_is_float(n->dtype)) {
    bool b = n->dtype == DT_BOOL;
    r = LLVMBuildBinOp(g->b, b ? LLVMAnd : LLVMMul, x[0], x[1], "");
    r = LLVMBuildBinOp(g->b, b ? LLVMOr : LLVMAdd, acc, r, "");
  } else if (reassoc) {
    r = LLVMBuildFMul(g->b, x[0], x[1], "");
    if (LLVMIsAInstruction(r)) LLVMSetFastMathFlags(r, LLVMFastMathAllowContract);
    r = LLVMBuildFAdd(g->b, acc, r, "");
    if (LLVMIsAInstruction(r))
      LLVMSetFastMathFlags(r, LLVMFastMathAllowReassoc | LLVMFastMathAllowContract);
  } else {
    r = math_fma(g, t, x[0], x[1], acc);
  }
  return guard ? LLVMBuildSelect(g->b, guard, r, acc, "") : r;
}

/* A contraction with few terms, unrolled. */
static Val emit_contract(Gen *g, Node *n, const Index *ix) {
  Index at = *ix;
  int64_t pos[KL_LOOPS] = {0}, total = 1;
  for (int l = n->rank; l < n->n_loops; l++) total *= n->ext[l];
  Val acc = g->probe ? NULL : val_const(g, n->dtype, 0, 0);
  at.rank = n->n_loops;
  for (int64_t i = 0; i < total; i++) {
    for (int l = n->rank; l < n->n_loops; l++) at.d[l] = aff_k(pos[l]);
    acc = emit_product(g, n, &at, acc, false);
    for (int l = n->n_loops - 1; l >= n->rank; l--) {
      if (++pos[l] < n->ext[l]) break;
      pos[l] = 0;
    }
  }
  return acc;
}

static EmitFn *const emitters[P_N] = {
    [P_CONST] = emit_const,   [P_IOTA] = emit_iota,       [P_RANDOM] = emit_random,
    [P_VIEW] = emit_view,     [P_RESHAPE] = emit_reshape, [P_RSUM] = emit_reduce,
    [P_RMAX] = emit_reduce,   [P_RPROD] = emit_reduce,    [P_ARGMAX] = emit_reduce,
    [P_GATHER] = emit_gather, [P_CHECK] = emit_check,     [P_CONTRACT] = emit_contract};

static EmitFn *emitter(const Node *n) {
  return prim_is_map(n->prim) ? emit_map : emitters[n->prim];
}

/* A value that the row keeps: stored in the sweep that can compute it first, loaded in later ones. */
static Val emit_in_row(Gen *g, Node *n, NodeInfo *f, const Index *ix) {
  LLVMTypeRef t = val_type(g, n->dtype);
  Val v = g->sweep > f->level ? NULL : emitter(n)(g, n, ix), at = aff_value(g, &g->place);
  gen_at(g, g->depth);
  Val p = LLVMBuildInBoundsGEP2(g->b, t, f->kept, &at, 1, "");
  if (!v) return gen_access(g, LLVMBuildLoad2(g->b, t, p, ""));
  gen_access(g, LLVMBuildStore(g->b, v, p));
  return v;
}

static Val emit_new(Gen *g, Node *n, NodeInfo *f, const Index *ix) {
  if (f->input >= 0) return load(g, n, f->input, ix, 0);
  if (f->acc) return g->probe ? NULL : emit_kept(g, n, f, ix);
  if (f->stored < g->sweep && f->heavy && g->point && index_equal(ix, g->point))
    return load(g, n, f->output, ix, 1); /* behind the sweep that stored it */
  if (f->kept && g->point && index_equal(ix, g->point)) return emit_in_row(g, n, f, ix);
  if (g->sums && n == g->k->core) return cuda_sum_parts(g, n, ix);
  EmitFn *fn = emitter(n);
  if (fn) return fn(g, n, ix);
  g->failed = prim_info[n->prim].name;
  return g->probe ? NULL : LLVMConstNull(val_type(g, n->dtype));
}

void emit_known(Gen *g, Node *n, const Index *ix, Val v) {
  int64_t key[2 + INDEX_KEY] = {'n', (int64_t)(intptr_t)n};
  memo_add(g, g->depth, key, 2 + index_key(ix, key + 2))->v[0] = v;
}

Val emit(Gen *g, Node *n, const Index *ix) {
  int64_t key[2 + INDEX_KEY] = {'n', (int64_t)(intptr_t)n};
  int len = 2 + index_key(ix, key + 2);
  Memo *m = memo_find(g, key, len);
  if (m) return m->v[0];
  if (g->probe && --g->budget < 0) return NULL;
  Val v = emit_new(g, n, gen_info(g, n), ix);
  m = memo_add(g, g->probe ? g->depth : gen_depth(g, v), key, len);
  return m->v[0] = v;
}
