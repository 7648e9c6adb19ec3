/* A corpus of hostile files: the programs, parameters, dictionaries and texts of tests/fixtures and tests/data, damaged in ways
 * that a fixed generator draws, and files of other kinds under their names. Each is written, loaded as a model, its shapes
 * inferred and its passes run; it must end under the rule of account.h.
 * Damage to fields of the wire format: damage.h. */
#include "../executor/executor.h"
#include "account.h"
#include "damage.h"
#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

static const char *folder;
static Arena *arena;

static const char *path_of(const char *name) {
  static char path[2][200];
  static int next;
  next = !next;
  snprintf(path[next], sizeof path[next], "%s/%s", folder, name);
  return path[next];
}

static void put_file(const char *name, const void *bytes, size_t n) {
  FILE *f = fopen(path_of(name), "wb");
  assert_non_null(f);
  assert_int_equal(fwrite(bytes, 1, n, f), n);
  fclose(f);
}

static Str get_file(const char *path) {
  uint8_t *bytes;
  Str s;
  str_init(&s, arena);
  if (!vfs_read(arena, path, &bytes, &s.n)) fail_msg("%s cannot be read", path);
  s.s = (char *)bytes;
  return s;
}

/* ---- loading under the rule ---- */

/* Passes without code, on declared shapes: what a hostile program that is accepted must survive. */
static bool plan(const Program *p) {
  const Block *b = p->blocks.v[0];
  Feed feeds[16];
  Tensor t[16];
  CompileRequest r = {.prog = p, .feeds = feeds, .no_code = true};
  for (int i = 0; i < b->vars.n && r.n_feeds < 16; i++) {
    const Var *v = b->vars.v[i];
    if (!v->need_check_feed || v->dtype == DT_NONE || v->rank < 0) continue;
    t[r.n_feeds] = (Tensor){.dtype = v->dtype, .rank = v->rank};
    for (int d = 0; d < v->rank; d++) t[r.n_feeds].dims[d] = v->dims[d] < 0 ? 2 : v->dims[d];
    feeds[r.n_feeds] = (Feed){v->name, &t[r.n_feeds]};
    r.n_feeds++;
  }
  Executable *x = compile(&r);
  executable_free(x);
  return x;
}

static ErrCode load_model(const char *id, int variant, const char *model, const char *params,
                          size_t size) {
  Account account = account_open(id, variant, size);
  MemGuard guard;
  if (MEM_GUARD(guard)) fail_msg("%s.%d: out of memory outside of a guard", id, variant);
  Program *p = prog_load(model);
  Scope *s = scope_new();
  size_t reading = account_peak();
  bool ok = p != NULL;
  if (ok && params) ok = scope_load_params(s, p, params);
  if (ok &&
      !params) { /* what is inferred and planned goes with the operators, not with their bytes */
    reading = account_peak();
    ok = infer_program(p, true) && plan(p);
    account_set_peak(reading);
    if (!ok) err_where("%s", model);
  }
  scope_free(s);
  prog_free(p);
  mem_unguard(&guard);
  return account_close(&account, ok);
}

static void check_program(const char *id, int variant, const Str *s) {
  put_file("m.pdmodel", s->s, s->n);
  load_model(id, variant, path_of("m.pdmodel"), NULL, s->n);
}

/* ---- programs ---- */

#define FIXTURES "tests/fixtures/"
static const char *const programs[] = {
    FIXTURES "mlp/main.pdmodel",           FIXTURES "convnet/main.pdmodel",
    FIXTURES "attention/main.pdmodel",     FIXTURES "inference/main.pdmodel",
    FIXTURES "control_while/main.pdmodel", FIXTURES "control_array/main.pdmodel",
    FIXTURES "language/main.pdmodel",      "tests/data/static/net.pdmodel"};
enum { N_PROGRAMS = sizeof programs / sizeof *programs, EACH = 90 };

static void new_arena(void) {
  arena_free(arena);
  arena = arena_new();
}

static void test_programs(void **state) {
  (void)state;
  for (int i = 0; i < N_PROGRAMS; i++) {
    damage_seed((uint64_t)i);
    for (int k = 0; k < EACH; k++) {
      Str file = get_file(programs[i]);
      Pieces v = {0};
      damage_find(arena, &file, &v);
      assert_true(v.n > 100);
      Str bad = damage_file(arena, &file, &v, k % 8);
      check_program(programs[i], k, &bad);
      new_arena();
    }
  }
}

