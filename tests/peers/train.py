"""Training programs that PaddlePaddle wrote, trained by both from the same initial parameters on the same data.

PaddlePaddle builds each network with its optimiser in static mode and writes the startup and the main program; both
run STEPS steps. Losses of every step and all persistable variables afterwards (parameters, moments, running statistics) are compared.
"""
import glob
import numpy as np
from common import *
import paddle
import paddle.nn.functional as F
from paddle import static

STEPS, BATCH, TOLERANCE = 20, 16, 1e-3
A = paddle.ParamAttr


def data(*dims, dtype="float32", name="x"):
    return static.data(name, [-1, *dims], dtype)


def classes(logits):
    label = static.data("y", [-1, 1], "int64")
    return paddle.mean(F.softmax_with_cross_entropy(logits, label))


def mlp():
    x = data(784)
    h = static.nn.fc(static.nn.fc(x, 256, activation="relu"), 128, activation="relu")
    return classes(static.nn.fc(h, 10)), paddle.optimizer.SGD(0.1)


def mlp_given():
    rng = np.random.RandomState(3)
    given = lambda *d: A(initializer=paddle.nn.initializer.Assign(rng.uniform(-0.1, 0.1, d).astype("float32")))
    h = static.nn.fc(data(20), 30, activation="tanh", weight_attr=given(20, 30), bias_attr=given(30))
    return classes(static.nn.fc(h, 10, weight_attr=given(30, 10))), paddle.optimizer.SGD(0.1)


def lenet():
    x = data(1, 28, 28)
    h = F.max_pool2d(static.nn.conv2d(x, 20, 5, act="relu"), 2, 2)
    h = F.max_pool2d(static.nn.conv2d(h, 50, 5, act="relu"), 2, 2)
    h = static.nn.fc(h, 500, activation="relu")
    return classes(static.nn.fc(h, 10)), paddle.optimizer.Momentum(0.02, 0.9, weight_decay=paddle.regularizer.L2Decay(5e-4))


def conv_bn_dropout():
    x = data(3, 16, 16)
    h = static.nn.batch_norm(static.nn.conv2d(x, 16, 3, padding=1, bias_attr=False), act="relu")
    h = F.avg_pool2d(F.dropout(h, 0.0, mode="upscale_in_train"), 2, 2)
    h = F.relu(static.nn.batch_norm(static.nn.conv2d(h, 32, 3, stride=2, padding=1, groups=2, bias_attr=False), momentum=0.8))
    h = F.dropout(static.nn.fc(F.adaptive_avg_pool2d(h, 1), 24, activation="relu"), 0.0, mode="upscale_in_train")
    return classes(static.nn.fc(h, 10)), paddle.optimizer.Adam(2e-3)


def fc_adamw():
    h = static.nn.fc(static.nn.fc(data(20), 64, activation="sigmoid"), 32, activation="relu")
    return classes(static.nn.fc(h, 10)), paddle.optimizer.AdamW(3e-3, weight_decay=0.05, grad_clip=paddle.nn.ClipGradByGlobalNorm(0.3))


def regression(optimizer, **kw):
    def net():
        y = static.data("y", [-1, 1], "float32")
        h = static.nn.fc(data(20), 32, activation="tanh", **kw)
        return paddle.mean(F.square_error_cost(static.nn.fc(h, 1), y)), optimizer()
    return net


def layers():
    """paddle.nn layers, as most programs of today: matmul_v2, depthwise convolution, reshaped biases, layer_norm."""
    nn = paddle.nn
    h = nn.functional.relu6(nn.BatchNorm2D(8)(nn.Conv2D(3, 8, 3, stride=2, padding=1, bias_attr=False)(data(3, 16, 16))))
    h = nn.functional.hardswish(nn.Conv2D(8, 8, 3, padding="SAME", groups=8)(h))
    h = paddle.concat([h, nn.functional.interpolate(h, scale_factor=1.0, mode="nearest")], axis=1)
    h = nn.Flatten()(nn.AdaptiveAvgPool2D(2)(h))
    h = nn.functional.gelu(nn.LayerNorm(64)(h))
    return paddle.mean(nn.CrossEntropyLoss(reduction="none")(nn.Linear(64, 10)(h), static.data("y", [-1, 1], "int64"))), \
        paddle.optimizer.Adam(1e-3, weight_decay=paddle.regularizer.L1Decay(1e-4), grad_clip=paddle.nn.ClipGradByNorm(1.0))


