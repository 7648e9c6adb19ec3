/* Tags of words, of which only the run knows how many there are: viterbi_decode, the best tags of each sequence; chunk_eval,
 * how well the chunks that tags mark are found; sequence_erase, sequences without some tags. */
#include "control.h"
#include <string.h>

/* An input that must be a tensor of that rank (0: any). The caller drops it. */
static Value *tags_in(Control *c, Frame *f, Step *s, const char *slot, int rank) {
  Value *v = op_tensor(c, f, s, slot);
  if (!v || !rank || v->t.rank == rank) return v;
  op_refuses(s, slot, "has not the shape it needs");
  return NULL;
}

static Value *offsets_value(Control *c, int64_t n, const int64_t *offset) {
  Value *v = value_tensor(c, DT_INT64, 1, (int64_t[]){n + 1});
  if (v) memcpy(v->t.data, offset, sizeof *offset * (size_t)(n + 1));
  return v;
}

/* A list attribute. */
typedef struct Numbers {
  const int64_t *v;
  int n;
} Numbers;

static Numbers numbers(Control *c, const Op *op, const char *attr) {
  Numbers l;
  l.v = op_intlist(op, attr, c->arena, &l.n);
  return l;
}

static bool holds(const Numbers *l, double v) {
  for (int i = 0; i < l->n; i++)
    if (v == (double)l->v[i]) return true;
  return false;
}

/* ---- viterbi_decode ---- */

typedef struct Viterbi {
  const Tensor *in, *step; /* [B, T, K], [K, K] */
  int64_t steps, tags;
  bool ends;           /* the last row of `step` starts a sequence, the one before it ends it */
  double *best, *next; /* [K]: of the paths that end with each tag */
  int64_t *from;       /* [T, K]: the tag before */
} Viterbi;

static double step_score(const Viterbi *v, int64_t from, int64_t to) {
  return tensor_get(v->step, from * v->tags + to);
}

/* Appends step t of sequence b to the paths. */
static void extend(Viterbi *v, int64_t b, int64_t t, bool last) {
  for (int64_t to = 0; to < v->tags; to++) {
    double own = tensor_get(v->in, (b * v->steps + t) * v->tags + to), most = 0;
    int64_t at = 0;
    for (int64_t i = 0; t > 0 && i < v->tags; i++) {
      double score = v->best[i] + step_score(v, i, to);
      if (i == 0 || score > most) most = score, at = i;
    }
    if (t == 0 && v->ends) most = step_score(v, v->tags - 1, to);
    v->from[t * v->tags + to] = at;
    v->next[to] = most + own + (last && v->ends ? step_score(v, v->tags - 2, to) : 0);
  }
  double *swap = v->best;
  v->best = v->next, v->next = swap;
}

/* The best score; the path gets n tags. */
static double decode(Viterbi *v, int64_t b, int64_t n, int64_t *path) {
  int64_t tag = 0;
  for (int64_t t = 0; t < n || t == 0; t++) extend(v, b, t, t == n - 1);
  for (int64_t i = 1; i < v->tags; i++)
    if (v->best[i] > v->best[tag]) tag = i;
  double score = v->best[tag];
  for (int64_t t = n - 1; t >= 0; t--) path[t] = tag, tag = v->from[t * v->tags + tag];
  return score;
}

HostResult run_viterbi_decode(Control *c, Frame *f, Step *s) {
  Value *in = tags_in(c, f, s, "Input", 3), *step = in ? tags_in(c, f, s, "Transition", 2) : NULL,
        *length = step ? tags_in(c, f, s, "Length", 0) : NULL;
  if (!length) return HOST_FAIL;
  int64_t n = in->t.dims[0], k = in->t.dims[2], most = 0;
  Viterbi v = {.in = &in->t, .step = &step->t, .steps = in->t.dims[1], .tags = k};
  v.ends = op_bool(s->op, "include_bos_eos_tag");
  if (step->t.dims[0] != k || step->t.dims[1] != k || k < (v.ends ? 2 : 1) || v.steps < 1)
    return op_refuses(s, "Transition", "must be [K, K] for Input [B, T, K]"), HOST_FAIL;
  if (tensor_numel(&length->t) != n)
    return op_refuses(s, "Length", "must have an element for each sequence"), HOST_FAIL;
  for (int64_t b = 0; b < n; b++) {
    double l = tensor_get(&length->t, b);
    if (!(l >= 0 && l <= (double)v.steps))
      return op_refuses(s, "Length", "holds a length outside 0..T"), HOST_FAIL;
    if (l > (double)most) most = (int64_t)l;
  }
  Arena *a = arena_scratch();
  v.best = arena_array(a, double, k), v.next = arena_array(a, double, k);
  v.from = arena_array(a, int64_t, v.steps * k);
  Value *scores = value_tensor(c, in->t.dtype, 1, &n),
        *path = value_tensor(c, DT_INT64, 2, (int64_t[]){n, most});
  if (tensor_numel(&path->t) > 0) memset(path->t.data, 0, tensor_bytes(&path->t));
  for (int64_t b = 0; b < n; b++)
    tensor_set(&scores->t, b,
               decode(&v, b, (int64_t)tensor_get(&length->t, b),
                      (int64_t *)path->t.data + b * most));
  arena_free(a);
  value_drop(c, in);
  value_drop(c, step);
  value_drop(c, length);
  bool ok = op_result(c, f, s, "Scores", 0, scores);
  return op_result(c, f, s, "Path", 0, path) && ok ? HOST_NEXT : HOST_FAIL;
}

