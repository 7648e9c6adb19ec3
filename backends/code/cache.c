/* The code of the process, by key. In: batches of requests; out: functions. What several batches want is there once, counted
 * by reference; what is new in a batch is taken from the disk cache or generated, and becomes one region of memory,
 * which goes with the last of its functions. One lock serialises batches. */
#include "../llvm/codegen.h"
#include <pthread.h>
#include <string.h>

typedef struct Shared { /* a region */
  Region *region;
  int live; /* functions in use */
} Shared;

typedef struct Code {
  struct Code *next;
  uint64_t hash;
  size_t n;
  char *key;
  void *fn;
  Shared *shared;
  int refs;
} Code;

typedef struct Want {
  CodeKind kind;
  const char *name;
  const void *what;
  const char *key;
  size_t n_key;
  void *fn; /* where the function's address goes */
} Want;

struct CodeBatch {
  Arena *a;
  VEC(Want) wants;
  Code **code; /* of each request; NULL: not made */
};

enum { BUCKETS = 1024 };
static struct {
  pthread_mutex_t lock;
  Code *bucket[BUCKETS];
  CodeCount count;
} all = {.lock = PTHREAD_MUTEX_INITIALIZER};

CodeBatch *code_batch(Arena *a) {
  CodeBatch *b = arena_new_of(a, CodeBatch);
  b->a = a;
  return b;
}

/* Everything behind the key that the bytes do not say themselves. */
static void add_head(Str *s, CodeKind kind) {
  int64_t k = kind;
  str_add(s, codegen_build());
  str_addn(s, "", 1);
  machine_key(s);
  str_addn(s, (char *)&k, sizeof k);
}

void code_want(CodeBatch *b, CodeKind kind, const char *name, const void *what, size_t what_size,
               const Str *key, void *fn) {
  Want w = {.kind = kind, .fn = fn};
  Str s;
  str_init(&s, b->a);
  add_head(&s, kind);
  str_addn(&s, key->s, key->n);
  w.name = arena_str(b->a, name ? name : "kernel");
  w.what = arena_dup(b->a, what, what_size);
  w.key = s.s;
  w.n_key = s.n;
  vec_add(b->a, &b->wants, w);
}

CodeCount backend_code_count(void) {
  pthread_mutex_lock(&all.lock);
  CodeCount c = all.count;
  pthread_mutex_unlock(&all.lock);
  return c;
}

/* ---- the table ---- */

static Code *find(const Want *w, uint64_t hash) {
  Code *c = all.bucket[hash % BUCKETS];
  while (c && !(c->hash == hash && c->n == w->n_key && !memcmp(c->key, w->key, c->n))) c = c->next;
  return c;
}

static Code *code_new(const Want *w, uint64_t hash) {
  Code *c = mem_alloc(sizeof *c + w->n_key), **head = &all.bucket[hash % BUCKETS];
  *c = (Code){.next = *head, .hash = hash, .n = w->n_key, .key = (char *)(c + 1), .refs = 1};
  memcpy(c->key, w->key, w->n_key);
  return *head = c;
}

static void shared_drop(Shared *s) {
  if (!s || --s->live > 0) return;
  region_free(s->region);
  mem_free(s);
}

static void code_drop(Code *c) {
  if (--c->refs) return;
  Code **p = &all.bucket[c->hash % BUCKETS];
  while (*p != c) p = &(*p)->next;
  *p = c->next;
  shared_drop(c->shared);
  mem_free(c);
}

static void drop_all(CodeBatch *b) {
  for (int i = 0; b->code && i < b->wants.n; i++)
    if (b->code[i]) code_drop(b->code[i]);
  b->code = NULL;
}

void code_free(CodeBatch *b) {
  if (!b || !b->code) return;
  pthread_mutex_lock(&all.lock);
  drop_all(b);
  pthread_mutex_unlock(&all.lock);
}

/* ---- making ---- */

/* The codes of a batch that the process does not have yet. */
typedef struct Fresh {
  Arena *a;
  const CompileOptions *o;
  int n;
  const Want **want;
  Code **code;
  Image *image;
} Fresh;

static bool load(Fresh *f, int i) {
  const uint8_t *p;
  size_t n;
  if (f->o && f->o->dump_dir) return false; /* dumps show what is generated */
  return cache_get(f->a, f->want[i]->key, f->want[i]->n_key, &p, &n) &&
         image_decode(f->a, p, n, &f->image[i]);
}

