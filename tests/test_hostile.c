/* Hostile files, made from recipes by class (A wire format, B tensor payloads, C names and paths,
 * D program structure, E shapes and attributes). Whatever is read, verified and inferred must end in success or in one
 * coded error, within a second, within 64 MiB + 3 times the file, and without a byte left allocated. */
#include "account.h"
#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>

typedef enum Form { BYTES, TEXT, PARAMS } Form;
typedef struct Result {
  bool ok;
  ErrCode code;
} Result;

static bool read_program(Form form, const uint8_t *bytes, size_t n) {
  Program *p = form == TEXT ? prog_parse((const char *)bytes, n, "hostile.kl")
                            : prog_decode(bytes, n, "hostile.pdmodel");
  bool ok = p && prog_verify(p);
  /* inference builds a graph, whose size goes with the operators, not with their bytes */
  size_t reading = account_peak();
  ok = ok && infer_program(p, true);
  account_set_peak(reading);
  prog_free(p);
  return ok;
}

/* Three variables w0 float32 [2, 3], w1 int64 [4], w2 float32 []. */
static bool read_params(const uint8_t *bytes, size_t n) {
  static const char text[] = "program\nblock 0 {\n  var w0 float32 [2, 3] persistable\n"
                             "  var w1 int64 [4] persistable\n  var w2 float32 [] persistable\n}\n";
  Program *p = prog_parse(text, sizeof text - 1, NULL);
  Var **vars;
  int k = params_list(p, p->arena, &vars);
  Tensor *t = arena_array(p->arena, Tensor, k);
  bool ok = params_decode(bytes, n, "hostile.pdiparams", k, vars, p->arena, t, NULL);
  prog_free(p);
  return ok;
}

/* Reads one file under the rule. The copy has exactly its size, so that reads beyond it are seen. */
static Result check_file(const char *id, int variant, Form form, const void *bytes, size_t n) {
  uint8_t *copy = malloc(n + !n);
  if (n) memcpy(copy, bytes, n);
  Account account = account_open(id, variant, n);
  bool ok = form == PARAMS ? read_params(copy, n) : read_program(form, copy, n);
  ErrCode code = account_close(&account, ok);
  free(copy);
  return (Result){ok, code};
}

/* ---- writing the wire format, also wrongly ---- */

static Arena *arena;

static Str *new_str(void) {
  Str *s = arena_new_of(arena, Str);
  str_init(s, arena);
  return s;
}

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
  return put_int(put_int(new_str(), 1, idx), 2, parent);
}

/* VarType of a tensor; dims as a list ended by INT64_MAX. */
static Str *tensor_type(int64_t dtype, const int64_t *dims) {
  Str *desc = put_int(new_str(), 1, dtype);
  for (; *dims != INT64_MAX; dims++) put_int(desc, 2, *dims);
  return put(put_int(new_str(), 1, 7), 3, put(new_str(), 1, desc));
}
#define DIMS(...) ((const int64_t[]){__VA_ARGS__, INT64_MAX})
#define SCALAR ((const int64_t[]){INT64_MAX})

static Str *variable(const char *name, const Str *type) {
  return put(put_text(new_str(), 1, name), 2, type);
}

static Str *slot(const char *name, const char *arg) {
  return put_text(put_text(new_str(), 1, name), 2, arg);
}

static Str *relu(void) {
  return put_text(put(put(new_str(), 1, slot("X", "x")), 2, slot("Out", "y")), 3, "relu");
}

/* x -> relu -> y, with one more field of the block. */
static Str *program_with(uint32_t id, const Str *field) {
  Str *b = block_head(0, -1), *x = variable("x", tensor_type(5, DIMS(-1, 4)));
  put(b, 3, put_int(x, 4, 1));
  put(b, 3, variable("y", tensor_type(5, DIMS(-1, 4))));
  put(b, 4, relu());
  if (field) put(b, id, field);
  return put(new_str(), 1, b);
}

static Str *repeat(const Str *piece, int n) {
  Str *s = new_str();
  for (int i = 0; i < n; i++) str_addn(s, piece->s, piece->n);
  return s;
}

