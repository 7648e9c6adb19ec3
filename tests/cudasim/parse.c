/* PTX text -> a module: directives, variables, functions and their scopes; each instruction is handed to decode.c as a word
 * and operands. One pass; branches are resolved at the end of a function. The first error ends it, with line and text. */
#include "sim.h"
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

void parse_fail(Parser *p, const char *fmt, ...) {
  va_list args;
  const char *at = p->word.s ? p->word.s : p->lex.t.s;
  uint32_t line = p->word.s ? p->word.line : p->lex.t.line;
  while (at > p->lex.start && at[-1] != '\n') at--;
  while (*at == ' ' || *at == '\t') at++;
  int n = snprintf(p->error, p->error_size, "ptx line %u: ", line);
  va_start(args, fmt);
  n += vsnprintf(p->error + n, p->error_size - (size_t)n, fmt, args);
  va_end(args);
  if (n > 0 && (size_t)n < p->error_size)
    snprintf(p->error + n, p->error_size - (size_t)n, "\n  %.*s", (int)strcspn(at, "\n"), at);
  longjmp(p->bail, 1);
}

/* ---- symbols ---- */

static uint32_t hash(const char *s, size_t n) {
  uint32_t h = 2166136261u;
  for (size_t i = 0; i < n; i++) h = (h ^ (unsigned char)s[i]) * 16777619u;
  return (h ^ h >> 15) % 4096;
}

Symbol *symbol_find(const Parser *p, const char *name, size_t n) {
  for (Symbol *s = p->bucket[hash(name, n)]; s; s = s->next)
    if (!strncmp(s->name, name, n) && !s->name[n]) return s;
  return NULL;
}

static void symbol_enter(Parser *p, Symbol *s) {
  Symbol **b = &p->bucket[hash(s->name, strlen(s->name))];
  s->next = *b;
  *b = s;
  if (p->n_scope == p->cap_scope)
    p->scope = host_grow(p->scope, (size_t)(p->cap_scope += p->cap_scope + 64) * sizeof *p->scope);
  p->scope[p->n_scope++] = s;
}

Symbol *symbol_add(Parser *p, SymbolKind kind, const char *name, size_t n) {
  Symbol *s = arena_alloc(p->m->arena, sizeof *s);
  s->name = arena_text(p->m->arena, name, n);
  s->kind = kind;
  symbol_enter(p, s);
  return s;
}

/* A label may be named before it is defined, also by an inner scope. */
Symbol *symbol_label(Parser *p, const char *name, size_t n) {
  Symbol *s = symbol_find(p, name, n);
  return s && (s->kind == SYM_LABEL || s->kind == SYM_TABLE) ? s
                                                             : symbol_add(p, SYM_LABEL, name, n);
}

static void scope_end(Parser *p, int from) {
  Symbol **open = NULL;
  int n_open = 0;
  while (p->n_scope > from) {
    Symbol *s = p->scope[--p->n_scope];
    p->bucket[hash(s->name, strlen(s->name))] = s->next;
    if (s->kind == SYM_LABEL && !s->defined) {
      open = host_grow(open, (size_t)(n_open + 1) * sizeof *open);
      open[n_open++] = s;
    }
  }
  for (int i = n_open; i-- > 0;) {
    if (!from) continue;
    Symbol *outer = symbol_find(p, open[i]->name, strlen(open[i]->name));
    if (outer && outer->kind == SYM_LABEL)
      open[i]->alias = outer;
    else
      symbol_enter(p, open[i]);
  }
  free(open);
}

/* ---- tokens ---- */

static bool is(const Parser *p, const char *text) {
  return p->lex.t.kind != T_END && p->lex.t.n == strlen(text) &&
         !memcmp(p->lex.t.s, text, p->lex.t.n);
}

static bool accept(Parser *p, const char *text) {
  bool yes = is(p, text);
  if (yes) lex_next(&p->lex);
  return yes;
}

