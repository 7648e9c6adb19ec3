/* What several tests share: allocations and file operations that fail on demand, a scratch folder, checks of errors. */
#ifndef KILN_TESTS_UTIL_H
#define KILN_TESTS_UTIL_H
#include "../ir/ir.h"

/* The n-th allocation from now (1 = the next) is refused; 0: none. fail_alloc_done says whether it happened. */
void fail_alloc(int n);
bool fail_alloc_done(void);
/* The n-th call of that kind from now fails with this errno value; the others work. 0: none. */
typedef enum FailFile {
  FAIL_OPEN,
  FAIL_READ,
  FAIL_WRITE,
  FAIL_SYNC,
  FAIL_CLOSE,
  FAIL_RENAME,
  FAIL_MAP,
  FAIL_N
} FailFile;
void fail_file(FailFile what, int n, int error);
bool fail_file_done(FailFile what); /* since the last fail_file of that kind */
/* A new empty folder, removed with its files by scratch_remove. */
const char *scratch_folder(void);
void scratch_remove(const char *folder);
int files_in(const char *folder);
/* The thread's error has this code, its text (all parts, as printed) contains `part`; then it is cleared. */
#define expect_error(code, part) check_error((code), (part), __FILE__, __LINE__)
void check_error(ErrCode code, const char *part, const char *file, int line);
/* The thread has no error, else the test fails with its text. */
void no_error(void);
int clear_error(void **state); /* a set-up */
/* is, the i-th of `what`, is `want` as far as float32 says. */
void close_to(double is, double want, const char *what, int i);
#endif
