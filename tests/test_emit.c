/* What the code generator gives out: PTX that ptxas accepts, loops that are vectors, texts and objects for unknown targets
 * (errors), kernels from the cache, and errors where memory is refused. */
#include "code_case.h"
#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

/* ---- PTX ---- */

static bool ptxas_accepts(const char *ptx, size_t n, const char *arch) {
  char path[] = "/tmp/kiln-ptx-XXXXXX", command[256];
  int fd = mkstemp(path);
  assert_true(fd >= 0 && write(fd, ptx, n) == (ssize_t)n);
  close(fd);
  snprintf(command, sizeof command, "/usr/local/cuda/bin/ptxas -arch=%s -o /dev/null %s", arch,
           path);
  bool ok = system(command) == 0;
  unlink(path);
  return ok;
}

static Kernel *ptx_kernel(Case *c, int which) {
  Graph *g = c->g;
  Node *x = case_feed(c, DT_FLOAT32, 4, I64(4, 6, 16, 18), -1, 1), *y[2] = {NULL}, *half, *l;
  switch (which) {
  case 0: /* maps with every function, in both widths */
    y[0] = x;
    y[1] = g_cast(g, x, DT_FLOAT64);
    for (Prim p = 0; p < P_N; p++)
      for (int i = 0; i < 2; i++)
        if (prim_is_map(p) && p != P_CAST && p != P_SELECT && p != P_LT && p != P_LE && p != P_EQ)
          y[i] = prim_info[p].n_in == 1 ? g_map1(g, p, y[i])
                                        : g_map2(g, p, y[i], i ? g_cast(g, x, DT_FLOAT64) : x);
    return case_kernel(c, K_LOOP, NULL, 2, y, 0);
  case 1: /* two sweeps and a row result */
    y[0] = g_map1(g, P_EXP, g_map2(g, P_SUB, x, g_reduce(g, P_RMAX, x, 13, true)));
    y[1] = g_reduce(g, P_RSUM, y[0], 13, true);
    return case_kernel(c, K_LOOP, NULL, 2, y, 13);
  case 2: /* windows, integers, halves */
    half = g_cast(g, x, DT_BFLOAT16);
    y[0] = g_reduce(g, P_RMAX,
                    g_window(g, g_cast(g, half, DT_FLOAT16), 2, 2, I64(3, 3), I64(2, 2), I64(1, 1),
                             I64(1, 1), I64(1, 1), -9),
                    48, false);
    y[1] = g_map2(g, P_POW, g_cast(g, y[0], DT_INT32), g_cast(g, y[0], DT_INT32));
    return case_kernel(c, K_LOOP, NULL, 2, y, 0);
  default: /* labels, gather, random numbers */
    l = g_check(g, case_feed(c, DT_INT64, 4, I64(4, 1, 16, 18), 0, 5), 0, 6, false, 0, E_DAT_002);
    y[0] = g_gather(g, x, l, 1);
    y[1] = g_random(g, DT_FLOAT32, 4, y[0]->dims, 0, 7, false);
    return case_kernel(c, K_LOOP, NULL, 2, y, 0);
  }
}

static void test_ptx(void **state) {
  (void)state;
  static const char *const archs[] = {"sm_75", "sm_80", "sm_90"};
  bool have = access("/usr/local/cuda/bin/ptxas", X_OK) == 0;
  if (!have) print_message("ptxas: skipped, no CUDA Toolkit\n");
  for (int i = 0; i < 4; i++)
    for (size_t s = 0; s < sizeof archs / sizeof *archs; s++) {
      Case *c = case_new();
      Kernel *k = ptx_kernel(c, i);
      CompileOptions o = {.target = arena_fmt(c->a, "cuda:%s", archs[s])};
      Str out;
      str_init(&out, c->a);
      if (!backend_cuda.emit(c->g, 1, &k, &o, "ptx", &out)) case_fail("ptx");
      assert_non_null(strstr(out.s, ".entry kernel_"));
      if (have && !ptxas_accepts(out.s, out.n, archs[s]))
        fail_msg("ptxas refuses kernel %d for %s", i, archs[s]);
      assert_null(backend_cuda.compile(c->g, 1, &k, &o, NULL));
      assert_int_equal(err_get()->code, E_GEN_002);
      err_clear();
      case_free(c);
    }
}

static bool emit(Kernel *k, const CompileOptions *o, const char *what, Str *out) {
  CodeBatch *b = code_batch(out->a);
  KernelFn *fn;
  loop_code(b, k, LOOP_MAIN, &fn);
  return code_emit(b, o, what, out);
}

/* Unknown targets and texts are errors, not crashes. */
static void test_emit_errors(void **state) {
  (void)state;
  static const struct {
    const char *target, *what;
  } bad[] = {{"cuda:sm_30", "ptx"},  {"cuda:80", "ptx"},       {"tpu", "llvm"},
             {NULL, "ptx"},          {"cuda:sm_80", "object"}, {"cuda:", "ptx"},
             {"cpu:quantum", "asm"}, {"cpu:", "asm"},          {"cpu:Haswell", "llvm"}};
  Case *c = case_new();
  Kernel *k = ptx_kernel(c, 1);
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    CompileOptions o = {.target = bad[i].target};
    Str out;
    str_init(&out, c->a);
    assert_false(emit(k, &o, bad[i].what, &out));
    assert_int_equal(err_get()->code, E_GEN_002);
    err_clear();
  }
  static const char *const texts[] = {"llvm", "asm", "object"};
  for (int i = 0; i < 6; i++) {
    CompileOptions o = {.target = i < 3 ? NULL : "cpu:x86-64"};
    Str out;
    str_init(&out, c->a);
    if (!emit(k, &o, texts[i % 3], &out)) case_fail(texts[i % 3]);
    assert_true(out.n > 100);
  }
  case_free(c);
}

