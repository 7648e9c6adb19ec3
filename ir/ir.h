/* The intermediate representation of Kiln: what every other folder includes.
 *
 * Program  what users build, save, print and exchange: Blocks of Operators and Variables, in the terms of
 *          PaddlePaddle's ProgramDesc. Edited in place.
 * Graph    the compiler's form: single assignment, one Node per primitive tensor operation (prims.def), static
 *          shapes. Made from a Program by expand.c, rewritten by passes, cut into Kernels by fusion.
 *
 * Errors: a function that can fail returns false or NULL and has recorded one diagnostic (diag.c); NULL operands of
 * the graph builders pass through silently, so that one check at the end suffices. Running out of memory does not
 * return: see mem.c. Memory: everything hangs on an Arena and goes with it. Threads: one Program, Graph or Arena
 * belongs to one thread at a time; the diagnostic is per thread. */
#ifndef KILN_IR_H
#define KILN_IR_H

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
 * cut off or overwritten meanwhile, pages not yet touched follow it, and those behind its end raise SIGBUS. */
bool vfs_map(const char *path, uint8_t **data, size_t *n);
void vfs_unmap(void *data, size_t n);
/* Written under a temporary name, synced, renamed; "-" is stdout. E-IO-002. */
bool vfs_write(const char *path, const void *data, size_t n);
/* Not synced: after a crash of the system the file may be damaged. For what can be made again. */
bool vfs_write_loose(const char *path, const void *data, size_t n);
/* The same in pieces: open, add, then commit (true) or abandon. */
typedef struct VfsOut VfsOut;
VfsOut *vfs_out_open(const char *path);
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
typedef struct CacheInfo {
  const char *dir; /* NULL: the cache is off, or there is no home folder */
  bool usable;     /* false: others may write to the folder */
  int entries;
  int64_t bytes, limit;
} CacheInfo;
CacheInfo cache_info(Arena *a);
void cache_clear(Arena *a);
uint64_t hash_bytes(uint64_t seed, const void *p, size_t n);

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

/* ---- the Program ---- */

typedef struct kl_program Program;
typedef struct Block Block;
typedef struct Op Op;
typedef struct kl_var Var;
typedef struct OpDef OpDef;
typedef struct Graph Graph;
typedef struct Node Node;

typedef struct Scalar {
  int type; /* 1 bool 2 long 3 float64 4 complex */
  int64_t i;
  double r, im;
} Scalar;

typedef struct Attr {
  const char *name;
  AttrType type;
  int n; /* length of the list types */
  union {
    int64_t i;       /* INT BOOL LONG BLOCK */
    double f;        /* FLOAT FLOAT64 */
    const char *s;   /* STRING VAR; may hold any bytes but NUL */
    int64_t *is;     /* INTS BOOLS LONGS BLOCKS */
    double *fs;      /* FLOATS FLOAT64S */
    const char **ss; /* STRINGS VARS */
    Scalar *scalars; /* SCALAR (n = 1) SCALARS */
  };
} Attr;

typedef struct Slot {
  const char *name;
  int n;
  const char **args;
} Slot; /* args: variable names */
typedef VEC(Slot) SlotVec;

struct Op {
  const char *type;
  const OpDef *def; /* NULL: not in the table (kept, but cannot be run) */
  Block *block;
  SlotVec ins, outs;
  VEC(Attr) attrs; /* as in the file or as set; defaults are not filled in, unknown ones are kept */
  bool is_target;
};

/* In memory only: what a parameter's creator asked for. */
typedef struct ParamInfo {
  double lr_factor;
  int decay_kind; /* 0 none given, 1 L1, 2 L2 */
  double decay;
  bool no_clip;
} ParamInfo;

struct kl_var {
  const char *name;
  VarKind kind;
  DType dtype;      /* DT_NONE: no tensor desc */
  int paddle_dtype; /* the number in the file when dtype is DT_NONE but a desc is there; else -1 */
  int rank;
  int64_t dims[KL_VAR_RANK]; /* -1 = unknown until run time */
  int lod_level;
  bool persistable, need_check_feed, is_parameter, stop_gradient;
  Block *block;
  ParamInfo *param; /* NULL unless made by the builder */
  VEC(Attr) attrs;  /* VarDesc.attrs, preserved */
};

struct Block {
  Program *prog;
  int idx, parent, forward; /* -1 = none */
  VEC(Var *) vars;
  Map *by_name;
  VEC(Op *) ops;
};

typedef struct OpVersion {
  const char *name;
  int32_t version;
} OpVersion;

