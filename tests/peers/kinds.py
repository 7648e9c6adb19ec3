"""Kinds of training programs beside plain networks: schedules inside of the program, several losses and optimisers, merged
gradients, averages of parameters, mixed precision, other optimisers and layers. Trained by both, as in train.py."""
from train import *

nn, O, L = paddle.nn, paddle.optimizer, paddle.optimizer.lr


def small(size=20, **kw):
    h = static.nn.fc(data(size), 32, activation="tanh")
    return static.nn.fc(h, 10, **kw)


def with_optimizer(make):
    return lambda: (classes(small()), make())


def images(channels=8):
    return F.relu(nn.BatchNorm2D(channels)(nn.Conv2D(3, channels, 3, padding=1, bias_attr=False)(data(3, 8, 8))))


# ---- several losses ----

def two_losses():
    """As GANs are trained: two optimisers in one program, each for its own parameters."""
    z, real = data(8), static.data("y", [-1, 16], "float32")
    fake = static.nn.fc(static.nn.fc(z, 16, activation="relu", name="g1"), 16, name="g2")
    share = lambda n: dict(weight_attr=A(name=n + ".w"), bias_attr=A(name=n + ".b"))
    judge = lambda v: static.nn.fc(static.nn.fc(v, 16, activation="relu", **share("d1")), 1, **share("d2"))
    ones = lambda v: paddle.full_like(v, 1.0)
    dr, df = judge(real), judge(fake.detach())
    bce = F.binary_cross_entropy_with_logits
    d_loss = bce(dr, ones(dr)) + bce(df, paddle.zeros_like(df))
    g_out = judge(fake)
    g_loss = bce(g_out, ones(g_out))
    params = static.default_main_program().all_parameters()
    O.Adam(1e-3, beta1=0.5, parameters=[p for p in params if p.name[0] == "d"]).minimize(d_loss, parameters=[p.name for p in params if p.name[0] == "d"])
    return g_loss, Some(O.Adam(1e-3, beta1=0.5), [p.name for p in params if p.name[0] != "d"])


class Some:
    """An optimiser for some of the parameters."""

    def __init__(self, optimizer, names):
        self.optimizer, self.names = optimizer, names

    def minimize(self, loss):
        self.optimizer.minimize(loss, parameters=self.names)


def multi_task():
    h = static.nn.fc(data(20), 32, activation="relu")
    one = classes(static.nn.fc(h, 10))
    y = static.data("v", [-1, 3], "float32")
    two = F.smooth_l1_loss(static.nn.fc(h, 3), y)
    three = F.kl_div(F.log_softmax(static.nn.fc(h, 3)), F.softmax(y), reduction="batchmean")
    return one + 0.5 * two + 0.1 * three, O.AdamW(2e-3)


def margins():
    a = F.normalize(static.nn.fc(data(20), 16))
    b = F.normalize(static.nn.fc(static.data("p", [-1, 20], "float32"), 16))
    cosine = F.cosine_similarity(a, b)
    scores = paddle.matmul(a, b, transpose_y=True) * 5
    loss = F.cross_entropy(scores, paddle.arange(16)) + paddle.mean(1 - cosine) + F.margin_ranking_loss(cosine, -cosine, paddle.ones_like(cosine), 0.3)
    return loss, O.Momentum(0.05, 0.9)


def ctc():
    h = static.nn.fc(data(12, 6), 32, num_flatten_dims=2, activation="relu")
    h, _ = nn.GRU(32, 16, direction="bidirect")(h)
    logits = paddle.transpose(nn.Linear(32, 11)(h), [1, 0, 2])
    label = paddle.cast(static.data("y", [-1, 4], "int64"), "int32") + 1
    n = paddle.full([16], 12, "int64")
    m = paddle.full([16], 4, "int64")
    return F.ctc_loss(logits, paddle.clip(label, 1, 10), n, m), O.Adam(5e-3)


# ---- what changes the step ----

