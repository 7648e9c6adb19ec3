/* Program files: a path in, a verified Program out, and back.
 *
 * The form is recognised by content: text starts, after spaces and comments, with the word `program`; everything else is
 * a ProgramDesc. A folder stands for the one program in it: __model__, main.kl, or a single *.pdmodel or *.kl.
 * Saving goes by the extension: .kl is text, everything else a ProgramDesc. */
#include "ir.h"
#include <dirent.h>
#include <errno.h>
#include <string.h>

static bool ends_with(const char *s, const char *tail) {
  size_t n = strlen(s), m = strlen(tail);
  return n > m && !strcmp(s + n - m, tail);
}

static bool starts_as_text(const char *s, size_t n) {
  static const char word[] = "program";
  const char *end = s + n;
  while (s < end && (strchr(" \t\r\n", *s) || *s == '#')) {
    if (!*s) return false;
    if (*s == '#')
      while (s < end && *s != '\n') s++;
    else
      s++;
  }
  return (size_t)(end - s) >= sizeof word - 1 && !memcmp(s, word, sizeof word - 1);
}

/* The names in the folder that end in `tail`: how many, and the first in order. */
static int count_files(Arena *a, DIR *dir, const char *tail, const char **first) {
  int n = 0;
  rewinddir(dir);
  for (struct dirent *e; (e = readdir(dir));) {
    if (!ends_with(e->d_name, tail)) continue;
    if (!n++ || strcmp(e->d_name, *first) < 0) *first = arena_str(a, e->d_name);
  }
  return n;
}

const char *path_in_folder(Arena *a, const char *folder, const char *const *fixed,
                           const char *const *tails) {
  for (; *fixed; fixed++) {
    const char *path = arena_fmt(a, "%s/%s", folder, *fixed);
    if (vfs_is_file(path)) return path;
  }
  DIR *dir = opendir(folder);
  if (!dir) {
    err_set(E_IO_001, "cannot read the folder %s: %s", quoted(folder), strerror(errno));
    return NULL;
  }
  const char *path = NULL;
  for (; *tails && !path && !err_any(); tails++) {
    const char *first = NULL;
    int n = count_files(a, dir, *tails, &first);
    if (n == 1) path = arena_fmt(a, "%s/%s", folder, first);
    if (n > 1) {
      err_set(E_IO_001, "the folder %s holds %d files *%s", quoted(folder), n, *tails);
      err_help("Name the one you mean, for example %s.", quoted(first));
    }
  }
  closedir(dir);
  return path;
}

/* The path of the program in a folder. */
static const char *find_in_folder(Arena *a, const char *folder) {
  static const char *const fixed[] = {"__model__", "main.kl", NULL};
  static const char *const tails[] = {".pdmodel", ".kl", NULL};
  const char *path = path_in_folder(a, folder, fixed, tails);
  if (path || err_any()) return path;
  err_set(E_IO_001, "the folder %s holds no program", quoted(folder));
  err_help("A program is a file __model__, main.kl, *.pdmodel or *.kl.");
  return NULL;
}

static Program *load(Arena *a, const char *path) {
  uint8_t *bytes;
  size_t n;
  if (vfs_is_dir(path)) path = find_in_folder(a, path);
  if (!path || !vfs_read(a, path, &bytes, &n)) return NULL;
  bool text =
      starts_as_text((const char *)bytes, n) || (ends_with(path, ".kl") && !content_kind(bytes, n));
  return text ? prog_parse((const char *)bytes, n, path) : prog_decode(bytes, n, path);
}

/* Unknown operators are the last thing that the verifier finds. */
static bool verified(const Program *p, bool any) {
  if (prog_verify(p)) return true;
  if (!any || err_get()->code != E_OPR_001) return false;
  err_clear();
  return true;
}

static Program *load_verified(const char *path, bool any) {
  Arena *a = arena_new();
  Program *volatile p = NULL;
  MemGuard g;
  if (MEM_GUARD(g)) {
    prog_free(p);
    arena_free(a);
    return NULL;
  }
  err_clear();
  p = load(a, path);
  if (p && !verified(p, any)) {
    prog_free(p);
    p = NULL;
  }
  mem_unguard(&g);
  arena_free(a);
  return p;
}

Program *prog_load(const char *path) { return load_verified(path, false); }
Program *prog_load_any(const char *path) { return load_verified(path, true); }

static bool save(Arena *a, const Program *p, const char *path) {
  if (ends_with(path, ".kl")) {
    Str text;
    str_init(&text, a);
    prog_print(p, &text);
    return vfs_write(path, text.s, text.n);
  }
  uint8_t *bytes;
  size_t n;
  if (!prog_encode(p, a, &bytes, &n)) {
    err_where("while saving %s", path);
    return false;
  }
  return vfs_write(path, bytes, n);
}

bool prog_save(const Program *p, const char *path) {
  Arena *a = arena_new();
  MemGuard g;
  if (MEM_GUARD(g)) {
    arena_free(a);
    return false;
  }
  bool ok = save(a, p, path);
  mem_unguard(&g);
  arena_free(a);
  return ok;
}
