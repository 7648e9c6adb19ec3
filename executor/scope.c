/* Scopes: tensors by name that outlive a run (parameters, optimiser state, running statistics).
 *
 * In: names and values. Out: tensors whose data stays at one address until the variable gets another size or the scope
 * is freed. Look-ups from several threads are safe; so is setting different variables, but not changing a variable while
 * somebody runs with it. */
#include "internal.h"
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

struct kl_scope {
  Arena *arena;
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

void scope_free(Scope *s) {
  if (!s) return;
  for (int i = 0; i < map_n(s->by_name); i++) {
    void *t;
    map_at(s->by_name, i, &t);
    mem_free(((Tensor *)t)->data);
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
  if (value->data != t->data) mem_free(t->data);
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
    mem_free(t->data);
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

/* Copies, all in memory of their own until the last one is there. */
static void copy_all(int n, const Tensor *t, Tensor *copy) {
  for (int i = 0; i < n; i++) {
    copy[i] = t[i];
    copy[i].data = NULL;
    copy[i].data = mem_alloc(tensor_bytes(&t[i]) + 1);
    memcpy(copy[i].data, t[i].data, tensor_bytes(&t[i]));
  }
}

void scope_set_all(Scope *s, Arena *a, int n, Var *const *vars, const Tensor *t) {
  Tensor *const copy = arena_array(a, Tensor, n + 1);
  MemGuard guard;
  if (MEM_GUARD(guard)) {
    for (int i = 0; i < n; i++) mem_free(copy[i].data);
    mem_rethrow();
  }
  for (int i = 0; i < n; i++) scope_reserve(s, vars[i]->name);
  copy_all(n, t, copy);
  mem_unguard(&guard);
  for (int i = 0; i < n; i++) scope_give(s, vars[i]->name, &copy[i]);
}

bool scope_load_params(Scope *s, const Program *p, const char *path) {
  Arena *a = arena_scratch();
  Var **vars;
  int n = params_list(p, a, &vars);
  Tensor *t = arena_array(a, Tensor, n + 1);
  uint8_t *bytes;
  size_t n_bytes;
  bool ok =
      vfs_read(a, path, &bytes, &n_bytes) && params_decode(bytes, n_bytes, path, n, vars, a, t);
  if (ok) scope_set_all(s, a, n, vars, t);
  arena_free(a);
  return ok;
}
