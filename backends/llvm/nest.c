/* From a kernel to the shape of its loop nest: which dimensions are traversed as one loop, which loop is innermost, how
 * the rest is cut into tasks. In: a kernel (and the operand, of a concatenation); out: a Nest. Everything follows
 * from shapes, so the number of tasks does not depend on the machine.
 *   map      rows = result loops but the last, times blocks of the last; inner loop = a block of the last; a large transposition
 *            goes by tiles of a few rows and columns
 *   row      the last axis (of a contraction: the loop that steps through memory one by one) is summed: rows = all
 *            results; sums inside
 *   unrolled sums of a few points are done at one point of the results, as maps are
 *   columns  it is not: rows as for maps, sums inside, and a block of the last result axis innermost, summed side by side */
#include "gen.h"

enum { LARGE = 256 << 10 /* bytes */ };

/* Facts about a node, filled in at its first use: levels and costs follow its operands inside the kernel. */
NodeInfo *gen_info(Gen *g, Node *n) {
  if (n->mark >= 0 && n->mark < g->info.n && g->info.v[n->mark]->node == n)
    return g->info.v[n->mark];
  NodeInfo f = {.node = n, .input = -1, .output = -1, .stored = INT32_MAX, .inside = true};
  for (int i = 0; i < g->k->inputs.n; i++)
    if (g->k->inputs.v[i].node == n) f.input = i, f.inside = false;
  for (int i = 0; i < g->k->outputs.n; i++)
    if (g->k->outputs.v[i] == n) f.output = g->k->inputs.n + i;
  static const bool heavy[P_N] = {
      [P_EXP] = true, [P_LOG] = true, [P_TANH] = true, [P_ERF] = true,
      [P_SIN] = true, [P_POW] = true, [P_DIV] = true,  [P_RANDOM] = true};
  f.heavy = heavy[n->prim];
  if (f.inside && !(n == g->k->core && g->part != LOOP_MAIN))
    for (int i = 0; i < n->n_in; i++) {
      NodeInfo *x = gen_info(g, n->in[i]);
      int level = x->level + kernel_sweeps(g->k, n->in[i]);
      if (!x->inside) continue;
      f.heavy |= x->heavy;
      if (level > f.level) f.level = level;
    }
  n->mark = g->info.n;
  vec_add(g->a, &g->info, arena_dup(g->a, &f, sizeof f));
  return g->info.v[n->mark];
}

int nest_n(const Kernel *k, LoopPart part) {
  return part == LOOP_MAIN && k->kind == K_CONCAT ? k->core->n_in : 1;
}

static bool same_dims(const Node *n, int rank, const int64_t *dims) {
  if (n->rank != rank) return false;
  for (int d = 0; d < rank; d++)
    if (n->dims[d] != dims[d]) return false;
  return true;
}

static int64_t product(int rank, const int64_t *dims, uint32_t which) {
  int64_t p = 1;
  for (int d = 0; d < rank; d++)
    if (which >> d & 1) p *= dims[d];
  return p;
}

static void concat_root(Gen *g, int i, Nest *t) {
  Node *core = g->k->core, *x = core->in[i];
  Root r = {.n = x,
            .buf = g->k->inputs.n,
            .full = true,
            .concat_axis = (int)core->i,
            .into_dims = core->dims};
  for (int j = 0; j < i; j++) r.concat_at += core->in[j]->dims[core->i];
  t->rank = x->rank;
  t->ext = x->dims;
  vec_add(g->a, &t->roots, r);
}

/* The domain and what is stored. */
static void nest_roots(Gen *g, int i, Nest *t) {
  Kernel *k = g->k;
  if (k->kind == K_CONCAT) {
    concat_root(g, i, t);
    return;
  }
  t->rank = k->rank;
  t->ext = k->ext;
  t->red = k->reduce;
  if (g->part == LOOP_CONTRACT) {
    Node *c = k->core;
    uint32_t sums = (((uint32_t)1 << c->n_loops) - 1) & ~(((uint32_t)1 << c->rank) - 1);
    t->rank = c->rank;
    t->ext = c->dims;
    if (product(c->n_loops, c->ext, sums) > KL_SMALL_REDUCE) {
      t->contract = c;
      t->rank = c->n_loops;
      t->ext = c->ext;
      t->red = sums;
    }
  }
  for (int o = 0; o < k->outputs.n; o++) {
    Node *n = k->outputs.v[o];
    if (loop_is_epilogue(g->part) && n == k->core && !g->gpu) continue; /* it is there */
    /* where rows are single points, everything counts as row values */
    bool full =
        !t->contract &&
        (!t->red || (product(t->rank, t->ext, t->red) != 1 && same_dims(n, t->rank, t->ext)));
    vec_add(g->a, &t->roots,
            ((Root){.n = n, .buf = k->inputs.n + o, .full = full, .concat_axis = -1}));
  }
}

