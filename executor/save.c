/* Parameter files from a scope. In: a scope, and a program whose persistable variables are wanted. Out: a file in the
 * .pdiparams layout, written tensor by tensor, so that saving needs no memory of the file's size; or a folder with such a
 * file for each variable. */
#include "internal.h"
#include <string.h>
#include <zlib.h>

static bool add(VfsOut *o, const void *data, size_t n, FileSum *sum) {
  if (!n) return true;
  sum->crc = crc32_z(sum->crc, data, n);
  sum->bytes += n;
  return vfs_out_add(o, data, n);
}

static bool all_there(Scope *s, int n, Var *const *vars) {
  Tensor shape;
  for (int i = 0; i < n; i++)
    if (!scope_shape(s, vars[i]->name, &shape)) {
      err_set(E_RUN_001, "%s has no value to save", quoted(vars[i]->name));
      err_help("run the startup program, or load parameters, before saving them");
      return false;
    }
  return true;
}

static bool write_one(Scope *s, const char *name, VfsOut *o, FileSum *sum) {
  Arena *a = arena_scratch();
  Str head;
  str_init(&head, a);
  const Tensor *t = scope_copy(s, name, a), *levels[PARAMS_LEVELS];
  int n = scope_lods(s) ? scope_levels(s, name, a, levels) : 0;
  bool ok = params_head(&head, sum->bytes, t, n, levels) && add(o, head.s, head.n, sum) &&
            add(o, t->data, tensor_bytes(t), sum);
  arena_free(a);
  return ok;
}

static bool write_all(Scope *s, const Program *p, VfsOut *o, FileSum *sum) {
  Arena *a = arena_scratch();
  Var **vars;
  int n = params_list(p, a, &vars);
  bool ok = all_there(s, n, vars);
  for (int i = 0; ok && i < n; i++) ok = write_one(s, vars[i]->name, o, sum);
  arena_free(a);
  return ok;
}

bool scope_write_params(Scope *s, const Program *p, VfsOut *o) {
  FileSum sum = {0};
  return write_all(s, p, o, &sum);
}

bool save_params(Scope *s, const Program *p, const char *path, FileSum *sum) {
  FileSum own = {0};
  Arena *a = arena_scratch();
  Var **vars;
  int n = params_list(p, a, &vars);
  bool ok = all_there(s, n, vars); /* else nothing is opened */
  arena_free(a);
  VfsOut *o = ok ? vfs_out_open(path) : NULL;
  if (!o) return false;
  MemGuard guard;
  if (MEM_GUARD(guard)) {
    vfs_out_close(o, false);
    mem_rethrow();
  }
  ok = write_all(s, p, o, sum ? sum : &own);
  mem_unguard(&guard);
  return vfs_out_close(o, ok) && ok;
}

/* A variable's own file; its name may hold folders. */
static bool save_one(Scope *s, Arena *a, const char *folder, const Var *v) {
  const char *path = param_file(a, folder, v);
  if (!path || !vfs_mkdirs(arena_strn(a, path, (size_t)(strrchr(path, '/') - path)))) return false;
  VfsOut *o = vfs_out_open(path);
  if (!o) return false;
  MemGuard guard;
  if (MEM_GUARD(guard)) {
    vfs_out_close(o, false);
    mem_rethrow();
  }
  FileSum sum = {0};
  bool ok = write_one(s, v->name, o, &sum);
  mem_unguard(&guard);
  return vfs_out_close(o, ok) && ok;
}

static bool save_each(Scope *s, const Program *p, const char *folder) {
  Arena *a = arena_scratch();
  Var **vars;
  int n = params_list(p, a, &vars);
  bool ok = all_there(s, n, vars);
  for (int i = 0; ok && i < n; i++) ok = save_one(s, a, folder, vars[i]);
  arena_free(a);
  return ok;
}

bool scope_save_params(Scope *s, const Program *p, const char *path) {
  size_t n = strlen(path);
  bool folder = (n && path[n - 1] == '/') || vfs_is_dir(path);
  return folder ? save_each(s, p, path) : save_params(s, p, path, NULL);
}
