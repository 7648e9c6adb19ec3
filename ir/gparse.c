/* Reading the Graph's text form (grammar: gtext.c). In: text that may come from anywhere; out: a graph that has passed the
 * verifier, or NULL with E-TXT-001 and the line. Kernel blocks and plan lines are skipped. Sizes are checked before
 * anything is allocated for them, and data must be there in full. */
#include "gtext.h"
#include <stdlib.h>
#include <string.h>

typedef struct Reader {
  const char *p, *end, *line_start, *file;
  int line;
  Graph *g;
} Reader;

static bool fail(Reader *r, const char *expected) {
  if (err_any()) return false;
  err_set(E_TXT_001, "expected %s", expected);
  err_where("%s, line %d, column %d", r->file ? r->file : "graph text", r->line,
            (int)(r->p - r->line_start) + 1);
  return false;
}

/* Blanks and comments; also line ends if told so. */
static void skip(Reader *r, bool lines) {
  while (r->p < r->end) {
    if (*r->p == '#')
      while (r->p < r->end && *r->p != '\n') r->p++;
    else if (*r->p == ' ' || *r->p == '\t' || *r->p == '\r')
      r->p++;
    else if (*r->p == '\n' && lines) {
      r->line_start = ++r->p;
      r->line++;
    } else
      return;
  }
}

static bool peek(Reader *r, const char *s) {
  skip(r, false);
  size_t n = strlen(s);
  return (size_t)(r->end - r->p) >= n && !memcmp(r->p, s, n);
}

static bool accept(Reader *r, const char *s) {
  if (!peek(r, s)) return false;
  r->p += strlen(s);
  return true;
}

static bool expect(Reader *r, const char *s) { return accept(r, s) || fail(r, s); }

static bool is_word(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
         c == '-';
}

/* A word of letters, digits, _ and -; "" if there is none. */
static const char *word(Reader *r) {
  skip(r, false);
  const char *from = r->p;
  while (r->p < r->end && is_word(*r->p)) r->p++;
  return arena_strn(r->g->arena, from, (size_t)(r->p - from));
}

static bool accept_word(Reader *r, const char *s) {
  const char *back = r->p;
  if (!strcmp(word(r), s)) return true;
  r->p = back;
  return false;
}

static bool integer(Reader *r, int64_t *v) {
  skip(r, false);
  const char *p = r->p;
  bool minus = p < r->end && *p == '-';
  if (p < r->end && (*p == '-' || *p == '+')) p++;
  if (p >= r->end || *p < '0' || *p > '9') return fail(r, "a whole number");
  *v = 0;
  for (; p < r->end && *p >= '0' && *p <= '9'; p++)
    if (!mul_ok(*v, 10, v) || !add_ok(*v, minus ? '0' - *p : *p - '0', v))
      return fail(r, "a number that fits 64 bits");
  r->p = p;
  return true;
}

static bool number(Reader *r, double *v) {
  char buf[64];
  size_t n = 0;
  skip(r, false);
  while (r->p + n < r->end && n < sizeof buf - 1 &&
         (is_word(r->p[n]) || r->p[n] == '.' || r->p[n] == '+')) {
    buf[n] = r->p[n];
    n++;
  }
  buf[n] = 0;
  char *stop;
  *v = text_double(buf, &stop);
  if (n == 0 || *stop) return fail(r, "a number");
  r->p += n;
  return true;
}

static int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static bool string(Reader *r, const char **s) {
  Str o;
  str_init(&o, r->g->arena);
  str_add(&o, "");
  if (!expect(r, "\"")) return false;
  while (r->p < r->end && *r->p != '"' && *r->p != '\n' && *r->p) {
    if (*r->p != '\\') {
      str_addn(&o, r->p++, 1);
      continue;
    }
    int hi = r->end - r->p >= 4 ? hex_digit(r->p[2]) : -1, lo = hi < 0 ? -1 : hex_digit(r->p[3]);
    if (r->end - r->p >= 2 && r->p[1] != 'x' && r->p[1] != '\n' && r->p[1]) {
      str_addn(&o, r->p + 1, 1);
      r->p += 2;
    } else if (lo >= 0 && hi + lo > 0) {
      str_addn(&o, &(char){(char)(hi * 16 + lo)}, 1);
      r->p += 4;
    } else
      return fail(r, "an escape");
  }
  *s = o.s;
  return r->p < r->end && *r->p == '"' ? (r->p++, true) : fail(r, "\" at the end of the name");
}

