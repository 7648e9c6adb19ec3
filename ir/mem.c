/* Memory: arenas, guards against refused allocations, maps, growable text.
 *
 * An Arena is a list of chunks of doubling size taken from mem_table; an allocation moves a pointer in the newest
 * chunk, and one that does not fit gets a new chunk. Everything is zeroed when handed out.
 * A Map is an open-addressing index (linear probing, FNV-1a) over an array of entries in insertion order; removed
 * entries are tombstones until the next rehash or the next enumeration. */
#include "ir.h"
#include <malloc.h>
#include <locale.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum {
  CHUNK_MIN = 4096,
  CHUNK_MAX = 1 << 20,
  ALIGN = 16,
  ALIGN_BIG = 64, /* of allocations of at least BIG bytes: tensor data */
  BIG = 512
};

static const size_t HUGE = (size_t)2 << 20;

size_t mem_whole_pages(size_t n) { return n < HUGE / 4 ? n : (n + HUGE - 1) / HUGE * HUGE; }

/* Large blocks ask for huge pages: tensors are read and written all over. */
static void *default_alloc(size_t n) {
  if (n < 2 * HUGE && n % HUGE) return aligned_alloc(64, (n + 63) & ~(size_t)63);
  void *p = aligned_alloc(HUGE, (n + HUGE - 1) / HUGE * HUGE);
  if (p) madvise(p, n / HUGE * HUGE, MADV_HUGEPAGE); /* a refusal costs speed only */
  return p;
}
static void default_free(void *p) { free(p); }
MemTable mem_table = {default_alloc, default_free};
size_t mem_chunk = CHUNK_MIN;

static _Thread_local MemGuard *guards;
static _Thread_local Arena *scratches; /* the newest scratch arena of the thread */

void mem_guard(MemGuard *g) {
  g->up = guards;
  guards = g;
}

void mem_unguard(MemGuard *g) { guards = g->up; }

static void free_scratches(void);

void mem_rethrow(void) {
  free_scratches();
  if (guards) {
    MemGuard *g = guards;
    guards = g->up;
    longjmp(g->jump, 1);
  }
  err_print(stderr, false);
  exit(1);
}

static _Noreturn void refused(size_t n) {
  err_set(E_MEM_001, "out of memory: the system refused %zu bytes", n);
  mem_rethrow();
}

void *mem_take(size_t n) {
  void *p = n < SIZE_MAX / 4 ? mem_table.alloc(n ? n : 1) : NULL;
  if (!p) refused(n);
  return p;
}

void *mem_alloc(size_t n) {
  void *p = mem_take(n);
  memset(p, 0, n);
  return p;
}

void mem_free(void *p) {
  if (p) mem_table.free(p);
}

void mem_trim(void) { malloc_trim(0); }

/* ---- arenas ---- */

typedef struct Chunk {
  struct Chunk *next;
  char *top, *end;
} Chunk;

struct Arena {
  Chunk *head; /* the newest; the only one allocated from */
  size_t size; /* of the next chunk */
  bool scratch;
  MemGuard *guard;      /* of a scratch arena: the innermost guard when it was made */
  Arena *newer, *older; /* the thread's scratch arenas */
};

size_t arena_bytes(const Arena *a) {
  size_t n = 0;
  for (const Chunk *c = a->head; c; c = c->next) n += (size_t)(c->end - (const char *)c);
  return n;
}

Arena *arena_new(void) {
  Arena *a = mem_alloc(sizeof *a);
  a->size = mem_chunk;
  return a;
}

static void make_scratch(Arena *a) {
  a->scratch = true;
  a->guard = guards;
  a->newer = NULL;
  a->older = scratches;
  if (scratches) scratches->newer = a;
  scratches = a;
}

Arena *arena_scratch(void) {
  Arena *a = arena_new();
  make_scratch(a);
  return a;
}

static void unlink_scratch(Arena *a) {
  *(a->newer ? &a->newer->older : &scratches) = a->older;
  if (a->older) a->older->newer = a->newer;
}

void arena_keep(Arena *a) {
  if (a->scratch) unlink_scratch(a);
  a->scratch = false;
}

void arena_unkeep(Arena *a) {
  arena_keep(a);
  make_scratch(a);
}

/* Those that were made under the guard that is about to catch. */
static void free_scratches(void) {
  while (scratches && scratches->guard == guards) arena_free(scratches);
}

