/* The CPU backend's inside: contractions by microkernels or OpenBLAS and the kernels that are plain C functions.
 * Everything else is generated (backends/llvm). */
#ifndef KILN_CPU_H
#define KILN_CPU_H
#include "../backend.h"
#include "../llvm/micro.h"
#include <string.h>

/* ---- contract.c: what a contraction looks like, and which algorithm serves it ---- */

/* Which of operand A, operand B and the result a loop moves through. */
typedef enum LoopClass {
  LC_BATCH, /* A B result (or the result only) */
  LC_M,     /* A result */
  LC_N,     /* B result */
  LC_K,     /* A B, summed */
  LC_ODD    /* summed, but not in both */
} LoopClass;

typedef struct CLoop {
  int64_t ext;
  int64_t s
      [3]; /* elements between neighbours in A, B, result; of A and B only if addressed without division */
  LoopClass class;
} CLoop;

/* One dimension of an operand: index = (c[0]*loop[l[0]] + c[1]*loop[l[1]] + off) / div, zero outside 0..size-1. */
typedef struct CDim {
  int64_t size, stride;
  int l[2]; /* -1: absent; an only term is the first */
  int64_t c[2], off, div;
  bool guard; /* may fall outside, or not divide */
} CDim;

/* A contraction without its loops of extent 1. Result loops come first, outermost first. */
typedef struct Facts {
  DType dtype;
  int size; /* bytes of an element */
  int n;
  CLoop loop[KL_LOOPS];
  int n_dims[2];
  CDim dim[2][KL_RANK];
  bool plain[2]; /* no guarded dimension: address = base + sum of s*loop */
  int64_t base[2];
  int64_t numel; /* of the result */
  int64_t flops;
} Facts;

/* A list of loops, and the merged index that runs over them row-major. */
typedef struct LoopList {
  int n;
  int64_t total;
  int id[KL_LOOPS]; /* into Facts.loop */
} LoopList;

/* A matrix in memory: element (r, c) at r*ld + c, or at c*ld + r if transposed. */
typedef struct Mat {
  bool trans;
  int64_t ld;
} Mat;

/* Buffer slots of the kernel, and how the epilogue joins in. */
typedef struct Frame {
  int x[2], out, ws; /* slots in bufs: operands, raw result, workspace */
  bool constant[2];  /* operands: see KernelInput */
  bool epilogue;     /* has one */
  bool far;          /* the raw result goes to memory */
  bool updates;      /* the epilogue changes state in place */
  bool passing;      /* ... and nothing else reads the raw result; known once memory is planned */
  bool from_far[2];  /* operands that come from there */
  int64_t rows;      /* extent of the result's outermost loop */
  int64_t parts;     /* rows of the epilogue in each of those */
  int64_t columns;   /* of a row of the epilogue, if it can run on some of them; 0: it cannot */
  KernelFn *fn;      /* the epilogue; self is NULL, with Work.by_panel an EpilogueColumns */
  int computed; /* the operand that is computed where it is read, from x[computed] of its shape; -1: none */
  KernelFn *operand; /* LOOP_OPERAND; NULL, while algorithms are compared: it is read as it is */
} Frame;

/* How a kernel's work divides: filled in by a plan. */
typedef struct Work {
  KernelFn *fn[KERNEL_PHASES];
  int64_t n_tasks[KERNEL_PHASES];
  int n_phases;
  bool fused;    /* the epilogue runs inside the last phase; otherwise it is a phase of its own */
  bool by_panel; /* ... on some columns of some rows at a time */
  int64_t workspace, scratch;
  int prepares; /* see Kernel */
  uint64_t packing;
  int shares; /* parts of the result that are summed in the end */
  /* > 0: where in the workspace there is a byte for each pair of parts: 1 if the thread that made both has added them up */
  int64_t pairs_at;
} Work;

typedef enum PlanKind {
  PLAN_LOOPS,
  PLAN_GEMM,
  PLAN_IM2COL,
  PLAN_COL2IM,
  PLAN_CONV,
  PLAN_FILTER,
  PLAN_IMAGES,
  PLAN_IMAGES_GRAD
} PlanKind;
/* Algorithms that can be asked for: Kernel.choice is one of them, plus WAY_N * (1 + a row of the table of tiles) if it is to
 * use that tile. */
