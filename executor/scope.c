/* Scopes: tensors by name that outlive a run (parameters, optimiser state, running statistics).
 *
 * In: names and values. Out: tensors, whose memory stays where it is until the variable gets another size or the scope is
 * freed. Look-ups from several threads are safe; so is setting different variables, but not changing a variable while
 * somebody runs with it. Which forms a variable has: scope.h. */
#include "scope.h"
#include <stdlib.h>
#include <string.h>

static void changed(Entry *e) {
  static uint64_t last;
  e->version = __atomic_add_fetch(&last, 1, __ATOMIC_RELAXED);
  e->origin = 0;
}

/* Offsets of the sequences of a variable are a variable beside it. */
static bool is_lod(const char *name) {
  size_t n = strlen(name), k = strlen(LOD_SUFFIX);
  return n > k && !strcmp(name + n - k, LOD_SUFFIX);
}

Scope *scope_new(void) {
  Arena *a = arena_scratch();
  Scope *s = arena_new_of(a, Scope);
  s->arena = a;
  s->by_name = map_new(a);
  arena_keep(a);
  pthread_mutex_init(&s->lock, NULL);
  return s;
}

void scope_free(Scope *s) {
  if (!s) return;
  for (int i = 0; i < map_n(s->by_name); i++) {
    void *e;
    map_at(s->by_name, i, &e);
    entry_clear(s, e);
  }
  pthread_mutex_destroy(&s->lock);
  arena_free(s->arena);
}

/* Runs fn under the lock, also if memory is refused. */
typedef void Locked(Scope *s, void *user);
static void locked(Scope *s, Locked *fn, void *user) {
  pthread_mutex_lock(&s->lock);
  MemGuard guard;
  if (MEM_GUARD(guard)) {
    pthread_mutex_unlock(&s->lock);
    mem_rethrow();
  }
  fn(s, user);
  mem_unguard(&guard);
  pthread_mutex_unlock(&s->lock);
}

static Entry *find(Scope *s, const char *name) {
  Entry *e = map_get(s->by_name, name);
  return e && e->own.data ? e : NULL;
}

/* ---- access ---- */

typedef struct Request {
  const char *name;
  Device *device;
  const int64_t *layout;
  bool alone; /* the other forms go */
  Pool *pool;
  Entry *entry; /* out; NULL: no value */
  void *data;
} Request;

static void serve(Scope *s, void *user) {
  Request *r = user;
  Entry *e = r->entry = find(s, r->name);
  if (!e) return;
  entry_align(s, e);
  if (r->alone) entry_keep(s, e, r->device, r->layout, r->pool);
  Form *f = entry_form(e, r->device, r->layout);
  r->data = f ? f->data : entry_copy(s, e, r->device, r->layout, r->pool)->data;
}

void *scope_data(Scope *s, const char *name, Device *d, const int64_t *layout, bool write,
                 Pool *pool) {
  Request r = {name, d, layout, write, pool, NULL, NULL};
  locked(s, serve, &r);
  return r.data;
}

static void show(Scope *s, void *user) {
  Request *r = user;
  serve(s, user);
  if (!r->entry) return;
  if (r->entry->shown.data != r->data)
    r->entry->shown.data = r->data; /* others may be reading it */
  r->entry->pinned |= !r->alone;
}

const Tensor *scope_get(Scope *s, const char *name) {
  Request r = {.name = name};
  locked(s, show, &r);
  return r.entry ? &r.entry->shown : NULL;
}

Tensor *scope_edit(Scope *s, const char *name) {
  Request r = {.name = name, .alone = true};
  locked(s, show, &r);
  if (r.entry) changed(r.entry);
  return r.entry ? &r.entry->shown : NULL;
}

uint64_t scope_version(Scope *s, const char *name, uint64_t *origin) {
  pthread_mutex_lock(&s->lock);
  const Entry *e = find(s, name);
  uint64_t v = e ? e->version : 0;
  if (origin) *origin = e ? e->origin : 0;
  pthread_mutex_unlock(&s->lock);
  return v;
}

bool scope_shape(Scope *s, const char *name, Tensor *t) {
  pthread_mutex_lock(&s->lock);
  const Entry *e = find(s, name);
  if (e) *t = e->shown;
  pthread_mutex_unlock(&s->lock);
  t->data = NULL;
  return e != NULL;
}

static void reserve(Scope *s, void *user) {
  const char *name = user;
  if (!map_get(s->by_name, name)) map_put(s->by_name, name, arena_new_of(s->arena, Entry));
}

void scope_reserve(Scope *s, const char *name) { locked(s, reserve, (void *)(uintptr_t)name); }

