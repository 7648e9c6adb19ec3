/* Kernels and Buffers: what fusion and memory planning make of a Graph. Included through ir.h. */
#ifndef KILN_KERNEL_H
#define KILN_KERNEL_H

#include "graph.h"

/* ---- Kernels: what fusion makes of a Graph ---- */

typedef enum KernelKind {
  K_LOOP,
  K_CONTRACT,
  K_SCATTER,
  K_CONCAT,
  K_SORT,
  K_CALL,
  K_ATTENTION,
  K_ATTENTION_GRAD
} KernelKind;

/* What plain sums of convolutions in float32 err by, relative to the largest result, with up to 512 channels of 3 x 3. */
#define SUM_ERROR 2e-6

/* A Kernel computes its outputs (materialised nodes) from its inputs (materialised nodes or FEED/STATE/DATA sources).
 * Everything in between is recomputed in registers: views, maps, CONST, IOTA, RANDOM, GATHER, CHECK and reductions
 * over at most KL_SMALL_REDUCE elements are inlined where they are used, at whatever index they are used.
 *
 * K_LOOP: the iteration domain is `rank` loops of extents ext[]; `reduce` marks the reduced ones (none: a pure map).
 *   A sweep reduction is a class R node (ARGMAX too) whose operand has shape ext and whose axes are exactly `reduce`,
 *   whatever its size: kernel_sweeps(). Every other reduction inside is small and inlined at its use.
 *   Each root (an output, or a sweep reduction inside) is one of
 *     full   a value of shape ext;                     stored at the point
 *     reduce a sweep reduction; result: 1 at the reduced axes
 *     row    a map over reduce results and other values of the row shape (ext with 1 at the reduced axes)
 *   A sweep reduction is only ever used at its own row: by row maps, or it or a row map of it through an expand back to ext.
 *   Values that depend on reductions of level s are computed in a later sweep over the reduced axes than level s.
 *   At one point all loads come before all stores, so that several outputs may share buffers with aligned inputs.
 * K_CONTRACT: core is the CONTRACT; outputs[0] is it, or the last of a chain of maps (the epilogue) of core's shape in which
 *   other operands are read at the same index or broadcast; ext = the result's dims, reduce = 0. If core itself is not an
 *   output it exists only inside outputs[0]'s buffer, which has core's type and is never shared with an input. Further
 *   outputs are other maps of the epilogue (all have core's shape), or core. If outputs are written to state, core is one of them, and
 *   aligned inputs are state that only the epilogue reads. One operand of core may be computed inside where
 *   it is read (kernel_operand): by maps from one input of its shape and smaller ones.
 * K_SCATTER, K_SORT, K_CONCAT, K_CALL: core is the node; operands are inputs (K_CALL's outputs: the call and its OUTs;
 *   K_CONCAT: the producers of operands may be inlined like in a map; K_SCATTER: base may share the output's buffer, and the
 *   index may be what scatter_rows says).
 * K_ATTENTION: core is the CONTRACT that sums values with weights; outputs[0] is core, ext its dims, reduce = 0. Inside are another
 *   CONTRACT, which makes the scores, and what a K_LOOP that reduces the last axis of the scores' shape makes of them, the
 *   weights in the end; scores are read at the point only. Further outputs are values of that K_LOOP's row shape.
 * K_ATTENTION_GRAD: core is the CONTRACT that makes the gradient of weights, of the scores' shape. Inside are another, which makes the
 *   scores, and a K_LOOP as above, which makes of both, at the point, what the outputs are sums with: gradients of the scores, or
 *   weights. Outputs are CONTRACTs with these, over keys or over rows. */
