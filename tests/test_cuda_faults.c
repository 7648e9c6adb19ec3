/* The CUDA backend where the driver fails, on its simulator (tests/cudasim): devices that cannot be used, and every call failing in turn:
 * a coded error, nothing left behind, and the process goes on on the CPU. And the cache of machine code. Each attempt is a process of
 * its own, since the simulator reads its settings when it is opened. */
#include "device_net.h"
#include "simulator.h"
#include "util.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

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
    ok = net_start_step(exe, net, &to[k]) && exec_finish(exe->run, 1);
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
  Net n = net_new(net_calls, false, 2, 0);
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
  };
  setenv("CUDASIM_LEAKS", "1", 1);
  if (!simulator(argv)) return 1;
  if (argc > 1) cmocka_set_test_filter(argv[1]);
  return cmocka_run_group_tests(tests, set_up, tear_down);
}
