/* The primitives on scalars. In: operands' values in registers; out: the result's value; the meaning is that of prims.def.
 * In registers bool is i1, float16 and bfloat16 are float; everything else has its own type. Nothing traps: divisors that
 * LLVM leaves undefined are replaced before the division. */
#include "gen.h"
#include <math.h>

LLVMTypeRef val_type(Gen *g, DType t) {
  switch (dtype_info[t].class) {
  case 'b': return g->i1;
  case 'f': return t == DT_FLOAT64 ? g->f64 : g->f32;
  default: return LLVMIntTypeInContext(g->c, (unsigned)dtype_info[t].size * 8);
  }
}

LLVMTypeRef mem_type(Gen *g, DType t) {
  if (t == DT_FLOAT16) return g->f16;
  return t == DT_BFLOAT16 ? g->i16 : t == DT_BOOL ? g->i8 : val_type(g, t);
}

Val val_const(Gen *g, DType t, double f, int64_t i) {
  if (!dtype_is_float(t)) {
    if (t == DT_BOOL) i = i != 0;
    return LLVMConstInt(val_type(g, t), (uint64_t)i, 1);
  }
  /* as the tensor that the node stands for would hold it */
  if (t == DT_FLOAT16 || t == DT_BFLOAT16) f = half_to_double(t, double_to_half(t, f));
  return LLVMConstReal(val_type(g, t), t == DT_FLOAT64 ? f : (double)(float)f);
}

/* The bits of the bfloat16 nearest to x, ties to even, in the low half of an i32. */
static Val bfloat_bits(Gen *g, Val x) {
  LLVMBuilderRef b = g->b;
  Val u = LLVMBuildBitCast(b, x, g->i32, ""), k16 = LLVMConstInt(g->i32, 16, 0);
  Val odd = LLVMBuildAnd(b, LLVMBuildLShr(b, u, k16, ""), LLVMConstInt(g->i32, 1, 0), "");
  Val up = LLVMBuildAdd(b, LLVMBuildAdd(b, u, odd, ""), LLVMConstInt(g->i32, 0x7fff, 0), "");
  Val nan = LLVMBuildFCmp(b, LLVMRealUNO, x, x, "");
  Val quiet = LLVMBuildOr(b, u, LLVMConstInt(g->i32, 0x400000, 0), "");
  return LLVMBuildLShr(b, LLVMBuildSelect(b, nan, quiet, up, ""), k16, "");
}

static Val bfloat_value(Gen *g, Val bits) {
  Val u = LLVMBuildShl(g->b, bits, LLVMConstInt(g->i32, 16, 0), "");
  return LLVMBuildBitCast(g->b, u, g->f32, "");
}

Val val_of_mem(Gen *g, DType t, Val v) {
  if (t == DT_BOOL) return LLVMBuildICmp(g->b, LLVMIntNE, v, LLVMConstInt(g->i8, 0, 0), "");
  if (t == DT_FLOAT16) return LLVMBuildFPExt(g->b, v, g->f32, "");
  if (t == DT_BFLOAT16) return bfloat_value(g, LLVMBuildZExt(g->b, v, g->i32, ""));
  return v;
}

Val val_to_mem(Gen *g, DType t, Val v) {
  if (t == DT_BOOL) return LLVMBuildZExt(g->b, v, g->i8, "");
  if (t == DT_FLOAT16) return LLVMBuildFPTrunc(g->b, v, g->f16, "");
  if (t == DT_BFLOAT16) return LLVMBuildTrunc(g->b, bfloat_bits(g, v), g->i16, "");
  return v;
}

Val val_load(Gen *g, DType t, Val p) {
  Val v = LLVMBuildLoad2(g->b, mem_type(g, t), p, "");
  LLVMSetAlignment(v, (unsigned)dtype_info[t].size);
  gen_access(g, v);
  return val_of_mem(g, t, v);
}

void val_store(Gen *g, DType t, Val v, Val p) {
  Val s = LLVMBuildStore(g->b, val_to_mem(g, t, v), p);
  LLVMSetAlignment(s, (unsigned)dtype_info[t].size);
  gen_access(g, s);
}

static bool known_number(Val v) {
  LLVMBool lost;
  return LLVMIsAConstantFP(v) && !isnan(LLVMConstRealGetDouble(v, &lost));
}

