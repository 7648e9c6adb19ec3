/* Scatter and sorting, where the order matters. In: K_SCATTER or K_SORT and a launch; out: the body of its function.
 *
 * scatter  a thread owns the elements of one outer item and column whose index along the axis is in its residue class. It
 *          copies them from base, then takes all updates of the column in row-major order and applies those of its class:
 *          the result is that of one thread, without atomics.
 * runs     a block copies a run of a row, or several short rows, to shared memory, where each element counts how many of its run
 *          come before it: that is its place. Where runs merge keys are kept in order, too.
 * merge    a block makes a segment of a pair of sorted runs. By bisection it finds how many of the first run belong before the
 *          segment and before its end, copies its part of either run to shared memory, where each element finds by bisection how
 *          many of the other part come before it. Equal elements keep their order: the sort is stable. */
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
  int64_t step[3];
  int base = slot_of(k, n->in[0]), idx = kernel_index(k, step), upd = slot_of(k, nu),
      out = k->inputs.n;
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
  Val which = plus(g, times(g, o, step[0]), times(g, each.phi, step[1]));
  which = plus(g, which, times(g, j, step[2]));
  Val i = val_load(g, ni->dtype, element(g, ni->dtype, idx, which));
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

/* Goes over `count` elements from `start` on, from the sector's first one, neighbouring threads side by side: *at is counted
 * from `start`. Closed by close_sectors. */
