/* The text form of a Program: `.kl` text in, a Program out; parse(print(p)) equals p.
 *
 *   program   = "program" "version" INT ["seed" INT] NL { versions NL } { block }
 *   versions  = "op_versions" name INT {"," name INT}
 *   block     = "block" INT ["parent" INT] ["forward" INT] "{" NL { (variable | operator) NL } "}" NL
 *   variable  = ("var" | "param") name { kind | type | flag } [attrs]
 *   kind      = "selected_rows" | "tensor_array" | "feed_minibatch" | "raw" | ...     (a tensor if none is given)
 *   type      = ("float32" | "int64" | ... | "none" | "dtype" INT) ["[" [INT {"," INT}] "]"]
 *   flag      = "persistable" | "parameter" | "feed" | "stop_gradient" | "lod" INT
 *   operator  = [output {"," output} "="] name "(" [input {"," input}] ")" [attrs] ["target"] ["at" string]
 *   output    = [name "="] args                    the slot is `Out` if none is named
 *   input     = name "=" args
 *   args      = name | "[" [name {"," name}] "]"
 *   attrs     = "{" [name "=" value {"," value}] "}"              values: see literal.c
 *   name      = letter, _ or @, then also digits . / $ + -; or any string in "double quotes"
 *
 * `param` means persistable and parameter. `at` is an op_callstack of one string. "#" starts a comment. A line ends a
 * statement, except inside brackets. One token of lookahead decides everything but `a = b`, where what follows b tells
 * whether a is a slot or a variable. */
#include "ir.h"
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

typedef struct Text {
  const char *start, *s, *end;
  Program *p;
  Arena *tmp;
  Map *names; /* strings already in the Program's arena */
  int deep;   /* open brackets: line ends are space */
  size_t cost, limit;
  VEC(const char *) args; /* reused for every list */
  VEC(Slot) ins, outs;
  VEC(Attr) attrs;
} Text;

/* ---- tokens ---- */

static void skip(Text *k) {
  for (;;) {
    k->s += strspn(k->s, k->deep ? " \t\r\n" : " \t\r");
    if (*k->s != '#') return;
    k->s += strcspn(k->s, "\n");
  }
}

static void skip_lines(Text *k) {
  k->deep++;
  skip(k);
  k->deep--;
}

static bool fail(Text *k, const char *expected) {
  char found[24] = "";
  size_t n = strcspn(k->s, " \t\r\n,;()[]{}=");
  if (n == 0) n = 1;
  memcpy(found, k->s, n < sizeof found ? n : sizeof found - 1);
  const char *text = k->s == k->end                   ? "the end of the text"
                     : *k->s == '\n' || *k->s == '\r' ? "the end of the line"
                                                      : quoted(found);
  return err_set(E_TXT_001, "expected %s, found %s", expected, text);
}

static bool refuse(Text *k, const char *at) {
  k->s = at;
  return false;
}

static bool charge(Text *k, size_t n) {
  k->cost += n;
  return k->cost <= k->limit ||
         err_set(E_MEM_002, "parsing needs more than %zu MiB", k->limit >> 20);
}

static bool accept(Text *k, char c) {
  skip(k);
  if (*k->s != c) return false;
  k->s++;
  return true;
}

static bool expect(Text *k, char c) {
  char what[] = {'"', c, '"', 0};
  return accept(k, c) || fail(k, what);
}

/* Behind one of a list: takes the comma, or stays at what closes the list. */
static bool another(Text *k, char close) {
  char what[] = {'"', ',', '"', ' ', 'o', 'r', ' ', '"', close, '"', 0};
  skip(k);
  return *k->s == close || accept(k, ',') || fail(k, what);
}

static size_t bare_length(const char *s) {
  return strspn(s, "0123456789./-+$") ? 0 : strspn(s, TEXT_NAME_CHARS);
}

static bool at_word(Text *k, const char *word) {
  skip(k);
  size_t n = bare_length(k->s);
  return n && n == strlen(word) && !memcmp(k->s, word, n);
}

