/* Operators against known answers: results of torch 1.13 in float64 (of hand calculation where torch has no such mode), on
 * small inputs made by a rule (value_case.h). */
#include "value_case.h"

#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* ---- contractions, convolution, pooling ---- */

static const ValueCase products[] = {
    {"Out=Y = matmul_v2(X=A, Y=B)", "A 2x3 11; B 3x2 13", {{"Y", V(-1.5, 0.3125, 1.375, 0.25)}}},
    {"Out=Y = matmul_v2(X=A, Y=B)", "A 2x3 11; B 3 7", {{"Y", V(-0.9375, 0.6875)}}},
    {"Out=Y = matmul_v2(X=A, Y=B) {trans_x=true}",
     "A 3x2 =1,2,3,4,5,6; B 3 =1,10,100",
     {{"Y", V(531, 642)}}},
    {"Out=Y = matmul_v2(X=A, Y=B) {trans_y=true}",
     "A 2 =1,10; B 3x2 =1,2,3,4,5,6",
     {{"Y", V(21, 43, 65)}}},
    {"Out=Y = matmul_v2(X=A, Y=B)", "A 3 =1,2,3; B 3 =1,10,100", {{"Y", V(321)}}},
    {"Out=Y = matmul_v2(X=A, Y=B)",
     "A 2x1x2x3 11; B 2x3x2 13",
     {{"Y", V(-1.5, 0.3125, 1.375, 0.25, 0.4375, -0.1875, 0.3125, 0, 2.1875, -1.875, -1.8125, 0.125,
              -1.875, -1.875, 0.0625, 0.375)}}},
    {"Output=Y = conv2d(Input=A, Filter=B)",
     "A 1x2x4x5 11; B 2x2x3x3 13",
     {{"Y", V(-1.0625, -2.3125, 1.9375, 2.3125, -3.75, 2.5625, 0.125, -1.375, 1.9375, 0.1875,
              2.8125, -1.4375)}}},
    {"Output=Y = conv2d(Input=A, Filter=B) {strides=[2,2], paddings=[1,1]}",
     "A 1x2x4x5 11; B 2x2x3x3 13",
     {{"Y", V(-0.6875, -0.1875, 2.1875, 0.875, -3.75, -0.6875, -0.5625, -3.375, -1.6875, -2.9375,
              2.8125, 0.125)}}},
    {"Output=Y = conv2d(Input=A, Filter=B) {groups=2, dilations=[2,1], paddings=[0,1,1,0]}",
     "A 1x4x3x3 11; B 2x2x2x2 13",
     {{"Y",
       V(-1.1875, 1.5, -1.5625, -0.5, 0.625, -0.375, 0.5625, 1.75, -1.5, -0.1875, 0.875, -0.25)}}},
    {"Output=Y = conv2d(Input=A, Filter=B) {strides=[2,2], padding_algorithm='SAME'}",
     "A 1x1x5x4 11; B 1x1x3x3 13",
     {{"Y", V(2.375, 0.375, 0, -1.1875, -3, 0.375)}}},
    {"Output=Y = conv2d_transpose(Input=A, Filter=B) {strides=[2,2], paddings=[1,1], "
     "output_padding=[1,1]}",
     "A 1x2x2x2 11; B 2x1x3x3 13",
     {{"Y", V(0.25, 0.125, 0.5625, -0.625, 0.6875, -0.1875, 1.3125, -0.875, 0.1875, 0, 0.5, -0.5,
              -0.8125, -0.75, 0.75, -0.25)}}},
    {"Y=Y = unfold(X=A) {kernel_sizes=[2,2]}",
     "A 1x1x3x3 11",
     {{"Y", V(-0.5, 0.75, 0.5, -1, 0.75, -0.75, -1, 0.25, 0.5, -1, -1.25, 0, -1, 0.25, 0, 1.25)}}},
};