static void expect(Parser *p, const char *text) {
  if (!accept(p, text))
    parse_fail(p, "expected `%s`, not `%.*s`", text, (int)p->lex.t.n, p->lex.t.s);
}

static Token expect_kind(Parser *p, TokenKind kind, const char *what) {
  Token t = p->lex.t;
  if (t.kind != kind) parse_fail(p, "expected %s, not `%.*s`", what, (int)t.n, t.s);
  lex_next(&p->lex);
  return t;
}

static uint64_t expect_int(Parser *p) { return expect_kind(p, T_INT, "a number").value; }

static const Type *expect_type(Parser *p) {
  Token t = expect_kind(p, T_WORD, "a type");
  const Type *type = t.s[0] == '.' ? type_find(t.s + 1, t.n - 1) : NULL;
  if (!type) parse_fail(p, "`%.*s` is not a type", (int)t.n, t.s);
  return type;
}

static uint64_t up(uint64_t n, uint64_t align) { return (n + align - 1) / align * align; }

/* ---- variables ---- */

static void declare_registers(Parser *p) {
  const Type *type = expect_type(p);
  do {
    Token name = expect_kind(p, T_WORD, "a register");
    uint64_t n = 0;
    bool many = accept(p, "<");
    if (many) {
      n = expect_int(p);
      expect(p, ">");
      if (n > 1000000) parse_fail(p, "too many registers");
    }
    for (uint64_t i = 0; i < (many ? n : 1); i++) {
      char text[300];
      int length = snprintf(text, sizeof text, many ? "%.*s%llu" : "%.*s", (int)name.n, name.s,
                            (unsigned long long)i);
      Symbol *s = symbol_add(p, SYM_REGISTER, text, (size_t)length);
      s->type = type;
      s->at = (uint64_t)p->f->own;
      p->f->own += type->kind == KIND_PRED ? 4 : (type->size < 2 ? 2 : type->size) * LANES;
    }
    if (many && p->f->own % 64) p->f->own += 64 - p->f->own % 64;
  } while (accept(p, ","));
  p->f->own = (int)up((uint64_t)p->f->own, 64);
  expect(p, ";");
}

/* {1, 2, 0f3F800000, {..}}: bytes of the elements, in order. */
static uint64_t initial_values(Parser *p, const Type *type, char *to, uint64_t at, uint64_t bytes) {
  int depth = 0;
  do {
    while (accept(p, "{")) depth++;
    bool minus = accept(p, "-");
    Token t = p->lex.t;
    if (t.kind != T_INT && t.kind != T_FLOAT) parse_fail(p, "only numbers can be initial values");
    lex_next(&p->lex);
    uint64_t v = minus ? -t.value : t.value;
    union {
      uint64_t u;
      double d;
      float f;
    } x = {.u = t.value};
    if (t.kind == T_FLOAT && t.width == 8 && type->size == 4)
      x.f = (float)x.d, v = x.u & 0xffffffffu;
    if (at + (uint64_t)type->size > bytes) parse_fail(p, "too many initial values");
    memcpy(to + at, &v, (size_t)type->size);
    at += (uint64_t)type->size;
    while (depth && accept(p, "}")) depth--;
  } while (accept(p, ","));
  if (depth) parse_fail(p, "expected `}`");
  return at;
}

static void global_place(Parser *p, Symbol *s, uint64_t bytes) {
  Module *m = p->m;
  s->at = memory_alloc(bytes ? bytes : 1);
  if (!s->at) parse_fail(p, "out of device memory for variable %s", s->name);
  if (m->n_global == m->cap_global)
    m->global =
        host_grow(m->global, (size_t)(m->cap_global += m->cap_global + 16) * sizeof *m->global);
  m->global[m->n_global++] = s;
  memset(memory_at(s->at), 0, bytes);
  memory_mark(s->at, bytes);
}

