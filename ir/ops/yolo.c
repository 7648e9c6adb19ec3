/* The heads of YOLO (J. Redmon, A. Farhadi, "YOLOv3", 2018): the boxes they stand for, and their loss. In: a map [N, anchors *
 * (5 + classes), H, W] that gives for every anchor and cell four numbers of a box, a logit of there being an object, and
 * one of every class. A box is centre and size, in units of the image.
 *
 * The loss: a true box belongs to the anchor whose shape is most like its own, at the cell of its centre, if this head has
 * that anchor. There the box, the class and the object are learned; all other cells learn that there is none, but for
 * those whose box overlaps a true one by more than ignore_thresh. */
#include "ops.h"

#include <math.h>

enum { MAX_ANCHORS = 4096 };

typedef struct Yolo {
  int64_t n, anchors, classes, h, w, down;
  const int64_t *sizes; /* w, h of each anchor */
  bool iou;
  Node *x, *image; /* [N, anchors, 5 + classes, H, W]; [N, 2] */
} Yolo;

static bool yolo_read(Expand *x, Yolo *y) {
  int n;
  y->x = x_in(x, "X"), y->image = x_in(x, "ImgSize");
  y->sizes = op_intlist(x->op, "anchors", x->g->arena, &n);
  y->anchors = n / 2, y->classes = op_int(x->op, "class_num"),
  y->down = op_int(x->op, "downsample_ratio");
  y->iou = op_bool(x->op, "iou_aware");
  if (!ops_rank(y->x, "X", 4, 4) || !ops_rank(y->image, "ImgSize", 2, 2)) return false;
  if (n < 2 || n % 2 || n > MAX_ANCHORS || y->classes < 1 || y->classes > INT32_MAX ||
      y->down < 1 || y->down > INT32_MAX)
    return err_set(E_OPR_003, "%d anchors' sizes, class_num %lld, downsample_ratio %lld", n,
                   (long long)y->classes, (long long)y->down);
  y->n = y->x->dims[0], y->h = y->x->dims[2], y->w = y->x->dims[3];
  return ops_same("channels of X and anchors times (classes + 5)", y->x->dims[1],
                  y->anchors * (y->classes + 5 + y->iou)) &&
         ops_same("images of X and ImgSize", y->n, y->image->dims[0]) &&
         ops_same("2 and the columns of ImgSize", 2, y->image->dims[1]);
}

/* Entry i of every anchor: [N, anchors, count, H, W]. */
static Node *yolo_part(Graph *g, const Yolo *y, int64_t i, int64_t count) {
  return ops_cut(g, y->x, 2, i, 1, count);
}

/* Centre (k = 0 x, 1 y) and size of the boxes in points of the image, [N, anchors, 1, H, W]. */
static void yolo_axis(Expand *x, const Yolo *y, int k, Node *image, Node **mid, Node **size) {
  Graph *g = x->g;
  double scale = op_float(x->op, "scale_x_y"), cells = (double)(k ? y->h : y->w);
  int64_t dims[] = {1, 1, 1, y->h, y->w};
  double *v = arena_array(g->arena, double, y->anchors);
  for (int64_t a = 0; a < y->anchors; a++)
    v[a] = (double)y->sizes[2 * a + k] / ((double)y->down * cells);
  Node *anchor = g_cast(g, g_data(g, DT_FLOAT64, 1, &y->anchors, v, "anchors"), y->x->dtype);
  Node *at = g_iota(g, y->x->dtype, 5, dims, k ? 3 : 4);
  Node *p =
      ops_plus(g, ops_times(g, ops_sigmoid(g, yolo_part(g, y, k, 1)), scale), -0.5 * (scale - 1));
  *mid = ops_times(g, ops_mul(g, ops_add(g, at, p), image), 1 / cells);
  *size =
      ops_mul(g,
              ops_mul(g, g_map1(g, P_EXP, yolo_part(g, y, 2 + k, 1)), ops_along(g, anchor, 5, 1)),
              image);
}

