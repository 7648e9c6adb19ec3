/* Files: whole regular files in, atomically replaced files out, all through vfs_table.
 *
 * Reading refuses folders, FIFOs and devices (the open does not block on them). Writing goes to a new temporary file in
 * the same folder, which is synced and renamed over the target, and then the folder is synced; on any failure the
 * temporary file is removed and what stood there before is untouched. A sync that failed is never retried, since the
 * system may have dropped the data. */
#include "ir.h"
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static int posix_open(const char *path, int flags, int mode) { return open(path, flags, mode); }
static void *posix_map(size_t n, int fd) {
  void *p = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
  return p == MAP_FAILED ? NULL : p;
}
VfsTable vfs_table = {posix_open, read, write, fsync, close, rename, posix_map, munmap};

static const size_t max_file = (size_t)8 << 30;

static int open_file(const char *path, int flags) {
  int fd;
  do fd = vfs_table.open(path, flags | O_CLOEXEC, 0666);
  while (fd < 0 && errno == EINTR);
  return fd;
}

static const char *kind_of(mode_t m) {
  return S_ISDIR(m) ? "a folder" : S_ISFIFO(m) ? "a FIFO" : S_ISSOCK(m) ? "a socket" : "a device";
}

static const char *shown(const char *path, const char *std) {
  return strcmp(path, "-") ? quoted(path) : std;
}

static bool read_all(Arena *a, int fd, const char *path, size_t guess, uint8_t **data, size_t *n) {
  size_t cap = guess + 1, len = 0;
  uint8_t *p = arena_alloc(a, cap + 1);
  for (;;) {
    if (len == cap) {
      uint8_t *q = arena_alloc(a, 2 * cap + 4097);
      memcpy(q, p, len);
      p = q;
      cap = 2 * cap + 4096;
    }
    ssize_t r = vfs_table.read(fd, p + len, cap - len);
    if (r < 0 && errno == EINTR) continue;
    if (r < 0)
      return err_set(E_IO_001, "cannot read %s: %s", shown(path, "the standard input"),
                     strerror(errno));
    if (r == 0) break;
    len += (size_t)r;
    if (len > max_file)
      return err_set(E_MEM_002, "%s is larger than 8 GiB", shown(path, "the standard input"));
  }
  p[len] = 0;
  *data = p;
  *n = len;
  return true;
}

/* A regular file to be read, or -1. */
static int open_regular(const char *path, struct stat *st) {
  int fd = open_file(path, O_RDONLY | O_NONBLOCK | O_NOCTTY);
  if (fd < 0) {
    err_set(E_IO_001, "cannot open %s: %s", quoted(path), strerror(errno));
    if (errno == ENOENT) err_help("Check the path; it is relative to the folder you are in.");
    return -1;
  }
  if (fstat(fd, st))
    err_set(E_IO_001, "cannot read %s: %s", quoted(path), strerror(errno));
  else if (!S_ISREG(st->st_mode)) {
    err_set(E_IO_001, "%s is %s, not a regular file", quoted(path), kind_of(st->st_mode));
    err_help("Give a regular file, or - to read the standard input.");
  } else
    return fd;
  vfs_table.close(fd);
  return -1;
}

bool vfs_read(Arena *a, const char *path, uint8_t **data, size_t *n) {
  if (!strcmp(path, "-")) return read_all(a, 0, path, 65536, data, n);
  struct stat st;
  int fd = open_regular(path, &st);
  if (fd < 0) return false;
  bool ok;
  if ((uint64_t)st.st_size > max_file)
    ok = err_set(E_MEM_002, "%s has %lld bytes; at most 8 GiB are read", quoted(path),
                 (long long)st.st_size);
  else {
    /* a refused allocation must not leak the descriptor */
    MemGuard g;
    if (MEM_GUARD(g)) {
      vfs_table.close(fd);
      return false;
    }
    ok = read_all(a, fd, path, (size_t)st.st_size, data, n);
    mem_unguard(&g);
  }
  vfs_table.close(fd);
  return ok;
}

/* A file that is changed later gets another number: its times of change say so, if the last one is longer ago than their
 * steps, which are whole seconds where there are no fractions. */
static uint64_t identity(const struct stat *st) {
  const struct timespec *m = &st->st_mtim, *c = &st->st_ctim;
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  double at = (double)now.tv_sec + 1e-9 * (double)now.tv_nsec, least = 0.2;
  if (!m->tv_nsec && !c->tv_nsec) least = 3;
  if (at - ((double)c->tv_sec + 1e-9 * (double)c->tv_nsec) < least) return 0;
  uint64_t all[] = {st->st_dev,          st->st_ino,           (uint64_t)st->st_size,
                    (uint64_t)m->tv_sec, (uint64_t)m->tv_nsec, (uint64_t)c->tv_sec,
                    (uint64_t)c->tv_nsec};
  return hash_bytes(1, all, sizeof all);
}