static const ValueCase pools[] = {
    {"Out=Y = pool2d(X=A) {ksize=[3,3], strides=[2,2], paddings=[1,1]}",
     "A 1x1x5x5 11",
     {{"Y", V(0.75, 1.25, 1.25, 1, 1.25, 1.25, 1, 1, 1.25)}}},
    {"Out=Y = pool2d(X=A) {ksize=[2,2], strides=[2,2], ceil_mode=true}",
     "A 1x1x5x5 11",
     {{"Y", V(0.75, 1.25, -0.25, 1, 0.75, 1.25, 1, 0.75, -0.75)}}},
    {"Out=Y = pool2d(X=A) {ksize=[1,2], strides=[1,3], ceil_mode=true}", /* the last lies outside */
     "A 1x1x1x6 =1,5,2,4,3,6",
     {{"Y", V(5, 4, -DBL_MAX)}}},
    {"Out=Y = pool2d(X=A) {ksize=[3,3], strides=[2,2], paddings=[1,1], pooling_type='avg'}",
     "A 1x1x5x5 11",
     {{"Y", V(-0.1875, 0.0833333333, 0.125, -0.208333333, -0.166666667, 0.333333333, 0,
              0.0416666667, 0.3125)}}},
    {"Out=Y = pool2d(X=A) {ksize=[3,3], strides=[2,2], paddings=[1,1], pooling_type='avg', "
     "exclusive=false}",
     "A 1x1x5x5 11",
     {{"Y", V(-0.0833333333, 0.0555555556, 0.0555555556, -0.138888889, -0.166666667, 0.222222222, 0,
              0.0277777778, 0.138888889)}}},
    {"Out=Y = pool2d(X=A) {ksize=[2,2], strides=[2,2], pooling_type='avg', exclusive=false, "
     "ceil_mode=true}",
     "A 1x1x5x5 11",
     {{"Y", V(-0.1875, 0.25, -0.625, -0.0625, -0.3125, 0.875, 0.375, 0.125, -0.75)}}},
    {"Out=Y = pool2d(X=A) {ksize=[3,2], adaptive=true, pooling_type='avg'}",
     "A 1x1x5x5 11",
     {{"Y", V(-0.25, -0.0416666667, -0.194444444, 0.166666667, -0.291666667, -0.0833333333)}}},
    {"Out=Y = pool2d(X=A) {ksize=[3,2], adaptive=true}",
     "A 1x1x5x5 11",
     {{"Y", V(0.75, 1.25, 1, 1.25, 1, 1.25)}}},
    {"Out=Y = pool2d(X=A) {ksize=[7,7], global_pooling=true, pooling_type='avg'}",
     "A 1x2x1x3 =1,2,6,-1,0,4",
     {{"Y", V(3, 1)}}},
    {"Out=Y, Mask=M = max_pool2d_with_index(X=A) {ksize=[3,3], strides=[2,2], paddings=[1,1]}",
     "A 1x1x5x5 11",
     {{"Y", V(0.75, 1.25, 1.25, 1, 1.25, 1.25, 1, 1, 1.25)},
      {"M", V(1, 8, 8, 10, 8, 8, 21, 21, 19)}}},
    {"X@GRAD=D = pool2d_grad(X=A, Out=O, Out@GRAD=G) {ksize=[3,3], strides=[2,2], paddings=[1,1]}",
     "A 1x1x5x5 11; O 1x1x3x3 =0; G 1x1x3x3 =1",
     {{"D", V(0, 1, 0, 0, 0, 0, 0, 0, 4, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 2, 0, 0, 0)}}},
    {"X@GRAD=D = pool2d_grad(X=A, Out=O, Out@GRAD=G) {ksize=[2,2], strides=[2,2]}",
     "A 1x1x2x4 =5,5,1,2,5,5,2,2; O 1x1x1x2 =5,2; G 1x1x1x2 =3,7", /* ties: the first */
     {{"D", V(3, 0, 0, 7, 0, 0, 0, 0)}}},
};

/* ---- normalisation, losses ---- */

#define BN_IN "A 2x2x2x1 11; S 2 =1.5,-0.5; B 2 =0.25,1; M 2 =0.5,-0.5; N 2 =2,0.5"
#define BN_OUT "Y=Y, MeanOut=MO, VarianceOut=VO, SavedMean=SM, SavedVariance=SV"

