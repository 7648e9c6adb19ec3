/* Copies of blocks that are boxes. In: spans in pieces (backends/cuda/box.c); out: the code that copies each piece from one sector's
 * start to another's, 16 bytes a thread, finds an element of them, and writes results that begin anywhere in a sector. */
#include "cuda_gen.h"

enum { VECTOR = 16 };

static Val times(Gen *g, Val v, int64_t n) { return LLVMBuildNSWMul(g->b, v, gen_i64(g, n), ""); }
static Val plus(Gen *g, Val x, Val y) { return LLVMBuildNSWAdd(g->b, x, y, ""); }
static Val less(Gen *g, Val x, Val y) { return LLVMBuildICmp(g->b, LLVMIntSLT, x, y, ""); }
static Val both(Gen *g, Val x, Val y) { return LLVMBuildAnd(g->b, x, y, ""); }

/* The sector's first element. */
static Val down(Gen *g, const CudaSpan *s, Val v) {
  return both(g, v, gen_i64(g, -(int64_t)(CUDA_SECTOR / s->bytes)));
}
static Val up(Gen *g, const CudaSpan *s, Val v) {
  return down(g, s, plus(g, v, gen_i64(g, CUDA_SECTOR / s->bytes - 1)));
}

Aff cuda_box_first(Gen *g, const Nest *t, const CudaSpans *s, const Aff *block, Val *n) {
  int64_t ext = t->out[s->cut].ext, inside = cuda_inside(t, s->cut), m = s->across;
  Aff outer, here, first;
  aff_divmod(g, block, (ext + m - 1) / m, &outer, &here);
  outer = aff_mul(outer, ext * inside);
  first = aff_mul(here, m * inside);
  first = aff_add(g, &outer, &first);
  *n = gen_i64(g, m * inside);
  if (ext % m == 0) return first;
  Val at = aff_value(g, &here);
  gen_at(g, g->depth);
  Val left = LLVMBuildNSWSub(g->b, gen_i64(g, ext), times(g, at, m), "");
  *n = times(g, gen_min(g, left, gen_i64(g, m)), inside);
  return first;
}

static int64_t pitch_of(const CudaSpan *s) {
  return s->n_piece ? s->piece[s->n_piece - 1].pitch : s->length;
}

/* Where piece `piece` begins in the buffer; *ok: the block has it. */
static Val piece_start(Gen *g, const CudaSpan *s, Val piece, Val start, Val cut, Val chunk,
                       Val *ok) {
  *ok = LLVMConstInt(g->i1, 1, 0);
  for (int i = s->n_piece - 1; i >= 0; i--) {
    const CudaPiece *p = &s->piece[i];
    Val digit = i ? LLVMBuildURem(g->b, piece, gen_i64(g, p->ext), "") : piece;
    if (i) piece = LLVMBuildUDiv(g->b, piece, gen_i64(g, p->ext), "");
    start = plus(g, start, times(g, digit, p->step));
    if (p->cut) *ok = both(g, *ok, less(g, digit, cut));
    if (p->chunk && chunk) *ok = both(g, *ok, less(g, digit, chunk));
  }
  return start;
}

/* The length of a run. */
static Val run_of(Gen *g, const CudaSpan *s, const CudaSpans *all, Val cut, Val chunk) {
  Val run = gen_i64(g, s->run);
  if (s->per_cut) {
    Val missing = LLVMBuildNSWSub(g->b, gen_i64(g, all->across), cut, "");
    run = LLVMBuildNSWSub(g->b, run, times(g, missing, s->per_cut), "");
  }
  if (s->per_chunk && chunk) {
    Val missing = LLVMBuildNSWSub(g->b, gen_i64(g, all->chunk), chunk, "");
    run = LLVMBuildNSWSub(g->b, run, times(g, missing, s->per_chunk), "");
  }
  return run;
}

