/* Arrays from files: .npy, .npz, IDX (the MNIST format), each also gzipped; tensor files of PaddlePaddle (ir/params.c); bare
 * numbers.
 *
 * In: a path; "FILE.npz:NAME" names a member of an archive, otherwise it must hold one; "FILE:float32:64x784" says what bare
 * numbers are. Out: a tensor in memory of its own. Otherwise the format is recognised by content. Formats: NumPy's NEP 1 (.npy), PKZIP with stored or deflated members (.npz), LeCun's
 * IDX. Every count is checked against the bytes that are there; inflation is bounded. */
#include "internal.h"
#include <ctype.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

typedef struct Bytes {
  const uint8_t *p;
  size_t n;
} Bytes;

static const size_t MAX_INFLATED = (size_t)4 << 30;

static bool bad(const char *path, const char *what) {
  err_set(E_DAT_003, "%s", what);
  err_where("%s", path);
  err_help("arrays can be .npy, .npz or IDX files, each also gzipped, or bare numbers, as "
           "FILE:float32:64x784");
  return false;
}

typedef struct Inflating {
  z_stream z;
  uint8_t *buf;
  size_t n, cap;
} Inflating;

static bool inflate_into(Inflating *f) {
  int r = Z_OK;
  f->buf = mem_alloc(f->cap);
  while (r == Z_OK && f->n < MAX_INFLATED) {
    if (f->n == f->cap) {
      uint8_t *bigger = mem_alloc(f->cap * 2);
      memcpy(bigger, f->buf, f->n);
      mem_free(f->buf);
      f->buf = bigger;
      f->cap *= 2;
    }
    f->z.next_out = f->buf + f->n;
    f->z.avail_out = (uInt)(f->cap - f->n > 1u << 30 ? 1u << 30 : f->cap - f->n);
    r = inflate(&f->z, Z_NO_FLUSH);
    f->n = (size_t)(f->z.next_out - f->buf);
    if (r == Z_BUF_ERROR && f->z.avail_in == 0) break;
  }
  return r == Z_STREAM_END;
}

static void inflate_done(Inflating *f) {
  inflateEnd(&f->z);
  mem_free(f->buf);
}

/* Inflates a zlib (raw or gzip) stream; window_bits as zlib wants them. */
static bool inflate_all(Arena *a, Bytes in, int window_bits, size_t hint, const char *path,
                        Bytes *out) {
  Inflating *const f = arena_new_of(a, Inflating);
  f->z = (z_stream){.next_in = (Bytef *)(uintptr_t)in.p, .avail_in = (uInt)in.n};
  f->cap = hint ? hint : in.n * 4 + 1024;
  if (in.n > UINT32_MAX || inflateInit2(&f->z, window_bits) != Z_OK)
    return bad(path, "the compressed data cannot be read");
  MemGuard guard;
  if (MEM_GUARD(guard)) {
    inflate_done(f);
    mem_rethrow();
  }
  bool ok = inflate_into(f);
  if (ok) *out = (Bytes){arena_dup(a, f->buf, f->n), f->n};
  mem_unguard(&guard);
  inflate_done(f);
  return ok || bad(path, "the compressed data is damaged, cut off, or inflates to over 4 GiB");
}

/* width: bytes of an element in the file. */
static bool make(kl_tensor *to, DType t, size_t width, int rank, const int64_t *dims, size_t have,
                 const char *path) {
  int64_t n;
  *to = (kl_tensor){.dtype = (kl_dtype)t, .rank = rank};
  if (!dims_numel(t, rank, dims, &n)) return err_where("%s", path), false;
  memcpy(to->dims, dims, sizeof *dims * (size_t)rank);
  size_t want = (size_t)n * width;
  if (have != want) {
    err_set(E_DAT_003, "%s needs %zu bytes; %zu are there", shape_text(t, rank, dims), want, have);
    return err_where("%s", path), false;
  }
  to->data = mem_alloc(tensor_bytes(as_tensor(to)) + 1);
  return true;
}

/* Copies elements of this width, unsigned where the type is wider, to the machine's (little-endian) order. False: one has no
 * place in the type. */
static bool copy_elements(kl_tensor *to, const uint8_t *from, size_t width, bool swap,
                          bool positive) {
  size_t size = (size_t)dtype_info[to->dtype].size, n = (size_t)kl_numel(to);
  uint8_t *d = to->data;
  bool fits = true;
  if (to->dtype == KL_BOOL) {
    for (size_t i = 0; i < n; i++) d[i] = from[i] != 0;
  } else if (!swap && width == size) {
    memcpy(d, from, n * size);
  } else {
    memset(d, 0, n * size);
    for (size_t i = 0; i < n; i++)
      for (size_t j = 0; j < width; j++)
        d[i * size + j] = from[i * width + (swap ? width - 1 - j : j)];
  }
  for (size_t i = 0; positive && i < n; i++) fits = fits && d[(i + 1) * size - 1] < 128;
  return fits;
}

