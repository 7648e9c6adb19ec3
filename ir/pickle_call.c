/* What a pickle may call and set: the making of NumPy arrays, element types, bytes and containers, each done here. In: the
 * arguments as values of the stack machine (pickle.c). Out: a value, or an error that names what is not in the subset. */
#include "pickle.h"
#include <string.h>

/* ---- values ---- */

const char *pickle_kind_name(PickleKind k) {
  static const char *const names[PK_N] = {
      [PK_MARK] = "a mark",       [PK_NONE] = "None",      [PK_BOOL] = "a truth value",
      [PK_INT] = "a number",      [PK_FLOAT] = "a number", [PK_TEXT] = "a text",
      [PK_BYTES] = "bytes",       [PK_TUPLE] = "a tuple",  [PK_LIST] = "a list",
      [PK_DICT] = "a dictionary", [PK_GLOBAL] = "a class", [PK_DTYPE] = "an element type",
      [PK_ARRAY] = "an array"};
  return names[k];
}

const char *pickle_text(const PickleValue *v, const char *what, Arena *a) {
  if (v->kind == PK_TEXT && !memchr(v->bytes, 0, v->n))
    return arena_strn(a, (const char *)v->bytes, v->n);
  if (v->kind == PK_TEXT)
    err_set(E_PAR_001, "%s has a NUL byte", what);
  else
    err_set(E_PAR_005, "%s is %s, not a text", what, pickle_kind_name(v->kind));
  err_where("byte %zu", v->at);
  return NULL;
}

static bool is_text(const PickleValue *v, const char *s) {
  return v->kind == PK_TEXT && v->n == strlen(s) && !memcmp(v->bytes, s, v->n);
}

/* ---- arrays ---- */

static bool set_data(PickleMaker *m, PickleValue *v, DType t, int rank, const int64_t *dims,
                     const PickleValue *bytes) {
  int64_t numel;
  if (!dims_numel(t, rank, dims, &numel)) return pickle_here(m);
  size_t want = (size_t)numel * (size_t)dtype_info[t].size;
  if (bytes->n != want) {
    err_set(E_PAR_001, "an array %s has %zu bytes of data, not %zu", shape_text(t, rank, dims),
            bytes->n, want);
    return pickle_here(m);
  }
  Tensor *to = v->tensor = pickle_take(m, sizeof *to);
  if (!to) return false;
  *to = (Tensor){.dtype = t, .rank = rank, .data = bytes->bytes};
  for (int i = 0; i < rank; i++) to->dims[i] = dims[i];
  for (size_t i = 0; t == DT_BOOL && i < want; i++)
    if (bytes->bytes[i] > 1) bytes->bytes[i] = 1;
  v->dtype = t;
  return true;
}

/* Elements in column-major order become a new array in ours. */
static bool row_major(PickleMaker *m, Tensor *t) {
  Tensor from = *t;
  int64_t layout[KL_VAR_RANK];
  for (int d = 0; d < t->rank; d++) {
    from.dims[d] = t->dims[t->rank - 1 - d];
    layout[d] = t->rank - 1 - d;
  }
  if (t->rank < 2 || !tensor_numel(t)) return true;
  if (!(t->data = pickle_take(m, tensor_bytes(t)))) return false;
  uint8_t *aligned = arena_dup(m->a, from.data, tensor_bytes(t));
  from.data = aligned;
  tensor_permute(t->data, &from, layout);
  return true;
}

/* (version, shape, dtype, column-major?, bytes) */
bool pickle_fill(PickleMaker *m, PickleValue *v, const PickleValue *state) {
  PickleValue *const *s = state->items;
  bool ok = state->kind == PK_TUPLE && state->n_items == 5 && s[1]->kind == PK_TUPLE &&
            s[2]->kind == PK_DTYPE && (s[3]->kind == PK_BOOL || s[3]->kind == PK_INT);
  if (!ok)
    return pickle_malformed(m, "the state of an array is not (version, shape, type, order, data)");
  if (s[4]->kind != PK_BYTES)
    return pickle_refused(m, "has an array whose data is", pickle_kind_name(s[4]->kind));
  if (v->tensor) return pickle_malformed(m, "an array is filled twice");
  int rank = s[1]->n_items;
  int64_t dims[KL_VAR_RANK];
  if (rank > KL_VAR_RANK) {
    err_set(E_PAR_001, "an array has %d dimensions; Kiln takes at most %d", rank, KL_VAR_RANK);
    return pickle_here(m);
  }
  for (int i = 0; i < rank; i++) {
    if (s[1]->items[i]->kind != PK_INT || s[1]->items[i]->i < 0)
      return pickle_malformed(m, "a dimension of an array is no number, or negative");
    dims[i] = s[1]->items[i]->i;
  }
  return set_data(m, v, s[2]->dtype, rank, dims, s[4]) && (!s[3]->i || row_major(m, v->tensor));
}

/* (version, byte order, ...): values are little-endian, or of one byte. */
bool pickle_set_order(PickleMaker *m, const PickleValue *state) {
  bool ok = state->kind == PK_TUPLE && state->n_items >= 2 && state->items[1]->kind == PK_TEXT;
  if (!ok) return pickle_malformed(m, "the state of an element type has no byte order");
  if (is_text(state->items[1], "<") || is_text(state->items[1], "|") ||
      is_text(state->items[1], "="))
    return true;
  const char *order = pickle_text(state->items[1], "a byte order", m->a);
  return order && pickle_refused(m, "has an array of the byte order", quoted(order));
}

