/* Attribute values and strings as text: used by the operator table, the text form of programs and the listings.
 *
 *   1            INT            [1, 2]      []     INTS
 *   1L           LONG           [1, 2]L     []L    LONGS
 *   1.0 inf nan  FLOAT          [1.0, 2.5]  []F    FLOATS
 *   1.0D         FLOAT64        [1.0, 2]D   []D    FLOAT64S
 *   true false   BOOL           [true]      []B    BOOLS
 *   'text'       STRING         ['a', 'b']  []S    STRINGS
 *   block 1      BLOCK          blocks [1, 2]      BLOCKS
 *   var 'x'      VAR            vars ['x', 'y']    VARS
 *   scalar 5     SCALAR         scalars [5, 1.5, true, (1.0, 2.0)]    SCALARS: int64, float64, bool, complex
 *
 * A list needs its suffix only when its elements do not tell the type. Strings stand in ' or "; the escapes are
 * \n \t \r \\ \' \" \xHH. Floating-point numbers are printed with the fewest digits that read back as the same value,
 * whatever the locale. */
#include "ir.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

const AttrInfo attr_info[AT_N] = {
    [AT_INT] = {"INT", "", 'i', 0, false},
    [AT_FLOAT] = {"FLOAT", "", 'f', 0, false},
    [AT_STRING] = {"STRING", "", 's', 0, false},
    [AT_INTS] = {"INTS", "", 'i', 0, true},
    [AT_FLOATS] = {"FLOATS", "", 'f', 'F', true},
    [AT_STRINGS] = {"STRINGS", "", 's', 'S', true},
    [AT_BOOL] = {"BOOLEAN", "", 'b', 0, false},
    [AT_BOOLS] = {"BOOLEANS", "", 'b', 'B', true},
    [AT_BLOCK] = {"BLOCK", "block", 'i', 0, false},
    [AT_LONG] = {"LONG", "", 'i', 'L', false},
    [AT_BLOCKS] = {"BLOCKS", "blocks", 'i', 0, true},
    [AT_LONGS] = {"LONGS", "", 'i', 'L', true},
    [AT_FLOAT64S] = {"FLOAT64S", "", 'f', 'D', true},
    [AT_VAR] = {"VAR", "var", 's', 0, false},
    [AT_VARS] = {"VARS", "vars", 's', 0, true},
    [AT_FLOAT64] = {"FLOAT64", "", 'f', 'D', false},
    [AT_SCALAR] = {"SCALAR", "scalar", 'c', 0, false},
    [AT_SCALARS] = {"SCALARS", "scalars", 'c', 0, true},
};

/* ---- printing ---- */

void text_quote(Str *out, const char *s, char quote) {
  static const char named[] = {'\n', 'n', '\t', 't', '\r', 'r', 0};
  str_addn(out, &quote, 1);
  for (const unsigned char *p = (const unsigned char *)s; *p;) {
    int n = utf8_len(p);
    const char *name = strchr(named, (char)*p);
    if (*p == (unsigned char)quote || *p == '\\')
      str_fmt(out, "\\%c", *p++);
    else if (*p < 0x20 && name)
      str_fmt(out, "\\%c", name[1]), p++;
    else if (!n || *p < 0x20 || *p == 0x7f)
      str_fmt(out, "\\x%02x", *p++);
    else
      str_addn(out, (const char *)p, (size_t)n), p += n;
  }
  str_addn(out, &quote, 1);
}

void text_float(Str *out, double v, bool single) {
  char b[40];
  if (single) v = (double)(float)v;
  if (isnan(v) || isinf(v)) {
    str_fmt(out, "%s%s", signbit(v) ? "-" : "", isnan(v) ? "nan" : "inf");
    return;
  }
  for (int digits = single ? 6 : 15; digits <= 17; digits++) {
    text_fmt(b, sizeof b, "%.*g", digits, v);
    double back = text_double(b, NULL);
    if (single ? (float)back == (float)v : back == v) break;
  }
  str_add(out, b);
  if (!strpbrk(b, ".e")) str_add(out, ".0");
}

