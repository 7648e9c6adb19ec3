/* Contractions: which algorithm serves one.
 *
 * In: the kernel's CONTRACT, a sum of products over loops whose operands are addressed by AffDims. Out: a Plan.
 * The loops of extent 1 are dropped, and each other loop is classed by the tensors it moves through. Then
 *   windows, and neighbouring images in operand and result                  images.c      direct convolution
 *   windows of 5 x 5 of a few planes, if an error is allowed                planes_winograd.c
 *   the same summed over images and positions                               images_grad.c gradients of filters
 *   neighbouring channels in one operand and columns in the result          conv.c     direct convolution, products,
 *                                                                           winograd.c and 3x3 if an error is allowed
 *   the same summed over positions                                          filter.c   gradients of filters,
 *                                                                           winograd_filter.c those of 3x3 likewise
 *   both operands plain (in bounds, no division), strides that BLAS takes   gemm.c     matrix products
 *   one operand a window of its tensor                                      im2col.c   convolution, gradient of the filter
 *   one operand addressed by position = (result - tap) / stride             col2im.c   gradient of the input
 *   depthwise, channels last                                                llvm/stencil.c
 *   anything else, and types other than float32 and float64                 generated loops
 * im2col and col2im both serve windows without division: the one with less arithmetic is taken. */
#include "conv.h"
#include "filter.h"
#include "images.h"
#include "../../ir/blas.h"
#include "../llvm/llvm.h"
#include <limits.h>

int64_t tasks_for(int64_t flops) {
  /* small work is divided finely, for two cores; large work so that each task runs at full speed */
  static const struct {
    int64_t flops, most;
  } steps[] = {{1000000, 2}, {2000000, 4}, {6000000, 8}, {16000000, 16}, {64000000, 64}};
  int64_t n = 1;
  for (int i = 0; i < 5; i++) {
    int64_t fit = flops / steps[i].flops;
    if (fit > steps[i].most) fit = steps[i].most;
    if (fit > n) n = fit;
  }
  return n;
}

/* ---- lists of loops ---- */

LoopList loops_of(const Facts *f, unsigned classes) {
  LoopList l = {.total = 1};
  for (int i = 0; i < f->n; i++)
    if (classes >> f->loop[i].class & 1) list_add(f, &l, i);
  return l;
}

void list_add(const Facts *f, LoopList *l, int id) {
  if (!l->n) l->total = 1;
  l->id[l->n++] = id;
  l->total *= f->loop[id].ext;
}

void list_sort(const Facts *f, LoopList *l, int t) {
  for (int i = 1; i < l->n; i++)
    for (int j = i; j > 0 && f->loop[l->id[j - 1]].s[t] < f->loop[l->id[j]].s[t]; j--) {
      int id = l->id[j];
      l->id[j] = l->id[j - 1];
      l->id[j - 1] = id;
    }
}

LoopList merge_tail(const Facts *f, LoopList all, int t, unsigned tensors, LoopList *rest) {
  list_sort(f, &all, t);
  int from = all.n - 1;
  for (bool joins = true; from > 0; from--) {
    const CLoop *out = &f->loop[all.id[from - 1]], *in = &f->loop[all.id[from]];
    for (int u = 0; u < 3; u++)
      if (tensors >> u & 1) joins &= out->s[u] == in->s[u] * in->ext;
    if (!joins) break;
  }
  LoopList tail = {.total = 1};
  for (int i = 0; i < all.n; i++) list_add(f, i < from ? rest : &tail, all.id[i]);
  return tail;
}

int64_t list_at(const Facts *f, const LoopList *l, int64_t i, int t) {
  int64_t at = 0;
  for (int j = l->n - 1; j >= 0; j--) {
    const CLoop *c = &f->loop[l->id[j]];
    at += i % c->ext * c->s[t];
    i /= c->ext;
  }
  return at;
}

int64_t list_step(const Facts *f, const LoopList *l, int t) {
  return l->n ? f->loop[l->id[l->n - 1]].s[t] : 0;
}

bool is_row_axis(const Facts *f, int id, int64_t rows) {
  const CLoop *c = &f->loop[id];
  return rows > 1 && c->class != LC_K && c->s[2] * c->ext == f->numel;
}

