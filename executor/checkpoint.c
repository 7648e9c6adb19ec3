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
#include <fcntl.h>
#include <inttypes.h>
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

static void sync_dir(const char *path) {
  int fd = vfs_table.open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
  if (fd < 0) return;
  vfs_table.fsync(fd);
  vfs_table.close(fd);
}

static void remove_checkpoint(Arena *a, const char *path) {
  static const char *const files[] = {"manifest", "extra", "tensors.pdiparams"};
  for (size_t i = 0; i < sizeof files / sizeof *files; i++)
    unlink(arena_fmt(a, "%s/%s", path, files[i]));
  rmdir(path);
}

static int newest_first(const void *a, const void *b) {
  return -strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* Names step-NNNNNNNNNN in the folder, newest first. */
static int list_checkpoints(Arena *a, const char *dir, const char ***names) {
  VEC(const char *) v = {0};
  DIR *d = opendir(dir);
  for (struct dirent *e; d && (e = readdir(d));)
    if (!strncmp(e->d_name, "step-", 5)) vec_add(a, &v, arena_str(a, e->d_name));
  if (d) closedir(d);
  if (v.n) qsort(v.v, (size_t)v.n, sizeof *v.v, newest_first);
  *names = v.v;
  return v.n;
}

static bool write_files(Arena *a, const char *tmp, Scope *s, int n, Var *const *vars, uint64_t step,
                        uint64_t seed, const char *extra) {
  const Tensor **t = arena_array(a, const Tensor *, n + 1);
  for (int i = 0; i < n; i++)
    if (!(t[i] = scope_get(s, vars[i]->name)))
      return err_set(E_RUN_001, "%s has no value to save", quoted(vars[i]->name));
  Str bytes, man;
  str_init(&bytes, a);
  str_init(&man, a);
  if (!params_encode(&bytes, n, t)) return false;
  str_fmt(&man, MANIFEST, program_hash(n, vars, a), step, seed, bytes.n, crc_of(bytes.s, bytes.n),
          strlen(extra), crc_of(extra, strlen(extra)));
  return vfs_mkdirs(tmp) &&
         vfs_write(arena_fmt(a, "%s/tensors.pdiparams", tmp), bytes.s, bytes.n) &&
         vfs_write(arena_fmt(a, "%s/extra", tmp), extra, strlen(extra)) &&
         vfs_write(arena_fmt(a, "%s/manifest", tmp), man.s, man.n);
}

bool checkpoint_save(const char *dir, Scope *s, const Program *p, uint64_t step, uint64_t seed,
                     const char *extra) {
  Arena *a = arena_scratch();
  Var **vars;
  int n = params_list(p, a, &vars);
  const char *tmp = arena_fmt(a, "%s/.writing-%ld", dir, (long)getpid());
  const char *final = arena_fmt(a, "%s/step-%010" PRIu64, dir, step);
  remove_checkpoint(a, tmp);
  bool ok = write_files(a, tmp, s, n, vars, step, seed, extra ? extra : "");
  if (ok) {
    sync_dir(tmp);
    remove_checkpoint(a, final); /* of the same step, from a run that was resumed */
    if (vfs_table.rename(tmp, final) != 0)
      ok = err_set(E_IO_002, "the checkpoint %s cannot be put in place", quoted(final));
    sync_dir(dir);
  }
  if (!ok) remove_checkpoint(a, tmp);
  const char **names;
  int have = ok ? list_checkpoints(a, dir, &names) : 0;
  for (int i = KEEP; i < have; i++) remove_checkpoint(a, arena_fmt(a, "%s/%s", dir, names[i]));
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

/* Reads one checkpoint folder; false without a diagnostic if it is incomplete or damaged. */
static bool read_checkpoint(Arena *a, const char *path, Loaded *l) {
  uint8_t *man;
  size_t n_man, want_t, want_e;
  unsigned long crc_t, crc_e;
  bool ok = vfs_read(a, arena_fmt(a, "%s/manifest", path), &man, &n_man) &&
            sscanf((char *)man,
                   "kiln-checkpoint 1 program %" SCNx64 " step %" SCNu64 " seed %" SCNu64
                   " tensors %zu %lx extra %zu %lx",
                   &l->program, &l->step, &l->seed, &want_t, &crc_t, &want_e, &crc_e) == 7 &&
            vfs_read(a, arena_fmt(a, "%s/tensors.pdiparams", path), &l->tensors, &l->n_tensors) &&
            vfs_read(a, arena_fmt(a, "%s/extra", path), &l->extra, &l->n_extra) &&
            matches(l->tensors, l->n_tensors, want_t, crc_t) &&
            matches(l->extra, l->n_extra, want_e, crc_e);
  if (!ok) err_clear();
  return ok;
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
  if (!params_decode(l->tensors, l->n_tensors, path, n, vars, a, t)) return false;
  for (int i = 0; i < n; i++)
    if (!scope_set(s, vars[i]->name, t[i].dtype, t[i].rank, t[i].dims, t[i].data)) return false;
  return true;
}

bool checkpoint_load(const char *dir, Scope *s, const Program *p, uint64_t *step, uint64_t *seed,
                     char **extra, Arena *out) {
  Arena *a = arena_scratch();
  const char **names;
  int n = list_checkpoints(a, dir, &names);
  Loaded l = {0};
  int i = 0;
  while (i < n && !read_checkpoint(a, arena_fmt(a, "%s/%s", dir, names[i]), &l)) i++;
  bool ok = i < n;
  if (!ok) {
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