void arena_free(Arena *a) {
  if (!a) return;
  if (a->scratch) unlink_scratch(a);
  for (Chunk *c = a->head, *next; c; c = next) {
    next = c->next;
    mem_free(c);
  }
  mem_free(a);
}

static char *align_up(char *p, size_t to) { return p + (to - (uintptr_t)p % to) % to; }

void *arena_alloc(Arena *a, size_t n) {
  size_t align = n >= BIG ? ALIGN_BIG : ALIGN;
  Chunk *c = a->head;
  char *p = c ? align_up(c->top, align) : NULL;
  if (!c || p > c->end || (size_t)(c->end - p) < n) {
    if (n >= SIZE_MAX / 4) refused(n);
    size_t need = n + sizeof(Chunk) + ALIGN_BIG;
    size_t size = need > a->size / 2 ? need + (need < CHUNK_MAX ? a->size : 0) : a->size;
    c = mem_take(size);
    c->end = (char *)c + size;
    c->next = a->head;
    a->head = c;
    if (a->size >= CHUNK_MIN && a->size < CHUNK_MAX) a->size *= 2;
    p = align_up((char *)(c + 1), align);
  }
  c->top = p + n;
  memset(p, 0, n);
  return p;
}

/* The n bytes at p, enlarged to `to`: in place if p was the last allocation and there is room, else copied. */
static void *arena_enlarge(Arena *a, void *p, size_t n, size_t to) {
  Chunk *c = a->head;
  if (c && n && (char *)p + n == c->top && to <= (size_t)(c->end - (char *)p)) {
    memset(c->top, 0, to - n);
    c->top = (char *)p + to;
    return p;
  }
  void *q = arena_alloc(a, to);
  if (n) memcpy(q, p, n);
  return q;
}

void *arena_dup(Arena *a, const void *p, size_t n) {
  void *q = arena_alloc(a, n);
  if (n) memcpy(q, p, n);
  return q;
}

char *arena_strn(Arena *a, const char *s, size_t n) {
  char *q = arena_alloc(a, n + 1);
  if (n) memcpy(q, s, n);
  return q;
}

char *arena_str(Arena *a, const char *s) { return s ? arena_strn(a, s, strlen(s)) : NULL; }

/* glibc gives one that is there already: nothing is allocated, nothing to free */
static locale_t c_locale(void) { return newlocale(LC_ALL_MASK, "C", (locale_t)0); }

int text_vfmt(char *to, size_t size, const char *fmt, va_list ap) {
  locale_t own = uselocale(c_locale());
  int n = vsnprintf(to, size, fmt, ap);
  uselocale(own);
  return n;
}

int text_fmt(char *to, size_t size, const char *fmt, ...) {
  va_list ap;
  va_start(ap, fmt);
  int n = text_vfmt(to, size, fmt, ap);
  va_end(ap);
  return n;
}

double text_double(const char *s, char **end) { return strtod_l(s, end, c_locale()); }

static char *vfmt(Arena *a, size_t *len, const char *fmt, va_list ap) {
  va_list again;
  va_copy(again, ap);
  int n = text_vfmt(NULL, 0, fmt, again);
  va_end(again);
  *len = n < 0 ? 0 : (size_t)n;
  char *s = arena_alloc(a, *len + 1);
  text_vfmt(s, *len + 1, fmt, ap);
  return s;
}

char *arena_fmt(Arena *a, const char *fmt, ...) {
  size_t n;
  va_list ap;
  va_start(ap, fmt);
  char *s = vfmt(a, &n, fmt, ap);
  va_end(ap);
  return s;
}

void *vec_grow(Arena *a, void *v, size_t elem, int *cap) {
  int old = *cap;
  if (old > INT32_MAX / 2) refused((size_t)old * 2 * elem);
  int now = old ? old * 2 : 4;
  v = arena_enlarge(a, v, (size_t)old * elem, (size_t)now * elem);
  *cap = now;
  return v;
}

/* ---- maps ---- */

typedef struct Entry {
  const char *key;
  void *value; /* NULL: removed */
  uint64_t hash;
} Entry;

struct Map {
  Arena *a;
  Entry *v;     /* in insertion order */
  int n, cap;   /* entries including removed ones */
  int live;     /* entries not removed */
  int32_t *idx; /* 1 + position in v; 0 = free */
  uint32_t mask;
};

