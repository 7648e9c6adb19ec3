/* PTX of kernels. In: kernels and a target; out: the text of one module with the entries of all their plans. */
#include "plan.h"

bool cuda_text(int n, Kernel *const *k, const CudaTarget *t, const char *what, Str *out) {
  Arena *a = arena_scratch();
  bool ok = true;
  for (int i = 0; ok && i < n; i++) ok = cuda_plan(a, k[i], t) != NULL;
  arena_free(a);
  return ok && cuda_emit_text(n, k, t, what, out);
}
