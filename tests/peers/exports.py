"""Inference models of many kinds: exports of paddle.jit with unknown dimensions and control flow of Python, decoders, layers of
paddle.nn and functions of paddle that other nets lack. As in infer.py.
"""
import infer
from infer import *

nn = paddle.nn


# ---- exports of layers ----

class Gated(nn.Layer):
    """Branches and a loop of Python over tensors."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(12, 12), nn.Linear(12, 12)

    def forward(self, x, n):
        h = self.one(x)
        if paddle.mean(h) > 0:
            h = F.relu(h)
        else:
            h = F.tanh(h) * 2
        i = paddle.zeros([1], "int64")
        while i < n:
            h = F.tanh(self.two(h)) + x
            i += 1
        total = paddle.zeros([12])
        for row in h:
            total = total + row * 0.5
        return h, total


class Attention(nn.Layer):
    """A decoder over a memory, with a causal mask of the length of the input."""

    def __init__(self):
        super().__init__()
        self.words, self.places = nn.Embedding(30, 24), nn.Embedding(40, 24)
        self.coder = nn.Transformer(24, 4, 2, 2, 48, dropout=0.1)
        self.out = nn.Linear(24, 30)

    def forward(self, source, target):
        place = lambda ids: self.places(paddle.arange(paddle.shape(ids)[1]))
        mask = paddle.triu(paddle.full([paddle.shape(target)[1]] * 2, float("-inf")), 1)
        h = self.coder(self.words(source) + place(source), self.words(target) + place(target), tgt_mask=mask)
        return F.log_softmax(self.out(h), -1)


class Mixer(nn.Layer):
    """Patches, transposed mixing, layer scale: the shapes of vision transformers, any image size."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2D(3, 16, 4, 4)
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)
        self.norm = nn.LayerNorm(16)
        self.scale = self.create_parameter([16], default_initializer=nn.initializer.Constant(0.3))
        self.token = self.create_parameter([1, 1, 16])

    def forward(self, x):
        b = paddle.shape(x)[0]
        h = self.patch(x).flatten(2).transpose([0, 2, 1])
        h = paddle.concat([self.token.expand([b, -1, -1]), h], 1)
        n = paddle.shape(h)[1]
        q, k, v = self.qkv(self.norm(h)).reshape([b, n, 3, 4, 4]).transpose([2, 0, 3, 1, 4]).unbind(0)
        a = F.softmax(q @ k.transpose([0, 1, 3, 2]) * 0.5, -1)
        h = h + self.scale * self.out((a @ v).transpose([0, 2, 1, 3]).reshape([b, n, 16]))
        return h[:, 0], h[:, 1:].mean(1)


class Exported:
    """A layer that paddle.jit.save writes."""

    def __init__(self, layer, *specs):
        self.layer, self.specs = layer, specs


def spec(name, *dims, dtype="float32"):
    return static.InputSpec(list(dims), dtype, name)


def beam():
    """Beam search of fixed length: states reordered by the parents, the paths followed back at the end."""
    x = static.data("x", [-1, 8], "float32")
    words, width, beams, steps = 11, 8, 3, 5
    table, cell, out = nn.Embedding(words, width), nn.GRUCell(width, width), nn.Linear(width, words)
    b = paddle.shape(x)[0]
    h = paddle.reshape(paddle.expand(paddle.unsqueeze(x, 1), [-1, beams, -1]), [-1, width])
    last = paddle.zeros([b * beams], "int64")
    scores = paddle.concat([paddle.zeros([b, 1]), paddle.full([b, beams - 1], -1e9)], 1)
    ids, parents = [], []
    for _ in range(steps):
        _, h = cell(table(last), h)
        logp = paddle.reshape(F.log_softmax(out(h) * 3), [-1, beams, words]) + paddle.unsqueeze(scores, 2)
        scores, flat = paddle.topk(paddle.reshape(logp, [-1, beams * words]), beams)
        parent, last = flat // words, flat % words
        rows = paddle.reshape(parent + paddle.unsqueeze(paddle.arange(b) * beams, 1), [-1])
        h = paddle.gather(h, rows)
        ids.append(last)
        parents.append(parent)
        last = paddle.reshape(last, [-1])
    return [F.gather_tree(paddle.stack(ids), paddle.stack(parents)), scores]


