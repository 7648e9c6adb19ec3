/* The rules of simplification: each on a small graph in which it fires, and where it could wrongly on one in which it must not; the
 * results stay the same. Views composed at random. */
#include "passcheck.h"
#include "../passes/rewrite.h"
#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static int clear_error(void **state) {
  (void)state;
  err_clear();
  return 0;
}

typedef struct RuleCase {
  const char *rule, *graph;
  bool fires;
} RuleCase;

#define C(v) "%1 float32 [2, 3] = const " v "\n"
#define USE "fetch \"y\" %2\n"

static const RuleCase rule_cases[] = {
    {"add-zero",
     "graph\n%0 int32 [3] = feed \"x\"\n%1 int32 [3] = const 0\n"
     "%2 int32 [3] = add %1 %0\n" USE,
     true},
    {"add-negative-zero", "graph\n" X23 C("-0.0") "%2 float32 [2, 3] = add %0 %1\n" USE, true},
    {"add-negative-zero", "graph\n" X23 C("0") "%2 float32 [2, 3] = add %0 %1\n" USE, false},
    {"add-zero-float", "graph\n" X23 C("0") "%2 float32 [2, 3] = add %0 %1\n" USE, false},
    {"add-zero-float",
     "graph\n" X23 C("0") "%3 float32 [2, 3] = exp %0\n"
                          "%2 float32 [2, 3] = add %3 %1\n" USE,
     true},
    {"sub-zero", "graph\n" X23 C("0") "%2 float32 [2, 3] = sub %0 %1\n" USE, true},
    {"sub-zero", "graph\n" X23 C("0") "%2 float32 [2, 3] = sub %1 %0\n" USE, false},
    {"mul-one", "graph\n" X23 C("1") "%2 float32 [2, 3] = mul %1 %0\n" USE, true},
    {"div-one", "graph\n" X23 C("1") "%2 float32 [2, 3] = div %0 %1\n" USE, true},
    {"div-one", "graph\n" X23 C("1") "%2 float32 [2, 3] = div %1 %0\n" USE, false},
    {"mul-minus-twice",
     "graph\n" X23 C("-1") "%3 float32 [2, 3] = mul %1 %0\n"
                           "%2 float32 [2, 3] = mul %3 %1\n" USE,
     true},
    {"pow-one", "graph\n" X23 C("1") "%2 float32 [2, 3] = pow %0 %1\n" USE, true},
    {"pow-two", "graph\n" X23 C("2") "%2 float32 [2, 3] = pow %0 %1\n" USE, true},
    {"max-self", "graph\n" X23 "%2 float32 [2, 3] = max %0 %0\n" USE, true},
    {"min-self", "graph\n" X23 "%2 float32 [2, 3] = min %0 %0\n" USE, true},
    {"select-same",
     "graph\n" X23 "%1 bool [2, 3] = lt %0 %0\n"
     "%2 float32 [2, 3] = select %1 %0 %0\n" USE,
     true},
    {"select-true",
     "graph\n" X23 C("5") "%3 bool [2, 3] = const 1\n"
                          "%2 float32 [2, 3] = select %3 %0 %1\n" USE,
     true},
    {"select-false",
     "graph\n" X23 C("5") "%3 bool [2, 3] = const 0\n"
                          "%2 float32 [2, 3] = select %3 %1 %0\n" USE,
     true},
    {"const-map",
     "graph\n" X23 C("5") "%3 float32 [2, 3] = mul %1 %1\n"
                          "%2 float32 [2, 3] = add %3 %0\n" USE,
     true},
    {"cast-same", "graph\n" X23 "%2 float32 [2, 3] = cast %0\n" USE, true},
    {"cast-cast", "graph\n" X23 "%1 float64 [2, 3] = cast %0\n%2 int32 [2, 3] = cast %1\n" USE,
     true},
    {"cast-cast", "graph\n" X23 "%1 int32 [2, 3] = cast %0\n%2 float32 [2, 3] = cast %1\n" USE,
     false},
    {"cast-cast",
     "graph\n%0 int32 [3] = feed \"x\"\n%1 float64 [3] = cast %0\n"
     "%2 int8 [3] = cast %1\n" USE,
     false},
    {"view-identity", "graph\n" X23 "%2 float32 [2, 3] = view %0 [i0, i1] pad 0\n" USE, true},
    {"view-identity", "graph\n" X23 "%2 float32 [2, 3] = view %0 [i0, -i1+2] pad 0\n" USE, false},
    {"view-const",
     "graph\n" X23 "%1 float32 [] = const 3\n%3 float32 [2, 3] = view %1 [] pad 0\n"
     "%2 float32 [2, 3] = add %0 %3\n" USE,
     true},
    {"view-const",
     "graph\n" X23 "%1 float32 [1] = const 3\n"
     "%3 float32 [2, 3] = view %1 [i1-1] pad 7\n"
     "%2 float32 [2, 3] = add %0 %3\n" USE,
     false},
    {"view-view",
     "graph\n" X23 "%1 float32 [3, 2] = view %0 [i1, i0] pad 0\n"
     "%2 float32 [2, 2] = view %1 [i1+1, i0] pad 0\n" USE,
     true},
    /* pad of slice: the padding must not show what the slice cut off */
    {"view-view",
     "graph\n" X23 "%1 float32 [2, 2] = view %0 [i0, i1+1] pad 0\n"
     "%2 float32 [2, 4] = view %1 [i0, i1-1] pad 9\n" USE,
     false},
    {"view-view",
     "graph\n" X23 "%1 float32 [3, 2] = view %0 [i1, i0] pad 0\n"
     "%2 float32 [5, 2] = view %1 [i0-1, i1] pad 9\n" USE,
     true},
    {"view-view",
     "graph\n" X23 "%1 float32 [2, 5] = view %0 [i0, i1-1] pad 9\n"
     "%2 float32 [2, 7] = view %1 [i0, i1-1] pad 9\n" USE,
     true},
    {"view-view",
     "graph\n" X23 "%1 float32 [2, 5] = view %0 [i0, i1-1] pad 9\n"
     "%2 float32 [2, 7] = view %1 [i0, i1-1] pad 8\n" USE,
     false},
    {"view-view",
     "graph\n" X23 "%1 float32 [3, 2] = view %0 [i1, i0] pad 0\n"
     "%2 float32 [2, 5] = view %1 [(i1)/2, i0] pad 0\n" USE,
     true},
    {"view-reshape",
     "graph\n" X23 "%1 float32 [1, 2, 1, 3] = reshape %0\n"
     "%2 float32 [3, 4, 2] = view %1 [0, i2, 0, i0] pad 0\n" USE,
     true},
    {"reshape-view",
     "graph\n" X23 "%1 float32 [4, 2, 5, 3] = view %0 [i1, i3] pad 0\n"
     "%2 float32 [4, 2, 15] = reshape %1\n" USE,
     false},
    {"reshape-view",
     "graph\n%0 float32 [6] = feed \"x\"\n%1 float32 [4, 5, 6] = view %0 [i2] pad 0\n"
     "%2 float32 [20, 2, 3] = reshape %1\n" USE,
     true},
    {"reshape-reshape",
     "graph\n" X23 "%1 float32 [6] = reshape %0\n"
     "%2 float32 [3, 2] = reshape %1\n" USE,
     true},
    {"reshape-same", "graph\n" X23 "%2 float32 [2, 3] = reshape %0\n" USE, true},
    {"reshape-const",
     "graph\n" X23 "%1 float32 [6] = const 2\n%3 float32 [2, 3] = reshape %1\n"
     "%2 float32 [2, 3] = mul %0 %3\n" USE,
     true},
    {"reduce-ones",
     "graph\n%0 float32 [2, 1] = feed \"x\"\n%2 float32 [2, 1] = rmax %0 {axes=[1]}\n" USE, true},
    {"reduce-ones",
     "graph\n%0 float32 [2, 1] = feed \"x\"\n"
     "%2 float32 [1, 1] = rsum %0 {axes=[0, 1]}\n" USE,
     true},
    {"reduce-ones",
     "graph\n%0 float32 [2, 1] = feed \"x\"\n%2 int64 [2, 1] = argmax %0 {axes=[1]}\n" USE, true},
    {"reduce-reduce",
     "graph\n" X23 "%1 float32 [2, 1] = rsum %0 {axes=[1]}\n"
     "%2 float32 [1, 1] = rsum %1 {axes=[0]}\n" USE,
     true},
    {"reduce-reduce",
     "graph\n" X23 "%1 float32 [2, 1] = rmax %0 {axes=[1]}\n"
     "%2 float32 [1, 1] = rsum %1 {axes=[0]}\n" USE,
     false},
    {"reduce-reshape",
     "graph\n" X23 "%1 float32 [2, 2] = contract %0 %0 [i0, i2] [i1, i2] sum [3]\n"
     "%3 float32 [2, 1, 2] = reshape %1\n%2 float32 [2, 1, 1] = rmax %3 {axes=[2]}\n" USE,
     true},
    {"reduce-reshape",
     "graph\n" X23 "%1 float32 [2, 1, 3] = reshape %0\n"
     "%2 float32 [2, 1, 1] = rmax %1 {axes=[2]}\n" USE,
     false},
    {"view-contract",
     "graph\n%0 float32 [2, 3, 4] = feed \"x\"\n"
     "%1 float32 [2, 3, 3] = contract %0 %0 [i0, i1, i3] [i0, i2, i3] sum [4]\n"
     "%2 float32 [3, 2, 3] = view %1 [i1, i0, i2] pad 0\n" USE,
     true},
    {"view-contract",
     "graph\n%0 float32 [2, 3, 4] = feed \"x\"\n"
     "%1 float32 [2, 3, 3] = contract %0 %0 [i0, i1, i3] [i0, i2, i3] sum [4]\n"
     "%2 float32 [2, 3, 3] = view %1 [i0, i2, i1] pad 0\n" USE,
     false},
    {"map-reshape",
     "graph\n" X23 "%1 float32 [1, 3] = rsum %0 {axes=[0]}\n"
     "%3 float32 [3] = reshape %1\n%4 float32 [3] = state \"w\"\n"
     "%2 float32 [3] = sub %4 %3\n" USE,
     true},
    {"map-reshape",
     "graph\n" X23 "%1 float32 [3, 3] = contract %0 %0 [i2, i0] [i2, i1] sum [2]\n"
     "%3 float32 [9] = reshape %1\n%4 float32 [9] = exp %3\n"
     "%2 float32 [9] = mul %3 %4\n" USE,
     true},
    {"map-reshape",
     "graph\n" X23 "%1 float32 [3, 3] = contract %0 %0 [i2, i0] [i2, i1] sum [2]\n"
     "%3 float32 [9] = reshape %1\n%4 float32 [9] = exp %3\n"
     "%2 float32 [9] = mul %3 %4\n" USE "fetch \"z\" %3\n",
     false},
    {"map-expand",
     "graph\n%0 float32 [3] = feed \"x\"\n%1 float32 [5, 3] = view %0 [i1] pad 0\n"
     "%2 float32 [5, 3] = exp %1\n" USE,
     true},
    {"map-concat",
     "graph\n" X23 "%1 float32 [4, 3] = state \"w\"\n%3 float32 [6, 3] = concat %0 %1 {axis=0}\n"
     "%4 float32 [6] = iota {axis=0}\n%5 float32 [6, 3] = view %4 [i0] pad 0\n"
     "%2 float32 [6, 3] = sub %5 %3\n" USE,
     true},
    {"map-concat",
     "graph\n" X23 "%1 float32 [4, 3] = state \"w\"\n%3 float32 [6, 3] = concat %0 %1 {axis=0}\n"
     "%2 float32 [6, 3] = exp %3\n" USE "fetch \"z\" %3\n",
     false},
    {"contract-divided",
     "graph\n%0 float32 [3] = feed \"x\"\n%1 float32 [7] = state \"w\"\n"
     "%2 float32 [3] = contract %0 %1 [(i1-i0+1)/2] [i1] sum [7]\n" USE,
     true},
    {"contract-divided",
     "graph\n%0 float32 [7] = feed \"x\"\n%1 float32 [3] = state \"w\"\n"
     "%2 float32 [3] = contract %0 %1 [(i0-i1+1)/2] [i1] sum [3]\n" USE,
     false},
    {"contract-divided",
     "graph\n%0 float32 [2, 1] = feed \"x\"\n%1 float32 [2, 3] = state \"w\"\n"
     "%2 float32 [5] = contract %0 %1 [i1, i0-i2-1] [i1, i2] sum [2, 3]\n" USE,
     true},
    {"contract-divided",
     "graph\n%0 float32 [1] = feed \"x\"\n%1 float32 [3] = state \"w\"\n"
     "%2 float32 [1] = contract %0 %1 [i1-1] [i1] sum [3]\n" USE,
     true},
    {"contract-view",
     "graph\n" X23 "%1 float32 [3, 2] = view %0 [i1, i0] pad 0\n"
     "%2 float32 [3, 3] = contract %1 %0 [i0, i2] [i2, i1] sum [2]\n" USE,
     true},
    {"contract-view",
     "graph\n%0 float32 [3] = feed \"x\"\n%1 float32 [2, 3] = view %0 [i1] pad 0\n"
     "%2 float32 [3, 3] = contract %1 %1 [i2, i0] [i2, i1] sum [2]\n" USE,
     false},
};

