/* The forms of a variable in a scope: its elements in one layout and one memory each.
 *
 * In: an entry and the layout and device that somebody wants. Out: a form that has them. The own form is the value; copies
 * beside it are permuted or transferred from any form that is not old, on the host if both are on devices. */
#include "scope.h"
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* ---- memory ---- */

void mapping_free(Mapping *m) {
  vfs_unmap(m->data, m->n);
  mem_free(m);
}

/* Frees a tensor's data or, for that of a file, its place in the mapping. */
static void release(Scope *s, void *data) {
  uint8_t *p = data;
  for (Mapping **link = &s->mappings, *m; data && (m = *link); link = &m->next) {
    if (p < m->data || p >= m->data + m->n) continue;
    if (--m->live) return;
    *link = m->next;
    mapping_free(m);
    return;
  }
  mem_free(data);
}

static void release_form(Scope *s, Form *f) {
  if (f->device)
    place_free(f->device, f->data);
  else
    release(s, f->data);
}

static bool is_layout(const Form *f, int rank, const int64_t *layout) {
  for (int d = 0; d < rank; d++)
    if (f->layout[d] != (layout ? layout[d] : d)) return false;
  return true;
}

static bool is_plain(int rank, const int64_t *layout) {
  int d = 0;
  while (layout && d < rank && layout[d] == d) d++;
  return !layout || d == rank;
}

void form_set_layout(Form *f, int rank, const int64_t *layout) {
  for (int d = 0; d < rank; d++) f->layout[d] = layout ? layout[d] : d;
}

void entry_drop_copies(Scope *s, Entry *e) {
  Form *kept = NULL;
  atomic_fetch_add(&s->changes, 1);
  for (Form *f = e->copies, *next; f; f = next) {
    next = f->next;
    if (f->device) {
      f->old = true;
      f->next = kept;
      kept = f;
      continue;
    }
    bool shown = e->shown.data == f->data;
    if (shown && e->pinned)
      e->stale = f->data;
    else
      release(s, f->data);
    if (shown && !e->pinned) e->shown.data = NULL;
    mem_free(f);
  }
  e->copies = kept;
}

void entry_clear(Scope *s, Entry *e) {
  e->pinned = false;
  entry_drop_copies(s, e);
  for (Form *f = e->copies, *next; f; f = next) {
    next = f->next;
    release_form(s, f);
    mem_free(f);
  }
  release_form(s, &e->own);
  release(s, e->stale);
  e->copies = NULL;
  e->own = (Form){.data = NULL};
  e->stale = e->shown.data = NULL;
}

void mapping_drop_pages(const Tensor *t) {
  uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), from = (uintptr_t)t->data + page - 1;
  uintptr_t to = (uintptr_t)t->data + tensor_bytes(t);
  from -= from % page;
  to -= to % page;
  if (from < to) madvise((void *)from, to - from, MADV_DONTNEED); /* a refusal costs memory only */
}

void entry_align(Scope *s, Entry *e) {
  if (!e->own.raw) return;
  Tensor from = e->shown;
  from.data = e->own.data;
  void *to = mem_take(tensor_bytes(&from));
  memcpy(to, from.data, tensor_bytes(&from));
  mapping_drop_pages(&from);
  release(s, from.data);
  e->own.data = to;
  e->own.raw = false;
}

/* ---- layouts ---- */

typedef struct Permutation {
  void *to;
  Tensor from;
  int64_t layout[KL_VAR_RANK];
} Permutation;

static void permute_share(void *user, int thread, int64_t begin, int64_t end) {
  const Permutation *p = user;
  (void)thread;
  tensor_permute_some(p->to, &p->from, p->layout, begin, end);
}

void entry_permute(const Entry *e, const Form *f, const int64_t *layout, void *to, Pool *pool) {
  int64_t inverse[KL_VAR_RANK];
  Permutation p = {.to = to, .from = tensor_layout(&e->shown, f->layout)};
  p.from.data = f->data;
  layout_inverse(e->shown.rank, f->layout, inverse);
  for (int d = 0; d < e->shown.rank; d++) p.layout[d] = inverse[layout ? layout[d] : d];
  int64_t n = tensor_permute_tasks(&p.from, p.layout);
  if (pool)
    pool_run(pool, n, permute_share, &p);
  else
    tensor_permute(to, &p.from, p.layout);
}

static Form *next_form(Entry *e, Form *f) { return f == &e->own ? e->copies : f->next; }

Form *entry_form(Entry *e, const Device *d, const int64_t *layout) {
  Form *f = &e->own;
  while (f && (f->old || f->device != d || !is_layout(f, e->shown.rank, layout)))
    f = next_form(e, f);
  return f;
}

static size_t form_bytes(const Entry *e) { return tensor_bytes(&e->shown) + 64; }

/* A copy beside the own form, its elements not yet there. */
static Form *new_copy(Entry *e, Device *d, const int64_t *layout) {
  Form *const f = mem_alloc(sizeof *f);
  MemGuard guard;
  if (MEM_GUARD(guard)) {
    mem_free(f);
    mem_rethrow();
  }
  bool stale = !d && is_plain(e->shown.rank, layout) && e->stale;
  f->data = stale ? e->stale : place_take(d, form_bytes(e));
  mem_unguard(&guard);
  if (stale) e->stale = NULL;
  f->device = d;
  f->old = true;
  form_set_layout(f, e->shown.rank, layout);
  f->next = e->copies;
  return e->copies = f;
}

static Form *host_copy(Entry *e, const int64_t *layout, Pool *pool) {
  Form *from = entry_on_host(e);
  if (is_layout(from, e->shown.rank, layout)) return from;
  Form *f = new_copy(e, NULL, layout);
  entry_permute(e, from, layout, f->data, pool);
  f->old = false;
  return f;
}

Form *entry_on_host(Entry *e) {
  Form *f = &e->own;
  while (f && (f->old || f->device)) f = next_form(e, f);
  if (f) return f;
  f = new_copy(e, NULL, e->own.layout);
  place_get(e->own.device, f->data, e->own.data, tensor_bytes(&e->shown));
  f->old = false;
  return f;
}

static void remove_copy(Scope *s, Entry *e, Form *f) {
  Form **link = &e->copies;
  while (*link != f) link = &(*link)->next;
  *link = f->next;
  release_form(s, f);
  mem_free(f);
}

static Form *device_copy(Scope *s, Entry *e, Device *d, const int64_t *layout, Pool *pool) {
  Form *from = entry_form(e, NULL, layout), *f = e->copies;
  bool passing = !from; /* a copy that nobody else wants */
  if (passing) from = host_copy(e, layout, pool);
  while (f && (f->device != d || !is_layout(f, e->shown.rank, layout))) f = f->next;
  if (!f) f = new_copy(e, d, layout);
  place_put(d, f->data, from->data, tensor_bytes(&e->shown));
  f->old = false;
  if (passing && from != &e->own) remove_copy(s, e, from);
  return f;
}

Form *entry_copy(Scope *s, Entry *e, Device *d, const int64_t *layout, Pool *pool) {
  return d ? device_copy(s, e, d, layout, pool) : host_copy(e, layout, pool);
}

void entry_keep(Scope *s, Entry *e, Device *d, const int64_t *layout, Pool *pool) {
  Form *f = entry_form(e, d, layout);
  if (!f) f = entry_copy(s, e, d, layout, pool);
  if (f != &e->own) {
    Form was = e->own;
    e->own = *f;
    *f = was;
    f->next = e->own.next;
    e->own.next = NULL;
  }
  entry_drop_copies(s, e);
}
