/* Values of a program's persistable variables from files, whatever their form:
 *
 *   a combined file     entries in the order of the names of all persistable variables (.pdiparams, __params__)
 *   a dictionary        names and arrays (.pdparams); what it lacks is looked for in the .pdopt beside it
 *   a folder            a file for each variable, named as it is; or one of the files above, if the folder holds it
 *
 * The content of a file tells its form. In: a program and a path. Out: values in a scope, all of them or none. */
#include "internal.h"
#include <string.h>

/* Files that tensors view until they have been copied. */
typedef struct View {
  uint8_t *data;
  size_t n;
  uint64_t id; /* of the file, see vfs_map */
} View;
typedef struct Values {
  Arena *a;
  int n;
  Var **vars;
  Tensor *t;        /* of each variable; data NULL: not there yet */
  uint64_t *origin; /* see value_origin */
  bool *there;
  ParamLevels levels; /* entry: of the variable */
  View *views;
  int n_views;
} Values;

static void close_views(Values *v) {
  for (int i = 0; i < v->n_views; i++) vfs_unmap(v->views[i].data, v->views[i].n);
  v->n_views = 0;
}

static View *open_view(Values *v, const char *path) {
  View *to = &v->views[v->n_views];
  if (!strcmp(path, "-")) { /* in the arena: nothing to close */
    to = arena_new_of(v->a, View);
    return vfs_read(v->a, path, &to->data, &to->n) ? to : NULL;
  }
  if (!vfs_map(path, &to->data, &to->n, &to->id)) return NULL;
  v->n_views++;
  return to;
}

/* ---- dictionaries ---- */

static bool take_dictionary(Values *v, const char *path, View *file) {
  Map *all = pickle_params(file->data, file->n, path, v->a);
  for (int i = 0; all && i < v->n; i++) {
    const Tensor *t = map_get(all, v->vars[i]->name);
    if (!t || v->there[i]) continue;
    if (!params_fit(t, v->vars[i])) {
      err_where("%s", path);
      return false;
    }
    const char *name = v->vars[i]->name;
    v->t[i] = *t;
    v->origin[i] = value_origin(file->id, hash_bytes(1, name, strlen(name)), t);
    v->there[i] = true;
  }
  return all != NULL;
}

static int first_missing(const Values *v) {
  int i = 0;
  while (i < v->n && v->there[i]) i++;
  return i;
}

static bool missing(const Values *v, int i, const char *where) {
  int n = 0;
  for (int k = 0; k < v->n; k++) n += !v->there[k];
  err_set(E_PAR_006, "there is no value for %s", quoted(v->vars[i]->name));
  if (n > 1) err_note("nor for %d more of %d persistable variables", n - 1, v->n);
  err_where("%s", where);
  return false;
}

/* NAME.pdparams -> NAME.pdopt, if it is there */
static const char *state_beside(Arena *a, const char *path) {
  const char *dot = strrchr(path, '.');
  if (!dot || strcmp(dot, ".pdparams")) return NULL;
  const char *p = arena_fmt(a, "%.*s.pdopt", (int)(dot - path), path);
  return vfs_is_file(p) ? p : NULL;
}

static bool take_dictionaries(Values *v, const char *path, View *file) {
  if (!take_dictionary(v, path, file)) return false;
  const char *more = first_missing(v) < v->n ? state_beside(v->a, path) : NULL;
  if (more) {
    View *second = open_view(v, more);
    if (!second || !take_dictionary(v, more, second)) return false;
  }
  int i = first_missing(v);
  return i == v->n || missing(v, i, path);
}

/* ---- folders ---- */

/* A name that stays inside the folder, whatever it is joined to. */
static bool stays_inside(const char *name) {
  for (const char *p = name; *p;) {
    size_t n = strcspn(p, "/");
    if (!n || (n <= 2 && !strncmp(p, "..", n))) return false;
    p += n;
    if (*p && !*++p) return false;
  }
  return *name;
}

const char *param_file(Arena *a, const char *folder, const Var *v) {
  if (stays_inside(v->name)) return arena_fmt(a, "%s/%s", folder, v->name);
  err_set(E_PAR_001, "the variable %s cannot have a file of its own", quoted(v->name));
  err_help("its name would lead out of the folder");
  return NULL;
}