struct kl_program {
  Arena *arena;
  VEC(Block *) blocks;
  int64_t version; /* Paddle's: major*1000000 + minor*1000 + patch */
  VEC(OpVersion) op_versions;
  Map *names;         /* unique-name counters: key -> int* */
  const char *file;   /* where it was loaded from, for messages; NULL if built */
  uint64_t edits;     /* grows with every change: what executors key their caches by */
  uint64_t id;        /* differs for every Program of the process */
  int64_t seed;       /* 0 = not set */
  struct kl_net *net; /* the builder's net, NULL for other programs */
};

/* program.c: build and edit. Names and lists are copied. */
Program *prog_new(void); /* with block 0 */
void prog_free(Program *p);
Block *prog_add_block(Program *p, int parent, int forward);
Program *prog_clone(const Program *p);
/* "key_0", "key_1", ...; never a declared name */
const char *prog_unique(Program *p, const char *key);
Var *block_add_var(Block *b, const char *name, VarKind kind, DType t, int rank,
                   const int64_t *dims);               /* E-PRO-002 if declared */
Var *block_var(const Block *b, const char *name);      /* this block only; NULL if absent */
Var *block_find_var(const Block *b, const char *name); /* also the enclosing and forward blocks */
void block_remove_var(Block *b, const char *name);
Op *block_add_op(Block *b, const char *type); /* appended */
Op *block_insert_op(Block *b, int at, const char *type);
void block_remove_op(Block *b, int at);
Op *op_copy(Block *to, int at, const Op *op); /* at = -1: append */
void op_set_ins(Op *op, const char *slot, int n, const char *const *args);
void op_set_outs(Op *op, const char *slot, int n, const char *const *args);
void op_add_in(Op *op, const char *slot, const char *arg); /* appends one variable to the slot */
void op_add_out(Op *op, const char *slot, const char *arg);
void op_set_attr(Op *op, const Attr *a); /* replaces one of the same name; deep copy */
/* Type as in the operator's row, INT if unknown */
void op_set_int(Op *op, const char *name, int64_t v);
void op_set_float(Op *op, const char *name, double v);
void op_set_bool(Op *op, const char *name, bool v);
void op_set_str(Op *op, const char *name, const char *v);
void op_set_ints(Op *op, const char *name, int n, const int64_t *v);
void op_rename(Op *op, const char *from, const char *to); /* every occurrence in the slots */
/* What an operator has. Absent slot: NULL / 0. Attributes fall back to the default of the row. */
const Slot *op_ins(const Op *op, const char *slot);
const Slot *op_outs(const Op *op, const char *slot);
const char *op_in(const Op *op, const char *slot, int i); /* NULL if absent or "@EMPTY@" */
const char *op_out(const Op *op, const char *slot, int i);
/* Explicit, else the row's default, else NULL */
const Attr *op_attr(const Op *op, const char *name);
/* Also BOOL, LONG and FLOAT, coerced as Paddle does */
int64_t op_int(const Op *op, const char *name);
double op_float(const Op *op, const char *name);
bool op_bool(const Op *op, const char *name);
const char *op_str(const Op *op, const char *name); /* "" if absent */
/* A scalar INT counts as a list of one */
const int64_t *op_intlist(const Op *op, const char *name, int *n);
int op_role(const Op *op);         /* op_role, default ROLE_FORWARD */
int op_index(const Op *op);        /* position in its block */
const char *op_text(const Op *op); /* "op 47 `matmul_v2`", with the user's file:line if kept */
/* Keep what the targets need, feeds being cut points; drop unused variables. */
bool prog_prune(Program *p, int n_feeds, const char *const *feeds, int n_targets,
                const char *const *targets);
/* edit.c. A variable of block 0; NULL: E-VER-001 with what is near. */
Var *prog_need_var(const Program *p, const char *name);
bool prog_rename_var(Program *p, const char *from, const char *to); /* in all blocks; E-PRO-002 */
/* Feed operators in front and fetch operators at the end of block 0, as inference models have them. */
bool prog_has_ends(const Program *p);
void prog_remove_ends(Program *p);
bool prog_add_ends(Program *p, int n_feeds, const char *const *feeds, int n_fetch,
                   const char *const *fetches);
/* Removes an operator, and the gradient operator that belongs to it; who read its output reads an input of the same type
 * and shape. E-OPR-004: there is none. */
bool prog_drop_op(Program *p, Op *op);
/* Drops the variables that no operator mentions, but inputs; the others are sorted by name. */
void prog_drop_unused(Program *p);
/* As PaddlePaddle's clone(for_test=True): backward, optimise and schedule operators dropped, is_test set. */
Program *prog_clone_for_test(const Program *p);

/* ---- op.c: the operator table ---- */

