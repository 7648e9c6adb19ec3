"""Tables beside speed: start-up, memory plans, peak memory, and whether results depend on the number of threads."""
import hashlib, os, re, subprocess, sys, tempfile
import numpy as np
from peers import environment, kiln, measure, progress
from shapes import NETS, SHAPES, inputs
from tables_nets import BIG, shapes_of

MB = 1 / (1 << 20)


def bold(text, missed):
    return f"**{text}**" if missed else text


def start(o, write):
    targets = {"lenet": (10, 150), "mobilenet": (20, 400), "resnet50": (50, 800)}
    rows = []
    for net in o.nets:
        progress(f"start {net}")
        each = [kiln(o.build, "bench", f"{o.build}/bench/models/{net}.pdmodel", "--start", "--reps", 1, "--json")
                for _ in range(o.rounds or 3)]
        row = {"net": net, "target_ms": targets.get(net)}
        for k in ("start_ms", "start_cached_ms"):
            v = sorted(e[k] for e in each)
            row[k] = {"median": v[len(v) // 2], "min": v[0], "max": v[-1]}
        row["llvm_mapped_cached"] = any(e["llvm_mapped_cached"] for e in each)
        rows.append(row)

    def cell(r, k, i):
        f = r[k]
        return bold(f"{f['median']:.1f} ({f['min']:.1f}-{f['max']:.1f})", r["target_ms"] and f["median"] > r["target_ms"][i])
    write("From exec() to the first result, batch 1, ms: median (min-max)", rows, [
        ("network", lambda r: r["net"]), ("cached", lambda r: cell(r, "start_cached_ms", 0)),
        ("target", lambda r: f"<= {r['target_ms'][0]}" if r["target_ms"] else "-"),
        ("libLLVM mapped then", lambda r: bold("yes", True) if r["llvm_mapped_cached"] else "no"),
        ("nothing cached", lambda r: cell(r, "start_ms", 1)),
        ("target", lambda r: f"<= {r['target_ms'][1]}" if r["target_ms"] else "-")], [])


def memory(o, write):
    rows = []
    for net in o.nets:
        for train in (False, True):
            batch = (64 if net not in BIG else 16) if train else 1
            progress(f"memory {net} {'train' if train else 'infer'}")
            path = f"{o.build}/bench/models/{net}"
            program = f"{path}.main.pdmodel" if train else f"{path}.pdmodel"
            fetch = ["--fetch", "loss"] if train else []
            r = subprocess.run([f"{o.build}/kiln", "compile", program, *shapes_of(net, batch, train), "--time-passes", "--emit", "graph"],
                               capture_output=True, text=True, env=environment())
            if r.returncode:
                sys.exit(r.stderr)
            ms = sum(float(m) for m in re.findall(r"^(?:order|recompute|memplan)\s+([0-9.]+)", r.stderr, re.M))
            start = ["--startup", f"{path}.startup.pdmodel"] if train else []
            p = kiln(o.build, "bench", program, *start, *shapes_of(net, batch, train), "--reps", 1, "--json")
            rows.append({"net": net, "batch": batch, "train": train, "arena": p["arena"], "lower_bound": p["lower_bound"],
                         "ratio": p["ratio"], "planning_ms": ms, "target": 1.02 if train else 1.0})
    write("Memory plans", rows, [
        ("program", lambda r: f"{r['net']} b{r['batch']}, {'training' if r['train'] else 'inference'}"),
        ("arena, MiB", lambda r: f"{r['arena'] * MB:.2f}"), ("lower bound, MiB", lambda r: f"{r['lower_bound'] * MB:.2f}"),
        ("arena / bound", lambda r: bold(f"{r['ratio']:.4f}", r["ratio"] > r["target"] + 5e-5)),
        ("target", lambda r: f"<= {r['target']:.4f}"),
        ("planning, ms", lambda r: bold(f"{r['planning_ms']:.1f}", r["planning_ms"] > 100))], ["- planning: target <= 100 ms"])


def rss(o, write):
    net, batch = "resnet50", 16
    found = measure(o.build, net, batch, 2, "train", ["kiln"], 1, 0.1, 2)  # one at a time: each alone on the machine
    for p in o.peers or ["torch", "torch-nhwc", "compile"]:
        found.update(measure(o.build, net, batch, 2, "train", [p], 1, 0.1, 2))
    p = f"{o.build}/bench/models/{net}"
    own = kiln(o.build, "bench", f"{p}.main.pdmodel", "--startup", f"{p}.startup.pdmodel", *shapes_of(net, batch, True), "--reps", 3, "--json")
    rows = [{"peer": k, "rss_kb": v.get("rss_kb"), "failure": v.get("failure")} for k, v in found.items()]
    rows.insert(0, {"peer": "kiln bench", "rss_kb": own["rss_kb"]})
    theirs = min((r["rss_kb"] for r in rows if not r["peer"].startswith("kiln") and r["rss_kb"]), default=None)
    for r in rows:
        r["over_best"] = r["rss_kb"] / theirs if theirs and r["rss_kb"] else None
    write("Peak resident memory, ResNet-50 training, batch 16, 2 threads", rows, [
        ("process", lambda r: r["peer"] + (" (from Python)" if r["peer"] != "kiln bench" else "")),
        ("peak RSS, MiB", lambda r: f"{r['rss_kb'] / 1024:.0f}" if r["rss_kb"] else "fails"),
        ("over the best peer's", lambda r: bold(f"{r['over_best']:.2f}", r["peer"].startswith("kiln") and r["over_best"] > 0.7) if r["over_best"] else "-")],
        ["- target for Kiln: <= 0.7 of the best peer; arena " + f"{own['arena'] * MB:.0f} MiB, lower bound {own['lower_bound'] * MB:.0f} MiB"])


def digest(path):
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def threads(o, write):
    """Forward with the inference program, and all state after 20 steps from the startup program."""
    counts, rows = o.threads or [1, 2, 3, 4, 8], []
    for net in o.nets:
        batch = {"mlp": 64, "lenet": 64, "vgg16": 1, "bert": 1}.get(net, 2)
        x, y = inputs(net, batch)
        path, row = f"{o.build}/bench/models/{net}", {"net": net, "batch": batch, "forward": {}, "training": {}}
        with tempfile.TemporaryDirectory(dir=f"{o.build}/bench") as folder:
            np.save(f"{folder}/x.npy", x)
            np.save(f"{folder}/y.npy", y)
            for t in counts:
                progress(f"threads {net}: {t}")
                run = lambda *a: subprocess.run([f"{o.build}/kiln", *map(str, a)], check=True, stdout=subprocess.DEVNULL,
                                                stderr=subprocess.DEVNULL, env=environment())
                run("run", f"{path}.pdmodel", "--feed", f"x={folder}/x.npy", "--fetch", f"out={folder}/out.npy", "--threads", t)
                row["forward"][t] = digest(f"{folder}/out.npy")
                run("train", "--startup", f"{path}.startup.pdmodel", "--main", f"{path}.main.pdmodel", "--feed",
                    f"x={folder}/x.npy", "--feed", f"label={folder}/y.npy", "--batch", batch, "--steps", 20, "--fetch",
                    "loss", "--save", f"{folder}/run{t}", "--threads", t)
                row["training"][t] = digest(f"{folder}/run{t}/params.pdiparams")
        rows.append(row)

    def cell(r, k):
        found = set(r[k].values())
        return next(iter(found))[:16] if len(found) == 1 else bold(f"{len(found)} different", True)
    write(f"SHA-256 of the results with {', '.join(map(str, counts))} threads (its first 16 digits, if it is one)", rows, [
        ("network", lambda r: f"{r['net']} b{r['batch']}"), ("forward", lambda r: cell(r, "forward")),
        ("parameters after 20 training steps", lambda r: cell(r, "training"))], [])


def seed(o, write):
    """The network of frontend/examples/seed.c in Kiln and torch, from the same values over the same batches."""
    r = subprocess.run([sys.executable, f"{os.path.dirname(os.path.abspath(__file__))}/seed_peer.py", o.build],
                       stdout=subprocess.PIPE, text=True, env=environment())
    rows = [dict(zip(("epoch", "kiln_loss", "torch_loss", "kiln_accuracy", "torch_accuracy"), l.split()))
            for l in r.stdout.splitlines() if l.split() and l.split()[0].isdigit()]
    write("The network of seed.c in five epochs of Fashion-MNIST", rows,
          [(k.replace("_", " "), lambda r, k=k: r[k]) for k in (rows[0] if rows else ())],
          ["- " + (r.stdout.splitlines() or ["FAILED"])[-1]])


TABLES = {"start": start, "memory": memory, "rss": rss, "threads": threads, "seed": seed}