/* NaN wins. With a constant this is one instruction on x86. */
static Val val_select_max(Gen *g, DType t, Val x, Val y, bool max) {
  LLVMBuilderRef b = g->b;
  if (!dtype_is_float(t)) {
    bool sign = dtype_info[t].class == 'i';
    LLVMIntPredicate p = max ? (sign ? LLVMIntSGT : LLVMIntUGT) : (sign ? LLVMIntSLT : LLVMIntULT);
    return LLVMBuildSelect(b, LLVMBuildICmp(b, p, x, y, ""), x, y, "");
  }
  LLVMRealPredicate p = max ? LLVMRealOGT : LLVMRealOLT;
  if (known_number(x)) return LLVMBuildSelect(b, LLVMBuildFCmp(b, p, x, y, ""), x, y, "");
  if (known_number(y)) return LLVMBuildSelect(b, LLVMBuildFCmp(b, p, y, x, ""), y, x, "");
  Val m = LLVMBuildSelect(b, LLVMBuildFCmp(b, p, x, y, ""), x, y, "");
  return LLVMBuildSelect(b, LLVMBuildFCmp(b, LLVMRealUNO, x, x, ""), x, m, "");
}

/* ---- arithmetic ---- */

typedef Val MapFn(Gen *g, DType t, Val *x);

static Val map_add(Gen *g, DType t, Val *x) {
  if (t == DT_BOOL) return LLVMBuildOr(g->b, x[0], x[1], "");
  return dtype_is_float(t) ? LLVMBuildFAdd(g->b, x[0], x[1], "")
                           : LLVMBuildAdd(g->b, x[0], x[1], "");
}

static Val map_sub(Gen *g, DType t, Val *x) {
  if (t == DT_BOOL) return LLVMBuildXor(g->b, x[0], x[1], "");
  return dtype_is_float(t) ? LLVMBuildFSub(g->b, x[0], x[1], "")
                           : LLVMBuildSub(g->b, x[0], x[1], "");
}

static Val map_mul(Gen *g, DType t, Val *x) {
  if (t == DT_BOOL) return LLVMBuildAnd(g->b, x[0], x[1], "");
  return dtype_is_float(t) ? LLVMBuildFMul(g->b, x[0], x[1], "")
                           : LLVMBuildMul(g->b, x[0], x[1], "");
}

static Val map_max(Gen *g, DType t, Val *x) { return val_select_max(g, t, x[0], x[1], true); }
static Val map_min(Gen *g, DType t, Val *x) { return val_select_max(g, t, x[0], x[1], false); }

/* Quotient rounded down and its remainder, for integers. */
static void int_divmod(Gen *g, DType t, Val *x, Val *quot, Val *rem) {
  LLVMBuilderRef b = g->b;
  LLVMTypeRef ty = val_type(g, t);
  Val zero = LLVMConstInt(ty, 0, 0), one = LLVMConstInt(ty, 1, 0), all = LLVMConstAllOnes(ty);
  Val by0 = LLVMBuildICmp(b, LLVMIntEQ, x[1], zero, "");
  if (dtype_info[t].class != 'i') {
    Val y = LLVMBuildSelect(b, by0, one, x[1], "");
    *quot = LLVMBuildSelect(b, by0, zero, LLVMBuildUDiv(b, x[0], y, ""), "");
    *rem = LLVMBuildSelect(b, by0, zero, LLVMBuildURem(b, x[0], y, ""), "");
    return;
  }
  Val by_1 = LLVMBuildICmp(b, LLVMIntEQ, x[1], all, "");
  Val y = LLVMBuildSelect(b, LLVMBuildOr(b, by0, by_1, ""), one, x[1], "");
  Val q = LLVMBuildSDiv(b, x[0], y, ""), r = LLVMBuildSRem(b, x[0], y, "");
  Val left = LLVMBuildICmp(b, LLVMIntNE, r, zero, "");
  Val signs = LLVMBuildICmp(b, LLVMIntSLT, LLVMBuildXor(b, r, y, ""), zero, "");
  Val down = LLVMBuildAnd(b, left, signs, "");
  q = LLVMBuildAdd(b, q, LLVMBuildSExt(b, down, ty, ""), "");
  *rem = LLVMBuildAdd(b, r, LLVMBuildSelect(b, down, y, zero, ""), "");
  q = LLVMBuildSelect(b, by_1, LLVMBuildSub(b, zero, x[0], ""), q, "");
  *quot = LLVMBuildSelect(b, by0, zero, q, "");
}

