/* OpenBLAS: matrix products that microkernels do not serve, and LAPACK. In: nothing. Out: its functions, in `blas`.
 *
 * It is opened when a program first needs it, since that takes milliseconds and starts threads that spin for a while: most
 * programs run without it. One thread per call: tasks are divided by the pool. */
#include "blas.h"
#include "ir.h"
#include <dlfcn.h>
#include <pthread.h>
#include <string.h>

#define LIBRARY "libopenblas.so.0"

Blas blas;
static char why[512]; /* it cannot be used */

#define ROW(symbol, field)                                                                         \
  { symbol, offsetof(Blas, field) }
static const struct {
  const char *symbol;
  size_t at;
} functions[] = {ROW("cblas_sgemv", sgemv),
                 ROW("cblas_dgemv", dgemv),
                 ROW("cblas_sgemm", sgemm),
                 ROW("cblas_dgemm", dgemm),
                 ROW("dsyevd_", dsyevd),
                 ROW("dgesdd_", dgesdd),
                 ROW("dgeqrf_", dgeqrf),
                 ROW("dorgqr_", dorgqr),
                 ROW("dgetrf_", dgetrf),
                 ROW("openblas_get_config", config),
                 ROW("openblas_get_corename", corename),
                 ROW("openblas_set_num_threads", set_threads)};

static void open_library(void) {
  void *library = dlopen(LIBRARY, RTLD_LAZY | RTLD_LOCAL), *f = library;
  for (size_t i = 0; f && i < sizeof functions / sizeof *functions; i++) {
    f = dlsym(library, functions[i].symbol);
    memcpy((char *)&blas + functions[i].at, &f, sizeof f);
  }
  if (f)
    blas.set_threads(1);
  else
    snprintf(why, sizeof why, "%s", dlerror());
}

bool blas_found(void) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, open_library);
  return !*why;
}

bool blas_setup(void) {
  if (blas_found()) return true;
  err_set(E_GEN_004, "OpenBLAS cannot be used: %s", why);
  err_help("Install it: on Debian it is in the package libopenblas0.");
  return false;
}
