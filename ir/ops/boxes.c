/* Boxes of object detection: anchors laid over a feature map (numbers that follow from shapes and attributes, computed here),
 * boxes relative to them, and overlaps. A box is x1, y1, x2, y2. */
#include "sequence.h"

#include <math.h>
#include <string.h>

enum { MAX_PRIORS = 4096, MAX_BOXES = 1 << 22 };

/* A list attribute of numbers. */
static const double *floats_of(Expand *x, const char *name, int *n) {
  const Attr *a = op_list(x->op, name, x->g->arena);
  bool list = a && a->type == AT_FLOATS;
  *n = list ? a->n : 0;
  return list ? a->fs : NULL;
}

typedef struct Anchors {
  int64_t h, w; /* of the map; -1 unknown */
  double image_h, image_w, step_h, step_w, offset;
  int n;      /* boxes at each point */
  double *at; /* h*w*n*4 */
  int n_var;
  const double *var; /* 4 */
} Anchors;

static bool map_size(Expand *x, Anchors *a) {
  Node *in = x_in(x, "Input");
  if (!ops_rank(in, "Input", 4, 4)) return false;
  a->h = in->dims[2], a->w = in->dims[3];
  a->offset = op_float(x->op, "offset");
  a->var = floats_of(x, "variances", &a->n_var);
  return a->n_var == 4 || err_set(E_OPR_003, "variances has %d values, 4 needed", a->n_var);
}

static bool image_size(Expand *x, Anchors *a) {
  Node *image = x_in(x, "Image");
  if (!ops_rank(image, "Image", 4, 4) || !map_size(x, a)) return false;
  if (image->dims[2] < 0 || image->dims[3] < 0) a->h = a->w = -1;
  a->image_h = (double)image->dims[2], a->image_w = (double)image->dims[3];
  a->step_w = op_float(x->op, "step_w"), a->step_h = op_float(x->op, "step_h");
  if (a->step_w == 0 || a->step_h == 0)
    a->step_w = a->image_w / (double)a->w, a->step_h = a->image_h / (double)a->h;
  return true;
}

static bool anchors_alloc(Expand *x, Anchors *a) {
  int64_t all = -1;
  if (a->n < 1 || a->n > MAX_PRIORS) return err_set(E_OPR_003, "%d boxes at each point", a->n);
  if (a->h < 0 || a->w < 0) return true;
  if (!mul_ok(a->h, a->w, &all) || !mul_ok(all, a->n, &all) || all > MAX_BOXES)
    return err_set(E_MEM_002, "too many boxes");
  a->at = arena_array(x->g->arena, double, 4 * all + 1);
  return true;
}

static bool put_anchors(Expand *x, const char *slot, const Anchors *a, bool flat) {
  Graph *g = x->g;
  DType t = x_in(x, "Input")->dtype;
  int64_t dims[] = {a->h, a->w, a->n, 4}, two[] = {ops_prod(dims, 0, 3), 4};
  if (!a->at) {
    Node *blank = flat ? ops_blank(g, t, 2, two) : ops_blank(g, t, 4, dims);
    return x_out(x, slot, blank) && x_out(x, "Variances", blank);
  }
  Node *v = g_cast(g, g_data(g, DT_FLOAT64, 4, dims, a->at, "boxes"), t);
  Node *var = g_cast(g, g_data(g, DT_FLOAT64, 1, (int64_t[]){4}, a->var, "variances"), t);
  var = g_expand(g, var, 4, dims);
  if (flat) v = g_reshape(g, v, 2, two), var = g_reshape(g, var, 2, two);
  return x_out(x, slot, v) && x_out(x, "Variances", var);
}

static double unit(double v) { return v < 0 ? 0 : v > 1 ? 1 : v; }

/* A box of that size around (cx, cy), in units of the image. */
static void centred(const Anchors *a, double *to, double cx, double cy, double w, double h,
                    bool clip) {
  double v[] = {(cx - w / 2) / a->image_w, (cy - h / 2) / a->image_h, (cx + w / 2) / a->image_w,
                (cy + h / 2) / a->image_h};
  for (int i = 0; i < 4; i++) to[i] = clip ? unit(v[i]) : v[i];
}

