"""Writes tests/fixtures: programs and parameters as PaddlePaddle saves them, and what PaddlePaddle computes from them.

usage: fixtures.py [FOLDER [NAME ...]]

Each folder NAME holds main.pdmodel, perhaps startup.pdmodel and first.pdiparams to start from, feed-NAME.npy and fetch-NAME.npy
with a first dimension for the runs ('%' stands for '/'), and last.pdiparams with all persistable variables afterwards.
"""
import sys

from train import *

RUNS, ROWS = 4, 3


def stripped(program):
    """Without the Python lines that made the operators, which name folders of this machine."""
    for block in program.blocks:
        for op in block.ops:
            if op.has_attr("op_callstack"):
                op._set_attr("op_callstack", ["File \"net.py\", line 1, in <module>"])
    return program.desc.serialize_to_string()


def write(folder, main, exe, data, fetch, startup=None, trains=True):
    os.makedirs(folder, exist_ok=True)
    first = values(main)
    near = {n: (v * (1 + 3e-7 * np.random.RandomState(1).randn(*v.shape))).astype(v.dtype) if v.size > 1 else v for n, v in first.items()}
    ends = []
    for start in (near, first):
        runs = []
        for n, v in start.items():
            static.global_scope().find_var(n).get_tensor().set(v, paddle.CPUPlace())
        for i in range(RUNS):
            runs.append(exe.run(main, feed={n: v[i] for n, v in data.items()}, fetch_list=fetch))
        ends.append(values(main))
    print(folder, "changes by", worst_variable(*ends), "where values differ by 3e-7")
    for n, v in data.items():
        np.save(f"{folder}/feed-{file_name(n)}.npy", v)
    for i, v in enumerate(fetch):
        np.save(f"{folder}/fetch-{file_name(v if isinstance(v, str) else v.name)}.npy", np.stack([r[i] for r in runs]))
    with open(f"{folder}/main.pdmodel", "wb") as f:
        f.write(stripped(main))
    if startup:
        with open(f"{folder}/startup.pdmodel", "wb") as f:
            f.write(stripped(startup))
    elif first:
        write_params(f"{folder}/first.pdiparams", first)
    if trains:
        write_params(f"{folder}/last.pdiparams", values(main))


def random(main, rng):
    out = {}
    for v in main.list_vars():
        if v.desc.need_check_feed():
            dims = [RUNS, ROWS, *v.shape[1:]]
            out[v.name] = rng.randint(0, 4, dims).astype("int64") if v.dtype == paddle.int64 else rng.randn(*dims).astype("float32")
    return out


def mlp():
    rng = np.random.RandomState(3)
    given = lambda *d: A(initializer=paddle.nn.initializer.Assign(rng.uniform(-0.5, 0.5, d).astype("float32")))
    h = static.nn.fc(data(6), 5, activation="tanh", weight_attr=given(6, 5), bias_attr=given(5))
    h = static.nn.fc(h, 4, weight_attr=given(5, 4))
    loss = paddle.mean(F.softmax_with_cross_entropy(h, static.data("y", [-1, 1], "int64")))
    return loss, paddle.optimizer.Momentum(0.1, 0.9, weight_decay=paddle.regularizer.L2Decay(0.01)), [loss]


def convnet():
    h = static.nn.batch_norm(static.nn.conv2d(data(2, 7, 7), 4, 3, padding=1, bias_attr=False), act="relu")
    h = F.avg_pool2d(F.dropout(h, 0.0, mode="upscale_in_train"), 3, 2, 1, exclusive=True)
    h = F.max_pool2d(F.hardswish(static.nn.conv2d(h, 4, 3, stride=2, padding="SAME", groups=2)), 2, 1)
    h = static.nn.fc(h, 4)
    label = static.data("y", [-1, 1], "int64")
    accuracy = static.accuracy(paddle.nn.functional.softmax(h), label, k=2)
    loss = paddle.mean(F.softmax_with_cross_entropy(h, label))
    return loss, paddle.optimizer.Adam(0.01), [loss, accuracy]


