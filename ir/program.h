/* The Program: Blocks of Operators and Variables; the operator table; program and parameter files. Included through ir.h. */
#ifndef KILN_PROGRAM_H
#define KILN_PROGRAM_H

#include "base.h"

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
const Op *block_writer(const Block *b,
                       const char *name); /* the first operator that writes it; NULL */
/* The tensors that operators from..to-1 but those of skip (NULL: none) write, each once, in the order they are first written;
 * persistable ones are left out.
 * Returns how many; *names in the arena. */
int block_results(const Block *b, int from, int to, const bool *skip, Arena *a,
                  const char ***names);
/* Adds to the diagnostic which of the block's variables may have been meant. */
void block_suggest(const Block *b, const char *name);
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
/* An attribute that variables give (VAR, VARS) is also an input slot of its name, which files do not have. */
void op_link_attrs(Op *op);
bool op_slot_is_attr(const Op *op, const char *slot);
const Slot *op_own_slots(const Op *op, Arena *a, size_t *n); /* the other input slots */
void op_rename(Op *op, const char *from, const char *to);    /* every occurrence in the slots */
/* What an operator has. Absent slot: NULL / 0. Attributes fall back to the default of the row. */
const Slot *op_ins(const Op *op, const char *slot);
const Slot *op_outs(const Op *op, const char *slot);
const char *op_in(const Op *op, const char *slot, int i); /* NULL if absent or "@EMPTY@" */
const char *op_out(const Op *op, const char *slot, int i);
/* Explicit, else the row's default, else NULL */
const Attr *op_attr(const Op *op, const char *name);
/* The same, in the type of the operator's row: perhaps a copy, in the arena */
const Attr *op_list(const Op *op, const char *name, Arena *arena);
/* Also BOOL, LONG and FLOAT, coerced as Paddle does */
int64_t op_int(const Op *op, const char *name);
double op_float(const Op *op, const char *name);
bool op_bool(const Op *op, const char *name);
const char *op_str(const Op *op, const char *name); /* "" if absent */
/* Is the attribute one of the words? The index, or -1 with E-OPR-003. */
int op_word(const Op *op, const char *name, int n, const char *const *words);
/* How rows that meet become one: the words of reduce_op (messages) and pooltype (segments). */
typedef enum Reduction { REDUCE_SUM, REDUCE_MEAN, REDUCE_MAX, REDUCE_MIN, REDUCE_N } Reduction;
extern const char *const reduction_words[REDUCE_N];
/* A scalar INT counts as a list of one; FLOATS are converted, in the arena */
const int64_t *op_intlist(const Op *op, const char *name, Arena *arena, int *n);
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

/* ---- op.c, op_row.c: the operator table ---- */

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

/* Gradient slot <- forward slot; a "@GRAD" suffix on `from` means its gradient. */
typedef struct GradSlot {
  const char *slot, *from;
} GradSlot;
/* An attribute set by text; "$name" copies the forward attribute. */
typedef struct GradSet {
  const char *attr, *value;
} GradSet;
/* How the gradient operator of a row is made. Parsed from the row's grad column. */
typedef struct GradDef {
  const char *type; /* type of the gradient operator */
  int n_ins, n_outs;
  GradSlot *ins, *outs;
  int n_sets;
  GradSet *sets;
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
/* Has the row the attribute, or is it one that PaddlePaddle leaves on any operator? takes: E-OPR-003 if not. */
bool opdef_knows(const OpDef *d, const char *attr);
bool opdef_takes(const OpDef *d, const char *attr);
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
/* A literal of the text form: 1 1L 1.0 true 'x' [1,2] []L. Sets type and value. False: no error is recorded, *end (may be
 * NULL) is at what is wrong instead of behind the literal, and type is the one that cannot hold the number there, or AT_N. */
bool attr_parse(Arena *a, const char *text, const char **end, Attr *out);
/* E-TXT-001: the number that text begins with is outside the range of the type that attr_parse gave. Returns false. */
bool attr_too_large(AttrType type, const char *text);
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

/* ---- verify.c ---- */
/* Structure: blocks, names, slots, attributes, read before written */
bool prog_verify(const Program *p);
bool op_verify(const Op *op); /* slots and attributes alone */

/* ---- text and files ---- */
/* structure.c: rules that both file forms check while reading. */
bool check_block_head(int position, int64_t idx, int64_t parent, int64_t forward); /* E-PRO-002 */
bool check_var_dims(int rank, const int64_t *dims); /* E-PRO-002, E-SHP-002, E-MEM-002 */
bool op_names_differ(const Op *op, Arena *tmp);     /* slots and attributes: E-PRO-002 */
/* PaddlePaddle multiplies unknown dimensions: what an operator computes, or nobody uses, may have some below -1, which
 * become -1. E-PRO-002 */
bool prog_settle_dims(Program *p, Arena *tmp);
/* Nor does it declare all gradients of loops and branches: those that an operator writes, or that a step of a loop hands to the
 * one before, are declared like the variables that they are the gradients of. What nobody writes is none, @EMPTY@. */
void prog_settle_grads(Program *p, Arena *tmp);
bool prog_check_blocks(const Program *p);                 /* BLOCK attributes: E-PRO-002 */
const char *content_kind(const uint8_t *bytes, size_t n); /* "a Python pickle"; NULL if unknown */
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
void prog_dot(const Program *p, Str *out);
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
/* What stands before the data of an entry that begins at `at` in its file. levels: offsets of sequences, int64, the outermost
 * level first. */
bool params_head(Str *out, size_t at, const Tensor *t, int n_levels, const Tensor *const *levels);
/* Offsets of sequences (LoD) that entry number `entry` of a file holds: `depth` 0 are of its rows, 1 of those sequences... */
typedef struct ParamLevel {
  int entry, depth;
  Tensor offsets; /* int64, a vector; in the arena */
} ParamLevel;
enum { PARAMS_LEVELS = 16 }; /* of an entry, at most */
typedef struct ParamLevels {
  Arena *arena;
  VEC(ParamLevel) all;
} ParamLevels;
/* The persistable variables that a combined file holds, sorted bytewise by name. */
int params_list(const Program *p, Arena *a, Var ***vars);
/* Exactly n tensors; names and expected shapes (may be NULL) are for checks and messages. Data in the arena.
 * The sizes of all entries are checked before any is accepted. levels: NULL, or where those of all entries are added. E-PAR. */
bool params_decode(const uint8_t *bytes, size_t n_bytes, const char *file, int n, Var *const *vars,
                   Arena *a, Tensor *out, ParamLevels *levels);
/* The same, but the data stays where it is in `bytes`, on any alignment. */
bool params_view(uint8_t *bytes, size_t n_bytes, const char *file, int n, Var *const *vars,
                 Tensor *out, ParamLevels *levels);

/* One variable's own file, as a folder of parameters holds them: an entry, or selected rows, which become dense. Data may
 * stay in `bytes`. */
bool params_view_one(uint8_t *bytes, size_t n_bytes, const char *file, const Var *v, Arena *a,
                     Tensor *out, ParamLevels *levels);
/* Has the tensor the variable's type and shape (unknown dimensions fit any)? E-PAR-002 */
bool params_fit(const Tensor *t, const Var *v);
/* statedict.c: .pdparams and .pdopt files, dictionaries of arrays as pickles. Name -> Tensor*; data may stay in `bytes`. */
bool pickle_is(const uint8_t *bytes, size_t n);
Map *pickle_params(uint8_t *bytes, size_t n, const char *file, Arena *a);

#endif
