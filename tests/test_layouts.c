/* State in layouts: permuted tensors, and variables that compiled programs keep permuted while the interpreter, the outside,
 * checkpoints and other threads see them in their own order. */
#include "util.h"
#include "../frontend/kiln.h"
#include "../ir/ir.h"
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

/* ---- tensors ---- */

static void random_layout(int rank, int64_t *layout) {
  for (int d = 0; d < rank; d++) layout[d] = d;
  for (int d = rank - 1; d > 0; d--) {
    int e = rand() % (d + 1);
    int64_t was = layout[d];
    layout[d] = layout[e], layout[e] = was;
  }
}

/* Every element by its index. */
static void check_permuted(const Tensor *x, const Tensor *y, const int64_t *layout) {
  int64_t i[KL_VAR_RANK] = {0};
  for (int64_t n = 0; n < tensor_numel(y); n++) {
    int64_t at = 0, index[KL_VAR_RANK];
    for (int d = 0; d < x->rank; d++) index[layout[d]] = i[d];
    for (int d = 0; d < x->rank; d++) at = at * x->dims[d] + index[d];
    assert_true(tensor_get(x, at) == tensor_get(y, n));
    for (int d = x->rank - 1; d >= 0 && ++i[d] == y->dims[d]; d--) i[d] = 0;
  }
}

static void permutations(void **state) {
  (void)state;
  static const DType types[] = {DT_UINT8, DT_INT16, DT_FLOAT32, DT_FLOAT64};
  static const int64_t sizes[] = {1, 2, 3, 5, 16, 17, 40, 0};
  srand(3);
  for (int k = 0; k < 400; k++) {
    Arena *a = arena_new();
    int64_t dims[KL_VAR_RANK], layout[KL_VAR_RANK], inverse[KL_VAR_RANK], n = 1;
    int rank = rand() % 6;
    for (int d = 0; d < rank; d++) {
      dims[d] = sizes[rand() % (k % 10 ? 7 : 8)];
      if (n * dims[d] > 20000) dims[d] = 1;
      n *= dims[d];
    }
    random_layout(rank, layout);
    Tensor x, y, z;
    tensor_make(&x, a, types[k % 4], rank, dims);
    for (int64_t i = 0; i < n; i++) tensor_set(&x, i, rand() % 120);
    y = tensor_layout(&x, layout);
    y.data = arena_alloc(a, tensor_bytes(&y) + 1);
    tensor_permute(y.data, &x, layout);
    check_permuted(&x, &y, layout);
    layout_inverse(rank, layout, inverse);
    z = tensor_layout(&y, inverse);
    z.data = arena_alloc(a, tensor_bytes(&z) + 1);
    int64_t tasks = tensor_permute_tasks(&y, inverse);
    for (int64_t t = tasks - 1; t >= 0; t--) tensor_permute_some(z.data, &y, inverse, t, t + 1);
    assert_memory_equal(z.dims, x.dims, (size_t)rank * sizeof *z.dims);
    assert_memory_equal(z.data, x.data, tensor_bytes(&x));
    arena_free(a);
  }
}

/* ---- a network whose filters are kept permuted ---- */

typedef struct Net {
  kl_net *net;
  kl_program *test;
  float x[2 * 3 * 6 * 6], out[2 * 4];
  int64_t y[2];
  kl_tensor tx, ty, tout;
} Net;

static void net_make(Net *n) {
  *n = (Net){.net = kl_net_new(), .y = {1, 3}};
  kl_var *x = kl_data(n->net, "x", KL_FLOAT32, -1, 3, 6, 6);
  kl_var *y = kl_data(n->net, "y", KL_INT64, -1, 1);
  kl_var *h = kl_conv2d(x, 16, 3, .pad = 1, .act = "relu");
  h = kl_batch_norm(kl_conv2d(h, 32, 3, .stride = 2, .no_bias = true), .act = "relu");
  h = kl_named(kl_fc(kl_pool2d(h, "avg", .global = true), 4), "out");
  kl_var *loss = kl_mean(kl_softmax_with_cross_entropy(h, y));
  n->test = kl_clone_for_test(kl_main(n->net));
  kl_minimize(loss, kl_momentum(0.1, 0.9));
  for (int i = 0; i < 216; i++) n->x[i] = (float)sin(i * 0.7);
  n->tx = kl_array(KL_FLOAT32, n->x, 2, 3, 6, 6);
  n->ty = kl_array(KL_INT64, n->y, 2, 1);
  n->tout = kl_array(KL_FLOAT32, n->out, 2, 4);
  no_error();
}

static void net_free(Net *n) {
  kl_program_free(n->test);
  kl_net_free(n->net);
}

static void train(Net *n, kl_exec *exe) {
  kl_run(exe, kl_main(n->net), kl_feeds({"x", &n->tx}, {"y", &n->ty}),
         kl_fetches({"out", &n->tout}));
  no_error();
}

static const char *const watched[] = {"conv2d_0.w_0", "conv2d_1.w_0", "conv2d_1.w_0_velocity_0",
                                      "fc_0.w_0", "batch_norm_0.w_2"};
enum { WATCHED = sizeof watched / sizeof *watched };