static bool accept_word(Text *k, const char *word) {
  if (!at_word(k, word)) return false;
  k->s += strlen(word);
  return true;
}

/* A string in the Program's arena, each distinct one once; it is freed with tmp otherwise. */
static const char *keep(Text *k, const char *s) {
  const char *kept = map_get(k->names, s);
  if (kept) return kept;
  if (!charge(k, 2 * strlen(s) + 64)) return NULL;
  char *copy = arena_str(k->p->arena, s);
  map_put(k->names, copy, copy);
  return copy;
}

static bool name(Text *k, const char **out, const char *expected) {
  skip(k);
  char buf[256], *s = buf;
  size_t n = bare_length(k->s);
  if (n) {
    if (n >= sizeof buf) s = arena_alloc(k->tmp, n + 1);
    memcpy(s, k->s, n);
    s[n] = 0;
    k->s += n;
  } else if (*k->s != '"' || !(s = text_unquote(k->tmp, &k->s)))
    return fail(k, expected);
  return (*out = keep(k, s)) != NULL;
}

static bool integer(Text *k, int64_t lo, int64_t hi, int64_t *out, const char *expected) {
  skip(k);
  char *end;
  errno = 0;
  *out = strtoll(k->s, &end, 10);
  bool starts = *k->s == '-' || (*k->s >= '0' && *k->s <= '9');
  bool whole = starts && end > k->s && !strspn(end, TEXT_NAME_CHARS);
  if (!whole || errno || *out < lo || *out > hi) {
    fail(k, expected);
    if (whole) err_help("It is a number from %lld to %lld.", (long long)lo, (long long)hi);
    return false;
  }
  k->s = end;
  return true;
}

static bool line_end(Text *k) {
  skip(k);
  if (k->s == k->end) return true;
  if (*k->s != '\n') return fail(k, "the end of the line");
  skip_lines(k);
  return true;
}

/* ---- attributes ---- */

/* def: of an operator, which must know the name unless it stands in quotes; or NULL */
static bool attribute(Text *k, const OpDef *def) {
  Attr a = {0};
  skip(k);
  const char *at = k->s;
  if (!name(k, &a.name, "the name of an attribute")) return false;
  if (def && *at != '"' && !opdef_takes(def, a.name)) return refuse(k, at);
  if (!expect(k, '=')) return false;
  skip(k);
  at = k->s;
  if (!attr_parse(k->p->arena, at, &k->s, &a))
    return a.type < AT_N
               ? attr_too_large(a.type, k->s)
               : fail(k, "a value such as 1, 1L, 1.0, true, 'text', [1, 2], []F or block 1");
  if (!charge(k, sizeof a + 4 * (size_t)(k->s - at))) return false;
  vec_add(k->tmp, &k->attrs, a);
  return true;
}

static bool attributes(Text *k, const OpDef *def) {
  if (!accept(k, '{')) return true;
  k->deep++;
  while (!accept(k, '}')) {
    if (!attribute(k, def)) return false;
    if (!another(k, '}')) return false;
  }
  k->deep--;
  return true;
}

static Attr *take_attrs(Text *k, int *n) {
  Attr *v = arena_dup(k->p->arena, k->attrs.v, (size_t)k->attrs.n * sizeof(Attr));
  *n = k->attrs.n;
  k->attrs.n = 0;
  return v;
}

/* ---- operators ---- */

static bool arguments(Text *k, const char *slot, Slot *out) {
  k->args.n = 0;
  const char *arg;
  if (accept(k, '[')) {
    k->deep++;
    while (!accept(k, ']')) {
      if (!name(k, &arg, "the name of a variable or \"]\"")) return false;
      vec_add(k->tmp, &k->args, arg);
      if (!another(k, ']')) return false;
    }
    k->deep--;
  } else {
    if (!name(k, &arg, "the name of a variable or \"[\"")) return false;
    vec_add(k->tmp, &k->args, arg);
  }
  size_t size = (size_t)k->args.n * sizeof *k->args.v;
  *out = (Slot){slot, k->args.n, arena_dup(k->p->arena, k->args.v, size)};
  return charge(k, sizeof(Slot) + size);
}