/* ---- IDX: 0 0 type rank, dims as big-endian u32, elements big-endian ---- */

static bool read_idx(Bytes b, const char *path, kl_tensor *to) {
  static const struct {
    uint8_t code;
    DType t;
  } types[] = {{8, DT_UINT8},  {9, DT_INT8},     {11, DT_INT16},
               {12, DT_INT32}, {13, DT_FLOAT32}, {14, DT_FLOAT64}};
  DType t = DT_NONE;
  for (size_t i = 0; i < sizeof types / sizeof *types; i++)
    if (types[i].code == b.p[2]) t = types[i].t;
  int rank = b.p[3];
  if (t == DT_NONE || rank > KL_VAR_RANK || b.n < 4 + 4 * (size_t)rank)
    return bad(path, "the IDX header is damaged");
  int64_t dims[KL_VAR_RANK];
  for (int i = 0; i < rank; i++) {
    const uint8_t *p = b.p + 4 + 4 * i;
    dims[i] = (int64_t)p[0] << 24 | (int64_t)p[1] << 16 | (int64_t)p[2] << 8 | p[3];
  }
  size_t head = 4 + 4 * (size_t)rank;
  size_t width = (size_t)dtype_info[t].size;
  return make(to, t, width, rank, dims, b.n - head, path) &&
         copy_elements(to, b.p + head, width, true, false);
}

/* ---- bare numbers, little-endian ---- */

typedef struct Place {
  const char *file, *member; /* member: NULL, or of an archive */
  DType raw;                 /* DT_NONE: recognised by content */
  int rank;
  int64_t dims[KL_VAR_RANK]; /* the first may be -1: as many as there are */
} Place;

static bool raw_dims(const char *p, Place *to) {
  for (to->rank = 0; to->rank < KL_VAR_RANK;) {
    char *end;
    int64_t d = strtoll(p, &end, 10);
    if (end == p || d < (to->rank ? 0 : -1)) return false;
    to->dims[to->rank++] = d;
    if (!*end) return true;
    if (*end != 'x') return false;
    p = end + 1;
  }
  return false;
}

static Place place_of(Arena *a, const char *path) {
  Place p = {.file = path, .raw = DT_NONE};
  const char *member = strstr(path, ".npz:"), *dims = strrchr(path, ':'), *type = dims;
  if (member) {
    p.file = arena_strn(a, path, (size_t)(member + 4 - path));
    p.member = member + 5;
    return p;
  }
  while (type && type > path && *--type != ':') {}
  if (!type || type == path) return p;
  DType raw = dtype_find(arena_strn(a, type + 1, (size_t)(dims - type - 1)));
  if (raw == DT_NONE || !raw_dims(dims + 1, &p)) return p;
  p.raw = raw;
  p.file = arena_strn(a, path, (size_t)(type - path));
  return p;
}

static bool read_raw(const Place *p, Bytes b, kl_tensor *to) {
  int64_t dims[KL_VAR_RANK], rest;
  size_t width = (size_t)dtype_info[p->raw].size;
  memcpy(dims, p->dims, sizeof dims);
  if (!dims_numel(p->raw, p->rank - 1, dims + 1, &rest)) return err_where("%s", p->file), false;
  if (dims[0] < 0) dims[0] = rest ? (int64_t)(b.n / width) / rest : 0;
  return make(to, p->raw, width, p->rank, dims, b.n, p->file) &&
         copy_elements(to, b.p, width, false, false);
}

/* ---- npy: magic, version, header length, a Python dict literal, elements ---- */

static const char *after_key(const char *head, const char *key) {
  const char *p = strstr(head, key);
  if (!p) return NULL;
  p += strlen(key);
  while (*p == ':' || isspace((unsigned char)*p)) p++;
  return p;
}

typedef struct NpyType {
  const char *code;
  DType t;
  size_t width; /* unsigned numbers become the next wider type */
  bool positive;
} NpyType;

