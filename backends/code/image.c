/* Images in memory, and as bytes for the disk. In: images; out: one mapping with all of them, first written, then made
 * executable, never both at once. The table of helpers has every function of the process that generated code may call.
 * An encoded image is a row of numbers (see Form), the places to fill in, and the bytes; decoding checks each number. */
#include "code.h"
#include <math.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

struct Region {
  void *base;
  size_t n;
};

/* ---- helpers ---- */

typedef void Function(void);
typedef struct Helper {
  const char *name;
  Function *fn;
} Helper;

#if defined(__x86_64__)
/* Of libgcc; types that pedantic C has no name for. */
extern Function __extendhfsf2, __truncsfhf2, __truncdfhf2;
#endif

static const Helper helpers[] = {
    {"memcpy", (Function *)memcpy},
    {"memmove", (Function *)memmove},
    {"memset", (Function *)memset},
    {"fma", (Function *)(double (*)(double, double, double))fma},
    {"fmaf", (Function *)(float (*)(float, float, float))fmaf},
    {"fmod", (Function *)(double (*)(double, double))fmod},
    {"fmodf", (Function *)(float (*)(float, float))fmodf},
    {"floor", (Function *)(double (*)(double))floor},
    {"floorf", (Function *)(float (*)(float))floorf},
    {"rint", (Function *)(double (*)(double))rint},
    {"rintf", (Function *)(float (*)(float))rintf},
    {"trunc", (Function *)(double (*)(double))trunc},
    {"truncf", (Function *)(float (*)(float))truncf},
#if defined(__x86_64__)
    {"__extendhfsf2", __extendhfsf2},
    {"__truncsfhf2", __truncsfhf2},
    {"__truncdfhf2", __truncdfhf2},
#endif
};
enum { N_HELPERS = sizeof helpers / sizeof *helpers };

int helper_find(const char *name) {
  for (int i = 0; i < N_HELPERS; i++)
    if (!strcmp(helpers[i].name, name)) return i;
  return -1;
}

/* ---- on the disk ---- */

typedef struct Form {
  uint64_t n, room, entry, n_inside, n_helpers;
} Form;

void image_encode(const Image *m, Str *out) {
  Form f = {m->n, m->room, m->entry, (uint64_t)m->inside.n, (uint64_t)m->helpers.n};
  str_addn(out, (char *)&f, sizeof f);
  str_addn(out, (char *)m->inside.v, (size_t)m->inside.n * sizeof *m->inside.v);
  str_addn(out, (char *)m->helpers.v, (size_t)m->helpers.n * sizeof *m->helpers.v);
  str_addn(out, (const char *)m->bytes, m->n);
}

static bool fixes_fit(const ImageFix *v, int n, size_t bytes, size_t targets) {
  for (int i = 0; i < n; i++)
    if (bytes < 8 || v[i].at > bytes - 8 || v[i].to >= targets) return false;
  return true;
}

bool image_decode(Arena *a, const uint8_t *p, size_t n, Image *m) {
  Form f;
  if (n < sizeof f) return false;
  memcpy(&f, p, sizeof f);
  p += sizeof f;
  n -= sizeof f;
  size_t most = n / sizeof(ImageFix);
  if (f.n_inside > most || f.n_helpers > most - f.n_inside) return false;
  size_t fixes = (size_t)(f.n_inside + f.n_helpers) * sizeof(ImageFix);
  if (f.n != n - fixes || f.n > f.room || f.room > IMAGE_MAX || f.entry >= f.n) return false;
  ImageFix *v = arena_dup(a, p, fixes);
  *m = (Image){.bytes = p + fixes,
               .n = (size_t)f.n,
               .room = (size_t)f.room,
               .entry = (size_t)f.entry};
  m->inside.v = v;
  m->inside.n = (int)f.n_inside;
  m->helpers.v = v + f.n_inside;
  m->helpers.n = (int)f.n_helpers;
  return fixes_fit(m->inside.v, m->inside.n, m->n, m->room + 1) &&
         fixes_fit(m->helpers.v, m->helpers.n, m->n, N_HELPERS);
}

/* ---- in memory ---- */

static void fill_in(const Image *m, uint8_t *to) {
  memcpy(to, m->bytes, m->n);
  for (int i = 0; i < m->inside.n; i++) {
    const uint8_t *x = to + m->inside.v[i].to;
    memcpy(to + m->inside.v[i].at, &x, 8);
  }
  for (int i = 0; i < m->helpers.n; i++)
    memcpy(to + m->helpers.v[i].at, &helpers[m->helpers.v[i].to].fn, 8);
}

static size_t align_up(size_t n) { return (n + IMAGE_ALIGN - 1) & ~(size_t)(IMAGE_ALIGN - 1); }

Region *region_new(Arena *a, int n, const Image *images, void **entry) {
  size_t *at = arena_array(a, size_t, n + 1);
  for (int i = 0; i < n; i++) at[i + 1] = at[i] + align_up(images[i].room);
  Region *r = mem_alloc(sizeof *r);
  r->n = at[n] ? at[n] : 1;
  r->base = mmap(NULL, r->n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  bool ok = r->base != MAP_FAILED;
  for (int i = 0; ok && i < n; i++) {
    fill_in(&images[i], (uint8_t *)r->base + at[i]);
    entry[i] = (uint8_t *)r->base + at[i] + images[i].entry;
  }
  if (ok && !mprotect(r->base, r->n, PROT_READ | PROT_EXEC)) {
    __builtin___clear_cache((char *)r->base, (char *)r->base + r->n);
    return r;
  }
  if (ok) munmap(r->base, r->n);
  mem_free(r);
  err_set(E_GEN_001, "the system gives no executable memory");
  return NULL;
}

void region_free(Region *r) {
  if (r) munmap(r->base, r->n);
  mem_free(r);
}
