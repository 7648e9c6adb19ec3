/* Running programs: feeds checked, the executable found or compiled, memory bound, kernels run, results copied out.
 *
 * In: a program, a scope, feeds, names to fetch. Out: fetched tensors and the scope's new state. Executables are kept
 * per (program, edits, feed shapes, state shapes, fetches). State changes only if the run succeeds: the plan updates
 * state in place only after the last check, all memory is taken before the first kernel runs, and variables that are new
 * are put into the scope at the end. */
#include "internal.h"
#include <stdlib.h>
#include <string.h>

/* What a program leaves in memory for the shapes that it has run with, most recently used first: so many executables, and so
 * many bytes of their plans; and so many bytes of what they keep from run to run (packed filters, for one), which the others
 * make again. The one that runs counts, but is never limited. */
enum { CACHED_EXECUTABLES = 512, CACHED_SECTIONS = 1024 };
static const int64_t CACHED_BYTES = (int64_t)512 << 20, KEPT_BYTES = (int64_t)256 << 20;
static const int64_t INLINE_COST_NS =
    12000; /* kernels cheaper than this are not worth waking the pool */

Executor *exec_new(const ExecOptions *o) {
  Executor *e = mem_alloc(sizeof *e);
  MemGuard guard;
  if (MEM_GUARD(guard)) {
    exec_free(e);
    mem_rethrow();
  }
  if (o) e->opt = *o;
  e->arena = arena_new();
  e->pool = pool_new(e->opt.threads);
  if (e->opt.profile || e->opt.trace) e->profile = profile_new(e->opt.trace != NULL);
  bool ok = device_find(e->opt.device, &e->device) &&
            device_target(e->arena, e->device, e->opt.math, &e->target);
  if (ok && e->device && e->opt.interpret)
    ok = err_set(E_ARG_001, "the interpreter runs on the CPU, not on %s", e->device->name);
  ok = ok && choose_by(&e->opt, &(CompileRequest){0});
  mem_unguard(&guard);
  if (ok) return e;
  exec_free(e);
  return NULL;
}

static void write_trace(Executor *e) {
  MemGuard guard;
  if (MEM_GUARD(guard)) return;
  profile_write_trace(e->profile, e->opt.trace);
  mem_unguard(&guard);
}

void exec_free(Executor *e) {
  if (!e) return;
  late_forget(e);
  for (int i = 0; i < DEVICE_LATE; i++) arena_free(e->late[i].arena);
  if (e->profile && e->opt.trace) write_trace(e);
  profile_free(e->profile);
  for (Executable *x = e->cache, *next; x; x = next) {
    next = x->next;
    executable_free(x);
  }
  control_forget(e);
  pool_free(e->pool);
  arena_free(e->tmp);
  arena_free(e->arena);
  place_free(e->device, e->memory);
  mem_free(e->scratch);
  if (e->device) e->device->calls->close(e->device);
  mem_free(e);
}

ExecOptions *exec_options(Executor *e) { return &e->opt; }
uint64_t exec_step(const Executor *e) { return e->step; }
int exec_compiled(const Executor *e) { return e->compiled; }
void exec_set_step(Executor *e, uint64_t step) { e->step = step; }
PlanInfo exec_last_plan(const Executor *e) { return e->last ? e->last->plan : (PlanInfo){0}; }
void exec_profile_print(const Executor *e, const Roof *roof, FILE *to, bool json) {
  if (e->profile) profile_print(e->profile, roof, to, json);
}

void exec_profile_clear(Executor *e) {
  if (!e->profile || e->opt.trace) return;
  profile_free(e->profile);
  e->profile = NULL;
  e->profile = profile_new(false);
}

double exec_bound(const Executor *e, const Roof *roof) {
  double sum = 0;
  const Graph *g = e->last ? e->last->graph : NULL;
  for (int i = 0; g && i < g->kernels.n; i++)
    sum += roof_seconds(roof, (double)g->kernels.v[i]->flops, (double)g->kernels.v[i]->bytes);
  return sum;
}

/* ---- feeds ---- */