static const NpyType *npy_type(const char *descr, bool *swap) {
  static const NpyType types[] = {{"f4", DT_FLOAT32, 4, false}, {"f8", DT_FLOAT64, 8, false},
                                  {"f2", DT_FLOAT16, 2, false}, {"i1", DT_INT8, 1, false},
                                  {"i2", DT_INT16, 2, false},   {"i4", DT_INT32, 4, false},
                                  {"i8", DT_INT64, 8, false},   {"u1", DT_UINT8, 1, false},
                                  {"u2", DT_INT32, 2, false},   {"u4", DT_INT64, 4, false},
                                  {"u8", DT_INT64, 8, true},    {"b1", DT_BOOL, 1, false},
                                  {"?", DT_BOOL, 1, false}};
  if (*descr == '\'' || *descr == '"') descr++;
  *swap = *descr == '>';
  if (strchr("<>|=", *descr) && *descr) descr++;
  for (size_t i = 0; i < sizeof types / sizeof *types; i++)
    if (!strncmp(descr, types[i].code, strlen(types[i].code))) return &types[i];
  return NULL;
}

static bool npy_dims(const char *p, int *rank, int64_t *dims) {
  if (*p++ != '(') return false;
  for (*rank = 0;; ++*rank) {
    while (isspace((unsigned char)*p) || *p == ',') p++;
    if (*p == ')') return true;
    if (*rank == KL_VAR_RANK || !isdigit((unsigned char)*p)) return false;
    char *end;
    dims[*rank] = strtoll(p, &end, 10);
    p = end;
  }
}

/* From the order in which the first index runs fastest to the other one. */
static void to_c_order(kl_tensor *t) {
  size_t size = (size_t)dtype_info[t->dtype].size, n = (size_t)kl_numel(t);
  int64_t at[KL_VAR_RANK] = {0};
  uint8_t *from = t->data, *to = mem_alloc(n * size + 1);
  for (size_t i = 0; i < n; i++) {
    int64_t f = 0;
    for (int d = t->rank - 1; d >= 0; d--) f = f * t->dims[d] + at[d];
    memcpy(to + i * size, from + (size_t)f * size, size);
    for (int d = t->rank - 1; d >= 0 && ++at[d] == t->dims[d]; d--) at[d] = 0;
  }
  mem_free(from);
  t->data = to;
}

static bool read_npy(Arena *a, Bytes b, const char *path, kl_tensor *to) {
  if (b.n < 10) return bad(path, "the .npy header is cut off");
  bool v1 = b.p[6] == 1;
  size_t at = v1 ? 10 : 12;
  size_t len = b.p[8] | (size_t)b.p[9] << 8;
  if (!v1 && b.n >= 12) len |= (size_t)b.p[10] << 16 | (size_t)b.p[11] << 24;
  if (b.n < at || len > b.n - at) return bad(path, "the .npy header is cut off");
  const char *head = arena_strn(a, (const char *)b.p + at, len);
  const char *descr = after_key(head, "'descr'"), *shape = after_key(head, "'shape'"),
             *order = after_key(head, "'fortran_order'");
  int rank;
  int64_t dims[KL_VAR_RANK];
  bool swap = false;
  const NpyType *t = descr ? npy_type(descr, &swap) : NULL;
  if (!shape || !order || !npy_dims(shape, &rank, dims))
    return bad(path, "the .npy header names no shape that Kiln reads");
  if (!t) return bad(path, "the .npy header names no element type that Kiln reads");
  if (!make(to, t->t, t->width, rank, dims, b.n - at - len, path)) return false;
  if (!copy_elements(to, b.p + at + len, t->width, swap, t->positive))
    return bad(path, "a number of type uint64 is larger than any of int64");
  if (!strncmp(order, "True", 4) && rank > 1) to_c_order(to);
  return true;
}

/* ---- zip: members through the central directory ---- */

static uint32_t u16(const uint8_t *p) { return p[0] | (uint32_t)p[1] << 8; }
static uint32_t u32(const uint8_t *p) { return u16(p) | u16(p + 2) << 16; }

static size_t find_directory(Bytes b) {
  for (size_t i = b.n >= 22 ? b.n - 21 : 0; i-- > 0 && b.n - i < 66000;)
    if (!memcmp(b.p + i, "PK\5\6", 4)) return i;
  return SIZE_MAX;
}

static bool read_member(Arena *a, Bytes b, const uint8_t *entry, const char *path, Bytes *out) {
  uint32_t method = u16(entry + 10), packed = u32(entry + 20), size = u32(entry + 24),
           at = u32(entry + 42);
  if ((uint64_t)at + 30 > b.n || memcmp(b.p + at, "PK\3\4", 4))
    return bad(path, "the archive's directory points outside of it");
  uint64_t data = (uint64_t)at + 30 + u16(b.p + at + 26) + u16(b.p + at + 28);
  if (data + packed > b.n) return bad(path, "a member of the archive is cut off");
  Bytes raw = {b.p + data, packed};
  if (method == 0) return *out = raw, true;
  if (method == 8) return inflate_all(a, raw, -15, size, path, out);
  return bad(path, "a member of the archive is compressed in a way that Kiln does not read");
}

