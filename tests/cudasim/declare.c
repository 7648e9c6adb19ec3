/* What PTX text declares: symbols with their scopes, registers, variables and their places in each kind of memory. */
#include "sim.h"
#include <stdlib.h>
#include <string.h>

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

void scope_end(Parser *p, int from) {
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

/* ---- registers and variables ---- */

void declare_registers(Parser *p) {
  const Type *type = parse_type(p);
  do {
    Token name = parse_kind(p, T_WORD, "a register");
    uint64_t n = 0;
    bool many = parse_accept(p, "<");
    if (many) {
      n = parse_int(p);
      parse_expect(p, ">");
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
  } while (parse_accept(p, ","));
  p->f->own = (int)up((uint64_t)p->f->own, 64);
  parse_expect(p, ";");
}

/* A function, a variable, or generic(variable), with + n behind it. */
static uint64_t initial_address(Parser *p) {
  bool generic = parse_accept(p, "generic");
  if (generic) parse_expect(p, "(");
  Token t = parse_kind(p, T_WORD, "an address");
  const Symbol *s = symbol_find(p, t.s, t.n);
  bool variable =
      s && s->kind == SYM_VARIABLE && (s->space == SPACE_GLOBAL || s->space == SPACE_CONST);
  if (!variable && !(s && s->kind == SYM_FUNCTION))
    parse_fail(p, "`%.*s` has no address that is known before the start", (int)t.n, t.s);
  if (generic) parse_expect(p, ")");
  uint64_t at = variable ? s->at : function_address(s->function);
  return parse_accept(p, "+") ? at + parse_int(p) : at;
}

/* {1, 2, 0f3F800000, {..}}: bytes of the elements, in order. */
static uint64_t initial_values(Parser *p, const Type *type, char *to, uint64_t at, uint64_t bytes) {
  int depth = 0;
  do {
    while (parse_accept(p, "{")) depth++;
    bool minus = parse_accept(p, "-");
    Token t = p->lex.t;
    if (t.kind == T_WORD) t.value = initial_address(p), t.kind = T_INT;
    if (t.kind != T_INT && t.kind != T_FLOAT)
      parse_fail(p, "only numbers and addresses can be initial values");
    if (p->lex.t.s == t.s) lex_next(&p->lex);
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
    while (depth && parse_accept(p, "}")) depth--;
  } while (parse_accept(p, ","));
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
  if (s->space == SPACE_CONST) memory_protect(s->at);
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

Symbol *declare_variable(Parser *p, Space space) {
  int align = 0;
  const Type *type = NULL;
  uint64_t count = 1, vector = 1;
  for (;;) {
    if (parse_accept(p, ".align"))
      align = (int)parse_int(p);
    else if (parse_accept(p, ".v2"))
      vector = 2;
    else if (parse_accept(p, ".v4"))
      vector = 4;
    else if (parse_accept(p, ".ptr") || parse_accept(p, ".global") || parse_accept(p, ".shared") ||
             parse_accept(p, ".const") || parse_accept(p, ".local"))
      continue;
    else if (!type && p->lex.t.kind == T_WORD && p->lex.t.s[0] == '.')
      type = parse_type(p);
    else
      break;
  }
  if (!type || !type->size) parse_fail(p, "a variable without a type");
  Token name = parse_kind(p, T_WORD, "a variable");
  Symbol *s = symbol_add(p, SYM_VARIABLE, name.s, name.n);
  while (parse_accept(p, "[")) {
    count *= parse_is(p, "]") ? 0 : parse_int(p);
    parse_expect(p, "]");
  }
  s->type = type;
  s->space = space;
  s->align = align ? align : type->size * (int)vector;
  s->bytes = count * vector * (uint64_t)type->size;
  if (space == SPACE_GLOBAL || space == SPACE_CONST) {
    if (!s->bytes) parse_fail(p, "the size of %s is not known", s->name);
    global_place(p, s, s->bytes);
    if (parse_accept(p, "=")) initial_values(p, type, memory_at(s->at), 0, s->bytes);
  }
  return s;
}

static void local_place(Parser *p, Symbol *s) {
  s->at = up(p->f->local_bytes, (uint64_t)(s->align > 16 ? s->align : 16));
  p->f->local_bytes = s->at + s->bytes;
}

void frame_place(Parser *p, Symbol *s) {
  s->at = up(p->f->frame_bytes, 16);
  p->f->frame_bytes = s->at + s->bytes;
}

void declare_variables(Parser *p, Space space) {
  do {
    Symbol *s = declare_variable(p, space);
    if (p->f && space == SPACE_SHARED && s->bytes) variable_place(p, s);
    if (p->f && space == SPACE_LOCAL) local_place(p, s);
    if (p->f && space == SPACE_PARAM) frame_place(p, s);
  } while (parse_accept(p, ","));
  parse_expect(p, ";");
}
