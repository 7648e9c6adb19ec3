/* Attributes: literals of the text form in, typed values out; PaddlePaddle's conversions between attribute types; the
 * nearest of a list of names (optimal string alignment distance) for "did you mean".
 *
 * Literals: 1 1L 1.0 1.0D inf nan true 'x' and lists [1,2] [1,2]L []F, where a suffix names the element type:
 * I INT, L LONG, F FLOAT, D FLOAT64, B BOOLEAN, S STRING. Without one, a list has the type of its widest element.
 * In strings \' \\ \n \t \r \xNN. */
#include "ir.h"
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct Elem {
  AttrType type; /* INT LONG FLOAT FLOAT64 BOOL STRING */
  int64_t i;
  double f;
  const char *s;
} Elem;

static bool is_word(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
}

static const char *skip(const char *p) {
  while (*p == ' ' || *p == '\t' || *p == '\n' || *p == '\r') p++;
  return p;
}

static int hex(char c) {
  return c >= '0' && c <= '9'   ? c - '0'
         : c >= 'a' && c <= 'f' ? c - 'a' + 10
         : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                : -1;
}

/* p stands on the opening quote. */
static bool parse_string(Arena *a, const char *p, const char **end, Elem *e) {
  Str s;
  str_init(&s, a);
  for (p++; *p != '\''; p++) {
    *end = p;
    char c = *p;
    if (!c || c == '\n') return false;
    if (c == '\\') {
      static const char from[] = "ntr\\'", to[] = "\n\t\r\\'";
      const char *k = *++p ? strchr(from, *p) : NULL;
      if (k)
        c = to[k - from];
      else if (*p == 'x' && hex(p[1]) >= 0 && hex(p[2]) >= 0) {
        c = (char)(hex(p[1]) * 16 + hex(p[2]));
        p += 2;
      } else
        return false;
      if (!c) return false;
    }
    str_addn(&s, &c, 1);
  }
  *end = p + 1;
  *e = (Elem){.type = AT_STRING, .s = s.s};
  return true;
}

static bool parse_number(const char *p, const char **end, Elem *e) {
  const char *q = p + (*p == '-' || *p == '+');
  bool real = !strncmp(q, "inf", 3) || !strncmp(q, "nan", 3);
  if (!real && !(*q >= '0' && *q <= '9') && !(*q == '.' && q[1] >= '0' && q[1] <= '9'))
    return false;
  if (q[0] == '0' && (q[1] == 'x' || q[1] == 'X')) return false;
  for (const char *r = q; !real && (is_word(*r) || *r == '.'); r++)
    real = *r == '.' || *r == 'e' || *r == 'E' || *r == 'D' || *r == 'F';
  char *stop;
  if (real) {
    double v = strtod(p, &stop);
    e->type = *stop == 'D' ? AT_FLOAT64 : AT_FLOAT;
    e->f = *stop == 'D' ? v : (double)strtof(p, NULL);
    stop += *stop == 'D' || *stop == 'F';
  } else {
    errno = 0;
    e->i = strtoll(p, &stop, 10);
    if (errno) return false;
    e->type = *stop == 'L' ? AT_LONG : AT_INT;
    if (e->type == AT_INT && e->i != (int32_t)e->i) return false;
    stop += *stop == 'L' || *stop == 'I';
    e->f = (double)e->i;
  }
  *end = stop;
  return !is_word(*stop);
}

static bool parse_elem(Arena *a, const char *p, const char **end, Elem *e) {
  *end = p;
  *e = (Elem){0};
  if (*p == '\'') return parse_string(a, p, end, e);
  bool t = !strncmp(p, "true", 4) && !is_word(p[4]), f = !strncmp(p, "false", 5) && !is_word(p[5]);
  if (!t && !f) return parse_number(p, end, e);
  *end = p + (t ? 4 : 5);
  *e = (Elem){.type = AT_BOOL, .i = t};
  return true;
}

static const struct {
  char suffix;
  AttrType elem, list;
} kinds[] = {{'I', AT_INT, AT_INTS},     {'L', AT_LONG, AT_LONGS},
             {'F', AT_FLOAT, AT_FLOATS}, {'D', AT_FLOAT64, AT_FLOAT64S},
             {'B', AT_BOOL, AT_BOOLS},   {'S', AT_STRING, AT_STRINGS}};
enum { N_KINDS = sizeof kinds / sizeof *kinds };

