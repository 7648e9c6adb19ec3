/* Elements on their way through shared memory. In: addresses, and which lanes move what; out: cp.async, or, where it cannot be used
 * (before sm_80, elements that are converted), loads, whose stores follow when the caller has done what hides their latency. */
#include "cuda_gemm.h"
#include <assert.h>
#include <string.h>

/* How PTX writes types by their size. */
typedef struct Words {
  const char *limit, *type, *zero;
} Words;

static Words words_of(int size) {
  if (size == 2) return (Words){"h", "b16", "0"};
  if (size == 4) return (Words){"f", "f32", "0f00000000"};
  return (Words){"d", "f64", "0d0000000000000000"};
}

static LLVMTypeRef word_type(Gen *g, int size) {
  return size == 2 ? g->i16 : size == 4 ? g->f32 : g->f64;
}

static Val always(Gen *g, Val when) { return when ? when : LLVMConstInt(g->i1, 1, 0); }

/* $from, $from+1 ... of n operands, as a vector if they are several. */
static void add_operands(Str *code, int from, int n) {
  if (n > 1) str_add(code, "{");
  for (int i = 0; i < n; i++) str_fmt(code, "%s$%d", i ? ", " : "", from + i);
  if (n > 1) str_add(code, "}");
}

static const char *vector_suffix(int n) { return n == 1 ? "" : n == 2 ? ".v2" : ".v4"; }

/* The opening of a load to n registers, which are 0 before it; an address is the operand behind them. */
static void start_load(Gemm *m, int size, int n, Str *code, Str *limits) {
  Words w = words_of(size);
  str_init(code, m->g->a);
  str_init(limits, m->g->a);
  str_add(code, "{");
  for (int i = 0; i < n; i++) {
    str_fmt(code, " mov.%s $%d, %s;", w.type, i, w.zero);
    str_fmt(limits, "=&%s,", w.limit);
  }
  str_add(limits, "l");
}

/* v[0..n-1] = what it loads. */
static void end_load(Gemm *m, int size, int n, Str *code, Str *limits, int n_args,
                     LLVMTypeRef *types, Val *args, Val *v) {
  Gen *g = m->g;
  LLVMTypeRef each[GEMM_VEC];
  for (int i = 0; i < n; i++) each[i] = word_type(g, size);
  str_add(code, " }");
  LLVMTypeRef result = n > 1 ? LLVMStructTypeInContext(g->c, each, (unsigned)n, 0) : each[0];
  LLVMTypeRef type = LLVMFunctionType(result, types, (unsigned)n_args, 0);
  Val load = LLVMGetInlineAsm(type, code->s, code->n, limits->s, limits->n, 1, 0,
                              LLVMInlineAsmDialectATT, 0);
  Val all = LLVMBuildCall2(g->b, type, load, args, (unsigned)n_args, "");
  for (int i = 0; i < n; i++)
    v[i] = n > 1 ? LLVMBuildExtractValue(g->b, all, (unsigned)i, "") : all;
}

/* v[0..n-1] = elements of global memory where `when` (NULL: always) holds, else 0. */
static void load_lanes(Gemm *m, int size, int n, Val from, Val when, Val *v) {
  Gen *g = m->g;
  Words w = words_of(size);
  Str code, limits;
  start_load(m, size, n, &code, &limits);
  str_fmt(&code, " @$%d ld.global%s.%s ", n + 1, vector_suffix(n), w.type);
  add_operands(&code, 0, n);
  str_fmt(&code, ", [$%d];", n);
  str_add(&limits, ",b");
  Val args[2] = {LLVMBuildPtrToInt(g->b, from, g->i64, ""), always(g, when)};
  end_load(m, size, n, &code, &limits, 2, (LLVMTypeRef[]){g->i64, g->i1}, args, v);
}

/* To shared memory, by lanes for which `when` (NULL: all) holds. */
static void store_lanes(Gemm *m, int size, int n, Val to, Val when, const Val *v) {
  Gen *g = m->g;
  Words w = words_of(size);
  LLVMTypeRef types[GEMM_VEC + 2];
  Val args[GEMM_VEC + 2];
  Str code, limits;
  str_init(&code, g->a);
  str_init(&limits, g->a);
  str_fmt(&code, "@$%d st.shared%s.%s [$%d], ", n + 1, vector_suffix(n), w.type, n);
  add_operands(&code, 0, n);
  str_add(&code, ";");
  for (int i = 0; i < n; i++) {
    args[i] = v[i];
    types[i] = word_type(g, size);
    str_fmt(&limits, "%s,", w.limit);
  }
  str_add(&limits, "r,b");
  args[n] = LLVMBuildPtrToInt(g->b, to, g->i32, "");
  args[n + 1] = always(g, when);
  types[n] = g->i32;
  types[n + 1] = g->i1;
  LLVMTypeRef type = LLVMFunctionType(LLVMVoidTypeInContext(g->c), types, (unsigned)n + 2, 0);
  Val store =
      LLVMGetInlineAsm(type, code.s, code.n, limits.s, limits.n, 1, 0, LLVMInlineAsmDialectATT, 0);
  LLVMBuildCall2(g->b, type, store, args, (unsigned)n + 2, "");
}