typedef enum Way {
  WAY_RULE,   /* the one that the shape suggests */
  WAY_CONV,   /* direct convolution; Winograd's where the error is allowed and it seems faster */
  WAY_DIRECT, /* the direct form, of a convolution or gradient of a filter, in any case */
  WAY_FILTER, /* gradients of filters by blocks of positions; Winograd's like WAY_CONV */
  WAY_GEMM,   /* one product after another, by microkernels */
  WAY_BLAS,   /* the same by OpenBLAS */
  WAY_WINDOW, /* im2col, col2im */
  WAY_IMAGES, /* vectors along the images, or along tiles of planes */
  WAY_N
} Way;
typedef struct Plan {
  PlanKind kind;
  Way way;
  const struct TileRow *only; /* the tile to use; NULL: the best */
  const struct TileRow *tile; /* of the microkernels; NULL: there are none */
  bool no_blas, chained;
  bool uses_blas;    /* no microkernels serve it */
  double conv_error; /* see Kernel */
  Facts facts;
  Frame frame;
  Work work;
  struct GemmPlan *gemm;
  struct Im2colPlan *im2col;
  struct Col2imPlan *col2im;
  struct ConvPlan *conv;
  struct FilterPlan *filter;
  struct ImagesPlan *images;
  struct ImagesGrad *images_grad;
  struct MicroPlan *micro; /* of its matrix products; NULL: by BLAS */
  int64_t pack_at;         /* where the thread's scratch for them begins */
  struct MicroSet *set;    /* the microkernels to compile; NULL: none */
} Plan;

enum { CONV_FLOPS = 1000000 }; /* what is less may be left to BLAS rather than be a PLAN_CONV */
/* no_blas: what microkernels cannot do is left to generated loops, and Kernel.choice does not count. A choice that the kernel
 * does not allow counts as none. */
Plan *contract_plan(Arena *a, const Kernel *k, bool no_blas);
/* "conv 14x2": the algorithm, and its tile. */
void plan_text(const Plan *p, char text[24]);
/* Does this algorithm, with this tile, serve the kernel? NULL: it does not. */
Plan *plan_by(Arena *a, const Kernel *k, int choice);
/* The epilogue of rows r0..r1-1 of Frame.rows. */
void run_epilogue(const Frame *f, void *const *bufs, int64_t r0, int64_t r1, RunCtx *ctx);
/* Compiles the plan's microkernels, if it has any: E-GEN-001. Sets E-GEN-004 if it needs OpenBLAS, which is missing. */
void plan_micro(Plan *p, CodeBatch *b);
/* Phases for the executor; epilogue is NULL if the kernel has none. */
void contract_code(Plan *p, KernelFn *epilogue, KernelCode *code);
/* Tasks worth making of so much arithmetic. */
int64_t tasks_for(int64_t flops);
static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
/* What the loop's index is multiplied by in this dimension; 0: it does not move through it. */
int64_t dim_factor(const CDim *c, int loop);
/* The only dimension of operand x that a loop moves through, and the other loop there (-1: none); false: none, or several. */
bool loop_dim(const Facts *f, int x, int loop, int *dim, int *other);

LoopList loops_of(const Facts *f, unsigned classes); /* bits 1<<LoopClass, in loop order */
/* Sort by the stride in tensor t, then split off the longest tail that is one loop in the tensors of the mask
 * (bits 1<<tensor); what comes before it goes to rest. */
LoopList merge_tail(const Facts *f, LoopList all, int t, unsigned tensors, LoopList *rest);
void list_add(const Facts *f, LoopList *l, int id);
void list_sort(const Facts *f, LoopList *l, int t); /* by decreasing stride in tensor t */
/* Offset of merged index i in tensor t */
int64_t list_at(const Facts *f, const LoopList *l, int64_t i, int t);
/* Stride of a merged list; 0 if empty */
int64_t list_step(const Facts *f, const LoopList *l, int t);
/* A rows x cols matrix with these strides as BLAS can take it. */
bool mat_of(int64_t rows, int64_t sr, int64_t cols, int64_t sc, Mat *m);
/* c (m x n) = beta*c + a (m x k) b (k x n). Single-threaded. */
void gemm(DType t, int64_t m, int64_t n, int64_t k, const void *a, Mat ma, const void *b, Mat mb,
          double beta, void *c, Mat mc);
/* Is this loop the result's outermost one of extent > 1, whose indices are the epilogue's rows? */
bool is_row_axis(const Facts *f, int id, int64_t rows);

/* ---- tune.c: which algorithm, by measurement ---- */

/* Sets k->choice as k->tuning says. */
bool choose_algorithm(Kernel *k);