/* [1, 2, 3] with at most `most` numbers */
static bool integers(Reader *r, int most, int *n, int64_t *v) {
  *n = 0;
  if (!expect(r, "[")) return false;
  if (accept(r, "]")) return true;
  do {
    if (*n == most) return fail(r, "fewer numbers");
    if (!integer(r, &v[(*n)++])) return false;
  } while (accept(r, ","));
  return expect(r, "]");
}

static bool node_ref(Reader *r, Node **n) {
  int64_t id;
  if (!expect(r, "%") || !integer(r, &id)) return false;
  if (id < 0 || id >= r->g->nodes.n) return fail(r, "a node defined above");
  *n = r->g->nodes.v[id];
  return true;
}

static bool type(Reader *r, DType *t) {
  *t = dtype_find(word(r));
  return *t != DT_NONE || fail(r, "an element type before this");
}

/* ---- payload ---- */

static bool fits(int64_t v) { return v >= -INT32_MAX && v <= INT32_MAX; }

/* One term of an index: c*iL, iL or a number, after its sign. */
static bool term(Reader *r, int64_t sign, AffDim *a) {
  int64_t c = 1, l;
  bool num = !peek(r, "i");
  if (num && (peek(r, "-") || peek(r, "+"))) return fail(r, "a term");
  if (num && !integer(r, &c)) return false;
  if (num && !accept(r, "*"))
    return add_ok(a->off, sign * c, &a->off) || fail(r, "a smaller number");
  if (!expect(r, "i") || !integer(r, &l)) return false;
  if (l < 0 || l >= KL_LOOPS || a->l1 >= 0) return fail(r, "at most two terms with loops");
  if (!fits(c)) return fail(r, "a smaller coefficient");
  if (a->l0 < 0) {
    a->l0 = (int8_t)l;
    a->c0 = (int32_t)(sign * c);
  } else {
    a->l1 = (int8_t)l;
    a->c1 = (int32_t)(sign * c);
  }
  return true;
}

static bool index_of(Reader *r, AffDim *a) {
  *a = aff_const(0);
  bool divided = accept(r, "(");
  int64_t sign = accept(r, "-") ? -1 : 1, div = 1;
  while (true) {
    if (!term(r, sign, a)) return false;
    if (accept(r, "+"))
      sign = 1;
    else if (accept(r, "-"))
      sign = -1;
    else
      break;
  }
  if (divided && (!expect(r, ")") || !expect(r, "/") || !integer(r, &div))) return false;
  if (div < 1 || !fits(div)) return fail(r, "a divisor from 1 to 2^31-1");
  a->div = (int32_t)div;
  return true;
}

static bool read_map(Reader *r, const Node *x, AffDim **map) {
  *map = arena_array(r->g->arena, AffDim, x->rank);
  if (!expect(r, "[")) return false;
  for (int d = 0; d < x->rank; d++)
    if ((d && !expect(r, ",")) || !index_of(r, &(*map)[d])) return false;
  return expect(r, "]");
}

static bool read_data(Reader *r, Node *n) {
  int64_t count = node_numel(n);
  size_t bytes = (size_t)count * (size_t)dtype_info[n->dtype].size;
  bool hex = accept_word(r, "hex");
  skip(r, false);
  if (!hex && !expect(r, "[")) return false;
  size_t left = (size_t)(r->end - r->p);
  if (count < 0 || (hex ? left / 2 < bytes : left < (size_t)count))
    return fail(r, "all elements of the data");
  Tensor t = {.dtype = n->dtype, .data = arena_alloc(r->g->arena, bytes)};
  n->data = t.data;
  for (size_t k = 0; hex && k < bytes; k++) {
    int hi = hex_digit(r->p[2 * k]), lo = hex_digit(r->p[2 * k + 1]);
    if (hi < 0 || lo < 0) return fail(r, "hexadecimal digits");
    ((unsigned char *)t.data)[k] = (unsigned char)(hi * 16 + lo);
  }
  if (hex) {
    r->p += 2 * bytes;
    return true;
  }
  for (int64_t k = 0; k < count; k++) {
    double v;
    if (k && !expect(r, ",")) return false;
    if (n->dtype == DT_INT64 ? !integer(r, (int64_t *)t.data + k) : !number(r, &v)) return false;
    if (n->dtype != DT_INT64) tensor_set(&t, k, v);
  }
  return expect(r, "]");
}

