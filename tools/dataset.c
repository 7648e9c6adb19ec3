/* Data sets: one array file per fed variable, row for row.
 *
 * In: NAME=FILE[:scale=A][:shift=B] specs and the program that declares the variables. Out: columns in the variables'
 * element types, and batches gathered from them. A file whose rows have as many elements as the variable's rows is
 * reshaped; other shapes are an error that names both. Scale may be a fraction such as 1/255. Where offsets cut a column's
 * rows into sequences (NAME@LOD, given or from the file), batches are of whole sequences. */
#include "tools.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct Spec {
  char *name, *file;
  double scale, shift;
} Spec;

static bool parse_number(const char *text, double *v) {
  char *end;
  *v = text_double(text, &end);
  if (end != text && *end == '/') {
    const char *den = end + 1;
    double d = text_double(den, &end);
    if (end == den || d == 0) return false;
    *v /= d;
  }
  return end != text && !*end;
}

/* Takes a trailing ":key=number" off the text. */
static bool take_option(char *text, const char *key, double *v, bool *found) {
  char *at = strrchr(text, ':');
  size_t n = strlen(key);
  *found = at && !strncmp(at + 1, key, n) && at[1 + n] == '=';
  if (!*found) return true;
  if (!parse_number(at + 2 + n, v))
    return err_set(E_ARG_001, "%s is not a number", quoted(at + 2 + n));
  *at = 0;
  return true;
}

static bool parse_spec(Arena *a, const char *text, Spec *s) {
  *s = (Spec){.scale = 1};
  char *copy = arena_str(a, text), *eq = strchr(copy, '=');
  if (!eq || eq == copy || !eq[1]) {
    err_set(E_ARG_001, "--feed %s is not NAME=FILE", quoted(text));
    return false;
  }
  *eq = 0;
  s->name = copy;
  s->file = eq + 1;
  for (bool more = true; more;) {
    bool scale, shift;
    if (!take_option(s->file, "scale", &s->scale, &scale) ||
        !take_option(s->file, "shift", &s->shift, &shift))
      return false;
    more = scale || shift;
  }
  return true;
}

static const Var *spec_var(const Program *p, const char *name) {
  static const Var offsets = {.name = "offsets", .dtype = DT_INT64, .rank = 1, .dims = {-1}};
  const Block *b = p->blocks.v[0];
  size_t n = strlen(name), k = strlen(LOD_SUFFIX);
  if (n > k && !strcmp(name + n - k, LOD_SUFFIX)) return &offsets;
  const Var *v = block_var(b, name);
  if (v && v->dtype != DT_NONE) return v;
  err_set(E_DAT_001, "%s is fed, but the program has no such variable", quoted(name));
  block_suggest(b, name);
  return NULL;
}

/* The column's shape: rows of the file, the rest as the variable says, -1 taken from the file. */
static bool column_shape(const Var *v, const Tensor *file, const char *path, Tensor *col) {
  int64_t per_file = 1, per_var = 1; /* elements of a row; open dimensions count as 1 */
  bool open_row = false;
  col->dtype = v->dtype;
  col->rank = v->rank;
  for (int i = 1; i < file->rank; i++) per_file *= file->dims[i];
  if (v->rank) col->dims[0] = file->rank ? file->dims[0] : 1;
  for (int i = 1; i < v->rank; i++) {
    bool open = v->dims[i] < 0;
    col->dims[i] = open && file->rank == v->rank ? file->dims[i] : v->dims[i];
    open_row = open_row || col->dims[i] < 0;
    per_var *= col->dims[i] < 0 ? 1 : col->dims[i];
  }
  bool first = v->rank ? v->dims[0] < 0 || v->dims[0] == col->dims[0] : tensor_numel(file) == 1;
  if (!open_row && per_var == per_file && first) return true;
  err_set(E_DAT_001, "%s holds %s, which does not fit %s", quoted(path),
          shape_text(file->dtype, file->rank, file->dims), quoted(v->name));
  err_note("%s is %s: %s%lld element%s a row, the file has %lld", quoted(v->name),
           shape_text(v->dtype, v->rank, v->dims), open_row ? "a multiple of " : "",
           (long long)per_var, per_var == 1 ? "" : "s", (long long)per_file);
  if (open_row) err_help("An open dimension is that of a file with %d dimensions.", v->rank);
  return false;
}

/* Has a value, cut to a whole one, no place in this type? */
static bool no_place(DType t, double v) {
  if (dtype_is_float(t) || t == DT_BOOL) return false;
  double span = ldexp(1, 8 * dtype_info[t].size - (t != DT_UINT8));
  return !(trunc(v) < span && trunc(v) >= (t == DT_UINT8 ? 0 : -span));
}

