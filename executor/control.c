/* Runs with control flow: the driver.
 *
 * In: a program that does not compile as one, a scope, feeds, names to fetch. Out: fetched tensors and the scope's new
 * state. The plan (control_plan.c) says what the steps of each block are. A stack of frames replaces recursion: the topmost
 * frame's next step is run; a control operator pushes a frame for its block and is asked again when that is through.
 * Sections go through the same compilation as whole programs, once for each set of shapes, or through the interpreter; the
 * rest are host operators. If a section's expansion needs the value of a tensor (a shape that is computed from data), the
 * section is cut there, and from then on compiled once for each value. State that was changed before an error is restored. */
#include "control.h"
#include <string.h>

enum { CACHED_PLANS = 16 };

const HostOp host_ops[] = {
#define CONTROL(name, array, run, after) {#name, array, run, after},
#include "control.def"
#undef CONTROL
    {0}};

/* ---- plans ---- */

static const char *plan_key(Arena *a, const CompileRequest *r) {
  Str s;
  str_init(&s, a);
  str_fmt(&s, "%llu.%llu|%d.%lld.%g.%d", (unsigned long long)r->prog->id,
          (unsigned long long)r->prog->edits, r->no_blas, (long long)r->memory_budget,
          r->conv_error, r->tuning);
  for (int i = 0; i < r->n_fetch; i++) str_fmt(&s, "|%s", r->fetch[i]);
  return s.s;
}

bool control_plans(const Executor *e, const Program *p) {
  for (const Plan *x = e->plans; x; x = x->next)
    if (x->id == p->id && x->edits == p->edits) return true;
  return false;
}

static Plan *find_plan(Executor *e, const CompileRequest *r, Arena *a) {
  const char *key = plan_key(a, r);
  int n = 0;
  for (Plan **link = &e->plans, *p; (p = *link); link = &p->next, n++) {
    if (!strcmp(p->key, key)) {
      *link = p->next;
      p->next = e->plans;
      return e->plans = p;
    }
    if (n + 1 < CACHED_PLANS || p->next) continue;
    *link = NULL; /* the oldest */
    plan_free(p);
    break;
  }
  Plan *p = plan_make(r);
  if (!p) return NULL;
  p->id = r->prog->id;
  p->edits = r->prog->edits;
  p->key = "";
  p->next = e->plans;
  e->plans = p;
  p->key = arena_str(p->arena, key);
  return p;
}

void control_forget(Executor *e) {
  for (Plan *p = e->plans, *next; p; p = next) {
    next = p->next;
    plan_free(p);
  }
  e->plans = NULL;
}

/* ---- sections ---- */

Value *missing_grad(Control *c, Frame *f, const char *name) {
  const char *at = strstr(name, "@GRAD");
  Ref r;
  if (!at || at[5]) return NULL;
  Value *of = NULL, *zero = NULL;
  Arena *a = arena_scratch();
  const char *var = arena_strn(a, name, (size_t)(at - name));
  if (block_find_var(f->b->b, var) && plan_find(f->b, var, &r)) of = ref_get(c, f, &r);
  if (of && of->kind == V_TENSOR && dtype_is_float(of->t.dtype)) zero = value_zeros_like(c, of);
  value_drop(c, of);
  arena_free(a);
  return zero;
}

static bool no_input(const Frame *f, const Step *s, const char *name) {
  const Var *var = block_find_var(f->b->b, name);
  bool fed = var->block->idx == 0 && var->need_check_feed;
  err_set(fed ? E_DAT_001 : E_VER_002,
          fed ? "%s is not fed" : "variable %s is read, but has no value", quoted(name));
  err_note("it is %s", shape_text(var->dtype, var->rank < 0 ? 0 : var->rank, var->dims));
  err_help(fed ? "feed it, or fetch only what does not depend on it"
               : "a branch or loop that did not run should have written it");
  err_where("block %d, operators %d to %d", f->b->b->idx, s->section.from, s->section.to - 1);
  return false;
}

/* The offsets of the inputs' sequences, behind the inputs. How many feeds that makes. */
static int collect_lods(Control *c, Step *s) {
  Arena *a = c->plan->arena;
  int n = s->n_in;
  for (int i = 0; i < s->n_in; i++)
    for (const Value *v = s->in_val[i]->lod; v; v = v->lod) n++;
  if (n > s->cap_feeds) {
    Feed *feeds = arena_array(a, Feed, 2 * n);
    memcpy(feeds, s->feeds, sizeof *feeds * (size_t)s->n_in);
    s->feed_lods = arena_array(a, Value *, 2 * n);
    s->feeds = feeds;
    s->cap_feeds = 2 * n;
  }
  n = s->n_in;
  for (int i = 0; i < s->n_in; i++) {
    const char *name = s->in[i];
    for (Value *v = s->in_val[i]->lod; v; v = v->lod) {
      s->feeds[n] = (Feed){name = plan_lod_name(c->plan, name), &v->t};
      s->feed_lods[n++] = v;
    }
  }
  return n;
}

