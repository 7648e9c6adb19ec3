/* Programs to write and read back, and damage to what is written. */
#ifndef KILN_TESTS_FILE_CASE_H
#define KILN_TESTS_FILE_CASE_H
#include "util.h"

Program *program_of_all(void); /* every feature of the format; not a valid network */
Program *program_of_net(void); /* a network that the verifier accepts: x, w -> mul, relu -> y */
void assert_same(const Program *a, const Program *b); /* fails the test where they differ */

/* Every prefix and every single-bit change ends in a value or in one coded error. Copies are exact in size, so that a
 * read outside of them is seen by AddressSanitizer. */
typedef bool Reads(const uint8_t *bytes, size_t n);
void damage(const uint8_t *good, size_t n, Reads *reads);
#endif