/* ---- prior_box ---- */

typedef struct Ratios {
  int n;
  double v[2 * KL_LOOPS];
} Ratios;

/* 1, then each other one, perhaps with its inverse. */
static bool ratios_of(Expand *x, Ratios *r) {
  int n;
  const double *given = floats_of(x, "aspect_ratios", &n);
  *r = (Ratios){1, {1}};
  for (int i = 0; i < n; i++) {
    bool known = false;
    if (!(given[i] > 0) || r->n + 2 > 2 * KL_LOOPS)
      return err_set(E_OPR_003, "aspect_ratios holds %g, or too many", given[i]);
    for (int k = 0; k < r->n; k++) known |= fabs(given[i] - r->v[k]) < 1e-6;
    if (known) continue;
    r->v[r->n++] = given[i];
    if (op_bool(x->op, "flip")) r->v[r->n++] = 1 / given[i];
  }
  return true;
}

bool x_prior_box(Expand *x) {
  Anchors a = {0};
  Ratios r;
  int n_min, n_max;
  const double *min = floats_of(x, "min_sizes", &n_min), *max = floats_of(x, "max_sizes", &n_max);
  bool clip = op_bool(x->op, "clip"), max_first = op_bool(x->op, "min_max_aspect_ratios_order");
  if (!image_size(x, &a) || !ratios_of(x, &r)) return false;
  if (n_max != 0 && n_max != n_min)
    return err_set(E_OPR_003, "%d min_sizes, %d max_sizes", n_min, n_max);
  if (n_min > MAX_PRIORS / (2 * KL_LOOPS)) return err_set(E_OPR_003, "%d min_sizes", n_min);
  a.n = n_min * r.n + n_max;
  if (!anchors_alloc(x, &a)) return false;
  double *to = a.at;
  for (int64_t i = 0; a.at && i < a.h * a.w; i++) {
    double cx = ((double)(i % a.w) + a.offset) * a.step_w,
           cy = ((double)(i / a.w) + a.offset) * a.step_h;
    for (int s = 0; s < n_min; s++) {
      double big = n_max ? sqrt(min[s] * max[s]) : 0;
      for (int k = 0; k < r.n; k++, to += 4) {
        double q = sqrt(r.v[k]);
        centred(&a, to, cx, cy, min[s] * q, min[s] / q, clip);
        if (k == 0 && n_max && max_first) centred(&a, to += 4, cx, cy, big, big, clip);
      }
      if (n_max && !max_first) centred(&a, to, cx, cy, big, big, clip), to += 4;
    }
  }
  return put_anchors(x, "Boxes", &a, false);
}

bool x_density_prior_box(Expand *x) {
  Anchors a = {0};
  int n_size, n_ratio, n_density;
  const double *size = floats_of(x, "fixed_sizes", &n_size),
               *ratio = floats_of(x, "fixed_ratios", &n_ratio);
  const int64_t *density = op_intlist(x->op, "densities", x->g->arena, &n_density);
  if (!image_size(x, &a)) return false;
  if (n_size != n_density)
    return err_set(E_OPR_003, "%d fixed_sizes, %d densities", n_size, n_density);
  for (int s = 0; s < n_size; s++) {
    if (density[s] < 1 || density[s] > 64)
      return err_set(E_OPR_003, "densities holds %lld", (long long)density[s]);
    a.n += n_ratio * (int)(density[s] * density[s]);
    if (a.n > MAX_PRIORS) return err_set(E_OPR_003, "more than %d boxes at each point", MAX_PRIORS);
  }
  if (!anchors_alloc(x, &a)) return false;
  double *to = a.at;
  double step = trunc((a.step_w + a.step_h) * 0.5);
  for (int64_t i = 0; a.at && i < a.h * a.w; i++) {
    double cx = ((double)(i % a.w) + a.offset) * a.step_w,
           cy = ((double)(i / a.w) + a.offset) * a.step_h;
    for (int s = 0; s < n_size; s++)
      for (int k = 0; k < n_ratio; k++)
        for (int64_t d = 0; d < density[s] * density[s]; d++, to += 4) {
          double shift = trunc(step / (double)density[s]), first = -step / 2 + shift / 2,
                 q = sqrt(ratio[k]);
          centred(&a, to, cx + first + (double)(d % density[s]) * shift,
                  cy + first + (double)(d / density[s]) * shift, size[s] * q, size[s] / q, true);
        }
  }
  return put_anchors(x, "Boxes", &a, op_bool(x->op, "flatten_to_2d"));
}