static AttrType list_of(AttrType elem) {
  for (int k = 0; k < N_KINDS; k++)
    if (kinds[k].elem == elem) return kinds[k].list;
  return AT_N;
}

/* The type that holds both, or AT_N: INT < LONG < FLOAT < FLOAT64, the others only themselves. */
static AttrType wider(AttrType x, AttrType y) {
  static const AttrType order[] = {AT_INT, AT_LONG, AT_FLOAT, AT_FLOAT64};
  int ix = -1, iy = -1;
  for (int k = 0; k < 4; k++) {
    if (order[k] == x) ix = k;
    if (order[k] == y) iy = k;
  }
  return x == y ? x : ix < 0 || iy < 0 ? AT_N : order[ix > iy ? ix : iy];
}

static bool list_make(Arena *a, Attr *out, AttrType elem, int n, const Elem *v) {
  out->type = list_of(elem);
  out->n = n;
  if (elem == AT_STRING) {
    out->ss = arena_array(a, const char *, n);
    for (int k = 0; k < n; k++) out->ss[k] = v[k].s;
  } else if (elem == AT_FLOAT || elem == AT_FLOAT64) {
    out->fs = arena_array(a, double, n);
    for (int k = 0; k < n; k++) out->fs[k] = elem == AT_FLOAT ? (double)(float)v[k].f : v[k].f;
  } else {
    out->is = arena_array(a, int64_t, n);
    for (int k = 0; k < n; k++) out->is[k] = v[k].i;
  }
  return true;
}

/* p stands on the opening bracket. */
static bool parse_list(Arena *a, const char *p, const char **end, Attr *out) {
  VEC(Elem) v = {0};
  AttrType type = AT_N;
  p = skip(p + 1);
  while (*p != ']') {
    Elem e;
    if (!parse_elem(a, p, end, &e)) return false;
    AttrType t = v.n ? wider(type, e.type) : e.type;
    if (t == AT_N) {
      *end = p;
      return false;
    }
    type = t;
    vec_add(a, &v, e);
    p = skip(*end);
    *end = p;
    if (*p == ',')
      p = skip(p + 1);
    else if (*p != ']')
      return false;
  }
  *end = ++p;
  for (int k = 0; k < N_KINDS; k++) {
    if (kinds[k].suffix != *p || is_word(p[1])) continue;
    if (v.n && wider(type, kinds[k].elem) != kinds[k].elem) return false;
    type = kinds[k].elem;
    *end = ++p;
    break;
  }
  if (is_word(*p)) return false;
  return list_make(a, out, type == AT_N ? AT_INT : type, v.n, v.v);
}

bool attr_parse(Arena *a, const char *text, const char **end, Attr *out) {
  const char *name = out->name;
  *out = (Attr){.name = name};
  *end = text = skip(text);
  if (*text == '[') return parse_list(a, text, end, out);
  Elem e;
  if (!parse_elem(a, text, end, &e)) return false;
  out->type = e.type;
  if (e.type == AT_STRING)
    out->s = e.s;
  else if (e.type == AT_FLOAT || e.type == AT_FLOAT64)
    out->f = e.f;
  else
    out->i = e.i;
  return true;
}

/* ---- conversions ---- */

enum {
  B = 1 << AT_BOOL,
  I = 1 << AT_INT,
  L = 1 << AT_LONG,
  F = 1 << AT_FLOAT,
  D = 1 << AT_FLOAT64
};
enum { IS = 1 << AT_INTS, LS = 1 << AT_LONGS, FS = 1 << AT_FLOATS, DS = 1 << AT_FLOAT64S };

/* What may become what. Beyond PaddlePaddle's own conversions: narrower integers and floats if the value is kept. */
static const unsigned accepts[AT_N] = {
    [AT_BOOL] = I | F,
    [AT_INT] = L | B,
    [AT_LONG] = I | F,
    [AT_FLOAT] = I | L | D,
    [AT_FLOAT64] = I | L | F,
    [AT_INTS] = LS,
    [AT_LONGS] = IS | FS,
    [AT_FLOATS] = IS | LS | DS,
    [AT_FLOAT64S] = IS | LS | FS,
    [AT_SCALAR] = B | I | L | F | D,
};

static bool is_real(AttrType t) {
  return t == AT_FLOAT || t == AT_FLOAT64 || t == AT_FLOATS || t == AT_FLOAT64S;
}