static uint64_t hash_of(const char *s) {
  uint64_t h = 0xcbf29ce484222325u;
  for (; *s; s++) h = (h ^ (unsigned char)*s) * 0x100000001b3u;
  return h ^ h >> 29;
}

Map *map_new(Arena *a) {
  Map *m = arena_new_of(a, Map);
  m->a = a;
  return m;
}

static Entry *map_find(const Map *m, const char *key, uint64_t h) {
  if (!m->idx) return NULL;
  for (uint32_t i = (uint32_t)h & m->mask; m->idx[i]; i = (i + 1) & m->mask) {
    Entry *e = &m->v[m->idx[i] - 1];
    if (e->hash == h && !strcmp(e->key, key)) return e;
  }
  return NULL;
}

/* Drops the removed entries and rebuilds the index, in one at least twice as large as the live entries. Nothing has changed
 * if memory for that is refused. */
static void map_rehash(Map *m) {
  uint32_t size = m->idx ? m->mask + 1 : 16;
  while (size < 2 * (uint32_t)(m->live + 1)) size *= 2;
  if (m->idx && size == m->mask + 1)
    memset(m->idx, 0, size * sizeof *m->idx);
  else
    m->idx = arena_array(m->a, int32_t, size);
  m->mask = size - 1;
  int n = 0;
  for (int i = 0; i < m->n; i++)
    if (m->v[i].value) m->v[n++] = m->v[i];
  m->n = n;
  for (int k = 0; k < n; k++) {
    uint32_t i = (uint32_t)m->v[k].hash & m->mask;
    while (m->idx[i]) i = (i + 1) & m->mask;
    m->idx[i] = k + 1;
  }
}

void *map_get(const Map *m, const char *key) {
  const Entry *e = map_find(m, key, hash_of(key));
  return e ? e->value : NULL;
}

void map_put(Map *m, const char *key, void *value) {
  uint64_t h = hash_of(key);
  Entry *e = map_find(m, key, h);
  if (e && e->value) {
    e->value = value;
    m->live -= !value;
    return;
  }
  if (!value) return;
  const char *copy = e ? e->key : arena_str(m->a, key);
  if (e) map_rehash(m); /* a removed key comes back at the end of the order */
  if (!m->idx || 2 * (uint32_t)(m->n + 1) > m->mask + 1) map_rehash(m);
  if (m->n == m->cap) m->v = vec_grow(m->a, m->v, sizeof *m->v, &m->cap);
  m->v[m->n] = (Entry){copy, value, h};
  uint32_t i = (uint32_t)h & m->mask;
  while (m->idx[i]) i = (i + 1) & m->mask;
  m->idx[i] = ++m->n;
  m->live++;
}

int map_n(const Map *m) { return m->live; }

const char *map_at(const Map *m, int i, void **value) {
  if (m->live != m->n) map_rehash((Map *)m); /* the contents stay the same */
  if (value) *value = m->v[i].value;
  return m->v[i].key;
}

/* ---- growable text ---- */

void str_init(Str *s, Arena *a) {
  s->a = a;
  s->n = 0;
  s->cap = 64;
  s->s = arena_alloc(a, s->cap);
}

/* Room for n more bytes and a NUL. */
static void str_room(Str *s, size_t n) {
  if (s->cap - s->n > n) return;
  size_t cap = s->cap;
  while (cap - s->n <= n) cap = cap > SIZE_MAX / 4 ? SIZE_MAX / 2 : cap * 2;
  s->s = arena_enlarge(s->a, s->s, s->cap, cap);
  s->cap = cap;
}

void str_addn(Str *s, const char *text, size_t n) {
  if (n > SIZE_MAX / 4) refused(n);
  str_room(s, n);
  if (n) memcpy(s->s + s->n, text, n);
  s->n += n;
  s->s[s->n] = 0;
}

void str_add(Str *s, const char *text) { str_addn(s, text, strlen(text)); }

void str_fmt(Str *s, const char *fmt, ...) {
  va_list ap;
  va_start(ap, fmt);
  int n = text_vfmt(s->s + s->n, s->cap - s->n, fmt, ap);
  va_end(ap);
  if (n < 0) return;
  if ((size_t)n >= s->cap - s->n) {
    str_room(s, (size_t)n);
    va_start(ap, fmt);
    text_vfmt(s->s + s->n, s->cap - s->n, fmt, ap);
    va_end(ap);
  }
  s->n += (size_t)n;
}