#define RAW(bytes) raw(bytes, sizeof(bytes) - 1)
static Str *raw(const char *bytes, size_t n) {
  Str *s = new_str();
  str_addn(s, bytes, n);
  return s;
}

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
    check_str("A3", 10 * i + 1, BYTES, put(new_str(), 1, b));
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
    Str *text = raw("program\nblock 0 {\n y = f(X=", 27);
    Str *open = repeat(RAW("["), depths[d]);
    str_addn(text, open->s, open->n);
    check_str("A4", 30 + d, TEXT, text);
    for (int f = 0; f < 4;
         f++) { /* built from the inside: every level is a length and what is inside */
      int levels = depths[d] > 3000 ? 3000 : depths[d];
      Str *m = new_str();
      for (int i = 0; i < levels; i++) m = put(new_str(), fields[f], m);
      check_str("A4", 40 + 10 * f + d, BYTES, m);
      check_str("A4", 80 + 10 * f + d, BYTES, program_with(4, put(relu(), fields[f], m)));
      arena_free(arena);
      arena = arena_new();
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
    Str *v = put(put_text(new_str(), 1, "v"), 2, type), *field = put(new_str(), 2, type);
    Str *many = repeat(field, n);
    str_addn(v, many->s, many->n);
    check_str("A5", i, BYTES, program_with(3, v));
    Str *p = program_with(0, NULL);
    many = repeat(put(new_str(), 4, put_int(new_str(), 1, 7)), n);
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
      check_str("A5", 60 + 10 * k + i, BYTES, put(new_str(), 1, b));
    }
    Str *o = relu(); /* empty slots and attributes, packed zeros, empty operators */
    many = repeat(put(new_str(), 1, put_text(new_str(), 1, "")), n);
    str_addn(o, many->s, many->n);
    check_str("A5", 80 + i, BYTES, program_with(4, o));
    Str *a = put_int(put_text(new_str(), 1, "a"), 2, 3);
    put(a, 6, repeat(RAW("\0"), n));
    check_str("A5", 90 + i, BYTES, program_with(4, put(relu(), 4, a)));
    a = put_int(put_text(new_str(), 1, "a"), 2, 17);
    many = repeat(put(new_str(), 21, put_int(new_str(), 1, 1)), n);
    str_addn(a, many->s, many->n);
    check_str("A5", 100 + i, BYTES, program_with(4, put(relu(), 4, a)));
    Str *b = block_head(0, -1);
    many = repeat(put(new_str(), 4, put_text(new_str(), 3, "")), n);
    str_addn(b, many->s, many->n);
    check_str("A5", 110 + i, BYTES, put(new_str(), 1, b));
    check_str("A5", 120 + i, BYTES, repeat(RAW("\x0a\x00"), n));
    arena_free(arena);
    arena = arena_new();
  }
}

static void test_missing_fields(void **state) {
  (void)state;
  Str *no_dtype = put(put_int(new_str(), 1, 7), 3, put(new_str(), 1, put_int(new_str(), 2, 4)));
  const struct {
    uint32_t id;
    Str *m;
  } rows[] = {
      {3, put_text(new_str(), 1, "v")},                /* no type */
      {3, put(new_str(), 2, tensor_type(5, DIMS(1)))}, /* no name */
      {3, variable("v", new_str())},                   /* a type without its number */
      {3, variable("v", no_dtype)},                    /* a tensor without its type */
      {3, variable("v",
                   put(put_int(new_str(), 1, 7), 3, new_str()))}, /* a LoD tensor without tensor */
      {4, new_str()},                                             /* no operator type */
      {4, put(relu(), 1, new_str())},                             /* a slot without name */
      {4, put(relu(), 4, put_text(new_str(), 1, "a"))},           /* an attribute without type */
      {4, put(relu(), 4, put_int(new_str(), 2, 0))},              /* one without name */
      {4, put(relu(), 4, put_int(put_text(new_str(), 1, "a"), 2, 16))}, /* a scalar without value */
  };
  for (int i = 0; i < (int)(sizeof rows / sizeof *rows); i++)
    assert_false(check_str("A6", i, BYTES, program_with(rows[i].id, rows[i].m)).ok);
  assert_false(check_str("A6", 20, BYTES, put(new_str(), 1, put_int(new_str(), 1, 0))).ok);
  assert_false(check_str("A6", 21, BYTES, put(new_str(), 1, put_int(new_str(), 2, -1))).ok);
  assert_false(
      check_str("A6", 22, BYTES, put(program_with(0, NULL), 5, put(new_str(), 1, new_str()))).ok);
}

