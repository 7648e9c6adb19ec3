/* Programs that do not compile as one: what the files control*.c share.
 *
 * A Plan cuts the blocks of a Program into steps. A step is a Section of operators, compiled as one like a program of its
 * own, or a host operator, which the executor runs itself. Variables that are not persistable and live across steps are
 * Values in Frames: one frame for each run of a block. */
#ifndef KILN_CONTROL_H
#define KILN_CONTROL_H
#include "internal.h"

/* ---- values ---- */

typedef enum ValueKind { V_TENSOR, V_ARRAY, V_FRAMES } ValueKind;

typedef struct Value Value;
typedef struct Frame Frame;
typedef struct Control Control;

/* Tensors are never changed once they are in a frame, so that they can be shared. */
struct Value {
  ValueKind kind;
  int refs;
  Tensor t;       /* V_TENSOR: data of mem_alloc, or of the caller if `borrowed` */
  bool borrowed;  /* a feed */
  int n, cap;     /* V_ARRAY, V_FRAMES */
  Value **items;  /* V_ARRAY: NULL for an element that nobody has written */
  Frame **frames; /* V_FRAMES: what the runs of a sub-block have left for its gradient */
  /* of a tensor: its sequences, offsets (int64) of rows, which may have sequences themselves */
  Value *lod;
  Value *prev, *next; /* all of a run */
};

/* ---- the plan ---- */

typedef struct PlanBlock PlanBlock;
typedef struct Step Step;

/* Where a variable is found from a frame: `up` parents up, then perhaps in the frame of the forward pass. */
typedef struct Ref {
  const Var *var;
  int up, slot; /* slot -1: in the scope */
  bool forward;
} Ref;

/* NEXT: done; WAIT: frames were pushed, and `after` is called when the topmost is through. */
typedef enum HostResult { HOST_FAIL, HOST_NEXT, HOST_WAIT } HostResult;
typedef HostResult HostFn(Control *c, Frame *f, Step *s);
typedef HostResult AfterFn(Control *c, Frame *f, Step *s, Frame *child);
typedef struct HostOp {
  const char *name;
  bool array;  /* the variant for tensor arrays of an operator that is compiled otherwise */
  HostFn *run; /* NULL: the end of the table */
  AfterFn *after;
} HostOp;
extern const HostOp host_ops[];

/* An inner variable of a gradient's block and its counterparts around. */
typedef struct GradLink {
  char role;      /* of a recurrent operator: see control_rnn.c */
  int slot;       /* in the gradient's block */
  int x;          /* index into X, or Input; -1: none */
  int og;         /* index into Out@GRAD; -1: none */
  bool carried;   /* each run of the block replaces it; otherwise the runs are summed */
  bool unwritten; /* the block consumes it and leaves nothing in its place */
  const char *of; /* the forward variable */
} GradLink;

struct Step {
  Section section; /* block NULL: a host operator */
  const Op *op;
  const HostOp *host;
  int n_in, n_out; /* of a section: variables that it reads from frames, and leaves in them */
  const char **in, **out;
  Ref *in_ref, *out_ref;
  bool *known;               /* of each input: compiled for its value */
  Value **in_val, **out_val; /* while the section runs */
  int cap_feeds;
  Feed *feeds;       /* inputs, then offsets of sequences */
  Value **feed_lods; /* of each feed behind the inputs */
  Tensor *results;
  Ref **ins, **outs; /* of a host operator, as its slots */
  Executable *made;  /* most recently used first */
  PlanBlock *sub;    /* the operator's block */
  bool keep;         /* its frames stay for the gradient */
  int n_links;
  GradLink *links; /* of a gradient, or of a recurrent operator */
};

struct PlanBlock {
  const Block *b;
  PlanBlock *parent, *forward;
  const Op *owner; /* the operator that runs it */
  /* name -> slot + 1 of declared variables and of gradients that are local while it runs */
  Map *index;
  /* name -> slot + 1 of outer variables as they were when it began: its gradient sees them */
  Map *snaps;
  Ref *snap_refs; /* where they come from */
  int n_slots;
  int *readers;   /* per slot, how many inputs read it */
  bool *exported; /* per slot, read by the operator that runs the block */
  const bool *skip;
  VEC(Step *) steps;
};

typedef struct Plan {
  Arena *arena;
  uint64_t id, edits; /* of the program */
  const char *key;
  PlanBlock **blocks; /* by index; NULL: not reached */
  int n_blocks;
  int n_fetch;
  Ref *fetch;
  int *fetch_depth; /* of each: 0 the variable, 1 the offsets of its sequences, ... */
  Map *lod_names;   /* x -> "x@LOD" */
  struct Plan *next;
} Plan;

