"""Tables of whole networks beside the peers: inference latency and throughput, training steps, peak memory."""
import math
from peers import best_of, kiln, measure, ratio
from shapes import SHAPES

BIG = ("mobilenet", "resnet18", "resnet50", "vgg16", "bert")
INFER = ["onnxruntime", "openvino", "ncnn", "compile"]
TRAIN = ["torch", "torch-nhwc", "compile"]
AGREE = {"infer": 2e-3, "train": 2e-2}  # largest error of a result, of five losses, that still counts as the same


def show(f, digits=None):
    """median (min-max)"""
    if f is None:
        return "-"
    if "failure" in f:
        return "fails"
    d = digits if digits is not None else (3 if f["median"] < 1 else 2 if f["median"] < 100 else 0)
    return f"{f['median']:.{d}f} ({f['min']:.{d}f}-{f['max']:.{d}f})"


def shapes_of(net, batch, train):
    dims = "x".join(map(str, SHAPES[net]))
    return ["--feed-shape", f"x={batch}x{dims}"] + (["--feed-shape", f"label={batch}x1"] if train else [])


def bound(o, net, batch, threads, train):
    """What `kiln bench` says of the same work: bound, memory plan."""
    path = f"{o.build}/bench/models/{net}"
    model = [f"{path}.main.pdmodel", "--startup", f"{path}.startup.pdmodel"] if train else [f"{path}.pdmodel"]
    return kiln(o.build, "bench", *model, *shapes_of(net, batch, train), "--threads", threads, "--reps", 3, "--json")


def compare(o, net, batch, threads, mode, peers, rounds, seconds, least, earlier=None):
    """A row: ours with this many threads, the best of the peers with as many or, in `earlier`, fewer."""
    found = measure(o.build, net, batch, threads, mode, ["kiln"] + (o.peers or peers), o.rounds or rounds, seconds, least)
    plan = bound(o, net, batch, threads, mode == "train")
    row = {"net": net, "batch": batch, "threads": threads, "results_ms": found, "bound_ms": plan["bound_ms"],
           "arena_ratio": plan["ratio"], "kernels": plan["kernels"]}
    candidates = {**{f"{k} {e['threads']}T": v for e in earlier or [] for k, v in e["results_ms"].items()}, **found}
    best = best_of(candidates, AGREE[mode])
    ours = found["kiln"]
    if best and "median" in ours:
        row["best"], row["ours_over_best"] = best[0], ratio(ours, best[1])
        row["best_over_ours"] = ratio(best[1], ours)
    row["worst_error"] = max((v["error"] for v in found.values() if "error" in v), default=float("inf"))
    row["differ"] = [k for k, v in found.items() if v.get("error", 0) > AGREE[mode]]
    return row


def notes_of(rows):
    failures = {f"{k} ({r['net']}): {v['failure']}" for r in rows for k, v in r["results_ms"].items() if "failure" in v}
    return [f"- fails: {f}" for f in sorted(failures)] + [
        f"- differs, so does not count: {k} ({r['net']} batch {r['batch']}), by {r['results_ms'][k]['error']:.1e}"
        for r in rows for k in r["differ"]]


def columns(rows, peers, key, heading, target):
    def verdict(r):
        t = r.get("target")
        text = show(r.get(key), 2)
        missed = t is not None and r.get(key) and ((r[key]["median"] > t) if key == "ours_over_best" else r[key]["median"] < t)
        return f"**{text}**" if missed else text
    used = [p for p in peers if any(p in r["results_ms"] for r in rows)]
    return [("network", lambda r: f"{r['net']} b{r['batch']} {r['threads']}T"), ("Kiln", lambda r: show(r["results_ms"]["kiln"]))] + [
        (p, lambda r, p=p: show(r["results_ms"].get(p))) for p in used] + [
        ("best peer", lambda r: r.get("best", "-")), (heading, verdict), ("target", lambda r: target(r)),
        ("bound", lambda r: f"{r['bound_ms']:.3g}"), ("error", lambda r: f"{r['worst_error']:.0e}")]


def mean_line(rows, key, threads):
    v = [r[key]["median"] for r in rows if r["threads"] == threads and r["net"] in BIG and key in r]
    mean = math.exp(sum(map(math.log, v)) / len(v)) if v else 0
    return (f"**{mean:.3f}**" if mean > 0.9 else f"{mean:.3f}") + f" of {len(v)}"


def latency(o, write):
    rows = []
    for net in o.nets:
        seen = []
        for t in o.threads or [1, 2]:
            row = compare(o, net, 1, t, "infer", INFER, 5, 0.4, 3, seen)
            row["target"] = 1.1 if net in BIG else 0.5
            seen.append(row)
        rows += seen
    notes = [f"- geometric mean of ours / best peer over the big networks (target <= 0.9), {t} threads: "
             f"{mean_line(rows, 'ours_over_best', t)}" for t in sorted({r["threads"] for r in rows})]
    write("Inference latency, batch 1, ms: median (min-max over the rounds)", rows,
          columns(rows, o.peers or INFER, "ours_over_best", "ours / best", lambda r: f"<= {r['target']}"), notes + notes_of(rows))


def throughput(o, write):
    rows = []
    for net in o.nets:
        for t in o.threads or [2]:
            row = compare(o, net, 32, t, "infer", INFER, 3, 0.4, 1)
            row["target"] = 1.0
            rows.append(row)
    write("Inference throughput, batch 32, ms per batch: median (min-max over the rounds)", rows,
          columns(rows, o.peers or INFER, "best_over_ours", "best / ours", lambda r: ">= 1"),
          ["- ncnn has no batches: 32 samples one after another"] + notes_of(rows))


STEPS = [("mlp", 64, 3), ("mlp", 1, 6), ("lenet", 64, 3), ("resnet18", 16, 1.4), ("resnet50", 16, 1.5), ("mobilenet", 16, 2.5)]


def training(o, write):
    rows = []
    for net, batch, target in STEPS:
        seen = []
        for t in (o.threads or ([1, 2] if net not in BIG else [2])) if net in o.nets else []:
            peers = [p for p in TRAIN if p != "torch-nhwc" or net != "mlp"]
            row = compare(o, net, batch, t, "train", peers, 5 if net not in BIG else 3, 0.4, 2, seen)
            row["target"] = target if t == 2 else None
            seen.append(row)
        rows += seen
    write("Training steps, ms: median (min-max over the rounds)", rows,
          columns(rows, o.peers or TRAIN, "best_over_ours", "best / ours", lambda r: f">= {r['target']}" if r["target"] else "-"),
          ["- the big networks are measured with 2 threads only", "- error: of the losses of the first five steps"] + notes_of(rows))


TABLES = {"latency": latency, "throughput": throughput, "training": training}
