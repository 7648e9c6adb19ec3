/* What generated code depends on of this machine: the processor's model and its features, as the system lets programs use
 * them. Out: bytes that are equal on machines for which the same code is generated, found without LLVM: it reads the same
 * registers. */
#include "code.h"
#include <pthread.h>
#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#endif

enum { MOST = 32 };
static uint32_t words[MOST];
static int n_words;

#if defined(__x86_64__)
static void find_out(void) {
  static const struct {
    uint32_t leaf, sub;
    uint8_t use;            /* bits: eax ebx ecx edx */
  } leaves[] = {{0, 0, 14}, /* vendor */
                {1, 0, 13}, /* family, model, stepping; features; ebx has the number of the core */
                {7, 0, 14}, /* features */
                {7, 1, 15},          {0xd, 1, 1}, /* xsave */
                {0x19, 0, 2},                     /* key locker */
                {0x1e, 1, 1},                     /* amx */
                {0x24, 0, 2},                     /* avx10 */
                {0x80000001, 0, 12},              /* features */
                {0x80000008, 0, 2}};
  for (unsigned i = 0; i < sizeof leaves / sizeof *leaves; i++) {
    uint32_t r[4] = {0};
    if (!__get_cpuid_count(leaves[i].leaf, leaves[i].sub, &r[0], &r[1], &r[2], &r[3])) continue;
    if (leaves[i].leaf == 1) r[2] &= ~(1u << 27); /* osxsave: xcr0 below */
    for (int j = 0; j < 4; j++)
      if (leaves[i].use >> j & 1) words[n_words++] = r[j];
    if (leaves[i].leaf == 1 && r[2] >> 26 & 1) { /* which registers the system saves */
      uint32_t low = 0, high;
      if (__builtin_cpu_supports("avx"))
        __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
      words[n_words++] = low;
    }
  }
}
#elif defined(__aarch64__)
static void find_out(void) {
  unsigned long caps = getauxval(AT_HWCAP), more = getauxval(AT_HWCAP2), model = 0;
  if (caps & HWCAP_CPUID) __asm__ volatile("mrs %0, MIDR_EL1" : "=r"(model));
  unsigned long all[] = {caps, more, model};
  for (int i = 0; i < 3; i++) {
    words[n_words++] = (uint32_t)all[i];
    words[n_words++] = (uint32_t)(all[i] >> 32);
  }
}
#else
static void find_out(void) {}
#endif

void machine_key(Str *out) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, find_out);
  str_addn(out, (char *)words, sizeof words);
}
