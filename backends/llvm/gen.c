/* Values and places of the generator. Code of loop depth d is appended to the block at[d], before the branch into the
 * loop inside it if that is open: so what does not depend on the inner loops lands outside them, and what was emitted
 * once for an index is found again (memo) until its loop is closed. */
#include "gen.h"
#include <string.h>

void gen_types(Gen *g, LLVMContextRef c) {
  g->c = c;
  g->i1 = LLVMInt1TypeInContext(c);
  g->i8 = LLVMInt8TypeInContext(c);
  g->i16 = LLVMInt16TypeInContext(c);
  g->i32 = LLVMInt32TypeInContext(c);
  g->i64 = LLVMInt64TypeInContext(c);
  g->f16 = LLVMHalfTypeInContext(c);
  g->f32 = LLVMFloatTypeInContext(c);
  g->f64 = LLVMDoubleTypeInContext(c);
  g->ptr = LLVMPointerTypeInContext(c, g->gpu ? 1 : 0);
  g->md_access = LLVMGetMDKindIDInContext(c, "llvm.access.group", 17);
  g->md_loop = LLVMGetMDKindIDInContext(c, "llvm.loop", 9);
}

void gen_block(Gen *g, LLVMBasicBlockRef bb, int depth) {
  if (g->n_blocks == g->cap_blocks)
    g->blocks = vec_grow(g->a, g->blocks, sizeof *g->blocks, &g->cap_blocks);
  g->blocks[g->n_blocks].bb = bb;
  g->blocks[g->n_blocks++].depth = depth;
  g->at[depth] = bb;
}

void gen_at(Gen *g, int depth) {
  LLVMBasicBlockRef bb = g->at[depth];
  Val end = LLVMGetBasicBlockTerminator(bb);
  if (end)
    LLVMPositionBuilderBefore(g->b, end);
  else
    LLVMPositionBuilderAtEnd(g->b, bb);
}

int gen_depth(Gen *g, Val v) {
  if (!v || !LLVMIsAInstruction(v)) return 0;
  LLVMBasicBlockRef bb = LLVMGetInstructionParent(v);
  for (int i = g->n_blocks - 1; i >= 0; i--)
    if (g->blocks[i].bb == bb) return g->blocks[i].depth;
  return g->depth;
}

void gen_at_vals(Gen *g, int n, const Val *v) {
  int deep = 0;
  for (int i = 0; i < n; i++) {
    int d = gen_depth(g, v[i]);
    if (d > deep) deep = d;
  }
  gen_at(g, deep);
}

Val gen_and(Gen *g, Val x, Val y) {
  if (!x || !y) return x ? x : y;
  gen_at_vals(g, 2, (Val[]){x, y});
  return LLVMBuildAnd(g->b, x, y, "");
}

Val gen_compare(Gen *g, LLVMIntPredicate p, Val x, Val y) {
  gen_at_vals(g, 2, (Val[]){x, y});
  return LLVMBuildICmp(g->b, p, x, y, "");
}

Val gen_select(Gen *g, Val c, Val x, Val y) {
  gen_at_vals(g, 3, (Val[]){c, x, y});
  return LLVMBuildSelect(g->b, c, x, y, "");
}

int gen_var(Gen *g, Val v, int64_t lo, int64_t hi) {
  vec_add(g->a, &g->vars, ((LoopVar){v, lo, hi}));
  return g->vars.n - 1;
}

static uint64_t gen_hash(const int64_t *key, int n) {
  uint64_t h = 0x9e3779b97f4a7c15u;
  for (int i = 0; i < n; i++) {
    h = (h ^ (uint64_t)key[i]) * 0xff51afd7ed558ccdu;
    h ^= h >> 32;
  }
  return h;
}

Memo *memo_find(Gen *g, const int64_t *key, int n) {
  uint64_t h = gen_hash(key, n);
  for (int d = g->depth; d >= 0; d--)
    for (Memo *m = g->memo[d][h % GEN_BUCKETS]; m; m = m->next)
      if (m->hash == h && m->n == n && !memcmp(m->key, key, (size_t)n * sizeof *key)) return m;
  return NULL;
}

Memo *memo_add(Gen *g, int depth, const int64_t *key, int n) {
  Memo *m = arena_new_of(g->a, Memo);
  m->hash = gen_hash(key, n);
  m->n = n;
  m->key = arena_dup(g->a, key, (size_t)n * sizeof *key);
  Memo **head = &g->memo[depth][m->hash % GEN_BUCKETS];
  m->next = *head;
  return *head = m;
}

void memo_drop(Gen *g, int depth) {
  for (int d = depth; d < GEN_DEPTH; d++) memset(g->memo[d], 0, sizeof g->memo[d]);
}

Val gen_i64(Gen *g, int64_t v) { return LLVMConstInt(g->i64, (uint64_t)v, 0); }

Val gen_call(Gen *g, const char *intrinsic, LLVMTypeRef t, int n, Val *args) {
  unsigned id = LLVMLookupIntrinsicID(intrinsic, strlen(intrinsic));
  size_t n_types = t ? 1 : 0;
  Val fn = LLVMGetIntrinsicDeclaration(g->m, id, &t, n_types);
  LLVMTypeRef type = LLVMIntrinsicGetType(g->c, id, &t, n_types);
  return LLVMBuildCall2(g->b, type, fn, args, (unsigned)n, "");
}

Val gen_min(Gen *g, Val x, Val y) { return gen_call(g, "llvm.smin", g->i64, 2, (Val[]){x, y}); }
Val gen_max(Gen *g, Val x, Val y) { return gen_call(g, "llvm.smax", g->i64, 2, (Val[]){x, y}); }

Val gen_access(Gen *g, Val access) {
  if (g->access) LLVMSetMetadata(access, g->md_access, LLVMMetadataAsValue(g->c, g->access));
  return access;
}
