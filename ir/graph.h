/* The Graph: Nodes, their builders, the interpreter, gradients; how Programs become Graphs. Included through ir.h. */
#ifndef KILN_GRAPH_H
#define KILN_GRAPH_H

#include "program.h"

/* ---- the Graph ---- */

/* One dimension of an operand of a VIEW or CONTRACT, addressed from the loops of the result:
 *   index = (c0*loop[l0] + c1*loop[l1] + off) / div
 * with l = -1 for an absent term. If the division leaves a remainder, or the index falls outside the operand, the
 * element reads as the padding value (VIEW: Node.f; CONTRACT: 0, and such a term of the sum may be left out: whether 0 times an
 * infinity or NaN counts is up to the algorithm). div >= 1; c may be negative. */
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
  const struct Lod *up; /* the sequences of these sequences; NULL: none */
  const char *from;     /* the feed or state NAME@LOD that they are; NULL: computed */
} Lod;
extern const Lod lod_none; /* where NULL would mean: an input's */
#define LOD_SUFFIX "@LOD"  /* of a feed: the offsets of the variable before it, int64 */
const char *lod_base(const char *name, Arena *a); /* "x" of "x@LOD", else NULL */
/* "x@LOD", of depth 1 the offsets of those sequences, "x@LOD@LOD", ... */
const char *lod_name(Arena *a, const char *name, int depth);
/* Are these the offsets of sequences of so many rows: an int64 vector from 0 to rows, not decreasing? */
bool lod_fits(const Tensor *offsets, int64_t rows);

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
/* Where a backend has several algorithms for a kernel: which one it takes. */
typedef enum Tuning {
  TUNE_KNOWN,   /* the one that was once measured as the fastest on this machine, else as below */
  TUNE_RULE,    /* by a rule on the shape, whatever the disk cache holds */
  TUNE_MEASURE, /* measured now and remembered, if that has not been done */
  TUNE_LIBRARY  /* by a vendor's library, where one serves the kernel */
} Tuning;
struct Graph {
  Arena *arena;        /* owned */
  const Program *prog; /* NULL if parsed from text */
  bool shapes_only;    /* -1 dims are allowed: made for shape inference */
  Node *unknown;       /* whose value an expansion had to know and could not */
  Wanted wanted;
  Map *
      lods_read; /* names of the feeds and states NAME@LOD whose offsets the expansion has looked at; NULL: none */
  const Op *op;           /* of new nodes, see graph_set_op */
  VEC(Node *) nodes;      /* operands before users */
  VEC(NamedNode) writes;  /* persistable variables and their value at the exit, in program order */
  VEC(NamedNode) fetches; /* in the order asked for */
  const Lod **fetch_lods; /* of each fetch, when it was expanded, its sequences or NULL */
  VEC(struct Kernel *) kernels; /* after fusion, in running order */
  VEC(struct Buffer *) buffers; /* after memory planning */
  VEC(ExitCopy)
  copies; /* after memory planning: state written elsewhere than in place, copied at the exit */
  int64_t arena_bytes, lower_bound; /* of the plan */
  int64_t kept_bytes;               /* of all B_KEPT */
  int64_t local_bytes;              /* of the B_LOCAL of a chain, at most: each thread's */
  int threads;           /* that will run it; 0: not known, and then nothing is B_LOCAL */
  int64_t memory_budget; /* bytes of the arena that recomputation is to reach; 0: none */
  double conv_error;     /* see Kernel */
  unsigned no_kinds;     /* bits 1 << KernelKind: what the backend has no code for */
  bool (*takes_operand)(const struct Kernel *k, int x); /* the backend's, or NULL: see backend.h */
  bool images_last;   /* convolutions may have the images of the batch last */
  bool updates;       /* the epilogue of a contraction may update state in place */
  bool channels_last; /* convolutions always have the channels last, filters [KH, KW, I, O] */
  Tuning tuning;
  const struct CompileOptions *options; /* see Kernel */
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
bool graph_verify(const Graph *g); /* arity, types, shapes, order; numbers the nodes */

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

/* ---- expand.c, expand_grad.c, infer.c: operators -> primitives; also the shape inference ---- */

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
/* Notes that the offsets are compiled in. NULL is allowed; gives it back. */
const Lod *lod_read(Graph *g, const Lod *lod);
/* Sets an output with its sequences (lod_none: without any). Others get those of the first input that has as many rows. */
bool x_out_lod(Expand *x, const char *slot, Node *n, const Lod *lod);
int x_n_out(Expand *x, const char *slot);
/* No-op if the slot is not connected; false if n is NULL */
bool x_out(Expand *x, const char *slot, Node *n);
bool x_out_at(Expand *x, const char *slot, int i, Node *n);
/* The k-th random stream of this operator: stable under edits elsewhere */
int64_t x_stream(Expand *x, int k);
/* The k-th stream of all operators that draw by the variable `name` */
int64_t stream_of(const char *name, int k);
/* ops/given.c: attributes that variables give. */
bool op_has_given(const Op *op);
/* x->op with their values. *declared: they are not known, and the outputs are set as they are declared (in shape inference).
 * NULL: error set. */
const Op *op_with_constants(Expand *x, bool *declared);
/* Expand one operator: reads and extends env. Adds the place to any error. */
bool expand_op(Expand *x, const Op *op);
/* x->op, a gradient operator whose row has no expansion, by derive(). */
bool expand_gradient(Expand *x);
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
  /* NULL, or the value that a fed variable, or the sequences NAME@LOD of a variable, have in every run of this graph; NULL:
   * any. Of sequences that the expansion does not look at (Graph.lods_read) only that they are there. */
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

/* gtext.c: the Graph's text form, before or after fusion. */
void graph_print(const Graph *g, Str *out);
Graph *graph_parse(const char *text, size_t n, const char *file);
void graph_dot(const Graph *g, Str *out);

#endif
