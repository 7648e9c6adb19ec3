/* What the files of the generator share: see llvm.h for who does what. */
#ifndef KILN_GEN_H
#define KILN_GEN_H
#include "llvm.h"
#include <llvm-c/Core.h>

typedef LLVMValueRef Val;

enum {
  AFF_TERMS = 6,
  GEN_DEPTH = KL_LOOPS + 4, /* deepest nest of generated loops */
  GEN_BUCKETS = 64,
  GEN_CUTS = 8, /* most places where the innermost loop is cut */
  COLUMNS = 64, /* columns summed side by side when the last axis is not reduced */
  UNROLL = 16,  /* sums of at most so many points have no loops */
  ACROSS = 32,  /* columns of a block of a transposition */
  CHUNK = 16384 /* points of one task, about */
};

/* k + sum c[i] * var[i], terms sorted by variable. n = -1 in an Index: the dimension is merged into the one before it,
 * whose expression counts both (row-major). */
typedef struct Aff {
  int n, var[AFF_TERMS];
  int64_t c[AFF_TERMS], k;
} Aff;
typedef struct Index {
  int rank;
  Aff d[KL_LOOPS];
} Index;

/* A loop variable, or a computed index that is not affine in them. */
typedef struct LoopVar {
  Val v; /* i64; NULL while probing */
  int64_t lo, hi;
} LoopVar;

/* A value already emitted: of a node at an index, or of an index computation. */
typedef struct Memo {
  struct Memo *next;
  uint64_t hash;
  int n;
  int64_t *key;
  Val v[4];
  int var[2];
} Memo;

typedef struct NodeInfo {
  const Node *node;
  int input, output;               /* place in bufs, or -1 */
  int level;                       /* sweep reductions below it: the sweep that can compute it */
  uint32_t merge_known, merge_yes; /* bit d: can_merge(d) */
  int stored;                      /* sweep that stores it at the full point, or INT_MAX */
  bool inside, heavy;              /* computed in this kernel; worth reloading */
  Val acc, acc_place; /* sweep reduction: accumulator (array), for ARGMAX also the place */
  Val kept;           /* array of its values in the row, from its own sweep on; or NULL */
} NodeInfo;

typedef struct Gen Gen;
typedef struct CudaTile CudaTile;
typedef struct CudaCopies CudaCopies;
struct Gen {
  Arena *a;
  LLVMContextRef c;
  LLVMModuleRef m;
  LLVMBuilderRef b;
  bool gpu, fma;
  int vector_bytes, registers; /* of the CPU's vectors */
  LLVMTypeRef i1, i8, i16, i32, i64, f16, f32, f64, ptr;
  LLVMMetadataRef access; /* the access group of all loads and stores at points */
  unsigned md_access, md_loop;

  Kernel *k;
  LoopPart part;
  VEC(NodeInfo *) info; /* indexed by Node.mark, checked by Node */
  Val fn, bufs[256], seed, step, ctx, begin, end;
  const struct CudaGemm *sums; /* GPU: what left the contraction in parts, or NULL */
  int pack;              /* GPU: neighbours that are computed together, and read at once; or 0 */
  int64_t shared;        /* GPU: bytes of shared memory of the function, but those of products */
  struct CudaTile *tile; /* GPU: reads that go through shared memory, or NULL */
  /* GPU: buffers of which the block has a span in shared memory, or NULL */
  struct CudaCopies *copies;
  Val active; /* GPU: i1 of depth 1, whether the thread has a row of its own; NULL: yes */
  int n_bufs;
  VEC(LoopVar) vars;
  int depth; /* of the innermost open loop; 0 = function entry */
  LLVMBasicBlockRef at[GEN_DEPTH];
  struct {
    LLVMBasicBlockRef bb;
    int depth;
  } * blocks;
  int n_blocks, cap_blocks;
  Memo *memo[GEN_DEPTH][GEN_BUCKETS];

  int sweep;          /* running number of the sweep being emitted */
  const Index *point; /* the full index that is being computed, or NULL */
  Aff place;          /* of the point in its row */
  bool columns; /* accumulators are arrays over dimensions col_first..col_last, minus col_base */
  int col_first, col_last;
  Aff col_base;

  bool probe;   /* nothing is emitted: index expressions are explored */
  int inner;    /* while probing: the innermost variable */
  int64_t want; /* divisions come out even every so many steps of it */
  int64_t cut[GEN_CUTS];
  int n_cut;
  int budget; /* nodes left to probe */
  const char *failed;
};