static void test_strings(void **state) {
  (void)state;
  char *mega = arena_alloc(arena, (1 << 20) + 1);
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
    Str *a = put_text(put_int(put_text(new_str(), 1, s), 2, 2), 5, s);
    check_str("A7", 80 + i, BYTES, program_with(4, put(relu(), 4, a)));
    Str *t = new_str();
    str_fmt(t, "program\nblock 0 {\n  var %s float32 [1]\n}\n", s);
    check_str("A7", 100 + i, TEXT, t);
    t = new_str();
    str_add(t, "program\nblock 0 {\n  var ");
    text_quote(t, s, '"');
    str_add(t, "\n  f() {a=");
    text_quote(t, s, '\'');
    str_add(t, "}\n}\n");
    check_str("A7", 120 + i, TEXT, t);
  }
  Str *nul = put(put_data(new_str(), 1, "a\0b", 3), 2, tensor_type(5, DIMS(1)));
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
  Str *s = raw("\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 16);
  int32_t len = (int32_t)desc->n;
  str_addn(s, (const char *)&len, 4);
  str_addn(s, desc->s, desc->n);
  str_addn(s, data, n);
  return s;
}

static Str *tensor_desc(int64_t dtype, const int64_t *dims) {
  Str *s = put_int(new_str(), 1, dtype);
  for (; *dims != INT64_MAX; dims++) put_int(s, 2, *dims);
  return s;
}

static const char zeros[64];

/* The good file, with one entry replaced. */
static Str *params_with(int at, const Str *e) {
  Str *s = new_str();
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
      put(put_int(new_str(), 1, 5), 2, repeat(RAW("\1"), 900)),
      put(put_int(new_str(), 1, 5), 2, repeat(RAW("\1"), 5000)),
      tensor_desc(99, DIMS(2, 3)), /* B7: element types */
      tensor_desc(-1, DIMS(2, 3)),
      tensor_desc(3, DIMS(2, 3)),
      tensor_desc(7, DIMS(2, 3)),
      tensor_desc(INT32_MIN, DIMS(2, 3)),
      new_str(),
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
    Str *more = raw(s->s, s->n);
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
      Str *bad = raw(s->s, s->n);
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
      tensor_type(5, DIMS(-2, 3)),
      tensor_type(5, DIMS((int64_t)1 << 40, (int64_t)1 << 40)),
      tensor_type(5, DIMS(INT64_MAX - 1, 2)),
      tensor_type(5, DIMS(1, 1, 1, 1, 1, 1, 1, 1, 1, 1)),
      tensor_type(99, DIMS(1)),
      tensor_type(-1, DIMS(1)),
      put_int(new_str(), 1, 99),
      put_int(new_str(), 1, -1),
      put_int(new_str(), 1, 5),
  };
  for (int i = 0; i < (int)(sizeof types / sizeof *types); i++)
    assert_false(check_str("B4", i, BYTES, program_with(3, variable("v", types[i]))).ok);
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

/* ---- D and E: structure, shapes and attributes, as text and as bytes ---- */

static void check_text(const char *id, int variant, const char *text) {
  Result r = check_file(id, variant, TEXT, text, strlen(text));
  Program *p = prog_parse(text, strlen(text), NULL);
  uint8_t *bytes;
  size_t n;
  if (p && prog_encode(p, p->arena, &bytes, &n)) {
    Result b = check_file(id, 1000 + variant, BYTES, bytes, n);
    if (b.code != r.code)
      fail_msg("%s.%d: %s as text, %s as bytes", id, variant, err_name(r.code), err_name(b.code));
  }
  prog_free(p);
  err_clear();
}

