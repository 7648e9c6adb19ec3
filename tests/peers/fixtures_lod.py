"""Writes tests/fixtures/lod_*: programs on sequences (LoD) with loops and with several levels, as PaddlePaddle saves them, and
what PaddlePaddle computes from them. Layout as in fixtures.py.

usage: fixtures_lod.py [FOLDER [NAME ...]]
"""
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
    for net in (lod_loop, lod_levels, lod_dynamic_rnn, lod_choice):
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


if __name__ == "__main__":
    main()
