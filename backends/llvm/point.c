/* What happens at the points of a loop nest: values are emitted there, stored, and added to accumulators.
 *
 * In: a kernel's Nest and where its loops stand. Out: instructions of the function that is being generated. A kernel with
 * reductions makes several sweeps over the summed loops; plan_sweeps says what each of them sums and stores. Accumulators are
 * stack slots (arrays over the columns of a block), which LLVM turns into registers. */
#include "cuda_gen.h"
#include <string.h>

/* ---- places ---- */

static void place_axes(Index *ix, int n, const Axis *axes, const Aff *at) {
  for (int a = 0; a < n; a++) {
    ix->d[axes[a].first] = at[a];
    for (int d = axes[a].first + 1; d <= axes[a].last; d++) ix->d[d].n = -1;
  }
}

/* The index in the domain, or of its row: summed dimensions at 0 (those of a contraction left out). */
Index domain_index(const Work *w, bool row) {
  const Nest *t = w->t;
  Index ix = {.rank = t->rank};
  place_axes(&ix, t->n_out, t->out, w->out);
  if (t->few) {
    const Axis *last = &t->out[t->n_out - 1];
    aff_divmod(w->g, &w->out[t->n_out - 1], t->n_few, &ix.d[last->first], &ix.d[t->few]);
  }
  if (!row) place_axes(&ix, t->n_sum, t->sum, w->sum);
  if (row && t->contract) ix.rank = t->contract->rank;
  return ix;
}

void root_index(Gen *g, const Nest *t, const Root *r, const Index *ix, Index *out) {
  int64_t dims[KL_LOOPS];
  bool same = r->n->rank == ix->rank;
  for (int d = 0; d < ix->rank; d++) {
    dims[d] = !r->full && t->red >> d & 1 ? 1 : t->ext[d];
    same = same && dims[d] == r->n->dims[d];
  }
  *out = *ix;
  if (!same) index_reshape(g, ix, dims, r->n->rank, r->n->dims, out);
}

/* Where a root's value at the index lies in its buffer. */
static Aff root_place(Gen *g, const Root *r, const Index *ix) {
  const int64_t *dims = r->concat_axis < 0 ? r->n->dims : r->into_dims;
  Index at = *ix;
  if (r->concat_axis >= 0) {
    int64_t inside = 1;
    for (int d = r->concat_axis + 1; d < at.rank && at.d[d].n < 0; d++) inside *= dims[d];
    Aff skip = aff_k(r->concat_at * inside);
    at.d[r->concat_axis] = aff_add(g, &at.d[r->concat_axis], &skip);
  }
  return index_linear(g, &at, dims, 0, at.rank);
}

void store_root(Work *w, const Root *r, Val v, const Index *ix) {
  Gen *g = w->g;
  Aff lin = root_place(g, r, ix);
  Val p = emit_address(g, r->buf, r->n->dtype, &lin);
  gen_at(g, g->depth);
  val_store(g, r->n->dtype, v, p);
}

/* ---- accumulators ---- */

Val acc_slot(Work *w, Val base, LLVMTypeRef type, const Index *row) {
  Gen *g = w->g;
  if (!g->columns) return base;
  Aff col = index_linear(g, row, w->t->ext, g->col_first, g->col_last + 1),
      from = aff_mul(g->col_base, -1);
  col = aff_add(g, &col, &from);
  Val at = aff_value(g, &col);
  gen_at(g, g->depth);
  return LLVMBuildInBoundsGEP2(g->b, type, base, &at, 1, "");
}

/* Row-major position in the summed loops. */
static Aff row_place(Work *w) {
  Aff lin = aff_k(0);
  int64_t stride = 1;
  for (int a = w->t->n_sum - 1; a >= 0; a--) {
    Aff s = aff_mul(w->sum[a], stride);
    lin = aff_add(w->g, &lin, &s);
    stride *= w->t->sum[a].ext;
  }
  return lin;
}

static Val sum_place(Work *w, const Node *n) {
  Aff lin = row_place(w);
  Val v = aff_value(w->g, &lin);
  gen_at(w->g, w->g->depth);
  return LLVMBuildIntCast2(w->g->b, v, val_type(w->g, n->dtype), 1, "");
}