int64_t dim_factor(const CDim *c, int loop) {
  for (int i = 0; i < 2; i++)
    if (c->l[i] == loop && loop >= 0) return c->c[i];
  return 0;
}

bool loop_dim(const Facts *f, int x, int loop, int *dim, int *other) {
  int found = 0;
  for (int d = 0; d < f->n_dims[x]; d++)
    for (int i = 0; i < 2; i++)
      if (f->dim[x][d].l[i] == loop) {
        *dim = d;
        *other = f->dim[x][d].l[!i];
        found++;
      }
  return found == 1;
}

/* ---- BLAS ---- */

bool mat_of(int64_t rows, int64_t sr, int64_t cols, int64_t sc, Mat *m) {
  if (rows > INT_MAX || cols > INT_MAX || sr > INT_MAX || sc > INT_MAX) return false;
  if ((cols == 1 || sc == 1) && (rows == 1 || sr >= cols))
    *m = (Mat){false, rows == 1 ? cols : sr};
  else if ((rows == 1 || sr == 1) && (cols == 1 || sc >= rows))
    *m = (Mat){true, cols == 1 ? rows : sc};
  else
    return false;
  return true;
}

static void gemv(DType t, int64_t m, int64_t k, const void *a, Mat ma, const void *x, int64_t incx,
                 double beta, void *y, int64_t incy) {
  int rows = (int)(ma.trans ? k : m), cols = (int)(ma.trans ? m : k), lda = (int)ma.ld;
  CBLAS_TRANSPOSE ta = ma.trans ? CblasTrans : CblasNoTrans;
  if (t == DT_FLOAT32)
    blas.sgemv(CblasRowMajor, ta, rows, cols, 1, a, lda, x, (int)incx, (float)beta, y, (int)incy);
  else
    blas.dgemv(CblasRowMajor, ta, rows, cols, 1, a, lda, x, (int)incx, beta, y, (int)incy);
}

void gemm(DType t, int64_t m, int64_t n, int64_t k, const void *a, Mat ma, const void *b, Mat mb,
          double beta, void *c, Mat mc) {
  if (mc.trans) { /* the transposed product */
    Mat at = {!ma.trans, ma.ld}, bt = {!mb.trans, mb.ld};
    gemm(t, n, m, k, b, bt, a, at, beta, c, (Mat){false, mc.ld});
    return;
  }
  if (n == 1) {
    gemv(t, m, k, a, ma, b, mb.trans ? 1 : mb.ld, beta, c, mc.ld);
    return;
  }
  if (m == 1) {
    gemv(t, n, k, b, (Mat){!mb.trans, mb.ld}, a, ma.trans ? ma.ld : 1, beta, c, 1);
    return;
  }
  CBLAS_TRANSPOSE ta = ma.trans ? CblasTrans : CblasNoTrans,
                  tb = mb.trans ? CblasTrans : CblasNoTrans;
  int im = (int)m, in = (int)n, ik = (int)k, lda = (int)ma.ld, ldb = (int)mb.ld, ldc = (int)mc.ld;
  if (t == DT_FLOAT32)
    blas.sgemm(CblasRowMajor, ta, tb, im, in, ik, 1, a, lda, b, ldb, (float)beta, c, ldc);
  else
    blas.dgemm(CblasRowMajor, ta, tb, im, in, ik, 1, a, lda, b, ldb, beta, c, ldc);
}

/* ---- facts ---- */

static CDim dim_of(const AffDim *m, int64_t size, int64_t stride, const int *id,
                   const int64_t *ext) {
  CDim d = {.size = size, .stride = stride, .l = {-1, -1}, .off = m->off, .div = m->div};
  int l[2] = {m->l0, m->l1};
  int64_t c[2] = {m->c0, m->c1}, lo = m->off, hi = m->off;
  int n = 0;
  for (int i = 0; i < 2; i++) {
    if (l[i] < 0 || !c[i] || ext[l[i]] == 1) continue;
    if (n && d.l[0] == id[l[i]])
      d.c[0] += c[i];
    else {
      d.l[n] = id[l[i]];
      d.c[n++] = c[i];
    }
    *(c[i] < 0 ? &lo : &hi) += c[i] * (ext[l[i]] - 1);
  }
  if (!n && d.div > 1 && d.off % d.div == 0) {
    d.off = lo = hi = d.off / d.div;
    d.div = 1;
  }
  d.guard = d.div > 1 || lo < 0 || hi >= size;
  return d;
}

