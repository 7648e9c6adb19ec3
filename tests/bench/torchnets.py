"""The networks of nets.c in torch, with the parameters of Kiln's files: build(NAME, DIR) -> Module.

A Module's layers are made in the order of nets.c, which numbers their parameters by kind; sorted by these names they
are what the file holds.
"""
import torch
from torch import nn
import params
from shapes import bert_head

for layer in (nn.Linear, nn.Conv2d, nn.Embedding):  # the values come from a file
    layer.reset_parameters = lambda self: None


def inputs(name, batch):
    """x and label, the same each time."""
    rng = np.random.default_rng(7)
    shape = (batch,) + SHAPES[name]
    x = rng.integers(0, 30522, shape) if name == "bert" else rng.uniform(-1, 1, shape).astype(np.float32)
    return x, rng.integers(0, CLASSES.get(name, 1000), (batch, 1))


class Residual(nn.Module):
    def __init__(self, main, side):
        super().__init__()
        self.main, self.side = main, side

    def forward(self, x):
        return torch.relu(self.main(x) + (self.side(x) if self.side else x))


class Attention(nn.Module):
    def __init__(self, dense):
        super().__init__()
        self.q, self.k, self.v, self.out = (dense(768, 768) for _ in range(4))

    def forward(self, x):
        q, k, v = (f(x).view(-1, 128, 12, 64).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).reshape(-1, 128, 768))


class Encoder(nn.Module):
    def __init__(self, b):
        super().__init__()
        self.attention = Attention(b.linear)
        self.norm1 = b.layer_norm(768)
        self.ffn = nn.Sequential(b.linear(768, 3072), nn.GELU(), b.linear(3072, 768))
        self.norm2 = b.layer_norm(768)

    def forward(self, x):
        x = self.norm1(x + self.attention(x))
        return self.norm2(x + self.ffn(x))


class Bert(nn.Module):
    """Without the head: the last layer's states."""

    def __init__(self, b):
        super().__init__()
        self.words = b.embedding(30522, 768)
        self.position = b.own("position.w_0", nn.Parameter(torch.empty(128, 768)))
        self.norm = b.layer_norm(768)
        self.layers = nn.Sequential(*[Encoder(b) for _ in range(12)])

    def forward(self, ids):
        return self.layers(self.norm(self.words(ids) + self.position))


class Mean(nn.Module):
    def forward(self, x):
        return x.mean(1)


class Builder:
    """Makes layers and keeps which of their tensors belongs to which name."""

    def __init__(self):
        self.tensors, self.count = {}, {}

    def own(self, name, tensor, transposed=False):
        self.tensors[name] = (tensor, transposed)
        return tensor

    def _own(self, kind, *tensors):
        i = self.count[kind] = self.count.get(kind, -1) + 1
        for suffix, tensor, transposed in tensors:
            if tensor is not None:
                self.own(f"{kind}_{i}.{suffix}", tensor, transposed)

    def linear(self, n, m):
        f = nn.Linear(n, m)
        self._own("fc", ("w_0", f.weight, True), ("b_0", f.bias, False))
        return f

    def conv(self, n, m, k, stride=1, pad=0, groups=1, bias=True):
        f = nn.Conv2d(n, m, k, stride, pad, groups=groups, bias=bias)
        self._own("conv2d", ("w_0", f.weight, False), ("b_0", f.bias, False))
        return f

    def conv_bn(self, n, m, k, stride=1, groups=1, relu=True):
        f, g = self.conv(n, m, k, stride, k // 2, groups, bias=False), nn.BatchNorm2d(m)
        self._own("batch_norm", ("w_0", g.weight, False), ("b_0", g.bias, False), ("w_1", g.running_mean, False),
                  ("w_2", g.running_var, False))
        return nn.Sequential(f, g, nn.ReLU()) if relu else nn.Sequential(f, g)

    def layer_norm(self, n):
        f = nn.LayerNorm(n)
        self._own("layer_norm", ("w_0", f.weight, False), ("b_0", f.bias, False))
        return f

    def embedding(self, n, m):
        f = nn.Embedding(n, m)
        self._own("embedding", ("w_0", f.weight, False))
        return f

    def fill(self, path):
        with torch.no_grad():
            for name, value in zip(sorted(self.tensors), params.read(path), strict=True):
                tensor, transposed = self.tensors[name]
                value = torch.from_numpy((value.T if transposed else value).copy())
                assert tensor.shape == value.shape, name
                tensor.copy_(value)


def mlp(b):
    return nn.Sequential(b.linear(784, 256), nn.ReLU(), b.linear(256, 128), nn.ReLU(), b.linear(128, 10))


def lenet(b):
    return nn.Sequential(b.conv(1, 20, 5), nn.ReLU(), nn.MaxPool2d(2), b.conv(20, 50, 5), nn.ReLU(), nn.MaxPool2d(2),
                         nn.Flatten(), b.linear(800, 500), nn.ReLU(), b.linear(500, 10))


def classifier(b, n):
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), b.linear(n, 1000)]


def mobilenet(b):
    layers, n = [b.conv_bn(3, 32, 3, 2)], 32
    for m, stride in [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)] + 5 * [(512, 1)] + [(1024, 2), (1024, 1)]:
        layers += [b.conv_bn(n, n, 3, stride, n), b.conv_bn(n, m, 1)]
        n = m
    return nn.Sequential(*layers, *classifier(b, n))


def resnet(b, wide, blocks):
    layers, n = [b.conv_bn(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)], 64
    for stage, count in enumerate(blocks):
        for i in range(count):
            f, stride = 64 << stage, 2 if stage and not i else 1
            m = 4 * f if wide else f
            main = [b.conv_bn(n, f, 1), b.conv_bn(f, f, 3, stride), b.conv_bn(f, m, 1, relu=False)] if wide else [
                b.conv_bn(n, f, 3, stride), b.conv_bn(f, m, 3, relu=False)]
            side = b.conv_bn(n, m, 1, stride, relu=False) if not i and (stage or wide) else None
            layers.append(Residual(nn.Sequential(*main), side))
            n = m
    return nn.Sequential(*layers, *classifier(b, n))


def vgg16(b):
    layers, n = [], 3
    for m, count in [(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)]:
        for _ in range(count):
            layers += [b.conv(n, m, 3, 1, 1), nn.ReLU()]
            n = m
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), b.linear(25088, 4096), nn.ReLU(), b.linear(4096, 4096), nn.ReLU(),
                         b.linear(4096, 1000))


MAKE = {"mlp": mlp, "lenet": lenet, "mobilenet": mobilenet, "vgg16": vgg16, "bert": Bert,
        "resnet18": lambda b: resnet(b, False, (2, 2, 2, 2)), "resnet50": lambda b: resnet(b, True, (3, 4, 6, 3))}


def build(name, folder, train=False):
    b = Builder()
    net = MAKE[name](b)
    b.fill(f"{folder}/{name}.pdiparams")
    if name == "bert" and train:
        head = b.linear(768, 2)
        with torch.no_grad():
            head.weight.copy_(torch.from_numpy(bert_head()["fc_72.w_0"].T.copy()))
            head.bias.zero_()
        net = nn.Sequential(net, Mean(), head)
    return net.train(train)
