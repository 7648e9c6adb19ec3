/* Regions proposed by a network (S. Ren et al., "Faster R-CNN", 2015). In: scores [N, A, H, W] and moves [N, 4A, H, W] of A anchors
 * at each place of a map, anchors and variances [H, W, A, 4], sizes of the images. Out: for each image the best boxes, clipped,
 * not too small and not overlapping, how many they are being known only now. */
#include "control.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct Proposal {
  int64_t at; /* (y * W + x) * A + anchor */
  double score, box[4];
} Proposal;

typedef VEC(Proposal) ProposalVec;

enum { SCORES, DELTAS, SIZES, ANCHORS, VARIANCES, N_INPUTS };

typedef struct Propose {
  Control *c;
  const Op *op;
  Value *in[N_INPUTS];
  int64_t n, a, h, w, top, keep;
  double more, least, limit, eta; /* more: 1 where boxes hold their last point */
  bool scaled;                    /* sizes hold height, width, scale; else height, width */
  ProposalVec found, kept;
} Propose;

static int by_score(const void *a, const void *b) {
  const Proposal *x = a, *y = b;
  if (x->score != y->score) return x->score > y->score ? -1 : 1;
  return (x->at > y->at) - (x->at < y->at);
}

static bool propose_read(Propose *p, Frame *f, Step *s, bool scaled) {
  const char *slots[] = {"Scores", "BboxDeltas", scaled ? "ImInfo" : "ImShape", "Anchors",
                         "Variances"};
  for (int i = 0; i < N_INPUTS; i++) {
    if (!(p->in[i] = op_value(p->c, f, s, slots[i], 0))) return false;
    if (p->in[i]->kind != V_TENSOR) return op_refuses(s, slots[i], "must be a tensor");
  }
  const Tensor *t = &p->in[SCORES]->t, *d = &p->in[DELTAS]->t;
  if (t->rank != 4 || d->rank != 4) return op_refuses(s, "Scores", "must be [N, A, H, W]");
  p->n = t->dims[0], p->a = t->dims[1], p->h = t->dims[2], p->w = t->dims[3];
  if (d->dims[0] != p->n || d->dims[1] != 4 * p->a || d->dims[2] != p->h || d->dims[3] != p->w)
    return op_refuses(s, "BboxDeltas", "must be [N, 4A, H, W] for Scores [N, A, H, W]");
  int64_t each = p->a * p->h * p->w * 4;
  for (int i = ANCHORS; i <= VARIANCES; i++)
    if (tensor_numel(&p->in[i]->t) != each)
      return op_refuses(s, slots[i], "must be [H, W, A, 4] for Scores [N, A, H, W]");
  if (tensor_numel(&p->in[SIZES]->t) != p->n * (scaled ? 3 : 2))
    return op_refuses(s, slots[SIZES], "must have a row for each image");
  p->op = s->op, p->scaled = scaled;
  p->top = op_int(s->op, "pre_nms_topN"), p->keep = op_int(s->op, "post_nms_topN");
  p->limit = op_float(s->op, "nms_thresh"), p->eta = op_float(s->op, "eta");
  p->least = fmax(op_float(s->op, "min_size"), 1);
  p->more = scaled || op_bool(s->op, "pixel_offset") ? 1 : 0;
  return true;
}

/* The anchor, moved and resized as the network says, within the image. */
static void decode(const Propose *p, int64_t image, const double *size, Proposal *r) {
  const Tensor *d = &p->in[DELTAS]->t;
  int64_t plane = p->h * p->w, k = r->at % p->a, place = r->at / p->a;
  double v[4], b[4], move[4];
  for (int j = 0; j < 4; j++) {
    b[j] = tensor_get(&p->in[ANCHORS]->t, 4 * r->at + j);
    v[j] = tensor_get(&p->in[VARIANCES]->t, 4 * r->at + j);
    move[j] = v[j] * tensor_get(d, ((image * p->a + k) * 4 + j) * plane + place);
  }
  for (int j = 0; j < 2; j++) {
    double side = b[2 + j] - b[j] + p->more, mid = b[j] + side / 2 + move[j] * side;
    double half = exp(fmin(move[2 + j], log(1000.0 / 16))) * side / 2, most = size[1 - j] - p->more;
    r->box[j] = fmin(fmax(mid - half, 0), most);
    r->box[2 + j] = fmin(fmax(mid + half - p->more, 0), most);
  }
}