static bool check_feed(const Program *p, const Feed *f) {
  const Block *b = p->blocks.v[0];
  const Var *v = block_var(b, f->name);
  const Tensor *t = f->value;
  if (!v) {
    err_set(E_DAT_001, "%s is fed, but the program has no such variable", quoted(f->name));
    Arena *a = arena_scratch();
    const char **names = arena_array(a, const char *, b->vars.n + 1);
    for (int i = 0; i < b->vars.n; i++) names[i] = b->vars.v[i]->name;
    const char *near = name_nearest(f->name, b->vars.n, names);
    if (near) err_help("did you mean %s?", quoted(near));
    arena_free(a);
    return false;
  }
  if (!t || (!t->data && tensor_numel(t) > 0))
    return err_set(E_DAT_001, "feed %s has no data", quoted(f->name));
  bool fits = v->dtype == DT_NONE || t->dtype == v->dtype;
  bool rank_fits = t->rank == v->rank;
  for (int i = 0; rank_fits && i < t->rank; i++)
    rank_fits = v->dims[i] < 0 || v->dims[i] == t->dims[i];
  if (fits && rank_fits) return true;
  err_set(E_DAT_001, "feed %s is %s, the program wants %s", quoted(f->name),
          shape_text(t->dtype, t->rank, t->dims), shape_text(v->dtype, v->rank, v->dims));
  err_help(fits ? "reshape the data; -1 stands for any size" : "convert the data to %s",
           dtype_info[v->dtype].name);
  return false;
}

/* Offsets of the sequences of another feed, or of its sequences: from 0 to its rows, not decreasing. */
static bool check_lod(int n, const Feed *feeds, const Feed *f) {
  size_t base = strlen(f->name) - strlen(LOD_SUFFIX);
  const Feed *of = NULL;
  for (int i = 0; i < n; i++)
    if (strlen(feeds[i].name) == base && !memcmp(feeds[i].name, f->name, base)) of = &feeds[i];
  int64_t rows = of && of->value->rank > 0 ? of->value->dims[0] - feed_is_lod(of) : -1;
  if (rows >= 0 && lod_fits(f->value, rows)) return true;
  err_set(E_DAT_001, "feed %s is not the offsets of sequences", quoted(f->name));
  err_help("Feed an int64 vector that starts with 0, does not decrease, and ends with the rows of "
           "the variable, fed too.");
  return false;
}

static bool check_feeds(const Program *p, int n, const Feed *feeds) {
  for (int i = 0; i < n; i++) {
    if (feed_is_lod(&feeds[i]) ? !check_lod(n, feeds, &feeds[i]) : !check_feed(p, &feeds[i]))
      return false;
    for (int j = 0; j < i; j++)
      if (!strcmp(feeds[i].name, feeds[j].name))
        return err_set(E_DAT_001, "%s is fed twice", quoted(feeds[i].name));
  }
  return true;
}

/* ---- finding the executable ---- */

static char *make_key(Arena *a, const Executor *e, const CompileRequest *r) {
  Str s;
  str_init(&s, a);
  str_fmt(&s, "%llu.%llu.%d.%lld.%a.%d", (unsigned long long)r->prog->id,
          (unsigned long long)r->prog->edits, e->opt.no_blas, (long long)e->opt.memory_budget,
          r->conv_error, r->tuning);
  for (int i = 0; i < r->n_feeds; i++) {
    const Tensor *t = r->feeds[i].value;
    str_fmt(&s, "|%s:%d", r->feeds[i].name, t->dtype);
    for (int d = 0; d < t->rank; d++) str_fmt(&s, ",%lld", (long long)t->dims[d]);
    for (int64_t k = 0; feed_is_lod(&r->feeds[i]) && k < tensor_numel(t); k++)
      str_fmt(&s, ";%lld", (long long)((const int64_t *)t->data)[k]);
  }
  str_add(&s, "|>");
  for (int i = 0; i < r->n_fetch; i++) str_fmt(&s, "|%s", r->fetch[i]);
  return s.s;
}

/* Has the state in the scope the types and shapes that the executable was compiled for? */
static bool state_fits(const Executable *x, Scope *s) {
  if (x->lods != scope_lods(s)) return false;
  for (int i = 0; i < x->graph->nodes.n; i++) {
    const Node *n = x->graph->nodes.v[i];
    if (n->prim != P_STATE) continue;
    Tensor t;
    if (!scope_shape(s, n->s, &t) || t.dtype != n->dtype || t.rank != n->rank) return false;
    t = tensor_layout(&t, n->n_ia ? n->ia : NULL);
    if (memcmp(t.dims, n->dims, sizeof *t.dims * (size_t)t.rank)) return false;
  }
  return true;
}

