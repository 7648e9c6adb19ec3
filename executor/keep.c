/* What an executable keeps from run to run (B_KEPT: packed filters, values of constants), on the disk.
 *
 * In: an executable for the host and the scope that it runs with. Out: its kept memory: mapped from the disk cache, or new and
 * to be filled by the first run, and then put there beside the next ones. What is kept is a function of the kernels that make it
 * and of the state that they read. So the key of the entry holds the version of the code, the processor, all of those kernels,
 * and where the values of the state were read from (value_origin): none of their bytes needs to be read. State that came from
 * no file, or was changed since, is not looked for.
 *
 * Mapping reads the entry's head. Each kernel's part is verified when the kernel needs it for the first time, which brings it
 * into the processor's caches; a part that is damaged is made again in its place. When a run has verified all, later processes
 * need not. Less than LEAST bytes are not worth a file: the caches of a core hold them, if they lie in huge pages. */
#include "internal.h"
#include "../passes/rewrite.h"
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

static const int64_t LEAST = (int64_t)4 << 20;

/* ---- the key ---- */

static void add_int(Str *s, int64_t v) { str_addn(s, (const char *)&v, sizeof v); }
static void add_text(Str *s, const char *text) {
  str_addn(s, text ? text : "", text ? strlen(text) + 1 : 1);
}
static void add_ints(Str *s, int64_t n, const int64_t *v) {
  add_int(s, n);
  str_addn(s, (const char *)v, sizeof *v * (size_t)n);
}

static void add_map(Str *s, const Node *n, int side) {
  add_int(s, n->map[side] != NULL);
  for (int d = 0; n->map[side] && d < n->in[side]->rank; d++) {
    const AffDim *m = &n->map[side][d];
    add_ints(s, 6, (const int64_t[]){m->l0, m->l1, m->c0, m->c1, m->off, m->div});
  }
}

static void add_node(Str *s, const Node *n) {
  add_ints(s, 4, (const int64_t[]){n->id, n->prim, n->dtype, n->i});
  add_ints(s, n->rank, n->dims);
  for (int i = 0; i < n->n_in; i++) add_int(s, n->in[i]->id);
  str_addn(s, (const char *)&n->f, sizeof n->f);
  add_text(s, n->s);
  add_ints(s, n->n_ia, n->ia);
  add_map(s, n, 0);
  add_map(s, n, 1);
  add_ints(s, n->ext ? n->n_loops : 0, n->ext);
  if (n->prim == P_DATA)
    add_int(s, (int64_t)hash_block(n->data,
                                   (size_t)node_numel(n) * (size_t)dtype_info[n->dtype].size));
}

/* False: a value that will not be found again. */
static bool add_input(Str *s, const KernelInput *in, Scope *scope) {
  const Node *b = node_base(in->node);
  add_int(s, in->constant);
  add_node(s, in->node);
  if (b != in->node) add_node(s, b);
  if (!in->constant || b->prim != P_STATE) return true;
  uint64_t origin;
  scope_version(scope, b->s, &origin);
  add_int(s, (int64_t)origin);
  return origin != 0;
}

static int64_t place_of(const Buffer *b) { return b && b->kind == B_KEPT ? b->offset : -1; }

/* Which input matters; its other inputs do so by their shapes alone. */
static bool add_kernel(Str *s, const Kernel *k, Scope *scope) {
  bool ok = k->kind != K_CALL;
  add_ints(s, 6,
           (const int64_t[]){k->id, k->kind, k->reduce, k->choice, k->prepares, k->workspace});
  add_ints(s, k->rank, k->ext);
  str_addn(s, (const char *)&k->conv_error, sizeof k->conv_error);
  add_int(s, place_of(k->ws));
  for (int i = 0; i < k->nodes.n; i++) add_node(s, k->nodes.v[i]);
  for (int i = 0; ok && i < k->inputs.n; i++) {
    KernelInput in = k->inputs.v[i];
    in.constant &= k->constant || i == k->prepares - 1;
    ok = add_input(s, &in, scope);
  }
  for (int i = 0; i < k->outputs.n; i++) {
    add_node(s, k->outputs.v[i]);
    add_int(s, place_of(k->outputs.v[i]->buf));
  }
  return ok;
}

static bool is_prepared(const Kernel *k) { return k->ws && k->ws->kind == B_KEPT; }

static bool find_key(const Executable *x, Scope *scope, Str *s) {
  const Graph *g = x->graph;
  if (!scope || x->options.device || !x->backend->key || g->kept_bytes < LEAST) return false;
  str_add(s, "kept ");
  x->backend->key(s);
  add_ints(s, 2, (const int64_t[]){x->options.no_blas, g->kept_bytes});
  bool ok = true;
  for (int i = 0; ok && i < g->kernels.n; i++) {
    const Kernel *k = g->kernels.v[i];
    if (k->constant || is_prepared(k)) ok = add_kernel(s, k, scope);
  }
  return ok;
}

/* ---- blocks ---- */

typedef struct Blocks {
  const Executable *x;
  int64_t first;
  atomic_int damaged;
} Blocks;

static size_t kept_size(const Executable *x) { return (size_t)x->graph->kept_bytes + 64; }

static size_t block_size(const Executable *x, int64_t block) {
  size_t n = kept_size(x) - (size_t)block * CACHE_BLOCK;
  return n < CACHE_BLOCK ? n : CACHE_BLOCK;
}

static void verify_share(void *user, int thread, int64_t begin, int64_t end) {
  Blocks *b = user;
  (void)thread;
  for (int64_t i = begin; i < end; i++)
    if (!cache_block_holds(&b->x->mapped, b->first + i)) b->damaged = 1;
}

