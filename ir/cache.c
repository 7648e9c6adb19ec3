/* The disk cache: values that can be made again, found by their key. In: a key, any bytes; out: the value that was last put
 * under it, or nothing. One file for each entry, in the folder
 *   $KILN_CACHE_DIR, else $XDG_CACHE_HOME/kiln, else ~/.cache/kiln          (KILN_CACHE=0: no cache)
 * named by the key's hash; it holds the whole key, so that equal hashes do no harm, and a checksum over all of it. An
 * entry is written under a temporary name and renamed: readers see all of it or none, several processes at once are
 * fine. What is cut off, changed or not ours is no entry. Nothing here fails a caller: without the disk nothing is found.
 * Of a folder that others may write to, nothing is taken, since entries are run as code.
 * $KILN_CACHE_SIZE bounds the bytes of all entries; those not used for the longest time go first. The time of use is the
 * file's time of change, renewed on a hit when it is older than FRESH seconds. */
#include "ir.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { FRESH = 3600, NAME = 16, PATH = 4096 };
static const char suffix[] = ".kc";
static const uint64_t magic = 0x316568636e6c696b; /* "kilnche1" */
static const int64_t default_limit = (int64_t)256 << 20, max_entry = (int64_t)64 << 20;

typedef struct Head {
  uint64_t magic, n_key, n_value;
  uint64_t sum; /* of the two lengths, the key and the value */
} Head;

/* What this process knows of the folder's size: found out before its first entry is written. */
static struct {
  pthread_mutex_t lock;
  char dir[PATH];
  int64_t bytes;
} known = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* Each step is a bijection of the state: a change within one word always changes the sum. */
uint64_t hash_bytes(uint64_t h, const void *p, size_t n) {
  const uint8_t *s = p;
  h ^= 0x9e3779b97f4a7c15u + n;
  for (uint64_t w; n; s += sizeof w, n -= n < sizeof w ? n : sizeof w) {
    w = 0;
    memcpy(&w, s, n < sizeof w ? n : sizeof w);
    h = (h ^ w) * 0xff51afd7ed558ccdu;
    h ^= h >> 32;
  }
  return h;
}

/* ---- the folder ---- */

static bool folder(char path[PATH]) {
  const char *on = getenv("KILN_CACHE"), *own = getenv("KILN_CACHE_DIR"),
             *xdg = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
  int n = -1;
  if (on && !strcmp(on, "0")) return false;
  if (own && *own)
    n = snprintf(path, PATH, "%s", own);
  else if (xdg && *xdg == '/')
    n = snprintf(path, PATH, "%s/kiln", xdg);
  else if (home && *home == '/')
    n = snprintf(path, PATH, "%s/.cache/kiln", home);
  return n > 0 && n < PATH - 64;
}

/* Ours, and not to be written by others. */
static bool trusted(const char *path) {
  struct stat st;
  return !stat(path, &st) && S_ISDIR(st.st_mode) && !(st.st_mode & (S_IWGRP | S_IWOTH)) &&
         (st.st_uid == geteuid() || st.st_uid == 0);
}

static bool is_entry(const char *name) {
  return strlen(name) == NAME + sizeof suffix - 1 && strspn(name, "0123456789abcdef") == NAME &&
         !strcmp(name + NAME, suffix);
}

/* The temporary file of a writer that did not get to the end. */
static bool is_rest(const char *name) {
  return strspn(name, "0123456789abcdef") == NAME && !strncmp(name + NAME, suffix, 3) &&
         !strncmp(name + NAME + 3, ".tmp-", 5);
}

static int64_t limit(void) {
  const char *text = getenv("KILN_CACHE_SIZE");
  char *end;
  if (!text || !*text) return default_limit;
  long long v = strtoll(text, &end, 10);
  int shift = *end == 'K' ? 10 : *end == 'M' ? 20 : *end == 'G' ? 30 : 0;
  bool ok = end != text && v >= 0 && v < (1ll << 32) << (30 - shift) && !end[shift != 0];
  return ok ? (int64_t)v << shift : default_limit;
}

static int64_t seconds_ago(const struct stat *st) { return (int64_t)(time(NULL) - st->st_mtime); }

/* ---- reading ---- */

static bool read_full(int fd, uint8_t *p, size_t n) {
  while (n) {
    ssize_t r = vfs_table.read(fd, p, n);
    if (r < 0 && errno == EINTR) continue;
    if (r <= 0) return false;
    p += r;
    n -= (size_t)r;
  }
  return true;
}

static uint64_t checksum(uint64_t n_key, uint64_t n_value, const void *key, const void *value) {
  uint64_t n[2] = {n_key, n_value};
  return hash_bytes(hash_bytes(hash_bytes(magic, n, sizeof n), key, n_key), value, n_value);
}

/* Memory is taken before the file is opened. */
static bool read_entry(const char *path, uint8_t *to, size_t room, size_t *n) {
  struct stat st;
  int fd = vfs_table.open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY, 0);
  if (fd < 0) return false;
  bool ok = !fstat(fd, &st) && S_ISREG(st.st_mode) && st.st_size >= 0 &&
            (uint64_t)st.st_size <= room && read_full(fd, to, (size_t)st.st_size);
  if (ok && seconds_ago(&st) > FRESH) futimens(fd, NULL);
  vfs_table.close(fd);
  if (ok) *n = (size_t)st.st_size;
  return ok;
}

static bool entry_path(const void *key, size_t n, char path[PATH]) {
  if (!folder(path)) return false;
  size_t at = strlen(path);
  snprintf(path + at, PATH - at, "/%016llx%s", (unsigned long long)hash_bytes(1, key, n), suffix);
  return true;
}