def scheduled(make):
    def net():
        return classes(small()), O.Momentum(make(), 0.9)
    return net


def in_program(of_step):
    """A schedule of 1.x: the rate is computed by operators from a counter that the program increments."""
    def net():
        loss = classes(small())
        counter = static.create_global_var([1], 0.0, "float32", persistable=True, name="@LR_DECAY_COUNTER@")
        paddle.increment(counter)
        optimizer = O.SGD(0.1)
        optimizer._learning_rate_map[static.default_main_program()] = of_step(counter)
        return loss, optimizer
    return net


def ema():
    loss = classes(small())
    O.SGD(0.05).minimize(loss)
    average = static.ExponentialMovingAverage(0.9)
    average.update()
    return loss, Done()


def averaged():
    loss = classes(small())
    O.Momentum(0.05, 0.9).minimize(loss)
    paddle.incubate.ModelAverage(0.15, min_average_window=4, max_average_window=8).minimize(loss)
    return loss, Done()


class Done:
    def minimize(self, loss):
        pass


def lookahead():
    return classes(small()), paddle.incubate.LookAhead(O.SGD(0.1), alpha=0.5, k=4)


def merged_gradients():
    return classes(small()), paddle.incubate.optimizer.GradientMergeOptimizer(O.Momentum(0.05, 0.9), k_steps=4, avg=True)


def recomputed():
    h = data(20)
    kept = []
    for i in range(4):
        h = static.nn.fc(h, 24, activation="tanh")
        kept.append(h)
    loss = classes(static.nn.fc(h, 10))
    o = paddle.incubate.optimizer.RecomputeOptimizer(O.SGD(0.1))
    o._set_checkpoints([kept[1], kept[2]])
    return loss, o


def mixed_precision():
    """The first level: white-listed operators in half precision (on a CPU PaddlePaddle leaves them as they are), scaled losses."""
    h = images()
    h = F.relu(nn.Conv2D(8, 16, 3, stride=2)(h))
    loss = classes(nn.Linear(16, 10)(paddle.mean(h, [2, 3])))
    return loss, static.amp.decorate(O.Momentum(0.05, 0.9), init_loss_scaling=128.0, use_dynamic_loss_scaling=True, incr_every_n_steps=5)


def frozen_statistics():
    h = images()
    h = nn.BatchNorm2D(8, use_global_stats=True)(nn.Conv2D(8, 8, 3)(h))
    return classes(nn.Linear(8, 10)(paddle.mean(F.relu(h), [2, 3]))), O.Momentum(0.02, 0.9)


def weight_normed():
    h = static.nn.fc(data(20), 16, activation="relu", weight_attr=static.WeightNormParamAttr(name="wn"))
    return classes(static.nn.fc(h, 10)), O.Momentum(0.05, 0.9)


class Appended:
    """An optimiser that PaddlePaddle 2.6 has as an operator only: of 1.x programs."""

    def __init__(self, kind, rate, states, **attrs):
        self.kind, self.rate, self.states, self.attrs = kind, rate, states, attrs

    def minimize(self, loss):
        block = static.default_main_program().global_block()
        rate = static.create_global_var([1], self.rate, "float32", persistable=True, name="learning_rate_0")
        for param, grad in static.append_backward(loss):
            ins, outs = {"Param": param, "Grad": grad, "LearningRate": rate}, {"ParamOut": param}
            for slot, (out, value) in self.states.items():
                ins[slot] = outs[out] = static.create_global_var(list(param.shape), value, "float32", persistable=True, name=f"{param.name}_{slot}")
            block.append_op(type=self.kind, inputs=ins, outputs=outs, attrs=self.attrs)


