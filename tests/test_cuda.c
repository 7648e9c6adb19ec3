/* The CUDA backend's run time on the simulator of the driver (tests/cudasim), which is put before other libraries by the library
 * path: training as on the CPU, runs that are looked at later, failed checks, operators of C functions, values in scopes. */
#include "device_net.h"
#include "simulator.h"
#include "util.h"
#include <limits.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

enum { MOST_STEPS = 20 };

/* ---- training ---- */

static void test_losses(void **state) {
  static const struct {
    const char *name;
    Build *build;
    bool adam;
    int batch, image;
  } nets[] = {{"mlp", net_mlp, false, 16, 0},
              {"lenet", net_lenet, true, 4, 28},
              {"mixed", net_mixed, true, 6, 12},
              {"deep", net_deep, true, 8, 0}};
  (void)state;
  for (size_t i = 0; i < sizeof nets / sizeof *nets; i++) {
    Net n = net_new(nets[i].build, nets[i].adam, nets[i].batch, nets[i].image);
    kl_exec *cpu = net_start(&n, "cpu", kl_exec_defaults),
            *gpu = net_start(&n, "cuda", kl_exec_defaults);
    double worst = 0;
    for (int k = 0; k < MOST_STEPS; k++) {
      float a = 0, b = 0;
      net_check(cpu && gpu && net_step(cpu, &n, &a) && net_step(gpu, &n, &b));
      worst = fmax(worst, fabs((double)a - b) / fabs((double)a));
    }
    print_message("%-6s losses of %d steps: %.2g relative\n", nets[i].name, MOST_STEPS, worst);
    assert_true(worst <= 1e-5);
    expect_same_state(cpu, gpu, 2e-3);
    PlanInfo p = exec_last_plan(gpu->run);
    assert_int_equal(p.graphs, 1); /* a step is one graph */
    assert_int_equal(p.launches, 0);
    assert_int_equal(p.copies, 1); /* of the feeds */
    kl_exec_free(cpu);
    kl_exec_free(gpu);
    net_free(&n);
  }
}

/* Feeds go into two slots in turn, and nothing waits for a run that fetches nothing. */
static void test_without_fetches(void **state) {
  (void)state;
  Net n = net_new(net_mlp, false, 8, 0);
  kl_exec *cpu = net_start(&n, "cpu", kl_exec_defaults),
          *gpu = net_start(&n, "cuda", kl_exec_defaults);
  for (int k = 0; k < 9; k++) {
    n.x[k] += 0.25f;
    net_check(net_step(cpu, &n, NULL) && net_step(gpu, &n, NULL));
  }
  expect_same_state(cpu, gpu, 1e-4);
  kl_exec_free(cpu);
  kl_exec_free(gpu);
  net_free(&n);
}

/* ---- runs that are started and looked at later ---- */

enum { LATE_STEPS = 14 };

/* Feeds of a step; all differ, and the host changes them as soon as a step is started. */
static void set_feeds(const Net *n, int step) {
  for (int i = 0; i < n->batch * 48; i++) n->x[i] = (float)((i * 37 + step * 11) % 101 - 50) / 50;
  for (int i = 0; i < n->batch; i++) n->y[i] = (i * 3 + step) % 10;
}

static int try_late(const void *arg) {
  const Net *n = arg;
  float losses[LATE_STEPS];
  Tensor out[2];
  kl_exec *cpu = net_start(n, "cpu", kl_exec_defaults),
          *gpu = net_start(n, "cuda", kl_exec_defaults);
  int together = 0;
  for (int k = 0; k < LATE_STEPS; k++) {
    set_feeds(n, k);
    if (!net_step(cpu, n, &losses[k])) return 2;
  }
  for (int k = 0; k <= LATE_STEPS; k++) {
    if (k < LATE_STEPS) {
      set_feeds(n, k);
      out[k % 2] = (Tensor){0};
      if (!net_start_step(gpu, n, &out[k % 2])) return 3;
      set_feeds(n, 99);
      together += exec_under_way(gpu->run) == 2;
    }
    if (!exec_finish(gpu->run, k < LATE_STEPS)) return 4;
    if (k == 0) continue;
    double loss = *(float *)out[(k - 1) % 2].data, want = (double)losses[k - 1];
    mem_free(out[(k - 1) % 2].data);
    if (!(fabs(loss - want) <= 1e-5 * want)) {
      printf("loss %d is %g instead of %g\n", k - 1, loss, want);
      return 5;
    }
  }
  if (together < LATE_STEPS - 3) return 6;
  expect_same_state(cpu, gpu, 1e-4);
  kl_exec_free(cpu);
  kl_exec_free(gpu);
  return 0;
}

