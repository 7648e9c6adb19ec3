/* See util.h. The failing functions stand in mem_table and vfs_table and pass on to what was there before. */
#include "util.h"
#include <dirent.h>
#include <errno.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

static MemTable real_mem;
static int alloc_left;
static bool alloc_failed;

static void *failing_alloc(size_t n) {
  if (alloc_left && !--alloc_left) {
    alloc_failed = true;
    return NULL;
  }
  return real_mem.alloc(n);
}

void fail_alloc(int n) {
  if (!real_mem.alloc) real_mem = mem_table;
  mem_table = (MemTable){failing_alloc, real_mem.free};
  alloc_left = n;
  alloc_failed = false;
}

bool fail_alloc_done(void) { return alloc_failed; }

static VfsTable real_vfs;
static struct {
  int left, error;
  bool done;
} faults[FAIL_N];

static bool hit(FailFile what) {
  if (!faults[what].left || --faults[what].left) return false;
  errno = faults[what].error;
  return faults[what].done = true;
}

static int failing_open(const char *path, int flags, int mode) {
  return hit(FAIL_OPEN) ? -1 : real_vfs.open(path, flags, mode);
}
static ssize_t failing_read(int fd, void *p, size_t n) {
  return hit(FAIL_READ) ? -1 : real_vfs.read(fd, p, n);
}
static ssize_t failing_write(int fd, const void *p, size_t n) {
  return hit(FAIL_WRITE) ? -1 : real_vfs.write(fd, p, n > 1000 ? n / 2 : n); /* and short writes */
}
static int failing_sync(int fd) { return hit(FAIL_SYNC) ? -1 : real_vfs.fsync(fd); }
static int failing_close(int fd) { return real_vfs.close(fd) || hit(FAIL_CLOSE) ? -1 : 0; }
static int failing_rename(const char *from, const char *to) {
  return hit(FAIL_RENAME) ? -1 : real_vfs.rename(from, to);
}

void fail_file(FailFile what, int n, int error) {
  if (!real_vfs.open) real_vfs = vfs_table;
  vfs_table = (VfsTable){failing_open, failing_read,  failing_write,
                         failing_sync, failing_close, failing_rename};
  faults[what].left = n;
  faults[what].error = error;
  faults[what].done = false;
}

bool fail_file_done(FailFile what) { return faults[what].done; }

const char *scratch_folder(void) {
  static char path[64];
  strcpy(path, "/tmp/kiln-test-XXXXXX");
  assert_non_null(mkdtemp(path));
  return path;
}

static int each_file(const char *folder, bool remove_it) {
  DIR *d = opendir(folder);
  int n = 0;
  char path[512];
  for (struct dirent *e; d && (e = readdir(d));) {
    if (e->d_name[0] == '.') continue;
    n++;
    snprintf(path, sizeof path, "%.200s/%.255s", folder, e->d_name);
    if (remove_it && unlink(path)) scratch_remove(path);
  }
  if (d) closedir(d);
  return n;
}

int files_in(const char *folder) { return each_file(folder, false); }

void scratch_remove(const char *folder) {
  each_file(folder, true);
  rmdir(folder);
}

void check_error(ErrCode code, const char *part, const char *file, int line) {
  const Diag *d = err_get();
  if (!d || d->code != code)
    print_error("%s:%d: %s expected, got %s\n", file, line, err_name(code),
                d ? err_name(d->code) : "no error");
  char *text = NULL;
  size_t n = 0;
  FILE *to = open_memstream(&text, &n);
  err_print(to, false);
  fclose(to);
  bool has = strstr(text, part) != NULL;
  if (d && !has) print_error("%s:%d: \"%s\" is not in\n%s", file, line, part, text);
  free(text);
  bool ok = d && d->code == code && has;
  err_clear();
  _assert_true(ok, "the expected error", file, line);
}
