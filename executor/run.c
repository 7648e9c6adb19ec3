/* Running programs: feeds checked, the executable found or compiled (executables.c), memory taken, kernels run (kernels.c),
 * results copied out; or interpreted; or, with control flow, in parts (control.c).
 *
 * In: a program, a scope, feeds, names to fetch. Out: fetched tensors and the scope's new state. State changes only if the
 * run succeeds: the plan updates state in place only after the last check, all memory is taken before the first kernel runs,
 * and variables that are new are put into the scope at the end. */
#include "run.h"
#include <stdlib.h>
#include <string.h>

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
uint64_t mix_seed(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
  x = (x ^ x >> 27) * 0x94d049bb133111ebu;
  return x ^ x >> 31;
}

void exec_set_step(Executor *e, uint64_t step) {
  e->step = step;
  e->draws = 0;
}
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
    block_suggest(b, f->name);
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

/* ---- memory ---- */

static void ensure_memory(Device *d, uint8_t **p, size_t *have, size_t want) {
  if (*have >= want) return;
  if (!d) want = mem_whole_pages(want);
  place_free(d, *p);
  *p = NULL;
  *have = 0;
  *p = place_take(d, want);
  *have = want;
}

void take_results(Run *u, const Graph *g, const Tensor *out) {
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
  take_results(u, g, out);
}

void give_back(Run *u) {
  for (int i = 0; i < u->n_state; i++) place_free(u->device, u->fresh[i].data);
  for (int i = 0; i < u->n_fetch; i++)
    if (u->own[i]) mem_free(u->out[i].data);
}

/* Reshapes share their operand's buffer, so a node's value is found at its buffer whatever its shape. */
static Tensor node_tensor(Run *u, const Node *n) {
  Tensor t = shape_of(n);
  t.data = buffer_address(u, n->buf);
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

void finish(Run *u, Tensor *out) {
  const Graph *g = u->x->graph;
  for (int i = 0; !u->device && i < g->fetches.n; i++)
    if (!is_same(u, i))
      memcpy(u->out[i].data, buffer_address(u, g->fetches.v[i].node->buf),
             tensor_bytes(&u->out[i]));
  for (int i = 0; !u->device && i < g->copies.n; i++) {
    const ExitCopy *c = &g->copies.v[i];
    memcpy(u->at[c->to->id], u->at[c->from->id], (size_t)c->to->bytes);
  }
  hand_over(u, g, out);
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
    executables_limit(u->list ? u->list : &e->cache, u->list != NULL);
    kept_take(x, u->scope, e->pool);
  }
  take_memory(u, x->graph, out);
  bind_buffers(u);
  void **saved = e->opt.check_nan ? save_state(u) : NULL;
  u->later &= u->device && !saved && !e->profile;
  for (int i = 0; i < u->n_state; i++) u->later &= !u->fresh[i].data;
  if (!run_kernels(u) || (saved && !check_finite(u, saved))) return false;
  finish(u, out);
  if (x->kept) kept_made(x, u->scope);
  return true;
}

bool has_updates(const Program *p) {
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
  e->again = NULL;
  arena_free(e->tmp);
  e->tmp = NULL;
  e->tmp = arena_new();
  const CompileRequest *r = u->req;
  bool ok = (u->list || check_feeds(r->prog, r->n_feeds, r->feeds)) &&
            (e->opt.interpret ? run_interpreted(u, out) : run_compiled(u, out));
  mem_unguard(&guard);
  if (ok) noted_run(e, u);
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

static bool run_new(Executor *e, Scope *s, const Program *p, int n_feeds, const Feed *feeds,
                    int n_fetch, const char *const *fetch, Tensor *out, uint64_t seed, bool later) {
  CompileRequest req = {.prog = p,
                        .scope = s,
                        .n_feeds = n_feeds,
                        .feeds = feeds,
                        .n_fetch = n_fetch,
                        .fetch = fetch,
                        .no_blas = e->opt.no_blas,
                        .memory_budget = e->opt.memory_budget,
                        .threads = e->device ? 0 : pool_threads(e->pool),
                        .target = e->target,
                        .device = e->opt.interpret ? NULL : e->device};
  if (!choose_by(&e->opt, &req)) return false;
  PassOptions words = {0};
  if (e->opt.debug && pass_options_parse(&words, e->opt.debug)) req.passes = &words;
  Run u = {.e = e,
           .device = req.device,
           .scope = s,
           .req = &req,
           .seed = seed,
           .step = e->step,
           .later = later,
           .to = out};
  bool ok = !err_any() && run_whole(&u, out);
  if (!ok) give_back(&u);
  return ok;
}

static bool start(Executor *e, Scope *s, const Program *p, int n_feeds, const Feed *feeds,
                  int n_fetch, const char *const *fetch, Tensor *out, bool later) {
  bool again = is_again(e, s, p, n_feeds, feeds, n_fetch, fetch);
  e->runs++;
  bool updates = again ? again_updates(e) : has_updates(p);
  uint64_t seed = e->opt.seed ? e->opt.seed : (uint64_t)p->seed;
  if (!updates && e->draws) seed = mix_seed(seed ^ mix_seed(e->draws));
  bool ok = again ? run_again(e, seed, feeds, out)
                  : run_new(e, s, p, n_feeds, feeds, n_fetch, fetch, out, seed, later);
  if (ok && updates) exec_set_step(e, e->step + 1);
  if (ok && !updates) e->draws++;
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
