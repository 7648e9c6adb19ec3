/* Hostile files, made from recipes by class: A wire format, B tensor payloads, C names and paths. */
#include "hostile_case.h"
#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

/* ---- writing the wire format, also wrongly ---- */

static void put_varint(Str *s, uint64_t v) {
  for (; v > 127; v >>= 7) str_addn(s, (char[]){(char)(v | 128)}, 1);
  str_addn(s, (char[]){(char)v}, 1);
}

static Str *put_int(Str *s, uint32_t id, int64_t v) {
  put_varint(s, (uint64_t)id << 3);
  put_varint(s, (uint64_t)v);
  return s;
}

static Str *put_data(Str *s, uint32_t id, const void *p, size_t n) {
  put_varint(s, (uint64_t)id << 3 | 2);
  put_varint(s, n);
  str_addn(s, p, n);
  return s;
}

static Str *put(Str *s, uint32_t id, const Str *m) { return put_data(s, id, m->s, m->n); }
static Str *put_text(Str *s, uint32_t id, const char *text) {
  return put_data(s, id, text, strlen(text));
}

static Str *block_head(int64_t idx, int64_t parent) {
  return put_int(put_int(hostile_str(), 1, idx), 2, parent);
}

/* VarType of a tensor; dims as a list ended by INT64_MAX. */
static Str *tensor_type(int64_t dtype, const int64_t *dims) {
  Str *desc = put_int(hostile_str(), 1, dtype);
  for (; *dims != INT64_MAX; dims++) put_int(desc, 2, *dims);
  return put(put_int(hostile_str(), 1, 7), 3, put(hostile_str(), 1, desc));
}
#define DIMS(...) ((const int64_t[]){__VA_ARGS__, INT64_MAX})
#define SCALAR ((const int64_t[]){INT64_MAX})

static Str *variable(const char *name, const Str *type) {
  return put(put_text(hostile_str(), 1, name), 2, type);
}

static Str *slot(const char *name, const char *arg) {
  return put_text(put_text(hostile_str(), 1, name), 2, arg);
}

static Str *relu(void) {
  return put_text(put(put(hostile_str(), 1, slot("X", "x")), 2, slot("Out", "y")), 3, "relu");
}

/* x -> relu -> y, with one more field of the block. */
static Str *program_with(uint32_t id, const Str *field) {
  Str *b = block_head(0, -1), *x = variable("x", tensor_type(5, DIMS(-1, 4)));
  put(b, 3, put_int(x, 4, 1));
  put(b, 3, variable("y", tensor_type(5, DIMS(-1, 4))));
  put(b, 4, relu());
  if (field) put(b, id, field);
  return put(hostile_str(), 1, b);
}

static Str *repeat(const Str *piece, int n) {
  Str *s = hostile_str();
  for (int i = 0; i < n; i++) str_addn(s, piece->s, piece->n);
  return s;
}

#define RAW(bytes) hostile_raw(bytes, sizeof(bytes) - 1)
static Result check_str(const char *id, int variant, Form form, const Str *s) {
  return check_file(id, variant, form, s->s, s->n);
}

/* ---- A: the wire format ---- */

