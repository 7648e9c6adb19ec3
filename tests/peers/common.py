"""What the comparisons with PaddlePaddle share: running Kiln on files, comparing values, parameter files."""
import os, struct, subprocess
import numpy as np

os.environ.setdefault("GLOG_minloglevel", "2")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two comparisons run at a time
THREADS = ["--threads", "1"]
TYPES = {0: np.bool_, 1: np.int16, 2: np.int32, 3: np.int64, 4: np.float16, 5: np.float32, 6: np.float64,
         20: np.uint8, 21: np.int8}


class KilnError(Exception):
    pass


class Outcome:
    """What a comparison gives: {what is measured: (its greatest error, the limit)}, lines to print, the number of cases in it."""

    def __init__(self, figures, notes=(), cases=1):
        self.figures, self.notes, self.cases = figures, list(notes), cases


def kiln(build, *args):
    """The output of a `kiln` command; KilnError with its message if it fails."""
    r = subprocess.run([build + "/kiln", *map(str, args)], capture_output=True, text=True)
    if r.returncode != 0:
        raise KilnError(f"exit {r.returncode}: {r.stderr.strip() or r.stdout.strip()}")
    return r.stdout


def file_name(name):
    return name.replace("/", "%")


def run(build, model, folder, feed, fetch, *flags):
    """One run of a model in Kiln: {name: array} in, {name: array} out."""
    args = ["run", model, *THREADS, *flags]
    for name, value in feed.items():
        path = f"{folder}/{file_name(name)}.npy"
        np.save(path, value)
        args += ["--feed", f"{name}={path}"]
    for name in fetch:
        args += ["--fetch", f"{name}={folder}/{file_name(name)}.out.npy"]
    kiln(build, *args)
    return {name: np.load(f"{folder}/{file_name(name)}.out.npy") for name in fetch}


def error(got, want, floor=1e-2):
    """Largest difference relative to the largest magnitude; inf where type, shape, or the places of NaN and inf differ."""
    if got.shape != want.shape or got.dtype != want.dtype:
        return float("inf")
    if want.size == 0:
        return 0.0
    if want.dtype.kind != "f":
        return 0.0 if np.array_equal(got, want) else float("inf")
    a, b = got.astype(np.float64), want.astype(np.float64)
    odd = ~np.isfinite(b)
    if not np.array_equal(a[odd], b[odd], equal_nan=True) or not np.isfinite(a[~odd]).all():
        return float("inf")
    a, b = a[~odd], b[~odd]
    return float(np.abs(a - b).max() / max(np.abs(b).max(), floor)) if a.size else 0.0


def describe(got, want):
    if got.shape != want.shape or got.dtype != want.dtype:
        return f"{got.dtype} {list(got.shape)}, PaddlePaddle: {want.dtype} {list(want.shape)}"
    with np.errstate(all="ignore"):
        d = np.abs(got.astype(np.float64) - want.astype(np.float64))
    d = np.where(np.isnan(d) & ~(np.isnan(got) & np.isnan(want)) if want.dtype.kind == "f" else False, np.inf, d)
    i = np.unravel_index(np.nanargmax(d) if not np.isnan(d).all() else 0, d.shape)
    return f"{got[i]!r} at {list(map(int, i))}, PaddlePaddle: {want[i]!r}"


def varint(n):
    out = b""
    while n > 127:
        out, n = out + bytes([n & 127 | 128]), n >> 7
    return out + bytes([n])


def write_params(path, values):
    """A .pdiparams file: tensors in the order of their names."""
    numbers = {np.dtype(t): n for n, t in TYPES.items()}
    with open(path, "wb") as f:
        for name in sorted(values, key=str.encode):
            v = np.asarray(values[name])
            desc = b"\x08" + varint(numbers[v.dtype]) + b"".join(b"\x10" + varint(d) for d in v.shape)
            f.write(struct.pack("<IQIi", 0, 0, 0, len(desc)) + desc + v.tobytes())


def read_varint(b, at):
    v = shift = 0
    while True:
        v |= (b[at] & 127) << shift
        shift, at = shift + 7, at + 1
        if b[at - 1] < 128:
            return v, at


def read_tensors(path, names):
    """{name: (array, offsets of its sequences at each level, the outermost first)} of a .pdiparams file that holds these names."""
    b, at, out = open(path, "rb").read(), 0, []
    while at < len(b):
        levels = []
        for _ in range(struct.unpack_from("<Q", b, at + 4)[0]):
            n = struct.unpack_from("<Q", b, at + 12)[0]
            levels.append(np.frombuffer(b, "<u8", n // 8, at + 20).tolist())
            at += 8 + n
        n = struct.unpack_from("<i", b, at + 16)[0]
        desc, at, kind, dims, p = b[at + 20:at + 20 + n], at + 20 + n, 5, [], 0
        while p < len(desc):
            tag, p = desc[p], p + 1
            v, p = read_varint(desc, p)
            if tag == 8:
                kind = v
            elif tag == 16:
                dims.append(v)
            elif tag & 7 == 2:  # what a reader does not know: padding
                p += v
        t = np.dtype(TYPES[kind])
        size = int(np.prod(dims, dtype=np.int64)) * t.itemsize
        out.append((np.frombuffer(b[at:at + size], t).reshape(dims), levels))
        at += size
    if len(out) != len(names):
        raise KilnError(f"{path}: {len(out)} tensors for {len(names)} names")
    return dict(zip(sorted(names, key=str.encode), out))


def read_params(path, names):
    """{name: array} of a .pdiparams file that holds these names."""
    return {name: value for name, (value, _) in read_tensors(path, names).items()}
