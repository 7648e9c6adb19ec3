/* The loop nests around emit(). In: a kernel's Nest. Out: its loops, appended to the function that is being generated; what
 * happens inside them is in point.c. The innermost loop is cut where padding begins and ends, so that inside no guard is
 * left, and unrolled where divisions (strided windows backwards, random numbers) come out even only every few steps.
 * Innermost loops are marked parallel, so that vectorising them needs no run-time checks. */
#include "cuda_gen.h"
#include <llvm-c/DebugInfo.h>
#include <string.h>

enum { MAX_PHASES = 8, PROBE_NODES = 4000, CODE_NODES = 8000, KEPT_BYTES = 1 << 15 };

/* ---- loops ---- */

Loop loop_open(Gen *g, Val lo, Val hi, Val step, int64_t from, int64_t to, int *var) {
  Loop l = {.hi = hi, .step = step};
  if (LLVMIsAConstantInt(lo) && LLVMIsAConstantInt(hi) && LLVMIsAConstantInt(step))
    l.trip = LLVMConstIntGetSExtValue(hi) - LLVMConstIntGetSExtValue(lo);
  l.head = LLVMAppendBasicBlockInContext(g->c, g->fn, "");
  l.exit = LLVMAppendBasicBlockInContext(g->c, g->fn, "");
  gen_at(g, g->depth);
  LLVMBasicBlockRef before = LLVMGetInsertBlock(g->b);
  Val any = LLVMBuildICmp(g->b, LLVMIntSLT, lo, hi, "");
  if (LLVMIsAConstantInt(any) && LLVMConstIntGetZExtValue(any))
    LLVMBuildBr(g->b, l.head);
  else
    LLVMBuildCondBr(g->b, any, l.head, l.exit);
  gen_block(g, l.head, ++g->depth);
  gen_at(g, g->depth);
  l.phi = LLVMBuildPhi(g->b, g->i64, "");
  LLVMAddIncoming(l.phi, &lo, &before, 1);
  *var = gen_var(g, l.phi, from, to);
  return l;
}

/* The vector width for a short loop of n iterations that leaves the fewest vector and scalar steps; 0: LLVM's choice, which
 * for short loops would be masks and gathers. */
static int short_width(int64_t n) {
  int64_t best = n;
  int width = 0;
  for (int w = 4; w <= 16 && n <= 64; w *= 2)
    if (n / w + n % w < best) {
      best = n / w + n % w;
      width = w;
    }
  return width;
}

static LLVMMetadataRef loop_word(Gen *g, const char *name, Val v) {
  LLVMMetadataRef words[2] = {LLVMMDStringInContext2(g->c, name, strlen(name)),
                              LLVMValueAsMetadata(v)};
  return LLVMMDNodeInContext2(g->c, words, 2);
}

static int wide_width(const Gen *g, int64_t n) {
  int64_t best = n;
  int width = 1;
  for (int w = 2; w * 4 <= g->vector_bytes; w *= 2)
    if (n / w + n % w < best) {
      best = n / w + n % w;
      width = w;
    }
  return width;
}

/* llvm.loop !{itself, parallel_accesses, ...}: the node that refers to itself is distinct, as LLVM demands. */
static Val loop_id(Gen *g, int64_t trip, LoopHint hint) {
  LLVMMetadataRef words[2] = {LLVMMDStringInContext2(g->c, "llvm.loop.parallel_accesses", 27),
                              g->access};
  LLVMMetadataRef self = LLVMTemporaryMDNode(g->c, NULL, 0), ops[6] = {self};
  bool wide = hint == LOOP_WIDE;
  int n = 1, width = wide ? wide_width(g, trip) : trip > 0 ? short_width(trip) : 0;
  Val yes = LLVMConstInt(g->i1, 1, 0), one = LLVMConstInt(g->i32, 1, 0);
  ops[n++] = LLVMMDNodeInContext2(g->c, words, 2);
  if (width) {
    ops[n++] = loop_word(g, "llvm.loop.vectorize.width", LLVMConstInt(g->i32, (uint64_t)width, 0));
    ops[n++] = loop_word(g, "llvm.loop.vectorize.enable", yes);
  }
  if (wide) {
    ops[n++] = loop_word(g, "llvm.loop.interleave.count", one);
    LLVMMetadataRef stop = LLVMMDStringInContext2(g->c, "llvm.loop.unroll.disable", 24);
    ops[n++] = LLVMMDNodeInContext2(g->c, &stop, 1);
  }
  LLVMMetadataRef node = LLVMMDNodeInContext2(g->c, ops, (size_t)n);
  LLVMMetadataReplaceAllUsesWith(self, node);
  return LLVMMetadataAsValue(g->c, node);
}