static void drop_kept(Executable *x) {
  kept_drop(x);
  x->seen[x->graph->buffers.n] = 0;
}

static void limit(Executable **list, int most) {
  int n = 1;
  bool dropped = false;
  Executable *first = *list;
  int64_t bytes = (int64_t)first->bytes, kept = first->graph->kept_bytes;
  for (Executable **link = &first->next, *x; (x = *link);) {
    bytes += (int64_t)x->bytes;
    if (++n > most || bytes > CACHED_BYTES) {
      *link = x->next;
      executable_free(x);
      dropped = true;
      continue;
    }
    if (x->kept && (kept += x->graph->kept_bytes) > KEPT_BYTES) {
      drop_kept(x);
      dropped = true;
    }
    link = &x->next;
  }
  if (dropped) mem_trim();
}

static Executable *find_executable(Executor *e, const CompileRequest *r) {
  char *key = make_key(e->tmp, e, r);
  for (Executable **link = &e->cache; *link; link = &(*link)->next) {
    Executable *x = *link;
    if (strcmp(x->key, key)) continue;
    bool fits = state_fits(x, r->scope);
    if (!fits && !exec_finish(e, 0)) return NULL;
    *link = x->next;
    if (!fits) {
      executable_free(x);
      break;
    }
    x->next = e->cache;
    return e->cache = x;
  }
  Executable *x = exec_finish(e, 0) ? compile(r) : NULL; /* others may have to go */
  if (!x) return NULL;
  x->key = "";
  x->next = e->cache;
  e->cache = x;
  x->key = arena_str(x->arena, key);
  limit(&e->cache, CACHED_EXECUTABLES);
  e->compiled++;
  return x;
}

/* ---- the same for sections, which run often: no text is made of the shapes ---- */

static bool same_shape(const Tensor *a, const Tensor *b) {
  return a->dtype == b->dtype && a->rank == b->rank &&
         !memcmp(a->dims, b->dims, sizeof *a->dims * (size_t)a->rank);
}

/* Is it compiled for the value of a feed? For offsets of sequences that nobody has looked at not even for the shape. */
static bool is_compiled_in(const Executable *x, const CompileRequest *r, int i, bool lod) {
  return lod ? x->graph->lods_read && map_get(x->graph->lods_read, r->feeds[i].name) : r->known[i];
}

/* Offsets of sequences follow the other feeds: the same inputs must have some. */
static bool feeds_fit(const Executable *x, const CompileRequest *r) {
  if (x->n_feeds != r->n_feeds) return false;
  for (int i = 0; i < r->n_feeds; i++) {
    const Tensor *t = r->feeds[i].value;
    bool lod = i >= r->n_inputs, compiled = is_compiled_in(x, r, i, lod);
    if (lod && !map_get(x->lod_feeds, r->feeds[i].name)) return false;
    if (lod && !compiled) continue;
    if (!same_shape(t, &x->feeds[i])) return false;
    if (compiled && memcmp(t->data, x->feeds[i].data, tensor_bytes(t))) return false;
  }
  return true;
}

static void note_feeds(Executable *x, const CompileRequest *r) {
  x->feeds = arena_array(x->arena, Tensor, r->n_feeds + 1);
  x->lod_feeds = map_new(x->arena);
  x->n_feeds = r->n_feeds;
  for (int i = 0; i < r->n_feeds; i++) {
    bool lod = i >= r->n_inputs;
    x->feeds[i] = *r->feeds[i].value;
    if (lod) map_put(x->lod_feeds, arena_str(x->arena, r->feeds[i].name), x);
    if (is_compiled_in(x, r, i, lod))
      x->feeds[i].data = arena_dup(x->arena, x->feeds[i].data, tensor_bytes(&x->feeds[i]));
  }
}

