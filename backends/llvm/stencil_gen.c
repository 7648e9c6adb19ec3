/* Code of depthwise contractions. In: a Stencil; out: a loop nest over its tasks.
 *
 * A tile is a few rows by a few columns: the first tile of a block of rows, those between, and the last have code of their own, and so
 * has a last block of fewer rows, so that which columns fall outside, or which taps are left out by the division, is known where the
 * code is made. The innermost loop runs over the channels, which LLVM makes vectors of. At each channel an element of x is loaded once for
 * all products of the tile that it is part of. Sums over the taps stay in registers, with the filter, and the epilogue follows on
 * them. Sums over positions are kept in an array, on the stack or in the workspace, and loaded for one tile at a time; those of parts of
 * the rows are added in a second step. A row of x that lies outside is read from zeros. */
#include "stencil.h"

typedef struct Rows {
  Gen *g;
  const Stencil *s;
  Aff at[KL_LOOPS]; /* where the loops stand, at the first row; taps at 0 */
  Aff block;        /* of rows */
  int64_t n;        /* rows of it */
  Aff chan0;        /* first channel of the block */
  Val sums;         /* [taps][block] */
} Rows;

/* Columns origin..origin+n-1, plus `at` if they are not known here: then nothing falls outside. */
typedef struct Tile {
  bool known;
  Aff at;
  int64_t origin, n;
  int64_t first, last; /* columns of x that are read, not counting at */
  int chan;            /* the loop variable: channels from chan0 on */
  int64_t low, n_rows; /* rows of x that are read, not counting those of the blocks before */
  Val *row;            /* by row of x: where it reads column 0 and the first channel of the block */
  Val *sum;            /* by row and column, or by tap */
  const Val *other;    /* by tap the filter, or by row and column y */
} Tile;

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
  gen_at_vals(g, 2, (Val[]){v, base});
  return LLVMBuildGEP2(g->b, mem_type(g, t), base, &v, 1, "");
}

/* Elements between neighbours of loop l in operand i. */
static int64_t step_of(const Stencil *s, int i, int l) {
  int64_t step = 0;
  for (int d = 0; d < s->core->in[i]->rank; d++) {
    const AffDim *m = &s->core->map[i][d];
    step +=
        stencil_stride(s->core->in[i], d) * ((m->l0 == l ? m->c0 : 0) + (m->l1 == l ? m->c1 : 0));
  }
  return step;
}

