"""Networks beside those of paddle.vision: inference models saved by PaddlePaddle, run by both on inputs of several sizes.

Every network is made with unknown batch size (and image size, sequence length where it has them); each of its runs feeds other
dimensions. Batch normalisations get the statistics of some batches first.
"""
from train import *
from rednet import RedNet


def bert(layers=12, width=768, heads=12, words=2000):
    """The encoder of BERT: embeddings of words, positions and segments, a mask of what is padding, layers, the pooled first word."""
    nn = paddle.nn
    ids = static.data("ids", [-1, -1], "int64")
    segments = static.data("segments", [-1, -1], "int64")
    ones = paddle.ones_like(ids)
    positions = paddle.cumsum(ones, axis=1) - ones
    mask = paddle.unsqueeze((ids == 0).astype("float32") * -1e4, [1, 2])
    h = nn.Embedding(words, width)(ids) + nn.Embedding(512, width)(positions) + nn.Embedding(2, width)(segments)
    h = nn.Dropout(0.1)(nn.LayerNorm(width)(h))
    layer = nn.TransformerEncoderLayer(width, heads, 4 * width, 0.1, "gelu")
    h = nn.TransformerEncoder(layer, layers)(h, mask)
    return [h, F.tanh(nn.Linear(width, width)(h[:, 0]))]


def words(*dims, hi=2000):
    return lambda rng: {"ids": rng.randint(0, hi, dims).astype("int64"), "segments": rng.randint(0, 2, dims).astype("int64")}


def floats(name, *dims):
    return lambda rng: {name: rng.randn(*dims).astype("float32")}


def recurrent(kind, **options):
    def make():
        x = static.data("x", [-1, -1, 24], "float32")
        out, state = getattr(paddle.nn, kind)(24, 32, **options)(x)
        return [out, *(state if isinstance(state, (tuple, list)) else [state])]
    return make


def lengths():
    x, n = static.data("x", [-1, -1, 24], "float32"), static.data("n", [-1], "int64")
    out, (h, c) = paddle.nn.LSTM(24, 32, num_layers=2, direction="bidirect")(x, sequence_length=n)
    return [out, h, c]


def with_lengths(n, t):
    return lambda rng: {"x": rng.randn(n, t, 24).astype("float32"), "n": rng.randint(1, t + 1, [n]).astype("int64")}


def crnn():
    """Text recognition: convolutions, columns as a sequence, recurrent layers, classes for every column."""
    nn = paddle.nn
    h = static.data("x", [-1, 3, 32, -1], "float32")
    for i, (c, stride) in enumerate([(8, 2), (16, (2, 1)), (32, (2, 1)), (32, (2, 1)), (32, (2, 1))]):
        h = F.hardswish(nn.BatchNorm2D(c)(nn.Conv2D(h.shape[1], c, 3, stride, 1, bias_attr=False)(h)))
    h = paddle.transpose(paddle.squeeze(h, axis=2), [0, 2, 1])
    h, _ = nn.LSTM(32, 24, num_layers=2, direction="bidirectional")(h)
    return [F.softmax(nn.Linear(48, 60)(h), axis=2)]


def pyramid():
    """Segmentation-like: down, up by interpolation and transposed convolution, skips; any height and width divisible by 8."""
    nn = paddle.nn
    h = x = static.data("x", [-1, 3, -1, -1], "float32")
    kept = []
    for c in (8, 16, 24):
        h = F.hardswish(nn.BatchNorm2D(c)(nn.Conv2D(h.shape[1], c, 3, 2, 1)(h)))
        h = h * F.hardsigmoid(nn.Conv2D(c, c, 1)(F.adaptive_avg_pool2d(h, 1)))
        kept.append(h)
    h = kept[2]
    for skip in (kept[1], kept[0]):
        h = nn.Conv2D(h.shape[1], skip.shape[1], 1)(F.interpolate(h, scale_factor=2, mode="nearest")) + skip
    up = F.interpolate(kept[2], size=paddle.shape(h)[2:], mode="bilinear", align_corners=False)
    h = paddle.concat([h, up], axis=1)
    return [F.sigmoid(nn.Conv2DTranspose(32, 1, 2, 2)(F.relu(h)))]


def appended(kind, ins, outs, **attrs):
    """An operator without a function of its own in Python: outs {slot: dtype} -> variables."""
    block = static.default_main_program().current_block()
    made = {slot: block.create_var(dtype=t) for slot, t in outs.items()}
    block.append_op(type=kind, inputs=ins, outputs=made, attrs=attrs)
    return list(made.values())