/* Two places at once, so that one piece of damage does not hide another. */
static void test_twice(void **state) {
  (void)state;
  for (int k = 0; k < EACH; k++) {
    damage_seed((uint64_t)k + 1000);
    Str file = get_file(programs[k % N_PROGRAMS]);
    for (int twice = 0; twice < 2; twice++) {
      Pieces v = {0};
      damage_find(arena, &file, &v);
      if (v.n) file = damage_file(arena, &file, &v, (int)damage_draw(6));
    }
    check_program("twice", k, &file);
    new_arena();
  }
}

/* ---- text ---- */

static const char *const words[] = {"",
                                    "{",
                                    "}",
                                    "[",
                                    "]",
                                    "(",
                                    ")",
                                    "=",
                                    ",",
                                    "-1",
                                    "9223372036854775807",
                                    "nan",
                                    "'",
                                    "\"",
                                    "block 1",
                                    "block 0 {\n}",
                                    "var",
                                    "float32",
                                    "[-5]",
                                    "\\x00",
                                    "0x10",
                                    "1e999",
                                    "block 0 parent 0 {",
                                    "@EMPTY@",
                                    "\xff",
                                    "\x1b"};

static void test_text(void **state) {
  (void)state;
  static const char *const files[] = {"tests/data/net_main.kl", "tests/data/net_test.kl",
                                      "tests/data/net_startup.kl"};
  for (int k = 0; k < EACH; k++) {
    damage_seed((uint64_t)k);
    Str file = get_file(files[k % 3]), bad;
    str_init(&bad, arena);
    size_t from = damage_draw((uint32_t)file.n), to;
    while (from && !strchr(" \n", file.s[from - 1])) from--;
    to = from + strcspn(file.s + from, " \n");
    if (k % 4 == 3) to = file.n; /* cut */
    str_addn(&bad, file.s, from);
    str_add(&bad, words[damage_draw(sizeof words / sizeof *words)]);
    if (k % 4 == 1) str_addn(&bad, file.s + from, to - from);
    str_addn(&bad, file.s + to, file.n - to);
    put_file("m.kl", bad.s, bad.n);
    load_model("text", k, path_of("m.kl"), NULL, bad.n);
    new_arena();
  }
}

/* ---- parameters ---- */

static void check_params(const char *id, int variant, const char *model, const Str *s) {
  put_file("p.pdiparams", s->s, s->n);
  load_model(id, variant, model, path_of("p.pdiparams"), s->n);
}

/* Offsets of the fields of each entry: version, levels, tensor version, length, description, data, end. */
static int entry_fields(const Str *s, size_t at[][7], int most) {
  const uint8_t *b = (const uint8_t *)s->s;
  int n = 0;
  for (size_t p = 0; p < s->n && n < most; n++) {
    int32_t len;
    memcpy(&len, b + p + 16, 4);
    const size_t heads[] = {p, p + 4, p + 12, p + 16, p + 20, p + 20 + (size_t)len};
    memcpy(at[n], heads, sizeof heads);
    int64_t bytes = 1;
    size_t d = p + 20;
    uint64_t tag, v;
    while (d < heads[5] && damage_varint(b, &d, heads[5], &tag) &&
           damage_varint(b, &d, heads[5], &v))
      bytes *= tag == 8 ? dtype_info[dtype_from_paddle((int)v)].size : (int64_t)v;
    p = at[n][6] = heads[5] + (size_t)bytes;
  }
  return n;
}

