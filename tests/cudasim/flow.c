/* Control flow: branches and where their sides meet (immediate post-dominators by Cooper, Harvey and Kennedy, "A simple, fast
 * dominance algorithm", on the reversed graph), calls with their parameters, returns, barriers. */
#include "sim.h"
#include <stdlib.h>
#include <string.h>

/* ---- where branches meet ---- */

typedef struct Cfg {
  int n;       /* blocks, and the exit: block n */
  int *first;  /* instruction */
  int *of;     /* block of an instruction */
  int *number; /* in post-order from the exit, on reversed edges; -1: does not reach it */
  int *order;
  int *dom;
  int *head, *next, *from; /* reversed edges: predecessors of a block */
  int n_edges, cap;
} Cfg;

static void edge(Cfg *g, int from, int to) {
  if (g->n_edges == g->cap) {
    g->cap += g->cap + 64;
    g->next = host_grow(g->next, (size_t)g->cap * sizeof(int));
    g->from = host_grow(g->from, (size_t)g->cap * sizeof(int));
  }
  g->from[g->n_edges] = from;
  g->next[g->n_edges] = g->head[to];
  g->head[to] = g->n_edges++;
}

static bool ends_block(const Insn *i) {
  return i->flow == FLOW_BRANCH || i->flow == FLOW_TABLE || i->flow == FLOW_RETURN ||
         i->flow == FLOW_EXIT;
}

/* Successors of a block in s; how many. */
static int successors(const Function *f, const Cfg *g, int b, int *s) {
  int last = (b + 1 < g->n ? g->first[b + 1] : f->n) - 1, n = 0;
  const Insn *i = &f->code[last];
  int next = b + 1 < g->n ? b + 1 : g->n;
  if (i->flow == FLOW_BRANCH) s[n++] = i->target < (uint32_t)f->n ? g->of[i->target] : g->n;
  if (i->flow == FLOW_TABLE)
    for (int k = 0; k < i->imm; k++) s[n++] = g->of[i->table[k]];
  if (i->flow == FLOW_RETURN || i->flow == FLOW_EXIT) s[n++] = g->n;
  if (!ends_block(i) || i->guard >= 0) s[n++] = next;
  return n;
}

static void build(const Function *f, Cfg *g) {
  bool *leader = host_alloc((size_t)f->n + 1);
  leader[0] = true;
  for (int k = 0; k < f->n; k++) {
    const Insn *i = &f->code[k];
    if (ends_block(i)) leader[k + 1] = true;
    if (i->flow == FLOW_BRANCH) leader[i->target] = true;
    for (int t = 0; i->flow == FLOW_TABLE && t < i->imm; t++) leader[i->table[t]] = true;
  }
  g->of = host_alloc((size_t)(f->n + 1) * sizeof(int));
  g->first = host_alloc((size_t)(f->n + 1) * sizeof(int));
  for (int k = 0; k < f->n; k++) {
    if (leader[k]) g->first[g->n++] = k;
    g->of[k] = g->n - 1;
  }
  free(leader);
  g->of[f->n] = g->n;
  g->head = host_alloc((size_t)(g->n + 1) * sizeof(int));
  for (int b = 0; b <= g->n; b++) g->head[b] = -1;
  int s[4200];
  for (int b = 0; b < g->n; b++)
    for (int n = successors(f, g, b, s), k = 0; k < n; k++) edge(g, b, s[k]);
}

/* Post-order of the reversed graph from the exit, without recursion. */
static int number(Cfg *g) {
  int *stack = host_alloc((size_t)(g->n + 1) * sizeof(int)),
      *edge_of = host_alloc((size_t)(g->n + 1) * sizeof(int));
  int depth = 0, n = 0;
  for (int b = 0; b <= g->n; b++) g->number[b] = -1;
  stack[depth++] = g->n;
  g->number[g->n] = -2;
  edge_of[g->n] = g->head[g->n];
  while (depth) {
    int b = stack[depth - 1], e = edge_of[b];
    if (e < 0) {
      g->number[b] = n;
      g->order[n++] = b;
      depth--;
      continue;
    }
    edge_of[b] = g->next[e];
    int q = g->from[e];
    if (g->number[q] != -1) continue;
    g->number[q] = -2;
    edge_of[q] = g->head[q];
    stack[depth++] = q;
  }
  free(stack);
  free(edge_of);
  return n;
}

static int meet(const Cfg *g, int a, int b) {
  while (a != b) {
    while (g->number[a] < g->number[b]) a = g->dom[a];
    while (g->number[b] < g->number[a]) b = g->dom[b];
  }
  return a;
}

