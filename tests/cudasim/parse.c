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

/* ---- tokens ---- */

bool parse_is(const Parser *p, const char *text) {
  return p->lex.t.kind != T_END && p->lex.t.n == strlen(text) &&
         !memcmp(p->lex.t.s, text, p->lex.t.n);
}

bool parse_accept(Parser *p, const char *text) {
  bool yes = parse_is(p, text);
  if (yes) lex_next(&p->lex);
  return yes;
}

void parse_expect(Parser *p, const char *text) {
  if (!parse_accept(p, text))
    parse_fail(p, "expected `%s`, not `%.*s`", text, (int)p->lex.t.n, p->lex.t.s);
}

Token parse_kind(Parser *p, TokenKind kind, const char *what) {
  Token t = p->lex.t;
  if (t.kind != kind) parse_fail(p, "expected %s, not `%.*s`", what, (int)t.n, t.s);
  lex_next(&p->lex);
  return t;
}

uint64_t parse_int(Parser *p) { return parse_kind(p, T_INT, "a number").value; }

const Type *parse_type(Parser *p) {
  Token t = parse_kind(p, T_WORD, "a type");
  const Type *type = t.s[0] == '.' ? type_find(t.s + 1, t.n - 1) : NULL;
  if (!type) parse_fail(p, "`%.*s` is not a type", (int)t.n, t.s);
  return type;
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
    o->value = parse_int(p);
  }
  while (parse_is(p, "+") || parse_is(p, "-")) {
    bool minus = parse_accept(p, "-");
    if (!minus) lex_next(&p->lex), minus = parse_accept(p, "-");
    uint64_t v = parse_int(p);
    o->value += minus ? -v : v;
  }
  parse_expect(p, "]");
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
    if (o->kind == O_CONSTANT && (parse_is(p, "+") || parse_is(p, "-"))) {
      bool minus = parse_is(p, "-");
      lex_next(&p->lex);
      uint64_t v = parse_int(p);
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
  o->flip = parse_accept(p, "!");
  bool minus = parse_accept(p, "-");
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
  } else if (parse_accept(p, "[")) {
    operand_address(p, o);
  } else if (parse_accept(p, "{") || parse_accept(p, "(")) {
    const char *end = *t.s == '{' ? "}" : ")";
    o->kind = O_VECTOR;
    Operand part[64];
    while (!parse_is(p, end)) {
      if (o->n == COUNT(part)) parse_fail(p, "too many parts");
      operand(p, &part[o->n++]);
      if (!parse_accept(p, ",")) break;
    }
    parse_expect(p, end);
    o->v = arena_alloc(p->m->arena, (size_t)o->n * sizeof *o->v + 1);
    memcpy(o->v, part, (size_t)o->n * sizeof *o->v);
  } else if (t.kind == T_WORD) {
    operand_word(p, o);
    if (parse_accept(p, "|")) {
      Token q = parse_kind(p, T_WORD, "a register");
      o->pair = q.n == 1 && *q.s == '_' ? NULL : symbol_find(p, q.s, q.n);
    }
  } else {
    parse_fail(p, "`%.*s` is not an operand", (int)t.n, t.s);
  }
}

static void instruction(Parser *p) {
  Operand guard = {0};
  bool guarded = parse_accept(p, "@");
  if (guarded) operand(p, &guard);
  p->word = parse_kind(p, T_WORD, "an instruction");
  p->n_operand = 0;
  while (!parse_is(p, ";")) {
    if (p->n_operand == COUNT(p->operand)) parse_fail(p, "too many operands");
    operand(p, &p->operand[p->n_operand++]);
    if (!parse_accept(p, ",")) break;
  }
  parse_expect(p, ";");
  int first = p->f->n;
  decode(p);
  if (guarded) {
    int32_t at = one_at(p, &guard, NULL, 0, false);
    for (int i = first; i < p->f->n; i++) {
      p->f->code[i].guard = at;
      p->f->code[i].guard_flip = guard.flip ? FULL : 0;
    }
  }
  undefined_note(p, guarded ? &guard : NULL);
  p->word = (Token){0};
}

static void label(Parser *p, Token name) {
  Symbol *s = symbol_find(p, name.s, name.n);
  if (!s || s->kind != SYM_LABEL || s->defined) s = symbol_add(p, SYM_LABEL, name.s, name.n);
  s->defined = true;
  s->at = (uint64_t)p->f->n;
  if (parse_accept(p, ".callprototype")) {
    s->kind = SYM_PROTOTYPE;
    while (p->lex.t.kind != T_END && !parse_is(p, ";")) lex_next(&p->lex);
    parse_expect(p, ";");
    return;
  }
  if (!parse_accept(p, ".branchtargets")) return;
  s->kind = SYM_TABLE;
  Symbol *target[4096];
  do {
    if (s->n_table == COUNT(target)) parse_fail(p, "too many targets");
    Token t = parse_kind(p, T_WORD, "a label");
    target[s->n_table++] = symbol_label(p, t.s, t.n);
  } while (parse_accept(p, ","));
  s->table = arena_alloc(p->m->arena, (size_t)s->n_table * sizeof(Symbol *));
  memcpy(s->table, target, (size_t)s->n_table * sizeof(Symbol *));
  parse_expect(p, ";");
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
    if (parse_accept(p, spaces[i].word)) return i;
  return -1;
}