/* Variables at module level get their place in the first kernel that names them, and in every one a place of its own. */
void variable_place(Parser *p, Symbol *s) {
  if (s->space != SPACE_SHARED || s->function == p->f) return;
  if (!s->bytes) {
    if (s->align > p->f->dynamic_align) p->f->dynamic_align = s->align;
    return;
  }
  if (p->f->entry) {
    if (!p->f->shared_bytes) p->f->shared_bytes = p->m->shared_bytes;
    if (s->function && !s->function->entry) return;
    s->at = up(p->f->shared_bytes, (uint64_t)s->align);
    p->f->shared_bytes = s->at + s->bytes;
  } else {
    if (s->function && !s->function->entry) return;
    for (int i = 0; i < p->m->n; i++)
      if (p->m->function[i]->entry)
        parse_fail(p, "shared memory in a function behind a kernel is not supported");
    s->at = up(p->m->shared_bytes, (uint64_t)s->align);
    p->m->shared_bytes = s->at + s->bytes;
  }
  s->function = p->f;
}

static Symbol *declare_variable(Parser *p, Space space) {
  int align = 0;
  const Type *type = NULL;
  uint64_t count = 1, vector = 1;
  for (;;) {
    if (accept(p, ".align"))
      align = (int)expect_int(p);
    else if (accept(p, ".v2"))
      vector = 2;
    else if (accept(p, ".v4"))
      vector = 4;
    else if (accept(p, ".ptr") || accept(p, ".global") || accept(p, ".shared") ||
             accept(p, ".const") || accept(p, ".local"))
      continue;
    else if (!type && p->lex.t.kind == T_WORD && p->lex.t.s[0] == '.')
      type = expect_type(p);
    else
      break;
  }
  if (!type || !type->size) parse_fail(p, "a variable without a type");
  Token name = expect_kind(p, T_WORD, "a variable");
  Symbol *s = symbol_add(p, SYM_VARIABLE, name.s, name.n);
  while (accept(p, "[")) {
    count *= is(p, "]") ? 0 : expect_int(p);
    expect(p, "]");
  }
  s->type = type;
  s->space = space;
  s->align = align ? align : type->size * (int)vector;
  s->bytes = count * vector * (uint64_t)type->size;
  if (space == SPACE_GLOBAL || space == SPACE_CONST) {
    if (!s->bytes) parse_fail(p, "the size of %s is not known", s->name);
    global_place(p, s, s->bytes);
    if (accept(p, "=")) initial_values(p, type, memory_at(s->at), 0, s->bytes);
  }
  return s;
}

static void local_place(Parser *p, Symbol *s) {
  Module *m = p->m;
  s->at = m->local_bytes = up(m->local_bytes, (uint64_t)s->align);
  m->local_bytes += s->bytes;
  if (!p->f->local_bytes) p->f->local_at = s->at;
  p->f->local_bytes = m->local_bytes - p->f->local_at;
}

static void frame_place(Parser *p, Symbol *s) {
  s->at = p->m->frame_bytes = up(p->m->frame_bytes, 16);
  p->m->frame_bytes += s->bytes;
}

static void declare_variables(Parser *p, Space space) {
  do {
    Symbol *s = declare_variable(p, space);
    if (p->f && space == SPACE_SHARED && s->bytes) variable_place(p, s);
    if (p->f && space == SPACE_LOCAL) local_place(p, s);
    if (p->f && space == SPACE_PARAM) frame_place(p, s);
  } while (accept(p, ","));
  expect(p, ";");
}

/* ---- instructions ---- */

static void operand(Parser *p, Operand *o);

static void operand_address(Parser *p, Operand *o) {
  o->kind = O_ADDRESS;
  if (p->lex.t.kind == T_WORD) {
    Token t = p->lex.t;
    o->symbol = symbol_find(p, t.s, t.n);
    if (!o->symbol) parse_fail(p, "`%.*s` is not declared", (int)t.n, t.s);
    lex_next(&p->lex);
  } else {
    o->value = expect_int(p);
  }
  while (is(p, "+") || is(p, "-")) {
    bool minus = accept(p, "-");
    if (!minus) lex_next(&p->lex), minus = accept(p, "-");
    uint64_t v = expect_int(p);
    o->value += minus ? -v : v;
  }
  expect(p, "]");
}

