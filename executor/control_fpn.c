/* Regions that a detector of two stages proposes (T.-Y. Lin et al., "Feature Pyramid Networks for Object Detection", 2017):
 * the best boxes of a map, their distribution over the levels of a pyramid, and their collection. In and out: boxes
 * x1, y1, x2, y2 of all images, one image after another, and how many each image has. */
#include "control.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_INPUTS = 128 };

typedef struct Scored {
  int64_t at, image; /* in its list */
  int list;
  double score;
} Scored;

typedef VEC(Scored) ScoredVec;

/* A tensor of that many columns (0: any shape); the caller drops it. */
static Value *table_in(Control *c, Frame *f, Step *s, const char *slot, int i, int64_t columns) {
  Value *v = op_value(c, f, s, slot, i);
  if (!v) return NULL;
  bool fits = v->kind == V_TENSOR && (columns == 0 || (v->t.rank == 2 && v->t.dims[1] == columns));
  if (fits) return v;
  op_refuses(s, slot, "has not the shape it needs");
  value_drop(c, v);
  return NULL;
}

/* The image of each row, from how many rows each image has; without that tensor all are of image 0. */
static bool images_of(Control *c, Frame *f, Step *s, const char *slot, int i, int64_t rows,
                      int64_t *images, int64_t **image) {
  *image = arena_array(c->arena, int64_t, rows + 1);
  *images = 1;
  if (!step_in(s, slot, i)) return true;
  Value *v = table_in(c, f, s, slot, i, 0);
  if (!v) return false;
  int64_t n = tensor_numel(&v->t), at = 0;
  for (int64_t k = 0; k < n && at <= rows; k++) {
    double count = tensor_get(&v->t, k);
    for (int64_t j = 0; j < count && at <= rows; j++, at++)
      if (at < rows) (*image)[at] = k;
  }
  *images = n;
  value_drop(c, v);
  return at == rows || op_refuses(s, slot, "does not add up to the number of boxes");
}

static bool put_counts(Control *c, Frame *f, Step *s, const char *slot, int i, int64_t n,
                       const int32_t *count) {
  if (!step_out(s, slot, i)) return true;
  Value *v = value_tensor(c, DT_INT32, 1, &n);
  if (!v) return false;
  if (n) memcpy(v->t.data, count, sizeof *count * (size_t)n);
  return op_result(c, f, s, slot, i, v);
}

/* ---- distribute_fpn_proposals ---- */

/* Its side's logarithm relative to that of refer_scale, from refer_level on. */
static int level_of(const Op *op, const Tensor *boxes, int64_t i) {
  double v[4], more = op_bool(op, "pixel_offset") ? 1 : 0;
  for (int k = 0; k < 4; k++) v[k] = tensor_get(boxes, 4 * i + k);
  double w = v[2] - v[0], h = v[3] - v[1];
  double area = w < 0 || h < 0 ? 0 : (w + more) * (h + more);
  double level = floor(log2(sqrt(area) / (double)op_int(op, "refer_scale") + 1e-8) +
                       (double)op_int(op, "refer_level"));
  double lo = (double)op_int(op, "min_level"), hi = (double)op_int(op, "max_level");
  return (int)(fmin(fmax(level, lo), hi) - lo);
}

static bool distribute(Control *c, Frame *f, Step *s, const Tensor *boxes) {
  int64_t n = boxes->dims[0], images, *image, first = 0;
  int64_t levels = op_int(s->op, "max_level") - op_int(s->op, "min_level") + 1;
  if (!images_of(c, f, s, "RoisNum", 0, n, &images, &image)) return false;
  int *level = arena_array(c->arena, int, n + 1);
  for (int64_t i = 0; i < n; i++) level[i] = level_of(s->op, boxes, i);
  Value *restore = value_tensor(c, DT_INT32, 2, (int64_t[]){n, 1});
  for (int k = 0; restore && k < levels; k++) {
    int32_t *count = arena_array(c->arena, int32_t, images + 1);
    int64_t m = 0;
    for (int64_t i = 0; i < n; i++) m += level[i] == k;
    Value *out = value_tensor(c, boxes->dtype, 2, (int64_t[]){m, 4});
    if (!out) return false;
    m = 0;
    for (int64_t i = 0; i < n; i++) {
      if (level[i] != k) continue;
      for (int j = 0; j < 4; j++) tensor_set(&out->t, 4 * m + j, tensor_get(boxes, 4 * i + j));
      ((int32_t *)restore->t.data)[i] = (int32_t)(first + m++);
      count[image[i]]++;
    }
    first += m;
    if (!op_result(c, f, s, "MultiFpnRois", k, out) ||
        !put_counts(c, f, s, "MultiLevelRoIsNum", k, images, count))
      return false;
  }
  return restore && op_result(c, f, s, "RestoreIndex", 0, restore);
}