static bool convert(const Tensor *from, Tensor *to, const Spec *s) {
  int64_t n = tensor_numel(from);
  bool plain = s->scale == 1 && s->shift == 0;
  if (plain && from->dtype == to->dtype) {
    memcpy(to->data, from->data, tensor_bytes(from));
    return true;
  }
  for (int64_t i = 0; i < n; i++) {
    double v = tensor_get(from, i) * s->scale + s->shift;
    if (no_place(to->dtype, v))
      return err_set(E_DAT_001, "element %lld of %s, %g, has no place in %s, which is %s",
                     (long long)i, quoted(s->file), v, quoted(s->name), dtype_info[to->dtype].name);
    tensor_set(to, i, v);
  }
  return true;
}

/* NAME@LOD from "0,3,5". */
static bool lod_column(Dataset *d, const char *name, const char *text) {
  Column *c = &d->col[d->n];
  int64_t n = 1;
  for (const char *t = text; *t; t++) n += *t == ',';
  c->all = (Tensor){.dtype = DT_INT64, .rank = 1, .dims = {n}};
  c->name = arena_fmt(d->arena, "%s" LOD_SUFFIX, name);
  c->file = text;
  int64_t *to = c->all.data = mem_alloc(sizeof *to * (size_t)n);
  c->batch = c->all;
  c->batch.data = NULL;
  d->n++;
  char *end;
  for (int64_t i = 0; i < n; i++, text = end + 1) {
    to[i] = strtoll(text, &end, 10);
    if (end == text || *end != (i + 1 < n ? ',' : 0))
      return err_set(E_ARG_001, "lod=%s is not a list of offsets", quoted(c->file));
  }
  return true;
}

/* The offsets of sequences that a file holds become columns of their own. */
static bool lod_of_file(Dataset *d, const char *name, const char *file) {
  kl_tensor levels[PARAMS_LEVELS] = {{0}};
  int n = strcmp(file, "-") ? kl_read_lod(file, levels, PARAMS_LEVELS) : 0;
  bool ok = n >= 0 && (d->n + n <= LIST_MAX || err_set(E_ARG_001, "more than %d feeds", LIST_MAX));
  for (int i = 0; i < n; i++) {
    if (!ok) {
      kl_tensor_free(&levels[i]);
      continue;
    }
    d->col[d->n++] = (Column){.name = lod_name(d->arena, name, i),
                              .file = arena_str(d->arena, file),
                              .all = *as_tensor(&levels[i])};
  }
  return ok;
}

static bool open_column(Dataset *d, const Program *p, const char *text) {
  Spec s;
  kl_tensor file;
  Column *c = &d->col[d->n];
  if (!parse_spec(d->arena, text, &s)) return false;
  const Var *v = spec_var(p, s.name);
  if (!v || !kl_read_array(s.file, &file)) return false;
  bool ok = column_shape(v, as_tensor(&file), s.file, &c->all);
  if (ok) {
    size_t bytes = tensor_bytes(&c->all);
    c->name = s.name;
    c->file = s.file;
    c->all.data = mem_alloc(bytes ? bytes : 1);
    ok = convert(as_tensor(&file), &c->all, &s);
    c->batch = c->all;
    c->batch.data = NULL;
    d->n++;
  }
  kl_tensor_free(&file);
  return ok;
}

bool dataset_read(Dataset *d, const Program *p, const List *specs) {
  *d = (Dataset){.arena = arena_new()};
  for (int i = 0; i < specs->n; i++) {
    char *text = arena_str(d->arena, specs->v[i]), *lod = strstr(text, ":lod=");
    if (lod) *lod = 0;
    int first = d->n;
    if (!open_column(d, p, text)) return false;
    const Column *c = &d->col[first];
    if (!lod && !lod_of_file(d, c->name, c->file)) return false;
    if (lod && d->n == LIST_MAX) return err_set(E_ARG_001, "more than %d feeds", LIST_MAX);
    if (lod && !lod_column(d, d->col[d->n - 1].name, lod + 5)) return false;
  }
  return true;
}

/* Which column are the offsets of which. */
static bool find_sequences(Dataset *d) {
  for (int i = 0; i < d->n; i++) {
    Column *c = &d->col[i];
    const char *name = lod_name(d->arena, c->name, 0);
    c->lod = d->n - 1;
    while (c->lod >= 0 && strcmp(d->col[c->lod].name, name)) c->lod--;
    if (c->lod < 0) continue;
    Column *l = &d->col[c->lod];
    l->offsets = true;
    if (lod_base(c->name, d->arena)) {
      err_set(E_OPR_004, "batches of sequences of sequences (%s)", quoted(l->name));
      err_help("kiln run takes them whole");
      return false;
    }
    if (!lod_fits(&l->all, c->all.rank ? c->all.dims[0] : -1))
      return err_set(E_DAT_001, "%s is not the offsets of sequences of the rows of %s",
                     quoted(l->name), quoted(c->file));
  }
  return true;
}