static Slot *take_slots(Text *k, const Slot *slots, int n) {
  return arena_dup(k->p->arena, slots, (size_t)n * sizeof(Slot));
}

static bool add_output(Text *k, const char *slot, const char *single) {
  Slot s = {slot, 1, NULL};
  if (single) {
    if (!charge(k, sizeof s)) return false;
    s.args = arena_dup(k->p->arena, &single, sizeof single);
  } else if (!arguments(k, slot, &s))
    return false;
  vec_add(k->tmp, &k->outs, s);
  return true;
}

/* One output; *type is set if the operator's type has been read as well. */
static bool output(Text *k, const char **type) {
  const char *first, *second, *plain = keep(k, "Out");
  skip(k);
  if (*k->s == '[') return add_output(k, plain, NULL);
  if (!name(k, &first, "an operator, a variable or \"}\"")) return false;
  skip(k);
  if (*k->s == '(' && !k->outs.n) {
    *type = first;
    return true;
  }
  if (*k->s != '=') return add_output(k, plain, first);
  k->s++;
  skip(k);
  if (*k->s == '[') return add_output(k, first, NULL);
  if (!name(k, &second, "a variable or an operator")) return false;
  skip(k);
  if (*k->s != '(') return add_output(k, first, second);
  *type = second;
  return add_output(k, plain, first);
}

static bool inputs(Text *k) {
  if (!expect(k, '(')) return false;
  k->deep++;
  while (!accept(k, ')')) {
    const char *slot;
    Slot s;
    if (!name(k, &slot, "the name of a slot or \")\"") || !expect(k, '=')) return false;
    if (!arguments(k, slot, &s)) return false;
    vec_add(k->tmp, &k->ins, s);
    if (!another(k, ')')) return false;
  }
  k->deep--;
  return true;
}

static bool tail(Text *k, bool *target) {
  *target = accept_word(k, "target");
  if (!accept_word(k, "at")) return true;
  skip(k);
  Attr a = {.type = AT_STRINGS, .n = 1};
  char *place = text_unquote(k->p->arena, &k->s);
  if (!place) return fail(k, "a place such as \"net.c:12\"");
  a.name = keep(k, "op_callstack");
  a.ss = arena_dup(k->p->arena, &place, sizeof place);
  vec_add(k->tmp, &k->attrs, a);
  return true;
}

static bool operator_line(Text *k, Block *b) {
  const char *start = k->s, *type = NULL;
  k->ins.n = k->outs.n = k->attrs.n = 0;
  while (!type) {
    if (!output(k, &type)) return false;
    if (type || accept(k, ',')) continue;
    if (!accept(k, '=')) return fail(k, "\",\", \"=\" or \"(\"");
    if (!name(k, &type, "the type of an operator")) return false;
  }
  bool target;
  if (!inputs(k) || !attributes(k, opdef_find(type)) || !tail(k, &target)) return false;
  if (!charge(k, sizeof(Op) + 64)) return false;
  Op *op = block_add_op(b, type);
  op->is_target = target;
  op->ins.v = take_slots(k, k->ins.v, op->ins.n = op->ins.cap = k->ins.n);
  op->outs.v = take_slots(k, k->outs.v, op->outs.n = op->outs.cap = k->outs.n);
  op->attrs.v = take_attrs(k, &op->attrs.n);
  op->attrs.cap = op->attrs.n;
  if (!op_names_differ(op, k->tmp)) return refuse(k, start);
  op_link_attrs(op);
  return line_end(k);
}

/* ---- variables ---- */