typedef struct SlotDef {
  const char *name;
  bool optional, list, intermediate;
} SlotDef;
typedef struct AttrDef {
  Attr dflt;
  bool required, extra;
} AttrDef;

enum { /* OpDef.flags */
       OF_COMMUTATIVE = 1,
       OF_INPLACE = 2,
       OF_VIEW = 4,
       OF_RANDOM = 8,
       OF_EFFECT = 16,
       OF_OPTIMIZER = 32,
       OF_LOSS = 64,
       OF_METRIC = 128,
       OF_IO = 256 /* feed, fetch: handled by the executor */,
       OF_GRAD = 512,
       OF_CUSTOM = 1024,
       OF_NOGRAD_OK = 2048 /* no gradient, and a path through it simply ends */,
       OF_HOST = 4096 /* run by the executor itself, between compiled parts */,
       OF_LOD = 8192 /* works on the sequences of an input */
};

typedef struct Expand Expand;
typedef bool ExpandFn(Expand *x);

/* How the gradient operator of a row is made. Parsed from the row's grad column. */
typedef struct GradDef {
  const char *type; /* type of the gradient operator */
  int n_ins, n_outs;
  struct {
    const char *slot, *from;
  } * ins, *outs; /* gradient slot <- forward slot; a "@GRAD" suffix on `from` means its gradient */
  int n_sets;
  struct {
    const char *attr, *value;
  } * sets;        /* attributes set by text; "$name" copies the forward attribute */
  bool copy_attrs; /* copy the forward attributes (the rule unless sets are given) */
  bool per_input;  /* one gradient operator for each variable of the (single) list slot */
} GradDef;

struct OpDef {
  const char *name;
  unsigned flags;
  int n_ins, n_outs, n_attrs;
  SlotDef *ins, *outs;
  AttrDef *attrs;
  const char *formula; /* the expansion as a formula, or NULL */
  ExpandFn *expand;    /* the expansion as a function, or NULL; both NULL: derived from `forward` */
  const OpDef *forward; /* of a gradient operator: its forward operator */
  const GradDef *grad;  /* NULL: none */
  const char *examples; /* "" if none */
  const char *meaning;
  const struct CustomOp *custom; /* operators registered at run time */
};

/* NULL if unknown; the table is parsed on first use, thread safe */
const OpDef *opdef_find(const char *type);
int opdef_n(void);
const OpDef *opdef_at(int i); /* sorted by name */
const SlotDef *opdef_in(const OpDef *d, const char *slot);
const SlotDef *opdef_out(const OpDef *d, const char *slot);
/* Also the attributes every operator may carry */
const AttrDef *opdef_attr(const OpDef *d, const char *attr);
const char *opdef_nearest(const char *type); /* for "did you mean"; NULL if nothing is near */
/* The same for any list */
const char *name_nearest(const char *name, int n, const char *const *names);
bool attr_equal(const Attr *a, const Attr *b); /* of one type and value; the names do not matter */
/* No NaN, epsilon and probabilities in their ranges: E-OPR-003 */
bool op_numbers_fit(const Op *op);
/* Paddle's coercions; false if none applies (no error set) */
bool attr_coerce(Attr *a, AttrType to, Arena *arena);

/* literal.c: attribute values, names and numbers as text */
typedef struct AttrInfo {
  const char *name, *keyword; /* "LONGS"; the keyword that introduces a literal, or "" */
  char elem, suffix;          /* i integer, b bool, f float, s string, c Scalar; 0 = no suffix */
  bool list;
} AttrInfo;
extern const AttrInfo attr_info[AT_N];
/* A literal of the text form: 1 1L 1.0 true 'x' [1,2] []L. Sets type and value; no error is recorded, *end (may be NULL)
 * is behind the literal or at what is wrong. */
bool attr_parse(Arena *a, const char *text, const char **end, Attr *out);
void attr_print(const Attr *a, Str *out);             /* the value; attr_parse reads it back */
void text_quote(Str *out, const char *s, char quote); /* quoted and escaped */
char *text_unquote(Arena *a, const char **s);         /* NULL: no well-formed string at *s */
void text_float(Str *out, double v, bool single);     /* the shortest form that reads back */
/* Pointers to n items of `size` bytes, each starting with its name, sorted bytewise by name. */
const void **by_name(Arena *a, const void *items, int n, size_t size);
const char *repeated_name(Arena *a, const void *items, int n, size_t size); /* NULL: all differ */