/* gen.c: values, places, memo */
void gen_types(Gen *g, LLVMContextRef c);
void gen_at(Gen *g, int depth);                /* build at the end of the code of that depth */
int gen_depth(Gen *g, Val v);                  /* the innermost loop that v depends on */
void gen_at_vals(Gen *g, int n, const Val *v); /* where all of them are known */
Val gen_and(Gen *g, Val x, Val y);             /* NULL stands for true */
Val gen_compare(Gen *g, LLVMIntPredicate p, Val x, Val y);
Val gen_select(Gen *g, Val c, Val x, Val y);
void gen_block(Gen *g, LLVMBasicBlockRef bb, int depth);
int gen_var(Gen *g, Val v, int64_t lo, int64_t hi);
Memo *memo_find(Gen *g, const int64_t *key, int n);
Memo *memo_add(Gen *g, int depth, const int64_t *key, int n);
void memo_drop(Gen *g, int depth); /* of that depth and deeper */
Val gen_i64(Gen *g, int64_t v);
Val gen_call(Gen *g, const char *intrinsic, LLVMTypeRef t, int n, Val *args); /* overloaded on t */
Val gen_min(Gen *g, Val x, Val y);                                            /* of i64 */
Val gen_max(Gen *g, Val x, Val y);
Val gen_access(Gen *g, Val load_or_store); /* marks it as parallel between points */

/* index.c */
Aff aff_k(int64_t k);
Aff aff_var(int var, int64_t c);
Aff aff_add(Gen *g, const Aff *x, const Aff *y);
Aff aff_mul(Aff x, int64_t c);
bool aff_equal(const Aff *x, const Aff *y);
void aff_range(const Gen *g, const Aff *x, int64_t *lo, int64_t *hi);
void aff_divmod(Gen *g, const Aff *x, int64_t d, Aff *q, Aff *r);
Val aff_value(Gen *g, const Aff *x);
int aff_key(const Aff *x, int64_t *key);
int index_key(const Index *ix, int64_t *key);
enum { INDEX_KEY = KL_LOOPS * (2 + 2 * AFF_TERMS) };
bool index_equal(const Index *x, const Index *y);
Aff index_linear(Gen *g, const Index *ix, const int64_t *dims, int from, int to);
void index_split(Gen *g, Index *ix, const int64_t *dims, int d); /* no run covers d after it */
void index_reshape(Gen *g, const Index *ix, const int64_t *dims, int rank, const int64_t *to,
                   Index *out);
/* The operand's index for a map over the loops ix (extents ext). False: always outside. *guard: i1 or NULL = inside. */
bool index_map(Gen *g, const Index *ix, const int64_t *ext, const AffDim *map, int rank,
               const int64_t *dims, Index *out, Val *guard);

/* merge.c: loops from..to-1 as one run: does the map read them as adjacent operand dimensions *at..*end-1, or not at all (*at -1)? */
bool map_run(const AffDim *map, int rank, const int64_t *dims, const int64_t *ext, int from, int to,
             int *at, int *end);
/* May dimensions d and d+1 of n be one loop without costing divisions? */
bool can_merge(Gen *g, Node *n, int d);
/* The same for loops of a map that reads x. */
/* n: loops */
bool can_merge_map(Gen *g, Node *x, const AffDim *map, int n, const int64_t *ext, int d);

/* prim.c */
LLVMTypeRef val_type(Gen *g, DType t); /* in registers */
LLVMTypeRef mem_type(Gen *g, DType t); /* in memory */
Val val_const(Gen *g, DType t, double f, int64_t i);
Val val_of_mem(Gen *g, DType t, Val v); /* what is in memory as a value, and back */
Val val_to_mem(Gen *g, DType t, Val v);
Val val_load(Gen *g, DType t, Val p);
void val_store(Gen *g, DType t, Val v, Val p);
Val val_map(Gen *g, const Node *n, Val *x); /* a class M node on its operands' values */
Val reduce_init(Gen *g, Prim p, DType t);
Val reduce_step(Gen *g, Prim p, DType t, Val acc, Val x, bool reassoc);

/* math.c: t is g->f32 or g->f64 */
Val math_exp(Gen *g, LLVMTypeRef t, Val x);
Val math_log(Gen *g, LLVMTypeRef t, Val x);
Val math_tanh(Gen *g, LLVMTypeRef t, Val x);
Val math_erf(Gen *g, LLVMTypeRef t, Val x);
Val math_sin(Gen *g, LLVMTypeRef t, Val x);
Val math_pow(Gen *g, LLVMTypeRef t, Val x, Val y);
Val math_fma(Gen *g, LLVMTypeRef t, Val x, Val y, Val z);

/* emit.c */
Val emit(Gen *g, Node *n, const Index *ix); /* NULL while probing */
/* The value of n there, while the loops are open. */
void emit_known(Gen *g, Node *n, const Index *ix, Val v);
Val emit_address(Gen *g, int buf, DType t, const Aff *linear);
/* acc plus one product of a contraction, at the index of all its loops. */
Val emit_product(Gen *g, Node *n, const Index *ix, Val acc, bool reassoc);
Val argmax_better(Gen *g, DType t, Val v, Val best);

