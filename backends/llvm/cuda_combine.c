/* Sums of the lanes of a team, combined. In: accumulators, each lane with its own; out: the same bits in every lane of the team.
 *
 * Halves of a warp by shuffles; across warps and between columns in shared memory, in the order of lanes. The tree follows from the
 * shapes. As many accumulators as fit go through shared memory at once. */
#include "cuda_team.h"

enum { GROUP = 4 /* sums combined at once across warps */ };

/* One value of an accumulator, or for ARGMAX two: what is combined. */
typedef struct Part {
  Node *n;
  DType type;        /* of the values */
  LLVMTypeRef t, tp; /* of the value and its place; tp NULL: no place */
  Val v, place, p, pp;
} Part;

/* ---- shuffles ---- */

static Val shuffle_word(Gen *g, Val word, int distance) {
  Val args[4] = {LLVMConstAllOnes(g->i32), word, LLVMConstInt(g->i32, (uint64_t)distance, 0),
                 LLVMConstInt(g->i32, 31, 0)};
  return gen_call(g, "llvm.nvvm.shfl.sync.bfly.i32", NULL, 4, args);
}

/* The value of the thread whose lane differs in the bit `distance`. */
static Val shuffle(Gen *g, Val v, int distance) {
  LLVMTypeRef t = LLVMTypeOf(v);
  LLVMBuilderRef b = g->b;
  if (t == g->f64) {
    v = shuffle(g, LLVMBuildBitCast(b, v, g->i64, ""), distance);
    return LLVMBuildBitCast(b, v, t, "");
  }
  if (t == g->f32) {
    v = shuffle_word(g, LLVMBuildBitCast(b, v, g->i32, ""), distance);
    return LLVMBuildBitCast(b, v, t, "");
  }
  if (t == g->i64) {
    Val k32 = gen_i64(g, 32), low = LLVMBuildTrunc(b, v, g->i32, "");
    Val high = LLVMBuildTrunc(b, LLVMBuildLShr(b, v, k32, ""), g->i32, "");
    low = LLVMBuildZExt(b, shuffle_word(g, low, distance), g->i64, "");
    high = LLVMBuildZExt(b, shuffle_word(g, high, distance), g->i64, "");
    return LLVMBuildOr(b, low, LLVMBuildShl(b, high, k32, ""), "");
  }
  if (t != g->i32) {
    v = shuffle_word(g, LLVMBuildZExt(b, v, g->i32, ""), distance);
    return LLVMBuildTrunc(b, v, t, "");
  }
  return shuffle_word(g, v, distance);
}

/* ---- combining ---- */

/* p and the values of another lane. Of equal maxima the first place wins. */
static void join(Gen *g, Part *p, Val v, Val place) {
  LLVMBuilderRef b = g->b;
  if (!p->tp) {
    p->v = reduce_step(g, p->n->prim == P_CONTRACT ? P_RSUM : p->n->prim, p->type, p->v, v, false);
    return;
  }
  Val more = argmax_better(g, p->type, v, p->v), less = argmax_better(g, p->type, p->v, v);
  Val before = LLVMBuildICmp(b, LLVMIntSLT, place, p->place, "");
  Val tie = LLVMBuildAnd(b, LLVMBuildNot(b, less, ""), before, "");
  Val take = LLVMBuildOr(b, more, tie, "");
  p->v = LLVMBuildSelect(b, take, v, p->v, "");
  p->place = LLVMBuildSelect(b, take, place, p->place, "");
}

/* Its values are not read yet. */
static Part part_like(Work *w, Node *n) {
  Gen *g = w->g;
  NodeInfo *f = gen_info(g, n);
  Part p = {.n = n, .type = n == w->t->contract ? n->dtype : n->in[0]->dtype};
  p.t = val_type(g, p.type);
  p.p = f->acc;
  p.pp = f->acc_place;
  if (p.pp) p.tp = val_type(g, n->dtype);
  return p;
}

