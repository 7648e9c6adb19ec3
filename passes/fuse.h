/* Fusion, private to fuse*.c. A Group is a Kernel in the making: roots (materialised values) and what is inlined into them. */
#ifndef KILN_FUSE_H
#define KILN_FUSE_H
#include "rewrite.h"

/* How a value is read inside a group, relative to the group's point. Bits. */
enum {
  AT_POINT = 1, /* a value of the full shape, at the point */
  AT_ROW = 2,   /* a value of the row shape, by a row map */
  AT_SPREAD =
      4,       /* a value of the row shape, through an expand to the full shape: in a later sweep */
  AT_OTHER = 8 /* anywhere */
};

typedef struct Use {
  Node *node;
  unsigned at;
} Use;

typedef struct Group {
  KernelKind kind;
  bool dead, has_check, writes_state; /* dead: merged into another */
  int visit;                          /* stamp of the last search that met it */
  Node *core;
  int rank;
  int64_t ext[KL_RANK];
  uint32_t reduce;
  VEC(Node *) roots;
  VEC(Node *) again; /* what it computes once more although another group stores it */
  /* of scan(): */
  VEC(Node *) nodes;
  VEC(Use) inputs;
} Group;

typedef VEC(Node *) NodeVec;

typedef struct Fuse {
  Graph *g;
  Arena *a; /* scratch */
  int n;
  /* by node id */
  NodeVec *users;
  bool *root;          /* stored in memory, or a candidate for it */
  bool *target;        /* its storage is written or fetched */
  bool *state_write;   /* ... written */
  double *cost;        /* operations per element when inlined */
  int *loads;          /* tensors of about its size read per element when inlined */
  Group **owner;       /* of roots */
  unsigned char *seen; /* AT_ bits, during scan() */
  VEC(Group *) groups;
  /* scratch of scan() and try_merge() */
  VEC(Use) stack;
  VEC(const Group *) search;
  Group trial;
  Node *blame; /* what the last failed scan() could not read */
  int visit;
} Fuse;

/* fuse_roots.c: decides Fuse.root. */
void choose_roots(Fuse *f);
/* Is it a reduction that makes a domain of its own? */
bool sweeps_by_itself(const Fuse *f, const Node *n);

/* fuse_group.c */
Group *group_of(Fuse *f, Node *root);
/* Fills nodes and inputs; false if the roots cannot be computed in one kernel. `also`: its roots count as own. */
bool scan(Fuse *f, Group *k, const Group *a, const Group *b);
void merge_all(Fuse *f);

/* fuse_emit.c: groups to g->kernels in running order. */
void emit_kernels(Fuse *f);

#endif
