"""The image models of paddle.vision: inference models saved by PaddlePaddle, and one training step.

usage: models.py BUILD [--only MODEL ...]

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


def main():
    p = argparse.ArgumentParser()
    p.add_argument("build")
    p.add_argument("--only", nargs="*", default=[])
    a = p.parse_args()
    paddle.enable_static()
    jobs = [("inference", n, s) for n, s in INFERENCE.items()] + [("one step", n, s) for n, s in TRAINING.items()]
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for kind, name, size in jobs:
            if a.only and name not in a.only:
                continue
            try:
                if kind == "inference":
                    e = inference(a.build, name, size, folder)
                    text = f"results {e:8.1e}"
                else:
                    e_loss, e, who = compare(a.build, name, net(name, size), folder, 1)
                    text, e = f"loss {e_loss:8.1e}  variables {e:8.1e} ({who})", max(e, e_loss)
                bad = not e <= TOLERANCE
                print(f"{name:24} {kind:10} {text}{'  FAILED' if bad else ''}", flush=True)
            except Exception as e:
                bad = True
                print(f"{name:24} {kind:10} FAILED: {e if isinstance(e, KilnError) else traceback.format_exc()}", flush=True)
            failed += bad
    print(f"{failed} failed" if failed else "all agree")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