static const ValueCase norms[] = {
    {BN_OUT " = batch_norm(X=A, Scale=S, Bias=B, Mean=M, Variance=N)",
     BN_IN,
     {{"Y", V(-0.585619801, 2.19977954, 1.27853993, 0.350073488, -1.69977954, 1.0856198, 1.64992651,
              0.721460066)},
      {"MO", V(0.4375, -0.4875)}, /* 0.9 * old + 0.1 * batch, the variance biased */
      {"VO", V(1.8453125, 0.4953125)},
      {"SM", V(-0.125, -0.375)},
      {"SV", V(1.48554631, 1.48554631)}}},
    {BN_OUT " = batch_norm(X=A, Scale=S, Bias=B, Mean=M, Variance=N) {is_test=true}",
     BN_IN,
     {{"Y", V(-0.81065752, 0.51516438, 1.17677493, 0.29290029, -1.34098628, -0.01516438, 1.53032478,
              0.646450145)},
      {"MO", V(0.5, -0.5)},
      {"VO", V(2, 0.5)}}},
    {BN_OUT " = batch_norm(X=A, Scale=S, Bias=B, Mean=M, Variance=N)", /* one element each: Y = X */
     "A 1x2 =3,-4; S 2 =1.5,-0.5; B 2 =0.25,1; M 2 =0.5,-0.5; N 2 =2,0.5",
     {{"Y", V(3, -4)}, {"MO", V(0.5, -0.5)}, {"VO", V(2, 0.5)}}},
    {"X@GRAD=DX, Scale@GRAD=DS, Bias@GRAD=DB = batch_norm_grad(X=A, Y@GRAD=G, Scale=S, "
     "SavedMean=M, SavedVariance=I)",
     "A 2x2x2x1 11; S 2 =1.5,-0.5; M 2 =-0.125,-0.375; I 2 =1.4855463145,1.4855463145; "
     "G 2x2x2x1 =0.5625,0.25,1,0.5625,0,1,2.25,1.8125",
     {{"DX", V(0.420207212, -0.864425189, 0.481838095, 0.206513017, -0.597909463, 1.04212744,
               -0.206513017, -0.481838095)},
      {"DS", V(0.568685698, -1.74087459)},
      {"DB", V(1.8125, 5.625)}}},
    {"Y=Y, Mean=M, Variance=N = layer_norm(X=A, Scale=S, Bias=B)",
     "A 2x3 11; S 3 =1,2,-1; B 3 =0.5,0,1",
     {{"Y", V(-0.00799460874, 2.79397035, 1.88899057, 1.38899057, -2.79397035, 0.492005391)},
      {"M", V(-0.166666667, -0.0833333333)},
      {"N", V(0.430555556, 0.430555556)}}},
    {"Y=Y, Mean=M, Variance=N = group_norm(X=A) {groups=2}",
     "A 1x4x2x1 11",
     {{"Y", V(-0.784454886, 1.17668233, -1.17668233, 0.784454886, -0.784454886, 1.17668233,
              -1.17668233, 0.784454886)}}},
    {"Out=Y, MidOut=M = lrn(X=A) {n=3, k=2.0, alpha=0.1, beta=0.75}",
     "A 1x3x1x2 11",
     {{"Y", V(-0.288553812, 0.432830718, -0.417861328, 0.287905619, -0.561986219, 0.146932367)},
      {"M", V(2.08125, 2.08125, 2.18125, 2.0875, 2.15625, 2.03125)}}},
    {"Softmax=P, Loss=L = softmax_with_cross_entropy(Logits=A, Label=I)",
     "A 2x3 =-1,1.5,-1.5,1,-2,0.5; I 2x1:int64 =2,0",
     {{"P", V(0.0725214457, 0.883492074, 0.0439864803, 0.603748896, 0.0300588876, 0.366192216)},
      {"L", V(3.12387296, 0.504596902)}}},
    {"Softmax=P, Loss=L = softmax_with_cross_entropy(Logits=A, Label=I) {soft_label=true}",
     "A 2x3 =-1,1.5,-1.5,1,-2,0.5; I 2x3 =0.2,0.3,0.5,1,0,0",
     {{"L", V(2.12387296, 0.504596902)}}},
    {"Softmax=P, Loss=L = softmax_with_cross_entropy(Logits=A, Label=I) {ignore_index=2}",
     "A 2x3 =-1,1.5,-1.5,1,-2,0.5; I 2x1:int64 =2,0",
     {{"L", V(0, 0.504596902)}}},
    {"Logits@GRAD=D = softmax_with_cross_entropy_grad(Label=I, Softmax=P, Loss@GRAD=G)",
     "P 2x3 =0.0725214457,0.883492074,0.0439864803,0.603748896,0.0300588876,0.366192216; "
     "I 2x1:int64 =2,0; G 2x1 =1,2",
     {{"D", V(0.0725214457, 0.883492074, -0.95601352, -0.792502208, 0.0601177751, 0.732384433)}}},
};

