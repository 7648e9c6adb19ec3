"""Every operator of ir/ops.def that PaddlePaddle has, in Kiln and in PaddlePaddle: outputs and gradients.

The cases are the examples of the operator's row (`kiln ops --json`) and those below, in the same language. For each,
PaddlePaddle builds a program of the one operator and a weighted sum of its outputs, adds the gradients by append_backward,
runs it, and writes it as .pdmodel; Kiln runs that file on the same values. Random operators are compared by what their
numbers have in common: shape, type, mean, deviation and range.
"""
import json, os, pickle, re, traceback, zlib
import numpy as np
from common import *

TOLERANCE = 1e-4
CASES = {  # beside the examples of ops.def
    "eigh": "X=4x4; X=2x3x3 UPLO='U'; X=30x30", "eigvalsh": "X=4x4; X=2x3x3 UPLO='U'", "svd": "X=20x30; X=5x3:float64",
    "qr": "X=20x30; X=9x9:float64; X=2x2x30x20", "lu": "X=20x30; X=9x9:float64; X=2x2x30x20", "slogdeterminant": "nograd Input=3x9x9:float64; nograd Input=20x20", "lu_unpack": "X=2x3x3 Pivots=2x3:int32:1..3",
    "matrix_rank": "X=9x9 tol=2.5 use_default_tol=false; X=3x2x9x5; X=5x5 tol=0.3 use_default_tol=false hermitian=true; X=2x3x4x4 TolTensor=2x3:float32:0.1..1 use_default_tol=false",
    "lstsq": "X=9x4 Y=9x3 driver='gelsd'; X=4x9:float64 Y=4x2:float64 driver='gelsy'; X=6x6 Y=6x2 driver='gelss'; X=2x9x4 Y=2x9x3 rcond=0.5 driver='gelsd'",
    "ctc_align": "Input=20x30:int32:0..4 InputLength=20x1:int32:0..30 OutputLength=*1; Input=20x30:int64:0..2 InputLength=20x1:int64:1..30 merge_repeated=false padding_value=9 OutputLength=*1",
    "precision_recall": "MaxProbs=200x1 Indices=200x1:int32:0..6 Labels=200x1:int32:0..6 Weights=200x1:float32:0.1..2 StatesInfo=9x4:float32:0..50 class_number=9",
    "viterbi_decode": "Input=5x9x6 Transition=6x6 Length=5:int64:1..7; Input=5x9x6 Transition=6x6 Length=5:int64:0..9 include_bos_eos_tag=false; Input=3x1x2:float64 Transition=2x2:float64 Length=3:int64:1..1",
    "chunk_eval": "Inference=6x30:int64:0..6 Label=6x30:int64:0..6 SeqLength=6:int64:5..30 num_chunk_types=3; Inference=6x30:int64:0..4 Label=6x30:int64:0..4 SeqLength=6:int64:0..30 num_chunk_types=2 chunk_scheme='IOE' excluded_chunk_types=[1]; "
                  "Inference=6x60:int64:0..8 Label=6x60:int64:0..8 SeqLength=6:int64:60..60 num_chunk_types=2 chunk_scheme='IOBES'; Inference=6x60:int64:0..3 Label=6x60:int64:0..3 SeqLength=6:int64:9..60 num_chunk_types=3 chunk_scheme='plain'",
    "bipartite_match": "DistMat=9x20:float32:0..1; DistMat=30x9:float32:-1..1 match_type='per_prediction' dist_threshold=0.6; DistMat=140x50:float32:0..1",
    "psroi_pool": "X=2x18x16x16 ROIs=6x4:float32:0..30 RoisNum=2:int32:3..3 output_channels=2 pooled_height=3 pooled_width=3 spatial_scale=0.5; X=1x16x9x11 ROIs=9x4:float32:-4..14 RoisNum=1:int32:9..9 output_channels=2 pooled_height=4 pooled_width=2",
    "data_norm": "X=9x12:float32:0..1 BatchSize=12:float32:4..9 BatchSum=12:float32:-2..2 BatchSquareSum=12:float32:3..9 slot_dim=4; "
                 "X=9x12:float32:0..0 BatchSize=12:float32:4..9 BatchSum=12:float32:-2..2 BatchSquareSum=12:float32:3..9 slot_dim=3",
    "warprnnt": "input=5x9x7x11:float32:-9..-0.1 label=5x6:int32:1..10 input_lengths=5:int32:9..9 label_lengths=5:int32:0..6; "
                "input=5x9x7x11:float32:-9..-0.1 label=5x6:int32:0..9 input_lengths=5:int32:4..9 label_lengths=5:int32:1..6 blank=10 fastemit_lambda=0.5",
    "box_decoder_and_assign": "PriorBox=60x4:float32:0..9 PriorBoxVar=4:float32:1..2 TargetBox=60x84:float32:-3..3 BoxScore=60x21:float32:-2..1",
    "nextafter": "x=60:float64 y=60:float64; x=30:float32:1..1 y=30:float32:-9..9", "teacher_student_sigmoid_loss": "X=60x1:float32:-9..9 Label=60x1:float32:-3..2",
    "modified_huber_loss": "X=60x1:float32:-3..3 Y=60x1:float32:1..1", "dequantize_abs_max": "X=60:int8:-128..127 Scale=1:float32:0.5..2 max_range=127.0",
    "requantize": "Input=60:int8:-100..100 Scale_in=2.0 Scale_out=1.5 Shift_in=0.0 Shift_out=0.0; Input=60:uint8:0..200 Scale_in=3.0 Scale_out=2.0 Shift_in=5.0 Shift_out=20.0",
    "generate_proposals_v2": "Scores=2x3x4x5 BboxDeltas=2x12x4x5 ImShape=2x2:float32:20..40 Anchors=4x5x3x4:float32:0..40 Variances=4x5x3x4:float32:0.1..0.3 pre_nms_topN=50 post_nms_topN=9 nms_thresh=0.5 min_size=2.0 RpnRoisNum=*1; "
                             "Scores=1x3x6x6 BboxDeltas=1x12x6x6 ImShape=1x2:float32:20..40 Anchors=6x6x3x4:float32:0..40 Variances=6x6x3x4:float32:0.1..0.3 pre_nms_topN=0 post_nms_topN=30 nms_thresh=0.7 min_size=0.1 eta=0.8 pixel_offset=false RpnRoisNum=*1",
    "generate_proposals": "Scores=2x3x4x5 BboxDeltas=2x12x4x5 ImInfo=2x3:float32:20..40 Anchors=4x5x3x4:float32:0..40 Variances=4x5x3x4:float32:0.1..0.3 pre_nms_topN=50 post_nms_topN=9 nms_thresh=0.5 min_size=0.1 RpnRoisNum=*1",
    "fused_conv2d": "Input=2x8x9x9 Filter=16x4x3x3 groups=2 paddings=[1,1] fuse_activation='leaky_relu' fuse_alpha=0.1; Input=2x8x9x9 Filter=8x8x3x3 Bias=8 ResidualData=2x8x9x9 fuse_residual_connection=true paddings=[1,1] fuse_activation='hard_swish' fuse_alpha=0.16666667 fuse_beta=0.5",
    "fused_matmul": "X=2x3x4 Y=2x4x5 fuse_activation='swish' fuse_alpha=1.0; X=2x3x4 Y=2x4x5 fuse_activation='gelu_tanh' fused_output_scale=2.0",
    "fused_elementwise_add": "X=2x3x4 Y=4 fuse_activation='hard_swish'; X=2x3x4 Y=3x1 fuse_activation='sigmoid'; X=2x3x4 Y=2x3x4 fuse_activation='gelu_erf'",
    "fusion_squared_mat_sub": "X=20x30 Y=30x10 scalar=0.5", "fusion_repeated_fc_relu": "X=20x30 W=30x40,40x10 Bias=40,10 ReluOut=*1",
    "spectral_norm": "Weight=3x4 U=3:float32:0.1..1 V=4:float32:0.1..1 power_iters=1; Weight=4x2x3 U=2:float32:0.1..1 V=12:float32:0.1..1 power_iters=3 dim=1",
    "p_norm": "X=3x4:float32:0..0; X=3x4:float32:0..0 porder=1.0; X=3x4:float32:0..0 porder=3.0; X=3x4:float32:0..0 porder=inf; X=20x30 porder=3.0 axis=1; X=20 porder=inf; X=20 porder=-inf",
    "frobenius_norm": "X=3x4:float32:0..0 reduce_all=true", "dist": "X=3x4:float32:2..2 Y=3x4:float32:2..2", "renorm": "X=3x4:float32:0..0 p=2.0 axis=0 max_norm=0.5",
    "maxout": "X=2x4x1x1:float32:1..1 groups=2", "elementwise_fmin": "X=4:float32:0.5..0.5 Y=4:float32:0.5..0.5", "elementwise_fmax": "X=4:float32:0.5..0.5 Y=4:float32:0.5..0.5",
    "roi_pool": "X=2x3x16x16 ROIs=6x4:float32:0..30 RoisNum=2:int32:3..3 pooled_height=3 pooled_width=3 spatial_scale=0.5; X=1x2x9x11 ROIs=9x4:float32:-4..14 RoisNum=1:int32:9..9 pooled_height=4 pooled_width=2",
    "atan2": "X1=3x5 X2=3x5:float32:-1..1", "lars_momentum": "Param=30x20 Grad=30x20 Velocity=30x20 LearningRate=1 mu=0.9 rescale_grad=0.25",
    "bilinear_interp_v2": "X=1x2x3x4 out_h=1 out_w=1 align_corners=false align_mode=0; X=1x2x3x4 scale=[0.5,0.5]F align_corners=false align_mode=0",
    "bicubic_interp_v2": "X=1x2x3x4 out_h=5 out_w=1 align_corners=false interp_method='bicubic'",
    "roi_align": "X=2x3x16x16 ROIs=6x4:float32:0..30 RoisNum=2:int32:3..3 pooled_height=3 pooled_width=3 spatial_scale=0.5 sampling_ratio=2",
    "conv2d": "Input=4x16x19x23 Filter=24x16x3x3 paddings=[1,1]; Input=2x16x14x14 Filter=32x16x1x1 strides=[2,2]; "
              "Input=2x3x32x32 Filter=8x3x7x7 strides=[2,2] paddings=[3,3]; Input=2x8x12x12 Filter=8x2x5x5 groups=4 paddings=[2,2]; "
              "Input=1x4x9x9 Filter=4x4x3x3 padding_algorithm='SAME' dilations=[2,2]; Input=1x4x9x9 Filter=4x4x2x2 padding_algorithm='SAME'; "
              "Input=1x2x8x8 Filter=3x2x3x3 paddings=[1,2,3,0]; Input=2x6x8x3 Filter=4x3x3x3 data_format='NHWC' padding_algorithm='SAME' strides=[2,2]",
    "depthwise_conv2d": "Input=2x16x14x14 Filter=16x1x3x3 groups=16 paddings=[1,1]; Input=1x4x9x9 Filter=8x1x5x5 groups=4 strides=[2,2] paddings=[2,2]; "
                        "Input=1x4x9x9 Filter=4x1x3x3 groups=4 padding_algorithm='SAME' strides=[2,2]",
    "pool2d": "X=2x8x15x17 ksize=[3,3] strides=[2,2] paddings=[1,1]; X=2x8x15x17 ksize=[3,3] strides=[2,2] paddings=[1,1] ceil_mode=true; "
              "X=2x4x7x7 ksize=[2,2] strides=[2,2] pooling_type='avg' padding_algorithm='SAME'; X=2x4x7x7 ksize=[3,3] strides=[2,2] "
              "paddings=[1,1] pooling_type='avg' exclusive=false ceil_mode=true; X=1x2x6x6 ksize=[3,3] strides=[1,1] paddings=[1,1] pooling_type='avg' exclusive=false; "
              "X=1x2x6x6 ksize=[3,3] strides=[3,3] paddings=[0,1,2,1]; X=1x2x6x6 ksize=[3,3] padding_algorithm='VALID' paddings=[1,1]; "
              "X=1x2x10x10 ksize=[4,4] adaptive=true pooling_type='avg'; X=1x7x5x3 ksize=[1,1] global_pooling=true pooling_type='avg' data_format='NHWC'; "
              "X=1x7x5x3 ksize=[3,2] adaptive=true data_format='NHWC'",
    "batch_norm": "X=16x8x6x6 Scale=8 Bias=8 Mean=8 Variance=8:float32:0.5..2 momentum=0.99 epsilon=1e-3; X=32x10 Scale=10 Bias=10 Mean=10 Variance=10:float32:0.5..2; "
                  "X=4x3x2x2x2 Scale=3 Bias=3 Mean=3 Variance=3:float32:0.5..2; X=5x4x3 Scale=4 Bias=4 Mean=4 Variance=4:float32:0.5..2; "
                  "X=5x4x3 Scale=3 Bias=3 Mean=3 Variance=3:float32:0.5..2 data_layout='NHWC' use_global_stats=true",
    "layer_norm": "X=8x64 Scale=64 Bias=64; X=2x7x33 Scale=33 Bias=33 begin_norm_axis=2 epsilon=1e-6; X=2x7x33 Bias=231",
    "matmul_v2": "X=64x128 Y=128x32; X=4x8x16 Y=4x16x8; X=2x3x8x16 Y=2x3x8x16 trans_y=true; X=3x8x16 Y=16x5; X=8x16 Y=3x16x5; X=5 Y=3x5x2; X=5x1x4x3 Y=2x3x6; "
                 "X=3x4:float64 Y=4x5:float64; X=4 Y=4 trans_x=true trans_y=true",
    "mul": "X=64x784 Y=784x32; X=2x3x4x5 Y=20x7 x_num_col_dims=2; X=2x3x4x5 Y=4x5x6x2 x_num_col_dims=2 y_num_col_dims=2",
    "elementwise_add": "X=2x3x4x5 Y=3x4 axis=1; X=2x3 Y=2x3 axis=1; X=2x3x4x5 Y=3x1 axis=1; X=2x3x4 Y=1x4; X=7x1 Y=1x9; X=2x3x4 Y=scalar; X=2x3:int32:-9..9 Y=3:int32:-9..9; X=2x3:float64 Y=2x3:float64; "
                       "X=3 Y=2x3x4 axis=1; X=8x16x7x7 Y=16 axis=1; X=2x3x4x5 Y=3x4 axis=-2; X=scalar Y=2x3",
    "elementwise_sub": "X=2x3x4x5 Y=3x4 axis=1; X=3 Y=2x3x4 axis=1; X=2x3:int64:-9..9 Y=3:int64:-9..9; X=7x1 Y=1x9; X=2x3x4 Y=scalar",
    "elementwise_mul": "X=2x3x4x5 Y=3x4 axis=1; X=3 Y=2x3x4 axis=1; X=2x3:int64:-9..9 Y=3:int64:-9..9; X=7x1 Y=1x9; X=2x3x4 Y=scalar",
    "elementwise_div": "X=2x3x4x5 Y=3x4:float32:1..2 axis=1; X=3 Y=2x3x4:float32:1..2 axis=1; nograd X=9:int32:-9..9 Y=9:int32:1..4; X=7x1 Y=1x9:float32:1..2",
    "elementwise_max": "X=2x3x4x5 Y=3x4 axis=1; X=7x1 Y=1x9; nograd X=9:int64:-9..9 Y=9:int64:-9..9; X=4:float32:0.5..0.5 Y=4:float32:0.5..0.5",
    "elementwise_min": "X=2x3x4x5 Y=3x4 axis=1; X=7x1 Y=1x9; nograd X=9:int64:-9..9 Y=9:int64:-9..9; X=4:float32:0.5..0.5 Y=4:float32:0.5..0.5",
    "elementwise_pow": "X=2x3x4x5:float32:0.5..2 Y=3x4 axis=1; X=7x1:float32:0.5..2 Y=1x9; nograd X=9 Y=9; X=2x3:float32:0.5..2 Y=scalar; nograd X=6:float32:-2..2 Y=6:float32:2..2; "
                       "nograd X=6:float32:-2..2 Y=6:float32:3..3; nograd X=6:int32:-3..3 Y=6:int32:0..4",
    "elementwise_mod": "X=30:float32:-9..9 Y=30:float32:0.5..3; X=30:float32:-9..9 Y=30:float32:-3..-0.5; X=30:int32:-9..9 Y=30:int32:1..4; X=30:int64:-9..9 Y=30:int64:-4..-1",
    "elementwise_floordiv": "X=30:int32:-9..9 Y=30:int32:1..4; X=30:int64:-9..9 Y=30:int64:-4..-1; X=30:float32:-9..9 Y=30:float32:0.5..3",
    "scale": "X=scalar scale=3.0 bias=-1.0; nograd X=5:int32:-9..9 scale=2.5 bias=1.0; nograd X=5:int64:-9..9 scale=-1.0",
    "sum": "X=2x3:int64:0..9,2x3:int64:0..9; X=3x4,3x4,3x4,3x4,3x4; X=scalar,scalar",
    "cast": "nograd X=9:float32:-3..3 in_dtype=5 out_dtype=2; X=9 in_dtype=5 out_dtype=6; nograd X=9:float32:-300..300 in_dtype=5 out_dtype=3; nograd X=9:bool:0..1 in_dtype=0 out_dtype=5; "
            "nograd X=9:int64:-2..2 in_dtype=3 out_dtype=0; nograd X=9:float32:0..200 in_dtype=5 out_dtype=20; X=9 in_dtype=5 out_dtype=4",
    "clip": "X=64:float32:-2..2 min=-1.0 max=1.0; X=9:float32:1..1 min=-1.0 max=1.0; nograd X=9:int32:-9..9 min=-2.0 max=3.0; X=4x4:float64 min=-0.5 max=0.5",
    "relu": "X=1000; X=4:float64", "relu6": "X=100:float32:-9..9", "leaky_relu": "X=4:float32:0..0 alpha=0.1; X=100 alpha=0.01; X=9 alpha=1.5; X=9 alpha=-0.5",
    "gelu": "X=200:float32:-6..6; X=200:float32:-6..6 approximate=true", "tanh": "X=500:float32:-12..12", "sigmoid": "X=500:float32:-30..30",
    "exp": "X=500:float32:-40..40; nograd X=30:int64:-9..9", "log": "X=500:float32:0.0001..1000; nograd X=30:int32:1..999", "sqrt": "X=500:float32:0.0001..1000",
    "square": "X=100:float32:-9..9; nograd X=9:int64:-9..9", "abs": "X=100:float64", "hard_sigmoid": "X=100:float32:-6..6 slope=0.16666667",
    "hard_swish": "X=200:float32:-6..6", "swish": "X=200:float32:-12..12; X=100:float32:-6..6 beta=2.0", "softmax": "X=32x10:float32:-9..9; X=4x1000; X=2x3x4x5 axis=2; X=2x3x4x5 axis=-4; X=3x5:float64; X=5x1",
    "log_softmax": "X=32x10:float32:-9..9; X=4x1000; X=2x3x4x5 axis=2; X=2x3x4 axis=0", "softplus": "X=200:float32:-30..30", "erf": "X=300:float32:-5..5",
    "sin": "X=300:float32:-100..100", "cos": "X=300:float32:-100..100", "mish": "X=300:float32:-25..25", "silu": "X=300:float32:-25..25",
    "elu": "X=100:float32:-9..9; X=9 alpha=-0.5", "pow": "X=20:float32:0.5..2 factor=-1.5; X=20 factor=3.0; nograd X=20:int32:-3..3 factor=2.0; X=9 factor=0.0; X=9 factor=1.0",
    "reshape2": "X=2x6:int64:0..9 shape=[-1]; X=4x1 shape=[4]; X=2x3x4 shape=[0,0,2,-1]", "transpose2": "X=2x3x4x5x6 axis=[4,0,3,1,2]; X=33x65 axis=[1,0]; X=2x3:int32:0..9 axis=[1,0]",
    "flatten_contiguous_range": "X=2x3x4x5 start_axis=1 stop_axis=2; X=2x3x4x5 start_axis=0 stop_axis=-1; X=2x3x4 start_axis=1 stop_axis=1",
    "squeeze2": "X=1x3x1x2 axes=[0,2]; X=1x3x1x2 axes=[1]; X=1x1x1", "unsqueeze2": "X=3 axes=[0,1,-1]; X=2x3 axes=[-1,-1]; X=2x3:int64:0..9 axes=[0]",
    "concat": "X=2x3x4,2x5x4,2x1x4 axis=1; X=2x3x4,2x3x1 axis=-1; X=3:float64,4:float64", "split": "X=2x6x4 num=3 axis=1 Out=*3; X=7x3 sections=[1,2,-1] axis=0 Out=*3; X=2x6 num=2 axis=-1 Out=*2",
    "slice": "Input=5x6x7 axes=[0,2] starts=[1,-3] ends=[-1,9]; Input=5x6:int32:0..9 axes=[1] starts=[2] ends=[3] decrease_axis=[1]; Input=5x6x7 axes=[0,1] starts=[1,2] ends=[2,3] decrease_axis=[0,1]; "
             "Input=4 axes=[0] starts=[-1] ends=[2147483647]; Input=5x6 axes=[0] starts=[0] ends=[-2]",
    "stack": "X=2x3x4,2x3x4 axis=2; X=3:int64:0..9,3:int64:0..9 axis=-1; X=2x3,2x3,2x3 axis=1", "gather": "X=50x8 Index=20:int64:0..49; X=4x5x6 Index=3:int32:0..4 axis=1; X=4x5x6 Index=3:int64:0..5 axis=2; X=5x3:int64:0..9 Index=2:int64:0..4",
    "lookup_table_v2": "W=50x16 Ids=8x5:int64:0..49; W=50x16 Ids=8x5:int64:0..49 padding_idx=3L; W=10x4 Ids=6:int32:0..9 padding_idx=0L; W=10x4 Ids=3x2x2:int64:0..9",
    "expand_v2": "X=2x1x4 shape=[2,3,4]; X=1 shape=[5]; X=3x1 shape=[2,-1,4]; X=2x1:int64:0..9 shape=[2,3]", "tile": "X=2x3 repeat_times=[2,2,2]; X=2x3x4 repeat_times=[1,3]; X=2x3:int64:0..9 repeat_times=[2,1]",
    "unfold": "X=2x3x10x10 kernel_sizes=[3,3] paddings=[1,1,1,1]; X=1x2x9x8 kernel_sizes=[2,3] strides=[2,1] dilations=[2,2] paddings=[0,1,2,1]",
    "pad": "X=2x3x4 paddings=[0,1,1,0,2,2]; X=5 paddings=[3,2] pad_value=-1.0; nograd X=3:int64:0..9 paddings=[1,1] pad_value=7.0", "where": "Condition=4x5:bool:0..1 X=4x5 Y=4x5; Condition=4:bool:0..1 X=4:int64:0..9 Y=4:int64:0..9",
    "equal": "X=30:float32:0..0 Y=30:float32:0..0; X=30:bool:0..1 Y=30:bool:0..1; X=2x3x4:int32:0..2 Y=3:int32:0..2 axis=1; X=5:int64:0..2 Y=scalar:int64:1..1", "not_equal": "X=30:int32:0..2 Y=30:int32:0..2; X=30:bool:0..1 Y=30:bool:0..1",
    "less_than": "X=30:int32:0..2 Y=30:int32:0..2; X=2x3x4 Y=4; X=2x3x4:int32:0..2 Y=3:int32:0..2 axis=1", "less_equal": "X=30:int32:0..2 Y=30:int32:0..2; X=2x3x4 Y=4", "greater_than": "X=30:int32:0..2 Y=30:int32:0..2; X=2x3x4 Y=4",
    "greater_equal": "X=30:int32:0..2 Y=30:int32:0..2; X=2x3x4 Y=4", "logical_and": "X=9:bool:0..1 Y=9:bool:0..1; X=9:int64:0..2 Y=9:int64:0..2; X=9:float32 Y=9:float32:0..0", "logical_or": "X=9:bool:0..1 Y=9:bool:0..1",
    "logical_not": "X=9:bool:0..1; X=9:int64:0..2", "logical_xor": "X=9:bool:0..1 Y=9:bool:0..1",
    "reduce_sum": "X=2x3x4x5 dim=[0,2]; X=100x100 reduce_all=true; X=2x3 dim=[0,1]; X=2x3 dim=[0,1] keep_dim=true; nograd X=9:int64:-9..9; nograd X=2x3:int32:0..9 dim=[1]; X=2x3 dim=[-1] out_dtype=6 in_dtype=5; nograd X=2x3:bool:0..1 dim=[1] in_dtype=0 out_dtype=3",
    "reduce_mean": "X=2x3x4x5 dim=[0,2]; X=100x100 reduce_all=true; X=2x3 dim=[0,1]; X=2x3x4 dim=[-1] keep_dim=true", "reduce_max": "X=2x3x4x5 dim=[0,2]; X=100x100 reduce_all=true; X=4x4:float32:0.5..0.5 dim=[1]; nograd X=3x4:int32:-9..9 dim=[1]",
    "reduce_min": "X=2x3x4x5 dim=[0,2]; X=100x100 reduce_all=true; X=4x4:float32:0.5..0.5 dim=[1]; nograd X=3x4:int32:-9..9 dim=[1]", "reduce_prod": "X=2x3x4x5:float32:0.5..1.5 dim=[0,2]; X=5x5:float32:0.5..1.5 dim=[1] keep_dim=true; nograd X=5:int64:1..4; nograd X=5:int32:1..4",
    "mean": "X=64x10; X=2x3x4x5; X=1", "arg_max": "X=20x30; X=20x30 axis=0L; X=4x5 dtype=2; X=3x4x5 axis=-2L keepdims=true; X=9:int64:0..2; X=3x4 flatten=true keepdims=true; X=5x4:float32:0.5..0.5 axis=1L",
    "arg_min": "X=20x30; X=20x30 axis=0L; X=4x5 dtype=2; X=9:int64:0..2", "one_hot_v2": "X=8:int64:0..9 depth=10; X=3x2:int64:0..3 depth=4; X=5:int32:0..3 depth=4 dtype=5",
    "top_k_v2": "X=20x30 k=5; X=20x30 k=5 axis=0; X=20x30 k=3 largest=false; X=4x5x6 k=2 axis=-2; nograd X=9:int64:0..100 k=4", "top_k": "X=20x30 k=5",
    "accuracy": "Out=64x1 Indices=64x1:int64:0..9 Label=64x1:int64:0..9; Out=64x5 Indices=64x5:int64:0..9 Label=64x1:int64:0..9",
    "softmax_with_cross_entropy": "Logits=64x10:float32:-9..9 Label=64x1:int64:0..9; Logits=8x10 Label=8x1:int64:0..9 ignore_index=3; Logits=8x10 Label=8x10:float32:0..1 soft_label=true; "
                                  "Logits=2x3x4x5 Label=2x3x4x1:int64:0..4; Logits=2x5x3x4 Label=2x1x3x4:int64:0..4 axis=1; Logits=8x10:float32:-20..20 Label=8x1:int64:0..9; Logits=8x10 Label=8x1:int64:0..9 numeric_stable_mode=false; "
                                  "Logits=4x3:float64 Label=4x1:int64:0..2; Logits=8x1:float32 Label=8x1:int64:0..0",
    "cross_entropy2": "X=16x10:float32:0.01..0.99 Label=16x1:int64:0..9; X=16x10:float32:0.01..0.99 Label=16x1:int64:0..9 ignore_index=4",
    "cross_entropy": "X=16x10:float32:0.01..0.99 Label=16x1:int64:0..9 ignore_index=4", "sigmoid_cross_entropy_with_logits": "X=8x10:float32:-30..30 Label=8x10:float32:0..1; X=9:float32:-3..3 Label=9:float32:0..1 pos_weight=9:float32:0.5..2", "huber_loss": "X=20x1:float32:-3..3 Y=20x1:float32:-3..3 delta=1.0; X=4x5:float32:-3..3 Y=4x5:float32:-3..3 delta=0.3",
    "squared_l2_norm": "X=100x100", "sgd": "Param=30x20 LearningRate=1:float32:0.1..0.1 Grad=30x20", "momentum": "Param=30x20 Grad=30x20 Velocity=30x20 LearningRate=1:float32:0.01..0.1 mu=0.9 use_nesterov=true regularization_method='l2_decay' regularization_coeff=0.01; "
    "Param=4 Grad=4 Velocity=4 LearningRate=1 mu=0.9 rescale_grad=0.5",
    "adam": "Param=30x20 Grad=30x20 LearningRate=1:float32:0.01..0.1 Moment1=30x20 Moment2=30x20:float32:0..1 Beta1Pow=1:float32:0.9..0.9 Beta2Pow=1:float32:0.999..0.999; Param=7 Grad=7 LearningRate=1 Moment1=7 Moment2=7:float32:0.1..1 Beta1Pow=1:float32:0.5..0.9 Beta2Pow=1:float32:0.5..0.9 Beta1Tensor=1:float32:0.7..0.8 Beta2Tensor=1:float32:0.7..0.8 EpsilonTensor=1:float32:0.01..0.02; "
            "Param=7 Grad=7 LearningRate=1 Moment1=7 Moment2=7:float32:0.1..1 Beta1Pow=1:float32:0.5..0.9 Beta2Pow=1:float32:0.5..0.9 SkipUpdate=1:bool:0..0 lazy_mode=true",
    "adamw": "Param=30x20 Grad=30x20 LearningRate=1:float32:0.01..0.1 Moment1=30x20 Moment2=30x20:float32:0..1 Beta1Pow=1:float32:0.9..0.9 Beta2Pow=1:float32:0.999..0.999 with_decay=true coeff=0.05 lr_ratio=0.5; Param=7 Grad=7 LearningRate=1 Moment1=7 Moment2=7:float32:0.1..1 Beta1Pow=1:float32:0.5..0.9 Beta2Pow=1:float32:0.5..0.9 SkipUpdate=1:bool:1..1 with_decay=true",
    "rmsprop": "Param=30x20 MeanSquare=30x20:float32:0..1 Grad=30x20 Moment=30x20 LearningRate=1:float32:0.01..0.1 decay=0.8 epsilon=1e-6 momentum=0.5 MeanGrad=30x20; Param=5 MeanSquare=5:float32:1..2 Grad=5 Moment=5 LearningRate=1 MeanGrad=5:float32:-0.1..0.1 centered=true",
    "adagrad": "Param=30x20 Grad=30x20 Moment=30x20:float32:0..1 LearningRate=1:float32:0.01..0.1",
    "fill_constant": "shape=[3,4]L dtype=3 value=7.0; shape=[3]L dtype=0 value=1.0; shape=[2]L dtype=5 str_value='1e-3'; shape=[2]L dtype=2 str_value='-5'; shape=[2]L dtype=5 str_value='nan'; ShapeTensor=2:int64:3..3 value=2.0; ShapeTensorList=1:int32:2..2,1:int32:3..3 dtype=5 value=4.0; shape=[2,2]L dtype=4 value=0.1",
    "increment": "X=1:int32:0..9 step=3.0; X=1:float32 step=-0.5", "shape": "Input=2x3x4; Input=2x3:int64:0..3",
    "assign": "X=2x3:int64:0..9; X=2x3:bool:0..1; X=4x5:float64", "assign_value": "shape=[2,3] dtype=3 int64_values=[1,2,3,4,5,6]L; shape=[0] dtype=5",
    "dropout": "X=9 dropout_prob=0.0 dropout_implementation='upscale_in_train'; nograd X=4x5 dropout_prob=0.3 is_test=true; nograd X=4x5 dropout_prob=0.3 is_test=true dropout_implementation='upscale_in_train'",
    "cumsum": "X=20x30; X=20x30 axis=0; X=4x5x6 axis=-2 reverse=true", "argsort": "X=20x30; X=20x30 axis=0 descending=true", "group_norm": "X=4x8x5x5 Scale=8 Bias=8 groups=4",
    "bincount": "X=20:int64:0..5; X=20:int32:0..5 Weights=20:int32:-3..3; X=20:int32:0..5 Weights=20 minlength=4", "histogram": "X=20x30 bins=7L; X=50:int32:-9..9 bins=5L min=-3 max=4",
    "cummax": "x=4x60:int64:0..9; x=4x60 axis=0; x=5:float32:-1..-1", "cummin": "x=4x60:int64:0..9; x=4x60 axis=0; x=5:float32:-1..-1", "mode": "nograd X=20x12:int64:0..3; X=4x3x5 axis=1",
    "index_put": "nograd x=6x5:int64:0..9 indices=4:int64:-6..5 value=1:int64:0..9 accumulate=true; x=6x5x2 indices=3:int64:-6..5,3:int64:-5..4 value=3x2 accumulate=true",
    "i0": "x=60:float32:-30..30", "i0e": "x=60:float32:-90..90; x=60:float64:-90..90", "i1": "x=60:float32:-30..30", "i1e": "x=60:float32:-90..90", "polygamma": "x=60:float32:0.1..50 n=2",
    "max_pool3d_with_index": "X=2x3x7x9x8 ksize=[3,2,3] strides=[2,2,1] paddings=[1,0,1]", "hierarchical_sigmoid": "X=30x8 W=99x8 Label=30x1:int64:0..99 Bias=99x1 num_classes=100; X=6x9:float32:-9..9 W=5x9:float32:1..9 Label=6x1:int64:0..5 num_classes=6",
    "instance_norm": "X=4x8x5x5 Scale=8 Bias=8", "logsumexp": "X=20x30 axis=[1]; X=4x5x6 axis=[0,2]",
    "yolov3_loss": "X=2x255x13x13 GTBox=2x20x4:float32:0.02..0.98 GTLabel=2x20:int32:0..79 anchors=[10,13,16,30,33,23,30,61,62,45,59,119,116,90,156,198,373,326] anchor_mask=[6,7,8] class_num=80; "
                   "X=3x21x8x8:float32:-3..3 GTBox=3x30x4:float32:-0.1..0.4 GTLabel=3x30:int32:0..1 GTScore=3x30:float32:0..1 anchors=[10,13,16,30,33,23,30,61,62,45,59,119] anchor_mask=[0,2,5] class_num=2 ignore_thresh=0.4 downsample_ratio=16 scale_x_y=1.05; "
                   "X=2x24x4x4:float64 GTBox=2x5x4:float64:0.1..0.9 GTLabel=2x5:int32:0..2 anchors=[10,13,16,30,33,23] anchor_mask=[0,1,2] class_num=3 use_label_smooth=false; "
                   "X=2x24x4x4 GTBox=2x5x4:float32:0..0 GTLabel=2x5:int32:0..2 anchors=[10,13,16,30,33,23] anchor_mask=[0,1,2] class_num=3",
}
RANDOM = {  # what is fetched is compared by its distribution
    "nce": "nograd Input=20000x3 Label=20000x1:int64:0..4 Weight=5x3 Bias=5 num_total_classes=5 num_neg_samples=6; nograd Input=20000x2 Label=20000x2:int64:0..6 Weight=7x2 num_total_classes=7 num_neg_samples=4 sampler=1; "
           "Input=200x3 Label=200x1:int64:0..3 Weight=4x3 Bias=4 SampleWeight=200x1:float32:0.5..2 CustomDistProbs=4:float32:0.2..0.3 CustomDistAlias=4:int32:0..0 CustomDistAliasProbs=4:float32:0..0 num_total_classes=4 num_neg_samples=3 sampler=2",
    "uniform_random": "shape=[200,300]L; shape=[60000]L min=2.0 max=3.0 seed=3 dtype=6; shape=[300,200]L min=-0.1 max=0.1 seed=7; ShapeTensor=2:int64:250..250 min=0.0",
    "gaussian_random": "shape=[200,300]L; shape=[60000]L mean=1.0 std=0.5 seed=3 dtype=6", "truncated_gaussian_random": "shape=[200,300]; shape=[60000] mean=1.0 std=0.5 seed=3 dtype=6",
    "randint": "shape=[200,300]L high=4; shape=[60000]L low=-3 high=9 dtype=2 seed=5", "randperm": "n=60000; n=30000 dtype=2 seed=4", "bernoulli": "X=200x300:float32:0.3..0.3", "rrelu": "X=200x300:float32:-1..-1; X=200x300 is_test=true; X=200x300:float32:1..1 lower=0.2 upper=0.5",
    "multinomial": "X=20000x5:float32:0.2..0.2 num_samples=3; X=20000x4:float32:0.5..0.5 num_samples=6 replacement=true", "sampling_id": "X=60000x4:float32:0.25..0.25",
    "gumbel_softmax": "nograd X=20000x4:float32:0.5..0.5 temperature=0.7; nograd X=20000x4:float32:0.5..0.5 hard=true", "exponential": "X=900x900:float32:1..1 lambda=2.0",
    "uniform_random_inplace": "X=200x300 min=0.0 max=3.0", "gaussian_inplace": "x=200x300 mean=1.0 std=2.0",
    "uniform_random_batch_size_like": "Input=200x4 shape=[-1,300]", "dropout": "X=200x300:float32:1..1; X=200x300:float32:1..1 dropout_prob=0.3 dropout_implementation='upscale_in_train'; "
    "X=200x300:float32:1..1 dropout_prob=0.1 fix_seed=true seed=7; X=200x300:float32:1..1 dropout_prob=1.0; X=200x300:float32:1..1 dropout_prob=1.0 dropout_implementation='upscale_in_train'",
}
OPTIMIZERS = {"average_accumulates", "dpsgd", "sgd", "momentum", "adam", "adamw", "rmsprop", "adagrad", "adadelta", "adamax", "decayed_adagrad", "ftrl", "lamb", "lars_momentum"}
KEPT = {"BatchSize", "BatchSum", "BatchSquareSum"}  # slots of what a program keeps, which a gradient operator names as results
UNMOVED = {"GTBox", "GTScore"}  # slots whose gradients PaddlePaddle declares and leaves unset