static void body(Parser *p) {
  int open[64], depth = 0, k;
  open[depth++] = p->n_scope;
  while (depth) {
    if (p->lex.t.kind == T_END) parse_fail(p, "the text ends inside of function %s", p->f->name);
    if (parse_accept(p, "{")) {
      if (depth == COUNT(open)) parse_fail(p, "too many nested scopes");
      open[depth++] = p->n_scope;
    } else if (parse_accept(p, "}")) {
      if (--depth) scope_end(p, open[depth]);
    } else if (parse_accept(p, ".reg")) {
      declare_registers(p);
    } else if (parse_is(p, ".loc") || parse_is(p, ".file")) {
      lex_skip_line(&p->lex);
    } else if (parse_accept(p, ".pragma")) {
      lex_next(&p->lex);
      parse_expect(p, ";");
    } else if ((k = space_word(p)) >= 0) {
      declare_variables(p, spaces[k].space);
    } else {
      const Lexer before = p->lex;
      Token name = p->lex.t;
      lex_next(&p->lex);
      if (name.kind == T_WORD && parse_accept(p, ":")) {
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
    if (f->constant[i].from == FROM_DYNAMIC) f->constant[i].value += dynamic;
  p->n_fix = p->n_dynamic = 0;
  undefined_find(p);
  decode_join(f);
}

static void attributes(Parser *p) {
  Function *f = p->f;
  for (;;) {
    if (parse_is(p, ".maxntid") || parse_is(p, ".reqntid")) {
      bool exact = parse_is(p, ".reqntid");
      uint32_t n[3] = {1, 1, 1};
      lex_next(&p->lex);
      int k = 0;
      do n[k++] = (uint32_t)parse_int(p);
      while (k < 3 && parse_accept(p, ","));
      f->max_threads = n[0] * n[1] * n[2];
      if (exact) memcpy(f->reqd, n, sizeof n);
    } else if (parse_accept(p, ".minnctapersm") || parse_accept(p, ".maxnreg") ||
               parse_accept(p, ".maxnctapersm")) {
      parse_int(p);
    } else if (parse_accept(p, ".pragma")) {
      lex_next(&p->lex);
      parse_expect(p, ";");
    } else if (!parse_accept(p, ".noreturn")) {
      return;
    }
  }
}

static int parameters(Parser *p, Symbol ***list) {
  Symbol *s[512];
  int n = 0;
  parse_expect(p, "(");
  while (!parse_is(p, ")")) {
    if (n == COUNT(s)) parse_fail(p, "too many parameters");
    if (parse_accept(p, ".reg")) parse_fail(p, "parameters in registers are not supported");
    parse_expect(p, ".param");
    s[n] = declare_variable(p, SPACE_PARAM);
    if (p->f->entry) {
      s[n]->at = p->f->param_bytes = up(p->f->param_bytes, (uint64_t)s[n]->align);
      p->f->param_bytes += s[n]->bytes;
    } else {
      frame_place(p, s[n]);
    }
    n++;
    if (!parse_accept(p, ",")) break;
  }
  parse_expect(p, ")");
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
  if (!entry && parse_is(p, "(")) f->n_ret = parameters(p, &f->ret);
  Token name = parse_kind(p, T_WORD, "a function");
  Symbol *declared = symbol_find(p, name.s, name.n);
  if (parse_is(p, "(")) f->n_param = parameters(p, &f->param);
  attributes(p);
  f->name = arena_text(m->arena, name.s, name.n);
  if (declared &&
      declared->kind ==
          SYM_FUNCTION) { /* calls of the declaration point there: it becomes this function */
    if (declared->function->defined) parse_fail(p, "function %s is defined twice", f->name);
    f->index = declared->function->index;
    *declared->function = *f;
    f = p->f = declared->function;
  } else {
    m->function = host_grow(m->function, (size_t)(m->n + 1) * sizeof *m->function);
    f->index = m->n;
    m->function[m->n++] = f;
  }
  if (!declared) symbol_add(p, SYM_FUNCTION, name.s, name.n)->function = f; /* it may call itself */
  for (int i = 0; i < f->n_param; i++) f->param[i]->function = f;
  for (int i = 0; i < f->n_ret; i++) f->ret[i]->function = f;
  if (parse_accept(p, "{")) {
    f->defined = true;
    body(p);
    Insn *end = insn_new(p);
    end->flow = FLOW_RETURN;
    end->line = p->lex.t.line;
    function_finish(p);
  } else {
    parse_expect(p, ";");
  }
  scope_end(p, outer);
  p->f = NULL;
  if (declared && declared->kind == SYM_FUNCTION) return;
  symbol_add(p, SYM_FUNCTION, name.s, name.n)->function = f;
}

#define MAX_STACK 65536u /* bytes of local memory for calls whose depth is not known */

/* What a thread of function f needs with its callees: registers, local memory, parameters. */
static void needs_of(Function *f) {
  uint64_t registers = 0, local = 0, frame = 0;
  f->mark = 1;
  f->local_bytes = up(f->local_bytes, 16);
  f->frame_bytes = up(f->frame_bytes, 16);
  for (int i = 0; i < f->n_callee; i++) {
    Function *c = f->callee[i];
    if (!c->mark) needs_of(c);
    if (c->mark == 1 || c->open) {
      f->open = true;
      continue;
    }
    if ((uint64_t)c->registers > registers) registers = (uint64_t)c->registers;
    if (c->local_most > local) local = c->local_most;
    if (c->frame_most > frame) frame = c->frame_most;
    if (c->granule < f->granule) f->granule = c->granule;
  }
  f->registers = f->own + (int)registers;
  f->local_most = f->local_bytes + local;
  f->frame_most = f->frame_bytes + frame;
  f->mark = 2;
}

/* Any function may be called, MAX_CALLS deep, as long as the stack has room. */
static void open_needs(Module *m, Function *f) {
  int own = 0;
  uint64_t frame = 0, local = 0;
  for (int i = 0; i < m->n; i++) {
    const Function *c = m->function[i];
    if (c->entry) continue;
    if (c->own > own) own = c->own;
    if (c->frame_bytes > frame) frame = c->frame_bytes;
    if (c->local_bytes > local) local = c->local_bytes;
    if (c->granule < f->granule) f->granule = c->granule;
  }
  f->registers = f->own + MAX_CALLS * own;
  f->frame_most = f->frame_bytes + MAX_CALLS * frame;
  f->local_most = f->local_bytes + (MAX_CALLS * local < MAX_STACK ? MAX_CALLS * local : MAX_STACK);
}

static void module_header(Parser *p) {
  Module *m = p->m;
  parse_expect(p, ".version");
  Token t = p->lex.t;
  lex_next(&p->lex);
  int major = 0, minor = 0;
  sscanf(t.s, "%d.%d", &major, &minor);
  m->version = major * 10 + minor;
  parse_expect(p, ".target");
  t = parse_kind(p, T_WORD, "a target");
  if (sscanf(t.s, "sm_%d", &m->sm) != 1) parse_fail(p, "target `%.*s` is not known", (int)t.n, t.s);
  while (parse_accept(p, ",")) lex_next(&p->lex);
  if (parse_accept(p, ".address_size") && parse_int(p) != 64)
    parse_fail(p, "only addresses of 64 bits are supported");
}

static void module_body(Parser *p) {
  while (p->lex.t.kind != T_END) {
    int k;
    while (parse_accept(p, ".visible") || parse_accept(p, ".extern") || parse_accept(p, ".weak") ||
           parse_accept(p, ".common")) {}
    if (parse_accept(p, ".entry")) {
      function(p, true);
    } else if (parse_accept(p, ".func")) {
      function(p, false);
    } else if ((k = space_word(p)) >= 0) {
      declare_variables(p, spaces[k].space);
    } else if (parse_is(p, ".file") || parse_is(p, ".loc") || parse_is(p, ".alias")) {
      lex_skip_line(&p->lex);
    } else if (parse_accept(p, ".section")) {
      while (p->lex.t.kind != T_END && !parse_accept(p, "}")) lex_next(&p->lex);
    } else if (parse_accept(p, ".pragma")) {
      lex_next(&p->lex);
      parse_expect(p, ";");
    } else if (!parse_accept(p, ";")) {
      parse_fail(p, "directive `%.*s` is not supported", (int)p->lex.t.n, p->lex.t.s);
    }
  }
  for (int i = 0; i < p->m->n; i++)
    if (!p->m->function[i]->mark) needs_of(p->m->function[i]);
  for (int i = 0; i < p->m->n; i++)
    if (p->m->function[i]->open) open_needs(p->m, p->m->function[i]);
  for (int i = 0; i < p->m->n; i++)
    for (int k = 0; k < p->m->function[i]->n_callee; k++) {
      const Function *c = p->m->function[i]->callee[k];
      if (!c->defined && !call_known(c->name))
        parse_fail(p, "function %s is called and not defined", c->name);
    }
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
    free(m->function[i]->use);
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