/* ---- shape, indexing, resizing ---- */

static const ValueCase shapes[] = {
    {"Out=Y = slice(Input=A) {axes=[0,1], starts=[-2,1], ends=[100,-1]}",
     "A 3x4 =0,1,2,3,10,11,12,13,20,21,22,23",
     {{"Y", V(11, 12, 21, 22)}}},
    {"Out=Y = slice(Input=A) {axes=[0], starts=[1], ends=[2], decrease_axis=[0]}",
     "A 3x2 =0,1,10,11,20,21",
     {{"Y", V(10, 11)}}},
    {"Out=Y = strided_slice(Input=A) {axes=[0], starts=[4], ends=[-1], strides=[-2]}",
     "A 5 =0,1,2,3,4",
     {{"Y", V(4, 2, 0)}}},
    {"Out=Y = strided_slice(Input=A) {axes=[0], starts=[-1], ends=[0], strides=[-1]}",
     "A 4 =0,1,2,3",
     {{"Y", V(3, 2, 1)}}},
    {"Out=Y, XShape=S = transpose2(X=A) {axis=[1,0]}",
     "A 2x3 =1,2,3,4,5,6",
     {{"Y", V(1, 4, 2, 5, 3, 6)}}},
    {"Out=Y = gather(X=A, Index=I) {axis=1}",
     "A 2x3 =1,2,3,4,5,6; I 2:int64 =2,0",
     {{"Y", V(3, 1, 6, 4)}}},
    {"Out=Y = gather_nd(X=A, Index=I)",
     "A 2x3 =1,2,3,4,5,6; I 2x2:int32 =1,2,0,1",
     {{"Y", V(6, 2)}}},
    {"Out=Y = scatter(X=A, Ids=I, Updates=U)", /* the last one wins */
     "A 3x1 =1,2,3; I 2:int64 =1,1; U 2x1 =7,8",
     {{"Y", V(1, 8, 3)}}},
    {"Out=Y = scatter(X=A, Ids=I, Updates=U) {overwrite=false}",
     "A 3x1 =1,2,3; I 2:int64 =1,1; U 2x1 =7,8",
     {{"Y", V(1, 15, 3)}}},
    {"Out=Y = lookup_table_v2(W=A, Ids=I) {padding_idx=1L}",
     "A 3x2 =1,2,3,4,5,6; I 3:int64 =2,1,0",
     {{"Y", V(5, 6, 0, 0, 1, 2)}}},
    {"W@GRAD=D = lookup_table_v2_grad(W=A, Ids=I, Out@GRAD=G) {padding_idx=1L}",
     "A 3x2 =0; I 3:int64 =2,1,2; G 3x2 =1,2,3,4,5,6",
     {{"D", V(0, 0, 0, 0, 6, 8)}}},
    {"W@GRAD=D = lookup_table_v2_grad(W=A, Ids=I, Out@GRAD=G) {padding_idx=1L, is_sparse=true}",
     "A 3x2 =0; I 3:int64 =2,1,2; G 3x2 =1,2,3,4,5,6",
     {{"D", V(0, 0, 3, 4, 6, 8)}}},
    {"Out=Y = tile(X=A) {repeat_times=[2,2]}", "A 1x2 =1,2", {{"Y", V(1, 2, 1, 2, 1, 2, 1, 2)}}},
    {"Out=Y = roll(X=A) {shifts=[1]L, axis=[1]L}", "A 1x3 =1,2,3", {{"Y", V(3, 1, 2)}}},
    {"Out=Y = diag_v2(X=A) {offset=1, padding_value=9.0}",
     "A 2 =1,2",
     {{"Y", V(9, 1, 9, 9, 9, 2, 9, 9, 9)}}},
    {"Out=Y = pad3d(X=A) {paddings=[2,1,1,0,0,0], mode='reflect'}",
     "A 1x1x1x2x3 11",
     {{"Y", V(0.25, -1, 0.5, -1, 0.25, -1, -0.75, 0.75, -0.5, 0.75, -0.75, 0.75, 0.25, -1, 0.5, -1,
              0.25, -1)}}},
    {"Out=Y = pixel_shuffle(X=A) {upscale_factor=2}",
     "A 1x4x1x2 11",
     {{"Y", V(-0.5, -0.75, 0.75, 0.5, -1, -1.25, 0.25, 0)}}},
    {"Out=Y = bilinear_interp_v2(X=A) {out_h=3, out_w=4}",
     "A 1x1x2x3 11",
     {{"Y", V(-0.5, 0.333333333, 0.25, -0.75, 0, -0.0833333333, -0.166666667, -0.25, 0.5, -0.5,
              -0.583333333, 0.25)}}},
    {"Out=Y = bilinear_interp_v2(X=A) {out_h=3, out_w=4, align_corners=false, align_mode=0}",
     "A 1x1x2x3 11",
     {{"Y", V(-0.5, 0.28125, 0.1875, -0.75, 0, -0.078125, -0.171875, -0.25, 0.5, -0.4375, -0.53125,
              0.25)}}},
    {"Out=Y = nearest_interp_v2(X=A) {scale=[2.0], align_corners=false}",
     "A 1x1x1x2 =1,2",
     {{"Y", V(1, 1, 2, 2, 1, 1, 2, 2)}}},
};

