/* The loop nests of CUDA around emit(). In: a kernel's Nest and a launch; out: the body of its function.
 *
 * points  thread i takes the vectors i, i + threads of the grid, ... of results. All their loads come before their stores, at
 *         consecutive addresses, which LLVM makes loads and stores of vectors.
 * tiles   a block takes 32 x 32 results, or longer tiles where an axis is short: first it reads what is contiguous along axis a
 *         with neighbouring threads along a, into shared memory (its rows padded against bank conflicts), then it computes
 *         with neighbouring threads along b. Both times the same expressions are emitted; only these reads differ.
 * teams   cuda_team.c */
#include "cuda_gen.h"
#include <string.h>

Loop cuda_blocks(Gen *g, const CudaLaunch *l, int64_t n, int *var) {
  Val first = cuda_register(g, "ctaid.x");
  return loop_open(g, first, gen_i64(g, n), gen_i64(g, l->grid[0]), 0, n - 1, var);
}

void cuda_place(Gen *g, const Nest *t, int n_out, Aff at, Aff *out) {
  for (int a = n_out - 1; a > 0; a--) aff_divmod(g, &at, t->out[a].ext, &at, &out[a]);
  if (n_out) out[0] = at;
}

/* ---- vectors ---- */

/* May `n` elements from here on be one vector? Buffers are 16-byte aligned. */
static bool starts_vector(const Aff *at, int n) {
  bool even = at->k % n == 0;
  for (int i = 0; i < at->n; i++) even &= at->c[i] % n == 0;
  return even;
}

static unsigned vector_alignment(DType t, int n) {
  int bytes = n * dtype_info[t].size;
  return (unsigned)(bytes < 16 ? bytes : 16);
}

Val cuda_pack_load(Gen *g, const Node *n, int buf, const Aff *at, int least) {
  int64_t key[5 + 2 * AFF_TERMS] = {'w', buf}, size = g->pack;
  Aff first = *at;
  first.k -= (at->k % size + size) % size;
  if (node_numel(n) % size || !starts_vector(&first, g->pack)) return NULL;
  int length = 2 + aff_key(&first, key + 2);
  Memo *m = memo_find(g, key, length);
  if (!m) {
    Val p = emit_address(g, buf, n->dtype, &first);
    int depth = gen_depth(g, p) > least ? gen_depth(g, p) : least;
    gen_at(g, depth);
    LLVMTypeRef type = LLVMVectorType(mem_type(g, n->dtype), (unsigned)size);
    Val v = LLVMBuildLoad2(g->b, type, p, "");
    LLVMSetAlignment(v, vector_alignment(n->dtype, g->pack));
    m = memo_add(g, depth, key, length);
    m->v[0] = v;
  }
  gen_at(g, gen_depth(g, m->v[0]));
  Val i = LLVMConstInt(g->i32, (uint64_t)(at->k - first.k), 0);
  return val_of_mem(g, n->dtype, LLVMBuildExtractElement(g->b, m->v[0], i, ""));
}

void cuda_pack_store(Gen *g, int buf, DType t, int n, const Aff *at, const Val *v) {
  bool together = n > 1 && (n & (n - 1)) == 0 && starts_vector(&at[0], n);
  for (int i = 1; i < n; i++) {
    Aff next = at[0];
    next.k += i;
    together &= aff_equal(&at[i], &next);
  }
  for (int i = 0; i < n && g->copies; i++)
    if (!cuda_copy_store(g, t, buf, &at[i], v[i]))
      break;
    else if (i + 1 == n)
      return;
  for (int i = 0; i < n && !together; i++) {
    Val to = emit_address(g, buf, t, &at[i]);
    gen_at(g, g->depth);
    val_store(g, t, v[i], to);
  }
  if (!together) return;
  Val to = emit_address(g, buf, t, &at[0]);
  gen_at(g, g->depth);
  Val all = LLVMGetUndef(LLVMVectorType(mem_type(g, t), (unsigned)n));
  for (int i = 0; i < n; i++)
    all = LLVMBuildInsertElement(g->b, all, val_to_mem(g, t, v[i]),
                                 LLVMConstInt(g->i32, (uint64_t)i, 0), "");
  LLVMSetAlignment(LLVMBuildStore(g->b, all, to), vector_alignment(t, n));
}