static bool link_job(Fresh *f, int i, const CodegenJob *j) {
  const char *why;
  Str s;
  if (!image_of_object(f->a, j->object, j->n, CODEGEN_SYMBOL, &f->image[i], &why))
    return err_set(E_GEN_001, "the code of %s cannot be linked: %s", quoted(f->want[i]->name), why);
  str_init(&s, f->a);
  image_encode(&f->image[i], &s);
  cache_put(f->want[i]->key, f->want[i]->n_key, s.s, s.n);
  return true;
}

static void free_jobs(int n, CodegenJob *jobs) {
  for (int i = 0; i < n; i++) mem_free(jobs[i].object);
}

static CodegenJob job_of(const Want *w) {
  return (CodegenJob){.kind = w->kind, .what = w->what, .name = w->name};
}

bool code_emit(const CodeBatch *b, const CompileOptions *o, const char *what, Str *out) {
  CodegenJob *jobs = arena_array(b->a, CodegenJob, b->wants.n + 1);
  Map *micro = map_new(b->a); /* their names say all that they depend on */
  int n = 0;
  for (int i = 0; i < b->wants.n; i++) {
    const Want *w = &b->wants.v[i];
    if (w->kind == CODE_MICRO) {
      if (map_get(micro, w->name)) continue;
      map_put(micro, w->name, jobs);
    }
    jobs[n++] = job_of(w);
  }
  return codegen_emit(n, jobs, o, what, out);
}

/* Those at the n places. */
static bool generate(Fresh *f, int n, const int *place) {
  CodegenJob *jobs = arena_array(f->a, CodegenJob, n + 1);
  for (int i = 0; i < n; i++) jobs[i] = job_of(f->want[place[i]]);
  if (!codegen_compile(n, jobs, f->o)) return false;
  MemGuard guard;
  if (MEM_GUARD(guard)) {
    free_jobs(n, jobs);
    mem_rethrow();
  }
  bool ok = true;
  for (int i = 0; ok && i < n; i++) ok = link_job(f, place[i], &jobs[i]);
  mem_unguard(&guard);
  free_jobs(n, jobs);
  return ok;
}

static bool settle(Fresh *f) {
  void **entry = arena_array(f->a, void *, f->n + 1);
  Shared *s = mem_alloc(sizeof *s);
  MemGuard guard;
  if (MEM_GUARD(guard)) {
    mem_free(s);
    mem_rethrow();
  }
  s->region = region_new(f->a, f->n, f->image, entry);
  mem_unguard(&guard);
  if (!s->region) return mem_free(s), false;
  for (int i = 0; i < f->n; i++) {
    f->code[i]->fn = entry[i];
    f->code[i]->shared = s;
    s->live++;
  }
  return true;
}

static bool make_fresh(Fresh *f) {
  int *place = arena_array(f->a, int, f->n + 1), missing = 0;
  f->image = arena_array(f->a, Image, f->n + 1);
  for (int i = 0; i < f->n; i++)
    if (!load(f, i)) place[missing++] = i;
  all.count.loaded += f->n - missing;
  if (missing && !generate(f, missing, place)) return false;
  all.count.generated += missing;
  return !f->n || settle(f);
}

static bool make(CodeBatch *b, Arena *a, const CompileOptions *o) {
  int n = b->wants.n;
  Fresh f = {.a = a, .o = o};
  f.want = arena_array(a, const Want *, n + 1);
  f.code = arena_array(a, Code *, n + 1);
  for (int i = 0; i < n; i++) {
    const Want *w = &b->wants.v[i];
    uint64_t hash = hash_bytes(0, w->key, w->n_key);
    Code *c = find(w, hash);
    if (c)
      c->refs++;
    else {
      c = code_new(w, hash);
      f.want[f.n] = w;
      f.code[f.n++] = c;
    }
    b->code[i] = c;
  }
  all.count.wanted += n;
  return make_fresh(&f);
}

bool code_make(CodeBatch *b, const CompileOptions *o) {
  Code **code = arena_array(b->a, Code *, b->wants.n + 1);
  pthread_mutex_lock(&all.lock);
  b->code = code;
  MemGuard guard;
  if (MEM_GUARD(guard)) {
    drop_all(b);
    pthread_mutex_unlock(&all.lock);
    mem_rethrow();
  }
  Arena *a = arena_scratch();
  bool ok = make(b, a, o);
  arena_free(a);
  mem_unguard(&guard);
  for (int i = 0; ok && i < b->wants.n; i++) {
    const Want *w = &b->wants.v[i];
    memcpy(w->fn, &code[i]->fn, sizeof code[i]->fn);
  }
  if (!ok) drop_all(b);
  pthread_mutex_unlock(&all.lock);
  return ok;
}