static bool collect_inputs(Control *c, Frame *f, Step *s, int *n_feeds) {
  for (int i = 0; i < s->n_in; i++) {
    Value *v = s->in_val[i] = value_share(*ref_at(f, &s->in_ref[i]));
    if (!v) v = s->in_val[i] = missing_grad(c, f, s->in[i]);
    if (err_any()) return false;
    if (!v || v->kind != V_TENSOR) return no_input(f, s, s->in[i]);
    s->feeds[i] = (Feed){s->in[i], &v->t};
  }
  *n_feeds = collect_lods(c, s);
  return true;
}

/* Sequences of a result: an input's, or new ones. */
static Value *lod_value(Control *c, const Step *s, int n_feeds, const Lod *l) {
  Value *first = NULL, **to = &first;
  for (; l; l = l->up) {
    for (int i = s->n_in; l->from && i < n_feeds; i++)
      if (!strcmp(s->feeds[i].name, l->from)) return *to = value_share(s->feed_lods[i]), first;
    int64_t n = l->n + 1;
    *to = value_tensor(c, DT_INT64, 1, &n);
    memcpy((*to)->t.data, l->offset, sizeof n * (size_t)n);
    to = &(*to)->lod;
  }
  return first;
}

/* The input, or the earlier result, that a result is. */
static Value *same_value(const Step *s, const Same *same, int i) {
  while (same[i].result >= 0) i = same[i].result;
  for (int k = 0; same[i].feed && k < s->n_in; k++)
    if (!strcmp(s->in[k], same[i].feed)) return s->in_val[k];
  return s->out_val[i];
}

static bool store_results(Control *c, Frame *f, Step *s, int n_feeds, const Same *same) {
  for (int i = 0; i < s->n_out; i++) s->out_val[i]->t = s->results[i];
  for (int i = 0; i < s->n_out; i++) {
    Value *v = value_share(same_value(s, same, i)), *lod = lod_value(c, s, n_feeds, same[i].lod);
    if (v == s->out_val[i])
      v->lod = lod;
    else
      v = value_with_lod(c, v, lod);
    if (!ref_set(c, f, &s->out_ref[i], v)) return false;
  }
  return true;
}

static bool is_last(const Control *c, const Frame *f) {
  return c->stack.n == 1 && f->at + 1 == f->b->steps.n;
}

/* State that the section writes, unless nothing comes after it that could fail. */
static void note_state(Control *c, const Frame *f, const Step *s) {
  if (is_last(c, f)) return;
  for (int i = s->section.from; i < s->section.to; i++) {
    const Op *op = s->section.block->ops.v[i];
    if (s->section.skip && s->section.skip[i]) continue;
    for (int o = 0; o < op->outs.n; o++)
      for (int k = 0; k < op->outs.v[o].n; k++) {
        const Var *v = block_find_var(op->block, op->outs.v[o].args[k]);
        if (v && v->persistable) undo_note(c, v->name);
      }
  }
}

static void drop_all(Control *c, int n, Value **v) {
  for (int i = 0; i < n; i++) {
    Value *last = v[i];
    v[i] = NULL;
    if (last) value_drop(c, last);
  }
}

static bool cut_section(Control *c, Frame *f, const Wanted *w) {
  if (!w->op || !err_any() || err_get()->code != E_OPR_006) return false;
  Diag d = *err_get();
  err_clear();
  if (plan_cut(c->plan, f->b, f->at, w)) return true;
  if (!err_any()) err_put(&d);
  return false;
}

/* The values of the results are there before the section runs: then nothing can be lost. */
static bool run_one(Control *c, Frame *f, Step *s, bool *cut) {
  Wanted w = {0};
  const Same *same = NULL;
  int n_feeds;
  if (!collect_inputs(c, f, s, &n_feeds)) return false;
  for (int i = 0; i < s->n_out; i++) s->out_val[i] = value_new(c, V_TENSOR);
  CompileRequest r = *c->req;
  r.section = s->section;
  r.feeds = s->feeds;
  r.n_feeds = n_feeds;
  r.n_inputs = s->n_in;
  r.known = s->known;
  r.fetch = s->out;
  r.n_fetch = s->n_out;
  r.wanted = &w;
  note_state(c, f, s);
  memset(s->results, 0, sizeof *s->results * (size_t)s->n_out);
  if (run_section(c->e, &r, &s->made, f->seed, s->results, &same))
    return store_results(c, f, s, n_feeds, same);
  return *cut = cut_section(c, f, &w);
}

