/* What the lanes of a warp do together: shuffles, votes, matches, reductions. Lanes that are named in the member mask and are alive
 * must execute the instruction together; a lane that does not take part has no value to give. */
#include "sim.h"
#include <string.h>

static void check_members(Warp *w, uint32_t mask, uint32_t members, const char *what) {
  FOR_LANES(l, mask) {
    if (!(members >> l & 1))
      fault(w, 1u << l, 719, "%s by a lane that its member mask 0x%08x does not name", what,
            members);
  }
  uint32_t missing = members & w->live & ~mask;
  if (missing)
    fault(w, missing, 719, "%s: lane %d of member mask 0x%08x is elsewhere", what,
          __builtin_ctz(missing), members);
}

/* Lanes that name different members, as the tiles of a warp do, are one group after the other. */
typedef void Together(Warp *w, const Insn *i, uint32_t mask);
static void in_groups(Warp *w, const Insn *i, uint32_t mask, const char *what, Together *run) {
  uint32_t named[LANES]; /* the result may go to the same register */
  memcpy(named, REG32(w, i->c), sizeof named);
  while (mask) {
    uint32_t members = named[__builtin_ctz(mask)], same = 0;
    FOR_LANES(l, mask) same |= (uint32_t)(named[l] == members) << l;
    check_members(w, same, members, what);
    run(w, i, same);
    mask &= ~same;
  }
}

/* ---- shfl.sync.mode.b32 d|p, a, b, c, members ---- */
enum { SHFL_UP, SHFL_DOWN, SHFL_BFLY, SHFL_IDX };

static void do_shfl(Warp *w, const Insn *i, uint32_t mask) {
  uint32_t d[LANES], valid = 0, a[LANES];
  const uint32_t *vb = REG32(w, i->b), *vc = REG32(w, i->v[0]);
  memcpy(a, w->r + i->a, sizeof a);
  FOR_LANES(l, mask) {
    uint32_t b = vb[l] & 31, clamp = vc[l] & 31, segment = vc[l] >> 8 & 31;
    uint32_t most = (l & segment) | (clamp & ~segment), least = l & segment;
    int64_t j = i->sub == SHFL_UP     ? (int64_t)l - b
                : i->sub == SHFL_DOWN ? (int64_t)l + b
                : i->sub == SHFL_BFLY ? (int64_t)(l ^ b)
                                      : (int64_t)(least | (b & ~segment));
    bool ok = i->sub == SHFL_UP ? j >= (int64_t)most : j <= (int64_t)most;
    if (!ok) j = l;
    if (!(mask >> j & 1))
      fault(w, 1u << l, 719, "shuffle from lane %d, which does not take part", (int)j);
    valid |= (uint32_t)ok << l;
    d[l] = a[j];
  }
  registers_put(w, i->d, 4, mask, d);
  if (i->v[1] >= 0) PRED(w, i->v[1]) = (PRED(w, i->v[1]) & ~mask) | (valid & mask);
}

static void exec_shfl(Warp *w, const Insn *i, uint32_t mask) {
  in_groups(w, i, mask, "shuffle", do_shfl);
}

static int32_t second(Parser *p) {
  if (!p->operand[0].pair) return -1;
  Operand o = {.kind = O_REGISTER, .symbol = p->operand[0].pair, .special = -1};
  return one_at(p, &o, NULL, 0, false);
}

static void decode_shfl(Parser *p, const Form *f) {
  Insn *i = p->insn;
  (void)f;
  p->at_part = 2;
  i->sub = (uint8_t)take(p, "up|down|bfly|idx");
  if (p->n_operand != 5) parse_fail(p, "5 operands, not %d", p->n_operand);
  int32_t *v = arena_alloc(p->m->arena, 2 * sizeof *v);
  i->d = operand_at(p, 0, 4, false);
  i->a = operand_at(p, 1, 4, false);
  i->b = operand_at(p, 2, 4, false);
  v[0] = operand_at(p, 3, 4, false);
  v[1] = second(p);
  i->c = operand_at(p, 4, 4, false);
  i->v = v;
}

/* ---- vote, match, redux, activemask, elect ---- */
enum { VOTE_ALL, VOTE_ANY, VOTE_UNI, VOTE_BALLOT };

static void do_vote(Warp *w, const Insn *i, uint32_t mask) {
  uint32_t yes = (PRED(w, i->a) ^ (uint32_t)i->imm) & mask;
  const bool result[] = {yes == mask, yes != 0, yes == mask || !yes};
  if (i->sub == VOTE_BALLOT)
    FOR_LANES(l, mask) REG32(w, i->d)[l] = yes;
  else
    PRED(w, i->d) = (PRED(w, i->d) & ~mask) | (result[i->sub] ? mask : 0);
}

static void exec_vote(Warp *w, const Insn *i, uint32_t mask) {
  in_groups(w, i, mask, "vote", do_vote);
}

static void decode_vote(Parser *p, const Form *f) {
  Insn *i = p->insn;
  i->sub = (uint8_t)f->sub;
  if (p->n_operand != 3) parse_fail(p, "3 operands, not %d", p->n_operand);
  i->d = operand_at(p, 0, f->sub == VOTE_BALLOT ? 4 : 0, false);
  i->a = operand_at(p, 1, 0, false);
  i->imm = p->operand[1].flip ? FULL : 0;
  i->c = operand_at(p, 2, 4, false);
}