static bool is_list(AttrType t) {
  return t == AT_INTS || t == AT_FLOATS || t == AT_STRINGS || t == AT_BOOLS || t == AT_LONGS ||
         t == AT_FLOAT64S || t == AT_VARS || t == AT_SCALARS || t == AT_BLOCKS;
}

static bool to_int(double v, int64_t *i) {
  if (!(v >= -0x1p63 && v < 0x1p63)) return false;
  *i = (int64_t)v;
  return true;
}

/* One number of type `from` (in *i or *f) to type `to`. */
static bool number_to(AttrType from, AttrType to, int64_t *i, double *f) {
  if (is_real(to)) {
    *f = is_real(from) ? *f : (double)*i;
    if (to == AT_FLOAT || to == AT_FLOATS) *f = (double)(float)*f;
    return true;
  }
  if (to == AT_BOOL) {
    *i = is_real(from) ? *f != 0 : *i != 0;
    return true;
  }
  if (is_real(from) && !to_int(*f, i)) return false;
  return (to != AT_INT && to != AT_INTS) || *i == (int32_t)*i;
}

static bool list_to(Attr *a, AttrType to, Arena *arena) {
  Attr r = {.name = a->name, .type = to, .n = a->n};
  if (is_real(to))
    r.fs = arena_array(arena, double, a->n);
  else
    r.is = arena_array(arena, int64_t, a->n);
  for (int k = 0; k < a->n; k++) {
    int64_t i = is_real(a->type) ? 0 : a->is[k];
    double f = is_real(a->type) ? a->fs[k] : 0;
    if (!number_to(a->type, to, &i, &f)) return false;
    if (is_real(to))
      r.fs[k] = f;
    else
      r.is[k] = i;
  }
  *a = r;
  return true;
}

bool attr_coerce(Attr *a, AttrType to, Arena *arena) {
  AttrType from = a->type;
  if (from == to) return true;
  if (is_list(from) && is_list(to) && a->n == 0) {
    *a = (Attr){.name = a->name, .type = to, .is = arena_alloc(arena, 1)};
    return true;
  }
  if (to >= AT_N || !(accepts[to] >> from & 1)) return false;
  if (is_list(to)) return list_to(a, to, arena);
  int64_t i = is_real(from) ? 0 : a->i;
  double f = is_real(from) ? a->f : 0;
  if (to == AT_SCALAR) {
    Scalar *s = arena_new_of(arena, Scalar);
    *s = (Scalar){from == AT_BOOL ? 1 : is_real(from) ? 3 : 2, i, f, 0};
    *a = (Attr){.name = a->name, .type = to, .n = 1, .scalars = s};
    return true;
  }
  if (!number_to(from, to, &i, &f)) return false;
  a->type = to;
  if (is_real(to))
    a->f = f;
  else
    a->i = i;
  return true;
}

/* ---- nearest names ---- */

enum { NAME_MOST = 63 };

/* Insertions, deletions, replacements and swaps of neighbours that turn x into y. */
static int distance(const char *x, int nx, const char *y, int ny) {
  int d[3][NAME_MOST + 1];
  for (int j = 0; j <= ny; j++) d[0][j] = j;
  for (int i = 1; i <= nx; i++) {
    int *now = d[i % 3], *up = d[(i + 2) % 3], *up2 = d[(i + 1) % 3];
    now[0] = i;
    for (int j = 1; j <= ny; j++) {
      int best = up[j - 1] + (x[i - 1] != y[j - 1]);
      if (up[j] + 1 < best) best = up[j] + 1;
      if (now[j - 1] + 1 < best) best = now[j - 1] + 1;
      if (i > 1 && j > 1 && x[i - 1] == y[j - 2] && x[i - 2] == y[j - 1] && up2[j - 2] + 1 < best)
        best = up2[j - 2] + 1;
      now[j] = best;
    }
  }
  return d[nx % 3][ny];
}

const char *name_nearest(const char *name, int n, const char *const *names) {
  size_t len = strlen(name);
  if (len == 0 || len > NAME_MOST) return NULL;
  int least = (int)(len / 3 > 1 ? len / 3 : 1) + 1;
  const char *best = NULL;
  for (int k = 0; k < n; k++) {
    size_t m = strlen(names[k]);
    if (m == 0 || m > NAME_MOST) continue;
    int d = distance(name, (int)len, names[k], (int)m);
    if (d < least) {
      least = d;
      best = names[k];
    }
  }
  return best;
}
