/* The kernels of a run: their buffers bound to memory, then run phase by phase on the pool, several of a chain item by item,
 * or handed to a device all at once.
 *
 * In: a Run whose executable and memory are there. Out: values in buffers, or the record of a check that failed. */
#include "run.h"
#include <string.h>

/* Kernels cheaper than this are not worth waking the pool; where others have done that, cheaper than the second not the wait. */
static const int64_t WAKE_COST_NS = 12000, WAIT_COST_NS = 5000;

static void check_failed(RunCtx *c, int64_t node, int64_t index, int64_t value) {
  /* Threads race for the record; the smallest (node, index) wins, so the message is the same each time. */
  CheckRecord *r = c->record;
  while (__atomic_exchange_n(&r->lock, 1, __ATOMIC_ACQUIRE)) {}
  if (!r->failed || node < r->node || (node == r->node && index < r->index))
    *r = (CheckRecord){.failed = 1, .node = node, .index = index, .value = value, .lock = 1};
  __atomic_store_n(&r->lock, 0, __ATOMIC_RELEASE);
}

static void *state_data(const Run *u, const StateUse *s) {
  if (s->write >= 0 && u->fresh[s->write].data &&
      tensor_bytes(&u->fresh[s->write]) == (size_t)s->buf->bytes)
    return u->fresh[s->write].data;
  return scope_data(u->scope, s->buf->name, u->device, s->layout, s->write >= 0, u->e->pool);
}

/* State is looked up when a kernel wants it, since what is kept may save that; but not while a run writes state, since it
 * must not fail then. */
static void bind_states(Run *u) {
  if (!u->device && !u->x->graph->writes.n && !u->e->opt.check_nan) return;
  for (int i = 0; i < u->x->n_states; i++)
    u->at[u->x->states[i].buf->id] = state_data(u, &u->x->states[i]);
}

void *buffer_address(Run *u, const Buffer *b) {
  const StateUse *s = u->x->use[b->id];
  if (!u->at[b->id] && s) u->at[b->id] = state_data(u, s);
  return u->at[b->id];
}

void bind_buffers(Run *u) {
  const Graph *g = u->x->graph;
  u->at = arena_array(u->e->tmp, void *, g->buffers.n + 1);
  for (int i = 0; i < g->buffers.n; i++) {
    const Buffer *b = g->buffers.v[i];
    switch (b->kind) {
    case B_ARENA: u->at[i] = u->e->memory + b->offset; break;
    case B_KEPT: u->at[i] = u->x->kept + b->offset; break;
    case B_DATA: u->at[i] = (void *)b->data; break;
    case B_FEED: u->at[i] = feed_value(u->req, b->name)->data; break;
    case B_STATE: break;
    case B_LOCAL: break; /* see place_locals */
    }
  }
  if (u->device) place_constants(u->x, u->at);
  bind_states(u);
}

/* Of a kernel, or of several that run item by item: then chain is the first one's code, and bufs are those of all, one
 * kernel's after the other's. */
typedef struct Phase {
  KernelFn *fn;
  const void *self;
  void **bufs;
  const Steps *of;
  const KernelCode *chain;
  const int *n_bufs; /* of a chain's kernels */
  int first, n_args; /* of a chain: its first kernel; all its buffers */
} Phase;

static void phase_share(void *user, int thread, int64_t begin, int64_t end) {
  const Phase *p = user;
  Run *u = p->of->run;
  size_t scratch = (size_t)u->x->scratch_bytes;
  RunCtx c = {.seed = u->seed,
              .step = u->step,
              .run = u->e->runs,
              .check_failed = check_failed,
              .scratch = u->e->scratch + (size_t)thread * scratch,
              .scratch_bytes = scratch,
              .record = &u->check};
  if (begin < end) p->fn(p->self, p->bufs, begin, end, &c);
}

/* Is what is kept made from the present state? Notes the versions from which it is being made otherwise. */
static bool is_kept(Run *u) {
  const Graph *g = u->x->graph;
  bool kept = true;
  if (!g->kept_bytes) return false;
  for (int i = 0; i < g->buffers.n; i++) {
    const Buffer *b = g->buffers.v[i];
    if (b->kind != B_STATE || b->written) continue;
    uint64_t now = scope_version(u->scope, b->name, NULL);
    kept &= u->x->seen[i] == now;
    u->x->seen[i] = now;
  }
  kept &= u->x->seen[g->buffers.n] != 0;
  u->x->seen[g->buffers.n] = kept; /* until the run has succeeded */
  if (!kept) kept_wait(u->x);
  return kept;
}

