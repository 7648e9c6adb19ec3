/* What everything stands on: element types and error codes, memory, checked arithmetic, diagnostics, files, the disk cache,
 * tensors. Included through ir.h. */
#ifndef KILN_BASE_H
#define KILN_BASE_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

enum {
  KL_RANK = 12, /* most dimensions of a Node; a Program's variables have at most KL_VAR_RANK */
  KL_VAR_RANK = 9,
  KL_LOOPS = 16, /* most loops of a contraction */
  KL_CHAIN = 8,  /* most kernels of a chain: see Kernel.chain */
  KL_SMALL_REDUCE =
      32 /* a reduction over at most this many elements is unrolled into its consumer */
};

/* ---- element types, attribute types, primitives, error codes: one table each ---- */

typedef enum DType {
#define DTYPE(id, text, paddle, size, ctype, class) DT_##id,
#include "dtypes.def"
#undef DTYPE
  DT_N,
  DT_NONE = DT_N
} DType;

typedef enum Prim {
#define PRIM(id, text, class, n_in, meaning) P_##id,
#include "prims.def"
#undef PRIM
  P_N
} Prim;

typedef enum ErrCode {
  E_NONE,
#define ERR(family, number, summary, text) E_##family##_##number,
#include "errors.def"
#undef ERR
  E_N
} ErrCode;

/* The numbers are those of framework.proto's AttrType. */
typedef enum AttrType {
  AT_INT,
  AT_FLOAT,
  AT_STRING,
  AT_INTS,
  AT_FLOATS,
  AT_STRINGS,
  AT_BOOL,
  AT_BOOLS,
  AT_BLOCK,
  AT_LONG,
  AT_BLOCKS,
  AT_LONGS,
  AT_FLOAT64S,
  AT_VAR,
  AT_VARS,
  AT_FLOAT64,
  AT_SCALAR,
  AT_SCALARS,
  AT_N
} AttrType;

/* The numbers are those of framework.proto's VarType.Type, as far as they name kinds of variables. */
typedef enum VarKind {
  VK_TENSOR = 7,
  VK_SELECTED_ROWS = 8,
  VK_FEED = 9,
  VK_FETCH = 10,
  VK_STEP_SCOPES = 11,
  VK_ARRAY = 13,
  VK_READER = 15,
  VK_RAW = 17
} VarKind;

/* op_role values of PaddlePaddle; they are bits, LOSS is or-ed to FORWARD or BACKWARD. */
enum { ROLE_FORWARD = 0, ROLE_BACKWARD = 1, ROLE_OPTIMIZE = 2, ROLE_LRSCHED = 16, ROLE_LOSS = 256 };

/* ---- mem.c: memory ---- */

typedef struct Arena Arena;
typedef struct Map Map; /* string -> pointer, in insertion order */

/* The table of allocation: tests put in functions that fail. Set before any other call. */
typedef struct MemTable {
  void *(*alloc)(size_t n); /* at least 64-byte aligned, not zeroed; NULL = refused */
  void (*free)(void *p);
} MemTable;
extern MemTable mem_table;
/* bytes of an arena's first chunk, 4096; tests that want a call for each piece make it 1 */
extern size_t mem_chunk;

/* Allocations never return NULL: if memory is refused, E-MEM-001 is recorded and control goes to the innermost
 * guard of the thread (longjmp), or, without one, the diagnostic is printed and the process exits with 1.
 *   MemGuard g;
 *   if (MEM_GUARD(g)) { ...out of memory; clean up what is not in an arena; return false; }
 *   ... ; mem_unguard(&g);   */
