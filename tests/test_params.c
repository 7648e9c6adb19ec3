/* Parameter files: exact bytes, alignment, LoD levels, quantised weights, every cut and bit flip, and what is said of what
 * does not fit. */
#include "file_case.h"
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static bool reads_params(const uint8_t *bytes, size_t n) {
  Arena *a = arena_new();
  Tensor t[2];
  bool ok = params_decode(bytes, n, "damaged.pdiparams", 2, NULL, a, t, NULL);
  arena_free(a);
  return ok;
}

static void make_params(Arena *a, Tensor *t, Str *out) {
  assert_true(tensor_make(&t[0], a, DT_FLOAT32, 1, (int64_t[]){64}));
  assert_true(tensor_make(&t[1], a, DT_INT64, 0, NULL));
  for (int i = 0; i < 64; i++) ((float *)t[0].data)[i] = (float)i;
  *(int64_t *)t[1].data = -5;
  str_init(out, a);
  assert_true(params_encode(out, 2, (const Tensor *[]){&t[0], &t[1]}));
}

static void test_param_bytes(void **state) {
  (void)state;
  static const uint8_t head[24] = {[16] = 4, [20] = 0x08, 0x05, 0x10, 0x40};
  Arena *a = arena_new();
  Tensor t[2], back[2];
  Str out;
  make_params(a, t, &out);
  assert_int_equal(out.n, 24 + 256 + 22 + 8);
  assert_memory_equal(out.s, head, 24);
  assert_memory_equal(out.s + 24, t[0].data, 256);
  assert_true(params_decode((uint8_t *)out.s, out.n, "f", 2, NULL, a, back, NULL));
  assert_memory_equal(back[0].data, t[0].data, 256);
  assert_int_equal(back[1].rank, 0);
  assert_int_equal(tensor_get(&back[1], 0), -5);
  damage((uint8_t *)out.s, out.n, reads_params);
  arena_free(a);
}

/* Large data is aligned in the file by descriptions that are padded. */
static void test_param_alignment(void **state) {
  (void)state;
  Arena *a = arena_new();
  Str out;
  str_init(&out, a);
  str_add(&out, "before"); /* what counts is the distance from the first entry */
  Tensor t[80], back[80];
  const Tensor *p[80];
  for (int i = 0; i < 80; i++) { /* sizes that leave every remainder */
    int64_t dims[] = {1, i % 2 ? PARAMS_LARGE + i : 1 + i};
    assert_true(tensor_make(&t[i], a, DT_UINT8, 2, dims));
    memset(t[i].data, i, tensor_bytes(&t[i]));
    p[i] = &t[i];
  }
  assert_true(params_encode(&out, 80, p));
  uint8_t *bytes = (uint8_t *)out.s + 6;
  assert_true(params_view(bytes, out.n - 6, "f", 80, NULL, back, NULL));
  for (int i = 0; i < 80; i++) {
    assert_memory_equal(back[i].data, t[i].data, tensor_bytes(&t[i]));
    if (i % 2) assert_int_equal(((uint8_t *)back[i].data - bytes) % PARAMS_ALIGN, 0);
  }
  arena_free(a);
}

/* Quantised weights in the place of others, scales with a dimension more: PaddlePaddle's tools leave the variables as they were. */
static void test_quantised_params(void **state) {
  (void)state;
  Program *p = program_of_net();
  Arena *a = arena_new();
  Var **vars;
  Tensor t, back;
  const struct {
    DType type;
    int rank;
    int64_t dims[3];
    bool fits;
  } CASES[] = {{DT_INT8, 2, {4, 2}, true},        {DT_INT16, 2, {4, 2}, true},
               {DT_FLOAT32, 3, {1, 4, 2}, true},  {DT_INT32, 2, {4, 2}, false},
               {DT_FLOAT32, 3, {2, 4, 1}, false}, {DT_INT8, 2, {2, 4}, false}};
  assert_int_equal(params_list(p, a, &vars), 1);
  for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
    Str out;
    str_init(&out, a);
    assert_true(tensor_make(&t, a, CASES[i].type, CASES[i].rank, CASES[i].dims));
    memset(t.data, 3, tensor_bytes(&t));
    assert_true(params_encode(&out, 1, &(const Tensor *){&t}));
    bool fits = params_decode((uint8_t *)out.s, out.n, "f", 1, vars, a, &back, NULL);
    assert_int_equal(fits, CASES[i].fits);
    if (!fits) expect_error(E_PAR_002, "float32 [4, 2] in the program");
    if (fits) assert_int_equal(back.dtype, CASES[i].type);
  }
  arena_free(a);
  prog_free(p);
}