void loop_close(Gen *g, const Loop *l, LoopHint hint) {
  gen_at(g, g->depth);
  LLVMBasicBlockRef latch = LLVMGetInsertBlock(g->b);
  Val next = LLVMBuildNSWAdd(g->b, l->phi, l->step, "");
  Val br =
      LLVMBuildCondBr(g->b, LLVMBuildICmp(g->b, LLVMIntSLT, next, l->hi, ""), l->head, l->exit);
  if (hint && g->access) LLVMSetMetadata(br, g->md_loop, loop_id(g, l->trip, hint));
  LLVMAddIncoming(l->phi, &next, &latch, 1);
  memo_drop(g, g->depth);
  gen_block(g, l->exit, --g->depth);
}

/* ---- the innermost loop ---- */

/* Explore the index expressions with the inner loop at `slot`: phases wanted, places to cut (in iterations). */
static int probe(Work *w, Aff *slot, int64_t ext, int phases) {
  Gen *g = w->g;
  Nest *t = w->t;
  g->probe = true;
  g->want = 1;
  g->n_cut = 0;
  g->budget = PROBE_NODES;
  for (int a = 0; a < t->n_out; a++) w->out[a] = aff_var(gen_var(g, NULL, 0, t->out[a].ext - 1), 1);
  for (int a = 0; a < t->n_sum; a++) w->sum[a] = aff_var(gen_var(g, NULL, 0, t->sum[a].ext - 1), 1);
  g->inner = gen_var(g, NULL, 0, ext / phases - 1);
  for (int p = 0; p < phases; p++) {
    *slot = aff_var(g->inner, phases);
    slot->k = p;
    Index ix = domain_index(w, false), at;
    Index row = domain_index(w, true);
    for (int r = 0; r < t->roots.n; r++)
      if (t->roots.v[r].full || t->unroll) {
        root_index(g, t, &t->roots.v[r], t->roots.v[r].full ? &ix : &row, &at);
        emit(g, t->roots.v[r].n, &at);
      }
    for (int a = 0; a < w->n_acc; a++)
      if (w->acc[a].n == t->contract)
        emit_product(g, t->contract, &ix, NULL, false);
      else
        emit(g, w->acc[a].n->in[0], &ix);
  }
  g->probe = false;
  memo_drop(g, 0);
  return (PROBE_NODES - g->budget) * (t->unroll ? (int)t->n_sums : 1);
}

static void add_cut(Work *w, int64_t c) {
  int i = w->n_cut++;
  for (; i > 0 && w->cut[i - 1] > c; i--) w->cut[i] = w->cut[i - 1];
  w->cut[i] = c;
}

/* If there are many cuts only the longest piece stays separate. */
static void longest_piece(Work *w) {
  int best = 0;
  for (int i = 0; i + 1 < w->n_cut; i++)
    if (w->cut[i + 1] - w->cut[i] > w->cut[best + 1] - w->cut[best]) best = i;
  int64_t from = w->cut[best], to = w->cut[best + 1], all = w->cut[w->n_cut - 1];
  w->n_cut = 0;
  add_cut(w, 0);
  if (from > 0) add_cut(w, from);
  if (to < all) add_cut(w, to);
  add_cut(w, all);
}

