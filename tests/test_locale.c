/* A program that uses Kiln may have chosen a locale whose numbers have a comma. Formulas, rules, programs in both forms and
 * traces are read and written as everywhere else. */
#include "util.h"
#include "../frontend/internal.h"
#include <locale.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

typedef struct Result {
  char *text;    /* of the startup program */
  float loss[2]; /* compiled and interpreted */
  char trace[4000];
} Result;

static void train(Result *r, kl_net *net, const char *trace, int way) {
  kl_exec *exe = kl_exec_new(
      (kl_exec_options){.threads = 1, .interpret = way == 1, .profile = true, .trace = trace});
  float in[8] = {1, 2, 3, 4, -1, -2, 0.1f, 0.2f};
  kl_tensor x = kl_array(KL_FLOAT32, in, 2, 4), loss = kl_scalar(KL_FLOAT32, &r->loss[way]);
  kl_run(exe, kl_startup(net), NULL, NULL);
  for (int i = 0; i < 3; i++)
    kl_run(exe, kl_main(net), kl_feeds({"x", &x}), kl_fetches({"loss", &loss}));
  kl_exec_free(exe);
}

static void work(Result *r, const char *folder) {
  char path[300], again[300];
  snprintf(path, sizeof path, "%s/t.json", folder),
      snprintf(again, sizeof again, "%s/startup.kl", folder);
  kl_net *net = kl_net_new();
  kl_seed(net, 7);
  kl_var *h = kl_fc(kl_data(net, "x", KL_FLOAT32, 2, 4), 4, .bias.init = kl_constant(0.3));
  h = kl_op(net, "scale", "scale=0.5 bias=0.25", "X", kl_unary("gelu", "", h));
  kl_minimize(kl_named(kl_mean(h), "loss"), kl_adam(0.01));
  r->text = kl_text(kl_startup(net));
  kl_save(kl_startup(net), again);
  kl_program *p = kl_load(again);
  char *read = kl_text(p);
  assert_string_equal(read, r->text);
  kl_free(read), kl_program_free(p);
  train(r, net, path, 0), train(r, net, NULL, 1);
  no_error();
  FILE *f = fopen(path, "r");
  assert_non_null(f);
  r->trace[fread(r->trace, 1, sizeof r->trace - 1, f)] = 0;
  fclose(f);
  kl_net_free(net);
}

static void test_comma(void **state) {
  (void)state;
  const char *folder = scratch_folder();
  char command[400];
  snprintf(command, sizeof command, "localedef -i de_DE -f UTF-8 '%s/de_DE.UTF-8' 2>/dev/null",
           folder);
  bool made = !system(command);
  setenv("LOCPATH", folder, 1);
  Result point = {0}, comma = {0};
  work(&point, folder);
  bool chosen = setlocale(LC_ALL, "de_DE.UTF-8");
  if (chosen) {
    char number[8];
    snprintf(number, sizeof number, "%g", 0.5);
    assert_string_equal(number, "0,5");
    work(&comma, folder);
    assert_string_equal(comma.text, point.text);
    assert_memory_equal(comma.loss, point.loss, sizeof comma.loss);
    const char *ts = strstr(comma.trace, "\"ts\": ");
    assert_non_null(ts);
    ts += 6 + strspn(ts + 6, "0123456789.");
    assert_int_equal(strncmp(ts, ", \"dur\": ", 9), 0);
  }
  setlocale(LC_ALL, "C");
  kl_free(point.text), kl_free(comma.text);
  snprintf(command, sizeof command, "rm -rf '%s/de_DE.UTF-8'", folder);
  assert_int_equal(system(command), 0);
  scratch_remove(folder);
  if (!chosen)
    print_message("skipped: no locale de_DE (%s)\n", made ? "setlocale" : "localedef"), skip();
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test_setup(test_comma, clear_error)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
