/* Tensors with their dimensions in another order. In: a tensor and a layout: dimension d of the result is the tensor's
 * dimension layout[d]. Out: the result's elements.
 *
 * A transposition of tiles: one side of a tile runs along the last dimension of the result or of the tensor, whichever is
 * longer, the other along the remaining dimensions in the order of the tensor or of the result, so that a tile's lines
 * are read and written whole. Dimensions that stay neighbours count as one. */
#include "ir.h"
#include <string.h>

enum { TILE = 16, TASK_ROWS = 16 * TILE };

typedef struct Steps {
  int64_t n, from, to; /* extent; elements between neighbours in the tensor and in the result */
} Steps;

typedef struct Transposition {
  int n; /* dimensions without the one that lines run along, outermost first */
  Steps dim[KL_VAR_RANK], line;
  int64_t rows; /* product of the extents */
} Transposition;

Tensor tensor_layout(const Tensor *t, const int64_t *layout) {
  Tensor r = *t;
  for (int d = 0; layout && d < t->rank; d++) r.dims[d] = t->dims[layout[d]];
  return r;
}

void layout_inverse(int rank, const int64_t *layout, int64_t *inverse) {
  for (int d = 0; d < rank; d++) inverse[layout ? layout[d] : d] = d;
}

/* The dimensions of the result, joined where they are neighbours in the tensor too; without those of size 1. */
static int result_steps(const Tensor *t, const int64_t *layout, Steps *s) {
  int64_t stride[KL_VAR_RANK], to = 1, from = 1;
  int n = 0;
  for (int d = t->rank - 1; d >= 0; d--) {
    stride[d] = from;
    from *= t->dims[d];
  }
  for (int d = 0; d < t->rank; d++) {
    int x = layout ? (int)layout[d] : d;
    if (t->dims[x] == 1) continue;
    if (n > 0 && s[n - 1].from == t->dims[x] * stride[x])
      s[n - 1] = (Steps){s[n - 1].n * t->dims[x], stride[x], 0};
    else
      s[n++] = (Steps){t->dims[x], stride[x], 0};
  }
  for (int d = n - 1; d >= 0; d--) {
    s[d].to = to;
    to *= s[d].n;
  }
  return n;
}

static Transposition plan(const Tensor *t, const int64_t *layout) {
  Transposition p = {.line = {1, 1, 1}, .rows = 1};
  Steps s[KL_VAR_RANK];
  int n = result_steps(t, layout, s), line = 0;
  if (n == 0) return p;
  for (int d = 1; d < n; d++)
    if (s[d].from < s[line].from) line = d; /* the tensor's last dimension */
  bool by_result = s[n - 1].n >= s[line].n;
  if (by_result) line = n - 1;
  p.line = s[line];
  for (int d = 0; d < n; d++) {
    if (d == line) continue;
    int at = p.n++;
    if (by_result) /* rows in the order of the tensor */
      for (; at > 0 && p.dim[at - 1].from < s[d].from; at--) p.dim[at] = p.dim[at - 1];
    p.dim[at] = s[d];
    p.rows *= s[d].n;
  }
  return p;
}

static void row_at(const Transposition *p, int64_t row, int64_t *from, int64_t *to) {
  *from = *to = 0;
  for (int d = p->n - 1; d >= 0; d--) {
    int64_t i = row % p->dim[d].n;
    row /= p->dim[d].n;
    *from += i * p->dim[d].from;
    *to += i * p->dim[d].to;
  }
}

#define TRANSPOSE(NAME, T)                                                                         \
  static void NAME(const Transposition *p, T *restrict to, const T *restrict from, int64_t row,    \
                   int rows) {                                                                     \
    int64_t x[TILE], y[TILE];                                                                      \
    for (int r = 0; r < rows; r++) row_at(p, row + r, &x[r], &y[r]);                               \
    for (int64_t i0 = 0; i0 < p->line.n; i0 += TILE) {                                             \
      int64_t i1 = i0 + TILE < p->line.n ? i0 + TILE : p->line.n;                                  \
      for (int r = 0; r < rows; r++)                                                               \
        for (int64_t i = i0; i < i1; i++)                                                          \
          to[y[r] + i * p->line.to] = from[x[r] + i * p->line.from];                               \
    }                                                                                              \
  }
TRANSPOSE(transpose_1, uint8_t)
TRANSPOSE(transpose_2, uint16_t)
TRANSPOSE(transpose_4, uint32_t)
TRANSPOSE(transpose_8, uint64_t)

int64_t tensor_permute_tasks(const Tensor *t, const int64_t *layout) {
  if (tensor_numel(t) == 0) return 0;
  Transposition p = plan(t, layout);
  return (p.rows + TASK_ROWS - 1) / TASK_ROWS;
}

void tensor_permute_some(void *to, const Tensor *t, const int64_t *layout, int64_t begin,
                         int64_t end) {
  Transposition p = plan(t, layout);
  int64_t last = end * TASK_ROWS < p.rows ? end * TASK_ROWS : p.rows;
  for (int64_t row = begin * TASK_ROWS; row < last; row += TILE) {
    int n = last - row < TILE ? (int)(last - row) : TILE;
    switch (dtype_info[t->dtype].size) {
    case 1: transpose_1(&p, to, t->data, row, n); break;
    case 2: transpose_2(&p, to, t->data, row, n); break;
    case 4: transpose_4(&p, to, t->data, row, n); break;
    default: transpose_8(&p, to, t->data, row, n); break;
    }
  }
}

void tensor_permute(void *to, const Tensor *t, const int64_t *layout) {
  tensor_permute_some(to, t, layout, 0, tensor_permute_tasks(t, layout));
}