void decode_join(Function *f) {
  Cfg g = {0};
  build(f, &g);
  size_t size = (size_t)(g.n + 1) * sizeof(int);
  g.number = host_alloc(size), g.order = host_alloc(size), g.dom = host_alloc(size);
  int n = number(&g);
  for (int b = 0; b <= g.n; b++) g.dom[b] = -1;
  g.dom[g.n] = g.n;
  for (bool changed = true; changed;) {
    changed = false;
    for (int k = n - 2; k >= 0; k--) {
      int b = g.order[k], s[4200], d = -1;
      for (int m = successors(f, &g, b, s), j = 0; j < m; j++)
        if (g.number[s[j]] >= 0 && g.dom[s[j]] >= 0) d = d < 0 ? s[j] : meet(&g, s[j], d);
      if (d != g.dom[b]) g.dom[b] = d, changed = true;
    }
  }
  for (int k = 0; k < f->n; k++) {
    Insn *i = &f->code[k];
    if (i->flow != FLOW_BRANCH && i->flow != FLOW_TABLE) continue;
    int d = g.number[g.of[k]] >= 0 ? g.dom[g.of[k]] : g.n;
    i->join = d < 0 || d == g.n ? (uint32_t)f->n : (uint32_t)g.first[d];
  }
  free(g.first), free(g.of), free(g.number), free(g.order), free(g.dom), free(g.head), free(g.next),
      free(g.from);
}

/* ---- forms ---- */

static void fix(Parser *p, const Operand *o) {
  if (o->kind != O_LABEL) parse_fail(p, "the target is not a label");
  if (p->n_fix == p->cap_fix)
    p->fix = host_grow(p->fix, (size_t)(p->cap_fix += p->cap_fix + 64) * sizeof *p->fix);
  p->fix[p->n_fix].insn = p->f->n - 1;
  p->fix[p->n_fix++].label = (Symbol *)o->symbol;
}

static void decode_bra(Parser *p, const Form *f) {
  (void)f;
  if (p->n_operand != 1) parse_fail(p, "one target, not %d", p->n_operand);
  p->insn->flow = FLOW_BRANCH;
  fix(p, &p->operand[0]);
}

static void decode_brx(Parser *p, const Form *f) {
  (void)f;
  if (p->n_operand != 2) parse_fail(p, "an index and a table, not %d operands", p->n_operand);
  p->insn->flow = FLOW_TABLE;
  p->insn->a = operand_at(p, 0, 4, false);
  fix(p, &p->operand[1]);
}

static void decode_return(Parser *p, const Form *f) {
  p->insn->flow = f->sub ? FLOW_EXIT : FLOW_RETURN;
}

static void note_callee(Parser *p, Function *callee) {
  Function *f = p->f;
  f->callee = host_grow(f->callee, (size_t)(f->n_callee + 1) * sizeof *f->callee);
  f->callee[f->n_callee++] = callee;
}

/* call (result), function or register, (arguments){, prototype}: symbols of .param variables. */
static void decode_call(Parser *p, const Form *f) {
  Insn *i = p->insn;
  (void)f;
  int k = 0;
  const Operand *ret = p->operand[0].kind == O_VECTOR ? &p->operand[k++] : NULL;
  const Operand *to = k < p->n_operand ? &p->operand[k++] : NULL;
  bool named = to && to->kind == O_LABEL && to->symbol->kind == SYM_FUNCTION;
  if (!named && !(to && to->kind == O_REGISTER && to->symbol))
    parse_fail(p, "only declared functions can be called");
  const Operand *args = k < p->n_operand && p->operand[k].kind == O_VECTOR ? &p->operand[k] : NULL;
  int n_ret = ret ? ret->n : 0, n_args = args ? args->n : 0;
  if (named && (n_ret != to->symbol->function->n_ret || n_args != to->symbol->function->n_param))
    parse_fail(p, "%s has other parameters", to->symbol->name);
  int32_t *v = arena_alloc(p->m->arena, (size_t)(n_ret + n_args) * sizeof *v + 1);
  for (int j = 0; j < n_ret + n_args; j++) {
    const Operand *o = j < n_ret ? &ret->v[j] : &args->v[j - n_ret];
    if (o->kind != O_CONSTANT || !o->symbol || o->symbol->space != SPACE_PARAM)
      parse_fail(p, "an argument is not a .param variable");
    v[j] = (int32_t)o->symbol->at;
  }
  i->flow = FLOW_CALL;
  i->sub = (uint8_t)n_ret;
  i->v = v;
  i->n_v = n_ret + n_args;
  i->callee = named ? to->symbol->function : NULL;
  if (named)
    note_callee(p, to->symbol->function);
  else
    i->a = one_at(p, to, NULL, 8, false), p->f->open = true;
}

void call_bind(Warp *w, const Insn *i, uint32_t mask, const Frame *caller, const Frame *callee,
               bool back) {
  const Function *c = callee->f;
  uint64_t frame = w->g->l->f->frame_most;
  FOR_LANES(l, mask) {
    char *from = w->frame + l * frame + caller->frame_at,
         *to = w->frame + l * frame + callee->frame_at;
    for (int k = 0; k < i->n_v; k++) {
      bool result = k < c->n_ret;
      if (result != back) continue;
      const Symbol *s = result ? c->ret[k] : c->param[k - c->n_ret];
      if (back)
        memcpy(from + i->v[k], to + s->at, s->bytes);
      else
        memcpy(to + s->at, from + i->v[k], s->bytes);
    }
  }
}

/* ---- functions by address ---- */

