"""RedNet: ResNet's bottleneck with an involution in the place of the 3x3 convolution (Li et al., "Involution: Inverting the
Inherence of Convolution for Visual Recognition", 2021). RedNet-26 has 9,264,318 parameters for 1000 classes."""
import paddle
from paddle import nn

WIDTHS = {26: (1, 2, 4, 1), 38: (2, 3, 5, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def conv_bn(c_in, c_out, k, stride=1, act=True):
    layers = [nn.Conv2D(c_in, c_out, k, stride, k // 2, bias_attr=False), nn.BatchNorm2D(c_out)]
    return nn.Sequential(*layers, nn.ReLU()) if act else nn.Sequential(*layers)


class Involution(nn.Layer):
    """Each position makes the K x K weights of its own window; 16 channels share them."""

    def __init__(self, channels, k, stride):
        super().__init__()
        self.k, self.stride, self.groups, self.channels = k, stride, channels // 16, channels
        self.reduce = conv_bn(channels, channels // 4, 1)
        self.span = nn.Conv2D(channels // 4, k * k * self.groups, 1)
        self.pool = nn.AvgPool2D(stride, stride) if stride > 1 else None

    def forward(self, x):
        weight = self.span(self.reduce(self.pool(x) if self.pool else x))
        n, _, h, w = paddle.shape(weight) if -1 in weight.shape else weight.shape
        weight = paddle.unsqueeze(paddle.reshape(weight, [0, self.groups, self.k * self.k, h, w]), 2)
        patches = nn.functional.unfold(x, self.k, self.stride, (self.k - 1) // 2)
        patches = paddle.reshape(patches, [0, self.groups, 16, self.k * self.k, h, w])
        return paddle.reshape(paddle.sum(weight * patches, axis=3), [0, self.channels, h, w])


class Block(nn.Layer):
    def __init__(self, c_in, width, stride, project):
        super().__init__()
        self.first = conv_bn(c_in, width, 1)
        self.inner = Involution(width, 7, stride)
        self.norm = nn.Sequential(nn.BatchNorm2D(width), nn.ReLU())
        self.last = conv_bn(width, 4 * width, 1, act=False)
        self.short = conv_bn(c_in, 4 * width, 1, stride, act=False) if project else None

    def forward(self, x):
        y = self.last(self.norm(self.inner(self.first(x))))
        return nn.functional.relu(y + (self.short(x) if self.short else x))


class RedNet(nn.Layer):
    def __init__(self, depth=26, classes=1000):
        super().__init__()
        self.stem = nn.Sequential(conv_bn(3, 32, 3, 2), Involution(32, 3, 1), nn.BatchNorm2D(32), nn.ReLU(), conv_bn(32, 64, 3), nn.MaxPool2D(3, 2, 1))
        blocks, c = [], 64
        for stage, n in enumerate(WIDTHS[depth]):
            for i in range(n):
                blocks.append(Block(c, 64 << stage, 2 if i == 0 and stage > 0 else 1, i == 0))
                c = 256 << stage
        self.body = nn.Sequential(*blocks)
        self.head = nn.Linear(c, classes)

    def forward(self, x):
        h = self.body(self.stem(x))
        return self.head(paddle.flatten(nn.functional.adaptive_avg_pool2d(h, 1), 1))
