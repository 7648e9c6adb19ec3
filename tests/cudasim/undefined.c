/* Reads of registers that nobody wrote. When a function is decoded, a flow analysis finds the registers that may be undefined where
 * they are read, and all that is computed from them; a function without such registers, as almost all are, costs nothing more. For
 * the others each half of these registers has a mask of the lanes where it is undefined. What is computed from an undefined value
 * is undefined; a fault is only what the outside sees: an address, a value that is stored, a branch (Stepanov and Serebryany,
 * "MemorySanitizer: fast detector of uninitialized memory use in C++", 2015). Compilers move undefined values about freely, and
 * pack two values of half the width in one register: moves, masks and shifts of a half leave the other half what it was. */
#include "sim.h"
#include <stdlib.h>
#include <string.h>

/* What a half makes undefined: of an operand, of the value computed; of that, of the register written. */
typedef struct Halves {
  uint8_t of[2]; /* a mask of halves for the lower, the upper one */
} Halves;
static const Halves all_of = {{3, 3}}, same = {{1, 2}};

struct Use { /* of a register by an instruction */
  int insn;
  int32_t at; /* its offset */
  const char *name;
  int operand; /* of the instruction, or GUARD */
  bool write, sink;
  Halves halves;
};

enum { GUARD = -1 };

static void note(Parser *p, int insn, const Symbol *s, int operand, bool write, bool sink,
                 Halves halves) {
  Function *f = p->f;
  if (!s || s->kind != SYM_REGISTER) return;
  if (f->n_use == f->cap_use)
    f->use = host_grow(f->use, (size_t)(f->cap_use += f->cap_use + 256) * sizeof *f->use);
  f->use[f->n_use++] = (struct Use){insn, (int32_t)s->at, s->name, operand, write, sink, halves};
}

static bool is_word(const Parser *p, const char *word) {
  return (int)strlen(word) == p->part[0].n && !memcmp(word, p->part[0].s, strlen(word));
}

/* How operand k of the instruction passes halves on; j: the part of a vector. */
static Halves halves_of(const Parser *p, const Insn *i, int k, int j) {
  const Operand *o = p->operand;
  bool move = is_word(p, "mov"), vector = move && o[k].kind == O_VECTOR,
       constant = p->n_operand == 3 && o[2].kind == O_CONSTANT;
  int bits = i->size * 4;                /* of a half */
  uint8_t half = j < o[k].n / 2 ? 1 : 2; /* of a vector's part */
  if (vector && k == 1) return (Halves){{half, half}};
  if (vector) return half == 1 ? (Halves){{3, 0}} : (Halves){{0, 3}};
  if (move || (i->is_select && k < 3)) return same;
  if (!constant || !bits) return all_of;
  uint64_t c = o[2].value;
  bool shift = (is_word(p, "shl") || is_word(p, "shr")) && c == (uint64_t)bits;
  if (k == 0) return shift || is_word(p, "and") ? same : all_of;
  if (shift && is_word(p, "shl")) return (Halves){{2, 0}};
  if (shift && p->part[1].s[0] != 's') return (Halves){{0, 1}};
  if (!is_word(p, "and")) return all_of;
  return (Halves){{c << (64 - bits) ? 1 : 0, c << (64 - 2 * bits) >> (64 - bits) ? 2 : 0}};
}

static void note_operand(Parser *p, int insn, const Operand *o, int k, bool write, bool sink) {
  const Insn *i = &p->f->code[insn];
  if (o->kind == O_REGISTER || o->kind == O_ADDRESS)
    note(p, insn, o->symbol, k, write, sink || o->kind == O_ADDRESS, halves_of(p, i, k, 0));
  if (o->pair) note(p, insn, o->pair, k, write, sink, all_of);
  for (int j = 0; o->kind == O_VECTOR && j < o->n; j++)
    if (o->v[j].kind == O_REGISTER)
      note(p, insn, o->v[j].symbol, k, write, sink, halves_of(p, i, k, j));
}