/* Pieces of broken wire format, put at the end of the program, of a block, of an operator, of a variable. */
static void test_wire(void **state) {
  (void)state;
  const Str *pieces[] = {
      RAW("\x08"),                     /* A1: cut */
      RAW("\x0a\xff\xff\xff\xff\x07"), /* A2: lengths beyond the rest */
      RAW("\x0a\xff\xff\xff\xff\x0f"),
      RAW("\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f"),
      RAW("\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"),
      RAW("\x7a\x7f"),
      RAW("\x08\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01"), /* A3: 11 bytes */
      RAW("\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f"),     /* more than 64 bits */
      RAW("\x08\x80\x80\x80\x00"),                             /* an over-long zero */
      RAW("\x00\x00"),                                         /* field 0 */
      RAW("\x02\x00"),
      RAW("\x0b"), /* a group without end */
      RAW("\x0b\x0c"),
      RAW("\x0c"),
      RAW("\x0e"), /* wire types 6 and 7 */
      RAW("\x0f"),
      RAW("\xff\xff\xff\xff\xff\x01\x00"), /* a field number beyond 2^29 */
      RAW("\xfd\xff\xff\xff\x7f\0\0\0\0"),
      RAW("\x0d\x01"), /* fixed fields, cut and of a wrong type */
      RAW("\x09\x01\x02\x03\x04\x05\x06\x07\x08"),
      RAW("\x15\x01\x02\x03\x04"),
      RAW("\x1d\x01\x02\x03\x04"),
  };
  for (int i = 0; i < (int)(sizeof pieces / sizeof *pieces); i++) {
    Str *b = block_head(0, -1), *v = variable("x", tensor_type(5, DIMS(1)));
    Str *top = program_with(0, NULL), *o = relu();
    str_addn(top, pieces[i]->s, pieces[i]->n);
    str_addn(b, pieces[i]->s, pieces[i]->n);
    str_addn(v, pieces[i]->s, pieces[i]->n);
    str_addn(o, pieces[i]->s, pieces[i]->n);
    check_str("A3", 10 * i, BYTES, top);
    check_str("A3", 10 * i + 1, BYTES, put(hostile_str(), 1, b));
    check_str("A3", 10 * i + 2, BYTES, program_with(3, v));
    check_str("A3", 10 * i + 3, BYTES, program_with(4, o));
    check_str("A3", 10 * i + 4, BYTES, program_with(4, put(relu(), 4, pieces[i])));
    check_str("A3", 10 * i + 5, BYTES, pieces[i]);
  }
}

static void test_nesting(void **state) {
  (void)state;
  static const int depths[] = {100, 10000, 100000};
  static const uint32_t fields[] = {1, 2, 4, 15};
  for (int d = 0; d < 3; d++) {
    check_str("A4", d, BYTES, repeat(RAW("\x0b"), depths[d]));
    check_str("A4", 10 + d, BYTES, program_with(4, repeat(RAW("\x0b"), depths[d])));
    check_str("A4", 20 + d, TEXT, repeat(RAW("{"), depths[d]));
    Str *text = hostile_raw("program\nblock 0 {\n y = f(X=", 27);
    Str *open = repeat(RAW("["), depths[d]);
    str_addn(text, open->s, open->n);
    check_str("A4", 30 + d, TEXT, text);
    for (int f = 0; f < 4;
         f++) { /* built from the inside: every level is a length and what is inside */
      int levels = depths[d] > 3000 ? 3000 : depths[d];
      Str *m = hostile_str();
      for (int i = 0; i < levels; i++) m = put(hostile_str(), fields[f], m);
      check_str("A4", 40 + 10 * f + d, BYTES, m);
      check_str("A4", 80 + 10 * f + d, BYTES, program_with(4, put(relu(), fields[f], m)));
      arena_free(hostile_arena);
      hostile_arena = arena_new();
    }
  }
}