/* A custom operator: C functions registered at run time. Tensors are host memory, row-major. */
typedef struct CustomOp {
  const char *name;      /* operator type */
  const char *signature; /* as in ops.def, for example "X -> Out" */
  /* Output shapes and types from input shapes and types (dims may be -1). Tensors of all slots in signature order. */
  bool (*infer)(const struct CustomOp *op, int n_in, const Tensor *in, int n_out, Tensor *out);
  bool (*forward)(const struct CustomOp *op, int n_in, const Tensor *in, int n_out, Tensor *out);
  /* in: forward inputs, forward outputs, gradients of the outputs; out: gradients of the inputs. NULL: no gradient. */
  bool (*backward)(const struct CustomOp *op, int n_in, const Tensor *in, int n_out, Tensor *out);
  void *user;
} CustomOp;
bool opdef_register(const CustomOp *op); /* E-PLG-001; lives until the process ends */

/* ---- the Graph ---- */

/* One dimension of an operand of a VIEW or CONTRACT, addressed from the loops of the result:
 *   index = (c0*loop[l0] + c1*loop[l1] + off) / div
 * with l = -1 for an absent term. If the division leaves a remainder, or the index falls outside the operand, the
 * element reads as the padding value (VIEW: Node.f; CONTRACT: 0). div >= 1; c may be negative. */
typedef struct AffDim {
  int8_t l0, l1;
  int32_t c0, c1;
  int64_t off;
  int32_t div;
} AffDim;
/* Built nodes hold AffDims in one form: an absent term has c = 0, and a single term is the first. */
static inline AffDim aff_loop(int l) { return (AffDim){(int8_t)l, -1, 1, 0, 0, 1}; }
static inline AffDim aff_const(int64_t at) { return (AffDim){-1, -1, 0, 0, at, 1}; }
static inline bool aff_is_loop(const AffDim *a, int l) {
  return a->l0 == l && a->l1 < 0 && a->c0 == 1 && a->off == 0 && a->div == 1;
}

/* The sequences that the rows of a tensor are (LoD, one level): sequence i is the rows offset[i]..offset[i+1]-1. */
typedef struct Lod {
  int64_t n; /* sequences; n + 1 offsets, from 0, not decreasing */
  const int64_t *offset;
} Lod;
#define LOD_SUFFIX "@LOD" /* of a feed: the offsets of the variable before it, int64 */
const char *lod_base(const char *name, Arena *a); /* "x" of "x@LOD", else NULL */

struct Node {
  Prim prim;
  DType dtype;
  int rank;
  int id;                /* position in Graph.nodes after graph_number() */
  int64_t dims[KL_RANK]; /* -1 only in graphs made for shape inference */
  int n_in;
  Node **in;
  /* payload, see prims.def */
  int64_t i;
  double f;
  const char *s;
  int n_ia;
  int64_t *ia;
  AffDim *map[2];   /* VIEW: map[0], one AffDim per dimension of in[0], loops = result dimensions;
                               * CONTRACT: one map per operand, loops = 0..n_loops-1, the first `rank` are the result's */
  int n_loops;      /* CONTRACT: result dimensions + summed loops */
  int64_t *ext;     /* CONTRACT: n_loops extents; ext[0..rank-1] == dims */
  const void *data; /* DATA */
  const CustomOp *custom; /* CALL; with i = 1 the backward function */
  const Op *op;           /* the operator it was expanded from, or NULL */
  const Lod *lod;         /* during the expansion: its sequences, or NULL */
  /* scratch of the passes: meaning is said by the pass that uses it */
  Node *repl;
  int mark, n_uses;
  struct Buffer *buf; /* where a materialised node lives, after memory planning */
};

typedef struct ExitCopy {
  struct Buffer *from, *to;
} ExitCopy; /* `to` is a B_STATE buffer of the same size */
typedef struct NamedNode {
  const char *name;
  Node *node;
  const int64_t
      *layout; /* of writes: dimension d of the node is the variable's layout[d]; NULL: d */
} NamedNode;

/* With E-OPR-006: the operator, and the input whose value its expansion must know. */
typedef struct Wanted {
  const Op *op;
  const char *name;
} Wanted;
struct Graph {
  Arena *arena;        /* owned */
  const Program *prog; /* NULL if parsed from text */
  bool shapes_only;    /* -1 dims are allowed: made for shape inference */
  Node *unknown;       /* whose value an expansion had to know and could not */
  Wanted wanted;
  const Op *op;           /* of new nodes, see graph_set_op */
  VEC(Node *) nodes;      /* operands before users */
  VEC(NamedNode) writes;  /* persistable variables and their value at the exit, in program order */
  VEC(NamedNode) fetches; /* in the order asked for */
  VEC(struct Kernel *) kernels; /* after fusion, in running order */
  VEC(struct Buffer *) buffers; /* after memory planning */
  VEC(ExitCopy)
  copies; /* after memory planning: state written elsewhere than in place, copied at the exit */
  int64_t arena_bytes, lower_bound; /* of the plan */
  int64_t kept_bytes;               /* of all B_KEPT */
  int64_t memory_budget;            /* bytes of the arena that recomputation is to reach; 0: none */
  double conv_error;                /* see Kernel */
};

