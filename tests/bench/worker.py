"""One peer with one network in a process of its own: worker.py PEER NET BATCH THREADS infer|train BUILD

Reads commands from stdin and answers each with a line of JSON:
  time SECONDS LEAST    runs for so long, and at least so often: {"ms": [...]}
  output FILE           the result of a run as .npy (infer), or the losses of five steps from the start (train)
  rss                   {"kb": peak resident set}

Peers: kiln (libkiln.so), torch (eager), torch-nhwc (channels last),
compile (torch.compile, weights frozen for infer), onnxruntime, openvino, ncnn. Times are of a call from Python, for every peer alike.
"""
import ctypes, json, os, resource, sys, time

peer, net, batch, threads, mode, build = sys.argv[1:]
batch, threads, train = int(batch), int(threads), mode == "train"
models = f"{build}/bench/models"
reply = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what libraries print is no answer
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = str(threads)
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", os.path.abspath(f"{build}/bench/inductor"))
import numpy as np
from shapes import bert_head, inputs


class Unsupported(Exception):
    pass


class Tensor(ctypes.Structure):
    _fields_ = [("dtype", ctypes.c_int), ("rank", ctypes.c_int), ("dims", ctypes.c_int64 * 9), ("data", ctypes.c_void_p)]

    @classmethod
    def of(cls, a):
        t = cls({"int64": 5, "float32": 8}[a.dtype.name], a.ndim, (ctypes.c_int64 * 9)(*a.shape), a.ctypes.data)
        t.keep = a
        return t


class Options(ctypes.Structure):
    """kl_exec_options: zeros are the defaults."""
    _fields_ = [("threads", ctypes.c_int), ("flags", ctypes.c_bool * 3), ("trace", ctypes.c_char_p), ("seed", ctypes.c_uint64),
                ("scope", ctypes.c_void_p), ("memory_budget", ctypes.c_int64), ("conv_error", ctypes.c_double),
                ("rest", ctypes.c_int * 64)]


class Pair(ctypes.Structure):  # kl_feed and kl_fetch
    _fields_ = [("name", ctypes.c_char_p), ("tensor", ctypes.POINTER(Tensor))]


def pairs(items):
    """Feeds or fetches, and their address, which each call takes as it is."""
    made = (Pair * (len(items) + 1))(*[(n, ctypes.pointer(t)) for n, t in items], (None, None))
    address = ctypes.c_void_p(ctypes.addressof(made))
    address.keep = made
    return address


def kiln():
    lib = ctypes.CDLL(f"{build}/libkiln.so")
    for f in ("kl_exec_new", "kl_load", "kl_load_inference"):
        getattr(lib, f).restype = ctypes.c_void_p
    lib.kl_error.restype = ctypes.c_char_p
    run = lib.kl_run
    run.argtypes = [ctypes.c_void_p] * 4
    run.restype = lib.kl_failed.restype = lib.kl_set.restype = ctypes.c_bool

    def check():
        if lib.kl_failed():
            raise RuntimeError(lib.kl_error().decode())

    exe = ctypes.c_void_p(lib.kl_exec_new(Options(threads=threads)))
    x, y = inputs(net, batch)
    path = f"{models}/{net}".encode()
    if train:
        start, program = (ctypes.c_void_p(lib.kl_load(path + end)) for end in (b".startup.pdmodel", b".main.pdmodel"))
        check()
        out = np.zeros((), np.float32)
        feeds, fetches = pairs([(b"x", Tensor.of(x)), (b"label", Tensor.of(y))]), pairs([(b"loss", Tensor.of(out))])
        run(exe, start, None, None)
        for name, value in bert_head().items() if net == "bert" else ():
            lib.kl_set(exe, name.encode(), ctypes.byref(Tensor.of(value)))
    else:
        program = ctypes.c_void_p(lib.kl_load_inference(exe, path))
        check()
        out = np.zeros((batch, 128, 768) if net == "bert" else (batch, 10 if net in ("mlp", "lenet") else 1000), np.float32)
        feeds, fetches = pairs([(b"x", Tensor.of(x))]), pairs([(b"out", Tensor.of(out))])

    def step():
        if not run(exe, program, feeds, fetches):
            check()
        return out

    step.keep = (x, y)
    return step