KNOWN = [  # (operator, what its cases have in common, why the results differ)
    ("cholesky_solve", r"Y=(?!1x1)", "PaddlePaddle's gradient reads Y outside its triangle too (central differences agree with Kiln)"),
    ("dpsgd", r"^(?!.*sigma=0)", "one random number"),
    ("gather", r"axis=[12]", "PaddlePaddle's gradient is wrong but for axis 0 (central differences agree with Kiln)"),
    ("group_norm", r"^(?!.*Scale)", "PaddlePaddle's gradient without Scale is wrong (central differences agree with Kiln)"),
    ("sigmoid_cross_entropy_with_logits", r"pos_weight", "PaddlePaddle's gradient is sigmoid(x) * pos_weight - label, not that of its forward formula"),
    ("hard_swish", r"threshold", "PaddlePaddle 2.6 ignores these attributes"),
    ("relu6", r"threshold", "PaddlePaddle 2.6 ignores the attribute"),
    ("swish", r"beta", "PaddlePaddle 2.6 ignores the attribute"),
    ("eigh", r"X=4x4|X=30x30", "the signs of eigenvectors are a matter of rounding"),
    ("eigvalsh", r"nograd X=4x4", "the signs of eigenvectors are a matter of rounding"),
    ("eigh", r"X=2x3x3", "PaddlePaddle's gradient of several matrices is not that of each"),
    ("eigvalsh", r"X=2x3x3", "PaddlePaddle's gradient of several matrices is not that of each"),
    ("svd", r"X=20x30", "the signs of singular vectors are a matter of rounding"),
    ("conv2d_transpose", r"Bias", "PaddlePaddle's plain kernel ignores Bias"),
    ("pool2d", r"adaptive=true(?!.*avg)", "PaddlePaddle's maximum ignores adaptive; its layers emit max_pool2d_with_index"),
    ("fill_constant", r"9007199254740993", "PaddlePaddle rounds to float64"),
    ("take_along_axis", r"Axis=-2", "PaddlePaddle reads out of bounds"),
    ("cast", r"out_dtype=4", "PaddlePaddle truncates"),
    ("batch_norm", r"X=1x3|use_global_stats", "PaddlePaddle leaves the saved statistics unset (gradients agree)"),
    ("batch_norm", r"trainable_statistics", "PaddlePaddle's gradient takes the running statistics, its forward pass those of the batch"),
    ("shuffle_channel", r"group=3", "PaddlePaddle's gradient deals out again in the same groups"),
    ("spectral_norm", r"", "PaddlePaddle's gradient is wrong (central differences agree with Kiln where nothing is iterated)"),
    ("index_put", r"^(?!.*accumulate=true)", "PaddlePaddle's gradient counts values that others overwrote"),
    ("triangular_solve", r"unitriangular=true", "PaddlePaddle's gradient has a diagonal, which is not read"),
    ("empty", r"", "PaddlePaddle leaves the memory as it is"),
    ("fill_diagonal", r"X=\d+x\d+x", "PaddlePaddle stops after the first matrix"),
    ("cross_entropy2", r"ignore_index", "PaddlePaddle leaves MatchX of ignored labels unset"),
]