static bool run_step_section(Control *c, Frame *f, Step *s) {
  bool cut = false;
  int n_in = s->n_in, n_out = s->n_out;
  Value **in = s->in_val, **out = s->out_val;
  bool ok = run_one(c, f, s, &cut);
  drop_all(c, n_in, in);
  drop_all(c, n_out, out);
  if (ok && !cut) f->at++;
  return ok;
}

/* ---- the stack ---- */

Frame *control_push(Control *c, Frame *f, PlanBlock *b, Frame *forward) {
  Frame *child = frame_new(c, b, f, forward);
  vec_add(c->arena, &c->stack, child);
  child->seed = mix_seed(c->seed ^ mix_seed((uint64_t)++c->n_steps));
  for (int i = 0; b->snaps && i < map_n(b->snaps); i++) {
    void *slot;
    map_at(b->snaps, i, &slot);
    child->vals[(intptr_t)slot - 1] = ref_get(c, child, &b->snap_refs[i]);
  }
  return child;
}

bool control_again(Control *c, Frame *f) {
  if (f->b->snaps) return false;
  frame_clear(c, f);
  f->at = 0;
  f->seed = mix_seed(c->seed ^ mix_seed((uint64_t)++c->n_steps));
  vec_add(c->arena, &c->stack, f);
  return true;
}

static bool run_host(Control *c, Frame *f, Step *s, Frame *child) {
  HostResult r = child ? s->host->after(c, f, s, child) : s->host->run(c, f, s);
  if (r == HOST_NEXT) f->at++;
  if (r != HOST_FAIL && !err_any()) return true;
  err_where("block %d, %s", f->b->b->idx, op_text(s->op));
  return false;
}

static bool run_steps(Control *c) {
  while (c->stack.n) {
    Frame *f = c->stack.v[c->stack.n - 1];
    if (f->at < f->b->steps.n) {
      Step *s = f->b->steps.v[f->at];
      if (!(s->host ? run_host(c, f, s, NULL) : run_step_section(c, f, s))) return false;
      continue;
    }
    if (c->stack.n == 1) return true;
    c->stack.n--;
    Frame *up = c->stack.v[c->stack.n - 1];
    if (!run_host(c, up, up->b->steps.v[up->at], f)) return false;
  }
  return true;
}

/* ---- the whole ---- */

static const Tensor *fed_tensor(const Control *c, const char *name) {
  for (int i = 0; i < c->req->n_feeds; i++)
    if (!strcmp(c->req->feeds[i].name, name)) return c->req->feeds[i].value;
  return NULL;
}

/* With its sequences, which are feeds beside it. */
static Value *fed_value(Control *c, const char *name) {
  Value *first = NULL, **to = &first;
  for (const Tensor *t; (t = fed_tensor(c, name)); name = plan_lod_name(c->plan, name)) {
    Value *v = *to = value_new(c, V_TENSOR);
    v->t = *t;
    v->borrowed = true;
    to = &v->lod;
  }
  return first;
}

static void set_feeds(Control *c, Frame *f) {
  for (int i = 0; i < c->req->n_feeds; i++) {
    Ref r;
    if (!block_find_var(f->b->b, c->req->feeds[i].name) ||
        !plan_find(f->b, c->req->feeds[i].name, &r))
      continue;
    Value *v = fed_value(c, c->req->feeds[i].name);
    if (r.slot < 0)
      value_drop(c, v);
    else
      ref_set(c, f, &r, v);
  }
}

static bool fetch_one(Control *c, Frame *f, int i, Tensor *out) {
  Value *v = ref_get(c, f, &c->plan->fetch[i]);
  const char *name = c->req->fetch[i];
  for (int d = 0; v && d < c->plan->fetch_depth[i]; d++) {
    Value *lod = value_share(v->lod);
    value_drop(c, v);
    v = lod;
  }
  if (!v || v->kind != V_TENSOR) {
    err_set(E_RUN_002, v ? "fetch %s is no tensor" : "fetch %s has no value", quoted(name));
    if (!v) err_help("the operators that write it did not run");
    value_drop(c, v);
    return false;
  }
  size_t n = tensor_bytes(&v->t);
  bool fits = out->data && out->dtype == v->t.dtype && tensor_bytes(out) == n;
  void *to = fits ? out->data : mem_take(n + 1);
  memcpy(to, v->t.data, n);
  *out = v->t;
  out->data = to;
  value_drop(c, v);
  return true;
}

