/* The code of depthwise contractions. In: stencil.c's plan, which says what the loops are; out: the nest, appended to the
 * function that is being generated. */
#include "stencil.h"

typedef struct Rows {
  Gen *g;
  const Stencil *s;
  Aff at[KL_LOOPS]; /* of the result's loops */
  Aff row;          /* row.at / row.div */
  int64_t rest;     /* row.at % row.div */
  Aff chan0;        /* first channel of the block */
} Rows;

/* Columns origin..origin+n-1, plus `at` if they are not known here: then nothing falls outside. */
typedef struct Tile {
  bool known;
  Aff at;
  int64_t origin, n;
  int64_t first, last; /* columns of x that are read, not counting at */
  int chan;            /* the loop variable: channels from chan0 on */
  Val *sum;            /* by column */
} Tile;

static int64_t stride_of(const Node *x, int d) {
  int64_t s = 1;
  while (++d < x->rank) s *= x->dims[d];
  return s;
}

/* The buffer of an operand. */
static int buffer_of(Gen *g, Node *n) {
  while (gen_info(g, n)->input < 0) n = n->in[0]; /* reshapes */
  return gen_info(g, n)->input;
}

static Aff sum_of(Gen *g, Aff x, Aff y, int64_t by) {
  y = aff_mul(y, by);
  return aff_add(g, &x, &y);
}

static Val pointer(Gen *g, Val base, DType t, const Aff *at) {
  Val v = aff_value(g, at);
  gen_at(g, gen_depth(g, v) > gen_depth(g, base) ? gen_depth(g, v) : gen_depth(g, base));
  return LLVMBuildGEP2(g->b, mem_type(g, t), base, &v, 1, "");
}

static Val zeros(Gen *g, int64_t bytes) {
  int64_t size = 1024;
  while (size < bytes) size *= 2;
  const char *name = arena_fmt(g->a, "kl_zeros_%lld", (long long)size);
  Val z = LLVMGetNamedGlobal(g->m, name);
  if (z) return z;
  LLVMTypeRef t = LLVMArrayType2(g->i8, (uint64_t)size);
  z = LLVMAddGlobal(g->m, t, name);
  LLVMSetInitializer(z, LLVMConstNull(t));
  LLVMSetLinkage(z, LLVMInternalLinkage);
  LLVMSetExternallyInitialized(z, 1); /* so that it takes no room in files */
  LLVMSetAlignment(z, 64);
  return z;
}

/* Where row tap i reads column 0 of x and channel 0 of the block; NULL: nowhere. */
static Val row_pointer(const Rows *r, const Tile *t, int64_t i) {
  Gen *g = r->g;
  const Stencil *s = r->s;
  const Window *w = &s->row;
  Node *x = s->core->in[s->x];
  int64_t k = w->a * r->rest + w->b * i + w->off, lo, hi;
  if (k % w->div) return NULL;
  Aff h = aff_mul(r->row, w->a), at = aff_k(0);
  h.k += k / w->div;
  aff_range(g, &h, &lo, &hi);
  if (hi < 0 || lo >= w->size) return NULL;
  for (int d = 0; d < x->rank; d++) {
    const AffDim *m = &s->core->map[s->x][d];
    if (d == w->dim || d == s->col.dim) continue;
    Aff e = aff_k(m->off);
    if (m->l0 >= 0 && m->l0 != s->chan) e = sum_of(g, e, r->at[m->l0], m->c0);
    if (m->l1 >= 0 && m->l1 != s->chan) e = sum_of(g, e, r->at[m->l1], m->c1);
    at = sum_of(g, at, e, stride_of(x, d));
  }
  if (w->dim >= 0) at = sum_of(g, at, h, stride_of(x, w->dim));
  Aff col = aff_mul(t->at, s->col.a);
  for (int j = 0; j < col.n; j++) col.c[j] /= s->col.div;
  at = sum_of(g, at, col, s->channels);
  at = aff_add(g, &at, &r->chan0);
  Val p = pointer(g, g->bufs[buffer_of(g, x)], x->dtype, &at);
  if (lo >= 0 && hi < w->size) return p;
  Val v = aff_value(g, &h);
  gen_at(g, gen_depth(g, v));
  Val in = LLVMBuildICmp(g->b, LLVMIntULT, v, gen_i64(g, w->size), "");
  int64_t bytes = (t->last - t->first + 1) * s->channels * dtype_info[x->dtype].size;
  Aff from = aff_k(-t->first * s->channels);
  Val z = pointer(g, zeros(g, bytes), x->dtype, &from);
  gen_at_vals(g, 2, (Val[]){p, in});
  return LLVMBuildSelect(g->b, in, p, z, "");
}

