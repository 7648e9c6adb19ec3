/* Parameter files in the .pdiparams layout: bytes in, tensors out, and back. One entry, little-endian:
 *
 *   u32 version = 0 | u64 L | L x { u64 bytes, offsets } | u32 tensor version = 0 | i32 n | n bytes TensorDesc | data
 *
 * A combined file is the entries of the persistable variables back to back in bytewise order of their names, without
 * names or counts. Reading first walks all headers and checks every size against what is left, then copies any data.
 * A variable's own file holds one such entry; that of selected rows begins otherwise:
 *
 *   u32 version = 0 | u64 R | R x i64 row | i64 height | u32 tensor version = 0 | i32 n | n bytes TensorDesc | data [R, ...]
 *
 * and becomes the dense tensor [height, ...], zero in the other rows. LoD levels, the outermost first, are offsets from 0 that do not
 * decrease, of the sequences of the next level, the last one of rows. When writing, a description may be padded, so
 * that the data of large tensors is aligned and can be used where the file is mapped. */
#include "ir.h"
#include "kiln.pb-c.h"
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { DESC_MOST = 1024 }; /* bytes of a TensorDesc; 9 dims need at most 111 */

typedef struct Reader {
  const uint8_t *base, *p, *end;
  const char *file, *name;
  ParamLevels *levels; /* NULL: not wanted */
  int entry;
} Reader;

/* The levels of the entry that is read: where their offsets stand. */
typedef struct Levels {
  int n;
  const uint8_t *at[PARAMS_LEVELS];
  uint64_t count[PARAMS_LEVELS], last[PARAMS_LEVELS];
} Levels;

/* ---- messages ---- */

/* 1,048,576 in the text of messages; one of four buffers. */
static const char *grouped(uint64_t v) {
  static _Thread_local char buf[4][32];
  static _Thread_local unsigned next;
  char digits[24], *o = buf[next++ % 4], *start = o;
  int n = snprintf(digits, sizeof digits, "%" PRIu64, v);
  for (int i = 0; i < n; i++) {
    if (i && (n - i) % 3 == 0) *o++ = ',';
    *o++ = digits[i];
  }
  *o = 0;
  return start;
}

static bool at(const Reader *r, const uint8_t *p) {
  err_where("%s at byte %s", r->file, grouped((uint64_t)(p - r->base)));
  return false;
}

static bool too_short(const Reader *r, uint64_t need, const char *what) {
  err_set(E_PAR_004, "parameter file ends inside %s", r->name);
  err_where("%s at byte %s: %s bytes needed (%s), %s left", r->file,
            grouped((uint64_t)(r->p - r->base)), grouped(need), what,
            grouped((uint64_t)(r->end - r->p)));
  err_help("The file was cut off, or belongs to another program. Save or copy it again.");
  return false;
}

static bool wrong_version(const Reader *r, const uint8_t *p, const char *what, uint32_t v) {
  err_set(E_PAR_001, "not a parameter file: the %s of %s is %" PRIu32 ", not 0", what, r->name, v);
  const char *kind = p == r->base ? content_kind(r->base, (size_t)(r->end - r->base)) : NULL;
  if (kind) err_note("The file looks like %s.", kind);
  return at(r, p);
}

/* ---- reading ---- */

static bool take(Reader *r, void *to, size_t n, const char *what) {
  if ((size_t)(r->end - r->p) < n) return too_short(r, n, what);
  memcpy(to, r->p, n);
  r->p += n;
  return true;
}

static bool take_level(Reader *r, Levels *l) {
  const uint8_t *start = r->p;
  uint64_t n = 0, last = 0;
  if (!take(r, &n, sizeof n, "the length of a LoD level")) return false;
  if (n % 8) {
    err_set(E_PAR_001, "a LoD level of %s has %s bytes, not whole 8-byte offsets", r->name,
            grouped(n));
    return at(r, start);
  }
  if ((uint64_t)(r->end - r->p) < n) return too_short(r, n, "a LoD level");
  l->at[l->n] = r->p;
  l->count[l->n] = n / 8;
  for (uint64_t i = 0; i < n / 8; i++, r->p += 8) {
    uint64_t offset;
    memcpy(&offset, r->p, sizeof offset);
    if (offset >= last && (i || offset == 0) && offset <= INT64_MAX) {
      last = offset;
      continue;
    }
    err_set(E_PAR_001, "the LoD offsets of %s do not grow from 0 (%s after %s)", r->name,
            grouped(offset), grouped(last));
    return at(r, r->p);
  }
  l->last[l->n++] = last;
  return true;
}

