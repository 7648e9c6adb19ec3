"""What is random, compared with PaddlePaddle in distribution: initial values, dropout, and training with it.

Initial values and dropped tensors: mean and standard deviation (in units of their standard errors), and the two-sample
Kolmogorov-Smirnov statistic in units of sqrt((n + m) / (n m)), which 2.2 exceeds once in 8000 times. What is kept is kept at
the same rate, independently of its neighbours and of the step, and scaled alike. Losses of training with dropout: their mean
over several seeds, in units of its standard error. All are random, so each is a number that rarely exceeds 4.
"""
from train import *

I = paddle.nn.initializer
SIGMAS, KS = 4.5, 2.2

INITIAL = {
    "uniform": (I.Uniform(-0.3, 0.7), [200, 150]), "normal": (I.Normal(0.5, 2.0), [200, 150]), "truncated normal": (I.TruncatedNormal(-1.0, 0.5), [200, 150]),
    "xavier uniform": (I.XavierUniform(), [200, 150]), "xavier normal": (I.XavierNormal(), [200, 150]), "kaiming uniform": (I.KaimingUniform(), [200, 150]),
    "kaiming normal": (I.KaimingNormal(), [200, 150]), "xavier uniform, filter": (I.XavierUniform(), [64, 32, 3, 3]), "xavier normal, filter": (I.XavierNormal(), [64, 32, 3, 3]),
    "kaiming uniform, filter": (I.KaimingUniform(negative_slope=0.2, nonlinearity="leaky_relu"), [64, 32, 3, 3]), "kaiming normal, filter": (I.KaimingNormal(), [64, 32, 3, 3]),
}
FIXED = {"constant": (I.Constant(0.25), [20, 30]), "assign": (I.Assign(np.linspace(0, 1, 600).reshape(20, 30).astype("float32")), [20, 30]),
         "bilinear": (I.Bilinear(), [4, 1, 6, 6]), "dirac": (I.Dirac(), [6, 4, 3])}


def spread(got, want):
    """(difference of the means and of the deviations in standard errors, KS statistic in its unit)."""
    a, b = np.sort(got, None).astype("float64"), np.sort(want, None).astype("float64")
    n, m = a.size, b.size
    every = np.concatenate([a, b])
    ks = np.abs(np.searchsorted(a, every, "right") / n - np.searchsorted(b, every, "right") / m).max() / np.sqrt((n + m) / (n * m))
    kurtosis = max(((b - b.mean()) ** 4).mean() / b.var() ** 2 - 1, 0.1)
    mean = abs(a.mean() - b.mean()) / np.sqrt(b.var() * (1 / n + 1 / m))
    deviation = abs(np.log(a.std() / b.std())) / np.sqrt(kurtosis / 4 * (1 / n + 1 / m))
    return mean, deviation, ks


def initial(build, name, net, folder):
    initializer, dims = net
    paddle.seed(11)
    main, startup = static.Program(), static.Program()
    with static.program_guard(main, startup), paddle.utils.unique_name.guard(), static.scope_guard(static.Scope()):
        paddle.create_parameter(dims, "float32", name="w", default_initializer=initializer)
        exe = static.Executor(paddle.CPUPlace())
        exe.run(startup)
        want = np.array(static.global_scope().find_var("w").get_tensor())
    save(startup, f"{folder}/startup.pdmodel")
    got = run(build, f"{folder}/startup.pdmodel", folder, {}, ["w"])["w"]
    if name in FIXED:
        e = error(got, want)
        return Outcome({"values": (e, 1e-6)})
    mean, deviation, ks = spread(got, want)
    tails = 3.0 if "normal" in name and "truncated" not in name else 0.1  # the others have bounds
    inside = got.shape == want.shape and abs(got.min() - want.min()) + abs(got.max() - want.max()) < tails * want.std()
    return Outcome({"sigmas of moments": (max(mean, deviation), SIGMAS), "ks": (ks, KS), "out of bounds": (not inside, 0)})


DROPPED = {
    "dropout 0.1": lambda x: F.dropout(x, 0.1), "dropout 0.5": lambda x: F.dropout(x, 0.5), "dropout 0.9": lambda x: F.dropout(x, 0.9),
    "dropout 0.3, downscale in infer": lambda x: F.dropout(x, 0.3, mode="downscale_in_infer"), "dropout 0.4 of columns": lambda x: F.dropout(x, 0.4, axis=1),
    "alpha dropout 0.3": lambda x: F.alpha_dropout(x, 0.3), "uniform": lambda x: x * paddle.uniform([300, 400], min=-0.5, max=2.0),
    "normal": lambda x: x * paddle.normal(0.3, 1.5, [300, 400]), "bernoulli": lambda x: paddle.bernoulli(x * 0.35), "randint": lambda x: paddle.cast(paddle.randint(2, 9, [300, 400]), "float32"),
}