/* The last instruction that was decoded reads and writes these operands. */
void undefined_note(Parser *p, const Operand *guard) {
  static const char *const none[] = {"bra", "brx", "call", "bar", "barrier", "nanosleep"};
  int insn = p->f->n - 1;
  const Insn *i = &p->f->code[insn];
  const Operand *o = p->operand;
  bool result = p->n_operand && o[0].kind != O_ADDRESS;
  for (int k = 0; k < COUNT(none); k++)
    if (is_word(p, none[k])) result = i->d >= 0; /* of bar.red */
  bool stores = p->n_operand && o[0].kind == O_ADDRESS && i->space != SPACE_PARAM,
       atomic = i->class == C_ATOMIC,
       jumps = i->flow == FLOW_BRANCH || i->flow == FLOW_TABLE || i->flow == FLOW_CALL;
  if (guard) note(p, insn, guard->symbol, GUARD, false, jumps, all_of);
  for (int k = result; k < p->n_operand; k++)
    note_operand(p, insn, &o[k], k, false, stores || atomic || jumps);
  if (result) note_operand(p, insn, &o[0], 0, true, false);
}

/* ---- which registers may be undefined ---- */

typedef uint64_t Bits;
static bool has(const Bits *b, int k) { return b[k / 64] >> k % 64 & 1; }
static void put(Bits *b, int k, bool on) {
  Bits m = (Bits)1 << k % 64;
  b[k / 64] = on ? b[k / 64] | m : b[k / 64] & ~m;
}

typedef struct Flows {
  Function *f;
  int *id, n,
      words;  /* of the register at an offset / 4; how many there are; words of a set of them */
  int *use;   /* the first use of an instruction */
  int *block; /* of the instruction that starts it, else -1 */
  int n_blocks;
  Bits *in, *now, *found;
} Flows;

static void number(Flows *a) {
  const Function *f = a->f;
  a->id = host_alloc(((size_t)f->own / 4 + 1) * sizeof(int));
  for (int k = 0; k < f->n_use; k++) {
    int *id = &a->id[f->use[k].at / 4];
    if (!*id) *id = ++a->n;
  }
  a->words = a->n / 64 + 1;
  a->use = host_alloc((size_t)(f->n + 1) * sizeof(int));
  for (int k = 0, u = 0; k <= f->n; k++) {
    while (u < f->n_use && f->use[u].insn < k) u++;
    a->use[k] = u;
  }
  a->block = host_alloc((size_t)(f->n + 1) * sizeof(int));
  for (int k = 0; k < f->n; k++) {
    const Insn *i = &f->code[k];
    if (!k) a->block[k] = 1;
    if (i->flow == FLOW_BRANCH) a->block[i->target] = a->block[k + 1] = 1;
    if (i->flow == FLOW_TABLE || i->flow == FLOW_RETURN || i->flow == FLOW_EXIT)
      a->block[k + 1] = 1;
    for (int t = 0; i->flow == FLOW_TABLE && t < i->imm; t++) a->block[i->table[t]] = 1;
  }
  for (int k = 0; k <= f->n; k++) a->block[k] = a->block[k] ? a->n_blocks++ : -1;
}

static int id_of(const Flows *a, const struct Use *u) { return a->id[u->at / 4]; }

/* Joins what holds now into the block that starts at instruction k: true if that is new. */
static bool join(Flows *a, uint32_t k) {
  Bits *to = a->in + (size_t)a->block[k] * (size_t)a->words, more = 0;
  for (int j = 0; j < a->words; j++) {
    more |= a->now[j] & ~to[j];
    to[j] |= a->now[j];
  }
  return more;
}

/* One walk over the code; true: something reached a block that is new there. */
static bool walk(Flows *a) {
  const Function *f = a->f;
  bool more = false;
  for (int k = 0; k < f->n; k++) {
    const Insn *i = &f->code[k];
    if (a->block[k] >= 0) {
      if (k) more |= join(a, (uint32_t)k);
      memcpy(a->now, a->in + (size_t)a->block[k] * (size_t)a->words,
             (size_t)a->words * sizeof(Bits));
    }
    for (int u = a->use[k]; u < a->use[k + 1]; u++) {
      int id = id_of(a, &f->use[u]);
      if (!f->use[u].write && has(a->now, id)) put(a->found, id, true);
      if (f->use[u].write && i->guard < 0) put(a->now, id, false);
    }
    if (i->flow == FLOW_BRANCH) more |= join(a, i->target);
    for (int t = 0; i->flow == FLOW_TABLE && t < i->imm; t++) more |= join(a, i->table[t]);
    bool ends = i->flow == FLOW_BRANCH || i->flow == FLOW_TABLE || i->flow == FLOW_RETURN ||
                i->flow == FLOW_EXIT;
    if (ends && i->guard < 0) memset(a->now, 0, (size_t)a->words * sizeof(Bits));
  }
  return more;
}

