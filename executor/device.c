/* Where a run's memory is: on the host, or on a device. In: names of devices as users write them, sizes. Out: memory, copies.
 * A device that refuses is like a refused allocation: the error is set and the innermost guard catches. */
#include "internal.h"
#include <string.h>

void *place_take(Device *d, size_t n) {
  if (!d) return mem_take(n);
  void *p = d->calls->take(d, n);
  if (!p) mem_rethrow();
  return p;
}

void place_free(Device *d, void *p) {
  if (d)
    d->calls->give(d, p);
  else
    mem_free(p);
}

void place_put(Device *d, void *to, const void *from, size_t n) {
  if (!d)
    memcpy(to, from, n);
  else if (!d->calls->put(d, to, from, n))
    mem_rethrow();
}

void place_get(Device *d, void *to, const void *from, size_t n) {
  if (!d)
    memcpy(to, from, n);
  else if (!d->calls->get(d, to, from, n))
    mem_rethrow();
}

static size_t aligned(const Buffer *b) { return ((size_t)b->bytes + 255) / 256 * 256; }

static void copy_constants(const Graph *g, Device *d, uint8_t *to) {
  for (int i = 0; i < g->buffers.n; i++) {
    const Buffer *b = g->buffers.v[i];
    if (b->kind != B_DATA) continue;
    place_put(d, to, b->data, (size_t)b->bytes);
    to += aligned(b);
  }
}

static void make_constants(Executable *x, size_t n) {
  x->data = place_take(x->options.device, n);
  MemGuard guard;
  if (MEM_GUARD(guard)) {
    place_free(x->options.device, x->data);
    x->data = NULL;
    mem_rethrow();
  }
  copy_constants(x->graph, x->options.device, x->data);
  mem_unguard(&guard);
}

/* All in one block, copied by the first run. */
void place_constants(Executable *x, void **at) {
  const Graph *g = x->graph;
  size_t n = 0;
  for (int i = 0; i < g->buffers.n; i++)
    if (g->buffers.v[i]->kind == B_DATA) n += aligned(g->buffers.v[i]);
  if (n && !x->data) make_constants(x, n);
  uint8_t *data = x->data;
  for (int i = 0; i < g->buffers.n; i++) {
    const Buffer *b = g->buffers.v[i];
    if (b->kind != B_DATA) continue;
    at[i] = data;
    data += aligned(b);
  }
}

bool device_find(const char *name, Device **d) {
  *d = NULL;
  if (!name || !strcmp(name, "cpu")) return true;
  *d = backend_cuda.open(name);
  return *d != NULL;
}

bool device_target(Arena *a, const Device *d, const char *math, const char **target) {
  static const char *const known[] = {"exact", "tf32", "bf16"};
  size_t i = 0, n = sizeof known / sizeof *known;
  while (math && i < n && strcmp(math, known[i])) i++;
  *target = NULL;
  if (i == n || (i && !d)) {
    err_set(E_ARG_001, i == n ? "unknown math %s" : "math %s is for GPUs", quoted(math));
    err_help(
        "exact is for all devices; tf32 and bf16 round the inputs of matrix products on a GPU");
    return false;
  }
  if (d) *target = i ? arena_fmt(a, "%s:%s", d->target, math) : arena_str(a, d->target);
  return true;
}