def attention():
    h = paddle.nn.Embedding(6, 4, padding_idx=0)(data(5, dtype="int64"))
    q = paddle.transpose(paddle.reshape(paddle.nn.Linear(4, 4)(h), [0, 0, 2, 2]), [0, 2, 1, 3])
    s = F.softmax(paddle.matmul(q, q, transpose_y=True) * 0.7)
    h = paddle.nn.LayerNorm(4)(h + paddle.reshape(paddle.transpose(paddle.matmul(s, q), [0, 2, 1, 3]), [0, 0, 4]))
    h = F.gelu(paddle.mean(h, axis=1))
    loss = paddle.mean(F.softmax_with_cross_entropy(h, static.data("y", [-1, 1], "int64")))
    return loss, paddle.optimizer.SGD(0.1, grad_clip=paddle.nn.ClipGradByGlobalNorm(0.5)), [loss]


def regression_adamw():
    out = static.nn.fc(static.nn.fc(data(6), 5, activation="sigmoid"), 1)
    loss = paddle.mean(F.smooth_l1_loss(out, static.data("y", [-1, 1], "float32"), reduction="none"))
    return loss, paddle.optimizer.AdamW(0.01, weight_decay=0.1), [loss]


def language():
    """A language model of an LSTM in both directions and a GRU, with lengths."""
    nn = paddle.nn
    ids, n = data(5, dtype="int64"), static.data("n", [-1], "int64")
    h, _ = nn.LSTM(4, 3, direction="bidirect")(nn.Embedding(4, 4)(ids), sequence_length=n % 4 + 2)
    h, last = nn.GRU(6, 4)(h)
    scores = nn.Linear(4, 4)(h)
    loss = paddle.mean(F.cross_entropy(scores, paddle.unsqueeze(ids, 2), reduction="none"))
    return loss, paddle.optimizer.Adam(0.05, grad_clip=paddle.nn.ClipGradByGlobalNorm(1.0)), [loss, last]


def involution():
    """A block of RedNet: weights of its own for every position, from unfold, and batch normalisation."""
    from rednet import Block
    h = Block(8, 16, 2, True)(paddle.nn.Conv2D(2, 8, 3, padding=1, bias_attr=False)(data(2, 8, 8)))
    scores = paddle.nn.Linear(64, 4)(paddle.flatten(F.adaptive_avg_pool2d(h, 1), 1))
    loss = paddle.mean(F.softmax_with_cross_entropy(scores, static.data("y", [-1, 1], "int64")))
    return loss, paddle.optimizer.Momentum(0.01, 0.9), [loss]


def alignment():
    """Recognition: columns of a convolution as a sequence, CTC loss."""
    nn = paddle.nn
    h = F.relu(nn.Conv2D(1, 6, 3, stride=(4, 1), padding=1)(data(1, 4, 7)))
    scores = nn.Linear(6, 4)(paddle.transpose(paddle.squeeze(h, 2), [2, 0, 1]))
    label = static.data("y", [-1, 2], "int64") % 3
    frames, letters = (paddle.full_like(label[:, 0], n) for n in (7, 2))
    loss = F.ctc_loss(scores, paddle.cast(label, "int32"), frames, letters, blank=3)
    return loss, paddle.optimizer.Adam(0.01), [loss]


def pieces():
    """Operators that other nets lack: einsum, assignment to a box, sampling by a grid, bicubic resizing, simulated quantisation."""
    x = data(2, 6, 6)
    w = paddle.create_parameter([2, 3], "float32", default_initializer=paddle.nn.initializer.Assign(np.linspace(-1, 1, 6).reshape(2, 3).astype("float32")))
    h = paddle.einsum("nchw,cd->ndhw", x, w)
    theta = static.nn.fc(paddle.mean(h, axis=[2, 3]), 6, bias_attr=A(initializer=paddle.nn.initializer.Assign(np.array([1, 0.2, 0, -0.2, 1, 0], "float32"))))
    h = F.grid_sample(h, F.affine_grid(paddle.reshape(theta, [-1, 2, 3]), [3, 3, 5, 5]))
    h = F.interpolate(h, size=[7, 6], mode="bicubic")
    h = paddle.static.setitem(h, (slice(None), 0, slice(1, 6, 2)), 0.25)
    h = paddle.kthvalue(paddle.cumsum(paddle.tril(h), axis=2), 3, axis=3)[0]
    return paddle.mean(paddle.logcumsumexp(paddle.atan(h), axis=1)), paddle.optimizer.SGD(0.1), None