static Val map_div(Gen *g, DType t, Val *x) {
  Val q, r;
  if (dtype_is_float(t)) return LLVMBuildFDiv(g->b, x[0], x[1], "");
  if (t == DT_BOOL) return LLVMBuildAnd(g->b, x[0], x[1], "");
  int_divmod(g, t, x, &q, &r);
  return q;
}

/* x - y trunc(x/y). On the CPU fmod, which is exact; on the GPU in double, where it is exact for quotients below 2^53. */
static Val float_rem(Gen *g, LLVMTypeRef t, Val x, Val y) {
  LLVMBuilderRef b = g->b;
  LLVMTypeRef d = g->f64;
  if (!g->gpu) return LLVMBuildFRem(b, x, y, "");
  if (t != d) x = LLVMBuildFPExt(b, x, d, ""), y = LLVMBuildFPExt(b, y, d, "");
  Val zero = LLVMConstReal(d, 0), q = LLVMBuildFDiv(b, x, y, "");
  q = gen_call(g, "llvm.trunc", d, 1, &q);
  Val r = math_fma(g, d, LLVMBuildFNeg(b, q, ""), y, x);
  r = LLVMBuildSelect(b, LLVMBuildFCmp(b, LLVMRealOEQ, q, zero, ""), x, r, "");
  return t != d ? LLVMBuildFPTrunc(b, r, t, "") : r;
}

static Val float_mod(Gen *g, DType dt, Val x, Val y) {
  LLVMBuilderRef b = g->b;
  LLVMTypeRef t = val_type(g, dt);
  Val zero = LLVMConstReal(t, 0), r = float_rem(g, t, x, y);
  Val r_neg = LLVMBuildFCmp(b, LLVMRealOLT, r, zero, "");
  Val y_neg = LLVMBuildFCmp(b, LLVMRealOLT, y, zero, "");
  Val off = LLVMBuildAnd(b, LLVMBuildFCmp(b, LLVMRealONE, r, zero, ""),
                         LLVMBuildXor(b, r_neg, y_neg, ""), "");
  return LLVMBuildSelect(b, off, LLVMBuildFAdd(b, r, y, ""), r, "");
}

static Val map_mod(Gen *g, DType t, Val *x) {
  Val q, r;
  if (dtype_is_float(t)) return float_mod(g, t, x[0], x[1]);
  if (t == DT_BOOL) return LLVMConstInt(g->i1, 0, 0);
  int_divmod(g, t, x, &q, &r);
  return r;
}

/* The module's function i64 ipow(i64 x, i64 y) for y >= 0: squares and multiplies modulo 2^64. */
static Val ipow_fn(Gen *g, LLVMTypeRef *type) {
  *type = LLVMFunctionType(g->i64, (LLVMTypeRef[]){g->i64, g->i64}, 2, 0);
  Val fn = LLVMGetNamedFunction(g->m, "kl_ipow");
  if (fn) return fn;
  fn = LLVMAddFunction(g->m, "kl_ipow", *type);
  LLVMSetLinkage(fn, LLVMInternalLinkage);
  LLVMBuilderRef b = LLVMCreateBuilderInContext(g->c);
  LLVMBasicBlockRef entry = LLVMAppendBasicBlockInContext(g->c, fn, "");
  LLVMBasicBlockRef loop = LLVMAppendBasicBlockInContext(g->c, fn, "");
  LLVMBasicBlockRef done = LLVMAppendBasicBlockInContext(g->c, fn, "");
  Val one = LLVMConstInt(g->i64, 1, 0), zero = LLVMConstInt(g->i64, 0, 0);
  LLVMPositionBuilderAtEnd(b, entry);
  LLVMBuildBr(b, loop);
  LLVMPositionBuilderAtEnd(b, loop);
  Val x = LLVMBuildPhi(b, g->i64, ""), y = LLVMBuildPhi(b, g->i64, ""),
      r = LLVMBuildPhi(b, g->i64, "");
  Val odd = LLVMBuildICmp(b, LLVMIntNE, LLVMBuildAnd(b, y, one, ""), zero, "");
  Val r2 = LLVMBuildSelect(b, odd, LLVMBuildMul(b, r, x, ""), r, "");
  Val x2 = LLVMBuildMul(b, x, x, ""), y2 = LLVMBuildLShr(b, y, one, "");
  LLVMBuildCondBr(b, LLVMBuildICmp(b, LLVMIntEQ, y2, zero, ""), done, loop);
  Val from[3] = {LLVMGetParam(fn, 0), LLVMGetParam(fn, 1), one}, next[3] = {x2, y2, r2},
      phi[3] = {x, y, r};
  for (int i = 0; i < 3; i++)
    LLVMAddIncoming(phi[i], (Val[]){from[i], next[i]}, (LLVMBasicBlockRef[]){entry, loop}, 2);
  LLVMPositionBuilderAtEnd(b, done);
  LLVMBuildRet(b, r2);
  LLVMDisposeBuilder(b);
  return fn;
}