static bool read_contract(Reader *r, Node *n) {
  int64_t ext[KL_LOOPS];
  int sums;
  for (int k = 0; k < 2; k++)
    if (!read_map(r, n->in[k], &n->map[k])) return false;
  if (!accept_word(r, "sum")) return fail(r, "sum");
  if (!integers(r, KL_LOOPS - n->rank, &sums, ext + n->rank)) return false;
  memcpy(ext, n->dims, (size_t)n->rank * sizeof *ext);
  n->n_loops = n->rank + sums;
  n->ext = arena_dup(r->g->arena, ext, (size_t)n->n_loops * sizeof *ext);
  return true;
}

/* layout [2, 0, 1], if it is there */
static bool read_layout(Reader *r, int rank, int64_t **layout) {
  int64_t v[KL_RANK];
  int n;
  *layout = NULL;
  if (!accept_word(r, "layout")) return true;
  if (!integers(r, KL_RANK, &n, v)) return false;
  if (n != rank || !n) return fail(r, "a number for each dimension before this");
  *layout = arena_dup(r->g->arena, v, (size_t)n * sizeof *v);
  return true;
}

/* The unbraced part. */
static bool read_payload(Reader *r, Node *n) {
  if (n->prim == P_STATE) {
    if (!string(r, &n->s) || !read_layout(r, n->rank, &n->ia)) return false;
    n->n_ia = n->ia ? n->rank : 0;
    return true;
  }
  if (n->prim == P_FEED || n->prim == P_DATA)
    return string(r, &n->s) && (n->prim != P_DATA || read_data(r, n));
  if (n->prim == P_CONST) return dtype_is_float(n->dtype) ? number(r, &n->f) : integer(r, &n->i);
  if (n->prim == P_CONTRACT) return read_contract(r, n);
  if (n->prim != P_VIEW) return true;
  if (!read_map(r, n->in[0], &n->map[0])) return false;
  return accept_word(r, "pad") ? number(r, &n->f) : fail(r, "pad");
}

static bool read_field(Reader *r, Node *n, const GraphField *f) {
  int64_t axes[KL_RANK];
  int n_axes;
  if (!accept_word(r, f->key)) return fail(r, f->key);
  if (!expect(r, "=")) return false;
  switch (f->kind) {
  case GF_I: return integer(r, &n->i);
  case GF_IA: return integer(r, &n->ia[f->at]);
  case GF_CODE:
    n->ia[f->at] = err_find(word(r));
    return n->ia[f->at] != E_NONE || fail(r, "an error code before this");
  case GF_AXES:
    if (!integers(r, KL_RANK, &n_axes, axes)) return false;
    for (int k = 0; k < n_axes; k++) {
      if (axes[k] < 0 || axes[k] >= n->rank) return fail(r, "an axis below the rank");
      n->i |= (int64_t)1 << axes[k];
    }
    return true;
  default: break;
  }
  if (!string(r, &n->s)) return false;
  const OpDef *def = opdef_find(n->s);
  if (def && def->custom) n->custom = def->custom;
  return n->custom || fail(r, "a registered custom operator before this");
}

/* out=type [dims] for every output of a CALL: remembered as g_out does. */
static bool read_outs(Reader *r, Node *n) {
  int64_t dims[KL_VAR_RANK];
  VEC(int64_t) ia = {0};
  vec_add(r->g->arena, &ia, 0);
  while (accept(r, ",")) {
    DType t;
    int rank;
    if (!accept_word(r, "out")) return fail(r, "out");
    if (!expect(r, "=") || !type(r, &t) || !integers(r, KL_VAR_RANK, &rank, dims)) return false;
    ia.v[0]++;
    vec_add(r->g->arena, &ia, (int64_t)t);
    vec_add(r->g->arena, &ia, rank);
    for (int d = 0; d < KL_VAR_RANK; d++) vec_add(r->g->arena, &ia, d < rank ? dims[d] : 0);
  }
  n->ia = ia.v;
  n->n_ia = ia.n;
  return ia.v[0] > 0 || fail(r, "the outputs of the call");
}