/* The number of steps in a unit is rounded before it multiplies X: -0.2823535 is 49.5 steps of its scale but for that. */
static const ValueCase roundings[] = {
    {"Out=Y = lgamma(X=A)",
     "A 4 =0.5,7.5,12.25,-0.5",
     {{"Y", V(0.5723649429247004, 7.534364236758734, 18.115669505710894, 1.265512123484645)}}},
    {"Out=Y = lgamma(X=A)", "A 1:float32 =100000", {{"Y", V(1051287.7089736566)}}},
    {"Out=Y, OutScale=Z = fake_quantize_abs_max(X=A)",
     "A 2:float32 =-0.2823535,0.7244221",
     {{"Y", V(-49, 127)}, {"Z", V(0.7244221)}}},
    {"Out=Y, OutScale=Z = fake_quantize_abs_max(X=A)",
     "A 5 =127,0.5,1.5,-2.5,0.49999999999999994",
     {{"Y", V(127, 1, 2, -3, 0)}}},
    {"Out=Y, OutScale=Z = fake_quantize_abs_max(X=A) {round_type=0}",
     "A 5 =127,0.5,1.5,-2.5,0.49999999999999994",
     {{"Y", V(127, 0, 2, -2, 0)}}},
};

static const ValueCase orders[] = {
    {"Out=D, MedianIndex=I = nanmedian(X=A) {axis=[1], keepdim=false}",
     "A 3x4 =3,nan,1,2,nan,nan,5,1,4,3,2,1",
     {{"D", V(2, 3, 2.5)}, {"I", V(3, 3, 3, 2, 2, 1)}}},
    {"X@GRAD=D = nanmedian_grad(X=A, Out@GRAD=G) {axis=[1], keepdim=false}",
     "A 2x3 =3,nan,1,2,7,5; G 2 =1,4",
     {{"D", V(0.5, 0, 0.5, 0, 0, 4)}}},
    {"Out=D, MedianIndex=I = nanmedian(X=A) {axis=[1], keepdim=false}",
     "A 2x2 =nan,nan,3,4",
     {{"D", V(NAN, 3.5)}, {"I", V(-1, -1, 0, 1)}}},
    {"X@GRAD=D = nanmedian_grad(X=A, Out@GRAD=G) {axis=[1], keepdim=false}",
     "A 2x2 =nan,nan,2,nan; G 2 =1,4",
     {{"D", V(0, 0, 4, 0)}}},
    {"X@GRAD=D = roll_grad(X=A, Out@GRAD=G) {shifts=[1]L, axis=[0]L}",
     "A 3 =1,2,3; G 3 =4,5,6",
     {{"D", V(5, 6, 4)}}},
    {"Out=Y = arg_min(X=A)", "A 3:uint8 =1,0,2", {{"Y", V(1)}}},
    {"Out=Y = arg_min(X=A)", "A 3:int64 =0,-9223372036854775808,-5", {{"Y", V(1)}}},
    {"Out=Y = reduce_min(X=A)", "A 3:uint8 =3,0,2", {{"Y", V(0)}}},
    {"Out=Y = reduce_min(X=A)", "A 3:int32 =3,-2147483648,0", {{"Y", V(-2147483648.0)}}},
    {"Out=Y = reduce_min(X=A)", "A 3:int64 =3,2,5", {{"Y", V(2)}}},
    {"Out=Y = arg_max(X=A)", "A 3:int64 =-9223372036854775808,-5,-7", {{"Y", V(1)}}},
};

