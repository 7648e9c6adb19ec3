"""The image models of paddle.vision: inference models saved by PaddlePaddle, run on several batch and image sizes, and one training step.

One step, because rounding grows fast in these nets at initial values. Left out are those that are ill-conditioned even so:
PaddlePaddle's own gradients of mobilenet_v1 differ by 2e-2, of shufflenet by more than 1, when its inputs differ by 1e-6.
"""
from infer import *

VISION = paddle.vision.models
INFERENCE = {"alexnet": 224, "vgg16": 64, "resnet18": 64, "mobilenet_v3_large": 64, "shufflenet_v2_x1_0": 64, "squeezenet1_0": 64, "googlenet": 224, "inception_v3": 299, "resnet50": 64, "resnext50_32x4d": 64, "wide_resnet50_2": 64,
             "densenet121": 64, "mobilenet_v1": 64, "mobilenet_v2": 64, "mobilenet_v3_small": 64, "shufflenet_v2_swish": 64, "squeezenet1_1": 64, "LeNet": 28}
KEPT = {"LeNet", "alexnet", "googlenet", "shufflenet_v2_x1_0", "shufflenet_v2_swish"}  # PaddlePaddle's layers want the size of the image
TRAINING = {"resnet18": 64, "mobilenet_v3_small": 64, "squeezenet1_1": 64, "LeNet": 28}


def model(name):
    m = getattr(VISION, name)(num_classes=10)
    for layer in m.sublayers():
        if isinstance(layer, paddle.nn.Dropout):
            layer.p = 0.0
    return m


def inference(build, name, size, folder):
    paddle.seed(3)
    kept = size if name in KEPT else -1
    main, startup = static.Program(), static.Program()
    with static.program_guard(main, startup), paddle.utils.unique_name.guard(), static.scope_guard(static.Scope()):
        m = model(name)
        m.eval()
        x = data(1 if name == "LeNet" else 3, kept, kept)
        out = m(x)
        exe = static.Executor(paddle.CPUPlace())
        exe.run(startup)
        static.save_inference_model(f"{folder}/m", [x], list(out) if isinstance(out, (list, tuple)) else [out], exe)
        sizes = [(2, size, size), (1, size, size)] if name in KEPT else [(1, 224, 224), (2, size, size), (3, size + 32, size)]
        return compared_runs(build, folder, exe, [floats("x", n, x.shape[1], h, w) for n, h, w in sizes])


def net(name, size):
    def make():
        return classes(model(name)(data(1 if name == "LeNet" else 3, size, size))), paddle.optimizer.Momentum(0.01, 0.9)
    return make


def compare(build, name, net_of, folder):
    kind, model, size = net_of
    if kind == "inference":
        return Outcome(inference(build, model, size, folder))
    e_loss, e, who = train_both(build, name, net(model, size), folder, 1)
    return Outcome({"loss of one step": (e_loss, TOLERANCE), "variables": (e, TOLERANCE)}, [f"worst: {who}"])


def cases(build, folder):
    return NETS


NETS = {f"{n}, {kind}": (kind, n, s) for kind, table in (("inference", INFERENCE), ("one step", TRAINING)) for n, s in table.items()}