def transformer():
    words = data(12, dtype="int64")
    h = paddle.nn.Embedding(50, 16, padding_idx=0)(words)
    h = paddle.nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, activation="gelu")(h)
    return classes(paddle.nn.Linear(16, 10)(paddle.mean(h, axis=1))), paddle.optimizer.AdamW(2e-3)


def shared_and_scaled():
    half = A(name="half", learning_rate=0.5, regularizer=paddle.regularizer.L2Decay(0.01))
    h = static.nn.fc(data(20), 20, activation="relu", weight_attr=half)
    h = static.nn.fc(h, 20, activation="relu", weight_attr=A(name="half", learning_rate=0.5), bias_attr=False)
    return classes(static.nn.fc(h, 10)), paddle.optimizer.Momentum(0.05, 0.9, use_nesterov=True, grad_clip=paddle.nn.ClipGradByValue(0.05))


O = paddle.optimizer
NETS = {
    "mlp, sgd": mlp, "mlp, given values, sgd": mlp_given, "lenet, momentum + l2": lenet, "conv + batch_norm + dropout, adam": conv_bn_dropout,
    "fc, adamw + global norm": fc_adamw, "fc, rmsprop": regression(lambda: O.RMSProp(0.01, rho=0.9, momentum=0.5)),
    "fc, rmsprop centered": regression(lambda: O.RMSProp(0.01, centered=True)), "fc, adagrad": regression(lambda: O.Adagrad(0.05, initial_accumulator_value=0.1)),
    "nn layers, adam + l1 + norm": layers, "transformer, adamw": transformer, "shared, nesterov + value": shared_and_scaled,
    "fc, adamax": regression(lambda: O.Adamax(0.01)), "fc, adadelta": regression(lambda: O.Adadelta(0.5)), "fc, lamb": regression(lambda: O.Lamb(0.01)),
}

# Attention does not depend on the bias of its keys: the gradient is rounding noise, which Adam scales up.
FREE = {("transformer, adamw", "linear_1.b_0")}


def values(program):
    """{name: value} of the persistable variables of a program."""
    scope, out = static.global_scope(), {}
    for v in program.list_vars():
        if v.persistable and v.name not in ("feed", "fetch"):
            out[v.name] = np.array(scope.find_var(v.name).get_tensor())
    return out


def feeds(program, rng, steps=STEPS):
    rows, out = steps * BATCH, {}
    for v in program.list_vars():
        if not v.desc.need_check_feed():
            continue
        dims = [rows, *v.shape[1:]]
        out[v.name] = rng.randint(0, 10, dims).astype("int64") if v.dtype == paddle.int64 else rng.randn(*dims).astype("float32")
    return out


def logged_losses(folder, tag):
    """The scalars of a tag in the event files, in order."""
    out = []
    for path in sorted(glob.glob(f"{folder}/events.out*")):
        b, at = open(path, "rb").read(), 0
        while at < len(b):
            n = struct.unpack_from("<Q", b, at)[0]
            record, at = b[at + 12:at + 12 + n], at + 16 + n
            i = record.find(tag.encode() + b"\x15")
            if i >= 0:
                out.append(struct.unpack_from("<f", record, i + len(tag) + 1)[0])
    return np.array(out)


def save(program, path):
    with open(path, "wb") as f:
        f.write(program.desc.serialize_to_string())


def kiln_train(build, folder, loss, data, start, steps=STEPS):
    """Losses and the folder of the last checkpoint."""
    args = []
    for name, value in data.items():
        np.save(f"{folder}/{name}.npy", value)
        args += ["--feed", f"{name}={folder}/{name}.npy"]
    os.system(f"rm -rf {folder}/log {folder}/save")
    kiln(build, "train", *start, "--main", f"{folder}/main.pdmodel", *THREADS, *args, "--batch", BATCH, "--steps", steps,
         "--fetch", loss, "--log", f"{folder}/log", "--save", f"{folder}/save")
    return logged_losses(f"{folder}/log", f"train/{loss}"), sorted(glob.glob(f"{folder}/save/step-*"))[-1]