static void print_scalar(const Scalar *s, Str *out) {
  if (s->type == 1) str_add(out, s->i ? "true" : "false");
  if (s->type == 2) str_fmt(out, "%lld", (long long)s->i);
  if (s->type == 4) str_add(out, "(");
  if (s->type >= 3) text_float(out, s->r, false);
  if (s->type != 4) return;
  str_add(out, ", ");
  text_float(out, s->im, false);
  str_add(out, ")");
}

static void print_element(const Attr *a, int i, Str *out) {
  const AttrInfo *t = &attr_info[a->type];
  int64_t v = t->elem == 'i' || t->elem == 'b' ? (t->list ? a->is[i] : a->i) : 0;
  switch (t->elem) {
  case 'i': str_fmt(out, "%lld", (long long)v); break;
  case 'b': str_add(out, v ? "true" : "false"); break;
  case 'f':
    text_float(out, t->list ? a->fs[i] : a->f, a->type == AT_FLOAT || a->type == AT_FLOATS);
    break;
  case 's': text_quote(out, t->list ? a->ss[i] : a->s, '\''); break;
  default: print_scalar(&a->scalars[i], out);
  }
}

void attr_print(const Attr *a, Str *out) {
  const AttrInfo *t = &attr_info[a->type];
  if (*t->keyword) str_fmt(out, "%s ", t->keyword);
  if (t->list) str_add(out, "[");
  for (int i = 0; i < (t->list ? a->n : 1); i++) {
    if (i) str_add(out, ", ");
    print_element(a, i, out);
  }
  if (t->list) str_add(out, "]");
  bool told = strchr("LD", t->suffix) == NULL && a->n > 0;
  if (t->suffix && !(t->list && told)) str_addn(out, &t->suffix, 1);
}

/* ---- parsing: each function moves *s behind what it read, or to the place that is wrong ---- */

static void skip_space(const char **s) { *s += strspn(*s, " \t\r\n"); }

static bool at_word(const char *s, const char *word) {
  size_t n = strlen(word);
  if (strncmp(s, word, n)) return false;
  unsigned char c = (unsigned char)s[n];
  return !(c == '_' || (c >= '0' && c <= '9') || ((c | 32) >= 'a' && (c | 32) <= 'z'));
}

static int hex_digit(char c) {
  const char *digits = "0123456789abcdef",
             *p = c ? strchr(digits, c >= 'A' && c <= 'F' ? c + 32 : c) : NULL;
  return p ? (int)(p - digits) : -1;
}

/* The byte that an escape stands for, 0 if it is none; *s is behind the backslash. */
static char read_escape(const char **s) {
  static const char pairs[] = "n\nt\tr\r\\\\''\"\"";
  char c = **s;
  if (!c) return 0;
  ++*s;
  for (const char *p = pairs; *p; p += 2)
    if (*p == c) return p[1];
  int hi = c == 'x' ? hex_digit((*s)[0]) : -1, lo = hi >= 0 ? hex_digit((*s)[1]) : -1;
  if (lo < 0) return 0;
  *s += 2;
  return (char)(hi * 16 + lo);
}

char *text_unquote(Arena *a, const char **s) {
  char quote = **s;
  if (quote != '\'' && quote != '"') return NULL;
  const char *p = *s + 1;
  size_t n = 0;
  for (; *p && *p != quote && *p != '\n'; p++, n++)
    if (*p == '\\' && p[1]) p++;
  if (*p != quote) return NULL;
  char *out = arena_alloc(a, n + 1), *o = out;
  for (++*s; **s != quote; o++) {
    if (**s != '\\') {
      *o = *(*s)++;
      continue;
    }
    ++*s;
    if (!(*o = read_escape(s))) return NULL;
  }
  ++*s;
  return out;
}