static void test_rules(void **state) {
  (void)state;
  for (size_t i = 0; i < sizeof rule_cases / sizeof *rule_cases; i++) {
    const RuleCase *c = &rule_cases[i];
    Arena *a = arena_new();
    Graph *g = graph_parsed(c->graph);
    Outcome before = outcome_by_interpreter(g, a);
    long fired = simplify_fired(c->rule);
    assert_true(fired >= 0);
    pass_simplify(g);
    assert_true(graph_verify(g));
    if ((simplify_fired(c->rule) > fired) != c->fires)
      fail_msg("case %d: rule %s %s", (int)i, c->rule, c->fires ? "does not fire" : "fires");
    Outcome after = outcome_by_interpreter(g, a);
    bool reordered = !strncmp(c->rule, "reduce-", 7) || !strncmp(c->rule, "pow", 3);
    outcome_compare(&before, &after, reordered ? 1e-6 : 0);
    graph_free(g);
    g = graph_parsed(c->graph);
    check_passes(g, 1e-5);
    graph_free(g);
    arena_free(a);
  }
}

/* Two values of other shapes that meet: which of them is reshaped changes from round to round, and the rounds end all the same. */
static void test_rounds_end(void **state) {
  (void)state;
  Graph *g =
      graph_parsed("graph\n%0 float32 [4, 6, 5] = feed \"x\"\n%1 float32 [24, 7] = feed \"y\"\n"
                   "%2 float32 [4, 6, 1] = rsum %0 {axes=[2]}\n"
                   "%3 float32 [24, 1] = reshape %2\n"
                   "%4 float32 [24, 1] = rsum %1 {axes=[1]}\n%5 float32 [24, 1] = exp %4\n"
                   "%6 float32 [24, 1] = add %3 %5\nfetch \"y\" %6\n");
  long fired = simplify_fired("map-reshape");
  pass_simplify(g);
  fired = simplify_fired("map-reshape") - fired;
  if (fired < 2 || fired > 12) fail_msg("map-reshape fired %ld times", fired);
  graph_free(g);
}