/* The place in operand i where the loops stand, at the first channel of the block, without the window dimensions of x. */
static Aff place_of(const Rows *r, int i) {
  Gen *g = r->g;
  const Stencil *s = r->s;
  Aff at = r->chan0;
  for (int d = 0; d < s->core->in[i]->rank; d++) {
    const AffDim *m = &s->core->map[i][d];
    if (i == s->x && (d == s->row.dim || d == s->col.dim)) continue;
    Aff e = aff_k(m->off);
    if (m->l0 >= 0 && m->l0 != s->chan) e = sum_of(g, e, r->at[m->l0], m->c0);
    if (m->l1 >= 0 && m->l1 != s->chan) e = sum_of(g, e, r->at[m->l1], m->c1);
    at = sum_of(g, at, e, stencil_stride(s->core->in[i], d));
  }
  return at;
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

/* The row of x, not counting those of the blocks before, that row k of a block reads with tap i; false: none. */
static bool row_read(const Stencil *s, int64_t k, int64_t i, int64_t *row) {
  int64_t at = s->row.a * k + s->row.b * i + s->row.off, d = s->row.div;
  *row = at / d;
  return at % d == 0;
}

/* The rows of x that the block reads. */
static void rows_read(const Rows *r, Tile *t) {
  const Stencil *s = r->s;
  int64_t lo = INT64_MAX, hi = INT64_MIN, at;
  for (int64_t k = 0; k < r->n; k++)
    for (int64_t i = 0; i < s->row.taps; i++) {
      if (!row_read(s, k, i, &at)) continue;
      if (at < lo) lo = at;
      if (at > hi) hi = at;
    }
  t->low = lo;
  t->n_rows = hi < lo ? 0 : hi - lo + 1;
}

/* Where row `row` of x, counted as row_read does, begins; NULL: outside in any block. */
static Val row_pointer(const Rows *r, const Tile *t, int64_t row) {
  Gen *g = r->g;
  const Stencil *s = r->s;
  Node *x = s->core->in[s->x];
  int64_t lo, hi, size = s->row.size, step = s->row.a * s->height / s->row.div;
  Aff h = aff_mul(r->block, step), at = place_of(r, s->x), col = aff_mul(t->at, s->col.a);
  h.k += row;
  aff_range(g, &h, &lo, &hi);
  if (hi < 0 || lo >= size) return NULL;
  for (int j = 0; j < col.n; j++) col.c[j] /= s->col.div;
  if (s->row.dim >= 0) at = sum_of(g, at, h, stencil_stride(x, s->row.dim));
  at = sum_of(g, at, col, s->step);
  Val p = pointer(g, g->bufs[buffer_of(g, x)], x->dtype, &at);
  if (lo >= 0 && hi < size) return p;
  Val v = aff_value(g, &h);
  gen_at(g, gen_depth(g, v));
  Val in = LLVMBuildICmp(g->b, LLVMIntULT, v, gen_i64(g, size), "");
  int64_t bytes = stencil_row_bytes(s, t->first, t->last);
  Aff from = aff_k(-t->first * s->step);
  Val z = pointer(g, zeros(g, bytes), x->dtype, &from);
  gen_at_vals(g, 2, (Val[]){p, in});
  return LLVMBuildSelect(g->b, in, p, z, "");
}

static Val address(const Rows *r, const Tile *t, Val base, int64_t off) {
  Aff at = aff_var(t->chan, 1);
  at.k = off;
  return pointer(r->g, base, r->s->core->dtype, &at);
}

static Val element(const Rows *r, const Tile *t, Val base, int64_t off) {
  return val_load(r->g, r->s->core->dtype, address(r, t, base, off));
}

/* The products of row k of the tile and row i of the taps with column u of x, v. */
static void add_products(const Rows *r, Tile *t, Val v, int64_t k, int64_t i, int64_t u) {
  Gen *g = r->g;
  const Stencil *s = r->s;
  const Window *w = &s->col;
  for (int64_t j = 0; j < w->taps; j++) {
    int64_t at = u * w->div - w->b * j - w->off, c = at / w->a - t->origin;
    if (at % w->a != 0 || c < 0 || c >= t->n) continue;
    int64_t tap = i * w->taps + j, place = k * t->n + c;
    Val *sum = &t->sum[s->sums ? tap : place], y = t->other[s->sums ? place : tap];
    gen_at(g, g->depth);
    *sum =
        *sum ? math_fma(g, val_type(g, s->core->dtype), v, y, *sum) : LLVMBuildFMul(g->b, v, y, "");
  }
}

/* Does column u of x take part in a product of the tile? */
static bool column_used(const Stencil *s, const Tile *t, int64_t u) {
  const Window *w = &s->col;
  for (int64_t j = 0; j < w->taps; j++) {
    int64_t at = u * w->div - w->b * j - w->off, c = at / w->a - t->origin;
    if (at % w->a == 0 && c >= 0 && c < t->n) return true;
  }
  return false;
}

/* All products of the tile. */
static void each_product(const Rows *r, Tile *t) {
  const Stencil *s = r->s;
  for (int64_t h = 0; h < t->n_rows; h++) {
    bool used = false;
    int64_t at;
    for (int64_t k = 0; k < r->n; k++)
      for (int64_t i = 0; i < s->row.taps; i++) used |= row_read(s, k, i, &at) && at == t->low + h;
    for (int64_t u = t->first; used && t->row[h] && u <= t->last; u++) {
      if (!column_used(s, t, u)) continue;
      Val v = element(r, t, t->row[h], u * s->step);
      for (int64_t k = 0; k < r->n; k++)
        for (int64_t i = 0; i < s->row.taps; i++)
          if (row_read(s, k, i, &at) && at == t->low + h) add_products(r, t, v, k, i, u);
    }
  }
}

/* The epilogue on the sum at ix: values of the outputs. */
static void finish(Gen *g, const Stencil *s, Val sum, const Index *ix, Val *v) {
  int64_t key[2 + INDEX_KEY] = {'n', (int64_t)(intptr_t)s->core};
  int len = 2 + index_key(ix, key + 2);
  memo_add(g, g->depth, key, len)->v[0] = sum ? sum : val_const(g, s->core->dtype, 0, 0);
  for (int o = 0; o < g->k->outputs.n; o++) v[o] = emit(g, g->k->outputs.v[o], ix);
}

static void store(Gen *g, const Index *ix, const Val *v) {
  for (int o = 0; o < g->k->outputs.n; o++) {
    Node *n = g->k->outputs.v[o];
    Aff lin = index_linear(g, ix, n->dims, 0, n->rank);
    Val p = emit_address(g, g->k->inputs.n + o, n->dtype, &lin);
    gen_at(g, g->depth);
    val_store(g, n->dtype, v[o], p);
  }
}

static Index result_index(const Rows *r, const Tile *t) {
  Index ix = {.rank = r->s->core->rank};
  Aff chan = aff_var(t->chan, 1);
  for (int l = 0; l < ix.rank; l++) ix.d[l] = r->at[l];
  ix.d[r->s->chan] = aff_add(r->g, &r->chan0, &chan);
  return ix;
}

static Index tile_index(const Rows *r, const Tile *t, int64_t k, int64_t c) {
  const Stencil *s = r->s;
  Index ix = result_index(r, t);
  if (s->row.at >= 0) ix.d[s->row.at].k += k;
  ix.d[s->col.at] = t->at;
  ix.d[s->col.at].k += t->origin + c;
  return ix;
}

/* One channel of a tile: sums over taps. */
static void convolve(const Rows *r, Tile *t, Val filter) {
  Gen *g = r->g;
  const Stencil *s = r->s;
  int64_t di = s->row.tap < 0 ? 0 : step_of(s, !s->x, s->row.tap),
          dj = s->col.tap < 0 ? 0 : step_of(s, !s->x, s->col.tap), n = r->n * t->n;
  Val *tap = arena_array(g->a, Val, s->row.taps * s->col.taps);
  int n_out = g->k->outputs.n;
  Val *v = arena_array(g->a, Val, n * n_out);
  t->sum = arena_array(g->a, Val, n);
  for (int64_t i = 0; i < s->row.taps * s->col.taps; i++)
    tap[i] = element(r, t, filter, i / s->col.taps * di + i % s->col.taps * dj);
  t->other = tap;
  each_product(r, t);
  for (int64_t i = 0; i < n; i++) {
    Index ix = tile_index(r, t, i / t->n, i % t->n);
    finish(g, s, t->sum[i], &ix, v + i * n_out);
  }
  for (int64_t i = 0; i < n; i++) {
    Index ix = tile_index(r, t, i / t->n, i % t->n);
    store(g, &ix, v + i * n_out);
  }
}

/* One channel of a tile: adds to the sums over positions. */
static void correlate(const Rows *r, Tile *t, Val other) {
  Gen *g = r->g;
  const Stencil *s = r->s;
  int64_t dc = step_of(s, !s->x, s->col.at), dk = s->row.at < 0 ? 0 : step_of(s, !s->x, s->row.at);
  int64_t taps = s->row.taps * s->col.taps;
  Val *y = arena_array(g->a, Val, r->n * t->n);
  t->sum = arena_array(g->a, Val, taps);
  for (int64_t i = 0; i < r->n * t->n; i++)
    y[i] = element(r, t, other, i / t->n * dk + (t->origin + i % t->n) * dc);
  for (int64_t i = 0; i < taps; i++) t->sum[i] = element(r, t, r->sums, i * s->block);
  t->other = y;
  each_product(r, t);
  for (int64_t i = 0; i < taps; i++) {
    Val p = address(r, t, r->sums, i * s->block);
    gen_at(g, g->depth);
    val_store(g, s->core->dtype, t->sum[i], p);
  }
}

static Loop each_channel(const Rows *r, Tile *t) {
  Gen *g = r->g;
  int64_t n = r->s->block;
  return loop_open(g, gen_i64(g, 0), gen_i64(g, n), gen_i64(g, 1), 0, n - 1, &t->chan);
}

/* Fetches the lines that the results of a tile go to, where they are not in a cache: stores wait for them otherwise. */
static void fetch_results(const Rows *r, Tile *t) {
  enum { LINE = 64, WRITE = 1, L2 = 2, DATA = 1 };
  Gen *g = r->g;
  LLVMTypeRef i32 = LLVMInt32TypeInContext(g->c);
  Val k[] = {NULL, LLVMConstInt(i32, 1, false), LLVMConstInt(i32, 2, false)};
  for (int o = 0; o < g->k->outputs.n; o++) {
    Node *n = g->k->outputs.v[o];
    if (!stored_in_memory(n)) continue;
    int64_t lines = LINE / dtype_info[n->dtype].size;
    Loop l = loop_open(g, gen_i64(g, 0), gen_i64(g, r->s->block), gen_i64(g, lines), 0,
                       r->s->block - 1, &t->chan);
    for (int64_t i = 0; i < r->n * t->n; i++) {
      Index ix = tile_index(r, t, i / t->n, i % t->n);
      Aff lin = index_linear(g, &ix, n->dims, 0, n->rank);
      Val p = emit_address(g, g->k->inputs.n + o, n->dtype, &lin);
      gen_at(g, g->depth);
      gen_call(g, "llvm.prefetch", g->ptr, 4, (Val[]){p, k[WRITE], k[L2], k[DATA]});
    }
    loop_close(g, &l, LOOP_PLAIN);
  }
}

static void do_tile(const Rows *r, Tile *t) {
  Gen *g = r->g;
  const Stencil *s = r->s;
  Node *y = s->core->in[!s->x];
  stencil_reads(s, t->origin, t->n, &t->first, &t->last);
  if (t->known && t->first < 0) t->first = 0;
  if (t->known && t->last >= s->col.size) t->last = s->col.size - 1;
  rows_read(r, t);
  t->row = arena_array(g->a, Val, t->n_rows);
  for (int64_t h = 0; h < t->n_rows; h++) t->row[h] = row_pointer(r, t, t->low + h);
  Aff at = place_of(r, !s->x);
  if (s->sums) at = sum_of(g, at, t->at, step_of(s, 1 - s->x, s->col.at));
  Val other = pointer(g, g->bufs[buffer_of(g, y)], y->dtype, &at);
  if (!s->sums) fetch_results(r, t);
  Loop l = each_channel(r, t);
  (s->sums ? correlate : convolve)(r, t, other);
  loop_close(g, &l, LOOP_WIDE);
}

/* The tiles of a block of rows. */
static void do_block(Rows *r, Aff block, int64_t rows) {
  Gen *g = r->g;
  const Stencil *s = r->s;
  int64_t size = stencil_tile(s, g->registers), n = stencil_tiles(s, size);
  Tile t = {.known = true, .n = n > 1 ? size : s->col.n};
  r->n = rows;
  r->block = block;
  if (s->row.at >= 0) r->at[s->row.at] = aff_mul(block, s->height);
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

/* Sum i of a channel over all parts. */
static Val part_sums(const Rows *r, const Tile *t, int64_t i) {
  Gen *g = r->g;
  const Stencil *s = r->s;
  int64_t all = s->n_outers * s->n_block * s->row.taps * s->col.taps * s->block;
  Val sum = element(r, t, r->sums, i * s->block);
  for (int64_t p = 1; p < s->parts; p++) {
    Val v = element(r, t, r->sums, p * all + i * s->block);
    gen_at(g, g->depth);
    sum = LLVMBuildFAdd(g->b, sum, v, "");
  }
  return sum;
}

/* All taps of sums over positions: starts them, or gives them to the epilogue. */
static void each_tap(Rows *r, bool last) {
  Gen *g = r->g;
  const Stencil *s = r->s;
  Tile t = {0};
  Loop l = each_channel(r, &t);
  Val v[256];
  for (int64_t i = 0; i < s->row.taps * s->col.taps; i++) {
    if (last) {
      Index ix = result_index(r, &t);
      if (s->row.tap >= 0) ix.d[s->row.tap] = aff_k(i / s->col.taps);
      if (s->col.tap >= 0) ix.d[s->col.tap] = aff_k(i % s->col.taps);
      finish(g, s,
             g->part == LOOP_PARTS ? part_sums(r, &t, i) : element(r, &t, r->sums, i * s->block),
             &ix, v);
      store(g, &ix, v);
    } else {
      Val p = address(r, &t, r->sums, i * s->block);
      gen_at(g, g->depth);
      val_store(g, s->core->dtype, val_const(g, s->core->dtype, 0, 0), p);
    }
  }
  loop_close(g, &l, LOOP_WIDE);
}

static Loop each_of(Rows *r, int l) {
  Gen *g = r->g;
  int64_t n = r->s->core->ext[l];
  int var;
  Loop loop = loop_open(g, gen_i64(g, 0), gen_i64(g, n), gen_i64(g, 1), 0, n - 1, &var);
  r->at[l] = aff_var(var, 1);
  return loop;
}

/* Where `at` is `last`, the block with the rows left over: a loop of one step or none. */
static void do_if(Rows *r, const Aff *at, int64_t last, int64_t block, int64_t rows) {
  Gen *g = r->g;
  int var;
  Val v = aff_value(g, at), end = gen_i64(g, last);
  gen_at(g, g->depth);
  Val yes = LLVMBuildICmp(g->b, LLVMIntEQ, v, end, "");
  yes = LLVMBuildZExt(g->b, yes, g->i64, "");
  Loop once = loop_open(g, gen_i64(g, 0), yes, gen_i64(g, 1), 0, 0, &var);
  do_block(r, aff_k(block), rows);
  loop_close(g, &once, LOOP_PLAIN);
}

/* The blocks of rows of the part, the last block perhaps with fewer rows. */
static void sum_blocks(Rows *r, const Aff *part) {
  Gen *g = r->g;
  const Stencil *s = r->s;
  int64_t rest = s->row.n % s->height, full = s->row.n / s->height, per = stencil_part(s);
  Aff from = aff_mul(*part, per), to = from;
  int var;
  to.k += per;
  Val lo = aff_value(g, &from), hi = aff_value(g, &to);
  gen_at(g, g->depth);
  hi = gen_min(g, hi, gen_i64(g, full));
  Loop l = loop_open(g, lo, hi, gen_i64(g, 1), 0, full - 1, &var);
  do_block(r, aff_var(var, 1), s->height);
  loop_close(g, &l, LOOP_PLAIN);
  if (rest) do_if(r, part, s->parts - 1, full, rest);
}

static void sum_positions(Rows *r, const Aff *part) {
  Gen *g = r->g;
  const Stencil *s = r->s;
  Loop open[KL_LOOPS];
  int n = 0;
  each_tap(r, false);
  for (int i = 0; i < s->n_sum; i++) open[n++] = each_of(r, s->sum[i]);
  sum_blocks(r, part);
  while (n--) loop_close(g, &open[n], LOOP_PLAIN);
  if (s->parts == 1) each_tap(r, true);
}

static void do_results(Rows *r, const Aff *block) {
  Gen *g = r->g;
  const Stencil *s = r->s;
  int64_t rest = s->row.n % s->height, full = s->row.n / s->height;
  int var;
  if (!rest) {
    do_block(r, *block, s->height);
    return;
  }
  if (full) {
    Aff next = *block;
    next.k++;
    Val lo = aff_value(g, block), hi = aff_value(g, &next);
    gen_at(g, g->depth);
    hi = gen_min(g, hi, gen_i64(g, full));
    Loop once = loop_open(g, lo, hi, gen_i64(g, 1), 0, full - 1, &var);
    do_block(r, aff_var(var, 1), s->height);
    loop_close(g, &once, LOOP_PLAIN);
  }
  do_if(r, block, full, full, rest);
}

/* The sums of a task, or all of them, in the workspace. */
static Val parts_at(const Rows *r, const Aff *task) {
  Gen *g = r->g;
  const Stencil *s = r->s;
  Aff at = aff_mul(*task, s->row.taps * s->col.taps * s->block);
  return pointer(g, g->bufs[g->n_bufs - 1], s->core->dtype, &at);
}

void gen_stencil(Gen *g, const Stencil *s, Val begin, Val end) {
  Rows r = {.g = g, .s = s};
  bool parts = g->part == LOOP_PARTS;
  LLVMTypeRef t = val_type(g, s->core->dtype);
  int64_t per = parts ? 1 : s->blocks_per_task, n = parts ? stencil_tasks(s, g->part) : s->blocks;
  int var;
  gen_at(g, 0);
  if (s->sums && s->parts == 1) {
    t = LLVMArrayType2(t, (uint64_t)(s->row.taps * s->col.taps * s->block));
    r.sums = LLVMBuildAlloca(g->b, t, "");
    LLVMSetAlignment(r.sums, 64);
  }
  Val from = LLVMBuildNSWMul(g->b, begin, gen_i64(g, per), "");
  Val to = gen_min(g, LLVMBuildNSWMul(g->b, end, gen_i64(g, per), ""), gen_i64(g, n));
  Loop l = loop_open(g, from, to, gen_i64(g, 1), 0, n - 1, &var);
  Aff e = n == 1 ? aff_k(0) : aff_var(var, 1), h = aff_k(0), b;
  if (s->parts > 1) r.sums = parts_at(&r, &e);
  if (!s->sums)
    aff_divmod(g, &e, s->n_height, &e, &h);
  else if (!parts) /* parts are outermost */
    aff_divmod(g, &e, s->n_outers * s->n_block, &h, &e);
  aff_divmod(g, &e, s->n_block, &e, &b);
  for (int i = s->n_outer - 1; i >= 0; i--)
    aff_divmod(g, &e, s->core->ext[s->outer[i]], &e, &r.at[s->outer[i]]);
  r.chan0 = aff_mul(b, s->block);
  if (parts)
    each_tap(&r, true);
  else if (s->sums)
    sum_positions(&r, &h);
  else
    do_results(&r, &h);
  loop_close(g, &l, LOOP_PLAIN);
}