/* A number as integer if it has neither fraction nor exponent. *wide: the type that cannot hold it, of those that hold most. */
static bool read_number(const char **s, bool *is_int, int64_t *i, double *f, AttrType *wide) {
  const char *start = *s, *p = start + (*start == '-' || *start == '+');
  char *end;
  *is_int = false;
  if (at_word(p, "inf") || at_word(p, "nan")) {
    *f = *p == 'i' ? INFINITY : NAN;
    *f = copysign(*f, *start == '-' ? -1.0 : 1.0);
    *s = p + 3;
    return true;
  }
  if (!(*p >= '0' && *p <= '9') && *p != '.') return false;
  size_t digits = strspn(p, "0123456789");
  if (digits && (!p[digits] || !strchr(".eE", p[digits]))) {
    *is_int = true;
    int64_t v = 0;
    for (size_t k = 0; k < digits; k++) {
      int64_t d = *start == '-' ? '0' - p[k] : p[k] - '0';
      if (!mul_ok(v, 10, &v) || !add_ok(v, d, &v)) return *wide = AT_LONG, false;
    }
    *i = v;
    *f = (double)v;
    *s = p + digits;
    return true;
  }
  if (p[0] == '0' && (p[1] | 32) == 'x') return false;
  *f = text_double(start, &end);
  if (isinf(*f)) *wide = AT_FLOAT64;
  if (end == start || isinf(*f)) return false;
  *s = end;
  return true;
}

static bool read_bool(const char **s, int64_t *v) {
  *v = at_word(*s, "true");
  if (!*v && !at_word(*s, "false")) return false;
  *s += *v ? 4 : 5;
  return true;
}

static bool read_scalar(const char **s, Scalar *v, AttrType *wide) {
  bool is_int = false;
  *v = (Scalar){.type = 1};
  if (read_bool(s, &v->i)) return true;
  bool pair = **s == '(';
  if (pair) ++*s, skip_space(s);
  if (!read_number(s, &is_int, &v->i, &v->r, wide)) return false;
  v->type = is_int ? 2 : 3;
  if (v->type == 2) v->r = 0;
  if (!pair) return true;
  int64_t unused;
  if (v->type == 2) v->r = (double)v->i, v->i = 0;
  v->type = 4;
  skip_space(s);
  if (**s != ',') return false;
  ++*s;
  skip_space(s);
  if (!read_number(s, &is_int, &unused, &v->im, wide)) return false;
  skip_space(s);
  if (**s != ')') return false;
  ++*s;
  return true;
}

/* What the list that starts behind its '[' holds: the most elements it can have, and their kind
 * ('i' 'f' 'b' 's', 0 if empty). */
static int list_bound(const char *s, char *elem) {
  skip_space(&s);
  bool dotted = false;
  int n = 1;
  char first = *s;
  for (; *s && *s != ']' && n < INT32_MAX; s++) {
    if (*s == '\'' || *s == '"')
      for (char q = *s++; *s && *s != q; s++) s += *s == '\\' && s[1];
    if (!*s) break;
    n += *s == ',';
    dotted |= strchr(".eEin", *s) != NULL;
  }
  *elem = first == ']'                    ? 0
          : first == '\'' || first == '"' ? 's'
          : first == 't' || first == 'f'  ? 'b'
          : dotted                        ? 'f'
                                          : 'i';
  return n;
}

static bool read_element(Arena *a, const char **s, Attr *out, char elem, int i) {
  bool is_int;
  int64_t v;
  double f;
  switch (elem) {
  case 'i': return read_number(s, &is_int, &out->is[i], &f, &out->type) && is_int;
  case 'f': return read_number(s, &is_int, &v, &out->fs[i], &out->type);
  case 'b': return read_bool(s, &out->is[i]);
  case 's': return (out->ss[i] = text_unquote(a, s)) != NULL;
  default: return read_scalar(s, &out->scalars[i], &out->type);
  }
}