static void accumulate(Work *w, Node *n, Val x, const Index *ix) {
  Gen *g = w->g;
  NodeInfo *f = gen_info(g, n);
  Index row = domain_index(w, true);
  bool contract = n == w->t->contract;
  DType t = contract ? n->dtype : n->in[0]->dtype;
  LLVMTypeRef ty = val_type(g, t);
  Val p = acc_slot(w, f->acc, ty, &row);
  gen_at(g, g->depth);
  Val acc = gen_access(g, LLVMBuildLoad2(g->b, ty, p, ""));
  Val r;
  if (contract) {
    r = emit_product(g, n, ix, acc, !g->columns);
  } else if (n->prim == P_ARGMAX) {
    LLVMTypeRef tp = val_type(g, n->dtype);
    Val pp = acc_slot(w, f->acc_place, tp, &row), place = sum_place(w, n);
    Val old = gen_access(g, LLVMBuildLoad2(g->b, tp, pp, ""));
    Val better = argmax_better(g, t, x, acc);
    gen_access(g, LLVMBuildStore(g->b, LLVMBuildSelect(g->b, better, place, old, ""), pp));
    r = LLVMBuildSelect(g->b, better, x, acc, "");
  } else {
    r = reduce_step(g, n->prim, t, acc, x, !g->columns);
  }
  gen_at(g, g->depth);
  gen_access(g, LLVMBuildStore(g->b, r, p));
}

Val stack_slot(Work *w, LLVMTypeRef t) {
  Gen *g = w->g;
  LLVMBasicBlockRef entry = LLVMGetEntryBasicBlock(g->fn);
  Val first = LLVMGetFirstInstruction(entry);
  if (first)
    LLVMPositionBuilderBefore(g->b, first);
  else
    LLVMPositionBuilderAtEnd(g->b, entry);
  if (g->columns) t = LLVMArrayType2(t, (uint64_t)w->t->block);
  Val p = LLVMBuildAlloca(g->b, t, "");
  if (g->columns) LLVMSetAlignment(p, 64);
  return p;
}

void init_accs(Work *w, void *user) {
  Gen *g = w->g;
  Index row = domain_index(w, true);
  (void)user;
  for (int a = 0; a < w->n_acc; a++) {
    Node *n = w->acc[a].n;
    NodeInfo *f = gen_info(g, n);
    bool contract = n == w->t->contract, arg = n->prim == P_ARGMAX;
    DType t = contract ? n->dtype : n->in[0]->dtype;
    Val v = reduce_init(g, contract ? P_RSUM : arg ? P_RMAX : n->prim, t);
    Val p = acc_slot(w, f->acc, val_type(g, t), &row);
    gen_at(g, g->depth);
    gen_access(g, LLVMBuildStore(g->b, v, p));
    if (!arg) continue;
    LLVMTypeRef tp = val_type(g, n->dtype);
    p = acc_slot(w, f->acc_place, tp, &row);
    gen_access(g, LLVMBuildStore(g->b, LLVMConstNull(tp), p));
  }
}

static void add_acc(Work *w, Node *n, int sweep) {
  Gen *g = w->g;
  if (w->n_acc == MAX_ACCS) {
    g->failed = "too many reductions in one kernel";
    return;
  }
  w->acc[w->n_acc++] = (Acc){n, sweep};
  NodeInfo *f = gen_info(g, n);
  bool contract = n == w->t->contract;
  f->acc = stack_slot(w, val_type(g, contract ? n->dtype : n->in[0]->dtype));
  f->acc_place = n->prim == P_ARGMAX ? stack_slot(w, val_type(g, n->dtype)) : NULL;
  if (w->n_sweep <= sweep) w->n_sweep = sweep + 1;
}

/* Accumulators, and the sweep in which each root is stored. An input that may share an output's buffer is read up to the last
 * sweep, so then nothing is stored before it. */
void plan_sweeps(Work *w) {
  Gen *g = w->g;
  Nest *t = w->t;
  Kernel *k = g->k;
  bool shared = false;
  w->n_sweep = 0;
  if (t->contract) add_acc(w, t->contract, 0);
  if (t->unroll) w->n_sweep = 1;
  for (int i = 0; i < k->nodes.n && !t->unroll; i++)
    if (kernel_sweeps(k, k->nodes.v[i]))
      add_acc(w, k->nodes.v[i], gen_info(g, k->nodes.v[i])->level);
  for (int r = 0; r < t->roots.n; r++) {
    if (!t->roots.v[r].full) continue;
    w->store_sweep[r] = t->red && !t->unroll ? gen_info(g, t->roots.v[r].n)->level : 0;
    if (w->n_sweep <= w->store_sweep[r]) w->n_sweep = w->store_sweep[r] + 1;
  }
  for (int i = 0; i < k->inputs.n; i++) shared |= k->inputs.v[i].aligned;
  for (int r = 0; r < t->roots.n; r++) {
    if (!t->roots.v[r].full) continue;
    if (shared) w->store_sweep[r] = w->n_sweep - 1;
    if (t->roots.v[r].concat_axis < 0) gen_info(g, t->roots.v[r].n)->stored = w->store_sweep[r];
  }
}