/* Part of a piece that a thread copies. */
typedef struct Chip {
  Val at, to, ok; /* elements in the buffer and in shared memory; is it needed? */
} Chip;

/* Vector v, of n elements, of all pieces: what lies in a sector of which some is needed; exactly, what is needed. */
static Chip chip_of(Gen *g, const CudaSpan *s, int n, Val v, Val start, Val run, Val cut,
                    Val chunk) {
  Chip c = {.to = times(g, v, n)};
  Val size = gen_i64(g, pitch_of(s) / n), rest = LLVMBuildURem(g->b, v, size, "");
  start = piece_start(g, s, LLVMBuildUDiv(g->b, v, size, ""), start, cut, chunk, &c.ok);
  c.at = plus(g, down(g, s, start), times(g, rest, n));
  Val end = plus(g, start, run), from = s->exact ? start : gen_i64(g, 0);
  c.ok = both(g, c.ok, less(g, c.at, s->exact ? end : up(g, s, end)));
  c.ok = both(g, c.ok, LLVMBuildNot(g->b, less(g, c.at, from), ""));
  return c;
}

/* Elements of a vector as words. */
static int words_of(const CudaSpan *s) { return VECTOR / (s->bytes == 8 ? 8 : 4); }

static void put_vector(Gen *g, const CudaSpan *s, Val shared, Val to, Val all) {
  if (!s->pad) {
    cuda_store_to(g, all, cuda_span_place(g, s, shared, to), VECTOR);
    return;
  }
  for (int k = 0; k < words_of(s); k++) {
    Val x = LLVMBuildExtractElement(g->b, all, LLVMConstInt(g->i32, (uint64_t)k, 0), "");
    cuda_store_to(g, x, cuda_span_place(g, s, shared, plus(g, to, gen_i64(g, k))), s->bytes);
  }
}

static Val get_vector(Gen *g, const CudaSpan *s, Val shared, Val from) {
  LLVMTypeRef type = LLVMVectorType(cuda_word_type(g, s), (unsigned)words_of(s));
  if (!s->pad) return cuda_load_of(g, type, cuda_span_place(g, s, shared, from), VECTOR);
  Val all = LLVMGetUndef(type);
  for (int k = 0; k < words_of(s); k++) {
    Val near = cuda_span_place(g, s, shared, plus(g, from, gen_i64(g, k)));
    Val x = cuda_load_of(g, cuda_word_type(g, s), near, s->bytes);
    all = LLVMBuildInsertElement(g->b, all, x, LLVMConstInt(g->i32, (uint64_t)k, 0), "");
  }
  return all;
}

/* A thread for each element: neighbours of pieces are in the same sectors, wherever they begin. */
void cuda_box_exact(Gen *g, const CudaSpan *s, const CudaSpans *all, Val shared, Val start, Val cut,
                    Val chunk) {
  int var;
  gen_at(g, g->depth);
  Val run = run_of(g, s, all, cut, chunk);
  Loop loop = loop_open(g, cuda_register(g, "tid.x"), gen_i64(g, s->length),
                        gen_i64(g, all->threads), 0, s->length, &var);
  gen_at(g, g->depth);
  Chip c = chip_of(g, s, 1, loop.phi, start, run, cut, chunk);
  Loop once = cuda_if(g, c.ok);
  gen_at(g, g->depth);
  Val near = cuda_span_place(g, s, shared, c.to), far = cuda_span_far(g, s, c.at, gen_i64(g, 0));
  Val x = cuda_load_of(g, cuda_element_type(g, s), s->result ? near : far, s->bytes);
  cuda_store_to(g, x, s->result ? far : near, s->bytes);
  loop_close(g, &once, LOOP_PLAIN);
  loop_close(g, &loop, LOOP_PLAIN);
}

