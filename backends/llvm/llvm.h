/* The shared generator: Kernels -> LLVM IR -> machine code (CPU) or PTX (CUDA). Private to the backends.
 *
 * emit.c     a node at an index -> an LLVM value: recursively over everything that fusion put inside a kernel
 * index.c    index vectors as affine expressions over loop variables: views, reshapes, ranges, guards
 * prim.c     the primitives on scalars, per element type
 * math.c     exp, log, tanh, erf, sin, pow as straight-line code that vectorises
 * merge.c    which dimensions are traversed as one loop
 * nest.c     the shape of a kernel's loop nest; tasks
 * loop.c     the loop nests around emit, for the CPU and for CUDA
 * stencil.c  depthwise contractions in register tiles
 * kernel.c   functions around the nests
 * target.c   target machines, optimisation, texts and objects
 * jit.c      a process-wide cache of compiled kernels on ORC */
#ifndef KILN_LLVM_H
#define KILN_LLVM_H
#include "../backend.h"

/* Which code of a kernel. */
typedef enum LoopPart {
  LOOP_MAIN, /* K_LOOP and K_CONCAT: the kernel itself; tasks = loop_tasks() */
  /* K_CONTRACT: the maps after the core, over the rows begin..end-1 of the first axis of ext whose extent is > 1; the
   * raw result of those rows has been written to the buffer of core if that is an output, else of outputs[0].
   * The function is NULL if there is nothing to do. */
  LOOP_EPILOGUE,
  LOOP_CONTRACT /* K_CONTRACT: the whole kernel as plain loops, any AffDim; tasks = loop_tasks() */
} LoopPart;

typedef struct LoopModule LoopModule;

/* The number of tasks of the function; fixed by the shapes. */
int64_t loop_tasks(const Kernel *k, LoopPart part);
/* Is LOOP_CONTRACT's code of this kernel more than plain loops: as fast as the machine can do it? */
bool loop_is_stencil(const Kernel *k);
/* Code for part[i] of k[i] (part NULL: LOOP_MAIN of all), with the signature of backend.h; `self` is unused. fn[i] lives until
 * loops_free. Equal kernels share code across modules. E-GEN-001. Any thread. */
LoopModule *loops_compile(const Graph *g, int n, Kernel *const *k, const LoopPart *part,
                          const CompileOptions *o, KernelFn **fn);
void loops_free(LoopModule *m); /* NULL is allowed */
/* The same as text ("llvm", "asm", "ptx") or object bytes ("object") for o->target. E-GEN-001, E-GEN-002. */
bool loops_emit(const Graph *g, int n, Kernel *const *k, const LoopPart *part,
                const CompileOptions *o, const char *what, Str *out);
/* Lines "key: value": the host's CPU name and the vector features that code is generated for. */
void loops_describe(Str *out);

#endif
