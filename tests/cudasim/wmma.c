/* Tensor cores as C++ code uses them: wmma.load, wmma.mma, wmma.store. How a fragment lies in registers is not defined by PTX; here
 * value s of a thread's fragment on lane l is element 32 s + l of the matrix, row by row, and what the registers hold more is a copy
 * from the start. So all fragments of one shape agree, whatever their type. Sums as in mma.c: exact, rounded once. */
#include "sim.h"
#include <string.h>

typedef struct Element {
  const char *name;
  TypeKind kind;
  int size;
} Element;
static const Element elements[] = {{"f16", KIND_FLOAT, 2},   {"bf16", KIND_BFLOAT, 2},
                                   {"tf32", KIND_TF32, 4},   {"s8", KIND_SIGNED, 1},
                                   {"u8", KIND_UNSIGNED, 1}, {"f32", KIND_FLOAT, 4},
                                   {"s32", KIND_SIGNED, 4},  {"f64", KIND_FLOAT, 8}};
typedef struct Size {
  int m, n, k;
} Size;
static const Size sizes[] = {{16, 16, 16}, {32, 8, 16}, {8, 32, 16}, {16, 16, 8}, {8, 8, 4}};
#define SHAPES "m16n16k16|m32n8k16|m8n32k16|m16n16k8|m8n8k4"
#define TYPES "f16|bf16|tf32|s8|u8|f32|s32|f64"

/* A fragment in registers. */
typedef struct Fragment {
  uint8_t type, rows, cols, n; /* n: registers */
  bool by_columns;             /* in memory */
} Fragment;
typedef struct Wmma {
  Fragment f[4]; /* d, a, b, c; load and store: f[0] */
} Wmma;

static int width_of(const Fragment *f) { return elements[f->type].size == 8 ? 8 : 4; }
static int per_register(const Fragment *f) {
  int size = elements[f->type].size;
  return size < 4 ? 4 / size : 1;
}

static uint64_t element(const Warp *w, const Fragment *f, const int32_t *v, int at) {
  int per = per_register(f), size = elements[f->type].size, s = at / LANES;
  uint64_t bits = register_get(w, v[s / per], width_of(f), at % LANES);
  return size < 4 ? bits >> s % per * size * 8 & ((1u << size * 8) - 1) : bits;
}

/* Every copy of the element. */
static void element_set(Warp *w, const Fragment *f, const int32_t *v, int at, uint64_t bits) {
  int per = per_register(f), size = elements[f->type].size, values = f->n * per;
  for (; at < values * LANES; at += f->rows * f->cols) {
    int s = at / LANES, width = width_of(f), shift = size < 4 ? s % per * size * 8 : 0;
    uint64_t old = register_get(w, v[s / per], width, at % LANES),
             m = size < 4 ? ((UINT64_C(1) << size * 8) - 1) << shift : ~UINT64_C(0);
    register_set(w, v[s / per], width, at % LANES, (old & ~m) | (bits << shift & m));
  }
}

/* ---- load, store ---- */

static uint64_t place(const Warp *w, const Insn *i, const Fragment *f, int at) {
  uint64_t start[LANES];
  lane_addresses(w, i, start);
  uint64_t row = (uint64_t)(at / f->cols), col = (uint64_t)(at % f->cols),
           stride = i->c >= 0 ? REG32(w, i->c)[0] : (uint64_t)(f->by_columns ? f->rows : f->cols);
  return start[0] + (f->by_columns ? col * stride + row : row * stride + col) *
                        (uint64_t)elements[f->type].size;
}

static void check_call(Warp *w, const Insn *i, uint32_t mask, const char *what) {
  if (mask != w->all || mask != FULL)
    fault(w, ~mask, 719, "%s without all lanes of the warp", what);
  uint64_t start[LANES];
  lane_addresses(w, i, start);
  FOR_LANES(l, mask) {
    if (start[l] != start[0]) fault(w, 1u << l, 719, "%s: lanes name different addresses", what);
  }
  if (start[0] % 16) misaligned(w, 0, start[0], 16);
}

static void exec_load(Warp *w, const Insn *i, uint32_t mask) {
  const Fragment *f = &((const Wmma *)i->form)->f[0];
  uint32_t size = (uint32_t)elements[f->type].size;
  check_call(w, i, mask, "wmma.load");
  for (int at = 0; at < f->rows * f->cols; at++) {
    uint64_t bits = 0;
    memcpy(&bits, lane_access(w, i, at % LANES, (Space)i->space, place(w, i, f, at), size, false),
           size);
    element_set(w, f, i->v, at, bits);
  }
}

static void exec_store(Warp *w, const Insn *i, uint32_t mask) {
  const Fragment *f = &((const Wmma *)i->form)->f[0];
  uint32_t size = (uint32_t)elements[f->type].size;
  check_call(w, i, mask, "wmma.store");
  for (int at = 0; at < f->rows * f->cols; at++) {
    uint64_t bits = element(w, f, i->v, at);
    memcpy(lane_access(w, i, at % LANES, (Space)i->space, place(w, i, f, at), size, true), &bits,
           size);
  }
}

/* ---- mma ---- */