/* ---- vectors ---- */

static Kernel *vector_kernel(Case *c, int which) {
  Graph *g = c->g;
  Node *x = case_feed(c, DT_FLOAT32, 4, I64(4, 6, 32, 48), -1, 1), *y, *gy, *gx = NULL;
  Node *pool =
      g_reduce(g, P_RSUM,
               g_window(g, x, 2, 2, I64(2, 2), I64(2, 2), I64(1, 1), I64(0, 0), I64(0, 0), 0), 48,
               false);
  switch (which) {
  case 0:
    y = g_map1(g, P_EXP, g_map2c(g, P_MUL, x, 2));
    return case_kernel(c, K_LOOP, NULL, 1, &y, 0);
  case 1: y = g_reduce(g, P_RSUM, x, 12, true); return case_kernel(c, K_LOOP, NULL, 1, &y, 12);
  case 2: y = g_reduce(g, P_RSUM, x, 7, true); return case_kernel(c, K_LOOP, NULL, 1, &y, 7);
  case 3: y = g_reduce(g, P_RMAX, x, 12, true); return case_kernel(c, K_LOOP, NULL, 1, &y, 12);
  case 4: return case_kernel(c, K_LOOP, NULL, 1, &pool, 0);
  case 5:
    gy = case_feed(c, DT_FLOAT32, 4, pool->dims, -1, 1);
    if (!derive(g, 1, &pool, &gy, 1, &x, &gx)) case_fail("derive");
    return case_kernel(c, K_LOOP, NULL, 1, &gx, 0);
  case 6:
    y = g_pad(g, x, I64(0, 0, 1, 2), I64(0, 0, 3, 4), 0);
    return case_kernel(c, K_LOOP, NULL, 1, &y, 0);
  case 7:
    y = g_random(g, DT_FLOAT32, 4, x->dims, 0, 7, false);
    return case_kernel(c, K_LOOP, NULL, 1, &y, 0);
  case 8:
    y = g_permute(g, g_reshape(g, x, 3, I64(4, 3, 3072)), (int[]){0, 2, 1});
    return case_kernel(c, K_LOOP, NULL, 1, &y, 0);
  default: return NULL;
  }
}

/* The loops are vectors of 16 floats, without gathers and without checks at run time whether buffers overlap. */
static void test_vectors(void **state) {
  (void)state;
  for (int i = 0;; i++) {
    Case *c = case_new();
    Kernel *k = vector_kernel(c, i);
    if (!k) {
      case_free(c);
      break;
    }
    CompileOptions o = {.target = "cpu:skylake-avx512"};
    Str out;
    str_init(&out, c->a);
    if (!emit(k, &o, "llvm", &out)) case_fail("llvm");
    if (!strstr(out.s, "<16 x float>")) fail_msg("kernel %d has no vectors:\n%s", i, out.s);
    if (strstr(out.s, "gather")) fail_msg("kernel %d gathers:\n%s", i, out.s);
    if (strstr(out.s, "memcheck")) fail_msg("kernel %d checks its buffers:\n%s", i, out.s);
    case_free(c);
  }
}

/* ---- the cache of compiled kernels ---- */

static void test_cache(void **state) {
  (void)state;
  Case *c = case_new(), *d = case_new(), *e = case_new();
  Kernel *k = ptx_kernel(c, 1), *l = ptx_kernel(d, 1), *other = ptx_kernel(e, 2);
  Kernel *all[3] = {k, other, l};
  KernelFn *fn[3];
  Steps again, last;
  CodeBatch *b = code_batch(c->a), *b2, *b3;
  for (int i = 0; i < 3; i++) loop_code(b, all[i], LOOP_MAIN, &fn[i]);
  assert_true(code_make(b, NULL));
  assert_true(fn[0] == fn[2] && fn[0] != fn[1]);
  b2 = case_compile(d, l, LOOP_MAIN, &again);
  assert_true(again.fn[0] == fn[0]);
  code_free(b);
  l->inputs.v[0].aligned = true;
  b3 = case_compile(d, l, LOOP_MAIN, &last);
  assert_true(last.fn[0] != again.fn[0]);
  code_free(b3);
  code_free(b2);
  case_free(c);
  case_free(d);
  case_free(e);
}

/* Refused allocations: an error, nothing leaks, and the next compilation works. */
static void test_refused_memory(void **state) {
  (void)state;
  Case *c = case_new();
  Kernel *k = ptx_kernel(c, 3);
  volatile int n = 1;
  volatile bool done = false;
  for (; !done; n += n < 8 ? 1 : n / 4) {
    for (volatile int what = 0; what < 2; what++) {
      Arena *volatile a = arena_new();
      MemGuard guard;
      KernelFn *fn;
      fail_alloc(n);
      if (MEM_GUARD(guard)) {
        assert_int_equal(err_get()->code, E_MEM_001);
        err_clear();
      } else {
        Str out;
        str_init(&out, a);
        if (what) {
          assert_true(emit(k, NULL, "object", &out));
        } else {
          CodeBatch *b = code_batch(a);
          loop_code(b, k, LOOP_MAIN, &fn);
          assert_true(code_make(b, NULL));
          code_free(b);
        }
        mem_unguard(&guard);
        done = what && !fail_alloc_done();
      }
      fail_alloc(0);
      arena_free(a);
    }
  }
  case_free(c);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_ptx), cmocka_unit_test(test_emit_errors),
                                     cmocka_unit_test(test_vectors), cmocka_unit_test(test_cache),
                                     cmocka_unit_test(test_refused_memory)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
