/* The text form of programs: round trip, layout, literals, and where and what an error says. */
#include "file_case.h"
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static void test_text_round_trip(void **state) {
  (void)state;
  Program *p = program_of_all();
  Str text, again;
  str_init(&text, p->arena);
  str_init(&again, p->arena);
  prog_print(p, &text);
  Program *q = prog_parse(text.s, text.n, "text");
  if (!q) err_print(stderr, false);
  assert_non_null(q);
  assert_same(p, q);
  prog_print(q, &again);
  assert_string_equal(text.s, again.s);
  prog_free(p);
  prog_free(q);
}

static void test_seed_and_layout(void **state) {
  (void)state;
  static const char odd[] = "# a comment\n\n  program version 1 seed 42 # here too\r\n"
                            "op_versions a 1, b 2\n"
                            "block 0 parent -1\t{\n"
                            "  param w float32 []\n"
                            "  a = f(X=[w,\n   w], # inside brackets lines go on\n Y=w,)\n"
                            "  a, XShape=b = g() { k = [1,\n 2,], }\n"
                            "  h()\n"
                            "}\n# the end";
  static const char canonical[] = "program version 1 seed 42\n"
                                  "op_versions a 1, b 2\n"
                                  "block 0 parent -1 {\n"
                                  "  param w float32 []\n\n"
                                  "  a = f(X=[w, w], Y=w)\n"
                                  "  Out=a, XShape=b = g() {k=[1, 2]}\n"
                                  "  h()\n"
                                  "}\n";
  Program *p = prog_parse(odd, sizeof odd - 1, NULL);
  if (!p) err_print(stderr, false);
  assert_non_null(p);
  assert_int_equal(p->seed, 42);
  Str text;
  str_init(&text, p->arena);
  prog_print(p, &text);
  assert_string_equal(text.s, canonical);
  prog_free(p);
}

/* What an operator does not know is kept where it stands in quotes, or where PaddlePaddle leaves it on any operator. */
static void test_unknown_attributes(void **state) {
  (void)state;
  static const char text[] =
      "program version 1\n"
      "block 0 parent -1 {\n"
      "  var x float32 [2]\n"
      "  var y float32 [2]\n\n"
      "  y = softmax(X=x) {\"axes\"=0, axis=0, out_threshold=2.5, use_mkldnn=true}\n"
      "  y = nobody_knows(X=x) {axes=0}\n"
      "}\n";
  Program *p = prog_parse(text, sizeof text - 1, NULL);
  if (!p) err_print(stderr, false);
  assert_non_null(p);
  Str again;
  str_init(&again, p->arena);
  prog_print(p, &again);
  assert_string_equal(again.s, text);
  assert_int_equal(op_int(p->blocks.v[0]->ops.v[0], "axes"), 0);
  assert_non_null(op_attr(p->blocks.v[0]->ops.v[0], "axes"));
  prog_free(p);
}

static void test_text_errors(void **state) {
  (void)state;
#define HEAD "program version 1\nblock 0 {\n"
  static const struct {
    const char *text, *part;
    ErrCode code;
  } rows[] = {
      {"", "expected \"program version N\" at the start, found the end", E_TXT_001},
      {"program version 1\n", "expected \"block 0 {\"", E_TXT_001},
      {"program version 1.5\n", "line 1, column 17", E_TXT_001},
      {HEAD "  var\n}", "line 3, column 6", E_TXT_001},
      {HEAD "  var x float33 [1]\n}", "found \"float33\"", E_TXT_001},
      {HEAD "  var x float32 [1\n}", "expected \",\" or \"]\", found \"}\"", E_TXT_001},
      {HEAD "  var x float32 [-2]\n}", "a dimension (-1 if unknown)", E_TXT_001},
      {HEAD "  var x float32 [99999999999, 99999999999]\n}", "too large", E_MEM_002},
      {HEAD "  var x\n  var x\n}", "declared twice", E_PRO_002},
      {HEAD "  y = f(X=x, X=x)\n}", "slot \"X\" is there twice", E_PRO_002},
      {HEAD "  y = f(X=x) {a=1, a=2}\n}", "attribute \"a\" is there twice", E_PRO_002},
      {HEAD "  y = f(X=x) {a=}\n}", "expected a value", E_TXT_001},
      {HEAD "  y = softmax(X=x) {axes=0}\n}", "operator `softmax` has no attribute \"axes\"",
       E_OPR_003},
      {HEAD "  y = softmax(X=x) {axes=0}\n}", "line 3, column 21", E_OPR_003},
      {HEAD "  y = softmax(X=x) {axes=0}\n}", "Did you mean axis?", E_OPR_003},
      {HEAD "  y = f(X=x) {a=[1, 'x']}\n}", "line 3, column 21", E_TXT_001},
      {HEAD "  y = f(X=x) {a=1e400}\n}", "1e400 is not in the range of FLOAT64", E_TXT_001},
      {HEAD "  y = f(X=x) {a=-1e39}\n}", "-1e39 is not in the range of FLOAT, ", E_TXT_001},
      {HEAD "  y = f(X=x) {a=[1.0, 1e39]}\n}", "line 3, column 23", E_TXT_001},
      {HEAD "  y = f(X=x) {a=99999999999999999999}\n}",
       "99999999999999999999 is not in the range of LONG", E_TXT_001},
      {HEAD "  y = f(X=x) {a=2147483648}\n}",
       "2147483648 is not in the range of INT, -2147483648 to 2147483647", E_TXT_001},
      {HEAD "  y = f(X=x) {a=2147483648}\n}", "Write L behind it", E_TXT_001},
      {HEAD "  y = f(X=x) {a=[7, 99999999999, 3]}\n}", "99999999999 is not in the range of INTS",
       E_TXT_001},
      {HEAD "  y = f(X=x) {a=[7, 99999999999, 3]}\n}", "line 3, column 21", E_TXT_001},
      {HEAD "  y = f(X=x) {a=[7, 99999999999, 3]}\n}", "as [1, 2]L", E_TXT_001},
      {HEAD "  y = f(X=x) {a=[7, 99999999999999999999]L}\n}", "not in the range of LONG",
       E_TXT_001},
      {HEAD "  y = f(X=x) {a=scalar 99999999999999999999}\n}", "not in the range of LONG",
       E_TXT_001},
      {HEAD "  y = f(X=x) {a=[1, 2]Q}\n}", "expected \",\" or \"}\", found \"Q\"", E_TXT_001},
      {HEAD "  var x float32 [99999999999999999999]\n}", "It is a number from -1 to", E_TXT_001},
      {HEAD "  y = f(X=x) {a='\\x00'}\n}", "expected a value", E_TXT_001},
      {HEAD "  y = f(X=x) {a=block 0}\n}", "names block 0", E_PRO_002},
      {HEAD "  y = f(X=x) garbage\n}", "expected the end of the line, found \"garbage\"",
       E_TXT_001},
      {HEAD "  y = f(X=x", "found the end of the text", E_TXT_001},
      {HEAD "  y, z\n}", "expected \",\", \"=\" or \"(\"", E_TXT_001},
      {HEAD "}\nblock 2 {\n}\n", "position 1 says it has index 2", E_PRO_002},
      {HEAD "}\nblock 1 parent 1 {\n}\n", "the parent of block 1 is 1", E_PRO_002},
      {HEAD "}\nblock 1 forward 7 {\n}\n", "the forward block of block 1 is 7", E_PRO_002},
      {HEAD "}\nop_versions a 1\n", "expected \"block\" or the end", E_TXT_001},
  };
  for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
    Program *p = prog_parse(rows[i].text, strlen(rows[i].text), "net.kl");
    if (p) fail_msg("accepted: %s", rows[i].text);
    expect_error(rows[i].code, rows[i].part);
  }
  assert_null(prog_parse("program\0", 8, "net.kl"));
  expect_error(E_TXT_001, "NUL");
}

