/* Executes a thread block: its warps one after the other until each waits at a barrier or has ended, in an order that differs from
 * block to block. A warp executes an instruction for all lanes of the innermost level of its stack; a branch that goes both ways
 * makes two levels, which end where the sides meet (Fung et al., "Dynamic warp formation", 2007, section 3). Lanes that spin
 * for long let those run that wait for them. */
#include "sim.h"
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#define QUANTUM 50000u   /* instructions before another warp has a turn */
#define PATIENCE 200000u /* branches of one level before the lanes below it have a turn */

static const char *line_text(const char *text, uint32_t line, int *n) {
  while (--line && (text = strchr(text, '\n'))) text++;
  if (!text) text = "";
  while (*text == ' ' || *text == '\t') text++;
  *n = (int)strcspn(text, "\n");
  return text;
}

void fault(Warp *w, uint32_t lanes, int result, const char *fmt, ...) {
  Group *g = w->g;
  Launch *l = g->l;
  int lane = lanes ? __builtin_ctz(lanes) : 0, length;
  uint32_t t = (uint32_t)(w->index * LANES + lane);
  uint32_t line = g->at ? g->at->line : 0;
  const char *text = line ? line_text(w->f->module->text, line, &length) : (length = 0, "");
  char what[300];
  va_list args;
  va_start(args, fmt);
  vsnprintf(what, sizeof what, fmt, args);
  va_end(args);
  static volatile int lock;
  while (__atomic_exchange_n(&lock, 1, __ATOMIC_ACQUIRE)) {}
  if (!l->result) {
    l->result = result;
    snprintf(l->fault, sizeof l->fault,
             "kernel %s, block (%u,%u,%u), thread (%u,%u,%u), ptx line %u `%.*s`: %s", l->f->name,
             g->id[0], g->id[1], g->id[2], t % l->block[0], t / l->block[0] % l->block[1],
             t / l->block[0] / l->block[1], line, length, text, what);
  }
  __atomic_store_n(&lock, 0, __ATOMIC_RELEASE);
  longjmp(g->fault, 1);
}

/* ---- levels ---- */

static void push(Warp *w, uint32_t pc, uint32_t join, uint32_t mask) {
  if (pc == join || !mask) return;
  if (w->depth == MAX_DEPTH) fault(w, mask, 719, "the stack of divergent branches is full");
  w->stack[w->depth++] = (Level){pc, join, mask};
  w->since = 0;
}

/* Leaves levels that are over; false: the warp has ended. */
static bool settle(Warp *w) {
  for (;;) {
    Frame *call = &w->call[w->n_call - 1];
    if (w->depth > call->depth) {
      Level *t = &w->stack[w->depth - 1];
      t->mask &= call->active;
      if (t->mask && t->pc != t->join) return true;
      w->depth--;
      w->since = 0;
      continue;
    }
    if (--w->n_call == 0) return false;
    const Frame *caller = &w->call[w->n_call - 1];
    w->r -= caller->f->own;
    call_bind(w, call->call, call->all & w->live, caller, call, true);
    w->f = caller->f;
    w->call[w->n_call - 1].active &= w->live;
  }
}

/* The sides of a branch; the current level becomes the place where they meet, unless it already ends there. */
static void diverge(Warp *w, const Insn *i, const uint32_t *pc, const uint32_t *mask, int n) {
  Level *t = &w->stack[w->depth - 1];
  if (t->join == i->join)
    w->depth--;
  else
    t->pc = i->join;
  for (int k = 0; k < n; k++) push(w, pc[k], i->join, mask[k]);
}

static void branch(Warp *w, const Insn *i, uint32_t taken) {
  Level *t = &w->stack[w->depth - 1];
  uint32_t rest = t->mask & ~taken;
  w->g->n.branches++;
  if (!rest) {
    t->pc = i->target;
  } else if (!taken) {
    t->pc++;
  } else {
    w->g->n.divergent++;
    diverge(w, i, (uint32_t[]){t->pc + 1, i->target}, (uint32_t[]){rest, taken}, 2);
  }
}

static void branch_table(Warp *w, const Insn *i, uint32_t mask) {
  Level *t = &w->stack[w->depth - 1];
  uint32_t pc[LANES + 1], lanes[LANES + 1];
  int n = 0;
  if (t->mask & ~mask) pc[n] = t->pc + 1, lanes[n++] = t->mask & ~mask;
  FOR_LANES(l, mask) {
    uint32_t k = REG32(w, i->a)[l];
    if (k >= i->imm)
      fault(w, 1u << l, 719, "index %u of a table of %lld targets", k, (long long)i->imm);
    int j = 0;
    while (j < n && pc[j] != i->table[k]) j++;
    if (j == n) pc[n] = i->table[k], lanes[n++] = 0;
    lanes[j] |= 1u << l;
  }
  w->g->n.branches++;
  if (n == 1) {
    t->pc = pc[0];
    return;
  }
  w->g->n.divergent++;
  diverge(w, i, pc, lanes, n);
}