/* control_plan.c */
Plan *plan_make(const CompileRequest *r);
void plan_free(Plan *p);
bool plan_find(PlanBlock *b, const char *name, Ref *r);
/* The same: NULL, or the block that has the variable. */
PlanBlock *plan_holder(PlanBlock *b, const char *name, Ref *r);
int plan_slot(const Map *m, const char *name); /* of an index or of snaps; -1: not there */
int plan_new_slot(Map *m, const char *name, PlanBlock *b);
bool plan_skips(const PlanBlock *b, int i);           /* operator i */
bool plan_op_error(const Op *op);                     /* false; adds where it is */
const char *plan_lod_name(Plan *p, const char *name); /* always the same "x@LOD" */

/* control_link.c: the links of a step; the snaps of its forward block. */
bool plan_link_gradient(Plan *p, Step *s);
bool plan_link_recurrent(Plan *p, Step *s);
void plan_add_snaps(Plan *p, PlanBlock *g);

/* control_section.c */
bool plan_count_readers(Plan *p);
bool plan_bind_section(Plan *p, PlanBlock *b, Step *s);
/* Cuts the section `at` of the block before an operator, whose section then has that input known. */
bool plan_cut(Plan *p, PlanBlock *b, int at, const Wanted *w);
void step_free_made(Step *s);

/* ---- a run ---- */

struct Frame {
  PlanBlock *b;
  Frame *parent, *forward;
  int at;        /* position of the step */
  uint64_t seed; /* of random numbers */
  Value **vals;
  int64_t count;      /* of the control operator that waits: runs of its block */
  Value *frames;      /* those that it keeps, or goes through */
  Value **sums;       /* of a gradient: per link */
  Frame *prev, *next; /* all of a run */
};

typedef struct Undo {
  const char *name;
  Tensor was; /* data NULL: it had no value */
  struct Undo *next;
} Undo;

struct Control {
  Executor *e;
  Scope *scope;
  Plan *plan;
  const CompileRequest *req;
  uint64_t seed, step;
  VEC(Frame *) stack;
  Value *values; /* all that live */
  Frame *frames;
  Undo *undo;
  Arena *arena;
  int64_t n_steps, max_steps;
};

/* control_value.c */
Value *value_new(Control *c, ValueKind k);
/* A tensor of that shape, not zeroed. */
Value *value_tensor(Control *c, DType t, int rank, const int64_t *dims);
Value *value_zeros(Control *c, const Tensor *like);
Value *value_zeros_like(Control *c, const Value *like); /* with its sequences */
/* The same tensor with other sequences (may be NULL). Takes both references. */
Value *value_with_lod(Control *c, Value *v, Value *lod);
Value *value_share(Value *v); /* one more reference; NULL is allowed */
void value_drop(Control *c, Value *v);
void value_add_frame(Value *v, Frame *f);
/* Element i of an array, which grows as needed. Takes the reference. */
void array_put(Control *c, Value *array, int64_t i, Value *item);
Frame *frame_new(Control *c, PlanBlock *b, Frame *parent, Frame *forward);
void frame_clear(Control *c, Frame *f);
void frame_drop(Control *c, Frame *f);
void control_free_all(Control *c);
Value **ref_at(Frame *f, const Ref *r); /* r->slot >= 0 */
/* The value, NULL if there is none; of a persistable variable a copy. The caller drops it. */
Value *ref_get(Control *c, Frame *f, const Ref *r);
bool ref_set(Control *c, Frame *f, const Ref *r, Value *v); /* takes the reference */
/* Of a host operator. op_value: E-RUN-005 if there is none. The caller drops it. */
const Ref *step_in(const Step *s, const char *slot, int i); /* NULL: not connected */
const Ref *step_out(const Step *s, const char *slot, int i);
Value *op_value(Control *c, Frame *f, const Step *s, const char *slot, int i);
/* control_data.c: an input that must be a tensor. */
Value *op_tensor(Control *c, Frame *f, Step *s, const char *slot);
bool op_result(Control *c, Frame *f, const Step *s, const char *slot, int i, Value *v);
/* The one number in a tensor; E-RUN-005. */
bool op_number(Control *c, Frame *f, const Step *s, const char *slot, double *v);
/* E-RUN-005 with the operator and the slot. */
bool op_refuses(const Step *s, const char *slot, const char *what);
Value *value_sum(Control *c, const Value *a, const Value *b); /* NULL: E-SHP-006 */
/* The state of the scope before this run, for when it fails. */
void undo_note(Control *c, const char *name);

/* control.c */
/* A frame for the block, to be run next. */
Frame *control_push(Control *c, Frame *f, PlanBlock *b, Frame *forward);
/* The same with a frame that is through; false: it cannot be used again. */
bool control_again(Control *c, Frame *f);
/* Zeros for the gradient of a variable that has a value, for where nothing has flowed into it; else NULL. */
Value *missing_grad(Control *c, Frame *f, const char *name);

/* control_ops.c, control_array.c, control_data.c, control_grad.c: see control.def */
#define CONTROL(name, array, run, after) HostFn run;
#include "control.def"
#undef CONTROL
AfterFn after_recurrent, after_recurrent_grad, after_while, after_conditional, after_while_grad,
    after_conditional_grad;

#endif
