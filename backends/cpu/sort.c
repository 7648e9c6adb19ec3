/* K_SORT: the indices that sort the last axis, stable.
 *
 * Every element becomes an unsigned key of the same order (NaN largest, -0 equal to 0; complemented for a descending sort);
 * pairs (key, index) are merged bottom-up in the thread's scratch. A task is a row. */
#include "cpu.h"

typedef struct Pair {
  uint64_t key;
  int64_t index;
} Pair;

typedef void KeyFn(const void *x, int64_t n, Pair *to);

typedef struct Sort {
  int in, out; /* slots */
  int64_t n;   /* length of a row */
  int bytes;   /* of an element */
  bool descending;
  KeyFn *keys;
} Sort;

static uint64_t key_of_float(double v) {
  uint64_t bits;
  if (v != v) return UINT64_MAX;
  if (v == 0) v = 0; /* also -0 */
  memcpy(&bits, &v, sizeof bits);
  return bits >> 63 ? ~bits : bits | (uint64_t)1 << 63;
}

#define DTYPE(id, text, paddle, bytes, T, class)                                                   \
  static void keys_##id(const void *x, int64_t n, Pair *to) {                                      \
    const T *v = x;                                                                                \
    for (int64_t i = 0; i < n; i++) {                                                              \
      to[i].index = i;                                                                             \
      if (class == 'f' && bytes == 2)                                                              \
        to[i].key = key_of_float(half_to_double(DT_##id, (uint16_t)v[i]));                         \
      else if (class == 'f')                                                                       \
        to[i].key = key_of_float((double)v[i]);                                                    \
      else                                                                                         \
        to[i].key = (uint64_t)v[i] ^ (class == 'i' ? (uint64_t)1 << 63 : 0);                       \
    }                                                                                              \
  }
#include "../../ir/dtypes.def"
#undef DTYPE

static KeyFn *const key_fn[DT_N] = {
#define DTYPE(id, ...) keys_##id,
#include "../../ir/dtypes.def"
#undef DTYPE
};

static void merge(const Pair *a, int64_t n_a, const Pair *b, int64_t n_b, Pair *to) {
  while (n_a && n_b) {
    bool second = b->key < a->key;
    *to++ = second ? *b : *a;
    if (second)
      b++, n_b--;
    else
      a++, n_a--;
  }
  memcpy(to, n_a ? a : b, sizeof *to * (size_t)(n_a + n_b));
}

static void insertion_sort(Pair *p, int64_t n) {
  for (int64_t i = 1; i < n; i++) {
    Pair x = p[i];
    int64_t j = i;
    for (; j > 0 && p[j - 1].key > x.key; j--) p[j] = p[j - 1];
    p[j] = x;
  }
}

/* Sorts a; the result is in a or in b: returned. */
static Pair *merge_sort(Pair *a, Pair *b, int64_t n) {
  enum { RUN = 16 };
  for (int64_t lo = 0; lo < n; lo += RUN) insertion_sort(a + lo, n - lo < RUN ? n - lo : RUN);
  for (int64_t w = RUN; w < n; w *= 2) {
    for (int64_t lo = 0; lo < n; lo += 2 * w) {
      int64_t mid = lo + w < n ? lo + w : n, hi = lo + 2 * w < n ? lo + 2 * w : n;
      merge(a + lo, mid - lo, a + mid, hi - mid, b + lo);
    }
    Pair *t = a;
    a = b;
    b = t;
  }
  return a;
}

static void sort_tasks(const void *self, void *const *bufs, int64_t begin, int64_t end,
                       RunCtx *ctx) {
  const Sort *s = self;
  Pair *a = ctx->scratch, *b = a + s->n;
  for (int64_t t = begin; t < end; t++) {
    s->keys((const char *)bufs[s->in] + t * s->n * s->bytes, s->n, a);
    if (s->descending)
      for (int64_t i = 0; i < s->n; i++) a[i].key = ~a[i].key;
    const Pair *r = merge_sort(a, b, s->n);
    int64_t *to = (int64_t *)bufs[s->out] + t * s->n;
    for (int64_t i = 0; i < s->n; i++) to[i] = r[i].index;
  }
}

bool sort_code(Arena *a, const Kernel *k, KernelCode *code) {
  const Node *n = k->core, *x = n->in[0];
  Sort *s = arena_new_of(a, Sort);
  s->in = kernel_input(k, x);
  s->out = k->inputs.n;
  if (s->in < 0) return err_set(E_GEN_002, "%s: the operand of argsort is not stored", k->name);
  s->n = x->dims[x->rank - 1];
  s->bytes = dtype_info[x->dtype].size;
  s->descending = n->ia[0] != 0;
  s->keys = key_fn[x->dtype];
  code->n_phases = 1;
  code->phase[0].fn = sort_tasks;
  code->phase[0].self = s;
  code->phase[0].n_tasks = s->n ? numel_of(x->rank - 1, x->dims) : 0;
  code->scratch_bytes = (2 * s->n * (int64_t)sizeof(Pair) + 127) / 128 * 128;
  return true;
}