def first_version():
    """As 1.x wrote programs: mul, elementwise_add with an axis, reshape, transpose, lookup_table, top_k, accuracy, cross_entropy."""
    words, x = data(6, 1, dtype="int64", name="ids"), data(8)
    block = static.default_main_program().global_block()
    var = lambda dtype="float32", **kw: block.create_var(dtype=dtype, name=paddle.utils.unique_name.generate("one"), **kw)

    def op(kind, ins, outs=("Out",), **attrs):
        made = {o: var() for o in outs}
        block.append_op(type=kind, inputs=ins, outputs=made, attrs=attrs)
        return made[outs[0]]
    table, w, b = (paddle.create_parameter(d, "float32", name=n) for n, d in (("emb", [12, 4]), ("w", [32, 16]), ("b", [16])))
    e = op("lookup_table", {"W": table, "Ids": words}, padding_idx=-1)
    e = op("reshape2", {"X": op("transpose2", {"X": e}, ("Out", "XShape"), axis=[0, 2, 1])}, ("Out", "XShape"), shape=[0, 24])
    h = op("mul", {"X": op("concat", {"X": [e, x]}, axis=1), "Y": w}, x_num_col_dims=1, y_num_col_dims=1)
    h = op("relu", {"X": op("elementwise_add", {"X": h, "Y": b}, axis=1)})
    h = op("dropout", {"X": h}, ("Out", "Mask"), dropout_prob=0.0, dropout_implementation="downgrade_in_infer")
    h = op("softmax", {"X": static.nn.fc(h, 10)})
    loss = op("cross_entropy", {"X": h, "Label": static.data("y", [-1, 1], "int64")}, ("Y",), soft_label=False)
    return op("mean", {"X": loss}), Appended("decayed_adagrad", 0.05, {"Moment": ("MomentOut", 0.0)}, decay=0.9, epsilon=1e-6)


# ---- layers of paddle.static.nn ----

def static_layers():
    h = static.nn.conv2d(data(4, 10, 10), 8, 3, padding=1, act="relu")
    h = static.nn.group_norm(static.nn.conv2d_transpose(h, 6, filter_size=2, stride=2), groups=2)
    h = static.nn.instance_norm(static.nn.conv2d(h, 6, 3, stride=2, bias_attr=False))
    h = static.nn.prelu(h, "channel")
    h = static.nn.layer_norm(paddle.flatten(h, 1))
    h = static.nn.bilinear_tensor_product(static.nn.fc(h, 8), static.nn.fc(h, 6), 12, act="tanh")
    return classes(static.nn.fc(h, 10)), O.Adam(1e-3)


def volumes():
    h = static.nn.conv3d(data(2, 6, 8, 8), 4, 3, padding=1, act="relu")
    h = F.max_pool3d(static.nn.conv3d_transpose(h, 4, filter_size=2, stride=2), 2, 2)
    return classes(static.nn.fc(paddle.flatten(F.avg_pool3d(h, 2, 2), 1), 10)), O.Momentum(0.02, 0.9)


def deformed():
    x = data(4, 8, 8)
    offset = static.nn.conv2d(x, 18, 3, padding=1)
    mask = F.sigmoid(static.nn.conv2d(x, 9, 3, padding=1))
    h = static.nn.deform_conv2d(x, offset, mask, 6, 3, padding=1)
    return classes(static.nn.fc(F.relu(h), 10)), O.SGD(0.02)


def branches():
    x = data(8)
    h = static.nn.fc(x, 12, activation="relu")
    pred = paddle.mean(x) < 0.0
    y = static.nn.cond(pred, lambda: static.nn.fc(h, 6, activation="tanh"), lambda: static.nn.fc(h * 0.5, 6))
    case = static.nn.case([(paddle.mean(x) > 0.1, lambda: y * 2.0), (paddle.mean(x) < -0.1, lambda: y + 1.0)], lambda: y * y)
    k = paddle.cast(paddle.mean(x) > 0, "int32")
    z = static.nn.switch_case(k, {0: lambda: case * 3.0, 1: lambda: F.tanh(case)})
    return paddle.mean(F.square_error_cost(static.nn.fc(z, 1), static.data("y", [-1, 1], "float32"))), O.SGD(0.02)