bool vfs_map(const char *path, uint8_t **data, size_t *n, uint64_t *id) {
  struct stat st;
  int fd = open_regular(path, &st);
  if (fd < 0) return false;
  if (id) *id = identity(&st);
  *data = NULL;
  *n = (size_t)st.st_size;
  if (*n && !(*data = vfs_table.map(*n, fd)))
    err_set(E_IO_001, "cannot map %s into memory: %s", quoted(path), strerror(errno));
  vfs_table.close(fd);
  return *data || !*n;
}

void vfs_unmap(void *data, size_t n) {
  if (data) vfs_table.unmap(data, n);
}

/* ---- writing ---- */

struct VfsOut {
  int fd;
  bool failed, loose; /* loose: nothing is synced */
  bool has_temp;      /* else the standard output or a device, or the file is in place */
  bool has_backup, replaced;
  char *path, *temp, *dir, *backup;
  size_t n; /* bytes waiting in buf */
  uint8_t buf[1 << 16];
  char names[]; /* path, temp, dir and backup: nothing is allocated after the open */
};

static bool write_failed(VfsOut *o, const char *what) {
  int e = errno;
  o->failed = true;
  err_set(E_IO_002, "cannot %s %s: %s", what, shown(o->path, "the standard output"), strerror(e));
  if (e == ENOSPC || e == EDQUOT)
    err_help("Free some space. What stood there before is untouched.");
  return false;
}

static bool open_temp(VfsOut *o) {
  static atomic_uint serial;
  struct stat st;
  bool there = !stat(o->path, &st);
  if (there && S_ISCHR(st.st_mode)) { /* /dev/null, a terminal: nothing to replace */
    o->fd = open_file(o->path, O_WRONLY);
    return o->fd >= 0 || write_failed(o, "open");
  }
  if (there && !S_ISREG(st.st_mode)) {
    o->failed = true;
    err_set(E_IO_002, "%s is %s, not a regular file", quoted(o->path), kind_of(st.st_mode));
    err_help("Name a regular file, or - for the standard output.");
    return false;
  }
  for (int tries = 0; tries < 100; tries++) {
    sprintf(o->temp, "%s.tmp-%ld-%u", o->path, (long)getpid(), serial++);
    o->fd = open_file(o->temp, O_WRONLY | O_CREAT | O_EXCL);
    o->has_temp = o->fd >= 0;
    if (o->has_temp) {
      if (there && fchmod(o->fd, st.st_mode & 0777)) return write_failed(o, "set the mode of");
      return true;
    }
    if (errno != EEXIST) break;
  }
  return write_failed(o, "create");
}

VfsOut *vfs_out_open(const char *path) {
  enum { SUFFIX = 48 }; /* of the temporary name */
  size_t n = strlen(path) + 1;
  VfsOut *o = mem_alloc(sizeof *o + 4 * n + 2 * SUFFIX);
  o->path = memcpy(o->names, path, n);
  o->dir = memcpy(o->path + n, path, n);
  o->temp = o->dir + n;
  o->backup = o->temp + n + SUFFIX;
  o->fd = 1;
  if (!strcmp(path, "-")) return o;
  o->fd = -1;
  if (open_temp(o)) return o;
  vfs_out_close(o, false);
  return NULL;
}

static bool write_all(VfsOut *o, const uint8_t *p, size_t n) {
  while (n) {
    ssize_t w = vfs_table.write(o->fd, p, n < (1u << 30) ? n : 1u << 30);
    if (w < 0 && errno == EINTR) continue;
    if (w == 0) errno = EIO;
    if (w <= 0) return write_failed(o, "write");
    p += w;
    n -= (size_t)w;
  }
  return true;
}

static bool flush(VfsOut *o) {
  size_t n = o->n;
  o->n = 0;
  return write_all(o, o->buf, n);
}

bool vfs_out_add(VfsOut *o, const void *data, size_t n) {
  if (o->failed) return false;
  if (n > sizeof o->buf - o->n && !flush(o)) return false;
  if (n > sizeof o->buf) return write_all(o, data, n);
  if (n) memcpy(o->buf + o->n, data, n);
  o->n += n;
  return true;
}

static int sync_fd(int fd) {
  int r;
  do r = vfs_table.fsync(fd);
  while (r && errno == EINTR);
  return r;
}