/* ---- points ---- */

/* The points of vector `at`. */
static void do_vector(Work *w, int v, Aff at) {
  Gen *g = w->g;
  const Nest *t = w->t;
  int last = t->n_out - 1;
  Aff inner;
  if (v > 1) {
    aff_divmod(g, &at, t->out[last].ext / v, &at, &inner);
    cuda_place(g, t, last, at, w->out);
    w->out[last] = aff_mul(inner, v);
  } else {
    cuda_place(g, t, t->n_out, at, w->out);
  }
  g->sweep = 0;
  inner = last >= 0 ? w->out[last] : aff_k(0);
  g->pack = v;
  do_points(w, v > 1 ? &w->out[last] : NULL, &inner, v);
  g->pack = 0;
}

static void points_of_grid(Work *w, const CudaLaunch *l, int v) {
  Gen *g = w->g;
  int var;
  int64_t n = w->t->rows / v;
  Val size = gen_i64(g, l->block[0]), block = cuda_register(g, "ctaid.x");
  Val from = LLVMBuildNSWMul(g->b, block, size, "");
  from = LLVMBuildNSWAdd(g->b, from, cuda_register(g, "tid.x"), "");
  Loop loop = loop_open(g, from, gen_i64(g, n), gen_i64(g, (int64_t)l->grid[0] * l->block[0]), 0,
                        n - 1, &var);
  do_vector(w, v, n == 1 ? aff_k(0) : aff_var(var, 1));
  loop_close(g, &loop, LOOP_PLAIN);
}

/* A block does neighbouring points, whose spans it copies. */
static void points_of_block(Work *w, const CudaLaunch *l, int v) {
  Gen *g = w->g;
  const Nest *t = w->t;
  const CudaSpans *spans = l->stage->spans;
  int64_t per = spans->points / v, n = t->rows / v, blocks = (n + per - 1) / per;
  int var;
  if (spans->boxes) blocks = cuda_box_blocks(t, spans);
  CudaCopies *c = cuda_copies_new(g, t, spans);
  Loop loop = cuda_blocks(g, l, blocks, &var);
  Aff block = blocks == 1 ? aff_k(0) : aff_var(var, 1), first = aff_mul(block, per);
  Val many = gen_i64(g, n < per ? n : per);
  if (spans->boxes) first = cuda_box_first(g, t, spans, &block, &many);
  Val from = aff_value(g, &first);
  gen_at(g, g->depth);
  if (!spans->boxes && n % per && n > per)
    many = gen_min(g, many, LLVMBuildNSWSub(g->b, gen_i64(g, n), from, ""));
  first = aff_mul(first, v);
  Aff all = aff_k(0);
  Val values = v > 1 ? LLVMBuildNSWMul(g->b, many, gen_i64(g, v), "") : many;
  cuda_copies_fill(g, c, &first, values, &all);
  g->copies = c;
  gen_at(g, 0);
  Loop points = loop_open(g, cuda_register(g, "tid.x"), many, gen_i64(g, l->block[0]), 0,
                          (n < per ? n : per) - 1, &var);
  Val at = LLVMBuildNSWAdd(g->b, from, points.phi, "");
  do_vector(w, v, n == 1 ? aff_k(0) : aff_var(gen_var(g, at, 0, n - 1), 1));
  loop_close(g, &points, LOOP_PLAIN);
  g->copies = NULL;
  cuda_copies_flush(g, c, cuda_copies_results(c));
  loop_close(g, &loop, LOOP_PLAIN);
}

static void points_of(Gen *g, int i, const CudaLaunch *l) {
  Nest t;
  Work *w = arena_new_of(g->a, Work);
  nest_plan(g, i, &t);
  if (l->stage->spans) cuda_reorder(&t, l->stage->spans);
  *w = (Work){.g = g, .t = &t};
  g->columns = false;
  plan_sweeps(w);
  if (t.rows == 0) return;
  int v = cuda_points_vector(g, &t);
  if (l->stage->spans)
    points_of_block(w, l, l->stage->spans->boxes ? 1 : v);
  else
    points_of_grid(w, l, v);
}

void cuda_points(Gen *g, const CudaLaunch *l) {
  for (int i = 0; i < nest_n(g->k, g->part); i++) points_of(g, i, l);
}