/* Its buffers, and all its phases but the last `less`. */
static void add_phases(Run *u, int i, int less) {
  Executable *x = u->x;
  Steps *all = u->steps;
  const KernelCode *c = &x->code[i];
  const Kernel *k = x->graph->kernels.v[i];
  bool prepared = u->kept && k->ws && k->ws->kind == B_KEPT && kept_holds(x, k->ws, u->e->pool);
  void **args = all->args + all->n_args;
  for (int j = 0; j < x->n_bufs[i]; j++) {
    args[j] = prepared && j == k->prepares - 1 ? NULL : buffer_address(u, x->bufs[i][j]);
    all->arg_of[all->n_args++] = x->bufs[i][j];
  }
  for (int j = prepared; j < c->n_phases - less; j++) {
    Phase *p = &all->phase[all->n];
    *p = (Phase){.fn = c->phase[j].fn, .self = c->phase[j].self, .bufs = args, .of = all};
    all->step[all->n++] = (PoolStep){phase_share, p, c->phase[j].n_tasks, c->cost < all->least};
  }
}

/* How many kernels from the i-th on run together, item by item. */
static int chain_length(const Run *u, int i) {
  const KernelCode *c = &u->x->code[i];
  return c->chain && c->items >= 2 * pool_threads(u->e->pool) ? c->chain : 1;
}

/* Points what is local at the thread's own memory, as if all items before this one stood there too. */
static void place_locals(const Phase *c, void **args, const uint8_t *memory, int64_t item) {
  const Executable *x = c->of->run->x;
  for (int i = 0, n = 0; i < c->chain->chain; n += c->n_bufs[i++])
    for (int j = 0; j < c->n_bufs[i]; j++) {
      const Buffer *b = x->bufs[c->first + i][j];
      if (b->kind == B_LOCAL)
        args[n + j] = (void *)(memory + b->offset - item * (b->bytes / c->chain->items));
    }
}

static void chain_share(void *user, int thread, int64_t begin, int64_t end) {
  const Phase *c = user;
  const Executable *x = c->of->run->x;
  const Executor *e = c->of->run->e;
  void **own = c->of->own + (size_t)thread * (size_t)c->n_args, **args[KL_CHAIN] = {own};
  double *seconds = c->of->seconds ? c->of->seconds + thread * KL_CHAIN : NULL;
  memcpy(own, c->bufs, sizeof *own * (size_t)c->n_args);
  for (int i = 1; i < c->chain->chain; i++) args[i] = args[i - 1] + c->n_bufs[i - 1];
  for (int64_t item = begin; item < end; item++) {
    place_locals(c, own, e->scratch + thread * x->scratch_bytes + x->locals_at, item);
    for (int i = 0; i < c->chain->n_steps; i++) {
      const ChainStep *s = &c->chain->steps[i];
      const KernelCode *k = &c->chain[s->kernel];
      int last = k->n_phases - 1;
      int64_t at = item * (k->phase[last].n_tasks / c->chain->items);
      Phase p = {.fn = k->phase[last].fn,
                 .self = k->phase[last].self,
                 .bufs = args[s->kernel],
                 .of = c->of};
      double t0 = seconds ? now_seconds() : 0;
      phase_share(&p, thread, at + s->begin, at + s->end);
      if (seconds) seconds[s->kernel] += now_seconds() - t0;
    }
  }
}

/* Divides the time since t0 among kernels that took turns, as the threads were busy with them. */
static void add_times(Run *u, int i, int n, double t0) {
  int counts = n > 1 ? pool_threads(u->e->pool) * KL_CHAIN : 0;
  double *seconds = u->steps->seconds;
  double each[KL_CHAIN] = {0}, all = 0, t = t0, wall = now_seconds() - t0;
  for (int j = 0; j < counts; j++) {
    each[j % KL_CHAIN] += seconds[j];
    all += seconds[j];
    seconds[j] = 0;
  }
  for (int j = 0; j < n; j++) {
    double part = all > 0 ? wall * each[j] / all : wall / n;
    profile_add(u->e->profile, u->x, i + j, t, t + part);
    t += part;
  }
}

static void add_kernels(Run *u, int i, int n) {
  Steps *all = u->steps;
  const KernelCode *c = &u->x->code[i];
  void **args = all->args + all->n_args;
  for (int j = i; j < i + n; j++) add_phases(u, j, n > 1);
  if (n == 1) return;
  Phase *p = &all->phase[all->n];
  *p = (Phase){.bufs = args, .of = all, .chain = c, .n_bufs = &u->x->n_bufs[i], .first = i};
  p->n_args = (int)(all->args + all->n_args - args);
  all->step[all->n++] = (PoolStep){chain_share, p, c->items, false};
}

bool report_check(const Executable *x, const CheckRecord *check, uint64_t step) {
  const Node *n = x->graph->nodes.v[check->node];
  const int64_t *c = n->ia;
  int64_t row = check->index;
  err_set((ErrCode)c[4], "value %lld at element %lld is outside %lld..%lld",
          (long long)check->value, (long long)row, (long long)c[0], (long long)c[1] - 1);
  err_note("the checked tensor is %s", shape_text(n->dtype, n->rank, n->dims));
  err_help("correct the data, or the number of classes or rows in the program");
  if (n->op) err_where("%s", op_text(n->op));
  err_where("step %llu", (unsigned long long)step);
  return false;
}

