/* Every example of ops.def and its gradients with something that does not fit: an input of another element type, of another rank, with
 * a dimension that is longer, 1, 0, beyond 2^31 or not known; an attribute at an extreme of its type. What comes is a coded error or
 * shapes, never a crash. KILN_TEST_OP=NAME: only that operator. */
#include "opcase.h"
#include "util.h"
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

enum { RANKS = 3, SIZES = 5 };
static int n_tried, n_accepted;

/* The k-th change of v; false: there are no more. */
static bool change(Var *v, int k) {
  static const int64_t sizes[SIZES] = {-1, 0, 1, 3, (int64_t)1 << 31};
  if (k < DT_N) {
    v->dtype = (DType)k;
    return true;
  }
  k -= DT_N;
  if (k < RANKS) {
    int rank = k == 0 ? v->rank - 1 : k == 1 ? v->rank + 1 : 0;
    if (rank < 0 || rank > KL_VAR_RANK) rank = 1;
    if (rank > v->rank) v->dims[v->rank] = 2;
    v->rank = rank;
    return true;
  }
  k -= RANKS;
  if (k >= SIZES * v->rank) return false;
  int64_t *d = &v->dims[k / SIZES], to = sizes[k % SIZES];
  *d = to == 3 ? *d + 1 : to;
  return true;
}

/* What was not declared before shapes were inferred is so again. */
typedef struct Declared {
  int n;
  Var v[64];
} Declared;

static void declare(Block *b, Declared *d) {
  for (d->n = 0; d->n < b->vars.n && d->n < 64; d->n++) d->v[d->n] = *b->vars.v[d->n];
}
static void undeclare(Block *b, const Declared *d) {
  for (int i = 0; i < d->n; i++) *b->vars.v[i] = d->v[i];
}

static void try_all(OpCase *c, const char *name) {
  Block *b = c->prog->blocks.v[0];
  Var *v = block_var(b, name);
  if (!v) return;
  Declared all;
  declare(b, &all);
  for (int k = 0; change(v, k); k++) {
    bool ok = infer_program(c->prog, false);
    n_tried++, n_accepted += ok;
    if (ok == err_any())
      fail_msg("%s: %s changed (%d): %s", c->def->name, name, k,
               ok ? "an error, though accepted" : "no error");
    err_clear();
    undeclare(b, &all);
  }
}

/* Each attribute of the operator, written as each of these where its type can hold it. */
static const char *const words[] = {"0",
                                    "-1",
                                    "1",
                                    "7",
                                    "-5",
                                    "1000000",
                                    "2147483647",
                                    "-2147483648",
                                    "9223372036854775807",
                                    "-9223372036854775808",
                                    "0.5",
                                    "-1.0",
                                    "1e30",
                                    "nan",
                                    "inf",
                                    "-inf",
                                    "true",
                                    "false",
                                    "''",
                                    "'x'",
                                    "'SAME'",
                                    "'max'",
                                    "[]",
                                    "[0]",
                                    "[-1]",
                                    "[1, 1, 1]",
                                    "[0, 0, 0, 0]",
                                    "[2147483647, 2147483647]",
                                    "[-1, -1]",
                                    "[9223372036854775807]",
                                    "[1e30, nan]",
                                    "['x']"};

static void try_attrs(OpCase *c, Op *op) {
  Block *b = c->prog->blocks.v[0];
  Declared all;
  declare(b, &all);
  for (int i = 0; op->def && i < op->def->n_attrs; i++) {
    const AttrDef *d = &op->def->attrs[i];
    int n = op->attrs.n;
    Attr was[40];
    if (n > 40) return;
    if (n) memcpy(was, op->attrs.v, sizeof *was * (size_t)n);
    for (size_t w = 0; w < sizeof words / sizeof *words; w++) {
      const char *end;
      Attr a = {0};
      bool set = attr_parse(c->prog->arena, words[w], &end, &a) &&
                 attr_coerce(&a, d->dflt.type, c->prog->arena);
      err_clear();
      if (!set) continue;
      a.name = d->dflt.name;
      op_set_attr(op, &a);
      bool ok = infer_program(c->prog, false);
      n_tried++, n_accepted += ok;
      if (ok == err_any())
        fail_msg("%s: %s=%s: %s", c->def->name, d->dflt.name, words[w],
                 ok ? "an error, though accepted" : "no error");
      err_clear();
      undeclare(b, &all);
      op->attrs.n = n;
      if (n) memcpy(op->attrs.v, was, sizeof *was * (size_t)n);
    }
  }
}

static void one(const OpDef *def, int k, bool gradient) {
  OpCase c;
  OpGrads g = {0};
  Declared own;
  bool ok = opcase_make(&c, def, k, DT_FLOAT32);
  if (ok) declare(c.prog->blocks.v[0], &own);
  if (ok && gradient) {
    ok = infer_program(c.prog, true) && opcase_grads(&c, &g);
    undeclare(c.prog->blocks.v[0], &own);
  }
  for (int i = 0; ok && i < c.prog->blocks.v[0]->ops.n; i++)
    try_attrs(&c, c.prog->blocks.v[0]->ops.v[i]);
  for (int i = 0; ok && i < c.n_fed; i++) try_all(&c, c.fed[i]);
  for (int i = 0; ok && i < g.n_in; i++) try_all(&c, g.in[i]);
  err_clear();
  opcase_free(&c);
}

static void test_misfits(void **state) {
  (void)state;
  for (int i = 0; i < opdef_n(); i++) {
    const OpDef *def = opdef_at(i);
    for (int k = 0; opcase_chosen(def) && k < example_count(def); k++)
      for (int grad = 0; grad <= (def->grad != NULL); grad++) one(def, k, grad);
  }
  print_message("%d programs, %d accepted\n", n_tried, n_accepted);
  assert_true(n_tried > 200000 || getenv("KILN_TEST_OP"));
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test_setup(test_misfits, clear_error)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
