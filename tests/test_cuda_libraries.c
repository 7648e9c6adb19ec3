/* cuBLASLt and cuDNN as providers, on simulated ones (tests/cudasim/libraries): every product and convolution of the operator
 * table through them, larger shapes in each arithmetic, training as on the CPU, the choice by measurement and what is
 * remembered of it, libraries that are absent or too old, and each of their calls failing in turn. */
#include "device_case.h"
#include "device_net.h"
#include "simulator.h"
#include "util.h"
#include "../passes/passes.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static const char *folder;

/* ---- operators ---- */

static void begin(void) { device_cases = device_bad = device_calls = device_contractions = 0; }

static void test_operators(void **state) {
  (void)state;
  Executor *exec[2];
  begin();
  device_only_contractions = true;
  device_pair(exec, (ExecOptions){.debug = "libraries"});
  for (int i = 0; i < opdef_n(); i++) {
    const OpDef *def = opdef_at(i);
    if (!opcase_chosen(def) || (def->flags & (OF_IO | OF_GRAD | OF_CUSTOM | OF_HOST | OF_LOD)))
      continue;
    device_examples(def, exec);
  }
  device_only_contractions = false;
  device_pair_free(exec);
  print_message("%d programs with %d contractions, %d calls of libraries, %d differ\n",
                device_cases, device_contractions, device_calls, device_bad);
  assert_int_equal(device_bad, 0);
  assert_true(device_calls > device_contractions * 3 / 4);
}

/* ---- shapes ---- */

static const struct {
  const char *op, *text;
  int calls; /* of the operator and its gradients; a product with K = 1 is no contraction */
} shapes[] = {
    {"matmul_v2", "X=65x70 Y=70x67", 3},
    {"matmul_v2", "X=72x48 Y=72x68 trans_x=true", 3},
    {"matmul_v2", "X=36x72 Y=44x72 trans_y=true", 3},
    {"matmul_v2", "X=72x36 Y=44x72 trans_x=true trans_y=true", 3},
    {"matmul_v2", "X=3x40x48 Y=3x48x36", 3},
    {"matmul_v2", "X=2x3x20x24 Y=24x18", 3},
    {"matmul_v2", "X=1x300 Y=300x77", 2},
    {"matmul_v2", "X=16x1030 Y=1030x1", 2},
    {"mul", "X=4x6x50 Y=300x20", 3},
    {"conv2d", "Input=2x16x9x10 Filter=24x16x3x3 paddings=[1,1]", 3},
    {"conv2d", "Input=2x16x9x11 Filter=24x16x3x3 paddings=[1,1] strides=[2,2]", 3},
    {"conv2d", "Input=2x3x21x21 Filter=16x3x7x7 paddings=[3,3] strides=[2,2]", 3},
    {"conv2d", "Input=2x16x9x10 Filter=24x16x1x1", 3},
    {"conv2d", "Input=2x16x9x11 Filter=24x16x1x1 strides=[2,2]", 3},
    {"conv2d", "Input=2x16x12x14 Filter=24x16x4x5 paddings=[1,2] strides=[2,3]", 3},
    {"conv2d", "Input=2x32x8x8 Filter=32x16x3x3 groups=2 paddings=[1]", 3},
    {"conv2d", "Input=2x9x10x16 Filter=24x16x3x3 paddings=[2,2] dilations=[2,2] data_format='NHWC'",
     3},
    {"depthwise_conv2d", "Input=2x40x9x10 Filter=40x1x3x3 paddings=[1,1] groups=40", 3},
    {"conv3d", "Input=2x4x5x6x7 Filter=8x4x3x3x3 paddings=[1,1,1]", 3},
};

static void run_shapes(const char *math, DType type, bool last, double tolerance) {
  Executor *exec[2];
  layout_always = last;
  device_pair(exec, (ExecOptions){.debug = "libraries", .math = math});
  for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
    const OpDef *def = opdef_find(shapes[i].op);
    OpCase c;
    int was = device_calls;
    if (!opcase_chosen(def)) continue;
    bool ok = opcase_text(&c, def, shapes[i].text, 17 + i, type);
    device_case(&c, ok, tolerance, exec);
    if (device_calls - was != shapes[i].calls) {
      print_message("%s %s%s: %d calls\n", shapes[i].op, shapes[i].text, last ? " (last)" : "",
                    device_calls - was);
      device_bad++;
    }
  }
  device_pair_free(exec);
  layout_always = false;
}

static void test_shapes(void **state) {
  (void)state;
  begin();
  for (int last = 0; last < 2; last++) {
    run_shapes(NULL, DT_FLOAT32, last, 0);
    run_shapes(NULL, DT_FLOAT64, last, 0);
    run_shapes("tf32", DT_FLOAT32, last, 2e-3);
    run_shapes("bf16", DT_FLOAT32, last, 2e-2);
  }
  print_message("%d programs, %d calls, %d wrong\n", device_cases, device_calls, device_bad);
  assert_int_equal(device_bad, 0);
}

/* ---- training ---- */