def looped():
    x = data(8)
    w = paddle.create_parameter([8, 8], "float32", name="w")
    i, n = paddle.full([1], 0, "int64"), paddle.full([1], 3, "int64")
    _, h = static.nn.while_loop(lambda i, h: i < n, lambda i, h: [i + 1, F.tanh(paddle.matmul(h, w) + x)], [i, F.tanh(x)])
    return paddle.mean(F.square_error_cost(static.nn.fc(h, 1), static.data("y", [-1, 1], "float32"))), O.SGD(0.02)


def decoder():
    """Sequence to sequence: an encoder, a decoder cell with attention unrolled over the target words."""
    source, target = data(6, dtype="int64"), static.data("t", [-1, 5], "int64")
    table = nn.Embedding(12, 16)
    memory, last = nn.GRU(16, 16)(table(source))
    cell, h = nn.GRUCell(32, 16), last[0]
    project, out = nn.Linear(16, 16), nn.Linear(32, 12)
    losses = []
    for t in range(4):
        query = paddle.unsqueeze(project(h), 1)
        weights = F.softmax(paddle.matmul(query, memory, transpose_y=True))
        context = paddle.squeeze(paddle.matmul(weights, memory), 1)
        _, h = cell(paddle.concat([table(target[:, t]), context], -1), h)
        losses.append(F.cross_entropy(out(paddle.concat([h, context], -1)), target[:, t + 1]))
    return paddle.add_n(losses), O.Adam(2e-3, grad_clip=nn.ClipGradByGlobalNorm(1.0))


def detector():
    """A head of boxes and classes over a grid: focal loss and IoU of decoded boxes."""
    h = F.relu(nn.Conv2D(8, 8, 3, stride=2, padding=1)(images()))
    box = F.sigmoid(nn.Conv2D(8, 4, 1)(h))
    score = nn.Conv2D(8, 3, 1)(h)
    goal = F.sigmoid(static.data("b", [-1, 4, 4, 4], "float32"))
    label = F.one_hot(static.data("c", [-1, 4, 4], "int64") % 3, 3).transpose([0, 3, 1, 2])
    focal = F.sigmoid_focal_loss(score, label, normalizer=paddle.full([1], 16.0), alpha=0.3, gamma=1.5)
    lo, hi = paddle.minimum(box, goal), paddle.maximum(box, goal)
    iou = paddle.sum(lo, 1) / paddle.sum(hi, 1)
    return focal + paddle.mean(1 - iou) + F.l1_loss(box, goal), O.Momentum(0.02, 0.9)


def indexing():
    """Slices, set_value, gather, scatter, masks, sorting: the shapes that Python indexing makes."""
    h = static.nn.fc(data(6, 8), 8, num_flatten_dims=2, activation="tanh")
    a = h[:, 1:5:2, ::-1]
    b = static.setitem(paddle.zeros_like(h), (slice(None), 0), h[:, -1])
    b = static.setitem(b, (slice(None), slice(1, 4), 2), 0.5)
    c = paddle.index_select(h, paddle.assign(np.array([0, 2, 2])), axis=1)
    d, _ = paddle.topk(h, 3, axis=-1)
    e = paddle.where(h > 0.2, h, -h)
    s = paddle.sort(e, axis=1)[:, :2]
    parts = [paddle.flatten(v, 1) for v in (a, b, c, d, s, paddle.roll(h, 1, 1), paddle.tril(h))]
    return classes(static.nn.fc(paddle.concat(parts, 1), 10)), O.SGD(0.02)


def scalars():
    """0-D tensors everywhere."""
    scale = paddle.create_parameter([], "float32", name="scale", default_initializer=nn.initializer.Constant(0.7))
    h = small() * scale + paddle.full([], 0.1)
    m = paddle.max(h)
    return classes(h - m) + 0.01 * paddle.square(scale) + 0.001 * paddle.sum(h) / paddle.cast(paddle.numel(h), "float32"), O.Adam(1e-3)


