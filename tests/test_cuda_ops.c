/* Every operator and gradient on a GPU: each example of the operator table through the CUDA backend, compared with the plain
 * interpreter; then programs whose shapes are large enough for every form of kernel: vectors, teams of threads, transposes
 * through shared memory, tiles of matrix products in each arithmetic, split sums, long sorts and scatters. The driver is that
 * of tests/cudasim, found in the library path: this program starts itself again with it. */
#include "opcase.h"
#include "simulator.h"
#include "../executor/executor.h"
#include "../passes/passes.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static int n_cases, n_bad;

static void complain(const char *what, const char *fmt, ...) {
  va_list v;
  fprintf(stderr, "%s: ", what);
  va_start(v, fmt);
  vfprintf(stderr, fmt, v);
  va_end(v);
  fputc('\n', stderr);
  if (err_any()) err_print(stderr, false);
  err_clear();
  n_bad++;
}

static void compare(const char *what, const char *name, const Tensor *a, const Tensor *b,
                    double tolerance) {
  char why[256];
  if (!tensor_close(a, b, tolerance, why, sizeof why))
    complain(what, "on the device against interpreted: %s: %s", name, why);
}

/* The program on both executors. */
static void run_both(const char *what, Program *p, int n_feeds, const Feed *feeds, int n,
                     const char *const *names, Executor *exec[2], double tolerance) {
  Tensor out[2][64];
  bool ok[2];
  memset(out, 0, sizeof out);
  for (int t = 0; t < 2; t++) {
    Scope *scope = scope_new();
    ok[t] = exec_run(exec[t], scope, p, n_feeds, feeds, n, names, out[t]);
    if (!ok[t]) complain(what, t ? "interpreted run" : "run on the device");
    scope_free(scope);
  }
  for (int i = 0; i < n && ok[0] && ok[1]; i++)
    compare(what, names[i], &out[0][i], &out[1][i],
            tolerance ? tolerance : tolerance_of_type(out[1][i].dtype));
  for (int t = 0; t < 2; t++)
    for (int i = 0; i < n; i++) mem_free(out[t][i].data);
  n_cases++;
}

static void exec_pair(Executor *exec[2], const char *math) {
  exec[0] = exec_new(&(ExecOptions){.seed = 5, .device = "cuda", .math = math});
  exec[1] = exec_new(&(ExecOptions){.seed = 5, .interpret = true});
  if (!exec[0]) complain("device", "cannot be opened");
  assert_non_null(exec[0]);
}

static void free_pair(Executor *exec[2]) {
  for (int t = 0; t < 2; t++) exec_free(exec[t]);
}

/* ---- the operator table ---- */

/* The operator of a case and its gradients. */
static void run_case(OpCase *made, bool ok, double tolerance, Executor *exec[2]) {
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
  run_both(what, c.prog, n_feeds, feeds, n, names, exec, tolerance);
  opcase_free(&c);
}

static void test_operators(void **state) {
  (void)state;
  Executor *exec[2];
  n_cases = n_bad = 0;
  exec_pair(exec, NULL);
  for (int i = 0; i < opdef_n(); i++) {
    const OpDef *def = opdef_at(i);
    if (!opcase_chosen(def) || (def->flags & (OF_IO | OF_GRAD | OF_CUSTOM | OF_HOST | OF_LOD)))
      continue;
    for (int k = 0; k < example_count(def); k++)
      for (int t = 0; t < 2; t++) {
        layout_always = t; /* the channel last in float64 */
        OpCase c;
        bool ok = opcase_make(&c, def, k, t ? DT_FLOAT64 : DT_FLOAT32);
        run_case(&c, ok, 0, exec);
      }
  }
  layout_always = false;
  free_pair(exec);
  printf("%d examples on the device and interpreted, %d differ\n", n_cases, n_bad);
  assert_int_equal(n_bad, 0);
}

/* ---- larger shapes ---- */

