/* Scatter and sorting, where the order matters. In: K_SCATTER or K_SORT and a launch; out: the body of its function.
 *
 * scatter  a thread owns the elements of one outer item and column whose index along the axis is in its residue class. It
 *          copies them from base, then takes all updates of the column in row-major order and applies those of its class:
 *          the result is that of one thread, without atomics.
 * runs     a block copies a run of a row, or several short rows, to shared memory, where each element counts how many of its run
 *          come before it: that is its place.
 * merge    each element of a pair of sorted runs finds by bisection how many of the other run come before it. Equal elements
 *          keep their order: the sort is stable. */
#include "cuda_gen.h"

static Val times(Gen *g, Val x, int64_t c) { return LLVMBuildNSWMul(g->b, x, gen_i64(g, c), ""); }
static Val plus(Gen *g, Val x, Val y) { return LLVMBuildNSWAdd(g->b, x, y, ""); }
static Val minus(Gen *g, Val x, Val y) { return LLVMBuildNSWSub(g->b, x, y, ""); }
static Val over(Gen *g, Val x, int64_t d) { return LLVMBuildUDiv(g->b, x, gen_i64(g, d), ""); }
static Val rest(Gen *g, Val x, int64_t d) { return LLVMBuildURem(g->b, x, gen_i64(g, d), ""); }

static Val element(Gen *g, DType t, int buf, Val at) {
  return LLVMBuildInBoundsGEP2(g->b, mem_type(g, t), g->bufs[buf], &at, 1, "");
}

/* The thread's items of 0..n-1: the position, at depth 1. */
static Loop items(Gen *g, const CudaLaunch *l, int64_t n, Val *at) {
  int var;
  Val first = times(g, cuda_register(g, "ctaid.x"), l->block[0]);
  first = plus(g, first, cuda_register(g, "tid.x"));
  Loop loop = loop_open(g, first, gen_i64(g, n), gen_i64(g, (int64_t)l->grid[0] * l->block[0]), 0,
                        n - 1, &var);
  gen_at(g, g->depth);
  *at = loop.phi;
  return loop;
}

static int slot_of(const Kernel *k, const Node *n) {
  int i = kernel_input(k, n);
  return i < 0 ? 0 : i;
}

/* ---- scatter ---- */

void cuda_scatter(Gen *g, const CudaLaunch *l) {
  const Kernel *k = g->k;
  const Node *n = k->core, *ni = n->in[1], *nu = n->in[2];
  int base = slot_of(k, n->in[0]), idx = slot_of(k, ni), upd = slot_of(k, nu), out = k->inputs.n;
  int64_t outer = numel_of((int)n->i, n->dims), classes = l->stage->classes;
  int64_t inner = numel_of(n->rank - (int)n->i - 1, n->dims + n->i + 1);
  int64_t size = n->dims[n->i], count = ni->dims[n->i];
  DType t = n->dtype;
  int var;
  Val at, one = gen_i64(g, 1);
  Loop all = items(g, l, outer * classes * inner, &at);
  Val j = rest(g, at, inner), class = rest(g, over(g, at, inner), classes);
  Val o = over(g, at, inner * classes), column = plus(g, times(g, o, size * inner), j);
  Val from = element(g, t, base, gen_i64(g, 0)), to = element(g, t, out, gen_i64(g, 0));
  Loop copy = cuda_if(g, LLVMBuildICmp(g->b, LLVMIntNE, from, to, ""));
  Loop own = loop_open(g, class, gen_i64(g, size), gen_i64(g, classes), 0, size - 1, &var);
  gen_at(g, g->depth);
  at = plus(g, column, times(g, own.phi, inner));
  val_store(g, t, val_load(g, t, element(g, t, base, at)), element(g, t, out, at));
  loop_close(g, &own, LOOP_PLAIN);
  loop_close(g, &copy, LOOP_PLAIN);
  Loop each = loop_open(g, gen_i64(g, 0), gen_i64(g, count), one, 0, count - 1, &var);
  gen_at(g, g->depth);
  Val u = plus(g, plus(g, times(g, o, count * inner), j), times(g, each.phi, inner));
  Val i = val_load(g, ni->dtype, element(g, ni->dtype, idx, u));
  i = LLVMBuildIntCast2(g->b, i, g->i64, dtype_info[ni->dtype].class == 'i', "");
  i = gen_max(g, gen_min(g, i, gen_i64(g, size - 1)), gen_i64(g, 0));
  Val is_mine = LLVMBuildICmp(g->b, LLVMIntEQ, rest(g, i, classes), class, "");
  Loop mine = cuda_if(g, is_mine);
  gen_at(g, g->depth);
  Val v = val_load(g, t, element(g, t, upd, u)),
      p = element(g, t, out, plus(g, column, times(g, i, inner)));
  if (!n->ia[0]) v = reduce_step(g, P_RSUM, t, val_load(g, t, p), v, false);
  val_store(g, t, v, p);
  loop_close(g, &mine, LOOP_PLAIN);
  loop_close(g, &each, LOOP_PLAIN);
  loop_close(g, &all, LOOP_PLAIN);
}

