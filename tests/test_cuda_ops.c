/* Every operator and gradient on a GPU: each example of the operator table through the CUDA backend, compared with the plain
 * interpreter; then programs whose shapes are large enough for every form of kernel: vectors, teams of threads, transposes
 * through shared memory, tiles of matrix products in each arithmetic, split sums, long sorts and scatters. The driver is that
 * of tests/cudasim, found in the library path: this program starts itself again with it. */
#include "device_case.h"
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

/* ---- the operator table ---- */

/* What examples alone do not run, and what does. */
static const struct {
  uint32_t flag;
  const char *why;
} elsewhere[] = {
    {OF_GRAD, "gradients, run with their operators"},
    {OF_IO, "feed and fetch, in every program"},
    {OF_HOST, "control flow, which the executor runs: most in test_fixtures, on the device too"},
    {OF_LOD, "sequences, which examples cannot feed: most in test_fixtures, on the device too"},
    {OF_CUSTOM, "custom operators, C functions: test_cuda"},
};
enum { N_ELSEWHERE = sizeof elsewhere / sizeof *elsewhere };

static int where_else(const OpDef *def) {
  int i = 0;
  while (i < N_ELSEWHERE && !(def->flags & elsewhere[i].flag)) i++;
  return i;
}

static void test_operators(void **state) {
  (void)state;
  int left[N_ELSEWHERE + 1] = {0}, plain = 0;
  Executor *exec[2];
  device_cases = device_bad = 0;
  device_pair(exec, (ExecOptions){0});
  for (int i = 0; i < opdef_n(); i++) {
    const OpDef *def = opdef_at(i);
    if (!opcase_chosen(def)) continue;
    left[where_else(def)]++;
    if (where_else(def) < N_ELSEWHERE) continue;
    plain += example_count(def) == 0;
    device_examples(def, exec);
  }
  device_pair_free(exec);
  printf("%d examples on the device and interpreted, %d differ\n", device_cases, device_bad);
  for (int i = 0; i < N_ELSEWHERE; i++)
    printf("%4d operators not by examples: %s\n", left[i], elsewhere[i].why);
  printf("%4d operators by examples, %d of them without any\n", left[N_ELSEWHERE], plain);
  assert_int_equal(device_bad, 0);
  assert_int_equal(plain, 0);
}

/* ---- larger shapes ---- */