/* ---- chunk_eval ---- */

/* What the tags of a scheme mean; -1: the scheme has no such tag. */
typedef struct Scheme {
  int tags, begin, inside, end, single;
} Scheme;
static const char *const scheme_words[] = {"IOB", "IOE", "IOBES", "plain"};
static const Scheme schemes[] = {{2, 0, 1, -1, -1},
                                 {2, -1, 0, 1, -1},
                                 {4, 0, 1, 2, 3},
                                 {1, -1, -1, -1, -1}};

typedef struct Chunk {
  int64_t first, last, type;
} Chunk;
typedef VEC(Chunk) Chunks;

static bool chunk_ends(const Scheme *k, int64_t other, const int64_t *was, const int64_t *is) {
  if (was[1] == other) return false;
  if (is[1] != was[1]) return true;
  if (was[0] == k->begin || was[0] == k->inside) return is[0] == k->begin || is[0] == k->single;
  return was[0] == k->end || was[0] == k->single;
}

static bool chunk_begins(const Scheme *k, int64_t other, const int64_t *was, const int64_t *is) {
  if (is[1] == other) return false;
  if (is[1] != was[1]) return true;
  if (is[0] == k->begin || is[0] == k->single) return true;
  return (is[0] == k->inside || is[0] == k->end) && (was[0] == k->end || was[0] == k->single);
}

/* Of labels type * tags + tag; the type behind the last is outside of all chunks. */
static bool find_chunks(Arena *a, const Scheme *k, int64_t types, const Tensor *labels,
                        int64_t first, int64_t n, Chunks *to) {
  int64_t was[2] = {-1, types}, start = -1;
  to->n = 0;
  for (int64_t i = 0; i < n; i++) {
    int64_t label = (int64_t)tensor_get(labels, first + i),
            is[2] = {label % k->tags, label / k->tags};
    if (label < 0 || label > types * k->tags)
      return err_set(E_DAT_002, "tag %lld is outside 0..%lld", (long long)label,
                     (long long)(types * k->tags));
    if (start >= 0 && chunk_ends(k, types, was, is)) {
      vec_add(a, to, ((Chunk){start, i - 1, was[1]}));
      start = -1;
    }
    if (chunk_begins(k, types, was, is)) start = i;
    was[0] = is[0], was[1] = is[1];
  }
  if (start >= 0) vec_add(a, to, ((Chunk){start, n - 1, was[1]}));
  return true;
}

/* count: chunks found, chunks of the label, chunks of both; but for those of types that do not count. */
static void count_chunks(const Numbers *excluded, const Chunks *found, const Chunks *label,
                         int64_t *count) {
  for (int i = 0; i < found->n; i++) count[0] += !holds(excluded, (double)found->v[i].type);
  for (int i = 0; i < label->n; i++) count[1] += !holds(excluded, (double)label->v[i].type);
  for (int i = 0, k = 0; i < found->n && k < label->n;) {
    const Chunk *x = &found->v[i], *y = &label->v[k];
    bool same = x->first == y->first && x->last == y->last && x->type == y->type;
    count[2] += same && !holds(excluded, (double)x->type);
    i += x->last <= y->last;
    k += y->last <= x->last;
  }
}

/* Sequences: rows of [N, T] with SeqLength [N], or those of Label. first[i] and length[i]; how many, -1: error. */
static int64_t tag_sequences(Control *c, Frame *f, Step *s, const Value *label, Arena *a,
                             int64_t **first, int64_t **length) {
  bool padded = step_in(s, "SeqLength", 0);
  if (!padded && !label->lod) {
    err_set(E_DAT_001, "neither SeqLength nor sequences of Label are there");
    err_help("Connect SeqLength, or feed Label with its sequences (LoD).");
    return -1;
  }
  Value *len = padded ? tags_in(c, f, s, "SeqLength", 0) : value_share(label->lod);
  if (!len) return -1;
  int64_t n = tensor_numel(&len->t) - !padded, all = tensor_numel(&label->t),
          width = n ? all / n : 0;
  *first = arena_array(a, int64_t, n + 1), *length = arena_array(a, int64_t, n + 1);
  for (int64_t i = 0; i < n; i++) {
    double l = tensor_get(&len->t, i);
    (*first)[i] = padded ? i * width : (int64_t)l;
    (*length)[i] = padded ? (int64_t)l : (int64_t)(tensor_get(&len->t, i + 1) - l);
    if (padded && !(l >= 0 && l <= (double)width))
      return op_refuses(s, "SeqLength", "holds a length outside 0..T"), -1;
  }
  value_drop(c, len);
  return n;
}