def dropped(build, name, net, folder):
    """Two steps of a program that drops from ones, and the gradient."""
    paddle.seed(5)
    main = static.Program()
    with static.program_guard(main, static.Program()), paddle.utils.unique_name.guard(), static.scope_guard(static.Scope()):
        x = static.data("x", [300, 400], "float32")
        x.stop_gradient = False
        out = net(x)
        feed = {"x": np.ones([300, 400], "float32")}
        fetch = [out.name]
        if "dropout" in name:
            fetch.append(static.gradients([paddle.sum(out)], [x])[0].name)
        want = static.Executor(paddle.CPUPlace()).run(main, feed=feed, fetch_list=fetch)
    save(main, f"{folder}/main.pdmodel")
    steps = [run(build, f"{folder}/main.pdmodel", folder, feed, fetch, "--seed", s) for s in (1, 2)]
    got, again = steps[0][fetch[0]], steps[1][fetch[0]]
    problems = []
    kinds = [np.unique(v.round(5)) for v in (got, want[0])]
    if kinds[1].size < 100:  # a few values: the share of each, and of each beside each
        if kinds[0].shape != kinds[1].shape or not np.allclose(*kinds, rtol=1e-5):
            problems.append(f"values {kinds[0]}, PaddlePaddle {kinds[1]}")
        units = got[0] if "columns" in name else got
        share = [[(v.round(5) == k).mean() for k in kinds[1]] for v in (got, want[0])]
        worst = max(abs(a - b) / np.sqrt(max(b * (1 - b), 1e-9) * 2 / units.size) for a, b in zip(*share))
        ks = 0.0
    else:
        mean, deviation, ks = spread(got, want[0])
        worst = max(mean, deviation)
    beside = 0.0 if "columns" in name else max(abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) * np.sqrt(a.size) for a, b in ((got[1:], got[:-1]), (got[:, 1:], got[:, :-1]), (got, again)))
    if "dropout" in name and not np.array_equal(steps[0][fetch[1]] != steps[0][fetch[1]].min(), got != got.min()):
        problems.append("the gradient has another mask")
    return Outcome({"sigmas of moments": (worst, SIGMAS), "ks": (ks, KS), "sigmas of correlations": (beside, SIGMAS), "problems": (len(problems), 0)}, problems)


SEEDS = 12


def trained():
    h = F.dropout(static.nn.fc(data(20), 64, activation="relu"), 0.5)
    h = F.dropout(static.nn.fc(h, 64, activation="relu"), 0.3, mode="downscale_in_infer")
    return classes(static.nn.fc(h, 10)), paddle.optimizer.Momentum(0.05, 0.9)


def training(build, name, net, folder):
    """Initial values and dropout of their own in each run: mean and deviation of the losses of the last quarter of the steps."""
    main, startup = static.Program(), static.Program()
    with static.program_guard(main, startup), paddle.utils.unique_name.guard():
        loss, optimizer = net()
        optimizer.minimize(loss)
    save(main, f"{folder}/main.pdmodel")
    save(startup, f"{folder}/startup.pdmodel")
    d = feeds(main, np.random.RandomState(5), STEPS)
    d["y"] = np.abs(d["x"][:, :10]).argmax(1)[:, None].astype("int64")
    ends = [[], []]
    for seed in range(1, SEEDS + 1):
        with static.scope_guard(static.Scope()):
            paddle.seed(seed)
            exe = static.Executor(paddle.CPUPlace())
            exe.run(startup)
            losses = [float(exe.run(main, feed={n: v[i * BATCH:(i + 1) * BATCH] for n, v in d.items()}, fetch_list=[loss])[0]) for i in range(STEPS)]
        ends[1].append(np.mean(losses[-STEPS // 4:]))
        got, _ = kiln_train(build, folder, loss.name, d, ["--startup", f"{folder}/startup.pdmodel", "--seed", seed])
        ends[0].append(np.mean(got[-STEPS // 4:]))
    a, b = map(np.array, ends)
    t = abs(a.mean() - b.mean()) / np.sqrt((a.var(ddof=1) + b.var(ddof=1)) / SEEDS)
    ratio = abs(np.log(a.std() / b.std())) * np.sqrt(SEEDS)
    return Outcome({"sigmas of losses": (max(t, ratio), SIGMAS)}, [f"losses {a.mean():.4f}, PaddlePaddle {b.mean():.4f}"])


NETS = {f"initial, {n}": (initial, n, v) for n, v in {**INITIAL, **FIXED}.items()}
NETS |= {n: (dropped, n, v) for n, v in DROPPED.items()}
NETS["training with dropout"] = (training, "", trained)


def cases(build, folder):
    return NETS


def compare(build, name, net, folder):
    kind, name, net = net
    return kind(build, name, net, folder)