/* What was handed out before a failure is taken back; memory that the caller gave stays. */
static bool fetch_all(Control *c, Frame *f, Tensor *out) {
  int n = c->plan->n_fetch;
  Tensor *got = arena_array(c->arena, Tensor, n + 1);
  memcpy(got, out, sizeof *out * (size_t)n);
  MemGuard guard;
  volatile bool ok = true;
  if (MEM_GUARD(guard))
    ok = false;
  else {
    for (int i = 0; i < n && ok; i++) ok = fetch_one(c, f, i, &got[i]);
    mem_unguard(&guard);
  }
  for (int i = 0; i < n && !ok; i++)
    if (got[i].data != out[i].data) mem_free(got[i].data);
  if (ok) memcpy(out, got, sizeof *out * (size_t)n);
  return ok;
}

static void restore_state(Control *c) {
  MemGuard guard;
  if (MEM_GUARD(guard)) return;
  for (Undo *u = c->undo; u; u = u->next) {
    if (u->was.data)
      scope_set(c->scope, u->name, u->was.dtype, u->was.rank, u->was.dims, u->was.data);
    else
      scope_remove(c->scope, u->name);
  }
  mem_unguard(&guard);
}

static bool run_control(Control *c, Tensor *out) {
  MemGuard guard;
  if (MEM_GUARD(guard)) return false;
  c->arena = arena_new();
  c->plan = find_plan(c->e, c->req, c->arena);
  bool ok = c->plan != NULL;
  if (ok) {
    Frame *f = frame_new(c, c->plan->blocks[0], NULL, NULL);
    vec_add(c->arena, &c->stack, f);
    f->seed = c->seed;
    set_feeds(c, f);
    ok = run_steps(c) && fetch_all(c, f, out);
  }
  mem_unguard(&guard);
  return ok;
}

bool control_run(Executor *e, const CompileRequest *r, uint64_t seed, Tensor *out) {
  Control c = {.e = e, .scope = r->scope, .req = r, .seed = seed};
  c.max_steps = e->opt.max_steps ? e->opt.max_steps : DEFAULT_MAX_STEPS;
  bool ok = run_control(&c, out);
  if (!ok) restore_state(&c);
  control_free_all(&c);
  arena_free(c.arena);
  return ok;
}

/* ---- the sections, for the tools ---- */

static void declared_feeds(const Program *p, Step *s, const CompileRequest *r, Arena *a) {
  for (int i = 0; i < s->n_in; i++) {
    const Var *v = s->in_ref[i].var;
    Tensor *t = arena_new_of(a, Tensor);
    t->dtype = v->dtype;
    t->rank = v->rank < 0 ? 0 : v->rank;
    for (int d = 0; d < t->rank; d++) t->dims[d] = v->dims[d] < 0 ? 1 : v->dims[d];
    s->feeds[i] = (Feed){s->in[i], t};
    for (int k = 0; k < r->n_feeds && v->block == p->blocks.v[0]; k++)
      if (!strcmp(r->feeds[k].name, s->in[i])) *t = *r->feeds[k].value;
  }
}

static bool visit_section(Plan *p, PlanBlock *b, int at, const CompileRequest *r, SectionFn *fn,
                          void *user) {
  Wanted w = {0};
  Step *s = b->steps.v[at];
  CompileRequest part = *r;
  declared_feeds(r->prog, s, r, p->arena);
  part.section = s->section;
  part.feeds = s->feeds;
  part.n_feeds = s->n_in;
  part.known = s->known;
  part.fetch = s->out;
  part.n_fetch = s->n_out;
  part.wanted = &w;
  if (fn(user, &part)) return true;
  if (!w.op || !err_any() || err_get()->code != E_OPR_006) return false;
  Diag d = *err_get();
  err_clear();
  if (plan_cut(p, b, at, &w)) return visit_section(p, b, at, r, fn, user);
  if (!err_any()) err_put(&d);
  return false;
}

bool each_section(const CompileRequest *r, SectionFn *fn, void *user) {
  Plan *p = plan_make(r);
  bool ok = p != NULL;
  for (int i = 0; ok && i < p->n_blocks; i++)
    for (int k = 0; ok && p->blocks[i] && k < p->blocks[i]->steps.n; k++)
      if (p->blocks[i]->steps.v[k]->section.block)
        ok = visit_section(p, p->blocks[i], k, r, fn, user);
  plan_free(p);
  return ok;
}