/* Where gradients jump or are infinite: as PaddlePaddle's are. */
static const ValueCase kinks[] = {
    {"X@GRAD=D = p_norm_grad(X=A, Out=O, Out@GRAD=G)",
     "A 2x2 =0,0,3,4; O 2 =0,5; G 2 =1,1",
     {{"D", V(0, 0, 0.6, 0.8)}}},
    {"X@GRAD=D = p_norm_grad(X=A, Out=O, Out@GRAD=G) {porder=1.0}",
     "A 1x3 =0,-2,1; O 1 =3; G 1 =1",
     {{"D", V(0, -1, 1)}}},
    {"X@GRAD=D = p_norm_grad(X=A, Out=O, Out@GRAD=G) {porder=3.0}",
     "A 1x2 =0,0; O 1 =0; G 1 =1",
     {{"D", V(0, 0)}}},
    {"X@GRAD=D = p_norm_grad(X=A, Out=O, Out@GRAD=G) {porder=inf}",
     "A 2x3 =0,-2,1,0,0,0; O 2 =2,0; G 2 =1,1",
     {{"D", V(0, -1, 0, 0, 0, 0)}}},
    {"X@GRAD=D = frobenius_norm_grad(X=A, Out=O, Out@GRAD=G)",
     "A 2 =0,0; O scalar =0; G scalar =1",
     {{"D", V(0, 0)}}},
    {"X@GRAD=D, Y@GRAD=E = dist_grad(X=A, Y=B, Out=O, Out@GRAD=G)",
     "A 2 =1,2; B 2 =1,2; O scalar =0; G scalar =1",
     {{"D", V(0, 0)}, {"E", V(0, 0)}}},
    {"X@GRAD=D = renorm_grad(X=A, Out@GRAD=G) {p=2.0, axis=0, max_norm=0.5}",
     "A 1x2 =0,0; G 1x2 =1,2",
     {{"D", V(1, 2)}}},
    {"X@GRAD=D = leaky_relu_grad(X=A, Out@GRAD=G) {alpha=0.1}",
     "A 3 =-1,0,1; G 3 =1,1,1",
     {{"D", V(0.1, 1, 1)}}},
    {"X@GRAD=D = maxout_grad(X=A, Out=O, Out@GRAD=G) {groups=2}",
     "A 1x4x1x1 =1,1,1,2; O 1x2x1x1 =1,2; G 1x2x1x1 =3,5",
     {{"D", V(3, 0, 0, 5)}}},
    {"X@GRAD=D, Y@GRAD=E = elementwise_fmax_grad(X=A, Y=B, Out@GRAD=G)",
     "A 3 =1,2,0; B 3 =1,1,1; G 3 =1,1,1",
     {{"D", V(1, 1, 0)}, {"E", V(0, 0, 1)}}},
    {"X@GRAD=D, Y@GRAD=E = elementwise_fmin_grad(X=A, Y=B, Out@GRAD=G)",
     "A 3 =1,2,0; B 3 =1,1,1; G 3 =1,1,1",
     {{"D", V(1, 0, 1)}, {"E", V(0, 1, 0)}}},
};