/* In the order of the operator's row. */
static bool put_scores(Control *c, Frame *f, Step *s, const int64_t *count) {
  float p = count[0] ? (float)count[2] / (float)count[0] : 0,
        r = count[1] ? (float)count[2] / (float)count[1] : 0,
        scores[] = {p, r, count[2] ? 2 * p * r / (p + r) : 0};
  for (int i = 0; i < 6; i++) {
    const char *slot = s->op->def->outs[i].name;
    if (!step_out(s, slot, 0)) continue;
    Value *v = value_tensor(c, i < 3 ? DT_FLOAT32 : DT_INT64, 1, (int64_t[]){1});
    tensor_set(&v->t, 0, i < 3 ? (double)scores[i] : (double)count[i - 3]);
    if (!op_result(c, f, s, slot, 0, v)) return false;
  }
  return true;
}

HostResult run_chunk_eval(Control *c, Frame *f, Step *s) {
  int k = op_word(s->op, "chunk_scheme", 4, scheme_words);
  Value *found = k < 0 ? NULL : tags_in(c, f, s, "Inference", 0),
        *label = found ? tags_in(c, f, s, "Label", 0) : NULL;
  if (!label) return HOST_FAIL;
  if (tensor_numel(&found->t) != tensor_numel(&label->t))
    return op_refuses(s, "Inference", "has not as many elements as Label"), HOST_FAIL;
  Arena *a = arena_scratch();
  Chunks chunks[2] = {0};
  Numbers excluded = numbers(c, s->op, "excluded_chunk_types");
  int64_t *first, *length, count[3] = {0}, types = op_int(s->op, "num_chunk_types");
  int64_t n = tag_sequences(c, f, s, label, a, &first, &length);
  bool ok = n >= 0;
  for (int64_t i = 0; i < n && ok; i++) {
    ok = find_chunks(a, &schemes[k], types, &found->t, first[i], length[i], &chunks[0]) &&
         find_chunks(a, &schemes[k], types, &label->t, first[i], length[i], &chunks[1]);
    if (ok) count_chunks(&excluded, &chunks[0], &chunks[1], count);
  }
  arena_free(a);
  value_drop(c, found);
  value_drop(c, label);
  return ok && put_scores(c, f, s, count) ? HOST_NEXT : HOST_FAIL;
}

/* ---- sequence_erase ---- */

HostResult run_sequence_erase(Control *c, Frame *f, Step *s) {
  Value *x = tags_in(c, f, s, "X", 0);
  if (!x) return HOST_FAIL;
  if (!x->lod) return op_refuses(s, "X", "has no sequences"), HOST_FAIL;
  int64_t rows = tensor_numel(&x->t), n = tensor_numel(&x->lod->t) - 1, kept = 0;
  if (x->t.rank < 1 || x->t.rank > 2 || x->t.dims[0] != rows)
    return op_refuses(s, "X", "must be [T, 1]"), HOST_FAIL;
  const int64_t *from = x->lod->t.data;
  Numbers tokens = numbers(c, s->op, "tokens");
  Arena *a = arena_scratch();
  int64_t *at = arena_array(a, int64_t, rows + 1), *offset = arena_array(a, int64_t, n + 1);
  for (int64_t i = 0; i < n; i++) {
    for (int64_t k = from[i]; k < from[i + 1]; k++)
      if (!holds(&tokens, tensor_get(&x->t, k))) at[kept++] = k;
    offset[i + 1] = kept;
  }
  Value *out = value_tensor(c, x->t.dtype, x->t.rank, (int64_t[]){kept, 1});
  size_t size = (size_t)dtype_info[x->t.dtype].size;
  for (int64_t k = 0; k < kept; k++)
    memcpy((char *)out->t.data + (size_t)k * size, (const char *)x->t.data + (size_t)at[k] * size,
           size);
  out->lod = offsets_value(c, n, offset);
  if (out->lod) out->lod->lod = value_share(x->lod->lod);
  arena_free(a);
  value_drop(c, x);
  return op_result(c, f, s, "Out", 0, out) ? HOST_NEXT : HOST_FAIL;
}
