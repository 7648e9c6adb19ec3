"""The image models of paddle.vision: inference models saved by PaddlePaddle, and one training step.

usage: models.py BUILD [--keep DIR] [--only MODEL ...]

One step, because rounding grows fast in these nets at initial values. Left out are those that are ill-conditioned even so:
PaddlePaddle's own gradients of mobilenet_v1 differ by 2e-2, of shufflenet by more than 1, when its inputs differ by 1e-6.
"""
from train import *

VISION = paddle.vision.models
INFERENCE = {"alexnet": 224, "vgg16": 64, "resnet18": 64, "mobilenet_v3_large": 64, "shufflenet_v2_x1_0": 64, "squeezenet1_0": 64, "googlenet": 224, "inception_v3": 299, "resnet50": 64, "resnext50_32x4d": 64, "wide_resnet50_2": 64,
             "densenet121": 64, "mobilenet_v1": 64, "mobilenet_v2": 64, "mobilenet_v3_small": 64, "shufflenet_v2_swish": 64, "squeezenet1_1": 64, "LeNet": 28}
TRAINING = {"resnet18": 64, "mobilenet_v3_small": 64, "squeezenet1_1": 64, "LeNet": 28}


def model(name):
    m = getattr(VISION, name)(num_classes=10)
    for layer in m.sublayers():
        if isinstance(layer, paddle.nn.Dropout):
            layer.p = 0.0
    return m


def image(name, size):
    return data(1 if name == "LeNet" else 3, size, size)


def inference(build, name, size, folder):
    paddle.seed(3)
    main, startup = static.Program(), static.Program()
    with static.program_guard(main, startup), paddle.utils.unique_name.guard(), static.scope_guard(static.Scope()):
        m = model(name)
        m.eval()
        x = image(name, size)
        out = m(x)
        exe = static.Executor(paddle.CPUPlace())
        exe.run(startup)
        static.save_inference_model(f"{folder}/m", [x], list(out) if isinstance(out, (list, tuple)) else [out], exe)
        program, _, fetch = static.load_inference_model(f"{folder}/m", exe)
        v = {"x": np.random.RandomState(1).randn(2, *x.shape[1:]).astype("float32")}
        want = exe.run(program, feed=v, fetch_list=fetch)
    got = run(build, f"{folder}/m.pdmodel", folder, v, [f.name for f in fetch])
    return max(error(got[f.name], w, 1e-30) for f, w in zip(fetch, want))


def net(name, size):
    def make():
        return classes(model(name)(image(name, size))), paddle.optimizer.Momentum(0.01, 0.9)
    return make


def judged(build, name, net_of, folder):
    kind, model, size = net_of
    if kind == "inference":
        e = inference(build, model, size, folder)
        return f"results {e:8.1e}", e <= 1e-4
    e_loss, e, who = compare(build, name, net(model, size), folder, 1)
    return f"loss {e_loss:8.1e}  variables {e:8.1e} ({who})", e <= TOLERANCE and e_loss <= TOLERANCE


NETS = {f"{n}, {kind}": (kind, n, s) for kind, table in (("inference", INFERENCE), ("one step", TRAINING)) for n, s in table.items()}

if __name__ == "__main__":
    sys.exit(each_net(NETS, judged))