static bool read_npz(Arena *a, Bytes b, const char *member, const char *path, kl_tensor *to) {
  size_t end = find_directory(b);
  if (end == SIZE_MAX) return bad(path, "the archive has no directory: it was cut off");
  uint32_t n = u16(b.p + end + 10);
  uint64_t at = u32(b.p + end + 16);
  Str names;
  str_init(&names, a);
  for (uint32_t i = 0; i < n; i++) {
    if (at + 46 > b.n || memcmp(b.p + at, "PK\1\2", 4))
      return bad(path, "the archive's directory is damaged");
    uint32_t len = u16(b.p + at + 28);
    if (at + 46 + len > b.n) return bad(path, "the archive's directory is damaged");
    const char *name = arena_strn(a, (const char *)b.p + at + 46, len);
    size_t stem = len > 4 && !strcmp(name + len - 4, ".npy") ? len - 4 : len;
    bool wanted = member ? strlen(member) == stem && !strncmp(name, member, stem) : n == 1;
    Bytes m;
    if (wanted)
      return read_member(a, b, b.p + at, path, &m) &&
             ((m.n > 6 && !memcmp(m.p, "\x93NUMPY", 6)) ||
              bad(path, "the member is no .npy array")) &&
             read_npy(a, m, path, to);
    str_fmt(&names, " %.*s", (int)stem, name);
    at += 46 + len + u16(b.p + at + 30) + u16(b.p + at + 32);
  }
  err_set(E_DAT_003, member ? "the archive has no array %s" : "the archive holds several arrays%s",
          member ? quoted(member) : "");
  err_where("%s", path);
  err_help("name one, as in FILE.npz:NAME; it holds:%s", names.s ? names.s : "");
  return false;
}

/* PaddlePaddle's tensor files begin with a version, 0; so does no IDX file. */
static bool is_tensor_file(Bytes b) {
  static const uint8_t version[4] = {0};
  return b.n >= 16 && !memcmp(b.p, version, sizeof version);
}

static bool read_tensor(Arena *a, Bytes b, const char *path, Tensor *t, ParamLevels *levels) {
  return params_decode(b.p, b.n, path, 1, NULL, a, t, levels);
}

static bool hand_out(const Tensor *t, kl_tensor *to) {
  *to = *(const kl_tensor *)t;
  to->data = mem_alloc(tensor_bytes(t) + 1);
  memcpy(to->data, t->data, tensor_bytes(t));
  return true;
}

int kl_read_lod(const char *path, kl_tensor *levels, int max) {
  API_GUARD(-1);
  if (err_any() || !NEED(path) || (max > 0 && !NEED(levels))) return -1;
  Arena *a = arena_scratch();
  ParamLevels all = {.arena = a};
  Tensor t;
  Bytes b;
  uint8_t *data;
  size_t n;
  Place p = place_of(a, path);
  bool ok = vfs_read(a, p.file, &data, &n);
  b = (Bytes){data, n};
  if (ok && p.raw == DT_NONE && is_tensor_file(b)) ok = read_tensor(a, b, path, &t, &all);
  int count = ok ? all.all.n : -1;
  for (int i = 0; i < count && all.all.v[i].depth < max; i++)
    hand_out(&all.all.v[i].offsets, &levels[all.all.v[i].depth]);
  arena_free(a);
  return count;
}

bool kl_read_array(const char *path, kl_tensor *to) {
  API_GUARD(false);
  if (err_any() || !NEED(path) || !NEED(to)) return false;
  Arena *a = arena_scratch();
  *to = (kl_tensor){0};
  Place p = place_of(a, path);
  const char *file = p.file;
  uint8_t *data;
  size_t n;
  bool ok = vfs_read(a, file, &data, &n);
  Bytes b = {data, n};
  if (ok && p.raw == DT_NONE && n > 2 && data[0] == 0x1f && data[1] == 0x8b)
    ok = inflate_all(a, b, 15 + 16, 0, file, &b);
  if (!ok) {
  } else if (p.raw != DT_NONE)
    ok = read_raw(&p, b, to);
  else if (b.n > 6 && !memcmp(b.p, "\x93NUMPY", 6))
    ok = read_npy(a, b, file, to);
  else if (b.n > 4 && !memcmp(b.p, "PK\3\4", 4))
    ok = read_npz(a, b, p.member, file, to);
  else if (is_tensor_file(b)) {
    Tensor t;
    ok = read_tensor(a, b, file, &t, NULL) && hand_out(&t, to);
  } else if (b.n >= 4 && b.p[0] == 0 && b.p[1] == 0)
    ok = read_idx(b, file, to);
  else
    ok = bad(file, "the file is not an array that Kiln knows");
  if (!ok) kl_tensor_free(to);
  arena_free(a);
  return ok;
}
