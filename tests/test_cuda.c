/* The CUDA backend's run time on the simulator of the driver (tests/cudasim), which is put before other libraries by the library
 * path: training as on the CPU, failed checks, values in scopes, graphs, the cache of machine code; and every call of the
 * driver failing in turn: a coded error, nothing left behind, and the process goes on on the CPU. */
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

static bool start_step(kl_exec *exe, const Net *n, Tensor *out) {
  Tensor x = {.dtype = DT_FLOAT32, .rank = 2, .dims = {n->batch, 48}, .data = n->x};
  Tensor y = {.dtype = DT_INT64, .rank = 2, .dims = {n->batch, 1}, .data = n->y};
  Feed feeds[] = {{"x", &x}, {"y", &y}};
  return exec_start(exe->run, exe->scope, kl_main(n->net), 2, feeds, 1, (const char *[]){"loss"},
                    out);
}

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
      if (!start_step(gpu, n, &out[k % 2])) return 3;
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
    net_check(start_step(gpu, &n, &out[k]));
  }
  set_feeds(&n, 7);
  net_check(start_step(gpu, &n, &out[2])); /* which looks at the first */
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
    net_check(net_step(cpu, &n, &loss) && start_step(gpu, &n, &to));
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

static int calls; /* of the leaky ReLU; from `bad_call` on it fails */
static int bad_call = INT_MAX;

static bool leaky_infer(const kl_custom_op *op, int n_in, const kl_tensor *in, int n_out,
                        kl_tensor *out) {
  (void)op, (void)n_in, (void)n_out;
  for (int i = 0; i < 2; i++) {
    out[i] = in[0];
    out[i].data = NULL;
  }
  return true;
}

/* The second output, which is 1 where x < 0, is there for the backward function alone. */
static bool leaky(const kl_custom_op *op, int n_in, const kl_tensor *in, int n_out,
                  kl_tensor *out) {
  (void)op, (void)n_in, (void)n_out;
  const float *x = in[0].data;
  float *y = out[0].data, *below = out[1].data;
  for (int64_t i = 0; i < kl_numel(&in[0]); i++) {
    y[i] = x[i] < 0 ? x[i] / 8 : x[i];
    if (x[i] < 0) below[i] = 1;
  }
  return ++calls < bad_call;
}

/* in: x, y, below, gradients of y and below */
static bool leaky_grad(const kl_custom_op *op, int n_in, const kl_tensor *in, int n_out,
                       kl_tensor *out) {
  (void)op, (void)n_in, (void)n_out;
  const float *below = in[2].data, *gy = in[3].data;
  float *gx = out[0].data;
  for (int64_t i = 0; i < kl_numel(&in[0]); i++) gx[i] = below[i] > 0 ? gy[i] / 8 : gy[i];
  return true;
}

static kl_var *with_calls(kl_var *x) {
  return kl_fc(kl_op(net_of(KL_HERE, x), "test_leaky", "", "X", kl_fc(x, 32)), 10);
}