static void test_losses(void **state) {
  enum { STEPS = 20 };
  static const struct {
    const char *name;
    Build *build;
    bool adam, last;
    int batch, image;
  } nets[] = {{"mlp", net_mlp, false, false, 16, 0},
              {"lenet", net_lenet, true, false, 4, 28},
              {"lenet, channel last", net_lenet, true, true, 4, 28},
              {"mixed", net_mixed, true, false, 6, 12}};
  (void)state;
  for (size_t i = 0; i < sizeof nets / sizeof *nets; i++) {
    layout_always = nets[i].last;
    Net n = net_new(nets[i].build, nets[i].adam, nets[i].batch, nets[i].image);
    kl_exec *cpu = net_start(&n, "cpu", kl_exec_defaults),
            *gpu = net_start(&n, "cuda", kl_exec_defaults);
    assert_true(cpu && gpu);
    exec_options(gpu->run)->debug = "libraries";
    double worst = 0;
    int calls = 0;
    for (int k = 0; k < STEPS; k++) {
      float a = 0, b = 0;
      net_check(net_step(cpu, &n, &a) && net_step(gpu, &n, &b));
      worst = fmax(worst, fabs((double)a - b) / fabs((double)a));
      calls += exec_last_plan(gpu->run).calls;
    }
    print_message("%-20s losses of %d steps: %.2g relative\n", nets[i].name, STEPS, worst);
    assert_true(worst <= 1e-5);
    assert_true(calls > 4);
    assert_int_equal(exec_last_plan(gpu->run).graphs, 1); /* a step is one graph */
    assert_int_equal(exec_last_plan(gpu->run).launches, 0);
    expect_same_state(cpu, gpu, 2e-3);
    kl_exec_free(cpu);
    kl_exec_free(gpu);
    net_free(&n);
  }
  layout_always = false;
}

/* ---- in processes of their own ---- */

static Net small; /* convolutions, products, a check and a bias */

static kl_var *little(kl_var *x) {
  kl_var *c = kl_pool2d(kl_conv2d(x, 4, 3, .act = "relu"), "max", 2);
  return kl_fc(kl_conv2d(c, 6, 3), 10);
}

typedef struct Attempt {
  const char *debug;
  bool deterministic;
  float loss; /* expected after the last step; 0: any */
  int calls;  /* expected of libraries in the first step: at least; -1: none */
} Attempt;

/* 0: all went well; 1: one coded error, and the CPU works on; more: wrong. */
static int attempt(const void *arg) {
  const Attempt *a = arg;
  float loss = 0;
  int calls = 0;
  kl_exec *exe = net_start(&small, "cuda", (kl_exec_options){.deterministic = a->deterministic});
  bool ok = exe != NULL;
  if (ok) exec_options(exe->run)->debug = a->debug;
  for (int k = 0; ok && k < 4; k++) {
    ok = net_step(exe, &small, &loss);
    if (ok && k == 0) calls = exec_last_plan(exe->run).calls;
  }
  ok = ok && kl_get(exe, "conv2d_0.w_0");
  if (ok == kl_failed()) return 2;
  if (!ok && strncmp(kl_error_code(), "E-DEV", 5)) {
    printf("%s\n", kl_error());
    return 3;
  }
  kl_clear_error();
  kl_exec_free(exe);
  if (kl_failed()) return 4;
  if (ok && a->loss != 0 && fabs((double)loss - (double)a->loss) > 1e-5 * fabs((double)a->loss)) {
    printf("loss %g instead of %g\n", (double)loss, (double)a->loss);
    return 5;
  }
  if (ok && ((a->calls < 0 && calls) || calls < a->calls)) {
    printf("%d calls of libraries\n", calls);
    return 6;
  }
  exe = net_start(&small, "cpu", kl_exec_defaults);
  if (!exe || !net_step(exe, &small, &loss)) return 7;
  kl_exec_free(exe);
  return !ok;
}

static float expected_loss(void) {
  float loss = 0;
  kl_exec *cpu = net_start(&small, "cpu", kl_exec_defaults);
  for (int k = 0; k < 4; k++) net_check(cpu && net_step(cpu, &small, &loss));
  kl_exec_free(cpu);
  return loss;
}

/* The calls that the last process with CUDASIM_CALLS made: how many have this word; of number i, from 1, is it such? */
static int count_calls(const char *word, int i, bool *is) {
  char path[512], line[128];
  int n = 0, k = 0;
  snprintf(path, sizeof path, "%s/calls", folder);
  FILE *f = fopen(path, "r");
  assert_non_null(f);
  while (fgets(line, sizeof line, f)) {
    bool hit = strstr(line, word) != NULL;
    n += hit;
    if (++k == i && is) *is = hit;
  }
  fclose(f);
  return n;
}

static const char *calls_setting(void) {
  static char setting[560];
  snprintf(setting, sizeof setting, "CUDASIM_CALLS=%s/calls", folder);
  return setting;
}

static const char *kernels_setting(void) {
  static char setting[560];
  snprintf(setting, sizeof setting, "KILN_CACHE_DIR=%s/kernels", folder);
  return setting;
}