/* Results that are an input, or the same as an earlier result, need not be copied. */
static void note_same(Executable *x) {
  const Graph *g = x->graph;
  x->same = arena_array(x->arena, Same, g->fetches.n + 1);
  for (int i = 0; i < g->fetches.n; i++) {
    const Node *n = g->fetches.v[i].node;
    x->same[i] = (Same){-1, n->prim == P_FEED ? n->s : NULL, g->fetch_lods[i]};
    for (int j = 0; j < i && x->same[i].result < 0; j++)
      if (g->fetches.v[j].node == n) x->same[i].result = j;
  }
}

static Executable *find_section(const CompileRequest *r, Executable **list) {
  for (Executable **link = list; *link; link = &(*link)->next) {
    Executable *x = *link;
    if (!feeds_fit(x, r)) continue;
    *link = x->next;
    if (!state_fits(x, r->scope)) {
      executable_free(x);
      break;
    }
    x->next = *list;
    return *list = x;
  }
  Executable *x = compile(r);
  if (!x) return NULL;
  x->next = *list;
  *list = x;
  x->key = "";
  note_feeds(x, r);
  note_same(x);
  limit(list, CACHED_SECTIONS);
  return x;
}

/* ---- running ---- */

typedef struct Run {
  Executor *e;
  Device *device; /* NULL: the host */
  Executable *x;
  Scope *scope;
  const CompileRequest *req;
  Executable **list; /* of a section: those made for it */
  const Same *same;  /* of its results */
  void **at;         /* address per buffer id */
  void **args;       /* of the kernels that run */
  int n_state;       /* states written */
  Tensor *fresh;     /* of each: data of mem_alloc if the scope's own tensor does not do */
  int n_fetch;
  Tensor *out; /* fetched */
  bool *own;   /* of each: its data is new */
  bool kept;   /* constant kernels need not run */
  bool later;  /* results are looked at by exec_finish */
  Tensor *to;  /* the caller's */
  CheckRecord check;
  uint64_t seed, step;
} Run;

static void check_failed(RunCtx *c, int64_t node, int64_t index, int64_t value) {
  /* Threads race for the record; the smallest (node, index) wins, so the message is the same each time. */
  CheckRecord *r = c->record;
  while (__atomic_exchange_n(&r->lock, 1, __ATOMIC_ACQUIRE)) {}
  if (!r->failed || node < r->node || (node == r->node && index < r->index))
    *r = (CheckRecord){.failed = 1, .node = node, .index = index, .value = value, .lock = 1};
  __atomic_store_n(&r->lock, 0, __ATOMIC_RELEASE);
}

static void ensure_memory(Device *d, uint8_t **p, size_t *have, size_t want) {
  if (*have >= want) return;
  place_free(d, *p);
  *p = NULL;
  *have = 0;
  *p = place_take(d, want);
  *have = want;
}

static Tensor shape_of(const Node *n) {
  Tensor t = {.dtype = n->dtype, .rank = n->rank};
  memcpy(t.dims, n->dims, sizeof *t.dims * (size_t)n->rank);
  return t;
}

static const Tensor *feed_value(const CompileRequest *r, const char *name) {
  for (int i = 0; i < r->n_feeds; i++)
    if (!strcmp(r->feeds[i].name, name)) return r->feeds[i].value;
  return NULL;
}

static bool is_same(const Run *u, int i) {
  return u->same && (u->same[i].feed || u->same[i].result >= 0);
}

/* Memory for what the graph fetches and for state that is new or gets another size. */
static void take_memory(Run *u, const Graph *g, const Tensor *out) {
  Arena *a = u->e->tmp;
  u->fresh = arena_array(a, Tensor, g->writes.n + 1);
  u->out = arena_array(a, Tensor, g->fetches.n + 1);
  u->own = arena_array(a, bool, g->fetches.n + 1);
  for (; u->n_state < g->writes.n; u->n_state++) {
    const NamedNode *w = &g->writes.v[u->n_state];
    Tensor *t = &u->fresh[u->n_state];
    *t = shape_of(w->node);
    int64_t back[KL_VAR_RANK];
    layout_inverse(t->rank, w->layout, back);
    *t = tensor_layout(t, back);
    Tensor old;
    if (scope_shape(u->scope, w->name, &old) && tensor_bytes(&old) == tensor_bytes(t)) continue;
    scope_reserve(u->scope, w->name);
    t->data = place_take(u->device, tensor_bytes(t) + 64);
  }
  for (; u->n_fetch < g->fetches.n; u->n_fetch++) {
    const Tensor *to = &out[u->n_fetch];
    Tensor *t = &u->out[u->n_fetch];
    *t = shape_of(g->fetches.v[u->n_fetch].node);
    if (is_same(u, u->n_fetch)) continue;
    bool fits = to->data && to->dtype == t->dtype && tensor_bytes(to) == tensor_bytes(t);
    t->data = fits ? to->data : mem_take(tensor_bytes(t) + 1);
    u->own[u->n_fetch] = !fits;
  }
}