/* In several orders of streams. */
static void test_late(void **state) {
  (void)state;
  Net n = net_new(net_mlp, false, 4, 0);
  for (int seed = 1; seed <= 12; seed++) {
    char setting[64];
    snprintf(setting, sizeof setting, "CUDASIM_SEED=%d", seed);
    const char *settings[] = {setting, NULL};
    if (in_process(settings, try_late, &n)) fail_msg("%s", setting);
  }
  net_free(&n);
}

/* A check that fails is found one step late; then the step after it has changed nothing either. */
static void test_late_check(void **state) {
  (void)state;
  Net n = net_new(net_mlp, false, 4, 0);
  kl_exec *cpu = net_start(&n, "cpu", kl_exec_defaults),
          *gpu = net_start(&n, "cuda", kl_exec_defaults);
  Tensor out[3] = {0};
  float loss, late;
  for (int k = 0; k < 5; k++) {
    set_feeds(&n, k);
    net_check(net_step(cpu, &n, &loss) && net_step(gpu, &n, &loss));
  }
  for (int k = 0; k < 2; k++) {
    set_feeds(&n, 5 + k);
    if (k == 0) net_check(net_step(cpu, &n, &loss));
    if (k == 1) n.y[2] = 77;
    net_check(net_start_step(gpu, &n, &out[k]));
  }
  set_feeds(&n, 7);
  net_check(net_start_step(gpu, &n, &out[2])); /* which looks at the first */
  assert_true(fabs((double)*(float *)out[0].data - (double)loss) <= 1e-5 * (double)loss);
  assert_int_equal(exec_under_way(gpu->run), 2);
  assert_false(exec_finish(gpu->run, 0));
  expect_error(E_DAT_002, "value 77 at element 2 is outside 0..9");
  assert_int_equal(exec_under_way(gpu->run), 0);
  assert_null(out[1].data);
  assert_null(out[2].data);
  mem_free(out[0].data);
  assert_true(exec_step(gpu->run) == exec_step(cpu->run));
  expect_same_state(cpu, gpu, 1e-4);
  for (int k = 7; k < 10; k++) { /* and it goes on; the last one is left at work */
    set_feeds(&n, k);
    Tensor to = {.dtype = DT_FLOAT32, .data = &late};
    net_check(net_step(cpu, &n, &loss) && net_start_step(gpu, &n, &to));
    if (k == 9) break;
    net_check(exec_finish(gpu->run, 0));
    assert_true(fabs((double)late - (double)loss) <= 1e-5 * (double)loss);
  }
  expect_same_state(cpu, gpu, 1e-4);
  kl_exec_free(gpu);
  kl_exec_free(cpu);
  net_free(&n);
}

/* ---- checks ---- */

static void test_failed_check(void **state) {
  (void)state;
  Net n = net_new(net_mixed, true, 6, 12);
  kl_exec *cpu = net_start(&n, "cpu", kl_exec_defaults),
          *gpu = net_start(&n, "cuda", kl_exec_defaults);
  for (int k = 0; k < 9; k++) {
    float a = 0, b = 0;
    bool bad = k == 0 || k == 3 || k == 7;
    if (bad) n.y[4] = 10, n.y[5] = -3;
    for (int e = 0; e < 2 && bad; e++) {
      assert_false(net_step(e ? gpu : cpu, &n, &a));
      expect_error(E_DAT_002, "value 10 at element 4 is outside 0..9");
    }
    n.y[4] = 2, n.y[5] = 5;
    net_check(net_step(cpu, &n, &a) && net_step(gpu, &n, &b));
    assert_true(fabs((double)a - b) <= 1e-5 * fabs((double)a));
  }
  expect_same_state(cpu, gpu, 2e-3);
  kl_exec_free(cpu);
  kl_exec_free(gpu);
  net_free(&n);
}

static void test_check_nan(void **state) {
  (void)state;
  Net n = net_new(net_mlp, false, 8, 0);
  kl_exec *exe = net_start(&n, "cuda", (kl_exec_options){.check_nan = true});
  float loss, was;
  net_check(exe && net_step(exe, &n, &loss));
  was = *(float *)kl_get(exe, "fc_0.w_0")->data;
  n.x[3] = INFINITY;
  assert_false(net_step(exe, &n, &loss));
  expect_error(E_NUM_001, "step 1");
  assert_true(was == *(float *)kl_get(exe, "fc_0.w_0")->data);
  n.x[3] = 0;
  net_check(net_step(exe, &n, &loss));
  assert_true(was != *(float *)kl_get(exe, "fc_0.w_0")->data);
  kl_exec_free(exe);
  net_free(&n);
}

/* ---- operators made of C functions ---- */

