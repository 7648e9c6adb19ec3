/* Beam search over sequences of candidates, as PaddlePaddle 1.x writes decoders.
 *
 * The scores of a step have two levels of sequences: of each source the prefixes, of each prefix its row. beam_search takes of
 * all continuations of a source's prefixes the beam_size best ones: its results have a row for each, and as sequences the
 * rows of each prefix. A prefix that has ended goes on with end_id alone; a source of which all have ended is left out.
 * beam_search_decode walks from the last step back along these sequences. */
#include "control.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- one step ---- */

typedef struct Item {
  int64_t row, id;
  double score;
} Item;

typedef struct Beam {
  Value *pre_ids, *pre_scores, *ids, *scores; /* ids: NULL, the columns */
  int64_t n, sources, width, size, end;       /* rows, ... columns, items to take, the last word */
  const int64_t *first;                       /* rows of each source */
  bool sums;                                  /* scores are logarithms already summed up */
} Beam;

static bool is_worse(const Item *a, const Item *b) {
  return a->score < b->score || (a->score == b->score && a->row < b->row);
}

/* Best first; of equals the one of the later row. */
static void insert(Item *top, int64_t *n, int64_t most, Item item) {
  if (*n == most && is_worse(&item, &top[most - 1])) return;
  int64_t k = *n < most ? (*n)++ : most - 1;
  for (; k > 0 && is_worse(&top[k - 1], &item); k--) top[k] = top[k - 1];
  top[k] = item;
}

static int64_t take_best(const Beam *b, int64_t source, Item *top) {
  int64_t n = 0;
  for (int64_t r = b->first[source]; r < b->first[source + 1]; r++) {
    double before = tensor_get(&b->pre_scores->t, r);
    if ((int64_t)tensor_get(&b->pre_ids->t, r) == b->end) {
      insert(top, &n, b->size, (Item){r, b->end, before});
      continue;
    }
    for (int64_t k = r * b->width; k < (r + 1) * b->width; k++) {
      double score = tensor_get(&b->scores->t, k);
      int64_t id = b->ids ? (int64_t)tensor_get(&b->ids->t, k) : k - r * b->width;
      insert(top, &n, b->size, (Item){r, id, b->sums ? score : before + log(score)});
    }
  }
  bool ended = true;
  for (int64_t i = 0; i < n; i++)
    ended &= top[i].id == b->end && (int64_t)tensor_get(&b->pre_ids->t, top[i].row) == b->end;
  return ended ? 0 : n;
}

/* A tensor of n rows, or of n times `width` elements. The caller drops it. */
static Value *rows_in(Control *c, Frame *f, const Step *s, const char *slot, int64_t n) {
  Value *v = op_value(c, f, s, slot, 0);
  if (!v || (v->kind == V_TENSOR && v->t.rank > 0 && (n < 0 || tensor_numel(&v->t) == n))) return v;
  op_refuses(s, slot, "has another number of elements than scores needs");
  return NULL;
}

/* Rows of each source: the offsets of the first level, through those below. */
static bool find_sources(const Step *s, Beam *b, Arena *a) {
  const Value *level[PARAMS_LEVELS];
  int64_t n = 0, wanted = op_int(s->op, "level");
  for (const Value *l = b->scores->lod; l && n < PARAMS_LEVELS; l = l->lod) level[n++] = l;
  if (wanted < 0 || wanted >= n) {
    err_set(E_OPR_003, "level is %lld, scores have %lld levels of sequences", (long long)wanted,
            (long long)n);
    return false;
  }
  const Value *at = level[n - 1 - wanted];
  b->sources = at->t.dims[0] - 1;
  int64_t *first = arena_array(a, int64_t, b->sources + 1);
  memcpy(first, at->t.data, sizeof *first * (size_t)(b->sources + 1));
  for (int64_t k = n - 2 - wanted; k >= 0; k--)
    for (int64_t i = 0; i <= b->sources; i++)
      first[i] = ((const int64_t *)level[k]->t.data)[first[i]];
  b->first = first;
  return true;
}

static bool read_beam(Control *c, Frame *f, const Step *s, Beam *b, Arena *a) {
  b->scores = rows_in(c, f, s, "scores", -1);
  if (!b->scores) return false;
  b->n = b->scores->t.dims[0];
  b->width = b->n ? tensor_numel(&b->scores->t) / b->n : 0;
  b->pre_ids = rows_in(c, f, s, "pre_ids", b->n);
  b->pre_scores = b->pre_ids ? rows_in(c, f, s, "pre_scores", b->n) : NULL;
  if (!b->pre_scores) return false;
  if (step_in(s, "ids", 0) && !(b->ids = rows_in(c, f, s, "ids", b->n * b->width))) return false;
  b->size = op_int(s->op, "beam_size");
  b->end = op_int(s->op, "end_id");
  b->sums = op_bool(s->op, "is_accumulated");
  if (b->size < 1 || b->size > 1 << 20)
    return err_set(E_OPR_003, "beam_size is %lld", (long long)b->size);
  return find_sources(s, b, a);
}

