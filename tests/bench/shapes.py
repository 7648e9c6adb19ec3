"""Inputs of the networks of nets.c, the same for every peer."""
import numpy as np

SHAPES = {"mlp": (784,), "lenet": (1, 28, 28), "mobilenet": (3, 224, 224), "resnet18": (3, 224, 224),
          "resnet50": (3, 224, 224), "vgg16": (3, 224, 224), "bert": (128,)}
CLASSES = {"mlp": 10, "lenet": 10, "bert": 2}
NETS = list(SHAPES)


def inputs(name, batch):
    """x and label."""
    rng = np.random.default_rng(7)
    shape = (batch,) + SHAPES[name]
    x = rng.integers(0, 30522, shape) if name == "bert" else rng.uniform(-1, 1, shape).astype(np.float32)
    return x, rng.integers(0, CLASSES.get(name, 1000), (batch, 1))


def bert_head():
    """The classifier that bert is trained with, which is in no inference file: {name: value}."""
    return {"fc_72.w_0": np.random.default_rng(5).normal(0, 0.02, (768, 2)).astype(np.float32),
            "fc_72.b_0": np.zeros(2, np.float32)}
