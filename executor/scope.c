/* Scopes: tensors by name that outlive a run (parameters, optimiser state, running statistics).
 *
 * Large tensors of a parameter file stay where the file is mapped, if they are aligned there: pages come in when they are
 * read, and become the scope's own when they are written. A mapping goes with the last tensor in it.
 *
 * In: names and values. Out: tensors whose data stays at one address until the variable gets another size or the scope
 * is freed. Look-ups from several threads are safe; so is setting different variables, but not changing a variable while
 * somebody runs with it. */
#include "internal.h"
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

typedef struct Mapping {
  uint8_t *data;
  size_t n;
  int live; /* tensors in it */
  struct Mapping *next;
} Mapping;

struct kl_scope {
  Arena *arena;
  Mapping *mappings;
  Map *by_name; /* name -> Tensor*; removed variables keep their (empty) Tensor for reuse */
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

void scope_free(Scope *s) {
  if (!s) return;
  for (int i = 0; i < map_n(s->by_name); i++) {
    void *t;
    map_at(s->by_name, i, &t);
    release(s, ((Tensor *)t)->data);
  }
  pthread_mutex_destroy(&s->lock);
  arena_free(s->arena);
}

Tensor *scope_get(Scope *s, const char *name) {
  pthread_mutex_lock(&s->lock);
  Tensor *t = map_get(s->by_name, name);
  pthread_mutex_unlock(&s->lock);
  return t && t->data ? t : NULL;
}

/* The variable's tensor, without data if it is new. */
static Tensor *entry(Scope *s, const char *name) {
  pthread_mutex_lock(&s->lock);
  MemGuard guard;
  if (MEM_GUARD(guard)) {
    pthread_mutex_unlock(&s->lock);
    mem_rethrow();
  }
  Tensor *t = map_get(s->by_name, name);
  if (!t) map_put(s->by_name, name, t = arena_new_of(s->arena, Tensor));
  mem_unguard(&guard);
  pthread_mutex_unlock(&s->lock);
  return t;
}

void scope_reserve(Scope *s, const char *name) { entry(s, name); }

void scope_give(Scope *s, const char *name, const Tensor *value) {
  pthread_mutex_lock(&s->lock);
  Tensor *t = map_get(s->by_name, name);
  if (value->data != t->data) release(s, t->data);
  *t = *value;
  pthread_mutex_unlock(&s->lock);
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
  Tensor *t = entry(s, name), now = {.dtype = d, .rank = rank, .data = t->data};
  if (!t->data || tensor_bytes(t) != bytes) now.data = mem_alloc(bytes ? bytes : 1);
  if (rank) memcpy(now.dims, dims, sizeof *dims * (size_t)rank);
  if (data)
    memmove(now.data, data, bytes);
  else
    memset(now.data, 0, bytes);
  scope_give(s, name, &now);
  return t;
}

void scope_remove(Scope *s, const char *name) {
  pthread_mutex_lock(&s->lock);
  Tensor *t = map_get(s->by_name, name);
  if (t) {
    release(s, t->data);
    t->data = NULL;
  }
  pthread_mutex_unlock(&s->lock);
}

static int by_text(const void *a, const void *b) {
  return strcmp(*(const char *const *)a, *(const char *const *)b);
}

int scope_names(Scope *s, Arena *a, const char ***names) {
  pthread_mutex_lock(&s->lock);
  MemGuard guard;
  if (MEM_GUARD(guard)) {
    pthread_mutex_unlock(&s->lock);
    mem_rethrow();
  }
  int n = 0;
  *names = arena_array(a, const char *, map_n(s->by_name) + 1);
  for (int i = 0; i < map_n(s->by_name); i++) {
    void *t;
    const char *name = map_at(s->by_name, i, &t);
    if (((Tensor *)t)->data) (*names)[n++] = arena_str(a, name);
  }
  mem_unguard(&guard);
  pthread_mutex_unlock(&s->lock);
  qsort(*names, (size_t)n, sizeof **names, by_text);
  return n;
}

bool scope_encode_params(Scope *s, const Program *p, Str *out) {
  Var **vars;
  int n = params_list(p, out->a, &vars);
  const Tensor **t = arena_array(out->a, const Tensor *, n + 1);
  for (int i = 0; i < n; i++)
    if (!(t[i] = scope_get(s, vars[i]->name))) {
      err_set(E_RUN_001, "%s has no value to save", quoted(vars[i]->name));
      err_help("run the startup program, or load parameters, before saving them");
      return false;
    }
  return params_encode(out, n, t);
}

bool scope_save_params(Scope *s, const Program *p, const char *path) {
  Arena *a = arena_scratch();
  Str bytes;
  str_init(&bytes, a);
  bool ok = scope_encode_params(s, p, &bytes) && vfs_write(path, bytes.s, bytes.n);
  arena_free(a);
  return ok;
}

static bool stays(const Mapping *m, const Tensor *t) {
  return m && tensor_bytes(t) >= PARAMS_LARGE && (uintptr_t)t->data % PARAMS_ALIGN == 0;
}

/* Copies, but of what stays in the mapping, all in memory of their own until the last one is there. */
static void copy_all(int n, const Tensor *t, Mapping *m, Tensor *copy) {
  for (int i = 0; i < n; i++) {
    copy[i] = t[i];
    if (stays(m, &t[i])) continue;
    copy[i].data = NULL;
    copy[i].data = mem_alloc(tensor_bytes(&t[i]) + 1);
    memcpy(copy[i].data, t[i].data, tensor_bytes(&t[i]));
  }
}

static void adopt(Scope *s, Mapping *m) {
  pthread_mutex_lock(&s->lock);
  m->next = s->mappings;
  s->mappings = m;
  pthread_mutex_unlock(&s->lock);
}

/* All of them or, if memory is refused, none. m: NULL, or where they are mapped; it is the scope's if it has live ones then. */
static void set_all(Scope *s, Arena *a, int n, Var *const *vars, const Tensor *t, Mapping *m) {
  Tensor *const copy = arena_array(a, Tensor, n + 1);
  MemGuard guard;
  if (MEM_GUARD(guard)) {
    for (int i = 0; i < n; i++)
      if (!stays(m, &t[i])) mem_free(copy[i].data);
    mem_rethrow();
  }
  for (int i = 0; i < n; i++) scope_reserve(s, vars[i]->name);
  copy_all(n, t, m, copy);
  mem_unguard(&guard);
  for (int i = 0; i < n; i++)
    if (stays(m, &t[i])) m->live++;
  if (m && m->live) adopt(s, m);
  for (int i = 0; i < n; i++) scope_give(s, vars[i]->name, &copy[i]);
}

void scope_set_all(Scope *s, Arena *a, int n, Var *const *vars, const Tensor *t) {
  set_all(s, a, n, vars, t, NULL);
}

/* m->data is the file's content; m->n of it. */
static bool take_params(Scope *s, const Program *p, const char *path, Arena *a, Mapping *m,
                        bool mapped) {
  Var **vars;
  int n = params_list(p, a, &vars);
  Tensor *t = arena_array(a, Tensor, n + 1);
  if (!params_view(m->data, m->n, path, n, vars, t)) return false;
  set_all(s, a, n, vars, t, mapped ? m : NULL);
  return true;
}

static bool map_params(Scope *s, const Program *p, const char *path, Arena *a) {
  Mapping *m = mem_alloc(sizeof *m);
  MemGuard guard;
  if (MEM_GUARD(guard)) {
    drop_mapping(m);
    mem_rethrow();
  }
  bool ok = vfs_map(path, &m->data, &m->n) && take_params(s, p, path, a, m, true);
  mem_unguard(&guard);
  if (!m->live) drop_mapping(m);
  return ok;
}

bool scope_load_params(Scope *s, const Program *p, const char *path) {
  Arena *a = arena_scratch();
  Mapping m = {0};
  bool ok = strcmp(path, "-")
                ? map_params(s, p, path, a)
                : vfs_read(a, path, &m.data, &m.n) && take_params(s, p, path, a, &m, false);
  arena_free(a);
  return ok;
}