def in_place():
    """Operators whose result is the variable that they read."""
    h = static.nn.fc(data(20), 16)
    block = static.default_main_program().current_block()
    block.append_op(type="relu", inputs={"X": h}, outputs={"Out": h})
    block.append_op(type="scale", inputs={"X": h}, outputs={"Out": h}, attrs={"scale": 0.5, "bias": 0.1})
    return classes(static.nn.fc(h, 10)), O.SGD(0.05)


def sparse_words(optimizer, **options):
    """An embedding whose gradient is rows."""
    def net():
        h = static.nn.embedding(data(5, dtype="int64"), [30, 8], is_sparse=True, **options)
        return classes(static.nn.fc(paddle.flatten(h, 1), 10)), optimizer()
    return net


def capsules():
    h = static.nn.fc(data(20), 24)
    h = paddle.reshape(h, [-1, 4, 6])
    n = paddle.norm(h, axis=-1, keepdim=True)
    h = h * n / (1 + n * n)
    v = paddle.einsum("bij,bkj->bik", h, h)
    return classes(static.nn.fc(paddle.flatten(v, 1), 10)), O.RMSProp(1e-3)


def penalised():
    """Of WGAN-GP: the loss has the gradient of a critic by its input."""
    x = data(12)
    x.stop_gradient = False
    y = static.nn.fc(F.leaky_relu(static.nn.fc(x, 16), 0.2), 16, activation="tanh", bias_attr=False)
    y = static.nn.fc(nn.BatchNorm1D(16)(y), 1)
    g, = static.gradients([y], [x])
    return 1.0 + paddle.mean(paddle.square(paddle.sqrt(paddle.sum(paddle.square(g), 1) + 1e-4) - 1)) + 0.01 * paddle.mean(y), O.Adam(2e-3, epsilon=1e-4)


def shuffled():
    """ShuffleNet's units."""
    h = images()
    for _ in range(2):
        a, b = paddle.split(h, 2, axis=1)
        b = F.relu(nn.BatchNorm2D(4)(nn.Conv2D(4, 4, 1, bias_attr=False)(b)))
        b = nn.BatchNorm2D(4)(nn.Conv2D(4, 4, 3, padding=1, groups=4, bias_attr=False)(b))
        h = F.channel_shuffle(paddle.concat([a, F.relu(b)], 1), 2)
    return classes(nn.Linear(8, 10)(paddle.mean(h, [2, 3]))), O.Momentum(0.05, 0.9)


def messages():
    """paddle.geometric: messages with weights of edges, sums, means and maxima, nodes pooled by graph."""
    g, x, ends = paddle.geometric, data(6), paddle.flatten(static.data("e", [-1, 4], "int64"))
    source, target = ends[:32], ends[32:]
    h = nn.Linear(6, 8)(x)
    weight = F.sigmoid(nn.Linear(8, 1)(g.send_uv(h, h, source, target, "add")))
    h = F.relu(g.send_ue_recv(h, weight, source, target, "mul", "sum")) + g.send_u_recv(h, source, target, "mean") + g.send_u_recv(h, source, target, "max")
    graph = paddle.assign(np.repeat([0, 1, 3], [5, 4, 7]))
    h = paddle.concat([g.segment_sum(h, graph), g.segment_mean(h, graph), g.segment_max(h, graph), g.segment_min(h, graph)], 1)
    return paddle.mean(F.cross_entropy(nn.Linear(32, 10)(h), static.data("y", [-1, 1], "int64")[:4])), O.SGD(0.05)