static Str params_damaged(const Str *file, size_t at[][7], int n, int kind) {
  static const uint64_t values[] = {1,          7,          0x7fffffff,
                                    0x80000000, 0xffffffff, (uint64_t)1 << 60,
                                    UINT64_MAX};
  static const uint64_t counts[] = {1, 1, 2, 17, (uint64_t)1 << 40};
  static const uint64_t lod[] = {16, 0, 3, 7, 0, 9, 15, 2, UINT64_MAX};
  const size_t *e = at[damage_draw((uint32_t)n)], *f = at[damage_draw((uint32_t)n)];
  Str s, cut = *file;
  str_init(&s, arena);
  size_t field = damage_draw(4), width = field == 1 ? 8 : 4;
  switch (kind) {
  case 0:
    str_addn(&s, file->s, e[field]);
    str_addn(&s, (const char *)&values[damage_draw(7)], width);
    str_addn(&s, file->s + e[field] + width, file->n - e[field] - width);
    return s;
  case 1: cut.n = e[damage_draw(7)]; return cut;
  case 2: /* levels of detail that are none */
    str_addn(&s, file->s, e[1]);
    str_addn(&s, (const char *)&counts[damage_draw(5)], 8);
    str_addn(&s, (const char *)&lod[damage_draw(9)], 8);
    str_addn(&s, (const char *)&lod[damage_draw(8)], 16 - 8 * damage_draw(2));
    str_addn(&s, file->s + e[2], file->n - e[2]);
    return s;
  case 3: /* another entry in its place */
    str_addn(&s, file->s, e[0]);
    str_addn(&s, file->s + f[0], f[6] - f[0]);
    str_addn(&s, file->s + e[6], file->n - e[6]);
    return s;
  case 4: /* removed, or twice */
    str_addn(&s, file->s, damage_draw(2) ? e[0] : e[6]);
    str_addn(&s, file->s + (damage_draw(2) ? e[0] : e[6]), file->n - e[6]);
    return s;
  default: /* a byte of the head */
    str_addn(&s, file->s, file->n);
    s.s[e[0] + damage_draw((uint32_t)(e[5] - e[0]))] ^= (char)(1 << damage_draw(8));
    return s;
  }
}

static void test_params(void **state) {
  (void)state;
  static const struct {
    const char *model, *params;
  } rows[] = {{FIXTURES "inference/main.pdmodel", FIXTURES "inference/first.pdiparams"},
              {"tests/data/static/net.pdmodel", "tests/data/static/all.pdiparams"}};
  for (int i = 0; i < 2; i++)
    for (int k = 0; k < EACH; k++) {
      damage_seed((uint64_t)(1000 * i + k));
      size_t at[64][7];
      Str file = get_file(rows[i].params);
      int n = entry_fields(&file, at, 64);
      assert_int_equal(at[n - 1][6], file.n);
      Str bad = params_damaged(&file, at, n, k % 6);
      check_params(rows[i].params, k, rows[i].model, &bad);
      new_arena();
    }
}

static void test_dictionaries(void **state) {
  (void)state;
  static const char *const files[] = {"tests/data/static/p2.pdparams",
                                      "tests/data/static/p4.pdparams",
                                      "tests/data/static/sliced.pdparams"};
  static const char opcodes[] =
      "}])(tuesbcRhqrjXBCKJMN.0op\x81\x82\x85\x86\x87\x88\x89\x8a\x8c\x8e\x93\x94\x95\x96";
  for (int k = 0; k < EACH; k++) {
    damage_seed((uint64_t)k);
    Str bad = get_file(files[k % 3]);
    for (uint32_t times = damage_draw(3) + 1; times; times--) {
      size_t at = 2 + damage_draw((uint32_t)bad.n - 2);
      bad.s[at] =
          damage_draw(2) ? opcodes[damage_draw(sizeof opcodes - 1)] : (char)damage_draw(256);
    }
    check_params(files[k % 3], k, "tests/data/static/net.pdmodel", &bad);
    new_arena();
  }
}

/* ---- files of other kinds ---- */

static const struct {
  const char *bytes;
  size_t n;
} others[] = {
#define OTHER(s)                                                                                   \
  { s, sizeof(s) - 1 }
    OTHER(""),
    OTHER("\0"),
    OTHER("\n"),
    OTHER("PK\3\4\x14\0\0\0\0\0../../etc/x"),
    OTHER("\x1f\x8b\x08\0\0\0\0\0\0\3"),
    OTHER("\x08\x07\x12\x07pytorch\x1a\x03"
          "1.0"),
    OTHER("<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head></html>\n"),
    OTHER("version https://git-lfs.github.com/spec/v1\noid "
          "sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"),
    OTHER("{\"error\": \"Not Found\"}"),
    OTHER("\x80\4\x95\1\0\0\0\0\0\0\0}."),
    OTHER("\x80\2]q\0."),
    OTHER("\x93NUMPY\1\0v\0{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }"),
    OTHER("\x89HDF\r\n\x1a\n"),
    OTHER("GGUF\3\0\0\0\xff\xff\xff\xff\xff\xff\xff\x7f"),
    OTHER("\x7f"
          "ELF\2\1\1"),
    OTHER("%PDF-1.4"),
    OTHER("\x89PNG\r\n\x1a\n"),
    OTHER("#!/bin/sh\nrm -rf /\n"),
    OTHER("program"),
    OTHER("\x10\0\0\0\0\0\0\0{\"a\":{}}"),
    OTHER("\xef\xbb\xbfprogram version 0\n"),
    OTHER("\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\2\0\0\0\x08\5\0\0\0\0")};

