/* Operators and Programs that stand on no row of the table: custom operators tb_*, and builders for small Programs of them. */
#ifndef KILN_TEST_TOY_H
#define KILN_TEST_TOY_H
#include "util.h"

/* A custom operator that computes nothing. */
bool toy_add_op(const char *name, const char *signature);
int toy_register(void **state); /* all tb_*; the set-up of a group */
void toy_var(Block *b, const char *name);
Op *toy_unary(Block *b, const char *in, const char *out);
Program *toy_chain(void); /* x -> a -> b -> c, each by tb_unary */
/* tb_loop with that sub-block */
void toy_loop(Block *b, int block, const char *in, const char *out);

#endif