#define VARS                                                                                       \
  "  var x float32 [2, 3, 8, 8] feed\n  var i int64 [4, 1] feed\n  var m float32 [4, 6] feed\n  "  \
  "param w float32 [4, 3, 3, 3]\n"                                                                 \
  "  param v float32 [6, 5]\n  var y\n  var z\n"

static void test_structure(void **state) {
  (void)state;
  static const char *const blocks[] = {
      "block 1 {\n}\n",
      "block 0 parent 0 {\n}\n",
      "block 0 {\n}\nblock 0 {\n}\n",
      "block 0 {\n}\nblock 1 parent -1 {\n}\n",
      "block 0 {\n}\nblock 1 parent 2 {\n}\nblock 2 parent 1 {\n}\n",
      "block 0 {\n}\nblock 1 parent 2147483648 {\n}\n",
      "block 0 forward 0 {\n}\n",
      "block 0 {\n}\nblock 1 forward 1 {\n}\n",
      "block 0 {\n  while() {sub_block=block 0}\n}\n",
      "block 0 {\n  while() {sub_block=block -1}\n}\n",
      "block 0 {\n  while() {sub_block=block 7}\n}\n",
      "block 0 {\n  f() {b=blocks [1, 1]}\n}\nblock 1 {\n}\n",
      "block 0 {\n  f() {b=block 1}\n}\nblock 1 {\n  f() {b=block 1}\n}\n",
      "block 0 {\n  f() {b=block 1}\n}\nblock 1 {\n  f() {b=block 0}\n}\n",
      "block 0 {\n  f() {a=block 1, b=block 1}\n  g() {a=block 1}\n}\nblock 1 {\n}\n"};
  static const char *const ops[] = {"y = relu(X=y)",
                                    "y = relu(X=nothing)",
                                    "nothing = relu(X=x)",
                                    "y = relu()",
                                    "y = relu(X=[])",
                                    "y = relu(X=[x, x])",
                                    "relu(X=x)",
                                    "y = relu(X=x, Y=x)",
                                    "y = no_such_op(X=x)",
                                    "y = relu(X=z)\n  z = relu(X=y)",
                                    "w = relu(X=x)",
                                    "[y, y] = split(X=x) {num=2}",
                                    "y = concat(X=[])",
                                    "y = concat(X=[x, y])",
                                    "y = \"\"(X=x)",
                                    "y = relu(X=\"\")",
                                    "y = relu(X=@EMPTY@)",
                                    "@EMPTY@ = relu(X=x)",
                                    "y = relu(X=x) {op_role=99999}",
                                    "y = relu(X=x) {op_role='x'}",
                                    "x = feed(X=x) {col=-1}",
                                    "x = feed(X=x) {col=2147483647}",
                                    "x = feed(X=x)",
                                    "x = feed(X=x) {col=0}\n  x = feed(X=x) {col=0}",
                                    "y = fetch(X=x) {col=-5}",
                                    "y = mul(X=m)",
                                    "y = mul(X=i, Y=v)",
                                    "y = while(X=x)",
                                    "y = conditional_block(Cond=x) {sub_block=block 1}",
                                    "y = relu_grad(X=x)",
                                    "X@GRAD=y = relu_grad(Out=x)",
                                    "y = sgd(Param=w)",
                                    "y = cast(X=x) {in_dtype=5}",
                                    "y = cast(X=x) {in_dtype=5, out_dtype=77}"};
  for (int i = 0; i < (int)(sizeof blocks / sizeof *blocks); i++)
    check_text("D1", i, arena_fmt(arena, "program\n%s", blocks[i]));
  for (int i = 0; i < (int)(sizeof ops / sizeof *ops); i++)
    check_text("D4", i, arena_fmt(arena, "program\nblock 0 {\n" VARS "  %s\n}\n", ops[i]));
}