/* ---- sorting ---- */

/* Does x come before y? */
static Val before(Gen *g, const Node *n, Val x, Val y) {
  DType t = n->in[0]->dtype;
  return n->ia[0] ? argmax_better(g, t, x, y) : argmax_better(g, t, y, x);
}

static Val key(Gen *g, const Node *n, Val at) {
  DType t = n->in[0]->dtype;
  return val_load(g, t, element(g, t, slot_of(g->k, n->in[0]), at));
}

/* The run, or the rows, of a block: elements start.. start + count - 1, sorted by `length` of them; the first is place `from`
 * of its row. */
typedef struct Run {
  Val start, count, from;
  int64_t length; /* 0: all are one run */
  Val keys, order;
} Run;

static Run run_of(Gen *g, const CudaLaunch *l, Val block) {
  const Node *n = g->k->core;
  int64_t length = n->dims[n->rank - 1], all = node_numel(n), run = l->stage->run;
  Run r = {.from = gen_i64(g, 0), .length = length};
  gen_at(g, g->depth);
  if (length <= run) {
    int64_t many = run / length * length;
    r.start = times(g, block, many);
    r.count = gen_min(g, minus(g, gen_i64(g, all), r.start), gen_i64(g, many));
    return r;
  }
  r.length = 0;
  r.from = times(g, rest(g, block, div_up(length, run)), run);
  r.start = plus(g, times(g, over(g, block, div_up(length, run)), length), r.from);
  r.count = gen_min(g, minus(g, gen_i64(g, length), r.from), gen_i64(g, run));
  return r;
}

/* Goes over the elements from..from + count - 1 from the sector's first on, neighbouring threads side by side: *at is counted
 * from `from`. Closed by two loop_close. */
static void open_sectors(Gen *g, const CudaLaunch *l, const Run *r, int bytes, Loop loop[2],
                         Val *at) {
  int var, per = CUDA_SECTOR / bytes;
  gen_at(g, g->depth);
  Val skip = LLVMBuildAnd(g->b, r->start, gen_i64(g, per - 1), "");
  loop[0] = loop_open(g, cuda_register(g, "tid.x"), plus(g, r->count, skip),
                      gen_i64(g, l->block[0]), 0, l->stage->run + per, &var);
  gen_at(g, g->depth);
  *at = minus(g, loop[0].phi, skip);
  loop[1] = cuda_if(g, LLVMBuildICmp(g->b, LLVMIntSGE, *at, gen_i64(g, 0), ""));
  gen_at(g, g->depth);
}

static void close_sectors(Gen *g, Loop loop[2]) {
  loop_close(g, &loop[1], LOOP_PLAIN);
  loop_close(g, &loop[0], LOOP_PLAIN);
}

static Val near(Gen *g, LLVMTypeRef t, Val shared, Val at) {
  return LLVMBuildInBoundsGEP2(g->b, t, shared, &at, 1, "");
}

/* Element e of the run puts its place in the row where it belongs. */
static void count_before(Gen *g, const Run *r, Val slot, Val e) {
  const Node *n = g->k->core;
  DType t = n->in[0]->dtype;
  LLVMTypeRef key_type = mem_type(g, t);
  int var;
  Val at = r->length ? rest(g, e, r->length) : e, first = minus(g, e, at);
  Val end = r->length ? plus(g, first, gen_i64(g, r->length)) : r->count;
  Val x = val_load(g, t, near(g, key_type, r->keys, e));
  LLVMBuildStore(g->b, gen_i64(g, 0), slot);
  Loop each = loop_open(g, first, end, gen_i64(g, 1), 0, n->dims[n->rank - 1] - 1, &var);
  gen_at(g, g->depth);
  Val y = val_load(g, t, near(g, key_type, r->keys, each.phi));
  Val less = before(g, n, y, x), more = before(g, n, x, y);
  Val same = LLVMBuildAnd(g->b, LLVMBuildNot(g->b, more, ""),
                          LLVMBuildICmp(g->b, LLVMIntSLT, each.phi, e, ""), "");
  Val one = LLVMBuildZExt(g->b, LLVMBuildOr(g->b, less, same, ""), g->i64, "");
  LLVMBuildStore(g->b, plus(g, LLVMBuildLoad2(g->b, g->i64, slot, ""), one), slot);
  loop_close(g, &each, LOOP_PLAIN);
  gen_at(g, g->depth);
  Val to = plus(g, first, LLVMBuildLoad2(g->b, g->i64, slot, ""));
  Val place = LLVMBuildTrunc(g->b, plus(g, r->from, at), g->i32, "");
  LLVMBuildStore(g->b, place, near(g, g->i32, r->order, to));
}