static void test_amplification(void **state) {
  (void)state;
  static const int counts[] = {1000, 100000, 1000000};
  for (int i = 0; i < 3; i++) {
    int n = counts[i];
    const Str *type = tensor_type(5, DIMS(1, 2, 3)), *unknown = RAW("\x78\x00"),
              *empty = RAW("\x7a\x00");
    Str *v = put(put_text(hostile_str(), 1, "v"), 2, type), *field = put(hostile_str(), 2, type);
    Str *many = repeat(field, n);
    str_addn(v, many->s, many->n);
    check_str("A5", i, BYTES, program_with(3, v));
    Str *p = program_with(0, NULL);
    many = repeat(put(hostile_str(), 4, put_int(hostile_str(), 1, 7)), n);
    str_addn(p, many->s, many->n);
    check_str("A5", 10 + i, BYTES, p);
    for (int k = 0; k < 2; k++) {
      many = repeat(k ? unknown : empty, n);
      p = program_with(0, NULL);
      str_addn(p, many->s, many->n);
      check_str("A5", 20 + 10 * k + i, BYTES, p);
      Str *o = relu();
      str_addn(o, many->s, many->n);
      check_str("A5", 40 + 10 * k + i, BYTES, program_with(4, o));
      Str *b = block_head(0, -1);
      str_addn(b, many->s, many->n);
      check_str("A5", 60 + 10 * k + i, BYTES, put(hostile_str(), 1, b));
    }
    Str *o = relu(); /* empty slots and attributes, packed zeros, empty operators */
    many = repeat(put(hostile_str(), 1, put_text(hostile_str(), 1, "")), n);
    str_addn(o, many->s, many->n);
    check_str("A5", 80 + i, BYTES, program_with(4, o));
    Str *a = put_int(put_text(hostile_str(), 1, "a"), 2, 3);
    put(a, 6, repeat(RAW("\0"), n));
    check_str("A5", 90 + i, BYTES, program_with(4, put(relu(), 4, a)));
    a = put_int(put_text(hostile_str(), 1, "a"), 2, 17);
    many = repeat(put(hostile_str(), 21, put_int(hostile_str(), 1, 1)), n);
    str_addn(a, many->s, many->n);
    check_str("A5", 100 + i, BYTES, program_with(4, put(relu(), 4, a)));
    Str *b = block_head(0, -1);
    many = repeat(put(hostile_str(), 4, put_text(hostile_str(), 3, "")), n);
    str_addn(b, many->s, many->n);
    check_str("A5", 110 + i, BYTES, put(hostile_str(), 1, b));
    check_str("A5", 120 + i, BYTES, repeat(RAW("\x0a\x00"), n));
    arena_free(hostile_arena);
    hostile_arena = arena_new();
  }
}

static void test_missing_fields(void **state) {
  (void)state;
  Str *no_dtype =
      put(put_int(hostile_str(), 1, 7), 3, put(hostile_str(), 1, put_int(hostile_str(), 2, 4)));
  const struct {
    uint32_t id;
    Str *m;
  } rows[] = {
      {3, put_text(hostile_str(), 1, "v")},                /* no type */
      {3, put(hostile_str(), 2, tensor_type(5, DIMS(1)))}, /* no name */
      {3, variable("v", hostile_str())},                   /* a type without its number */
      {3, variable("v", no_dtype)},                        /* a tensor without its type */
      {3, variable("v", put(put_int(hostile_str(), 1, 7), 3,
                            hostile_str()))},               /* a LoD tensor without tensor */
      {4, hostile_str()},                                   /* no operator type */
      {4, put(relu(), 1, hostile_str())},                   /* a slot without name */
      {4, put(relu(), 4, put_text(hostile_str(), 1, "a"))}, /* an attribute without type */
      {4, put(relu(), 4, put_int(hostile_str(), 2, 0))},    /* one without name */
      {4, put(relu(), 4,
              put_int(put_text(hostile_str(), 1, "a"), 2, 16))}, /* a scalar without value */
  };
  for (int i = 0; i < (int)(sizeof rows / sizeof *rows); i++)
    assert_false(check_str("A6", i, BYTES, program_with(rows[i].id, rows[i].m)).ok);
  assert_false(check_str("A6", 20, BYTES, put(hostile_str(), 1, put_int(hostile_str(), 1, 0))).ok);
  assert_false(check_str("A6", 21, BYTES, put(hostile_str(), 1, put_int(hostile_str(), 2, -1))).ok);
  assert_false(check_str("A6", 22, BYTES,
                         put(program_with(0, NULL), 5, put(hostile_str(), 1, hostile_str())))
                   .ok);
}