FUNCTIONS = {  # of x [batch, 4, 6]; m: positive definite [batch, 4, 4]; y: labels; each is a model of its own
    "activations": """F.celu(x); F.elu(x); F.gelu(x); F.glu(x); F.hardshrink(x); F.hardsigmoid(x); F.hardswish(x); F.hardtanh(x); F.leaky_relu(x); F.log_sigmoid(x);
        F.log_softmax(x); F.maxout(x.unsqueeze(3), 2, 1); F.mish(x); F.relu6(x); F.rrelu(x, training=False); F.selu(x); F.silu(x); F.softplus(x); F.softshrink(x); F.softsign(x);
        F.swish(x); F.tanhshrink(x); F.thresholded_relu(x); paddle.stanh(x); F.softmax(x, 1); F.prelu(x, paddle.full([1], 0.2)); F.normalize(x); F.alpha_dropout(x, 0.3, training=False)""",
    "one by one": """paddle.abs(x); paddle.ceil(x); paddle.cos(x); paddle.cosh(x); paddle.erf(x); paddle.exp(x); paddle.expm1(x); paddle.floor(x); paddle.neg(x); paddle.round(x); paddle.sign(x);
        paddle.sin(x); paddle.sinh(x); paddle.square(x); paddle.tan(x); paddle.tanh(x); paddle.trunc(x); paddle.frac(x); paddle.deg2rad(x); paddle.rad2deg(x); paddle.angle(x);
        paddle.log(p); paddle.log10(p); paddle.log1p(p); paddle.log2(p); paddle.rsqrt(p); paddle.sqrt(p); paddle.reciprocal(p); paddle.lgamma(p); paddle.digamma(p); paddle.acos(p * 0.3);
        paddle.asin(p * 0.3); paddle.atan(x); paddle.atanh(p * 0.3); paddle.erfinv(p * 0.3); paddle.logit(p * 0.3); paddle.acosh(p + 1); paddle.asinh(x); paddle.clip(x, -0.5, 0.5); paddle.atan2(x, p);
        paddle.heaviside(x, p); paddle.fmax(x, -x); paddle.fmin(x, p); paddle.maximum(x, -x); paddle.remainder(x, p); paddle.floor_divide(x, p); paddle.lerp(x, p, 0.3); paddle.logaddexp(x, p);
        paddle.nan_to_num(x / (x * 0)); paddle.diff(x); paddle.ldexp(x, y); paddle.pow(p, x); paddle.multiply(x, p);
        paddle.isnan(x / (x * 0)); paddle.isinf(x / (x * 0)); paddle.isfinite(x / (x * 0)); paddle.isclose(x, x * 1.000001); paddle.allclose(x, x); paddle.equal_all(x, x); paddle.gcd(y, y + 2); paddle.lcm(y, y + 2)""",
    "reductions": """paddle.sum(x, 1); paddle.mean(x, [1, 2]); paddle.max(x, 1); paddle.min(x, 2); paddle.prod(x, 1); paddle.amax(x, 1); paddle.amin(x, [1, 2]); paddle.std(x, 1); paddle.var(x, 2); paddle.median(x, 1);
        paddle.logsumexp(x, 1); paddle.argmax(x, 1); paddle.argmin(x, 2); paddle.nansum(x, 1); paddle.nanmean(x, 1); paddle.cumsum(x, 1); paddle.cumprod(x, 1); paddle.logcumsumexp(x, 1); paddle.mode(paddle.round(x), 1); paddle.kthvalue(x, 2, 1); paddle.quantile(x, 0.4, 1); paddle.norm(x, 3, 2); paddle.norm(x); paddle.norm(x, float("inf"), 1); paddle.norm(x, "fro", [1, 2]);
        paddle.count_nonzero(x > 0, 1); paddle.all(x > -9, 1); paddle.any(x > 2, 1); paddle.trace(x, 0, 1, 2); paddle.dist(x, p, 3); paddle.histogram(x, 7, -2, 2); 
        paddle.nanquantile(x, 0.3, 1); paddle.unique(y, return_counts=True); paddle.unique_consecutive(y.flatten()); paddle.trapezoid(x, axis=1); paddle.cumulative_trapezoid(x, axis=1)""",
    "shapes": """paddle.flip(x, 1); paddle.roll(x, 2, 2); paddle.rot90(x, 1, [1, 2]); paddle.tile(x, [1, 2, 1]); paddle.repeat_interleave(x, 2, 1); paddle.moveaxis(x, 1, 2); paddle.tril(x); paddle.triu(x, 1);
        paddle.diagonal(x, 1, 1, 2); paddle.diag_embed(x[:, 0]); paddle.strided_slice(x, [1, 2], [3, 0], [0, 5], [-1, 2]); paddle.crop(x, [-1, 2, 3], [0, 1, 2]); F.pad(x, [1, 2], data_format="NCL");
        paddle.split(x, 2, 1); paddle.chunk(x, 3, 2); paddle.unbind(x, 1); paddle.unstack(x, 1, 4); paddle.stack([x, p], 2); paddle.broadcast_tensors([x, p[:, :1]]); paddle.meshgrid(x[0, 0], x[0, :, 0]);
        paddle.expand_as(x[:, :1], x); paddle.unsqueeze(x, [0, -1]); paddle.flatten(x, 1); paddle.tensordot(x, p, [[1, 2], [1, 2]]); paddle.kron(x[0], p[0]); paddle.cross(x[:, :3, :3], p[:, 1:, 1:4], 2);
        paddle.outer(x[0, 0], x[0, 1]); paddle.inner(x, p[0]); paddle.einsum("nij,nkj->nik", x, p); paddle.index_sample(x[:, 0], y[:, :2]); paddle.take_along_axis(x, paddle.argsort(x, 1)[:, :2], 1);
        paddle.put_along_axis(x, paddle.argsort(x, 1)[:, :1], 0.0, 1); paddle.index_add(x, paddle.assign(np.array([0, 2])), 1, p[:, :2]); paddle.gather_nd(x, paddle.assign(np.array([[0, 1], [0, 3]])));
        paddle.where(x > 0, x, p); paddle.searchsorted(paddle.sort(x[0, 0]), x); paddle.bucketize(x, paddle.assign(np.array([-1, 0, 1], "float32"))); paddle.topk(x, 2, 2); paddle.sort(x, 1, True);
        F.one_hot(y, 4); paddle.shape(x); paddle.numel(x); F.sequence_mask(y, 7); paddle.linspace(0, 1, 5); paddle.arange(0, 6, 2); paddle.eye(3, 4); paddle.tril_indices(4, 5, 0); paddle.triu_indices(4, 4, 1);
        paddle.logspace(0, 2, 4); paddle.vander(x[0, 0], 3); paddle.renorm(x, 2.0, 1, 1.0); paddle.masked_select(x, x > 0); paddle.nonzero(x > 0); paddle.scatter(x[0], paddle.assign(np.array([1, 0])), p[0, :2]);
        paddle.scatter_nd_add(x[0], paddle.assign(np.array([[1], [1]])), p[0, :2]); paddle.index_put(x[0], (paddle.assign(np.array([1, 2])),), p[0, :2]); paddle.as_strided(x, [2, 3], [6, 1]); paddle.unfold(x, 2, 3, 2);
        paddle.view(x, [-1, 24]); paddle.fill_diagonal_tensor(x[0], p[0, :, 0]); paddle.multiplex([x[:, 0], p[:, 0]], paddle.cast(y[:, :1] % 2, "int32")); paddle.shard_index(y[:, :1], 20, 2, 0); x[:, ::2, [0, 2, 5]]; x[..., None, -1]""",
    "algebra": """paddle.inverse(m); paddle.linalg.cholesky(m); paddle.linalg.det(m); paddle.linalg.solve(m, x); paddle.linalg.triangular_solve(m, x, upper=False); paddle.linalg.matrix_power(m * 0.3, 3);
        paddle.linalg.multi_dot([m[0], x[0], p[0].t()]); paddle.linalg.cholesky_solve(x, paddle.linalg.cholesky(m)); paddle.bmm(m, x); paddle.mv(m[0], x[0, :, 0]); paddle.addmm(x[0], m[0], x[0]); paddle.linalg.cov(x[0]); paddle.linalg.corrcoef(x[0])""",
    "images": """F.pixel_shuffle(i, 2); F.pixel_unshuffle(i, 2); F.channel_shuffle(i, 2); F.local_response_norm(i, 3); F.avg_pool2d(i, 3, 2, 1); F.max_pool2d(i, 3, 2, 1, ceil_mode=True); F.max_pool2d(i, 2, 2, return_mask=True);
        F.adaptive_avg_pool2d(i, (3, 2)); F.adaptive_max_pool2d(i, (3, 2)); F.adaptive_max_pool2d(i, 2, return_mask=True); F.interpolate(i, scale_factor=2); F.interpolate(i, scale_factor=1.5, mode="bilinear", align_corners=True);
        F.interpolate(i, size=[5, 9], mode="bicubic"); F.interpolate(i, size=[3, 4], mode="area"); F.pad(i, [1, 2, 2, 1], "reflect"); F.pad(i, [1, 2, 2, 1], "replicate"); F.pad(i, [1, 1, 2, 2], "circular"); F.zeropad2d(i, [1, 2, 0, 1]);
        F.unfold(i, 3, 1, 1); F.fold(F.unfold(i, 2, 2), [6, 4], 2, 2); F.instance_norm(i); F.temporal_shift(paddle.tile(i, [2, 1, 1, 1]), 2); F.max_unpool2d(*F.max_pool2d(i, 2, 2, return_mask=True), 2, 2); F.dropout2d(i, 0.3, training=False);
        F.cosine_similarity(x, p, 1); F.pairwise_distance(x[:, 0], p[:, 0]); F.label_smooth(F.softmax(x, 1)); F.avg_pool1d(x, 2, 2); F.max_pool1d(x, 3, 2); F.avg_pool3d(i.unsqueeze(1), 2, 2); F.conv2d(i, paddle.full([8, 4, 3, 3], 0.1), padding="SAME", stride=2); F.conv1d_transpose(x, paddle.full([4, 2, 3], 0.1), stride=2)""",
    "losses": """F.cross_entropy(l, c); F.cross_entropy(l, c, weight=paddle.linspace(0.5, 1.5, 6)); F.cross_entropy(l, F.softmax(-l), soft_label=True); F.cross_entropy(l, c, label_smoothing=0.1); F.nll_loss(F.log_softmax(l), c); F.binary_cross_entropy(F.sigmoid(l), q);
        F.binary_cross_entropy_with_logits(l, q, pos_weight=paddle.full([6], 1.5)); F.mse_loss(l, q); F.l1_loss(l, q); F.smooth_l1_loss(l, q); F.kl_div(F.log_softmax(l), F.softmax(-l)); F.margin_ranking_loss(l[:, 0], l[:, 1], s); F.hinge_embedding_loss(l[:, 0], s);
        F.cosine_embedding_loss(l, q, s); F.triplet_margin_loss(l, q, -l); F.soft_margin_loss(l[:, 0], s); F.multi_label_soft_margin_loss(l, F.one_hot(c, 6)); F.multi_margin_loss(l, c); F.poisson_nll_loss(l, q); F.gaussian_nll_loss(l, q, q + 0.5);
        F.sigmoid_focal_loss(l, F.one_hot(c, 6)); F.dice_loss(F.softmax(l), c.unsqueeze(1)); F.log_loss(F.sigmoid(l), q); F.npair_loss(l, q, c.astype("float32")); F.square_error_cost(l, q); F.hsigmoid_loss(l, c % 6, 6, paddle.full([5, 6], 0.1));
        F.softmax_with_cross_entropy(l, c.unsqueeze(1)); F.margin_cross_entropy(F.normalize(l), c); F.triplet_margin_with_distance_loss(l, q, -l)""",
}


