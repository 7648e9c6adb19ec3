/* The disk cache: values that can be made again, found by their key. In: a key, any bytes; out: the value that was last put
 * under it, or nothing. One file for each entry, in the folder
 *   $KILN_CACHE_DIR, else $XDG_CACHE_HOME/kiln, else ~/.cache/kiln          (KILN_CACHE=0: no cache)
 * named by the key's hash; it holds the whole key, so that equal hashes do no harm, and a checksum over all of it. An
 * entry is written under a temporary name and renamed: readers see all of it or none, several processes at once are
 * fine. What is cut off, changed or not ours is no entry. Nothing here fails a caller: without the disk nothing is found.
 * Of a folder that others may write to, nothing is taken, since entries are run as code.
 * Large values are mapped, not read: such an entry has a checksum for each block, which whoever uses the block verifies. When
 * all were, a note of it spares that until the file is changed or the system is started anew.
 * $KILN_CACHE_SIZE bounds the bytes of all entries, and three quarters of it those of large ones; large ones go first, and
 * among equals those not used for the longest time. The time of use is the file's time of change, renewed on a hit when it
 * is older than FRESH seconds; of large ones the time of access, renewed on each hit. One that was used within BUSY seconds
 * makes no room for others. */
#include "ir.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { FRESH = 3600, BUSY = 60, NAME = 16, PATH = 4096 };
static const char suffix[] = ".kc", large_suffix[] = ".kv";
static const uint64_t magic = 0x316568636e6c696b, /* "kilnche1" */
    large_magic = 0x326c61766e6c696b;             /* "kilnval2" */
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