static void constants(Warp *w, const Frame *t) {
  const uint64_t start[] = {0, 0, t->local_at, t->frame_at};
  for (int k = 0; k < t->f->n_constant; k++) {
    const Constant *c = &t->f->constant[k];
    if (c->width == 0)
      PRED(w, c->at) = (uint32_t)c->value;
    else
      for (int l = 0; l < LANES; l++)
        register_set(w, c->at, c->width, l, c->value + start[c->from]);
  }
}

/* Lanes may name different functions: those of one function go, the others come here again. */
static const Function *callee_of(Warp *w, const Insn *i, uint32_t *mask) {
  if (i->callee) return i->callee;
  const uint64_t *a = REG64(w, i->a);
  uint32_t first = (uint32_t)__builtin_ctz(*mask), same = 0;
  FOR_LANES(l, *mask) same |= (uint32_t)(a[l] == a[first]) << l;
  const Function *f = function_at(w->f->module, a[first]);
  if (!f || f->entry || f->n_ret != i->sub || f->n_ret + f->n_param != i->n_v)
    fault(w, same, 718, "call of 0x%llx: no function of this kind is there",
          (unsigned long long)a[first]);
  uint32_t pc = w->stack[w->depth - 1].pc, rest = *mask & ~same;
  if (rest) {
    w->stack[w->depth - 1].pc++;
    push(w, pc, pc + 1, rest);
    push(w, pc, pc + 1, same);
  }
  *mask = same;
  return f;
}

static void call(Warp *w, const Insn *i, uint32_t mask) {
  const Function *f = callee_of(w, i, &mask), *kernel = w->g->l->f;
  if (!f->defined) call_missing(w, i, mask);
  const Frame *t = &w->call[w->n_call - 1];
  Frame to = {.f = f,
              .local_at = t->local_at + t->f->local_bytes,
              .frame_at = t->frame_at + t->f->frame_bytes,
              .call = i,
              .active = mask,
              .all = mask};
  if (w->n_call == MAX_CALLS || to.local_at + f->local_bytes > kernel->local_most)
    fault(w, mask, 719, "stack overflow: %d nested calls, %llu bytes of local memory", w->n_call,
          (unsigned long long)(to.local_at + f->local_bytes));
  call_bind(w, i, mask, t, &to, false);
  w->stack[w->depth - 1].pc++;
  to.depth = w->depth;
  w->r += w->f->own;
  w->f = f;
  constants(w, &to);
  undefined_start(w, f);
  special_fill(w->g, w);
  FOR_LANES(l, mask)
  memset(w->local_set + l * kernel->local_most + to.local_at, 0, f->local_bytes);
  w->call[w->n_call++] = to;
  push(w, 0, UINT32_MAX, mask);
}

static void leave(Warp *w, uint32_t mask, bool all) {
  w->stack[w->depth - 1].pc++;
  w->stack[w->depth - 1].mask &= ~mask;
  if (all || w->n_call == 1) {
    w->live &= ~mask;
    for (int k = 0; k < w->n_call; k++) w->call[k].active &= ~mask;
  } else {
    w->call[w->n_call - 1].active &= ~mask;
  }
}

/* Lanes that wait at the end of the level below run first: they may hold what the others spin for. */
static void yield_level(Warp *w) {
  w->since = 0;
  const Frame *c = &w->call[w->n_call - 1];
  if (w->depth < c->depth + 2) return;
  Level *top = &w->stack[w->depth - 1], *below = top - 1;
  uint32_t waiting = below->mask & c->active & ~top->mask;
  if (!waiting || below->pc == below->join) return;
  uint32_t pc = below->pc, join = below->join;
  below->mask &= ~waiting;
  push(w, pc, join, waiting);
}

/* ---- barriers ---- */