static const struct {
  const char *op, *text, *math;
  DType real;
  double tolerance;
} large[] = {
    /* products: tiles with and without remainders, rows of K or across, copies of 16 and 4 bytes */
    {"matmul_v2", "X=64x64 Y=64x64", NULL, DT_FLOAT32, 0},
    {"matmul_v2", "X=65x70 Y=70x67", NULL, DT_FLOAT32, 0},
    {"matmul_v2", "X=72x48 Y=72x68 trans_x=true", NULL, DT_FLOAT32, 0},
    {"matmul_v2", "X=36x72 Y=44x72 trans_y=true", NULL, DT_FLOAT32, 0},
    {"matmul_v2", "X=72x36 Y=44x72 trans_x=true trans_y=true", NULL, DT_FLOAT32, 0},
    {"matmul_v2", "X=3x40x48 Y=3x48x36", NULL, DT_FLOAT32, 0},
    {"matmul_v2", "X=40x48 Y=48x36", NULL, DT_FLOAT64, 0},
    {"matmul_v2", "X=33x47 Y=47x35", NULL, DT_FLOAT64, 0},
    {"matmul_v2", "X=16x1030 Y=1030x16", NULL, DT_FLOAT32, 0},
    {"matmul_v2", "X=64x64 Y=64x64", "tf32", DT_FLOAT32, 2e-3},
    {"matmul_v2", "X=65x70 Y=70x67", "tf32", DT_FLOAT32, 2e-3},
    {"matmul_v2", "X=72x48 Y=72x68 trans_x=true", "tf32", DT_FLOAT32, 2e-3},
    {"matmul_v2", "X=64x64 Y=64x64", "bf16", DT_FLOAT32, 2e-2},
    {"matmul_v2", "X=65x70 Y=70x67", "bf16", DT_FLOAT32, 2e-2},
    {"matmul_v2", "X=72x48 Y=72x68 trans_x=true", "bf16", DT_FLOAT32, 2e-2},
    {"matmul_v2", "X=1000x16 Y=16x700", NULL, DT_FLOAT32, 0},
    {"matmul_v2", "X=1000x16 Y=16x700", "tf32", DT_FLOAT32, 2e-3},
    /* vectors by matrices: teams */
    {"matmul_v2", "X=1x300 Y=300x77", NULL, DT_FLOAT32, 0},
    {"matmul_v2", "X=2x300 Y=77x300 trans_y=true", NULL, DT_FLOAT32, 0},
    /* convolutions: all three passes */
    {"conv2d", "Input=2x16x9x10 Filter=24x16x3x3 paddings=[1,1]", NULL, DT_FLOAT32, 0},
    {"conv2d", "Input=2x16x9x11 Filter=24x16x3x3 paddings=[1,1] strides=[2,2]", NULL, DT_FLOAT32,
     0},
    {"conv2d", "Input=2x3x20x21 Filter=16x3x7x7 paddings=[3,3] strides=[2,2]", NULL, DT_FLOAT32, 0},
    {"conv2d", "Input=2x16x9x10 Filter=24x16x3x3 paddings=[1,1]", "tf32", DT_FLOAT32, 2e-3},
    {"conv2d", "Input=2x16x9x11 Filter=24x16x3x3 paddings=[1,1] strides=[2,2]", "bf16", DT_FLOAT32,
     2e-2},
    {"conv2d", "Input=2x16x9x11 Filter=24x16x1x1 strides=[2,2]", NULL, DT_FLOAT32, 0},
    {"conv2d", "Input=2x16x12x13 Filter=24x16x4x5 paddings=[1,2] strides=[2,3]", NULL, DT_FLOAT32,
     0},
    {"conv2d", "Input=2x32x8x8 Filter=32x16x3x3 groups=2 paddings=[1]", NULL, DT_FLOAT32, 0},
    {"conv2d", "Input=2x9x10x16 Filter=24x16x3x3 paddings=[2,2] dilations=[2,2] data_format='NHWC'",
     NULL, DT_FLOAT64, 0},
    {"depthwise_conv2d", "Input=2x40x9x10 Filter=40x1x3x3 paddings=[1,1] groups=40", NULL,
     DT_FLOAT32, 0},
    /* maps: vectors, broadcasts, transposes */
    {"elementwise_add", "X=64x1024 Y=1024", NULL, DT_FLOAT32, 0},
    {"elementwise_mul", "X=40x1000 Y=40x1000", NULL, DT_FLOAT32, 0},
    {"transpose2", "X=70x130 axis=[1,0]", NULL, DT_FLOAT32, 0},
    {"transpose2", "X=3x40x50 axis=[0,2,1]", NULL, DT_FLOAT64, 0},
    {"transpose2", "X=2x33x9x10 axis=[0,2,3,1]", NULL, DT_FLOAT32, 0},
    /* reductions: lanes of rows and columns, several sweeps */
    {"reduce_sum", "X=37x1000 dim=[1]", NULL, DT_FLOAT32, 0},
    {"reduce_sum", "X=1000x37 dim=[0]", NULL, DT_FLOAT32, 0},
    {"reduce_max", "X=5x70x60 dim=[0,2]", NULL, DT_FLOAT64, 0},
    {"reduce_mean", "X=300x257 reduce_all=true", NULL, DT_FLOAT32, 0},
    {"softmax", "X=33x500", NULL, DT_FLOAT32, 0},
    {"softmax", "X=400x50 axis=0", NULL, DT_FLOAT32, 0},
    {"layer_norm", "X=20x768 Scale=768 Bias=768", NULL, DT_FLOAT32, 0},
    {"batch_norm", "X=8x33x9x9 Scale=33 Bias=33 Mean=33 Variance=33", NULL, DT_FLOAT32, 1e-4},
    {"arg_max", "X=40x700 axis=1", NULL, DT_FLOAT32, 0},
    {"arg_max", "X=700x40 axis=0", NULL, DT_FLOAT64, 0},
    /* order: several merges; rows of several classes */
    {"argsort", "X=3x1500", NULL, DT_FLOAT32, 0},
    {"argsort", "X=2x700 descending=true", NULL, DT_FLOAT64, 0},
};

static void test_large(void **state) {
  (void)state;
  static const char *const maths[] = {NULL, "tf32", "bf16"};
  n_cases = n_bad = 0;
  for (int m = 0; m < 3; m++) {
    Executor *exec[2];
    exec_pair(exec, maths[m]);
    for (size_t i = 0; i < sizeof large / sizeof *large; i++) {
      const OpDef *def = opdef_find(large[i].op);
      OpCase c;
      if (!opcase_chosen(def) ||
          strcmp(large[i].math ? large[i].math : "", maths[m] ? maths[m] : ""))
        continue;
      bool ok = opcase_text(&c, def, large[i].text, 17 + i, large[i].real);
      run_case(&c, ok, large[i].tolerance, exec);
    }
    free_pair(exec);
  }
  printf("%d larger programs, %d differ\n", n_cases, n_bad);
  assert_int_equal(n_bad, 0);
}

int main(int argc, char **argv) {
  (void)argc;
  if (!simulator(argv)) return 1;
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_operators),
      cmocka_unit_test(test_large),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