/* graph.c: builders. Each checks its operands (E-SHP, E-TYP), computes the shape (unknown dims are -1 if
 * g->shapes_only) and appends a node. NULL operands give NULL. Nothing is simplified here but exact no-ops
 * (reshape, expand, cast, permutation to what the operand already is). */
/* In a scratch arena: a Graph that outlives the guard it was made under needs arena_keep(g->arena). */
Graph *graph_new(const Program *p, bool shapes_only);
void graph_free(Graph *g);
void graph_number(Graph *g);               /* ids, n_uses (uses by nodes, writes and fetches) */
void graph_set_op(Graph *g, const Op *op); /* nodes made from now on carry this op */
/* A node without its payload; dims are checked. For the builders and for passes. */
Node *g_node(Graph *g, Prim p, DType t, int rank, const int64_t *dims, int n_in, Node *const *in);
/* for messages: the current operator, else the primitive */
const char *g_who(const Graph *g, Prim p);
Node *g_const(Graph *g, DType t, double v); /* rank 0 */
Node *g_full(Graph *g, DType t, double v, int rank, const int64_t *dims);
Node *g_full_int(Graph *g, DType t, int64_t v, int rank, const int64_t *dims); /* exact for int64 */
/* Data is copied */
Node *g_data(Graph *g, DType t, int rank, const int64_t *dims, const void *data, const char *name);
Node *g_feed(Graph *g, const char *name, DType t, int rank, const int64_t *dims);
Node *g_state(Graph *g, const char *name, DType t, int rank, const int64_t *dims);
Node *g_iota(Graph *g, DType t, int rank, const int64_t *dims, int axis);
Node *g_random(Graph *g, DType t, int rank, const int64_t *dims, int64_t seed, int64_t stream,
               bool fixed);
Node *g_map1(Graph *g, Prim p, Node *x);
Node *g_map2(Graph *g, Prim p, Node *x, Node *y);    /* numpy broadcasting; E-SHP-001, E-TYP-001 */
Node *g_select(Graph *g, Node *c, Node *x, Node *y); /* broadcasting too */
Node *g_cast(Graph *g, Node *x, DType t);
Node *g_map2c(Graph *g, Prim p, Node *x, double c); /* second operand a constant of x's type */
/* One -1 is inferred; E-SHP-004 */
Node *g_reshape(Graph *g, Node *x, int rank, const int64_t *dims);
Node *g_permute(Graph *g, Node *x, const int *perm);
/* Numpy rule, may add leading dims; dims -1 keep */
Node *g_expand(Graph *g, Node *x, int rank, const int64_t *dims);
/* The same, but dims are the result's: in a shapes_only graph -1 is an unknown size. */
Node *g_expand_to(Graph *g, Node *x, int rank, const int64_t *dims);
/* An identity view: a node of its own for the value of x, so that derive() can tell two uses of one node apart. */
Node *g_alias(Graph *g, Node *x);
/* Per dimension; step may be negative */
Node *g_slice(Graph *g, Node *x, const int64_t *start, const int64_t *step, const int64_t *size);
/* May be negative: crops */
Node *g_pad(Graph *g, Node *x, const int64_t *lo, const int64_t *hi, double value);
/* Windows over n_sp dimensions starting at axis: those dims become output positions, n_sp kernel dims are appended. */
Node *g_window(Graph *g, Node *x, int axis, int n_sp, const int64_t *k, const int64_t *stride,
               const int64_t *dil, const int64_t *lo, const int64_t *hi, double value);
Node *g_view(Graph *g, Node *x, int rank, const int64_t *dims, const AffDim *map, double value);
Node *g_reduce(Graph *g, Prim p, Node *x, uint32_t axes, bool keep_dims); /* RSUM RMAX RPROD */
Node *g_argmax(Graph *g, Node *x, uint32_t axes, bool keep_dims, DType t);
/* Ranks >= 2, batch dims broadcast; E-SHP-012 */
Node *g_matmul(Graph *g, Node *a, Node *b, bool ta, bool tb);
/* Positions of a window along one dimension: (in + lo + hi - dil*(k-1) - 1) / stride + 1; -1 if `in` is. E-SHP-005. */
bool window_out(const char *who, int64_t in, int64_t k, int64_t stride, int64_t dil, int64_t lo,
                int64_t hi, int64_t *out);