static bool dims(Text *k, Var *v) {
  v->rank = 0;
  k->deep++;
  while (!accept(k, ']')) {
    int64_t d;
    if (!integer(k, -1, INT64_MAX, &d, "a dimension (-1 if unknown) or \"]\"")) return false;
    if (v->rank == KL_VAR_RANK) return err_set(E_SHP_002, "more than %d dimensions", KL_VAR_RANK);
    v->dims[v->rank++] = d;
    if (!another(k, ']')) return false;
  }
  k->deep--;
  return check_var_dims(v->rank, v->dims);
}

typedef struct VarFlag {
  const char *word;
  size_t at;
} VarFlag;
static const VarFlag var_flags[] = {{"persistable", offsetof(Var, persistable)},
                                    {"parameter", offsetof(Var, is_parameter)},
                                    {"feed", offsetof(Var, need_check_feed)},
                                    {"stop_gradient", offsetof(Var, stop_gradient)}};

/* One word after a variable's name; the kinds and types come from their tables. */
static bool var_word(Text *k, Var *v) {
  int64_t number;
  for (size_t i = 0; i < sizeof var_flags / sizeof *var_flags; i++)
    if (accept_word(k, var_flags[i].word)) return *(bool *)((char *)v + var_flags[i].at) = true;
  for (const VarKindName *n = var_kind_names; n->name; n++)
    if (accept_word(k, n->name)) {
      v->kind = (VarKind)n->kind;
      return true;
    }
  if (accept_word(k, "lod")) {
    if (!integer(k, 0, 64, &number, "a number of LoD levels")) return false;
    v->lod_level = (int)number;
    return true;
  }
  bool typed = false;
  if (accept_word(k, "dtype")) {
    if (!integer(k, 0, 31, &number, "the number of an element type")) return false;
    v->dtype = dtype_from_paddle((int)number);
    v->paddle_dtype = v->dtype == DT_NONE ? (int)number : -1;
    typed = true;
  }
  for (int t = 0; t <= DT_N && !typed; t++)
    if ((typed = accept_word(k, dtype_info[t].name))) v->dtype = (DType)t;
  if (!typed) return fail(k, "a type, a flag such as persistable, or the end of the line");
  v->rank = -1;
  return !accept(k, '[') || dims(k, v);
}

static bool variable_line(Text *k, Block *b, bool param) {
  const char *start = k->s;
  Var w = {.kind = VK_TENSOR, .dtype = DT_NONE, .paddle_dtype = -1};
  w.persistable = w.is_parameter = param;
  k->attrs.n = 0;
  if (!name(k, &w.name, "the name of a variable")) return false;
  while (skip(k), *k->s && !strchr("\n{}", *k->s))
    if (!var_word(k, &w)) return false;
  if (!attributes(k, NULL) || !charge(k, sizeof(Var) + 160)) return false;
  const char *twice = repeated_name(k->tmp, k->attrs.v, k->attrs.n, sizeof(Attr));
  if (twice) err_set(E_PRO_002, "attribute %s is there twice", quoted(twice));
  Var *v = twice ? NULL : block_add_var(b, w.name, w.kind, w.dtype, w.rank, w.dims);
  if (!v) return refuse(k, start);
  v->paddle_dtype = w.paddle_dtype;
  v->lod_level = w.lod_level;
  v->persistable = w.persistable;
  v->is_parameter = w.is_parameter;
  v->need_check_feed = w.need_check_feed;
  v->stop_gradient = w.stop_gradient;
  v->attrs.v = take_attrs(k, &v->attrs.n);
  v->attrs.cap = v->attrs.n;
  return line_end(k);
}

/* ---- blocks, program ---- */