def torch_net():
    import torch, torchnets
    torch.set_num_threads(threads)
    f = torchnets.build(net, models, train)
    x, y = (torch.from_numpy(a) for a in inputs(net, batch))
    y = y.flatten()
    if peer in ("torch-nhwc", "compile") and x.ndim == 4:
        f, x = f.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    if peer == "compile":
        import torch._inductor.config as config
        config.freezing = not train
        f = torch.compile(f)
    if not train:
        def step():
            with torch.no_grad():
                return f(x).numpy()
        return step
    params = [p for p in f.parameters()]
    sgd = torch.optim.SGD(params, lr=0.01, momentum=0.9, fused=True)
    loss_of = torch.nn.CrossEntropyLoss()

    def step():
        sgd.zero_grad(set_to_none=True)
        loss = loss_of(f(x), y)
        loss.backward()
        sgd.step()
        return loss.item()
    return step


def onnx_file():
    path = f"{models}/{net}.onnx"
    if not os.path.exists(path):
        raise Unsupported(f"{path} is missing")
    return path


def onnxruntime():
    import onnxruntime as ort
    o = ort.SessionOptions()
    o.intra_op_num_threads, o.inter_op_num_threads = threads, 1
    o.add_free_dimension_override_by_name("N", batch)
    s = ort.InferenceSession(onnx_file(), o, providers=["CPUExecutionProvider"])
    feeds = {s.get_inputs()[0].name: inputs(net, batch)[0]}
    return lambda: s.run(None, feeds)[0]


def openvino():
    import openvino as ov
    core = ov.Core()
    m = core.read_model(onnx_file())
    x = inputs(net, batch)[0]
    m.reshape(list(x.shape))
    request = core.compile_model(m, "CPU", {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY",
                                            "INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 1}).create_infer_request()
    request.set_input_tensor(ov.Tensor(x))

    def step():
        request.infer()
        return request.get_output_tensor().data
    return step


def ncnn():
    """No batches: the samples of a batch one after another."""
    import ncnn as n
    f = n.Net()
    f.opt.num_threads = threads
    f.opt.use_vulkan_compute = f.opt.use_fp16_packed = f.opt.use_fp16_storage = f.opt.use_fp16_arithmetic = False
    f.opt.use_bf16_storage = False
    if not os.path.exists(f"{models}/{net}.ncnn.param"):
        raise Unsupported("pnnx could not convert it")
    if f.load_param(f"{models}/{net}.ncnn.param") or f.load_model(f"{models}/{net}.ncnn.bin"):
        raise Unsupported("the converted model cannot be loaded")
    x = inputs(net, batch)[0]
    mats = [n.Mat(s.astype(np.int32) if net == "bert" else s).clone() for s in x]  # a Mat does not keep its array

    def step():
        out = []
        for m in mats:
            e = f.create_extractor()
            e.input("in0", m)
            rc, y = e.extract("out0")
            if rc:
                raise Unsupported(f"extract fails with {rc}")
            out.append(np.array(y))
        return np.stack(out)
    return step


def main():
    t = time.perf_counter()
    try:
        step = {"kiln": kiln, "onnxruntime": onnxruntime, "openvino": openvino, "ncnn": ncnn}.get(peer, torch_net)()
        first = [np.array(step()) for _ in range(5 if train else 1)]
    except Exception as e:  # a peer that cannot run a network is reported, with its reason
        reply.write(json.dumps({"error": f"{type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}"[:300]}) + "\n")
        return reply.flush()
    answer = {"start_s": time.perf_counter() - t}
    while True:
        reply.write(json.dumps(answer) + "\n")
        reply.flush()
        words = sys.stdin.readline().split()
        if not words:
            return
        if words[0] == "time":
            ms, end = [], time.perf_counter() + float(words[1])
            step()
            while len(ms) < int(words[2]) or time.perf_counter() < end:
                t = time.perf_counter()
                step()
                ms.append((time.perf_counter() - t) * 1e3)
            answer = {"ms": ms}
        elif words[0] == "output":
            np.save(words[1], np.stack(first) if train else first[0])
            answer = {}
        elif words[0] == "rss":
            answer = {"kb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}


main()