/* What is computed from those that were found is found too; true: a use that counts reads one. */
static bool spread(Flows *a) {
  const Function *f = a->f;
  bool counts = false;
  for (bool more = true; more;) {
    more = false;
    for (int k = 0; k < f->n; k++) {
      bool reads = false;
      for (int u = a->use[k]; u < a->use[k + 1]; u++) {
        const struct Use *x = &f->use[u];
        if (!x->write && has(a->found, id_of(a, x))) reads = true, counts |= x->sink;
        if (!x->write || !reads || has(a->found, id_of(a, x))) continue;
        put(a->found, id_of(a, x), true);
        more = true;
      }
    }
  }
  return counts;
}

struct Watch {
  int n;
  bool select; /* of operands 1 and 2 by predicate 3 */
  struct Watched {
    int32_t slot;
    const char *name;
    int operand;
    bool write, sink;
    Halves halves;
  } use[];
};

static void watch(Flows *a, Parser *p) {
  Function *f = a->f;
  int *slot = host_alloc((size_t)(a->n + 1) * sizeof *slot);
  f->undefined_at = f->own = (int)up((uint64_t)f->own, 64);
  for (int id = 1; id <= a->n; id++)
    if (has(a->found, id)) slot[id] = f->own, f->own += 8, f->n_undefined += 2;
  f->own = (int)up((uint64_t)f->own, 64);
  for (int k = 0; k < f->n; k++) {
    int n = 0;
    for (int u = a->use[k]; u < a->use[k + 1]; u++) n += slot[id_of(a, &f->use[u])] != 0;
    if (!n) continue;
    struct Watch *w = arena_alloc(p->m->arena, sizeof *w + (size_t)n * sizeof *w->use);
    w->select = f->code[k].is_select;
    for (int u = a->use[k]; u < a->use[k + 1]; u++) {
      const struct Use *x = &f->use[u];
      if (slot[id_of(a, x)])
        w->use[w->n++] =
            (struct Watched){slot[id_of(a, x)], x->name, x->operand, x->write, x->sink, x->halves};
    }
    f->code[k].watch = w;
  }
  free(slot);
}

void undefined_find(Parser *p) {
  Flows a = {.f = p->f};
  Function *f = p->f;
  number(&a);
  size_t set = (size_t)a.words * sizeof(Bits);
  a.in = host_alloc((size_t)(a.n_blocks + 1) * set), a.now = host_alloc(set),
  a.found = host_alloc(set);
  memset(a.in, 0xff, set); /* nothing is written at the start */
  while (walk(&a)) {}
  if (spread(&a)) watch(&a, p);
  free(a.id), free(a.use), free(a.block), free(a.in), free(a.now), free(a.found);
  free(f->use);
  f->use = NULL, f->n_use = f->cap_use = 0;
}

/* ---- in execution ---- */

void undefined_start(Warp *w, const Function *f) {
  if (f->n_undefined && checks.init)
    memset(w->r + f->undefined_at, 0xff, (size_t)f->n_undefined * 4);
}

static void pass_on(Halves by, const uint32_t from[2], uint32_t to[2]) {
  for (int h = 0; h < 2; h++)
    for (int q = 0; q < 2; q++)
      if (by.of[h] >> q & 1) to[q] |= from[h];
}

/* Before lanes `mask` of `all` that come here execute i. */
void undefined_watch(Warp *w, const Insn *i, uint32_t all, uint32_t mask) {
  const struct Watch *x = i->watch;
  uint32_t bad[2] = {0}, first = x->select ? PRED(w, i->c) ^ (uint32_t)i->imm : 0;
  if (!checks.init) return;
  for (int k = 0; k < x->n; k++) {
    const struct Watched *u = &x->use[k];
    uint32_t *slot = REG32(w, u->slot), lanes = u->operand == GUARD ? all : mask;
    if (x->select && u->operand == 1) lanes &= first;
    if (x->select && u->operand == 2) lanes &= ~first;
    if (u->write) {
      uint32_t now[2] = {0}, to = mask | bad[0] | bad[1];
      if (i->class != C_WARP) pass_on(u->halves, bad, now);
      for (int h = 0; h < 2; h++) slot[h] = (slot[h] & ~to) | now[h];
      continue;
    }
    uint32_t now[2] = {slot[0] & lanes, slot[1] & lanes};
    if ((now[0] | now[1]) && u->sink)
      fault(w, now[0] | now[1], 719,
            "uninitialised read of register %s, or of what follows from one", u->name);
    pass_on(u->halves, now, bad);
  }
}