static void arrive(Warp *w, const Insn *i, uint32_t mask) {
  Group *g = w->g;
  if (mask != w->all) {
    bool exited = w->live != w->all;
    fault(w, w->all & ~mask, 719,
          exited ? "divergent barrier: this thread has ended, others of its warp wait"
                 : "divergent barrier: this thread does not reach it with the others of its warp");
  }
  uint32_t id = REG32(w, i->a)[0], threads = i->b >= 0 ? REG32(w, i->b)[0] : 0;
  if (id > 15) fault(w, mask, 719, "barrier %u: there are 16", id);
  if (threads % LANES)
    fault(w, mask, 719, "a barrier for %u threads: not a multiple of 32", threads);
  Barrier *b = &g->barrier[id];
  uint32_t expected = threads ? threads : (uint32_t)g->n_warps * LANES;
  if (b->arrived && b->expected != expected)
    fault(w, mask, 719, "barrier %u for %u threads and for %u", id, b->expected, expected);
  if (b->warps >> w->index & 1) fault(w, mask, 719, "a warp arrives twice at barrier %u", id);
  b->expected = expected;
  b->arrived += LANES;
  b->warps |= 1u << w->index;
  if (i->c >= 0)
    b->votes += (uint32_t)__builtin_popcount((PRED(w, i->c) ^ (uint32_t)i->imm) & w->all);
  w->stack[w->depth - 1].pc++;
  g->n.barriers++;
  if (i->sub != 1) {
    w->state = WARP_WAITS;
    w->barrier = i;
    b->syncing |= 1u << w->index;
  }
  if (b->arrived < expected) return;
  uint32_t all = 0;
  for (int k = 0; k < g->n_warps; k++)
    if (b->warps >> k & 1) all += (uint32_t)__builtin_popcount(g->warp[k].all);
  for (int k = 0; k < g->n_warps; k++) {
    Warp *x = &g->warp[k];
    if (!(b->syncing >> k & 1)) continue;
    x->state = WARP_READY;
    const Insn *r = x->barrier;
    if (r->sub == 4) FOR_LANES(l, x->all) REG32(x, r->d)[l] = b->votes;
    if (r->sub == 2) PRED(x, r->d) = b->votes == all ? FULL : 0;
    if (r->sub == 3) PRED(x, r->d) = b->votes ? FULL : 0;
  }
  race_barrier(g, b->warps, b->syncing);
  *b = (Barrier){0};
}

/* ---- warps ---- */

static void execute(Warp *w, const Insn *i, uint32_t mask) {
  _Alignas(64) char to[256];
  char *r = w->r;
  if (mask == FULL) {
    if (i->flow == FLOW_ALU)
      i->alu(r + i->d, r + i->a, r + i->b, r + i->c);
    else
      alu_wrap(i, r + i->d, r + i->a, r + i->b, r + i->c);
    return;
  }
  if (i->flow == FLOW_ALU)
    i->alu(to, r + i->a, r + i->b, r + i->c);
  else
    alu_wrap(i, to, r + i->a, r + i->b, r + i->c);
  registers_put(w, i->d, i->wide, mask, to);
}

static void test(Warp *w, const Insn *i, uint32_t mask) {
  uint32_t m = i->test(w->r + i->a, w->r + i->b), n = ~m;
  if (i->sub) {
    uint32_t c = PRED(w, i->c) ^ (uint32_t)i->imm;
    m = i->sub == 1 ? m & c : i->sub == 2 ? m | c : m ^ c;
    n = i->sub == 1 ? n & c : i->sub == 2 ? n | c : n ^ c;
  }
  if (i->d >= 0) PRED(w, i->d) = (PRED(w, i->d) & ~mask) | (m & mask);
  if (i->v[0] >= 0) PRED(w, i->v[0]) = (PRED(w, i->v[0]) & ~mask) | (n & mask);
}

static void count(Group *g, const Insn *i, uint32_t mask) {
  g->n.insns[i->class]++;
  g->n.lanes += (uint64_t)__builtin_popcount(mask);
  if (i->class == C_FLOAT) g->n.fma += (uint64_t)__builtin_popcount(mask);
}

static void run_warp(Warp *w) {
  Group *g = w->g;
  g->running = w;
  for (uint32_t n = 0; n < QUANTUM; n++) {
    Level *t = &w->stack[w->depth - 1];
    if (t->pc == t->join || !t->mask) {
      if (!settle(w)) {
        w->state = WARP_DONE;
        return;
      }
      t = &w->stack[w->depth - 1];
    }
    const Insn *i = g->at = &w->f->code[t->pc];
    uint32_t mask = t->mask;
    if (i->guard >= 0) mask &= PRED(w, i->guard) ^ i->guard_flip;
    if (i->watch) undefined_watch(w, i, t->mask, mask);
    g->insns++;
    if (g->counting) count(g, i, mask);
    if (!mask && i->flow != FLOW_BRANCH) {
      t->pc++;
      continue;
    }
    switch (i->flow) {
    case FLOW_ALU:
    case FLOW_WRAP: execute(w, i, mask), t->pc++; break;
    case FLOW_TEST: test(w, i, mask), t->pc++; break;
    case FLOW_EXEC: i->exec(w, i, mask), t->pc++; break;
    case FLOW_BRANCH:
      branch(w, i, mask);
      if (++w->since > PATIENCE) yield_level(w);
      break;
    case FLOW_TABLE: branch_table(w, i, mask); break;
    case FLOW_CALL: call(w, i, mask); break;
    case FLOW_RETURN: leave(w, mask, false); break;
    case FLOW_EXIT: leave(w, mask, true); break;
    case FLOW_BARRIER:
      arrive(w, i, mask);
      if (w->state == WARP_WAITS) return;
    }
  }
}