static void plan_inner(Work *w, Aff *slot, int64_t ext) {
  Gen *g = w->g;
  const Nest *t = w->t;
  w->phases = 1;
  w->n_cut = 0;
  if (!slot || ext == 0) return;
  int size = probe(w, slot, ext, 1);
  int64_t f = g->want;
  bool aligned = !t->by_row && (t->n_out == 0 || slot != &w->out[t->n_out - 1] || t->n_block == 1 ||
                                t->block % f == 0);
  if (f > 1 && f <= MAX_PHASES && ext % f == 0 && aligned && size * f <= CODE_NODES) {
    w->phases = (int)f;
    size = probe(w, slot, ext, w->phases);
  }
  int64_t n = ext / w->phases;
  add_cut(w, 0);
  for (int i = 0; i < g->n_cut; i++) {
    bool known = g->cut[i] <= 0 || g->cut[i] >= n;
    for (int j = 0; j < w->n_cut; j++) known |= w->cut[j] == g->cut[i];
    if (!known) add_cut(w, g->cut[i]);
  }
  add_cut(w, n);
  if (w->n_cut > 4) longest_piece(w);
  if (size * (w->n_cut - 1) > CODE_NODES) {
    w->n_cut = 0;
    add_cut(w, 0);
    add_cut(w, n);
  }
}

static void inner_loop(Work *w, Aff *slot, Val lo, Val hi) {
  Gen *g = w->g;
  Val one = gen_i64(g, 1);
  for (int i = 0; i + 1 < w->n_cut; i++) {
    int64_t from = w->cut[i], to = w->cut[i + 1];
    if (!lo && to - from == 1) {
      Aff at = aff_k(from * w->phases);
      do_points(w, slot, &at, w->phases);
      continue;
    }
    Val a = gen_i64(g, from), b = gen_i64(g, to), f = gen_i64(g, w->phases);
    gen_at(g, g->depth);
    if (lo) {
      a = gen_max(g, a, w->phases == 1 ? lo : LLVMBuildUDiv(g->b, lo, f, ""));
      b = gen_min(g, b, w->phases == 1 ? hi : LLVMBuildUDiv(g->b, hi, f, ""));
    }
    int var;
    Loop l = loop_open(g, a, b, one, from, to - 1, &var);
    Aff at = aff_var(var, w->phases);
    do_points(w, slot, &at, w->phases);
    loop_close(g, &l, LOOP_POINTS);
  }
}

/* ---- rows ---- */

/* Calls fn with the inner result loop at every column of the block. */
typedef void ColumnFn(Work *w, void *user);
static void each_column(Work *w, ColumnFn *fn, void *user) {
  Gen *g = w->g;
  const Nest *t = w->t;
  if (!g->columns) {
    fn(w, user);
    return;
  }
  int var;
  int64_t ext = t->out[t->n_out - 1].ext;
  Loop l = loop_open(g, w->lo ? w->lo : gen_i64(g, 0), w->hi ? w->hi : gen_i64(g, ext),
                     gen_i64(g, 1), 0, ext - 1, &var);
  w->out[t->n_out - 1] = aff_var(var, 1);
  fn(w, user);
  loop_close(g, &l, LOOP_POINTS);
}

typedef struct Kept {
  Node *n;
  Val p;
} Kept;

static void keep_column(Work *w, void *user) {
  Kept *k = user;
  Gen *g = w->g;
  Index row = domain_index(w, true);
  Val v = emit(g, k->n, &row);
  LLVMTypeRef t = val_type(g, k->n->dtype);
  Val p = acc_slot(w, k->p, t, &row);
  gen_at(g, g->depth);
  gen_access(g, LLVMBuildStore(g->b, v, p));
}

