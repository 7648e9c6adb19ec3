/* What `kiln info` says about this machine: processor and libraries. */
#include "cpu.h"
#include <cblas.h>
#include <pthread.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

/* Of OpenBLAS; its header declares them only in some versions. */
extern char *openblas_get_config(void);
extern char *openblas_get_corename(void);
extern void openblas_set_num_threads(int n);

static void set_threads(void) { openblas_set_num_threads(1); }

void blas_setup(void) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, set_threads);
}

static void processor(char name[64]) {
  strcpy(name, "unknown");
#if defined(__x86_64__)
  unsigned r[12];
  if ((unsigned)__get_cpuid_max(0x80000000, NULL) < 0x80000004) return;
  for (unsigned i = 0; i < 3; i++)
    __cpuid(0x80000002 + i, r[4 * i], r[4 * i + 1], r[4 * i + 2], r[4 * i + 3]);
  memcpy(name, r, sizeof r);
  name[sizeof r] = 0;
  char *p = name + strspn(name, " ");
  memmove(name, p, strlen(p) + 1);
#endif
}

void cpu_describe(Str *out) {
  char name[64];
  processor(name);
  str_fmt(out, "processor: %s\n", name);
  str_fmt(out, "blas: %s (kernels: %s)\n", openblas_get_config(), openblas_get_corename());
}