uint64_t function_address(const Function *f) { return CODE_BASE + 16 * ((uint64_t)f->index + 1); }

const Function *function_at(const Module *m, uint64_t at) {
  uint64_t k = (at - CODE_BASE) / 16;
  bool is = at > CODE_BASE && at % 16 == 0 && k <= (uint64_t)m->n;
  return is && m->function[k - 1]->defined ? m->function[k - 1] : NULL;
}

/* ---- functions that CUDA defines ---- */

#define ASSERT "__assertfail" /* (message, file, line, function, bytes of a character) */

bool call_known(const char *name) { return !strcmp(name, ASSERT); }

static void text_at(uint64_t at, char *to, size_t n) {
  size_t k = 0;
  for (; k + 1 < n && memory_find(at + k) && *memory_at(at + k); k++) to[k] = *memory_at(at + k);
  to[k] = 0;
}

void call_missing(Warp *w, const Insn *i, uint32_t mask) {
  const char *frame = w->frame + (uint64_t)__builtin_ctz(mask) * w->g->l->f->frame_most +
                      w->call[w->n_call - 1].frame_at;
  uint64_t message, file;
  uint32_t line;
  char text[120], name[120];
  memcpy(&message, frame + i->v[0], 8);
  memcpy(&file, frame + i->v[1], 8);
  memcpy(&line, frame + i->v[2], 4);
  text_at(message, text, sizeof text);
  text_at(file, name, sizeof name);
  fault(w, mask, 710, "assertion `%s` failed, %s:%u", text, name, line);
}

/* bar.sync id{, threads}; bar.arrive id, threads; bar.red.op d, id{, threads}, {!}predicate */
enum { BAR_SYNC, BAR_ARRIVE, BAR_AND, BAR_OR, BAR_POPC };

static void decode_bar(Parser *p, const Form *f) {
  Insn *i = p->insn;
  int k = 0, n = p->n_operand;
  i->flow = FLOW_BARRIER;
  i->sub = (uint8_t)f->sub;
  if (f->sub >= BAR_AND) {
    if (n < 3) parse_fail(p, "an operand is missing");
    i->d = operand_at(p, k++, f->sub == BAR_POPC ? 4 : 0, false);
    i->imm = p->operand[--n].flip ? FULL : 0;
    i->c = operand_at(p, n, 0, false);
  }
  i->a = operand_at(p, k++, 4, false);
  if (k < n) i->b = operand_at(p, k++, 4, false);
  if (k != n) parse_fail(p, "too many operands");
}

static void decode_plain(Parser *p, const Form *f) { (void)p, (void)f; }

static void exec_nothing(Warp *w, const Insn *i, uint32_t mask) { (void)w, (void)i, (void)mask; }

static void exec_fence(Warp *w, const Insn *i, uint32_t mask) {
  (void)i, (void)mask;
  blocks_fence(w);
}

static void exec_trap(Warp *w, const Insn *i, uint32_t mask) {
  (void)i;
  fault(w, mask, 719, "trap");
}

#define ALL_BAR(words, sub)                                                                        \
  {"bar cta? " words, decode_bar, C_BARRIER, NULL, sub}, {                                         \
    "barrier cta? " words, decode_bar, C_BARRIER, NULL, sub                                        \
  }

const Form forms_flow[] = {{"bra uni?", decode_bra, C_BRANCH, NULL, 0},
                           {"brx idx uni?", decode_brx, C_BRANCH, NULL, 0},
                           {"call uni?", decode_call, C_BRANCH, NULL, 0},
                           {"ret uni?", decode_return, C_BRANCH, NULL, 0},
                           {"exit", decode_return, C_BRANCH, NULL, 1},
                           {"trap", decode_plain, C_BRANCH, exec_trap, 0},
                           {"brkpt", decode_plain, C_BRANCH, exec_nothing, 0},
                           {"nanosleep u32", decode_plain, C_BRANCH, exec_nothing, 0},
                           {"bar warp sync", decode_plain, C_BARRIER, exec_nothing, 0},
                           ALL_BAR("sync aligned?", BAR_SYNC),
                           ALL_BAR("arrive aligned?", BAR_ARRIVE),
                           ALL_BAR("red and aligned? pred", BAR_AND),
                           ALL_BAR("red or aligned? pred", BAR_OR),
                           ALL_BAR("red popc aligned? u32", BAR_POPC),
                           {"membar cta", decode_plain, C_BARRIER, exec_nothing, 0},
                           {"membar gl|sys", decode_plain, C_BARRIER, exec_fence, 0},
                           {"fence sc|acq_rel? gpu|sys", decode_plain, C_BARRIER, exec_fence, 0},
                           {"fence *", decode_plain, C_BARRIER, exec_nothing, 0},
                           {"prefetch *", decode_plain, C_GLOBAL, exec_nothing, 0},
                           {"prefetchu *", decode_plain, C_GLOBAL, exec_nothing, 0},
                           {"discard *", decode_plain, C_GLOBAL, exec_nothing, 0},
                           {"griddepcontrol *", decode_plain, C_BARRIER, exec_nothing, 0},
                           {NULL, NULL, 0, NULL, 0}};