static void test_every_rule_has_a_case(void **state) {
  (void)state;
  for (int i = 0; simplify_rule(i); i++) {
    bool found = false;
    for (size_t j = 0; j < sizeof rule_cases / sizeof *rule_cases; j++)
      found |= rule_cases[j].fires && !strcmp(rule_cases[j].rule, simplify_rule(i));
    if (!found) fail_msg("no case shows rule %s", simplify_rule(i));
  }
}

/* A view composed with itself at random, and with padding: same values whether or not rules fire. */
static void test_random_views(void **state) {
  (void)state;
  srand(7);
  for (int round = 0; round < 400; round++) {
    Graph *g = graph_new(NULL, false);
    Node *x = g_feed(g, "x", DT_FLOAT32, 2, (int64_t[]){2 + rand() % 3, 1 + rand() % 4});
    for (int depth = 0; depth < 3; depth++) {
      AffDim map[2];
      int64_t dims[3] = {1 + rand() % 4, 1 + rand() % 4, 1 + rand() % 3};
      int rank = 2 + rand() % 2;
      for (int d = 0; d < x->rank && d < 2; d++) {
        map[d] = aff_loop(rand() % rank);
        map[d].c0 = rand() % 4 ? 1 + rand() % 2 : -1;
        map[d].off = rand() % 4 - 1;
        map[d].div = 1 + (rand() % 4 == 0);
        if (rand() % 3 == 0)
          map[d].l1 = (int8_t)((map[d].l0 + 1) % rank), map[d].c1 = rand() % 2 ? 1 : -2;
      }
      if (x->rank == 3) x = g_reshape(g, x, 2, (int64_t[]){x->dims[0] * x->dims[1], x->dims[2]});
      x = g_view(g, x, rank, dims, map, rand() % 2 ? 0 : 9);
      if (rand() % 5 == 0) x = g_map1(g, P_EXP, x);
    }
    vec_add(g->arena, &g->fetches, ((NamedNode){"y", x, NULL}));
    check_passes(g, 1e-6);
    graph_free(g);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_teardown(test_rules, clear_error),
      cmocka_unit_test_teardown(test_every_rule_has_a_case, clear_error),
      cmocka_unit_test_teardown(test_rounds_end, clear_error),
      cmocka_unit_test_teardown(test_random_views, clear_error),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
