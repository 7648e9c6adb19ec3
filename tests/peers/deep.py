"""Deep and recurrent networks: training programs of PaddlePaddle, 20 steps in both from the same initial parameters.

Losses of every step and the parameters afterwards are compared. Learning rates are small: rounding grows with every step in nets
with batch normalisation, and in PaddlePaddle's own runs from values that differ by 3e-7 as well.
"""
from train import *
from rednet import RedNet

VISION = paddle.vision.models
O = paddle.optimizer


def undropped(m):
    for layer in m.sublayers():
        if isinstance(layer, paddle.nn.Dropout):
            layer.p = 0.0
    return m


def vision(model, size, channels=3, lr=1e-4, warm=0):
    def net():
        net.warm = warm
        return classes(undropped(model())(data(channels, size, size))), O.Momentum(lr, 0.9, weight_decay=paddle.regularizer.L2Decay(1e-4))
    return net


def encoder():
    """Like BERT, small: embeddings, two layers, words to be guessed; global-norm clipping and AdamW without decay of biases."""
    nn, width, vocabulary = paddle.nn, 64, 10
    ids = data(16, dtype="int64")
    h = nn.Embedding(vocabulary, width)(ids) + nn.Embedding(16, width)(paddle.arange(16, dtype="int64"))
    h = nn.LayerNorm(width)(h)
    layer = nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, "gelu")
    scores = nn.Linear(width, vocabulary)(nn.TransformerEncoder(layer, 2)(h))
    loss = paddle.mean(F.cross_entropy(paddle.reshape(scores, [-1, vocabulary]), paddle.reshape(ids, [-1, 1]), reduction="none"))
    return loss, O.AdamW(1e-3, weight_decay=0.01, apply_decay_param_fun=lambda n: ".w_" in n, grad_clip=paddle.nn.ClipGradByGlobalNorm(1.0))


def language(kind="LSTM", **options):
    """A language model: embedding, two recurrent layers, the next word."""
    def net():
        nn, vocabulary = paddle.nn, 10
        ids, then = data(20, dtype="int64"), static.data("y", [-1, 20], "int64")
        h, _ = getattr(nn, kind)(32, 48, num_layers=2, **options)(nn.Embedding(vocabulary, 32)(ids))
        scores = nn.Linear(h.shape[2], vocabulary)(h)
        loss = paddle.mean(F.cross_entropy(scores, paddle.unsqueeze(then, 2), reduction="none"))
        return loss, O.Adam(2e-3, grad_clip=paddle.nn.ClipGradByGlobalNorm(5.0))
    return net


def sentences():
    """Classes of sequences of different lengths."""
    nn = paddle.nn
    x, n = data(12, 20), static.data("n", [-1], "int64")
    out, (h, _) = nn.LSTM(20, 24, direction="bidirect")(x, sequence_length=n % 8 + 1)
    return classes(nn.Linear(24, 10)(h[0] + h[1])), O.Momentum(0.1, 0.9)


def bn_dropout():
    nn = paddle.nn
    h = nn.BatchNorm2D(16)(nn.Conv2D(3, 16, 3, padding=1)(data(3, 16, 16)))
    h = F.dropout(F.max_pool2d(F.relu(h), 2, 2), 0.0)
    h = F.relu(nn.BatchNorm1D(32)(nn.Linear(1024, 32)(paddle.flatten(h, 1))))
    return classes(nn.Linear(32, 10)(F.dropout(h, 0.0, mode="downscale_in_infer"))), O.Momentum(0.01, 0.9, weight_decay=paddle.regularizer.L2Decay(1e-3))


NETS = {
    "lenet": vision(lambda: VISION.LeNet(10), 28, 1, 1e-2),
    "resnet18": vision(lambda: VISION.resnet18(num_classes=10), 64),
    "mobilenet_v1": vision(lambda: VISION.mobilenet_v1(num_classes=10), 64, lr=1e-5, warm=20),
    "rednet26": vision(lambda: RedNet(26, 10), 64, lr=1e-5, warm=20),
    "encoder, adamw + global norm": encoder,
    "language model, lstm": language(),
    "language model, gru": language("GRU"),
    "language model, simple rnn": language("SimpleRNN", direction="bidirect"),
    "sentences, lstm with lengths": sentences,
    "batch norm + dropout, momentum + l2": bn_dropout,
}


# Attention does not depend on the bias of its keys: the gradient is rounding noise, which Adam scales up.
FREE = {"encoder, adamw + global norm": {"linear_1.b_0", "linear_8.b_0"}}


def warm_up(exe, main, n_steps):
    """Some steps with a large learning rate. At their initial values some nets make of a difference of 3e-7 one of 3e-2 in a step."""
    rate = static.global_scope().find_var("learning_rate_0").get_tensor()
    small = np.array(rate)
    for i in range(n_steps):
        rate.set(np.full_like(small, 0.01), paddle.CPUPlace())
        exe.run(main, feed=feeds(main, np.random.RandomState(50 + i), 1))
    rate.set(small, paddle.CPUPlace())


def distance(got, want, names):
    """||got - want|| / ||want|| of all these together."""
    d, n = (np.sqrt(sum(float((np.square(f(k)).sum())) for k in names)) for f in (lambda k: got[k].astype("float64") - want[k], lambda k: want[k].astype("float64")))
    return d / n


def compare_deep(build, name, net, folder, n_steps):
    """(error of the losses, of all parameters together, of one, its name, the same between two runs of PaddlePaddle)."""
    paddle.seed(7)
    main, startup = static.Program(), static.Program()
    with static.program_guard(main, startup), paddle.utils.unique_name.guard(), static.scope_guard(static.Scope()):
        loss, optimizer = net()
        optimizer.minimize(loss)
        exe = static.Executor(paddle.CPUPlace())
        exe.run(startup)
        warm_up(exe, main, getattr(net, "warm", 0))
        compared = trained_by(main) - FREE.get(name, set())
        first, d, want, last, noise = peer_run(exe, main, loss, n_steps, lambda n: n not in compared, 1)
    save(main, f"{folder}/main.pdmodel")
    save(startup, f"{folder}/startup.pdmodel")
    write_params(f"{folder}/first.pdiparams", first)
    got, where = kiln_train(build, folder, loss.name, d, ["--params", f"{folder}/first.pdiparams"], n_steps)
    after = read_params(f"{where}/tensors.pdiparams", list(first))
    e_loss = np.abs(got / want - 1).max() if len(got) == n_steps else float("inf")
    own, _ = kiln_train(build, folder, loss.name, d, ["--startup", f"{folder}/startup.pdmodel"], n_steps)  # with its own random numbers
    if not (len(own) == n_steps and np.isfinite(own).all() and abs(own[0] - want[0]) < 0.5 * want[0]):
        raise KilnError(f"losses from PaddlePaddle's startup program: {own}, its own: {want}")
    return e_loss, distance(after, last, compared), *worst_variable(after, last, lambda n: n not in compared), noise


def cases(build, folder):
    return NETS


def compare(build, name, net, folder):
    e_loss, e_var, e_one, who, noise = compare_deep(build, name, net, folder, STEPS)
    return Outcome({"losses": (e_loss, TOLERANCE), "parameters": (e_var, TOLERANCE)}, [f"worst {e_one:.1e} ({who}); between two runs of PaddlePaddle {noise:.1e}"])