def yolo():
    """Heads of YOLO over two scales, and the boxes that are left."""
    nn = paddle.nn
    size = static.data("size", [-1, 2], "int32")
    h = F.leaky_relu(nn.BatchNorm2D(8)(nn.Conv2D(3, 8, 3, 4, 1)(static.data("x", [-1, 3, -1, -1], "float32"))))
    boxes, scores = [], []
    for stride, anchors in ((8, [10, 13, 16, 30]), (16, [30, 61, 62, 45])):
        h = F.leaky_relu(nn.Conv2D(h.shape[1], 16, 3, 2, 1)(h))
        b, p = paddle.vision.ops.yolo_box(nn.Conv2D(16, 16, 1)(h) * 4, size, anchors, 3, 0.3, stride)
        boxes.append(b)
        scores.append(paddle.transpose(p, [0, 2, 1]))
    boxes, scores = paddle.concat(boxes, axis=1), paddle.concat(scores, axis=2)
    ins = {"BBoxes": boxes, "Scores": scores}
    common = {"score_threshold": 0.4, "nms_top_k": 60, "keep_top_k": 20, "background_label": -1, "normalized": False}
    hard = appended("multiclass_nms3", ins, {"Out": "float32", "Index": "int32", "NmsRoisNum": "int32"}, nms_threshold=0.45, nms_eta=0.9, **common)
    soft = appended("matrix_nms", ins, {"Out": "float32", "Index": "int32", "RoisNum": "int32"}, post_threshold=0.2, use_gaussian=True, gaussian_sigma=2.0, **common)
    return [paddle.scale(hard[0], 2.0), hard[2], paddle.sum(soft[0], axis=0), soft[2]]


def regions():
    """Boxes dealt out over a pyramid, looked at in each level, and the best of all levels."""
    boxes, number = static.data("boxes", [-1, 4], "float32"), static.data("number", [-1], "int32")
    levels, restore, numbers = paddle.vision.ops.distribute_fpn_proposals(boxes, 2, 5, 4, 224, rois_num=number)
    sizes = [v[:, 3:] for v in levels]
    ins = {"MultiLevelRois": levels, "MultiLevelScores": sizes, "MultiLevelRoIsNum": numbers}
    best = appended("collect_fpn_proposals", ins, {"FpnRois": "float32", "RoisNum": "int32"}, post_nms_topN=12)
    back = paddle.gather(paddle.concat(levels, axis=0), paddle.flatten(restore))
    return [paddle.transpose(back, [1, 0]), restore, paddle.concat(numbers), paddle.transpose(best[0], [1, 0]), best[1]]


def boxes_feed(*numbers):
    def feed(rng):
        n = sum(numbers)
        corner, size = rng.rand(n, 2) * 300, np.exp2(rng.rand(n, 2) * 6 + 4)
        return {"boxes": np.concatenate([corner, corner + size], 1).astype("float32"), "number": np.array(numbers, "int32")}
    return feed


def yolo_feed(n, *size):
    return lambda rng: {"x": rng.randn(n, 3, *size).astype("float32"), "size": np.tile(np.array(size, "int32"), (n, 1))}


def rednet():
    return [RedNet(26)(static.data("x", [-1, 3, -1, -1], "float32"))]