warm_up = lambda c: static.nn.cond(c < 5.0, lambda: 0.02 * c, lambda: paddle.full([1], 0.1))
L1 = paddle.regularizer.L1Decay
NETS = {
    "gan, two adams": two_losses, "multi-task": multi_task, "metric learning": margins, "ctc": ctc,
    "sequence to sequence with attention": decoder, "detection head": detector, "indexing": indexing, "0-d tensors": scalars,
    "gradient penalty": penalised, "shufflenet": shuffled, "graph, messages and segments": messages,
    "in place": in_place, "capsules, einsum": capsules,
    "sparse embedding, adam": sparse_words(lambda: O.Adam(2e-3, epsilon=1e-3)), "sparse embedding, lazy adam": sparse_words(lambda: O.Adam(2e-3, lazy_mode=True)),
    "sparse embedding with padding, sgd": sparse_words(lambda: O.SGD(0.1), padding_idx=0), "sparse embedding, momentum": sparse_words(lambda: O.Momentum(0.1, 0.9)),
    "sparse embedding, clipped by all": sparse_words(lambda: O.SGD(0.5, grad_clip=paddle.nn.ClipGradByGlobalNorm(0.1))), "sparse embedding, clipped": sparse_words(lambda: O.Adam(2e-3, epsilon=1e-3, grad_clip=paddle.nn.ClipGradByNorm(0.05))),
    "sparse embedding, adagrad": sparse_words(lambda: O.Adagrad(0.05)), "sparse embedding, lamb": sparse_words(lambda: O.Lamb(0.01)),
    "lars": with_optimizer(lambda: paddle.incubate.optimizer.LarsMomentumOptimizer(0.5, 0.9)),
    "lamb": with_optimizer(lambda: O.Lamb(0.01, exclude_from_weight_decay_fn=lambda p: ".b_" in p.name)),
    "adagrad + l1": with_optimizer(lambda: O.Adagrad(0.05, weight_decay=L1(1e-3))),
    "ftrl": with_optimizer(lambda: Appended("ftrl", 0.05, {"SquaredAccumulator": ("SquaredAccumOut", 0.1), "LinearAccumulator": ("LinearAccumOut", 0.0)}, l1=1e-3, l2=1e-3, lr_power=-0.5)),
    "decayed adagrad": with_optimizer(lambda: Appended("decayed_adagrad", 0.05, {"Moment": ("MomentOut", 0.0)}, decay=0.9, epsilon=1e-6)),
    "dpsgd without noise": with_optimizer(lambda: Appended("dpsgd", 0.05, {}, clip=5.0, batch_size=16.0, sigma=0.0, seed=1)), "1.x, decayed adagrad": first_version,
    "adamax": with_optimizer(lambda: O.Adamax(0.01)), "adadelta": with_optimizer(lambda: O.Adadelta(0.5, rho=0.9, epsilon=1e-5)), "rmsprop": with_optimizer(lambda: O.RMSProp(0.01, momentum=0.9, centered=True)),
    "lars + exclusions": with_optimizer(lambda: paddle.incubate.optimizer.LarsMomentumOptimizer(0.5, 0.9, exclude_from_weight_decay=[".b_"], epsilon=1e-9)),
    "model average": averaged, "exponential decay, outside": scheduled(lambda: L.ExponentialDecay(0.1, 0.9)),
    "exponential decay": in_program(lambda c: 0.1 * paddle.pow(paddle.full([1], 0.8), c)),
    "cosine decay": in_program(lambda c: 0.05 * (paddle.cos(c * (3.14159 / 20)) + 1)), "warm-up": in_program(warm_up),
    "piecewise decay": in_program(lambda c: static.nn.case([(c < 3.0, lambda: paddle.full([1], 0.1)), (c < 9.0, lambda: paddle.full([1], 0.05))], lambda: paddle.full([1], 0.01))),
    "exponential moving average": ema, "lookahead": lookahead, "gradient merge": merged_gradients, "recompute": recomputed,
    "amp o1": mixed_precision, "frozen statistics": frozen_statistics, "weight norm": weight_normed,
    "static.nn layers": static_layers, "3-d": volumes, "deformable": deformed, "cond, case, switch": branches, "while loop": looped,
}


def cases(build, folder):
    return NETS