HostResult run_distribute_fpn_proposals(Control *c, Frame *f, Step *s) {
  Value *boxes = table_in(c, f, s, "FpnRois", 0, 4);
  if (!boxes) return HOST_FAIL;
  bool ok = distribute(c, f, s, &boxes->t);
  value_drop(c, boxes);
  return ok ? HOST_NEXT : HOST_FAIL;
}

/* ---- collect_fpn_proposals ---- */

/* Best first; among equals as they stand. */
static int by_score(const void *a, const void *b) {
  const Scored *x = a, *y = b;
  if (x->score != y->score) return x->score > y->score ? -1 : 1;
  if (x->list != y->list) return x->list < y->list ? -1 : 1;
  return (x->at > y->at) - (x->at < y->at);
}

static int by_image(const void *a, const void *b) {
  const Scored *x = a, *y = b;
  return x->image != y->image ? (x->image > y->image) - (x->image < y->image) : by_score(a, b);
}

static bool collect(Control *c, Frame *f, Step *s, Value **boxes, int n_lists) {
  ScoredVec all = {0};
  int64_t most = op_int(s->op, "post_nms_topN"), images = 0, *image;
  for (int i = 0; i < n_lists; i++) {
    int64_t rows = boxes[i]->t.dims[0], n;
    Value *score = table_in(c, f, s, "MultiLevelScores", i, 0);
    if (!score) return false;
    bool fits = tensor_numel(&score->t) == rows;
    for (int64_t k = 0; fits && k < rows; k++)
      vec_add(c->arena, &all, ((Scored){k, 0, i, tensor_get(&score->t, k)}));
    value_drop(c, score);
    if (!fits) return op_refuses(s, "MultiLevelScores", "must have a score for each box");
    if (!images_of(c, f, s, "MultiLevelRoIsNum", i, rows, &n, &image)) return false;
    if (i > 0 && n != images)
      return op_refuses(s, "MultiLevelRoIsNum", "must be of as many images for each level");
    images = n;
    for (int64_t k = 0; k < rows; k++) all.v[all.n - rows + k].image = image[k];
  }
  if (all.n) qsort(all.v, (size_t)all.n, sizeof *all.v, by_score);
  if (most >= 0 && all.n > most) all.n = (int)most;
  if (all.n) qsort(all.v, (size_t)all.n, sizeof *all.v, by_image);
  Value *out = value_tensor(c, boxes[0]->t.dtype, 2, (int64_t[]){all.n, 4});
  int32_t *count = arena_array(c->arena, int32_t, images + 1);
  for (int i = 0; out && i < all.n; i++) {
    const Scored *r = &all.v[i];
    for (int k = 0; k < 4; k++)
      tensor_set(&out->t, 4 * i + k, tensor_get(&boxes[r->list]->t, 4 * r->at + k));
    count[r->image]++;
  }
  return out && op_result(c, f, s, "FpnRois", 0, out) &&
         put_counts(c, f, s, "RoisNum", 0, images, count);
}

HostResult run_collect_fpn_proposals(Control *c, Frame *f, Step *s) {
  Value *boxes[MAX_INPUTS];
  int n = 0;
  bool ok = true;
  while (ok && n < MAX_INPUTS && step_in(s, "MultiLevelRois", n)) {
    boxes[n] = table_in(c, f, s, "MultiLevelRois", n, 4);
    ok = boxes[n] != NULL;
    n += ok;
  }
  if (ok && (n == 0 || n == MAX_INPUTS))
    ok = op_refuses(s, "MultiLevelRois", "must have 1 to 127 levels");
  ok = ok && collect(c, f, s, boxes, n);
  for (int i = 0; i < n; i++) value_drop(c, boxes[i]);
  return ok ? HOST_NEXT : HOST_FAIL;
}
