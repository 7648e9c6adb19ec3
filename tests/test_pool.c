/* The pool of threads: every item of a job is done once, for any number of threads; steps run in their order. */
#include <stdarg.h>
#include <setjmp.h>
#include <stddef.h>
#include <cmocka.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include "../backends/cpu/cpu.h"

enum { MANY = 1000 };
static atomic_int done[MANY];
static atomic_int calls;

static void count(void *user, int thread, int64_t begin, int64_t end) {
  assert_true(thread < *(int *)user);
  atomic_fetch_add(&calls, 1);
  for (int64_t i = begin; i < end; i++) atomic_fetch_add(&done[i], 1);
}

static void test_pool(void **state) {
  (void)state;
  static const int64_t sizes[] = {0, 1, 2, 3, 7, 8, 9, 64, MANY};
  for (int threads = 1; threads <= 9; threads++) {
    Pool *p = pool_new(threads);
    assert_int_equal(pool_threads(p), threads);
    for (int round = 0; round < 50; round++)
      for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        memset(done, 0, sizeof done);
        calls = 0;
        pool_run(p, sizes[s], count, &threads);
        for (int64_t i = 0; i < MANY; i++) assert_int_equal(done[i], i < sizes[s]);
        assert_true(calls <= threads);
      }
    pool_free(p);
  }
  pool_free(NULL);
  Pool *all = pool_new(0);
  assert_true(pool_threads(all) >= 1);
  pool_free(all);
}

/* Steps in their order: a task finds all of the step before done and none of the step after begun. */
enum { STEPS = 24, SIZES = 6 };
typedef struct Told {
  PoolStep *step;
  atomic_int bad, late;
  int plain[STEPS * MANY];
  pthread_t caller;
} Told;
typedef struct TellStep {
  Told *told;
  int at;
} TellStep;

static void tell(void *user, int thread, int64_t begin, int64_t end) {
  const TellStep *t = user;
  Told *all = t->told;
  int64_t before = t->at ? all->step[t->at - 1].n : 0;
  if (all->step[t->at].here && (thread || !pthread_equal(all->caller, pthread_self()))) all->bad++;
  for (int64_t i = 0; i < before; i++)
    if (all->plain[(t->at - 1) * MANY + i] != t->at) all->bad++;
  for (int64_t i = 0; t->at + 1 < STEPS && i < all->step[t->at + 1].n; i++)
    if (all->plain[(t->at + 1) * MANY + i]) all->late++;
  for (int64_t i = begin; i < end; i++) all->plain[t->at * MANY + i] += t->at + 1;
}

static void test_pool_steps(void **state) {
  (void)state;
  static const int64_t sizes[SIZES] = {0, 1, 2, 3, 17, 64};
  Told *all = calloc(1, sizeof *all);
  PoolStep step[STEPS];
  TellStep user[STEPS];
  all->step = step;
  all->caller = pthread_self();
  unsigned random = 1;
  for (int threads = 1; threads <= 5; threads++) {
    Pool *p = pool_new(threads);
    for (int round = 0; round < 200; round++) {
      int n = 1 + round % STEPS;
      memset(all->plain, 0, sizeof all->plain);
      for (int i = 0; i < STEPS; i++) {
        random = random * 1103515245u + 12345u;
        user[i] = (TellStep){all, i};
        step[i] = (PoolStep){tell, &user[i], i < n ? sizes[(random >> 16) % SIZES] : 0,
                             (random >> 20 & 3) == 0};
      }
      pool_run_steps(p, n, step);
      for (int i = 0; i < n; i++)
        for (int64_t j = 0; j < MANY; j++)
          assert_int_equal(all->plain[i * MANY + j], j < step[i].n ? i + 1 : 0);
    }
    pool_free(p);
  }
  assert_int_equal(all->bad, 0);
  assert_int_equal(all->late, 0);
  free(all);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_pool),
                                     cmocka_unit_test(test_pool_steps)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
