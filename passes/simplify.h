/* The rules of simplify.c that are C functions: the replacement of n, or NULL where the rule does not apply. */
#ifndef KILN_SIMPLIFY_H
#define KILN_SIMPLIFY_H
#include "rewrite.h"

/* simplify.c: a CONST with exactly this value (-0 is not 0) */
bool const_is(const Node *n, double v);
/* simplify.c: all rules but the one that takes a permutation of an operand back into a contraction */
void simplify_layouts(Graph *g);

/* rules.c; the equations stand in the table */
RewriteFn rule_add_zero, rule_cast_same, rule_cast_cast, rule_view_identity, rule_view_const,
    rule_view_view, rule_view_reshape, rule_reshape_view, rule_reshape_reshape, rule_reshape_same,
    rule_reshape_const, rule_reduce_ones, rule_reduce_reduce, rule_reduce_reshape, rule_map_reshape,
    rule_map_expand, rule_map_concat, rule_contract_view, rule_contract_divided, rule_view_contract;

#endif
