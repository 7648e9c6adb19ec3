/* Cases of operators on a device and interpreted. */
#include "device_case.h"
#include "../passes/passes.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

int device_cases, device_bad, device_calls, device_contractions;
bool device_only_contractions;

static void complain(const char *what, const char *fmt, ...) {
  va_list v;
  fprintf(stderr, "%s: ", what);
  va_start(v, fmt);
  vfprintf(stderr, fmt, v);
  va_end(v);
  fputc('\n', stderr);
  if (err_any()) err_print(stderr, false);
  err_clear();
  device_bad++;
}

static void compare(const char *what, const char *name, const Tensor *a, const Tensor *b,
                    double tolerance) {
  char why[256];
  if (!tensor_close(a, b, tolerance, why, sizeof why))
    complain(what, "on the device against interpreted: %s: %s", name, why);
}

/* Contractions among the kernels of the program. */
static int contractions(Program *p, int n_feeds, const Feed *feeds, int n,
                        const char *const *names) {
  CompileRequest r = {.prog = p,
                      .n_feeds = n_feeds,
                      .feeds = feeds,
                      .n_fetch = n,
                      .fetch = names,
                      .target = "cuda:sm_80",
                      .no_code = true};
  Executable *x = compile(&r);
  const Graph *g = x ? executable_graph(x) : NULL;
  int found = 0;
  for (int i = 0; g && i < g->kernels.n; i++) found += g->kernels.v[i]->kind == K_CONTRACT;
  executable_free(x);
  err_clear();
  return found;
}

void device_program(const char *what, Program *p, int n_feeds, const Feed *feeds, int n,
                    const char *const *names, Executor *exec[2], double tolerance) {
  Tensor out[2][64];
  bool ok[2];
  int found = device_only_contractions ? contractions(p, n_feeds, feeds, n, names) : 0;
  device_contractions += found;
  if (device_only_contractions && !found) return;
  memset(out, 0, sizeof out);
  for (int t = 0; t < 2; t++) {
    Scope *scope = scope_new();
    ok[t] = exec_run(exec[t], scope, p, n_feeds, feeds, n, names, out[t]);
    if (!ok[t]) complain(what, t ? "interpreted run" : "run on the device");
    if (!t) device_calls += exec_last_plan(exec[0]).calls;
    scope_free(scope);
  }
  for (int i = 0; i < n && ok[0] && ok[1]; i++)
    compare(what, names[i], &out[0][i], &out[1][i],
            tolerance ? tolerance : tolerance_of_type(out[1][i].dtype));
  for (int t = 0; t < 2; t++)
    for (int i = 0; i < n; i++) mem_free(out[t][i].data);
  device_cases++;
}

void device_pair(Executor *exec[2], ExecOptions o) {
  o.seed = 5;
  o.device = "cuda";
  exec[0] = exec_new(&o);
  exec[1] = exec_new(&(ExecOptions){.seed = 5, .interpret = true});
  if (!exec[0]) complain("device", "cannot be opened");
  assert_non_null(exec[0]);
}

void device_pair_free(Executor *exec[2]) {
  for (int t = 0; t < 2; t++) exec_free(exec[t]);
}

/* The operator of a case and its gradients. */
void device_case(OpCase *made, bool ok, double tolerance, Executor *exec[2]) {
  OpCase c = *made;
  const OpDef *def = c.def;
  DType real = c.real;
  OpGrads g = {0};
  const char *names[64];
  int n = 0, n_feeds;
  char what[512];
  if (!ok || !infer_program(c.prog, true)) {
    complain(def->name, "cannot be built");
    opcase_free(&c);
    return;
  }
  snprintf(what, sizeof what, "%s %s %s", def->name, dtype_info[real].name, c.text ? c.text : "?");
  const Block *b = c.prog->blocks.v[0];
  for (int s = 0; s < c.op->outs.n; s++)
    for (int i = 0; i < c.op->outs.v[s].n && n < 32; i++)
      if (block_var(b, c.op->outs.v[s].args[i])->dtype != DT_NONE)
        names[n++] = c.op->outs.v[s].args[i];
  if (def->grad && !c.nograd && (!opcase_grads(&c, &g) || !infer_program(c.prog, true)))
    complain(what, "the gradient operator");
  for (int i = 0; i < g.n_out && n < 64; i++) names[n++] = g.out[i];
  Feed *feeds = opcase_feeds(&c, &g, &n_feeds);
  device_program(what, c.prog, n_feeds, feeds, n, names, exec, tolerance);
  opcase_free(&c);
}

void device_examples(const OpDef *def, Executor *exec[2]) {
  for (int k = 0; k < example_count(def); k++)
    for (int t = 0; t < 2; t++) {
      layout_always = t;
      OpCase c;
      bool ok = opcase_make(&c, def, k, t ? DT_FLOAT64 : DT_FLOAT32);
      device_case(&c, ok, 0, exec);
    }
  layout_always = 0;
}