static void open_sectors(Gen *g, const CudaLaunch *l, Val start, Val count, int bytes, Loop loop[2],
                         Val *at) {
  int var, per = CUDA_SECTOR / bytes;
  gen_at(g, g->depth);
  Val skip = LLVMBuildAnd(g->b, start, gen_i64(g, per - 1), "");
  loop[0] = loop_open(g, cuda_register(g, "tid.x"), plus(g, count, skip), gen_i64(g, l->block[0]),
                      0, l->stage->run + per, &var);
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

/* Element `at` of the keys in order, `offset` bytes behind the workspace's start. */
static Val sorted_key(Gen *g, int64_t offset, Val at) {
  const Kernel *k = g->k;
  Val bytes = gen_i64(g, offset);
  Val base = LLVMBuildInBoundsGEP2(g->b, g->i8, g->bufs[k->inputs.n + k->outputs.n], &bytes, 1, "");
  return near(g, mem_type(g, k->core->in[0]->dtype), base, at);
}

/* `count` sorted elements from `start` on. Their keys too, if they will be merged: that of a place is in keys[place - first]
 * (first NULL: keys are in the same order). */
static void write_sorted(Gen *g, const CudaLaunch *l, Val start, Val count, Val order, Val keys,
                         Val first) {
  DType t = g->k->core->in[0]->dtype;
  Loop loop[2];
  Val at;
  open_sectors(g, l, start, count, 8, loop, &at);
  Val i =
      LLVMBuildZExt(g->b, LLVMBuildLoad2(g->b, g->i32, near(g, g->i32, order, at), ""), g->i64, "");
  val_store(g, DT_INT64, i, element(g, DT_INT64, l->stage->to, plus(g, start, at)));
  close_sectors(g, loop);
  if (l->stage->keys_to < 0) return;
  open_sectors(g, l, start, count, dtype_info[t].size, loop, &at);
  i = at;
  if (first) {
    i = LLVMBuildLoad2(g->b, g->i32, near(g, g->i32, order, at), "");
    i = minus(g, LLVMBuildZExt(g->b, i, g->i64, ""), first);
  }
  Val x = val_load(g, t, near(g, mem_type(g, t), keys, i));
  val_store(g, t, x, sorted_key(g, l->stage->keys_to, plus(g, start, at)));
  close_sectors(g, loop);
}

void cuda_runs(Gen *g, const CudaLaunch *l) {
  const Node *n = g->k->core;
  DType t = n->in[0]->dtype;
  int64_t run = l->stage->run;
  Work w = {.g = g};
  int var;
  Val slot = stack_slot(&w, g->i64), at;
  Loop all = cuda_blocks(g, l, cuda_sort_blocks(n, run), &var), loop[2];
  Run r = run_of(g, l, all.phi);
  r.keys = cuda_shared(g, "keys", mem_type(g, t), run);
  r.order = cuda_shared(g, "order", g->i32, run);
  cuda_barrier(g); /* the run before this one has been written */
  open_sectors(g, l, r.start, r.count, dtype_info[t].size, loop, &at);
  Val x = val_load(g, t, element(g, t, slot_of(g->k, n->in[0]), plus(g, r.start, at)));
  val_store(g, t, x, near(g, mem_type(g, t), r.keys, at));
  close_sectors(g, loop);
  cuda_barrier(g);
  Loop each =
      loop_open(g, cuda_register(g, "tid.x"), r.count, gen_i64(g, l->block[0]), 0, run, &var);
  gen_at(g, g->depth);
  count_before(g, &r, slot, each.phi);
  loop_close(g, &each, LOOP_PLAIN);
  cuda_barrier(g);
  write_sorted(g, l, r.start, r.count, r.order, r.keys, r.from);
  loop_close(g, &all, LOOP_PLAIN);
}

/* ---- merging ---- */

/* A segment of a pair of runs: the pair begins at `pair`, its second run at `pair` + half; in the pair the segment is the places
 * from.. from + count - 1. */
typedef struct Segment {
  Val pair, half, whole, from, count, start;
} Segment;

static Segment segment_of(Gen *g, const CudaLaunch *l, Val block) {
  const Node *n = g->k->core;
  int64_t length = n->dims[n->rank - 1], run = l->stage->run, size = CUDA_RUN_SIZE;
  Segment s;
  gen_at(g, g->depth);
  Val row = times(g, over(g, block, div_up(length, size)), length);
  Val at = times(g, rest(g, block, div_up(length, size)), size), end = gen_i64(g, length);
  Val lo = times(g, over(g, at, 2 * run), 2 * run), left = minus(g, end, lo);
  s.pair = plus(g, row, lo);
  s.half = gen_min(g, left, gen_i64(g, run));
  s.whole = gen_min(g, left, gen_i64(g, 2 * run));
  s.from = minus(g, at, lo);
  s.count = gen_min(g, minus(g, end, at), gen_i64(g, size));
  s.start = plus(g, row, at);
  return s;
}

/* A bisection of the range slot[0]..slot[1] - 1, of at most `most`: *mid is its middle, or 0 once it is empty. */
static Loop open_bisection(Gen *g, int64_t most, Val slot[2], Val *mid, Val *open) {
  int var, steps = 1;
  while ((int64_t)1 << steps <= most) steps++;
  Loop step = loop_open(g, gen_i64(g, 0), gen_i64(g, steps), gen_i64(g, 1), 0, steps - 1, &var);
  gen_at(g, g->depth);
  Val lo = LLVMBuildLoad2(g->b, g->i64, slot[0], ""),
      hi = LLVMBuildLoad2(g->b, g->i64, slot[1], "");
  *open = LLVMBuildICmp(g->b, LLVMIntSLT, lo, hi, "");
  *mid = LLVMBuildLShr(g->b, plus(g, lo, hi), gen_i64(g, 1), "");
  *mid = LLVMBuildSelect(g->b, *open, *mid, gen_i64(g, 0), "");
  return step;
}

/* Goes on behind the middle if it is `below`; -> the first place that is not. */
static Val close_bisection(Gen *g, Loop *step, Val slot[2], Val mid, Val open, Val below) {
  LLVMBuilderRef b = g->b;
  Val lo = LLVMBuildLoad2(b, g->i64, slot[0], ""), hi = LLVMBuildLoad2(b, g->i64, slot[1], "");
  Val up = LLVMBuildAnd(b, open, below, "");
  Val down = LLVMBuildAnd(b, open, LLVMBuildNot(b, below, ""), "");
  LLVMBuildStore(b, LLVMBuildSelect(b, up, plus(g, mid, gen_i64(g, 1)), lo, ""), slot[0]);
  LLVMBuildStore(b, LLVMBuildSelect(b, down, mid, hi, ""), slot[1]);
  loop_close(g, step, LOOP_PLAIN);
  gen_at(g, g->depth);
  return LLVMBuildLoad2(b, g->i64, slot[0], "");
}

/* Of the pair's first d places in order, how many are the first run's. */
static Val first_of(Gen *g, const CudaLaunch *l, const Segment *s, Val slot[2], Val d) {
  const Node *n = g->k->core;
  DType t = n->in[0]->dtype;
  Val mid, open, zero = gen_i64(g, 0), second = minus(g, s->whole, s->half);
  LLVMBuildStore(g->b, gen_max(g, minus(g, d, second), zero), slot[0]);
  LLVMBuildStore(g->b, gen_min(g, d, s->half), slot[1]);
  Loop step = open_bisection(g, l->stage->run, slot, &mid, &open);
  Val other = minus(g, plus(g, s->half, minus(g, d, gen_i64(g, 1))), mid);
  other = LLVMBuildSelect(g->b, open, other, zero, "");
  Val x = val_load(g, t, sorted_key(g, l->stage->keys_from, plus(g, s->pair, mid)));
  Val y = val_load(g, t, sorted_key(g, l->stage->keys_from, plus(g, s->pair, other)));
  Val below = LLVMBuildNot(g->b, before(g, n, y, x), "");
  return close_bisection(g, &step, slot, mid, open, below);
}

/* Elements of a run in shared memory, and of what merges. */
typedef struct Shelf {
  Val keys, order;
} Shelf;

static Shelf shelf_of(Gen *g, bool merged) {
  LLVMTypeRef type = mem_type(g, g->k->core->in[0]->dtype);
  return (Shelf){cuda_shared(g, merged ? "merged" : "keys", type, CUDA_RUN_SIZE),
                 cuda_shared(g, merged ? "to" : "order", g->i32, CUDA_RUN_SIZE)};
}

/* `count` elements from `start` on, to place `to` and those behind it. */
static void copy_part(Gen *g, const CudaLaunch *l, const Shelf *s, Val start, Val count, Val to) {
  DType t = g->k->core->in[0]->dtype;
  Loop loop[2];
  Val at;
  open_sectors(g, l, start, count, dtype_info[t].size, loop, &at);
  Val x = val_load(g, t, sorted_key(g, l->stage->keys_from, plus(g, start, at)));
  val_store(g, t, x, near(g, mem_type(g, t), s->keys, plus(g, to, at)));
  close_sectors(g, loop);
  open_sectors(g, l, start, count, 8, loop, &at);
  Val i = val_load(g, DT_INT64, element(g, DT_INT64, l->stage->from, plus(g, start, at)));
  LLVMBuildStore(g->b, LLVMBuildTrunc(g->b, i, g->i32, ""),
                 near(g, g->i32, s->order, plus(g, to, at)));
  close_sectors(g, loop);
}

/* Element e of the parts, of which the first one has n, goes where it belongs. */
static void merge_element(Gen *g, const Shelf *s, const Shelf *to, Val slot[2], Val n, Val count,
                          Val e) {
  const Node *core = g->k->core;
  DType t = core->in[0]->dtype;
  LLVMTypeRef type = mem_type(g, t);
  LLVMBuilderRef b = g->b;
  Val mid, open, zero = gen_i64(g, 0), second = LLVMBuildICmp(b, LLVMIntSGE, e, n, "");
  Val x = val_load(g, t, near(g, type, s->keys, e)), from = LLVMBuildSelect(b, second, zero, n, "");
  LLVMBuildStore(b, from, slot[0]);
  LLVMBuildStore(b, LLVMBuildSelect(b, second, n, count, ""), slot[1]);
  Loop step = open_bisection(g, CUDA_RUN_SIZE, slot, &mid, &open);
  Val y = val_load(g, t, near(g, type, s->keys, mid));
  Val not_more = LLVMBuildNot(b, before(g, core, x, y), "");
  Val below = LLVMBuildSelect(b, second, not_more, before(g, core, y, x), "");
  Val found = close_bisection(g, &step, slot, mid, open, below);
  Val place = minus(g, plus(g, e, found), n); /* either e or `found` is counted from n on */
  val_store(g, t, x, near(g, type, to->keys, place));
  LLVMBuildStore(b, LLVMBuildLoad2(b, g->i32, near(g, g->i32, s->order, e), ""),
                 near(g, g->i32, to->order, place));
}

void cuda_merge(Gen *g, const CudaLaunch *l) {
  const Node *n = g->k->core;
  Work w = {.g = g};
  int var;
  Val slot[2] = {stack_slot(&w, g->i64), stack_slot(&w, g->i64)};
  Loop all = cuda_blocks(g, l, cuda_sort_blocks(n, CUDA_RUN_SIZE), &var);
  Segment s = segment_of(g, l, all.phi);
  Shelf in = shelf_of(g, false), out = shelf_of(g, true);
  Val cuts = cuda_shared(g, "cuts", g->i64, 2), tid = cuda_register(g, "tid.x"), cut[2];
  cuda_barrier(g); /* the segment before this one has been written */
  Loop once = cuda_if(g, LLVMBuildICmp(g->b, LLVMIntSLT, tid, gen_i64(g, 2), ""));
  gen_at(g, g->depth);
  Val d = plus(g, s.from, LLVMBuildNSWMul(g->b, tid, s.count, ""));
  LLVMBuildStore(g->b, first_of(g, l, &s, slot, d), near(g, g->i64, cuts, tid));
  loop_close(g, &once, LOOP_PLAIN);
  cuda_barrier(g);
  for (int i = 0; i < 2; i++)
    cut[i] = LLVMBuildLoad2(g->b, g->i64, near(g, g->i64, cuts, gen_i64(g, i)), "");
  Val first = minus(g, cut[1], cut[0]), second = minus(g, s.from, cut[0]);
  copy_part(g, l, &in, plus(g, s.pair, cut[0]), first, gen_i64(g, 0));
  gen_at(g, g->depth);
  copy_part(g, l, &in, plus(g, s.pair, plus(g, s.half, second)), minus(g, s.count, first), first);
  cuda_barrier(g);
  Loop each = loop_open(g, tid, s.count, gen_i64(g, l->block[0]), 0, CUDA_RUN_SIZE - 1, &var);
  gen_at(g, g->depth);
  merge_element(g, &in, &out, slot, first, s.count, each.phi);
  loop_close(g, &each, LOOP_PLAIN);
  cuda_barrier(g);
  write_sorted(g, l, s.start, s.count, out.order, out.keys, NULL);
  loop_close(g, &all, LOOP_PLAIN);
}