void cuda_box_fill(Gen *g, const CudaSpan *s, const CudaSpans *all, Val shared, Val start, Val cut,
                   Val chunk) {
  int var, n = VECTOR / s->bytes;
  LLVMTypeRef type = LLVMVectorType(cuda_word_type(g, s), (unsigned)words_of(s));
  gen_at(g, g->depth);
  Val run = run_of(g, s, all, cut, chunk), size = gen_i64(g, s->size);
  Loop loop = loop_open(g, cuda_register(g, "tid.x"), gen_i64(g, s->length / n),
                        gen_i64(g, all->threads), 0, s->length / n, &var);
  gen_at(g, g->depth);
  Chip c = chip_of(g, s, n, loop.phi, start, run, cut, chunk);
  Val whole = less(g, plus(g, c.at, gen_i64(g, n - 1)), size);
  Val ok = both(g, c.ok, whole), none = LLVMBuildNot(g->b, ok, "");
  Loop once = cuda_if(g, ok);
  gen_at(g, g->depth);
  Val far = cuda_span_far(g, s, c.at, gen_i64(g, 0));
  put_vector(g, s, shared, c.to, cuda_load_of(g, type, far, VECTOR));
  loop_close(g, &once, LOOP_PLAIN);
  once = cuda_if(g, none);
  gen_at(g, g->depth);
  put_vector(g, s, shared, c.to, LLVMConstNull(type));
  for (int k = 0; k < n && s->size % n; k++) { /* the buffer's last elements */
    Val at = plus(g, c.at, gen_i64(g, k));
    Loop last = cuda_if(g, both(g, c.ok, less(g, at, size)));
    gen_at(g, g->depth);
    Val near = cuda_span_place(g, s, shared, plus(g, c.to, gen_i64(g, k)));
    far = cuda_span_far(g, s, at, gen_i64(g, 0));
    cuda_store_to(g, cuda_load_of(g, cuda_element_type(g, s), far, s->bytes), near, s->bytes);
    loop_close(g, &last, LOOP_PLAIN);
    gen_at(g, g->depth);
  }
  loop_close(g, &once, LOOP_PLAIN);
  loop_close(g, &loop, LOOP_PLAIN);
}

Val cuda_box_find(Gen *g, const CudaSpan *s, Val start, Val v) {
  int64_t per = CUDA_SECTOR / s->bytes;
  Val at = gen_i64(g, 0), from = start;
  if (!s->result) { /* what lies outside is read as well, and not used */
    int64_t most = s->run - 1;
    for (int i = 0; i < s->n_piece; i++) most += (s->piece[i].ext - 1) * s->piece[i].step;
    v = gen_min(g, gen_max(g, v, gen_i64(g, 0)), gen_i64(g, most));
  }
  v = LLVMBuildTrunc(g->b, v, g->i32, "");
  for (int i = 0; i < s->n_piece; i++) {
    Val step = LLVMConstInt(g->i32, (uint64_t)s->piece[i].step, 0);
    Val digit = LLVMBuildUDiv(g->b, v, step, "");
    v = LLVMBuildURem(g->b, v, step, "");
    digit = LLVMBuildZExt(g->b, digit, g->i64, "");
    if (i && s->piece[i - 1].step > s->piece[i].ext * s->piece[i].step)
      digit = gen_min(g, digit, gen_i64(g, s->piece[i].ext - 1));
    at = plus(g, at, times(g, digit, s->piece[i].pitch));
    if (s->piece[i].step % per) from = plus(g, from, times(g, digit, s->piece[i].step));
  }
  v = LLVMBuildZExt(g->b, v, g->i64, "");
  if (s->n_piece) v = gen_min(g, v, gen_i64(g, s->run - 1));
  from = both(g, from, gen_i64(g, per - 1));
  return plus(g, at, plus(g, from, v));
}

/* A piece that is written: its first sector's first element, its whole sectors' range, its own, and its place in shared memory. */
typedef struct Strip {
  Val base, from, to, start, end, near, ok;
} Strip;