static void copy_async(Gen *g, int bytes, Val to, Val from, Val ok, Val use) {
  const char *name = bytes == 16  ? "llvm.nvvm.cp.async.cg.shared.global.16.s"
                     : bytes == 8 ? "llvm.nvvm.cp.async.ca.shared.global.8.s"
                                  : "llvm.nvvm.cp.async.ca.shared.global.4.s";
  Val size = LLVMConstInt(g->i32, (uint64_t)bytes, 0);
  gen_at_vals(g, 2, (Val[]){from, ok});
  if (ok) size = LLVMBuildSelect(g->b, ok, size, LLVMConstInt(g->i32, 0, 0), "");
  gen_at(g, g->depth);
  if (!use) {
    gen_call(g, name, NULL, 3, (Val[]){to, from, size});
    return;
  }
  LLVMTypeRef types[4] = {g->i64, g->i64, g->i32, g->i1};
  LLVMTypeRef type = LLVMFunctionType(LLVMVoidTypeInContext(g->c), types, 4, 0);
  const char *code = arena_fmt(g->a, "@$3 cp.async.%s.shared.global [$0], [$1], %d, $2;",
                               bytes == 16 ? "cg" : "ca", bytes);
  Val copy =
      LLVMGetInlineAsm(type, code, strlen(code), "l,l,r,b", 7, 1, 0, LLVMInlineAsmDialectATT, 0);
  Val args[4] = {LLVMBuildPtrToInt(g->b, to, g->i64, ""), LLVMBuildPtrToInt(g->b, from, g->i64, ""),
                 size, use};
  LLVMBuildCall2(g->b, type, copy, args, 4, "");
}

static DType type_of(const Gemm *m, int s) { return m->p->core->in[m->p->side[s].x]->dtype; }

void gemm_move(Gemm *m, int s, int n, Val to, Val from, Val ok, Val use) {
  Gen *g = m->g;
  int size = dtype_info[type_of(m, s)].size;
  if (m->p->side[s].direct) {
    copy_async(g, n * size, to, from, ok, use);
    return;
  }
  GemmMoved *r = &m->moved[m->n_moved++];
  assert(m->n_moved <= GEMM_MOVED);
  *r = (GemmMoved){.s = s, .n = n, .to = to, .use = use};
  ok = gen_and(g, ok, use);
  gen_at(g, g->depth);
  load_lanes(m, size, n, from, ok, r->v);
}

void gemm_moved(Gemm *m) {
  Gen *g = m->g;
  for (int i = 0; i < m->n_moved; i++) {
    GemmMoved *r = &m->moved[i];
    DType t = type_of(m, r->s);
    gen_at(g, g->depth);
    for (int j = 0; j < r->n; j++)
      r->v[j] = val_of_mem(g, t, LLVMBuildBitCast(g->b, r->v[j], mem_type(g, t), ""));
    int size = dtype_info[m->p->tile->type].size;
    store_lanes(m, size, r->n, r->to, gen_and(g, r->use, r->first), r->v);
    if (!r->first) continue;
    Val later = gen_and(g, r->use, LLVMBuildNot(g->b, r->first, ""));
    gen_at(g, g->depth);
    store_lanes(m, size, r->n, r->to, later, r->v);
  }
  m->n_moved = 0;
}

void gemm_load(Gemm *m, Val from, const Aff *phase, int phases, Val ok, int n, Val *v) {
  enum { MOST = 40 };
  Gen *g = m->g;
  int size = dtype_info[m->p->tile->type].size;
  Words w = words_of(size);
  LLVMTypeRef types[1 + MOST] = {g->i64};
  Val args[1 + MOST], at = aff_value(g, phase);
  Str code, limits;
  start_load(m, size, n, &code, &limits);
  for (int i = 0; i < phases; i++) {
    gen_at(g, gen_depth(g, at));
    Val now = LLVMBuildICmp(g->b, LLVMIntEQ, at, gen_i64(g, i), "");
    args[1 + i] = gen_and(g, phases == 1 ? NULL : now, ok);
    if (!args[1 + i]) args[1 + i] = LLVMConstInt(g->i1, 1, 0);
    types[1 + i] = g->i1;
    str_fmt(&code, " @$%d ld.shared%s.%s ", n + 1 + i, vector_suffix(n), w.type);
    add_operands(&code, 0, n);
    str_fmt(&code, ", [$%d];", n);
    str_add(&limits, ",b");
  }
  gen_at(g, g->depth);
  args[0] = LLVMBuildPtrToInt(g->b, from, g->i64, "");
  end_load(m, size, n, &code, &limits, 1 + phases, types, args, v);
}