bool x_yolo_box(Expand *x) {
  Graph *g = x->g;
  Yolo y;
  if (!yolo_read(x, &y)) return false;
  DType t = y.x->dtype;
  int64_t cells[] = {y.anchors, y.h, y.w}, boxes = ops_prod(cells, 0, 3);
  if (boxes < 0 || y.n < 0)
    return x_out(x, "Boxes", ops_blank(g, t, 3, (int64_t[]){y.n, boxes, 4})) &&
           x_out(x, "Scores", ops_blank(g, t, 3, (int64_t[]){y.n, boxes, y.classes}));
  Node *ious = NULL;
  if (y.iou) {
    ious = g_reshape(g, ops_cut(g, y.x, 1, 0, 1, y.anchors), 5,
                     (int64_t[]){y.n, y.anchors, 1, y.h, y.w});
    y.x = ops_cut(g, y.x, 1, y.anchors, 1, y.anchors * (y.classes + 5));
  }
  y.x = g_reshape(g, y.x, 5, (int64_t[]){y.n, y.anchors, y.classes + 5, y.h, y.w});
  Node *conf = ops_sigmoid(g, yolo_part(g, &y, 4, 1)), *v[4];
  if (y.iou) {
    double f = op_float(x->op, "iou_aware_factor");
    conf = ops_mul(g, g_map2c(g, P_POW, conf, 1 - f), g_map2c(g, P_POW, ops_sigmoid(g, ious), f));
  }
  Node *live = conf ? g_map2(g, P_LE, g_const(g, t, op_float(x->op, "conf_thresh")), conf) : NULL;
  for (int k = 0; k < 2; k++) {
    Node *mid, *size, *image = g_cast(g, ops_cut(g, y.image, 1, 1 - k, 1, 1), t);
    image = g_reshape(g, image, 5, (int64_t[]){y.n, 1, 1, 1, 1});
    yolo_axis(x, &y, k, image, &mid, &size);
    v[k] = ops_sub(g, mid, ops_times(g, size, 0.5));
    v[2 + k] = ops_add(g, mid, ops_times(g, size, 0.5));
    if (!op_bool(x->op, "clip_bbox")) continue;
    v[k] = g_map2c(g, P_MAX, v[k], 0);
    v[2 + k] = g_map2(g, P_MIN, v[2 + k], ops_plus(g, image, -1));
  }
  Node *box = err_any() ? NULL : g_concat(g, 4, v, 2);
  Node *score = ops_mul(g, conf, ops_sigmoid(g, yolo_part(g, &y, 5, y.classes)));
  Node *out[2] = {g_select(g, live, box, g_const(g, t, 0)),
                  g_select(g, live, score, g_const(g, t, 0))};
  for (int i = 0; i < 2; i++) {
    if (!out[i]) return false;
    out[i] = g_permute(g, out[i], (int[]){0, 1, 3, 4, 2});
    out[i] = g_reshape(g, out[i], 3, (int64_t[]){y.n, boxes, i ? y.classes : 4});
  }
  return x_out(x, "Boxes", out[0]) && x_out(x, "Scores", out[1]);
}

/* ---- yolov3_loss ---- */

typedef struct YoloLoss {
  Yolo y;                     /* of the anchors of this head */
  int64_t b, all, cells;      /* true boxes of an image; anchors of all heads; H*W */
  const int64_t *sizes, *own; /* of all heads; which of them this head has */
  DType t;
  Node *pos, *size, *label, *score, *match; /* [N, B, 2], [N, B, 2], [N, B, 1]...; match -1: none */
  Node *hit, *at;                           /* match >= 0; its cell in H*W */
  Node *want[2], *weight; /* offset in the cell and logarithm of the size, [N, B, 2]; of the box */
} YoloLoss;

