/* Checkpoints that are complete or not there.
 *
 * In: a scope, a program, the step and the caller's own state. Out: DIR/step-NNNNNNNNNN with
 *   tensors.pdiparams   the program's persistable variables, sorted by name
 *   extra               the caller's state, verbatim
 *   manifest            text, written last: format, program, step, seed, and size and CRC-32 of the two files
 * Everything is written into a folder of a temporary name, each file synced, then the folder is renamed. Loading takes
 * the newest folder whose manifest is there and whose files have the recorded sizes and sums. The newest KEEP stay. */
#include "internal.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>

enum { KEEP = 3 };
static const char MANIFEST[] = "kiln-checkpoint 1\nprogram %016" PRIx64 "\nstep %" PRIu64
                               "\nseed %" PRIu64 "\ntensors %zu %08lx\nextra %zu %08lx\n";

/* What a checkpoint belongs to: names, types and shapes of the persistable variables. */
static uint64_t program_hash(int n, Var *const *vars, Arena *a) {
  Str s;
  str_init(&s, a);
  for (int i = 0; i < n; i++) {
    str_fmt(&s, "%s %d", vars[i]->name, vars[i]->dtype);
    for (int d = 0; d < vars[i]->rank; d++) str_fmt(&s, " %lld", (long long)vars[i]->dims[d]);
    str_add(&s, "\n");
  }
  uint64_t h = 14695981039346656037u; /* FNV-1a */
  for (size_t i = 0; i < s.n; i++) h = (h ^ (uint8_t)s.s[i]) * 1099511628211u;
  return h;
}

static unsigned long crc_of(const void *p, size_t n) { return crc32_z(0, p, n); }

/* File systems that cannot sync a folder say EINVAL. */
static bool sync_dir(const char *path) {
  int fd = vfs_table.open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
  bool ok = fd >= 0 && (!vfs_table.fsync(fd) || errno == EINVAL);
  if (!ok) err_set(E_IO_002, "cannot sync the folder %s: %s", quoted(path), strerror(errno));
  if (fd >= 0) vfs_table.close(fd);
  return ok;
}

static void remove_checkpoint(const char *path) {
  static const char *const files[] = {"manifest", "extra", "tensors.pdiparams"};
  char name[PATH_MAX];
  for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
    if (snprintf(name, sizeof name, "%s/%s", path, files[i]) < PATH_MAX) unlink(name);
  }
  rmdir(path);
}

/* Everything in a folder of ours that a killed process left half-written, then the folder. */
static void remove_leftover(const char *path) {
  char name[PATH_MAX];
  DIR *d = opendir(path);
  for (struct dirent *e; d && (e = readdir(d));)
    if (snprintf(name, sizeof name, "%s/%s", path, e->d_name) < PATH_MAX) unlink(name);
  if (d) closedir(d);
  rmdir(path);
}

/* Folders of a name with %ld in it for a process that is no more. */
static void remove_leftovers(const char *dir, const char *format) {
  char name[PATH_MAX], path[PATH_MAX];
  DIR *d = opendir(dir);
  for (struct dirent *e; d && (e = readdir(d));) {
    const char *dash = strrchr(e->d_name, '-');
    long pid = dash ? strtol(dash + 1, NULL, 10) : 0;
    snprintf(name, sizeof name, format, pid);
    if (pid > 0 && !strcmp(name, e->d_name) && kill((pid_t)pid, 0) < 0 && errno == ESRCH &&
        snprintf(path, sizeof path, "%s/%s", dir, name) < PATH_MAX)
      remove_leftover(path);
  }
  if (d) closedir(d);
}

bool checkpoint_exists(const char *dir) {
  DIR *d = opendir(dir);
  bool found = false;
  for (struct dirent *e; d && !found && (e = readdir(d));) found = !strncmp(e->d_name, "step-", 5);
  if (d) closedir(d);
  return found;
}

