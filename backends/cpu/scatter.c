/* K_SCATTER: base with updates added or stored at given indices along one axis.
 *
 * Base is [outer, size, inner], index and updates are [outer, n, inner], the index perhaps spread from fewer. Elements of
 * different (outer, inner) never meet, so a task takes a block of columns of one outer item and applies the updates in order. */
#include "cpu.h"

enum { COLUMNS = 256 };

typedef void UpdateFn(char *to, const int64_t *at, const char *from, int64_t n);
typedef void IndexFn(const char *from, int64_t n, int64_t size, int64_t *to);

typedef struct Scatter {
  int base, idx, upd, out; /* slots */
  int64_t outer, size, n, inner, block, blocks;
  int bytes, idx_bytes; /* of an element */
  int64_t step[3];      /* kernel_index */
  UpdateFn *update;
  IndexFn *index;
} Scatter;

static void add_half(DType t, char *p, const char *from) {
  uint16_t a, b;
  memcpy(&a, p, 2);
  memcpy(&b, from, 2);
  a = double_to_half(t, half_to_double(t, a) + half_to_double(t, b));
  memcpy(p, &a, 2);
}

/* to[at[j]] += from[j], at in elements; for bool: or. The index of an update is clamped into range. */
#define DTYPE(id, text, paddle, bytes, T, class)                                                   \
  static void add_##id(char *to, const int64_t *at, const char *from, int64_t n) {                 \
    for (int64_t j = 0; j < n; j++) {                                                              \
      T *p = (T *)to + at[j], u = ((const T *)from)[j];                                            \
      if (class == 'f' && bytes == 2)                                                              \
        add_half(DT_##id, (char *)p, from + 2 * j);                                                \
      else if (class == 'f')                                                                       \
        *p = (T)(*p + u);                                                                          \
      else if (class == 'b')                                                                       \
        *p = *p || u;                                                                              \
      else                                                                                         \
        *p = (T)((uint64_t)*p + (uint64_t)u);                                                      \
    }                                                                                              \
  }                                                                                                \
  static void set_##id(char *to, const int64_t *at, const char *from, int64_t n) {                 \
    for (int64_t j = 0; j < n; j++) ((T *)to)[at[j]] = ((const T *)from)[j];                       \
  }                                                                                                \
  static void index_##id(const char *from, int64_t n, int64_t size, int64_t *to) {                 \
    for (int64_t j = 0; j < n; j++) {                                                              \
      int64_t v = (int64_t)((const T *)from)[j];                                                   \
      to[j] = v < 0 ? 0 : v < size ? v : size - 1;                                                 \
    }                                                                                              \
  }
#include "../../ir/dtypes.def"
#undef DTYPE

static UpdateFn *const update_fn[2][DT_N] = {{
#define DTYPE(id, ...) add_##id,
#include "../../ir/dtypes.def"
#undef DTYPE
                                             },
                                             {
#define DTYPE(id, ...) set_##id,
#include "../../ir/dtypes.def"
#undef DTYPE
                                             }};
static IndexFn *const index_fn[DT_N] = {
#define DTYPE(id, ...) index_##id,
#include "../../ir/dtypes.def"
#undef DTYPE
};

/* Columns j0..j0+n-1, n <= COLUMNS, of an outer item. */
static void scatter_columns(const Scatter *s, void *const *bufs, int64_t o, int64_t j0, int64_t n) {
  const char *base = bufs[s->base], *idx = bufs[s->idx], *upd = bufs[s->upd];
  char *to = (char *)bufs[s->out] + (o * s->size * s->inner + j0) * s->bytes;
  base += (o * s->size * s->inner + j0) * s->bytes;
  if (base != to)
    for (int64_t i = 0; i < s->size; i++)
      memcpy(to + i * s->inner * s->bytes, base + i * s->inner * s->bytes, (size_t)(n * s->bytes));
  int64_t at[COLUMNS];
  for (int64_t i = 0; i < s->n && s->size > 0; i++) {
    int64_t from = (o * s->n + i) * s->inner + j0;
    int64_t which = o * s->step[0] + i * s->step[1] + j0 * s->step[2];
    s->index(idx + which * s->idx_bytes, s->step[2] ? n : 1, s->size, at);
    for (int64_t j = 1; j < n && !s->step[2]; j++) at[j] = at[0];
    for (int64_t j = 0; j < n; j++) at[j] = at[j] * s->inner + j;
    s->update(to, at, upd + from * s->bytes, n);
  }
}

static void scatter_tasks(const void *self, void *const *bufs, int64_t begin, int64_t end,
                          RunCtx *ctx) {
  const Scatter *s = self;
  (void)ctx;
  for (int64_t t = begin; t < end; t++) {
    int64_t o = t / s->blocks, j0 = t % s->blocks * s->block, j1 = j0 + s->block;
    if (j1 > s->inner) j1 = s->inner;
    for (; j0 < j1; j0 += COLUMNS)
      scatter_columns(s, bufs, o, j0, j1 - j0 < COLUMNS ? j1 - j0 : COLUMNS);
  }
}

bool scatter_code(Arena *a, const Kernel *k, KernelCode *code) {
  const Node *n = k->core;
  Scatter *s = arena_new_of(a, Scatter);
  s->base = kernel_input(k, n->in[0]);
  s->idx = kernel_index(k, s->step);
  s->upd = kernel_input(k, n->in[2]);
  s->out = k->inputs.n;
  if (s->base < 0 || s->idx < 0 || s->upd < 0)
    return err_set(E_GEN_002, "%s: an operand of scatter is not stored", k->name);
  s->outer = numel_of((int)n->i, n->dims);
  s->inner = numel_of(n->rank - (int)n->i - 1, n->dims + n->i + 1);
  s->size = n->dims[n->i];
  s->n = n->in[1]->dims[n->i];
  s->bytes = dtype_info[n->dtype].size;
  s->idx_bytes = dtype_info[n->in[1]->dtype].size;
  s->update = update_fn[n->ia[0] != 0][n->dtype];
  s->index = index_fn[n->in[1]->dtype];
  int64_t want = tasks_for(64 * (s->n + s->size) * s->inner * s->outer);
  s->block = (div_up(s->inner * (s->outer ? s->outer : 1), want) + 15) / 16 * 16;
  s->blocks = div_up(s->inner, s->block ? s->block : (s->block = 16));
  code->n_phases = 1;
  code->phase[0].fn = scatter_tasks;
  code->phase[0].self = s;
  code->phase[0].n_tasks = s->outer * s->blocks;
  return true;
}