static void test_param_errors(void **state) {
  (void)state;
  Program *p = program_of_net();
  Arena *a = arena_new();
  Var **vars, *w;
  Tensor t[2], back[2];
  Str out;
  assert_int_equal(params_list(p, a, &vars), 1);
  w = vars[0];
  assert_string_equal(w->name, "w");
  make_params(a, t, &out);
  const uint8_t *bytes = (uint8_t *)out.s;
  assert_false(params_decode(bytes, out.n, "f.pdiparams", 1, vars, a, back, NULL));
  expect_error(E_PAR_002,
               "\"w\" is float32 [64] in the parameter file, float32 [4, 2] in the program");
  assert_false(params_decode(bytes, 30, "f.pdiparams", 1, &(Var *){NULL}, a, back, NULL));
  expect_error(E_PAR_004, "f.pdiparams at byte 24: 256 bytes needed (float32 [64]), 6 left");
  assert_false(params_decode(bytes, out.n, "f.pdiparams", 1, NULL, a, back, NULL));
  expect_error(E_PAR_003, "30 bytes are left over after 1 tensors");
  assert_false(params_decode(bytes, out.n, "f.pdiparams", 3, NULL, a, (Tensor[3]){0}, NULL));
  expect_error(E_PAR_004, "2 of 3 tensors read");
  assert_false(params_decode((const uint8_t *)"\x80\4\x95more and more", 16, "f.pdparams", 1, NULL,
                             a, back, NULL));
  expect_error(E_PAR_001, "Python pickle");
  w->dtype = DT_INT64;
  w->rank = 1;
  w->dims[0] = 1;
  assert_true(params_decode(bytes + 280, out.n - 280, "f", 1, vars, a, back, NULL));
  arena_free(a);
  prog_free(p);
}

static void test_param_levels(void **state) {
  (void)state;
  static const struct {
    uint64_t level[4]; /* bytes, offsets */
    ErrCode code;
    const char *part;
  } rows[] = {{{24, 0, 2, 2}, E_NONE, ""},
              {{24, 1, 2, 3}, E_PAR_001, "do not grow from 0"},
              {{24, 0, 3, 2}, E_PAR_001, "(2 after 3)"},
              {{24, 0, 3, 65}, E_PAR_001, "end at 65, behind its 64 rows"},
              {{24, 0, 3, UINT64_MAX}, E_PAR_001, "do not grow from 0"},
              {{23, 0, 3, 2}, E_PAR_001, "23 bytes"},
              {{UINT64_MAX - 7, 0, 3, 2}, E_PAR_004, "18,446,744,073,709,551,608 bytes needed"}};
  Arena *a = arena_new();
  Tensor t[2], back;
  Str out, file;
  make_params(a, t, &out);
  for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
    uint64_t levels = 1;
    str_init(&file, a);
    str_addn(&file, out.s, 4);
    str_addn(&file, (const char *)&levels, 8);
    str_addn(&file, (const char *)rows[i].level, 32);
    str_addn(&file, out.s + 12, 280 - 12);
    bool ok = params_decode((uint8_t *)file.s, file.n, "f", 1, NULL, a, &back, NULL);
    assert_int_equal(ok, rows[i].code == E_NONE);
    if (!ok) expect_error(rows[i].code, rows[i].part);
  }
  arena_free(a);
}

/* Levels are kept, and written as they were. */
static void test_param_nested_levels(void **state) {
  (void)state;
  static const int64_t outer[] = {0, 2, 3}, inner[] = {0, 1, 5, 64};
  Arena *a = arena_new();
  Tensor t[2], back, level[2];
  Str out, file;
  make_params(a, t, &out);
  assert_true(tensor_make(&level[0], a, DT_INT64, 1, (int64_t[]){3}));
  assert_true(tensor_make(&level[1], a, DT_INT64, 1, (int64_t[]){4}));
  memcpy(level[0].data, outer, sizeof outer);
  memcpy(level[1].data, inner, sizeof inner);
  str_init(&file, a);
  assert_true(params_head(&file, 0, &t[0], 2, (const Tensor *[]){&level[0], &level[1]}));
  str_addn(&file, t[0].data, 256);
  ParamLevels kept = {.arena = a};
  assert_true(params_decode((uint8_t *)file.s, file.n, "f", 1, NULL, a, &back, &kept));
  assert_int_equal(kept.all.n, 2);
  for (int i = 0; i < 2; i++) {
    const ParamLevel *l = &kept.all.v[i];
    assert_int_equal(l->entry, 0);
    assert_int_equal(l->depth, 1 - i);
    assert_int_equal(tensor_numel(&l->offsets), tensor_numel(&level[i]));
    assert_memory_equal(l->offsets.data, level[i].data, tensor_bytes(&level[i]));
  }
  ((int64_t *)level[0].data)[2] = 4; /* of three sequences */
  str_init(&file, a);
  assert_true(params_head(&file, 0, &t[0], 2, (const Tensor *[]){&level[0], &level[1]}));
  str_addn(&file, t[0].data, 256);
  assert_false(params_decode((uint8_t *)file.s, file.n, "f", 1, NULL, a, &back, NULL));
  expect_error(E_PAR_001, "end at 4, behind its 3 sequences");
  const Tensor *many[PARAMS_LEVELS + 1];
  for (int i = 0; i <= PARAMS_LEVELS; i++) many[i] = &level[1];
  str_init(&file, a);
  assert_true(params_head(&file, 0, &t[0], PARAMS_LEVELS + 1, many));
  str_addn(&file, t[0].data, 256);
  assert_false(params_decode((uint8_t *)file.s, file.n, "f", 1, NULL, a, &back, NULL));
  expect_error(E_PAR_001, "17 LoD levels; at most 16");
  arena_free(a);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_param_bytes),
                                     cmocka_unit_test(test_param_alignment),
                                     cmocka_unit_test(test_quantised_params),
                                     cmocka_unit_test(test_param_errors),
                                     cmocka_unit_test(test_param_levels),
                                     cmocka_unit_test(test_param_nested_levels)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
