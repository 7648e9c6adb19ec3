/* The whole compilation, top to bottom.
 *
 *   Program --expand--> Graph --passes up to fuse and what changes kernels--> Kernels --schedule (backend: workspace)-->
 *           --order .. memplan--> offsets --backend--> Executable          (all passes, in order: passes/passes.def)
 *
 * In: a program, the shapes of its feeds and state, and what to fetch. Out: an Executable, or one diagnostic. */
#include "internal.h"
#include <string.h>

static const Backend *backend_for(const char *target) {
  if (!target || !strncmp(target, "cpu", 3)) return &backend_cpu;
  if (!strncmp(target, "cuda:", 5)) return &backend_cuda;
  err_set(E_ARG_001, "unknown target %s", quoted(target));
  err_help("targets are cpu, cpu:NAME and cuda:sm_NN");
  return NULL;
}

static bool feed_dims(const CompileRequest *r, const Var *v, DType *t, int *rank, int64_t *dims) {
  for (int i = 0; i < r->n_feeds; i++) {
    const Tensor *f = r->feeds[i].value;
    if (strcmp(r->feeds[i].name, v->name)) continue;
    *t = f->dtype;
    *rank = f->rank;
    memcpy(dims, f->dims, sizeof *dims * (size_t)f->rank);
    return true;
  }
  err_set(E_DAT_001, "%s is not fed", quoted(v->name));
  err_note("it is %s", shape_text(v->dtype, v->rank, v->dims));
  Arena *a = arena_scratch();
  const char **names = arena_array(a, const char *, r->n_feeds + 1);
  for (int i = 0; i < r->n_feeds; i++) names[i] = r->feeds[i].name;
  const char *near = name_nearest(v->name, r->n_feeds, names);
  if (near)
    err_help("%s is fed, but the program reads %s", quoted(near), quoted(v->name));
  else
    err_help("feed %s, or fetch only what does not depend on it", quoted(v->name));
  arena_free(a);
  return false;
}

/* DimsOf of expand_program: feeds have the shape of their value, state that of the scope's tensor. */
static bool dims_of(void *user, const Var *v, bool fed, DType *t, int *rank, int64_t *dims) {
  const CompileRequest *r = user;
  if (fed) return feed_dims(r, v, t, rank, dims);
  Tensor s;
  bool known = r->scope && scope_shape(r->scope, v->name, &s);
  if (r->scope && !known) {
    err_set(E_RUN_001, "%s has no value", quoted(v->name));
    err_help("run the startup program, or load parameters, first");
    return false;
  }
  *t = known ? s.dtype : v->dtype;
  *rank = known ? s.rank : v->rank;
  memcpy(dims, known ? s.dims : v->dims, sizeof *dims * (size_t)*rank);
  return true;
}

/* What leaves a run is a Tensor, which has fewer dimensions than a Node. */
static bool ranks_fit(int n, const NamedNode *v) {
  for (int i = 0; i < n; i++)
    if (v[i].node->rank > KL_VAR_RANK)
      return err_set(E_SHP_002, "%s has %d dimensions; at most %d are possible", quoted(v[i].name),
                     v[i].node->rank, KL_VAR_RANK);
  return true;
}

bool feed_is_lod(const Feed *f) {
  size_t n = strlen(f->name), k = strlen(LOD_SUFFIX);
  return f->value && f->value->data && n > k && !strcmp(f->name + n - k, LOD_SUFFIX);
}

static const Tensor *known_value(void *user, const char *name) {
  const CompileRequest *r = user;
  for (int i = 0; i < r->n_feeds; i++)
    if (!strcmp(r->feeds[i].name, name) && (feed_is_lod(&r->feeds[i]) || (r->known && r->known[i])))
      return r->feeds[i].value;
  return r->scope && scope_lods(r->scope) ? scope_sequences(r->scope, name) : NULL;
}

static const char **feed_names(const CompileRequest *r, Arena *a) {
  const char **names = arena_array(a, const char *, r->n_feeds + 1);
  for (int i = 0; i < r->n_feeds; i++) names[i] = r->feeds[i].name;
  return names;
}

Section request_section(const CompileRequest *r, Arena *a) {
  if (r->section.block) return r->section;
  const Block *b = r->prog->blocks.v[0];
  return (Section){b, 0, b->ops.n,
                   ops_left_out(b, a, r->n_feeds, feed_names(r, a), r->n_fetch, r->fetch)};
}