/* One loop: dimensions first..last of the domain. */
typedef struct Axis {
  int first, last;
  int64_t ext;
} Axis;
/* A value to store: at every point of the domain, or once per row. */
typedef struct Root {
  Node *n;
  int buf;
  bool full;
  int concat_axis;          /* -1, or the axis along which it is placed */
  int64_t concat_at;        /* from here */
  const int64_t *into_dims; /* of what */
} Root;
/* A loop nest: rows (all loops over result axes but the inner one, in blocks) in tasks, sums inside, the inner loop last. */
typedef struct Nest {
  int rank;
  const int64_t *ext;
  uint32_t red;
  Node *contract; /* summed by this nest, or NULL */
  int n_out, n_sum;
  Axis out[KL_LOOPS], sum[KL_LOOPS];
  bool columns; /* sums, and the inner loop runs over results */
  bool inner;   /* out[n_out-1] is the inner loop, not part of the rows */
  int few; /* its dimensions from this one on, of n_few points, are done in each of its iterations; 0: none are */
  int64_t n_few;
  bool by_row; /* one task is one index of out[0] */
  bool unroll; /* sums are so short that all their points are done at once, without accumulators */
  int64_t block, n_block; /* of the inner loop */
  int across; /* transposition: this axis is done `tile` indices at a time per block of the inner loop */
  int64_t tile;   /* divides the axis; 0: no transposition */
  int64_t n_sums; /* points of one result */
  int64_t rows, rows_per_task, tasks;
  VEC(Root) roots;
} Nest;
/* nest.c. i: the operand of a K_CONCAT, otherwise 0. */
int nest_n(const Kernel *k, LoopPart part);
void nest_plan(Gen *g, int i, Nest *t);
NodeInfo *gen_info(Gen *g, Node *n);

/* loop.c: one loop, lo..hi-1; its variable is in from..to. */
typedef struct Loop {
  LLVMBasicBlockRef head, exit;
  Val phi, hi, step;
  int64_t trip; /* iterations; 0: not known here */
} Loop;
typedef enum LoopHint {
  LOOP_PLAIN,
  LOOP_POINTS, /* accesses at its points do not depend on one another */
  LOOP_WIDE /* the same; a body that fills the vector registers: one vector of points at a time */
} LoopHint;
Loop loop_open(Gen *g, Val lo, Val hi, Val step, int64_t from, int64_t to, int *var);
void loop_close(Gen *g, const Loop *l, LoopHint hint);

/* loop.c: nest i of the kernel over the tasks begin..end-1. */
void gen_nest(Gen *g, int i, Val begin, Val end);
/* operand.c: rows begin..end-1 of the operand that the kernel computes; self: an OperandPart. */
void gen_operand(Gen *g, Val self, Val begin, Val end);

/* stencil.c: NULL: not such a contraction. stencil_gen.c: its code. */
typedef struct Stencil Stencil;
Stencil *stencil_plan(Arena *a, const Kernel *k, LoopPart part);
int64_t stencil_tasks(const Stencil *s, LoopPart part);
bool stencil_task_rows(const Stencil *s, TaskRows *to);
int64_t stencil_item_tasks(const Stencil *s); /* for each index of dimension 0; 0: they straddle */
void gen_stencil(Gen *g, const Stencil *s, Val begin, Val end); /* tasks */

/* kernel.c: a function of the module for the kernel; false: g->failed says which primitive cannot be generated. */
bool gen_kernel(Gen *g, Kernel *k, LoopPart part, const char *symbol);
bool gen_start(Gen *g, Kernel *k, LoopPart part); /* forgets the function before */

/* target.c */
typedef struct Target Target;
Target *target_open(const char *name); /* E-GEN-001, E-GEN-002 */
void target_close(Target *t);          /* NULL is allowed */
/* One batch: a context, and a module for the target. E-GEN-001. */
typedef struct Batch Batch;
Batch *batch_new(Target *t, Arena *a);        /* in the arena; batch_free all the same */
bool batch_parse(Batch *b, const char *text); /* the module is this text */
/* The generator for the functions of the batch's module; NULL: error set. */
Gen *batch_gen(Batch *b, Arena *a);
bool gen_failed(const Gen *g, const Kernel *k); /* says why; false */
bool batch_verify(Batch *b);
/* The module has functions named symbol[i] (part NULL: LOOP_MAIN of all). */
bool batch_kernels(Batch *b, Arena *a, int n, Kernel *const *k, const LoopPart *part,
                   const char *const *symbol);
bool batch_optimise(Batch *b);
bool batch_text(Batch *b, Str *out);              /* LLVM IR */
bool batch_emit(Batch *b, bool object, Str *out); /* assembly or object bytes */
void batch_free(Batch *b);
/* The functions of all jobs in one text or object, by the jobs' names: see code_emit. */
struct CodegenJob;
bool target_emit(int n, const struct CodegenJob *jobs, const CompileOptions *o, const char *what,
                 Str *out);
void target_describe(Str *out);
#endif