static bool loss_attrs(Expand *x, YoloLoss *l) {
  int n, m;
  int64_t classes = op_int(x->op, "class_num"), down = op_int(x->op, "downsample_ratio");
  l->sizes = op_intlist(x->op, "anchors", x->g->arena, &n),
  l->own = op_intlist(x->op, "anchor_mask", x->g->arena, &m);
  l->all = n / 2;
  if (n < 2 || n % 2 || n > MAX_ANCHORS || m < 1 || m > MAX_ANCHORS || classes < 1 ||
      classes > INT32_MAX || down < 1 || down > INT32_MAX)
    return err_set(E_OPR_003,
                   "%d anchors' sizes, %d in anchor_mask, class_num %lld, downsample_ratio %lld", n,
                   m, (long long)classes, (long long)down);
  int64_t *sizes = arena_array(x->g->arena, int64_t, 2 * m);
  for (int i = 0; i < m; i++) {
    if (l->own[i] < 0 || l->own[i] >= l->all)
      return err_set(E_OPR_003, "anchor_mask holds %lld, there are %lld anchors",
                     (long long)l->own[i], (long long)l->all);
    for (int k = 0; k < 2; k++) sizes[2 * i + k] = l->sizes[2 * l->own[i] + k];
  }
  for (int i = 0; i < n; i++)
    if (l->sizes[i] < 1) return err_set(E_OPR_003, "anchors holds %lld", (long long)l->sizes[i]);
  l->y = (Yolo){.anchors = m, .classes = classes, .down = down, .sizes = sizes};
  return true;
}

static bool loss_shapes(Expand *x, YoloLoss *l) {
  Node *in = x_in(x, "X"), *box = x_in(x, "GTBox"), *label = x_in(x, "GTLabel");
  if (!ops_rank(in, "X", 4, 4) || !ops_float(in, "X") || !ops_rank(box, "GTBox", 3, 3) ||
      !ops_rank(label, "GTLabel", 2, 2) || !ops_index(label, "GTLabel"))
    return false;
  l->y.n = in->dims[0], l->y.h = in->dims[2], l->y.w = in->dims[3];
  l->b = box->dims[1], l->t = in->dtype;
  if (!ops_same("channels of X and anchors of anchor_mask times (classes + 5)", in->dims[1],
                l->y.anchors * (l->y.classes + 5)) ||
      !ops_same("rows and columns of X", l->y.h, l->y.w) ||
      !ops_same("images of X and GTBox", l->y.n, box->dims[0]) ||
      !ops_same("4 and the last dimension of GTBox", 4, box->dims[2]) ||
      !ops_same("images of GTBox and GTLabel", box->dims[0], label->dims[0]) ||
      !ops_same("boxes of GTBox and GTLabel", l->b, label->dims[1]))
    return false;
  if (x_n_in(x, "GTScore") == 0) return true;
  Node *score = x_in(x, "GTScore");
  return ops_rank(score, "GTScore", 2, 2) &&
         ops_same("images of GTBox and GTScore", box->dims[0], score->dims[0]) &&
         ops_same("boxes of GTBox and GTScore", l->b, score->dims[1]);
}

static bool loss_known(const YoloLoss *l) {
  return l->y.n >= 0 && l->b >= 0 && l->y.h >= 0 && l->y.w >= 0;
}

static void loss_read(Expand *x, YoloLoss *l) {
  Graph *g = x->g;
  int64_t one[] = {l->y.n, l->b, 1};
  Node *box = g_cast(g, x_in(x, "GTBox"), l->t);
  l->cells = l->y.h * l->y.w;
  l->y.x = g_reshape(g, x_in(x, "X"), 5,
                     (int64_t[]){l->y.n, l->y.anchors, l->y.classes + 5, l->y.h, l->y.w});
  l->pos = ops_cut(g, box, 2, 0, 1, 2), l->size = ops_cut(g, box, 2, 2, 1, 2);
  l->label = g_cast(g, g_reshape(g, x_in(x, "GTLabel"), 3, one), DT_INT64);
  l->score = x_n_in(x, "GTScore") > 0 ? g_cast(g, g_reshape(g, x_in(x, "GTScore"), 3, one), l->t)
                                      : g_full(g, l->t, 1, 3, one);
}