bool expand_request(const CompileRequest *r, Graph **g) {
  Arena *a = arena_scratch();
  const char **feeds = feed_names(r, a);
  Section part = request_section(r, a);
  *g = expand_section(&(ExpandRequest){.section = part,
                                       .n_feeds = r->n_feeds,
                                       .feeds = feeds,
                                       .n_fetch = r->n_fetch,
                                       .fetches = r->fetch,
                                       .dims_of = dims_of,
                                       .known = known_value,
                                       .user = (void *)r,
                                       .wanted = r->wanted});
  if (!*g && !r->section.block && r->prog->file) err_where("%s", r->prog->file);
  arena_free(a);
  if (!*g) return false;
  if (ranks_fit((*g)->writes.n, (*g)->writes.v) && ranks_fit((*g)->fetches.n, (*g)->fetches.v))
    return true;
  graph_free(*g);
  return false;
}

/* The buffers of a kernel in the order that its function expects: inputs, outputs, workspace. */
static void bind_kernels(Executable *x) {
  int n = x->graph->kernels.n;
  x->bufs = arena_array(x->arena, Buffer **, n + 1);
  x->n_bufs = arena_array(x->arena, int, n + 1);
  for (int i = 0; i < n; i++) {
    const Kernel *k = x->graph->kernels.v[i];
    Buffer **b = x->bufs[i] = arena_array(x->arena, Buffer *, k->inputs.n + k->outputs.n + 1);
    int m = 0;
    for (int j = 0; j < k->inputs.n; j++) b[m++] = k->inputs.v[j].node->buf;
    for (int j = 0; j < k->outputs.n; j++) b[m++] = k->outputs.v[j]->buf;
    if (k->ws) b[m++] = k->ws;
    x->n_bufs[i] = m;
  }
}

/* A variable that is read is wanted as it is read, one that is only written as it is written. */
static void bind_states(Executable *x) {
  const Graph *g = x->graph;
  x->states = arena_array(x->arena, StateUse, g->buffers.n + 1);
  x->use = arena_array(x->arena, const StateUse *, g->buffers.n + 1);
  Arena *a = arena_scratch();
  StateUse **of = arena_array(a, StateUse *, g->buffers.n + 1);
  Map *writes = map_new(a);
  for (int i = 0; i < g->writes.n; i++) map_put(writes, g->writes.v[i].name, &g->writes.v[i]);
  for (int i = 0; i < g->buffers.n; i++) {
    const Buffer *b = g->buffers.v[i];
    if (b->kind != B_STATE) continue;
    StateUse *s = of[i] = &x->states[x->n_states++];
    const NamedNode *w = map_get(writes, b->name);
    *s = (StateUse){b, w ? w->layout : NULL, w ? (int)(w - g->writes.v) : -1};
    x->use[i] = s;
  }
  for (int i = 0; i < g->nodes.n; i++) {
    const Node *n = g->nodes.v[i];
    if (n->prim == P_STATE && n->buf && of[n->buf->id])
      of[n->buf->id]->layout = n->n_ia ? n->ia : NULL;
  }
  arena_free(a);
}

static void fill_plan(Executable *x) {
  PlanInfo *p = &x->plan;
  const Graph *g = x->graph;
  p->kernels = g->kernels.n;
  p->arena = g->arena_bytes;
  p->lower_bound = g->lower_bound;
  for (int i = 0; i < g->buffers.n; i++)
    if (g->buffers.v[i]->kind == B_STATE) p->state += g->buffers.v[i]->bytes;
  for (int i = 0; i < g->kernels.n; i++) {
    p->flops += g->kernels.v[i]->flops;
    p->bytes += g->kernels.v[i]->bytes;
    if (x->code && x->code[i].scratch_bytes > x->scratch_bytes)
      x->scratch_bytes = x->code[i].scratch_bytes;
  }
  x->locals_at = (x->scratch_bytes + 63) / 64 * 64;
  if (g->local_bytes) x->scratch_bytes = x->locals_at + g->local_bytes;
}

/* Options may have left out fuse or memplan: then there is something to look at, but nothing to run. */
static bool is_planned(const Graph *g, bool stopped) {
  bool ok = !stopped;
  for (int i = 0; i < g->fetches.n; i++) ok = ok && g->fetches.v[i].node->buf;
  for (int i = 0; i < g->writes.n; i++) ok = ok && g->writes.v[i].node->buf;
  if (ok) return true;
  err_set(E_ARG_001, "KILN_DEBUG leaves out passes that a run needs");
  err_help("Only `kiln compile` can stop early; runs need the passes fuse and memplan.");
  return false;
}

