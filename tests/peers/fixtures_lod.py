"""Writes tests/fixtures/lod_*: programs on sequences (LoD) with loops and with several levels, as PaddlePaddle saves them, and
what PaddlePaddle computes from them. Layout as in fixtures.py.

usage: fixtures_lod.py [FOLDER [NAME ...]]
"""
import sys

from fixtures import *

nn = static.nn


def param(name):
    return paddle.ParamAttr(name=name)


def lod_loop():
    """Each step works on the sequences of what the step before has left."""
    x = static.data("x", [-1, 3], "float32", lod_level=1)
    h = nn.fc(x, 3, weight_attr=param("w"), bias_attr=False)

    def body(i, h):
        mean = nn.sequence_expand_as(nn.sequence_pool(h, "sqrt"), h)
        return [i + 1, paddle.tanh(nn.fc(h, 3, weight_attr=param("u"), bias_attr=False) + nn.sequence_reverse(mean * h))]

    i, h = nn.while_loop(lambda i, h: i < paddle.full([1], 3, "int64"), body, [paddle.full([1], 0, "int64"), h])
    y = nn.sequence_pool(h, "max")
    loss = paddle.mean(y * y)
    return loss, paddle.optimizer.SGD(0.5), [loss, y]


def lod_levels():
    """Pools a parameter, which has two levels of sequences, level by level."""
    x = static.data("x", [-1, 3], "float32", lod_level=1)
    w = static.create_parameter([5, 3], "float32", name="w")
    w.desc.set_lod_level(2)
    levels = paddle.base.create_lod_tensor(np.random.RandomState(3).randn(5, 3).astype("float32"), [[2, 1], [1, 2, 2]], paddle.CPUPlace())
    rows = nn.sequence_pool(nn.fc(x, 3, weight_attr=param("u"), bias_attr=False), "average")
    inner = nn.sequence_pool(w, "sum")
    y = paddle.concat([nn.sequence_expand_as(nn.sequence_pool(inner, "max"), inner), rows], axis=1)
    loss = paddle.mean(y * y)
    return loss, paddle.optimizer.SGD(0.5), [loss, y], {"w": levels}


def op(kind, ins, out, attrs=None, **made):
    """One operator of a type that PaddlePaddle 2 has no Python for; its output is made, or given."""
    block = static.default_main_program().current_block()
    slot, v = out if isinstance(out, tuple) else (out, block.create_var(name=paddle.utils.unique_name.generate(kind), **made))
    block.append_op(type=kind, inputs=ins, outputs={slot: v}, attrs=attrs or {})
    return v


def ranked(x):
    return op("lod_rank_table", {"X": x}, "Out", {"level": 0}, type=paddle.base.core.VarDesc.VarType.LOD_RANK_TABLE)


def lod_dynamic_rnn():
    """What DynamicRNN of 1.x makes: steps of sequences of different lengths, the longest first, with a memory that shrinks."""
    x = static.data("x", [-1, 3], "float32", lod_level=1)
    h0 = nn.fc(nn.sequence_pool(x, "first"), 4, weight_attr=param("w0"))
    table = ranked(x)
    n = op("max_sequence_len", {"RankTable": table}, "Out", dtype="int64", shape=[1])
    steps = op("lod_tensor_to_array", {"X": nn.fc(x, 4, weight_attr=param("w")), "RankTable": table},
               ("Out", paddle.tensor.create_array("float32")))
    h0 = op("reorder_lod_tensor_by_rank", {"X": h0, "RankTable": table}, "Out", dtype="float32", shape=[-1, 4])
    i = paddle.full([1], 0, "int64")
    memory, outs = paddle.tensor.array_write(h0, i), paddle.tensor.create_array("float32")
    go = i < n
    loop = nn.control_flow.While(go)
    with loop.block():
        step, h = paddle.tensor.array_read(steps, i), paddle.tensor.array_read(memory, i)
        h = op("shrink_rnn_memory", {"X": h, "RankTable": table, "I": i}, "Out", dtype="float32", shape=[-1, 4])
        h = paddle.tanh(nn.fc(h, 4, weight_attr=param("u"), bias_attr=False) + step)
        paddle.tensor.array_write(h, i, array=outs)
        i = paddle.increment(i)
        paddle.tensor.array_write(h, i, array=memory)
        paddle.assign(i < n, go)
    all_steps = op("array_to_lod_tensor", {"X": outs, "RankTable": table}, "Out", dtype="float32", shape=[-1, 4], lod_level=1)
    y = nn.sequence_pool(all_steps, "last")
    loss = paddle.mean(y * y) + paddle.mean(all_steps)
    return loss, paddle.optimizer.SGD(0.5), [loss, all_steps]