static void test_strings(void **state) {
  (void)state;
  char *mega = arena_alloc(hostile_arena, (1 << 20) + 1);
  memset(mega, 'a', 1 << 20);
  const char *const texts[] = {"",
                               "\xff\xfe\x80",
                               "\x1b[2J\x1b]0;title\x07",
                               "%n%s%n%s%1000000d",
                               "$(touch /tmp/pwned)`id`",
                               "../../etc/passwd",
                               "C:\\x\\y",
                               "\"; DROP TABLE",
                               "\xe2\x80\xae",
                               mega};
  for (int i = 0; i < (int)(sizeof texts / sizeof *texts); i++) {
    const char *s = texts[i];
    check_str("A7", i, BYTES, program_with(3, variable(s, tensor_type(5, DIMS(1)))));
    check_str("A7", 20 + i, BYTES, program_with(4, put_text(relu(), 3, s)));
    check_str("A7", 40 + i, BYTES, program_with(4, put(relu(), 1, slot(s, "x"))));
    check_str("A7", 60 + i, BYTES, program_with(4, put(relu(), 1, slot("X2", s))));
    Str *a = put_text(put_int(put_text(hostile_str(), 1, s), 2, 2), 5, s);
    check_str("A7", 80 + i, BYTES, program_with(4, put(relu(), 4, a)));
    Str *t = hostile_str();
    str_fmt(t, "program\nblock 0 {\n  var %s float32 [1]\n}\n", s);
    check_str("A7", 100 + i, TEXT, t);
    t = hostile_str();
    str_add(t, "program\nblock 0 {\n  var ");
    text_quote(t, s, '"');
    str_add(t, "\n  f() {a=");
    text_quote(t, s, '\'');
    str_add(t, "}\n}\n");
    check_str("A7", 120 + i, TEXT, t);
  }
  Str *nul = put(put_data(hostile_str(), 1, "a\0b", 3), 2, tensor_type(5, DIMS(1)));
  assert_int_equal(check_str("A7", 140, BYTES, program_with(3, nul)).code, E_PRO_002);
  nul = put_data(relu(), 3, "relu\0", 5);
  assert_int_equal(check_str("A7", 141, BYTES, program_with(4, nul)).code, E_PRO_002);
}

static void test_other_formats(void **state) {
  (void)state;
  const Str *rows[] = {RAW("PK\3\4../../x"),
                       RAW("\x80\4\x95\0\0"),
                       RAW("\x1f\x8b\x08"),
                       RAW("\x93NUMPY\1\0v\0"),
                       RAW("\x08\x07\x12\x07pytorch"),
                       RAW("GGUF\3\0\0\0"),
                       RAW("\x7f"
                           "ELF\2\1\1"),
                       RAW("{}"),
                       RAW("hello"),
                       RAW(""),
                       RAW("\n"),
                       RAW("\0"),
                       RAW("\xff"),
                       RAW("#!/bin/sh\n"),
                       RAW("program"),
                       RAW("\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\4\0\0\0\x08\5\x10\x40")};
  for (int i = 0; i < (int)(sizeof rows / sizeof *rows); i++)
    for (int form = BYTES; form <= PARAMS; form++)
      assert_false(check_str("A8", 10 * i + form, (Form)form, rows[i]).ok);
}

/* ---- B: tensors ---- */