static int by_row(const void *a, const void *b, void *user) {
  const Item *const *x = a, *const *y = b;
  (void)user;
  if ((*x)->row != (*y)->row) return (*x)->row < (*y)->row ? -1 : 1;
  return (*x > *y) - (*x < *y);
}

static Value *offsets_value(Control *c, int64_t n, const int64_t *offset, Value *up) {
  Value *v = value_tensor(c, DT_INT64, 1, (int64_t[]){n + 1});
  memcpy(v->t.data, offset, sizeof *offset * (size_t)(n + 1));
  v->lod = up;
  return v;
}

/* Items by the row that they go on from. */
static bool give_items(Control *c, Frame *f, const Step *s, const Beam *b, int64_t n, Item **item,
                       Arena *a) {
  int64_t *offset = arena_array(a, int64_t, b->n + 1);
  qsort_r(item, (size_t)n, sizeof(Item *), by_row, NULL);
  for (int64_t i = 0; i < n; i++) offset[item[i]->row + 1]++;
  for (int64_t i = 0; i < b->n; i++) offset[i + 1] += offset[i];
  Value *ids = value_tensor(c, b->pre_ids->t.dtype, 2, (int64_t[]){n, 1});
  Value *scores = value_tensor(c, b->pre_scores->t.dtype, 2, (int64_t[]){n, 1});
  Value *parents = value_tensor(c, DT_INT32, 1, &n);
  for (int64_t i = 0; i < n; i++) {
    tensor_set(&ids->t, i, (double)item[i]->id);
    tensor_set(&scores->t, i, item[i]->score);
    tensor_set(&parents->t, i, (double)item[i]->row);
  }
  Value *up = offsets_value(c, b->sources, b->first, NULL);
  ids->lod = offsets_value(c, b->n, offset, up);
  scores->lod = value_share(ids->lod);
  bool ok = op_result(c, f, s, "selected_ids", 0, ids);
  ok = op_result(c, f, s, "selected_scores", 0, scores) && ok;
  return op_result(c, f, s, "parent_idx", 0, parents) && ok;
}

HostResult run_beam_search(Control *c, Frame *f, Step *s) {
  Arena *a = arena_scratch();
  Beam b = {0};
  bool ok = read_beam(c, f, s, &b, a);
  int64_t n = 0, most = 0;
  for (int64_t i = 0; ok && i < b.sources; i++) {
    int64_t all = (b.first[i + 1] - b.first[i]) * (b.width > 1 ? b.width : 1);
    most += all < b.size ? all : b.size;
  }
  Item *top = arena_array(a, Item, most + 1), **item = arena_array(a, Item *, most + 1);
  for (int64_t i = 0; ok && i < b.sources; i++) {
    int64_t made = take_best(&b, i, top);
    for (int64_t k = 0; k < made; k++) item[n++] = &top[k];
    top += made;
  }
  ok = ok && give_items(c, f, s, &b, n, item, a);
  arena_free(a);
  value_drop(c, b.pre_ids);
  value_drop(c, b.pre_scores);
  value_drop(c, b.ids);
  value_drop(c, b.scores);
  return ok ? HOST_NEXT : HOST_FAIL;
}

/* ---- the sentences ---- */

typedef struct Sentence {
  int64_t at; /* the row, then the prefix, in the step that is looked at */
  int64_t n;
  int64_t *id; /* last word first */
  double *score;
  int64_t order;
} Sentence;
typedef VEC(Sentence) Sentences;

typedef struct Decode {
  Arena *a;
  const Value *ids, *scores; /* arrays */
  int64_t sources, end;
  Sentences *of; /* of each source */
} Decode;

/* The element, with two levels of sequences, and scores as many. */
static bool step_fits(const Step *s, Decode *d, int k) {
  const Value *v = d->ids->items[k], *w = k < d->scores->n ? d->scores->items[k] : NULL;
  bool ok = v && w && v->lod && v->lod->lod && tensor_numel(&v->t) == tensor_numel(&w->t) &&
            v->t.rank > 0 && v->t.dims[0] == tensor_numel(&v->t);
  if (ok && (k == 0 || d->sources == v->lod->lod->t.dims[0] - 1)) {
    d->sources = v->lod->lod->t.dims[0] - 1;
    return true;
  }
  op_refuses(s, "Ids", "and Scores are no steps of a beam search");
  err_note("element %d: words and scores need two levels of sequences each, of as many sources", k);
  return false;
}