static void operand_word(Parser *p, Operand *o) {
  Token t = p->lex.t;
  lex_next(&p->lex);
  if (t.n == 1 && *t.s == '_') {
    o->kind = O_SINK;
    return;
  }
  Symbol *s = symbol_find(p, t.s, t.n);
  int width = 0;
  if (s) {
    o->symbol = s;
    o->kind = s->kind == SYM_REGISTER ? O_REGISTER : s->kind == SYM_VARIABLE ? O_CONSTANT : O_LABEL;
    if (o->kind == O_CONSTANT && (is(p, "+") || is(p, "-"))) {
      bool minus = is(p, "-");
      lex_next(&p->lex);
      uint64_t v = expect_int(p);
      o->value = minus ? -v : v;
    }
  } else if ((o->special = special_at(p, t.s, t.n, &width)) >= 0) {
    o->kind = O_REGISTER;
    o->special_width = width;
  } else if (*t.s == '%') {
    parse_fail(p, "register `%.*s` is not declared", (int)t.n, t.s);
  } else {
    o->kind = O_LABEL;
    o->symbol = symbol_label(p, t.s, t.n);
  }
}

static void operand(Parser *p, Operand *o) {
  *o = (Operand){.special = -1};
  o->flip = accept(p, "!");
  bool minus = accept(p, "-");
  Token t = p->lex.t;
  if (t.kind == T_INT || t.kind == T_FLOAT) {
    o->kind = O_CONSTANT;
    o->is_float = t.kind == T_FLOAT;
    o->float_width = t.width;
    o->value = t.value;
    if (minus)
      o->value =
          o->is_float ? t.value ^ (t.width == 4 ? 0x80000000u : UINT64_C(1) << 63) : -t.value;
    lex_next(&p->lex);
  } else if (accept(p, "[")) {
    operand_address(p, o);
  } else if (accept(p, "{") || accept(p, "(")) {
    const char *end = *t.s == '{' ? "}" : ")";
    o->kind = O_VECTOR;
    Operand part[64];
    while (!is(p, end)) {
      if (o->n == COUNT(part)) parse_fail(p, "too many parts");
      operand(p, &part[o->n++]);
      if (!accept(p, ",")) break;
    }
    expect(p, end);
    o->v = arena_alloc(p->m->arena, (size_t)o->n * sizeof *o->v + 1);
    memcpy(o->v, part, (size_t)o->n * sizeof *o->v);
  } else if (t.kind == T_WORD) {
    operand_word(p, o);
    if (accept(p, "|")) {
      Token q = expect_kind(p, T_WORD, "a register");
      o->pair = q.n == 1 && *q.s == '_' ? NULL : symbol_find(p, q.s, q.n);
    }
  } else {
    parse_fail(p, "`%.*s` is not an operand", (int)t.n, t.s);
  }
}

static void instruction(Parser *p) {
  Operand guard = {0};
  bool guarded = accept(p, "@");
  if (guarded) operand(p, &guard);
  p->word = expect_kind(p, T_WORD, "an instruction");
  p->n_operand = 0;
  while (!is(p, ";")) {
    if (p->n_operand == COUNT(p->operand)) parse_fail(p, "too many operands");
    operand(p, &p->operand[p->n_operand++]);
    if (!accept(p, ",")) break;
  }
  expect(p, ";");
  int first = p->f->n;
  decode(p);
  if (guarded) {
    int32_t at = one_at(p, &guard, NULL, 0, false);
    for (int i = first; i < p->f->n; i++) {
      p->f->code[i].guard = at;
      p->f->code[i].guard_flip = guard.flip ? FULL : 0;
    }
  }
  p->word = (Token){0};
}

