/* The module of code generation, libkiln-codegen.so, as the rest of Kiln sees it: one function that hands out one table.
 * The module has copies of its own of what it uses of ir (memory, diagnostics), so that it needs nothing of the program that
 * opens it; a call brings along the program's tables, results go into memory of them, and no jump crosses the border. */
#ifndef KILN_CODEGEN_H
#define KILN_CODEGEN_H
#include "../cuda/cuda.h"
#include "llvm.h"

typedef struct CodegenHost {
  MemTable mem;
  VfsTable vfs;
  size_t mem_chunk;
} CodegenHost;

/* One function to compile. */
typedef struct CodegenJob {
  CodeKind kind;
  const void *what;
  const char *name; /* of a dump; in a text, the symbol */
  uint8_t *object;  /* out: an ELF file with the function CODEGEN_SYMBOL; of the host's memory */
  size_t n;
} CodegenJob;
#define CODEGEN_SYMBOL "kernel"

/* Bytes of the host's memory. */
typedef struct CodegenText {
  uint8_t *bytes;
  size_t n;
} CodegenText;

typedef enum CodegenStatus { CODEGEN_OK, CODEGEN_FAILED, CODEGEN_NO_MEMORY } CodegenStatus;
typedef struct Codegen {
  /* All jobs or none. Jobs of one call run in parallel. */
  CodegenStatus (*compile)(const CodegenHost *h, int n, CodegenJob *jobs, const CompileOptions *o,
                           Diag *why);
  CodegenStatus (*emit)(const CodegenHost *h, int n, const CodegenJob *jobs,
                        const CompileOptions *o, const char *what, CodegenText *out, Diag *why);
  CodegenStatus (*cuda)(const CodegenHost *h, int n, Kernel *const *k, const CudaTarget *t,
                        const char *what, CodegenText *out, Diag *why);
  CodegenStatus (*describe)(const CodegenHost *h, CodegenText *out, Diag *why);
} Codegen;

/* What the module exports, under the name CODEGEN_ENTRY. NULL: it was not built with this program. */
typedef const Codegen *CodegenEntry(const char *build);
#define CODEGEN_ENTRY "kiln_codegen"
#endif
