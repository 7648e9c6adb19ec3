/* Compiled kernels of the process, on ORC. In: kernels; out: functions. A kernel is known by its key, a canonical byte string of
 * all that the generated code depends on (operands numbered, names left out); kernels with equal keys share one function,
 * counted by reference. What is new in a call becomes one module and one object file, whose memory goes when the last
 * of its functions is dropped. One lock serialises compilations. */
#include "gen.h"
#include <llvm-c/LLJIT.h>
#include <llvm-c/Orc.h>
#include <pthread.h>
#include <string.h>

typedef struct Object {
  LLVMOrcResourceTrackerRef tracker;
  int live; /* functions in use */
} Object;

typedef struct Code {
  struct Code *next;
  uint64_t hash;
  size_t n;
  char *key;
  KernelFn *fn;
  Object *object;
  int refs;
} Code;

struct LoopModule {
  int n;
  Code **code;
};

static struct {
  pthread_mutex_t lock;
  LLVMOrcLLJITRef jit;
  Target *target;
  Code *codes;
  uint64_t serial;
  /* of the compilation in progress */
  Arena *a;
  Batch *batch;
  LoopModule *module;
  Object *object;
} jit = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* ---- keys ---- */

typedef struct Key {
  Str s;
  Kernel *k;
  LoopPart part;
  VEC(Node *) seen; /* place = Node.mark */
} Key;

static void put(Key *key, const void *p, size_t n) { str_addn(&key->s, p, n); }
static void put_int(Key *key, int64_t v) { put(key, &v, sizeof v); }

/* Operands first, then the node with their numbers. */
static void put_node(Key *key, Node *n) {
  if (n->mark >= 0 && n->mark < key->seen.n && key->seen.v[n->mark] == n) return;
  bool leaf = n == key->k->core && key->part == LOOP_EPILOGUE;
  int input = -1;
  for (int i = 0; i < key->k->inputs.n; i++)
    if (key->k->inputs.v[i].node == n) input = i;
  leaf |= input >= 0;
  for (int i = 0; i < n->n_in && !leaf; i++) put_node(key, n->in[i]);
  n->mark = key->seen.n;
  vec_add(key->s.a, &key->seen, n);
  int64_t head[] = {
      leaf ? -1 - input : (int64_t)n->prim, n->dtype, n->rank, n->i, n->n_in, n->n_ia, n->n_loops,
      n->prim == P_CHECK ? n->id : 0};
  if (leaf) memset(head + 3, 0, 5 * sizeof *head);
  put(key, head, sizeof head);
  put(key, n->dims, (size_t)n->rank * sizeof *n->dims);
  if (leaf) return;
  for (int i = 0; i < n->n_in; i++) put_int(key, n->in[i]->mark);
  put(key, &n->f, sizeof n->f);
  put(key, n->ia, (size_t)n->n_ia * sizeof *n->ia);
  put(key, n->ext, (size_t)n->n_loops * sizeof *n->ext);
  for (int i = 0; i < 2; i++)
    for (int d = 0; n->map[i] && d < n->in[i]->rank; d++) {
      const AffDim *m = &n->map[i][d];
      int64_t v[] = {m->l0, m->l1, m->c0, m->c1, m->off, m->div};
      put(key, v, sizeof v);
    }
}

static void put_kernel(Key *key) {
  Kernel *k = key->k;
  int64_t head[] = {key->part, k->kind, k->rank, k->reduce, k->inputs.n, k->outputs.n};
  put(key, head, sizeof head);
  put(key, k->ext, (size_t)k->rank * sizeof *k->ext);
  for (int i = 0; i < k->inputs.n; i++) put_int(key, k->inputs.v[i].aligned);
  for (int i = 0; i < k->inputs.n; i++) put_node(key, k->inputs.v[i].node);
  for (int i = 0; i < k->nodes.n; i++) put_node(key, k->nodes.v[i]);
  if (k->core) put_node(key, k->core);
  for (int i = 0; i < k->outputs.n; i++) {
    put_node(key, k->outputs.v[i]);
    put_int(key, k->outputs.v[i]->mark);
  }
}

static Key key_of(Arena *a, Kernel *k, LoopPart part) {
  Key key = {.k = k, .part = part};
  str_init(&key.s, a);
  put_kernel(&key);
  while (key.s.n % sizeof(int64_t)) str_addn(&key.s, "", 1);
  return key;
}

/* ---- the table ---- */

static Code *find(const Key *key, uint64_t hash) {
  for (Code *c = jit.codes; c; c = c->next)
    if (c->hash == hash && c->n == key->s.n && !memcmp(c->key, key->s.s, c->n)) return c;
  return NULL;
}

static Code *code_new(const Key *key, uint64_t hash) {
  Code *code = mem_alloc(sizeof *code + key->s.n);
  *code =
      (Code){.next = jit.codes, .hash = hash, .n = key->s.n, .key = (char *)(code + 1), .refs = 1};
  memcpy(code->key, key->s.s, key->s.n);
  return jit.codes = code;
}

static void object_drop(Object *o) {
  if (!o || --o->live > 0) return;
  if (o->tracker) {
    LLVMErrorRef e = LLVMOrcResourceTrackerRemove(o->tracker);
    if (e) LLVMConsumeError(e);
    LLVMOrcReleaseResourceTracker(o->tracker);
  }
  mem_free(o);
}

static void code_drop(Code *c) {
  if (--c->refs) return;
  for (Code **p = &jit.codes; *p; p = &(*p)->next)
    if (*p == c) {
      *p = c->next;
      break;
    }
  object_drop(c->object);
  mem_free(c);
}