static void label(Parser *p, Token name) {
  Symbol *s = symbol_find(p, name.s, name.n);
  if (!s || s->kind != SYM_LABEL || s->defined) s = symbol_add(p, SYM_LABEL, name.s, name.n);
  s->defined = true;
  s->at = (uint64_t)p->f->n;
  if (!accept(p, ".branchtargets")) return;
  s->kind = SYM_TABLE;
  Symbol *target[4096];
  do {
    if (s->n_table == COUNT(target)) parse_fail(p, "too many targets");
    Token t = expect_kind(p, T_WORD, "a label");
    target[s->n_table++] = symbol_label(p, t.s, t.n);
  } while (accept(p, ","));
  s->table = arena_alloc(p->m->arena, (size_t)s->n_table * sizeof(Symbol *));
  memcpy(s->table, target, (size_t)s->n_table * sizeof(Symbol *));
  expect(p, ";");
}

static const struct {
  const char *word;
  Space space;
} spaces[] = {{".global", SPACE_GLOBAL},
              {".shared", SPACE_SHARED},
              {".local", SPACE_LOCAL},
              {".param", SPACE_PARAM},
              {".const", SPACE_CONST}};

static int space_word(Parser *p) {
  for (int i = 0; i < COUNT(spaces); i++)
    if (accept(p, spaces[i].word)) return i;
  return -1;
}

static void body(Parser *p) {
  int open[64], depth = 0, k;
  open[depth++] = p->n_scope;
  while (depth) {
    if (p->lex.t.kind == T_END) parse_fail(p, "the text ends inside of function %s", p->f->name);
    if (accept(p, "{")) {
      if (depth == COUNT(open)) parse_fail(p, "too many nested scopes");
      open[depth++] = p->n_scope;
    } else if (accept(p, "}")) {
      if (--depth) scope_end(p, open[depth]);
    } else if (accept(p, ".reg")) {
      declare_registers(p);
    } else if (is(p, ".loc") || is(p, ".file")) {
      lex_skip_line(&p->lex);
    } else if (accept(p, ".pragma")) {
      lex_next(&p->lex);
      expect(p, ";");
    } else if ((k = space_word(p)) >= 0) {
      declare_variables(p, spaces[k].space);
    } else {
      const Lexer before = p->lex;
      Token name = p->lex.t;
      lex_next(&p->lex);
      if (name.kind == T_WORD && accept(p, ":")) {
        label(p, name);
      } else {
        p->lex = before;
        instruction(p);
      }
    }
  }
}

/* ---- functions ---- */

static uint32_t label_at(Parser *p, const Symbol *s) {
  while (s->alias) s = s->alias;
  if (!s->defined) parse_fail(p, "label %s of function %s is not defined", s->name, p->f->name);
  return (uint32_t)s->at;
}

static void function_finish(Parser *p) {
  Function *f = p->f;
  p->word = (Token){0};
  if (f->entry && !f->shared_bytes) f->shared_bytes = p->m->shared_bytes;
  for (int i = 0; i < p->n_fix; i++) {
    Insn *in = &f->code[p->fix[i].insn];
    Symbol *s = p->fix[i].label;
    while (s->alias) s = s->alias;
    if (in->flow != FLOW_TABLE) {
      in->target = label_at(p, s);
      continue;
    }
    if (s->kind != SYM_TABLE) parse_fail(p, "%s is not a table of targets", s->name);
    uint32_t *table = arena_alloc(p->m->arena, (size_t)s->n_table * sizeof *table);
    for (int k = 0; k < s->n_table; k++) table[k] = label_at(p, s->table[k]);
    in->table = table;
    in->imm = s->n_table;
  }
  uint64_t dynamic = up(f->shared_bytes, f->dynamic_align ? (uint64_t)f->dynamic_align : 1);
  if (f->dynamic_align && !f->entry)
    parse_fail(p, "dynamic shared memory in a function is not supported");
  f->shared_bytes = dynamic;
  for (int i = 0; i < p->n_dynamic; i++) f->code[p->dynamic[i]].imm += (int64_t)dynamic;
  for (int i = 0; i < f->n_constant; i++)
    if (f->constant[i].dynamic) f->constant[i].value += dynamic;
  p->n_fix = p->n_dynamic = 0;
  decode_join(f);
}

