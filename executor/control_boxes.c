/* Suppression of overlapping boxes. In: boxes [N, M, 4] and scores [N, C, M]; out: rows of class, score and box, how
 * many they are being known only now.
 *
 * multiclass_nms: in each class the boxes above the threshold, best first; one is kept unless it overlaps one that is kept
 * by more than nms_threshold; nms does this for boxes that come in this order. matrix_nms: scores decay with the overlap instead (X. Wang et al., "SOLOv2", 2020). */
#include "control.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct Found {
  int64_t box, label;
  double score;
} Found;

typedef VEC(Found) FoundVec;

typedef struct Suppress {
  Control *c;
  Frame *f;
  Step *s;
  Value *boxes, *scores;
  int64_t n, m, classes;
  int64_t background, top, keep; /* top, keep: -1 all */
  double least, more;            /* more: 1 where coordinates are points */
  const Tensor *box;
  FoundVec all, some; /* of an image; of a class */
  VEC(Found) rows;    /* of all images, box counted over all */
  int32_t *count;
} Suppress;

/* Best first; among equals the one that stands first. */
static int by_score(const void *a, const void *b) {
  const Found *x = a, *y = b;
  if (x->score != y->score) return x->score > y->score ? -1 : 1;
  if (x->label != y->label) return x->label < y->label ? -1 : 1;
  return (x->box > y->box) - (x->box < y->box);
}

static int by_label(const void *a, const void *b) {
  const Found *x = a, *y = b;
  return x->label != y->label ? (x->label > y->label) - (x->label < y->label) : by_score(a, b);
}

static double area(const double *b, double more) {
  return b[2] < b[0] || b[3] < b[1] ? 0 : (b[2] - b[0] + more) * (b[3] - b[1] + more);
}

static double overlap(const Suppress *u, int64_t i, int64_t j) {
  double a[4], b[4];
  for (int k = 0; k < 4; k++)
    a[k] = tensor_get(u->box, 4 * i + k), b[k] = tensor_get(u->box, 4 * j + k);
  if (b[0] > a[2] || b[2] < a[0] || b[1] > a[3] || b[3] < a[1]) return 0;
  double w = fmin(a[2], b[2]) - fmax(a[0], b[0]) + u->more,
         h = fmin(a[3], b[3]) - fmax(a[1], b[1]) + u->more;
  return w * h / (area(a, u->more) + area(b, u->more) - w * h);
}

/* The boxes of one class above the threshold, best first. */
static void candidates(Suppress *u, int64_t image, int64_t label) {
  u->some.n = 0;
  for (int64_t k = 0; k < u->m; k++) {
    double score = tensor_get(&u->scores->t, (image * u->classes + label) * u->m + k);
    if (score > u->least) vec_add(u->c->arena, &u->some, ((Found){image * u->m + k, label, score}));
  }
  if (u->some.n) qsort(u->some.v, (size_t)u->some.n, sizeof *u->some.v, by_score);
  if (u->top >= 0 && u->some.n > u->top) u->some.n = (int)u->top;
}

static void keep_apart(Suppress *u) {
  double limit = op_float(u->s->op, "nms_threshold"), eta = op_float(u->s->op, "nms_eta");
  int first = u->all.n;
  for (int i = 0; i < u->some.n; i++) {
    bool keep = true;
    for (int k = first; keep && k < u->all.n; k++)
      keep = overlap(u, u->some.v[i].box, u->all.v[k].box) <= limit;
    if (!keep) continue;
    vec_add(u->c->arena, &u->all, u->some.v[i]);
    if (eta < 1 && limit > 0.5) limit *= eta;
  }
}

static void decay(Suppress *u) {
  bool gaussian = op_bool(u->s->op, "use_gaussian");
  double sigma = op_float(u->s->op, "gaussian_sigma"), post = op_float(u->s->op, "post_threshold");
  double *most = arena_array(u->c->arena, double, u->some.n + 1);
  for (int i = 0; i < u->some.n; i++) {
    double least = 1;
    for (int k = 0; k < i; k++) {
      double o = overlap(u, u->some.v[i].box, u->some.v[k].box);
      double d = gaussian ? exp((most[k] * most[k] - o * o) * sigma) : (1 - o) / (1 - most[k]);
      least = fmin(least, d);
      most[i] = fmax(most[i], o);
    }
    Found kept = u->some.v[i];
    kept.score *= least;
    if (kept.score > post) vec_add(u->c->arena, &u->all, kept);
  }
}

static bool suppress_read(Suppress *u) {
  const Op *op = u->s->op;
  u->boxes = op_value(u->c, u->f, u->s, "BBoxes", 0);
  u->scores = u->boxes ? op_value(u->c, u->f, u->s, "Scores", 0) : NULL;
  if (!u->scores) return false;
  const Tensor *b = &u->boxes->t, *p = &u->scores->t;
  if (u->boxes->kind != V_TENSOR || u->scores->kind != V_TENSOR || b->rank != 3 || p->rank != 3 ||
      b->dims[2] != 4 || b->dims[0] != p->dims[0] || b->dims[1] != p->dims[2]) {
    op_refuses(u->s, "Scores", "must be [N, C, M] for BBoxes [N, M, 4]");
    return false;
  }
  u->box = b;
  u->n = b->dims[0], u->m = b->dims[1], u->classes = p->dims[1];
  u->background = op_int(op, "background_label");
  u->top = op_int(op, "nms_top_k"), u->keep = op_int(op, "keep_top_k");
  u->least = op_float(op, "score_threshold");
  u->more = op_bool(op, "normalized") ? 0 : 1;
  u->count = arena_array(u->c->arena, int32_t, u->n + 1);
  return true;
}

