/* kiln.h used wrongly: each mistake is one coded error, no crash, and once the error is cleared the net is what it was: its text
 * is the same, and it goes on to be built and run. */
#include "util.h"
#include "../frontend/internal.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static kl_net *net, *other;
static kl_var *x, *label, *scores, *foreign;
static kl_exec *exe;
static float data[8] = {1, 2, 3, 4, 5, 6, 7, 8};
static kl_tensor tx;

static int setup(void **state) {
  clear_error(state);
  net = kl_net_new();
  other = kl_net_new();
  kl_seed(net, 3);
  x = kl_data(net, "x", KL_FLOAT32, -1, 4);
  label = kl_data(net, "label", KL_INT64, -1, 1);
  scores = kl_named(kl_fc(x, 3), "scores");
  foreign = kl_data(other, "x", KL_FLOAT32, -1, 4);
  tx = kl_array(KL_FLOAT32, data, 2, 4);
  exe = kl_exec_new((kl_exec_options){.threads = 1});
  return kl_failed();
}

static int teardown(void **state) {
  (void)state;
  kl_exec_free(exe);
  kl_net_free(net);
  kl_net_free(other);
  return 0;
}

static void unchanged(const char *what, char *before, const kl_program *p) {
  char *after = kl_text(p);
  if (strcmp(before, after) != 0)
    fail_msg("after %s the program is\n%s\nnot\n%s", what, after, before);
  kl_free(before);
  kl_free(after);
}

static void still_works(void) {
  kl_tensor out = {0};
  kl_var *more = kl_relu(kl_fc(scores, 2));
  assert_true(kl_run(exe, kl_startup(net), NULL, NULL));
  assert_true(kl_run(exe, kl_main(net), kl_feeds({"x", &tx}), kl_fetches({kl_name(more), &out})));
  assert_int_equal(out.dims[1], 2);
  kl_tensor_free(&out);
}

