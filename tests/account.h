/* The rule for hostile files: one coded error or an answer, within a second of processor time, within 64 MiB and three times
 * the file, and without a byte left allocated. */
#ifndef KILN_TESTS_ACCOUNT_H
#define KILN_TESTS_ACCOUNT_H
#include "util.h"
#include <time.h>

void account_start(void);  /* counts all allocations from now on; once, before the first */
size_t account_live(void); /* bytes */
size_t account_peak(void);
void account_set_peak(size_t peak); /* forgets a higher one */
typedef struct Account {
  const char *id;
  int variant;
  size_t file; /* bytes */
  size_t before;
  clock_t start;
} Account;
Account account_open(const char *id, int variant, size_t file);
/* Fails the test if the rule is broken; returns the code of the error, or E_NONE, and clears it. */
ErrCode account_close(const Account *a, bool ok);
int account_files(void);    /* closed so far */
int account_accepted(void); /* of them, without an error */
#endif