bool x_anchor_generator(Expand *x) {
  Anchors a = {0};
  int n_size, n_ratio, n_stride;
  const double *size = floats_of(x, "anchor_sizes", &n_size),
               *ratio = floats_of(x, "aspect_ratios", &n_ratio);
  const double *stride = floats_of(x, "stride", &n_stride);
  if (!map_size(x, &a)) return false;
  if (n_stride != 2) return err_set(E_OPR_003, "stride has %d values, 2 needed", n_stride);
  if (n_size > 64 || n_ratio > 64) return err_set(E_OPR_003, "more than 64 sizes or ratios");
  a.n = n_size * n_ratio;
  if (!anchors_alloc(x, &a)) return false;
  double *to = a.at;
  for (int64_t i = 0; a.at && i < a.h * a.w; i++) {
    double cx = (double)(i % a.w) * stride[0] + a.offset * (stride[0] - 1);
    double cy = (double)(i / a.w) * stride[1] + a.offset * (stride[1] - 1);
    for (int r = 0; r < n_ratio; r++)
      for (int s = 0; s < n_size; s++, to += 4) {
        double w = round(sqrt(stride[0] * stride[1] / ratio[r])), h = round(w * ratio[r]);
        w = (w * size[s] / stride[0] - 1) / 2, h = (h * size[s] / stride[1] - 1) / 2;
        to[0] = cx - w, to[1] = cy - h, to[2] = cx + w, to[3] = cy + h;
      }
  }
  return put_anchors(x, "Anchors", &a, false);
}

/* ---- boxes relative to others ---- */

/* Number i of the last dimension. */
static Node *part(Graph *g, Node *v, int i) {
  return v ? ops_cut(g, v, v->rank - 1, i, 1, 1) : NULL;
}

/* Width, height and centre of boxes; more: 1 unless coordinates are fractions of the image. */
static void box_shape(Graph *g, Node *v, double more, Node **size, Node **mid) {
  for (int k = 0; k < 2; k++) {
    size[k] = ops_plus(g, ops_sub(g, part(g, v, 2 + k), part(g, v, k)), more);
    mid[k] = ops_add(g, part(g, v, k), ops_times(g, size[k], 0.5));
  }
}

/* The four numbers as the last dimension. */
static Node *joined(Graph *g, Node **v) {
  for (int i = 0; i < 4; i++)
    if (!v[i]) return NULL;
  return g_concat(g, 4, v, v[0]->rank - 1);
}

static Node *box_encoded(Graph *g, Node *prior, Node *target, double more) {
  Node *ps[2], *pm[2], *ts[2], *tm[2], *out[4];
  box_shape(g, prior, more, ps, pm);
  box_shape(g, target, more, ts, tm);
  for (int k = 0; k < 2; k++) { /* the middle of the target without `more` */
    tm[k] = ops_times(g, ops_add(g, part(g, target, k), part(g, target, 2 + k)), 0.5);
    out[k] = ops_div(g, ops_sub(g, tm[k], pm[k]), ps[k]);
    Node *r = ops_div(g, ts[k], ps[k]);
    out[2 + k] = r ? g_map1(g, P_LOG, g_map2(g, P_MAX, r, ops_times(g, r, -1))) : NULL;
  }
  return joined(g, out);
}