bool cache_get(Arena *a, const void *key, size_t n_key, const uint8_t **value, size_t *n) {
  char path[PATH], dir[PATH];
  struct stat st;
  if (!entry_path(key, n_key, path) || stat(path, &st) || !folder(dir) || !trusted(dir))
    return false;
  size_t room = st.st_size > 0 && st.st_size < max_entry ? (size_t)st.st_size : 0, len;
  if (room < sizeof(Head)) return false;
  uint8_t *p = arena_alloc(a, room);
  Head h;
  if (!read_entry(path, p, room, &len) || len < sizeof h) return false;
  memcpy(&h, p, sizeof h);
  len -= sizeof h;
  if (h.magic != magic || h.n_key != n_key || h.n_key > len || h.n_value != len - h.n_key)
    return false;
  const uint8_t *k = p + sizeof h;
  if (memcmp(k, key, n_key) || h.sum != checksum(h.n_key, h.n_value, k, k + n_key)) return false;
  *value = k + n_key;
  *n = (size_t)h.n_value;
  return true;
}

/* ---- the bound ---- */

typedef struct Entry {
  char name[NAME + sizeof suffix];
  int64_t bytes, used;
} Entry;

static int by_use(const void *a, const void *b) {
  const Entry *x = a, *y = b;
  return x->used != y->used ? (x->used < y->used ? -1 : 1) : strcmp(x->name, y->name);
}

/* All entries; what killed writers left behind goes. */
static Entry *list(Arena *a, const char *dir, int *n, int64_t *bytes, bool clear) {
  VEC(Entry) v = {0};
  DIR *d = opendir(dir);
  *bytes = 0;
  MemGuard guard;
  if (d && MEM_GUARD(guard)) {
    closedir(d);
    mem_rethrow();
  }
  for (struct dirent *e; d && (e = readdir(d));) {
    struct stat st;
    bool rest = is_rest(e->d_name);
    if ((!rest && !is_entry(e->d_name)) || fstatat(dirfd(d), e->d_name, &st, AT_SYMLINK_NOFOLLOW))
      continue;
    if (clear || (rest && seconds_ago(&st) > FRESH))
      unlinkat(dirfd(d), e->d_name, 0);
    else if (!rest) {
      Entry x = {.bytes = st.st_size,
                 .used = (int64_t)st.st_mtim.tv_sec * 1000000000 + st.st_mtim.tv_nsec};
      strcpy(x.name, e->d_name);
      vec_add(a, &v, x);
      *bytes += x.bytes;
    }
  }
  if (d) mem_unguard(&guard);
  if (d) closedir(d);
  *n = v.n;
  return v.v;
}

/* Below nine tenths of the bound, so that not every entry causes a search. */
static void evict(Arena *a, const char *dir, int64_t most) {
  int n;
  int64_t bytes;
  Entry *e = list(a, dir, &n, &bytes, false);
  if (bytes > most) {
    qsort(e, (size_t)n, sizeof *e, by_use);
    for (int i = 0; i < n && bytes > most / 10 * 9; i++) {
      char path[PATH + NAME + 8];
      snprintf(path, sizeof path, "%s/%s", dir, e[i].name);
      if (!unlink(path)) bytes -= e[i].bytes;
    }
  }
  known.bytes = bytes;
}

static void keep_bound(Arena *a, const char *dir, int64_t more) {
  pthread_mutex_lock(&known.lock);
  MemGuard guard;
  if (MEM_GUARD(guard)) {
    pthread_mutex_unlock(&known.lock);
    mem_rethrow();
  }
  int64_t most = limit();
  bool first = strcmp(known.dir, dir) != 0;
  known.bytes += more;
  if (first || known.bytes > most) {
    strcpy(known.dir, dir);
    evict(a, dir, most);
  }
  mem_unguard(&guard);
  pthread_mutex_unlock(&known.lock);
}

/* ---- writing ---- */

static bool put(Arena *a, const void *key, size_t n_key, const void *value, size_t n) {
  char path[PATH], dir[PATH];
  Str s;
  Head h = {magic, n_key, n, checksum(n_key, n, key, value)};
  int64_t bytes = (int64_t)(sizeof h + n_key + n);
  if (!entry_path(key, n_key, path) || !folder(dir) || bytes > max_entry || bytes > limit())
    return false;
  if ((!vfs_is_dir(dir) && !vfs_mkdirs(dir)) || !trusted(dir)) return false;
  str_init(&s, a);
  str_addn(&s, (char *)&h, sizeof h);
  str_addn(&s, key, n_key);
  str_addn(&s, value, n);
  if (!vfs_write_loose(path, s.s, s.n)) return false;
  keep_bound(a, dir, bytes);
  return true;
}

bool cache_put(const void *key, size_t n_key, const void *value, size_t n) {
  bool had = err_any();
  Arena *a = arena_scratch();
  bool ok = put(a, key, n_key, value, n);
  arena_free(a);
  if (!had) err_clear();
  return ok;
}

/* ---- for `kiln cache` ---- */

CacheInfo cache_info(Arena *a) {
  CacheInfo c = {.limit = limit()};
  char dir[PATH];
  if (!folder(dir)) return c;
  c.dir = arena_str(a, dir);
  c.usable = !vfs_is_dir(dir) || trusted(dir);
  list(a, dir, &c.entries, &c.bytes, false);
  return c;
}

void cache_clear(Arena *a) {
  char dir[PATH];
  int n;
  int64_t bytes;
  if (!folder(dir)) return;
  list(a, dir, &n, &bytes, true);
  pthread_mutex_lock(&known.lock);
  *known.dir = 0;
  pthread_mutex_unlock(&known.lock);
}
