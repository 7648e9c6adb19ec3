/* Spans of buffers in shared memory. In: the spans of a block's points (backends/cuda/span.c); out: the code that copies them,
 * 16 bytes a thread, from one sector's start to another's, and the reads and writes that go there. Where neighbouring threads
 * read every second, fourth, ... element, one is left out after 32, so that they are in different banks. */
#include "cuda_gen.h"

enum { VECTOR = 16 };

struct CudaCopies {
  const Nest *t;
  int64_t row; /* JOINS: of results */
  const CudaSpans *spans;
  struct {
    Val shared, base,
        count; /* elements: where the span begins in its buffer, how many there are; of boxes indices of `cut` */
    Val chunk; /* of boxes: indices of the sum that goes by chunks; NULL: all */
    Aff from;
  } at[CUDA_SPANS];
};

LLVMTypeRef cuda_word_type(Gen *g, const CudaSpan *s) { return s->bytes == 8 ? g->i64 : g->i32; }

LLVMTypeRef cuda_element_type(Gen *g, const CudaSpan *s) {
  return s->bytes == 1 ? g->i8 : s->bytes == 2 ? g->i16 : cuda_word_type(g, s);
}

static int per_vector(const CudaSpan *s) { return VECTOR / s->bytes; }

/* Element i of the span in shared memory. */
Val cuda_span_place(Gen *g, const CudaSpan *s, Val shared, Val i) {
  if (s->pad) {
    Val skip = LLVMBuildUDiv(g->b, i, LLVMConstInt(LLVMTypeOf(i), (uint64_t)s->pad, 0), "");
    i = LLVMBuildNSWAdd(g->b, i, skip, "");
  }
  return LLVMBuildInBoundsGEP2(g->b, cuda_element_type(g, s), shared, &i, 1, "");
}

Val cuda_span_far(Gen *g, const CudaSpan *s, Val base, Val i) {
  Val at = LLVMBuildNSWAdd(g->b, base, i, "");
  return LLVMBuildInBoundsGEP2(g->b, cuda_element_type(g, s), g->bufs[s->buffer], &at, 1, "");
}

Val cuda_load_of(Gen *g, LLVMTypeRef t, Val p, int align) {
  Val v = LLVMBuildLoad2(g->b, t, p, "");
  LLVMSetAlignment(v, (unsigned)align);
  return v;
}

void cuda_store_to(Gen *g, Val v, Val p, int align) {
  LLVMSetAlignment(LLVMBuildStore(g->b, v, p), (unsigned)align);
}

/* Elements i .. i + per_vector - 1. */
static void copy_vector(Gen *g, const CudaSpan *s, Val shared, Val base, Val i) {
  LLVMTypeRef word = cuda_word_type(g, s);
  int n = VECTOR / (s->bytes == 8 ? 8 : 4);
  LLVMTypeRef type = LLVMVectorType(word, (unsigned)n);
  Val far = cuda_span_far(g, s, base, i);
  if (!s->pad) {
    Val near = cuda_span_place(g, s, shared, i);
    cuda_store_to(g, cuda_load_of(g, type, s->result ? near : far, VECTOR), s->result ? far : near,
                  VECTOR);
    return;
  }
  Val all = s->result ? LLVMGetUndef(type) : cuda_load_of(g, type, far, VECTOR);
  for (int k = 0; k < n; k++) {
    Val lane = LLVMConstInt(g->i32, (uint64_t)k, 0);
    Val near = cuda_span_place(g, s, shared, LLVMBuildNSWAdd(g->b, i, gen_i64(g, k), ""));
    if (s->result)
      all = LLVMBuildInsertElement(g->b, all, cuda_load_of(g, word, near, s->bytes), lane, "");
    else
      cuda_store_to(g, LLVMBuildExtractElement(g->b, all, lane, ""), near, s->bytes);
  }
  if (s->result) cuda_store_to(g, all, far, VECTOR);
}