/* Number k of pairs. */
static Node *nth(Graph *g, Node *pair, int k) { return ops_cut(g, pair, 2, k, 1, 1); }

/* Overlap over union of what is min(sizes) at most in both directions. */
static Node *over_union(Graph *g, Node *const *in, Node *const *a, Node *const *b) {
  Node *inter = ops_mul(g, in[0], in[1]);
  Node *both = ops_add(g, ops_mul(g, a[0], a[1]), ops_mul(g, b[0], b[1]));
  return ops_div(g, inter, ops_sub(g, both, inter));
}

/* Neither side below 1e-6: [N, B, 1]. */
static Node *loss_valid(Graph *g, const YoloLoss *l) {
  Node *least = g_const(g, l->t, 1e-6);
  return ops_mul(g, g_map2(g, P_LE, least, nth(g, l->size, 0)),
                 g_map2(g, P_LE, least, nth(g, l->size, 1)));
}

/* The place in anchor_mask of the anchor that is most like each box, or -1: int32 [N, B, 1]. */
static Node *loss_match(Graph *g, const YoloLoss *l, Node *valid) {
  Node *a[2], *s[2], *in[2];
  int64_t one[] = {l->y.n, l->b, 1}, flat = l->y.n * l->b;
  double *v = arena_array(g->arena, double, l->all);
  for (int k = 0; k < 2; k++) {
    for (int64_t i = 0; i < l->all; i++)
      v[i] = (double)l->sizes[2 * i + k] / ((double)l->y.down * (double)l->y.h);
    a[k] = g_cast(g, g_data(g, DT_FLOAT64, 1, &l->all, v, "anchors"), l->t);
    a[k] = ops_along(g, a[k], 3, 2);
    s[k] = nth(g, l->size, k);
    in[k] = g_map2(g, P_MIN, a[k], s[k]);
  }
  Node *iou = over_union(g, in, a, s);
  Node *best = iou ? g_argmax(g, iou, 4, true, DT_INT64) : NULL;
  int32_t *place = arena_array(g->arena, int32_t, l->all);
  for (int64_t i = 0; i < l->all; i++) place[i] = -1;
  for (int64_t i = l->y.anchors - 1; i >= 0; i--) place[l->own[i]] = (int32_t)i;
  Node *table = g_data(g, DT_INT32, 1, &l->all, place, "places");
  Node *match = best ? ops_take(g, table, g_reshape(g, best, 1, &flat), 0) : NULL;
  return match
             ? g_select(g, valid, g_reshape(g, match, 3, one), g_full_int(g, DT_INT32, -1, 0, NULL))
             : NULL;
}

/* What the head should say at the cells of the boxes that match. */
static void loss_targets(Graph *g, YoloLoss *l) {
  int64_t two[] = {l->y.n, l->b, 2}, flat = l->y.n * l->b, shape[] = {l->y.anchors, 2};
  double *v = arena_array(g->arena, double, 2 * l->y.anchors), grid = (double)l->y.h;
  for (int64_t i = 0; i < 2 * l->y.anchors; i++)
    v[i] = (double)l->y.down * grid / (double)l->y.sizes[i];
  Node *table = g_cast(g, g_data(g, DT_FLOAT64, 2, shape, v, "anchors"), l->t);
  Node *none = g_full_int(g, DT_INT32, 0, 0, NULL);
  l->hit = l->match ? g_map2(g, P_LE, none, l->match) : NULL;
  Node *own = l->match ? g_map2(g, P_MAX, l->match, none) : NULL;
  Node *anchor = own ? ops_take(g, table, g_reshape(g, own, 1, &flat), 0) : NULL;
  Node *size = g_select(g, l->hit, l->size, g_const(g, l->t, 1));
  l->want[1] = ops_mul(g, size, g_reshape(g, anchor, 3, two));
  l->want[1] = l->want[1] ? g_map1(g, P_LOG, l->want[1]) : NULL;
  Node *spot = ops_times(g, l->pos, grid), *cell = g_cast(g, spot, DT_INT64);
  l->want[0] = ops_sub(g, spot, g_cast(g, cell, l->t));
  l->at = ops_add(g, ops_times(g, nth(g, cell, 1), (double)l->y.w), nth(g, cell, 0));
  l->at = g_map2c(g, P_MIN, g_map2c(g, P_MAX, l->at, 0), (double)(l->cells - 1));
  Node *area = ops_mul(g, nth(g, size, 0), nth(g, size, 1));
  l->weight = ops_mul(g, ops_plus(g, ops_times(g, area, -1), 2), l->score);
}

