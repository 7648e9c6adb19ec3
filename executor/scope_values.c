/* Many variables of a scope at once: parameters from files and checkpoints, with the offsets of their sequences.
 *
 * In: variables and tensors, or a parameter file. Out: all of them are set or, if memory is refused, none. Large tensors of a
 * parameter file stay where the file is mapped. */
#include "scope.h"
#include <string.h>

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
    if (m) mapping_drop_pages(&t[i]);
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
    mapping_free(m);
    mem_rethrow();
  }
  bool ok = vfs_map(path, &m->data, &m->n, &id) && take_mapped(s, p, path, a, m, id);
  mem_unguard(&guard);
  if (!m->live) mapping_free(m);
  arena_free(a);
  return ok;
}