static Val int_pow(Gen *g, DType t, Val x, Val y) {
  LLVMBuilderRef b = g->b;
  LLVMTypeRef type, ty = val_type(g, t);
  bool sign = dtype_info[t].class == 'i';
  Val zero = LLVMConstInt(ty, 0, 0), one = LLVMConstInt(ty, 1, 0), all = LLVMConstAllOnes(ty);
  LLVMOpcode widen = sign ? LLVMSExt : LLVMZExt;
  Val fn = ipow_fn(g, &type);
  Val wide[2] = {x, y};
  for (int i = 0; i < 2 && ty != g->i64; i++)
    wide[i] = LLVMBuildCast(b, widen, wide[i], g->i64, "");
  Val r = LLVMBuildCall2(b, type, fn, wide, 2, "");
  if (ty != g->i64) r = LLVMBuildTrunc(b, r, ty, "");
  if (!sign) return r;
  Val odd = LLVMBuildICmp(b, LLVMIntNE, LLVMBuildAnd(b, y, one, ""), zero, "");
  Val is_1 = LLVMBuildICmp(b, LLVMIntEQ, x, all, ""), is1 = LLVMBuildICmp(b, LLVMIntEQ, x, one, "");
  Val inv = LLVMBuildSelect(b, is_1, LLVMBuildSelect(b, odd, all, one, ""),
                            LLVMBuildSelect(b, is1, one, zero, ""), "");
  return LLVMBuildSelect(b, LLVMBuildICmp(b, LLVMIntSLT, y, zero, ""), inv, r, "");
}

static Val map_pow(Gen *g, DType t, Val *x) {
  if (dtype_is_float(t)) return math_pow(g, val_type(g, t), x[0], x[1]);
  if (t == DT_BOOL) return LLVMBuildOr(g->b, x[0], LLVMBuildNot(g->b, x[1], ""), "");
  return int_pow(g, t, x[0], x[1]);
}

static Val compare(Gen *g, DType t, Val *x, LLVMRealPredicate f, LLVMIntPredicate s,
                   LLVMIntPredicate u) {
  if (dtype_is_float(t)) return LLVMBuildFCmp(g->b, f, x[0], x[1], "");
  return LLVMBuildICmp(g->b, dtype_info[t].class == 'i' ? s : u, x[0], x[1], "");
}

static Val map_lt(Gen *g, DType t, Val *x) {
  return compare(g, t, x, LLVMRealOLT, LLVMIntSLT, LLVMIntULT);
}
static Val map_le(Gen *g, DType t, Val *x) {
  return compare(g, t, x, LLVMRealOLE, LLVMIntSLE, LLVMIntULE);
}
static Val map_eq(Gen *g, DType t, Val *x) {
  return compare(g, t, x, LLVMRealOEQ, LLVMIntEQ, LLVMIntEQ);
}

static Val map_exp(Gen *g, DType t, Val *x) { return math_exp(g, val_type(g, t), x[0]); }
static Val map_log(Gen *g, DType t, Val *x) { return math_log(g, val_type(g, t), x[0]); }
static Val map_sin(Gen *g, DType t, Val *x) { return math_sin(g, val_type(g, t), x[0]); }
static Val map_tanh(Gen *g, DType t, Val *x) { return math_tanh(g, val_type(g, t), x[0]); }
static Val map_erf(Gen *g, DType t, Val *x) { return math_erf(g, val_type(g, t), x[0]); }
static Val map_sqrt(Gen *g, DType t, Val *x) {
  return gen_call(g, "llvm.sqrt", val_type(g, t), 1, x);
}
static Val map_floor(Gen *g, DType t, Val *x) {
  return gen_call(g, "llvm.floor", val_type(g, t), 1, x);
}

