/* How kernels use memory, counted by the simulator of the CUDA driver: the sectors of 32 bytes that the requests of warps touch, and
 * conflicts of the banks of shared memory. Sectors are held against two figures (tests/cudasim/traffic.c): `strict`, the least that
 * so many bytes fill, and `least`, what is possible where the bytes lie, for rows that are not multiples of a sector. Each case
 * is a process of its own, whose report holds a line for each kernel. KILN_TEST_SHOW=1 prints them. */
#include "opcase.h"
#include "simulator.h"
#include "util.h"
#include "../passes/passes.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

/* Passes over the banks that conflicts may cost, of all, outside of products: neighbours of rows that are copied lie anywhere. */
static const double CLASHES = 0.6;
static const double TRANSPOSE = 1.25; /* strictly, of kernels without arithmetic */
static bool outer;     /* among the kernels are products of one term, or sums that are copied */
static bool inference; /* filters are parameters, there are no gradients */
static DType real = DT_FLOAT32;
static const char *architecture = "80";

typedef struct Case {
  const char *op, *text, *math;
  double limit;  /* sectors over the least */
  double strict; /* over the strict figure; 0: the same */
} Case;

static const Case cases[] = {
    /* maps */
    {"elementwise_add", "X=64x1024 Y=1024", NULL, 1.05, 0},
    {"elementwise_mul", "X=256x1000 Y=256x1000", NULL, 1.05, 0},
    {"relu", "X=512x512", NULL, 1.05, 0},
    {"gelu", "X=33x500", NULL, 1.05, 0},
    /* transposes */
    {"transpose2", "X=128x256 axis=[1,0]", NULL, 1.25, 0},
    {"transpose2", "X=4x64x12x12 axis=[0,2,3,1]", NULL, 1.25, 0},
    {"transpose2", "X=70x130 axis=[1,0]", NULL, 1.25, 0},
    {"transpose2", "X=3x40x50 axis=[0,2,1]", NULL, 1.25, 0},
    {"transpose2", "X=2x33x9x10 axis=[0,2,3,1]", NULL, 1.25, 0},
    {"transpose2", "X=8x12x16x64 axis=[0,2,1,3]", NULL, 1.25, 0},
    {"transpose2", "X=2x3x32x32 axis=[0,2,3,1]", NULL, 1.05, 0},
    {"transpose2", "X=2x4x30x30 axis=[0,2,3,1]", NULL, 1.25, 0},
    {"transpose2", "X=3x5x33x35 axis=[0,2,3,1]", NULL, 1.25, 0},
    {"transpose2", "X=2x32x32x3 axis=[0,3,1,2]", NULL, 1.05, 0},
    /* reductions */
    {"reduce_sum", "X=64x1024 dim=[1]", NULL, 1.05, 0},
    {"reduce_sum", "X=37x1000 dim=[1]", NULL, 1.05, 0},
    {"reduce_sum", "X=1000x64 dim=[0]", NULL, 1.05, 0},
    {"reduce_mean", "X=300x257 reduce_all=true", NULL, 1.05, 0},
    {"reduce_sum", "X=64x257 dim=[1]", NULL, 1.05, 0},
    {"reduce_max", "X=64x1001 dim=[1]", NULL, 1.05, 0},
    {"reduce_sum", "X=8x33x14x14 dim=[0,2,3]", NULL, 1.05, 0},
    {"reduce_sum", "X=8x33x9x9 dim=[0,2,3]", NULL, 1.05, 1.07},
    {"arg_max", "X=40x701 axis=1", NULL, 1.05, 0},
    {"softmax", "X=64x131", NULL, 1.05, 0},
    {"softmax", "X=64x512", NULL, 1.05, 0},
    {"softmax", "X=33x500", NULL, 1.05, 0},
    {"layer_norm", "X=32x768 Scale=768 Bias=768", NULL, 1.05, 0},
    {"batch_norm", "X=8x33x9x9 Scale=33 Bias=33 Mean=33 Variance=33", NULL, 1.05, 1.07},
    {"batch_norm", "X=8x64x8x8 Scale=64 Bias=64 Mean=64 Variance=64", NULL, 1.05, 0},
    /* pooling */
    {"pool2d", "X=2x16x16x16 ksize=[2,2] strides=[2,2] pooling_type='max'", NULL, 1.05, 0},
    /* products */
    {"matmul_v2", "X=64x64 Y=64x64", NULL, 1.05, 0},
    {"matmul_v2", "X=128x256 Y=256x96", NULL, 1.05, 0},
    {"matmul_v2", "X=256x128 Y=256x128 trans_x=true", NULL, 1.05, 0},
    {"matmul_v2", "X=128x64 Y=128x64 trans_y=true", NULL, 1.05, 0},
    {"matmul_v2", "X=64x128 Y=64x64 trans_x=true trans_y=true", NULL, 1.05, 0},
    {"matmul_v2", "X=65x70 Y=70x67", NULL, 1.05, 1.22},
    {"matmul_v2", "X=100x200 Y=200x50", NULL, 1.05, 1.07},
    {"matmul_v2", "X=65x70 Y=70x67", "tf32", 1.05, 1.22},
    {"matmul_v2", "X=65x70 Y=70x67", "bf16", 1.05, 1.22},
    {"matmul_v2", "X=4x64x64 Y=4x64x64", "tf32", 1.05, 0},
    {"matmul_v2", "X=256x128 Y=256x128 trans_x=true", "tf32", 1.05, 0},
    {"matmul_v2", "X=128x64 Y=128x64 trans_y=true", "bf16", 1.05, 0},
    {"matmul_v2", "X=256x128 Y=256x128 trans_x=true", "bf16", 1.05, 0},
    {"matmul_v2", "X=65x70 Y=67x70 trans_y=true", NULL, 1.05, 1.22},
    {"matmul_v2", "X=100x300 Y=300x36", NULL, 1.05, 1.18},
    {"matmul_v2", "X=3x17x31 Y=3x31x45", NULL, 1.05, 1.22},
    {"matmul_v2", "X=64x10 Y=84x10 trans_y=true", NULL, 1.05, 1.1},
    /* convolutions, all passes */
    {"conv2d", "Input=2x16x16x16 Filter=32x16x3x3 paddings=[1,1]", NULL, 1.05, 0},
    {"conv2d", "Input=2x32x14x14 Filter=64x32x1x1", NULL, 1.05, 0},
    {"conv2d", "Input=2x64x7x7 Filter=64x64x3x3 paddings=[1,1]", NULL, 1.05, 0},
    {"conv2d", "Input=2x16x16x16 Filter=32x16x3x3 paddings=[1,1]", "tf32", 1.05, 0},
    {"conv2d", "Input=2x32x14x14 Filter=64x32x1x1", "bf16", 1.05, 0},
    {"conv2d", "Input=2x16x16x16 Filter=32x16x3x3 paddings=[1,1] strides=[2,2]", NULL, 1.25, 0},
    {"conv2d", "Input=2x32x15x15 Filter=64x32x3x3 paddings=[1,1] strides=[2,2]", NULL, 1.25, 0},
    {"conv2d", "Input=2x16x16x16 Filter=32x16x3x3 paddings=[1,1] strides=[2,2]", "tf32", 1.25, 0},
    {"conv2d", "Input=2x16x16x16 Filter=32x16x3x3 paddings=[1,1] strides=[2,2]", "bf16", 1.25, 0},
    {"conv2d", "Input=2x16x12x12 Filter=16x16x4x4 paddings=[1,1] strides=[3,3]", NULL, 1.25, 0},
    {"conv2d", "Input=1x32x16x16 Filter=64x16x3x3 paddings=[1,1] groups=2", NULL, 1.05, 0},
    {"conv2d", "Input=1x16x16x16 Filter=32x16x3x3 paddings=[2,2] dilations=[2,2]", NULL, 1.05, 0},
    {"conv2d_transpose", "Input=2x16x8x8 Filter=16x32x4x4 strides=[2,2] paddings=[1,1]", NULL, 1.05,
     0},
};

