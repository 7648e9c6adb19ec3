"""Inference models of the kinds that users bring: for images, sound, text and generation, exported by save_inference_model or jit.save, with
feeds in other orders, outputs that are inputs, lists and control flow. As in infer.py and exports.py."""
import exports
from exports import *


def conv(h, c, k=3, stride=1, groups=1, act=F.relu, norm=True):
    h = nn.Conv2D(h.shape[1], c, k, stride, k // 2, groups=groups, bias_attr=None if not norm else False)(h)
    h = nn.BatchNorm2D(c)(h) if norm else h
    return act(h) if act else h


def picture(c=3):
    return static.data("x", [-1, c, -1, -1], "float32")


# ---- images ----

def efficient():
    h = conv(picture(), 16, 3, 2, act=F.swish)
    for c, k, stride, grow in ((8, 3, 1, 1), (12, 3, 2, 4), (12, 3, 1, 4), (20, 5, 2, 4)):
        x, wide = h, h.shape[1] * grow
        h = conv(h, wide, 1, act=F.swish) if grow > 1 else h
        h = conv(h, wide, k, stride, wide, act=F.swish)
        s = F.adaptive_avg_pool2d(h, 1)
        s = F.sigmoid(nn.Conv2D(max(x.shape[1] // 4, 2), wide, 1)(F.swish(nn.Conv2D(wide, max(x.shape[1] // 4, 2), 1)(s))))
        h = conv(h * s, c, 1, act=None)
        h = h + x if stride == 1 and c == x.shape[1] else h
    h = F.dropout(paddle.flatten(F.adaptive_avg_pool2d(conv(h, 64, 1, act=F.swish), 1), 1), 0.2, training=False)
    return [nn.Linear(64, 10)(h)]


def unet():
    h, kept = picture(1), []
    for c in (8, 16, 32):
        h = conv(conv(h, c), c)
        kept.append(h)
        h = F.max_pool2d(h, 2, 2)
    h = conv(h, 64)
    for skip in reversed(kept):
        h = nn.Conv2DTranspose(h.shape[1], skip.shape[1], 2, 2)(h)
        gap = paddle.shape(skip)[2:] - paddle.shape(h)[2:]
        h = F.pad(h, paddle.concat([paddle.zeros([1], "int32"), gap[1:], paddle.zeros([1], "int32"), gap[:1]]))
        h = conv(paddle.concat([skip, h], 1), skip.shape[1])
    h = nn.Conv2D(8, 3, 1)(h)
    return [F.softmax(h, 1), paddle.argmax(h, 1)]


class Swin(nn.Layer):
    """Windows of 4 x 4, shifted by 2 with a mask in every second block, a bias by relative position; patches merged between."""

    def __init__(self, side=16, width=16):
        super().__init__()
        self.side, self.window, self.heads = side, 4, 4
        self.patch = nn.Conv2D(3, width, 2, 2)
        self.blocks = nn.LayerList([nn.LayerList([nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width), nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)]) for _ in range(2)])
        self.bias = self.create_parameter([49, self.heads])
        at = np.stack(np.meshgrid(np.arange(4), np.arange(4), indexing="ij")).reshape(2, -1)
        far = at[:, :, None] - at[:, None] + 3
        self.register_buffer("index", paddle.to_tensor((far[0] * 7 + far[1]).reshape(-1)))
        region = np.zeros((side, side))
        for i, rows in enumerate((slice(0, -4), slice(-4, -2), slice(-2, None))):
            for j, columns in enumerate((slice(0, -4), slice(-4, -2), slice(-2, None))):
                region[rows, columns] = 3 * i + j
        r = region.reshape(side // 4, 4, side // 4, 4).transpose(0, 2, 1, 3).reshape(-1, 16)
        self.register_buffer("mask", paddle.to_tensor(np.where(r[:, None] != r[:, :, None], -100.0, 0.0).astype("float32")))
        self.merge_norm, self.merge = nn.LayerNorm(4 * width), nn.Linear(4 * width, 2 * width, bias_attr=False)

    def attend(self, h, layers, shift):
        b, c, n, w = h.shape[0], h.shape[3], self.side // 4, self.window
        h = paddle.roll(h, (-shift, -shift), (1, 2)) if shift else h
        h = h.reshape([-1, n, w, n, w, c]).transpose([0, 1, 3, 2, 4, 5]).reshape([-1, w * w, c])
        q, k, v = layers[1](h).reshape([-1, w * w, 3, self.heads, c // self.heads]).transpose([2, 0, 3, 1, 4])
        a = paddle.matmul(q * (c // self.heads) ** -0.5, k, transpose_y=True)
        a = a + self.bias[self.index].reshape([w * w, w * w, self.heads]).transpose([2, 0, 1]).unsqueeze(0)
        if shift:
            a = (a.reshape([-1, n * n, self.heads, w * w, w * w]) + self.mask.unsqueeze(1).unsqueeze(0)).reshape([-1, self.heads, w * w, w * w])
        h = layers[2](paddle.matmul(F.softmax(a), v).transpose([0, 2, 1, 3]).reshape([-1, w * w, c]))
        h = h.reshape([-1, n, n, w, w, c]).transpose([0, 1, 3, 2, 4, 5]).reshape([-1, self.side, self.side, c])
        return paddle.roll(h, (shift, shift), (1, 2)) if shift else h

    def forward(self, x):
        h = self.patch(x).transpose([0, 2, 3, 1])
        for i, l in enumerate(self.blocks):
            h = h + self.attend(l[0](h), l, 2 * (i % 2))
            h = h + l[5](F.gelu(l[4](l[3](h))))
        h = paddle.concat([h[:, 0::2, 0::2], h[:, 1::2, 0::2], h[:, 0::2, 1::2], h[:, 1::2, 1::2]], -1)
        return self.merge(self.merge_norm(h)).mean([1, 2])


def ssd():
    """Boxes on two maps against prior boxes, decoded, and the best of them."""
    x = static.data("x", [-1, 3, 64, 64], "float32")
    h, places, scores, priors, spreads = conv(conv(x, 8, 3, 2), 16, 3, 2), [], [], [], []
    for size in (10.0, 30.0):
        h = conv(h, 16, 3, 2)
        p, v = appended("prior_box", {"Input": h, "Image": x}, {"Boxes": "float32", "Variances": "float32"}, min_sizes=[size], max_sizes=[2 * size], aspect_ratios=[2.0],
                        variances=[0.1, 0.1, 0.2, 0.2], flip=True, clip=False, step_w=0.0, step_h=0.0, offset=0.5, min_max_aspect_ratios_order=False)
        priors.append(paddle.reshape(p, [-1, 4]))
        spreads.append(paddle.reshape(v, [-1, 4]))
        places.append(paddle.reshape(paddle.transpose(nn.Conv2D(16, 16, 3, padding=1)(h), [0, 2, 3, 1]), [0, -1, 4]))
        scores.append(paddle.reshape(paddle.transpose(nn.Conv2D(16, 16, 3, padding=1)(h), [0, 2, 3, 1]), [0, -1, 4]))
    ins = {"PriorBox": paddle.concat(priors), "PriorBoxVar": paddle.concat(spreads), "TargetBox": paddle.concat(places, 1)}
    boxes, = appended("box_coder", ins, {"OutputBox": "float32"}, code_type="decode_center_size", box_normalized=True, axis=0, variance=[])
    probability = F.softmax(paddle.concat(scores, 1) * 3)
    kept = appended("multiclass_nms3", {"BBoxes": boxes, "Scores": paddle.transpose(probability, [0, 2, 1])}, {"Out": "float32", "Index": "int32", "NmsRoisNum": "int32"},
                    background_label=0, score_threshold=0.3, nms_top_k=40, nms_threshold=0.45, keep_top_k=20, nms_eta=1.0, normalized=True)
    return [boxes, probability, kept[0], kept[2]]


def generator():
    h = paddle.reshape(nn.Linear(12, 16 * 16)(static.data("x", [-1, 12], "float32")), [-1, 16, 4, 4])
    for c in (12, 8):
        h = F.leaky_relu(nn.BatchNorm2D(c)(nn.Conv2DTranspose(h.shape[1], c, 4, 2, 1, bias_attr=False)(h)), 0.2)
    h = nn.Conv2DTranspose(8, 8, 3, 2, 1, output_padding=1, groups=4)(h)
    return [F.tanh(nn.Conv2D(8, 3, 3, padding=1, padding_mode="reflect")(h))]


def styled():
    """Filters scaled by a style and normalised, noise added, up by interpolation; adaptive instance normalisation."""
    style = nn.Linear(6, 8)(static.data("style", [-1, 6], "float32"))
    h = paddle.expand(paddle.create_parameter([1, 8, 4, 4], "float32"), [paddle.shape(style)[0], -1, -1, -1])
    for _ in range(2):
        w = paddle.create_parameter([8, 8, 3, 3], "float32", default_initializer=nn.initializer.Normal(0, 0.3))
        m = paddle.unsqueeze(w, 0) * paddle.reshape(style + 1, [-1, 1, 8, 1, 1])
        m = m * paddle.rsqrt(paddle.sum(m * m, [2, 3, 4], keepdim=True) + 1e-8)
        h = F.interpolate(h, scale_factor=2, mode="bilinear", align_corners=False)
        columns = F.unfold(h, 3, 1, 1)
        h = paddle.reshape(paddle.matmul(paddle.reshape(m, [-1, 8, 72]), columns), [0, 8, h.shape[2], h.shape[3]])
        h = F.leaky_relu(h + static.data("noise", [1], "float32"), 0.2) * 1.41
    mean, deviation = paddle.mean(h, [2, 3], keepdim=True), paddle.std(h, [2, 3], keepdim=True)
    return [(h - mean) / (deviation + 1e-5) * paddle.reshape(style, [-1, 8, 1, 1])]


def super_resolution():
    h = x = picture()
    h = nn.Conv2D(3, 16, 5, padding=2)(h)
    for _ in range(2):
        h = h + 0.1 * nn.Conv2D(16, 16, 3, padding=1)(F.relu(nn.Conv2D(16, 16, 3, padding=1)(h)))
    up = F.pixel_shuffle(nn.Conv2D(16, 12, 3, padding=1)(h), 2)
    return [paddle.clip(up + F.interpolate(x, scale_factor=2, mode="bicubic"), 0, 1)]


def shift_and_attend():
    """Non-local blocks, channel and spatial attention, coordinate channels."""
    h = conv(picture(), 8)
    n, rows, columns = paddle.shape(h)[0], paddle.shape(h)[2], paddle.shape(h)[3]
    line = paddle.reshape(paddle.cast(paddle.arange(0, rows, 1, "int32"), "float32") / paddle.cast(rows, "float32"), [1, 1, -1, 1])
    h = paddle.concat([h, paddle.expand(line, paddle.stack([n, paddle.full([], 1, "int32"), rows, columns]))], 1)
    h = conv(h, 8)
    q, k, v = (paddle.reshape(nn.Conv2D(8, 4, 1)(h), paddle.stack([n, paddle.full([], 4, "int32"), rows * columns])) for _ in range(3))
    a = F.softmax(paddle.matmul(q, k, transpose_x=True))
    back = paddle.reshape(paddle.matmul(v, a, transpose_y=True), paddle.stack([n, paddle.full([], 4, "int32"), rows, columns]))
    back.desc.set_shape([-1, 4, -1, -1])
    h = h + nn.Conv2D(4, 8, 1)(back)
    gate = paddle.concat([paddle.mean(h, 1, keepdim=True), paddle.max(h, 1, keepdim=True)], 1)
    return [h * F.sigmoid(nn.Conv2D(2, 1, 7, padding=3)(gate))]


# ---- sound and text ----

def tasnet():
    x = static.data("x", [-1, -1], "float32")
    w = F.relu(nn.Conv1D(1, 16, 16, 8, bias_attr=False)(paddle.unsqueeze(x, 1)))
    h = nn.Conv1D(16, 12, 1)(w)
    total = 0
    for i in range(4):
        y = h
        for k, d, g in ((1, 1, 1), (3, 2 ** i, 24)):
            y = nn.PReLU()(nn.Conv1D(y.shape[1], 24, k, padding=d * (k // 2), dilation=d, groups=g)(y))
            mean = paddle.mean(y, [1, 2], keepdim=True)
            y = (y - mean) / paddle.sqrt(paddle.mean((y - mean) ** 2, [1, 2], keepdim=True) + 1e-8)
            y = y * paddle.create_parameter([1, 24, 1], "float32", default_initializer=nn.initializer.Constant(1.1)) + paddle.create_parameter([1, 24, 1], "float32")
        total = total + nn.Conv1D(24, 12, 1)(y)
        h = h + nn.Conv1D(24, 12, 1)(y)
    masks = F.sigmoid(paddle.reshape(nn.Conv1D(12, 32, 1)(F.relu(total)), [0, 2, 16, -1]))
    y = paddle.reshape(masks * paddle.unsqueeze(w, 1), [-1, 16, paddle.shape(w)[2]])
    return [paddle.reshape(nn.Conv1DTranspose(16, 1, 16, 8, bias_attr=False)(y), paddle.stack([paddle.shape(x)[0], paddle.full([], 2, "int32"), paddle.full([], -1, "int32")]))]


def wavenet():
    h = nn.Embedding(20, 8)(static.data("x", [-1, -1], "int64")).transpose([0, 2, 1])
    skips = []
    for d in (1, 2, 4, 8):
        y = F.glu(nn.Conv1D(8, 16, 2, dilation=d)(F.pad(h, [d, 0], data_format="NCL")), 1)
        skips.append(nn.Conv1D(8, 8, 1)(y))
        h = h + y
    h = F.relu(paddle.add_n(skips))
    return [F.log_softmax(nn.Conv1D(8, 20, 1)(h), 1)]


class Tacotron(nn.Layer):
    """A decoder of frames with attention that knows where it was; a loop over the length that is asked for."""

    def __init__(self):
        super().__init__()
        self.words, self.back = nn.Embedding(30, 12), nn.LSTM(12, 8, direction="bidirect")
        self.convs = nn.LayerList([nn.Sequential(nn.Conv1D(12, 12, 5, padding=2), nn.BatchNorm1D(12), nn.ReLU()) for _ in range(2)])
        self.before, self.cell, self.second = nn.Linear(6, 8), nn.LSTMCell(24, 16), nn.GRUCell(16, 16)
        self.query, self.key, self.place, self.energy = nn.Linear(16, 10, bias_attr=False), nn.Linear(16, 10, bias_attr=False), nn.Conv1D(2, 10, 5, padding=2, bias_attr=False), nn.Linear(10, 1)
        self.frame, self.stop = nn.Linear(32, 6), nn.Linear(32, 1)

    def step(self, memory, keys, frame, s, c, g, context, a, so_far):
        _, (s, c) = self.cell(paddle.concat([F.relu(self.before(frame)), context], -1), (s, c))
        where = self.place(paddle.stack([a, so_far], 1)).transpose([0, 2, 1])
        a = F.softmax(self.energy(F.tanh(keys + self.query(s).unsqueeze(1) + where)).squeeze(-1))
        context = paddle.bmm(a.unsqueeze(1), memory).squeeze(1)
        g, _ = self.second(context, g)
        frame = self.frame(paddle.concat([g, context], -1))
        return frame, F.sigmoid(self.stop(paddle.concat([s, context], -1))), s, c, g, context, a, so_far + a

    def forward(self, ids, steps):
        h = self.words(ids).transpose([0, 2, 1])
        for layer in self.convs:
            h = layer(h)
        memory, _ = self.back(h.transpose([0, 2, 1]))
        keys, b = self.key(memory), paddle.shape(ids)[0]
        frame, s, c = paddle.zeros([b, 6]), paddle.zeros([b, 16]), paddle.zeros([b, 16])
        g, context = paddle.zeros([b, 16]), paddle.zeros([b, 16])
        a = paddle.cast(ids * 0, "float32")
        so_far = a * 1.0
        frames, stops, i = [], [], paddle.zeros([1], "int64")
        while i < steps:
            frame, stop, s, c, g, context, a, so_far = self.step(memory, keys, frame, s, c, g, context, a, so_far)
            frames.append(frame)
            stops.append(stop)
            i += 1
        return paddle.stack(frames, 1), paddle.concat(stops, 1), so_far


class Conformer(nn.Layer):
    def __init__(self):
        super().__init__()
        self.sub = nn.Sequential(nn.Conv2D(1, 8, 3, 2), nn.ReLU(), nn.Conv2D(8, 8, 3, 2), nn.ReLU())
        self.into, self.norms = nn.Linear(8 * 4, 16), nn.LayerList([nn.LayerNorm(16) for _ in range(4)])
        self.feed, self.attention = nn.Sequential(nn.Linear(16, 32), nn.Swish(), nn.Linear(32, 16)), nn.MultiHeadAttention(16, 4)
        self.wide, self.deep, self.bn, self.narrow = nn.Conv1D(16, 32, 1), nn.Conv1D(16, 16, 7, padding=3, groups=16), nn.BatchNorm1D(16), nn.Conv1D(16, 16, 1)
        self.out = nn.Linear(16, 12)

    def forward(self, x, lengths):
        h = self.sub(x.unsqueeze(1))
        h = self.into(h.transpose([0, 2, 1, 3]).flatten(2))
        t = paddle.shape(h)[1]
        left = ((lengths - 1) // 2 - 1) // 2
        mask = paddle.arange(t).unsqueeze(0) < left.unsqueeze(1)
        h = h + 0.5 * self.feed(self.norms[0](h))
        n = self.norms[1](h)
        h = h + self.attention(n, n, n, attn_mask=mask.unsqueeze([1, 2]))
        y = F.glu(self.wide(self.norms[2](h).transpose([0, 2, 1])), 1)
        y = self.narrow(F.swish(self.bn(self.deep(paddle.where(mask.unsqueeze(1), y, paddle.zeros_like(y))))))
        h = self.norms[3](h + y.transpose([0, 2, 1]))
        return F.log_softmax(self.out(h)), left


class Rotary(nn.Layer):
    """A decoder of words as of today: rotary positions, root mean square norms, gated layers, grouped keys, a cache given and returned."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(40, 16)
        self.q, self.kv, self.o = nn.Linear(16, 16, bias_attr=False), nn.Linear(16, 16, bias_attr=False), nn.Linear(16, 16, bias_attr=False)
        self.up, self.gate, self.down = nn.Linear(16, 40, bias_attr=False), nn.Linear(16, 40, bias_attr=False), nn.Linear(40, 16, bias_attr=False)
        self.one, self.two = (self.create_parameter([16], default_initializer=nn.initializer.Constant(1.0)) for _ in range(2))

    def norm(self, x, w):
        return x * paddle.rsqrt(paddle.mean(paddle.square(x), -1, keepdim=True) + 1e-6) * w

    def turn(self, x, at):
        angle = at.astype("float32").unsqueeze(-1) * paddle.to_tensor([1.0, 0.01], dtype="float32")
        sin, cos = (paddle.concat([f(angle)] * 2, -1).unsqueeze(1) for f in (paddle.sin, paddle.cos))
        a, b = paddle.chunk(x, 2, -1)
        return x * cos + paddle.concat([-b, a], -1) * sin

    def forward(self, ids, past):
        h, b, n = self.words(ids), paddle.shape(ids)[0], paddle.shape(ids)[1]
        old = paddle.shape(past)[3]
        at = (paddle.arange(n) + old).unsqueeze(0)
        y = self.norm(h, self.one)
        q = self.turn(self.q(y).reshape([b, n, 4, 4]).transpose([0, 2, 1, 3]), at)
        k, v = self.kv(y).reshape([b, n, 2, 2, 4]).transpose([2, 0, 3, 1, 4]).unbind(0)
        k = paddle.concat([past[0], self.turn(k, at)], 2)
        v = paddle.concat([past[1], v], 2)
        wide = lambda m: paddle.repeat_interleave(m, 2, 1)
        seen = paddle.cast(paddle.arange(n + old).unsqueeze(0) <= (paddle.arange(n) + old).unsqueeze(1), "float32")
        a = paddle.matmul(q, wide(k), transpose_y=True) * 0.5 + (1 - seen) * -1e9
        h = h + self.o(paddle.matmul(F.softmax(a), wide(v)).transpose([0, 2, 1, 3]).reshape([b, n, 16]))
        y = self.norm(h, self.two)
        h = h + self.down(F.silu(self.gate(y)) * self.up(y))
        return paddle.matmul(h, self.words.weight, transpose_y=True), paddle.stack([k, v])


class Lists(nn.Layer):
    """Lists, dictionaries, break and continue, nested loops and branches over tensors, early return."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x, n):
        kept, i = [], paddle.zeros([1], "int32")
        while i < n:
            h = self.a(x) if paddle.sum(x) > 0 else self.b(x)
            j = paddle.zeros([1], "int32")
            while j < i:
                if paddle.max(h) > 3.0:
                    h = h * 0.5
                else:
                    h = h + 0.1
                j += 1
            x = F.tanh(h) + 0.2 * x
            kept.append(x)
            if paddle.mean(x) > 5.0:
                break
            i += 1
        total = paddle.zeros_like(x)
        for k in range(3):
            if k == 1:
                continue
            total = total + self.a(x) * k
        result = {"last": x, "all": paddle.concat(kept, 0)}
        return result["all"], result["last"] + total, i


def greedy():
    """A loop that ends when all sentences have ended; the state is many tensors of several types."""
    x = static.data("x", [-1, 8], "float32")
    table, cell, out = nn.Embedding(12, 8), nn.LSTMCell(8, 8), nn.Linear(8, 12)
    b = paddle.shape(x)[0]
    word, done, out_ids = paddle.ones([b], "int64"), paddle.zeros([b], "bool"), paddle.ones([b, 1], "int64")
    i = paddle.zeros([1], "int64")

    def go(i, word, done, h, c, ids):
        return paddle.logical_and(paddle.squeeze(i < 15), paddle.logical_not(paddle.all(done)))

    def step(i, word, done, h, c, ids):
        _, (h, c) = cell(table(word) * 3, (h, c))
        word = paddle.where(done, paddle.zeros_like(word), paddle.argmax(out(h) * 5, -1))
        return i + 1, word, paddle.logical_or(done, word == 0), h, c, paddle.concat([ids, paddle.unsqueeze(word, 1)], 1)

    out_ids.desc.set_shape([-1, -1])
    i, word, done, h, c, ids = static.nn.while_loop(go, step, [i, word, done, x, paddle.tanh(x), out_ids])
    return [ids, h, done]


# ---- tables, graphs, odd interfaces ----

def deep_fm():
    ids, dense = static.data("z_ids", [-1, 5], "int64"), static.data("a_dense", [-1, 3], "float32")
    e = nn.Embedding(30, 4, sparse=True)(ids)
    first = paddle.sum(nn.Embedding(30, 1)(ids), 1)
    second = 0.5 * paddle.sum(paddle.square(paddle.sum(e, 1)) - paddle.sum(paddle.square(e), 1), 1, keepdim=True)
    h = paddle.concat([paddle.flatten(e, 1), dense], 1)
    cross = h
    for _ in range(2):
        cross = h * nn.Linear(23, 1)(cross) + cross
    h = nn.LayerNorm(16)(F.relu(nn.Linear(23, 16)(h)))
    return [F.sigmoid(first + second + nn.Linear(16, 1)(h) + nn.Linear(23, 1)(cross))]


def graph_net():
    """Messages along edges, averaged where they arrive."""
    x, edges = static.data("x", [-1, 6], "float32"), static.data("edges", [2, -1], "int64")
    h = nn.Linear(6, 8)(x)
    sent = paddle.gather(h, edges[0])
    h = h + paddle.scatter_nd_add(paddle.zeros_like(h), paddle.unsqueeze(edges[1], 1), sent)
    degree = paddle.scatter_nd_add(paddle.zeros_like(h[:, :1]), paddle.unsqueeze(edges[1], 1), paddle.ones_like(sent[:, :1]))
    return [F.relu(nn.Linear(8, 4)(h / paddle.clip(degree, 1.0)))]


def odd_ends():
    """An input that is an output, a parameter that is, a constant, results of every type, an input that nobody reads."""
    b, a = static.data("b", [-1, 3], "float32"), static.data("a", [-1, 3], "int32")
    w = paddle.create_parameter([3, 2], "float32", name="w")
    y = paddle.matmul(b, w)
    return [b, a, w, y, y > 0, paddle.argmax(y, 1), paddle.cast(y * 9, "int8"), paddle.cast(y, "float64"), paddle.full([2, 2], 3, "int64"), paddle.sum(y)]


def half_way():
    """float64 and float16 inside."""
    x = static.data("x", [-1, 8], "float64")
    h = F.tanh(nn.functional.linear(x, paddle.create_parameter([8, 8], "float64")))
    return [paddle.linalg.norm(h, axis=1), paddle.cast(paddle.cast(paddle.round(h * 64), "float16"), "float32") * 2.0, paddle.cumsum(h, 1)]


def sizes(*dims):
    return [image(*d) for d in dims]


def both(**makers):
    return lambda rng: {n: m(rng) for n, m in makers.items()}


def normal(*dims, t="float32", scale=1.0):
    return lambda rng: (rng.randn(*dims) * scale).astype(t)


def whole(hi, *dims, t="int64", lo=0):
    return lambda rng: rng.randint(lo, hi, dims).astype(t)


def given_numbers(v, t="int64"):
    return lambda rng: np.array(v, t)


NETS = {
    "efficientnet": (efficient, sizes((2, 3, 64, 64), (1, 3, 45, 70))), "unet": (unet, sizes((1, 1, 32, 48), (2, 1, 37, 50))),
    "ssd": (ssd, sizes((2, 3, 64, 64), (1, 3, 64, 64))),
    "gan generator": (generator, [floats("x", 2, 12), floats("x", 5, 12)]), "style generator": (styled, [both(style=normal(2, 6), noise=normal(1)), both(style=normal(3, 6), noise=normal(1))]),
    "super resolution": (super_resolution, sizes((1, 3, 20, 30), (2, 3, 17, 9))), "non-local, coordinates": (shift_and_attend, sizes((2, 3, 10, 12), (1, 3, 7, 9))),
    "conv-tasnet": (tasnet, [floats("x", 2, 400), floats("x", 1, 808)]), "wavenet": (wavenet, [both(x=whole(20, 2, 30)), both(x=whole(20, 1, 11))]),
    "greedy decoder": (greedy, [floats("x", 3, 8), floats("x", 1, 8)]), "deepfm, cross": (deep_fm, [both(z_ids=whole(30, 7, 5), a_dense=normal(7, 3)), both(a_dense=normal(2, 3), z_ids=whole(30, 2, 5))]),
    "graph": (graph_net, [both(x=normal(9, 6), edges=whole(9, 2, 20)), both(x=normal(4, 6), edges=whole(4, 2, 5))]), "odd ends": (odd_ends, [both(b=normal(4, 3), a=whole(9, 4, 3, t="int32"))]),
    "float64, float16": (half_way, [lambda r: {"x": r.randn(3, 8)}, lambda r: {"x": r.randn(1, 8)}]),
    "swin": (Exported(Swin, spec("x", None, 3, 32, 32)), [floats("x", 2, 3, 32, 32), floats("x", 1, 3, 32, 32)]),
    "tacotron": (Exported(Tacotron, spec("ids", None, None, dtype="int64"), spec("steps", 1, dtype="int64")), [both(ids=whole(30, 2, 9), steps=given_numbers([5])), both(ids=whole(30, 1, 4), steps=given_numbers([11]))]),
    "conformer": (Exported(Conformer, spec("x", None, None, 20), spec("lengths", None, dtype="int64")), [both(x=normal(2, 40, 20), lengths=given_numbers([40, 25])), both(x=normal(1, 31, 20), lengths=given_numbers([31]))]),
    "rotary decoder with a cache": (Exported(Rotary, spec("ids", None, None, dtype="int64"), spec("past", 2, None, 2, None, 4)), [both(ids=whole(40, 2, 6), past=normal(2, 2, 2, 0, 4)), both(ids=whole(40, 1, 1), past=normal(2, 1, 2, 6, 4))]),
    "lists, loops, branches": (Exported(Lists, spec("x", None, 6), spec("n", 1, dtype="int32")), [both(x=normal(3, 6), n=given_numbers([4], "int32")), both(x=normal(1, 6), n=given_numbers([2], "int32"))]),
}


def cases(build, folder):
    return NETS


compare = exports.compare