static Val element(const Rows *r, const Tile *t, Val base, const Node *x, int64_t off) {
  Gen *g = r->g;
  Aff at = aff_var(t->chan, 1);
  at.k = off;
  return val_load(g, x->dtype, pointer(g, base, x->dtype, &at));
}

/* Row i and column j of the filter, from channel 0 of the block. */
static Val tap_value(const Rows *r, const Tile *t, Val base, int64_t i, int64_t j) {
  const Stencil *s = r->s;
  const Node *f = s->core->in[!s->x];
  int64_t off = 0;
  for (int d = 0; d < f->rank; d++) {
    const AffDim *m = &s->core->map[!s->x][d];
    int64_t e = m->off;
    int l[2] = {m->l0, m->l1};
    int64_t c[2] = {m->c0, m->c1};
    for (int k = 0; k < 2; k++)
      if (l[k] >= 0) e += c[k] * (l[k] == s->row.tap ? i : l[k] == s->col.tap ? j : 0);
    off += e * stride_of(f, d);
  }
  return element(r, t, base, f, off);
}

/* The products of one row of the filter with one column of x. */
static void do_column(const Rows *r, Tile *t, Val row, int64_t u, const Val *tap) {
  Gen *g = r->g;
  const Window *w = &r->s->col;
  const Node *x = r->s->core->in[r->s->x];
  Val v = NULL;
  for (int64_t j = 0; j < w->taps; j++) {
    int64_t k = u * w->div - w->b * j - w->off, c = k / w->a - t->origin;
    if (!tap[j] || k % w->a != 0 || c < 0 || c >= t->n) continue;
    if (!v) v = element(r, t, row, x, u * r->s->channels);
    gen_at(g, g->depth);
    t->sum[c] = t->sum[c] ? math_fma(g, val_type(g, x->dtype), v, tap[j], t->sum[c])
                          : LLVMBuildFMul(g->b, v, tap[j], "");
  }
}

/* The epilogue on the sums, and the stores. */
static void finish_tile(const Rows *r, const Tile *t) {
  Gen *g = r->g;
  const Stencil *s = r->s;
  Kernel *k = g->k;
  int n_out = k->outputs.n;
  Index *ix = arena_array(g->a, Index, t->n);
  Val *v = arena_array(g->a, Val, t->n * n_out);
  for (int64_t c = 0; c < t->n; c++) {
    ix[c].rank = s->core->rank;
    for (int l = 0; l < s->core->rank; l++) ix[c].d[l] = r->at[l];
    ix[c].d[s->col.at] = t->at;
    ix[c].d[s->col.at].k += t->origin + c;
    Aff chan = aff_var(t->chan, 1);
    ix[c].d[s->chan] = aff_add(g, &r->chan0, &chan);
    int64_t key[2 + INDEX_KEY] = {'n', (int64_t)(intptr_t)s->core};
    int len = 2 + index_key(&ix[c], key + 2);
    memo_add(g, g->depth, key, len)->v[0] =
        t->sum[c] ? t->sum[c] : val_const(g, s->core->dtype, 0, 0);
    for (int o = 0; o < n_out; o++) v[c * n_out + o] = emit(g, k->outputs.v[o], &ix[c]);
  }
  for (int64_t c = 0; c < t->n; c++)
    for (int o = 0; o < n_out; o++) {
      Node *n = k->outputs.v[o];
      Aff lin = index_linear(g, &ix[c], n->dims, 0, n->rank);
      Val p = emit_address(g, k->inputs.n + o, n->dtype, &lin);
      gen_at(g, g->depth);
      val_store(g, n->dtype, v[c * n_out + o], p);
    }
}