/* The same property, in eight chains side by side: as fast as memory. */
uint64_t hash_block(const void *p, size_t n) {
  enum { CHAINS = 8 };
  const uint64_t odd = 0x9e3779b97f4a7c15u;
  const uint8_t *s = p;
  uint64_t h[CHAINS] = {n, 1, 2, 3, 4, 5, 6, 7}, w[CHAINS], r = 0;
#define CHAIN(i) h[i] ^= w[i], h[i] = (h[i] << 29 | h[i] >> 35) * odd
  for (size_t m; n; s += m, n -= m) {
    m = n < sizeof w ? n : sizeof w;
    if (m < sizeof w) memset(w, 0, sizeof w);
    memcpy(w, s, m);
    CHAIN(0), CHAIN(1), CHAIN(2), CHAIN(3), CHAIN(4), CHAIN(5), CHAIN(6), CHAIN(7);
  }
#undef CHAIN
  for (int i = 0; i < CHAINS; i++) r = ((r ^ h[i]) << 29 | (r ^ h[i]) >> 35) * odd;
  return r;
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

/* What follows the suffix in the name of an entry's file; NULL: it is none of ours. */
static const char *after_suffix(const char *name, bool *large) {
  if (strspn(name, "0123456789abcdef") != NAME) return NULL;
  *large = !strncmp(name + NAME, large_suffix, sizeof suffix - 1);
  return *large || !strncmp(name + NAME, suffix, sizeof suffix - 1) ? name + NAME + 3 : NULL;
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

static bool entry_path(const void *key, size_t n, const char *tail, char path[PATH]) {
  if (!folder(path)) return false;
  size_t at = strlen(path);
  snprintf(path + at, PATH - at, "/%016llx%s", (unsigned long long)hash_bytes(1, key, n), tail);
  return true;
}

bool cache_get(Arena *a, const void *key, size_t n_key, const uint8_t **value, size_t *n) {
  char path[PATH], dir[PATH];
  struct stat st;
  if (!entry_path(key, n_key, suffix, path) || stat(path, &st) || !folder(dir) || !trusted(dir))
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

/* ---- large values ---- */

/* In the file: the value, which is written at once, so that the file system may put it in huge pages; then, from a multiple
 * of 8 on, sums of the blocks, the key, and Head at the end. */
typedef struct Large {
  size_t table, key, head, end; /* where they start */
} Large;

static int64_t blocks_of(uint64_t n) { return (int64_t)((n + CACHE_BLOCK - 1) / CACHE_BLOCK); }

static Large large_form(size_t n_key, size_t n_value) {
  Large f = {.table = (n_value + 7) / 8 * 8};
  f.key = f.table + 8 * (size_t)blocks_of(n_value);
  f.head = f.key + n_key;
  f.end = f.head + sizeof(Head);
  return f;
}

static uint64_t large_sum(const Head *h, const void *key, const void *table) {
  uint64_t n[2] = {h->n_key, h->n_value};
  uint64_t sum = hash_bytes(hash_bytes(large_magic, n, sizeof n), key, h->n_key);
  return hash_bytes(sum, table, 8 * (size_t)blocks_of(h->n_value));
}

static bool is_large(uint8_t *p, size_t n, const void *key, size_t n_key, CacheValue *v) {
  Head h;
  if (n < sizeof h) return false;
  memcpy(&h, p + n - sizeof h, sizeof h);
  if (h.magic != large_magic || h.n_key != n_key || h.n_key > n || h.n_value > n) return false;
  Large f = large_form(h.n_key, h.n_value);
  const uint8_t *k = p + f.key;
  if (f.end != n || memcmp(k, key, n_key) || h.sum != large_sum(&h, k, p + f.table)) return false;
  v->sum = (const uint64_t *)(const void *)(p + f.table);
  v->value = p;
  v->n = h.n_value;
  return true;
}

/* Since the system started; afterwards, what was not yet written to the disk may be gone. */
static bool add_boot(Str *s) {
  char id[64];
  int fd = vfs_table.open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC, 0);
  ssize_t n = fd < 0 ? -1 : vfs_table.read(fd, id, sizeof id);
  if (fd >= 0) vfs_table.close(fd);
  if (n > 0) str_addn(s, id, (size_t)n);
  return n > 0;
}

/* Of the note that a file was verified; its length is 0 if there can be none. */
static Str note_key(Arena *a, const CacheValue *v) {
  Str s;
  str_init(&s, a);
  str_add(&s, "verified ");
  str_addn(&s, (const char *)v->id, sizeof v->id);
  if (!add_boot(&s)) s.n = 0;
  return s;
}

static bool is_noted(const CacheValue *v) {
  Arena *a = arena_scratch();
  Str key = note_key(a, v);
  const uint8_t *value;
  size_t n;
  bool found = key.n && cache_get(a, key.s, key.n, &value, &n);
  arena_free(a);
  return found;
}

void cache_note_verified(const CacheValue *v) {
  Arena *a = arena_scratch();
  Str key = note_key(a, v);
  if (key.n) cache_put(key.s, key.n, "", 0);
  arena_free(a);
}

static void note_file(CacheValue *v, const struct stat *st) {
  v->id[0] = st->st_dev;
  v->id[1] = st->st_ino;
  v->id[2] = (uint64_t)st->st_size;
  v->id[3] = (uint64_t)st->st_mtim.tv_sec;
  v->id[4] = (uint64_t)st->st_mtim.tv_nsec;
}

bool cache_map(const void *key, size_t n_key, CacheValue *v) {
  char path[PATH], dir[PATH];
  struct stat st;
  *v = (CacheValue){.map = NULL};
  if (!entry_path(key, n_key, large_suffix, path) || stat(path, &st) || !folder(dir) ||
      !trusted(dir))
    return false;
  int fd = vfs_table.open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY, 0);
  if (fd < 0) return false;
  if (!fstat(fd, &st) && S_ISREG(st.st_mode) && st.st_size > 0) {
    v->n_map = (size_t)st.st_size;
    v->map = vfs_table.map(v->n_map, fd);
    note_file(v, &st);
    futimens(fd, (struct timespec[]){{.tv_nsec = UTIME_NOW}, {.tv_nsec = UTIME_OMIT}});
  }
  vfs_table.close(fd);
  if (v->map && is_large(v->map, v->n_map, key, n_key, v)) {
    v->verified = is_noted(v);
    return true;
  }
  cache_unmap(v);
  return false;
}

void cache_unmap(CacheValue *v) {
  vfs_unmap(v->map, v->n_map);
  *v = (CacheValue){.map = NULL};
}

void cache_map_blocks(const CacheValue *v, int64_t begin, int64_t end) {
#ifdef MADV_POPULATE_READ
  size_t at = (size_t)begin * CACHE_BLOCK, to = (size_t)end * CACHE_BLOCK;
  if (to > v->n_map) to = v->n_map;
  if (at < to) madvise(v->map + at, to - at, MADV_POPULATE_READ); /* a refusal costs speed only */
#endif
}

bool cache_block_holds(const CacheValue *v, int64_t block) {
  size_t at = (size_t)block * CACHE_BLOCK, n = v->n - at;
  return hash_block(v->value + at, n < CACHE_BLOCK ? n : CACHE_BLOCK) == v->sum[block];
}

/* ---- the bound ---- */

typedef struct Entry {
  char name[NAME + sizeof suffix];
  bool large;
  int64_t bytes, used;
} Entry;

static int by_use(const void *a, const void *b) {
  const Entry *x = a, *y = b;
  if (x->large != y->large) return x->large ? -1 : 1;
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
    bool large;
    const char *tail = after_suffix(e->d_name, &large);
    bool rest = tail && !strncmp(tail, ".tmp-", 5); /* of a writer that did not get to the end */
    if (!tail || (!rest && *tail) || fstatat(dirfd(d), e->d_name, &st, AT_SYMLINK_NOFOLLOW))
      continue;
    if (clear || (rest && seconds_ago(&st) > FRESH))
      unlinkat(dirfd(d), e->d_name, 0);
    else if (!rest) {
      Entry x = {.large = large, .bytes = st.st_size};
      const struct timespec *used = large ? &st.st_atim : &st.st_mtim;
      x.used = (int64_t)used->tv_sec * 1000000000 + used->tv_nsec;
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

/* Room for so many bytes of a large value. */
static bool make_room(Arena *a, const char *dir, int64_t more) {
  int n;
  int64_t bytes, large = more, most = limit() / 4 * 3, now = (int64_t)time(NULL);
  if (more > most) return false;
  Entry *e = list(a, dir, &n, &bytes, false);
  qsort(e, (size_t)n, sizeof *e, by_use);
  for (int i = 0; i < n; i++) large += e[i].large ? e[i].bytes : 0;
  for (int i = 0; i < n && large > most; i++) {
    char path[PATH + NAME + 8];
    snprintf(path, sizeof path, "%s/%s", dir, e[i].name);
    if (!e[i].large || e[i].used / 1000000000 > now - BUSY || unlink(path)) break;
    large -= e[i].bytes;
  }
  return large <= most;
}

static atomic_llong put_bytes; /* of large values, by this process */

bool cache_takes_large(size_t n) {
  char dir[PATH];
  return folder(dir) && (int64_t)n + put_bytes <= limit() / 4 * 3;
}

/* ---- writing ---- */

static bool put(Arena *a, const void *key, size_t n_key, const void *value, size_t n) {
  char path[PATH], dir[PATH];
  Str s;
  Head h = {magic, n_key, n, checksum(n_key, n, key, value)};
  int64_t bytes = (int64_t)(sizeof h + n_key + n);
  if (!entry_path(key, n_key, suffix, path) || !folder(dir) || bytes > max_entry || bytes > limit())
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

static bool put_large(Arena *a, const void *key, size_t n_key, const void *value, size_t n,
                      const uint64_t *sum) {
  static const uint8_t zeros[8];
  char path[PATH], dir[PATH];
  Head h = {large_magic, n_key, n, 0};
  Large f = large_form(n_key, n);
  if (!entry_path(key, n_key, large_suffix, path) || !folder(dir)) return false;
  if ((!vfs_is_dir(dir) && !vfs_mkdirs(dir)) || !trusted(dir)) return false;
  unlink(path); /* its bytes are not needed twice; who has it mapped keeps it */
  if (!cache_takes_large(f.end) || !make_room(a, dir, (int64_t)f.end)) return false;
  put_bytes += (int64_t)f.end;
  VfsOut *o = vfs_out_open_loose(path);
  if (!o) return false;
  h.sum = large_sum(&h, key, sum);
  bool ok = vfs_out_add(o, value, n) && vfs_out_add(o, zeros, f.table - n) &&
            vfs_out_add(o, sum, 8 * (size_t)blocks_of(n)) && vfs_out_add(o, key, n_key) &&
            vfs_out_add(o, &h, sizeof h);
  if (!vfs_out_close(o, ok) || !ok) return false;
  keep_bound(a, dir, (int64_t)f.end);
  return true;
}

bool cache_put_large(const void *key, size_t n_key, const void *value, size_t n,
                     const uint64_t *sum) {
  bool had = err_any();
  Arena *a = arena_scratch();
  bool ok = put_large(a, key, n_key, value, n, sum);
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