void scope_give(Scope *s, const char *name, const Tensor *value, Device *d, const int64_t *layout) {
  pthread_mutex_lock(&s->lock);
  Entry *e = map_get(s->by_name, name);
  if (value->data == e->own.data) {
    entry_drop_copies(s, e);
  } else {
    entry_clear(s, e);
    e->own.data = value->data;
    e->own.device = d;
  }
  void *shown = e->shown.data;
  e->shown = *value;
  e->shown.data = shown;
  form_set_layout(&e->own, value->rank, layout);
  changed(e);
  if (is_lod(name)) s->lods = e->version;
  pthread_mutex_unlock(&s->lock);
}

/* All that change a value drop its copies. */
uint64_t scope_changes(const Scope *s) { return atomic_load(&s->changes); }

uint64_t scope_lods(Scope *s) {
  pthread_mutex_lock(&s->lock);
  uint64_t v = s->lods;
  pthread_mutex_unlock(&s->lock);
  return v;
}

Tensor *scope_set(Scope *s, const char *name, DType d, int rank, const int64_t *dims,
                  const void *data) {
  int64_t n;
  if (rank < 0 || rank > KL_VAR_RANK) {
    err_set(E_SHP_002, "%s has %d dimensions; at most %d are possible", quoted(name), rank,
            KL_VAR_RANK);
    return NULL;
  }
  if (!dims_numel(d, rank, dims, &n)) return NULL;
  size_t bytes = (size_t)n * (size_t)dtype_info[d].size;
  scope_reserve(s, name);
  Tensor *old = scope_edit(s, name), now = {.dtype = d, .rank = rank};
  bool fits = old && tensor_bytes(old) == bytes;
  now.data = fits ? old->data : mem_take(bytes ? bytes : 1);
  if (rank) memcpy(now.dims, dims, sizeof *dims * (size_t)rank);
  if (data)
    memmove(now.data, data, bytes);
  else
    memset(now.data, 0, bytes);
  scope_give(s, name, &now, NULL, NULL);
  return scope_edit(s, name);
}

void scope_remove(Scope *s, const char *name) {
  pthread_mutex_lock(&s->lock);
  Entry *e = map_get(s->by_name, name);
  if (e) {
    entry_clear(s, e);
    changed(e);
    if (is_lod(name)) s->lods = e->version;
  }
  pthread_mutex_unlock(&s->lock);
}

static int by_text(const void *a, const void *b) {
  return strcmp(*(const char *const *)a, *(const char *const *)b);
}

typedef struct Names {
  Arena *a;
  const char **name;
  int n;
} Names;

static void list_names(Scope *s, void *user) {
  Names *l = user;
  l->name = arena_array(l->a, const char *, map_n(s->by_name) + 1);
  for (int i = 0; i < map_n(s->by_name); i++) {
    void *e;
    const char *name = map_at(s->by_name, i, &e);
    if (((Entry *)e)->own.data) l->name[l->n++] = arena_str(l->a, name);
  }
}

int scope_names(Scope *s, Arena *a, const char ***names) {
  Names l = {.a = a};
  locked(s, list_names, &l);
  qsort(l.name, (size_t)l.n, sizeof *l.name, by_text);
  *names = l.name;
  return l.n;
}

/* The value in its own order: the scope's memory, or a copy in the arena. */
typedef struct Copy {
  const char *name;
  Arena *a;
  Tensor *t; /* out; NULL: no value */
} Copy;

static void copy_out(Scope *s, void *user) {
  Copy *c = user;
  Entry *e = find(s, c->name);
  if (!e) return;
  entry_align(s, e);
  Form *f = entry_form(e, NULL, NULL);
  c->t = arena_dup(c->a, &e->shown, sizeof e->shown);
  c->t->data = f ? f->data : arena_alloc(c->a, tensor_bytes(&e->shown));
  if (!f) entry_permute(e, entry_on_host(e), NULL, c->t->data, NULL);
}

Tensor *scope_copy(Scope *s, const char *name, Arena *a) {
  Copy c = {name, a, NULL};
  locked(s, copy_out, &c);
  return c.t;
}

const Tensor *scope_sequences(Scope *s, const char *name) {
  const Tensor *t = is_lod(name) ? scope_get(s, name) : NULL;
  return t && t->dtype == DT_INT64 && t->rank == 1 ? t : NULL;
}

int scope_levels(Scope *s, const char *name, Arena *a, const Tensor **levels) {
  int n = 0;
  for (; n < PARAMS_LEVELS; n++) {
    const char *offsets = lod_name(a, name, n);
    const Tensor *t = scope_sequences(s, offsets) ? scope_copy(s, offsets, a) : NULL;
    if (!t) break;
    levels[n] = t;
  }
  for (int i = 0; i < n / 2; i++) {
    const Tensor *t = levels[i];
    levels[i] = levels[n - 1 - i];
    levels[n - 1 - i] = t;
  }
  return n;
}
