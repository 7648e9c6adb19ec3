"""Converts the networks for the peers: export.py BUILD NAME...: NAME.onnx and, for ncnn, NAME.ncnn.param and .bin.

What is there and newer than the parameters is kept. A conversion that fails is reported and leaves nothing.
"""
import os, shutil, sys, tempfile, warnings
import torch
import torchnets
from shapes import inputs

build, names = sys.argv[1], sys.argv[2:]
folder = os.path.abspath(f"{build}/bench/models")
warnings.filterwarnings("ignore")


def fresh(path, name):
    return os.path.exists(path) and os.path.getmtime(path) > os.path.getmtime(f"{folder}/{name}.pdiparams")


def onnx(name, net, x, path):
    torch.onnx.export(net, (x,), path, dynamo=False, opset_version=17, input_names=["x"], output_names=["out"],
                      dynamic_axes={"x": {0: "N"}, "out": {0: "N"}})


def ncnn(name, net, x, path):
    """pnnx writes much beside what is wanted, and fails on some of that after the rest is done."""
    import pnnx
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        os.chdir(scratch)
        failure = None
        try:
            pnnx.export(net, "net.pt", (x.int() if name == "bert" else x,), fp16=False)
        except Exception as e:
            failure = e
        os.chdir(folder)
        if not os.path.exists(f"{scratch}/net.ncnn.param"):
            raise failure or RuntimeError("pnnx writes no file")
        for end in ("bin", "param"):
            shutil.move(f"{scratch}/net.ncnn.{end}", f"{folder}/{name}.ncnn.{end}")


say = os.fdopen(os.dup(2), "w", buffering=1)
for fd in (1, 2):  # what the converters print
    os.dup2(os.open(f"{folder}/export.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), fd)
for name in names:
    for path, convert in ((f"{folder}/{name}.onnx", onnx), (f"{folder}/{name}.ncnn.param", ncnn)):
        if fresh(path, name):
            continue
        print(f"converting {name} to {os.path.basename(path)}", file=say)
        try:
            with torch.no_grad():
                convert(name, torchnets.build(name, folder), torch.from_numpy(inputs(name, 1)[0]), path)
        except Exception as e:
            print(f"{name}: {type(e).__name__}: {str(e)[:300]}", file=say)
