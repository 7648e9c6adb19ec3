/* Private to differentiation: derive.c (order, accumulation, a rule per primitive) and dview.c (affine maps solved for the
 * operand's index). */
#ifndef KILN_DERIVE_H
#define KILN_DERIVE_H
#include "ir.h"

/* dview.c: gradients from the gradient `gn` of node n. */
Node *view_grad(Graph *g, const Node *n, Node *gn);
Node *contract_grad(Graph *g, const Node *n, int operand, Node *gn);

#endif