/* The elements of a list up to and with its ']'. */
static bool read_list(Arena *a, const char **s, Attr *out, char elem, int bound) {
  out->n = 0;
  size_t size = elem == 'c' ? sizeof(Scalar) : 8;
  out->is = elem ? arena_alloc(a, size * (size_t)bound) : NULL;
  for (skip_space(s); **s != ']'; skip_space(s)) {
    if (!elem || out->n == bound || !read_element(a, s, out, elem, out->n)) return false;
    out->n++;
    skip_space(s);
    if (**s == ']') break;
    if (**s != ',') return false;
    ++*s;
  }
  ++*s;
  return true;
}

/* INTs and FLOATs must hold their numbers, FLOATs rounded to single precision. Gives the first that does not fit, n if all do. */
static int narrow(AttrType type, int64_t *i, double *f, int n) {
  bool whole = type == AT_INT || type == AT_INTS, single = type == AT_FLOAT || type == AT_FLOATS;
  for (int k = 0; k < n; k++) {
    if (whole && i[k] != (int32_t)i[k]) return k;
    if (single && isinf((float)f[k]) && !isinf(f[k])) return k;
    if (single) f[k] = (double)(float)f[k];
  }
  return n;
}

/* The suffix of a list, which must agree with its elements. */
static bool list_suffix(Arena *a, const char **s, char elem, Attr *out) {
  static const struct {
    char suffix, elem;
    AttrType type;
  } rows[] = {{'L', 'i', AT_LONGS}, {'F', 'f', AT_FLOATS},  {'D', 'f', AT_FLOAT64S},
              {'B', 'b', AT_BOOLS}, {'S', 's', AT_STRINGS}, {'I', 'i', AT_INTS}};
  static const char order[] = "ifbs";
  static const AttrType plain[] = {AT_INTS, AT_FLOATS, AT_BOOLS, AT_STRINGS};
  out->type = elem ? plain[strchr(order, elem) - order] : AT_INTS;
  for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
    char mark[2] = {rows[i].suffix, 0};
    if (!at_word(*s, mark)) continue;
    if (elem == 'i' && rows[i].elem == 'f') {
      double *f = arena_array(a, double, out->n);
      for (int k = 0; k < out->n; k++) f[k] = (double)out->is[k];
      out->fs = f;
    } else if (elem && elem != rows[i].elem)
      return false;
    out->type = rows[i].type;
    ++*s;
  }
  return true;
}

static bool read_plain_list(Arena *a, const char **s, Attr *out) {
  char elem;
  const char *list = *s;
  int bound = list_bound(*s, &elem);
  if (!read_list(a, s, out, elem, bound)) return false;
  if (!list_suffix(a, s, elem, out)) return out->type = AT_N, false;
  int k = narrow(out->type, out->is, out->fs, out->n);
  if (k == out->n) return true;
  for (; k > 0; k--) list = strchr(list, ',') + 1;
  *s = list;
  skip_space(s);
  return false;
}

/* block 1, vars ['x'], ... : the types that a keyword introduces. */
static bool read_keyword(Arena *a, const char **s, AttrType type, Attr *out) {
  const AttrInfo *t = &attr_info[type];
  char any;
  *s += strlen(t->keyword);
  skip_space(s);
  bool is_int, ok;
  double f;
  if (t->list) {
    if (**s != '[') return false;
    ++*s;
    ok = read_list(a, s, out, t->elem, list_bound(*s, &any));
  } else if (t->elem == 'c') {
    out->n = 1;
    out->scalars = arena_new_of(a, Scalar);
    ok = read_scalar(s, out->scalars, &out->type);
  } else if (t->elem == 'i')
    ok = read_number(s, &is_int, &out->i, &f, &out->type) && is_int;
  else
    ok = (out->s = text_unquote(a, s)) != NULL;
  if (ok) out->type = type;
  return ok;
}