static void do_match(Warp *w, const Insn *i, uint32_t mask) {
  uint32_t d[LANES] = {0}, all = mask;
  FOR_LANES(l, mask) {
    uint64_t a = register_get(w, i->a, i->size, (int)l);
    for (int k = 0; k < LANES; k++)
      if (mask >> k & 1 && register_get(w, i->a, i->size, k) == a) d[l] |= 1u << k;
    if (d[l] != mask) all = 0;
  }
  if (i->sub)
    for (int l = 0; l < LANES; l++) d[l] = all;
  registers_put(w, i->d, 4, mask, d);
  if (i->b >= 0) PRED(w, i->b) = (PRED(w, i->b) & ~mask) | all;
}

static void exec_match(Warp *w, const Insn *i, uint32_t mask) {
  in_groups(w, i, mask, "match", do_match);
}

static void decode_match(Parser *p, const Form *f) {
  Insn *i = p->insn;
  if (p->n_operand != 3) parse_fail(p, "3 operands, not %d", p->n_operand);
  i->sub = (uint8_t)f->sub;
  i->size = p->part[p->n_part - 1].s[1] == '6' ? 8 : 4;
  i->d = operand_at(p, 0, 4, false);
  i->b = second(p);
  i->a = operand_at(p, 1, i->size, false);
  i->c = operand_at(p, 2, 4, false);
}

enum { REDUX_ADD, REDUX_MIN, REDUX_MAX, REDUX_AND, REDUX_OR, REDUX_XOR };

static void do_redux(Warp *w, const Insn *i, uint32_t mask) {
  const uint32_t *a = REG32(w, i->a);
  uint32_t r = a[__builtin_ctz(mask)];
  FOR_LANES(l, mask & (mask - 1)) {
    bool less = i->kind == KIND_SIGNED ? (int32_t)a[l] < (int32_t)r : a[l] < r;
    const uint32_t value[] = {r + a[l], less ? a[l] : r, less ? r : a[l],
                              r & a[l], r | a[l],        r ^ a[l]};
    r = value[i->sub];
  }
  FOR_LANES(l, mask) REG32(w, i->d)[l] = r;
}

static void exec_redux(Warp *w, const Insn *i, uint32_t mask) {
  in_groups(w, i, mask, "reduction", do_redux);
}

static void decode_redux(Parser *p, const Form *f) {
  Insn *i = p->insn;
  (void)f;
  p->at_part = 2;
  i->sub = (uint8_t)take(p, "add|min|max|and|or|xor");
  const Type *t = take_type(p);
  if (!t || p->n_operand != 3) parse_fail(p, "3 operands and a type are needed");
  i->kind = (uint8_t)t->kind;
  i->d = operand_at(p, 0, 4, false);
  i->a = operand_at(p, 1, 4, false);
  i->c = operand_at(p, 2, 4, false);
}

static void exec_activemask(Warp *w, const Insn *i, uint32_t mask) {
  FOR_LANES(l, mask) REG32(w, i->d)[l] = mask;
}

static void decode_activemask(Parser *p, const Form *f) {
  (void)f;
  if (p->n_operand != 1) parse_fail(p, "1 operand, not %d", p->n_operand);
  p->insn->d = operand_at(p, 0, 4, false);
}

static void do_elect(Warp *w, const Insn *i, uint32_t mask) {
  uint32_t first = (uint32_t)__builtin_ctz(mask);
  if (i->d >= 0) FOR_LANES(l, mask) REG32(w, i->d)[l] = first;
  if (i->b >= 0) PRED(w, i->b) = (PRED(w, i->b) & ~mask) | 1u << first;
}

static void exec_elect(Warp *w, const Insn *i, uint32_t mask) {
  in_groups(w, i, mask, "election", do_elect);
}

static void decode_elect(Parser *p, const Form *f) {
  (void)f;
  if (p->n_operand != 2) parse_fail(p, "2 operands, not %d", p->n_operand);
  if (p->operand[0].kind != O_SINK) p->insn->d = operand_at(p, 0, 4, false);
  p->insn->b = second(p);
  p->insn->c = operand_at(p, 1, 4, false);
}

const Form forms_warp[] = {{"shfl sync up|down|bfly|idx b32", decode_shfl, C_WARP, exec_shfl, 0},
                           {"vote sync all pred", decode_vote, C_WARP, exec_vote, VOTE_ALL},
                           {"vote sync any pred", decode_vote, C_WARP, exec_vote, VOTE_ANY},
                           {"vote sync uni pred", decode_vote, C_WARP, exec_vote, VOTE_UNI},
                           {"vote sync ballot b32", decode_vote, C_WARP, exec_vote, VOTE_BALLOT},
                           {"match any sync b32|b64", decode_match, C_WARP, exec_match, 0},
                           {"match all sync b32|b64", decode_match, C_WARP, exec_match, 1},
                           {"redux sync *", decode_redux, C_WARP, exec_redux, 0},
                           {"activemask b32", decode_activemask, C_WARP, exec_activemask, 0},
                           {"elect sync", decode_elect, C_WARP, exec_elect, 0},
                           {NULL, NULL, 0, NULL, 0}};