/* Offsets end within the sequences of the level below, or within the rows. */
static bool keep_levels(Reader *r, const Levels *l, const Tensor *t) {
  for (int i = 0; i < l->n; i++) {
    bool rows = i + 1 == l->n;
    uint64_t most = rows ? (uint64_t)(t->rank ? t->dims[0] : 0) : l->count[i + 1];
    if (!rows && most) most--;
    if (l->last[i] > most) {
      err_set(E_PAR_001, "the LoD offsets of %s end at %s, behind its %s %s", r->name,
              grouped(l->last[i]), grouped(most), rows ? "rows" : "sequences");
      return at(r, l->at[i]);
    }
    if (!r->levels) continue;
    ParamLevel level = {r->entry, l->n - 1 - i, {.dtype = DT_INT64, .rank = 1}};
    level.offsets.dims[0] = (int64_t)l->count[i];
    level.offsets.data = arena_dup(r->levels->arena, l->at[i], 8 * (size_t)l->count[i]);
    vec_add(r->levels->arena, &r->levels->all, level);
  }
  return true;
}

static bool take_tensor_head(Reader *r, int32_t *n_desc) {
  const uint8_t *start = r->p;
  uint32_t version = 0;
  if (!take(r, &version, sizeof version, "a tensor's version")) return false;
  if (version) return wrong_version(r, start, "tensor version", version);
  start = r->p;
  if (!take(r, n_desc, sizeof *n_desc, "the length of a description")) return false;
  if (*n_desc < 0 || *n_desc > DESC_MOST) {
    err_set(E_PAR_001, "not a parameter file: the description of %s would have %" PRId32 " bytes",
            r->name, *n_desc);
    return at(r, start);
  }
  return (size_t)(r->end - r->p) >= (size_t)*n_desc ||
         too_short(r, (uint64_t)*n_desc, "a description");
}

static bool take_head(Reader *r, int32_t *n_desc, Levels *l) {
  const uint8_t *start = r->p;
  uint32_t version = 0;
  uint64_t levels = 0;
  if (!take(r, &version, sizeof version, "a version")) return false;
  if (version) return wrong_version(r, start, "version", version);
  if (!take(r, &levels, sizeof levels, "a number of LoD levels")) return false;
  if (levels > (uint64_t)(r->end - r->p) / 8) {
    r->p -= 8;
    return too_short(r, levels > UINT64_MAX / 8 ? UINT64_MAX : levels * 8, "LoD levels");
  }
  if (levels > PARAMS_LEVELS) {
    err_set(E_PAR_001, "%s has %s LoD levels; at most %d are possible", r->name, grouped(levels),
            PARAMS_LEVELS);
    return at(r, start);
  }
  for (uint64_t i = 0; i < levels; i++)
    if (!take_level(r, l)) return false;
  return take_tensor_head(r, n_desc);
}

static void *desc_alloc(void *arena, size_t n) { return arena_alloc(arena, n); }
static void desc_free(void *arena, void *p) { (void)arena, (void)p; }

static bool take_desc(Reader *r, Arena *tmp, int32_t n, Tensor *t) {
  const uint8_t *start = r->p;
  ProtobufCAllocator allocator = {desc_alloc, desc_free, tmp};
  const Pb__VarType__TensorDesc *d =
      (void *)protobuf_c_message_unpack(&pb__var_type__tensor_desc__descriptor, &allocator,
                                        (size_t)n, r->p);
  bool ok = d;
  int64_t numel;
  if (!d)
    err_set(E_PAR_001, "not a parameter file: the description of %s is malformed", r->name);
  else if ((t->dtype = dtype_from_paddle((int)d->data_type)) == DT_NONE)
    ok = err_set(E_PAR_001, "%s has the element type %d, which Kiln does not know", r->name,
                 (int)d->data_type);
  else if (d->n_dims > KL_VAR_RANK)
    ok = err_set(E_PAR_001, "%s has %zu dimensions; Kiln takes at most %d", r->name, d->n_dims,
                 KL_VAR_RANK);
  for (size_t i = 0; ok && i < d->n_dims; i++) {
    t->dims[i] = d->dims[i];
    if (d->dims[i] < 0)
      ok = err_set(E_PAR_001, "dimension %zu of %s is %" PRId64, i, r->name, d->dims[i]);
  }
  t->rank = ok ? (int)d->n_dims : 0;
  ok = ok && dims_numel(t->dtype, t->rank, t->dims, &numel);
  if (!ok) return at(r, start);
  r->p += n;
  return true;
}

