/* The same run once more, with other values in its feeds: inference or training in a loop.
 *
 * In: a run on the host that has succeeded, changed state only in place and left all it bound in the executor's arena of runs. Out:
 * whether a call asks for the same, and its results. Nothing is looked up then: the program, the options, the names and the shapes
 * are those of before, nobody else has changed or moved a value of the scope since (scope_changes), and no other run has used the
 * executor (a run forgets the note when it begins). Only the addresses of feeds are new. */
#include "run.h"
#include <string.h>

typedef struct FeedSlot {
  void **at;
  int feed;
} FeedSlot;

typedef struct Again {
  Run run;
  ExecOptions opt;
  uint64_t id, edits, changes; /* of the program, of the scope */
  bool updates;                /* see has_updates */
  int n_feeds, n_fetch;
  Feed *feeds; /* names and shapes */
  const char **fetch;
  VEC(FeedSlot) slots;
} Again;

static void add_slots(Again *a, Arena *arena, const Buffer *b, void **at) {
  if (b->kind != B_FEED) return;
  int i = 0;
  while (strcmp(a->feeds[i].name, b->name)) i++;
  vec_add(arena, &a->slots, ((FeedSlot){at, i}));
}

static void copy_request(Again *a, Arena *arena, const CompileRequest *r) {
  a->id = r->prog->id;
  a->edits = r->prog->edits;
  a->n_feeds = r->n_feeds;
  a->n_fetch = r->n_fetch;
  a->feeds = arena_array(arena, Feed, r->n_feeds + 1);
  a->fetch = arena_array(arena, const char *, r->n_fetch + 1);
  for (int i = 0; i < r->n_feeds; i++)
    a->feeds[i] = (Feed){arena_str(arena, r->feeds[i].name),
                         arena_dup(arena, r->feeds[i].value, sizeof *r->feeds[i].value)};
  for (int i = 0; i < r->n_fetch; i++) a->fetch[i] = arena_str(arena, r->fetch[i]);
}

/* Is nothing made or looked up that the next run would not need, and does all state stay where it is? */
static bool can_be_again(const Run *u) {
  const Graph *g = u->x->graph;
  if (u->list || u->e->opt.check_nan || g->copies.n) return false;
  for (int i = 0; i < g->writes.n; i++)
    if (u->fresh[i].data) return false;
  for (int i = 0; i < u->req->n_feeds; i++)
    if (feed_is_lod(&u->req->feeds[i])) return false;
  return u->kept || !g->kept_bytes;
}

void note_run(Run *u) {
  Arena *arena = u->e->tmp;
  const Graph *g = u->x->graph;
  if (!can_be_again(u)) return;
  Again *a = u->note = arena_new_of(arena, Again);
  copy_request(a, arena, u->req);
  a->run = *u;
  a->changes = scope_changes(u->scope);
  a->updates = has_updates(u->req->prog);
  memcpy(&a->opt, &u->e->opt, sizeof a->opt);
  for (int i = 0; i < g->buffers.n; i++) add_slots(a, arena, g->buffers.v[i], &u->at[i]);
  for (int i = 0; i < u->steps->n_args; i++)
    if (u->steps->args[i]) add_slots(a, arena, u->steps->arg_of[i], &u->steps->args[i]);
}

/* A run that has written state counts its own changes as seen. */
static void see_changes(Again *a) {
  if (a->run.x->graph->writes.n) a->changes = scope_changes(a->run.scope);
}

void noted_run(Executor *e, Run *u) {
  e->again = u->note;
  if (u->note) see_changes(u->note);
}

bool again_updates(const Executor *e) { return e->again->updates; }

static bool is_same_feed(const Feed *a, const Feed *b) {
  const Tensor *t = a->value, *of = b->value;
  return t && t->data && t->dtype == of->dtype && t->rank == of->rank &&
         !memcmp(t->dims, of->dims, sizeof *t->dims * (size_t)of->rank) &&
         !strcmp(a->name, b->name);
}

bool is_again(const Executor *e, const Scope *s, const Program *p, int n_feeds, const Feed *feeds,
              int n_fetch, const char *const *fetch) {
  const Again *a = e->again;
  bool same = a && !e->profile && a->run.scope == s && a->id == p->id && a->edits == p->edits &&
              a->n_feeds == n_feeds && a->n_fetch == n_fetch && a->changes == scope_changes(s) &&
              !memcmp(&a->opt, &e->opt, sizeof e->opt);
  for (int i = 0; i < n_feeds && same; i++) same = is_same_feed(&feeds[i], &a->feeds[i]);
  for (int i = 0; i < n_fetch && same; i++) same = !strcmp(fetch[i], a->fetch[i]);
  return same && !err_any();
}

static bool take_and_run(Run *u, Tensor *out) {
  MemGuard guard;
  if (MEM_GUARD(guard)) return false;
  take_results(u, u->x->graph, out);
  bool ok = run_steps(u);
  if (ok) finish(u, out);
  mem_unguard(&guard);
  return ok;
}

bool run_again(Executor *e, uint64_t seed, const Feed *feeds, Tensor *out) {
  Again *a = e->again;
  Run u = a->run;
  u.seed = seed;
  u.step = e->step;
  u.n_fetch = u.n_state = 0; /* taken: nothing */
  for (int i = 0; i < a->slots.n; i++) *a->slots.v[i].at = feeds[a->slots.v[i].feed].value->data;
  if (take_and_run(&u, out)) {
    see_changes(a);
    return true;
  }
  give_back(&u);
  e->again = NULL;
  return false;
}