/* ---- tiles ---- */

enum { MOST_STAGED = 4 };

struct CudaTile {
  bool collect;     /* the first time */
  int var_a, var_b; /* where the point is along the axes */
  int n, at;        /* reads of a point; the next one */
  DType type[MOST_STAGED];
  Val read[MOST_STAGED];   /* the first time */
  Val shared[MOST_STAGED]; /* the second time: where each one is */
};

static int64_t factor(const Aff *x, int var) {
  for (int i = 0; i < x->n; i++)
    if (x->var[i] == var) return x->c[i];
  return 0;
}

bool cuda_tile_load(Gen *g, DType t, const Aff *at, Val *v) {
  CudaTile *c = g->tile;
  int64_t b = factor(at, c->var_b);
  if (factor(at, c->var_a) != 1 || b == 0 || b == 1 || c->at == MOST_STAGED || t == DT_BOOL)
    return false;
  if (c->collect) {
    c->type[c->at] = t;
  } else {
    gen_at(g, g->depth);
    *v = LLVMBuildLoad2(g->b, val_type(g, t), c->shared[c->at++], "");
  }
  return true;
}

void cuda_tile_loaded(Gen *g, Val v) {
  g->tile->read[g->tile->at++] = v;
  g->tile->n = g->tile->at;
}

typedef struct Tiling {
  Work *w;
  const CudaStage *s;
  CudaTile tile;
  Aff ta, tb, tid;
} Tiling;

/* Kept below n; *ok (NULL: always) = it was. */
static Aff below(Gen *g, const Aff *at, int64_t n, Val *ok) {
  int64_t lo, hi;
  aff_range(g, at, &lo, &hi);
  if (hi < n) return *at;
  Val v = aff_value(g, at);
  gen_at(g, gen_depth(g, v));
  *ok = gen_and(g, *ok, LLVMBuildICmp(g->b, LLVMIntSLT, v, gen_i64(g, n), ""));
  gen_at(g, gen_depth(g, v));
  return aff_var(gen_var(g, gen_min(g, v, gen_i64(g, n - 1)), lo, n - 1), 1);
}

/* Point j of a thread, the tile counted along the rows of `width`. */
static void place_point(Tiling *s, int j, int width, int height, Aff *row, Aff *col, Val *ok) {
  Gen *g = s->w->g;
  Aff skip = aff_k((int64_t)j * CUDA_THREADS), at = aff_add(g, &s->tid, &skip);
  aff_divmod(g, &at, width, row, col);
  *row = below(g, row, height, ok);
}

/* The variable of an axis at place `off` of tile `tile`. */
static int tile_axis(Gen *g, int64_t ext, int size, const Aff *tile, const Aff *off, Val *ok) {
  Aff at = aff_mul(*tile, size);
  at = aff_add(g, &at, off);
  at = below(g, &at, ext, ok);
  return gen_var(g, aff_value(g, &at), 0, ext - 1);
}

/* Where point (a, b) of read i is kept. */
static Val shared_at(Tiling *s, int i, const Aff *a, const Aff *b) {
  Gen *g = s->w->g;
  LLVMTypeRef type = val_type(g, s->tile.type[i]);
  Aff at = aff_mul(*a, s->s->step_a), along_b = aff_mul(*b, s->s->step_b);
  at = aff_add(g, &at, &along_b);
  Val v = aff_value(g, &at);
  gen_at(g, gen_depth(g, v));
  char name[16];
  snprintf(name, sizeof name, "tile%d", i);
  Val p = cuda_shared(g, name, type,
                      (s->s->size_a - 1) * s->s->step_a + (s->s->size_b - 1) * s->s->step_b + 1);
  return LLVMBuildInBoundsGEP2(g->b, type, p, &v, 1, "");
}

static int tile_steps(const Tiling *s) {
  return (s->s->size_a * s->s->size_b + CUDA_THREADS - 1) / CUDA_THREADS;
}