/* Equal up to unknown dimensions and one of 1 in front: a scalar and one element are the same. */
static bool shape_fits(const Tensor *t, const Var *v) {
  if (v->rank < 0) return true;
  int i = t->rank == v->rank + 1 && t->dims[0] == 1, k = v->rank == t->rank + 1 && v->dims[0] == 1;
  if (t->rank - i != v->rank - k) return false;
  for (; i < t->rank; i++, k++)
    if (v->dims[k] != -1 && v->dims[k] != t->dims[i]) return false;
  return true;
}

/* Tools that quantise put integers in place of weights and leave the variable declared as it was. */
static bool type_fits(const Tensor *t, const Var *v) {
  bool quantised = t->dtype == DT_INT8 || t->dtype == DT_INT16;
  return v->dtype == DT_NONE || v->dtype == t->dtype || (quantised && v->dtype == DT_FLOAT32);
}

bool params_fit(const Tensor *t, const Var *v) {
  if (!v || (type_fits(t, v) && (v->dtype == DT_NONE || shape_fits(t, v)))) return true;
  err_set(E_PAR_002, "%s is %s in the parameter file, %s in the program", quoted(v->name),
          shape_text(t->dtype, t->rank, t->dims),
          shape_text(v->dtype, v->rank < 0 ? 0 : v->rank, v->dims));
  err_help("The parameters belong to another program, or to another version of it.");
  return false;
}

static bool take_data(Reader *r, const Tensor *t, const uint8_t **data) {
  size_t bytes = tensor_bytes(t);
  if ((size_t)(r->end - r->p) < bytes)
    return too_short(r, bytes, shape_text(t->dtype, t->rank, t->dims));
  *data = r->p;
  r->p += bytes;
  return true;
}

static bool take_entry(Reader *r, Arena *tmp, const Var *v, Tensor *t, const uint8_t **data) {
  const uint8_t *start = r->p;
  int32_t n_desc = 0;
  Levels l = {0};
  if (!take_head(r, &n_desc, &l) || !take_desc(r, tmp, n_desc, t)) return false;
  if (!params_fit(t, v)) return at(r, start);
  return take_data(r, t, data) && keep_levels(r, &l, t);
}

/* Into the arena, or NULL: as it stands. Truth values become 0 or 1. */
static void put_data(Arena *a, uint8_t *from, Tensor *t) {
  size_t n = tensor_bytes(t);
  uint8_t *to = a ? arena_alloc(a, n) : from;
  if (a && n) memcpy(to, from, n);
  for (size_t i = 0; t->dtype == DT_BOOL && i < n; i++)
    if (to[i] > 1) to[i] = 1;
  t->data = to;
}

__attribute__((noinline)) static bool take_all(Reader *r, Arena *tmp, int n, Var *const *vars,
                                               Arena *a, Tensor *out) {
  const uint8_t **data = arena_array(tmp, const uint8_t *, n);
  for (int i = 0; i < n; i++) {
    const Var *v = vars ? vars[i] : NULL;
    r->name = v ? arena_str(tmp, quoted(v->name)) : arena_fmt(tmp, "tensor %d", i);
    if (v && v->kind == VK_SELECTED_ROWS)
      return err_set(E_PAR_002, "%s is a set of selected rows; a combined file cannot hold those",
                     r->name);
    if (r->p == r->end) {
      err_set(E_PAR_004, "parameter file ends before %s", r->name);
      err_where("%s at byte %s: %d of %d tensors read", r->file,
                grouped((uint64_t)(r->p - r->base)), i, n);
      err_help("The file was cut off, or belongs to another program.");
      return false;
    }
    memset(&out[i], 0, sizeof out[i]);
    r->entry = i;
    if (!take_entry(r, tmp, v, &out[i], &data[i])) return false;
  }
  if (r->p != r->end) {
    err_set(E_PAR_003, "%s bytes are left over after %d tensors",
            grouped((uint64_t)(r->end - r->p)), n);
    err_help("The file belongs to another program, one with more persistable variables.");
    return at(r, r->p);
  }
  for (int i = 0; i < n; i++) put_data(a, (uint8_t *)data[i], &out[i]);
  return true;
}

bool params_decode(const uint8_t *bytes, size_t n_bytes, const char *file, int n, Var *const *vars,
                   Arena *a, Tensor *out, ParamLevels *levels) {
  Arena *tmp = arena_new();
  MemGuard g;
  if (MEM_GUARD(g)) {
    arena_free(tmp);
    return false;
  }
  Reader r = {bytes, bytes, bytes + n_bytes, file ? file : "parameters", "", levels, 0};
  bool ok = take_all(&r, tmp, n, vars, a, out);
  mem_unguard(&g);
  arena_free(tmp);
  return ok;
}