/* x [N, C, *sp], w [O, C/groups, *k] -> [N, O, *out]; out = (in + lo + hi - dil*(k-1) - 1) / stride + 1 */
Node *g_conv(Graph *g, Node *x, Node *w, int n_sp, const int64_t *stride, const int64_t *lo,
             const int64_t *hi, const int64_t *dil, int64_t groups);
Node *g_contract(Graph *g, Node *a, Node *b, int rank, int n_loops, const int64_t *ext,
                 const AffDim *ma, const AffDim *mb);
Node *g_gather(Graph *g, Node *x, Node *idx, int axis); /* see prims.def; callers add g_check */
Node *g_scatter(Graph *g, Node *base, Node *idx, Node *upd, int axis, bool assign);
Node *g_check(Graph *g, Node *x, int64_t lo, int64_t hi, bool has_ignore, int64_t ignore,
              ErrCode code);
Node *g_concat(Graph *g, int n, Node *const *x, int axis);
Node *g_argsort(Graph *g, Node *x, bool descending);
Node *g_call(Graph *g, const CustomOp *op, bool backward, int n, Node *const *x, DType t, int rank,
             const int64_t *dims);
Node *g_out(Graph *g, Node *call, int i, DType t, int rank, const int64_t *dims);
/* All outputs that were ever made of a CALL, also those whose OUT was dropped: type and shape, without data. */
int call_n_out(const Node *call);
void call_out(const Node *call, int i, Tensor *t);
/* The same primitive and payload on other operands of equal shapes */
Node *g_clone_with(Graph *g, const Node *n, Node *const *in);
/* One dimension of x as a known number; in a shapes_only graph -1 if unknown. */
int64_t node_numel(const Node *n);
bool node_same_shape(const Node *a, const Node *b);
bool prim_is_map(Prim p);    /* class 'M' */
bool prim_is_reduce(Prim p); /* class 'R' */
typedef struct PrimInfo {
  const char *name;
  char class;
  int n_in;
  const char *meaning;
} PrimInfo;
extern const PrimInfo prim_info[P_N];
bool graph_verify(const Graph *g); /* asserted by the pass runner: arity, types, shapes, order */

/* derive.c: reverse-mode differentiation over primitives.
 * Given outputs ys with incoming gradients gys (NULL entries = zero), returns in gxs the gradient of each xs (NULL where
 * the output does not depend on it). Appends to g. E-OPR-005 through a primitive without a gradient.
 * The xs count as independent variables: nothing is passed on through them. An operator whose inputs may be one node, or
 * depend on one another, is to be expanded on g_alias()es of its inputs. */
bool derive(Graph *g, int n_y, Node *const *ys, Node *const *gys, int n_x, Node *const *xs,
            Node **gxs);

/* eval.c: the plain interpreter, the meaning of every primitive. */
typedef struct EvalEnv {
  Tensor *(*lookup)(void *user, const char *name, bool state); /* values of FEED and STATE nodes */
  void *user;
  uint64_t seed, step;
} EvalEnv;
/* Values of all nodes the writes and fetches need, in the arena: values[node id], NULL for the others. E-DAT-002 from CHECK. */
bool graph_eval(Graph *g, const EvalEnv *env, Arena *a, Tensor **values);
/* Philox4x32-10: four 32-bit words for a counter and key. RANDOM's element e is word e%4 of the block e/4, with
 * counter {e/4 low, e/4 high, stream low, step low} and key {seed low ^ stream high, seed high ^ step high};
 * the value is (word >> 9) * 2^-23 + 2^-24 for float32 and the half types (exact in float32, never 0 or 1), and for
 * float64 (word + 0.5) * 2^-32. */
void philox(const uint32_t ctr[4], const uint32_t key[2], uint32_t out[4]);

/* ---- expand.c, infer.c: operators -> primitives; also the shape inference ---- */

struct Expand {
  Graph *g;
  const Op *op;
  Map *env; /* variable name -> Node*, of the variables computed so far */
  /* Called for a name not in env; NULL result = error already set */
  Node *(*missing)(Expand *x, const char *name);
  void *user;
};
/* For expansion functions. Slots by name; x_in is NULL for an absent optional input (an error for a required one has
 * been ruled out by the verifier). */
