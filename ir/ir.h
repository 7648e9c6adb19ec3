/* The intermediate representation of Kiln: what every other folder includes.
 *
 * Program  what users build, save, print and exchange: Blocks of Operators and Variables, in the terms of
 *          PaddlePaddle's ProgramDesc. Edited in place.
 * Graph    the compiler's form: single assignment, one Node per primitive tensor operation (prims.def), static
 *          shapes. Made from a Program by expand.c, rewritten by passes, cut into Kernels by fusion.
 *
 * Four headers, each on top of the one before: base.h (element types, memory, diagnostics, files, tensors), program.h,
 * graph.h, kernel.h (what fusion and memory planning make of a Graph).
 *
 * Errors: a function that can fail returns false or NULL and has recorded one diagnostic (diag.c); NULL operands of
 * the graph builders pass through silently, so that one check at the end suffices. Running out of memory does not
 * return: see mem.c. Memory: everything hangs on an Arena and goes with it. Threads: one Program, Graph or Arena
 * belongs to one thread at a time; the diagnostic is per thread. */
#ifndef KILN_IR_H
#define KILN_IR_H

#include "base.h"
#include "program.h"
#include "graph.h"
#include "kernel.h"

#endif