bool params_view(uint8_t *bytes, size_t n_bytes, const char *file, int n, Var *const *vars,
                 Tensor *out, ParamLevels *levels) {
  return params_decode(bytes, n_bytes, file, n, vars, NULL, out, levels);
}

/* ---- one variable's own file ---- */

typedef struct Rows {
  uint64_t n;
  const uint8_t *at; /* n x i64, on any alignment */
  int64_t height;
} Rows;

static bool take_rows(Reader *r, Rows *rows) {
  uint32_t version = 0;
  if (!take(r, &version, sizeof version, "a version")) return false;
  if (version) return wrong_version(r, r->base, "version", version);
  if (!take(r, &rows->n, sizeof rows->n, "a number of rows")) return false;
  uint64_t most = (uint64_t)(r->end - r->p) / 8;
  if (rows->n > most) return too_short(r, UINT64_MAX, "the numbers of rows");
  rows->at = r->p;
  r->p += 8 * rows->n;
  return take(r, &rows->height, sizeof rows->height, "a height");
}

/* The rows in their places of a zero tensor; a row that is there twice counts twice. */
static bool spread_rows(const Reader *r, const Rows *rows, const Tensor *t, Tensor *out, Arena *a) {
  size_t width = rows->n ? tensor_bytes(t) / rows->n : 0;
  int64_t numel;
  out->dims[0] = rows->height;
  if (!dims_numel(t->dtype, t->rank, out->dims, &numel)) return at(r, rows->at);
  if (tensor_bytes(out) > ((size_t)32 << 20) + 2 * (size_t)(r->end - r->base)) {
    err_set(E_MEM_002, "%s has %s rows of %s; that many are not made dense", r->name,
            grouped(rows->n), grouped((uint64_t)rows->height));
    return at(r, rows->at);
  }
  const Tensor shape = *out;
  if (!tensor_make(out, a, t->dtype, t->rank, shape.dims)) return false;
  Tensor row = {.dtype = t->dtype,
                .rank = 1,
                .dims = {t->rank && width ? (int64_t)width / dtype_info[t->dtype].size : 0}};
  Tensor to = row;
  row.data = arena_alloc(a, width + 1);
  for (uint64_t i = 0; i < rows->n; i++) {
    int64_t k;
    memcpy(&k, rows->at + 8 * i, sizeof k);
    if (k < 0 || k >= rows->height) {
      err_set(E_PAR_001, "%s has a row %" PRId64 " of %" PRId64, r->name, k, rows->height);
      return at(r, rows->at + 8 * i);
    }
    memcpy(row.data, (const char *)t->data + i * width, width);
    to.data = (char *)out->data + (size_t)k * width;
    for (int64_t e = 0; e < row.dims[0]; e++)
      tensor_set(&to, e, tensor_get(&to, e) + tensor_get(&row, e));
  }
  return true;
}

static bool take_selected(Reader *r, Arena *tmp, const Var *v, Arena *a, Tensor *out) {
  Rows rows = {0};
  int32_t n_desc = 0;
  Tensor t = {0};
  const uint8_t *data = NULL;
  bool ok = take_rows(r, &rows) && take_tensor_head(r, &n_desc) && take_desc(r, tmp, n_desc, &t) &&
            take_data(r, &t, &data);
  if (!ok) return false;
  if (t.rank < 1 || (uint64_t)t.dims[0] != rows.n) {
    err_set(E_PAR_001, "%s has %s rows, its tensor is %s", r->name, grouped(rows.n),
            shape_text(t.dtype, t.rank, t.dims));
    return at(r, r->base);
  }
  put_data(NULL, (uint8_t *)data, &t);
  *out = t;
  return spread_rows(r, &rows, &t, out, a) && (params_fit(out, v) || at(r, r->base));
}

__attribute__((noinline)) static bool take_one(Reader *r, Arena *tmp, const Var *v, Arena *a,
                                               Tensor *out) {
  const uint8_t *data;
  r->name = arena_str(tmp, quoted(v->name));
  memset(out, 0, sizeof *out);
  bool rows = v->kind == VK_SELECTED_ROWS;
  if (rows ? !take_selected(r, tmp, v, a, out) : !take_entry(r, tmp, v, out, &data)) return false;
  if (r->p != r->end) {
    err_set(E_PAR_003, "%s bytes are left over after %s", grouped((uint64_t)(r->end - r->p)),
            r->name);
    return at(r, r->p);
  }
  if (!rows) put_data(NULL, (uint8_t *)data, out);
  return true;
}