/* Dimensions d and d+1 of the domain. */
static bool may_merge(Gen *g, const Nest *t, int d) {
  bool red = t->red >> d & 1;
  if (t->contract)
    for (int i = 0; i < 2; i++)
      if (!can_merge_map(g, t->contract->in[i], t->contract->map[i], t->rank, t->ext, d))
        return false;
  for (int i = 0; i < t->roots.n; i++) {
    const Root *r = &t->roots.v[i];
    if (r->concat_axis == d + 1) return false;
    if (!r->full && red) continue;
    if (r->full && !same_dims(r->n, t->rank, t->ext)) return false;
    if (d + 1 < r->n->rank && !can_merge(g, r->n, d)) return false;
  }
  for (int i = 0; i < g->k->nodes.n; i++) {
    Node *n = g->k->nodes.v[i];
    if (kernel_sweeps(g->k, n) && !can_merge(g, n->in[0], d)) return false;
  }
  return true;
}

/* The rows of an epilogue (by_row) are the outermost axes as far as they are one, but for the last. */
static void nest_axes(Gen *g, Nest *t) {
  int d = 0, last = t->rank - 1;
  while (last > 0 && t->ext[last] == 1) last--;
  while (d < t->rank) {
    Axis a = {.first = d, .last = d, .ext = t->ext[d]};
    bool red = t->red >> d & 1;
    for (d++; d < t->rank && (t->red >> d & 1) == red && a.ext != 1; d++) {
      if (t->by_row && t->n_out == 0 && !red && d == last) break;
      if ((red && t->unroll) || !may_merge(g, t, d - 1)) break;
      a.ext *= t->ext[d];
      a.last = d;
    }
    if (a.ext == 1) continue;
    if (red)
      t->sum[t->n_sum++] = a;
    else
      t->out[t->n_out++] = a;
  }
}

/* Does the innermost run of loops `last` make the operands step through memory one by one (or not at all)? */
static int jumps(const Node *c, int last) {
  int n = 0;
  for (int i = 0; i < 2; i++)
    for (int p = 0; p < c->in[i]->rank; p++) {
      const AffDim *m = &c->map[i][p];
      int64_t step = (m->l0 == last ? m->c0 : 0) + (m->l1 == last ? m->c1 : 0);
      n += step && (p != c->in[i]->rank - 1 || step != 1 || m->div != 1);
    }
  return n;
}

/* Is the inner loop over results rather than over sums? A warp's lanes are, where the last sum is short. */
static bool column_mode(const Gen *g, const Nest *t) {
  enum { SHORT = 8 };
  if (!t->red || !t->n_out) return false;
  if (!t->n_sum) return true;
  int out = t->out[t->n_out - 1].last, sum = t->sum[t->n_sum - 1].last;
  if (g->gpu && t->contract && t->sum[t->n_sum - 1].ext < SHORT) return true;
  return t->contract ? jumps(t->contract, out) <= jumps(t->contract, sum) : out > sum;
}

static bool has_loop(const Axis *a, const AffDim *m, const int64_t *ext) {
  return (m->l0 >= a->first && m->l0 <= a->last && ext[m->l0] > 1) ||
         (m->l1 >= a->first && m->l1 <= a->last && ext[m->l1] > 1);
}

/* The axis along which a view steps through memory, while it jumps along the inner loop; -1: none. */
static int axis_across(const Nest *t, const Node *v) {
  const Node *x = v->prim == P_VIEW ? v->in[0] : NULL;
  if (!x || x->rank == 0 || !same_dims(v, t->rank, t->ext)) return -1;
  int last = x->rank - 1;
  bool jumps = false;
  while (last > 0 && x->dims[last] == 1) last--;
  for (int d = 0; d < last; d++) jumps |= has_loop(&t->out[t->n_out - 1], &v->map[0][d], t->ext);
  const AffDim *m = &v->map[0][last];
  for (int a = 0; jumps && a < t->n_out - 1; a++)
    if (m->l1 < 0 && m->l0 == t->out[a].last && (m->c0 == 1 || m->c0 == -1) && m->div == 1)
      return a;
  return -1;
}