/* ---- what may be called ---- */

static PickleValue *bad_args(const PickleMaker *m, const char *what) {
  pickle_malformed(m, what);
  return NULL;
}

/* The characters of UTF-8 text that are latin1, a byte each; NULL: there are others (no error set). */
static uint8_t *latin1(PickleMaker *m, PickleValue *text, size_t *n) {
  uint8_t *out = pickle_take(m, text->n + 1), *to = out;
  for (size_t i = 0; out && i < text->n; i++) {
    uint8_t c = text->bytes[i];
    if (c >= 0x80) {
      bool two = (c == 0xc2 || c == 0xc3) && i + 1 < text->n && (text->bytes[i + 1] & 0xc0) == 0x80;
      if (!two) return NULL;
      c = (uint8_t)(c << 6 | (text->bytes[++i] & 0x3f));
    }
    *to++ = c;
  }
  *n = (size_t)(to - out);
  return out;
}

/* _codecs.encode(text, 'latin1'): how protocol 2 writes bytes */
static PickleValue *call_encode(PickleMaker *m, const PickleValue *args) {
  bool ok =
      args->n_items == 2 && args->items[0]->kind == PK_TEXT && is_text(args->items[1], "latin1");
  if (!ok) return bad_args(m, "_codecs.encode is called for something else than latin1");
  PickleValue *v = pickle_make(m, PK_BYTES);
  if (!v) return NULL;
  v->bytes = latin1(m, args->items[0], &v->n);
  if (v->bytes || err_any()) return v->bytes ? v : NULL;
  return bad_args(m, "a text of bytes holds a character beyond latin1");
}

static PickleValue *call_bytes(PickleMaker *m, const PickleValue *args) {
  if (args->n_items) return bad_args(m, "bytes are made of something");
  return pickle_make(m, PK_BYTES);
}

static PickleValue *call_dict(PickleMaker *m, const PickleValue *args) {
  if (args->n_items) return bad_args(m, "an OrderedDict is made of something");
  return pickle_make(m, PK_DICT);
}

static PickleValue *call_tuple(PickleMaker *m, const PickleValue *args) {
  bool ok =
      args->n_items == 1 && (args->items[0]->kind == PK_TUPLE || args->items[0]->kind == PK_LIST);
  return ok ? args->items[0] : bad_args(m, "a tuple is made of something else than a list");
}

static PickleValue *call_reconstruct(PickleMaker *m, const PickleValue *args) {
  (void)args; /* the class, an empty shape and a letter: BUILD says all of it again */
  PickleValue *v = pickle_make(m, PK_ARRAY);
  if (v) v->dtype = DT_NONE;
  return v;
}

/* uint16 is how bfloat16 travels in arrays. */
static const struct {
  const char *code;
  DType dtype;
} codes[] = {{"b1", DT_BOOL},    {"u1", DT_UINT8},  {"i1", DT_INT8},    {"i2", DT_INT16},
             {"i4", DT_INT32},   {"i8", DT_INT64},  {"f2", DT_FLOAT16}, {"u2", DT_BFLOAT16},
             {"f4", DT_FLOAT32}, {"f8", DT_FLOAT64}};

static PickleValue *call_dtype(PickleMaker *m, const PickleValue *args) {
  if (args->n_items < 1 || args->items[0]->kind != PK_TEXT)
    return bad_args(m, "an element type has no code");
  PickleValue *v = pickle_make(m, PK_DTYPE);
  for (size_t i = 0; v && i < sizeof codes / sizeof *codes; i++)
    if (is_text(args->items[0], codes[i].code)) return v->dtype = codes[i].dtype, v;
  const char *code = v ? pickle_text(args->items[0], "an element type", m->a) : NULL;
  if (code) pickle_refused(m, "has an array of the element type", quoted(code));
  return NULL;
}

static PickleValue *call_scalar(PickleMaker *m, const PickleValue *args) {
  if (args->n_items != 2 || args->items[0]->kind != PK_DTYPE || args->items[1]->kind != PK_BYTES)
    return bad_args(m, "a number of NumPy is made of something else than a type and bytes");
  PickleValue *v = pickle_make(m, PK_ARRAY);
  return v && set_data(m, v, args->items[0]->dtype, 0, NULL, args->items[1]) ? v : NULL;
}

static const PickleGlobal globals[] = {
    {"numpy.core.multiarray", "_reconstruct", call_reconstruct},
    {"numpy._core.multiarray", "_reconstruct", call_reconstruct},
    {"numpy.core.multiarray", "scalar", call_scalar},
    {"numpy._core.multiarray", "scalar", call_scalar},
    {"numpy", "ndarray", NULL},
    {"numpy", "dtype", call_dtype},
    {"_codecs", "encode", call_encode},
    {"__builtin__", "bytes", call_bytes},
    {"builtins", "bytes", call_bytes},
    {"__builtin__", "tuple", call_tuple},
    {"builtins", "tuple", call_tuple},
    {"collections", "OrderedDict", call_dict},
};

const PickleGlobal *pickle_global(const uint8_t *module, size_t n_module, const uint8_t *name,
                                  size_t n_name) {
  for (size_t i = 0; i < sizeof globals / sizeof *globals; i++) {
    const PickleGlobal *g = &globals[i];
    if (strlen(g->module) != n_module || memcmp(g->module, module, n_module)) continue;
    if (strlen(g->name) == n_name && !memcmp(g->name, name, n_name)) return g;
  }
  return NULL;
}
