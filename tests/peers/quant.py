"""Quantised and half-precision inference models, as PaddlePaddle's tools write them: training with fake quantisation, quantisation after
training, conversion to half precision (which PaddlePaddle runs on GPUs only: Kiln's results are compared with those of the model before)."""
from infer import *

nn = paddle.nn


class Net(nn.Layer):
    def __init__(self, embed=False):
        super().__init__()
        self.one, self.norm, self.two = nn.Conv2D(3, 8, 3, padding=1, bias_attr=False), nn.BatchNorm2D(8), nn.Conv2D(8, 8, 3, padding=1, groups=8)
        self.three, self.four, self.five = nn.Conv2D(8, 16, 1, stride=2), nn.Linear(16 * 16, 20), nn.Linear(20, 10)
        self.relu, self.pool = nn.ReLU(), nn.MaxPool2D(2, 2)

    def forward(self, x):
        h = self.pool(self.relu(self.norm(self.one(x))))
        h = self.three(nn.functional.relu6(self.two(h)) + h)
        return self.five(self.relu(self.four(paddle.flatten(h, 1))))


def batches(n, seed=0):
    rng = np.random.RandomState(seed)
    return [rng.randn(4, 3, 16, 16).astype("float32") for _ in range(n)]


def taught(net, steps=10):
    """A few steps, for the ranges that are observed."""
    net.train()
    optimizer = paddle.optimizer.SGD(0.01, parameters=net.parameters())
    for x in batches(steps):
        paddle.mean(paddle.square(net(paddle.to_tensor(x)) - 1)).backward()
        optimizer.step()
        optimizer.clear_grad()
    net.eval()


class Some(paddle.io.Dataset):
    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return self.rows[i],


SPEC = [static.InputSpec([None, 3, 16, 16], "float32", "x")]


def aware(folder, onnx_format=False, **config):
    quantiser = paddle.quantization.ImperativeQuantAware(onnx_format=onnx_format, **config)
    net = Net()
    quantiser.quantize(net)
    taught(net)
    quantiser.save_quantized_model(net, f"{folder}/m", input_spec=SPEC)


def configured(folder, converted=True):
    """paddle.quantization of 2.4 and later."""
    from paddle.quantization import QAT, QuantConfig
    from paddle.quantization.quanters import FakeQuanterWithAbsMaxObserver
    quanter = FakeQuanterWithAbsMaxObserver(moving_rate=0.9)
    qat = QAT(QuantConfig(activation=quanter, weight=quanter))
    net = qat.quantize(Net(), inplace=False)
    taught(net)
    paddle.jit.save(qat.convert(net) if converted else net, f"{folder}/m", input_spec=SPEC)


def observed(folder):
    from paddle.quantization import PTQ, QuantConfig
    from paddle.quantization.observers import AbsmaxObserver
    ptq = PTQ(QuantConfig(activation=AbsmaxObserver(), weight=AbsmaxObserver()))
    net = Net()
    taught(net)
    net = ptq.quantize(net)
    for x in batches(4):
        net(paddle.to_tensor(x))
    paddle.jit.save(ptq.convert(net), f"{folder}/m", input_spec=SPEC)


def plain(folder, name="plain"):
    net = Net()
    taught(net)
    paddle.jit.save(net, f"{folder}/{name}", input_spec=SPEC)
    paddle.enable_static()


def afterwards(folder, **config):
    plain(folder)
    with static.scope_guard(static.Scope()):
        exe = static.Executor(paddle.CPUPlace())
        from paddle.static.quantization import PostTrainingQuantization
        program, _, _ = static.load_inference_model(f"{folder}/plain", exe)
        x = program.global_block().var("x")
        ptq = PostTrainingQuantization(executor=exe, model_dir=folder, model_filename="plain.pdmodel", params_filename="plain.pdiparams",
                                       data_loader=paddle.io.DataLoader(Some(np.concatenate(batches(4))), feed_list=[x], batch_size=4, return_list=False), batch_size=4, batch_nums=4, **config)
        ptq.quantize()
        ptq.save_quantized_model(folder, model_filename="m.pdmodel", params_filename="m.pdiparams")