/* ---- points ---- */

/* Puts the loops at point p of those done together: the phases of the inner loop, or the points of unrolled sums. */
static void set_point(Work *w, Aff *slot, const Aff *first, int p) {
  const Nest *t = w->t;
  int64_t rest = t->unroll ? p % t->n_sums : 0;
  Aff off = aff_k(t->unroll ? p / t->n_sums : p);
  if (slot) *slot = aff_add(w->g, first, &off);
  for (int a = t->n_sum - 1; a >= 0 && t->unroll; a--) {
    w->sum[a] = aff_k(rest % t->sum[a].ext);
    rest /= t->sum[a].ext;
  }
}

/* The values that root r has at n points; row p of v has `per` values, of ix as many as there are roots, and one. */
static void store_together(Work *w, int r, int n, int per, const Val *v, const Index *ix) {
  const Root *root = &w->t->roots.v[r];
  Aff *at = arena_array(w->g->a, Aff, n);
  Val *value = arena_array(w->g->a, Val, n);
  int found = 0;
  for (int p = 0; p < n; p++) {
    if (!v[p * per + r]) continue;
    value[found] = v[p * per + r];
    at[found++] = root_place(w->g, root, &ix[p * (1 + w->t->roots.n) + 1 + r]);
  }
  cuda_pack_store(w->g, root->buf, root->n->dtype, found, at, value);
}

/* Everything that the sweep does at `phases` points of the inner loop: all loads, then all stores. */
void do_points(Work *w, Aff *slot, const Aff *first, int phases) {
  Gen *g = w->g;
  const Nest *t = w->t;
  int n = t->unroll ? phases * (int)t->n_sums : phases;
  Val *v = arena_array(g->a, Val, n * (t->roots.n + w->n_acc));
  Index *ix = arena_array(g->a, Index, n * (1 + t->roots.n));
  for (int p = 0, k = 0; p < n; p++) {
    set_point(w, slot, first, p);
    Index *at = &ix[p * (1 + t->roots.n)], row = domain_index(w, true);
    at[0] = domain_index(w, false);
    g->point = &at[0];
    g->place = row_place(w);
    for (int r = 0; r < t->roots.n; r++, k++) {
      const Root *root = &t->roots.v[r];
      bool once = t->unroll && p % t->n_sums == 0;
      root_index(g, t, root, root->full ? &at[0] : &row, &at[1 + r]);
      if (root->full ? w->store_sweep[r] == g->sweep : once) v[k] = emit(g, root->n, &at[1 + r]);
    }
    for (int a = 0; a < w->n_acc; a++, k++)
      if (w->acc[a].sweep == g->sweep && w->acc[a].n != t->contract)
        v[k] = emit(g, w->acc[a].n->in[0], &at[0]);
  }
  g->point = NULL;
  int per = t->roots.n + w->n_acc;
  for (int r = 0; r < t->roots.n && g->gpu; r++) store_together(w, r, n, per, v, ix);
  for (int p = 0, k = 0; p < n; p++) {
    set_point(w, slot, first, p);
    Index *at = &ix[p * (1 + t->roots.n)];
    for (int r = 0; r < t->roots.n; r++, k++)
      if (v[k] && !g->gpu) store_root(w, &t->roots.v[r], v[k], &at[1 + r]);
    for (int a = 0; a < w->n_acc; a++, k++)
      if (w->acc[a].sweep == g->sweep) accumulate(w, w->acc[a].n, v[k], &at[0]);
  }
}

void store_rows(Work *w, void *user) {
  Gen *g = w->g;
  const Nest *t = w->t;
  Index ix = domain_index(w, true);
  Index *at = arena_array(g->a, Index, t->roots.n);
  Val *v = arena_array(g->a, Val, t->roots.n);
  (void)user;
  for (int r = 0; r < t->roots.n; r++)
    if (!t->roots.v[r].full) {
      root_index(g, t, &t->roots.v[r], &ix, &at[r]);
      v[r] = emit(g, t->roots.v[r].n, &at[r]);
    }
  for (int r = 0; r < t->roots.n; r++)
    if (v[r]) store_root(w, &t->roots.v[r], v[r], &at[r]);
}