static void same_state(kl_exec *a, kl_exec *b, double rel) {
  for (int i = 0; i < WATCHED; i++) {
    const Tensor *x = (const Tensor *)kl_get(a, watched[i]),
                 *y = (const Tensor *)kl_get(b, watched[i]);
    assert_int_equal(x->rank, y->rank);
    assert_memory_equal(x->dims, y->dims, (size_t)x->rank * sizeof *x->dims);
    for (int64_t e = 0; e < tensor_numel(x); e++) {
      double p = tensor_get(x, e), q = tensor_get(y, e);
      if (!(fabs(p - q) <= rel * (1 + fabs(p))))
        fail_msg("%s[%lld]: %.9g, not %.9g", watched[i], (long long)e, q, p);
    }
  }
}

/* Steps by compiled code and by the interpreter in turn on one scope, with looks from outside, against the interpreter. */
static void no_update_is_lost(void **state) {
  (void)state;
  Net n;
  net_make(&n);
  kl_scope *scope = kl_scope_new();
  kl_exec *want = kl_exec_new((kl_exec_options){.interpret = true});
  kl_exec *a = kl_exec_new((kl_exec_options){.scope = scope, .threads = 2});
  kl_exec *b = kl_exec_new((kl_exec_options){.scope = scope, .interpret = true});
  kl_run(want, kl_startup(n.net), NULL, NULL);
  kl_run(a, kl_startup(n.net), NULL, NULL);
  const kl_tensor *held = kl_get(a, "conv2d_1.w_0");
  const float *data = held->data, first = *data;
  same_state(want, a, 0);
  static const char plan[] = "aalabaLbaaSaa"; /* l: looks; L: looks at all; S: sets */
  for (const char *p = plan; *p; p++) {
    if (*p == 'l') assert_true(isfinite(*(const float *)kl_get(a, "conv2d_0.w_0")->data));
    if (*p == 'L') same_state(want, b, 2e-5);
    if (*p == 'S') {
      kl_set(a, "conv2d_1.w_0", kl_get(want, "conv2d_1.w_0"));
      kl_set(a, "conv2d_1.w_0_velocity_0", kl_get(want, "conv2d_1.w_0_velocity_0"));
    }
    if (*p != 'a' && *p != 'b') continue;
    train(&n, want);
    train(&n, *p == 'a' ? a : b);
  }
  assert_true(isfinite(*data)); /* still memory of the scope */
  same_state(want, a, 2e-5);
  assert_true(*(const float *)held->data != first);
  kl_exec_free(want), kl_exec_free(a), kl_exec_free(b);
  kl_scope_free(scope);
  net_free(&n);
}

/* What is saved in the middle of training goes on to the same bits. */
static void checkpoints(void **state) {
  (void)state;
  Net n;
  net_make(&n);
  const char *dir = scratch_folder();
  kl_exec *a = kl_exec_new((kl_exec_options){.threads = 1});
  kl_exec *b = kl_exec_new((kl_exec_options){.threads = 2});
  kl_run(a, kl_startup(n.net), NULL, NULL);
  for (int i = 0; i < 3; i++) train(&n, a);
  assert_true(kl_checkpoint(a, kl_main(n.net), dir, ""));
  assert_true(kl_resume(b, kl_main(n.net), dir) >= 0);
  same_state(a, b, 0);
  for (int i = 0; i < 3; i++) train(&n, a), train(&n, b);
  same_state(a, b, 0);
  kl_exec_free(a), kl_exec_free(b);
  scratch_remove(dir);
  net_free(&n);
}

typedef struct Reader {
  Net *net;
  kl_scope *scope;
  bool interpret, looks, ok;
  float out[8];
} Reader;

static void *read_often(void *user) {
  Reader *r = user;
  kl_exec *exe =
      kl_exec_new((kl_exec_options){.scope = r->scope, .threads = 2, .interpret = r->interpret});
  kl_tensor out = kl_array(KL_FLOAT32, r->out, 2, 4);
  r->ok = true;
  for (int i = 0; i < 20 && r->ok; i++) {
    r->ok = kl_run(exe, r->net->test, kl_feeds({"x", &r->net->tx}), kl_fetches({"out", &out}));
    if (r->looks) r->ok &= isfinite(*(const float *)kl_get(exe, watched[i % 2])->data);
  }
  kl_exec_free(exe);
  return NULL;
}

/* Compiled code, the interpreter and looks from outside want different orders of the same filters at once. */
static void threads_share_a_scope(void **state) {
  (void)state;
  Net n;
  net_make(&n);
  for (int round = 0; round < 8; round++) {
    kl_scope *scope = kl_scope_new();
    kl_exec *exe = kl_exec_new((kl_exec_options){.scope = scope});
    kl_run(exe, kl_startup(n.net), NULL, NULL);
    if (round % 2) train(&n, exe);
    no_error();
    pthread_t thread[4];
    Reader r[4];
    for (int k = 0; k < 4; k++) {
      r[k] = (Reader){.net = &n, .scope = scope, .interpret = k == 1, .looks = k == 2};
      assert_int_equal(pthread_create(&thread[k], NULL, read_often, &r[k]), 0);
    }
    for (int k = 0; k < 4; k++) pthread_join(thread[k], NULL);
    for (int k = 0; k < 4; k++) {
      assert_true(r[k].ok);
      for (int i = 0; i < 8; i++) assert_true(fabs(r[k].out[i] - r[0].out[i]) < 1e-4);
    }
    kl_exec_free(exe);
    kl_scope_free(scope);
  }
  net_free(&n);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(permutations),
                                     cmocka_unit_test(no_update_is_lost),
                                     cmocka_unit_test(checkpoints),
                                     cmocka_unit_test(threads_share_a_scope)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
