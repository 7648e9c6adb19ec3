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
    for net in (lod_loop, lod_levels):
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
