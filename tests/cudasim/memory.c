/* Host memory in arenas; device memory: a range of addresses that is reserved at once, a table of its allocations, a bit per byte
 * that says whether it was written. Freed places are used again as late as possible, so that a use after free is seen. */
#include "sim.h"
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

Memory memory;

static _Noreturn void out_of_memory(void) {
  fprintf(stderr, "cudasim: out of host memory\n");
  abort();
}

void *host_alloc(size_t n) {
  void *p = calloc(1, n ? n : 1);
  if (!p) out_of_memory();
  return p;
}

void *host_grow(void *p, size_t n) {
  p = realloc(p, n);
  if (!p) out_of_memory();
  return p;
}

struct Chunk {
  struct Chunk *next;
  size_t used, size;
};
struct Arena {
  struct Chunk *chunk;
};

Arena *arena_new(void) { return host_alloc(sizeof(Arena)); }

void arena_free(Arena *a) {
  while (a->chunk) {
    struct Chunk *next = a->chunk->next;
    free(a->chunk);
    a->chunk = next;
  }
  free(a);
}

void *arena_alloc(Arena *a, size_t n) {
  n = (n + 15) / 16 * 16;
  struct Chunk *c = a->chunk;
  if (!c || c->size - c->used < n) {
    size_t size = n > 65536 ? n : 65536;
    c = host_alloc(size + 32);
    c->next = a->chunk;
    c->size = size;
    a->chunk = c;
  }
  void *p = (char *)c + 32 + c->used;
  c->used += n;
  return p;
}

char *arena_text(Arena *a, const char *s, size_t n) { return memcpy(arena_alloc(a, n + 1), s, n); }

/* ---- device memory ---- */

#define ALIGN 512u
#define GAP 512u
#define KEEP_FREED 4096

static void *reserve(uint64_t bytes) {
  void *p =
      mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) out_of_memory();
  return p;
}

/* Twice the size as addresses, so that freed ones can rest. */
void memory_open(uint64_t total) {
  memory.total = total;
  memory.host = reserve(2 * total);
  memory.set = reserve(2 * total / 8);
  memory.wrote = reserve(4 * total);
  memory.read = reserve(4 * total);
  memory.freed = host_alloc(KEEP_FREED * sizeof *memory.freed);
  memory.next = DEVICE_BASE;
}

void memory_close(void) {
  munmap(memory.host, 2 * memory.total);
  munmap(memory.set, 2 * memory.total / 8);
  munmap(memory.wrote, 4 * memory.total);
  munmap(memory.read, 4 * memory.total);
  free(memory.live);
  free(memory.freed);
}

static int position(uint64_t at) { /* of the first allocation that ends behind `at` */
  int low = 0, high = memory.n;
  while (low < high) {
    int mid = (low + high) / 2;
    if (memory.live[mid].at + memory.live[mid].bytes > at)
      high = mid;
    else
      low = mid + 1;
  }
  return low;
}

static bool fits(uint64_t at, uint64_t bytes, int *k) {
  if (at + bytes + GAP > DEVICE_BASE + 2 * memory.total) return false;
  *k = position(at);
  return *k == memory.n || memory.live[*k].at >= at + bytes + GAP;
}

static uint64_t place(uint64_t from, uint64_t bytes, int *k) {
  uint64_t at = from;
  while (!fits(at, bytes, k)) {
    if (at + bytes + GAP > DEVICE_BASE + 2 * memory.total) return 0;
    at = (memory.live[*k].at + memory.live[*k].bytes + GAP + ALIGN - 1) / ALIGN * ALIGN;
  }
  return at;
}

uint64_t memory_alloc(uint64_t bytes) {
  int k = 0;
  if (!bytes || bytes > memory.total - memory.used) return 0;
  uint64_t at = place(memory.next, bytes, &k);
  if (!at) at = place(DEVICE_BASE, bytes, &k);
  if (!at) return 0;
  if (memory.n == memory.cap)
    memory.live =
        host_grow(memory.live, (size_t)(memory.cap += memory.cap + 64) * sizeof *memory.live);
  memmove(memory.live + k + 1, memory.live + k, (size_t)(memory.n++ - k) * sizeof *memory.live);
  memory.live[k] = (Range){.at = at, .bytes = bytes};
  memory.used += bytes;
  memory.next = (at + bytes + GAP + ALIGN - 1) / ALIGN * ALIGN;
  memory_unmark(at, bytes);
  return at;
}

static void drop_pages(void *p, uint64_t bytes) {
  uintptr_t from = ((uintptr_t)p + 4095) & ~(uintptr_t)4095,
            to = ((uintptr_t)p + bytes) & ~(uintptr_t)4095;
  if (to > from) madvise((void *)from, to - from, MADV_DONTNEED);
}

