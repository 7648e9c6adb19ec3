/* What `kiln info` says about this machine: processor and libraries. */
#include "cpu.h"
#include "../../ir/blas.h"
#if defined(__x86_64__)
#include <cpuid.h>
#endif

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
  if (blas_setup())
    str_fmt(out, "blas: %s (kernels: %s)\n", blas.config(), blas.corename());
  else
    str_fmt(out, "blas: none (%s)\n", err_get()->summary);
  err_clear();
}