static MapFn *const maps[P_N] = {
    [P_EXP] = map_exp,   [P_LOG] = map_log, [P_SQRT] = map_sqrt,   [P_SIN] = map_sin,
    [P_TANH] = map_tanh, [P_ERF] = map_erf, [P_FLOOR] = map_floor, [P_ADD] = map_add,
    [P_SUB] = map_sub,   [P_MUL] = map_mul, [P_DIV] = map_div,     [P_MOD] = map_mod,
    [P_POW] = map_pow,   [P_MAX] = map_max, [P_MIN] = map_min,     [P_LT] = map_lt,
    [P_LE] = map_le,     [P_EQ] = map_eq};

/* ---- conversions ---- */

static Val saturate(Gen *g, DType from, DType to, Val x) {
  bool sign = dtype_info[to].class == 'i';
  const char *name = sign ? "llvm.fptosi.sat" : "llvm.fptoui.sat";
  LLVMTypeRef t[2] = {val_type(g, to), val_type(g, from)};
  unsigned id = LLVMLookupIntrinsicID(name, 15);
  Val fn = LLVMGetIntrinsicDeclaration(g->m, id, t, 2);
  return LLVMBuildCall2(g->b, LLVMIntrinsicGetType(g->c, id, t, 2), fn, &x, 1, "");
}

static Val cast(Gen *g, DType from, DType to, Val x) {
  LLVMBuilderRef b = g->b;
  LLVMTypeRef tf = val_type(g, from), tt = val_type(g, to);
  bool sign = dtype_info[from].class == 'i';
  if (from == to) return x;
  if (dtype_is_float(from)) {
    if (to == DT_BOOL) return LLVMBuildFCmp(b, LLVMRealUNE, x, LLVMConstReal(tf, 0), "");
    if (!dtype_is_float(to)) return saturate(g, from, to, x);
    if (tf != tt) x = LLVMBuildFPCast(b, x, tt, "");
    if (to == DT_FLOAT16) x = LLVMBuildFPExt(b, LLVMBuildFPTrunc(b, x, g->f16, ""), tt, "");
    return to == DT_BFLOAT16 ? bfloat_value(g, bfloat_bits(g, x)) : x;
  }
  if (to == DT_BOOL) return LLVMBuildICmp(b, LLVMIntNE, x, LLVMConstInt(tf, 0, 0), "");
  if (!dtype_is_float(to)) return LLVMBuildIntCast2(b, x, tt, sign, "");
  return sign ? LLVMBuildSIToFP(b, x, tt, "") : LLVMBuildUIToFP(b, x, tt, "");
}

Val val_map(Gen *g, const Node *n, Val *x) {
  if (n->prim == P_CAST) return cast(g, n->in[0]->dtype, n->dtype, x[0]);
  if (n->prim == P_SELECT) return LLVMBuildSelect(g->b, x[0], x[1], x[2], "");
  return maps[n->prim](g, n->in[0]->dtype, x);
}

/* ---- reductions ---- */

Val reduce_init(Gen *g, Prim p, DType t) {
  LLVMTypeRef ty = val_type(g, t);
  unsigned bits = (unsigned)dtype_info[t].size * 8;
  if (p != P_RMAX) return val_const(g, t, p == P_RPROD, p == P_RPROD);
  if (dtype_is_float(t)) return LLVMConstReal(ty, -INFINITY);
  return LLVMConstInt(ty, dtype_info[t].class == 'i' ? (uint64_t)1 << (bits - 1) : 0, 0);
}

Val reduce_step(Gen *g, Prim p, DType t, Val acc, Val x, bool reassoc) {
  Val two[2] = {acc, x}, r;
  if (p == P_RMAX) {
    if (!dtype_is_float(t) || g->gpu || !reassoc) return val_select_max(g, t, acc, x, true);
    r = gen_call(g, "llvm.maximum", val_type(g, t), 2, two);
    LLVMSetFastMathFlags(r, LLVMFastMathNoSignedZeros); /* either zero may be the larger */
    return r;
  }
  r = p == P_RSUM ? map_add(g, t, two) : map_mul(g, t, two);
  if (reassoc && dtype_is_float(t) && LLVMIsAInstruction(r))
    LLVMSetFastMathFlags(r, LLVMFastMathAllowReassoc);
  return r;
}