static Node *box_decoded(Graph *g, Node *prior, Node *t, double more) {
  Node *ps[2], *pm[2], *out[4];
  box_shape(g, prior, more, ps, pm);
  for (int k = 0; k < 2; k++) {
    Node *mid = ops_add(g, ops_mul(g, part(g, t, k), ps[k]), pm[k]);
    Node *size = ops_mul(g, t ? g_map1(g, P_EXP, part(g, t, 2 + k)) : NULL, ps[k]);
    out[k] = ops_sub(g, mid, ops_times(g, size, 0.5));
    out[2 + k] = ops_plus(g, ops_add(g, mid, ops_times(g, size, 0.5)), -more);
  }
  return joined(g, out);
}

/* Four variances for each prior, or for all, or none. */
static bool box_variances(Expand *x, Node *prior, int axis, Node **out) {
  int n;
  const double *v = floats_of(x, "variance", &n);
  *out = NULL;
  if (x_n_in(x, "PriorBoxVar") > 0) {
    Node *t = x_in(x, "PriorBoxVar");
    if (!ops_rank(t, "PriorBoxVar", 2, 2)) return false;
    int64_t dims[] = {axis ? t->dims[0] : 1, axis ? 1 : t->dims[0], 4};
    *out = ops_reshape(x->g, t, 3, dims);
    return *out != NULL;
  }
  if (n == 0) return true;
  if (n != 4) return err_set(E_OPR_003, "variance has %d values, 4 needed", n);
  *out = g_cast(x->g, g_data(x->g, DT_FLOAT64, 1, (int64_t[]){4}, v, "variance"), prior->dtype);
  return true;
}

bool x_box_coder(Expand *x) {
  static const char *const words[] = {"encode_center_size", "decode_center_size"};
  Graph *g = x->g;
  Node *prior = x_in(x, "PriorBox"), *target = x_in(x, "TargetBox"), *var;
  int code = op_word(x->op, "code_type", 2, words);
  int64_t axis = op_int(x->op, "axis");
  double more = op_bool(x->op, "box_normalized") ? 0 : 1;
  if (code < 0 || !ops_rank(prior, "PriorBox", 2, 2) ||
      !ops_rank(target, "TargetBox", 2 + code, 2 + code) ||
      !ops_same("4 and the columns of PriorBox", 4, prior->dims[1]) ||
      !ops_same("4 and the columns of TargetBox", 4, target->dims[1 + code]))
    return false;
  if (axis != 0 && axis != 1) return err_set(E_OPR_003, "axis is %lld", (long long)axis);
  if (code == 0) axis = 0;
  int64_t n = prior->dims[0], dims[] = {target->dims[0], code ? target->dims[1] : n, 4};
  if (code && !ops_same("boxes of PriorBox and TargetBox", n, target->dims[axis ? 0 : 1]))
    return false;
  if (!ops_known(prior) || !ops_known(target))
    return x_out(x, "OutputBox", ops_blank(g, target->dtype, 3, dims));
  if (!box_variances(x, prior, (int)axis, &var)) return false;
  prior = g_reshape(g, prior, 3, (int64_t[]){axis ? n : 1, axis ? 1 : n, 4});
  if (code)
    return x_out(x, "OutputBox",
                 box_decoded(g, prior, var ? ops_mul(g, target, var) : target, more));
  Node *out =
      box_encoded(g, prior, g_reshape(g, target, 3, (int64_t[]){target->dims[0], 1, 4}), more);
  return x_out(x, "OutputBox", var ? ops_div(g, out, var) : out);
}

