/* Attributes: PaddlePaddle's conversions between attribute types, words and the ranges of numbers, and the
 * nearest of a list of names (optimal string alignment distance) for "did you mean". */
#include "ir.h"
#include <float.h>
#include <math.h>
#include <string.h>

/* ---- conversions ---- */

enum {
  B = 1 << AT_BOOL,
  I = 1 << AT_INT,
  L = 1 << AT_LONG,
  F = 1 << AT_FLOAT,
  D = 1 << AT_FLOAT64
};
enum { IS = 1 << AT_INTS, LS = 1 << AT_LONGS, FS = 1 << AT_FLOATS, DS = 1 << AT_FLOAT64S };

/* What may become what. Beyond PaddlePaddle's own conversions: narrower integers and floats if the value is kept, and one
 * number for a list of one, as the first programs have it. */
static const unsigned accepts[AT_N] = {
    [AT_BOOL] = I | F,
    [AT_INT] = L | B,
    [AT_LONG] = I | F,
    [AT_FLOAT] = I | L | D,
    [AT_FLOAT64] = I | L | F,
    [AT_INTS] = LS | I | L,
    [AT_LONGS] = IS | FS | I | L,
    [AT_FLOATS] = IS | LS | DS | F | D,
    [AT_FLOAT64S] = IS | LS | FS,
    [AT_SCALAR] = B | I | L | F | D,
};

static bool is_real(AttrType t) {
  return t == AT_FLOAT || t == AT_FLOAT64 || t == AT_FLOATS || t == AT_FLOAT64S;
}

static bool is_list(AttrType t) { return attr_info[t].list; }

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

/* A list of the one number. */
static bool one_to(Attr *a, AttrType to, Arena *arena) {
  Attr list = {.name = a->name, .n = 1};
  list.type = is_real(a->type) ? AT_FLOAT64S : AT_LONGS;
  if (is_real(a->type))
    list.fs = arena_dup(arena, &a->f, sizeof a->f);
  else
    list.is = arena_dup(arena, &a->i, sizeof a->i);
  if (list.type != to && !list_to(&list, to, arena)) return false;
  *a = list;
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
  if (is_list(to) && !is_list(from)) return one_to(a, to, arena);
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

/* ---- words ---- */

const char *const reduction_words[REDUCE_N] = {"SUM", "MEAN", "MAX", "MIN"};

int op_word(const Op *op, const char *name, int n, const char *const *words) {
  const char *s = op_str(op, name);
  for (int i = 0; i < n; i++)
    if (!strcmp(s, words[i])) return i;
  Arena *a = arena_scratch();
  Str list;
  str_init(&list, a);
  for (int i = 0; i < n; i++) str_fmt(&list, "%s\"%s\"", i ? ", " : "", words[i]);
  err_set(E_OPR_003, "%s is %s", name, quoted(s));
  err_help("It must be one of %s.", list.s);
  arena_free(a);
  return -1;
}

/* ---- ranges ---- */

/* Numbers that mean the same in every operator that has them. */
static const struct {
  const char *attr;
  double lo, hi;
  const char *rule;
} ranges[] = {
    {"epsilon", 0, DBL_MAX, "a small number that is not negative"},
    {"dropout_prob", 0, 1, "a probability, from 0 to 1"},
    {"beta1", 0, 1, "a decay rate, from 0 to 1"},
    {"beta2", 0, 1, "a decay rate, from 0 to 1"},
    {"rho", 0, 1, "a decay rate, from 0 to 1"},
    {"std", 0, DBL_MAX, "a standard deviation, not negative"},
};

/* Elements of a result: any number will do. */
static const char *const contents[] = {"value",      "pad_value",   "padding_value", "diag_val",
                                       "fill_value", "fp32_values", "fp64_values"};

static bool is_content(const char *attr) {
  for (size_t i = 0; i < sizeof contents / sizeof *contents; i++)
    if (!strcmp(contents[i], attr)) return true;
  return false;
}

static bool number_fits(const Op *op, const AttrDef *d, const char *attr, double v) {
  if (isnan(v) && !is_content(attr))
    return err_set(E_OPR_003, "attribute %s of `%s` is NaN", quoted(attr), op->type);
  for (size_t i = 0; i < sizeof ranges / sizeof *ranges; i++) {
    if (strcmp(ranges[i].attr, attr)) continue;
    /* a row that divides by epsilon alone has a positive default */
    bool open = !strcmp(attr, "epsilon") && d->dflt.f > 0 && !d->extra;
    if (v >= ranges[i].lo && v <= ranges[i].hi && !(open && v == 0)) return true;
    err_set(E_OPR_003, "attribute %s of `%s` is %g", quoted(attr), op->type, v);
    err_help("%s is %s%s.", attr, ranges[i].rule, open ? ", nor zero" : "");
    return false;
  }
  return true;
}

bool op_numbers_fit(const Op *op) {
  for (int i = 0; op->def && i < op->attrs.n; i++) {
    const Attr *a = &op->attrs.v[i];
    const AttrDef *d = opdef_attr(op->def, a->name);
    if (!d || !is_real(d->dflt.type)) continue;
    bool list = is_list(a->type), ok = list || number_fits(op, d, a->name, op_float(op, a->name));
    for (int k = 0; ok && list && is_real(a->type) && k < a->n; k++)
      ok = number_fits(op, d, a->name, a->fs[k]);
    if (!ok) return false;
  }
  return true;
}