#define WRONG(code, call)                                                                          \
  do {                                                                                             \
    char *main_ = kl_text(kl_main(net)), *startup_ = kl_text(kl_startup(net));                     \
    (void)(call);                                                                                  \
    if (strcmp(kl_error_code(), code) != 0) fail_msg("%s: %s, not %s", #call, kl_error(), code);   \
    kl_clear_error();                                                                              \
    unchanged(#call, main_, kl_main(net));                                                         \
    unchanged(#call, startup_, kl_startup(net));                                                   \
  } while (0)

static void operators(void **state) {
  (void)state;
  WRONG("E-SHP-002", kl_pool2d(x, "max", 2));
  WRONG("E-OPR-003", kl_dropout(x, 2));
  WRONG("E-OPR-003", kl_batch_norm(x, .epsilon = -1));
  WRONG("E-OPR-001", kl_fc(x, 3, .act = "nosuch"));
  WRONG("E-TYP-002", kl_fc(label, 3));
  WRONG("E-TYP-002", kl_embedding(x, 3, 4));
  WRONG("E-OPR-002", kl_op(net, "relu", ""));
  WRONG("E-OPR-002", kl_op(net, "relu", "", "X", x, "X", x));
  WRONG("E-OPR-002", kl_op(net, "while", ""));
  WRONG("E-ARG-002", kl_op(net, "relu", "", "X", (kl_var *)NULL));
  WRONG("E-ARG-002", kl_op(net, NULL, "", "X", x));
  WRONG("E-OPR-003", kl_op(net, "softmax", "axes=0", "X", x));
  WRONG("E-OPR-003", kl_op(net, "leaky_relu", "alpha=nan", "X", x));
  WRONG("E-OPR-003", kl_op(net, "split", "num=100000 axis=1", "X", x));
  WRONG("E-SHP-004", kl_reshape(x, -1, -1));
  WRONG("E-SHP-003", kl_concat(9, x, x));
  WRONG("E-ARG-002", kl_concat(0, x, NULL));
  WRONG("E-SHP-001", kl_mse(scores, x));
  WRONG("E-TYP-002", kl_softmax_with_cross_entropy(scores, scores));
  WRONG("E-OPR-003", kl_accuracy(scores, label, 9));
  WRONG("E-TYP-001", kl_assign(x, label));
  WRONG("E-ARG-002", kl_fill(net, KL_FLOAT32, 1, -1));
  WRONG("E-ARG-002", kl_fill(net, (kl_dtype)88, 1, 1));
  WRONG("E-ARG-002", kl_output(scores, NULL));
  WRONG("E-ARG-002", kl_named(scores, NULL));
  WRONG("E-ARG-002", kl_named(scores, ""));
  still_works();
}

static void declarations(void **state) {
  (void)state;
  const int64_t three = 3, open = -1;
  kl_tensor ones = kl_array(KL_FLOAT32, data, 2);
  WRONG("E-ARG-002", kl_data(net, "", KL_FLOAT32, 1));
  WRONG("E-ARG-002", kl_data(net, NULL, KL_FLOAT32, 1));
  WRONG("E-ARG-002", kl_data(net, "z", (kl_dtype)77, 1));
  WRONG("E-ARG-002", kl_data(net, "z", KL_FLOAT32, -5));
  WRONG("E-MEM-002", kl_data(net, "z", KL_FLOAT32, INT64_MAX, INT64_MAX));
  WRONG("E-PRO-002", kl_data(net, "x", KL_FLOAT32, 1));
  WRONG("E-ARG-002", kl_data_at(KL_HERE, net, "z", KL_FLOAT32, 2, NULL));
  WRONG("E-ARG-002", kl_parameter(net, "k", KL_FLOAT32, 1, &open, (kl_param){0}, false));
  WRONG("E-ARG-002", kl_parameter(net, "k", KL_FLOAT32, 1, NULL, (kl_param){0}, false));
  WRONG("E-ARG-002", kl_parameter(net, "k", (kl_dtype)99, 1, &three, (kl_param){0}, false));
  WRONG("E-TYP-002", kl_parameter(net, "k", KL_INT64, 1, &three, (kl_param){0}, false));
  WRONG("E-MEM-002", kl_fc(x, INT64_MAX));
  WRONG("E-ARG-002", kl_fc(x, 3, .weight = {.name = ""}));
  WRONG("E-SHP-006", kl_fc(x, 3, .weight = {.name = "scores"}));
  WRONG("E-SHP-006", kl_fc(x, 3, .weight = {.init = kl_values(NULL)}));
  WRONG("E-SHP-006", kl_fc(x, 3, .weight = {.init = kl_values(&ones)}));
  WRONG("E-ARG-002", kl_fc(x, 3, .weight = {.init = kl_uniform(2, 1)}));
  WRONG("E-ARG-002", kl_fc(x, 3, .weight = {.init = kl_constant(NAN)}));
  WRONG("E-ARG-002", kl_fc(x, 3, .bias = {.init = {.kind = 99}}));
  still_works();
}

/* A variable of the same name in another net is not meant. */
static void two_nets(void **state) {
  (void)state;
  WRONG("E-ARG-002", kl_add(x, foreign));
  WRONG("E-ARG-002", kl_add(foreign, x));
  WRONG("E-ARG-002", kl_concat(1, x, foreign));
  WRONG("E-ARG-002", kl_op(net, "relu", "", "X", foreign));
  WRONG("E-ARG-002", kl_mse(scores, foreign));
  WRONG("E-ARG-002", kl_huber(x, foreign, 1));
  WRONG("E-ARG-002", kl_assign(x, foreign));
  assert_string_equal(kl_name(foreign), "x");
  still_works();
}

static void training(void **state) {
  (void)state;
  kl_var *loss = kl_mean(kl_softmax_with_cross_entropy(scores, label));
  WRONG("E-ARG-002", kl_minimize(loss, kl_sgd(NAN)));
  WRONG("E-ARG-002", kl_minimize(loss, ((kl_optimizer){.type = "lamb"})));
  WRONG("E-ARG-002", kl_minimize(loss, ((kl_optimizer){0})));
  WRONG("E-OPR-003", kl_minimize(loss, kl_momentum(0.1, NAN)));
  WRONG("E-OPR-003", kl_minimize(loss, kl_adam(0.1, .beta1 = 2)));
  WRONG("E-ARG-002", kl_minimize(loss, kl_sgd(0.1, .clip = kl_clip_norm(-1))));
  WRONG("E-ARG-002", kl_minimize(loss, kl_sgd(0.1, .clip = kl_clip_global_norm(NAN))));
  WRONG("E-ARG-002", kl_minimize(loss, kl_sgd(0.1, .clip = kl_clip_value(1, -1))));
  WRONG("E-ARG-002", kl_minimize(loss, kl_sgd(0.1, .clip = {77, 0, 1})));
  WRONG("E-ARG-002", kl_minimize(loss, kl_sgd(0.1, .decay = kl_l2(NAN))));
  WRONG("E-ARG-002", kl_minimize(loss, kl_sgd(0.1, .decay = {77, 0.1})));
  assert_non_null(kl_minimize(loss, kl_adam(0.1)));
  int64_t classes[2] = {0, 2};
  float first = 0, last = 0;
  kl_tensor tl = kl_array(KL_INT64, classes, 2, 1), out = kl_scalar(KL_FLOAT32, &first);
  assert_true(kl_run(exe, kl_startup(net), NULL, NULL));
  for (int i = 0; i < 20; i++, out.data = &last)
    assert_true(kl_run(exe, kl_main(net), kl_feeds({"x", &tx}, {"label", &tl}),
                       kl_fetches({kl_name(loss), &out})));
  assert_true(last < first);
}

static void blocks(void **state) {
  (void)state;
  kl_var *i = kl_fill(net, KL_INT64, 0, 1), *n = kl_fill(net, KL_INT64, 3, 1);
  kl_var *one = kl_fill(net, KL_INT64, 1, 1), *s = kl_copy(x);
  WRONG("E-TYP-002", kl_while(x));
  WRONG("E-TYP-002", kl_if(i));
  WRONG("E-ARG-002", kl_end_while(NULL, x));
  kl_block *loop = kl_while(kl_less_than(i, n));
  WRONG("E-SHP-001", kl_add(s, scores));
  WRONG("E-ARG-002", kl_end_while(loop, NULL));
  WRONG("E-ARG-002", kl_else(loop));
  kl_assign(s, kl_add(s, x)); /* still in the loop */
  kl_assign(i, kl_add(i, one));
  WRONG("E-TYP-001", kl_end_while(loop, s));
  assert_true(kl_end_while(loop, kl_less_than(i, n)));
  kl_block *branch = kl_if(kl_less_than(n, i));
  kl_var *yes = kl_tanh(s);
  WRONG("E-ARG-002", kl_choose(branch, yes, yes));
  assert_true(kl_else(branch));
  kl_var *flat = kl_reshape(s, -1);
  WRONG("E-SHP-002", kl_choose(branch, yes, flat));
  kl_var *y = kl_choose(branch, yes, kl_copy(s));
  kl_tensor out = {0};
  assert_true(kl_run(exe, kl_main(net), kl_feeds({"x", &tx}), kl_fetches({kl_name(y), &out})));
  for (int k = 0; k < 8; k++) assert_true(((float *)out.data)[k] == 4 * data[k]);
  kl_tensor_free(&out);
  still_works();
}

/* What is NULL is named, and what may be NULL does nothing. */
static void nothing(void **state) {
  (void)state;
  kl_program *p = kl_main(net);
  kl_tensor t = {0};
  WRONG("E-ARG-002", kl_save(NULL, "f"));
  WRONG("E-ARG-002", kl_save(p, NULL));
  WRONG("E-ARG-002", kl_load(NULL));
  WRONG("E-ARG-002", kl_clone(NULL));
  WRONG("E-ARG-002", kl_clone_for_test(NULL));
  WRONG("E-ARG-002", kl_prune(NULL, NULL, NULL));
  WRONG("E-ARG-002", kl_save_params(NULL, p, "f"));
  WRONG("E-ARG-002", kl_save_params(exe, NULL, "f"));
  WRONG("E-ARG-002", kl_load_params(exe, p, NULL));
  WRONG("E-ARG-002", kl_save_inference(exe, p, NULL, NULL, NULL));
  WRONG("E-ARG-002", kl_load_inference(NULL, "f"));
  WRONG("E-ARG-002", kl_run(NULL, p, NULL, NULL));
  WRONG("E-ARG-002", kl_run(exe, NULL, NULL, NULL));
  WRONG("E-ARG-002", kl_set(NULL, "w", &tx));
  WRONG("E-ARG-002", kl_set(exe, NULL, &tx));
  WRONG("E-ARG-002", kl_set(exe, "w", NULL));
  WRONG("E-ARG-002", kl_set(exe, "w", &(kl_tensor){.dtype = (kl_dtype)77, .data = data}));
  WRONG("E-ARG-002", kl_set(exe, "w", &(kl_tensor){.rank = 1, .dims = {-2}, .data = data}));
  WRONG("E-ARG-002", kl_set(exe, "w", &(kl_tensor){.rank = 1, .dims = {2}}));
  WRONG("E-ARG-002", kl_set_rate(NULL, x, 1));
  WRONG("E-ARG-002", kl_checkpoint(exe, p, NULL, ""));
  WRONG("E-ARG-002", kl_resume(NULL, p, "f"));
  WRONG("E-ARG-002", kl_read_array(NULL, &t));
  WRONG("E-ARG-002", kl_read_array("f", NULL));
  WRONG("E-ARG-002", kl_read_lod(NULL, &t, 1));
  WRONG("E-ARG-002", kl_register(NULL));
  WRONG("E-ARG-002", kl_load_plugin(NULL));
  WRONG("E-ARG-002", kl_rate(NULL, 0));
  WRONG("E-ARG-002",
        kl_rate(&(kl_schedule){0}, 0) + kl_rate((kl_schedule[]){kl_rate_callback(NULL, NULL)}, 0));
  WRONG("E-ARG-002", kl_rate((kl_schedule[]){kl_rate_multi_step(1, 3, NULL, 0.1)}, 5));
  kl_tensor_free(NULL);
  kl_program_free(NULL);
  kl_exec_free(NULL);
  kl_scope_free(NULL);
  kl_net_free(NULL);
  assert_int_equal(kl_numel(NULL), 0);
  assert_int_equal(kl_feed_names(NULL, NULL, 0), 0);
  assert_null(kl_get(exe, NULL));
  assert_null(kl_find(net, NULL));
  assert_false(kl_failed());
  still_works();
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void) {
  const struct CMUnitTest tests[] = {
      TEST(operators), TEST(declarations), TEST(two_nets),
      TEST(training),  TEST(blocks),       TEST(nothing),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