/* ---- blocks ---- */

/* Registers of all warps, with the constants of the kernel; once per launch and worker. */
void group_prepare(Group *g, Launch *l) {
  const Function *f = l->f;
  g->l = l;
  g->n_warps = l->n_warps;
  if (g->cap_warps < g->n_warps) {
    for (int k = 0; k < g->cap_warps; k++) free(g->warp[k].pending);
    free(g->warp);
    g->warp = host_alloc((size_t)g->n_warps * sizeof *g->warp);
    g->cap_warps = g->n_warps;
  }
  size_t file = ((size_t)f->registers + 127) / 64 * 64, need = file * (size_t)g->n_warps;
  free(g->registers);
  g->registers = aligned_alloc(64, need + 64);
  memset(g->registers, 0, need);
  size_t threads = (size_t)g->n_warps * LANES;
  free(g->local), free(g->local_set), free(g->frame);
  g->local = host_alloc(threads * f->local_most);
  g->local_set = host_alloc(threads * f->local_most);
  g->frame = host_alloc(threads * f->frame_most);
  g->shared_bytes = f->shared_bytes + l->dynamic_shared;
  for (g->granule_shift = 0; 1 << g->granule_shift < f->granule;) g->granule_shift++;
  if (g->shared_cap < g->shared_bytes) {
    free(g->shared);
    g->shared_cap = g->shared_bytes;
    g->shared = host_alloc(g->shared_bytes + 64);
  }
  race_prepare(g, g->shared_bytes);
  uint64_t all = (uint64_t)l->block[0] * l->block[1] * l->block[2];
  for (int k = 0; k < g->n_warps; k++) {
    Warp *w = &g->warp[k];
    uint64_t left = all - (uint64_t)k * LANES;
    w->g = g;
    w->index = k;
    w->all = left >= LANES ? FULL : (1u << left) - 1;
    w->r = g->registers + file * (size_t)k;
    w->local = g->local + (size_t)k * LANES * f->local_most;
    w->local_set = g->local_set + (size_t)k * LANES * f->local_most;
    w->frame = g->frame + (size_t)k * LANES * f->frame_most;
    constants(w, &(Frame){.f = f});
  }
}

void group_free(Group *g) {
  for (int k = 0; k < g->cap_warps; k++) free(g->warp[k].pending);
  free(g->warp), free(g->registers), free(g->local), free(g->local_set), free(g->frame),
      free(g->shared), free(g->records.write);
  traffic_free(&g->asked);
}

static void warp_start(Group *g, Warp *w) {
  const Function *f = g->l->f;
  w->f = f;
  w->live = w->all;
  w->state = WARP_READY;
  w->depth = 0;
  w->n_call = 1;
  w->call[0] = (Frame){.f = f, .active = w->all, .all = w->all};
  w->carry = 0;
  w->n_pending = 0;
  memset(w->group, 0, sizeof w->group);
  if (f->local_bytes) memset(w->local_set, 0, LANES * f->local_most);
  push(w, 0, UINT32_MAX, w->all);
  undefined_start(w, f);
  special_fill(g, w);
}

void group_run(Group *g) {
  memset(g->barrier, 0, sizeof g->barrier);
  race_start(g);
  traffic_start(&g->asked);
  g->insns = 0;
  for (int k = 0; k < g->n_warps; k++) warp_start(g, &g->warp[k]);
  uint64_t order = g->l->seed + g->id[0] * UINT64_C(0x9e3779b97f4a7c15) +
                   g->id[1] * UINT64_C(0xbf58476d1ce4e5b9) + g->id[2];
  for (;;) {
    bool ran = false, waits = false;
    order = order * UINT64_C(6364136223846793005) + 1442695040888963407;
    int first = (int)((order >> 33) % (uint64_t)g->n_warps);
    for (int k = 0; k < g->n_warps; k++) {
      Warp *w = &g->warp[(first + k) % g->n_warps];
      if (w->state == WARP_READY) run_warp(w), ran = true;
      if (w->state == WARP_WAITS) waits = true;
      if (g->insns > checks.budget || g->l->insns + g->insns > checks.budget)
        fault(w, w->live, 702,
              "more than %llu instructions in one launch (CUDASIM_BUDGET): an endless loop?",
              (unsigned long long)checks.budget);
    }
    if (ran) continue;
    if (!waits) return;
    for (int k = 0; k < g->n_warps; k++)
      if (g->warp[k].state == WARP_WAITS) {
        g->at = g->warp[k].barrier;
        fault(&g->warp[k], g->warp[k].all, 719,
              "divergent barrier: other threads of the block never reach it");
      }
  }
}