bool x_iou_similarity(Expand *x) {
  Graph *g = x->g;
  Node *a = x_in(x, "X"), *b = x_in(x, "Y"), *size[2], *mid[2], *area[2], *in[2];
  double more = op_bool(x->op, "box_normalized") ? 0 : 1;
  if (!ops_rank(a, "X", 2, 2) || !ops_rank(b, "Y", 2, 2) ||
      !ops_same("4 and the columns of X", 4, a->dims[1]) ||
      !ops_same("4 and the columns of Y", 4, b->dims[1]))
    return false;
  int64_t n = a->dims[0], m = b->dims[0];
  if (n < 0 || m < 0) return x_out(x, "Out", ops_blank(g, a->dtype, 2, (int64_t[]){n, m}));
  a = g_reshape(g, a, 3, (int64_t[]){n, 1, 4});
  b = g_reshape(g, b, 3, (int64_t[]){1, m, 4});
  for (int k = 0; k < 2; k++) {
    box_shape(g, k ? b : a, more, size, mid);
    area[k] = ops_mul(g, size[0], size[1]);
    Node *lo = g_map2(g, P_MAX, part(g, a, k), part(g, b, k));
    Node *hi = g_map2(g, P_MIN, part(g, a, 2 + k), part(g, b, 2 + k));
    in[k] = g_map2c(g, P_MAX, ops_plus(g, ops_sub(g, hi, lo), more), 0);
  }
  Node *inter = ops_mul(g, in[0], in[1]);
  Node *all = ops_sub(g, ops_add(g, area[0], area[1]), inter);
  Node *none = all ? g_map2(g, P_LE, all, g_const(g, all->dtype, 0)) : NULL;
  Node *r = g_select(g, none, ops_times(g, inter, 0), ops_div(g, inter, all));
  return r && x_out(x, "Out", g_reshape(g, r, 2, (int64_t[]){n, m}));
}

/* A sequence of boxes [T, 4 K] for each image; ImInfo [N, 3]: its height, width, and how much larger the network sees it. */
bool x_box_clip(Expand *x) {
  Graph *g = x->g;
  Node *v = x_in(x, "Input"), *info = x_in(x, "ImInfo"), *most[2];
  const Lod *l = x_lod(x, "Input", 0);
  if ((!l && !g->shapes_only) || !ops_rank(v, "Input", 2, KL_RANK) ||
      !ops_rank(info, "ImInfo", 2, 2) || !ops_same("3 and columns of ImInfo", 3, info->dims[1]))
    return false;
  int64_t last = v->dims[v->rank - 1];
  if (last >= 0 && last % 4)
    return err_set(E_SHP_006, "Input has rows of %lld numbers, boxes have 4", (long long)last);
  if (!l || !ops_known(v) || !ops_known(info)) return x_out(x, "Output", ops_blank_like(g, v));
  if (!ops_same("sequences of Input and rows of ImInfo", l->n, info->dims[0])) return false;
  int64_t n = v->dims[0], dims[] = {n, node_numel(v) / (n ? n : 1) / 2, 2};
  if (n == 0) return x_out(x, "Output", v);
  info = seq_spread(g, info, l);
  for (int k = 0; k < 2; k++) {
    Node *side = ops_div(g, ops_cut(g, info, 1, 1 - k, 1, 1), ops_cut(g, info, 1, 2, 1, 1));
    most[k] = ops_plus(g, g_map1(g, P_FLOOR, ops_plus(g, side, 0.5)), -1);
  }
  Node *limit =
      most[0] && most[1] ? g_reshape(g, g_concat(g, 2, most, 1), 3, (int64_t[]){n, 1, 2}) : NULL;
  Node *y = g_map2c(g, P_MAX, g_map2(g, P_MIN, g_reshape(g, v, 3, dims), limit), 0);
  return x_out_lod(x, "Output", g_reshape(g, y, v->rank, v->dims), l);
}

/* PriorBox [N, 4] moved by TargetBox [N, C, 4]: the ends along direction k, [N, C]. */
static void moved_box(Graph *g, Node *prior, Node *var, Node *move, int k, double most, Node **lo,
                      Node **hi) {
  Node *from = ops_cut(g, prior, 1, k, 1, 1), *to = ops_cut(g, prior, 1, 2 + k, 1, 1);
  Node *side = ops_plus(g, ops_sub(g, to, from), 1);
  Node *mid = ops_add(g, from, ops_times(g, side, 0.5)), *by[2];
  for (int i = 0; i < 2; i++) {
    Node *v = ops_cut(g, move, 2, k + 2 * i, 1, 1);
    v = v ? g_reshape(g, v, 2, v->dims) : NULL;
    by[i] = var ? ops_mul(g, v, ops_cut(g, var, 0, k + 2 * i, 1, 1)) : v;
  }
  mid = ops_add(g, ops_mul(g, by[0], side), mid);
  side = ops_times(g, ops_mul(g, g_map1(g, P_EXP, g_map2c(g, P_MIN, by[1], most)), side), 0.5);
  *lo = ops_sub(g, mid, side);
  *hi = ops_plus(g, ops_add(g, mid, side), -1);
}

