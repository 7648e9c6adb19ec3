/* The operand of a contraction that is computed where it is read. In: a kernel of which kernel_operand() says so; out: loops
 * over some rows and columns of it, row after row to a place of the caller's. A row is an index of all dimensions but the last. */
#include "gen.h"

static Val field(Gen *g, Val self, size_t offset, LLVMTypeRef t) {
  Val at = gen_i64(g, (int64_t)offset);
  gen_at(g, 0);
  return LLVMBuildLoad2(g->b, t, LLVMBuildInBoundsGEP2(g->b, g->i8, self, &at, 1, ""), "");
}

void gen_operand(Gen *g, Val self, Val begin, Val end) {
  Node *n = g->k->core->in[kernel_operand(g->k)];
  int last = n->rank - 1, row, column;
  int64_t columns = n->dims[last], rows = node_numel(n) / columns;
  Val from = field(g, self, offsetof(OperandPart, from), g->i64),
      to = field(g, self, offsetof(OperandPart, to), g->i64),
      pitch = field(g, self, offsetof(OperandPart, pitch), g->i64),
      place = field(g, self, offsetof(OperandPart, at), g->ptr), one = gen_i64(g, 1);
  LLVMTypeRef t = mem_type(g, n->dtype);
  Loop outer = loop_open(g, begin, end, one, 0, rows - 1, &row);
  gen_at(g, g->depth);
  Val skip = LLVMBuildNSWSub(g->b, outer.phi, begin, "");
  skip = LLVMBuildNSWSub(g->b, LLVMBuildNSWMul(g->b, skip, pitch, ""), from, "");
  Val line = LLVMBuildGEP2(g->b, t, place, &skip, 1, "");
  Loop inner = loop_open(g, from, to, one, 0, columns - 1, &column);
  Index ix = {.rank = n->rank};
  for (int d = 1; d < last; d++) ix.d[d].n = -1;
  if (last > 0) ix.d[0] = aff_var(row, 1);
  ix.d[last] = aff_var(column, 1);
  Val v = emit(g, n, &ix);
  gen_at(g, g->depth);
  val_store(g, n->dtype, v, LLVMBuildGEP2(g->b, t, line, &inner.phi, 1, ""));
  loop_close(g, &inner, LOOP_POINTS);
  loop_close(g, &outer, LOOP_PLAIN);
}