typedef struct Larger {
  const char *op, *text, *math;
  DType real;
  double tolerance;
} Larger;
static const Larger large[] = {
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
    /* copied spans that grow most where an index starts again */
    {"matmul_v2", "X=42x6x3 Y=42x6x8 trans_x=true", NULL, DT_FLOAT32, 0},
    {"matmul_v2", "X=64x64 Y=64x64", "tf32", DT_FLOAT32, 2e-3},
    {"matmul_v2", "X=65x70 Y=70x67", "tf32", DT_FLOAT32, 2e-3},
    {"matmul_v2", "X=72x48 Y=72x68 trans_x=true", "tf32", DT_FLOAT32, 2e-3},
    {"matmul_v2", "X=64x64 Y=64x64", "bf16", DT_FLOAT32, 2e-2},
    {"matmul_v2", "X=65x70 Y=70x67", "bf16", DT_FLOAT32, 2e-2},
    {"matmul_v2", "X=72x48 Y=72x68 trans_x=true", "bf16", DT_FLOAT32, 2e-2},
    {"matmul_v2", "X=1000x16 Y=16x700", NULL, DT_FLOAT32, 0},
    {"matmul_v2", "X=1000x16 Y=16x700", "tf32", DT_FLOAT32, 2e-3},
    /* vectors by matrices: teams */
    {"cumprod", "X=7x96 dim=0", NULL, DT_FLOAT32, 0},
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
    {"conv2d", "Input=2x3x20x21 Filter=24x3x7x7 paddings=[3,3] strides=[2,2]", "tf32", DT_FLOAT32,
     2e-3},
    {"conv2d", "Input=2x3x20x21 Filter=24x3x7x7 paddings=[3,3] strides=[2,2]", "bf16", DT_FLOAT32,
     2e-2},
    {"conv2d", "Input=2x3x10x11 Filter=16x3x3x3 paddings=[1,1]", NULL, DT_FLOAT32, 0},
    {"conv2d", "Input=2x3x10x11 Filter=16x3x3x3 paddings=[1,1]", NULL, DT_FLOAT64, 0},
    {"conv2d", "Input=2x6x12x12 Filter=16x6x5x5", NULL, DT_FLOAT32, 0},
    /* strides with dilation: classes of results that have all taps, every third, or none */
    {"conv2d", "Input=2x12x16x13 Filter=19x12x5x5 paddings=[4,4] strides=[2,2] dilations=[2,2]",
     NULL, DT_FLOAT32, 0},
    {"conv2d", "Input=1x10x12x16 Filter=18x10x4x3 paddings=[3,2] strides=[3,2] dilations=[2,4]",
     NULL, DT_FLOAT64, 0},
    /* lines cut at sectors: sums over several runs, split, dilated, strided, of 4 and 16 bytes */
    {"conv2d", "Input=2x20x12x12 Filter=50x20x5x5", NULL, DT_FLOAT32, 0},
    {"conv2d", "Input=1x37x7x9 Filter=19x37x3x3 paddings=[1,1]", NULL, DT_FLOAT32, 0},
    {"conv2d", "Input=2x25x9x7 Filter=30x25x3x3 paddings=[2,2] dilations=[2,2]", NULL, DT_FLOAT32,
     0},
    {"conv2d", "Input=1x45x11x12 Filter=64x45x3x3 paddings=[1,1] strides=[2,2]", "tf32", DT_FLOAT32,
     4e-3},
    {"conv2d", "Input=1x100x6x7 Filter=35x100x3x3", "bf16", DT_FLOAT32, 4e-2},
    {"depthwise_conv2d", "Input=2x40x9x10 Filter=40x1x3x3 paddings=[1,1] groups=40", NULL,
     DT_FLOAT32, 0},
    /* several filters of each channel: boxes of points and of sums */
    {"conv2d", "Input=2x12x19x11 Filter=48x1x3x3 paddings=[2,2] dilations=[2,2] groups=12", NULL,
     DT_FLOAT32, 0},
    {"conv2d", "Input=2x17x10x11 Filter=51x1x5x5 paddings=[2,2] strides=[2,2] groups=17", NULL,
     DT_FLOAT64, 0},
    /* their filters' gradients: chunks of a sum within others */
    {"conv2d", "Input=3x17x12x9 Filter=17x1x5x5 paddings=[2,2] groups=17", NULL, DT_FLOAT32, 0},
    {"conv2d", "Input=4x5x18x20 Filter=10x1x3x3 paddings=[2,2] dilations=[2,2] groups=5", NULL,
     DT_FLOAT32, 0},
    /* several groups in a block: whole pixels, parts of them, sectors that blocks share, classes of results, split sums */
    {"conv2d", "Input=2x12x14x14 Filter=12x3x3x3 paddings=[1,1] groups=4", NULL, DT_FLOAT32, 0},
    {"conv2d", "Input=1x112x9x8 Filter=112x14x3x3 paddings=[1,1] groups=8", NULL, DT_FLOAT32, 0},
    {"conv2d", "Input=1x100x9x8 Filter=100x10x3x3 paddings=[1,1] groups=10", NULL, DT_FLOAT32, 0},
    {"conv2d", "Input=3x30x11x9 Filter=30x5x3x2 paddings=[1,0] strides=[2,1] groups=6", NULL,
     DT_FLOAT32, 0},
    {"conv2d", "Input=1x80x10x9 Filter=80x10x3x3 paddings=[2,2] dilations=[2,2] groups=8", NULL,
     DT_FLOAT32, 0},
    {"conv2d", "Input=2x24x9x11 Filter=24x6x3x3 paddings=[1,1] groups=4", "tf32", DT_FLOAT32, 2e-3},
    {"conv2d_transpose", "Input=2x20x9x11 Filter=20x5x4x4 strides=[2,2] paddings=[1,1] groups=4",
     NULL, DT_FLOAT32, 0},
    {"conv3d", "Input=1x12x5x7x6 Filter=20x3x3x3x3 paddings=[1,1,1] groups=4", NULL, DT_FLOAT32, 0},
    /* ... copied by fours, on tensor cores, taps with holes, chunks of a sum, more columns than 32 */
    {"conv2d", "Input=3x32x11x9 Filter=24x4x3x3 paddings=[1,1] groups=8", NULL, DT_FLOAT32, 0},
    {"conv2d", "Input=1x80x11x9 Filter=80x20x3x3 paddings=[1,1] groups=4", "tf32", DT_FLOAT32,
     4e-3},
    {"conv2d", "Input=1x112x10x9 Filter=112x28x3x3 groups=4", NULL, DT_FLOAT32, 0},
    {"conv2d", "Input=2x40x13x9 Filter=24x10x5x5 paddings=[4,4] dilations=[2,2] groups=4", NULL,
     DT_FLOAT32, 0},
    {"conv2d", "Input=1x72x7x9 Filter=72x36x3x3 paddings=[1,1] groups=2", NULL, DT_FLOAT32, 0},
    {"conv2d", "Input=2x40x11x9 Filter=40x20x1x1 strides=[2,2] groups=2", NULL, DT_FLOAT32, 0},
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
    {"reduce_sum", "X=4x33x9x9 dim=[0,2,3]", NULL, DT_FLOAT32, 0},
    {"reduce_max", "X=37x196 dim=[1]", NULL, DT_FLOAT32, 0},
    {"reduce_sum", "X=20x77 dim=[1]", NULL, DT_FLOAT64, 0},
    {"arg_max", "X=40x701 axis=1", NULL, DT_FLOAT32, 0},
    {"softmax", "X=33x500", NULL, DT_FLOAT32, 0},
    {"softmax", "X=400x50 axis=0", NULL, DT_FLOAT32, 0},
    {"layer_norm", "X=20x768 Scale=768 Bias=768", NULL, DT_FLOAT32, 0},
    {"batch_norm", "X=8x33x9x9 Scale=33 Bias=33 Mean=33 Variance=33", NULL, DT_FLOAT32, 1e-4},
    {"arg_max", "X=40x700 axis=1", NULL, DT_FLOAT32, 0},
    {"arg_max", "X=700x40 axis=0", NULL, DT_FLOAT64, 0},
    /* blocks that are boxes: pieces, results that begin anywhere, chunks of sums, views of merged axes, last elements */
    {"reduce_sum", "X=4x17x9x9 dim=[0,3]", NULL, DT_FLOAT32, 0},
    {"reduce_max", "X=28x9x15x4 dim=[0,1,3]", NULL, DT_FLOAT64, 0},
    {"reduce_sum", "X=31x257 dim=[0]", NULL, DT_FLOAT32, 0},
    {"reduce_mean", "X=2x5x1001 dim=[1]", NULL, DT_FLOAT32, 0},
    {"transpose2", "X=8x7x31 axis=[0,2,1]", NULL, DT_FLOAT32, 0},
    {"transpose2", "X=5x6x7x9 axis=[3,2,1,0]", NULL, DT_FLOAT64, 0},
    {"transpose2", "X=3x4x17x25 axis=[0,2,1,3]", NULL, DT_FLOAT32, 0},
    {"split", "X=61x7x27 Out=*3 num=3 axis=2", NULL, DT_FLOAT32, 0},
    {"layer_norm", "X=26x301 Scale=301 Bias=301", NULL, DT_FLOAT32, 0},
    {"channel_shuffle", "X=3x8x9x9 groups=4", NULL, DT_FLOAT32, 0},
    {"pool2d", "X=2x5x9x15 ksize=[3,3] strides=[3,3] pooling_type='max'", NULL, DT_FLOAT32, 0},
    {"pool2d", "X=2x7x14x10 ksize=[2,2] strides=[2,2] pooling_type='max'", NULL, DT_FLOAT64, 0},
    {"pool3d", "X=2x3x6x12x10 ksize=[2,2,2] strides=[2,2,2] pooling_type='max'", NULL, DT_FLOAT32,
     0},
    {"instance_norm", "X=4x17x9x9 Scale=17 Bias=17", NULL, DT_FLOAT32, 0},
    {"instance_norm", "X=2x3x33x33 Scale=3 Bias=3", NULL, DT_FLOAT32, 0},
    /* halves: products, rows that are no multiples of a vector, vectors of four */
    {"matmul_v2", "X=64x64 Y=64x64", NULL, DT_FLOAT16, 0},
    {"matmul_v2", "X=65x70 Y=70x67", NULL, DT_BFLOAT16, 1e-2},
    {"matmul_v2", "X=33x65 Y=63x33 trans_x=true trans_y=true", NULL, DT_FLOAT16, 0},
    {"conv2d", "Input=2x15x9x11 Filter=13x15x3x3 paddings=[1,1]", NULL, DT_FLOAT16, 0},
    {"conv2d", "Input=2x3x20x20 Filter=10x3x5x5", NULL, DT_BFLOAT16, 4e-2},
    {"conv2d", "Input=1x37x7x9 Filter=19x37x3x3 paddings=[1,1]", NULL, DT_FLOAT16, 1e-2},
    {"conv2d", "Input=1x37x7x9 Filter=19x37x3x3 paddings=[1,1]", NULL, DT_FLOAT64, 0},
    {"softmax", "X=1x13", NULL, DT_BFLOAT16, 1e-2},
    {"softmax", "X=20x64", NULL, DT_FLOAT16, 0},
    {"elementwise_add", "X=16x64 Y=64", NULL, DT_BFLOAT16, 1e-2},
    {"transpose2", "X=3x40x50 axis=[0,2,1]", NULL, DT_FLOAT16, 0},
    {"reduce_sum", "X=37x100 dim=[1]", NULL, DT_FLOAT16, 0},
    {"batch_norm", "X=4x8x9x9 Scale=8 Bias=8 Mean=8 Variance=8", NULL, DT_FLOAT16, 2e-2},
    {"batch_norm", "X=74x67 Scale=67 Bias=67 Mean=67 Variance=67", NULL, DT_FLOAT32, 1e-4},
    {"batch_norm", "X=300x7 Scale=7 Bias=7 Mean=7 Variance=7", NULL, DT_FLOAT64, 0},
    {"arg_max", "X=77x50 axis=0", NULL, DT_FLOAT32, 0},
    /* no elements */
    {"transpose2", "X=0x33x40 axis=[0,2,1]", NULL, DT_FLOAT32, 0},
    {"conv2d", "Input=0x12x9x9 Filter=12x3x3x3 groups=4", NULL, DT_FLOAT32, 0},
    {"multiplex", "X=0x33,0x33 Ids=0x2:int32:0..1", NULL, DT_FLOAT32, 0},
    {"shuffle_channel", "X=1x0x1x3 group=3", NULL, DT_FLOAT32, 0},
    {"logcumsumexp", "X=0x4", NULL, DT_FLOAT32, 0},
    /* scatters of gradients: an index for each row, of each item or of all, or for each element */
    {"gather", "X=100x50 Index=37:int32:0..99", NULL, DT_FLOAT32, 0},
    {"index_select", "X=5x50x7 Index=13:int32:0..49 dim=1", NULL, DT_FLOAT64, 0},
    {"take_along_axis", "Input=9x33x4 Index=9x5x1:int64:0..2 Axis=1", NULL, DT_FLOAT32, 0},
    {"take_along_axis", "Input=9x33x4 Index=1x5x4:int64:0..2 Axis=1", NULL, DT_FLOAT32, 0},
    /* tables of indices, which are copied with what they point to */
    {"bilinear_interp_v2", "X=2x5x15x17 out_h=31 out_w=40", NULL, DT_FLOAT32, 0},
    {"nearest_interp_v2", "X=2x5x15x17 out_h=31 out_w=9", NULL, DT_FLOAT64, 0},
    {"bicubic_interp_v2", "X=2x3x16x11 out_h=32 out_w=33", NULL, DT_FLOAT32, 0},
    {"pool2d", "X=2x5x23x30 ksize=[7,7] pooling_type='avg' adaptive=true", NULL, DT_FLOAT32, 0},
    /* order: several merges; rows of several classes */
    {"argsort", "X=3x1500", NULL, DT_FLOAT32, 0},
    {"argsort", "X=2x1023", NULL, DT_BFLOAT16, 1e-2}, /* blocks write halves of one word */
    {"argsort", "X=2x700 descending=true", NULL, DT_FLOAT64, 0},
    {"argsort", "nograd X=3x5000:int64:0..9", NULL, DT_FLOAT32, 0}, /* ties */
};