static void attributes(Parser *p) {
  Function *f = p->f;
  for (;;) {
    if (is(p, ".maxntid") || is(p, ".reqntid")) {
      bool exact = is(p, ".reqntid");
      uint32_t n[3] = {1, 1, 1};
      lex_next(&p->lex);
      int k = 0;
      do n[k++] = (uint32_t)expect_int(p);
      while (k < 3 && accept(p, ","));
      f->max_threads = n[0] * n[1] * n[2];
      if (exact) memcpy(f->reqd, n, sizeof n);
    } else if (accept(p, ".minnctapersm") || accept(p, ".maxnreg") || accept(p, ".maxnctapersm")) {
      expect_int(p);
    } else if (accept(p, ".pragma")) {
      lex_next(&p->lex);
      expect(p, ";");
    } else if (!accept(p, ".noreturn")) {
      return;
    }
  }
}

static int parameters(Parser *p, Symbol ***list) {
  Symbol *s[512];
  int n = 0;
  expect(p, "(");
  while (!is(p, ")")) {
    if (n == COUNT(s)) parse_fail(p, "too many parameters");
    if (accept(p, ".reg")) parse_fail(p, "parameters in registers are not supported");
    expect(p, ".param");
    s[n] = declare_variable(p, SPACE_PARAM);
    if (p->f->entry) {
      s[n]->at = p->f->param_bytes = up(p->f->param_bytes, (uint64_t)s[n]->align);
      p->f->param_bytes += s[n]->bytes;
    } else {
      frame_place(p, s[n]);
    }
    n++;
    if (!accept(p, ",")) break;
  }
  expect(p, ")");
  *list = arena_alloc(p->m->arena, (size_t)n * sizeof **list + 1);
  memcpy(*list, s, (size_t)n * sizeof **list);
  return n;
}

static void function(Parser *p, bool entry) {
  Module *m = p->m;
  Function *f = p->f = arena_alloc(m->arena, sizeof *f);
  int outer = p->n_scope;
  f->entry = entry;
  f->module = m;
  f->granule = 4;
  if (!entry && is(p, "(")) f->n_ret = parameters(p, &f->ret);
  Token name = expect_kind(p, T_WORD, "a function");
  Symbol *declared = symbol_find(p, name.s, name.n);
  if (is(p, "(")) f->n_param = parameters(p, &f->param);
  attributes(p);
  f->name = arena_text(m->arena, name.s, name.n);
  if (declared &&
      declared->kind ==
          SYM_FUNCTION) { /* calls of the declaration point there: it becomes this function */
    if (declared->function->defined) parse_fail(p, "function %s is defined twice", f->name);
    *declared->function = *f;
    f = p->f = declared->function;
  } else {
    m->function = host_grow(m->function, (size_t)(m->n + 1) * sizeof *m->function);
    m->function[m->n++] = f;
  }
  for (int i = 0; i < f->n_param; i++) f->param[i]->function = f;
  for (int i = 0; i < f->n_ret; i++) f->ret[i]->function = f;
  if (accept(p, "{")) {
    f->defined = true;
    body(p);
    Insn *end = insn_new(p);
    end->flow = FLOW_RETURN;
    end->line = p->lex.t.line;
    function_finish(p);
  } else {
    expect(p, ";");
  }
  scope_end(p, outer);
  p->f = NULL;
  if (declared && declared->kind == SYM_FUNCTION) return;
  symbol_add(p, SYM_FUNCTION, name.s, name.n)->function = f;
}