static bool moves(const Facts *f, int x, int id) {
  for (int d = 0; d < f->n_dims[x]; d++)
    if (f->dim[x][d].l[0] == id || f->dim[x][d].l[1] == id) return true;
  return false;
}

/* False for what only generated loops do. */
static bool facts_of(const Node *n, Facts *f) {
  int id[KL_LOOPS];
  if (n->dtype != DT_FLOAT32 && n->dtype != DT_FLOAT64) return false;
  *f = (Facts){.dtype = n->dtype, .size = dtype_info[n->dtype].size, .plain = {true, true}};
  f->numel = numel_of(n->rank, n->dims);
  f->flops = 2;
  int64_t stride = f->numel;
  int n_result = 0;
  for (int l = 0; l < n->n_loops; l++) {
    id[l] = -1;
    if (n->ext[l] == 0) return false;
    f->flops *= n->ext[l];
    if (l < n->rank) stride /= n->ext[l];
    if (n->ext[l] == 1) continue;
    id[l] = f->n;
    if (l < n->rank) n_result = f->n + 1;
    f->loop[f->n++] = (CLoop){.ext = n->ext[l], .s = {0, 0, l < n->rank ? stride : 0}};
  }
  for (int x = 0; x < 2; x++) {
    const Node *in = n->in[x];
    int64_t s = 1;
    f->n_dims[x] = in->rank;
    for (int d = in->rank - 1; d >= 0; s *= in->dims[d--]) {
      if (in->dims[d] == 0) return false;
      CDim *c = &f->dim[x][d];
      *c = dim_of(&n->map[x][d], in->dims[d], s, id, n->ext);
      f->plain[x] &= !c->guard;
      if (c->div > 1) continue;
      f->base[x] += c->off * s;
      for (int i = 0; i < 2; i++)
        if (c->l[i] >= 0) f->loop[c->l[i]].s[x] += c->c[i] * s;
    }
  }
  for (int l = 0; l < f->n; l++) {
    bool a = moves(f, 0, l), b = moves(f, 1, l), r = l < n_result;
    f->loop[l].class = !r ? a && b ? LC_K : LC_ODD : a == b ? LC_BATCH : a ? LC_M : LC_N;
    if (f->loop[l].class == LC_ODD) return false;
  }
  return true;
}

/* ---- choice ---- */

/* Positions that im2col computes at (result) over those that col2im does (operand), per window dimension. */
static bool prefer_col2im(const Facts *f, int x) {
  double gather = 1, divided = 1;
  unsigned mx = x ? LC_N : LC_M;
  for (int d = 0; d < f->n_dims[x]; d++) {
    const CDim *c = &f->dim[x][d];
    if (!c->guard && c->l[1] < 0) continue;
    divided *= (double)c->size;
    for (int i = 0; i < 2; i++)
      if (c->l[i] >= 0 && f->loop[c->l[i]].class == mx) gather *= (double)f->loop[c->l[i]].ext;
  }
  return divided < gather;
}

static bool window_plan(Arena *a, Plan *p, int x) {
  const Facts *f = &p->facts;
  if (!f->plain[!x]) return false;
  bool divided = false;
  for (int d = 0; d < f->n_dims[x]; d++) divided |= f->dim[x][d].div > 1;
  if (divided) return col2im_plan(a, p, x);
  if (prefer_col2im(f, x) && col2im_plan(a, p, x)) return true;
  return im2col_plan(a, p, x);
}

/* The input of the shape of the operand that is computed; -1. */
static int input_like(const Kernel *k, const Node *operand) {
  for (int i = 0; i < k->inputs.n; i++) {
    const Node *n = k->inputs.v[i].node;
    bool updated = k->inputs.v[i].aligned; /* by the epilogue */
    if (!updated && node_same_shape(n, operand) && n->dtype == operand->dtype) return i;
  }
  return -1;
}

/* Is the raw result only read by the kernel itself? */
static bool passes(const Node *raw) {
  const Buffer *b = raw->buf;
  return b && b->kind == B_ARENA && b->first == b->last;
}