/* Shapes that fit nothing: odd widths, channels and rows, batches of 1 and 3. Limits are what they reach. */
static const Case odd[] = {
    {"elementwise_add", "X=37x131 Y=131", NULL, 1.05, 0},
    {"relu", "X=3x33x13x13", NULL, 1.05, 0},
    {"softmax", "X=65x67", NULL, 1.05, 0},
    {"softmax", "X=3x5x17x17", NULL, 1.05, 0},
    {"log_softmax", "X=33x77", NULL, 1.05, 0},
    {"layer_norm", "X=33x67 Scale=67 Bias=67", NULL, 1.05, 0},
    {"layer_norm", "X=3x7x96 Scale=96 Bias=96 begin_norm_axis=2", NULL, 1.05, 0},
    {"reduce_sum", "X=67x33 dim=[0]", NULL, 1.05, 0},
    {"reduce_mean", "X=3x17x13x13 dim=[2,3]", NULL, 1.05, 0},
    {"transpose2", "X=1x3x15x15 axis=[0,2,3,1]", NULL, 1.25, 0},
    {"pool2d", "X=2x16x16x16 ksize=[3,3] strides=[2,2] paddings=[1,1] pooling_type='max'", NULL,
     1.05, 0},
    {"pool2d", "X=2x8x15x15 ksize=[2,2] strides=[2,2] pooling_type='max'", NULL, 1.05, 0},
    {"pool2d", "X=2x6x13x29 ksize=[3,3] strides=[1,1] paddings=[1,1] pooling_type='avg'", NULL,
     1.05, 0},
    {"pool2d", "X=2x6x27x17 ksize=[5,5] strides=[3,3] paddings=[2,2] pooling_type='max'", NULL,
     1.05, 0},
    {"reduce_mean", "X=4x17x9x9 dim=[0,2]", NULL, 1.05, 0},
    {"reduce_mean", "X=5x7x9x11 dim=[1,3]", NULL, 1.05, 0},
    {"reduce_mean", "X=6x50x31 dim=[2]", NULL, 1.05, 0},
    {"concat", "X=40x3x5,40x7x5,40x2x5 axis=1", NULL, 1.05, 0},
    {"transpose2", "X=30x16x16 axis=[0,2,1]", NULL, 1.05, 0},
    {"conv2d", "Input=3x18x13x13 Filter=36x18x1x1", NULL, 1.1, 1.18}, /* the filter's transpose */
    {"conv2d", "Input=2x23x5x21 Filter=27x23x3x3 paddings=[1,1] strides=[3,3]", NULL, 1.06, 1.25},
    {"conv2d", "Input=1x17x15x15 Filter=33x17x3x3 paddings=[1,1]", NULL, 1.05, 0},
    {"lookup_table_v2", "W=100x50 Ids=3x33:int64:0..99", NULL, 1.11, 1.25},
    /* gradients: the index of a row is read once for all of it */
    {"scatter", "X=129x31 Ids=100:int32:0..4 Updates=100x31", NULL, 1.13, 1.25},
    {"lookup_table_v2", "W=300x64 Ids=40:int64:0..299", NULL, 1.05, 0},
    /* blocks that are boxes: sums over axes that do not join, few rows, short axes */
    {"reduce_sum", "X=4x17x9x9 dim=[0,3]", NULL, 1.05, 0},
    {"reduce_mean", "X=6x50x31 dim=[0,2]", NULL, 1.05, 0},
    {"reduce_sum", "X=31x257 dim=[0]", NULL, 1.05, 0},
    {"reduce_mean", "X=28x9x15x4 dim=[0,1,3]", NULL, 1.05, 0},
    {"reduce_sum", "X=8x576x20 dim=[1]", NULL, 1.05, 0}, /* a filter's bias, the channels last */
    {"reduce_max", "X=3x700x10 dim=[1]", NULL, 1.05, 0},
    {"reduce_sum", "X=2x4x1001 dim=[1]", NULL, 1.05, 0},
    {"layer_norm", "X=5x5001 Scale=5001 Bias=5001", NULL, 1.05, 0},
    {"layer_norm", "X=33x7001 Scale=7001 Bias=7001", NULL, 1.05, 0},
    {"layer_norm", "X=26x300 Scale=300 Bias=300", NULL, 1.05, 0},
    {"transpose2", "X=8x7x31 axis=[0,2,1]", NULL, 1.05, 0},
    {"transpose2", "X=1x4x17x25 axis=[0,2,1,3]", NULL, 1.05, 0},
    {"transpose2", "X=96x17x5 axis=[1,0,2]", NULL, 1.05, 0},
    {"split", "X=64x7x27 Out=*3 num=3 axis=2", NULL, 1.05, 0},
    {"channel_shuffle", "X=2x8x9x9 groups=4", NULL, 1.05, 0},
    {"pool2d", "X=2x16x32x32 ksize=[3,3] strides=[2,2] pooling_type='avg'", NULL, 1.05, 0},
    /* windows side by side, whose gradients are stored beside one another's */
    {"pool2d", "X=2x16x28x28 ksize=[2,2] strides=[2,2] pooling_type='max'", NULL, 1.05, 0},
    {"pool2d", "X=2x16x30x30 ksize=[3,3] strides=[3,3] pooling_type='max'", NULL, 1.05, 0},
    {"pool2d", "X=2x7x14x10 ksize=[2,2] strides=[2,2] pooling_type='max'", NULL, 1.05, 0},
    {"pool2d", "X=2x16x31x31 ksize=[2,2] strides=[3,3] pooling_type='max'", NULL, 1.05, 0},
    {"pool3d", "X=2x3x6x12x10 ksize=[2,2,2] strides=[2,2,2] pooling_type='max'", NULL, 1.05, 0},
    /* tables of indices, as of resizing, and their gradients */
    {"nearest_interp_v2", "X=2x8x15x17 out_h=31 out_w=40", NULL, 1.05, 0},
    {"bilinear_interp_v2", "X=2x8x15x17 out_h=31 out_w=40", NULL, 1.05, 0},
    {"bilinear_interp_v2", "X=2x8x32x32 out_h=16 out_w=16", NULL, 1.05, 0},
    {"bilinear_interp_v2", "X=2x8x16x24 out_h=32 out_w=32 data_layout='NHWC'", NULL, 1.05, 0},
    {"bilinear_interp_v2", "X=2x8x15x15 out_h=30 out_w=30", NULL, 1.05, 0},
    {"bilinear_interp_v2", "X=2x6x23x6 out_h=20 out_w=46", NULL, 1.05, 0},
    {"pool2d", "X=2x8x13x13 ksize=[6,6] pooling_type='max' adaptive=true", NULL, 1.05, 0},
    /* sums with results at every point, of columns, of few channels, over axes that do not join, of few or many points */
    {"reduce_min", "X=52x8x3x6 dim=[1,3]", NULL, 1.05, 0},
    {"logsumexp", "X=4x38x31x2 axis=[0,2]", NULL, 1.05, 0},
    {"elementwise_mul", "X=7x7x14x3 Y=7x1x1x3", NULL, 1.05, 0},
    {"frobenius_norm", "X=3x8x38x5 dim=[0,3]", NULL, 1.05, 0},
    {"reduce_prod", "X=2x22x4x10 dim=[2]", NULL, 1.05, 0},
    {"p_norm", "X=20x49x7 axis=1 porder=3.0", NULL, 1.05, 0},
    {"norm", "X=53x57x7 axis=1", NULL, 1.05, 0},
    {"softmax", "X=2x47x48x7 axis=2", NULL, 1.05, 0},
    {"softmax", "X=39x7x6x13 axis=2", NULL, 1.05, 0},
    {"log_softmax", "X=5x6x5x47 axis=2", NULL, 1.05, 0},
    {"logcumsumexp", "X=67x18 axis=0", NULL, 1.05, 0},
    {"lrn", "X=2x4x6x127", NULL, 1.05, 0},
    {"group_norm", "X=96x6x1x5 Scale=6 Bias=6 groups=3", NULL, 1.05, 0},
    {"group_norm", "X=8x50x6x3 Scale=50 Bias=50 groups=1", NULL, 1.05, 0},
    {"group_norm", "X=69x7x24x1 Scale=7 Bias=7 groups=1", NULL, 1.05, 0},
    {"layer_norm", "X=5x35x57 Scale=1995 Bias=1995", NULL, 1.05, 0},
    {"batch_norm", "X=60x7x5 Scale=7 Bias=7 Mean=7 Variance=7", NULL, 1.05, 0},
    {"batch_norm", "X=15x513 Scale=513 Bias=513 Mean=513 Variance=513", NULL, 1.05, 1.09},
    {"batch_norm", "X=3x1001 Scale=1001 Bias=1001 Mean=1001 Variance=1001", NULL, 1.05, 0},
    {"batch_norm", "X=2x9x40x5 Scale=5 Bias=5 Mean=5 Variance=5 data_layout='NHWC'", NULL, 1.05, 0},
    {"fake_quantize_abs_max", "X=37x53", NULL, 1.05, 0},
    /* results of rows, of which a block has a few */
    {"cumsum", "X=37x101 axis=1", NULL, 1.05, 0},
    {"cumprod", "X=20x17x9 dim=1", NULL, 1.05, 0},
    {"logcumsumexp", "X=37x101 axis=1", NULL, 1.05, 0},
    {"pool2d", "X=2x6x25x25 ksize=[6,6] strides=[1,1] pooling_type='max'", NULL, 1.05, 0},
    /* sums over images and pixels of which rows begin anywhere */
    {"instance_norm", "X=2x8x57x57 Scale=8 Bias=8", NULL, 1.05, 0},
    {"instance_norm", "X=4x17x9x9 Scale=17 Bias=17", NULL, 1.05, 0},
    {"instance_norm", "X=4x17x13x13 Scale=17 Bias=17", NULL, 1.05, 0},
};

