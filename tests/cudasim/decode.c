/* A word with operands -> a decoded instruction: the word is matched against the forms' patterns, operands become byte offsets
 * in the warp's registers. Constants and special registers are registers too, filled before the first instruction. */
#include "sim.h"
#include <stdlib.h>
#include <string.h>

static const Type types[] = {
    {"pred", KIND_PRED, 0, 1},    {"b8", KIND_BITS, 1, 1},      {"u8", KIND_UNSIGNED, 1, 1},
    {"s8", KIND_SIGNED, 1, 1},    {"b16", KIND_BITS, 2, 1},     {"u16", KIND_UNSIGNED, 2, 1},
    {"s16", KIND_SIGNED, 2, 1},   {"f16", KIND_FLOAT, 2, 1},    {"bf16", KIND_BFLOAT, 2, 1},
    {"b32", KIND_BITS, 4, 1},     {"u32", KIND_UNSIGNED, 4, 1}, {"s32", KIND_SIGNED, 4, 1},
    {"f32", KIND_FLOAT, 4, 1},    {"f16x2", KIND_FLOAT, 4, 2},  {"bf16x2", KIND_BFLOAT, 4, 2},
    {"tf32", KIND_TF32, 4, 1},    {"b64", KIND_BITS, 8, 1},     {"u64", KIND_UNSIGNED, 8, 1},
    {"s64", KIND_SIGNED, 8, 1},   {"f64", KIND_FLOAT, 8, 1},    {"u16x2", KIND_UNSIGNED, 4, 2},
    {"s16x2", KIND_SIGNED, 4, 2},
};

const Type *type_find(const char *name, size_t n) {
  for (int i = 0; i < COUNT(types); i++)
    if (strlen(types[i].name) == n && !memcmp(types[i].name, name, n)) return &types[i];
  return NULL;
}

Insn *insn_new(Parser *p) {
  Function *f = p->f;
  if (f->n == f->cap)
    f->code = host_grow(f->code, (size_t)(f->cap += f->cap + 64) * sizeof *f->code);
  Insn *i = &f->code[f->n++];
  *i = (Insn){
      .d = -1, .a = -1, .b = -1, .c = -1, .guard = -1, .join = UINT32_MAX, .line = p->word.line};
  return p->insn = i;
}

/* ---- words ---- */

static void split(Parser *p) {
  const char *s = p->word.s, *end = s + p->word.n;
  p->n_part = p->at_part = 0;
  while (s < end) {
    const char *dot = memchr(s, '.', (size_t)(end - s));
    if (!dot) dot = end;
    if (p->n_part == COUNT(p->part)) parse_fail(p, "too many modifiers");
    p->part[p->n_part++] = (struct Part){s, (int)(dot - s)};
    s = dot + 1;
  }
}

int take(Parser *p, const char *alternatives) {
  if (p->at_part == p->n_part) return -1;
  const struct Part *part = &p->part[p->at_part];
  int k = 0;
  for (const char *s = alternatives; *s; k++) {
    int n = (int)strcspn(s, "|? ");
    if (n == part->n && !memcmp(s, part->s, (size_t)n)) {
      p->at_part++;
      return k;
    }
    s += n;
    if (*s != '|') break;
    s++;
  }
  return -1;
}

const Type *take_type(Parser *p) {
  if (p->at_part == p->n_part) return NULL;
  const Type *t = type_find(p->part[p->at_part].s, (size_t)p->part[p->at_part].n);
  if (t) p->at_part++;
  return t;
}

static const struct {
  const char *word;
  uint8_t mod, round;
} common[] = {{"ftz", MOD_FTZ, 0},  {"sat", MOD_SAT, 0},  {"relu", MOD_RELU, 0},
              {"NaN", MOD_NAN, 0},  {"rn", 0, ROUND_N},   {"rz", 0, ROUND_Z},
              {"rm", 0, ROUND_M},   {"rp", 0, ROUND_P},   {"rni", 0, ROUND_NI},
              {"rzi", 0, ROUND_ZI}, {"rmi", 0, ROUND_MI}, {"rpi", 0, ROUND_PI},
              {"rna", 0, ROUND_NA}, {"abs", MOD_ABS, 0},  {"xorsign", MOD_ABS, 0}};

static void note(Parser *p, const struct Part *part) {
  for (int i = 0; i < COUNT(common); i++)
    if ((int)strlen(common[i].word) == part->n &&
        !memcmp(common[i].word, part->s, (size_t)part->n)) {
      p->insn->mods |= common[i].mod;
      if (common[i].round) p->insn->round = common[i].round;
    }
}