/* After a failure. */
static void give_back(Run *u) {
  for (int i = 0; i < u->n_state; i++) place_free(u->device, u->fresh[i].data);
  for (int i = 0; i < u->n_fetch; i++)
    if (u->own[i]) mem_free(u->out[i].data);
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

static void *address(Run *u, const Buffer *b) {
  const StateUse *s = u->x->use[b->id];
  if (!u->at[b->id] && s) u->at[b->id] = state_data(u, s);
  return u->at[b->id];
}

static void bind_buffers(Run *u) {
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
    }
  }
  if (u->device) place_constants(u->x, u->at);
  bind_states(u);
  int most = 0;
  for (int i = 0, sum = 0; i < g->kernels.n; i++) {
    sum = g->kernels.v[i]->chained && !g->kernels.v[i]->chain ? sum : 0;
    sum += u->x->n_bufs[i];
    if (sum > most) most = sum;
  }
  u->args = arena_array(u->e->tmp, void *, most + 1);
}

typedef struct Phase {
  KernelFn *fn;
  const void *self;
  void *const *bufs;
  Run *run;
} Phase;

static void phase_share(void *user, int thread, int64_t begin, int64_t end) {
  const Phase *p = user;
  Executor *e = p->run->e;
  RunCtx c = {.seed = p->run->seed,
              .step = p->run->step,
              .check_failed = check_failed,
              .scratch = e->scratch + (size_t)thread * (size_t)p->run->x->scratch_bytes,
              .scratch_bytes = (size_t)p->run->x->scratch_bytes,
              .record = &p->run->check};
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
  return kept;
}

/* Its buffers, and all its phases but the last `less`. */
static void run_phases(Run *u, int i, void **args, int less) {
  Executable *x = u->x;
  const KernelCode *c = &x->code[i];
  const Kernel *k = x->graph->kernels.v[i];
  bool prepared = u->kept && k->ws && k->ws->kind == B_KEPT && kept_holds(x, k->ws, u->e->pool);
  for (int j = 0; j < x->n_bufs[i]; j++)
    args[j] = prepared && j == k->prepares - 1 ? NULL : address(u, x->bufs[i][j]);
  for (int j = prepared; j < c->n_phases - less; j++) {
    Phase p = {c->phase[j].fn, c->phase[j].self, args, u};
    if (c->cost < INLINE_COST_NS)
      pool_run_here(c->phase[j].n_tasks, phase_share, &p);
    else
      pool_run(u->e->pool, c->phase[j].n_tasks, phase_share, &p);
  }
}

/* How many kernels from the i-th on run together, item by item. Where each is timed for itself none do. */
static int chain_length(const Run *u, int i) {
  const KernelCode *c = &u->x->code[i];
  bool alone = !c->chain || u->e->profile || c->items < 2 * pool_threads(u->e->pool);
  return alone ? 1 : c->chain;
}

typedef struct Chain {
  Run *run;
  int first;
  const KernelCode *code; /* of the first */
} Chain;

static void chain_share(void *user, int thread, int64_t begin, int64_t end) {
  const Chain *c = user;
  const Executable *x = c->run->x;
  void **args[KL_CHAIN] = {c->run->args};
  for (int i = 1; i < c->code->chain; i++) args[i] = args[i - 1] + x->n_bufs[c->first + i - 1];
  for (int64_t item = begin; item < end; item++)
    for (int i = 0; i < c->code->n_steps; i++) {
      const ChainStep *s = &c->code->steps[i];
      const KernelCode *k = &c->code[s->kernel];
      int last = k->n_phases - 1;
      int64_t at = item * (k->phase[last].n_tasks / c->code->items);
      Phase p = {k->phase[last].fn, k->phase[last].self, args[s->kernel], c->run};
      phase_share(&p, thread, at + s->begin, at + s->end);
    }
}