/* Attributes in another type than that of the row: whole numbers for real ones, one number for a list. */
static const ValueCase types[] = {
    {"Out=Y = assign_value() {dtype=5, shape=[2], fp32_values=[1, 2]}", "A 1 =0", {{"Y", V(1, 2)}}},
    {"Out=Y = assign_value() {dtype=5, shape=[3], values=scalars [1.5, 2, true]}",
     "A 1 =0",
     {{"Y", V(1.5, 2, 1)}}},
    {"Out=Y = assign_value() {dtype=3, shape=[2], values=scalars [7, -2]}",
     "A 1 =0",
     {{"Y", V(7, -2)}}},
    {"Out=Y = fill() {dtype=5, shape=[2], value=[3, 4]}", "A 1 =0", {{"Y", V(3, 4)}}},
    {"Out=Y = nearest_interp_v2(X=A) {scale=[2, 1]}", "A 1x1x1x2 =1,2", {{"Y", V(1, 2, 1, 2)}}},
    {"Out=Y = nearest_interp_v2(X=A) {scale=2}",
     "A 1x1x1x2 =1,2",
     {{"Y", V(1, 1, 2, 2, 1, 1, 2, 2)}}},
    {"X@GRAD=Y = nearest_interp_v2_grad(X=A, Out@GRAD=B) {scale=[2, 1]}",
     "A 1x1x1x2 =1,2; B 1x1x2x2 =1,2,3,4",
     {{"Y", V(4, 6)}}},
    {"X@GRAD=Y = tile_grad(X=A, Out@GRAD=B) {repeat_times=[2.0]F}",
     "A 2 =1,2; B 4 =1,2,3,4",
     {{"Y", V(4, 6)}}},
    {"ParamOut=P, VelocityOut=W = lars_momentum(Param=A, Grad=G, Velocity=B, LearningRate=L) "
     "{mu=0.0, lars_weight_decay=1.0}",
     "A 2 =3,4; G 2 =0,5; B 2 =0,0; L 1 =1",
     {{"P", V(2.9985, 3.9955)}}},
};

/* Of torch: its norm by hand, scaled_dot_product_attention, products of complex numbers. */
static const ValueCase decoders[] = {
    {"out=Y = rms_norm(x=A, norm_weight=W)",
     "A 2x3 11; W 3 =1.5,-0.5,2",
     {{"Y", V(-1.10781133, -0.553905667, -2.21562267, 1.13388046, 0.755920307, 0.755920307)}}},
    {"out=Y, residual_out=R = rms_norm(x=A, bias=B, residual=C, norm_weight=W, norm_bias=B) "
     "{epsilon=0.5}",
     "A 2x3 11; B 3 7; C 2x3 13; W 3 =1.5,-0.5,2",
     {{"Y", V(-1.3398555, -0.7679711, -1.3937688, 0.482450641, -0.17836624, 0.75)},
      {"R", V(-1.25, 0.75, -1.5, 0.25, -0.5, 0)}}},
    {"out=Y, softmax=P, softmax_lse=L, seed_offset=O = flash_attn(q=A, k=B, v=C)",
     "A 1x3x2x2 11; B 1x3x2x2 13; C 1x3x2x2 7",
     {{"Y", V(-0.254936551, 0.0443785001, 0.504016806, 0.00401680575, -0.23520653, -0.00478453169,
              0.52460205, 0.0246020503, -0.255813163, -0.504678429, 0.494149581, -0.00585041929)},
      {"L", V(1.35814015f, 1.35988453f, 1.36685722f, 1.69690268f, 2.02628019f, 0.401180303f)}}},
    {"out=Y, softmax=P, softmax_lse=L, seed_offset=O = flash_attn(q=A, k=B, v=C) {causal=true}",
     "A 1x3x2x2 11; B 1x3x2x2 13; C 1x3x2x2 7",
     {{"Y", V(0, -0.5, 0.75, 0.25, -0.0455094447, -0.545509445, 0.706112626, 0.206112626,
              -0.255813163, -0.504678429, 0.494149581, -0.00585041929)}}},
    {"out_q=Y = fused_rotary_position_embedding(q=A)",
     "A 1x2x1x4 11",
     {{"Y", V(-0.5, 0.75, -0.75, 0.5, -0.750670052, -0.706395408, -1.2499375, -0.0124997917)}}},
    {"out_q=Y = fused_rotary_position_embedding(q=A, sin=S, cos=C) {use_neox_rotary_style=false}",
     "A 1x2x1x4 11; S 1x2x1x4 7; C 1x2x1x4 13",
     {{"Y", V(0.375, 0.625, 0.75, 0.0625, -1.3125, -0.25, -0.8125, 0)}}},
};

