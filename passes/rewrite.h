/* What the Graph passes share. Private to this folder. */
#ifndef KILN_REWRITE_H
#define KILN_REWRITE_H
#include "passes.h"

/* rewrite.c */
/* The value that replaces n, whose operands are already replaced, or NULL to keep it. New nodes come from the g_*
 * builders: they are appended before n and not offered again in this sweep. n_uses is that of before the sweep; new
 * nodes have 0. */
typedef Node *RewriteFn(Graph *g, Node *n);
/* Offers every node once, in order. Returns how many were replaced. */
int graph_rewrite(Graph *g, RewriteFn *fn);
/* Drops the nodes that no write, fetch or check needs, and numbers the rest. */
void graph_sweep(Graph *g);
/* The node itself or, through reshapes, the one whose storage it shares. */
Node *node_base(Node *n);
/* constant.c: does the program give the state variable a new value? */
bool state_is_written(const Graph *g, const char *name);
void find_constant_kernels(Graph *g); /* once fusion has made them */
bool node_is_source(const Node *n);   /* has storage before the run begins */
/* Bytes of the arena for its workspace: none if that is kept, since it is prepared from what is constant. */
int64_t arena_workspace(const Kernel *k);
/* memplan.c: do values that only the chain of k stores and reads stay with the threads (B_LOCAL), if its kernels allow it? */
bool chain_has_locals(const Graph *g, const Kernel *k);
void number_kernels(Graph *g); /* order.c: ids and names after their positions */
bool node_is_target(const Graph *g, const Node *n); /* written or fetched, directly */
/* Are the dimensions the same but for ones? */
bool unit_reshape(const Node *n);
/* The loop extents of both, grouped so that the products agree: group[i] for the loops of a, then of b. Loops of
 * extent 1 belong to group -1. False if there are none such (a size 0). */
bool dims_group(const Node *a, int rank, const int64_t *dims, int8_t *ga, int8_t *gb);

/* views.c */
/* Does every index that dimension d makes fall inside 0..size-1? */
bool aff_total(const AffDim *d, const int64_t *ext, int64_t size);
bool view_total(const Node *v);
bool view_repeats(const Node *v); /* reads some element more than once (or may) */
/* Dimension by dimension: the terms in order, without loops of extent 1 and zero coefficients. */
void view_canon(AffDim *map, int n, const int64_t *ext);
bool aff_same(const AffDim *a, const AffDim *b, int n);
/* An inner view from x (rank 'x_rank', 'x_dims') to dims `dims`, with fill f. */
typedef struct ViewMap {
  int x_rank, rank;
  const int64_t *x_dims, *dims;
  const AffDim *map;
  double f;
} ViewMap;
/* The map from x to the loops of `outer` (extents ext, one AffDim per dimension of in->dims, fill *f): false if
 * no single map means the same. *f becomes its fill. */
bool view_compose(const ViewMap *in, const AffDim *outer, const int64_t *ext, double *f,
                  AffDim *out);
/* A view of other dimensions with the same elements in the same order, or NULL. */
Node *view_reshape(Graph *g, Node *v, int rank, const int64_t *dims);
/* n as `dims`, the reshape pushed through maps to the leaves; with `free_only` NULL if one would have to be computed for
 * it. */
Node *reshape_into(Graph *g, Node *n, int rank, const int64_t *dims, bool free_only);

/* constfold.c: a map of CONSTs as a CONST; NULL if it is not one. */
Node *fold_const_map(Graph *g, Node *n);

/* simplify.c: how often a rule fired in this thread; -1: no such rule. i counts through the rules, NULL at the end. */
long simplify_fired(const char *rule);
const char *simplify_rule(int i);

#endif