static void run_chain(Run *u, int i, int n) {
  Chain c = {u, i, &u->x->code[i]};
  void **args = u->args;
  for (int j = i; j < i + n; args += u->x->n_bufs[j++]) run_phases(u, j, args, n > 1);
  if (n > 1) pool_run(u->e->pool, c.code->items, chain_share, &c);
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

static bool run_on_host(Run *u) {
  Executable *x = u->x;
  Executor *e = u->e;
  for (int i = 0, n; i < x->graph->kernels.n; i += n) {
    n = chain_length(u, i);
    if (u->kept && x->graph->kernels.v[i]->constant) continue;
    double t0 = e->profile ? now_seconds() : 0;
    run_chain(u, i, n);
    if (e->profile) profile_add(e->profile, x, i, t0, now_seconds());
    if (u->check.failed || err_any()) break; /* a custom operator may fail */
  }
  return !err_any();
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
  return ok;
}

static bool run_kernels(Run *u) {
  u->kept = is_kept(u);
  if (!(u->device ? run_on_device(u) : run_on_host(u))) return false;
  if (u->check.failed) return report_check(u->x, &u->check, u->step);
  u->x->seen[u->x->graph->buffers.n] = 1;
  return true;
}

/* Reshapes share their operand's buffer, so a node's value is found at its buffer whatever its shape. */
static Tensor node_tensor(Run *u, const Node *n) {
  Tensor t = shape_of(n);
  t.data = address(u, n->buf);
  if (!u->device || n->buf->kind == B_FEED) return t;
  t.data = arena_alloc(u->e->tmp, tensor_bytes(&t));
  place_get(u->device, t.data, u->at[n->buf->id], tensor_bytes(&t));
  return t;
}

/* Everything is there: what was fetched goes out, state that is new or has another size or shape enters the scope. */
static void hand_over(Run *u, const Graph *g, Tensor *out) {
  for (int i = 0; i < g->fetches.n; i++) out[i] = u->out[i];
  for (int i = 0; i < g->writes.n; i++) {
    Tensor *t = &u->fresh[i];
    const NamedNode *w = &g->writes.v[i];
    if (!t->data) t->data = scope_data(u->scope, w->name, u->device, w->layout, true, NULL);
    scope_give(u->scope, w->name, t, u->device, w->layout);
  }
}

static bool finish(Run *u, Tensor *out) {
  const Graph *g = u->x->graph;
  for (int i = 0; !u->device && i < g->fetches.n; i++)
    if (!is_same(u, i))
      memcpy(u->out[i].data, address(u, g->fetches.v[i].node->buf), tensor_bytes(&u->out[i]));
  for (int i = 0; !u->device && i < g->copies.n; i++) {
    const ExitCopy *c = &g->copies.v[i];
    memcpy(u->at[c->to->id], u->at[c->from->id], (size_t)c->to->bytes);
  }
  hand_over(u, g, out);
  return true;
}

/* ---- NaN checks ---- */

static Tensor *env_lookup(void *user, const char *name, bool state) {
  Run *u = user;
  return (Tensor *)(uintptr_t)(state ? scope_get(u->scope, name) : feed_value(u->req, name));
}

/* State as it was before a run that may have to be undone. */
static void **save_state(Run *u) {
  const Graph *g = u->x->graph;
  void **saved = arena_array(u->e->tmp, void *, g->buffers.n + 1);
  for (int i = 0; i < g->buffers.n; i++) {
    const Buffer *b = g->buffers.v[i];
    if (b->kind != B_STATE) continue;
    saved[i] = arena_alloc(u->e->tmp, (size_t)b->bytes);
    place_get(u->device, saved[i], u->at[i], (size_t)b->bytes);
  }
  return saved;
}

static bool check_finite(Run *u, void **saved) {
  const Graph *g = u->x->graph;
  const char *bad = NULL;
  for (int i = 0; i < g->fetches.n && !bad; i++) {
    Tensor t = node_tensor(u, g->fetches.v[i].node);
    if (!tensor_finite(&t, NULL)) bad = g->fetches.v[i].name;
  }
  for (int i = 0; i < g->writes.n && !bad; i++) {
    Tensor t = node_tensor(u, g->writes.v[i].node);
    if (!tensor_finite(&t, NULL)) bad = g->writes.v[i].name;
  }
  if (!bad) return true;
  for (int i = 0; i < g->buffers.n; i++)
    if (saved[i]) place_put(u->device, u->at[i], saved[i], (size_t)g->buffers.v[i]->bytes);
  EvalEnv env = {.lookup = env_lookup, .user = u, .seed = u->seed, .step = u->step};
  return find_not_finite(u->req, &env, bad);
}

/* ---- the interpreter instead of generated code ---- */

static const Lod *copy_lod(Arena *a, const Lod *from) {
  const Lod *first = NULL, **to = &first;
  for (; from; from = from->up) {
    Lod *l = arena_new_of(a, Lod);
    *l = *from;
    l->offset = arena_dup(a, from->offset, sizeof *from->offset * (size_t)(from->n + 1));
    l->from = from->from ? arena_str(a, from->from) : NULL;
    *to = l;
    to = &l->up;
  }
  return first;
}

/* All results are copied. */
static const Same *own_results(const Graph *g, Arena *a) {
  Same *s = arena_array(a, Same, g->fetches.n + 1);
  for (int i = 0; i < g->fetches.n; i++) s[i] = (Same){-1, NULL, copy_lod(a, g->fetch_lods[i])};
  return s;
}

static bool run_interpreted(Run *u, Tensor *out) {
  Graph *g;
  if (!expand_request(u->req, &g)) return false;
  EvalEnv env = {.lookup = env_lookup, .user = u, .seed = u->seed, .step = u->step};
  Tensor **values = arena_array(u->e->tmp, Tensor *, g->nodes.n);
  bool ok = true;
  if (u->e->opt.check_nan) ok = find_not_finite(u->req, &env, NULL);
  if (ok) take_memory(u, g, out);
  ok = ok && graph_eval(g, &env, u->e->tmp, values);
  for (int i = 0; ok && i < g->fetches.n; i++)
    memcpy(u->out[i].data, values[g->fetches.v[i].node->id]->data, tensor_bytes(&u->out[i]));
  /* A new value may be another variable's old one: all are read before any is replaced. */
  void **kept = arena_array(u->e->tmp, void *, g->writes.n + 1);
  for (int i = 0; ok && i < g->writes.n; i++)
    kept[i] =
        arena_dup(u->e->tmp, values[g->writes.v[i].node->id]->data, tensor_bytes(&u->fresh[i]));
  for (int i = 0; ok && i < g->writes.n; i++) {
    void *to = u->fresh[i].data;
    if (!to) to = scope_data(u->scope, g->writes.v[i].name, NULL, NULL, true, NULL);
    memcpy(to, kept[i], tensor_bytes(&u->fresh[i]));
  }
  if (ok) hand_over(u, g, out);
  if (ok && u->list) u->same = own_results(g, u->e->tmp);
  graph_free(g);
  return ok;
}

static bool run_compiled(Run *u, Tensor *out) {
  Executor *e = u->e;
  e->last = NULL;
  Executable *x = u->x = u->list ? find_section(u->req, u->list) : find_executable(e, u->req);
  bool other = e->n_late && (u->list || e->late[0].x != x);
  if (!x || (other && !exec_finish(e, 0))) return false;
  e->last = x;
  u->same = x->same;
  ensure_memory(u->device, &e->memory, &e->memory_bytes, (size_t)x->graph->arena_bytes + 64);
  ensure_memory(NULL, &e->scratch, &e->scratch_bytes,
                (size_t)x->scratch_bytes * (size_t)pool_threads(e->pool) + 64);
  if (!x->kept && x->graph->kept_bytes) {
    limit(u->list ? u->list : &e->cache, u->list ? CACHED_SECTIONS : CACHED_EXECUTABLES);
    kept_take(x, u->scope, e->pool);
  }
  take_memory(u, x->graph, out);
  bind_buffers(u);
  void **saved = e->opt.check_nan ? save_state(u) : NULL;
  u->later &= u->device && !saved && !e->profile;
  for (int i = 0; i < u->n_state; i++) u->later &= !u->fresh[i].data;
  if (!run_kernels(u) || (saved && !check_finite(u, saved)) || !finish(u, out)) return false;
  if (x->kept) kept_made(x, u->scope, e->pool);
  return true;
}

static bool has_updates(const Program *p) {
  const Block *b = p->blocks.v[0];
  for (int i = b->ops.n - 1; i >= 0; i--)
    if (op_role(b->ops.v[i]) & (ROLE_BACKWARD | ROLE_OPTIMIZE)) return true;
  return false;
}

/* Everything that may run out of memory; what has been taken by then is in u. */
static bool run(Run *u, Tensor *out) {
  MemGuard guard;
  if (MEM_GUARD(guard)) return false;
  Executor *e = u->e;
  arena_free(e->tmp);
  e->tmp = NULL;
  e->tmp = arena_new();
  const CompileRequest *r = u->req;
  bool ok = (u->list || check_feeds(r->prog, r->n_feeds, r->feeds)) &&
            (e->opt.interpret ? run_interpreted(u, out) : run_compiled(u, out));
  mem_unguard(&guard);
  return ok;
}

bool run_section(Executor *e, const CompileRequest *r, Executable **list, uint64_t seed,
                 Tensor *out, const Same **same) {
  Run u = {.e = e,
           .device = r->device,
           .scope = r->scope,
           .req = r,
           .list = list,
           .seed = seed,
           .step = e->step};
  bool ok = run(&u, out);
  if (!ok) give_back(&u);
  *same = u.same;
  return ok;
}

static bool run_parts(Run *u, Tensor *out) {
  MemGuard guard;
  if (MEM_GUARD(guard)) return false;
  const CompileRequest *r = u->req;
  bool ok = check_feeds(r->prog, r->n_feeds, r->feeds) && control_run(u->e, r, u->seed, out);
  mem_unguard(&guard);
  return ok;
}

/* A program with control flow, or one in which a shape is computed from data, runs in parts. */
static bool run_whole(Run *u, Tensor *out) {
  Executor *e = u->e;
  Wanted wanted = {0};
  CompileRequest r = *u->req;
  r.wanted = &wanted;
  u->req = &r;
  bool parts = control_plans(e, r.prog) || program_has_host_ops(r.prog);
  bool ok = !parts && run(u, out);
  if (!ok && !parts && err_any() && err_get()->code == E_OPR_006) {
    give_back(u);
    u->n_state = u->n_fetch = 0;
    err_clear();
    parts = true;
  }
  if (parts) ok = run_parts(u, out);
  u->req = NULL;
  return ok;
}

static bool start(Executor *e, Scope *s, const Program *p, int n_feeds, const Feed *feeds,
                  int n_fetch, const char *const *fetch, Tensor *out, bool later) {
  CompileRequest req = {.prog = p,
                        .scope = s,
                        .n_feeds = n_feeds,
                        .feeds = feeds,
                        .n_fetch = n_fetch,
                        .fetch = fetch,
                        .no_blas = e->opt.no_blas,
                        .memory_budget = e->opt.memory_budget,
                        .target = e->target,
                        .device = e->opt.interpret ? NULL : e->device};
  if (!choose_by(&e->opt, &req)) return false;
  PassOptions words = {0};
  if (e->opt.debug && pass_options_parse(&words, e->opt.debug)) req.passes = &words;
  uint64_t seed = e->opt.seed ? e->opt.seed : (uint64_t)p->seed;
  Run u = {.e = e,
           .device = req.device,
           .scope = s,
           .req = &req,
           .seed = seed,
           .step = e->step,
           .later = later,
           .to = out};
  bool ok = !err_any() && run_whole(&u, out);
  if (ok && has_updates(p)) e->step++;
  if (!ok) give_back(&u);
  if (!ok && p->file) err_where("%s", p->file);
  return ok;
}

bool exec_run(Executor *e, Scope *s, const Program *p, int n_feeds, const Feed *feeds, int n_fetch,
              const char *const *fetch, Tensor *out) {
  return exec_finish(e, 0) && start(e, s, p, n_feeds, feeds, n_fetch, fetch, out, false);
}

bool exec_start(Executor *e, Scope *s, const Program *p, int n_feeds, const Feed *feeds,
                int n_fetch, const char *const *fetch, Tensor *out) {
  return exec_finish(e, DEVICE_LATE - 1) &&
         start(e, s, p, n_feeds, feeds, n_fetch, fetch, out, true);
}