static bool large_enough(const Propose *p, const double *size, const double *b) {
  for (int j = 0; j < 2; j++) {
    double side = b[2 + j] - b[j] + p->more, mid = b[j] + side / 2;
    double seen = p->scaled ? (b[2 + j] - b[j]) / size[2] + 1 : side;
    if (seen < p->least || (p->more > 0 && mid > size[1 - j])) return false;
  }
  return true;
}

static double overlap(const Propose *p, const double *a, const double *b) {
  double w = fmin(a[2], b[2]) - fmax(a[0], b[0]) + p->more,
         h = fmin(a[3], b[3]) - fmax(a[1], b[1]) + p->more;
  double both = fmax(w, 0) * fmax(h, 0);
  double all = (a[2] - a[0] + p->more) * (a[3] - a[1] + p->more) +
               (b[2] - b[0] + p->more) * (b[3] - b[1] + p->more) - both;
  return all > 0 ? both / all : 0;
}

/* Appends the proposals of an image to `kept`; returns how many. */
static int64_t propose(Propose *p, int64_t image) {
  const Tensor *scores = &p->in[SCORES]->t;
  int64_t plane = p->h * p->w, all = plane * p->a;
  int first = p->kept.n, width = p->scaled ? 3 : 2;
  double size[3], limit = p->limit;
  for (int j = 0; j < width; j++) size[j] = tensor_get(&p->in[SIZES]->t, image * width + j);
  p->found.n = 0;
  for (int64_t i = 0; i < all; i++) {
    Proposal r = {.at = i,
                  .score = tensor_get(scores, (image * p->a + i % p->a) * plane + i / p->a)};
    vec_add(p->c->arena, &p->found, r);
  }
  if (all) qsort(p->found.v, (size_t)all, sizeof *p->found.v, by_score);
  if (p->top > 0 && p->found.n > p->top) p->found.n = (int)p->top;
  for (int i = 0; i < p->found.n && (p->keep <= 0 || p->kept.n - first < p->keep); i++) {
    Proposal *r = &p->found.v[i];
    decode(p, image, size, r);
    bool stays = large_enough(p, size, r->box);
    for (int k = first; stays && k < p->kept.n; k++)
      stays = overlap(p, r->box, p->kept.v[k].box) <= limit;
    if (!stays) continue;
    vec_add(p->c->arena, &p->kept, *r);
    if (p->eta < 1 && limit > 0.5) limit *= p->eta;
  }
  if (p->kept.n == first)
    vec_add(p->c->arena, &p->kept, ((Proposal){0})); /* PaddlePaddle's way to say none */
  return p->kept.n - first;
}

static bool put_proposals(Propose *p, Frame *f, Step *s, const int32_t *count) {
  DType t = p->in[SCORES]->t.dtype;
  int64_t n = p->kept.n;
  Value *box = value_tensor(p->c, t, 2, (int64_t[]){n, 4}),
        *score = value_tensor(p->c, t, 2, (int64_t[]){n, 1});
  if (!box || !score) return false;
  for (int64_t i = 0; i < n; i++) {
    for (int j = 0; j < 4; j++) tensor_set(&box->t, 4 * i + j, p->kept.v[i].box[j]);
    tensor_set(&score->t, i, p->kept.v[i].score);
  }
  if (!op_result(p->c, f, s, "RpnRois", 0, box) || !op_result(p->c, f, s, "RpnRoiProbs", 0, score))
    return false;
  if (!step_out(s, "RpnRoisNum", 0)) return true;
  Value *v = value_tensor(p->c, DT_INT32, 1, &p->n);
  if (v && p->n) memcpy(v->t.data, count, sizeof *count * (size_t)p->n);
  return v && op_result(p->c, f, s, "RpnRoisNum", 0, v);
}

static HostResult run_proposals(Control *c, Frame *f, Step *s, bool scaled) {
  Propose p = {.c = c};
  bool ok = propose_read(&p, f, s, scaled);
  int32_t *count = ok ? arena_array(c->arena, int32_t, p.n + 1) : NULL;
  for (int64_t i = 0; ok && i < p.n; i++) count[i] = (int32_t)propose(&p, i);
  ok = ok && put_proposals(&p, f, s, count);
  for (int i = 0; i < N_INPUTS; i++)
    if (p.in[i]) value_drop(c, p.in[i]);
  return ok ? HOST_NEXT : HOST_FAIL;
}

HostResult run_generate_proposals(Control *c, Frame *f, Step *s) {
  return run_proposals(c, f, s, true);
}
HostResult run_generate_proposals_v2(Control *c, Frame *f, Step *s) {
  return run_proposals(c, f, s, false);
}
