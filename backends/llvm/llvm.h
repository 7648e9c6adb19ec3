/* The shared generator: Kernels -> LLVM IR -> machine code (CPU) or PTX (CUDA). Private to the backends. All of it but
 * nest.c, merge.c and stencil.c, which plan without LLVM, is in the module libkiln-codegen.so, which ../code opens when there is
 * something to compile.
 *
 * emit.c     a node at an index -> an LLVM value: recursively over everything that fusion put inside a kernel
 * index.c    index vectors as affine expressions over loop variables: views, reshapes, ranges, guards
 * prim.c     the primitives on scalars, per element type
 * math.c     exp, log, tanh, erf, sin, pow as straight-line code that vectorises
 * merge.c    which dimensions are traversed as one loop
 * nest.c     the shape of a kernel's loop nest; tasks
 * loop.c     the loop nests around emit
 * point.c    what happens at their points, for the CPU and for CUDA
 * operand.c  operands of contractions that are computed where they are read
 * stencil.c  depthwise contractions in register tiles: the plan; stencil_gen.c: the code
 * kernel.c   functions around the nests
 * cuda_*.c   the same for CUDA: functions around the launches that backends/cuda plans, and their loop nests
 * micro_ir.c microkernels
 * target.c   target machines, optimisation, texts and objects
 * codegen.c  the module's entry: objects of many functions in parallel */
#ifndef KILN_LLVM_H
#define KILN_LLVM_H
#include "../code/code.h"

/* Which code of a kernel. */
typedef enum LoopPart {
  LOOP_MAIN, /* K_LOOP and K_CONCAT: the kernel itself; tasks = loop_tasks() */
  /* K_CONTRACT: the maps after the core, over the rows begin..end-1 of the first axis of ext whose extent is > 1; the
   * raw result of those rows has been written to the buffer of core if that is an output, else of outputs[0].
   * The function is NULL if there is nothing to do. */
  LOOP_EPILOGUE,
  LOOP_CONTRACT, /* K_CONTRACT: the whole kernel as plain loops, any AffDim; tasks = loop_tasks() */
  LOOP_PANELS,   /* LOOP_EPILOGUE over some columns: `self` points to an EpilogueColumns */
  LOOP_PARTS, /* the second step of LOOP_CONTRACT: adds up the sums that it left in the workspace */
  LOOP_ROWS,  /* K_LOOP that reduces its last axis: a task is one row, row-major */
  LOOP_OPERAND /* K_CONTRACT: the operand that it computes, rows begin..end-1; `self` is an OperandPart */
} LoopPart;

/* What LOOP_OPERAND stores: elements from..to-1 of each row, the last dimension of the operand, at at[(row-begin)*pitch]. */
typedef struct OperandPart {
  int64_t from, to, pitch;
  void *at;
} OperandPart;

/* Of what LOOP_PANELS does: columns first..end-1 of each of its rows. */
typedef struct EpilogueColumns {
  int64_t first, end;
} EpilogueColumns;

static inline bool loop_is_epilogue(LoopPart part) {
  return part == LOOP_EPILOGUE || part == LOOP_PANELS;
}

typedef struct LoopJob {
  Kernel *kernel;
  LoopPart part;
} LoopJob;

/* The number of tasks of the function; fixed by the shapes. */
int64_t loop_tasks(const Kernel *k, LoopPart part);
/* The columns of a row of the epilogue, where LOOP_PANELS can do some of them; 0: it cannot. */
int64_t loop_columns(const Kernel *k);
/* Are they divided evenly, in order, among the indices of ext[0]? ext[0]; 0: they are not. */
int64_t loop_items(const Kernel *k, LoopPart part);
/* Which rows each of the tasks of one of these has; false: they do not go over the rows in order. */
bool loop_rows(const Kernel *k, LoopPart part, TaskRows *to);
/* Is what a kernel stores so large that it goes to memory, which is slow to take what no cache has? Known once memory is planned. */
bool stored_in_memory(const Node *x);
/* Is LOOP_CONTRACT's code of this kernel more than plain loops: as fast as the machine can do it? */
bool loop_is_stencil(const Kernel *k);
/* Bytes of workspace that LOOP_CONTRACT fills; 0: there is no second step. */
int64_t loop_workspace(const Kernel *k);
/* Code for a part of k, with the signature of backend.h; `self` is for LOOP_PANELS and LOOP_OPERAND. See code_want. */
void loop_code(CodeBatch *b, Kernel *k, LoopPart part, KernelFn **fn);
/* All that the generated code of a kernel depends on, its name left out; key's arena is used. */
void loop_key(Kernel *k, LoopPart part, Str *key);
/* Lines "key: value": the host's CPU name and the vector features that code is generated for, LLVM's version. */
void loops_describe(Str *out);
/* An epilogue without work. */
static inline bool loop_is_empty(const Kernel *k, LoopPart part) {
  return loop_is_epilogue(part) && k->outputs.n == 1 && k->outputs.v[0] == k->core;
}

#endif