/* First layers, with the channel last as networks have them. Products alone: there are no gradients of images in networks, which
 * would be permuted. */
static const Case first_layers[] = {
    {"conv2d", "Input=2x3x32x32 Filter=64x3x7x7 paddings=[3,3] strides=[2,2]", NULL, 1.05, 0},
    {"conv2d", "Input=2x3x32x32 Filter=64x3x7x7 paddings=[3,3] strides=[2,2]", "tf32", 1.05, 0},
    {"conv2d", "Input=2x3x32x32 Filter=64x3x7x7 paddings=[3,3] strides=[2,2]", "bf16", 1.05, 0},
    {"conv2d", "Input=2x3x32x32 Filter=64x3x3x3 paddings=[1,1]", NULL, 1.05, 0},
    {"conv2d", "Input=2x3x32x32 Filter=32x3x3x3 paddings=[1,1] strides=[2,2]", NULL, 1.05, 1.06},
    {"conv2d", "Input=2x1x28x28 Filter=6x1x5x5", NULL, 1.12, 1.14},
    {"conv2d", "Input=3x17x15x15 Filter=33x17x3x3 paddings=[1,1]", NULL, 1.05, 0},
    {"conv2d", "Input=3x20x14x14 Filter=24x20x3x3 paddings=[1,1] strides=[2,2]", NULL, 1.05, 1.07},
};

/* Shapes from all over, odd in every dimension: all passes of convolutions, products with each transposition. Strictly rows that start
 * anywhere are asked for more. */
#define SWEPT(op, text, math)                                                                      \
  { op, text, math, 1.05, 1.25 }
