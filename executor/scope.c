/* Scopes: tensors by name that outlive a run (parameters, optimiser state, running statistics).
 *
 * Large tensors of a parameter file stay where the file is mapped: pages come in when they are read, and become the scope's
 * own when they are written. Those that are not aligned there are copied when somebody wants their elements. A mapping goes
 * with the last tensor in it.
 *
 * In: names and values. Out: tensors, whose memory stays where it is until the variable gets another size or the scope is
 * freed. Look-ups from several threads are safe; so is setting different variables, but not changing a variable while
 * somebody runs with it.
 *
 * A variable is kept in the layout in which programs compute with it (Node.ia of STATE): the first run permutes it, and from
 * then on nobody does. What only reads gets a copy in its layout beside, what writes changes the variable's own: then the
 * copies go, so that no two forms of a variable are ever at odds. To the outside its dimensions are in their own order; for
 * who asks for the elements there is a copy in that order, made when asked for. Forms may be in the memory of a device: a
 * variable that a device has written is copied to the host when it is looked at there. A form on a device that is no
 * longer right keeps its memory for the next copy, so that addresses stay. */
#include "internal.h"
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

typedef struct Mapping {
  uint8_t *data;
  size_t n;
  int live; /* tensors in it */
  struct Mapping *next;
} Mapping;

/* The elements in a layout. */
typedef struct Form {
  int64_t layout[KL_VAR_RANK];
  Device *device; /* whose memory the data is in; NULL: the host's */
  bool old;       /* the elements are of an earlier value */
  bool raw;       /* only of the own form: in a file, not aligned */
  void *data;     /* NULL: none */
  struct Form *next;
} Form;

typedef struct Entry {
  Tensor shown;     /* to the outside; its data is that of a form, or `stale`, or NULL */
  bool pinned;      /* shown.data may still be read out there */
  void *stale;      /* pinned elements of an earlier value: their memory stays */
  Form own;         /* data NULL: the variable has no value */
  Form *copies;     /* in other layouts, of equal value; each of mem_alloc */
  uint64_t version; /* differs for every value of every variable of the process */
  uint64_t origin;  /* where the value was read from; 0: from nowhere that will be found again */
} Entry;

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

struct kl_scope {
  Arena *arena;
  Mapping *mappings;
  Map *by_name;  /* name -> Entry*; removed variables keep their (empty) Entry for reuse */
  uint64_t lods; /* see scope_lods */
  atomic_uint_least64_t changes;
  pthread_mutex_t lock;
};

Scope *scope_new(void) {
  Arena *a = arena_scratch();
  Scope *s = arena_new_of(a, Scope);
  s->arena = a;
  s->by_name = map_new(a);
  arena_keep(a);
  pthread_mutex_init(&s->lock, NULL);
  return s;
}

static void drop_mapping(Mapping *m) {
  vfs_unmap(m->data, m->n);
  mem_free(m);
}

/* Frees a tensor's data or, for that of a file, its place in the mapping. */
static void release(Scope *s, void *data) {
  uint8_t *p = data;
  for (Mapping **link = &s->mappings, *m; data && (m = *link); link = &m->next) {
    if (p < m->data || p >= m->data + m->n) continue;
    if (--m->live) return;
    *link = m->next;
    drop_mapping(m);
    return;
  }
  mem_free(data);
}

static void release_form(Scope *s, Form *f) {
  if (f->device)
    place_free(f->device, f->data);
  else
    release(s, f->data);
}

static bool is_layout(const Form *f, int rank, const int64_t *layout) {
  for (int d = 0; d < rank; d++)
    if (f->layout[d] != (layout ? layout[d] : d)) return false;
  return true;
}

static bool is_plain(int rank, const int64_t *layout) {
  int d = 0;
  while (layout && d < rank && layout[d] == d) d++;
  return !layout || d == rank;
}

static void set_layout(Form *f, int rank, const int64_t *layout) {
  for (int d = 0; d < rank; d++) f->layout[d] = layout ? layout[d] : d;
}

/* Those on a device stay as old ones. */
static void drop_copies(Scope *s, Entry *e) {
  Form *kept = NULL;
  atomic_fetch_add(&s->changes, 1);
  for (Form *f = e->copies, *next; f; f = next) {
    next = f->next;
    if (f->device) {
      f->old = true;
      f->next = kept;
      kept = f;
      continue;
    }
    bool shown = e->shown.data == f->data;
    if (shown && e->pinned)
      e->stale = f->data;
    else
      release(s, f->data);
    if (shown && !e->pinned) e->shown.data = NULL;
    mem_free(f);
  }
  e->copies = kept;
}