/* count elements from base on, which is a multiple of a vector. */
static void copy_span(Gen *g, const CudaSpan *s, int at_once, Val shared, Val base, Val count) {
  int var, v = per_vector(s);
  gen_at(g, g->depth);
  Val tid = cuda_register(g, "tid.x"), size = gen_i64(g, v), threads = gen_i64(g, at_once);
  gen_at(g, g->depth);
  Val vectors = LLVMBuildUDiv(g->b, count, size, "");
  Loop loop = loop_open(g, tid, vectors, threads, 0, s->length / v, &var);
  gen_at(g, g->depth);
  copy_vector(g, s, shared, base, LLVMBuildNSWMul(g->b, loop.phi, size, ""));
  loop_close(g, &loop, LOOP_PLAIN);
  if (s->size % v == 0) return;
  gen_at(g, g->depth);
  Val first = LLVMBuildNSWAdd(g->b, LLVMBuildNSWMul(g->b, vectors, size, ""), tid, "");
  loop = loop_open(g, first, count, threads, 0, s->length, &var);
  gen_at(g, g->depth);
  Val far = cuda_span_far(g, s, base, loop.phi), near = cuda_span_place(g, s, shared, loop.phi);
  Val from = s->result ? near : far, to = s->result ? far : near;
  cuda_store_to(g, cuda_load_of(g, cuda_element_type(g, s), from, s->bytes), to, s->bytes);
  loop_close(g, &loop, LOOP_PLAIN);
}

/* The element of a part of a concatenation that belongs at result *p, or next to it; *mine: it does. */
static Aff join_place(Gen *g, const CudaSpan *s, int64_t row, const Aff *p, Val *mine) {
  Aff above, at, back = aff_k(-s->part_at);
  aff_divmod(g, p, row, &above, &at);
  at = aff_add(g, &at, &back);
  Val v = aff_value(g, &at);
  gen_at(g, gen_depth(g, v));
  if (mine) *mine = LLVMBuildICmp(g->b, LLVMIntULT, v, gen_i64(g, s->part), "");
  v = gen_min(g, gen_max(g, v, gen_i64(g, 0)), gen_i64(g, s->part - 1));
  at = aff_var(gen_var(g, v, 0, s->part - 1), 1);
  above = aff_mul(above, s->part);
  return aff_add(g, &above, &at);
}

/* Loop by loop. */
static Aff place_on_axis(Gen *g, const Nest *t, const CudaSpan *s, const Axis *x, Aff at) {
  Aff sum = aff_k(0), digit;
  for (int l = x->last; l >= x->first; l--) {
    if (l > x->first)
      aff_divmod(g, &at, t->ext[l], &at, &digit);
    else
      digit = at;
    digit = aff_mul(digit, s->of[l]);
    sum = aff_add(g, &sum, &digit);
  }
  return sum;
}

/* The place of point *p, and of sums skip[]. */
static Val place_of_point(Gen *g, const CudaCopies *c, const CudaSpan *s, const Aff *p,
                          const Aff *skip) {
  const Nest *t = c->t;
  Aff out[KL_LOOPS], sum = aff_k(0);
  for (int a = 0; a <= c->spans->chunked; a++) {
    Aff x = aff_mul(skip[a], s->chunk_step[a]);
    sum = aff_add(g, &sum, &x);
  }
  if (s->part) {
    sum = join_place(g, s, c->row, p, NULL);
  } else if (!s->whole) {
    cuda_place(g, t, t->n_out, *p, out);
    for (int a = 0; a < t->n_out; a++) {
      Aff x = s->uneven >> a & 1 ? place_on_axis(g, t, s, &t->out[a], out[a])
                                 : aff_mul(out[a], s->step[a]);
      sum = aff_add(g, &sum, &x);
    }
  }
  return aff_value(g, &sum);
}

/* The element of a place, kept in the buffer. */
static Val inside(Gen *g, const CudaSpan *s, Val v, int64_t off) {
  v = LLVMBuildNSWAdd(g->b, v, gen_i64(g, off), "");
  if (off) v = gen_max(g, v, gen_i64(g, 0));
  if (s->parts > 1) v = LLVMBuildUDiv(g->b, v, gen_i64(g, s->parts), "");
  return gen_min(g, v, gen_i64(g, s->size - 1));
}

/* Where span i begins and ends, for the points from..last. */
static void place_span(Gen *g, CudaCopies *c, int i, const Aff *from, const Aff *last,
                       const Aff *skip) {
  const CudaSpan *s = &c->spans->v[i];
  int64_t per = CUDA_SECTOR / s->bytes;
  Val start = place_of_point(g, c, s, from, skip), end = place_of_point(g, c, s, last, skip);
  gen_at(g, g->depth);
  start = inside(g, s, start, s->lo);
  end = inside(g, s, end, s->hi);
  Val base = LLVMBuildAnd(g->b, start, gen_i64(g, -per), "");
  end = LLVMBuildOr(g->b, end, gen_i64(g, per - 1), "");
  end = gen_min(g, end, gen_i64(g, s->size - 1));
  Val count = LLVMBuildNSWSub(g->b, end, base, "");
  c->at[i].base = base;
  c->at[i].count = LLVMBuildNSWAdd(g->b, count, gen_i64(g, 1), "");
  c->at[i].from = aff_var(gen_var(g, base, 0, s->size - 1), 1);
}