static void test_literals(void **state) {
  (void)state;
  static const struct {
    const char *text, *printed; /* NULL: refused */
    AttrType type;
  } rows[] = {{"1", "1", AT_INT},
              {"-1L", "-1L", AT_LONG},
              {"1.0", "1.0", AT_FLOAT},
              {"1.", "1.0", AT_FLOAT},
              {"0.1", "0.1", AT_FLOAT},
              {"16777217.0", "16777216.0", AT_FLOAT},
              {"1e-5", "1e-05", AT_FLOAT},
              {"0.1D", "0.1D", AT_FLOAT64},
              {"3D", "3.0D", AT_FLOAT64},
              {"-inf", "-inf", AT_FLOAT},
              {"nan", "nan", AT_FLOAT},
              {"true", "true", AT_BOOL},
              {"\"a'b\"", "'a\\'b'", AT_STRING},
              {"'\\x41\\n'", "'A\\n'", AT_STRING},
              {"[]", "[]", AT_INTS},
              {"[]L", "[]L", AT_LONGS},
              {"[ ]S", "[]S", AT_STRINGS},
              {"[1,2]", "[1, 2]", AT_INTS},
              {"[1,2]L", "[1, 2]L", AT_LONGS},
              {"[1,2]F", "[1.0, 2.0]", AT_FLOATS},
              {"[1,2]D", "[1.0, 2.0]D", AT_FLOAT64S},
              {"[1,2.5]", "[1.0, 2.5]", AT_FLOATS},
              {"[inf, -inf]", "[inf, -inf]", AT_FLOATS},
              {"[true,false]", "[true, false]", AT_BOOLS},
              {"['a,]', 'b']", "['a,]', 'b']", AT_STRINGS},
              {"block 3", "block 3", AT_BLOCK},
              {"blocks [1, 2]", "blocks [1, 2]", AT_BLOCKS},
              {"var 'x'", "var 'x'", AT_VAR},
              {"vars []", "vars []", AT_VARS},
              {"scalar (1, 2)", "scalar (1.0, 2.0)", AT_SCALAR},
              {"scalars [true, 5, 1.5]", "scalars [true, 5, 1.5]", AT_SCALARS},
              {"1e39", NULL, AT_N},
              {"0x10", NULL, AT_N},
              {"[1", NULL, AT_N},
              {"[1 2]", NULL, AT_N},
              {"[1, true]", NULL, AT_N},
              {"['a']L", NULL, AT_N},
              {"'a", NULL, AT_N},
              {"'\\q'", NULL, AT_N},
              {"truth", NULL, AT_N},
              {"", NULL, AT_N}};
  Arena *a = arena_new();
  for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
    Attr attr = {0};
    const char *end;
    Str out;
    bool ok = attr_parse(a, rows[i].text, &end, &attr) && !*end;
    if (ok != (rows[i].printed != NULL))
      fail_msg("%s: %s", rows[i].text, ok ? "accepted" : "refused");
    if (!ok) continue;
    str_init(&out, a);
    attr_print(&attr, &out);
    assert_string_equal(out.s, rows[i].printed);
    assert_int_equal(attr.type, rows[i].type);
  }
  arena_free(a);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_text_round_trip),
                                     cmocka_unit_test(test_seed_and_layout),
                                     cmocka_unit_test(test_unknown_attributes),
                                     cmocka_unit_test(test_text_errors),
                                     cmocka_unit_test(test_literals)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