def worst_variable(got, want, leave_out=lambda n: False):
    """(largest ||got - want|| / ||want||, its name)."""
    worst, who = 0.0, ""
    for n, v in want.items():
        if leave_out(n):
            continue
        e = float(np.linalg.norm(got[n].astype("float64") - v) / max(np.linalg.norm(v), 1e-3)) if got[n].shape == v.shape else float("inf")
        if not e <= worst:
            worst, who = e, n
    return worst, who


def peer_run(exe, main, loss, steps, leave_out=lambda n: False, tries=8):
    """First values, data, losses and last values of PaddlePaddle's run, on the first of some random data sets on which the
    run is well conditioned: rounding that changes the maximum of a window or the sign before a ReLU can change the whole
    run, in PaddlePaddle as well. The measure is its own run from values that differ by 3e-7."""
    first = values(main)

    def step_from(start, part):
        for n, v in start.items():
            static.global_scope().var(n).get_tensor().set(v, paddle.CPUPlace())
        return float(exe.run(main, feed=part, fetch_list=[loss])[0]), values(main)

    def run_from(start, d):
        losses = []
        for i in range(steps):
            part = {n: v[i * BATCH:(i + 1) * BATCH] for n, v in d.items()}
            with static.scope_guard(static.Scope() if arrays else static.global_scope()):
                l, start = step_from(start, part)
            losses.append(l)
        return losses, start

    # PaddlePaddle adds to the gradients of arrays that the run before has left in the scope.
    arrays = any(v.type == paddle.base.core.VarDesc.VarType.LOD_TENSOR_ARRAY for v in main.list_vars())

    rng = np.random.RandomState(1)
    near = {n: (v * (1 + 3e-7 * rng.randn(*v.shape))).astype(v.dtype) if v.dtype.kind == "f" and v.size > 1 else v for n, v in first.items()}
    for seed in range(5, 5 + tries):
        d = feeds(main, np.random.RandomState(seed), steps)
        want, last = run_from(first, d)
        noise = worst_variable(run_from(near, d)[1], last, leave_out)[0]
        if noise < 1e-4:
            break
    return first, d, np.array(want), last, noise


def trained_by(main):
    """The parameters that an operator reads. (Recurrent layers also have one that only names the memory of the others.)"""
    read = {n for op in main.global_block().ops for n in op.input_arg_names}
    return {p.name for p in main.all_parameters()} & read


def train_both(build, name, net, folder, steps=STEPS):
    """(worst relative error of a loss, of a variable and its name)."""
    paddle.seed(7)
    main, startup = static.Program(), static.Program()
    with static.program_guard(main, startup), paddle.utils.unique_name.guard(), static.scope_guard(static.Scope()):
        loss, optimizer = net()
        optimizer.minimize(loss)
        exe = static.Executor(paddle.CPUPlace())
        exe.run(startup)
        unread = {p.name for p in main.all_parameters()} - trained_by(main)
        left_out = lambda n: (name, n.split("_moment")[0]) in FREE or any(n.startswith(u) for u in unread)
        first, d, want, last, _ = peer_run(exe, main, loss, steps, left_out)
    save(main, f"{folder}/main.pdmodel")
    save(startup, f"{folder}/startup.pdmodel")
    write_params(f"{folder}/first.pdiparams", first)
    given = any(o.type == "assign_value" for o in startup.global_block().ops)
    start = ["--startup", f"{folder}/startup.pdmodel"] if given else ["--params", f"{folder}/first.pdiparams"]
    got, where = kiln_train(build, folder, loss.name, d, start, steps)
    after = read_params(f"{where}/tensors.pdiparams", list(first))
    e_loss = np.abs(got - want).max() / np.abs(want).max() if len(got) == steps else float("inf")
    worst, who = worst_variable(after, last, left_out)
    got, _ = kiln_train(build, folder, loss.name, d, ["--startup", f"{folder}/startup.pdmodel"], steps)  # with its own random numbers
    if not (len(got) == steps and np.isfinite(got).all() and abs(got[0] - want[0]) < 0.5 * want[0]):
        return float("inf"), float("inf"), f"losses from PaddlePaddle's startup program: {got}, its own: {want}"
    return e_loss, worst, who


def cases(build, folder):
    return NETS


def compare(build, name, net, folder):
    e_loss, e_var, who = train_both(build, name, net, folder)
    return Outcome({"losses": (e_loss, TOLERANCE), "variables": (e_var, TOLERANCE)}, who and [f"worst: {who}"])