def one_function(text):
    def make():
        x, y = static.data("x", [-1, 4, 6], "float32"), static.data("n", [-1, 4], "int64")
        names = {"x": x, "y": y, "F": F, "np": np, "paddle": paddle, "p": x.abs() + 0.2, "i": paddle.concat([x.unsqueeze(3)] * 4, 3) if "(i" in text else None,
                 "m": paddle.bmm(x, x.transpose([0, 2, 1])) + paddle.eye(4) * 2 if "m" in text else None, "l": x[:, 0], "q": F.sigmoid(-x[:, 1]), "c": y[:, 0], "s": paddle.sign(x[:, 2, 0])}
        r = eval(text, names)
        r = list(r) if isinstance(r, (list, tuple)) else [r]
        return [paddle.scale(v) if v.dtype == paddle.float32 else v for v in r]
    return make


def function(build, text, folder):
    """A function of FUNCTIONS as a model of its own, on two batch sizes."""
    paddle.seed(3)
    main = static.Program()
    with static.program_guard(main, static.Program()), paddle.utils.unique_name.guard(), static.scope_guard(static.Scope()):
        try:
            outs = one_function(text)()
            exe = static.Executor(paddle.CPUPlace())
            read = {n for op in main.global_block().ops for n in op.input_arg_names}
            names = [o.name for o in outs]
            values = lambda r, n: {"x": r.randn(n, 4, 6).astype("float32"), "n": r.randint(0, 4, [n, 4])}
            feeds = [{k: v for k, v in values(np.random.RandomState(i), n).items() if k in read} for i, n in enumerate((2, 3))]
            wants = [exe.run(main, feed=f, fetch_list=names) for f in feeds]
        except Exception as e:
            return Outcome({}, ["PaddlePaddle refuses it: " + (str(e).strip().splitlines() or [repr(e)])[-1][:120]], 0)
    save(main, f"{folder}/m.pdmodel")
    worst = 0.0
    for f, want in zip(feeds, wants):
        got = run(build, f"{folder}/m.pdmodel", folder, f, names)
        worst = max([worst] + [error(got[n], w, 1e-30) for n, w in zip(names, want)])
    return Outcome({"functions": (worst, 1e-4)})