static void test_custom_operator(void **state) {
  (void)state;
  Net n = net_new(with_calls, false, 8, 0);
  kl_exec *cpu = net_start(&n, "cpu", kl_exec_defaults),
          *gpu = net_start(&n, "cuda", kl_exec_defaults);
  float a = 0, b = 0;
  for (int k = 0; k < MOST_STEPS; k++) {
    net_check(cpu && gpu && net_step(cpu, &n, &a) && net_step(gpu, &n, k % 3 ? &b : NULL));
    assert_true(k % 3 == 0 || fabs((double)a - b) <= 1e-5 * fabs((double)a));
  }
  expect_same_state(cpu, gpu, 1e-4);
  int before = calls;
  n.y[4] = 10; /* a failed check ends the run before the function, or what it does has no effect */
  assert_false(net_step(gpu, &n, &b));
  expect_error(E_DAT_002, "value 10");
  n.y[4] = 2;
  bad_call = 0;
  assert_false(net_step(gpu, &n, &b));
  expect_error(E_PLG_001, "test_leaky");
  bad_call = INT_MAX;
  expect_same_state(cpu, gpu, 1e-4);
  net_check(net_step(cpu, &n, &a) && net_step(gpu, &n, &b));
  assert_true(calls > before && fabs((double)a - b) <= 1e-5 * fabs((double)a));
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

/* ---- in processes of their own: the simulator reads its settings when it is opened ---- */

static const char *folder;
static Net small, *net; /* net: what attempt() trains */

/* 0: all went well; 1: one coded error, and the CPU works on; more: wrong. */
static int attempt(ErrCode *code, const char **text) {
  static char kept[4096];
  float loss, late[3];
  Tensor to[3];
  kl_exec *exe = net_start(net, "cuda", kl_exec_defaults);
  bool ok = exe != NULL;
  for (int k = 0; ok && k < 5; k++) ok = net_step(exe, net, &loss);
  for (int k = 0; ok && k < 3; k++) {
    to[k] = (Tensor){.dtype = DT_FLOAT32, .data = &late[k]};
    ok = start_step(exe, net, &to[k]) && exec_finish(exe->run, 1);
  }
  ok = ok && kl_get(exe, "fc_0.w_0");
  *code = err_any() ? err_get()->code : E_NONE;
  snprintf(kept, sizeof kept, "%s", kl_error());
  *text = kept;
  if (ok == err_any()) return 2;
  err_clear();
  kl_exec_free(exe);
  if (err_any()) return 3;
  exe = net_start(net, "cpu", kl_exec_defaults);
  if (!exe || !net_step(exe, net, &loss)) return 4;
  kl_exec_free(exe);
  return !ok;
}

typedef struct Expected {
  const char *setting;
  ErrCode code;
  const char *part;
} Expected;

static int try_expected(const void *arg) {
  const Expected *e = arg;
  ErrCode code;
  const char *text;
  int rc = attempt(&code, &text);
  if (rc == 1 && code == e->code && strstr(text, e->part)) return 0;
  printf("%s: %d, %s\n", e->setting, rc, text);
  return 1;
}

static void test_devices(void **state) {
  static const Expected expected[] = {
      {"CUDASIM_DRIVER=11020", E_DEV_002, "CUDA 11.2, 11.4 is needed"},
      {"CUDASIM_SM=70", E_DEV_004, "compute capability 7.0"},
      {"CUDASIM_DEVICES=0", E_DEV_003, "no CUDA-capable device"},
      {"CUDA_VISIBLE_DEVICES=", E_DEV_003, "CUDA_VISIBLE_DEVICES"},
      {"CUDASIM_MEMORY=4K", E_DEV_005, "are free"},
  };
  (void)state;
  for (size_t i = 0; i < sizeof expected / sizeof *expected; i++) {
    const char *settings[] = {expected[i].setting, NULL};
    assert_int_equal(in_process(settings, try_expected, &expected[i]), 0);
  }
}

static int try_any(const void *arg) {
  ErrCode code;
  const char *text;
  int rc = attempt(&code, &text);
  const char *name = err_name(code);
  if (rc == 1 && strncmp(name, "E-DEV", 5)) rc = 5;
  if (rc > 1) printf("%s: %d, %s\n", (const char *)arg, rc, text);
  return rc;
}

/* How many calls attempt() makes. */
static int count_calls(void) {
  char path[512], setting[560], line[128];
  int n = 0;
  snprintf(path, sizeof path, "%s/calls", folder);
  snprintf(setting, sizeof setting, "CUDASIM_CALLS=%s", path);
  const char *settings[] = {setting, NULL};
  assert_int_equal(in_process(settings, try_any, "all"), 0);
  FILE *f = fopen(path, "r");
  assert_non_null(f);
  while (fgets(line, sizeof line, f))
    if (strstr(line, " calls")) n = atoi(line);
  fclose(f);
  return n;
}

#ifdef __SANITIZE_ADDRESS__
enum { EVERY = 7 }; /* processes are slow to start there */
#else
enum { EVERY = 1 };
#endif

/* Some failures change nothing: of what is only asked for a message, taken from the cache, or given up. */
static void fail_each(const char *result, int every) {
  int n = count_calls(), failed = 0, tried = 0;
  assert_true(n > 50);
  for (int i = 1; i <= n; i += every * EVERY, tried++) {
    char setting[64];
    snprintf(setting, sizeof setting, "CUDASIM_FAIL=%d%s", i, result);
    const char *settings[] = {setting, NULL};
    int rc = in_process(settings, try_any, setting);
    if (rc > 1) fail_msg("%s: exit code %d", setting, rc);
    failed += rc;
  }
  print_message("%d calls, %d failed, %d of them ended the run\n", n, tried, failed);
  assert_true(failed > tried / 2);
}

static void test_each_call_fails(void **state) {
  (void)state;
  fail_each("", 1);
}

static void test_device_lost(void **state) {
  (void)state;
  fail_each(":700", 2);
}

static void test_each_call_around_a_function_fails(void **state) {
  (void)state;
  Net n = net_new(with_calls, false, 2, 0);
  net = &n;
  fail_each("", 2);
  net = &small;
  net_free(&n);
}

/* ---- the cache of machine code ---- */

static int try_cached(const void *arg) {
  ErrCode code;
  const char *text;
  int rc = attempt(&code, &text);
  if (rc) printf("%s: %s\n", (const char *)arg, text);
  return rc;
}

static bool calls_made(const char *name) {
  char path[512], line[128];
  bool found = false;
  snprintf(path, sizeof path, "%s/calls", folder);
  FILE *f = fopen(path, "r");
  assert_non_null(f);
  while (!found && fgets(line, sizeof line, f)) found = strstr(line, name);
  fclose(f);
  return found;
}

static void test_cubins(void **state) {
  (void)state;
  char calls[560], cache[560], command[700];
  snprintf(calls, sizeof calls, "CUDASIM_CALLS=%s/calls", folder);
  snprintf(cache, sizeof cache, "KILN_CACHE_DIR=%s/cubins", folder);
  const char *settings[] = {calls, cache, NULL};
  assert_int_equal(in_process(settings, try_cached, "first"), 0);
  assert_true(calls_made("cuLinkComplete"));
  assert_int_equal(in_process(settings, try_cached, "again"), 0);
  assert_false(calls_made("cuLinkComplete"));
  snprintf(command, sizeof command,
           "for f in %s/cubins/*.kc; do printf damage | dd of=$f bs=1 seek=200 conv=notrunc "
           "2>/dev/null; done",
           folder);
  assert_int_equal(system(command), 0);
  assert_int_equal(in_process(settings, try_cached, "damaged"), 0);
  assert_true(calls_made("cuLinkComplete"));
}

/* ---- */

static int set_up(void **state) {
  (void)state;
  folder = scratch_folder();
  small = net_new(net_mlp, false, 4, 0);
  net = &small;
  net_check(kl_register(
      &(kl_custom_op){"test_leaky", "X -> Out, Below", leaky_infer, leaky, leaky_grad, NULL}));
  return 0;
}

static int tear_down(void **state) {
  (void)state;
  net_free(&small);
  scratch_remove(folder);
  return 0;
}

int main(int argc, char *argv[]) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_devices),
      cmocka_unit_test(test_cubins),
      cmocka_unit_test(test_each_call_fails),
      cmocka_unit_test(test_device_lost),
      cmocka_unit_test(test_each_call_around_a_function_fails),
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
  return cmocka_run_group_tests(tests, set_up, tear_down);
}