bool x_box_decoder_and_assign(Expand *x) {
  Graph *g = x->g;
  Node *prior = x_in(x, "PriorBox"), *move = x_in(x, "TargetBox"), *score = x_in(x, "BoxScore"),
       *var = x_in(x, "PriorBoxVar"), *end[4];
  if (!ops_rank(prior, "PriorBox", 2, 2) || !ops_rank(move, "TargetBox", 2, 2) ||
      !ops_rank(score, "BoxScore", 2, 2) || (var && !ops_rank(var, "PriorBoxVar", 1, 1)))
    return false;
  int64_t n = prior->dims[0], c = score->dims[1], dims[] = {n, c, 4};
  if (!ops_same("4 and columns of PriorBox", 4, prior->dims[1]) ||
      !ops_same("rows of PriorBox and TargetBox", n, move->dims[0]) ||
      !ops_same("rows of PriorBox and BoxScore", n, score->dims[0]) ||
      !ops_same("columns of TargetBox and 4 times those of BoxScore", move->dims[1],
                c < 0 ? -1 : 4 * c) ||
      (var && !ops_same("4 and elements of PriorBoxVar", 4, var->dims[0])))
    return false;
  if (!ops_known(prior) || !ops_known(move) || !ops_known(score) || n == 0)
    return x_out(x, "DecodeBox", ops_blank_like(g, move)) &&
           x_out(x, "OutputAssignBox", ops_blank_like(g, prior));
  move = g_reshape(g, move, 3, dims);
  for (int k = 0; k < 2; k++)
    moved_box(g, prior, var, move, k, op_float(x->op, "box_clip"), &end[k], &end[2 + k]);
  for (int k = 0; k < 4; k++) end[k] = g_reshape(g, end[k], 3, (int64_t[]){n, c, 1});
  Node *boxes = g_concat(g, 4, end, 2);
  if (!x_out(x, "DecodeBox", g_reshape(g, boxes, 2, (int64_t[]){n, 4 * c}))) return false;
  if (c < 2) return x_out(x, "OutputAssignBox", prior);
  /* scores of at most -1 are nobody's */
  score = ops_cut(g, score, 1, 1, 1, c - 1);
  Node *best = ops_plus(g, g_argmax(g, score, 2, true, DT_INT64), 1);
  Node *some = g_map2(g, P_LT, g_const(g, score->dtype, -1), g_reduce(g, P_RMAX, score, 2, true));
  best = g_expand(g, g_reshape(g, best, 3, (int64_t[]){n, 1, 1}), 3, (int64_t[]){n, 1, 4});
  Node *box = g_reshape(g, g_gather(g, boxes, best, 1), 2, prior->dims);
  return x_out(x, "OutputAssignBox", g_select(g, some, box, prior));
}

/* Shapes only: the executor does it (executor/control_boxes.c). */
bool x_nms(Expand *x) {
  Graph *g = x->g;
  Node *boxes = x_in(x, "BBoxes");
  if (!ops_rank(boxes, "BBoxes", 3, 3)) return false;
  Node *index = ops_blank(g, DT_INT32, 2, (int64_t[]){-1, 1}),
       *count = ops_blank(g, DT_INT32, 1, boxes->dims);
  return x_out(x, "Out", ops_blank(g, boxes->dtype, 2, (int64_t[]){-1, 6})) &&
         x_out(x, "Index", index) && x_out(x, "NmsRoisNum", count) && x_out(x, "RoisNum", count);
}