Node *x_in(Expand *x, const char *slot);
int x_n_in(Expand *x, const char *slot);
Node *x_in_at(Expand *x, const char *slot, int i);
bool x_wants(Expand *x, const char *slot); /* is the output slot connected? */
/* The sequences of an input, known where it is expanded. NULL: E-DAT-001; in shape inference without an error. */
const Lod *x_lod(Expand *x, const char *slot, int i);
/* Sets an output with its sequences. Others get those of the first input that has as many rows. */
bool x_out_lod(Expand *x, const char *slot, Node *n, const Lod *lod);
int x_n_out(Expand *x, const char *slot);
/* No-op if the slot is not connected; false if n is NULL */
bool x_out(Expand *x, const char *slot, Node *n);
bool x_out_at(Expand *x, const char *slot, int i, Node *n);
/* The k-th random stream of this operator: stable under edits elsewhere */
int64_t x_stream(Expand *x, int k);
/* Expand one operator: reads and extends env. Adds the place to any error. */
bool expand_op(Expand *x, const Op *op);
/* A Program's block 0 (minus feed and fetch operators) as a Graph with STATE/FEED sources.
 * dims_of gives the actual shape of a fed or persistable variable (false = it has none: error set).
 * Operators that depend on a feed which is absent are left out where no fetch, persistable variable or effect needs them. */
typedef bool DimsOf(void *user, const Var *v, bool fed, DType *t, int *rank, int64_t *dims);
Graph *expand_program(const Program *p, int n_feeds, const char *const *feeds, int n_fetch,
                      const char *const *fetches, DimsOf *dims_of, void *user);
/* Operators from..to-1 of a block: what is compiled as one. */
typedef struct Section {
  const Block *block;
  int from, to;
  const bool *skip; /* NULL, or by position in the block: left out */
} Section;
typedef struct ExpandRequest {
  Section section;
  int n_feeds;
  const char *const *feeds;
  int n_fetch;
  const char *const *fetches;
  DimsOf *dims_of;
  /* NULL, or the value that a fed variable (or its sequences, NAME@LOD) has in every run of this graph; NULL: any */
  const Tensor *(*known)(void *user, const char *name);
  void *user;     /* of both */
  Wanted *wanted; /* out; may be NULL */
} ExpandRequest;
Graph *expand_section(const ExpandRequest *r);
/* The same on block 0. Which of its operators depend on a feed which is absent while no fetch, state or effect depends on
 * them, feed and fetch operators included. In the arena. */
bool *ops_left_out(const Block *b, Arena *a, int n_feeds, const char *const *feeds, int n_fetch,
                   const char *const *fetches);
/* Does it have an effect, write state, or write one of the names that are keys of `needed`? */
bool op_is_needed(const Op *op, const Map *needed);
/* Shapes and types of the operator's outputs from its inputs' declarations (-1 allowed), written into the
 * declarations of the output variables: those with DT_NONE or rank unset are filled in; others are compared. */
bool infer_op(Op *op);
/* All operators of all blocks; check: E-VER-003 where a declaration contradicts */
bool infer_program(Program *p, bool check);

/* formula.c, builtin.c: the expansion of a row written as a formula. Grammar and functions are described at its head. */
bool formula_expand(Expand *x, const char *formula);

/* ---- verify.c ---- */
/* Structure: blocks, names, slots, attributes, read before written */
bool prog_verify(const Program *p);

/* ---- text and files ---- */
/* structure.c: rules that both file forms check while reading. */
bool check_block_head(int position, int64_t idx, int64_t parent, int64_t forward); /* E-PRO-002 */
bool check_var_dims(int rank, const int64_t *dims);       /* E-PRO-002, E-SHP-002, E-MEM-002 */
bool op_names_differ(const Op *op, Arena *tmp);           /* slots and attributes: E-PRO-002 */
bool prog_check_blocks(const Program *p);                 /* BLOCK attributes: E-PRO-002 */
const char *content_kind(const uint8_t *bytes, size_t n); /* "a Python pickle"; NULL if unknown */
/* printable as far as the first 512 bytes tell */
bool content_is_text(const uint8_t *bytes, size_t n);
/* print.c, parse.c: the text form; parse(print(p)) == p. */
#define TEXT_NAME_CHARS /* of names that need no quotes; the first one is a letter, _ or @ */      \
  "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_@./$+-"