static Part part_of(Work *w, Node *n) {
  Gen *g = w->g;
  Part p = part_like(w, n);
  gen_at(g, g->depth);
  p.v = LLVMBuildLoad2(g->b, p.t, p.p, "");
  if (p.tp) p.place = LLVMBuildLoad2(g->b, p.tp, p.pp, "");
  return p;
}

static void in_warp(Team *m, Part *p) {
  Gen *g = m->w->g;
  for (int d = m->s->lanes < 32 ? m->s->lanes / 2 : 16; d > 0; d /= 2)
    join(g, p, shuffle(g, p->v, d), p->tp ? shuffle(g, p->place, d) : NULL);
}

static LLVMTypeRef word_of(Gen *g, LLVMTypeRef t) {
  return t == g->i64 || t == g->f64 ? g->i64 : g->i32;
}

static int word_bytes(Gen *g, LLVMTypeRef t) { return word_of(g, t) == g->i64 ? 8 : 4; }

/* Parts that go through shared memory at once, each with so many values: as many as fit. */
typedef struct Group {
  int n, values, bytes; /* bytes: in use */
  Part p[GROUP];
  int at[GROUP]; /* of a part: bytes from the start on, a multiple of 8; places are behind values */
} Group;

static int part_bytes(const Team *m, int values, const Part *p) {
  Gen *g = m->w->g;
  int bytes = values * word_bytes(g, p->t);
  if (p->tp) bytes = (bytes + 7) / 8 * 8 + values * word_bytes(g, p->tp);
  return (bytes + 7) / 8 * 8;
}

static bool has_room(const Team *m, const Group *all, const Part *p) {
  int bytes = all->bytes + part_bytes(m, all->values, p);
  return all->n < GROUP && bytes <= cuda_exchange_bytes(m->s->columns, m->s->teams);
}

static void add_part(const Team *m, Group *all, const Part *p) {
  all->p[all->n] = *p;
  all->at[all->n++] = all->bytes;
  all->bytes += part_bytes(m, all->values, p);
}

/* Values of a part, where lanes are combined. */
static int combined(const Team *m) { return m->s->columns ? m->threads : m->threads / 32; }

/* The memory of all groups: what any of them needs, or a little more. */
static Val exchange(const Team *m) {
  Work *w = m->w;
  int most = cuda_exchange_bytes(m->s->columns, m->s->teams), all = 0, largest = 0;
  int values = combined(m) > m->s->teams ? combined(m) : m->s->teams;
  for (int a = 0; a < w->n_acc; a++) {
    Part p = part_like(w, w->acc[a].n);
    int bytes = part_bytes(m, values, &p);
    all += bytes;
    if (bytes > largest) largest = bytes;
  }
  if (all > GROUP * largest) all = GROUP * largest;
  return cuda_shared(w->g, "exchange", w->g->i64, (all < most ? all : most) / 8);
}

/* Value v of part i, or its place. */
static Val slot(Team *m, const Group *all, int i, bool place, Val v) {
  Gen *g = m->w->g;
  const Part *p = &all->p[i];
  int behind = place ? (all->values * word_bytes(g, p->t) + 7) / 8 * 8 : 0;
  Val from = gen_i64(g, all->at[i] + behind);
  Val base = LLVMBuildInBoundsGEP2(g->b, g->i8, exchange(m), &from, 1, "");
  return LLVMBuildInBoundsGEP2(g->b, word_of(g, place ? p->tp : p->t), base, &v, 1, "");
}

static void put(Gen *g, Val v, Val p) {
  if (LLVMTypeOf(v) != g->i64 && LLVMTypeOf(v) != g->f64 && LLVMTypeOf(v) != g->f32)
    v = LLVMBuildZExt(g->b, v, g->i32, "");
  LLVMBuildStore(g->b, v, p);
}

static Val get(Gen *g, LLVMTypeRef t, Val p) {
  bool narrow = t != g->i64 && t != g->f64 && t != g->f32 && t != g->i32;
  Val v = LLVMBuildLoad2(g->b, narrow ? g->i32 : t, p, "");
  return narrow ? LLVMBuildTrunc(g->b, v, t, "") : v;
}