/* Where channel c of `per` of the matching anchors stands in [N, anchors * per * H * W]; one beyond if none matches:
 * int64 [N, B * per]. */
static Node *loss_index(Graph *g, const YoloLoss *l, int64_t per) {
  int64_t dims[] = {l->y.n, l->b, per}, beyond = l->y.anchors * per * l->cells;
  Node *row = ops_times(g, g_cast(g, l->match, DT_INT64), (double)per);
  row = ops_times(g, ops_add(g, row, g_iota(g, DT_INT64, 3, dims, 2)), (double)l->cells);
  Node *i = g_select(g, l->hit, ops_add(g, row, l->at), g_full_int(g, DT_INT64, beyond, 0, NULL));
  return g_reshape(g, i, 2, (int64_t[]){l->y.n, l->b * per});
}

/* The last of the updates [N, B, per] that goes to an element of base, in its place. */
static Node *loss_store(Graph *g, const YoloLoss *l, Node *base, Node *upd, int64_t per) {
  int64_t n = l->y.n, len = l->y.anchors * per * l->cells, none[] = {0, 0}, one[] = {0, 1};
  base = g_pad(g, g_reshape(g, base, 2, (int64_t[]){n, len}), none, one, 0);
  upd = g_reshape(g, upd, 2, (int64_t[]){n, l->b * per});
  base = g_scatter(g, base, loss_index(g, l, per), upd, 1, true);
  return g_reshape(g, ops_cut(g, base, 1, 0, 1, len), 5,
                   (int64_t[]){n, l->y.anchors, per, l->y.h, l->y.w});
}

/* -1 where the best overlap is above the limit, else 0; the score where a box belongs: [N, anchors, 1, H, W]. */
static Node *loss_objects(Expand *x, const YoloLoss *l, Node *valid) {
  Graph *g = x->g;
  Node *in[2], *a[2], *b[2], *mid, *half = g_const(g, l->t, 0.5);
  int64_t dims[] = {l->y.n, 1, l->b, 1, 1};
  for (int k = 0; k < 2; k++) {
    yolo_axis(x, &l->y, k, g_const(g, l->t, 1), &mid, &a[k]);
    Node *at = g_reshape(g, nth(g, l->pos, k), 5, dims);
    b[k] = g_reshape(g, nth(g, l->size, k), 5, dims);
    Node *ha = ops_mul(g, a[k], half), *hb = ops_mul(g, b[k], half);
    Node *hi = g_map2(g, P_MIN, ops_add(g, mid, ha), ops_add(g, at, hb));
    Node *lo = g_map2(g, P_MAX, ops_sub(g, mid, ha), ops_sub(g, at, hb));
    in[k] = g_map2c(g, P_MAX, ops_sub(g, hi, lo), 0);
  }
  Node *iou = over_union(g, in, a, b), *zero = g_const(g, l->t, 0);
  iou = iou ? g_select(g, g_reshape(g, valid, 5, dims), iou, zero) : NULL;
  Node *best = iou ? g_reduce(g, P_RMAX, iou, 4, true) : NULL;
  Node *over =
      best ? g_map2(g, P_LT, g_const(g, l->t, op_float(x->op, "ignore_thresh")), best) : NULL;
  Node *base = over ? g_select(g, over, g_const(g, l->t, -1), zero) : NULL;
  return base ? loss_store(g, l, base, l->score, 1) : NULL;
}