static void exec_mma(Warp *w, const Insn *i, uint32_t mask) {
  const Wmma *x = i->form;
  const Fragment *d = &x->f[0], *a = &x->f[1], *b = &x->f[2], *c = &x->f[3];
  const int32_t *vd = i->v, *va = vd + d->n, *vb = va + a->n, *vc = vb + b->n;
  double value[2][32 * 16], sum[32 * 32];
  if (mask != FULL) fault(w, ~mask, 719, "wmma.mma without all lanes of the warp");
  for (int o = 0; o < 2; o++) {
    const Fragment *f = o ? b : a;
    for (int at = 0; at < f->rows * f->cols; at++)
      value[o][at] =
          mma_value(elements[f->type].kind, elements[f->type].size, element(w, f, o ? vb : va, at));
  }
  for (int at = 0; at < d->rows * d->cols; at++) {
    int row = at / d->cols, col = at % d->cols;
    sum[at] = mma_value(elements[c->type].kind, elements[c->type].size, element(w, c, vc, at));
    for (int k = 0; k < a->cols; k++)
      sum[at] += value[0][row * a->cols + k] * value[1][k * b->cols + col];
  }
  for (int at = 0; at < d->rows * d->cols; at++)
    element_set(w, d, vd, at, mma_bits(elements[d->type].kind, elements[d->type].size, sum[at]));
  w->g->n.mma += (uint64_t)(d->rows * d->cols * a->cols);
}

/* ---- decoding ---- */

static Fragment fragment(const Size *s, int which, int type) {
  Fragment f = {.type = (uint8_t)type,
                .rows = (uint8_t)(which == 'b' ? s->k : s->m),
                .cols = (uint8_t)(which == 'a' ? s->k : s->n)};
  int values = f.rows * f.cols / LANES;
  if (elements[type].kind == KIND_FLOAT && elements[type].size == 2 &&
      (which == 'a' || which == 'b'))
    values = 16; /* at least: A and B of half precision have 8 registers in every shape */
  f.n = (uint8_t)(values / per_register(&f));
  return f;
}

static int32_t *registers(Parser *p, int operand, const Fragment *f, int32_t *v) {
  const Operand *o = &p->operand[operand];
  int n = o->kind == O_VECTOR ? o->n : 1;
  if (n != f->n) parse_fail(p, "operand %d has %d registers, not %d", operand + 1, n, f->n);
  for (int k = 0; k < n; k++)
    *v++ = one_at(p, o->kind == O_VECTOR ? &o->v[k] : o, NULL, width_of(f), false);
  return v;
}

static Wmma *start(Parser *p, int registers_most) {
  Wmma *x = arena_alloc(p->m->arena, sizeof *x);
  p->insn->form = x;
  p->insn->v = arena_alloc(p->m->arena, (size_t)registers_most * sizeof(int32_t));
  return x;
}

/* wmma.load.a|b|c, wmma.store.d: .sync.aligned.layout.shape{.space}.type */
static void decode_move(Parser *p, const Form *f) {
  Insn *i = p->insn;
  Wmma *x = start(p, 16);
  bool store = f->sub;
  p->at_part = 2;
  int which = "abcd"[take(p, "a|b|c|d")];
  p->at_part = 5;
  bool columns = take(p, "row|col") == 1;
  int shape = take(p, SHAPES);
  Space space = take_space(p);
  int type = take(p, TYPES);
  if (shape < 0 || type < 0 || p->at_part != p->n_part || p->n_operand < 2 || p->n_operand > 3)
    parse_fail(p, "this form of wmma is not known");
  x->f[0] = fragment(&sizes[shape], which, type);
  x->f[0].by_columns = columns;
  registers(p, store ? 1 : 0, &x->f[0], (int32_t *)i->v);
  decode_address(p, store ? 0 : 1, space);
  i->sub = 0;
  if (p->n_operand == 3) i->c = operand_at(p, 2, 4, false);
  note_shared(p, space, elements[type].size);
}

/* wmma.mma.sync.aligned.layouts.shape.d.c of f16, .d.a.b.c of the others */
static void decode_product(Parser *p, const Form *f) {
  Wmma *x = start(p, 64);
  (void)f;
  p->at_part = 4;
  take(p, "row|col"), take(p, "row|col");
  int shape = take(p, SHAPES), t[4] = {-1, -1, -1, -1}, n = 0;
  for (int type; n < 4 && (type = take(p, TYPES)) >= 0;) t[n++] = type;
  take(p, "satfinite|rn|rz|rm|rp");
  if (shape < 0 || (n != 2 && n != 4) || p->at_part != p->n_part || p->n_operand != 4)
    parse_fail(p, "this form of wmma is not known");
  if (n == 2) t[3] = t[1], t[1] = t[2] = 0;
  int32_t *v = (int32_t *)p->insn->v;
  for (int o = 0; o < 4; o++) {
    x->f[o] = fragment(&sizes[shape], "dabc"[o], t[o]);
    v = registers(p, o, &x->f[o], v);
  }
}

const Form forms_wmma[] = {{"wmma load a|b|c sync aligned *", decode_move, C_MMA, exec_load, 0},
                           {"wmma store d sync aligned *", decode_move, C_MMA, exec_store, 1},
                           {"wmma mma sync aligned *", decode_product, C_MMA, exec_mma, 0},
                           {NULL, NULL, 0, NULL, 0}};