def known(op, text):
    return next((why for o, part, why in KNOWN if o == op and re.search(part, text)), None)


def written_to(op, output):
    """The input slot whose variable an output slot overwrites, as PaddlePaddle's layers and optimisers have it."""
    if "batch_norm" in op:
        return {"MeanOut": "Mean", "VarianceOut": "Variance"}.get(output)
    return re.sub("^out_", "in_", output.replace("AccumOut", "Accumulator")).removesuffix("Out") if op in OPTIMIZERS else None



def literal(text):
    """A literal of the text form at the start of text, and what is behind it."""
    m = re.match(r"'([^']*)'", text)
    if m:
        return m[1], text[m.end():]
    m = re.match(r"\[([^\]]*)\][LFDBS]?", text)
    if m:
        return [literal(x.strip())[0] for x in m[1].split(",") if x.strip()], text[m.end():]
    m = re.match(r"[^\s,\]]+", text)
    w = m[0].rstrip("LD")
    v = w == "true" if w in ("true", "false") else float(w) if re.search(r"[.ein]", w) else int(w)
    return v, text[m.end():]


class Case:
    """One example: inputs {slot: [(dims, dtype, lo, hi)]}, output counts, attributes."""

    simplex = None  # the axis along which Label sums to 1

    def __init__(self, op, text, filled=False):
        self.op, self.text, self.ins, self.counts, self.attrs = op, text.strip(), {}, {}, {}
        words = self.text
        self.nograd = words.startswith("nograd ")
        words = re.sub(r"^(nograd |known )+", "", words)
        slots = {s.strip().rstrip("?*~") for s in op["inputs"].split(",")}
        while words := words.strip():
            name, words = words.split("=", 1)
            if name in slots and not words.startswith("*"):
                m = re.match(r"\S*", words)
                self.ins[name], words = [self.spec(x) for x in m[0].split(",")], words[m.end():]
            elif words.startswith("*"):
                m = re.match(r"\*(\d+)", words)
                self.counts[name], words = int(m[1]), words[m.end():]
            else:
                self.attrs[name], words = literal(words)
        if "soft_label" in self.attrs and self.attrs["soft_label"]:
            self.simplex = self.attrs.get("axis", -1)
        if op["name"] == "set_value" and "fp32_values" in self.attrs:  # before 2.5; now scalars
            self.attrs["values"] = self.attrs.pop("fp32_values")
        if op["name"] in ("slice", "strided_slice") and len(self.ins) == 1:
            self.attrs.setdefault("infer_flags", [1] * len(self.attrs["axes"]))
        for a in op["attributes"]:
            if a["default"] and (filled or a["name"] in ("interp_method", "pooling_type")):
                self.attrs.setdefault(a["name"], literal(a["default"])[0])

    @staticmethod
    def spec(text):
        parts = text.split(":")
        dims = [] if parts[0] == "scalar" else [int(x) for x in parts[0].split("x")]
        t = np.dtype(parts[1] if len(parts) > 1 else "float32")
        lo, hi = (-1, 1) if t.kind == "f" else (0, 1 if t.kind == "b" else 3)
        if len(parts) > 2:
            lo, hi = map(float, re.match(r"(.+?)\.\.(.+)", parts[2]).groups())
        return dims, t, lo, hi

    @property
    def empty(self):
        return any(0 in s[0] for l in self.ins.values() for s in l)