static void do_tile(const Rows *r, Tile *t) {
  Gen *g = r->g;
  const Stencil *s = r->s;
  Node *f = s->core->in[!s->x];
  columns_read(s, t->origin, t->n, &t->first, &t->last);
  if (t->known && t->first < 0) t->first = 0;
  if (t->known && t->last >= s->col.size) t->last = s->col.size - 1;
  Val *row = arena_array(g->a, Val, s->row.taps), *tap = arena_array(g->a, Val, s->col.taps);
  for (int64_t i = 0; i < s->row.taps; i++) row[i] = row_pointer(r, t, i);
  Val filter = pointer(g, g->bufs[buffer_of(g, f)], f->dtype, &r->chan0);
  Loop l =
      loop_open(g, gen_i64(g, 0), gen_i64(g, s->block), gen_i64(g, 1), 0, s->block - 1, &t->chan);
  t->sum = arena_array(g->a, Val, t->n);
  for (int64_t i = 0; i < s->row.taps; i++) {
    if (!row[i]) continue;
    for (int64_t j = 0; j < s->col.taps; j++) tap[j] = tap_value(r, t, filter, i, j);
    for (int64_t u = t->first; u <= t->last; u++) do_column(r, t, row[i], u, tap);
  }
  finish_tile(r, t);
  loop_close(g, &l, LOOP_WIDE);
}

/* The tiles of a row. */
static void do_row(const Rows *r) {
  Gen *g = r->g;
  const Stencil *s = r->s;
  int64_t size = tile_columns(s, g->registers), n = n_tiles(s, size);
  Tile t = {.known = true, .n = n > 1 ? size : s->col.n};
  do_tile(r, &t);
  if (n > 2) {
    int var;
    Loop l = loop_open(g, gen_i64(g, 1), gen_i64(g, n - 1), gen_i64(g, 1), 1, n - 2, &var);
    t = (Tile){.at = aff_var(var, size), .n = size};
    do_tile(r, &t);
    loop_close(g, &l, LOOP_PLAIN);
  }
  if (n == 1) return;
  t = (Tile){.known = true, .origin = (n - 1) * size, .n = s->col.n - (n - 1) * size};
  do_tile(r, &t);
}

void gen_stencil(Gen *g, const Stencil *s, Val begin, Val end) {
  Rows r = {.g = g, .s = s};
  int var, d;
  gen_at(g, 0);
  Val per = gen_i64(g, s->rows_per_task);
  Val from = LLVMBuildNSWMul(g->b, begin, per, "");
  Val to = gen_min(g, LLVMBuildNSWMul(g->b, end, per, ""), gen_i64(g, s->rows));
  Loop l = loop_open(g, from, to, gen_i64(g, 1), 0, s->rows - 1, &var);
  Aff e = s->rows == 1 ? aff_k(0) : aff_var(var, 1), h, b, rest;
  aff_divmod(g, &e, s->row.n, &e, &h);
  aff_divmod(g, &e, s->n_block, &e, &b);
  for (int i = s->n_outer - 1; i >= 0; i--)
    aff_divmod(g, &e, s->core->ext[s->outer[i]], &e, &r.at[s->outer[i]]);
  if (s->row.at >= 0) r.at[s->row.at] = h;
  r.chan0 = aff_mul(b, s->block);
  aff_divmod(g, &h, s->row.div, &r.row, &rest);
  for (r.rest = 0; r.rest < s->row.div;
       r.rest++) { /* rows of one kind: a loop of one step or none */
    if (s->row.div == 1) {
      do_row(&r);
      break;
    }
    Val v = aff_value(g, &rest);
    gen_at(g, g->depth);
    Val is = LLVMBuildICmp(g->b, LLVMIntEQ, v, gen_i64(g, r.rest), "");
    is = LLVMBuildZExt(g->b, is, g->i64, "");
    Loop once = loop_open(g, gen_i64(g, 0), is, gen_i64(g, 1), 0, 0, &d);
    do_row(&r);
    loop_close(g, &once, LOOP_PLAIN);
  }
  loop_close(g, &l, LOOP_PLAIN);
}
