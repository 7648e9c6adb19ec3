/* What the expansion functions of this folder share: checked attributes, axes, integer lists that may come from tensors,
 * and nodes of unknown shape. All functions that return bool or NULL on failure have recorded an error. */
#ifndef KILN_OPS_H
#define KILN_OPS_H

#include "../ir.h"

enum { OPS_MAX_SP = 3 };      /* spatial dimensions of convolution and pooling */
#define OPS_UNKNOWN INT64_MIN /* an element of an integer list that shape inference cannot know */

/* common.c */
/* axis in -rank..rank-1 -> 0..rank-1; E-SHP-003 naming the attribute. */
bool ops_axis(const char *attr, int64_t axis, int rank, int *out);
/* The list attribute as a set of axes; E-SHP-003 also for a repeated one. */
bool ops_axes(Expand *x, const char *attr, int rank, uint32_t *set);
/* E-SHP-002 unless lo <= rank <= hi. */
bool ops_rank(const Node *n, const char *slot, int lo, int hi);
/* E-TYP-002 unless floating or, for ops_index, int32 or int64. */
bool ops_float(const Node *n, const char *slot);
bool ops_index(const Node *n, const char *slot);
/* E-SHP-006 unless both are unknown or equal. */
/* Is a table of rows x columns numbers, made while compiling, one that a program may have? E_MEM_002 */
bool ops_table(const char *what, int64_t rows, int64_t columns);
bool ops_same(const char *what, int64_t a, int64_t b);
/* An integer list attribute of exactly n values (a scalar counts for all) in lo..hi; E-OPR-003. */
bool ops_ints(Expand *x, const char *attr, int n, int64_t lo, int64_t hi, int64_t *out);
/* data_format and data_layout: are channels last? E-OPR-003 for other words. */
bool ops_layout(Expand *x, const char *attr, bool *last);

/* Integers given by a list of one-element tensors, else by one tensor, else by the attribute (each may be NULL). Returns
 * how many, -1 on error. In shape inference elements may be OPS_UNKNOWN; otherwise a tensor that is not constant is
 * E-OPR-006. What is known is at least -2^63 + 1. */
int ops_list(Expand *x, const char *list_slot, const char *slot, const char *attr, int64_t *v,
             int max);
/* Records E-OPR-006: an input's value must be known, and is not. Returns false. */
bool ops_not_constant(Graph *g, Node *n, const char *slot);
/* The value of a node that depends on constants only: false (without error) if it does not. */
bool ops_value(Graph *g, Node *n, Tensor *value);
/* The integers of a node that depends on constants only: false (without error) if it does not. */
bool ops_constant(Graph *g, Node *n, int64_t *v, int max, int *count);

/* The attribute `axis`, or the tensor that overrides it: 1 = found, -1 = unknown in inference, 0 = error. */
int ops_axis_of(Expand *x, const char *slot, int rank, int *axis);
/* All outputs of the slot with a known rank and unknown dimensions. */
bool ops_out_unknown(Expand *x, const char *slot, DType t, int rank);

/* A node of that shape whose value is never looked at: the result in shape inference where dims are unknown. */
Node *ops_blank(Graph *g, DType t, int rank, const int64_t *dims);
Node *ops_blank_like(Graph *g, const Node *n);
Node *ops_zeros(Graph *g, const Node *like);
bool ops_known(const Node *n); /* no dimension is -1 */
/* The product of dims[from..to-1]; -1 if one is unknown. */
int64_t ops_prod(const int64_t *dims, int from, int to);
/* g_reshape, but several dims may be unknown in shape inference; no dimension is inferred. */
Node *ops_reshape(Graph *g, Node *n, int rank, const int64_t *dims);
/* A vector along one axis of a shape of that rank: [1, ..., n, ..., 1]. */
Node *ops_along(Graph *g, Node *v, int rank, int axis);
/* [N, *, C] -> [N, C, *] and back. */
Node *ops_channels_first(Graph *g, Node *n);
Node *ops_channels_last(Graph *g, Node *n);
/* n elements of one axis beginning at start. */
Node *ops_cut(Graph *g, Node *x, int axis, int64_t start, int64_t step, int64_t n);
/* Rows of x along axis, chosen by the vector idx (already checked): dims[axis] becomes idx's length. */
Node *ops_take(Graph *g, Node *x, Node *idx, int axis);

/* A window over the spatial dimensions, as the attributes of convolution and pooling describe it. */
typedef struct Window {
  int n_sp;
  int64_t k[OPS_MAX_SP], stride[OPS_MAX_SP], dil[OPS_MAX_SP], lo[OPS_MAX_SP], hi[OPS_MAX_SP];
} Window;
/* lo and hi from paddings and padding_algorithm; k, stride, dil and the input's spatial dims are given. SAME sets dil to 1. */
bool ops_paddings(Expand *x, Window *w, const int64_t *in);
/* (in + lo + hi - dil*(k-1) - 1) / stride + 1, -1 if unknown, E-SHP-005 if not positive; ceil rounds up. */
bool ops_window_out(const Window *w, int i, int64_t in, bool ceil_mode, int64_t *out);

/* Arithmetic on nodes, NULL passing through. */
static inline Node *ops_add(Graph *g, Node *a, Node *b) { return g_map2(g, P_ADD, a, b); }
static inline Node *ops_sub(Graph *g, Node *a, Node *b) { return g_map2(g, P_SUB, a, b); }
static inline Node *ops_mul(Graph *g, Node *a, Node *b) { return g_map2(g, P_MUL, a, b); }
static inline Node *ops_div(Graph *g, Node *a, Node *b) { return g_map2(g, P_DIV, a, b); }
static inline Node *ops_plus(Graph *g, Node *a, double c) { return g_map2c(g, P_ADD, a, c); }
static inline Node *ops_times(Graph *g, Node *a, double c) { return g_map2c(g, P_MUL, a, c); }
/* shape.c: the n variables of a list slot; NULL: one is missing, or there are none. */
Node **ops_all_in(Expand *x, const char *slot, int *n);
/* matrix.c: the inverse of each matrix; E-RUN-004 in the run where one is singular. */
Node *ops_inverse(Graph *g, Node *a);
/* factor.c: the m x m matrices that swap rows as the vectors of pivots say. */
Node *ops_pivots(Graph *g, Node *pivots, DType t, int64_t m);
/* norm.c: layer normalisation over the last dimension; scale, bias, or NULL. NULL passes through. */
Node *ops_normed(Graph *g, Node *v, Node *scale, Node *bias, double eps);
/* 1 / (1 + e^-v), v at least -80: its derivative is never 0 * inf. */
Node *ops_sigmoid(Graph *g, Node *v);

#endif