static void test_size(void **state) {
  (void)state;
  static const int counts[] = {1000, 20000, 50000};
  for (int c = 0; c < 3; c++) {
    Str *line = raw("program\nblock 0 {\n", 18), *same = raw(line->s, line->n),
        *wide = raw(line->s, line->n);
    str_add(line, "  var v0 float32 [4] feed\n");
    str_add(same, "  var v0 float32 [4] feed\n  var v1 float32 [4]\n");
    str_add(wide, "  var v0 float32 [4] feed\n  var v1 float32 [4]\n  v1 = sum(X=[v0");
    for (int i = 1; i <= counts[c]; i++) {
      str_fmt(line, "  var v%d float32 [4]\n  v%d = relu(X=v%d)\n", i, i, i - 1);
      str_add(same, "  v1 = relu(X=v0)\n");
      if (i > 1) str_add(wide, ", v0");
    }
    str_add(line, "}\n");
    str_add(same, "}\n");
    str_add(wide, "])\n}\n");
    check_text("D13", c, line->s);
    check_text("D13", 10 + c, same->s);
    check_text("D13", 20 + c, wide->s);
    Str *deep = raw("program\n", 8);
    for (int i = 0; i < counts[c] / 5; i++)
      str_fmt(deep, "block %d parent %d {\n%s}\n", i, i - 1,
              i + 1 < counts[c] / 5 ? arena_fmt(arena, "  f() {sub_block=block %d}\n", i + 1) : "");
    check_text("D13", 30 + c, deep->s);
    arena_free(arena);
    arena = arena_new();
  }
}