static const Case moves[] = {
    /* permutations whose axes begin and end anywhere, some of extent 1 */
    SWEPT("transpose2", "X=38x55x1x5x1 axis=[4,3,1,2,0]", NULL),
    SWEPT("transpose2", "X=33x1x5x4x18 axis=[3,0,4,1,2]", NULL),
    SWEPT("transpose2", "X=1x10x1x100x2 axis=[0,3,2,1,4]", NULL),
    SWEPT("transpose2", "X=59x5x1x6x59 axis=[3,2,0,4,1]", NULL),
    SWEPT("transpose2", "X=9x1001x2 axis=[2,0,1]", NULL),
    SWEPT("transpose2", "X=1001x9x2 axis=[2,1,0]", NULL),
    SWEPT("transpose2", "X=112x7x3x5 axis=[3,1,0,2]", NULL),
    SWEPT("pixel_shuffle", "X=2x4x20x19 upscale_factor=2", NULL),
    SWEPT("space_to_depth", "X=2x1x16x10 blocksize=2", NULL),
    /* the same places read forwards, backwards or again */
    SWEPT("roll", "X=16x26x42 shifts=[1,2] axis=[1,2]", NULL),
    SWEPT("roll", "X=2x60x142 shifts=[1,2] axis=[1,2]", NULL),
    SWEPT("roll", "X=1000x7 shifts=[3] axis=[0]", NULL),
    SWEPT("pad2d", "X=2x3x20x17 paddings=[2,1,2,3] mode='reflect'", NULL),
    SWEPT("pad2d", "X=2x5x24x13 paddings=[2,2,0,0] mode='reflect'", NULL),
    SWEPT("pool2d", "X=2x6x25x25 ksize=[5,5] strides=[5,5] pooling_type='max'", NULL),
    /* rows that a block sorts, and takes elements of by index */
    SWEPT("argsort", "X=20x300 axis=1", NULL),
    SWEPT("argsort", "X=7x1000 axis=1", NULL),
    SWEPT("argsort", "X=64x100 axis=1", NULL),
    SWEPT("argsort", "X=5x2000 axis=1", NULL),
    SWEPT("argsort", "X=2x1025 axis=1", NULL),
    {"top_k_v2", "X=36x26 k=13", NULL, 1.08, 1.25},
};

static const Case products[] = {
    SWEPT("matmul_v2", "X=64x10 Y=10x84", NULL),
    SWEPT("matmul_v2", "X=65x17 Y=17x63", NULL),
    SWEPT("matmul_v2", "X=17x129 Y=129x65", NULL),
    SWEPT("matmul_v2", "X=63x31 Y=31x100", "tf32"),
    SWEPT("matmul_v2", "X=33x63 Y=63x10", NULL),
    SWEPT("matmul_v2", "X=31x1000 Y=1000x17", NULL),
    SWEPT("matmul_v2", "X=129x100 Y=100x129", NULL),
    SWEPT("matmul_v2", "X=7x65 Y=65x1000", NULL),
    SWEPT("matmul_v2", "X=33x65 Y=33x63 trans_x=true", NULL),
    SWEPT("matmul_v2", "X=65x33 Y=63x33 trans_y=true", "tf32"),
    SWEPT("matmul_v2", "X=33x65 Y=63x33 trans_x=true trans_y=true", "bf16"),
    SWEPT("matmul_v2", "X=129x100 Y=129x31 trans_x=true", NULL),
    SWEPT("matmul_v2", "X=10x129 Y=7x129 trans_y=true", NULL),
    SWEPT("matmul_v2", "X=33x7 Y=7x65", NULL),
    /* a few columns more than a tile has: the last of a row and the first of the next one are in one sector */
    SWEPT("matmul_v2", "X=148x16 Y=16x33", NULL),
    SWEPT("matmul_v2", "X=300x3 Y=3x67", "tf32"),
    SWEPT("conv2d", "Input=2x2x7x19 Filter=33x2x2x2 paddings=[1,1]", NULL),
    SWEPT("conv2d", "Input=1x1x22x21 Filter=36x1x3x3", NULL),
};

/* Few rows, columns or results, in batches or alone. */
static const Case thin[] = {
    SWEPT("matmul_v2", "X=5x256 Y=256x3", NULL),
    SWEPT("matmul_v2", "X=512x4 Y=7x512 trans_x=true trans_y=true", "bf16"),
    SWEPT("matmul_v2", "X=6x4x768 Y=6x768x7", NULL),
    SWEPT("matmul_v2", "X=4x5x768 Y=4x768x128", NULL),
    SWEPT("matmul_v2", "X=6x100x7 Y=6x100x7 trans_x=true", NULL),
    SWEPT("matmul_v2", "X=13x300 Y=127x300 trans_y=true", NULL),
    SWEPT("matmul_v2", "X=300x129 Y=8x129 trans_y=true", NULL),
    SWEPT("conv2d", "Input=2x24x13x14 Filter=1x24x3x3 paddings=[1,1]", NULL),
    SWEPT("conv2d", "Input=1x6x14x8 Filter=10x3x3x3 paddings=[1,1] groups=2", NULL),
};

static const Case vectors[] = {
    SWEPT("matmul_v2", "X=1x1000 Y=1000x513", NULL),
    SWEPT("matmul_v2", "X=50x768 Y=768x1", NULL),
    SWEPT("matmul_v2", "X=129x1 Y=129x129 trans_x=true trans_y=true", NULL),
    SWEPT("matmul_v2", "X=5x300x99 Y=5x99x1", "tf32"),
    SWEPT("matmul_v2", "X=2x1x256 Y=2x256x129", NULL),
    SWEPT("matmul_v2", "X=5x500x5 Y=5x500x1 trans_x=true", NULL),
    {"matmul_v2", "X=30x5x5 Y=30x5x5", NULL, 1.05, 0},
    {"einsum", "Operands=4x3x5x5,4x5x3x8 equation='bhij,bjhd->bihd'", NULL, 1.05, 0},
};