#include <setjmp.h>
typedef struct MemGuard {
  jmp_buf jump;
  struct MemGuard *up;
} MemGuard;
void mem_guard(MemGuard *g);
void mem_unguard(MemGuard *g);
_Noreturn void mem_rethrow(void); /* after a guard caught: on to the next outer guard */
#define MEM_GUARD(g) (mem_guard(&(g)), setjmp((g).jump))
void *mem_alloc(size_t n); /* zeroed, 64-byte aligned; outside any arena; free with mem_free */
void *mem_take(size_t n);  /* the same, not zeroed: for what is written before it is read */
/* n, or a little more than n, such that a block of so many bytes lies in huge pages, not scattered over the sets of a cache:
 * for what is to stay in the second-level cache from run to run. */
size_t mem_whole_pages(size_t n);
void mem_free(void *p);
void mem_trim(void); /* gives what is free back to the system; takes milliseconds */
Arena *arena_new(void);
/* freed by itself if memory is refused; else arena_free in the same function */
Arena *arena_scratch(void);
/* makes a scratch arena an ordinary one: what was built in it is complete */
void arena_keep(Arena *a);
void arena_unkeep(Arena *a); /* the reverse: freed by itself if the innermost guard catches */
void arena_free(Arena *a);   /* NULL is allowed */
size_t arena_bytes(const Arena *a);    /* taken from the system */
void *arena_alloc(Arena *a, size_t n); /* zeroed, 16-byte aligned */
void *arena_dup(Arena *a, const void *p, size_t n);
char *arena_str(Arena *a, const char *s);
char *arena_strn(Arena *a, const char *s, size_t n);
/* printf and strtod for numbers with a point, whatever locale the program that we are part of has chosen */
int text_vfmt(char *to, size_t size, const char *fmt, va_list ap);
int text_fmt(char *to, size_t size, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
double text_double(const char *s, char **end);
char *arena_fmt(Arena *a, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
#define arena_new_of(a, T) ((T *)arena_alloc((a), sizeof(T)))
#define arena_array(a, T, n) ((T *)arena_alloc((a), sizeof(T) * (size_t)(n)))

#define VEC(T)                                                                                     \
  struct {                                                                                         \
    T *v;                                                                                          \
    int n, cap;                                                                                    \
  }
#define vec_add(a, vec, x)                                                                         \
  ((vec)->n == (vec)->cap                                                                          \
       ? (void)((vec)->v = vec_grow((a), (vec)->v, sizeof *(vec)->v, &(vec)->cap))                 \
       : (void)0,                                                                                  \
   (vec)->v[(vec)->n++] = (x))
void *vec_grow(Arena *a, void *v, size_t elem, int *cap);

Map *map_new(Arena *a);
void *map_get(const Map *m, const char *key);          /* NULL if absent */
void map_put(Map *m, const char *key, void *value);    /* the key is copied; value NULL removes */
int map_n(const Map *m);                               /* entries; removed ones do not count */
const char *map_at(const Map *m, int i, void **value); /* i in 0..map_n-1, in insertion order */

/* Growable text. */
typedef struct Str {
  Arena *a;
  char *s;
  size_t n, cap;
} Str;
void str_init(Str *s, Arena *a);
void str_add(Str *s, const char *text);
void str_addn(Str *s, const char *text, size_t n);
void str_fmt(Str *s, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* ---- checked.h: arithmetic on numbers from outside ---- */

static inline bool mul_ok(int64_t a, int64_t b, int64_t *r) {
  return !__builtin_mul_overflow(a, b, r);
}
static inline bool add_ok(int64_t a, int64_t b, int64_t *r) {
  return !__builtin_add_overflow(a, b, r);
}
/* Upwards; of numbers that are not negative. */
static inline int64_t div_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
/* The greatest, positive; of two zeros 0. */
static inline int64_t common_factor(int64_t a, int64_t b) {
  while (b) {
    int64_t rest = a % b;
    a = b;
    b = rest;
  }
  return a < 0 ? -a : a;
}

/* ---- diag.c: diagnostics ---- */

typedef struct Diag {
  ErrCode code;
  char summary[512], where[512], notes[2048], help[512]; /* notes: one per line */
} Diag;

const char *err_name(ErrCode c); /* "E-SHP-012" */
const char *err_summary(ErrCode c);
const char *err_text(ErrCode c);    /* the page of `kiln explain` */
ErrCode err_find(const char *name); /* E_NONE if there is none */
/* Record an error if there is none yet. Returns false. Names from files must be quoted with quoted(). */
bool err_set(ErrCode c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Add to the current error; no-ops without one. err_where puts its text before what is already there, separated by
 * ", ": the innermost caller speaks first, so the whole reads "model.pdmodel, block 0, op 47 `matmul_v2`". */
void err_where(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void err_note(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void err_help(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
bool err_any(void);          /* is there an error in this thread? */
const Diag *err_get(void);   /* NULL if none */
void err_put(const Diag *d); /* set the whole (from another thread or a saved one) */
void err_clear(void);
void err_print(FILE *to, bool json); /* in the layout of docs/cli.md */
/* A name from a file in double quotes, control bytes escaped, cut at 80 characters. One of 8 rotating buffers. */
const char *quoted(const char *s);
/* bytes of the character at s; 0: malformed or a C1 control */
int utf8_len(const unsigned char *s);
/* "float32 [64, 3, -1]" for messages, same buffers. */
const char *shape_text(DType t, int rank, const int64_t *dims);
const char *dims_text(int rank, const int64_t *dims); /* "[64, 3, -1]" */

/* ---- vfs.c: files ---- */

/* The table of file access: tests put in functions that fail. All results as the POSIX call. */
typedef struct VfsTable {
  int (*open)(const char *path, int flags, int mode);
  ssize_t (*read)(int fd, void *p, size_t n);
  ssize_t (*write)(int fd, const void *p, size_t n);
  int (*fsync)(int fd);
  int (*close)(int fd);
  int (*rename)(const char *from, const char *to);
  void *(*map)(size_t n, int fd); /* NULL: refused */
  int (*unmap)(void *p, size_t n);
} VfsTable;
extern VfsTable vfs_table;

/* The whole regular file; "-" is stdin. Memory from the arena, a NUL after the end. E-IO-001. */
bool vfs_read(Arena *a, const char *path, uint8_t **data, size_t *n);
/* The whole regular file as memory that may be written (the file stays as it is) until vfs_unmap. E-IO-001. If the file is
 * cut off or overwritten meanwhile, pages not yet touched follow it, and those behind its end raise SIGBUS.
 * id, may be NULL: stands for the file as it is now, without looking at its bytes: 0 if it was changed so recently that a
 * later change might not show. */
bool vfs_map(const char *path, uint8_t **data, size_t *n, uint64_t *id);
void vfs_unmap(void *data, size_t n);
/* Written under a temporary name, synced, renamed; "-" is stdout. E-IO-002. */
bool vfs_write(const char *path, const void *data, size_t n);
/* Not synced: after a crash of the system the file may be damaged. For what can be made again. */
bool vfs_write_loose(const char *path, const void *data, size_t n);
/* The same in pieces: open, add, then commit (true) or abandon. */
typedef struct VfsOut VfsOut;
VfsOut *vfs_out_open(const char *path);
VfsOut *vfs_out_open_loose(const char *path);
bool vfs_out_add(VfsOut *o, const void *data, size_t n);
bool vfs_out_close(VfsOut *o, bool commit);
/* Files that belong together: all of them are replaced, or none. NULLs are left out. */
bool vfs_out_close_all(int n, VfsOut *const *o, bool commit);
bool vfs_is_dir(const char *path);
bool vfs_is_file(const char *path);
bool vfs_mkdirs(const char *path);

/* ---- cache.c: the disk cache ---- */

/* The value last put under the key, in the arena. False: there is none, or it is damaged. Sets no error. */
bool cache_get(Arena *a, const void *key, size_t n_key, const uint8_t **value, size_t *n);
/* False: it is not kept; no error is set. */
bool cache_put(const void *key, size_t n_key, const void *value, size_t n);
/* Large values, in memory as the disk has them: mapped for this process alone, which may write there. Mapping looks at the
 * entry's head only: who uses a block verifies it before. */
enum { CACHE_BLOCK = 64 << 10 };
typedef struct CacheValue {
  uint8_t *map; /* NULL: none */
  size_t n_map;
  uint8_t *value; /* at the start of a page */
  size_t n;
  const uint64_t *sum; /* of each block: hash_block */
  bool verified;       /* all blocks were, and the file has not changed since */
  uint64_t id[5];      /* of the file: device, inode, size, time of change */
} CacheValue;
/* False: there is none, or its head is damaged. Sets no error. */
bool cache_map(const void *key, size_t n_key, CacheValue *v);
void cache_unmap(CacheValue *v);
void cache_note_verified(const CacheValue *v); /* all its blocks hold */
/* Pages of these blocks are mapped at once, rather than by a fault each. */
void cache_map_blocks(const CacheValue *v, int64_t begin, int64_t end);
bool cache_block_holds(const CacheValue *v, int64_t block); /* any thread */
/* May so many bytes be put there? Each process has the room once. */
bool cache_takes_large(size_t n);
/* False: it is not kept; no error is set. */
bool cache_put_large(const void *key, size_t n_key, const void *value, size_t n,
                     const uint64_t *sum);
typedef struct CacheInfo {
  const char *dir; /* NULL: the cache is off, or there is no home folder */
  bool usable;     /* false: others may write to the folder */
  int entries;
  int64_t bytes, limit;
} CacheInfo;
CacheInfo cache_info(Arena *a);
void cache_clear(Arena *a);
uint64_t hash_bytes(uint64_t seed, const void *p, size_t n);
uint64_t hash_block(const void *p, size_t n); /* fast where there are many */

/* ---- type.c: element types and tensors ---- */

typedef struct DTypeInfo {
  const char *name;
  int paddle, size;
  char class;
} DTypeInfo;
extern const DTypeInfo dtype_info[DT_N + 1]; /* the last row: "none" */
DType dtype_find(const char *name);          /* DT_NONE if there is none */
DType dtype_from_paddle(int number);         /* DT_NONE if it is not an element type */
static inline bool dtype_is_float(DType t) { return t < DT_N && dtype_info[t].class == 'f'; }
/* Elements; false (E-MEM-002) on overflow, negative dims, or more than 2^40 bytes. */
bool dims_numel(DType t, int rank, const int64_t *dims, int64_t *numel);
int64_t numel_of(int rank, const int64_t *dims); /* of dims already checked */
double half_to_double(DType t, uint16_t bits);   /* float16, bfloat16 */
uint16_t double_to_half(DType t, double v);      /* round to nearest even */

/* A dense tensor, row-major. Who owns `data` is said where one is passed. */
typedef struct Tensor {
  DType dtype;
  int rank;
  int64_t dims[KL_VAR_RANK];
  void *data;
} Tensor;
int64_t tensor_numel(const Tensor *t);
size_t tensor_bytes(const Tensor *t);
/* Dimensions in another order: dims[d] of the result is dims[layout[d]] of t; NULL: as they are. */
Tensor tensor_layout(const Tensor *t, const int64_t *layout);
void layout_inverse(int rank, const int64_t *layout, int64_t *inverse);
/* permute.c: the elements of t, stored to `to` in that order. Work is cut in tensor_permute_tasks() tasks. */
void tensor_permute(void *to, const Tensor *t, const int64_t *layout);
int64_t tensor_permute_tasks(const Tensor *t, const int64_t *layout);
void tensor_permute_some(void *to, const Tensor *t, const int64_t *layout, int64_t begin,
                         int64_t end);
double tensor_get(const Tensor *t, int64_t i); /* any type, as double */
void tensor_set(Tensor *t, int64_t i, double v);
/* Zeroed, in the arena */
bool tensor_make(Tensor *t, Arena *a, DType d, int rank, const int64_t *dims);

#endif