static void module_drop(LoopModule *m) {
  for (int i = 0; m && i < m->n; i++)
    if (m->code[i]) code_drop(m->code[i]);
  if (m) mem_free(m->code);
  mem_free(m);
}

void loops_free(LoopModule *m) {
  if (!m) return;
  pthread_mutex_lock(&jit.lock);
  module_drop(m);
  pthread_mutex_unlock(&jit.lock);
}

/* ---- compiling ---- */

static bool orc(LLVMErrorRef e, const char *doing) {
  if (!e) return true;
  char *why = LLVMGetErrorMessage(e);
  err_set(E_GEN_001, "%s: %s", doing, why);
  LLVMDisposeErrorMessage(why);
  return false;
}

static bool start(void) {
  if (!jit.target && !(jit.target = target_open(NULL))) return false;
  return jit.jit || orc(LLVMOrcCreateLLJIT(&jit.jit, NULL), "LLVM's JIT cannot start");
}

static bool dump(const char *dir) {
  char path[4096];
  Str s;
  str_init(&s, jit.a);
  batch_text(jit.batch, &s);
  snprintf(path, sizeof path, "%s/loops-%03llu.ll", dir, (unsigned long long)jit.serial);
  return vfs_mkdirs(dir) && vfs_write(path, s.s, s.n);
}

/* One object of the new kernels; their functions are looked up. */
static bool build(int n, Kernel **k, LoopPart *part, const char **symbol, Code **code,
                  const CompileOptions *o) {
  Str bytes;
  LLVMOrcJITDylibRef lib = LLVMOrcLLJITGetMainJITDylib(jit.jit);
  jit.batch = batch_new(jit.target, jit.a, n, k, part, symbol);
  if (!jit.batch || !batch_optimise(jit.batch)) return false;
  if (o && o->dump_dir && !dump(o->dump_dir)) return false;
  str_init(&bytes, jit.a);
  if (!batch_emit(jit.batch, true, &bytes)) return false;
  jit.object = mem_alloc(sizeof *jit.object);
  jit.object->live = 1; /* ours, until all functions are there */
  jit.object->tracker = LLVMOrcJITDylibCreateResourceTracker(lib);
  LLVMMemoryBufferRef buf = LLVMCreateMemoryBufferWithMemoryRangeCopy(bytes.s, bytes.n, "kiln");
  if (!orc(LLVMOrcLLJITAddObjectFileWithRT(jit.jit, jit.object->tracker, buf),
           "adding compiled code"))
    return false;
  for (int i = 0; i < n; i++) {
    LLVMOrcExecutorAddress at = 0;
    if (!orc(LLVMOrcLLJITLookup(jit.jit, &at, symbol[i]), "linking compiled code")) return false;
    code[i]->fn = (KernelFn *)(uintptr_t)at;
    code[i]->object = jit.object;
    jit.object->live++;
  }
  return true;
}

static bool compile(int n, Kernel *const *k, const LoopPart *part, const CompileOptions *o,
                    KernelFn **fn) {
  Kernel **new_k = arena_array(jit.a, Kernel *, n);
  LoopPart *new_part = arena_array(jit.a, LoopPart, n);
  const char **symbol = arena_array(jit.a, const char *, n);
  Code **new_code = arena_array(jit.a, Code *, n);
  LoopModule *m = jit.module = mem_alloc(sizeof *m);
  m->code = mem_alloc((size_t)(n ? n : 1) * sizeof *m->code);
  m->n = n;
  int n_new = 0;
  for (int i = 0; i < n; i++) {
    LoopPart p = part ? part[i] : LOOP_MAIN;
    if (loop_is_empty(k[i], p)) continue;
    Key key = key_of(jit.a, k[i], p);
    uint64_t hash =
        gen_hash((const int64_t *)(const void *)key.s.s, (int)(key.s.n / sizeof(int64_t)));
    Code *c = find(&key, hash);
    if (c) {
      c->refs++;
      m->code[i] = c;
      continue;
    }
    new_k[n_new] = k[i];
    new_part[n_new] = p;
    symbol[n_new] = arena_fmt(jit.a, "%s_%llu", k[i]->name ? k[i]->name : "kernel",
                              (unsigned long long)jit.serial++);
    new_code[n_new++] = m->code[i] = code_new(&key, hash);
  }
  if (n_new && !(start() && build(n_new, new_k, new_part, symbol, new_code, o))) return false;
  for (int i = 0; i < n; i++) fn[i] = m->code[i] ? m->code[i]->fn : NULL;
  return true;
}

/* Gives up what a compilation holds; on success the module stays. */
static void finish(bool ok) {
  batch_free(jit.batch);
  object_drop(jit.object);
  if (!ok) module_drop(jit.module);
  arena_free(jit.a);
  jit.batch = NULL;
  jit.object = NULL;
  jit.module = NULL;
  jit.a = NULL;
}

LoopModule *loops_compile(const Graph *g, int n, Kernel *const *k, const LoopPart *part,
                          const CompileOptions *o, KernelFn **fn) {
  (void)g;
  pthread_mutex_lock(&jit.lock);
  MemGuard guard;
  if (MEM_GUARD(guard)) {
    finish(false);
    pthread_mutex_unlock(&jit.lock);
    mem_rethrow();
  }
  jit.a = arena_new();
  bool ok = compile(n, k, part, o, fn);
  LoopModule *m = jit.module;
  finish(ok);
  mem_unguard(&guard);
  pthread_mutex_unlock(&jit.lock);
  return ok ? m : NULL;
}