bool text_is_bare(const char *s);
typedef struct VarKindName {
  int kind; /* of VarType.Type */
  const char *name;
} VarKindName;
extern const VarKindName var_kind_names[]; /* ends with a NULL name */
const char *var_kind_name(int kind);
void prog_print(const Program *p, Str *out);
/* E-TXT-001 with line and column */
Program *prog_parse(const char *text, size_t n, const char *file);
/* gtext.c: the Graph's text form, before or after fusion. */
void graph_print(const Graph *g, Str *out);
Graph *graph_parse(const char *text, size_t n, const char *file);
void prog_dot(const Program *p, Str *out);
void graph_dot(const Graph *g, Str *out);
void prog_json(const Program *p, Str *out);
/* A JSON string with its quotes; bytes that are not UTF-8 are escaped. */
void str_json(const char *s, Str *out);
bool prog_equal(const Program *a, const Program *b, Str *why); /* why: the first difference */
bool block_equal(const Block *a, const Block *b, Str *why);
/* proto.c: ProgramDesc. */
bool prog_encode(const Program *p, Arena *a, uint8_t **bytes, size_t *n);
/* Decoded and verified structurally */
Program *prog_decode(const uint8_t *bytes, size_t n, const char *file);
/* load.c: any program file, recognised by content (ProgramDesc or text), verified. */
Program *prog_load(const char *path);
/* Lets unknown operators through: to print or convert, not to run */
Program *prog_load_any(const char *path);
/* By extension: .kl text, otherwise ProgramDesc */
bool prog_save(const Program *p, const char *path);
/* The file in a folder that has one of the fixed names, else the only one that ends so (NULL-ended lists, best first).
 * NULL: there is none, or (error set) there are several. */
const char *path_in_folder(Arena *a, const char *folder, const char *const *fixed,
                           const char *const *tails);
/* params.c: tensors in the .pdiparams layout. */
/* Entries back to back, in the given order. Large data starts at multiples of PARAMS_ALIGN, so that it can be mapped. */
enum { PARAMS_ALIGN = 64, PARAMS_LARGE = 4096 };
bool params_encode(Str *out, int n, const Tensor *const *t);
/* What stands before the data of an entry that begins at `at` in its file. */
bool params_head(Str *out, size_t at, const Tensor *t);
/* The persistable variables that a combined file holds, sorted bytewise by name. */
int params_list(const Program *p, Arena *a, Var ***vars);
/* Exactly n tensors; names and expected shapes (may be NULL) are for checks and messages. Data in the arena.
 * The sizes of all entries are checked before any is accepted. E-PAR. */
bool params_decode(const uint8_t *bytes, size_t n_bytes, const char *file, int n, Var *const *vars,
                   Arena *a, Tensor *out);
/* The same, but the data stays where it is in `bytes`, on any alignment. */
bool params_view(uint8_t *bytes, size_t n_bytes, const char *file, int n, Var *const *vars,
                 Tensor *out);

/* One variable's own file, as a folder of parameters holds them: an entry, or selected rows, which become dense. Data may
 * stay in `bytes`. */
bool params_view_one(uint8_t *bytes, size_t n_bytes, const char *file, const Var *v, Arena *a,
                     Tensor *out);
/* Has the tensor the variable's type and shape (unknown dimensions fit any)? E-PAR-002 */
bool params_fit(const Tensor *t, const Var *v);
/* statedict.c: .pdparams and .pdopt files, dictionaries of arrays as pickles. Name -> Tensor*; data may stay in `bytes`. */
bool pickle_is(const uint8_t *bytes, size_t n);
Map *pickle_params(uint8_t *bytes, size_t n, const char *file, Arena *a);

/* ---- Kernels: what fusion makes of a Graph ---- */

typedef enum KernelKind { K_LOOP, K_CONTRACT, K_SCATTER, K_CONCAT, K_SORT, K_CALL } KernelKind;

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
 *   outputs are other maps of the epilogue (all have core's shape), or core.
 * K_SCATTER, K_SORT, K_CONCAT, K_CALL: core is the node; operands are inputs (K_CALL's outputs: the call and its OUTs;
 *   K_CONCAT: the producers of operands may be inlined like in a map; K_SCATTER: base may share the output's buffer). */
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
  /* of convolutions, relative to the largest result: algorithms that round more than sums do may err by so much; 0: none may */
  double conv_error;
  /* filled in by the backend's schedule() before memory is planned */
  int64_t workspace;    /* bytes of shared scratch the kernel wants in the arena, 0 = none */
  int64_t flops, bytes; /* arithmetic and traffic, for profiles */
  int prepares;         /* > 0: the first phase fills the workspace from input prepares-1 alone */
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

/* Storage: a range of the executable's arena, or bound at run time to a feed, a scope tensor or constant data. Or kept:
 * values that depend only on data, and on state that the program does not write, stay from run to run.
 * Nodes that are reshapes of a materialised node share its buffer. */
typedef enum BufferKind { B_ARENA, B_FEED, B_STATE, B_DATA, B_KEPT } BufferKind;
typedef struct Buffer {
  BufferKind kind;
  int id;           /* position in Graph.buffers */
  const char *name; /* of FEED and STATE */
  int64_t bytes,
      offset;       /* B_ARENA, B_KEPT: offset in the arena or what is kept (64-byte aligned) */
  int first, last;  /* kernels between which it is live: first writer, last reader */
  const void *data; /* B_DATA */
  bool written;     /* B_STATE: by the program */
} Buffer;

#endif
