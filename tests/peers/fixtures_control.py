"""Writes tests/fixtures/control_*: programs with loops, branches, tensor arrays and shapes that depend on values, as PaddlePaddle
saves them, and what PaddlePaddle computes from them. Layout as in fixtures.py.

usage: fixtures_control.py [FOLDER]
"""
import sys

from fixtures import *

nn = static.nn


def given(*dims, name=None):
    rng = np.random.RandomState(sum(dims))
    return static.create_parameter(list(dims), "float32", name=name,
                                   default_initializer=paddle.nn.initializer.Assign(rng.uniform(-0.7, 0.7, dims).astype("float32")))


def ints(*v):
    return paddle.full([1], v[0], "int64")


def control_while():
    """A recurrence whose weights all steps share."""
    x, w = data(4), given(4, 4, name="w")
    x.stop_gradient = False  # or PaddlePaddle makes no gradient of the loop
    i, s = nn.while_loop(lambda i, s: i < ints(5), lambda i, s: [i + 1, paddle.tanh(paddle.matmul(s, w) + x)], [ints(0), x * 1.0])
    loss = paddle.mean(F.square_error_cost(nn.fc(s, 1), static.data("y", [-1, 1], "float32")))
    return loss, paddle.optimizer.Momentum(0.1, 0.9), [loss, i]


def control_branch():
    """One branch of two, one case of three, and a branch in a loop, taken as the data says."""
    x, w, v = data(4), given(4, 4, name="w"), given(4, name="v")
    h = nn.cond(paddle.mean(x) > 0, lambda: paddle.matmul(x, w), lambda: x * v)
    k = paddle.cast(paddle.sum(h) > 0.5, "int32") + paddle.cast(paddle.sum(h) > -0.5, "int32")
    h = nn.switch_case(k, {0: lambda: h + v, 2: lambda: paddle.tanh(h)}, default=lambda: h * v)
    loss = paddle.mean(F.square_error_cost(nn.fc(h, 1), static.data("y", [-1, 1], "float32")))
    return loss, paddle.optimizer.Adam(0.05), [loss, h]


def control_array():
    """Each step writes an element and reads the one before; the counter is incremented in place."""
    x, w = data(4), given(4, name="w")
    i, n = ints(0), ints(4)
    a = paddle.tensor.array_write(x * w, i)
    go = i < n
    loop = nn.control_flow.While(go)
    with loop.block():
        v = paddle.tanh(paddle.tensor.array_read(a, i) * w + x)
        i = paddle.increment(i)
        paddle.tensor.array_write(v, i, array=a)
        paddle.assign(i < n, go)
    last = paddle.tensor.array_read(a, n)
    loss = paddle.mean(F.square_error_cost(nn.fc(last, 1), static.data("y", [-1, 1], "float32")))
    return loss, paddle.optimizer.SGD(0.1), [loss, paddle.tensor.array_length(a)]


def control_shapes():
    """Shapes that depend on values: nonzero, masked_select, unique, a range and a reshape by numbers that are computed."""
    x, w = data(4), given(4, name="w")
    y = x * w
    some = paddle.masked_select(y, y > 0)
    where = paddle.nonzero(y > 0)
    n = paddle.shape(some)[0]
    line = paddle.cast(paddle.arange(0, n, 1, "int32"), "float32")
    out = paddle.reshape(some * line, [1, n])
    loss = paddle.mean(out * out) + 0 * paddle.sum(F.square_error_cost(nn.fc(x, 1), static.data("y", [-1, 1], "float32")))
    return loss, paddle.optimizer.SGD(0.1), [loss, paddle.sum(where), paddle.unique(paddle.round(paddle.flatten(x) * 1.0)).sum()]


def control_decoder(folder):
    """A greedy decoder: an embedding, a recurrent cell and the best word, until the word 0 or 12 words. The sentence grows."""
    paddle.seed(4)
    words, width = 9, 6
    main, startup = static.Program(), static.Program()
    with static.program_guard(main, startup), paddle.utils.unique_name.guard(), static.scope_guard(static.Scope()):
        h = data(width)
        e, u, o = given(words, width, name="e"), given(width, width, name="u"), given(width, words, name="o")
        word = paddle.full([1], 1, "int64")
        out = paddle.full([1], 1, "int64")

        def go(i, word, h, out):
            return paddle.logical_and(i < 12, paddle.all(word != 0))

        def step(i, word, h, out):
            h = paddle.tanh(paddle.matmul(h, u) * 2.5 + paddle.gather(e, word) * 3.0)
            word = paddle.argmax(paddle.mean(paddle.matmul(h, o), axis=0, keepdim=True), axis=1)
            return i + 1, word, h, paddle.concat([out, word])

        out.desc.set_shape([-1])
        i, word, h, out = nn.while_loop(go, step, [paddle.full([1], 0, "int64"), word, h, out])
        exe = static.Executor(paddle.CPUPlace())
        exe.run(startup)
        padded = paddle.concat([out, paddle.zeros([13], "int64")])[:13]
        static.save_inference_model(f"{folder}/main", [main.global_block().var("x")], [padded, h], exe)
        model, feed, fetch = static.load_inference_model(f"{folder}/main", exe)
        rows = np.random.RandomState(5).randn(RUNS, ROWS, width).astype("float32") * 2
        got = [exe.run(model, feed={"x": v}, fetch_list=fetch) for v in rows]
    print(np.stack([g[0] for g in got]))
    with open(f"{folder}/main.pdmodel", "rb") as f:
        model = static.Program.parse_from_string(f.read())
    with open(f"{folder}/main.pdmodel", "wb") as f:
        f.write(stripped(model))
    os.rename(f"{folder}/main.pdiparams", f"{folder}/first.pdiparams")
    np.save(f"{folder}/feed-x.npy", rows)
    for i, v in enumerate(fetch):
        np.save(f"{folder}/fetch-{file_name(v.name)}.npy", np.stack([g[i] for g in got]))


def main():
    paddle.enable_static()
    out = sys.argv[1] if len(sys.argv) > 1 else "tests/fixtures"
    for net in (control_while, control_branch, control_array, control_shapes):
        paddle.seed(7)
        main, startup = static.Program(), static.Program()
        with static.program_guard(main, startup), paddle.utils.unique_name.guard(), static.scope_guard(static.Scope()):
            loss, optimizer, fetch = net()
            optimizer.minimize(loss)
            exe = static.Executor(paddle.CPUPlace())
            exe.run(startup)
            write(f"{out}/{net.__name__}", main, exe, random(main, np.random.RandomState(5)), fetch)
    control_decoder(f"{out}/control_decoder")


if __name__ == "__main__":
    main()
