/* Operators that the executor runs itself, on tags and on matches, as programs in the text form: viterbi_decode against all
 * paths, chunk_eval and bipartite_match against values worked out by hand. */
#include "../executor/executor.h"
#include "util.h"
#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* The program's variable y, compiled and, k = 1, interpreted; data is mem_alloc's. false: an error. */
static bool run(const char *text, int k, Tensor *out) {
  Program *p = prog_parse(text, strlen(text), "tags.kl");
  if (!p || !prog_verify(p)) {
    err_print(stderr, false);
    fail_msg("%s", text);
  }
  Executor *e = exec_new(&(ExecOptions){.threads = 1, .interpret = k});
  Scope *s = scope_new();
  *out = (Tensor){0};
  bool ok = exec_run(e, s, p, 0, NULL, 1, (const char *[]){"y"}, out);
  exec_free(e);
  scope_free(s);
  prog_free(p);
  return ok;
}

static void expect(const char *text, int n, const double *want) {
  for (int k = 0; k < 2; k++) {
    Tensor out;
    if (!run(text, k, &out)) {
      err_print(stderr, false);
      fail_msg("%s", text);
    }
    assert_int_equal(tensor_numel(&out), n);
    for (int i = 0; i < n; i++)
      if (!(fabs(tensor_get(&out, i) - want[i]) <= 1e-6))
        fail_msg("y[%d] is %.9g, not %.9g: %s", i, tensor_get(&out, i), want[i], text);
    mem_free(out.data);
  }
}

static void refuse(const char *text, ErrCode code, const char *part) {
  for (int k = 0; k < 2; k++) {
    Tensor out;
    assert_false(run(text, k, &out));
    expect_error(code, part);
  }
}

#define VALUES(...)                                                                                \
  (int)(sizeof((double[]){__VA_ARGS__}) / sizeof(double)), (double[]) { __VA_ARGS__ }
#define FLOATS(name, dims, list)                                                                   \
  "  " name " = assign_value() {shape=" dims ", dtype=5, fp32_values=" list "F}\n"
#define INTS(name, dims, list)                                                                     \
  "  " name " = assign_value() {shape=" dims ", dtype=3, int64_values=" list "L}\n"

/* ---- viterbi_decode ---- */

enum { B = 3, T = 4, K = 3 };
static const int lengths[B] = {4, 1, 3};
static const double emit[B * T * K] = {0.5,  -1,   0.25, 1,     0.75, -0.5, -1.5, 2,    1,
                                       0.25, 0.5,  -2,   -0.25, 0.5,  1.5,  3,    -3,   2,
                                       1,    0.25, -1,   0.5,   2,    -2,   1.25, -0.5, 0,
                                       -1,   2,    0.75, 0.5,   0.25, -1,   9,    9,    9};
static const double step[K * K] = {0.25, -1, 0.5, 1.5, -0.75, 0, -0.25, 1, 0.125};

/* The best of all paths, by trying them. */
static double best_path(int b, bool ends, int *best) {
  int n = lengths[b], all = 1;
  double most = -INFINITY;
  for (int i = 0; i < n; i++) all *= K;
  for (int code = 0; code < all; code++) {
    int path[T], rest = code;
    double score = 0;
    for (int t = 0; t < n; t++, rest /= K) {
      path[t] = rest % K;
      score += emit[(b * T + t) * K + path[t]] + (t ? step[path[t - 1] * K + path[t]] : 0);
    }
    if (ends) score += step[(K - 1) * K + path[0]] + step[(K - 2) * K + path[n - 1]];
    if (score > most) most = score, memcpy(best, path, sizeof path);
  }
  return most;
}

static void add_list(Str *s, int n, const double *v) {
  for (int i = 0; i < n; i++) str_fmt(s, "%s%.3f", i ? ", " : "[", v[i]);
  str_add(s, "]F}\n");
}

static void paths(void **state) {
  (void)state;
  Arena *a = arena_new();
  for (int ends = 0; ends < 2; ends++)
    for (int path = 0; path < 2; path++) {
      Str s;
      double want[B * T] = {0};
      str_init(&s, a);
      str_add(
          &s,
          "program version 0\nblock 0 {\n  var y none\n  var z none\n  var e none\n  var t none\n"
          "  var l none\n  e = assign_value() {shape=[3,4,3], dtype=5, fp32_values=");
      add_list(&s, B * T * K, emit);
      str_add(&s, "  t = assign_value() {shape=[3,3], dtype=5, fp32_values=");
      add_list(&s, K * K, step);
      str_add(&s, INTS("l", "[3]", "[4,1,3]"));
      str_fmt(&s,
              "  Scores=%s, Path=%s = viterbi_decode(Input=e, Transition=t, Length=l) "
              "{include_bos_eos_tag=%s}\n}\n",
              path ? "z" : "y", path ? "y" : "z", ends ? "true" : "false");
      for (int b = 0; b < B; b++) {
        int tags[T];
        double score = best_path(b, ends, tags);
        if (!path) want[b] = score;
        for (int t = 0; path && t < lengths[b]; t++) want[b * T + t] = tags[t];
      }
      expect(s.s, path ? B * T : B, want);
    }
  arena_free(a);
}

