/* Hostile files under the rule of account.h: whatever is read, verified and inferred ends in success or in one coded error. */
#ifndef KILN_TESTS_HOSTILE_CASE_H
#define KILN_TESTS_HOSTILE_CASE_H
#include "account.h"

typedef enum Form { BYTES, TEXT, PARAMS } Form;
typedef struct Result {
  bool ok;
  ErrCode code;
} Result;
/* Reads one file under the rule, as variant of a recipe of that id. The copy has exactly its size, so that reads beyond it
 * are seen. PARAMS: for variables w0 float32 [2, 3], w1 int64 [4], w2 float32 []. */
Result check_file(const char *id, int variant, Form form, const void *bytes, size_t n);

/* What a test writes lies in the arena of its own, which set-up and tear-down of the test make and free. */
extern Arena *hostile_arena;
int hostile_set_up(void **state);
int hostile_tear_down(void **state);
Str *hostile_str(void);
Str *hostile_raw(const char *bytes, size_t n);
#define HOSTILE_TEST(f) cmocka_unit_test_setup_teardown(f, hostile_set_up, hostile_tear_down)
/* Set-up and end of the group: counts allocations; tells how many files there were. */
int hostile_begin(void **state);
int hostile_end(void **state);
#endif