static void clear(Scope *s, Entry *e) {
  e->pinned = false;
  drop_copies(s, e);
  for (Form *f = e->copies, *next; f; f = next) {
    next = f->next;
    release_form(s, f);
    mem_free(f);
  }
  release_form(s, &e->own);
  release(s, e->stale);
  e->copies = NULL;
  e->own = (Form){.data = NULL};
  e->stale = e->shown.data = NULL;
}

void scope_free(Scope *s) {
  if (!s) return;
  for (int i = 0; i < map_n(s->by_name); i++) {
    void *e;
    map_at(s->by_name, i, &e);
    clear(s, e);
  }
  pthread_mutex_destroy(&s->lock);
  arena_free(s->arena);
}

/* The pages of a file that lie inside a tensor that has been copied need not stay. */
static void drop_pages(const Tensor *t) {
  uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), from = (uintptr_t)t->data + page - 1;
  uintptr_t to = (uintptr_t)t->data + tensor_bytes(t);
  from -= from % page;
  to -= to % page;
  if (from < to) madvise((void *)from, to - from, MADV_DONTNEED); /* a refusal costs memory only */
}

/* The own form becomes one that can be read. */
static void align(Scope *s, Entry *e) {
  if (!e->own.raw) return;
  Tensor from = e->shown;
  from.data = e->own.data;
  void *to = mem_take(tensor_bytes(&from));
  memcpy(to, from.data, tensor_bytes(&from));
  drop_pages(&from);
  release(s, from.data);
  e->own.data = to;
  e->own.raw = false;
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

/* ---- layouts ---- */

typedef struct Permutation {
  void *to;
  Tensor from;
  int64_t layout[KL_VAR_RANK];
} Permutation;

static void permute_share(void *user, int thread, int64_t begin, int64_t end) {
  const Permutation *p = user;
  (void)thread;
  tensor_permute_some(p->to, &p->from, p->layout, begin, end);
}

/* A host form's elements in another layout. */
static void permute(const Entry *e, const Form *f, const int64_t *layout, void *to, Pool *pool) {
  int64_t inverse[KL_VAR_RANK];
  Permutation p = {.to = to, .from = tensor_layout(&e->shown, f->layout)};
  p.from.data = f->data;
  layout_inverse(e->shown.rank, f->layout, inverse);
  for (int d = 0; d < e->shown.rank; d++) p.layout[d] = inverse[layout ? layout[d] : d];
  int64_t n = tensor_permute_tasks(&p.from, p.layout);
  if (pool)
    pool_run(pool, n, permute_share, &p);
  else
    tensor_permute(to, &p.from, p.layout);
}

static Form *next_form(Entry *e, Form *f) { return f == &e->own ? e->copies : f->next; }

static Form *find_form(Entry *e, const Device *d, const int64_t *layout) {
  Form *f = &e->own;
  while (f && (f->old || f->device != d || !is_layout(f, e->shown.rank, layout)))
    f = next_form(e, f);
  return f;
}

/* Any form that the host can read; what only a device has is copied. */
static Form *host_form(Entry *e);

static size_t form_bytes(const Entry *e) { return tensor_bytes(&e->shown) + 64; }

/* A copy beside the own form, its elements not yet there. */
static Form *new_copy(Entry *e, Device *d, const int64_t *layout) {
  Form *const f = mem_alloc(sizeof *f);
  MemGuard guard;
  if (MEM_GUARD(guard)) {
    mem_free(f);
    mem_rethrow();
  }
  bool stale = !d && is_plain(e->shown.rank, layout) && e->stale;
  f->data = stale ? e->stale : place_take(d, form_bytes(e));
  mem_unguard(&guard);
  if (stale) e->stale = NULL;
  f->device = d;
  f->old = true;
  set_layout(f, e->shown.rank, layout);
  f->next = e->copies;
  return e->copies = f;
}

static Form *host_copy(Entry *e, const int64_t *layout, Pool *pool) {
  Form *from = host_form(e);
  if (is_layout(from, e->shown.rank, layout)) return from;
  Form *f = new_copy(e, NULL, layout);
  permute(e, from, layout, f->data, pool);
  f->old = false;
  return f;
}

static Form *host_form(Entry *e) {
  Form *f = &e->own;
  while (f && (f->old || f->device)) f = next_form(e, f);
  if (f) return f;
  f = new_copy(e, NULL, e->own.layout);
  place_get(e->own.device, f->data, e->own.data, tensor_bytes(&e->shown));
  f->old = false;
  return f;
}

static void remove_copy(Scope *s, Entry *e, Form *f) {
  Form **link = &e->copies;
  while (*link != f) link = &(*link)->next;
  *link = f->next;
  release_form(s, f);
  mem_free(f);
}

static Form *device_copy(Scope *s, Entry *e, Device *d, const int64_t *layout, Pool *pool) {
  Form *from = find_form(e, NULL, layout), *f = e->copies;
  bool passing = !from; /* a copy that nobody else wants */
  if (passing) from = host_copy(e, layout, pool);
  while (f && (f->device != d || !is_layout(f, e->shown.rank, layout))) f = f->next;
  if (!f) f = new_copy(e, d, layout);
  place_put(d, f->data, from->data, tensor_bytes(&e->shown));
  f->old = false;
  if (passing && from != &e->own) remove_copy(s, e, from);
  return f;
}

static Form *add_copy(Scope *s, Entry *e, Device *d, const int64_t *layout, Pool *pool) {
  return d ? device_copy(s, e, d, layout, pool) : host_copy(e, layout, pool);
}

/* The one form that is left is in this layout. */
static void keep_only(Scope *s, Entry *e, Device *d, const int64_t *layout, Pool *pool) {
  Form *f = find_form(e, d, layout);
  if (!f) f = add_copy(s, e, d, layout, pool);
  if (f != &e->own) {
    Form was = e->own;
    e->own = *f;
    *f = was;
    f->next = e->own.next;
    e->own.next = NULL;
  }
  drop_copies(s, e);
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
  align(s, e);
  if (r->alone) keep_only(s, e, r->device, r->layout, r->pool);
  Form *f = find_form(e, r->device, r->layout);
  r->data = f ? f->data : add_copy(s, e, r->device, r->layout, r->pool)->data;
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
  r->entry->shown.data = r->data;
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
    drop_copies(s, e);
  } else {
    clear(s, e);
    e->own.data = value->data;
    e->own.device = d;
  }
  void *shown = e->shown.data;
  e->shown = *value;
  e->shown.data = shown;
  set_layout(&e->own, value->rank, layout);
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
    clear(s, e);
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

/* ---- parameters ---- */

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
  align(s, e);
  Form *f = find_form(e, NULL, NULL);
  c->t = arena_dup(c->a, &e->shown, sizeof e->shown);
  c->t->data = f ? f->data : arena_alloc(c->a, tensor_bytes(&e->shown));
  if (!f) permute(e, host_form(e), NULL, c->t->data, NULL);
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

static bool stays(const Mapping *m, const Tensor *t) {
  return m && tensor_bytes(t) >= PARAMS_LARGE;
}

/* Copies, but of what stays in the mapping, all in memory of their own until the last one is there. */
static void copy_all(int n, const Tensor *t, Mapping *m, Tensor *copy) {
  for (int i = 0; i < n; i++) {
    copy[i] = t[i];
    if (stays(m, &t[i])) continue;
    copy[i].data = NULL;
    copy[i].data = mem_take(tensor_bytes(&t[i]) + 1);
    memcpy(copy[i].data, t[i].data, tensor_bytes(&t[i]));
    if (m) drop_pages(&t[i]);
  }
}

static void adopt(Scope *s, Mapping *m) {
  pthread_mutex_lock(&s->lock);
  m->next = s->mappings;
  s->mappings = m;
  pthread_mutex_unlock(&s->lock);
}

uint64_t value_origin(uint64_t file, uint64_t place, const Tensor *t) {
  enum { SAMPLE = 64 };
  const uint8_t *p = t->data;
  size_t n = tensor_bytes(t), k = n < SAMPLE ? n : SAMPLE;
  uint64_t h = hash_bytes(file, &place, sizeof place);
  h = hash_bytes(hash_bytes(h, p, k), p + n - k, k);
  return file && h ? h : 0;
}

static void note_origin(Scope *s, const char *name, uint64_t origin) {
  pthread_mutex_lock(&s->lock);
  Entry *e = map_get(s->by_name, name);
  e->own.raw = !e->own.device && (uintptr_t)e->own.data % PARAMS_ALIGN != 0;
  e->origin = origin;
  pthread_mutex_unlock(&s->lock);
}

/* Names and values to be set: of variables, then of the offsets of their sequences. */
typedef struct Values {
  int n;
  const char **name;
  Tensor *t;
  uint64_t *origin;
} Values;

static Values all_values(Arena *a, int n, Var *const *vars, const Tensor *t,
                         const ParamLevels *levels, const uint64_t *origin) {
  int more = levels ? levels->all.n : 0;
  Values v = {n + more, arena_array(a, const char *, n + more + 1),
              arena_array(a, Tensor, n + more + 1), arena_array(a, uint64_t, n + more + 1)};
  for (int i = 0; i < n; i++) {
    v.name[i] = vars[i]->name;
    v.t[i] = t[i];
    if (origin) v.origin[i] = origin[i];
  }
  for (int i = 0; i < more; i++) {
    const ParamLevel *l = &levels->all.v[i];
    v.name[n + i] = lod_name(a, vars[l->entry]->name, l->depth);
    v.t[n + i] = l->offsets;
  }
  return v;
}

/* Offsets that variables have had before, a list that ends with NULL. */
static const char **old_levels(Scope *s, Arena *a, int n, Var *const *vars) {
  VEC(const char *) old = {0};
  Tensor shape;
  for (int i = 0; i < n && scope_lods(s); i++)
    for (int d = 0; d < PARAMS_LEVELS; d++) {
      const char *name = lod_name(a, vars[i]->name, d);
      if (!scope_shape(s, name, &shape)) break;
      vec_add(a, &old, name);
    }
  vec_add(a, &old, NULL);
  return old.v;
}

/* All of them or, if memory is refused, none. m: NULL, or where they are mapped; it is the scope's if it has live ones then. */
static void set_all(Scope *s, Arena *a, int n_vars, Var *const *vars, const Tensor *of, Mapping *m,
                    const ParamLevels *levels, const uint64_t *origin) {
  const Values v = all_values(a, n_vars, vars, of, levels, origin);
  const int n = v.n;
  const Tensor *const t = v.t;
  const char **const old = old_levels(s, a, n_vars, vars);
  Tensor *const copy = arena_array(a, Tensor, n + 1);
  MemGuard guard;
  if (MEM_GUARD(guard)) {
    for (int i = 0; i < n; i++)
      if (!stays(m, &t[i])) mem_free(copy[i].data);
    mem_rethrow();
  }
  for (int i = 0; i < n; i++) scope_reserve(s, v.name[i]);
  copy_all(n, t, m, copy);
  mem_unguard(&guard);
  for (int i = 0; old[i]; i++) scope_remove(s, old[i]);
  for (int i = 0; i < n; i++)
    if (stays(m, &t[i])) m->live++;
  if (m && m->live) adopt(s, m);
  for (int i = 0; i < n; i++) {
    scope_give(s, v.name[i], &copy[i], NULL, NULL);
    note_origin(s, v.name[i], v.origin[i]);
  }
}

void scope_set_all(Scope *s, Arena *a, int n, Var *const *vars, const Tensor *t,
                   const ParamLevels *levels, const uint64_t *origin) {
  set_all(s, a, n, vars, t, NULL, levels, origin);
}

static bool take_mapped(Scope *s, const Program *p, const char *path, Arena *a, Mapping *m,
                        uint64_t id) {
  Var **vars;
  int n = params_list(p, a, &vars);
  Tensor *t = arena_array(a, Tensor, n + 1);
  uint64_t *origin = arena_array(a, uint64_t, n + 1);
  ParamLevels levels = {.arena = a};
  if (!params_view(m->data, m->n, path, n, vars, t, &levels)) return false;
  for (int i = 0; i < n; i++)
    origin[i] = value_origin(id, (uint64_t)((uint8_t *)t[i].data - m->data), &t[i]);
  set_all(s, a, n, vars, t, m, &levels, origin);
  return true;
}

bool scope_map_params(Scope *s, const Program *p, const char *path) {
  Arena *a = arena_scratch();
  Mapping *m = mem_alloc(sizeof *m);
  uint64_t id;
  MemGuard guard;
  if (MEM_GUARD(guard)) {
    drop_mapping(m);
    mem_rethrow();
  }
  bool ok = vfs_map(path, &m->data, &m->n, &id) && take_mapped(s, p, path, a, m, id);
  mem_unguard(&guard);
  if (!m->live) drop_mapping(m);
  arena_free(a);
  return ok;
}