bool memory_free(uint64_t at) {
  int k = position(at);
  if (k == memory.n || memory.live[k].at != at) return false;
  memory.freed[memory.n_freed++ % KEEP_FREED] = memory.live[k];
  memory.used -= memory.live[k].bytes;
  uint64_t word = (at - DEVICE_BASE) / 4, bytes = memory.live[k].bytes;
  drop_pages(memory_at(at), bytes);
  drop_pages(&memory.wrote[word], 2 * bytes);
  drop_pages(&memory.read[word], 2 * bytes);
  memmove(memory.live + k, memory.live + k + 1, (size_t)(--memory.n - k) * sizeof *memory.live);
  return true;
}

void memory_protect(uint64_t at) {
  int k = position(at);
  if (k < memory.n && memory.live[k].at == at) memory.live[k].constant = true;
}

void memory_forget_order(void) {
  drop_pages(memory.wrote, 4 * memory.total);
  drop_pages(memory.read, 4 * memory.total);
}

const Range *memory_find(uint64_t at) {
  int k = position(at);
  return k < memory.n && memory.live[k].at <= at ? &memory.live[k] : NULL;
}

const Range *memory_freed(uint64_t at) {
  for (int i = 0; i < KEEP_FREED && i < memory.n_freed; i++) {
    const Range *r = &memory.freed[i];
    if (r->at <= at && at < r->at + r->bytes) return r;
  }
  return NULL;
}

/* ---- the bit per byte ---- */

static uint8_t head_mask(uint64_t from,
                         uint64_t to) { /* bits from..to of one byte of bits, to <= 8 */
  return (uint8_t)((0xffu << from) & (0xffu >> (8 - to)));
}

void memory_mark(uint64_t at, uint64_t bytes) {
  for (uint64_t i = at - DEVICE_BASE, end = i + bytes; i < end;) {
    uint8_t *b = &memory.set[i / 8];
    if (i % 8 == 0 && end - i >= 8) {
      if (end - i >= 512 && *b != 0xff) {
        memset(b, 0xff, (end - i) / 8);
        i += (end - i) / 8 * 8;
        continue;
      }
      if (*b != 0xff) __atomic_store_n(b, 0xff, __ATOMIC_RELAXED);
      i += 8;
      continue;
    }
    uint64_t to = end - i / 8 * 8 < 8 ? end - i / 8 * 8 : 8;
    uint8_t m = head_mask(i % 8, to);
    if ((*b & m) != m) __atomic_fetch_or(b, m, __ATOMIC_RELAXED);
    i = i / 8 * 8 + to;
  }
}

void memory_unmark(uint64_t at, uint64_t bytes) {
  uint64_t i = at - DEVICE_BASE, end = i + bytes;
  for (; i < end && i % 8; i++) memory.set[i / 8] &= (uint8_t) ~(1u << i % 8);
  if (end - i >= 8 && end > i) {
    uint64_t n = (end - i) / 8;
    if (n >= 1 << 16) drop_pages(&memory.set[i / 8], n);
    uint64_t page = n >= 1 << 16 ? 4096 : n; /* the ends of what was dropped */
    memset(&memory.set[i / 8], 0, page);
    memset(&memory.set[i / 8 + n - page], 0, page);
    i += n * 8;
  }
  for (; i < end; i++) memory.set[i / 8] &= (uint8_t) ~(1u << i % 8);
}

bool memory_is_set(uint64_t at, uint64_t bytes) {
  uint64_t two[2];
  if (bytes == 128 && at % 8 == 0) {
    memcpy(two, &memory.set[(at - DEVICE_BASE) / 8], sizeof two);
    return (two[0] & two[1]) == UINT64_MAX;
  }
  for (uint64_t i = at - DEVICE_BASE, end = i + bytes; i < end;) {
    uint64_t to = end - i / 8 * 8 < 8 ? end - i / 8 * 8 : 8;
    uint8_t m = head_mask(i % 8, to);
    if ((memory.set[i / 8] & m) != m) return false;
    i = i / 8 * 8 + to;
  }
  return true;
}

void memory_copy_marks(uint64_t to, uint64_t from, uint64_t bytes) {
  if (memory_is_set(from, bytes)) {
    memory_mark(to, bytes);
    return;
  }
  for (uint64_t i = 0; i < bytes; i++) {
    uint64_t s = from + i - DEVICE_BASE, d = to + i - DEVICE_BASE;
    uint8_t m = (uint8_t)(1u << d % 8);
    memory.set[d / 8] =
        (uint8_t)((memory.set[d / 8] & ~m) | (memory.set[s / 8] >> s % 8 & 1 ? m : 0));
  }
}