/* What comes back from a shape that was repeated, from operands that an axis says nothing about, as another type. */
static const ValueCase operands[] = {
    {"X1@GRAD=Y, X2@GRAD=Z = atan2_grad(X1=A, X2=B, Out@GRAD=C)",
     "A 1x2 =1,1; B 2x2 =1,1,1,1; C 2x2 =1,2,3,4",
     {{"Y", V(2, 3)}, {"Z", V(-0.5, -1, -1.5, -2)}}},
    {"X@GRAD=Y = solve_grad(X=A, Y=B, Out=B, Out@GRAD=C)",
     "A 2x2 =1,0,0,1; B 2x2x1 =1,2,3,4; C 2x2x1 =1,10,100,1000",
     {{"Y", V(-301, -402, -3010, -4020)}}},
    {"X@GRAD=Y = multiplex_grad(Ids=I, Out@GRAD=A)",
     "I 3x1:int32 =1,0,1; A 3x2 =1,2,3,4,5,6",
     {{"Y", V(0, 0, 3, 4, 0, 0)}}},
    {"Out=Y = elementwise_add(X=A, Y=B) {axis=1}",
     "A 2x2 =1,2,3,4; B 2x2 =10,20,30,40",
     {{"Y", V(11, 22, 33, 44)}}},
    {"Out=Y = bilinear_interp_v2(X=A) {out_h=1, out_w=1, align_corners=false, align_mode=0}",
     "A 1x1x2x2 =1,2,3,4",
     {{"Y", V(1)}}}, /* as PaddlePaddle: of one element the ratio is 0 */
    {"Out=Y = equal_all(X=A, Y=A)", "A 0x3 =0", {{"Y", V(1)}}},
    {"Out=Y = exp(X=I)", "I 2:int64 =0,1", {{"Y", V(1, 2.71828175f)}}},
    {"Out=Y = log2(X=I)", "I 2:int32 =1,8", {{"Y", V(0, 3)}}},
    {"ParamOut=Y, VelocityOut=Z = lars_momentum(Param=A, Grad=B, Velocity=A, LearningRate=C) "
     "{mu=0.0, lars_weight_decay=[0.0], rescale_grad=0.5}",
     "A 2 =1,2; B 2 =10,20; C 1 =0.1",
     {{"Y", V(0.5, 1)}, {"Z", V(0.5, 1)}}},
};

#define CHECK_ALL(cases)                                                                           \
  for (size_t i = 0; i < sizeof(cases) / sizeof *(cases); i++) value_check(&(cases)[i])

static void test_products(void **state) {
  (void)state;
  CHECK_ALL(products);
}
static void test_pools(void **state) {
  (void)state;
  CHECK_ALL(pools);
}
static void test_norms(void **state) {
  (void)state;
  CHECK_ALL(norms);
}
static void test_roundings(void **state) {
  (void)state;
  CHECK_ALL(roundings);
}
static void test_orders(void **state) {
  (void)state;
  CHECK_ALL(orders);
}
static void test_kinks(void **state) {
  (void)state;
  CHECK_ALL(kinks);
}
static void test_types(void **state) {
  (void)state;
  CHECK_ALL(types);
}
static void test_decoders(void **state) {
  (void)state;
  CHECK_ALL(decoders);
}
static void test_operands(void **state) {
  (void)state;
  CHECK_ALL(operands);
}
static void test_shapes(void **state) {
  (void)state;
  CHECK_ALL(shapes);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_products), cmocka_unit_test(test_pools),
      cmocka_unit_test(test_norms),    cmocka_unit_test(test_roundings),
      cmocka_unit_test(test_kinks),    cmocka_unit_test(test_orders),
      cmocka_unit_test(test_shapes),   cmocka_unit_test(test_decoders),
      cmocka_unit_test(test_types),    cmocka_unit_test(test_operands),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