/* The axes of the point at (a, b) of the tile. */
static void set_axes(Tiling *s, const Aff *a, const Aff *b, Val *ok) {
  Work *w = s->w;
  const CudaStage *st = s->s;
  s->tile.var_a = tile_axis(w->g, w->t->out[st->a].ext, st->size_a, &s->ta, a, ok);
  s->tile.var_b = tile_axis(w->g, w->t->out[st->b].ext, st->size_b, &s->tb, b, ok);
  w->out[st->a] = aff_var(s->tile.var_a, 1);
  w->out[st->b] = aff_var(s->tile.var_b, 1);
}

static void emit_point(Tiling *s, Index *at, Val *v) {
  Work *w = s->w;
  Gen *g = w->g;
  Index ix = domain_index(w, false);
  s->tile.at = 0;
  g->point = &ix;
  for (int r = 0; r < w->t->roots.n; r++) {
    root_index(g, w->t, &w->t->roots.v[r], &ix, &at[r]);
    v[r] = emit(g, w->t->roots.v[r].n, &at[r]);
  }
  g->point = NULL;
}

static void fill(Tiling *s) {
  Work *w = s->w;
  Gen *g = w->g;
  Index *at = arena_array(g->a, Index, w->t->roots.n);
  Val *v = arena_array(g->a, Val, w->t->roots.n);
  s->tile.collect = true;
  for (int j = 0; j < tile_steps(s); j++) {
    Aff a, b;
    Val inside = NULL, ok = NULL;
    place_point(s, j, s->s->size_a, s->s->size_b, &b, &a, &inside);
    set_axes(s, &a, &b, &ok);
    Loop once;
    if (inside) once = cuda_if(g, inside);
    emit_point(s, at, v);
    for (int i = 0; i < s->tile.n; i++) {
      Val p = shared_at(s, i, &a, &b);
      gen_at(g, g->depth);
      LLVMBuildStore(g->b, s->tile.read[i], p);
    }
    if (inside) loop_close(g, &once, LOOP_PLAIN);
  }
}

static void drain(Tiling *s) {
  Work *w = s->w;
  Gen *g = w->g;
  int n = w->t->roots.n;
  s->tile.collect = false;
  for (int j = 0; j < tile_steps(s); j++) {
    Index *at = arena_array(g->a, Index, n);
    Val *v = arena_array(g->a, Val, n), ok = NULL;
    Aff a, b;
    place_point(s, j, s->s->size_b, s->s->size_a, &a, &b, &ok);
    set_axes(s, &a, &b, &ok);
    for (int i = 0; i < s->tile.n; i++) s->tile.shared[i] = shared_at(s, i, &a, &b);
    g->active = ok;
    emit_point(s, at, v);
    Loop once;
    if (ok) once = cuda_if(g, ok);
    for (int r = 0; r < n; r++) store_root(w, &w->t->roots.v[r], v[r], &at[r]);
    if (ok) loop_close(g, &once, LOOP_PLAIN);
    g->active = NULL;
  }
}

void cuda_tiles(Gen *g, const CudaLaunch *l) {
  Nest t;
  int var;
  nest_plan(g, 0, &t);
  Tiling *s = arena_new_of(g->a, Tiling);
  s->w = arena_new_of(g->a, Work);
  *s->w = (Work){.g = g, .t = &t};
  s->s = l->stage;
  g->columns = false;
  plan_sweeps(s->w);
  g->sweep = 0;
  int64_t ea = t.out[s->s->a].ext, eb = t.out[s->s->b].ext, rest = t.rows / ea / eb;
  int64_t na = (ea + s->s->size_a - 1) / s->s->size_a, nb = (eb + s->s->size_b - 1) / s->s->size_b;
  s->tid = cuda_index(g, "tid.x", CUDA_THREADS);
  Loop loop = cuda_blocks(g, l, na * nb * rest, &var);
  Aff at = na * nb * rest == 1 ? aff_k(0) : aff_var(var, 1);
  aff_divmod(g, &at, nb, &at, &s->tb);
  aff_divmod(g, &at, na, &at, &s->ta);
  for (int x = t.n_out - 1; x >= 0; x--)
    if (x != s->s->a && x != s->s->b) aff_divmod(g, &at, t.out[x].ext, &at, &s->w->out[x]);
  g->tile = &s->tile;
  cuda_barrier(g); /* the tile before this one has been read */
  fill(s);
  cuda_barrier(g);
  drain(s);
  g->tile = NULL;
  loop_close(g, &loop, LOOP_PLAIN);
}