static const Case convolutions[] = {
    SWEPT("conv2d", "Input=1x1x17x19 Filter=24x1x3x3 paddings=[1,1]", NULL),
    SWEPT("conv2d", "Input=1x2x17x19 Filter=24x2x3x3 paddings=[1,1]", NULL),
    SWEPT("conv2d", "Input=2x3x20x20 Filter=10x3x5x5", NULL),
    SWEPT("conv2d", "Input=1x5x17x19 Filter=24x5x3x3 paddings=[1,1]", "tf32"),
    SWEPT("conv2d", "Input=1x9x15x17 Filter=10x9x3x3 paddings=[1,1]", "bf16"),
    SWEPT("conv2d", "Input=3x15x9x11 Filter=13x15x3x3 paddings=[1,1]", NULL),
    SWEPT("conv2d", "Input=1x19x21x23 Filter=21x19x1x1", NULL),
    SWEPT("conv2d", "Input=1x30x14x14 Filter=30x30x3x3 paddings=[1,1]", NULL),
    SWEPT("conv2d", "Input=1x33x13x13 Filter=33x33x3x3 paddings=[1,1]", NULL),
    SWEPT("conv2d", "Input=1x24x12x14 Filter=33x24x3x3", NULL),
    SWEPT("conv2d", "Input=2x10x14x13 Filter=12x10x5x5 paddings=[2,2]", NULL),
    SWEPT("conv2d", "Input=2x13x17x17 Filter=17x13x1x1 strides=[2,2]", NULL),
    SWEPT("conv2d", "Input=1x17x19x19 Filter=20x17x3x3 paddings=[1,1] strides=[2,2]", NULL),
    SWEPT("conv2d", "Input=1x20x15x15 Filter=30x20x3x3 paddings=[1,1] dilations=[2,2]", NULL),
    SWEPT("conv2d", "Input=1x3x33x33 Filter=8x3x3x3 paddings=[1,1]", NULL),
    SWEPT("conv2d", "Input=1x16x13x13 Filter=7x16x3x3 paddings=[1,1]", NULL),
};

/* Sums too long for a panel or divided into parts, groups of few channels, strides and dilations together. */
static const Case long_sums[] = {
    SWEPT("conv2d", "Input=2x20x12x12 Filter=50x20x5x5", NULL),
    SWEPT("conv2d", "Input=2x17x22x7 Filter=55x17x5x5", "tf32"),
    SWEPT("conv2d", "Input=1x100x7x7 Filter=50x100x3x3 paddings=[1,1]", NULL),
    SWEPT("conv2d", "Input=1x11x15x15 Filter=16x11x11x11 paddings=[5,5]", NULL),
    SWEPT("conv2d", "Input=4x30x7x11 Filter=53x30x3x3 paddings=[1,1]", "bf16"),
    SWEPT("conv2d", "Input=3x25x19x4 Filter=50x25x3x3 paddings=[2,2] dilations=[2,2]", NULL),
    {"conv2d", "Input=3x37x19x16 Filter=65x37x2x2 strides=[3,3]", "bf16", 1.05, 1.37},
    SWEPT("conv2d", "Input=4x25x21x12 Filter=27x25x3x3 paddings=[1,1] strides=[2,2]", NULL),
    SWEPT("conv2d", "Input=1x14x12x12 Filter=18x14x7x7 paddings=[3,3]", NULL),
    SWEPT("conv2d", "Input=2x14x14x14 Filter=20x14x7x7 paddings=[6,6] dilations=[2,2]", NULL),
    SWEPT("conv2d", "Input=2x7x14x14 Filter=24x7x7x7 paddings=[6,6] dilations=[2,2]", NULL),
    SWEPT("conv2d", "Input=2x30x9x18 Filter=13x30x6x6 paddings=[5,5] dilations=[2,2]", "tf32"),
    SWEPT("conv2d", "Input=1x39x6x14 Filter=7x39x7x7 paddings=[3,3]", NULL),
    SWEPT("conv2d", "Input=1x19x21x14 Filter=12x19x6x6 paddings=[5,5] dilations=[2,2]", "bf16"),
    SWEPT("conv2d", "Input=1x35x17x9 Filter=18x35x5x5 paddings=[2,2]", NULL),
    SWEPT("conv2d", "Input=1x32x16x10 Filter=12x32x7x7 strides=[3,3]", NULL),
    {"conv2d", "Input=3x19x10x18 Filter=5x19x5x5 paddings=[4,4] strides=[2,2] dilations=[2,2]",
     NULL, 1.05, 1.4},
    {"conv2d", "Input=2x13x19x17 Filter=20x13x3x3 paddings=[2,2] strides=[3,3] dilations=[2,2]",
     NULL, 1.12, 1.3},
    {"conv2d", "Input=1x40x13x11 Filter=24x20x3x3 paddings=[1,1] groups=2", NULL, 1.05, 1.31},
    {"conv2d", "Input=3x37x10x9 Filter=9x37x3x3 paddings=[2,2] strides=[2,2] dilations=[2,2]", NULL,
     1.05, 1.31},
    {"conv2d", "Input=2x12x16x13 Filter=19x12x5x5 paddings=[4,4] strides=[2,2] dilations=[2,2]",
     NULL, 1.05, 1.34},
    /* taps with holes that positions a stride apart fill, or that are small; classes without taps */
    {"conv2d", "Input=1x2x17x19 Filter=24x2x3x3 paddings=[2,2] strides=[2,2] dilations=[2,2]", NULL,
     1.05, 3.1},
    {"conv2d", "Input=3x7x15x14 Filter=3x7x4x4 paddings=[3,3] strides=[3,3] dilations=[2,2]",
     "bf16", 1.05, 1.6},
    SWEPT("conv2d", "Input=2x7x19x24 Filter=20x7x5x5 strides=[3,3] dilations=[2,2]", NULL),
    SWEPT("conv2d", "Input=3x4x17x14 Filter=40x4x3x3 paddings=[2,2] strides=[3,3] dilations=[2,2]",
          NULL),
    {"conv2d", "Input=2x1x19x13 Filter=37x1x3x3 strides=[2,2] dilations=[3,3]", NULL, 1.08, 1.25},
    {"conv2d", "Input=2x6x16x16 Filter=33x6x5x5 strides=[3,3] dilations=[3,3]", "tf32", 1.05, 2.2},
    {"conv2d", "Input=3x2x23x12 Filter=13x2x3x3 paddings=[2,2] strides=[3,3] dilations=[3,3]", NULL,
     1.05, 4.1},
    SWEPT("conv2d", "Input=1x1x30x30 Filter=6x1x9x9", NULL),
    SWEPT("conv2d", "Input=2x1x13x14 Filter=8x1x7x7", NULL),
};

/* Groups of few channels, whose sectors they share: blocks have several groups, of whole sectors, of whole pixels, or one, as in most
 * filters' gradients. Strictly: with those, and forward alone. */
#define GROUPED(text, math, strict)                                                                \
  { "conv2d", text, math, 1.05, strict }