/* ---- micro.c: matrix products by generated microkernels ---- */
typedef struct MicroPlan MicroPlan;
/* The products of a plan: their sizes (the second may be 0), and how the matrices lie. */
typedef struct MicroShape {
  int64_t m[2], n[2], k, batch;
  Mat a, b, c;
  bool a_varies, b_varies; /* the distance of rows or columns differs between products */
  int64_t flops;           /* of the whole contraction */
} MicroShape;
/* c (m x n) (+)= the sum over the batch of a (m x k) b (k x n); steps in elements. */
typedef struct MicroProduct {
  int64_t m, n, k;
  const void *a, *b;
  void *c;
  Mat a_mat, b_mat, c_mat;
  bool add;
  int64_t batch, a_step, b_step;
  int64_t cut_n; /* > 0: products of the plan's size side by side, of so many columns; C by rows */
} MicroProduct;
extern const char *micro_isa; /* a name in tiles.def, to have no other; NULL: the machine's best */
/* NULL: BLAS serves them. always: wherever microkernels can. only: see Plan. */
MicroPlan *micro_plan(Arena *a, DType t, const MicroShape *s, bool always,
                      const struct TileRow *only);
const struct TileRow *micro_tile(const MicroPlan *g);
int64_t micro_scratch(const MicroPlan *g); /* bytes that micro_run needs */
/* Is a sum of k, its A by rows, complete before it is added to C? */
bool micro_adds_once(const MicroPlan *g, int64_t k);
/* The microkernels of a plan; fn is filled in when they are compiled. */
typedef struct MicroSet {
  int n;
  MicroSpec *spec;
  MicroFn **fn;
  bool ready;
} MicroSet;
int micro_want(Arena *a, MicroSet *set, const MicroSpec *s); /* its index in the set */
MicroSet *micro_set(MicroPlan *g);
void micro_run(const MicroPlan *g, const MicroProduct *q, void *scratch);

/* ---- contract.c again: the products of a plan ---- */
void plan_products(Arena *a, Plan *p,
                   MicroShape *s); /* chooses who does them; adds to the scratch */
void multiply(const Plan *p, const MicroProduct *q, void *scratch); /* the thread's scratch */

/* ---- conv.c: what it leaves to gemm.c ---- */
/* A larger constant matrix is not packed for a product of one row. */
enum { ROW_BYTES_KEPT = 4 << 20 };

/* ---- shares.c ---- */
enum { MOST_SHARES = 16 };
/* A last phase: the result is the sum of n parts that the phases before leave in the workspace. */
void add_shares(Plan *p, int n);

/* ---- conv.c (winograd.c), filter.c, images.c, images_grad.c, planes_winograd.c, gemm.c, im2col.c, col2im.c: eight ways ---- */
bool filter_plan(Arena *a, Plan *p);
bool filter_takes(const Plan *p, const Kernel *k, int x);       /* see Backend.takes_operand */
int64_t filter_items(const Plan *p);                            /* KernelCode.items */
bool filter_rows(const Plan *p, const Kernel *k, TaskRows *to); /* see loop_rows */
bool conv_plan(Arena *a, Plan *p);
int64_t conv_items(const Plan *p);                            /* KernelCode.items */
bool conv_rows(const Plan *p, const Kernel *k, TaskRows *to); /* see loop_rows */
bool images_plan(Arena *a, Plan *p, int x);                   /* x: the operand that has images */
bool images_grad_plan(Arena *a, Plan *p, int x);              /* x: the operand with windows */
bool planes_plan(Arena *a, Plan *p, int x);                   /* x: the operand with windows */
bool gemm_plan(Arena *a, Plan *p);
bool gemm_shares_plan(Arena *a, Plan *p);   /* only if K is divided */
bool im2col_plan(Arena *a, Plan *p, int x); /* x: the operand that is gathered */
bool col2im_plan(Arena *a, Plan *p, int x); /* x: the operand that is divided */

/* ---- chain.c ---- */
/* How the tasks of an item are divided, of a kernel of a chain. */
typedef struct ChainTasks {
  int64_t tasks;
  const TaskRows *rows; /* by task; NULL: not known */
} ChainTasks;
/* The order of an item's tasks of the chain of n kernels k[], of a graph of so many nodes: how many steps. */
int chain_steps(Arena *a, int n, Kernel *const *k, const ChainTasks *t, int nodes,
                const ChainStep **steps);

/* ---- scatter.c, sort.c, call.c ---- */
bool scatter_code(Arena *a, const Kernel *k, KernelCode *code);
bool sort_code(Arena *a, const Kernel *k, KernelCode *code);
bool call_code(Arena *a, const Kernel *k, KernelCode *code);
int64_t call_workspace(const Kernel *k);

/* ---- info.c ---- */
void cpu_describe(Str *out);

#endif
