/* What the files of the frontend share. Public types are the internal ones under another name: see the assertions. */
#ifndef KILN_FRONTEND_INTERNAL_H
#define KILN_FRONTEND_INTERNAL_H
#include "kiln.h"
#include "../ir/ir.h"
#include "../executor/executor.h"

/* How far a net had got before a building call: what failed is taken back to there. */
typedef struct BlockMark {
  int ops, vars;
  Op **all;   /* its operators, where the call may insert some between them; else NULL */
  int *roles; /* then: what they were for; one becomes that of the loss */
} BlockMark;
typedef struct NetMark {
  const void *owner; /* the outermost building call under way; NULL: none */
  Block *block;
  const char *layer, *at, *prefix;
  int n_tmp;
  VEC(BlockMark) blocks; /* of the main program; behind them that of the startup program */
} NetMark;

struct kl_net {
  Program *main, *startup;
  Block *block;       /* of the main program, that operators go to; NULL: block 0 */
  const char *layer;  /* being built: outputs of its operators are LAYER.tmp_K; NULL: none */
  const char *at;     /* the user's file:line that the layer was called from */
  const char *prefix; /* of an operator outside of layers */
  int n_tmp;
  NetMark mark;
};

struct kl_exec {
  Executor *run;
  Scope *scope;
  bool owns_scope;
};

_Static_assert(sizeof(kl_tensor) == sizeof(Tensor) &&
                   offsetof(kl_tensor, data) == offsetof(Tensor, data) &&
                   offsetof(kl_tensor, dims) == offsetof(Tensor, dims),
               "kl_tensor is Tensor");
_Static_assert((int)KL_FLOAT64 == (int)DT_FLOAT64 && (int)KL_INT64 == (int)DT_INT64 &&
                   (int)KL_BOOL == (int)DT_BOOL,
               "kl_dtype is DType");
_Static_assert(sizeof(kl_custom_op) == sizeof(CustomOp), "kl_custom_op is CustomOp");

/* At the head of a function of kiln.h that allocates: if memory is refused, it returns `failed`, with E-MEM-001 recorded.
 * The guard ends with the function, however that returns. */
#define API_GUARD(failed)                                                                          \
  __attribute__((cleanup(mem_unguard))) MemGuard guard_;                                           \
  if (MEM_GUARD(guard_)) return failed

/* The same for a function that builds; if it fails, of whatever cause, the net is what it was before. `inserts`: it may put
 * operators between others. undo.c */
typedef struct Step {
  kl_net *net;
} Step;
void step_begin(const Step *s, bool inserts);
void step_end(Step *s);
#define BUILD_GUARD(net, inserts, failed)                                                          \
  __attribute__((cleanup(step_end))) Step step_ = {(net)};                                         \
  API_GUARD(failed);                                                                               \
  step_begin(&step_, inserts)
static inline kl_net *var_net(const kl_var *v) { return v ? v->block->prog->net : NULL; }

/* Is an argument there? E-ARG_002 */
#define NEED(arg) ((arg) || err_set(E_ARG_002, "%s: %s is NULL", __func__, #arg))

static inline Tensor *as_tensor(const kl_tensor *t) { return (Tensor *)(uintptr_t)t; }

static inline Block *net_block(const kl_net *net) {
  return net->block ? net->block : net->main->blocks.v[0];
}

/* builder.c: an operator of the main program in three steps; `at` is the user's file:line.
 * begin: NULL if an error is pending. end: creates the outputs that are not connected yet, infers their shapes, and
 * returns the first output's variable. */
Op *begin_op(const char *at, kl_net *net, const char *type);
kl_var *end_op(Op *op);
void keep_place(Op *op, const char *at); /* in op_callstack; NULL: nothing is kept */
/* Can a tensor have this element type and shape? known: no dimension may be -1. E_ARG_002, E_SHP_002 */
bool shape_declared(const char *what, kl_dtype dtype, int rank, const int64_t *dims, bool known);
void at_where(const char *at); /* the user's file:line, unless it is told already */
kl_net *net_of(const char *at, const kl_var *v); /* NULL (and an error) for NULL */
kl_net *net_of_both(const char *at, const kl_var *x, const kl_var *y); /* they are of one net */
/* A layer's name, KEY_N, which its operators' outputs carry until end_layer. */
const char *begin_layer(kl_net *net, const char *key, const char *at);
kl_var *end_layer(kl_net *net, const char *at, kl_var *y, const char *act); /* act may be NULL */

/* init.c: the startup operator that gives parameter v its first value. */
bool init_param(kl_net *net, const Var *v, kl_init init, bool is_bias);

#endif
