/* cp.async: the bytes are read at once and arrive when their group is waited for; until then nobody may touch the target. */
#include "sim.h"
#include <string.h>

static void fetch(const Insn *i, char *to, const char *base, const uint64_t from[LANES],
                  uint32_t mask) {
  if (mask == FULL && i->size == 4)
    for (int l = 0; l < LANES; l++) memcpy(to + 4 * l, base + from[l], 4);
  else if (mask == FULL && i->size == 16)
    for (int l = 0; l < LANES; l++) memcpy(to + 16 * l, base + from[l], 16);
  else
    FOR_LANES(l, mask) memcpy(to + l * i->size, base + from[l], i->size);
}

/* Lanes of one instruction whose groups have one number. */
static void copy_group(Warp *w, const Insn *i, uint64_t from[LANES], const uint64_t to[LANES],
                       const uint32_t *bytes, uint32_t mask) {
  uint32_t whole = mask, size = i->size;
  Shape s;
  if (w->n_pending == w->cap_pending)
    w->pending =
        host_grow(w->pending, (size_t)(w->cap_pending += w->cap_pending + 16) * sizeof *w->pending);
  Pending *q = &w->pending[w->n_pending];
  uint64_t run = 0;
  q->mask = mask, q->group = w->group[__builtin_ctz(mask)], q->bytes = size;
  for (uint32_t l = 0; l < LANES; l++)
    q->to[l] = (uint32_t)to[l], run |= to[l] ^ (to[0] + l * size);
  q->dense = mask == FULL && !run;
  if (bytes) {
    memset(q->data, 0, sizeof q->data);
    FOR_LANES(l, mask) {
      if (bytes[l] == size) continue;
      whole &= ~(1u << l);
      for (uint32_t k = 0; k < bytes[l]; k++)
        q->data[l * size + k] = *lane_access(w, i, (int)l, SPACE_GLOBAL, from[l] + k, 1, false);
    }
  }
  if (whole) {
    const char *base = lanes_access(w, SPACE_GLOBAL, from, whole, size, &s, false);
    if (w->g->l->many) blocks_lanes(w, from, whole, size, &s, 0, NULL, 0);
    fetch(i, q->data, base, from, whole);
  }
  w->n_pending++;
}

static void check_target(Warp *w, const uint64_t to[LANES], uint32_t mask, uint32_t n) {
  uint64_t size = w->g->shared_bytes, bad = 0;
  for (int l = 0; l < LANES; l++)
    bad |= (to[l] & (n - 1)) | (uint64_t)(to[l] + n > size) | (uint64_t)(to[l] > size);
  if (bad) FOR_LANES(l, mask) {
      if (to[l] & (n - 1)) misaligned(w, (int)l, to[l], n);
      if (to[l] + n > size || to[l] > size) out_of_space(w, (int)l, "shared", to[l], n, size);
    }
  uint64_t start = to[__builtin_ctz(mask)], end = start;
  FOR_LANES(l, mask) {
    if (to[l] != end) {
      race_pending(w, (int)l, (uint32_t)start, (uint32_t)(end - start));
      start = to[l];
    }
    end = to[l] + n;
  }
  race_pending(w, 31 - __builtin_clz(mask), (uint32_t)start, (uint32_t)(end - start));
}

static bool one_group(const Warp *w) {
  uint32_t differ = 0;
  for (int l = 0; l < LANES; l++) differ |= w->group[l] ^ w->group[0];
  return !differ;
}

static void exec_copy(Warp *w, const Insn *i, uint32_t mask) {
  uint64_t from[LANES], to[LANES];
  uint32_t bytes[LANES], n = i->size;
  lane_addresses(w, i, from);
  if (i->b < 0)
    for (int l = 0; l < LANES; l++) to[l] = i->target;
  else
    for (int l = 0; l < LANES; l++)
      to[l] = (i->n == 8 ? REG64(w, i->b)[l] : REG32(w, i->b)[l]) + i->target;
  if (i->c >= 0) FOR_LANES(l, mask) {
      bytes[l] = REG32(w, i->c)[l];
      if (bytes[l] > n)
        fault(w, 1u << l, 719, "a source of %u bytes for a copy of %u", bytes[l], n);
      if (bytes[l] && from[l] & (n - 1)) misaligned(w, (int)l, from[l], n);
    }
  if (w->g->counting) count_shared(w->g, to, mask, n);
  check_target(w, to, mask, n);
  while (mask) {
    uint32_t first = (uint32_t)__builtin_ctz(mask), same = one_group(w) ? mask : 0;
    if (!same) FOR_LANES(l, mask) same |= (uint32_t)(w->group[l] == w->group[first]) << l;
    copy_group(w, i, from, to, i->c >= 0 ? bytes : NULL, same);
    mask &= ~same;
  }
}