/* Is the number in the mask a score; is it 0? */
static void loss_cases(Graph *g, const YoloLoss *l, Node *mask, Node **some, Node **none) {
  *some = g_map2(g, P_LT, g_const(g, l->t, 1e-5), mask);
  *none = g_map2(g, P_LT, g_const(g, l->t, -0.5), mask);
}

/* The probabilities of the classes to learn: [N, B, classes]. */
static Node *loss_classes(Expand *x, const YoloLoss *l) {
  Graph *g = x->g;
  int64_t dims[] = {l->y.n, l->b, l->y.classes};
  double off = op_bool(x->op, "use_label_smooth") ? fmin(1.0 / (double)l->y.classes, 1.0 / 40) : 0;
  Node *own = g_map2(g, P_EQ, g_iota(g, DT_INT64, 3, dims, 2), l->label);
  return g_select(g, own, g_const(g, l->t, 1 - off), g_const(g, l->t, off));
}

/* max(v, 0) - v * p + log(1 + e^-|v|) */
static Node *logit_loss(Graph *g, Node *v, Node *p) {
  Node *less = g_map2(g, P_MIN, v, ops_times(g, v, -1));
  Node *rest = less ? g_map1(g, P_LOG, ops_plus(g, g_map1(g, P_EXP, less), 1)) : NULL;
  return ops_add(g, ops_sub(g, g_map2c(g, P_MAX, v, 0), ops_mul(g, v, p)), rest);
}

/* The sum over all but the images. */
static Node *per_image(Graph *g, Node *v) {
  return v ? g_reduce(g, P_RSUM, v, ((1u << v->rank) - 1) & ~1u, false) : NULL;
}

/* The head's channels at the cells that match: [N, B, 5 + classes]. */
static Node *loss_said(Graph *g, const YoloLoss *l) {
  int64_t per = l->y.classes + 5, len = l->y.anchors * per * l->cells;
  Node *flat = g_reshape(g, l->y.x, 2, (int64_t[]){l->y.n, len});
  Node *at = g_map2c(g, P_MIN, loss_index(g, l, per), (double)(len - 1));
  return g_reshape(g, g_gather(g, flat, at, 1), 3, (int64_t[]){l->y.n, l->b, per});
}

bool x_yolov3_loss(Expand *x) {
  Graph *g = x->g;
  YoloLoss l;
  if (!loss_attrs(x, &l) || !loss_shapes(x, &l)) return false;
  if (!loss_known(&l))
    return x_out(x, "Loss", ops_blank(g, l.t, 1, &l.y.n)) &&
           x_out(x, "ObjectnessMask",
                 ops_blank(g, l.t, 4, (int64_t[]){l.y.n, l.y.anchors, l.y.h, l.y.w})) &&
           x_out(x, "GTMatchMask", ops_blank(g, DT_INT32, 2, (int64_t[]){l.y.n, l.b}));
  loss_read(x, &l);
  Node *valid = loss_valid(g, &l), *some, *none, *zero = g_const(g, l.t, 0);
  l.match = loss_match(g, &l, valid);
  loss_targets(g, &l);
  Node *said = err_any() ? NULL : loss_said(g, &l),
       *mask = said ? loss_objects(x, &l, valid) : NULL;
  if (!mask) return false;
  Node *off = ops_sub(g, ops_cut(g, said, 2, 2, 1, 2), l.want[1]);
  off = g_map2(g, P_MAX, off, ops_times(g, off, -1));
  Node *box =
      ops_mul(g, ops_add(g, logit_loss(g, ops_cut(g, said, 2, 0, 1, 2), l.want[0]), off), l.weight);
  Node *class =
      ops_mul(g, logit_loss(g, ops_cut(g, said, 2, 5, 1, l.y.classes), loss_classes(x, &l)),
              l.score);
  Node *object = yolo_part(g, &l.y, 4, 1);
  loss_cases(g, &l, mask, &some, &none);
  Node *yes = ops_mul(g, logit_loss(g, object, g_const(g, l.t, 1)), mask);
  object = g_select(g, some, yes, g_select(g, none, logit_loss(g, object, zero), zero));
  Node *loss = ops_add(g, per_image(g, g_select(g, l.hit, box, zero)),
                       per_image(g, g_select(g, l.hit, class, zero)));
  return x_out(x, "Loss", ops_add(g, loss, per_image(g, object))) &&
         x_out(x, "ObjectnessMask",
               g_reshape(g, mask, 4, (int64_t[]){l.y.n, l.y.anchors, l.y.h, l.y.w})) &&
         x_out(x, "GTMatchMask", g_reshape(g, l.match, 2, (int64_t[]){l.y.n, l.b}));
}