bool x_bipartite_match(Expand *x) {
  Node *v = x_in(x, "DistMat");
  if (!ops_rank(v, "DistMat", 2, 2) || !ops_float(v, "DistMat")) return false;
  int64_t dims[] = {-1, v->dims[1]};
  return x_out(x, "ColToRowMatchIndices", ops_blank(x->g, DT_INT32, 2, dims)) &&
         x_out(x, "ColToRowMatchDist", ops_blank(x->g, v->dtype, 2, dims));
}

bool x_kept_boxes(Expand *x) {
  int64_t unknown = -1;
  return ops_rank(x_in(x, "Boxes"), "Boxes", 2, 2) &&
         x_out(x, "KeepBoxesIdxs", ops_blank(x->g, DT_INT64, 1, &unknown));
}

/* Shapes only, as above (executor/control_fpn.c). */
bool x_collect_fpn_proposals(Expand *x) {
  Node *boxes = x_in_at(x, "MultiLevelRois", 0), *number = NULL;
  int64_t images = 1;
  if (x_n_in(x, "MultiLevelScores") != x_n_in(x, "MultiLevelRois"))
    return err_set(E_OPR_003, "%d MultiLevelRois, %d MultiLevelScores", x_n_in(x, "MultiLevelRois"),
                   x_n_in(x, "MultiLevelScores"));
  if (!ops_rank(boxes, "MultiLevelRois", 2, 2)) return false;
  if (x_n_in(x, "MultiLevelRoIsNum") > 0) number = x_in_at(x, "MultiLevelRoIsNum", 0);
  if (number && !ops_rank(number, "MultiLevelRoIsNum", 1, 1)) return false;
  if (number) images = number->dims[0];
  return x_out(x, "FpnRois", ops_blank(x->g, boxes->dtype, 2, (int64_t[]){-1, 4})) &&
         x_out(x, "RoisNum", ops_blank(x->g, DT_INT32, 1, &images));
}

bool x_distribute_fpn_proposals(Expand *x) {
  Node *boxes = x_in(x, "FpnRois"), *number = x_in(x, "RoisNum");
  int64_t lo = op_int(x->op, "min_level"), hi = op_int(x->op, "max_level"), images = 1;
  int n = x_n_out(x, "MultiFpnRois"), counts = x_n_out(x, "MultiLevelRoIsNum");
  if (!ops_rank(boxes, "FpnRois", 2, 2) || (number && !ops_rank(number, "RoisNum", 1, 1)))
    return false;
  if (n != hi - lo + 1 || (counts != 0 && counts != n) || op_int(x->op, "refer_scale") < 1)
    return err_set(E_OPR_003, "levels %lld to %lld, %d outputs, refer_scale %lld", (long long)lo,
                   (long long)hi, n, (long long)op_int(x->op, "refer_scale"));
  if (number) images = number->dims[0];
  for (int i = 0; i < n; i++)
    if (!x_out_at(x, "MultiFpnRois", i, ops_blank(x->g, boxes->dtype, 2, (int64_t[]){-1, 4})) ||
        (counts && !x_out_at(x, "MultiLevelRoIsNum", i, ops_blank(x->g, DT_INT32, 1, &images))))
      return false;
  return x_out(x, "RestoreIndex", ops_blank(x->g, DT_INT32, 2, (int64_t[]){boxes->dims[0], 1}));
}

/* Shapes only, as above (executor/control_rpn.c). */
bool x_generate_proposals(Expand *x) {
  Node *scores = x_in(x, "Scores");
  if (!ops_rank(scores, "Scores", 4, 4)) return false;
  return x_out(x, "RpnRois", ops_blank(x->g, scores->dtype, 2, (int64_t[]){-1, 4})) &&
         x_out(x, "RpnRoiProbs", ops_blank(x->g, scores->dtype, 2, (int64_t[]){-1, 1})) &&
         x_out(x, "RpnRoisNum", ops_blank(x->g, DT_INT32, 1, scores->dims));
}