static void add_word(const Decode *d, Sentence *t, int k, int64_t row) {
  t->id[t->n] = (int64_t)tensor_get(&d->ids->items[k]->t, row);
  t->score[t->n++] = tensor_get(&d->scores->items[k]->t, row);
}

/* Where a source ends: all its rows. */
static void begin_sentences(Decode *d, int k, Sentences *of, int64_t from, int64_t to,
                            const int64_t *rows) {
  for (int64_t p = from; p < to; p++)
    for (int64_t r = rows[p]; r < rows[p + 1]; r++) {
      Sentence t = {.at = p, .order = of->n};
      t.id = arena_array(d->a, int64_t, k + 1);
      t.score = arena_array(d->a, double, k + 1);
      add_word(d, &t, k, r);
      vec_add(d->a, of, t);
    }
}

/* One step back: the row that a sentence goes on from, and the prefix of that. False: there is none. */
static bool step_back(Decode *d, int k, Sentences *of, int64_t from, int64_t to,
                      const int64_t *rows) {
  for (int i = 0; i < of->n; i++) {
    Sentence *t = &of->v[i];
    int64_t row = t->at, p = from;
    while (p < to && rows[p + 1] <= row) p++;
    if (p == to || row < rows[p]) return false;
    if ((int64_t)tensor_get(&d->ids->items[k]->t, row) != d->end) add_word(d, t, k, row);
    t->at = p;
  }
  return true;
}

static bool walk(const Step *s, Decode *d) {
  for (int k = 0; k < d->ids->n; k++)
    if (!step_fits(s, d, k)) return false;
  d->of = arena_array(d->a, Sentences, d->sources + 1);
  for (int k = d->ids->n - 1; k >= 0; k--) {
    const Value *rows = d->ids->items[k]->lod;
    const int64_t *prefix = rows->lod->t.data;
    for (int64_t i = 0; i < d->sources; i++) {
      Sentences *of = &d->of[i];
      if (!of->n)
        begin_sentences(d, k, of, prefix[i], prefix[i + 1], rows->t.data);
      else if (!step_back(d, k, of, prefix[i], prefix[i + 1], rows->t.data))
        return op_refuses(
            s, "Ids", "is no beam search: a step has fewer rows than the next one has prefixes");
    }
  }
  return true;
}

static int by_score(const void *a, const void *b) {
  const Sentence *x = a, *y = b;
  if (x->score[0] != y->score[0]) return x->score[0] > y->score[0] ? -1 : 1;
  return (x->order > y->order) - (x->order < y->order);
}

static bool give_sentences(Control *c, Frame *f, const Step *s, Decode *d) {
  int64_t sentences = 0, words = 0, m = 0, w = 0;
  for (int64_t i = 0; i < d->sources; i++) {
    sentences += d->of[i].n;
    for (int k = 0; k < d->of[i].n; k++) words += d->of[i].v[k].n;
  }
  int64_t *source = arena_array(d->a, int64_t, d->sources + 1),
          *sentence = arena_array(d->a, int64_t, sentences + 1);
  Value *ids = value_tensor(c, DT_INT64, 1, &words);
  Value *scores = value_tensor(c, d->scores->items[0]->t.dtype, 1, &words);
  for (int64_t i = 0; i < d->sources; i++) {
    Sentences *of = &d->of[i];
    if (of->n) qsort(of->v, (size_t)of->n, sizeof *of->v, by_score);
    for (int k = 0; k < of->n; k++) {
      for (int64_t j = of->v[k].n - 1; j >= 0; j--, w++) {
        tensor_set(&ids->t, w, (double)of->v[k].id[j]);
        tensor_set(&scores->t, w, of->v[k].score[j]);
      }
      sentence[++m] = w;
    }
    source[i + 1] = m;
  }
  ids->lod = offsets_value(c, sentences, sentence, offsets_value(c, d->sources, source, NULL));
  scores->lod = value_share(ids->lod);
  bool ok = op_result(c, f, s, "SentenceIds", 0, ids);
  return op_result(c, f, s, "SentenceScores", 0, scores) && ok;
}

HostResult run_beam_search_decode(Control *c, Frame *f, Step *s) {
  Value *ids = op_value(c, f, s, "Ids", 0), *scores = ids ? op_value(c, f, s, "Scores", 0) : NULL;
  if (!scores) return HOST_FAIL;
  if (ids->kind != V_ARRAY || scores->kind != V_ARRAY || ids->n == 0) {
    op_refuses(s, "Ids", "and Scores are no tensor arrays with elements");
    return HOST_FAIL;
  }
  Decode d = {.a = arena_scratch(), .ids = ids, .scores = scores, .end = op_int(s->op, "end_id")};
  bool ok = walk(s, &d) && give_sentences(c, f, s, &d);
  arena_free(d.a);
  value_drop(c, ids);
  value_drop(c, scores);
  return ok ? HOST_NEXT : HOST_FAIL;
}