static const struct {
  Case all;
  double forward;
} grouped[] = {
    {GROUPED("Input=2x12x14x14 Filter=12x3x3x3 paddings=[1,1] groups=4", NULL, 1.05), 1.05},
    {GROUPED("Input=1x40x14x14 Filter=40x5x3x3 paddings=[1,1] groups=8", NULL, 2.26), 1.05},
    {GROUPED("Input=1x20x9x11 Filter=40x5x3x3 paddings=[1,1] groups=4", NULL, 1.69), 1.05},
    {GROUPED("Input=1x24x13x12 Filter=48x6x3x3 paddings=[1,1] groups=4", NULL, 1.77), 1.05},
    {GROUPED("Input=1x100x9x14 Filter=100x10x3x3 paddings=[1,1] groups=10", NULL, 1.36), 1.36},
    {GROUPED("Input=1x56x14x14 Filter=56x14x3x3 paddings=[1,1] groups=4", NULL, 1.42), 1.05},
    {GROUPED("Input=1x80x10x9 Filter=80x10x3x3 paddings=[2,2] dilations=[2,2] groups=8", NULL, 1.3),
     1.05},
    {GROUPED("Input=1x24x14x14 Filter=48x6x3x3 paddings=[1,1] strides=[2,2] groups=4", NULL, 1.73),
     1.05},
    {GROUPED("Input=1x80x14x14 Filter=80x10x3x3 paddings=[1,1] strides=[2,2] groups=8", NULL, 1.32),
     1.05},
    {GROUPED("Input=2x36x9x8 Filter=36x18x1x1 groups=2", NULL, 1.12), 1.07},
    {GROUPED("Input=1x30x15x15 Filter=60x10x3x3 paddings=[1,1] strides=[2,2] groups=3", NULL, 1.38),
     1.25},
    {GROUPED("Input=1x112x9x10 Filter=112x7x3x3 paddings=[1,1] strides=[2,2] groups=16", NULL, 1.9),
     1.25},
    {GROUPED("Input=1x40x14x14 Filter=40x5x3x3 paddings=[1,1] groups=8", "tf32", 2.26), 1.05},
    /* copied by fours; taps with holes, chunks of a sum */
    {GROUPED("Input=1x32x14x14 Filter=32x4x3x3 paddings=[1,1] groups=8", NULL, 1.05), 1.05},
    {GROUPED("Input=1x80x14x14 Filter=80x20x3x3 paddings=[1,1] groups=4", NULL, 1.22), 1.05},
    {GROUPED("Input=1x112x10x14 Filter=112x28x3x3 paddings=[1,1] groups=4", NULL, 1.16), 1.05},
    {GROUPED("Input=1x80x14x14 Filter=80x10x5x5 paddings=[4,4] dilations=[2,2] groups=8", NULL,
             1.35),
     1.05},
    {GROUPED("Input=1x80x14x14 Filter=80x20x3x3 paddings=[1,1] groups=4", "tf32", 1.05), 1.05},
};
static const Case grouped_types[] = {
    GROUPED("Input=1x80x14x14 Filter=80x20x3x3 paddings=[1,1] groups=4", NULL, 1.38),
    GROUPED("Input=1x40x14x14 Filter=40x5x3x3 paddings=[1,1] groups=8", NULL, 3.56),
    GROUPED("Input=1x32x14x14 Filter=32x4x3x3 paddings=[1,1] groups=8", NULL, 1.05),
};

/* In other types and where there is no cp.async: lines and panels through registers, results of other sizes. */
#define HALF(op, text, math)                                                                       \
  { op, text, math, 1.05, 1.45 }
static const Case typed[] = {
    HALF("matmul_v2", "X=65x70 Y=70x67", NULL),
    HALF("matmul_v2", "X=33x65 Y=63x33 trans_x=true trans_y=true", NULL),
    HALF("matmul_v2", "X=129x100 Y=129x31 trans_x=true", NULL),
    HALF("matmul_v2", "X=3x17x31 Y=3x31x45", NULL),
    HALF("matmul_v2", "X=64x64 Y=64x64", NULL),
    HALF("matmul_v2", "X=13x300 Y=127x300 trans_y=true", NULL),
    HALF("conv2d", "Input=2x17x15x15 Filter=33x17x3x3 paddings=[1,1]", NULL),
    HALF("conv2d", "Input=2x3x20x20 Filter=10x3x5x5", NULL),
    {"conv2d", "Input=1x100x7x7 Filter=50x100x3x3", NULL, 1.09, 1.3},
    HALF("conv2d", "Input=2x3x11x7 Filter=4x3x3x3 paddings=[1,1]", NULL),
    HALF("conv2d", "Input=2x3x16x8 Filter=3x3x7x7", NULL),
};
static const Case doubles[] = {
    HALF("conv2d", "Input=2x17x15x15 Filter=33x17x3x3 paddings=[1,1]", NULL),
    HALF("conv2d", "Input=2x3x20x20 Filter=10x3x5x5", NULL),
    HALF("conv2d", "Input=2x7x6x16 Filter=14x7x3x3 paddings=[1,1]", NULL),
    HALF("conv2d", "Input=3x1x13x17 Filter=27x1x3x3 strides=[2,2]", NULL),
    HALF("conv2d", "Input=2x5x12x17 Filter=19x5x3x3 strides=[2,2]", NULL),
    HALF("conv2d", "Input=2x8x14x11 Filter=3x8x1x1", NULL),
    HALF("matmul_v2", "X=129x31 Y=129x33 trans_x=true", NULL),
};
/* Three stages, where a step's copies end in the memory of the next one: runs that end within steps. */
static const Case three_stages[] = {
    HALF("conv2d", "Input=3x28x12x7 Filter=40x28x3x3 strides=[2,2] dilations=[2,2]", NULL),
    {"conv2d", "Input=2x31x9x13 Filter=17x31x3x3 paddings=[1,1] strides=[2,2] dilations=[2,2]",
     NULL, 1.05, 1.55},
    HALF("conv2d", "Input=3x15x5x11 Filter=32x15x3x3 paddings=[1,1] dilations=[2,2]", NULL),
};
static const struct {
  DType type;
  const char *architecture;
  int n; /* of them; converting transposes of bfloat16 count as products */
  const Case *cases;
} types[] = {{DT_FLOAT16, "80", 11, typed},        {DT_BFLOAT16, "90", 6, typed},
             {DT_FLOAT16, "75", 6, typed},         {DT_FLOAT32, "75", 8, typed},
             {DT_FLOAT64, "80", 6, typed},         {DT_FLOAT32, "75", 3, three_stages},
             {DT_FLOAT16, "75", 2, three_stages},  {DT_FLOAT64, "80", 7, doubles},
             {DT_FLOAT16, "80", 3, grouped_types}, {DT_FLOAT32, "75", 2, grouped_types}};