/* Attributes of real operators; every @ becomes a hostile value. */
static const struct {
  const char *op, *attrs;
} hostile_attrs[] = {
    {"Output=y = conv2d(Input=x, Filter=w)", "strides=[@, 1]"},
    {"Output=y = conv2d(Input=x, Filter=w)", "dilations=[1, @]"},
    {"Output=y = conv2d(Input=x, Filter=w)", "paddings=[@, @]"},
    {"Output=y = conv2d(Input=x, Filter=w)", "groups=@"},
    {"Output=y = conv2d(Input=x, Filter=w)", "strides=[@]"},
    {"Output=y = conv2d(Input=x, Filter=w)", "paddings=[0, 0, @, 0]"},
    {"y = pool2d(X=x)", "pooling_type='max', ksize=[@, 2]"},
    {"y = pool2d(X=x)", "pooling_type='avg', ksize=[2, 2], strides=[1, @]"},
    {"y = pool2d(X=x)", "pooling_type='avg', ksize=[@, @], adaptive=true"},
    {"y = pool2d(X=x)", "pooling_type='max', ksize=[2, 2], paddings=[@, 0]"},
    {"y = softmax(X=x)", "axis=@"},
    {"y = log_softmax(X=x)", "axis=@"},
    {"y = concat(X=[x, x])", "axis=@"},
    {"[y, z] = split(X=x)", "num=@"},
    {"[y, z] = split(X=x)", "sections=[@, 1], axis=1"},
    {"[y, z] = split(X=x)", "num=2, axis=@"},
    {"y = slice(Input=x)", "axes=[@], starts=[0], ends=[1]"},
    {"y = slice(Input=x)", "axes=[1], starts=[@], ends=[@]"},
    {"y = slice(Input=x)", "axes=[1, 1], starts=[0, 0], ends=[@, 1]"},
    {"Out=y, XShape=z = transpose2(X=x)", "axis=[0, 1, 2, @]"},
    {"Out=y, XShape=z = transpose2(X=x)", "axis=[@]"},
    {"Out=y, XShape=z = reshape2(X=x)", "shape=[@, -1]"},
    {"Out=y, XShape=z = reshape2(X=x)", "shape=[@, @, 0]"},
    {"Out=y, XShape=z = reshape2(X=x)", "shape=[0, 0, 0, 0, 0, @]"},
    {"Out=y, XShape=z = squeeze2(X=x)", "axes=[@]"},
    {"Out=y, XShape=z = unsqueeze2(X=x)", "axes=[@]"},
    {"Out=y, XShape=z = unsqueeze2(X=x)", "axes=[0, 0, 0, 0, 0, 0, 0, 0, 0, @]"},
    {"Out=y, XShape=z = flatten_contiguous_range(X=x)", "start_axis=@"},
    {"Out=y, XShape=z = flatten_contiguous_range(X=x)", "start_axis=1, stop_axis=@"},
    {"y = stack(X=[x, x])", "axis=@"},
    {"y = tile(X=x)", "repeat_times=[@]"},
    {"y = tile(X=x)", "repeat_times=[@, @, @, @]"},
    {"y = expand_v2(X=x)", "shape=[@, 3, 8, 8]"},
    {"y = expand_v2(X=x)", "shape=[@]"},
    {"y = pad(X=x)", "paddings=[@, 0, 0, 0, 0, 0, 0, 0]"},
    {"y = pad(X=x)", "paddings=[@]"},
    {"y = fill_constant()", "shape=[@, @]L, dtype=5, value=1.0"},
    {"y = fill_constant()", "shape=[1]L, dtype=@"},
    {"y = uniform_random()", "shape=[@]L, dtype=5"},
    {"y = gaussian_random()", "shape=[2]L, dtype=@"},
    {"y = one_hot_v2(X=i)", "depth=@"},
    {"y = reduce_sum(X=x)", "dim=[@]"},
    {"y = reduce_mean(X=x)", "dim=[0, @]"},
    {"y = reduce_max(X=x)", "dim=[@, @]"},
    {"y = arg_max(X=x)", "axis=@L, dtype=3"},
    {"y = arg_max(X=x)", "axis=1L, dtype=@"},
    {"Out=y, Indices=z = top_k_v2(X=x)", "k=@"},
    {"Out=y, Indices=z = top_k_v2(X=x)", "k=1, axis=@"},
    {"y = mul(X=x, Y=v)", "x_num_col_dims=@"},
    {"y = mul(X=m, Y=v)", "y_num_col_dims=@"},
    {"y = matmul_v2(X=m, Y=w)", "trans_x=true"},
    {"y = matmul_v2(X=x, Y=i)", ""},
    {"y = elementwise_add(X=x, Y=m)", "axis=@"},
    {"y = elementwise_add(X=x, Y=i)", ""},
    {"Y=y = layer_norm(X=x)", "begin_norm_axis=@"},
    {"Y=y = layer_norm(X=x)", "epsilon=@.0"},
    {"Out=y, Mask=z = dropout(X=x)", "dropout_prob=@.0"},
    {"Out=y, Mask=z = dropout(X=x)", "dropout_prob=nan"},
    {"y = cast(X=x)", "in_dtype=5, out_dtype=@"},
    {"y = gather(X=m, Index=i)", "axis=@"},
    {"y = lookup_table_v2(W=v, Ids=x)", ""},
    {"Y=y = unfold(X=x)",
     "kernel_sizes=[@, 2], strides=[1, 1], paddings=[0, 0, 0, 0], dilations=[1, 1]"},
    {"Y=y = unfold(X=x)",
     "kernel_sizes=[2, 2], strides=[@, 1], paddings=[0, 0, 0, 0], dilations=[1, @]"},
    {"y = clip(X=x)", "min=nan, max=@.0"},
    {"y = scale(X=x)", "scale='x'"},
    {"y = scale(X=x)", "scale=[1.0]"},
    {"y = assign_value()", "shape=[@], dtype=5, fp32_values=[1.0]"},
};