static Strip strip_of(Gen *g, const CudaSpan *s, Val piece, Val start, Val run, Val cut) {
  Strip p;
  p.start = piece_start(g, s, piece, start, cut, NULL, &p.ok);
  p.base = down(g, s, p.start);
  p.end = plus(g, p.start, run);
  p.from = up(g, s, p.start);
  p.to = gen_max(g, down(g, s, p.end), p.from);
  p.near = times(g, piece, pitch_of(s));
  return p;
}

static Val place_in(Gen *g, const Strip *p, Val at) {
  return plus(g, p->near, LLVMBuildNSWSub(g->b, at, p->base, ""));
}

/* Thread `v` writes its element of the first and the last sectors. */
static void write_ends(Gen *g, const CudaSpan *s, Val shared, Val v, Val start, Val run, Val cut) {
  int per = CUDA_SECTOR / s->bytes;
  Val piece = LLVMBuildUDiv(g->b, v, gen_i64(g, 2 * per), "");
  Val rest = LLVMBuildURem(g->b, v, gen_i64(g, 2 * per), "");
  Strip p = strip_of(g, s, piece, start, run, cut);
  Val head = less(g, rest, gen_i64(g, per));
  Val back = plus(g, p.to, LLVMBuildNSWSub(g->b, rest, gen_i64(g, per), ""));
  Val at = LLVMBuildSelect(g->b, head, plus(g, p.base, rest), back, "");
  Val inside = both(g, less(g, at, p.end), LLVMBuildNot(g->b, less(g, at, p.start), ""));
  Val own = LLVMBuildOr(g->b, LLVMBuildNot(g->b, head, ""), less(g, at, p.from), "");
  Loop once = cuda_if(g, both(g, p.ok, both(g, inside, own)));
  gen_at(g, g->depth);
  Val near = cuda_span_place(g, s, shared, place_in(g, &p, at));
  Val x = cuda_load_of(g, cuda_element_type(g, s), near, s->bytes);
  cuda_store_to(g, x, cuda_span_far(g, s, at, gen_i64(g, 0)), s->bytes);
  loop_close(g, &once, LOOP_PLAIN);
}

void cuda_box_flush(Gen *g, const CudaSpan *s, const CudaSpans *all, Val shared, Val start,
                    Val cut) {
  int var, n = VECTOR / s->bytes, per = CUDA_SECTOR / s->bytes;
  int64_t pitch = pitch_of(s) / n, ends = s->length / pitch_of(s) * 2 * per;
  gen_at(g, g->depth);
  Val tid = cuda_register(g, "tid.x"), threads = gen_i64(g, all->threads);
  gen_at(g, g->depth);
  Val run = run_of(g, s, all, cut, NULL);
  Loop loop = loop_open(g, tid, gen_i64(g, s->length / n), threads, 0, s->length / n, &var);
  gen_at(g, g->depth);
  Val piece = LLVMBuildUDiv(g->b, loop.phi, gen_i64(g, pitch), "");
  Strip p = strip_of(g, s, piece, start, run, cut);
  Val rest = LLVMBuildURem(g->b, loop.phi, gen_i64(g, pitch), "");
  Val at = plus(g, p.from, times(g, rest, n));
  Loop once = cuda_if(g, both(g, p.ok, less(g, at, p.to)));
  gen_at(g, g->depth);
  Val x = get_vector(g, s, shared, place_in(g, &p, at));
  cuda_store_to(g, x, cuda_span_far(g, s, at, gen_i64(g, 0)), VECTOR);
  loop_close(g, &once, LOOP_PLAIN);
  loop_close(g, &loop, LOOP_PLAIN);
  loop = loop_open(g, tid, gen_i64(g, ends), threads, 0, ends - 1, &var);
  gen_at(g, g->depth);
  write_ends(g, s, shared, loop.phi, start, run, cut);
  loop_close(g, &loop, LOOP_PLAIN);
}
