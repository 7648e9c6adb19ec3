/* The executable of a run: found among those compiled before, or compiled.
 *
 * In: a program, a scope, feeds, names to fetch. Out: an executable. They are kept per (program, edits, feed shapes, state
 * shapes, fetches), those of sections of a program in lists of their own. */
#include "internal.h"
#include <string.h>

/* What a program leaves in memory for the shapes that it has run with, most recently used first: so many executables, and so
 * many bytes of their plans; and so many bytes of what they keep from run to run (packed filters, for one), which the others
 * make again. The one that runs counts, but is never limited. */
enum { CACHED_EXECUTABLES = 512, CACHED_SECTIONS = 1024 };
static const int64_t CACHED_BYTES = (int64_t)512 << 20, KEPT_BYTES = (int64_t)256 << 20;

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

void executables_limit(Executable **list, bool sections) {
  int most = sections ? CACHED_SECTIONS : CACHED_EXECUTABLES;
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

Executable *find_executable(Executor *e, const CompileRequest *r) {
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
  executables_limit(&e->cache, false);
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

Executable *find_section(const CompileRequest *r, Executable **list) {
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
  executables_limit(list, true);
  return x;
}