def half(kind):
    """Float32 outside; parameters and what is computed in half precision, but for batch_norm's statistics."""
    def make(folder):
        from paddle.static.amp import bf16
        paddle.enable_static()
        kept = {}
        for name in "plain", "m":
            main, startup = static.Program(), static.Program()
            inside = kind if name == "m" and kind == "float16" else "float32"
            paddle.set_default_dtype(inside)
            with static.program_guard(main, startup), static.scope_guard(static.Scope()), paddle.utils.unique_name.guard():
                net = Net()
                net.eval()
                x = data(3, 16, 16)
                out = net(paddle.cast(x, inside))
                exe, place = static.Executor(paddle.CPUPlace()), paddle.CPUPlace()
                if name == "plain":
                    exe.run(startup)
                    kept = values(main)
                for n, v in kept.items():
                    as_half = main.global_block().var(n).dtype == paddle.float16
                    static.global_scope().var(n).get_tensor().set(v.astype("float16") if as_half else v, place)
                if name == "m" and kind == "bfloat16":
                    bf16.cast_parameters_to_bf16(place, main, to_bf16_var_names=bf16.cast_model_to_bf16(main, use_bf16_guard=False))
                out = paddle.cast(main.global_block().var(out.name), "float32")
                static.save_inference_model(f"{folder}/{name}", [x], [out], exe, program=main)
        paddle.set_default_dtype("float32")
    make.limit = {"float16": 4e-3, "bfloat16": 3e-2}[kind]
    make.kind = kind
    return make


def with_(make, **options):
    return lambda folder: make(folder, **options)


NETS = {
    "aware, moving averages": aware, "aware, per channel": with_(aware, weight_quantize_type="channel_wise_abs_max"), "aware, onnx form": with_(aware, onnx_format=True),
    "aware, 2.4": with_(configured, converted=False), "aware, 2.4, converted": configured, "observers, converted": observed,
    **{f"afterwards, {a}": with_(afterwards, algo=a, onnx_format=False) for a in ("abs_max", "avg", "hist", "KL", "mse", "min_max")},
    "afterwards, per channel": with_(afterwards, algo="avg", weight_quantize_type="channel_wise_abs_max", onnx_format=False), "afterwards, per tensor": with_(afterwards, algo="avg", weight_quantize_type="abs_max", onnx_format=False),
    "afterwards, onnx form": with_(afterwards, algo="avg", onnx_format=True), "afterwards, every operator": with_(afterwards, algo="avg", is_full_quantize=True, onnx_format=False),
    "float16": half("float16"), "bfloat16": half("bfloat16"),
}


def compare(build, name, make, folder):
    paddle.disable_static()
    paddle.seed(3)
    make(folder)
    paddle.enable_static()
    runs = [floats("x", 2, 3, 16, 16), floats("x", 5, 3, 16, 16)]
    if not hasattr(make, "limit"):
        return Outcome(compared_runs(build, folder, static.Executor(paddle.CPUPlace()), runs))
    worst = 0.0
    for i, r in enumerate(runs):
        feed = r(np.random.RandomState(i))
        (_, want), = peer(f"{folder}/plain", static.Executor(paddle.CPUPlace()), feed)
        with open(f"{folder}/m.pdmodel", "rb") as f:
            program = static.Program.parse_from_string(f.read())
        ops = program.global_block().ops
        out, = (op.input("X")[0] for op in ops if op.type == "fetch")
        got = run(build, f"{folder}/m.pdmodel", folder, feed, [out])[out]
        worst = max(worst, error(got.astype("float32"), want))
    narrow = sum(v.dtype in (paddle.float16, paddle.bfloat16) for v in program.list_vars() if v.type == paddle.base.core.VarDesc.VarType.LOD_TENSOR)
    return Outcome({make.kind: (worst, make.limit)}, [f"{narrow} variables in half precision"])


def cases(build, folder):
    return NETS