static bool only_maps(const Gen *g, const Nest *t) {
  return !t->red && !t->by_row && g->k->kind == K_LOOP && !g->gpu;
}

/* What is transposed into rows of a few elements (an image to channels last) goes by one loop over the rows, each of whose
 * iterations does a row: LLVM reads vectors along memory and interleaves them. */
static void plan_few(const Gen *g, Nest *t) {
  enum { FEW = 4 };
  if (!only_maps(g, t) || t->n_out < 2) return;
  Axis *row = &t->out[t->n_out - 2], *last = row + 1;
  if (last->ext > FEW) return;
  for (int i = 0; i < g->k->nodes.n && !t->few; i++)
    if (axis_across(t, g->k->nodes.v[i]) == t->n_out - 2) t->few = last->first;
  if (!t->few) return;
  t->n_few = last->ext;
  row->ext *= last->ext;
  row->last = last->last;
  t->n_out--;
}

/* A transposition of something large goes by small tiles, so that a line of memory that was read is used before it is lost. */
static void plan_tiles(const Gen *g, Nest *t) {
  t->across = -1;
  if (!only_maps(g, t) || !t->inner || t->few) return;
  for (int i = 0; i < g->k->nodes.n && t->across < 0; i++) {
    const Node *v = g->k->nodes.v[i];
    if (v->n_in && node_numel(v->in[0]) * dtype_info[v->in[0]->dtype].size >= LARGE)
      t->across = axis_across(t, v);
  }
  for (int64_t n = ACROSS / 2; n >= 4 && t->across >= 0 && !t->tile; n /= 2)
    if (t->out[t->across].ext % n == 0) t->tile = n;
  if (t->tile && t->block > ACROSS) t->block = ACROSS;
}

static int64_t blocks(int64_t n, int64_t size) { return (n + size - 1) / size; }

/* Blocks and tasks end where an index of dimension 0 does, if that costs them no more than half of their size. */
static void align_tasks(Nest *t) {
  const Axis *first = &t->out[0];
  if (!t->n_out || first->first != 0 || t->by_row || t->ext[0] < 2 || t->rows == 0) return;
  int64_t per = t->rows / t->ext[0], n = t->rows_per_task, step = t->few ? t->n_few : 1;
  if (t->n_out == 1 && t->inner) {
    per = first->ext / t->ext[0];
    if (t->n_block < 2 || per < t->block / 2) return;
    for (n = t->block; n > t->block / 2 && per % n; n -= step) {}
    if (per % n) return;
    t->block = n;
    t->n_block = t->rows = blocks(first->ext, n);
    return;
  }
  if (per < n) return;
  while (n > (t->rows_per_task + 1) / 2 && per % n) n--;
  if (per % n == 0) t->rows_per_task = n;
}

void nest_plan(Gen *g, int i, Nest *t) {
  bool row_by_row = g->part == LOOP_ROWS;
  *t = (Nest){.by_row = loop_is_epilogue(g->part) && !g->gpu};
  nest_roots(g, i, t);
  t->n_sums = product(t->rank, t->ext, t->red);
  t->unroll = t->red && !t->contract && t->n_sums > 0 && t->n_sums <= UNROLL && !row_by_row;
  nest_axes(g, t);
  plan_few(g, t);
  const Axis *last = t->n_out ? &t->out[t->n_out - 1] : NULL;
  t->columns = !t->unroll && !row_by_row && column_mode(g, t);
  t->inner = !g->gpu && last && (!t->red || t->unroll || t->columns);
  t->block = t->inner ? last->ext : 1;
  if (t->columns && t->block > 2 * COLUMNS) t->block = COLUMNS;
  if (!t->columns && t->block > CHUNK && !t->by_row)
    t->block = CHUNK - (t->few ? CHUNK % (64 * t->n_few) : 0);
  plan_tiles(g, t);
  t->n_block = t->inner ? blocks(last->ext, t->block ? t->block : 1) : 1;
  t->rows = t->n_block;
  for (int a = 0; a < t->n_out - t->inner; a++) t->rows *= t->out[a].ext;
  int64_t work = t->block * (t->n_sums ? t->n_sums : 1);
  t->rows_per_task = work >= CHUNK || row_by_row ? 1 : CHUNK / (work ? work : 1);
  if (!g->gpu && !row_by_row) align_tasks(t);
  t->tasks = t->by_row ? (t->n_out ? t->out[0].ext : 1) : blocks(t->rows, t->rows_per_task);
}

