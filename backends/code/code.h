/* Compiled code: found in the process, found on the disk, or generated. Private to the backends.
 *
 * cache.c     the code of the process, by key; the disk behind it
 * elf.c       object files -> images, which need no linker and no LLVM
 * image.c     images in memory that can run; their form on the disk
 * machine.c   what generated code depends on of this machine
 * codegen.c   the module of code generation, opened when something must be compiled
 * loops.c     requests for the kernels and microkernels of backends/llvm, their keys */
#ifndef KILN_CODE_H
#define KILN_CODE_H
#include "../backend.h"

/* Who generates: a row of the table in backends/llvm/codegen.c. */
typedef enum CodeKind { CODE_LOOP, CODE_MICRO } CodeKind;

/* Requests for code, and then the code of them: counted by reference, equal keys share code across batches. */
typedef struct CodeBatch CodeBatch;
CodeBatch *code_batch(Arena *a); /* lives in the arena; code_free gives up the code */
/* key: all that the code depends on besides the generator and the machine. what: for the generator, copied. code_make
 * stores a function pointer at fn. */
void code_want(CodeBatch *b, CodeKind kind, const char *name, const void *what, size_t what_size,
               const Str *key, void *fn);
/* All or nothing. Any thread. E-GEN-001, E-GEN-003. */
bool code_make(CodeBatch *b, const CompileOptions *o);
/* What code_make would generate, as text ("llvm", "asm") or object bytes ("object") for o->target; nothing else is done with
 * the batch. Functions have the names of the requests. E-GEN-001, E-GEN-002, E-GEN-003. */
bool code_emit(const CodeBatch *b, const CompileOptions *o, const char *what, Str *out);
void code_free(CodeBatch *b); /* NULL is allowed */
/* ---- images ---- */

/* A function's machine code and constants, relocated but for what depends on the address. */
typedef struct ImageFix {
  uint32_t at; /* of 8 bytes */
  uint32_t to; /* an offset in the image, or a row of the table of helpers */
} ImageFix;
typedef struct Image {
  const uint8_t *bytes;
  size_t n, room, entry; /* room: of the bytes, then zeros */
  VEC(ImageFix) inside, helpers;
} Image;
enum {
  IMAGE_MAX = 1 << 28,
#if defined(__aarch64__)
  IMAGE_ALIGN = 4096 /* instructions hold numbers of pages */
#else
  IMAGE_ALIGN = 64
#endif
};
/* An ELF relocatable file with the one global function `symbol`; false: why says what is not understood. */
bool image_of_object(Arena *a, const uint8_t *object, size_t n, const char *symbol, Image *image,
                     const char **why);
int helper_find(const char *name); /* -1: no run-time helper has that name */
void image_encode(const Image *image, Str *out);
bool image_decode(Arena *a, const uint8_t *p, size_t n, Image *image); /* false: damaged */

/* Images in executable memory. */
typedef struct Region Region;
/* entry[i] is the address of image i. E-MEM-001. */
Region *region_new(Arena *a, int n, const Image *images, void **entry);
void region_free(Region *r);

/* machine.c */
void machine_key(Str *out);

/* codegen.c: calls of the module. Where it refuses memory it does not return. */
struct CodegenJob;
bool codegen_compile(int n, struct CodegenJob *jobs, const CompileOptions *o);
bool codegen_emit(int n, const struct CodegenJob *jobs, const CompileOptions *o, const char *what,
                  Str *out);
const char *codegen_build(void); /* the generator's version */
#endif
