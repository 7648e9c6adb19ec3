/* What op.c and op_row.c share: the texts of a row of the operator table, parsed. */
#ifndef KILN_OP_ROW_H
#define KILN_OP_ROW_H
#include "ir.h"

/* "X Y? axis=-1 {use_mkldnn=false} -> Out Mask~" into slots and attributes. NULL, or what is wrong and where. */
const char *parse_signature(Arena *a, const char *text, OpDef *d);
/* "[each] [type:] slots -> slots [; sets]". *mapped: the gradient is an operator with a row of its own. */
const char *parse_grad(Arena *a, const char *text, const char *op, GradDef *g, bool *mapped);
/* The definition of the gradient operator of fwd; *error: set if fwd->grad names a slot that fwd has not. */
OpDef *grad_def(Arena *a, const OpDef *fwd, const char *formula, ExpandFn *expand,
                const char **error);
/* Of a custom operator: all inputs, all outputs, gradients of all outputs -> gradients of all inputs. */
GradDef *custom_grad(Arena *a, const OpDef *d);

#endif