static void new_steps(Run *u) {
  const Executable *x = u->x;
  Arena *a = u->e->tmp;
  Steps *s = u->steps = arena_new_of(a, Steps);
  int n = 0, n_args = 0;
  s->least = WAKE_COST_NS;
  for (int i = 0; i < x->graph->kernels.n; i++) {
    if (!x->graph->kernels.v[i]->constant && x->code[i].cost >= WAKE_COST_NS)
      s->least = WAIT_COST_NS;
    n += x->code[i].n_phases + 1;
    n_args += x->n_bufs[i];
  }
  s->step = arena_array(a, PoolStep, n + 1);
  s->phase = arena_array(a, Phase, n + 1);
  s->stop = arena_array(a, int, x->graph->kernels.n + 1);
  s->args = arena_array(a, void *, n_args + 1);
  s->arg_of = arena_array(a, const Buffer *, n_args + 1);
  s->own = arena_array(a, void *, n_args *pool_threads(u->e->pool) + 1);
  if (u->e->profile) s->seconds = arena_array(a, double, pool_threads(u->e->pool) * KL_CHAIN);
  s->run = u;
}

static bool may_fail(const Kernel *k) {
  bool may = k->kind == K_CALL;
  for (int i = 0; i < k->nodes.n; i++) may |= k->nodes.v[i]->prim == P_CHECK;
  return may;
}

/* The steps up to the i-th stop. False: one of them has failed. */
static bool run_to_stop(Run *u, int i) {
  const Steps *s = u->steps;
  int from = i ? s->stop[i - 1] : 0;
  pool_run_steps(u->e->pool, s->stop[i] - from, s->step + from);
  return !u->check.failed && !err_any();
}

bool run_steps(Run *u) {
  Steps *s = u->steps;
  s->run = u;
  for (int i = 0; i < s->n_stops && run_to_stop(u, i); i++) {}
  return u->check.failed ? report_check(u->x, &u->check, u->step) : !err_any();
}

/* All up to a kernel that may fail are one job of the pool. Where each kernel is timed, or looks for what is kept on the disk, it
 * runs before the next one is looked at. */
static bool run_on_host(Run *u) {
  const Executable *x = u->x;
  const Graph *g = x->graph;
  Profile *profile = u->e->profile;
  bool singly = profile || x->unverified, ok = true;
  new_steps(u);
  Steps *s = u->steps;
  for (int i = 0, n; i < g->kernels.n && ok; i += n) {
    n = chain_length(u, i);
    bool stop = singly || i + n == g->kernels.n, skip = u->kept && g->kernels.v[i]->constant;
    double t0 = profile ? now_seconds() : 0;
    if (!skip) add_kernels(u, i, n);
    for (int j = i; j < i + n && !skip; j++) stop |= may_fail(g->kernels.v[j]);
    if (stop) s->stop[s->n_stops++] = s->n;
    if (singly) ok = run_to_stop(u, s->n_stops - 1);
    if (profile && !skip) add_times(u, i, n, t0);
  }
  if (singly) return u->check.failed ? report_check(x, &u->check, u->step) : !err_any();
  note_run(u);
  return run_steps(u);
}

static void add_time(void *user, int kernel, double seconds) {
  const Run *u = user;
  double now = now_seconds();
  profile_add(u->e->profile, u->x, kernel, now - seconds, now);
}

/* The same, all at once, with the copies of feeds, fetches and state. */
static bool run_on_device(Run *u) {
  const Graph *g = u->x->graph;
  DeviceCopy *in = arena_array(u->e->tmp, DeviceCopy, g->buffers.n + 1);
  DeviceCopy *out = arena_array(u->e->tmp, DeviceCopy, g->fetches.n + 1);
  DeviceRun r = {
      .at = u->at, .kept = u->kept, .seed = u->seed, .step = u->step, .in = in, .out = out};
  for (int i = 0; i < g->buffers.n; i++) {
    Buffer *b = g->buffers.v[i];
    if (b->kind == B_FEED) in[r.n_in++] = (DeviceCopy){b, u->at[i], (size_t)b->bytes};
  }
  for (int i = 0; i < g->fetches.n; i++)
    if (!is_same(u, i))
      out[r.n_out++] =
          (DeviceCopy){g->fetches.v[i].node->buf, u->out[i].data, tensor_bytes(&u->out[i])};
  if (u->e->profile) r.timed = add_time, r.user = u;
  r.later = u->later;
  if (u->later) late_reserve(u->e, r.n_out, g->fetches.n);
  bool ok = u->device->calls->run(u->x->module, &r, &u->check);
  u->x->plan.launches = r.launches;
  u->x->plan.graphs = r.graphs;
  u->x->plan.copies = r.copies;
  u->x->plan.calls = r.calls;
  if (ok && u->later) late_add(u->e, u->x, r.n_out, out, g->fetches.n, u->to, u->own, u->step);
  return ok && (!u->check.failed || report_check(u->x, &u->check, u->step));
}

bool run_kernels(Run *u) {
  u->kept = is_kept(u);
  if (!(u->device ? run_on_device(u) : run_on_host(u))) return false;
  u->x->seen[u->x->graph->buffers.n] = 1;
  return true;
}