NETS = {
    "to_static, branches and loops": (Exported(Gated, spec("x", None, 12), spec("n", 1, dtype="int64")), [lambda r: {"x": r.randn(3, 12).astype("float32"), "n": np.array([2])}, lambda r: {"x": r.randn(5, 12).astype("float32") - 1, "n": np.array([4])}]),
    "to_static, transformer": (Exported(Attention, spec("s", None, None, dtype="int64"), spec("t", None, None, dtype="int64")), [lambda r: {"s": r.randint(0, 30, [2, 7]), "t": r.randint(0, 30, [2, 5])}, lambda r: {"s": r.randint(0, 30, [1, 4]), "t": r.randint(0, 30, [1, 9])}]),
    "to_static, vision transformer": (Exported(Mixer, spec("x", None, 3, None, None)), [floats("x", 2, 3, 16, 24), floats("x", 1, 3, 32, 20)]),
    "beam search": (beam, [floats("x", 2, 8), floats("x", 4, 8)]),
}


def cases(build, folder):
    return {**NETS, **{" ".join(t.split()): None for group in FUNCTIONS.values() for t in group.split(";")}}


def compare(build, name, net, folder):
    if net is None:
        return function(build, name, folder)
    net, runs = net
    if not isinstance(net, Exported):
        return infer.compare(build, name, (net, runs), folder)
    paddle.disable_static()
    paddle.seed(3)
    layer = net.layer()
    layer.eval()
    paddle.jit.save(layer, f"{folder}/m", input_spec=list(net.specs))
    paddle.enable_static()
    with static.scope_guard(static.Scope()):
        return Outcome(compared_runs(build, folder, static.Executor(paddle.CPUPlace()), runs))
