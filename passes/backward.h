/* What the backward*.c share. */
#ifndef KILN_BACKWARD_H
#define KILN_BACKWARD_H
#include "passes.h"

/* What is known of the gradient of one version of a variable. */
typedef struct GradVar {
  bool reached;  /* the loss depends on it through differentiable operators */
  int n_parts;   /* gradient operators that contribute */
  int n_written; /* parts written so far */
  int first;     /* number of the first part in the names of parts */
  bool summed;   /* v@GRAD is complete */
  bool given;    /* v@GRAD holds the first part when the block begins */
} GradVar;

/* The walk over the forward operators of one block, from the last to the first. */
typedef struct Backward Backward;
struct Backward {
  Program *p;
  Block *b;  /* forward operators */
  Block *to; /* where their gradient operators go */
  Arena *a;
  Backward *up;  /* of the operator whose block this is; NULL for block 0 */
  Map *vars;     /* "name#version" -> GradVar* */
  Map *version;  /* name -> how often it is written before the operator that is looked at */
  Map *wanted;   /* names of this block that depend on something we differentiate by */
  Map *copies;   /* "name#version" -> the variable that keeps this value */
  Map *saved;    /* of all blocks: index -> copies */
  Map *renamed;  /* name -> parts named so far */
  Map *joins;    /* parts of gradients of arrays that the last operator wrote -> the array */
  Map *carried;  /* gradients that the block takes from around and gives back; NULL: none */
  bool *part;    /* of each operator: it gets a gradient operator */
  int n_forward; /* operators */
};

/* backward.c */
bool is_empty(const char *name);
void backward_prepare(Backward *w);
void backward_begin(Backward *w); /* to the end of the block */
/* Behind the operator to before it. */
void backward_step(Backward *w, const Op *op);
bool is_wanted(const Backward *w, const char *name);
void mark_wanted(Backward *w, int n_params, const char *const *params);
/* Marks what depends on what in a block from its end on, where the gradients of the names in `given` are given. */
bool backward_mark_given(Backward *w, const Map *given);
GradVar *grad_var(Backward *w, const char *name); /* of the version at this place */
const char *grad_name(Backward *w, const char *name);
/* One more operator will contribute to the variable's gradient. */
void add_part(Backward *w, const char *name);
bool is_array(const Backward *w, const char *name);
bool is_grad_slot(const char *from); /* of a gradient column: ends in @GRAD */
/* The variables of a forward slot, input or output; NULL if the operator has none. `from` may end in @GRAD. */
const Slot *forward_slot(Backward *w, const Op *op, const char *from);
/* The variable with the value that `name` has in this version. */
const char *saved_name(Backward *w, const char *name);
/* Numbers by name: 0 at first. */
int count_of(const Map *m, const char *name);
void count_add(Map *m, const char *name, int by);

/* backward_emit.c */
bool backward_emit(Backward *w);
/* Where the next operator that contributes writes. */
const char *next_part(Backward *w, const char *name);
/* Adds the parts of gradients of arrays that `origin`'s gradient operator, the last one, wrote. */
void join_arrays(Backward *w, const Op *origin);
/* v@GRAD complete in one variable: the sum of its parts, or zeros if nothing flows into v. */
const char *complete_grad(Backward *w, const char *name, const Op *origin);
Op *add_grad_op(Backward *w, const char *type, int role, const Op *origin);
/* Declares a variable in w->to as `like` is, unless it is there. */
void declare_like(Backward *w, const char *name, const char *like);

enum { BACKWARD_NESTED = 64 }; /* blocks with gradients */

/* backward_block.c: both step over the operator. */
bool op_has_block(const Op *op);
bool block_mark(Backward *w, const Op *op);
bool block_emit(Backward *w, const Op *op);

/* backward_recurrent.c: the same for operators that run a block for each row. */
bool recurrent_mark(Backward *w, const Op *op);
bool recurrent_emit(Backward *w, const Op *op);

#endif