/* What the thread has of all parts becomes value v of them. */
static void put_parts(Team *m, const Group *all, Val v) {
  Gen *g = m->w->g;
  for (int i = 0; i < all->n; i++) {
    const Part *p = &all->p[i];
    put(g, p->v, slot(m, all, i, false, v));
    if (p->tp) put(g, p->place, slot(m, all, i, true, v));
  }
}

/* Row r of the values is lane r's of all columns, or warp r's of the block. */
static void in_block(Team *m, Group *all) {
  Gen *g = m->w->g;
  const CudaStage *s = m->s;
  int rows = s->columns ? s->lanes : s->lanes / 32, columns = s->columns ? s->teams : 1;
  cuda_barrier(g); /* what was there before has been read */
  put_parts(m, all, s->columns ? m->tid : LLVMBuildLShr(g->b, m->tid, gen_i64(g, 5), ""));
  cuda_barrier(g);
  Val first = s->columns ? m->team_v : LLVMBuildNSWMul(g->b, m->team_v, gen_i64(g, rows), "");
  for (int i = 0; i < all->n; i++) {
    Part *p = &all->p[i];
    for (int r = 0; r < rows; r++) {
      Val at = LLVMBuildNSWAdd(g->b, first, gen_i64(g, (int64_t)r * columns), "");
      Val v = get(g, p->t, slot(m, all, i, false, at));
      Val place = p->tp ? get(g, p->tp, slot(m, all, i, true, at)) : NULL;
      if (r)
        join(g, p, v, place);
      else
        p->v = v, p->place = place;
    }
  }
}

static void combine_group(Team *m, Group *all) {
  Gen *g = m->w->g;
  if (m->s->columns || m->s->lanes > 32) in_block(m, all);
  for (int i = 0; i < all->n; i++) {
    LLVMBuildStore(g->b, all->p[i].v, all->p[i].p);
    if (all->p[i].tp) LLVMBuildStore(g->b, all->p[i].place, all->p[i].pp);
  }
  all->n = all->bytes = 0;
}

void team_combine(Team *m, int sweep) {
  Work *w = m->w;
  Group all = {.values = combined(m)};
  if (m->s->lanes == 1) return;
  for (int a = 0; a < w->n_acc; a++) {
    if (w->acc[a].sweep != sweep) continue;
    Part p = part_of(w, w->acc[a].n);
    if (!m->s->columns) in_warp(m, &p);
    if (!has_room(m, &all, &p)) combine_group(m, &all);
    add_part(m, &all, &p);
  }
  if (all.n) combine_group(m, &all);
}

/* ---- to other threads ---- */

static void hand_over_group(Team *m, Group *all, Val mine, Val at) {
  Gen *g = m->w->g;
  cuda_barrier(g); /* what was there before has been read */
  Loop once = cuda_if(g, mine);
  gen_at(g, g->depth);
  put_parts(m, all, m->team_v);
  loop_close(g, &once, LOOP_PLAIN);
  cuda_barrier(g);
  for (int i = 0; i < all->n; i++) {
    const Part *p = &all->p[i];
    LLVMBuildStore(g->b, get(g, p->t, slot(m, all, i, false, at)), p->p);
    if (p->tp) LLVMBuildStore(g->b, get(g, p->tp, slot(m, all, i, true, at)), p->pp);
  }
  all->n = all->bytes = 0;
}

void team_hand_over(Team *m, Val mine, Val at) {
  Work *w = m->w;
  Group all = {.values = m->s->teams};
  for (int a = 0; a < w->n_acc; a++) {
    Part p = part_of(w, w->acc[a].n);
    if (!has_room(m, &all, &p)) hand_over_group(m, &all, mine, at);
    add_part(m, &all, &p);
  }
  if (all.n) hand_over_group(m, &all, mine, at);
}