static bool read_fields(Reader *r, Node *n) {
  int fields = 0;
  for (int i = 0; i < graph_field_n; i++) {
    const GraphField *f = &graph_field[i];
    if (f->prim == n->prim && (f->kind == GF_IA || f->kind == GF_CODE)) n->n_ia = f->at + 1;
  }
  if (n->n_ia && !n->ia) n->ia = arena_array(r->g->arena, int64_t, n->n_ia);
  for (int i = 0; i < graph_field_n; i++) {
    if (graph_field[i].prim != n->prim) continue;
    if (!expect(r, fields++ ? "," : "{") || !read_field(r, n, &graph_field[i])) return false;
  }
  if (n->prim == P_CALL && !read_outs(r, n)) return false;
  return fields == 0 || expect(r, "}");
}

/* ---- lines ---- */

static Prim prim_find(const char *name) {
  for (int p = 0; p < P_N; p++)
    if (!strcmp(prim_info[p].name, name)) return (Prim)p;
  return P_N;
}

static bool read_node(Reader *r) {
  int64_t id, dims[KL_RANK];
  int rank;
  DType t;
  VEC(Node *) in = {0};
  if (!expect(r, "%") || !integer(r, &id)) return false;
  if (id != r->g->nodes.n) return fail(r, "nodes numbered from 0 upwards");
  if (!type(r, &t) || !integers(r, KL_RANK, &rank, dims) || !expect(r, "=")) return false;
  Prim p = prim_find(word(r));
  if (p == P_N) return fail(r, "a primitive before this");
  while (peek(r, "%")) {
    Node *x;
    if (!node_ref(r, &x)) return false;
    vec_add(r->g->arena, &in, x);
  }
  if (prim_info[p].n_in >= 0 && in.n != prim_info[p].n_in)
    return fail(r, "another number of operands");
  Node *n = g_node(r->g, p, t, rank, dims, in.n, in.v);
  if (!n) {
    err_where("%s, line %d", r->file ? r->file : "graph text", r->line);
    return false;
  }
  return read_payload(r, n) && read_fields(r, n);
}

static bool read_named(Reader *r, bool fetch) {
  NamedNode x = {0};
  int64_t *layout = NULL;
  if (!string(r, &x.name) || !node_ref(r, &x.node)) return false;
  if (!fetch && !read_layout(r, x.node->rank, &layout)) return false;
  x.layout = layout;
  if (fetch)
    vec_add(r->g->arena, &r->g->fetches, x);
  else
    vec_add(r->g->arena, &r->g->writes, x);
  return true;
}

static void skip_line(Reader *r) {
  while (r->p < r->end && *r->p != '\n') r->p++;
}

/* To the line that starts with a closing brace. */
static bool skip_kernel(Reader *r) {
  while (r->p < r->end) {
    skip_line(r);
    skip(r, true);
    if (accept(r, "}")) return true;
  }
  return fail(r, "} at the end of the kernel");
}

static bool read_line(Reader *r) {
  if (peek(r, "%")) return read_node(r);
  if (accept_word(r, "write")) return read_named(r, false);
  if (accept_word(r, "fetch")) return read_named(r, true);
  if (accept_word(r, "kernel")) return skip_kernel(r);
  if (!accept_word(r, "buffer") && !accept_word(r, "copy") && !accept_word(r, "plan"))
    return fail(r, "a node, write, fetch or kernel");
  skip_line(r);
  return true;
}

static bool read_graph(Reader *r) {
  skip(r, true);
  if (!accept_word(r, "graph")) return fail(r, "graph");
  r->g->shapes_only = accept_word(r, "shapes");
  while (true) {
    skip(r, false);
    if (r->p < r->end && *r->p != '\n') return fail(r, "the end of the line");
    skip(r, true);
    if (r->p == r->end) break;
    if (!read_line(r)) return false;
  }
  if (graph_verify(r->g)) return true;
  err_where("%s", r->file ? r->file : "graph text");
  return false;
}

Graph *graph_parse(const char *text, size_t n, const char *file) {
  Arena *a = arena_scratch();
  Graph *g = arena_new_of(a, Graph);
  Reader r = {.p = text, .end = text + n, .line_start = text, .file = file, .line = 1, .g = g};
  g->arena = a;
  if (!read_graph(&r)) {
    arena_free(a);
    return NULL;
  }
  arena_keep(a);
  graph_number(g);
  return g;
}