/* Attributes that must be refused, each with one error of its own. */
static const struct {
  const char *op, *attrs;
  ErrCode code;
} refused[] = {
    {"y = cast(X=x)", "in_dtype=5, out_dtype=-1", E_TYP_002},
    {"y = cast(X=x)", "in_dtype=5, out_dtype=-7", E_TYP_002},
    {"y = arg_max(X=x)", "axis=1L, dtype=-2", E_TYP_002},
    {"y = fill_any_like(X=x)", "value=1.0, dtype=-9", E_TYP_002},
    {"y = reduce_sum(X=x)", "dim=[0, 1], out_dtype=-3", E_TYP_002},
    {"y = reduce_sum(X=x)", "dim=[0, 0]", E_SHP_003},
    {"y = reduce_max(X=x)", "dim=[1, -3]", E_SHP_003},
    {"y = reduce_mean(X=x)", "dim=[-1, 3]", E_SHP_003},
    {"y = gaussian_random()", "shape=[2]L, dtype=0", E_TYP_002},
    {"y = uniform_random()", "shape=[2]L, dtype=3", E_TYP_002},
    {"y = gaussian_random()", "shape=[2]L, std=-1.0", E_OPR_003},
    {"y = clip(X=x)", "min=nan, max=1.0", E_OPR_003},
    {"y = clip(X=x)", "min=0.0, max=nan", E_OPR_003},
    {"y = scale(X=x)", "scale=nan", E_OPR_003},
    {"Y=y = layer_norm(X=x)", "epsilon=0.0", E_OPR_003},
    {"Y=y = layer_norm(X=x)", "epsilon=-1e-5", E_OPR_003},
    {"Y=y = layer_norm(X=x)", "epsilon=inf", E_OPR_003},
    {"Y=y = layer_norm(X=x)", "epsilon=nan", E_OPR_003},
    {"Out=y, Mask=z = dropout(X=x)", "dropout_prob=nan", E_OPR_003},
    {"Out=y, Mask=z = dropout(X=x)", "dropout_prob=1.5", E_OPR_003},
    {"Out=y, Mask=z = dropout(X=x)", "dropout_prob=-0.1", E_OPR_003},
};

static void test_refused(void **state) {
  (void)state;
  for (int i = 0; i < (int)(sizeof refused / sizeof *refused); i++) {
    Str *s = raw("program\nblock 0 {\n" VARS "  ", sizeof("program\nblock 0 {\n" VARS "  ") - 1);
    str_fmt(s, "%s {%s}\n}\n", refused[i].op, refused[i].attrs);
    Program *p = prog_parse(s->s, s->n, "text");
    bool ok = p && prog_verify(p) && infer_program(p, false);
    const Diag *d = err_get();
    if (ok || !d || d->code != refused[i].code)
      fail_msg("%s {%s}: %s", refused[i].op, refused[i].attrs, d ? err_name(d->code) : "accepted");
    err_clear();
    prog_free(p);
  }
}

static void test_attributes(void **state) {
  (void)state;
  static const char *const values[] = {"0",       "-1",         "-2",          "7",
                                       "1000000", "2147483647", "-2147483648", "-5"};
  for (int i = 0; i < (int)(sizeof hostile_attrs / sizeof *hostile_attrs); i++)
    for (int v = 0; v < 8; v++) {
      Str *s = raw("program\nblock 0 {\n" VARS "  ", sizeof("program\nblock 0 {\n" VARS "  ") - 1);
      str_fmt(s, "%s {", hostile_attrs[i].op);
      for (const char *c = hostile_attrs[i].attrs; *c; c++)
        str_add(s, *c == '@' ? values[v] : (char[]){*c, 0});
      str_add(s, "}\n}\n");
      check_text("E1", 10 * i + v, s->s);
      if (!strchr(hostile_attrs[i].attrs, '@')) break;
    }
}

static int set_up(void **state) {
  (void)state;
  account_start();
  return 0;
}

static int new_arena(void **state) {
  (void)state;
  arena = arena_new();
  return 0;
}

static int drop_arena(void **state) {
  (void)state;
  arena_free(arena);
  return 0;
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, new_arena, drop_arena)

int main(void) {
  const struct CMUnitTest tests[] = {
      TEST(test_wire),           TEST(test_nesting),   TEST(test_amplification),
      TEST(test_missing_fields), TEST(test_strings),   TEST(test_other_formats),
      TEST(test_tensors),        TEST(test_heads),     TEST(test_var_dims),
      TEST(test_paths),          TEST(test_structure), TEST(test_size),
      TEST(test_attributes),     TEST(test_refused),
  };
  int failed = cmocka_run_group_tests(tests, set_up, NULL);
  print_message("%d files, %d accepted\n", account_files(), account_accepted());
  return failed;
}