/* What runs in another way on architectures other than sm_80: parts of sums, room in shared memory. */
static const Larger on_75[] =
    {
        {"conv2d", "Input=1x440x13x7 Filter=110x20x5x5 strides=[2,3] paddings=[2,2] groups=22",
         NULL, DT_FLOAT32, 0},
        {"conv2d", "Input=1x7x20x12 Filter=13x7x6x7 paddings=[2,1]", NULL, DT_FLOAT32, 0},
        {"conv2d", "Input=1x25x14x12 Filter=7x25x7x6 paddings=[2,3] dilations=[2,1]", NULL,
         DT_FLOAT32, 0},
        {"conv2d_transpose", "Input=1x33x4x14 Filter=33x30x3x1 paddings=[0,2] dilations=[4,1]",
         NULL, DT_FLOAT64, 0},
        {"matmul_v2", "X=65x70 Y=70x67", NULL, DT_FLOAT16, 0},
        {0},
},
                    on_86[] = {
                        {"conv2d",
                         "Input=1x29x14x14 Filter=33x29x3x3 paddings=[2,2] dilations=[4,4]", NULL,
                         DT_FLOAT64, 0},
                        {"conv2d", "Input=1x20x14x12 Filter=33x20x7x3 strides=[1,2] paddings=[3,3]",
                         NULL, DT_FLOAT64, 0},
                        {0},
};