def lod_choice():
    """What IfElse of 1.x makes: sequences and rows go one way or the other, and come together again."""
    x = static.data("x", [-1, 3], "float32", lod_level=1)
    mean = nn.sequence_pool(x, "average")
    mask = paddle.sum(mean, axis=1, keepdim=True) > 0
    block = static.default_main_program().current_block()

    def split(v, lod):
        parts = [block.create_var(name=paddle.utils.unique_name.generate("part"), dtype="float32", shape=[-1, 3], lod_level=lod) for _ in "tf"]
        block.append_op(type="split_lod_tensor", inputs={"X": v, "Mask": mask}, outputs={"OutTrue": parts[0], "OutFalse": parts[1]}, attrs={"level": 0})
        return parts

    def merge(v, parts, lod):
        return op("merge_lod_tensor", {"X": v, "Mask": mask, "InTrue": parts[0], "InFalse": parts[1]}, "Out", {"level": 0},
                  dtype="float32", shape=[-1, 3], lod_level=lod)

    h = nn.fc(x, 3, weight_attr=param("w"))
    long, rows = split(h, 1), split(nn.sequence_pool(h, "max"), 0)
    h = merge(h, [paddle.tanh(long[0]), long[1] * 2.0], 1)
    r = merge(rows[0], [rows[0] * 3.0, paddle.square(rows[1])], 0)
    y = nn.sequence_pool(h, "sqrt") + r
    loss = paddle.mean(y * y)
    return loss, paddle.optimizer.SGD(0.1), [loss, y, h]


def lod_rows():
    """Rows of sequences in another width, cut, added to a matrix, left out, summed as embeddings; boxes of each image."""
    x = static.data("x", [-1, 3], "float32", lod_level=1)
    made = lambda kind, ins, width, attrs=None, dtype="float32", lod=1, slot="Out": op(kind, ins, slot, attrs, dtype=dtype, shape=[-1, width], lod_level=lod)
    h = paddle.tanh(nn.fc(x, 4, weight_attr=param("w")))
    wide = made("sequence_reshape", {"X": h}, 2, {"new_dim": 2})
    cut = made("sequence_slice", {"X": wide, "Offset": paddle.full([ROWS, 1], 1, "int64"), "Length": paddle.full([ROWS, 1], 1, "int64")}, 2)
    ids = paddle.cast(F.sigmoid(nn.fc(x, 1, bias_attr=False)) * 3.99, "int64")
    table = made("sequence_scatter", {"X": nn.fc(cut, 4, weight_attr=param("u")), "Ids": ids, "Updates": nn.fc(h, 1, weight_attr=param("v"))}, 4, lod=0)
    sums = made("fused_embedding_seq_pool", {"W": static.create_parameter([4, 3], "float32", name="e"), "Ids": ids}, 3, {"combiner": "sum"}, lod=0)
    kept = made("sequence_erase", {"X": ids}, 1, {"tokens": [3]}, "int64")
    size = paddle.assign(np.array([[7, 5, 2], [9, 9, 1.5], [3, 2, 1]], "float32"))
    boxes = made("box_clip", {"Input": h * 9.0, "ImInfo": size}, 4, slot="Output")
    loss = paddle.mean(table * table) + paddle.mean(cut * sums[:, :2])
    return loss, paddle.optimizer.SGD(0.5), [loss, table, nn.sequence_pool(paddle.cast(kept, "float32"), "sum"), boxes]