/* One or several filters of each channel: no products but sums, of copied boxes. */
static const Case depthwise[] = {
    {"conv2d", "Input=2x12x13x13 Filter=24x1x3x3 paddings=[1,1] strides=[2,2] groups=12", NULL,
     1.05, 1.15},
    {"conv2d", "Input=2x12x13x13 Filter=24x1x3x3 paddings=[1,1] groups=12", NULL, 1.05, 0},
    {"conv2d", "Input=1x24x16x14 Filter=96x1x3x3 paddings=[2,2] dilations=[2,2] groups=24", NULL,
     1.05, 0},
    {"conv2d", "Input=1x16x14x18 Filter=64x1x5x5 paddings=[2,2] groups=16", NULL, 1.05, 0},
    {"conv2d", "Input=2x5x18x20 Filter=10x1x3x3 paddings=[2,2] dilations=[2,2] groups=5", NULL,
     1.05, 0},
    {"conv2d", "Input=3x17x12x9 Filter=17x1x5x5 paddings=[2,2] groups=17", NULL, 1.05, 0},
    {"conv2d", "Input=2x17x20x11 Filter=51x1x5x5 paddings=[4,4] dilations=[2,2] groups=17", NULL,
     1.05, 0},
    {"conv2d", "Input=3x33x7x12 Filter=33x1x3x3 paddings=[1,1] groups=33", NULL, 1.05, 0},
};

/* Rows of every kind of length: @ is replaced by each of these, & by twice as many, # by as many rows as make 5000 elements. */
static const int widths[] = {3, 7, 10, 17, 33, 50, 67, 100, 127, 129, 300, 1001};
enum { N_WIDTHS = sizeof widths / sizeof *widths };

static const Case rows[] = {
    {"reduce_sum", "X=#x@ dim=[0]", NULL, 1.05, 0},
    {"reduce_max", "X=#x@ dim=[1]", NULL, 1.05, 0},
    {"reduce_mean", "X=2x#x@ dim=[1]", NULL, 1.05, 0},
    {"arg_max", "X=#x@ axis=1", NULL, 1.05, 0},
    {"arg_max", "X=#x@ axis=0", NULL, 1.05, 0},
    {"softmax", "X=#x@", NULL, 1.05, 0},
    {"layer_norm", "X=#x@ Scale=@ Bias=@", NULL, 1.05, 0},
    {"batch_norm", "X=#x@ Scale=@ Bias=@ Mean=@ Variance=@", NULL, 1.05, 1.2},
    {"elementwise_add", "X=#x@ Y=@", NULL, 1.05, 1.07},
    {"elementwise_mul", "X=#x@ Y=# axis=0", NULL, 1.05, 0},
    {"relu", "X=#x@", NULL, 1.05, 0},
    {"concat", "X=#x@,#x& axis=1", NULL, 1.05, 0},
    {"concat", "X=#x@,#x@ axis=0", NULL, 1.05, 0},
    {"split", "X=#x& Out=*2 num=2 axis=1", NULL, 1.05, 0},
    {"slice", "Input=#x@ axes=[1] starts=[1] ends=[@]", NULL, 1.05, 0},
    {"pad", "X=#x@ paddings=[0,1,2,3]", NULL, 1.05, 0},
    {"transpose2", "X=#x@ axis=[1,0]", NULL, 1.25, 1.28},
    {"gather", "X=100x@ Index=#:int64:0..99", NULL, 1.14, 1.8},
};

/* Inference: filters that a program only reads, in the scope as parameters are. */
static const Case trained[] = {
    {"conv2d", "Input=2x4x9x9 Filter=7x4x3x3 paddings=[1,1]", NULL, 1.05, 1.25},
    {"conv2d", "Input=2x13x15x15 Filter=21x13x3x3 paddings=[1,1] strides=[2,2]", "tf32", 1.05,
     1.25},
    {"conv2d", "Input=2x16x14x14 Filter=32x16x3x3 paddings=[1,1]", NULL, 1.05, 0},
    {"conv2d", "Input=2x32x7x7 Filter=64x32x1x1", NULL, 1.05, 0},
    {"conv2d", "Input=2x3x32x32 Filter=16x3x7x7 paddings=[3,3] strides=[2,2]", NULL, 1.05, 0},
    {"conv2d_transpose", "Input=2x12x9x9 Filter=12x10x4x4 strides=[2,2] paddings=[1,1]", NULL, 1.05,
     1.25},
    {"conv3d", "Input=1x5x6x9x7 Filter=9x5x3x3x3 paddings=[1,1,1]", NULL, 1.05, 1.25},
};

/* What is fed as the filter becomes a parameter; -> feeds that are left. */
static int keep_filter(const OpCase *o, Scope *scope, int n, Feed *feeds) {
  const char *name = op_in(o->op, "Filter", 0);
  int left = 0;
  for (int i = 0; i < n; i++) {
    const Tensor *t = feeds[i].value;
    feeds[left] = feeds[i];
    if (strcmp(feeds[i].name, name)) {
      left++;
      continue;
    }
    Var *v = block_var(o->prog->blocks.v[0], name);
    v->persistable = true;
    v->need_check_feed = false;
    scope_set(scope, name, t->dtype, t->rank, t->dims, t->data);
  }
  return left;
}

/* The operator and its gradient on the device. */
static int run_text(const Case *c, const char *text) {
  const char *names[64];
  Tensor out[64];
  int n = 0, n_feeds;
  OpCase o;
  OpGrads g = {0};
  memset(out, 0, sizeof out);
  if (!opcase_text(&o, opdef_find(c->op), text, 7, real) || !infer_program(o.prog, true)) {
    err_print(stderr, false);
    return 1;
  }
  const Block *b = o.prog->blocks.v[0];
  for (int s = 0; s < o.op->outs.n; s++)
    for (int i = 0; i < o.op->outs.v[s].n; i++)
      if (block_var(b, o.op->outs.v[s].args[i])->dtype != DT_NONE)
        names[n++] = o.op->outs.v[s].args[i];
  bool backward = o.def->grad && !o.nograd && !inference;
  if (backward && (!opcase_grads(&o, &g) || !infer_program(o.prog, true))) return 1;
  for (int i = 0; i < g.n_out && n < 64; i++) names[n++] = g.out[i];
  Feed *feeds = opcase_feeds(&o, &g, &n_feeds);
  Executor *e = exec_new(&(ExecOptions){.seed = 5, .device = "cuda", .math = c->math});
  Scope *scope = scope_new();
  if (inference) n_feeds = keep_filter(&o, scope, n_feeds, feeds);
  bool ok = e && exec_run(e, scope, o.prog, n_feeds, feeds, n, names, out);
  if (!ok) err_print(stderr, false);
  for (int i = 0; i < n; i++) mem_free(out[i].data);
  scope_free(scope);
  exec_free(e);
  opcase_free(&o);
  return !ok;
}