static void test_custom_operator(void **state) {
  (void)state;
  Net n = net_new(net_calls, false, 8, 0);
  kl_exec *cpu = net_start(&n, "cpu", kl_exec_defaults),
          *gpu = net_start(&n, "cuda", kl_exec_defaults);
  float a = 0, b = 0;
  for (int k = 0; k < MOST_STEPS; k++) {
    net_check(cpu && gpu && net_step(cpu, &n, &a) && net_step(gpu, &n, k % 3 ? &b : NULL));
    assert_true(k % 3 == 0 || fabs((double)a - b) <= 1e-5 * fabs((double)a));
  }
  expect_same_state(cpu, gpu, 1e-4);
  int before = net_made_calls;
  n.y[4] = 10; /* a failed check ends the run before the function, or what it does has no effect */
  assert_false(net_step(gpu, &n, &b));
  expect_error(E_DAT_002, "value 10");
  n.y[4] = 2;
  net_bad_call = 0;
  assert_false(net_step(gpu, &n, &b));
  expect_error(E_PLG_001, "test_leaky");
  net_bad_call = INT_MAX;
  expect_same_state(cpu, gpu, 1e-4);
  net_check(net_step(cpu, &n, &a) && net_step(gpu, &n, &b));
  assert_true(net_made_calls > before && fabs((double)a - b) <= 1e-5 * fabs((double)a));
  kl_exec_free(cpu);
  kl_exec_free(gpu);
  net_free(&n);
}

/* ---- scopes ---- */

/* A CPU and a GPU train in turn on one scope; the host sets a variable between. */
static void test_shared_scope(void **state) {
  (void)state;
  Net n = net_new(net_lenet, false, 2, 28);
  kl_scope *scope = kl_scope_new();
  kl_exec *alone = net_start(&n, "cpu", kl_exec_defaults);
  kl_exec *cpu = net_start(&n, "cpu", (kl_exec_options){.scope = scope});
  kl_exec *gpu = kl_exec_new((kl_exec_options){.scope = scope, .seed = 5, .device = "cuda:0"});
  net_check(alone && cpu && gpu);
  for (int k = 0; k < 8; k++) {
    float a = 0, b = 0;
    kl_exec *turn = k / 3 % 2 ? cpu : gpu;
    net_check(kl_set_rate(alone, n.rate, 0.01 + 0.002 * k) &&
              kl_set_rate(turn, n.rate, 0.01 + 0.002 * k));
    net_check(net_step(alone, &n, &a) && net_step(turn, &n, &b));
    assert_true(fabs((double)a - b) <= 1e-4 * fabs((double)a));
  }
  expect_same_state(alone, gpu, 1e-3);
  kl_exec_free(gpu);
  expect_same_state(alone, cpu, 1e-3); /* what a device has written outlives its executor */
  kl_exec_free(alone);
  kl_exec_free(cpu);
  kl_scope_free(scope);
  net_free(&n);
}

static void test_profile(void **state) {
  (void)state;
  Net n = net_new(net_mlp, false, 8, 0);
  kl_exec *exe = net_start(&n, "cuda", (kl_exec_options){.profile = true});
  for (int k = 0; k < 3; k++) net_check(net_step(exe, &n, &(float){0}));
  FILE *f = tmpfile();
  exec_profile_print(exe->run, NULL, f, false);
  char text[8192];
  rewind(f);
  text[fread(text, 1, sizeof text - 1, f)] = 0;
  fclose(f);
  assert_non_null(strstr(text, "momentum"));
  kl_exec_free(exe);
  net_free(&n);
}

static void test_options(void **state) {
  (void)state;
  assert_null(kl_exec_new((kl_exec_options){.device = "cuda", .interpret = true}));
  expect_error(E_ARG_001, "the interpreter runs on the CPU, not on cuda:0");
  assert_null(kl_exec_new((kl_exec_options){.device = "cuda", .math = "fast"}));
  expect_error(E_ARG_001, "unknown math");
  assert_null(kl_exec_new((kl_exec_options){.device = "cuda:1"}));
  expect_error(E_DEV_003, "no device cuda:1");
}

int main(int argc, char *argv[]) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_losses),
      cmocka_unit_test(test_without_fetches),
      cmocka_unit_test(test_late),
      cmocka_unit_test(test_late_check),
      cmocka_unit_test(test_failed_check),
      cmocka_unit_test(test_check_nan),
      cmocka_unit_test(test_custom_operator),
      cmocka_unit_test(test_shared_scope),
      cmocka_unit_test(test_profile),
      cmocka_unit_test(test_options),
  };
  setenv("CUDASIM_LEAKS", "1", 1);
  if (!simulator(argv)) return 1;
  if (argc > 1) cmocka_set_test_filter(argv[1]);
  return cmocka_run_group_tests(tests, NULL, NULL);
}
