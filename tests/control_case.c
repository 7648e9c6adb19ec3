/* See control_case.h. */
#include "control_case.h"
#include <math.h>
#include <setjmp.h>
#include <string.h>
#include <cmocka.h>

void open_case(ControlCase *c, const char *text, const ExecOptions *o) {
  *c = (ControlCase){.p = prog_parse(text, strlen(text), "case.kl")};
  if (!c->p || !prog_verify(c->p)) {
    err_print(stderr, false);
    fail();
  }
  for (int k = 0; k < 2; k++) {
    ExecOptions mine = o ? *o : (ExecOptions){.threads = 2};
    mine.interpret = k;
    c->e[k] = exec_new(&mine);
    c->s[k] = scope_new();
  }
}

void close_case(ControlCase *c) {
  for (int k = 0; k < 2; k++) {
    exec_free(c->e[k]);
    scope_free(c->s[k]);
  }
  prog_free(c->p);
}

static Tensor vector(double *data, int64_t n) {
  return (Tensor){.dtype = DT_FLOAT64, .rank = 1, .dims = {n}, .data = data};
}

bool run_case(ControlCase *c, int k, int n, double *x, const char *fetch, Tensor *out) {
  Tensor t = vector(x, n);
  *out = (Tensor){0};
  return exec_run(c->e[k], c->s[k], c->p, x ? 1 : 0, (Feed[]){{"x", &t}}, 1, &fetch, out);
}

void expect_case(ControlCase *c, int n, double *x, const char *fetch, int n_want,
                 const double *want) {
  for (int k = 0; k < 2; k++) {
    Tensor out;
    if (!run_case(c, k, n, x, fetch, &out)) {
      err_print(stderr, false);
      fail();
    }
    assert_int_equal(tensor_numel(&out), n_want);
    for (int i = 0; i < n_want; i++)
      if (!(fabs(tensor_get(&out, i) - want[i]) <= 1e-12 * fmax(1, fabs(want[i]))))
        fail_msg("%s[%d] is %.17g, not %.17g", fetch, i, tensor_get(&out, i), want[i]);
    mem_free(out.data);
  }
}

void expect_failure(const char *text, const ExecOptions *o, double *x, const char *fetch,
                    ErrCode code, const char *part) {
  ControlCase c;
  open_case(&c, text, o);
  for (int k = 0; k < 2; k++) {
    Tensor out;
    assert_false(run_case(&c, k, 2, x, fetch, &out));
    expect_error(code, part);
  }
  close_case(&c);
}