static bool put_rows(Suppress *u, bool none_is_one) {
  int64_t n = u->rows.n;
  bool one = n == 0 && none_is_one;
  Value *out = value_tensor(u->c, u->box->dtype, 2, one ? (int64_t[]){1, 1} : (int64_t[]){n, 6});
  if (one) tensor_set(&out->t, 0, -1);
  for (int64_t i = 0; i < n; i++) {
    const Found *r = &u->rows.v[i];
    tensor_set(&out->t, 6 * i, (double)r->label);
    tensor_set(&out->t, 6 * i + 1, r->score);
    for (int k = 0; k < 4; k++)
      tensor_set(&out->t, 6 * i + 2 + k, tensor_get(u->box, 4 * r->box + k));
  }
  if (!op_result(u->c, u->f, u->s, "Out", 0, out)) return false;
  Value *index = value_tensor(u->c, DT_INT32, 2, (int64_t[]){n, 1});
  for (int64_t i = 0; i < n; i++) ((int32_t *)index->t.data)[i] = (int32_t)u->rows.v[i].box;
  if (!op_result(u->c, u->f, u->s, "Index", 0, index)) return false;
  const char *counts[] = {"NmsRoisNum", "RoisNum"};
  for (int k = 0; k < 2; k++) {
    if (!step_out(u->s, counts[k], 0)) continue;
    Value *v = value_tensor(u->c, DT_INT32, 1, &u->n);
    memcpy(v->t.data, u->count, sizeof *u->count * (size_t)u->n);
    if (!op_result(u->c, u->f, u->s, counts[k], 0, v)) return false;
  }
  return true;
}

static HostResult suppress(Control *c, Frame *f, Step *s, void (*choose)(Suppress *), bool sorted,
                           bool none_is_one) {
  Suppress u = {.c = c, .f = f, .s = s};
  if (!suppress_read(&u)) return HOST_FAIL;
  for (int64_t i = 0; i < u.n; i++) {
    u.all.n = 0;
    for (int64_t k = 0; k < u.classes; k++) {
      if (k == u.background) continue;
      candidates(&u, i, k);
      choose(&u);
    }
    if (u.all.n && (sorted || (u.keep >= 0 && u.all.n > u.keep)))
      qsort(u.all.v, (size_t)u.all.n, sizeof *u.all.v, by_score);
    if (u.keep >= 0 && u.all.n > u.keep) u.all.n = (int)u.keep;
    if (u.all.n && !sorted) qsort(u.all.v, (size_t)u.all.n, sizeof *u.all.v, by_label);
    for (int k = 0; k < u.all.n; k++) vec_add(c->arena, &u.rows, u.all.v[k]);
    u.count[i] = (int32_t)u.all.n;
  }
  bool ok = put_rows(&u, none_is_one);
  value_drop(c, u.boxes);
  value_drop(c, u.scores);
  return ok ? HOST_NEXT : HOST_FAIL;
}

HostResult run_multiclass_nms(Control *c, Frame *f, Step *s) {
  return suppress(c, f, s, keep_apart, false, !step_out(s, "NmsRoisNum", 0));
}
HostResult run_matrix_nms(Control *c, Frame *f, Step *s) {
  return suppress(c, f, s, decay, true, false);
}

/* Boxes [M, 4], the best first: the positions of those that overlap none that is kept by more than iou_threshold. */
HostResult run_nms(Control *c, Frame *f, Step *s) {
  Suppress u = {.c = c, .f = f, .s = s};
  double limit = op_float(s->op, "iou_threshold");
  u.boxes = op_tensor(c, f, s, "Boxes");
  if (!u.boxes) return HOST_FAIL;
  u.box = &u.boxes->t;
  if (u.box->rank != 2 || u.box->dims[1] != 4) {
    op_refuses(s, "Boxes", "must be [M, 4]");
    return HOST_FAIL;
  }
  for (int64_t i = 0; i < u.box->dims[0]; i++) {
    bool keep = true;
    for (int k = 0; keep && k < u.all.n; k++) keep = overlap(&u, i, u.all.v[k].box) <= limit;
    if (keep) vec_add(c->arena, &u.all, ((Found){.box = i}));
  }
  Value *out = value_tensor(c, DT_INT64, 1, (int64_t[]){u.all.n});
  for (int k = 0; k < u.all.n; k++) ((int64_t *)out->t.data)[k] = u.all.v[k].box;
  value_drop(c, u.boxes);
  return op_result(c, f, s, "KeepBoxesIdxs", 0, out) ? HOST_NEXT : HOST_FAIL;
}