bool params_view_one(uint8_t *bytes, size_t n_bytes, const char *file, const Var *v, Arena *a,
                     Tensor *out, ParamLevels *levels) {
  Arena *tmp = arena_scratch();
  Reader r = {bytes, bytes, bytes + n_bytes, file, "", levels, 0};
  bool ok = take_one(&r, tmp, v, a, out);
  arena_free(tmp);
  return ok;
}

/* ---- which variables ---- */

static int compare_vars(const void *a, const void *b) {
  return strcmp((*(Var *const *)a)->name, (*(Var *const *)b)->name);
}

int params_list(const Program *p, Arena *a, Var ***vars) {
  const unsigned never = 1u << VK_FEED | 1u << VK_FETCH | 1u << VK_READER | 1u << VK_RAW;
  int most = 0, n = 0;
  for (int b = 0; b < p->blocks.n; b++) most += p->blocks.v[b]->vars.n;
  Var **list = arena_array(a, Var *, most);
  Map *seen = map_new(a);
  for (int b = 0; b < p->blocks.n; b++)
    for (int i = 0; i < p->blocks.v[b]->vars.n; i++) {
      Var *v = p->blocks.v[b]->vars.v[i];
      if (!v->persistable || never >> v->kind & 1 || map_get(seen, v->name)) continue;
      map_put(seen, v->name, v);
      list[n++] = v;
    }
  if (n) qsort(list, (size_t)n, sizeof *list, compare_vars);
  *vars = list;
  return n;
}

/* ---- writing ---- */

/* Readers of protocol buffers skip fields that they do not know: such a field fills the description up to where the data
 * behind it is aligned. `at`: of the description in the file. */
static int32_t pad_desc(uint8_t *desc, int32_t n, size_t at) {
  enum { UNKNOWN_BYTES = 15 << 3 | 2 };
  size_t gap = (PARAMS_ALIGN - (at + (size_t)n) % PARAMS_ALIGN) % PARAMS_ALIGN;
  if (gap == 1) gap += PARAMS_ALIGN;
  if (!gap) return n;
  desc[n] = UNKNOWN_BYTES;
  desc[n + 1] = (uint8_t)(gap - 2);
  memset(desc + n + 2, 0, gap - 2);
  return n + (int32_t)gap;
}

bool params_head(Str *out, size_t at, const Tensor *t, int n_levels, const Tensor *const *level) {
  uint8_t desc[DESC_MOST];
  Pb__VarType__TensorDesc d = PB__VAR_TYPE__TENSOR_DESC__INIT;
  if (!t || t->dtype >= DT_N) return err_set(E_RUN_001, "a tensor to save has no value");
  d.data_type = (Pb__VarType__Type)dtype_info[t->dtype].paddle;
  d.n_dims = (size_t)t->rank;
  d.dims = (int64_t *)t->dims;
  int32_t n_desc = (int32_t)protobuf_c_message_pack(&d.base, desc);
  const uint32_t version = 0;
  const uint64_t levels = (uint64_t)n_levels;
  size_t head = 2 * sizeof version + sizeof levels + sizeof n_desc;
  for (int i = 0; i < n_levels; i++) head += sizeof(uint64_t) + tensor_bytes(level[i]);
  if (tensor_bytes(t) >= PARAMS_LARGE) n_desc = pad_desc(desc, n_desc, at + head);
  str_addn(out, (const char *)&version, sizeof version);
  str_addn(out, (const char *)&levels, sizeof levels);
  for (int i = 0; i < n_levels; i++) {
    const uint64_t bytes = tensor_bytes(level[i]);
    str_addn(out, (const char *)&bytes, sizeof bytes);
    str_addn(out, level[i]->data, bytes);
  }
  str_addn(out, (const char *)&version, sizeof version);
  str_addn(out, (const char *)&n_desc, sizeof n_desc);
  str_addn(out, (const char *)desc, (size_t)n_desc);
  return true;
}

bool params_encode(Str *out, int n, const Tensor *const *t) {
  size_t start = out->n;
  for (int i = 0; i < n; i++) {
    if (!params_head(out, out->n - start, t[i], 0, NULL)) return false;
    str_addn(out, t[i]->data, tensor_bytes(t[i]));
  }
  return true;
}