void cuda_runs(Gen *g, const CudaLaunch *l) {
  const Node *n = g->k->core;
  DType t = n->in[0]->dtype;
  int64_t run = l->stage->run;
  Work w = {.g = g};
  int var;
  Val slot = stack_slot(&w, g->i64), at, i;
  Loop all = cuda_blocks(g, l, cuda_sort_blocks(n, run), &var), loop[2];
  Run r = run_of(g, l, all.phi);
  r.keys = cuda_shared(g, "keys", mem_type(g, t), run);
  r.order = cuda_shared(g, "order", g->i32, run);
  cuda_barrier(g); /* the run before this one has been written */
  open_sectors(g, l, &r, dtype_info[t].size, loop, &at);
  Val x = key(g, n, plus(g, r.start, at));
  val_store(g, t, x, near(g, mem_type(g, t), r.keys, at));
  close_sectors(g, loop);
  cuda_barrier(g);
  Loop each =
      loop_open(g, cuda_register(g, "tid.x"), r.count, gen_i64(g, l->block[0]), 0, run, &var);
  gen_at(g, g->depth);
  count_before(g, &r, slot, each.phi);
  loop_close(g, &each, LOOP_PLAIN);
  cuda_barrier(g);
  open_sectors(g, l, &r, 8, loop, &at);
  i = LLVMBuildLoad2(g->b, g->i32, near(g, g->i32, r.order, at), "");
  i = LLVMBuildZExt(g->b, i, g->i64, "");
  val_store(g, DT_INT64, i, element(g, DT_INT64, l->stage->to, plus(g, r.start, at)));
  close_sectors(g, loop);
  loop_close(g, &all, LOOP_PLAIN);
}

/* How many of src[lo..hi-1] of the row come before x (or are equal, if `ties`): bisection in as many steps as a run needs. */
static Val bisect(Gen *g, const CudaLaunch *l, Val slot[2], Val row, Val x, Val ties) {
  const Node *n = g->k->core;
  int var, steps = 1;
  LLVMBuilderRef b = g->b;
  while ((int64_t)1 << steps <= l->stage->run) steps++;
  Loop step = loop_open(g, gen_i64(g, 0), gen_i64(g, steps), gen_i64(g, 1), 0, steps - 1, &var);
  gen_at(g, g->depth);
  Val lo = LLVMBuildLoad2(b, g->i64, slot[0], ""), hi = LLVMBuildLoad2(b, g->i64, slot[1], "");
  Val open = LLVMBuildICmp(b, LLVMIntSLT, lo, hi, "");
  Val mid = LLVMBuildLShr(b, plus(g, lo, hi), gen_i64(g, 1), "");
  Val safe = LLVMBuildSelect(b, open, mid, gen_i64(g, 0), "");
  Val other = val_load(g, DT_INT64, element(g, DT_INT64, l->stage->from, plus(g, row, safe)));
  Val y = key(g, n, plus(g, row, other));
  Val not_more = LLVMBuildNot(b, before(g, n, x, y), "");
  Val left = LLVMBuildSelect(b, ties, not_more, before(g, n, y, x), "");
  Val up = LLVMBuildAnd(b, open, left, "");
  Val down = LLVMBuildAnd(b, open, LLVMBuildNot(b, left, ""), "");
  LLVMBuildStore(b, LLVMBuildSelect(b, up, plus(g, mid, gen_i64(g, 1)), lo, ""), slot[0]);
  LLVMBuildStore(b, LLVMBuildSelect(b, down, mid, hi, ""), slot[1]);
  loop_close(g, &step, LOOP_PLAIN);
  gen_at(g, g->depth);
  return LLVMBuildLoad2(b, g->i64, slot[0], "");
}

void cuda_merge(Gen *g, const CudaLaunch *l) {
  const Node *n = g->k->core;
  int64_t length = n->dims[n->rank - 1], run = l->stage->run;
  LLVMBuilderRef b = g->b;
  Work w = {.g = g};
  Val at, slot[2] = {stack_slot(&w, g->i64), stack_slot(&w, g->i64)};
  Loop all = items(g, l, node_numel(n), &at);
  Val p = rest(g, at, length), row = minus(g, at, p), end = gen_i64(g, length);
  Val lo = times(g, over(g, p, 2 * run), 2 * run);
  Val mid = gen_min(g, plus(g, lo, gen_i64(g, run)), end);
  Val hi = gen_min(g, plus(g, lo, gen_i64(g, 2 * run)), end);
  Val second = LLVMBuildICmp(b, LLVMIntSGE, p, mid, "");
  Val index = val_load(g, DT_INT64, element(g, DT_INT64, l->stage->from, at));
  Val x = key(g, n, plus(g, row, index));
  Val from = LLVMBuildSelect(b, second, lo, mid, "");
  LLVMBuildStore(b, from, slot[0]);
  LLVMBuildStore(b, LLVMBuildSelect(b, second, mid, hi, ""), slot[1]);
  Val found = minus(g, bisect(g, l, slot, row, x, second), from);
  Val own = minus(g, p, LLVMBuildSelect(b, second, mid, lo, ""));
  Val to = plus(g, plus(g, row, lo), plus(g, own, found));
  val_store(g, DT_INT64, index, element(g, DT_INT64, l->stage->to, to));
  loop_close(g, &all, LOOP_PLAIN);
}