bool dataset_open(Dataset *d, const Program *p, const List *specs) {
  if (!dataset_read(d, p, specs) || !find_sequences(d)) return false;
  const Column *first = NULL;
  for (int i = 0; i < d->n; i++) {
    const Column *c = &d->col[i];
    if (c->offsets) continue;
    int64_t rows = c->all.rank ? c->all.dims[0] : 1;
    if (c->lod >= 0) rows = d->col[c->lod].all.dims[0] - 1;
    if (first && rows != d->rows) {
      err_set(E_DAT_001, "%s has %lld rows, %s has %lld", quoted(first->file), (long long)d->rows,
              quoted(c->file), (long long)rows);
      return false;
    }
    first = c;
    d->rows = rows;
  }
  return true;
}

void dataset_close(Dataset *d) {
  for (int i = 0; i < d->n; i++) {
    mem_free(d->col[i].all.data);
    mem_free(d->col[i].batch.data);
  }
  arena_free(d->arena);
}

/* Whole sequences, and their offsets in the batch. */
static void sequence_batch(Column *c, Column *l, const int64_t *order, int64_t begin, int64_t end) {
  const int64_t *at = l->all.data;
  size_t row = c->all.dims[0] ? tensor_bytes(&c->all) / (size_t)c->all.dims[0] : 0;
  int64_t rows = 0, *to;
  mem_free(l->batch.data);
  l->batch = (Tensor){.dtype = DT_INT64, .rank = 1, .dims = {end - begin + 1}};
  to = l->batch.data = mem_alloc(sizeof *to * (size_t)(end - begin + 1));
  for (int64_t r = begin; r < end; r++) {
    int64_t s = order ? order[r] : r;
    to[r - begin] = rows;
    rows += at[s + 1] - at[s];
  }
  to[end - begin] = rows;
  mem_free(c->batch.data);
  c->batch = c->all;
  c->batch.data = NULL;
  c->batch.dims[0] = rows;
  c->batch.data = mem_alloc(row * (size_t)rows + 1);
  for (int64_t r = begin; r < end; r++) {
    int64_t s = order ? order[r] : r;
    memcpy((char *)c->batch.data + (size_t)to[r - begin] * row,
           (char *)c->all.data + (size_t)at[s] * row, (size_t)(at[s + 1] - at[s]) * row);
  }
}

void dataset_batch(Dataset *d, const int64_t *order, int64_t begin, int64_t end, Feed *feeds) {
  for (int i = 0; i < d->n; i++) {
    Column *c = &d->col[i];
    feeds[i] = (Feed){c->name, &c->batch};
    if (c->lod >= 0) sequence_batch(c, &d->col[c->lod], order, begin, end);
    if (c->offsets || c->lod >= 0) continue;
    size_t row = d->rows ? tensor_bytes(&c->all) / (size_t)d->rows : 0;
    if (!c->batch.data || c->room < end - begin) {
      mem_free(c->batch.data);
      c->batch.data = mem_alloc(row * (size_t)(end - begin) + 1);
      c->room = end - begin;
    }
    if (c->batch.rank) c->batch.dims[0] = end - begin;
    for (int64_t r = begin; r < end; r++) {
      int64_t from = order ? order[r] : r;
      memcpy((char *)c->batch.data + (size_t)(r - begin) * row,
             (char *)c->all.data + (size_t)from * row, row);
    }
  }
}

bool write_npy(const char *path, const Tensor *t) {
  static const struct {
    DType t;
    const char *code;
  } codes[] = {{DT_BOOL, "|b1"},    {DT_UINT8, "|u1"},   {DT_INT8, "|i1"},
               {DT_INT16, "<i2"},   {DT_INT32, "<i4"},   {DT_INT64, "<i8"},
               {DT_FLOAT16, "<f2"}, {DT_FLOAT32, "<f4"}, {DT_FLOAT64, "<f8"}};
  const char *code = NULL;
  for (size_t i = 0; i < sizeof codes / sizeof *codes; i++)
    if (codes[i].t == t->dtype) code = codes[i].code;
  if (!code) return err_set(E_TYP_002, ".npy has no type for %s", dtype_info[t->dtype].name);
  Arena *a = arena_new();
  Str h, f;
  str_init(&h, a);
  str_init(&f, a);
  str_fmt(&h, "{'descr': '%s', 'fortran_order': False, 'shape': (", code);
  for (int i = 0; i < t->rank; i++) str_fmt(&h, "%lld,", (long long)t->dims[i]);
  str_add(&h, "), }");
  while ((10 + h.n + 1) % 64) str_add(&h, " ");
  str_add(&h, "\n");
  uint8_t head[10] = {0x93, 'N', 'U', 'M', 'P', 'Y', 1, 0, (uint8_t)h.n, (uint8_t)(h.n >> 8)};
  str_addn(&f, (char *)head, sizeof head);
  str_addn(&f, h.s, h.n);
  str_addn(&f, t->data, tensor_bytes(t));
  bool ok = vfs_write(path, f.s, f.n);
  arena_free(a);
  return ok;
}