static bool take_folder(Values *v, const char *folder) {
  for (int i = 0; i < v->n; i++) {
    const char *path = param_file(v->a, folder, v->vars[i]);
    if (!path) return false;
    if (!vfs_is_file(path)) {
      missing(v, i, folder);
      if (checkpoint_exists(folder))
        err_help("it holds checkpoints: take %s/step-NNNNNNNNNN, with the program that was trained",
                 folder);
      return false;
    }
    View *file = open_view(v, path);
    if (!file) return false;
    int n = v->levels.all.n;
    if (!params_view_one(file->data, file->n, path, v->vars[i], v->a, &v->t[i], &v->levels))
      return false;
    for (; n < v->levels.all.n; n++) v->levels.all.v[n].entry = i;
    v->origin[i] = value_origin(file->id, 0, &v->t[i]);
    v->there[i] = true;
  }
  return true;
}

/* The file in a folder that holds all values; NULL: there is none, or an error. */
static const char *file_inside(Arena *a, const char *folder, const Program *p) {
  static const char *const fixed[] = {"params.pdiparams", "__params__", NULL};
  static const char *const tails[] = {".pdiparams", ".pdparams", NULL};
  Var **vars;
  int n = params_list(p, a, &vars);
  if (n && stays_inside(vars[0]->name) && vfs_is_file(arena_fmt(a, "%s/%s", folder, vars[0]->name)))
    return NULL;
  return path_in_folder(a, folder, fixed, tails);
}

/* ---- all forms ---- */

static bool take_combined(Values *v, Scope *s, const Program *stored, const char *path,
                          View *file) {
  bool mapped = strcmp(path, "-") != 0;
  v->n = mapped ? 0 : params_list(stored, v->a, &v->vars);
  v->t = arena_array(v->a, Tensor, v->n + 1);
  v->origin = arena_array(v->a, uint64_t, v->n + 1);
  return mapped ? scope_map_params(s, stored, path)
                : params_view(file->data, file->n, path, v->n, v->vars, v->t, &v->levels);
}

static bool take_values(Values *v, Scope *s, const Program *stored, const char *path) {
  if (vfs_is_dir(path)) {
    const char *file = file_inside(v->a, path, stored);
    if (err_any()) return false;
    if (!file) return take_folder(v, path);
    path = file;
  }
  View *file = open_view(v, path);
  if (!file) return false;
  return pickle_is(file->data, file->n) ? take_dictionaries(v, path, file)
                                        : take_combined(v, s, stored, path, file);
}

static bool load(Values *v, Scope *s, const Program *stored, const char *path) {
  MemGuard guard;
  if (MEM_GUARD(guard)) {
    close_views(v);
    mem_rethrow();
  }
  bool ok = take_values(v, s, stored, path);
  if (ok && v->n) scope_set_all(s, v->a, v->n, v->vars, v->t, &v->levels, v->origin);
  mem_unguard(&guard);
  close_views(v);
  return ok;
}

bool scope_load_values(Scope *s, const Program *stored, const Program *wanted, const char *path) {
  Arena *a = arena_scratch();
  Values *v = arena_new_of(a, Values);
  v->a = v->levels.arena = a;
  v->n = params_list(wanted, a, &v->vars);
  v->t = arena_array(a, Tensor, v->n + 1);
  v->origin = arena_array(a, uint64_t, v->n + 1);
  v->there = arena_array(a, bool, v->n + 1);
  v->views = arena_array(a, View, v->n + 2);
  bool ok = load(v, s, stored, path);
  arena_free(a);
  return ok;
}

bool scope_load_params(Scope *s, const Program *p, const char *path) {
  return scope_load_values(s, p, p, path);
}

const char *values_beside(Arena *a, const Program *p, const char *path) {
  static const char *const tails[] = {".pdiparams", ".pdparams"};
  const char *dot = strrchr(path, '.'), *slash = strrchr(path, '/');
  bool model = !strcmp(slash ? slash + 1 : path, "__model__");
  for (size_t i = 0; !model && dot && (!slash || dot > slash) && i < 2; i++) {
    const char *file = arena_fmt(a, "%.*s%s", (int)(dot - path), path, tails[i]);
    if (vfs_is_file(file)) return file;
  }
  const char *folder = slash ? arena_strn(a, path, (size_t)(slash - path) + 1) : "./";
  const char *file = arena_fmt(a, "%s__params__", folder);
  if (model && vfs_is_file(file)) return file;
  Var **vars;
  bool own = params_list(p, a, &vars) && stays_inside(vars[0]->name) &&
             vfs_is_file(arena_fmt(a, "%s%s", folder, vars[0]->name));
  return own ? folder : NULL;
}