def cases_of(op, random):
    if random:
        texts = RANDOM[op["name"]]
    else:
        skip = {"dropout"} if op["name"] == "dropout" else set()
        texts = "" if skip else op["examples"]
        texts += ";" + CASES.get(op["name"], "")
    return [Case(op, t) for t in texts.split(";") if t.strip()]


def build(case, seed):
    """The PaddlePaddle program: (program, feeds, parameters, what to fetch)."""
    import paddle
    from paddle.base import core
    rng, op = np.random.RandomState(seed), case.op
    main, feeds, params, fetch = paddle.static.Program(), {}, {}, []
    with paddle.static.program_guard(main, paddle.static.Program()):
        b = main.global_block()
        inputs, floats = {}, []
        overwritten = {written_to(op["name"], o.strip().rstrip("?*~")) for o in op["outputs"].split(",")}
        for slot, specs in case.ins.items():
            names = []
            for i, (dims, t, lo, hi) in enumerate(specs):
                name = f"{slot}_{i}"
                v = b.create_var(name=name, shape=dims, dtype=t.name)
                v.stop_gradient = t.kind != "f" or slot in UNMOVED
                if lo == hi and t.kind != "b" and not slot in overwritten:
                    b.append_op(type="fill_constant", outputs={"Out": [name]},
                                attrs={"shape": dims, "dtype": v.dtype, "value": lo, "str_value": repr(lo if t.kind == "f" else int(lo))})
                else:
                    x = rng.uniform(lo, hi, dims) if t.kind == "f" else rng.randint(int(lo), int(hi) + 1, dims)
                    if slot == "Label" and case.simplex is not None:
                        x = x / x.sum(case.simplex, keepdims=True)
                    v.persistable = slot in KEPT
                    (params if v.persistable else feeds)[name] = np.asarray(x).astype(t)
                if not v.stop_gradient:
                    floats.append(name)
                names.append(name)
            inputs[slot] = names
        outputs, outs = {}, []
        real = next((t for specs in case.ins.values() for _, t, _, _ in specs if t.kind == "f"), np.dtype("float32")).name
        for s in filter(None, (x.strip() for x in op["outputs"].split(","))):
            name = s.rstrip("?*~")
            same = written_to(op["name"], name)
            same = same if same in case.ins else None
            n = case.counts.get(name, len(next(iter(case.ins.values()))) if "*" in s else 1)
            if same:
                for x in inputs[same]:
                    b.var(x).persistable = True
                    params[x] = feeds.pop(x)
                outputs[name] = inputs[same]
                outs += [(s, x) for x in inputs[same]]
                continue
            if "?" in s and name != "ReserveSpace" and name not in case.counts:
                continue
            outputs[name] = [f"{name}.{i}" for i in range(n)]
            for x in outputs[name]:
                b.create_var(name=x, dtype="uint8" if name == "Mask" and "~" in s else real)
                if name not in ("XShape", "ReserveSpace", "InnerCache", "MedianIndex"):  # PaddlePaddle declares other sizes
                    outs.append((s, x))
        b.append_op(type=op["name"], inputs=inputs, outputs=outputs, attrs=case.attrs)
        for x in outputs.get("Indices", []):  # PaddlePaddle leaves some as declared
            b.var(x).desc.set_dtype(core.VarDesc.VarType.INT64)
        fetch = [x for _, x in outs]
        if op["gradient"] and not case.nograd:
            total = []
            for s, name in outs:
                v = b.var(name)
                if v.dtype not in (core.VarDesc.VarType.FP32, core.VarDesc.VarType.FP64) or "~" in s or name in params:
                    continue
                if -1 in v.shape:
                    total.append(paddle.cast(paddle.sum(v * v), "float64"))
                    continue
                w = b.create_var(name="w." + name, shape=v.shape, dtype=v.dtype)
                w.stop_gradient = True
                feeds[w.name] = np.asarray(rng.uniform(-1, 1, v.shape)).astype("float64" if v.dtype == core.VarDesc.VarType.FP64 else "float32")
                total.append(paddle.cast(paddle.sum(v * w), "float64"))
            loss = paddle.add_n(total) if len(total) > 1 else total[0] if total else None
            if loss is not None:
                paddle.static.append_backward(loss, parameter_list=reachable(main, loss, floats))
                fetch += [n + "@GRAD" for n in floats if b.has_var(n + "@GRAD")]
    return main, feeds, params, fetch


