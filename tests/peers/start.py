"""ResNet-50 as PaddlePaddle saves it: milliseconds from exec() to the first result, where compiled code is in the cache. It loads,
verifies, compiles and runs in them."""
import json
from train import *


def cases(build, folder):
    return {"resnet50": 50.0}


def compare(build, name, limit, folder):
    paddle.seed(3)
    main, startup = static.Program(), static.Program()
    with static.program_guard(main, startup), static.scope_guard(static.Scope()):
        m = getattr(paddle.vision.models, name)()
        m.eval()
        x = data(3, 224, 224)
        out = m(x)
        exe = static.Executor(paddle.CPUPlace())
        exe.run(startup)
        static.save_inference_model(f"{folder}/m", [x], [out], exe)
    bench = lambda: json.loads(kiln(build, "bench", f"{folder}/m.pdmodel", "--feed-shape", "x=1x3x224x224", "--start", "--reps", 1, "--json"))
    runs = [bench() for _ in range(3)]
    cached, first = ([r[k] for r in runs] for k in ("start_cached_ms", "start_ms"))
    return Outcome({"ms, code in the cache": (min(cached), limit)}, [f"three runs: {cached} ms; nothing in the cache: {first} ms"])