static int run_case(const void *arg) {
  const Case *c = arg;
  if (!strpbrk(c->text, "@&#")) return run_text(c, c->text);
  for (int i = 0; i < N_WIDTHS; i++) {
    char text[256];
    size_t n = 0;
    int w = widths[i];
    for (const char *p = c->text; *p && n + 16 < sizeof text; p++)
      if (strchr("@&#", *p))
        n += (size_t)snprintf(text + n, 16, "%d", *p == '@' ? w : *p == '&' ? 2 * w : 5000 / w);
      else
        text[n++] = *p;
    text[n] = 0;
    if (run_text(c, text)) return 1;
  }
  return 0;
}

static double number(const char *line, const char *name) {
  const char *at = strstr(line, name);
  return at ? strtod(at + strlen(name), NULL) : 0;
}

/* Kernels of the report that go over the limit; *worst: most sectors over the least. */
static int check_report(const char *path, const Case *c, bool copies, double *worst) {
  enum { FEW = 64 };
  char line[4096];
  int bad = 0;
  FILE *f = fopen(path, "r");
  assert_non_null(f);
  while (fgets(line, sizeof line, f)) {
    double sectors = number(line, "\"sectors\": "), least = number(line, "\"ideal_sectors\": ");
    double conflicts = number(line, "\"bank_conflicts\": ");
    bool copy =
        number(line, "\"float\": ") + number(line, "\"double\": ") + number(line, "\"mma\": ") == 0;
    double shared = number(line, "\"wavefronts\": ");
    bool product = !outer && (strncmp(c->op, "conv", 4) == 0 || strncmp(c->op, "matmul", 6) == 0);
    double reachable = number(line, "\"reachable_sectors\": "), most = least;
    double limit = c->limit, strict = c->strict > limit ? c->strict : limit;
    if (copy && strict < TRANSPOSE) strict = TRANSPOSE;
    if (reachable > most) most = reachable;
    if (strncmp(line, "{\"name\"", 7)) continue;
    if (copy && !copies) continue;
    if (sectors > FEW && sectors > *worst * most) *worst = sectors / most;
    bool over = (sectors > limit * most || sectors > strict * least) && sectors > FEW;
    bool clash = conflicts > (product && !copy ? 0 : CLASHES * shared);
    bad += over || clash;
    if (over || clash || getenv("KILN_TEST_SHOW"))
      printf("%s %s %s: %.40s: %.0f sectors, %.3f of the least, %.3f strictly, %.0f conflicts%s\n",
             c->op, c->text, c->math ? c->math : "", line + 10, sectors, sectors / most,
             sectors / least, conflicts, over ? " OVER" : "");
  }
  fclose(f);
  return bad;
}

static void run_cases(int n, const Case *c, bool copies) {
  double worst = 0;
  const char *folder = scratch_folder();
  char report[600], sm[32];
  int bad = 0;
  snprintf(report, sizeof report, "CUDASIM_REPORT=%s/report", folder);
  snprintf(sm, sizeof sm, "CUDASIM_SM=%s", architecture);
  const char *settings[] = {report, sm, NULL};
  for (int i = 0; i < n; i++) {
    assert_int_equal(in_process(settings, run_case, &c[i]), 0);
    bad += check_report(strchr(report, '=') + 1, &c[i], copies, &worst);
  }
  printf("%d cases: at most %.3f of the least\n", n, worst);
  scratch_remove(folder);
  assert_int_equal(bad, 0);
}

static void test_traffic(void **state) {
  (void)state;
  run_cases(sizeof cases / sizeof *cases, cases, true);
}

static void test_odd(void **state) {
  (void)state;
  run_cases(sizeof odd / sizeof *odd, odd, true);
}

static void test_moves(void **state) {
  (void)state;
  run_cases(sizeof moves / sizeof *moves, moves, true);
}

static void test_rows(void **state) {
  (void)state;
  run_cases(sizeof rows / sizeof *rows, rows, true);
}

static void run_products(int n, const Case *c) {
  layout_always = true;
  run_cases(n, c, false);
  layout_always = false;
}

static void test_first_layers(void **state) {
  (void)state;
  run_products(sizeof first_layers / sizeof *first_layers, first_layers);
}

static void test_products(void **state) {
  (void)state;
  run_products(sizeof products / sizeof *products, products);
}

static void test_thin(void **state) {
  (void)state;
  run_products(sizeof thin / sizeof *thin, thin);
}

static void test_vectors(void **state) {
  (void)state;
  outer = true;
  run_products(sizeof vectors / sizeof *vectors, vectors);
  outer = false;
}

static void test_convolutions(void **state) {
  (void)state;
  run_products(sizeof convolutions / sizeof *convolutions, convolutions);
}

static void test_long_sums(void **state) {
  (void)state;
  run_products(sizeof long_sums / sizeof *long_sums, long_sums);
}

static void test_groups(void **state) {
  (void)state;
  enum { N = sizeof grouped / sizeof *grouped };
  Case all[N], forward[N];
  for (int i = 0; i < N; i++) {
    all[i] = forward[i] = grouped[i].all;
    forward[i].strict = grouped[i].forward;
  }
  run_products(N, all);
  inference = true;
  run_products(N, forward);
  inference = false;
}

static void test_types(void **state) {
  (void)state;
  for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
    real = types[i].type;
    architecture = types[i].architecture;
    run_products(types[i].n, types[i].cases);
  }
  real = DT_FLOAT32;
  architecture = "80";
}

static void test_depthwise(void **state) {
  (void)state;
  outer = true;
  run_products(sizeof depthwise / sizeof *depthwise, depthwise);
  outer = false;
}

static void test_inference(void **state) {
  (void)state;
  inference = true;
  run_cases(sizeof trained / sizeof *trained, trained, false);
  inference = false;
}

int main(int argc, char *argv[]) {
  (void)argc;
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_traffic),      cmocka_unit_test(test_odd),
      cmocka_unit_test(test_moves),        cmocka_unit_test(test_rows),
      cmocka_unit_test(test_first_layers), cmocka_unit_test(test_products),
      cmocka_unit_test(test_thin),         cmocka_unit_test(test_vectors),
      cmocka_unit_test(test_convolutions), cmocka_unit_test(test_long_sums),
      cmocka_unit_test(test_inference),    cmocka_unit_test(test_depthwise),
      cmocka_unit_test(test_types),        cmocka_unit_test(test_groups)};
  if (!simulator(argv)) return 1;
  return cmocka_run_group_tests(tests, NULL, NULL);
}