/* In column mode a row value that later sweeps read at every point is computed once, beside the accumulators. */
static void keep_row_values(Work *w, int sweep) {
  Gen *g = w->g;
  Kernel *k = g->k;
  for (int i = 0; i < k->nodes.n; i++) {
    Node *view = k->nodes.v[i], *n = view->n_in ? view->in[0] : NULL;
    if (!n || view->prim != P_VIEW || !prim_is_map(n->prim) || n->rank != w->t->rank) continue;
    NodeInfo *f = gen_info(g, n);
    bool row = true;
    for (int d = 0; d < n->rank; d++) row &= n->dims[d] == (w->t->red >> d & 1 ? 1 : w->t->ext[d]);
    if (!row || !f->inside || f->acc || f->level != sweep + 1) continue;
    Kept kept = {n, stack_slot(w, val_type(g, n->dtype))};
    each_column(w, keep_column, &kept);
    f->acc = kept.p;
  }
}

/* One sweep: the summed loops, then the inner loop. */
static void do_sweep(Work *w) {
  Gen *g = w->g;
  const Nest *t = w->t;
  int n_sum = t->unroll ? 0 : t->n_sum;
  bool last_sum = !t->inner && n_sum; /* the innermost loop is a sum */
  Loop open[KL_LOOPS];
  int n = n_sum - last_sum;
  for (int a = 0; a < n; a++) {
    int var;
    open[a] = loop_open(g, gen_i64(g, 0), gen_i64(g, t->sum[a].ext), gen_i64(g, 1), 0,
                        t->sum[a].ext - 1, &var);
    w->sum[a] = aff_var(var, 1);
  }
  if (t->inner)
    inner_loop(w, &w->out[t->n_out - 1], w->lo, w->hi);
  else if (last_sum)
    inner_loop(w, &w->sum[n], NULL, NULL);
  else
    do_points(w, NULL, NULL, 1);
  for (int a = n - 1; a >= 0; a--) loop_close(g, &open[a], LOOP_PLAIN);
}

static void do_row(Work *w) {
  Gen *g = w->g;
  if (w->n_acc) each_column(w, init_accs, NULL);
  for (int s = 0; s < w->n_sweep && w->t->n_sums; s++) {
    g->sweep = s;
    do_sweep(w);
    if (g->columns) keep_row_values(w, s);
  }
  g->sweep = w->n_sweep;
  if (w->t->unroll) return;
  bool rows = false;
  for (int r = 0; r < w->t->roots.n; r++) rows |= !w->t->roots.v[r].full;
  if (rows) each_column(w, store_rows, NULL);
}

/* Rows from..to-1 of the nest. */
static void do_rows(Work *w, Val from, Val to) {
  Gen *g = w->g;
  const Nest *t = w->t;
  int var;
  Loop l = loop_open(g, from, to, gen_i64(g, 1), 0, t->rows - 1, &var);
  Aff e = t->rows == 1 ? aff_k(0) : aff_var(var, 1), block = aff_k(0), in = aff_k(0);
  if (t->tile) aff_divmod(g, &e, t->tile, &e, &in);
  if (t->n_block > 1) aff_divmod(g, &e, t->n_block, &e, &block);
  for (int a = t->n_out - t->inner - 1; a >= 0; a--) {
    bool tiled = t->tile && a == t->across;
    Aff at = e;
    if (a) aff_divmod(g, &e, t->out[a].ext / (tiled ? t->tile : 1), &e, &at);
    if (tiled) at = aff_mul(at, t->tile), at = aff_add(g, &at, &in);
    w->out[a] = at;
  }
  g->col_base = aff_mul(block, t->block);
  w->lo = w->hi = NULL;
  if (t->n_block > 1) {
    int64_t ext = t->out[t->n_out - 1].ext;
    w->lo = aff_value(g, &g->col_base);
    gen_at(g, g->depth);
    w->hi = LLVMBuildNSWAdd(g->b, w->lo, gen_i64(g, t->block), "");
    if (ext % t->block) w->hi = gen_min(g, w->hi, gen_i64(g, ext));
  }
  do_row(w);
  loop_close(g, &l, LOOP_PLAIN);
}

/* The range of the inner loop, which the caller gives. */
static void given_columns(Work *w) {
  Gen *g = w->g;
  Val self = LLVMGetParam(g->fn, 0), at = gen_i64(g, offsetof(EpilogueColumns, end));
  gen_at(g, 0);
  w->lo = LLVMBuildLoad2(g->b, g->i64, self, "");
  w->hi = LLVMBuildLoad2(g->b, g->i64, LLVMBuildInBoundsGEP2(g->b, g->i8, self, &at, 1, ""), "");
}