/* How many of them differ. */
static int run_larger(const void *programs) {
  Executor *exec[2];
  device_bad = 0;
  device_pair(exec, (ExecOptions){0});
  for (const Larger *l = programs; l->op; l++) {
    OpCase c;
    bool ok = opcase_text(&c, opdef_find(l->op), l->text, 17, l->real);
    device_case(&c, ok, l->tolerance, exec);
  }
  device_pair_free(exec);
  return device_bad;
}

static void test_architectures(void **state) {
  (void)state;
  assert_int_equal(in_process((const char *[]){"CUDASIM_SM=75", NULL}, run_larger, on_75), 0);
  assert_int_equal(in_process((const char *[]){"CUDASIM_SM=86", NULL}, run_larger, on_86), 0);
}

static void test_large(void **state) {
  (void)state;
  static const char *const maths[] = {NULL, "tf32", "bf16"};
  device_cases = device_bad = 0;
  for (int m = 0; m < 3; m++) {
    Executor *exec[2];
    device_pair(exec, (ExecOptions){.math = maths[m]});
    for (size_t i = 0; i < sizeof large / sizeof *large; i++) {
      const OpDef *def = opdef_find(large[i].op);
      OpCase c;
      if (!opcase_chosen(def) ||
          strcmp(large[i].math ? large[i].math : "", maths[m] ? maths[m] : ""))
        continue;
      for (int t = 0; t < (strstr(large[i].text, "Filter=") ? 2 : 1); t++) {
        layout_always = t;
        bool ok = opcase_text(&c, def, large[i].text, 17 + i, large[i].real);
        device_case(&c, ok, large[i].tolerance, exec);
      }
      layout_always = false;
    }
    device_pair_free(exec);
  }
  printf("%d larger programs, %d differ\n", device_cases, device_bad);
  assert_int_equal(device_bad, 0);
}