def reachable(main, loss, names):
    """append_backward complains of parameters that get no gradient: a trial run on a copy tells which do."""
    import paddle
    trial = main.clone()
    with paddle.static.program_guard(trial, paddle.static.Program()):
        pairs = paddle.static.append_backward(trial.global_block().var(loss.name), parameter_list=names)
    return [p if isinstance(p, str) else p.name for p, g in pairs if g is not None]




def wrong_defaults(case, program):
    """Attributes that the case does not give, and that PaddlePaddle fills in otherwise than Kiln's row says."""
    bad = []
    op = next(o for o in program.global_block().ops if o.type == case.op["name"])
    if op.type == "fill_constant":  # others of the program come first
        return bad
    for a in case.op["attributes"]:
        name = a["name"]
        if a["default"] is None or name in case.attrs or not op.has_attr(name):
            continue
        want, mine = op.attr(name), literal(a["default"])[0]
        floats = a["type"].startswith("FLOAT") and want and np.array_equal(np.float32(want), np.float32(mine))
        if name != "use_cudnn" and want != mine and not floats and want is not None:
            bad.append(f"default of {name}: {mine!r}, PaddlePaddle: {want!r}")
    return bad


def distribution_error(got, want):
    """Difference of mean and deviation in units of the deviation; inf if shape, type or range differ."""
    if got.shape != want.shape or got.dtype != want.dtype:
        return float("inf")
    a, b = got.astype(np.float64), want.astype(np.float64)
    spread = max(b.std(), 1e-9)
    values = np.unique(b.round(5))
    if values.size < 100:
        share = [np.array([(np.abs(x - v) < 1e-4).mean() for v in values]) for x in (a, b)]
        return float(np.abs(share[0] - share[1]).max()) if abs(share[0].sum() - 1) < 1e-9 else float("inf")
    a, b = np.sort(a, None), np.sort(b, None)
    if np.abs(a - b)[a.size // 100:-a.size // 100].max() > 0.1 * spread + 1e-6:
        return float("inf")
    return max(abs(a.mean() - b.mean()), abs(a.std() - b.std())) / max(spread, 1e-3)


def check(build_dir, case, folder, random, seed):
    """(worst error, complaints); None: PaddlePaddle refuses the case."""
    import paddle
    try:
        main, feeds, params, fetch = build(case, seed)
        exe = paddle.static.Executor(paddle.CPUPlace())
        for n, v in params.items():
            paddle.static.global_scope().var(n).get_tensor().set(v, paddle.CPUPlace())
        values = exe.run(main, feed=feeds, fetch_list=fetch)
        want = {n: v for n, v in zip(fetch, values) if v is not None}
    except Exception as e:
        lines = [l.strip() for l in str(e).splitlines() if l.strip()]
        said = [l for l in lines if "Error" in l and not l.startswith("File")] or lines[-1:] or [repr(e)]
        return None, [said[-1][:200]]
    model = f"{folder}/main.pdmodel"
    with open(model, "wb") as f:
        f.write(main.desc.serialize_to_string())
    write_params(f"{folder}/main.pdiparams", params)
    try:
        got = run(build_dir, model, folder, feeds, list(want))
    except KilnError as e:
        return float("inf"), [str(e)]
    worst, bad = 0.0, wrong_defaults(case, main)
    for name in want:
        e = distribution_error(got[name], want[name]) if random and "Mask" not in name else error(got[name], want[name]) if not random else 0.0
        limit = 0.02 if random else 5e-4 if want[name].dtype == np.float16 else TOLERANCE
        if e > limit:
            bad.append(f"{name}: {describe(got[name], want[name]) if not random else f'distribution differs by {e}'}")
        worst = max(worst, e)
    return worst, bad


def in_child(f, *args):
    """f(*args) in a process of its own, as PaddlePaddle may crash; None then."""
    r, w = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(r)
        if os.environ.get("PEERS_DEBUG") is None:
            for fd in (1, 2):
                os.dup2(os.open(os.devnull, os.O_WRONLY), fd)
        try:
            result = f(*args)
        except Exception:
            result = float("inf"), [traceback.format_exc()]
        with os.fdopen(w, "wb") as p:
            pickle.dump(result, p)
        os._exit(0)
    os.close(w)
    with os.fdopen(r, "rb") as p:
        data = p.read()
    os.waitpid(pid, 0)
    return pickle.loads(data) if data else None


def checked(build_dir, op, case, folder, random):
    """check() of a case; of the case with the row's defaults filled in, where PaddlePaddle has none for an attribute."""
    os.makedirs(folder, exist_ok=True)
    for one in (case, Case(op, case.text, True)):
        e, bad = in_child(check, build_dir, one, folder, random, zlib.crc32(case.text.encode())) or (None, ["it crashes"])
        if e is not None:
            break
    return e, bad


def operator(build_dir, op, folder, random):
    """All cases of an operator: the greatest error, complaints, how many cases PaddlePaddle runs."""
    worst, wrong, refused, notes, number = 0.0, 0, 0, [], 0
    for i, case in enumerate(cases_of(op, random)):
        if case.empty:
            continue
        e, bad = checked(build_dir, op, case, f"{folder}/{'random' if random else 'case'}{i}", random)
        if e is None:
            refused += 1
            notes.append(f"PaddlePaddle refuses {case.text}: {bad[0]}")
            continue
        number += 1
        why = known(op["name"], case.text) if bad else None
        if why:
            notes.append(f"{case.text}: {why}")
            continue
        worst = max(worst, e)
        wrong += bool(bad)
        notes += [l for b in bad for l in (case.text, "    " + b)]
    return worst, wrong, notes, number


def cases(build_dir, folder):
    return {o["name"]: o for o in json.loads(kiln(build_dir, "ops", "--json")) if not o["forward"] and o["name"] not in ("feed", "fetch", "fetch_v2")}


def compare(build_dir, name, op, folder):
    from paddle.base.framework import OpProtoHolder
    if name not in OpProtoHolder.instance().op_proto_map:
        return Outcome({}, ["PaddlePaddle 2.6 has no such operator"], 0)
    figures, notes, number = {}, [], 0
    for random in (False, True):
        if random and name not in RANDOM or not random and name in set(RANDOM) - {"dropout"}:
            continue
        e, wrong, n, count = operator(build_dir, op, folder, random)
        figures |= {"distributions" if random else "values, gradients": (e, 0.02 if random else 5e-4), "cases that differ": (wrong, 0)}
        notes, number = notes + n, number + count
    return Outcome(figures, notes, number)
