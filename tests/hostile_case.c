/* Hostile files under a rule: see hostile_case.h. */
#include "hostile_case.h"
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

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

Result check_file(const char *id, int variant, Form form, const void *bytes, size_t n) {
  uint8_t *copy = malloc(n + !n);
  if (n) memcpy(copy, bytes, n);
  Account account = account_open(id, variant, n);
  bool ok = form == PARAMS ? read_params(copy, n) : read_program(form, copy, n);
  ErrCode code = account_close(&account, ok);
  free(copy);
  return (Result){ok, code};
}

Arena *hostile_arena;

Str *hostile_str(void) {
  Str *s = arena_new_of(hostile_arena, Str);
  str_init(s, hostile_arena);
  return s;
}

Str *hostile_raw(const char *bytes, size_t n) {
  Str *s = hostile_str();
  str_addn(s, bytes, n);
  return s;
}

int hostile_begin(void **state) {
  (void)state;
  account_start();
  return 0;
}

int hostile_end(void **state) {
  (void)state;
  print_message("%d files, %d accepted\n", account_files(), account_accepted());
  return 0;
}

int hostile_set_up(void **state) {
  (void)state;
  hostile_arena = arena_new();
  return 0;
}

int hostile_tear_down(void **state) {
  (void)state;
  arena_free(hostile_arena);
  return 0;
}