/* Where two boxes belong to the same anchor and cell, PaddlePaddle's gradient is that of the last alone: so is this. */
bool x_yolov3_loss_grad(Expand *x) {
  Graph *g = x->g;
  YoloLoss l;
  if (!loss_attrs(x, &l) || !loss_shapes(x, &l)) return false;
  if (!loss_known(&l)) return x_out(x, "X@GRAD", ops_blank_like(g, x_in(x, "X")));
  loss_read(x, &l);
  int64_t n = l.y.n, per = l.y.classes + 5;
  l.match = g_cast(g, g_reshape(g, x_in(x, "GTMatchMask"), 3, (int64_t[]){n, l.b, 1}), DT_INT32);
  loss_targets(g, &l);
  Node *said = err_any() ? NULL : loss_said(g, &l), *v[4], *zero = g_const(g, l.t, 0);
  Node *up = g_reshape(g, x_in(x, "Loss@GRAD"), 3, (int64_t[]){n, 1, 1}), *some, *none;
  if (!said) return false;
  Node *box = ops_mul(g, l.weight, up);
  v[0] = ops_mul(g, ops_sub(g, ops_sigmoid(g, ops_cut(g, said, 2, 0, 1, 2)), l.want[0]), box);
  Node *above = g_map2(g, P_LT, l.want[1], ops_cut(g, said, 2, 2, 1, 2));
  v[1] = ops_mul(g, g_select(g, above, g_const(g, l.t, 1), g_const(g, l.t, -1)), box);
  v[2] = g_full(g, l.t, 0, 3, (int64_t[]){n, l.b, 1});
  Node *class = ops_sigmoid(g, ops_cut(g, said, 2, 5, 1, l.y.classes));
  v[3] = ops_mul(g, ops_sub(g, class, loss_classes(x, &l)), ops_mul(g, l.score, up));
  Node *mask =
      g_reshape(g, x_in(x, "ObjectnessMask"), 5, (int64_t[]){n, l.y.anchors, 1, l.y.h, l.y.w});
  if (err_any() || !mask) return false;
  int64_t dims[] = {n, l.y.anchors, per, l.y.h, l.y.w}, lo[] = {0, 0, 4, 0, 0},
          hi[] = {0, 0, l.y.classes, 0, 0};
  Node *at = loss_store(g, &l, g_full(g, l.t, 0, 5, dims), g_concat(g, 4, v, 2), per);
  loss_cases(g, &l, mask, &some, &none);
  Node *p = ops_sigmoid(g, yolo_part(g, &l.y, 4, 1));
  Node *object =
      g_select(g, some, ops_mul(g, ops_plus(g, p, -1), mask), g_select(g, none, p, zero));
  object = ops_mul(g, object, g_reshape(g, up, 5, (int64_t[]){n, 1, 1, 1, 1}));
  Node *d = ops_add(g, at, g_pad(g, object, lo, hi, 0));
  return x_out(x, "X@GRAD", d ? g_reshape(g, d, 4, x_in(x, "X")->dims) : NULL);
}