def sequences():
    """Sequences by LoD: a convolution over each, pooled in all ways, softmax and expansion, padded and back."""
    x = static.data("x", [-1, 3], "float32", lod_level=1)
    nn = static.nn
    h = nn.sequence_conv(x, 4, 3, act="tanh")
    weight = nn.sequence_softmax(nn.fc(h, 1, bias_attr=False))
    pooled = [nn.sequence_pool(h, k) for k in ("sum", "average", "sqrt", "max")] + [nn.sequence_first_step(h), nn.sequence_last_step(h)]
    mixed = nn.sequence_pool(h * weight, "sum")
    wide, length = nn.sequence_pad(nn.sequence_reverse(h), paddle.zeros([1]))
    back = nn.sequence_unpad(paddle.tanh(wide) * 2.0, length)
    joined = nn.sequence_concat([back, nn.sequence_expand_as(mixed, h)])
    out = nn.fc(paddle.concat([*pooled, mixed, nn.sequence_pool(joined, "average")], axis=1), 2)
    return paddle.mean(paddle.square(out)), paddle.optimizer.SGD(0.1), None


def recurrences():
    """Recurrent layers of PaddlePaddle 1.x over sequences by LoD, both ways, with and without first states; and one step."""
    block = static.default_main_program().global_block()
    x = static.data("x", [-1, 3], "float32", lod_level=1)
    nn, weight = static.nn, lambda *shape: static.create_parameter(list(shape), "float32")
    def append(kind, ins, out, beside, **attrs):
        outs = {name: block.create_var(dtype="float32") for name in [*out, *beside]}
        block.append_op(type=kind, inputs=ins, outputs=outs, attrs=attrs)
        return [outs[name] for name in out]
    start = paddle.tanh(nn.sequence_first_step(nn.fc(x, 5)))
    h, c = append("lstm", {"Input": nn.fc(x, 20, bias_attr=False), "H0": start, "C0": start * 2.0, "Weight": weight(5, 20), "Bias": weight(1, 35)},
                  ["Hidden", "Cell"], ["BatchGate", "BatchCellPreAct"], use_peepholes=True, is_reverse=True)
    inner = ["BatchGate", "BatchResetHiddenPrev", "BatchHidden"]
    u, = append("gru", {"Input": nn.fc(h, 15), "H0": start, "Weight": weight(5, 15), "Bias": weight(1, 15)}, ["Hidden"], inner, origin_mode=True)
    v, = append("gru", {"Input": nn.fc(h, 12), "Weight": weight(4, 12)}, ["Hidden"], inner, is_reverse=True, activation="relu")
    w, = append("gru_unit", {"Input": nn.fc(start, 15), "HiddenPrev": start, "Weight": weight(5, 15)}, ["Hidden"], ["Gate", "ResetHiddenPrev"], origin_mode=False)
    out = nn.fc(paddle.concat([nn.sequence_last_step(u), nn.sequence_pool(v, "sum"), w], axis=1), 2)
    return paddle.mean(paddle.square(out)), paddle.optimizer.SGD(0.1), [v, c]


def fusions():
    """Recurrent layers that PaddlePaddle's passes have joined with the product before them."""
    block = static.default_main_program().global_block()
    x = static.data("x", [-1, 3], "float32", lod_level=1)
    nn, weight = static.nn, lambda *shape: static.create_parameter(list(shape), "float32")
    def append(kind, out, n_beside, ins, **attrs):
        outs = {name: block.create_var(dtype="float32", stop_gradient=True) for name in [*out, *n_beside]}
        block.append_op(type=kind, inputs={"X": x, **ins}, outputs=outs, attrs=attrs)
        return [outs[name] for name in out]
    beside = ["ReorderedH0", "XX", "BatchedInput", "BatchedOut"]
    h, c = append("fusion_lstm", ["Hidden", "Cell"], ["XX", "BatchedInput", "BatchedHidden", "BatchedCell", "ReorderedH0", "ReorderedC0", "CheckedCell"],
                  {"WeightX": weight(3, 20), "WeightH": weight(5, 20), "Bias": weight(1, 35)}, use_peepholes=True, is_reverse=True)
    u, = append("fusion_gru", ["Hidden"], beside, {"WeightX": weight(3, 15), "WeightH": weight(5, 15), "Bias": weight(1, 15)})
    v, = append("fusion_gru", ["Hidden"], beside, {"WeightX": weight(3, 12), "WeightH": weight(4, 12)}, is_reverse=True)
    out = nn.fc(paddle.concat([nn.sequence_last_step(t) for t in (h, c, u, v)], axis=1), 2)
    return paddle.mean(paddle.square(out)), paddle.optimizer.SGD(0.1), [h, c, u, v]