static bool read_one(Arena *a, const char **s, Attr *out) {
  bool is_int;
  int64_t i = 0;
  double f = 0;
  const char *start = *s;
  if (**s == '\'' || **s == '"') {
    if (!(out->s = text_unquote(a, s))) return false;
    out->type = AT_STRING;
    return true;
  }
  if (read_bool(s, &i)) {
    out->type = AT_BOOL;
    out->i = i;
    return true;
  }
  if (!read_number(s, &is_int, &i, &f, &out->type)) return false;
  if (is_int && !at_word(*s, "D") && !at_word(*s, "F")) {
    out->type = at_word(*s, "L") ? AT_LONG : AT_INT;
    out->i = i;
    *s += out->type == AT_LONG;
  } else {
    out->type = at_word(*s, "D") ? AT_FLOAT64 : AT_FLOAT;
    out->f = f;
    *s += at_word(*s, "D") || at_word(*s, "F");
  }
  if (narrow(out->type, &out->i, &out->f, 1)) return true;
  *s = start;
  return false;
}

bool attr_parse(Arena *a, const char *text, const char **end, Attr *out) {
  const char *unused, **s = end ? end : &unused;
  *s = text;
  out->n = 0;
  out->type = AT_N;
  skip_space(s);
  for (int t = 0; t < AT_N; t++)
    if (*attr_info[t].keyword && at_word(*s, attr_info[t].keyword))
      return read_keyword(a, s, (AttrType)t, out);
  if (**s != '[') return read_one(a, s, out);
  ++*s;
  return read_plain_list(a, s, out);
}

bool attr_too_large(AttrType type, const char *text) {
  static const struct {
    AttrType type;
    const char *range, *help;
  } rows[] = {{AT_INT, "-2147483648 to 2147483647",
               "Write L behind it, as 5L, if the attribute is a LONG."},
              {AT_INTS, "-2147483648 to 2147483647",
               "Write L behind the list, as [1, 2]L, if the attribute is LONGS."},
              {AT_LONG, "-9223372036854775808 to 9223372036854775807",
               "Write it with a point or an exponent, as 1e20, if the attribute is a FLOAT."},
              {AT_FLOAT, "-3.4e38 to 3.4e38",
               "Write D behind it, as 1e39D, if the attribute is a FLOAT64; or write inf."},
              {AT_FLOATS, "-3.4e38 to 3.4e38",
               "Write D behind the list, as [1e39]D, if the attribute is FLOAT64S; or write inf."},
              {AT_FLOAT64, "-1.7e308 to 1.7e308", "Write inf if infinity is meant."}};
  size_t r = 0;
  while (r + 1 < sizeof rows / sizeof *rows && rows[r].type != type) r++;
  char number[48] = "";
  size_t n = strspn(text, "+-.0123456789eE");
  snprintf(number, sizeof number, "%.*s", (int)(n < 40 ? n : 40), text);
  err_set(E_TXT_001, "%s%s is not in the range of %s, %s", number, n > 40 ? "..." : "",
          attr_info[type].name, rows[r].range);
  err_help("%s", rows[r].help);
  return false;
}

/* ---- order by name ---- */

static int compare_names(const void *a, const void *b) {
  return strcmp(**(const char *const *const *)a, **(const char *const *const *)b);
}

const void **by_name(Arena *a, const void *items, int n, size_t size) {
  const void **v = arena_array(a, const void *, n);
  for (int i = 0; i < n; i++) v[i] = (const char *)items + (size_t)i * size;
  if (n > 1) qsort(v, (size_t)n, sizeof *v, compare_names);
  return v;
}

const char *repeated_name(Arena *a, const void *items, int n, size_t size) {
  if (n < 2) return NULL;
  const void **v = by_name(a, items, n, size);
  for (int i = 1; i < n; i++)
    if (!compare_names(&v[i - 1], &v[i])) return *(const char *const *)v[i];
  return NULL;
}