static void wrong_lengths(void **state) {
  (void)state;
  refuse("program version 0\nblock 0 {\n  var y none\n  var z none\n  var e none\n  var t none\n  "
         "var l none\n" FLOATS("e", "[1,2,2]", "[1.0,2.0,3.0,4.0]")
             FLOATS("t", "[2,2]", "[1.0,2.0,3.0,4.0]") INTS(
                 "l", "[1]",
                 "[3]") "  Scores=z, Path=y = viterbi_decode(Input=e, Transition=t, Length=l)\n}\n",
         E_RUN_005, "holds a length outside 0..T");
}

/* ---- chunk_eval ---- */

/* Two types: 0 and 1 begin and go on with a chunk of type 0, 2 and 3 of type 1, 4 is in none. */
#define CHUNKS(slot, found, label, attrs)                                                          \
  "program version 0\nblock 0 {\n  var y none\n  var x none\n  var l none\n  var n none\n"         \
  "  var v0 none\n  var v1 none\n  var v2 none\n  var v3 none\n  var v4 none\n" INTS(              \
      "x", "[2,5]", found) INTS("l", "[2,5]", label)                                               \
      INTS("n", "[2]",                                                                             \
           "[5,3]") "  " slot                                                                      \
                    " = chunk_eval(Inference=x, Label=l, SeqLength=n) {num_chunk_types=2" attrs    \
                    "}\n}\n"
#define FOUND "[0,1,4,2,4, 0,0,1,2,2]" /* [0 1] [3 3]; [0 0] [1 2] */
#define LABEL "[0,1,4,2,3, 0,0,1,9,9]" /* [0 1] [3 4]; the same */
#define SCORES(p, r, f, ni, nl, nc)                                                                \
  "Precision=" p ", Recall=" r ", F1-Score=" f ", NumInferChunks=" ni ", NumLabelChunks=" nl       \
  ", NumCorrectChunks=" nc

static void chunks(void **state) {
  (void)state;
  expect(CHUNKS(SCORES("y", "v0", "v1", "v2", "v3", "v4"), FOUND, LABEL, ""), VALUES(0.75));
  expect(CHUNKS(SCORES("v0", "v1", "v2", "y", "v3", "v4"), FOUND, LABEL, ""), VALUES(4));
  expect(CHUNKS(SCORES("v0", "v1", "v2", "v3", "v4", "y"), FOUND, LABEL, ""), VALUES(3));
  expect(CHUNKS(SCORES("v0", "v1", "y", "v2", "v3", "v4"), FOUND, LABEL,
                ", excluded_chunk_types=[1]"),
         VALUES(1));
  expect(CHUNKS(SCORES("v0", "v1", "v2", "v3", "y", "v4"), FOUND, LABEL,
                ", excluded_chunk_types=[0]"),
         VALUES(1));
  expect(CHUNKS(SCORES("v0", "v1", "y", "v2", "v3", "v4"), FOUND, LABEL,
                ", excluded_chunk_types=[0, 1]"),
         VALUES(0));
  refuse(CHUNKS(SCORES("y", "v0", "v1", "v2", "v3", "v4"), "[7,1,4,2,4, 0,0,1,2,2]", LABEL, ""),
         E_DAT_002, "tag 7 is outside 0..4");
}

/* ---- bipartite_match ---- */

#define MATCH(slots, attrs)                                                                        \
  "program version 0\nblock 0 {\n  var y none\n  var z none\n  var d none\n" FLOATS(               \
      "d", "[2,4]", "[0.9,0.8,0.1,0.0, 0.7,0.6,0.5,0.0]") "  " slots                               \
                                                          " = bipartite_match(DistMat=d) {" attrs  \
                                                          "}\n}\n"

static void matches(void **state) {
  (void)state;
#define ROW "ColToRowMatchIndices=y, ColToRowMatchDist=z"
#define DIST "ColToRowMatchIndices=z, ColToRowMatchDist=y"
  expect(MATCH(ROW, ""), VALUES(0, 1, -1, -1));
  expect(MATCH(DIST, ""), VALUES(0.9f, 0.6f, 0, 0));
  expect(MATCH(ROW, "match_type='per_prediction', dist_threshold=0.3"), VALUES(0, 1, 1, -1));
  expect(MATCH(DIST, "match_type='per_prediction', dist_threshold=0.3"),
         VALUES(0.9f, 0.6f, 0.5f, 0));
  expect(MATCH(ROW, "match_type='per_prediction', dist_threshold=0.75"), VALUES(0, 1, -1, -1));
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(paths), cmocka_unit_test(wrong_lengths),
                                     cmocka_unit_test(chunks), cmocka_unit_test(matches)};
  return cmocka_run_group_tests(tests, clear_error, NULL);
}