static void make_code(Executable *x, const PassOptions *o) {
  char made[96];
  double start = passes_clock();
  CodeCount was = backend_code_count();
  x->module =
      x->backend->compile(x->graph, x->graph->kernels.n, x->graph->kernels.v, &x->options, x->code);
  CodeCount now = backend_code_count();
  snprintf(made, sizeof made, "%d functions: %d generated, %d from the disk",
           now.wanted - was.wanted, now.generated - was.generated, now.loaded - was.loaded);
  passes_time(o, "code", start, made);
}

static bool within_budget(const Graph *g) {
  if (!g->memory_budget || g->arena_bytes <= g->memory_budget) return true;
  err_set(E_MEM_003, "the plan needs %lld bytes, more than the memory budget of %lld",
          (long long)g->arena_bytes, (long long)g->memory_budget);
  err_note("this is the least that was found by computing values again");
  err_help("take a budget of at least %lld, or a smaller batch", (long long)g->arena_bytes);
  return false;
}

bool choose_by(const ExecOptions *o, CompileRequest *r) {
  double usual = o->deterministic ? 0 : SUM_ERROR;
  r->conv_error = o->conv_error > 0 ? o->conv_error : o->conv_error < 0 ? 0 : usual;
  r->tuning = o->deterministic ? TUNE_RULE : o->tune ? TUNE_MEASURE : TUNE_KNOWN;
  return !(o->deterministic && o->tune) ||
         err_set(E_ARG_001,
                 "deterministic and tune exclude each other: choices by a rule are not measured");
}

/* What passes are to know of the request and of the backend. */
static void set_terms(Graph *g, const CompileRequest *r, const PassOptions *passes,
                      const Backend *backend) {
  g->memory_budget = r->memory_budget;
  g->conv_error = r->conv_error;
  g->threads = r->threads;
  g->tuning = passes->libraries ? TUNE_LIBRARY : r->tuning;
  g->no_kinds = backend->no_kinds;
  g->takes_operand = backend->takes_operand;
  g->updates = backend->updates;
  g->channels_last = backend->channels_last;
  g->images_last = backend->images_last && backend->images_last();
}

/* Memory for kernels and their code; true: from here on none is asked for. */
static bool generate(Executable *x, const PassOptions *passes) {
  const Graph *g = x->graph;
  x->code = arena_array(x->arena, KernelCode, g->kernels.n + 1);
  x->seen = arena_array(x->arena, uint64_t, g->buffers.n + 1);
  bind_kernels(x);
  bind_states(x);
  make_code(x, passes);
  return x->module != NULL;
}

Executable *compile(const CompileRequest *r) {
  double t0 = now_seconds();
  const Backend *backend = backend_for(r->target);
  PassOptions passes = {0};
  Graph *g = NULL;
  if (r->passes)
    passes = *r->passes;
  else
    pass_options_from_env(&passes);
  double start = passes_clock();
  if (!backend || !expand_request(r, &g)) return NULL;
  passes_time(&passes, "expand", start, "");

  Arena *a = arena_scratch();
  Executable *x = arena_new_of(a, Executable);
  x->arena = a;
  x->graph = g;
  x->backend = backend;
  x->options = (CompileOptions){
      .target = r->target ? arena_str(a, r->target) : NULL,
      .device = r->device,
      .dump_dir = passes.dump_dir ? arena_str(a, passes.dump_dir) : NULL,
      .no_blas = r->no_blas,
  };
  passes.schedule = backend->schedule;
  set_terms(g, r, &passes, backend);
  if (!r->memory_budget) g->options = &x->options; /* libraries may want more memory */
  bool stopped = false;
  if (!passes_run(g, &passes, &stopped) || !within_budget(g) ||
      (!r->no_code && (!is_planned(g, stopped) || !generate(x, &passes)))) {
    executable_free(x);
    return NULL;
  }
  x->lods = r->scope ? scope_lods(r->scope) : 0;
  arena_keep(g->arena);
  arena_keep(a);
  fill_plan(x);
  x->bytes = arena_bytes(a) + arena_bytes(g->arena);
  x->plan.compile_ms = (now_seconds() - t0) * 1e3;
  return x;
}

void executable_free(Executable *x) {
  if (!x) return;
  kept_drop(x);
  place_free(x->options.device, x->data);
  if (x->module) x->backend->module_free(x->module);
  graph_free(x->graph);
  arena_free(x->arena);
}

Graph *executable_graph(Executable *x) { return x->graph; }

bool executable_emit(Executable *x, const char *what, Str *out) {
  if (!strcmp(what, "graph")) return graph_print(x->graph, out), true;
  if (!strcmp(what, "dot")) return graph_dot(x->graph, out), true;
  return x->backend->emit(x->graph, x->graph->kernels.n, x->graph->kernels.v, &x->options, what,
                          out);
}