/* Indices begin..end-1 of the first result loop. */
static void do_by_row(Work *w, Val begin, Val end) {
  Gen *g = w->g;
  const Nest *t = w->t;
  Loop open[KL_LOOPS];
  int n = 0, var;
  w->lo = w->hi = NULL;
  if (t->n_out == 1) {
    w->lo = begin;
    w->hi = end;
    do_row(w);
    return;
  }
  if (g->part == LOOP_PANELS) given_columns(w);
  for (int a = 0; a < t->n_out - 1 || a == 0; a++, n++) {
    int64_t ext = t->n_out ? t->out[a].ext : 1;
    open[n] = loop_open(g, a ? gen_i64(g, 0) : begin, a ? gen_i64(g, ext) : end, gen_i64(g, 1), 0,
                        ext - 1, &var);
    if (t->n_out) w->out[a] = aff_var(var, 1);
  }
  do_row(w);
  while (n--) loop_close(g, &open[n], LOOP_PLAIN);
}

/* ---- the nest ---- */

/* A dear value that one sweep over a short row sums up and a later one needs again, as in softmax, is kept for the row. */
static void plan_kept(Work *w) {
  Gen *g = w->g;
  const Nest *t = w->t;
  static const bool dear[P_N] = {[P_EXP] = true, [P_LOG] = true, [P_TANH] = true,
                                 [P_ERF] = true, [P_SIN] = true, [P_POW] = true};
  int64_t left = KEPT_BYTES;
  for (int i = 0; t->red && !t->columns && !t->unroll && i < g->k->nodes.n; i++) {
    Node *n = g->k->nodes.v[i];
    NodeInfo *f = gen_info(g, n);
    int64_t bytes = t->n_sums * dtype_info[n->dtype].size;
    bool now = false, later = false, full = n->rank == t->rank;
    for (int d = 0; full && d < n->rank; d++) full = n->dims[d] == t->ext[d];
    if (!dear[n->prim] || !full || bytes > left || bytes <= 0) continue;
    for (int j = 0; j < g->k->nodes.n; j++) {
      Node *u = g->k->nodes.v[j];
      for (int o = 0; o < u->n_in; o++)
        if (u->in[o] == n) *(gen_info(g, u)->level > f->level ? &later : &now) = true;
    }
    if (!now || !later) continue;
    f->kept = stack_slot(w, LLVMArrayType2(val_type(g, n->dtype), (uint64_t)t->n_sums));
    LLVMSetAlignment(f->kept, 64);
    left -= bytes;
  }
}

void gen_nest(Gen *g, int i, Val begin, Val end) {
  Nest t;
  Work *w = arena_new_of(g->a, Work);
  nest_plan(g, i, &t);
  *w = (Work){.g = g, .t = &t};
  g->columns = t.columns;
  if (t.columns) g->col_first = t.out[t.n_out - 1].first, g->col_last = t.out[t.n_out - 1].last;
  plan_sweeps(w);
  plan_kept(w);
  if (t.tasks == 0) return;
  Aff *slot = t.inner ? &w->out[t.n_out - 1] : t.n_sum && !t.unroll ? &w->sum[t.n_sum - 1] : NULL;
  plan_inner(w, slot,
             t.n_sums == 0 ? 0
             : t.inner     ? t.out[t.n_out - 1].ext
             : slot        ? t.sum[t.n_sum - 1].ext
                           : 0);
  gen_at(g, 0);
  if (t.by_row) {
    do_by_row(w, begin, end);
  } else {
    Val per = gen_i64(g, t.rows_per_task), rows = gen_i64(g, t.rows);
    Val from = LLVMBuildNSWMul(g->b, begin, per, "");
    do_rows(w, from, gen_min(g, LLVMBuildNSWMul(g->b, end, per, ""), rows));
  }
}