static int newest_first(const void *a, const void *b) {
  return -strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* Names step-NNNNNNNNNN in the folder, newest first. */
static int list_checkpoints(Arena *a, const char *dir, const char ***names) {
  VEC(const char *) *const v = arena_alloc(a, sizeof *v);
  DIR *const d = opendir(dir);
  MemGuard guard;
  if (MEM_GUARD(guard)) {
    if (d) closedir(d);
    mem_rethrow();
  }
  for (struct dirent *e; d && (e = readdir(d));)
    if (!strncmp(e->d_name, "step-", 5)) vec_add(a, v, arena_str(a, e->d_name));
  mem_unguard(&guard);
  if (d) closedir(d);
  if (v->n) qsort(v->v, (size_t)v->n, sizeof *v->v, newest_first);
  *names = v->v;
  return v->n;
}

static bool write_files(Arena *a, const char *tmp, Scope *s, const Program *p, uint64_t step,
                        uint64_t seed, const char *extra) {
  Var **vars;
  int n = params_list(p, a, &vars);
  FileSum sum = {0};
  if (!vfs_mkdirs(tmp) || !save_params(s, p, arena_fmt(a, "%s/tensors.pdiparams", tmp), &sum))
    return false;
  Str man;
  str_init(&man, a);
  str_fmt(&man, MANIFEST, program_hash(n, vars, a), step, seed, sum.bytes, sum.crc, strlen(extra),
          crc_of(extra, strlen(extra)));
  return vfs_write(arena_fmt(a, "%s/extra", tmp), extra, strlen(extra)) &&
         vfs_write(arena_fmt(a, "%s/manifest", tmp), man.s, man.n) && sync_dir(tmp);
}

static bool write_guarded(Arena *a, const char *tmp, Scope *s, const Program *p, uint64_t step,
                          uint64_t seed, const char *extra) {
  MemGuard guard;
  if (MEM_GUARD(guard)) {
    remove_checkpoint(tmp);
    mem_rethrow();
  }
  bool ok = write_files(a, tmp, s, p, step, seed, extra);
  mem_unguard(&guard);
  if (!ok) remove_checkpoint(tmp);
  return ok;
}

/* The new folder takes its name; one of the same step, from a run that was resumed, steps aside until that is done. */
static bool put_in_place(const char *tmp, const char *final, const char *aside) {
  bool had = vfs_is_dir(final);
  remove_checkpoint(aside);
  if ((!had || !vfs_table.rename(final, aside)) && !vfs_table.rename(tmp, final)) {
    if (had) remove_checkpoint(aside);
    return true;
  }
  err_set(E_IO_002, "the checkpoint %s cannot be put in place: %s", quoted(final), strerror(errno));
  if (had && !vfs_is_dir(final)) rename(aside, final);
  remove_checkpoint(tmp);
  return false;
}

bool checkpoint_save(const char *dir, Scope *s, const Program *p, uint64_t step, uint64_t seed,
                     const char *extra) {
  Arena *a = arena_scratch();
  const char *tmp = arena_fmt(a, "%s/.writing-%ld", dir, (long)getpid());
  const char *aside = arena_fmt(a, "%s/.old-%ld", dir, (long)getpid());
  const char *final = arena_fmt(a, "%s/step-%010" PRIu64, dir, step);
  remove_leftovers(dir, ".writing-%ld");
  remove_checkpoint(tmp);
  bool ok = write_guarded(a, tmp, s, p, step, seed, extra ? extra : "") &&
            put_in_place(tmp, final, aside) && sync_dir(dir);
  if (ok) remove_leftovers(dir, ".old-%ld"); /* not before: it may have been the only one */
  const char **names;
  char old[PATH_MAX];
  int have = ok ? list_checkpoints(a, dir, &names) : 0;
  for (int i = KEEP; i < have; i++) {
    if (snprintf(old, sizeof old, "%s/%s", dir, names[i]) < PATH_MAX) remove_checkpoint(old);
  }
  arena_free(a);
  return ok;
}

typedef struct Loaded {
  uint64_t program, step, seed;
  uint8_t *tensors, *extra;
  size_t n_tensors, n_extra;
} Loaded;

static bool matches(const uint8_t *data, size_t n, size_t want, unsigned long crc) {
  return n == want && crc_of(data, n) == crc;
}

/* A file that is missing makes a checkpoint incomplete; one that is there and cannot be read is an error. */
static bool read_file(Arena *a, const char *path, uint8_t **data, size_t *n) {
  return vfs_is_file(path) && vfs_read(a, path, data, n);
}

/* Reads one checkpoint folder; false without a diagnostic if it is incomplete or damaged. */
static bool read_checkpoint(Arena *a, const char *path, Loaded *l) {
  uint8_t *man;
  size_t n_man, want_t, want_e;
  unsigned long crc_t, crc_e;
  return read_file(a, arena_fmt(a, "%s/manifest", path), &man, &n_man) &&
         sscanf((char *)man,
                "kiln-checkpoint 1 program %" SCNx64 " step %" SCNu64 " seed %" SCNu64
                " tensors %zu %lx extra %zu %lx",
                &l->program, &l->step, &l->seed, &want_t, &crc_t, &want_e, &crc_e) == 7 &&
         read_file(a, arena_fmt(a, "%s/tensors.pdiparams", path), &l->tensors, &l->n_tensors) &&
         read_file(a, arena_fmt(a, "%s/extra", path), &l->extra, &l->n_extra) &&
         matches(l->tensors, l->n_tensors, want_t, crc_t) &&
         matches(l->extra, l->n_extra, want_e, crc_e);
}

static bool apply(const Loaded *l, const char *path, Scope *s, const Program *p, Arena *a) {
  Var **vars;
  int n = params_list(p, a, &vars);
  if (l->program != program_hash(n, vars, a)) {
    err_set(E_CKP_001, "the checkpoint belongs to another program");
    err_where("%s", path);
    err_help("its persistable variables have other names, types or shapes: resume with the program "
             "that saved it, or train into another folder");
    return false;
  }
  Tensor *t = arena_array(a, Tensor, n + 1);
  ParamLevels levels = {.arena = a};
  if (!params_view(l->tensors, l->n_tensors, path, n, vars, t, &levels)) return false;
  scope_set_all(s, a, n, vars, t, &levels, NULL);
  return true;
}

bool checkpoint_load(const char *dir, Scope *s, const Program *p, uint64_t *step, uint64_t *seed,
                     char **extra, Arena *out) {
  Arena *a = arena_scratch();
  const char **names;
  int n = list_checkpoints(a, dir, &names);
  Loaded l = {0};
  int i = 0;
  while (i < n && !read_checkpoint(a, arena_fmt(a, "%s/%s", dir, names[i]), &l) && !err_any()) i++;
  bool ok = i < n && !err_any();
  if (!ok && !err_any()) {
    err_set(E_CKP_001, "no complete checkpoint in %s (%d folders looked at)", quoted(dir), n);
    err_help("train with --save %s --save-every N first", dir);
  }
  ok = ok && apply(&l, arena_fmt(a, "%s/%s", dir, names[i]), s, p, a);
  if (ok) {
    *step = l.step;
    *seed = l.seed;
    *extra = arena_strn(out, (char *)l.extra, l.n_extra);
  }
  arena_free(a);
  return ok;
}