/* A pattern is words with a blank between; a|b: either; with ? behind it, it may be missing; ending in *: the rest is free. */
bool match(Parser *p, const char *pattern) {
  p->at_part = 0;
  p->insn->mods = p->insn->round = 0;
  for (const char *s = pattern; *s;) {
    if (*s == '*') return true;
    size_t n = strcspn(s, " ");
    bool optional = s[n - 1] == '?';
    if (take(p, s) >= 0)
      note(p, &p->part[p->at_part - 1]);
    else if (!optional)
      return false;
    s += n;
    while (*s == ' ') s++;
  }
  return p->at_part == p->n_part;
}

/* ---- operands ---- */

static int32_t grow_registers(Function *f, int width) {
  f->own = (f->own + 63) / 64 * 64;
  int32_t at = f->own;
  f->own += width ? width * LANES : 4;
  return at;
}

static int32_t constant_at(Parser *p, int width, uint64_t value, Origin from) {
  Function *f = p->f;
  if (width && width < 8) value &= (UINT64_C(1) << width * 8) - 1;
  for (int i = f->n_constant; i-- > 0;) {
    const Constant *c = &f->constant[i];
    if (c->width == width && c->value == value && c->from == from) return c->at;
  }
  if (f->n_constant == f->cap_constant)
    f->constant = host_grow(f->constant, (size_t)(f->cap_constant += f->cap_constant + 32) *
                                             sizeof *f->constant);
  int32_t at = grow_registers(f, width);
  f->constant[f->n_constant++] = (Constant){width, from, value, at};
  return at;
}

static uint64_t constant_bits(Parser *p, const Operand *o, const Type *t, int width) {
  if (o->kind == O_CONSTANT && o->symbol) {
    Symbol *s = (Symbol *)o->symbol;
    variable_place(p, s);
    return s->at + o->value;
  }
  if (!o->is_float) return o->value;
  union {
    uint64_t u;
    double d;
  } x = {.u = o->value};
  union {
    uint32_t u;
    float f;
  } y = {.u = (uint32_t)o->value};
  if (o->float_width == 8 && width == 4) y.f = (float)x.d;
  if (o->float_width == 4 && width == 8) x.d = (double)y.f;
  if (t && t->size == 2)
    return t->kind == KIND_BFLOAT ? float_to_bf16(o->float_width == 8 ? x.d : (double)y.f, ROUND_N)
                                  : float_to_half(o->float_width == 8 ? x.d : (double)y.f, ROUND_N);
  return width == 4 ? y.u : x.u;
}

static Origin origin_of(const Symbol *s) {
  if (!s) return FROM_ZERO;
  if (s->space == SPACE_SHARED && !s->bytes) return FROM_DYNAMIC;
  if (s->space == SPACE_LOCAL) return FROM_LOCAL;
  return s->space == SPACE_PARAM && !(s->function && s->function->entry) ? FROM_FRAME : FROM_ZERO;
}

int32_t one_at(Parser *p, const Operand *o, const Type *t, int width, bool wider) {
  if (o->kind == O_REGISTER && !o->symbol) {
    if (o->special_width != width && !(wider && o->special_width > width))
      parse_fail(p, "a special register of %d bits is used as one of %d bits", o->special_width * 8,
                 width * 8);
    return o->special;
  }
  if (o->kind == O_REGISTER) {
    const Type *has = o->symbol->type;
    int size = has->kind == KIND_PRED ? 0 : has->size < 2 ? 2 : has->size;
    if (width == 0 ? has->kind != KIND_PRED
                   : has->kind == KIND_PRED || (size != width && !(wider && size > width)))
      parse_fail(p, "register %s of type .%s does not fit here", o->symbol->name, has->name);
    return (int32_t)o->symbol->at;
  }
  if (o->kind == O_CONSTANT) {
    uint64_t bits = constant_bits(p, o, t, width);
    return constant_at(p, width, width ? bits : bits ? FULL : 0, origin_of(o->symbol));
  }
  if (o->kind == O_LABEL && o->symbol->kind == SYM_FUNCTION && width == 8)
    return constant_at(p, 8, function_address(o->symbol->function), FROM_ZERO);
  parse_fail(p, "an operand of this kind does not fit here");
}