def lod_beam(folder):
    """A decoder of 1.x: the best two sentences of each source, until all have ended or after eight words."""
    paddle.seed(4)
    words, width, beam, end = 7, 5, 2, 0
    main, startup = static.Program(), static.Program()
    rng = np.random.RandomState(3)
    given = lambda name, *dims: static.create_parameter(list(dims), "float32", name=name, default_initializer=paddle.nn.initializer.Assign(
        rng.uniform(-1.5, 1.5, dims).astype("float32")))
    with static.program_guard(main, startup), paddle.utils.unique_name.guard(), static.scope_guard(static.Scope()):
        x, s = static.data("x", [-1, 1], "float32", lod_level=2), static.data("s", [-1, width], "float32")
        e, u, o = given("e", words, width), given("u", width, width), given("o", width, words)
        block = main.global_block()
        first, score = paddle.cast(x * 0.0 + 1.0, "int64"), x * 0.0
        i, n = paddle.full([1], 0, "int64"), paddle.full([1], 8, "int64")
        ids, scores, states = (paddle.tensor.array_write(v, i) for v in (first, score, s))
        go = i < n
        loop = nn.control_flow.While(go)
        with loop.block():
            word, score, h = (paddle.tensor.array_read(a, i) for a in (ids, scores, states))
            h = op("sequence_expand", {"X": h, "Y": score}, "Out", {"ref_level": -1}, dtype="float32", shape=[-1, width])
            h = paddle.tanh(paddle.matmul(h, u) + paddle.gather(e, paddle.flatten(word)))
            p, k = paddle.topk(F.softmax(paddle.matmul(h, o) * 2.0), 4)
            total = op("lod_reset", {"X": paddle.log(p) + score, "Y": score}, "Out", dtype="float32", shape=[-1, 4], lod_level=2)
            inner = main.current_block()
            made = [inner.create_var(name=paddle.utils.unique_name.generate("beam"), dtype=t, shape=[-1, 1], lod_level=2) for t in ("int64", "float32")]
            parents = inner.create_var(name="parents", dtype="int32", shape=[-1])
            inner.append_op(type="beam_search", inputs={"pre_ids": word, "pre_scores": score, "ids": k, "scores": total},
                            outputs={"selected_ids": made[0], "selected_scores": made[1], "parent_idx": parents},
                            attrs={"level": 0, "beam_size": beam, "end_id": end, "is_accumulated": True})
            i = paddle.increment(i)
            for v, a in zip((*made, h), (ids, scores, states)):
                paddle.tensor.array_write(v, i, array=a)
            paddle.assign(paddle.logical_and(i < n, paddle.logical_not(paddle.is_empty(made[0]))), go)
        made = [block.create_var(name=name, dtype=t, shape=[-1], lod_level=2) for name, t in (("sentences", "int64"), ("values", "float32"))]
        block.append_op(type="beam_search_decode", inputs={"Ids": ids, "Scores": scores},
                        outputs={"SentenceIds": made[0], "SentenceScores": made[1]}, attrs={"beam_size": beam, "end_id": end})
        exe = static.Executor(paddle.CPUPlace())
        exe.run(startup)
        x, lod = np.random.RandomState(6).randn(3, 1).astype("float32"), [[0, 1, 2, 3]] * 2
        s = np.random.RandomState(8).randn(3, width).astype("float32")
        t = paddle.base.create_lod_tensor(x, [[1, 1, 1]] * 2, paddle.CPUPlace())
        got = exe.run(main, feed={"x": t, "s": s}, fetch_list=made, return_numpy=False)
        print([g.lod() for g in got], [np.array(g) for g in got])
        os.makedirs(folder, exist_ok=True)
        write_params(f"{folder}/first.pdiparams", values(main))
    save = lambda name, v: np.save(f"{folder}/{name}.npy", np.array(v)[None])
    save("feed-x", x)
    save("feed-s", s)
    save("feed-x@LOD", lod[1])
    save("feed-x@LOD@LOD", lod[0])
    for v, g in zip(made, got):
        save(f"fetch-{v.name}", g)
    save("fetch-sentences@LOD", got[0].lod()[1])
    save("fetch-values@LOD@LOD", got[1].lod()[0])
    with open(f"{folder}/main.pdmodel", "wb") as f:
        f.write(stripped(main))


def set_levels(given):
    for name, value in given.items():
        t = static.global_scope().find_var(name).get_tensor()
        t.set(np.array(value), paddle.CPUPlace())
        t.set_lod(value.lod())


def save_levels(path, main, names):
    """A combined file of all persistable variables, with their sequences."""
    p = static.Program()
    block = p.global_block()
    for name in names:
        v = main.global_block().var(name)
        block.create_var(name=name, shape=v.shape, dtype=v.dtype, persistable=True)
    block.append_op(type="save_combine", inputs={"X": sorted(names)}, outputs={"Y": []}, attrs={"file_path": path})
    static.Executor(paddle.CPUPlace()).run(p)


def main():
    paddle.enable_static()
    out = sys.argv[1] if len(sys.argv) > 1 else "tests/fixtures"
    chosen = sys.argv[2:]
    for net in (lod_loop, lod_levels, lod_dynamic_rnn, lod_choice, lod_rows):
        if chosen and net.__name__ not in chosen:
            continue
        paddle.seed(7)
        main, startup = static.Program(), static.Program()
        with static.program_guard(main, startup), paddle.utils.unique_name.guard(), static.scope_guard(static.Scope()):
            loss, optimizer, fetch, *given = net()
            optimizer.minimize(loss)
            exe = static.Executor(paddle.CPUPlace())
            exe.run(startup)
            folder = f"{out}/{net.__name__}"
            if given:
                set_levels(given[0])
                os.makedirs(folder, exist_ok=True)
                save_levels(f"{folder}/levels", main, values(main))
            write_sequences(folder, main, exe, fetch)
            if given:
                os.replace(f"{folder}/levels", f"{folder}/first.pdiparams")
                save_levels(f"{folder}/last.pdiparams", main, values(main))
    if not chosen or "lod_beam" in chosen:
        lod_beam(f"{out}/lod_beam")


if __name__ == "__main__":
    main()
