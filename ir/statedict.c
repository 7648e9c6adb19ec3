/* Dictionaries of parameters as PaddlePaddle's static.save and paddle.save write them (.pdparams, .pdopt): the bytes of a
 * pickle in, named tensors out.
 *
 * An entry is an array under its name, or a pair (name, array). Arrays of more than 2^30 bytes may be cut: then the entry
 * UnpackBigParamInfor@@ names the slices "NAME@@.0", ... and the shape, and they are put together here. The entry
 * StructuredToParameterName@@ renames the entries of a layer. Entries of an optimiser that are no arrays are passed over by
 * name; any other is an error that names it. */
#include "pickle.h"
#include <string.h>

typedef struct Reading {
  Arena *a, *tmp;
  Map *by_name; /* Tensor */
  const PickleValue *slices, *names;
  size_t left; /* bytes of memory that may still be taken */
} Reading;

/* What the entries of these names hold is no parameter. */
static const char *const passed_over[] = {"LR_Scheduler", "master_weights", "global_step"};

static bool wrong_entry(const char *name, const PickleValue *v) {
  err_set(E_PAR_005, "the entry %s is %s, not an array", quoted(name), pickle_kind_name(v->kind));
  err_where("byte %zu", v->at);
  return false;
}

static bool charge(Reading *r, size_t n) {
  if (n > r->left)
    return err_set(E_MEM_002, "the dictionary needs more memory than its size explains");
  r->left -= n;
  return true;
}

static bool add(Reading *r, const char *name, const PickleValue *v) {
  if (v->kind == PK_TUPLE && v->n_items == 2 && v->items[1]->kind == PK_ARRAY) v = v->items[1];
  if (v->kind != PK_ARRAY || !v->tensor) {
    for (size_t i = 0; i < sizeof passed_over / sizeof *passed_over; i++)
      if (!strcmp(name, passed_over[i])) return true;
    return wrong_entry(name, v);
  }
  if (map_get(r->by_name, name))
    return err_set(E_PAR_001, "the entry %s is there twice", quoted(name));
  map_put(r->by_name, name, v->tensor);
  return true;
}

static bool add_all(Reading *r, const PickleValue *dict) {
  for (int i = 0; i < dict->n_items; i += 2) {
    const PickleValue *v = dict->items[i + 1];
    const char *name = pickle_text(dict->items[i], "a name", r->tmp);
    if (!name || !charge(r, 2 * strlen(name) + 96)) return false;
    const PickleValue **special = !strcmp(name, "UnpackBigParamInfor@@")         ? &r->slices
                                  : !strcmp(name, "StructuredToParameterName@@") ? &r->names
                                                                                 : NULL;
    if (special && v->kind != PK_DICT) return wrong_entry(name, v);
    if (special)
      *special = v;
    else if (!add(r, name, v))
      return false;
  }
  return true;
}

static const PickleValue *dict_get(const PickleValue *d, const char *key, PickleKind kind) {
  for (int i = 0; i < d->n_items; i += 2) {
    const PickleValue *k = d->items[i];
    bool same = k->kind == PK_TEXT && k->n == strlen(key) && !memcmp(k->bytes, key, k->n);
    if (same && d->items[i + 1]->kind == kind) return d->items[i + 1];
  }
  return NULL;
}

static bool bad_slices(const char *name, const char *what) {
  return err_set(E_PAR_001, "the slices of %s %s", quoted(name), what);
}

/* The slices one after another, in the shape that they had. */
static bool join(Reading *r, const char *name, const PickleValue *shape, const PickleValue *parts) {
  Tensor *to = arena_new_of(r->a, Tensor), *part = NULL;
  Str all;
  str_init(&all, r->tmp);
  for (int i = 0; i < parts->n_items; i++) {
    const char *key = pickle_text(parts->items[i], "a slice", r->tmp);
    if (!key) return false;
    part = map_get(r->by_name, key);
    if (!part) return bad_slices(name, "are not all there");
    if (i && part->dtype != to->dtype) return bad_slices(name, "differ in type");
    size_t n = tensor_bytes(part);
    if (!charge(r, 2 * n + 96)) return false;
    to->dtype = part->dtype;
    str_addn(&all, part->data, n);
    map_put(r->by_name, key, NULL);
  }
  if (!part || shape->n_items > KL_VAR_RANK) return bad_slices(name, "have no proper shape");
  for (int i = 0; i < shape->n_items; i++) {
    if (shape->items[i]->kind != PK_INT) return bad_slices(name, "have no proper shape");
    to->dims[i] = shape->items[i]->i;
  }
  int64_t numel;
  to->rank = shape->n_items;
  if (!dims_numel(to->dtype, to->rank, to->dims, &numel)) return false;
  if (tensor_bytes(to) != all.n) return bad_slices(name, "do not fill its shape");
  to->data = arena_dup(r->a, all.s, all.n);
  if (map_get(r->by_name, name)) return bad_slices(name, "stand beside the whole");
  map_put(r->by_name, name, to);
  return true;
}

static bool join_all(Reading *r) {
  for (int i = 0; r->slices && i < r->slices->n_items; i += 2) {
    const PickleValue *v = r->slices->items[i + 1];
    const char *name = pickle_text(r->slices->items[i], "a name", r->tmp);
    if (!name) return false;
    if (v->kind != PK_DICT) return wrong_entry(name, v);
    const PickleValue *shape = dict_get(v, "OriginShape", PK_TUPLE);
    const PickleValue *parts = dict_get(v, "slices", PK_LIST);
    if (!shape || !parts) return bad_slices(name, "are not described");
    if (!join(r, name, shape, parts)) return false;
  }
  return true;
}

/* A layer's own names for its parameters give way to theirs. */
static bool rename_all(Reading *r) {
  for (int i = 0; r->names && i < r->names->n_items; i += 2) {
    const char *from = pickle_text(r->names->items[i], "a name", r->tmp);
    const char *to = from ? pickle_text(r->names->items[i + 1], "a name", r->tmp) : NULL;
    if (!to) return false;
    Tensor *t = map_get(r->by_name, from);
    if (!charge(r, 2 * strlen(to) + 96)) return false;
    if (!t || !strcmp(from, to)) continue;
    if (map_get(r->by_name, to)) return err_set(E_PAR_001, "two entries are named %s", quoted(to));
    map_put(r->by_name, from, NULL);
    map_put(r->by_name, to, t);
  }
  return true;
}

__attribute__((noinline)) static bool take_all(Reading *r, uint8_t *bytes, size_t n) {
  PickleValue *top = pickle_parse(bytes, n, r->a);
  if (!top) return false;
  if (top->kind == PK_DICT) return add_all(r, top) && join_all(r) && rename_all(r);
  err_set(E_PAR_005, "the pickle holds %s, not a dictionary of arrays",
          pickle_kind_name(top->kind));
  err_where("byte %zu", top->at);
  return false;
}

bool pickle_is(const uint8_t *bytes, size_t n) {
  return n >= 2 && bytes[0] == 0x80 && bytes[1] >= 2 && bytes[1] <= 5;
}

Map *pickle_params(uint8_t *bytes, size_t n, const char *file, Arena *a) {
  Arena *tmp = arena_scratch();
  Reading r = {.a = a, .tmp = tmp, .by_name = map_new(a), .left = ((size_t)16 << 20) + 2 * n};
  bool ok = take_all(&r, bytes, n);
  if (!ok && file) err_where("%s", file);
  arena_free(tmp);
  return ok ? r.by_name : NULL;
}