static void map_share(void *user, int thread, int64_t begin, int64_t end) {
  const Blocks *b = user;
  (void)thread;
  cache_map_blocks(&b->x->mapped, begin, end);
}

static void clear_share(void *user, int thread, int64_t begin, int64_t end) {
  const Blocks *b = user;
  (void)thread;
  for (int64_t i = begin; i < end; i++)
    memset(b->x->kept + i * CACHE_BLOCK, 0, block_size(b->x, i));
}

static int64_t all_blocks(const Executable *x) {
  return (int64_t)((kept_size(x) + CACHE_BLOCK - 1) / CACHE_BLOCK);
}

bool kept_holds(Executable *x, const Buffer *b, Pool *pool) {
  if (!x->unverified || !b->bytes) return true;
  int64_t last = (b->offset + b->bytes - 1) / CACHE_BLOCK;
  Blocks v = {.x = x, .first = b->offset / CACHE_BLOCK};
  int64_t n = last - v.first + 1;
  if (n < 4)
    pool_run_here(n, verify_share, &v);
  else
    pool_run(pool, n, verify_share, &v);
  x->to_store |= v.damaged;
  return !v.damaged;
}

/* ---- */

/* What constant kernels made is there as a whole, or made again as a whole. */
static bool constants_hold(Executable *x, Arena *a, Pool *pool) {
  const Graph *g = x->graph;
  bool ok = true, *workspace = arena_array(a, bool, g->buffers.n + 1);
  for (int i = 0; i < g->kernels.n; i++)
    if (g->kernels.v[i]->ws) workspace[g->kernels.v[i]->ws->id] = true;
  for (int i = 0; ok && i < g->buffers.n; i++)
    if (g->buffers.v[i]->kind == B_KEPT && !workspace[i]) ok = kept_holds(x, g->buffers.v[i], pool);
  return ok;
}

static bool map_kept(Executable *x, Scope *scope, Arena *a, const Str *key, Pool *pool) {
  const Graph *g = x->graph;
  if (!cache_map(key->s, key->n, &x->mapped)) return false;
  pool_run(pool, all_blocks(x), map_share, &(Blocks){.x = x});
  x->unverified = !x->mapped.verified;
  if (x->mapped.n != kept_size(x) || !constants_hold(x, a, pool)) {
    x->unverified = false;
    cache_unmap(&x->mapped);
    return false;
  }
  x->kept = x->mapped.value;
  for (int i = 0; i < g->buffers.n; i++)
    if (g->buffers.v[i]->kind == B_STATE && !g->buffers.v[i]->written)
      x->seen[i] = scope_version(scope, g->buffers.v[i]->name, NULL);
  x->seen[g->buffers.n] = 1;
  return true;
}

void kept_take(Executable *x, Scope *scope, Pool *pool) {
  kept_drop(x); /* what a failed run left */
  Arena *a = arena_scratch();
  Str key;
  str_init(&key, a);
  x->to_store = false;
  bool known = find_key(x, scope, &key), found = known && map_kept(x, scope, a, &key, pool);
  arena_free(a);
  if (found) return;
  x->kept = place_take(x->options.device,
                       x->options.device ? kept_size(x) : mem_whole_pages(kept_size(x)));
  x->to_store = known && cache_takes_large(kept_size(x));
  if (x->to_store) pool_run(pool, all_blocks(x), clear_share, &(Blocks){.x = x});
}

/* ---- to the disk ---- */

typedef struct KeptWriter {
  Arena *a;
  pthread_t thread;
  const uint8_t *value;
  size_t n;
  Str key;
  uint64_t *sum;
} KeptWriter;

static void *write_kept(void *user) {
  const KeptWriter *w = user;
  MemGuard guard;
  if (MEM_GUARD(guard)) {
    err_clear();
    return NULL;
  }
  for (size_t at = 0; at < w->n; at += CACHE_BLOCK)
    w->sum[at / CACHE_BLOCK] =
        hash_block(w->value + at, w->n - at < CACHE_BLOCK ? w->n - at : CACHE_BLOCK);
  cache_put_large(w->key.s, w->key.n, w->value, w->n, w->sum);
  mem_unguard(&guard);
  return NULL;
}

/* On a thread of its own, which only reads: nobody waits for the disk before what is kept goes, or is made anew. */
static void store(Executable *x, Scope *scope) {
  Arena *a = arena_scratch();
  KeptWriter *w = arena_new_of(a, KeptWriter);
  *w = (KeptWriter){.a = a, .value = x->kept, .n = kept_size(x)};
  w->sum = arena_array(a, uint64_t, all_blocks(x));
  str_init(&w->key, a);
  if (!find_key(x, scope, &w->key)) {
    arena_free(a);
    return;
  }
  arena_keep(a);
  if (!pthread_create(&w->thread, NULL, write_kept, w)) {
    x->writer = w;
    return;
  }
  write_kept(w);
  arena_free(a);
}

void kept_wait(Executable *x) {
  if (!x->writer) return;
  pthread_join(x->writer->thread, NULL);
  arena_free(x->writer->a);
  x->writer = NULL;
}

void kept_made(Executable *x, Scope *scope) {
  const bool verified = x->unverified && !x->to_store, made = x->to_store;
  x->unverified = x->to_store = false;
  MemGuard guard;
  if (!verified && !made) return;
  if (MEM_GUARD(guard)) { /* the run has succeeded all the same */
    err_clear();
    return;
  }
  if (verified)
    cache_note_verified(&x->mapped);
  else
    store(x, scope);
  mem_unguard(&guard);
}

void kept_drop(Executable *x) {
  kept_wait(x);
  if (x->mapped.map)
    cache_unmap(&x->mapped);
  else
    place_free(x->options.device, x->kept);
  x->kept = NULL;
  x->unverified = false;
}