static Str *entry(const Str *desc, const void *data, size_t n) {
  Str *s = hostile_raw("\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 16);
  int32_t len = (int32_t)desc->n;
  str_addn(s, (const char *)&len, 4);
  str_addn(s, desc->s, desc->n);
  str_addn(s, data, n);
  return s;
}

static Str *tensor_desc(int64_t dtype, const int64_t *dims) {
  Str *s = put_int(hostile_str(), 1, dtype);
  for (; *dims != INT64_MAX; dims++) put_int(s, 2, *dims);
  return s;
}

static const char zeros[64];

/* The good file, with one entry replaced. */
static Str *params_with(int at, const Str *e) {
  Str *s = hostile_str();
  const Str *good[] = {entry(tensor_desc(5, DIMS(2, 3)), zeros, 24),
                       entry(tensor_desc(3, DIMS(4)), zeros, 32),
                       entry(tensor_desc(5, SCALAR), zeros, 4)};
  for (int i = 0; i < 3; i++) {
    const Str *x = i == at ? e : good[i];
    str_addn(s, x->s, x->n);
  }
  return s;
}

static void test_tensors(void **state) {
  (void)state;
  const int64_t big = INT64_MAX - 1;
  const Str *descs[] = {
      tensor_desc(5, DIMS(2, 4)), /* B2: more than the data */
      tensor_desc(5, DIMS(2, 2)),
      tensor_desc(5, DIMS((int64_t)1 << 62)), /* B3: overflow */
      tensor_desc(5, DIMS((int64_t)1 << 32, (int64_t)1 << 32)),
      tensor_desc(5, DIMS((int64_t)1 << 31, (int64_t)1 << 31, 4)),
      tensor_desc(5, DIMS(big, 0)),
      tensor_desc(5, DIMS(0, big, big)),
      tensor_desc(5, DIMS(-1, 6)), /* B4: negative */
      tensor_desc(5, DIMS(-2, -3)),
      tensor_desc(5, DIMS(INT64_MIN)),
      tensor_desc(5, DIMS(0)), /* B5 */
      tensor_desc(5, DIMS(2, 0, 3)),
      tensor_desc(5, SCALAR), /* B6: ranks */
      tensor_desc(5, DIMS(1, 1, 1, 1, 1, 1, 1, 2, 3)),
      tensor_desc(5, DIMS(1, 1, 1, 1, 1, 1, 1, 1, 2, 3)),
      put(put_int(hostile_str(), 1, 5), 2, repeat(RAW("\1"), 900)),
      put(put_int(hostile_str(), 1, 5), 2, repeat(RAW("\1"), 5000)),
      tensor_desc(99, DIMS(2, 3)), /* B7: element types */
      tensor_desc(-1, DIMS(2, 3)),
      tensor_desc(3, DIMS(2, 3)),
      tensor_desc(7, DIMS(2, 3)),
      tensor_desc(INT32_MIN, DIMS(2, 3)),
      hostile_str(),
      RAW("\x08"),
      RAW("\x08\x05\x12\x7f"),
      RAW("\x08\x05\x0b"),
  };
  for (int i = 0; i < (int)(sizeof descs / sizeof *descs); i++) {
    assert_false(check_str("B3", i, PARAMS, params_with(0, entry(descs[i], zeros, 24))).ok);
    check_str("B3", 100 + i, PARAMS, entry(descs[i], zeros, 0));
    Str *s = params_with(2, entry(descs[i], zeros, 4));
    check_str("B3", 200 + i, PARAMS, s);
  }
  assert_true(check_str("B0", 0, PARAMS, params_with(9, NULL)).ok);
  assert_true(
      check_str("B6", 0, PARAMS, params_with(2, entry(tensor_desc(5, DIMS(1)), zeros, 4))).ok);
  const float odd[6] = {NAN, INFINITY, -INFINITY, 1e-45f, -0.0f, 3e38f};
  assert_true(
      check_str("B13", 0, PARAMS, params_with(0, entry(tensor_desc(5, DIMS(2, 3)), odd, 24))).ok);
  Str *s = params_with(9, NULL);
  for (int i = 1; i <= 9; i += 4) { /* B10: more; B12: fewer */
    Str *more = hostile_raw(s->s, s->n);
    str_addn(more, zeros, (size_t)i);
    assert_int_equal(check_str("B10", i, PARAMS, more).code, E_PAR_003);
    assert_int_equal(check_file("B10", 10 + i, PARAMS, s->s, s->n - (size_t)i).code, E_PAR_004);
  }
}

static void test_heads(void **state) {
  (void)state;
  const Str *s = params_with(9, NULL);
  /* B15: versions, B11: level counts, B2: description lengths, at their offsets, with hostile values */
  static const struct { size_t at, n; } fields[] = {{0, 4}, {4, 8}, {12, 4}, {16, 4}};
  static const uint64_t values[] = {1,          7,          0x7fffffff,
                                    0x80000000, 0xffffffff, (uint64_t)1 << 60,
                                    UINT64_MAX};
  for (int f = 0; f < 4; f++)
    for (int v = 0; v < 7; v++) {
      Str *bad = hostile_raw(s->s, s->n);
      memcpy(bad->s + fields[f].at, &values[v], fields[f].n);
      if (!memcmp(bad->s, s->s, s->n)) continue;
      assert_false(check_str("B11", 10 * f + v, PARAMS, bad).ok);
    }
}

/* Descriptions of tensors inside programs. */
static void test_var_dims(void **state) {
  (void)state;
  const Str *types[] = {
      tensor_type(5, DIMS(INT64_MIN)),
      tensor_type(5, DIMS((int64_t)1 << 40, (int64_t)1 << 40)),
      tensor_type(5, DIMS(INT64_MAX - 1, 2)),
      tensor_type(5, DIMS(1, 1, 1, 1, 1, 1, 1, 1, 1, 1)),
      tensor_type(99, DIMS(1)),
      tensor_type(-1, DIMS(1)),
      put_int(hostile_str(), 1, 99),
      put_int(hostile_str(), 1, -1),
      put_int(hostile_str(), 1, 5),
  };
  for (int i = 0; i < (int)(sizeof types / sizeof *types); i++)
    assert_false(check_str("B4", i, BYTES, program_with(3, variable("v", types[i]))).ok);
  /* PaddlePaddle's product of unknown dimensions, of a value that no operator names */
  assert_true(
      check_str("B4", 9, BYTES, program_with(3, variable("v", tensor_type(5, DIMS(-2, 3))))).ok);
  check_str("B5", 0, BYTES, program_with(3, variable("v", tensor_type(5, DIMS(0, 5)))));
  assert_int_equal(check_str("B12", 0, BYTES, program_with(3, variable("x", types[0]))).ok, false);
  assert_int_equal(
      check_str("B12", 1, BYTES, program_with(3, variable("x", tensor_type(5, DIMS(1))))).code,
      E_PRO_002);
  assert_true(
      check_str("B12", 2, BYTES, program_with(3, variable("X", tensor_type(5, DIMS(1))))).ok);
}

/* ---- C: paths ---- */

static void test_paths(void **state) {
  (void)state;
  const char *folder = scratch_folder();
  char fifo[100], link[100];
  snprintf(fifo, sizeof fifo, "%s/fifo", folder);
  snprintf(link, sizeof link, "%s/link", folder);
  assert_int_equal(mkfifo(fifo, 0600), 0);
  assert_int_equal(symlink("link", link), 0);
  const char *const paths[] = {fifo,         link,        folder,
                               "/dev/zero",  "/dev/null", "/proc/self/mem",
                               "/",          "",          "/dev/stdin/x",
                               "a\nb\x1b[0m"};
  for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) {
    assert_null(prog_load(paths[i]));
    expect_error(E_IO_001, "");
  }
  scratch_remove(folder);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      HOSTILE_TEST(test_wire),          HOSTILE_TEST(test_nesting),
      HOSTILE_TEST(test_amplification), HOSTILE_TEST(test_missing_fields),
      HOSTILE_TEST(test_strings),       HOSTILE_TEST(test_other_formats),
      HOSTILE_TEST(test_tensors),       HOSTILE_TEST(test_heads),
      HOSTILE_TEST(test_var_dims),      HOSTILE_TEST(test_paths)};
  return cmocka_run_group_tests(tests, hostile_begin, hostile_end);
}
