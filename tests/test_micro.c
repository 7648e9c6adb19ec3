/* Microkernels in every form and with every tail against plain sums, in memory that ends where the matrices end. */
#include "contract_case.h"
#include "../backends/llvm/micro.h"
#include <math.h>
#include <sys/mman.h>
#include <unistd.h>

/* Memory whose last byte is followed by a page that may not be touched; before it, too. */
typedef struct Fenced {
  char *base, *data;
  size_t bytes;
} Fenced;

static Fenced fenced(size_t n, bool at_end) {
  size_t page = (size_t)sysconf(_SC_PAGESIZE), inner = (n + page - 1) / page * page;
  if (!inner) inner = page;
  Fenced f = {.bytes = inner + 2 * page};
  f.base = mmap(NULL, f.bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  assert_true(f.base != MAP_FAILED);
  assert_int_equal(mprotect(f.base + page, inner, PROT_READ | PROT_WRITE), 0);
  f.data = f.base + page + (at_end ? inner - n : 0);
  return f;
}

static double at_of(DType t, const void *p, int64_t i) {
  return t == DT_FLOAT32 ? (double)((const float *)p)[i] : ((const double *)p)[i];
}

static void noise_fill(DType t, void *p, int64_t n) {
  for (int64_t i = 0; i < n; i++)
    if (t == DT_FLOAT32)
      ((float *)p)[i] = (float)test_noise();
    else
      ((double *)p)[i] = test_noise();
}

/* c += a b over a batch, in memory that ends where the matrices end. */
static void check_micro(DType t, const MicroShape *s, bool add, bool at_end) {
  Arena *a = arena_new();
  MicroPlan *g = micro_plan(a, t, s, true, NULL);
  if (!g) { /* no tiles for this machine */
    arena_free(a);
    return;
  }
  MicroSet *set = micro_set(g);
  CodeBatch *batch = code_batch(a);
  for (int i = 0; i < set->n; i++) micro_code(batch, &set->spec[i], &set->fn[i]);
  assert_true(code_make(batch, NULL));
  int64_t m = s->m[0], n = s->n[0], k = s->k, size = dtype_info[t].size, step_a = m * k,
          step_b = k * n;
  Fenced fa = fenced((size_t)(step_a * s->batch * size), at_end),
         fb = fenced((size_t)(step_b * s->batch * size), at_end),
         fc = fenced((size_t)(m * n * size), at_end),
         scratch = fenced((size_t)micro_scratch(g), true);
  noise_fill(t, fa.data, step_a * s->batch);
  noise_fill(t, fb.data, step_b * s->batch);
  noise_fill(t, fc.data, m * n);
  double *want = arena_array(a, double, m *n);
  for (int64_t i = 0; i < m; i++)
    for (int64_t j = 0; j < n; j++) {
      int64_t at = s->c.trans ? j * m + i : i * n + j;
      double sum = add ? at_of(t, fc.data, at) : 0;
      for (int64_t b = 0; b < s->batch; b++)
        for (int64_t h = 0; h < k; h++)
          sum += at_of(t, fa.data, b * step_a + (s->a.trans ? h * m + i : i * k + h)) *
                 at_of(t, fb.data, b * step_b + (s->b.trans ? j * k + h : h * n + j));
      want[at] = sum;
    }
  MicroProduct q = {m, n, k, .a = fa.data, .b = fb.data, .c = fc.data, .a_mat = s->a};
  q.b_mat = s->b;
  q.c_mat = s->c;
  q.add = add;
  q.batch = s->batch;
  q.a_step = step_a;
  q.b_step = step_b;
  micro_run(g, &q, scratch.data);
  double eps = t == DT_FLOAT32 ? 6e-8 : 1.2e-16;
  for (int64_t i = 0; i < m * n; i++)
    if (!(fabs(want[i] - at_of(t, fc.data, i)) <= eps * 8 * (double)(k * s->batch + 8)))
      fail_msg("%s %lld x %lld x %lld, batch %lld, %d%d%d: element %lld is %.9g, not %.9g",
               dtype_info[t].name, (long long)m, (long long)n, (long long)k, (long long)s->batch,
               s->a.trans, s->b.trans, s->c.trans, (long long)i, at_of(t, fc.data, i), want[i]);
  Fenced all[4] = {fa, fb, fc, scratch};
  for (int i = 0; i < 4; i++) munmap(all[i].base, all[i].bytes);
  code_free(batch);
  arena_free(a);
}

/* Every form and tail: nothing outside the matrices is touched. */
static void check_forms(void) {
  static const int64_t sizes[][4] = {{1, 1, 1, 1},     {6, 64, 4, 1},    {7, 65, 5, 2},
                                     {13, 31, 17, 3},  {28, 16, 1, 1},   {29, 33, 70, 1},
                                     {50, 25, 64, 20}, {3, 130, 9, 64},  {200, 7, 33, 1},
                                     {5, 5, 2100, 1},  {70, 97, 2100, 1}};
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
    for (int form = 0; form < 32; form++) {
      if (form & 8 && sizes[i][2] > 1000) continue;
      bool ta = form & 1, tb = form & 2, tc = form & 4;
      int64_t m = sizes[i][0], n = sizes[i][1], k = sizes[i][2];
      MicroShape s = {.m = {m},
                      .n = {n},
                      .k = k,
                      .batch = sizes[i][3],
                      .a = {ta, ta ? m : k},
                      .b = {tb, tb ? k : n},
                      .c = {tc, tc ? m : n}};
      check_micro(form & 8 ? DT_FLOAT64 : DT_FLOAT32, &s, form & 1 || form & 16, form & 16);
    }
}

static void test_microkernels(void **state) {
  static const char *const isas[] = {
#define ISA(id, here) #id,
#include "../backends/cpu/tiles.def"
      NULL};
  (void)state;
  for (size_t i = 0; i < sizeof isas / sizeof *isas; i++) {
    micro_isa = isas[i];
    if (isas[i]) check_forms(); /* of those that this machine has */
  }
  micro_isa = NULL;
}

/* Products that differ only in the length of A's rows take the same functions. */
static void test_shared(void **state) {
  (void)state;
  Arena *a = arena_new();
  MicroSet *set[2];
  for (int i = 0; i < 2; i++) {
    int64_t k = 32 << i;
    MicroShape s = {.m = {6}, .n = {64}, .k = k, .batch = 1, .a.ld = k, .b.ld = 64, .c.ld = 64};
    MicroPlan *g = micro_plan(a, DT_FLOAT32, &s, true, NULL);
    if (!g) skip(); /* no tiles for this machine */
    set[i] = micro_set(g);
  }
  assert_true(set[0]->n > 0);
  assert_int_equal(set[0]->n, set[1]->n);
  for (int i = 0; i < set[0]->n; i++) assert_true(micro_same(&set[0]->spec[i], &set[1]->spec[i]));
  arena_free(a);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_microkernels),
                                     cmocka_unit_test(test_shared)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