def rows():
    """An embedding whose gradient is rows: padding and lazy Adam."""
    h = static.nn.embedding(data(3, dtype="int64"), [9, 4], is_sparse=True, padding_idx=1)
    loss = paddle.mean(F.softmax_with_cross_entropy(static.nn.fc(paddle.flatten(h, 1), 4), static.data("y", [-1, 1], "int64")))
    return loss, paddle.optimizer.Adam(0.05, lazy_mode=True, epsilon=1e-3), [loss]


def merged():
    """Gradients summed over two runs, then used: a conditional block."""
    h = static.nn.fc(data(6), 5, activation="tanh")
    loss = paddle.mean(F.square_error_cost(static.nn.fc(h, 1), static.data("y", [-1, 1], "float32")))
    return loss, paddle.incubate.optimizer.GradientMergeOptimizer(paddle.optimizer.Momentum(0.1, 0.9), k_steps=2), [loss]


def given():
    """Attributes that variables give: one known in the program, one computed in the run."""
    h = static.nn.fc(data(4, 3), 5, num_flatten_dims=2, activation="tanh")
    axis = paddle.cast(paddle.sum(static.data("y", [-1, 1], "int64")) % 2 + 1, "int32")
    def append(kind, out, **attrs):
        block = static.default_main_program().current_block()
        v = block.create_var(dtype="float32", shape=out)
        block.append_op(type=kind, inputs={"X": h}, outputs={"Out": v}, attrs=attrs)
        return v
    a = append("cumsum", [-1, 4, 5], axis=axis, reverse=True)
    b = append("reduce_sum", [-1, 5], dim=paddle.full([1], 1, "int64"), keep_dim=False, reduce_all=False)
    c = append("fill_any_like", [-1, 4, 5], value=paddle.max(h), dtype=5)
    loss = paddle.mean(paddle.square(a) * c.detach()) + paddle.mean(paddle.square(b))
    return loss, paddle.optimizer.SGD(0.05), [loss]


def penalty():
    """A critic whose gradient by its input is held near 1 (WGAN-GP): gradients of gradient operators."""
    nn = paddle.nn
    x = data(1, 5, 4)
    x.stop_gradient = False
    h = F.leaky_relu(nn.InstanceNorm2D(3)(nn.Conv2D(1, 3, 3, padding=1, bias_attr=False)(x)), 0.2)
    h = paddle.tanh(nn.BatchNorm2D(3)(F.avg_pool2d(h, 2, 1)))
    h = F.softplus(static.nn.fc(h, 6)) - paddle.clip(static.nn.fc(h, 6), -0.5, 0.5)
    h = h / paddle.sqrt(paddle.sum(paddle.square(h), 1, keepdim=True) + 0.1)
    y = F.sigmoid(nn.Linear(6, 1)(h)) * F.elu(nn.Linear(6, 1)(h))
    g, = static.gradients([y], [x])
    size = paddle.sqrt(paddle.sum(paddle.square(paddle.flatten(g, 1)), 1) + 1e-2)
    loss = paddle.mean(y) + paddle.mean(paddle.square(size - 1))
    return loss, paddle.optimizer.Momentum(0.05, 0.9), [loss, y]


def main():
    paddle.enable_static()
    out = sys.argv[1] if len(sys.argv) > 1 else "tests/fixtures"
    chosen = sys.argv[2:]
    for net in (mlp, convnet, attention, regression_adamw, language, involution, alignment, pieces, sequences, recurrences, fusions, rows, merged, given, penalty):
        if chosen and net.__name__ not in chosen:
            continue
        paddle.seed(7)
        main, startup = static.Program(), static.Program()
        with static.program_guard(main, startup), paddle.utils.unique_name.guard(), static.scope_guard(static.Scope()):
            loss, optimizer, fetch = net()
            fetch = fetch or [loss]
            optimizer.minimize(loss)
            exe = static.Executor(paddle.CPUPlace())
            exe.run(startup)
            if net in (sequences, recurrences, fusions):
                write_sequences(f"{out}/{net.__name__}", main, exe, fetch)
                continue
            drop_unused(main)
            write(f"{out}/{net.__name__}", main, exe, random(main, np.random.RandomState(5)), fetch, startup if net is mlp else None)
    if not chosen or "inference" in chosen:
        inference(f"{out}/inference")