int32_t operand_at(Parser *p, int k, int width, bool wider) {
  if (k >= p->n_operand) parse_fail(p, "an operand is missing");
  return one_at(p, &p->operand[k], NULL, width, wider);
}

/* [register + n], [variable + n], [n] */
void decode_address(Parser *p, int k, Space space) {
  Insn *i = p->insn;
  if (k >= p->n_operand || p->operand[k].kind != O_ADDRESS)
    parse_fail(p, "operand %d is not an address", k + 1);
  const Operand *o = &p->operand[k];
  i->space = (uint8_t)space;
  i->imm = (int64_t)o->value;
  i->address64 = true;
  i->a = -1;
  if (!o->symbol) return;
  if (o->symbol->kind == SYM_REGISTER) {
    int size = o->symbol->type->size;
    if (size != 4 && size != 8) parse_fail(p, "an address in a register of %d bits", size * 8);
    i->address64 = size == 8;
    i->a = (int32_t)o->symbol->at;
    return;
  }
  if (o->symbol->kind != SYM_VARIABLE) parse_fail(p, "%s has no address", o->symbol->name);
  Symbol *s = (Symbol *)o->symbol;
  variable_place(p, s);
  i->imm += (int64_t)s->at;
  i->sub = s->space == SPACE_PARAM && !(s->function && s->function->entry); /* of a call */
  if (space == SPACE_GENERIC && s->space != SPACE_GLOBAL && s->space != SPACE_CONST)
    parse_fail(p, "%s has no generic address", s->name);
  Origin from = origin_of(s);
  if (from == FROM_LOCAL || from == FROM_FRAME) {
    i->a = constant_at(p, 8, (uint64_t)i->imm, from);
    i->imm = 0;
  }
  if (from == FROM_DYNAMIC) {
    if (p->n_dynamic == p->cap_dynamic)
      p->dynamic = host_grow(p->dynamic,
                             (size_t)(p->cap_dynamic += p->cap_dynamic + 16) * sizeof *p->dynamic);
    p->dynamic[p->n_dynamic++] = p->f->n - 1;
  }
}

/* ---- forms ---- */

static bool decode_alu(Parser *p) {
  for (int k = 0; k < p->n_operand; k++)
    if (p->operand[k].kind == O_VECTOR || p->operand[k].kind == O_ADDRESS) return false;
  for (const AluForm *f = forms_alu; f->pattern; f++) {
    if (f->pattern[0] != p->word.s[0] || !match(p, f->pattern)) continue;
    Insn *i = p->insn;
    const int8_t width[4] = {f->d, f->a, f->b, f->c};
    int32_t *const at[4] = {&i->d, &i->a, &i->b, &i->c};
    int n = 0;
    const Type *t = type_find(p->part[p->n_part - 1].s, (size_t)p->part[p->n_part - 1].n);
    for (; n < 4 && width[n] >= 0; n++) {
      if (n >= p->n_operand) parse_fail(p, "operand %d is missing", n + 1);
      if (n && p->operand[n].flip) parse_fail(p, "`!` does not fit here");
      *at[n] = one_at(p, &p->operand[n], t, width[n], false);
    }
    if (n != p->n_operand) parse_fail(p, "%d operands, not %d", n, p->n_operand);
    i->class = f->class;
    i->size = i->wide = (uint8_t)f->d;
    i->alu = f->alu;
    i->kind = t ? (uint8_t)t->kind : 0;
    i->n = t ? (uint8_t)t->lanes : 1;
    i->flow = i->mods || i->round > ROUND_N ? FLOW_WRAP : FLOW_ALU;
    return true;
  }
  return false;
}

static const Form *const tables[] = {forms_basic, forms_memory,  forms_atomic,
                                     forms_copy,  forms_convert, forms_warp,
                                     forms_mma,   forms_wmma,    forms_flow};

void decode(Parser *p) {
  split(p);
  insn_new(p);
  if (decode_alu(p)) return;
  for (int t = 0; t < COUNT(tables); t++)
    for (const Form *f = tables[t]; f->pattern; f++)
      if (f->pattern[0] == p->word.s[0] && match(p, f->pattern)) {
        p->insn->class = f->class;
        p->insn->exec = f->exec;
        p->insn->flow = FLOW_EXEC;
        p->insn->sub = (uint8_t)f->sub;
        f->decode(p, f);
        return;
      }
  parse_fail(p, "instruction `%.*s` is not known", (int)p->word.n, p->word.s);
}