static void test_others(void **state) {
  (void)state;
  static const char model[] = "tests/data/static/net.pdmodel";
  for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
    Str s = {.a = arena, .s = (char *)(uintptr_t)others[i].bytes, .n = others[i].n};
    put_file("m.pdmodel", s.s, s.n);
    assert_int_not_equal(load_model("other", (int)i, path_of("m.pdmodel"), NULL, s.n), E_NONE);
    put_file("m.kl", s.s, s.n);
    load_model("other", 100 + (int)i, path_of("m.kl"), NULL,
               s.n); /* a mere newline is an empty text */
    put_file("p.pdiparams", s.s, s.n);
    assert_int_not_equal(load_model("other", 200 + (int)i, model, path_of("p.pdiparams"), s.n),
                         E_NONE);
    mkdir(path_of("each"), 0700);
    put_file("each/batch_norm_0.b_0", s.s, s.n); /* of one variable; the others are not there */
    assert_int_not_equal(load_model("other", 300 + (int)i, model, path_of("each"), s.n), E_NONE);
  }
  /* one for the other */
  assert_int_equal(load_model("other", 400, "tests/data/static/all.pdiparams", NULL, 0), E_PRO_001);
  assert_int_equal(load_model("other", 401, "tests/data/static/p4.pdparams", NULL, 0), E_PRO_001);
  assert_int_equal(load_model("other", 402, model, model, 0), E_PAR_001);
  assert_int_equal(load_model("other", 403, model, "tests/data/net_main.kl", 0), E_PAR_001);
  assert_int_equal(load_model("other", 404, model, FIXTURES "inference/first.pdiparams", 0),
                   E_PAR_002);
}

static void test_places(void **state) {
  (void)state;
  static const char model[] = "tests/data/static/net.pdmodel";
  assert_int_equal(mkfifo(path_of("fifo"), 0600), 0);
  assert_int_equal(symlink("loop", path_of("loop")), 0);
  assert_int_equal(symlink("/nowhere/at/all", path_of("dangling")), 0);
  mkdir(path_of("empty"), 0700);
  mkdir(path_of("deep"), 0700);
  mkdir(path_of("deep/batch_norm_0.b_0"), 0700); /* a folder where a variable's file is wanted */
  mkdir(path_of("pipes"), 0700);
  assert_int_equal(mkfifo(path_of("pipes/batch_norm_0.b_0"), 0600), 0);
  char *const paths[] = {"fifo",           "loop",      "dangling",
                         "empty",          "deep",      "pipes",
                         "no such file",   "/dev/zero", "/dev/null",
                         "/proc/self/mem", "/",         "",
                         "a\nb\x1b[0m"};
  for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) {
    char path[200];
    snprintf(path, sizeof path, "%s", i < 7 ? path_of(paths[i]) : paths[i]);
    assert_int_not_equal(load_model("place", (int)i, path, NULL, 0), E_NONE);
    assert_int_not_equal(load_model("place", 100 + (int)i, model, path, 0), E_NONE);
  }
}

static int set_up(void **state) {
  (void)state;
  account_start();
  arena = arena_new();
  folder = scratch_folder();
  Program *p = prog_load(programs[0]); /* tables that are made once and stay */
  if (!p || !plan(p)) err_print(stderr, false);
  assert_false(err_any());
  prog_free(p);
  return 0;
}

static int tear_down(void **state) {
  (void)state;
  arena_free(arena);
  scratch_remove(folder);
  print_message("%d files, %d accepted\n", account_files(), account_accepted());
  assert_true(account_files() >= 300);
  return 0;
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_programs),     cmocka_unit_test(test_twice),
      cmocka_unit_test(test_text),         cmocka_unit_test(test_params),
      cmocka_unit_test(test_dictionaries), cmocka_unit_test(test_others),
      cmocka_unit_test(test_places),
  };
  return cmocka_run_group_tests(tests, set_up, tear_down);
}