def drop_unused(main):
    """Recurrent layers have a parameter that only names the memory of the others."""
    block = main.global_block()
    used = {n for op in block.ops for n in op.input_arg_names + op.output_arg_names}
    for name in [n for n, v in block.vars.items() if v.persistable and n not in used]:
        block._remove_var(name)


def run_alone(main, feed, fetch):
    """In a scope of its own: PaddlePaddle would go on with the elements that tensor arrays have from a longer run."""
    outer, inner = static.global_scope(), static.Scope()
    with static.scope_guard(inner):
        move(main, outer, inner)
        got = [np.array(v) for v in static.Executor(paddle.CPUPlace()).run(main, feed=feed, fetch_list=fetch, return_numpy=False)]
    move(main, inner, outer)
    return got


def move(main, source, to):
    for v in main.list_vars():
        if v.persistable:
            t = source.find_var(v.name).get_tensor()
            to.var(v.name).get_tensor().set(np.array(t), paddle.CPUPlace())
            to.find_var(v.name).get_tensor().set_lod(t.lod())


def write_sequences(folder, main, exe, fetch):
    """As write(), with offsets of sequences for each run."""
    os.makedirs(folder, exist_ok=True)
    rng = np.random.RandomState(5)
    x, lods = rng.randn(RUNS, 9, 3).astype("float32"), [[0, 4, 5, 9], [0, 2, 7, 9], [0, 1, 8, 9], [0, 4, 5, 9]]
    first, runs = values(main), []
    for i in range(RUNS):
        t = paddle.base.create_lod_tensor(x[i], [list(np.diff(lods[i]))], paddle.CPUPlace())
        runs.append(run_alone(main, {"x": t}, fetch))
    np.save(f"{folder}/feed-x.npy", x)
    np.save(f"{folder}/feed-x@LOD.npy", np.array(lods, "int64"))
    for i, v in enumerate(fetch):
        np.save(f"{folder}/fetch-{file_name(v.name)}.npy", np.stack([r[i] for r in runs]))
    with open(f"{folder}/main.pdmodel", "wb") as f:
        f.write(stripped(main))
    write_params(f"{folder}/first.pdiparams", first)
    write_params(f"{folder}/last.pdiparams", values(main))


def inference(folder):
    """As save_inference_model writes it, with feed and fetch operators."""
    paddle.seed(8)
    main, startup = static.Program(), static.Program()
    with static.program_guard(main, startup), paddle.utils.unique_name.guard(), static.scope_guard(static.Scope()):
        x = data(3, 9, 9)
        h = F.relu6(paddle.nn.BatchNorm2D(4)(paddle.nn.Conv2D(3, 4, 3, stride=2, padding=1)(x)))
        h = F.hardsigmoid(paddle.nn.Conv2D(4, 4, 3, groups=4, dilation=2, padding=2)(h)) * h
        h = paddle.concat([F.interpolate(h, size=[3, 3], mode="bilinear"), F.adaptive_avg_pool2d(h, 3)], axis=1)
        h = F.dropout(paddle.transpose(paddle.flatten(h, 2), [0, 2, 1]), 0.4)
        y = F.softmax(paddle.squeeze(paddle.matmul(h, paddle.ones([8, 1])), -1))
        exe = static.Executor(paddle.CPUPlace())
        exe.run(startup)
        for v in main.list_vars():
            if v.persistable and "batch_norm" in v.name:  # not the identity
                t = static.global_scope().find_var(v.name).get_tensor()
                t.set(np.random.RandomState(9).uniform(0.5, 1.5, t.shape()).astype("float32"), paddle.CPUPlace())
        static.save_inference_model(f"{folder}/main", [x], [y], exe)
        model, feed, fetch = static.load_inference_model(f"{folder}/main", exe)
        values_of = {"x": np.random.RandomState(5).randn(RUNS, ROWS, 3, 9, 9).astype("float32")}
        got = [exe.run(model, feed={"x": v}, fetch_list=fetch)[0] for v in values_of["x"]]
    with open(f"{folder}/main.pdmodel", "rb") as f:
        model = static.Program.parse_from_string(f.read())
    with open(f"{folder}/main.pdmodel", "wb") as f:
        f.write(stripped(model))
    os.rename(f"{folder}/main.pdiparams", f"{folder}/first.pdiparams")
    np.save(f"{folder}/feed-x.npy", values_of["x"])
    np.save(f"{folder}/fetch-{file_name(fetch[0].name)}.npy", np.stack(got))


if __name__ == "__main__":
    main()