/* More operands than a kernel may have. */
static void test_many_parts(void **state) {
  (void)state;
  enum { PARTS = 300 };
  char text[8 * PARTS] = "X=2x3";
  Executor *exec[2];
  OpCase c;
  for (int i = 1; i < PARTS; i++) strcat(text, ",2x3");
  strcat(text, " axis=1");
  device_bad = 0;
  device_pair(exec, (ExecOptions){0});
  bool ok = opcase_text(&c, opdef_find("concat"), text, 17, DT_FLOAT32);
  device_case(&c, ok, 0, exec);
  device_pair_free(exec);
  assert_int_equal(device_bad, 0);
}

/* Sums and maxima with their places of functions of one matrix, which are one kernel: more than go through shared memory at once. */
static void many_sums(int rows, int columns, int axis, Executor *exec[2]) {
  static const char *const of[] = {"square", "abs", "exp", "sin", "tanh", "relu", "cos"};
  enum { N = 3 * sizeof of / sizeof *of };
  char vars[4096] = "", ops[8192] = "", text[16384], name[N][8];
  const char *names[N];
  int n = 0;
  for (size_t i = 0; i < sizeof of / sizeof *of; i++) {
    sprintf(vars + strlen(vars), "  var t%zu float64\n", i);
    sprintf(ops + strlen(ops), "  t%zu = %s(X=x)\n", i, of[i]);
    for (int k = 0; k < 3; k++, n++) {
      static const char *const kind[] = {"reduce_sum", "arg_max", "arg_min"};
      sprintf(name[n], "y%d", n);
      names[n] = name[n];
      sprintf(vars + strlen(vars), "  var y%d\n", n);
      sprintf(ops + strlen(ops),
              k ? "  y%d = %s(X=t%zu) {axis=%dL}\n" : "  y%d = %s(X=t%zu) {dim=[%d]}\n", n, kind[k],
              i, axis);
    }
  }
  sprintf(text, "program version 2006002\nblock 0 {\n  var x float64 [%d, %d] feed\n%s%s}\n", rows,
          columns, vars, ops);
  Program *p = prog_parse(text, strlen(text), "sums.kl");
  assert_true(p && infer_program(p, true));
  Tensor x = {.dtype = DT_FLOAT64, .rank = 2, .dims = {rows, columns}};
  uint64_t seed = 3;
  double *data = x.data = mem_alloc(sizeof *data * (size_t)(rows * columns));
  for (int i = 0; i < rows * columns; i++) data[i] = test_random(&seed, -1, 1);
  device_program("sums", p, 1, &(Feed){"x", &x}, n, names, exec, 0);
  mem_free(x.data);
  prog_free(p);
}

static void test_many_sums(void **state) {
  (void)state;
  Executor *exec[2];
  device_bad = 0;
  device_pair(exec, (ExecOptions){0});
  many_sums(40, 1001, 0, exec);
  many_sums(60, 31, 0, exec);
  many_sums(97, 45, 1, exec);
  many_sums(9, 700, 1, exec);
  device_pair_free(exec);
  assert_int_equal(device_bad, 0);
}

int main(int argc, char **argv) {
  (void)argc;
  if (!simulator(argv)) return 1;
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_architectures), /* before this process opens the driver */
      cmocka_unit_test(test_operators),     cmocka_unit_test(test_large),
      cmocka_unit_test(test_many_parts),    cmocka_unit_test(test_many_sums),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