static bool block(Text *k, int position) {
  int64_t idx, parent = position ? 0 : -1, forward = -1;
  const char *start = k->s;
  if (!integer(k, INT32_MIN, INT32_MAX, &idx, "the index of the block")) return false;
  if (accept_word(k, "parent") &&
      !integer(k, INT32_MIN, INT32_MAX, &parent, "the index of the parent block"))
    return false;
  if (accept_word(k, "forward") &&
      !integer(k, INT32_MIN, INT32_MAX, &forward, "the index of the forward block"))
    return false;
  if (!expect(k, '{')) return false;
  if (!check_block_head(position, idx, parent, forward)) return refuse(k, start);
  if (!charge(k, 512)) return false;
  Block *b = position ? prog_add_block(k->p, (int)parent, (int)forward) : k->p->blocks.v[0];
  skip_lines(k);
  while (!accept(k, '}')) {
    bool param = accept_word(k, "param");
    bool ok = param || accept_word(k, "var") ? variable_line(k, b, param) : operator_line(k, b);
    if (!ok) return false;
    skip_lines(k);
  }
  return line_end(k);
}

static bool versions_line(Text *k) {
  do {
    OpVersion v;
    int64_t number;
    if (!name(k, &v.name, "the type of an operator") ||
        !integer(k, INT32_MIN, INT32_MAX, &number, "a version"))
      return false;
    v.version = (int32_t)number;
    vec_add(k->p->arena, &k->p->op_versions, v);
  } while (accept(k, ','));
  return line_end(k);
}

static bool program(Text *k) {
  skip_lines(k);
  if (!accept_word(k, "program")) return fail(k, "\"program version N\" at the start");
  if (accept_word(k, "version") &&
      !integer(k, INT64_MIN, INT64_MAX, &k->p->version, "a version such as 2006002"))
    return false;
  if (accept_word(k, "seed") && !integer(k, INT64_MIN, INT64_MAX, &k->p->seed, "a seed"))
    return false;
  if (!line_end(k)) return false;
  skip_lines(k);
  while (accept_word(k, "op_versions"))
    if (!versions_line(k)) return false;
  const char *twice =
      repeated_name(k->tmp, k->p->op_versions.v, k->p->op_versions.n, sizeof(OpVersion));
  if (twice) return err_set(E_PRO_002, "operator %s has two versions", quoted(twice));
  int blocks = 0;
  while (accept_word(k, "block")) {
    if (!block(k, blocks++)) return false;
    skip_lines(k);
  }
  if (k->s != k->end || !blocks) return fail(k, blocks ? "\"block\" or the end" : "\"block 0 {\"");
  if (prog_check_blocks(k->p)) return true;
  return refuse(k, NULL); /* the error names the operator; it is not where reading ended */
}

/* Adds line and column of the place where parsing stopped. */
static void add_place(const Text *k, const char *file) {
  long line = 1;
  const char *start = k->start;
  if (!k->s) {
    err_where("%s", file ? file : "text");
    return;
  }
  for (const char *s = k->start; s < k->s; s++)
    if (*s == '\n') line++, start = s + 1;
  err_where("%s, line %ld, column %ld", file ? file : "text", line, (long)(k->s - start) + 1);
}

static bool parse(Text *k, const char *text, size_t n, const char *file) {
  k->names = map_new(k->tmp);
  k->limit = ((size_t)48 << 20) + 2 * n;
  k->start = k->s = arena_strn(k->tmp, text, n);
  k->end = k->start + n;
  k->p = prog_new();
  k->p->file = file ? arena_str(k->p->arena, file) : NULL;
  const char *nul = memchr(k->start, 0, n);
  bool ok;
  if (nul) {
    k->s = nul;
    ok = err_set(E_TXT_001, "a NUL byte; this is not text");
  } else
    ok = program(k);
  if (!ok) add_place(k, file);
  return ok;
}

Program *prog_parse(const char *text, size_t n, const char *file) {
  Arena *tmp = arena_new();
  Text *volatile held = NULL;
  MemGuard g;
  if (MEM_GUARD(g)) {
    if (held) prog_free(held->p);
    arena_free(tmp);
    return NULL;
  }
  Text *k = held = arena_new_of(tmp, Text);
  k->tmp = tmp;
  err_clear();
  bool ok = parse(k, text, n, file);
  mem_unguard(&g);
  Program *p = k->p;
  arena_free(tmp);
  if (ok) return p;
  prog_free(p);
  return NULL;
}