static void arrive(Warp *w, const Pending *q, uint32_t lanes) {
  char *shared = w->g->shared;
  if (q->dense && lanes == FULL) {
    memcpy(shared + q->to[0], q->data, LANES * q->bytes);
    race_arrived(w, q->to[0], LANES * q->bytes);
    return;
  }
  FOR_LANES(l, lanes) {
    memcpy(shared + q->to[l], q->data + l * q->bytes, q->bytes);
    race_arrived(w, q->to[l], q->bytes);
  }
}

/* All but the last `left` groups of these lanes arrive; UINT32_MAX: also what is in no group yet. */
static void finish(Warp *w, uint32_t mask, uint32_t left) {
  int n = 0;
  bool one = one_group(w);
  for (int k = 0; k < w->n_pending; k++) {
    Pending *q = &w->pending[k];
    uint32_t done = 0;
    if (left == UINT32_MAX || one) {
      if (left == UINT32_MAX || q->group + left < w->group[0]) done = q->mask & mask;
    } else {
      FOR_LANES(l, q->mask & mask) done |= (uint32_t)(q->group + left < w->group[l]) << l;
    }
    arrive(w, q, done);
    q->mask &= ~done;
    if (!q->mask) continue;
    if (n != k) w->pending[n] = *q;
    n++;
  }
  w->n_pending = n;
}

static void exec_commit(Warp *w, const Insn *i, uint32_t mask) {
  (void)i;
  FOR_LANES(l, mask) w->group[l]++;
}

static void exec_wait(Warp *w, const Insn *i, uint32_t mask) { finish(w, mask, (uint32_t)i->imm); }

static void decode_copy(Parser *p, const Form *f) {
  Insn *i = p->insn;
  (void)f;
  if (p->n_operand < 3 || p->n_operand > 5)
    parse_fail(p, "operands: [to], [from], bytes{, bytes of the source}");
  int before = p->n_dynamic;
  i->sub = 0;
  decode_address(p, 0, SPACE_SHARED);
  if (p->n_dynamic > before)
    parse_fail(p, "the address of dynamic shared memory must be in a register");
  i->b = i->a;
  i->n = i->address64 ? 8 : 4;
  i->target = (uint32_t)i->imm;
  decode_address(p, 1, SPACE_GLOBAL);
  uint64_t bytes = p->operand[2].value;
  if (p->operand[2].kind != O_CONSTANT || (bytes != 4 && bytes != 8 && bytes != 16))
    parse_fail(p, "copies are of 4, 8 or 16 bytes");
  i->size = (uint8_t)bytes;
  if (p->n_operand > 3) i->c = operand_at(p, 3, 4, false);
}

static void decode_commit(Parser *p, const Form *f) {
  (void)f;
  if (p->n_operand) parse_fail(p, "no operands are needed");
}

static void decode_wait(Parser *p, const Form *f) {
  p->insn->imm = UINT32_MAX;
  if (f->sub) return;
  if (p->n_operand != 1 || p->operand[0].kind != O_CONSTANT)
    parse_fail(p, "a number of groups is needed");
  p->insn->imm = (int64_t)p->operand[0].value;
}

#define HINTS "L2::cache_hint|L2::64B|L2::128B|L2::256B? L2::64B|L2::128B|L2::256B?"
const Form forms_copy[] = {{"cp async ca|cg shared|shared::cta global " HINTS, decode_copy,
                            C_GLOBAL, exec_copy, 0},
                           {"cp async commit_group", decode_commit, C_GLOBAL, exec_commit, 0},
                           {"cp async wait_group", decode_wait, C_GLOBAL, exec_wait, 0},
                           {"cp async wait_all", decode_wait, C_GLOBAL, exec_wait, 1},
                           {NULL, NULL, 0, NULL, 0}};