static void test_absent(void **state) {
  (void)state;
  float loss = expected_loss();
  const struct {
    const char *settings[3];
    Attempt a;
  } cases[] = {
      {{"CUDASIM_SEED=2", NULL}, {"libraries", false, loss, 4}},
      {{"CUDASIM_CUBLAS=100000", NULL}, {"libraries", false, loss, 4}},
      {{"CUDASIM_CUDNN=7605", NULL}, {"libraries", false, loss, 1}},
      {{"CUDASIM_CUBLAS=100000", "CUDASIM_CUDNN=7605", NULL}, {"libraries", false, loss, -1}},
      {{"CUDASIM_SM=75", NULL}, {"libraries", false, loss, 4}},
      {{"CUDASIM_SEED=2", NULL}, {NULL, true, loss, -1}},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    const char *settings[4] = {"KILN_CACHE=0"};
    for (int k = 0; k < 3; k++) settings[k + 1] = cases[i].settings[k];
    assert_int_equal(in_process(settings, attempt, &cases[i].a), 0);
  }
}

/* Measured once, then remembered; not where the rule is asked for. */
static void test_choice(void **state) {
  (void)state;
  char cache[560];
  snprintf(cache, sizeof cache, "KILN_CACHE_DIR=%s/choices", folder);
  const char *settings[] = {calls_setting(), cache, NULL};
  Attempt a = {NULL, false, expected_loss(), 0}, rule = {NULL, true, a.loss, -1};
  assert_int_equal(in_process(settings, attempt, &a), 0);
  int measured = count_calls("cuEventElapsedTime", 0, NULL),
      runs = count_calls("cublasLtMatmul\n", 0, NULL);
  assert_true(measured >= 24);
  assert_true(runs > 0);
  assert_int_equal(in_process(settings, attempt, &a), 0);
  assert_int_equal(count_calls("cuEventElapsedTime", 0, NULL), 0);
  assert_int_equal(in_process(settings, attempt, &rule), 0);
  assert_int_equal(count_calls("cublas", 0, NULL) + count_calls("cudnn", 0, NULL), 0);
}

#ifdef __SANITIZE_ADDRESS__
enum { EVERY = 7 }; /* processes are slow to start there */
#else
enum { EVERY = 1 };
#endif

/* Each call of a library, with the libraries forced: own kernels serve, or the run ends with one error. */
static void test_each_call_fails(void **state) {
  (void)state;
  const char *first[] = {kernels_setting(), calls_setting(), NULL};
  Attempt a = {"libraries", false, expected_loss(), 0};
  assert_int_equal(in_process(first, attempt, &a), 0);
  assert_int_equal(in_process(first, attempt, &a), 0);
  int n = count_calls(" ", 0, NULL) - 1, tried = 0, failed = 0;
  bool *is = calloc((size_t)n + 1, sizeof *is);
  for (int i = 1; i <= n; i++) {
    bool blas = false, dnn = false;
    count_calls(" cublas", i, &blas);
    count_calls(" cudnn", i, &dnn);
    is[i] = blas || dnn;
  }
  for (int i = 1, k = 0; i <= n; i++) {
    char setting[64];
    if (!is[i] || k++ % EVERY) continue;
    snprintf(setting, sizeof setting, "CUDASIM_FAIL=%d", i);
    const char *settings[] = {kernels_setting(), setting, NULL};
    int rc = in_process(settings, attempt, &a);
    if (rc > 1) fail_msg("%s: exit code %d", setting, rc);
    tried++;
    failed += rc;
  }
  free(is);
  print_message("%d calls of libraries failed, %d of them ended the run\n", tried, failed);
  assert_true(failed > 0 && failed < tried);
}

/* While providers are measured: a failure is no reason to stop. */
static void test_measuring_fails(void **state) {
  (void)state;
  const char *first[] = {"KILN_CACHE=0", calls_setting(), NULL};
  Attempt a = {NULL, false, expected_loss(), 0};
  assert_int_equal(in_process(first, attempt, &a), 0);
  int n = count_calls(" ", 0, NULL) - 1, tried = 0;
  for (int i = 1; i <= n && tried < 24; i += 1 + n / 200) {
    char setting[64];
    bool is = false;
    count_calls(" cuEventElapsedTime", i, &is);
    if (!is) continue;
    snprintf(setting, sizeof setting, "CUDASIM_FAIL=%d", i);
    const char *settings[] = {"KILN_CACHE=0", setting, NULL};
    assert_int_equal(in_process(settings, attempt, &a), 0);
    tried++;
  }
  assert_true(tried > 0);
}

static int set_up(void **state) {
  (void)state;
  folder = scratch_folder();
  small = net_new(little, false, 2, 12);
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
      cmocka_unit_test(test_absent),          cmocka_unit_test(test_choice),
      cmocka_unit_test(test_each_call_fails), cmocka_unit_test(test_measuring_fails),
      cmocka_unit_test(test_operators),       cmocka_unit_test(test_shapes),
      cmocka_unit_test(test_losses),
  };
  setenv("CUDASIM_LEAKS", "1", 1);
  if (!simulator_libraries(argv)) return 1;
  if (argc > 1) cmocka_set_test_filter(argv[1]);
  return cmocka_run_group_tests(tests, set_up, tear_down);
}