typedef struct KernelInput {
  Node *node;
  bool aligned;  /* read only at the index that is written: may share its buffer */
  bool constant; /* the same in every run until somebody sets the state that it comes from */
} KernelInput;
typedef struct Kernel {
  KernelKind kind;
  int id;           /* position in Graph.kernels */
  const char *name; /* "k03_conv2d_relu": unique in its Graph */
  int rank;
  int64_t ext[KL_RANK];
  uint32_t reduce;
  Node *core;        /* NULL for K_LOOP */
  VEC(Node *) nodes; /* computed inside, operands before users, roots included */
  VEC(KernelInput) inputs;
  VEC(Node *) outputs;
  /* of convolutions, relative to the largest result: algorithms other than plain sums may err by so much; 0: there are none */
  double conv_error;
  Tuning tuning;
  const struct CompileOptions *options; /* where it will run; NULL: not known */
  /* By the pass chain: this kernel and the next chain-1 may run together, index by index of ext[0]; 0: it is not the first of
   * such. Each reads what the others store at its own index only. */
  int chain;
  bool chained; /* one of such; then no output shares a buffer with an input */
  /* filled in by the backend's schedule() before memory is planned */
  /* ext[0], if the tasks of the last phase go over it from the first to the last, each reading what depends on it at its own
   * index only; -1 if not so; 0: not known */
  int64_t items;
  int choice;           /* of the backend's algorithms for it; 0: by its rule */
  char by[24];          /* the algorithm, for people; "": there is only one */
  int64_t workspace;    /* bytes of shared scratch the kernel wants in the arena, 0 = none */
  int64_t flops, bytes; /* arithmetic and traffic, for profiles */
  int prepares;         /* > 0: the first phase fills the workspace from input prepares-1 alone */
  uint64_t packing;     /* kernels of the same prepare the same from the same input; 0: not known */
  struct Buffer *ws;    /* the planned workspace */
  bool constant;        /* all its inputs are, and so what it computes: see B_KEPT */
} Kernel;
/* Is n, a node of k, one of its sweep reductions? */
static inline bool kernel_sweeps(const Kernel *k, const Node *n) {
  if (!prim_is_reduce(n->prim) || k->reduce == 0 || (uint32_t)n->i != k->reduce) return false;
  if (n->in[0]->rank != k->rank) return false;
  for (int d = 0; d < k->rank; d++)
    if (n->in[0]->dims[d] != k->ext[d]) return false;
  return true;
}

/* The input of k that holds n, or what n is a reshape of; -1: none. In graph.c. */
int kernel_input(const Kernel *k, const Node *n);
/* What a SCATTER's index is spread from: one for all of a row behind the axis, of each item before it or of all alike. NULL: it is
 * not like that. */
Node *scatter_rows(const Node *n);
/* The input of a K_SCATTER that holds its index, or -1. What (o, i, j) of [outer, n, inner] goes by is its element
 * o * step[0] + i * step[1] + j * step[2]. */
int kernel_index(const Kernel *k, int64_t step[3]);
/* Of a K_CONTRACT: which operand of core it computes from its inputs; -1: both are inputs. */
int kernel_operand(const Kernel *k);

/* Storage: a range of the executable's arena, or bound at run time to a feed, a scope tensor or constant data. Or kept:
 * values that depend only on data, and on state that the program does not write, stay from run to run. Or local: of what only
 * the kernels of one chain store and read, each thread has one item's part, which the next item overwrites.
 * Nodes that are reshapes of a materialised node share its buffer. */
typedef enum BufferKind { B_ARENA, B_FEED, B_STATE, B_DATA, B_KEPT, B_LOCAL } BufferKind;
typedef struct Buffer {
  BufferKind kind;
  int id;           /* position in Graph.buffers */
  const char *name; /* of FEED and STATE */
  int64_t bytes,
      offset; /* B_ARENA, B_KEPT, B_LOCAL: offset in the arena, what is kept or a thread's memory (64-byte aligned) */
  int first, last;  /* kernels between which it is live: first writer, last reader */
  const void *data; /* B_DATA */
  bool written;     /* B_STATE: by the program */
} Buffer;

#endif
