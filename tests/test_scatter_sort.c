/* Scatter and sort of the CPU backend against the interpreter: the same bits in every split of the tasks. */
#include "contract_case.h"
#include <math.h>

typedef bool CodeFn(Arena *a, const Kernel *k, KernelCode *code);

/* A kernel of one node against the interpreter, in every split. */
static void check_node(Feeds *f, Graph *g, Node *n, KernelKind kind, CodeFn *make) {
  assert_non_null(n);
  graph_number(g);
  NamedNode out = {"out", n, NULL};
  vec_add(g->arena, &g->fetches, out);
  EvalEnv env = {.lookup = feeds_lookup, .user = f};
  Tensor **values = arena_array(f->a, Tensor *, g->nodes.n);
  assert_true(graph_eval(g, &env, f->a, values));
  Kernel k = {.kind = kind, .name = "k", .core = n};
  void *bufs[KL_RANK];
  for (int i = 0; i < n->n_in; i++) {
    vec_add(f->a, &k.inputs, ((KernelInput){n->in[i], false, false}));
    bufs[i] = values[n->in[i]->id]->data;
  }
  vec_add(f->a, &k.outputs, n);
  KernelCode code = {0};
  assert_true(make(f->a, &k, &code));
  size_t bytes = (size_t)(node_numel(n) * dtype_info[n->dtype].size);
  for (int s = ALL_AT_ONCE; s <= IN_THREES; s++) {
    bufs[n->n_in] = arena_alloc(f->a, bytes);
    memset(bufs[n->n_in], 0xee, bytes);
    run_split(&code, bufs, s);
    assert_memory_equal(bufs[n->n_in], values[n->id]->data, bytes);
  }
}

static void test_scatter(void **state) {
  static const struct {
    int axis;
    int64_t base[3], n;
  } cases[] = {{0, {50, 8, 5}, 70}, {1, {3, 40, 33}, 90}, {2, {7, 9, 30}, 11}, {0, {1000, 1, 1}, 1},
               {0, {5, 1, 700}, 9}, {1, {4, 6, 2}, 0},    {2, {300, 20, 4}, 3}};
  (void)state;
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
    for (DType t = 0; t < DT_N; t++)
      for (int assign = 0; assign < 2; assign++) {
        Feeds f = feeds_new();
        Graph *g = graph_new(NULL, false);
        int64_t d[3];
        memcpy(d, cases[i].base, sizeof d);
        d[cases[i].axis] = cases[i].n;
        DType it = i & 1 ? DT_INT32 : DT_INT64;
        Node *base = feeds_add(g, &f, "base", t, 3, cases[i].base),
             *upd = feeds_add(g, &f, "upd", t, 3, d), *idx = feeds_add(g, &f, "idx", it, 3, d);
        int64_t size = cases[i].base[cases[i].axis];
        const char *names[] = {"base", "upd"};
        for (int n = 0; n < 2; n++) { /* whole numbers: sums are exact in any order and type */
          Tensor *v = map_get(f.map, names[n]);
          for (int64_t j = 0; j < tensor_numel(v); j++)
            tensor_set(v, j, floor(test_noise() * 2 + 2));
        }
        Tensor *v = map_get(f.map, "idx"); /* some fall outside */
        for (int64_t j = 0; j < tensor_numel(v); j++)
          tensor_set(v, j, floor((test_noise() * 0.55 + 0.5) * (double)size));
        check_node(&f, g, g_scatter(g, base, idx, upd, cases[i].axis, assign), K_SCATTER,
                   scatter_code);
        graph_free(g);
        arena_free(f.a);
      }
}

static void test_sort(void **state) {
  static const int64_t dims[][2] = {{1, 1}, {3, 16}, {5, 17}, {2, 1000}, {40, 33}, {4, 0}, {0, 4}};
  (void)state;
  for (size_t i = 0; i < sizeof dims / sizeof *dims; i++)
    for (DType t = 0; t < DT_N; t++)
      for (int down = 0; down < 2; down++) {
        Feeds f = feeds_new();
        Graph *g = graph_new(NULL, false);
        Node *x = feeds_add(g, &f, "x", t, 2, dims[i]);
        Tensor *v = map_get(f.map, "x");
        for (int64_t j = 0; j < tensor_numel(v); j++) {
          double r = test_noise();
          tensor_set(v, j, floor(r * 20)); /* many are equal */
          if (dtype_is_float(t) && r > 0.9) tensor_set(v, j, r > 0.95 ? NAN : -0.0);
          if (dtype_is_float(t) && r < -0.95) tensor_set(v, j, r < -0.97 ? -INFINITY : INFINITY);
        }
        check_node(&f, g, g_argsort(g, x, down), K_SORT, sort_code);
        graph_free(g);
        arena_free(f.a);
      }
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_scatter), cmocka_unit_test(test_sort)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