def decoder(layers=2, width=256, heads=4, words=5000, t=64):
    """Words from those before them; norms come before what they serve, so the last one stands between two products of weights."""
    nn = paddle.nn
    h = nn.Embedding(words, width)(static.data("x", [-1, t], "int64"))
    for _ in range(layers):
        q, k, v = (nn.Linear(width, width)(n).reshape([-1, t, heads, width // heads]).transpose([0, 2, 1, 3]) for n in [nn.LayerNorm(width)(h)] * 3)
        a = paddle.matmul(q, k, transpose_y=True) * (width // heads) ** -0.5 + paddle.triu(paddle.full([t, t], -1e9), 1)
        h = h + nn.Linear(width, width)(paddle.matmul(F.softmax(a), v).transpose([0, 2, 1, 3]).reshape([-1, t, width]))
        h = h + nn.Linear(4 * width, width)(F.gelu(nn.Linear(width, 4 * width)(nn.LayerNorm(width)(h))))
    return [nn.Linear(width, words, bias_attr=False)(nn.LayerNorm(width)(h))]


def ids(*dims):
    return lambda rng: {"x": rng.randint(0, 5000, dims).astype("int64")}


def image(*dims):
    return floats("x", *dims)


NETS = {
    "bert base": (bert, [words(2, 32), words(1, 17)]),
    "lstm": (recurrent("LSTM"), [floats("x", 3, 7, 24), floats("x", 1, 12, 24)]),
    "lstm, 2 layers, bidirectional": (recurrent("LSTM", num_layers=2, direction="bidirect"), [floats("x", 3, 7, 24), floats("x", 2, 3, 24)]),
    "gru, 2 layers, bidirectional": (recurrent("GRU", num_layers=2, direction="bidirect"), [floats("x", 3, 7, 24), floats("x", 2, 3, 24)]),
    "simple rnn, 2 layers": (recurrent("SimpleRNN", num_layers=2, time_major=True), [floats("x", 7, 3, 24)]),
    "lstm with lengths": (lengths, [with_lengths(4, 9), with_lengths(2, 5)]),
    "crnn": (crnn, [image(2, 3, 32, 100), image(1, 3, 32, 64)]),
    "pyramid": (pyramid, [image(1, 3, 64, 96), image(2, 3, 40, 32)]),
    "yolo heads, nms": (yolo, [yolo_feed(2, 64, 96), yolo_feed(1, 128, 64)]),
    "regions of a pyramid": (regions, [boxes_feed(9, 20), boxes_feed(7)]),
    "decoder of words": (decoder, [ids(1, 64), ids(3, 64)]), "rednet26": (rednet, [image(2, 3, 64, 64), image(1, 3, 96, 64)]),
}


def statistics(main, exe, make):
    """Running statistics of the kind that training leaves: those of some batches. Initial ones let values vanish or overflow."""
    if any(op.type == "batch_norm" for op in main.global_block().ops):
        for i in range(40):
            exe.run(main, feed=make(np.random.RandomState(100 + i)))


def peer(path, exe, feed):
    """What PaddlePaddle gives, [(name, value)]. In a scope of its own: tensor arrays grow from run to run."""
    with static.scope_guard(static.Scope()):
        program, _, fetch = static.load_inference_model(path, exe)
        return list(zip([f.name for f in fetch], exe.run(program, feed=feed, fetch_list=fetch)))


FLOAT32, FLOAT64 = 5, 6  # as attributes have them


def in_double(path, exe, feed):
    """The same with all of the program in float64: what float32 rounds, on either side, is told from what is wrong."""
    with static.scope_guard(static.Scope()):
        program, _, fetch = static.load_inference_model(path, exe)
        for block in program.blocks:
            for v in block.vars.values():
                if v.type != paddle.base.core.VarDesc.VarType.LOD_TENSOR or v.dtype != paddle.float32:
                    continue
                v.desc.set_dtype(paddle.float64)
                if v.persistable:
                    value = static.global_scope().find_var(v.name).get_tensor()
                    value.set(np.array(value).astype("float64"), paddle.CPUPlace())
            for op in block.ops:
                for name in "dtype", "in_dtype", "out_dtype":
                    if op.has_attr(name) and op.attr(name) == FLOAT32:
                        op._set_attr(name, FLOAT64)
        wide = {n: v.astype("float64") if v.dtype == np.float32 else v for n, v in feed.items()}
        values = exe.run(program, feed=wide, fetch_list=fetch)
        return [(f.name, v.astype("float32") if v.dtype == np.float64 else v) for f, v in zip(fetch, values)]


def compared_runs(build, folder, exe, runs, peer=peer, limit=1e-4):
    """The model m in the folder, on the feeds that `runs` make: figures of Kiln's results, and of the model that Kiln wrote of it."""
    errors = []
    for i, make in enumerate(runs):
        feed = make(np.random.RandomState(i))
        want = peer(f"{folder}/m", exe, feed)
        got = run(build, f"{folder}/m.pdmodel", folder, feed, [n for n, _ in want])
        errors += [error(got[n], w, 1e-30) for n, w in want]
    again = run(build, f"{folder}/m.pdmodel", folder, feed, [n for n, _ in want])  # with what the run before has left on the disk
    for to, of in ("once", "m"), ("twice", "once"):
        kiln(build, "convert", f"{folder}/{of}.pdmodel", "-o", f"{folder}/{to}.pdmodel")
    once, twice = ([open(p, "rb").read() for p in sorted(glob.glob(f"{folder}/{n}.*"))] for n in ("once", "twice"))
    after = peer(f"{folder}/once", exe, feed)
    return {"results": (max(errors), limit), "saved by Kiln": (max(error(a, w) for (_, a), (_, w) in zip(after, want)), 0), "bytes, twice saved": (once != twice, 0),
            "run again": (any(again[n].tobytes() != got[n].tobytes() for n in got), 0)}


def compare(build, _, net, folder):
    net, runs = net
    paddle.seed(3)
    main, startup = static.Program(), static.Program()
    with static.program_guard(main, startup), paddle.utils.unique_name.guard(), static.scope_guard(static.Scope()):
        outs = net()
        exe = static.Executor(paddle.CPUPlace())
        exe.run(startup)
        statistics(main, exe, runs[0])
        size = sum(int(np.prod(p.shape)) for p in main.all_parameters())
        ins = [v for v in main.list_vars() if v.desc.need_check_feed()]
        static.save_inference_model(f"{folder}/m", ins, outs, exe, program=main.clone(for_test=True))
        figures = compared_runs(build, folder, exe, runs)
    return Outcome(figures, [f"{size} parameters"])


def cases(build, folder):
    return NETS