CudaCopies *cuda_copies_new(Gen *g, const Nest *t, const CudaSpans *spans) {
  CudaCopies *c = arena_new_of(g->a, CudaCopies);
  c->t = t;
  for (int i = 0; i < spans->n; i++) c->row += spans->v[i].part;
  c->spans = spans;
  for (int i = 0; i < spans->n; i++) {
    const CudaSpan *s = &spans->v[i];
    int64_t n = s->length + (s->pad ? s->length / s->pad + 1 : 0),
            bytes = cuda_word_type(g, s) == g->i64 ? 8 : 4;
    char name[16];
    snprintf(name, sizeof name, "span%d", i);
    c->at[i].shared = cuda_shared(g, name, cuda_word_type(g, s), (n * s->bytes + VECTOR) / bytes);
    Aff none = aff_k(0);
    if (!s->whole || s->chunk_step[0] || spans->boxes) continue;
    place_span(g, c, i, &none, &none, &none);
    copy_span(g, s, c->spans->threads, c->at[i].shared, c->at[i].base, c->at[i].count);
  }
  return c;
}

static void fill_box(Gen *g, CudaCopies *c, int i, const Aff *first, Val n, const Aff *skip) {
  enum { FAR = 1 << 20 };
  const CudaSpans *all = c->spans;
  const CudaSpan *s = &all->v[i];
  const Nest *t = c->t;
  Val start = place_of_point(g, c, s, first, skip), passed = aff_value(g, &skip[all->chunked]);
  gen_at(g, g->depth);
  start = LLVMBuildNSWAdd(g->b, start, gen_i64(g, s->lo), "");
  c->at[i].base = start;
  c->at[i].from = aff_var(gen_var(g, start, -FAR, s->size + FAR), 1);
  gen_at(g, g->depth);
  Val cut = LLVMBuildUDiv(g->b, n, gen_i64(g, cuda_inside(t, all->cut)), ""), chunk = NULL;
  c->at[i].count = cut;
  if (all->chunk) {
    chunk = LLVMBuildNSWSub(g->b, gen_i64(g, t->sum[all->chunked].ext), passed, "");
    chunk = gen_min(g, chunk, gen_i64(g, all->chunk));
  }
  c->at[i].chunk = chunk;
  if (s->result) return;
  (s->exact ? cuda_box_exact : cuda_box_fill)(g, s, all, c->at[i].shared, start, cut, chunk);
}

void cuda_copies_fill(Gen *g, CudaCopies *c, const Aff *first, Val n, const Aff *skip) {
  Val from = aff_value(g, first);
  gen_at(g, g->depth);
  Val last = LLVMBuildNSWSub(g->b, LLVMBuildNSWAdd(g->b, from, n, ""), gen_i64(g, 1), "");
  Aff end = aff_var(gen_var(g, last, 0, c->t->rows - 1), 1);
  cuda_barrier(g);
  for (int i = 0; i < c->spans->n; i++) {
    const CudaSpan *s = &c->spans->v[i];
    if (c->spans->boxes) {
      fill_box(g, c, i, first, n, skip);
      continue;
    }
    if (s->whole && !s->chunk_step[0]) continue;
    if (!s->result) {
      place_span(g, c, i, first, &end, skip);
      copy_span(g, s, c->spans->threads, c->at[i].shared, c->at[i].base, c->at[i].count);
      continue;
    }
    Val base = place_of_point(g, c, s, first, skip);
    gen_at(g, g->depth);
    c->at[i].base = base;
    c->at[i].count = LLVMBuildNSWMul(g->b, n, gen_i64(g, c->t->n_sums), "");
    c->at[i].from = aff_var(gen_var(g, base, 0, s->size - 1), 1);
  }
  cuda_barrier(g);
}

uint32_t cuda_copies_results(const CudaCopies *c) {
  uint32_t all = 0;
  for (int i = 0; i < c->spans->n; i++) all |= (uint32_t)c->spans->v[i].result << i;
  return all;
}