/* Registers of a function with its callees; false: it calls itself. */
static bool registers_of(Function *f) {
  if (f->mark == 1) return false;
  if (f->mark == 2) return true;
  f->mark = 1;
  int most = 0;
  for (int i = 0; i < f->n_callee; i++) {
    Function *c = f->callee[i];
    if (!registers_of(c)) return false;
    if (c->registers > most) most = c->registers;
    if (c->granule < f->granule) f->granule = c->granule;
  }
  f->registers = f->own + most;
  f->mark = 2;
  return true;
}

static void module_header(Parser *p) {
  Module *m = p->m;
  expect(p, ".version");
  Token t = p->lex.t;
  lex_next(&p->lex);
  int major = 0, minor = 0;
  sscanf(t.s, "%d.%d", &major, &minor);
  m->version = major * 10 + minor;
  expect(p, ".target");
  t = expect_kind(p, T_WORD, "a target");
  if (sscanf(t.s, "sm_%d", &m->sm) != 1) parse_fail(p, "target `%.*s` is not known", (int)t.n, t.s);
  while (accept(p, ",")) lex_next(&p->lex);
  if (accept(p, ".address_size") && expect_int(p) != 64)
    parse_fail(p, "only addresses of 64 bits are supported");
}

static void module_body(Parser *p) {
  while (p->lex.t.kind != T_END) {
    int k;
    while (accept(p, ".visible") || accept(p, ".extern") || accept(p, ".weak") ||
           accept(p, ".common")) {}
    if (accept(p, ".entry")) {
      function(p, true);
    } else if (accept(p, ".func")) {
      function(p, false);
    } else if ((k = space_word(p)) >= 0) {
      declare_variables(p, spaces[k].space);
    } else if (is(p, ".file") || is(p, ".loc") || is(p, ".alias")) {
      lex_skip_line(&p->lex);
    } else if (accept(p, ".section")) {
      while (p->lex.t.kind != T_END && !accept(p, "}")) lex_next(&p->lex);
    } else if (accept(p, ".pragma")) {
      lex_next(&p->lex);
      expect(p, ";");
    } else if (!accept(p, ";")) {
      parse_fail(p, "directive `%.*s` is not supported", (int)p->lex.t.n, p->lex.t.s);
    }
  }
  for (int i = 0; i < p->m->n; i++)
    if (!registers_of(p->m->function[i]))
      parse_fail(p, "function %s calls itself", p->m->function[i]->name);
  for (int i = 0; i < p->m->n; i++)
    for (int k = 0; k < p->m->function[i]->n_callee; k++)
      if (!p->m->function[i]->callee[k]->defined)
        parse_fail(p, "function %s is called and not defined", p->m->function[i]->callee[k]->name);
}

Module *module_load(const char *text, char *error, size_t n) {
  Parser *p = host_alloc(sizeof *p);
  Module *volatile m = host_alloc(sizeof *m);
  m->arena = arena_new();
  p->m = m;
  p->error = error;
  p->error_size = n;
  p->lex = (Lexer){.s = text, .start = text, .line = 1};
  if (!setjmp(p->bail)) {
    lex_next(&p->lex);
    module_header(p);
    module_body(p);
  } else {
    module_free(m);
    m = NULL;
  }
  free(p->scope);
  free(p->fix);
  free(p->dynamic);
  free(p);
  return m;
}

void module_free(Module *m) {
  for (int i = 0; i < m->n_global; i++) memory_free(m->global[i]->at);
  for (int i = 0; i < m->n; i++) {
    free(m->function[i]->code);
    free(m->function[i]->constant);
    free(m->function[i]->special);
    free(m->function[i]->callee);
  }
  free(m->global);
  free(m->function);
  arena_free(m->arena);
  free(m);
}

Function *module_function(const Module *m, const char *name) {
  for (int i = 0; i < m->n; i++)
    if (m->function[i]->entry && !strcmp(m->function[i]->name, name)) return m->function[i];
  return NULL;
}