static bool frame_of(const Kernel *k, Frame *f) {
  f->computed = kernel_operand(k);
  for (int x = 0; x < 2; x++) {
    const Node *n = k->core->in[x];
    if ((f->x[x] = x == f->computed ? input_like(k, n) : kernel_input(k, n)) < 0) return false;
    f->constant[x] = k->inputs.v[f->x[x]].constant;
    f->from_far[x] = stored_in_memory(k->inputs.v[f->x[x]].node);
  }
  f->out = k->inputs.n;
  f->epilogue = k->outputs.v[0] != k->core || k->outputs.n > 1;
  for (int i = 0; i < k->outputs.n; i++)
    if (k->outputs.v[i] == k->core) f->out = k->inputs.n + i;
  const Node *raw = k->outputs.v[f->out - k->inputs.n];
  if (dtype_info[raw->dtype].size < dtype_info[k->core->dtype].size) return false;
  f->far = stored_in_memory(raw);
  for (int i = 0; i < k->inputs.n; i++) f->updates |= k->inputs.v[i].aligned;
  f->passing = f->updates && raw == k->core && passes(raw);
  f->ws = k->inputs.n + k->outputs.n;
  f->rows = f->parts = 1;
  for (int d = k->core->rank - 1; d >= 0; d--)
    if (k->core->dims[d] > 1) f->rows = k->core->dims[d];
  if (f->epilogue) {
    f->parts = loop_tasks(k, LOOP_EPILOGUE) / f->rows;
    f->columns = loop_columns(k);
  }
  return true;
}

void plan_products(Arena *a, Plan *p, MicroShape *s) {
  s->flops = p->facts.flops;
  if (p->way != WAY_BLAS)
    p->micro = micro_plan(a, p->facts.dtype, s, p->no_blas || p->way == WAY_GEMM, p->only);
  if (p->micro) {
    p->set = micro_set(p->micro);
    p->tile = micro_tile(p->micro);
  }
  p->uses_blas = !p->micro && !p->no_blas;
  p->pack_at = p->work.scratch;
  p->work.scratch += micro_scratch(p->micro);
}

void multiply(const Plan *p, const MicroProduct *q, void *scratch) {
  if (p->micro && p->set->ready) {
    micro_run(p->micro, q, (char *)scratch + p->pack_at);
    return;
  }
  int64_t size = p->facts.size;
  for (int64_t i = 0; i < q->batch; i++)
    gemm(p->facts.dtype, q->m, q->n, q->k, (const char *)q->a + i * q->a_step * size, q->a_mat,
         (const char *)q->b + i * q->b_step * size, q->b_mat, q->add || i > 0, q->c, q->c_mat);
}

static bool is_plain(const Plan *p) { return p->facts.plain[0] && p->facts.plain[1]; }

static PlanKind by_conv(Arena *a, Plan *p) { return conv_plan(a, p) ? PLAN_CONV : PLAN_LOOPS; }

static PlanKind by_filter(Arena *a, Plan *p) {
  return filter_plan(a, p) ? PLAN_FILTER : PLAN_LOOPS;
}

static PlanKind by_direct(Arena *a, Plan *p) {
  if (!p->conv_error) return PLAN_LOOPS; /* nothing else is allowed */
  p->conv_error = 0;
  PlanKind kind = by_conv(a, p);
  return kind == PLAN_LOOPS ? by_filter(a, p) : kind;
}

static PlanKind by_gemm(Arena *a, Plan *p) {
  return is_plain(p) && gemm_plan(a, p) ? PLAN_GEMM : PLAN_LOOPS;
}

static PlanKind by_window(Arena *a, Plan *p) {
  if (!window_plan(a, p, 0) && !window_plan(a, p, 1)) return PLAN_LOOPS;
  return p->im2col ? PLAN_IM2COL : PLAN_COL2IM;
}

static PlanKind by_images(Arena *a, Plan *p) {
  for (int x = 0; x < 2; x++) {
    if (images_plan(a, p, x)) return PLAN_IMAGES;
    if (images_grad_plan(a, p, x)) return PLAN_IMAGES_GRAD;
    if (planes_plan(a, p, x)) return PLAN_IMAGES;
  }
  return PLAN_LOOPS;
}