/* Tasks per index of dimension 0, 0: not so many each; points of a task, of the only loop or of the rows. */
static int64_t nest_item_tasks(const Nest *t, int64_t items, int64_t *points) {
  bool leads = t->n_out && t->out[0].first == 0 && !(t->red & 1), one = t->n_out == 1 && t->inner;
  int64_t all = one ? t->out[0].ext : t->rows;
  *points = one ? t->block : t->rows_per_task;
  return leads && items > 1 && all % items == 0 && all / items % *points == 0
             ? all / items / *points
             : 0;
}

/* Where in the results of an item, in elements, its point i lies. */
static int64_t point_at(const Nest *t, int64_t i) {
  bool one = t->n_out == 1 && t->inner;
  if (one) return i;
  int64_t last = t->inner ? t->out[t->n_out - 1].ext : 1, block = i % t->n_block * t->block;
  return i / t->n_block * last + (block < last ? block : last);
}

static bool nest_task_rows(const Nest *t, int64_t tasks, int64_t points, TaskRows *to) {
  int64_t row = 1;
  if (t->rank < 2 || t->red & 2 || t->tile) return false;
  for (int d = 2; d < t->rank; d++)
    if (!(t->red >> d & 1)) row *= t->ext[d];
  for (int64_t i = 0; i < tasks; i++)
    to[i] = (TaskRows){(int32_t)(point_at(t, i * points) / row),
                       (int32_t)((point_at(t, (i + 1) * points) + row - 1) / row)};
  return true;
}

/* Enough of a generator to plan with. */
static Gen *plan_only(Arena *a, const Kernel *k, LoopPart part) {
  Gen *g = arena_new_of(a, Gen);
  g->a = a;
  g->k = (Kernel *)k;
  g->part = part;
  return g;
}

int64_t loop_items(const Kernel *k, LoopPart part) {
  Arena *a = arena_scratch();
  Gen *g = plan_only(a, k, part);
  int64_t tasks = 0, per = 0, points;
  Stencil *stencil = stencil_plan(a, k, part);
  if (stencil) {
    tasks = stencil_tasks(stencil, part);
    per = stencil_item_tasks(stencil);
  } else if (nest_n(k, part) == 1) {
    Nest t;
    nest_plan(g, 0, &t);
    tasks = t.tasks;
    per = nest_item_tasks(&t, k->ext[0], &points);
  }
  arena_free(a);
  return per > 0 && per * k->ext[0] == tasks ? k->ext[0] : 0;
}

bool loop_rows(const Kernel *k, LoopPart part, TaskRows *to) {
  Arena *a = arena_scratch();
  Gen *g = plan_only(a, k, part);
  Stencil *stencil = stencil_plan(a, k, part);
  bool known;
  if (stencil)
    known = stencil_task_rows(stencil, to);
  else {
    Nest t;
    int64_t points, tasks;
    nest_plan(g, 0, &t);
    tasks = nest_item_tasks(&t, k->ext[0], &points);
    known = nest_task_rows(&t, tasks, points, to);
  }
  arena_free(a);
  return known;
}

int64_t loop_tasks(const Kernel *k, LoopPart part) {
  Arena *a = arena_scratch();
  Gen *g = plan_only(a, k, part);
  Stencil *stencil = stencil_plan(a, k, part);
  int64_t tasks = stencil ? stencil_tasks(stencil, part) : 0;
  for (int i = 0; !stencil && i < nest_n(k, part); i++) {
    Nest t;
    nest_plan(g, i, &t);
    tasks += t.tasks;
  }
  arena_free(a);
  return tasks;
}

int64_t loop_columns(const Kernel *k) {
  Arena *a = arena_scratch();
  Nest t;
  nest_plan(plan_only(a, k, LOOP_PANELS), 0, &t);
  int64_t columns = t.inner && !t.red && t.n_out == 2 ? t.out[1].ext : 0;
  arena_free(a);
  return columns;
}