/* All bytes are on the disk, under the temporary name, and the descriptor is closed. */
static bool settle(VfsOut *o, bool commit) {
  bool ok = commit && !o->failed && flush(o);
  if (o->fd <= 2) return ok;
  if (ok && o->has_temp && !o->loose && sync_fd(o->fd)) ok = write_failed(o, "sync");
  if (vfs_table.close(o->fd) && ok) ok = write_failed(o, "close");
  o->fd = -1;
  return ok;
}

/* Of the file that is to be replaced, so that it can be synced after the rename. */
static bool open_folder(VfsOut *o) {
  const char *slash = strrchr(o->path, '/');
  if (slash) o->dir[slash == o->path ? 1 : slash - o->path] = 0;
  o->fd = open_file(slash ? o->dir : ".", O_RDONLY | O_DIRECTORY);
  return o->fd >= 0 || write_failed(o, "open the folder of");
}

/* The complete temporary file takes the place of the old one, of which a link stays until the other files are done. */
static bool replace(VfsOut *o, bool keep) {
  sprintf(o->backup, "%s.old", o->temp);
  o->has_backup = keep && !link(o->path, o->backup);
  if (vfs_table.rename(o->temp, o->path)) return write_failed(o, "replace");
  o->has_temp = false;
  return o->replaced = true;
}

static void undo(VfsOut *o) {
  if (o->has_backup)
    rename(o->backup, o->path);
  else
    unlink(o->path);
  o->has_backup = false;
}

/* A folder's sync that fails is reported, but the new file stands by then, whole. File systems that cannot sync a folder
 * say EINVAL. */
static bool sync_folder(VfsOut *o) {
  return !sync_fd(o->fd) || errno == EINVAL || write_failed(o, "sync the folder of");
}

bool vfs_out_close_all(int n, VfsOut *const *o, bool commit) {
  bool ok = commit;
  for (int i = 0; i < n; i++)
    if (o[i]) ok = settle(o[i], ok);
  for (int i = 0; i < n; i++)
    if (ok && o[i] && o[i]->has_temp && !o[i]->loose) ok = open_folder(o[i]);
  for (int i = 0; i < n; i++)
    if (ok && o[i] && o[i]->has_temp) ok = replace(o[i], n > 1);
  for (int i = 0; i < n; i++) {
    if (!o[i]) continue;
    if (!ok && o[i]->replaced) undo(o[i]);
    if (o[i]->has_backup) unlink(o[i]->backup);
    if (o[i]->has_temp) unlink(o[i]->temp);
  }
  for (int i = 0; i < n; i++) {
    if (!o[i]) continue;
    if (ok && o[i]->replaced && !o[i]->loose) ok = sync_folder(o[i]);
    if (o[i]->fd > 2) vfs_table.close(o[i]->fd);
    mem_free(o[i]);
  }
  return ok || !commit;
}

bool vfs_out_close(VfsOut *o, bool commit) { return vfs_out_close_all(1, &o, commit); }

bool vfs_write(const char *path, const void *data, size_t n) {
  VfsOut *o = vfs_out_open(path);
  if (!o) return false;
  vfs_out_add(o, data, n);
  return vfs_out_close(o, true);
}

VfsOut *vfs_out_open_loose(const char *path) {
  VfsOut *o = vfs_out_open(path);
  if (o) o->loose = true;
  return o;
}

bool vfs_write_loose(const char *path, const void *data, size_t n) {
  VfsOut *o = vfs_out_open_loose(path);
  if (!o) return false;
  vfs_out_add(o, data, n);
  return vfs_out_close(o, true);
}

/* ---- folders ---- */

bool vfs_is_dir(const char *path) {
  struct stat st;
  return !stat(path, &st) && S_ISDIR(st.st_mode);
}

bool vfs_is_file(const char *path) {
  struct stat st;
  return !stat(path, &st) && S_ISREG(st.st_mode);
}

bool vfs_mkdirs(const char *path) {
  size_t n = strlen(path) + 1;
  char *p = memcpy(mem_alloc(n), path, n);
  bool ok = *p || err_set(E_IO_002, "the name of a folder is empty");
  for (char *s = p + 1; ok; s++) {
    bool last = !*s;
    if (*s != '/' && !last) continue;
    *s = 0;
    if (mkdir(p, 0777) && !vfs_is_dir(p))
      ok = err_set(E_IO_002, "cannot make the folder %s: %s", quoted(p), strerror(errno));
    if (last) break;
    *s = '/';
  }
  mem_free(p);
  return ok;
}
