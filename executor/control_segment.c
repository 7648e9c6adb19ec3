/* The rows of a tensor in segments, each reduced to one row: how many there are is known only from the last number. */
#include "control.h"
#include <string.h>

enum { MOST = 1 << 24 }; /* segments */

typedef struct Segments {
  Value *x, *ids;
  int kind;               /* Reduction */
  int64_t rows, width, n; /* of X; numbers in a row; segments */
  int64_t *count;         /* rows of each segment */
} Segments;

static bool segments_read(Control *c, Frame *f, Step *s, Segments *g) {
  *g = (Segments){.x = op_tensor(c, f, s, "X")};
  g->ids = g->x ? op_tensor(c, f, s, "SegmentIds") : NULL;
  if (!g->ids) return false;
  g->kind = op_word(s->op, "pooltype", REDUCE_N, reduction_words);
  if (g->kind < 0) return false;
  const Tensor *x = &g->x->t, *ids = &g->ids->t;
  bool whole = ids->dtype == DT_INT32 || ids->dtype == DT_INT64;
  if (!whole || x->rank < 1 || tensor_numel(ids) != x->dims[0]) {
    op_refuses(s, "SegmentIds", "must be an integer for each row of X");
    return false;
  }
  g->rows = x->dims[0], g->width = numel_of(x->rank - 1, x->dims + 1);
  int64_t last = 0;
  for (int64_t i = 0; i < g->rows; i++) {
    int64_t id = (int64_t)tensor_get(ids, i);
    if (id >= MOST) return err_set(E_MEM_002, "more than %d segments", MOST);
    if (id < last)
      return err_set(E_DAT_002, "SegmentIds is %lld behind %lld", (long long)id, (long long)last);
    last = id;
  }
  g->n = g->rows ? last + 1 : 0;
  g->count = arena_array(c->arena, int64_t, g->n + 1);
  for (int64_t i = 0; i < g->rows; i++) g->count[(int64_t)tensor_get(ids, i)]++;
  return true;
}

static void segments_drop(Control *c, Segments *g) {
  value_drop(c, g->x);
  value_drop(c, g->ids);
}

static double reduced(int kind, double a, double v, bool first) {
  if (kind < REDUCE_MAX) return a + v;
  return first || v != v || (kind == REDUCE_MAX ? v > a : v < a) ? v : a;
}

static void reduce_segment(const Segments *g, int64_t from, int64_t to, int64_t id, Tensor *out) {
  const Tensor *x = &g->x->t;
  for (int64_t k = 0; k < g->width; k++) {
    double a = 0;
    for (int64_t i = from; i < to; i++)
      a = reduced(g->kind, a, tensor_get(x, i * g->width + k), i == from);
    tensor_set(out, id * g->width + k, g->kind == REDUCE_MEAN ? a / (double)(to - from) : a);
  }
}

HostResult run_segment_pool(Control *c, Frame *f, Step *s) {
  Segments g;
  if (!segments_read(c, f, s, &g)) return HOST_FAIL;
  Tensor like = g.x->t;
  like.dims[0] = g.n;
  int64_t all;
  if (!dims_numel(like.dtype, like.rank, like.dims, &all)) return HOST_FAIL;
  Value *out = value_zeros(c, &like), *count = NULL;
  int64_t at = 0;
  for (int64_t id = 0; id < g.n; at += g.count[id++])
    if (g.count[id]) reduce_segment(&g, at, at + g.count[id], id, &out->t);
  if (step_out(s, "SummedIds", 0)) {
    count = value_tensor(c, like.dtype, 2, (int64_t[]){g.n, 1});
    for (int64_t id = 0; id < g.n; id++) tensor_set(&count->t, id, (double)g.count[id]);
  }
  segments_drop(c, &g);
  return op_result(c, f, s, "Out", 0, out) && (!count || op_result(c, f, s, "SummedIds", 0, count))
             ? HOST_NEXT
             : HOST_FAIL;
}

/* A maximum's gradient goes to every row that equals it. */
HostResult run_segment_pool_grad(Control *c, Frame *f, Step *s) {
  Segments g;
  if (!segments_read(c, f, s, &g)) return HOST_FAIL;
  Value *gy = op_tensor(c, f, s, "Out@GRAD"), *y = NULL;
  if (gy && g.kind >= REDUCE_MAX) y = op_tensor(c, f, s, "Out");
  if (!gy || (g.kind >= REDUCE_MAX && !y)) return HOST_FAIL;
  int64_t wanted = g.n * g.width;
  if (tensor_numel(&gy->t) != wanted || (y && tensor_numel(&y->t) != wanted)) {
    op_refuses(s, "Out@GRAD", "is not like the segments of X");
    return HOST_FAIL;
  }
  Value *gx = value_zeros(c, &g.x->t);
  for (int64_t i = 0; i < g.rows; i++) {
    int64_t id = (int64_t)tensor_get(&g.ids->t, i);
    for (int64_t k = 0; k < g.width; k++) {
      double v = tensor_get(&gy->t, id * g.width + k);
      if (g.kind == REDUCE_MEAN) v /= (double)g.count[id];
      if (y && tensor_get(&y->t, id * g.width + k) != tensor_get(&g.x->t, i * g.width + k)) v = 0;
      tensor_set(&gx->t, i * g.width + k, v);
    }
  }
  segments_drop(c, &g);
  value_drop(c, gy);
  if (y) value_drop(c, y);
  return op_result(c, f, s, "X@GRAD", 0, gx) ? HOST_NEXT : HOST_FAIL;
}