void cuda_copies_flush(Gen *g, CudaCopies *c, uint32_t which) {
  if (which) cuda_barrier(g);
  for (int i = 0; i < c->spans->n; i++) {
    const CudaSpan *s = &c->spans->v[i];
    if (!(which >> i & 1)) continue;
    if (s->exact)
      cuda_box_exact(g, s, c->spans, c->at[i].shared, c->at[i].base, c->at[i].count,
                     c->at[i].chunk);
    else if (c->spans->boxes)
      cuda_box_flush(g, s, c->spans, c->at[i].shared, c->at[i].base, c->at[i].count);
    else
      copy_span(g, s, c->spans->threads, c->at[i].shared, c->at[i].base, c->at[i].count);
  }
}

/* Where an element is in shared memory; NULL: its buffer has no span. */
static Val find(Gen *g, int buf, const Aff *at) {
  CudaCopies *c = g->copies;
  for (int i = 0; i < c->spans->n; i++) {
    const CudaSpan *s = &c->spans->v[i];
    if (s->buffer != buf) continue;
    Aff back = aff_mul(c->at[i].from, -1), here = aff_add(g, at, &back);
    Val v = aff_value(g, &here);
    gen_at(g, g->depth);
    if (c->spans->boxes)
      return cuda_span_place(g, s, c->at[i].shared, cuda_box_find(g, s, c->at[i].base, v));
    v = LLVMBuildTrunc(g->b, v, g->i32, "");
    if (!s->result) { /* what lies outside is read as well, and not used */
      Val last = LLVMBuildTrunc(g->b, c->at[i].count, g->i32, "");
      last = LLVMBuildSub(g->b, last, LLVMConstInt(g->i32, 1, 0), "");
      v = gen_call(g, "llvm.umin", g->i32, 2, (Val[]){v, last});
    }
    v = LLVMBuildZExt(g->b, v, g->i64, "");
    return cuda_span_place(g, s, c->at[i].shared, v);
  }
  return NULL;
}

/* Results that leave by chunks are read where they went. */
Val cuda_copy_load(Gen *g, DType t, int buf, const Aff *at) {
  const CudaSpans *spans = g->copies->spans;
  bool gone = spans->boxes && spans->chunk && buf >= g->k->inputs.n;
  Val p = gone ? NULL : find(g, buf, at);
  return p ? val_load(g, t, p) : NULL;
}

bool cuda_copy_store(Gen *g, DType t, int buf, const Aff *at, Val v) {
  Val p = find(g, buf, at);
  if (p) val_store(g, t, v, p);
  return p != NULL;
}

/* ---- concatenations ---- */

void cuda_joins(Gen *g, const CudaLaunch *l) {
  Node *n = g->k->core;
  const CudaSpans *spans = l->stage->spans;
  int64_t all = node_numel(n), per = spans->points;
  int var;
  Nest t = {.rows = all};
  CudaCopies *c = cuda_copies_new(g, &t, spans);
  Loop loop = cuda_blocks(g, l, (all + per - 1) / per, &var);
  Aff first = aff_mul(aff_var(var, 1), per), none = aff_k(0);
  Val from = aff_value(g, &first), many = gen_i64(g, per);
  gen_at(g, g->depth);
  many = gen_min(g, many, LLVMBuildNSWSub(g->b, gen_i64(g, all), from, ""));
  cuda_copies_fill(g, c, &first, many, &none);
  g->copies = c;
  Loop points =
      loop_open(g, cuda_register(g, "tid.x"), many, gen_i64(g, CUDA_THREADS), 0, per - 1, &var);
  gen_at(g, g->depth);
  Aff at = aff_var(gen_var(g, LLVMBuildNSWAdd(g->b, from, points.phi, ""), 0, all - 1), 1);
  Val v = NULL;
  for (int i = 0; i < spans->n; i++) {
    Val mine;
    Aff place = join_place(g, &spans->v[i], c->row, &at, &mine);
    Val x = cuda_copy_load(g, n->dtype, spans->v[i].buffer, &place);
    v = v ? LLVMBuildSelect(g->b, mine, x, v, "") : x;
  }
  g->copies = NULL;
  Val to = emit_address(g, g->k->inputs.n, n->dtype, &at);
  gen_at(g, g->depth);
  val_store(g, n->dtype, v, to);
  loop_close(g, &points, LOOP_PLAIN);
  loop_close(g, &loop, LOOP_PLAIN);
}