static PlanKind by_rule(Arena *a, Plan *p) {
  static PlanKind (*const all[])(Arena *, Plan *) = {by_conv, by_filter, by_gemm, by_window};
  if (p->frame.computed >= 0) return by_filter(a, p);
  PlanKind images = by_images(a, p);
  if (images != PLAN_LOOPS) return images;
  if (is_plain(p) && gemm_shares_plan(a, p)) return PLAN_GEMM;
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
    PlanKind kind = all[i](a, p);
    if (kind != PLAN_LOOPS) return kind;
  }
  return PLAN_LOOPS;
}

static PlanKind (*const way_plan[WAY_N])(Arena *, Plan *) = {by_rule,   by_conv,  by_direct,
                                                             by_filter, by_gemm,  by_gemm,
                                                             by_window, by_images};

/* By generated loops alone if nothing else serves it. */
static Plan *plan_of(Arena *a, const Kernel *k, Way way, const TileRow *only, bool no_blas) {
  Plan *p = arena_new_of(a, Plan);
  p->no_blas = no_blas;
  p->way = way;
  p->only = only;
  p->conv_error = k->conv_error;
  p->chained = k->chained;
  if (!frame_of(k, &p->frame) || !facts_of(k->core, &p->facts) || loop_is_stencil(k)) return p;
  p->kind = way_plan[way](a, p);
  if ((no_blas && !p->set) || (p->frame.computed >= 0 && p->kind != PLAN_FILTER))
    p->kind = PLAN_LOOPS;
  return p;
}

Plan *plan_by(Arena *a, const Kernel *k, int choice) {
  int tile = choice / WAY_N;
  Plan *p = plan_of(a, k, choice % WAY_N, tile ? &tile_table[tile - 1] : NULL, false);
  return p->kind == PLAN_LOOPS ? NULL : p;
}

Plan *contract_plan(Arena *a, const Kernel *k, bool no_blas) {
  Plan *p = k->choice && !no_blas ? plan_by(a, k, k->choice) : NULL;
  return p ? p : plan_of(a, k, WAY_RULE, NULL, no_blas);
}

void plan_text(const Plan *p, char text[24]) {
  static const char *const names[] = {"loops", "gemm",   "im2col", "col2im",
                                      "conv",  "filter", "images", "images"};
  const TileRow *t = p->tile;
  const char *name = names[p->kind];
  if ((p->kind == PLAN_CONV && p->conv->winograd.m) ||
      (p->kind == PLAN_FILTER && p->filter->winograd.used) ||
      (p->kind == PLAN_IMAGES && p->images->winograd) ||
      (p->kind == PLAN_IMAGES_GRAD && p->images_grad->winograd))
    name = "winograd";
  if (t)
    snprintf(text, 24, "%s %s%dx%d", name, t->form == FORM_DOT ? "dot " : "", t->mr, t->nv);
  else
    snprintf(text, 24, "%s%s", name, p->uses_blas ? " OpenBLAS" : "");
}

void run_epilogue(const Frame *f, void *const *bufs, int64_t r0, int64_t r1, RunCtx *ctx) {
  if (f->fn) f->fn(NULL, bufs, r0 * f->parts, r1 * f->parts, ctx);
}

void plan_micro(Plan *p, CodeBatch *b) {
  if (p->kind == PLAN_LOOPS) return;
  if (p->uses_blas) blas_setup();
  if (!p->set) return;
  for (int i = 0; i < p->set->n; i++) micro_code(b, &p->set->spec[i], &p->set->fn[i]);
  p->set->ready = true;
}

void contract_code(Plan *p, KernelFn *epilogue, KernelCode *code) {
  const Work *w = &p->work;
  p->frame.fn = w->fused ? epilogue : NULL;
  code->n_phases = w->n_phases;
  for (int i = 0; i < w->n_phases; i++) {
    code->phase[i].fn = w->fn[i];
    code->phase[i].self = p;
    code->phase[i].n_tasks = w->n_tasks[i];
  }
  if (epilogue && !w->fused) {
    int i = code->n_phases++;
    code->phase[i].fn = epilogue;
    code->phase[i].n_tasks = p->frame.rows * p->frame.parts;
  }
  code->scratch_bytes = w->scratch;
}
